//! How two wishes for one VM differ, field by field, what each difference costs, and which ones are refused.
//!
//! Lists of devices are compared by name (`disks[root].size`), never by position. What the differences cost is what libvirt
//! and QEMU can do to a running domain; a field that no line of [`effect`] names needs a restart.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use vmkeep_types::check;
use vmkeep_types::error::Problem;
use vmkeep_types::image::ImageSpec;
use vmkeep_types::name::Name;
use vmkeep_types::observed::FieldChange;
use vmkeep_types::vm::{Disk, DiskBus, DiskFormat, Firmware, Nic, VmSpec};

#[cfg(test)]
mod tests;

/// What a change costs a running VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Done while it runs; also what touches no hardware at all.
    Live,
    /// Done at the next cold start.
    Restart,
    /// The guest looks at it in its first boot only: `vmkeep vm reinit`, then a restart.
    Reinit,
}

/// What stands for a field or device that is not there.
pub const ABSENT: &str = "none";

/// What stands for a secret.
const SECRET: &str = "(secret)";

/// Every difference between two wishes, in the order of their paths. Secrets are named, never shown.
pub fn changes(old: &VmSpec, new: &VmSpec) -> Vec<(FieldChange, Effect)> {
    let (old, new) = (check::normalize(old.clone()), check::normalize(new.clone()));
    let mut found = Vec::new();
    compare("", &whole(&old), &whole(&new), &mut found);
    found.into_iter().map(|change| (effect(&change.field, &old, &new), change)).map(|(e, c)| (shown(c), e)).collect()
}

/// Every difference between two wishes for a network, an image or a pool. VMs see a network's when libvirt starts it again.
pub fn spec_changes<T: Serialize>(old: &T, new: &T) -> Vec<FieldChange> {
    let whole = |spec: &T| serde_json::to_value(spec).expect("a spec has only text keys");
    let mut found = Vec::new();
    compare("", &whole(old), &whole(new), &mut found);
    found
}

/// Changes to an existing image that are refused: what disks were made from does not change under them.
pub fn image_refusals(old: &ImageSpec, new: &ImageSpec) -> Vec<Problem> {
    let way = "import it under another name, and `vmkeep vm rebuild` what is to be made from it";
    let mut problems = Vec::new();
    if old.source != new.source {
        problems.push(Problem { field: "source".into(), message: format!("the image '{}' was made from another source; {way}", old.name) });
    }
    if old.pool != new.pool {
        problems.push(Problem { field: "pool".into(), message: format!("the image lies in pool '{}' and is not moved; {way}", old.pool) });
    }
    problems
}

/// Changes to an existing VM that are refused, each with the way that leads there.
pub fn refusals(old: &VmSpec, new: &VmSpec) -> Vec<Problem> {
    let (old, new) = (check::normalize(old.clone()), check::normalize(new.clone()));
    let mut problems = Vec::new();
    problems.extend(refuse_secure_boot(&old, &new));
    for disk in &new.disks {
        if let Some(before) = old.disks.iter().find(|d| d.name == disk.name) {
            refuse_disk(before, disk, &mut problems);
        }
    }
    problems
}

/// The keys are in the UEFI variables, which are made with the VM and kept: with those of the other kind Secure Boot would be
/// on in the description and off in the guest.
fn refuse_secure_boot(old: &VmSpec, new: &VmSpec) -> Option<Problem> {
    let has_variables = |spec: &VmSpec| spec.firmware != Firmware::Bios;
    let changed = old.secure_boot() != new.secure_boot() && has_variables(old) && has_variables(new);
    changed.then(|| Problem {
        field: "secure_boot".into(),
        message: format!(
            "it is {} for good: its keys are in the UEFI variables, which are made with the VM; write `secure_boot: {0}`, or make a \
             new VM from the disks (`vmkeep vm delete --keep-disks`, then `volume:`)",
            old.secure_boot()
        ),
    })
}

