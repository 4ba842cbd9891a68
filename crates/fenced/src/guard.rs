//! The guard itself: gathers (clock, questions, signals), lets `core::ha::fenced` decide, carries out.

use std::os::fd::AsFd;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use thiserror::Error;
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::fenced::wire::{Ask, IDENTITY_BYTES, Limits, Outcome, Standing, Urgency, Word};
use vmkeep_core::ha::fenced::{Event, Fenced};
use vmkeep_core::ha::timers::{Profile, Timers};

use crate::args::Args;
use crate::cgroup::Cgroups;
use crate::clock;
use crate::desk::{self, Desk};
use crate::dog::{Closed, Dog};
use crate::realtime;
use crate::recorder::{Note, Recorder};
use crate::succession::{self, Estate};

/// The longest look away, ms. Armed it is shorter when petting must be more frequent.
const LOOK_MS: u16 = 500;

#[derive(Debug, Error)]
pub enum StartError {
    #[error("cannot read which boot this is: {0}")]
    BootId(std::io::Error),
    #[error("cannot write the reason of a reset: {0}")]
    Reason(std::io::Error),
    #[error("cannot listen: {0}")]
    Socket(std::io::Error),
    #[error("cannot lock its memory: {0}; needs CAP_IPC_LOCK or LimitMEMLOCK=infinity")]
    Memory(nix::Error),
    #[error("cannot take signals: {0}")]
    Signals(nix::Error),
    #[error("what the program before left is not understood: restart it while disarmed")]
    Estate,
}

