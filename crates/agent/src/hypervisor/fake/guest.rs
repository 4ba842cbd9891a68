//! The fake's guest at its console: a shell as simple as the tests' real guest. It echoes what is typed, knows `echo` and
//! `poweroff -f`, and answers everything else like a shell that does not know it.

use tokio::sync::{mpsc, watch};
use vmkeep_types::ids::VmId;

use crate::hypervisor::ConsoleStream;
use crate::hypervisor::uses::Uses;

const CHUNKS_MAX: usize = 256;
pub const PROMPT: &str = "tiny# ";

/// What a typed line means for the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    PowerOff,
}

/// Serves until the domain stops (`alive` is dropped) or the other side closes.
pub fn serve(alive: watch::Receiver<()>, uses: &Uses, vm: VmId, wish: impl Fn(Wish) + Send + 'static) -> ConsoleStream {
    let (output, from_guest) = mpsc::channel::<Vec<u8>>(CHUNKS_MAX);
    let (to_guest, mut input) = mpsc::channel::<Vec<u8>>(CHUNKS_MAX);
    let ends = ConsoleStream { from_guest, to_guest };
    let closed = uses.begin(vm, &ends, output.downgrade());
    tokio::spawn(async move {
        let _closed = closed;
        // Dropped before that: the console is free when it is told closed.
        let mut alive = alive;
        let mut line = Vec::new();
        loop {
            let bytes = tokio::select! {
                _ = alive.changed() => return,
                () = output.closed() => return,
                bytes = input.recv() => bytes,
            };
            let Some(bytes) = bytes else { return };
            let mut said = Vec::new();
            for byte in bytes {
                if byte != b'\r' && byte != b'\n' {
                    said.push(byte);
                    line.push(byte);
                    continue;
                }
                said.extend_from_slice(b"\r\n");
                let (answer, wished) = execute(&String::from_utf8_lossy(&std::mem::take(&mut line)));
                said.extend_from_slice(answer.as_bytes());
                if let Some(wished) = wished {
                    wish(wished);
                }
            }
            if output.send(said).await.is_err() {
                return;
            }
        }
    });
    ends
}

fn execute(line: &str) -> (String, Option<Wish>) {
    let answer = match line.trim() {
        "" => String::new(),
        "poweroff -f" => return ("reboot: Power down\r\n".to_owned(), Some(Wish::PowerOff)),
        line => match line.strip_prefix("echo ") {
            Some(text) => format!("{text}\r\n"),
            None => format!("/init: {}: not found\r\n", line.split(' ').next().unwrap_or_default()),
        },
    };
    (answer + PROMPT, None)
}
