//! What a wish names, looked up: every problem told at once, else the records with the compares that keep them as they were.

use std::collections::{BTreeMap, BTreeSet};

use vmkeep_core::warn;
use vmkeep_store::{Compare, Op, Store, Txn, keys, typed};
use vmkeep_types::check;
use vmkeep_types::error::{Code, Error, Problem};
use vmkeep_types::host::NodeFacts;
use vmkeep_types::ids::{ImageId, Revision, VmId, VolumeId};
use vmkeep_types::image::{ImageFacts, ImageKind, ImageRecord};
use vmkeep_types::manifest;
use vmkeep_types::name::{NAME_BYTES_MAX, Name};
use vmkeep_types::observed::Seen;
use vmkeep_types::pool::{Attachment, VolumeRecord};
use vmkeep_types::record::{Role, VmChoices, VmRecord};
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::{Cdrom, Disk, DiskFormat, Nic, VmSpec};

use super::{Ask, few_nodes, get, image, network, node, pool, volume};
use crate::view::unrestored_secrets;

/// A whole wish: it travels to its node in one value with all that the node needs for it, and a value holds 1 MiB.
const SPEC_BYTES_MAX: usize = 768 << 10;

/// What the same request makes before the VM is written.
#[derive(Clone, Debug, Default)]
pub struct Coming {
    pub networks: BTreeSet<Name>,
    pub images: BTreeSet<Name>,
    pub pools: BTreeSet<Name>,
}

/// The records behind a wish's names.
#[derive(Default)]
pub(super) struct Resolved {
    /// Disk name to the volume it has from now on.
    pub volumes: BTreeMap<Name, VolumeRecord>,
    /// What its images are, as far as it is known, by name.
    pub images: BTreeMap<Name, Option<ImageFacts>>,
    /// Empty where there are many.
    pub nodes: Vec<NodeFacts>,
    /// Where there are many: one more than are read.
    node_count: usize,
    /// Volumes to be written, and under which guard.
    writes: Vec<(Compare, VolumeRecord)>,
    /// Records that must be as they were read when the wish is written.
    read: BTreeMap<String, Revision>,
    /// Entries of the index of fixed MACs to be written, and under which guard.
    macs: Vec<(Compare, String)>,
}

impl Resolved {
    /// What the wish will not do as it may be meant.
    pub async fn warnings(&self, store: &dyn Store, new: &VmSpec, old: Option<&VmSpec>) -> Result<Vec<String>, Error> {
        let mut told = warn::warnings(new, old, &self.images, self.node_count);
        if old.is_none_or(|old| old.memory.size < new.memory.size) {
            told.extend(warn::no_room(new.memory.size, &node::free_memory(store, &self.nodes).await?));
        }
        Ok(told)
    }

    pub fn write(&mut self, ask: &Ask, vm: VmId, mut txn: Txn) -> Txn {
        for (guard, volume) in &mut self.writes {
            if let Some(attached) = &mut volume.attached {
                attached.vm = vm;
            }
            txn = txn.when(guard.clone());
            txn = txn.then(typed::put(keys::name("volume", &ask.project, &volume.name), &volume.id));
            txn = txn.then(typed::put(keys::volume(&ask.project, volume.id), volume));
        }
        for (guard, key) in &self.macs {
            txn = txn.when(guard.clone()).then(typed::put(key.clone(), &vm));
        }
        self.read.iter().fold(txn, |txn, (key, revision)| txn.when(Compare::ModifiedAt(key.clone(), *revision)))
    }
}

/// MACs that a wish names itself.
pub fn fixed_macs(spec: &VmSpec) -> BTreeSet<String> {
    spec.nics.iter().filter(|nic| nic.mac != "auto").map(|nic| nic.mac.to_lowercase()).collect()
}

/// Index entries of the MACs that a wish had and has no more. One that was also chosen for the VM stays its own.
pub(super) fn dropped_macs(old: &VmSpec, new: &VmSpec, chosen: &VmChoices) -> Vec<Op> {
    let kept = chosen_macs(chosen);
    let gone = fixed_macs(old);
    gone.difference(&fixed_macs(new)).filter(|mac| !kept.contains(*mac)).map(|mac| Op::Delete(keys::mac(mac))).collect()
}

/// MACs that were chosen for a VM's NICs.
pub fn chosen_macs(choices: &VmChoices) -> BTreeSet<String> {
    choices.macs.values().map(|mac| mac.to_lowercase()).collect()
}

