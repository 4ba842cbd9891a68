//! Users who show a certificate: its common name is the user, `[tls]` in vmkeepd.toml says the role.
//!
//! ```text
//!  tls.client_ca ──► handshake: chain, dates, use, revocations ──► common name ──► tls.users ──► Caller
//! ```
//! Nobody has to show one: tokens go on beside them, and a request with a token is the token's. A connection ends when its
//! certificate does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;
use vmkeep_types::record::{Caller, Role, Via};

use crate::config::Tls;

/// Common names and what they may.
#[derive(Clone, Debug, Default)]
pub struct Users {
    roles: BTreeMap<String, Role>,
    projects: BTreeMap<String, BTreeSet<Name>>,
}

/// Who showed a certificate that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub common_name: String,
    /// Nobody is let in by it from then on.
    pub until: jiff::Timestamp,
}

impl Users {
    pub fn new(tls: &Tls) -> Self {
        Self { roles: tls.users.clone(), projects: tls.user_projects.clone() }
    }

    /// # Errors
    /// `Forbidden`: the certificate holds, and nobody gave its user a role.
    pub fn caller(&self, shown: &Shown) -> Result<Caller, Error> {
        let name = &shown.common_name;
        let Some(role) = self.roles.get(name) else {
            let words = format!("the certificate of '{}' holds, but that user has no role here", name.escape_debug());
            return Err(Error::new(Code::Forbidden, words).hint("[tls] users in vmkeepd.toml on the host gives roles to common names"));
        };
        let projects = self.projects.get(name).cloned();
        Ok(Caller { name: name.clone(), role: *role, via: Via::Certificate(name.clone()), projects })
    }
}

/// Takes certificates of the users' authorities, and connections without one.
///
/// # Errors
/// The files cannot be used.
pub fn verifier(ca: &Path, revoked: Option<&Path>) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let cannot = |path: &Path| format!("cannot use {}", path.display());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca).and_then(Iterator::collect::<Result<Vec<_>, _>>).with_context(|| cannot(ca))? {
        roots.add(root).with_context(|| format!("{} holds no authority (tls.client_ca)", ca.display()))?;
    }
    if roots.is_empty() {
        bail!("{} holds no certificate (tls.client_ca)", ca.display());
    }
    let lists = match revoked {
        Some(file) => CertificateRevocationListDer::pem_file_iter(file)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("{} (tls.client_crl)", cannot(file)))?,
        None => Vec::new(),
    };
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), ring).with_crls(lists).allow_unauthenticated();
    // A list speaks for the authority that signed it; one that has none of its own revokes nothing.
    verifier.allow_unknown_revocation_status().build().context("tls.client_ca and tls.client_crl do not go together")
}

/// What a certificate that was verified says of its user.
///
/// # Errors
/// It has no common name, or does not parse.
pub fn shown(der: &CertificateDer<'_>) -> anyhow::Result<Shown> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).context("the certificate does not parse")?;
    let name = cert.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    if name.is_empty() {
        bail!("the certificate has no common name");
    }
    let until = jiff::Timestamp::from_second(cert.validity().not_after.timestamp()).unwrap_or(jiff::Timestamp::MAX);
    Ok(Shown { common_name: name.to_owned(), until })
}
