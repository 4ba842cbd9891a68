//! How a byte stream to the server comes about: a unix socket, or TCP with TLS.
//!
//! Failure: `unavailable`, with the socket's or URL's name, the system's reason and what to look at.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_ok;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use vmkeep_types::error::{Code, Error};

/// TCP and TLS together; a host that does not answer at all should not hold a terminal for minutes.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Until the next server is tried beside one that has not answered yet.
const NEXT_DOOR: Duration = Duration::from_millis(300);
const DOORS_MAX: usize = 16;

/// Where distributions keep the roots that the administrator trusts.
const SYSTEM_ROOTS: [&str; 3] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A user's certificate (with its chain) and key, PEM.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    pub cert: &'a Path,
    pub key: &'a Path,
}

pub(super) enum Target {
    Unix(PathBuf),
    Https(Box<Https>),
}

/// The servers of one cluster, each of which has the whole API.
pub(super) struct Https {
    /// As it was written.
    urls: String,
    doors: Vec<Door>,
    tls: TlsConnector,
}

struct Door {
    /// Host and port as they are dialled and sent in `Host`.
    authority: String,
    host: String,
    port: u16,
    name: ServerName<'static>,
}

impl Door {
    fn of(text: &str) -> Result<Self, Error> {
        let bad = |why: String| Error::invalid(format!("'{text}' is not a server: {why}")).hint("write it like https://host:8443");
        let url = url::Url::parse(text).map_err(|e| bad(e.to_string()))?;
        if url.scheme() != "https" {
            return Err(bad("only https:// is spoken over the network".into()));
        }
        let host = url.host_str().ok_or_else(|| bad("it names no host".into()))?.trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().unwrap_or(443);
        let name = ServerName::try_from(host.clone()).map_err(|e| bad(e.to_string()))?;
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Ok(Self { authority, host, port, name })
    }
}

impl Https {
    /// To the first that answers; nothing has been asked of anybody before.
    async fn open(&self) -> io::Result<Box<dyn Stream>> {
        let tries = self.doors.iter().zip(0..).map(|(door, place): (&Door, u32)| {
            Box::pin(async move {
                tokio::time::sleep(NEXT_DOOR * place).await;
                let tcp = TcpStream::connect((door.host.as_str(), door.port)).await?;
                tcp.set_nodelay(true)?;
                self.tls.connect(door.name.clone(), tcp).await.map(|s| Box::new(s) as Box<dyn Stream>)
            })
        });
        select_ok(tries).await.map(|(stream, _)| stream)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Https(https) => f.write_str(&https.urls),
        }
    }
}

impl Target {
    /// One URL, or several with commas between: the servers of one cluster.
    pub(super) fn https(text: &str, ca_file: Option<&Path>, identity: Option<Identity<'_>>) -> Result<Self, Error> {
        let urls: Vec<&str> = text.split(',').map(|url| url.trim().trim_end_matches('/')).collect();
        if urls.len() > DOORS_MAX {
            return Err(Error::invalid(format!("{} servers are named; {DOORS_MAX} are enough", urls.len())));
        }
        let doors = urls.iter().map(|url| Door::of(url)).collect::<Result<_, _>>()?;
        Ok(Self::Https(Box::new(Https { urls: urls.join(","), doors, tls: connector(ca_file, identity)? })))
    }

    pub(super) fn host(&self) -> &str {
        match self {
            Self::Unix(_) => "vmkeep",
            Self::Https(https) => https.doors.first().map_or("vmkeep", |door| &door.authority),
        }
    }

    pub(super) async fn open(&self) -> Result<Box<dyn Stream>, Error> {
        let opened = async {
            match self {
                Self::Unix(path) => UnixStream::connect(path).await.map(|s| Box::new(s) as Box<dyn Stream>),
                Self::Https(https) => https.open().await,
            }
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", CONNECT_PATIENCE.as_secs()));
        let result = tokio::time::timeout(CONNECT_PATIENCE, opened).await.unwrap_or_else(|_| Err(late()));
        result.map_err(|e| self.unreachable(&e))
    }

    fn unreachable(&self, error: &io::Error) -> Error {
        let message = format!("cannot reach vmkeepd at {self}: {}", plain(error));
        let hint = match (self, error.kind()) {
            (Self::Unix(_), io::ErrorKind::PermissionDenied) => {
                "only root and members of group 'vmkeep' may use the socket: 'sudo usermod -aG vmkeep $USER', then log in again"
            }
            (Self::Unix(_), _) => "is the daemon running? see 'systemctl status vmkeepd'",
            (Self::Https(_), io::ErrorKind::InvalidData) => "give the server's CA certificate with --ca-file (VMKEEP_CA_FILE)",
            (Self::Https(_), _) => "does vmkeepd listen there? see [tls] in /etc/vmkeep/vmkeepd.toml on the host",
        };
        Error::new(Code::Unavailable, message).hint(hint)
    }
}

/// Without "(os error 2)", which tells an administrator nothing.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn connector(ca_file: Option<&Path>, identity: Option<Identity<'_>>) -> Result<TlsConnector, Error> {
    let file = match ca_file {
        Some(file) => file,
        None => SYSTEM_ROOTS.iter().map(Path::new).find(|p| p.exists()).ok_or_else(|| {
            Error::invalid("this host has no list of trusted certificates").hint("give the server's CA certificate with --ca-file")
        })?,
    };
    let unreadable = |e: &dyn fmt::Display| Error::invalid(format!("cannot read the CA certificates in {}: {e}", file.display()));
    let mut roots = rustls::RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(file).map_err(|e| unreadable(&e))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| unreadable(&e))?;
        let added = roots.add(certificate);
        // A system's bundle may hold one that webpki does not take; a given file must be right.
        if let (Err(e), Some(_)) = (added, ca_file) {
            return Err(unreadable(&e));
        }
    }
    if roots.is_empty() {
        return Err(unreadable(&"it holds no certificate"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal(format!("TLS cannot be set up: {e}")))?
        .with_root_certificates(roots);
    let config = match identity {
        Some(identity) => {
            let (chain, key) = identity.read()?;
            config.with_client_auth_cert(chain, key).map_err(|e| identity.unusable(&e))?
        }
        None => config.with_no_client_auth(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Identity<'_> {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        let chain = CertificateDer::pem_file_iter(self.cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|e| self.unusable(&e))?;
        Ok((chain, PrivateKeyDer::from_pem_file(self.key).map_err(|e| self.unusable(&e))?))
    }

    fn unusable(&self, error: &dyn fmt::Display) -> Error {
        Error::invalid(format!("{} and {} cannot be used to say who you are: {error}", self.cert.display(), self.key.display()))
            .hint("give your certificate and its key, PEM, with --cert-file and --key-file")
    }
}
