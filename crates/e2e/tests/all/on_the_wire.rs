//! A guest on a bridge moves between hosts of one wire: it keeps its MAC and its address, and the switch learns at once where it is. A host
//! that has all of the guest and is not its owner says nothing on the wire: QEMU announces the guest when it is resumed, not before, so the
//! switch need not be told again when the way was broken there.

use std::time::Duration;

use serde_json::Value;
use vmkeep_e2e::cluster::{Cluster, Plan, Program, Signal, Watchdogs};
use vmkeep_e2e::ha::{Home, RECOVERED};
use vmkeep_e2e::host::{Host, text};
use vmkeep_e2e::image::tiny;
use vmkeep_e2e::wait::until;

use super::hello::{BOOT, manifest, serial_says};

const ADDRESS: &str = "10.77.0.50";
/// 128 MiB of a guest take long enough to be met in the middle.
const SLOW: &str = "8M";

/// What QEMU calls a guest's memory when it sends it.
pub(super) const MEMORY: &str = "pc.ram";
/// It lies in the memory of every guest with a BIOS.
pub(super) const FIRMWARE: &str = "SeaBIOS";

/// Longer than QEMU's rounds of announcements take: 0.6 s.
const ROUNDS: Duration = Duration::from_secs(2);

/// RARP frames by the switch's port that they came in at; QEMU announces a NIC by them, and nobody else sends any.
const COUNT: &str = "add table bridge seen { chain in { type filter hook prerouting priority 0; policy accept; }; }";

