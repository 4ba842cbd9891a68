//! Members of the cluster: tokens to join with, who is let in, and what is known of those who are.
//!
//! ```text
//!  token: vmkj_ID_SECRET_FINGERPRINT      one host, one hour; the fingerprint is the authority's
//!  admission ─► token good? ─ clock, version, name, machine ─ guests (strays) ─► roles ─► one txn: token used + member "joining"
//! ```
//! A host whose answer was lost asks again with the same token and gets the same answer, as long as it is still joining.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, KeyValue, Op, Store, StoreError, Txn, keys, typed};
use vmkeep_types::cluster::{Admission, MemberRecord, MemberRole, MemberState, MemberWord};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;
use vmkeep_types::units::Seconds;

use super::{TRIES_MAX, commit, get, ha_profile, roles, store_error, strays};

/// A token lasts so long when nobody says otherwise, and no longer than a day.
const TOKEN_LASTS: u64 = 3600;
const TOKEN_LASTS_MAX: u64 = 24 * 3600;
/// A used or expired token is kept so long, that a host which comes too late is told why.
const KEEP_OVER: SignedDuration = SignedDuration::from_hours(24);
/// Leases and certificates need clocks that agree: this much apart is too much, in seconds.
const CLOCK_APART_SECONDS: i64 = 120;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct JoinToken {
    /// SHA-256 of the secret, base64.
    hash: String,
    expires_at: Timestamp,
    used_by: Option<Name>,
}

/// The parts of a token as it is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenText {
    id: String,
    secret: String,
    /// SHA-256 of the authority's certificate, hexadecimal.
    pub ca: String,
}

impl TokenText {
    /// # Errors
    /// It is no join token.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = || Error::invalid("this is no join token").hint("make one on a member: vmkeep cluster token");
        let parts: Vec<&str> = text.trim().strip_prefix("vmkj_").ok_or_else(wrong)?.split('_').collect();
        let [id, secret, ca] = parts[..] else { return Err(wrong()) };
        let is_hex = |text: &str, digits: usize| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hex(id, 12) || !is_hex(secret, 64) || !is_hex(ca, 64) {
            return Err(wrong());
        }
        Ok(Self { id: id.into(), secret: secret.into(), ca: ca.into() })
    }
}

fn hash(secret: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(secret.as_bytes()))
}

/// A new token and when it ends.
///
/// # Errors
/// It shall last longer than a day; the store's.
pub async fn create_token(store: &dyn Store, ca: &str, expires_in: Option<Seconds>, now: Timestamp) -> Result<(String, Timestamp), Error> {
    let seconds = expires_in.map_or(TOKEN_LASTS, Seconds::get);
    if seconds == 0 || seconds > TOKEN_LASTS_MAX {
        return Err(Error::invalid("a join token lasts between a second and a day"));
    }
    expire_tokens(store, now).await.map_err(store_error)?;
    let expires_at = now + SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    let id = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
    let random: Vec<u8> = (0..3).flat_map(|_| uuid::Uuid::new_v4().into_bytes()).collect();
    let secret: String = Sha256::digest(&random).iter().map(|byte| format!("{byte:02x}")).collect();
    let record = JoinToken { hash: hash(&secret), expires_at, used_by: None };
    let key = keys::join_token(&id);
    match commit(store, Txn::default().when(Compare::Absent(key.clone())).then(typed::put(key, &record))).await? {
        Some(_) => Ok((format!("vmkj_{id}_{secret}_{ca}"), expires_at)),
        None => Err(Error::conflict("the new token's id is taken; try again")),
    }
}

async fn expire_tokens(store: &dyn Store, now: Timestamp) -> Result<(), StoreError> {
    for token in typed::list_readable::<JoinToken>(store, keys::ALL_JOIN_TOKENS).await? {
        if token.value.expires_at + KEEP_OVER < now {
            store.txn(Txn::default().then(Op::Delete(token.key))).await?;
        }
    }
    Ok(())
}

/// Each with what it says of itself.
///
/// # Errors
/// The store's.
pub async fn members(store: &dyn Store) -> Result<Vec<MemberRecord>, Error> {
    let all = store.list_many(&[keys::ALL_MEMBERS, keys::ALL_WORDS]).await.map_err(store_error)?.items;
    let (records, words): (Vec<_>, Vec<_>) = all.into_iter().partition(|kv| kv.key.starts_with(keys::ALL_MEMBERS));
    let said: Result<BTreeMap<String, MemberWord>, StoreError> =
        words.into_iter().map(|kv| Ok((kv.key.clone(), typed::decode(&kv)?))).collect();
    let mut said = said.map_err(store_error)?;
    let with_word = |kv: KeyValue| {
        let record: MemberRecord = typed::decode(&kv).map_err(store_error)?;
        Ok(match said.remove(&keys::word(&record.node)) {
            Some(word) => record.saying(word),
            None => record,
        })
    };
    records.into_iter().map(with_word).collect()
}

