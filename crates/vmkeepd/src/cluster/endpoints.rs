//! Each connection to etcd asks all of its members, also those that came after the process began.
//!
//! ```text
//!  tend (one process of a host) ── members' records ──► member.toml ──► Endpoints (each process) ──► each of its connections
//! ```
//! A connection that knows the members of its start alone is lost with them: its host falls silent while the cluster lives.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vmkeep_store::etcd::EtcdStore;

use crate::config::Config;
use crate::member::Member;

const EVERY: Duration = Duration::from_secs(2);

/// What `member.toml` says, as long as the process runs.
#[derive(Clone)]
pub struct Endpoints(watch::Receiver<Vec<String>>);

impl Endpoints {
    /// Reads the file again and again, until `stop`: on a thread for that, as a disk may hang.
    pub fn of(config: &Config, member: &Member, stop: CancellationToken) -> Self {
        let (tell, told) = watch::channel(member.etcd.endpoints.clone());
        let state = config.store.clone();
        tokio::spawn(async move {
            while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
                let state = state.clone();
                // A host that leaves has none any more: its connections stay as they are.
                if let Ok(Ok(Some(member))) = tokio::task::spawn_blocking(move || Member::load(&state)).await {
                    let endpoints = member.etcd.endpoints;
                    tell.send_if_modified(|old| {
                        *old != endpoints && {
                            *old = endpoints;
                            true
                        }
                    });
                }
            }
        });
        Self(told)
    }

    /// Keeps `store`, which was opened with what was told first, at what is told since. Never ends before the reading does.
    pub async fn keep(mut self, store: Arc<EtcdStore>, mut asked: Vec<String>) {
        loop {
            let told = self.0.borrow_and_update().clone();
            for url in told.iter().filter(|url| !asked.contains(url)) {
                if let Err(error) = store.add_endpoint(url).await {
                    tracing::error!(%error, url, "this member of etcd is not asked");
                }
            }
            asked.iter().filter(|url| !told.contains(url)).for_each(|url| store.remove_endpoint(url));
            asked = told;
            if self.0.changed().await.is_err() {
                return;
            }
        }
    }
}
