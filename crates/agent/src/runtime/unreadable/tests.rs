//! The dispatcher with the fake hypervisor and a store in memory.

use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{Op, Store, Txn, keys};
use vmkeep_types::event::Event;
use vmkeep_types::host::KvmState;
use vmkeep_types::name::Name;
use vmkeep_types::order::{TaskResult, TaskState, Work};
use vmkeep_types::units::ByteCount;

use crate::hypervisor::fake::FakeHypervisor;
use crate::runtime::clock::BootId;
use crate::runtime::*;

#[tokio::test]
async fn what_does_not_parse_is_told_and_keeps_nobody_from_work() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("boot_id"), "b").expect("written");
    let (name, store) = (Name::known("node1"), Arc::new(EmbeddedStore::in_memory().expect("memory")));
    let node = Node::new(AgentConfig {
        name: name.clone(),
        store: store.clone(),
        hypervisor: Arc::new(FakeHypervisor::new()),
        boot_id: BootId(at("boot_id")),
        seed_dir: at("seeds"),
        log_dir: at("logs"),
        run_dir: at("run"),
        cpus: 1,
        memory: ByteCount::from_gib(1),
        kvm: KvmState::Usable,
        address: None,
        migration: None,
        peers: None,
        reach: crate::image::Reach::default(),
        guard: Arc::new(crate::runtime::guard::NoGuard),
    })
    .expect("a node");
    let id = || OperationId(uuid::Uuid::new_v4());
    let (early, late, good) = (id(), id(), id());
    let put = async |ops: Vec<Op>| store.txn(Txn { then: ops, ..Txn::default() }).await.expect("written").revision;
    let bad_task = |op| Op::Put(keys::task(&name, op), b"{\"op\": 7}".to_vec());
    let bad_order = VmId(uuid::Uuid::new_v4());
    let begin = put(vec![bad_task(early), Op::Put(keys::order(&name, bad_order), b"{}".to_vec())]).await;
    let mut watch = store.watch("n/node1/", begin.next()).await.expect("a watch");
    let stop = CancellationToken::new();
    let agent = tokio::spawn(run(node, stop.clone()));

    let work = NodeTask { op: good, project: Name::known("default"), work: Work::Reboot { vm: VmId(uuid::Uuid::new_v4()) } };
    let (mut results, mut events) = (BTreeMap::new(), BTreeMap::new());
    let mut sent = false;
    while results.len() < 3 || events.len() < 3 {
        let batch = tokio::time::timeout(Duration::from_secs(60), watch.recv()).await.expect("in time").expect("open").expect("a batch");
        for change in batch.changes {
            let Change::Put(kv) = change else { continue };
            match kind_of(&kv.key) {
                Some(("result", _)) => {
                    let result: TaskResult = typed::decode(&kv).expect("a result");
                    let TaskState::Failed { error } = result.state else { panic!("{:?}", result.state) };
                    results.insert(result.op, error.message);
                }
                Some(("event", _)) => {
                    let event: Event = typed::decode(&kv).expect("an event");
                    events.insert(event.resource.uid, event.code);
                }
                _ => {}
            }
        }
        // The dispatcher has begun: these come by its watch.
        if !sent && !results.is_empty() {
            sent = true;
            put(vec![bad_task(late), typed::put(keys::task(&name, good), &work)]).await;
        }
    }
    for bad in [early, late] {
        assert!(results[&bad].contains("cannot read this task"), "{}", results[&bad]);
        assert_eq!(events[&bad.0], "op.unreadable");
    }
    assert_eq!(events[&bad_order.0], "vm.unreadable");
    assert!(results[&good].contains("no domain"), "{}", results[&good]);
    stop.cancel();
    agent.await.expect("it ends");
}
