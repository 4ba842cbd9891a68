//! One life of a node: joining, renewing, arming, and the two ways to end.

use super::super::clock::Now;
use super::super::fenced;
use super::super::life::{self, Before, Boot, Guests, Join};
use super::super::record::{Answer, Beat, Compare, Entry, EpochRecord, Farewell, Key, Outcome, Txn, TxnId, Value};
use super::super::weakness::Weakness;
use super::{ANSWER_MS, Action, Agent, Arming, DISARM_AFTER_MS, FAREWELL_MS, Stage};
use vmkeep_types::ids::Epoch;

impl Agent {
    /// Both the store and libvirt have been read: may this node live on, or begin anew?
    pub(super) fn try_join(&mut self, now: Now, entries: &[Entry], out: &mut Vec<Action>) {
        if self.domains_heard.is_none() {
            self.stale = true;
            return;
        }
        let beat = entries.iter().find_map(|e| match (&e.key, &e.value) {
            (Key::Beat(_), Value::Beat(beat)) => Some((beat.seq, e.revision)),
            _ => None,
        });
        self.beat = beat;
        let Some((record, revision)) = self.known.epoch else {
            let id = self.id();
            self.epoch = Epoch(1);
            return self.begin(now, Txn::new(id).when(Compare::Absent(Key::Epoch(self.me))), out);
        };
        let epoch = record.epoch;
        let (sealed, confirmed) = (self.known.fenced.contains(&epoch), self.known.confirmed.contains(&epoch));
        let armed = self.known.armed.get(&epoch).copied();
        let before = Before {
            boot: if record.boot == self.boot { Boot::This } else { Boot::Another },
            closed: record.closed,
            sealed,
            confirmed: confirmed || self.weak == Some(Weakness::JoinWithoutProof),
            armed: armed.is_some(),
        };
        match life::join(before, if self.has_domains() { Guests::Some } else { Guests::None }) {
            Join::GoOn => {
                (self.epoch, self.epoch_revision, self.stage) = (epoch, revision, Stage::Live);
                // Whose orders these are was not known when they were read.
                self.stale = true;
                if let Some(armed) = armed {
                    // fenced lives on beside us and is armed: only a renewal tells it anything.
                    self.arming = Arming::Yes(armed.kind);
                } else if self.known.unusable.contains(&epoch) {
                    self.arming = Arming::Never;
                }
            }
            Join::Ended => self.end(out),
            Join::Next => {
                let id = self.id();
                self.epoch = epoch.next();
                let mut txn = Txn::new(id).when(Compare::Revision(Key::Epoch(self.me), revision));
                if !record.closed && self.weak != Some(Weakness::JoinWithoutProof) {
                    txn = txn.when(Compare::Present(Key::Confirmed(self.me, epoch)));
                }
                self.begin(now, txn, out);
            }
            Join::Wait if before.boot == Boot::Another && !self.known.waiting => {
                let id = self.id();
                let txn = Txn::new(id).when(Compare::Revision(Key::Epoch(self.me), revision));
                out.push(Action::Txn(txn.put(Key::Waiting(self.me), Value::Mark)));
            }
            Join::Wait => {}
        }
    }

    fn begin(&mut self, now: Now, txn: Txn, out: &mut Vec<Action>) {
        let record = EpochRecord { epoch: self.epoch, boot: self.boot, closed: false };
        self.stage = Stage::Joining(txn.id, now);
        let txn = txn.delete(Key::Waiting(self.me)).delete(Key::Leaving(self.me));
        out.push(Action::Txn(txn.put(Key::Epoch(self.me), Value::Epoch(record))));
    }

    pub(super) fn joined(&mut self, answer: &Answer) {
        self.stale = true;
        self.stage = match answer.outcome {
            Outcome::Done => {
                self.epoch_revision = answer.revision;
                Stage::Live
            }
            Outcome::Refused(_) => Stage::Reading,
        };
    }

    pub(super) fn renew(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.renewing.is_some_and(|(_, sent)| self.age_ms(now, sent) <= ANSWER_MS.min(self.timers.renew_ms)) {
            return;
        }
        let failed = self.renewing.take().is_some();
        if !failed && self.tried.is_some_and(|at| self.age_ms(now, at) < self.timers.renew_ms) {
            return;
        }
        let id = self.id();
        let (seq, last) = self.beat.map_or((0, None), |(seq, revision)| (seq, Some(revision)));
        let beat = Beat { epoch: self.epoch, seq: seq + 1, hypervisor: self.hypervisor, storage: self.storage, profile: self.profile };
        let same = last.map_or(Compare::Absent(Key::Beat(self.me)), |r| Compare::Revision(Key::Beat(self.me), r));
        let mut txn = Txn::new(id).when(same).when(Compare::Revision(Key::Epoch(self.me), self.epoch_revision));
        if self.weak != Some(Weakness::RenewWithoutSeal) {
            txn = txn.when(Compare::Absent(Key::Fence(self.me, self.epoch)));
        }
        let look = [Key::Beat(self.me), Key::Epoch(self.me), Key::Fence(self.me, self.epoch)];
        (self.tried, self.renewing) = (Some(now), Some((id, now)));
        out.push(Action::Txn(txn.put(Key::Beat(self.me), Value::Beat(beat)).else_get(&look)));
    }

