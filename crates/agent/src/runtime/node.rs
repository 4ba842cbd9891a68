//! What all workers of a node share: identity, store, hypervisor, limits, and the state of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use tokio::sync::{Semaphore, watch};
use vmkeep_core::ha::life::{Before, Boot};
use vmkeep_core::health::SUSPECT_MS;
use vmkeep_store::{Compare, Held, Op, Store, StoreError, Txn, keys, typed};
use vmkeep_types::cluster::Incarnation;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ha::{Armed, Farewell};
use vmkeep_types::host::{EpochRecord, KvmState, NodeFacts, NodeOffers};
use vmkeep_types::ids::{Epoch, Revision, VmId};
use vmkeep_types::migration::MigrationAddress;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkSpec;
use vmkeep_types::pool::{PoolRecord, PoolSpec};
use vmkeep_types::units::ByteCount;

use super::boot::BootBoard;
use super::clock::BootId;
use super::grant::Grants;
use super::guard::{Guard, Opened};
use super::joining;
use super::marks::Marks;
use super::standing::{Life, Standing, Watchdog};
use super::worker::Mailbox;
use crate::domain::HostProfile;
use crate::host::offers;
use crate::http;
use crate::hypervisor::Hypervisor;
use crate::image::{Peers, Reach};
use crate::net::reserve::{self, Wanted};
use crate::net::{self, Ensured, NetAttach};
use crate::pool::{self, Pool};

/// Domains that libvirt is asked to start at once: more only queue inside it.
pub(super) const STARTS_AT_ONCE: u32 = 8;
/// Image work (convert, build) at once: each of them can fill a disk's bandwidth.
const IMAGE_TASKS_AT_ONCE: usize = 2;

/// How a node is set up.
#[derive(Clone)]
pub struct AgentConfig {
    pub name: Name,
    pub store: Arc<dyn Store>,
    pub hypervisor: Arc<dyn Hypervisor>,
    pub boot_id: BootId,
    /// Seeds and other small files that QEMU reads; inside libvirt's image path, so that AppArmor lets it.
    pub seed_dir: PathBuf,
    /// Serial logs.
    pub log_dir: PathBuf,
    /// Marks that the host is going down; on a tmpfs, so that a boot clears it.
    pub run_dir: PathBuf,
    pub cpus: u32,
    pub memory: ByteCount,
    pub kvm: KvmState,
    /// Where other members reach this agent's HTTP: `ADDRESS:PORT`.
    pub address: Option<String>,
    /// How other hosts reach this one's libvirt, if they do.
    pub migration: Option<MigrationAddress>,
    /// None: a host alone.
    pub peers: Option<Arc<dyn Peers>>,
    /// Where image URLs may lead.
    pub reach: Reach,
    /// What would reset this host.
    pub guard: Arc<dyn Guard>,
}

/// Whether what was found out before is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Fresh,
    Kept,
}

type Pools = BTreeMap<Name, (PoolSpec, Arc<dyn Pool>)>;

pub struct Node {
    pub name: Name,
    pub store: Arc<dyn Store>,
    pub hv: Arc<dyn Hypervisor>,
    pub boot_id: String,
    pub config: AgentConfig,
    pub board: BootBoard,
    pub grants: Grants,
    pub starts: Semaphore,
    pub image_tasks: Semaphore,
    /// Start orders at and above this one go down with the host; None = the host is up.
    pub going_down: watch::Sender<Option<u16>>,
    pub standing: Standing,
    epoch: Mutex<Epoch>,
    profile: tokio::sync::Mutex<Option<Arc<HostProfile>>>,
    pools: Mutex<Pools>,
    /// Networks that were ensured since libvirt was connected, by project and name.
    networks: Mutex<BTreeMap<(Name, Name), Ensured>>,
    marks: Marks,
    /// The kernel's part of what VMs may need of this host, when the host was described last.
    told: Mutex<Option<NodeOffers>>,
    mailboxes: Mutex<BTreeMap<VmId, Weak<Mailbox>>>,
    /// Held while an image comes from another node.
    pub fetch_turn: tokio::sync::Mutex<()>,
    /// Held while a network is made.
    network_turn: tokio::sync::Mutex<()>,
}

