//! Everything that is wrong with a wish and can be told without I/O, all at once.
//!
//! Each function returns one [`Problem`] per thing that is wrong, with its field path (`disks[root].size`). What needs the
//! store (does the image exist, is the volume free) is the server's to check, what needs the host the agent's.

mod devices;
mod forms;
mod placement;
mod vm;

#[cfg(test)]
mod tests;

use crate::error::Problem;
use crate::host::NodeFacts;
use crate::image::{ImageSource, ImageSpec};
use crate::name::Name;
use crate::network::{NetworkMode, NetworkSpec};
use crate::node::NodeSpec;
use crate::pool::{PoolDriver, PoolSpec};
use crate::units::ByteCount;
use crate::vm::{Disk, DiskFormat, VmSpec};

pub use devices::{CDROMS_MAX, DISKS_MAX, NICS_MAX, SHARES_MAX};
pub use placement::NODE_LABEL;
pub use vm::{CPUS_MAX, MEMORY_MAX, MEMORY_MIN};

/// vCPUs per host CPU: beyond this a guest only waits.
pub const OVERCOMMIT_MAX: u32 = 8;

/// Largest disk: what qcow2 with 64 KiB clusters can address, and more than a file system gives.
pub const DISK_MAX: ByteCount = ByteCount::from_gib(64 << 10);

/// Smallest disk that a guest can put a partition table on.
pub const DISK_MIN: ByteCount = ByteCount::from_mib(1);

/// Longest description.
pub const DESCRIPTION_CHARS_MAX: usize = 1024;

/// Longest message: others' text is in it.
const MESSAGE_CHARS_MAX: usize = 600;

