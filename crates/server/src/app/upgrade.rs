//! Rolling upgrades: who runs what, and the store's format level, which is raised by an operator and by nobody else.

use vmkeep_core::upgrade::{Seen, plan};
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::cluster::{ClusterMemberView, ClusterProblem, EtcdHealth, UpgradeMember, UpgradeView};
use vmkeep_types::error::Error;
use vmkeep_types::host::NodeHealth;

use super::cluster::members;
use super::{commit, get, node, recovery};

/// Versions, level, what is in the way and what to do next. `etcd`: the members as a status has just found them.
///
/// # Errors
/// The store's.
pub async fn check(store: &dyn Store, etcd: &[ClusterMemberView]) -> Result<UpgradeView, Error> {
    let away =
        |member: &&ClusterMemberView| matches!(&member.etcd, Some(etcd) if matches!(etcd.health, EtcdHealth::Silent | EtcdHealth::Learner));
    let away = etcd.iter().filter(away).map(|member| ClusterProblem {
        message: format!("etcd on '{}' has no vote now: another one must not go", member.record.node),
        mend: "vmkeep cluster status".into(),
    });
    let mut others: Vec<ClusterProblem> = away.collect();
    if recovery::waits_for(store).await?.is_some() {
        others.push(ClusterProblem {
            message: "the cluster is being recovered".into(),
            mend: "vmkeep cluster status says for whom it waits".into(),
        });
    }
    let level = get::<u64>(store, keys::LEVEL).await?.map_or(0, |level| level.value);
    let nodes = node::list(store).await?;
    let seen: Vec<Seen> = members(store)
        .await?
        .into_iter()
        .map(|member| {
            let agent = nodes.iter().find(|node| node.facts.name == member.node);
            let health = agent.map(|node| node.state.as_ref().map_or(NodeHealth::Online, |state| state.state));
            Seen { agent: agent.map(|node| node.facts.vmkeep_version.clone()), health, member }
        })
        .collect();
    let found = plan(level, &seen, others);
    let row = |Seen { member, agent, .. }: Seen| UpgradeMember {
        node: member.node,
        roles: member.roles,
        version: member.version,
        agent,
        level: member.level,
    };
    Ok(UpgradeView { level, members: seen.into_iter().map(row).collect(), problems: found.problems, next: found.next })
}

/// Raises the store's format level to the newest that every member can write; the level from now on.
///
/// # Errors
/// A member cannot write a newer one; the store's.
pub async fn raise(store: &dyn Store) -> Result<u64, Error> {
    let all = members(store).await?;
    let slowest = all.iter().min_by_key(|member| (member.level, member.node.clone()));
    let able = slowest.map_or(keys::LEVEL_NOW, |member| member.level).min(keys::LEVEL_NOW);
    let Some(level) = get::<u64>(store, keys::LEVEL).await? else { return Err(Error::internal("the store has no level")) };
    if able <= level.value {
        let told = match slowest {
            Some(member) if member.level < keys::LEVEL_NOW => {
                format!("'{}' can write level {} and no newer one", member.node, member.level)
            }
            _ => format!("the store has level {} already, the newest that is known", level.value),
        };
        return Err(Error::conflict(told).hint("vmkeep cluster upgrade-check says what to do next"));
    }
    // Whoever joins meanwhile is let in by one of these, and they let in only who runs their own version.
    let txn = Txn::default().when(Compare::ModifiedAt(keys::LEVEL.into(), level.modified)).then(typed::put(keys::LEVEL, &able));
    commit(store, txn).await?.ok_or_else(|| Error::conflict("somebody else raises the level at this moment; try again"))?;
    Ok(able)
}

/// Refuses what needs records that members of an older version would misread.
///
/// # Errors
/// The store has an older level; the store's.
pub async fn needs(store: &dyn Store, level: u64, what: &str) -> Result<(), Error> {
    let Some(has) = get::<u64>(store, keys::LEVEL).await?.filter(|has| has.value < level) else { return Ok(()) };
    let told =
        format!("{what} needs a store of level {level}, this one has level {}: members of the version before would misread it", has.value);
    Err(Error::conflict(told).hint("vmkeep cluster upgrade-check; when every member runs the new version: vmkeep cluster raise-level"))
}

#[cfg(test)]
mod tests {
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::cluster::{MemberRecord, MemberRole, MemberState};

    use super::*;

    async fn store(levels: &[(&str, u64)]) -> EmbeddedStore {
        let store = EmbeddedStore::in_memory().expect("memory");
        store.txn(Txn::default().then(typed::put(keys::LEVEL, &2_u64))).await.expect("written");
        for (node, level) in levels {
            let record = MemberRecord {
                node: node.parse().expect("a name"),
                address: String::new(),
                machine_id: String::new(),
                roles: vec![MemberRole::Control],
                version: "1".into(),
                level: *level,
                state: MemberState::Member,
                since: jiff::Timestamp::UNIX_EPOCH,
                certificate_until: None,
                problems: Vec::new(),
            };
            store.txn(Txn::default().then(typed::put(keys::member(&record.node), &record))).await.expect("written");
        }
        store
    }

    #[tokio::test]
    async fn the_level_is_raised_when_every_member_can_write_it() {
        let mixed = store(&[("a", 3), ("b", 2)]).await;
        let refused = raise(&mixed).await.expect_err("b is old");
        assert_eq!(refused.message, "'b' can write level 2 and no newer one");
        assert!(
            needs(&mixed, 3, "it").await.expect_err("too old").message.starts_with("it needs a store of level 3, this one has level 2")
        );
        // One that an even older version let in has not said anything.
        assert!(raise(&store(&[("a", 3), ("b", 0)]).await).await.is_err());

        let all = store(&[("a", 8), ("b", 8)]).await;
        assert_eq!(check(&all, &[]).await.expect("a view").next, "every member can write level 8: vmkeep cluster raise-level");
        assert_eq!(raise(&all).await, Ok(8));
        needs(&all, 8, "it").await.expect("it may");
        assert_eq!(raise(&all).await.expect_err("again").message, "the store has level 8 already, the newest that is known");
    }

    #[tokio::test]
    async fn more_members_than_a_transaction_names_are_raised_too() {
        let names: Vec<String> = (0..300).map(|n| format!("h{n}")).collect();
        let levels: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 4)).collect();
        assert_eq!(raise(&store(&levels).await).await, Ok(4));
    }

    #[tokio::test]
    async fn a_member_without_a_vote_stops_the_upgrade() {
        let store = store(&[("a", 3)]).await;
        let record = members(&store).await.expect("members").remove(0);
        let etcd = Some(vmkeep_types::cluster::EtcdView { health: EtcdHealth::Silent, version: None, size: None });
        let view = check(&store, &[ClusterMemberView { record, etcd }]).await.expect("a view");
        assert_eq!(view.problems[0].message, "etcd on 'a' has no vote now: another one must not go");
        assert_eq!(view.next, "first mend: vmkeep cluster status");
    }
}
