//! Writing a VM's wish: every name resolved, every problem told at once, volumes and index in the same transaction.

use std::collections::{BTreeMap, BTreeSet};

use vmkeep_core::change;
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::check;
use vmkeep_types::error::{Code, Error, Problem};
use vmkeep_types::ids::{ImageId, OperationId, Revision, VmId, VolumeId};
use vmkeep_types::image::ImageRecord;
use vmkeep_types::manifest;
use vmkeep_types::name::Name;
use vmkeep_types::operation::{Operation, Wanted};
use vmkeep_types::pool::{Attachment, VolumeRecord};
use vmkeep_types::record::{Power, PowerWish, Role, VmChoices, VmOrigin, VmRecord};
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::{Disk, DiskFormat, Nic, RunPolicy, VmSpec};

use super::vm_parts::{self, busy, resource};
use super::{Ask, TRIES_MAX, commit, done, get, image, network, nodes, operation, pool, put_op, volume};
use crate::view::{restore_secrets, unrestored_secrets};

/// Random bytes of a MAC, behind QEMU's prefix.
const MAC_RANDOM_BYTES: usize = 3;

/// A whole wish: it travels to its node in one value with all that the node needs for it, and a value holds 1 MiB.
const SPEC_BYTES_MAX: usize = 768 << 10;

/// What a write came to.
#[derive(Clone, Debug)]
pub struct Written {
    pub op: Operation,
    pub changed: Changed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    Created,
    Updated,
    Nothing,
}

/// The condition of an `If-Match` header (RFC 9110, 13.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfMatch {
    /// `*`: the VM is there.
    Exists,
    /// The revision the caller read.
    At(Revision),
}

/// What a caller asks of the write beyond the wish.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// What the caller says is there; anything else is refused.
    pub if_match: Option<IfMatch>,
    /// Key of a POST that may be repeated.
    pub idempotency: Option<String>,
    /// Write the wish again although it is the same: drift is mended so.
    pub again: bool,
}

pub fn volume_name(vm: &Name, disk: &Name) -> Name {
    let plain: String = format!("{vm}-{disk}").chars().take(63).collect();
    plain.trim_end_matches('-').parse().expect("two names and a hyphen make a name")
}

/// A new VM; a taken name is a conflict.
pub async fn create(store: &dyn Store, ask: &Ask, spec: VmSpec, guard: &Guard) -> Result<Written, Error> {
    let spec = check::normalize(spec);
    let mut resolved = resolve(store, ask, &spec, None, &BTreeSet::new()).await?;
    let taken = taken_macs(store).await?;
    let id = VmId(uuid::Uuid::new_v4());
    let record = VmRecord {
        id,
        project: ask.project.clone(),
        volumes: resolved.volumes.iter().map(|(disk, v)| (disk.clone(), v.id)).collect(),
        spec,
        created_at: jiff::Timestamp::now(),
        origin: VmOrigin::Created,
        leaving: None,
        instance: 0,
    };
    let want = if matches!(record.spec.run, RunPolicy::Always | RunPolicy::OnFailure) { PowerWish::On } else { PowerWish::Off };
    let op = operation(ask, "vm.create", resource(&record), Wanted::Vm { spec_revision: Revision(0), power_cycle: 1 });
    let name_key = keys::name("vm", &ask.project, &record.spec.name);
    let mut txn = Txn::default()
        .when(Compare::Absent(name_key.clone()))
        .then(typed::put(name_key, &id))
        .then(typed::put(keys::vm(&ask.project, id), &record))
        .then(typed::put(keys::choices(id), &choices(&record.spec, VmChoices::default(), &taken)))
        .then(typed::put(keys::power(id), &Power { want, cycle: 1, held: None, stop_timeout: None }))
        .then(put_op(&op));
    if let Some(key) = &guard.idempotency {
        let key = idempotency_key(&ask.project, key);
        txn = txn.when(Compare::Absent(key.clone())).then(typed::put(key, &op.id));
    }
    txn = resolved.write(ask, id, txn);
    match commit(store, txn).await? {
        Some(_) => Ok(Written { op, changed: Changed::Created }),
        None => match &guard.idempotency {
            // Two of one key at once: the second gets the first one's operation.
            Some(key) => match repeated(store, &ask.project, key, &record.spec.name).await? {
                Some(op) => Ok(Written { op, changed: Changed::Nothing }),
                None => Err(why_not(store, ask, &record.spec).await),
            },
            None => Err(why_not(store, ask, &record.spec).await),
        },
    }
}

