//! Records as they are shown. A status is computed from the agent's word each time and stored nowhere.

use std::collections::BTreeMap;

use serde_json::Value;
use vmkeep_api::body::{VmPhase, VmStatus, VmView};
use vmkeep_types::error::Problem;
use vmkeep_types::ids::Revision;
use vmkeep_types::observed::{Doing, DomainState, Observed, RestartCount, Seen};
use vmkeep_types::record::{Owner, Power, PowerWish, VmChoices, VmRecord};
use vmkeep_types::vm::{RunPolicy, VmSpec};

/// What a secret looks like in every answer.
const HIDDEN: &str = "********";

/// A VM from its keys.
pub struct VmParts {
    pub record: VmRecord,
    pub spec_revision: Revision,
    pub choices: VmChoices,
    pub power: Option<Power>,
    pub owner: Option<Owner>,
    pub seen: Option<Seen>,
}

pub fn vm(parts: VmParts) -> VmView {
    let status = status(&parts);
    let VmParts { record, spec_revision, choices, .. } = parts;
    let mut spec = record.spec;
    hide_secrets(&mut spec);
    VmView {
        id: record.id,
        project: record.project,
        spec,
        spec_revision,
        origin: record.origin,
        created_at: record.created_at,
        choices,
        status,
    }
}

/// Fields of a cloud-init user that hold a password.
const USER_SECRETS: [&str; 3] = ["passwd", "hashed_passwd", "plain_text_passwd"];

/// Every password of a wish with its path. Text in which people may have put one (`user_data`) is not looked into.
fn secrets(spec: &mut VmSpec) -> Vec<(String, &mut String)> {
    let display = spec.display.as_mut().and_then(|d| d.password.as_mut()).map(|p| ("display.password".to_owned(), p));
    let mut found: Vec<_> = display.into_iter().collect();
    let Some(cloud_init) = spec.cloud_init.as_mut() else { return found };
    found.extend(cloud_init.password.as_mut().map(|p| ("cloud_init.password".to_owned(), p)));
    for (n, user) in cloud_init.users.iter_mut().enumerate() {
        let who = user.get("name").and_then(Value::as_str).map_or_else(|| n.to_string(), str::to_owned);
        let Value::Object(fields) = user else { continue };
        for (field, value) in fields {
            if let (true, Value::String(secret)) = (USER_SECRETS.contains(&field.as_str()), value) {
                found.push((format!("cloud_init.users[{who}].{field}"), secret));
            }
        }
    }
    found
}

/// Passwords leave the server for the node only.
fn hide_secrets(spec: &mut VmSpec) {
    secrets(spec).into_iter().for_each(|(_, secret)| HIDDEN.clone_into(secret));
}

/// A wish that was read, edited and sent back keeps the secrets it could not see.
pub fn restore_secrets(new: &mut VmSpec, old: &VmSpec) {
    let mut old = old.clone();
    let kept: BTreeMap<String, &mut String> = secrets(&mut old).into_iter().collect();
    for (path, secret) in secrets(new).into_iter().filter(|(_, secret)| *secret == HIDDEN) {
        if let Some(kept) = kept.get(&path) {
            secret.clone_from(kept);
        }
    }
}

/// Stars where a secret is wanted, and nothing to put in their place: the guest would get them as its password.
pub fn unrestored_secrets(spec: &VmSpec) -> Vec<Problem> {
    let mut spec = spec.clone();
    let hidden = secrets(&mut spec).into_iter().filter(|(_, secret)| *secret == HIDDEN);
    hidden.map(|(field, _)| Problem { field, message: "vmkeep does not show passwords; write the real one here".into() }).collect()
}

