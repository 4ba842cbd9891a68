//! Wishes on their way to the server: manifests, `vm set`, `vm edit`.

mod stub;

use expect_test::{Expect, expect};
use serde_json::json;
use stub::{Stub, operation, problem, vm};

fn check(stub: &Stub, args: &[&str], expected: Expect) {
    expected.assert_eq(&stub.run(args, ""));
}

#[test]
fn set_writes_the_whole_wish_at_the_revision_that_was_read() {
    let stub = Stub::with(Box::new(|seen| match seen.line.as_str() {
        "GET /v1/vms/web" => Some((200, vm("web", "running", "running"))),
        "PUT /v1/vms/web" => Some((412, problem(412, "stale", "vm 'web' is at revision 9, not 5"))),
        _ => None,
    }));
    check(
        &stub,
        &["vm", "set", "web", "memory=4G", "labels.tier=null"],
        expect![[r#"
        exit 4
        --- stderr
        error: vm 'web' is at revision 9, not 5
        hint: somebody else changed it meanwhile: look at it again and repeat
    "#]],
    );
    assert_eq!(stub.header("if-match").as_deref(), Some("\"5\""));
    let sent = stub.changes();
    assert!(sent.contains(r#""size":"4G""#) && sent.contains(r#""labels":{}"#), "{sent}");
    check(
        &stub,
        &["vm", "set", "web", "memroy=4G"],
        expect![[r#"
        exit 1
        --- stderr
        error: memroy=4G is refused
          memroy: there is no field 'memroy'; did you mean 'memory'?
    "#]],
    );
    check(
        &stub,
        &["vm", "resize-disk", "web", "data", "+1G"],
        expect![[r#"
        exit 3
        --- stderr
        error: nothing at GET /v1/volumes
    "#]],
    );
}

#[test]
fn manifests() {
    let stub = Stub::new(vec![(
        "POST /v1/apply",
        200,
        json!({"results": [{
            "kind": "vm", "name": "web", "action": "update", "warnings": ["no cloud-init in tiny"], "operation": null,
            "changes": [{"field": "memory.size", "from": "1G", "to": "2G", "when": "restart"}, {"field": "labels.tier", "from": "", "to": "db", "when": "live"}],
        }]}),
    )]);
    stub.write("web.yaml", "kind: vm\nname: web\nimage: tiny\nmemory: 2G\nlabels: {tier: db}\n");
    check(
        &stub,
        &["plan", "-f", "web.yaml"],
        expect![[r#"
        exit 0
        --- stdout
        vm/web: update
          memory.size: 1G -> 2G  (after restart)
          labels.tier: (none) -> db  (live)
        --- stderr
        warning: vm 'web': no cloud-init in tiny
        0 to create, 1 to update, 0 to mend, 0 unchanged
    "#]],
    );
    check(
        &stub,
        &["apply", "-f", "web.yaml"],
        expect![[r#"
        exit 0
        --- stderr
        vm/web: update
          memory.size: 1G -> 2G  (after restart)
          labels.tier: (none) -> db  (live)
        warning: vm 'web': no cloud-init in tiny
        hint: some changes wait for a restart: 'vmkeep vm restart web'
    "#]],
    );
}

#[test]
fn bad_manifests_are_refused_before_anything_is_sent() {
    let stub = Stub::new(vec![]);
    stub.write("bad.yaml", "kind: vm\nname: web\nimage: tiny\nmemroy: 2G\ncpus: many\n");
    check(
        &stub,
        &["apply", "-f", "bad.yaml"],
        expect![[r#"
        exit 1
        --- stderr
        error: bad.yaml: 2 problems; nothing was changed
          bad.yaml:4:1: vm web: memroy: there is no field 'memroy'; did you mean 'memory'?
            4 | memroy: 2G
              | ^^^^^^
          bad.yaml:5:7: vm web: cpus: 'many' is not a number of CPUs
            5 | cpus: many
              |       ^^^^
    "#]],
    );
    expect![[r#"
        exit 1
        --- stderr
        error: stdin: 1 problem; nothing was changed
          stdin:2:7: unclosed bracket '['
            2 | name: [
              |       ^
    "#]]
    .assert_eq(&stub.run(&["plan", "-f", "-"], "kind: vm\nname: [\n"));
    check(
        &stub,
        &["apply", "-f", "absent.yaml"],
        expect![[r#"
        exit 1
        --- stderr
        error: cannot read absent.yaml: No such file or directory
    "#]],
    );
    assert_eq!(stub.changes(), "");
}

#[test]
fn keys_are_read_here() {
    let stub = Stub::new(vec![("POST /v1/apply", 200, json!({"results": []}))]);
    stub.write("id.pub", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@here\n");
    stub.write("web.yaml", "kind: vm\nname: web\nimage: tiny\ncloud_init: {ssh_keys: [\"@id.pub\"]}\n");
    check(
        &stub,
        &["plan", "-f", "web.yaml"],
        expect![[r#"
        exit 0
        --- stderr
        0 to create, 0 to update, 0 to mend, 0 unchanged
    "#]],
    );
    assert!(stub.changes().contains(r#""ssh_keys":["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@here"]"#), "{}", stub.changes());
}

#[test]
fn problems_that_the_server_finds_are_shown_at_their_lines() {
    let mut refused = problem(422, "invalid", "1 problem; nothing was changed");
    refused["problems"] = json!([{"field": "manifests[1].memory.size", "message": "64G is more than the host has (16G)"}]);
    let stub = Stub::new(vec![("POST /v1/apply", 422, refused)]);
    stub.write("two.yaml", "kind: vm\nname: web\nimage: tiny\n---\nkind: vm\nname: db\nimage: tiny\nmemory: 64G\n");
    check(
        &stub,
        &["apply", "-f", "two.yaml"],
        expect![[r#"
        exit 1
        --- stderr
        error: 1 problem; nothing was changed
          two.yaml:8:9: vm db: memory.size: 64G is more than the host has (16G)
            8 | memory: 64G
              |         ^^^
    "#]],
    );
}

#[test]
fn an_edit_comes_back_until_it_is_right_and_loses_nothing() {
    let stub = Stub::with(Box::new(|seen| match seen.line.as_str() {
        "GET /v1/vms/web" => Some((200, vm("web", "running", "running"))),
        "PUT /v1/vms/web" => Some((202, json!({"operation": operation("vm.update", "done", &[])}))),
        _ => None,
    }));
    // The first time it makes a mistake, the second time it mends it.
    stub.write("editor", "#!/bin/sh\nif grep -q '#! ' \"$1\"; then sed -i s/4X/4G/ \"$1\"; else sed -i s/2G/4X/ \"$1\"; fi\n");
    std::fs::set_permissions(stub.path("editor"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let told = stub.run(&["vm", "edit", "web"], "");
    let told = told.split_once("error: ").expect("the first try is refused").1;
    expect![[r#"
        vm-web: 1 problem; nothing was changed
          vm-web:6:9: vm web: memory: unknown unit 'X' in '4X'; use K, M, G or T (binary)
            6 | memory: 4X
              |         ^^
        vm 'web' updated after 2.3 s
          after restart: memory.size: 1G -> 2G
        hint: 'vmkeep vm restart web' applies it
    "#]]
    .assert_eq(told);
    assert!(stub.changes().contains(r#""size":"4G""#), "{}", stub.changes());
    // Wrong, and never mended: the text stays.
    stub.write("editor", "#!/bin/sh\nsed -i s/2G/4X/ \"$1\"\n");
    let told = stub.run(&["vm", "edit", "web"], "");
    assert!(told.starts_with("exit 1\n"), "{told}");
    let kept = told.split("your text is kept in DIR/").nth(1).map(str::trim).expect("it says where");
    assert!(std::fs::read_to_string(stub.path(kept)).expect("it is there").contains("memory: 4X"));
}
