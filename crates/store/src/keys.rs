//! The key layout. Identity is the uid; a name is an index entry that a transaction can compare.
//!
//! | key | value | written by |
//! |---|---|---|
//! | `name/KIND/PROJECT/NAME` | uid | server |
//! | `mac/MAC` | uid of the VM whose wish names it | server; leader removes |
//! | `vm/PROJECT/UID` | `VmRecord`; its revision is the spec revision and the ETag | server |
//! | `choices/UID` | `VmChoices` | leader |
//! | `power/UID` | `Power` | server; leader folds a hold in |
//! | `owner/UID` | `Owner`: the placement, the one truth of who may run it | leader |
//! | `own/NODE/UID` | empty: range-compared before a node may disarm | leader |
//! | `run/NODE/UID` | `Claim`, before every start | agent |
//! | `stopped/NODE/UID/GENERATION` | promise never to claim a generation ≤ it | agent |
//! | `epoch/NODE`, `armed/NODE/EPOCH` | epoch; how the node would die | agent |
//! | `fence/NODE/EPOCH` | seal | leader (cluster) |
//! | `n/NODE/facts` | `NodeFacts` | agent |
//! | `n/NODE/order/UID` | `Order`, mirrored | leader |
//! | `n/NODE/seen/UID` | `Seen` | agent |
//! | `n/NODE/task/OP`, `n/NODE/result/OP` | `NodeTask`, `TaskResult` | server/leader, agent |
//! | `n/NODE/event/TIME-SEQ` | `Event`, until the leader has filed it | agent |
//! | `image/PROJECT/UID`, `network/PROJECT/UID`, `volume/PROJECT/UID`, `pool/UID` | records | server |
//! | `op/PROJECT/UID` | `Operation` | server, leader |
//! | `event/PROJECT/KIND/UID/TIME-SEQ` | `Event`, capped ring per object | leader |
//! | `token/ID` | token hash, role | server |
//! | `leader` | name of the leading control node | store |
//! | `cluster/level` | format level that writers emit | server |

use std::fmt::Display;

use vmkeep_types::ids::{Epoch, Generation, ImageId, NetworkId, OperationId, PoolId, VmId, VolumeId};
use vmkeep_types::name::Name;

pub const LEADER: &str = "leader";
pub const LEVEL: &str = "cluster/level";

/// The format level this code writes.
pub const LEVEL_NOW: u64 = 1;

pub const ALL_VMS: &str = "vm/";
pub const ALL_CHOICES: &str = "choices/";
pub const ALL_POWER: &str = "power/";
pub const ALL_OWNERS: &str = "owner/";
pub const ALL_NODES: &str = "n/";
pub const ALL_OPS: &str = "op/";
pub const ALL_IMAGES: &str = "image/";
pub const ALL_NETWORKS: &str = "network/";
pub const ALL_VOLUMES: &str = "volume/";
pub const ALL_POOLS: &str = "pool/";
pub const ALL_TOKENS: &str = "token/";

pub fn name(kind: &str, project: &Name, name: &Name) -> String {
    format!("name/{kind}/{project}/{name}")
}

/// Of all projects.
pub const ALL_VM_NAMES: &str = "name/vm/";

/// A MAC that a wish names itself, lower case.
pub fn mac(mac: &str) -> String {
    format!("mac/{mac}")
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

pub fn own(node: &Name, id: VmId) -> String {
    format!("own/{node}/{id}")
}

pub fn run(node: &Name, id: VmId) -> String {
    format!("run/{node}/{id}")
}

pub fn stopped(node: &Name, id: VmId, generation: Generation) -> String {
    format!("stopped/{node}/{id}/{generation}")
}

pub fn epoch(node: &Name) -> String {
    format!("epoch/{node}")
}

pub fn armed(node: &Name, epoch: Epoch) -> String {
    format!("armed/{node}/{epoch}")
}

pub fn fence(node: &Name, epoch: Epoch) -> String {
    format!("fence/{node}/{epoch}")
}

pub fn facts(node: &Name) -> String {
    format!("n/{node}/facts")
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
