//! The agent's word about its VMs, written to `n/NODE/seen/VM`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{Epoch, Generation, OperationId, Revision, VmId, VolumeId};
use crate::name::Name;
use crate::record::{Hold, VmChoices};

/// What is known of something that lives elsewhere. `Unknown` is set before a call that changes it, `Known` after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", content = "what", rename_all = "lowercase")]
pub enum Observed<T> {
    Absent,
    #[default]
    Unknown,
    Known(T),
}

impl<T> Observed<T> {
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(t) => Some(t),
            Self::Absent | Self::Unknown => None,
        }
    }
}

/// libvirt's word on a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DomainState {
    Running,
    /// Stopped vCPUs; memory is kept.
    Paused,
    /// QEMU exists, the guest is going down.
    ShuttingDown,
    /// No QEMU.
    Off,
    /// The guest panicked; QEMU is kept.
    Crashed,
    /// The guest sleeps (S3).
    Suspended,
}

impl DomainState {
    /// A QEMU process exists.
    pub fn is_live(self) -> bool {
        !matches!(self, Self::Off)
    }
}

/// Why a guest is paused, in libvirt's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PauseCause {
    /// By `vm pause`, or by virsh.
    Asked,
    /// A disk is full, or does not answer.
    IoError,
    /// The guest's own watchdog fired.
    Watchdog,
    Migration,
    /// A snapshot, a dump or a save is made.
    Saving,
    /// The guest panicked.
    Crashed,
}

/// The agent's report on one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Seen {
    pub vm: VmId,
    /// Of the order it speaks about.
    pub generation: Generation,
    pub epoch: Epoch,
    /// The wish it has taken up; `memory.tried()` tells whether it is through with it.
    pub spec_revision: Revision,
    /// Newest power cycle that is carried out.
    pub power_cycle: u64,
    /// Power cycle of the order it speaks about; `steps` are of that one.
    #[serde(default)]
    pub ordered_cycle: u64,
    pub domain: Observed<DomainState>,
    /// Why it is paused, when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<PauseCause>,
    /// Addresses that DHCP keeps for its NICs on this host, by NIC.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub addresses: BTreeMap<Name, IpAddr>,
    /// In words, when it is not simply running or off: "starting", "restart in 8 s (3 of 5): QEMU was killed".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doing: Option<Doing>,
    /// Set by a virsh shutdown or destroy, or a stop through us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Hold>,
    /// Why the last order failed; cleared by the next success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// What was done for the wanted wish, in order: "volume root: cloned from tiny".
    pub steps: Vec<String>,
    /// Hardware as it was chosen here; the leader keeps what it does not know yet.
    pub choices: VmChoices,
    pub pending: Vec<FieldChange>,
    pub drift: Vec<FieldChange>,
    /// Disk chains that changed behind our back; starts that would lose writes are refused.
    pub conflicts: Vec<FieldChange>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<QemuFacts>,
    pub volumes: BTreeMap<VolumeId, VolumeSeen>,
    /// Disk files that the domain has, running or stored, beyond those of its order: a detach that waits for a cold start or
    /// for the guest. None: not looked at yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub also_open: Option<BTreeSet<String>>,
    pub restarts: RestartCount,
    /// What the agent must know again after its own restart.
    #[serde(default)]
    pub memory: VmMemory,
    /// Wall clock of the last change of `domain`.
    pub since: jiff::Timestamp,
    /// Warnings that stay true while it runs: "TCG: no hardware virtualisation (no vmx/svm in /proc/cpuinfo)".
    pub warnings: Vec<String>,
}

/// What the agent does or waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Doing {
    Preparing {
        what: String,
    },
    Starting,
    Stopping {
        kill_at: Option<jiff::Timestamp>,
    },
    /// Down after a failure; started again at `at`.
    Backoff {
        at: jiff::Timestamp,
        attempt: u32,
        max: u32,
        reason: String,
    },
    /// Down; no further start without a person.
    GaveUp {
        reason: String,
    },
    Deleting,
    /// On its way to another node, or just come from one: the worker has its hands off.
    Moving {
        op: OperationId,
    },
}