impl Node {
    /// # Errors
    /// When the boot id cannot be read, or its folder under /run not be written to.
    pub fn new(config: AgentConfig) -> Result<Arc<Self>, Error> {
        let boot_id = config
            .boot_id
            .read()
            .map_err(|e| Error::internal(format!("cannot read the boot id from {}: {e}", config.boot_id.0.display())))?;
        // What a host alone starts is its own affair; members of a cluster start what the cluster gave them.
        let grants = Grants::in_folder(&config.run_dir);
        let begun = grants.begin(config.peers.is_some());
        begun.map_err(|e| Error::internal(format!("cannot write to {}: {e}", config.run_dir.display())))?;
        let down = going_down_mark(&config.run_dir).exists().then_some(0);
        Ok(Arc::new(Self {
            name: config.name.clone(),
            store: config.store.clone(),
            hv: config.hypervisor.clone(),
            boot_id,
            board: BootBoard::default(),
            grants,
            starts: Semaphore::new(STARTS_AT_ONCE as usize),
            image_tasks: Semaphore::new(IMAGE_TASKS_AT_ONCE),
            going_down: watch::Sender::new(down),
            standing: Standing::default(),
            epoch: Mutex::new(Epoch(0)),
            profile: tokio::sync::Mutex::new(None),
            pools: Mutex::new(BTreeMap::new()),
            networks: Mutex::new(BTreeMap::new()),
            marks: Marks::default(),
            told: Mutex::default(),
            mailboxes: Mutex::new(BTreeMap::new()),
            fetch_turn: tokio::sync::Mutex::new(()),
            network_turn: tokio::sync::Mutex::new(()),
            config,
        }))
    }

    pub fn epoch(&self) -> Epoch {
        *self.epoch.lock().expect("no panic holds this lock")
    }

    /// Begins or goes on with this node's epoch: the same boot id keeps it, a new one begins the next. A life that was armed ends in a
    /// proof that others wait for, and so does one that was sealed.
    pub async fn join(&self) -> Result<(), StoreError> {
        let key = keys::epoch(&self.name);
        let old = self.store.get(&key).await?;
        let record: Option<EpochRecord> = old.as_ref().map(typed::decode).transpose()?;
        let before = match &record {
            Some(record) => Some(self.before(record).await?),
            None => None,
        };
        let proof = match (&record, &before) {
            (Some(record), Some(before)) => {
                joining::judge(self, record, old.as_ref().map_or(Revision(0), |kv| kv.modified), before).await?
            }
            _ => None,
        };
        // A restored store begins epochs anew, above all that it may have forgotten.
        let incarnation = typed::get_json::<Incarnation>(self.store.as_ref(), keys::CLUSTER_INCARNATION).await?;
        let first = Epoch::first_of(incarnation.as_ref().map_or(0, |incarnation| incarnation.value.number));
        let goes_on = before.as_ref().is_some_and(|before| before.boot == Boot::This && !before.closed && !before.sealed);
        let epoch = match record {
            Some(record) if goes_on => record.epoch.max(first),
            Some(record) => record.epoch.next().max(first),
            None => first,
        };
        let guard = old.map_or_else(|| Compare::Absent(key.clone()), |kv| Compare::ModifiedAt(key.clone(), kv.modified));
        let same = |at| Compare::ModifiedAt(keys::CLUSTER_INCARNATION.into(), at);
        let incarnation = incarnation.map_or_else(|| Compare::Absent(keys::CLUSTER_INCARNATION.into()), |found| same(found.modified));
        let armed = keys::armed(&self.name, epoch);
        let record = EpochRecord { epoch, boot_id: self.boot_id.clone(), closed: false };
        let mut txn = Txn::default().when(guard).when(incarnation).then(typed::put(key, &record));
        txn = txn.then(Op::Delete(keys::waiting(&self.name)));
        // Of the life before, or called off.
        if self.going_down.borrow().is_none() {
            txn = txn.then(Op::Delete(keys::leaving(&self.name)));
        }
        txn.compare.extend(proof);
        // Others may count on it from the first claim on.
        let known = typed::get_json::<Armed>(self.store.as_ref(), &armed).await?;
        txn = match &known {
            Some(_) => txn.when(Compare::Present(armed)),
            None => txn.when(Compare::Absent(armed.clone())).then(typed::put(armed, &Armed::None)),
        };
        // A store with members takes no others: a node that was taken out stays out.
        if self.store.get(keys::CLUSTER_ID).await?.is_some() {
            txn = txn.when(Compare::Present(keys::member(&self.name)));
        }
        if self.store.txn(txn).await?.held == Held::No {
            let who = &self.name;
            return Err(StoreError::Unavailable(format!("another agent joined as {who}, or {who} is no member any more")));
        }
        *self.epoch.lock().expect("no panic holds this lock") = epoch;
        // The guard lives on beside us and is armed: only a renewal tells it anything.
        self.standing.begin(match known.map(|known| known.value) {
            Some(Armed::Watchdog { pet_ms, watchdog_ms, kind }) => Watchdog::Armed(Opened { kind, pet_ms, watchdog_ms }),
            Some(Armed::Unusable { why }) => Watchdog::Unusable(why),
            Some(Armed::None) | None => Watchdog::Idle,
        });
        self.refresh_facts().await
    }

