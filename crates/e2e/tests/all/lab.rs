//! The test hosts themselves: what is done to them happens, and to nobody else.

use std::time::Duration;

use vmkeep_e2e::host::Host;
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::wait::until;

/// libvirt of `to` answers `from` over the switch within a second.
fn reaches(from: &Host, to: &str) -> bool {
    from.exec(["timeout", "1", "virsh", "-q", "-c", &format!("qemu+tcp://{to}/system"), "uri"]).status.success()
}

fn until_reached(from: &Host, to: &str) {
    until("it is reached", Duration::from_secs(20), || if reaches(from, to) { Ok(()) } else { Err(String::new()) });
}

#[test]
fn hosts_of_one_switch_are_cut_off_frozen_killed_and_come_back() {
    let switch = Switch::new("lab");
    let (one, mut two) = (Host::without_daemon("lab1"), Host::without_daemon("lab2"));
    one.link(&switch, "10.77.0.1/24");
    two.link(&switch, "10.77.0.2/24");
    until_reached(&one, "10.77.0.2");
    two.cut();
    assert!(!reaches(&one, "10.77.0.2"), "the cable is out");
    two.join();
    until_reached(&one, "10.77.0.2");
    two.freeze();
    assert!(!reaches(&one, "10.77.0.2"), "nobody there answers");
    two.thaw();
    until_reached(&one, "10.77.0.2");
    assert!(two.exec(["ip", "link", "add", "vmk7", "type", "bridge"]).status.success());
    two.power_off();
    assert!(!reaches(&one, "10.77.0.2"), "nobody is there");
    until_reached(&one, "127.0.0.1");
    two.power_on();
    until_reached(&one, "10.77.0.2");
    assert!(!two.exec(["ip", "link", "show", "vmk7"]).status.success(), "a boot forgets what programs made");
}
