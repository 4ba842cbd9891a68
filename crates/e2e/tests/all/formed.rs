//! Three formed hosts over what a year brings: certificates that age, backups, an etcd full of history, strangers, a power cut of the whole
//! room, and a member that dies for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use serde_json::Value;
use vmkeep_e2e::cluster::Ca;
use vmkeep_e2e::host::{Host, Net, bin, root, tail, text};
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::wait::until;

use super::cluster::{SETTLE, host, init, join, refusal, token, until_healthy, until_it_knows_all_etcd};
use super::etcdctl::{FOLDER, shell, sizes};
use super::hello::BOOT;
use super::on_the_wire::{FIRMWARE, MEMORY};

const ALL: &str = "node1:member:follower node2:member:follower node3:member:follower";
/// Values of 1 MB over each other: history, which a defragmentation gives back.
const FILL: &str = "for n in $(seq 20); do head -c 700000 /dev/urandom | base64 -w 0 | ctl put zz/junk || exit 1; done";
/// Changes that are made while etcd's members pause one after the other.
const WRITES: u32 = 30;

/// Asks one after the other, all the time; each time one of the control nodes must answer, first the one whose daemon begins anew.
struct Client {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u32>,
}

impl Client {
    fn of(host: &Host, secret: &str) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (ended, name, vmkeep) = (over.clone(), host.name.clone(), bin("vmkeep"));
        let env = [
            "env".to_owned(),
            format!("VMKEEP_TOKEN={secret}"),
            "VMKEEP_SERVER=https://10.77.0.2:7443,https://10.77.0.1:7443,https://10.77.0.3:7443".to_owned(),
        ];
        let thread = std::thread::spawn(move || {
            let mut answers = 0;
            while !ended.load(Ordering::Relaxed) {
                let mut ask = std::process::Command::new(root().join("tests/lab/nshost"));
                ask.args(["exec", &name]).args(&env).arg(&vmkeep);
                let out = ask.args(["--ca-file", &format!("{FOLDER}/ca.pem"), "node", "list", "-o", "name"]).output().expect("nshost runs");
                assert!(out.status.success(), "after {answers} answers: {}", text(&out.stderr));
                answers += 1;
            }
            answers
        });
        Self { over, thread }
    }

    fn ends(self) {
        self.over.store(true, Ordering::Relaxed);
        let answers = self.thread.join().expect("each question was answered");
        assert!(answers > 0);
    }
}

/// A certificate over the same key with ten days left, as it is ten months after a member joined.
fn ages(host: &Host, n: usize, what: &str) {
    let dir = host.lab_folder().join(&FOLDER[1..]);
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).expect("a file of the cluster");
    let ca = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).expect("its key")).expect("an authority");
    let (node, address) = (format!("node{n}"), format!("10.77.0.{n}"));
    let names = [node.as_str(), address.as_str(), "localhost", "127.0.0.1"].map(str::to_owned);
    let mut params = CertificateParams::new(names.to_vec()).expect("names");
    params.distinguished_name.push(DnType::CommonName, format!("{what}:{node}"));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let day = |days: i64| {
        let day = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).checked_add(jiff::Span::new().days(days)).expect("a day").date();
        let of = |n: i8| u8::try_from(n).expect("of a calendar");
        rcgen::date_time_ymd(i32::from(day.year()), of(day.month()), of(day.day()))
    };
    (params.not_before, params.not_after) = (day(-355), day(10));
    let cert = params.signed_by(&KeyPair::from_pem(&read(&format!("{what}.key"))).expect("a key"), &ca).expect("signed");
    let new = dir.join(format!("{what}.new"));
    std::fs::write(&new, format!("{}\n{}", cert.pem(), read("ca.pem"))).expect("written");
    std::fs::rename(new, dir.join(format!("{what}.pem"))).expect("renamed");
}

/// It lasts for a month still.
fn is_young(host: &Host, shown: &str) -> Result<(), String> {
    let out = host.exec(["sh", "-c", &format!("{shown} | openssl x509 -noout -enddate -checkend 2592000")]);
    if out.status.success() { Ok(()) } else { Err(format!("{}{}\n{}", text(&out.stdout), text(&out.stderr), tail(&host.daemon_log()))) }
}

