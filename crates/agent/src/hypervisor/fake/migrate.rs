//! Fakes that reach each other: one sends a domain to another as libvirt does, step by step, and each step can be made to fail.
//!
//! ```text
//!   migrate ─► migrate_prepare (other) ─► migrate_copy ─► migrate_finish (other) ─► migrate_confirm
//! ```
//! Faults of these names: `Fail` ends it there as libvirt would, `LoseAnswer` at `migrate_finish` is a finish that happened and
//! was not heard of. The copying takes as long as calls of the name `migrate_copy` are told to. It goes on when its caller ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use vmkeep_types::ids::VmId;
use vmkeep_types::observed::{DomainState, ExitCause};

use super::{FakeHypervisor, Fault, World};
use crate::hypervisor::{HvError, HvEvent, Lifecycle, MigrateTo, MigrationStats};

/// Steps that the copying is told in.
const STEPS: u32 = 20;
/// What is copied of each guest.
const BYTES: u64 = 128 << 20;

/// Hosts that reach each other, by the URI of each; one that is cut off is not there.
#[derive(Clone, Default)]
pub struct Wire(Arc<Mutex<BTreeMap<String, Weak<World>>>>);

impl Wire {
    pub fn join(&self, uri: &str, host: &FakeHypervisor) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uri.to_owned(), Arc::downgrade(&host.world));
        host.world.lock().wire = Some(self.clone());
    }

    pub fn cut(&self, uri: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uri);
    }

    fn reach(&self, uri: &str) -> Result<Arc<World>, HvError> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(uri).and_then(Weak::upgrade);
        found.ok_or_else(|| HvError::Refused(format!("unable to connect to server at '{uri}': Connection refused")))
    }
}

/// A migration under way in one domain.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    done: u64,
    aborted: bool,
}

pub async fn send(world: &Arc<World>, uuid: VmId, to: MigrateTo) -> Result<(), HvError> {
    let going = tokio::spawn(run(world.clone(), uuid, to));
    going.await.unwrap_or_else(|e| Err(HvError::Refused(format!("the migration stopped: {e}"))))
}