fn refuse_disk(old: &Disk, new: &Disk, problems: &mut Vec<Problem>) {
    let mut refuse = |field: &str, message: String| {
        let field = if field.is_empty() { format!("disks[{}]", new.name) } else { format!("disks[{}].{field}", new.name) };
        problems.push(Problem { field, message });
    };
    if let (Some(from), Some(to)) = (old.size, new.size)
        && to < from
    {
        refuse("size", format!("a disk cannot shrink from {from} to {to}: the guest's file systems would lose their ends"));
    }
    match (source(old), source(new)) {
        (from, to) if from == to => {}
        (Source::Image(from), Source::Image(to)) => {
            refuse("image", format!("the disk was made from '{from}'; `vmkeep vm rebuild` makes it anew from '{to}' and loses its data"));
        }
        (from, to) => {
            let message = format!(
                "it is {from} and cannot become {to}; add a disk with another name, and remove this one (its data is kept as an unused volume)"
            );
            refuse("", message);
        }
    }
    if old.pool != new.pool {
        let message = format!(
            "the data lies in pool '{}' and is not moved by a change of the manifest; add a disk in '{}' and copy",
            old.pool, new.pool
        );
        refuse("pool", message);
    }
    if old.format != new.format && new.format != DiskFormat::Auto {
        refuse("format", "the format of data that is there does not change; add a disk with another name and copy".into());
    }
}

#[derive(PartialEq, Eq)]
enum Source<'a> {
    Image(&'a Name),
    Volume(&'a Name),
    Empty,
}

impl std::fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image(name) => write!(f, "made from image '{name}'"),
            Self::Volume(name) => write!(f, "the volume '{name}'"),
            Self::Empty => write!(f, "an empty disk"),
        }
    }
}

fn source(disk: &Disk) -> Source<'_> {
    match (&disk.image, &disk.volume) {
        (Some(image), _) => Source::Image(image),
        (None, Some(volume)) => Source::Volume(volume),
        (None, None) => Source::Empty,
    }
}

/// What only the seed carries into the guest. A seed where there was none is new to it, and seen at the next start.
fn is_first_boots(field: &str) -> bool {
    field.starts_with("cloud_init.") || nic_field(field).is_some_and(|(_, f)| SEED_ONLY.contains(&top(f)))
}

/// Fields of a NIC that only the seed carries into the guest.
const SEED_ONLY: [&str; 3] = ["addresses", "gateway", "dns"];

/// Fields that no hardware hangs on.
const POLICY: [&str; 10] = ["description", "labels", "protect", "run", "start", "stop_timeout", "restart", "ha", "placement", "image"];

fn effect(field: &str, old: &VmSpec, new: &VmSpec) -> Effect {
    if is_first_boots(field) {
        return Effect::Reinit;
    }
    let live = match top(field) {
        first if POLICY.contains(&first) => true,
        "cpus" => field == "cpus.count" && (old.cpus.count..=old.cpus.max()).contains(&new.cpus.count),
        "memory" => field == "memory.size" && old.memory.balloon && new.memory.size <= old.memory.max(),
        "disks" => disk_field(field).is_some_and(|(name, rest)| disk_live(name, rest, old, new)),
        "nics" => nic_field(field).is_some_and(|(_, rest)| matches!(rest, "" | "link" | "network")),
        "display" => field == "display.password" && [old, new].iter().all(|s| s.display.as_ref().is_some_and(|d| d.password.is_some())),
        "cdroms" => keyed(field, "cdroms").is_some_and(|(_, rest)| rest == "image"),
        _ => false,
    };
    if live { Effect::Live } else { Effect::Restart }
}

fn disk_live(name: &str, rest: &str, old: &VmSpec, new: &VmSpec) -> bool {
    let find = |spec: &VmSpec| spec.disks.iter().find(|d| d.name.as_str() == name).map(|d| d.bus(spec.os));
    match (top(rest), find(old).or_else(|| find(new))) {
        // QEMU plugs SATA and NVMe only into a machine that is off.
        ("", Some(bus)) => matches!(bus, DiskBus::Virtio | DiskBus::Scsi),
        ("size" | "limits", _) => true,
        _ => false,
    }
}

fn disk_field(field: &str) -> Option<(&str, &str)> {
    keyed(field, "disks")
}

