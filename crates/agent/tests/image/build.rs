//! What `image build` makes boots. Needs root, the host's apt sources and OVMF (`scripts/packages.sh test`).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmkeep_agent::image;
use vmkeep_types::ids::ImageId;
use vmkeep_types::image::{BuildRecipe, Found, ImageFacts};
use vmkeep_types::order::Progress;

use crate::boot::{Firmware, Guest};
use crate::stand::{pool_in, run};

const DATA_BYTES: u64 = 4 << 20;

/// Each test has its own pool; apt's and mmdebstrap's work is done in it for real.
async fn built(recipe: BuildRecipe, dir: &Path) -> (PathBuf, ImageFacts) {
    let pool = pool_in(dir);
    let id = ImageId(uuid::Uuid::new_v4());
    let steps = Arc::new(Mutex::new(Vec::new()));
    let told = steps.clone();
    let sink = move |_: Option<Progress>, step: &str| {
        if !step.is_empty() {
            told.lock().expect("steps").push(step.to_owned());
        }
    };
    let facts = image::build(&*pool, id, recipe, &sink).await.expect("the image is built");
    assert!(steps.lock().expect("steps").len() >= 4, "each step is told");
    assert_eq!(std::fs::read_dir(pool.staging()).expect("staging").count(), 0, "the work is gone");
    (pool.image_path(id), facts)
}

fn data_disk(dir: &Path) -> PathBuf {
    let path = dir.join("data.raw");
    std::fs::File::create(&path).and_then(|f| f.set_len(DATA_BYTES)).expect("a data disk");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn tiny_boots_for_real_by_both_firmwares() {
    let dir = tempfile::tempdir().expect("a folder");
    let (image, facts) = built(BuildRecipe::Tiny, dir.path()).await;
    assert_eq!((facts.virtio, facts.cloud_init, facts.warnings.len()), (Found::Yes, Found::No, 0));
    // GRUB for UEFI needs the larger memory.
    for (firmware, memory_mib, within) in [(Firmware::Bios, 128, 60), (Firmware::Uefi, 256, 120)] {
        let folder = tempfile::tempdir().expect("a folder");
        let data = data_disk(folder.path());
        let mut guest = Guest::boot(&image, firmware, memory_mib, &[&data], folder.path());
        let hello = guest.expect("vmkeep: hello from tiny", Duration::from_secs(within));
        println!("{firmware:?}: hello {hello:.1?} after the start");
        guest.expect("tiny has 10.0.2.15 on eth0", Duration::from_secs(within + 10));
        guest.typed("wget -qO- http://127.0.0.1/ | sed s/^/answers:/; cat /sys/firmware/efi/fw_platform_size | sed s/^/efi:/");
        guest.expect("answers:tiny", Duration::from_secs(within + 20));
        if firmware == Firmware::Uefi {
            guest.expect("efi:64", Duration::from_secs(within + 20));
        }
        let begun = std::time::Instant::now();
        // It is durable once it is written; when the guest comes to it is its own affair.
        while !std::fs::read(&data).expect("the data disk")[64..].starts_with(b"tiny 1 ") {
            assert!(begun.elapsed() < Duration::from_secs(60), "line n of the tick log lies at 64 n, and there is none");
            std::thread::sleep(Duration::from_millis(200));
        }
        let gone = guest.power_off();
        println!("{firmware:?}: gone {gone:.1?} after the button");
    }
}

/// A first boot's wishes: a name, a key, and a report on the serial console.
const USER_DATA: &str = r#"#cloud-config
ssh_authorized_keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx0lfCtTaGDyTNZHXbqRQpDGVTBn3VxxFFTeNcl1Hkd test"]
runcmd:
  - [sh, -c, "echo \"REPORT $(hostname) root=$(df -BG --output=size / | tail -1 | tr -d ' ') keys=$(ls /etc/ssh/ssh_host_ed25519_key /etc/ssh/ssh_host_rsa_key | wc -l) ssh=$(systemctl is-active ssh) address=$(hostname -I) failed=$(systemctl --failed --no-legend --plain | wc -l) user=$(wc -l </home/debian/.ssh/authorized_keys) firmware=$(ls -d /sys/firmware/efi) REPORT-END\" >/dev/ttyS0"]
"#;

fn seed(dir: &Path) -> PathBuf {
    let path = dir.join("seed.img");
    std::fs::write(dir.join("user-data"), USER_DATA).expect("written");
    std::fs::write(dir.join("meta-data"), "instance-id: one\nlocal-hostname: web1\n").expect("written");
    std::fs::File::create(&path).and_then(|f| f.set_len(1 << 20)).expect("a seed");
    run("mkfs.vfat", &["-n", "CIDATA", "seed.img"], dir);
    run("mcopy", &["-i", "seed.img", "user-data", "meta-data", "::/"], dir);
    path
}

/// Minutes: mmdebstrap installs a whole system and systemd boots under TCG, twice.
#[tokio::test(flavor = "multi_thread")]
async fn debian_12_boots_for_real_with_cloud_init_by_both_firmwares() {
    let dir = tempfile::tempdir().expect("a folder");
    let (image, facts) = built(BuildRecipe::Debian12, dir.path()).await;
    assert_eq!((facts.virtio, facts.cloud_init, facts.guest_agent, facts.warnings.len()), (Found::Yes, Found::Yes, Found::Yes, 0));
    let grown = dir.path().join("grown.qcow2");
    let names = [&image, &grown].map(|p| p.display().to_string());
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &names[0], &names[1], "8G"], dir.path());
    let folder = tempfile::tempdir().expect("a folder");
    let mut guest = Guest::boot(&grown, Firmware::Uefi, 1024, &[&seed(folder.path())], folder.path());
    println!("UEFI: first boot done {:.0?} after the start", guest.expect("REPORT-END", Duration::from_secs(420)));
    for words in ["REPORT web1 root=8G keys=2 ssh=active address=10.0.2.15", "failed=0 user=1 firmware=/sys/firmware/efi"] {
        guest.expect(words, Duration::from_secs(420));
    }
    drop(guest);
    let folder = tempfile::tempdir().expect("a folder");
    let mut guest = Guest::boot(&image, Firmware::Bios, 512, &[], folder.path());
    println!("BIOS: login {:.0?} after the start", guest.expect("login:", Duration::from_secs(300)));
}
