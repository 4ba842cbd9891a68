//! What commands print, and how they end: run as a person runs them, against fixed answers.

mod stub;

use expect_test::{Expect, expect};
use serde_json::json;
use stub::{Stub, operation, page, problem, run, vm};

fn check(stub: &Stub, args: &[&str], expected: Expect) {
    expected.assert_eq(&stub.run(args, ""));
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
            json!([{"uuid": "00000000-0000-0000-0000-000000000009", "name": "Old One", "state": "off", "ours": false}]),
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
    assert_eq!(columns, ["NAME", "STATE", "CPUS", "MEMORY", "NODE", "AGE", "NOTES", "IMAGE", "ACCEL", "RESTARTS", "LABELS", "ID"]);
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
    let facts = json!({
        "kind": "disk", "virtual_size": "2G", "stored_size": "1G", "sha256": null, "firmware": "auto", "os": "linux", "os_name": "Debian",
        "cloud_init": "yes", "guest_agent": "yes", "virtio": "yes", "warnings": [],
    });
    let image = json!({
        "id": "00000000-0000-0000-0000-000000000003", "project": "default", "facts": facts, "state": "ready", "used_by": [],
        "spec": {"name": "debian-13", "source": {"from": "build", "recipe": "debian-13"}}, "created_at": "2026-01-31T14:05:09Z",
    });
    let stub = Stub::new(vec![
        ("GET /v1/images/debian-13", 200, image),
        ("GET /v1/images/", 404, problem(404, "not_found", "there is no image 'tiny'")),
        ("POST /v1/vms", 202, json!({"operation": operation("vm.create", "done", &[])})),
    ]);
    let told = stub.run(&["launch", "debian-13", "web", "--cpus", "2", "--memory", "2GiB", "--disk", "20GiB", "--network", "default"], "");
    let password = told.split("password of the image's user is ").nth(1).and_then(|t| t.split(' ').next()).expect("a password is said");
    assert_eq!(password.len(), 16);
    assert!(told.starts_with("exit 0\n"), "{told}");
    assert!(stub.changes().contains(&format!(r#""password":"{password}""#)), "{}", stub.changes());
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
fn a_watched_list_goes_on_after_a_break_where_it_was() {
    let stub = Stub::with(Box::new(|seen| match seen.line.as_str() {
        "GET /v1/vms" => Some((200, page(json!([])))),
        "GET /v1/vms?watch=true" if seen.head.contains("last-event-id: 3-18") => {
            Some((403, problem(403, "forbidden", "the token was revoked")))
        }
        "GET /v1/vms?watch=true" => {
            let put = json!({"type": "put", "object": vm("web", "starting", "starting")});
            let deleted = json!({"type": "deleted", "name": "web", "id": "00000000-0000-0000-0000-000000000001"});
            Some((200, json!(format!(": hello\n\nid: 3-17\nevent: put\ndata: {put}\n\nid: 3-18\nevent: deleted\ndata: {deleted}\n\n"))))
        }
        _ => None,
    }));
    check(
        &stub,
        &["vm", "list", "-w", "-q"],
        expect![[r#"
        exit 1
        --- stdout
        NAME                  STATE                         CPUS  MEMORY  NOTES
        web                   starting                      1     2G      pending 1
        web                   deleted
        --- stderr
        error: the token was revoked
    "#]],
    );
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
        "GET /v1/images/my-disk" => Some((404, problem(404, "not_found", "gone again"))),
        _ => None,
    }));
    stub.write("My_Disk.img", "12345");
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
