//! The node agent at work: orders and tasks come from the store, facts from the hypervisor, and one worker per VM brings
//! them together.
//!
//! ```text
//!  n/NODE/order/* ─┐                      ┌─► worker(vm1) ─ decide ─ act ─► hypervisor, pool, net
//!  n/NODE/task/*  ─┼─► dispatch (run) ────┼─► worker(vm2)      │
//!  libvirt events ─┘                      └─► task runner      └─► n/NODE/seen/*, n/NODE/event/*
//! ```
//! Each worker makes one call at a time for its VM. A crash at any point loses nothing: what was done is visible in libvirt
//! and in the pools, what was decided is in `Seen.memory`, and the first look after a start goes on from there. libvirt gone:
//! every domain is unknown, nothing is acted upon, guests go on. The store gone: workers keep their last order. An order that
//! does not parse is told and left alone, such a task fails; a worker that panics begins anew from the store.

pub mod apply;
mod arming;
pub mod boot;
pub mod claim;
pub mod clock;
mod farewell;
mod grant;
pub mod guard;
pub mod guest_clock;
pub mod heartbeat;
mod joining;
mod load;
mod marks;
pub mod migrate;
mod node;
pub mod node_event;
mod nvram;
mod qemu;
mod reboots;
mod rejoin;
pub mod remove;
pub mod report;
pub mod standing;
mod start_error;
pub mod task;
#[cfg(test)]
mod tests;
mod unreadable;
pub mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vmkeep_store::seal::is_closed;
use vmkeep_store::{Change, KeyValue, StoreError, Watch, WatchBatch, typed};
use vmkeep_types::event::Level;
use vmkeep_types::ids::{OperationId, VmId};
use vmkeep_types::migration::{MoveOrder, MoveSeen};
use vmkeep_types::observed::Seen;
use vmkeep_types::order::{NodeTask, Order};

pub use node::{AgentConfig, Handle, Node};

use crate::hypervisor::HvEvent;
use clock::{Sleep, SleepWatch, slept_ms};
use worker::Mailbox;

const CLOSED: &str = "its secrets are sealed to another key than this node's";
/// Wait before the dispatcher starts over after the store failed it.
const REST: Duration = Duration::from_secs(1);
/// Between looks for a sleep of the host; a guest's clock is wrong for this long at most.
const SLEEP_LOOK: Duration = Duration::from_secs(5);

/// Runs the agent until shutdown. VMs are never touched by a shutdown of the agent.
pub async fn run(node: Arc<Node>, shutdown: CancellationToken) {
    let meter = tokio::spawn(load::run(node.clone(), shutdown.clone()));
    while !shutdown.is_cancelled() {
        let mut dispatcher = Dispatcher::new(node.clone());
        if let Err(error) = dispatcher.dispatch(&shutdown).await {
            tracing::warn!(%error, "the store failed the agent; starting over from a listing");
        }
        dispatcher.stop().await;
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(REST) => {}
        }
    }
    let _ = meter.await;
}

struct Dispatcher {
    node: Arc<Node>,
    workers: BTreeMap<VmId, Arc<Mailbox>>,
    /// What was reported about VMs whose order is still one of the life before.
    remembered: BTreeMap<VmId, Seen>,
    tasks: BTreeMap<OperationId, CancellationToken>,
    /// Migrations that this node has a part in.
    moves: BTreeMap<VmId, watch::Sender<MoveOrder>>,
    running: TaskTracker,
    stop: CancellationToken,
    /// libvirt does not answer, since then.
    libvirt_away: Option<Instant>,
}

