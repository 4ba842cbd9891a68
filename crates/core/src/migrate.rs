//! A VM's way to another node: what the leader does next, and (in [`node`]) what each side does.
//!
//! ```text
//!  asked ─► preparing ──ready, hands off──► copying ──sent──► arriving ──resumed──► moved
//!               │   └─off, data─► fetching ──►┤   └─kept, paused─► returning
//!               └──────────── stayed ◄───┴────┴──────────────────────┘
//! ```
//! A VM that is off does not send its data: the destination fetches it, and the source makes its promise only when all is there.
//! The destination resumes only after one transaction has made it the owner, with the next generation; that transaction is
//! made only of the source's promise never to run the old one. No side resumes a domain that it found paused unless its part
//! says so, so for a moment none may run, and never two. A crash of either agent or of the leader changes nothing: the record
//! says where it stands, and each part is done again without harm.
//!
//! How it fails: whatever breaks before the source has let go ends with the guest at the source ("stayed"); a guest that is
//! gone at the destination afterwards is started from its disks there, by its run policy ("lost").

pub mod check;
pub mod node;
#[cfg(test)]
mod tests;

use vmkeep_types::error::{Code, Error};
use vmkeep_types::migration::{Migration, MigrationAddress, MovePart, MovePhase, MoveSaid, MoveSeen, PartKind, Stop, Travel, Way};
use vmkeep_types::observed::{DomainState, Observed};
use vmkeep_types::order::Holder;

/// A migration without a time of its own is called off after this.
pub const TIMEOUT_SECONDS: i64 = 3600;

/// Migrations that one node sends and receives at once: more only share its network, and each takes longer.
pub const PER_NODE_MAX: usize = 3;

/// What the leader sees of one migration.
#[derive(Clone, Debug)]
pub struct Saw<'a> {
    pub now: jiff::Timestamp,
    /// The owner's worker has its hands off, and this is the domain it saw; None: it has not.
    pub hands_off: Option<&'a Observed<DomainState>>,
    pub source: Option<&'a MoveSeen>,
    pub destination: Option<&'a MoveSeen>,
    /// Why the VM is wanted otherwise by now.
    pub against: Option<String>,
}

/// What the leader does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Wait,
    Enter(MovePhase),
    /// The source takes back what this broke.
    TakeBack(Error),
    /// Note the reason, and have the source call it off.
    Stop(Stop),
    End(End),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The destination has it.
    Moved,
    /// The source has it still, and this is why.
    Stayed(Error),
    /// The destination owns it, but the guest did not survive.
    Lost(Error),
}

/// The next step of a migration whose way is chosen. Total: every record and every word has an answer.
pub fn step(m: &Migration, saw: &Saw<'_>) -> Next {
    let Some(way) = &m.way else { return Next::Wait };
    let source = said(m, saw.source);
    let destination = said(m, saw.destination);
    match m.phase {
        MovePhase::Asked => Next::Wait,
        MovePhase::Preparing => preparing(m, way, saw, destination),
        MovePhase::Fetching => fetching(m, saw, destination),
        MovePhase::Copying => copying(m, way.travel, saw, source),
        MovePhase::Arriving => arriving(way.travel, saw, destination),
        MovePhase::Returning => returning(m, source),
    }
}

/// A side's word, as far as it is about this migration.
fn said<'a>(m: &Migration, seen: Option<&'a MoveSeen>) -> Option<(PartKind, &'a MoveSaid)> {
    seen.filter(|seen| seen.op == m.op).map(|seen| (seen.part, &seen.said))
}

/// Why it must end now, if it must.
fn reason(m: &Migration, saw: &Saw<'_>) -> Option<Stop> {
    let against = || saw.against.clone().map(|why| Stop::Against { why });
    let late = || (saw.now >= m.deadline).then_some(Stop::Late);
    m.stop.clone().or_else(against).or_else(late)
}

/// Whether the destination copies something itself.
fn fetches(way: &Way) -> bool {
    way.travel == Travel::Off && !(way.copy.is_empty() && way.state.is_empty())
}

