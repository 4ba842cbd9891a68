//! What this host's QEMU can do: libvirt's domain capabilities, the firmware descriptors and a few kernel facts.
//!
//! [`HostProfile::from_capabilities`] is a function of texts; [`HostProfile::gather`] reads them from the host. A feature
//! that is missing is no error here: [`super::build`] refuses the VM that needs it, in words.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::host::KvmState;

use super::guest_cpus::GuestCpus;
use super::tree::{self, Element, el};
use crate::hypervisor::Hypervisor;

/// Folders of firmware descriptors; a file in a later one hides its namesake in an earlier one.
const DESCRIPTOR_DIRS: [&str; 2] = ["/usr/share/qemu/firmware", "/etc/qemu/firmware"];
/// A descriptor is some 1 KiB; a host has a dozen.
const DESCRIPTORS_MAX: usize = 200;

/// A UEFI build: code and the template of its variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loader {
    pub code: String,
    pub template: String,
    /// `raw` or `qcow2`, of both.
    pub format: String,
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
    /// The host's CPU written out as model and features, so that it means the same on the next QEMU.
    pub(super) host_cpu: Option<Element>,
    /// The newest versions that `q35` and `pc` stand for here.
    pub(super) newest_machines: Vec<String>,
    /// Versions that QEMU says it will not have for ever.
    pub deprecated_machines: BTreeSet<String>,
    /// All that its QEMU has; empty where libvirt does not tell.
    pub machines: BTreeSet<String>,
    /// Named CPU models that QEMU knows here.
    pub cpu_models: BTreeSet<String>,
    /// Those of them that libvirt says this host can run.
    pub usable_cpus: BTreeSet<String>,
    /// What else guests can have with KVM.
    pub guest_cpus: GuestCpus,
    pub disk_buses: BTreeSet<String>,
    pub video_models: BTreeSet<String>,
    /// Hyper-V enlightenments.
    pub hyperv: BTreeSet<String>,
    pub io_uring: bool,
    pub swtpm: bool,
    pub virtiofs: bool,
    pub vhost_net: bool,
}

/// What a profile is made from besides the capabilities.
#[derive(Clone, Debug)]
pub struct HostFacts {
    pub kvm: KvmState,
    /// Texts of the firmware descriptors, first choice first.
    pub descriptors: Vec<String>,
    /// Firmware files that descriptors or capabilities name, and that are there.
    pub exists: fn(&str) -> bool,
    pub io_uring: bool,
    pub vhost_net: bool,
}

impl HostFacts {
    /// Reads them from this host.
    pub fn read(kvm: &KvmState) -> Self {
        Self {
            kvm: kvm.clone(),
            descriptors: descriptors(&DESCRIPTOR_DIRS.map(Path::new)),
            exists: |path| Path::new(path).exists(),
            io_uring: io_uring_allowed(),
            vhost_net: Path::new("/dev/vhost-net").exists(),
        }
    }
}

/// By file name, whatever the folder: that is their order of preference (QEMU's firmware.json).
fn descriptors(dirs: &[&Path]) -> Vec<String> {
    let mut by_name = std::collections::BTreeMap::new();
    for dir in dirs {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten().take(DESCRIPTORS_MAX) {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "json") {
                by_name.insert(entry.file_name(), std::fs::read_to_string(path).unwrap_or_default());
            }
        }
    }
    by_name.into_values().collect()
}

/// libvirt does not tell. A sysctl or a container's seccomp filter may forbid it, and QEMU would not start.
fn io_uring_allowed() -> bool {
    if std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|v| v.trim() != "0") {
        return false;
    }
    // SAFETY: one entry and no parameters: the kernel answers EFAULT before it makes anything, ENOSYS or EPERM where it is forbidden.
    let answer = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null_mut::<libc::c_void>()) };
    answer == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

