//! Which reboots of a guest are worth an event. libvirt tells each one twice, and a guest without a system to boot tries again every few
//! seconds: told each time, it would push everything else out of what is kept.

use std::collections::VecDeque;

use vmkeep_types::event::Level;

/// What comes sooner is the same reboot, told again.
const TWICE_WITHIN_MS: u64 = 1500;
const WINDOW_MS: u64 = 10 * 60 * 1000;
/// Within the window these are told one by one, and then every tenfold.
const TOLD_EACH: usize = 3;
const KEPT_MAX: usize = 1000;

/// Times in milliseconds of CLOCK_BOOTTIME.
#[derive(Debug, Default)]
pub struct Reboots {
    recent: VecDeque<u64>,
}

impl Reboots {
    /// How many there were within ten minutes, where that is to be told.
    pub fn another(&mut self, now_ms: u64) -> Option<usize> {
        let twice = self.recent.back().is_some_and(|last| now_ms.saturating_sub(*last) < TWICE_WITHIN_MS);
        if twice {
            return None;
        }
        self.recent.retain(|at| now_ms.saturating_sub(*at) < WINDOW_MS);
        if self.recent.len() >= KEPT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(now_ms);
        let count = self.recent.len();
        (count <= TOLD_EACH || matches!(count, 10 | 100)).then_some(count)
    }

    pub fn level(count: usize) -> Level {
        if count <= TOLD_EACH { Level::Info } else { Level::Warn }
    }

    pub fn words(count: usize) -> String {
        if count <= TOLD_EACH { "the guest rebooted".into() } else { format!("the guest rebooted {count} times within 10 minutes") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_a_reboot_and_few_of_a_loop() {
        let mut reboots = Reboots::default();
        // Every 5 s, each told twice.
        let told: Vec<(u64, usize)> =
            (0..100u64).flat_map(|n| [n * 5_000, n * 5_000 + 300]).filter_map(|at| Some((at, reboots.another(at)?))).collect();
        assert_eq!(told, [(0, 1), (5_000, 2), (10_000, 3), (45_000, 10), (495_000, 100)]);
        assert_eq!(reboots.another(2_000_000), Some(1), "long after");
    }
}
