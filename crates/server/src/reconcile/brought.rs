//! What a node has of a VM beside the VM itself: volumes, images and networks, as their records tell it.

use std::collections::{BTreeMap, BTreeSet};

use vmkeep_store::{Compare, Op, keys, typed};
use vmkeep_types::ids::Revision;
use vmkeep_types::image::ImageRecord;
use vmkeep_types::name::Name;
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

fn noted<T: serde::Serialize>(key: String, read: Revision, value: &T) -> (Compare, Op) {
    (Compare::ModifiedAt(key.clone(), read), typed::put(key, value))
}

/// Images that its disks are clones of and that lie in its trays, each once.
pub fn images_of<'a>(view: &'a ClusterView, vm: &'a VmRecord) -> impl Iterator<Item = &'a Kept<ImageRecord>> {
    let cloned = vm.volumes.values().filter_map(|id| view.volumes.get(id)?.value.image).filter_map(|id| view.images.get(&id));
    let in_trays = vm.spec.cdroms.iter().filter_map(|cd| cd.image.as_ref()).filter_map(|name| view.image_by_name(&vm.project, name));
    let each: BTreeMap<_, _> = cloned.chain(in_trays).map(|image| (image.value.id, image)).collect();
    each.into_values()
}
