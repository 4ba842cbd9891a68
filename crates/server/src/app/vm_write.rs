//! Writing a VM's wish: every name resolved, every problem told at once, volumes and index in the same transaction.

use std::time::Duration;

use vmkeep_core::change::{self, Effect};
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::check;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::{OperationId, Revision, VmId};
use vmkeep_types::manifest;
use vmkeep_types::operation::{Operation, Wanted};
use vmkeep_types::record::{Power, PowerWish, VmChoices, VmRecord};
use vmkeep_types::vm::{RunPolicy, VmSpec};

use super::ask::{self, IfMatch, stale, write};
use super::vm_parts::{self, busy, resource};
use super::vm_resolve::{Coming, chosen_macs, dropped_macs, free_name, resolve};
use super::{Ask, TRIES_MAX, commit, done, get, operation, put_op};
use crate::view::restore_secrets;

/// Random bytes of a MAC, behind QEMU's prefix.
const MAC_RANDOM_BYTES: usize = 3;
/// Tries of a VM that is to be. It compares the networks and images that it names, and in the first rollout over many nodes the leader
/// notes more of them there for seconds.
const CREATES_MAX: u32 = 100;
/// After the first [`TRIES_MAX`], between two.
const REST: Duration = Duration::from_millis(25);

/// What a write came to.
#[derive(Clone, Debug)]
pub struct Written {
    pub op: Operation,
    pub changed: Changed,
    /// What the wish will not do as it may be meant.
    pub warnings: Vec<String>,
    /// The wish's revision; None after a repetition that wrote nothing.
    pub revision: Option<Revision>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    Created,
    Updated,
    Nothing,
}

/// What is done with a wish that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Same {
    /// Nothing.
    Kept,
    /// Written again: drift is mended so.
    Renewed,
}

/// A new VM; a taken name is a conflict.
pub async fn create(store: &dyn Store, ask: &Ask, spec: VmSpec) -> Result<Written, Error> {
    let spec = check::normalize(spec);
    for tries in 0..CREATES_MAX {
        if tries >= TRIES_MAX {
            tokio::time::sleep(REST).await;
        }
        let tried = try_create(store, ask, &spec).await;
        if let Ok(Some(written)) = tried {
            return Ok(written);
        }
        // Its volumes are in the way too: that would be the longer way to say it.
        if get::<VmId>(store, &keys::name("vm", &ask.project, &spec.name)).await?.is_some() {
            let hint = format!("change it with 'vmkeep vm set {}', or take another name", spec.name);
            return Err(Error::conflict(format!("there is a VM '{}' already", spec.name)).hint(hint));
        }
        tried?;
    }
    Err(busy(&spec.name))
}

/// None: something of what it was decided from was written meanwhile.
async fn try_create(store: &dyn Store, ask: &Ask, spec: &VmSpec) -> Result<Option<Written>, Error> {
    let name = free_name(store, ask, &spec.name).await?;
    let mut resolved = resolve(store, ask, spec, None, &Coming::default()).await?;
    let id = VmId(uuid::Uuid::new_v4());
    let volumes = resolved.volumes.iter().map(|(disk, v)| (disk.clone(), v.id)).collect();
    let record = VmRecord { volumes, ..VmRecord::created(id, ask.project.clone(), spec.clone(), jiff::Timestamp::now()) };
    let want = if runs_by_itself(record.spec.run) { PowerWish::On } else { PowerWish::Off };
    let op = operation(ask, "vm.create", resource(&record), Wanted::Vm { spec_revision: Revision(0), power_cycle: 1 });
    let name_key = keys::name("vm", &ask.project, &record.spec.name);
    let chosen = choices(&record.spec, VmChoices::default());
    let txn = Txn::default()
        .when(Compare::Absent(name_key.clone()))
        .then(typed::put(name_key, &id))
        .then(typed::put(keys::vm(&ask.project, id), &record))
        .then(typed::put(keys::choices(id), &chosen))
        .then(typed::put(keys::power(id), &Power { want, cycle: 1, held: None, stop_timeout: None }));
    let warnings = resolved.warnings(store, &record.spec, None).await?;
    let txn = claim_macs(&VmChoices::default(), &chosen, id, name.take(id, txn));
    let written = write(store, ask, resolved.write(ask, id, txn), op).await?;
    Ok(written.map(|ask::Written { op, at }| match at {
        Some(_) => Written { op, changed: Changed::Created, warnings, revision: at },
        None => Written { op, changed: Changed::Nothing, warnings: Vec::new(), revision: None },
    }))
}

