use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::*;

fn spec(more: Value) -> VmSpec {
    let mut whole = json!({"name": "sql1"});
    whole.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
    serde_json::from_value(whole).expect("the right types")
}

fn check(more: Value, expect: Expect) {
    expect.assert_eq(&lines(vm(&spec(more))));
}

fn lines(problems: Vec<Problem>) -> String {
    problems.into_iter().map(|p| format!("{}: {}\n", p.field, p.message)).collect()
}

#[test]
fn good_ones() {
    check(json!({"image": "x"}), expect![[""]]);
    check(json!({"image": "x", "disks": [{"size": "20G"}], "boot": ["root", "lan"]}), expect![[""]]);
    check(json!({"image": "x", "boot": ["root"]}), expect![[""]]);
    check(
        json!({"cdroms": [{"name": "cd0", "image": "iso"}], "disks": [{"empty": true, "size": "20G"}], "os": "windows", "nics": []}),
        expect![[""]],
    );
    check(
        json!({"nics": [{"addresses": ["10.0.0.5/24", "fd00::5/64", "dhcp"], "gateway": "10.0.0.1", "dns": ["127.0.0.53", "fd00::1"]}]}),
        expect![[""]],
    );
    check(json!({"nics": [{"addresses": ["slaac"], "gateway": "fe80::1"}]}), expect![[""]]);
}

