//! What is taken in keeps its content; what could make us read other files, or is damaged, leaves nothing.

use std::path::{Path, PathBuf};

use expect_test::{Expect, expect};
use vmkeep_agent::image::{self, Reach, Remote, VolumeSource};
use vmkeep_agent::pool::Pool;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::ImageId;
use vmkeep_types::image::{Found, ImageFacts, ImageKind};
use vmkeep_types::vm::{Firmware, OsFamily};

use crate::server::{First, serve};
use crate::stand::{files_below, pool_in, run, silent};

const DISK_BYTES: usize = 3 << 20;
const ID: ImageId = ImageId(uuid::Uuid::from_u128(7));

/// A raw disk with something to recognise.
fn disk(dir: &Path) -> Vec<u8> {
    let mut bytes = vec![0; DISK_BYTES];
    for (n, byte) in bytes.iter_mut().enumerate().skip(1 << 20).take(1 << 20) {
        *byte = (n * 7 % 251) as u8;
    }
    std::fs::write(dir.join("disk.raw"), &bytes).expect("written");
    bytes
}

async fn import(dir: &Path, file: &str, sha256: Option<&str>) -> Result<(PathBuf, ImageFacts), Error> {
    let pool = pool_in(&dir.join("pool"));
    let facts = image::import_file(&*pool, ID, &dir.join(file), sha256, &silent).await?;
    Ok((pool.image_path(ID), facts))
}

/// The guest's view of an image.
fn content(image: &Path, dir: &Path) -> Vec<u8> {
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &image.display().to_string(), "back.raw"], dir);
    std::fs::read(dir.join("back.raw")).expect("converted")
}

#[tokio::test]
async fn every_format_keeps_its_content() {
    for (format, options) in [
        ("raw", ""),
        ("qcow2", ""),
        ("qcow2", "compat=0.10"),
        ("vmdk", ""),
        ("vmdk", "subformat=streamOptimized"),
        ("vhdx", ""),
        ("vpc", "force_size=on"),
        ("vdi", ""),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let bytes = disk(dir.path());
        let options: &[&str] = if options.is_empty() { &[] } else { &["-o", options] };
        run("qemu-img", &[&["convert", "-f", "raw", "-O", format], options, &["disk.raw", "disk.img"]].concat(), dir.path());
        let (image, facts) = import(dir.path(), "disk.img", None).await.unwrap_or_else(|e| panic!("{format} {options:?}: {e}"));
        assert_eq!(facts.virtual_size.bytes() as usize, bytes.len(), "{format}");
        assert!(content(&image, dir.path()) == bytes, "{format} {options:?}");
        assert!(std::fs::metadata(&image).expect("an image").permissions().readonly(), "{format}");
        assert_eq!(files_below(&dir.path().join("pool")), [image], "{format}: nothing else stays");
    }
}

#[tokio::test]
async fn an_ova_gives_its_first_disk_and_a_cd_stays_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let bytes = disk(dir.path());
    run("qemu-img", &["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", "disk.raw", "vm-disk1.vmdk"], dir.path());
    std::fs::write(dir.path().join("vm.ovf"), "<Envelope/>").expect("written");
    std::fs::write(dir.path().join("vm-disk2.vmdk"), "data").expect("written");
    let sum = |dir: &Path| run("sh", &["-c", "sha256sum --tag vm-disk1.vmdk | sed 's/ (/(/; s/) =/)=/' > vm.mf"], dir);
    sum(dir.path());
    let pack = ["--format=ustar", "-cf", "vm.ova", "vm.ovf", "vm.mf", "vm-disk1.vmdk", "vm-disk2.vmdk"];
    run("tar", &pack, dir.path());
    let (image, facts) = import(dir.path(), "vm.ova", None).await.expect("imported");
    assert!(content(&image, dir.path()) == bytes);
    assert_eq!(facts.warnings[0], "1 more disk was left out: an image is one disk");
    std::fs::write(dir.path().join("vm.mf"), format!("SHA256(vm-disk1.vmdk)= {}\n", "0".repeat(64))).expect("written");
    run("tar", &pack, dir.path());
    let damaged = import(dir.path(), "vm.ova", None).await.expect_err("another sum");
    assert!(damaged.message.contains("its manifest says 000"), "{damaged}");

    std::fs::create_dir(dir.path().join("cd")).expect("a folder");
    run("genisoimage", &["-quiet", "-o", "cd.iso", "cd"], dir.path());
    let (image, facts) = import(dir.path(), "cd.iso", None).await.expect("imported");
    assert_eq!((facts.kind, image.extension().and_then(|e| e.to_str())), (ImageKind::Iso, Some("iso")));
}

