//! The store of a cluster: etcd.
//!
//! ```text
//!  get, list, txn ──► one request each, with a deadline ──► a member that answers ([`members`])
//!  watch ──► pump task: stream ─ breaks ─► again from the last revision + 1 ──► one queue for the reader
//!  lead  ──► lease, renewed by each call; the key's revision is what leaders compare
//! ```
//! Only a transaction's outcome carries safety; the lease elects, no more. All keys are vmkeep's: it has an etcd of its own.
//!
//! How it fails: no answer in [`CALL_DEADLINE`] is [`StoreError::Unavailable`] for a read and [`StoreError::Unknown`] for a
//! write. A member that hangs is noticed by pings within 3 s; a watch goes on at another one without its reader seeing it. When
//! what it missed is compacted by then, the reader gets [`StoreError::Compacted`] and lists again. An etcd over its quota
//! is [`StoreError::Full`] for writes.

pub mod admin;
mod error;
mod lease;
pub mod loopback;
mod members;
pub mod rights;
mod txn;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, GetResponse, Identity, KvClient, TlsOptions};
use tokio::task::JoinSet;
use vmkeep_types::ids::Revision;

use crate::{KeyValue, Leadership, Listing, Store, StoreError, StoreId, Txn, TxnOutcome, Visitor, Watch, limits};
use error::Purpose;
use lease::Lease;
use members::Members;

/// For one request. etcd answers in milliseconds; an election of its leader takes 1 to 3 s.
pub const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// For the TCP and TLS handshake with one member, and for the first answer of any.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Interval and patience, while a call or a watch is open. A member that does not answer is given up; calls go to the others.
/// etcd must allow it: `--grpc-keepalive-min-time=1s`, else it hangs up on who pings more than once in 5 s.
const PING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));
/// Keys asked for at once: a listing of a large cluster comes in parts of one revision. For each part etcd counts all keys that are left, so
/// that small values come in larger parts, of about so many bytes.
const PAGE_KEYS: (usize, usize) = (1000, 8000);
const PAGE_BYTES: usize = 8 << 20;
/// Of one answer: a page of the largest values that are usual, or a transaction's gets.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Where etcd is and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `https://ADDRESS:2379` each; `http://` only on loopback, for tests and an etcd behind other protection.
    pub endpoints: Vec<String>,
    pub tls: Option<EtcdTls>,
}

/// PEM files. The certificate's common name is the etcd user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

pub struct EtcdStore {
    id: StoreId,
    members: Arc<Members>,
    lease: tokio::sync::Mutex<Option<Lease>>,
}

impl EtcdStore {
    /// Connects and asks once.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for endpoints or files that cannot be used, [`StoreError::Unavailable`] when no member answers.
    pub async fn connect(config: &EtcdConfig) -> Result<Self, StoreError> {
        let members = Members::connect(config, connect_options(config)?).await?;
        let mut store = Self { id: StoreId(String::new()), members: Arc::new(members), lease: tokio::sync::Mutex::new(None) };
        store.id = store.identify().await?;
        Ok(store)
    }

    /// The cluster's id changes when etcd is restored from a backup; so watch tokens of before are refused.
    async fn identify(&self) -> Result<StoreId, StoreError> {
        let answer = self.ask("\0", Some(GetOptions::new().with_count_only())).await?;
        let header = answer.header().ok_or_else(|| StoreError::Corrupt("etcd answers without a header".into()))?;
        Ok(StoreId(format!("etcd-{:016x}", header.cluster_id())))
    }

    /// Also asks this member from now on.
    ///
    /// # Errors
    /// It is no endpoint.
    pub async fn add_endpoint(&self, endpoint: &str) -> Result<(), StoreError> {
        self.members.add(endpoint).await
    }

    /// Asks this member no more.
    pub fn remove_endpoint(&self, endpoint: &str) {
        self.members.remove(endpoint);
    }

    async fn ask(&self, key: impl Into<Vec<u8>>, options: Option<GetOptions>) -> Result<GetResponse, StoreError> {
        get(&self.members, Purpose::Read, key, options).await
    }

    /// All keys of a prefix at `at`, or at what is newest when that is 0; and the revision of it. While one part is taken in the next one
    /// is asked for.
    async fn visit_at(&self, prefix: &str, mut at: i64, part: &mut Visitor<'_>) -> Result<i64, StoreError> {
        let end = range_end(prefix);
        let mut asked = JoinSet::new();
        let ask = |asked: &mut JoinSet<_>, from: Vec<u8>, at, count| {
            let (members, options) = (self.members.clone(), GetOptions::new().with_range(end.clone()).with_revision(at));
            asked.spawn(async move {
                let page = async |count| {
                    let options = options.clone().with_limit(i64::try_from(count).unwrap_or(i64::MAX));
                    get(&members, Purpose::Listing, from.clone(), Some(options)).await
                };
                match page(count).await {
                    // What follows on small values may be too large for one answer.
                    Err(_) if count > PAGE_KEYS.0 => page(PAGE_KEYS.0).await,
                    answer => answer,
                }
            });
        };
        ask(&mut asked, range_start(prefix), at, PAGE_KEYS.0);
        while let Some(answer) = asked.join_next().await {
            let mut page = answer.map_err(|e| StoreError::Unavailable(format!("a listing was broken off: {e}")))??;
            if at == 0 {
                at = page.header().map_or(0, etcd_client::ResponseHeader::revision);
            }
            let more = page.more();
            let items = page.take_kvs().into_iter().map(key_value).collect::<Result<Vec<_>, _>>()?;
            if let Some(last) = items.last().filter(|_| more) {
                ask(&mut asked, [last.key.as_bytes(), b"\0"].concat(), at, next_count(&items));
            }
            part(items);
        }
        Ok(at)
    }
}

