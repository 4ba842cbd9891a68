//! A seed as the wish that it was made from: what a lost store knew of its guest's cloud-init.
//!
//! ```text
//!  seed ─► meta-data, user-data, network-config ─► wish ─► made again ─► the same bytes? ─yes─► that wish
//!                                                                                        └no──► None
//! ```
//! Only a wish that makes the same seed again is taken: a guest would take another one for a change, or for a new instance. So a seed of
//! a version that wrote otherwise is None, and stays as a file that nobody writes anew.

use std::io::{Cursor, Read};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;
use vmkeep_types::vm::CloudInit;

use super::{Guest, IMAGE_BYTES, META_DATA, NETWORK_CONFIG, USER_DATA, network_config};

/// A file that has the size of a seed; None: there is none, or it is something else.
pub fn read(path: &Path) -> Option<Vec<u8>> {
    let found = std::fs::metadata(path).ok()?;
    if !found.is_file() || found.len() != IMAGE_BYTES as u64 {
        return None;
    }
    std::fs::read(path).ok()
}

/// The wish that makes this seed for this guest, and which instance it makes of it.
pub fn read_back(image: &[u8], guest: &Guest<'_>) -> Option<(CloudInit, u32)> {
    let [meta, user, network] = files(image)?;
    let meta: Value = serde_json::from_str(&meta).ok()?;
    let instance = match meta["instance-id"].as_str()?.strip_prefix(&guest.vm.to_string())? {
        "" => 0,
        again => again.strip_prefix('-')?.parse().ok()?,
    };
    let (ours, theirs) = parts(&user)?;
    let mut wish = wish(&serde_json::from_str(ours.strip_prefix("#cloud-config\n")?).ok()?)?;
    wish.hostname = meta["local-hostname"].as_str().filter(|name| *name != guest.spec.name.as_str()).map(str::to_owned);
    wish.user_data = theirs.map(str::to_owned);
    let guest = Guest { instance, ..*guest };
    // The domain does not tell what addresses were wished.
    wish.network_data = (network_config(&guest, &wish) != network).then_some(network);
    (guest.image(&wish).ok()? == image).then_some((wish, instance))
}

fn files(image: &[u8]) -> Option<[String; 3]> {
    let disk = fatfs::FileSystem::new(Cursor::new(image.to_vec()), fatfs::FsOptions::new()).ok()?;
    let file = |name: &str| {
        let mut text = String::new();
        disk.root_dir().open_file(name).ok()?.read_to_string(&mut text).ok()?;
        Some(text)
    };
    Some([file(META_DATA)?, file(USER_DATA)?, file(NETWORK_CONFIG)?])
}

/// Our part of the user-data, and theirs where there is one: see `multipart`.
fn parts(user_data: &str) -> Option<(&str, Option<&str>)> {
    let Some(rest) = user_data.strip_prefix("Content-Type: multipart/mixed; boundary=\"") else { return Some((user_data, None)) };
    let (boundary, rest) = rest.split_once('"')?;
    let begin = format!("--{boundary}\n");
    let (_, rest) = rest.split_once(&begin)?;
    let (theirs, rest) = rest.split_once(&begin)?;
    let theirs = theirs.strip_suffix('\n')?;
    // One with MIME headers of its own stands without ours.
    let theirs = theirs.split_once("\nMerge-Type: ").and_then(|(_, rest)| rest.split_once("\n\n")).map_or(theirs, |(_, text)| text);
    let (_, ours) = rest.split_once("\n\n")?;
    let ours = ours.strip_suffix(&format!("\n--{boundary}--\n"))?;
    Some((ours, Some(theirs)))
}

/// What `cloud_config` made this of.
fn wish(config: &Value) -> Option<CloudInit> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut users: Vec<Value> = of(&config["users"])?;
    if !users.is_empty() {
        // The image's own, whom we put before them.
        users.remove(0);
    }
    Some(CloudInit {
        user: text(&config["user"]["name"]),
        users,
        password: text(&config["password"]),
        password_expires: config["chpasswd"]["expire"].as_bool().unwrap_or_default(),
        ssh_keys: of(&config["ssh_authorized_keys"])?,
        timezone: text(&config["timezone"]),
        locale: text(&config["locale"]),
        packages: of(&config["packages"])?,
        ..CloudInit::default()
    })
}

