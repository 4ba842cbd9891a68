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

#[test]
fn debian_12_is_built_launched_and_reached_by_ssh() {
    launched_and_reached("debian-12");
}

#[test]
fn debian_13_boots_for_real_and_is_reached_by_ssh() {
    launched_and_reached("debian-13");
}

fn launched_and_reached(recipe: &str) {
    let image = built(recipe);
    let host = Host::new("debian");
    host.ok(["image".as_ref(), "import".as_ref(), image.as_os_str(), "--name".as_ref(), recipe.as_ref()]);
    let key = host.path("id");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().expect("ssh-keygen");
    assert!(made.success());
    let public = host.path("id.pub").display().to_string();
    host.ok(["launch", recipe, "web", "--cpus", "2", "--memory", "1GiB", "--disk", "4GiB", "--ssh-key", &public]);
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
}

fn last_words(host: &Host) -> String {
    let log = text(&host.vmkeep(["vm", "logs", "web"]).stdout);
    log.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
}