async fn why_not(store: &dyn Store, ask: &Ask, spec: &VmSpec) -> Error {
    let taken = get::<VmId>(store, &keys::name("vm", &ask.project, &spec.name)).await;
    match taken {
        Ok(Some(_)) => Error::conflict(format!("there is a VM '{}' already", spec.name)),
        Ok(None) => Error::new(Code::Unavailable, "an image or a volume of it changed at the same time; try again"),
        Err(error) => error,
    }
}

/// Creates or replaces a wish.
pub async fn put(store: &dyn Store, ask: &Ask, spec: VmSpec, guard: &Guard) -> Result<Written, Error> {
    for _ in 0..TRIES_MAX {
        match vm_parts::record(store, &ask.project, &spec.name).await {
            Err(e) if e.code == Code::NotFound && guard.if_match.is_none() => match create(store, ask, spec.clone(), guard).await {
                Err(e) if e.code == Code::Conflict => continue,
                other => return other,
            },
            Err(e) => return Err(e),
            Ok(old) => {
                if let Some(written) = update(store, ask, &old, spec.clone(), guard).await? {
                    return Ok(written);
                }
                if matches!(guard.if_match, Some(IfMatch::At(_))) {
                    return Err(stale(&spec.name, vm_parts::record(store, &ask.project, &spec.name).await?.modified));
                }
            }
        }
    }
    Err(busy(&spec.name))
}

fn stale(name: &Name, now: Revision) -> Error {
    Error::new(Code::Stale, format!("'{name}' was changed by somebody else; it has revision {now} now"))
        .hint("read it again, merge, and send it with the new ETag")
}

/// None: somebody else wrote in between.
async fn update(store: &dyn Store, ask: &Ask, old: &Stored<VmRecord>, spec: VmSpec, guard: &Guard) -> Result<Option<Written>, Error> {
    if guard.if_match.is_some_and(|wanted| wanted != IfMatch::Exists && wanted != IfMatch::At(old.modified)) {
        return Err(stale(&spec.name, old.modified));
    }
    if old.value.leaving.is_some() {
        return Err(Error::conflict(format!("'{}' is being deleted", spec.name)));
    }
    let mut spec = check::normalize(spec);
    restore_secrets(&mut spec, &old.value.spec);
    if spec == old.value.spec && !guard.again {
        let op = operation(ask, "vm.update", resource(&old.value), Wanted::Vm { spec_revision: old.modified, power_cycle: 0 });
        let op = done(op);
        commit(store, Txn::default().then(put_op(&op))).await?;
        return Ok(Some(Written { op, changed: Changed::Nothing }));
    }
    let refusals = change::refusals(&old.value.spec, &spec);
    if !refusals.is_empty() {
        return Err(manifest::refused(&format!("vm {}", spec.name), refusals));
    }
    let mut resolved = resolve(store, ask, &spec, Some(&old.value), &BTreeSet::new()).await?;
    let mut record = VmRecord { spec, ..old.value.clone() };
    record.volumes = resolved.volumes.iter().map(|(disk, v)| (disk.clone(), v.id)).collect();
    let kept = get::<VmChoices>(store, &keys::choices(record.id)).await?;
    let choices_key = keys::choices(record.id);
    let op = operation(ask, "vm.update", resource(&record), Wanted::Vm { spec_revision: Revision(0), power_cycle: 0 });
    let mut txn = Txn::default()
        .when(Compare::ModifiedAt(old.key.clone(), old.modified))
        .then(typed::put(old.key.clone(), &record))
        .then(put_op(&op));
    if let Some(kept) = kept {
        let new = choices(&record.spec, kept.value.clone(), &taken_macs(store).await?);
        if new != kept.value {
            txn = txn.when(Compare::ModifiedAt(choices_key.clone(), kept.modified)).then(typed::put(choices_key, &new));
        }
    }
    for (disk, id) in &old.value.volumes {
        if !record.volumes.contains_key(disk)
            && let Some(volume) = get::<VolumeRecord>(store, &keys::volume(&ask.project, *id)).await?
        {
            txn = txn.then(typed::put(volume.key, &VolumeRecord { attached: None, ..volume.value }));
        }
    }
    txn = resolved.write(ask, record.id, txn);
    Ok(commit(store, txn).await?.map(|_| Written { op, changed: Changed::Updated }))
}

