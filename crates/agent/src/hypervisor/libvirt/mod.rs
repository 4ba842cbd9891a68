//! The hypervisor that is libvirt's QEMU driver, by its C API.
//!
//! ```text
//!   caller ─► Pool (threads, deadlines) ─► Session ─► 4 connections ─► libvirtd
//!   broadcast ◄─ events ◄─ event loop thread ◄─ 1 connection ◄────────┘
//!                  Link (thread): opens the session, and again when it is lost
//! ```
//! Safe wrappers: `conn`, `domain`, `network`, `stream`, `stats`, `events`; raw pointers never leave them. It fails by
//! [`HvError`]: while libvirt is gone at once with `Disconnected`, past a deadline with `TimedOut`. A mutating call that ends in
//! `Disconnected` or `TimedOut` may have happened.

mod conn;
mod domain;
mod error;
mod events;
mod migrate;
mod network;
mod pool;
mod session;
mod stats;
mod stream;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, broadcast};
use vmkeep_store::crash;
use vmkeep_types::ids::VmId;

use self::conn::Conn;
use self::domain::{Act, Domain};
use self::pool::Pool;
use self::session::{Link, Session};
use super::uses::Uses;
use super::{
    ConsoleStream, DomainBrief, DomainStats, GuestAddress, HostChange, HvError, HvEvent, HvVersions, Hypervisor, Lease, LiveChange,
    MigrateTo, MigrationStats, Screenshot, UndefineKeep, Words, XmlKind, xml,
};

/// A look at libvirt; also long listings.
const QUERY: Duration = Duration::from_secs(10);
/// A change of a description or of a running domain.
const CHANGE: Duration = Duration::from_secs(30);
/// A start: libvirt waits up to 30 s for QEMU's monitor alone.
const START: Duration = Duration::from_secs(60);
/// A kill: libvirt gives QEMU 15 s after SIGTERM and 15 s after SIGKILL.
const KILL: Duration = Duration::from_secs(45);
/// Asking a guest to go down: when the agent takes it there is no answer until the guest is down, so silence means yes.
const ASK: Duration = Duration::from_secs(2);
/// Guest-agent calls at once: guests may be slow, and their callers must not use up the threads.
const AGENT_CALLS_MAX: usize = 8;
/// What an agent call takes beyond the guest's own time.
const AGENT_SLACK: Duration = Duration::from_secs(10);
/// A migration: large disks over a slow line take hours, and the caller calls it off by its own clock.
const MIGRATE: Duration = Duration::from_secs(7 * 86_400);
/// Events that a slow receiver may lag behind; a boot storm of 1000 VMs makes about four each.
const EVENTS_MAX: usize = 8192;

pub struct LibvirtHypervisor {
    link: Link,
    pool: Arc<Pool>,
    events: broadcast::Sender<HvEvent>,
    agent_calls: Semaphore,
    consoles: Uses,
}

impl LibvirtHypervisor {
    /// Returns at once and connects in the background, now and after each loss; calls fail with `Disconnected` until then. Fails
    /// only when the URI cannot be one or no thread can be started.
    pub fn connect(uri: &str) -> Result<Arc<Self>, HvError> {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let link = Link::start(conn::c_string(uri)?, events.clone())?;
        let agent_calls = Semaphore::new(AGENT_CALLS_MAX);
        Ok(Arc::new(Self { link, pool: Arc::new(Pool::new()), events, agent_calls, consoles: Uses::default() }))
    }

    /// Waits until libvirt answers; the error is the reason why it does not.
    pub async fn wait_connected(&self, within: Duration) -> Result<(), HvError> {
        let mut events = self.events();
        let deadline = tokio::time::Instant::now() + within;
        loop {
            if self.link.session().is_ok() {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, events.recv()).await.is_err() {
                return self.link.session().map(|_| ());
            }
        }
    }