/// Keys of the next part, if their values are like these.
fn next_count(items: &[KeyValue]) -> usize {
    let bytes: usize = items.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
    (PAGE_BYTES * items.len() / bytes.max(1)).clamp(PAGE_KEYS.0, PAGE_KEYS.1)
}

/// One read, at whichever member answers.
async fn get(members: &Members, purpose: Purpose, key: impl Into<Vec<u8>>, options: Option<GetOptions>) -> Result<GetResponse, StoreError> {
    let key = key.into();
    members
        .outcome(purpose, |client| {
            let (mut kv, key, options) = (kv(&client), key.clone(), options.clone());
            async move { kv.get(key, options).await }
        })
        .await
}

fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX).max_encoding_message_size(ANSWER_BYTES_MAX)
}

fn connect_options(config: &EtcdConfig) -> Result<ConnectOptions, StoreError> {
    let options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_DEADLINE)
        .with_keep_alive(PING.0, PING.1)
        .with_keep_alive_while_idle(false)
        .with_require_leader(true);
    let Some(tls) = &config.tls else { return Ok(options) };
    let read = |path: &PathBuf| std::fs::read(path).map_err(|e| StoreError::Invalid(format!("{}: {e}", path.display())));
    let identity = Identity::from_pem(read(&tls.cert)?, read(&tls.key)?);
    Ok(options.with_tls(TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?)).identity(identity)))
}

/// etcd has no empty key: a range over all begins at the smallest one.
fn range_start(prefix: &str) -> Vec<u8> {
    if prefix.is_empty() { vec![0] } else { prefix.into() }
}

/// The first key after all with this prefix; keys are UTF-8, which has no byte 0xff.
fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        // etcd's mark for "to the end".
        None => end.push(0),
    }
    end
}

fn revision(n: i64) -> Revision {
    Revision(u64::try_from(n).unwrap_or(0))
}

/// Revisions beyond etcd's are asked for by nobody.
fn etcd_revision(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

fn key_value(kv: etcd_client::KeyValue) -> Result<KeyValue, StoreError> {
    let (created, modified) = (revision(kv.create_revision()), revision(kv.mod_revision()));
    let (key, value) = kv.into_key_value();
    let key = String::from_utf8(key)
        .map_err(|e| StoreError::Corrupt(format!("a key of etcd is no text: {e}; vmkeep wants an etcd of its own")))?;
    Ok(KeyValue { key, value, created, modified })
}

#[async_trait]
impl Store for EtcdStore {
    fn id(&self) -> StoreId {
        self.id.clone()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let mut answer = self.ask(key, None).await?;
        answer.take_kvs().pop().map(key_value).transpose()
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.list_many(&[prefix]).await
    }

    async fn first(&self, prefix: &str, count: usize) -> Result<Vec<KeyValue>, StoreError> {
        let options = GetOptions::new().with_range(range_end(prefix)).with_limit(i64::try_from(count).unwrap_or(i64::MAX));
        let mut answer = self.ask(range_start(prefix), Some(options)).await?;
        answer.take_kvs().into_iter().map(key_value).collect()
    }

    async fn list_many(&self, prefixes: &[&str]) -> Result<Listing, StoreError> {
        let mut items = Vec::new();
        let revision = self.visit(prefixes, &mut |part| items.extend(part)).await?;
        Ok(Listing { revision, items })
    }

    async fn visit(&self, prefixes: &[&str], part: &mut Visitor<'_>) -> Result<Revision, StoreError> {
        let mut at = 0;
        for prefix in prefixes {
            at = self.visit_at(prefix, at, part).await?;
        }
        Ok(revision(at))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        limits::check(&txn)?;
        txn::run(&self.members, txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        watch::open(&self.members, prefix, from).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        let answer = self.ask("\0", Some(GetOptions::new().with_count_only())).await?;
        Ok(revision(answer.header().map_or(0, etcd_client::ResponseHeader::revision)))
    }

    async fn lead(&self, candidate: &str, ttl: Duration) -> Result<Option<Leadership>, StoreError> {
        self.take_lead(candidate, ttl).await
    }

    async fn resign(&self, lead: &Leadership) -> Result<(), StoreError> {
        self.give_up(lead).await
    }
}
