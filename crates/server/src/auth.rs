//! Tokens: `vmk_ID_SECRET`. The secret is 256 random bits and only its SHA-256 is stored, so no slow hash is needed.
//!
//! A request is checked when it begins. What goes on behind its answer (streams, consoles) is the listener's to end: it asks
//! [`valid_until`] whenever a token changes.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vmkeep_api::body::{TokenCreate, TokenCreated, TokenView};
use vmkeep_store::{Compare, Held, Op, Store, StoreError, Txn, keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::record::{Caller, Via};

use crate::app::{Ask, ask, store_error};

/// An expired token is shown so long, that people see why it stopped working.
const SHOW_EXPIRED_HOURS: i64 = 24;

#[derive(Serialize, Deserialize)]
struct TokenRecord {
    view: TokenView,
    /// SHA-256 of the secret, base64.
    hash: String,
}

/// The caller behind a bearer token.
///
/// # Errors
/// `Unauthenticated` for anything but a valid token; the words never tell which part was wrong.
pub async fn authenticate_token(store: &dyn Store, bearer: &str) -> Result<Caller, Error> {
    let refused = || {
        Error::new(Code::Unauthenticated, "the token is not valid").hint("make one on the host: vmkeep token create NAME --role operator")
    };
    let (id, secret) = bearer.strip_prefix("vmk_").and_then(|rest| rest.split_once('_')).ok_or_else(refused)?;
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(refused());
    }
    let record = typed::get_json::<TokenRecord>(store, &keys::token(id)).await.map_err(store_error)?.ok_or_else(refused)?.value;
    let expired = record.view.expires_at.is_some_and(|at| at < jiff::Timestamp::now());
    if expired || !same(hash(secret).as_bytes(), record.hash.as_bytes()) {
        return Err(refused());
    }
    let TokenView { id, name, role, projects, .. } = record.view;
    Ok(Caller { name: name.to_string(), role, via: Via::Token(id), projects })
}

/// How long a token goes on being valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    Forever,
    Until(jiff::Timestamp),
    /// Revoked or expired.
    Over,
}

/// # Errors
/// The store's.
pub async fn valid_until(store: &dyn Store, id: &str) -> Result<Validity, StoreError> {
    let Some(record) = typed::get_json::<TokenRecord>(store, &keys::token(id)).await? else { return Ok(Validity::Over) };
    Ok(match record.value.view.expires_at {
        None => Validity::Forever,
        Some(at) if at <= jiff::Timestamp::now() => Validity::Over,
        Some(at) => Validity::Until(at),
    })
}

/// Removes tokens that expired a day ago.
pub(crate) async fn expire(store: &dyn Store, only_if: Option<&Compare>) -> Result<(), StoreError> {
    let oldest = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(SHOW_EXPIRED_HOURS);
    for token in typed::list_readable::<TokenRecord>(store, keys::ALL_TOKENS).await? {
        if token.value.view.expires_at.is_some_and(|at| at < oldest) {
            store.txn(Txn { compare: only_if.cloned().into_iter().collect(), ..Txn::default() }.then(Op::Delete(token.key))).await?;
        }
    }
    Ok(())
}

fn hash(secret: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(secret.as_bytes()))
}

/// In a time that does not depend on where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

/// A token, made by a caller that has no wider rights to give away.
pub async fn create_for(store: &dyn Store, ask: &Ask, wish: TokenCreate) -> Result<TokenCreated, Error> {
    make(store, Some(ask), wish).await
}

pub async fn create(store: &dyn Store, wish: TokenCreate) -> Result<TokenCreated, Error> {
    make(store, None, wish).await
}

async fn make(store: &dyn Store, ask: Option<&Ask>, wish: TokenCreate) -> Result<TokenCreated, Error> {
    if wish.projects.as_ref().is_some_and(|only| only.is_empty()) {
        return Err(Error::invalid("a token for no project opens nothing").hint("leave `projects` out for all of them"));
    }
    let id: String = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
    let random: Vec<u8> = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].iter().flat_map(|u| u.into_bytes()).collect();
    let secret = URL_SAFE_NO_PAD.encode(Sha256::digest(&random));
    let created_at = jiff::Timestamp::now();
    let lasts = wish.expires_in.map(|s| jiff::SignedDuration::from_secs(i64::try_from(s.get()).unwrap_or(i64::MAX)));
    let expires_at =
        lasts.map(|lasts| created_at.checked_add(lasts)).transpose().map_err(|_| Error::invalid("expires_in is too far away"))?;
    let view = TokenView { id: id.clone(), name: wish.name, role: wish.role, created_at, expires_at, projects: wish.projects };
    let record = TokenRecord { view: view.clone(), hash: hash(&secret) };
    let txn = Txn::default().when(Compare::Absent(keys::token(&id))).then(typed::put(keys::token(&id), &record));
    let txn = ask.map_or_else(|| txn.clone(), |ask| ask.remember_token(txn.clone(), &id));
    match (store.txn(txn).await.map_err(store_error)?.held, ask) {
        (Held::Yes, _) => Ok(TokenCreated { token: view, secret: format!("vmk_{id}_{secret}") }),
        (Held::No, Some(ask)) => Err(match ask::repeated(store, ask).await {
            Err(said) => said,
            Ok(_) => Error::conflict("the new token's id is taken; try again"),
        }),
        (Held::No, None) => Err(Error::conflict("the new token's id is taken; try again")),
    }
}

pub async fn list(store: &dyn Store) -> Result<Vec<TokenView>, Error> {
    let all = typed::list_readable::<TokenRecord>(store, keys::ALL_TOKENS).await.map_err(store_error)?;
    Ok(all.into_iter().map(|stored| stored.value.view).collect())
}

pub async fn delete(store: &dyn Store, id: &str) -> Result<(), Error> {
    let txn = Txn::default().when(Compare::Present(keys::token(id))).then(Op::Delete(keys::token(id)));
    match store.txn(txn).await.map_err(store_error)?.held {
        Held::Yes => Ok(()),
        Held::No => Err(Error::not_found("token", id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::name::Name;
    use vmkeep_types::record::Role;
    use vmkeep_types::units::Seconds;

    #[tokio::test]
    async fn a_token_opens_until_it_expires_or_is_revoked() {
        let store = EmbeddedStore::in_memory().expect("memory");
        let wish = |expires_in| TokenCreate { name: Name::known("ci"), role: Role::Operator, expires_in, projects: None };
        let made = create(&store, wish(None)).await.expect("made");
        assert_eq!(authenticate_token(&store, &made.secret).await.expect("valid").role, Role::Operator);
        for bad in ["", "vmk_", "vmk_00_x", &made.secret[..made.secret.len() - 1], &format!("{}x", made.secret), "vmk_../x_y"] {
            assert_eq!(authenticate_token(&store, bad).await.expect_err(bad).code, Code::Unauthenticated);
        }
        let short = create(&store, wish(Some(Seconds::new(0)))).await.expect("made");
        assert!(authenticate_token(&store, &short.secret).await.is_err(), "expired at once");
        delete(&store, &made.token.id).await.expect("revoked");
        assert!(authenticate_token(&store, &made.secret).await.is_err());
        assert!(!format!("{:?}", store.list("").await.expect("a list")).contains(&made.secret[17..]), "the secret is nowhere in the store");
    }
}