impl HostProfile {
    /// Asks libvirt and the host.
    ///
    /// # Errors
    /// libvirt does not answer, or its answer does not make sense.
    pub async fn gather(hv: &dyn Hypervisor, kvm: &KvmState) -> Result<Self, Error> {
        let unavailable = |e| Error::new(Code::Unavailable, format!("libvirt does not tell what QEMU can do: {e}"));
        let capabilities = hv.domain_capabilities(domain_type(kvm), "q35").await.map_err(unavailable)?;
        let mut profile = Self::from_capabilities(&capabilities, &HostFacts::read(kvm))?;
        if profile.has_kvm() {
            profile.guest_cpus = GuestCpus::learn(hv, &capabilities).await?;
        }
        // A QEMU without the old chipset is one for which there is nothing to upgrade.
        if let Ok(capabilities) = hv.domain_capabilities(domain_type(kvm), "pc").await {
            profile.newest_machines.extend(tree::parse(&capabilities)?.text_at("machine").map(str::to_owned));
        }
        // Which machines are deprecated is good to know, and nothing hangs on it.
        if let Ok(capabilities) = hv.capabilities().await {
            profile.deprecated_machines = deprecated_machines(&capabilities)?;
            profile.machines = machines(&capabilities, |_| true)?;
        }
        Ok(profile)
    }

    /// # Errors
    /// The capabilities do not parse or name no emulator.
    pub fn from_capabilities(xml: &str, facts: &HostFacts) -> Result<Self, Error> {
        let tree = tree::parse(xml)?;
        let emulator = tree.text_at("path").ok_or_else(|| super::odd("the capabilities name no emulator"))?.to_owned();
        let firmware = Firmware::all(&facts.descriptors, facts.exists);
        let named = || Firmware::from_loaders(&tree, facts.exists);
        Ok(Self {
            kvm: facts.kvm.clone(),
            emulator,
            domain_type: domain_type(&facts.kvm),
            uefi: Firmware::plain(&firmware).or_else(|| Firmware::plain(&named())),
            secure_boot: Firmware::secure(&firmware).or_else(|| Firmware::secure(&named())),
            host_cpu: host_cpu(&tree),
            newest_machines: tree.text_at("machine").map(str::to_owned).into_iter().collect(),
            deprecated_machines: BTreeSet::new(),
            machines: BTreeSet::new(),
            cpu_models: cpu_models(&tree, |_| true),
            guest_cpus: GuestCpus::default(),
            usable_cpus: cpu_models(&tree, |model| model.get("usable") == Some("yes")),
            disk_buses: values(&tree, "devices/disk", "bus"),
            video_models: values(&tree, "devices/video", "modelType"),
            hyperv: values(&tree, "features/hyperv", "features"),
            io_uring: facts.io_uring,
            swtpm: values(&tree, "devices/tpm", "backendModel").contains("emulator"),
            virtiofs: values(&tree, "devices/filesystem", "driverType").contains("virtiofs"),
            vhost_net: facts.vhost_net,
        })
    }

    /// Features that the host's CPU has beyond its model.
    pub fn host_features(&self) -> BTreeSet<String> {
        let features = self.host_cpu.iter().flat_map(|cpu| cpu.all("feature")).filter(|f| f.get("policy") == Some("require"));
        features.filter_map(|f| f.get("name").map(str::to_owned)).collect()
    }

    pub(super) fn has_kvm(&self) -> bool {
        self.domain_type == "kvm"
    }
}

/// Of x86_64, from libvirt's capabilities of the host.
///
/// # Errors
/// They do not parse.
pub fn deprecated_machines(capabilities: &str) -> Result<BTreeSet<String>, Error> {
    machines(capabilities, |machine| machine.get("deprecated") == Some("yes"))
}

fn machines(capabilities: &str, wanted: fn(&Element) -> bool) -> Result<BTreeSet<String>, Error> {
    let tree = tree::parse(capabilities)?;
    let of_pcs = tree.all("guest").flat_map(|guest| guest.all("arch")).filter(|arch| arch.get("name") == Some("x86_64"));
    let machines = of_pcs.flat_map(|arch| arch.all("machine")).filter(|machine| wanted(machine));
    Ok(machines.map(|machine| machine.text.clone()).collect())
}

fn domain_type(kvm: &KvmState) -> &'static str {
    match kvm {
        KvmState::Usable => "kvm",
        KvmState::Unusable { why: _ } => "qemu",
    }
}

/// `<enum name='bus'><value>virtio</value>…`; empty where libvirt is too old to tell.
fn values(tree: &Element, path: &str, list: &str) -> BTreeSet<String> {
    let lists = tree.at(path).into_iter().flat_map(|e| e.all("enum")).filter(|e| e.get("name") == Some(list));
    lists.flat_map(|e| e.all("value")).map(|v| v.text.clone()).collect()
}

