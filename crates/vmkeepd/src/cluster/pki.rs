//! The cluster's own certificate authority.
//!
//! ```text
//!  ca.key (control nodes) ─┬─issues──► node.pem     CN=node:NAME     client + server: agent ↔ control, user of etcd
//!      │                    ├────────► etcd.pem     CN=etcd:NAME     client + server: etcd's clients and peers
//!      │                    └────────► libvirt.pem  CN=libvirt:NAME  client + server: libvirt ↔ libvirt
//!      └─its key gives another─issues──► qemu.pem     CN=qemu:NAME     client + server: what QEMU sends to QEMU
//! ```
//! QEMU's key is readable for whoever breaks out of a guest into QEMU. So its certificates are another authority's: they open
//! neither etcd nor an agent nor libvirt. That authority follows from the first one's key: whoever holds the one has the other.
//!
//! The keys of a member never leave it: it sends requests, and only the public key of a request is used. A certificate is
//! made anew when less than a third of its life is left.
//!
//! How it fails: nothing is replaced before its successor is whole; a key and its certificate that do not fit are made anew.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use vmkeep_types::cluster::MemberRole;
use vmkeep_types::name::Name;
use x509_parser::extensions::GeneralName;

use crate::member::{Paths, write_whole};

/// Of the authority. Its successor is the next cluster's.
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * DAY_SECONDS);
/// Of a member's certificates: renewed by itself when a third is left.
const LEAF_LIFE: Duration = Duration::from_secs(365 * DAY_SECONDS);
const DAY_SECONDS: u64 = 24 * 3600;
/// Clocks of members may differ; a certificate made now is valid a little earlier.
const BACKDATED_SECONDS: i64 = 24 * 3600;

/// Names what its authority's key is made for, so that nothing else gets the same.
const QEMU_LABEL: &[u8] = b"vmkeep: the authority of QEMU's certificates\0";
const QEMU_AUTHORITY: &str = "vmkeep cluster, QEMU to QEMU";
/// RFC 8410: what stands before the 32 bytes of an Ed25519 key.
const ED25519_PKCS8_HEAD: &[u8] = &[0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// Agent, control plane and user of etcd: `node:NAME`.
    Node,
    /// etcd itself: `etcd:NAME`.
    Etcd,
    /// libvirt, which other hosts' libvirt sends guests to: `libvirt:NAME`.
    Libvirt,
    /// QEMU on its way to another host: `qemu:NAME`.
    Qemu,
}

impl Purpose {
    pub fn common_name(self, node: &Name) -> String {
        match self {
            Self::Node => format!("node:{node}"),
            Self::Etcd => format!("etcd:{node}"),
            Self::Libvirt => format!("libvirt:{node}"),
            Self::Qemu => format!("qemu:{node}"),
        }
    }

    /// Where a member keeps the certificate, with its authority behind it.
    pub fn cert(self, paths: &Paths) -> PathBuf {
        match self {
            Self::Node => paths.node_cert(),
            Self::Etcd => paths.etcd_cert(),
            Self::Libvirt => paths.dir.join("libvirt.pem"),
            Self::Qemu => paths.dir.join("qemu.pem"),
        }
    }

    /// Where it keeps the key.
    pub fn key(self, paths: &Paths) -> PathBuf {
        match self {
            Self::Node => paths.node_key(),
            Self::Etcd => paths.etcd_key(),
            Self::Libvirt => paths.dir.join("libvirt.key"),
            Self::Qemu => paths.dir.join("qemu.key"),
        }
    }

    /// Those of a member with these roles.
    pub fn of(roles: &[MemberRole]) -> Vec<Self> {
        let guests = roles.contains(&MemberRole::Compute);
        let all = [Self::Node, Self::Etcd, Self::Libvirt, Self::Qemu];
        all.into_iter().filter(|purpose| guests || matches!(purpose, Self::Node | Self::Etcd)).collect()
    }
}