fn runs_by_itself(run: RunPolicy) -> bool {
    matches!(run, RunPolicy::Always | RunPolicy::OnFailure)
}

/// Creates or replaces a wish.
pub async fn put(store: &dyn Store, ask: &Ask, spec: VmSpec, same: Same) -> Result<Written, Error> {
    for _ in 0..TRIES_MAX {
        match vm_parts::record(store, &ask.project, &spec.name).await {
            Err(e) if e.code == Code::NotFound && ask.if_match.is_none() => match create(store, ask, spec.clone()).await {
                Err(e) if e.code == Code::Conflict => continue,
                other => return other,
            },
            Err(e) => return Err(e),
            Ok(old) => {
                if let Some(written) = update(store, ask, &old, spec.clone(), same).await? {
                    return Ok(written);
                }
                if matches!(ask.if_match, Some(IfMatch::At(_))) {
                    return Err(stale(&spec.name, vm_parts::record(store, &ask.project, &spec.name).await?.modified));
                }
            }
        }
    }
    Err(busy(&spec.name))
}

/// None: somebody else wrote in between.
async fn update(store: &dyn Store, ask: &Ask, old: &Stored<VmRecord>, spec: VmSpec, same: Same) -> Result<Option<Written>, Error> {
    ask.expect(&spec.name, old)?;
    if old.value.leaving.is_some() {
        return Err(Error::conflict(format!("'{}' is being deleted", spec.name)));
    }
    let mut spec = check::normalize(spec);
    restore_secrets(&mut spec, &old.value.spec);
    if spec == old.value.spec && same == Same::Kept {
        let op = unchanged(store, ask, old).await?;
        return Ok(Some(Written { op, changed: Changed::Nothing, warnings: Vec::new(), revision: Some(old.modified) }));
    }
    let refusals = change::refusals(&old.value.spec, &spec);
    if !refusals.is_empty() {
        return Err(manifest::refused(&format!("vm {}", spec.name), refusals));
    }
    let mut resolved = resolve(store, ask, &spec, Some(&old.value), &Coming::default()).await?;
    let mut warnings = resolved.warnings(store, &spec, Some(&old.value.spec)).await?;
    let late = needs_reinit(&old.value.spec, &spec);
    let mut record = VmRecord { spec, ..old.value.clone() };
    if late.is_some() && was_ever_on(store, record.id).await? {
        record.reinit_due = Some(record.instance);
    }
    warnings.extend(late);
    record.volumes = resolved.volumes.iter().map(|(disk, v)| (disk.clone(), v.id)).collect();
    let kept = get::<VmChoices>(store, &keys::choices(record.id)).await?;
    let choices_key = keys::choices(record.id);
    let start = starts_now(store, old, &record).await?;
    let power_cycle = start.as_ref().map_or(0, |start| start.value.cycle);
    let op = operation(ask, "vm.update", resource(&record), Wanted::Vm { spec_revision: Revision(0), power_cycle });
    let mut txn = Txn::default().when(Compare::ModifiedAt(old.key.clone(), old.modified)).then(typed::put(old.key.clone(), &record));
    if let Some(power) = start {
        txn = txn.when(Compare::ModifiedAt(power.key.clone(), power.modified)).then(typed::put(power.key, &power.value));
    }
    let chosen = kept.as_ref().map(|kept| kept.value.clone()).unwrap_or_default();
    txn.then.extend(dropped_macs(&old.value.spec, &record.spec, &chosen));
    if let Some(kept) = kept {
        let mut new = choices(&record.spec, kept.value.clone());
        if record.spec.cpu.model == "cluster" && old.value.spec.cpu.model != "cluster" {
            // What was chosen for this VM alone gives way to what all nodes can run.
            new.cpu_xml = None;
        }
        if new != kept.value {
            txn = claim_macs(&kept.value, &new, record.id, txn);
            txn = txn.when(Compare::ModifiedAt(choices_key.clone(), kept.modified)).then(typed::put(choices_key, &new));
        }
    }
    txn = resolved.write(ask, record.id, txn);
    let written = write(store, ask, txn, op).await?;
    Ok(written.map(|ask::Written { op, at }| Written { op, changed: Changed::Updated, warnings, revision: at }))
}

