use expect_test::{Expect, expect};
use serde_json::json;

use super::*;

fn spec(more: Value) -> VmSpec {
    let mut whole = json!({"name": "sql1", "image": "debian-12"});
    whole.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
    vmkeep_types::manifest::vm_from_json(whole).expect("a good wish")
}

fn check(old: Value, new: Value, expect: Expect) {
    let (old, new) = (spec(old), spec(new));
    let lines = changes(&old, &new).into_iter().map(|(c, e)| format!("{}: {} -> {} ({e:?})\n", c.field, c.from, c.to));
    let refused = refusals(&old, &new).into_iter().map(|p| format!("REFUSED {}: {}\n", p.field, p.message));
    expect.assert_eq(&lines.chain(refused).collect::<String>());
}

#[test]
fn the_same_wish_changes_nothing() {
    check(json!({}), json!({"disks": [{"name": "root"}]}), expect![[""]]);
}

#[test]
fn policy_is_live() {
    check(
        json!({"labels": {"tier": "db", "old": "1"}}),
        json!({"description": "the books", "labels": {"tier": "web"}, "protect": true, "run": "always", "stop_timeout": "5m", "start": {"order": 1}}),
        expect![[r#"
            description: '' -> the books (Live)
            labels.old: 1 -> none (Live)
            labels.tier: db -> web (Live)
            protect: false -> true (Live)
            run: on-failure -> always (Live)
            start.order: 100 -> 1 (Live)
            stop_timeout: 2m -> 5m (Live)
        "#]],
    );
}

#[test]
fn memory_moves_within_its_maximum() {
    let max = json!({"memory": {"size": "2G", "max": "8G"}});
    check(
        max.clone(),
        json!({"memory": {"size": "6G", "max": "8G"}}),
        expect![[r#"
        memory.size: 2G -> 6G (Live)
    "#]],
    );
    check(
        max.clone(),
        json!({"memory": {"size": "16G", "max": "16G"}}),
        expect![[r#"
        memory.max: 8G -> 16G (Restart)
        memory.size: 2G -> 16G (Restart)
    "#]],
    );
    check(
        json!({"memory": "2G"}),
        json!({"memory": "1G"}),
        expect![[r#"
        memory.size: 2G -> 1G (Live)
    "#]],
    );
    check(
        json!({"memory": {"size": "2G", "balloon": false}}),
        json!({"memory": {"size": "1G", "balloon": false}}),
        expect![[r#"
        memory.size: 2G -> 1G (Restart)
    "#]],
    );
}

#[test]
fn cpus_are_added_live_and_removed_cold() {
    check(
        json!({"cpus": {"count": 2, "max": 8}}),
        json!({"cpus": {"count": 4, "max": 8}}),
        expect![[r#"
        cpus.count: 2 -> 4 (Live)
    "#]],
    );
    check(
        json!({"cpus": {"count": 4, "max": 8}}),
        json!({"cpus": {"count": 2, "max": 8}}),
        expect![[r#"
        cpus.count: 4 -> 2 (Restart)
    "#]],
    );
    check(
        json!({"cpus": 2}),
        json!({"cpus": 4, "cpu": {"features": {"vmx": "off"}}}),
        expect![[r#"
        cpu.features.vmx: none -> off (Restart)
        cpus.count: 2 -> 4 (Restart)
    "#]],
    );
}

#[test]
fn disks_grow_come_and_go() {
    let disks = |d: Value| json!({"disks": d});
    check(
        disks(json!([{"name": "root", "size": "20G"}, {"name": "old", "empty": true, "size": "1G"}])),
        disks(json!([{"name": "root", "size": "40G", "limits": {"iops": 500}}, {"name": "data", "empty": true, "size": "9G"}])),
        expect![[r#"
            disks[data]: none -> {empty: true, size: 9G} (Live)
            disks[old]: {empty: true, size: 1G} -> none (Live)
            disks[root].limits.iops: 0 -> 500 (Live)
            disks[root].size: 20G -> 40G (Live)
        "#]],
    );
    check(
        disks(json!([{"name": "root"}, {"name": "a", "empty": true, "size": "1G", "bus": "sata"}])),
        disks(json!([{"name": "root", "cache": "writeback"}, {"name": "b", "empty": true, "size": "1G", "bus": "nvme"}])),
        expect![[r#"
            disks[a]: {bus: sata, empty: true, size: 1G} -> none (Restart)
            disks[b]: none -> {bus: nvme, empty: true, size: 1G} (Restart)
            disks[root].cache: none -> writeback (Restart)
        "#]],
    );
}

#[test]
fn the_order_of_devices_means_nothing() {
    let (a, b) = (json!({"name": "a", "empty": true, "size": "1G"}), json!({"name": "b", "empty": true, "size": "1G"}));
    let root = json!({"name": "root", "image": "debian-12"});
    let of = |d: Value| VmSpec { image: None, ..spec(json!({"image": null, "disks": d})) };
    assert_eq!(changes(&of(json!([root, a, b])), &of(json!([b, root, a]))), vec![]);
}

#[test]
fn data_is_not_lost_by_an_edit() {
    check(
        json!({"image": "debian-12", "disks": [{"name": "root", "size": "20G"}, {"name": "data", "empty": true, "size": "9G"}]}),
        json!({"image": "debian-13", "disks": [{"name": "root", "size": "10G"}, {"name": "data", "volume": "v1", "pool": "fast", "format": "raw"}]}),
        expect![[r#"
            disks[data].empty: true -> false (Restart)
            disks[data].format: auto -> raw (Restart)
            disks[data].pool: default -> fast (Restart)
            disks[data].size: 9G -> none (Live)
            disks[data].volume: none -> v1 (Restart)
            disks[root].image: debian-12 -> debian-13 (Restart)
            disks[root].size: 20G -> 10G (Live)
            REFUSED disks[root].size: a disk cannot shrink from 20G to 10G: the guest's file systems would lose their ends
            REFUSED disks[root].image: the disk was made from 'debian-12'; `vmkeep vm rebuild` makes it anew from 'debian-13' and loses its data
            REFUSED disks[data]: it is an empty disk and cannot become the volume 'v1'; add a disk with another name, and remove this one (its data is kept as an unused volume)
            REFUSED disks[data].pool: the data lies in pool 'default' and is not moved by a change of the manifest; add a disk in 'fast' and copy
            REFUSED disks[data].format: the format of data that is there does not change; add a disk with another name and copy
        "#]],
    );
}

#[test]
fn nics_and_cdroms() {
    check(
        json!({"nics": [{"name": "lan"}], "cdroms": [{"name": "cd0", "image": "a"}]}),
        json!({"nics": [{"name": "lan", "network": "dmz", "link": "down", "mtu": 9000, "addresses": ["10.0.0.5/24"]}, {"name": "wan"}],
               "cdroms": [{"name": "cd0", "image": null}, {"name": "cd1"}]}),
        expect![[r#"
            cdroms[cd0].image: a -> none (Live)
            cdroms[cd1]: none -> {image: none, name: cd1} (Restart)
            nics[lan].addresses: [dhcp] -> [10.0.0.5/24] (Reinit)
            nics[lan].link: up -> down (Live)
            nics[lan].mtu: auto -> 9000 (Restart)
            nics[lan].network: default -> dmz (Live)
            nics[wan]: none -> {all defaults} (Live)
        "#]],
    );
}

#[test]
fn secrets_are_named_and_not_shown() {
    check(
        json!({"cloud_init": {"password": "hunter2"}}),
        json!({"cloud_init": {"password": "hunter3", "user_data": "#cloud-config\n"}, "display": {"password": "abc", "listen": "tcp"}}),
        expect![[r#"
            cloud_init.password: (secret) -> (secret) (Reinit)
            cloud_init.user_data: none -> (secret) (Reinit)
            display.listen: socket -> tcp (Restart)
            display.password: none -> (secret) (Restart)
        "#]],
    );
    check(
        json!({"cloud_init": null}),
        json!({"cloud_init": {"password": "x"}}),
        expect![[r#"
            cloud_init: none -> {hostname: none, locale: none, network_data: none, packages: [], password: (secret), password_expires: false, ssh_keys: [], timezone: none, user: none, user_data: none, users: []} (Restart)
        "#]],
    );
}

#[test]
fn hardware_needs_a_restart() {
    check(
        json!({}),
        json!({"machine": "pc", "firmware": "bios", "tpm": true, "clock": "localtime", "boot": ["lan", "root"], "agent": false, "rng": false,
               "watchdog": {}, "display": null, "libvirt_xml": [{"op": "remove", "path": "devices/sound"}]}),
        expect![[r#"
            agent: true -> false (Restart)
            boot: [] -> [lan, root] (Restart)
            clock: utc -> localtime (Restart)
            display: {listen: socket, password: none, type: vnc, video: auto} -> none (Restart)
            firmware: auto -> bios (Restart)
            libvirt_xml: [] -> [{op: remove, path: devices/sound}] (Restart)
            machine: q35 -> pc (Restart)
            rng: true -> false (Restart)
            tpm: none -> true (Restart)
            watchdog: none -> {action: reset, model: i6300esb} (Restart)
        "#]],
    );
}

#[test]
fn secure_boot_is_as_the_uefi_variables_were_made() {
    let refused = expect![[r#"
        secure_boot: none -> true (Restart)
        REFUSED secure_boot: it is false for good: its keys are in the UEFI variables, which are made with the VM; write `secure_boot: false`, or make a new VM from the disks (`vmkeep vm delete --keep-disks`, then `volume:`)
    "#]];
    check(json!({}), json!({"secure_boot": true}), refused);
    check(
        json!({}),
        json!({"secure_boot": false}),
        expect![[r#"
        secure_boot: none -> false (Restart)
    "#]],
    );
    check(
        json!({"firmware": "bios"}),
        json!({"firmware": "uefi", "secure_boot": true}),
        expect![[r#"
            firmware: bios -> uefi (Restart)
            secure_boot: none -> true (Restart)
        "#]],
    );
}

#[test]
fn a_password_of_the_display_changes_while_it_runs() {
    let display = |password: &str| json!({"display": {"listen": "tcp", "password": password}});
    check(
        display("first"),
        display("second"),
        expect![[r#"
        display.password: (secret) -> (secret) (Live)
    "#]],
    );
}