    async fn with_session<T: Send + 'static>(
        &self,
        call: &'static str,
        within: Duration,
        work: impl FnOnce(&Arc<Conn>) -> Result<T, HvError> + Send + 'static,
    ) -> Result<T, HvError> {
        let session: Arc<Session> = self.link.session()?;
        self.pool.run(call, within, move || session.with(work)).await
    }

    async fn query<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl FnOnce(&Arc<Conn>) -> Result<T, HvError> + Send + 'static,
    ) -> Result<T, HvError> {
        self.with_session(call, QUERY, work).await
    }

    /// A call that changes something: a crash of ours just before and just after it must do no harm.
    async fn mutate<T: Send + 'static>(
        &self,
        call: &'static str,
        within: Duration,
        work: impl FnOnce(&Arc<Conn>) -> Result<T, HvError> + Send + 'static,
    ) -> Result<T, HvError> {
        self.with_session(call, within, move |conn| {
            crash::point(&format!("hv.{call}.before"));
            let result = work(conn);
            crash::point(&format!("hv.{call}.after"));
            result
        })
        .await
    }

    async fn on_domain(
        &self,
        call: &'static str,
        within: Duration,
        uuid: VmId,
        work: impl FnOnce(&Domain<'_>) -> Result<(), HvError> + Send + 'static,
    ) -> Result<(), HvError> {
        self.mutate(call, within, move |conn| work(&domain::find(conn, uuid)?)).await
    }

    async fn act(&self, call: &'static str, within: Duration, uuid: VmId, act: Act) -> Result<(), HvError> {
        self.on_domain(call, within, uuid, move |domain| domain.act(act)).await
    }

    /// Asks the guest; see [`ASK`].
    async fn ask(&self, call: &'static str, uuid: VmId, act: Act) -> Result<(), HvError> {
        match self.act(call, ASK, uuid, act).await {
            Err(HvError::TimedOut { .. }) => Ok(()),
            answer => answer,
        }
    }
}

#[async_trait]
impl Hypervisor for LibvirtHypervisor {
    async fn versions(&self) -> Result<HvVersions, HvError> {
        self.query("versions", |conn| conn.versions()).await
    }

    async fn domain_capabilities(&self, domain_type: &str, machine: &str) -> Result<String, HvError> {
        let (domain_type, machine) = (domain_type.to_owned(), machine.to_owned());
        // The first one on a host probes QEMU.
        self.with_session("domain_capabilities", CHANGE, move |conn| conn.domain_capabilities(&domain_type, &machine)).await
    }

    async fn capabilities(&self) -> Result<String, HvError> {
        // The first one on a host probes QEMU.
        self.with_session("capabilities", CHANGE, |conn| conn.capabilities()).await
    }

    async fn expand_cpu(&self, domain_type: &str, cpu: &str) -> Result<String, HvError> {
        let (domain_type, cpu) = (domain_type.to_owned(), cpu.to_owned());
        self.query("expand_cpu", move |conn| conn.expand_cpu(&domain_type, &cpu)).await
    }

    async fn list(&self) -> Result<Vec<DomainBrief>, HvError> {
        self.query("list", |conn| domain::list(conn)).await
    }

    async fn find(&self, uuid: VmId) -> Result<DomainBrief, HvError> {
        self.query("find", move |conn| domain::find(conn, uuid)?.full_brief()).await
    }

    async fn named(&self, name: &str) -> Result<Option<DomainBrief>, HvError> {
        let name = name.to_owned();
        self.query("named", move |conn| domain::named(conn, &name)).await
    }

    async fn xml(&self, uuid: VmId, kind: XmlKind) -> Result<String, HvError> {
        self.query("xml", move |conn| domain::find(conn, uuid)?.xml(kind)).await
    }

    async fn define(&self, xml: &str, words: Words) -> Result<String, HvError> {
        let xml = xml.to_owned();
        self.mutate("define", CHANGE, move |conn| domain::define(conn, &xml, words)).await
    }

    async fn undefine(&self, uuid: VmId, keep: UndefineKeep) -> Result<(), HvError> {
        self.on_domain("undefine", CHANGE, uuid, move |domain| domain.undefine(keep)).await
    }

    async fn rename(&self, uuid: VmId, name: &str) -> Result<(), HvError> {
        let name = name.to_owned();
        self.on_domain("rename", CHANGE, uuid, move |domain| domain.rename(&name)).await
    }

    async fn set_autostart(&self, uuid: VmId, on: bool) -> Result<(), HvError> {
        self.on_domain("set_autostart", CHANGE, uuid, move |domain| domain.set_autostart(on)).await
    }

    async fn set_metadata(&self, uuid: VmId, element: Option<&str>) -> Result<(), HvError> {
        let element = element.map(str::to_owned);
        self.on_domain("set_metadata", CHANGE, uuid, move |domain| domain.set_metadata(element.as_deref())).await
    }

    async fn start(&self, uuid: VmId) -> Result<(), HvError> {
        self.act("start", START, uuid, Act::Start).await
    }

    async fn shutdown(&self, uuid: VmId) -> Result<(), HvError> {
        self.ask("shutdown", uuid, Act::Shutdown).await
    }

    async fn destroy(&self, uuid: VmId) -> Result<(), HvError> {
        self.act("destroy", KILL, uuid, Act::Destroy).await
    }

    async fn reboot(&self, uuid: VmId) -> Result<(), HvError> {
        self.ask("reboot", uuid, Act::Reboot).await
    }

    async fn reset(&self, uuid: VmId) -> Result<(), HvError> {
        self.act("reset", CHANGE, uuid, Act::Reset).await
    }