/// `VM-DISK`; where that is too long for a name, its beginning and a number made from all of it.
pub fn volume_name(vm: &Name, disk: &Name) -> Name {
    let whole = format!("{vm}-{disk}");
    let told = if whole.len() <= NAME_BYTES_MAX {
        whole
    } else {
        let number = format!("-{:08x}", vmkeep_types::hash::fnv32(whole.bytes()));
        format!("{}{number}", whole[..NAME_BYTES_MAX - number.len()].trim_end_matches('-'))
    };
    told.parse().expect("two names and a hyphen make a name")
}

/// What reaches the host itself is an admin's, to set and to take away.
fn refuse_admins_fields(ask: &Ask, old: Option<&VmSpec>, new: &VmSpec) -> Result<(), Error> {
    if ask.caller.role >= Role::Admin {
        return Ok(());
    }
    let plain = VmSpec::named(new.name.clone());
    let old = old.unwrap_or(&plain);
    let differs = [
        ("shares", old.shares != new.shares),
        ("devices.pci", old.devices.pci != new.devices.pci),
        ("devices.usb", old.devices.usb != new.devices.usb),
        ("libvirt_xml", old.libvirt_xml != new.libvirt_xml),
    ];
    let fields: Vec<&str> = differs.into_iter().filter(|(_, differs)| *differs).map(|(field, _)| field).collect();
    if fields.is_empty() {
        return Ok(());
    }
    Err(Error::new(Code::Forbidden, format!("only admins may set {}", fields.join(", "))).hint("they reach the host itself"))
}

/// Everything that is wrong with the wish, here and now, at once; else its records.
pub(super) async fn resolve(
    store: &dyn Store,
    ask: &Ask,
    spec: &VmSpec,
    old: Option<&VmRecord>,
    coming: &Coming,
) -> Result<Resolved, Error> {
    let bytes = serde_json::to_vec(spec).expect("a spec has only text keys").len();
    if bytes > SPEC_BYTES_MAX {
        let words = format!("VM '{}' takes {} KiB in all; the limit is {} KiB", spec.name, bytes >> 10, SPEC_BYTES_MAX >> 10);
        return Err(Error::new(Code::TooLarge, words).hint("let cloud-init fetch long data: `#include` with a URL in user_data"));
    }
    refuse_admins_fields(ask, old.map(|old| &old.spec), spec)?;
    let mut problems = check::vm(spec);
    problems.extend(check::unread_files(spec));
    problems.extend(unrestored_secrets(spec));
    if old.is_none() && ask.foreign.contains(spec.name.as_str()) {
        let message = format!(
            "libvirt on this host has a domain '{0}' that vmkeep did not make; take it over with `vmkeep vm adopt {0}`, or choose another name",
            spec.name
        );
        problems.push(Problem { field: "name".into(), message });
    }
    let (node_count, nodes) = few_nodes(store).await?;
    if let [only] = &nodes[..] {
        problems.extend(check::vm_on_host(spec, only));
    }
    let found = Resolved { node_count, nodes, ..Resolved::default() };
    let mut look = Look { store, ask, spec, old, coming, found, problems };
    look.macs().await?;
    for (n, nic) in spec.nics.iter().enumerate() {
        look.network(n, nic).await?;
    }
    for cdrom in &spec.cdroms {
        look.cdrom(cdrom).await?;
    }
    for wish in &spec.disks {
        look.disk(wish).await?;
    }
    let Look { found, problems, .. } = look;
    if problems.is_empty() { Ok(found) } else { Err(manifest::refused(&format!("vm {}", spec.name), problems)) }
}

/// All that `put` would refuse, without writing; `coming` is what will be there by then.
pub(super) async fn check_only(
    store: &dyn Store,
    ask: &Ask,
    spec: &VmSpec,
    old: Option<&VmRecord>,
    coming: &Coming,
) -> Result<Resolved, Error> {
    resolve(store, ask, &check::normalize(spec.clone()), old, coming).await
}

/// A name that is free for a VM, as long as its entry in the index of domains is as it was found.
pub(super) struct FreeName {
    guard: Compare,
    key: String,
}

impl FreeName {
    /// It is `vm`'s from now on.
    pub fn take(self, vm: VmId, txn: Txn) -> Txn {
        txn.when(self.guard).then(typed::put(self.key, &vm))
    }
}

