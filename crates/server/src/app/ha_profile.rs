//! Does a profile of timers fit this cluster? It is refused before it is set, and told where it does not fit any more.
//!
//! `fast` asks the store of every node each second, and a watchdog of every node that bites within 4 s. What is not known of a watchdog
//! refuses nothing: a node whose watchdog turns out to be slower stays with `standard` by itself, and says so.

use vmkeep_core::ha::timers::{FAST_NODES_MAX, Profile, Timers, dead_after_ms};
use vmkeep_store::{Op, Store, keys, typed};
use vmkeep_types::cluster::{MemberRecord, MemberRole};
use vmkeep_types::error::Error;
use vmkeep_types::event::{Event, Level};
use vmkeep_types::ha::HaSettings;
use vmkeep_types::host::NodeFacts;
use vmkeep_types::ids::node_uid;
use vmkeep_types::name::Name;
use vmkeep_types::operation::ResourceRef;

use super::{get, node, store_error};

/// More nodes than the profile is for, in words.
pub fn crowd(profile: Profile, nodes: usize) -> Option<String> {
    let fits = profile == Profile::Standard || nodes <= FAST_NODES_MAX;
    (!fits).then(|| format!("the profile fast is for up to {FAST_NODES_MAX} nodes, and this cluster has {nodes}"))
}

/// The watchdog of a node that would not bite in time, in words: the inequality with what is known of it.
pub fn too_slow(profile: Profile, facts: &NodeFacts) -> Option<String> {
    let timers = Timers::of(profile);
    let shortest_ms = u64::from(facts.offers.watchdog_min_s?) * 1000;
    let needs_ms = dead_after_ms(timers.pet_ms, shortest_ms.max(timers.watchdog_ms));
    (needs_ms > timers.safe_ms).then(|| {
        format!(
            "the watchdog of {} bites after {} s at the earliest, and {} needs one that does within {} s: the host could live on for {} s, \
             and its VMs start elsewhere after {} s",
            facts.name,
            shortest_ms / 1000,
            profile.as_str(),
            timers.watchdog_ms / 1000,
            needs_ms.div_ceil(1000),
            timers.safe_ms / 1000,
        )
    })
}

/// # Errors
/// The refusal, which says which node it is for; the store's.
pub async fn fits(store: &dyn Store, profile: Profile) -> Result<(), Error> {
    let nodes = node::names(store).await?;
    if let Some(why) = crowd(profile, nodes.len()) {
        return Err(Error::refused(why).hint("standard is for up to 1000"));
    }
    for kv in node::key_of_each(store, &nodes, keys::facts).await?.into_iter().flatten() {
        let facts: NodeFacts = typed::decode(&kv).map_err(store_error)?;
        if let Some(why) = too_slow(profile, &facts) {
            return Err(Error::refused(why)
                .hint(format!("give {} a watchdog that is quicker, or stay with standard: docs/guide/ha.md", facts.name)));
        }
    }
    Ok(())
}

/// What is told when this member is let in and the cluster's profile is not for so many.
///
/// # Errors
/// The store's.
pub async fn on_join(store: &dyn Store, members: &[MemberRecord], joins: &MemberRecord) -> Result<Option<Op>, Error> {
    let settings = get::<HaSettings>(store, keys::HA_SETTINGS).await?.map(|kept| kept.value).unwrap_or_default();
    let others = members.iter().filter(|member| member.node != joins.node);
    let nodes = others.chain([joins]).filter(|member| member.roles.contains(&MemberRole::Compute)).count();
    let why = crowd(settings.profile, nodes).filter(|_| joins.roles.contains(&MemberRole::Compute));
    Ok(why.map(|why| warning(&joins.node, format!("{why}: vmkeep ha set --profile standard"), joins.since)))
}

