//! Event streams under way, counted by caller: each holds a queue and computes what it tells, so nobody has any number of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use vmkeep_types::record::Via;

/// Of one caller at once: every list of a console with many windows, and a few scripts beside it.
pub const STREAMS_PER_CALLER_MAX: usize = 32;

#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<HashMap<Via, usize>>>);

/// One stream's place; given back when it is dropped.
pub struct Seat {
    of: Streams,
    via: Via,
}

impl Streams {
    /// None: the caller has as many as it may.
    pub fn take(&self, via: &Via) -> Option<Seat> {
        let mut counts = self.0.lock().expect("no panic holds this lock");
        let count = counts.entry(via.clone()).or_default();
        (*count < STREAMS_PER_CALLER_MAX).then(|| {
            *count += 1;
            Seat { of: self.clone(), via: via.clone() }
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.of.0.lock().expect("no panic holds this lock");
        if let Some(count) = counts.get_mut(&self.via) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.via);
            }
        }
    }
}
