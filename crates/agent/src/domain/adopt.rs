//! An existing domain as a wish that describes it.
//!
//! What the manifest can say becomes the wish; where devices sit, MACs, serials, the CPU, the machine version and the NVRAM
//! become choices; all else is kept as it is by `libvirt_xml` patches, so that the guest finds the same hardware when
//! vmkeep writes the description for the first time. Disks are named by their target (`vda`), cdroms too, NICs by their
//! order (`nic0`); devices of a domain that vmkeep wrote keep their names, and its cloud-init seed becomes the wish again that it was made
//! from. XML that is no domain is an error.

mod devices;
mod disks;
mod keep;
mod nics;
mod system;

use std::collections::BTreeMap;
use std::path::PathBuf;

use vmkeep_api::body::{AdoptionProposal, FoundDisk};
use vmkeep_types::error::Error;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::record::VmChoices;
use vmkeep_types::vm::{RunPolicy, VmSpec};

use super::tree::{self, Element};
use crate::seed;

/// Its alias in every domain.
const SEED: &str = "ua-seed";

/// Where the cloud-init seed of a domain that vmkeep wrote lies.
pub fn seed_of(xml: &str) -> Option<PathBuf> {
    let domain = tree::parse(xml).ok()?;
    let seed = domain.devices().find(|device| device.name == "disk" && device.alias() == Some(SEED))?;
    seed.attr_at("source", "file").map(PathBuf::from)
}

/// What a domain is in vmkeep's words, with its cloud-init seed as it was read. Its CPU is the stored one: libvirt writes into a running
/// one what QEMU made of it.
///
/// # Errors
/// The XML does not parse or lacks what every domain has.
pub fn adopt(xml: &str, stored: &str, seed: Option<&[u8]>) -> Result<AdoptionProposal, Error> {
    let mut domain = tree::parse(xml)?;
    if domain.name != "domain" {
        return Err(super::odd(format!("it is a <{}>, not a <domain>", domain.name.chars().take(60).collect::<String>())));
    }
    if let (Some(cpu), true) = (tree::parse(stored)?.find("cpu"), domain.find("cpu").is_some()) {
        *domain.child_mut("cpu") = cpu.clone();
    }
    let uuid: VmId = domain.text_at("uuid").and_then(|u| u.parse().ok()).ok_or_else(|| super::odd("it has no uuid"))?;
    let name = domain.text_at("name").filter(|n| !n.is_empty()).ok_or_else(|| super::odd("it has no name"))?.to_owned();
    let mut taken = Taken::new(own_name(&name, uuid));
    system::take(&domain, &mut taken)?;
    disks::take(&domain, &mut taken);
    nics::take(&domain, &mut taken);
    devices::take(&domain, &mut taken);
    keep::take(&domain, &mut taken);
    system::boot(&domain, &mut taken);
    let instance = take_seed(&domain, &mut taken, uuid, seed);
    let running = domain.get("id").is_some();
    let Taken { mut spec, choices, disks, patches, warnings, .. } = taken;
    spec.libvirt_xml = patches;
    Ok(AdoptionProposal { uuid, name, spec, choices, disks, running, instance, ours: false, warnings })
}

/// The wish that the seed was made from, where it can be told from the seed; else the seed stays by patch. Which instance the guest is.
fn take_seed(domain: &Element, taken: &mut Taken, vm: VmId, seed: Option<&[u8]>) -> u32 {
    let Some(disk) = domain.devices().find(|device| device.name == "disk" && device.alias() == Some(SEED)) else { return 0 };
    let guest = seed::Guest { vm, instance: 0, spec: &taken.spec, macs: &taken.choices.macs };
    let Some((wish, instance)) = seed.and_then(|image| seed::read_back(image, &guest)) else {
        taken.warn("its cloud-init seed is kept as it is by libvirt_xml: take that out when you give cloud_init in the manifest");
        taken.keep(disk);
        return 0;
    };
    taken.spec.cloud_init = Some(wish);
    taken.stays(disk, SEED);
    instance
}

/// libvirt allows more in names than we do.
fn own_name(name: &str, uuid: VmId) -> Name {
    let plain: String = name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    plain.trim_matches('-').parse().unwrap_or_else(|_| format!("vm-{}", &uuid.to_string()[..8]).parse().expect("hex digits make a name"))
}

/// The proposal while it is made.
struct Taken {
    spec: VmSpec,
    choices: VmChoices,
    disks: BTreeMap<Name, FoundDisk>,
    patches: Vec<vmkeep_types::vm::XmlPatch>,
    warnings: Vec<String>,
    /// Places on the buses that devices kept by patches hold.
    reserved: usize,
}

impl Taken {
    fn new(name: Name) -> Self {
        let mut spec = VmSpec::named(name);
        spec.run = RunPolicy::OnFailure;
        spec.cloud_init = None;
        spec.nics.clear();
        Self { spec, choices: VmChoices::default(), disks: BTreeMap::new(), patches: Vec::new(), warnings: Vec::new(), reserved: 0 }
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// The device is the one that vmkeep will call `alias`, and stays where it is.
    fn stays(&mut self, device: &Element, alias: &str) {
        let keeps = |a: &&Element| a.get("type").is_some_and(|t| matches!(t, "pci" | "usb" | "virtio-serial" | "drive"));
        if let Some(address) = device.find("address").filter(keeps) {
            self.choices.addresses.insert(alias, address.write().trim());
        }
    }
}

/// The name vmkeep gave a device when it wrote the domain itself.
fn given_name(device: &Element, prefix: &str) -> Option<Name> {
    device.alias()?.strip_prefix(prefix)?.parse().ok()
}