/// As who has this pair in the cluster's folder; what the server shows, and the talk.
fn tls(at: &str, pair: &str) -> String {
    format!("openssl s_client -connect {at} -CAfile {FOLDER}/ca.pem -cert {FOLDER}/{pair}.pem -key {FOLDER}/{pair}.key </dev/null 2>&1")
}

/// Test hosts have no systemd, which would open libvirt's socket: it is restarted when its certificates are there.
pub(super) fn libvirt_listens(hosts: &[Host; 3]) {
    for (n, host) in (1..).zip(hosts) {
        until("libvirt has certificates", SETTLE, || {
            let there = host.exec(["test", "-e", "/etc/pki/libvirt/servercert.pem"]).status.success();
            if there { Ok(()) } else { Err(tail(&host.daemon_log())) }
        });
        host.restart_libvirtd();
        until("guests may come", SETTLE, || {
            let shown = hosts[0].vmkeep(["node", "show", &format!("node{n}"), "-o", "json"]);
            let told = text(&shown.stdout) + &text(&shown.stderr);
            if told.contains(&format!("qemu+tls://10.77.0.{n}/system")) { Ok(()) } else { Err(told + &tail(&host.daemon_log())) }
        });
    }
}

fn certificates_are_made_anew(hosts: &[Host; 3], switch: &Switch) {
    for (n, host) in (1..).zip(hosts) {
        ages(host, n, "etcd");
        ages(host, n, "libvirt");
    }
    // Its daemon begins anew with it, and the others answer meanwhile.
    ages(&hosts[1], 2, "node");
    for (n, host) in (1..).zip(hosts) {
        let anew = "this member's certificates were made anew";
        until("it is made anew", SETTLE, || if host.daemon_log().contains(anew) { Ok(()) } else { Err(tail(&host.daemon_log())) });
        until("etcd shows its new certificate", SETTLE, || is_young(host, &tls(&format!("10.77.0.{n}:2379"), "node")));
        // Its old one was young too.
        until("so does libvirt", SETTLE, || {
            is_young(host, &format!("cat {FOLDER}/libvirt.pem"))?;
            let print = |shown: &str| text(&host.exec(["sh", "-c", &format!("{shown} | openssl x509 -noout -fingerprint -sha256")]).stdout);
            let (shown, new) = (print(&tls(&format!("10.77.0.{n}:16514"), "libvirt")), print(&format!("cat {FOLDER}/libvirt.pem")));
            if shown == new && !new.is_empty() { Ok(()) } else { Err(format!("{shown} is not {new}\n{}", tail(&host.daemon_log()))) }
        });
    }
    until("the daemon begins anew", SETTLE, || {
        let log = hosts[1].daemon_log();
        if log.contains("certificate was made anew; beginning anew with it") { Ok(()) } else { Err(tail(&log)) }
    });
    until("its API shows a new one", SETTLE, || is_young(&hosts[1], &tls("10.77.0.2:7443", "node")));
    until_healthy(&hosts[1], ALL);
    a_guest_moves_with_them(&hosts[1], switch);
}

/// Whoever reads along on the wire learns neither what is in its memory nor what it is called.
fn a_guest_moves_with_them(asked: &Host, switch: &Switch) {
    asked.apply("kind: vm\nname: secretive\nrun: always\nfirmware: bios\nmemory: 16M\nnics: []\ncloud_init: null\ndisks: []\n");
    let node = || asked.phase("secretive", "running", BOOT)["status"]["node"].clone();
    let before = node();
    let heard = switch.hears(|| {
        let said = asked.exec(["bash", "-c", "echo in the clear >/dev/udp/10.77.0.1/9"]);
        assert!(said.status.success(), "{}", text(&said.stderr));
        asked.ok(["vm", "migrate", "secretive"]);
    });
    assert_ne!(node(), before);
    assert!(heard.has("in the clear") && heard.0.len() > 100_000, "{} bytes were heard", heard.0.len());
    for word in [MEMORY, FIRMWARE, "<domain", "secretive"] {
        assert!(!heard.has(word), "'{word}' can be read on the wire");
    }
    asked.ok(["vm", "kill", "secretive"]);
    asked.ok(["vm", "delete", "secretive", "--yes"]);
}