/// MACs and serials for what has none yet.
pub(super) fn choices(spec: &VmSpec, mut choices: VmChoices, taken: &BTreeSet<String>) -> VmChoices {
    for nic in spec.nics.iter().filter(|nic| nic.mac == "auto") {
        let free = || {
            std::iter::repeat_with(random_mac).find(|mac| !taken.contains(mac)).expect("an endless supply ends at the first that is free")
        };
        choices.macs.entry(nic.name.clone()).or_insert_with(free);
    }
    for disk in spec.disks.iter().filter(|disk| disk.serial == "auto") {
        // What a guest sees in /dev/disk/by-id: 20 characters at most (virtio).
        choices.serials.entry(disk.name.clone()).or_insert_with(|| uuid::Uuid::new_v4().simple().to_string()[..20].to_owned());
    }
    choices
}

/// MACs that were chosen for VMs, of whatever project: with a thousand of them, two alike would be no rarity.
pub(super) async fn taken_macs(store: &dyn Store) -> Result<BTreeSet<String>, Error> {
    /// Only what is looked for; the rest of the value is not read.
    #[derive(serde::Deserialize)]
    struct Macs {
        macs: BTreeMap<Name, String>,
    }
    let all = super::list::<Macs>(store, keys::ALL_CHOICES).await?;
    Ok(all.into_iter().flat_map(|stored| stored.value.macs.into_values()).collect())
}

/// 52:54:00 is QEMU's prefix of locally administered addresses.
fn random_mac() -> String {
    let random = uuid::Uuid::new_v4().into_bytes();
    let tail: Vec<String> = random[..MAC_RANDOM_BYTES].iter().map(|b| format!("{b:02x}")).collect();
    format!("52:54:00:{}", tail.join(":"))
}

/// The records behind a wish's names.
struct Resolved {
    /// Disk name to the volume it has from now on.
    volumes: BTreeMap<Name, VolumeRecord>,
    /// Volumes to be written, and under which guard.
    writes: Vec<(Compare, VolumeRecord)>,
    /// Names that must still be there when the wish is written.
    present: Vec<String>,
}

impl Resolved {
    fn write(&mut self, ask: &Ask, vm: VmId, mut txn: Txn) -> Txn {
        for (guard, volume) in &mut self.writes {
            if let Some(attached) = &mut volume.attached {
                attached.vm = vm;
            }
            txn = txn.when(guard.clone());
            txn = txn.then(typed::put(keys::name("volume", &ask.project, &volume.name), &volume.id));
            txn = txn.then(typed::put(keys::volume(&ask.project, volume.id), volume));
        }
        self.present.iter().fold(txn, |txn, key| txn.when(Compare::Present(key.clone())))
    }
}

