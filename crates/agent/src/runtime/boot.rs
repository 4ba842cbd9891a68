//! The board on which workers see whose turn it is while the host boots.

use std::collections::BTreeMap;
use std::sync::Mutex;

use vmkeep_core::boot::{AgentSeen, BootProgress, Booting, Rank, open_rank};
use vmkeep_core::vm::Turn;
use vmkeep_types::ids::VmId;
use vmkeep_types::observed::Seen;
use vmkeep_types::order::Order;
use vmkeep_types::vm::VmSpec;

#[derive(Default)]
pub struct BootBoard {
    inner: Mutex<Board>,
}

#[derive(Default)]
struct Board {
    /// Only VMs that were there when the host booted and have not settled since.
    booting: BTreeMap<VmId, Booting>,
    /// Start order of every VM of the node.
    orders: BTreeMap<VmId, u16>,
}

impl BootBoard {
    /// Enrols the VMs that this boot has not seen yet.
    pub fn enrol(&self, orders: &BTreeMap<VmId, Order>, seen: &BTreeMap<VmId, Seen>, boot_id: &str) {
        let mut board = self.inner.lock().expect("no panic holds this lock");
        for (id, order) in orders {
            let before = seen.get(id).map(|s| s.memory.boot_id.as_str());
            if before.is_some_and(|before| !before.is_empty() && before != boot_id) {
                board.booting.insert(*id, entry(&order.spec, BootProgress::Waiting { turn_since_ms: None }));
            }
        }
    }

    /// Notes a VM's start order, for host shutdown.
    pub fn note_order(&self, id: VmId, spec: &VmSpec) {
        self.inner.lock().expect("no panic holds this lock").orders.insert(id, spec.start.order);
    }

    pub fn forget(&self, id: VmId) {
        let mut board = self.inner.lock().expect("no panic holds this lock");
        board.orders.remove(&id);
        board.booting.remove(&id);
    }

    /// Whether this VM may start now; the first time it may, its turn begins.
    pub fn turn(&self, id: VmId, now_ms: u64) -> Turn {
        let mut board = self.inner.lock().expect("no panic holds this lock");
        let Some(own) = board.booting.get(&id).map(|b| b.rank) else { return Turn::Mine };
        let all: Vec<Booting> = board.booting.values().copied().collect();
        if own > open_rank(&all, now_ms) {
            return Turn::Wait;
        }
        if let Some(Booting { progress: BootProgress::Waiting { turn_since_ms }, .. }) = board.booting.get_mut(&id) {
            turn_since_ms.get_or_insert(now_ms);
        }
        Turn::Mine
    }

    pub fn running(&self, id: VmId, now_ms: u64) {
        self.progress(id, |old| match old {
            BootProgress::Running { .. } => old,
            BootProgress::Waiting { .. } | BootProgress::OutOfTheWay => BootProgress::Running { since_ms: now_ms, agent: AgentSeen::No },
        });
    }

    pub fn agent_answers(&self, id: VmId, now_ms: u64) {
        self.progress(id, |old| match old {
            BootProgress::Running { since_ms, agent: AgentSeen::No } => {
                BootProgress::Running { since_ms, agent: AgentSeen::Yes { at_ms: now_ms } }
            }
            BootProgress::Running { .. } | BootProgress::Waiting { .. } | BootProgress::OutOfTheWay => old,
        });
    }

    pub fn out_of_the_way(&self, id: VmId) {
        self.progress(id, |_| BootProgress::OutOfTheWay);
    }

    fn progress(&self, id: VmId, next: impl FnOnce(BootProgress) -> BootProgress) {
        if let Some(booting) = self.inner.lock().expect("no panic holds this lock").booting.get_mut(&id) {
            booting.progress = next(booting.progress);
        }
    }

    /// The start orders in use, highest first.
    pub fn orders_descending(&self) -> Vec<u16> {
        let board = self.inner.lock().expect("no panic holds this lock");
        let mut orders: Vec<u16> = board.orders.values().copied().collect();
        orders.sort_unstable_by(|a, b| b.cmp(a));
        orders.dedup();
        orders
    }

    /// VMs with this start order or a higher one.
    pub fn vms_of(&self, order: u16) -> Vec<VmId> {
        let board = self.inner.lock().expect("no panic holds this lock");
        board.orders.iter().filter(|(_, of)| **of >= order).map(|(id, _)| *id).collect()
    }
}

fn entry(spec: &VmSpec, progress: BootProgress) -> Booting {
    Booting { rank: Rank::of(spec), delay_ms: spec.start.delay.millis(), wait_for: spec.start.wait_for, progress }
}
