//! The keys by which this host reads secrets: its own, and the control plane's.
//!
//! ```text
//!  /var/lib/vmkeep/seal.key   0600, made at the first start, never leaves the host; without it what was sealed stays closed
//! ```
//! `file` has it on the disk, `follow` keeps up with the control plane's keys and renews it.
//!
//! How it fails: a control node that nobody has let in waits for another to do so. When there is none (a host alone that lost its
//! key, a cluster that lost all of them) it goes on with a new key: VMs run, and secrets must be written anew.

mod file;
mod follow;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use vmkeep_store::seal::text::{MARK, PublicKey, SecretKey};
use vmkeep_store::seal::{Keys, Sealing, ring, rotation};
use vmkeep_store::{Op, Store, StoreError, Txn, keys};
use vmkeep_types::name::Name;

use self::file::KeyFile;
use self::follow::{Follower, Part};
use crate::cluster::Opened;
use crate::config::NodeRole;

/// Between two looks whether somebody has let this control node in.
const LOOK: Duration = Duration::from_secs(1);
/// Looks before it goes on without the keys before.
const LOOKS_MAX: u32 = 60;

/// How this process reads secrets.
pub struct Secrets {
    node: Name,
    file: KeyFile,
    own: SecretKey,
    keys: Arc<Keys>,
}

impl Secrets {
    /// With the key of this host, which is made when there is none.
    ///
    /// # Errors
    /// The disk's; a file that holds no key.
    pub fn of_host(state: &Path, node: Name) -> anyhow::Result<Self> {
        let file = KeyFile::of(state);
        let own = file.load()?;
        Ok(Self { node, file, keys: Keys::of_node(own.clone()), own })
    }

    pub fn keys(&self) -> Arc<Keys> {
        self.keys.clone()
    }

    fn follower(&self, store: Arc<dyn Store>, part: Part) -> Follower {
        let sealing = Sealing::over(store.clone(), vmkeep_server::records::secrets, self.keys());
        Follower { store, sealing, file: self.file.clone(), node: self.node.clone(), part, keys: self.keys() }
    }

    /// Shows this host's key, and has those of the control plane where it is a part of it. None when it is told to stop.
    ///
    /// # Errors
    /// The store's.
    pub async fn begin(&self, opened: &Opened, roles: &[NodeRole], stop: &CancellationToken) -> anyhow::Result<Option<()>> {
        let store = opened.store.as_ref();
        if roles.contains(&NodeRole::Control) {
            let others = if opened.etcd.is_some() { Others::Maybe } else { Others::None };
            let taken = take_ring(store, &self.node, &self.own, &self.keys, others, stop).await;
            let Some(()) = taken.context("the keys of secrets cannot be had")? else { return Ok(None) };
        }
        let agent = roles.contains(&NodeRole::Compute);
        if agent {
            show_node(store, &self.node, &self.own).await.context("this node's key cannot be shown")?;
        }
        if roles.contains(&NodeRole::Control) {
            let part = if agent { Part::Both } else { Part::Control };
            tokio::spawn(self.follower(opened.store.clone(), part).run(stop.clone()));
        } else {
            tokio::spawn(follow::follow_file(opened.store.clone(), self.file.clone(), self.node.clone(), self.keys(), stop.clone()));
        }
        Ok(Some(()))
    }
}

/// Tells the control plane to what key this node's secrets are sealed. Orders that were sealed to one before, which is lost, are
/// taken away: the leader writes them again.
///
/// # Errors
/// The store's.
async fn show_node(store: &dyn Store, node: &Name, own: &SecretKey) -> Result<(), StoreError> {
    let (key, public) = (keys::seal_key(node), own.public().to_text().into_bytes());
    if store.get(&key).await?.is_some_and(|kv| kv.value == public) {
        return Ok(());
    }
    let orders = store.list(&keys::orders(node)).await?.items;
    let closed = orders.iter().filter(|kv| String::from_utf8_lossy(&kv.value).contains(MARK)).map(|kv| Op::Delete(kv.key.clone()));
    let ops: Vec<Op> = closed.chain([Op::Put(key, public)]).collect();
    for part in ops.chunks(vmkeep_store::TXN_OPS_MAX) {
        store.txn(Txn { then: part.to_vec(), ..Txn::default() }).await?;
    }
    Ok(())
}

