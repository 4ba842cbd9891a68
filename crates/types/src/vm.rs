//! The wish for one VM: the body of a `kind: vm` manifest.
//!
//! Omitted fields take the defaults of this file. [`VmSpec`] is stored as the user wished it; what is chosen once and
//! kept (UUID, MACs, serials, addresses, machine version …) lives apart in [`crate::record::VmChoices`].

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::placement::PlacementWish;
use crate::scalar::{self, Short};
use crate::units::{ByteCount, Seconds};

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Unique in its project. A rename keeps the uuid.
    pub name: Name,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Deletion is refused while this is true.
    #[serde(default)]
    pub protect: bool,
    #[serde(default)]
    pub os: OsFamily,
    /// Short for the image of the first disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Name>,
    #[serde(default)]
    pub run: RunPolicy,
    #[serde(default)]
    pub start: StartOrder,
    /// How long a graceful stop may take before the VM is killed; 0s = never killed.
    #[serde(default = "default_stop_timeout")]
    pub stop_timeout: Seconds,
    #[serde(default)]
    pub restart: RestartLimit,
    #[serde(default, deserialize_with = "scalar::or_struct")]
    pub cpus: Cpus,
    #[serde(default)]
    pub cpu: CpuModel,
    #[serde(default, deserialize_with = "scalar::or_struct")]
    pub memory: Memory,
    #[serde(default)]
    pub machine: MachineFamily,
    #[serde(default)]
    pub firmware: Firmware,
    /// Default: true for windows, else false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<bool>,
    /// A TPM 2.0 by swtpm. Default: true for windows, else false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<bool>,
    #[serde(default)]
    pub clock: ClockOffset,
    /// Names of disks, cdroms and NICs in boot order. Default: disks, then cdroms, then NICs.
    #[serde(default)]
    pub boot: Vec<Name>,
    /// The device that the next cold start boots from; gone after it. `cdrom`: the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_once: Option<Name>,
    #[serde(default)]
    pub disks: Vec<Disk>,
    #[serde(default)]
    pub cdroms: Vec<Cdrom>,
    /// Default: one NIC `lan` on network `default`. `[]` = none.
    #[serde(default = "default_nics")]
    pub nics: Vec<Nic>,
    /// null = no cloud-init seed.
    #[serde(default = "default_cloud_init")]
    pub cloud_init: Option<CloudInit>,
    #[serde(default)]
    pub serial: Serial,
    /// null = no display.
    #[serde(default = "default_display")]
    pub display: Option<Display>,
    /// The guest agent's channel.
    #[serde(default = "yes")]
    pub agent: bool,
    /// A random number generator fed by the host.
    #[serde(default = "yes")]
    pub rng: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<GuestWatchdog>,
    /// Host directories in the guest (virtiofs); admin only.
    #[serde(default)]
    pub shares: Vec<Share>,
    /// Host devices in the guest; admin only.
    #[serde(default)]
    pub devices: Devices,
    /// High availability; needs a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ha: Option<Ha>,
    /// Which nodes may and should run it.
    #[serde(default, skip_serializing_if = "PlacementWish::is_empty")]
    pub placement: PlacementWish,
    /// Changes to the domain XML that the manifest cannot say; admin only, shown in `plan`.
    #[serde(default)]
    pub libvirt_xml: Vec<XmlPatch>,
}

fn yes() -> bool {
    true
}

fn default_stop_timeout() -> Seconds {
    Seconds::new(120)
}

fn default_nics() -> Vec<Nic> {
    vec![Nic::named(Name::known("lan"))]
}

fn default_cloud_init() -> Option<CloudInit> {
    Some(CloudInit::default())
}

fn default_display() -> Option<Display> {
    Some(Display::default())
}

fn default_network() -> Name {
    Name::known("default")
}

impl VmSpec {
    /// The smallest wish: a name and every default.
    pub fn named(name: Name) -> Self {
        serde_json::from_value(serde_json::json!({ "name": name })).expect("a name is a whole manifest")
    }

    /// The device of `boot_once`.
    pub fn boots_once(&self) -> Option<&Name> {
        let wished = self.boot_once.as_ref()?;
        let called = self.disks.iter().map(|d| &d.name).chain(self.cdroms.iter().map(|c| &c.name)).chain(self.nics.iter().map(|n| &n.name));
        let short = || if wished.as_str() == "cdrom" { self.cdroms.first().map(|c| &c.name) } else { None };
        called.into_iter().find(|name| *name == wished).or_else(short)
    }

    pub fn secure_boot(&self) -> bool {
        self.secure_boot.unwrap_or(self.os == OsFamily::Windows)
    }

