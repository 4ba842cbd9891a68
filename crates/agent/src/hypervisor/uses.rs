//! Consoles that are open: libvirt gives one to a single stream, and frees it only when that stream has been aborted, some time
//! after its reader has left.
//!
//! ```text
//!   opened ──reader leaves──► left ──aborted at libvirt──► closed
//!      │                       └─ whoever opens it now waits for "closed"
//!      └─ whoever opens it now is refused by libvirt: it is in use
//! ```
//! An abort that hangs holds nobody up for longer than [`CLOSING`]: then libvirt is asked all the same, and says what it says.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use vmkeep_types::ids::VmId;

use super::ConsoleStream;

/// An abort is one call to libvirt.
const CLOSING: Duration = Duration::from_secs(10);

/// The consoles that this process has opened.
#[derive(Default)]
pub struct Uses(Mutex<HashMap<VmId, Use>>);

struct Use {
    to_reader: mpsc::WeakSender<Vec<u8>>,
    to_guest: mpsc::WeakSender<Vec<u8>>,
    closed: CancellationToken,
}

impl Use {
    /// Its user has dropped one end, so that it will be closed.
    fn is_left(&self) -> bool {
        self.to_guest.strong_count() == 0 || self.to_reader.upgrade().is_none_or(|reader| reader.is_closed())
    }
}

impl Uses {
    /// Waits until a console that was left is closed.
    pub async fn wait_for_left(&self, vm: VmId) {
        let closed = self.lock().get(&vm).filter(|last| last.is_left()).map(|last| last.closed.clone());
        if let Some(closed) = closed
            && tokio::time::timeout(CLOSING, closed.cancelled()).await.is_err()
        {
            tracing::warn!(%vm, "libvirt has not closed the console that was left before");
        }
    }

    /// Opened just now; `to_reader` is what feeds it. The guard is dropped when it is closed.
    pub fn begin(&self, vm: VmId, ends: &ConsoleStream, to_reader: mpsc::WeakSender<Vec<u8>>) -> DropGuard {
        let closed = CancellationToken::new();
        let mut all = self.lock();
        all.retain(|_, one| !one.closed.is_cancelled());
        all.insert(vm, Use { to_reader, to_guest: ends.to_guest.downgrade(), closed: closed.clone() });
        closed.drop_guard()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, Use>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> VmId {
        VmId(uuid::Uuid::from_u128(1))
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_left_is_waited_for_and_one_in_use_is_not() {
        let uses = Uses::default();
        let (to_reader, from_guest) = mpsc::channel(1);
        let (to_guest, _input) = mpsc::channel(1);
        let ends = ConsoleStream { from_guest, to_guest };
        let closed = uses.begin(vm(), &ends, to_reader.downgrade());
        let began = tokio::time::Instant::now();
        uses.wait_for_left(vm()).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "in use");
        // The hub drops this end first.
        drop(ends.to_guest);
        let closing = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(closed);
        };
        tokio::join!(uses.wait_for_left(vm()), closing);
        assert_eq!(began.elapsed(), Duration::from_secs(2), "until it is closed");
        uses.wait_for_left(vm()).await;
        assert_eq!(began.elapsed(), Duration::from_secs(2), "it is closed");
    }

    #[tokio::test(start_paused = true)]
    async fn an_abort_that_hangs_holds_nobody_up_for_good() {
        let uses = Uses::default();
        let (to_reader, from_guest) = mpsc::channel(1);
        let ends = ConsoleStream { from_guest, to_guest: mpsc::channel(1).0 };
        let _closed = uses.begin(vm(), &ends, to_reader.downgrade());
        drop(ends.from_guest);
        let began = tokio::time::Instant::now();
        uses.wait_for_left(vm()).await;
        assert_eq!(began.elapsed(), CLOSING);
    }
}
