//! What one side of a migration does next, from what it sees of its own libvirt. Sync; the agent gathers and carries out.
//!
//! libvirt's word about a finished call is not believed (its answer may be lost, and an earlier life of the agent may have
//! made it): the domain is looked at, when no job is under way any more.

use vmkeep_types::error::Error;
use vmkeep_types::migration::{MoveSaid, PartKind, Travel};
use vmkeep_types::observed::{DomainState, ExitCause, Observed};

use crate::vm::DomainNow;

/// The call is made so often at most: who is hung up on each time finds no libvirt that stays.
pub const CALLS_MAX: u32 = 3;

/// The call that sends the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Neither made nor meant to be.
    Never,
    /// An earlier life of this agent meant to make it.
    Unknown,
    Running,
    Over(Result<(), Error>),
    /// One of the two libvirts hung up, as when it is restarted, before anything of the guest was seen to go; and how many calls that
    /// were.
    HungUp {
        calls: u32,
        error: Error,
    },
}

impl Call {
    /// Whether it may still begin, for all that is known of it.
    fn may_begin(&self) -> bool {
        matches!(self, Self::Unknown | Self::HungUp { .. })
    }
}

/// Whether libvirt has a migration of the domain under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Job {
    None,
    Active,
    /// libvirt does not answer.
    Unknown,
}

/// Whether a call that is on its way to libvirt could still begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    /// Nothing has been under way for long.
    Long,
    NotYet,
}

/// The source, as it sees itself.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    pub part: PartKind,
    pub travel: Travel,
    /// Its last word for this part.
    pub said: Option<&'a MoveSaid>,
    pub call: &'a Call,
    pub domain: &'a Observed<DomainNow>,
    pub job: Job,
    pub quiet: Quiet,
}

/// What a side does now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Do {
    /// Look again later.
    Wait,
    /// Store that the call is about to be made, then make it.
    Call,
    /// Have libvirt end the job.
    Abort,
    /// Promise never to run this generation again, and say that it has left.
    Promise,
    /// Claim, then resume the guest.
    Resume,
    Say(MoveSaid),
}

/// The source's next act, for `Send`, `Halt` and `TakeBack`.
pub fn source(at: &Source<'_>) -> Do {
    if at.said.is_some_and(|said| !matches!(said, MoveSaid::Working)) {
        return Do::Wait;
    }
    match at.call {
        _ if at.part == PartKind::TakeBack => take_back(at),
        Call::Running if at.part == PartKind::Halt => Do::Abort,
        Call::Running => Do::Wait,
        Call::Never => not_called(at),
        Call::Unknown | Call::Over(_) | Call::HungUp { .. } => called(at),
    }
}

fn state_of(domain: &Observed<DomainNow>) -> Observed<DomainState> {
    match domain {
        Observed::Known(now) => Observed::Known(now.state),
        Observed::Absent => Observed::Absent,
        Observed::Unknown => Observed::Unknown,
    }
}

fn kept(at: &Source<'_>, error: Option<Error>) -> Do {
    Do::Say(MoveSaid::Kept { domain: state_of(at.domain), error })
}

fn not_called(at: &Source<'_>) -> Do {
    let state = match state_of(at.domain) {
        Observed::Unknown => return Do::Wait,
        Observed::Absent => DomainState::Off,
        Observed::Known(state) => state,
    };
    match (at.travel, state) {
        _ if at.part == PartKind::Halt => kept(at, None),
        (Travel::Off, DomainState::Off) => Do::Promise,
        (Travel::Running, DomainState::Running) | (Travel::Paused, DomainState::Paused) => Do::Call,
        (Travel::Off, _) => kept(at, Some(Error::conflict("the VM was started meanwhile"))),
        _ => kept(at, Some(Error::conflict("the guest went down or was paused before it was sent"))),
    }
}

fn called(at: &Source<'_>) -> Do {
    match at.job {
        Job::Active if at.part == PartKind::Halt => return Do::Abort,
        Job::Active | Job::Unknown => return Do::Wait,
        Job::None => {}
    }
    let error = match at.call {
        Call::Over(Err(error)) | Call::HungUp { error, .. } => Some(error.clone()),
        Call::Over(Ok(())) => None,
        _ => Some(Error::refused("the agent was restarted while the guest was sent, and it did not leave")),
    };
    match at.domain {
        Observed::Unknown => Do::Wait,
        Observed::Absent if *at.call == Call::Over(Ok(())) => Do::Promise,
        Observed::Absent => kept(at, error),
        Observed::Known(now) => match (now.state, now.exit) {
            (DomainState::Off, Some(ExitCause::Migrated)) => Do::Promise,
            (DomainState::Off, _) => kept(at, Some(Error::refused("the guest went down while it was sent"))),
            (DomainState::ShuttingDown, _) => Do::Wait,
            // A call that the earlier agent sent, or that was sent on a line that broke, may only now begin.
            _ if at.call.may_begin() && at.quiet == Quiet::NotYet => Do::Wait,
            (state, _) if is_sent_again(at, state) => Do::Call,
            _ => kept(at, error),
        },
    }
}

/// It is as it was, so another call begins where the first one did.
fn is_sent_again(at: &Source<'_>, state: DomainState) -> bool {
    let as_it_was = matches!((at.travel, state), (Travel::Running, DomainState::Running) | (Travel::Paused, DomainState::Paused));
    as_it_was && at.part == PartKind::Send && matches!(at.call, Call::HungUp { calls, .. } if *calls < CALLS_MAX)
}

fn take_back(at: &Source<'_>) -> Do {
    match state_of(at.domain) {
        Observed::Unknown => Do::Wait,
        Observed::Known(DomainState::Paused) => Do::Resume,
        Observed::Known(DomainState::Running) => Do::Say(MoveSaid::Resumed),
        Observed::Known(_) | Observed::Absent => kept(at, None),
    }
}

/// The destination's next act once it is the owner (`Resume`).
pub fn destination(travel: Travel, said: Option<&MoveSaid>, domain: &Observed<DomainNow>) -> Do {
    if said.is_some_and(|said| !matches!(said, MoveSaid::Working)) {
        return Do::Wait;
    }
    match (state_of(domain), travel) {
        (Observed::Unknown, _) => Do::Wait,
        (Observed::Known(DomainState::Paused), Travel::Running) => Do::Resume,
        (Observed::Absent | Observed::Known(DomainState::Off), _) => {
            Do::Say(MoveSaid::Lost { error: Error::refused("QEMU ended at the destination before the guest was resumed there") })
        }
        (Observed::Known(_), _) => Do::Say(MoveSaid::Resumed),
    }
}
