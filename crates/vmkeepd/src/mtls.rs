//! Mutual TLS between the members of a cluster: each shows its node's certificate and trusts the cluster's authority alone.
//!
//! ```text
//!  control ──connect(node, address)──► compute: accept ──► the node that the client's certificate names
//! ```
//! The files are looked at for each connection and read again when they changed, so a renewed certificate needs no restart. A
//! pair that does not fit (read between the renewal of key and certificate) is told, and the old one goes on.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use async_trait::async_trait;
use axum::body::Body;
use http::{HeaderValue, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use vmkeep_agent::image::Peers;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;

use crate::cluster::pki;
use crate::member::Paths;

/// For TCP and the handshake; a host that is off does not even refuse.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// A member's certificates, ready for both ends of a connection.
pub struct Mtls {
    paths: Paths,
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    /// When the files were written.
    written: [Option<SystemTime>; 3],
    ends: Ends,
}

#[derive(Clone)]
struct Ends {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

pub type Client = tokio_rustls::client::TlsStream<TcpStream>;
pub type Served = tokio_rustls::server::TlsStream<TcpStream>;

impl Mtls {
    /// # Errors
    /// The certificates cannot be used.
    pub fn open(paths: Paths) -> anyhow::Result<Arc<Self>> {
        let mtls = Arc::new(Self { paths, kept: Mutex::new(None) });
        mtls.ends()?;
        Ok(mtls)
    }

    fn ends(&self) -> anyhow::Result<Ends> {
        let files = [self.paths.node_cert(), self.paths.node_key(), self.paths.ca()];
        let written = files.map(|file| file.metadata().and_then(|meta| meta.modified()).ok());
        let mut kept = self.kept.lock().expect("no panic holds this lock");
        if let Some(kept) = kept.as_ref().filter(|kept| kept.written == written) {
            return Ok(kept.ends.clone());
        }
        match (read(&self.paths), kept.as_ref()) {
            (Ok(ends), _) => {
                *kept = Some(Kept { written, ends: ends.clone() });
                Ok(ends)
            }
            (Err(error), Some(kept)) => {
                tracing::error!(error = format!("{error:#}"), "the node's old certificate goes on");
                Ok(kept.ends.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    /// A connection to the agent of `node`, which must prove to be it. `address` is `HOST:PORT`.
    ///
    /// # Errors
    /// Nobody answers there in time, or it is another.
    pub async fn connect(&self, node: &Name, address: &str) -> anyhow::Result<Client> {
        let ends = self.ends()?;
        let name = ServerName::try_from(node.to_string()).context("a node's name stands in its certificate")?;
        let connected = async {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            TlsConnector::from(ends.client).connect(name, tcp).await
        };
        let late = || format!("no answer within {} s", CONNECT_PATIENCE.as_secs());
        Ok(tokio::time::timeout(CONNECT_PATIENCE, connected).await.with_context(late)??)
    }

    /// One request to the agent of `node`.
    ///
    /// # Errors
    /// As [`Mtls::connect`], or the connection broke before the answer's head.
    pub async fn send(&self, node: &Name, address: &str, mut request: http::Request<Body>) -> anyhow::Result<http::Response<Incoming>> {
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(node.as_str()).expect("a name is a host's name"));
        let stream = self.connect(node, address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.context("the connection broke")
    }

    /// The other end, and which node it is.
    ///
    /// # Errors
    /// It is no member.
    pub async fn accept(&self, tcp: TcpStream) -> anyhow::Result<(Served, Name)> {
        let stream = TlsAcceptor::from(self.ends()?.server).accept(tcp).await?;
        let Some(shown) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) else { bail!("no certificate was shown") };
        let node = pki::node_of(shown)?;
        Ok((stream, node))
    }
}

#[async_trait]
impl Peers for Mtls {
    async fn get(&self, node: &Name, address: &str, path: &str) -> Result<http::Response<Body>, Error> {
        let request = http::Request::builder().uri(path).body(Body::empty()).expect("a path of ours");
        let silent = |why: anyhow::Error| Error::new(Code::Unavailable, format!("node '{node}' does not answer at {address}: {why:#}"));
        Ok(self.send(node, address, request).await.map_err(silent)?.map(Body::new))
    }
}

fn read(paths: &Paths) -> anyhow::Result<Ends> {
    let ring = || Arc::new(rustls::crypto::ring::default_provider());
    let chain = || certs(&paths.node_cert());
    let key = || PrivateKeyDer::from_pem_file(paths.node_key()).with_context(|| format!("cannot use {}", paths.node_key().display()));
    let mut roots = RootCertStore::empty();
    for root in certs(&paths.ca())? {
        roots.add(root).with_context(|| format!("{} holds no authority", paths.ca().display()))?;
    }
    let roots = Arc::new(roots);
    let no_pair = || format!("{} and {} are no pair", paths.node_cert().display(), paths.node_key().display());
    let client = ClientConfig::builder_with_provider(ring())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain()?, key()?)
        .with_context(no_pair)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, ring()).build()?;
    let server = ServerConfig::builder_with_provider(ring())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain()?, key()?)
        .with_context(no_pair)?;
    Ok(Ends { client: Arc::new(client), server: Arc::new(server) })
}

fn certs(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    read.with_context(|| format!("cannot use {}", path.display()))
}