/// Others' text ends on terminals and in logs: no escape sequences, no novels.
pub(crate) fn harmless(message: String) -> String {
    let good = |c: char| !c.is_control();
    if message.len() <= MESSAGE_CHARS_MAX && message.chars().all(good) {
        return message;
    }
    let mut short: String = message.chars().take(MESSAGE_CHARS_MAX).map(|c| if good(c) { c } else { ' ' }).collect();
    if message.chars().nth(MESSAGE_CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

/// Collects problems under a field path.
pub(crate) struct Found {
    problems: Vec<Problem>,
    prefix: String,
}

impl Found {
    fn new() -> Self {
        Self { problems: Vec::new(), prefix: String::new() }
    }

    fn add(&mut self, field: impl AsRef<str>, message: impl Into<String>) {
        let field = match (self.prefix.is_empty(), field.as_ref()) {
            (true, field) => field.to_owned(),
            (false, "") => self.prefix.clone(),
            (false, field) => format!("{}.{field}", self.prefix),
        };
        self.problems.push(Problem { field, message: harmless(message.into()) });
    }

    /// Adds the reason when there is one.
    fn unless(&mut self, field: &str, result: Result<(), String>) {
        if let Err(message) = result {
            self.add(field, message);
        }
    }

    fn under(&mut self, prefix: String, look: impl FnOnce(&mut Self)) {
        let outer = std::mem::replace(&mut self.prefix, prefix);
        look(self);
        self.prefix = outer;
    }

    fn at_most(&mut self, field: &str, count: usize, max: usize) {
        if count > max {
            self.add(field, format!("{count} entries; the limit is {max}"));
        }
    }
}

/// Problems of a VM's wish, whether its short forms are written out or not.
pub fn vm(spec: &VmSpec) -> Vec<Problem> {
    let mut found = Found::new();
    vm::look(spec, &mut found);
    devices::look(spec, &mut found);
    found.problems
}

/// Writes short forms out, as the wish is stored: a top-level `image` moves to the first disk, which is made when there is none.
#[must_use]
pub fn normalize(mut spec: VmSpec) -> VmSpec {
    let Some(image) = spec.image.take() else { return spec };
    match spec.disks.first_mut() {
        None => {
            let mut root = Disk::named(Disk::root_name());
            root.image = Some(image);
            spec.disks.push(root);
        }
        Some(first) if first.image.is_none() && first.volume.is_none() && !first.empty => first.image = Some(image),
        // Said twice: `vm` refuses it unless it is the same; the disk's own word stays.
        Some(_) => {}
    }
    spec
}

/// `@FILE` in texts of cloud-init: the CLI puts the file's text there, a server has no business with files of its host.
pub fn unread_files(spec: &VmSpec) -> Vec<Problem> {
    let Some(c) = &spec.cloud_init else { return Vec::new() };
    let keys = c.ssh_keys.iter().enumerate().map(|(n, key)| (format!("ssh_keys[{n}]"), Some(key)));
    let data = [("user_data".to_owned(), c.user_data.as_ref()), ("network_data".to_owned(), c.network_data.as_ref())];
    let unread = keys.chain(data).filter(|(_, text)| text.is_some_and(|t| t.starts_with('@')));
    unread
        .map(|(field, _)| Problem {
            field: format!("cloud_init.{field}"),
            message: "@FILE is read by the vmkeep command; send the file's text".into(),
        })
        .collect()
}

/// Problems of a wish on one host.
pub fn vm_on_host(spec: &VmSpec, host: &NodeFacts) -> Vec<Problem> {
    let mut found = Found::new();
    if spec.memory.size > host.memory {
        let message = format!("{} is more than node {} has ({})", spec.memory.size, host.name, host.memory.human());
        found.add("memory.size", message);
    }
    if spec.memory.max() > host.memory && spec.memory.size <= host.memory {
        let message = format!("{} is more than node {} has ({})", spec.memory.max(), host.name, host.memory.human());
        found.add("memory.max", message);
    }
    let most = host.cpus.saturating_mul(OVERCOMMIT_MAX);
    for (field, wanted) in [("cpus.count", Some(spec.cpus.count)), ("cpus.max", spec.cpus.max)] {
        if let Some(wanted) = wanted.filter(|n| *n > most) {
            let message = format!(
                "{wanted} vCPUs on the {} CPUs of node {}; the limit is {OVERCOMMIT_MAX} times as many, {most}",
                host.cpus, host.name
            );
            found.add(field, message);
        }
    }
    found.problems
}

/// Fields in use that only admins may set, as paths; empty = any operator may.
pub fn admin_only(spec: &VmSpec) -> Vec<String> {
    let used = [
        ("shares", !spec.shares.is_empty()),
        ("devices.pci", !spec.devices.pci.is_empty()),
        ("devices.usb", !spec.devices.usb.is_empty()),
        ("libvirt_xml", !spec.libvirt_xml.is_empty()),
    ];
    used.into_iter().filter(|(_, used)| *used).map(|(field, _)| field.to_owned()).collect()
}

pub fn network(spec: &NetworkSpec) -> Vec<Problem> {
    let mut found = Found::new();
    description(&spec.description, &mut found);
    if let Some(bridge) = &spec.bridge {
        found.unless("bridge", forms::interface(bridge));
    }
    match spec.mode {
        NetworkMode::Bridge => {
            if spec.bridge.is_none() {
                found.add("bridge", "mode: bridge needs the name of an existing bridge of the host");
            }
            for (field, set) in [("ipv4", spec.ipv4.is_some()), ("ipv6", spec.ipv6.is_some())] {
                if set {
                    found.add(field, "mode: bridge has the addresses of the network outside; leave this out");
                }
            }
        }
        NetworkMode::Nat => {
            if let Some(bridge) = spec.bridge.as_deref().filter(|b| !b.starts_with("vmk")) {
                found.add("bridge", format!("'{bridge}' must begin with 'vmk' in mode: nat; vmkeep makes it, and touches no other bridge"));
            }
            if let Some(text) = &spec.ipv4 {
                found.unless("ipv4", forms::gateway_v4(text));
            }
            if let Some(text) = &spec.ipv6 {
                found.unless("ipv6", forms::gateway_v6(text));
            }
        }
    }
    if let Some(mtu) = spec.mtu {
        found.unless("mtu", forms::mtu(mtu));
        if spec.ipv6.is_some() && (68..1280).contains(&mtu) {
            found.add("mtu", "IPv6 needs at least 1280");
        }
    }
    found.unless("domain", forms::domain(&spec.domain));
    found.problems
}

pub fn image(spec: &ImageSpec) -> Vec<Problem> {
    let mut found = Found::new();
    description(&spec.description, &mut found);
    placement::labels("labels", &spec.labels, &mut found);
    match &spec.source {
        ImageSource::Url { url, sha256 } => {
            found.unless("source.url", forms::url(url));
            sha256_form(sha256.as_deref(), &mut found);
        }
        ImageSource::Upload { upload: _, sha256 } => sha256_form(sha256.as_deref(), &mut found),
        ImageSource::Build { recipe: _ } | ImageSource::Volume { volume: _ } => {}
    }
    found.problems
}

fn sha256_form(sha256: Option<&str>, found: &mut Found) {
    if let Some(sum) = sha256
        && (sum.len() != 64 || !sum.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        found.add("source.sha256", "a SHA-256 is 64 hexadecimal digits, as `sha256sum FILE` prints it");
    }
}

/// The wish for a volume of its own (`POST /v1/volumes`).
pub fn volume(size: Option<ByteCount>, format: DiskFormat, image: Option<&Name>) -> Vec<Problem> {
    let mut found = Found::new();
    match (size, image) {
        (None, None) => found.add("size", "an empty volume needs a size, like 20G"),
        (Some(size), _) => found.unless("size", forms::disk_size(size)),
        (None, Some(_)) => {}
    }
    if format == DiskFormat::Raw && image.is_some() {
        found.add("format", "a volume cloned from an image is qcow2 (copy-on-write); leave the format out");
    }
    found.problems
}

/// Problems of what people say about a node.
pub fn node(spec: &NodeSpec) -> Vec<Problem> {
    let mut found = Found::new();
    placement::node(spec, &mut found);
    found.problems
}

/// Whether a folder, as it is written or where its links lead, may hold a pool.
///
/// # Errors
/// Why it may not.
pub fn pool_folder(path: &str) -> Result<(), String> {
    forms::pool_path(path)
}

/// Problems of a pool's wish.
pub fn pool(spec: &PoolSpec) -> Vec<Problem> {
    let mut found = Found::new();
    description(&spec.description, &mut found);
    match &spec.driver {
        PoolDriver::Dir { path, .. } => found.unless("path", forms::pool_path(path)),
    }
    found.problems
}

fn description(text: &str, found: &mut Found) {
    if text.chars().count() > DESCRIPTION_CHARS_MAX {
        found.add("description", format!("longer than {DESCRIPTION_CHARS_MAX} characters"));
    }
    if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        found.add("description", "control characters are not allowed");
    }
}
