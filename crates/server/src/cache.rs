//! VMs ready to be answered: each VM's JSON, made when it is first asked for and dropped when one of its keys changes.
//!
//! ```text
//!  store watch ──► index (name, labels), "changed" marks ──► revision
//!  GET ──► is the index at the store's revision? ──► JSON of the row, or made now from the store
//! ```
//! A reader waits until the cache is at the store's newest revision, so it reads what was written before it asked. How it
//! fails: while the watch is away (compacted, store gone) or late, [`Cache::fresh`] says no and readers go to the store.

mod fleet;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use vmkeep_api::body::VmPhase;
use vmkeep_core::place::Fleet;
use vmkeep_store::{Change, KeyValue, Listing, Store, StoreError, WatchBatch, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::{Revision, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::record::VmRecord;

use crate::app::{placement, store_error, vm_parts};
use crate::feed::Feed;
use crate::page::Place;
use crate::reconcile::view::ClusterView;
use crate::view::{self, Sight, VmParts};
use fleet::KeptFleet;

/// A reader waits so long for the cache; then the store is as quick.
const FRESH_PATIENCE: Duration = Duration::from_millis(50);
/// Before another listing when the watch broke.
const REST: Duration = Duration::from_millis(500);
/// More rows than this to be made at once are made from one listing.
const SINGLE_ROWS_MAX: usize = 20;

/// A VM as it is sent.
#[derive(Debug)]
pub struct Ready {
    pub name: Name,
    /// A `VmView`.
    json: Bytes,
    /// What viewers get, where that is another.
    veiled: Option<Bytes>,
    pub phase: VmPhase,
    pub spec_revision: Revision,
}

impl Ready {
    pub fn json(&self, sight: Sight) -> &Bytes {
        match sight {
            Sight::Open => &self.json,
            Sight::Veiled => self.veiled.as_ref().unwrap_or(&self.json),
        }
    }
}

pub struct Cache {
    shared: Arc<Shared>,
    /// Ends the follower with the cache.
    _stop: DropGuard,
}

struct Shared {
    rows: Mutex<Rows>,
    /// The last whole list that was asked for: consoles ask for it again and again.
    page: Mutex<Option<Page>>,
    /// Told of everything that was taken in.
    feed: Feed,
    fleet: KeptFleet,
    /// What the index is at; 0 = it cannot be relied on.
    at: watch::Sender<Revision>,
}

#[derive(Default)]
struct Rows {
    by_id: HashMap<VmId, Row>,
    /// Project and name, so that a range is a project's VMs in order.
    by_name: BTreeMap<(Name, Name), VmId>,
}

struct Row {
    project: Name,
    name: Name,
    labels: BTreeMap<String, String>,
    /// + 1 with every change: JSON made from older keys is not kept.
    changes: u64,
    ready: Option<Arc<Ready>>,
}

/// The answer to a list without labels, from its beginning.
struct Page {
    project: Name,
    sight: Sight,
    limit: usize,
    revision: Revision,
    json: Bytes,
}

/// A row and its JSON if that is made.
type Chosen = (VmId, Option<Arc<Ready>>);

/// Which rows of a project are wanted.
pub struct Wanted<'a> {
    pub labels: Vec<(&'a str, &'a str)>,
    pub after: Option<Place>,
    pub limit: usize,
    pub sight: Sight,
}

pub struct Rendered {
    pub rows: Vec<Arc<Ready>>,
    /// More follow.
    pub more: bool,
    pub revision: Revision,
}

impl Cache {
    /// Follows `store` until it is dropped. Called within a runtime.
    pub fn follow(store: Arc<dyn Store>) -> Self {
        let shared = Arc::new(Shared {
            rows: Mutex::default(),
            page: Mutex::default(),
            feed: Feed::default(),
            fleet: KeptFleet::default(),
            at: watch::Sender::new(Revision(0)),
        });
        let stop = CancellationToken::new();
        let (follower, stopped) = (shared.clone(), stop.clone());
        tokio::spawn(async move { stopped.run_until_cancelled_owned(follower.follow(store)).await });
        Self { shared, _stop: stop.drop_guard() }
    }

    /// For event streams: the cache watches the whole store already.
    pub fn feed(&self) -> &Feed {
        &self.shared.feed
    }

    /// True when the index is at what was newest in the store when this was called.
    async fn fresh(&self, store: &dyn Store) -> Result<bool, Error> {
        let newest = store.revision().await.map_err(store_error)?;
        let mut at = self.shared.at.subscribe();
        let reached = tokio::time::timeout(FRESH_PATIENCE, at.wait_for(|at| *at >= newest)).await;
        Ok(reached.is_ok_and(|at| at.is_ok()))
    }

    /// All nodes and VMs as placement sees them.
    ///
    /// # Errors
    /// The store's.
    pub async fn fleet(&self, store: &dyn Store) -> Result<Arc<Fleet>, Error> {
        match self.keeps(store).await?.then(|| self.shared.fleet.fleet()).flatten() {
            Some(fleet) => Ok(fleet),
            None => Ok(placement::view(store).await?.snapshot()),
        }
    }

    /// All that placement and high availability are decided from; of VMs neither orders nor reports.
    ///
    /// # Errors
    /// The store's.
    pub async fn view(&self, store: &dyn Store) -> Result<Arc<ClusterView>, Error> {
        match self.keeps(store).await?.then(|| self.shared.fleet.get()).flatten() {
            Some(view) => Ok(view),
            None => Ok(Arc::new(placement::view(store).await?)),
        }
    }

    /// Has it kept them, up to what was newest in the store when this was called? They are read for the first who asks.
    async fn keeps(&self, store: &dyn Store) -> Result<bool, Error> {
        let fresh = self.fresh(store).await?;
        if fresh && !self.shared.fleet.is_kept() {
            self.shared.fleet.ask().await;
            return self.fresh(store).await;
        }
        Ok(fresh)
    }

    /// Names of a project's VMs.
    ///
    /// # Errors
    /// The store's.
    pub async fn names(&self, store: &dyn Store, project: &Name) -> Result<HashMap<VmId, Name>, Error> {
        if !self.fresh(store).await? {
            let all = crate::app::list_readable::<VmRecord>(store, &keys::vms(project)).await?;
            return Ok(all.into_iter().map(|vm| (vm.value.id, vm.value.spec.name)).collect());
        }
        let rows = self.shared.lock();
        let own = rows.by_id.iter().filter(|(_, row)| row.project == *project);
        Ok(own.map(|(id, row)| (*id, row.name.clone())).collect())
    }

    /// One VM by name.
    ///
    /// # Errors
    /// `NotFound`, or the store's.
    pub async fn vm(&self, store: &dyn Store, project: &Name, name: &Name) -> Result<Arc<Ready>, Error> {
        let absent = || Error::not_found("vm", name);
        if !self.fresh(store).await? {
            let id = crate::app::uid_of(store, "vm", project, name).await?;
            return vm_parts::parts(store, project, id).await?.map(render).ok_or_else(absent);
        }
        let (id, kept) = {
            let rows = self.shared.lock();
            let id = *rows.by_name.get(&(project.clone(), name.clone())).ok_or_else(absent)?;
            (id, rows.by_id.get(&id).and_then(|row| row.ready.clone()))
        };
        match kept {
            Some(ready) => Ok(ready),
            None => self.make(store, project, id).await?.ok_or_else(absent),
        }
    }

    async fn make(&self, store: &dyn Store, project: &Name, id: VmId) -> Result<Option<Arc<Ready>>, Error> {
        let changes = self.shared.lock().by_id.get(&id).map(|row| row.changes);
        let Some(parts) = vm_parts::parts(store, project, id).await? else { return Ok(None) };
        let ready = render(parts);
        self.shared.lock().keep(id, changes, &ready);
        Ok(Some(ready))
    }

    /// The wanted VMs of a project in order of name, as the body of an answer.
    ///
    /// # Errors
    /// The store's.
    pub async fn page(&self, store: &dyn Store, project: &Name, wanted: &Wanted<'_>) -> Result<Bytes, Error> {
        let from_begin = wanted.labels.is_empty() && wanted.after.is_none();
        if from_begin && self.fresh(store).await? {
            let now = *self.shared.at.borrow();
            let fits =
                |page: &&Page| page.revision == now && page.limit == wanted.limit && page.project == *project && page.sight == wanted.sight;
            if let Some(page) = self.shared.page().as_ref().filter(fits) {
                return Ok(page.json.clone());
            }
        }
        let rendered = self.list(store, project, wanted).await?;
        let json = rendered.body(store, wanted);
        if from_begin {
            *self.shared.page() = Some(Page {
                project: project.clone(),
                sight: wanted.sight,
                limit: wanted.limit,
                revision: rendered.revision,
                json: json.clone(),
            });
        }
        Ok(json)
    }

    /// The wanted VMs of a project in order of name.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self, store: &dyn Store, project: &Name, wanted: &Wanted<'_>) -> Result<Rendered, Error> {
        if !self.fresh(store).await? {
            return from_store(store, project, wanted).await;
        }
        let revision = *self.shared.at.borrow();
        let (ids, more) = self.shared.lock().select(project, wanted);
        let missing = ids.iter().filter(|(_, ready)| ready.is_none()).count();
        if missing > SINGLE_ROWS_MAX {
            self.make_all(store, project).await?;
        }
        let mut rows = Vec::with_capacity(ids.len());
        for (id, ready) in ids {
            let made = || self.shared.lock().by_id.get(&id).and_then(|row| row.ready.clone());
            rows.extend(match ready.or_else(made) {
                Some(ready) => Some(ready),
                // Gone meanwhile: not listed.
                None => self.make(store, project, id).await?,
            });
        }
        Ok(Rendered { rows, more, revision })
    }

    async fn make_all(&self, store: &dyn Store, project: &Name) -> Result<(), Error> {
        let marks: HashMap<VmId, u64> = self.shared.lock().by_id.iter().map(|(id, row)| (*id, row.changes)).collect();
        let (_, all) = vm_parts::all(store, project).await?;
        for parts in all {
            let id = parts.record.id;
            let ready = render(parts);
            self.shared.lock().keep(id, marks.get(&id).copied(), &ready);
        }
        Ok(())
    }
}

