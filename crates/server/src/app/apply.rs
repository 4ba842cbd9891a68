//! `POST /v1/apply`: plan or carry out several manifests; nothing is written while anything is wrong.

use std::collections::BTreeMap;

use vmkeep_api::body::{ApplyAction, ApplyAnswer, ApplyRequest, ApplyResult, ChangeWhen, PlannedChange};
use vmkeep_core::change::{self, Effect};
use vmkeep_store::Store;
use vmkeep_types::check;
use vmkeep_types::error::{Code, Error, Problem};
use vmkeep_types::manifest::{self, Manifest};
use vmkeep_types::name::Name;
use vmkeep_types::observed::FieldChange;
use vmkeep_types::record::{PowerWish, Role};
use vmkeep_types::vm::VmSpec;

use super::vm_resolve::{Coming, check_only, free_name};
use super::vm_write::{Changed, Same};
use super::{Ask, image, network, placement, pool, vm, vm_parts, vm_write};
use crate::cache::Cache;
use crate::view;

/// Manifests in one request.
const MANIFESTS_MAX: usize = 1000;

pub async fn apply(store: &dyn Store, cache: &Cache, ask: &Ask, request: ApplyRequest) -> Result<ApplyAnswer, Error> {
    if request.manifests.len() > MANIFESTS_MAX {
        return Err(Error::new(Code::TooLarge, format!("{} manifests; the limit is {MANIFESTS_MAX}", request.manifests.len())));
    }
    let manifests = read_all(request.manifests)?;
    let coming = coming(store, ask, &manifests).await?;
    let mut results = Vec::new();
    let mut problems = each_once(&manifests);
    let mut code = Code::Invalid;
    for (n, manifest) in manifests.iter().enumerate() {
        match plan_one(store, ask, manifest, &coming).await {
            Ok(result) => results.push(result),
            Err(error) => {
                // The one code that a program treats differently from a wrong manifest.
                code = if error.code == Code::Forbidden { Code::Forbidden } else { code };
                problems.extend(at(n, error));
            }
        }
    }
    if !problems.is_empty() {
        return Err(Error { code, ..manifest::refused("the list of manifests", problems) });
    }
    warn_of_reserve(store, cache, ask, &manifests, &mut results).await?;
    if !request.dry_run {
        carry_out_all(store, ask, manifests, &mut results, request.restart).await?;
    }
    Ok(ApplyAnswer { results })
}

/// Says when the VMs of this request together take the room that is kept for a failed node.
async fn warn_of_reserve(
    store: &dyn Store,
    cache: &Cache,
    ask: &Ask,
    manifests: &[Manifest],
    results: &mut [ApplyResult],
) -> Result<(), Error> {
    let changed = |result: &ApplyResult| matches!(result.action, ApplyAction::Create | ApplyAction::Update);
    let specs = manifests.iter().zip(results.iter()).filter_map(|(manifest, result)| match manifest {
        Manifest::Vm(spec) if changed(result) => Some(spec),
        _ => None,
    });
    let specs: Vec<&VmSpec> = specs.collect();
    if let Some(words) = placement::takes_reserve(store, cache, &ask.project, &specs).await? {
        let last = results.iter_mut().rfind(|result| result.kind == "vm" && changed(result));
        last.into_iter().for_each(|result| result.warnings.push(words.clone()));
    }
    Ok(())
}

/// What VMs of the same request may name although it is not there yet.
async fn coming(store: &dyn Store, ask: &Ask, manifests: &[Manifest]) -> Result<Coming, Error> {
    let mut coming = Coming::default();
    for manifest in manifests {
        match manifest {
            Manifest::Network(spec) => drop(coming.networks.insert(spec.name.clone())),
            Manifest::Image(spec) if found(image::find(store, &ask.project, &spec.name).await)?.is_none() => {
                coming.images.insert(spec.name.clone());
            }
            Manifest::Pool(spec) => drop(coming.pools.insert(spec.name.clone())),
            Manifest::Image(_) | Manifest::Vm(_) => {}
        }
    }
    Ok(coming)
}

/// What others of the same request may need comes first.
fn turn(manifest: &Manifest) -> u8 {
    match manifest {
        Manifest::Pool(_) => 0,
        Manifest::Network(_) | Manifest::Image(_) => 1,
        Manifest::Vm(_) => 2,
    }
}

/// Pools, then networks and images, then the VMs that may be on them.
async fn carry_out_all(
    store: &dyn Store,
    ask: &Ask,
    manifests: Vec<Manifest>,
    results: &mut [ApplyResult],
    restart: bool,
) -> Result<(), Error> {
    let mut in_turn: Vec<_> = manifests.into_iter().zip(results).collect();
    in_turn.sort_by_key(|(manifest, _)| turn(manifest));
    let mut written = Vec::new();
    for (manifest, result) in in_turn {
        let (kind, name) = (manifest.kind(), manifest.name().clone());
        let said = |error: Error| {
            let rest =
                if written.is_empty() { "nothing was written".to_owned() } else { format!("written before: {}", written.join(", ")) };
            Error { message: format!("{kind} {name}: {}; {rest}", error.message), ..error }
        };
        carry_out(store, ask, manifest, result, restart).await.map_err(said)?;
        if result.action != ApplyAction::Unchanged {
            written.push(format!("{kind} {name}"));
        }
    }
    Ok(())
}

