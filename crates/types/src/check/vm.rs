//! A VM's own fields: CPUs, memory, firmware, policy, display, cloud-init.

use std::collections::BTreeSet;

use super::{Found, description, devices, forms, placement};
use crate::units::{ByteCount, Seconds};
use crate::vm::{CloudInit, CpuModel, Cpus, Display, Firmware, Ha, Listen, MachineFamily, Memory, VmSpec, WatchdogModel};

/// vCPUs of one VM: what QEMU's q35 machines are tested with.
pub const CPUS_MAX: u32 = 512;

/// vCPUs of a `pc` machine: it has no x2APIC.
const CPUS_MAX_PC: u32 = 255;

/// Below this no kernel of today boots.
pub const MEMORY_MIN: ByteCount = ByteCount::from_mib(16);

/// More than any host of today has; larger is a slip of the pen.
pub const MEMORY_MAX: ByteCount = ByteCount::from_gib(16 << 10);

const FEATURES_MAX: usize = 100;
const START_ORDER_MAX: u16 = 9999;
const START_DELAY_MAX: Seconds = Seconds::new(3600);
const STOP_TIMEOUT_MAX: Seconds = Seconds::new(86400);
/// Failure times are kept one by one.
const RESTARTS_MAX: u32 = 100;
const RESTART_WITHIN_MAX: Seconds = Seconds::new(7 * 86400);
const SERIAL_LOG_MIN: ByteCount = ByteCount::from_bytes(64 << 10);
const SERIAL_LOG_MAX: ByteCount = ByteCount::from_gib(1);
/// What the VNC protocol's password check reads.
const VNC_PASSWORD_BYTES: usize = 8;
const SSH_KEYS_MAX: usize = 100;
const SSH_KEY_BYTES_MAX: usize = 16 << 10;
const USERS_MAX: usize = 100;
const PACKAGES_MAX: usize = 500;
/// The seed is read by the guest at each boot, and the wish is kept in the store.
const USER_DATA_BYTES_MAX: usize = 256 << 10;

pub(super) fn look(spec: &VmSpec, found: &mut Found) {
    description(&spec.description, found);
    placement::labels("labels", &spec.labels, found);
    found.under("placement".into(), |f| placement::look(spec, f));
    policy(spec, found);
    found.under("cpus".into(), |f| cpus(&spec.cpus, spec.machine, f));
    found.under("cpu".into(), |f| cpu_model(&spec.cpu, f));
    found.under("memory".into(), |f| memory(&spec.memory, f));
    firmware(spec, found);
    if let Some(display) = &spec.display {
        found.under("display".into(), |f| self::display(display, f));
    }
    let log = spec.serial.log;
    if log != ByteCount::ZERO && !(SERIAL_LOG_MIN..=SERIAL_LOG_MAX).contains(&log) {
        found.add("serial.log", format!("{log} is out of range; 0B for no log, or {SERIAL_LOG_MIN} to {SERIAL_LOG_MAX}"));
    }
    if let Some(ha) = &spec.ha {
        self::ha(ha, found);
    }
    if let Some(cloud_init) = &spec.cloud_init {
        found.under("cloud_init".into(), |f| self::cloud_init(cloud_init, f));
    }
}

fn ha(ha: &Ha, found: &mut Found) {
    if !(1..=5).contains(&ha.priority) {
        found.add("ha.priority", format!("{} is out of range; 1 (first) to 5", ha.priority));
    }
    if let Some(max) = ha.max_restart.filter(|max| *max > RESTARTS_MAX) {
        found.add("ha.max_restart", format!("{max} is out of range; at most {RESTARTS_MAX}"));
    }
    if ha.max_relocate > RESTARTS_MAX {
        found.add("ha.max_relocate", format!("{} is out of range; at most {RESTARTS_MAX}", ha.max_relocate));
    }
}

fn policy(spec: &VmSpec, found: &mut Found) {
    if spec.start.order > START_ORDER_MAX {
        found.add("start.order", format!("{} is out of range; 0 to {START_ORDER_MAX}", spec.start.order));
    }
    let mut at_most = |field: &str, value: Seconds, max: Seconds| {
        if value > max {
            found.add(field, format!("{value} is too long; at most {max}"));
        }
    };
    at_most("start.delay", spec.start.delay, START_DELAY_MAX);
    at_most("stop_timeout", spec.stop_timeout, STOP_TIMEOUT_MAX);
    at_most("restart.within", spec.restart.within, RESTART_WITHIN_MAX);
    if spec.restart.max > RESTARTS_MAX {
        found.add("restart.max", format!("{} is out of range; 0 to {RESTARTS_MAX}", spec.restart.max));
    }
    if spec.restart.within.get() == 0 {
        found.add("restart.within", "0s counts nothing; write a time like 10m");
    }
    if spec.start.wait_for == crate::vm::WaitFor::Agent && !spec.agent {
        found.add("start.wait_for", "it waits for the guest agent, and agent is false");
    }
}

