//! A pool on a file system whose files can share blocks: a copy takes no room, and boots.

use vmkeep_e2e::host::{Host, text};
use vmkeep_e2e::image::tiny;

use super::hello::{manifest, serial_says};

const POOL: &str = "/var/lib/libvirt/images";
/// Random data in a disk, so that nothing makes it smaller than it is.
const WRITTEN_MIB: u64 = 48;

fn shell(host: &Host, script: &str) -> String {
    let out = host.exec(["sh", "-c", script]);
    assert!(out.status.success(), "{script}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

fn file_of(host: &Host, volume: &str, suffix: &str) -> String {
    let id = host.json(["volume", "show", volume, "-o", "json"])["id"].as_str().expect("an id").to_owned();
    format!("{POOL}/vmkeep/{id}.{suffix}")
}

/// MiB of the pool's file system that are taken.
fn taken_mib(host: &Host) -> u64 {
    shell(host, &format!("sync; df --output=used -BM {POOL} | tail -1 | tr -dc 0-9")).parse().expect("a number")
}

/// Whether blocks of this file belong to another one too.
fn shares(host: &Host, file: &str) -> bool {
    shell(host, &format!("filefrag -v {file}")).contains("shared")
}

#[test]
fn copies_share_their_blocks_where_the_file_system_can() {
    let image = tiny();
    let mut host = Host::without_daemon("reflink");
    shell(
        &host,
        &format!("truncate -s 1G /var/lib/vmkeep/xfs && mkfs.xfs -q /var/lib/vmkeep/xfs && mount -o loop /var/lib/vmkeep/xfs {POOL}"),
    );
    host.start_daemon();
    let checked = text(&host.vmkeep(["host", "check"]).stdout);
    assert!(checked.contains(", reflink"), "the check has tried it: {checked}");
    host.ok(["image".as_ref(), "import".as_ref(), image.as_os_str(), "--name".as_ref(), "tiny".as_ref()]);

    let disks =
        "disks: [{name: root, image: tiny}, {name: data, empty: true, size: 100M}, {name: bulk, empty: true, size: 100M, format: raw}]";
    host.apply(&manifest("one", &format!("run: manual\n{disks}\n")));
    let (data, bulk) = (file_of(&host, "one-data", "qcow2"), file_of(&host, "one-bulk", "raw"));
    let fill = format!("head -c {WRITTEN_MIB}M /dev/urandom");
    shell(&host, &format!("{fill} >/var/lib/vmkeep/junk && {fill} | dd of={bulk} conv=notrunc status=none"));
    shell(&host, &format!("qemu-io -f qcow2 -c 'write -s /var/lib/vmkeep/junk 0 {WRITTEN_MIB}M' {data}"));
    let before = taken_mib(&host);
    host.ok(["vm", "clone", "one", "two"]);
    let after = taken_mib(&host);
    assert!(after < before + WRITTEN_MIB / 4, "a copy of two times {WRITTEN_MIB} MiB took {} MiB", after - before);
    let copies = [file_of(&host, "two-data", "qcow2"), file_of(&host, "two-bulk", "raw")];
    assert!(copies.iter().all(|file| shares(&host, file)));
    let sum = |file: &str| shell(&host, &format!("sha256sum <{file}"));
    assert_eq!([sum(&data), sum(&bulk)], copies.clone().map(|file| sum(&file)), "the same data");

    host.ok(["vm", "start", "two"]);
    serial_says(&host, "two", "hello from two");
    host.ok(["vm", "delete", "one", "--yes"]);
    host.ok(["vm", "kill", "two"]);
    host.ok(["vm", "start", "two"]);
    serial_says(&host, "two", "hello from two");
    let needed = host.vmkeep(["image", "delete", "tiny", "--yes"]);
    assert!(!needed.status.success() && text(&needed.stderr).contains("two-root"), "{}", text(&needed.stderr));
    host.ok(["vm", "delete", "two", "--yes"]);
    host.ok(["image", "delete", "tiny", "--yes"]);
    assert_eq!(shell(&host, &format!("find {POOL}/vmkeep -type f")), "");
}
