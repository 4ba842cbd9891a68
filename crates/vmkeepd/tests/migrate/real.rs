//! The same with libvirt and QEMU: two test hosts on one switch (`tests/lab/nshost`), their libvirts reached by their sockets.
//! Needs root and `scripts/packages.sh test`, and fails without them unless VMKEEP_SKIP_LAB=1 leaves it out on purpose.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::broadcast::Receiver;
use vmkeep_agent::hypervisor::fake::Wire;
use vmkeep_agent::hypervisor::libvirt::LibvirtHypervisor;
use vmkeep_agent::hypervisor::{ConsoleStream, HvEvent, Lifecycle};
use vmkeep_types::ids::VmId;
use vmkeep_types::migration::{MigrateOptions, MigrationAddress};
use vmkeep_types::name::Name;

use super::cluster::{Cluster, Machine};
use super::ticks;

const NSHOST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/lab/nshost");
const TINYGUEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/lab/tinyguest");
const PATIENCE: Duration = Duration::from_secs(60);
/// A line typed while the guest arrives may be lost.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// The longest wait for a tick while a guest moves, on average.
const GAP_MEAN_MAX: Duration = Duration::from_secs(1);

/// Two hosts on a switch; they go with this value.
struct Lab {
    names: Vec<String>,
    guest: String,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new(NSHOST).args(["down", name]).status();
        }
    }
}

fn nshost(args: &[&str], shared: &Path) {
    let done = Command::new(NSHOST).args(args).env("VMKEEP_LAB_SHARED", shared).stdin(Stdio::null()).status().expect("nshost runs");
    assert!(done.success(), "nshost {args:?}: see above (it needs root and scripts/packages.sh test)");
}

fn folder(host: &str) -> PathBuf {
    // SAFETY: a plain system call.
    let uid = unsafe { libc::getuid() };
    let lab = std::env::var("VMKEEP_LAB").map_or_else(
        |_| PathBuf::from(std::env::var("XDG_RUNTIME_DIR").unwrap_or_else(|_| "/tmp".into())).join(format!("vmkeep-lab-{uid}")),
        PathBuf::from,
    );
    lab.join(host)
}

impl Lab {
    /// None: left out on purpose.
    fn up(name: &str, shared: &Path) -> Option<Self> {
        if std::env::var("VMKEEP_SKIP_LAB").is_ok_and(|v| v == "1") {
            eprintln!("left out: VMKEEP_SKIP_LAB=1");
            return None;
        }
        let guest = Command::new(TINYGUEST).stderr(Stdio::inherit()).output().expect("tinyguest runs");
        assert!(guest.status.success(), "no guest: see above (packages: scripts/packages.sh test)");
        let me = std::process::id().to_string();
        let names: Vec<String> = ["sw", "a", "b"].iter().map(|part| format!("{name}-{part}-{me}")).collect();
        let lab = Self { names, guest: String::from_utf8_lossy(&guest.stdout).trim().to_owned() };
        nshost(&["switch", &lab.names[0], &me], shared);
        for (host, address) in lab.names[1..].iter().zip(["10.77.0.1/24", "10.77.0.2/24"]) {
            nshost(&["up", host, &me], shared);
            nshost(&["link", host, &lab.names[0], address], shared);
        }
        Some(lab)
    }

    async fn machine(&self, which: usize) -> Machine {
        let socket = folder(&self.names[which]).join("run/libvirt/libvirt-sock");
        let hv = LibvirtHypervisor::connect(&format!("qemu+unix:///system?socket={}", socket.display())).expect("a URI");
        hv.wait_connected(PATIENCE).await.expect("libvirt of the host answers");
        let address = format!("10.77.0.{which}");
        Machine {
            hv,
            fake: None,
            address: MigrationAddress { connect: format!("qemu+tcp://{address}/system"), data: format!("tcp://{address}") },
        }
    }

    async fn cluster(&self, pool: &Path, shared: bool) -> Cluster {
        let (a, b) = (self.machine(1).await, self.machine(2).await);
        Cluster::new(pool, shared, Wire::default(), a, b).await
    }

    /// The tiny guest by its kernel, with a disk.
    async fn guest(&self, cluster: &Cluster, tpm: bool) -> VmId {
        let os = |element: &str, text: &str| json!({"op": "add", "path": "os", "value": format!("<{element}>{text}</{element}>")});
        let patches = [
            os("kernel", &format!("{}/vmlinuz", self.guest)),
            os("initrd", &format!("{}/initrd", self.guest)),
            os("cmdline", "console=ttyS0 quiet"),
        ];
        let disks = json!([{"name": "root", "empty": true, "size": "16M"}]);
        cluster.vm(json!({"memory": "128M", "tpm": tpm, "disks": disks, "libvirt_xml": patches})).await
    }
}

