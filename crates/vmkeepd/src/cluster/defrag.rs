//! Room in etcd's databases: history is dropped, and each member's file is written anew without its gaps, one after the other.
//!
//! ```text
//!  asked for, full, or grown ─► compaction ─► followers, one by one ─► another leads ─► the one that led ─► alarms off
//! ```
//! Full: one has used 80 % of its quota. Grown: the largest file is half as large again as after the last time; etcd tells which pages are
//! free, not that those in use are half empty, as they are where values that are gone lay between others that stay.
//!
//! A member answers nobody meanwhile, so nobody begins while another one is away, and no member does while it leads: writes, and with
//! them every host's heartbeat, go on.
//!
//! How it fails: whoever cannot be reached ends it before the next member pauses; by itself it is tried again 20 s later.

use std::time::Duration;

use futures_util::future::join_all;
use vmkeep_server::app;
use vmkeep_store::etcd::admin::{self, EtcdMember, EtcdStatus};
use vmkeep_store::{Store, StoreError, Txn, keys, typed};
use vmkeep_types::error::{Code, Error};

use super::Cluster;
use super::status::MEMBER_PATIENCE;

/// Of its quota, in percent: time to make room, and to be told.
pub const FULL_PERCENT: u64 = 80;
/// Between two times that it is done by itself: what is in use stays in use.
const REST: Duration = Duration::from_secs(3600);
/// The same while nothing can be written.
const REST_WHEN_FULL: Duration = Duration::from_secs(300);
/// A smaller file is not worth a pause.
const GROWN_BYTES_MIN: u64 = 64 << 20;
/// Of what the file was after the last time.
const GROWN_PERCENT: u64 = 150;

pub fn is_nearly_full(db_bytes: u64, quota: u64) -> bool {
    db_bytes.saturating_mul(100) > quota.saturating_mul(FULL_PERCENT)
}

/// Why it is done by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Full,
    Grown,
}

/// The last time that it was done.
#[derive(Clone, Copy, Debug)]
struct Last {
    /// None: it never was.
    since: Option<Duration>,
    /// The largest file afterwards; 0: nobody noted it.
    bytes: u64,
}

impl Last {
    fn due(self, fullest: u64, quota: u64, refuses: bool) -> Option<Due> {
        let rested = |rest| self.since.is_none_or(|since| since >= rest);
        if (refuses && rested(REST_WHEN_FULL)) || (is_nearly_full(fullest, quota) && rested(REST)) {
            return Some(Due::Full);
        }
        let grown = fullest >= GROWN_BYTES_MIN && fullest.saturating_mul(100) >= self.bytes.saturating_mul(GROWN_PERCENT);
        (grown && rested(REST)).then_some(Due::Grown)
    }
}

impl Cluster {
    /// Leads the cluster, not etcd.
    pub(super) async fn leads(&self) -> Result<bool, Error> {
        let leader = typed::get_json::<String>(self.store.as_ref(), keys::LEADER).await.map_err(app::store_error)?;
        Ok(leader.is_some_and(|leader| leader.value == self.node.as_str()))
    }

    /// Each that has started, and what it says of itself.
    async fn members_of_etcd(&self) -> Result<Vec<(EtcdMember, String, Result<EtcdStatus, StoreError>)>, Error> {
        let all = self.etcd_store()?.members().await.map_err(app::store_error)?;
        let asked = all.into_iter().filter_map(|member| Some((member.client_urls.first()?.clone(), member))).map(|(url, member)| async {
            let status = tokio::time::timeout(MEMBER_PATIENCE, admin::status(&self.only(url.clone())?)).await;
            let late = |_| Err(StoreError::Unavailable("no answer".into()));
            Ok::<_, Error>((member, url, status.unwrap_or_else(late)))
        });
        join_all(asked).await.into_iter().collect()
    }

