//! The whole room loses its power, and has it again.

use vmkeep_e2e::cluster::Cluster;
use vmkeep_e2e::image::tiny;
use vmkeep_e2e::wait::until;

use super::hello::{BOOT, manifest};

/// At home on one host only, so that nothing but its priority says when it starts.
fn highly_available(name: &str, priority: u8) -> String {
    manifest(name, &format!("run: always\nha: {{priority: {priority}}}\nplacement: {{node_selector: {{node: node2}}}}\n"))
}

#[test]
fn a_cluster_whose_hosts_all_lost_their_power_comes_back_by_itself() {
    let mut cluster = Cluster::new("room", "");
    cluster.host(0).ok(["image".as_ref(), "import".as_ref(), tiny().as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
    cluster.host(0).apply(&manifest("always", "run: always\n"));
    cluster.host(0).apply(&manifest("manual", "run: manual\n"));
    cluster.host(0).apply(&highly_available("last", 5));
    cluster.host(0).phase("last", "running", BOOT);
    cluster.host(0).apply(&highly_available("first", 1));
    cluster.host(0).phase("first", "running", BOOT);
    cluster.host(0).phase("always", "running", BOOT);
    assert!(cluster.host(1).began("last", BOOT) < cluster.host(1).began("first", BOOT), "as they were made");
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
    assert!(cluster.host(1).began("first", BOOT) < cluster.host(1).began("last", BOOT), "by priority");
    for vm in ["first", "last"] {
        cluster.host(2).phase(vm, "running", BOOT);
    }
}
