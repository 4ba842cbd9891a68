//! Who leads: a key bound to a lease.
//!
//! Each call renews the lease once, over a stream of its own (one that broke would swallow renewals without a word), and reads
//! the key. A daemon that comes back under the same name takes its own key over; leaders' writes compare the key's revision,
//! so the one before it writes nothing any more.

use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, Error, LeaseRevokeResponse, PutOptions, Txn, TxnOp, TxnResponse};
use tokio::time::timeout;

use super::error::{Purpose, told};
use super::{CALL_DEADLINE, EtcdStore, etcd_revision, kv, revision};
use crate::keys::LEADER;
use crate::{Leadership, Op, Store, StoreError, typed};

pub struct Lease {
    candidate: String,
    id: i64,
    leadership: Leadership,
}

/// What a renewal found.
enum Renewal {
    Leads,
    Lost,
}

impl EtcdStore {
    pub(super) async fn take_lead(&self, candidate: &str, ttl: Duration) -> Result<Option<Leadership>, StoreError> {
        let mut lease = self.lease.lock().await;
        if let Some(held) = lease.as_ref().filter(|held| held.candidate == candidate) {
            match self.renew(held).await? {
                Renewal::Leads => return Ok(Some(held.leadership.clone())),
                Renewal::Lost => *lease = None,
            }
        }
        let old = self.get(LEADER).await?;
        let mine = |value: &[u8]| serde_json::from_slice::<String>(value).is_ok_and(|name| name == candidate);
        if old.as_ref().is_some_and(|kv| !mine(&kv.value)) {
            return Ok(None);
        }
        let guard = match &old {
            None => Compare::create_revision(LEADER, CompareOp::Equal, 0),
            Some(kv) => Compare::mod_revision(LEADER, CompareOp::Equal, etcd_revision(kv.modified)),
        };
        let taken = self.acquire(candidate, ttl, guard).await?;
        let leads = taken.as_ref().map(|taken| taken.leadership.clone());
        if taken.is_some() {
            *lease = taken;
        }
        Ok(leads)
    }

    async fn acquire(&self, candidate: &str, ttl: Duration, guard: Compare) -> Result<Option<Lease>, StoreError> {
        let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let grant = |mut client: Client| async move { client.lease_grant(seconds, None).await };
        let granted = self.members.outcome(Purpose::Write, grant).await?;
        let Op::Put(key, value) = typed::put(LEADER, candidate) else { unreachable!("a put is a put") };
        let txn = Txn::new().when([guard]).and_then([TxnOp::put(key, value, Some(PutOptions::new().with_lease(granted.id())))]);
        let answer = self.lease_txn(&txn).await?;
        if !answer.succeeded() {
            // It runs out by itself.
            let _ = timeout(CALL_DEADLINE, self.revoke(granted.id())).await;
            return Ok(None);
        }
        let at = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let leadership = Leadership { key: LEADER.into(), revision: revision(at) };
        Ok(Some(Lease { candidate: candidate.into(), id: granted.id(), leadership }))
    }

    async fn renew(&self, held: &Lease) -> Result<Renewal, StoreError> {
        let renewed = self.members.outcome(Purpose::Read, |mut client| async move {
            match client.lease_keep_alive(held.id).await {
                Ok(_) => Ok(Renewal::Leads),
                // The crate's words for a lease that etcd does not know.
                Err(Error::LeaseKeepAliveError(_)) => Ok(Renewal::Lost),
                Err(error) => Err(error),
            }
        });
        if matches!(renewed.await?, Renewal::Lost) {
            return Ok(Renewal::Lost);
        }
        let key = self.get(LEADER).await?;
        Ok(if key.is_some_and(|kv| kv.modified == held.leadership.revision) { Renewal::Leads } else { Renewal::Lost })
    }

    async fn lease_txn(&self, txn: &Txn) -> Result<TxnResponse, StoreError> {
        let call = |client: Client| {
            let (mut kv, txn) = (kv(&client), txn.clone());
            async move { kv.txn(txn).await }
        };
        self.members.outcome(Purpose::Write, call).await
    }

    async fn revoke(&self, id: i64) -> Result<LeaseRevokeResponse, Error> {
        self.members.pick().ask(Purpose::Write, |mut client| async move { client.lease_revoke(id).await }).await
    }

    pub(super) async fn give_up(&self, lead: &Leadership) -> Result<(), StoreError> {
        let mut lease = self.lease.lock().await;
        let Some(held) = lease.take_if(|held| held.leadership == *lead) else { return Ok(()) };
        let guard = Compare::mod_revision(LEADER, CompareOp::Equal, etcd_revision(lead.revision));
        let txn = Txn::new().when([guard]).and_then([TxnOp::delete(LEADER, None)]);
        self.lease_txn(&txn).await?;
        let revoked = self.revoke(held.id).await;
        revoked.map(drop).or_else(|error| match told(Purpose::Read, &error) {
            // It ran out meanwhile.
            StoreError::Unavailable(_) | StoreError::Denied(_) => Ok(()),
            error => Err(error),
        })
    }
}
