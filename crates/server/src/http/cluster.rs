//! The cluster itself: forming it, members, etcd.

use std::sync::Arc;

use axum::response::Response;
use vmkeep_types::cluster::Vip;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::record::Via;

use super::call::Call;
use super::respond;
use crate::cluster::HostCluster;

pub async fn cluster(mut call: Call) -> Result<Response, Error> {
    let host = host(&call)?;
    match call.route.id {
        "cluster.show" => Ok(respond::json(&host.status().await?)),
        "cluster.init" => {
            on_this_host(&call)?;
            Ok(respond::json(&host.init(call.json().await?).await?))
        }
        "cluster.join" => {
            on_this_host(&call)?;
            Ok(respond::json(&host.join(call.json().await?).await?))
        }
        "cluster.leave" => {
            on_this_host(&call)?;
            Ok(respond::json(&host.leave(call.json().await?).await?))
        }
        "cluster.recover" => {
            on_this_host(&call)?;
            Ok(respond::json(&host.recover(call.json().await?).await?))
        }
        "cluster.lost" => {
            crate::app::recovery::lose(call.server.store.as_ref(), &call.name()?).await?;
            Ok(respond::nothing())
        }
        "cluster.upgrade" => {
            let etcd = host.status().await?.members;
            Ok(respond::json(&crate::app::upgrade::check(call.server.store.as_ref(), &etcd).await?))
        }
        "cluster.raise-level" => Ok(respond::json(&crate::app::upgrade::raise(call.server.store.as_ref()).await?)),
        "cluster.vip.get" => match crate::app::vip::show(call.server.store.as_ref()).await? {
            Some(vip) => Ok(respond::json(&vip)),
            None => Err(Error::new(Code::NotFound, "the API has no address of its own").hint("vmkeep cluster vip set 10.0.0.100/24")),
        },
        "cluster.vip.put" => {
            let vip: Vip = call.json().await?;
            crate::app::vip::set(call.server.store.as_ref(), &vip).await?;
            Ok(respond::json(&vip))
        }
        "cluster.vip.delete" => {
            crate::app::vip::clear(call.server.store.as_ref()).await?;
            Ok(respond::nothing())
        }
        "cluster.token" => Ok(respond::json(&host.token(call.json().await?).await?)),
        "cluster.remove" => {
            host.remove(&call.name()?).await?;
            Ok(respond::nothing())
        }
        "cluster.promote" => {
            host.promote(&call.name()?).await?;
            Ok(respond::nothing())
        }
        "cluster.demote" => {
            host.demote(&call.name()?).await?;
            Ok(respond::nothing())
        }
        "cluster.backup" => Ok(respond::json(&host.backup().await?)),
        "cluster.defrag" => {
            host.defragment().await?;
            Ok(respond::nothing())
        }
        id => Err(Error::internal(format!("route {id} has no handler"))),
    }
}

fn host(call: &Call) -> Result<Arc<dyn HostCluster>, Error> {
    let none = || Error::refused("this control plane forms no clusters");
    call.server.cluster.get().cloned().ok_or_else(none)
}

/// What changes the host that is asked is for those who are on it.
fn on_this_host(call: &Call) -> Result<(), Error> {
    match call.ask.caller.via {
        Via::Uid(_) => Ok(()),
        _ => Err(Error::new(Code::Forbidden, "this changes the host itself").hint("run it on that host, through its socket")),
    }
}
