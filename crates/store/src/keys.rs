//! The key layout. Identity is the uid; a name is an index entry that a transaction can compare.
//!
//! | key | value | written by |
//! |---|---|---|
//! | `name/KIND/PROJECT/NAME` | uid | server |
//! | `domain/NAME` | uid of the VM whose libvirt domain has that name, of whatever project | server; leader removes |
//! | `mac/MAC` | uid of the VM whose wish names it, or for which it was chosen | server; leader removes |
//! | `indexed` | `domain/` and `mac/` hold all there are | control plane, at its start |
//! | `vm/PROJECT/UID` | `VmRecord`; its revision is the spec revision and the ETag | server |
//! | `choices/UID` | `VmChoices` | leader |
//! | `power/UID` | `Power` | server; leader folds a hold in |
//! | `owner/UID` | `Owner`: the placement, the one truth of who may run it | leader |
//! | `released/UID` | `Released`: its node was dead and is removed; until it has another one | server, leader |
//! | `own/NODE/UID` | empty: range-compared before a node may disarm | leader |
//! | `joined/NODE` | empty: the index of nodes, because under `n/` lie the orders of every VM too | leader |
//! | `control/NODE` | public key of the host, for `seal/ring`: whom agents obey | control plane, at its start |
//! | `seal/ring` | the control plane's keys, sealed to each control node: [`crate::seal::ring`] | control plane |
//! | `seal/rotation` | `Rotation`: there while the hosts of the control plane renew their keys: [`crate::seal::rotation`] | server, control plane |
//! | `n/NODE/sealkey` | public key of the node: its orders' secrets are sealed to it | agent |
//! | `fence/NODE/EPOCH` | `Fence`: no renewal of that epoch succeeds any more | leader, operator |
//! | `confirmed/NODE/EPOCH` | `Confirmed`: that epoch is dead; created once | leader, operator |
//! | `canary/NODE` | empty: a control node's proof to itself that the store takes its writes | control node |
//! | `state/NODE` | `NodeState`: online, suspect, offline | leader |
//! | `n/NODE/epoch`, `n/NODE/armed/EPOCH` | epoch; `Armed`: how the node would die | agent |
//! | `n/NODE/arm-wanted` | `ArmWanted`: VMs are about to be placed there; a minute | leader |
//! | `n/NODE/waiting` | empty: a new boot waits for the proof that the one before has ended | agent |
//! | `n/NODE/leaving` | `Departure`: the host goes down in order; the leader adds what becomes of its VMs | agent, leader |
//! | `n/NODE/hb` | `Heartbeat`: the agent lives and has the store | agent |
//! | `n/NODE/run/UID` | `Claim`, before every start | agent |
//! | `n/NODE/stopped/UID/GENERATION` | promise never to claim a generation ≤ it | agent |
//! | `node/NODE` | `NodeRecord`: what people say of it; a node without has every default | server |
//! | `stonith/NODE` | `FenceRecord`: how the node's power is cut | server |
//! | `migrate/UID` | `Migration`, from the wish to its end | server, leader |
//! | `drain/NODE` | `Drain`, while the node is emptied | server, leader |
//! | `n/NODE/move/UID`, `n/NODE/moved/UID` | `MoveOrder`, `MoveSeen` | leader, agent |
//! | `n/NODE/facts` | `NodeFacts` | agent |
//! | `n/NODE/load` | `NodeLoad`, measured | agent |
//! | `n/NODE/order/UID` | `Order`, mirrored | leader |
//! | `n/NODE/seen/UID` | `Seen` | agent |
//! | `n/NODE/task/OP`, `n/NODE/result/OP` | `NodeTask`, `TaskResult` | server/leader, agent |
//! | `n/NODE/event/TIME-SEQ` | `Event`, until the leader has filed it | agent |
//! | `pools` | empty: written with every change of which pools there are, so that two at once see each other | server |
//! | `image/PROJECT/UID`, `network/PROJECT/UID`, `volume/PROJECT/UID`, `pool/UID` | records | server |
//! | `op/PROJECT/UID` | `Operation` | server, leader |
//! | `event/PROJECT/KIND/UID/TIME-SEQ` | `Event`, capped ring per object | leader |
//! | `token/ID` | token hash, role | server |
//! | `leader` | name of the leading control node | store |
//! | `upload/UUID` | the node whose pool takes it, where that is not the nearest; 14 days | server |
//! | `cluster/id`, `cluster/incarnation` | which cluster, and which of its lives: a restored backup begins the next | whoever forms it |
//! | `cluster/recovery` | `Recovery`: there while it is not known what runs where after a restore; nothing is started or placed | whoever restores it, leader |
//! | `cluster/ha/disarm` | `Disarm`: there while nothing is fenced or recovered | server |
//! | `cluster/ha/settings` | `HaSettings` | server |
//! | `cluster/ha/memory/UID` | `HaMemory`: nodes on which it did not start, and the one that it goes back to | leader |
//! | `cluster/ha/incident/NODE/EPOCH` | `Incident`: a death as people are told it; capped | leader |
//! | `cluster/ha/rescue/NODE/EPOCH/UID` | `Rescue`: a VM that had to go elsewhere then | leader |
//! | `n/NODE/rejoined` | `Rejoined`: the node's domains, for that | agent |
//! | `cluster/vip` | `Vip`: the API's one address | server |
//! | `cluster/moving` | there while an embedded store is moved here; nothing else counts then | whoever forms it |
//! | `cluster/defragmented` | when etcd's members were defragmented last | control nodes |
//! | `cluster/member/NODE` | `MemberRecord` | server |
//! | `cluster/word/NODE` | `MemberWord`: what the member says of itself | that member |
//! | `join/ID` | a join token's hash and its use | server |
//! | `cluster/level` | format level that writers emit | server |
//!
//! An agent writes under `n/NODE/` of its own node and nowhere else; of the rest it reads what it must compare. An etcd role
//! per node holds it to that: [`crate::etcd::rights`]. Stores of level 1 had the agent's keys elsewhere: see [`crate::layout`].

