//! Between processes and the store: delays, losses, answers that come twice, watch events, and etcd's own quorum.

use vmkeep_core::ha::record::{Answer, Key, NodeNo, Txn, Value};
use vmkeep_core::ha::{agent, candidate};

use crate::store::Change;
use crate::world::{Ask, Client, Event, World};

/// One way, ms; the rest is chance.
const HOP_MS: u64 = 1;

/// etcd elects a new leader in so long, ms.
const ELECTION_MS: (u64, u64) = (1_000, 3_000);

impl World {
    fn node_of(client: Client) -> Option<NodeNo> {
        match client {
            Client::Agent(n) | Client::Candidate(n) => Some(n),
            Client::Operator => None,
        }
    }

    /// Can it talk to the store now?
    fn connected(&self, client: Client) -> bool {
        self.quorum() && Self::node_of(client).is_none_or(|n| self.hosts[usize::from(n.0)].reachable(self.now))
    }

    /// More than half of etcd's members live. Two hosts have a witness elsewhere.
    pub fn quorum(&self) -> bool {
        if self.store.out {
            return false;
        }
        let members = self.hosts.iter().filter(|host| host.is_control);
        let (all, up) = members.fold((0, 0), |(all, up), host| (all + 1, up + usize::from(host.reachable(self.now))));
        let witness = usize::from(all == 2);
        (up + witness) * 2 > all + witness
    }

    fn hop(&mut self, client: Client) -> Option<u64> {
        let (loss, delay) = Self::node_of(client).map_or((0, 0), |n| {
            let host = &self.hosts[usize::from(n.0)];
            (host.loss_permille, host.delay_ms)
        });
        if self.dice.permille(loss) {
            return None;
        }
        Some(HOP_MS + self.dice.between(0, 5) + if delay > 0 { self.dice.between(0, delay) } else { 0 })
    }

    pub fn ask(&mut self, client: Client, life: u32, ask: Ask) {
        if self.connected(client)
            && let Some(ms) = self.hop(client)
        {
            self.after(ms, Event::Asked(client, life, ask));
        }
    }

    pub fn asked(&mut self, client: Client, life: u32, ask: Ask) {
        if !self.quorum() {
            return;
        }
        if self.store.stalled_until > self.now {
            return self.at(self.store.stalled_until, Event::Asked(client, life, ask));
        }
        let lags = Self::node_of(client).is_some_and(|n| self.hosts[usize::from(n.0)].lags);
        let reads = Self::node_of(client).is_none_or(|n| self.hosts[usize::from(n.0)].store_readable);
        match ask {
            Ask::Txn(txn) => {
                let answer = self.commit(client, &txn);
                match client {
                    Client::Agent(n) => self.reply(client, Event::ToAgent(n, life, agent::Event::Answer(answer))),
                    Client::Candidate(n) => self.reply(client, Event::ToCandidate(n, life, candidate::Event::Answer(answer))),
                    Client::Operator => {}
                }
            }
            Ask::List(id) => match client {
                Client::Agent(n) => {
                    let found = reads.then(|| self.store.list(|key| key.is_for_agent(n) || key == Key::Beat(n), lags));
                    self.reply(client, Event::ToAgent(n, life, agent::Event::Listed { id, found }));
                }
                Client::Candidate(n) => {
                    let found = reads.then(|| self.store.list(|_| true, lags));
                    self.reply(client, Event::ToCandidate(n, life, candidate::Event::Listed { id, found }));
                }
                Client::Operator => {}
            },
            Ask::KeepAlive => self.keep_alive(client, life),
        }
    }

    fn keep_alive(&mut self, client: Client, life: u32) {
        let Client::Candidate(n) = client else { return };
        let holds = self.leader() == Some(n);
        if holds && self.store.lease_until.is_some() && !self.store.lies_about_leases {
            self.store.lease_until = Some(self.now + self.timers.lease_ms);
        }
        let kept = holds || self.store.lies_about_leases;
        let is = if kept { candidate::LeaseIs::Kept } else { candidate::LeaseIs::Gone };
        self.reply(client, Event::ToCandidate(n, life, candidate::Event::Lease(is)));
    }

