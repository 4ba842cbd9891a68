//! The node's routes against the fake hypervisor and a real directory pool.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use expect_test::{Expect, expect};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tower::ServiceExt;
use vmkeep_api::body::{AdoptionProposal, WishCheck};
use vmkeep_types::error::Code;
use vmkeep_types::ha::{Farewell, WatchdogKind};
use vmkeep_types::ids::{Epoch, VolumeId};
use vmkeep_types::order::Order;
use vmkeep_types::pool::{PoolDriver, PoolSpec, VolumeRecord};
use vmkeep_types::vm::DiskFormat;

use super::*;
use crate::hypervisor::fake::FakeHypervisor;
use crate::hypervisor::{AddressSource, AgentLink, GuestAddress, METADATA_URI, Words};
use crate::runtime::clock;
use crate::runtime::guard::Opened;
use crate::runtime::standing::{Stand, Watchdog};

const VM: &str = "00000000-0000-4000-8000-000000000001";
const FOREIGN: &str = "00000000-0000-4000-8000-000000000002";
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Shutdowns(AtomicU32);

#[async_trait]
impl Guests for Shutdowns {
    async fn shutdown(&self, _: Farewell) -> Result<(), Error> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    async fn resume(&self) -> Result<(), Error> {
        Err(Error::conflict("nothing was shut down"))
    }
    fn stand(&self) -> Stand {
        let opened = Opened { kind: WatchdogKind::Hardware, pet_ms: 19_000, watchdog_ms: 8_000 };
        Stand { renewed: Some(clock::now()), watchdog: Watchdog::Armed(opened), ..Stand::default() }
    }
}

#[async_trait]
impl Wishes for Shutdowns {
    async fn check(&self, wish: WishCheck) -> Result<(), Error> {
        if wish.spec.cpu.model == "Nonsense" { Err(Error::invalid("no such CPU here")) } else { Ok(()) }
    }

    async fn look(&self, _: Vec<VmId>) {}
}

/// `web`, off, goes to `node2` with one disk.
#[async_trait]
impl Moves for Shutdowns {
    async fn goes_to(&self, _: VmId, to: &Name) -> Result<(), Error> {
        if to.as_str() == "node2" { Ok(()) } else { Err(Error::new(Code::Forbidden, "not to you")) }
    }

    async fn leaves(&self, vm: VmId) -> Result<Order, Error> {
        let name = Name::known("default");
        let volume = VolumeRecord {
            id: VolumeId(vm.0),
            project: name.clone(),
            name: Name::known("web-root"),
            pool: name,
            node: None,
            size: None,
            format: DiskFormat::Raw,
            image: None,
            foreign_path: None,
            filling: None,
            made: true,
            attached: None,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let order = crate::runtime::claim::tests::order(Epoch(1));
        Ok(Order { vm, volumes: [(Name::known("root"), volume)].into(), ..order })
    }
}

struct OnePool(Arc<dyn Pool>);

#[async_trait]
impl Pools for OnePool {
    async fn all(&self) -> Result<BTreeMap<Name, Arc<dyn Pool>>, Error> {
        Ok([(Name::known("default"), self.0.clone())].into())
    }
}

struct Bed {
    hv: Arc<FakeHypervisor>,
    guests: Arc<Shutdowns>,
    router: Router,
    dir: tempfile::TempDir,
}

impl Bed {
    /// One of our VMs, off, and one foreign domain.
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let hv = Arc::new(FakeHypervisor::new());
        let root = dir.path().display();
        let ours = format!(
            "<domain type='qemu'><name>web</name><uuid>{VM}</uuid><memory>131072</memory>\
             <metadata><vmkeep:vm xmlns:vmkeep='{METADATA_URI}' id='{VM}' project='shop' generation='1' revision='7'/></metadata>\
             <os><type machine='q35'>hvm</type></os><devices>\
             <interface type='network'><mac address='52:54:00:00:00:01'/><source network='n'/><alias name='ua-nic-lan'/></interface>\
             <serial type='pty'><log file='{root}/logs/web.log'/></serial>\
             <graphics type='vnc'><listen type='socket' socket='{root}/vnc.sock'/></graphics><video/></devices></domain>"
        );
        let foreign =
            format!("<domain type='qemu'><name>other</name><uuid>{FOREIGN}</uuid><memory>1024</memory><os><type>hvm</type></os></domain>");
        hv.define(&ours, Words::Patched).await.expect("defined");
        hv.define(&foreign, Words::Patched).await.expect("defined");
        let driver = PoolDriver::Dir { path: format!("{root}/pool"), shared: false };
        let pool = crate::pool::open(&PoolSpec { name: Name::known("default"), description: String::new(), driver }).expect("a pool");
        let guests = Arc::new(Shutdowns::default());
        let router = router(NodeHttp::new(NodeHttpConfig {
            node: Name::known("node1"),
            hypervisor: hv.clone(),
            pools: Arc::new(OnePool(pool)),
            log_dir: dir.path().join("logs"),
            qemu_log_dir: dir.path().join("qemu"),
            check: CheckInput { pool: dir.path().join("pool"), store: dir.path().to_owned(), tls_listen: None, migration_port: None },
            guests: guests.clone(),
            wishes: guests.clone(),
            moves: guests.clone(),
        }));
        std::fs::create_dir(dir.path().join("logs")).expect("a folder");
        std::fs::create_dir(dir.path().join("qemu")).expect("a folder");
        Self { hv, guests, router, dir }
    }