    /// Is the life before one whose end must be proved before this boot begins its own?
    ///
    /// # Errors
    /// The store's.
    pub async fn awaits_proof(&self) -> Result<bool, StoreError> {
        let Some(record) = typed::get_json::<EpochRecord>(self.store.as_ref(), &keys::epoch(&self.name)).await? else { return Ok(false) };
        let before = self.before(&record.value).await?;
        Ok(self.epoch() < record.value.epoch && !before.closed && (before.armed || before.sealed))
    }

    /// The epoch that stands in the store.
    async fn before(&self, record: &EpochRecord) -> Result<Before, StoreError> {
        let (store, epoch) = (self.store.as_ref(), record.epoch);
        let armed = typed::get_json::<Armed>(store, &keys::armed(&self.name, epoch)).await?;
        Ok(Before {
            boot: if record.boot_id == self.boot_id { Boot::This } else { Boot::Another },
            closed: record.closed,
            sealed: store.get(&keys::fence(&self.name, epoch)).await?.is_some(),
            confirmed: store.get(&keys::confirmed(&self.name, epoch)).await?.is_some(),
            armed: armed.is_some_and(|armed| armed.value.is_watchdog()),
        })
    }

    /// A boot of this host ends the life before it, unless that was another host's: a cloned disk has the same name and
    /// certificate. Its heartbeat would go on.
    pub(super) async fn wait_for_silence(&self) -> Result<(), StoreError> {
        let key = keys::heartbeat(&self.name);
        let Some(before) = self.store.get(&key).await? else { return Ok(()) };
        tracing::info!(node = %self.name, "a new boot: looking whether nobody else runs under this name");
        tokio::time::sleep(std::time::Duration::from_millis(SUSPECT_MS)).await;
        if self.store.get(&key).await?.is_some_and(|now| now.modified != before.modified) {
            return Err(StoreError::Denied(format!("another host runs as {} and lives: its heartbeat goes on", self.name)));
        }
        Ok(())
    }

    /// The compare that holds as long as the node's epoch is the one of this agent; None when it is another already.
    pub async fn this_life(&self) -> Result<Option<Compare>, StoreError> {
        self.this_life_in(self.store.as_ref()).await
    }

    /// The same, asked on another connection to the store.
    pub async fn this_life_in(&self, store: &dyn Store) -> Result<Option<Compare>, StoreError> {
        let key = keys::epoch(&self.name);
        let Some(kv) = store.get(&key).await? else { return Ok(None) };
        let record: EpochRecord = typed::decode(&kv)?;
        let ours = record.epoch == self.epoch() && record.boot_id == self.boot_id && !record.closed;
        Ok(ours.then_some(Compare::ModifiedAt(key, kv.modified)))
    }

    /// Describes the node anew; libvirt's state and versions may have changed.
    pub async fn refresh_facts(&self) -> Result<(), StoreError> {
        let key = keys::facts(&self.name);
        let old = self.store.get(&key).await?.and_then(|kv| typed::decode::<NodeFacts>(&kv).ok());
        let versions = self.hv.versions().await.ok();
        if versions.is_none() {
            *self.profile.lock().await = None;
            self.networks.lock().expect("no panic holds this lock").clear();
        }
        let facts = NodeFacts {
            name: self.name.clone(),
            epoch: self.epoch(),
            boot_id: self.boot_id.clone(),
            cpus: self.config.cpus,
            memory: self.config.memory,
            kvm: self.config.kvm.clone(),
            hypervisor_up: versions.is_some(),
            address: self.config.address.clone(),
            migration: self.config.migration.clone(),
            libvirt_version: versions.as_ref().map(|v| v.libvirt.clone()),
            qemu_version: versions.map(|v| v.qemu),
            vmkeep_version: env!("CARGO_PKG_VERSION").into(),
            offers: NodeOffers { pool_marks: self.marks.look(self).await?, ..self.offers(old.as_ref()) },
        };
        // Not after its life was ended: a node that was taken out would come back as a shadow.
        if let Some(life) = self.this_life().await?.filter(|_| old.as_ref() != Some(&facts)) {
            self.store.txn(Txn::default().when(life).then(typed::put(key, &facts))).await?;
        }
        Ok(())
    }

