//! The API's one address moves to a control node that answers.

use vmkeep_e2e::host::{Host, tail, text};
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::wait::until;

use super::cluster::{SETTLE, host, init, join, refusal, token, until_healthy};

const VIP: &str = "10.77.0.100";

/// Without a bearer it is refused: by our API, with the cluster's certificate, which names the address.
fn answers(host: &Host) -> Result<(), String> {
    answers_at(host, VIP)
}

/// The same, asked at a host's own address for the name of the other.
fn answers_at(host: &Host, address: &str) -> Result<(), String> {
    let to = format!("{VIP}:7443:{address}:7443");
    let url = format!("https://{VIP}:7443/v1/version");
    let out = host.exec([
        "curl",
        "-s",
        "--max-time",
        "3",
        "--connect-to",
        &to,
        "--cacert",
        "/var/lib/vmkeep/cluster/ca.pem",
        "-w",
        "%{http_code}",
        &url,
    ]);
    let told = text(&out.stdout) + &text(&out.stderr);
    if told.ends_with("401") { Ok(()) } else { Err(format!("{:?} {told}", out.status)) }
}

fn has_it(host: &Host) -> bool {
    text(&host.exec(["ip", "-4", "-o", "address"]).stdout).contains(&format!("{VIP}/24"))
}

fn logs(host: &Host) -> String {
    let keepalived = text(&host.exec(["cat", "/var/lib/vmkeep/cluster/keepalived.log"]).stdout);
    format!("{}\n{}", tail(&host.daemon_log()), tail(&keepalived))
}

#[test]
fn the_api_has_one_address_that_moves() {
    let switch = Switch::new("vip");
    let (mut one, mut two) = (host(&switch, 1), host(&switch, 2));
    init(&one);
    let joined = join(&two, &token(&one));
    assert!(joined.status.success(), "{}\n{}", text(&joined.stderr), tail(&two.daemon_log()));
    until_healthy(&one, "node1:member:follower node2:member:follower");
    assert!(refusal(&one.vmkeep(["cluster", "vip", "set", "10.77.0.1/24"])).contains("is the address of 'node1'"));
    assert!(refusal(&one.vmkeep(["cluster", "vip", "show"])).contains("no address of its own"));
    one.ok(["cluster", "vip", "set", &format!("{VIP}/24")]);
    assert_eq!(two.ok(["cluster", "vip", "show"]).trim(), format!("{VIP}/24"));
    until("one of them has it, and both reach the API there", SETTLE, || {
        if has_it(&one) == has_it(&two) {
            return Err(logs(&one) + &logs(&two));
        }
        answers(&one).and_then(|()| answers(&two)).map_err(|e| e + &logs(&one) + &logs(&two))
    });
    // A daemon that begins anew with its new certificate waits for etcd, which has no majority without the other host.
    for (host, address) in [(&one, "10.77.0.1"), (&two, "10.77.0.2")] {
        until("its certificate names the address", SETTLE, || answers_at(host, address).map_err(|e| e + &logs(host)));
    }
    until("one of them has it", SETTLE, || if has_it(&one) == has_it(&two) { Err(logs(&one) + &logs(&two)) } else { answers(&one) });
    let (dies, lives) = if has_it(&one) { (&mut one, &two) } else { (&mut two, &one) };
    dies.power_off();
    until("the other one has it", SETTLE, || if has_it(lives) { answers(lives).map_err(|e| e + &logs(lives)) } else { Err(logs(lives)) });
}
