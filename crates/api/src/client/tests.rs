//! The client against a server of a few lines on a socket in a temporary directory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use expect_test::{Expect, expect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::sse::Parser;
use super::*;

/// Reads one request: its head and as much body as Content-Length says.
async fn read_request(stream: &mut UnixStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            while bytes.len() < end + 4 + length {
                if stream.read_buf(&mut bytes).await.ok()? == 0 {
                    return None;
                }
            }
            return Some((head, bytes.split_off(end + 4)));
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

fn reply(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A server that answers every request of every connection with `answer(head)`.
fn serve(answer: impl Fn(&str, &[u8]) -> Option<String> + Send + Sync + 'static) -> (tempfile::TempDir, Client) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                while let Some((head, body)) = read_request(&mut stream).await {
                    match answer(&head, &body) {
                        Some(text) => stream.write_all(text.as_bytes()).await.expect("the client reads"),
                        None => return,
                    }
                }
            });
        }
    });
    (dir, Client::unix(path))
}

fn told(error: &Error) -> String {
    let mut out = format!("{}: {}\n", error.code.as_str(), error.message);
    for p in &error.problems {
        out.push_str(&format!("  {}: {}\n", p.field, p.message));
    }
    if let Some(hint) = &error.hint {
        out.push_str(&format!("hint: {hint}\n"));
    }
    out
}

