//! Whether this host could carry out a wish, before it is written: what no manifest can tell, such as a CPU or a bridge that is not
//! here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Json;
use axum::extract::State;
use vmkeep_api::body::WishCheck;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::{Epoch, Generation, Revision, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkMode;
use vmkeep_types::order::Order;
use vmkeep_types::record::{Power, PowerWish, VmOrigin};

use super::NodeHttp;
use super::answer::Answer;
use crate::domain::{self, BuildInput, DiskSource};
use crate::net::{self, NetAttach};
use crate::runtime;

/// What the runtime says of a wish.
#[async_trait]
pub trait Wishes: Send + Sync + 'static {
    /// # Errors
    /// Why it cannot be; `Unavailable` when nobody can say now.
    async fn check(&self, wish: WishCheck) -> Result<(), Error>;
    /// Looks at these VMs now; returns when they are reported as they are.
    async fn look(&self, vms: Vec<VmId>);
}

/// What somebody changed silently shows at once, and not only at the next look by itself.
pub async fn look(State(node): State<Arc<NodeHttp>>, Json(vms): Json<Vec<VmId>>) -> Answer<Json<()>> {
    node.config.wishes.look(vms).await;
    Ok(Json(()))
}

pub async fn check(State(node): State<Arc<NodeHttp>>, Json(wish): Json<WishCheck>) -> Answer<Json<()>> {
    node.config.wishes.check(wish).await?;
    Ok(Json(()))
}

#[async_trait]
impl Wishes for runtime::Handle {
    async fn look(&self, vms: Vec<VmId>) {
        self.0.look_at(&vms).await;
    }

    async fn check(&self, wish: WishCheck) -> Result<(), Error> {
        let host = self.0.profile().await?;
        let mut nics: BTreeMap<Name, NetAttach> = BTreeMap::new();
        for nic in &wish.spec.nics {
            let network = wish.networks.get(&nic.network);
            let bridge = network.filter(|network| network.mode == NetworkMode::Bridge).and_then(|network| network.bridge.clone());
            if let Some(bridge) = &bridge {
                net::usable_bridge(bridge).map_err(|e| Error { message: format!("nics[{}]: {}", nic.name, e.message), ..e })?;
            }
            let libvirt_network = bridge.is_none().then(|| net::libvirt_name(&wish.project, &nic.network));
            nics.insert(nic.name.clone(), NetAttach { libvirt_network, bridge, mtu: None });
        }
        // Files are nobody's business here: each device has one.
        let file = |name: &Name| PathBuf::from(format!("/nowhere/{name}"));
        let source = |name: &Name| DiskSource { path: file(name), format: "qcow2".into(), o_direct: true };
        let disks = wish.spec.disks.iter().map(|disk| (disk.name.clone(), source(&disk.name))).collect();
        let cdroms = wish.spec.cdroms.iter().map(|drive| (drive.name.clone(), drive.image.as_ref().map(file))).collect();
        let seed = wish.spec.cloud_init.as_ref().map(|_| PathBuf::from("/nowhere/seed.img"));
        let order = order(wish);
        let input = BuildInput {
            order: &order,
            name: order.spec.name.as_str(),
            host: &host,
            disks: &disks,
            cdroms: &cdroms,
            seed: seed.as_deref(),
            nics: &nics,
            run_dir: &self.0.config.log_dir,
        };
        match domain::build(&input) {
            Err(error) if error.code == Code::Internal => Ok(()),
            built => built.map(drop),
        }
    }
}

/// As the leader would write it.
fn order(wish: WishCheck) -> Order {
    Order {
        vm: VmId(uuid::Uuid::nil()),
        project: wish.project,
        spec: wish.spec,
        spec_revision: Revision(0),
        generation: Generation(1),
        epoch: Epoch(0),
        choices: wish.choices,
        power: Power { want: PowerWish::Off, cycle: 0, held: None, stop_timeout: None },
        origin: VmOrigin::Created,
        leaving: None,
        level: 0,
        instance: 0,
        volumes: BTreeMap::new(),
        images: BTreeMap::new(),
        networks: wish.networks,
        pools: BTreeMap::new(),
        moving: None,
        handed: None,
    }
}
