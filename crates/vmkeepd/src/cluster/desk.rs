//! What a host answers on its socket where it has no API: how it stands with its cluster, and what its administrator may do.
//!
//! | who | shows | takes |
//! |---|---|---|
//! | a member without the role control | the cluster | leave |
//! | one whose etcd does not answer | that | leave --forget, recover |
//! | one that etcd refuses | that | leave --forget |
//! | one that the cluster does not know any more | that | leave --forget |
//!
//! Every other request is refused with the same words.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vmkeep_types::cluster::{ClusterLeave, ClusterLeft, ClusterProblem, ClusterView};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::record::{Caller, Role};

use super::status::AWAY;
use super::{Cluster, Restart, leave, recover};
use crate::config::Config;
use crate::listen::{self, Serve, refuse};
use crate::member::Member;
use crate::peer::Roles;

/// Of a wish, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

/// How the host stands.
#[derive(Clone)]
pub enum Standing {
    /// A member that has the store, and no control plane.
    Member(Arc<Cluster>),
    /// etcd does not answer, or does not know this host: its store is of before this host joined.
    Waiting { denied: Arc<AtomicBool> },
    /// The store knows no such member.
    Removed,
}

#[derive(Clone)]
pub struct Desk {
    config: Config,
    member: Member,
    standing: Standing,
    restart: Restart,
}

impl Desk {
    pub fn new(config: &Config, member: &Member, standing: Standing, restart: Restart) -> Self {
        Self { config: config.clone(), member: member.clone(), standing, restart }
    }

    /// Answers on the socket until `stop`.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub async fn serve(self, stop: CancellationToken) -> anyhow::Result<()> {
        let roles = Roles::new(&self.config);
        let socket = listen::bind_unix(&self.config.socket, &roles)?;
        let connections = TaskTracker::new();
        let path = self.config.socket.clone();
        let serve = Serve { router: self.router(), shutdown: stop, connections: connections.clone() };
        listen::unix(serve, socket, roles).await;
        connections.close();
        connections.wait().await;
        let _ = std::fs::remove_file(path);
        Ok(())
    }

    fn router(self) -> Router {
        Router::new()
            .route("/v1/cluster", get(show))
            .route("/v1/cluster/leave", post(leave))
            .route("/v1/cluster/recover", post(recover))
            .fallback(no_api)
            .layer(axum::extract::DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(Arc::new(self))
    }

    fn is_denied(&self) -> bool {
        matches!(&self.standing, Standing::Waiting { denied } if denied.load(Ordering::SeqCst))
    }

    fn problem(&self) -> ClusterProblem {
        let node = &self.member.node;
        let (message, mend) = match &self.standing {
            Standing::Member(_) => (
                format!("'{node}' has no control plane"),
                "ask a control node: vmkeep --server https://ADDRESS:7443, or its socket on that host".to_owned(),
            ),
            Standing::Waiting { .. } if self.is_denied() => (
                format!(
                    "etcd at {} answers and does not know '{node}': it was recovered from a backup of before '{node}' joined; VMs go on",
                    self.member.etcd.endpoints.join(" ")
                ),
                "vmkeep cluster leave --forget, then vmkeep cluster join; a VM that is not known afterwards: vmkeep vm adopt NAME --node NODE"
                    .to_owned(),
            ),
            Standing::Waiting { .. } => (
                format!("'{node}' waits for etcd at {}; VMs go on", self.member.etcd.endpoints.join(" ")),
                AWAY.to_owned(),
            ),
            Standing::Removed => (
                format!("'{node}' is no member of the cluster {} any more", self.member.cluster),
                "vmkeep cluster leave --forget makes it a single host that can join again; VMs go on".to_owned(),
            ),
        };
        ClusterProblem { message, mend }
    }
}

fn admin(request: &Request) -> Result<(), Error> {
    match request.extensions().get::<Caller>() {
        Some(caller) if caller.role >= Role::Admin => Ok(()),
        _ => Err(Error::new(Code::Forbidden, "only administrators change what this host is a member of")),
    }
}

async fn show(State(desk): State<Arc<Desk>>) -> Response {
    let view = match &desk.standing {
        Standing::Member(cluster) => cluster.look().await,
        Standing::Waiting { .. } | Standing::Removed => {
            Ok(ClusterView { cluster: Some(desk.member.cluster), members: Vec::new(), etcd: Vec::new(), problems: vec![desk.problem()] })
        }
    };
    view.map_or_else(refuse, |view| Json(view).into_response())
}

/// What an administrator wants.
async fn wish<T: DeserializeOwned>(request: Request) -> Result<T, Error> {
    admin(&request)?;
    let bytes = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX).await.unwrap_or_default();
    serde_json::from_slice(&bytes).map_err(|e| Error::invalid(format!("the request: {e}")))
}

async fn leave(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let left = match wish(request).await {
        Ok(wish) => desk.leave(&wish).await,
        Err(error) => Err(error),
    };
    tracing::info!(ok = left.is_ok(), "asked to leave the cluster on the host's own socket");
    left.map_or_else(refuse, |left| Json(left).into_response())
}

async fn recover(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let begun = match (wish(request).await, &desk.standing) {
        (Ok(wish), Standing::Waiting { .. }) if !desk.is_denied() => recover::begin(&desk.member, &wish, &desk.restart),
        (Ok(_), Standing::Member(_) | Standing::Removed | Standing::Waiting { .. }) => {
            Err(Error::conflict("etcd answers: nothing is lost"))
        }
        (Err(error), _) => Err(error),
    };
    tracing::warn!(ok = begun.is_ok(), "asked to recover the store on the host's own socket");
    begun.map_or_else(refuse, |begun| Json(begun).into_response())
}

impl Desk {
    async fn leave(&self, wish: &ClusterLeave) -> Result<ClusterLeft, Error> {
        match &self.standing {
            Standing::Member(cluster) => cluster.leave_it(wish).await,
            Standing::Waiting { .. } if !wish.forget && !self.is_denied() => Err(Error::new(Code::Unavailable, self.problem().message)
                .hint("leave --forget does not ask the cluster; its other members must then be told: vmkeep cluster remove NODE")),
            Standing::Waiting { .. } if !wish.forget => Err(Error::refused(self.problem().message).hint(self.problem().mend)),
            Standing::Waiting { .. } | Standing::Removed => leave::begin(&self.member, &ClusterLeave { forget: true }, &self.restart),
        }
    }
}

async fn no_api(State(desk): State<Arc<Desk>>) -> Response {
    let problem = desk.problem();
    refuse(Error::new(Code::Unavailable, problem.message).hint(problem.mend))
}
