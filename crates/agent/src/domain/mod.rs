//! Domain XML: built from orders, read back from libvirt, compared.
//!
//! ```text
//!  Order + HostProfile ──build──► XML ──define──► libvirt ──dumpxml──► choices_from (frozen hardware)
//!                                                     └───────────────► compare (drift, conflicts), live_plan
//! ```
//! All of it is pure functions over text. Devices carry user aliases (`ua-disk-root`), so that they are found again whatever
//! libvirt reorders. XML that does not parse, or is too large or too deep, is an error, never a panic.

mod adopt;
mod build;
mod compare;
mod diff;
mod field;
mod guest_cpus;
mod live;
mod metadata;
mod patch;
mod profile;
#[cfg(test)]
mod testkit;
#[cfg(test)]
mod tests;
pub(crate) mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::observed::FieldChange;
use vmkeep_types::order::Order;

use crate::hypervisor::LiveChange;
use crate::net::NetAttach;

pub use adopt::{adopt, seed_of};
pub use build::build;
pub use compare::{choices_from, compare, disk_files, disk_target, is_choice, machine_of};
pub use guest_cpus::GuestCpus;
pub use live::{live_plan, password_change};
pub use metadata::{Meta, marks, metadata, parse_metadata};
pub use profile::{HostFacts, HostProfile, Loader, deprecated_machines};

/// What a disk opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSource {
    pub path: PathBuf,
    /// `qcow2` or `raw`.
    pub format: String,
    /// Its file system takes O_DIRECT.
    pub o_direct: bool,
}

/// Everything a description is made from.
#[derive(Clone, Copy)]
pub struct BuildInput<'a> {
    pub order: &'a Order,
    /// Name of the domain: the wish's, or the one that it still has in libvirt.
    pub name: &'a str,
    pub host: &'a HostProfile,
    pub disks: &'a BTreeMap<Name, DiskSource>,
    pub cdroms: &'a BTreeMap<Name, Option<PathBuf>>,
    pub seed: Option<&'a Path>,
    pub nics: &'a BTreeMap<Name, NetAttach>,
    /// Folder of serial logs.
    pub run_dir: &'a Path,
}

pub struct Built {
    pub xml: String,
    pub warnings: Vec<String>,
}

/// How a description differs from the wish.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    pub drift: Vec<FieldChange>,
    /// Disk sources and chains, NVRAM, TPM: never mended.
    pub conflicts: Vec<FieldChange>,
}

/// What a running domain can take, and what waits for a cold start.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LivePlan {
    pub changes: Vec<(FieldChange, LiveChange)>,
    pub pending: Vec<FieldChange>,
}

/// Serial log of a VM.
pub fn serial_log(run_dir: &Path, order: &Order) -> PathBuf {
    run_dir.join(format!("{}.log", order.vm))
}

/// Where a VM's UEFI variables lie, unless it was adopted with a place of its own.
pub fn nvram_path(vm: vmkeep_types::ids::VmId) -> String {
    format!("/var/lib/libvirt/qemu/nvram/{vm}_VARS.fd")
}

/// Where libvirt has swtpm keep what a VM's TPM 2.0 knows.
pub fn tpm_path(vm: vmkeep_types::ids::VmId) -> String {
    format!("/var/lib/libvirt/swtpm/{vm}/tpm2/tpm2-00.permall")
}

/// Whether a domain's TPM, if it has one, is a TPM 2.0 that keeps its state at [`tpm_path`], unencrypted.
pub fn tpm_is_plain(xml: &str) -> bool {
    let Ok(domain) = tree::parse(xml) else { return false };
    let Some(backend) = domain.at("devices/tpm/backend") else { return true };
    backend.get("version") == Some("2.0") && ["encryption", "source"].iter().all(|child| backend.find(child).is_none())
}

/// The UEFI variables of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variables {
    pub path: PathBuf,
    /// What libvirt makes them from when they are not there.
    pub template: Option<PathBuf>,
}

/// Those that a description names; None: it has no UEFI.
pub fn variables(xml: &str) -> Option<Variables> {
    let domain = tree::parse(xml).ok()?;
    let path = domain.text_at("os/nvram").filter(|path| path.starts_with('/')).map(PathBuf::from)?;
    Some(Variables { path, template: domain.attr_at("os/nvram", "template").map(PathBuf::from) })
}

/// libvirt's XML did not make sense. `what` may quote it, and others may have edited it.
fn odd(what: impl std::fmt::Display) -> Error {
    let what: String = what.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Error::refused(format!("the domain XML does not make sense: {what}"))
}