    pub(super) fn renewal(&mut self, now: Now, sent: Now, answer: Answer, out: &mut Vec<Action>) {
        self.renewing = None;
        let found = match answer.outcome {
            Outcome::Done => {
                let sent = if self.weak == Some(Weakness::CountFromAnswer) { now } else { sent };
                self.renewed = self.renewed.max(Some(sent));
                self.beat = Some((self.beat.map_or(0, |(seq, _)| seq) + 1, answer.revision));
                if self.may_be_open() {
                    out.push(Action::Fenced(fenced::Event::Renewed { sent }));
                }
                return;
            }
            Outcome::Refused(found) => found,
        };
        let mine = found.iter().any(|e| e.key == Key::Epoch(self.me) && e.revision == self.epoch_revision);
        if !mine || found.iter().any(|e| matches!(e.key, Key::Fence(..))) {
            return self.end(out);
        }
        // One that was thought lost has succeeded: go on from it at once.
        for entry in &found {
            if let Value::Beat(beat) = &entry.value {
                self.beat = Some((beat.seq, entry.revision));
            }
        }
        self.tried = None;
    }

    /// This epoch is over. Armed, it ends in a reset and in nothing else.
    fn end(&mut self, out: &mut Vec<Action>) {
        // Nobody counts on a watchdog that no transaction has told of, and nothing was claimed under it.
        if matches!(self.arming, Arming::Opening(_) | Arming::Open(_)) && !self.known.armed.contains_key(&self.epoch) {
            self.arming = Arming::No;
            out.push(Action::Fenced(fenced::Event::Disarm));
        }
        if self.may_be_open() || self.known.armed.contains_key(&self.epoch) {
            out.push(Action::Fenced(fenced::Event::Sealed));
            self.stage = Stage::Ended;
        } else if self.has_domains() {
            out.push(Action::Power(Farewell::Reboot));
            self.stage = Stage::Ended;
        } else {
            self.forget_vms();
            self.arming = Arming::No;
            (self.stage, self.renewed, self.renewing, self.beat) = (Stage::Reading, None, None, None);
        }
    }

    pub(super) fn arm_or_disarm(&mut self, now: Now, out: &mut Vec<Action>) {
        let wanted = (self.owns_something() || self.known.arm_wanted) && self.known.disarm.is_none();
        self.empty_since = if wanted { None } else { self.empty_since.or(Some(now)) };
        let idle = self.empty_since.is_some_and(|at| now.longest_since(at) >= DISARM_AFTER_MS) || self.known.disarm.is_some();
        match self.arming {
            Arming::No if wanted => self.open(now, out),
            // fenced may have been started anew.
            Arming::Opening(at) if self.age_ms(now, at) > ANSWER_MS => self.open(now, out),
            Arming::Open(kind) => self.write_armed(now, kind, out),
            Arming::Writing(kind, _, sent) if self.age_ms(now, sent) > ANSWER_MS => self.write_armed(now, kind, out),
            Arming::Yes(kind) if !wanted && idle && !self.stale => self.erase_armed(now, kind, out),
            // It was erased by a transaction whose answer was lost, or never written.
            Arming::Yes(kind) if wanted && !self.stale && !self.known.armed.contains_key(&self.epoch) => self.write_armed(now, kind, out),
            Arming::Erasing(kind, _, sent) if self.age_ms(now, sent) > ANSWER_MS => self.erase_armed(now, kind, out),
            Arming::Excusing(_, sent) if self.age_ms(now, sent) > ANSWER_MS => self.excuse(now, out),
            Arming::No
            | Arming::Opening(_)
            | Arming::Writing(..)
            | Arming::Yes(_)
            | Arming::Erasing(..)
            | Arming::Excusing(..)
            | Arming::Never => {}
        }
    }

    fn open(&mut self, now: Now, out: &mut Vec<Action>) {
        if let Some(sent) = self.renewed.filter(|at| self.age_ms(now, *at) < self.timers.kill_ms) {
            self.arming = Arming::Opening(now);
            out.push(Action::Fenced(fenced::Event::Arm { sent }));
        }
    }

    pub(super) fn opened(&mut self, kind: super::WatchdogKind) {
        if matches!(self.arming, Arming::Opening(_)) {
            self.arming = Arming::Open(kind);
        }
    }

    /// Is the watchdog open, or may it be?
    fn may_be_open(&self) -> bool {
        !matches!(self.arming, Arming::No | Arming::Excusing(..) | Arming::Never)
    }