/// The authority with its key: on control nodes only.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    qemu: Issuer<'static, KeyPair>,
    qemu_pem: String,
    /// Of the certificates that it issues.
    life: Duration,
    /// The API's one address, which control nodes have in turn.
    vip: Option<String>,
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
        let (qemu, qemu_pem) = of_qemu(&paths.ca(), &key)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).with_context(|| format!("{} is no authority", paths.ca().display()))?;
        Ok(Self { issuer, pem, qemu, qemu_pem, life: LEAF_LIFE, vip: None })
    }

    /// The same, issuing for another term than a year.
    #[must_use]
    pub fn for_a_life_of(self, life: Duration) -> Self {
        Self { life, ..self }
    }

    /// The same, issuing certificates that name this address too.
    #[must_use]
    pub fn naming(self, vip: Option<String>) -> Self {
        Self { vip, ..self }
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// What stands behind a certificate for this.
    fn behind(&self, purpose: Purpose) -> (&Issuer<'static, KeyPair>, &str) {
        match purpose {
            Purpose::Node | Purpose::Etcd | Purpose::Libvirt => (&self.issuer, &self.pem),
            Purpose::Qemu => (&self.qemu, &self.qemu_pem),
        }
    }

    /// A certificate over the public key of a request; everything else in the request is ignored.
    ///
    /// # Errors
    /// The request does not parse or its signature does not fit.
    pub fn issue(&self, request_pem: &str, purpose: Purpose, node: &Name, address: &str) -> anyhow::Result<String> {
        let mut request = CertificateSigningRequestParams::from_pem(request_pem).context("the certificate request is not valid")?;
        request.params = leaf_params(purpose, node, address, self)?;
        Ok(request.signed_by(self.behind(purpose).0)?.pem())
    }

    /// The same with its authority behind it.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue_chain(&self, request_pem: &str, purpose: Purpose, node: &Name, address: &str) -> anyhow::Result<String> {
        Ok(chain(&self.issue(request_pem, purpose, node, address)?, self.behind(purpose).1))
    }
}

/// The authority of QEMU's certificates: the same, bit by bit, wherever the cluster's authority is.
fn of_qemu(ca_file: &Path, ca_key: &KeyPair) -> anyhow::Result<(Issuer<'static, KeyPair>, String)> {
    let seed = Sha256::new_with_prefix(QEMU_LABEL).chain_update(ca_key.serialize_der()).finalize();
    let der = PrivatePkcs8KeyDer::from([ED25519_PKCS8_HEAD, seed.as_slice()].concat());
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519)?;
    let (begin, end) = validity(ca_file)?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = common_name(QEMU_AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let at = |time: jiff::Timestamp| time::OffsetDateTime::from_unix_timestamp(time.as_second()).context("a time beyond all calendars");
    (params.not_before, params.not_after) = (at(begin)?, at(end)?);
    let pem = params.self_signed(&key)?.pem();
    let issuer = Issuer::from_ca_cert_pem(&pem, key).context("QEMU's authority")?;
    Ok((issuer, pem))
}

fn ca_params(cluster: Uuid) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = common_name(&format!("vmkeep cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, CA_LIFE)?;
    Ok(params)
}

fn leaf_params(purpose: Purpose, node: &Name, address: &str, authority: &Authority) -> anyhow::Result<CertificateParams> {
    // etcd's own connections to itself and `etcdctl` on the host go over loopback.
    let mut names = vec![node.to_string(), address.to_owned(), "localhost".into(), "127.0.0.1".into(), "::1".into()];
    names.extend(authority.vip.clone());
    names.dedup();
    let mut params = CertificateParams::new(names).with_context(|| format!("'{address}' cannot stand in a certificate"))?;
    params.distinguished_name = common_name(&purpose.common_name(node));
    // Older libvirt and QEMU refuse a certificate without the second, whatever its key.
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, authority.life)?;
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn
}

fn valid_for(params: &mut CertificateParams, life: Duration) -> anyhow::Result<()> {
    let now = jiff::Timestamp::now().as_second();
    let at = |seconds: i64| time::OffsetDateTime::from_unix_timestamp(seconds).context("the clock is far off");
    params.not_before = at(now - BACKDATED_SECONDS)?;
    params.not_after = at(now.saturating_add_unsigned(life.as_secs()))?;
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
    let life = end.as_second() - begin.as_second() - BACKDATED_SECONDS;
    Ok(if left * 3 < life { Freshness::Old } else { Freshness::Fresh })
}

