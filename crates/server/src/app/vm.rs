//! VMs: commanded and deleted.

use vmkeep_api::body::{ActionRequest, VmPhase};
use vmkeep_core::warn;
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::operation::{Operation, Wanted};
use vmkeep_types::order::Work;
use vmkeep_types::record::{Hold, Leaving, Owner, Power, PowerWish, VmRecord};
use vmkeep_types::units::Seconds;
use vmkeep_types::vm::RunPolicy;

use super::network::task;
use super::vm_parts::{busy, parts, record, resource};
use super::{Ask, TRIES_MAX, begin, get, operation};

/// One of the verbs of `POST …/actions/{action}`.
pub async fn action(store: &dyn Store, ask: &Ask, name: &Name, action: &str, wish: ActionRequest) -> Result<Operation, Error> {
    match action {
        _ if wish.timeout.is_some() && !matches!(action, "stop" | "restart") => {
            Err(Error::invalid(format!("'{action}' takes no `timeout`")))
        }
        _ if wish.name.is_some() && !matches!(action, "rename" | "clone") => Err(Error::invalid(format!("'{action}' takes no `name`"))),
        _ if wish.image.is_some() && action != "rebuild" => Err(Error::invalid(format!("'{action}' takes no `image`"))),
        _ if wish.migrate.is_some() && action != "migrate" => Err(Error::invalid(format!("'{action}' takes no `migrate`"))),
        "migrate" => super::vm_migrate::migrate(store, ask, name, wish.migrate.unwrap_or_default()).await,
        "start" => {
            refuse_paused(store, ask, name).await?;
            command(store, ask, name, action, PowerWish::On, None).await
        }
        "stop" => command(store, ask, name, action, PowerWish::Off, wish.timeout).await,
        "kill" => command(store, ask, name, action, PowerWish::Killed, None).await,
        "restart" => {
            refuse_unfit(store, ask, name).await?;
            command(store, ask, name, action, PowerWish::Restart, wish.timeout).await
        }
        "reboot" => node_task(store, ask, name, action, |vm| Work::Reboot { vm }).await,
        "reset" => node_task(store, ask, name, action, |vm| Work::Reset { vm }).await,
        "pause" => node_task(store, ask, name, action, |vm| Work::Pause { vm }).await,
        "resume" => node_task(store, ask, name, action, |vm| Work::Resume { vm }).await,
        "rename" => super::vm_copy::rename(store, ask, name, new_name(wish)?).await,
        "clone" => super::vm_copy::clone(store, ask, name, new_name(wish)?).await,
        "reinit" => super::vm_renew::reinit(store, ask, name).await,
        "upgrade-machine" => super::vm_renew::upgrade_machine(store, ask, name).await,
        "rebuild" => super::vm_renew::rebuild(store, ask, name, wish.image).await,
        "release" => leave(store, ask, name, "vm.release", Leaving::Release).await,
        other => {
            let hint = "start, stop, kill, restart, reboot, reset, pause, resume, rename, clone, reinit, upgrade-machine, rebuild, release, migrate";
            Err(Error::not_found("action", other).hint(format!("known are {hint}")))
        }
    }
}

fn new_name(wish: ActionRequest) -> Result<Name, Error> {
    wish.name.ok_or_else(|| Error::invalid("the new name is missing").hint("send {\"name\": \"…\"}"))
}

/// Whoever starts a paused VM means that it runs; whether it may go on is for them to say.
async fn refuse_paused(store: &dyn Store, ask: &Ask, name: &Name) -> Result<(), Error> {
    let view = super::vm_parts::show(store, &ask.project, name).await?;
    if view.status.phase == VmPhase::Paused {
        return Err(Error::conflict(format!("'{name}' is paused, not off")).hint(format!("vmkeep vm resume {name}")));
    }
    Ok(())
}

/// A restart of a running VM whose wish its node could not carry out: it would go down and stay down.
pub(super) async fn refuse_unfit(store: &dyn Store, ask: &Ask, name: &Name) -> Result<(), Error> {
    let view = super::vm_parts::show(store, &ask.project, name).await?;
    let error = view.status.error.filter(|_| matches!(view.status.phase, VmPhase::Running | VmPhase::Paused));
    error.map_or(Ok(()), |error| {
        Err(Error::conflict(format!("'{name}' runs, and would not start again with its wish as it is now: {}", error.message))
            .hint(format!("change it first (`vmkeep vm edit {name}`), or stop and start it anyway")))
    })
}

