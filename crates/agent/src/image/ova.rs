//! An OVA is a tar of an OVF description and VMDK disks; the first disk is taken.
//!
//! Its manifest (`.mf`, OVF 1.1 section 5.1) names the sums of its files: a disk that has another one is refused.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use vmkeep_types::error::Error;

use super::bring::hex;
use super::detect::{self, Format};
use crate::pool::room::Room;

/// Members of an archive that are looked at.
const MEMBERS_MAX: usize = 64;
/// A manifest has one line per file.
const MANIFEST_BYTES_MAX: u64 = 64 << 10;
/// Read at once.
const PIECE_BYTES: usize = 1 << 20;

/// What was taken out of an archive.
pub struct OvaDisk {
    pub path: PathBuf,
    pub format: Format,
    pub warnings: Vec<String>,
}

/// Unpacks the first disk into `work` under a name of ours; nothing in the archive chooses a path.
pub fn disk(ova: &Path, work: &Path) -> Result<OvaDisk, Error> {
    let mut archive = tar::Archive::new(File::open(ova).map_err(|e| bad(&e))?);
    let (mut taken, mut left_out, mut sums) = (None, 0, BTreeMap::new());
    for member in archive.entries().map_err(|e| bad(&e))?.take(MEMBERS_MAX) {
        let mut member = member.map_err(|e| bad(&e))?;
        if !member.header().entry_type().is_file() {
            continue;
        }
        let name = member.path().map_err(|e| bad(&e))?.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if name.ends_with(".mf") {
            let mut text = String::new();
            member.take(MANIFEST_BYTES_MAX).read_to_string(&mut text).map_err(|e| bad(&e))?;
            sums = manifest(&text);
        } else if ![".vmdk", ".qcow2", ".vhdx", ".img", ".raw"].iter().any(|suffix| name.ends_with(suffix)) {
            continue;
        } else if taken.is_some() {
            left_out += 1;
        } else {
            let size = member.size();
            taken = Some((copy(&mut member, size, work)?, name));
        }
    }
    let Some(((path, sum), name)) = taken else { return Err(Error::invalid("the OVA holds no disk")) };
    if let Some(wanted) = sums.get(&name).filter(|wanted| **wanted != sum) {
        return Err(Error::invalid(format!("the OVA is damaged: the SHA-256 of '{name}' is {sum}, its manifest says {wanted}"))
            .hint("download or export it again"));
    }
    let format = detect::format(&path)?;
    if format == Format::Ova {
        return Err(Error::invalid("the OVA holds another archive instead of a disk"));
    }
    let more = format!("{left_out} more disk{} left out: an image is one disk", if left_out == 1 { " was" } else { "s were" });
    Ok(OvaDisk { path, format, warnings: if left_out > 0 { vec![more] } else { Vec::new() } })
}

fn bad(error: &std::io::Error) -> Error {
    Error::invalid(format!("the OVA does not unpack: {error}"))
}

fn copy(member: &mut impl Read, size: u64, work: &Path) -> Result<(PathBuf, String), Error> {
    let mut room = Room::around(work);
    room.fits(size)?;
    let path = work.join("ova-disk");
    let full = |e: std::io::Error| Error::refused(format!("cannot write {}: {e}", path.display()));
    let mut file = File::create(&path).map_err(full)?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE_BYTES]);
    loop {
        let count = member.read(&mut piece).map_err(|e| bad(&e))?;
        if count == 0 {
            break;
        }
        room.took(count as u64)?;
        hash.update(&piece[..count]);
        file.write_all(&piece[..count]).map_err(full)?;
    }
    Ok((path, hex(&hash.finalize())))
}

/// `SHA256(disk1.vmdk)= 1f2e…`; older sums are too weak to tell more than damage, and are left to `qemu-img check`.
fn manifest(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let (name, sum) = line.trim().strip_prefix("SHA256")?.trim_start().strip_prefix('(')?.split_once(")=")?;
        Some((name.to_lowercase(), sum.trim().to_lowercase()))
    };
    text.lines().filter_map(line).collect()
}