    async fn running() -> Self {
        let bed = Self::new().await;
        bed.hv.start(id()).await.expect("started");
        bed
    }

    async fn call(&self, method: Method, path: &str, body: impl Into<Body>) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri(path).body(body.into()).expect("a request");
        let response = self.router.clone().oneshot(request).await.expect("a router answers");
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 8 << 20).await.expect("a body");
        (status, String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn check(&self, method: Method, path: &str, body: &str, expect: Expect) {
        let (status, text) = self.call(method, path, body.to_owned()).await;
        let told = match serde_json::from_str::<serde_json::Value>(&text) {
            Ok(problem) if problem["detail"].is_string() => problem["detail"].as_str().unwrap_or_default().to_owned(),
            _ => text.replace(&self.dir.path().display().to_string(), "DIR"),
        };
        // How long ago that was hangs on how busy this machine is.
        let age = |line: &str| match line.rsplit_once(' ') {
            Some((metric, _)) if metric.starts_with("vmkeep_node_renewal_age_seconds{") => format!("{metric} AGE\n"),
            _ => line.to_owned(),
        };
        let told: String = told.split_inclusive('\n').map(age).collect();
        expect.assert_eq(&format!("{} {told}", status.as_u16()));
    }

    /// A real server, because an upgrade needs a connection.
    async fn serve(&self) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("it is bound");
        let router = self.router.clone();
        tokio::spawn(async move { axum::serve(listener, router).await });
        at
    }
}

fn id() -> VmId {
    VM.parse().expect("a uuid")
}

async fn websocket(at: std::net::SocketAddr, path: &str) -> Result<WebSocketStream<TcpStream>, String> {
    let stream = TcpStream::connect(at).await.expect("the server listens");
    let opened = tokio_tungstenite::client_async(format!("ws://{at}{path}"), stream).await;
    opened.map(|(socket, _)| socket).map_err(|e| e.to_string())
}

/// Reads until `words` have come; the close reason counts as words.
async fn until(socket: &mut WebSocketStream<TcpStream>, words: &str) -> String {
    let mut heard = String::new();
    let reading = async {
        while !heard.contains(words) {
            match socket.next().await {
                Some(Ok(Message::Binary(bytes))) => heard += &String::from_utf8_lossy(&bytes),
                Some(Ok(Message::Close(frame))) => heard += frame.map_or_else(|| "closed".into(), |f| f.reason.to_string()).as_str(),
                Some(Ok(_)) => {}
                other => panic!("{other:?} before '{words}'"),
            }
        }
    };
    assert!(tokio::time::timeout(PATIENCE, reading).await.is_ok(), "no '{words}'");
    heard
}

