//! The commands against a small server of our own that speaks the routes they use.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::Cli;
use crate::report::Format;

#[derive(Clone, Default)]
struct Vms(Arc<Mutex<BTreeSet<String>>>);

impl Vms {
    fn names(&self) -> Vec<String> {
        self.0.lock().expect("no panic").iter().cloned().collect()
    }

    fn answer(&self, method: &Method, path: &str, body: &Value) -> (StatusCode, Value) {
        let operation = json!({ "operation": { "id": "op1" } });
        match (method.as_str(), path.split('?').next().expect("a path")) {
            ("GET", "/v1/version") => (StatusCode::OK, json!({})),
            ("GET", "/v1/operations/op1") => (StatusCode::OK, json!({ "state": "done" })),
            ("GET", "/v1/vms") => {
                let items: Vec<Value> = self.names().iter().map(|name| json!({ "spec": { "name": name } })).collect();
                (StatusCode::OK, json!({ "items": items, "next": null, "revision": 1 }))
            }
            ("GET", "/1.0/instances") => {
                let items: Vec<Value> = self.names().iter().map(|name| json!({ "name": name })).collect();
                (StatusCode::OK, json!({ "metadata": items }))
            }
            (verb, path) => {
                let name = path.rsplit('/').next().expect("a path").to_owned();
                let mut vms = self.0.lock().expect("no panic");
                match verb {
                    "PUT" if body["name"] == name.as_str() && body["run"] == "halted" => drop(vms.insert(name)),
                    "DELETE" if vms.remove(&name) => {}
                    "GET" if vms.contains(&name) => return (StatusCode::OK, json!({ "spec": { "name": name } })),
                    _ => return (StatusCode::NOT_FOUND, json!({ "detail": format!("no {verb} {path}") })),
                }
                (StatusCode::ACCEPTED, operation)
            }
        }
    }
}

/// Serves `vms` on `socket`; every answer takes `delay`.
fn serve(socket: &Path, vms: Vms, delay: Duration) {
    let listener = UnixListener::bind(socket).expect("a socket");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let vms = vms.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let vms = vms.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.expect("a body").to_bytes();
                    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                    tokio::time::sleep(delay).await;
                    let path = head.uri.path_and_query().expect("a path").as_str();
                    let (status, answer) = vms.answer(&head.method, path, &body);
                    let answer = Response::builder().status(status).body(Full::new(Bytes::from(answer.to_string())));
                    Ok::<_, Infallible>(answer.expect("an answer"))
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
}

struct Bench {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    incus: PathBuf,
    vms: Vms,
}

/// Our server, and one that is slower by a few milliseconds.
fn bench() -> Bench {
    let dir = tempfile::tempdir().expect("a folder");
    let (socket, incus) = (dir.path().join("vmkeep.sock"), dir.path().join("incus.sock"));
    let vms = Vms::default();
    serve(&socket, vms.clone(), Duration::ZERO);
    serve(&incus, Vms(Arc::new(Mutex::new(["bench-00000".to_owned()].into()))), Duration::from_millis(50));
    Bench { _dir: dir, socket, incus, vms }
}

impl Bench {
    async fn run(&self, line: &str) -> Result<Value, String> {
        let line = line.replace("SOCKET", &self.socket.display().to_string()).replace("INCUS", &self.incus.display().to_string());
        let cli = Cli::try_parse_from(std::iter::once("vmkeep-bench").chain(line.split(' '))).expect("a command line");
        let report = crate::run(cli.command).await.map_err(|e| format!("{e:#}"))?;
        Ok(serde_json::from_str(&report.show(Format::Json)).expect("JSON"))
    }
}

fn row<'a>(report: &'a Value, what: &str) -> &'a Value {
    let rows = report.as_array().expect("rows");
    rows.iter().find(|row| row["what"] == what).unwrap_or_else(|| panic!("no row '{what}' in {report:#}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fills_and_removes_only_its_own() {
    let bench = bench();
    let report = bench.run("fill --socket SOCKET --count 3").await.expect("filled");
    assert_eq!(row(&report, "accepted")["count"], 3);
    assert_eq!(bench.vms.names(), ["bench-00000", "bench-00001", "bench-00002"]);
    bench.run("fill --socket SOCKET --remove").await.expect("removed");
    assert_eq!(bench.vms.names(), [""; 0]);
    bench.run("fill --socket SOCKET --remove").await.expect("nothing to do is fine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rates_are_compared_in_one_run() {
    let bench = bench();
    bench.run("fill --socket SOCKET --count 1").await.expect("filled");
    let line = "api --socket SOCKET --incus-socket INCUS --requests 40 --lists 20 --connections 2";
    let report = bench.run(line).await.expect("measured");
    assert_eq!(row(&report, "vmkeep: one VM")["count"], 40);
    assert_eq!(row(&report, "incus: list of 1")["count"], 20);
    let slower = row(&report, "incus: one VM")["p50_ms"].as_f64().expect("a number");
    assert!(slower >= 50.0, "the clock sees the delay: {slower}");
    let times = row(&report, "one VM, times Incus");
    assert!(times["value"].as_f64().expect("a number") > 1.0, "{times}");
    assert_eq!(times["at_least"], 8.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unequal_lists_are_not_compared() {
    let bench = bench();
    bench.run("fill --socket SOCKET --count 2").await.expect("filled");
    let refused = bench.run("api --socket SOCKET --incus-socket INCUS").await.expect_err("2 and 1");
    assert!(refused.starts_with("vmkeep lists 2 VMs and Incus 1"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_the_server_are_not_fast_answers() {
    let bench = bench();
    bench.run("fill --socket SOCKET --count 1").await.expect("filled");
    let refused = bench.run("api --socket SOCKET --vm none --requests 5").await.expect_err("404");
    assert!(refused.contains("404 Not Found") && refused.contains("no GET /v1/vms/none"), "{refused}");
    let refused = bench.run("api --socket SOCKET.gone").await.expect_err("no server");
    assert!(refused.starts_with("cannot connect to"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_that_of_the_server() {
    let bench = bench();
    bench.run("fill --socket SOCKET --count 1").await.expect("filled");
    let report = bench.run("rss --socket SOCKET --requests 200 --idle-seconds 1").await.expect("measured");
    let own = crate::daemon::Pid::new(std::process::id()).resident().expect("memory");
    let seen = row(&report, "resident, after 200 requests")["value"].as_f64().expect("a number");
    assert!((own / 2.0..own * 2.0).contains(&seen), "the server is this process: {seen} and {own} MiB");
    assert!(row(&report, "CPU while idle")["value"].as_f64().expect("a number") < 100.0);
    assert_eq!(row(&report, "VMs")["value"], 1.0);
}