fn warning(name: &Name, message: String, at: jiff::Timestamp) -> Op {
    let project = Name::known("default");
    let resource = ResourceRef { kind: "node".into(), project: project.clone(), name: name.clone(), uid: node_uid(name) };
    let event = Event { at, resource, level: Level::Warn, code: "ha.profile-too-fast".into(), message, node: Some(name.clone()) };
    let stamp = format!("{:020}-ha-profile", at.as_nanosecond());
    typed::put(keys::event(&project, "node", node_uid(name), stamp), &event)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use vmkeep_api::ha::HaChange;
    use vmkeep_store::Txn;
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::cluster::MemberState;
    use vmkeep_types::error::Code;

    use super::super::ha;
    use super::*;
    use crate::reconcile::ha::tests::facts;

    async fn cluster(watchdogs_min_s: &[Option<u32>]) -> EmbeddedStore {
        let store = EmbeddedStore::in_memory().expect("memory");
        for (n, watchdog_min_s) in watchdogs_min_s.iter().enumerate() {
            let name: Name = format!("n{n}").parse().expect("a name");
            let mut facts = NodeFacts { name: name.clone(), ..facts("a") };
            facts.offers.watchdog_min_s = *watchdog_min_s;
            let txn = Txn::default().then(Op::Put(keys::joined(&name), Vec::new())).then(typed::put(keys::facts(&name), &facts));
            store.txn(txn).await.expect("a write");
        }
        store
    }

    async fn set(store: &EmbeddedStore, profile: Profile) -> Result<(), Error> {
        ha::set(store, &HaChange { profile: Some(profile), ..HaChange::default() }).await.map(drop)
    }

    #[tokio::test]
    async fn a_node_with_a_slow_watchdog_keeps_the_cluster_from_fast_and_is_named() {
        let quick = cluster(&[Some(1), None, Some(4)]).await;
        set(&quick, Profile::Fast).await.expect("4 s is quick enough, and what is not known refuses nothing");
        let slow = cluster(&[Some(1), Some(5)]).await;
        let refused = set(&slow, Profile::Fast).await.expect_err("it would live on for too long");
        expect!["the watchdog of n1 bites after 5 s at the earliest, and fast needs one that does within 4 s: the host could live on for 19 s, and its VMs start elsewhere after 17 s"]
            .assert_eq(&refused.message);
        assert_eq!(refused.hint.as_deref(), Some("give n1 a watchdog that is quicker, or stay with standard: docs/guide/ha.md"));
        set(&slow, Profile::Standard).await.expect("it does for standard");
    }

    #[tokio::test]
    async fn fast_is_for_64_nodes_and_the_65th_is_told_of() {
        let store = cluster(&[None; 64]).await;
        set(&store, Profile::Fast).await.expect("64 are not too many");
        let member = |n: usize, roles: &[MemberRole]| MemberRecord {
            node: format!("n{n}").parse().expect("a name"),
            address: String::new(),
            machine_id: String::new(),
            roles: roles.to_vec(),
            version: "1".into(),
            level: keys::LEVEL_NOW,
            state: MemberState::Joining,
            since: jiff::Timestamp::UNIX_EPOCH,
            certificate_until: None,
            problems: Vec::new(),
        };
        let members: Vec<MemberRecord> = (0..64).map(|n| member(n, &[MemberRole::Compute])).collect();
        let (again, witness, one_more) =
            (member(63, &[MemberRole::Compute]), member(64, &[MemberRole::Witness]), member(64, &[MemberRole::Compute]));
        assert_eq!(on_join(&store, &members, &again).await, Ok(None), "its answer was lost");
        assert_eq!(on_join(&store, &members, &witness).await, Ok(None), "a witness is no node");
        let Some(Op::Put(_, told)) = on_join(&store, &members, &one_more).await.expect("a look") else { panic!("it is told of") };
        assert!(
            String::from_utf8_lossy(&told)
                .contains("the profile fast is for up to 64 nodes, and this cluster has 65: vmkeep ha set --profile standard")
        );
        let crowded = cluster(&[None; 65]).await;
        assert_eq!(set(&crowded, Profile::Fast).await.expect_err("too many").code, Code::Refused);
    }

    #[tokio::test]
    async fn members_that_read_no_goodbye_keep_the_policy_as_it_was() {
        let store = cluster(&[]).await;
        store.txn(Txn::default().then(typed::put(keys::LEVEL, &4_u64))).await.expect("a write");
        let policy = HaChange { shutdown_policy: Some(vmkeep_types::ha::ShutdownPolicy::Failover), ..HaChange::default() };
        let refused = ha::set(&store, &policy).await.expect_err("they would misread it");
        assert!(refused.message.starts_with("a shutdown policy needs a store of level 5, this one has level 4"), "{refused}");
        set(&store, Profile::Standard).await.expect("a profile is understood");
    }
}
