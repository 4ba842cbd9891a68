//! What is left of a VM on a node that does not own it goes: description, QEMU, seed, and volumes that lie elsewhere by now.

use std::path::PathBuf;
use std::time::Duration;

use vmkeep_core::migrate::check::is_shared;
use vmkeep_store::{keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::migration::{MovePart, MoveSaid};
use vmkeep_types::pool::PoolDriver;
use vmkeep_types::record::Owner;

use super::super::apply::{pool_of, seed_path};
use super::{AT_REST, Mover};
use crate::domain::marks;
use crate::hypervisor::{HvError, UndefineKeep};
use crate::net::libvirt_name;

pub async fn forget(mover: &mut Mover) -> Result<Duration, Error> {
    if mover.said() == Some(&MoveSaid::Clean) {
        return Ok(AT_REST);
    }
    refuse_owner(mover).await?;
    mover.node.grants.take(mover.order.vm);
    drop_domain(mover).await?;
    let MovePart::Forget { volumes } = &mover.order.part else { return Err(Error::internal("not a forgetting")) };
    for (volume, pool) in volumes {
        let spec = pool_of(&mover.order.order, pool)?;
        mover.node.pool(spec)?.delete_volume(*volume).await?;
    }
    drop_local_state(mover);
    drop_seed(mover);
    drop_addresses(mover).await;
    mover.say(MoveSaid::Clean, None, None).await?;
    Ok(AT_REST)
}

/// Whoever owns it, or is to, forgets nothing: an order from before.
async fn refuse_owner(mover: &Mover) -> Result<(), Error> {
    let read = typed::get_json::<Owner>(mover.node.store.as_ref(), &keys::owner(mover.order.vm)).await;
    let owner = read.map_err(|e| Error::new(Code::Unavailable, e.to_string()))?;
    let me = &mover.node.name;
    match owner {
        Some(owner) if owner.value.node == *me || owner.value.to.as_ref().is_some_and(|heir| heir.node == *me) => {
            Err(Error::conflict("this node is the VM's owner; nothing of it is taken away"))
        }
        _ => Ok(()),
    }
}

async fn drop_domain(mover: &Mover) -> Result<(), Error> {
    let (hv, vm) = (&mover.node.hv, mover.order.vm);
    let told = |what: &str, error: HvError| Error::refused(format!("cannot {what} the domain: {error}"));
    let brief = match hv.find(vm).await {
        Ok(brief) => brief,
        Err(HvError::NoDomain(_)) => return Ok(()),
        Err(error) => return Err(told("look at", error)),
    };
    if !marks(brief.metadata.as_deref(), vm) {
        return Ok(());
    }
    if brief.state.is_live() {
        match hv.destroy(vm).await {
            Ok(()) | Err(HvError::WrongState(_) | HvError::NoDomain(_)) => {}
            Err(error) => return Err(told("end", error)),
        }
    }
    match hv.undefine(vm, UndefineKeep::Nothing).await {
        Ok(()) | Err(HvError::NoDomain(_)) => Ok(()),
        // A domain that was only being received is gone with its QEMU.
        Err(HvError::WrongState(_)) if matches!(hv.find(vm).await, Err(HvError::NoDomain(_))) => Ok(()),
        Err(error) => Err(told("undefine", error)),
    }
}

async fn drop_addresses(mover: &Mover) {
    let order = &mover.order.order;
    let networks = order.networks.keys().map(|network| libvirt_name(&order.project, network)).collect();
    mover.node.release(networks, order.choices.macs.values().cloned().collect()).await;
}

/// libvirt takes away those of a domain that it knows; what was copied for one that did not come is known here alone.
fn drop_local_state(mover: &Mover) {
    let _ = std::fs::remove_file(crate::domain::nvram_path(mover.order.vm));
    let tpm = PathBuf::from(crate::domain::tpm_path(mover.order.vm));
    // The VM's own folder.
    if let Some(folder) = tpm.ancestors().nth(2) {
        let _ = std::fs::remove_dir_all(folder);
    }
}

/// In a shared pool it is the owner's too.
fn drop_seed(mover: &Mover) {
    let path = seed_path(&mover.node, &mover.order.order);
    let shared = mover.order.order.pools.values().filter(|pool| is_shared(pool));
    let theirs = shared.into_iter().any(|pool| {
        let PoolDriver::Dir { path: folder, .. } = &pool.driver;
        path.starts_with(folder)
    });
    if !theirs {
        let _ = std::fs::remove_file(path);
    }
}
