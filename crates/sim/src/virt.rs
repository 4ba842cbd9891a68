//! libvirt of each host: calls take time, fail, hang, and go on after the agent that asked has died.

use vmkeep_core::ha::agent::{self, Call, CallEnd, Domain, Gone};
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::record::{NodeNo, VmNo};

use crate::host::{Job, Qemu};
use crate::world::{Event, World};

/// How long calls take, ms.
const START_MS: (u64, u64) = (500, 2_500);
const STOP_MS: (u64, u64) = (1_000, 4_000);
const MOVE_MS: (u64, u64) = (3_000, 8_000);
const SHORT_MS: (u64, u64) = (50, 300);

/// What is left of a call that stood still, ms.
const HELD_MS: u64 = 2_000;

/// From libvirt to the agent, ms.
const WORD_MS: u64 = 5;

impl World {
    pub fn libvirt(&mut self, n: NodeNo, life: u32, action: agent::Action) {
        let host = self.host(n);
        match action {
            agent::Action::ListDomains => {
                let domains = host.qemus.iter().map(|(vm, qemu)| (*vm, qemu.domain)).collect();
                let at = host.libvirt_hung_until.max(self.now) + WORD_MS;
                self.at(at, Event::ToAgent(n, life, agent::Event::Domains(domains)));
            }
            agent::Action::RestartLibvirt => self.restart_libvirt(n),
            agent::Action::NoteIntent(vm) => drop(host.intents.insert(vm)),
            agent::Action::DropIntent(vm) => drop(host.intents.remove(&vm)),
            agent::Action::Relabel(vm, generation) => {
                if let Some(qemu) = host.qemus.get_mut(&vm) {
                    qemu.domain = Domain::Running(generation);
                    self.ran_until_now(vm, n);
                    self.starts_to_run(vm, n, generation);
                }
            }
            agent::Action::Call { id, vm, call } => self.call(n, Job { vm, call, id, agent_life: life }),
            agent::Action::Txn(_) | agent::Action::List(_) | agent::Action::Fenced(_) | agent::Action::Power(_) => {
                unreachable!("these are not for libvirt")
            }
        }
    }

    fn call(&mut self, n: NodeNo, job: Job) {
        let (from, to) = match job.call {
            Call::Start(_) => START_MS,
            Call::Stop => STOP_MS,
            Call::MoveTo(_) => MOVE_MS,
            Call::Resume(_) | Call::Kill => SHORT_MS,
        };
        self.check_call(n, &job);
        let ms = self.dice.between(from, to);
        let number = job.id;
        let boot = self.host(n).boot;
        self.host(n).jobs.insert(number, job);
        if let Call::MoveTo(to) = job.call {
            self.announce_guest(n, to, job.vm);
        }
        self.after(ms, Event::Job(n, boot, number));
    }

    /// The destination makes a domain for the guest that is to arrive.
    fn announce_guest(&mut self, from: NodeNo, to: NodeNo, vm: VmNo) {
        let Some(Qemu { domain: Domain::Running(generation), .. }) = self.host(from).qemus.get(&vm).copied() else { return };
        let now = self.now;
        let target = self.host(to);
        if target.reachable(now) && target.libvirt_hung_until <= now && !target.qemus.contains_key(&vm) {
            target.qemus.insert(vm, Qemu { domain: Domain::Incoming(generation), stuck: false });
            self.domain_is(to, vm, Ok(Domain::Incoming(generation)));
        }
    }

    fn domain_is(&mut self, n: NodeNo, vm: VmNo, is: Result<Domain, Gone>) {
        let life = self.host(n).agent.life;
        self.after(WORD_MS, Event::ToAgent(n, life, agent::Event::Domain { vm, is }));
    }

    pub fn job_done(&mut self, n: NodeNo, boot: u64, number: u64) {
        let now = self.now;
        let host = self.host(n);
        if host.boot != boot || !host.powered {
            return;
        }
        let held = host.libvirt_hung_until.max(host.paused_until);
        if held > now {
            // It goes on where it stood still, beside the listings that waited with it.
            let left = self.dice.between(0, HELD_MS);
            return self.at(held + left, Event::Job(n, boot, number));
        }
        let Some(job) = host.jobs.remove(&number) else { return };
        let end = match job.call {
            Call::Start(generation) => self.started(n, job.vm, Domain::Running(generation)),
            Call::Resume(generation) => self.resumed(n, job.vm, generation),
            Call::Stop => self.stopped(n, job.vm),
            Call::Kill => self.ended(n, job.vm, Gone::Ended),
            Call::MoveTo(to) => self.moved(n, to, job.vm),
        };
        self.after(WORD_MS, Event::ToAgent(n, job.agent_life, agent::Event::Called { id: job.id, vm: job.vm, end }));
    }

    fn started(&mut self, n: NodeNo, vm: VmNo, domain: Domain) -> CallEnd {
        let mishaps = self.mishaps.entry(vm).or_default();
        if mishaps.starts > 0 && mishaps.starts_on.is_none_or(|on| on == n) {
            mishaps.starts -= 1;
            self.log.tell(self.now, || format!("{} fails to start on {}", self.roster.vm(vm), self.roster.node(n)));
            return CallEnd::Failed;
        }
        let host = self.host(n);
        if !host.storage || host.qemus.contains_key(&vm) {
            return CallEnd::Failed;
        }
        host.qemus.insert(vm, Qemu { domain, stuck: false });
        self.domain_is(n, vm, Ok(domain));
        if let Domain::Running(generation) = domain {
            self.starts_to_run(vm, n, generation);
        }
        CallEnd::Done
    }