impl Dispatcher {
    fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            workers: BTreeMap::new(),
            remembered: BTreeMap::new(),
            tasks: BTreeMap::new(),
            moves: BTreeMap::new(),
            running: TaskTracker::new(),
            stop: CancellationToken::new(),
            libvirt_away: None,
        }
    }

    async fn dispatch(&mut self, shutdown: &CancellationToken) -> Result<(), StoreError> {
        let mut events = self.node.hv.events();
        self.node.join().await?;
        let prefix = format!("n/{}/", self.node.name);
        let listing = self.node.store.list(&prefix).await?;
        let mut watch: Watch = self.node.store.watch(&prefix, listing.revision.next()).await?;
        self.begin(&listing.items);
        self.running.spawn(rejoin::tell(self.node.clone(), self.stop.clone()));
        let node = self.node.clone();
        let mut sleep = SleepWatch::new(slept_ms());
        let mut sleep_look = tokio::time::interval(SLEEP_LOOK);
        sleep_look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = node.standing.over() => {
                    return Err(StoreError::Unavailable("this life of the node is over".into()));
                }
                batch = watch.recv() => {
                    let closed = || Err(StoreError::Unavailable("the watch was closed".into()));
                    self.take_in(batch.unwrap_or_else(closed)?);
                }
                _ = sleep_look.tick() => if sleep.look(slept_ms()) == Sleep::Ended {
                    tracing::info!("the host slept; the clocks of its guests are set");
                    self.workers.values().for_each(|worker| worker.slept());
                },
                event = events.recv() => match event {
                    Ok(event) => self.on_event(event).await?,
                    Err(broadcast::error::RecvError::Lagged(_)) => self.poke_all(),
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
            }
        }
    }

    /// All orders and what was last reported about them; then the tasks that have no outcome yet.
    fn begin(&mut self, items: &[KeyValue]) {
        let mut seen: BTreeMap<VmId, Seen> = BTreeMap::new();
        let mut orders: BTreeMap<VmId, Order> = BTreeMap::new();
        let mut moved: BTreeMap<VmId, MoveSeen> = BTreeMap::new();
        for kv in items {
            match kind_of(&kv.key) {
                Some(("seen", _)) => seen.extend(typed::decode::<Seen>(kv).map(|s| (s.vm, s)).ok()),
                Some(("moved", _)) => moved.extend(typed::decode::<MoveSeen>(kv).map(|s| (s.vm, s)).ok()),
                Some(("order", _)) => orders.extend(self.readable::<Order>(kv).map(|o| (o.vm, o))),
                _ => {}
            }
        }
        self.node.board.enrol(&orders, &seen, &self.node.boot_id);
        self.node.standing.forget_all();
        self.remembered = seen;
        orders.into_values().for_each(|order| self.hand_over(order));
        for kv in items {
            match kind_of(&kv.key) {
                Some(("task", _)) => self.readable(kv).into_iter().for_each(|task| self.begin_task(task)),
                Some(("move", _)) => self.readable::<MoveOrder>(kv).into_iter().for_each(|order| {
                    let seen = moved.remove(&order.vm);
                    self.begin_move(order, seen);
                }),
                _ => {}
            }
        }
    }

    /// What does not parse must not keep the others from their work.
    fn readable<T: DeserializeOwned>(&self, kv: &KeyValue) -> Option<T> {
        let told = |error: &StoreError| drop(self.running.spawn(unreadable::tell(self.node.clone(), kv.key.clone(), error.to_string())));
        // A password that is no password would lock people out of their guest.
        let read = if is_closed(kv) { Err(StoreError::Corrupt(CLOSED.into())) } else { typed::decode(kv) };
        read.inspect_err(told).ok()
    }

    fn take_in(&mut self, batch: WatchBatch) {
        for change in batch.changes {
            match change {
                Change::Put(kv) => match kind_of(&kv.key) {
                    Some(("order", _)) => self.readable(&kv).into_iter().for_each(|order| self.hand_over(order)),
                    Some(("task", _)) => self.readable(&kv).into_iter().for_each(|task| self.begin_task(task)),
                    Some(("move", _)) => self.readable(&kv).into_iter().for_each(|order| self.begin_move(order, None)),
                    // The heartbeat reads it, and need not wait for its time.
                    Some(("arm-wanted", _)) => self.node.standing.stirred.notify_one(),
                    _ => {}
                },
                Change::Deleted { key, .. } => match kind_of(&key) {
                    Some(("order", id)) => id.parse().into_iter().for_each(|id: VmId| {
                        self.node.standing.forget(id);
                        self.workers.remove(&id).into_iter().for_each(|worker| worker.retire());
                    }),
                    // Its task ends with its channel.
                    Some(("move", id)) => drop(id.parse().ok().and_then(|id: VmId| self.moves.remove(&id))),
                    Some(("task", id)) => {
                        id.parse().ok().and_then(|id: OperationId| self.tasks.remove(&id)).into_iter().for_each(|t| t.cancel())
                    }
                    _ => {}
                },
            }
        }
    }

    /// An order of the life before is not obeyed: what it names may be on its way to another node. The leader renews it.
    fn hand_over(&mut self, order: Order) {
        if order.epoch != self.node.epoch() {
            return;
        }
        self.node.standing.note(&order);
        if let Some(mailbox) = self.workers.get(&order.vm) {
            mailbox.order(order);
            return;
        }
        let mailbox = Arc::new(Mailbox::new(order.clone()));
        self.node.enlist(order.vm, &mailbox);
        self.workers.insert(order.vm, mailbox.clone());
        let seen = self.remembered.remove(&order.vm);
        self.running.spawn(worker::keep(self.node.clone(), mailbox, seen, self.stop.clone()));
    }

    fn begin_task(&mut self, task: NodeTask) {
        if self.tasks.contains_key(&task.op) {
            return;
        }
        let cancel = self.stop.child_token();
        self.tasks.insert(task.op, cancel.clone());
        self.running.spawn(task::run(self.node.clone(), task, cancel));
    }

    fn begin_move(&mut self, order: MoveOrder, seen: Option<MoveSeen>) {
        if let Some(going) = self.moves.get(&order.vm)
            && going.send(order.clone()).is_ok()
        {
            return;
        }
        let (sender, orders) = watch::channel(order.clone());
        self.moves.insert(order.vm, sender);
        self.running.spawn(migrate::run(self.node.clone(), orders, seen, self.stop.clone()));
    }

    async fn on_event(&mut self, event: HvEvent) -> Result<(), StoreError> {
        match event {
            HvEvent::Connected | HvEvent::Disconnected => {
                self.tell_of_libvirt(&event);
                self.node.refresh_facts().await?;
                self.poke_all();
            }
            event => {
                if let Some(worker) = event.vm().and_then(|id| self.workers.get(&id)) {
                    worker.event(event);
                }
            }
        }
        Ok(())
    }

    fn tell_of_libvirt(&mut self, event: &HvEvent) {
        let (level, code, message) = match (event, self.libvirt_away.take()) {
            (HvEvent::Disconnected, None) => {
                let what = "libvirt does not answer: its VMs go on, and none is started or changed here until it does";
                (Level::Warn, "node.libvirt-away", what.to_owned())
            }
            (HvEvent::Connected, Some(since)) => {
                (Level::Info, "node.libvirt-back", format!("libvirt answers again, after {:.1} s", since.elapsed().as_secs_f64()))
            }
            _ => return,
        };
        if *event == HvEvent::Disconnected {
            self.libvirt_away = Some(Instant::now());
        }
        self.running.spawn(node_event::tell(self.node.clone(), level, code, message));
    }

    fn poke_all(&self) {
        self.workers.values().for_each(|worker| worker.poke());
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.close();
        self.running.wait().await;
    }
}

/// `("order", "UID")` of `n/NODE/order/UID`.
fn kind_of(key: &str) -> Option<(&str, &str)> {
    let mut parts = key.splitn(4, '/').skip(2);
    Some((parts.next()?, parts.next().unwrap_or("")))
}