pub struct Guard {
    pub fenced: Fenced,
    /// Those that it was armed with.
    pub limits: Limits,
    pub dog: Dog,
    cgroups: Cgroups,
    recorder: Recorder,
    urgency: Urgency,
    kills: u32,
    /// What was said last of petting, so that it is said once.
    petting: Petting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Petting {
    /// Done, or not due.
    Well,
    /// The watchdog does not take it.
    Refused,
    /// It is not due any more.
    Over,
}

/// Says what would be used.
///
/// # Errors
/// What would hinder a start.
pub fn look(args: &Args) -> Result<(), StartError> {
    std::fs::read_to_string(&args.boot_id).map_err(StartError::BootId)?;
    match Dog::find(&args.watchdog) {
        Dog::None => println!("watchdog: none: this host cannot be reset, and its VMs cannot be highly available"),
        Dog::Device(device) => {
            let name = String::from_utf8_lossy(&device.about.identity).trim_end_matches('\0').to_owned();
            println!("watchdog: {} ({name}, {:?})", device.path().to_string_lossy(), device.about.kind);
        }
        Dog::Lab(_) => println!("watchdog: of a test host"),
    }
    println!("cgroups: {}", Cgroups::find(&args.cgroup));
    Ok(())
}

/// Says how the guard that runs is, in one word first.
pub fn status(args: &Args) {
    match desk::state_of(&args.socket) {
        Ok(Word { standing: Standing::Idle, .. }) => println!("idle"),
        Ok(word) => {
            let standing = if word.standing == Standing::Armed { "armed" } else { "sealed" };
            println!(
                "{standing}: the watchdog '{}' resets this host {} ms after it is petted for the last time",
                word.identity(),
                word.watchdog_ms
            );
        }
        Err(why) => println!("nobody answers at {}: {why}", args.socket.display()),
    }
}

/// Runs until it is told to end while idle.
///
/// # Errors
/// Why it cannot start.
pub fn run(args: &Args) -> Result<(), StartError> {
    let wanted: SigSet = [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    wanted.thread_block().map_err(StartError::Signals)?;
    let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map_err(StartError::Signals)?;
    let (mut guard, mut desk) = Guard::new(args)?;
    realtime::lock_memory().map_err(StartError::Memory)?;
    guard.urgency = realtime::hurry();
    realtime::started();
    guard.watch(&mut desk, &signals, args);
    desk.remove();
    Ok(())
}

impl Guard {
    fn new(args: &Args) -> Result<(Self, Desk), StartError> {
        let boot_id = std::fs::read_to_string(&args.boot_id).map_err(StartError::BootId)?;
        let boot_id: String = boot_id.trim().chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\')).take(64).collect();
        let recorder = Recorder::start(&args.reason, boot_id).map_err(StartError::Reason)?;
        let mut dog = Dog::find(&args.watchdog);
        let (fenced, limits, desk) = match args.inherit {
            Some(fd) => {
                let Estate { fenced, limits, socket } = succession::accept(fd, &mut dog).ok_or(StartError::Estate)?;
                (fenced, limits, Desk::of(socket, &args.socket))
            }
            None => {
                let timers = Timers::of(Profile::Standard);
                (Fenced::new(&timers, None), Limits::of(&timers), Desk::open(&args.socket).map_err(StartError::Socket)?)
            }
        };
        let cgroups = Cgroups::find(&args.cgroup);
        Ok((Self { fenced, limits, dog, cgroups, recorder, urgency: Urgency::Usual, kills: 0, petting: Petting::Well }, desk))
    }

    fn watch(&mut self, desk: &mut Desk, signals: &SignalFd, args: &Args) {
        loop {
            let came = desk.wait(signals.as_fd(), self.look_ms());
            self.step(Event::Tick);
            desk.hear(came, |ask| self.answer(ask));
            if came.signal && self.signalled(desk, signals, args) {
                return;
            }
        }
    }

    fn look_ms(&self) -> u16 {
        let armed = self.fenced.armed();
        u16::try_from(self.limits.pet_every_ms / 2).ok().filter(|_| armed).map_or(LOOK_MS, |ms| ms.clamp(10, LOOK_MS))
    }

    /// True: this is the end.
    fn signalled(&mut self, desk: &Desk, signals: &SignalFd, args: &Args) -> bool {
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo == Signal::SIGHUP as u32 {
                let errno = succession::hand_over(self, desk, args);
                self.recorder.tell(Note::NoSuccessor(errno as i32));
            } else if self.fenced.armed() {
                self.recorder.tell(Note::StaysArmed);
            } else {
                return true;
            }
        }
        false
    }

    fn answer(&mut self, ask: Ask) -> Word {
        let (outcome, errno) = match ask {
            Ask::State => (Outcome::Done, 0),
            Ask::Arm { sent, .. } | Ask::Renewed { sent } if is_future(sent) => (Outcome::Future, 0),
            Ask::Arm { limits, .. } if limits.check().is_err() || self.fenced.armed() && limits != self.limits => (Outcome::BadTimers, 0),
            Ask::Arm { sent, limits } => match self.arm(sent, limits) {
                Ok(()) => (Outcome::Done, 0),
                Err(Closed::None) => (Outcome::NoWatchdog, 0),
                Err(Closed::NotOpened(errno)) => (Outcome::NotOpened, errno as i32),
                Err(Closed::TooSlow(ms)) => return Word { watchdog_ms: ms, ..self.word(Outcome::TooSlow, 0) },
            },
            Ask::Renewed { sent } => self.said(Event::Renewed { sent }),
            Ask::Disarm => self.said(Event::Disarm),
            Ask::Sealed => self.said(Event::Sealed),
        };
        self.word(outcome, errno)
    }

    fn said(&mut self, event: Event) -> (Outcome, i32) {
        self.step(event);
        (Outcome::Done, 0)
    }

    /// The watchdog is open before the guard is armed: one that does not open leaves nothing behind.
    fn arm(&mut self, sent: Now, limits: Limits) -> Result<(), Closed> {
        if !self.fenced.armed() {
            self.dog.open(limits.watchdog_ms)?;
            (self.fenced, self.limits) = (Fenced::new(&limits.timers(), None), limits);
            self.recorder.tell(Note::Armed);
        }
        self.step(Event::Arm { sent });
        Ok(())
    }

    /// The clock is read last before the decision. A kill that takes long delays the pet, and a pet that is late by more than the
    /// watchdog's time-out finds a host that is reset already.
    fn step(&mut self, event: Event) {
        let now = clock::now();
        let todo = self.fenced.step(now, event);
        if todo.kill {
            self.cgroups.kill();
            self.kills = self.kills.saturating_add(1);
            if let Some(reason) = self.fenced.reason(now) {
                self.recorder.tell(Note::Killed(reason));
            }
        }
        if todo.close {
            self.dog.close();
            self.recorder.tell(Note::Disarmed);
        }
        // A watchdog that cannot be closed is petted on while nothing is guarded.
        self.pet(todo.pet || !self.fenced.armed());
    }

    fn pet(&mut self, due: bool) {
        let done = if due { self.dog.pet() } else { Ok(()) };
        let (petting, note) = match done {
            Ok(()) if due => (Petting::Well, None),
            Ok(()) => (Petting::Over, Some(Note::LetGo)),
            Err(errno) => (Petting::Refused, Some(Note::NotPetted(errno as i32))),
        };
        if let Some(note) = note.filter(|_| petting != self.petting) {
            self.recorder.tell(note);
        }
        self.petting = petting;
    }

    fn word(&self, outcome: Outcome, errno: i32) -> Word {
        let about = self.dog.about();
        Word {
            outcome,
            errno,
            standing: Standing::from(&self.fenced),
            urgency: self.urgency,
            watchdog: about.map(|about| about.kind),
            watchdog_ms: self.dog.open_ms().unwrap_or(0),
            silent_ms: self.fenced.silent_ms(clock::now()).map_or(0, |ms| u32::try_from(ms).unwrap_or(u32::MAX)),
            kills: self.kills,
            allocations: realtime::allocations(),
            identity: about.map_or([0; IDENTITY_BYTES], |about| about.identity),
        }
    }
}

fn is_future(sent: Now) -> bool {
    let now = clock::now();
    sent.boottime_ms > now.boottime_ms || sent.raw_ms > now.raw_ms
}
