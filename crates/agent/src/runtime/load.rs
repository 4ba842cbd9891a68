//! How busy this host and its VMs are, told once a minute at `n/NODE/load`.
//!
//! ```text
//!  /proc/stat, /proc/meminfo, /proc/pressure, libvirt's counters ──every 10 s──► Meter (means over 1 and 5 minutes) ──► NodeLoad
//! ```
//! For proposals of moves only, so coarse: means that hardly moved are not written again before [`TELL_ANYWAY`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use vmkeep_store::{StoreError, Txn, keys, typed};
use vmkeep_types::ids::{Epoch, VmId};
use vmkeep_types::node::{Averages, NodeLoad, VmLoad};
use vmkeep_types::units::ByteCount;

use super::Node;
use crate::host::facts::meminfo_field;

const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Looks of one minute and of five.
const MINUTE: usize = 6;
const FIVE_MINUTES: usize = 30;
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Readers take older words for stale after five minutes.
const TELL_ANYWAY: Duration = Duration::from_secs(240);
/// 1/1000; a change of less is not worth a write.
const WORTH_TELLING: u32 = 30;

/// Looks and tells until shutdown. A host or a store that does not answer is asked again at the next look.
pub async fn run(node: Arc<Node>, shutdown: CancellationToken) {
    let mut meter = Meter::default();
    let mut told: Option<(Instant, NodeLoad)> = None;
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = Instant::now() + TELL_EVERY;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        meter.take(look(&node).await);
        if Instant::now() < next {
            if node.offers_have_changed().await {
                describe(&node).await;
            }
            continue;
        }
        next = Instant::now() + TELL_EVERY;
        describe(&node).await;
        let load = meter.load(node.config.cpus, jiff::Timestamp::now());
        let same = |(at, old): &(Instant, NodeLoad)| at.elapsed() < TELL_ANYWAY && !differs(old, &load);
        if told.as_ref().is_some_and(same) {
            continue;
        }
        match tell(&node, &load).await {
            Ok(()) => told = Some((Instant::now(), load)),
            Err(error) => tracing::debug!(%error, "the load is not told now"),
        }
    }
}

/// libvirt may have been slow to tell its CPUs. Before the node joined it has nothing to describe.
async fn describe(node: &Node) {
    if node.epoch() == Epoch(0) {
        return;
    }
    let _ = node.profile().await;
    if let Err(error) = node.refresh_facts().await {
        tracing::debug!(%error, "the node is not described now");
    }
}

async fn tell(node: &Node, load: &NodeLoad) -> Result<(), StoreError> {
    let Some(life) = node.this_life().await? else { return Ok(()) };
    node.store.txn(Txn::default().when(life).then(typed::put(keys::load(&node.name), load))).await.map(drop)
}

/// What one look found.
#[derive(Clone, Debug, Default)]
struct Sample {
    /// Ticks since boot: all, and those spent idle.
    ticks: Option<(u64, u64)>,
    memory_used: ByteCount,
    /// Over a minute and five: CPU, memory, disks.
    stalls: [Averages; 3],
    /// Nanoseconds of CPU since its start, and resident memory.
    vms: BTreeMap<VmId, (u64, ByteCount)>,
    at: Option<Instant>,
}

async fn look(node: &Node) -> Sample {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let meminfo = read("/proc/meminfo");
    let total = meminfo_field(&meminfo, "MemTotal").unwrap_or_default().bytes();
    let free = meminfo_field(&meminfo, "MemAvailable").unwrap_or_default().bytes();
    let stats = node.hv.stats().await.unwrap_or_default();
    let ours = node.board.vms_of(0);
    let vms = stats.iter().filter_map(|s| Some((s.uuid?, (s.cpu_time_ns, ByteCount::from_bytes(s.rss_kib << 10)))));
    Sample {
        ticks: ticks(&read("/proc/stat")),
        memory_used: ByteCount::from_bytes(total.saturating_sub(free)),
        stalls: ["cpu", "memory", "io"].map(|what| stall(&read(&format!("/proc/pressure/{what}")))),
        vms: vms.filter(|(id, _)| ours.contains(id)).collect(),
        at: Some(Instant::now()),
    }
}

/// The first line of /proc/stat: all ticks, and those idle or waiting for disks.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let numbers: Vec<u64> = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8).filter_map(|n| n.parse().ok()).collect();
    Some((numbers.iter().sum(), numbers.get(3)? + numbers.get(4)?))
}

/// `some avg10=0.00 avg60=1.25 avg300=0.50 total=…`: percent with two decimals. The kernel's longer span is five minutes.
fn stall(pressure: &str) -> Averages {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some ")).unwrap_or_default();
    let permille = |name: &str| {
        let value = some.split_whitespace().find_map(|part| part.strip_prefix(name)).unwrap_or("0");
        let (whole, part) = value.split_once('.').unwrap_or((value, "0"));
        whole.parse::<u32>().unwrap_or_default() * 10 + part.get(..1).and_then(|digit| digit.parse().ok()).unwrap_or(0)
    };
    Averages { minute: permille("avg60="), five_minutes: permille("avg300=") }
}

