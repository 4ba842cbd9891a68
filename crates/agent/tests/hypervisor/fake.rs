//! The fake in the suite, and what only the fake can do.

use std::sync::Arc;
use std::time::Duration;

use expect_test::expect;
use vmkeep_agent::hypervisor::fake::{FakeHypervisor, Fault, Manners};
use vmkeep_agent::hypervisor::{AgentLink, HvError, Hypervisor, LiveChange, Words, XmlKind};
use vmkeep_types::ids::VmId;
use vmkeep_types::observed::{DomainState, ExitCause};

use crate::stand::{Stand, Story, domain_xml, uuid};
use crate::suite;

struct FakeStand(Arc<FakeHypervisor>);

impl FakeStand {
    fn new() -> Self {
        Self(Arc::new(FakeHypervisor::new()))
    }

    async fn started(&self, name: &str) -> VmId {
        let vm = uuid();
        self.0.define(&domain_xml(self, name, vm), Words::Patched).await.expect("define");
        self.0.start(vm).await.expect("start");
        vm
    }
}

impl Stand for FakeStand {
    fn hv(&self) -> Arc<dyn Hypervisor> {
        self.0.clone()
    }

    fn guest(&self) -> String {
        String::new()
    }

    fn kill_qemu(&self, _: &str, uuid: VmId) {
        self.0.kill_qemu(uuid).expect("it runs");
    }

    fn terminate_qemu(&self, _: &str, uuid: VmId) {
        self.0.terminate_qemu(uuid).expect("it runs");
    }

    fn break_libvirt(&self) {
        self.0.disconnect();
    }

    fn mend_libvirt(&self) {
        self.0.reconnect();
    }
}

#[tokio::test]
async fn the_fake_behaves() {
    suite::all(&FakeStand::new()).await;
}

#[tokio::test(start_paused = true)]
async fn guests_obey_late_or_never() {
    let stand = FakeStand::new();
    let (slow, rude) = (stand.started("slow").await, stand.started("rude").await);
    stand.0.set_manners(Manners::PowersOff { after: Duration::from_secs(20) });
    stand.0.set_manners_of(rude, Manners::Ignores);
    stand.0.shutdown(slow).await.expect("asked");
    stand.0.shutdown(rude).await.expect("asked");
    let state = async |vm| stand.0.find(vm).await.expect("find").state;
    tokio::time::sleep(Duration::from_secs(19)).await;
    assert_eq!(state(slow).await, DomainState::Running);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((state(slow).await, state(rude).await), (DomainState::Off, DomainState::Running));
    // A later run is not stopped by an earlier wish.
    stand.0.start(slow).await.expect("start");
    stand.0.shutdown(slow).await.expect("asked");
    stand.0.destroy(slow).await.expect("destroy");
    stand.0.start(slow).await.expect("start");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(state(slow).await, DomainState::Running);
}

#[tokio::test(start_paused = true)]
async fn calls_fail_as_told() {
    let stand = FakeStand::new();
    let vm = stand.started("web").await;
    stand.0.fault_next("destroy", Fault::Fail(HvError::Refused("no".to_owned())));
    stand.0.fault_next("destroy", Fault::LoseAnswer);
    stand.0.set_delay_of("destroy", Duration::from_secs(5));
    let began = tokio::time::Instant::now();
    assert_eq!(stand.0.destroy(vm).await, Err(HvError::Refused("no".to_owned())));
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    assert_eq!(stand.0.find(vm).await.expect("find").state, DomainState::Running);
    assert!(matches!(stand.0.destroy(vm).await, Err(HvError::TimedOut { call: "destroy", .. })));
    assert_eq!(stand.0.find(vm).await.expect("find").exit, Some(ExitCause::Destroyed), "it happened all the same");
    expect![[r#"
        define web
        start web
        destroy web
        destroy web"#]]
    .assert_eq(&stand.0.calls().join("\n"));
}

#[tokio::test]
async fn what_happens_while_cut_off_makes_no_event() {
    let stand = FakeStand::new();
    let vm = stand.started("web").await;
    let hv = stand.hv();
    let mut story = Story::begin(&hv, vm);
    stand.0.disconnect();
    stand.0.kill_qemu(vm).expect("it runs");
    stand.0.reconnect();
    expect![[r#"
        disconnected
        connected"#]]
    .assert_eq(&story.until("connected").await);
    assert_eq!(hv.find(vm).await.expect("find").exit, Some(ExitCause::Crashed));
    stand.0.reboot_host();
    assert_eq!(hv.find(vm).await.expect("find").state, DomainState::Off);
}

#[tokio::test]
async fn the_agent_comes_and_goes() {
    let stand = FakeStand::new();
    let vm = stand.started("web").await;
    let hv = stand.hv();
    let mut story = Story::begin(&hv, vm);
    stand.0.set_agent(vm, AgentLink::Up).expect("it runs");
    stand.0.set_agent_reply(vm, "guest-info", r#"{"return":{"version":"10.0"}}"#).expect("it exists");
    let ask = async |execute: &str| hv.agent_command(vm, format!(r#"{{"execute":"{execute}"}}"#), Duration::from_secs(1)).await;
    assert_eq!(ask("guest-ping").await, Ok(r#"{"return":{}}"#.to_owned()));
    assert_eq!(ask("guest-info").await, Ok(r#"{"return":{"version":"10.0"}}"#.to_owned()));
    assert!(ask("guest-nonsense").await.is_err());
    hv.shutdown(vm).await.expect("by the agent, without the button");
    expect![[r#"
        agent Up
        ShuttingDown (by guest)
        agent Down
        stopped Shutdown (shutdown by guest)"#]]
    .assert_eq(&story.until("stopped Shutdown (shutdown by guest)").await);
}

#[tokio::test]
async fn addresses_stay_when_devices_are_dropped_or_added() {
    let stand = FakeStand::new();
    let vm = uuid();
    let first = stand.0.define(&domain_xml(&stand, "web", vm), Words::Patched).await.expect("define");
    let of_nic = |xml: &str| {
        let nic = xml.split("<interface").nth(1).and_then(|rest| rest.split("</interface>").next()).expect("a NIC").to_owned();
        nic.lines().find(|l| l.contains("<address")).expect("an address").trim().to_owned()
    };
    let with_disk = first.replace("<memballoon", "<disk type='file' device='disk'><target dev='vda' bus='virtio'/></disk><memballoon");
    let second = stand.0.define(&with_disk, Words::Patched).await.expect("define");
    assert_eq!(of_nic(&first), of_nic(&second));
    let taken: Vec<_> = second.lines().filter(|l| l.contains("type='pci' domain")).collect();
    assert_eq!(taken.len(), taken.iter().collect::<std::collections::BTreeSet<_>>().len(), "{second}");
    stand.0.start(vm).await.expect("start");
    let resize = stand.0.change(vm, LiveChange::BlockResize("vda".to_owned(), 1 << 30)).await;
    assert_eq!(resize, Ok(()));
    let live = stand.0.xml(vm, XmlKind::Live).await.expect("xml");
    assert!(live.contains("<domain type='qemu' id='1'>") && live.contains("vnet"), "{live}");
}

#[tokio::test]
async fn thousands_of_domains() {
    let stand = FakeStand::new();
    for n in 0..3000 {
        stand.started(&format!("vm{n}")).await;
    }
    assert_eq!(stand.0.list().await.expect("list").len(), 3000);
    assert_eq!(stand.0.stats().await.expect("stats").len(), 3000);
}
