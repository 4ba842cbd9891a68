//! Which shared pools are really here, told with the node's facts; and the word to their drivers which folder is the pool's.
//!
//! Storage that hangs holds up nobody: it is asked on a thread of its own, and not again before that one is back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use vmkeep_core::migrate::check::is_shared;
use vmkeep_store::{StoreError, keys, typed};
use vmkeep_types::ids::{PoolId, PoolMark};
use vmkeep_types::pool::PoolRecord;

use super::Node;
use crate::pool::Pool;

/// For all of them together; what has not answered by then is not here.
const PATIENCE: Duration = Duration::from_secs(1);

type Asked = oneshot::Receiver<Option<PoolMark>>;

#[derive(Default)]
pub struct Marks {
    /// Questions that were not answered yet.
    asked: tokio::sync::Mutex<BTreeMap<PoolId, Asked>>,
    awaited: AtomicBool,
}

impl Marks {
    /// By pool; one that is not named is not here. None: there is no shared pool.
    ///
    /// # Errors
    /// The store's: it is not known which pools there are.
    pub async fn look(&self, node: &Node) -> Result<Option<BTreeMap<PoolId, PoolMark>>, StoreError> {
        let pools = typed::list_readable::<PoolRecord>(node.store.as_ref(), keys::ALL_POOLS).await?;
        let shared = pools.into_iter().map(|pool| pool.value).filter(|pool| is_shared(&pool.spec));
        // A driver that cannot be: its path is told to be wrong wherever it is used.
        let opened: Vec<(PoolRecord, Arc<dyn Pool>)> =
            shared.filter_map(|pool| Some((pool.clone(), node.pool(&pool.spec).ok()?))).collect();
        self.awaited.store(opened.iter().any(|(record, _)| record.mark.is_none()), Ordering::Relaxed);
        for (record, pool) in &opened {
            pool.expect(record.mark);
        }
        if opened.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.ask(opened.into_iter().map(|(record, pool)| (record.id, pool))).await))
    }

    /// Of a pool it is not known yet which folder is its own: until then anything is made anywhere.
    pub fn are_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed)
    }

    async fn ask(&self, pools: impl Iterator<Item = (PoolId, Arc<dyn Pool>)>) -> BTreeMap<PoolId, PoolMark> {
        let mut asked = self.asked.lock().await;
        let deadline = Instant::now() + PATIENCE;
        let mut here = BTreeMap::new();
        for (id, pool) in pools {
            asked.entry(id).or_insert_with(|| begin(pool));
        }
        let mut hang = BTreeMap::new();
        for (id, mut answer) in std::mem::take(&mut *asked) {
            match timeout_at(deadline, &mut answer).await {
                Ok(told) => here.extend(told.ok().flatten().map(|mark| (id, mark))),
                Err(_) => drop(hang.insert(id, answer)),
            }
        }
        *asked = hang;
        here
    }
}

fn begin(pool: Arc<dyn Pool>) -> Asked {
    let (answer, asked) = oneshot::channel();
    // Not one of the runtime's threads: those are waited for when it ends.
    let begun = std::thread::Builder::new().name("pool-mark".to_owned()).spawn(move || answer.send(pool.mark()));
    if let Err(error) = begun {
        tracing::warn!(%error, "no thread to look at a pool with");
    }
    asked
}
