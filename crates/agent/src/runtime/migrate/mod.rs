//! This node's side of a migration: one task per VM, told by `n/NODE/move/UID`, answering at `n/NODE/moved/UID`.
//!
//! ```text
//!  Send, Halt, TakeBack ──► depart ─┐
//!  Prepare, Resume      ──► arrive ─┼─► libvirt      what to do next: core::migrate::node
//!  Fetch                ──► fetch  ─┤   the source's agent
//!  Forget               ──► forget ─┘
//! ```
//! The VM's worker has its hands off meanwhile, so libvirt gets one call at a time here too. What is about to be done is stored
//! before it is done; an agent that was killed in the middle finds what it meant to do and looks what became of it. libvirt or the
//! store gone: nothing is decided, and it is tried again.

mod arrive;
mod depart;
mod fetch;
mod forget;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vmkeep_core::migrate::node::{Call, Job};
use vmkeep_core::vm::DomainNow;
use vmkeep_store::{Compare, Held, Op, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::migration::{MoveOrder, MoveProgress, MoveSaid, MoveSeen, PartKind};
use vmkeep_types::observed::Observed;

use super::node::Node;
use crate::hypervisor::HvError;

/// Between two looks at a migration under way.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Before another try of what libvirt or the store did not take.
const AGAIN: Duration = Duration::from_secs(1);
/// After the last sign of a call that an earlier agent made, it is taken for one that never began.
const QUIET: Duration = Duration::from_secs(5);
/// Nothing to do until the next order.
const AT_REST: Duration = Duration::from_secs(3600);

/// What one side knows of the migration it works on.
struct Mover {
    node: Arc<Node>,
    order: MoveOrder,
    /// Its last word.
    seen: Option<MoveSeen>,
    call: Call,
    /// So many were made.
    calls: u32,
    /// The call that sends the guest, while it runs.
    answer: Option<JoinHandle<Result<(), HvError>>>,
    /// What it copies itself.
    arrival: fetch::Arrival,
    /// Last sign that something may be under way.
    stirred: Instant,
}

/// Works for one VM until its order is gone or the agent stops. What libvirt does goes on without it.
pub async fn run(node: Arc<Node>, mut orders: watch::Receiver<MoveOrder>, seen: Option<MoveSeen>, stop: CancellationToken) {
    let first = orders.borrow_and_update().clone();
    let mut mover = Mover::new(node, first, seen);
    loop {
        let rest = mover.turn().await.unwrap_or_else(|error| {
            tracing::warn!(vm = %mover.order.vm, part = ?mover.order.part.kind(), %error, "a migration's part waits");
            AGAIN
        });
        tokio::select! {
            () = stop.cancelled() => return,
            changed = orders.changed() => {
                if changed.is_err() {
                    return;
                }
                mover.take(orders.borrow_and_update().clone());
            }
            over = ended(&mut mover.answer) => mover.over(over),
            () = tokio::time::sleep(rest) => {}
        }
    }
}

async fn ended(answer: &mut Option<JoinHandle<Result<(), HvError>>>) -> Result<(), HvError> {
    match answer {
        Some(going) => going.await.unwrap_or_else(|e| Err(HvError::Refused(format!("the call stopped: {e}")))),
        None => std::future::pending().await,
    }
}

impl Mover {
    fn new(node: Arc<Node>, order: MoveOrder, seen: Option<MoveSeen>) -> Self {
        let seen = seen.filter(|seen| seen.op == order.op);
        // An earlier life of this agent may have made the call.
        let meant = seen.as_ref().is_some_and(|s| matches!(s.part, PartKind::Send | PartKind::Halt) && s.said == MoveSaid::Working);
        let call = if meant { Call::Unknown } else { Call::Never };
        Self { node, order, seen, call, calls: 0, answer: None, arrival: fetch::Arrival::default(), stirred: Instant::now() }
    }

    fn take(&mut self, order: MoveOrder) {
        if order.op != self.order.op {
            self.seen = None;
            (self.call, self.calls) = (Call::Never, 0);
            self.answer = None;
        }
        self.order = order;
    }

    fn over(&mut self, result: Result<(), HvError>) {
        self.answer = None;
        self.stirred = Instant::now();
        let gone = self.seen.as_ref().and_then(|seen| seen.progress).is_some_and(|progress| progress.done > 0);
        self.call = match result {
            Ok(()) => Call::Over(Ok(())),
            // libvirt says it in the same words of this host's and of the other one's.
            Err(HvError::Disconnected(words)) => {
                let error = Error::refused(format!("libvirt of one of the two hosts hung up: {words}"))
                    .hint("was it restarted, or did it crash? its log on both hosts says more");
                if gone { Call::Over(Err(error)) } else { Call::HungUp { calls: self.calls, error } }
            }
            Err(error) => Call::Over(Err(Error::refused(format!("libvirt: {error}")))),
        };
    }

    /// One act; how long it may rest afterwards.
    async fn turn(&mut self) -> Result<Duration, Error> {
        if self.order.part.kind() != PartKind::Fetch {
            self.arrival.halt().await;
        }
        match self.order.part.kind() {
            PartKind::Fetch => fetch::turn(self).await,
            PartKind::Send | PartKind::Halt | PartKind::TakeBack => depart::turn(self).await,
            PartKind::Prepare => arrive::prepare(self).await,
            PartKind::Resume => arrive::resume(self).await,
            PartKind::Forget => forget::forget(self).await,
        }
    }

    /// Its last word for the part it has now; a halt goes on where the sending was.
    fn said(&self) -> Option<&MoveSaid> {
        let part = self.order.part.kind();
        let fits = |seen: &&MoveSeen| seen.part == part || (part == PartKind::Halt && seen.part == PartKind::Send);
        self.seen.as_ref().filter(fits).map(|seen| &seen.said)
    }

    /// Writes its word as long as it is asked for, and `also` with it.
    async fn say(&mut self, said: MoveSaid, progress: Option<MoveProgress>, also: Option<Op>) -> Result<(), Error> {
        let seen = MoveSeen { op: self.order.op, vm: self.order.vm, part: self.order.part.kind(), said, progress };
        if self.seen.as_ref() == Some(&seen) {
            return Ok(());
        }
        let (asked, key) = (keys::move_order(&self.node.name, self.order.vm), keys::move_seen(&self.node.name, self.order.vm));
        let mut txn = Txn::default().when(Compare::Present(asked)).then(typed::put(key, &seen));
        txn.then.extend(also);
        match self.node.store.txn(txn).await {
            Ok(outcome) if outcome.held == Held::Yes => {
                self.seen = Some(seen);
                Ok(())
            }
            Ok(_) => Err(Error::conflict("the order is gone")),
            Err(error) => Err(Error::internal(error.to_string())),
        }
    }

    /// libvirt's word on the domain.
    async fn look(&self) -> Observed<DomainNow> {
        match self.node.hv.find(self.order.vm).await {
            Ok(brief) => Observed::Known(DomainNow { state: brief.state, exit: brief.exit }),
            Err(HvError::NoDomain(_)) => Observed::Absent,
            Err(_) => Observed::Unknown,
        }
    }

    /// Whether a migration is under way, and how far it is.
    async fn job(&mut self) -> (Job, Option<MoveProgress>) {
        match self.node.hv.migration(self.order.vm).await {
            Ok(Some(stats)) => {
                self.stirred = Instant::now();
                let progress = MoveProgress {
                    done: stats.done_bytes,
                    total: stats.total_bytes,
                    dirty_rate: stats.dirty_bytes_per_second,
                    expected_downtime_ms: stats.expected_downtime_ms,
                };
                (Job::Active, Some(progress))
            }
            Ok(None) | Err(HvError::NoDomain(_) | HvError::WrongState(_)) => (Job::None, None),
            Err(_) => (Job::Unknown, None),
        }
    }
}
