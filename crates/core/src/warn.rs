//! What a wish will not do as it may be meant: told by plan, apply and create, and refused by nobody.

use std::collections::BTreeMap;

use vmkeep_types::image::{Found, ImageFacts};
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::{DiskBus, Firmware, Listen, OsFamily, RunPolicy, VmSpec};

/// Says when a VM is larger than what is free on every node now. `free` is what each node measured last; one that measured
/// nothing has room for all we know.
pub fn no_room(memory: ByteCount, free: &[(Name, Option<ByteCount>)]) -> Option<String> {
    let known: Option<Vec<(&Name, ByteCount)>> = free.iter().map(|(node, free)| Some((node, (*free)?))).collect();
    let (node, most) = known?.into_iter().max_by_key(|(_, free)| *free)?;
    let on = if free.len() == 1 { format!("on '{node}'") } else { format!("on any node ('{node}' has most)") };
    (memory > most).then(|| {
        format!(
            "its memory ({}) is more than the {} that are free {on} now: the host may swap, or the kernel end a process",
            memory.human(),
            most.human()
        )
    })
}

/// Warnings about `new`, of which `old` is there already. `images` are those it names, as far as it is known what they are.
pub fn warnings(new: &VmSpec, old: Option<&VmSpec>, images: &BTreeMap<Name, Option<ImageFacts>>, nodes: usize) -> Vec<String> {
    let mut told = Vec::new();
    told.extend(windows_without_drivers(new, images));
    told.extend(no_cloud_init(new, images));
    told.extend(small_for_uefi(new, old, images));
    for disk in old.iter().flat_map(|old| &old.disks) {
        if !new.disks.iter().any(|there| there.name == disk.name) {
            told.push(format!("disk '{}' is detached, and its data kept as an unused volume (vmkeep volume list)", disk.name));
        }
    }
    if new.run == RunPolicy::Halted && old.is_some_and(|old| old.run != RunPolicy::Halted) {
        told.push("run: halted shuts the VM down, if it runs, and keeps it off".into());
    }
    if new.display.as_ref().is_some_and(|display| display.password.is_some() && display.listen == Listen::Socket) {
        told.push("display.password has no effect with listen: socket, which only this host's admins can open".into());
    }
    if new.ha.is_some() && nodes <= 1 {
        told.push("ha does nothing on one host: there is no other that could take the VM over".into());
    }
    told
}

/// Windows has no virtio drivers of its own; its installer finds no disk until a CD brings them.
fn windows_without_drivers(new: &VmSpec, images: &BTreeMap<Name, Option<ImageFacts>>) -> Option<String> {
    if new.os != OsFamily::Windows || !new.disks.iter().any(|disk| disk.bus(new.os) == DiskBus::Virtio) {
        return None;
    }
    let brings = new.cdroms.iter().filter_map(|cd| cd.image.as_ref()).any(|image| image.as_str().contains("virtio"));
    let made_from = new.disks.iter().filter_map(|disk| images.get(disk.image.as_ref()?)?.as_ref());
    let installed = new.disks.iter().any(|disk| disk.volume.is_some()) || made_from.into_iter().any(|facts| facts.virtio == Found::Yes);
    (!brings && !installed).then(|| {
        "Windows finds no virtio disk without drivers: import virtio-win.iso and put it into a tray (cdroms), or set bus: sata".into()
    })
}

fn no_cloud_init(new: &VmSpec, images: &BTreeMap<Name, Option<ImageFacts>>) -> Option<String> {
    let asked = new.cloud_init.as_ref()?;
    let name = new.disks.first()?.image.as_ref()?;
    let facts = images.get(name)?.as_ref()?;
    let own_words = VmSpec::named(new.name.clone()).cloud_init.as_ref() != Some(asked);
    match facts.cloud_init {
        Found::No => Some(format!("image '{name}' has no cloud-init: hostname, users, keys and addresses are not set in the guest")),
        Found::Unknown if own_words => Some(format!("image '{name}' may have no cloud-init; without it, cloud_init has no effect")),
        Found::Yes | Found::Unknown => None,
    }
}

/// Less than this, and OVMF hands over to a Debian kernel that dies at once (tried with 128M; 256M boots).
const UEFI_MEMORY_MIN: ByteCount = ByteCount::from_mib(256);

