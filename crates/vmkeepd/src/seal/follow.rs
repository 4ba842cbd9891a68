//! A control node keeps up with the keys of secrets: it takes new ones of the control plane, lets new control nodes in, and renews its own
//! when that is asked for ([`rotation`]).
//!
//! It fails by a warning and another look; what it has begun goes on from what lies in the store and on the disk.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vmkeep_store::seal::text::{PublicKey, SecretKey};
use vmkeep_store::seal::{Keys, Sealing, ring, rotation};
use vmkeep_store::{Op, Store, StoreError, Txn, WatchBatch, keys};
use vmkeep_types::name::Name;
use vmkeep_types::secret::Rotation;

use super::file::KeyFile;

/// Between two attempts, and between two looks at what others have yet to do.
const REST: Duration = Duration::from_secs(5);

/// What of this host one process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The agent is another process, or there is none.
    Control,
    Both,
}

pub struct Follower {
    pub store: Arc<dyn Store>,
    /// Over the same store.
    pub sealing: Arc<Sealing>,
    pub file: KeyFile,
    pub node: Name,
    pub part: Part,
    pub keys: Arc<Keys>,
}

/// What is left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    /// For others, or for another look.
    More,
}

impl Follower {
    /// Until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let following = async {
            loop {
                if let Err(error) = self.until_it_breaks().await {
                    tracing::warn!(error = format!("{error:#}"), "cannot follow the control plane's keys");
                }
                tokio::time::sleep(REST).await;
            }
        };
        let _: Option<()> = stop.run_until_cancelled(following).await;
    }

    /// Until a watch ends.
    async fn until_it_breaks(&self) -> anyhow::Result<()> {
        let from = self.store.revision().await?;
        let mut control = self.store.watch(keys::ALL_CONTROL, from).await?;
        let mut ring = self.store.watch(keys::ALL_SEAL, from).await?;
        loop {
            let left = self.look().await?;
            let changed: Option<Result<WatchBatch, StoreError>> = tokio::select! {
                batch = control.recv() => batch,
                batch = ring.recv() => batch,
                () = tokio::time::sleep(REST), if left == Left::More => continue,
            };
            match changed {
                None => return Ok(()),
                Some(batch) => drop(batch?),
            }
        }
    }

    async fn look(&self) -> anyhow::Result<Left> {
        let (store, own) = (self.store.as_ref(), self.own());
        if let ring::Found::Held(opened) = ring::open_or_make(store, &own).await? {
            self.keys.take_ring(&opened);
            let holders: Vec<PublicKey> = rotation::control_nodes(store).await?.into_iter().map(|shown| shown.key).collect();
            ring::share(store, &own, &holders).await?;
        }
        let Some(rotation) = rotation::under_way(store).await? else { return Ok(Left::Nothing) };
        self.renew(&rotation.value).await?;
        self.show().await?;
        if rotation::waits_for(store, &rotation.value).await?.is_empty() && self.seal_orders_anew(&rotation.value).await? == 0 {
            // Not when somebody else wrote meanwhile; that wakes this one.
            rotation::finish(store, &rotation).await?;
        }
        Ok(Left::More)
    }

    fn own(&self) -> SecretKey {
        self.keys.own().remove(0)
    }

    /// This host's key is another one from here on, if it is to go. Never before the new one reads all that the old one does.
    async fn renew(&self, rotation: &Rotation) -> anyhow::Result<()> {
        let (store, old) = (self.store.as_ref(), self.own());
        if !rotation.retire.contains(&old.public().id()) {
            return Ok(());
        }
        let next = self.file.next()?;
        ring::share(store, &old, &[next.public()]).await?;
        if ring::is_shared(store, &old.public(), &next.public()).await? {
            self.file.promote()?;
            self.keys.take_own(next);
            tracing::info!("this host has a new key for secrets; back it up with the store");
        }
        Ok(())
    }

    /// What this process shows of its host is the key that it has.
    async fn show(&self) -> Result<(), StoreError> {
        let public = self.own().public().to_text().into_bytes();
        let places = [Some(keys::control(&self.node)), (self.part == Part::Both).then(|| keys::seal_key(&self.node))];
        for key in places.into_iter().flatten() {
            if self.store.get(&key).await?.is_none_or(|kv| kv.value != public) {
                self.store.txn(Txn::default().then(Op::Put(key, public.clone()))).await?;
            }
        }
        Ok(())
    }

    /// Orders of nodes that have a new key. How many others wrote meanwhile.
    async fn seal_orders_anew(&self, rotation: &Rotation) -> Result<usize, StoreError> {
        let mut missed = 0;
        for host in rotation::control_nodes(self.store.as_ref()).await? {
            missed += self.sealing.seal_anew(&keys::orders(&host.node), &rotation.retire).await?;
        }
        Ok(missed)
    }
}

/// The agent of a host whose control plane is another process: that one renews the key, and this one takes it up.
pub async fn follow_file(store: Arc<dyn Store>, file: KeyFile, node: Name, keys: Arc<Keys>, stop: CancellationToken) {
    let following = async {
        loop {
            tokio::time::sleep(REST).await;
            if let Err(error) = take_up(store.as_ref(), &file, &node, &keys).await {
                tracing::warn!(error = format!("{error:#}"), "cannot follow this host's key for secrets");
            }
        }
    };
    let _: Option<()> = stop.run_until_cancelled(following).await;
}

async fn take_up(store: &dyn Store, file: &KeyFile, node: &Name, keys: &Keys) -> anyhow::Result<()> {
    if let Some(now) = file.look()? {
        keys.take_own(now);
    }
    let (key, public) = (keys::seal_key(node), keys.own()[0].public().to_text().into_bytes());
    if store.get(&key).await?.is_none_or(|kv| kv.value != public) {
        store.txn(Txn::default().then(Op::Put(key, public))).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
