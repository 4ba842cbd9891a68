//! libvirt and QEMU in the suite. The test starts itself again inside a namespace host, so that sockets, logs and processes are
//! where the code under test looks for them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmkeep_agent::domain::GuestCpus;
use vmkeep_agent::hypervisor::libvirt::LibvirtHypervisor;
use vmkeep_agent::hypervisor::{HvError, Hypervisor};
use vmkeep_agent::net;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkSpec;

use crate::stand::{NETWORK, Stand, network_xml, running};
use crate::suite;

const URI: &str = "qemu:///system";
const NSHOST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/lab/nshost");
const TINYGUEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/lab/tinyguest");
/// Set for the second run, inside: the guest's folder.
const INSIDE: &str = "VMKEEP_TEST_GUEST";
const LIBVIRTD_PID: &str = "/run/libvirt/libvirtd.pid";

/// Takes the host down even when the test fails.
struct HostDown<'a>(&'a str);

impl Drop for HostDown<'_> {
    fn drop(&mut self) {
        let down = Command::new(NSHOST).args(["down", self.0]).status();
        assert!(down.is_ok_and(|s| s.success()), "the host {} stays", self.0);
    }
}

/// Runs `body` in a host of its own; `test` is the name of the calling test.
fn inside(name: &str, test: &str, body: impl AsyncFnOnce(RealStand)) {
    if let Ok(guest) = std::env::var(INSIDE) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        return runtime.block_on(async { body(RealStand::connect(guest).await).await });
    }
    if std::env::var("VMKEEP_SKIP_LAB").is_ok_and(|v| v == "1") {
        eprintln!("left out: VMKEEP_SKIP_LAB=1");
        return;
    }
    let name = format!("{name}-{}", std::process::id());
    let guest = Command::new(TINYGUEST).stderr(Stdio::inherit()).output().expect("tinyguest runs");
    assert!(guest.status.success(), "no guest: see above (packages: scripts/packages.sh test)");
    let _down = HostDown(&name);
    let up = Command::new(NSHOST).args(["up", &name, &std::process::id().to_string()]).status().expect("nshost runs");
    assert!(up.success(), "no host: see above (it needs root and scripts/packages.sh test)");
    let again = Command::new(NSHOST)
        .args(["exec", &name])
        .arg(std::env::current_exe().expect("a test binary"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, String::from_utf8_lossy(&guest.stdout).trim())
        .status()
        .expect("nshost runs");
    assert!(again.success(), "{test} failed inside the host: see above");
}

struct RealStand {
    hv: Arc<LibvirtHypervisor>,
    guest: String,
}

impl RealStand {
    async fn connect(guest: String) -> Self {
        let hv = LibvirtHypervisor::connect(URI).expect("a valid URI");
        hv.wait_connected(Duration::from_secs(60)).await.expect("libvirt of the host answers");
        Self { hv, guest }
    }
}

fn signal(pid_file: &str, signal: nix::sys::signal::Signal) -> i32 {
    let pid: i32 = std::fs::read_to_string(pid_file).expect(pid_file).trim().parse().expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("it lives");
    pid
}

impl Stand for RealStand {
    fn hv(&self) -> Arc<dyn Hypervisor> {
        self.hv.clone()
    }

    fn guest(&self) -> String {
        self.guest.clone()
    }

    fn kill_qemu(&self, name: &str, _: VmId) {
        signal(&format!("/run/libvirt/qemu/{name}.pid"), nix::sys::signal::SIGKILL);
    }

    fn terminate_qemu(&self, name: &str, _: VmId) {
        signal(&format!("/run/libvirt/qemu/{name}.pid"), nix::sys::signal::SIGTERM);
    }

    fn break_libvirt(&self) {
        let pid = signal(LIBVIRTD_PID, nix::sys::signal::SIGKILL);
        // Its place must be free before a new one starts.
        let began = Instant::now();
        let gone = || std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |s| s.contains(") Z "));
        while !gone() && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn mend_libvirt(&self) {
        let started = Command::new("libvirtd").args(["-d", "-p", LIBVIRTD_PID]).stdin(Stdio::null()).status();
        assert!(started.expect("libvirtd runs").success());
    }
}

#[test]
fn real_libvirt_behaves() {
    inside("hv", "real::real_libvirt_behaves", async |stand| suite::all(&stand).await);
}

/// A libvirtd that hangs: calls end by their deadline, and all is well when it goes on.
#[test]
fn real_libvirt_may_hang() {
    inside("hang", "real::real_libvirt_may_hang", async |stand| {
        stand.hv.ensure_network(NETWORK, &network_xml(99)).await.expect("a network");
        let vm = running(&stand, "h1").await;
        signal(LIBVIRTD_PID, nix::sys::signal::SIGSTOP);
        let began = Instant::now();
        let looks = futures_util::future::join_all((0..30).map(|_| stand.hv.find(vm))).await;
        assert!(looks.iter().all(|l| matches!(l, Err(HvError::TimedOut { call: "find", .. }))), "{looks:?}");
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        signal(LIBVIRTD_PID, nix::sys::signal::SIGCONT);
        assert_eq!(stand.hv.find(vm).await.expect("it goes on").name, "h1");
        stand.hv.destroy(vm).await.expect("destroy");

        // Its end closes its connections, one of events and four of calls.
        let before = suite::open_files();
        drop(stand);
        let began = Instant::now();
        while suite::open_files() + 5 > before && began.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(suite::open_files() + 5 <= before, "{before} files before, {} after", suite::open_files());
    });
}