/// A request to be let in, of whichever version: what another one leaves out or spells otherwise does not hide which it is.
///
/// # Errors
/// The token is wrong, and nothing more is said; it is of another version; it is no request; the store's.
pub async fn read_admission(store: &dyn Store, body: serde_json::Value) -> Result<Admission, Error> {
    let why = match Admission::deserialize(&body) {
        Ok(wish) => return Ok(wish),
        Err(why) => why,
    };
    let said = |field: &str| body[field].as_str().unwrap_or("?");
    read_token(store, said("token")).await?;
    same_version(said("node"), said("version"), body["level"].as_u64().unwrap_or_default())?;
    Err(Error::invalid(format!("this is no request to join: {why}")))
}

/// The roles this host would have, or why it is not let in. Changes nothing.
///
/// # Errors
/// The refusal; the store's.
pub async fn examine(store: &dyn Store, wish: &Admission, now: Timestamp) -> Result<Vec<MemberRole>, Error> {
    let token = read_token(store, &wish.token).await?;
    let roles = judge(&token.value, &members(store).await?, wish, now)?;
    strays::look(store, wish).await?;
    Ok(roles)
}

/// Lets it in: the token is used, the member is joining.
///
/// # Errors
/// The refusal; the store's.
pub async fn admit(store: &dyn Store, wish: &Admission, now: Timestamp) -> Result<MemberRecord, Error> {
    for _ in 0..TRIES_MAX {
        let token = read_token(store, &wish.token).await?;
        let members = members(store).await?;
        let roles = judge(&token.value, &members, wish, now)?;
        let along = strays::look(store, wish).await?;
        let record = MemberRecord {
            node: wish.node.clone(),
            address: wish.address.clone(),
            machine_id: wish.machine_id.clone(),
            roles,
            version: wish.version.clone(),
            level: wish.level,
            state: MemberState::Joining,
            since: now,
            certificate_until: None,
            problems: Vec::new(),
        };
        let key = keys::member(&wish.node);
        let old = store.get(&key).await.map_err(store_error)?;
        let guard = old.map_or_else(|| Compare::Absent(key.clone()), |kv| Compare::ModifiedAt(key.clone(), kv.modified));
        let used = JoinToken { used_by: Some(wish.node.clone()), ..token.value };
        let mut txn = along.when(guard).when(Compare::ModifiedAt(token.key.clone(), token.modified));
        txn.then.extend(ha_profile::on_join(store, &members, &record).await?);
        if commit(store, txn.then(typed::put(token.key, &used)).then(typed::put(key, &record))).await?.is_some() {
            return Ok(record);
        }
    }
    Err(Error::conflict("other hosts are joining at this moment; try again"))
}

async fn read_token(store: &dyn Store, text: &str) -> Result<Stored<JoinToken>, Error> {
    let text = TokenText::parse(text)?;
    let wrong = || Error::new(Code::Unauthenticated, "the join token is wrong").hint("make a new one on a member: vmkeep cluster token");
    let token = get::<JoinToken>(store, &keys::join_token(&text.id)).await?.ok_or_else(wrong)?;
    if hash(&text.secret) != token.value.hash {
        return Err(wrong());
    }
    Ok(token)
}

fn judge(token: &JoinToken, members: &[MemberRecord], wish: &Admission, now: Timestamp) -> Result<Vec<MemberRole>, Error> {
    let again = "make a new one on a member: vmkeep cluster token";
    let same = members.iter().find(|member| member.node == wish.node);
    if let Some(by) = &token.used_by {
        return match same {
            // The answer was lost.
            Some(member) if *by == wish.node && member.machine_id == wish.machine_id && member.state == MemberState::Joining => {
                Ok(member.roles.clone())
            }
            _ => Err(Error::new(Code::Unauthenticated, format!("the join token was used by '{by}'")).hint(again)),
        };
    }
    if token.expires_at <= now {
        return Err(Error::new(Code::Unauthenticated, format!("the join token ended at {}", token.expires_at)).hint(again));
    }
    let apart = now.as_second() - wish.now.as_second();
    if apart.abs() >= CLOCK_APART_SECONDS {
        let which = if apart > 0 { "behind" } else { "ahead of" };
        return Err(Error::refused(format!("the clock of '{}' is {} s {which} the cluster's", wish.node, apart.abs()))
            .hint("set it right: apt-get install chrony; vmkeep host check"));
    }
    same_version(wish.node.as_str(), &wish.version, wish.level)?;
    if same.is_some() {
        return Err(Error::conflict(format!("there is a member '{}' already", wish.node))
            .hint("give the host another name (node in vmkeepd.toml); if it is the dead one come back: vmkeep cluster remove NODE"));
    }
    if let Some(twin) = members.iter().find(|member| member.machine_id == wish.machine_id) {
        return Err(Error::conflict(format!("'{}' has the machine id of member '{}': their disks were cloned", wish.node, twin.node))
            .hint("on the clone: rm /etc/machine-id && systemd-machine-id-setup, then restart it"));
    }
    if let Some(twin) = members.iter().find(|member| member.address == wish.address) {
        return Err(Error::conflict(format!("member '{}' has the address {}", twin.node, wish.address)).hint("--own-address says another"));
    }
    roles::of_joiner(members, wish)
}

