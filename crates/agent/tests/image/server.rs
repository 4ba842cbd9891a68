//! A web server on loopback that breaks off and resumes.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What it does with the first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    Breaks,
    /// Breaks off, and the file is another one afterwards.
    BreaksAndChanges,
}

pub struct Server {
    pub url: String,
    /// The Range header of each request, empty without one.
    pub ranges: Arc<Mutex<Vec<String>>>,
}

/// Serves `before` once, half of it, then `after`. Ends with the test's process.
pub fn serve(before: Vec<u8>, after: Vec<u8>, first: First) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/disk.qcow2", listener.local_addr().expect("an address"));
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let told = ranges.clone();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().flatten().enumerate() {
            let (body, tag) = if n == 0 || first == First::Breaks { (&before, "\"one\"") } else { (&after, "\"two\"") };
            let request = head(&stream);
            let field = |name: &str| request.iter().find_map(|l| l.strip_prefix(name)).unwrap_or_default().to_owned();
            told.lock().expect("ranges").push(field("range: "));
            let from = field("range: ").strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')?.parse::<usize>().ok());
            let from = from.filter(|_| field("if-range: ") == tag);
            answer(stream, body, tag, from, n == 0);
        }
    });
    Server { url, ranges }
}

fn head(stream: &TcpStream) -> Vec<String> {
    BufReader::new(stream).lines().map_while(Result::ok).take_while(|l| !l.is_empty()).collect()
}

fn answer(mut stream: TcpStream, body: &[u8], tag: &str, from: Option<usize>, breaks: bool) {
    let rest = &body[from.unwrap_or(0)..];
    let status = if from.is_some() { "206 Partial Content" } else { "200 OK" };
    let sent = if breaks { &rest[..rest.len() / 2] } else { rest };
    // A client that has gone is the test's business.
    let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: {tag}\r\nconnection: close\r\n\r\n", rest.len());
    let _ = stream.write_all(sent);
}
