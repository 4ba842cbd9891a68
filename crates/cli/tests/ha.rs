//! What `ha …` prints, against fixed answers.

mod stub;

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use stub::Stub;

fn check(stub: &Stub, args: &[&str], expected: Expect) {
    expected.assert_eq(&stub.run(args, ""));
}

fn timers() -> Value {
    json!({
        "renew_ms": 3000, "seal_ms": 15000, "kill_ms": 15000, "pet_ms": 19000, "watchdog_ms": 8000, "safe_ms": 38000,
        "inequality": "T_safe 38 s >= (T_pet 19 s + 2 x W 8 s) x 1.01 + 2 s = 37.35 s",
    })
}

fn node(name: &str, state: &str, proof: &str, confirmed: Value) -> Value {
    json!({"node": name, "epoch": 3, "state": state, "health": null, "proof": proof, "vms": 2, "confirmed": confirmed})
}

fn status(brake: Value, nodes: Value, queue: Value) -> Value {
    json!({
        "leader": "node2", "disarmed": null, "settings": {"shutdown_policy": "conditional", "profile": "standard"}, "timers": timers(), "brake": brake,
        "nodes": nodes, "queue": queue,
    })
}

#[test]
fn a_host_that_cannot_arm_says_why_and_vms_of_a_dead_one_wait_in_line() {
    let person = "only a person can say that it is dead: vmkeep ha confirm-dead node1";
    let dead = json!({"proof": "watchdog", "by": "node2", "at": "2026-01-31T14:05:09Z"});
    let nodes = json!([
        node("node1", "online", &format!("its watchdog cannot be armed (another program has it); {person}"), Value::Null),
        node("node2", "online", "its watchdog resets it; dead 38 s after its last sign of life", Value::Null),
        node("node3", "dead", "", dead),
        node("node4", "leaving", "it goes down (reboot); its VMs wait for it", Value::Null),
        node(
            "node5",
            "away",
            "it was shut down in order (shutdown); its highly available VMs start elsewhere",
            json!({"proof": "goodbye", "by": "node5", "at": "2026-01-31T14:05:09Z"})
        ),
    ]);
    let waits =
        |vm: &str, priority: u8, why: &str| json!({"project": "default", "vm": vm, "from": "node3", "priority": priority, "why": why});
    let queue = json!([
        waits("db", 1, "its turn comes; it goes to node2"),
        waits("web", 3, "node1: it is cordoned (by alice); node2: needs 64 GiB")
    ]);
    let brake = json!({"silent": 0, "live": 3, "limit": 5, "why": null});
    let stub = Stub::new(vec![("GET /v1/ha", 200, status(brake, nodes, queue))]);
    check(
        &stub,
        &["ha", "status"],
        expect![[r#"
        exit 0
        --- stdout
        State:     armed
        Decides:   node2
        Timers:    standard: renew 3 s, sealed after 15 s, killed after 15 s
        Holds:     T_safe 38 s >= (T_pet 19 s + 2 x W 8 s) x 1.01 + 2 s = 37.35 s
        Brake:     off: 0 of 3 hosts silent, 5 may be at once, and never more than half
        Shutdown:  conditional: VMs wait for a reboot, and start elsewhere after a shutdown

        NODE   STATE    EPOCH  VMS  IF IT DIES
        node1  online   3      2    its watchdog cannot be armed (another program has it); only a person can say that it is dead: vmkeep ha confirm-dead node1
        node2  online   3      2    its watchdog resets it; dead 38 s after its last sign of life
        node3  dead     3      2    dead since 2026-01-31 14:05:09+00:00 (watchdog, node2)
        node4  leaving  3      2    it goes down (reboot); its VMs wait for it
        node5  away     3      2    it was shut down in order (shutdown); its highly available VMs start elsewhere

        WAITS  PRIORITY  FROM   WHY
        db     1         node3  its turn comes; it goes to node2
        web    3         node3  node1: it is cordoned (by alice); node2: needs 64 GiB
    "#]],
    );
}

#[test]
fn a_storm_puts_the_brake_on() {
    let why = "2 of 3 nodes are silent: that is rather our own network; nothing is fenced until fewer are, or `confirm-dead`";
    let brake = json!({"silent": 2, "live": 3, "limit": 5, "why": why});
    let stub = Stub::new(vec![("GET /v1/ha", 200, status(brake, json!([]), json!([])))]);
    check(
        &stub,
        &["ha", "status"],
        expect![[r#"
        exit 0
        --- stdout
        State:     armed
        Decides:   node2
        Timers:    standard: renew 3 s, sealed after 15 s, killed after 15 s
        Holds:     T_safe 38 s >= (T_pet 19 s + 2 x W 8 s) x 1.01 + 2 s = 37.35 s
        Brake:     on: 2 of 3 nodes are silent: that is rather our own network; nothing is fenced until fewer are, or `confirm-dead`
        Shutdown:  conditional: VMs wait for a reboot, and start elsewhere after a shutdown

        NODE  STATE  EPOCH  VMS  IF IT DIES
    "#]],
    );
}

#[test]
fn a_host_alone_says_that_nothing_is_armed_and_why() {
    let mut answer = status(
        json!({"silent": 0, "live": 1, "limit": 5, "why": null}),
        json!([node("node1", "online", "its VMs wait until it is back", Value::Null)]),
        json!([]),
    );
    answer["alone"] = json!("this host is alone");
    check(
        &Stub::new(vec![("GET /v1/ha", 200, answer)]),
        &["ha", "status"],
        expect![[r#"
        exit 0
        --- stdout
        State:    nothing is armed: this host is alone
        Decides:  nobody: there is nothing to decide

        NODE   STATE   EPOCH  VMS  IF IT DIES
        node1  online  3      2    its VMs wait until it is back
    "#]],
    );
}

#[test]
fn a_profile_that_does_not_fit_any_more_is_told() {
    let why = "the profile fast is for up to 64 nodes, and this cluster has 65: vmkeep ha set --profile standard";
    let mut answer = status(json!({"silent": 0, "live": 3, "limit": 5, "why": null}), json!([]), json!([]));
    answer["problems"] = json!([why]);
    let told = Stub::new(vec![("GET /v1/ha", 200, answer)]).run(&["ha", "status"], "");
    assert!(told.contains(&format!("warning: {why}")), "{told}");
}

#[test]
fn history_is_a_timeline() {
    let vm = |name: &str, placed: &str, running: Value| {
        json!({
            "vm": "00000000-0000-4000-8000-000000000001", "project": "default", "name": name, "from": "node3", "to": "node1",
            "placed_at": placed, "running_at": running,
        })
    };
    let incident = |epoch: u64| {
        json!({
            "node": "node3", "epoch": epoch, "silent_since": "2026-01-31T14:05:00Z", "sealed_at": "2026-01-31T14:05:15.2Z", "sealed_by": "node2",
        })
    };
    let answer = json!({"incidents": [
        {
            "incident": incident(4), "confirmed": {"proof": "watchdog", "by": "node2", "at": "2026-01-31T14:05:38.4Z"},
            "vms": [vm("db", "2026-01-31T14:05:39Z", json!("2026-01-31T14:05:42Z")), vm("web", "2026-01-31T14:05:40Z", Value::Null)],
        },
        {"incident": incident(3), "confirmed": null, "vms": []},
    ]});
    let stub = Stub::new(vec![("GET /v1/ha/history", 200, answer), ("GET /v1/ha/check", 200, json!({"vms": []}))]);
    check(
        &stub,
        &["ha", "history"],
        expect![[r#"
        exit 0
        --- stdout
        node3, epoch 4
          2026-01-31 14:05:00+00:00  last sign of life
            15.2 s  sealed by node2
            38.4 s  dead, by watchdog (node2)
            39.0 s  db is placed on node1
            40.0 s  web is placed on node1
            42.0 s  db runs on node1
        node3, epoch 3
          2026-01-31 14:05:00+00:00  last sign of life
            15.2 s  sealed by node2
                    its end is not proved
    "#]],
    );
}

#[test]
fn settings_are_changed_one_at_a_time() {
    let stub = Stub::new(vec![("POST /v1/ha/settings", 200, json!({"shutdown_policy": "migrate", "profile": "fast"}))]);
    check(
        &stub,
        &["ha", "set", "--shutdown-policy", "migrate", "--profile", "fast"],
        expect![[r#"
        exit 0
        --- stderr
        a host that is shut down or rebooted: migrate: its highly available VMs move away first
        timers: fast; a host whose watchdog is armed takes them up after `vmkeep ha disarm freeze` and `ha arm`
    "#]],
    );
    expect![[r#"
        POST /v1/ha/settings {"profile":"fast","shutdown_policy":"migrate"}
    "#]]
    .assert_eq(&stub.changes());
    check(
        &stub,
        &["ha", "set", "--shutdown-policy", "pray"],
        expect![[r#"
        exit 2
        --- stderr
        error: invalid value 'pray' for '--shutdown-policy <POLICY>'
          [possible values: migrate, freeze, failover, conditional]

        For more information, try '--help'.
    "#]],
    );
}