    /// One member after the other, and none of them while it leads.
    pub(super) async fn defragment_each(&self) -> Result<(), Error> {
        let mut all = Vec::new();
        for (member, url, status) in self.members_of_etcd().await? {
            let status = status.map_err(|e| {
                Error::new(Code::Unavailable, format!("etcd on '{}' does not answer: {e}", member.name))
                    .hint("with one member away, another must not pause: mend it first, see vmkeep cluster status")
            })?;
            all.push((url, status));
        }
        let store = self.etcd_store()?;
        store.compact().await.map_err(app::store_error)?;
        for (url, _) in all.iter().filter(|(_, status)| status.leader != status.id) {
            self.defragment_one(url).await?;
        }
        for (url, status) in all.iter().filter(|(_, status)| status.leader == status.id) {
            if let Some((_, next)) = all.iter().find(|(_, other)| other.id != status.id && !other.learner) {
                let moved = admin::move_leader(&self.only(url.clone())?, next.id).await;
                // It may have lost the lead meanwhile: it is looked at once more.
                moved.unwrap_or_else(|error| tracing::debug!(%error, "etcd's leader is not moved"));
                let now = admin::status(&self.only(url.clone())?).await.map_err(app::store_error)?;
                if now.leader == now.id {
                    return Err(Error::new(Code::Unavailable, "etcd's leader does not let another one lead: it is not made to pause")
                        .hint("try again; see vmkeep cluster status"));
                }
            }
            self.defragment_one(url).await?;
        }
        store.clear_alarms().await.map_err(app::store_error)?;
        let now = self.members_of_etcd().await?.into_iter().filter_map(|(_, _, status)| status.ok());
        let bytes: u64 = now.map(|status| status.db_bytes).max().unwrap_or(0);
        let done = Txn::default()
            .then(typed::put(keys::CLUSTER_DEFRAGMENTED, &jiff::Timestamp::now()))
            .then(typed::put(keys::CLUSTER_DEFRAGMENTED_TO, &bytes));
        store.txn(done).await.map(drop).map_err(app::store_error)
    }

    async fn defragment_one(&self, url: &str) -> Result<(), Error> {
        admin::defragment(&self.only(url.to_owned())?).await.map_err(app::store_error)
    }

    /// On the leader's host, before there is no room left: without it hosts could not say that they live.
    pub(super) async fn defragment_when_due(&self) -> Result<(), Error> {
        if !self.leads().await? {
            return Ok(());
        }
        let store = self.etcd_store()?;
        let quota = self.etcd().quota();
        // One that is silent is in the way of it, and no reason to speak of it.
        let members = self.members_of_etcd().await?;
        let fullest = members.iter().filter_map(|(_, _, status)| Some(status.as_ref().ok()?.db_bytes)).max().unwrap_or(0);
        let refuses = !store.out_of_space().await.map_err(app::store_error)?.is_empty();
        let last = typed::get_json::<jiff::Timestamp>(store.as_ref(), keys::CLUSTER_DEFRAGMENTED).await.map_err(app::store_error)?;
        let since = last.map(|last| Duration::try_from(jiff::Timestamp::now().duration_since(last.value)).unwrap_or_default());
        let bytes = typed::get_json::<u64>(store.as_ref(), keys::CLUSTER_DEFRAGMENTED_TO).await.map_err(app::store_error)?;
        let last = Last { since, bytes: bytes.map_or(0, |bytes| bytes.value) };
        let Some(due) = last.due(fullest, quota, refuses) else { return Ok(()) };
        // That can wait until nobody is away.
        if due == Due::Grown && members.iter().any(|(_, _, status)| status.is_err()) {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        match due {
            Due::Full => tracing::warn!(fullest, quota, "etcd is nearly full: its history is dropped, and its members are defragmented"),
            Due::Grown => tracing::info!(fullest, before = last.bytes, "etcd's file has grown: its members are defragmented"),
        }
        self.defragment_each().await?;
        tracing::info!("etcd has room again");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(since: Option<Duration>, bytes: u64) -> Last {
        Last { since, bytes }
    }

    #[test]
    fn it_is_done_by_itself_before_there_is_no_room_and_not_again_and_again() {
        let quota = 1000;
        let due = |fullest, refuses, since| last(since, 0).due(fullest, quota, refuses);
        assert_eq!(due(800, false, None), None);
        assert_eq!(due(801, false, None), Some(Due::Full));
        assert_eq!(due(801, false, Some(REST - Duration::from_secs(1))), None, "it helped as much as it could");
        assert_eq!(due(801, false, Some(REST)), Some(Due::Full));
        assert_eq!((due(1000, true, Some(REST_WHEN_FULL)), due(1000, true, Some(Duration::ZERO))), (Some(Due::Full), None));
        assert!(!is_nearly_full(u64::MAX, u64::MAX), "and a quota of any size");
    }

    #[test]
    fn it_is_done_when_the_file_has_grown_by_half() {
        let due = |fullest, last: Last| last.due(fullest, 2 << 30, false);
        assert_eq!(due(GROWN_BYTES_MIN - 1, last(None, 0)), None, "a small one is not worth a pause");
        assert_eq!(due(GROWN_BYTES_MIN, last(None, 0)), Some(Due::Grown));
        let rested = last(Some(REST), 100 << 20);
        assert_eq!((due((150 << 20) - 1, rested), due(150 << 20, rested)), (None, Some(Due::Grown)));
        assert_eq!(due(1 << 30, last(Some(Duration::ZERO), 100 << 20)), None, "once an hour at most");
    }
}
