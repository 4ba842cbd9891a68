//! The API over the network: TLS that is checked, tokens with roles, and an audit log of who changed what.

use std::process::{Output, Stdio};

use vmkeep_e2e::host::{Host, text};

/// Inside the host's own network namespace.
const SERVER: &str = "https://127.0.0.1:8443";

struct Remote<'a> {
    host: &'a Host,
    ca: String,
}

impl Remote<'_> {
    fn ask(&self, token: Option<&str>, ca: bool, args: &[&str]) -> Output {
        let mut vmkeep = self.host.cli();
        vmkeep.env_remove("VMKEEP_TOKEN").args(["--server", SERVER]);
        if ca {
            vmkeep.args(["--ca-file", &self.ca]);
        }
        if let Some(token) = token {
            vmkeep.env("VMKEEP_TOKEN", token);
        }
        vmkeep.args(args).stdin(Stdio::null()).output().expect("vmkeep runs")
    }

    fn ok(&self, token: &str, args: &[&str]) -> String {
        let out = self.ask(Some(token), true, args);
        assert!(out.status.success(), "{args:?}: {}\n{}", text(&out.stderr), self.host.daemon_log());
        text(&out.stdout)
    }

    fn refused(&self, token: Option<&str>, ca: bool, args: &[&str], words: &str) {
        let out = self.ask(token, ca, args);
        let told = text(&out.stderr);
        assert!(!out.status.success() && told.contains(words), "{args:?} should be told '{words}': {told}");
    }
}

#[test]
fn tokens_open_the_api_over_tls_as_far_as_their_roles_go() {
    let mut host = Host::without_daemon("remote");
    let file = |name: &str| host.path(name).display().to_string();
    let (cert, key, audit) = (file("tls.crt"), file("tls.key"), file("audit.log"));
    host.configure(&format!(
        "audit = \"{audit}\"\n[tls]\nlisten = \"127.0.0.1:8443\"\ncert = \"{cert}\"\nkey = \"{key}\"\nself_signed = true\n"
    ));
    host.start_daemon();
    let token = |name: &str, role: &str| {
        host.json(["token", "create", name, "--role", role, "-o", "json"])["secret"].as_str().expect("a secret").to_owned()
    };
    let (viewer, operator) = (token("eve", "viewer"), token("olga", "operator"));
    let remote = Remote { host: &host, ca: cert };

    remote.refused(Some(&viewer), false, &["vm", "list"], "certificate");
    remote.refused(None, true, &["vm", "list"], "token");
    remote.refused(Some("vmk_0000"), true, &["vm", "list"], "token");
    remote.ok(&operator, &["vm", "create", "web1", "run=manual", "disks=[]"]);
    assert!(remote.ok(&viewer, &["vm", "list"]).contains("web1"));
    remote.refused(Some(&viewer), true, &["vm", "delete", "web1", "--yes"], "role");
    remote.refused(Some(&operator), true, &["token", "list"], "role");

    let id = host.json(["token", "list", "-o", "json"]).as_array().and_then(|all| all.iter().find(|t| t["name"] == "eve")).expect("eve's")
        ["id"]
        .clone();
    host.ok(["token", "delete", id.as_str().expect("an id"), "--yes"]);
    remote.refused(Some(&viewer), true, &["vm", "list"], "token");
    let log = std::fs::read_to_string(&audit).expect("an audit log");
    assert!(log.contains("\"by\":\"olga\"") && log.contains("\"vm.delete\"") && !log.contains(&operator), "{log}");
}
