//! TLS for the API on TCP: rustls with ring, certificates from files, or made by us when so configured.
//!
//! SIGHUP reads the files again; connections that are open keep the old ones. A pair that cannot be used is refused and the
//! old one stays.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoClientAuth;
use rustls::server::danger::ClientCertVerifier;

use crate::config::Tls;
use crate::users;

/// The configuration for new connections.
pub fn load(tls: &Tls) -> anyhow::Result<Arc<ServerConfig>> {
    if tls.self_signed && !tls.cert.exists() && !tls.key.exists() {
        make(tls).context("cannot make a certificate")?;
    }
    let verifier = tls.client_ca.as_deref().map(|ca| users::verifier(ca, tls.client_crl.as_deref())).transpose()?;
    load_pair_for(&tls.cert, &tls.key, verifier)
}

/// A certificate, those behind it, and its key.
pub fn load_pair(cert: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    load_pair_for(cert, key, None)
}

fn load_pair_for(cert: &Path, key: &Path, clients: Option<Arc<dyn ClientCertVerifier>>) -> anyhow::Result<Arc<ServerConfig>> {
    warn_if_open(key);
    let cannot = |path: &Path| format!("cannot use {} (make a pair, or set tls.self_signed = true)", path.display());
    let certs = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>).with_context(|| cannot(cert))?;
    if certs.is_empty() {
        bail!("{} holds no certificate", cert.display());
    }
    let secret = PrivateKeyDer::from_pem_file(key).with_context(|| cannot(key))?;
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients.unwrap_or_else(|| Arc::new(NoClientAuth)))
        .with_single_cert(certs, secret)
        .with_context(|| format!("{} and {} are no pair", cert.display(), key.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn make(tls: &Tls) -> anyhow::Result<()> {
    let mut names = tls.names.clone();
    let host = nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default();
    names.extend([host, "localhost".into(), "127.0.0.1".into(), "::1".into()].into_iter().filter(|n| !n.is_empty()));
    if !tls.listen.ip().is_unspecified() {
        names.push(tls.listen.ip().to_string());
    }
    names.sort();
    names.dedup();
    let made = rcgen::generate_simple_self_signed(names)?;
    for dir in [&tls.key, &tls.cert].iter().filter_map(|path| path.parent()) {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    write(&tls.key, 0o600, &made.signing_key.serialize_pem())?;
    write(&tls.cert, 0o644, &made.cert.pem())?;
    tracing::info!(cert = %tls.cert.display(), "made a self-signed certificate; clients need it: vmkeep --ca-file");
    Ok(())
}

/// Never over a file that is there.
fn write(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let mut file =
        File::options().write(true).create_new(true).mode(mode).open(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(())
}

fn warn_if_open(key: &Path) {
    if let Ok(meta) = fs::metadata(key)
        && meta.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(key = %key.display(), "other users may read the private key; chmod 600 it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_made_once_and_kept_secret() {
        let dir = tempfile::tempdir().expect("a folder");
        let tls = Tls {
            listen: "192.0.2.7:8443".parse().expect("an address"),
            cert: dir.path().join("new/tls.crt"),
            key: dir.path().join("new/tls.key"),
            self_signed: true,
            names: vec!["vm.example".into()],
            client_ca: None,
            client_crl: None,
            users: Default::default(),
            user_projects: Default::default(),
        };
        load(&tls).expect("made and used");
        assert_eq!(fs::metadata(&tls.key).expect("a key").permissions().mode() & 0o777, 0o600);
        let before = fs::read(&tls.cert).expect("a certificate");
        load(&tls).expect("used again");
        assert_eq!(fs::read(&tls.cert).expect("a certificate"), before);

        fs::remove_file(&tls.key).expect("removed");
        assert!(load(&tls).is_err(), "half a pair is not replaced in silence");
        fs::write(&tls.key, "nonsense").expect("written");
        assert!(format!("{:#}", load(&tls).expect_err("no key")).contains("tls.key"));
        let other = Tls { cert: dir.path().join("a.crt"), key: dir.path().join("a.key"), ..tls.clone() };
        load(&other).expect("a second pair");
        let mixed = Tls { key: other.key, ..tls };
        assert!(format!("{:#}", load(&mixed).expect_err("no pair")).contains("are no pair"));
    }
}
