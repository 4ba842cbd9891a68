//! The client of `vmkeep-fenced`, and what it left behind before a reset.
//!
//! One packet each way on a unix socket (`core::ha::fenced::wire`). The connection is made anew for as long as it takes: the guard
//! may be exec'ed anew by an upgrade.

mod reset;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use thiserror::Error;
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::fenced::wire::{Ask, Limits, Outcome, Standing, Urgency, WORD_BYTES, Word};
use vmkeep_core::ha::timers::Timers;
use vmkeep_types::ha::WatchdogKind;

use crate::runtime::guard::{Guard, Holds, Opened};

pub use reset::{FILE, LastReset, Why, last_reset, tell};

/// A guard that runs before everything else on the host answers in less than 1 ms; one that does not answer is not well, ms.
const ANSWER_MS_MAX: u64 = 500;

/// Where the guard listens.
pub const SOCKET: &str = "/run/vmkeep/fenced.sock";

/// How the guard is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    pub standing: Standing,
    /// The watchdog that is open, or that arming would open; None: the host has none.
    pub watchdog: Option<WatchdogKind>,
    /// The watchdog's name: `i6300ESB timer`.
    pub identity: String,
    /// Its time-out as it was read back, ms; 0 = not open.
    pub watchdog_ms: u32,
    pub urgency: Urgency,
    /// Since the last renewal was sent, ms; 0 = not armed.
    pub silent_ms: u32,
    /// How often VMs were killed for silence since the guard's start.
    pub kills: u32,
    /// What it asked of the allocator since its start: nothing.
    pub allocations: u32,
}

#[derive(Debug, Error)]
pub enum GuardError {
    #[error("vmkeep-fenced does not answer at {at}: {why}; look at: systemctl status vmkeep-fenced")]
    Silent { at: String, why: &'static str },
    #[error("this host has no watchdog: nothing would reset it; 'vmkeep host check' says what to do")]
    NoWatchdog,
    #[error("the watchdog '{identity}' cannot be used: {why}; another program may have it (systemd's RuntimeWatchdogSec, watchdogd)")]
    NotOpened { identity: String, why: &'static str },
    #[error("the watchdog '{identity}' bites after {watchdog_ms} ms at the earliest, which is too late for these timers")]
    TooSlow { identity: String, watchdog_ms: u32 },
    #[error("vmkeep-fenced refuses these timers: they are out of order, or not those that it was armed with")]
    BadTimers,
    #[error("vmkeep-fenced takes no renewal that was sent in the future")]
    Future,
}

/// The guard's process, over its socket. Calls block, for half a second at most.
#[derive(Debug)]
pub struct Fenced {
    socket: PathBuf,
    line: Mutex<Option<OwnedFd>>,
}

impl Fenced {
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), line: Mutex::new(None) }
    }

    /// Opens the watchdog. `sent`: the last renewal that succeeded, as it was before it was asked for. Safe to repeat.
    ///
    /// # Errors
    /// The watchdog is not open then, and nothing is armed.
    pub fn arm(&self, sent: Now, timers: &Timers) -> Result<Guarded, GuardError> {
        self.ask(Ask::Arm { sent, limits: Limits::of(timers) })
    }

    /// A renewal that was sent then has succeeded.
    ///
    /// # Errors
    /// The guard did not hear it.
    pub fn renewed(&self, sent: Now) -> Result<Guarded, GuardError> {
        self.ask(Ask::Renewed { sent })
    }

    /// A transaction has shown that this node owns nothing. The one way to leave an armed watchdog without a reset.
    ///
    /// # Errors
    /// The guard did not hear it, and is armed still.
    pub fn disarm(&self) -> Result<Guarded, GuardError> {
        self.ask(Ask::Disarm)
    }

    /// Other nodes were told that this one is dead: VMs are killed, and the host is reset.
    ///
    /// # Errors
    /// The guard did not hear it; without renewals it comes to the same.
    pub fn sealed(&self) -> Result<Guarded, GuardError> {
        self.ask(Ask::Sealed)
    }

    /// # Errors
    /// The guard does not answer.
    pub fn state(&self) -> Result<Guarded, GuardError> {
        self.ask(Ask::State)
    }

    fn ask(&self, ask: Ask) -> Result<Guarded, GuardError> {
        let mut line = self.line.lock().expect("no panic holds this lock");
        let silent = |why: nix::Error| GuardError::Silent { at: self.socket.display().to_string(), why: why.desc() };
        // A line from before the guard was exec'ed anew is dead; each of the questions may be asked twice.
        let kept = line.take().and_then(|kept| Some((said(&kept, ask).ok()?, kept)));
        let (word, open) = match kept {
            Some(answered) => answered,
            None => {
                let fresh = self.connect().map_err(silent)?;
                (said(&fresh, ask).map_err(silent)?, fresh)
            }
        };
        *line = Some(open);
        of(&word)
    }

    fn connect(&self) -> nix::Result<OwnedFd> {
        let line = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        // Half for the question, half for the answer.
        let patience = TimeVal::milliseconds(i64::try_from(ANSWER_MS_MAX / 2).unwrap_or(i64::MAX));
        setsockopt(&line, sockopt::SendTimeout, &patience)?;
        setsockopt(&line, sockopt::ReceiveTimeout, &patience)?;
        connect(line.as_raw_fd(), &UnixAddr::new(&self.socket)?)?;
        Ok(line)
    }
}

