//! The end of a VM on this node: description, volumes, seed and logs go, or only our mark does. Volumes that stay keep the UEFI variables.

use vmkeep_store::{Op, Txn, keys};
use vmkeep_types::error::Error;
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::record::Leaving;

use super::apply::{addresses, seed_path};
use super::node::Node;
use super::nvram;
use super::report::State;
use crate::hypervisor::{HvError, UndefineKeep};

/// Does what `leaving` asks; doing it again does no harm. The domain is known to be off, except for a release.
pub async fn remove(node: &Node, state: &mut State, leaving: Leaving) -> Result<(), Error> {
    promise(node, state).await?;
    // Half a copy is nobody's disk.
    delete_volumes(node, state, |volume| volume.filling.is_some()).await?;
    match leaving {
        Leaving::Release => release(node, state).await,
        Leaving::Delete => {
            undefine(node, state, UndefineKeep::Nothing).await?;
            addresses::forget(node, state).await;
            delete_volumes(node, state, |_| true).await?;
            delete_files(node, state);
            state.step("deleted");
            Ok(())
        }
        Leaving::DeleteKeepDisks => {
            nvram::keep(node, state).await?;
            undefine(node, state, UndefineKeep::State).await?;
            nvram::forget(node, &state.order);
            addresses::forget(node, state).await;
            delete_files(node, state);
            state.step("deleted, volumes kept");
            Ok(())
        }
    }
}

/// Never to run this generation again: from here on a claim is refused, whatever happens to this process.
async fn promise(node: &Node, state: &State) -> Result<(), Error> {
    let key = keys::stopped(&node.name, state.order.vm, state.order.generation);
    let txn = Txn::default().then(Op::Put(key, Vec::new()));
    node.store.txn(txn).await.map(drop).map_err(|e| Error::internal(format!("cannot store the promise to stop: {e}")))
}

async fn release(node: &Node, state: &mut State) -> Result<(), Error> {
    match node.hv.set_metadata(state.order.vm, None).await {
        Ok(()) | Err(HvError::NoDomain(_)) => {
            state.step("released: the domain is plain libvirt again");
            Ok(())
        }
        Err(error) => Err(Error::refused(format!("cannot remove our mark from the domain: {error}"))),
    }
}

async fn undefine(node: &Node, state: &State, keep: UndefineKeep) -> Result<(), Error> {
    match node.hv.undefine(state.order.vm, keep).await {
        Ok(()) | Err(HvError::NoDomain(_)) => Ok(()),
        Err(error) => Err(Error::refused(format!("cannot undefine the domain: {error}"))),
    }
}

async fn delete_volumes(node: &Node, state: &State, which: impl Fn(&VolumeRecord) -> bool) -> Result<(), Error> {
    for volume in state.order.volumes.values().filter(|v| v.foreign_path.is_none() && which(v)) {
        let spec = state.order.pools.get(&volume.pool).ok_or_else(|| Error::not_found("pool", &volume.pool))?;
        node.pool(spec)?.delete_volume(volume.id).await?;
    }
    Ok(())
}

fn delete_files(node: &Node, state: &State) {
    let log = node.config.log_dir.join(format!("{}.log", state.order.vm));
    for path in [seed_path(node, &state.order), log] {
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a file of a deleted VM stays behind");
        }
    }
}
