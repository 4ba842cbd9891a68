//! Three real members of etcd on loopback, without TLS.

use std::process::{Child, Command, Stdio};

use vmkeep_store::etcd::EtcdConfig;
use vmkeep_store::etcd::loopback::free_ports;
use vmkeep_types::cluster::{MemberRole, MemberState};

use super::*;

const PATIENCE: Duration = Duration::from_secs(90);
const NAMES: [&str; 3] = ["one", "two", "three"];

/// Killed with this value.
struct Etcds {
    children: Vec<Child>,
    store: EtcdStore,
    _dir: tempfile::TempDir,
}

impl Etcds {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let ports: [u16; 2 * NAMES.len()] = free_ports().expect("loopback");
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let urls: Vec<[String; 2]> = ports.chunks_exact(2).map(|of| [url(of[0]), url(of[1])]).collect();
        let all = NAMES.iter().zip(&urls).map(|(name, [_, peer])| format!("{name}={peer}")).collect::<Vec<_>>().join(",");
        let mut children = Vec::new();
        for (name, [client, peer]) in NAMES.iter().zip(&urls) {
            let log = std::fs::File::create(dir.path().join(format!("{name}.log"))).expect("a log");
            let mut command = Command::new("etcd");
            command.args(["--name", name, "--logger", "zap", "--grpc-keepalive-min-time", "1s", "--unsafe-no-fsync"]);
            command.arg("--data-dir").arg(dir.path().join(name)).args(["--initial-cluster", &all]);
            command.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
            command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
            command.stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
            children.push(command.spawn().expect("etcd runs (scripts/packages.sh test installs it)"));
        }
        let config = EtcdConfig { endpoints: urls[..2].iter().map(|[client, _]| client.clone()).collect(), tls: None };
        let begin = Instant::now();
        let store = loop {
            match EtcdStore::connect(&config).await {
                Ok(store) => break store,
                Err(error) if begin.elapsed() > PATIENCE => panic!("etcd does not answer: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        Self { children, store, _dir: dir }
    }

    /// Each member answers for itself, and one may be behind.
    async fn until_names(&self, wanted: &[&str]) {
        let begin = Instant::now();
        while self.names().await != wanted {
            assert!(begin.elapsed() < PATIENCE, "{:?}", self.names().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.store.members().await.unwrap_or_default().into_iter().map(|member| member.name).collect();
        names.sort();
        names
    }
}

impl Drop for Etcds {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn record(name: &'static str, state: MemberState) -> MemberRecord {
    MemberRecord {
        node: Name::known(name),
        address: format!("10.0.0.{}", name.len()),
        machine_id: name.into(),
        roles: vec![MemberRole::Control],
        version: "1".into(),
        level: 4,
        state,
        since: jiff::Timestamp::UNIX_EPOCH,
        certificate_until: None,
        problems: Vec::new(),
    }
}

/// Members that have just begun may elect another leader.
async fn write(store: &EtcdStore, record: &MemberRecord) {
    let begin = Instant::now();
    while let Err(error) = store.txn(Txn::default().then(typed::put(keys::member(&record.node), record))).await {
        assert!(begin.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_left_its_member_of_etcd_behind_is_taken_out() {
    let mut etcds = Etcds::start().await;
    write(&etcds.store, &record("one", MemberState::Member)).await;
    write(&etcds.store, &record("two", MemberState::Joining)).await;
    etcds.until_names(&["one", "three", "two"]).await;
    let begin = Instant::now();
    // Its record went, and its host before it took its etcd out.
    etcds.children[2].kill().expect("our child");
    let (mut seen, now) = (Seen::new(), Instant::now());
    let mut look = async |after| {
        // The killed one may have led: until there is another, nobody answers.
        let out = loop {
            match let_out(&etcds.store, &etcds.store, &mut seen, now + after).await {
                Ok(out) => break out,
                Err(error) => assert!(begin.elapsed() < PATIENCE, "they answer: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        out.into_iter().map(|member| member.name).collect::<Vec<_>>()
    };
    assert_eq!(look(Duration::ZERO).await, [""; 0]);
    assert_eq!(look(LEFT_BEHIND - Duration::from_secs(1)).await, [""; 0], "it may be on its way");
    assert_eq!(look(LEFT_BEHIND).await, ["three"]);
    assert_eq!(look(LEFT_BEHIND * 3).await, [""; 0], "members stay, and who joins");
    etcds.until_names(&["one", "two"]).await;
    let events = etcds.store.list(keys::ALL_EVENTS).await.expect("a list").items;
    let event: Event = typed::decode(&events[0]).expect("an event");
    assert_eq!((events.len(), event.code.as_str(), event.resource.name.as_str()), (1, "etcd.member-removed", "three"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_nobody_came_for_goes_too_and_one_with_a_node_stays() {
    let etcds = Etcds::start().await;
    for name in ["one", "two"] {
        write(&etcds.store, &record(name, MemberState::Member)).await;
    }
    let begin = Instant::now();
    while etcds.names().await != ["one", "three", "two"] || when_settled(|| etcds.store.add_learner("http://127.0.0.9:2380")).await.is_err()
    {
        assert!(begin.elapsed() < PATIENCE, "a learner is added");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let joined = vmkeep_store::Op::Put(keys::joined(&Name::known("three")), Vec::new());
    etcds.store.txn(Txn::default().then(joined)).await.expect("written");
    let (mut seen, now) = (Seen::new(), Instant::now());
    assert_eq!(let_out(&etcds.store, &etcds.store, &mut seen, now).await.expect("they answer"), []);
    let out = let_out(&etcds.store, &etcds.store, &mut seen, now + LEFT_BEHIND).await.expect("they answer");
    assert_eq!(out.iter().map(|member| member.learner).collect::<Vec<_>>(), [true]);
    etcds.until_names(&["one", "three", "two"]).await;
    // It has come, it is no control node any more, and whoever said so died before its etcd was out.
    write(&etcds.store, &MemberRecord { roles: vec![MemberRole::Compute], ..record("three", MemberState::Member) }).await;
    let begin = Instant::now();
    // It lives and may lead: then the others elect anew, and what became of the change is asked by the next look.
    while etcds.names().await != ["one", "two"] {
        assert!(begin.elapsed() < PATIENCE, "it is taken out");
        drop(let_out(&etcds.store, &etcds.store, &mut seen, now + LEFT_BEHIND * 2).await);
    }
}
