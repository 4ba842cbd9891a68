//! What one VM asks of a node: the part of its records that placement looks at.

use std::collections::BTreeMap;
use std::sync::Arc;

use vmkeep_types::ids::{ImageId, PoolId, PoolMark, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::placement::PlacementWish;
use vmkeep_types::record::VmChoices;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::VmSpec;

use super::cpu::{GuestCpu, KeptCpus};

/// A VM as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    pub id: VmId,
    pub project: Name,
    pub name: Name,
    pub labels: BTreeMap<String, String>,
    pub need: Need,
    /// Its memory and vCPUs are in use, or may be at any time; false while it is kept off.
    pub counts: Counts,
}

/// Does a VM take room on the node that owns it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    Yes,
    /// It is kept off by its policy or by a person.
    No,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    pub vcpus: u32,
    pub memory: ByteCount,
    pub hugepages: bool,
    /// The CPU that its guest sees; None: any will do.
    pub cpu: Option<Arc<GuestCpu>>,
    /// The versioned machine type that was chosen for it; None: none yet.
    pub machine: Option<String>,
    pub accel: Accel,
    /// Bridges that its networks are plugged into, each with the network's name.
    pub bridges: Vec<(Name, String)>,
    /// Shared pools that its disks lie in.
    pub pools: Vec<SharedPool>,
    /// Host devices by PCI address.
    pub pci: Vec<String>,
    pub wish: PlacementWish,
    /// The only node that its volumes can be reached from.
    pub home: Home,
    /// Images that a node needs a copy of its own of before it can start the VM.
    pub images: Vec<ImageId>,
    /// 1 (first) to 5; who gets a place first when many lost theirs.
    pub priority: u8,
}

/// A pool that nodes reach which have its mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPool {
    pub name: Name,
    pub id: PoolId,
    pub mark: PoolMark,
}

/// What a VM's CPUs are run by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// It has not run yet, or never with KVM.
    Any,
    /// It has run with hardware virtualisation, and its CPU was chosen for that.
    Kvm,
}

/// Where a VM's volumes can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Home {
    /// It has none yet, or they are everywhere.
    #[default]
    Anywhere,
    Only(Name),
    /// They are on several nodes: nobody can run it.
    Scattered,
}

/// What has to be brought to a node; less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Movement {
    pub volumes: HoldsVolumes,
    /// Images that it has to fetch.
    pub images: usize,
}

/// How a VM's volumes stand to one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HoldsVolumes {
    /// They are here, and only here.
    Here,
    /// None of them is bound to a node.
    Free,
    /// They are on another node.
    Elsewhere,
}

impl Need {
    /// `bridges` and `home` come from the networks' and volumes' records; what was chosen for it, shared pools and images are added by its owner.
    pub fn of(spec: &VmSpec, accel: Accel, bridges: Vec<(Name, String)>, home: Home) -> Self {
        Self {
            vcpus: spec.cpus.count,
            memory: spec.memory.size,
            hugepages: spec.memory.hugepages,
            cpu: GuestCpu::of(spec, &VmChoices::default(), &KeptCpus::default()),
            machine: None,
            accel,
            bridges,
            pools: Vec::new(),
            pci: spec.devices.pci.clone(),
            wish: spec.placement.clone(),
            home,
            images: Vec::new(),
            priority: spec.priority(),
        }
    }

    /// Does it run again elsewhere when its node dies?
    pub fn is_highly_available(&self) -> bool {
        self.priority < VmSpec::PRIORITY_LAST
    }
}

impl Home {
    /// From the nodes of all volumes that are bound to one.
    pub fn of<'a>(nodes: impl IntoIterator<Item = &'a Name>) -> Self {
        let mut nodes = nodes.into_iter();
        let Some(first) = nodes.next() else { return Self::Anywhere };
        if nodes.all(|node| node == first) { Self::Only(first.clone()) } else { Self::Scattered }
    }

    pub fn seen_from(&self, node: &Name) -> HoldsVolumes {
        match self {
            Self::Anywhere => HoldsVolumes::Free,
            Self::Only(home) if home == node => HoldsVolumes::Here,
            Self::Only(_) | Self::Scattered => HoldsVolumes::Elsewhere,
        }
    }
}

impl Guest {
    /// From a wish alone, for what does not exist yet.
    pub fn planned(id: VmId, project: Name, spec: &VmSpec) -> Self {
        Self {
            id,
            project,
            name: spec.name.clone(),
            labels: spec.labels.clone(),
            need: Need::of(spec, Accel::Any, Vec::new(), Home::Anywhere),
            counts: Counts::Yes,
        }
    }
}
