//! The one call of a host that wants to join: TLS to a control node whose authority the token pins.
//!
//! The server shows its certificate and the authority's behind it. The authority with the pinned fingerprint is trusted for
//! this call, and the server's certificate must be its and name the address that was dialled.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use vmkeep_api::body::ProblemBody;
use vmkeep_types::error::{Code, Error};

use super::pki::fingerprint;

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// For the control node, which adds a member to etcd meanwhile.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A TCP connection, so that the caller can ask for its own address.
pub async fn dial(host: &str, port: u16) -> Result<TcpStream, Error> {
    let unreachable = |why: String| {
        Error::new(Code::Unavailable, format!("{host} port {port} cannot be reached: {why}"))
            .hint("is it a control node of the cluster, and does a firewall let this host in?")
    };
    let connected = tokio::time::timeout(CONNECT_PATIENCE, TcpStream::connect((host, port))).await;
    connected.map_err(|_| unreachable("no answer".into()))?.map_err(|e| unreachable(e.to_string()))
}

/// Posts `body` and reads the answer.
pub async fn post<A: DeserializeOwned>(stream: TcpStream, host: &str, ca: &str, path: &str, body: &impl Serialize) -> Result<A, Error> {
    let broke = |why: String| Error::new(Code::Unavailable, format!("{host}: {why}"));
    let name = ServerName::try_from(host.to_owned()).map_err(|e| Error::invalid(format!("'{host}': {e}")))?;
    let tls = TlsConnector::from(Arc::new(client(ca)?)).connect(name, stream);
    let tls = tokio::time::timeout(CONNECT_PATIENCE, tls).await.map_err(|_| broke("no answer".into()))?;
    let tls = tls.map_err(|e| not_believed(host, &e))?;
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|e| broke(e.to_string()))?;
    tokio::spawn(connection);
    let body = serde_json::to_vec(body).map_err(|e| Error::internal(e.to_string()))?;
    let request = http::Request::post(path).header("host", host).header("content-type", "application/json");
    let request = request.body(Full::new(Bytes::from(body))).map_err(|e| Error::internal(e.to_string()))?;
    let answer = async {
        let (head, body) = send.send_request(request).await.map_err(|e| broke(e.to_string()))?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|e| broke(e.to_string()))?;
        Ok::<_, Error>((head.status, body.to_bytes()))
    };
    let (status, bytes) = tokio::time::timeout(ANSWER_PATIENCE, answer).await.map_err(|_| broke("no answer".into()))??;
    if status.is_success() {
        return serde_json::from_slice(&bytes).map_err(|e| Error::refused(format!("{host} answers something else: {e}")));
    }
    let problem: Result<ProblemBody, _> = serde_json::from_slice(&bytes);
    Err(problem.map_or_else(|_| Error::refused(format!("{host} answers {status}")), Error::from))
}

fn not_believed(host: &str, error: &std::io::Error) -> Error {
    let said = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let (word, bound, now) = match said {
        Some(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before })) => ("from", not_before, time),
        Some(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after })) => ("until", not_after, time),
        _ => {
            return Error::refused(format!("{host} is not who the token was made by: {error}"))
                .hint("use the token with the cluster that made it; if that is this one, somebody is between you");
        }
    };
    let told = |at: &UnixTime| {
        let at = i64::try_from(at.as_secs()).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        at.map_or_else(|| "a time beyond all calendars".to_owned(), |at| at.to_string())
    };
    Error::conflict(format!("{host}'s certificate is valid {word} {}, and this host's clock says {}", told(bound), told(now)))
        .hint("set the clock (install chrony); where it is right, the certificate ended: vmkeep cluster status -o wide there")
}

fn client(ca: &str) -> Result<ClientConfig, Error> {
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = Arc::new(Pinned { ca: ca.to_owned(), ring: ring.clone() });
    let config = ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions();
    let config = config.map_err(|e| Error::internal(e.to_string()))?;
    Ok(config.dangerous().with_custom_certificate_verifier(pinned).with_no_client_auth())
}

