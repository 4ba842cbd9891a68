//! Records as they are shown. A status is computed from the agent's word each time and stored nowhere.

use std::collections::BTreeMap;

use serde_json::Value;
use vmkeep_api::body::{VmPhase, VmStatus, VmView};
use vmkeep_types::addresses::Form;
use vmkeep_types::error::Problem;
use vmkeep_types::host::{NodeHealth, NodeState};
use vmkeep_types::ids::Revision;
use vmkeep_types::observed::{Doing, DomainState, Observed, PauseCause, RestartCount, Seen};
use vmkeep_types::record::{Owner, Power, PowerWish, Released, Role, VmChoices, VmRecord};
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
    /// Where it has no owner because that was removed.
    pub released: Option<Released>,
    pub seen: Option<Seen>,
    /// Its node's health, where it has heartbeats.
    pub node: Option<NodeState>,
}

pub fn vm(parts: VmParts) -> VmView {
    let status = status(&parts);
    let VmParts { record, spec_revision, choices, .. } = parts;
    let mut spec = record.spec;
    hide_passwords(&mut spec);
    let choices = VmChoices { addresses: choices.addresses.in_form(Form::Long), ..choices };
    VmView {
        id: record.id,
        project: record.project,
        spec,
        spec_revision,
        origin: record.origin,
        created_at: record.created_at,
        choices,
        instance: record.instance,
        status,
    }
}

/// Fields of a cloud-init user that hold a password.
const USER_SECRETS: [&str; 3] = ["passwd", "hashed_passwd", "plain_text_passwd"];

/// How much of a wish its reader sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// All but passwords.
    Open,
    /// Also without the text in which people put passwords and keys.
    Veiled,
}

