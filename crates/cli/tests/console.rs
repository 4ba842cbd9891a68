//! The console on a real terminal (a pty), and through a pipe, against a guest that echoes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
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
fn the_guest_is_told_the_size_of_the_window_when_it_is_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("sock");
    let guest = guest(&socket);
    let size = |rows, columns| nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size(30, 100)), None).expect("a pty");
    let end = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
    let mut command = vmkeep(&socket);
    let mut child: Child = command.arg("--resize").stdin(end()).stdout(end()).stderr(end()).spawn().expect("vmkeep starts");
    let mut terminal = File::from(pty.master);
    let mut seen = String::new();
    wait_for(&mut terminal, &mut seen, "<stty rows 30 cols 100\r>");
    let resized = Command::new("stty").args(["rows", "40", "cols", "120"]).stdin(end()).status().expect("stty runs");
    assert!(resized.success());
    terminal.write_all(b"a\x1drb").expect("typed");
    wait_for(&mut terminal, &mut seen, "<a><stty rows 40 cols 120\r><b>");
    // Alone, the key still detaches.
    terminal.write_all(b"\x1d").expect("typed");
    assert!(child.wait().expect("it ends").success());
    assert_eq!(guest.join().expect("the guest ends"), b"stty rows 30 cols 100\rastty rows 40 cols 120\rb");
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

/// Sees the guest's greeting and its echo, and goes.
fn view(mut viewer: impl Read + Write) {
    let mut greeting = [0; 7];
    viewer.read_exact(&mut greeting).expect("the guest speaks first");
    assert_eq!(&greeting, b"login: ");
    viewer.write_all(b"RFB").expect("it reads");
    let mut echo = [0; 5];
    viewer.read_exact(&mut echo).expect("the guest answers");
    assert_eq!(&echo, b"<RFB>");
}

/// `vmkeep vm vnc`, and the line in which it says where it listens.
fn vnc(socket: &Path, args: &[&str]) -> (Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmkeep"));
    command.args(["vm", "vnc", "web", "-q"]).args(args).env("VMKEEP_SOCKET", socket).stdout(Stdio::piped());
    let mut child = command.spawn().expect("vmkeep starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it prints the address");
    (child, line.trim().to_owned())
}

#[test]
fn a_vnc_viewer_comes_through_a_socket_that_nobody_else_can_open() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("sock");
    let guest = guest(&socket);
    let (mut child, path) = vnc(&socket, &[]);
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(Path::new(&path)), 0o600);
    assert_eq!(mode(Path::new(&path).parent().expect("a directory")), 0o700);
    let viewer = UnixStream::connect(&path).expect("it listens");
    view(&viewer);
    assert!(UnixStream::connect(&path).is_err(), "one viewer is in: the door is closed");
    drop(viewer);
    assert!(child.wait().expect("it ends with its viewer").success());
    assert!(!Path::new(&path).exists());
    assert_eq!(guest.join().expect("the guest sees the viewer go"), b"RFB");
}

#[test]
fn a_vnc_viewer_may_come_through_a_port_that_takes_no_second_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("sock");
    let guest = guest(&socket);
    let (mut child, address) = vnc(&socket, &["--listen", "127.0.0.1:0"]);
    let address = address.strip_prefix("vnc://").expect("a VNC address");
    let viewer = TcpStream::connect(address).expect("it listens");
    view(&viewer);
    assert!(TcpStream::connect(address).is_err(), "one viewer is in: the door is closed");
    drop(viewer);
    assert!(child.wait().expect("it ends with its viewer").success());
    assert_eq!(guest.join().expect("the guest sees the viewer go"), b"RFB");
}