impl Rendered {
    fn body(&self, store: &dyn Store, wanted: &Wanted<'_>) -> Bytes {
        let size: usize = self.rows.iter().map(|row| row.json(wanted.sight).len() + 1).sum();
        let mut out = Vec::with_capacity(size + 128);
        out.extend_from_slice(b"{\"items\":[");
        for (n, row) in self.rows.iter().enumerate() {
            out.extend_from_slice(if n == 0 { b"" } else { b"," });
            out.extend_from_slice(row.json(wanted.sight));
        }
        let begun = wanted.after.as_ref().map_or(self.revision, |place| place.begun);
        let next = self.rows.last().filter(|_| self.more).map(|row| Place::token(&store.id(), begun, row.name.as_str()));
        let next = serde_json::to_string(&next).expect("a token is plain data");
        out.extend_from_slice(format!("],\"next\":{next},\"revision\":{begun}}}").as_bytes());
        out.into()
    }
}

fn render(parts: VmParts) -> Arc<Ready> {
    let view = view::vm(parts);
    let json = Bytes::from(serde_json::to_vec(&view).expect("views are plain data"));
    let veiled = view::veiled(&view).map(|view| Bytes::from(serde_json::to_vec(&view).expect("views are plain data")));
    Arc::new(Ready { name: view.spec.name, json, veiled, phase: view.status.phase, spec_revision: view.spec_revision })
}

