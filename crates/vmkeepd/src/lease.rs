//! A connection lasts no longer than the token of the request on it, and the certificate that was shown: streams, consoles and
//! downloads end with them.
//!
//! ```text
//!  store: token/* ──watch──► Tokens ─┐
//!  request: its token ──► Lease ─────┼─► guard: revoked? expired? ──► cut ──► Leased: every read and write fails
//!                                    └─ one per connection, ends with it
//! ```
//! The bytes are cut where they enter, so that it does not matter who has the connection by then: the HTTP server, or a console
//! after its upgrade. A store that does not answer cuts nobody.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use vmkeep_server::auth::{self, Validity};
use vmkeep_store::{Store, StoreError, keys};

/// From a token's end to the cut: the answer to its own revocation still arrives.
const GRACE: Duration = Duration::from_secs(1);
/// Before another look at a store that did not answer.
const REST: Duration = Duration::from_secs(5);

/// Tells all leases when any token changed.
#[derive(Clone)]
pub struct Tokens {
    store: Arc<dyn Store>,
    changed: watch::Receiver<u64>,
}

impl Tokens {
    /// Follows the store until `shutdown`.
    pub fn follow(store: Arc<dyn Store>, shutdown: CancellationToken) -> Self {
        let (changes, changed) = watch::channel(0);
        let of = store.clone();
        tokio::spawn(async move {
            shutdown
                .run_until_cancelled(async {
                    loop {
                        if let Err(error) = follow_once(of.as_ref(), &changes).await {
                            tracing::debug!(%error, "the watch of the tokens begins anew");
                        }
                        tokio::time::sleep(REST).await;
                    }
                })
                .await
        });
        Self { store, changed }
    }

    /// For one connection; both ends of what goes over it.
    ///
    /// `until`: when the certificate that was shown on it ends.
    pub fn lease<S>(&self, stream: S, until: Option<jiff::Timestamp>) -> (Lease, Leased<S>) {
        let (token, current) = watch::channel(None);
        let (cut, closed) = (CancellationToken::new(), CancellationToken::new());
        tokio::spawn(guard(self.clone(), current, until, cut.clone(), closed.clone()));
        (Lease(Arc::new(token)), Leased { stream, cut: cut.clone(), wakes: Box::pin(cut.cancelled_owned()), _closed: closed.drop_guard() })
    }
}

async fn follow_once(store: &dyn Store, changes: &watch::Sender<u64>) -> Result<(), StoreError> {
    let newest = store.revision().await?;
    let mut watch = store.watch(keys::ALL_TOKENS, newest.next()).await?;
    // What changed while nobody watched.
    changes.send_modify(|n| *n += 1);
    while let Some(batch) = watch.recv().await {
        batch?;
        changes.send_modify(|n| *n += 1);
    }
    Ok(())
}

/// Which token the connection stands on: the one of its newest request.
#[derive(Clone)]
pub struct Lease(Arc<watch::Sender<Option<String>>>);

impl Lease {
    pub fn stands_on(&self, token: &str) {
        self.0.send_if_modified(|current| {
            let other = current.as_deref() != Some(token);
            if other {
                *current = Some(token.to_owned());
            }
            other
        });
    }
}

async fn guard(
    tokens: Tokens,
    mut current: watch::Receiver<Option<String>>,
    until: Option<jiff::Timestamp>,
    cut: CancellationToken,
    closed: CancellationToken,
) {
    let left = |at: jiff::Timestamp| Duration::try_from(at.duration_since(jiff::Timestamp::now())).unwrap_or(Duration::ZERO);
    let Tokens { store, mut changed } = tokens;
    loop {
        changed.mark_unchanged();
        let id = current.borrow_and_update().clone();
        let look_again = match id {
            None => Duration::MAX,
            Some(id) => match auth::valid_until(store.as_ref(), &id).await {
                Ok(Validity::Over) => break,
                Ok(Validity::Forever) => Duration::MAX,
                Ok(Validity::Until(at)) => left(at),
                Err(_) => REST,
            },
        };
        let certificate = until.map_or(Duration::MAX, left);
        if certificate.is_zero() {
            break;
        }
        tokio::select! {
            () = closed.cancelled() => return,
            () = next(&mut current) => {}
            () = next(&mut changed) => {}
            () = tokio::time::sleep(look_again.min(certificate)) => {}
        }
    }
    tokio::select! {
        () = closed.cancelled() => {}
        () = tokio::time::sleep(GRACE) => cut.cancel(),
    }
}

/// The next change; never, when there can be none: after an upgrade no request follows.
async fn next<T>(of: &mut watch::Receiver<T>) {
    if of.changed().await.is_err() {
        std::future::pending().await
    }
}

/// A stream that ends with its lease.
pub struct Leased<S> {
    stream: S,
    cut: CancellationToken,
    wakes: Pin<Box<WaitForCancellationFutureOwned>>,
    _closed: DropGuard,
}

impl<S: Unpin> Leased<S> {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let over = self.cut.is_cancelled() || self.wakes.as_mut().poll(context).is_ready();
        if over { Err(io::Error::new(io::ErrorKind::ConnectionAborted, "its token or certificate is not valid any more")) } else { Ok(()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Leased<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Leased<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
