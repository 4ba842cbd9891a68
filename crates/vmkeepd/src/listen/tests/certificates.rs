//! Users with certificates, over real TLS.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use time::{Duration as Span, OffsetDateTime};
use vmkeep_api::body::VmView;
use vmkeep_api::client::Identity;

use super::*;

/// Signs users' certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority"))
    }

    /// Writes `NAME.crt` and `NAME.key`.
    fn issue(&self, dir: &Path, name: &str, serial: u64, until: OffsetDateTime) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([]).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(serial));
        (params.not_before, params.not_after) = (until - Span::days(9), until);
        let cert = params.signed_by(&key, &self.0).expect("signed");
        std::fs::write(dir.join(format!("{name}.crt")), cert.pem()).expect("written");
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).expect("written");
    }

    fn revoke(&self, serial: u64) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked =
            RevokedCertParams { serial_number: SerialNumber::from(serial), revocation_time: now, reason_code: None, invalidity_date: None };
        let list = CertificateRevocationListParams {
            this_update: now - Span::days(1),
            next_update: now + Span::days(1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).expect("signed").pem().expect("PEM")
    }
}

/// A server that takes certificates of one authority: alice is an operator, carol an admin of one project, bob's was revoked.
async fn remote_with_users() -> (Remote, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (Authority::new(), Authority::new());
    let soon = OffsetDateTime::now_utc() + Span::days(1);
    for (serial, name) in [(1, "alice"), (2, "bob"), (3, "carol"), (4, "mallory")] {
        ours.issue(dir.path(), name, serial, soon);
    }
    ours.issue(dir.path(), "late", 5, OffsetDateTime::now_utc() - Span::hours(1));
    theirs.issue(dir.path(), "stranger", 1, soon);
    std::fs::write(dir.path().join("ca.crt"), ours.0.pem()).expect("written");
    std::fs::write(dir.path().join("revoked.crl"), ours.revoke(2)).expect("written");
    let at = dir.path().to_owned();
    let remote = Remote::with(|tls| {
        tls.client_ca = Some(at.join("ca.crt"));
        tls.client_crl = Some(at.join("revoked.crl"));
        let role = |name: &str, role| (name.to_owned(), role);
        tls.users = [role("alice", Role::Operator), role("bob", Role::Admin), role("carol", Role::Admin), role("late", Role::Admin)].into();
        tls.users.insert("stranger".into(), Role::Admin);
        tls.user_projects = [("carol".to_owned(), [Name::known("shop")].into())].into();
    });
    (remote.await, dir)
}

fn client(remote: &Remote, dir: &tempfile::TempDir, name: &str, token: Option<String>) -> Client {
    let (cert, key) = (dir.path().join(format!("{name}.crt")), dir.path().join(format!("{name}.key")));
    Client::https_as(&remote.url, Identity { cert: &cert, key: &key }, token, Some(&remote.tls.cert)).expect("a client")
}

#[tokio::test]
async fn a_certificates_common_name_has_a_role() {
    let (remote, dir) = remote_with_users().await;
    let alice = client(&remote, &dir, "alice", None);
    assert_eq!(alice.call("version").answer::<VersionAnswer>().await.expect("operators may").node, Name::known("node1"));
    let refused = alice.call("token.list").answer::<Page<TokenView>>().await.expect_err("operators may not");
    assert_eq!((refused.code, refused.message.as_str()), (Code::Forbidden, "'alice' may not do this: it needs the role admin"));
    let mallory = client(&remote, &dir, "mallory", None).call("version").answer::<VersionAnswer>().await.expect_err("no role");
    assert_eq!(mallory.code, Code::Forbidden);
    assert!(mallory.message.contains("'mallory' holds, but that user has no role here"), "{mallory}");
    let carol = |project| client(&remote, &dir, "carol", None).project(Name::known(project));
    assert!(carol("shop").call("vm.list").answer::<Page<VmView>>().await.is_ok());
    assert_eq!(carol("default").call("vm.list").answer::<Page<VmView>>().await.expect_err("not hers").code, Code::Forbidden);
}

#[tokio::test]
async fn a_certificate_that_does_not_hold_opens_nothing() {
    let (remote, dir) = remote_with_users().await;
    for name in ["bob", "late", "stranger"] {
        let refused = client(&remote, &dir, name, None).call("version").answer::<VersionAnswer>().await.expect_err(name);
        assert_eq!(refused.code, Code::Unavailable, "{name}: the handshake ends: {refused}");
    }
    let none = remote.client_with(None).call("version").answer::<VersionAnswer>().await.expect_err("neither token nor certificate");
    assert_eq!(none.code, Code::Unauthenticated);
}

#[tokio::test]
async fn tokens_go_on_beside_certificates() {
    let (remote, dir) = remote_with_users().await;
    assert!(remote.client(Role::Viewer).await.call("version").answer::<VersionAnswer>().await.is_ok());
    let wish = TokenCreate { name: Name::known("ci"), role: Role::Admin, expires_in: None, projects: None };
    let token = vmkeep_server::auth::create(remote.store.as_ref(), wish).await.expect("a token").secret;
    let both = client(&remote, &dir, "alice", Some(token));
    assert!(both.call("token.list").answer::<Page<TokenView>>().await.is_ok(), "the token says who asks");
    let wrong = client(&remote, &dir, "alice", Some("vmk_00_nonsense".into())).call("version").answer::<VersionAnswer>().await;
    assert_eq!(wrong.expect_err("a wrong token is not overlooked").code, Code::Unauthenticated);
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    use tokio::io::AsyncReadExt;
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::in_memory().expect("memory"));
    let tokens = Tokens::follow(store, CancellationToken::new());
    let (near, _far) = tokio::io::duplex(64);
    let (_lease, mut stream) = tokens.lease(near, Some(jiff::Timestamp::now()));
    let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_u8()).await.expect("it ends");
    assert!(ended.expect_err("nothing was sent").to_string().contains("not valid any more"));
}