fn cpus(cpus: &Cpus, machine: MachineFamily, found: &mut Found) {
    let most = match machine {
        MachineFamily::Q35 => CPUS_MAX,
        MachineFamily::Pc => CPUS_MAX_PC,
    };
    let mut in_range = |field: &str, n: u32| {
        if !(1..=most).contains(&n) {
            found.add(field, format!("{n} is out of range; 1 to {most}"));
        }
    };
    in_range("count", cpus.count);
    if let Some(max) = cpus.max {
        in_range("max", max);
        if max < cpus.count {
            found.add("max", format!("{max} is less than count ({})", cpus.count));
        }
    }
    if [cpus.sockets, cpus.cores, cpus.threads].iter().all(Option::is_none) {
        return;
    }
    let part = |n: Option<u32>| n.unwrap_or(1);
    for (field, value) in [("sockets", cpus.sockets), ("cores", cpus.cores), ("threads", cpus.threads)] {
        if value == Some(0) {
            found.add(field, "0 is out of range; at least 1");
        }
    }
    let product = [cpus.sockets, cpus.cores, cpus.threads].map(part).map(u128::from).iter().product::<u128>();
    if product != 0 && product != u128::from(cpus.max()) {
        let (sockets, cores, threads) = (part(cpus.sockets), part(cpus.cores), part(cpus.threads));
        let which = if cpus.max.is_some() { "max" } else { "count" };
        found.add("", format!("{sockets} sockets x {cores} cores x {threads} threads are {product}, and {which} is {}", cpus.max()));
    }
}

fn cpu_model(cpu: &CpuModel, found: &mut Found) {
    let word = |t: &str| !t.is_empty() && t.len() <= 64 && t.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !word(&cpu.model) {
        let message = format!(
            "'{}' is no CPU model; auto, host, cluster, max, or a name from `qemu-system-x86_64 -cpu help`",
            devices::shown(&cpu.model)
        );
        found.add("model", message);
    }
    found.at_most("features", cpu.features.len(), FEATURES_MAX);
    for feature in cpu.features.keys().take(FEATURES_MAX).filter(|f| !word(f)) {
        found.add(format!("features.{}", devices::shown(feature)), "no CPU feature has such a name; letters, digits, '-', '_' and '.'");
    }
}

fn memory(memory: &Memory, found: &mut Found) {
    let mut in_range = |field: &str, size: ByteCount| {
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&size) {
            found.add(field, format!("{size} is out of range; {MEMORY_MIN} to {MEMORY_MAX}"));
        } else if !size.bytes().is_multiple_of(1 << 20) {
            found.add(field, format!("{size} is not a whole number of M"));
        } else if memory.hugepages && !size.bytes().is_multiple_of(2 << 20) {
            found.add(field, format!("{size} is not a multiple of 2M, the size of a huge page"));
        }
    };
    in_range("size", memory.size);
    if let Some(max) = memory.max {
        in_range("max", max);
        if max < memory.size {
            found.add("max", format!("{max} is less than size ({})", memory.size));
        }
        if !memory.balloon && max != memory.size {
            found.add("max", "memory grows by the balloon, and balloon is false");
        }
    }
}

fn firmware(spec: &VmSpec, found: &mut Found) {
    if spec.secure_boot == Some(true) {
        if spec.firmware == Firmware::Bios {
            found.add("secure_boot", "it needs firmware: uefi");
        }
        if spec.machine == MachineFamily::Pc {
            found.add("secure_boot", "it needs machine: q35");
        }
    }
    if let Some(watchdog) = &spec.watchdog
        && watchdog.model == WatchdogModel::Itco
        && spec.machine == MachineFamily::Pc
    {
        found.add("watchdog.model", "itco is a part of machine: q35; use i6300esb");
    }
}

fn display(display: &Display, found: &mut Found) {
    match &display.password {
        None if display.listen == Listen::Tcp => {
            found.add("password", "listen: tcp needs a password: everybody who reaches the port is at the console")
        }
        None => {}
        Some(p) if p.is_empty() => found.add("password", "it is empty"),
        Some(p) if p.len() > VNC_PASSWORD_BYTES => {
            found.add("password", format!("VNC reads only the first {VNC_PASSWORD_BYTES} characters; a longer one only looks safer"));
        }
        Some(p) if p.chars().any(char::is_control) => found.add("password", "control characters are not allowed"),
        Some(_) => {}
    }
}