/// What two manifests of one request both claim: a name, a MAC, a volume. What others have is looked up later.
fn each_once(manifests: &[Manifest]) -> Vec<Problem> {
    let mut seen: BTreeMap<(&str, String), usize> = BTreeMap::new();
    let mut problems = Vec::new();
    for (n, manifest) in manifests.iter().enumerate() {
        let mut claims = vec![(manifest.kind(), "name".to_owned(), manifest.name().to_string())];
        if let Manifest::Vm(spec) = manifest {
            let macs = spec.nics.iter().filter(|nic| nic.mac != "auto");
            claims.extend(macs.map(|nic| ("MAC", format!("nics[{}].mac", nic.name), nic.mac.to_lowercase())));
            let volumes = spec.disks.iter().filter_map(|disk| Some((disk, disk.volume.as_ref()?)));
            claims.extend(volumes.map(|(disk, volume)| ("volume", format!("disks[{}].volume", disk.name), volume.to_string())));
        }
        for (what, field, value) in claims {
            let message = |other: &usize| format!("{what} '{value}' is in manifests[{other}] too");
            match seen.get(&(what, value.clone())) {
                Some(other) if *other != n => problems.push(Problem { field: format!("manifests[{n}].{field}"), message: message(other) }),
                // Twice in one manifest is told by its own check.
                Some(_) => {}
                None => drop(seen.insert((what, value), n)),
            }
        }
    }
    problems
}

fn read_all(values: Vec<serde_json::Value>) -> Result<Vec<Manifest>, Error> {
    let mut problems = Vec::new();
    let mut manifests = Vec::new();
    for (n, value) in values.into_iter().enumerate() {
        match manifest::from_json(value) {
            Ok(manifest) => {
                problems.extend(manifest.problems().into_iter().map(|p| Problem { field: format!("manifests[{n}].{}", p.field), ..p }));
                manifests.push(manifest.normalized());
            }
            Err(error) => problems.extend(at(n, error)),
        }
    }
    if problems.is_empty() { Ok(manifests) } else { Err(manifest::refused("the list of manifests", problems)) }
}

/// An error of one manifest as problems of the request.
fn at(n: usize, error: Error) -> Vec<Problem> {
    if error.problems.is_empty() {
        let hint = error.hint.map(|h| format!(" ({h})")).unwrap_or_default();
        return vec![Problem { field: format!("manifests[{n}]"), message: format!("{}{hint}", error.message) }];
    }
    error.problems.into_iter().map(|p| Problem { field: format!("manifests[{n}].{}", p.field), ..p }).collect()
}

async fn plan_one(store: &dyn Store, ask: &Ask, manifest: &Manifest, coming: &Coming) -> Result<ApplyResult, Error> {
    let mut result = ApplyResult {
        kind: manifest.kind().into(),
        name: manifest.name().clone(),
        action: ApplyAction::Create,
        changes: Vec::new(),
        warnings: Vec::new(),
        operation: None,
    };
    match manifest {
        Manifest::Vm(spec) => plan_vm(store, ask, spec, coming, &mut result).await?,
        Manifest::Network(spec) => {
            if ask.caller.role < Role::Admin {
                return Err(Error::new(Code::Forbidden, "only admins may change networks"));
            }
            network::refuse_overlap(store, ask, spec).await?;
            if let Some(old) = found(network::find(store, &ask.project, &spec.name).await)? {
                changed(&mut result, change::spec_changes(&old.spec, spec));
            }
        }
        Manifest::Image(spec) => {
            if let Some(old) = found(image::find(store, &ask.project, &spec.name).await)? {
                let refusals = change::image_refusals(&old.spec, spec);
                if !refusals.is_empty() {
                    return Err(manifest::refused(&format!("image {}", spec.name), refusals));
                }
                if old.leaving.is_some() {
                    return Err(Error::conflict(format!("image '{}' is being deleted", spec.name)));
                }
                changed(&mut result, change::spec_changes(&old.spec, spec));
            }
        }
        Manifest::Pool(spec) => {
            if ask.caller.role < Role::Admin {
                return Err(Error::new(Code::Forbidden, "only admins may change pools"));
            }
            if let Some(old) = pool::check_only(store, spec).await? {
                changed(&mut result, change::spec_changes(&old.spec, spec));
            }
        }
    }
    Ok(result)
}

/// What is there already, and what becomes of it.
fn changed(result: &mut ApplyResult, changes: Vec<FieldChange>) {
    result.action = if changes.is_empty() { ApplyAction::Unchanged } else { ApplyAction::Update };
    result.changes = changes.into_iter().map(|change| PlannedChange { change, when: ChangeWhen::Live }).collect();
}

fn found<T>(looked: Result<T, Error>) -> Result<Option<T>, Error> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.code == Code::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

