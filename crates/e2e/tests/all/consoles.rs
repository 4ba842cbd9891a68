//! `vmkeep console`, as somebody uses it who closes it and looks again.

use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use vmkeep_e2e::host::Host;

use super::hello::{BOOT, host_with_tiny, manifest, serial_says};

const ROUNDS: usize = 20;

/// One session: types a line once, and closes as soon as the answer is there. The answer must not be in the line, which is echoed.
pub(super) fn answers(host: &Host, vm: &str, line: &str, answer: &str) -> Result<(), String> {
    let mut console = host.cli();
    let mut console =
        console.args(["console", vm]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vmkeep runs");
    let mut keys = console.stdin.take().expect("piped");
    let mut screen = console.stdout.take().expect("piped");
    let typed = keys.write_all(format!("\n{line}\n").as_bytes());
    let (told, heard) = mpsc::channel();
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = screen.read(&mut piece) {
            if told.send(piece[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    let (begin, mut seen) = (Instant::now(), String::new());
    while !seen.contains(answer) && begin.elapsed() < BOOT {
        match heard.recv_timeout(Duration::from_millis(100)) {
            Ok(piece) => seen += &String::from_utf8_lossy(&piece),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    console.kill().expect("our child");
    let ended = console.wait_with_output().expect("our child");
    if seen.contains(answer) {
        Ok(())
    } else {
        Err(format!("typed {typed:?}, saw {seen:?}, told {:?}", String::from_utf8_lossy(&ended.stderr)))
    }
}

#[test]
fn one_opened_right_after_another_was_closed_shows_and_takes_all() {
    let host = host_with_tiny("again");
    host.apply(&manifest("a", ""));
    serial_says(&host, "a", "hello from a");
    for round in 0..ROUNDS {
        let begin = Instant::now();
        let (line, answer) = (format!("echo round-$((1000+{round}))-"), format!("round-{}-", 1000 + round));
        answers(&host, "a", &line, &answer).unwrap_or_else(|e| panic!("round {round}: {e}"));
        eprintln!("round {round}: {:.2} s", begin.elapsed().as_secs_f32());
    }
}