    fn reply(&mut self, client: Client, event: Event) {
        if !self.connected(client) {
            return;
        }
        let Some(ms) = self.hop(client) else { return };
        if self.dice.permille(self.twice_permille) {
            let later = self.dice.between(1, 4_000);
            self.after(ms + later, event.clone());
        }
        self.after(ms, event);
    }

    /// A transaction takes effect; checks and watchers hear of it.
    pub fn commit(&mut self, client: Client, txn: &Txn) -> Answer {
        let (outcome, changes) = self.store.commit(txn);
        self.committed(client, &changes);
        Answer { id: txn.id, outcome, revision: self.store.revision }
    }

    pub fn committed(&mut self, client: Client, changes: &[Change]) {
        for change in changes {
            self.check_commit(client, change);
        }
        for change in changes {
            if let (Key::Leader, Some(_)) = (change.key, &change.after) {
                self.store.lease_until = Some(self.now + self.timers.lease_ms);
            }
            self.watchers(change);
        }
    }

    fn watchers(&mut self, change: &Change) {
        if matches!(change.key, Key::Canary(_)) {
            return;
        }
        let revision = self.store.revision;
        for i in 0..self.hosts.len() {
            let (n, agent, candidate) = {
                let host = &self.hosts[i];
                if host.lags || !host.store_readable || !host.reachable(self.now) {
                    continue;
                }
                let agent = (host.agent.is.is_some() && change.key.is_for_agent(host.node)).then_some(host.agent.life);
                (host.node, agent, host.candidate.is.is_some().then_some(host.candidate.life))
            };
            // One stream is in order: the same way takes the same time.
            if let Some(life) = agent
                && !self.dice.permille(self.watch_loss_permille)
            {
                self.after(HOP_MS + 5, Event::ToAgent(n, life, agent::Event::Changed));
            }
            if let Some(life) = candidate
                && !self.dice.permille(self.watch_loss_permille)
            {
                let event = candidate::Event::Watched { key: change.key, value: change.after.clone(), revision };
                let slow = self.hosts[i].delay_ms;
                self.after(HOP_MS + 5 + slow, Event::ToCandidate(n, life, event));
            }
        }
    }

    /// etcd gets another leader: nothing is answered for a while, and every lease starts anew.
    pub fn etcd_elects(&mut self) {
        let stall = self.dice.between(ELECTION_MS.0, ELECTION_MS.1);
        self.store.stalled_until = self.now + stall;
        if self.store.lease_until.is_some() {
            self.store.lease_until = Some(self.store.stalled_until + self.timers.lease_ms);
        }
        self.log.tell(self.now, || format!("etcd elects a new leader and answers nobody for {stall} ms"));
    }

    pub fn etcd_second(&mut self) {
        let members: Vec<usize> = (0..self.hosts.len()).filter(|i| self.hosts[*i].is_control).collect();
        if self.quorum() && !self.hosts[self.etcd_leader].reachable(self.now) {
            let next = members.iter().copied().find(|i| self.hosts[*i].reachable(self.now));
            if let Some(next) = next.filter(|next| *next != self.etcd_leader) {
                self.etcd_leader = next;
                self.etcd_elects();
            }
        }
        let expired = self.store.lease_until.is_some_and(|until| until <= self.now);
        if expired && self.quorum() && self.store.stalled_until <= self.now {
            self.store.lease_until = None;
            if self.leader().is_some() {
                let changes = self.store.write(&[vmkeep_core::ha::record::Op::Delete(Key::Leader)]);
                self.committed(Client::Operator, &changes);
            }
        }
    }

    pub fn value(&self, key: Key) -> Option<&Value> {
        self.store.get(key)
    }
}