/// libvirt's own expansion of `host-model`.
pub(super) fn host_cpu(tree: &Element) -> Option<Element> {
    let mode = tree.find("cpu")?.all("mode").find(|m| m.get("name") == Some("host-model") && m.get("supported") == Some("yes"))?;
    mode.find("model")?;
    let mut cpu = el("cpu").attr("mode", "custom").attr("match", "exact").attr("check", "partial");
    for part in &mode.children {
        match part.name.as_str() {
            "model" => cpu = cpu.child(el("model").attr("fallback", "forbid").text(&part.text)),
            "vendor" | "feature" => cpu = cpu.child(part.clone()),
            _ => {}
        }
    }
    Some(cpu)
}

fn cpu_models(tree: &Element, wanted: fn(&Element) -> bool) -> BTreeSet<String> {
    let modes = tree.find("cpu").into_iter().flat_map(|c| c.all("mode")).filter(|m| m.get("name") == Some("custom"));
    modes.flat_map(|m| m.all("model")).filter(|m| wanted(m)).map(|m| m.text.clone()).collect()
}

/// One firmware build as a descriptor tells it.
struct Firmware {
    loader: Loader,
    features: Vec<String>,
}

impl Firmware {
    /// UEFI in flash for x86_64 whose files are there, in the order of the descriptors.
    fn all(descriptors: &[String], exists: fn(&str) -> bool) -> Vec<Self> {
        let parsed = descriptors.iter().filter_map(|text| serde_json::from_str::<Descriptor>(text).ok());
        parsed.filter_map(Descriptor::firmware).filter(|f| exists(&f.loader.code) && exists(&f.loader.template)).collect()
    }

    /// Debian's file names, for a host without descriptors.
    fn from_loaders(capabilities: &Element, exists: fn(&str) -> bool) -> Vec<Self> {
        let loaders = capabilities.at("os/loader").into_iter().flat_map(|l| l.all("value")).map(|v| v.text.clone());
        let firmware = loaders.map(|code| {
            let secure = code.contains(".ms.");
            let template = code.replace("OVMF_CODE", "OVMF_VARS").replace(".secboot.", ".");
            let features = if code.contains(".ms.") || code.contains(".secboot.") { vec!["secure-boot"] } else { vec![] };
            let features = features.into_iter().chain(secure.then_some("enrolled-keys")).map(str::to_owned).collect();
            Self { loader: Loader { code, template, format: "raw".into() }, features }
        });
        firmware.filter(|f| f.loader.code != f.loader.template && exists(&f.loader.code) && exists(&f.loader.template)).collect()
    }

    fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|f| f == feature)
    }

    fn plain(all: &[Self]) -> Option<Loader> {
        all.iter().find(|f| !f.has("secure-boot") && !f.has("requires-smm")).map(|f| f.loader.clone())
    }

    fn secure(all: &[Self]) -> Option<Loader> {
        all.iter().find(|f| f.has("secure-boot") && f.has("enrolled-keys")).map(|f| f.loader.clone())
    }
}

/// QEMU's docs/interop/firmware.json, as far as we need it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Descriptor {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    features: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    mode: Option<String>,
    executable: Option<FlashFile>,
    nvram_template: Option<FlashFile>,
}

#[derive(Deserialize)]
struct FlashFile {
    filename: String,
    format: String,
}

#[derive(Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