    /// Bridges and devices come and go, and so do the folders of shared pools: looked at without the store.
    pub async fn offers_have_changed(&self) -> bool {
        let told = self.told.lock().expect("no panic holds this lock").clone();
        self.marks.are_news().await || told.is_some_and(|told| told != offers::of_kernel(Path::new("/sys")))
    }

    /// What VMs may need of this host. libvirt's part is known only after it was asked: until then what was told before stays.
    fn offers(&self, old: Option<&NodeFacts>) -> NodeOffers {
        let mut offers = offers::of_kernel(Path::new("/sys"));
        *self.told.lock().expect("no panic holds this lock") = Some(offers.clone());
        let kept = self.profile.try_lock().ok().and_then(|kept| kept.clone());
        match (kept, old) {
            (Some(profile), _) => offers::cpus(&mut offers, &profile),
            (None, Some(old)) => {
                offers.cpu_models.clone_from(&old.offers.cpu_models);
                offers.machines.clone_from(&old.offers.machines);
                offers.cpu_features.clone_from(&old.offers.cpu_features);
                offers.cpu_model.clone_from(&old.offers.cpu_model);
                offers.cpu_guest_features.clone_from(&old.offers.cpu_guest_features);
                offers.cpu_models_without.clone_from(&old.offers.cpu_models_without);
            }
            (None, None) => {}
        }
        offers
    }

    /// What this host's QEMU can do; asked once per connection, because libvirt probes QEMU for seconds.
    pub async fn profile(&self) -> Result<Arc<HostProfile>, Error> {
        let mut kept = self.profile.lock().await;
        if let Some(profile) = kept.as_ref() {
            return Ok(profile.clone());
        }
        let profile = Arc::new(HostProfile::gather(self.hv.as_ref(), &self.config.kvm).await?);
        *kept = Some(profile.clone());
        Ok(profile)
    }

    /// What a NIC on this network plugs into. `Fresh` asks libvirt, and makes a network anew that somebody stopped or changed.
    pub async fn network(&self, project: &Name, spec: &NetworkSpec, look: Look) -> Result<NetAttach, Error> {
        let of = (project.clone(), spec.name.clone());
        let kept = || self.networks.lock().expect("no panic holds this lock").get(&of).filter(|kept| kept.is_for(spec)).cloned();
        if let Some(kept) = kept()
            && (look == Look::Kept || kept.still_runs(self.hv.as_ref()).await)
        {
            return Ok(kept.attach);
        }
        // Two VMs that come at once would both define it, and libvirt refuses the second.
        let _turn = self.network_turn.lock().await;
        let ensured = net::ensure_kept(self.hv.as_ref(), project, spec).await?;
        let attach = ensured.attach.clone();
        self.networks.lock().expect("no panic holds this lock").insert(of, ensured);
        Ok(attach)
    }

    /// The address that a libvirt network of ours keeps for a NIC; None when it has none for it.
    ///
    /// # Errors
    /// libvirt's words.
    pub async fn reserve(&self, network: &str, wanted: &Wanted) -> Result<Option<Ipv4Addr>, Error> {
        let told = |e| Error::new(Code::Unavailable, format!("network {network}: {e}"));
        // Two NICs that come at once would choose the same, and a network that is described anew keeps what it knew before.
        let _turn = self.network_turn.lock().await;
        let Some(xml) = self.hv.network_xml(network).await.map_err(told)? else { return Ok(None) };
        if let Some(reserved) = reserve::reserve(&xml, wanted, &[])?.filter(|reserved| reserved.changes.is_empty()) {
            return Ok(Some(reserved.address));
        }
        let leases = self.hv.leases(network).await.map_err(told)?;
        let Some(reserved) = reserve::reserve(&xml, wanted, &leases)? else { return Ok(None) };
        self.hv.change_hosts(network, reserved.changes).await.map_err(told)?;
        Ok(Some(reserved.address))
    }