fn nic_field(field: &str) -> Option<(&str, &str)> {
    keyed(field, "nics")
}

/// `disks[root].size` → (root, size)
fn keyed<'a>(field: &'a str, list: &str) -> Option<(&'a str, &'a str)> {
    let (name, rest) = field.strip_prefix(list)?.strip_prefix('[')?.split_once(']')?;
    Some((name, rest.strip_prefix('.').unwrap_or(rest)))
}

fn top(field: &str) -> &str {
    field.split(['.', '[']).next().unwrap_or(field)
}

fn whole(spec: &VmSpec) -> Value {
    serde_json::to_value(spec).expect("a spec has only text keys")
}

fn compare(path: &str, old: &Value, new: &Value, found: &mut Vec<FieldChange>) {
    if old == new {
        return;
    }
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(old_items), Value::Array(new_items)) => match (by_name(old_items), by_name(new_items)) {
            (Some(old), Some(new)) => compare_named(path, &old, &new, found),
            _ => found.push(FieldChange { field: path.into(), from: words(path, old), to: words(path, new) }),
        },
        _ => found.push(FieldChange { field: path.into(), from: words(path, old), to: words(path, new) }),
    }
}

fn compare_named(path: &str, old: &BTreeMap<&str, &Value>, new: &BTreeMap<&str, &Value>, found: &mut Vec<FieldChange>) {
    let names: std::collections::BTreeSet<&&str> = old.keys().chain(new.keys()).collect();
    for name in names {
        let field = format!("{path}[{name}]");
        match (old.get(*name), new.get(*name)) {
            (Some(old), Some(new)) => compare(&field, old, new, found),
            (old, new) => {
                let words = |v: Option<&&Value>| v.map_or_else(|| ABSENT.to_owned(), |v| words(path, v));
                found.push(FieldChange { field, from: words(old), to: words(new) });
            }
        }
    }
}

/// Elements by name, where each has one of its own. An empty list fits both ways.
fn by_name(items: &[Value]) -> Option<BTreeMap<&str, &Value>> {
    let named: Option<BTreeMap<&str, &Value>> = items.iter().map(|v| Some((v.get("name")?.as_str()?, v))).collect();
    named.filter(|n| n.len() == items.len())
}

/// A value as people write it; a device without its defaults.
fn words(path: &str, value: &Value) -> String {
    let plain = match (path, value.get("name").and_then(Value::as_str).and_then(|n| n.parse::<Name>().ok())) {
        ("disks", Some(name)) => serde_json::to_value(Disk::named(name)).ok(),
        ("nics", Some(name)) => serde_json::to_value(Nic::named(name)).ok(),
        _ => None,
    };
    match (value, plain) {
        (Value::Object(map), Some(Value::Object(plain))) => {
            let kept: Map<String, Value> =
                map.iter().filter(|(k, v)| *k != "name" && plain.get(*k) != Some(v)).map(|(k, v)| (k.clone(), v.clone())).collect();
            if kept.is_empty() { "{all defaults}".into() } else { flow(&Value::Object(kept)) }
        }
        _ => flow(value),
    }
}

fn flow(value: &Value) -> String {
    match value {
        Value::Null => ABSENT.into(),
        Value::String(s) if s.is_empty() => "''".into(),
        Value::String(s) => s.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let inner = |(k, v): (&String, &Value)| {
                if is_secret(k) && !v.is_null() { format!("{k}: {SECRET}") } else { format!("{k}: {}", flow(v)) }
            };
            format!("{{{}}}", map.iter().map(inner).collect::<Vec<_>>().join(", "))
        }
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// Fields that hold passwords, or text in which people put them.
fn is_secret(field: &str) -> bool {
    matches!(field, "password" | "user_data" | "passwd" | "hashed_passwd" | "plain_text_passwd")
}

fn shown(mut change: FieldChange) -> FieldChange {
    if is_secret(change.field.rsplit('.').next().unwrap_or_default()) {
        for side in [&mut change.from, &mut change.to] {
            if side != ABSENT {
                SECRET.clone_into(side);
            }
        }
    }
    change
}