/// Everything that is wrong with the wish, here and now, at once; else its records.
async fn resolve(store: &dyn Store, ask: &Ask, spec: &VmSpec, old: Option<&VmRecord>, coming: &BTreeSet<Name>) -> Result<Resolved, Error> {
    let mut problems = check::vm(spec);
    problems.extend(check::unread_files(spec));
    problems.extend(unrestored_secrets(spec));
    let bytes = serde_json::to_vec(spec).expect("a spec has only text keys").len();
    if bytes > SPEC_BYTES_MAX {
        let words = format!("VM '{}' takes {} KiB in all; the limit is {} KiB", spec.name, bytes >> 10, SPEC_BYTES_MAX >> 10);
        return Err(Error::new(Code::TooLarge, words).hint("let cloud-init fetch long data: `#include` with a URL in user_data"));
    }
    let admin_only = check::admin_only(spec);
    if !admin_only.is_empty() && ask.caller.role < Role::Admin {
        let unchanged = old.is_some_and(|old| {
            check::admin_only(&old.spec) == admin_only
                && old.spec.libvirt_xml == spec.libvirt_xml
                && old.spec.devices == spec.devices
                && old.spec.shares == spec.shares
        });
        if !unchanged {
            return Err(
                Error::new(Code::Forbidden, format!("only admins may set {}", admin_only.join(", "))).hint("they reach the host itself")
            );
        }
    }
    let nodes = nodes(store).await?;
    if let [only] = &nodes[..] {
        problems.extend(check::vm_on_host(spec, only));
    }
    macs(store, spec, old, &mut problems).await?;
    for (n, nic) in spec.nics.iter().enumerate().filter(|(_, nic)| !coming.contains(&nic.network)) {
        missing(network::find(store, &ask.project, &nic.network).await, &nic_field(n, nic), &mut problems)?;
    }
    for cdrom in spec.cdroms.iter() {
        if let Some(image) = &cdrom.image {
            missing(image::find(store, &ask.project, image).await, &format!("cdroms[{}].image", cdrom.name), &mut problems)?;
        }
    }
    let node = nodes.first().map_or_else(|| Name::known("unplaced"), |n| n.name.clone());
    let mut resolved = Resolved { volumes: BTreeMap::new(), writes: Vec::new(), present: Vec::new() };
    for wish in &spec.disks {
        disk(store, ask, spec, wish, old, &node, &mut resolved, &mut problems).await?;
    }
    if problems.is_empty() { Ok(resolved) } else { Err(manifest::refused(&format!("vm {}", spec.name), problems)) }
}

/// All that `put` would refuse, without writing; `coming` are the networks that will be there by then.
pub async fn check_only(store: &dyn Store, ask: &Ask, spec: &VmSpec, old: Option<&VmRecord>, coming: &BTreeSet<Name>) -> Result<(), Error> {
    resolve(store, ask, &check::normalize(spec.clone()), old, coming).await.map(drop)
}

fn nic_field(n: usize, nic: &Nic) -> String {
    if nic.name.as_str().is_empty() { format!("nics[{n}].network") } else { format!("nics[{}].network", nic.name) }
}

