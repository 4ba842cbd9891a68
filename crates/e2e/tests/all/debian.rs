//! A real distribution: built from the host's apt sources, started with one command, reached over the network.

use std::process::{Command, Stdio};
use std::time::Duration;

use vmkeep_e2e::host::{Host, text};
use vmkeep_e2e::image::built;
use vmkeep_e2e::wait::until;

/// systemd, cloud-init and sshd under TCG on a busy machine: minutes.
const FIRST_BOOT: Duration = Duration::from_secs(540);

/// How long the guest stands still; without help its clock stays so far behind.
const PAUSE: Duration = Duration::from_secs(30);

/// What the guest's firmware says of itself: 1 = it checks signatures.
const SECURE_BOOT: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

#[test]
fn debian_12_is_built_and_reached_by_ssh_with_secure_boot_and_a_tpm() {
    let host = reached("debian-12", |host, public| {
        let key = std::fs::read_to_string(public).expect("a key");
        host.apply(&format!(
            "kind: vm\nname: web\nos: linux\nsecure_boot: true\ntpm: true\ncpus: 2\nmemory: 1G\n\
             disks: [{{name: root, image: debian-12, size: 4G}}]\ncloud_init: {{ssh_keys: ['{}']}}\n",
            key.trim()
        ));
    });
    let inside = |words: &[&str]| host.ok(["vm", "exec", "web", "--"].iter().chain(words));
    let bytes = inside(&["od", "-An", "-tu1", SECURE_BOOT]);
    assert_eq!(bytes.split_whitespace().last(), Some("1"), "the guest checks signatures: {bytes}");
    assert_eq!(inside(&["cat", "/sys/class/tpm/tpm0/tpm_version_major"]).trim(), "2");
}

#[test]
fn debian_13_boots_for_real_and_is_reached_by_ssh() {
    reached("debian-13", |host, public| {
        let size = ["--cpus", "2", "--memory", "1GiB", "--disk", "4GiB"];
        host.ok(["launch", "debian-13", "web"].iter().chain(&size).chain(&["--ssh-key", public]));
    });
}

/// `make` gives it a VM `web` with 2 CPUs and 4 GiB of disk, which takes the public key of this file.
fn reached(recipe: &str, make: impl FnOnce(&Host, &str)) -> Host {
    let image = built(recipe);
    let host = Host::new("debian");
    host.ok(["image".as_ref(), "import".as_ref(), image.as_os_str(), "--name".as_ref(), recipe.as_ref()]);
    let key = host.path("id");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().expect("ssh-keygen");
    assert!(made.success());
    let public = host.path("id.pub").display().to_string();
    make(&host, &public);
    assert!(host.virsh(["dumpxml", "web"]).contains("OVMF"), "UEFI is the default");

    let mut inside = String::new();
    until("a shell in the guest", FIRST_BOOT, || {
        let ask = "hostname; df -BG --output=size / | tail -1; nproc; ls -d /sys/firmware/efi; systemctl is-active qemu-guest-agent";
        let mut ssh = host.cli();
        ssh.env("XDG_CONFIG_HOME", host.path("config")).args(["vm", "ssh", "web", "-i"]).arg(&key).args(["--", ask]);
        let out = ssh.stdin(Stdio::null()).output().expect("vmkeep runs");
        inside = text(&out.stdout);
        if out.status.success() { Ok(()) } else { Err(format!("{}\n{}", text(&out.stderr), last_words(&host))) }
    });
    let words: Vec<&str> = inside.split_whitespace().collect();
    assert_eq!(words, ["web", "4G", "2", "/sys/firmware/efi", "active"], "cloud-init set the name and grew the root: {inside}");

    let echo = host.ok(["vm", "exec", "web", "--", "uname", "-s"]);
    assert_eq!(echo.trim(), "Linux", "the guest agent runs programs");

    host.ok(["vm", "pause", "web"]);
    std::thread::sleep(PAUSE);
    host.ok(["vm", "resume", "web"]);
    until("the guest has the time again", Duration::from_secs(60), || {
        let guest: u64 = text(&host.vmkeep(["vm", "exec", "web", "--", "date", "+%s"]).stdout).trim().parse().unwrap_or_default();
        let missed =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs().saturating_sub(guest);
        if missed < PAUSE.as_secs() / 2 { Ok(()) } else { Err(format!("{missed} s behind")) }
    });
    host
}

fn last_words(host: &Host) -> String {
    let log = text(&host.vmkeep(["vm", "logs", "web"]).stdout);
    log.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
}