fn said(line: &OwnedFd, ask: Ask) -> nix::Result<Word> {
    send(line.as_raw_fd(), &ask.encode(), MsgFlags::MSG_NOSIGNAL)?;
    let mut bytes = [0; WORD_BYTES + 1];
    let length = recv(line.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
    Word::decode(&bytes[..length]).ok_or(nix::Error::EPROTO)
}

fn of(word: &Word) -> Result<Guarded, GuardError> {
    let identity = word.identity();
    match word.outcome {
        Outcome::Done => Ok(Guarded {
            standing: word.standing,
            watchdog: word.watchdog,
            identity,
            watchdog_ms: word.watchdog_ms,
            urgency: word.urgency,
            silent_ms: word.silent_ms,
            kills: word.kills,
            allocations: word.allocations,
        }),
        Outcome::NoWatchdog => Err(GuardError::NoWatchdog),
        Outcome::NotOpened => Err(GuardError::NotOpened { identity, why: nix::Error::from_raw(word.errno).desc() }),
        Outcome::TooSlow => Err(GuardError::TooSlow { identity, watchdog_ms: word.watchdog_ms }),
        Outcome::BadTimers => Err(GuardError::BadTimers),
        Outcome::Future => Err(GuardError::Future),
    }
}

/// The guard as the heartbeat speaks to it: on threads that may block.
#[derive(Clone, Debug)]
pub struct Line {
    fenced: Arc<Fenced>,
}

impl Line {
    pub fn new(socket: &Path) -> Self {
        Self { fenced: Arc::new(Fenced::new(socket)) }
    }

    /// To this host's guard.
    pub fn of_this_host() -> Self {
        Self::new(Path::new(SOCKET))
    }

    async fn ask(&self, ask: impl FnOnce(&Fenced) -> Result<Guarded, GuardError> + Send + 'static) -> Result<Guarded, String> {
        let fenced = self.fenced.clone();
        let answered = tokio::task::spawn_blocking(move || ask(&fenced)).await;
        answered.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }
}

#[async_trait]
impl Guard for Line {
    async fn arm(&self, sent: Now, timers: &Timers) -> Result<Opened, String> {
        let timers = *timers;
        let guarded = self.ask(move |fenced| fenced.arm(sent, &timers)).await?;
        match guarded {
            Guarded { standing: Standing::Armed, watchdog: Some(kind), watchdog_ms: ms @ 1.., .. } => {
                Ok(Opened { kind, pet_ms: timers.pet_ms, watchdog_ms: ms.into() })
            }
            other => Err(format!("vmkeep-fenced is not armed, but {:?}", other.standing)),
        }
    }

    async fn renewed(&self, sent: Now) -> Result<Holds, String> {
        let guarded = self.ask(move |fenced| fenced.renewed(sent)).await?;
        Ok(if guarded.standing == Standing::Idle { Holds::Nothing } else { Holds::Open })
    }

    async fn disarm(&self) -> Result<(), String> {
        let guarded = self.ask(Fenced::disarm).await?;
        if guarded.standing == Standing::Idle { Ok(()) } else { Err(format!("vmkeep-fenced is still {:?}", guarded.standing)) }
    }

    async fn sealed(&self) {
        if let Err(why) = self.ask(Fenced::sealed).await {
            tracing::error!(why, "the watchdog's guard does not hear that this node is sealed: it hears of no renewal either");
        }
    }
}
