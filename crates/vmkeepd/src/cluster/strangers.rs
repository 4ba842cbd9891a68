//! Members of etcd whose host is not to have one: it died on its way out of the cluster, it is no control node any more and nobody
//! took its etcd out, or it is a learner whose host never came back for its certificate.
//!
//! ```text
//!  leave: forgotten ─ the host dies for good ─► etcd counts on a vote that nobody gives ─ LEFT_BEHIND ─► the leader takes it out, and an event
//! ```
//! A host that leaves takes its own etcd out, within a second where it lives. One that is let in has its record moments after its
//! learner. So whoever is a stranger for [`LEFT_BEHIND`] is neither. Time is this process's own: a new leader waits anew.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use vmkeep_server::app::{cluster as members, node, store_error};
use vmkeep_store::etcd::EtcdStore;
use vmkeep_store::etcd::admin::EtcdMember;
use vmkeep_store::{Store, Txn, keys, typed};
use vmkeep_types::cluster::MemberRecord;
use vmkeep_types::error::Error;
use vmkeep_types::event::{Event, Level};
use vmkeep_types::ids::node_uid;
use vmkeep_types::name::Name;
use vmkeep_types::operation::ResourceRef;

use super::etcd::peer_url;
use super::{Cluster, when_settled};

/// Longer than any step of a leave or a join, also over a restart of its daemon.
const LEFT_BEHIND: Duration = Duration::from_secs(180);

/// Strangers by their id, and since when each was seen.
pub type Seen = BTreeMap<u64, Instant>;

/// Members of etcd that no record of a host with etcd knows, neither by address nor by name.
pub fn strangers<'a>(etcd: &'a [EtcdMember], records: &[MemberRecord]) -> Vec<&'a EtcdMember> {
    let is = |member: &EtcdMember, record: &MemberRecord| {
        record.has_etcd() && (member.peer_urls.contains(&peer_url(&record.address)) || member.name == record.node.as_str())
    };
    etcd.iter().filter(|member| !records.iter().any(|record| is(member, record))).collect()
}

impl Cluster {
    /// On the leader's host; on others nothing is remembered.
    pub(super) async fn let_strangers_out(&self, seen: &mut Seen) -> Result<(), Error> {
        if !self.leads().await? {
            seen.clear();
            return Ok(());
        }
        let out = let_out(self.etcd_store()?.as_ref(), self.store.as_ref(), seen, Instant::now()).await?;
        out.iter().for_each(|gone| tracing::warn!(?gone, "a member of etcd was taken out: its host is not to have one"));
        Ok(())
    }
}

/// Takes out who is overdue at `now`.
async fn let_out(etcd: &EtcdStore, store: &dyn Store, seen: &mut Seen, now: Instant) -> Result<Vec<EtcdMember>, Error> {
    // Before the records: who is let in meanwhile is not in this list yet.
    let all = etcd.members().await.map_err(store_error)?;
    let records = members::members(store).await?;
    let found = strangers(&all, &records).into_iter().cloned().collect::<Vec<_>>();
    seen.retain(|id, _| found.iter().any(|stranger| stranger.id == *id));
    let mut out = Vec::new();
    for stranger in found {
        let since = *seen.entry(stranger.id).or_insert(now);
        if now.duration_since(since) < LEFT_BEHIND || joins(store, &records, &stranger).await? {
            continue;
        }
        when_settled(|| etcd.remove_member(stranger.id)).await.map_err(store_error)?;
        store.txn(Txn::default().then(told(&stranger))).await.map_err(store_error)?;
        seen.remove(&stranger.id);
        out.push(stranger);
    }
    Ok(out)
}

/// Somebody of its name has a node in the cluster, and no record. A record says that it has no business in etcd.
async fn joins(store: &dyn Store, records: &[MemberRecord], stranger: &EtcdMember) -> Result<bool, Error> {
    match stranger.name.parse::<Name>() {
        Ok(name) if records.iter().all(|record| record.node != name) => node::has_joined(store, &name).await,
        _ => Ok(false),
    }
}

fn told(stranger: &EtcdMember) -> vmkeep_store::Op {
    let (project, at) = (Name::known("default"), jiff::Timestamp::now());
    let at_url = stranger.peer_urls.join(" ");
    let (name, known) = match stranger.name.parse::<Name>() {
        Ok(name) => (name.clone(), format!("'{name}' ({at_url})")),
        Err(_) => (Name::known("etcd"), at_url),
    };
    let uid = node_uid(&name);
    let event = Event {
        at,
        resource: ResourceRef { kind: "node".into(), project: project.clone(), name, uid },
        level: Level::Warn,
        code: "etcd.member-removed".into(),
        message: format!("etcd's member {known} was taken out: its host is not to have one, and nobody took it out"),
        node: None,
    };
    typed::put(keys::event(&project, "node", uid, format!("{:020}-etcd-{:06}", at.as_nanosecond(), 0)), &event)
}

#[cfg(test)]
mod tests;
