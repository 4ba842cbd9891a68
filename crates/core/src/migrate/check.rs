//! What keeps a VM from moving, told before it begins.

use std::collections::BTreeSet;
use std::fmt;

use vmkeep_types::host::{KvmState, NodeFacts};
use vmkeep_types::migration::{LocalState, MoveManner, Travel};
use vmkeep_types::name::Name;
use vmkeep_types::network::{NetworkMode, NetworkSpec};
use vmkeep_types::pool::{PoolDriver, PoolSpec, VolumeRecord};
use vmkeep_types::record::{FirmwareChoice, VmChoices};
use vmkeep_types::vm::VmSpec;

/// A VM with what it stands on.
#[derive(Clone, Debug)]
pub struct Baggage<'a> {
    pub spec: &'a VmSpec,
    pub choices: &'a VmChoices,
    /// Disk, its volume and its pool.
    pub disks: Vec<(&'a Name, &'a VolumeRecord, Option<&'a PoolSpec>)>,
    /// CDs that are in: drive and pool.
    pub cds: Vec<(&'a Name, Option<&'a PoolSpec>)>,
    pub networks: Vec<&'a NetworkSpec>,
}

/// Why it cannot move; each in words of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// A device of the host is plugged through.
    HostDevices,
    /// A folder of the host is shared into the guest.
    Shares,
    /// The guest sees this host's own CPU.
    HostCpu(String),
    /// A CD from a pool that only this host reaches.
    LocalCd(Name),
    /// A file that vmkeep did not make; nobody knows whether other hosts reach it.
    ForeignFile(Name, String),
    /// Its data is on this host alone: who comes after that is lost finds none.
    LocalDisk(Name),
    /// UEFI variables are a file of this host alone.
    LocalNvram,
    /// What its TPM keeps is a file of this host alone.
    LocalTpm,
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostDevices => f.write_str("devices: it has a device of this host"),
            Self::Shares => f.write_str("shares: it shares a folder of this host"),
            Self::HostCpu(model) => {
                write!(f, "cpu.model {model}: the guest sees this host's own CPU; with auto or a named model it can move")
            }
            Self::LocalCd(drive) => write!(f, "cdroms[{drive}]: the CD is in a pool of this host; take it out first"),
            Self::ForeignFile(disk, path) => write!(f, "disks[{disk}]: {path} is a file of this host that vmkeep did not make"),
            Self::LocalDisk(disk) => write!(f, "disks[{disk}]: its data is on this host alone"),
            Self::LocalNvram => f.write_str("its NVRAM is a file of this host alone"),
            Self::LocalTpm => f.write_str("its TPM state is a file of this host alone"),
        }
    }
}

/// Whether every node has the same files there.
pub fn is_shared(pool: &PoolSpec) -> bool {
    match &pool.driver {
        PoolDriver::Dir { shared, .. } => *shared,
    }
}

/// Disks whose data must be copied, because only the source reaches it.
pub fn local_disks(baggage: &Baggage<'_>) -> BTreeSet<Name> {
    let local = |(disk, _, pool): &(&Name, &VolumeRecord, Option<&PoolSpec>)| (!pool.is_some_and(is_shared)).then(|| (*disk).clone());
    baggage.disks.iter().filter_map(local).collect()
}

/// Everything that keeps it from moving so; empty = it can.
pub fn hindrances(baggage: &Baggage<'_>, travel: Travel) -> Vec<Hindrance> {
    let spec = baggage.spec;
    let mut found = Vec::new();
    if !spec.devices.pci.is_empty() || !spec.devices.usb.is_empty() {
        found.push(Hindrance::HostDevices);
    }
    if !spec.shares.is_empty() {
        found.push(Hindrance::Shares);
    }
    for (disk, volume, _) in &baggage.disks {
        if let Some(path) = &volume.foreign_path {
            found.push(Hindrance::ForeignFile((*disk).clone(), path.clone()));
        }
    }
    let local_cd =
        |(drive, pool): &(&Name, Option<&PoolSpec>)| (!pool.is_some_and(is_shared)).then(|| Hindrance::LocalCd((*drive).clone()));
    found.extend(baggage.cds.iter().filter_map(local_cd));
    if travel != Travel::Off && baggage.choices.domain_type.as_deref() == Some("kvm") && matches!(spec.cpu.model.as_str(), "host" | "max") {
        found.push(Hindrance::HostCpu(spec.cpu.model.clone()));
    }
    found
}