impl Sight {
    pub fn of(role: Role) -> Self {
        if role < Role::Operator { Self::Veiled } else { Self::Open }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Secret {
    /// Nobody sees it.
    Password,
    /// Whoever may change it sees it.
    Text,
}

/// Every secret of a wish with its path.
fn secrets(spec: &mut VmSpec) -> Vec<(String, Secret, &mut String)> {
    let display = spec.display.as_mut().and_then(|d| d.password.as_mut());
    let mut found: Vec<_> = display.into_iter().map(|p| ("display.password".to_owned(), Secret::Password, p)).collect();
    let Some(cloud_init) = spec.cloud_init.as_mut() else { return found };
    found.extend(cloud_init.password.as_mut().map(|p| ("cloud_init.password".to_owned(), Secret::Password, p)));
    found.extend(cloud_init.user_data.as_mut().map(|t| ("cloud_init.user_data".to_owned(), Secret::Text, t)));
    found.extend(cloud_init.network_data.as_mut().map(|t| ("cloud_init.network_data".to_owned(), Secret::Text, t)));
    for (n, user) in cloud_init.users.iter_mut().enumerate() {
        let who = user.get("name").and_then(Value::as_str).map_or_else(|| n.to_string(), str::to_owned);
        let Value::Object(fields) = user else { continue };
        for (field, value) in fields {
            if let (true, Value::String(secret)) = (USER_SECRETS.contains(&field.as_str()), value) {
                found.push((format!("cloud_init.users[{who}].{field}"), Secret::Password, secret));
            }
        }
    }
    found
}

/// Passwords leave the server for the node only.
fn hide_passwords(spec: &mut VmSpec) {
    hide(spec, Secret::Password);
}

fn hide(spec: &mut VmSpec, kind: Secret) {
    let of_kind = secrets(spec).into_iter().filter(|(_, is, _)| *is == kind);
    of_kind.for_each(|(_, _, secret)| HIDDEN.clone_into(secret));
}

/// The same VM for one who only looks; None when there is nothing to hide.
pub fn veiled(view: &VmView) -> Option<VmView> {
    let has_text = view.spec.cloud_init.as_ref().is_some_and(|c| c.user_data.is_some() || c.network_data.is_some());
    has_text.then(|| {
        let mut view = view.clone();
        hide(&mut view.spec, Secret::Text);
        view
    })
}

/// A wish that was read, edited and sent back keeps the secrets it could not see.
pub fn restore_secrets(new: &mut VmSpec, old: &VmSpec) {
    let mut old = old.clone();
    let kept: BTreeMap<String, &mut String> = secrets(&mut old).into_iter().map(|(path, _, secret)| (path, secret)).collect();
    for (path, _, secret) in secrets(new).into_iter().filter(|(_, _, secret)| *secret == HIDDEN) {
        if let Some(kept) = kept.get(&path) {
            secret.clone_from(kept);
        }
    }
}

/// Stars where a secret is wanted, and nothing to put in their place: the guest would get them as its password.
pub fn unrestored_secrets(spec: &VmSpec) -> Vec<Problem> {
    let mut spec = spec.clone();
    let hidden = secrets(&mut spec).into_iter().filter(|(_, _, secret)| *secret == HIDDEN);
    let problem = |(field, kind, _): (String, Secret, &mut String)| {
        let what = if kind == Secret::Password { "vmkeep does not show passwords" } else { "vmkeep does not show this text to viewers" };
        Problem { field, message: format!("{what}; write the real one here") }
    };
    hidden.map(problem).collect()
}

fn status(parts: &VmParts) -> VmStatus {
    let (phase, text) = unless_silent(parts, phase(parts));
    let seen = parts.seen.as_ref();
    VmStatus {
        phase,
        text,
        node: parts.owner.as_ref().map(|o| o.node.clone()),
        generation: parts.owner.as_ref().map(|o| o.generation),
        since: seen.map(|s| s.since),
        addresses: seen.map(|s| s.addresses.clone()).unwrap_or_default(),
        pending: seen.map(|s| s.pending.clone()).unwrap_or_default(),
        drift: seen.map(|s| s.drift.clone()).unwrap_or_default(),
        conflicts: seen.map(|s| s.conflicts.clone()).unwrap_or_default(),
        error: seen.and_then(|s| s.error.clone()),
        restarts: seen.map_or_else(RestartCount::default, |s| s.restarts.clone()),
        accel: seen.and_then(|s| s.qemu.as_ref()).map(|q| q.accel.clone()),
        qemu_outdated: seen.and_then(|s| s.qemu.as_ref()).is_some_and(|q| q.outdated),
        warnings: warnings(parts),
    }
}

fn warnings(parts: &VmParts) -> Vec<String> {
    let of_node = parts.seen.iter().flat_map(|seen| seen.warnings.clone());
    let name = &parts.record.spec.name;
    let late = || format!("cloud_init was changed after the first boot: the guest reads it after `vmkeep vm reinit {name}` and a restart");
    of_node.chain(parts.record.needs_reinit().then(late)).collect()
}

/// What the agent said last is no news of a node that is silent: the VM stays where it is, and nobody knows whether it runs.
fn unless_silent(parts: &VmParts, (phase, text): (VmPhase, String)) -> (VmPhase, String) {
    let offline = parts.node.as_ref().filter(|node| node.state == NodeHealth::Offline);
    match (offline, &parts.owner) {
        (Some(node), Some(owner)) => {
            let told = format!("unknown: node '{}' is offline since {}; before that: {text}", owner.node, node.since);
            (VmPhase::Unknown, told)
        }
        _ => (phase, text),
    }
}

fn phase(parts: &VmParts) -> (VmPhase, String) {
    let plain = |phase, text: &str| (phase, text.to_owned());
    if parts.record.leaving.is_some() {
        return plain(VmPhase::Deleting, "deleting");
    }
    let Some(seen) = &parts.seen else {
        return match (&parts.owner, &parts.released) {
            (Some(_), _) => plain(VmPhase::Pending, "waiting for its node"),
            (None, Some(released)) if released.lost.is_empty() => (VmPhase::Pending, released.words()),
            (None, Some(released)) => (VmPhase::Failed, released.words()),
            (None, None) => plain(VmPhase::Pending, "waiting for a node"),
        };
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
        (_, Some(Doing::Moving { .. })) => plain(VmPhase::Migrating, "migrating"),
        (Observed::Known(state), doing) => known(parts, seen, *state, doing.as_ref()),
        (_, Some(Doing::Preparing { what })) => (VmPhase::Preparing, what.clone()),
        (Observed::Absent, None) => off(parts, seen),
        (Observed::Unknown, None) => plain(VmPhase::Unknown, "unknown: libvirt does not answer"),
    }
}

fn known(parts: &VmParts, seen: &Seen, state: DomainState, doing: Option<&Doing>) -> (VmPhase, String) {
    match (state, doing) {
        (DomainState::Running, _) if seen.pending.is_empty() => (VmPhase::Running, "running".into()),
        (DomainState::Running, _) if seen.pending.len() == 1 => (VmPhase::Running, "running (1 change waits for a restart)".into()),
        (DomainState::Running, _) => (VmPhase::Running, format!("running ({} changes wait for a restart)", seen.pending.len())),
        (DomainState::Paused, _) => (VmPhase::Paused, paused(seen.paused)),
        (DomainState::Suspended, _) => (VmPhase::Paused, "asleep: the guest suspended itself".into()),
        (DomainState::ShuttingDown, _) => (VmPhase::Stopping, "shutting down".into()),
        (DomainState::Crashed, _) => (VmPhase::Failed, "the guest panicked".into()),
        (DomainState::Off, Some(Doing::Preparing { what })) => (VmPhase::Preparing, what.clone()),
        (DomainState::Off, _) => off(parts, seen),
    }
}

fn paused(cause: Option<PauseCause>) -> String {
    let why = match cause {
        None | Some(PauseCause::Asked) => return "paused".into(),
        Some(PauseCause::IoError) => "a disk is full or does not answer; 'vm resume' goes on once it does",
        Some(PauseCause::Watchdog) => "the guest's watchdog fired",
        Some(PauseCause::Migration) => "a migration",
        Some(PauseCause::Saving) => "a snapshot or a save is made",
        Some(PauseCause::Crashed) => "the guest panicked",
    };
    format!("paused: {why}")
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
