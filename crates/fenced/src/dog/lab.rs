//! A test host's watchdog: a process outside the host that kills all of it when it is not petted. tests/lab/watchdog says what it
//! takes: `open MS`, answered with `ok MS NAME`, then `pet` and `close`; a line that breaks is no polite close.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};

use super::{About, Closed};

/// How long it may take to answer; nothing is armed meanwhile.
const ANSWER_MS: u16 = 2_000;

#[derive(Debug)]
pub struct Lab {
    path: PathBuf,
    pub about: About,
    open: Option<(OwnedFd, u32)>,
}

impl Lab {
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), about: About::named(b"test host"), open: None }
    }

    pub fn open_ms(&self) -> Option<u32> {
        self.open.as_ref().map(|(_, ms)| *ms)
    }

    pub fn descriptor(&self) -> Option<RawFd> {
        self.open.as_ref().map(|(fd, _)| fd.as_raw_fd())
    }

    /// The open line that a program before this one left to it.
    pub fn inherit(&mut self, fd: OwnedFd, watchdog_ms: u32, about: About) {
        (self.open, self.about) = (Some((fd, watchdog_ms)), about);
    }

    pub fn open(&mut self, watchdog_ms: u32) -> Result<(), Closed> {
        let (line, ms, about) = dial(&self.path, watchdog_ms).map_err(Closed::NotOpened)?;
        self.about = about;
        self.open = Some((line, ms));
        if ms > watchdog_ms {
            self.close();
            return Err(Closed::TooSlow(ms));
        }
        Ok(())
    }

    pub fn pet(&mut self) -> Result<(), Errno> {
        self.say(b"pet")
    }

    pub fn close(&mut self) {
        let _ = self.say(b"close");
        self.open = None;
    }

    fn say(&self, word: &[u8]) -> Result<(), Errno> {
        let quietly = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        self.open.as_ref().map_or(Ok(()), |(line, _)| send(line.as_raw_fd(), word, quietly).map(drop))
    }
}

fn dial(path: &Path, watchdog_ms: u32) -> Result<(OwnedFd, u32, About), Errno> {
    let line = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    connect(line.as_raw_fd(), &UnixAddr::new(path)?)?;
    let mut bytes = [0; 64];
    let mut rest = bytes.as_mut_slice();
    write!(rest, "open {watchdog_ms}").map_err(|_| Errno::EMSGSIZE)?;
    let length = 64 - rest.len();
    send(line.as_raw_fd(), &bytes[..length], MsgFlags::MSG_NOSIGNAL)?;
    poll(&mut [PollFd::new(line.as_fd(), PollFlags::POLLIN)], PollTimeout::from(ANSWER_MS))?;
    let length = recv(line.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
    let (ms, about) = understood(&bytes[..length]).ok_or(Errno::EPROTO)?;
    Ok((line, ms, about))
}

/// `ok MS NAME`
fn understood(answer: &[u8]) -> Option<(u32, About)> {
    let mut words = std::str::from_utf8(answer).ok()?.splitn(3, ' ');
    let (ok, ms, name) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    (ok == "ok").then(|| (ms, About::named(name.as_bytes())))
}

#[cfg(test)]
mod tests {
    use vmkeep_types::ha::WatchdogKind;

    use super::*;

    #[test]
    fn its_answer_is_understood_or_refused() {
        let told = |answer: &[u8]| understood(answer).map(|(ms, about)| (ms, about.kind));
        assert_eq!(told(b"ok 8000 lab dog"), Some((8000, WatchdogKind::Hardware)));
        assert_eq!(told(b"ok 8000 Software Watchdog"), Some((8000, WatchdogKind::Software)));
        for answer in [b"no" as &[u8], b"ok 8s x", b"ok 8000", b"\xff"] {
            assert_eq!(told(answer), None);
        }
    }
}