async fn from_store(store: &dyn Store, project: &Name, wanted: &Wanted<'_>) -> Result<Rendered, Error> {
    let (revision, mut all) = vm_parts::all(store, project).await?;
    all.retain(|parts| fits(&parts.record.spec.name, &parts.record.spec.labels, wanted));
    all.sort_by(|a, b| a.record.spec.name.cmp(&b.record.spec.name));
    let more = all.len() > wanted.limit;
    all.truncate(wanted.limit);
    Ok(Rendered { rows: all.into_iter().map(render).collect(), more, revision })
}

fn fits(name: &Name, labels: &BTreeMap<String, String>, wanted: &Wanted<'_>) -> bool {
    wanted.after.as_ref().is_none_or(|after| name.as_str() > after.name.as_str()) && has_labels(labels, &wanted.labels)
}

pub fn has_labels(labels: &BTreeMap<String, String>, wanted: &[(&str, &str)]) -> bool {
    wanted.iter().all(|(key, value)| labels.get(*key).is_some_and(|have| have == value))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().expect("no panic holds this lock")
    }

    fn page(&self) -> MutexGuard<'_, Option<Page>> {
        self.page.lock().expect("no panic holds this lock")
    }

    async fn follow(self: Arc<Self>, store: Arc<dyn Store>) {
        loop {
            if let Err(error) = self.follow_once(store.as_ref()).await {
                tracing::debug!(%error, "the cache starts over from a listing");
            }
            self.feed.end();
            self.fleet.forget();
            self.at.send_replace(Revision(0));
            tokio::time::sleep(REST).await;
        }
    }

    async fn follow_once(&self, store: &dyn Store) -> Result<(), StoreError> {
        let listing = store.list(keys::ALL_VMS).await?;
        let mut watch = store.watch("", listing.revision.next()).await?;
        self.begin(&listing);
        loop {
            let batch = tokio::select! {
                batch = watch.recv() => batch,
                () = self.fleet.wanted() => {
                    self.fleet.begin(store).await;
                    continue;
                }
            };
            let Some(batch) = batch else { return Ok(()) };
            let mut batch = batch?;
            loop {
                let revision = batch.revision;
                self.lock().apply(&batch);
                self.fleet.take(&batch);
                self.feed.publish(batch);
                match watch.try_recv() {
                    Ok(next) => batch = next?,
                    Err(_) => {
                        self.at.send_replace(revision);
                        break;
                    }
                }
            }
        }
    }

    fn begin(&self, listing: &Listing) {
        {
            let mut rows = self.lock();
            *rows = Rows::default();
            for kv in &listing.items {
                rows.put(kv);
            }
        }
        self.feed.begin(listing.revision);
        self.at.send_replace(listing.revision);
    }
}

