//! The timers of fencing, and the inequality between them that carries the promise of one copy.
//!
//! ```text
//!  t_send ──► start_window ──► T_kill ──► T_pet ─────► T_pet + W ─────► T_pet + 2W       the node: reset at the latest
//!     │          no new start    SIGKILL    no petting     (a pause between the look at the clock and the write: W more)
//!     └─ ≤ ─► o(r) ── seal_after ──► sealed ───────────────────────────────► o(r) + T_safe    a candidate: dead
//! ```
//! T_safe ≥ (T_pet + 2W)·(1 + ρ) + M, from the values that the node itself wrote before its first start.

use thiserror::Error;
pub use vmkeep_types::ha::TimerProfile as Profile;

/// Most that the raw clocks of two hosts differ in rate, 1/1000 (ρ).
pub const DRIFT_PERMILLE: u64 = 10;

/// More nodes than this do not renew their lives each second: the store has other work.
pub const FAST_NODES_MAX: usize = 64;

/// A canary's or another write's answer that is this late does not come, ms.
pub const ANSWER_MS: u64 = 2_500;

/// From the watchdog's bite to the last write of a guest (M), ms.
pub const RESET_LATENCY_MS: u64 = 2_000;

/// All in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timers {
    /// Between two renewals.
    pub renew_ms: u64,
    /// Silence after which nothing new is placed on a node.
    pub suspect_ms: u64,
    /// After `t_send` of the last renewal: no start afterwards.
    pub start_window_ms: u64,
    /// Silence after which a node is sealed.
    pub seal_ms: u64,
    /// After `t_send`: the VMs' QEMUs are killed.
    pub kill_ms: u64,
    /// After `t_send`: the watchdog is petted no more.
    pub pet_ms: u64,
    pub pet_every_ms: u64,
    /// The watchdog's own time-out, as it was read back.
    pub watchdog_ms: u64,
    /// After a candidate first saw the last renewal: the node has been reset.
    pub safe_ms: u64,
    /// Of the leader's key.
    pub lease_ms: u64,
    /// How often a candidate and an agent look without being called.
    pub tick_ms: u64,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TimerError {
    #[error(
        "T_safe = {safe_ms} ms is too short: a node may live on for (T_pet {pet_ms} + 2 x watchdog {watchdog_ms}) x {}.{} % + {} ms = {needs_ms} ms, \
         and its VMs would run twice; raise T_safe, or lower T_pet or the watchdog's time-out",
        100 + DRIFT_PERMILLE / 10, DRIFT_PERMILLE % 10, RESET_LATENCY_MS
    )]
    SafeTooShort { safe_ms: u64, pet_ms: u64, watchdog_ms: u64, needs_ms: u64 },
    #[error("{first} = {first_ms} ms must be less than {second} = {second_ms} ms: {why}")]
    Order { first: &'static str, first_ms: u64, second: &'static str, second_ms: u64, why: &'static str },
}

/// How long after the last `t_send` a host may still write, as another host measures it, with what it takes to reset.
pub const fn dead_after_ms(pet_ms: u64, watchdog_ms: u64) -> u64 {
    ((pet_ms + 2 * watchdog_ms) * (1000 + DRIFT_PERMILLE)).div_ceil(1000) + RESET_LATENCY_MS
}

impl Timers {
    /// `standard`: an outage of 8 s seals nobody, in any case (L4); `fast`: one of 1.7 s.
    pub const fn of(profile: Profile) -> Self {
        match profile {
            Profile::Standard => Self {
                renew_ms: 3_000,
                suspect_ms: 6_000,
                start_window_ms: 10_000,
                seal_ms: 15_000,
                kill_ms: 15_000,
                pet_ms: 19_000,
                pet_every_ms: 1_000,
                watchdog_ms: 8_000,
                safe_ms: 38_000,
                lease_ms: 9_000,
                tick_ms: 1_000,
            },
            Profile::Fast => Self {
                renew_ms: 1_000,
                suspect_ms: 2_000,
                start_window_ms: 4_000,
                seal_ms: 4_000,
                kill_ms: 5_000,
                pet_ms: 6_000,
                pet_every_ms: 500,
                watchdog_ms: 4_000,
                safe_ms: 17_000,
                lease_ms: 4_000,
                tick_ms: 250,
            },
        }
    }

    /// The longest outage that seals nobody, in any case: the renewal that it just hinders and the attempt that is under way when it ends
    /// are silence too.
    pub const fn rides_out_ms(&self) -> u64 {
        self.seal_ms - 2 * self.renew_ms - self.tick_ms
    }

