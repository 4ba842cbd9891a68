//! From a manifest to a guest that speaks, and back to nothing.

use std::time::Duration;

use vmkeep_e2e::host::{Host, text};
use vmkeep_e2e::image::tiny;
use vmkeep_e2e::wait::until;

/// Two cores without hardware virtualisation: a guest that takes 2 s may take 20 beside others.
pub const BOOT: Duration = Duration::from_secs(90);

/// A host that has the image `tiny`.
pub fn host_with_tiny(name: &str) -> Host {
    let image = tiny();
    let host = Host::new(name);
    host.ok(["image".as_ref(), "import".as_ref(), image.as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
    host
}

/// A small VM of `tiny` that boots fast under TCG.
pub fn manifest(name: &str, more: &str) -> String {
    format!("kind: vm\nname: {name}\nimage: tiny\nfirmware: bios\nmemory: 128M\n{more}")
}

pub fn serial_says(host: &Host, vm: &str, words: &str) {
    until(&format!("{vm} says '{words}'"), BOOT, || {
        let log = text(&host.vmkeep(["vm", "logs", vm]).stdout);
        if log.contains(words) { Ok(()) } else { Err(log.lines().rev().take(5).collect::<Vec<_>>().join(" | ")) }
    });
}

#[test]
fn a_manifest_becomes_a_guest_that_speaks_and_leaves_nothing_behind() {
    let host = host_with_tiny("hello");
    host.apply(&manifest("hello", ""));
    let vm = host.phase("hello", "running", BOOT);
    assert_eq!(vm["status"]["node"], "node1");
    serial_says(&host, "hello", "hello from hello");
    assert!(host.virsh(["list", "--all", "--name"]).contains("hello"), "virsh sees what vmkeep made");

    let show = host.ok(["vm", "show", "hello", "-o", "yaml"]);
    let again = host.apply(&show);
    assert!(again.contains("unchanged"), "what show prints applies without change: {again}");

    let kept = until("DHCP keeps an address for it", BOOT, || {
        let vm = host.vm("hello");
        vm["status"]["addresses"]["lan"].as_str().map(str::to_owned).ok_or_else(|| vm["status"].to_string())
    });
    assert!(host.ok(["vm", "list"]).contains(&kept));
    until("the guest has taken it", BOOT, || {
        let out = text(&host.vmkeep(["vm", "ip", "hello"]).stdout);
        if out.contains(&kept) { Ok(()) } else { Err(out) }
    });
    let gateway = format!("{}.1", kept.rsplit_once('.').expect("IPv4").0);
    until("DNS knows it by its name", BOOT, || {
        let out = text(&host.exec(["busybox", "nslookup", "hello.vmk", &gateway]).stdout);
        if out.contains(&kept) { Ok(()) } else { Err(out) }
    });
    host.ok(["vm", "delete", "hello", "--yes"]);
    assert!(!host.virsh(["net-dumpxml", "vmkeep-default"]).contains("<host "), "its address is free again");
    assert_eq!(host.virsh(["list", "--all", "--name"]).trim(), "");
    let left = text(&host.exec(["find", "/var/lib/libvirt/images/vmkeep", "-type", "f", "-newer", "/etc/vmkeep"]).stdout);
    let left: Vec<&str> = left.lines().filter(|f| !f.contains("/images/images/") && !f.contains("vmkeep/images/")).collect();
    assert!(left.is_empty(), "files stay behind: {left:?}");
}

/// What `./demo` shows, without its release build: the same manifest, and the words that the demo waits for.
#[test]
fn the_vm_of_the_demo_says_what_the_demo_waits_for() {
    let demo = std::fs::read_to_string(vmkeep_e2e::host::root().join("demo")).expect("the demo");
    let words = demo.split_once("grep -a -m1 '").and_then(|(_, rest)| rest.split_once('\'')).expect("the demo waits for words").0;
    let host = host_with_tiny("demo");
    host.apply(&std::fs::read_to_string(vmkeep_e2e::host::root().join("examples/hello.yaml")).expect("its manifest"));
    serial_says(&host, "hello", words);
}

#[test]
fn launch_is_one_command_from_an_image_to_a_guest_that_speaks() {
    let host = host_with_tiny("launch");
    host.ok(["launch", "tiny", "web", "--memory", "256M", "--disk", "200M", "--label", "tier=db"]);
    let vm = host.phase("web", "running", BOOT);
    assert_eq!((&vm["spec"]["labels"]["tier"], &vm["spec"]["memory"]["size"]), (&"db".into(), &"256M".into()));
    serial_says(&host, "web", "hello from web");
    assert_eq!(host.json(["volume", "show", "web-root", "-o", "json"])["size"], "200M");
}

#[test]
fn a_volume_kept_at_deletion_can_be_used_again() {
    let host = host_with_tiny("keep");
    host.apply(&manifest("one", "run: manual\n"));
    host.ok(["vm", "delete", "one", "--keep-disks", "--yes"]);
    let volumes = host.json(["volume", "list", "-o", "json"]);
    let volume = volumes[0]["name"].as_str().expect("one volume stays").to_owned();
    host.apply(&format!("kind: vm\nname: two\nfirmware: bios\nmemory: 128M\ndisks: [{{name: root, volume: {volume}}}]\n"));
    serial_says(&host, "two", "hello from");
}

#[test]
fn uefi_variables_stay_with_a_kept_disk_and_go_to_the_vm_that_boots_it() {
    let host = Host::new("nvram");
    let wish = |name: &str, disk: &str| {
        format!(
            "kind: vm\nname: {name}\nrun: manual\nfirmware: uefi\nmemory: 256M\nnics: []\ncloud_init: null\ndisks: [{{name: root, {disk}}}]\n"
        )
    };
    let of = |name: &str| format!("/var/lib/libvirt/qemu/nvram/{}_VARS.fd", host.vm(name)["id"].as_str().expect("an id"));
    let sum = |file: &str| text(&host.exec(["sha256sum", file]).stdout).split(' ').next().unwrap_or_default().to_owned();
    host.apply(&wish("one", "empty: true, size: 1M"));
    host.ok(["vm", "start", "one"]);
    host.ok(["vm", "kill", "one"]);
    let first = of("one");
    // As an installer would: something that no template has.
    let marked = host.exec(["dd", "if=/dev/urandom", &format!("of={first}"), "bs=1", "count=64", "seek=540000", "conv=notrunc"]);
    assert!(marked.status.success(), "{}", text(&marked.stderr));
    let variables = sum(&first);
    host.ok(["vm", "delete", "one", "--keep-disks", "--yes"]);
    let volume = host.json(["volume", "show", "one-root", "-o", "json"])["id"].as_str().expect("an id").to_owned();
    let kept = format!("/var/lib/libvirt/images/vmkeep/{volume}.nvram");
    assert_eq!((sum(&kept), sum(&first)), (variables.clone(), String::new()), "beside the disk, and nowhere else");

    host.apply(&wish("two", "volume: one-root"));
    assert_eq!((sum(&of("two")), sum(&kept)), (variables, String::new()), "they are the next VM's");
    host.ok(["vm", "start", "two"]);
    host.ok(["vm", "kill", "two"]);
    host.ok(["vm", "delete", "two", "--keep-disks", "--yes"]);
    assert!(!sum(&kept).is_empty());
    host.ok(["volume", "delete", "one-root", "--yes"]);
    assert_eq!(sum(&kept), "", "and go with the volume");
}

#[test]
fn secure_boot_starts_nothing_that_nobody_signed_and_a_tpm_keeps_what_it_holds() {
    let host = host_with_tiny("sealed");
    // The loader of `tiny` is ours, and signed by nobody.
    let wish = |name: &str, more: &str| format!("kind: vm\nname: {name}\nimage: tiny\nfirmware: uefi\nmemory: 256M\nnics: []\n{more}");
    host.apply(&wish("sealed", "secure_boot: true\ntpm: true\n"));
    serial_says(&host, "sealed", "Access Denied");
    host.ok(["vm", "kill", "sealed"]);
    host.apply(&wish("open", "secure_boot: false\n"));
    serial_says(&host, "open", "hello from open");

    let made =
        || text(&host.exec(["grep", "-c", "Successfully authored TPM state", "/var/log/swtpm/libvirt/qemu/sealed-swtpm.log"]).stdout);
    assert_eq!(made().trim(), "1");
    host.ok(["vm", "start", "sealed"]);
    host.phase("sealed", "running", BOOT);
    assert_eq!(made().trim(), "1", "it is the TPM of the first start");
    assert!(host.virsh(["dumpxml", "sealed"]).contains("tpm-crb"));
}

#[test]
fn a_nic_with_a_fixed_address_has_its_name_in_dns() {
    let host = Host::new("names");
    host.ok(["network", "create", "back", "--ipv4", "10.9.0.1/24"]);
    let wish = |address: &str| {
        format!(
            "kind: vm\nname: web\nrun: manual\nfirmware: bios\nmemory: 64M\ndisks: [{{name: root, empty: true, size: 1M}}]\n\
             nics: [{{name: lan, network: back, addresses: [{address}]}}]\n"
        )
    };
    let answers = |wanted: &str| {
        until(&format!("web.vmk is {wanted:?}"), BOOT, || {
            let out = text(&host.exec(["busybox", "nslookup", "web.vmk", "10.9.0.1"]).stdout);
            let found: Vec<&str> = out.lines().filter(|line| line.contains("10.9.0.") && !line.contains("10.9.0.1")).collect();
            let right = if wanted.is_empty() { found.is_empty() } else { found.iter().any(|line| line.trim_end().ends_with(wanted)) };
            if right { Ok(()) } else { Err(out) }
        });
    };
    host.apply(&wish("10.9.0.5/24"));
    host.ok(["vm", "start", "web"]);
    answers("10.9.0.5");
    host.ok(["vm", "kill", "web"]);
    host.apply(&wish("10.9.0.6/24"));
    answers("10.9.0.6");
    host.ok(["vm", "delete", "web", "--yes"]);
    assert!(!host.virsh(["net-dumpxml", "vmkeep-back"]).contains("<hostname>"), "the name is free again");
    answers("");
}

#[test]
fn a_clone_boots_with_the_data_of_its_source() {
    let host = host_with_tiny("clone");
    let disks = "disks: [{name: root, image: tiny}, {name: data, empty: true, size: 8M}]\n";
    host.apply(&manifest("one", &format!("run: manual\n{disks}")));
    let file = |volume: &str| {
        let id = host.json(["volume", "show", volume, "-o", "json"])["id"].as_str().expect("an id").to_owned();
        format!("/var/lib/libvirt/images/vmkeep/{id}.qcow2")
    };
    let io = |volume: &str, command: &str| {
        let out = host.exec(["qemu-io", "-f", "qcow2", "-c", command, &file(volume)]);
        assert!(out.status.success(), "{command}: {}{}", text(&out.stdout), text(&out.stderr));
        text(&out.stdout)
    };
    io("one-data", "write -P 0x5a 1M 64k");
    let sum = |volume: &str| text(&host.exec(["sha256sum", &file(volume)]).stdout);
    let before = (sum("one-root"), sum("one-data"));
    host.ok(["vm", "clone", "one", "two"]);
    // The clone is done when its disks are: nothing is left to wait for.
    assert!(!io("two-data", "read -P 0x5a 1M 64k").contains("failed"));
    host.ok(["vm", "start", "two"]);
    serial_says(&host, "two", "hello from two");
    assert_eq!((sum("one-root"), sum("one-data")), before, "the source is untouched");
    let running = host.vmkeep(["vm", "clone", "two", "three"]);
    assert!(!running.status.success() && text(&running.stderr).contains("torn"), "{}", text(&running.stderr));
}