    /// These MACs have no address any more in these networks of libvirt and in all others that are known. What stays behind costs
    /// an address each.
    pub async fn release(&self, mut networks: BTreeSet<String>, macs: BTreeSet<String>) {
        if macs.is_empty() {
            return;
        }
        let kept = |ensured: &Ensured| ensured.attach.libvirt_network.clone();
        networks.extend(self.networks.lock().expect("no panic holds this lock").values().filter_map(kept));
        let macs = macs.into_iter().map(|mac| mac.to_ascii_lowercase()).collect();
        let _turn = self.network_turn.lock().await;
        for network in networks {
            let Ok(Some(xml)) = self.hv.network_xml(&network).await else { continue };
            let Ok(changes) = reserve::release(&xml, &macs) else { continue };
            if changes.is_empty() {
                continue;
            }
            if let Err(error) = self.hv.change_hosts(&network, changes).await {
                tracing::warn!(network, %error, "DHCP keeps the address of a NIC that is no more");
            }
        }
    }

    /// Where its worker is reached.
    pub(super) fn enlist(&self, vm: VmId, mailbox: &Arc<Mailbox>) {
        let mut mailboxes = self.mailboxes.lock().expect("no panic holds this lock");
        mailboxes.retain(|_, mailbox| mailbox.strong_count() > 0);
        mailboxes.insert(vm, Arc::downgrade(mailbox));
    }

    /// Looks at these VMs now; returns when their reports are of now. Those that are not here are passed over.
    pub async fn look_at(&self, vms: &[VmId]) {
        let asked: Vec<_> = {
            let mailboxes = self.mailboxes.lock().expect("no panic holds this lock");
            vms.iter().filter_map(|vm| Some(mailboxes.get(vm)?.upgrade()?.look())).collect()
        };
        for looked in asked {
            // A worker that ends has nothing to say.
            let _ = looked.await;
        }
    }

    /// The driver of a pool; kept while its spec is the same.
    pub fn pool(&self, spec: &PoolSpec) -> Result<Arc<dyn Pool>, Error> {
        let mut pools = self.pools.lock().expect("no panic holds this lock");
        if let Some((kept, pool)) = pools.get(&spec.name)
            && kept == spec
        {
            return Ok(pool.clone());
        }
        let pool = pool::open(spec)?;
        pools.insert(spec.name.clone(), (spec.clone(), pool.clone()));
        Ok(pool)
    }
}

#[async_trait]
impl http::Pools for Handle {
    async fn all(&self) -> Result<BTreeMap<Name, Arc<dyn Pool>>, Error> {
        let unread = |e: StoreError| Error::new(Code::Unavailable, format!("this node cannot read which pools there are: {e}"));
        let records = typed::list_readable::<PoolRecord>(self.0.store.as_ref(), keys::ALL_POOLS).await.map_err(unread)?;
        records.into_iter().map(|record| Ok((record.value.spec.name.clone(), self.0.pool(&record.value.spec)?))).collect()
    }
}

fn going_down_mark(run_dir: &std::path::Path) -> PathBuf {
    run_dir.join("going-down")
}

/// The agent as other parts of the daemon use it.
#[derive(Clone)]
pub struct Handle(pub Arc<Node>);

impl Handle {
    /// Tells the cluster, waits for the VMs that move away, stops all restarts, then shuts VMs down by reverse start order, each
    /// order in parallel, each VM with its own `stop_timeout` before it is killed. Returns when none runs. The next boot starts those
    /// again that are still this host's.
    ///
    /// # Errors
    /// When libvirt does not answer or the mark cannot be written.
    pub async fn shutdown_guests(&self, why: Farewell) -> Result<(), Error> {
        let node = &self.0;
        node.announce(why).await;
        std::fs::create_dir_all(&node.config.run_dir)
            .and_then(|()| std::fs::write(going_down_mark(&node.config.run_dir), b"host shutdown\n"))
            .map_err(|e| Error::internal(format!("cannot write {}: {e}", going_down_mark(&node.config.run_dir).display())))?;
        for order in node.board.orders_descending() {
            node.going_down.send_replace(Some(order));
            self.wait_until_off(order).await?;
        }
        node.going_down.send_replace(Some(0));
        node.say_goodbye().await;
        Ok(())
    }

    /// Takes starts again: a host shutdown that was called off.
    pub async fn resume_guests(&self) {
        let _ = std::fs::remove_file(going_down_mark(&self.0.config.run_dir));
        self.0.going_down.send_replace(None);
        self.0.stay().await;
        if self.0.standing.life() == Life::Closed {
            self.0.standing.set_life(Life::Resumed);
        }
    }

    async fn wait_until_off(&self, order: u16) -> Result<(), Error> {
        const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(300);
        loop {
            let ours = self.0.board.vms_of(order);
            let domains = self.0.hv.list().await.map_err(|e| Error::new(Code::Unavailable, e.to_string()))?;
            if !domains.iter().any(|d| d.state.is_live() && ours.contains(&d.uuid)) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
