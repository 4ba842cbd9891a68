//! Who is a control node. The records say it; each host makes itself what its own record says.
//!
//! ```text
//!  promote ─► record: control, compute ─► the host asks a control node for the authority's key and a learner of etcd ─► votes ─► anew
//!  demote  ─► record: compute ─► etcd's member is taken out ─► the host erases its etcd and the authority's key ─► anew
//! ```
//! The record is the intent and comes first: whatever breaks off after it is gone on with by the host, or by the leader.

use vmkeep_store::{Compare, Op, Store, Txn, keys, typed};
use vmkeep_types::cluster::{Admission, MemberRecord, MemberRole, MemberState};
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;

use super::cluster::members;
use super::{TRIES_MAX, commit, store_error};

/// The first so many members have etcd: the loss of one stops nothing.
const VOTERS_WANTED: usize = 3;
/// More members make etcd slower and no safer.
const VOTERS_MAX: usize = 5;
const CONTROL: [MemberRole; 2] = [MemberRole::Control, MemberRole::Compute];
const COMPUTE: [MemberRole; 1] = [MemberRole::Compute];

/// Those of a host that joins.
///
/// # Errors
/// It asks for a vote in etcd, which has five.
pub(super) fn of_joiner(members: &[MemberRecord], wish: &Admission) -> Result<Vec<MemberRole>, Error> {
    let voters = members.iter().filter(|member| member.has_etcd()).count();
    match (wish.witness, wish.control) {
        (true, true) => Err(Error::invalid("a witness has etcd only: it is no control node")),
        (true, false) if voters >= VOTERS_MAX => {
            Err(Error::conflict(format!("there are {voters} control nodes and witnesses: a witness adds nothing")))
        }
        (true, false) => Ok(vec![MemberRole::Witness]),
        (false, true) if voters >= VOTERS_MAX => Err(no_more(voters)),
        (false, control) if control || voters < VOTERS_WANTED => Ok(CONTROL.to_vec()),
        (false, _) => Ok(COMPUTE.to_vec()),
    }
}

fn no_more(voters: usize) -> Error {
    Error::conflict(format!("there are {voters} control nodes and witnesses: one more makes it slower and no safer"))
        .hint("vmkeep cluster demote NODE takes the role from another first")
}

/// A compute node is to be a control node. Nothing to do where it is one.
///
/// # Errors
/// It is no member, has not arrived, runs another version, or etcd has five members; the store's.
pub async fn promote(store: &dyn Store, node: &Name) -> Result<(), Error> {
    change(store, node, |all, record| {
        if record.roles.contains(&MemberRole::Control) {
            return Ok(None);
        }
        if record.state == MemberState::Joining {
            return Err(
                Error::conflict(format!("'{node}' was let in and has not arrived")).hint("vmkeep cluster status says what it waits for")
            );
        }
        if record.version != env!("CARGO_PKG_VERSION") {
            let ours = env!("CARGO_PKG_VERSION");
            return Err(
                Error::refused(format!("'{node}' runs vmkeep {}, this host {ours}", record.version)).hint("install the same version")
            );
        }
        let voters = all.iter().filter(|member| member.has_etcd()).count();
        if voters >= VOTERS_MAX { Err(no_more(voters)) } else { Ok(Some(CONTROL.to_vec())) }
    })
    .await
}

/// A control node is to be a compute node. Nothing to do where it is one; its etcd is another's affair.
///
/// # Errors
/// It is no member, or the last control node; the store's.
pub async fn demote(store: &dyn Store, node: &Name) -> Result<(), Error> {
    change(store, node, |all, record| {
        if !record.roles.contains(&MemberRole::Control) {
            return Ok(None);
        }
        let stays = |member: &&MemberRecord| {
            member.node != *node && member.state == MemberState::Member && member.roles.contains(&MemberRole::Control)
        };
        if all.iter().find(stays).is_none() {
            return Err(Error::conflict(format!("without '{node}' the cluster would have no control node"))
                .hint("vmkeep cluster promote NODE makes another one first"));
        }
        Ok(Some(COMPUTE.to_vec()))
    })
    .await
}

