//! The claim before every start, local restarts included: no QEMU runs without one.
//!
//! One transaction: *if* the owner record is the one this order came from and names this epoch, this epoch is current, not fenced and armed, and
//! nothing promised never to run this generation again, and the store is not one that was just restored, *then* the claim is written. libvirt is called only if it
//! succeeded and less than the node's start window (10 s) has passed since it was sent (docs/concepts/ownership.md).

use vmkeep_store::{Compare, Held, Op, StoreError, Txn, keys, typed};
use vmkeep_types::order::Order;
use vmkeep_types::record::{Claim, Owner};

use super::clock::boottime_ms;
use super::node::Node;

/// Why a claim was not had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("this node does not own the VM, or no longer, or is sending it away")]
    NotOwner,
    #[error("the claim was not granted: the node is fenced, the generation is stopped, or the cluster is being recovered")]
    NotGranted,
    #[error("{0}")]
    NotNow(&'static str),
    #[error("the store: {0}")]
    Store(#[from] StoreError),
}

/// A granted claim; good for the node's start window from when it was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Granted {
    asked_ms: u64,
    valid_ms: u64,
}

impl Granted {
    /// When it is over, ms of CLOCK_BOOTTIME.
    pub fn until_ms(self) -> u64 {
        self.asked_ms + self.valid_ms
    }

    pub fn is_fresh(self) -> bool {
        boottime_ms().saturating_sub(self.asked_ms) < self.valid_ms
    }
}

