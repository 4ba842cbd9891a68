//! The cluster's own certificate authority.
//!
//! ```text
//!  ca.key (control nodes) ──issues──► node.pem  CN=node:NAME  client + server: agent ↔ control, user of etcd
//!                                └──► etcd.pem  CN=etcd:NAME  client + server: etcd's clients and peers
//! ```
//! The keys of a member never leave it: it sends requests, and only the public key of a request is used. A certificate is
//! made anew when less than a third of its life is left.
//!
//! How it fails: nothing is replaced before its successor is whole; a key and its certificate that do not fit are made anew.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use uuid::Uuid;
use vmkeep_types::name::Name;

use crate::member::{Paths, write_whole};

/// Of the authority. Its successor is the next cluster's.
const CA_DAYS: i64 = 20 * 365;
/// Of a member's certificates: renewed by itself when a third is left.
const LEAF_DAYS: i64 = 365;
/// Clocks of members may differ; a certificate made now is valid a little earlier.
const BACKDATED_HOURS: i64 = 24;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Agent, control plane and user of etcd: `node:NAME`.
    Node,
    /// etcd itself: `etcd:NAME`.
    Etcd,
}

impl Purpose {
    pub fn common_name(self, node: &Name) -> String {
        match self {
            Self::Node => format!("node:{node}"),
            Self::Etcd => format!("etcd:{node}"),
        }
    }
}

/// The authority with its key: on control nodes only.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// The authority of this directory; made when there is none.
    ///
    /// # Errors
    /// The disk's, and an authority of which only half is there.
    pub fn open_or_make(paths: &Paths, cluster: Uuid) -> anyhow::Result<Self> {
        paths.make()?;
        // The certificate comes last: a key alone is left over from a crash.
        if !paths.ca().exists() {
            let key = KeyPair::generate()?;
            let cert = ca_params(cluster)?.self_signed(&key)?;
            write_whole(&paths.ca_key(), 0o600, key.serialize_pem().as_bytes())?;
            write_whole(&paths.ca(), 0o644, cert.pem().as_bytes())?;
        }
        Self::open(paths)
    }

    /// # Errors
    /// This host has no authority's key: it is no control node.
    pub fn open(paths: &Paths) -> anyhow::Result<Self> {
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let (pem, key) = (read(&paths.ca())?, read(&paths.ca_key())?);
        let key = KeyPair::from_pem(&key).with_context(|| format!("{} holds no key", paths.ca_key().display()))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).with_context(|| format!("{} is no authority", paths.ca().display()))?;
        Ok(Self { issuer, pem })
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate over the public key of a request; everything else in the request is ignored.
    ///
    /// # Errors
    /// The request does not parse or its signature does not fit.
    pub fn issue(&self, request_pem: &str, purpose: Purpose, node: &Name, address: &str) -> anyhow::Result<String> {
        let mut request = CertificateSigningRequestParams::from_pem(request_pem).context("the certificate request is not valid")?;
        request.params = leaf_params(purpose, node, address)?;
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

fn ca_params(cluster: Uuid) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = common_name(&format!("vmkeep cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, CA_DAYS)?;
    Ok(params)
}

fn leaf_params(purpose: Purpose, node: &Name, address: &str) -> anyhow::Result<CertificateParams> {
    // etcd's own connections to itself and `etcdctl` on the host go over loopback.
    let mut names = vec![node.to_string(), address.to_owned(), "localhost".into(), "127.0.0.1".into(), "::1".into()];
    names.dedup();
    let mut params = CertificateParams::new(names).with_context(|| format!("'{address}' cannot stand in a certificate"))?;
    params.distinguished_name = common_name(&purpose.common_name(node));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, LEAF_DAYS)?;
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn
}

fn valid_for(params: &mut CertificateParams, days: i64) -> anyhow::Result<()> {
    let now = jiff::Timestamp::now().as_second();
    let at = |seconds: i64| time::OffsetDateTime::from_unix_timestamp(seconds).context("the clock is far off");
    params.not_before = at(now - BACKDATED_HOURS * 3600)?;
    params.not_after = at(now + days * 24 * 3600)?;
    Ok(())
}

/// A member's key beside its request for a certificate. A key that is there is used again.
///
/// # Errors
/// The disk's.
pub fn request(key_file: &Path) -> anyhow::Result<String> {
    let old = fs::read_to_string(key_file).ok().and_then(|pem| KeyPair::from_pem(&pem).ok());
    let key = match old {
        Some(key) => key,
        None => {
            let key = KeyPair::generate()?;
            write_whole(key_file, 0o600, key.serialize_pem().as_bytes())?;
            key
        }
    };
    Ok(CertificateParams::new(Vec::new())?.serialize_request(&key)?.pem()?)
}

/// How much longer a certificate is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    Fresh,
    /// Less than a third of its life is left, or it is over: it is to be made anew.
    Old,
}