use std::fmt::Display;

use vmkeep_types::ids::{Epoch, Generation, ImageId, NetworkId, OperationId, PoolId, VmId, VolumeId};
use vmkeep_types::name::Name;

pub const LEADER: &str = "leader";
pub const LEVEL: &str = "cluster/level";

pub const CLUSTER_ID: &str = "cluster/id";
pub const CLUSTER_INCARNATION: &str = "cluster/incarnation";
pub const CLUSTER_RECOVERY: &str = "cluster/recovery";
pub const ALL_HA: &str = "cluster/ha/";
pub const HA_DISARM: &str = "cluster/ha/disarm";
pub const HA_SETTINGS: &str = "cluster/ha/settings";
pub const ALL_INCIDENTS: &str = "cluster/ha/incident/";
pub const ALL_RESCUES: &str = "cluster/ha/rescue/";
pub const CLUSTER_VIP: &str = "cluster/vip";
pub const CLUSTER_MOVING: &str = "cluster/moving";
pub const CLUSTER_DEFRAGMENTED: &str = "cluster/defragmented";
/// How large the largest file was afterwards, in bytes.
pub const CLUSTER_DEFRAGMENTED_TO: &str = "cluster/defragmented-to";
/// Everything that a member reads of its cluster, also one that was taken out.
pub const ALL_CLUSTER: &str = "cluster/";
pub const ALL_MEMBERS: &str = "cluster/member/";
pub const ALL_WORDS: &str = "cluster/word/";
pub const ALL_JOIN_TOKENS: &str = "join/";

pub const ALL_SEAL: &str = "seal/";
pub const SEAL_RING: &str = "seal/ring";
pub const SEAL_ROTATION: &str = "seal/rotation";
pub const ALL_CONTROL: &str = "control/";

/// The newest format level this code writes: a store that has it holds records of that level.
pub const LEVEL_NOW: u64 = 8;
/// The oldest it works with: members of the version before are still there.
pub const LEVEL_OLDEST: u64 = 2;
/// From which on nodes may be drained: older leaders know no `drain/` and take its operation for another.
pub const LEVEL_DRAINS: u64 = 3;
/// From which on a dead node's VMs may be let go of: older leaders know no `released/` and begin their generations anew.
pub const LEVEL_RELEASES: u64 = 4;
/// From which on etcd holds each node to its own keys: older members write their own records and forget themselves.
pub const LEVEL_RIGHTS: u64 = 4;
/// From which on a host's own goodbye lets its VMs go: older leaders read no such proof, and take a drain for a shutdown for one of all VMs.
pub const LEVEL_GOODBYES: u64 = 5;
/// From which on PCI addresses are written in their short form ([`vmkeep_types::addresses`]): older members put it into a domain as it is.
pub const LEVEL_SHORT: u64 = 6;
/// From which on a VM that is off takes its disks along: older leaders and agents know neither that phase nor that part.
pub const LEVEL_FETCHES: u64 = 7;
/// From which on it takes its TPM's state along, too: older agents do not know that part.
pub const LEVEL_TPM: u64 = 8;