impl Rows {
    fn apply(&mut self, batch: &WatchBatch) {
        for change in &batch.changes {
            match change {
                Change::Put(kv) if kv.key.starts_with(keys::ALL_VMS) => self.put(kv),
                Change::Put(kv) => self.mark(&kv.key),
                Change::Deleted { key, .. } if key.starts_with(keys::ALL_VMS) => self.remove(key),
                Change::Deleted { key, .. } => self.mark(key),
            }
        }
    }

    fn put(&mut self, kv: &KeyValue) {
        let record: VmRecord = match typed::decode(kv) {
            Ok(record) => record,
            Err(error) => return tracing::error!(key = kv.key, %error, "a VM does not parse and is not listed"),
        };
        let VmRecord { id, project, spec, .. } = record;
        let changes = self.remove_row(id).map_or(0, |old| old.changes + 1);
        self.by_name.insert((project.clone(), spec.name.clone()), id);
        self.by_id.insert(id, Row { project, name: spec.name, labels: spec.labels, changes, ready: None });
    }

    fn remove(&mut self, key: &str) {
        if let Some(id) = vm_of(key) {
            self.remove_row(id);
        }
    }

    fn remove_row(&mut self, id: VmId) -> Option<Row> {
        let row = self.by_id.remove(&id)?;
        let name = (row.project.clone(), row.name.clone());
        // The name may be another VM's by now, in the same transaction.
        if self.by_name.get(&name) == Some(&id) {
            self.by_name.remove(&name);
        }
        Some(row)
    }

    fn mark(&mut self, key: &str) {
        if key.starts_with(keys::ALL_STATES) {
            // Seldom, and what is shown of each VM on that node is another.
            return self.by_id.values_mut().for_each(|row| {
                row.changes += 1;
                row.ready = None;
            });
        }
        if let Some(row) = vm_of(key).and_then(|id| self.by_id.get_mut(&id)) {
            row.changes += 1;
            row.ready = None;
        }
    }

    fn keep(&mut self, id: VmId, changes: Option<u64>, ready: &Arc<Ready>) {
        if let Some(row) = self.by_id.get_mut(&id).filter(|row| Some(row.changes) == changes) {
            row.ready = Some(ready.clone());
        }
    }

    /// The wanted rows in order, and whether more follow.
    fn select(&self, project: &Name, wanted: &Wanted<'_>) -> (Vec<Chosen>, bool) {
        let rows = self.by_name.range((project.clone(), Name::known("0"))..).take_while(|((p, _), _)| p == project);
        let mut chosen = rows
            .filter_map(|(_, id)| Some((*id, self.by_id.get(id)?)))
            .filter(|(_, row)| fits(&row.name, &row.labels, wanted))
            .map(|(id, row)| (id, row.ready.clone()));
        let ids: Vec<_> = chosen.by_ref().take(wanted.limit).collect();
        (ids, chosen.next().is_some())
    }
}

/// The VM that a key is about, as far as a view shows it.
pub fn vm_of(key: &str) -> Option<VmId> {
    let mut parts = key.split('/');
    let id = match (parts.next()?, parts.next()?, parts.next(), parts.next()) {
        ("vm", _, Some(id), None) | ("power" | "owner" | "choices", id, None, None) => id,
        ("n", _, Some("seen"), Some(id)) => id,
        _ => return None,
    };
    id.parse().ok().filter(|_| parts.next().is_none())
}
