//! What goes along with a VM that moves while it is off, for the node that is to have it next and for nobody else.
//!
//! ```text
//!  GET /n/moves/UID                 what there is, and how much of it
//!  GET /n/moves/UID/same?…          whether the asker's staging folder is this node's: a pool that is shared without saying so
//!  GET /n/moves/UID/volumes/UID     a disk's file ┐ in pieces (pool::wire)
//!  GET /n/moves/UID/nvram           UEFI variables │
//!  GET /n/moves/UID/tpm             what its TPM keeps ┘
//! ```
//! The owner's record says who may ask. A VM that runs, or is not on its way, is not given away.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use nix::unistd::{Gid, Group, Uid, User};
use serde::{Deserialize, Serialize};
use vmkeep_store::{keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::{VmId, VolumeId};
use vmkeep_types::migration::Travel;
use vmkeep_types::name::Name;
use vmkeep_types::order::Order;
use vmkeep_types::record::Owner;

use super::NodeHttp;
use super::answer::{Answer, Asked, Failure, io_failure};
use crate::domain;
use crate::hypervisor::{HvError, XmlKind};
use crate::pool::wire;
use crate::runtime;

/// Pieces that wait for the network.
const PIECES_MAX: usize = 8;
/// Names of the files by which two folders are compared.
const SAME_CHARS_MAX: usize = 80;

/// The node at the other end, by its certificate.
#[derive(Clone, Debug)]
pub struct Member(pub Name);

impl<S: Send + Sync> FromRequestParts<S> for Member {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let member = parts.extensions.get::<Self>().cloned();
        Ok(member.ok_or_else(|| Error::new(Code::Forbidden, "only another node asks for this, by its certificate"))?)
    }
}

/// What there is to copy; bytes that are no holes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveList {
    pub volumes: BTreeMap<VolumeId, u64>,
    /// None: it has none, or was never started.
    pub nvram: Option<u64>,
    /// None as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<TpmState>,
}

/// A file that nobody but swtpm may read, and whom it runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmState {
    pub bytes: u64,
    pub user: String,
    pub group: String,
}

/// What the runtime says of a VM that leaves.
#[async_trait]
pub trait Moves: Send + Sync + 'static {
    /// # Errors
    /// `Forbidden`: `to` is not who has it next.
    async fn goes_to(&self, vm: VmId, to: &Name) -> Result<(), Error>;
    /// Its order, when it is off and on its way.
    ///
    /// # Errors
    /// It is not; `Unavailable` when nobody can say now.
    async fn leaves(&self, vm: VmId) -> Result<Order, Error>;
}

#[async_trait]
impl Moves for runtime::Handle {
    async fn goes_to(&self, vm: VmId, to: &Name) -> Result<(), Error> {
        let read = typed::get_json::<Owner>(self.0.store.as_ref(), &keys::owner(vm)).await;
        let owner = read.map_err(|e| Error::new(Code::Unavailable, e.to_string()))?.map(|owner| owner.value);
        let heir = owner.filter(|owner| owner.node == self.0.name).and_then(|owner| owner.to);
        match heir {
            Some(heir) if heir.node == *to => Ok(()),
            _ => Err(Error::new(Code::Forbidden, format!("VM {vm} does not move from here to '{to}'"))),
        }
    }

    async fn leaves(&self, vm: VmId) -> Result<Order, Error> {
        let read = typed::get_json::<Order>(self.0.store.as_ref(), &keys::order(&self.0.name, vm)).await;
        let order = read.map_err(|e| Error::new(Code::Unavailable, e.to_string()))?.map(|order| order.value);
        let order = order.filter(|order| order.moving.is_some_and(|moving| moving.travel == Travel::Off));
        let order = order.ok_or_else(|| Error::conflict(format!("VM {vm} is not on its way while it is off")))?;
        match self.0.hv.find(vm).await {
            Ok(brief) if brief.state.is_live() => Err(Error::conflict(format!("'{}' runs: its disks are not given away", order.spec.name))),
            Ok(_) | Err(HvError::NoDomain(_)) => Ok(order),
            Err(error) => Err(Error::new(Code::Unavailable, format!("libvirt: {error}"))),
        }
    }
}

#[derive(Deserialize)]
pub struct Same {
    pool: Name,
    file: String,
}

fn vm_id(uid: &str) -> Result<VmId, Error> {
    uid.parse().map_err(|_| Error::invalid(format!("'{uid}' is not a VM's id")))
}

impl NodeHttp {
    /// The order of a VM that `member` may have now.
    async fn leaving(&self, uid: &str, member: &Member) -> Answer<Order> {
        let vm = vm_id(uid)?;
        self.config.moves.goes_to(vm, &member.0).await?;
        Ok(self.config.moves.leaves(vm).await?)
    }

    /// Where its UEFI variables lie; None: it has none.
    async fn variables(&self, vm: VmId) -> Answer<Option<PathBuf>> {
        let variables = self.description(vm).await?.and_then(|xml| domain::variables(&xml));
        Ok(variables.map(|variables| variables.path).filter(|path| path.exists()))
    }