/// Claims the right to start `order.vm` once; `also` is written in the same transaction (the state "unknown").
pub async fn claim(node: &Node, order: &Order, also: Option<Op>) -> Result<Granted, ClaimError> {
    // Of a host alone nobody else could run it.
    if node.config.peers.is_some() || node.standing.now().renewed.is_some() {
        node.standing.may_claim(order).await.map_err(ClaimError::NotNow)?;
    }
    let asked_ms = boottime_ms();
    let owner_key = keys::owner(order.vm);
    let kv = node.store.get(&owner_key).await?.ok_or(ClaimError::NotOwner)?;
    let owner: Owner = typed::decode(&kv)?;
    let epoch = node.epoch();
    // What was given to the node's life before may be on its way to another node.
    if owner.node != node.name || owner.generation != order.generation || owner.epoch != epoch || owner.to.is_some() {
        return Err(ClaimError::NotOwner);
    }
    let life = node.this_life().await?.ok_or(ClaimError::NotGranted)?;
    let claim = Claim { generation: order.generation, epoch, start: uuid::Uuid::new_v4() };
    let mut txn = Txn::default()
        .when(Compare::ModifiedAt(owner_key, kv.modified))
        .when(life)
        .when(Compare::Absent(keys::fence(&node.name, epoch)))
        .when(Compare::Absent(keys::stopped(&node.name, order.vm, order.generation)))
        .when(Compare::Present(keys::armed(&node.name, epoch)))
        // What a restored store says of owners may be older than what runs.
        .when(Compare::Absent(keys::CLUSTER_RECOVERY.into()))
        .then(typed::put(keys::run(&node.name, order.vm), &claim));
    txn.then.extend(also);
    match node.store.txn(txn).await?.held {
        Held::Yes => Ok(Granted { asked_ms, valid_ms: node.standing.timers().start_window_ms }),
        Held::No => Err(ClaimError::NotGranted),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use vmkeep_store::Store;
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::error::Error;
    use vmkeep_types::host::KvmState;
    use vmkeep_types::ids::{Epoch, Generation, Revision, VmId};
    use vmkeep_types::name::Name;
    use vmkeep_types::record::{Power, PowerWish, VmOrigin};
    use vmkeep_types::units::ByteCount;
    use vmkeep_types::vm::VmSpec;

    use super::*;
    use crate::hypervisor::fake::FakeHypervisor;
    use crate::image::Peers;
    use crate::runtime::clock::BootId;
    use crate::runtime::guard::{Guard, NoGuard};
    use crate::runtime::node::AgentConfig;

    const VM: VmId = VmId(uuid::Uuid::from_u128(1));

    /// An agent of `node1` in a boot of its own, on a host alone.
    pub async fn joined(store: &Arc<EmbeddedStore>, dir: &std::path::Path, boot: &str) -> Arc<Node> {
        let node = agent(store, dir, boot, None, Arc::new(NoGuard));
        node.join().await.expect("joined");
        node
    }

    /// The same as a member of a cluster, before it has joined.
    pub fn member(store: &Arc<EmbeddedStore>, dir: &std::path::Path, boot: &str, guard: Arc<dyn Guard>) -> Arc<Node> {
        agent(store, dir, boot, Some(Arc::new(Nobody)), guard)
    }

    struct Nobody;

    #[async_trait::async_trait]
    impl Peers for Nobody {
        async fn get(&self, node: &Name, _: &str, _: &str) -> Result<http::Response<axum::body::Body>, Error> {
            Err(Error::not_found("node", node))
        }
    }

    fn agent(
        store: &Arc<EmbeddedStore>,
        dir: &std::path::Path,
        boot: &str,
        peers: Option<Arc<dyn Peers>>,
        guard: Arc<dyn Guard>,
    ) -> Arc<Node> {
        let boot_id = dir.join(boot);
        std::fs::write(&boot_id, boot).expect("written");
        Node::new(AgentConfig {
            name: Name::known("node1"),
            store: store.clone(),
            hypervisor: Arc::new(FakeHypervisor::new()),
            boot_id: BootId(boot_id),
            seed_dir: dir.into(),
            log_dir: dir.into(),
            run_dir: dir.into(),
            cpus: 1,
            memory: ByteCount::from_gib(1),
            kvm: KvmState::Usable,
            address: None,
            migration: None,
            peers,
            reach: crate::image::Reach::Others,
            guard,
        })
        .expect("a node")
    }

    pub fn order(epoch: Epoch) -> Order {
        Order {
            vm: VM,
            project: Name::known("default"),
            spec: VmSpec::named(Name::known("web1")),
            spec_revision: Revision(1),
            generation: Generation(1),
            epoch,
            choices: Default::default(),
            power: Power { want: PowerWish::On, cycle: 1, held: None, stop_timeout: None },
            origin: VmOrigin::Created,
            leaving: None,
            level: 0,
            instance: 0,
            volumes: Default::default(),
            images: Default::default(),
            networks: Default::default(),
            pools: Default::default(),
            moving: None,
            handed: None,
        }
    }

    #[tokio::test]
    async fn an_agent_of_an_earlier_boot_claims_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let first = joined(&store, dir.path(), "one").await;
        let owner = Owner {
            vm: VM,
            project: Name::known("default"),
            node: first.name.clone(),
            epoch: first.epoch(),
            generation: Generation(1),
            to: None,
        };
        store.txn(Txn::default().then(typed::put(keys::owner(VM), &owner))).await.expect("a write");
        claim(&first, &order(first.epoch()), None).await.expect("granted");
        let second = joined(&store, dir.path(), "two").await;
        assert_eq!(second.epoch(), first.epoch().next());
        let refused = claim(&first, &order(first.epoch()), None).await.expect_err("its epoch is over");
        assert!(matches!(refused, ClaimError::NotGranted), "{refused}");
        let refused = claim(&second, &order(second.epoch()), None).await.expect_err("it was given to the life before");
        assert!(matches!(refused, ClaimError::NotOwner), "{refused}");
        let owner = Owner { epoch: second.epoch(), ..owner };
        store.txn(Txn::default().then(typed::put(keys::owner(VM), &owner))).await.expect("a write");
        claim(&second, &order(second.epoch()), None).await.expect("granted");
    }

    #[tokio::test]
    async fn how_a_node_dies_is_written_once_in_an_epoch() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let node = joined(&store, dir.path(), "one").await;
        let key = keys::armed(&node.name, node.epoch());
        let armed = store.get(&key).await.expect("a read").expect("armed");
        joined(&store, dir.path(), "one").await;
        assert_eq!(store.get(&key).await.expect("a read"), Some(armed));
    }
}