/// Files of its host's libvirt that go along when it is off.
pub fn local_state(baggage: &Baggage<'_>) -> BTreeSet<LocalState> {
    let uefi = matches!(baggage.choices.firmware, Some(FirmwareChoice::Uefi { .. }));
    uefi.then_some(LocalState::Nvram).into_iter().chain(baggage.spec.tpm().then_some(LocalState::Tpm)).collect()
}

/// What a VM would miss that is begun anew elsewhere because its host is lost, beside [`hindrances`].
pub fn lost_with_host(baggage: &Baggage<'_>) -> Vec<Hindrance> {
    let disks = local_disks(baggage).into_iter().map(Hindrance::LocalDisk);
    let state = local_state(baggage).into_iter().map(|state| match state {
        LocalState::Nvram => Hindrance::LocalNvram,
        LocalState::Tpm => Hindrance::LocalTpm,
    });
    disks.chain(state).collect()
}

/// How it travels, or what keeps it from that.
///
/// # Errors
/// The hindrances of the way that was asked for.
pub fn travel(baggage: &Baggage<'_>, now: Travel, manner: MoveManner) -> Result<Travel, Vec<Hindrance>> {
    let by = |travel| {
        let found = hindrances(baggage, travel);
        if found.is_empty() { Ok(travel) } else { Err(found) }
    };
    match (now, manner) {
        (Travel::Off, _) | (_, MoveManner::Cold) => by(Travel::Off),
        (_, MoveManner::Live) => by(now),
        (_, MoveManner::LiveOrCold) => by(now).or_else(|live| by(Travel::Off).map_err(|_| live)),
    }
}

/// What is different afterwards, without keeping it from moving.
pub fn warnings(baggage: &Baggage<'_>) -> Vec<String> {
    let own = |n: &&&NetworkSpec| n.mode == NetworkMode::Nat && n.ipv4.is_none();
    let told = |n: &NetworkSpec| {
        format!(
            "network '{}' is another one on each host (mode: nat without ipv4): the guest keeps its address and may lose its way out until it asks for another",
            n.name
        )
    };
    baggage.networks.iter().filter(own).map(|n| told(n)).collect()
}

/// Why this node cannot take it in; None = it can, as far as it is known from here.
pub fn refuses(baggage: &Baggage<'_>, travel: Travel, node: &NodeFacts) -> Option<String> {
    if !node.hypervisor_up {
        return Some("libvirt does not answer there".into());
    }
    if travel != Travel::Off && node.migration.is_none() {
        return Some("its libvirt cannot be reached by other hosts ([migration] in vmkeepd.toml)".into());
    }
    if baggage.choices.domain_type.as_deref() == Some("kvm")
        && let KvmState::Unusable { why } = &node.kvm
    {
        return Some(format!("it runs with KVM, and that node has none: {why}"));
    }
    None
}