    /// Where what its TPM keeps lies; None: it has none, or was never started.
    async fn tpm(&self, order: &Order) -> Answer<Option<PathBuf>> {
        let Some(xml) = self.description(order.vm).await? else { return Ok(None) };
        if !domain::tpm_is_plain(&xml) {
            return Err(Error::conflict("its TPM's state is encrypted, of an older TPM or in another place: it does not go along").into());
        }
        Ok(Some(PathBuf::from(domain::tpm_path(order.vm))).filter(|path| order.spec.tpm() && path.exists()))
    }

    /// As libvirt stores it; None: it has no such domain.
    async fn description(&self, vm: VmId) -> Answer<Option<String>> {
        match self.hv().xml(vm, XmlKind::Inactive).await {
            Ok(xml) => Ok(Some(xml)),
            Err(HvError::NoDomain(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// # Errors
/// Whom it belongs to has no name here.
fn tpm_state(path: &std::path::Path) -> std::io::Result<TpmState> {
    let found = std::fs::metadata(path)?;
    let user = User::from_uid(Uid::from_raw(found.uid()))?.map(|user| user.name);
    let group = Group::from_gid(Gid::from_raw(found.gid()))?.map(|group| group.name);
    let nobody = || std::io::Error::other("its owner has no name on this host");
    Ok(TpmState { bytes: found.len(), user: user.ok_or_else(nobody)?, group: group.ok_or_else(nobody)? })
}

pub async fn same(
    State(node): State<Arc<NodeHttp>>,
    Path(uid): Path<String>,
    member: Member,
    Asked(asked): Asked<Same>,
) -> Answer<Json<bool>> {
    node.config.moves.goes_to(vm_id(&uid)?, &member.0).await?;
    let plain = asked.file.len() <= SAME_CHARS_MAX && asked.file.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if !plain {
        return Err(Error::invalid("file: letters, digits and - only").into());
    }
    Ok(Json(node.pool(&asked.pool).await?.staging().join(asked.file).exists()))
}

pub async fn list(State(node): State<Arc<NodeHttp>>, Path(uid): Path<String>, member: Member) -> Answer<Json<MoveList>> {
    let order = node.leaving(&uid, &member).await?;
    let mut list = MoveList::default();
    for volume in order.volumes.values().filter(|volume| volume.foreign_path.is_none()) {
        let path = node.pool(&volume.pool).await?.volume_path(volume);
        // Whoever wants one that is not here is told so when it asks for it.
        if let Ok(file) = File::open(&path) {
            list.volumes.insert(volume.id, wire::held_bytes(&file).map_err(|e| cannot(&path, &e))?);
        }
    }
    if let Some(path) = node.variables(order.vm).await? {
        list.nvram = Some(std::fs::metadata(&path).map_err(|e| cannot(&path, &e))?.len());
    }
    if let Some(path) = node.tpm(&order).await? {
        list.tpm = Some(tpm_state(&path).map_err(|e| cannot(&path, &e))?);
    }
    Ok(Json(list))
}

pub async fn volume(State(node): State<Arc<NodeHttp>>, Path((uid, volume)): Path<(String, String)>, member: Member) -> Answer<Response> {
    let order = node.leaving(&uid, &member).await?;
    let asked = order.volumes.values().find(|of| of.id.to_string() == volume && of.foreign_path.is_none());
    let found = asked.ok_or_else(|| Error::not_found("volume of the VM", &volume))?;
    let path = node.pool(&found.pool).await?.volume_path(found);
    stream(path).await
}

pub async fn nvram(State(node): State<Arc<NodeHttp>>, Path(uid): Path<String>, member: Member) -> Answer<Response> {
    let order = node.leaving(&uid, &member).await?;
    let found = node.variables(order.vm).await?;
    stream(found.ok_or_else(|| Error::not_found("UEFI variables of the VM", &order.spec.name))?).await
}

pub async fn tpm(State(node): State<Arc<NodeHttp>>, Path(uid): Path<String>, member: Member) -> Answer<Response> {
    let order = node.leaving(&uid, &member).await?;
    let found = node.tpm(&order).await?;
    stream(found.ok_or_else(|| Error::not_found("TPM state of the VM", &order.spec.name))?).await
}

fn cannot(path: &std::path::Path, error: &std::io::Error) -> Failure {
    io_failure(&format!("cannot read {}", path.display()), error)
}

/// A file in pieces. A thread reads as fast as the network takes them, and ends when nobody listens.
async fn stream(path: PathBuf) -> Answer<Response> {
    let (pieces, mut arrived) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(PIECES_MAX);
    let file = File::open(&path).map_err(|e| cannot(&path, &e))?;
    tokio::task::spawn_blocking(move || {
        if let Err(error) = wire::read(&file, |piece| pieces.blocking_send(Ok(piece)).is_ok()) {
            tracing::warn!(path = %path.display(), %error, "a file is not sent to its end");
            let _ = pieces.blocking_send(Err(error));
        }
    });
    let body = Body::from_stream(futures_util::stream::poll_fn(move |cx| arrived.poll_recv(cx)));
    Ok(body.into_response())
}