#[derive(Debug)]
struct Pinned {
    ca: String,
    ring: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let other = || rustls::Error::General("its authority is another one".into());
        let ca = intermediates.iter().find(|cert| fingerprint(cert) == self.ca).ok_or_else(other)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.ring.clone()).build();
        let verifier = verifier.map_err(|e| rustls::Error::General(e.to_string()))?;
        let verify = |at| verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, at);
        let verified = verify(now);
        // Its time is looked at first. Only where nothing else is wrong is it told.
        match &verified {
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before: at, .. })) => {
                verify(*at).and(verified)
            }
            Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after: at, .. })) => verify(*at).and(verified),
            _ => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.ring.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.ring.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.ring.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

    use super::*;

    struct Ca {
        cert: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn authority(name: &str) -> Ca {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.self_signed(&key).expect("signed");
        Ca { cert: cert.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn leaf(ca: &Ca) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["10.0.0.1".to_owned()]).expect("a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().expect("a key");
        params.signed_by(&key, &ca.issuer).expect("signed").der().clone()
    }

    #[test]
    fn only_a_server_of_the_pinned_authority_is_believed() {
        let (ours, theirs) = (authority("vmkeep"), authority("vmkeep"));
        let pinned = Pinned { ca: fingerprint(&ours.cert), ring: Arc::new(rustls::crypto::ring::default_provider()) };
        let believed = |leaf: &CertificateDer<'_>, behind: &[&Ca], name: &str, now: UnixTime| {
            let behind: Vec<CertificateDer<'_>> = behind.iter().map(|ca| ca.cert.clone()).collect();
            let name = ServerName::try_from(name.to_owned()).expect("a name");
            pinned.verify_server_cert(leaf, &behind, &name, &[], now).is_ok()
        };
        let (good, forged, now) = (leaf(&ours), leaf(&theirs), UnixTime::now());
        assert!(believed(&good, &[&ours], "10.0.0.1", now));
        assert!(!believed(&good, &[], "10.0.0.1", now), "the authority is not shown");
        assert!(!believed(&forged, &[&theirs], "10.0.0.1", now), "another authority of the same name");
        assert!(!believed(&forged, &[&theirs, &ours], "10.0.0.1", now), "the pinned one is only laid beside it");
        assert!(!believed(&good, &[&ours], "10.0.0.2", now), "another host of the same cluster");
        let later = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + (1 << 40)));
        assert!(!believed(&good, &[&ours], "10.0.0.1", later), "its time is over");
    }

    #[test]
    fn a_clock_that_is_off_is_told_and_nobody_is_taken_for_a_stranger() {
        let (ours, theirs) = (authority("vmkeep"), authority("vmkeep"));
        let pinned = Pinned { ca: fingerprint(&ours.cert), ring: Arc::new(rustls::crypto::ring::default_provider()) };
        let told = |leaf: &CertificateDer<'_>, name: &str, now: u64| {
            let (name, now) =
                (ServerName::try_from(name.to_owned()).expect("a name"), UnixTime::since_unix_epoch(Duration::from_secs(now)));
            let error = pinned.verify_server_cert(leaf, std::slice::from_ref(&ours.cert), &name, &[], now).expect_err("refused");
            let error = not_believed("10.0.0.1", &std::io::Error::new(std::io::ErrorKind::InvalidData, error));
            format!("{}\n  {}\n", error.message, error.hint.unwrap_or_default())
        };
        let (good, forged) = (leaf(&ours), leaf(&theirs));
        let all = [(&good, "10.0.0.1", 0), (&good, "10.0.0.1", 100_000_000_000), (&good, "10.0.0.2", 0), (&forged, "10.0.0.1", 0)];
        let all: String = all.into_iter().map(|(leaf, name, now)| told(leaf, name, now)).collect();
        expect_test::expect![[r#"
            10.0.0.1's certificate is valid from 1975-01-01T00:00:00Z, and this host's clock says 1970-01-01T00:00:00Z
              set the clock (install chrony); where it is right, the certificate ended: vmkeep cluster status -o wide there
            10.0.0.1's certificate is valid until 4096-01-01T00:00:00Z, and this host's clock says 5138-11-16T09:46:40Z
              set the clock (install chrony); where it is right, the certificate ended: vmkeep cluster status -o wide there
            10.0.0.1 is not who the token was made by: invalid peer certificate: certificate not valid for name "10.0.0.2"; certificate is only valid for IpAddress(10.0.0.1)
              use the token with the cluster that made it; if that is this one, somebody is between you
            10.0.0.1 is not who the token was made by: invalid peer certificate: BadSignature
              use the token with the cluster that made it; if that is this one, somebody is between you
        "#]].assert_eq(&all);
    }
}
