//! Ports for members of etcd on this machine, for tests and benches: etcd takes no port 0.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;

use uuid::Uuid;

/// Below those that the kernel gives to outgoing connections, one of which would have it before etcd does.
const PORTS: Range<u16> = 16_000..32_000;

/// Free at this moment, and no two the same.
///
/// # Errors
/// Loopback cannot be listened at.
pub fn free_ports<const N: usize>() -> std::io::Result<[u16; N]> {
    let mut held = Vec::with_capacity(N);
    let mut ports = [0; N];
    while held.len() < N {
        let random = Uuid::new_v4().as_u128() % PORTS.len() as u128;
        let port = PORTS.start + u16::try_from(random).expect("less than their number");
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => {
                ports[held.len()] = port;
                held.push(listener);
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ports)
}