/// A disk with an ext4 file system that holds `files`, behind a partition table in sfdisk's words.
fn linux_disk(dir: &Path, table: &str, files: &[(&str, &str)], options: &[&str]) {
    let tree = dir.join("tree");
    for (path, text) in files {
        let path = tree.join(path);
        std::fs::create_dir_all(path.parent().expect("below the tree")).expect("a folder");
        std::fs::write(path, text).expect("written");
    }
    // More names than one block holds.
    for n in 0..200 {
        std::fs::write(tree.join(format!("usr/lib/a-library-with-a-long-name-{n}")), "").expect("written");
    }
    std::fs::create_dir_all(tree.join("etc")).expect("a folder");
    std::os::unix::fs::symlink("../usr/lib/os-release", tree.join("etc/os-release")).expect("a link");
    std::os::unix::fs::symlink("/usr/lib", tree.join("lib")).expect("a link");
    run("mke2fs", &[&["-q", "-F"], options, &["-d", "tree", "root.img", "24M"]].concat(), dir);
    std::fs::File::create(dir.join("disk.img")).and_then(|f| f.set_len(32 << 20)).expect("a file");
    let script = format!(
        "printf '{table}' | sfdisk -q --no-reread --no-tell-kernel disk.img && dd if=root.img of=disk.img bs=1M seek=4 conv=notrunc status=none"
    );
    run("sh", &["-c", &script], dir);
}

#[tokio::test]
async fn an_import_tells_what_is_inside() {
    let release = "NAME=Debian\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n";
    let full = [
        ("usr/lib/os-release", release),
        ("usr/bin/cloud-init", "#!"),
        ("usr/sbin/qemu-ga", ""),
        ("usr/lib/modules/6.12/kernel/drivers/block/virtio_blk.ko.xz", ""),
    ];
    let gpt = "label: gpt\\nstart=2048, size=2048, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\\nstart=8192, size=49152\\n";
    for (files, options, found) in [(&full[..], &["-t", "ext4"][..], Found::Yes), (&full[..1], &["-t", "ext2", "-b", "1024"], Found::No)] {
        let dir = tempfile::tempdir().expect("a folder");
        linux_disk(dir.path(), gpt, files, options);
        let (_, facts) = import(dir.path(), "disk.img", None).await.expect("imported");
        assert_eq!(facts.os_name.as_deref(), Some("Debian GNU/Linux 13 (trixie)"), "{options:?}");
        assert_eq!((facts.firmware, facts.os), (Firmware::Uefi, OsFamily::Linux));
        assert_eq!((facts.cloud_init, facts.guest_agent), (found, found));
        assert_eq!(facts.virtio, if found == Found::Yes { Found::Yes } else { Found::Unknown });
        assert_eq!(facts.warnings.is_empty(), found == Found::Yes, "{:?}", facts.warnings);
    }
}

#[tokio::test]
async fn windows_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut bytes = disk(dir.path());
    bytes[3..11].copy_from_slice(b"NTFS    ");
    std::fs::write(dir.path().join("disk.raw"), &bytes).expect("written");
    let (_, facts) = import(dir.path(), "disk.raw", None).await.expect("imported");
    assert_eq!(facts.os, OsFamily::Windows);
    assert!(facts.warnings.iter().any(|w| w.contains("os: windows")), "{:?}", facts.warnings);
}

/// Makes a file with `make`, imports it, and compares the refusal.
async fn refused(make: impl FnOnce(&Path), expected: Expect) {
    let dir = tempfile::tempdir().expect("a folder");
    disk(dir.path());
    std::fs::write(dir.path().join("secret"), vec![0x53; 1 << 20]).expect("written");
    make(dir.path());
    let error = import(dir.path(), "bad.img", None).await.expect_err("it is refused");
    expected.assert_eq(&error.message.replace(&dir.path().display().to_string(), "DIR"));
    assert_eq!(files_below(&dir.path().join("pool")), [] as [PathBuf; 0], "nothing of it stays");
}