fn small_for_uefi(new: &VmSpec, old: Option<&VmSpec>, images: &BTreeMap<Name, Option<ImageFacts>>) -> Option<String> {
    let of_image = || new.disks.iter().find_map(|disk| images.get(disk.image.as_ref()?)?.as_ref()).map(|facts| facts.firmware);
    let firmware = if new.firmware == Firmware::Auto { of_image().unwrap_or_default() } else { new.firmware };
    let before = old.is_some_and(|old| (old.memory.size, old.firmware) == (new.memory.size, new.firmware));
    (firmware != Firmware::Bios && new.memory.size < UEFI_MEMORY_MIN && !before).then(|| {
        let (memory, least) = (new.memory.size.human(), UEFI_MEMORY_MIN.human());
        format!(
            "memory {memory} is little for UEFI firmware: many guests die before their first word. Give it {least}, or set firmware: bios"
        )
    })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};
    use vmkeep_types::image::ImageKind;

    use super::*;

    fn spec(fields: Value) -> VmSpec {
        let mut whole = json!({"name": "web1"});
        whole.as_object_mut().expect("a map").extend(fields.as_object().expect("a map").clone());
        serde_json::from_value(whole).expect("a wish")
    }

    fn image(cloud_init: Found, virtio: Found) -> BTreeMap<Name, Option<ImageFacts>> {
        let facts = ImageFacts {
            kind: ImageKind::Disk,
            virtual_size: ByteCount::from_gib(1),
            stored_size: ByteCount::from_gib(1),
            sha256: None,
            firmware: Firmware::Auto,
            os: OsFamily::Linux,
            os_name: None,
            cloud_init,
            guest_agent: Found::No,
            virtio,
            warnings: Vec::new(),
        };
        BTreeMap::from([(Name::known("img"), Some(facts))])
    }

    fn check(new: Value, old: Option<Value>, images: &BTreeMap<Name, Option<ImageFacts>>, wanted: Expect) {
        wanted.assert_eq(&warnings(&spec(new), old.map(spec).as_ref(), images, 1).join("\n"));
    }

    #[test]
    fn memory_that_is_not_free_is_told() {
        let told = |gib: u64, free: &[Option<u64>]| {
            let names = ["node1", "node2"].map(Name::known).into_iter();
            let free: Vec<_> = names.zip(free.iter().map(|free| free.map(ByteCount::from_gib))).collect();
            no_room(ByteCount::from_gib(gib), &free).unwrap_or_default()
        };
        assert_eq!(
            [told(4, &[Some(4)]), told(5, &[None]), told(5, &[Some(4), None]), told(5, &[Some(4), Some(6)]), told(5, &[])].concat(),
            ""
        );
        expect!["its memory (5G) is more than the 4G that are free on 'node1' now: the host may swap, or the kernel end a process"]
            .assert_eq(&told(5, &[Some(4)]));
        expect!["its memory (5G) is more than the 4G that are free on any node ('node2' has most) now: the host may swap, or the kernel end a process"]
            .assert_eq(&told(5, &[Some(3), Some(4)]));
    }

    #[test]
    fn what_is_fine_is_not_warned_of() {
        let root = json!({"disks": [{"name": "root", "image": "img"}], "cloud_init": {"hostname": "w"}});
        check(root, None, &image(Found::Yes, Found::Yes), expect![""]);
        check(json!({"disks": [{"name": "root", "image": "img"}]}), None, &image(Found::Unknown, Found::Yes), expect![""]);
        let cds = json!({"os": "windows", "disks": [{"name": "c", "empty": true}], "cdroms": [{"name": "cd1", "image": "virtio-win"}]});
        check(cds, None, &BTreeMap::new(), expect![""]);
        check(json!({"os": "windows", "disks": [{"name": "c", "empty": true, "bus": "sata"}]}), None, &BTreeMap::new(), expect![""]);
    }

    #[test]
    fn uefi_needs_memory() {
        let none = BTreeMap::new();
        let wanted =
            "memory 128M is little for UEFI firmware: many guests die before their first word. Give it 256M, or set firmware: bios";
        assert_eq!(warnings(&spec(json!({"memory": "128M"})), None, &none, 1), [wanted]);
        check(json!({"memory": "128M", "firmware": "bios"}), None, &none, expect![""]);
        check(json!({"memory": "256M", "firmware": "uefi"}), None, &none, expect![""]);
        check(json!({"memory": "128M", "run": "manual"}), Some(json!({"memory": "128M"})), &none, expect![""]);
    }

    #[test]
    fn what_has_no_effect_is() {
        check(
            json!({"os": "windows", "disks": [{"name": "c", "empty": true}], "ha": {}, "display": {"password": "x"}}),
            Some(json!({"disks": [{"name": "c", "empty": true}, {"name": "data", "empty": true}]})),
            &BTreeMap::new(),
            expect![[r#"
                Windows finds no virtio disk without drivers: import virtio-win.iso and put it into a tray (cdroms), or set bus: sata
                disk 'data' is detached, and its data kept as an unused volume (vmkeep volume list)
                display.password has no effect with listen: socket, which only this host's admins can open
                ha does nothing on one host: there is no other that could take the VM over"#]],
        );
        check(
            json!({"disks": [{"name": "root", "image": "img"}]}),
            None,
            &image(Found::No, Found::Yes),
            expect!["image 'img' has no cloud-init: hostname, users, keys and addresses are not set in the guest"],
        );
        check(
            json!({"disks": [{"name": "root", "image": "img"}], "cloud_init": {"hostname": "w"}}),
            None,
            &image(Found::Unknown, Found::Yes),
            expect!["image 'img' may have no cloud-init; without it, cloud_init has no effect"],
        );
    }
}
