//! Says why, where it survives a reset: a file on the disk, the kernel's log, pstore. A thread of its own does it, because a disk
//! may hang: the guard only puts a note into a pipe, and a full pipe loses it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::{pipe2, read, write};
use vmkeep_core::ha::fenced::Reason;

use crate::clock::unix_s;

const NOTE_BYTES: usize = 16;
/// A line for people or for the file.
const LINE_BYTES: usize = 256;
/// What the file holds: one line and what is left of an older one.
const FILE_BYTES: usize = 512;
const STACK_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// The VMs were killed, for this reason.
    Killed(Reason),
    /// The watchdog is no longer petted.
    LetGo,
    Armed,
    Disarmed,
    /// It was told to end, while only a reset may end it.
    StaysArmed,
    /// The new program could not be started; errno.
    NoSuccessor(i32),
    /// The watchdog takes no petting; errno.
    NotPetted(i32),
}

/// The guard's end of the pipe.
#[derive(Debug)]
pub struct Recorder(OwnedFd);

/// The thread's end, and what it writes to.
struct Desk {
    notes: OwnedFd,
    file: File,
    kernel: Option<File>,
    pstore: Option<File>,
    boot_id: String,
}

impl Recorder {
    /// Opens everything at once: later there may be no descriptor and no memory left.
    ///
    /// # Errors
    /// The file cannot be written to, or there is no thread to be had.
    pub fn start(file: &Path, boot_id: String) -> io::Result<Self> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let open = |path: &Path| OpenOptions::new().write(true).open(path).ok();
        let file = OpenOptions::new().write(true).create(true).truncate(false).custom_flags(libc::O_DSYNC).mode(0o600).open(file)?;
        if file.metadata()?.len() < FILE_BYTES as u64 {
            // Room now: a full disk must not swallow the reason.
            file.write_all_at(&[b'\n'; FILE_BYTES], 0)?;
        }
        let (out, into) = pipe2(OFlag::O_CLOEXEC)?;
        rustix::fs::fcntl_setfl(&into, rustix::fs::OFlags::NONBLOCK)?;
        let desk = Desk { notes: out, file, kernel: open(Path::new("/dev/kmsg")), pstore: open(Path::new("/dev/pmsg0")), boot_id };
        // A thread allocates while it begins: not after the guard's start.
        let (begun, begins) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new().name("recorder".into()).stack_size(STACK_BYTES).spawn(move || {
            let _ = begun.send(());
            drop(begun);
            desk.work();
        })?;
        let _ = begins.recv();
        Ok(Self(into))
    }

    pub fn tell(&self, note: Note) {
        let _ = write(self.0.as_fd(), &encode(note));
    }
}

fn encode(note: Note) -> [u8; NOTE_BYTES] {
    let (kind, number): (u64, u64) = match note {
        Note::Killed(Reason::Silent { ms }) => (0, ms),
        Note::Killed(Reason::Sealed) => (1, 0),
        Note::LetGo => (2, 0),
        Note::Armed => (3, 0),
        Note::Disarmed => (4, 0),
        Note::StaysArmed => (5, 0),
        Note::NoSuccessor(errno) => (6, u64::from(errno.unsigned_abs())),
        Note::NotPetted(errno) => (7, u64::from(errno.unsigned_abs())),
    };
    let mut bytes = [0; NOTE_BYTES];
    bytes[..8].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn decode(bytes: [u8; NOTE_BYTES]) -> Option<Note> {
    let half = |from: usize| u64::from_le_bytes(bytes[from..from + 8].try_into().expect("eight bytes"));
    let errno = i32::try_from(half(8)).unwrap_or(0);
    Some(match half(0) {
        0 => Note::Killed(Reason::Silent { ms: half(8) }),
        1 => Note::Killed(Reason::Sealed),
        2 => Note::LetGo,
        3 => Note::Armed,
        4 => Note::Disarmed,
        5 => Note::StaysArmed,
        6 => Note::NoSuccessor(errno),
        7 => Note::NotPetted(errno),
        _ => return None,
    })
}

impl Desk {
    /// Until the guard is gone.
    fn work(self) {
        let mut bytes = [0; NOTE_BYTES];
        // A pipe gives and takes so few bytes whole.
        while let Ok(NOTE_BYTES) = read(&self.notes, &mut bytes) {
            if let Some(note) = decode(bytes) {
                self.write(note);
            }
        }
    }

    fn write(&self, note: Note) {
        if let Note::Killed(reason) = note {
            // Written anew each second: the last is the truest. An error has nowhere to go.
            let _ = line(|to| record(to, &self.boot_id, reason)).map(|(text, length)| self.file.write_all_at(&text[..length], 0));
        }
        let Ok((text, length)) = line(|to| say(to, note)) else { return };
        let _ = io::stderr().write_all(&text[..length]);
        let ends = matches!(note, Note::Killed(_) | Note::LetGo);
        for mut log in [&self.kernel, &self.pstore].into_iter().flatten().filter(|_| ends) {
            let _ = log.write_all(&text[..length]);
        }
    }
}

fn line(fill: impl FnOnce(&mut &mut [u8]) -> io::Result<()>) -> io::Result<([u8; LINE_BYTES], usize)> {
    let mut text = [0; LINE_BYTES];
    let mut rest = text.as_mut_slice();
    fill(&mut rest)?;
    let left = rest.len();
    Ok((text, LINE_BYTES - left))
}

fn record(to: &mut &mut [u8], boot_id: &str, reason: Reason) -> io::Result<()> {
    let (word, ms) = match reason {
        Reason::Silent { ms } => ("silent", ms),
        Reason::Sealed => ("sealed", 0),
    };
    writeln!(to, "{{\"boot_id\":\"{boot_id}\",\"at_unix_s\":{},\"reason\":\"{word}\",\"silent_ms\":{ms}}}", unix_s())
}

fn say(to: &mut &mut [u8], note: Note) -> io::Result<()> {
    write!(to, "vmkeep-fenced: ")?;
    match note {
        Note::Killed(Reason::Silent { ms }) => {
            writeln!(to, "the cluster has not heard of this host for {} s: VMs killed; without news it is reset", ms / 1000)
        }
        Note::Killed(Reason::Sealed) => writeln!(to, "the cluster takes this host for dead: VMs killed; it is reset"),
        Note::LetGo => writeln!(to, "the watchdog is petted no more: it resets this host"),
        Note::Armed => writeln!(to, "armed"),
        Note::Disarmed => writeln!(to, "disarmed"),
        Note::StaysArmed => writeln!(to, "armed, and does not end: its end would reset this host; disarm first (vmkeep ha disarm)"),
        Note::NoSuccessor(errno) => writeln!(to, "the new program does not start (error {errno}): the old one goes on"),
        Note::NotPetted(errno) => writeln!(to, "the watchdog takes no petting (error {errno}): it will reset this host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTES: [Note; 8] = [
        Note::Killed(Reason::Silent { ms: u64::MAX }),
        Note::Killed(Reason::Sealed),
        Note::LetGo,
        Note::Armed,
        Note::Disarmed,
        Note::StaysArmed,
        Note::NoSuccessor(i32::MAX),
        Note::NotPetted(5),
    ];

    #[test]
    fn every_note_arrives_and_has_its_line() {
        for note in NOTES {
            assert_eq!(decode(encode(note)), Some(note));
            let (text, length) = line(|to| say(to, note)).expect("room for it");
            assert_eq!(text[length - 1], b'\n');
        }
        let boot_id = "x".repeat(64);
        line(|to| record(to, &boot_id, Reason::Silent { ms: u64::MAX })).expect("room for it");
    }
}
