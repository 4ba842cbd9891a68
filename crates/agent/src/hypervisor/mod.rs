//! The seam to the hypervisor: libvirt in production, a fake with the same manners in tests and benches, chosen at run
//! time. Domains cross it as libvirt's XML text, so that both sides see the same thing.
//!
//! Calls block inside libvirt, so the real one runs them on bounded threads of its own, each with a deadline. After a
//! deadline the outcome is unknown ([`HvError::TimedOut`]); the caller looks again before it decides.

pub mod fake;
pub mod libvirt;
mod uses;
pub(crate) mod xml;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, mpsc};
use vmkeep_types::ids::VmId;
use vmkeep_types::observed::{DomainState, ExitCause, PauseCause};

/// Namespace of our metadata element in a domain's XML.
pub const METADATA_URI: &str = "https://vmkeep.dev/xmlns/1";
/// Its prefix: the element is `<vmkeep:vm xmlns:vmkeep="…">`.
pub const METADATA_KEY: &str = "vmkeep";

/// Detail of [`Lifecycle::ShuttingDown`] when QEMU was told to quit and its guest was not asked: a signal, or a destroy.
pub const BY_HOST: &str = "by host";

/// A domain as one listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainBrief {
    pub uuid: VmId,
    pub name: String,
    pub state: DomainState,
    /// Why it is off, from libvirt's shutoff reason; None while it is live or was never started.
    pub exit: Option<ExitCause>,
    /// Why it is paused, as far as libvirt tells.
    pub paused: Option<PauseCause>,
    /// Raw `<vmkeep:vm xmlns:vmkeep="…" …>` metadata element; None = not ours.
    pub metadata: Option<String>,
    pub persistent: bool,
    pub autostart: bool,
}

impl DomainBrief {
    /// It carries our mark, as the domain of the VM that its uuid names.
    pub fn is_ours(&self) -> bool {
        crate::domain::marks(self.metadata.as_deref(), self.uuid)
    }

    /// One of our guests: a QEMU runs, or may.
    pub fn is_our_guest(&self) -> bool {
        self.state.is_live() && self.is_ours()
    }
}

/// Which description of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XmlKind {
    /// The running QEMU's.
    Live,
    /// What the next start uses.
    Inactive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UndefineKeep {
    /// NVRAM, TPM state, managed save and snapshot metadata go too.
    Nothing,
    /// NVRAM and TPM state stay.
    State,
}