/// A guest reads its seed at its first boot and not again.
fn needs_reinit(old: &VmSpec, new: &VmSpec) -> Option<String> {
    let late: Vec<String> =
        change::changes(old, new).into_iter().filter(|(_, effect)| *effect == Effect::Reinit).map(|(change, _)| change.field).collect();
    let told = || format!("{}: a guest that has booted before looks at it after `vmkeep vm reinit {}` only", late.join(", "), new.name);
    (!late.is_empty()).then(told)
}

/// Was it ordered to run at any time? One that stays off after it was made has its first order only.
async fn was_ever_on(store: &dyn Store, id: VmId) -> Result<bool, Error> {
    let power = get::<Power>(store, &keys::power(id)).await?.map(|power| power.value);
    Ok(power.is_some_and(|power| power.want == PowerWish::On || power.cycle > 1))
}

/// The power of a VM that is off because its policy was so, and whose new policy starts it; a hold outlives the change.
async fn starts_now(store: &dyn Store, old: &Stored<VmRecord>, new: &VmRecord) -> Result<Option<Stored<Power>>, Error> {
    if runs_by_itself(old.value.spec.run) || !runs_by_itself(new.spec.run) {
        return Ok(None);
    }
    let power = get::<Power>(store, &keys::power(new.id)).await?;
    let off = power.filter(|power| power.value.want == PowerWish::Off && power.value.held.is_none());
    Ok(off.map(|off| {
        let value = Power { want: PowerWish::On, cycle: off.value.cycle + 1, ..off.value };
        Stored { value, ..off }
    }))
}

/// An operation that is done, for a wish that is there already: written once for each revision of the wish, however often
/// it is asked for.
async fn unchanged(store: &dyn Store, ask: &Ask, old: &Stored<VmRecord>) -> Result<Operation, Error> {
    let record = &old.value;
    let at = u64::try_from(record.created_at.as_millisecond()).unwrap_or_default();
    let mut own = [0; 10];
    own[..8].copy_from_slice(&old.modified.0.to_be_bytes());
    own.iter_mut().zip(record.id.0.into_bytes()).for_each(|(byte, of_vm)| *byte ^= of_vm);
    let id = OperationId(uuid::Builder::from_unix_timestamp_millis(at, &own).into_uuid());
    let wanted = Wanted::Vm { spec_revision: old.modified, power_cycle: 0 };
    let op = done(Operation { id, ..operation(ask, "vm.update", resource(record), wanted) });
    let key = keys::op(&ask.project, id);
    if let Some(there) = get::<Operation>(store, &key).await? {
        return Ok(there.value);
    }
    commit(store, Txn::default().when(Compare::Absent(key)).then(put_op(&op))).await?;
    Ok(op)
}

/// Enters MACs that were chosen anew into the index. With a thousand VMs two alike would be no rarity: then nothing is written,
/// and others are drawn.
pub(super) fn claim_macs(before: &VmChoices, after: &VmChoices, vm: VmId, txn: Txn) -> Txn {
    let new = chosen_macs(after);
    new.difference(&chosen_macs(before)).fold(txn, |txn, mac| {
        let key = keys::mac(mac);
        txn.when(Compare::Absent(key.clone())).then(typed::put(key, &vm))
    })
}

/// MACs and serials for what has none yet.
pub(super) fn choices(spec: &VmSpec, mut choices: VmChoices) -> VmChoices {
    for nic in spec.nics.iter().filter(|nic| nic.mac == "auto") {
        choices.macs.entry(nic.name.clone()).or_insert_with(random_mac);
    }
    for disk in spec.disks.iter().filter(|disk| disk.serial == "auto") {
        // What a guest sees in /dev/disk/by-id: 20 characters at most (virtio).
        choices.serials.entry(disk.name.clone()).or_insert_with(|| uuid::Uuid::new_v4().simple().to_string()[..20].to_owned());
    }
    choices
}

/// 52:54:00 is QEMU's prefix of locally administered addresses.
fn random_mac() -> String {
    let random = uuid::Uuid::new_v4().into_bytes();
    let tail: Vec<String> = random[..MAC_RANDOM_BYTES].iter().map(|b| format!("{b:02x}")).collect();
    format!("52:54:00:{}", tail.join(":"))
}