/// The hindrances in one sentence.
pub fn words(hindrances: &[Hindrance]) -> String {
    let all: Vec<String> = hindrances.iter().map(ToString::to_string).collect();
    all.join("; ")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};
    use vmkeep_types::ids::VolumeId;
    use vmkeep_types::vm::DiskFormat;

    use super::*;

    struct Case {
        spec: Value,
        choices: VmChoices,
        foreign: Option<&'static str>,
        shared: bool,
        cd: bool,
    }

    fn case() -> Case {
        let choices = VmChoices { domain_type: Some("kvm".into()), ..VmChoices::default() };
        Case { spec: json!({}), choices, foreign: None, shared: true, cd: false }
    }

    /// What keeps it from moving while it runs, and while it is off, and what it misses when its host is lost.
    fn check(case: &Case, expect: Expect) {
        let mut whole = json!({"name": "web", "disks": [{"name": "root", "empty": true, "size": "1G"}]});
        whole.as_object_mut().expect("a map").extend(case.spec.as_object().expect("a map").clone());
        let spec: VmSpec = serde_json::from_value(whole).expect("a wish");
        let driver = PoolDriver::Dir { path: "/srv/pool".into(), shared: case.shared };
        let pool = PoolSpec { name: Name::known("default"), description: String::new(), driver };
        let volume = VolumeRecord {
            id: VolumeId(uuid::Uuid::nil()),
            project: Name::known("default"),
            name: Name::known("web-root"),
            pool: pool.name.clone(),
            node: None,
            size: None,
            format: DiskFormat::Qcow2,
            image: None,
            foreign_path: case.foreign.map(str::to_owned),
            filling: None,
            made: true,
            attached: None,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let drive = Name::known("cd0");
        let cds = case.cd.then_some((&drive, Some(&pool))).into_iter().collect();
        let disks = vec![(&spec.disks[0].name, &volume, Some(&pool))];
        let baggage = Baggage { spec: &spec, choices: &case.choices, disks, cds, networks: Vec::new() };
        let told = |found: Vec<Hindrance>| if found.is_empty() { "nothing".into() } else { words(&found) };
        let [runs, off] = [Travel::Running, Travel::Off].map(|travel| told(hindrances(&baggage, travel)));
        expect.assert_eq(&format!("runs: {runs}\noff: {off}\nhost lost: {}", told(lost_with_host(&baggage))));
    }

    #[test]
    fn each_hindrance_in_words() {
        check(
            &case(),
            expect![[r#"
                runs: nothing
                off: nothing
                host lost: nothing"#]],
        );
        check(
            &Case { spec: json!({"devices": {"pci": ["0000:03:00.0"]}}), ..case() },
            expect![[r#"
                runs: devices: it has a device of this host
                off: devices: it has a device of this host
                host lost: nothing"#]],
        );
        check(
            &Case { spec: json!({"shares": [{"name": "src", "path": "/srv/src"}]}), ..case() },
            expect![[r#"
                runs: shares: it shares a folder of this host
                off: shares: it shares a folder of this host
                host lost: nothing"#]],
        );
        check(
            &Case { spec: json!({"cpu": {"model": "host"}}), ..case() },
            expect![[r#"
                runs: cpu.model host: the guest sees this host's own CPU; with auto or a named model it can move
                off: nothing
                host lost: nothing"#]],
        );
        let emulated = VmChoices { domain_type: Some("qemu".into()), ..VmChoices::default() };
        check(
            &Case { spec: json!({"cpu": {"model": "max"}}), choices: emulated, ..case() },
            expect![[r#"
                runs: nothing
                off: nothing
                host lost: nothing"#]],
        );
        check(
            &Case { shared: false, cd: true, ..case() },
            expect![[r#"
                runs: cdroms[cd0]: the CD is in a pool of this host; take it out first
                off: cdroms[cd0]: the CD is in a pool of this host; take it out first
                host lost: disks[root]: its data is on this host alone"#]],
        );
        check(
            &Case { foreign: Some("/data/web.img"), ..case() },
            expect![[r#"
                runs: disks[root]: /data/web.img is a file of this host that vmkeep did not make
                off: disks[root]: /data/web.img is a file of this host that vmkeep did not make
                host lost: nothing"#]],
        );
        let firmware = FirmwareChoice::Uefi { loader: "/l".into(), loader_format: "raw".into(), template: "/t".into(), secure_boot: true };
        let uefi = VmChoices { firmware: Some(firmware), ..case().choices };
        check(
            &Case { spec: json!({"tpm": true}), choices: uefi, ..case() },
            expect![[r#"
                runs: nothing
                off: nothing
                host lost: its NVRAM is a file of this host alone; its TPM state is a file of this host alone"#]],
        );
    }
}
