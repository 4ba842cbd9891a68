//! Which member of etcd is asked, and for how long.
//!
//! ```text
//!  call ──► the next member that answers ── says nothing for SLOW ──► it is silent; a read goes to another one
//!  silent member ──► asked by a probe, and by nobody else, until it answers
//! ```
//! A member whose host has lost its network hangs up on nobody: what was asked of it waits until pings give the connection up
//! ([`super::PING`]), and a write's outcome is unknown then. That is for what was on its way; nobody asks it after that.
//! When all are silent all are asked in turn: an etcd that is slow is not helped by asking nobody.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, GetOptions};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{sleep, timeout};

use super::error::{Purpose, is_answer, is_election, is_silence, never_left, silent, told};
use super::{CALL_DEADLINE, CONNECT_DEADLINE, EtcdConfig};
use crate::StoreError;

/// For one call, the rests between them included. With all members dead, all of them are refused within milliseconds.
const TRIES_MAX: u32 = 40;
const REST: Duration = Duration::from_millis(5);
/// The same while etcd elects its leader, which takes it some tenths of a second, and two more where the votes were split.
const ELECTION_REST: Duration = Duration::from_millis(50);
/// How often a read leaves a member that is silent over it: where all are slow, it waits for an answer.
const MOVES_MAX: u32 = 2;
/// Between two probes of a silent member: at first, and at the most. A thousand nodes probe it.
const PROBE_REST: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));
/// For the answer to a probe: longer than pings take to give its connection up.
const PROBE_DEADLINE: Duration = Duration::from_secs(4);

/// The members that are asked.
pub struct Members {
    options: ConnectOptions,
    all: RwLock<Vec<Arc<Member>>>,
    turn: AtomicUsize,
}

/// One of them, with a connection of its own.
pub struct Member {
    endpoint: String,
    client: Client,
    heard: Mutex<Heard>,
}

/// What was last heard of it.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    answers: bool,
    /// A task asks it until it answers.
    probed: bool,
}

impl Members {
    /// Where there is a choice, asks each of them once, at the same time, until one has answered; the others are asked when they do.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for an endpoint that cannot be one. That nobody answers is the next call's to tell.
    pub async fn connect(config: &EtcdConfig, options: ConnectOptions) -> Result<Self, StoreError> {
        let mut all = Vec::with_capacity(config.endpoints.len());
        for endpoint in &config.endpoints {
            all.push(Member::new(endpoint, &options).await?);
        }
        if all.is_empty() {
            return Err(StoreError::Invalid("no endpoint of etcd is known".into()));
        }
        if all.len() > 1 {
            let mut asked: FuturesUnordered<_> = all.iter().map(|member| member.probe()).collect();
            let answered = async { while asked.next().await == Some(false) {} };
            let _ = timeout(CONNECT_DEADLINE, answered).await;
            drop(asked);
            all.iter().filter(|member| !member.heard().answers).for_each(Member::probe_until_it_answers);
        }
        Ok(Self { options, all: RwLock::new(all), turn: AtomicUsize::new(0) })
    }

    /// Also asks this member from now on.
    ///
    /// # Errors
    /// [`StoreError::Invalid`]: it is no endpoint.
    pub async fn add(&self, endpoint: &str) -> Result<(), StoreError> {
        let member = Member::new(endpoint, &self.options).await?;
        member.probe_until_it_answers();
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|old| old.endpoint != endpoint);
        all.push(member);
        Ok(())
    }

    /// Asks this member no more. The last one stays.
    pub fn remove(&self, endpoint: &str) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        if all.iter().any(|member| member.endpoint != endpoint) {
            all.retain(|member| member.endpoint != endpoint);
        }
    }

    /// Whose turn it is, and whether another one than that would answer, too.
    fn next(&self) -> (Arc<Member>, bool) {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let answering: Vec<_> = all.iter().filter(|member| member.heard().answers).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let member = if answering.is_empty() { &all[turn % all.len()] } else { answering[turn % answering.len()] };
        (member.clone(), answering.len() > 1)
    }

    /// Whose turn it is.
    pub fn pick(&self) -> Arc<Member> {
        self.next().0
    }

    /// Waits for an answer, no longer than [`CALL_DEADLINE`]: a request to a frozen etcd hangs past the client's own time-out.
    /// What never left, because a member cannot be reached, goes to the next one; so does a read that got no answer.
    pub async fn outcome<T, F>(&self, purpose: Purpose, call: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.outcome_within(CALL_DEADLINE, purpose, call).await
    }

    /// The same for what takes etcd longer, however well it is.
    pub async fn outcome_within<T, F>(&self, deadline: Duration, purpose: Purpose, call: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (mut refusal, mut moves) = (None, MOVES_MAX);
        let answered = async {
            for _ in 1..TRIES_MAX {
                match self.one_try(purpose, moves, &call).await {
                    None => moves -= 1,
                    Some(Err(error)) if is_election(&error) => sleep(ELECTION_REST).await,
                    Some(Err(error)) if never_left(&error) || (purpose.is_read() && is_silence(&error)) => {
                        refusal = refusal.take().or(Some(told(purpose, &error)).filter(|told| matches!(told, StoreError::Denied(_))));
                        sleep(REST).await;
                    }
                    Some(answer) => return answer,
                }
            }
            self.pick().ask(purpose, &call).await
        };
        let answer = timeout(deadline, answered).await;
        let error = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => told(purpose, &error),
            Err(_) => silent(purpose, format!("no answer from etcd within {deadline:?}")),
        };
        // Where one refused and the others are silent, the refusal says more. An unknown outcome stays unknown.
        Err(refusal.filter(|_| matches!(error, StoreError::Unavailable(_))).unwrap_or(error))
    }

    /// None: it is a read that may move, the member has become silent over it, and another one answers.
    async fn one_try<T, F>(&self, purpose: Purpose, moves: u32, call: &impl Fn(Client) -> F) -> Option<Result<T, Error>>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (member, another) = self.next();
        let asked = member.ask(purpose, call);
        if !another || moves == 0 || !purpose.is_read() {
            return Some(asked.await);
        }
        tokio::select! {
            answer = asked => Some(answer),
            () = sleep(purpose.slow() + REST) => None,
        }
    }
}