#[tokio::test]
async fn what_points_elsewhere_is_refused() {
    let qcow2 = |dir: &Path, args: &[&str]| run("qemu-img", &[&["create", "-q", "-f", "qcow2"], args].concat(), dir);
    refused(
        |dir| qcow2(dir, &["-b", "secret", "-F", "raw", "bad.img"]),
        expect!["the image has a backing file ('secret'); it would be read with the daemon's rights"],
    )
    .await;
    refused(
        |dir| qcow2(dir, &["-u", "-b", "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}", "-F", "raw", "bad.img", "1M"]),
        expect![[
            r#"the image has a backing file ('json:{"driver":"file","filename":"/etc/shadow"}'); it would be read with the daemon's rights"#
        ]],
    )
    .await;
    refused(
        |dir| qcow2(dir, &["-o", "data_file=secret,data_file_raw=on", "bad.img", "1M"]),
        expect!["the image has an external data file ('secret'); it would be read with the daemon's rights"],
    )
    .await;
    refused(
        |dir| run("qemu-img", &["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", "bad.img", "1M"], dir),
        expect!["a VMDK descriptor names other files, which would be read with the daemon's rights"],
    )
    .await;
    refused(
        |dir| vmdk_with_extent(dir, "RW 2048 FLAT \"secret\" 0"),
        expect!["the image has an extent in another file ('DIR/secret'); it would be read with the daemon's rights"],
    )
    .await;
}

/// In a sparse extent's header (VMware Virtual Disk Format 1.1), in sectors.
const VMDK_CAPACITY: std::ops::Range<usize> = 12..20;

/// A sparse VMDK of capacity 0: QEMU then reads the extents that its own descriptor names.
fn vmdk_with_extent(dir: &Path, extent: &str) {
    run("qemu-img", &["create", "-q", "-f", "vmdk", "bad.img", "1M"], dir);
    let mut bytes = std::fs::read(dir.join("bad.img")).expect("a vmdk");
    replace_line(&mut bytes, b"createType=", "createType=\"monolithicFlat\"");
    replace_line(&mut bytes, b"RW 2", extent);
    bytes[VMDK_CAPACITY].fill(0);
    std::fs::write(dir.join("bad.img"), bytes).expect("written");
}

/// In place: a shorter line is padded.
fn replace_line(bytes: &mut [u8], begin: &[u8], line: &str) {
    let at = bytes.windows(begin.len()).position(|w| w == begin).expect("the line");
    let length = bytes[at..].iter().position(|b| *b == b'\n').expect("its end");
    assert!(line.len() <= length, "room for {line}");
    bytes[at..at + length].copy_from_slice(format!("{line:<length$}").as_bytes());
}

/// `raw`, `qcow2`, and the image that the disk was cloned from.
async fn from_volume(dir: &Path, format: &str, image: Option<&Path>) -> Result<(PathBuf, ImageFacts), Error> {
    let pool = pool_in(&dir.join("pool"));
    let facts = image::from_volume(&*pool, ID, VolumeSource { path: &dir.join("volume"), format, image }, &silent).await?;
    Ok((pool.image_path(ID), facts))
}

#[tokio::test]
async fn a_guest_cannot_make_an_image_of_its_disk_read_the_host() {
    let dir = tempfile::tempdir().expect("a folder");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, vec![0x53; 1 << 20]).expect("written");
    let forged = ["create", "-q", "-f", "qcow2", "-b", "secret", "-F", "raw", "volume"];
    run("qemu-img", &forged, dir.path());
    // A guest with a raw disk wrote that header.
    let (image, facts) = from_volume(dir.path(), "raw", None).await.expect("its bytes are only bytes");
    assert_eq!(content(&image, dir.path())[..4], *b"QFI\xfb");
    assert!(facts.virtual_size.bytes() < 1 << 20, "the disk, not the secret: {facts:?}");
    std::fs::remove_file(&image).expect("removed");
    for image in [None, Some(dir.path().join("base"))] {
        let error = from_volume(dir.path(), "qcow2", image.as_deref()).await.expect_err("it points elsewhere");
        assert!(error.message.starts_with("the image has a backing file ('secret')"), "{error}");
    }
    assert_eq!(files_below(&dir.path().join("pool")), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn a_clone_of_an_image_becomes_a_whole_image() {
    let dir = tempfile::tempdir().expect("a folder");
    let bytes = disk(dir.path());
    let base = dir.path().join("base.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "base.qcow2"], dir.path());
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base.display().to_string(), "-F", "qcow2", "volume"], dir.path());
    let (image, _) = from_volume(dir.path(), "qcow2", Some(&base)).await.expect("taken");
    std::fs::remove_file(base).expect("removed");
    assert!(content(&image, dir.path()) == bytes);
}

