//! Two agents, one store and a leader in one process; each can be ended and begun again on its own, as a kill and a restart
//! would. Their hypervisors are fakes that reach each other, or the libvirts of two test hosts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vmkeep_agent::host::check::CheckInput;
use vmkeep_agent::http::{NodeHttp, NodeHttpConfig};
use vmkeep_agent::hypervisor::Hypervisor;
use vmkeep_agent::hypervisor::fake::{FakeHypervisor, Wire};
use vmkeep_agent::image::Reach;
use vmkeep_agent::runtime::clock::BootId;
use vmkeep_agent::runtime::{self, AgentConfig, Handle, Node};
use vmkeep_core::ha::clock::Now;
use vmkeep_server::app::{Ask, ask::Admission, bootstrap, node, vm, vm_migrate, vm_write};
use vmkeep_server::reconcile::ha::power::NoPower;
use vmkeep_server::reconcile::ha::storage::NoStorageFence;
use vmkeep_server::reconcile::ha::{Desk, Levers};
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{Store, keys, typed};
use vmkeep_types::host::KvmState;
use vmkeep_types::ids::VmId;
use vmkeep_types::migration::{MigrateOptions, Migration, MigrationAddress, MovePhase};
use vmkeep_types::name::Name;
use vmkeep_types::observed::DomainState;
use vmkeep_types::operation::Operation;
use vmkeep_types::record::{Caller, Owner, Power, Role, Via};
use vmkeep_types::units::ByteCount;

use super::images::Library;

const PATIENCE: Duration = Duration::from_secs(60);

/// Something that runs until it is told to stop.
struct Part {
    stop: CancellationToken,
    going: JoinHandle<()>,
}

impl Part {
    async fn end(self) {
        self.stop.cancel();
        self.going.await.expect("it ends");
    }
}

/// A hypervisor and how the other reaches it.
#[derive(Clone)]
pub struct Machine {
    pub hv: Arc<dyn Hypervisor>,
    pub fake: Option<Arc<FakeHypervisor>>,
    pub address: MigrationAddress,
}

struct Host {
    machine: Machine,
    dir: tempfile::TempDir,
    node: Option<Arc<Node>>,
    agent: Option<Part>,
    beats: Option<Part>,
}

/// What the agents take their hosts for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Hosts alone, that happen to have one store: nobody renews, so a test says who is silent.
    Nothing,
    /// Members of a cluster, which renew their lives.
    Cluster,
}

pub struct Cluster {
    pub store: Arc<EmbeddedStore>,
    pub wire: Wire,
    /// What each agent gets when it asks another for an image.
    pub library: Arc<Library>,
    shared: bool,
    of: Of,
    hosts: BTreeMap<&'static str, Host>,
    leader: Option<Part>,
    /// What the leader knows of the nodes, and the time by which it measures their silence, ms.
    pub desk: Arc<Desk>,
    pub clock: Arc<AtomicU64>,
    /// Two guests ran at once.
    two: Arc<AtomicBool>,
    watch: JoinHandle<()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.watch.abort();
        let parts = self.hosts.values().flat_map(|host| [&host.agent, &host.beats]).flatten();
        for part in parts.chain(&self.leader) {
            part.stop.cancel();
        }
    }
}

pub fn ask() -> Ask {
    let caller = Caller { name: "alice".into(), role: Role::Admin, via: Via::Uid(0), projects: None };
    Ask {
        project: Name::known("default"),
        caller,
        if_match: None,
        repeat: None,
        admission: Admission::default(),
        foreign: Default::default(),
    }
}

pub fn uri(host: &str) -> String {
    format!("fake://{host}")
}

impl Cluster {
    /// Fakes on `a` and `b`.
    pub async fn of_fakes(pool: &Path, shared: bool) -> Self {
        Self::fakes(pool, shared, if shared { Of::Nothing } else { Of::Cluster }).await
    }

    /// Fakes on `a` and `b` with one pool, that renew their lives and say goodbye.
    pub async fn of_members(pool: &Path) -> Self {
        Self::fakes(pool, true, Of::Cluster).await
    }

    /// Fakes on `a` and `b` with one pool and these CPUs; see [`FakeHypervisor::offer_cpu`].
    pub async fn of_cpus(pool: &Path, a: [&str; 4], b: [&str; 4]) -> Self {
        Self::on(pool, true, Of::Nothing, |name, fake| {
            let [model, usable, more, without] = if name == "a" { a } else { b };
            fake.offer_kvm();
            fake.offer_cpu(model, usable, more, without);
        })
        .await
    }

