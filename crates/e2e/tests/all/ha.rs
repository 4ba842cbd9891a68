//! Three hosts, and a highly available guest that ticks on a disk that all of them see: whatever befalls its host, it runs again on
//! another one, and never on two.

use std::path::PathBuf;

use vmkeep_e2e::cluster::{Cluster, Plan, Program, Signal, Watchdogs};
use vmkeep_e2e::ha::{Home, RECOVERED};
use vmkeep_e2e::host::{root, text};
use vmkeep_e2e::image::tiny;
use vmkeep_e2e::ticks::{self, Run};
use vmkeep_e2e::wait::until;
use vmkeep_e2e::witness::Witness;

use super::hello::{BOOT, manifest};

/// Far more than renewals are apart, far less than anybody is given up after.
const A_WHILE: std::time::Duration = std::time::Duration::from_secs(10);

/// The cluster, its guest, and where that has run until now.
struct Play {
    cluster: Cluster,
    witness: Witness,
    homes: Vec<Home>,
    disk: PathBuf,
    _shared: tempfile::TempDir,
}

impl Play {
    /// The guest runs and ticks, and its host would be reset.
    fn begin(name: &str) -> Self {
        let shared = tempfile::tempdir().expect("a folder");
        let more = format!(
            "pool = \"{}\"\npool_shared = true\nfence_agent_dir = \"{}\"",
            shared.path().display(),
            root().join("tests/lab").display()
        );
        let cluster = Cluster::planned(name, Plan { more: &more, shared: &[shared.path()], watchdogs: Watchdogs::There });
        cluster.host(0).ok(["image".as_ref(), "import".as_ref(), tiny().as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
        let witness = Witness::of(&cluster, "tick");
        let disks = "disks: [{name: root, image: tiny}, {name: log, empty: true, size: 8M}]\n";
        cluster.host(0).apply(&manifest("tick", &format!("run: always\nha: {{priority: 1}}\nnics: []\n{disks}")));
        let home = Home::of(&cluster.host(0).phase("tick", "running", BOOT)).expect("it runs");
        let volumes = cluster.host(0).json(["volume", "list", "-o", "json"]);
        let log = volumes.as_array().into_iter().flatten().find(|volume| volume["name"] == "tick-log").expect("its second disk");
        let disk = shared.path().join(format!("{}.qcow2", log["id"].as_str().expect("an id")));
        let play = Self { cluster, witness, homes: vec![home], disk, _shared: shared };
        play.until_ticks(1);
        play.until_armed(home);
        play
    }

    /// Each host's power can be cut.
    fn with_stonith(self) -> Self {
        for (n, member) in self.cluster.members.iter().enumerate() {
            let folder = member.host.lab_folder();
            let (plug, at) = (format!("plug={}", member.host.name), format!("ip={}", folder.parent().expect("the lab").display()));
            let node = format!("node{}", n + 1);
            self.cluster.host(0).ok(["node", "set", &node, "--fence", "nshost", &plug, &at]);
            self.cluster.host(0).ok(["ha", "fence-test", &node]);
        }
        self
    }

    fn home(&self) -> Home {
        *self.homes.last().expect("it has run")
    }

    fn until_armed(&self, home: Home) {
        until("its host is armed", RECOVERED, || {
            let told = self.cluster.host(self.cluster.beside(home.host)).ok(["ha", "check"]);
            if told.contains("watchdog") || told.contains("power") { Ok(()) } else { Err(format!("{told}\n{}", self.cluster.logs())) }
        });
    }

    /// Waits until so many boots have ticked, the last of them more than once.
    fn until_ticks(&self, boots: usize) -> Vec<Run> {
        until(&format!("{boots} boots have ticked"), RECOVERED, || {
            let runs = ticks::runs(&self.disk)?;
            let ticks = runs.get(boots - 1).is_some_and(|run| run.last.0 > run.first.0 + 1);
            if ticks { Ok(runs) } else { Err(format!("{runs:?}\n{}", self.cluster.logs())) }
        })
    }

    /// The guest's host suffers `harm`, is proved dead, and the guest goes on elsewhere.
    fn lost(&mut self, what: &str, proof: &str, harm: impl FnOnce(&mut Cluster, usize)) {
        let before = self.home();
        harm(&mut self.cluster, before.host);
        let asked = self.cluster.beside(before.host);
        let now = self.cluster.until_recovered(asked, "tick", before);
        assert_ne!(now.host, before.host, "{what}");
        assert_eq!(now.generation, before.generation + 1, "{what}");
        let death = self.cluster.death(asked, &before.node(), "tick");
        assert_eq!(death.proof, proof, "{what}");
        assert!(!self.cluster.host(before.host).has_power(), "{what}: it is proved dead, and lives");
        self.homes.push(now);
        let runs = self.until_ticks(self.homes.len());
        let [.., old, new] = runs.as_slice() else { unreachable!("two at least have ticked") };
        println!("{what}: {death}; {} s from the last tick to the next", new.first.1 - old.last.1);
    }

    /// The lost host boots again, and takes part.
    fn back(&mut self) {
        let asked = self.home().host;
        for (n, member) in self.cluster.members.iter_mut().enumerate() {
            if n != asked && !member.host.has_power() {
                member.host.join();
                member.power_on();
            }
        }
        self.cluster.until_nodes(asked, "online online online");
        self.until_armed(self.home());
    }

    /// Nothing happens to the guest: it ticks on where it is.
    fn stays(&self, what: &str) {
        let runs = self.until_ticks(self.homes.len());
        let last = runs.last().expect("one").last.0;
        let runs = until(&format!("{what}: it ticks on"), RECOVERED, || {
            let runs = ticks::runs(&self.disk)?;
            if runs.last().is_some_and(|run| run.last.0 > last + 5) { Ok(runs) } else { Err(format!("{runs:?}")) }
        });
        assert_eq!(runs.len(), self.homes.len(), "{what}: {runs:?}");
    }

    /// Its host says that it runs, in the same right.
    fn is_told(&self) {
        let home = until("it is known to run", RECOVERED, || {
            let vm = self.cluster.host(self.cluster.beside(self.home().host)).vm("tick");
            Home::of(&vm).ok_or_else(|| vm["status"].to_string())
        });
        assert_eq!(home, self.home());
    }

    /// Who has written the disk is who had the right to.
    fn ends(self) {
        for life in self.witness.ends() {
            println!("host {} ran it as {} from {:.1?} to {:.1?}", life.host + 1, life.pid, life.first, life.last);
        }
        let runs = until("one has written after the other", RECOVERED, || ticks::runs(&self.disk));
        assert_eq!(runs.len(), self.homes.len(), "{runs:?} of {:?}", self.homes);
        for (run, home) in runs.iter().zip(&self.homes) {
            let folder = self.cluster.host(home.host).lab_folder().join("var/log/libvirt");
            let said = |log: &str, words: &str| {
                let out =
                    std::process::Command::new("grep").args(["-r", "-l", "-a", words]).arg(folder.join(log)).output().expect("grep runs");
                text(&out.stdout)
            };
            println!("generation {} on {}: {run}", home.generation, home.node());
            assert_ne!(said("vmkeep", &format!("ticks as {}", run.boot)), "", "{run} was not on {}", home.node());
            // A second QEMU would have found the lock of the first.
            assert_eq!(said("qemu", "Failed to get"), "", "a second QEMU was started on {}", home.node());
        }
    }
}

fn power_off(cluster: &mut Cluster, host: usize) {
    cluster.members[host].host.power_off();
}

fn cut(cluster: &mut Cluster, host: usize) {
    cluster.host(host).cut();
}

fn freeze(program: Program) -> impl FnOnce(&mut Cluster, usize) {
    move |cluster, host| cluster.members[host].signal(program, Signal::Stop)
}

#[test]
fn a_host_that_is_cut_off_loses_its_power_before_its_guest_runs_elsewhere() {
    let mut play = Play::begin("cut").with_stonith();
    play.lost("network cut, STONITH", "stonith", cut);
    play.ends();
}

#[test]
fn a_host_whose_agent_stands_still_is_reset_and_a_dead_leader_changes_nothing() {
    let mut play = Play::begin("dumb");
    play.lost("agent frozen, leader killed", "watchdog", |cluster, host| {
        let leader = cluster.leader();
        freeze(Program::Agent)(cluster, host);
        cluster.members[leader].kill_control();
    });
    play.ends();
}

/// All that is silence, one after the other; five minutes.
#[test]
fn a_silent_host_is_dead_before_its_guest_runs_elsewhere_at_length() {
    let mut play = Play::begin("long");
    play.lost("power off", "watchdog", power_off);
    play.back();
    play.lost("network cut", "watchdog", cut);
    play.back();
    play.lost("host frozen", "watchdog", |cluster, host| cluster.host(host).freeze());
    play.back();
    play.lost("fenced frozen", "watchdog", freeze(Program::Guard));
    play.ends();
}

/// The store loses its leader in the worst moment; libvirt, which no death hangs on, stands still and dies.
#[test]
fn libvirt_and_etcd_may_fail_at_length() {
    let mut play = Play::begin("fail");
    let at = play.home().host;
    play.cluster.members[at].signal(Program::Libvirt, Signal::Stop);
    std::thread::sleep(A_WHILE);
    play.stays("libvirtd frozen");
    play.cluster.members[at].signal(Program::Libvirt, Signal::Continue);
    play.stays("libvirtd goes on");
    play.is_told();
    play.cluster.members[at].signal(Program::Libvirt, Signal::Kill);
    play.stays("libvirtd killed");
    play.cluster.host(at).restart_libvirtd();
    play.stays("libvirtd restarted");
    play.is_told();

    play.lost("power off, etcd's leader killed", "watchdog", |cluster, host| {
        let leader = cluster.etcd_leader();
        power_off(cluster, host);
        if leader != host {
            cluster.members[leader].restart_etcd();
        }
    });
    play.ends();
}