/// Empty where it is not said.
fn of<T: DeserializeOwned>(list: &Value) -> Option<Vec<T>> {
    if list.is_null() { Some(Vec::new()) } else { serde_json::from_value(list.clone()).ok() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;
    use vmkeep_types::ids::VmId;
    use vmkeep_types::name::Name;
    use vmkeep_types::vm::VmSpec;

    use super::*;

    const VM: VmId = VmId(uuid::Uuid::from_u128(7));

    fn spec(more: &Value) -> VmSpec {
        let mut whole = json!({"name": "web", "nics": [{"name": "lan"}]});
        whole.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        serde_json::from_value(whole).expect("a wish")
    }

    /// The seed of this wish as another store knew it, read back by one that knows what the domain tells.
    fn back(more: Value, instance: u32) -> Option<(CloudInit, u32)> {
        let (wished, macs) = (spec(&more), BTreeMap::from([(Name::known("lan"), "52:54:00:aa:bb:cc".to_owned())]));
        let image =
            Guest { vm: VM, instance, spec: &wished, macs: &macs }.image(wished.cloud_init.as_ref().expect("a wish")).expect("it fits");
        read_back(&image, &Guest { vm: VM, instance: 0, spec: &spec(&json!({})), macs: &macs })
    }

    fn check(cloud_init: Value) {
        let wished: CloudInit = serde_json::from_value(cloud_init.clone()).expect("a wish");
        assert_eq!(back(json!({"cloud_init": cloud_init}), 0), Some((wished, 0)));
    }

    #[test]
    fn every_wish_is_read_back_as_it_was() {
        check(json!({}));
        check(json!({"hostname": "other", "user": "alice", "ssh_keys": ["ssh-ed25519 AAAA a", "ssh-rsa BBBB b"]}));
        check(json!({"user": "alice", "password": "s3cret \" ü", "password_expires": true, "timezone": "UTC", "locale": "C.UTF-8"}));
        check(json!({"users": [{"name": "bob", "passwd": "x"}], "packages": ["nginx"]}));
        for theirs in [
            "#cloud-config\nruncmd:\n  - [ls]\n",
            "#!/bin/sh\necho\n\n\nMerge-Type: x\n\ny",
            "Content-Type: text/x-shellscript\n\n#!/bin/sh\n",
        ] {
            check(json!({"user_data": theirs}));
        }
        check(json!({"network_data": "version: 2\n"}));
    }

    #[test]
    fn an_instance_of_its_own_is_told() {
        assert_eq!(back(json!({}), 3).expect("read back").1, 3);
    }

    #[test]
    fn addresses_that_the_domain_does_not_tell_stay_as_network_data() {
        let (wish, _) = back(json!({"nics": [{"name": "lan", "addresses": ["10.9.0.5/24"]}]}), 0).expect("read back");
        assert!(wish.network_data.expect("as it was written").contains("10.9.0.5/24"));
    }

    #[test]
    fn what_would_not_be_the_same_again_is_left_alone() {
        let (spec, macs) = (spec(&json!({})), BTreeMap::new());
        let guest = Guest { vm: VM, instance: 0, spec: &spec, macs: &macs };
        let image = guest.image(&CloudInit::default()).expect("it fits");
        let other = Guest { vm: VmId(uuid::Uuid::from_u128(8)), ..guest };
        assert_eq!(read_back(&image, &other), None, "another VM's");
        let mut touched = image.clone();
        *touched.last_mut().expect("bytes") ^= 1;
        assert_eq!(read_back(&touched, &guest), None, "not as vmkeep writes it");
        assert_eq!(read_back(b"nonsense", &guest), None);
    }
}