impl Descriptor {
    fn firmware(self) -> Option<Firmware> {
        let q35 = |t: &Target| t.architecture == "x86_64" && t.machines.iter().any(|m| m.starts_with("pc-q35"));
        let uefi = self.interface_types.iter().any(|t| t == "uefi");
        let split = self.mapping.device == "flash" && self.mapping.mode.as_deref().is_none_or(|m| m == "split");
        if !uefi || !split || !self.targets.iter().any(q35) {
            return None;
        }
        let (code, template) = (self.mapping.executable?, self.mapping.nvram_template?);
        let known = code.format == template.format && matches!(code.format.as_str(), "raw" | "qcow2");
        let loader = Loader { code: code.filename, template: template.filename, format: code.format };
        known.then_some(Firmware { loader, features: self.features })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    const KVM: &str = include_str!("testdata/domcaps-kvm.xml");
    const TCG: &str = include_str!("testdata/domcaps-tcg.xml");

    fn descriptor(name: &str, features: &str) -> String {
        format!(
            r#"{{"description": "x", "interface-types": ["uefi"], "tags": [],
                "mapping": {{"device": "flash", "executable": {{"filename": "/fw/{name}_CODE.fd", "format": "raw"}},
                             "nvram-template": {{"filename": "/fw/{name}_VARS.fd", "format": "raw"}}}},
                "targets": [{{"architecture": "x86_64", "machines": ["pc-q35-*"]}}], "features": [{features}]}}"#
        )
    }

    fn facts(kvm: KvmState, descriptors: Vec<String>) -> HostFacts {
        HostFacts { kvm, descriptors, exists: |path| !path.contains("gone"), io_uring: true, vhost_net: true }
    }

    fn check(capabilities: &str, facts: &HostFacts, expected: Expect) {
        let told = HostProfile::from_capabilities(capabilities, facts).map_or_else(
            |e| e.message,
            |p| {
                let fw = |l: &Option<Loader>| l.as_ref().map_or("none".into(), |l| format!("{} + {}", l.code, l.template));
                let cpu = p.host_cpu.as_ref().and_then(|c| c.text_at("model")).unwrap_or("none");
                let list = |s: &BTreeSet<String>| s.iter().cloned().collect::<Vec<_>>().join(" ");
                format!(
                    "{} {}\nuefi {}\nsecure {}\ncpu {cpu} of {}\nbuses {}\nvideo {}\nhyperv {}\ntpm {} virtiofs {}",
                    p.domain_type,
                    p.emulator,
                    fw(&p.uefi),
                    fw(&p.secure_boot),
                    p.cpu_models.len(),
                    list(&p.disk_buses),
                    list(&p.video_models),
                    list(&p.hyperv),
                    p.swtpm,
                    p.virtiofs
                )
            },
        );
        expected.assert_eq(&told);
    }

    #[test]
    fn what_real_capabilities_tell() {
        let all = vec![
            "not json".into(),
            descriptor("gone", r#""secure-boot", "enrolled-keys""#),
            descriptor("ms", r#""secure-boot", "enrolled-keys", "requires-smm""#),
            descriptor("empty", r#""secure-boot", "requires-smm""#),
            descriptor("plain", r#""acpi-s3""#),
        ];
        check(
            KVM,
            &facts(KvmState::Usable, all),
            expect![[r#"
            kvm /usr/bin/qemu-system-x86_64
            uefi /fw/plain_CODE.fd + /fw/plain_VARS.fd
            secure /fw/ms_CODE.fd + /fw/ms_VARS.fd
            cpu EPYC-Milan of 59
            buses fdc sata scsi usb virtio
            video bochs cirrus none ramfb vga virtio vmvga
            hyperv frequencies ipi reenlightenment relaxed reset runtime spinlocks stimer synic tlbflush vapic vendor_id vpindex
            tpm true virtiofs true"#]],
        );
        check(
            TCG,
            &facts(KvmState::Unusable { why: "no vmx".into() }, Vec::new()),
            expect![[r#"
            qemu /usr/bin/qemu-system-x86_64
            uefi /usr/share/OVMF/OVMF_CODE_4M.fd + /usr/share/OVMF/OVMF_VARS_4M.fd
            secure /usr/share/OVMF/OVMF_CODE_4M.ms.fd + /usr/share/OVMF/OVMF_VARS_4M.ms.fd
            cpu EPYC of 59
            buses fdc sata scsi usb virtio
            video bochs cirrus none ramfb vga virtio vmvga
            hyperv spinlocks vendor_id
            tpm true virtiofs true"#]],
        );
    }

    #[test]
    fn capabilities_that_are_none_are_an_error() {
        let facts = facts(KvmState::Usable, Vec::new());
        check("<domainCapabilities/>", &facts, expect!["the domain XML does not make sense: the capabilities name no emulator"]);
        check("<path>", &facts, expect!["the domain XML does not make sense: it ends in the middle"]);
        check(
            "<domainCapabilities><path>/q</path></domainCapabilities>",
            &facts,
            expect![[r#"
            kvm /q
            uefi none
            secure none
            cpu none of 0
            buses 
            video 
            hyperv 
            tpm false virtiofs false"#]],
        );
    }

    #[test]
    fn a_descriptor_in_etc_hides_its_namesake() {
        let dir = tempfile::tempdir().expect("a folder");
        for (file, text) in [("a/50.json", "old"), ("a/60.json", "b"), ("b/50.json", "new"), ("b/README", "no")] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        }
        assert_eq!(descriptors(&[&dir.path().join("a"), &dir.path().join("b"), &dir.path().join("c")]), ["new", "b"]);
    }
}