#[tokio::test]
async fn a_request_says_what_the_route_table_says() {
    let (_dir, client) =
        serve(|head, body| Some(reply("200 OK", &serde_json::json!({"head": head, "body": String::from_utf8_lossy(body)}).to_string())));
    let client = client.project(Name::known("blue"));
    let echo: serde_json::Value = client
        .call("vm.put")
        .field("name", "a/b")
        .query("label", "tier=db&x")
        .if_match(vmkeep_types::ids::Revision(7))
        .json(&serde_json::json!({"name": "a"}))
        .answer()
        .await
        .expect("an answer");
    let text =
        format!("{}\n\n{}", echo["head"].as_str().expect("text").replace(env!("CARGO_PKG_VERSION"), "V").replace('\r', ""), echo["body"]);
    expect![[r#"
        PUT /v1/projects/blue/vms/a%2Fb?label=tier%3Ddb%26x HTTP/1.1
        host: vmkeep
        user-agent: vmkeep/V
        if-match: "7"
        content-type: application/json
        content-length: 12

        "{\"name\":\"a\"}""#]]
    .assert_eq(&text);
}

#[tokio::test]
async fn one_connection_is_used_again_and_replaced_when_it_died() {
    let served = Arc::new(AtomicU64::new(0));
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let connections = served.clone();
    tokio::spawn(async move {
        // Two requests per connection, then it is closed.
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            for _ in 0..2 {
                if read_request(&mut stream).await.is_some() {
                    stream.write_all(reply("200 OK", "1").as_bytes()).await.expect("the client reads");
                }
            }
        }
    });
    let client = Client::unix(path);
    for _ in 0..4 {
        assert_eq!(client.call("version").answer::<u32>().await, Ok(1));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(served.load(Ordering::SeqCst), 2);
}

async fn check_error(status: &'static str, body: &'static str, expected: Expect) {
    let (_dir, client) = serve(move |_, _| Some(reply(status, body)));
    let error = client.call("version").answer::<u32>().await.expect_err("an error");
    expected.assert_eq(&told(&error));
}

#[tokio::test]
async fn errors_are_the_servers_own_words() {
    check_error(
        "422 Unprocessable Entity",
        r#"{"type":"about:blank","title":"Invalid","status":422,"detail":"2 problems in vm 'web'","code":"invalid","hint":"mend them",
            "problems":[{"field":"memory.size","message":"larger than the host"}]}"#,
        expect![[r#"
            invalid: 2 problems in vm 'web'
              memory.size: larger than the host
            hint: mend them
        "#]],
    )
    .await;
    check_error(
        "404 Not Found",
        "nothing here",
        expect![[r#"
        not_found: the server answered 404 Not Found: nothing here
    "#]],
    )
    .await;
    check_error(
        "200 OK",
        "\"text\"",
        expect![[r#"
        internal: the server's answer is not what this client knows: invalid type: string "text", expected u32 at line 1 column 6
        hint: client and daemon may be of different versions: see 'vmkeep version'
    "#]],
    )
    .await;
}

#[tokio::test]
async fn an_absent_daemon_is_named_with_what_to_look_at() {
    let error = Client::unix("/nonexistent/vmkeepd.sock").call("version").answer::<u32>().await.expect_err("nobody is there");
    expect![[r#"
        unavailable: cannot reach vmkeepd at /nonexistent/vmkeepd.sock: No such file or directory
        hint: is the daemon running? see 'systemctl status vmkeepd'
    "#]]
    .assert_eq(&told(&error));
    assert!(Client::https("http://host", None, None).is_err_and(|e| e.code == Code::Invalid), "plain http is refused");
}

#[test]
fn events_come_whole_however_the_bytes_are_cut() {
    let text =
        b": hello\r\nevent: put\r\nid: 3-17\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\n:\n\nid: 4\n\nevent: bookmark\ndata: {}\n\nid: 5\nevent: half";
    for size in [1, 2, 3, 7, text.len()] {
        let mut parser = Parser::default();
        let mut got = Vec::new();
        for piece in text.chunks(size) {
            parser.push(piece).expect("small events");
            while let Some(event) = parser.pop() {
                got.push((event.event, event.data));
            }
        }
        assert_eq!(got, [("put".to_owned(), "{\"a\":\n1}".to_owned()), ("bookmark".to_owned(), "{}".to_owned())], "cut by {size}");
        assert_eq!(parser.last_id(), Some("4"), "half an event was not heard");
    }
    assert!(Parser::default().push(&vec![b'x'; sse::EVENT_BYTES_MAX + 1]).is_err(), "an endless event is refused");
}

#[tokio::test]
async fn an_upload_goes_on_where_the_connection_broke() {
    let stored = Arc::new(std::sync::Mutex::new(Vec::new()));
    let id = uuid::Uuid::from_u128(7);
    let (at, puts) = (stored.clone(), AtomicU64::new(0));
    let (dir, client) = serve(move |head, body| {
        let mut stored = at.lock().expect("unpoisoned");
        if head.starts_with("PUT") {
            let offset: usize = head.split("offset=").nth(1).and_then(|s| s.split(' ').next()?.parse().ok()).expect("an offset");
            assert_eq!(stored.len(), offset, "nothing is sent twice and nothing is left out");
            // The first try breaks after half of it.
            if puts.fetch_add(1, Ordering::SeqCst) == 0 {
                stored.extend_from_slice(&body[..body.len() / 2]);
                return None;
            }
            stored.extend_from_slice(body);
        }
        Some(reply("200 OK", &serde_json::json!({"upload": id, "have": stored.len()}).to_string()))
    });
    let file = dir.path().join("image");
    let bytes: Vec<u8> = (0..700_001u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&file, &bytes).expect("written");
    let last = Arc::new(AtomicU64::new(0));
    let seen = last.clone();
    let upload = client.begin_upload(None).await.expect("begun");
    let begun = upload.upload;
    client.upload(&file, upload, Arc::new(move |done, _| seen.store(done, Ordering::SeqCst))).await.expect("uploaded");
    assert_eq!(begun, id);
    assert!(*stored.lock().expect("unpoisoned") == bytes, "the server has the file");
    assert_eq!(last.load(Ordering::SeqCst), bytes.len() as u64);
}

fn operation(state: &str) -> serde_json::Value {
    serde_json::json!({
        "id": uuid::Uuid::from_u128(1), "project": "default", "kind": "vm.start", "state": state, "steps": [], "progress": null, "blocked": null,
        "resource": {"kind": "vm", "project": "default", "name": "web", "uid": uuid::Uuid::from_u128(2)}, "error": null,
        "wanted": {"is": "task"}, "by": "root", "created_at": "2026-01-01T00:00:00Z", "ended_at": null,
    })
}

#[tokio::test]
async fn an_operation_is_followed_over_a_broken_stream() {
    let streams = AtomicU64::new(0);
    let (_dir, client) = serve(move |head, _| {
        if !head.contains("watch=true") {
            return Some(reply("200 OK", &operation("running").to_string()));
        }
        let state = if streams.fetch_add(1, Ordering::SeqCst) == 0 { "pending" } else { "done" };
        let event = serde_json::json!({"type": "put", "object": operation(state)});
        Some(reply("200 OK", &format!("event: put\nid: 1\ndata: {event}\n\n")))
    });
    let mut states = Vec::new();
    let id = vmkeep_types::ids::OperationId(uuid::Uuid::from_u128(1));
    let end = crate::follow::follow(&client, id, &mut |op| states.push(format!("{:?}", op.state))).await.expect("an end");
    assert!(end.state.is_over());
    assert_eq!(states, ["Pending", "Running", "Done"]);
}

/// A TLS server that answers every request with `1`; gives its port and the PEM of its certificate.
async fn serve_tls(name: &str) -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a configuration");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust us goes away here.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|n| n > 0) {}
            let token = String::from_utf8_lossy(&head).contains("authorization: Bearer secret");
            let _ = stream.write_all(reply("200 OK", if token { "1" } else { "0" }).as_bytes()).await;
        }
    });
    (port, made.cert.pem())
}

#[tokio::test]
async fn https_trusts_the_given_authority_and_no_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let (port, pem) = serve_tls("localhost").await;
    let (_, other_pem) = serve_tls("localhost").await;
    let (ours, other, none) = (dir.path().join("ours.pem"), dir.path().join("other.pem"), dir.path().join("none.pem"));
    std::fs::write(&ours, pem).expect("written");
    std::fs::write(&other, other_pem).expect("written");
    std::fs::write(&none, "nothing").expect("written");
    let url = format!("https://localhost:{port}");
    let connect = |ca| Client::https(&url, Some("secret".into()), Some(ca));
    assert_eq!(connect(&ours).expect("a client").call("version").answer::<u32>().await, Ok(1));
    let error = connect(&other).expect("a client").call("version").answer::<u32>().await.expect_err("another authority");
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.hint.as_deref().is_some_and(|h| h.contains("--ca-file")), "{}", told(&error));
    assert!(connect(&none).is_err_and(|e| e.code == Code::Invalid), "a file without certificates");
}

#[tokio::test]
async fn of_several_servers_the_first_that_answers_is_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    let (port, pem) = serve_tls("localhost").await;
    let ours = dir.path().join("ours.pem");
    std::fs::write(&ours, pem).expect("written");
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("an address").port()
    };
    // It lets everybody in and says nothing, as a frozen host.
    let frozen = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = frozen.local_addr().expect("an address").port();
    let (stranger, _) = serve_tls("localhost").await;
    for first in [closed, silent, stranger] {
        let urls = format!("https://localhost:{first}, https://localhost:{port}/");
        let client = Client::https(&urls, Some("secret".into()), Some(&ours)).expect("a client");
        assert_eq!(client.call("version").answer::<u32>().await, Ok(1), "{urls}");
    }
    let nobody = Client::https(&format!("https://localhost:{closed},https://localhost:{stranger}"), None, Some(&ours)).expect("a client");
    let error = nobody.call("version").answer::<u32>().await.expect_err("nobody is there");
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains(&format!("https://localhost:{closed},https://localhost:{stranger}")), "{}", error.message);
    assert!(Client::https("https://a:1,http://b:1", None, Some(&ours)).is_err_and(|e| e.message.contains("'http://b:1'")));
}

#[tokio::test]
async fn a_refused_websocket_says_why() {
    let body = r#"{"type":"about:blank","title":"Conflict","status":409,"detail":"vm 'web' is off","code":"conflict"}"#;
    let (_dir, client) = serve(move |_, _| Some(reply("409 Conflict", body)));
    let error = client.call("vm.console").field("name", "web").websocket().await.expect_err("it is off");
    assert_eq!(told(&error), "conflict: vm 'web' is off\n");
}
