//! The source: sends the guest, calls that off, or takes back what a broken migration left paused.

use std::time::Duration;

use vmkeep_core::migrate::node::{self, Call, Do, Quiet, Source};
use vmkeep_store::{Op, keys};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::migration::{MovePart, MoveSaid, PartKind};
use vmkeep_types::observed::{DomainState, Observed};

use super::super::claim;
use super::{AGAIN, AT_REST, LOOK_EVERY, Mover, QUIET};
use crate::domain;
use crate::hypervisor::{HvError, MigrateTo, StayDisks, XmlKind};

/// A small guest has gone by then: QEMU, asked in between how far it is, sends nothing meanwhile.
const FIRST_LOOK: Duration = Duration::from_secs(1);

pub async fn turn(mover: &mut Mover) -> Result<Duration, Error> {
    let (job, progress) = mover.job().await;
    let domain = mover.look().await;
    let quiet = if mover.stirred.elapsed() >= QUIET { Quiet::Long } else { Quiet::NotYet };
    let at = Source {
        part: mover.order.part.kind(),
        travel: mover.order.travel,
        said: mover.said(),
        call: &mover.call,
        domain: &domain,
        job,
        quiet,
    };
    match node::source(&at) {
        Do::Wait => {
            let settled = mover.said().is_some_and(|said| *said != MoveSaid::Working);
            if progress.is_some() && !settled {
                mover.say(MoveSaid::Working, progress, None).await?;
            }
            Ok(if settled { AT_REST } else { LOOK_EVERY })
        }
        Do::Call => {
            let to = how(mover).await?;
            mover.say(MoveSaid::Working, None, None).await?;
            let (hv, vm) = (mover.node.hv.clone(), mover.order.vm);
            if let Call::HungUp { error, .. } = &mover.call {
                tracing::warn!(%vm, %error, "nothing of the guest had gone: it is sent again");
            }
            (mover.call, mover.calls) = (Call::Running, mover.calls + 1);
            mover.answer = Some(tokio::spawn(async move { hv.migrate(vm, &to).await }));
            Ok(FIRST_LOOK)
        }
        Do::Abort => {
            // Nothing to abort yet, or any more: the next look tells.
            match mover.node.hv.abort_migration(mover.order.vm).await {
                Ok(()) | Err(HvError::WrongState(_) | HvError::NoDomain(_)) => {}
                Err(error) => tracing::warn!(vm = %mover.order.vm, %error, "cannot call the migration off yet"),
            }
            Ok(LOOK_EVERY)
        }
        Do::Promise => {
            let order = &mover.order.order;
            let promise = Op::Put(keys::stopped(&mover.node.name, order.vm, order.generation), Vec::new());
            mover.say(MoveSaid::Sent, None, Some(promise)).await?;
            Ok(AT_REST)
        }
        Do::Resume => resume(mover).await,
        Do::Say(said) => {
            mover.say(said, None, None).await?;
            Ok(AT_REST)
        }
    }
}

/// The call, with the disks by the names that the running domain has for them.
async fn how(mover: &Mover) -> Result<MigrateTo, Error> {
    let MovePart::Send { to, copy, bandwidth, auto_converge } = &mover.order.part else {
        return Err(Error::internal("only a sending is sent"));
    };
    let mut copy_disks = Vec::new();
    if !copy.is_empty() {
        let live = mover
            .node
            .hv
            .xml(mover.order.vm, XmlKind::Live)
            .await
            .map_err(|e| Error::refused(format!("cannot read the running domain: {e}")))?;
        for disk in copy {
            let target = domain::disk_target(&live, disk)?;
            copy_disks.push(target.ok_or_else(|| Error::conflict(format!("disks[{disk}]: the running domain does not have it")))?);
        }
    }
    let all_go = mover.order.order.volumes.keys().all(|disk| copy.contains(disk));
    Ok(MigrateTo {
        connect: to.connect.clone(),
        data: to.data.clone(),
        encrypted: to.is_encrypted(),
        bandwidth_bytes: bandwidth.map(|b| b.bytes()),
        auto_converge: *auto_converge,
        copy_disks,
        stay_disks: if all_go { StayDisks::None } else { StayDisks::Shared },
    })
}

/// The guest goes on here, by a claim as before every start. That is also when its QEMU announces its NICs: one that holds all of a guest
/// and is never resumed has said nothing on the wire, so who takes a guest back need not announce it.
pub(super) async fn resume(mover: &mut Mover) -> Result<Duration, Error> {
    match claim::claim(&mover.node, &mover.order.order, None).await {
        Ok(granted) if granted.is_fresh() => {}
        Ok(_) => return Err(Error::new(Code::Unavailable, "the claim was too old when it was granted; the store is slow")),
        Err(error) => return Err(Error::new(Code::Unavailable, format!("cannot claim the right to go on: {error}"))),
    }
    match mover.node.hv.resume(mover.order.vm).await {
        Ok(()) | Err(HvError::WrongState(_)) => Ok(Duration::ZERO),
        Err(HvError::Refused(words)) if mover.order.part.kind() == PartKind::TakeBack => {
            let domain = Observed::Known(DomainState::Paused);
            mover.say(MoveSaid::Kept { domain, error: Some(Error::refused(words)) }, None, None).await?;
            Ok(AT_REST)
        }
        Err(error) => {
            tracing::warn!(vm = %mover.order.vm, %error, "cannot resume the guest yet");
            Ok(AGAIN)
        }
    }
}
