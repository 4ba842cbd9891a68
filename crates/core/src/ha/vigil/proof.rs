//! The end of a sealed node's epoch: the first proof that comes ends the wait.
//!
//! | proof | comes |
//! |---|---|
//! | STONITH | when the fence agent says that its power is off; tried again and again |
//! | storage | when the storage of all its disks refuses its writes; the same. Of armed nodes only |
//! | watchdog | by time alone: `T_safe` after the renewal that the seal names |
//! | unarmed | at once, of a node that owns nothing and can start nothing |
//!
//! The fifth, a person's word, is not asked for here.

use vmkeep_types::ids::Epoch;

use super::{Ledger, NodeNow, PowerIs, Step, Vigil, WritesAre};
use crate::ha::brake::Brake;
use crate::ha::clock::Now;
use crate::ha::record::{Armed, Compare, Key, NodeNo, Proof, Seat, Txn, TxnId, Value, WatchdogKind};
use crate::ha::weakness::Weakness;

impl Vigil {
    pub(super) fn prove(&mut self, now: Now, ledger: &impl Ledger, node: NodeNo, is: &NodeNow, out: &mut Vec<Step>) {
        let Some((fence, fence_revision)) = ledger.fence(node, is.epoch) else { return };
        let armed = ledger.armed(node, is.epoch);
        // A host that has booted anew needs no cutting where waiting proves as much.
        if !is.waiting || armed.is_none_or(|(armed, _)| armed.safe_ms().is_none()) {
            self.cut_power(now, ledger, node, is.epoch, out);
        }
        let Some((armed, armed_revision)) = armed else {
            return self.prove_unarmed(ledger, node, is.epoch, out);
        };
        self.refuse_writes(now, ledger, Seat { node, epoch: is.epoch }, out);
        let safe_ms = match self.weak {
            Some(Weakness::OneWatchdog) => armed.unsafe_ms(),
            Some(Weakness::SoftwareWatchdog) => Armed { kind: WatchdogKind::Hardware, ..armed }.safe_ms(),
            _ => armed.safe_ms(),
        };
        let Some(safe_ms) = safe_ms else {
            if self.told.insert(node, is.epoch) != Some(is.epoch) && !ledger.can_cut(node) && !ledger.can_refuse(node) {
                let name = ledger.name(node);
                out.push(Step::Say(format!("{name} has a software watchdog, which proves nothing while the whole host stands still: only STONITH, the storage or a person can say that it is dead")));
            }
            return;
        };
        // Only the renewal that the seal named counts; who has not seen it waits from now on.
        let waited = match self.heard.get(&node) {
            Some(heard) if heard.revision == fence.beat => now.shortest_since(heard.at),
            _ if self.weak == Some(Weakness::SealWithoutRevision) => self.heard.get(&node).map_or(0, |heard| now.shortest_since(heard.at)),
            _ => 0,
        };
        if waited >= safe_ms {
            let txn = Txn::new(TxnId(0)).when(Compare::Revision(Key::Fence(node, is.epoch), fence_revision));
            let txn = txn.when(Compare::Revision(Key::Armed(node, is.epoch), armed_revision));
            confirm(node, is.epoch, txn, Proof::Watchdog, out);
        }
    }

    /// It can have started nothing: it is not armed and owns nothing, in one moment, and can never arm again.
    fn prove_unarmed(&self, ledger: &impl Ledger, node: NodeNo, epoch: Epoch, out: &mut Vec<Step>) {
        let weak = self.weak == Some(Weakness::UnarmedIsDead);
        if !weak && ledger.owns_any(node) {
            return;
        }
        let mut txn = Txn::new(TxnId(0)).when(Compare::Present(Key::Fence(node, epoch))).when(Compare::Absent(Key::Armed(node, epoch)));
        if !weak {
            txn = txn.when(Compare::OwnsNothing(node));
        }
        confirm(node, epoch, txn, Proof::Unarmed, out);
    }

    fn cut_power(&mut self, now: Now, ledger: &impl Ledger, node: NodeNo, epoch: Epoch, out: &mut Vec<Step>) {
        let spared = match self.brake {
            Brake::Off => false,
            Brake::On | Brake::Frozen => self.pings.may_answer(now, node),
        };
        if ledger.can_cut(node) && self.stonith.is_due(now, node, epoch) && !spared {
            self.stonith.begin(now, node, epoch);
            out.push(Step::Say(format!("{} has the power of {} cut", ledger.name(self.me), ledger.name(node))));
            out.push(Step::CutPower { node, epoch });
        }
    }

    /// Of armed nodes only: they reset themselves, which ends what was begun and makes the storage take their writes again. Pings hold up
    /// nothing: a node that cannot renew lets its VMs go in any case.
    fn refuse_writes(&mut self, now: Now, ledger: &impl Ledger, Seat { node, epoch }: Seat, out: &mut Vec<Step>) {
        if ledger.can_refuse(node) && self.refusals.is_due(now, node, epoch) {
            self.refusals.begin(now, node, epoch);
            out.push(Step::Say(format!("{} has the storage refuse what {} writes", ledger.name(self.me), ledger.name(node))));
            out.push(Step::RefuseWrites { node, epoch });
        }
    }

    /// The storage has come back to this candidate, which leads or not.
    pub fn writes_refused(&mut self, now: Now, ledger: &impl Ledger, seat: Seat, writes: WritesAre, out: &mut Vec<Step>) {
        let Seat { node, epoch } = seat;
        self.refusals.end(now, node, epoch);
        if writes == WritesAre::Refused || self.weak == Some(Weakness::RefusalUnheard) {
            let txn = Txn::new(TxnId(0)).when(Compare::Present(Key::Fence(node, epoch)));
            confirm(node, epoch, txn, Proof::Storage, out);
        } else {
            out.push(Step::Say(format!("the storage may still take what {} writes", ledger.name(node))));
        }
    }

    /// The fence agent has come back to this candidate, which leads or not.
    pub fn power_cut(&mut self, now: Now, ledger: &impl Ledger, node: NodeNo, epoch: Epoch, power: PowerIs, out: &mut Vec<Step>) {
        self.stonith.end(now, node, epoch);
        match power {
            PowerIs::Off => {
                let txn = Txn::new(TxnId(0)).when(Compare::Present(Key::Fence(node, epoch)));
                confirm(node, epoch, txn, Proof::Stonith, out);
            }
            PowerIs::Unknown => out.push(Step::Say(format!("the power of {} could not be cut", ledger.name(node)))),
        }
    }
}

fn confirm(node: NodeNo, epoch: Epoch, txn: Txn, proof: Proof, out: &mut Vec<Step>) {
    let key = Key::Confirmed(node, epoch);
    out.push(Step::Write { node, txn: txn.when(Compare::Absent(key)).put(key, Value::Confirmed(proof)) });
}
