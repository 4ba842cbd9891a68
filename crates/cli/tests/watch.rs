//! Lists that go on: joined to what was listed, over breaks, and when the server has forgotten where we were.

mod stub;

use std::sync::atomic::{AtomicU32, Ordering};

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use stub::{Stub, page, problem, vm};

const VERSION: &str = "GET /v1/version";

fn version() -> Option<(u16, Value)> {
    Some((200, json!({"version": "0.1.0", "node": "host1", "store": "3", "level": 1})))
}

fn check(stub: &Stub, args: &[&str], expected: Expect) {
    expected.assert_eq(&stub.run(args, ""));
}

#[test]
fn a_watched_list_goes_on_after_a_break_where_it_was() {
    let stub = Stub::with(Box::new(|seen| match seen.line.as_str() {
        VERSION => version(),
        "GET /v1/vms" => Some((200, page(json!([])))),
        "GET /v1/vms?watch=true" if seen.head.contains("last-event-id: 3:18") => {
            Some((403, problem(403, "forbidden", "the token was revoked")))
        }
        // The page was read at 7: what came since is told.
        "GET /v1/vms?watch=true" if seen.head.contains("last-event-id: 3:7") => {
            let put = json!({"type": "put", "object": vm("web", "starting", "starting")});
            let deleted = json!({"type": "deleted", "name": "web", "id": "00000000-0000-0000-0000-000000000001"});
            Some((200, json!(format!(": hello\n\nid: 3:17\nevent: put\ndata: {put}\n\nid: 3:18\nevent: deleted\ndata: {deleted}\n\n"))))
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

fn event(second: u32, message: &str) -> Value {
    json!({
        "at": format!("2026-01-31T14:05:{second:02}Z"), "level": "info", "code": "vm.started", "message": message, "node": null,
        "resource": {"kind": "vm", "project": "default", "name": "web", "uid": "00000000-0000-0000-0000-000000000001"},
    })
}

#[test]
fn a_token_that_the_server_has_forgotten_is_got_anew_and_nothing_is_missed_or_told_twice() {
    let lists = AtomicU32::new(0);
    let stub = Stub::with(Box::new(move |seen| match seen.line.as_str() {
        VERSION => version(),
        "GET /v1/events" if lists.fetch_add(1, Ordering::SeqCst) == 0 => Some((200, page(json!([event(1, "one")])))),
        "GET /v1/events" => {
            let mut later = page(json!([event(1, "one"), event(2, "two"), event(3, "while the line was cut")]));
            later["revision"] = json!(20);
            Some((200, later))
        }
        "GET /v1/events?watch=true" if seen.head.contains("last-event-id: 3:7") => {
            let put = json!({"type": "put", "object": event(2, "two")});
            Some((200, json!(format!("id: 3:8\nevent: put\ndata: {put}\n\n"))))
        }
        "GET /v1/events?watch=true" if seen.head.contains("last-event-id: 3:8") => {
            Some((410, problem(410, "stale", "the watch token is too old")))
        }
        "GET /v1/events?watch=true" if seen.head.contains("last-event-id: 3:20") => {
            Some((403, problem(403, "forbidden", "the token was revoked")))
        }
        _ => None,
    }));
    check(
        &stub,
        &["events", "-w"],
        expect![[r#"
            exit 1
            --- stdout
            2026-01-31 14:05:01+00:00  info  vm/web  one
            2026-01-31 14:05:02+00:00  info  vm/web  two
            2026-01-31 14:05:03+00:00  info  vm/web  while the line was cut
            --- stderr
            error: the token was revoked
        "#]],
    );
}

#[test]
fn a_vm_that_went_while_the_line_was_cut_is_told() {
    let lists = AtomicU32::new(0);
    let stub = Stub::with(Box::new(move |seen| match seen.line.as_str() {
        VERSION => version(),
        "GET /v1/vms" if lists.fetch_add(1, Ordering::SeqCst) == 0 => Some((200, page(json!([vm("web", "running", "running")])))),
        "GET /v1/vms" => {
            let mut later = page(json!([]));
            later["revision"] = json!(20);
            Some((200, later))
        }
        "GET /v1/vms?watch=true" if seen.head.contains("last-event-id: 3:7") => Some((410, problem(410, "stale", "too old"))),
        "GET /v1/vms?watch=true" => Some((403, problem(403, "forbidden", "the token was revoked"))),
        _ => None,
    }));
    check(
        &stub,
        &["vm", "list", "-w"],
        expect![[r#"
            exit 1
            --- stdout
            NAME                  STATE                         CPUS  MEMORY  NOTES
            web                   running                       1     2G      pending 1
            web                   deleted
            --- stderr
            error: the token was revoked
        "#]],
    );
}
