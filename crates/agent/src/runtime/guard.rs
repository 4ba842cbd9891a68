//! What holds the watchdog, as the agent speaks to it: another process (`vmkeep-fenced`), or nothing.
//!
//! ```text
//!  heartbeat ── renewed(t_send), after each renewal that succeeded ──► guard ── pets while that is young ──► watchdog
//!            ── arm(t_send) ─► Opened ─► n/NODE/armed/EPOCH ─► the first claim of a highly available VM
//!            ── sealed() ──► nothing but a reset follows
//! ```
//! A guard that cannot be reached, or dies while it is armed, resets the host: it is told of renewals only, and never that all is
//! well. No call blocks the heartbeat for long: the guard answers at once or has failed.

use async_trait::async_trait;
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::timers::{Profile, Timers};
use vmkeep_types::ha::WatchdogKind;

/// A watchdog that is open, with the values that were read back from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub kind: WatchdogKind,
    /// Silence after which it is petted no more, ms.
    pub pet_ms: u64,
    /// Its own time-out as it was read back, ms.
    pub watchdog_ms: u64,
}

impl Opened {
    /// The profile whose timers it was armed with.
    pub fn profile(&self) -> Profile {
        let fits = |profile: &Profile| Timers::of(*profile).pet_ms == self.pet_ms;
        Profile::ALL.into_iter().find(fits).unwrap_or_default()
    }
}

/// What the guard holds, by its own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// An open watchdog.
    Open,
    Nothing,
}

/// The watchdog's guard.
#[async_trait]
pub trait Guard: Send + Sync {
    /// Opens the watchdog by these timers. `sent` is when the last renewal that succeeded was sent. Armed already: tells what is open.
    ///
    /// # Errors
    /// There is no usable watchdog, and why, for people. Nothing is armed then, unless the guard did not answer.
    async fn arm(&self, sent: Now, timers: &Timers) -> Result<Opened, String>;

    /// A renewal that was sent then has succeeded. It is told of each, whether it is known to be armed or not: who was cut off while it was
    /// asked to arm does not know.
    ///
    /// # Errors
    /// It did not hear it, and why; armed, it resets this host when that goes on.
    async fn renewed(&self, sent: Now) -> Result<Holds, String>;

    /// A transaction has shown that nothing highly available is owned, or that all of it is disarmed: closes the watchdog.
    ///
    /// # Errors
    /// The watchdog may still be armed; it is asked again.
    async fn disarm(&self) -> Result<(), String>;

    /// This epoch is sealed: kills, and lets the watchdog bite. Nothing leads back.
    async fn sealed(&self);
}

/// A host without a watchdog's guard: its highly available VMs are recovered only when its power is cut or a person says so.
pub struct NoGuard;

#[async_trait]
impl Guard for NoGuard {
    async fn arm(&self, _: Now, _: &Timers) -> Result<Opened, String> {
        Err("vmkeep-fenced is not set up on this host".into())
    }

    async fn renewed(&self, _: Now) -> Result<Holds, String> {
        Ok(Holds::Nothing)
    }

    async fn disarm(&self) -> Result<(), String> {
        Ok(())
    }

    async fn sealed(&self) {}
}

/// A watchdog without a host to reset, which writes down what it is told; for tests.
#[cfg(test)]
pub mod fake {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Default)]
    pub struct FakeGuard {
        told: Mutex<Vec<String>>,
        open: AtomicBool,
        /// The watchdog's time-out is no shorter, ms.
        slow_ms: u64,
    }

    impl FakeGuard {
        /// Of a watchdog whose time-out is no shorter than that, ms.
        pub fn slow(slow_ms: u64) -> Self {
            Self { slow_ms, ..Self::default() }
        }

        pub fn told(&self) -> Vec<String> {
            self.told.lock().expect("no panic holds this lock").clone()
        }

        fn note(&self, what: &str) {
            self.told.lock().expect("no panic holds this lock").push(what.to_owned());
        }
    }

    #[async_trait]
    impl Guard for FakeGuard {
        async fn arm(&self, _: Now, timers: &Timers) -> Result<Opened, String> {
            self.note("arm");
            if timers.watchdog_ms < self.slow_ms {
                return Err(format!("it bites after {} ms at the earliest", self.slow_ms));
            }
            self.open.store(true, Ordering::Relaxed);
            Ok(Opened { kind: WatchdogKind::Hardware, pet_ms: timers.pet_ms, watchdog_ms: timers.watchdog_ms })
        }

        async fn renewed(&self, _: Now) -> Result<Holds, String> {
            if !self.open.load(Ordering::Relaxed) {
                return Ok(Holds::Nothing);
            }
            self.note("renewed");
            Ok(Holds::Open)
        }

        async fn disarm(&self) -> Result<(), String> {
            self.note("disarm");
            self.open.store(false, Ordering::Relaxed);
            Ok(())
        }

        async fn sealed(&self) {
            self.note("sealed");
        }
    }
}