impl Member {
    /// It counts as silent until it has answered for the first time.
    async fn new(endpoint: &str, options: &ConnectOptions) -> Result<Arc<Self>, StoreError> {
        let client = Client::connect([endpoint], Some(options.clone())).await;
        let client = client.map_err(|e| StoreError::Invalid(format!("etcd at {endpoint}: {e}")))?;
        Ok(Arc::new(Self { endpoint: endpoint.to_owned(), client, heard: Mutex::default() }))
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Also says what the member's silence or its answer mean for the calls after this one.
    pub async fn ask<T, F>(self: &Arc<Self>, purpose: Purpose, call: impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut asked = std::pin::pin!(call(self.client.clone()));
        let answer = match timeout(purpose.slow(), asked.as_mut()).await {
            Ok(answer) => answer,
            Err(_) => {
                self.fell_silent();
                asked.await
            }
        };
        match &answer {
            Ok(_) => self.heard().answers = true,
            Err(error) => self.broke_off(error),
        }
        answer
    }

    /// What this error says of the member.
    pub fn broke_off(self: &Arc<Self>, error: &Error) {
        if is_answer(error) {
            self.heard().answers = true;
        } else {
            self.fell_silent();
        }
    }

    /// Nobody but its probe asks it, as long as another one answers.
    fn fell_silent(self: &Arc<Self>) {
        if std::mem::take(&mut self.heard().answers) {
            tracing::debug!(endpoint = self.endpoint, "a member of etcd is silent; the others are asked");
        }
        self.probe_until_it_answers();
    }

    /// One task at a time, and no longer than the member is one that is asked.
    fn probe_until_it_answers(self: &Arc<Self>) {
        if std::mem::replace(&mut self.heard().probed, true) {
            return;
        }
        let member = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut rest = PROBE_REST.0;
            loop {
                sleep(rest).await;
                let Some(member) = member.upgrade() else { return };
                if !member.heard().answers {
                    member.probe().await;
                }
                let mut heard = member.heard();
                if heard.answers {
                    heard.probed = false;
                    return;
                }
                rest = (rest * 2).min(PROBE_REST.1);
            }
        });
    }

    /// Whether it answers, be it by a refusal.
    async fn probe(&self) -> bool {
        let mut kv = self.client.kv_client();
        let asked = kv.get("\0", Some(GetOptions::new().with_count_only()));
        let answers = timeout(PROBE_DEADLINE, asked).await.is_ok_and(|answer| answer.as_ref().err().is_none_or(is_answer));
        if answers {
            self.heard().answers = true;
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tonic::Status;

    use super::*;

    /// What becomes of a write whose first calls end so, and how many calls that were. Nobody is connected to.
    async fn written(ends: &str, calls: u32) -> (Result<u32, StoreError>, u32) {
        let config = EtcdConfig { endpoints: vec!["http://127.0.0.1:1".into()], tls: None };
        let members = Members::connect(&config, ConnectOptions::new()).await.expect("an endpoint");
        let made = AtomicU32::new(0);
        let call = |_| {
            let n = made.fetch_add(1, Ordering::Relaxed) + 1;
            let answer = if n > calls { Ok(n) } else { Err(Error::GRpcStatus(Status::unavailable(ends))) };
            std::future::ready(answer)
        };
        let outcome = members.outcome(Purpose::Write, call).await;
        (outcome, made.into_inner())
    }

    #[tokio::test]
    async fn a_write_waits_for_an_election_and_is_not_repeated_after_silence() {
        assert_eq!(written("etcdserver: no leader", 8).await, (Ok(9), 9));
        assert_eq!(written("raft proposal dropped", 8).await, (Ok(9), 9));
        let (silent, calls) = written("etcdserver: request timed out", 1).await;
        assert!(matches!(silent, Err(StoreError::Unknown(_))), "it may have been carried out: {silent:?}");
        assert_eq!(calls, 1);
    }
}
