//! SIGHUP: the program is replaced by the one that is installed now, and the watchdog never notices.
//!
//! ```text
//!  old: state ─► pipe, descriptors without close-on-exec ─► exec ─► new: reads the pipe, goes on petting
//! ```
//! An exec that fails leaves the old one as it is. A new program that does not start is the death of the guard: armed, the host is
//! reset; so the package asks `vmkeep-fenced --check` of the new one first.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::unistd::{execv, pipe2, read, write};
use vmkeep_core::ha::fenced::Fenced;
use vmkeep_core::ha::fenced::wire::{IDENTITY_BYTES, Limits, SAVED_BYTES};

use crate::args::Args;
use crate::desk::Desk;
use crate::dog::{self, About, Dog};
use crate::guard::Guard;

/// The guard's state, limits (4 numbers), the listening socket, the watchdog's descriptor (-1: none), time-out and name.
const ESTATE_BYTES: usize = SAVED_BYTES + 4 * 4 + 4 + 4 + 4 + IDENTITY_BYTES;

/// What a program takes over from the one before it.
pub struct Estate {
    pub fenced: Fenced,
    pub limits: Limits,
    pub socket: OwnedFd,
}

/// Comes back only when it failed.
pub fn hand_over(guard: &Guard, desk: &Desk, args: &Args) -> Errno {
    let Ok((out, into)) = pipe2(OFlag::O_CLOEXEC) else { return Errno::EMFILE };
    let descriptors = [Some(out.as_raw_fd()), Some(desk.descriptor()), guard.dog.descriptor()];
    let exec = || -> Result<(), Errno> {
        let argv = arguments(args, out.as_raw_fd())?;
        let program = CString::new(program()?.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
        write(&into, &written(guard, desk))?;
        descriptors.iter().flatten().try_for_each(|fd| keep_open(*fd, FdFlag::empty()))?;
        execv(&program, &argv).map(drop)
    };
    let failed = exec().expect_err("an exec that succeeds does not come back");
    for fd in descriptors.into_iter().flatten() {
        let _ = keep_open(fd, FdFlag::FD_CLOEXEC);
    }
    failed
}

/// Where it is installed: a package puts a new file in the place of the old one, which the kernel then calls deleted.
fn program() -> Result<std::path::PathBuf, Errno> {
    let path = std::env::current_exe().map_err(|_| Errno::ENOENT)?.into_os_string().into_vec();
    let path = path.strip_suffix(b" (deleted)").unwrap_or(&path).to_vec();
    Ok(Path::new(&std::ffi::OsString::from_vec(path)).to_owned())
}

/// The same, and where the estate is.
fn arguments(args: &Args, estate: RawFd) -> Result<Vec<CString>, Errno> {
    let given = std::env::args_os().map(OsStringExt::into_vec);
    let fixed = given.take_while(|word| args.inherit.is_none() || word.as_slice() != b"--inherit");
    let all = fixed.chain([b"--inherit".to_vec(), estate.to_string().into_bytes()]);
    all.map(|word| CString::new(word).map_err(|_| Errno::EINVAL)).collect()
}

fn keep_open(fd: RawFd, flag: FdFlag) -> Result<(), Errno> {
    // SAFETY: it belongs to the guard, the desk or the pipe, which all outlive this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(fd, FcntlArg::F_SETFD(flag)).map(drop)
}

fn written(guard: &Guard, desk: &Desk) -> [u8; ESTATE_BYTES] {
    let mut bytes = [0; ESTATE_BYTES];
    let (saved, rest) = bytes.split_at_mut(SAVED_BYTES);
    saved.copy_from_slice(&guard.fenced.save());
    let Limits { kill_ms, pet_ms, pet_every_ms, watchdog_ms } = guard.limits;
    let dog = guard.dog.descriptor().unwrap_or(-1);
    let numbers = [kill_ms, pet_ms, pet_every_ms, watchdog_ms, desk.descriptor().cast_unsigned(), dog.cast_unsigned()];
    let numbers = numbers.into_iter().chain([guard.dog.open_ms().unwrap_or(0)]);
    for (place, number) in rest.chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    if let Some(about) = guard.dog.about() {
        rest[28..].copy_from_slice(&about.identity);
    }
    bytes
}

/// Reads what was left, and gives the watchdog its open descriptor. None: it is not understood.
pub fn accept(estate: RawFd, dog: &mut Dog) -> Option<Estate> {
    // SAFETY: the program before this one made it for us; nobody else here knows it.
    let estate = unsafe { dog::adopt(estate) };
    let mut bytes = [0; ESTATE_BYTES + 1];
    if read(estate.as_fd(), &mut bytes).ok()? != ESTATE_BYTES {
        return None;
    }
    let fenced = Fenced::restore(bytes[..SAVED_BYTES].try_into().ok()?)?;
    let rest = &bytes[SAVED_BYTES..ESTATE_BYTES];
    let number = |n: usize| u32::from_le_bytes(rest[4 * n..4 * n + 4].try_into().expect("four bytes"));
    let limits = Limits { kill_ms: number(0), pet_ms: number(1), pet_every_ms: number(2), watchdog_ms: number(3) };
    // SAFETY: as above.
    let socket = unsafe { dog::adopt(number(4).cast_signed()) };
    let open = number(5).cast_signed();
    if open >= 0 {
        // SAFETY: as above.
        dog.inherit(unsafe { dog::adopt(open) }, number(6), About::named(&rest[28..]));
    }
    for fd in [socket.as_raw_fd(), open].into_iter().filter(|fd| *fd >= 0) {
        keep_open(fd, FdFlag::FD_CLOEXEC).ok()?;
    }
    Some(Estate { fenced, limits, socket })
}