pub const ALL_VMS: &str = "vm/";
pub const ALL_CHOICES: &str = "choices/";
pub const ALL_POWER: &str = "power/";
pub const ALL_OWNERS: &str = "owner/";
pub const ALL_RELEASED: &str = "released/";
pub const ALL_MIGRATIONS: &str = "migrate/";
pub const ALL_DRAINS: &str = "drain/";
pub const ALL_NODES: &str = "n/";
pub const ALL_JOINED: &str = "joined/";
pub const ALL_NODE_RECORDS: &str = "node/";
pub const ALL_STATES: &str = "state/";
pub const ALL_FENCES: &str = "fence/";
pub const ALL_CONFIRMED: &str = "confirmed/";
pub const ALL_STONITH: &str = "stonith/";
pub const ALL_OPS: &str = "op/";
/// The rings of all objects.
pub const ALL_EVENTS: &str = "event/";
pub const ALL_IMAGES: &str = "image/";
pub const ALL_NETWORKS: &str = "network/";
pub const ALL_VOLUMES: &str = "volume/";
pub const ALL_POOLS: &str = "pool/";
pub const POOLS: &str = "pools";
pub const INDEXED: &str = "indexed";
pub const ALL_UPLOADS: &str = "upload/";
pub const ALL_TOKENS: &str = "token/";

pub fn member(node: &Name) -> String {
    format!("{ALL_MEMBERS}{node}")
}

pub fn word(node: &Name) -> String {
    format!("{ALL_WORDS}{node}")
}

pub fn join_token(id: &str) -> String {
    format!("{ALL_JOIN_TOKENS}{id}")
}

pub fn name(kind: &str, project: &Name, name: &Name) -> String {
    format!("name/{kind}/{project}/{name}")
}

/// Of all projects.
pub const ALL_VM_NAMES: &str = "name/vm/";

pub const ALL_DOMAINS: &str = "domain/";
pub const ALL_MACS: &str = "mac/";

/// The name of a VM's libvirt domain: on a host there is one of it.
pub fn domain(name: &Name) -> String {
    format!("{ALL_DOMAINS}{name}")
}

/// A MAC that a wish names itself or that was chosen, lower case.
pub fn mac(mac: &str) -> String {
    format!("{ALL_MACS}{mac}")
}

pub fn vm(project: &Name, id: VmId) -> String {
    format!("vm/{project}/{id}")
}

pub fn vms(project: &Name) -> String {
    format!("vm/{project}/")
}

pub fn choices(id: VmId) -> String {
    format!("choices/{id}")
}

pub fn power(id: VmId) -> String {
    format!("power/{id}")
}

pub fn owner(id: VmId) -> String {
    format!("owner/{id}")
}

pub fn released(id: VmId) -> String {
    format!("{ALL_RELEASED}{id}")
}

/// Everything that a node owns.
pub fn owned(node: &Name) -> String {
    format!("own/{node}/")
}

/// Everything a node and the leader tell each other.
pub fn all_of_node(node: &Name) -> String {
    format!("n/{node}/")
}

pub fn migration(id: VmId) -> String {
    format!("migrate/{id}")
}

pub fn drain(node: &Name) -> String {
    format!("{ALL_DRAINS}{node}")
}

pub fn own(node: &Name, id: VmId) -> String {
    format!("own/{node}/{id}")
}

pub fn run(node: &Name, id: VmId) -> String {
    format!("n/{node}/run/{id}")
}

pub fn stopped(node: &Name, id: VmId, generation: Generation) -> String {
    format!("n/{node}/stopped/{id}/{generation}")
}

/// Of every generation.
pub fn all_stopped(node: &Name, id: VmId) -> String {
    format!("n/{node}/stopped/{id}/")
}

pub fn joined(node: &Name) -> String {
    format!("joined/{node}")
}

pub fn control(node: &Name) -> String {
    format!("{ALL_CONTROL}{node}")
}

pub fn seal_key(node: &Name) -> String {
    seal_key_of(node.as_str())
}

pub(crate) fn seal_key_of(node: &str) -> String {
    format!("n/{node}/sealkey")
}

pub fn state(node: &Name) -> String {
    format!("state/{node}")
}