/// Makes the control plane's keys this process's. None when it is told to stop first.
///
/// # Errors
/// The store's.
async fn take_ring(
    store: &dyn Store,
    node: &Name,
    own: &SecretKey,
    keys: &Keys,
    others: Others,
    stop: &CancellationToken,
) -> Result<Option<()>, StoreError> {
    let (key, public) = (keys::control(node), own.public().to_text().into_bytes());
    if store.get(&key).await?.is_none_or(|kept| kept.value != public) {
        store.txn(Txn::default().then(Op::Put(key, public))).await?;
    }
    for look in 0.. {
        match ring::open_or_make(store, own).await? {
            ring::Found::Held(opened) => {
                keys.take_ring(&opened);
                return Ok(Some(()));
            }
            ring::Found::Foreign if others == Others::None || look == LOOKS_MAX => {
                tracing::error!(
                    "secrets were sealed to a key that is lost ({} of a control node); VMs run, but write their passwords and user-data again",
                    file::NAME
                );
                ring::renew(store, &control_nodes(store).await?).await?;
            }
            ring::Found::Foreign => tracing::warn!("waiting for a control node that has the keys of secrets; VMs go on"),
        }
        if stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
            return Ok(None);
        }
    }
    Ok(None)
}

/// May another control node have the keys?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    Maybe,
    None,
}

async fn control_nodes(store: &dyn Store) -> Result<Vec<PublicKey>, StoreError> {
    Ok(rotation::control_nodes(store).await?.into_iter().map(|shown| shown.key).collect())
}

#[cfg(test)]
mod tests {
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::ids::VmId;

    use super::*;

    fn keyed() -> (SecretKey, Arc<Keys>) {
        let own = SecretKey::random();
        (own.clone(), Keys::of_node(own))
    }

    #[tokio::test]
    async fn a_new_control_node_is_let_in_by_one_that_follows() {
        let store: Arc<EmbeddedStore> = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let stop = CancellationToken::new();
        let ((one, keys_one), (two, keys_two)) = (keyed(), keyed());
        let take = async |name: &'static str, own: &SecretKey, keys: &Keys, stop: &CancellationToken| {
            take_ring(store.as_ref(), &Name::known(name), own, keys, Others::Maybe, stop).await.expect("the store")
        };
        take("a", &one, &keys_one, &stop).await.expect("it makes the ring");
        let dir = tempfile::tempdir().expect("a folder");
        let secrets = Secrets { node: Name::known("a"), file: KeyFile::of(dir.path()), own: one.clone(), keys: keys_one };
        let following = tokio::spawn(secrets.follower(store.clone(), Part::Control).run(stop.clone()));
        take("b", &two, &keys_two, &stop).await.expect("let in");
        let ring::Found::Held(of_two) = ring::open_or_make(store.as_ref(), &two).await.expect("read") else { panic!("held") };
        let ring::Found::Held(of_one) = ring::open_or_make(store.as_ref(), &one).await.expect("read") else { panic!("held") };
        assert_eq!(of_one.current, of_two.current);
        stop.cancel();
        following.await.expect("it ends");
    }

    #[tokio::test]
    async fn a_host_alone_that_lost_its_key_goes_on_with_a_new_one() {
        let store = EmbeddedStore::in_memory().expect("memory");
        let stop = CancellationToken::new();
        let name = Name::known("a");
        for _ in 0..2 {
            let (own, keys) = keyed();
            take_ring(&store, &name, &own, &keys, Others::None, &stop).await.expect("the store").expect("it goes on");
        }
    }

    #[tokio::test]
    async fn a_node_with_a_new_key_has_its_orders_written_again() {
        let store = EmbeddedStore::in_memory().expect("memory");
        let node = Name::known("a");
        let [closed, open] = [1, 2].map(|n| keys::order(&node, VmId(uuid::Uuid::from_u128(n))));
        let sealed = format!("{{\"password\":\"{MARK}a=b:c\"}}").into_bytes();
        store.txn(Txn::default().then(Op::Put(closed.clone(), sealed)).then(Op::Put(open.clone(), b"{}".to_vec()))).await.expect("written");
        let own = SecretKey::random();
        for _ in 0..2 {
            show_node(&store, &node, &own).await.expect("shown");
        }
        assert!(store.get(&closed).await.expect("read").is_none());
        assert!(store.get(&open).await.expect("read").is_some());
    }
}
