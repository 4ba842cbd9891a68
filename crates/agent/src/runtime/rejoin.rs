//! A node's word to a store that was restored: which VMs it has, so that the leader learns what the backup does not know.
//!
//! ```text
//!  recovery open ─► told, and again when it changed ─► over ─► guests that another node was given meanwhile are ended here
//! ```
//! A node that had been taken for lost, and lives, has guests that were started elsewhere: the cluster's are those. One whose VM has no
//! owner yet is looked at again when owners change, until it has one or is adopted: its disks may be only here. In a store that was never
//! restored this looks once and ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vmkeep_store::{StoreError, Txn, Watch, keys, typed};
use vmkeep_types::cluster::{Incarnation, Recovery, Rejoined};
use vmkeep_types::event::{Event, Level};
use vmkeep_types::ids::{Epoch, VmId};
use vmkeep_types::operation::ResourceRef;
use vmkeep_types::record::Owner;

use super::node::Node;
use super::node_event;
use crate::hypervisor::DomainBrief;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between two looks when owners change: after a recovery thousands do.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Goes on until the recovery is over, or `stop`.
pub async fn tell(node: Arc<Node>, stop: CancellationToken) {
    let (mut told, mut owners) = (None, None);
    loop {
        match look(&node, &mut told).await {
            Ok(Wanted::No) => return,
            Ok(Wanted::Yes) => {}
            Err(why) => tracing::warn!(why, "this node's domains are told to the restored store later"),
        }
        let Some(next) = stop.run_until_cancelled(next_look(&node, owners)).await else { return };
        owners = next;
    }
}

/// Who was given a VM whose guest is here will start it in a moment: it must be gone before.
async fn next_look(node: &Node, owners: Option<Watch>) -> Option<Watch> {
    tokio::time::sleep(LOOK_AGAIN).await;
    let Some(mut owners) = owners else {
        // The first wait: what changes from here on is seen by the look that follows, or by the watch.
        let watch = async { node.store.watch(keys::ALL_OWNERS, node.store.revision().await?.next()).await };
        let opened = watch.await.ok();
        if opened.is_none() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        return opened;
    };
    match timeout(LOOK_EVERY, owners.recv()).await {
        Ok(Some(Ok(_))) | Err(_) => {
            while matches!(owners.try_recv(), Ok(Ok(_))) {}
            Some(owners)
        }
        // It broke: a new one.
        Ok(Some(Err(_)) | None) => None,
    }
}

/// Whether the store waits for what runs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Yes,
    No,
}

async fn look(node: &Node, told: &mut Option<Rejoined>) -> Result<Wanted, String> {
    let store = |e: StoreError| e.to_string();
    let recovery = typed::get_json::<Recovery>(node.store.as_ref(), keys::CLUSTER_RECOVERY).await.map_err(store)?;
    let Some(recovery) = recovery else { return end_strays(node).await };
    let domains = node.hv.list().await.map_err(|e| e.to_string())?;
    let ours = domains.iter().filter(|domain| domain.is_ours());
    let domains: BTreeMap<VmId, bool> = ours.map(|domain| (domain.uuid, domain.state.is_live())).collect();
    let now = Rejoined { incarnation: recovery.value.incarnation, epoch: node.epoch(), domains };
    if told.as_ref() == Some(&now) {
        return Ok(Wanted::Yes);
    }
    let Some(life) = node.this_life().await.map_err(store)? else { return Err("its life is over".into()) };
    let written = node.store.txn(Txn::default().when(life).then(typed::put(keys::rejoined(&node.name), &now))).await.map_err(store)?;
    if written.held == vmkeep_store::Held::Yes {
        tracing::info!(domains = now.domains.len(), "told the restored store what is here");
        *told = Some(now);
    }
    Ok(Wanted::Yes)
}

/// Guests of other nodes' VMs, in a life that began with the restored store. Who is moved is told so by an order: that one stays.
async fn end_strays(node: &Node) -> Result<Wanted, String> {
    let store = |e: StoreError| e.to_string();
    let incarnation = typed::get_json::<Incarnation>(node.store.as_ref(), keys::CLUSTER_INCARNATION).await.map_err(store)?;
    let restored = incarnation.is_some_and(|life| life.value.number > 0 && node.epoch() == Epoch::first_of(life.value.number));
    if !restored {
        return Ok(Wanted::No);
    }
    let mut wanted = Wanted::No;
    for domain in node.hv.list().await.map_err(|e| e.to_string())? {
        if !domain.is_our_guest() {
            continue;
        }
        let vm = domain.uuid;
        match typed::get_json::<Owner>(node.store.as_ref(), &keys::owner(vm)).await.map_err(store)? {
            Some(owner) if owner.value.node == node.name => {}
            Some(_) if node.store.get(&keys::move_order(&node.name, vm)).await.map_err(store)?.is_some() => {}
            Some(owner) => {
                let message = format!(
                    "it ran on {} too, which had been taken for lost, and was ended there: it is {}'s",
                    node.name, owner.value.node
                );
                tracing::error!(vm = %domain.name, "{message}");
                node.hv.destroy(vm).await.map_err(|e| format!("{} runs twice, and cannot be ended here: {e}", domain.name))?;
                tell_end(node, &domain, &owner.value, message).await.map_err(store)?;
            }
            None => wanted = Wanted::Yes,
        }
    }
    Ok(wanted)
}

