//! A highly available guest that ticks on a disk that all hosts see, what befalls its host, and who has written the disk afterwards.

use std::path::PathBuf;

use vmkeep_e2e::cluster::{Cluster, Plan, Watchdogs};
use vmkeep_e2e::ha::{Death, Home, RECOVERED};
use vmkeep_e2e::host::{root, text};
use vmkeep_e2e::image::tiny;
use vmkeep_e2e::ticks::{self, Run};
use vmkeep_e2e::wait::until;
use vmkeep_e2e::witness::Witness;

use super::hello::{BOOT, manifest};

/// The cluster, its guest, and where that has run until now.
pub struct Play {
    pub cluster: Cluster,
    /// None while the guest is on its way.
    witness: Option<Witness>,
    /// Where each boot of the guest began.
    homes: Vec<Home>,
    /// Where it is.
    at: Home,
    disk: PathBuf,
    _shared: tempfile::TempDir,
}

impl Play {
    /// The guest runs and ticks, and its host would be reset.
    pub fn begin(name: &str) -> Self {
        Self::under(name, &[])
    }

    /// As [`Play::begin`], after `ha set` with these words.
    pub fn under(name: &str, set: &[&str]) -> Self {
        let shared = tempfile::tempdir().expect("a folder");
        let more = format!(
            "pool = \"{}\"\npool_shared = true\nfence_agent_dir = \"{}\"",
            shared.path().display(),
            root().join("tests/lab").display()
        );
        let cluster =
            Cluster::planned(name, Plan { more: &more, shared: &[shared.path()], watchdogs: Watchdogs::There, ..Plan::default() });
        if !set.is_empty() {
            cluster.host(0).ok(["ha", "set"].iter().chain(set));
        }
        cluster.host(0).ok(["image".as_ref(), "import".as_ref(), tiny().as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
        let witness = Some(Witness::of(&cluster, "tick"));
        let disks = "disks: [{name: root, image: tiny}, {name: log, empty: true, size: 8M}]\n";
        cluster.host(0).apply(&manifest("tick", &format!("run: always\nha: {{priority: 1}}\nnics: []\n{disks}")));
        let home = Home::of(&cluster.host(0).phase("tick", "running", BOOT)).expect("it runs");
        let volumes = cluster.host(0).json(["volume", "list", "-o", "json"]);
        let log = volumes.as_array().into_iter().flatten().find(|volume| volume["name"] == "tick-log").expect("its second disk");
        let disk = shared.path().join(format!("{}.qcow2", log["id"].as_str().expect("an id")));
        let play = Self { cluster, witness, homes: vec![home], at: home, disk, _shared: shared };
        play.until_ticks(1);
        play.until_armed(home);
        play
    }

    /// Each host's power can be cut.
    pub fn with_stonith(self) -> Self {
        for (n, member) in self.cluster.members.iter().enumerate() {
            let folder = member.host.lab_folder();
            let (plug, at) = (format!("plug={}", member.host.name), format!("ip={}", folder.parent().expect("the lab").display()));
            let node = format!("node{}", n + 1);
            self.cluster.host(0).ok(["node", "set", &node, "--fence", "nshost", &plug, &at]);
            self.cluster.host(0).ok(["ha", "fence-test", &node]);
        }
        self
    }

    pub fn home(&self) -> Home {
        self.at
    }

    pub fn until_armed(&self, home: Home) {
        until("its host is armed", RECOVERED, || {
            let told = self.cluster.host(self.cluster.beside(home.host)).ok(["ha", "check"]);
            if told.contains("watchdog") || told.contains("power") { Ok(()) } else { Err(format!("{told}\n{}", self.cluster.logs())) }
        });
    }

    /// Waits until so many boots have ticked, the last of them more than once.
    pub fn until_ticks(&self, boots: usize) -> Vec<Run> {
        until(&format!("{boots} boots have ticked"), RECOVERED, || {
            let runs = ticks::runs(&self.disk)?;
            let ticks = runs.get(boots - 1).is_some_and(|run| run.last.0 > run.first.0 + 1);
            if ticks { Ok(runs) } else { Err(format!("{runs:?}\n{}", self.cluster.logs())) }
        })
    }

    /// The guest's host suffers `harm`, is proved dead, and the guest goes on elsewhere.
    pub fn lost(&mut self, what: &str, proof: &str, harm: impl FnOnce(&mut Cluster, usize)) -> Death {
        let before = self.home();
        harm(&mut self.cluster, before.host);
        let asked = self.cluster.beside(before.host);
        let now = self.cluster.until_recovered(asked, "tick", before);
        assert_ne!(now.host, before.host, "{what}");
        assert_eq!(now.generation, before.generation + 1, "{what}");
        let death = self.cluster.death(asked, &before.node(), "tick");
        assert_eq!(death.proof, proof, "{what}");
        assert!(!self.cluster.host(before.host).has_power(), "{what}: it is proved dead, and lives");
        let gap_s = self.boots_at(now);
        println!("{what}: {death}; {gap_s} s from the last tick to the next");
        death
    }

    /// The guest has booted anew there, and ticks; how many seconds after its last tick before.
    pub fn boots_at(&mut self, home: Home) -> u64 {
        self.at = home;
        self.homes.push(home);
        let runs = self.until_ticks(self.homes.len());
        let [.., old, new] = runs.as_slice() else { unreachable!("two at least have ticked") };
        new.first.1 - old.last.1
    }

    /// The guest is on its way while it runs, and afterwards there: both hosts have a QEMU of it meanwhile, which the witness must not see.
    pub fn moves(&mut self, how: impl FnOnce(&mut Cluster, Home) -> Home) {
        self.witness.take().expect("it is looked at").ends();
        self.at = how(&mut self.cluster, self.at);
        self.witness = Some(Witness::of(&self.cluster, "tick"));
        self.stays("it has moved");
    }

    /// The lost host boots again, and takes part.
    pub fn back(&mut self) {
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
    pub fn stays(&self, what: &str) {
        let runs = self.until_ticks(self.homes.len());
        let last = runs.last().expect("one").last.0;
        let runs = until(&format!("{what}: it ticks on"), RECOVERED, || {
            let runs = ticks::runs(&self.disk)?;
            if runs.last().is_some_and(|run| run.last.0 > last + 5) { Ok(runs) } else { Err(format!("{runs:?}")) }
        });
        assert_eq!(runs.len(), self.homes.len(), "{what}: {runs:?}");
    }

    /// Its host says that it runs, in the same right.
    pub fn is_told(&self) {
        let home = until("it is known to run", RECOVERED, || {
            let vm = self.cluster.host(self.cluster.beside(self.home().host)).vm("tick");
            Home::of(&vm).ok_or_else(|| vm["status"].to_string())
        });
        assert_eq!(home, self.home());
    }

    /// Who has written the disk is who had the right to.
    pub fn ends(self) {
        for life in self.witness.expect("it is looked at").ends() {
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
