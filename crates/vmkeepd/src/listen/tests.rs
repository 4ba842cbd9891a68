//! Both listeners with a small router, and the API over TLS with tokens.

mod certificates;

use std::os::unix::fs::MetadataExt;

use axum::Extension;
use axum::extract::State;
use axum::routing::get;
use tokio::sync::Notify;
use vmkeep_api::body::{Page, TokenCreate, TokenCreated, TokenView, VersionAnswer};
use vmkeep_api::client::Client;
use vmkeep_server::audit::Audit;
use vmkeep_server::context::Server;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_types::name::Name;
use vmkeep_types::record::Role;

use super::*;
use crate::config::{Config, Tls};
use crate::gate::Gate;

const PATIENCE: Duration = Duration::from_secs(60);

async fn who(Extension(caller): Extension<Caller>) -> String {
    format!("{} {:?}", caller.name, caller.role)
}

/// Tells that it has begun.
async fn slow(State(begun): State<Arc<Notify>>) -> &'static str {
    begun.notify_one();
    tokio::time::sleep(Duration::from_millis(300)).await;
    "done"
}

fn serving(router: Router) -> Serve {
    Serve { router, shutdown: CancellationToken::new(), connections: TaskTracker::new() }
}

async fn get_over(path: &Path, target: &'static str) -> (u16, String) {
    use http_body_util::BodyExt;
    let stream = tokio::net::UnixStream::connect(path).await.expect("a connection");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    let request =
        http::Request::get(target).header("host", "x").body(http_body_util::Empty::<hyper::body::Bytes>::new()).expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// A configuration whose socket belongs to a group that this test is in.
fn config(dir: &Path) -> Config {
    let group =
        nix::unistd::Group::from_gid(nix::unistd::Gid::current()).ok().flatten().map_or_else(|| "nobody".into(), |group| group.name);
    Config { socket: dir.join("run/vmkeepd.sock"), socket_group: group, socket_role: Role::Operator, ..Config::default() }
}

#[tokio::test]
async fn the_socket_knows_its_callers_and_keeps_others_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = config(dir.path());
    let roles = Roles::new(&config);
    let listener = bind_unix(&config.socket, &roles).expect("bound");
    let meta = std::fs::metadata(&config.socket).expect("a socket");
    assert_eq!(meta.mode() & 0o777, 0o660);
    assert_eq!(meta.gid(), nix::unistd::Gid::current().as_raw());
    assert!(bind_unix(&config.socket, &roles).expect_err("taken").to_string().contains("another vmkeepd"));

    let serve = serving(Router::new().route("/who", get(who)));
    let task = tokio::spawn(unix(serve.clone(), listener, roles));
    let me = nix::unistd::User::from_uid(nix::unistd::Uid::current()).ok().flatten().map_or_else(String::new, |user| user.name);
    let role = if nix::unistd::Uid::current().is_root() { "Admin" } else { "Operator" };
    assert_eq!(get_over(&config.socket, "/who").await, (200, format!("{me} {role}")));
    serve.shutdown.cancel();
    tokio::time::timeout(PATIENCE, task).await.expect("it ends").expect("without a panic");

    // A socket that nobody serves any more is replaced.
    assert!(config.socket.exists());
    bind_unix(&config.socket, &Roles::new(&config)).expect("bound again");
}

