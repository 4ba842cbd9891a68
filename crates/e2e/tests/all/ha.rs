//! Three hosts, and a highly available guest that ticks on a disk that all of them see: whatever befalls its host, it runs again on
//! another one, and never on two.

use vmkeep_e2e::cluster::{Cluster, Program, Signal};

use super::play::Play;

/// Far more than renewals are apart, far less than anybody is given up after.
const A_WHILE: std::time::Duration = std::time::Duration::from_secs(10);

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
