//! A guest booted by QEMU itself, without libvirt, whose serial console is read.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Between two looks at the console.
const LOOK: Duration = Duration::from_millis(50);
/// A guest that was asked to go.
const POWERDOWN_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    Bios,
    Uefi,
}

/// Killed when it goes out of scope.
pub struct Guest {
    child: Child,
    console: UnixStream,
    monitor: UnixStream,
    seen: String,
    started: Instant,
}

impl Guest {
    /// Boots a throw-away overlay of `image`; `disks` are raw and come after it. Files of the run lie in `dir`.
    pub fn boot(image: &Path, firmware: Firmware, memory_mib: u32, disks: &[&Path], dir: &Path) -> Self {
        let (console, monitor) = (dir.join("console"), dir.join("monitor"));
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-machine",
            "q35,accel=tcg",
            "-cpu",
            "max",
            "-display",
            "none",
            "-nodefaults",
            "-no-reboot",
            "-m",
            &memory_mib.to_string(),
        ]);
        qemu.args(["-device", "virtio-rng-pci", "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0", "-device", "virtio-vga"]);
        for (name, path) in [("serial", &console), ("monitor", &monitor)] {
            qemu.args([format!("-{name}"), format!("unix:{},server=on,wait=off", path.display())]);
        }
        qemu.arg("-drive").arg(format!("file={},format=qcow2,if=virtio,snapshot=on", image.display()));
        for disk in disks {
            qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio", disk.display()));
        }
        if firmware == Firmware::Uefi {
            let vars = dir.join("vars.fd");
            std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &vars).expect("OVMF's variables");
            qemu.args(["-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"]);
            qemu.arg("-drive").arg(format!("if=pflash,format=raw,file={}", vars.display()));
        }
        let child = qemu.stdin(Stdio::null()).env("TMPDIR", dir).spawn().expect("QEMU starts");
        let started = Instant::now();
        Self { child, console: connect(&console), monitor: connect(&monitor), seen: String::new(), started }
    }

    /// Waits for words on the console; how long after the start they came.
    pub fn expect(&mut self, words: &str, within: Duration) -> Duration {
        while !self.seen.contains(words) {
            let ended = self.child.try_wait().expect("a child").is_some();
            assert!(!ended && self.started.elapsed() < within, "no {words:?} within {within:?}; the console:\n{}", self.seen);
            self.read();
        }
        self.started.elapsed()
    }

    fn read(&mut self) {
        let mut bytes = [0; 4096];
        match self.console.read(&mut bytes) {
            Ok(0) | Err(_) => std::thread::sleep(LOOK),
            Ok(count) => self.seen.push_str(&String::from_utf8_lossy(&bytes[..count])),
        }
    }

    pub fn typed(&mut self, line: &str) {
        self.console.write_all(format!("{line}\n").as_bytes()).expect("the console takes input");
    }

    /// Presses the power button; how long the guest took to go.
    pub fn power_off(mut self) -> Duration {
        let asked = Instant::now();
        self.monitor.write_all(b"system_powerdown\n").expect("the monitor takes commands");
        while self.child.try_wait().expect("a child").is_none() {
            assert!(asked.elapsed() < POWERDOWN_MAX, "the guest ignores the power button; the console:\n{}", self.seen);
            self.read();
        }
        asked.elapsed()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(socket: &PathBuf) -> UnixStream {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LOOK)).expect("a time limit");
                return stream;
            }
            Err(e) => assert!(Instant::now() < until, "QEMU made no {}: {e}", socket.display()),
        }
        std::thread::sleep(LOOK);
    }
}