    pub fn tpm(&self) -> bool {
        self.tpm.unwrap_or(self.os == OsFamily::Windows)
    }
}

/// Sets clock, timers, enlightenments, buses and TPM defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OsFamily {
    #[default]
    Linux,
    Windows,
    Other,
}

/// The operator's policy on when the VM runs; see docs/concepts/run-policy.md for the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunPolicy {
    /// Runs whenever its host does; a guest that powers itself off is started again.
    Always,
    /// Started at boot unless stopped on purpose; restarted after a crash; a guest's own power-off is respected.
    #[default]
    OnFailure,
    /// Started and stopped by hand only.
    Manual,
    /// Never runs.
    Halted,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StartOrder {
    /// Lower starts first at host boot and stops last at host shutdown; 0 to 9999.
    pub order: u16,
    /// Waited after this VM is up before the next order starts.
    pub delay: Seconds,
    pub wait_for: WaitFor,
}

impl Default for StartOrder {
    fn default() -> Self {
        Self { order: 100, delay: Seconds::new(0), wait_for: WaitFor::Running }
    }
}

/// When a VM counts as up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WaitFor {
    #[default]
    Running,
    /// The guest agent answers.
    Agent,
}

/// More restarts than `max` within `within`: the VM is failed, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RestartLimit {
    pub max: u32,
    pub within: Seconds,
}

impl Default for RestartLimit {
    fn default() -> Self {
        Self { max: 5, within: Seconds::new(600) }
    }
}

/// `cpus: 2` or `{count: 4, max: 8, sockets: 1, cores: 8, threads: 1}`. A topology must multiply to `max` (or `count`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = scalar::or_number)]
pub struct Cpus {
    /// vCPUs at start; 1 to 512.
    pub count: u32,
    /// vCPUs that can be plugged in while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
}

impl Default for Cpus {
    fn default() -> Self {
        Self { count: 1, max: None, sockets: None, cores: None, threads: None }
    }
}

impl Cpus {
    pub fn max(&self) -> u32 {
        self.max.unwrap_or(self.count).max(self.count)
    }
}

impl Short for Cpus {
    const EXPECT: &'static str = "a number of CPUs, or {count, max, sockets, cores, threads}";
    fn from_short(text: &str) -> Result<Self, String> {
        let count = text.parse().map_err(|_| format!("'{text}' is not a number of CPUs"))?;
        Ok(Self { count, ..Self::default() })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CpuModel {
    /// `auto` (host model, expanded and stored at creation; TCG: max), `host` (pass-through), `cluster`, `max`, or a QEMU model name.
    pub model: String,
    /// CPU feature to on or off: `{vmx: off}`.
    pub features: BTreeMap<String, Switch>,
}

impl Default for CpuModel {
    fn default() -> Self {
        Self { model: "auto".into(), features: BTreeMap::new() }
    }
}

/// YAML's bare `on`/`off` are strings here, never booleans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    On,
    Off,
}

/// `memory: 2G` or `{size: 4G, max: 16G, balloon: true, hugepages: false}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = scalar::or_size)]
pub struct Memory {
    pub size: ByteCount,
    /// What the balloon may grow to while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<ByteCount>,
    #[serde(default = "yes")]
    pub balloon: bool,
    #[serde(default)]
    pub hugepages: bool,
}

impl Default for Memory {
    fn default() -> Self {
        Self { size: ByteCount::from_gib(1), max: None, balloon: true, hugepages: false }
    }
}

impl Memory {
    pub fn max(&self) -> ByteCount {
        self.max.unwrap_or(self.size).max(self.size)
    }
}

impl Short for Memory {
    const EXPECT: &'static str = "a size like 2G, or {size, max, balloon, hugepages}";
    fn from_short(text: &str) -> Result<Self, String> {
        Ok(Self { size: text.parse().map_err(|e| format!("{e}"))?, ..Self::default() })
    }
}

/// The versioned machine type is chosen at creation and stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MachineFamily {
    #[default]
    Q35,
    /// i440fx, for guests that know nothing newer.
    Pc,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// What the image wants, else UEFI.
    #[default]
    Auto,
    Uefi,
    Bios,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClockOffset {
    #[default]
    Utc,
    Localtime,
}

/// One disk. Exactly one of `image`, `volume`, `empty: true`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Identity: never renumbered; required with two or more disks.
    #[serde(default = "Disk::root_name")]
    pub name: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Name>,
    /// An existing volume's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Name>,
    #[serde(default)]
    pub empty: bool,
    /// At least the image's size; grow only. Required for an empty disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteCount>,
    #[serde(default = "default_network")]
    pub pool: Name,
    #[serde(default)]
    pub format: DiskFormat,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<DiskBus>,
    #[serde(default)]
    pub cache: CacheMode,
    #[serde(default = "yes")]
    pub discard: bool,
    /// `auto`, or up to 20 characters of [A-Za-z0-9_-].
    #[serde(default = "auto")]
    pub serial: String,
    #[serde(default)]
    pub limits: DiskLimits,
    #[serde(default)]
    pub read_only: bool,
}