/// # Errors
/// The file is no certificate.
pub fn freshness(cert_file: &Path, now: jiff::Timestamp) -> anyhow::Result<Freshness> {
    let (begin, end) = validity(cert_file)?;
    let left = end.as_second() - now.as_second();
    let life = end.as_second() - begin.as_second();
    Ok(if left * 3 < life { Freshness::Old } else { Freshness::Fresh })
}

/// From when to when a certificate is valid.
///
/// # Errors
/// The file is no certificate.
pub fn validity(cert_file: &Path) -> anyhow::Result<(jiff::Timestamp, jiff::Timestamp)> {
    let der = CertificateDer::from_pem_file(cert_file).with_context(|| format!("cannot read {}", cert_file.display()))?;
    let (_, cert) = x509_parser::parse_x509_certificate(&der).with_context(|| format!("{} is no certificate", cert_file.display()))?;
    let at = |time: x509_parser::time::ASN1Time| jiff::Timestamp::from_second(time.timestamp()).context("a time beyond all calendars");
    Ok((at(cert.validity().not_before)?, at(cert.validity().not_after)?))
}

/// SHA-256 of a certificate, as hexadecimal digits: what a join token pins.
pub fn fingerprint(der: &CertificateDer<'_>) -> String {
    Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The fingerprint of a PEM certificate.
///
/// # Errors
/// It is none.
pub fn pem_fingerprint(pem: &str) -> anyhow::Result<String> {
    Ok(fingerprint(&CertificateDer::from_pem_slice(pem.as_bytes()).context("no certificate")?))
}

/// The node that a peer's certificate names; it was verified by rustls before.
///
/// # Errors
/// It is not a node's certificate.
pub fn node_of(der: &CertificateDer<'_>) -> anyhow::Result<Name> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).context("the peer's certificate does not parse")?;
    let cn = cert.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok()).unwrap_or_default();
    let Some(name) = cn.strip_prefix("node:") else { bail!("'{cn}' is not a node's certificate") };
    name.parse().with_context(|| format!("'{cn}' is not a node's certificate"))
}

/// The leaf with the authority behind it: what a server shows, so that a joiner finds the authority that its token pins.
pub fn chain(leaf_pem: &str, ca_pem: &str) -> String {
    format!("{}\n{ca_pem}", leaf_pem.trim_end())
}

/// The node's and etcd's certificates of a member that holds the authority's key itself.
///
/// # Errors
/// The disk's.
pub fn issue_own(authority: &Authority, paths: &Paths, node: &Name, address: &str) -> anyhow::Result<()> {
    let pairs = [(Purpose::Node, paths.node_key(), paths.node_cert()), (Purpose::Etcd, paths.etcd_key(), paths.etcd_cert())];
    for (purpose, key, cert) in pairs {
        let issued = authority.issue(&request(&key)?, purpose, node, address)?;
        write_whole(&cert, 0o644, chain(&issued, authority.pem()).as_bytes())?;
    }
    Ok(())
}