fn status(parts: &VmParts) -> VmStatus {
    let (phase, text) = phase(parts);
    let seen = parts.seen.as_ref();
    VmStatus {
        phase,
        text,
        node: parts.owner.as_ref().map(|o| o.node.clone()),
        generation: parts.owner.as_ref().map(|o| o.generation),
        since: seen.map(|s| s.since),
        pending: seen.map(|s| s.pending.clone()).unwrap_or_default(),
        drift: seen.map(|s| s.drift.clone()).unwrap_or_default(),
        conflicts: seen.map(|s| s.conflicts.clone()).unwrap_or_default(),
        error: seen.and_then(|s| s.error.clone()),
        restarts: seen.map_or_else(RestartCount::default, |s| s.restarts.clone()),
        accel: seen.and_then(|s| s.qemu.as_ref()).map(|q| q.accel.clone()),
        qemu_outdated: seen.and_then(|s| s.qemu.as_ref()).is_some_and(|q| q.outdated),
        warnings: seen.map(|s| s.warnings.clone()).unwrap_or_default(),
    }
}

fn phase(parts: &VmParts) -> (VmPhase, String) {
    let plain = |phase, text: &str| (phase, text.to_owned());
    if parts.record.leaving.is_some() {
        return plain(VmPhase::Deleting, "deleting");
    }
    let Some(seen) = &parts.seen else {
        let text = if parts.owner.is_some() { "waiting for its node" } else { "waiting for a node" };
        return plain(VmPhase::Pending, text);
    };
    match (&seen.domain, &seen.doing) {
        (_, Some(Doing::Stopping { kill_at: Some(at) })) => (VmPhase::Stopping, format!("stopping (killed at {at})")),
        (_, Some(Doing::Stopping { kill_at: None })) => plain(VmPhase::Stopping, "stopping"),
        (_, Some(Doing::Starting)) => plain(VmPhase::Starting, "starting"),
        (_, Some(Doing::Deleting)) => plain(VmPhase::Deleting, "deleting"),
        (_, Some(Doing::Backoff { at, attempt, max, reason })) => {
            (VmPhase::Backoff, format!("restart at {at} ({attempt} of {max}): {reason}"))
        }
        (_, Some(Doing::GaveUp { reason })) => (VmPhase::Failed, format!("failed: {reason}")),
        (Observed::Known(state), doing) => known(parts, seen, *state, doing.as_ref()),
        (_, Some(Doing::Preparing { what })) => (VmPhase::Preparing, what.clone()),
        (Observed::Absent, None) => off(parts, seen),
        (Observed::Unknown, None) => plain(VmPhase::Unknown, "unknown: libvirt does not answer"),
    }
}

fn known(parts: &VmParts, seen: &Seen, state: DomainState, doing: Option<&Doing>) -> (VmPhase, String) {
    match (state, doing) {
        (DomainState::Running, _) if seen.pending.is_empty() => (VmPhase::Running, "running".into()),
        (DomainState::Running, _) => (VmPhase::Running, format!("running ({} changes wait for a restart)", seen.pending.len())),
        (DomainState::Paused | DomainState::Suspended, _) => (VmPhase::Paused, "paused".into()),
        (DomainState::ShuttingDown, _) => (VmPhase::Stopping, "shutting down".into()),
        (DomainState::Crashed, _) => (VmPhase::Failed, "the guest panicked".into()),
        (DomainState::Off, Some(Doing::Preparing { what })) => (VmPhase::Preparing, what.clone()),
        (DomainState::Off, _) => off(parts, seen),
    }
}

fn off(parts: &VmParts, seen: &Seen) -> (VmPhase, String) {
    let wanted_off = parts.power.as_ref().is_none_or(|p| matches!(p.want, PowerWish::Off | PowerWish::Killed));
    let hold = seen.held.as_ref().or_else(|| parts.power.as_ref().and_then(|p| p.held.as_ref()).filter(|_| wanted_off));
    if let Some(hold) = hold {
        return (VmPhase::Stopped, format!("stopped (held by {})", hold.by));
    }
    match &seen.error {
        Some(error) => (VmPhase::Failed, format!("failed: {}", error.message)),
        None if parts.record.spec.run == RunPolicy::Halted => (VmPhase::Stopped, "stopped (run: halted)".into()),
        None => (VmPhase::Stopped, "stopped".into()),
    }
}
