//! The cloud-init seed (NoCloud): a small FAT image labelled CIDATA with user-data, meta-data and network-config.
//!
//! The instance id is the VM's UUID, so that a guest applies it once in its life, and again after `vm reinit`. The file holds keys and perhaps a password:
//! mode 0600, written beside and renamed over, never logged. A seed that would be the same is left alone.

mod back;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::{Map, Value, json};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::order::Order;
use vmkeep_types::user_data::{self, UserData};
use vmkeep_types::vm::{CloudInit, VmSpec};

pub use self::back::{read, read_back};

/// A FAT12 volume; user-data over this is refused.
const IMAGE_BYTES: usize = 1 << 20;
const META_DATA: &str = "meta-data";
const USER_DATA: &str = "user-data";
const NETWORK_CONFIG: &str = "network-config";
/// cloud-init reads any size; this leaves room for the rest of the volume.
const USER_DATA_BYTES_MAX: usize = 768 << 10;

/// Whose seed it is.
#[derive(Clone, Copy)]
pub struct Guest<'a> {
    pub vm: VmId,
    /// See `VmRecord::instance`.
    pub instance: u32,
    pub spec: &'a VmSpec,
    /// Of NICs whose MAC was chosen for them.
    pub macs: &'a BTreeMap<Name, String>,
}

impl<'a> From<&'a Order> for Guest<'a> {
    fn from(order: &'a Order) -> Self {
        Self { vm: order.vm, instance: order.instance, spec: &order.spec, macs: &order.choices.macs }
    }
}

impl Guest<'_> {
    fn image(&self, wish: &CloudInit) -> Result<Vec<u8>, Error> {
        image(&[(META_DATA, meta_data(self, wish)), (USER_DATA, user_data(wish)?), (NETWORK_CONFIG, network_config(self, wish))])
    }
}

/// Writes the seed of an order with cloud-init to `path`.
///
/// # Errors
/// The data do not fit, or the file cannot be written.
pub fn write(order: &Order, path: &Path) -> Result<(), Error> {
    let Some(wish) = &order.spec.cloud_init else { return Ok(()) };
    let image = Guest::from(order).image(wish)?;
    if std::fs::read(path).is_ok_and(|old| old == image) {
        return Ok(());
    }
    put(path, &image).map_err(|e| {
        let code = if e.raw_os_error() == Some(libc::ENOSPC) { Code::NoCapacity } else { Code::Refused };
        Error::new(code, format!("cannot write the cloud-init seed {}: {e}", path.display()))
    })
}

fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let fresh = path.with_extension("new");
    let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)
}

/// YAML is a superset of JSON, so JSON needs no second writer.
fn text(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("JSON values are plain data")
}

fn meta_data(guest: &Guest<'_>, wish: &CloudInit) -> String {
    let hostname = wish.hostname.clone().unwrap_or_else(|| guest.spec.name.to_string());
    let instance = match guest.instance {
        0 => guest.vm.to_string(),
        again => format!("{}-{again}", guest.vm),
    };
    text(&json!({"instance-id": instance, "local-hostname": hostname}))
}

fn user_data(wish: &CloudInit) -> Result<String, Error> {
    let ours = format!("#cloud-config\n{}\n", text(&cloud_config(wish)));
    let whole = match wish.user_data.as_deref().map(str::trim_start) {
        None | Some("") => ours,
        Some(raw) => multipart(&ours, raw)?,
    };
    if whole.len() > USER_DATA_BYTES_MAX {
        return Err(Error::new(
            Code::TooLarge,
            format!("cloud_init has {} bytes of user-data, the limit is {USER_DATA_BYTES_MAX}", whole.len()),
        ));
    }
    Ok(whole)
}

fn cloud_config(wish: &CloudInit) -> Value {
    let mut config = Map::new();
    let mut put = |key: &str, value: Value| drop(config.insert(key.into(), value));
    let mut user = Map::new();
    if let Some(name) = &wish.user {
        user.insert("name".into(), json!(name));
        user.insert("sudo".into(), json!("ALL=(ALL) NOPASSWD:ALL"));
        user.insert("shell".into(), json!("/bin/bash"));
    }
    if let Some(password) = &wish.password {
        put("password", json!(password));
        put("chpasswd", json!({"expire": wish.password_expires}));
        user.insert("lock_passwd".into(), json!(false));
    }
    // For the console only: a password never opens ssh.
    put("ssh_pwauth", json!(false));
    if !wish.ssh_keys.is_empty() {
        put("ssh_authorized_keys", json!(wish.ssh_keys));
        user.insert("ssh_authorized_keys".into(), json!(wish.ssh_keys));
    }
    if wish.user.is_some() {
        put("user", Value::Object(user));
    }
    if !wish.users.is_empty() {
        let all: Vec<Value> = std::iter::once(json!("default")).chain(wish.users.iter().cloned()).collect();
        put("users", json!(all));
    }
    if let Some(timezone) = &wish.timezone {
        put("timezone", json!(timezone));
    }
    if let Some(locale) = &wish.locale {
        put("locale", json!(locale));
    }
    if !wish.packages.is_empty() {
        put("packages", json!(wish.packages));
        put("package_update", json!(true));
    }
    Value::Object(config)
}

