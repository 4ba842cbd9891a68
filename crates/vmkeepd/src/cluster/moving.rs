//! From the embedded store into etcd, in one step that can be repeated.
//!
//! ```text
//!  etcd emptied ─► cluster/moving ─► batches … ─► one txn: cluster/moving away, cluster/id there ─► member.toml
//! ```
//! Nobody else writes to either store meanwhile: the daemon moves before it serves. A crash before the last transaction
//! leaves a mark, and the next start begins anew; after it, the next start finds the id and does nothing.
//!
//! etcd counts revisions anew from 1, and orders, what was seen of them, and open operations carry revisions of the old store.
//! They come across as revision 0, "before all others": the leader writes each order again, the agent compares the domain once
//! more and finds nothing to do, and an operation waits for the revision it was itself written at. VMs are copied after
//! operations, because keys are copied in their order.

use uuid::Uuid;
use vmkeep_store::crash::point;
use vmkeep_store::{Compare, Held, KeyValue, Op, Store, StoreError, TXN_OPS_MAX, Txn, keys, typed};
use vmkeep_types::cluster::{Incarnation, MemberRecord};
use vmkeep_types::ids::Revision;
use vmkeep_types::observed::Seen;
use vmkeep_types::operation::{Operation, Wanted};
use vmkeep_types::order::Order;

/// Keys and values of one batch, in bytes: what a transaction may carry, less its last value's worth.
const BATCH_BYTES_MAX: usize = vmkeep_store::TXN_BYTES_MAX - (16 << 10);

/// Which cluster this is to be.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub id: Uuid,
    pub first: MemberRecord,
}

/// How many keys were moved; None when that was done before.
///
/// # Errors
/// A store's; the whole can be repeated.
pub async fn run(from: &dyn Store, to: &dyn Store, cluster: &Cluster) -> Result<Option<usize>, StoreError> {
    let id: Option<Uuid> = typed::get_json(to, keys::CLUSTER_ID).await?.map(|stored| stored.value);
    match id {
        Some(id) if id == cluster.id => return Ok(None),
        Some(id) => return Err(StoreError::Invalid(format!("this etcd holds the cluster {id} already"))),
        None => {}
    }
    // What a broken attempt left.
    to.txn(Txn::default().when(Compare::Absent(keys::CLUSTER_ID.into())).then(Op::DeletePrefix(String::new()))).await?;
    point("move: emptied");
    to.txn(Txn::default().then(typed::put(keys::CLUSTER_MOVING, &cluster.id))).await?;
    point("move: marked");
    let moved: Vec<KeyValue> = from.list("").await?.items.into_iter().filter(|kv| kv.key != keys::LEADER).collect();
    let count = moved.len();
    for batch in batches(moved) {
        let txn = batch.into_iter().fold(Txn::default().when(Compare::Present(keys::CLUSTER_MOVING.into())), Txn::then);
        if to.txn(txn).await?.held == Held::No {
            return Err(StoreError::Invalid("somebody else writes to this etcd".into()));
        }
        point("move: a batch");
    }
    let flip = Txn::default()
        .when(Compare::Present(keys::CLUSTER_MOVING.into()))
        .then(Op::Delete(keys::CLUSTER_MOVING.into()))
        .then(typed::put(keys::CLUSTER_ID, &cluster.id))
        .then(typed::put(keys::CLUSTER_INCARNATION, &Incarnation { number: 0, id: Uuid::new_v4() }))
        .then(typed::put(keys::member(&cluster.first.node), &cluster.first));
    if to.txn(flip).await?.held == Held::No {
        return Err(StoreError::Invalid("somebody else writes to this etcd".into()));
    }
    point("move: flipped");
    Ok(Some(count))
}