    async fn suspend(&self, uuid: VmId) -> Result<(), HvError> {
        self.act("suspend", CHANGE, uuid, Act::Suspend).await
    }

    async fn resume(&self, uuid: VmId) -> Result<(), HvError> {
        self.act("resume", CHANGE, uuid, Act::Resume).await
    }

    async fn change(&self, uuid: VmId, change: LiveChange) -> Result<(), HvError> {
        self.on_domain("change", CHANGE, uuid, move |domain| domain.change(&change)).await
    }

    async fn migrate(&self, uuid: VmId, to: &MigrateTo) -> Result<(), HvError> {
        let to = to.clone();
        self.on_domain("migrate", MIGRATE, uuid, move |domain| migrate::send(domain, &to)).await
    }

    async fn migration(&self, uuid: VmId) -> Result<Option<MigrationStats>, HvError> {
        self.query("migration", move |conn| migrate::stats(&domain::find(conn, uuid)?)).await
    }

    async fn abort_migration(&self, uuid: VmId) -> Result<(), HvError> {
        self.on_domain("abort_migration", CHANGE, uuid, migrate::abort).await
    }

    async fn send_keys(&self, uuid: VmId, linux_keycodes: Vec<u32>) -> Result<(), HvError> {
        self.on_domain("send_keys", CHANGE, uuid, move |domain| domain.send_keys(linux_keycodes)).await
    }

    async fn screenshot(&self, uuid: VmId) -> Result<Screenshot, HvError> {
        self.with_session("screenshot", CHANGE, move |conn| stream::screenshot(conn, &domain::find(conn, uuid)?)).await
    }

    async fn agent_command(&self, uuid: VmId, json: String, within: Duration) -> Result<String, HvError> {
        let busy = || HvError::Refused(format!("{AGENT_CALLS_MAX} guest-agent calls are running: try again"));
        let _permit = tokio::time::timeout(within, self.agent_calls.acquire()).await.ok().and_then(Result::ok).ok_or_else(busy)?;
        let work = move |conn: &Arc<Conn>| domain::find(conn, uuid)?.agent_command(&json, within);
        self.with_session("agent_command", within + AGENT_SLACK, work).await
    }

    async fn addresses(&self, uuid: VmId) -> Result<Vec<GuestAddress>, HvError> {
        self.query("addresses", move |conn| domain::find(conn, uuid)?.addresses()).await
    }

    async fn console(&self, uuid: VmId) -> Result<ConsoleStream, HvError> {
        self.consoles.wait_for_left(uuid).await;
        let events = self.events();
        let (console, ends) = self.with_session("console", QUERY, move |conn| stream::console(conn, &domain::find(conn, uuid)?)).await?;
        let closed = self.consoles.begin(uuid, &ends, console.to_reader());
        tokio::spawn(console.run(events, self.pool.clone(), closed));
        Ok(ends)
    }

    async fn vnc_socket(&self, uuid: VmId) -> Result<PathBuf, HvError> {
        let live = self.xml(uuid, XmlKind::Live).await?;
        let path = xml::vnc_socket(&live).ok_or_else(|| HvError::Unsupported("the VM has no VNC display on a socket".to_owned()))?;
        Ok(PathBuf::from(path))
    }

    async fn stats(&self) -> Result<Vec<DomainStats>, HvError> {
        self.query("stats", |conn| stats::all(conn)).await
    }

    async fn ensure_network(&self, name: &str, xml: &str) -> Result<(), HvError> {
        let (name, xml) = (name.to_owned(), xml.to_owned());
        self.mutate("ensure_network", CHANGE, move |conn| network::ensure(conn, &name, &xml)).await
    }

    async fn network_xml(&self, name: &str) -> Result<Option<String>, HvError> {
        let name = name.to_owned();
        self.query("network_xml", move |conn| network::stored_xml(conn, &name)).await
    }

    async fn active_network_xml(&self, name: &str) -> Result<Option<String>, HvError> {
        let name = name.to_owned();
        self.query("active_network_xml", move |conn| network::stored_xml_if_active(conn, &name)).await
    }

    async fn remove_network(&self, name: &str) -> Result<(), HvError> {
        let name = name.to_owned();
        self.mutate("remove_network", CHANGE, move |conn| network::remove(conn, &name)).await
    }

    async fn change_hosts(&self, network: &str, changes: Vec<HostChange>) -> Result<(), HvError> {
        let network = network.to_owned();
        self.mutate("change_hosts", CHANGE, move |conn| network::change_hosts(conn, &network, &changes)).await
    }

    async fn leases(&self, network: &str) -> Result<Vec<Lease>, HvError> {
        let network = network.to_owned();
        self.query("leases", move |conn| network::leases(conn, &network)).await
    }

    fn events(&self) -> broadcast::Receiver<HvEvent> {
        self.events.subscribe()
    }
}
