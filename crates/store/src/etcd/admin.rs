//! etcd's own affairs: its members, their health, its size. Here because nothing else may know etcd's client.
//!
//! A new member begins as a learner: it has no vote, so a cluster of one does not wait for a second that never comes.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions, ConnectOptions, MemberAddOptions};
use tokio::time::timeout;

use super::error::{Purpose, told};
use super::members::Members;
use super::{CALL_DEADLINE, EtcdConfig, EtcdStore, connect_options, etcd_revision};
use crate::{Store, StoreError};

/// For dropping history: that of 20 000 new VMs takes longer than [`CALL_DEADLINE`], and a full database of 8 GiB holds more.
const COMPACT_DEADLINE: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdMember {
    pub id: u64,
    /// Empty until it was started for the first time.
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
    pub learner: bool,
}

/// One member's word about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdStatus {
    pub id: u64,
    pub leader: u64,
    pub learner: bool,
    pub version: String,
    /// Of the database file, in bytes.
    pub db_bytes: u64,
    /// Of it what is in use; the rest is given back by defragmentation.
    pub used_bytes: u64,
    /// As it tells them.
    pub errors: Vec<String>,
}

/// # Errors
/// The member does not answer in time.
pub async fn status(config: &EtcdConfig) -> Result<EtcdStatus, StoreError> {
    let members = Members::connect(config, alone(config)?).await?;
    let answer = members.outcome(Purpose::Read, |mut client| async move { client.status().await }).await?;
    let bytes = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(EtcdStatus {
        id: answer.header().map_or(0, etcd_client::ResponseHeader::member_id),
        leader: answer.leader(),
        learner: answer.is_learner(),
        version: answer.version().to_owned(),
        db_bytes: bytes(answer.db_size()),
        used_bytes: bytes(answer.raft_used_db_size()),
        errors: answer.errors().to_vec(),
    })
}

/// Gives freed space back to the disk. The member answers nobody meanwhile: one at a time.
///
/// # Errors
/// The member does not do it; its database is as it was.
pub async fn defragment(config: &EtcdConfig) -> Result<(), StoreError> {
    let client = Client::connect(&config.endpoints, Some(alone(config)?)).await;
    let mut client = client.map_err(|e| StoreError::Invalid(format!("etcd at {}: {e}", config.endpoints.join(", "))))?;
    // As long as it takes: a database of 8 GiB is copied.
    client.defragment().await.map(drop).map_err(|e| StoreError::Unavailable(format!("etcd: {e}")))
}

/// Another member leads from now on. `config` names the leader alone.
///
/// # Errors
/// It does not lead, or the other one has no vote or does not answer.
pub async fn move_leader(config: &EtcdConfig, to: u64) -> Result<(), StoreError> {
    let members = Members::connect(config, alone(config)?).await?;
    members.outcome(Purpose::Write, |mut client| async move { client.move_leader(to).await }).await.map(drop)
}

/// To be asked about itself, with or without the others.
fn alone(config: &EtcdConfig) -> Result<ConnectOptions, StoreError> {
    Ok(connect_options(config)?.with_require_leader(false))
}

impl EtcdStore {
    /// # Errors
    /// No majority.
    pub async fn members(&self) -> Result<Vec<EtcdMember>, StoreError> {
        let answer = self.members.outcome(Purpose::Read, |mut client| async move { client.member_list().await }).await?;
        let member = |m: &etcd_client::Member| EtcdMember {
            id: m.id(),
            name: m.name().to_owned(),
            peer_urls: m.peer_urls().to_vec(),
            client_urls: m.client_urls().to_vec(),
            learner: m.is_learner(),
        };
        Ok(answer.members().iter().map(member).collect())
    }

    /// # Errors
    /// No majority, or another learner is not promoted yet.
    pub async fn add_learner(&self, peer_url: &str) -> Result<(), StoreError> {
        let options = MemberAddOptions::new().with_is_learner();
        let add = |mut client: Client| {
            let options = options.clone();
            async move { client.member_add([peer_url], Some(options)).await }
        };
        self.members.outcome(Purpose::Write, add).await.map(drop)
    }

    /// Gives a learner its vote.
    ///
    /// # Errors
    /// It has not caught up yet.
    pub async fn promote(&self, id: u64) -> Result<(), StoreError> {
        self.members.outcome(Purpose::Write, |mut client| async move { client.member_promote(id).await }).await.map(drop)
    }

    /// # Errors
    /// No majority without it, or it is no member.
    pub async fn remove_member(&self, id: u64) -> Result<(), StoreError> {
        self.members.outcome(Purpose::Write, |mut client| async move { client.member_remove(id).await }).await.map(drop)
    }

    /// Drops the history up to now; watchers that are behind list again. Only that makes room which defragmentation can give back.
    ///
    /// # Errors
    /// No majority.
    pub async fn compact(&self) -> Result<(), StoreError> {
        let now = etcd_revision(self.revision().await?);
        let compact = |mut client: Client| async move { client.compact(now, Some(CompactionOptions::new().with_physical())).await };
        let done = self.members.outcome_within(COMPACT_DEADLINE, Purpose::Write, compact);
        match done.await {
            // Nobody wrote since the last time.
            Err(StoreError::Compacted { .. }) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Members that say that they have no room.
    ///
    /// # Errors
    /// No majority.
    pub async fn out_of_space(&self) -> Result<Vec<u64>, StoreError> {
        let answer = self
            .members
            .outcome(Purpose::Read, |mut client| async move { client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await })
            .await?;
        Ok(answer.alarms().iter().filter(|a| a.alarm() == AlarmType::Nospace).map(etcd_client::AlarmMember::member_id).collect())
    }

    /// Lets writes in again after room was made.
    ///
    /// # Errors
    /// No majority.
    pub async fn clear_alarms(&self) -> Result<(), StoreError> {
        // etcd knows no "all of them": a call without a member clears nothing, and succeeds.
        for member in self.out_of_space().await? {
            let mut of = AlarmOptions::new();
            of.with_member(member);
            let clear = |mut client: Client| {
                let of = of.clone();
                async move { client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(of)).await }
            };
            self.members.outcome(Purpose::Write, clear).await?;
        }
        Ok(())
    }

    /// Writes the whole database into a file; it is on disk when this returns.
    ///
    /// # Errors
    /// The member's or the disk's; a part of the file may be there.
    pub async fn snapshot(&self, file: &Path) -> Result<(), StoreError> {
        let disk = |e: std::io::Error| StoreError::Unavailable(format!("{}: {e}", file.display()));
        let mut out = File::create(file).map_err(disk)?;
        let mut stream = self.members.outcome(Purpose::Read, |mut client| async move { client.snapshot().await }).await?;
        loop {
            let part = timeout(CALL_DEADLINE, stream.message()).await;
            let part = part.map_err(|_| StoreError::Unavailable("etcd stopped in the middle of its database".into()))?;
            let Some(part) = part.map_err(|e| told(Purpose::Read, &e))? else { break };
            out.write_all(part.blob()).map_err(disk)?;
        }
        out.sync_all().map_err(disk)
    }
}