fn same_version(node: &str, version: &str, level: u64) -> Result<(), Error> {
    let ours = (env!("CARGO_PKG_VERSION"), keys::LEVEL_NOW);
    if (version, level) == ours {
        return Ok(());
    }
    Err(Error::refused(format!("'{node}' runs vmkeep {version} (level {level}), the cluster {} (level {})", ours.0, ours.1))
        .hint("install the same version on both"))
}

/// The member has started with the cluster's store, and says this. As long as members of an older version are there, which look
/// for it there, it stands in the member's record.
///
/// # Errors
/// The store's; it is no member any more.
pub async fn arrived(store: &dyn Store, node: &Name, word: MemberWord) -> Result<(), Error> {
    let (key, own) = (keys::member(node), keys::word(node));
    let ask = [keys::LEVEL, &key, &own].into_iter().fold(Txn::default(), |txn, key| txn.then(Op::Get(key.into())));
    let gets = store.txn(ask).await.map_err(store_error)?.gets;
    let [level, Some(kv), said] = &gets[..] else {
        return Err(
            Error::refused(format!("'{node}' is no member of this cluster any more")).hint("it was removed: see docs/guide/cluster.md")
        );
    };
    let level: u64 = level.as_ref().map(typed::decode).transpose().map_err(store_error)?.unwrap_or(keys::LEVEL_NOW);
    let put = if level >= keys::LEVEL_RIGHTS {
        let same = said.as_ref().is_some_and(|kv| typed::decode::<MemberWord>(kv).is_ok_and(|said| said == word));
        if same { None } else { Some(typed::put(own, &word)) }
    } else {
        let old: MemberRecord = typed::decode(kv).map_err(store_error)?;
        let record = old.clone().saying(word);
        if record == old { None } else { Some(typed::rewrite(kv, &record).map_err(store_error)?) }
    };
    let Some(put) = put else { return Ok(()) };
    commit(store, Txn::default().when(Compare::ModifiedAt(key, kv.modified)).then(put)).await.map(drop)
}

