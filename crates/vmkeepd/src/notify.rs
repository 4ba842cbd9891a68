//! systemd's notification protocol: one datagram per message to the socket named in `NOTIFY_SOCKET`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Where systemd listens; None = we were not started by it.
pub struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    pub fn from_env() -> Self {
        let micros = |text: String| text.parse::<u64>().ok().filter(|n| *n > 0).map(Duration::from_micros);
        let ours = std::env::var("WATCHDOG_PID").ok().is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = std::env::var("WATCHDOG_USEC").ok().filter(|_| ours).and_then(micros);
        Self::new(std::env::var("NOTIFY_SOCKET").ok().as_deref(), watchdog)
    }

    fn new(path: Option<&str>, watchdog: Option<Duration>) -> Self {
        let address = path.and_then(|path| match path.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name).ok(),
            None => SocketAddr::from_pathname(path).ok(),
        });
        let socket = address.and_then(|address| {
            let socket = UnixDatagram::unbound().ok()?;
            // A full queue of systemd must not hold us up.
            socket.set_nonblocking(true).ok()?;
            Some((socket, address))
        });
        Self { socket, watchdog }
    }

    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// Never before the process begins anew: systemd would wait for its end, and kill it after `TimeoutStopSec=`.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    pub fn anew(&self) {
        self.send("STATUS=begins anew");
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::debug!(%error, "systemd did not take a notification");
        }
    }

    /// Says that we live, twice per period, as long as the runtime still runs tasks. Ends with the shutdown. It begins with the process:
    /// one that began anew has systemd's watchdog from its first moment.
    pub async fn keep_alive(&self, shutdown: &CancellationToken) {
        let Some(period) = self.watchdog else { return shutdown.cancelled().await };
        let mut tick = tokio::time::interval(period / 2);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => self.send("WATCHDOG=1"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let n = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    }

    #[tokio::test]
    async fn systemd_hears_us_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("notify");
        let systemd = UnixDatagram::bind(&path).expect("a socket");
        let notify = Notify::new(path.to_str(), Some(Duration::from_millis(40)));
        notify.ready("2 VMs");
        assert_eq!(receive(&systemd), "READY=1\nSTATUS=2 VMs");
        let shutdown = CancellationToken::new();
        tokio::select! {
            () = notify.keep_alive(&shutdown) => panic!("it goes on until shutdown"),
            () = tokio::time::sleep(Duration::from_millis(30)) => {}
        }
        assert_eq!(receive(&systemd), "WATCHDOG=1");
        notify.anew();
        while receive(&systemd) != "STATUS=begins anew" {}
        notify.stopping();
        while receive(&systemd) != "STOPPING=1" {}

        let name = format!("vmkeep-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let systemd = UnixDatagram::bind_addr(&address).expect("a socket");
        Notify::new(Some(&format!("@{name}")), None).stopping();
        assert_eq!(receive(&systemd), "STOPPING=1");
    }

    #[test]
    fn without_systemd_nothing_happens() {
        let notify = Notify::new(None, None);
        notify.ready("");
        notify.stopping();
        Notify::new(Some("/does/not/exist"), None).ready("");
    }
}
