//! Waiting for something to become true, and saying what was there instead.

use std::time::{Duration, Instant};

/// Looks this often.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Until `look` gives a value; panics with its last words after `within`.
pub fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begin = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(words) if begin.elapsed() > within => panic!("{what}: not within {within:?}; last seen: {words}"),
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}
