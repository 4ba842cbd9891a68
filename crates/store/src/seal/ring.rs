//! The control plane's keys: in the store, each sealed to every control node's own key.
//!
//! ```text
//!  host: seal.key (0600) ──opens──► seal/ring: key pairs of the control plane ──open──► secrets
//! ```
//! No private key leaves its host in the clear: a control node that is new shows its public key (`control/NODE`), and any that
//! has the ring already seals it to that one. The newest key seals; older ones stay for what they sealed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vmkeep_types::ids::Revision;

use super::text::{PublicKey, SecretKey, open, seal};
use crate::{Compare, Held, Store, StoreError, Txn, keys, typed};

/// `seal/ring`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ring {
    /// Oldest first.
    keys: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    public: String,
    /// Id of a host's key to the private key, sealed to it.
    holders: BTreeMap<String, String>,
}

/// The keys of a ring that this host holds.
#[derive(Clone, Debug)]
pub struct Opened {
    pub keys: Vec<SecretKey>,
    /// What seals.
    pub current: PublicKey,
}

/// What a host finds.
#[derive(Clone, Debug)]
pub enum Found {
    Held(Opened),
    /// There is one, whose newest key was not sealed to this host.
    Foreign,
}

impl Ring {
    fn opened(&self, own: &SecretKey) -> Found {
        let held = |entry: &Entry| {
            let sealed = entry.holders.get(&own.public().id())?;
            SecretKey::parse(&open(sealed, &entry.public, std::slice::from_ref(own))?)
        };
        let newest = self.keys.last().and_then(held);
        newest.map_or(Found::Foreign, |newest| {
            let current = newest.public();
            Found::Held(Opened { keys: self.keys.iter().filter_map(held).collect(), current })
        })
    }

    /// Some key of this ring can be had by `own`.
    fn holds(&self, own: &PublicKey) -> bool {
        self.keys.iter().any(|entry| entry.holders.contains_key(&own.id()))
    }

    fn add_key(&mut self, holders: &[PublicKey]) {
        let secret = SecretKey::random();
        let mut entry = Entry { public: secret.public().to_text(), holders: BTreeMap::new() };
        holders.iter().for_each(|holder| entry.admit(&secret, holder));
        self.keys.push(entry);
    }
}

impl Entry {
    fn admit(&mut self, secret: &SecretKey, holder: &PublicKey) {
        self.holders.insert(holder.id(), seal(&secret.to_text(), &self.public, std::slice::from_ref(holder)));
    }
}

/// The ring as one of these keys reads it, where there is one that can be read.
///
/// # Errors
/// The store's.
pub async fn find(store: &dyn Store, own: &[SecretKey]) -> Result<Option<Opened>, StoreError> {
    let Some((ring, _)) = read(store).await? else { return Ok(None) };
    Ok(own.iter().find_map(|key| match ring.opened(key) {
        Found::Held(opened) => Some(opened),
        Found::Foreign => None,
    }))
}

/// Ids of its keys, oldest first.
///
/// # Errors
/// The store's.
pub async fn ids(store: &dyn Store) -> Result<Vec<String>, StoreError> {
    let ring = read(store).await?.map(|(ring, _)| ring).unwrap_or_default();
    Ok(ring.keys.iter().filter_map(|entry| Some(PublicKey::parse(&entry.public)?.id())).collect())
}

/// Whether `new` reads all that `old` does.
///
/// # Errors
/// The store's.
pub async fn is_shared(store: &dyn Store, old: &PublicKey, new: &PublicKey) -> Result<bool, StoreError> {
    let Some((ring, _)) = read(store).await? else { return Ok(false) };
    let has = |entry: &Entry, key: &PublicKey| entry.holders.contains_key(&key.id());
    Ok(ring.holds(new) && ring.keys.iter().all(|entry| !has(entry, old) || has(entry, new)))
}

/// Part of a transaction: keys of these ids read nothing of the ring any more, and a new key, held by `holders`, seals from now on.
/// None where there is no ring.
///
/// # Errors
/// The store's.
pub(super) async fn without(store: &dyn Store, retired: &BTreeSet<String>, holders: &[PublicKey]) -> Result<Option<Txn>, StoreError> {
    let Some((mut ring, at)) = read(store).await? else { return Ok(None) };
    for entry in &mut ring.keys {
        // The last reader stays, whoever that is: what it reads would be lost.
        if entry.holders.keys().any(|id| !retired.contains(id)) {
            entry.holders.retain(|id, _| !retired.contains(id));
        }
    }
    ring.add_key(holders);
    Ok(Some(Txn::default().when(Compare::ModifiedAt(keys::SEAL_RING.into(), at)).then(typed::put(keys::SEAL_RING, &ring))))
}

