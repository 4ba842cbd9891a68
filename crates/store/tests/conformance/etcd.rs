//! A real etcd on loopback, hurt in the ways that a cluster's is: killed, frozen, compacted, full.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmkeep_store::etcd::loopback::free_ports;
use vmkeep_store::etcd::rights::{Right, user_of};
use vmkeep_store::etcd::{EtcdConfig, EtcdStore, EtcdTls};
use vmkeep_store::keys::LEADER;
use vmkeep_store::{Compare, Held, KeyValue, Leadership, Op, Store, StoreError, Txn, Watch};
use vmkeep_types::ids::Revision;
use vmkeep_types::name::Name;

use crate::lead::write_as;
use crate::{Shared, get, put, write};

const PATIENCE: Duration = Duration::from_secs(60);

/// One member with a folder of its own; killed with this value.
pub struct Etcd {
    child: Child,
    ports: [u16; 2],
    scheme: &'static str,
    dir: tempfile::TempDir,
    more: Vec<String>,
}

impl Etcd {
    pub fn start(more: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder"), "http", more)
    }

    fn start_in(dir: tempfile::TempDir, scheme: &'static str, more: &[&str]) -> Self {
        let ports = free_ports().expect("loopback");
        let more: Vec<String> = more.iter().map(ToString::to_string).collect();
        let child = spawn(&dir, ports, scheme, &more);
        Self { child, ports, scheme, dir, more }
    }

    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.ports[0])
    }

    pub async fn connect(&self) -> EtcdStore {
        self.connect_as(None).await
    }

    async fn connect_as(&self, tls: Option<EtcdTls>) -> EtcdStore {
        let config = EtcdConfig { endpoints: vec![self.endpoint()], tls };
        let began = Instant::now();
        loop {
            match EtcdStore::connect(&config).await {
                Ok(store) => return store,
                Err(error) if began.elapsed() > PATIENCE => panic!("etcd does not answer: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, signal).expect("our child");
    }

    fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    fn start_again(&mut self) {
        self.child = spawn(&self.dir, self.ports, self.scheme, &self.more);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &tempfile::TempDir, [client, peer]: [u16; 2], scheme: &str, more: &[String]) -> Child {
    let (client, peer) = (format!("{scheme}://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let log = std::fs::File::options().create(true).append(true).open(dir.path().join("log")).expect("a log");
    let mut command = Command::new("etcd");
    command
        .args(["--name", "one", "--logger", "zap", "--grpc-keepalive-min-time", "1s", "--unsafe-no-fsync"])
        .arg("--data-dir")
        .arg(dir.path().join("data"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client, "--listen-peer-urls", &peer]);
    command.args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("one={peer}")]).args(more);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
    command.spawn().expect("etcd runs (scripts/packages.sh test installs it)")
}

pub async fn next(watch: &mut Watch) -> Result<String, StoreError> {
    let batch = tokio::time::timeout(PATIENCE, watch.recv()).await.expect("an event in time").expect("not closed")?;
    Ok(format!("{:?}", batch.changes.iter().map(word).collect::<Vec<_>>()))
}

fn word(change: &vmkeep_store::Change) -> String {
    match change {
        vmkeep_store::Change::Put(kv) => format!("{}={}", kv.key, String::from_utf8_lossy(&kv.value)),
        vmkeep_store::Change::Deleted { key, .. } => format!("-{key}"),
    }
}

/// Writes until it succeeds: etcd may be away.
async fn write_again(store: &Shared, op: Op) {
    let began = Instant::now();
    while let Err(error) = store.txn(Txn::default().then(op.clone())).await {
        assert!(began.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_outlives_its_server() {
    let mut etcd = Etcd::start(&[]);
    let store: Shared = Arc::new(etcd.connect().await);
    let at = write(&store, [put("k/1", "before")]).await;
    let mut watch = store.watch("k/", at).await.expect("not compacted");
    assert_eq!(next(&mut watch).await.expect("replayed"), r#"["k/1=before"]"#);
    for round in 0..3 {
        etcd.kill();
        let gone = store.get("k/1").await;
        assert!(matches!(gone, Err(StoreError::Unavailable(_))), "{gone:?}");
        let lost = store.txn(Txn::default().then(put("k/lost", "x"))).await;
        assert!(matches!(lost, Err(StoreError::Unknown(_))), "nobody can know: {lost:?}");
        etcd.start_again();
        write_again(&store, put(format!("k/{round}"), "after")).await;
        assert_eq!(next(&mut watch).await.expect("it goes on"), format!(r#"["k/{round}=after"]"#));
    }
    assert_eq!(get(&store, "k/lost").await, None);
}

/// A frozen etcd hangs calls and watches without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_noticed() {
    let etcd = Etcd::start(&[]);
    let store: Shared = Arc::new(etcd.connect().await);
    let at = write(&store, [put("k/1", "1")]).await;
    let mut watch = store.watch("k/", at.next()).await.expect("a watch");
    etcd.signal(Signal::SIGSTOP);
    let began = Instant::now();
    let (read, written) = tokio::join!(store.get("k/1"), store.txn(Txn::default().then(put("k/2", "2"))));
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    assert!(matches!(written, Err(StoreError::Unknown(_))), "{written:?}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    etcd.signal(Signal::SIGCONT);
    write_again(&store, put("k/3", "3")).await;
    // The write whose outcome was unknown may have been carried out.
    let mut told = next(&mut watch).await.expect("it goes on");
    if told == r#"["k/2=2"]"# {
        told = next(&mut watch).await.expect("it goes on");
    }
    assert_eq!(told, r#"["k/3=3"]"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compacted_history_is_refused() {
    let etcd = Etcd::start(&[]);
    let real = Arc::new(etcd.connect().await);
    let store: Shared = real.clone();
    let first = write(&store, [put("k/1", "1")]).await;
    let mut watch = store.watch("k/", first).await.expect("a watch");
    next(&mut watch).await.expect("replayed");
    for n in 2..20 {
        write(&store, [put("k/1", n.to_string())]).await;
    }
    let newest = store.revision().await.expect("a read");
    real.compact().await.expect("compacted");
    for asked in [Revision(0), first, Revision(newest.0 - 1)] {
        let refused = store.watch("k/", asked).await.map(|_| "a watch");
        assert_eq!(refused, Err(StoreError::Compacted { asked, oldest: newest }));
    }
    let mut rest = store.watch("k/", newest).await.expect("what is left");
    assert_eq!(next(&mut rest).await.expect("the newest"), r#"["k/1=19"]"#);
    for _ in 2..20 {
        next(&mut watch).await.expect("a watch that was there has seen all");
    }
}

/// What is written and compacted while the watch is broken is gone for it; it says so instead of leaving a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broken_watch_missed_may_be_gone() {
    let mut etcd = Etcd::start(&[]);
    let mut twin = Etcd::start(&[]);
    let store: Shared = Arc::new(etcd.connect().await);
    let at = write(&store, [put("k/1", "1")]).await;
    let mut watch = store.watch("k/", at).await.expect("a watch");
    next(&mut watch).await.expect("replayed");
    // The same member goes on elsewhere, out of the watch's sight, and comes back with its history shortened.
    etcd.kill();
    twin.kill();
    std::mem::swap(&mut etcd.dir, &mut twin.dir);
    twin.start_again();
    let unseen = Arc::new(twin.connect().await);
    let shared: Shared = unseen.clone();
    write(&shared, [put("k/1", "2")]).await;
    let newest = write(&shared, [put("k/1", "3")]).await;
    unseen.compact().await.expect("compacted");
    twin.kill();
    std::mem::swap(&mut etcd.dir, &mut twin.dir);
    etcd.start_again();
    let gone = next(&mut watch).await;
    assert_eq!(gone, Err(StoreError::Compacted { asked: at.next(), oldest: newest }));
    assert!(watch.recv().await.is_none(), "and closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_reads_on_and_says_what_mends_it() {
    let etcd = Etcd::start(&["--quota-backend-bytes", "2097152"]);
    let store: Shared = Arc::new(etcd.connect().await);
    let mut refused = None;
    for n in 0..200 {
        if let Err(error) = store.txn(Txn::default().then(put(format!("k/{n}"), vec![b'x'; 100_000]))).await {
            refused = Some(error);
            break;
        }
    }
    let refused = refused.expect("200 writes of 100 kB do not fit in 2 MiB");
    assert!(matches!(&refused, StoreError::Full(words) if words.contains("vmkeep cluster defrag")), "{refused:?}");
    assert!(get(&store, "k/0").await.is_some(), "reads go on");
}

/// More keys than one page, and a page boundary in the middle of two prefixes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_listings_are_whole() {
    let etcd = Etcd::start(&[]);
    let store: Shared = Arc::new(etcd.connect().await);
    for n in 0..25 {
        write(&store, (0..100).map(|m| put(format!("k/{n:02}/{m:02}"), "v"))).await;
    }
    let listing = store.list_many(&["k/", "k/07/"]).await.expect("a read");
    assert_eq!(listing.items.len(), 2600);
    assert!(listing.items[..2500].is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(listing.revision, store.revision().await.expect("a read"));
    let (mut sizes, mut parts) = (Vec::new(), Vec::new());
    let mut take_in = |part: Vec<KeyValue>| {
        sizes.push(part.len());
        parts.extend(part);
    };
    let at = store.visit(&["k/", "k/07/"], &mut take_in).await.expect("a read");
    assert_eq!((at, parts), (listing.revision, listing.items), "part by part it is the same");
    assert_eq!(sizes, [1000, 1500, 100], "small values come in larger parts");
}

/// The daemon of a node comes back: it need not wait for its own lease to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_restarts_leads_at_once() {
    const LONG: Duration = Duration::from_secs(600);
    let etcd = Etcd::start(&[]);
    let (before, after) = (etcd.connect().await, etcd.connect().await);
    assert_eq!(before.id(), after.id());
    let first = before.lead("one", LONG).await.expect("an answer").expect("nobody leads");
    assert_eq!(after.lead("two", LONG).await, Ok(None));
    let second = after.lead("one", LONG).await.expect("an answer").expect("its own");
    assert!(second.revision > first.revision);
    assert_eq!(before.lead("two", LONG).await, Ok(None), "the old lease is worth nothing");
}

/// Asks until etcd, which may be away, has answered.
async fn lead_again(store: &Shared, ttl: Duration) -> Option<Leadership> {
    let began = Instant::now();
    loop {
        match store.lead("one", ttl).await {
            Ok(answer) => return answer,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A lease outlives etcd's process. One that ended while etcd was frozen is told to who led by it: what follows is another leadership.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_leads_again_after_a_break_and_knows_whether_it_is_the_same_leadership() {
    const LONG: Duration = Duration::from_secs(600);
    let mut etcd = Etcd::start(&[]);
    let store: Shared = Arc::new(etcd.connect().await);
    let first = lead_again(&store, LONG).await.expect("nobody leads");
    etcd.kill();
    let away = store.lead("one", LONG).await;
    assert!(matches!(away, Err(StoreError::Unavailable(_))), "neither that it leads nor that it does not: {away:?}");
    etcd.start_again();
    assert_eq!(lead_again(&store, LONG).await, Some(first.clone()), "the lease had not ended");
    assert_eq!(write_as(&store, &first).await, Held::Yes);
    store.resign(&first).await.expect("resigned");

    let second = lead_again(&store, Duration::from_secs(1)).await.expect("nobody leads");
    etcd.signal(Signal::SIGSTOP);
    let away = store.lead("one", LONG).await;
    assert!(matches!(away, Err(StoreError::Unavailable(_))), "{away:?}");
    etcd.signal(Signal::SIGCONT);
    let began = Instant::now();
    while !matches!(store.get(LEADER).await, Ok(None)) {
        assert!(began.elapsed() < PATIENCE, "its lease does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(write_as(&store, &second).await, Held::No);
    let other = etcd.connect().await;
    let between = other.lead("two", LONG).await.expect("an answer").expect("nobody leads");
    assert_eq!(lead_again(&store, LONG).await, None, "another one does");
    other.resign(&between).await.expect("resigned");
    let third = lead_again(&store, LONG).await.expect("nobody leads");
    assert!(third.revision > between.revision && between.revision > second.revision, "{second:?} {between:?} {third:?}");
    assert_eq!(write_as(&store, &second).await, Held::No, "what was decided before the break is not written after it");
    assert_eq!(write_as(&store, &third).await, Held::Yes);
}

/// An authority in `dir`, and a certificate of it for each name; PEM files `NAME.crt` and `NAME.key`.
fn certificates(dir: &Path, authority: &str, names: &[&str]) {
    let write = |name: String, pem: String| std::fs::write(dir.join(name), pem).expect("a file");
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, authority);
    write(format!("{authority}.crt"), params.self_signed(&key).expect("a certificate").pem());
    let issuer = rcgen::Issuer::new(params, key);
    for name in names {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).expect("an address");
        params.distinguished_name.push(rcgen::DnType::CommonName, *name);
        write(format!("{name}.crt"), params.signed_by(&key, &issuer).expect("a certificate").pem());
        write(format!("{name}.key"), key.serialize_pem());
    }
}

/// An etcd that wants certificates, made in `dir`: `server`'s, and one for each of `names`.
fn secured(dir: &Path, names: &[&str]) -> Etcd {
    certificates(dir, "ours", &[&["server"], names].concat());
    let [ca, cert, key] = ["ours.crt", "server.crt", "server.key"].map(|name| dir.join(name).display().to_string());
    let secured = ["--client-cert-auth", "--trusted-ca-file", &ca, "--cert-file", &cert, "--key-file", &key];
    let peers = ["--peer-client-cert-auth", "--peer-trusted-ca-file", &ca, "--peer-cert-file", &cert, "--peer-key-file", &key];
    Etcd::start_in(tempfile::tempdir().expect("a folder"), "https", &[&secured[..], &peers].concat())
}

fn pair(dir: &Path, name: &str) -> EtcdTls {
    EtcdTls { ca: dir.join("ours.crt"), cert: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_certificates_of_its_authority_get_in() {
    let dir = tempfile::tempdir().expect("a folder");
    let etcd = secured(dir.path(), &["node1"]);
    certificates(dir.path(), "theirs", &["mallory"]);
    let file = |name: &str| dir.path().join(name);
    let store: Shared = Arc::new(etcd.connect_as(Some(pair(dir.path(), "node1"))).await);
    write(&store, [put("k", "v")]).await;
    assert_eq!(get(&store, "k").await.expect("written").value, b"v");

    for (ca, name) in [("ours", "mallory"), ("theirs", "node1")] {
        let tls = EtcdTls { ca: file(&format!("{ca}.crt")), cert: file(&format!("{name}.crt")), key: file(&format!("{name}.key")) };
        let refused = EtcdStore::connect(&EtcdConfig { endpoints: vec![etcd.endpoint()], tls: Some(tls) }).await;
        assert!(matches!(refused.as_ref().err(), Some(StoreError::Unavailable(_))), "{ca} {name}: {:?}", refused.err());
    }
    let missing = EtcdTls { ca: file("nosuch.crt"), cert: file("node1.crt"), key: file("node1.key") };
    let refused = EtcdStore::connect(&EtcdConfig { endpoints: vec![etcd.endpoint()], tls: Some(missing) }).await.err();
    assert!(matches!(&refused, Some(StoreError::Invalid(words)) if words.contains("nosuch.crt")), "{refused:?}");
}

/// What an etcd that holds nodes to their own keys says to a write, or to a read.
async fn told(store: &EtcdStore, txn: Txn) -> &'static str {
    match store.txn(txn).await {
        Ok(_) => "yes",
        Err(StoreError::Denied(_)) => "no",
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_writes_its_own_keys_and_no_others() {
    let dir = tempfile::tempdir().expect("a folder");
    let etcd = secured(dir.path(), &["node:c1", "node:n1", "node:n2", "node:nobody"]);
    let [c1, n1, n2, nobody] = ["c1", "n1", "n2", "nobody"].map(Name::known);
    let connect = |node: &Name| etcd.connect_as(Some(pair(dir.path(), &user_of(node))));
    let control = connect(&c1).await;
    let before = connect(&n1).await;
    let mut watch = before.watch("n/n1/order/", Revision(1)).await.expect("a watch");
    assert_eq!(told(&before, Txn::default().then(put("n/n2/hb", "1"))).await, "yes", "nobody asks yet");

    // Twice: over a crash, and by another control node.
    for _ in 0..2 {
        let mut rights = control.rights().await.expect("users");
        rights.give(&c1, Right::All).await.expect("given");
        rights.give(&n1, Right::Own).await.expect("given");
        rights.give(&n2, Right::Own).await.expect("given");
        rights.enforce().await.expect("in force");
    }
    assert_eq!(control.rights().await.expect("users").nodes().collect::<Vec<_>>(), [c1.clone(), n1.clone(), n2.clone()]);

    let node = connect(&n1).await;
    let write = |key: &str| told(&node, Txn::default().then(put(key, "1")));
    for own in ["n/n1/hb", "n/n1/run/vm", "n/n1/stopped/vm/3", "cluster/word/n1"] {
        assert_eq!(write(own).await, "yes", "{own}");
    }
    let others = ["n/n2/hb", "n/n11/hb", "owner/vm", "own/n1/vm", "fence/n1/1", "confirmed/n1/1", "cluster/member/n1", "cluster/word/n2"];
    for other in
        others.into_iter().chain(["cluster/level", "cluster/recovery", "leader", "vm/default/vm", "control/n1", "token/1", "join/1"])
    {
        assert_eq!(write(other).await, "no", "{other}");
    }
    assert_eq!(told(&node, Txn::default().then(put("n/n1/hb", "2")).then(put("owner/vm", "1"))).await, "no", "not one in a transaction");
    assert_eq!(told(&node, Txn::default().then(Op::DeletePrefix("n/".into()))).await, "no");
    let claim = Txn::default()
        .when(Compare::Absent("owner/vm".into()))
        .when(Compare::Absent("fence/n1/1".into()))
        .when(Compare::PrefixEmpty("own/n1/".into()))
        .when(Compare::Absent(vmkeep_store::keys::CLUSTER_RECOVERY.into()));
    assert_eq!(told(&node, claim.then(put("n/n1/run/vm", "2"))).await, "yes");
    for secret in ["n/n2/order/vm", "vm/default/vm", "seal/ring", "token/1", "stonith/n1", "own/n2/vm"] {
        assert!(node.get(secret).await.is_err(), "{secret}");
    }
    assert!(node.lead("n1", Duration::from_secs(5)).await.is_err(), "it leads nobody");
    assert_eq!(node.list("n/n1/").await.expect("its own").items.len(), 3);
    assert!(connect_refused(&etcd, pair(dir.path(), &user_of(&nobody))).await, "who has no rights reads nothing");

    // A control node may do everything, and what a node had opened before goes on.
    assert_eq!(told(&control, Txn::default().then(put("n/n1/order/vm", "1")).then(put("owner/vm", "1"))).await, "yes");
    assert_eq!(next(&mut watch).await.expect("no break"), r#"["n/n1/order/vm=1"]"#);
    assert!(control.lead("c1", Duration::from_secs(5)).await.expect("an answer").is_some());

    // Taken out, it reads that it was; let in again, it is as before.
    let mut rights = control.rights().await.expect("users");
    rights.give(&n1, Right::None).await.expect("taken");
    assert_eq!(told(&node, Txn::default().then(put("n/n1/hb", "3"))).await, "no");
    assert_eq!(node.get("cluster/member/n1").await.expect("a read"), None);
    rights.give(&n1, Right::Own).await.expect("given");
    assert_eq!(told(&node, Txn::default().then(put("n/n1/hb", "4"))).await, "yes");
}

async fn connect_refused(etcd: &Etcd, tls: EtcdTls) -> bool {
    let refused = EtcdStore::connect(&EtcdConfig { endpoints: vec![etcd.endpoint()], tls: Some(tls) }).await.err();
    matches!(refused, Some(StoreError::Denied(_)))
}

/// Users and roles change while others write: what etcd refuses for that alone is sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_while_rights_change() {
    let dir = tempfile::tempdir().expect("a folder");
    let etcd = secured(dir.path(), &["node:c1", "node:n1"]);
    let [c1, n1, n2] = ["c1", "n1", "n2"].map(Name::known);
    let control = etcd.connect_as(Some(pair(dir.path(), &user_of(&c1)))).await;
    let mut rights = control.rights().await.expect("users");
    rights.give(&c1, Right::All).await.expect("given");
    rights.give(&n1, Right::Own).await.expect("given");
    rights.enforce().await.expect("in force");
    let node = etcd.connect_as(Some(pair(dir.path(), &user_of(&n1)))).await;
    let changes = async {
        let mut rights = control.rights().await.expect("users");
        for _ in 0..20 {
            rights.give(&n2, Right::Own).await.expect("given");
            rights.give(&n2, Right::None).await.expect("taken");
        }
    };
    tokio::pin!(changes);
    let mut writes = 0;
    loop {
        tokio::select! {
            () = &mut changes => break,
            written = node.txn(Txn::default().then(put("n/n1/hb", "1"))) => drop(written.expect("written")),
        }
        writes += 1;
    }
    assert!(writes > 0);
}
