//! Three formed hosts over what a year brings: certificates that age, backups, an etcd full of history, a power cut of the whole room, and a
//! member that dies for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use vmkeep_e2e::host::{Host, Net, bin, root, tail, text};
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::wait::until;

use super::cluster::{SETTLE, host, init, join, refusal, token, until_healthy, until_it_knows_all_etcd};
use super::hello::BOOT;

const ALL: &str = "node1:member:follower node2:member:follower node3:member:follower";
const FOLDER: &str = "/var/lib/vmkeep/cluster";
/// Values of 1 MB over each other: history, which a defragmentation gives back.
const FILL: &str = "cd /var/lib/vmkeep/cluster && for n in $(seq 20); do head -c 700000 /dev/urandom | base64 -w 0 | \
    ETCDCTL_API=3 etcdctl --endpoints https://10.77.0.1:2379 --cacert ca.pem --cert node.pem --key node.key put zz/junk || exit 1; done";

fn shell(host: &Host, script: &str) -> String {
    let out = host.exec(["sh", "-c", script]);
    assert!(out.status.success(), "{script}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

fn etcdctl(host: &Host, words: &str) -> String {
    let urls = "https://10.77.0.1:2379,https://10.77.0.2:2379,https://10.77.0.3:2379";
    let files = "--cacert ca.pem --cert node.pem --key node.key";
    shell(host, &format!("cd {FOLDER} && ETCDCTL_API=3 etcdctl --endpoints {urls} {files} {words}"))
}

/// Asks one after the other, all the time; each time one of the control nodes must answer.
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
            "VMKEEP_SERVER=https://10.77.0.1:7443,https://10.77.0.2:7443,https://10.77.0.3:7443".to_owned(),
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

fn certificates_are_made_anew(hosts: &[Host; 3]) {
    for (n, host) in (1..).zip(hosts) {
        ages(host, n, "etcd");
    }
    // Its daemon begins anew with it, and the others answer meanwhile.
    ages(&hosts[1], 2, "node");
    let served = |n: usize| {
        format!(
            "openssl s_client -connect 10.77.0.{n}:2379 -CAfile {FOLDER}/ca.pem -cert {FOLDER}/node.pem -key {FOLDER}/node.key </dev/null 2>&1"
        )
    };
    for (n, host) in (1..).zip(hosts) {
        let anew = "this member's certificates were made anew";
        until("it is made anew", SETTLE, || if host.daemon_log().contains(anew) { Ok(()) } else { Err(tail(&host.daemon_log())) });
        until("etcd shows its new certificate", SETTLE, || is_young(host, &served(n)));
    }
    until("so has the daemon", SETTLE, || is_young(&hosts[1], &format!("cat {FOLDER}/node.pem")));
    until_healthy(&hosts[1], ALL);
}

fn history_is_given_back(hosts: &[Host; 3]) {
    shell(&hosts[0], FILL);
    let sizes = || {
        let told: serde_json::Value = serde_json::from_str(&etcdctl(&hosts[0], "endpoint status -w json")).expect("JSON of etcdctl");
        told.as_array().into_iter().flatten().filter_map(|one| one["Status"]["dbSize"].as_u64()).collect::<Vec<_>>()
    };
    let before = sizes();
    assert!(before.len() == 3 && before.iter().all(|size| *size > 15_000_000), "{before:?}");
    hosts[0].ok(["cluster", "defrag"]);
    let after = sizes();
    assert!(after.len() == 3 && after.iter().all(|size| *size < 10_000_000), "{before:?} {after:?}");
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

/// When its QEMU began, in ticks of the machine's clock.
fn began(host: &Host, vm: &str) -> u64 {
    until("its QEMU runs", BOOT, || {
        let pids = host.qemu_pids(vm);
        let [pid] = pids.as_slice() else { return Err(format!("{pids:?}")) };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| e.to_string())?;
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_whitespace().collect::<Vec<_>>()).ok_or("no fields")?;
        fields.get(19).and_then(|began| began.parse().ok()).ok_or_else(|| stat.clone())
    })
}

fn the_room_loses_its_power(hosts: &mut [Host; 3]) {
    hosts[0].apply(&wish("late", 1, "start: {order: 20}\n"));
    hosts[0].apply(&wish("early", 1, "start: {order: 10, delay: 1s}\n"));
    hosts[0].apply(&wish("off", 1, "").replace("run: always", "run: manual"));
    hosts[0].phase("early", "running", BOOT);
    assert!(began(&hosts[0], "late") < began(&hosts[0], "early"), "as they were made");
    hosts.iter_mut().for_each(Host::power_off);
    for host in hosts.iter_mut() {
        host.power_on();
        host.spawn_daemon(Net::Host, &[]);
    }
    until_healthy(&hosts[0], ALL);
    assert!(began(&hosts[0], "early") < began(&hosts[0], "late"), "by their order");
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
    let members = shell(
        &hosts[0],
        &format!(
            "cd {FOLDER} && ETCDCTL_API=3 etcdctl --endpoints https://10.77.0.1:2379 --cacert ca.pem --cert node.pem --key node.key member list"
        ),
    );
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
    certificates_are_made_anew(&hosts);
    client.ends();
    the_room_loses_its_power(&mut hosts);
    a_dead_member_is_taken_out(&mut hosts);
}