    async fn fakes(pool: &Path, shared: bool, of: Of) -> Self {
        Self::on(pool, shared, of, |_, _| ()).await
    }

    async fn on(pool: &Path, shared: bool, of: Of, with: impl Fn(&str, &FakeHypervisor)) -> Self {
        let wire = Wire::default();
        let machine = |name: &str| {
            let fake = Arc::new(FakeHypervisor::new());
            with(name, &fake);
            wire.join(&uri(name), &fake);
            Machine { hv: fake.clone(), fake: Some(fake), address: MigrationAddress { connect: uri(name), data: format!("tcp://{name}") } }
        };
        let (a, b) = (machine("a"), machine("b"));
        Self::with(pool, shared, of, wire, [a, b]).await
    }

    pub async fn new(pool: &Path, shared: bool, wire: Wire, a: Machine, b: Machine) -> Self {
        Self::with(pool, shared, if shared { Of::Nothing } else { Of::Cluster }, wire, [a, b]).await
    }

    async fn with(pool: &Path, shared: bool, of: Of, wire: Wire, [a, b]: [Machine; 2]) -> Self {
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        bootstrap(store.as_ref(), &pool.to_string_lossy(), shared).await.expect("a store");
        let two = Arc::new(AtomicBool::new(false));
        let mut hosts = BTreeMap::new();
        for (name, machine) in [("a", a), ("b", b)] {
            let dir = tempfile::tempdir().expect("a folder");
            std::fs::write(dir.path().join("boot_id"), name).expect("a boot id");
            hosts.insert(name, Host { machine, dir, node: None, agent: None, beats: None });
        }
        let watched: Vec<_> = hosts.values().map(|host| host.machine.clone()).collect();
        let seen = two.clone();
        let watch = tokio::spawn(async move {
            loop {
                // A look each: what runs in both at the later one ran in both at that moment, for a guest comes only once.
                let first = running(&watched[0]).await;
                let both = running(&watched[1]).await.into_iter().any(|vm| first.contains(&vm));
                if both && running(&watched[0]).await.iter().any(|vm| first.contains(vm)) && !running(&watched[1]).await.is_empty() {
                    seen.store(true, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        let clock = Arc::new(AtomicU64::new(1_000_000));
        let time = clock.clone();
        let now = move || {
            let ms = time.load(Ordering::Relaxed);
            Now { boottime_ms: ms, raw_ms: ms }
        };
        let desk = Desk::new(&Name::known("leader"), Levers { power: Arc::new(NoPower), storage: Arc::new(NoStorageFence) }, Arc::new(now));
        let mut cluster = Self { store, wire, library: Arc::default(), shared, of, hosts, leader: None, desk, clock, two, watch };
        cluster.begin("a");
        cluster.begin("b");
        cluster.lead();
        cluster
            .until("both have joined", async |c| {
                c.store.get(&keys::joined(&Name::known("a"))).await.expect("a read").is_some()
                    && c.store.get(&keys::joined(&Name::known("b"))).await.expect("a read").is_some()
            })
            .await;
        cluster
    }

    pub fn begin(&mut self, name: &'static str) {
        let host = self.hosts.get_mut(name).expect("a host");
        let dir = host.dir.path();
        std::fs::create_dir_all(dir.join("logs")).expect("a folder for serial logs");
        let node = Node::new(AgentConfig {
            name: Name::known(name),
            store: self.store.clone(),
            hypervisor: host.machine.hv.clone(),
            boot_id: BootId(dir.join("boot_id")),
            seed_dir: dir.to_owned(),
            log_dir: dir.join("logs"),
            run_dir: dir.join("run"),
            cpus: 4,
            memory: ByteCount::from_gib(8),
            kvm: match host.machine.fake.as_ref().is_some_and(|fake| fake.has_kvm()) {
                true => KvmState::Usable,
                false => KvmState::Unusable { why: "a test".into() },
            },
            address: Some(uri(name)),
            migration: Some(host.machine.address.clone()),
            peers: if self.of == Of::Nothing { None } else { Some(self.library.clone()) },
            reach: Reach::Others,
            guard: Arc::new(vmkeep_agent::runtime::guard::NoGuard),
        })
        .expect("a boot id");
        let http = NodeHttpConfig {
            node: node.name.clone(),
            hypervisor: host.machine.hv.clone(),
            pools: Arc::new(Handle(node.clone())),
            log_dir: dir.join("logs"),
            qemu_log_dir: dir.join("logs"),
            check: CheckInput { pool: dir.to_owned(), store: dir.to_owned(), tls_listen: None, migration_port: None },
            guests: Arc::new(Handle(node.clone())),
            wishes: Arc::new(Handle(node.clone())),
            moves: Arc::new(Handle(node.clone())),
        };
        self.library.begin(&node.name, vmkeep_agent::http::router(NodeHttp::new(http)));
        let stop = CancellationToken::new();
        let going = tokio::spawn(runtime::run(node.clone(), stop.clone()));
        host.agent = Some(Part { stop, going });
        host.node = Some(node.clone());
        // With pools of their own they own nothing that is highly available.
        if self.of == Of::Cluster && self.shared {
            let stop = CancellationToken::new();
            let going = tokio::spawn(runtime::heartbeat::run(self.store.clone(), node, stop.clone()));
            host.beats = Some(Part { stop, going });
        }
    }

    pub async fn end(&mut self, name: &'static str) {
        let host = self.hosts.get_mut(name).expect("a host");
        self.library.end(&Name::known(name));
        host.agent.take().expect("it was begun").end().await;
        if let Some(beats) = host.beats.take() {
            beats.end().await;
        }
    }

    /// As the host's own programs ask it.
    pub fn handle(&self, name: &str) -> Handle {
        Handle(self.hosts[name].node.clone().expect("it was begun"))
    }

    /// The host goes down after its agent, and boots.
    pub async fn boots(&mut self, name: &'static str) {
        self.end(name).await;
        self.fake(name).reboot_host();
        let boot = self.hosts[name].dir.path().join("boot_id");
        let before = std::fs::read_to_string(&boot).expect("a boot id");
        std::fs::write(boot, format!("{before}+")).expect("a boot id");
        let _ = std::fs::remove_dir_all(self.hosts[name].dir.path().join("run"));
        self.begin(name);
    }

    pub fn lead(&mut self) {
        let stop = CancellationToken::new();
        let leader = Name::known("leader");
        let going = tokio::spawn(vmkeep_server::reconcile::run(self.store.clone(), leader, self.desk.clone(), stop.clone()));
        self.leader = Some(Part { stop, going });
    }

    pub async fn stop_leading(&mut self) {
        self.leader.take().expect("it leads").end().await;
    }

    pub fn fake(&self, name: &str) -> &Arc<FakeHypervisor> {
        self.hosts[name].machine.fake.as_ref().expect("a fake")
    }

    pub fn hv(&self, name: &str) -> &Arc<dyn Hypervisor> {
        &self.hosts[name].machine.hv
    }

    pub fn serial_log(&self, name: &str, vm: VmId) -> PathBuf {
        self.hosts[name].dir.path().join("logs").join(format!("{vm}.log"))
    }

    /// Tells what its libvirt says of it, as the daemon has it do from time to time.
    pub async fn describe(&self, name: &str) {
        let node = self.hosts[name].node.as_ref().expect("it runs");
        node.profile().await.expect("capabilities");
        node.refresh_facts().await.expect("a write");
    }

    pub async fn until(&self, what: &str, holds: impl AsyncFn(&Self) -> bool) {
        let begin = Instant::now();
        while !holds(self).await {
            if begin.elapsed() > PATIENCE {
                let all = self.store.list("").await.expect("a listing").items;
                let kept = all.iter().filter(|kv| !kv.key.starts_with("event/"));
                let told: Vec<String> = kept.map(|kv| format!("{} {}", kv.key, String::from_utf8_lossy(&kv.value))).collect();
                panic!("{what} did not come true\n{}", told.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// A VM that runs on `a`: `wish` over a small one without disks.
    pub async fn vm(&self, wish: Value) -> VmId {
        let mut whole = json!({"name": "web", "firmware": "bios", "memory": "64M", "disks": [], "nics": [], "cloud_init": null});
        whole.as_object_mut().expect("a map").extend(wish.as_object().expect("a map").clone());
        let op = self.create(whole).await;
        let vm = VmId(op.resource.uid);
        let op = self.over(&op).await;
        assert_eq!((self.runs_on(vm).await, op.error), (vec!["a"], None));
        vm
    }

    pub async fn create(&self, wish: Value) -> Operation {
        let spec = serde_json::from_value(wish).expect("a wish");
        vm_write::create(self.store.as_ref(), &ask(), spec).await.expect("taken").op
    }

    pub async fn node(&self, name: &'static str, verb: &str) {
        node::action(self.store.as_ref(), &ask(), &Name::known(name), verb, Default::default()).await.expect("taken");
    }

    pub async fn over(&self, op: &Operation) -> Operation {
        self.until(&format!("operation {} is over", op.kind), async |c| c.op(op).await.state.is_over()).await;
        self.op(op).await
    }

    pub async fn op(&self, op: &Operation) -> Operation {
        typed::get_json(self.store.as_ref(), &keys::op(&op.project, op.id)).await.expect("a read").expect("it is there").value
    }

    pub async fn migrate(&self, options: MigrateOptions) -> Operation {
        vm_migrate::migrate(self.store.as_ref(), &ask(), &Name::known("web"), options).await.expect("taken")
    }

    pub async fn command(&self, verb: &str) -> Operation {
        self.command_to("web", verb).await
    }

    pub async fn command_to(&self, name: &str, verb: &str) -> Operation {
        let name = name.parse().expect("a name");
        vm::action(self.store.as_ref(), &ask(), &name, verb, Default::default()).await.expect("taken")
    }

    pub fn two_ran(&self) -> bool {
        self.two.load(Ordering::Relaxed)
    }

    pub async fn phase(&self, vm: VmId) -> Option<MovePhase> {
        typed::get_json::<Migration>(self.store.as_ref(), &keys::migration(vm)).await.expect("a read").map(|m| m.value.phase)
    }

    pub async fn owner(&self, vm: VmId) -> Owner {
        typed::get_json::<Owner>(self.store.as_ref(), &keys::owner(vm)).await.expect("a read").expect("it has one").value
    }

    pub async fn power_cycle(&self, vm: VmId) -> u64 {
        typed::get_json::<Power>(self.store.as_ref(), &keys::power(vm)).await.expect("a read").expect("it has one").value.cycle
    }

    pub async fn runs_on(&self, vm: VmId) -> Vec<&'static str> {
        let mut on = Vec::new();
        for (name, host) in &self.hosts {
            if running(&host.machine).await.contains(&vm) {
                on.push(*name);
            }
        }
        on
    }

    /// The end in words, once both sides are clean: who runs it, what is left.
    pub async fn ending(&self, op: &Operation) -> String {
        let op = self.over(op).await;
        let vm = VmId(op.resource.uid);
        self.until("both sides are clean", async |c| {
            let all = c.store.list("").await.expect("a listing").items;
            let left =
                |kv: &&vmkeep_store::KeyValue| kv.key.starts_with("migrate/") || kv.key.contains("/move/") || kv.key.contains("/moved/");
            all.iter().filter(left).count() == 0
        })
        .await;
        let owner = self.owner(vm).await;
        // A guest that was lost comes up again by its run policy.
        self.until("it runs at its owner", async |c| c.runs_on(vm).await == [owner.node.as_str()]).await;
        let other = if owner.node.as_str() == "a" { "b" } else { "a" };
        assert!(self.hv(other).list().await.expect("a list").is_empty(), "a domain stays on {other}");
        let own = self.store.list("own/").await.expect("a listing").items.len();
        let stopped = self.store.list(&format!("n/{other}/stopped/")).await.expect("a listing").items.len();
        assert_eq!((owner.to, own, stopped), (None, 1, 0), "what a migration left");
        assert!(!self.two_ran(), "two guests ran at once");
        let why = op.error.map(|e| format!(": {}", e.message)).unwrap_or_default();
        format!("{:?}{why}; runs on {} by generation {}", op.state, owner.node, owner.generation)
    }
}

async fn running(machine: &Machine) -> Vec<VmId> {
    if let Some(fake) = &machine.fake {
        // A look that uses up no fault that is meant for the agent.
        return fake.running();
    }
    let all = machine.hv.list().await.unwrap_or_default();
    all.into_iter().filter(|d| d.state == DomainState::Running).map(|d| d.uuid).collect()
}
