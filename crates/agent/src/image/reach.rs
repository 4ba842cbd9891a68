//! Where image URLs may lead.
//!
//! The daemon fetches with the host's own network: what listens on the host's loopback or answers on its link alone (a cloud's
//! metadata service hands out credentials there) is not for those who may import images. Names are checked by the addresses
//! that are then connected to, so a name that resolves otherwise the second time gains nothing; redirects are checked alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{ClientBuilder, Url};
use vmkeep_types::error::{Code, Error};

/// Set by `fetch_local` in vmkeepd.toml.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Other hosts, private networks included: mirrors are there.
    #[default]
    Others,
    /// This host and its link too.
    Everywhere,
}

/// Metadata services outside the link-local ranges: AWS (IPv6), Alibaba, Azure.
const METADATA: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

#[derive(Debug, thiserror::Error)]
#[error("{host} leads to {address}, which is not for image URLs: it is this host's own or its link's")]
struct OutOfReach {
    host: String,
    address: IpAddr,
}

impl OutOfReach {
    fn told(&self) -> Error {
        Error::new(Code::Refused, self.to_string())
            .hint("upload the file instead (vmkeep image import FILE), or set fetch_local = true in vmkeepd.toml")
    }
}

/// Our refusal, if an error of the client comes from one.
pub fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    std::iter::successors(Some(error), |e| e.source()).find_map(|e| e.downcast_ref::<OutOfReach>()).map(OutOfReach::told)
}

impl Reach {
    /// An address written out in the URL is never resolved.
    pub fn check_url(self, url: &str) -> Result<(), Error> {
        let url = Url::parse(url).map_err(|e| Error::invalid(format!("'{url}' is no address: {e}")))?;
        self.check(&url).map_err(|e| e.told())
    }

    fn check(self, url: &Url) -> Result<(), OutOfReach> {
        let host = url.host_str().unwrap_or_default();
        match host.trim_start_matches('[').trim_end_matches(']').parse() {
            Ok(address) if !self.covers(address) => Err(OutOfReach { host: host.to_owned(), address }),
            _ => Ok(()),
        }
    }

    fn covers(self, address: IpAddr) -> bool {
        self == Self::Everywhere || !is_local(address)
    }

    /// Resolver and redirects of a client.
    pub fn limit(self, builder: ClientBuilder, redirects_max: usize) -> ClientBuilder {
        let follow = Policy::custom(move |attempt| {
            if attempt.previous().len() > redirects_max {
                return attempt.error("too many redirects");
            }
            match self.check(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(refused) => attempt.error(refused),
            }
        });
        builder.redirect(follow).dns_resolver(Arc::new(Resolver(self)))
    }
}

struct Resolver(Reach);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0;
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let (good, bad): (Vec<_>, Vec<_>) = found.into_iter().partition(|a| reach.covers(a.ip()));
            match bad.first() {
                Some(bad) if good.is_empty() => Err(OutOfReach { host, address: bad.ip() }.into()),
                _ => Ok(Box::new(good.into_iter()) as Addrs),
            }
        })
    }
}

fn is_local(address: IpAddr) -> bool {
    if METADATA.contains(&address) {
        return true;
    }
    match address {
        // 0.0.0.0/8 is "this host".
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.octets()[0] == 0 || a.is_multicast() || a.is_broadcast(),
        IpAddr::V6(a) => match inner_v4(a) {
            Some(v4) => is_local(IpAddr::V4(v4)),
            None => a.is_loopback() || a.is_unspecified() || a.is_multicast() || a.is_unicast_link_local(),
        },
    }
}

/// Of an IPv4 address in IPv6's clothes: mapped (::ffff:a.b.c.d) or translated (64:ff9b::a.b.c.d).
fn inner_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, high, low] = address.segments();
    let translated = [a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0];
    let v4 = || Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    address.to_ipv4_mapped().or_else(|| translated.then(v4))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers one request with a redirect to `target`.
    async fn redirector(target: &str) -> SocketAddr {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let answer = format!("HTTP/1.1 302 Found\r\nlocation: {target}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        });
        address
    }

    #[tokio::test]
    async fn a_redirect_gets_no_further_than_a_url() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        for target in ["http://127.0.0.1:1/x", "http://localhost:1/x", "http://[::ffff:169.254.169.254]/x"] {
            let mirror = redirector(target).await;
            let client =
                Reach::Others.limit(reqwest::Client::builder(), 5).no_proxy().resolve("mirror.test", mirror).build().expect("a client");
            let error = client.get(format!("http://mirror.test:{}/x", mirror.port())).send().await.expect_err(target);
            let refused = refusal(&error).unwrap_or_else(|| panic!("{target}: {error:?}"));
            assert_eq!(refused.code, Code::Refused, "{refused}");
        }
    }

    #[test]
    fn this_host_and_its_link_are_out_of_reach_in_every_spelling() {
        for host in [
            "127.0.0.1",
            "127.9.9.9",
            "2130706433",
            "0x7f.1",
            "0.0.0.0",
            "169.254.169.254",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[64:ff9b::a9fe:a9fe]",
            "[fe80::1]",
            "[ff02::1]",
            "[fd00:ec2::254]",
        ] {
            let url = format!("http://{host}:80/x");
            assert!(Reach::Others.check_url(&url).is_err(), "{host}");
            assert_eq!(Reach::Everywhere.check_url(&url), Ok(()), "{host}");
        }
        for host in ["10.0.0.5", "192.168.1.1", "192.0.2.1", "[fd00::1]", "[2001:db8::1]", "mirror.example.org", "127.example.org"] {
            assert_eq!(Reach::Others.check_url(&format!("https://{host}/x")), Ok(()), "{host}");
        }
    }
}