fn cloud_init(c: &CloudInit, found: &mut Found) {
    if let Some(hostname) = &c.hostname {
        found.unless("hostname", forms::hostname(hostname));
    }
    if let Some(user) = &c.user {
        found.unless("user", user_name(user));
    }
    found.at_most("users", c.users.len(), USERS_MAX);
    for (position, user) in c.users.iter().take(USERS_MAX).enumerate() {
        found.unless(&format!("users[{position}]"), user_entry(user));
    }
    if c.password.as_ref().is_some_and(|p| p.is_empty() || p.len() > 256 || p.chars().any(char::is_control)) {
        found.add("password", "1 to 256 characters, none of them a control character");
    }
    found.at_most("ssh_keys", c.ssh_keys.len(), SSH_KEYS_MAX);
    for (position, key) in c.ssh_keys.iter().take(SSH_KEYS_MAX).enumerate() {
        found.unless(&format!("ssh_keys[{position}]"), ssh_key(key));
    }
    for (field, value) in [("timezone", &c.timezone), ("locale", &c.locale)] {
        let word = |t: &str| !t.is_empty() && t.len() <= 64 && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_+-.@".contains(&b));
        if let Some(value) = value.as_ref().filter(|v| !word(v)) {
            let example = if field == "timezone" { "Europe/Berlin" } else { "en_US.UTF-8" };
            found.add(field, format!("'{}' is no {field}; write it like {example}", devices::shown(value)));
        }
    }
    packages(&c.packages, found);
    if let Some(data) = &c.user_data {
        found.unless("user_data", user_data(data));
    }
    if c.network_data.as_ref().is_some_and(|d| d.len() > USER_DATA_BYTES_MAX) {
        found.add("network_data", format!("larger than {} KiB", USER_DATA_BYTES_MAX >> 10));
    }
}

fn packages(packages: &[String], found: &mut Found) {
    found.at_most("packages", packages.len(), PACKAGES_MAX);
    let good = |p: &str| {
        let rest = p.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.:=~_".contains(&b));
        p.len() <= 200 && rest && p.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    let mut seen = BTreeSet::new();
    for (position, package) in packages.iter().take(PACKAGES_MAX).enumerate() {
        if !good(package) {
            found.add(format!("packages[{position}]"), format!("'{}' is no package name", devices::shown(package)));
        } else if !seen.insert(package) {
            found.add(format!("packages[{position}]"), format!("'{package}' is listed twice"));
        }
    }
}

fn user_name(name: &str) -> Result<(), String> {
    let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    if first && rest && name.len() <= 32 {
        return Ok(());
    }
    Err(format!("'{}' is no user name; up to 32 of a-z, 0-9, '_' and '-', beginning with a letter", devices::shown(name)))
}

/// cloud-init's own form: a name, or a map with `name`.
fn user_entry(user: &serde_json::Value) -> Result<(), String> {
    let name = match user {
        serde_json::Value::String(name) => Some(name.as_str()),
        serde_json::Value::Object(map) => map.get("name").and_then(serde_json::Value::as_str),
        _ => None,
    };
    name.map_or_else(|| Err("a user is a name, or a map with a name and cloud-init's other fields".into()), user_name)
}

const SSH_KEY_TYPES: [&str; 4] = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];

fn ssh_key(key: &str) -> Result<(), String> {
    if key.contains("PRIVATE KEY") {
        return Err("this is a private key: never hand it out; write the public one (id_….pub)".into());
    }
    // Read by the CLI before it is sent.
    if key.starts_with('@') {
        return Ok(());
    }
    let mut parts = key.split_whitespace();
    let kind = parts.next().is_some_and(|k| SSH_KEY_TYPES.iter().any(|t| k.starts_with(t)));
    let body = parts.next().is_some_and(|b| b.len() >= 16 && b.bytes().all(|c| c.is_ascii_alphanumeric() || b"+/=".contains(&c)));
    if kind && body && key.len() <= SSH_KEY_BYTES_MAX && !key.trim_end().chars().any(char::is_control) {
        return Ok(());
    }
    Err("it is no public SSH key; one line like `ssh-ed25519 AAAA… name`, or @FILE".into())
}

fn user_data(data: &str) -> Result<(), String> {
    if data.len() > USER_DATA_BYTES_MAX {
        return Err(format!("larger than {} KiB", USER_DATA_BYTES_MAX >> 10));
    }
    // @FILE is read by the CLI before it is sent.
    if data.starts_with('@') || crate::user_data::kind(data).is_some() {
        return Ok(());
    }
    let known: Vec<&str> = crate::user_data::KINDS.iter().map(|(prefix, _)| *prefix).collect();
    Err(format!("cloud-init ignores it unless it begins with MIME headers or one of: {}", known.join(", ")))
}