fn auto() -> String {
    "auto".into()
}

impl Disk {
    pub fn root_name() -> Name {
        Name::known("root")
    }

    pub fn named(name: Name) -> Self {
        serde_json::from_value(serde_json::json!({ "name": name })).expect("a name is a whole disk")
    }

    /// virtio, but sata where the guest is not known to have virtio drivers.
    pub fn bus(&self, os: OsFamily) -> DiskBus {
        self.bus.unwrap_or(if os == OsFamily::Other { DiskBus::Sata } else { DiskBus::Virtio })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// What the pool does best: qcow2 in a directory.
    #[default]
    Auto,
    Qcow2,
    Raw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskBus {
    Virtio,
    Scsi,
    Sata,
    Nvme,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// O_DIRECT; becomes writeback with a warning where the file system has none.
    #[default]
    None,
    Writeback,
    Writethrough,
    /// Loses data at a power cut: for scratch only.
    Unsafe,
}

/// 0 = unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DiskLimits {
    /// Operations per second, reads and writes together.
    pub iops: u64,
    /// Bytes per second, reads and writes together: 100M. `0` or `0B` = unlimited.
    #[serde(deserialize_with = "zero_or_size")]
    #[schemars(transform = scalar::or_zero)]
    pub bandwidth: ByteCount,
}

/// The contract writes `bandwidth: 0`: the one place where a bare number has a meaning.
fn zero_or_size<'de, D: serde::Deserializer<'de>>(d: D) -> Result<ByteCount, D::Error> {
    scalar::or_struct(d).map(|z: ZeroOrSize| z.0)
}

struct ZeroOrSize(ByteCount);

impl<'de> Deserialize<'de> for ZeroOrSize {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        ByteCount::deserialize(d).map(Self)
    }
}

impl Short for ZeroOrSize {
    const EXPECT: &'static str = "0 or a size like 100M";
    fn from_short(text: &str) -> Result<Self, String> {
        if text == "0" { Ok(Self(ByteCount::ZERO)) } else { text.parse().map(Self).map_err(|e| format!("{e}")) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cdrom {
    pub name: Name,
    /// An imported ISO image; null = empty tray.
    #[serde(default)]
    pub image: Option<Name>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Identity: never renumbered.
    #[serde(default = "Nic::default_name")]
    pub name: Name,
    #[serde(default = "default_network")]
    pub network: Name,
    /// `auto` (stored at creation) or 52:54:00:xx:xx:xx style.
    #[serde(default = "auto")]
    pub mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<NicModel>,
    /// Queues of the NIC; auto = one per vCPU up to 8.
    #[serde(default)]
    pub queues: AutoU32,
    /// Bytes, 68 to 65535; auto = the network's.
    #[serde(default)]
    pub mtu: AutoU32,
    #[serde(default)]
    pub link: Link,
    /// dhcp | slaac | CIDR (v4, v6)
    #[serde(default = "dhcp")]
    pub addresses: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    #[serde(default)]
    pub dns: Vec<String>,
}

fn dhcp() -> Vec<String> {
    vec!["dhcp".into()]
}

impl Nic {
    pub fn default_name() -> Name {
        Name::known("lan")
    }

    pub fn named(name: Name) -> Self {
        serde_json::from_value(serde_json::json!({ "name": name })).expect("a name is a whole NIC")
    }

    /// virtio, but e1000e where the guest is not known to have virtio drivers.
    pub fn model(&self, os: OsFamily) -> NicModel {
        self.model.unwrap_or(if os == OsFamily::Other { NicModel::E1000e } else { NicModel::Virtio })
    }
}

/// `auto` or a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoU32 {
    #[default]
    Auto,
    Is(u32),
}

impl Serialize for AutoU32 {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => s.serialize_str("auto"),
            Self::Is(n) => s.serialize_u32(*n),
        }
    }
}

impl<'de> Deserialize<'de> for AutoU32 {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        scalar::alone(d)
    }
}

impl JsonSchema for AutoU32 {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AutoOrNumber".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"oneOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]})
    }
}