async fn run(world: Arc<World>, uuid: VmId, to: MigrateTo) -> Result<(), HvError> {
    let was = begin(&world, uuid)?;
    let wire = world.lock().wire.clone();
    let reached = wire.as_ref().ok_or_else(|| HvError::Refused("it is on no wire".to_owned())).and_then(|wire| wire.reach(&to.connect));
    let result = match reached {
        Ok(other) => match prepare(&world, &other, uuid) {
            Ok(()) => transfer(&world, &other, uuid, was, || wire.as_ref().is_some_and(|wire| wire.reach(&to.connect).is_ok())).await,
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    if let Ok(domain) = world.lock().host.get_mut(uuid) {
        domain.job = None;
    }
    result
}

fn begin(world: &World, uuid: VmId) -> Result<DomainState, HvError> {
    let mut state = world.lock();
    let (domain, _) = state.host.running(uuid)?;
    if domain.job.is_some() {
        return Err(HvError::WrongState("Timed out during operation: cannot acquire state change lock".to_owned()));
    }
    domain.job = Some(Job { done: 0, aborted: false });
    Ok(domain.state)
}

/// The other side's domain, paused and not complete.
fn prepare(world: &World, other: &World, uuid: VmId) -> Result<(), HvError> {
    let (live, stored) = {
        let mut state = world.lock();
        let (domain, live) = state.host.running(uuid)?;
        (live, domain.stored.clone())
    };
    if !other.lock().connected {
        return Err(HvError::Refused("unable to connect to server: Connection refused".to_owned()));
    }
    if let Some(Fault::Fail(error)) = other.fault("migrate_prepare") {
        return Err(error);
    }
    other.act(|host| host.receive(uuid, live, stored))
}

/// Copies, and hands over; what is left on both sides after each failure is what libvirt leaves.
async fn transfer(
    world: &Arc<World>,
    other: &Arc<World>,
    uuid: VmId,
    was: DomainState,
    reachable: impl Fn() -> bool,
) -> Result<(), HvError> {
    let give_up = |error: HvError| {
        // The other side sees the connection end.
        let _ = other.act(|host| host.drop_received(uuid));
        error
    };
    let fault = world.fault("migrate_copy");
    let pause = world.lock().delays.get("migrate_copy").copied().unwrap_or(Duration::ZERO) / STEPS;
    for step in 1..=STEPS {
        tokio::time::sleep(pause).await;
        // One lock at a time: the other host may be sending to this one.
        let going = world.act(|host| {
            let (domain, _) = host.running(uuid)?;
            let job = domain.job.get_or_insert(Job { done: 0, aborted: false });
            job.done = BYTES * u64::from(step) / u64::from(STEPS);
            Ok(job.aborted)
        });
        match going {
            Err(_) => return Err(give_up(HvError::WrongState("operation failed: domain is no longer running".to_owned()))),
            Ok(true) => return Err(give_up(HvError::Refused("operation aborted: migration out job: canceled by client".to_owned()))),
            Ok(false) => {}
        }
        if let (Some(Fault::Fail(error)), true) = (&fault, step > STEPS / 2) {
            return Err(give_up(error.clone()));
        }
        if !reachable() || other.act(|host| host.running(uuid).map(drop)).is_err() {
            return Err(give_up(HvError::Refused("operation failed: migration out job: unexpectedly failed".to_owned())));
        }
    }
    world.act(|host| host.suspend(uuid))?;
    let go_on = || {
        let _ = world.act(|host| if was == DomainState::Running { host.resume(uuid) } else { Ok(()) });
    };
    match other.fault("migrate_finish") {
        Some(Fault::Fail(error)) => {
            let error = give_up(error);
            go_on();
            return Err(error);
        }
        Some(Fault::LoseAnswer) => {
            other.act(|host| host.complete_received(uuid))?;
            go_on();
            return Err(HvError::Refused("the answer to the end of the migration was lost".to_owned()));
        }
        None => other.act(|host| host.complete_received(uuid))?,
    }
    if let Some(Fault::Fail(error)) = world.fault("migrate_confirm") {
        return Err(error);
    }
    world.act(|host| host.stop(uuid, ExitCause::Migrated, "migrated"))
}

pub fn stats(domain: &super::host::Domain) -> Option<MigrationStats> {
    let job = domain.job?;
    Some(MigrationStats { done_bytes: job.done, total_bytes: BYTES, dirty_bytes_per_second: 1 << 20, expected_downtime_ms: 30 })
}

impl super::host::Host {
    fn receive(&mut self, uuid: VmId, live: super::tree::Node, stored: Option<super::tree::Node>) -> Result<(), HvError> {
        if self.get(uuid).is_ok_and(|domain| domain.live.is_some()) {
            return Err(HvError::WrongState(format!("Requested operation is not valid: domain is already active as '{uuid}'")));
        }
        if let Some(stored) = stored {
            self.define(&stored.render())?;
        }
        self.start(uuid)?;
        let domain = self.get_mut(uuid)?;
        domain.live = Some(live);
        domain.state = DomainState::Paused;
        domain.job = Some(Job { done: 0, aborted: false });
        self.take_events();
        Ok(())
    }

    fn complete_received(&mut self, uuid: VmId) -> Result<(), HvError> {
        let (domain, _) = self.running(uuid)?;
        domain.job = None;
        self.tell(HvEvent::Lifecycle { uuid, what: Lifecycle::Started, detail: "migrated".to_owned() });
        self.tell(HvEvent::Lifecycle { uuid, what: Lifecycle::Suspended, detail: "paused".to_owned() });
        Ok(())
    }

    fn drop_received(&mut self, uuid: VmId) -> Result<(), HvError> {
        if self.get(uuid)?.job.is_none() {
            return Ok(());
        }
        self.stop(uuid, ExitCause::Failed, "failed")?;
        self.undefine(uuid)
    }
}

pub fn abort(domain: &mut super::host::Domain) -> Result<(), HvError> {
    let job = domain.job.as_mut().ok_or_else(|| HvError::WrongState("Requested operation is not valid: no job is active".to_owned()))?;
    job.aborted = true;
    Ok(())
}