/// What it is told at a port of the first host, shown this pair: the answer, and why there is none.
fn knock(from: &Host, port: u16, pair: Option<&str>) -> (String, String) {
    let shown = pair.map_or_else(String::new, |pair| format!("-cert {FOLDER}/{pair}.pem -key {FOLDER}/{pair}.key"));
    let words = "printf 'GET /version HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n'";
    // libvirt closes at once when it is spoken to in HTTP: it says whether it takes the certificate before.
    let ask = format!("(sleep 1; {words}) | timeout 20 openssl s_client -quiet -connect 10.77.0.1:{port} -CAfile {FOLDER}/ca.pem {shown}");
    let out = from.exec(["sh", "-c", &ask]);
    (text(&out.stdout), text(&out.stderr))
}

/// Members talk to members there, and to nobody else.
fn strangers_are_refused(from: &Host) {
    // All names are right.
    Ca::new().issue(&from.lab_folder().join(&FOLDER[1..]), "stranger", "node:node1", &["node1", "10.77.0.1", "localhost"]);
    for (port, own) in [(7444, "node"), (2379, "node"), (2380, "etcd"), (16514, "libvirt")] {
        let (answer, told) = knock(from, port, Some(own));
        assert_ne!(answer, "", "a member is answered at {port}: {told}");
        for pair in [None, Some("stranger")] {
            let (answer, told) = knock(from, port, pair);
            assert_eq!(answer, "", "{pair:?} at {port}: {told}");
        }
    }
    let (answer, told) = knock(from, 7444, Some("libvirt"));
    assert_eq!(answer, "", "libvirt is not a node: {told}");
}

fn history_is_given_back(hosts: &[Host; 3]) {
    shell(&hosts[0], FILL);
    let (before, leads) = sizes(&hosts[0], &[0, 1, 2]);
    assert!(before.len() == 3 && before.iter().all(|size| *size > 15_000_000), "{before:?}");
    with_one_away_nobody_pauses(hosts, &before, leads);
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for n in 0..WRITES {
                hosts[0].ok(["node", "set", "node3", &format!("labels.change=n{n}")]);
            }
        });
        while !changes.is_finished() {
            until("it is done", SETTLE, || {
                let out = hosts[1].vmkeep(["cluster", "defrag"]);
                if out.status.success() { Ok(()) } else { Err(text(&out.stderr)) }
            });
        }
    });
    let (after, _) = sizes(&hosts[0], &[0, 1, 2]);
    assert!(after.len() == 3 && after.iter().all(|size| *size < 10_000_000), "{before:?} {after:?}");
    nobody_pauses_beside_another_or_leading(hosts);
}

/// An etcd stands still that does not lead: nothing is begun.
fn with_one_away_nobody_pauses(hosts: &[Host; 3], before: &[u64], leads: Option<usize>) {
    let (away, left) = if leads == Some(2) { (0, [1, 2]) } else { (2, [0, 1]) };
    assert_eq!(hosts[away].signal_etcd("-STOP"), 1);
    let words = format!("etcd on 'node{}' does not answer", away + 1);
    until("it is refused", SETTLE, || {
        let told = refusal(&hosts[1].vmkeep(["cluster", "defrag"]));
        if told.contains(&words) && told.contains("another must not pause") { Ok(()) } else { Err(told) }
    });
    let (now, _) = sizes(&hosts[1], &left);
    assert!(now.len() == 2 && left.iter().zip(&now).all(|(n, now)| *now >= before[*n]), "{before:?} {now:?}");
    assert_eq!(hosts[away].signal_etcd("-CONT"), 1);
    until_healthy(&hosts[1], ALL);
}

/// What etcd says of itself; of one instant, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    GoesOn,
    Follows,
    Leads,
    Pauses,
}

impl Word {
    fn of(told: &str) -> Option<Self> {
        let words = [
            ("finished defragment", Self::GoesOn),
            ("became follower at term", Self::Follows),
            ("became leader at term", Self::Leads),
            ("starting defragment", Self::Pauses),
        ];
        words.into_iter().find(|(words, _)| told.contains(words)).map(|(_, word)| word)
    }
}

