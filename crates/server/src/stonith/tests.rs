//! With a real process that plays the agent.

use std::path::PathBuf;

use vmkeep_store::Op;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_types::event::Event;
use vmkeep_types::ids::VmId;
use vmkeep_types::record::{Caller, Role, Via};

use super::*;

const EPOCH: Epoch = Epoch(3);

struct Bed {
    store: EmbeddedStore,
    dir: tempfile::TempDir,
    node: Name,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/stonith/lab")
}

fn ask() -> Ask {
    let caller = Caller { name: "root".into(), role: Role::Admin, via: Via::Uid(0), projects: None };
    Ask {
        project: Name::known("default"),
        caller,
        if_match: None,
        repeat: None,
        admission: Default::default(),
        foreign: Default::default(),
    }
}

impl Bed {
    /// Its power is on, its epoch sealed, its agent set.
    async fn new() -> Self {
        let bed = Self {
            store: EmbeddedStore::in_memory().expect("memory"),
            dir: tempfile::tempdir().expect("a folder"),
            node: Name::known("node1"),
        };
        bed.write("power", "on\n");
        let record = FenceRecord { agent: "lab".into(), options: bed.options(), tested: None };
        let seal = Op::Put(keys::fence(&bed.node, EPOCH), Vec::new());
        bed.put(vec![typed::put(keys::stonith(&bed.node), &record), seal]).await;
        bed
    }

    fn options(&self) -> BTreeMap<String, String> {
        let folder = self.dir.path().display().to_string();
        BTreeMap::from([("uuid".into(), folder), ("password".into(), "hunter2".into())])
    }

    async fn put(&self, ops: Vec<Op>) {
        self.store.txn(Txn { then: ops, ..Txn::default() }).await.expect("a write");
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.dir.path().join(file), text).expect("written");
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(file)).unwrap_or_default()
    }

    async fn off(&self) -> Cut {
        off(&self.store, &folder(), &self.node, EPOCH).await
    }

    async fn test(&self, really: bool) -> Result<FenceView, Error> {
        test(&self.store, &folder(), &Name::known("node2"), &self.node, &FenceTest { really }).await
    }

    async fn events(&self) -> Vec<String> {
        let all = list_events(&self.store).await;
        all.into_iter().map(|event| format!("{} {}", event.code, event.message)).collect()
    }
}

async fn list_events(store: &EmbeddedStore) -> Vec<Event> {
    typed::list_json::<Event>(store, keys::ALL_EVENTS).await.expect("a listing").into_iter().map(|stored| stored.value).collect()
}

#[tokio::test]
async fn power_is_cut_by_orders_that_nobody_else_sees() {
    let bed = Bed::new().await;
    assert_eq!(bed.off().await, Cut::Confirmed);
    assert_eq!(bed.read("power"), "off\n");
    assert_eq!(bed.read("actions"), "off\nstatus\n");
    assert!(bed.read("told").contains("password=hunter2"), "{}", bed.read("told"));
    assert_eq!(bed.read("around"), "0 C no home\n", "no arguments, no environment");
    on(&bed.store, &folder(), &bed.node).await.expect("on again");
    assert_eq!(bed.read("power"), "on\n");
}

#[tokio::test]
async fn who_is_not_sealed_is_left_alone() {
    let bed = Bed::new().await;
    let cut = off(&bed.store, &folder(), &bed.node, Epoch(4)).await;
    assert!(matches!(&cut, Cut::Failed(why) if why.contains("not sealed")), "{cut:?}");
    assert_eq!(bed.read("actions"), "");
    let other = off(&bed.store, &folder(), &Name::known("node2"), EPOCH).await;
    assert!(matches!(other, Cut::Failed(_)));
}

#[tokio::test]
async fn an_agent_that_lies_or_fails_confirms_nothing() {
    let bed = Bed::new().await;
    bed.write("mode", "lie");
    assert_eq!(bed.off().await, Cut::Failed("fence_lab says that it is done, and that the power is on".into()));
    bed.write("mode", "fail");
    assert_eq!(bed.off().await, Cut::Failed("fence_lab: 'off' failed: Unable to connect with ***".into()));
    // Somebody has cut it by hand.
    bed.write("mode", "lie");
    bed.write("power", "off\n");
    assert_eq!(bed.off().await, Cut::Confirmed);
    let missing = FenceRecord { agent: "nothing".into(), options: BTreeMap::new(), tested: None };
    bed.put(vec![typed::put(keys::stonith(&bed.node), &missing)]).await;
    let cut = bed.off().await;
    assert!(matches!(&cut, Cut::Failed(why) if why.contains("fence_nothing is not installed")), "{cut:?}");
}