/// Types until the guest answers; seconds that it says to be up.
async fn uptime(console: &mut ConsoleStream) -> f64 {
    let begin = Instant::now();
    let mut heard = String::new();
    while begin.elapsed() < PATIENCE {
        let _ = console.to_guest.send(b"read up rest </proc/uptime; echo up-$up-since\n".to_vec()).await;
        let asked = Instant::now();
        // It may tick meanwhile, so that there is never silence.
        while asked.elapsed() < ASK_AGAIN
            && let Ok(Some(bytes)) = tokio::time::timeout(Duration::from_secs(1), console.from_guest.recv()).await
        {
            heard += &String::from_utf8_lossy(&bytes);
            let said = heard.split("up-").filter_map(|part| part.split_once("-since")?.0.parse::<f64>().ok()).last();
            if let Some(seconds) = said {
                return seconds;
            }
        }
    }
    panic!("no answer at the console: {heard:?}");
}

async fn up(cluster: &Cluster, node: &str, vm: VmId) -> f64 {
    let mut console = cluster.hv(node).console(vm).await.expect("a console");
    uptime(&mut console).await
}

/// When the guest stood still last and when it went on.
async fn when(events: &mut Receiver<HvEvent>, wanted: Lifecycle) -> Instant {
    loop {
        match tokio::time::timeout(PATIENCE, events.recv()).await.expect("in time").expect("it keeps up") {
            HvEvent::Lifecycle { what, .. } if what == wanted => return Instant::now(),
            _ => {}
        }
    }
}

struct Measured {
    whole: Duration,
    pause: Duration,
    time: (Instant, Instant),
}

async fn measured(cluster: &Cluster, from: &str, to: &'static str) -> Measured {
    let (mut left, mut came) = (cluster.hv(from).events(), cluster.hv(to).events());
    let stood_still = tokio::spawn(async move { when(&mut left, Lifecycle::Suspended).await });
    let went_on = tokio::spawn(async move { when(&mut came, Lifecycle::Resumed).await });
    let begin = Instant::now();
    let options = MigrateOptions { to: Some(Name::known(to)), ..MigrateOptions::default() };
    let op = cluster.over(&cluster.migrate(options).await).await;
    let whole = begin.elapsed();
    assert_eq!(op.error, None);
    let pause = went_on.await.expect("told").saturating_duration_since(stood_still.await.expect("told"));
    let told = cluster.ending(&op).await;
    assert!(told.starts_with("Done"), "{told}");
    Measured { whole, pause, time: (begin, Instant::now()) }
}

