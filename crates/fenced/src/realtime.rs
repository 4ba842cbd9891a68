//! What keeps the guard from being late: memory that stays, a turn before everybody else, no allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall};
use vmkeep_core::ha::fenced::wire::Urgency;

/// Deeper than the guard's thread ever goes.
const STACK_BYTES: usize = 256 << 10;

/// Before all usual processes and below the kernel's own threads (50).
const PRIORITY: i32 = 49;

/// The system's allocator; counts what is asked of it after the start.
pub struct Counting;

static STARTED: AtomicBool = AtomicBool::new(false);
static SINCE_START: AtomicU32 = AtomicU32::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if STARTED.load(Ordering::Relaxed) {
            SINCE_START.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; all memory comes from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// From now on allocations are counted.
pub fn started() {
    STARTED.store(true, Ordering::Relaxed);
}

pub fn allocations() -> u32 {
    SINCE_START.load(Ordering::Relaxed)
}

/// Locks all memory, that of later included.
///
/// # Errors
/// The kernel refuses: a guard that may be swapped out is none.
pub fn lock_memory() -> Result<(), Errno> {
    black_box(&mut [0u8; STACK_BYTES]).fill(1);
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)
}

/// Puts the calling thread before all usual ones.
pub fn hurry() -> Urgency {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: pid 0 is the calling thread, and the parameters outlive the call.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if done == 0 { Urgency::Realtime } else { Urgency::Usual }
}
