//! The console on a real terminal (a pty), and through a pipe, against a guest that echoes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};
use tokio_tungstenite::tungstenite::{Message, accept};

/// Serves one console: greets, then sends every key back as `<key>`; ends when the client does.
fn guest(socket: &Path) -> std::thread::JoinHandle<Vec<u8>> {
    let listener = UnixListener::bind(socket).expect("a socket");
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        let mut socket = accept(stream).expect("a handshake");
        socket.send(Message::binary("login: ")).expect("the client reads");
        let mut typed = Vec::new();
        while let Ok(message) = socket.read() {
            if let Message::Binary(bytes) = message {
                typed.extend_from_slice(&bytes);
                socket.send(Message::binary(format!("<{}>", String::from_utf8_lossy(&bytes)))).expect("the client reads");
                if bytes.ends_with(b"halt\n") {
                    let _ = socket.close(None);
                }
            }
        }
        typed
    })
}

fn vmkeep(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmkeep"));
    command.args(["console", "web"]).env("VMKEEP_SOCKET", socket);
    command
}

/// Reads until `text` has come.
fn wait_for(terminal: &mut File, seen: &mut String, text: &str) {
    let mut buffer = [0; 1024];
    while !seen.contains(text) {
        let n = terminal.read(&mut buffer).unwrap_or_else(|e| panic!("{e} before {text:?}: {seen:?}"));
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

#[test]
fn a_terminal_is_raw_while_attached_and_restored_after_the_detach_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("sock");
    let guest = guest(&socket);
    let pty = openpty(None, None).expect("a pty");
    let is_raw = || !tcgetattr(pty.slave.as_fd()).expect("a terminal").local_flags.contains(LocalFlags::ICANON);
    let end = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
    let mut child: Child = vmkeep(&socket).stdin(end()).stdout(end()).stderr(end()).spawn().expect("vmkeep starts");
    let mut terminal = File::from(pty.master);
    let mut seen = String::new();
    wait_for(&mut terminal, &mut seen, "login: ");
    assert!(seen.contains("detach with Ctrl-]"), "{seen}");
    assert!(is_raw());
    // Ctrl-C belongs to the guest.
    terminal.write_all(b"a\x03").expect("typed");
    wait_for(&mut terminal, &mut seen, ">");
    terminal.write_all(b"\x1dignored").expect("typed");
    assert!(child.wait().expect("it ends").success());
    assert!(!is_raw(), "the terminal is as it was");
    assert_eq!(guest.join().expect("the guest ends"), b"a\x03");
}

#[test]
fn a_script_may_talk_to_a_guest_through_pipes() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("sock");
    let guest = guest(&socket);
    let mut child = vmkeep(&socket).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vmkeep starts");
    child.stdin.take().expect("piped").write_all(b"root\nhalt\n").expect("it reads");
    let out = child.wait_with_output().expect("it ends");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let told = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(told.starts_with("login: <root\n"), "{told}");
    assert_eq!(guest.join().expect("the guest ends"), b"root\nhalt\n");
}

#[test]
fn a_vnc_viewer_reaches_the_vm_through_a_local_port() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("sock");
    let guest = guest(&socket);
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmkeep"));
    command.args(["vm", "vnc", "web", "-q"]).env("VMKEEP_SOCKET", &socket).stdout(Stdio::piped());
    let mut child = command.spawn().expect("vmkeep starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it prints the address");
    let address = line.trim().strip_prefix("vnc://").expect("a VNC address");
    assert!(address.starts_with("127.0.0.1:"), "{address}: nobody else on the network gets in");
    let mut viewer = TcpStream::connect(address).expect("it listens");
    let mut greeting = [0; 7];
    viewer.read_exact(&mut greeting).expect("the guest speaks first");
    assert_eq!(&greeting, b"login: ");
    viewer.write_all(b"RFB").expect("it reads");
    let mut echo = [0; 5];
    viewer.read_exact(&mut echo).expect("the guest answers");
    assert_eq!(&echo, b"<RFB>");
    drop(viewer);
    assert_eq!(guest.join().expect("the guest sees the viewer go"), b"RFB");
    child.kill().expect("it listens on");
    child.wait().expect("it ends");
}