/// Whether this node was taken out of the cluster whose store this is, or has never been in it. A store without a cluster's id has
/// no members to ask.
///
/// # Errors
/// The store's.
pub async fn is_removed(store: &dyn Store, node: &Name) -> Result<bool, StoreError> {
    let ask = Txn::default().then(Op::Get(keys::CLUSTER_ID.into())).then(Op::Get(keys::member(node)));
    let gets = store.txn(ask).await?.gets;
    Ok(matches!(&gets[..], [Some(_), None]))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::cluster::GuestThere;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    fn wish(token: &str, node: &str, n: u8) -> Admission {
        Admission {
            token: token.into(),
            node: node.parse().expect("a name"),
            address: format!("10.0.0.{n}"),
            machine_id: format!("machine{n}"),
            version: env!("CARGO_PKG_VERSION").into(),
            level: keys::LEVEL_NOW,
            now: now(),
            witness: false,
            control: false,
            no_etcd: None,
            node_request: String::new(),
            etcd_request: String::new(),
            guests: Vec::new(),
        }
    }

    fn word() -> MemberWord {
        MemberWord { version: "1".into(), level: keys::LEVEL_NOW, certificate_until: None, problems: Vec::new() }
    }

    async fn token(store: &EmbeddedStore) -> String {
        create_token(store, &"ab".repeat(32), None, now()).await.expect("made").0
    }

    async fn refused(store: &EmbeddedStore, wish: &Admission, at: Timestamp, expect: Expect) {
        let before = store.revision().await.expect("a revision");
        let error = admit(store, wish, at).await.expect_err("refused");
        expect.assert_eq(&error.to_string());
        assert_eq!(examine(store, wish, at).await.expect_err("refused"), error);
        assert_eq!(store.revision().await.expect("a revision"), before, "nothing was changed");
    }

    #[tokio::test]
    async fn the_first_three_have_etcd_and_the_rest_compute() {
        let store = EmbeddedStore::in_memory().expect("memory");
        let mut told = Vec::new();
        for n in 1..=4 {
            let wish = wish(&token(&store).await, &format!("h{n}"), n);
            told.push(admit(&store, &wish, now()).await.expect("admitted").roles.len());
            assert_eq!(admit(&store, &wish, now()).await.expect("the answer was lost").node, wish.node);
            arrived(&store, &wish.node, word()).await.expect("a member");
        }
        assert_eq!(told, [2, 2, 2, 1]);
        let witness = Admission { witness: true, ..wish(&token(&store).await, "w", 9) };
        assert_eq!(admit(&store, &witness, now()).await.expect("admitted").roles, [MemberRole::Witness]);
        let control = Admission { control: true, ..wish(&token(&store).await, "h5", 5) };
        assert_eq!(admit(&store, &control, now()).await.expect("by its wish").roles.len(), 2);
        for (more, expect) in [
            (
                Admission { control: true, ..wish("", "h6", 6) },
                expect!["there are 5 control nodes and witnesses: one more makes it slower and no safer"],
            ),
            (Admission { witness: true, ..wish("", "h6", 6) }, expect!["there are 5 control nodes and witnesses: a witness adds nothing"]),
            (Admission { witness: true, control: true, ..wish("", "h6", 6) }, expect!["a witness has etcd only: it is no control node"]),
        ] {
            refused(&store, &Admission { token: token(&store).await, ..more }, now(), expect).await;
        }
        assert!(members(&store).await.expect("members").iter().filter(|m| m.state == MemberState::Member).count() == 4);
    }

    #[tokio::test]
    async fn who_is_not_let_in_is_told_why() {
        let store = EmbeddedStore::in_memory().expect("memory");
        let good = token(&store).await;
        let first = wish(&good, "h1", 1);
        admit(&store, &first, now()).await.expect("admitted");
        refused(&store, &wish(&good, "h2", 2), now(), expect!["the join token was used by 'h1'"]).await;
        arrived(&store, &first.node, word()).await.expect("a member");
        refused(&store, &first, now(), expect!["the join token was used by 'h1'"]).await;
        let good = token(&store).await;
        let wrong = good.replace("vmkj_", "vmkj_0");
        refused(&store, &wish(&wrong, "h2", 2), now(), expect!["this is no join token"]).await;
        let mut other = good.clone().into_bytes();
        other[20] = if other[20] == b'0' { b'1' } else { b'0' };
        let other = String::from_utf8(other).expect("hexadecimal");
        refused(&store, &wish(&other, "h2", 2), now(), expect!["the join token is wrong"]).await;
        let late = now() + SignedDuration::from_hours(2);
        refused(&store, &Admission { now: late, ..wish(&good, "h2", 2) }, late, expect!["the join token ended at 2027-01-15T09:00:00Z"])
            .await;
        let clock = |seconds| Admission { now: now() + SignedDuration::from_secs(seconds), ..wish(&good, "h2", 2) };
        refused(&store, &clock(-120), now(), expect!["the clock of 'h2' is 120 s behind the cluster's"]).await;
        refused(&store, &clock(121), now(), expect!["the clock of 'h2' is 121 s ahead of the cluster's"]).await;
        refused(&store, &wish(&good, "h1", 2), now(), expect!["there is a member 'h1' already"]).await;
        let clone = Admission { machine_id: "machine1".into(), ..wish(&good, "h2", 2) };
        refused(&store, &clone, now(), expect!["'h2' has the machine id of member 'h1': their disks were cloned"]).await;
        let same = Admission { address: "10.0.0.1".into(), ..wish(&good, "h2", 2) };
        refused(&store, &same, now(), expect!["member 'h1' has the address 10.0.0.1"]).await;
        let old = Admission { version: "0.0.9".into(), ..wish(&good, "h2", 2) };
        refused(&store, &old, now(), expect!["'h2' runs vmkeep 0.0.9 (level 8), the cluster 0.1.0 (level 8)"]).await;
        let newer = Admission { level: keys::LEVEL_NOW + 1, ..wish(&good, "h2", 2) };
        refused(&store, &newer, now(), expect!["'h2' runs vmkeep 0.1.0 (level 9), the cluster 0.1.0 (level 8)"]).await;
        let vm = vmkeep_types::ids::VmId(uuid::Uuid::from_u128(1));
        let owner = serde_json::json!({"vm": vm, "project": "default", "node": "h1", "epoch": 1, "generation": 1});
        store.txn(Txn::default().then(typed::put(keys::owner(vm), &owner))).await.expect("written");
        let brings = Admission { guests: vec![GuestThere { vm, name: "web1".into() }], ..wish(&good, "h2", 2) };
        let twice = expect!["VMs that the cluster runs elsewhere run on 'h2': 'web1' (of 'h1'); they would run twice"];
        refused(&store, &brings, now(), twice).await;
        admit(&store, &wish(&good, "h2", 2), now()).await.expect("the token is still good");
    }
}