fn virsh(lab: &Lab, which: usize, args: &[&str]) {
    let socket = folder(&lab.names[which]).join("run/libvirt/libvirt-sock");
    let uri = format!("qemu+unix:///system?socket={}", socket.display());
    let out = Command::new("virsh").args(["-q", "-c", &uri]).args(args).output().expect("virsh runs");
    assert!(out.status.success(), "virsh {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Of bare virsh, a copy of the same domain, there and back.
async fn bare(lab: &Lab, cluster: &Cluster, vm: VmId, rounds: usize) -> Vec<Duration> {
    let xml = cluster.hv("a").xml(vm, vmkeep_agent::hypervisor::XmlKind::Inactive).await.expect("xml");
    let cut = |xml: &str, from: &str, to: &str| match xml.find(from).and_then(|begin| Some((begin, begin + xml[begin..].find(to)?))) {
        Some((begin, end)) => format!("{}{}", &xml[..begin], &xml[end + to.len()..]),
        None => xml.to_owned(),
    };
    let other = VmId(uuid::Uuid::new_v4());
    let copy = cut(&xml, "<metadata>", "</metadata>")
        .replace(&vm.to_string(), &other.to_string())
        .replace("<name>web</name>", "<name>bare</name>");
    let copy = cut(&copy, "<log file=", "/>");
    let file = folder(&lab.names[1]).join("bare.xml");
    std::fs::write(&file, copy).expect("a file");
    virsh(lab, 1, &["create", &file.to_string_lossy()]);
    up(cluster, "a", other).await;
    let mut all = Vec::new();
    for _ in 0..rounds {
        for (which, to) in [(1, "10.77.0.2"), (2, "10.77.0.1")] {
            let begin = Instant::now();
            let (connect, data) = (format!("qemu+tcp://{to}/system"), format!("tcp://{to}"));
            virsh(lab, which, &["migrate", "--live", "--p2p", "--persistent", "--undefinesource", &other.to_string(), &connect, &data]);
            all.push(begin.elapsed());
        }
    }
    virsh(lab, 1, &["destroy", &other.to_string()]);
    virsh(lab, 1, &["undefine", "--nvram", &other.to_string()]);
    all
}

/// The one that so many of a hundred do not exceed.
fn percentile(all: &[Duration], percent: usize) -> Duration {
    let mut all = all.to_vec();
    all.sort();
    all[(all.len() * percent).div_ceil(100).max(1) - 1]
}

/// What migrations left behind on a host: ports of QEMU's that are listened at, and files of the pool.
fn left(lab: &Lab, which: usize, pool: &Path) -> String {
    let out = Command::new(NSHOST).args(["exec", &lab.names[which], "ss", "-Htln", "sport >= 49152"]).output().expect("nshost runs");
    assert!(out.status.success(), "ss: {}", String::from_utf8_lossy(&out.stderr));
    let files = std::fs::read_dir(pool).expect("the pool").filter(|entry| entry.as_ref().is_ok_and(|e| e.path().is_file())).count();
    format!("ports {:?}, files {files}", String::from_utf8_lossy(&out.stdout).trim())
}

fn soak_rounds() -> usize {
    if std::env::var("VMKEEP_TEST_ALL").is_ok_and(|v| v == "1") { 50 } else { 2 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_guest_goes_there_and_back_and_ticks_on() {
    let pool = tempfile::tempdir().expect("a folder");
    let Some(lab) = Lab::up("mig", pool.path()) else { return };
    let cluster = lab.cluster(pool.path(), true).await;
    let vm = lab.guest(&cluster, false).await;
    let mut console = cluster.hv("a").console(vm).await.expect("a console");
    let mut last = uptime(&mut console).await;
    console.to_guest.send(ticks::TELL.into()).await.expect("typed");
    uptime(&mut console).await;
    drop(console);
    let ticks = ticks::Watcher::of(["a", "b"].map(|node| cluster.serial_log(node, vm)).into());
    let (mut whole, mut pauses, mut times) = (Vec::new(), Vec::new(), Vec::new());
    let before = [1, 2].map(|which| left(&lab, which, pool.path()));
    for _ in 0..soak_rounds() {
        for (from, to) in [("a", "b"), ("b", "a")] {
            let one = measured(&cluster, from, to).await;
            whole.push(one.whole);
            pauses.push(one.pause);
            times.push(one.time);
            let now = up(&cluster, to, vm).await;
            assert!(now > last, "the guest goes on at {to}: {last} then {now}");
            last = now;
        }
    }
    assert_eq!([1, 2].map(|which| left(&lab, which, pool.path())), before, "nothing is left behind");
    let (gaps, ticked) = ticks.gaps(&times);
    cluster.over(&cluster.command("kill").await).await;
    let theirs = percentile(&bare(&lab, &cluster, vm, 2).await, 50);
    let ours = percentile(&whole, 50);
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    let mean = |all: &[Duration]| all.iter().sum::<Duration>() / u32::try_from(all.len()).expect("a few");
    let (gap, pause) = (mean(&gaps), mean(&pauses));
    let [p50, p95, longest] = [50, 95, 100].map(|percent| percentile(&pauses, percent));
    eprintln!(
        "{} migrations: {ours:.2?}, virsh migrate --live --p2p {theirs:.2?}, ratio {ratio:.2}; guest pause: mean {pause:.0?}, p50 {p50:.0?}, \
         p95 {p95:.0?}, longest {longest:.0?}; of {ticked} ticks the longest wait for one: mean {gap:.0?}, p95 {:.0?}, longest {:.0?}",
        whole.len(),
        percentile(&gaps, 95),
        percentile(&gaps, 100)
    );
    assert!(gap <= GAP_MEAN_MAX, "{gaps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_cut_in_the_middle_it_stays_whole() {
    let pool = tempfile::tempdir().expect("a folder");
    let Some(lab) = Lab::up("cut", pool.path()) else { return };
    let mut cluster = lab.cluster(pool.path(), true).await;
    // Its TPM comes along each time.
    let vm = lab.guest(&cluster, true).await;
    let first = up(&cluster, "a", vm).await;
    // Slow enough to be met in the middle.
    let slow =
        || MigrateOptions { to: Some(Name::known("b")), bandwidth: Some("4M".parse().expect("a size")), ..MigrateOptions::default() };
    let copying = async |cluster: &Cluster| {
        let op = cluster.migrate(slow()).await;
        cluster.until("it copies", async |c| c.op(&op).await.progress.is_some_and(|p| p.done > 0)).await;
        op
    };
    let op = copying(&cluster).await;
    nshost(&["cut", &lab.names[2]], pool.path());
    let told = cluster.op(&op).await.state;
    eprintln!("cable out: {told:?}");
    vmkeep_server::app::op::cancel(cluster.store.as_ref(), &super::cluster::ask(), &op.id.to_string()).await.expect("called off");
    nshost(&["join", &lab.names[2]], pool.path());
    let told = cluster.ending(&op).await;
    assert!(told.contains("runs on a by generation 1"), "{told}");
    for node in ["a", "b"] {
        let op = copying(&cluster).await;
        cluster.end(node).await;
        cluster.begin(node);
        let told = cluster.ending(&op).await;
        assert!(told.starts_with("Done; runs on b"), "agent of {node} killed: {told}");
        let back = MigrateOptions { to: Some(Name::known("a")), ..MigrateOptions::default() };
        let told = cluster.ending(&cluster.migrate(back).await).await;
        assert!(told.starts_with("Done; runs on a"), "{told}");
    }
    assert!(up(&cluster, "a", vm).await > first, "the same guest");
}