async fn read(store: &dyn Store) -> Result<Option<(Ring, Revision)>, StoreError> {
    Ok(typed::get_json::<Ring>(store, keys::SEAL_RING).await?.map(|ring| (ring.value, ring.modified)))
}

/// The ring as this host can read it; made when there is none.
///
/// # Errors
/// The store's.
pub async fn open_or_make(store: &dyn Store, own: &SecretKey) -> Result<Found, StoreError> {
    loop {
        if let Some((ring, _)) = read(store).await? {
            return Ok(ring.opened(own));
        }
        let mut ring = Ring::default();
        ring.add_key(&[own.public()]);
        store.txn(Txn::default().when(Compare::Absent(keys::SEAL_RING.into())).then(typed::put(keys::SEAL_RING, &ring))).await?;
    }
}

/// A key more, which seals from now on, held by `holders`; what older ones sealed stays closed for who does not hold those.
///
/// # Errors
/// The store's.
pub async fn renew(store: &dyn Store, holders: &[PublicKey]) -> Result<(), StoreError> {
    loop {
        let (mut ring, at) = read(store).await?.unwrap_or_default();
        ring.add_key(holders);
        let unchanged =
            if at == Revision(0) { Compare::Absent(keys::SEAL_RING.into()) } else { Compare::ModifiedAt(keys::SEAL_RING.into(), at) };
        if store.txn(Txn::default().when(unchanged).then(typed::put(keys::SEAL_RING, &ring))).await?.held == Held::Yes {
            return Ok(());
        }
    }
}

/// Seals the keys that this host holds to those of `holders` that lack them. Whether it did.
///
/// # Errors
/// The store's.
pub async fn share(store: &dyn Store, own: &SecretKey, holders: &[PublicKey]) -> Result<bool, StoreError> {
    let Some((mut ring, at)) = read(store).await? else { return Ok(false) };
    let before = ring.clone();
    for entry in &mut ring.keys {
        let Some(sealed) = entry.holders.get(&own.public().id()) else { continue };
        let Some(secret) = open(sealed, &entry.public, std::slice::from_ref(own)).and_then(|text| SecretKey::parse(&text)) else {
            continue;
        };
        let lack: Vec<_> = holders.iter().filter(|holder| !entry.holders.contains_key(&holder.id())).collect();
        lack.into_iter().for_each(|holder| entry.admit(&secret, holder));
    }
    if ring == before {
        return Ok(false);
    }
    let txn = Txn::default().when(Compare::ModifiedAt(keys::SEAL_RING.into(), at)).then(typed::put(keys::SEAL_RING, &ring));
    Ok(store.txn(txn).await?.held == Held::Yes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::EmbeddedStore;

    async fn found(store: &EmbeddedStore, own: &SecretKey) -> Option<Opened> {
        match open_or_make(store, own).await.expect("read") {
            Found::Held(opened) => Some(opened),
            Found::Foreign => None,
        }
    }

    #[tokio::test]
    async fn the_first_makes_it_and_shares_it_with_the_next() {
        let store = EmbeddedStore::in_memory().expect("memory");
        let (one, two) = (SecretKey::random(), SecretKey::random());
        let first = found(&store, &one).await.expect("its own");
        assert_eq!(found(&store, &one).await.expect("again").current, first.current);
        assert!(found(&store, &two).await.is_none(), "nobody has let it in");
        assert!(!share(&store, &two, &[two.public()]).await.expect("read"), "it cannot let itself in");
        assert!(share(&store, &one, &[one.public(), two.public()]).await.expect("shared"));
        assert!(!share(&store, &one, &[one.public(), two.public()]).await.expect("nothing to do"));
        let second = found(&store, &two).await.expect("let in");
        assert_eq!(second.current, first.current);
    }

    #[tokio::test]
    async fn a_new_key_seals_and_the_old_ones_open() {
        let store = EmbeddedStore::in_memory().expect("memory");
        let (one, two) = (SecretKey::random(), SecretKey::random());
        let before = found(&store, &one).await.expect("its own");
        renew(&store, &[one.public(), two.public()]).await.expect("renewed");
        let (of_one, of_two) = (found(&store, &one).await.expect("held"), found(&store, &two).await.expect("held"));
        assert_ne!(of_one.current, before.current);
        assert_eq!(of_one.current, of_two.current);
        assert_eq!((of_one.keys.len(), of_two.keys.len()), (2, 1), "what was before is closed for the second");
        let raw = store.get(keys::SEAL_RING).await.expect("read").expect("there");
        assert!(!String::from_utf8(raw.value).expect("JSON").contains(&of_one.keys[0].to_text()));
    }
}
