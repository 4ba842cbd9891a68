//! Which type lies under which key: what [`vmkeep_store::keep::Keeping`] needs to keep the fields of a newer version.
//!
//! Not here is what one writer makes anew each time (facts, load, heartbeats, tasks and their results) or writes once (events,
//! claims, tokens).

use vmkeep_store::keep::Merge;
use vmkeep_store::seal::fields::Path;
use vmkeep_store::typed::merge;
use vmkeep_types::cluster::{MemberRecord, MemberWord};
use vmkeep_types::ha::HaSettings;
use vmkeep_types::image::ImageRecord;
use vmkeep_types::migration::Migration;
use vmkeep_types::network::NetworkRecord;
use vmkeep_types::node::NodeRecord;
use vmkeep_types::observed::Seen;
use vmkeep_types::operation::Operation;
use vmkeep_types::order::Order;
use vmkeep_types::pool::{PoolRecord, VolumeRecord};
use vmkeep_types::record::{Owner, Power, VmChoices, VmRecord};
use vmkeep_types::stonith::FenceRecord;

/// Where passwords lie, and text in which people put them.
pub fn secrets(key: &str) -> &'static [Path] {
    match key.split('/').collect::<Vec<_>>()[..] {
        ["vm", _, _] | ["n", _, "order", _] => &[
            &["spec", "display", "password"],
            &["spec", "cloud_init", "password"],
            &["spec", "cloud_init", "user_data"],
            &["spec", "cloud_init", "network_data"],
            &["spec", "cloud_init", "users", "*", "passwd"],
            &["spec", "cloud_init", "users", "*", "hashed_passwd"],
            &["spec", "cloud_init", "users", "*", "plain_text_passwd"],
        ],
        // Whatever an agent calls its password.
        ["stonith", _] => &[&["options", "*"]],
        _ => &[],
    }
}

/// How a record under this key takes over what its type does not know.
pub fn types(key: &str) -> Option<Merge> {
    let parts: Vec<&str> = key.split('/').collect();
    Some(match parts[..] {
        ["vm", _, _] => merge::<VmRecord>,
        ["choices", _] => merge::<VmChoices>,
        ["power", _] => merge::<Power>,
        ["owner", _] => merge::<Owner>,
        ["migrate", _] => merge::<Migration>,
        ["image", _, _] => merge::<ImageRecord>,
        ["network", _, _] => merge::<NetworkRecord>,
        ["volume", _, _] => merge::<VolumeRecord>,
        ["pool", _] => merge::<PoolRecord>,
        ["op", _, _] => merge::<Operation>,
        ["node", _] => merge::<NodeRecord>,
        ["stonith", _] => merge::<FenceRecord>,
        ["cluster", "member", _] => merge::<MemberRecord>,
        ["cluster", "word", _] => merge::<MemberWord>,
        ["cluster", "ha", "settings"] => merge::<HaSettings>,
        ["n", _, "order", _] => merge::<Order>,
        ["n", _, "seen", _] => merge::<Seen>,
        _ => return None,
    })
}