fn preparing(m: &Migration, way: &Way, saw: &Saw<'_>, destination: Option<(PartKind, &MoveSaid)>) -> Next {
    if let Some(stop) = reason(m, saw) {
        return Next::End(End::Stayed(stop_error(&stop)));
    }
    if let Some((PartKind::Prepare, MoveSaid::Refused { error })) = destination {
        return Next::End(End::Stayed(error.clone()));
    }
    let Some(domain) = saw.hands_off else { return Next::Wait };
    match (fits(way.travel, domain), destination) {
        (Fit::No, _) => {
            Next::End(End::Stayed(Error::conflict("the guest is not as it was when the migration began: it went down or was paused")))
        }
        (Fit::Yes, Some((PartKind::Prepare, MoveSaid::Ready))) if fetches(way) => Next::Enter(MovePhase::Fetching),
        (Fit::Yes, Some((PartKind::Prepare, MoveSaid::Ready))) => Next::Enter(MovePhase::Copying),
        (Fit::Yes | Fit::NotYet, _) => Next::Wait,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Yes,
    NotYet,
    No,
}

fn fits(travel: Travel, domain: &Observed<DomainState>) -> Fit {
    match (travel, domain) {
        (_, Observed::Unknown) => Fit::NotYet,
        (Travel::Running, Observed::Known(DomainState::Running)) | (Travel::Paused, Observed::Known(DomainState::Paused)) => Fit::Yes,
        (Travel::Off, Observed::Absent | Observed::Known(DomainState::Off)) => Fit::Yes,
        (Travel::Off, Observed::Known(_)) => Fit::NotYet,
        (Travel::Running | Travel::Paused, _) => Fit::No,
    }
}

/// The source does nothing but stay off, so it can be called off at any moment.
fn fetching(m: &Migration, saw: &Saw<'_>, destination: Option<(PartKind, &MoveSaid)>) -> Next {
    if let Some(stop) = reason(m, saw) {
        return Next::End(End::Stayed(stop_error(&stop)));
    }
    match (saw.hands_off, destination) {
        (Some(Observed::Known(state)), _) if *state != DomainState::Off => {
            Next::End(End::Stayed(Error::conflict("the VM was started meanwhile, so what was copied of it is worth nothing")))
        }
        (_, Some((PartKind::Fetch, MoveSaid::Refused { error }))) => Next::End(End::Stayed(error.clone())),
        (Some(Observed::Known(_) | Observed::Absent), Some((PartKind::Fetch, MoveSaid::Ready))) => Next::Enter(MovePhase::Copying),
        _ => Next::Wait,
    }
}

fn copying(m: &Migration, travel: Travel, saw: &Saw<'_>, source: Option<(PartKind, &MoveSaid)>) -> Next {
    match source {
        Some((PartKind::Send | PartKind::Halt, MoveSaid::Sent)) => return Next::Enter(MovePhase::Arriving),
        Some((PartKind::Send | PartKind::Halt, MoveSaid::Kept { domain, error })) => {
            let told = error.clone().unwrap_or_else(|| Error::refused("the guest did not leave its host"));
            let why = m.stop.as_ref().map_or(told, stop_error);
            let left_paused = travel == Travel::Running && *domain == Observed::Known(DomainState::Paused);
            return if left_paused { Next::TakeBack(why) } else { Next::End(End::Stayed(why)) };
        }
        _ => {}
    }
    match reason(m, saw) {
        Some(stop) if m.stop.is_none() => Next::Stop(stop),
        _ => Next::Wait,
    }
}

fn arriving(travel: Travel, saw: &Saw<'_>, destination: Option<(PartKind, &MoveSaid)>) -> Next {
    // The worker has taken up what the source remembered: from here on nobody else needs to know it.
    if saw.hands_off.is_none() {
        return Next::Wait;
    }
    match destination {
        _ if travel == Travel::Off => Next::End(End::Moved),
        Some((PartKind::Resume, MoveSaid::Resumed)) => Next::End(End::Moved),
        Some((PartKind::Resume, MoveSaid::Lost { error })) => Next::End(End::Lost(error.clone())),
        _ => Next::Wait,
    }
}

fn returning(m: &Migration, source: Option<(PartKind, &MoveSaid)>) -> Next {
    let why = m.broke.clone().unwrap_or_else(|| Error::refused("the guest did not leave its host"));
    match source {
        Some((PartKind::TakeBack, MoveSaid::Resumed | MoveSaid::Kept { error: None, .. })) => Next::End(End::Stayed(why)),
        Some((PartKind::TakeBack, MoveSaid::Kept { error: Some(error), .. })) => {
            let both = format!("{}; and it could not be resumed: {}", why.message, error.message);
            Next::End(End::Stayed(Error::new(why.code, both).hint("it is paused: `vmkeep vm resume` lets it go on")))
        }
        _ => Next::Wait,
    }
}

/// A stop, as the operation ends with it.
pub fn stop_error(stop: &Stop) -> Error {
    match stop {
        Stop::Cancelled { by } => Error::new(Code::Cancelled, format!("cancelled by {by}; the guest stayed where it was")),
        Stop::Late => Error::new(Code::Unavailable, "it was not through in time and was called off; the guest stayed where it was")
            .hint("more time with --timeout, a slower guest with --auto-converge, or --cold"),
        Stop::Against { why } => Error::conflict(format!("called off: {why}")),
    }
}

/// What the source does in this phase; None: nothing.
pub fn source_part(m: &Migration, to: &MigrationAddress) -> Option<MovePart> {
    let way = m.way.as_ref()?;
    match m.phase {
        MovePhase::Asked | MovePhase::Preparing | MovePhase::Fetching | MovePhase::Arriving => None,
        MovePhase::Copying if m.stop.is_some() => Some(MovePart::Halt),
        MovePhase::Copying => Some(MovePart::Send {
            to: to.clone(),
            copy: way.copy.clone(),
            bandwidth: m.options.bandwidth,
            auto_converge: m.options.auto_converge,
        }),
        MovePhase::Returning => Some(MovePart::TakeBack),
    }
}

/// What the destination does in this phase; None: nothing, or to forget it. `from`: the source's agent, where it is known.
pub fn destination_part(m: &Migration, from: Option<Holder>) -> Option<MovePart> {
    let way = m.way.as_ref()?;
    match m.phase {
        MovePhase::Fetching | MovePhase::Copying if fetches(way) => {
            let from = from.unwrap_or_else(|| Holder { node: way.from.clone(), address: String::new() });
            Some(MovePart::Fetch { from, copy: way.copy.clone(), state: way.state.clone(), bandwidth: m.options.bandwidth })
        }
        MovePhase::Preparing | MovePhase::Fetching | MovePhase::Copying => Some(MovePart::Prepare { copy: way.copy.clone(), from }),
        MovePhase::Arriving if way.travel != Travel::Off => Some(MovePart::Resume),
        MovePhase::Asked | MovePhase::Arriving | MovePhase::Returning => None,
    }
}