#[tokio::test]
async fn a_peer_without_a_role_is_told_so() {
    let serve = Who::Peer(None);
    let request = Request::new(axum::body::Body::empty());
    assert_eq!(serve.call(Router::new(), request).await.status(), http::StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn without_the_group_only_root_may_connect() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = Config { socket_group: "no-such-group-here".into(), ..config(dir.path()) };
    let _listener = bind_unix(&config.socket, &Roles::new(&config)).expect("bound");
    assert_eq!(std::fs::metadata(&config.socket).expect("a socket").mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_request_under_way_is_finished_when_the_daemon_ends() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = config(dir.path());
    let roles = Roles::new(&config);
    let listener = bind_unix(&config.socket, &roles).expect("bound");
    let begun = Arc::new(Notify::new());
    let serve = serving(Router::new().route("/slow", get(slow)).with_state(begun.clone()));
    tokio::spawn(unix(serve.clone(), listener, roles));
    let socket = config.socket.clone();
    let answer = tokio::spawn(async move { get_over(&socket, "/slow").await });
    begun.notified().await;
    serve.shutdown.cancel();
    serve.connections.close();
    tokio::time::timeout(PATIENCE, serve.connections.wait()).await.expect("connections end");
    assert_eq!(answer.await.expect("an answer"), (200, "done".to_owned()));
}

/// The real API on a free port, with one token of each role.
struct Remote {
    url: String,
    tls: Tls,
    store: Arc<dyn Store>,
    serve: Serve,
    _dir: tempfile::TempDir,
}

impl Remote {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(more: impl FnOnce(&mut Tls)) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let listener = bind_tls("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
        let at = listener.local_addr().expect("it is bound");
        let mut tls_config = Tls {
            listen: at,
            cert: dir.path().join("tls.crt"),
            key: dir.path().join("tls.key"),
            self_signed: true,
            names: vec![],
            client_ca: None,
            client_crl: None,
            users: Default::default(),
            user_projects: Default::default(),
        };
        more(&mut tls_config);
        let current = Arc::new(Mutex::new(crate::tls::load(&tls_config).expect("a pair")));
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let name = Name::known("node1");
        let gate = Arc::new(Gate { node: name.clone(), local: Some(Router::new()), remote: None });
        let api = vmkeep_server::router(Server::new(store.clone(), gate, name, Audit::default()));
        let serve = serving(api);
        tokio::spawn(tls(serve.clone(), listener, current, store.clone(), Users::new(&tls_config)));
        Self { url: format!("https://localhost:{}", at.port()), tls: tls_config, store, serve, _dir: dir }
    }

    async fn client(&self, role: Role) -> Client {
        let wish = TokenCreate { name: Name::known("ci"), role, expires_in: None, projects: None };
        let made = vmkeep_server::auth::create(self.store.as_ref(), wish).await.expect("a token");
        self.client_with(Some(made.secret))
    }

    fn client_with(&self, token: Option<String>) -> Client {
        Client::https(&self.url, token, Some(&self.tls.cert)).expect("a client")
    }
}

#[tokio::test]
async fn tokens_open_the_api_over_tls_as_far_as_their_role_goes() {
    let remote = Remote::new().await;
    let refused = |token: Option<&str>| remote.client_with(token.map(str::to_owned));
    for client in [refused(None), refused(Some("vmk_00_nonsense"))] {
        let error = client.call("version").answer::<VersionAnswer>().await.expect_err("no valid token");
        assert_eq!(error.code, Code::Unauthenticated, "{error}");
        assert!(error.hint.is_some());
    }
    let viewer = remote.client(Role::Viewer).await;
    assert_eq!(viewer.call("version").answer::<VersionAnswer>().await.expect("viewers may").node, Name::known("node1"));
    let error = viewer.call("token.list").answer::<Page<TokenView>>().await.expect_err("viewers may not");
    assert_eq!(error.code, Code::Forbidden, "{error}");
    let admin = remote.client(Role::Admin).await;
    let tokens = admin.call("token.list").answer::<Page<TokenView>>().await.expect("admins may");
    assert_eq!(tokens.items.len(), 2);
    remote.serve.shutdown.cancel();
}

#[tokio::test]
async fn the_host_shutdown_is_not_offered_over_the_network() {
    let remote = Remote::new().await;
    let mut request = http::Request::post("/n/guests/shutdown").body(axum::body::Body::empty()).expect("a request");
    request.extensions_mut().insert(Caller { name: "root".into(), role: Role::Admin, via: Via::Uid(0), projects: None });
    assert_eq!(remote.serve.router.clone().oneshot(request).await.expect("an answer").status(), 404);
}

#[tokio::test]
async fn who_does_not_speak_tls_harms_nobody() {
    use tokio::io::AsyncWriteExt;
    let remote = Remote::new().await;
    let port = remote.tls.listen.port();
    let mut plain = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    plain.write_all(b"GET /v1/version HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let viewer = remote.client(Role::Viewer).await;
    assert!(viewer.call("version").answer::<VersionAnswer>().await.is_ok());
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let remote = Remote::new().await;
    let made = async |expires_in: Option<u64>| {
        let wish = TokenCreate {
            name: Name::known("ci"),
            role: Role::Viewer,
            expires_in: expires_in.map(vmkeep_types::units::Seconds::new),
            projects: None,
        };
        vmkeep_server::auth::create(remote.store.as_ref(), wish).await.expect("a token")
    };
    let (kept, revoked) = (made(None).await, made(None).await);
    let client = |token: &TokenCreated| remote.client_with(Some(token.secret.clone()));
    let clients = [client(&kept), client(&revoked)];
    let mut streams = Vec::new();
    for client in &clients {
        streams.push(client.call("vm.list").watch(None).await.expect("a stream"));
    }
    // The one that ends by itself comes last: it must live for the handshake.
    let short = client(&made(Some(5)).await);
    streams.push(short.call("vm.list").watch(None).await.expect("a stream"));
    vmkeep_server::auth::delete(remote.store.as_ref(), &revoked.token.id).await.expect("revoked");
    for over in [1, 2] {
        let ended = tokio::time::timeout(PATIENCE, streams[over].next()).await.expect("it ends");
        assert!(!matches!(ended, Ok(Some(_))), "{over}");
    }
    assert!(tokio::time::timeout(Duration::from_millis(100), streams[0].next()).await.is_err(), "the other goes on");
}