#[test]
fn what_is_on_a_disk() {
    check(
        json!({"disks": [{"name": "a"}, {"name": "b", "image": "x", "empty": true}, {"name": "c", "empty": true}, {"name": "d", "image": "x", "volume": "v", "empty": true, "size": "0B"},
                         {"name": "e", "volume": "v"}, {"name": "f", "image": "x", "format": "raw"}]}),
        expect![[r#"
            disks[a]: what is on it? write one of image: NAME, volume: NAME, or empty: true
            disks[b]: image and empty exclude each other; write one of them
            disks[b].size: an empty disk needs a size, like 20G
            disks[c].size: an empty disk needs a size, like 20G
            disks[d]: image and volume and empty exclude each other; write one of them
            disks[d].size: 0B is too small for a disk; at least 1M
            disks[e].volume: disk 'd' uses volume 'v' already
            disks[f].format: a disk cloned from an image is qcow2 (copy-on-write); leave the format out
        "#]],
    );
    check(
        json!({"image": "x", "disks": [{"name": "root", "image": "y"}]}),
        expect![[r#"
        image: it is short for the first disk's image, and disks[root] says image: y; write one of them
    "#]],
    );
    check(
        json!({"image": "x", "disks": [{"name": "root", "empty": true, "size": "1G"}]}),
        expect![[r#"
        image: it is short for the first disk's image, and disks[root] says empty: true; write one of them
    "#]],
    );
    check(json!({"image": "x", "disks": [{"name": "root", "image": "x"}]}), expect![[""]]);
}

#[test]
fn disk_values() {
    check(
        json!({"disks": [{"name": "a", "empty": true, "size": "1000B"}, {"name": "b", "empty": true, "size": "1025K", "serial": "has space"},
                         {"name": "c", "empty": true, "size": "100T", "serial": "S1"}, {"name": "d", "empty": true, "size": "1G", "serial": "S1"},
                         {"name": "e", "empty": true, "size": "1048577B"}]}),
        expect![[r#"
            disks[a].size: 1000B is too small for a disk; at least 1M
            disks[b].serial: 'has space' is no serial; auto, or 1 to 20 letters, digits, '-' and '_'
            disks[c].size: 100T is too large for a disk; at most 64T
            disks[d].serial: disk 'c' has the serial 'S1' already
            disks[e].size: 1048577B is not a multiple of 512 bytes, a disk's sector
        "#]],
    );
}

#[test]
fn names_are_one_space() {
    check(
        json!({"disks": [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}], "cdroms": [{"name": "a"}], "nics": [{"name": "a"}], "boot": ["a", "a", "lan"]}),
        expect![[r#"
            disks[a].name: two disks are called 'a'; each device needs a name of its own
            cdroms[a].name: 'a' is a name in disks already; each device needs a name of its own
            nics[a].name: 'a' is a name in cdroms already; each device needs a name of its own
            boot[1]: 'a' is listed twice
            boot[2]: there is no disk, cdrom or NIC 'lan'; known are a
        "#]],
    );
}

#[test]
fn what_is_booted_once() {
    check(json!({"image": "x", "boot_once": "root"}), expect![[""]]);
    check(json!({"cdroms": [{"name": "cd0"}], "boot_once": "cdrom"}), expect![[""]]);
    check(
        json!({"nics": [{"name": "lan"}], "boot_once": "cdrom"}),
        expect![[r#"
            boot_once: there is no disk, cdrom or NIC 'cdrom'; known are lan
        "#]],
    );
}

#[test]
fn cpus_and_topology() {
    check(
        json!({"cpus": 0}),
        expect![[r#"
        cpus.count: 0 is out of range; 1 to 512
    "#]],
    );
    check(
        json!({"cpus": 513}),
        expect![[r#"
        cpus.count: 513 is out of range; 1 to 512
    "#]],
    );
    check(
        json!({"cpus": 300, "machine": "pc"}),
        expect![[r#"
        cpus.count: 300 is out of range; 1 to 255
    "#]],
    );
    check(
        json!({"cpus": {"count": 4, "max": 2}}),
        expect![[r#"
        cpus.max: 2 is less than count (4)
    "#]],
    );
    check(
        json!({"cpus": {"count": 4, "max": 8, "sockets": 1, "cores": 4, "threads": 1}}),
        expect![[r#"
        cpus: 1 sockets x 4 cores x 1 threads are 4, and max is 8
    "#]],
    );
    check(
        json!({"cpus": {"count": 4, "cores": 2}}),
        expect![[r#"
        cpus: 1 sockets x 2 cores x 1 threads are 2, and count is 4
    "#]],
    );
    check(
        json!({"cpus": {"count": 4, "sockets": 0, "cores": 4_294_967_295_u32, "threads": 4_294_967_295_u32}}),
        expect![[r#"
        cpus.sockets: 0 is out of range; at least 1
    "#]],
    );
    check(json!({"cpus": {"count": 4, "max": 8, "sockets": 1, "cores": 8, "threads": 1}}), expect![[""]]);
    check(
        json!({"cpu": {"model": "Sky lake", "features": {"vmx,x": "on"}}}),
        expect![[r#"
        cpu.model: 'Sky lake' is no CPU model; auto, host, cluster, max, or a name from `qemu-system-x86_64 -cpu help`
        cpu.features.vmx,x: no CPU feature has such a name; letters, digits, '-', '_' and '.'
    "#]],
    );
}

#[test]
fn memory() {
    check(
        json!({"memory": "1M"}),
        expect![[r#"
        memory.size: 1M is out of range; 16M to 16T
    "#]],
    );
    check(
        json!({"memory": "99T"}),
        expect![[r#"
        memory.size: 99T is out of range; 16M to 16T
    "#]],
    );
    check(
        json!({"memory": "1048577K"}),
        expect![[r#"
        memory.size: 1048577K is not a whole number of M
    "#]],
    );
    check(
        json!({"memory": {"size": "4G", "max": "2G"}}),
        expect![[r#"
        memory.max: 2G is less than size (4G)
    "#]],
    );
    check(
        json!({"memory": {"size": "4G", "max": "8G", "balloon": false}}),
        expect![[r#"
        memory.max: memory grows by the balloon, and balloon is false
    "#]],
    );
    check(
        json!({"memory": {"size": "1025M", "hugepages": true}}),
        expect![[r#"
        memory.size: 1025M is not a multiple of 2M, the size of a huge page
    "#]],
    );
}

#[test]
fn firmware_and_devices_that_need_a_machine() {
    check(
        json!({"secure_boot": true, "firmware": "bios", "machine": "pc", "watchdog": {"model": "itco"}}),
        expect![[r#"
        secure_boot: it needs firmware: uefi
        secure_boot: it needs machine: q35
        watchdog.model: itco is a part of machine: q35; use i6300esb
    "#]],
    );
    check(json!({"os": "windows", "firmware": "bios"}), expect![[""]]);
}

#[test]
fn policy() {
    check(
        json!({"start": {"order": 10000, "delay": "2h", "wait_for": "agent"}, "agent": false, "stop_timeout": "2d", "restart": {"max": 101, "within": "0s"}, "ha": {"priority": 6, "max_restart": 101, "max_relocate": 101}}),
        expect![[r#"
            start.order: 10000 is out of range; 0 to 9999
            start.delay: 2h is too long; at most 1h
            stop_timeout: 2d is too long; at most 1d
            restart.max: 101 is out of range; 0 to 100
            restart.within: 0s counts nothing; write a time like 10m
            start.wait_for: it waits for the guest agent, and agent is false
            ha.priority: 6 is out of range; 1 (first) to 5
            ha.max_restart: 101 is out of range; at most 100
            ha.max_relocate: 101 is out of range; at most 100
        "#]],
    );
}

#[test]
fn labels_and_description() {
    check(
        json!({"labels": {"": "a", "a b": "c", "ok/x": "a=b", "long": "x".repeat(64)}, "description": "a\u{1b}[31m"}),
        expect![[r#"
        description: control characters are not allowed
        labels.: a label's key has 1 to 63 letters, digits, '.', '_', '/' or '-'
        labels.a b: a label's key has 1 to 63 letters, digits, '.', '_', '/' or '-'
        labels.long: a label's value has up to 63 letters, digits, '.', '_', '/', ':', '@', '+' or '-'
        labels.ok/x: a label's value has up to 63 letters, digits, '.', '_', '/', ':', '@', '+' or '-'
    "#]],
    );
    let many: serde_json::Map<String, Value> = (0..65).map(|n| (format!("l{n}"), json!("x"))).collect();
    check(
        json!({"labels": many}),
        expect![[r#"
        labels: 65 entries; the limit is 64
    "#]],
    );
}

#[test]
fn nics() {
    check(
        json!({"nics": [{"name": "a", "mac": "52:54:00:12:34"}, {"name": "b", "mac": "01:00:5e:00:00:01"}, {"name": "c", "mac": "52:54:00:AA:00:01"}, {"name": "d", "mac": "52:54:00:aa:00:01"},
                        {"name": "e", "mac": "00:00:00:00:00:00"}, {"name": "f", "mtu": 67, "queues": 0}, {"name": "g", "queues": 4, "model": "e1000e"}, {"name": "h", "mtu": 65536, "queues": 65}]}),
        expect![[r#"
            nics[a].mac: '52:54:00:12:34' is not a MAC; write auto, or six pairs like 52:54:00:12:34:56
            nics[b].mac: '01:00:5e:00:00:01' is a multicast MAC (its first byte is odd); a NIC needs a unicast one, like 52:54:00:12:34:56
            nics[d].mac: NIC 'c' has the same MAC
            nics[e].mac: a MAC of zeros belongs to nobody; write auto
            nics[f].queues: 0 is out of range; auto, or 1 to 64
            nics[f].mtu: 67 is no MTU; 68 to 65535, and 1500 on most networks
            nics[g].queues: only model: virtio has more than one queue
            nics[h].queues: 65 is out of range; auto, or 1 to 64
            nics[h].mtu: 65536 is no MTU; 68 to 65535, and 1500 on most networks
        "#]],
    );
}

#[test]
fn addresses() {
    check(
        json!({"nics": [{"name": "a", "addresses": ["10.0.0.5", "10.0.0.0/24", "10.0.0.255/24", "10.0.0.5/33", "10.0.0.5/+8", "224.0.0.1/24", "dhcp", "dhcp", "static", "fd00::/64", "::1/128"]},
                        {"name": "b", "addresses": ["10.0.0.5/24"], "gateway": "10.0.1.1", "dns": ["dns.example", "0.0.0.0"]},
                        {"name": "c", "addresses": ["10.0.0.5/24"], "gateway": "10.0.0.5"},
                        {"name": "d", "gateway": "10.0.0.1"}, {"name": "e", "gateway": "router"}]}),
        expect![[r#"
            nics[a].addresses[0]: '10.0.0.5' is not an address with a prefix length, like 10.0.0.5/24 or fd00::5/64
            nics[a].addresses[1]: 10.0.0.0 is the subnet's own or its broadcast address in a /24; write an address within it
            nics[a].addresses[2]: 10.0.0.255 is the subnet's own or its broadcast address in a /24; write an address within it
            nics[a].addresses[3]: '10.0.0.5/33' is not an address with a prefix length, like 10.0.0.5/24 or fd00::5/64
            nics[a].addresses[4]: '10.0.0.5/+8' is not an address with a prefix length, like 10.0.0.5/24 or fd00::5/64
            nics[a].addresses[5]: 224.0.0.1 is not an address that a guest can have
            nics[a].addresses[7]: 'dhcp' is listed twice
            nics[a].addresses[8]: 'static' is neither dhcp, slaac nor an address like 10.0.0.5/24
            nics[a].addresses[9]: fd00:: is the subnet's own or its broadcast address in a /64; write an address within it
            nics[a].addresses[10]: ::1 is not an address that a guest can have
            nics[b].gateway: 10.0.1.1 is in none of the subnets of this NIC's addresses
            nics[b].dns[0]: 'dns.example' is not an IP address, like 10.0.0.1 or fd00::1
            nics[b].dns[1]: 0.0.0.0 answers no DNS query
            nics[c].gateway: 10.0.0.5 is the NIC's own address
            nics[c].addresses[0]: 10.0.0.5 is on NIC 'b' already
            nics[d].gateway: a gateway needs a fixed address beside it; dhcp and slaac bring their own
            nics[e].gateway: 'router' is not an IP address, like 10.0.0.1 or fd00::1
        "#]],
    );
}

#[test]
fn display_and_serial() {
    check(
        json!({"display": {"listen": "tcp"}, "serial": {"log": "1K"}}),
        expect![[r#"
        display.password: listen: tcp needs a password: everybody who reaches the port is at the console
        serial.log: 1K is out of range; 0B for no log, or 64K to 1G
    "#]],
    );
    check(
        json!({"display": {"listen": "tcp", "password": "123456789"}, "serial": {"log": "2G"}}),
        expect![[r#"
        display.password: VNC reads only the first 8 characters; a longer one only looks safer
        serial.log: 2G is out of range; 0B for no log, or 64K to 1G
    "#]],
    );
    check(
        json!({"display": {"password": ""}, "serial": {"log": "0B"}}),
        expect![[r#"
        display.password: it is empty
    "#]],
    );
}

#[test]
fn cloud_init() {
    check(
        json!({"cloud_init": {"hostname": "a_b", "user": "Root", "users": [5, {"shell": "x"}, "ok", {"name": "0x"}], "password": "a\nb", "ssh_keys": ["-----BEGIN OPENSSH PRIVATE KEY-----", "ssh-rsa", "@~/.ssh/id.pub",
               "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBb me\nssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIBb two"], "timezone": "Europe Berlin", "locale": "", "packages": ["vim", "vim", "--force", "a;b"], "user_data": "runcmd: []"}}),
        expect![[r#"
            cloud_init.hostname: 'a_b' is no DNS name; use letters, digits and '-', parts separated by '.'
            cloud_init.user: 'Root' is no user name; up to 32 of a-z, 0-9, '_' and '-', beginning with a letter
            cloud_init.users[0]: a user is a name, or a map with a name and cloud-init's other fields
            cloud_init.users[1]: a user is a name, or a map with a name and cloud-init's other fields
            cloud_init.users[3]: '0x' is no user name; up to 32 of a-z, 0-9, '_' and '-', beginning with a letter
            cloud_init.password: 1 to 256 characters, none of them a control character
            cloud_init.ssh_keys[0]: this is a private key: never hand it out; write the public one (id_….pub)
            cloud_init.ssh_keys[1]: it is no public SSH key; one line like `ssh-ed25519 AAAA… name`, or @FILE
            cloud_init.ssh_keys[3]: it is no public SSH key; one line like `ssh-ed25519 AAAA… name`, or @FILE
            cloud_init.timezone: 'Europe Berlin' is no timezone; write it like Europe/Berlin
            cloud_init.locale: '' is no locale; write it like en_US.UTF-8
            cloud_init.packages[1]: 'vim' is listed twice
            cloud_init.packages[2]: '--force' is no package name
            cloud_init.packages[3]: 'a;b' is no package name
            cloud_init.user_data: cloud-init ignores it unless it begins with MIME headers or one of: #cloud-config-archive, #cloud-config-jsonp, ## template: jinja, #cloud-boothook, #include-once, #part-handler, #cloud-config, #include, #!
        "#]],
    );
    check(
        json!({"cloud_init": {"hostname": "10.0.0.1"}}),
        expect![[r#"
        cloud_init.hostname: '10.0.0.1' is an address, not a host name
    "#]],
    );
}

#[test]
fn what_touches_the_host() {
    check(
        json!({"shares": [{"name": "a", "path": "srv"}, {"name": "a", "path": "/srv/../etc"}, {"name": "c", "path": "/"}],
               "devices": {"pci": ["03:00.0", "0000:03:20.0", "0000:03:00.0", "0000:03:00.0"], "usb": ["1d6b", "1d6b:0002"]}}),
        expect![[r#"
            shares[a].path: 'srv' is not an absolute path
            shares[a].path: '/srv/../etc' contains '.' or '..'; write the path in full
            shares[a].name: two shares are called 'a'
            shares[c].path: the root directory is not allowed here
            devices.pci[0]: '03:00.0' is no PCI address; write it like 0000:03:00.0, as `lspci -D` does
            devices.pci[1]: '0000:03:20.0' is no PCI address; write it like 0000:03:00.0, as `lspci -D` does
            devices.pci[3]: '0000:03:00.0' is listed twice
            devices.usb[0]: '1d6b' is no USB device; write vendor:product like 1d6b:0002, as `lsusb` does
        "#]],
    );
}

#[test]
fn xml_patches() {
    check(
        json!({"libvirt_xml": [
            {"op": "remove", "path": "devices/disk[@alias=ua-disk-root]/driver/@cache"},
            {"op": "add", "path": "features", "value": "<hyperv/>"},
            {"op": "replace", "path": "devices/disk[2]/source[@file=/a/b.qcow2]/@startupPolicy", "value": "optional"},
            {"op": "add", "path": "/domain", "value": "<x/>"},
            {"op": "add", "path": "devices", "value": "text"},
            {"op": "add", "path": "devices", "value": "<!DOCTYPE x>"},
            {"op": "add", "path": "devices"},
            {"op": "remove", "path": "uuid", "value": "x"},
            {"op": "remove", "path": "metadata[1]/x"},
            {"op": "remove", "path": "@type/x"},
            {"op": "remove", "path": "devices/*"},
            {"op": "remove", "path": "devices/disk[0]"},
            {"op": "remove", "path": "devices/disk[@x]"},
            {"op": "remove", "path": "a//b"},
            {"op": "add", "path": ".", "value": "<cputune/>"},
            {"op": "add", "path": ".", "value": "<uuid>x</uuid>"},
            {"op": "replace", "path": ".", "value": "<domain/>"},
        ]}),
        expect![[r#"
            libvirt_xml[3].path: the path goes down from <domain> without a '/' at its ends; write it like devices/disk[@alias=ua-disk-root]/driver/@cache
            libvirt_xml[4].value: write one XML element, like <feature name='x'/>; no comments, no declarations
            libvirt_xml[5].value: write one XML element, like <feature name='x'/>; no comments, no declarations
            libvirt_xml[6].value: it is missing; the XML of an element, or an attribute's text
            libvirt_xml[7].path: <uuid> belongs to vmkeep and is not patched
            libvirt_xml[7].value: op: remove takes no value
            libvirt_xml[8].path: <metadata> belongs to vmkeep and is not patched
            libvirt_xml[9].path: '@type' is no step of a path; write it like devices/disk[@alias=ua-disk-root]/driver/@cache
            libvirt_xml[10].path: '*' is no step of a path; write it like devices/disk[@alias=ua-disk-root]/driver/@cache
            libvirt_xml[11].path: 'disk[0]' is no step of a path; write it like devices/disk[@alias=ua-disk-root]/driver/@cache
            libvirt_xml[12].path: 'disk[@x]' is no step of a path; write it like devices/disk[@alias=ua-disk-root]/driver/@cache
            libvirt_xml[13].path: '' is no step of a path; write it like devices/disk[@alias=ua-disk-root]/driver/@cache
            libvirt_xml[15].value: <uuid> belongs to vmkeep and is not patched
            libvirt_xml[16].path: the domain itself is neither replaced nor removed
        "#]],
    );
}

#[test]
fn too_many() {
    let disks: Vec<Value> = (0..40).map(|n| json!({"name": format!("d{n}"), "image": "x"})).collect();
    let nics: Vec<Value> = (0..17).map(|n| json!({"name": format!("n{n}")})).collect();
    check(
        json!({"disks": disks, "nics": nics, "cdroms": [{"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}, {"name": "e"}]}),
        expect![[r#"
        disks: 40 entries; the limit is 32
        cdroms: 5 entries; the limit is 4
        nics: 17 entries; the limit is 16
    "#]],
    );
}

fn host() -> NodeFacts {
    NodeFacts::of(Name::known("node1"), 4, ByteCount::from_gib(8))
}

#[test]
fn more_than_the_host_has() {
    let on_host = |more: Value| lines(vm_on_host(&spec(more), &host()));
    expect![[r#"
        memory.size: 16G is more than node node1 has (8G)
        cpus.count: 64 vCPUs on the 4 CPUs of node node1; the limit is 8 times as many, 32
    "#]]
    .assert_eq(&on_host(json!({"memory": "16G", "cpus": 64})));
    expect![[r#"
        memory.max: 9G is more than node node1 has (8G)
        cpus.max: 33 vCPUs on the 4 CPUs of node node1; the limit is 8 times as many, 32
    "#]]
    .assert_eq(&on_host(json!({"memory": {"size": "1G", "max": "9G"}, "cpus": {"count": 1, "max": 33}})));
    expect![[""]].assert_eq(&on_host(json!({"memory": "8G", "cpus": 32})));
}

#[test]
fn what_only_admins_may_use() {
    let used = admin_only(&spec(
        json!({"shares": [{"name": "a", "path": "/srv"}], "devices": {"usb": ["1d6b:0002"]}, "libvirt_xml": [{"op": "remove", "path": "a"}]}),
    ));
    assert_eq!(used, ["shares", "devices.usb", "libvirt_xml"]);
    assert_eq!(admin_only(&spec(json!({}))), Vec::<String>::new());
}

#[test]
fn short_forms_are_written_out() {
    let normal = |more: Value| {
        normalize(spec(more)).disks.iter().map(|d| format!("{} {:?}", d.name, d.image.as_ref().map(Name::as_str))).collect::<Vec<_>>()
    };
    assert_eq!(normal(json!({"image": "x"})), ["root Some(\"x\")"]);
    assert_eq!(
        normal(json!({"image": "x", "disks": [{"name": "sys", "size": "9G"}, {"name": "d", "empty": true}]})),
        ["sys Some(\"x\")", "d None"]
    );
    assert_eq!(normal(json!({})), Vec::<String>::new());
    let once = normalize(spec(json!({"image": "x"})));
    assert_eq!(normalize(once.clone()), once);
}

#[test]
fn networks() {
    let on = |more: Value| {
        let mut whole = json!({"name": "n"});
        whole.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        lines(network(&serde_json::from_value(whole).expect("the right types")))
    };
    expect![[""]].assert_eq(&on(json!({"ipv4": "10.77.3.1/24", "ipv6": "fd12:3456::1/64", "bridge": "vmk1", "mtu": 1500})));
    expect![[r#"
        bridge: mode: bridge needs the name of an existing bridge of the host
        ipv6: mode: bridge has the addresses of the network outside; leave this out
        domain: '-a' is no DNS name; use letters, digits and '-', parts separated by '.'
    "#]]
    .assert_eq(&on(json!({"mode": "bridge", "ipv6": "fd00::1/64", "domain": "-a"})));
    expect![[r#"
        bridge: 'br0;reboot' is no interface name; use letters, digits, '.', '_' and '-'
    "#]]
    .assert_eq(&on(json!({"mode": "bridge", "bridge": "br0;reboot"})));
    expect![[r#"
        bridge: 'eth0' must begin with 'vmk' in mode: nat; vmkeep makes it, and touches no other bridge
        ipv4: 10.0.0.0 is the subnet's own or its broadcast address in a /24; write an address within it
        ipv6: 2001:db8::1 is not unique local; use a /64 from fd00::/8
        mtu: IPv6 needs at least 1280
    "#]]
    .assert_eq(&on(json!({"ipv4": "10.0.0.0/24", "ipv6": "2001:db8::1/64", "mtu": 70, "bridge": "eth0"})));
    expect![[r#"
        ipv4: 'fd00::1/64' is not IPv4
        ipv6: '10.0.0.1/24' is not IPv6
        mtu: 1 is no MTU; 68 to 65535, and 1500 on most networks
    "#]]
    .assert_eq(&on(json!({"ipv4": "fd00::1/64", "ipv6": "10.0.0.1/24", "mtu": 1})));
    expect![[r#"
        bridge: 'vmk-much-too-long-name' is no interface name; 1 to 15 characters
        ipv4: a /30 is no subnet for guests; use /8 to /29
    "#]]
    .assert_eq(&on(json!({"ipv4": "10.0.0.1/30", "bridge": "vmk-much-too-long-name"})));
}

#[test]
fn volumes_pools_and_urls() {
    expect![[r#"
        size: an empty volume needs a size, like 20G
    "#]]
    .assert_eq(&lines(volume(None, DiskFormat::Auto, None)));
    expect![[r#"
        size: 0B is too small for a disk; at least 1M
        format: a volume cloned from an image is qcow2 (copy-on-write); leave the format out
    "#]]
    .assert_eq(&lines(volume(Some(ByteCount::ZERO), DiskFormat::Raw, Some(&Name::known("x")))));
    let dir =
        |path: &str| lines(pool(&serde_json::from_value(json!({"name": "p", "driver": "dir", "path": path})).expect("the right types")));
    expect![[r#"
        path: 'srv' is not an absolute path
        path: '/srv/./x' contains '.' or '..'; write the path in full
    "#]]
    .assert_eq(&[dir("/srv/vm"), dir("srv"), dir("/srv/./x")].concat());
    let mistyped = json!({"name": "p", "driver": "dir", "path": "/srv/vm", "pathh": "x"});
    assert!(serde_json::from_value::<PoolSpec>(mistyped).is_err(), "an unknown field is refused");
    let url = |url: &str| {
        lines(image(&serde_json::from_value(json!({"name": "i", "source": {"from": "url", "url": url}})).expect("the right types")))
    };
    expect![[r#"
        source.url: 'file:///etc/shadow' is no http:// or https:// address
        source.url: the address has no host
        source.url: no user or password in the address: it is shown to everybody who may see the image
        source.url: an address may have at most 2048 characters, and no spaces
    "#]]
    .assert_eq(&["https://cloud.example/a.qcow2", "file:///etc/shadow", "http://", "https://u:p@h/x", "http://a b"].map(url).concat());
}