    /// A renewal that is later than this may have been told and not heard: it is read before anybody is taken for silent.
    pub const fn late_ms(&self) -> u64 {
        self.renew_ms + 2 * self.tick_ms
    }

    /// An outage of the store must be noticed before the silence that it makes is long enough for a seal: a renewal that it hindered and
    /// the next one that it swallowed come late, both by a tick. A canary that is later says that the store does not answer.
    pub const fn canary_late_ms(&self) -> u64 {
        let usual = 2 * self.renew_ms + ANSWER_MS;
        let most = self.seal_ms - 2 * (self.renew_ms + self.tick_ms);
        if usual < most { usual } else { most }
    }

    /// Those that wait longer: both sides compute with them while a node's profile is another one than its cluster's.
    #[must_use]
    pub fn or_longer(self, other: Self) -> Self {
        if other.seal_ms > self.seal_ms { other } else { self }
    }

    /// Checked at start-up, by every program that uses them.
    ///
    /// # Errors
    /// The inequality does not hold, or the deadlines are not in order; in words for an administrator.
    pub fn check(&self) -> Result<(), TimerError> {
        let Self { pet_ms, watchdog_ms, safe_ms, .. } = *self;
        let needs_ms = dead_after_ms(pet_ms, watchdog_ms);
        if safe_ms < needs_ms {
            return Err(TimerError::SafeTooShort { safe_ms, pet_ms, watchdog_ms, needs_ms });
        }
        let twice = 2 * self.renew_ms;
        let ordered = |first, first_ms, second, second_ms, why| {
            if first_ms < second_ms { Ok(()) } else { Err(TimerError::Order { first, first_ms, second, second_ms, why }) }
        };
        ordered("two renewals", twice, "start_window", self.start_window_ms, "one lost renewal must not hinder starts")?;
        ordered("two renewals", twice, "seal", self.seal_ms, "one lost renewal is no silence")?;
        ordered("a late renewal", self.late_ms(), "suspicion", self.suspect_ms, "what was not heard is read before a node is suspected")?;
        ordered("start_window", self.start_window_ms, "T_kill", self.kill_ms, "a VM must not start after the kill")?;
        ordered("T_kill", self.kill_ms, "T_pet", self.pet_ms, "the kill must come before the reset")?;
        ordered("two pets", 2 * self.pet_every_ms, "the watchdog's time-out", self.watchdog_ms, "one late pet must not reset the host")
    }

    /// The inequality with its numbers, for `ha status`.
    pub fn inequality(&self) -> String {
        format!(
            "T_safe {} s >= (T_pet {} s + 2 x W {} s) x 1.0{} + {} s = {}.{:02} s",
            self.safe_ms / 1000,
            self.pet_ms / 1000,
            self.watchdog_ms / 1000,
            DRIFT_PERMILLE / 10,
            RESET_LATENCY_MS / 1000,
            dead_after_ms(self.pet_ms, self.watchdog_ms) / 1000,
            dead_after_ms(self.pet_ms, self.watchdog_ms) % 1000 / 10,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn both_profiles_hold() {
        for profile in Profile::ALL {
            assert_eq!(Timers::of(profile).check(), Ok(()), "{}", profile.as_str());
        }
        expect!["T_safe 38 s >= (T_pet 19 s + 2 x W 8 s) x 1.01 + 2 s = 37.35 s"].assert_eq(&Timers::of(Profile::Standard).inequality());
        expect!["T_safe 17 s >= (T_pet 6 s + 2 x W 4 s) x 1.01 + 2 s = 16.14 s"].assert_eq(&Timers::of(Profile::Fast).inequality());
    }

    #[test]
    fn a_slower_watchdog_is_refused() {
        let timers = Timers { watchdog_ms: 9_000, ..Timers::of(Profile::Standard) };
        expect![[
            r#"T_safe = 38000 ms is too short: a node may live on for (T_pet 19000 + 2 x watchdog 9000) x 101.0 % + 2000 ms = 39370 ms, and its VMs would run twice; raise T_safe, or lower T_pet or the watchdog's time-out"#
        ]]
        .assert_eq(&timers.check().expect_err("too slow").to_string());
        let timers = Timers { kill_ms: 20_000, ..Timers::of(Profile::Standard) };
        expect!["T_kill = 20000 ms must be less than T_pet = 19000 ms: the kill must come before the reset"]
            .assert_eq(&timers.check().expect_err("out of order").to_string());
    }
}
