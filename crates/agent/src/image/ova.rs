//! An OVA is a tar of an OVF description and VMDK disks; the first disk is taken.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use vmkeep_types::error::Error;

use super::detect::{self, Format};

/// Members of an archive that are looked at.
const MEMBERS_MAX: usize = 64;

/// Unpacks the first disk into `work` under a name of ours; nothing in the archive chooses a path.
pub fn disk(ova: &Path, work: &Path) -> Result<(PathBuf, Format), Error> {
    let bad = |e: std::io::Error| Error::invalid(format!("the OVA does not unpack: {e}"));
    let mut archive = tar::Archive::new(File::open(ova).map_err(bad)?);
    for member in archive.entries().map_err(bad)?.take(MEMBERS_MAX) {
        let mut member = member.map_err(bad)?;
        let name = member.path().map_err(bad)?.to_string_lossy().to_lowercase();
        let is_disk = [".vmdk", ".qcow2", ".vhdx", ".img", ".raw"].iter().any(|suffix| name.ends_with(suffix));
        if !member.header().entry_type().is_file() || !is_disk {
            continue;
        }
        let path = work.join("ova-disk");
        let mut file = File::create(&path).map_err(bad)?;
        std::io::copy(&mut member, &mut file).and_then(|_| file.flush()).map_err(bad)?;
        let format = detect::format(&path)?;
        return if format == Format::Ova {
            Err(Error::invalid("the OVA holds another archive instead of a disk"))
        } else {
            Ok((path, format))
        };
    }
    Err(Error::invalid("the OVA holds no disk"))
}