/// A name that leads nowhere is a problem of its field; other errors end the look.
fn missing<T>(found: Result<T, Error>, field: &str, problems: &mut Vec<Problem>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.code == Code::NotFound => {
            problems.push(Problem { field: field.into(), message: e.message });
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

async fn macs(store: &dyn Store, spec: &VmSpec, old: Option<&VmRecord>, problems: &mut Vec<Problem>) -> Result<(), Error> {
    let wished: Vec<&Nic> = spec.nics.iter().filter(|nic| nic.mac != "auto").collect();
    if wished.is_empty() {
        return Ok(());
    }
    let mut choices: BTreeMap<String, VmChoices> =
        super::list::<VmChoices>(store, keys::ALL_CHOICES).await?.into_iter().map(|s| (s.key, s.value)).collect();
    let mut taken: BTreeMap<String, Name> = BTreeMap::new();
    // Of all projects: they share the host's networks.
    for other in super::list::<VmRecord>(store, keys::ALL_VMS).await? {
        if old.is_some_and(|old| old.id == other.value.id) {
            continue;
        }
        let chosen = choices.remove(&keys::choices(other.value.id)).map(|c| c.macs).unwrap_or_default();
        let fixed = other.value.spec.nics.iter().filter(|n| n.mac != "auto").map(|n| n.mac.to_lowercase());
        taken.extend(chosen.into_values().chain(fixed).map(|mac| (mac, other.value.spec.name.clone())));
    }
    for nic in wished {
        if let Some(vm) = taken.get(&nic.mac.to_lowercase()) {
            problems.push(Problem { field: format!("nics[{}].mac", nic.name), message: format!("{} is the MAC of VM '{vm}'", nic.mac) });
        }
    }
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "one disk is judged by all that is known of its VM")]
async fn disk(
    store: &dyn Store,
    ask: &Ask,
    spec: &VmSpec,
    wish: &Disk,
    old: Option<&VmRecord>,
    node: &Name,
    resolved: &mut Resolved,
    problems: &mut Vec<Problem>,
) -> Result<(), Error> {
    let field = |name: &str| format!("disks[{}].{name}", wish.name);
    if let Some(id) = old.and_then(|old| old.volumes.get(&wish.name))
        && let Some(there) = get::<VolumeRecord>(store, &keys::volume(&ask.project, *id)).await?
    {
        if let (Some(now), Some(to)) = (size_now(store, &there.value).await?, wish.size)
            && to < now
        {
            let message = format!("{to} is smaller than the disk is ({}); a disk can only grow", now.human());
            problems.push(Problem { field: field("size"), message });
        }
        let grown = VolumeRecord { size: wish.size.or(there.value.size), ..there.value.clone() };
        if grown != there.value {
            resolved.writes.push((Compare::ModifiedAt(there.key, there.modified), grown.clone()));
        }
        resolved.volumes.insert(wish.name.clone(), grown);
        return Ok(());
    }
    missing(pool::find(store, &wish.pool).await, &field("pool"), problems)?;
    if let Some(name) = &wish.volume {
        let Some(volume) = missing(volume::find(store, &ask.project, name).await, &field("volume"), problems)? else { return Ok(()) };
        return attach(store, ask, wish, volume, resolved, problems).await;
    }
    let image = match &wish.image {
        Some(name) => missing(image::find(store, &ask.project, name).await, &field("image"), problems)?,
        None => None,
    };
    if let Some(image) = &image {
        check_image(image, wish, problems);
        resolved.present.push(keys::name("image", &ask.project, &image.spec.name));
    }
    let volume = new_volume(ask, spec, wish, image.map(|i| i.id), node);
    let guard = Compare::Absent(keys::name("volume", &ask.project, &volume.name));
    if get::<VolumeId>(store, &keys::name("volume", &ask.project, &volume.name)).await?.is_some() {
        let message =
            format!("there is a volume '{}' already, perhaps kept from a deleted VM; use it (volume: {0}) or delete it", volume.name);
        problems.push(Problem { field: field("name"), message });
    }
    resolved.writes.push((guard, volume.clone()));
    resolved.volumes.insert(wish.name.clone(), volume);
    Ok(())
}

/// What a volume has at least: its own size, or that of the image it was cloned from.
async fn size_now(store: &dyn Store, volume: &VolumeRecord) -> Result<Option<ByteCount>, Error> {
    if volume.size.is_some() {
        return Ok(volume.size);
    }
    let Some(image) = volume.image else { return Ok(None) };
    let image = get::<ImageRecord>(store, &keys::image(&volume.project, image)).await?;
    Ok(image.and_then(|i| i.value.facts).map(|facts| facts.virtual_size))
}

fn check_image(image: &ImageRecord, wish: &Disk, problems: &mut Vec<Problem>) {
    let field = |name: &str| format!("disks[{}].{name}", wish.name);
    let Some(facts) = &image.facts else {
        return problems.push(Problem { field: field("image"), message: format!("image '{}' is not ready yet", image.spec.name) });
    };
    if let Some(size) = wish.size.filter(|size| *size < facts.virtual_size) {
        let message = format!("{size} is smaller than the image ({}); a disk can only grow", facts.virtual_size.human());
        problems.push(Problem { field: field("size"), message });
    }
}

fn new_volume(ask: &Ask, spec: &VmSpec, wish: &Disk, image: Option<ImageId>, node: &Name) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(uuid::Uuid::new_v4()),
        project: ask.project.clone(),
        name: volume_name(&spec.name, &wish.name),
        pool: wish.pool.clone(),
        node: node.clone(),
        size: wish.size,
        format: if wish.format == DiskFormat::Auto { DiskFormat::Qcow2 } else { wish.format },
        image,
        foreign_path: None,
        attached: Some(Attachment { vm: VmId(uuid::Uuid::nil()), disk: wish.name.clone() }),
        created_at: jiff::Timestamp::now(),
    }
}