/// The looks of the last five minutes.
#[derive(Default)]
struct Meter {
    past: VecDeque<Sample>,
}

impl Meter {
    fn take(&mut self, sample: Sample) {
        if self.past.len() > FIVE_MINUTES {
            self.past.pop_front();
        }
        self.past.push_back(sample);
    }

    fn before(&self, looks: usize) -> Option<&Sample> {
        self.past.get(self.past.len().checked_sub(1)?.saturating_sub(looks))
    }

    fn load(&self, cpus: u32, at: jiff::Timestamp) -> NodeLoad {
        let now = self.past.back().cloned().unwrap_or_default();
        let busy = |looks| self.before(looks).map_or(0, |then| busy(then, &now));
        let [cpu_stall, memory_stall, io_stall] = now.stalls;
        let vm = |(id, (ns, memory)): (&VmId, &(u64, ByteCount))| {
            let first = self.past.iter().find_map(|sample| Some((sample.at?, sample.vms.get(id)?.0)));
            let (since, before) =
                first.zip(now.at).map_or((0, *ns), |((then, before), now)| (now.duration_since(then).as_millis(), before));
            let permille = u128::from(ns.saturating_sub(before)) / since.max(1) / 1000;
            (*id, VmLoad { cpu: u32::try_from(permille).unwrap_or(u32::MAX).min(cpus.saturating_mul(1000)), memory: *memory })
        };
        NodeLoad {
            at,
            cpu: Averages { minute: busy(MINUTE), five_minutes: busy(FIVE_MINUTES) },
            memory_used: now.memory_used,
            cpu_stall,
            memory_stall,
            io_stall,
            vms: now.vms.iter().map(vm).collect(),
        }
    }
}

/// 1/1000 of all CPUs between two looks.
fn busy(then: &Sample, now: &Sample) -> u32 {
    let (Some((all_then, idle_then)), Some((all, idle))) = (then.ticks, now.ticks) else { return 0 };
    let all = all.saturating_sub(all_then);
    let idle = idle.saturating_sub(idle_then).min(all);
    ((all - idle) * 1000).checked_div(all).map_or(0, |busy| u32::try_from(busy).unwrap_or(1000))
}

fn differs(old: &NodeLoad, new: &NodeLoad) -> bool {
    let far = |a: u32, b: u32| a.abs_diff(b) > WORTH_TELLING;
    let apart = |a: Averages, b: Averages| far(a.minute, b.minute) || far(a.five_minutes, b.five_minutes);
    let memory = old.memory_used.bytes().abs_diff(new.memory_used.bytes()) > new.memory_used.bytes() / 32;
    let vms = old.vms.len() != new.vms.len()
        || new.vms.iter().any(|(id, vm)| old.vms.get(id).is_none_or(|before| vm.cpu.abs_diff(before.cpu) > 100));
    memory || vms || apart(old.cpu, new.cpu) || apart(old.cpu_stall, new.cpu_stall) || apart(old.memory_stall, new.memory_stall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        assert_eq!(ticks("cpu  10 0 20 60 10 0 0 0 5 0\ncpu0 1\n"), Some((100, 70)));
        assert_eq!(ticks("intr 5"), None);
        let psi = "some avg10=0.00 avg60=1.25 avg300=45.50 total=5\nfull avg10=9.00 avg60=9.00 avg300=9.00 total=1\n";
        assert_eq!(stall(psi), Averages { minute: 12, five_minutes: 455 });
        assert_eq!(stall(""), Averages::default());
    }

    #[tokio::test(start_paused = true)]
    async fn means_are_over_the_looks_there_were() {
        let id = VmId(uuid::Uuid::from_u128(1));
        let mut meter = Meter::default();
        let mut cpu_ns = 0;
        for look in 0..40_u64 {
            let idle = if look < 34 { look * 100 } else { 3400 };
            let vms = BTreeMap::from([(id, (cpu_ns, ByteCount::from_mib(64)))]);
            meter.take(Sample { ticks: Some((look * 100, idle)), vms, at: Some(Instant::now()), ..Sample::default() });
            tokio::time::advance(LOOK_EVERY).await;
            cpu_ns += 5_000_000_000;
        }
        let load = meter.load(4, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(load.cpu, Averages { minute: 833, five_minutes: 166 });
        assert_eq!(load.vms[&id], VmLoad { cpu: 500, memory: ByteCount::from_mib(64) });
        assert!(!differs(&load, &load));
        assert!(differs(&load, &NodeLoad { cpu: Averages::default(), ..load.clone() }));
    }
}
