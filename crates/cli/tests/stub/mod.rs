//! A server of fixed answers on a unix socket, for tests of what the CLI prints. The real server is tested elsewhere.

#![allow(dead_code, reason = "each test program uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// One request as the server saw it: `PUT /v1/vms/web`, its headers, its body.
pub struct Seen {
    pub line: String,
    pub head: String,
    pub body: Value,
}

type Answer = Box<dyn Fn(&Seen) -> Option<(u16, Value)> + Send + Sync>;

pub struct Stub {
    dir: tempfile::TempDir,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Stub {
    /// Answers with the first of `routes` whose text begins the request line, else 404.
    pub fn new(routes: Vec<(&'static str, u16, Value)>) -> Self {
        Self::with(Box::new(move |seen| {
            routes.iter().find(|(line, ..)| seen.line.starts_with(line)).map(|(_, status, body)| (*status, body.clone()))
        }))
    }

    pub fn with(answer: Answer) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("sock")).expect("a socket");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answer, log) = (Arc::new(answer), seen.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (answer, log) = (answer.clone(), log.clone());
                std::thread::spawn(move || serve(stream, &answer, &log));
            }
        });
        Self { dir, seen }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file beside the socket; commands run in that directory.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }

    /// Request lines and bodies of everything but reads.
    pub fn changes(&self) -> String {
        let seen = self.seen.lock().expect("unpoisoned");
        let changes = seen.iter().filter(|s| !s.line.starts_with("GET "));
        changes.map(|s| if s.body.is_null() { format!("{}\n", s.line) } else { format!("{} {}\n", s.line, s.body) }).collect()
    }

    /// A header of the last request.
    pub fn header(&self, name: &str) -> Option<String> {
        let seen = self.seen.lock().expect("unpoisoned");
        seen.last()?.head.lines().find_map(|l| Some(l.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    }

    /// Runs `vmkeep` and gives its exit code, stdout and stderr as one text.
    pub fn run(&self, args: &[&str], stdin: &str) -> String {
        run(&self.dir, &self.path("sock"), args, stdin)
    }

    /// Starts `vmkeep` with an open stdin; [`Stub::end_of`] tells how it ended.
    pub fn spawn(&self, args: &[&str]) -> Child {
        spawn(&self.dir, &self.path("sock"), args)
    }

    pub fn end_of(&self, child: Child) -> String {
        end_of(&self.dir, child)
    }
}

pub fn run(dir: &tempfile::TempDir, socket: &std::path::Path, args: &[&str], stdin: &str) -> String {
    let mut child = spawn(dir, socket, args);
    child.stdin.take().expect("piped").write_all(stdin.as_bytes()).expect("it reads or ends");
    end_of(dir, child)
}

fn spawn(dir: &tempfile::TempDir, socket: &std::path::Path, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vmkeep"))
        .args(args)
        .current_dir(dir.path())
        .env_clear()
        .envs([("HOME", dir.path().as_os_str()), ("VMKEEP_SOCKET", socket.as_os_str())])
        .envs([("EDITOR", dir.path().join("editor").as_os_str()), ("TMPDIR", dir.path().as_os_str()), ("PATH", "/usr/bin:/bin".as_ref())])
        .envs([("TZ", "UTC"), ("LC_ALL", "C"), ("COLUMNS", "100")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("vmkeep starts")
}

fn end_of(dir: &tempfile::TempDir, child: Child) -> String {
    let out = child.wait_with_output().expect("it ends");
    let clean = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&dir.path().display().to_string(), "DIR");
    let (stdout, stderr) = (clean(&out.stdout), clean(&out.stderr));
    let mut text = format!("exit {}\n", out.status.code().unwrap_or(-1));
    for (name, part) in [("stdout", stdout), ("stderr", stderr)] {
        if !part.is_empty() {
            text.push_str(&format!("--- {name}\n{part}"));
        }
    }
    text
}

fn serve(stream: UnixStream, answer: &Answer, log: &Mutex<Vec<Seen>>) {
    let mut writer = stream.try_clone().expect("a socket can be cloned");
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("the client sends what it promised");
        let line = head.lines().next().and_then(|l| l.strip_suffix(" HTTP/1.1")).unwrap_or_default().to_owned();
        let seen = Seen { line, head, body: serde_json::from_slice(&body).unwrap_or(Value::Null) };
        let (status, value) = answer(&seen).unwrap_or_else(|| (404, problem(404, "not_found", &format!("nothing at {}", seen.line))));
        log.lock().expect("unpoisoned").push(seen);
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let reply = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        if writer.write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

pub fn problem(status: u16, code: &str, detail: &str) -> Value {
    json!({"type": "about:blank", "title": code, "status": status, "detail": detail, "code": code})
}

pub fn page(items: Value) -> Value {
    json!({"items": items, "next": null, "revision": 7})
}

pub fn vm(name: &str, phase: &str, text: &str) -> Value {
    json!({
        "id": "00000000-0000-0000-0000-000000000001", "project": "default", "spec_revision": 5, "origin": "created",
        "created_at": "2026-01-31T14:05:09Z",
        "spec": {"name": name, "image": "tiny", "memory": "2G", "labels": {"tier": "db"}},
        "choices": {"macs": {"lan": "52:54:00:00:00:01"}, "serials": {}, "machine": "pc-q35-10.0", "firmware": {"kind": "bios"}},
        "status": {
            "phase": phase, "text": text, "node": "host1", "generation": 1, "since": "2026-01-31T14:06:00Z",
            "pending": [{"field": "memory.size", "from": "1G", "to": "2G"}], "drift": [], "conflicts": [], "error": null,
            "restarts": {"count": 0, "last_reason": null, "last_at": null}, "accel": "qemu", "qemu_outdated": false,
            "warnings": ["TCG: no hardware virtualisation"],
        },
    })
}

pub fn operation(kind: &str, state: &str, steps: &[&str]) -> Value {
    json!({
        "id": "00000000-0000-0000-0000-00000000000a", "project": "default", "kind": kind, "state": state, "steps": steps,
        "progress": null, "blocked": null, "error": null, "wanted": {"is": "task"}, "by": "root",
        "resource": {"kind": "vm", "project": "default", "name": "web", "uid": "00000000-0000-0000-0000-000000000001"},
        "created_at": "2026-01-31T14:05:00Z", "ended_at": if state == "done" { json!("2026-01-31T14:05:02.3Z") } else { Value::Null },
    })
}