    /// It cannot arm: whoever asked gives its VMs to another node, if one will do.
    pub(super) fn excuse(&mut self, now: Now, out: &mut Vec<Action>) {
        if matches!(self.arming, Arming::Opening(_) | Arming::Excusing(..)) {
            let id = self.id();
            self.arming = Arming::Excusing(id, now);
            out.push(Action::Txn(self.own_epoch(Txn::new(id)).put(Key::Unusable(self.me, self.epoch), Value::Mark)));
        }
    }

    /// Written, or refused: sealed, and the next renewal tells.
    pub(super) fn excused(&mut self) {
        (self.arming, self.stale) = (Arming::Never, true);
    }

    fn write_armed(&mut self, now: Now, kind: super::WatchdogKind, out: &mut Vec<Action>) {
        let id = self.id();
        self.arming = Arming::Writing(kind, id, now);
        let txn = self.own_epoch(Txn::new(id)).when(Compare::Absent(Key::Disarm));
        out.push(Action::Txn(txn.put(Key::Armed(self.me, self.epoch), Value::Armed(self.armed_record(kind)))));
    }

    /// Of a transaction that only this epoch, unsealed, may do.
    pub(super) fn own_epoch(&self, txn: Txn) -> Txn {
        txn.when(Compare::Revision(Key::Epoch(self.me), self.epoch_revision)).when(Compare::Absent(Key::Fence(self.me, self.epoch)))
    }

    /// Done or refused. Refused it is sealed (the next renewal tells) or disarmed: what is open is closed by a transaction, as always.
    pub(super) fn armed(&mut self) {
        if let Arming::Writing(kind, ..) = self.arming {
            self.arming = Arming::Yes(kind);
        }
        self.stale = true;
    }

    fn erase_armed(&mut self, now: Now, kind: super::WatchdogKind, out: &mut Vec<Action>) {
        let id = self.id();
        self.arming = Arming::Erasing(kind, id, now);
        let txn = self.own_epoch(Txn::new(id));
        let txn = match self.known.disarm {
            _ if self.weak == Some(Weakness::DisarmOwning) => txn,
            Some(_) => txn.when(Compare::Present(Key::Disarm)),
            None => txn.when(Compare::OwnsNothing(self.me)).when(Compare::Absent(Key::ArmWanted(self.me))),
        };
        out.push(Action::Txn(txn.delete(Key::Armed(self.me, self.epoch))));
    }

    pub(super) fn disarmed(&mut self, answer: &Answer, out: &mut Vec<Action>) {
        self.stale = true;
        let Arming::Erasing(kind, ..) = self.arming else { return };
        self.arming = match answer.outcome {
            Outcome::Done => {
                self.known.armed.remove(&self.epoch);
                out.push(Action::Fenced(fenced::Event::Disarm));
                Arming::No
            }
            Outcome::Refused(_) => Arming::Yes(kind),
        };
    }

    /// The host is being shut down: wait until the VMs have gone, close the epoch, let the power go.
    pub(super) fn say_goodbye(&mut self, now: Now, out: &mut Vec<Action>) {
        let Some((farewell, since, told)) = self.farewell else { return };
        if now.longest_since(since) > FAREWELL_MS {
            self.stage = Stage::Ended;
            return out.push(Action::Power(farewell));
        }
        match told {
            Some((TxnId(0), at)) => {
                let empty = !self.owns_something() && !self.stale && self.listed.is_some_and(|l| l > at);
                if empty && !self.has_domains() {
                    self.close(now, out);
                }
            }
            Some((_, sent)) if self.age_ms(now, sent) <= ANSWER_MS => {}
            Some(_) | None => {
                let id = self.id();
                self.farewell = Some((farewell, since, Some((id, now))));
                out.push(Action::Txn(self.own_epoch(Txn::new(id)).put(Key::Leaving(self.me), Value::Leaving(farewell))));
            }
        }
    }

    fn close(&mut self, now: Now, out: &mut Vec<Action>) {
        let id = self.id();
        self.stage = Stage::Closing(id, now);
        let record = EpochRecord { epoch: self.epoch, boot: self.boot, closed: true };
        let txn = self.own_epoch(Txn::new(id)).when(Compare::OwnsNothing(self.me)).put(Key::Epoch(self.me), Value::Epoch(record));
        let txn = [Key::Armed(self.me, self.epoch), Key::ArmWanted(self.me)].into_iter().fold(txn, Txn::delete);
        out.push(Action::Txn(txn));
    }

    pub(super) fn closed(&mut self, answer: &Answer, out: &mut Vec<Action>) {
        self.stale = true;
        self.stage = match answer.outcome {
            Outcome::Done => {
                if self.may_be_open() {
                    out.push(Action::Fenced(fenced::Event::Disarm));
                }
                out.extend(self.farewell.map(|(farewell, ..)| Action::Power(farewell)));
                Stage::Ended
            }
            Outcome::Refused(_) => Stage::Live,
        };
    }
}
