//! Migrations, asked for and called off. The leader carries them out: here only the wish is written, with its operation.

use vmkeep_api::body::{MovableAnswer, MoveBy};
use vmkeep_core::migrate::TIMEOUT_SECONDS;
use vmkeep_core::migrate::check::{self, Baggage};
use vmkeep_core::place::cpu;
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::image::ImageRecord;
use vmkeep_types::migration::{MigrateOptions, Migration, MovePhase, Stop, Travel};
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkRecord;
use vmkeep_types::operation::{Operation, Wanted};
use vmkeep_types::pool::{PoolRecord, PoolSpec, VolumeRecord};
use vmkeep_types::record::VmChoices;

use super::vm_parts::{busy, record, resource};
use crate::cache::Cache;

use super::{Ask, TRIES_MAX, begin, commit, get, list, operation};

/// Kind of the operations that give a VM another node.
pub const KIND: &str = "vm.migrate";

/// Writes the wish to move a VM.
pub async fn migrate(store: &dyn Store, ask: &Ask, name: &Name, options: MigrateOptions) -> Result<Operation, Error> {
    for _ in 0..TRIES_MAX {
        let found = record(store, &ask.project, name).await?;
        ask.expect(name, &found)?;
        let vm = &found.value;
        if vm.leaving.is_some() {
            return Err(Error::conflict(format!("'{name}' is being deleted")));
        }
        let op = operation(ask, KIND, resource(vm), Wanted::Moved);
        let seconds = options.timeout.map_or(TIMEOUT_SECONDS, |t| i64::try_from(t.millis() / 1000).unwrap_or(i64::MAX));
        let deadline = op.created_at.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(jiff::Timestamp::MAX);
        let migration = Migration {
            op: op.id,
            vm: vm.id,
            project: vm.project.clone(),
            options: options.clone(),
            phase: MovePhase::Asked,
            way: None,
            stop: None,
            broke: None,
            deadline,
        };
        let key = keys::migration(vm.id);
        let txn = Txn::default()
            .when(Compare::Absent(key.clone()))
            .when(Compare::ModifiedAt(found.key.clone(), found.modified))
            .when(Compare::Present(keys::owner(vm.id)))
            .then(typed::put(key.clone(), &migration));
        if let Some(op) = begin(store, ask, txn, op).await? {
            return Ok(op);
        }
        if let Some(other) = get::<Migration>(store, &key).await? {
            let told = format!("'{name}' is migrating already: operation {}", other.value.op);
            return Err(Error::conflict(told).hint(format!("vmkeep op show {0}, vmkeep op cancel {0}", other.value.op)));
        }
        if store.get(&keys::owner(vm.id)).await.map_err(super::store_error)?.is_none() {
            return Err(Error::conflict(format!("'{name}' has no node yet")));
        }
    }
    Err(busy(name))
}

/// Has the leader call a migration off; its operation ends when the guest is safe.
pub async fn call_off(store: &dyn Store, ask: &Ask, op: &Stored<Operation>) -> Result<Operation, Error> {
    let key = keys::migration(vmkeep_types::ids::VmId(op.value.resource.uid));
    let moved_on = || Error::conflict("the operation moved on meanwhile; look again");
    let kept = get::<Migration>(store, &key).await?.filter(|kept| kept.value.op == op.value.id).ok_or_else(moved_on)?;
    match kept.value.phase {
        MovePhase::Asked | MovePhase::Preparing | MovePhase::Fetching | MovePhase::Copying => {}
        MovePhase::Arriving => return Err(Error::conflict("it is too late: the guest is at its destination")),
        MovePhase::Returning => return Err(Error::conflict("it goes back to its host already")),
    }
    let migration = Migration { stop: Some(Stop::Cancelled { by: ask.caller.name.clone() }), ..kept.value };
    let txn = Txn::default().when(Compare::ModifiedAt(key.clone(), kept.modified)).then(typed::put(key, &migration));
    commit(store, txn).await?.map(|_| op.value.clone()).ok_or_else(moved_on)
}

/// What keeps a VM from moving.
pub async fn movable(store: &dyn Store, cache: &Cache, project: &Name, name: &Name) -> Result<MovableAnswer, Error> {
    let vm = record(store, project, name).await?.value;
    let choices = get::<VmChoices>(store, &keys::choices(vm.id)).await?.map(|s| s.value).unwrap_or_default();
    let pools: Vec<PoolSpec> = list::<PoolRecord>(store, keys::ALL_POOLS).await?.into_iter().map(|p| p.value.spec).collect();
    let pool = |name: &Name| pools.iter().find(|pool| pool.name == *name);
    let mut volumes = Vec::new();
    for (disk, id) in &vm.volumes {
        volumes.extend(get::<VolumeRecord>(store, &keys::volume(project, *id)).await?.map(|v| (disk, v.value)));
    }
    let images: Vec<ImageRecord> = match vm.spec.cdroms.iter().any(|cd| cd.image.is_some()) {
        true => list::<ImageRecord>(store, &format!("{}{project}/", keys::ALL_IMAGES)).await?.into_iter().map(|i| i.value).collect(),
        false => Vec::new(),
    };
    let networks: Vec<NetworkRecord> =
        list::<NetworkRecord>(store, &format!("{}{project}/", keys::ALL_NETWORKS)).await?.into_iter().map(|n| n.value).collect();
    let inserted = vm.spec.cdroms.iter().filter_map(|cd| Some((&cd.name, cd.image.as_ref()?)));
    let baggage = Baggage {
        spec: &vm.spec,
        choices: &choices,
        disks: volumes.iter().map(|(disk, v)| (*disk, v, pool(&v.pool))).collect(),
        cds: inserted.map(|(drive, name)| (drive, images.iter().find(|i| i.spec.name == *name).and_then(|i| pool(&i.spec.pool)))).collect(),
        networks: networks.iter().filter(|n| vm.spec.nics.iter().any(|nic| nic.network == n.spec.name)).map(|n| &n.spec).collect(),
    };
    let fleet = cache.fleet(store).await?;
    let abroad = fleet.guest(vm.id).map(|guest| cpu::elsewhere(&fleet, guest)).unwrap_or_default();
    let cpu = abroad.hinders();
    let by = |travel| MoveBy { why_not: check::hindrances(&baggage, travel).iter().map(ToString::to_string).chain(cpu.clone()).collect() };
    let (live, cold) = (by(Travel::Running), by(Travel::Off));
    Ok(MovableAnswer { live, cold, warnings: check::warnings(&baggage).into_iter().chain(abroad.warns()).collect() })
}