/// libvirt on a host knows domains by name only, whatever project they are of: two VMs that come at once with one name meet in
/// its index entry. An entry whose VM has another name by now, or is gone, was left by an older vmkeep: all names are looked at
/// only where there is an entry.
pub(super) async fn free_name(store: &dyn Store, ask: &Ask, name: &Name) -> Result<FreeName, Error> {
    let key = keys::domain(name);
    let Some(there) = store.get(&key).await.map_err(super::store_error)? else {
        return Ok(FreeName { guard: Compare::Absent(key.clone()), key });
    };
    let guard = Compare::ModifiedAt(key.clone(), there.modified);
    let ours = keys::name("vm", &ask.project, name);
    for kv in store.list(keys::ALL_VM_NAMES).await.map_err(super::store_error)?.items {
        let (other, last) = kv.key[keys::ALL_VM_NAMES.len()..].split_once('/').unwrap_or_default();
        if last == name.as_str() && kv.key != ours {
            let words = format!("there is a VM '{name}' in project '{other}' already, and libvirt on a host knows VMs by name only");
            return Err(Error::conflict(words).hint("choose another name"));
        }
    }
    Ok(FreeName { guard, key })
}

fn nic_field(n: usize, nic: &Nic) -> String {
    if nic.name.as_str().is_empty() { format!("nics[{n}].network") } else { format!("nics[{}].network", nic.name) }
}

/// What a volume has at least: its own size, that of the image it was cloned from, or what its node found.
pub(super) async fn size_now(store: &dyn Store, volume: &VolumeRecord) -> Result<Option<ByteCount>, Error> {
    if volume.size.is_some() {
        return Ok(volume.size);
    }
    if let Some(image) = volume.image {
        let image = get::<ImageRecord>(store, &keys::image(&volume.project, image)).await?;
        return Ok(image.and_then(|i| i.value.facts).map(|facts| facts.virtual_size));
    }
    let (Some(attached), Some(node)) = (&volume.attached, &volume.node) else { return Ok(None) };
    let seen = get::<Seen>(store, &keys::seen(node, attached.vm)).await?;
    Ok(seen.and_then(|s| s.value.volumes.get(&volume.id).map(|v| ByteCount::from_bytes(v.size_bytes))))
}

/// One wish while it is looked through.
struct Look<'a> {
    store: &'a dyn Store,
    ask: &'a Ask,
    spec: &'a VmSpec,
    old: Option<&'a VmRecord>,
    coming: &'a Coming,
    found: Resolved,
    problems: Vec<Problem>,
}