fn nobody_pauses_beside_another_or_leading(hosts: &[Host; 3]) {
    let mut told = Vec::new();
    for (n, host) in hosts.iter().enumerate() {
        let log = std::fs::read_to_string(host.lab_folder().join(&FOLDER[1..]).join("etcd.log")).expect("etcd's log");
        for line in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let Some(word) = line["msg"].as_str().and_then(Word::of) else { continue };
            told.push((line["ts"].as_str().expect("a time").to_owned(), word, n));
        }
    }
    // One clock, as it is one machine.
    told.sort();
    let (mut leads, mut pauses, mut paused) = ([false; 3], None, [0; 3]);
    for (at, word, n) in &told {
        match word {
            Word::Pauses => {
                assert!(pauses.is_none() && !leads[*n], "at {at} node{}: {told:?}", n + 1);
                pauses = Some(*n);
                paused[*n] += 1;
            }
            Word::GoesOn => pauses = None,
            Word::Leads | Word::Follows => leads[*n] = *word == Word::Leads,
        }
    }
    assert!(paused.iter().all(|times| *times > 0), "{told:?}");
}

/// The revision of a value that was written over.
fn an_old_value(host: &Host) -> u64 {
    let told: Value = serde_json::from_str(&shell(host, "ctl put zz/old first -w json")).expect("JSON of etcdctl");
    shell(host, "ctl put zz/old second");
    told["header"]["revision"].as_u64().expect("a revision")
}

/// etcd drops it by itself: nobody has had it defragmented since.
fn it_is_forgotten(host: &Host, revision: u64) {
    let begin = std::time::Instant::now();
    let ask = format!("ctl get zz/old --rev={revision} 2>&1 || true");
    until("it is dropped", SETTLE, || {
        let told = shell(host, &ask);
        if told.contains("compacted") { Ok(()) } else { Err(told) }
    });
    println!("history went, {:.0} s waited for", begin.elapsed().as_secs_f64());
}

/// The newest is seven hours old, and there are more than are kept.
fn a_backup_is_due(host: &Host) {
    shell(
        host,
        &format!(
            "cd {FOLDER}/backup && for n in 1 2 3 4 5 6 7 8 9; do touch -d '7 hours ago' etcd-2025010${{n}}T000000Z.snapshot; done &&
             touch -d '7 hours ago' *.snapshot"
        ),
    );
    let made = until("it is backed up, and eight are kept", SETTLE, || {
        let told = shell(host, &format!("cd {FOLDER}/backup && ls"));
        let files: Vec<String> = told.lines().map(str::to_owned).collect();
        let fresh = shell(host, &format!("find {FOLDER}/backup -name '*.snapshot' -mmin -60"));
        if files.len() == 8 && !fresh.is_empty() { Ok(fresh) } else { Err(format!("{told}\n{}", tail(&host.daemon_log()))) }
    });
    let told = shell(host, &format!("ETCDCTL_API=3 etcdctl snapshot status -w json {}", made.trim()));
    assert!(told.contains("totalKey"), "{told}");
}

fn wish(name: &str, node: u8, more: &str) -> String {
    format!(
        "kind: vm\nname: {name}\nrun: always\nfirmware: bios\nmemory: 16M\nnics: []\ncloud_init: null\ndisks: []\n\
         placement: {{node_selector: {{node: node{node}}}}}\n{more}"
    )
}

fn the_room_loses_its_power(hosts: &mut [Host; 3]) {
    hosts[0].apply(&wish("late", 1, "start: {order: 20}\n"));
    hosts[0].apply(&wish("early", 1, "start: {order: 10, delay: 1s}\n"));
    hosts[0].apply(&wish("off", 1, "").replace("run: always", "run: manual"));
    hosts[0].phase("early", "running", BOOT);
    assert!(hosts[0].began("late", BOOT) < hosts[0].began("early", BOOT), "as they were made");
    hosts.iter_mut().for_each(Host::power_off);
    for host in hosts.iter_mut() {
        host.power_on();
        host.spawn_daemon(Net::Host, &[]);
    }
    until_healthy(&hosts[0], ALL);
    assert!(hosts[0].began("early", BOOT) < hosts[0].began("late", BOOT), "by their order");
    hosts[1].phase("early", "running", BOOT);
    hosts[1].phase("late", "running", BOOT);
    hosts[1].phase("off", "stopped", BOOT);
}

