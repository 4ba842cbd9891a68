//! UEFI variables of a VM whose disks are kept: boot entries that an installer wrote, and keys. They are kept beside the disk that the VM
//! boots from, and go to the next VM that boots it.
//!
//! ```text
//!  delete --keep-disks:       the VM's variables ──copy──► POOL/VOLUME.nvram      (then the domain and its own file go)
//!  a VM with that disk, new:  POOL/VOLUME.nvram ──move──► the VM's variables      (before libvirt would make them from a template)
//!  the volume is deleted:     POOL/VOLUME.nvram goes
//! ```
//! Each file appears whole under its name, so that a crash leaves the step to be done again. Variables that do not fit the new VM's firmware
//! stay where they are. A TPM's state stays with libvirt, under the uuid of the VM that is gone: what it holds is sealed to that machine.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vmkeep_types::error::Error;
use vmkeep_types::order::Order;
use vmkeep_types::pool::VolumeRecord;

use super::apply::pool_of;
use super::node::Node;
use super::report::State;
use crate::domain::{self, Variables};
use crate::hypervisor::{HvError, XmlKind};

/// Variables take half a MiB; what is larger is something else.
const BYTES_MAX: u64 = 16 << 20;
/// How a qcow2 file begins.
const QCOW2: &[u8] = b"QFI\xfb";

/// Puts the variables of a domain that is off beside its disk. Done again without harm, also when the domain is gone.
///
/// # Errors
/// They cannot be copied: the domain must stay then.
pub async fn keep(node: &Node, state: &mut State) -> Result<(), Error> {
    let Some((volume, beside)) = beside(node, &state.order)? else { return Ok(()) };
    let volume = volume.name.clone();
    let xml = match node.hv.xml(state.order.vm, XmlKind::Inactive).await {
        Ok(xml) => xml,
        Err(HvError::NoDomain(_)) => return Ok(()),
        Err(error) => return Err(Error::refused(format!("cannot read the domain's description: {error}"))),
    };
    let Some(variables) = domain::variables(&xml) else { return Ok(()) };
    if blocking(move || copy(&variables.path, &beside)).await? == Copied::Yes {
        state.step(format!("UEFI variables kept with volume {volume}"));
    }
    Ok(())
}

/// The file that libvirt had for them, once the domain is undefined. An adopted domain's own place is left alone.
pub fn forget(node: &Node, order: &Order) {
    let kept = matches!(beside(node, order), Ok(Some((_, beside))) if beside.exists());
    let path = domain::nvram_path(order.vm);
    if kept
        && let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path, %error, "UEFI variables of a deleted VM stay behind");
    }
}

/// Variables that were kept with the disk that this VM boots are its own, where it has none yet. `xml` is the description to come.
///
/// # Errors
/// They cannot be moved: without them libvirt would make new ones.
pub async fn take(node: &Node, state: &mut State, xml: &str) -> Result<(), Error> {
    let (Some((volume, beside)), Some(variables)) = (beside(node, &state.order)?, domain::variables(xml)) else { return Ok(()) };
    let name = volume.name.clone();
    if blocking(move || take_over(&beside, &variables)).await? == Copied::Yes {
        state.step(format!("UEFI variables as they were kept with volume {name}"));
    }
    Ok(())
}

/// The disk that the VM boots from, if it is vmkeep's own, and the file beside it.
fn beside<'a>(node: &Node, order: &'a Order) -> Result<Option<(&'a VolumeRecord, PathBuf)>, Error> {
    let named = order.spec.boot.iter().find_map(|name| order.volumes.get(name));
    let disk = named.or_else(|| order.spec.disks.iter().find_map(|disk| order.volumes.get(&disk.name)));
    let Some(volume) = disk.filter(|volume| volume.foreign_path.is_none()) else { return Ok(None) };
    let pool = node.pool(pool_of(order, &volume.pool)?)?;
    Ok(Some((volume, pool.variables_path(volume.id))))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    Yes,
    /// There are none, or they do not fit.
    No,
}

async fn blocking(work: impl FnOnce() -> std::io::Result<Copied> + Send + 'static) -> Result<Copied, Error> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal(format!("copying UEFI variables stopped: {e}")))?;
    done.map_err(|e| Error::refused(format!("cannot copy UEFI variables: {e}")))
}

fn read(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() <= BYTES_MAX => std::fs::read(path).map(Some),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<Copied> {
    match read(from)? {
        Some(bytes) => write(to, &bytes).map(|()| Copied::Yes),
        None => Ok(Copied::No),
    }
}

fn take_over(kept: &Path, variables: &Variables) -> std::io::Result<Copied> {
    if variables.path.exists() {
        return Ok(Copied::No);
    }
    let Some(bytes) = read(kept)? else { return Ok(Copied::No) };
    let template = variables.template.as_deref().map(read).transpose()?.flatten();
    if !template.is_none_or(|template| fits(&bytes, &template)) {
        return Ok(Copied::No);
    }
    write(&variables.path, &bytes)?;
    std::fs::remove_file(kept)?;
    Ok(Copied::Yes)
}

/// The same kind of file; of flash as it is, also the same size: the firmware finds its variables by that.
fn fits(kept: &[u8], template: &[u8]) -> bool {
    match (kept.starts_with(QCOW2), template.starts_with(QCOW2)) {
        (true, true) => true,
        (false, false) => kept.len() == template.len(),
        _ => false,
    }
}

/// Whole under its name, or not there.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = std::fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bed(tempfile::TempDir);

    impl Bed {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a folder"))
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn put(&self, name: &str, bytes: &[u8]) {
            std::fs::write(self.at(name), bytes).expect("written");
        }

        /// A new VM with this template takes what was kept.
        fn takes(&self) -> Copied {
            let variables = Variables { path: self.at("vm"), template: Some(self.at("template")) };
            take_over(&self.at("kept"), &variables).expect("it can")
        }
    }

    #[test]
    fn they_go_to_the_disk_and_on_to_the_next_vm() {
        let bed = Bed::new();
        bed.put("template", b"....");
        assert_eq!(copy(&bed.at("old"), &bed.at("kept")).expect("it can"), Copied::No, "never started");
        bed.put("old", b"vars");
        for _ in 0..2 {
            assert_eq!(copy(&bed.at("old"), &bed.at("kept")).expect("it can"), Copied::Yes);
        }
        assert_eq!(bed.takes(), Copied::Yes);
        assert_eq!(std::fs::read(bed.at("vm")).expect("taken"), b"vars");
        assert!(!bed.at("kept").exists(), "they are the VM's alone");
        bed.put("kept", b"more");
        assert_eq!(bed.takes(), Copied::No, "it has its own");
        assert_eq!(std::fs::read(bed.at("vm")).expect("there"), b"vars");
    }

    #[test]
    fn what_does_not_fit_the_firmware_stays() {
        for (kept, template) in [(&b"QFI\xfbx"[..], &b"....."[..]), (b"vars", b"larger")] {
            let bed = Bed::new();
            bed.put("kept", kept);
            bed.put("template", template);
            assert_eq!(bed.takes(), Copied::No);
            assert!(bed.at("kept").exists() && !bed.at("vm").exists());
        }
        assert!(fits(b"QFI\xfbshort", b"QFI\xfblonger"));
    }
}
