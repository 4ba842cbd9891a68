//! What `cluster …` and `node maintenance` print of a few nodes, against fixed answers.

mod stub;

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use stub::Stub;

fn check(stub: &Stub, args: &[&str], expected: Expect) {
    expected.assert_eq(&stub.run(args, ""));
}

fn room(node: &str, taken: &str) -> Value {
    json!({"node": node, "vms": 3, "memory_taken": taken, "memory_limit": "32G", "vcpus_taken": 6, "vcpus_limit": 64})
}

#[test]
fn how_much_may_fail_and_what_would_fit() {
    let capacity = json!({
        "vms": 9, "homeless": 0, "bound": 0, "may_fail": 1, "all_tried": true,
        "breaks": {"failed": ["node1", "node2"], "left_over": ["db"]},
        "largest": {"node": "node3", "memory": "20G", "vcpus": 58}, "nodes": [room("node1", "8G"), room("node2", "8G"), room("node3", "12G")],
    });
    let verdict = |node: &str, text: &str| json!({"node": node, "fits": false, "text": text});
    let simulated = json!({
        "wanted": 100, "placed": 17, "by_node": {"node1": 6, "node2": 6, "node3": 5},
        "broken": {"vm": "sim1-18", "nodes": [
            verdict("node1", "needs 4G of memory, 0B of 32G are free"),
            verdict("node2", "needs 4G of memory, 0B of 32G are free"),
            verdict("node3", "it is cordoned (by alice: new disks)"),
        ]},
        "may_fail_before": 1, "may_fail_after": 0,
    });
    let stub = Stub::new(vec![("GET /v1/cluster/capacity", 200, capacity), ("POST /v1/cluster/simulate", 200, simulated)]);
    check(
        &stub,
        &["cluster", "capacity"],
        expect![[r#"
        exit 0
        --- stdout
        NODE   VMS  MEMORY  OF   VCPUS  OF
        node1  3    8G      32G  6      64
        node2  3    8G      32G  6      64
        node3  3    12G     32G  6      64

        1 node may fail, and everything still fits on the others (N+1).
        If node1 and node2 fail, these find no other: db.
        Room for one more VM of up to 20G of memory with 58 vCPUs, on node3.
    "#]],
    );
    check(
        &stub,
        &["cluster", "simulate", "--add", "100xcpus=2,memory=4G"],
        expect![[r#"
        exit 0
        --- stdout
        NODE   MORE-VMS
        node1  6
        node2  6
        node3  5

        17 of 100 fit; 'sim1-18' is the first that finds no node:
          node1: needs 4G of memory, 0B of 32G are free
          node2: needs 4G of memory, 0B of 32G are free
          node3: it is cordoned (by alice: new disks)
        Nodes that may fail: 1 now, 0 with them.
    "#]],
    );
    assert!(stub.changes().contains(r#""count":100"#), "{}", stub.changes());
    check(
        &stub,
        &["cluster", "simulate", "--add", "lots"],
        expect![[r#"
        exit 2
        --- stderr
        error: invalid value 'lots' for '--add <COUNTxSPEC>': 'lots' is not COUNTxSPEC; write it like 100xweb.yaml or 100xcpus=2,memory=4G

        For more information, try '--help'.
    "#]],
    );
}

#[test]
fn moves_are_proposed_and_none_is_made() {
    let moves = json!([{"vm": "web1", "project": "default", "from": "node1", "to": "node3", "gain": 212, "from_before": 911, "from_after": 640,
        "to_before": 310, "to_after": 581}]);
    let answer = |moves: Value, not_measured: Value| {
        let pressure = json!({"node1": 911, "node3": 310});
        Stub::new(vec![("GET /v1/cluster/balance", 200, json!({"moves": moves, "pressure": pressure, "not_measured": not_measured}))])
    };
    let stub = answer(moves, json!(["node2"]));
    check(
        &stub,
        &["cluster", "balance", "--dry-run"],
        expect![[r#"
        exit 0
        --- stdout
        VM    FROM   PRESSURE        TO     PRESSURE        GAIN
        web1  node1  91.1% -> 64.0%  node3  31.0% -> 58.1%  21.2%
        --- stderr
        warning: no fresh measurement from node2: nothing is moved from or to them
    "#]],
    );
    check(
        &stub,
        &["cluster", "balance"],
        expect![[r#"
        exit 2
        --- stderr
        error: vmkeep does not move VMs by itself
        hint: 'vmkeep cluster balance --dry-run' shows what would help
    "#]],
    );
    check(
        &answer(json!([]), json!([])),
        &["cluster", "balance", "--dry-run"],
        expect![[r#"
        exit 0
        --- stdout
        NODE   PRESSURE
        node1  91.1%
        node3  31.0%
        --- stderr
        no move would help enough
    "#]],
    );
}

fn member(n: u32, state: &str, version: &str, etcd: Value) -> Value {
    json!({"node": format!("node{n}"), "address": format!("10.0.0.{n}"), "machine_id": format!("m{n}"), "roles": ["control", "compute"],
        "version": version, "level": 8, "state": state, "since": "2026-11-01T00:00:00Z", "certificate_until": "2027-11-01T00:00:00Z", "etcd": etcd})
}

fn etcd(health: &str) -> Value {
    json!({"health": health, "version": "3.5.30", "size": "12M"})
}

#[test]
fn the_status_names_members_what_is_degraded_and_what_to_do() {
    let mut compute = member(4, "joining", "0.1.0", Value::Null);
    compute["roles"] = json!(["compute"]);
    compute["certificate_until"] = Value::Null;
    let silent = json!({"health": "silent", "version": null, "size": null});
    let members = json!([
        member(1, "member", "0.1.0", etcd("leader")),
        member(2, "member", "0.2.0", etcd("follower")),
        member(3, "member", "0.1.0", silent),
        compute
    ]);
    let problems = json!([
        {"message": "etcd on 'node3' does not answer", "mend": "on node3: systemctl restart vmkeep-etcd vmkeepd"},
        {"message": "'node2' runs vmkeep 0.2.0, this host 0.1.0", "mend": "install the same version"},
    ]);
    let view = json!({"cluster": "00000000-0000-0000-0000-000000000007", "members": members, "problems": problems});
    let stub = Stub::new(vec![("GET /v1/cluster", 200, view)]);
    check(
        &stub,
        &["cluster", "status"],
        expect![[r#"
        exit 0
        --- stdout
        NODE   ADDRESS   ROLES             STATE    ETCD
        node1  10.0.0.1  control, compute  member   leader
        node2  10.0.0.2  control, compute  member   follower
        node3  10.0.0.3  control, compute  member   silent
        node4  10.0.0.4  compute           joining  -
        --- stderr
        cluster 00000000-0000-0000-0000-000000000007
        warning: etcd on 'node3' does not answer
        hint: on node3: systemctl restart vmkeep-etcd vmkeepd
        warning: 'node2' runs vmkeep 0.2.0, this host 0.1.0
        hint: install the same version
    "#]],
    );
    check(
        &stub,
        &["cluster", "status", "-o", "wide"],
        expect![[r#"
        exit 0
        --- stdout
        NODE   ADDRESS   ROLES             STATE    ETCD      VMKEEP  ETCD VERSION  ETCD SIZE  CERTIFICATE UNTIL
        node1  10.0.0.1  control, compute  member   leader    0.1.0   3.5.30        12M        2027-11-01 00:00:00+00:00
        node2  10.0.0.2  control, compute  member   follower  0.2.0   3.5.30        12M        2027-11-01 00:00:00+00:00
        node3  10.0.0.3  control, compute  member   silent    0.1.0   -             -          2027-11-01 00:00:00+00:00
        node4  10.0.0.4  compute           joining  -         0.1.0   -             -          -
        --- stderr
        cluster 00000000-0000-0000-0000-000000000007
        warning: etcd on 'node3' does not answer
        hint: on node3: systemctl restart vmkeep-etcd vmkeepd
        warning: 'node2' runs vmkeep 0.2.0, this host 0.1.0
        hint: install the same version
    "#]],
    );
}

#[test]
fn the_status_of_who_keeps_no_etcd() {
    let mut leader = etcd("leader");
    leader["url"] = json!("https://10.0.0.9:2379");
    let external = json!({"cluster": "00000000-0000-0000-0000-000000000007", "members": [member(1, "member", "0.1.0", Value::Null)], "etcd": [leader], "problems": []});
    check(
        &Stub::new(vec![("GET /v1/cluster", 200, external)]),
        &["cluster", "status"],
        expect![[r#"
        exit 0
        --- stdout
        NODE   ADDRESS   ROLES             STATE   ETCD
        node1  10.0.0.1  control, compute  member  -
        --- stderr
        cluster 00000000-0000-0000-0000-000000000007
        etcd https://10.0.0.9:2379: leader, 3.5.30, 12M
    "#]],
    );
    let alone = json!({"cluster": null, "members": [], "problems": []});
    check(
        &Stub::new(vec![("GET /v1/cluster", 200, alone)]),
        &["cluster", "status"],
        expect![[r#"
        exit 0
        --- stderr
        this host is in no cluster
    "#]],
    );
}

#[test]
fn what_is_in_the_way_of_an_upgrade_ends_with_exit_code_1() {
    let member = |node: &str, version: &str, level: u64| json!({"node": node, "roles": ["control", "compute"], "version": version, "agent": version, "level": level});
    let members = json!([member("node1", "0.2.0", 5), member("node2", "0.1.0", 4), member("node3", "0.1.0", 4)]);
    let view = |problems: Value, next: &str| {
        Stub::new(vec![("GET /v1/cluster/upgrade", 200, json!({"level": 4, "members": members, "problems": problems, "next": next}))])
    };
    check(
        &view(json!([]), "install 0.2.0 on 'node2'"),
        &["cluster", "upgrade-check"],
        expect![[r#"
        exit 0
        --- stdout
        NODE   ROLES             VMKEEP  AGENT  LEVEL
        node1  control, compute  0.2.0   0.2.0  5
        node2  control, compute  0.1.0   0.1.0  4
        node3  control, compute  0.1.0   0.1.0  4
        --- stderr
        the store has level 4; next: install 0.2.0 on 'node2'
    "#]],
    );
    let away = json!([{"message": "'node3' is offline: another one must not go", "mend": "vmkeep node list"}]);
    check(
        &view(away, "first mend: vmkeep node list"),
        &["cluster", "upgrade-check"],
        expect![[r#"
        exit 1
        --- stdout
        NODE   ROLES             VMKEEP  AGENT  LEVEL
        node1  control, compute  0.2.0   0.2.0  5
        node2  control, compute  0.1.0   0.1.0  4
        node3  control, compute  0.1.0   0.1.0  4
        --- stderr
        warning: 'node3' is offline: another one must not go
        hint: vmkeep node list
        the store has level 4; next: first mend: vmkeep node list
    "#]],
    );
}

#[test]
fn a_node_goes_into_maintenance_when_it_is_empty_and_what_stays_is_told() {
    let op = |state: &str, error: Value| {
        let mut op = stub::operation("node.drain", state, &["1 of 2 VMs moved"]);
        op["resource"] = json!({"kind": "node", "project": "default", "name": "node2", "uid": "00000000-0000-0000-0000-000000000002"});
        op["error"] = error;
        op
    };
    let done = op("done", Value::Null);
    let stub = Stub::new(vec![("POST /v1/nodes/node2/drain", 202, json!({"operation": done})), ("GET /v1/operations/", 200, done)]);
    check(
        &stub,
        &["node", "maintenance", "node2", "on", "--why", "new disks"],
        expect![[r#"
        exit 0
        --- stderr
          node2: 1 of 2 VMs moved
        node 'node2' drain done after 2.3 s
        node 'node2' is empty and in maintenance; at its end: vmkeep node maintenance node2 off
    "#]],
    );
    expect![[r#"
        POST /v1/nodes/node2/drain {"at_once":2,"closure":"maintenance","manner":"live","timeout":null,"why":"new disks"}
    "#]]
    .assert_eq(&stub.changes());
    let error = json!({"code": "conflict", "message": "1 of 2 VMs are still on node2: web1: devices: it has a device of this host",
        "hint": "the node stays cordoned; when that is mended: vmkeep node drain node2"});
    let failed = op("failed", error);
    let stub = Stub::new(vec![("POST /v1/nodes/node2/drain", 202, json!({"operation": failed})), ("GET /v1/operations/", 200, failed)]);
    check(
        &stub,
        &["node", "maintenance", "node2", "on"],
        expect![[r#"
        exit 4
        --- stderr
          node2: 1 of 2 VMs moved
        error: cannot drain node 'node2': 1 of 2 VMs are still on node2: web1: devices: it has a device of this host
        hint: the node stays cordoned; when that is mended: vmkeep node drain node2
    "#]],
    );
}

#[test]
fn a_vm_that_cannot_move_says_why_beforehand() {
    let movable = json!({"live": {"why_not": ["devices: it has a device of this host"]}, "cold": {"why_not": []}, "warnings": []});
    let stub = Stub::new(vec![("GET /v1/vms/web/movable", 200, movable), ("GET /v1/vms/web", 200, stub::vm("web", "running", "running"))]);
    let shown = stub.run(&["vm", "show", "web"], "");
    let movable: Vec<&str> = shown.lines().skip_while(|line| !line.starts_with("Movable")).take(2).collect();
    expect![[r#"
        Movable:        no, because devices: it has a device of this host
                        cold it can move: vm migrate --cold"#]]
    .assert_eq(&movable.join("\n"));
}