/// A person's command; it wins over whatever happened before.
pub async fn command(
    store: &dyn Store,
    ask: &Ask,
    name: &Name,
    verb: &str,
    want: PowerWish,
    stop_timeout: Option<Seconds>,
) -> Result<Operation, Error> {
    for _ in 0..TRIES_MAX {
        let found = record(store, &ask.project, name).await?;
        ask.expect(name, &found)?;
        if found.value.spec.run == RunPolicy::Halted && matches!(want, PowerWish::On | PowerWish::Restart) {
            return Err(Error::conflict(format!("'{name}' has run: halted")).hint(format!("vmkeep vm set {name} run=on-failure")));
        }
        let key = keys::power(found.value.id);
        if found.value.leaving.is_some() {
            return Err(Error::conflict(format!("'{name}' is being deleted")));
        }
        let Some(old) = get::<Power>(store, &key).await? else { return Err(Error::not_found("vm", name)) };
        let held =
            matches!(want, PowerWish::Off | PowerWish::Killed).then(|| Hold { by: ask.caller.name.clone(), at: jiff::Timestamp::now() });
        let new = Power { want, cycle: old.value.cycle + 1, held, stop_timeout };
        let wanted = Wanted::Vm { spec_revision: found.modified, power_cycle: new.cycle };
        let op = operation(ask, &format!("vm.{verb}"), resource(&found.value), wanted);
        let txn = Txn::default()
            .when(Compare::ModifiedAt(key.clone(), old.modified))
            .when(Compare::ModifiedAt(found.key, found.modified))
            .then(typed::put(key, &new));
        if let Some(op) = begin(store, ask, txn, op).await? {
            return Ok(op);
        }
    }
    Err(busy(name))
}

/// What may go wrong when a VM that is off starts now.
pub async fn start_warnings(store: &dyn Store, project: &Name, name: &Name) -> Result<Vec<String>, Error> {
    let record = record(store, project, name).await?.value;
    let Some(parts) = super::vm_parts::parts(store, project, record.id).await? else { return Ok(Vec::new()) };
    if parts.seen.as_ref().and_then(|seen| seen.domain.known()).is_some_and(|domain| domain.is_live()) {
        return Ok(Vec::new());
    }
    let nodes = match parts.owner {
        Some(owner) => super::facts_of(store, &[owner.node]).await?,
        None => super::few_nodes(store).await?.1,
    };
    Ok(warn::no_room(record.spec.memory.size, &super::node::free_memory(store, &nodes).await?).into_iter().collect())
}

/// Something for the node to do now.
async fn node_task(store: &dyn Store, ask: &Ask, name: &Name, verb: &str, work: impl FnOnce(VmId) -> Work) -> Result<Operation, Error> {
    let stored = record(store, &ask.project, name).await?;
    let unchanged = ask.expect(name, &stored)?;
    let found = stored.value;
    let owner =
        get::<Owner>(store, &keys::owner(found.id)).await?.ok_or_else(|| Error::conflict(format!("'{name}' has no node yet")))?.value;
    let op = operation(ask, &format!("vm.{verb}"), resource(&found), Wanted::Task);
    let txn = Txn { compare: unchanged.into_iter().collect(), ..Txn::default() }.when(Compare::Present(keys::owner(found.id))).then(task(
        &owner.node,
        &ask.project,
        op.id,
        work(found.id),
    ));
    begin(store, ask, txn, op).await?.ok_or_else(|| busy(name))
}

/// Begins the end of a VM.
pub async fn leave(store: &dyn Store, ask: &Ask, name: &Name, kind: &str, leaving: Leaving) -> Result<Operation, Error> {
    for _ in 0..TRIES_MAX {
        let found = record(store, &ask.project, name).await?;
        ask.expect(name, &found)?;
        let Stored { key, value, modified, .. } = found;
        if value.spec.protect && leaving != Leaving::Release {
            let hint = format!("vmkeep vm set {name} protect=false");
            return Err(Error::conflict(format!("'{name}' is protected from deletion")).hint(hint));
        }
        if value.leaving.is_some_and(|already| already != leaving) {
            return Err(Error::conflict(format!("'{name}' is being deleted already")));
        }
        if value.leaving.is_some()
            && let Some(op) = open_leave(store, ask, value.id).await?
        {
            return Ok(op);
        }
        if leaving == Leaving::Delete {
            refuse_conflict(store, ask, &value).await?;
        }
        let op = operation(ask, kind, resource(&value), Wanted::Gone);
        let going = VmRecord { leaving: Some(leaving), ..value };
        let txn = Txn::default().when(Compare::ModifiedAt(key.clone(), modified)).then(typed::put(key, &going));
        if let Some(op) = begin(store, ask, txn, op).await? {
            return Ok(op);
        }
    }
    Err(busy(name))
}

/// An overlay that somebody laid over a disk has all writes since: it is not known here, and nothing without the file below it.
async fn refuse_conflict(store: &dyn Store, ask: &Ask, vm: &VmRecord) -> Result<(), Error> {
    let seen = parts(store, &ask.project, vm.id).await?.and_then(|parts| parts.seen);
    let Some(first) = seen.as_ref().and_then(|seen| seen.conflicts.first()) else { return Ok(()) };
    let name = &vm.spec.name;
    let told = format!("{} of '{name}' was changed behind vmkeep's back: it is {}, not {}", first.field, first.from, first.to);
    let hint = format!("`vmkeep vm adopt {name} --disks` first, so that all of it is deleted; or delete with --keep-disks");
    Err(Error::conflict(told).hint(hint))
}

/// The operation that tells of the end already begun: a request repeated gets the same answer.
async fn open_leave(store: &dyn Store, ask: &Ask, id: VmId) -> Result<Option<Operation>, Error> {
    let ops = super::list::<Operation>(store, &keys::ops(&ask.project)).await?;
    let is_it = |op: &Operation| op.resource.uid == id.0 && op.wanted == Wanted::Gone && !op.state.is_over();
    Ok(ops.into_iter().map(|stored| stored.value).find(is_it))
}