#[tokio::test]
async fn viewers_share_a_console_and_a_late_one_sees_the_past() {
    let bed = Bed::running().await;
    let at = bed.serve().await;
    let path = format!("/n/vms/{VM}/console");
    let mut first = websocket(at, &path).await.expect("a console");
    first.send(Message::binary(b"echo hello\r".to_vec())).await.expect("typed");
    until(&mut first, "hello\r\ntiny#").await;
    let mut second = websocket(at, &path).await.expect("the same console");
    assert!(until(&mut second, "tiny#").await.contains("echo hello"), "the past");
    second.send(Message::text("echo both\r")).await.expect("typed");
    until(&mut first, "both\r\ntiny#").await;
    until(&mut second, "both\r\ntiny#").await;

    drop(first);
    drop(second);
    // The fake, like libvirt, gives a console to one session only: it is free again when the last viewer has left.
    let again = async {
        while bed.hv.console(id()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the last viewer closes the guest's stream");
}

#[tokio::test]
async fn a_console_is_opened_again_right_after_it_was_closed() {
    let bed = Bed::running().await;
    let at = bed.serve().await;
    for round in 0..20 {
        let mut viewer = websocket(at, &format!("/n/vms/{VM}/console")).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        viewer.send(Message::binary(format!("echo round-{round}\r").into_bytes())).await.expect("typed");
        until(&mut viewer, &format!("round-{round}\r\ntiny#")).await;
    }
}

#[tokio::test]
async fn a_guest_that_goes_down_closes_its_console() {
    let bed = Bed::running().await;
    let at = bed.serve().await;
    let mut viewer = websocket(at, &format!("/n/vms/{VM}/console")).await.expect("a console");
    viewer.send(Message::binary(b"poweroff -f\r".to_vec())).await.expect("typed");
    until(&mut viewer, "the VM stopped").await;
    assert!(websocket(at, &format!("/n/vms/{VM}/console")).await.expect_err("it is off").contains("409"));
}

#[tokio::test]
async fn vnc_carries_bytes_both_ways() {
    let bed = Bed::running().await;
    let at = bed.serve().await;
    let path = format!("/n/vms/{VM}/vnc");
    assert!(websocket(at, &path).await.expect_err("QEMU does not listen").contains("409"));
    let qemu = UnixListener::bind(bed.dir.path().join("vnc.sock")).expect("a socket");
    let mut viewer = websocket(at, &path).await.expect("a display");
    let (mut stream, _) = qemu.accept().await.expect("a connection");
    stream.write_all(b"RFB 003.008\n").await.expect("sent");
    until(&mut viewer, "RFB 003.008").await;
    viewer.send(Message::binary(b"RFB 003.007\n".to_vec())).await.expect("sent");
    let mut said = [0; 12];
    stream.read_exact(&mut said).await.expect("received");
    assert_eq!(&said, b"RFB 003.007\n");
    drop(stream);
    until(&mut viewer, "closed").await;
}

#[tokio::test]
async fn what_is_not_there_is_told_in_our_own_form() {
    let bed = Bed::new().await;
    bed.check(Method::GET, "/n/vms/web/xml", "", expect!["422 'web' is not a VM's id"]).await;
    let foreign = format!("/n/vms/{FOREIGN}/xml");
    bed.check(Method::GET, &foreign, "", expect!["404 there is no domain of the VM '00000000-0000-4000-8000-000000000002'"]).await;
    bed.check(Method::GET, "/n/nothing", "", expect!["404 this node has no /n/nothing"]).await;
    let console = format!("/n/vms/{VM}/console");
    bed.check(Method::GET, &console, "", expect!["422 this is a WebSocket: Connection header did not include 'upgrade'"]).await;
    bed.check(
        Method::GET,
        &format!("/n/vms/{VM}/logs?lines=x"),
        "",
        expect!["422 the query does not parse: Failed to deserialize query string: lines: invalid digit found in string"],
    )
    .await;
    bed.hv.disconnect();
    bed.check(Method::GET, "/n/stats", "", expect!["503 libvirt does not answer: the fake libvirt is cut off"]).await;
    bed.check(
        Method::GET,
        "/n/metrics",
        "",
        expect![[r#"
            200 # HELP vmkeep_node_libvirt_up libvirt answers
            # TYPE vmkeep_node_libvirt_up gauge
            vmkeep_node_libvirt_up{node="node1"} 0
            # HELP vmkeep_node_watchdog What would reset this host: 1 for the state that it is in
            # TYPE vmkeep_node_watchdog gauge
            vmkeep_node_watchdog{node="node1",state="idle"} 0
            vmkeep_node_watchdog{node="node1",state="armed"} 1
            vmkeep_node_watchdog{node="node1",state="unusable"} 0
            # HELP vmkeep_node_renewal_age_seconds Since the last renewal that the store took was sent
            # TYPE vmkeep_node_renewal_age_seconds gauge
            vmkeep_node_renewal_age_seconds{node="node1"} AGE
            # EOF
        "#]],
    )
    .await;
}

#[tokio::test]
async fn keys_and_pictures() {
    let bed = Bed::running().await;
    let path = format!("/n/vms/{VM}/sendkey");
    bed.check(Method::POST, &path, r#"{"keys":["leftctrl","leftalt","delete"]}"#, expect!["200 null"]).await;
    bed.check(Method::POST, &path, r#"{"keys":["banana"]}"#, expect!["422 there is no key 'banana'"]).await;
    bed.check(Method::POST, &path, r#"{"keys":[]}"#, expect!["422 0 keys: 1 to 16 can be pressed together"]).await;
    bed.check(
        Method::POST,
        &path,
        r#"{"key":["a"]}"#,
        expect!["422 the body does not parse: unknown field `key`, expected `keys` at line 1 column 6"],
    )
    .await;
    assert!(bed.hv.calls().iter().any(|call| call.starts_with("send_keys")), "{:?}", bed.hv.calls());
    let (status, picture) = bed.call(Method::GET, &format!("/n/vms/{VM}/screenshot"), "").await;
    assert_eq!((status.as_u16(), &picture[..2]), (200, "P6"));
}

#[tokio::test]
async fn a_program_runs_in_the_guest() {
    let bed = Bed::running().await;
    let path = format!("/n/vms/{VM}/exec");
    let run = r#"{"command":["uptime"],"timeout":"1s"}"#;
    bed.check(Method::POST, &path, run, expect!["409 Guest agent is not responding: QEMU guest agent is not connected"]).await;
    bed.hv.set_agent(id(), AgentLink::Up).expect("an agent");
    bed.hv.set_agent_reply(id(), "guest-exec", r#"{"return":{"pid":42}}"#).expect("a reply");
    bed.hv.set_agent_reply(id(), "guest-exec-status", r#"{"return":{"exited":false}}"#).expect("a reply");
    bed.check(Method::POST, &path, run, expect!["409 the program did not end within 1 s; it still runs in the guest as process 42"]).await;
    bed.hv
        .set_agent_reply(id(), "guest-exec-status", r#"{"return":{"exited":true,"exitcode":1,"out-data":"dXA=","err-data":"aG0="}}"#)
        .expect("a reply");
    bed.check(Method::POST, &path, run, expect![[r#"200 {"exit_code":1,"signal":null,"stdout":"up","stderr":"hm","truncated":false}"#]])
        .await;
    bed.hv.set_agent_reply(id(), "guest-exec", r#"{"return":[]}"#).expect("a reply");
    bed.check(Method::POST, &path, run, expect!["409 the guest agent answered something strange: []"]).await;
}

#[tokio::test]
async fn addresses_have_a_nic_and_a_source() {
    let bed = Bed::new().await;
    let path = format!("/n/vms/{VM}/addresses");
    bed.check(Method::GET, &path, "", expect!["200 []"]).await;
    bed.hv.start(id()).await.expect("started");
    let address = |mac: &str, address: &str, source| GuestAddress {
        mac: mac.into(),
        address: address.parse().expect("an address"),
        prefix: 24,
        source,
    };
    let found = vec![
        address("52:54:00:00:00:01", "10.0.0.5", AddressSource::Lease),
        address("aa:00:00:00:00:09", "10.0.0.9", AddressSource::Agent),
    ];
    bed.hv.set_addresses(id(), found).expect("addresses");
    bed.check(
        Method::GET,
        &path,
        "",
        expect![[r#"200 [{"nic":null,"mac":"aa:00:00:00:00:09","address":"10.0.0.9/24","source":"agent"},{"nic":"lan","mac":"52:54:00:00:00:01","address":"10.0.0.5/24","source":"lease"}]"#]],
    )
    .await;
}

#[tokio::test]
async fn logs_of_both_kinds() {
    let bed = Bed::new().await;
    std::fs::write(bed.dir.path().join("logs/web.log"), "one\ntwo\n").expect("a log");
    std::fs::write(bed.dir.path().join("qemu/web.log"), "qemu-system-x86_64: no\n").expect("a log");
    bed.check(
        Method::GET,
        &format!("/n/vms/{VM}/logs?lines=1"),
        "",
        expect![[r#"
        200 two
    "#]],
    )
    .await;
    bed.check(
        Method::GET,
        &format!("/n/vms/{VM}/logs?source=qemu"),
        "",
        expect![[r#"
        200 qemu-system-x86_64: no
    "#]],
    )
    .await;
    bed.check(
        Method::GET,
        &format!("/n/vms/{VM}/logs?source=kernel"),
        "",
        expect!["422 there is no log 'kernel'; sources are serial and qemu"],
    )
    .await;
    bed.check(Method::GET, &format!("/n/vms/{VM}/logs?lines=0"), "", expect!["422 0 lines: 1 to 10000 can be read"]).await;
}

#[tokio::test]
async fn a_log_is_read_as_it_grows() {
    let bed = Bed::new().await;
    let log = bed.dir.path().join("logs/web.log");
    std::fs::write(&log, "one\ntwo\n").expect("a log");
    let request = Request::builder().uri(format!("/n/vms/{VM}/logs?lines=1&follow=true")).body(Body::empty()).expect("a request");
    let response = bed.router.clone().oneshot(request).await.expect("a router answers");
    let mut pieces = response.into_body().into_data_stream();
    let mut next = async || String::from_utf8(pieces.next().await.expect("it goes on").expect("it reads").to_vec()).expect("text");
    assert_eq!(next().await, "two\n");
    std::fs::OpenOptions::new()
        .append(true)
        .open(&log)
        .and_then(|mut log| std::io::Write::write_all(&mut log, b"three\n"))
        .expect("written");
    assert_eq!(next().await, "three\n");
}

#[tokio::test]
async fn domains_ours_and_foreign() {
    let bed = Bed::running().await;
    bed.check(
        Method::GET,
        "/n/domains",
        "",
        expect![[r#"200 [{"uuid":"00000000-0000-4000-8000-000000000002","name":"other","state":"off","ours":false},{"uuid":"00000000-0000-4000-8000-000000000001","name":"web","state":"running","ours":true}]"#]],
    )
    .await;
    let (status, xml) = bed.call(Method::GET, &format!("/n/vms/{VM}/xml"), "").await;
    assert!(status.is_success() && xml.contains("<name>web</name>"), "{xml}");
    bed.check(Method::GET, "/n/domains/nobody/adoption", "", expect!["404 there is no libvirt domain 'nobody'"]).await;
    let (status, own) = bed.call(Method::GET, "/n/domains/web/adoption", "").await;
    assert!(status.is_success(), "adopt --disks asks for it: {own}");
    assert!(serde_json::from_str::<AdoptionProposal>(&own).expect("a proposal").ours);
    let (status, proposal) = bed.call(Method::GET, "/n/domains/other/adoption", "").await;
    assert!(status.is_success(), "{proposal}");
    let proposal: AdoptionProposal = serde_json::from_str(&proposal).expect("a proposal");
    assert_eq!((proposal.name.as_str(), proposal.running, proposal.ours), ("other", false, false));
}

#[tokio::test]
async fn counters_as_json_and_for_prometheus() {
    let bed = Bed::running().await;
    let (_, stats) = bed.call(Method::GET, "/n/stats", "").await;
    let stats: Vec<vmkeep_api::body::VmStats> = serde_json::from_str(&stats).expect("stats");
    assert_eq!(stats.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["web"]);
    assert_eq!(stats[0].memory_bytes, 128 << 20);
    let (_, text) = bed.call(Method::GET, "/n/metrics", "").await;
    let labels = format!("{{vm=\"web\",project=\"shop\",id=\"{VM}\"}}");
    assert!(text.contains(&format!("vmkeep_vm_running{labels} 1\n")), "{text}");
    assert!(text.contains(&format!("vmkeep_vm_memory_bytes{labels} 134217728\n")), "{text}");
    assert!(text.contains("vmkeep_node_libvirt_up{node=\"node1\"} 1\n"), "{text}");
    assert!(text.contains("vmkeep_node_watchdog{node=\"node1\",state=\"armed\"} 1\n"), "{text}");
    assert!(text.contains("vmkeep_node_renewal_age_seconds{node=\"node1\"} "), "{text}");
    assert!(!text.contains("other"), "foreign domains are not ours to count:\n{text}");
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (_, value) = line.rsplit_once(' ').expect("a value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke() {
    let bed = Bed::new().await;
    let (status, made) = bed.call(Method::POST, "/n/uploads", "").await;
    assert_eq!(status, StatusCode::OK, "{made}");
    let made: vmkeep_api::body::UploadCreated = serde_json::from_str(&made).expect("an upload");
    let path = format!("/n/uploads/{}", made.upload);
    let have = |n: u64| format!(r#"{{"upload":"{}","have":{n}}}"#, made.upload);

    assert_eq!(bed.call(Method::PUT, &format!("{path}?offset=0"), "first ").await.1, have(6));
    bed.check(Method::PUT, &format!("{path}?offset=0"), "again", expect!["409 the upload has 6 bytes; it goes on there and not at 0"])
        .await;
    let breaks = futures_util::stream::iter([Ok("half"), Err(std::io::Error::other("the line broke"))]);
    let (status, _) = bed.call(Method::PUT, &format!("{path}?offset=6"), Body::from_stream(breaks)).await;
    assert_eq!(status.as_u16(), 503);
    assert_eq!(bed.call(Method::GET, &path, "").await.1, have(10), "what arrived is kept");
    assert_eq!(bed.call(Method::PUT, &format!("{path}?offset=10"), " done").await.1, have(15));

    let file = bed.dir.path().join(format!("pool/staging/upload-{}", made.upload));
    assert_eq!(std::fs::read_to_string(&file).expect("a file"), "first half done");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("a file").permissions());
    assert_eq!(mode & 0o777, 0o600);

    bed.check(Method::PUT, "/n/uploads/..%2f..%2fetc?offset=0", "x", expect!["422 '../../etc' is not an upload's id"]).await;
    bed.check(Method::GET, &format!("/n/uploads/{VM}"), "", expect!["404 there is no upload '00000000-0000-4000-8000-000000000001'"]).await;
    bed.check(Method::PUT, &path, "x", expect!["422 the query does not parse: Failed to deserialize query string: missing field `offset`"])
        .await;
    let huge =
        Request::put(format!("{path}?offset=15")).header("content-length", "99999999999999999").body(Body::from("x")).expect("a request");
    assert_eq!(bed.router.clone().oneshot(huge).await.expect("an answer").status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(bed.call(Method::DELETE, &path, "").await.0, StatusCode::OK);
    assert!(!file.exists());
    assert_eq!(bed.call(Method::DELETE, &path, "").await.0, StatusCode::NOT_FOUND);
    bed.check(Method::POST, "/n/uploads?pool=fast", "", expect!["404 there is no pool on this node 'fast'"]).await;
}

#[tokio::test]
async fn an_image_is_streamed_whole() {
    let bed = Bed::new().await;
    let images = bed.dir.path().join("pool/images");
    std::fs::create_dir_all(&images).expect("a folder");
    let bytes = "qcow2 ".repeat(200_000);
    std::fs::write(images.join(format!("{VM}.qcow2")), &bytes).expect("an image");
    let (status, body) = bed.call(Method::GET, &format!("/n/images/{VM}/content?pool=default"), "").await;
    assert_eq!((status.as_u16(), body.len()), (200, bytes.len()));
    assert!(body == bytes);
    bed.check(
        Method::GET,
        &format!("/n/images/{FOREIGN}/content"),
        "",
        expect!["404 cannot read the image 00000000-0000-4000-8000-000000000002: No such file or directory (os error 2)"],
    )
    .await;
}

#[tokio::test]
async fn what_goes_along_is_for_the_heir_alone() {
    let bed = Bed::new().await;
    let pool = bed.dir.path().join("pool");
    std::fs::create_dir_all(pool.join("staging")).expect("a folder");
    std::fs::write(pool.join(format!("{VM}.raw")), vec![5; 70_000]).expect("a disk");
    std::fs::write(pool.join("staging/same-1"), "").expect("a mark");
    let mut told = String::new();
    for (member, path) in [
        (None, String::new()),
        (Some("node3"), String::new()),
        (Some("node3"), format!("/volumes/{VM}")),
        (Some("node2"), String::new()),
        (Some("node2"), format!("/volumes/{FOREIGN}")),
        (Some("node2"), "/nvram".into()),
        (Some("node3"), "/tpm".into()),
        (Some("node2"), "/tpm".into()),
        (Some("node2"), "/same?pool=default&file=same-1".into()),
        (Some("node2"), "/same?pool=default&file=same-2".into()),
        (Some("node2"), "/same?pool=default&file=../default".into()),
        (Some("node3"), "/same?pool=default&file=same-1".into()),
    ] {
        let mut request = Request::builder().uri(format!("/n/moves/{VM}{path}")).body(Body::empty()).expect("a request");
        if let Some(member) = member {
            request.extensions_mut().insert(super::Member(Name::known(member)));
        }
        let response = bed.router.clone().oneshot(request).await.expect("an answer");
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body");
        let body: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        let said = body["detail"].as_str().map_or_else(|| body.to_string(), str::to_owned);
        told += &format!("{} {path}: {status} {said}\n", member.unwrap_or("nobody"));
    }
    expect![[r#"
        nobody : 403 only another node asks for this, by its certificate
        node3 : 403 not to you
        node3 /volumes/00000000-0000-4000-8000-000000000001: 403 not to you
        node2 : 200 {"nvram":null,"volumes":{"00000000-0000-4000-8000-000000000001":70000}}
        node2 /volumes/00000000-0000-4000-8000-000000000002: 404 there is no volume of the VM '00000000-0000-4000-8000-000000000002'
        node2 /nvram: 404 there is no UEFI variables of the VM 'web1'
        node3 /tpm: 403 not to you
        node2 /tpm: 404 there is no TPM state of the VM 'web1'
        node2 /same?pool=default&file=same-1: 200 true
        node2 /same?pool=default&file=same-2: 200 false
        node2 /same?pool=default&file=../default: 422 file: letters, digits and - only
        node3 /same?pool=default&file=same-1: 403 not to you
    "#]]
    .assert_eq(&told);
    let mut request = Request::builder().uri(format!("/n/moves/{VM}/volumes/{VM}")).body(Body::empty()).expect("a request");
    request.extensions_mut().insert(super::Member(Name::known("node2")));
    let response = bed.router.clone().oneshot(request).await.expect("an answer");
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body");
    let mut writer = crate::pool::wire::Writer::into_file(tempfile::tempfile().expect("a file"));
    assert_eq!(writer.take(&bytes).expect("pieces"), 70_000);
    assert_eq!(writer.end().expect("whole").metadata().expect("a look").len(), 70_000);
}

#[tokio::test]
async fn the_host_is_checked_and_its_guests_shut_down() {
    let bed = Bed::new().await;
    let (_, check) = bed.call(Method::GET, "/n/host/check", "").await;
    let check: vmkeep_api::body::HostCheck = serde_json::from_str(&check).expect("a check");
    assert!(check.rows.len() > 15);
    bed.check(Method::POST, "/n/guests/shutdown", "", expect!["200 null"]).await;
    bed.check(Method::POST, "/n/guests/shutdown?why=reboot", "", expect!["200 null"]).await;
    bed.check(Method::POST, "/n/guests/shutdown?why=boredom", "", expect!["422 the query does not parse: Failed to deserialize query string: why: unknown variant `boredom`, expected `shutdown` or `reboot`"]).await;
    assert_eq!(bed.guests.0.load(Ordering::SeqCst), 2);
    bed.check(Method::POST, "/n/guests/resume", "", expect!["409 nothing was shut down"]).await;
}
