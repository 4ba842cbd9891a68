//! Where the agent asks: a unix socket for the same user only, and a few lines at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt, listen, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::stat::{Mode, umask};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::geteuid;
use vmkeep_core::ha::fenced::wire::{ASK_BYTES, Ask, WORD_BYTES, Word};

/// The agent, the one that it replaces, and somebody who only looks.
const LINES_MAX: usize = 4;

/// A guard that is well answers in less than a millisecond, s.
const ANSWER_S_MAX: i64 = 5;

#[derive(Debug)]
pub struct Desk {
    socket: OwnedFd,
    path: PathBuf,
    lines: [Option<OwnedFd>; LINES_MAX],
    /// Who goes when one more comes.
    next: usize,
}

/// What came while we waited.
#[derive(Clone, Copy, Debug, Default)]
pub struct Came {
    pub signal: bool,
    caller: bool,
    lines: [bool; LINES_MAX],
}

impl Desk {
    /// # Errors
    /// The socket cannot be made.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = bind(socket.as_raw_fd(), &UnixAddr::new(path)?);
        umask(before);
        bound?;
        listen(&socket, Backlog::new(8)?)?;
        Ok(Self::of(socket, path))
    }

    /// Around a socket that listens already.
    pub fn of(socket: OwnedFd, path: &Path) -> Self {
        Self { socket, path: path.to_owned(), lines: [const { None }; LINES_MAX], next: 0 }
    }

    pub fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Nobody finds it any more.
    pub fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Until somebody asks, a signal comes, or `ms` have passed.
    pub fn wait(&self, signals: BorrowedFd<'_>, ms: u16) -> Came {
        let socket = self.socket.as_fd();
        let mut all = std::array::from_fn::<_, { LINES_MAX + 2 }, _>(|n| match n {
            0 => PollFd::new(signals, PollFlags::POLLIN),
            1 => PollFd::new(socket, PollFlags::POLLIN),
            _ => match &self.lines[n - 2] {
                Some(line) => PollFd::new(line.as_fd(), PollFlags::POLLIN),
                None => PollFd::new(socket, PollFlags::empty()),
            },
        });
        if poll(&mut all, PollTimeout::from(ms)).unwrap_or(0) < 1 {
            return Came::default();
        }
        let came = |n: usize| all[n].any().unwrap_or(false);
        Came { signal: came(0), caller: came(1), lines: std::array::from_fn(|n| self.lines[n].is_some() && came(n + 2)) }
    }

    /// Hears everybody who came; each question is answered before the next is read.
    pub fn hear(&mut self, came: Came, mut answer: impl FnMut(Ask) -> Word) {
        for (line, _) in self.lines.iter_mut().zip(came.lines).filter(|(_, came)| *came) {
            let open = line.as_ref().is_some_and(|line| hear_one(line, &mut answer));
            if !open {
                *line = None;
            }
        }
        if came.caller {
            self.admit();
        }
    }

    fn admit(&mut self) {
        let Ok(caller) = accept4(self.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) else { return };
        // SAFETY: the kernel has just given it to us, and to nobody else.
        let caller = unsafe { OwnedFd::from_raw_fd(caller) };
        let ours = getsockopt(&caller, sockopt::PeerCredentials).is_ok_and(|peer| peer.uid() == geteuid().as_raw());
        if !ours {
            return;
        }
        let free = self.lines.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.next);
        self.next = (slot + 1) % LINES_MAX;
        self.lines[slot] = Some(caller);
    }
}

/// How the guard that listens at `path` is.
///
/// # Errors
/// Nobody answers there.
pub fn state_of(path: &Path) -> io::Result<Word> {
    let line = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&line, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_S_MAX))?;
    connect(line.as_raw_fd(), &UnixAddr::new(path)?)?;
    send(line.as_raw_fd(), &Ask::State.encode(), MsgFlags::MSG_NOSIGNAL)?;
    let mut bytes = [0; WORD_BYTES + 1];
    let length = recv(line.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
    Word::decode(&bytes[..length]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// False: the line is over.
fn hear_one(line: &OwnedFd, answer: &mut impl FnMut(Ask) -> Word) -> bool {
    let mut bytes = [0; ASK_BYTES + 1];
    match recv(line.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
        Ok(length @ 1..) => Ask::decode(&bytes[..length]).is_some_and(|ask| {
            let word = answer(ask).encode();
            send(line.as_raw_fd(), &word, MsgFlags::MSG_NOSIGNAL).is_ok()
        }),
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => true,
        Ok(_) | Err(_) => false,
    }
}