/// The host's cable hangs on a bridge, which has the host's address.
fn has_bridge(host: &Host, address: &str) {
    let script = format!(
        "ip link add br0 type bridge forward_delay 0 && ip link set br0 up && ip link set lan0 master br0 &&
         ip addr del {address}/24 dev lan0 && ip addr add {address}/24 dev br0"
    );
    let out = host.exec(["sh", "-c", &script]);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

/// The wire, as the switch sees it.
struct Wire {
    cluster: Cluster,
    mac: String,
}

impl Wire {
    fn port(&self, host: usize) -> String {
        self.cluster.host(host).port()
    }

    /// Announcements of the guest that came from this host.
    fn announced(&self, host: usize) -> u64 {
        let told = self.cluster.switch.exec(["nft", "-j", "list", "chain", "bridge", "seen", "in"]);
        let told: Value = serde_json::from_str(&told).expect("JSON of nft");
        let rule = told["nftables"].as_array().into_iter().flatten().find(|one| one["rule"]["comment"] == self.port(host).as_str());
        let counters = rule.and_then(|one| one["rule"]["expr"].as_array()).into_iter().flatten();
        counters.filter_map(|expr| expr["counter"]["packets"].as_u64()).sum()
    }

    /// Where the switch would send a frame for the guest.
    fn is_learnt_at(&self, host: usize) -> bool {
        let table = self.cluster.switch.exec(["bridge", "fdb", "show", "br", "lan"]);
        let line = table.lines().find(|line| line.starts_with(&self.mac)).unwrap_or_default();
        line.contains(&format!("dev {} ", self.port(host)))
    }

    fn until_announced(&self, what: &str, host: usize, before: u64) {
        until(&format!("{what}: it is announced from host {}", host + 1), RECOVERED, || {
            let now = self.announced(host);
            if now > before { Ok(()) } else { Err(format!("{now} announcements\n{}", self.cluster.logs())) }
        });
    }

    /// The switch knows where it is, it has its MAC and its address still, and answers from there.
    fn is_there(&self, what: &str, host: usize) {
        assert!(self.is_learnt_at(host), "{what}: {}", self.cluster.switch.exec(["bridge", "fdb", "show", "br", "lan"]));
        let ping = self.cluster.host(2).exec(["busybox", "ping", "-c", "1", "-W", "5", ADDRESS]);
        assert!(ping.status.success(), "{what}: {}", text(&ping.stdout));
        let asked = text(&self.cluster.host(2).exec(["ip", "neigh", "show", ADDRESS]).stdout);
        assert!(asked.contains(&self.mac), "{what}: {asked}");
        assert_eq!(nic(self.cluster.host(host)), self.mac, "{what}");
    }

    fn home(&self) -> Home {
        until("it runs", RECOVERED, || {
            let vm = self.cluster.host(2).vm("w");
            Home::of(&vm).ok_or_else(|| format!("{}\n{}", vm["status"], self.cluster.logs()))
        })
    }

    fn migrates(&self) -> Value {
        let all = self.cluster.host(2).json(["op", "list", "-o", "json"]);
        let moves = all.as_array().into_iter().flatten().filter(|op| op["kind"] == "vm.migrate");
        moves.max_by_key(|op| op["created_at"].to_string()).cloned().unwrap_or_default()
    }

    /// The other host's libvirt hangs while memory is copied, and dies when its QEMU has all of it.
    fn is_taken_back(&self, from: usize) {
        let to = 1 - from;
        let before = self.announced(to);
        self.cluster.host(2).ok(["vm", "migrate", "w", "--to", &format!("node{}", to + 1), "--bandwidth", SLOW, "--no-wait"]);
        until("it copies", RECOVERED, || {
            let op = self.migrates();
            if op["copying"]["done"].as_u64().is_some_and(|done| done > 0) { Ok(()) } else { Err(format!("{op}\n{}", self.cluster.logs())) }
        });
        self.cluster.members[to].signal(Program::Libvirt, Signal::Stop);
        until("all of it is there", RECOVERED, || {
            let told = text(&self.cluster.host(from).exec(["virsh", "-c", "qemu:///system", "domstate", "--reason", "w"]).stdout);
            if told.contains("paused (migrating)") { Ok(()) } else { Err(format!("{told}\n{}", self.cluster.logs())) }
        });
        std::thread::sleep(ROUNDS);
        self.cluster.members[to].signal(Program::Libvirt, Signal::Kill);
        until("the move has failed", RECOVERED, || {
            let op = self.migrates();
            if op["state"] == "failed" { Ok(()) } else { Err(format!("{op}\n{}", self.cluster.logs())) }
        });
        self.cluster.host(to).restart_libvirtd();
        assert_eq!(self.home().host, from);
        assert_eq!(self.announced(to), before, "who never was the owner says nothing");
        self.is_there("taken back", from);
    }
}

/// The MAC of the guest, as its QEMU has it.
fn nic(host: &Host) -> String {
    let told = host.virsh(["domiflist", "w"]);
    told.split_whitespace().find(|word| word.matches(':').count() == 5).unwrap_or_else(|| panic!("no NIC: {told}")).to_owned()
}

#[test]
fn a_guest_that_moves_is_found_at_once_where_it_is() {
    let shared = tempfile::tempdir().expect("a folder");
    let more = format!("pool = \"{}\"\npool_shared = true", shared.path().display());
    let cluster = Cluster::planned("wire", Plan { more: &more, shared: &[shared.path()], watchdogs: Watchdogs::None, ..Plan::default() });
    for n in 0..3 {
        has_bridge(cluster.host(n), &format!("10.77.0.{}", n + 1));
    }
    let range = format!("--dhcp-range={ADDRESS},{ADDRESS},1h");
    let words = ["dnsmasq", "-k", "--conf-file=/dev/null", "--port=0", "--leasefile-ro", "--pid-file=", "--interface=br0", &range];
    let mut dhcp = cluster.host(2).spawn("dhcp.log", &words);
    cluster.host(0).ok(["image".as_ref(), "import".as_ref(), tiny().as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
    cluster.host(0).ok(["network", "create", "lan", "--mode", "bridge", "--bridge", "br0"]);
    cluster.host(0).ok(["node", "cordon", "node2"]);
    cluster.host(0).ok(["node", "cordon", "node3"]);
    cluster.host(0).apply(&manifest("w", "run: always\nnics: [{network: lan}]\n"));
    assert_eq!(cluster.host(0).phase("w", "running", BOOT)["status"]["node"], "node1");
    cluster.host(0).ok(["node", "uncordon", "node2"]);
    // Each host looks every ten seconds whether it has a new bridge.
    until("the other host tells its bridge", BOOT, || {
        let told = cluster.host(0).ok(["vm", "explain", "w"]);
        if told.contains("there is no bridge br0") { Err(told) } else { Ok(()) }
    });
    serial_says(cluster.host(0), "w", &format!("w has {ADDRESS} on eth0"));

    let wire = Wire { mac: nic(cluster.host(0)), cluster };
    wire.cluster.switch.exec(["nft", COUNT]);
    for n in 0..2 {
        let port = wire.port(n);
        let rule = format!("add rule bridge seen in iifname {port} ether type 0x8035 ether saddr {} counter comment {port}", wire.mac);
        wire.cluster.switch.exec(["nft", &rule]);
    }
    wire.is_there("at first", 0);
    assert_eq!(wire.announced(0) + wire.announced(1), 0);
    let heard = wire.cluster.switch.hears(|| {
        wire.cluster.host(2).ok(["vm", "migrate", "w", "--to", "node2"]);
    });
    // These hosts have no certificates: all can be read here that `formed` finds nowhere.
    assert!(heard.has(MEMORY) && heard.has(FIRMWARE), "{} bytes were heard", heard.0.len());
    assert_eq!(wire.home().host, 1);
    assert_eq!(wire.announced(0), 0, "who has let go says nothing");
    wire.until_announced("moved", 1, 0);
    wire.is_there("moved", 1);
    wire.is_taken_back(1);
    dhcp.kill().expect("our child");
    dhcp.wait().expect("our child");
}