/// One field that differs: from today's value to the wished one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FieldChange {
    /// `memory.size`, `disks[root].cache`
    pub field: String,
    pub from: String,
    pub to: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QemuFacts {
    pub pid: Option<u32>,
    /// Version the process was started with.
    pub version: Option<String>,
    /// The installed QEMU is newer than the running one.
    pub outdated: bool,
    /// `kvm` or `qemu` (TCG).
    pub accel: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeSeen {
    pub size_bytes: u64,
    pub allocated_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestartCount {
    /// Restarts after failures since the last start by a person.
    pub count: u32,
    pub last_reason: Option<String>,
    pub last_at: Option<jiff::Timestamp>,
}

/// What the node remembers of one VM between looks; decided on by `core::vm`, stored with [`Seen`].
///
/// Times are milliseconds of CLOCK_BOOTTIME and mean something only within the same `boot_id`. What is as at the beginning is not written:
/// each VM has one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct VmMemory {
    /// Kernel boot id under which the times below were taken.
    pub boot_id: String,
    /// Newest power cycle that was carried out, or failed for good.
    pub power_cycle: u64,
    /// The wish that was applied, as far as it can be without a restart.
    pub applied: Revision,
    /// What of its networks it was applied with, as [`crate::order::Order::networks_hash`] tells it; None where an older agent applied it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<u64>,
    /// The wish that could not be applied; tried again at `next_apply_ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply_failed: Option<Revision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_apply_ms: Option<u64>,
    /// Nothing of the VM is left here, as its `leaving` asked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
    /// A QEMU was seen alive, and has not been seen gone since.
    pub alive: bool,
    /// Why it is down, when nobody ordered it through us; None = it follows the order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rest: Option<Rest>,
    /// Somebody else asked the guest to power down then (virsh shutdown): if it does, that is a hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked_outside_ms: Option<u64>,
    /// A graceful stop is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopping: Option<Stopping>,
    /// The guest was last asked then by a stop that was called off; it may still obey.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub called_off_ms: Option<u64>,
    /// A cold restart has seen the domain off at this power cycle.
    pub restart_seen_off: u64,
    /// When it went down without being told to, newest last; only those within the restart limit's window.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures_ms: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// No start before this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_try_ms: Option<u64>,
    /// The limit was exceeded: no start without a person.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gave_up: bool,
    /// The wish whose `boot_once` a start has carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub booted_once: Option<Revision>,
}

impl VmMemory {
    /// The newest wish that was tried, with or without success: what an operation waits for.
    pub fn tried(&self) -> Revision {
        self.applied.max(self.apply_failed.unwrap_or_default())
    }
}

/// Why a VM is down without an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Rest {
    /// The guest powered itself off.
    GuestOff,
    /// Somebody stopped it with virsh or another tool: a hold.
    Held(Hold),
    /// QEMU died, the host died, or a start failed.
    Failed,
    /// The host was booted; nothing has been started yet.
    HostBoot,
    /// Somebody started it with virsh: it runs, whatever the last order was.
    StartedOutside,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stopping {
    pub since_ms: u64,
    /// Last time the guest was asked.
    pub asked_ms: u64,
    #[serde(default)]
    pub cause: StopFor,
}

/// What a stop obeys; one for another cause begins anew, with all of its time-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum StopFor {
    /// The order as it is since this power cycle.
    Order { cycle: u64 },
    /// The host goes down.
    Host,
}

impl Default for StopFor {
    fn default() -> Self {
        Self::Order { cycle: 0 }
    }
}

/// Why a domain is off, in libvirt's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExitCause {
    /// The guest powered itself off, or did so when asked.
    Shutdown,
    /// Killed through libvirt.
    Destroyed,
    /// QEMU crashed or was killed.
    Crashed,
    /// QEMU was told to quit, but neither by its guest nor through libvirt (a SIGTERM).
    Killed,
    /// QEMU failed to start or died of an error.
    Failed,
    Migrated,
    Saved,
    /// libvirt does not say (it was restarted in between).
    Unknown,
}
