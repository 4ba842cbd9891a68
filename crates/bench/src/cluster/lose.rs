//! Hosts lose their power at once, as those of a rack do: until all of their VMs run again, elsewhere, by the proof of time alone.
//!
//! ```text
//!  pull N plugs ── T_safe after their last renewals ──► proved, placed by priority, a few at a time ──► each VM seen at another hypervisor
//! ```

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use vmkeep_types::ids::VmId;

use super::agents::Agents;
use crate::report::{Report, Samples, Wanted};

/// Wanted from the loss of one node, and of more at once, until all of their VMs run.
const ONE_SECONDS_MAX: f64 = 60.0;
const MORE_SECONDS_MAX: f64 = 120.0;
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// While VMs come up.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Without one more VM.
const PATIENCE: Duration = Duration::from_secs(180);

/// The first `count` hosts, which the placement has filled like all others.
pub async fn lose(agents: &Agents, count: usize, report: &mut Report) -> anyhow::Result<()> {
    let mut missing: BTreeSet<VmId> = agents.lose(count);
    anyhow::ensure!(!missing.is_empty(), "the hosts that are lost ran nothing");
    let (all, begin) = (missing.len(), Instant::now());
    let (mut since, mut told, mut after) = (begin, begin, Vec::new());
    eprintln!("{count} nodes with {all} VMs are lost");
    while !missing.is_empty() {
        tokio::time::sleep(LOOK_EVERY).await;
        for id in agents.found(&missing) {
            missing.remove(&id);
            since = Instant::now();
            after.push(begin.elapsed());
        }
        if told.elapsed() >= TOLD_EVERY {
            told = Instant::now();
            eprintln!("{} of {all} run again after {:.0} s", after.len(), begin.elapsed().as_secs_f64());
        }
        anyhow::ensure!(since.elapsed() < PATIENCE, "{} of {all} VMs of lost nodes do not run again", missing.len());
    }
    let most = if count == 1 { ONE_SECONDS_MAX } else { MORE_SECONDS_MAX };
    let words = format!("{count} nodes lost: all of their {all} VMs run again after");
    report.number(words, begin.elapsed().as_secs_f64(), "s", Some(Wanted::AtMost(most)));
    report.samples("… each of them", Samples::new(after, begin.elapsed()));
    Ok(())
}