impl Short for AutoU32 {
    const EXPECT: &'static str = "auto or a number";
    fn from_short(text: &str) -> Result<Self, String> {
        if text == "auto" {
            Ok(Self::Auto)
        } else {
            text.parse().map(Self::Is).map_err(|_| format!("'{text}' is neither 'auto' nor a number"))
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NicModel {
    Virtio,
    E1000e,
    Rtl8139,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    #[default]
    Up,
    Down,
}

/// What the cloud-init seed (NoCloud) says to the guest at its first boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CloudInit {
    /// null = the VM's name.
    pub hostname: Option<String>,
    /// null = the image's own default user.
    pub user: Option<String>,
    pub users: Vec<serde_json::Value>,
    /// For the console only; stored hashed by the guest.
    pub password: Option<String>,
    /// The first login by it must choose another one.
    pub password_expires: bool,
    pub ssh_keys: Vec<String>,
    pub timezone: Option<String>,
    pub locale: Option<String>,
    pub packages: Vec<String>,
    /// Raw user-data, merged after ours.
    pub user_data: Option<String>,
    /// Raw network-config (v2) instead of the one made from `nics`.
    pub network_data: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Serial {
    /// 0B = no console log. virtlogd rotates all logs at one size, `max_size` in virtlogd.conf (2M unless set); `host check` tells.
    pub log: ByteCount,
}

impl Default for Serial {
    fn default() -> Self {
        Self { log: ByteCount::from_mib(10) }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Display {
    #[serde(rename = "type")]
    pub kind: DisplayKind,
    pub listen: Listen,
    pub video: Video,
    /// Required with `listen: tcp`; at most 8 characters count (VNC).
    pub password: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DisplayKind {
    #[default]
    Vnc,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Listen {
    /// A 0600 unix socket, reached through `vmkeep vm vnc`.
    #[default]
    Socket,
    Tcp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Video {
    /// virtio; vga for windows and other.
    #[default]
    Auto,
    Virtio,
    Vga,
    Qxl,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GuestWatchdog {
    pub model: WatchdogModel,
    pub action: WatchdogAction,
}

impl Default for GuestWatchdog {
    fn default() -> Self {
        Self { model: WatchdogModel::I6300esb, action: WatchdogAction::Reset }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WatchdogModel {
    I6300esb,
    Itco,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WatchdogAction {
    Reset,
    Poweroff,
    Pause,
    None,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Share {
    pub name: Name,
    /// Absolute host path.
    pub path: String,
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Devices {
    /// Host PCI addresses: 0000:03:00.0
    pub pci: Vec<String>,
    /// vendor:product in hex: 1d6b:0002
    pub usb: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ha {
    /// 1 (first) to 5.
    #[serde(default = "Ha::default_priority")]
    pub priority: u8,
    /// Further attempts to start it on one node; default: as many as `restart.max` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_restart: Option<u32>,
    /// Further nodes that are tried when it does not start on one; then it is failed, and a person is needed.
    #[serde(default = "Ha::default_relocate", skip_serializing_if = "Ha::is_default_relocate")]
    pub max_relocate: u32,
    /// Back to the node that it left for a maintenance, when that is over.
    #[serde(default = "Ha::default_failback", skip_serializing_if = "Clone::clone")]
    pub failback: bool,
}

impl Ha {
    fn default_priority() -> u8 {
        3
    }

    fn default_relocate() -> u32 {
        1
    }

    fn is_default_relocate(count: &u32) -> bool {
        *count == Self::default_relocate()
    }

    fn default_failback() -> bool {
        true
    }
}

impl Default for Ha {
    fn default() -> Self {
        let priority = Self::default_priority();
        Self { priority, max_restart: None, max_relocate: Self::default_relocate(), failback: Self::default_failback() }
    }
}

impl VmSpec {
    /// Of VMs that are not highly available: after all that are.
    pub const PRIORITY_LAST: u8 = 6;

    /// `ha.priority`, 1 first, or [`Self::PRIORITY_LAST`].
    pub fn priority(&self) -> u8 {
        self.ha.as_ref().map_or(Self::PRIORITY_LAST, |ha| ha.priority)
    }

    /// Failures that are followed by another attempt on the same node.
    pub fn restarts_max(&self) -> u32 {
        self.ha.as_ref().and_then(|ha| ha.max_restart).unwrap_or(self.restart.max)
    }
}

/// One change to the generated domain XML.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct XmlPatch {
    pub op: XmlOp,
    /// Element path: `devices/disk[@alias=ua-root]/driver`; an attribute as its last step: `@cache`.
    pub path: String,
    /// XML of an element, or an attribute's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum XmlOp {
    /// Appends `value` inside the element at `path`.
    Add,
    Replace,
    Remove,
}
