//! What lies under a node's prefix: its own words, and what it is told.

use std::collections::BTreeMap;

use vmkeep_store::KeyValue;
use vmkeep_types::cluster::Rejoined;
use vmkeep_types::event::Event;
use vmkeep_types::ha::{ArmWanted, Armed, Departure, TimerProfile};
use vmkeep_types::host::{EpochRecord, Heartbeat, NodeFacts};
use vmkeep_types::ids::{Epoch, OperationId, Revision, VmId};
use vmkeep_types::migration::{MoveOrder, MoveSeen};
use vmkeep_types::name::Name;
use vmkeep_types::node::NodeRecord;
use vmkeep_types::observed::Seen;
use vmkeep_types::order::{NodeTask, TaskResult};

use super::{ClusterView, Kept, Touched, decode, drop_key, keep, touch_vm};

/// One node's keys.
#[derive(Clone, Debug, Default)]
pub struct NodeKeys {
    pub facts: Option<Kept<NodeFacts>>,
    /// What people say of it.
    pub record: Option<Kept<NodeRecord>>,
    /// Where its last heartbeat stands, and what the node lives by.
    pub beat: Option<(Revision, TimerProfile)>,
    /// Its epoch.
    pub life: Option<Kept<EpochRecord>>,
    /// How each of its epochs would die, or would have.
    pub armed: BTreeMap<Epoch, Kept<Armed>>,
    /// It is to arm its watchdog: VMs are about to come.
    pub arm_wanted: Option<Kept<ArmWanted>>,
    /// A new boot waits for the proof that the one before has ended.
    pub waiting: bool,
    /// It goes down in order.
    pub leaving: Option<Kept<Departure>>,
    /// What it told a store that was restored.
    pub rejoined: Option<Kept<Rejoined>>,
    /// [`vmkeep_types::order::Order::digest`] of each: it is only compared with the one that would be written now.
    pub orders: BTreeMap<VmId, u64>,
    pub seen: BTreeMap<VmId, Kept<Seen>>,
    pub moves: BTreeMap<VmId, Kept<MoveOrder>>,
    pub moved: BTreeMap<VmId, Kept<MoveSeen>>,
    pub tasks: BTreeMap<OperationId, Kept<NodeTask>>,
    pub results: BTreeMap<OperationId, Kept<TaskResult>>,
    /// Key to event, in order of time.
    pub events: BTreeMap<String, Kept<Event>>,
}

impl ClusterView {
    pub(super) fn put_node(&mut self, node: &str, rest: &[&str], kv: &KeyValue, touched: &mut Touched) {
        let Ok(name) = node.parse::<Name>() else { return };
        let keys = self.nodes.entry(name.clone()).or_default();
        match rest {
            ["facts"] => {
                keys.facts = decode(kv);
                self.touch_node(&name, touched);
                touched.joiners.extend((!self.joined.contains(&name)).then_some(name));
            }
            ["hb"] => keys.beat = decode(kv).map(|kept: Kept<Heartbeat>| (kept.modified, kept.value.profile)),
            ["epoch"] => {
                keys.life = decode(kv);
                self.answered(&name, touched);
            }
            ["armed", epoch] => {
                keys.armed.extend(epoch.parse().ok().map(Epoch).zip(decode(kv)));
                self.answered(&name, touched);
            }
            ["arm-wanted"] => {
                keys.arm_wanted = decode(kv);
                self.touch_waiting(touched);
            }
            ["waiting"] => keys.waiting = true,
            ["leaving"] => self.put_departure(&name, decode(kv), touched),
            ["rejoined"] => keys.rejoined = decode(kv),
            ["order", id] => self.put_order(&name, id, kv, touched),
            ["seen", id] => self.put_seen(&name, id, kv, touched),
            ["move", id] => keep(&mut keys.moves, id, kv).into_iter().for_each(|id| self.touch_move(&name, id, touched)),
            ["moved", id] => keep(&mut keys.moved, id, kv).into_iter().for_each(|id| touch_vm(touched, id)),
            ["task", id] => touched.tasks.extend(keep(&mut keys.tasks, id, kv).map(|id| (name, id))),
            ["result", id] => {
                if let Some(id) = keep(&mut keys.results, id, kv) {
                    self.results.insert((name.clone(), id));
                    touched.tasks.insert((name, id));
                }
            }
            ["event", _] => {
                keys.events.extend(decode(kv).map(|e| (kv.key.clone(), e)));
                touched.nodes_with_events.insert(name);
            }
            _ => {}
        }
    }

    pub(super) fn delete_node(&mut self, node: &str, rest: &[&str], key: &str, touched: &mut Touched) {
        let Ok(name) = node.parse::<Name>() else { return };
        let Some(keys) = self.nodes.get_mut(&name) else { return };
        match rest {
            ["facts"] => {
                keys.facts = None;
                self.touch_node(&name, touched);
            }
            ["hb"] => keys.beat = None,
            ["epoch"] => keys.life = None,
            ["armed", epoch] => drop(epoch.parse().ok().map(|epoch| keys.armed.remove(&Epoch(epoch)))),
            ["arm-wanted"] => keys.arm_wanted = None,
            ["waiting"] => keys.waiting = false,
            ["leaving"] => self.put_departure(&name, None, touched),
            ["rejoined"] => keys.rejoined = None,
            ["order", id] => drop_key(&mut keys.orders, id).into_iter().for_each(|id| touch_vm(touched, id)),
            ["seen", id] => drop_key(&mut keys.seen, id).into_iter().for_each(|id| touch_vm(touched, id)),
            ["move", id] => drop_key(&mut keys.moves, id).into_iter().for_each(|id| self.touch_move(&name, id, touched)),
            ["moved", id] => drop(drop_key(&mut keys.moved, id)),
            ["task", id] => drop(drop_key(&mut keys.tasks, id)),
            ["result", id] => {
                if let Some(id) = drop_key(&mut keys.results, id) {
                    self.results.remove(&(name, id));
                }
            }
            ["event", _] => {
                keys.events.remove(key);
                // More than one transaction holds: the rest is filed next.
                if !keys.events.is_empty() {
                    touched.nodes_with_events.insert(name);
                }
            }
            _ => {}
        }
    }
}