/// It owned VMs and voted in etcd; nobody cuts its power for good but a person.
fn a_dead_member_is_taken_out(hosts: &mut [Host; 3]) {
    hosts[0].ok(["node", "cordon", "node1"]);
    hosts[0].ok(["node", "cordon", "node2"]);
    hosts[0].apply("kind: vm\nname: there\nrun: always\nfirmware: bios\nmemory: 16M\nnics: []\ncloud_init: null\ndisks: []\n");
    assert_eq!(hosts[0].phase("there", "running", BOOT)["status"]["node"], "node3");
    hosts[0].ok(["node", "uncordon", "node2"]);
    hosts[2].power_off();
    until_healthy(&hosts[0], &ALL.replace("node3:member:follower", "node3:member:silent"));
    let refused = refusal(&hosts[0].vmkeep(["cluster", "remove", "node3", "--yes"]));
    assert!(refused.contains("'node3' owns 1 VMs") && refused.contains("confirm-dead"), "{refused}");
    until("a person's word is taken", SETTLE, || {
        let out = hosts[0].vmkeep(["ha", "confirm-dead", "node3", "--typed", "node3"]);
        if out.status.success() { Ok(()) } else { Err(text(&out.stderr)) }
    });
    until("it is taken out", SETTLE, || {
        let out = hosts[0].vmkeep(["cluster", "remove", "node3", "--yes"]);
        if out.status.success() { Ok(()) } else { Err(text(&out.stderr) + &tail(&hosts[0].daemon_log())) }
    });
    let members = shell(&hosts[0], "ctl member list");
    assert!(members.lines().count() == 2 && !members.contains("node3"), "{members}");
    until("its VM runs elsewhere", BOOT, || {
        let vm = hosts[1].vm("there");
        if vm["status"]["phase"] == "running" && vm["status"]["node"] == "node2" { Ok(()) } else { Err(vm["status"].to_string()) }
    });
    let runs = hosts[1].qemu_pids("there");
    assert_eq!(runs.len(), 1);

    hosts[2].power_on();
    hosts[2].spawn_daemon(Net::Host, &[]);
    until("who comes back is told", SETTLE, || {
        let out = hosts[2].vmkeep(["cluster", "status"]);
        let told = text(&out.stdout) + &text(&out.stderr);
        if told.contains("'node3' is no member") && told.contains("leave --forget") {
            Ok(())
        } else {
            Err(told + &tail(&hosts[2].daemon_log()))
        }
    });
    assert_eq!(hosts[2].qemu_pids("there"), Vec::<u32>::new(), "and runs nothing twice");
    assert_eq!(hosts[1].qemu_pids("there"), runs, "and ends nothing elsewhere");
    until_healthy(&hosts[0], "node1:member:follower node2:member:follower");
}

#[test]
fn a_formed_cluster_is_looked_after_and_outlives_a_power_cut_and_a_member() {
    let switch = Switch::new("formed");
    let mut hosts = [1, 2, 3].map(|n| host(&switch, n));
    init(&hosts[0]);
    for host in &hosts[1..] {
        let joined = join(host, &token(&hosts[0]));
        assert!(joined.status.success(), "{}\n{}", text(&joined.stderr), tail(&host.daemon_log()));
    }
    for host in &hosts {
        until_healthy(host, ALL);
        until_it_knows_all_etcd(host);
    }
    let told = hosts[0].json(["token", "create", "ci", "--role", "operator", "-o", "json"]);
    let client = Client::of(&hosts[0], told["secret"].as_str().expect("a secret"));
    a_backup_is_due(&hosts[0]);
    history_is_given_back(&hosts);
    let old = an_old_value(&hosts[0]);
    libvirt_listens(&hosts);
    strangers_are_refused(&hosts[2]);
    certificates_are_made_anew(&hosts, &switch);
    client.ends();
    the_room_loses_its_power(&mut hosts);
    a_dead_member_is_taken_out(&mut hosts);
    it_is_forgotten(&hosts[0], old);
}