/// Whether a certificate names this address.
///
/// # Errors
/// The file is no certificate.
pub fn names(cert_file: &Path, ip: IpAddr) -> anyhow::Result<bool> {
    let der = CertificateDer::from_pem_file(cert_file).with_context(|| format!("cannot read {}", cert_file.display()))?;
    let (_, cert) = x509_parser::parse_x509_certificate(&der).with_context(|| format!("{} is no certificate", cert_file.display()))?;
    let bytes = match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let is = |name: &GeneralName<'_>| matches!(name, GeneralName::IPAddress(ip) if *ip == bytes);
    Ok(cert.subject_alternative_name()?.is_some_and(|names| names.value.general_names.iter().any(is)))
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

/// The authority behind a certificate, of a file that [`chain`] made.
///
/// # Errors
/// There is none.
pub fn authority_of(chain_pem: &[u8]) -> anyhow::Result<String> {
    let all = std::str::from_utf8(chain_pem).context("no PEM")?;
    let begin = all.match_indices("-----BEGIN CERTIFICATE-----").nth(1).context("no authority stands behind the certificate")?.0;
    Ok(all[begin..].to_owned())
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

/// Certificates of a member that holds the authority's key itself.
///
/// # Errors
/// The disk's.
pub fn issue_own(authority: &Authority, paths: &Paths, node: &Name, address: &str, purposes: &[Purpose]) -> anyhow::Result<()> {
    for purpose in purposes {
        let issued = authority.issue_chain(&request(&purpose.key(paths))?, *purpose, node, address)?;
        write_whole(&purpose.cert(paths), 0o644, issued.as_bytes())?;
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

    const BOTH: [Purpose; 2] = [Purpose::Node, Purpose::Etcd];

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
        issue_own(&authority, &paths, &Name::known("a"), "10.0.0.1", &BOTH).expect("issued");
        for key in [paths.ca_key(), paths.node_key(), paths.etcd_key()] {
            assert_eq!(fs::metadata(&key).expect("a key").permissions().mode() & 0o777, 0o600, "{}", key.display());
        }
        let (ca, key) = (fs::read(paths.ca()).expect("there"), fs::read(paths.node_key()).expect("there"));
        Authority::open_or_make(&paths, Uuid::from_u128(2)).expect("opened");
        issue_own(&authority, &paths, &Name::known("a"), "10.0.0.1", &BOTH).expect("again");
        assert_eq!((fs::read(paths.ca()).expect("there"), fs::read(paths.node_key()).expect("there")), (ca, key));
        assert_eq!(node_of(&certs(&paths.node_cert())[0]).expect("a node"), Name::known("a"));
        assert!(node_of(&certs(&paths.etcd_cert())[0]).is_err(), "etcd is no node");
        assert_eq!(fingerprint(&certs(&paths.node_cert())[1]), pem_fingerprint(authority.pem()).expect("one"), "the chain ends in the CA");
    }

    #[tokio::test]
    async fn members_trust_each_other_and_nobody_else() {
        let (_dir, paths, authority) = made();
        issue_own(&authority, &paths, &Name::known("a"), "10.0.0.1", &BOTH).expect("issued");
        let (_other_dir, other, other_authority) = made();
        issue_own(&other_authority, &other, &Name::known("a"), "10.0.0.1", &BOTH).expect("issued");
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
        issue_own(&authority, &paths, &Name::known("a"), "10.0.0.1", &BOTH).expect("issued");
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

    #[test]
    fn qemus_certificates_are_another_authoritys_which_follows_from_the_first() {
        let (_dir, paths, authority) = made();
        let all = Purpose::of(&[MemberRole::Compute]);
        issue_own(&authority, &paths, &Name::known("a"), "10.0.0.1", &all).expect("issued");
        let again = Authority::open(&paths).expect("opened");
        assert_eq!(again.qemu_pem, authority.qemu_pem, "wherever the key is");
        let (_other_dir, _, other) = made();
        assert_ne!(other.qemu_pem, authority.qemu_pem);
        let roots = |file: &Path| certs(file).remove(1);
        assert_ne!(roots(&Purpose::Qemu.cert(&paths)), roots(&paths.node_cert()));
        assert_eq!(roots(&Purpose::Libvirt.cert(&paths)), roots(&paths.node_cert()));
        for (purpose, root) in [(Purpose::Qemu, Purpose::Qemu), (Purpose::Libvirt, Purpose::Node)] {
            let (leaf, root) = (certs(&purpose.cert(&paths)).remove(0), roots(&root.cert(&paths)));
            let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).expect("a certificate");
            let (_, root) = x509_parser::parse_x509_certificate(&root).expect("a certificate");
            assert_eq!(leaf.issuer(), root.subject(), "{purpose:?}");
        }
        assert_eq!(Purpose::of(&[MemberRole::Witness]), BOTH);
    }
}
