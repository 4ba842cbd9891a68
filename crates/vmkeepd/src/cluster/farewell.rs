//! A member that may not write the cluster's records is forgotten by a control node, which it asks for that.
//!
//! ```text
//!  vmkeep cluster leave, on a compute node or a witness ══ mutual TLS ══► agent's port of a control node: out of etcd, forgotten
//! ```
//! Whoever shows the node's certificate says so for that node alone. A lost answer is asked for again: by then the store knows no such
//! member, which the leaver sees itself.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use vmkeep_server::app::leaving;
use vmkeep_store::Store;
use vmkeep_types::cluster::MemberRole;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;

use super::{Cluster, ask};
use crate::listen::{Peer, refuse};
use crate::member::Paths;

pub const PATH: &str = "/n/cluster/farewell";

/// What a member says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Farewell {
    /// It would like to leave: what keeps it? Changes nothing.
    MayI,
    /// It leaves: nothing of it runs any more that writes its keys.
    Forget,
}

/// For the agent's listener of a host that may be a control node.
pub fn router(cluster: Arc<Cluster>) -> Router {
    Router::new().route(PATH, post(serve)).with_state(cluster)
}

async fn serve(State(cluster): State<Arc<Cluster>>, Extension(Peer(node)): Extension<Peer>, Json(word): Json<Farewell>) -> Response {
    // To its end, although the leaver hang up.
    let work = tokio::spawn(async move {
        let left = cluster.part_with(&node, word).await;
        tracing::info!(%node, ?word, ok = left.is_ok(), "a member wants to leave");
        left
    });
    match work.await {
        Ok(Ok(())) => Json(()).into_response(),
        Ok(Err(error)) => refuse(error),
        Err(_) => refuse(Error::internal("the farewell failed inside vmkeepd").hint("journalctl -u vmkeepd shows where")),
    }
}

impl Cluster {
    async fn part_with(&self, node: &Name, word: Farewell) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        if !self.member()?.has(MemberRole::Control) {
            return Err(Error::new(Code::Unavailable, format!("'{}' is no control node", self.node)));
        }
        match word {
            Farewell::MayI => leaving::may_leave(self.store.as_ref(), node).await,
            Farewell::Forget => {
                self.take_out(node).await?;
                self.keep_rights().await
            }
        }
    }
}

/// Says it to one control node after the other, for `node`, whose files these are.
///
/// # Errors
/// The refusal; `Unavailable` when none of them answers.
pub async fn say(store: &dyn Store, paths: &Paths, node: &Name, word: Farewell) -> Result<(), Error> {
    ask::any(store, paths, node, PATH, &word).await
}