impl Look<'_> {
    fn problem(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { field: field.into(), message: message.into() });
    }

    /// A name that leads nowhere is a problem of its field; other errors end the look.
    fn missing<T>(&mut self, found: Result<T, Error>, field: &str) -> Result<Option<T>, Error> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(e) if e.code == Code::NotFound => {
                self.problem(field, e.message);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Two VMs that come at once with one MAC meet in its index entry. An entry whose VM has another MAC by now, or is gone, was
    /// left by an older vmkeep: all VMs are looked at only where there is an entry of another.
    async fn macs(&mut self) -> Result<(), Error> {
        let before = self.old.map(|old| fixed_macs(&old.spec)).unwrap_or_default();
        let mut held = BTreeSet::new();
        for mac in fixed_macs(self.spec).difference(&before) {
            let key = keys::mac(mac);
            let guard = match get::<VmId>(self.store, &key).await? {
                Some(there) => {
                    if self.old.is_none_or(|old| old.id != there.value) {
                        held.insert(mac.clone());
                    }
                    Compare::ModifiedAt(key.clone(), there.modified)
                }
                None => Compare::Absent(key.clone()),
            };
            self.found.macs.push((guard, key));
        }
        let wished: Vec<&Nic> = self.spec.nics.iter().filter(|nic| held.contains(&nic.mac.to_lowercase())).collect();
        if wished.is_empty() {
            return Ok(());
        }
        let mut choices: BTreeMap<String, VmChoices> =
            super::list::<VmChoices>(self.store, keys::ALL_CHOICES).await?.into_iter().map(|s| (s.key, s.value)).collect();
        let mut taken: BTreeMap<String, Name> = BTreeMap::new();
        // Of all projects: they share the host's networks.
        for other in super::list::<VmRecord>(self.store, keys::ALL_VMS).await? {
            if self.old.is_some_and(|old| old.id == other.value.id) {
                continue;
            }
            let chosen = choices.remove(&keys::choices(other.value.id)).map(|c| c.macs).unwrap_or_default();
            let macs = chosen.into_values().chain(fixed_macs(&other.value.spec));
            taken.extend(macs.map(|mac| (mac, other.value.spec.name.clone())));
        }
        for nic in wished {
            if let Some(vm) = taken.get(&nic.mac.to_lowercase()) {
                self.problem(format!("nics[{}].mac", nic.name), format!("{} is the MAC of VM '{vm}'", nic.mac));
            }
        }
        Ok(())
    }

    async fn network(&mut self, n: usize, nic: &Nic) -> Result<(), Error> {
        if self.coming.networks.contains(&nic.network) {
            return Ok(());
        }
        let found = network::stored(self.store, &self.ask.project, &nic.network).await;
        let Some(found) = self.missing(found, &nic_field(n, nic))? else { return Ok(()) };
        if found.value.leaving.is_some() {
            self.problem(nic_field(n, nic), format!("network '{}' is being deleted", nic.network));
        }
        self.found.read.insert(found.key, found.modified);
        Ok(())
    }

    /// A pool that a new volume is to lie in.
    async fn pool(&mut self, name: &Name, field: String) -> Result<(), Error> {
        if self.coming.pools.contains(name) {
            return Ok(());
        }
        let found = pool::stored(self.store, name).await;
        let Some(found) = self.missing(found, &field)? else { return Ok(()) };
        if found.value.leaving {
            self.problem(field, format!("pool '{name}' is being deleted or moved"));
        }
        self.found.read.insert(found.key, found.modified);
        Ok(())
    }

    /// An image by name, of the kind that the field takes. One that is not ready yet is waited for by a new VM; a VM that is
    /// there goes on without it.
    async fn image(&mut self, name: &Name, field: &str, kind: ImageKind) -> Result<Option<ImageRecord>, Error> {
        let waits = self.old.is_none();
        if self.coming.images.contains(name) {
            if !waits {
                self.problem(field, format!("image '{name}' is made by this request; apply this again when it is ready"));
            }
            return Ok(None);
        }
        let found = image::stored(self.store, &self.ask.project, name).await;
        let Some(found) = self.missing(found, field)? else { return Ok(None) };
        let image = found.value;
        match (&image.facts, kind) {
            _ if image.leaving.is_some() => self.problem(field, format!("image '{name}' is being deleted")),
            (None, _) if !waits => self.problem(field, format!("image '{name}' is not ready yet")),
            (Some(facts), ImageKind::Disk) if facts.kind == ImageKind::Iso => {
                self.problem(
                    field,
                    format!("image '{name}' is an installation medium, no disk; put it into a tray (cdroms), beside an empty disk"),
                );
            }
            (Some(facts), ImageKind::Iso) if facts.kind == ImageKind::Disk => {
                self.problem(field, format!("image '{name}' is a disk, no ISO; disks are made from it (disks[].image)"));
            }
            _ => {}
        }
        self.found.read.insert(found.key, found.modified);
        self.found.images.insert(name.clone(), image.facts.clone());
        Ok(Some(image))
    }

    async fn cdrom(&mut self, cdrom: &Cdrom) -> Result<(), Error> {
        let Some(image) = &cdrom.image else { return Ok(()) };
        // What lies in the tray already is judged no more.
        if self.old.is_some_and(|old| old.spec.cdroms.iter().any(|c| c.image.as_ref() == Some(image))) {
            return Ok(());
        }
        self.image(image, &format!("cdroms[{}].image", cdrom.name), ImageKind::Iso).await.map(drop)
    }

    async fn disk(&mut self, wish: &Disk) -> Result<(), Error> {
        let field = |name: &str| format!("disks[{}].{name}", wish.name);
        if let Some(id) = self.old.and_then(|old| old.volumes.get(&wish.name))
            && let Some(there) = get::<VolumeRecord>(self.store, &keys::volume(&self.ask.project, *id)).await?
        {
            if let (Some(now), Some(to)) = (size_now(self.store, &there.value).await?, wish.size)
                && to < now
            {
                self.problem(field("size"), format!("{to} is smaller than the disk is ({}); a disk can only grow", now.human()));
            }
            let grown = VolumeRecord { size: wish.size.or(there.value.size), ..there.value.clone() };
            if grown != there.value {
                self.found.writes.push((Compare::ModifiedAt(there.key, there.modified), grown.clone()));
            }
            self.found.volumes.insert(wish.name.clone(), grown);
            return Ok(());
        }
        if let Some(name) = &wish.volume {
            let pool = pool::find(self.store, &wish.pool).await;
            self.missing(pool, &field("pool"))?;
            return self.attach(wish, name).await;
        }
        self.pool(&wish.pool, field("pool")).await?;
        let image = match &wish.image {
            Some(name) => self.image(name, &field("image"), ImageKind::Disk).await?,
            None => None,
        };
        if let Some(facts) = image.as_ref().and_then(|image| image.facts.as_ref())
            && let Some(size) = wish.size.filter(|size| *size < facts.virtual_size)
        {
            let message = format!("{size} is smaller than the image ({}); a disk can only grow", facts.virtual_size.human());
            self.problem(field("size"), message);
        }
        let volume = self.new_volume(wish, image.map(|i| i.id));
        let name_key = keys::name("volume", &self.ask.project, &volume.name);
        if get::<VolumeId>(self.store, &name_key).await?.is_some() {
            let message =
                format!("there is a volume '{}' already, perhaps kept from a deleted VM; use it (volume: {0}) or delete it", volume.name);
            self.problem(field("name"), message);
        }
        self.found.writes.push((Compare::Absent(name_key), volume.clone()));
        self.found.volumes.insert(wish.name.clone(), volume);
        Ok(())
    }

    fn new_volume(&self, wish: &Disk, image: Option<ImageId>) -> VolumeRecord {
        VolumeRecord {
            id: VolumeId(uuid::Uuid::new_v4()),
            project: self.ask.project.clone(),
            name: volume_name(&self.spec.name, &wish.name),
            pool: wish.pool.clone(),
            // Until its VM is placed; a disk of a VM that has its node goes there.
            node: None,
            size: wish.size,
            format: if wish.format == DiskFormat::Auto { DiskFormat::Qcow2 } else { wish.format },
            image,
            foreign_path: None,
            filling: None,
            made: false,
            attached: Some(Attachment { vm: VmId(uuid::Uuid::nil()), disk: wish.name.clone() }),
            created_at: jiff::Timestamp::now(),
        }
    }

    /// A volume that is there becomes a disk.
    async fn attach(&mut self, wish: &Disk, name: &Name) -> Result<(), Error> {
        let field = format!("disks[{}].volume", wish.name);
        let found = volume::stored(self.store, &self.ask.project, name).await;
        let Some(there) = self.missing(found, &field)? else { return Ok(()) };
        let volume = there.value;
        let twice = self.found.volumes.values().any(|v| v.id == volume.id);
        let own = |a: &Attachment| self.old.is_some_and(|old| old.id == a.vm && !old.volumes.values().any(|id| *id == volume.id));
        let refused = match &volume.attached {
            _ if twice => Some("it is in this VM twice".into()),
            _ if volume.filling.is_some() => Some(format!("volume '{name}' is still being made; `vmkeep op list` shows how far it is")),
            None => None,
            Some(_) if volume::is_free(&volume) => Some(format!("volume '{name}' is being deleted")),
            // A disk that was dropped, and that the guest may have yet, can come back to its own VM.
            Some(attached) if own(attached) => None,
            Some(_) => Some(volume::whose(self.store, &volume).await?.message),
        };
        if let Some(message) = refused {
            self.problem(field, message);
            return Ok(());
        }
        if let (Some(now), Some(to)) = (size_now(self.store, &volume).await?, wish.size)
            && to < now
        {
            let message = format!("{to} is smaller than volume '{name}' ({}); a disk can only grow", now.human());
            self.problem(format!("disks[{}].size", wish.name), message);
        }
        let attached = Some(Attachment { vm: VmId(uuid::Uuid::nil()), disk: wish.name.clone() });
        let taken = VolumeRecord { attached, size: wish.size.or(volume.size), ..volume };
        self.found.writes.push((Compare::ModifiedAt(there.key, there.modified), taken.clone()));
        self.found.volumes.insert(wish.name.clone(), taken);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_of_volumes_differ_too() {
        let name = |text: &str| text.parse::<Name>().expect("a name");
        assert_eq!(volume_name(&name("web1"), &name("root")).as_str(), "web1-root");
        let vm = name(&"v".repeat(63));
        let (root, data) = (volume_name(&vm, &name("root")), volume_name(&vm, &name("data")));
        assert_ne!(root, data);
        assert_eq!(root.as_str().len(), 63);
        let edge = name(&format!("{}-b", "v".repeat(53)));
        assert!(!volume_name(&edge, &name("datadisk")).as_str().contains("--"));
    }
}