    fn resumed(&mut self, n: NodeNo, vm: VmNo, generation: vmkeep_types::ids::Generation) -> CallEnd {
        match self.host(n).qemus.get_mut(&vm) {
            Some(qemu) if matches!(qemu.domain, Domain::Arrived(_)) => {
                qemu.domain = Domain::Running(generation);
                self.domain_is(n, vm, Ok(Domain::Running(generation)));
                self.starts_to_run(vm, n, generation);
                CallEnd::Done
            }
            _ => CallEnd::Failed,
        }
    }

    fn stopped(&mut self, n: NodeNo, vm: VmNo) -> CallEnd {
        let mishaps = self.mishaps.entry(vm).or_default();
        if mishaps.stops > 0 {
            mishaps.stops -= 1;
            self.log.tell(self.now, || format!("{} fails to stop on {}", self.roster.vm(vm), self.roster.node(n)));
            return CallEnd::Failed;
        }
        if self.host(n).qemus.get(&vm).is_some_and(|qemu| qemu.stuck) {
            return CallEnd::Failed;
        }
        self.ended(n, vm, Gone::Ended)
    }

    /// A domain is gone; whoever watches hears why.
    pub fn ended(&mut self, n: NodeNo, vm: VmNo, gone: Gone) -> CallEnd {
        if self.host(n).qemus.remove(&vm).is_some() {
            self.ran_until_now(vm, n);
            self.domain_is(n, vm, Err(gone));
        }
        CallEnd::Done
    }

    fn moved(&mut self, n: NodeNo, to: NodeNo, vm: VmNo) -> CallEnd {
        let (now, boot) = (self.now, self.host(n).boot);
        let mishaps = self.mishaps.entry(vm).or_default();
        let unlucky = mishaps.moves > 0;
        mishaps.moves -= u32::from(unlucky);
        let (source, target) = (&self.hosts[usize::from(n.0)], &self.hosts[usize::from(to.0)]);
        let sent = source.runs(vm) && boot == source.boot;
        let arriving = matches!(target.qemus.get(&vm), Some(Qemu { domain: Domain::Incoming(_), .. })) && target.powered;
        let line = source.reachable(now) && target.reachable(now) && target.storage && source.storage;
        if unlucky {
            self.log.tell(now, || format!("{} fails to migrate from {}", self.roster.vm(vm), self.roster.node(n)));
        }
        let generation = match self.host(n).qemus.get(&vm).map(|qemu| qemu.domain) {
            Some(Domain::Running(generation)) => generation,
            _ => return self.call_off(to, vm),
        };
        if sent && arriving && line && !unlucky {
            self.arrive(to, vm, Domain::Arrived(generation));
            self.ended(n, vm, Gone::Moved);
            return CallEnd::Done;
        }
        // The last word was lost: the guest may be whole at both ends, and libvirt resumes the source.
        if sent && arriving && !line && self.dice.permille(500) {
            self.arrive(to, vm, Domain::Arrived(generation));
            return CallEnd::Failed;
        }
        self.call_off(to, vm)
    }

    fn arrive(&mut self, to: NodeNo, vm: VmNo, domain: Domain) {
        self.host(to).qemus.insert(vm, Qemu { domain, stuck: false });
        self.domain_is(to, vm, Ok(domain));
    }

    fn call_off(&mut self, to: NodeNo, vm: VmNo) -> CallEnd {
        if matches!(self.host(to).qemus.get(&vm), Some(Qemu { domain: Domain::Incoming(_), .. })) {
            self.ended(to, vm, Gone::Ended);
        }
        CallEnd::Failed
    }

    fn restart_libvirt(&mut self, n: NodeNo) {
        let jobs = std::mem::take(&mut self.host(n).jobs);
        self.host(n).intents.clear();
        self.host(n).libvirt_hung_until = 0;
        for job in jobs.into_values() {
            if let Call::MoveTo(to) = job.call {
                self.call_off(to, job.vm);
            }
        }
        self.log.tell(self.now, || format!("{} restarts libvirt: a call of the agent before may still be under way", self.roster.node(n)));
    }

    /// fenced kills everything in the VMs' cgroup; what is stuck in the kernel stays.
    pub fn kill_vms(&mut self, n: NodeNo, _reading: Now) {
        let dead: Vec<VmNo> = self.host(n).qemus.iter().filter(|(_, qemu)| !qemu.stuck).map(|(vm, _)| *vm).collect();
        if !dead.is_empty() {
            self.log.tell(self.now, || {
                let names: Vec<&str> = dead.iter().map(|vm| self.roster.vm(*vm)).collect();
                format!("{} kills {}: the store has not heard of it for too long", self.roster.node(n), names.join(", "))
            });
        }
        for vm in dead {
            self.ended(n, vm, Gone::Ended);
        }
    }

    pub fn tell_storage(&mut self, n: NodeNo) {
        use vmkeep_core::ha::record::Health;
        let host = self.host(n);
        let (life, health) = (host.agent.life, if host.storage { Health::Good } else { Health::Bad });
        self.after(WORD_MS, Event::ToAgent(n, life, agent::Event::Storage(health)));
    }
}