pub fn heartbeat(node: &Name) -> String {
    format!("n/{node}/hb")
}

pub fn epoch(node: &Name) -> String {
    format!("n/{node}/epoch")
}

pub fn rejoined(node: &Name) -> String {
    format!("n/{node}/rejoined")
}

pub fn armed(node: &Name, epoch: Epoch) -> String {
    format!("n/{node}/armed/{epoch}")
}

pub fn fence(node: &Name, epoch: Epoch) -> String {
    format!("fence/{node}/{epoch}")
}

/// Of every epoch.
pub fn fences(node: &Name) -> String {
    format!("fence/{node}/")
}

pub fn confirmed(node: &Name, epoch: Epoch) -> String {
    format!("confirmed/{node}/{epoch}")
}

/// Of every epoch.
pub fn all_confirmed(node: &Name) -> String {
    format!("confirmed/{node}/")
}

pub fn waiting(node: &Name) -> String {
    format!("n/{node}/waiting")
}

pub fn leaving(node: &Name) -> String {
    format!("n/{node}/leaving")
}

pub fn arm_wanted(node: &Name) -> String {
    format!("n/{node}/arm-wanted")
}

pub fn canary(node: &Name) -> String {
    format!("canary/{node}")
}

pub fn ha_memory(vm: VmId) -> String {
    format!("{ALL_HA}memory/{vm}")
}

pub fn incident(node: &Name, epoch: Epoch) -> String {
    format!("{ALL_INCIDENTS}{node}/{epoch}")
}

pub fn rescue(node: &Name, epoch: Epoch, vm: VmId) -> String {
    format!("{ALL_RESCUES}{node}/{epoch}/{vm}")
}

pub fn facts(node: &Name) -> String {
    format!("n/{node}/facts")
}

pub fn load(node: &Name) -> String {
    format!("n/{node}/load")
}

pub fn node(node: &Name) -> String {
    format!("node/{node}")
}

pub fn stonith(node: &Name) -> String {
    format!("{ALL_STONITH}{node}")
}

pub fn order(node: &Name, id: VmId) -> String {
    format!("n/{node}/order/{id}")
}

pub fn orders(node: &Name) -> String {
    format!("n/{node}/order/")
}

pub fn seen(node: &Name, id: VmId) -> String {
    format!("n/{node}/seen/{id}")
}

pub fn all_seen(node: &Name) -> String {
    format!("n/{node}/seen/")
}

pub fn move_order(node: &Name, id: VmId) -> String {
    format!("n/{node}/move/{id}")
}

pub fn move_seen(node: &Name, id: VmId) -> String {
    format!("n/{node}/moved/{id}")
}

pub fn task(node: &Name, op: OperationId) -> String {
    format!("n/{node}/task/{op}")
}

pub fn tasks(node: &Name) -> String {
    format!("n/{node}/task/")
}

pub fn result(node: &Name, op: OperationId) -> String {
    format!("n/{node}/result/{op}")
}

/// `stamp` sorts by time: nanoseconds, 20 digits, and a sequence number.
pub fn node_event(node: &Name, stamp: impl Display) -> String {
    format!("n/{node}/event/{stamp}")
}

pub fn node_events(node: &Name) -> String {
    format!("n/{node}/event/")
}

pub fn image(project: &Name, id: ImageId) -> String {
    format!("image/{project}/{id}")
}

pub fn network(project: &Name, id: NetworkId) -> String {
    format!("network/{project}/{id}")
}

pub fn volume(project: &Name, id: VolumeId) -> String {
    format!("volume/{project}/{id}")
}

pub fn pool(id: PoolId) -> String {
    format!("pool/{id}")
}

pub fn upload(id: impl Display) -> String {
    format!("{ALL_UPLOADS}{id}")
}

pub fn op(project: &Name, id: OperationId) -> String {
    format!("op/{project}/{id}")
}

pub fn ops(project: &Name) -> String {
    format!("op/{project}/")
}

pub fn event(project: &Name, kind: &str, uid: impl Display, stamp: impl Display) -> String {
    format!("event/{project}/{kind}/{uid}/{stamp}")
}

pub fn events_of(project: &Name, kind: &str, uid: impl Display) -> String {
    format!("event/{project}/{kind}/{uid}/")
}

pub fn events(project: &Name) -> String {
    format!("event/{project}/")
}

pub fn token(id: &str) -> String {
    format!("token/{id}")
}