/// A network of ours stays as it is when it is ensured again, IPv6 included.
#[test]
fn real_libvirt_takes_our_network() {
    inside("net", "real::real_libvirt_takes_our_network", async |stand| {
        let spec: NetworkSpec = serde_json::from_value(serde_json::json!({"name": "default"})).expect("a network");
        net::ensure(&*stand.hv, &Name::known("default"), &spec).await.expect("made");
        let first = stand.hv.network_xml("vmkeep-default").await.expect("look").expect("it is there");
        let carried = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
        // A namespace without IPv6 has no such folder.
        if Path::new("/proc/sys/net/ipv6/conf/all").exists() {
            assert!(first.contains("<ip family='ipv6' address='fd") && first.contains("<nat ipv6='yes'>"), "{first}");
            assert!(carried.lines().any(|l| l.starts_with("fd") && l.ends_with("vmk0")), "{carried}");
        }
        net::ensure(&*stand.hv, &Name::known("default"), &spec).await.expect("again");
        assert_eq!(stand.hv.network_xml("vmkeep-default").await, Ok(Some(first)));
        net::remove(&*stand.hv, &Name::known("default"), &spec).await.expect("removed");
    });
}

/// Which CPUs guests can have, asked about guests that are emulated: those with KVM are asked about by the same call.
#[test]
fn real_libvirt_tells_which_cpus_guests_can_have() {
    inside("cpu", "real::real_libvirt_tells_which_cpus_guests_can_have", async |stand| {
        let hv = &*stand.hv;
        let capabilities = hv.domain_capabilities("qemu", "q35").await.expect("capabilities");
        let cpus = GuestCpus::learn(hv, &capabilities).await.expect("they parse");
        assert!(!cpus.own.is_empty() && cpus.models_without.contains_key(&cpus.own), "{cpus:?}");
        let disabled = &cpus.models_without[&cpus.own];
        assert!(cpus.features.contains("sse2") && cpus.features.is_disjoint(disabled), "{cpus:?}");

        let model = |name: &str| format!("<cpu mode='custom' match='exact'><model>{name}</model></cpu>");
        let whole = hv.expand_cpu("qemu", &model("Nehalem")).await.expect("a model of libvirt's");
        assert!(whole.contains("<feature policy='require' name='sse4.2'/>") && !whole.contains("name='avx'"), "{whole}");
        for (kind, cpu, words) in [
            ("qemu", "<cpu".to_owned(), "Couldn't find end of Start Tag cpu"),
            ("qemu", "<domain/>".to_owned(), "cpu"),
            ("qemu", model("Unheard-Of"), "Unknown CPU model Unheard-Of"),
            ("unheard-of", model("Nehalem"), "unheard-of"),
            ("qemu\0", model("Nehalem"), "zero byte"),
        ] {
            let refused = hv.expand_cpu(kind, &cpu).await;
            assert!(matches!(&refused, Err(HvError::Refused(why)) if why.contains(words)), "{kind} {cpu}: {refused:?}");
        }
    });
}

/// An older libvirt says of a model only that it cannot be had: what it lacks is found by comparing, and is what a newer one names.
#[test]
fn real_libvirt_that_names_no_blockers_is_asked_model_by_model() {
    inside("cpus", "real::real_libvirt_that_names_no_blockers_is_asked_model_by_model", async |stand| {
        let hv = &*stand.hv;
        let capabilities = hv.domain_capabilities("qemu", "q35").await.expect("capabilities");
        let begin = |part: &str| part.split_once("</blockers>").map_or(part, |(_, rest)| rest).to_owned();
        let silent: String = capabilities.split("<blockers").map(begin).collect();
        assert!(capabilities.contains("</blockers>") && !silent.contains("blockers"), "{silent}");
        let named = GuestCpus::learn(hv, &capabilities).await.expect("they parse");
        let compared = GuestCpus::learn(hv, &silent).await.expect("they parse");
        assert_eq!((&named.own, &named.features), (&compared.own, &compared.features));
        let both = compared.models_without.iter().filter_map(|(model, found)| Some((model, found, named.models_without.get(model)?)));
        let both: Vec<_> = both.collect();
        assert!(both.len() > 10, "{compared:?}");
        for (model, found, named) in &both {
            assert!(!found.is_disjoint(named), "{model} lacks {named:?}, found {found:?}");
        }
        let whole = both.iter().filter(|(_, found, named)| found.is_superset(named)).count();
        assert!(whole * 4 > both.len() * 3, "only {whole} of {} are found to lack all that libvirt names", both.len());
    });
}

/// Where there is no libvirt at all the hypervisor is there, and says why nothing works.
#[tokio::test]
async fn no_libvirt_is_no_panic() {
    let nowhere = tempfile::tempdir().expect("a folder");
    let socket = nowhere.path().join("sock");
    let hv = LibvirtHypervisor::connect(&format!("qemu+unix:///system?socket={}", socket.display())).expect("connecting goes on");
    let why = hv.wait_connected(Duration::from_millis(800)).await.expect_err("nobody is there");
    assert!(matches!(&why, HvError::Disconnected(words) if words.contains("Failed to connect")), "{why:?}");
    assert!(matches!(hv.list().await, Err(HvError::Disconnected(_))));
    assert!(Path::new(NSHOST).exists());
}
