//! The behaviour itself, one function per subject. Each leaves no domain behind.

use std::time::{Duration, Instant};

use expect_test::{Expect, expect};
use vmkeep_agent::hypervisor::{
    AddressSource, BY_HOST, DomainBrief, HostChange, HvError, HvEvent, Hypervisor, Lifecycle, LiveChange, UndefineKeep, Words, XmlKind,
};
use vmkeep_types::ids::VmId;
use vmkeep_types::observed::{DomainState, ExitCause};

use crate::stand::{NETWORK, PATIENCE, Stand, Story, domain_xml, greet, heard, metadata, network_xml, running, uuid};

/// Rounds of closing a console and opening it again.
const REOPENED: usize = 20;
/// QEMU looks once a second whether somebody has opened a serial line that was closed.
const REOPENED_PATIENCE: Duration = Duration::from_secs(60);
/// For calls to a libvirt that is gone: those that wait for it would wait longer.
const REFUSED_PATIENCE: Duration = Duration::from_secs(5);

/// Everything, one after the other, on one stand.
pub async fn all(stand: &dyn Stand) {
    let hv = stand.hv();
    hv.ensure_network(NETWORK, &network_xml(99)).await.expect("a network");
    let began = Instant::now();
    macro_rules! run {
        ($($subject:ident),*) => {$(
            $subject(stand).await;
            eprintln!("{:>6.1}s {}", began.elapsed().as_secs_f32(), stringify!($subject));
        )*};
    }
    run!(
        networks,
        descriptions,
        wrong_states,
        power_by_others,
        guest_goes_down,
        killed,
        renames,
        display_password,
        console,
        live_changes,
        looks,
        transient
    );
    run!(libvirt_goes_and_comes, leaks_nothing);
    assert_eq!(hv.list().await.expect("list"), Vec::<DomainBrief>::new(), "a subject left something behind");
}

async fn remove(hv: &dyn Hypervisor, uuid: VmId) {
    match hv.destroy(uuid).await {
        Ok(()) | Err(HvError::WrongState(_)) => {}
        Err(e) => panic!("destroy: {e}"),
    }
    hv.undefine(uuid, UndefineKeep::Nothing).await.expect("undefine");
    assert_eq!(hv.find(uuid).await, Err(HvError::NoDomain(uuid)));
}

fn is_wrong_state<T: std::fmt::Debug>(result: Result<T, HvError>) {
    assert!(matches!(result, Err(HvError::WrongState(_))), "{result:?}");
}

async fn networks(stand: &dyn Stand) {
    let hv = stand.hv();
    assert_eq!(hv.network_xml("nosuch").await, Ok(None));
    hv.ensure_network(NETWORK, &network_xml(99)).await.expect("again");
    let entry = |mac: &str, ip: u8| format!("<host mac='52:54:00:00:00:{mac}' name='web' ip='10.199.9.{ip}'/>");
    hv.change_hosts(NETWORK, vec![HostChange::Add(entry("0a", 20))]).await.expect("an address is kept");
    let stored = hv.network_xml(NETWORK).await.expect("look").expect("it is there");
    assert!(stored.contains(&entry("0a", 20)), "{stored}");
    let twice = hv.change_hosts(NETWORK, vec![HostChange::Add(entry("0b", 21))]).await;
    assert!(matches!(&twice, Err(HvError::WrongState(why)) if why.contains("existing dhcp host entry")), "{twice:?}");
    let instead = [HostChange::Remove(entry("0a", 20)), HostChange::Add(entry("0b", 21)), HostChange::Remove(entry("0c", 22))];
    hv.change_hosts(NETWORK, instead.to_vec()).await.expect("another; what is gone already is fine");
    let stored = hv.active_network_xml(NETWORK).await.expect("look").expect("it runs");
    assert!(stored.contains(&entry("0b", 21)) && !stored.contains("0a' name"), "{stored}");
    hv.change_hosts(NETWORK, vec![HostChange::Remove(entry("0b", 21))]).await.expect("gone");
    let name = |ip: u8| format!("<host ip='10.199.9.{ip}'>\n  <hostname>db</hostname>\n</host>");
    hv.change_hosts(NETWORK, vec![HostChange::AddName(name(30))]).await.expect("a name");
    let stored = hv.network_xml(NETWORK).await.expect("look").expect("it is there");
    assert!(stored.contains("<host ip='10.199.9.30'>") && stored.contains("<hostname>db</hostname>"), "{stored}");
    is_wrong_state(hv.change_hosts(NETWORK, vec![HostChange::AddName(name(30))]).await);
    hv.change_hosts(NETWORK, vec![HostChange::RemoveName(name(30)), HostChange::RemoveName(name(30))])
        .await
        .expect("gone, and gone already");
    let stored = hv.network_xml(NETWORK).await.expect("look").expect("it is there");
    assert!(!stored.contains("<hostname>db"), "{stored}");
    assert_eq!(hv.leases(NETWORK).await, Ok(Vec::new()));
    hv.ensure_network(NETWORK, &network_xml(98)).await.expect("changed");
    let stored = hv.network_xml(NETWORK).await.expect("look").expect("it is there");
    assert!(stored.contains("10.199.9.98"), "{stored}");
    hv.remove_network(NETWORK).await.expect("remove");
    hv.remove_network(NETWORK).await.expect("absent is fine");
    assert_eq!(hv.network_xml(NETWORK).await, Ok(None));
    hv.ensure_network(NETWORK, &network_xml(99)).await.expect("for the others");
}

