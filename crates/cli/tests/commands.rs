//! What commands print, and how they end: run as a person runs them, against fixed answers.

mod stub;

use expect_test::{Expect, expect};
use serde_json::json;
use stub::{Stub, operation, page, problem, run, vm};

fn check(stub: &Stub, args: &[&str], expected: Expect) {
    expected.assert_eq(&stub.run(args, ""));
}

fn image(name: &str, kind: &str) -> serde_json::Value {
    let facts = json!({
        "kind": kind, "virtual_size": "2G", "stored_size": "1G", "sha256": null, "firmware": "auto", "os": "linux", "os_name": "Debian",
        "cloud_init": "yes", "guest_agent": "yes", "virtio": "yes", "warnings": [],
    });
    json!({
        "id": "00000000-0000-0000-0000-000000000003", "project": "default", "facts": facts, "state": "ready", "used_by": [],
        "spec": {"name": name, "source": {"from": "build", "recipe": "debian-13"}}, "created_at": "2026-01-31T14:05:09Z",
    })
}

fn two_vms() -> Stub {
    Stub::new(vec![
        ("GET /v1/vms/web/", 404, problem(404, "not_found", "no")),
        ("GET /v1/vms/web", 200, vm("web", "running", "running")),
        ("GET /v1/vms/gone", 404, problem(404, "not_found", "there is no vm 'gone'")),
        ("GET /v1/vms", 200, page(json!([vm("web", "running", "running"), vm("db", "stopped", "stopped (held by alice)")]))),
        (
            "GET /v1/domains",
            200,
            page(json!([{"uuid": "00000000-0000-0000-0000-000000000009", "name": "Old One", "state": "off", "ours": false}])),
        ),
    ])
}

