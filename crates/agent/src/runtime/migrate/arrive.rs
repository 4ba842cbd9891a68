//! The destination: makes ready, with the images that disks lie over, and resumes the guest once this node is its owner.

use std::time::Duration;

use vmkeep_core::migrate::node::{self, Do};
use vmkeep_types::error::Error;
use vmkeep_types::migration::{MovePart, MoveSaid};
use vmkeep_types::name::Name;
use vmkeep_types::pool::VolumeRecord;

use super::super::apply;
use super::super::grant::Until;
use super::super::node::{Look, Node};
use super::{AT_REST, LOOK_EVERY, Mover, depart};
use crate::domain::marks;
use crate::image;

/// Networks, seed and empty volumes; done again without harm.
pub async fn prepare(mover: &mut Mover) -> Result<Duration, Error> {
    if mover.said().is_some_and(|said| *said != MoveSaid::Working) {
        return Ok(AT_REST);
    }
    mover.say(MoveSaid::Working, None, None).await?;
    let said = match make_ready(mover).await {
        Ok(()) => MoveSaid::Ready,
        Err(error) => MoveSaid::Refused { error: Error { message: format!("on {}: {}", mover.node.name, error.message), ..error } },
    };
    mover.say(said, None, None).await?;
    Ok(AT_REST)
}

async fn make_ready(mover: &Mover) -> Result<(), Error> {
    let (node, order) = (&mover.node, &mover.order.order);
    no_other_domain(mover).await?;
    for nic in &order.spec.nics {
        let spec = order.networks.get(&nic.network).ok_or_else(|| Error::not_found("network", &nic.network))?;
        node.network(&order.project, spec, Look::Fresh).await?;
    }
    let MovePart::Prepare { copy } = &mover.order.part else { return Err(Error::internal("not a preparation")) };
    images(node, mover).await?;
    for (disk, volume) in &order.volumes {
        if copy.contains(disk) {
            blank(node, mover, disk, volume).await?;
        } else {
            reachable(node, mover, disk, volume).await?;
        }
    }
    apply::write_seed(node, order).await?;
    node.grants.give(order.vm, Until::Taken)
}

/// libvirt would refuse it too, but only after everything was copied.
async fn no_other_domain(mover: &Mover) -> Result<(), Error> {
    let name = mover.order.order.spec.name.as_str();
    let domains = mover.node.hv.list().await.map_err(|e| Error::refused(format!("libvirt: {e}")))?;
    for domain in domains {
        let ours = marks(domain.metadata.as_deref(), mover.order.vm);
        let same = domain.uuid == mover.order.vm;
        if (same && !ours) || (!same && domain.name == name) {
            return Err(Error::conflict(format!("libvirt has another domain called '{}' with the UUID {}", domain.name, domain.uuid)));
        }
    }
    Ok(())
}

/// What disks of the guest lie over: libvirt hands over the chain as the running guest has it, and QEMU opens all of it.
async fn images(node: &Node, mover: &Mover) -> Result<(), Error> {
    let order = &mover.order.order;
    for id in order.volumes.values().filter_map(|volume| volume.image) {
        if let Some((brief, pool)) = apply::missing_image(node, order, id)? {
            image::bring(node, pool.as_ref(), id, brief, &|_, _| {}).await?;
        }
    }
    Ok(())
}

/// An empty volume of the same size, which the source fills.
async fn blank(node: &Node, mover: &Mover, disk: &Name, volume: &VolumeRecord) -> Result<(), Error> {
    let spec = apply::pool_of(&mover.order.order, &volume.pool)?;
    let size = volume.size.ok_or_else(|| Error::internal(format!("disks[{disk}]: nobody knows how large it is")))?;
    let pool = node.pool(spec)?;
    pool.ensure().await?;
    let empty = VolumeRecord { image: None, ..volume.clone() };
    if pool.stat_volume(&empty).await?.is_some_and(|there| there.size_bytes != size.bytes()) {
        // Of an earlier try: this node does not hold the data.
        pool.delete_volume(empty.id).await?;
    }
    pool.create_volume(&empty).await.map(drop)
}

/// A disk in a shared pool is there.
async fn reachable(node: &Node, mover: &Mover, disk: &Name, volume: &VolumeRecord) -> Result<(), Error> {
    let spec = apply::pool_of(&mover.order.order, &volume.pool)?;
    match node.pool(spec)?.stat_volume(volume).await? {
        Some(_) => Ok(()),
        None => Err(Error::refused(format!("disks[{disk}]: pool '{}' is said to be shared, but its file is not here", volume.pool))
            .hint("is the file system mounted on this host?")),
    }
}

/// This node is the owner: the guest goes on.
pub async fn resume(mover: &mut Mover) -> Result<Duration, Error> {
    mover.node.grants.take(mover.order.vm);
    let domain = mover.look().await;
    match node::destination(mover.order.travel, mover.said(), &domain) {
        Do::Resume => depart::resume(mover).await,
        Do::Say(said) => {
            mover.say(said, None, None).await?;
            Ok(AT_REST)
        }
        _ if mover.said().is_some() => Ok(AT_REST),
        _ => Ok(LOOK_EVERY),
    }
}