async fn descriptions(stand: &dyn Stand) {
    let (hv, vm) = (stand.hv(), uuid());
    let versions = hv.versions().await.expect("versions");
    assert!(versions.libvirt.split('.').count() == 3 && versions.qemu.split('.').count() == 3, "{versions:?}");
    let capabilities = hv.domain_capabilities("qemu", "q35").await.expect("capabilities");
    assert!(capabilities.contains("<domain>qemu</domain>"), "{capabilities}");
    let capabilities = hv.capabilities().await.expect("capabilities");
    let deprecated = vmkeep_agent::domain::deprecated_machines(&capabilities).expect("they parse");
    assert!(capabilities.contains("pc-q35-") && !deprecated.contains("q35"), "{deprecated:?}");

    let completed = hv.define(&domain_xml(stand, "d1", vm), Words::Patched).await.expect("define");
    for wanted in [&format!("<uuid>{vm}</uuid>"), "machine='pc-q35-", "<address type='pci' domain=", "ua-nic-lan", "mac address='52:54:00"]
    {
        assert!(completed.contains(wanted), "{wanted} is not in {completed}");
    }
    assert_eq!(hv.xml(vm, XmlKind::Inactive).await.expect("xml"), completed);
    assert_eq!(hv.define(&completed, Words::Patched).await.expect("what it says is what it takes"), completed);
    is_wrong_state(hv.xml(vm, XmlKind::Live).await);

    let brief = DomainBrief {
        uuid: vm,
        name: "d1".to_owned(),
        state: DomainState::Off,
        exit: None,
        paused: None,
        metadata: Some(metadata(1)),
        persistent: true,
        autostart: false,
    };
    assert_eq!(hv.find(vm).await, Ok(brief.clone()));
    assert_eq!(hv.named("d1").await, Ok(Some(brief.clone())));
    assert_eq!(hv.named("nosuch").await, Ok(None));
    assert_eq!(hv.list().await, Ok(vec![brief]));

    hv.set_autostart(vm, true).await.expect("autostart");
    hv.set_metadata(vm, Some(&metadata(2))).await.expect("metadata");
    let brief = hv.find(vm).await.expect("find");
    assert_eq!((brief.autostart, brief.metadata), (true, Some(metadata(2))));
    hv.set_metadata(vm, None).await.expect("no metadata");
    assert_eq!(hv.find(vm).await.expect("find").metadata, None);

    let other = hv.define(&domain_xml(stand, "d1", uuid()), Words::Patched).await;
    assert!(matches!(&other, Err(HvError::Refused(why)) if why.contains("already exists")), "{other:?}");
    let broken = hv.define("<domain type='qemu'><name>x</name></domain", Words::Patched).await;
    assert!(matches!(&broken, Err(HvError::Refused(_))), "{broken:?}");
    assert_eq!(hv.start(uuid()).await.map_err(|e| matches!(e, HvError::NoDomain(_))), Err(true));
    remove(&*hv, vm).await;
}