/// Both parts as cloud-init merges them: ours last, and it replaces nothing of theirs. A message of theirs with MIME headers is
/// a part as it stands.
fn multipart(ours: &str, theirs: &str) -> Result<String, Error> {
    let unknown = || {
        Error::invalid("cloud_init.user_data begins with nothing that cloud-init knows")
            .hint("it begins with #cloud-config, #!, or MIME headers")
    };
    let kind = user_data::kind(theirs).ok_or_else(unknown)?;
    let mut boundary = String::from("==vmkeep==");
    while ours.contains(&boundary) || theirs.contains(&boundary) {
        boundary.push('=');
    }
    let part = |kind: UserData, text: &str| match kind {
        UserData::Plain(mime) => format!(
            "--{boundary}\nContent-Type: {mime}; charset=\"utf-8\"\nMerge-Type: list(append)+dict(recurse_array,no_replace)+str()\n\n{text}\n"
        ),
        UserData::Mime => format!("--{boundary}\n{text}\n"),
    };
    let parts = [part(kind, theirs), part(UserData::Plain("text/cloud-config"), ours)].concat();
    Ok(format!("Content-Type: multipart/mixed; boundary=\"{boundary}\"\nMIME-Version: 1.0\n\n{parts}--{boundary}--\n"))
}

/// Network config version 2, each NIC matched by its MAC: names differ between guests, addresses do not.
fn network_config(guest: &Guest<'_>, wish: &CloudInit) -> String {
    if let Some(raw) = &wish.network_data {
        return raw.clone();
    }
    let mut ethernets = Map::new();
    for nic in &guest.spec.nics {
        let chosen = guest.macs.get(&nic.name);
        let Some(mac) = (if nic.mac == "auto" { chosen } else { Some(&nic.mac) }) else { continue };
        let has = |word: &str| nic.addresses.iter().any(|a| a == word);
        let fixed: Vec<&String> = nic.addresses.iter().filter(|a| *a != "dhcp" && *a != "slaac").collect();
        let mut config = json!({"match": {"macaddress": mac.to_lowercase()}, "dhcp4": has("dhcp")});
        if has("slaac") {
            config["accept-ra"] = json!(true);
        }
        if !fixed.is_empty() {
            config["addresses"] = json!(fixed);
        }
        if let Some(gateway) = &nic.gateway {
            // Not "default": of cloud-init 22.4 (Debian 12) only the netplan renderer takes the word, the others give up on all NICs.
            let to = if gateway.contains(':') { "::/0" } else { "0.0.0.0/0" };
            config["routes"] = json!([{"to": to, "via": gateway}]);
        }
        if !nic.dns.is_empty() {
            config["nameservers"] = json!({"addresses": nic.dns});
        }
        ethernets.insert(nic.name.to_string(), config);
    }
    text(&json!({"version": 2, "ethernets": ethernets}))
}

fn image(files: &[(&str, String)]) -> Result<Vec<u8>, Error> {
    let io = |e: std::io::Error| Error::internal(format!("cannot build the seed's file system: {e}"));
    let mut disk = Cursor::new(vec![0u8; IMAGE_BYTES]);
    let options = fatfs::FormatVolumeOptions::new().volume_label(*b"CIDATA     ").volume_id(0x766d_6b70);
    fatfs::format_volume(&mut disk, options).map_err(io)?;
    {
        // A fixed clock: the same wish gives the same bytes.
        let options = fatfs::FsOptions::new().time_provider(&EPOCH);
        let fs = fatfs::FileSystem::new(&mut disk, options).map_err(io)?;
        for (name, content) in files {
            let mut file = fs.root_dir().create_file(name).map_err(io)?;
            file.truncate().map_err(io)?;
            file.write_all(content.as_bytes()).map_err(io)?;
        }
        fs.unmount().map_err(io)?;
    }
    Ok(disk.into_inner())
}

#[derive(Debug)]
struct FixedClock;

static EPOCH: FixedClock = FixedClock;

impl fatfs::TimeProvider for FixedClock {
    fn get_current_date(&self) -> fatfs::Date {
        fatfs::Date { year: 2026, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> fatfs::DateTime {
        fatfs::DateTime { date: self.get_current_date(), time: fatfs::Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(theirs: &str) -> Result<String, Error> {
        super::user_data(&CloudInit { user_data: Some(theirs.into()), ..CloudInit::default() })
    }

    #[test]
    fn each_kind_of_user_data_is_labelled_as_what_it_is() {
        for (prefix, mime) in user_data::KINDS {
            let made = whole(&format!("{prefix}\nbody\n")).expect("taken");
            assert!(made.contains(&format!("\nContent-Type: {mime}; charset=\"utf-8\"\nMerge-Type: ")), "{prefix}:\n{made}");
            assert_eq!(made.matches("\n--==vmkeep==\n").count(), 2, "theirs and ours:\n{made}");
        }
        assert!(whole("runcmd: []").is_err());
    }

    #[test]
    fn a_mime_message_is_nested_as_it_stands() {
        let theirs = "Content-Type: multipart/mixed; boundary=\"==vmkeep==\"\nMIME-Version: 1.0\n\n--==vmkeep==\n\
            Content-Type: text/x-shellscript\n\n#!/bin/sh\n--==vmkeep==--\n";
        let made = whole(theirs).expect("taken");
        assert!(made.contains(&format!("\n--==vmkeep===\n{theirs}\n--==vmkeep===\nContent-Type: text/cloud-config;")), "{made}");
    }

    #[test]
    fn a_password_of_one_login_expires_with_it() {
        for expires in [false, true] {
            let wish = CloudInit { password: Some("secret".into()), password_expires: expires, ..CloudInit::default() };
            assert_eq!(cloud_config(&wish)["chpasswd"], json!({"expire": expires}));
        }
    }
}