#[tokio::test]
async fn what_is_damaged_compressed_or_absurd_is_refused() {
    refused(|dir| std::fs::write(dir.join("bad.img"), b"").expect("written"), expect!["DIR/bad.img is empty"]).await;
    refused(|dir| std::fs::write(dir.join("bad.img"), b"\x1f\x8b\x08").expect("written"), expect!["the file is compressed"]).await;
    refused(
        |dir| run("qemu-img", &["create", "-q", "-f", "qcow2", "bad.img", "20T"], dir),
        expect!["the image claims 20T; the limit is 16T"],
    )
    .await;
    let cut = |dir: &Path| {
        run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "bad.img"], dir);
        std::fs::File::options().write(true).open(dir.join("bad.img")).and_then(|f| f.set_len(400_000)).expect("cut");
    };
    refused(cut, expect!["the image is damaged: ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset 0x70000 size 0x10000"]).await;
}

#[tokio::test]
async fn a_checksum_is_held_against_the_file() {
    let dir = tempfile::tempdir().expect("a folder");
    disk(dir.path());
    let wrong = import(dir.path(), "disk.raw", Some(&"0".repeat(64))).await.expect_err("another checksum");
    assert!(wrong.message.starts_with("the checksum is "), "{wrong}");
    let right = wrong.message.split_whitespace().nth(3).expect("the checksum").trim_end_matches(',').to_uppercase();
    let (_, facts) = import(dir.path(), "disk.raw", Some(&right)).await.expect("imported");
    assert_eq!(facts.sha256, Some(right.to_lowercase()));
}

async fn fetch(pool: &dyn Pool, url: &str, reach: Reach) -> Result<ImageFacts, Error> {
    image::fetch(pool, ID, Remote { url, sha256: None, reach }, &silent).await
}

#[tokio::test]
async fn a_url_leads_to_other_hosts_only() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(disk(dir.path()), Vec::new(), First::Breaks);
    let pool = pool_in(&dir.path().join("pool"));
    let by_name = server.url.replace("127.0.0.1", "localhost");
    for url in [&server.url, &by_name] {
        let refused = fetch(&*pool, url, Reach::Others).await.expect_err(url);
        assert_eq!(refused.code, Code::Refused, "{refused}");
        assert!(refused.message.contains("leads to") && refused.hint.is_some(), "{refused}");
    }
    assert!(server.ranges.lock().expect("ranges").is_empty(), "nobody asked the server");
    fetch(&*pool, &by_name, Reach::Everywhere).await.expect("the configuration allows it");
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_stopped() {
    for (first, resumed) in [(First::Breaks, true), (First::BreaksAndChanges, false)] {
        let dir = tempfile::tempdir().expect("a folder");
        let before = disk(dir.path());
        let after: Vec<u8> = before.iter().map(|b| b.wrapping_add(1)).collect();
        let server = serve(before.clone(), after.clone(), first);
        let pool = pool_in(&dir.path().join("pool"));
        fetch(&*pool, &server.url, Reach::Everywhere).await.expect("fetched");
        let ranges = server.ranges.lock().expect("ranges").clone();
        assert_eq!((ranges.len(), ranges[0].as_str()), (2, ""), "{ranges:?}");
        assert!(ranges[1].starts_with("bytes=") && ranges[1] != "bytes=0-", "the second request asks for the rest: {ranges:?}");
        assert!(content(&pool.image_path(ID), dir.path()) == if resumed { before } else { after }, "{first:?}");
        assert_eq!(files_below(&pool.staging()), [] as [PathBuf; 0]);
    }
}

#[tokio::test]
async fn a_url_that_is_none_or_answers_no_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let pool = pool_in(dir.path());
    let closed = fetch(&*pool, "http://127.0.0.1:1/x", Reach::Everywhere).await.expect_err("nobody listens");
    assert_eq!(closed.code, Code::Unavailable);
    assert!(closed.message.contains("refused"), "{closed}");
}