async fn plan_vm(store: &dyn Store, ask: &Ask, spec: &VmSpec, coming: &Coming, result: &mut ApplyResult) -> Result<(), Error> {
    let Some(old) = found(vm_parts::record(store, &ask.project, &spec.name).await)? else {
        free_name(store, ask, &spec.name).await?;
        let resolved = check_only(store, ask, spec, None, coming).await?;
        result.warnings = resolved.warnings(store, &check::normalize(spec.clone()), None).await?;
        return Ok(());
    };
    if old.value.leaving.is_some() {
        return Err(Error::conflict(format!("'{}' is being deleted", spec.name)));
    }
    let mut wish = check::normalize(spec.clone());
    view::restore_secrets(&mut wish, &old.value.spec);
    let refusals = change::refusals(&old.value.spec, &wish);
    if !refusals.is_empty() {
        return Err(manifest::refused(&format!("vm {}", spec.name), refusals));
    }
    let resolved = check_only(store, ask, &wish, Some(&old.value), coming).await?;
    if wish != old.value.spec {
        result.warnings = resolved.warnings(store, &wish, Some(&old.value.spec)).await?;
    }
    let parts = vm_parts::parts(store, &ask.project, old.value.id).await?;
    let seen = parts.and_then(|p| p.seen);
    let domain = seen.as_ref().and_then(|s| s.domain.known());
    let live = domain.is_some_and(|d| d.is_live());
    for (change, effect) in change::changes(&old.value.spec, &wish) {
        let when = match effect {
            Effect::Restart if live => ChangeWhen::Restart,
            Effect::Reinit if domain.is_some() => ChangeWhen::Reinit,
            Effect::Live | Effect::Restart | Effect::Reinit => ChangeWhen::Live,
        };
        result.changes.push(PlannedChange { change, when });
    }
    result.action = if result.changes.is_empty() { ApplyAction::Unchanged } else { ApplyAction::Update };
    if let Some(seen) = seen {
        let planned = |when| move |change: FieldChange| PlannedChange { change, when };
        if !seen.drift.is_empty() && result.action == ApplyAction::Unchanged {
            result.action = ApplyAction::Mend;
        }
        result.changes.extend(seen.drift.into_iter().map(planned(ChangeWhen::Drift)));
        if live {
            let told = |field: &str| result.changes.iter().any(|planned| planned.change.field == field);
            let waiting: Vec<_> =
                seen.pending.into_iter().filter(|change| !told(&change.field)).map(planned(ChangeWhen::Pending)).collect();
            result.changes.extend(waiting);
        }
        result.changes.extend(seen.conflicts.into_iter().map(planned(ChangeWhen::Conflict)));
    }
    Ok(())
}

/// An earlier change still waits for a cold start.
async fn waits_for_restart(store: &dyn Store, ask: &Ask, name: &Name) -> Result<bool, Error> {
    let record = vm_parts::record(store, &ask.project, name).await?.value;
    let seen = vm_parts::parts(store, &ask.project, record.id).await?.and_then(|parts| parts.seen);
    Ok(seen.is_some_and(|seen| !seen.pending.is_empty() && seen.domain.known().is_some_and(|d| d.is_live())))
}

async fn carry_out(store: &dyn Store, ask: &Ask, manifest: Manifest, result: &mut ApplyResult, restart: bool) -> Result<(), Error> {
    match manifest {
        Manifest::Vm(spec) => {
            if result.action == ApplyAction::Unchanged {
                if restart && waits_for_restart(store, ask, &spec.name).await? {
                    vm::refuse_unfit(store, ask, &spec.name).await?;
                    result.operation = Some(vm::command(store, ask, &spec.name, "restart", PowerWish::Restart, None).await?);
                }
                return Ok(());
            }
            let same = if result.action == ApplyAction::Mend { Same::Renewed } else { Same::Kept };
            let name = spec.name.clone();
            let written = vm_write::put(store, ask, spec, same).await?;
            if written.changed != Changed::Nothing {
                result.operation = Some(written.op);
            }
            let needs_restart = match written.changed {
                Changed::Created => false,
                Changed::Updated => result.changes.iter().any(|c| matches!(c.when, ChangeWhen::Restart | ChangeWhen::Pending)),
                Changed::Nothing => restart && waits_for_restart(store, ask, &name).await?,
            };
            if restart && needs_restart {
                vm::refuse_unfit(store, ask, &name).await?;
                result.operation = Some(vm::command(store, ask, &name, "restart", PowerWish::Restart, None).await?);
            }
        }
        Manifest::Network(spec) => {
            if result.action != ApplyAction::Unchanged {
                network::put(store, ask, spec).await?;
            }
        }
        Manifest::Image(spec) => match result.action {
            ApplyAction::Create => result.operation = Some(image::create(store, ask, None, spec).await?),
            ApplyAction::Update => drop(image::put(store, ask, spec).await?),
            ApplyAction::Mend | ApplyAction::Unchanged => {}
        },
        Manifest::Pool(spec) => {
            if result.action != ApplyAction::Unchanged {
                pool::put(store, ask, spec).await?;
            }
        }
    }
    Ok(())
}
