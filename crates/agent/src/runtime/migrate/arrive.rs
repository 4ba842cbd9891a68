//! The destination: makes ready, with the images that disks lie over, and resumes the guest once this node is its owner.

use std::collections::BTreeSet;
use std::time::Duration;

use vmkeep_core::migrate::node::{self, Do};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::migration::{MovePart, MoveSaid, Travel};
use vmkeep_types::name::Name;
use vmkeep_types::pool::VolumeRecord;

use super::super::apply;
use super::super::grant::Until;
use super::super::node::{Look, Node};
use super::{AT_REST, LOOK_EVERY, Mover, depart};
use crate::domain::marks;
use crate::image;

/// A yes or a no.
const SAME_BYTES_MAX: usize = 4096;

/// Networks, seed and empty volumes; done again without harm.
pub async fn prepare(mover: &mut Mover) -> Result<Duration, Error> {
    if mover.said().is_some_and(|said| *said != MoveSaid::Working) {
        return Ok(AT_REST);
    }
    let said = match one_folder(mover).await? {
        Folder::Own => {
            if matches!(&mover.order.part, MovePart::Prepare { copy, .. } if !copy.is_empty()) {
                // From here on there may be volumes.
                mover.say(MoveSaid::Working, None, None).await?;
            }
            match make_ready(mover).await {
                Ok(()) => Ok(()),
                Err(error) => {
                    blanks_away(mover).await;
                    Err(error)
                }
            }
        }
        Folder::Shared(pool) => {
            let words = format!("pool '{pool}' is one folder on both hosts, and its record does not say so");
            Err(Error::conflict(words).hint("a pool that every host reaches is made with shared: true; nothing needs to be copied then"))
        }
    };
    let said = match said {
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
    images(node, mover).await?;
    volumes(node, mover).await?;
    apply::write_seed(node, order).await?;
    if mover.order.travel == Travel::Off {
        // Nobody comes: it starts by a claim of its own.
        return Ok(());
    }
    node.grants.give(order.vm, Until::Taken)
}

async fn volumes(node: &Node, mover: &Mover) -> Result<(), Error> {
    let MovePart::Prepare { copy, .. } = &mover.order.part else { return Err(Error::internal("not a preparation")) };
    for (disk, volume) in &mover.order.order.volumes {
        match (copy.contains(disk), mover.order.travel) {
            (true, Travel::Off) => {} // it comes whole
            (true, Travel::Running | Travel::Paused) => blank(node, mover, disk, volume).await?,
            (false, _) => reachable(node, mover, disk, volume).await?,
        }
    }
    Ok(())
}

/// Who refuses leaves nothing.
async fn blanks_away(mover: &Mover) {
    let MovePart::Prepare { copy, .. } = &mover.order.part else { return };
    for (_, volume) in mover.order.order.volumes.iter().filter(|(disk, _)| copy.contains(*disk)) {
        let Ok(pool) = apply::pool_of(&mover.order.order, &volume.pool).and_then(|spec| mover.node.pool(spec)) else { continue };
        if let Err(error) = pool.delete_volume(volume.id).await {
            tracing::warn!(vm = %mover.order.vm, volume = %volume.id, %error, "an empty volume stays behind");
        }
    }
}

/// Where the pools of disks that are copied lie.
enum Folder {
    Own,
    /// Both hosts have this one in one folder: what were taken away here as a copy would be the guest's disk.
    Shared(Name),
}

/// Asks the source. Off, nothing is done without its answer; of what runs libvirt locks the disk.
async fn one_folder(mover: &Mover) -> Result<Folder, Error> {
    let MovePart::Prepare { copy, from: Some(from) } = &mover.order.part else { return Ok(Folder::Own) };
    let Some(peers) = &mover.node.config.peers else { return Ok(Folder::Own) };
    let order = &mover.order.order;
    let pools: BTreeSet<&Name> = order.volumes.iter().filter(|(disk, _)| copy.contains(*disk)).map(|(_, v)| &v.pool).collect();
    for name in pools {
        let pool = mover.node.pool(apply::pool_of(order, name)?)?;
        pool.ensure().await?;
        let mark = tempfile::Builder::new().prefix("same-").rand_bytes(16).tempfile_in(pool.staging());
        let mark = mark.map_err(|e| Error::refused(format!("cannot write into {}: {e}", pool.staging().display())))?;
        let file = mark.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = format!("/n/moves/{}/same?pool={name}&file={file}", order.vm);
        let told = match peers.get(&from.node, &from.address, &path).await {
            Ok(answer) => axum::body::to_bytes(answer.into_body(), SAME_BYTES_MAX).await.unwrap_or_default(),
            Err(error) if mover.order.travel == Travel::Off => return Err(error),
            Err(_) => continue,
        };
        match serde_json::from_slice::<bool>(&told) {
            Ok(true) => return Ok(Folder::Shared(name.clone())),
            Ok(false) => {}
            Err(_) if mover.order.travel == Travel::Off => {
                return Err(Error::new(Code::Unavailable, format!("{} does not say whether pool '{name}' is in this folder", from.node)));
            }
            // One of an older version knows no such question.
            Err(_) => {}
        }
    }
    Ok(Folder::Own)
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
