//! `top`: VMs by what they use, live; `--once` (or no terminal) prints one table.
//!
//! The server gives counters; rates are the difference of two samples over their own times. A VM that appeared, or started anew
//! between two samples (its counters fell), has no rates yet.

mod screen;

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use vmkeep_api::body::VmStats;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::units::{ByteCount, Seconds};

use super::pages;
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Row};

/// Between the two samples of `--once`.
const ONCE_SPAN: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Print one table and end
    #[arg(long)]
    once: bool,
    /// Time between two looks
    #[arg(long, default_value = "2s", value_name = "TIME")]
    interval: Seconds,
    /// Order
    #[arg(long, value_enum, default_value = "cpu")]
    sort: SortKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SortKey {
    Cpu,
    Memory,
    Disk,
    Net,
    Name,
}

/// What one VM uses; rates are None until there are two samples of the same run.
#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    pub name: Name,
    pub vcpus: u32,
    /// Of one CPU of the host: 200 = two of them.
    pub cpu_percent: Option<f64>,
    pub memory_bytes: u64,
    pub rss_bytes: u64,
    pub disk_read_bytes_per_s: Option<u64>,
    pub disk_write_bytes_per_s: Option<u64>,
    pub net_rx_bytes_per_s: Option<u64>,
    pub net_tx_bytes_per_s: Option<u64>,
}

impl Row for Usage {
    const HEAD: &'static [&'static str] = &["NAME", "CPU%", "VCPUS", "MEMORY", "RSS", "DISK-R/s", "DISK-W/s", "NET-IN/s", "NET-OUT/s"];
    const WIDE: &'static [&'static str] = &[];
    fn name(&self) -> String {
        self.name.to_string()
    }
    fn cells(&self) -> Vec<Cell> {
        let rate = |r: Option<u64>| r.map_or_else(|| "-".into(), human);
        vec![
            self.name().into(),
            self.cpu_percent.map_or_else(|| "-".into(), |p| format!("{p:.1}")).into(),
            self.vcpus.into(),
            human(self.memory_bytes).into(),
            human(self.rss_bytes).into(),
            rate(self.disk_read_bytes_per_s).into(),
            rate(self.disk_write_bytes_per_s).into(),
            rate(self.net_rx_bytes_per_s).into(),
            rate(self.net_tx_bytes_per_s).into(),
        ]
    }
    fn wide(&self) -> Vec<Cell> {
        Vec::new()
    }
}

fn human(bytes: u64) -> String {
    ByteCount::from_bytes(bytes).human()
}

/// The last sample, for the next one's rates.
#[derive(Default)]
pub struct Meter {
    last: BTreeMap<VmId, VmStats>,
}

impl Meter {
    /// Takes a sample and gives what it means after the one before.
    pub fn feed(&mut self, sample: Vec<VmStats>) -> Vec<Usage> {
        let usage = sample.iter().map(|now| usage(now, self.last.get(&now.id))).collect();
        self.last = sample.into_iter().map(|s| (s.id, s)).collect();
        usage
    }
}

fn usage(now: &VmStats, before: Option<&VmStats>) -> Usage {
    let span_ns = |b: &VmStats| now.at.duration_since(b.at).as_nanos();
    let before = before.filter(|b| span_ns(b) > 0 && now.cpu_time_ns >= b.cpu_time_ns);
    let rate = |pick: fn(&VmStats) -> u64| {
        let before = before?;
        let delta = pick(now).checked_sub(pick(before))?;
        u64::try_from(i128::from(delta) * 1_000_000_000 / span_ns(before)).ok()
    };
    Usage {
        name: now.name.clone(),
        vcpus: now.vcpus,
        cpu_percent: rate(|s| s.cpu_time_ns).map(|ns_per_s| ns_per_s as f64 / 1e7),
        memory_bytes: now.memory_bytes,
        rss_bytes: now.rss_bytes,
        disk_read_bytes_per_s: rate(|s| s.disk_read_bytes),
        disk_write_bytes_per_s: rate(|s| s.disk_write_bytes),
        net_rx_bytes_per_s: rate(|s| s.net_rx_bytes),
        net_tx_bytes_per_s: rate(|s| s.net_tx_bytes),
    }
}

/// The largest first, names in alphabetical order.
pub fn sort(rows: &mut [Usage], key: SortKey) {
    let both = |a: Option<u64>, b: Option<u64>| a.unwrap_or(0).saturating_add(b.unwrap_or(0));
    rows.sort_by(|a, b| {
        let by = |pick: &dyn Fn(&Usage) -> u64| pick(b).cmp(&pick(a));
        let first = match key {
            SortKey::Cpu => b.cpu_percent.unwrap_or(0.0).total_cmp(&a.cpu_percent.unwrap_or(0.0)),
            SortKey::Memory => by(&|u| u.rss_bytes),
            SortKey::Disk => by(&|u| both(u.disk_read_bytes_per_s, u.disk_write_bytes_per_s)),
            SortKey::Net => by(&|u| both(u.net_rx_bytes_per_s, u.net_tx_bytes_per_s)),
            SortKey::Name => std::cmp::Ordering::Equal,
        };
        first.then_with(|| a.name.cmp(&b.name))
    });
}

pub async fn sample(ctx: &Ctx) -> Result<Vec<VmStats>, Failure> {
    pages(ctx, "stats.list", None).await
}

pub async fn run(ctx: &Ctx, args: TopArgs) -> Result<(), Failure> {
    let mut meter = Meter::default();
    meter.feed(sample(ctx).await?);
    if args.once || !ctx.printer.out_tty {
        tokio::time::sleep(ONCE_SPAN).await;
        let mut rows = meter.feed(sample(ctx).await?);
        sort(&mut rows, args.sort);
        return ctx.printer.list(&rows);
    }
    screen::run(ctx, meter, args.sort, Duration::from_secs(args.interval.get().max(1))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(name: &'static str, second: i64, cpu_ns: u64, rx: u64) -> VmStats {
        VmStats {
            id: VmId(uuid::Uuid::from_u128(name.len() as u128)),
            name: Name::known(name),
            at: jiff::Timestamp::from_second(second).expect("in range"),
            cpu_time_ns: cpu_ns,
            vcpus: 2,
            memory_bytes: 1 << 30,
            rss_bytes: 1 << 29,
            disk_read_bytes: 0,
            disk_write_bytes: 0,
            disk_read_ops: 0,
            disk_write_ops: 0,
            net_rx_bytes: rx,
            net_tx_bytes: 0,
        }
    }

    #[test]
    fn rates_are_differences_over_their_own_time() {
        let mut meter = Meter::default();
        meter.feed(vec![stats("a", 10, 1_000_000_000, 100), stats("bb", 10, 5_000_000_000, 0)]);
        // `bb` was started anew: its counters fell.
        let mut rows = meter.feed(vec![stats("a", 12, 4_000_000_000, 4196), stats("bb", 12, 1_000, 0)]);
        sort(&mut rows, SortKey::Name);
        assert_eq!(rows[0].cpu_percent, Some(150.0));
        assert_eq!(rows[0].net_rx_bytes_per_s, Some(2048));
        assert_eq!(rows[1].cpu_percent, None);
        sort(&mut rows, SortKey::Net);
        assert_eq!(rows[0].name.as_str(), "a");
    }
}