async fn tell_end(node: &Node, domain: &DomainBrief, owner: &Owner, message: String) -> Result<(), StoreError> {
    let Ok(name) = domain.name.parse() else { return Ok(()) };
    let at = jiff::Timestamp::now();
    let resource = ResourceRef { kind: "vm".into(), project: owner.project.clone(), name, uid: domain.uuid.0 };
    let event = Event { at, resource, level: Level::Error, code: "vm.ended-twice".into(), message, node: Some(node.name.clone()) };
    let stamp = format!("{:020}-{}", at.as_nanosecond(), domain.uuid);
    node_event::put(node, stamp, &event).await
}

#[cfg(test)]
mod tests {
    use vmkeep_store::Store;
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::ids::Generation;
    use vmkeep_types::name::Name;

    use super::super::claim::tests::joined;
    use super::*;
    use crate::hypervisor::{METADATA_URI, Words};

    const LIFE: u64 = 7;

    fn vm(n: u128) -> VmId {
        VmId(uuid::Uuid::from_u128(n))
    }

    async fn restored(store: &EmbeddedStore) {
        let life = Incarnation { number: LIFE, id: uuid::Uuid::from_u128(7) };
        store.txn(Txn::default().then(typed::put(keys::CLUSTER_INCARNATION, &life))).await.expect("written");
    }

    async fn runs(node: &Node, n: u128) {
        let mark = format!("<vmkeep:vm xmlns:vmkeep='{METADATA_URI}' id='{}' project='default' generation='1' revision='1'/>", vm(n));
        let xml = format!(
            "<domain type='qemu'><name>web{n}</name><uuid>{}</uuid><metadata>{mark}</metadata><memory>1024</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os></domain>",
            vm(n)
        );
        node.hv.define(&xml, Words::Ours).await.expect("defined");
        node.hv.start(vm(n)).await.expect("it runs");
    }

    async fn owned(store: &EmbeddedStore, n: u128, node: &'static str) {
        let (node, project) = (Name::known(node), Name::known("default"));
        let owner = Owner { vm: vm(n), project, node, epoch: Epoch::first_of(LIFE), generation: Generation(9), to: None };
        store.txn(Txn::default().then(typed::put(keys::owner(vm(n)), &owner))).await.expect("written");
    }

    async fn live(node: &Node) -> Vec<u128> {
        let all = node.hv.list().await.expect("a list");
        all.into_iter().filter(|domain| domain.state.is_live()).map(|domain| domain.uuid.0.as_u128()).collect()
    }

    #[tokio::test]
    async fn a_lost_node_that_lives_ends_what_was_started_elsewhere() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let before = joined(&store, dir.path(), "one").await;
        for n in 1..=4 {
            runs(&before, n).await;
        }
        owned(&store, 1, "node1").await;
        owned(&store, 2, "node2").await;
        owned(&store, 3, "node2").await;
        // It comes here or goes away: who carries that out says when it ends.
        store
            .txn(Txn::default().then(vmkeep_store::Op::Put(keys::move_order(&before.name, vm(3)), b"{}".to_vec())))
            .await
            .expect("written");
        assert_eq!(look(&before, &mut None).await, Ok(Wanted::No), "never restored: others look after that");
        assert_eq!(live(&before).await, [1, 2, 3, 4]);

        restored(&store).await;
        before.join().await.expect("it begins anew");
        assert_eq!(look(&before, &mut None).await, Ok(Wanted::Yes), "nobody owns the fourth yet");
        assert_eq!(live(&before).await, [1, 3, 4]);
        let events = typed::list_json::<Event>(store.as_ref(), &keys::node_events(&before.name)).await.expect("a list");
        assert_eq!(
            events.into_iter().map(|event| event.value.message).collect::<Vec<_>>(),
            ["it ran on node1 too, which had been taken for lost, and was ended there: it is node2's"]
        );
        owned(&store, 4, "node2").await;
        assert_eq!(look(&before, &mut None).await, Ok(Wanted::No));
        assert_eq!(live(&before).await, [1, 3]);
    }

    #[tokio::test]
    async fn a_guest_is_ended_as_soon_as_its_vm_is_anothers() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        restored(&store).await;
        let node = joined(&store, dir.path(), "one").await;
        runs(&node, 1).await;
        let stop = CancellationToken::new();
        let telling = tokio::spawn(tell(node.clone(), stop.clone()));
        tokio::time::sleep(3 * LOOK_AGAIN).await;
        assert_eq!(live(&node).await, [1], "nobody's yet");
        owned(&store, 1, "node2").await;
        let begin = tokio::time::Instant::now();
        while !live(&node).await.is_empty() {
            assert!(begin.elapsed() < LOOK_EVERY / 2, "it waits for its turn");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        timeout(LOOK_EVERY, telling).await.expect("nothing is left to look at").expect("no panic");
    }

    #[tokio::test]
    async fn a_node_begins_anew_in_a_restored_store_and_says_what_it_has() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let before = joined(&store, dir.path(), "one").await;
        assert_eq!(look(&before, &mut None).await, Ok(Wanted::No), "nobody asks");
        let recovery =
            Recovery { incarnation: 7, since: jiff::Timestamp::UNIX_EPOCH, nodes: [before.name.clone()].into(), lost: [].into() };
        store.txn(Txn::default().then(typed::put(keys::CLUSTER_RECOVERY, &recovery))).await.expect("written");
        restored(&store).await;
        let after = joined(&store, dir.path(), "one").await;
        assert_eq!(after.epoch(), Epoch::first_of(7), "the same boot, another life");
        assert!(look(&before, &mut None).await.is_err(), "the life before says nothing any more");
        let mut told = None;
        assert_eq!(look(&after, &mut told).await, Ok(Wanted::Yes));
        assert_eq!(told, Some(Rejoined { incarnation: 7, epoch: Epoch::first_of(7), domains: BTreeMap::new() }));
    }
}
