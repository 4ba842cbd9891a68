//! Names to ids, so that nothing is looked for by going through all of its kind.

use std::collections::BTreeMap;

use vmkeep_types::ids::{ImageId, NetworkId, PoolId};
use vmkeep_types::image::ImageRecord;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkRecord;
use vmkeep_types::pool::PoolRecord;

use super::{ClusterView, Kept};

/// Project and name.
type Named<T> = BTreeMap<(Name, Name), T>;

#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    images: Named<ImageId>,
    networks: Named<NetworkId>,
    pools: BTreeMap<Name, PoolId>,
}

impl Names {
    pub fn put_image(&mut self, record: &ImageRecord) {
        self.drop_image(record.id);
        self.images.insert((record.project.clone(), record.spec.name.clone()), record.id);
    }

    pub fn drop_image(&mut self, id: ImageId) {
        self.images.retain(|_, at| *at != id);
    }

    pub fn put_network(&mut self, record: &NetworkRecord) {
        self.drop_network(record.id);
        self.networks.insert((record.project.clone(), record.spec.name.clone()), record.id);
    }

    pub fn drop_network(&mut self, id: NetworkId) {
        self.networks.retain(|_, at| *at != id);
    }

    pub fn put_pool(&mut self, record: &PoolRecord) {
        self.drop_pool(record.id);
        self.pools.insert(record.spec.name.clone(), record.id);
    }

    pub fn drop_pool(&mut self, id: PoolId) {
        self.pools.retain(|_, at| *at != id);
    }
}

impl ClusterView {
    pub fn image_by_name(&self, project: &Name, name: &Name) -> Option<&Kept<ImageRecord>> {
        self.images.get(self.names.images.get(&(project.clone(), name.clone()))?)
    }

    pub fn network_by_name(&self, project: &Name, name: &Name) -> Option<&Kept<NetworkRecord>> {
        self.networks.get(self.names.networks.get(&(project.clone(), name.clone()))?)
    }

    pub fn pool_by_name(&self, name: &Name) -> Option<&Kept<PoolRecord>> {
        self.pools.get(self.names.pools.get(name)?)
    }
}
