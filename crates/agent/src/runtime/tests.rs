//! The agent at work on the fake hypervisor: an order goes into the store, its word comes back, and libvirt changes behind it.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use vmkeep_api::body::WishCheck;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{Store, Txn, keys};
use vmkeep_types::host::KvmState;
use vmkeep_types::ids::{Epoch, Generation, Revision};
use vmkeep_types::name::Name;
use vmkeep_types::observed::{Doing, DomainState, FieldChange, Observed, Rest};
use vmkeep_types::pool::{PoolSpec, VolumeRecord};
use vmkeep_types::record::{Leaving, Owner, Power, PowerWish, VmChoices, VmOrigin};
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::VmSpec;

use super::*;
use crate::http::Wishes;
use crate::hypervisor::fake::FakeHypervisor;
use crate::hypervisor::{AgentLink, Hypervisor, METADATA_URI, Words, XmlKind};
use crate::image::Reach;

mod drift;

const VM: VmId = VmId(uuid::Uuid::from_u128(0x6b0e_0a52_1111_4222_8333_4444_5555_6666));
const PATIENCE: Duration = Duration::from_secs(20);

struct Bed {
    hv: Arc<FakeHypervisor>,
    store: Arc<EmbeddedStore>,
    node: Arc<Node>,
    order: Order,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

fn node_name() -> Name {
    Name::known("node1")
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Bed {
    /// An agent with one order, which is not given yet.
    async fn new(wish: Value) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (hv, store) = (Arc::new(FakeHypervisor::new()), Arc::new(EmbeddedStore::in_memory().expect("memory")));
        let boot_id = dir.path().join("boot_id");
        std::fs::write(&boot_id, "boot-1").expect("a boot id");
        let node = Node::new(AgentConfig {
            name: node_name(),
            store: store.clone(),
            hypervisor: hv.clone(),
            boot_id: clock::BootId(boot_id),
            seed_dir: dir.path().to_owned(),
            log_dir: dir.path().join("logs"),
            run_dir: dir.path().join("run"),
            cpus: 2,
            memory: ByteCount::from_gib(8),
            kvm: KvmState::Unusable { why: "a test".into() },
            address: None,
            migration: None,
            peers: None,
            reach: Reach::Others,
            guard: Arc::new(guard::NoGuard),
        })
        .expect("a boot id");
        let stop = CancellationToken::new();
        tokio::spawn(run(node.clone(), stop.clone()));
        let mut whole = json!({"name": "web", "firmware": "bios", "memory": "64M", "disks": [], "nics": [], "cloud_init": null});
        whole.as_object_mut().expect("a map").extend(wish.as_object().expect("a map").clone());
        let spec: VmSpec = serde_json::from_value(whole).expect("a wish");
        let macs = spec.nics.iter().map(|nic| (nic.name.clone(), "52:54:00:aa:bb:cc".to_owned())).collect();
        let order = Order {
            vm: VM,
            project: Name::known("default"),
            spec,
            spec_revision: Revision(1),
            generation: Generation(1),
            epoch: Epoch(1),
            choices: VmChoices { macs, ..VmChoices::default() },
            power: Power { want: PowerWish::On, cycle: 1, held: None, stop_timeout: None },
            origin: VmOrigin::Created,
            leaving: None,
            level: 0,
            instance: 0,
            volumes: BTreeMap::new(),
            images: BTreeMap::new(),
            networks: BTreeMap::new(),
            pools: BTreeMap::new(),
            moving: None,
            handed: None,
        };
        Self { hv, store, node, order, stop, _dir: dir }
    }

    async fn running(wish: Value) -> Self {
        let mut bed = Self::new(wish).await;
        bed.give(|_| ()).await;
        bed.until("it runs", |seen| seen.domain == Observed::Known(DomainState::Running) && seen.power_cycle == 1).await;
        bed
    }

    /// The order as the leader would write it.
    async fn give(&mut self, change: impl FnOnce(&mut Order)) {
        change(&mut self.order);
        let owner = Owner {
            vm: VM,
            project: self.order.project.clone(),
            node: node_name(),
            epoch: self.order.epoch,
            generation: self.order.generation,
            to: None,
        };
        let txn = Txn::default().then(typed::put(keys::owner(VM), &owner)).then(typed::put(keys::order(&node_name(), VM), &self.order));
        self.store.txn(txn).await.expect("a write");
    }

    async fn edit(&mut self, change: impl FnOnce(&mut VmSpec)) {
        self.give(|order| {
            order.spec_revision = order.spec_revision.next();
            change(&mut order.spec);
        })
        .await;
        let wish = self.order.spec_revision;
        self.until("the wish is tried", |seen| seen.memory.tried() >= wish).await;
    }

    async fn command(&mut self, want: PowerWish) -> Seen {
        self.give(|order| order.power = Power { want, cycle: order.power.cycle + 1, held: None, stop_timeout: None }).await;
        let cycle = self.order.power.cycle;
        self.until("the command is carried out", |seen| seen.power_cycle >= cycle).await
    }

    async fn until(&self, what: &str, holds: impl Fn(&Seen) -> bool) -> Seen {
        let begin = Instant::now();
        loop {
            let seen = typed::get_json::<Seen>(self.store.as_ref(), &keys::seen(&node_name(), VM)).await.expect("a read");
            match seen.map(|s| s.value) {
                Some(seen) if holds(&seen) => return seen,
                seen => assert!(begin.elapsed() < PATIENCE, "{what} did not come true: {seen:#?}\n{:#?}", self.hv.calls()),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Makes the agent look, as a break of the connection does.
    fn nudge(&self) {
        self.hv.disconnect();
        self.hv.reconnect();
    }

    async fn name(&self) -> String {
        self.hv.find(VM).await.expect("a domain").name
    }

    async fn until_event(&self, code: &str) {
        let begin = Instant::now();
        loop {
            let all = self.store.list("n/node1/event/").await.expect("a listing").items;
            if all.iter().any(|kv| String::from_utf8_lossy(&kv.value).contains(code)) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "no {code}: {:#?}", self.hv.calls());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn fields(changes: &[FieldChange]) -> Vec<String> {
    changes.iter().map(|c| format!("{}: {} -> {}", c.field, c.from, c.to)).collect()
}

/// A domain that an administrator made.
fn foreign(name: &str) -> String {
    format!(
        "<domain type='qemu'><name>{name}</name><uuid>{VM}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os><devices><serial type='pty'/></devices></domain>"
    )
}

#[tokio::test]
async fn a_vm_that_is_off_is_renamed_in_libvirt() {
    let mut bed = Bed::running(json!({})).await;
    bed.command(PowerWish::Off).await;
    bed.edit(|spec| spec.name = Name::known("shop")).await;
    let seen = bed.until("it is done", |seen| seen.error.is_none()).await;
    assert_eq!((bed.name().await.as_str(), fields(&seen.drift), seen.steps), ("shop", vec![], vec!["renamed from web".to_owned()]));
}

#[tokio::test]
async fn a_running_vm_is_renamed_at_its_next_cold_start_and_goes_on_meanwhile() {
    let mut bed = Bed::running(json!({})).await;
    bed.edit(|spec| spec.name = Name::known("shop")).await;
    bed.edit(|spec| spec.description = "still takes wishes".into()).await;
    let seen = bed.until("it waits", |seen| !seen.pending.is_empty()).await;
    assert_eq!((fields(&seen.pending), fields(&seen.drift), seen.error), (vec!["name: web -> shop".to_owned()], vec![], None));
    assert_eq!(bed.name().await, "web");
    let seen = bed.command(PowerWish::Restart).await;
    assert_eq!((bed.name().await.as_str(), fields(&seen.pending), seen.error), ("shop", vec![], None));
}

#[tokio::test]
async fn a_taken_name_ends_the_rename_and_never_the_vm() {
    let mut bed = Bed::running(json!({})).await;
    let other = foreign("shop").replace(&VM.to_string(), &uuid::Uuid::new_v4().to_string());
    bed.hv.define(&other, Words::Patched).await.expect("defined");
    bed.command(PowerWish::Off).await;
    bed.edit(|spec| spec.name = Name::known("shop")).await;
    let seen = bed.until("it fails", |seen| seen.error.is_some()).await;
    let error = seen.error.expect("an error");
    assert!(error.message.contains("still called 'web'") && error.hint.is_some_and(|h| h.contains("vm rename")), "{}", error.message);
    let seen = bed.command(PowerWish::On).await;
    assert_eq!((seen.domain, bed.name().await.as_str()), (Observed::Known(DomainState::Running), "web"));
}

#[tokio::test]
async fn an_adopted_domain_may_have_a_name_that_is_not_ours() {
    let mut bed = Bed::new(json!({"name": "win-2019"})).await;
    bed.hv.define(&foreign("Win_2019"), Words::Patched).await.expect("defined");
    bed.hv.set_autostart(VM, true).await.expect("it exists");
    bed.hv.start(VM).await.expect("started");
    bed.give(|order| order.origin = VmOrigin::Adopted).await;
    let seen = bed.until("it is taken over", |seen| seen.power_cycle == 1).await;
    assert_eq!((seen.error, bed.name().await.as_str()), (None, "Win_2019"));
    assert!(fields(&seen.pending).contains(&"name: Win_2019 -> win-2019".to_owned()), "{:?}", seen.pending);
    bed.edit(|spec| spec.description = "takes wishes".into()).await;
    bed.until("the wish is taken", |seen| seen.error.is_none() && seen.memory.applied == Revision(2)).await;
    bed.command(PowerWish::Restart).await;
    assert_eq!(bed.name().await, "win-2019");
}

#[tokio::test]
async fn autostart_is_switched_off_wherever_it_comes_from() {
    let bed = Bed::running(json!({})).await;
    bed.hv.set_autostart(VM, true).await.expect("it exists");
    bed.nudge();
    let begin = Instant::now();
    while bed.hv.find(VM).await.is_ok_and(|brief| brief.autostart) {
        assert!(begin.elapsed() < PATIENCE, "{:?}", bed.hv.calls());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bed.until_event("vm.autostart").await;
}

#[tokio::test]
async fn a_qemu_that_got_a_sigterm_is_started_again() {
    let bed = Bed::running(json!({})).await;
    bed.hv.terminate_qemu(VM).expect("it runs");
    let seen = bed.until("it is started again", |seen| seen.restarts.count == 1).await;
    assert_eq!(seen.restarts.last_reason.as_deref(), Some("QEMU was killed"));
    // What the guest does itself is respected, also after that.
    bed.hv.guest_powers_off(VM).expect("it runs");
    bed.until("it stays off", |seen| seen.memory.rest == Some(Rest::GuestOff)).await;
}

#[tokio::test]
async fn a_vm_that_gave_up_still_takes_wishes() {
    let mut bed = Bed::running(json!({"restart": {"max": 0}})).await;
    bed.hv.kill_qemu(VM).expect("it runs");
    bed.until("it gives up", |seen| matches!(seen.doing, Some(Doing::GaveUp { .. }))).await;
    bed.edit(|spec| spec.description = "changed".into()).await;
    let seen = bed.until("it is as before", |seen| matches!(seen.doing, Some(Doing::GaveUp { .. }))).await;
    assert_eq!((seen.error, seen.memory.applied), (None, Revision(2)));
    assert!(bed.hv.xml(VM, XmlKind::Inactive).await.expect("xml").contains("<description>changed</description>"));
}

/// A VM with a disk in a pool of its own, whose folder this is.
async fn with_a_disk(made: bool) -> (Bed, PathBuf) {
    let mut bed = Bed::new(json!({"run": "manual", "disks": [{"name": "root", "empty": true, "size": "1M"}]})).await;
    let folder = bed.node.config.seed_dir.join("pool");
    let pool: PoolSpec = serde_json::from_value(json!({"name": "default", "driver": "dir", "path": folder})).expect("a pool");
    let volume: VolumeRecord = serde_json::from_value(json!({
        "id": uuid::Uuid::from_u128(5), "project": "default", "name": "web-root", "pool": "default", "format": "raw", "size": "1M",
        "attached": {"vm": VM, "disk": "root"}, "created_at": "2026-11-26T00:00:00Z", "made": made,
    }))
    .expect("a volume");
    bed.give(|order| {
        order.pools.insert(pool.name.clone(), pool);
        order.volumes.insert(Name::known("root"), volume);
    })
    .await;
    (bed, folder)
}

#[tokio::test]
async fn a_disk_that_was_made_once_is_not_made_again() {
    let (mut bed, folder) = with_a_disk(false).await;
    bed.until("it runs", |seen| seen.domain == Observed::Known(DomainState::Running) && !seen.volumes.is_empty()).await;
    bed.hv.destroy(VM).await.expect("it runs");
    bed.until("it is off", |seen| seen.domain == Observed::Known(DomainState::Off)).await;
    std::fs::rename(&folder, folder.with_extension("unmounted")).expect("a folder");
    bed.give(|order| order.power = Power { want: PowerWish::On, cycle: 2, held: None, stop_timeout: None }).await;
    let seen = bed.until("it fails", |seen| seen.error.is_some()).await;
    assert!(seen.error.as_ref().is_some_and(|error| error.message.contains("is gone")), "{:?}", seen.error);
    assert!(!folder.exists(), "nothing is made in its place");
}

#[tokio::test]
async fn a_disk_that_another_node_made_is_not_made_here() {
    let (bed, folder) = with_a_disk(true).await;
    let seen = bed.until("it fails", |seen| seen.error.is_some()).await;
    assert!(seen.error.as_ref().is_some_and(|error| error.message.contains("is gone")), "{:?}", seen.error);
    assert!(!folder.exists(), "nothing is made in its place");
}

#[tokio::test]
async fn what_waited_for_a_restart_waits_no_more_when_it_is_off() {
    let mut bed = Bed::running(json!({})).await;
    bed.edit(|spec| spec.memory.size = ByteCount::from_mib(128)).await;
    bed.until("it waits", |seen| !seen.pending.is_empty()).await;
    let seen = bed.command(PowerWish::Off).await;
    assert_eq!(seen.pending, vec![]);
}

#[tokio::test]
async fn a_release_that_was_cut_off_goes_on() {
    let mut bed = Bed::running(json!({})).await;
    // The mark went, the word about it did not come.
    bed.hv.set_metadata(VM, None).await.expect("it exists");
    bed.give(|order| order.leaving = Some(Leaving::Release)).await;
    bed.until("it is released", |seen| seen.memory.removed).await;
    assert_eq!(bed.hv.find(VM).await.expect("a domain").state, DomainState::Running);
}

#[tokio::test]
async fn a_domain_without_our_mark_is_not_touched() {
    let mut bed = Bed::running(json!({})).await;
    bed.hv.set_metadata(VM, None).await.expect("it exists");
    bed.give(|order| order.leaving = Some(Leaving::Delete)).await;
    bed.until("it is refused", |seen| seen.error.as_ref().is_some_and(|e| e.message.contains("did not make"))).await;
    assert_eq!(bed.hv.find(VM).await.expect("a domain").state, DomainState::Running);
}

#[tokio::test]
async fn a_start_that_the_store_does_not_grant_is_no_failure_of_the_vm() {
    let mut bed = Bed::new(json!({"restart": {"max": 1, "within": "10m"}})).await;
    let recovery = Txn::default().then(vmkeep_store::Op::Put(keys::CLUSTER_RECOVERY.into(), b"{}".to_vec()));
    bed.store.txn(recovery).await.expect("a write");
    bed.give(|_| ()).await;
    let refused = bed.until("it is not granted", |seen| seen.error.is_some()).await;
    assert_eq!((refused.memory.failures_ms, refused.memory.gave_up), (vec![], false));
    // More often than it may fail: each look is another try.
    for _ in 0..3 {
        bed.node.look_at(&[VM]).await;
    }
    bed.store.txn(Txn::default().then(vmkeep_store::Op::Delete(keys::CLUSTER_RECOVERY.into()))).await.expect("a write");
    bed.node.look_at(&[VM]).await;
    let seen = bed.until("it runs", |seen| seen.domain == Observed::Known(DomainState::Running)).await;
    assert_eq!((seen.restarts.count, seen.error), (0, None));
}

#[tokio::test]
async fn a_libvirt_that_goes_and_comes_back_is_told() {
    let bed = Bed::running(json!({})).await;
    bed.hv.disconnect();
    bed.until_event("node.libvirt-away").await;
    bed.hv.reconnect();
    bed.until_event("node.libvirt-back").await;
}

#[tokio::test]
async fn a_changed_vnc_password_reaches_the_stored_and_the_running_display() {
    let mut bed = Bed::running(json!({"display": {"listen": "tcp", "password": "first"}})).await;
    bed.edit(|spec| spec.display.as_mut().expect("a display").password = Some("second".into())).await;
    let seen = bed.until("it is applied", |seen| seen.memory.applied == Revision(2)).await;
    assert_eq!((seen.pending, seen.error), (vec![], None));
    for kind in [XmlKind::Inactive, XmlKind::Live] {
        let xml = bed.hv.xml(VM, kind).await.expect("xml");
        assert!(xml.contains("passwd='second'"), "{kind:?}: {xml}");
    }
}

#[tokio::test]
async fn a_guest_hears_the_time_after_the_host_slept() {
    let bed = Bed::new(json!({})).await;
    let ours = format!("<metadata><vmkeep:vm xmlns:vmkeep='{METADATA_URI}' id='{VM}' project='default' generation='1'/></metadata>");
    bed.hv.define(&foreign("web").replace("<vcpu>", &format!("{ours}<vcpu>")), Words::Patched).await.expect("defined");
    bed.hv.start(VM).await.expect("started");
    bed.hv.set_agent(VM, AgentLink::Up).expect("it runs");
    // One worker, whose mailbox is ours.
    bed.stop.cancel();
    let order = Txn::default().then(typed::put(keys::order(&node_name(), VM), &bed.order));
    bed.store.txn(order).await.expect("a write");
    let mailbox = Arc::new(Mailbox::new(bed.order.clone()));
    tokio::spawn(worker::run(bed.node.clone(), mailbox.clone(), None, CancellationToken::new()));
    bed.until("it is looked at", |seen| seen.domain == Observed::Known(DomainState::Running)).await;
    let told = || bed.hv.calls().iter().filter(|call| *call == "agent_command web").count();
    assert_eq!(told(), 0);
    mailbox.slept();
    let begin = Instant::now();
    while told() == 0 {
        assert!(begin.elapsed() < PATIENCE, "{:?}", bed.hv.calls());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn another_kind_of_machine_is_chosen_once_too() {
    let mut bed = Bed::running(json!({})).await;
    let seen = bed.until("it is chosen", |seen| seen.choices.machine.is_some()).await;
    let (first, chosen) = (seen.choices.machine.clone().expect("a machine"), seen.choices);
    assert!(first.starts_with("pc-q35-"), "{first}");
    bed.give(|order| order.choices = chosen).await;
    bed.command(PowerWish::Off).await;
    bed.edit(|spec| spec.machine = vmkeep_types::vm::MachineFamily::Pc).await;
    let seen = bed.until("the new one is chosen", |seen| seen.choices.machine.as_ref() != Some(&first)).await;
    assert!(seen.choices.machine.is_some_and(|m| m.starts_with("pc-i440fx-")), "a version of the wished kind");
}

/// What `vm set --machine latest` asks for: the kind without a version.
#[tokio::test]
async fn an_old_machine_is_replaced_when_the_vm_is_off() {
    let mut bed = Bed::running(json!({})).await;
    let newest = bed.until("it is chosen", |seen| seen.choices.machine.is_some()).await.choices;
    bed.command(PowerWish::Off).await;
    let machine = |version: &str| VmChoices { machine: Some(version.to_owned()), ..newest.clone() };
    bed.give(|order| order.choices = machine("pc-q35-7.2")).await;
    bed.edit(|spec| spec.description = "old".into()).await;
    let inactive = async |bed: &Bed| bed.hv.xml(VM, XmlKind::Inactive).await.expect("it is defined");
    bed.until("the old one is defined", |seen| seen.choices.machine.as_deref() == Some("pc-q35-7.2") && seen.drift.is_empty()).await;
    assert!(inactive(&bed).await.contains("machine='pc-q35-7.2'"), "{}", inactive(&bed).await);
    bed.give(|order| order.choices = machine("q35")).await;
    bed.edit(|spec| spec.description = "new".into()).await;
    bed.until("the newest is chosen", |seen| seen.choices.machine == newest.machine).await;
    assert!(!inactive(&bed).await.contains("pc-q35-7.2"));
}

#[tokio::test]
async fn a_device_is_booted_from_once() {
    let mut bed = Bed::running(json!({"cdroms": [{"name": "cd0"}, {"name": "cd1"}], "boot": ["cd1", "cd0"]})).await;
    // Of cd0, then of cd1.
    let places = async |bed: &Bed, kind| {
        let xml = bed.hv.xml(VM, kind).await.expect("a domain");
        xml.split("<boot order='").skip(1).filter_map(|rest| rest.chars().next()).collect::<String>()
    };
    assert_eq!(places(&bed, XmlKind::Live).await, "21");
    bed.edit(|spec| spec.boot_once = Some(Name::known("cdrom"))).await;
    let seen = bed.command(PowerWish::Restart).await;
    assert_eq!(places(&bed, XmlKind::Live).await, "12");
    assert_eq!(seen.memory.booted_once, Some(bed.order.spec_revision));
    // As the leader answers.
    bed.edit(|spec| spec.boot_once = None).await;
    assert_eq!(places(&bed, XmlKind::Inactive).await, "21");
    bed.command(PowerWish::Restart).await;
    assert_eq!(places(&bed, XmlKind::Live).await, "21");
}

#[tokio::test]
async fn a_wish_that_this_host_cannot_carry_out_is_told_before_it_is_written() {
    let bed = Bed::new(json!({})).await;
    let told = async |fields: Value| {
        let network = json!({"name": "br", "mode": "bridge", "bridge": "nobr"});
        let mut spec = json!({"name": "web", "firmware": "bios", "nics": [], "cloud_init": null});
        spec.as_object_mut().expect("a map").extend(fields.as_object().expect("a map").clone());
        let wish = WishCheck {
            project: Name::known("default"),
            spec: vmkeep_types::check::normalize(serde_json::from_value(spec).expect("a wish")),
            choices: VmChoices::default(),
            networks: [(Name::known("br"), serde_json::from_value(network).expect("a network"))].into(),
        };
        Wishes::check(&Handle(bed.node.clone()), wish).await.map_err(|error| error.message)
    };
    assert_eq!(told(json!({"disks": [{"name": "root", "empty": true, "size": "1G"}], "nics": [{"name": "lan"}]})).await, Ok(()));
    let cpu = told(json!({"cpu": {"model": "Nonsense"}})).await.expect_err("no such CPU");
    assert!(cpu.contains("Nonsense"), "{cpu}");
    let bridge = told(json!({"nics": [{"name": "lan", "network": "br"}]})).await.expect_err("no such bridge");
    assert!(bridge.starts_with("nics[lan]: ") && bridge.contains("nobr"), "{bridge}");
}

/// After a power cut all VMs of a host are to start: libvirt and the disks get so many at once and no more.
#[tokio::test]
async fn a_storm_of_starts_comes_in_small_groups() {
    let bed = Bed::new(json!({})).await;
    bed.hv.set_delay_of("start", Duration::from_millis(100));
    let all = 3 * u128::from(node::STARTS_AT_ONCE);
    for n in 1..=all {
        let vm = VmId(uuid::Uuid::from_u128(n));
        let mut order = Order { vm, ..bed.order.clone() };
        order.spec.name = format!("web{n}").parse().expect("a name");
        let (project, node) = (order.project.clone(), node_name());
        let owner = Owner { vm, project, node: node_name(), epoch: order.epoch, generation: order.generation, to: None };
        let txn = Txn::default().then(typed::put(keys::owner(vm), &owner)).then(typed::put(keys::order(&node, vm), &order));
        bed.store.txn(txn).await.expect("a write");
    }
    let (begin, mut most) = (Instant::now(), 0);
    loop {
        let mut claimed = 0;
        for n in 1..=all {
            let claim = keys::run(&node_name(), VmId(uuid::Uuid::from_u128(n)));
            claimed += u128::from(bed.store.get(&claim).await.expect("a read").is_some());
        }
        // Read later than the claims, so that more may have started, and fewer are counted as on their way.
        let started = bed.hv.calls().iter().filter(|call| call.starts_with("start ")).count() as u128;
        most = most.max(claimed.saturating_sub(started));
        if started == all {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "{started} of {all} have started");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(most, u128::from(node::STARTS_AT_ONCE), "as many as may, and never more");
}
