//! What a node has of a VM beside the VM itself: volumes, images and networks, as their records tell it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde::de::DeserializeOwned;
use vmkeep_store::{Compare, Op, Txn, keys, typed};
use vmkeep_types::ids::Revision;
use vmkeep_types::image::ImageRecord;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkRecord;
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::record::VmRecord;

use super::view::{ClusterView, Kept};

/// What is noted before a node hears of a VM: volumes that are nowhere yet are that node's, and whoever deletes an image or a
/// network must ask it too.
pub fn bring(view: &ClusterView, vm: &VmRecord, node: &Name) -> Vec<(Compare, Op)> {
    let mut writes = Vec::new();
    for volume in vm.volumes.values().filter_map(|id| view.volumes.get(id)).filter(|volume| volume.value.node.is_none()) {
        let value = VolumeRecord { node: Some(node.clone()), ..volume.value.clone() };
        writes.push(noted(keys::volume(&value.project, value.id), volume.modified, &value));
    }
    writes.extend(used_by(view, vm, node));
    writes
}

/// Images and networks of a VM that do not know yet that this node has them.
pub fn used_by(view: &ClusterView, vm: &VmRecord, node: &Name) -> Vec<(Compare, Op)> {
    let mut writes = Vec::new();
    for image in images_of(view, vm).filter(|image| image.value.holders().all(|holder| holder != node)) {
        let mut value = image.value.clone();
        value.copies.insert(node.clone());
        writes.push(noted(keys::image(&value.project, value.id), image.modified, &value));
    }
    let networks: BTreeSet<&Name> = vm.spec.nics.iter().map(|nic| &nic.network).collect();
    for network in networks.into_iter().filter_map(|name| view.network_by_name(&vm.project, name)) {
        if !network.value.nodes.contains(node) {
            let mut value = network.value.clone();
            value.nodes.insert(node.clone());
            writes.push(noted(keys::network(&value.project, value.id), network.modified, &value));
        }
    }
    writes
}

fn noted<T: Serialize>(key: String, read: Revision, value: &T) -> (Compare, Op) {
    (Compare::ModifiedAt(key.clone(), read), typed::put(key, value))
}

/// Which writes of one look note nodes at networks and images. Each compares the record as it was read, so of those that note at the
/// same record one would hold, and a thousand nodes that get their first VM of a network would take a thousand looks.
#[derive(Default)]
pub struct Notes {
    /// Record to the first write that puts it.
    by: BTreeMap<String, usize>,
}

impl Notes {
    /// Adds a write to those of the look. Not when another one puts a record that it puts: that one notes its node, too, and it is back
    /// here when that has held.
    pub fn add<W>(&mut self, writes: &mut Vec<(W, Txn)>, whose: W, txn: Txn) -> bool {
        let notes: Vec<(&String, &Vec<u8>)> = txn.then.iter().filter_map(note).collect();
        let others = notes.iter().filter_map(|(key, value)| Some((*self.by.get(*key)?, *key, *value)));
        let mut after_another = false;
        for (other, key, value) in others {
            after_another = true;
            writes[other].1.then.iter_mut().for_each(|op| match op {
                Op::Put(to, into) if to == key => note_too(key, into, value),
                _ => {}
            });
        }
        if !after_another {
            self.by.extend(notes.into_iter().map(|(key, _)| (key.clone(), writes.len())));
            writes.push((whose, txn));
        }
        !after_another
    }
}

fn note(op: &Op) -> Option<(&String, &Vec<u8>)> {
    match op {
        Op::Put(key, value) if key.starts_with(keys::ALL_NETWORKS) || key.starts_with(keys::ALL_IMAGES) => Some((key, value)),
        _ => None,
    }
}

/// Both were made from one record as it was read.
fn note_too(key: &str, into: &mut Vec<u8>, from: &[u8]) {
    let noted = if key.starts_with(keys::ALL_NETWORKS) {
        joined(into, from, |into: &mut NetworkRecord, from: NetworkRecord| into.nodes.extend(from.nodes))
    } else {
        joined(into, from, |into: &mut ImageRecord, from: ImageRecord| into.copies.extend(from.copies))
    };
    *into = noted.expect("the leader has just written them");
}

fn joined<T: DeserializeOwned + Serialize>(into: &[u8], from: &[u8], join: impl FnOnce(&mut T, T)) -> serde_json::Result<Vec<u8>> {
    let mut value = serde_json::from_slice(into)?;
    join(&mut value, serde_json::from_slice(from)?);
    serde_json::to_vec(&value)
}

/// Images that its disks are clones of and that lie in its trays, each once.
pub fn images_of<'a>(view: &'a ClusterView, vm: &'a VmRecord) -> impl Iterator<Item = &'a Kept<ImageRecord>> {
    let cloned = vm.volumes.values().filter_map(|id| view.volumes.get(id)?.value.image).filter_map(|id| view.images.get(&id));
    let in_trays = vm.spec.cdroms.iter().filter_map(|cd| cd.image.as_ref()).filter_map(|name| view.image_by_name(&vm.project, name));
    let each: BTreeMap<_, _> = cloned.chain(in_trays).map(|image| (image.value.id, image)).collect();
    each.into_values()
}
