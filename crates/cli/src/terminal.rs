//! Raw mode of the terminal, undone however the program leaves: at the end of the scope, in a panic, or at a signal (the
//! console waits for those itself).

use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

/// Keys read ahead of a slow connection; a paste of 64 times 4 KiB waits in the kernel after that.
const READ_AHEAD: usize = 64;

/// While it lives, keys come one by one and nothing is echoed.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// None where stdin is no terminal: there is nothing to switch.
    pub fn enter() -> std::io::Result<Option<Self>> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(std::io::stdin().as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done when the terminal has gone.
        let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &self.before);
    }
}

/// stdin as it comes, from a thread of its own: a read that waits for a key cannot be called off, so it must not hold up the end.
pub fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stdin.read(&mut buffer) {
            if sender.blocking_send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Columns and rows of the terminal on stdout.
pub fn size() -> Option<(u16, u16)> {
    let out = std::io::stdout();
    if !out.is_terminal() {
        return None;
    }
    ratatui::crossterm::terminal::size().ok()
}
