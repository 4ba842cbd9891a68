//! A real etcd on loopback, hurt in the ways that a cluster's is: killed, frozen, compacted, full.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmkeep_store::etcd::{EtcdConfig, EtcdStore, EtcdTls};
use vmkeep_store::{Op, Store, StoreError, Txn, Watch};
use vmkeep_types::ids::Revision;

use crate::{Shared, get, put, write};

const PATIENCE: Duration = Duration::from_secs(30);

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
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port());
        let more: Vec<String> = more.iter().map(ToString::to_string).collect();
        let child = spawn(&dir, ports, scheme, &more);
        Self { child, ports, scheme, dir, more }
    }

    fn endpoint(&self) -> String {
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

async fn next(watch: &mut Watch) -> Result<String, StoreError> {
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
    real.client().compact(i64::try_from(newest.0).expect("small"), None).await.expect("compacted");
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
    unseen.client().compact(i64::try_from(newest.0).expect("small"), None).await.expect("compacted");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_certificates_of_its_authority_get_in() {
    let dir = tempfile::tempdir().expect("a folder");
    certificates(dir.path(), "ours", &["server", "node1"]);
    certificates(dir.path(), "theirs", &["mallory"]);
    let file = |name: &str| dir.path().join(name);
    let [ca, cert, key] = ["ours.crt", "server.crt", "server.key"].map(|name| file(name).display().to_string());
    let secured = ["--client-cert-auth", "--trusted-ca-file", &ca, "--cert-file", &cert, "--key-file", &key];
    let peers = ["--peer-client-cert-auth", "--peer-trusted-ca-file", &ca, "--peer-cert-file", &cert, "--peer-key-file", &key];
    let etcd = Etcd::start_in(tempfile::tempdir().expect("a folder"), "https", &[&secured[..], &peers].concat());
    let store: Shared =
        Arc::new(etcd.connect_as(Some(EtcdTls { ca: file("ours.crt"), cert: file("node1.crt"), key: file("node1.key") })).await);
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