async fn change(
    store: &dyn Store,
    node: &Name,
    judge: impl Fn(&[MemberRecord], &MemberRecord) -> Result<Option<Vec<MemberRole>>, Error>,
) -> Result<(), Error> {
    for _ in 0..TRIES_MAX {
        let key = keys::member(node);
        let kept = store.get(&key).await.map_err(store_error)?.ok_or_else(|| Error::not_found("member", node))?;
        let old: MemberRecord = typed::decode(&kept).map_err(store_error)?;
        let all = members(store).await?;
        let record = all.iter().find(|member| member.node == *node).unwrap_or(&old);
        if record.roles.contains(&MemberRole::Witness) {
            return Err(Error::conflict(format!("'{node}' is a witness: it has etcd only"))
                .hint("on it: vmkeep cluster leave, and join again as what it is to be"));
        }
        let Some(roles) = judge(&all, record)? else { return Ok(()) };
        let stops = !roles.contains(&MemberRole::Control);
        let put = typed::rewrite(&kept, &MemberRecord { roles, ..old.clone() }).map_err(store_error)?;
        let txn = Txn::default().when(Compare::ModifiedAt(key, kept.modified)).then(put);
        // Its host must not be believed as the control plane's any more.
        let txn = if stops { txn.then(Op::Delete(keys::control(node))) } else { txn };
        if commit(store, txn).await?.is_some() {
            return Ok(());
        }
    }
    Err(Error::conflict("other members change at this moment; try again"))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::cluster::MemberWord;

    use super::*;

    async fn cluster(members: &[(&'static str, &[MemberRole])]) -> EmbeddedStore {
        let store = EmbeddedStore::in_memory().expect("memory");
        for (name, roles) in members {
            let node = Name::known(name);
            let record = MemberRecord {
                node: node.clone(),
                address: format!("10.0.0.{}", name.len()),
                machine_id: (*name).into(),
                roles: roles.to_vec(),
                version: "older".into(),
                level: 6,
                state: MemberState::Joining,
                since: jiff::Timestamp::UNIX_EPOCH,
                certificate_until: None,
                problems: Vec::new(),
            };
            let mut put = serde_json::to_value(&record).expect("JSON");
            put["of a newer version"] = true.into();
            let word = MemberWord { version: env!("CARGO_PKG_VERSION").into(), level: 6, certificate_until: None, problems: Vec::new() };
            let txn = Txn::default().then(typed::put(keys::member(&node), &put)).then(typed::put(keys::word(&node), &word));
            store.txn(txn.then(Op::Put(keys::control(&node), Vec::new()))).await.expect("written");
        }
        store
    }

    async fn roles_of(store: &EmbeddedStore, node: &Name) -> Vec<MemberRole> {
        members(store).await.expect("members").into_iter().find(|member| member.node == *node).expect("a member").roles
    }

    fn refused(done: Result<(), Error>, expect: Expect) {
        expect.assert_eq(&done.expect_err("refused").to_string());
    }

    const WITNESS: [MemberRole; 1] = [MemberRole::Witness];

    #[tokio::test]
    async fn a_role_comes_and_goes_and_nothing_else_of_the_record() {
        let store = cluster(&[("a", &CONTROL), ("bb", &COMPUTE)]).await;
        let b = Name::known("bb");
        promote(&store, &b).await.expect("it may");
        assert_eq!(roles_of(&store, &b).await, CONTROL);
        let revision = store.revision().await.expect("a revision");
        promote(&store, &b).await.expect("it is one");
        assert_eq!(store.revision().await.expect("a revision"), revision, "nothing to do");
        demote(&store, &b).await.expect("there is another");
        assert_eq!(roles_of(&store, &b).await, COMPUTE);
        assert!(store.get(&keys::control(&b)).await.expect("a read").is_none(), "nobody obeys it any more");
        let kept = store.get(&keys::member(&b)).await.expect("a read").expect("there");
        let kept: serde_json::Value = serde_json::from_slice(&kept.value).expect("JSON");
        assert_eq!((&kept["of a newer version"], &kept["version"]), (&true.into(), &"older".into()), "what others wrote stays");
        demote(&store, &b).await.expect("it is none");
    }

    #[tokio::test]
    async fn what_is_refused() {
        let store = cluster(&[("a", &CONTROL), ("w1", &WITNESS), ("w2", &WITNESS), ("www", &WITNESS), ("wwww", &WITNESS)]).await;
        let name = Name::known;
        refused(demote(&store, &name("a")).await, expect!["without 'a' the cluster would have no control node"]);
        refused(demote(&store, &name("w1")).await, expect!["'w1' is a witness: it has etcd only"]);
        refused(promote(&store, &name("w1")).await, expect!["'w1' is a witness: it has etcd only"]);
        refused(promote(&store, &name("none")).await, expect!["there is no member 'none'"]);
        let full =
            cluster(&[("a", &CONTROL), ("bb", &CONTROL), ("ccc", &CONTROL), ("dddd", &CONTROL), ("e", &WITNESS), ("f", &COMPUTE)]).await;
        refused(
            promote(&full, &name("f")).await,
            expect!["there are 5 control nodes and witnesses: one more makes it slower and no safer"],
        );
        let store = cluster(&[("a", &CONTROL), ("bb", &COMPUTE), ("ccc", &CONTROL)]).await;
        for node in ["bb", "ccc"] {
            store.txn(Txn::default().then(Op::Delete(keys::word(&name(node))))).await.expect("it never said a word");
        }
        refused(promote(&store, &name("bb")).await, expect!["'bb' was let in and has not arrived"]);
        refused(demote(&store, &name("a")).await, expect!["without 'a' the cluster would have no control node"]);
        let old = MemberWord { version: "0.0.9".into(), level: 5, certificate_until: None, problems: Vec::new() };
        store.txn(Txn::default().then(typed::put(keys::word(&name("bb")), &old))).await.expect("written");
        refused(promote(&store, &name("bb")).await, expect!["'bb' runs vmkeep 0.0.9, this host 0.1.0"]);
    }
}