/// The clock of the runtime jumps whenever it has nothing else to do: it does while the agent sleeps.
#[tokio::test(start_paused = true)]
async fn an_agent_that_hangs_is_killed_with_all_its_children() {
    let bed = Bed::new().await;
    bed.write("mode", "hang");
    let cut = bed.off().await;
    assert!(matches!(&cut, Cut::Failed(why) if why.contains("was killed")), "{cut:?}");
    // One that was killed before it said who it is, is dead as well.
    let pid = bed.read("pid");
    let stat = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    let lives = || !pid.is_empty() && stat().is_ok_and(|stat| !stat.contains(") Z "));
    let begin = std::time::Instant::now();
    while lives() {
        assert!(begin.elapsed().as_secs() < 60, "{pid} lives on");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[tokio::test]
async fn secrets_are_set_kept_and_never_shown() {
    let bed = Bed::new().await;
    let facts = serde_json::json!({"name": "node1", "epoch": 1, "boot_id": "b", "cpus": 1, "memory": "1GiB", "kvm": {"is": "usable"},
        "libvirt_version": null, "qemu_version": null, "vmkeep_version": "1", "hypervisor_up": true});
    bed.put(vec![typed::put(keys::facts(&bed.node), &facts)]).await;
    let spec = |options: &[(&str, &str)]| FenceSpec {
        agent: "fence_lab".into(),
        options: options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
    };
    let shown = put(&bed.store, &ask(), &bed.node, spec(&[("ip", "192.0.2.7"), ("password", HIDDEN)])).await.expect("written");
    assert_eq!((shown.agent.as_str(), shown.options["ip"].as_str(), shown.options["password"].as_str()), ("lab", "192.0.2.7", HIDDEN));
    let kept = get::<FenceRecord>(&bed.store, &keys::stonith(&bed.node)).await.expect("read").expect("there").value;
    assert_eq!(kept.options["password"], "hunter2");
    let unknown = put(&bed.store, &ask(), &bed.node, spec(&[("token", HIDDEN)])).await.expect_err("nothing to keep");
    assert!(unknown.message.contains("options.token"), "{unknown:?}");
    let bad = spec(&[("action", "off"), ("UP", "1"), ("ip", "a\nb")]);
    let told = put(&bed.store, &ask(), &bed.node, bad).await.expect_err("refused").message;
    assert!(["options.action", "options.UP", "options.ip"].iter().all(|key| told.contains(key)), "{told}");
    delete(&bed.store, &bed.node).await.expect("gone");
    assert_eq!(show(&bed.store, &bed.node).await.expect_err("gone").code, Code::NotFound);
}

#[tokio::test]
async fn a_test_finds_out_and_the_first_failure_is_an_alarm() {
    let bed = Bed::new().await;
    let found = bed.test(false).await.expect("tested").tested.expect("kept").found;
    assert_eq!(found, FenceFound::On);
    bed.write("mode", "fail");
    for _ in 0..2 {
        bed.test(false).await.expect("tested");
    }
    assert_eq!(bed.events().await.len(), 1);
    assert!(bed.events().await[0].starts_with("node.fence-test-failed"), "{:?}", bed.events().await);
    bed.write("mode", "good");
    bed.test(false).await.expect("tested");
    assert_eq!(bed.events().await.len(), 2);
}

#[tokio::test]
async fn really_is_off_and_on_and_only_where_nothing_runs() {
    let bed = Bed::new().await;
    let tested = bed.test(true).await.expect("tested").tested.expect("kept");
    assert_eq!((tested.found, bed.read("power").as_str()), (FenceFound::On, "on\n"));
    assert_eq!(bed.read("actions"), "off\nstatus\non\nstatus\n");
    let own = Op::Put(keys::own(&bed.node, VmId(uuid::Uuid::from_u128(1))), Vec::new());
    bed.put(vec![own]).await;
    assert_eq!(bed.test(true).await.expect_err("it owns a VM").code, Code::Refused);
    let here = test(&bed.store, &folder(), &bed.node, &bed.node, &FenceTest { really: true }).await;
    assert_eq!(here.expect_err("its own power").code, Code::Refused);
}