/// A change to a running domain; the stored description is changed apart, by define.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LiveChange {
    /// Balloon target.
    MemoryKib(u64),
    Vcpus(u32),
    AttachDevice(String),
    DetachDevice(String),
    /// cdrom media, link state, network of a NIC.
    UpdateDevice(String),
    /// Of a disk's target name (`vda`), per second; 0 = unlimited. libvirt does not change them by an update of the device.
    IoLimits {
        target: String,
        bytes: u64,
        iops: u64,
    },
    /// Target name (`vda`) and the new size in bytes.
    BlockResize(String, u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HvEvent {
    /// Lifecycle of one domain; `detail` is libvirt's word for why ("shutdown by guest", "destroyed", "crashed", "failed").
    Lifecycle { uuid: VmId, what: Lifecycle, detail: String },
    /// Somebody asked the guest to power down (QEMU's POWERDOWN event): it tells a `virsh shutdown` from the guest's own.
    PowerdownAsked(VmId),
    /// The guest rebooted itself.
    Rebooted(VmId),
    /// The guest watchdog fired; its action in words.
    Watchdog(VmId, String),
    /// A disk error that paused the guest or was reported to it.
    IoError { uuid: VmId, device: String, reason: String },
    /// The guest agent connected (true) or left.
    Agent { uuid: VmId, connected: AgentLink },
    /// A detached device is really gone.
    DeviceRemoved { uuid: VmId, alias: String },
    /// Connected again after a break (or at first): everything may have changed, list again.
    Connected,
    /// libvirt is gone; guests go on.
    Disconnected,
}

impl HvEvent {
    /// The domain it is about.
    pub fn vm(&self) -> Option<VmId> {
        match self {
            Self::Lifecycle { uuid, .. } | Self::IoError { uuid, .. } | Self::Agent { uuid, .. } | Self::DeviceRemoved { uuid, .. } => {
                Some(*uuid)
            }
            Self::PowerdownAsked(uuid) | Self::Rebooted(uuid) | Self::Watchdog(uuid, _) => Some(*uuid),
            Self::Connected | Self::Disconnected => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentLink {
    Up,
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    Defined,
    Undefined,
    Started,
    Suspended,
    Resumed,
    Stopped(ExitCause),
    ShuttingDown,
    PmSuspended,
    Crashed,
}

/// Counters of one domain since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DomainStats {
    pub uuid: Option<VmId>,
    pub cpu_time_ns: u64,
    pub vcpus: u32,
    /// Balloon's current size.
    pub memory_kib: u64,
    /// Resident memory of QEMU.
    pub rss_kib: u64,
    pub disk_read_bytes: u64,
    pub disk_write_bytes: u64,
    pub disk_read_ops: u64,
    pub disk_write_ops: u64,
    pub net_rx_bytes: u64,
    pub net_tx_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestAddress {
    pub mac: String,
    pub address: IpAddr,
    pub prefix: u32,
    pub source: AddressSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSource {
    Lease,
    Agent,
    Arp,
}

/// An address that a libvirt network's DHCP has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub mac: String,
    pub address: Ipv4Addr,
}

/// A change of what a network keeps for one NIC: the `<host …/>` element of DHCP, or that of DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostChange {
    Add(String),
    /// One that is gone already is fine.
    Remove(String),
    /// DNS answers it whether or not the guest asks for its address. libvirt loads no firewall anew for it.
    AddName(String),
    /// One that is gone already is fine.
    RemoveName(String),
}

/// Where a domain is sent, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrateTo {
    /// URI by which this host's libvirt reaches the other one.
    pub connect: String,
    /// Where the other QEMU listens: `tcp://10.0.0.2`.
    pub data: String,
    /// Memory and disks by TLS, with libvirt's certificates.
    pub encrypted: bool,
    /// Per second; None: as fast as it goes.
    pub bandwidth_bytes: Option<u64>,
    /// Slow the guest down when it writes faster than can be copied.
    pub auto_converge: bool,
    /// Target names (`vda`) of disks whose data goes along; files of the same size must be there.
    pub copy_disks: Vec<String>,
    /// Other disks stay where they are.
    pub stay_disks: StayDisks,
}

/// Disks whose data does not go along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StayDisks {
    None,
    /// In pools that every host reaches, as vmkeep was told; libvirt knows that of a few kinds of file systems only.
    Shared,
}

/// A migration under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MigrationStats {
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub dirty_bytes_per_second: u64,
    pub expected_downtime_ms: u64,
}

/// A screenshot in the format QEMU gave (`image/png` or `image/x-portable-pixmap`).
#[derive(Clone, Debug)]
pub struct Screenshot {
    pub mime: String,
    pub bytes: Vec<u8>,
}