async fn wrong_states(stand: &dyn Stand) {
    let (hv, vm) = (stand.hv(), uuid());
    hv.define(&domain_xml(stand, "w1", vm), Words::Patched).await.expect("define");
    is_wrong_state(hv.shutdown(vm).await);
    is_wrong_state(hv.destroy(vm).await);
    is_wrong_state(hv.reboot(vm).await);
    is_wrong_state(hv.reset(vm).await);
    is_wrong_state(hv.suspend(vm).await);
    is_wrong_state(hv.resume(vm).await);
    is_wrong_state(hv.console(vm).await.map(|_| ()));
    is_wrong_state(hv.vnc_socket(vm).await);
    is_wrong_state(hv.addresses(vm).await);
    is_wrong_state(hv.change(vm, LiveChange::MemoryKib(64 << 10)).await);
    hv.start(vm).await.expect("start");
    is_wrong_state(hv.start(vm).await);
    is_wrong_state(hv.resume(vm).await);
    remove(&*hv, vm).await;
}

/// What virsh users do: each kind of stop is told apart, by event and afterwards.
async fn power_by_others(stand: &dyn Stand) {
    let (hv, vm) = (stand.hv(), uuid());
    let mut story = Story::begin(&hv, vm);
    hv.define(&domain_xml(stand, "p1", vm), Words::Patched).await.expect("define");
    hv.start(vm).await.expect("start");
    let mut console = hv.console(vm).await.expect("console");
    greet(&mut console).await;
    hv.suspend(vm).await.expect("suspend");
    assert_eq!(hv.find(vm).await.expect("find").state, DomainState::Paused);
    hv.resume(vm).await.expect("resume");
    hv.shutdown(vm).await.expect("shutdown");
    story_is(
        story.until("stopped Shutdown (shutdown by guest)").await,
        expect![[r#"
            Defined (added)
            agent Down
            Resumed (unpaused)
            Started (booted)
            Suspended (paused)
            Resumed (unpaused)
            powerdown asked
            ShuttingDown (by guest)
            stopped Shutdown (shutdown by guest)"#]],
    );
    is_off(&*hv, vm, ExitCause::Shutdown).await;

    hv.start(vm).await.expect("start");
    assert_eq!(hv.find(vm).await.expect("find").exit, None);
    hv.destroy(vm).await.expect("destroy");
    story_is(
        story.until("stopped Destroyed (destroyed)").await,
        expect![[r#"
            agent Down
            Resumed (unpaused)
            Started (booted)
            stopped Destroyed (destroyed)"#]],
    );
    is_off(&*hv, vm, ExitCause::Destroyed).await;
    remove(&*hv, vm).await;
    story_is(story.until("Undefined (removed)").await, expect!["Undefined (removed)"]);
}

fn story_is(story: String, expected: Expect) {
    expected.assert_eq(&story);
}

async fn is_off(hv: &dyn Hypervisor, vm: VmId, exit: ExitCause) {
    let brief = hv.find(vm).await.expect("find");
    assert_eq!((brief.state, brief.exit), (DomainState::Off, Some(exit)));
}

async fn guest_goes_down(stand: &dyn Stand) {
    let hv = stand.hv();
    let vm = running(stand, "g1").await;
    let mut console = open_console(&*hv, vm).await;
    let mut story = Story::begin(&hv, vm);
    console.to_guest.send(b"poweroff -f\n".to_vec()).await.expect("typed");
    story_is(
        story.until("stopped Shutdown (shutdown by guest)").await,
        expect![[r#"
            ShuttingDown (by guest)
            stopped Shutdown (shutdown by guest)"#]],
    );
    is_off(&*hv, vm, ExitCause::Shutdown).await;
    let rest = async { while console.from_guest.recv().await.is_some() {} };
    tokio::time::timeout(PATIENCE, rest).await.expect("the console ends with the guest");

    hv.start(vm).await.expect("start");
    let mut console = open_console(&*hv, vm).await;
    greet(&mut console).await;
    hv.reboot(vm).await.expect("reboot");
    story_is(
        story.until("rebooted").await,
        expect![[r#"
            agent Down
            Resumed (unpaused)
            Started (booted)
            powerdown asked
            rebooted"#]],
    );
    hv.reset(vm).await.expect("reset");
    story.until("rebooted").await;
    remove(&*hv, vm).await;
}

async fn killed(stand: &dyn Stand) {
    let (hv, vm) = (stand.hv(), uuid());
    hv.define(&domain_xml(stand, "k1", vm), Words::Patched).await.expect("define");
    let mut story = Story::begin(&hv, vm);
    hv.start(vm).await.expect("start");
    // libvirt may tell of a start after its answer.
    story.until("Started (booted)").await;
    stand.kill_qemu("k1", vm);
    story_is(story.until("stopped Crashed (failed)").await, expect!["stopped Crashed (failed)"]);
    is_off(&*hv, vm, ExitCause::Crashed).await;

    // A SIGTERM ends as a shutdown does; that nobody asked the guest is told before.
    hv.start(vm).await.expect("start");
    story.until("Started (booted)").await;
    let mut events = hv.events();
    stand.terminate_qemu("k1", vm);
    let told = async {
        let mut by_host = false;
        loop {
            match events.recv().await.expect("events go on") {
                HvEvent::Lifecycle { uuid, what: Lifecycle::ShuttingDown, detail } if uuid == vm => by_host = detail == BY_HOST,
                HvEvent::Lifecycle { uuid, what: Lifecycle::Stopped(cause), .. } if uuid == vm => return (by_host, cause),
                _ => {}
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, told).await.expect("it ends"), (true, ExitCause::Shutdown));
    is_off(&*hv, vm, ExitCause::Shutdown).await;
    remove(&*hv, vm).await;
}

/// A domain that is off takes another name; a running one and a taken name are refused.
async fn renames(stand: &dyn Stand) {
    let (hv, vm, other) = (stand.hv(), uuid(), uuid());
    let mut story = Story::begin(&hv, vm);
    hv.define(&domain_xml(stand, "n1", vm), Words::Patched).await.expect("define");
    story.until("Defined (added)").await;
    hv.define(&domain_xml(stand, "n2", other), Words::Patched).await.expect("define");
    let taken = hv.rename(vm, "n2").await;
    assert!(matches!(&taken, Err(HvError::WrongState(why)) if why.contains("already exists")), "{taken:?}");
    hv.rename(vm, "n3").await.expect("rename");
    story_is(
        story.until("Defined (renamed)").await,
        expect![[r#"
            Undefined (renamed)
            Defined (renamed)"#]],
    );
    assert_eq!(hv.find(vm).await.expect("find").name, "n3");
    hv.define(&domain_xml(stand, "n3", vm), Words::Patched).await.expect("its description goes by the new name");
    hv.rename(other, "n1").await.expect("the old name is free");
    hv.start(vm).await.expect("start");
    is_wrong_state(hv.rename(vm, "n4").await);
    remove(&*hv, vm).await;
    remove(&*hv, other).await;
    assert_eq!(hv.rename(vm, "n5").await, Err(HvError::NoDomain(vm)));
}

/// Another password for a display that has one, while it runs.
async fn display_password(stand: &dyn Stand) {
    let (hv, vm) = (stand.hv(), uuid());
    let tcp = "<graphics type='vnc' port='-1' autoport='yes' passwd='first'><listen type='address' address='127.0.0.1'/></graphics>";
    let xml = domain_xml(stand, "v1", vm).replace("<graphics type='vnc'><listen type='socket'/></graphics>", tcp);
    assert!(xml.contains("passwd"));
    hv.define(&xml, Words::Patched).await.expect("define");
    hv.start(vm).await.expect("start");
    let live = hv.xml(vm, XmlKind::Live).await.expect("xml");
    let graphics = live.split("<graphics").nth(1).and_then(|rest| rest.split("</graphics>").next()).expect("a display");
    let changed = format!("<graphics passwd='second'{graphics}</graphics>").replace(" passwd='first'", "");
    hv.change(vm, LiveChange::UpdateDevice(changed)).await.expect("another password");
    remove(&*hv, vm).await;
}

async fn console(stand: &dyn Stand) {
    let hv = stand.hv();
    let vm = running(stand, "c1").await;
    let mut console = open_console(&*hv, vm).await;
    console.to_guest.send(b"echo one; echo two\n".to_vec()).await.expect("typed");
    // Its echo and its answer; the prompt after an earlier answer may still be on its way, so no prompt is waited for.
    heard(&mut console, "two\r\n", 2, PATIENCE).await.expect("an answer");
    let second = hv.console(vm).await.map(|_| ());
    assert!(matches!(&second, Err(HvError::Refused(why)) if why.contains("Active console")), "{second:?}");
    for round in 0..REOPENED {
        // The next one at once: it is neither refused nor dead.
        drop(console);
        console = hv.console(vm).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        console.to_guest.send(format!("echo again-$((3+4))-{round}\n").into_bytes()).await.expect("typed");
        let answer = heard(&mut console, &format!("-{round}\r\n"), 2, REOPENED_PATIENCE).await;
        answer.unwrap_or_else(|e| panic!("round {round}: {e}"));
    }
    hv.destroy(vm).await.expect("destroy");
    let rest = async { while console.from_guest.recv().await.is_some() {} };
    tokio::time::timeout(PATIENCE, rest).await.expect("the console ends with the domain");
    tokio::time::timeout(PATIENCE, console.to_guest.closed()).await.expect("both ends close");
    remove(&*hv, vm).await;
}

/// An earlier one that was dropped is closed in the background.
async fn open_console(hv: &dyn Hypervisor, vm: VmId) -> vmkeep_agent::hypervisor::ConsoleStream {
    for _ in 0..100 {
        match hv.console(vm).await {
            Ok(console) => return console,
            Err(HvError::Refused(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(e) => panic!("console: {e}"),
        }
    }
    panic!("the console stays taken");
}

async fn live_changes(stand: &dyn Stand) {
    let hv = stand.hv();
    let vm = running(stand, "l1").await;
    let mut story = Story::begin(&hv, vm);
    let nic = |link: &str| {
        format!(
            "<interface type='network'><mac address='52:54:00:aa:bb:cc'/><source network='{NETWORK}'/><model type='virtio'/>\
             <link state='{link}'/><alias name='ua-nic-second'/></interface>"
        )
    };
    hv.change(vm, LiveChange::AttachDevice(nic("up"))).await.expect("attach");
    let live = hv.xml(vm, XmlKind::Live).await.expect("xml");
    assert!(live.contains("ua-nic-second") && live.contains("52:54:00:aa:bb:cc"), "{live}");
    let stored = hv.xml(vm, XmlKind::Inactive).await.expect("xml");
    assert!(!stored.contains("ua-nic-second"), "only the running QEMU was to change");
    let twice = hv.change(vm, LiveChange::AttachDevice(nic("up"))).await;
    assert!(twice.is_err(), "the same device twice");
    hv.change(vm, LiveChange::UpdateDevice(nic("down"))).await.expect("update");
    assert!(hv.xml(vm, XmlKind::Live).await.expect("xml").contains("<link state='down'/>"));
    hv.change(vm, LiveChange::DetachDevice(nic("down"))).await.expect("detach");
    story.until("ua-nic-second removed").await;
    assert!(!hv.xml(vm, XmlKind::Live).await.expect("xml").contains("ua-nic-second"));

    hv.change(vm, LiveChange::MemoryKib(96 << 10)).await.expect("balloon");
    for too_much in [LiveChange::MemoryKib(256 << 10), LiveChange::Vcpus(5), LiveChange::BlockResize("vdz".to_owned(), 1 << 30)] {
        let refused = hv.change(vm, too_much.clone()).await;
        assert!(matches!(refused, Err(HvError::Refused(_))), "{too_much:?}: {refused:?}");
    }
    hv.set_metadata(vm, Some(&metadata(7))).await.expect("metadata of a running domain");
    assert_eq!(hv.find(vm).await.expect("find").metadata, Some(metadata(7)));
    remove(&*hv, vm).await;
}

async fn looks(stand: &dyn Stand) {
    let hv = stand.hv();
    let vm = running(stand, "s1").await;
    let off = uuid();
    hv.define(&domain_xml(stand, "s2", off), Words::Patched).await.expect("define");
    let stats = hv.stats().await.expect("stats");
    let [one] = &stats[..] else { panic!("only the running one has counters: {stats:?}") };
    assert_eq!((one.uuid, one.vcpus, one.memory_kib), (Some(vm), 1, 128 << 10));
    assert!(one.cpu_time_ns > 0 && one.rss_kib > 0, "{one:?}");

    let began = Instant::now();
    let lease = loop {
        let found = hv.addresses(vm).await.expect("addresses");
        match found.into_iter().find(|a| a.source == AddressSource::Lease) {
            Some(lease) => break lease,
            None if began.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(100)).await,
            None => panic!("the guest got no address"),
        }
    };
    assert!(lease.mac.starts_with("52:54:00") && lease.prefix == 24, "{lease:?}");

    let picture = hv.screenshot(vm).await.expect("screenshot");
    assert!(picture.mime.starts_with("image/") && !picture.bytes.is_empty(), "{}", picture.mime);
    assert!(hv.vnc_socket(vm).await.expect("a display").is_absolute());
    hv.send_keys(vm, vec![29, 56, 111]).await.expect("ctrl alt del");
    let keys = hv.send_keys(vm, vec![1; 17]).await;
    assert!(matches!(keys, Err(HvError::Refused(_))), "{keys:?}");
    let agent = hv.agent_command(vm, r#"{"execute":"guest-ping"}"#.to_owned(), Duration::from_secs(1)).await;
    assert!(matches!(&agent, Err(HvError::Refused(why)) if why.contains("not connected")), "{agent:?}");
    remove(&*hv, vm).await;
    remove(&*hv, off).await;
}

async fn transient(stand: &dyn Stand) {
    let (hv, vm) = (stand.hv(), uuid());
    hv.define(&domain_xml(stand, "t1", vm), Words::Patched).await.expect("define");
    hv.start(vm).await.expect("start");
    hv.undefine(vm, UndefineKeep::Nothing).await.expect("undefine of a running domain");
    let brief = hv.find(vm).await.expect("it still runs");
    assert_eq!((brief.state, brief.persistent), (DomainState::Running, false));
    is_wrong_state(hv.set_autostart(vm, true).await);
    let mut story = Story::begin(&hv, vm);
    hv.destroy(vm).await.expect("destroy");
    story.until("stopped Destroyed (destroyed)").await;
    assert_eq!(hv.find(vm).await, Err(HvError::NoDomain(vm)));
}

async fn libvirt_goes_and_comes(stand: &dyn Stand) {
    let hv = stand.hv();
    let vm = running(stand, "b1").await;
    for round in 0..2 {
        let mut story = Story::begin(&hv, vm);
        let mut console = open_console(&*hv, vm).await;
        stand.break_libvirt();
        story_is(story.until("disconnected").await, expect!["disconnected"]);
        let began = Instant::now();
        for refused in [hv.list().await.map(|_| ()), hv.start(vm).await, hv.console(vm).await.map(|_| ())] {
            assert!(matches!(refused, Err(HvError::Disconnected(_))), "{refused:?}");
        }
        assert!(began.elapsed() < REFUSED_PATIENCE, "a call waited for a libvirt that is gone");
        stand.mend_libvirt();
        story.until("connected").await;
        let brief = hv.find(vm).await.expect("the guest went on");
        assert_eq!((brief.state, brief.metadata), (DomainState::Running, Some(metadata(1))), "round {round}");
        // The fake's console is not libvirt's: it may go on.
        drop(console.to_guest.clone());
        console.from_guest.close();
        drop(console);
        let mut console = open_console(&*hv, vm).await;
        greet(&mut console).await;
        hv.suspend(vm).await.expect("suspend");
        story.until("Suspended (paused)").await;
        hv.resume(vm).await.expect("resume");
    }
    remove(&*hv, vm).await;
}

/// Whole lives, each with a console; nothing of them stays open. How many tells the stand, by its guest's weight.
async fn leaks_nothing(stand: &dyn Stand) {
    let hv = stand.hv();
    let life = async |n: usize| {
        let vm = uuid();
        hv.define(&domain_xml(stand, &format!("n{n}"), vm), Words::Patched).await.expect("define");
        hv.start(vm).await.expect("start");
        let mut console = hv.console(vm).await.expect("console");
        hv.stats().await.expect("stats");
        hv.destroy(vm).await.expect("destroy");
        while console.from_guest.recv().await.is_some() {}
        remove(&*hv, vm).await;
    };
    life(0).await;
    let before = open_files();
    let lives = if stand.guest().is_empty() { 200 } else { 6 };
    for n in 1..=lives {
        life(n).await;
    }
    let began = Instant::now();
    while open_files() > before && began.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(open_files() <= before, "{before} files before, {} after {lives} lives", open_files());
}

pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}
