//! The whole room loses its power, and has it again.

use vmkeep_e2e::cluster::{Cluster, Plan, Watchdogs};
use vmkeep_e2e::image::tiny;
use vmkeep_e2e::wait::until;

use super::hello::{BOOT, manifest};

#[test]
fn a_cluster_whose_hosts_all_lost_their_power_comes_back_by_itself() {
    let mut cluster = Cluster::planned("room", Plan { more: "", shared: &[], watchdogs: Watchdogs::None, ..Plan::default() });
    cluster.host(0).ok(["image".as_ref(), "import".as_ref(), tiny().as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
    cluster.host(0).apply(&manifest("always", "run: always\n"));
    cluster.host(0).apply(&manifest("manual", "run: manual\n"));
    cluster.host(0).phase("always", "running", BOOT);
    cluster.members.iter_mut().for_each(|member| member.host.power_off());
    cluster.members.iter_mut().for_each(|member| member.power_on());
    // Each control plane waits for etcd by itself.
    (0..3).for_each(|asked| cluster.until_nodes(asked, "online online online"));
    let home = cluster.host(1).phase("always", "running", BOOT)["status"]["node"].as_str().expect("a node").to_owned();
    let home: usize = home["node".len()..].parse().expect("a number");
    let guest = until("its guest lives, in a process of now", BOOT, || {
        let pids = cluster.host(home - 1).qemu_pids("always");
        if pids.is_empty() { Err("none".to_owned()) } else { Ok(pids) }
    });
    assert_eq!(guest.len(), 1, "{guest:?}");
    cluster.host(2).phase("manual", "stopped", BOOT);
}
