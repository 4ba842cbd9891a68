//! What this host's QEMU can do, read once from libvirt's domain capabilities and the firmware on disk.

use std::path::Path;

use vmkeep_types::error::{Code, Error};
use vmkeep_types::host::KvmState;

use super::tree;
use crate::hypervisor::Hypervisor;

/// A UEFI build: code and the template of its variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loader {
    pub code: String,
    pub template: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostProfile {
    pub kvm: KvmState,
    pub emulator: String,
    /// `kvm` or `qemu` (TCG).
    pub domain_type: &'static str,
    pub uefi: Option<Loader>,
    /// With Microsoft's keys enrolled.
    pub secure_boot: Option<Loader>,
    pub io_uring: bool,
    pub swtpm: bool,
    pub vhost_net: bool,
}

/// Debian's ovmf package, newest first.
const UEFI: [(&str, &str); 2] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
];
const SECURE: [(&str, &str); 2] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
    ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
];

impl HostProfile {
    pub async fn gather(hv: &dyn Hypervisor, kvm: &KvmState) -> Result<Self, Error> {
        let domain_type = if *kvm == KvmState::Usable { "kvm" } else { "qemu" };
        let capabilities = hv
            .domain_capabilities(domain_type, "q35")
            .await
            .map_err(|e| Error::new(Code::Unavailable, format!("libvirt does not tell what QEMU can do: {e}")))?;
        let there = |pairs: &[(&str, &str)]| pairs.iter().find(|(code, vars)| Path::new(code).exists() && Path::new(vars).exists()).map(loader);
        Self::from_capabilities(&capabilities, kvm, domain_type, there(&UEFI), there(&SECURE), Path::new("/dev/vhost-net").exists())
    }

    /// # Errors
    /// The capabilities do not parse or name no emulator.
    pub fn from_capabilities(
        xml: &str,
        kvm: &KvmState,
        domain_type: &'static str,
        uefi: Option<Loader>,
        secure_boot: Option<Loader>,
        vhost_net: bool,
    ) -> Result<Self, Error> {
        let tree = tree::parse(xml)?;
        let emulator = tree.text_at("path").ok_or_else(|| super::odd("the capabilities name no emulator"))?.to_owned();
        let values = |path: &str, list: &str| -> Vec<String> {
            let lists = tree.at(path).into_iter().flat_map(|e| e.all("enum")).filter(|e| e.get("name") == Some(list));
            lists.flat_map(|e| e.all("value")).map(|v| v.text.clone()).collect()
        };
        let swtpm = values("devices/tpm", "backendModel").iter().any(|v| v == "emulator");
        // libvirt does not tell; kernels that switch it off do.
        let io_uring = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").map_or(true, |v| v.trim() == "0");
        Ok(Self { kvm: kvm.clone(), emulator, domain_type, uefi, secure_boot, io_uring, swtpm, vhost_net })
    }
}

fn loader((code, template): &(&str, &str)) -> Loader {
    Loader { code: (*code).into(), template: (*template).into() }
}