#[test]
fn lists() {
    let stub = two_vms();
    // AGE grows: names and machine formats are compared instead.
    check(
        &stub,
        &["vm", "ls", "-o", "name"],
        expect![[r#"
        exit 0
        --- stdout
        web
        db
    "#]],
    );
    check(
        &stub,
        &["vm", "list", "-A", "-o", "name"],
        expect![[r#"
        exit 0
        --- stdout
        web
        db
        Old One
    "#]],
    );
    let wide = stub.run(&["vm", "list", "-A", "-o", "wide"], "");
    let columns: Vec<&str> = wide.lines().nth(2).unwrap_or_default().split_whitespace().collect();
    assert_eq!(
        columns,
        ["NAME", "STATE", "CPUS", "MEMORY", "ADDRESS", "NODE", "AGE", "NOTES", "IMAGE", "ACCEL", "RESTARTS", "LABELS", "ID"]
    );
    assert!(wide.contains("stopped (held by alice)") && wide.contains("Old One") && wide.contains("off (not ours)"), "{wide}");
}

#[test]
fn one_vm() {
    let stub = two_vms();
    check(
        &stub,
        &["vm", "show", "web"],
        expect![[r#"
        exit 0
        --- stdout
        Name:           web
        State:          running, since 2026-01-31 14:06:00+00:00
        Warnings:       TCG: no hardware virtualisation
        After restart:  memory.size: 1G -> 2G
        Run:            on-failure
        CPUs:           1 (auto)
        Memory:         2G
        Machine:        pc-q35-10.0, BIOS
        Labels:         tier=db
        Node:           host1
        Accelerator:    qemu
        Origin:         created
        Created:        2026-01-31 14:05:09+00:00
        Revision:       5
        Id:             00000000-0000-0000-0000-000000000001

        NIC  NETWORK  MAC                MODEL   ADDRESSES
        lan  default  52:54:00:00:00:01  virtio  dhcp
    "#]],
    );
    check(
        &stub,
        &["vm", "show", "web", "-o", "yaml"],
        expect![[r#"
        exit 0
        --- stdout
        kind: vm
        name: web
        image: tiny
        labels:
          tier: db
        memory: 2G
    "#]],
    );
}

#[test]
fn refusals_have_codes_and_hints() {
    let stub = two_vms();
    check(
        &stub,
        &["vm", "show", "gone"],
        expect![[r#"
        exit 3
        --- stderr
        error: there is no vm 'gone'
        hint: see 'vmkeep vm list'
    "#]],
    );
    check(
        &stub,
        &["vm", "show", "Bad/Name"],
        expect![[r#"
        exit 2
        --- stderr
        error: invalid value 'Bad/Name' for '<NAME>': 'Bad/Name' is not a name: use lower case only

        For more information, try '--help'.
    "#]],
    );
    check(
        &stub,
        &["vm", "strat", "web"],
        expect![[r#"
        exit 2
        --- stderr
        error: unrecognized subcommand 'strat'

          tip: some similar subcommands exist: 'create', 'restart', 'start'

        Usage: vmkeep vm [OPTIONS] <COMMAND>

        For more information, try '--help'.
    "#]],
    );
    let stub = Stub::new(vec![("POST /v1/vms/web/actions/start", 409, problem(409, "conflict", "vm 'web' is leaving"))]);
    check(
        &stub,
        &["vm", "start", "web"],
        expect![[r#"
        exit 4
        --- stderr
        error: vm 'web' is leaving
    "#]],
    );
    let dir = tempfile::tempdir().expect("a directory");
    expect![[r#"
        exit 5
        --- stderr
        error: cannot reach vmkeepd at DIR/nobody: No such file or directory
        hint: is the daemon running? see 'systemctl status vmkeepd'
    "#]]
    .assert_eq(&run(&dir, &dir.path().join("nobody"), &["vm", "list"], ""));
}

#[test]
fn an_operation_is_followed_in_plain_lines() {
    let stub = Stub::with(Box::new(|seen| match seen.line.as_str() {
        "POST /v1/vms/web/actions/start" => {
            Some((202, json!({"operation": operation("vm.start", "pending", &[]), "warnings": ["it is slow: TCG"]})))
        }
        line if line.ends_with("watch=true") => {
            let event = |op| format!("event: put\nid: 1\ndata: {}\n\n", json!({"type": "put", "object": op}));
            let running = event(operation("vm.start", "running", &["volume root: cloned from tiny"]));
            let done = event(operation("vm.start", "done", &["volume root: cloned from tiny", "domain: started"]));
            Some((200, json!(running + &done)))
        }
        _ => None,
    }));
    check(
        &stub,
        &["vm", "start", "web"],
        expect![[r#"
        exit 0
        --- stderr
        warning: it is slow: TCG
          web: volume root: cloned from tiny
          web: domain: started
        vm 'web' started after 2.3 s
    "#]],
    );
    check(
        &stub,
        &["vm", "start", "web", "--no-wait"],
        expect![[r#"
        exit 0
        --- stderr
        warning: it is slow: TCG
        web: operation 00000000-0000-0000-0000-00000000000a goes on; see 'vmkeep op show 00000000-0000-0000-0000-00000000000a'
    "#]],
    );
    check(
        &stub,
        &["vm", "start", "web", "-q", "-o", "name"],
        expect![[r#"
        exit 0
        --- stdout
        web
        --- stderr
        warning: it is slow: TCG
    "#]],
    );
    check(
        &stub,
        &["vm", "start", "web", "--dry-run"],
        expect![[r#"
        exit 0
        --- stderr
        would start vm 'web'
    "#]],
    );
}

#[test]
fn a_failed_operation_says_why() {
    let mut failed = operation("vm.start", "failed", &["volume root: cloned from tiny"]);
    failed["error"] =
        json!({"code": "refused", "message": "QEMU: could not open disk: Permission denied", "hint": "see 'vmkeep host check'"});
    let stub = Stub::new(vec![("POST /v1/vms/web/actions/start", 202, json!({ "operation": failed }))]);
    check(
        &stub,
        &["vm", "start", "web"],
        expect![[r#"
        exit 1
        --- stderr
          web: volume root: cloned from tiny
        error: cannot start vm 'web': QEMU: could not open disk: Permission denied
        hint: see 'vmkeep host check'
    "#]],
    );
}

#[test]
fn deleting_shows_the_volumes_and_needs_a_yes() {
    let volume = json!([{
        "id": "00000000-0000-0000-0000-000000000002", "project": "default", "name": "web-root", "pool": "default", "node": "host1", "format": "qcow2",
        "size": "4G", "allocated": "1G", "image": "tiny", "attached": {"vm": "00000000-0000-0000-0000-000000000001", "disk": "root"}, "vm": "web",
    }]);
    let stub = Stub::new(vec![
        ("GET /v1/vms/web", 200, vm("web", "running", "running")),
        ("GET /v1/volumes", 200, page(volume)),
        ("DELETE /v1/vms/web", 202, json!({"operation": operation("vm.delete", "done", &[])})),
    ]);
    check(
        &stub,
        &["vm", "delete", "web"],
        expect![[r#"
            exit 2
            --- stderr
              volume web-root 4G: deleted with its data
              web is not off: killed at once, without a shutdown
            error: there is no terminal to ask on: Delete vm web and its disks?
            hint: give --yes to do it without asking
        "#]],
    );
    check(
        &stub,
        &["vm", "rm", "web", "--yes", "--keep-disks"],
        expect![[r#"
            exit 0
            --- stderr
              volume web-root 4G: kept as an unused volume
              web is not off: killed at once, without a shutdown
            vm 'web' deleted after 2.3 s
        "#]],
    );
    expect![[r#"
        DELETE /v1/vms/web?keep_disks=true
    "#]]
    .assert_eq(&stub.changes());
}

#[test]
fn host_check() {
    let rows = json!({"rows": [
        {"id": "kvm", "level": "warn", "found": "/dev/kvm is absent", "why": "VMs are emulated and slow", "mend": "enable VT-x in the firmware"},
        {"id": "libvirt", "level": "ok", "found": "11.3.0", "why": "", "mend": null},
        {"id": "memory", "level": "fail", "found": "512M", "why": "no VM fits", "mend": null},
    ]});
    let stub = Stub::new(vec![("GET /v1/host/check", 200, rows)]);
    check(
        &stub,
        &["host", "check"],
        expect![[r#"
        exit 1
        --- stdout
        CHECK    STATE  FOUND
        kvm      warn   /dev/kvm is absent
        libvirt  ok     11.3.0
        memory   fail   512M

        warn kvm: VMs are emulated and slow
             enable VT-x in the firmware

        fail memory: no VM fits
        --- stderr
        3 checks: 1 ok, 1 warn, 1 fail
    "#]],
    );
    check(
        &stub,
        &["host", "check", "-o", "json", "-q"],
        expect![[r#"
        exit 1
        --- stdout
        {
          "rows": [
            {
              "id": "kvm",
              "level": "warn",
              "found": "/dev/kvm is absent",
              "why": "VMs are emulated and slow",
              "mend": "enable VT-x in the firmware"
            },
            {
              "id": "libvirt",
              "level": "ok",
              "found": "11.3.0",
              "why": "",
              "mend": null
            },
            {
              "id": "memory",
              "level": "fail",
              "found": "512M",
              "why": "no VM fits",
              "mend": null
            }
          ]
        }
    "#]],
    );
}

#[test]
fn launch_makes_a_password_where_there_is_no_key() {
    // It fails: the password was told before.
    let stub = Stub::new(vec![
        ("GET /v1/images/debian-13", 200, image("debian-13", "disk")),
        ("GET /v1/images/", 404, problem(404, "not_found", "there is no image 'tiny'")),
        ("POST /v1/vms", 202, json!({"operation": operation("vm.create", "failed", &[])})),
    ]);
    let told = stub.run(&["launch", "debian-13", "web", "--cpus", "2", "--memory", "2GiB", "--disk", "20GiB", "--network", "default"], "");
    let password = told.split("password of the image's user is ").nth(1).and_then(|t| t.split(' ').next()).expect("a password is said");
    assert_eq!(password.len(), 16);
    assert!(told.starts_with("exit 1\n"), "{told}");
    assert!(stub.changes().contains(&format!(r#""password":"{password}","password_expires":true"#)), "{}", stub.changes());
    assert!(stub.header("idempotency-key").is_some());
    check(
        &stub,
        &["launch", "tiny", "web"],
        expect![[r#"
        exit 3
        --- stderr
        error: there is no image 'tiny'
        hint: see 'vmkeep image list', or make it with 'vmkeep image build tiny'
    "#]],
    );
}

#[test]
fn the_guests_exit_code_is_passed_on() {
    let answer = json!({"exit_code": 7, "signal": null, "stdout": "out\n", "stderr": "err\n", "truncated": false});
    let stub = Stub::new(vec![("POST /v1/vms/web/exec", 200, answer)]);
    check(
        &stub,
        &["vm", "exec", "web", "--", "sh", "-c", "exit 7"],
        expect![[r#"
        exit 7
        --- stdout
        out
        --- stderr
        err
    "#]],
    );
    expect![[r#"
        POST /v1/vms/web/exec {"command":["sh","-c","exit 7"],"stdin":null,"timeout":"1m"}
    "#]]
    .assert_eq(&stub.changes());
}

#[test]
fn ssh_pins_the_host_key_to_the_vm() {
    let addresses = json!([
        {"nic": "lan", "mac": "52:54:00:00:00:01", "address": "fe80::1/64", "source": "agent"},
        {"nic": "lan", "mac": "52:54:00:00:00:01", "address": "10.77.3.12/24", "source": "lease"},
    ]);
    let mut debian = vm("web", "running", "running");
    debian["spec"]["image"] = json!("debian-13");
    let stub = Stub::new(vec![("GET /v1/vms/web/addresses", 200, addresses), ("GET /v1/vms/web", 200, debian)]);
    check(
        &stub,
        &["vm", "ip", "web"],
        expect![[r#"
        exit 0
        --- stdout
        ADDRESS        NIC  SOURCE
        10.77.3.12/24  lan  lease
        fe80::1/64     lan  agent
    "#]],
    );
    check(
        &stub,
        &["vm", "ssh", "web", "--dry-run", "--", "uptime"],
        expect![[r#"
        exit 0
        --- stderr
        would run "ssh" "-o" "HostKeyAlias=vmkeep-00000000-0000-0000-0000-000000000001" "-o" "UserKnownHostsFile=DIR/.config/vmkeep/known_hosts" "-o" "StrictHostKeyChecking=accept-new" "-o" "CheckHostIP=no" "-l" "debian" "--" "10.77.3.12" "uptime"
    "#]],
    );
}

#[test]
fn a_file_is_uploaded_and_imported() {
    let id = "00000000-0000-0000-0000-0000000000aa";
    let stub = Stub::with(Box::new(move |seen| match seen.line.split('?').next().unwrap_or_default() {
        "POST /v1/uploads" => Some((200, json!({"upload": id, "have": 0}))),
        line if line.starts_with("PUT /v1/uploads/") => Some((200, json!({"upload": id, "have": 5}))),
        "POST /v1/images" => Some((202, json!({"operation": operation("image.import", "done", &["checked: qcow2"])}))),
        "GET /v1/images/taken" => Some((200, image("taken", "disk"))),
        "GET /v1/images/my-disk" => Some((404, problem(404, "not_found", "gone again"))),
        _ => None,
    }));
    stub.write("My_Disk.img", "12345");
    check(
        &stub,
        &["image", "import", "My_Disk.img", "--name", "taken"],
        expect![[r#"
            exit 4
            --- stderr
            error: image 'taken' exists already
            hint: give another name with --name, or 'vmkeep image delete taken'
        "#]],
    );
    assert_eq!(stub.changes(), "", "nothing went up");
    check(
        &stub,
        &["image", "import", "My_Disk.img", "--sha256", "12"],
        expect![[r#"
        exit 2
        --- stderr
        error: invalid value '12' for '--sha256 <HEX>': a SHA-256 is 64 hexadecimal digits

        For more information, try '--help'.
    "#]],
    );
    check(
        &stub,
        &["image", "import", "My_Disk.img"],
        expect![[r#"
        exit 3
        --- stderr
        upload 00000000-0000-0000-0000-0000000000aa; should it break, go on with 'vmkeep image import My_Disk.img --name my-disk --resume 00000000-0000-0000-0000-0000000000aa'
          web: checked: qcow2
        vm 'web' imported after 2.3 s
        error: gone again
    "#]],
    );
    expect![[r#"
        POST /v1/uploads
        PUT /v1/uploads/00000000-0000-0000-0000-0000000000aa?offset=0 12345
        POST /v1/images {"description":"","name":"my-disk","pool":"default","source":{"from":"upload","sha256":null,"upload":"00000000-0000-0000-0000-0000000000aa"}}
    "#]].assert_eq(&stub.changes());
}

#[test]
fn a_cd_is_exported_as_what_it_is() {
    let stub =
        Stub::new(vec![("GET /v1/images/netinst/content", 200, json!("CD001")), ("GET /v1/images/netinst", 200, image("netinst", "iso"))]);
    check(
        &stub,
        &["image", "export", "netinst"],
        expect![[r#"
            exit 0
            --- stderr
            netinst.iso: 5 bytes
        "#]],
    );
    assert_eq!(std::fs::read_to_string(stub.path("netinst.iso")).expect("written"), "CD001");
}

#[test]
fn an_interrupted_upload_says_how_it_goes_on() {
    let id = "00000000-0000-0000-0000-0000000000aa";
    let (began, begun) = std::sync::mpsc::channel();
    let began = std::sync::Mutex::new(began);
    let stub = Stub::with(Box::new(move |seen| match seen.line.split('?').next().unwrap_or_default() {
        "POST /v1/uploads" => Some((200, json!({"upload": id, "have": 0}))),
        line if line.starts_with("PUT /v1/uploads/") => {
            let _ = began.lock().expect("unpoisoned").send(());
            // The bytes are on their way until somebody ends it.
            loop {
                std::thread::park();
            }
        }
        _ => None,
    }));
    stub.write("disk.img", "12345");
    let child = stub.spawn(&["image", "import", "disk.img", "-q"]);
    begun.recv().expect("the upload begins");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("Ctrl-C");
    expect![[r#"
        exit 130
        --- stderr
        warning: stopped; what is there is kept for a while: go on with 'vmkeep image import disk.img --name disk --resume 00000000-0000-0000-0000-0000000000aa'
    "#]]
    .assert_eq(&stub.end_of(child));
}

#[test]
fn what_stays_is_not_called_deleted() {
    let volume = json!([{
        "id": "00000000-0000-0000-0000-000000000002", "project": "default", "name": "web-root", "pool": "default", "node": "host1", "format": "qcow2",
        "size": "4G", "allocated": "1G", "image": null, "attached": {"vm": "00000000-0000-0000-0000-000000000001", "disk": "root"}, "vm": "web",
        "foreign_path": "/srv/old.qcow2",
    }]);
    let stub = Stub::new(vec![("GET /v1/vms/web", 200, vm("web", "running", "running")), ("GET /v1/volumes", 200, page(volume))]);
    check(
        &stub,
        &["vm", "delete", "web", "--dry-run"],
        expect![[r#"
            exit 0
            --- stderr
              volume web-root 4G: forgotten; the adopted file stays at /srv/old.qcow2
              web is not off: killed at once, without a shutdown
            would delete vm 'web'
        "#]],
    );
}

#[test]
fn what_a_guest_wrote_cannot_paint_on_the_terminal() {
    let evil = "\u{1b}]0;title\u{7}\u{9b}2J";
    let event = json!({
        "at": "2026-01-31T14:05:09Z", "level": "error", "code": "vm.crashed", "message": format!("said {evil}\nnext"), "node": null,
        "resource": {"kind": "vm", "project": "default", "name": "web", "uid": "00000000-0000-0000-0000-000000000001"},
    });
    let stub = Stub::new(vec![
        ("GET /v1/vms/web/logs", 200, json!(format!("log {evil}\n"))),
        ("GET /v1/vms/web/events", 200, page(json!([event]))),
        ("GET /v1/vms/web/addresses", 200, json!([{"nic": null, "mac": "", "address": evil, "source": "agent"}])),
        ("GET /v1/vms/web", 409, problem(409, "conflict", evil)),
    ]);
    for args in [
        &["vm", "events", "web"][..],
        &["vm", "events", "web", "-o", "json"],
        &["vm", "events", "web", "-o", "yaml"],
        &["vm", "ip", "web", "-o", "name"],
        &["vm", "show", "web"],
    ] {
        let told = stub.run(args, "");
        assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{args:?}: {told:?}");
    }
    assert!(stub.run(&["vm", "logs", "web"], "").contains(evil), "a log in a pipe is as it was written");
}

#[test]
fn formats_that_a_command_has_not_are_refused() {
    let stub = two_vms();
    for args in [&["explain", "vm", "-o", "json"][..], &["vm", "logs", "web", "-o", "yaml"], &["token", "create", "ci", "-o", "name"]] {
        assert!(stub.run(args, "").starts_with("exit 2\n"), "{args:?}");
    }
    check(
        &stub,
        &["man", "pages", "--dry-run"],
        expect![[r#"
            exit 0
            --- stderr
            would write man pages into pages
        "#]],
    );
    assert!(!stub.path("pages").exists());
}

#[test]
fn a_dry_run_asks_the_server() {
    let created = json!({"results": [{"kind": "vm", "name": "new", "action": "create", "warnings": [], "operation": null, "changes": []}]});
    let mut refused = problem(422, "invalid", "the list of manifests has 1 problem");
    refused["problems"] = json!([{"field": "manifests[0].memory.size", "message": "64G is more than the host has (16G)"}]);
    let stub = Stub::with(Box::new(move |seen| match seen.line.as_str() {
        "POST /v1/apply" if seen.body["dry_run"] != true => None,
        "POST /v1/apply" if seen.body["manifests"][0]["memory"]["size"] == "64G" => Some((422, refused.clone())),
        "POST /v1/apply" if seen.body["manifests"][0]["name"] == "new" => Some((200, created.clone())),
        "POST /v1/apply" => Some((
            200,
            json!({"results": [{"kind": "vm", "name": "web", "action": "update", "warnings": [], "operation": null, "changes": []}]}),
        )),
        "GET /v1/vms/web" => Some((200, vm("web", "running", "running"))),
        _ => None,
    }));
    check(
        &stub,
        &["vm", "create", "new", "image=tiny", "--dry-run"],
        expect![[r#"
        exit 0
        --- stdout
        vm/new: create
        --- stderr
        1 to create, 0 to update, 0 to mend, 0 unchanged
    "#]],
    );
    check(
        &stub,
        &["vm", "create", "web", "image=tiny", "--dry-run"],
        expect![[r#"
        exit 4
        --- stderr
        error: vm 'web' exists already
        hint: change it with 'vmkeep vm set web', or take another name
    "#]],
    );
    check(
        &stub,
        &["vm", "set", "web", "memory=64G", "--dry-run"],
        expect![[r#"
        exit 1
        --- stderr
        error: vm 'web' has 1 problem
          memory.size: 64G is more than the host has (16G)
    "#]],
    );
}

#[test]
fn the_way_out_releases_all_and_says_what_stays() {
    let stub = Stub::new(vec![
        ("GET /v1/vms", 200, page(json!([vm("web", "running", "running"), vm("db", "stopped", "stopped")]))),
        (
            "GET /v1/domains",
            200,
            page(json!([{"uuid": "00000000-0000-0000-0000-000000000001", "name": "web", "state": "running", "ours": false}])),
        ),
        ("POST /v1/vms/", 202, json!({"operation": operation("vm.release", "done", &[])})),
    ]);
    check(
        &stub,
        &["host", "uninstall", "--release-all"],
        expect![[r#"
        exit 2
        --- stderr
        error: there is no terminal to ask on: Release web, db? The domains stay and run on, but vmkeep keeps them running no longer.
        hint: give --yes to do it without asking
    "#]],
    );
    let told = stub.run(&["host", "uninstall", "--release-all", "--yes"], "");
    assert!(
        told.starts_with("exit 0\n") && told.contains("/var/lib/libvirt/images/vmkeep/") && told.contains("apt purge vmkeep"),
        "{told}"
    );
    expect![[r#"
        POST /v1/vms/web/actions/release {"image":null,"name":null,"timeout":null}
        POST /v1/vms/db/actions/release {"image":null,"name":null,"timeout":null}
    "#]]
    .assert_eq(&stub.changes());
}