async fn attach(
    store: &dyn Store,
    ask: &Ask,
    wish: &Disk,
    volume: VolumeRecord,
    resolved: &mut Resolved,
    problems: &mut Vec<Problem>,
) -> Result<(), Error> {
    let field = format!("disks[{}].volume", wish.name);
    let twice = resolved.volumes.values().any(|v| v.id == volume.id);
    if twice || volume.attached.is_some() {
        let message = match (twice, volume::is_free(&volume)) {
            (true, _) => "it is in this VM twice".into(),
            (false, true) => format!("volume '{}' is being deleted", volume.name),
            (false, false) => format!("volume '{}' is a disk of another VM", volume.name),
        };
        problems.push(Problem { field, message });
        return Ok(());
    }
    if let (Some(now), Some(to)) = (size_now(store, &volume).await?, wish.size)
        && to < now
    {
        let message = format!("{to} is smaller than volume '{}' ({}); a disk can only grow", volume.name, now.human());
        problems.push(Problem { field: format!("disks[{}].size", wish.name), message });
    }
    let key = keys::volume(&ask.project, volume.id);
    let Some(there) = get::<VolumeRecord>(store, &key).await? else { return Ok(()) };
    let attached = Some(Attachment { vm: VmId(uuid::Uuid::nil()), disk: wish.name.clone() });
    let taken = VolumeRecord { attached, size: wish.size.or(volume.size), ..volume };
    resolved.writes.push((Compare::ModifiedAt(key, there.modified), taken.clone()));
    resolved.volumes.insert(wish.name.clone(), taken);
    Ok(())
}

/// The id under which an operation of a repeated POST is found again.
pub fn idempotency_key(project: &Name, key: &str) -> String {
    format!("{ALL_REPEATS}{project}/{key}")
}

/// Keys of POSTs that may be repeated.
pub const ALL_REPEATS: &str = "idem/";

/// The operation that a POST with this key began before, for the same VM.
///
/// # Errors
/// `Conflict` when the key was used for another VM.
pub async fn repeated(store: &dyn Store, project: &Name, key: &str, vm: &Name) -> Result<Option<Operation>, Error> {
    let Some(id) = get::<OperationId>(store, &idempotency_key(project, key)).await? else { return Ok(None) };
    let Some(op) = get::<Operation>(store, &keys::op(project, id.value)).await?.map(|s| s.value) else { return Ok(None) };
    if op.resource.name != *vm {
        let hint = "a new request takes a new key";
        return Err(Error::conflict(format!("this Idempotency-Key was used to create '{}'", op.resource.name)).hint(hint));
    }
    Ok(Some(op))
}
