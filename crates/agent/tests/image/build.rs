//! What `image build` makes boots. Needs root, the host's apt sources and OVMF (`scripts/packages.sh test`).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmkeep_agent::image;
use vmkeep_agent::pool::{self, Pool};
use vmkeep_types::ids::ImageId;
use vmkeep_types::image::{BuildRecipe, Found, ImageFacts};
use vmkeep_types::name::Name;
use vmkeep_types::order::Progress;
use vmkeep_types::pool::{PoolDriver, PoolSpec};

use crate::boot::{Firmware, Guest};

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
    assert_eq!(std::fs::read_dir(pool.staging()).expect("staging").filter(|e| !is_cache(e)).count(), 0, "the work is gone");
    (pool.image_path(id), facts)
}

fn is_cache(entry: &std::io::Result<std::fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|e| e.file_name() == "cache")
}

pub fn pool_in(dir: &Path) -> std::sync::Arc<dyn Pool> {
    let spec = PoolSpec { name: Name::known("default"), description: String::new(), driver: PoolDriver::Dir { path: dir.display().to_string() } };
    pool::open(&spec).expect("a pool")
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
    for (firmware, within) in [(Firmware::Bios, 30), (Firmware::Uefi, 60)] {
        let run = tempfile::tempdir().expect("a folder");
        let data = data_disk(run.path());
        let mut guest = Guest::boot(&image, firmware, 128, &[&data], run.path());
        let hello = guest.expect("vmkeep: hello from tiny", Duration::from_secs(within));
        println!("{firmware:?}: hello {hello:.1?} after the start");
        guest.expect("tiny has 10.0.2.15 on eth0", Duration::from_secs(within + 10));
        guest.typed("wget -qO- http://127.0.0.1/ | sed s/^/answers:/; cat /sys/firmware/efi/fw_platform_size | sed s/^/efi:/");
        guest.expect("answers:tiny", Duration::from_secs(within + 20));
        if firmware == Firmware::Uefi {
            guest.expect("efi:64", Duration::from_secs(within + 20));
        }
        let gone = guest.power_off();
        println!("{firmware:?}: gone {gone:.1?} after the button");
        let ticks = std::fs::read(&data).expect("the data disk");
        assert!(ticks.starts_with(b"tiny 1 ") || ticks[32..].starts_with(b"tiny 1 "), "the tick log begins: {:?}", String::from_utf8_lossy(&ticks[..64]));
    }
}
