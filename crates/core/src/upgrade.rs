//! May a rolling upgrade go on, and with which member next.
//!
//! Versions N and N−1 work together: the store keeps its format level until every member can write the next one, and an operator
//! raises it. So members are upgraded one at a time, and while one is away no other goes.

use vmkeep_types::cluster::{ClusterProblem, MemberRecord, MemberRole, MemberState};
use vmkeep_types::host::NodeHealth;

/// A member as far as an upgrade is concerned.
#[derive(Clone, Debug)]
pub struct Seen {
    pub member: MemberRecord,
    /// What its agent runs; None: it has none, or has never told.
    pub agent: Option<String>,
    /// None: it has no agent.
    pub health: Option<NodeHealth>,
}

/// What is in the way, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub problems: Vec<ClusterProblem>,
    pub next: String,
}

/// Major, minor, patch; what is no number counts as 0.
type Version = (u32, u32, u32);

fn version(text: &str) -> Version {
    let mut parts = text.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// `level`: the store's; `others`: what is wrong with the cluster apart from versions, which stops an upgrade too.
pub fn plan(level: u64, all: &[Seen], others: Vec<ClusterProblem>) -> Plan {
    let newest = all.iter().map(|seen| version(&seen.member.version)).max().unwrap_or_default();
    let mut problems = others;
    for seen in all {
        problems.extend(against(seen, newest));
    }
    let mut older: Vec<&Seen> = all.iter().filter(|seen| version(&seen.member.version) < newest).collect();
    // The API first: what it learned to say is understood by old agents, not the other way round.
    older.sort_by_key(|seen| (!seen.member.roles.contains(&MemberRole::Control), seen.member.node.clone()));
    let able = all.iter().map(|seen| seen.member.level).min().unwrap_or(0);
    let next = match (problems.first(), older.first()) {
        (Some(problem), _) => format!("first mend: {}", problem.mend),
        (None, Some(seen)) => format!("on '{}': apt-get install vmkeep; its VMs go on", seen.member.node),
        (None, None) if able > level => format!("every member can write level {able}: vmkeep cluster raise-level"),
        (None, None) => "nothing: all members run the same version; a newer one may begin on any control node".into(),
    };
    Plan { problems, next }
}

fn against(seen: &Seen, newest: Version) -> Option<ClusterProblem> {
    let node = &seen.member.node;
    let problem = |message: String, mend: String| Some(ClusterProblem { message, mend });
    let own = version(&seen.member.version);
    if seen.member.state == MemberState::Joining {
        return problem(format!("'{node}' was let in and has not arrived"), format!("let it arrive, or: vmkeep cluster remove {node}"));
    }
    if seen.health.is_some_and(|health| health != NodeHealth::Online) {
        return problem(format!("'{node}' is not online"), format!("bring '{node}' back before another one goes"));
    }
    if own.0 != newest.0 || newest.1 - own.1 > 1 {
        let (major, minor, _) = newest;
        return problem(
            format!("'{node}' runs {}, more than one step behind {major}.{minor}", seen.member.version),
            format!("on '{node}': install the versions between one after the other"),
        );
    }
    let agent = seen.agent.as_deref().filter(|agent| *agent != seen.member.version)?;
    problem(
        format!("the agent of '{node}' runs {agent}, its control plane {}", seen.member.version),
        format!("on '{node}': systemctl restart vmkeepd"),
    )
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use vmkeep_types::name::Name;

    use super::*;

    fn seen(node: &'static str, version: &str, level: u64) -> Seen {
        let role = if node.starts_with('c') { MemberRole::Control } else { MemberRole::Compute };
        let member = MemberRecord {
            node: Name::known(node),
            address: String::new(),
            machine_id: String::new(),
            roles: vec![role],
            version: version.into(),
            level,
            state: MemberState::Member,
            since: jiff::Timestamp::UNIX_EPOCH,
            certificate_until: None,
            problems: Vec::new(),
        };
        Seen { member, agent: Some(version.into()), health: Some(NodeHealth::Online) }
    }

    fn check(all: &[Seen], expect: Expect) {
        let plan = plan(2, all, Vec::new());
        let problems: String = plan.problems.iter().map(|problem| format!("{}\n", problem.message)).collect();
        expect.assert_eq(&format!("{problems}{}", plan.next));
    }

    #[test]
    fn one_member_after_the_other() {
        let nothing = expect!["nothing: all members run the same version; a newer one may begin on any control node"];
        check(&[seen("c1", "1.2.0", 2), seen("n1", "1.2.0", 2)], nothing);
        let mixed = [seen("n1", "1.1.0", 2), seen("c2", "1.1.9", 2), seen("c1", "1.2.0", 3)];
        check(&mixed, expect!["on 'c2': apt-get install vmkeep; its VMs go on"]);
        check(&[seen("n1", "1.1.0", 2), seen("c1", "1.2.0", 3)], expect!["on 'n1': apt-get install vmkeep; its VMs go on"]);
        let done = [seen("n1", "1.2.0", 3), seen("c1", "1.2.0", 3)];
        check(&done, expect!["every member can write level 3: vmkeep cluster raise-level"]);
    }

    #[test]
    fn what_is_in_the_way() {
        let away = Seen { health: Some(NodeHealth::Offline), ..seen("c2", "1.1.0", 2) };
        check(
            &[seen("c1", "1.2.0", 3), away],
            expect![[r"
                'c2' is not online
                first mend: bring 'c2' back before another one goes"]],
        );
        check(
            &[seen("c1", "1.4.0", 3), seen("n1", "1.2.7", 2)],
            expect![[r"
                'n1' runs 1.2.7, more than one step behind 1.4
                first mend: on 'n1': install the versions between one after the other"]],
        );
        let half = Seen { agent: Some("1.1.0".into()), ..seen("c1", "1.2.0", 3) };
        check(
            &[half],
            expect![[r"
                the agent of 'c1' runs 1.1.0, its control plane 1.2.0
                first mend: on 'c1': systemctl restart vmkeepd"]],
        );
    }
}
