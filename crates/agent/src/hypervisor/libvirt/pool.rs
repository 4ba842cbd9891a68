//! Threads for blocking libvirt calls, each call with a deadline.
//!
//! A call that is not through by its deadline leaves its thread to finish and is answered [`HvError::TimedOut`]; one that no
//! thread has taken up by then is dropped unexecuted and answered `Disconnected`. Threads appear with need and leave when idle.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::hypervisor::HvError;

/// libvirtd runs 20 calls at once by default; the rest are spares for calls that outlived their deadline.
pub const THREADS_MAX: usize = 32;
/// Calls that wait for a thread: more means that libvirt hangs, and callers should hear it at once.
const WAITING_MAX: usize = 512;
/// A thread without work leaves after this.
const IDLE: Duration = Duration::from_secs(20);

type Job = Box<dyn FnOnce() + Send>;

pub struct Pool(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Pool {
    pub fn new() -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), work: Condvar::new() }))
    }

    pub async fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        within: Duration,
        work: impl FnOnce() -> Result<T, HvError> + Send + 'static,
    ) -> Result<T, HvError> {
        let (answer, answered) = oneshot::channel();
        let taken = Arc::new(AtomicBool::new(false));
        let mine = taken.clone();
        self.push(Box::new(move || {
            if !mine.swap(true, Ordering::AcqRel) {
                // The caller may be gone: then nobody wants the answer.
                let _ = answer.send(work());
            }
        }))?;
        match tokio::time::timeout(within, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(HvError::Refused(format!("'{call}' panicked"))),
            Err(_) if taken.swap(true, Ordering::AcqRel) => Err(HvError::TimedOut { call, after: within }),
            Err(_) => Err(HvError::Disconnected(format!("no thread was free for '{call}' within {within:?}: earlier calls hang"))),
        }
    }

    /// Work whose end nobody waits for; it is done even when the queue is full, on the caller's thread.
    pub fn run_detached(&self, work: impl FnOnce() + Send + 'static) {
        let job = Arc::new(Mutex::new(Some(work)));
        let queued = job.clone();
        let pushed = self.push(Box::new(move || {
            if let Some(work) = lock(&queued).take() {
                work();
            }
        }));
        if pushed.is_err()
            && let Some(work) = lock(&job).take()
        {
            work();
        }
    }

    fn push(&self, job: Job) -> Result<(), HvError> {
        let mut state = lock(&self.0.state);
        if state.closed || state.waiting.len() >= WAITING_MAX {
            return Err(HvError::Disconnected(format!("{} calls wait for an answer", state.waiting.len())));
        }
        state.waiting.push_back(job);
        if state.idle < state.waiting.len() && state.threads < THREADS_MAX {
            let shared = self.0.clone();
            let spawned = std::thread::Builder::new().name("libvirt-call".to_owned()).spawn(move || shared.serve());
            match spawned {
                Ok(_) => state.threads += 1,
                Err(e) if state.threads == 0 => {
                    state.waiting.pop_back();
                    return Err(HvError::Disconnected(format!("cannot start a thread: {e}")));
                }
                Err(_) => {}
            }
        }
        drop(state);
        self.0.work.notify_one();
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.0.state).closed = true;
        self.0.work.notify_all();
    }
}

impl Shared {
    fn serve(&self) {
        // Keeps the count right when a job panics.
        struct Leave<'a>(&'a Shared);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                lock(&self.0.state).threads -= 1;
            }
        }
        let _leave = Leave(self);
        while let Some(job) = self.next() {
            job();
        }
    }

    /// None: the thread should leave.
    fn next(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.waiting.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state.idle += 1;
            let (woken, timeout) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.waiting.is_empty() {
                return None;
            }
        }
    }
}

/// No code panics while it holds one of our locks, so a poisoned one is still right.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_hangs_is_answered_and_others_go_on() {
        let pool = Pool::new();
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let late = pool.run("hang", Duration::from_millis(30), move || Ok(hang.recv().is_ok())).await;
        assert_eq!(late, Err(HvError::TimedOut { call: "hang", after: Duration::from_millis(30) }));
        assert_eq!(pool.run("quick", Duration::from_secs(5), || Ok(7)).await, Ok(7));
        release.send(()).expect("the hanging call still waits");
    }

    #[tokio::test]
    async fn a_call_that_was_never_taken_up_is_not_executed_later() {
        let pool = Pool::new();
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        for _ in 0..THREADS_MAX {
            let hang = hang.clone();
            pool.run_detached(move || {
                let _ = lock(&hang).recv();
            });
        }
        let ran = Arc::new(AtomicBool::new(false));
        let flag = ran.clone();
        let work = move || {
            flag.store(true, Ordering::SeqCst);
            Ok(())
        };
        let refused = pool.run("start", Duration::from_millis(50), work).await;
        assert!(matches!(refused, Err(HvError::Disconnected(_))), "{refused:?}");
        drop(release);
        assert_eq!(pool.run("after", Duration::from_secs(5), || Ok(())).await, Ok(()));
        assert!(!ran.load(Ordering::SeqCst), "its caller was told that it did not happen");
    }

    #[tokio::test]
    async fn threads_are_bounded_and_shared() {
        let pool = Pool::new();
        let sums: Vec<_> = (0..200).map(|n| pool.run("n", Duration::from_secs(10), move || Ok(n))).collect();
        let got = futures_util::future::join_all(sums).await;
        assert_eq!(got.into_iter().map(|r| r.expect("each is answered")).sum::<i32>(), 19_900);
        assert!(lock(&pool.0.state).threads <= THREADS_MAX);
    }

    #[tokio::test]
    async fn a_panic_costs_one_answer_and_one_thread() {
        let pool = Pool::new();
        let r: Result<(), _> = pool.run("bad", Duration::from_secs(5), || panic!("on purpose")).await;
        assert_eq!(r, Err(HvError::Refused("'bad' panicked".to_owned())));
        assert_eq!(pool.run("good", Duration::from_secs(5), || Ok(1)).await, Ok(1));
    }
}