/// Bytes of a serial console; both ends close together.
pub struct ConsoleStream {
    pub from_guest: mpsc::Receiver<Vec<u8>>,
    pub to_guest: mpsc::Sender<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HvVersions {
    pub libvirt: String,
    /// Installed QEMU.
    pub qemu: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HvError {
    #[error("libvirt has no domain {0}")]
    NoDomain(VmId),
    /// The state forbids it (not running, already running).
    #[error("{0}")]
    WrongState(String),
    /// libvirt's and QEMU's own words.
    #[error("{0}")]
    Refused(String),
    #[error("libvirt does not answer: {0}")]
    Disconnected(String),
    #[error("'{call}' got no answer from libvirt within {after:?}; its outcome is unknown")]
    TimedOut { call: &'static str, after: Duration },
    #[error("{0}")]
    Unsupported(String),
}

/// Who wrote a description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// vmkeep alone: tests hold it against libvirt's schema.
    Ours,
    /// Somebody's patches are in it: libvirt holds it against its schema, some 15 ms, and refuses what it would leave out.
    Patched,
}

#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    async fn versions(&self) -> Result<HvVersions, HvError>;
    /// libvirt's domain capabilities XML for a domain type (`kvm` or `qemu`), q35, x86_64.
    async fn domain_capabilities(&self, domain_type: &str, machine: &str) -> Result<String, HvError>;
    /// libvirt's capabilities XML of the host: its machine types, the deprecated ones among them.
    async fn capabilities(&self) -> Result<String, HvError>;
    /// A guest's `<cpu>` with all features of its model written out, as libvirt names them; no host's word on what it can run.
    async fn expand_cpu(&self, domain_type: &str, cpu: &str) -> Result<String, HvError>;
    async fn list(&self) -> Result<Vec<DomainBrief>, HvError>;
    async fn find(&self, uuid: VmId) -> Result<DomainBrief, HvError>;
    /// The domain of that name; None when there is none.
    async fn named(&self, name: &str) -> Result<Option<DomainBrief>, HvError>;
    async fn xml(&self, uuid: VmId, kind: XmlKind) -> Result<String, HvError>;
    /// Defines or redefines; the answer is the inactive XML as libvirt completed it (addresses, aliases).
    async fn define(&self, xml: &str, words: Words) -> Result<String, HvError>;
    async fn undefine(&self, uuid: VmId, keep: UndefineKeep) -> Result<(), HvError>;
    /// Another name for a domain that is off; libvirt refuses it for a running one, and a name that is taken.
    async fn rename(&self, uuid: VmId, name: &str) -> Result<(), HvError>;
    async fn set_autostart(&self, uuid: VmId, on: bool) -> Result<(), HvError>;
    /// Replaces our metadata element, live and stored.
    async fn set_metadata(&self, uuid: VmId, element: Option<&str>) -> Result<(), HvError>;
    async fn start(&self, uuid: VmId) -> Result<(), HvError>;
    /// Asks the guest to shut down (agent when it is connected, else ACPI); returns at once.
    async fn shutdown(&self, uuid: VmId) -> Result<(), HvError>;
    async fn destroy(&self, uuid: VmId) -> Result<(), HvError>;
    async fn reboot(&self, uuid: VmId) -> Result<(), HvError>;
    async fn reset(&self, uuid: VmId) -> Result<(), HvError>;
    async fn suspend(&self, uuid: VmId) -> Result<(), HvError>;
    async fn resume(&self, uuid: VmId) -> Result<(), HvError>;
    async fn change(&self, uuid: VmId, change: LiveChange) -> Result<(), HvError>;
    /// Sends a running (or paused) domain to another host, where it is persistent and stays paused until somebody resumes it;
    /// here it is off afterwards ([`ExitCause::Migrated`]) and keeps its description. Returns when it is over. A failure
    /// leaves it running here, or paused when libvirt could not find out whether the other side has all of it.
    async fn migrate(&self, uuid: VmId, to: &MigrateTo) -> Result<(), HvError>;
    /// The migration under way, on either side; None when there is none.
    async fn migration(&self, uuid: VmId) -> Result<Option<MigrationStats>, HvError>;
    /// The source only.
    async fn abort_migration(&self, uuid: VmId) -> Result<(), HvError>;
    async fn send_keys(&self, uuid: VmId, linux_keycodes: Vec<u32>) -> Result<(), HvError>;
    async fn screenshot(&self, uuid: VmId) -> Result<Screenshot, HvError>;
    /// Guest-agent command (QEMU guest agent JSON) with a deadline.
    async fn agent_command(&self, uuid: VmId, json: String, within: Duration) -> Result<String, HvError>;
    async fn addresses(&self, uuid: VmId) -> Result<Vec<GuestAddress>, HvError>;
    /// Every byte from now on. libvirt gives a console to one at a time (a second caller is refused): viewers share it above this
    /// seam. Dropping both ends closes it; who opens it at once after that gets a new one.
    async fn console(&self, uuid: VmId) -> Result<ConsoleStream, HvError>;
    /// Host path of the VNC unix socket of a running domain.
    async fn vnc_socket(&self, uuid: VmId) -> Result<PathBuf, HvError>;
    /// All running domains in one call.
    async fn stats(&self) -> Result<Vec<DomainStats>, HvError>;
    /// Defines and starts a libvirt network from its XML if it is not there; redefines it when the XML differs.
    async fn ensure_network(&self, name: &str, xml: &str) -> Result<(), HvError>;
    /// The stored description of a libvirt network; None when there is none of that name.
    async fn network_xml(&self, name: &str) -> Result<Option<String>, HvError>;
    /// The same; None also when it does not run.
    async fn active_network_xml(&self, name: &str) -> Result<Option<String>, HvError>;
    async fn remove_network(&self, name: &str) -> Result<(), HvError>;
    /// Changes what DHCP and DNS keep, running and stored, in order and without a break for the guests.
    async fn change_hosts(&self, network: &str, changes: Vec<HostChange>) -> Result<(), HvError>;
    /// IPv4 addresses that DHCP has given; none where the network does not run.
    async fn leases(&self, network: &str) -> Result<Vec<Lease>, HvError>;
    /// Events from now on. Lagging receivers must list again.
    fn events(&self) -> broadcast::Receiver<HvEvent>;
}
