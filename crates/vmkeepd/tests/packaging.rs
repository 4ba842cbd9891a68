//! The package's promises, read out of its files: what is named is there, and nothing in it stops a VM.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn every_file_that_the_package_names_is_there() {
    let manifest: toml::Table = read("crates/vmkeepd/Cargo.toml").parse().expect("a manifest");
    let deb = &manifest["package"]["metadata"]["deb"];
    let assets = deb["assets"].as_array().expect("assets");
    let sources = assets.iter().map(|asset| asset[0].as_str().expect("a source"));
    let ours: Vec<&str> = sources.filter(|source| source.starts_with("../../") && !source.starts_with("../../target")).collect();
    assert!(ours.len() >= 8, "{ours:?}");
    for source in ours {
        assert!(root().join("crates/vmkeepd").join(source).is_file(), "{source}");
    }
    let installed: Vec<&str> = assets.iter().map(|asset| asset[1].as_str().expect("a place")).collect();
    for file in deb["conf-files"].as_array().expect("files") {
        let file = file.as_str().expect("a path").trim_start_matches('/');
        assert!(installed.contains(&file), "{file}");
    }
}

#[test]
fn no_unit_ties_a_vm_to_us_or_us_to_libvirt() {
    for unit in [
        "vmkeepd.service",
        "vmkeepd@.service",
        "vmkeep-guests.service",
        "vmkeep-etcd.service",
        "vmkeep-vip.service",
        "vmkeep-fenced.service",
    ] {
        let text = read(&format!("packaging/systemd/{unit}"));
        for line in text.lines() {
            for tie in ["Requires=", "Requisite=", "BindsTo=", "PartOf=", "Conflicts="] {
                // The daemon in one process and in two exclude each other.
                let of_ours = unit == "vmkeepd@.service" && line == "Conflicts=vmkeepd.service";
                assert!(of_ours || !line.starts_with(tie), "{unit}: {line}");
            }
        }
    }
    let guests = read("packaging/systemd/vmkeep-guests.service");
    let stop: Vec<&str> = guests.lines().filter(|line| line.starts_with("ExecStop=")).collect();
    assert_eq!(stop, ["ExecStop=/usr/sbin/vmkeepd guests-shutdown --if-host-stops"]);
}

#[test]
fn the_packages_scripts_stop_the_daemon_alone_and_remove_no_data() {
    for script in ["postinst", "prerm", "postrm"] {
        let path = root().join("packaging/debian").join(script);
        assert!(Command::new("sh").arg("-n").arg(&path).status().expect("sh is there").success(), "{script}");
        let text = read(&format!("packaging/debian/{script}"));
        for line in text.lines().map(str::trim) {
            let stops = line.contains("stop") && !line.starts_with('#') && !line.starts_with("# ");
            assert!(!(stops && line.contains("vmkeep-guests")), "{script}: {line}");
            for word in ["virsh destroy", "virsh shutdown", "rm -r", "rm -f", "undefine"] {
                assert!(!line.contains(word), "{script}: {line}");
            }
        }
    }
}

#[test]
fn the_host_is_not_stopping_now_so_a_stopped_service_stops_no_vm() {
    let out = Command::new(env!("CARGO_BIN_EXE_vmkeepd")).args(["--config", "/dev/null", "guests-shutdown", "--if-host-stops"]).output();
    let out = out.expect("vmkeepd runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stdout).contains("VMs go on"));
}

#[test]
fn a_bad_configuration_is_told_and_ends_with_1() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("bad.toml");
    std::fs::write(&file, "scoket = \"/x\"\n").expect("written");
    let out = Command::new(env!("CARGO_BIN_EXE_vmkeepd")).arg("--config").arg(&file).arg("--check-config").output().expect("vmkeepd runs");
    let told = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1));
    assert!(told.contains("did you mean 'socket'?") && told.contains("bad.toml"), "{told}");
}
