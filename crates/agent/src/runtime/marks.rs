//! Which shared pools are really here, told with the node's facts; and the word to their drivers which folder is the pool's.
//!
//! Storage that hangs holds up nobody: it is asked on a thread of its own, and not again before that one is back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
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
type Here = BTreeMap<PoolId, PoolMark>;

#[derive(Default)]
pub struct Marks(tokio::sync::Mutex<Known>);

#[derive(Default)]
struct Known {
    shared: Vec<(PoolId, Arc<dyn Pool>)>,
    /// Those of which nobody knows yet which folder is their own: until then anything is made anywhere.
    awaited: BTreeSet<PoolId>,
    told: Here,
    /// Questions that were not answered yet.
    asked: BTreeMap<PoolId, Asked>,
}

impl Marks {
    /// By pool; one that is not named is not here. None: there is no shared pool.
    ///
    /// # Errors
    /// The store's: it is not known which pools there are.
    pub async fn look(&self, node: &Node) -> Result<Option<Here>, StoreError> {
        let pools = typed::list_readable::<PoolRecord>(node.store.as_ref(), keys::ALL_POOLS).await?;
        let mut known = self.0.lock().await;
        (known.shared, known.awaited) = (Vec::new(), BTreeSet::new());
        for pool in pools.into_iter().map(|pool| pool.value).filter(|pool| is_shared(&pool.spec)) {
            // One that cannot be is told so wherever it is used.
            let Ok(driver) = node.pool(&pool.spec) else { continue };
            driver.expect(pool.mark);
            known.awaited.extend(pool.mark.is_none().then_some(pool.id));
            known.shared.push((pool.id, driver));
        }
        known.told = known.ask().await;
        Ok((!known.shared.is_empty()).then(|| known.told.clone()))
    }

    /// Whether the node should be described anew: a pool has come or gone, or what is known of it may be old.
    pub async fn are_news(&self) -> bool {
        let mut known = self.0.lock().await;
        let here = known.ask().await;
        here != known.told || here.keys().any(|id| known.awaited.contains(id))
    }
}

impl Known {
    async fn ask(&mut self) -> Here {
        let deadline = Instant::now() + PATIENCE;
        for (id, pool) in &self.shared {
            self.asked.entry(*id).or_insert_with(|| begin(pool.clone()));
        }
        let mut here = Here::new();
        for (id, mut answer) in std::mem::take(&mut self.asked) {
            match timeout_at(deadline, &mut answer).await {
                Ok(told) => here.extend(told.ok().flatten().map(|mark| (id, mark))),
                Err(_) => drop(self.asked.insert(id, answer)),
            }
        }
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
