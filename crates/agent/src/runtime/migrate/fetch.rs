//! The destination copies what a VM that is off has on its host: disks into staging and then under their names, UEFI variables, and what
//! its TPM keeps.
//!
//! ```text
//!  list ─► each volume: pieces ─► staging ─ whole, its base is here ─► durable under its name      ─┐
//!          UEFI variables, TPM state likewise                                                       ├─► Ready
//!  a break: tried again from the volume that was under way; silent for PATIENCE, or refused ───────► Refused
//! ```
//! Nothing here is the VM's until the leader has made this node its owner, so what is left of an earlier try is replaced. A new order
//! ends the copying before it is carried out. After a restart of the agent all is copied anew.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, chown, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use futures_util::StreamExt;
use nix::unistd::{Group, User};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use vmkeep_store::{keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::VolumeId;
use vmkeep_types::migration::{LocalState, MovePart, MoveProgress, MoveSaid};
use vmkeep_types::name::Name;
use vmkeep_types::order::{Holder, Order};
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::record::Owner;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::DiskFormat;

use super::super::apply::pool_of;
use super::super::node::Node;
use super::{AGAIN, AT_REST, LOOK_EVERY, Mover};
use crate::domain;
use crate::http::{MoveList, TpmState};
use crate::image::broke;
use crate::pool::Pool;
use crate::pool::qcow2::Header;
use crate::pool::room::Room;
use crate::pool::wire::Writer;

/// A source that sends nothing for so long is taken for gone; an agent that is restarted is back by then.
const PATIENCE: Duration = Duration::from_secs(120);
/// A list of volumes is a few kB.
const LIST_BYTES_MAX: usize = 1 << 20;
/// UEFI variables take half a MiB, a TPM's state some kB; what is larger is something else.
const STATE_BYTES_MAX: u64 = 16 << 20;

/// What has arrived, and the copying under way.
#[derive(Default)]
pub struct Arrival {
    going: Option<Going>,
    /// Volumes that are whole under their names, by this life of the agent.
    arrived: Arc<Mutex<BTreeSet<VolumeId>>>,
    /// Since when nothing has come.
    silent: Option<Instant>,
}

struct Going {
    task: JoinHandle<Result<(), Error>>,
    count: Arc<Count>,
    stop: DropGuard,
}

#[derive(Default)]
struct Count {
    done: AtomicU64,
    total: AtomicU64,
}

impl Arrival {
    /// Ends the copying, and returns when nothing is written any more.
    pub async fn halt(&mut self) {
        if let Some(Going { task, stop, .. }) = self.going.take() {
            drop(stop);
            let _ = task.await;
        }
        *self = Self::default();
    }
}

pub async fn turn(mover: &mut Mover) -> Result<Duration, Error> {
    if mover.said().is_some_and(|said| *said != MoveSaid::Working) {
        return Ok(AT_REST);
    }
    let Some(going) = mover.arrival.going.take_if(|going| going.task.is_finished()) else {
        if let Some(going) = &mover.arrival.going {
            let (done, total) = (going.count.done.load(Ordering::Relaxed), going.count.total.load(Ordering::Relaxed));
            let progress = MoveProgress { done, total, ..MoveProgress::default() };
            mover.say(MoveSaid::Working, Some(progress).filter(|p| p.total > 0), None).await?;
            return Ok(LOOK_EVERY);
        }
        refuse_owner(mover).await?;
        mover.say(MoveSaid::Working, None, None).await?;
        mover.arrival.going = Some(begin(mover)?);
        return Ok(LOOK_EVERY);
    };
    let came = going.count.done.load(Ordering::Relaxed) > 0;
    let ended = going.task.await.unwrap_or_else(|e| Err(Error::internal(format!("the copying stopped: {e}"))));
    let Err(error) = ended else {
        mover.say(MoveSaid::Ready, None, None).await?;
        return Ok(AT_REST);
    };
    let silent = mover.arrival.silent.take().filter(|_| !came).unwrap_or_else(Instant::now);
    mover.arrival.silent = Some(silent);
    if error.code == Code::Unavailable && silent.elapsed() < PATIENCE {
        tracing::warn!(vm = %mover.order.vm, %error, "the copying broke, and goes on");
        return Ok(AGAIN);
    }
    let error = Error { message: format!("on {}: {}", mover.node.name, error.message), ..error };
    mover.say(MoveSaid::Refused { error }, None, None).await?;
    Ok(AT_REST)
}

/// An order from before: who owns the VM replaces none of its disks.
async fn refuse_owner(mover: &Mover) -> Result<(), Error> {
    let read = typed::get_json::<Owner>(mover.node.store.as_ref(), &keys::owner(mover.order.vm)).await;
    let owner = read.map_err(|e| Error::new(Code::Unavailable, e.to_string()))?.map(|owner| owner.value);
    let heir = owner.filter(|owner| owner.node != mover.node.name).and_then(|owner| owner.to);
    match heir {
        Some(heir) if heir.node == mover.node.name => Ok(()),
        _ => Err(Error::conflict("this node is not who has the VM next; nothing is copied")),
    }
}

fn begin(mover: &Mover) -> Result<Going, Error> {
    let MovePart::Fetch { from, copy, state, bandwidth } = mover.order.part.clone() else {
        return Err(Error::internal("not a fetching"));
    };
    let (stop, count) = (CancellationToken::new(), Arc::new(Count::default()));
    let fetch = Fetch {
        node: mover.node.clone(),
        order: mover.order.order.clone(),
        from,
        copy,
        state,
        pace: Pace { begun: Instant::now(), bandwidth },
        arrived: mover.arrival.arrived.clone(),
        count: count.clone(),
        stop: stop.clone(),
    };
    Ok(Going { task: tokio::spawn(async move { fetch.all().await }), count, stop: stop.drop_guard() })
}

struct Fetch {
    node: Arc<Node>,
    order: Order,
    from: Holder,
    copy: BTreeSet<Name>,
    state: BTreeSet<LocalState>,
    pace: Pace,
    arrived: Arc<Mutex<BTreeSet<VolumeId>>>,
    count: Arc<Count>,
    stop: CancellationToken,
}

/// As many bytes per second as were allowed.
struct Pace {
    begun: Instant,
    bandwidth: Option<ByteCount>,
}

impl Pace {
    /// How long to wait after so many bytes.
    fn rest(&self, bytes: u64) -> Duration {
        let Some(bandwidth) = self.bandwidth.filter(|b| b.bytes() > 0) else { return Duration::ZERO };
        let due = Duration::from_millis(bytes.saturating_mul(1000) / bandwidth.bytes());
        due.saturating_sub(self.begun.elapsed())
    }
}

impl Fetch {
    async fn all(&self) -> Result<(), Error> {
        let list: MoveList = {
            let bytes = axum::body::to_bytes(self.get("").await?.into_body(), LIST_BYTES_MAX).await.map_err(|e| broke(&self.from, &e))?;
            serde_json::from_slice(&bytes).map_err(|e| broke(&self.from, &e))?
        };
        let volumes: Vec<(&Name, &VolumeRecord)> = self.order.volumes.iter().filter(|(disk, _)| self.copy.contains(*disk)).collect();
        let here = |id| self.arrived.lock().expect("no panic holds this lock").contains(&id);
        let missing: Vec<_> = volumes.into_iter().filter(|(_, volume)| !here(volume.id)).collect();
        let nvram = list.nvram.filter(|_| self.state.contains(&LocalState::Nvram));
        // What was never made at the source is made here by the first start.
        let there: Vec<_> = missing.into_iter().filter_map(|(disk, v)| Some((disk, v, *list.volumes.get(&v.id)?))).collect();
        let tpm = list.tpm.filter(|_| self.state.contains(&LocalState::Tpm));
        let total = there.iter().map(|(_, _, bytes)| bytes).sum::<u64>() + nvram.unwrap_or(0) + tpm.as_ref().map_or(0, |tpm| tpm.bytes);
        self.count.total.store(total, Ordering::Relaxed);
        for (disk, volume, bytes) in there {
            let told = |e: Error| Error { message: format!("disks[{disk}]: {}", e.message), ..e };
            self.volume(volume, bytes).await.map_err(told)?;
            self.arrived.lock().expect("no panic holds this lock").insert(volume.id);
        }
        if let Some(bytes) = nvram {
            self.nvram(bytes).await?;
        }
        match tpm {
            Some(tpm) => self.tpm(&tpm).await,
            None => Ok(()),
        }
    }

    async fn get(&self, what: &str) -> Result<Response<Body>, Error> {
        let Some(peers) = &self.node.config.peers else { return Err(Error::conflict("this node is in no cluster")) };
        let path = format!("/n/moves/{}{what}", self.order.vm);
        let response = peers.get(&self.from.node, &self.from.address, &path).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = axum::body::to_bytes(response.into_body(), LIST_BYTES_MAX).await.unwrap_or_default();
        let error = vmkeep_api::problem::read(status.as_u16(), &bytes);
        Err(Error { message: format!("{}: {}", self.from.node, error.message), ..error })
    }

    async fn volume(&self, volume: &VolumeRecord, bytes: u64) -> Result<(), Error> {
        let pool = self.node.pool(pool_of(&self.order, &volume.pool)?)?;
        pool.ensure().await?;
        let part = tempfile::Builder::new().prefix(&format!("move-{}-", volume.id)).tempfile_in(pool.staging());
        let part = part.map_err(|e| cannot_write(&pool.staging(), &e))?;
        let file = part.as_file().try_clone().map_err(|e| cannot_write(part.path(), &e))?;
        self.receive(&format!("/volumes/{}", volume.id), file, part.path(), bytes).await?;
        reads_from_here(pool.as_ref(), volume, part.path())?;
        if self.stop.is_cancelled() {
            return Err(called_off());
        }
        vmkeep_store::crash::point("moved volume arrived");
        pool.adopt_volume(part.path(), volume).await?;
        vmkeep_store::crash::point("moved volume in place");
        Ok(())
    }

    async fn nvram(&self, bytes: u64) -> Result<(), Error> {
        if bytes > STATE_BYTES_MAX {
            return Err(Error::refused(format!("its UEFI variables take {}", ByteCount::from_bytes(bytes).human())));
        }
        let path = PathBuf::from(domain::nvram_path(self.order.vm));
        let folder = path.parent().expect("a file in a folder");
        std::fs::create_dir_all(folder).map_err(|e| cannot_write(folder, &e))?;
        self.state("/nvram", &path, bytes, None).await
    }

    /// Its folder and itself are swtpm's, as at the source: libvirt gives it the folder and no file in there.
    async fn tpm(&self, found: &TpmState) -> Result<(), Error> {
        if found.bytes > STATE_BYTES_MAX {
            return Err(Error::refused(format!("its TPM state takes {}", ByteCount::from_bytes(found.bytes).human())));
        }
        let (uid, gid) = runs_as(&found.user, &found.group)?;
        let path = PathBuf::from(domain::tpm_path(self.order.vm));
        let folder = path.parent().expect("a file in a folder");
        let own = folder.parent().expect("a folder of the VM");
        let made = DirBuilder::new().recursive(true).mode(0o711).create(own).and_then(|()| {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            chown(folder, Some(uid), Some(gid))
        });
        made.map_err(|e| cannot_write(folder, &e))?;
        self.state("/tpm", &path, found.bytes, Some((uid, gid))).await
    }

    /// A file that libvirt will look for: whole and durable under its name, or not there.
    async fn state(&self, what: &str, path: &Path, bytes: u64, owner: Option<(u32, u32)>) -> Result<(), Error> {
        let folder = path.parent().expect("a file in a folder");
        let part = tempfile::NamedTempFile::new_in(folder).map_err(|e| cannot_write(folder, &e))?;
        let file = part.as_file().try_clone().map_err(|e| cannot_write(part.path(), &e))?;
        self.receive(what, file, part.path(), bytes).await?;
        let owned = owner.map_or(Ok(()), |(uid, gid)| fchown(part.as_file(), Some(uid), Some(gid)));
        let placed = owned.and_then(|()| part.as_file().sync_all()).and_then(|()| part.persist(path).map(drop).map_err(|e| e.error));
        placed.and_then(|()| File::open(folder)?.sync_all()).map_err(|e| cannot_write(path, &e))
    }

    /// A file that the source sends, as far as its end.
    async fn receive(&self, what: &str, file: File, path: &Path, bytes: u64) -> Result<(), Error> {
        let mut room = Room::around(path);
        room.fits(bytes)?;
        let mut stream = self.get(what).await?.into_body().into_data_stream();
        let mut writer = Writer::into_file(file);
        loop {
            let piece = tokio::select! {
                () = self.stop.cancelled() => return Err(called_off()),
                piece = tokio::time::timeout(PATIENCE, stream.next()) => piece,
            };
            let piece = piece.map_err(|_| broke(&self.from, &"it sends nothing any more"))?;
            let Some(piece) = piece else { break };
            let piece = piece.map_err(|e| broke(&self.from, &e))?;
            let written = tokio::task::spawn_blocking(move || {
                let written = writer.take(&piece);
                (writer, written)
            });
            let (back, written) = written.await.map_err(|e| Error::internal(format!("writing stopped: {e}")))?;
            writer = back;
            let written = written.map_err(|e| cannot_write(path, &e))?;
            room.took(written)?;
            let done = self.count.done.fetch_add(written, Ordering::Relaxed) + written;
            tokio::select! {
                () = self.stop.cancelled() => return Err(called_off()),
                () = tokio::time::sleep(self.pace.rest(done)) => {}
            }
        }
        writer.end().map(drop).map_err(|e| broke(&self.from, &e))
    }
}

/// Users have another number on each host.
fn runs_as(user: &str, group: &str) -> Result<(u32, u32), Error> {
    let (uid, gid) = (User::from_name(user).ok().flatten(), Group::from_name(group).ok().flatten());
    match (uid, gid) {
        (Some(user), Some(group)) => Ok((user.uid.as_raw(), group.gid.as_raw())),
        _ => Err(Error::refused(format!("swtpm runs as {user}:{group} where the VM is, and there is no such user or group here"))
            .hint("apt-get install swtpm swtpm-tools, and the same swtpm_user and swtpm_group in /etc/libvirt/qemu.conf")),
    }
}

/// A disk reads from no other file than the image that its record names.
fn reads_from_here(pool: &dyn Pool, volume: &VolumeRecord, file: &Path) -> Result<(), Error> {
    if volume.format == DiskFormat::Raw {
        return Ok(());
    }
    let header = Header::read(file).map_err(|e| Error::refused(format!("what arrived cannot be read: {e}")))?;
    let base = volume.image.map(|image| pool.image_path(image));
    match header.backing.map(PathBuf::from) {
        None => Ok(()),
        Some(backing) if Some(&backing) == base.as_ref() && backing.exists() => Ok(()),
        Some(backing) => {
            let told = format!("it reads from {}, which does not go along", backing.display());
            Err(Error::conflict(told).hint("make it whole first: virsh blockpull, or qemu-img rebase -b \"\" while it is off"))
        }
    }
}

fn called_off() -> Error {
    Error::new(Code::Cancelled, "the copying was called off")
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Error {
    let code = if error.raw_os_error() == Some(libc::ENOSPC) { Code::NoCapacity } else { Code::Refused };
    Error::new(code, format!("cannot write {}: {error}", path.display()))
}