fn batches(items: Vec<KeyValue>) -> Vec<Vec<Op>> {
    let (mut batches, mut batch, mut bytes) = (Vec::new(), Vec::new(), 0);
    for kv in items {
        let size = kv.key.len() + kv.value.len();
        if !batch.is_empty() && (batch.len() == TXN_OPS_MAX || bytes + size > BATCH_BYTES_MAX) {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += size;
        batch.push(carried(kv));
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

/// The write that makes it in the new store. A value that does not parse is nobody's to mend here: it comes across as it is.
fn carried(kv: KeyValue) -> Op {
    let of_node = kv.key.strip_prefix(keys::ALL_NODES).and_then(|rest| rest.split('/').nth(1));
    let anew = match of_node {
        Some("order") => typed::decode::<Order>(&kv).and_then(|order| typed::rewrite(&kv, &Order { spec_revision: Revision(0), ..order })),
        Some("seen") => typed::decode::<Seen>(&kv).and_then(|seen| typed::rewrite(&kv, &unread(seen))),
        None if kv.key.starts_with(keys::ALL_OPS) => typed::decode::<Operation>(&kv).and_then(|op| typed::rewrite(&kv, &waiting(op))),
        _ => return Op::Put(kv.key, kv.value),
    };
    anew.unwrap_or(Op::Put(kv.key, kv.value))
}

/// No wish was taken up yet; everything else is remembered.
fn unread(mut seen: Seen) -> Seen {
    seen.spec_revision = Revision(0);
    seen.memory.applied = Revision(0);
    seen.memory.apply_failed = None;
    seen
}

fn waiting(mut op: Operation) -> Operation {
    if let Wanted::Vm { spec_revision, .. } = &mut op.wanted {
        *spec_revision = Revision(0);
    }
    op
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::cluster::{MemberRole, MemberState};
    use vmkeep_types::name::Name;

    use super::*;

    fn cluster() -> Cluster {
        let first = MemberRecord {
            node: Name::known("a"),
            address: "10.0.0.1".into(),
            machine_id: "m".into(),
            roles: vec![MemberRole::Control],
            version: "1".into(),
            level: 2,
            state: MemberState::Member,
            since: jiff::Timestamp::UNIX_EPOCH,
            certificate_until: None,
            problems: Vec::new(),
        };
        Cluster { id: Uuid::from_u128(1), first }
    }

    async fn put(store: &EmbeddedStore, key: &str, value: &str) {
        store.txn(Txn::default().then(Op::Put(key.into(), value.into()))).await.expect("written");
    }

    #[tokio::test]
    async fn everything_but_the_leader_is_moved_once() {
        let (from, to) = (EmbeddedStore::in_memory().expect("memory"), EmbeddedStore::in_memory().expect("memory"));
        put(&to, "left/over", "1").await;
        for key in ["cluster/level", "leader", "n/a/facts", "n/a/order/1", "n/a/seen/1", "name/vm/default/x", "vm/default/1"] {
            put(&from, key, "1").await;
        }
        assert_eq!(run(&from, &to, &cluster()).await.expect("moved"), Some(6));
        assert_eq!(run(&from, &to, &cluster()).await.expect("again"), None);
        let there = to.list("").await.expect("a list").items;
        let lines: Vec<String> = there
            .iter()
            .filter(|kv| !kv.key.starts_with("cluster/i"))
            .map(|kv| format!("{} = {}\n", kv.key, String::from_utf8_lossy(&kv.value)))
            .collect();
        expect![[r#"
            cluster/level = 1
            cluster/member/a = {"node":"a","address":"10.0.0.1","machine_id":"m","roles":["control"],"version":"1","level":2,"state":"member","since":"1970-01-01T00:00:00Z"}
            n/a/facts = 1
            n/a/order/1 = 1
            n/a/seen/1 = 1
            name/vm/default/x = 1
            vm/default/1 = 1
        "#]]
        .assert_eq(&lines.concat());
        let other = Cluster { id: Uuid::from_u128(2), ..cluster() };
        assert!(run(&from, &to, &other).await.is_err(), "an etcd with a cluster in it is not emptied");
    }

    #[test]
    fn revisions_of_the_old_store_are_before_all_others() {
        let id = vmkeep_types::ids::OperationId(Uuid::from_u128(1));
        let op = serde_json::json!({
            "id": id, "project": "default", "kind": "vm.update", "state": "running", "by": "root", "later": "field",
            "resource": {"kind": "vm", "project": "default", "name": "x", "uid": id}, "steps": [], "progress": null, "blocked": null,
            "error": null, "wanted": {"is": "vm", "spec_revision": 77, "power_cycle": 3},
            "created_at": "2026-01-01T00:00:00Z", "ended_at": null,
        });
        let kv = |value: Vec<u8>| KeyValue { key: "op/default/1".into(), value, created: Revision(9), modified: Revision(9) };
        let Op::Put(_, value) = carried(kv(serde_json::to_vec(&op).expect("JSON"))) else { panic!("a put") };
        let told: serde_json::Value = serde_json::from_slice(&value).expect("JSON");
        assert_eq!(told["wanted"], serde_json::json!({"is": "vm", "spec_revision": 0, "power_cycle": 3}));
        assert_eq!(told["later"], "field", "what a newer version wrote stays");
        assert_eq!(carried(kv(b"torn".to_vec())), Op::Put("op/default/1".into(), b"torn".to_vec()));
    }

    #[test]
    fn batches_keep_within_what_a_transaction_may_carry() {
        let kv = |n: usize, bytes: usize| KeyValue {
            key: format!("vm/{n:05}"),
            value: vec![b'1'; bytes],
            created: Revision(1),
            modified: Revision(1),
        };
        let sizes = |items| batches(items).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes((0..300).map(|n| kv(n, 10)).collect()), [128, 128, 44]);
        assert_eq!(sizes((0..3).map(|n| kv(n, 1 << 20)).collect()), [1, 1, 1]);
        assert_eq!(sizes(Vec::new()), Vec::<usize>::new());
    }
}