/// An address as it stands in a URL.
pub fn in_url(address: &str) -> String {
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => format!("[{v6}]"),
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{ClientConfig, RootCertStore, ServerConfig};

    use super::*;

    fn made() -> (tempfile::TempDir, Paths, Authority) {
        let dir = tempfile::tempdir().expect("a folder");
        let paths = Paths::new(dir.path());
        let authority = Authority::open_or_make(&paths, Uuid::from_u128(1)).expect("made");
        (dir, paths, authority)
    }

    fn certs(path: &Path) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(path).expect("a file").collect::<Result<_, _>>().expect("certificates")
    }

    #[test]
    fn an_authority_is_made_once_and_its_keys_are_secret() {
        let (_dir, paths, authority) = made();
        issue_own(&authority, &paths, &Name::known("a"), "10.0.0.1").expect("issued");
        for key in [paths.ca_key(), paths.node_key(), paths.etcd_key()] {
            assert_eq!(fs::metadata(&key).expect("a key").permissions().mode() & 0o777, 0o600, "{}", key.display());
        }
        let (ca, key) = (fs::read(paths.ca()).expect("there"), fs::read(paths.node_key()).expect("there"));
        Authority::open_or_make(&paths, Uuid::from_u128(2)).expect("opened");
        issue_own(&authority, &paths, &Name::known("a"), "10.0.0.1").expect("again");
        assert_eq!((fs::read(paths.ca()).expect("there"), fs::read(paths.node_key()).expect("there")), (ca, key));
        assert_eq!(node_of(&certs(&paths.node_cert())[0]).expect("a node"), Name::known("a"));
        assert!(node_of(&certs(&paths.etcd_cert())[0]).is_err(), "etcd is no node");
        assert_eq!(fingerprint(&certs(&paths.node_cert())[1]), pem_fingerprint(authority.pem()).expect("one"), "the chain ends in the CA");
    }

    #[tokio::test]
    async fn members_trust_each_other_and_nobody_else() {
        let (_dir, paths, authority) = made();
        issue_own(&authority, &paths, &Name::known("a"), "10.0.0.1").expect("issued");
        let (_other_dir, other, other_authority) = made();
        issue_own(&other_authority, &other, &Name::known("a"), "10.0.0.1").expect("issued");
        assert!(handshake(&paths, &paths, "10.0.0.1").await, "by address");
        assert!(handshake(&paths, &paths, "a").await, "by name");
        assert!(!handshake(&paths, &paths, "10.0.0.2").await, "another's address");
        assert!(!handshake(&paths, &other, "10.0.0.1").await, "another cluster's client");
    }

    async fn handshake(server: &Paths, client: &Paths, name: &str) -> bool {
        let ring = || Arc::new(rustls::crypto::ring::default_provider());
        let roots = |paths: &Paths| {
            let mut roots = RootCertStore::empty();
            roots.add(certs(&paths.ca()).remove(0)).expect("a root");
            Arc::new(roots)
        };
        let key = |paths: &Paths| PrivateKeyDer::from_pem_file(paths.node_key()).expect("a key");
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(server), ring()).build().expect("a verifier");
        let serving = ServerConfig::builder_with_provider(ring()).with_safe_default_protocol_versions().expect("versions");
        let serving =
            serving.with_client_cert_verifier(verifier).with_single_cert(certs(&server.node_cert()), key(server)).expect("a pair");
        let calling = ClientConfig::builder_with_provider(ring()).with_safe_default_protocol_versions().expect("versions");
        let calling =
            calling.with_root_certificates(roots(server)).with_client_auth_cert(certs(&client.node_cert()), key(client)).expect("a pair");
        let (near, far) = tokio::io::duplex(1 << 16);
        let accept = tokio_rustls::TlsAcceptor::from(Arc::new(serving)).accept(far);
        let connect =
            tokio_rustls::TlsConnector::from(Arc::new(calling)).connect(ServerName::try_from(name.to_owned()).expect("a name"), near);
        let (accepted, connected) = tokio::join!(accept, connect);
        accepted.is_ok() && connected.is_ok()
    }

    #[test]
    fn a_certificate_is_old_when_a_third_is_left() {
        let (_dir, paths, authority) = made();
        issue_own(&authority, &paths, &Name::known("a"), "10.0.0.1").expect("issued");
        let after = |days: i64| {
            let now = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(days * 24);
            freshness(&paths.node_cert(), now).expect("a certificate")
        };
        assert_eq!([after(0), after(240), after(246), after(400)], [Freshness::Fresh, Freshness::Fresh, Freshness::Old, Freshness::Old]);
    }

    #[test]
    fn a_request_gives_its_key_and_nothing_else() {
        let (dir, _, authority) = made();
        let mut wish = CertificateParams::new(vec!["evil.example".into()]).expect("params");
        wish.distinguished_name = common_name("node:other");
        let key = KeyPair::generate().expect("a key");
        let request = wish.serialize_request(&key).expect("a request").pem().expect("PEM");
        let file = dir.path().join("leaf.pem");
        fs::write(&file, authority.issue(&request, Purpose::Node, &Name::known("b"), "10.0.0.2").expect("issued")).expect("written");
        let der = certs(&file).remove(0);
        assert_eq!(node_of(&der).expect("a node"), Name::known("b"));
        let (_, cert) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
        let names = format!("{:?}", cert.subject_alternative_name().expect("one").expect("there").value);
        assert!(names.contains("\"b\"") && !names.contains("evil"), "{names}");
        assert!(authority.issue("nonsense", Purpose::Node, &Name::known("b"), "10.0.0.2").is_err());
    }
}
