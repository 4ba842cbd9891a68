//! How the cluster is: members, etcd, and what to do about what is wrong. And what takes a member out.

use std::time::Duration;

use futures_util::future::join_all;
use vmkeep_server::app::{self, cluster as members, leaving, recovery, releasing};
use vmkeep_store::StoreError;
use vmkeep_store::etcd::admin::{self, EtcdMember, EtcdStatus};
use vmkeep_types::cluster::{ClusterMemberView, ClusterProblem, ClusterView, EtcdHealth, EtcdView, MemberRecord, MemberRole, MemberState};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;

use super::defrag::{FULL_PERCENT, is_nearly_full};
use super::etcd::{client_url, peer_url};
use super::form::failure_file;
use super::strangers::strangers;
use super::{Cluster, when_settled};
use crate::member::Member;

/// For one member of etcd, in a status that shows all.
pub(super) const MEMBER_PATIENCE: Duration = Duration::from_secs(3);
/// Versions before these have ways around per-node rights (authorisation bypass in transactions).
const ETCD_SAFE: [(u32, u32, u32); 3] = [(3, 4, 44), (3, 5, 30), (3, 6, 11)];
/// Before its end, when it should have been renewed long ago.
const CERTIFICATE_SOON: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);
/// What mends an etcd without a majority.
pub(super) const AWAY: &str =
    "bring back a majority of its members; on each: systemctl status vmkeep-etcd; lost for good: vmkeep cluster recover";

impl Cluster {
    pub(super) async fn look(&self) -> Result<ClusterView, Error> {
        let Some(member) = &self.member else { return Ok(self.look_alone()) };
        let records = match members::members(self.store.as_ref()).await {
            Err(error) if error.code == Code::Unavailable => return Ok(self.look_without_a_store(member, &error).await),
            records => records?,
        };
        let asked = records.iter().map(|record| async {
            if member.etcd.external || !record.has_etcd() {
                return None;
            }
            let only = self.only(client_url(&record.address)).ok()?;
            let status = tokio::time::timeout(MEMBER_PATIENCE, admin::status(&only)).await;
            Some(status.unwrap_or_else(|_| Err(StoreError::Unavailable("no answer".into()))))
        });
        let statuses: Vec<Option<Result<EtcdStatus, StoreError>>> = join_all(asked).await;
        let store = self.etcd_store()?;
        let full = store.out_of_space().await.map_err(app::store_error)?;
        let mut problems = problems_of_members(&records, &statuses, self.etcd().quota(), jiff::Timestamp::now());
        let mut endpoints = Vec::new();
        if member.etcd.external {
            let (found, more) = self.endpoints().await?;
            endpoints = found;
            problems.extend(more);
        } else {
            problems.extend(problems_of_etcd(&records, &store.members().await.map_err(app::store_error)?));
        }
        if !full.is_empty() {
            let mend =
                if member.etcd.external { "etcdctl … compact, defrag and alarm disarm, where it runs" } else { "vmkeep cluster defrag" };
            problems.push(problem("etcd is over its quota: nothing can be changed until there is room", mend));
        }
        // What other nodes have said of themselves is control nodes' to read.
        if member.has(MemberRole::Control)
            && let Some(silent) = recovery::waits_for(self.store.as_ref()).await?
        {
            problems.extend(recovering(&silent));
        }
        if let Ok(why) = std::fs::read_to_string(failure_file(&member.paths())) {
            problems.push(problem(why.trim(), "mend that and try again"));
        }
        let rows = records.into_iter().zip(statuses);
        let members = rows.map(|(record, status)| ClusterMemberView { record, etcd: status.as_ref().map(view) }).collect();
        Ok(ClusterView { cluster: Some(member.cluster), members, etcd: endpoints, problems })
    }

    /// Who is silent is all that can be told, and what that means.
    async fn look_without_a_store(&self, member: &Member, error: &Error) -> ClusterView {
        let state = self.config.store.clone();
        let now = tokio::task::spawn_blocking(move || Member::load(&state)).await;
        let member = now.ok().and_then(Result::ok).flatten().unwrap_or_else(|| member.clone());
        let asked = member.etcd.endpoints.iter().map(|url| async move {
            let status = match self.only(url.clone()) {
                Ok(only) => tokio::time::timeout(MEMBER_PATIENCE, admin::status(&only)).await.is_ok_and(|status| status.is_ok()),
                Err(_) => false,
            };
            (!status).then(|| problem(format!("etcd at {url} does not answer"), "on that host: systemctl status vmkeep-etcd"))
        });
        let silent = join_all(asked).await.into_iter().flatten();
        let first = problem(format!("the cluster's store cannot be read ({}); VMs go on", error.message), AWAY);
        ClusterView {
            cluster: Some(member.cluster),
            members: Vec::new(),
            etcd: Vec::new(),
            problems: [first].into_iter().chain(silent).collect(),
        }
    }

    fn look_alone(&self) -> ClusterView {
        let failed = std::fs::read_to_string(failure_file(&self.paths())).ok();
        let problems =
            failed.map(|why| problem(format!("no cluster was formed: {}", why.trim()), "mend that and run vmkeep cluster init again"));
        ClusterView { cluster: None, members: Vec::new(), etcd: Vec::new(), problems: problems.into_iter().collect() }
    }

    /// Out of etcd first: a dead member counts for the majority as long as it is in.
    pub(super) async fn take_out(&self, node: &Name) -> Result<(), Error> {
        self.member()?;
        let records = members::members(self.store.as_ref()).await?;
        let record = records.iter().find(|record| record.node == *node).ok_or_else(|| Error::not_found("member", node))?;
        if *node == self.node {
            return Err(Error::conflict(format!("'{node}' is this host")).hint("on it: vmkeep cluster leave"));
        }
        releasing::release(self.store.as_ref(), node, jiff::Timestamp::now()).await?;
        self.take_etcd_out(&peer_url(&record.address)).await?;
        leaving::forget(self.store.as_ref(), node).await
    }

    /// The member of etcd at `peer`, if there is one. In an etcd of yours one with the address of ours is yours.
    pub(super) async fn take_etcd_out(&self, peer: &str) -> Result<(), Error> {
        if self.is_external() {
            return Ok(());
        }
        let store = self.etcd_store()?;
        let all = store.members().await.map_err(app::store_error)?;
        match all.iter().find(|m| m.peer_urls.iter().any(|url| url == peer)) {
            Some(gone) => when_settled(|| store.remove_member(gone.id)).await.map_err(app::store_error),
            None => Ok(()),
        }
    }
}

fn recovering(silent: &[Name]) -> Vec<ClusterProblem> {
    let begun = "the cluster was recovered and no VM is started";
    if silent.is_empty() {
        let mend = "wait a moment; a VM that runs on two nodes keeps it up: virsh list on each, and stop one of them";
        return vec![problem(format!("{begun} until owners are settled"), mend)];
    }
    let each = |node: &Name| {
        problem(
            format!("{begun} before '{node}' has said what it runs"),
            format!(
                "start vmkeepd there; when it had etcd: vmkeep cluster leave --forget, and join; gone for good: vmkeep cluster lost {node}"
            ),
        )
    };
    let later = problem(
        format!("{begun}: hosts that joined after the backup are not waited for, and what they run is not known"),
        "before the last one above has said what it runs, on each of them: vmkeep cluster leave --forget, and join",
    );
    silent.iter().map(each).chain([later]).collect()
}

pub(super) fn problem(message: impl Into<String>, mend: impl Into<String>) -> ClusterProblem {
    ClusterProblem { message: message.into(), mend: mend.into() }
}

pub(super) fn view(status: &Result<EtcdStatus, StoreError>) -> EtcdView {
    match status {
        Err(_) => EtcdView { health: EtcdHealth::Silent, version: None, size: None },
        Ok(status) => {
            let health = match status {
                status if status.learner => EtcdHealth::Learner,
                status if status.id == status.leader => EtcdHealth::Leader,
                _ => EtcdHealth::Follower,
            };
            EtcdView { health, version: Some(status.version.clone()), size: Some(ByteCount::from_bytes(status.db_bytes)) }
        }
    }
}

fn problems_of_members(
    records: &[MemberRecord],
    statuses: &[Option<Result<EtcdStatus, StoreError>>],
    quota: u64,
    now: jiff::Timestamp,
) -> Vec<ClusterProblem> {
    let (mut problems, soon) = (Vec::new(), now + CERTIFICATE_SOON);
    for (record, status) in records.iter().zip(statuses) {
        let node = &record.node;
        if record.state == MemberState::Joining {
            problems.push(problem(
                format!("'{node}' was let in and has not arrived"),
                format!("on {node}: vmkeep cluster join again with the same token; or here: vmkeep cluster remove {node}"),
            ));
        }
        let own_words = |said: &ClusterProblem| problem(format!("'{node}': {}", said.message), format!("on {node}: {}", said.mend));
        problems.extend(record.problems.iter().map(own_words));
        match status {
            Some(Err(_)) => problems.push(problem(
                format!("etcd on '{node}' does not answer"),
                format!("on {node}: systemctl restart vmkeep-etcd vmkeepd; if it is gone for good: vmkeep cluster remove {node}"),
            )),
            Some(Ok(status)) => {
                problems.extend(status.errors.iter().map(|told| problem(format!("etcd on '{node}': {told}"), "vmkeep cluster defrag")));
                if is_nearly_full(status.db_bytes, quota) {
                    problems.push(problem(format!("etcd on '{node}' has used {FULL_PERCENT} % of its quota"), "vmkeep cluster defrag"));
                }
                if is_unsafe(&status.version) {
                    problems.push(problem(
                        format!("etcd {} on '{node}' has known ways around the rights of single nodes", status.version),
                        "apt-get install etcd-server when there is a newer one; root on a node is an administrator of the cluster until then",
                    ));
                }
            }
            None => {}
        }
        if let Some(until) = record.certificate_until.filter(|until| *until < soon) {
            problems.push(problem(
                format!("the certificate of '{node}' ends at {until}"),
                format!(
                    "on {node}: journalctl -u vmkeepd says why it is not renewed; one that ended: vmkeep cluster leave --forget, and join"
                ),
            ));
        }
        if record.version != env!("CARGO_PKG_VERSION") {
            problems.push(problem(
                format!("'{node}' runs vmkeep {}, this host {}", record.version, env!("CARGO_PKG_VERSION")),
                "install the same version",
            ));
        }
    }
    problems
}

fn problems_of_etcd(records: &[MemberRecord], etcd: &[EtcdMember]) -> Vec<ClusterProblem> {
    let mut problems = Vec::new();
    for stranger in strangers(etcd, records) {
        problems.push(problem(
            format!("etcd has a member that vmkeep does not know: {}", stranger.peer_urls.join(" ")),
            "wait: the leader takes it out after three minutes; or join that host again",
        ));
    }
    let voters = etcd.iter().filter(|m| !m.learner).count();
    if voters < 3 {
        let more = if voters == 1 { "two more hosts" } else { "one more host, or any small machine with --witness" };
        problems.push(problem(format!("etcd has {voters} members: the loss of one stops all changes"), format!("join {more}")));
    }
    problems
}

/// Of the known series, an older one than the first mended.
fn is_unsafe(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor, patch) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let series = ETCD_SAFE.iter().find(|(a, b, _)| (*a, *b) == (major, minor));
    series.map_or((major, minor) < (3, 4), |(_, _, first)| patch < *first)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const QUOTA: u64 = 1000;

    fn now() -> jiff::Timestamp {
        jiff::Timestamp::from_second(1_800_000_000).expect("a time")
    }

    /// A control node in order.
    fn record(node: &str) -> MemberRecord {
        MemberRecord {
            node: node.parse().expect("a name"),
            address: format!("10.0.0.{}", node.trim_start_matches("node")),
            machine_id: node.into(),
            roles: vec![MemberRole::Control, MemberRole::Compute],
            version: env!("CARGO_PKG_VERSION").into(),
            level: 0,
            state: MemberState::Member,
            since: now(),
            certificate_until: Some(now() + CERTIFICATE_SOON),
            problems: Vec::new(),
        }
    }

    fn etcd() -> EtcdStatus {
        EtcdStatus { id: 1, leader: 1, learner: false, version: "3.5.30".into(), db_bytes: 100, used_bytes: 100, errors: Vec::new() }
    }

    fn in_etcd(record: &MemberRecord) -> EtcdMember {
        let (name, peer_urls) = (record.node.to_string(), vec![peer_url(&record.address)]);
        EtcdMember { id: 1, name, peer_urls, client_urls: vec![client_url(&record.address)], learner: false }
    }

    fn check(problems: &[ClusterProblem], expect: Expect) {
        let told: String = problems.iter().map(|problem| format!("{}\n  {}\n", problem.message, problem.mend)).collect();
        expect.assert_eq(&told);
    }

    #[test]
    fn what_is_wrong_with_members_is_told_with_what_mends_it() {
        let told = |record: MemberRecord, status| problems_of_members(&[record], &[status], QUOTA, now());
        assert_eq!(told(record("node1"), Some(Ok(etcd()))), []);
        let all = [
            (record("node2"), Some(Err(StoreError::Unavailable("no answer".into())))),
            (MemberRecord { version: "0.0.9".into(), ..record("node3") }, Some(Ok(etcd()))),
            (MemberRecord { certificate_until: Some(now()), ..record("node4") }, Some(Ok(etcd()))),
            (MemberRecord { state: MemberState::Joining, certificate_until: None, ..record("node5") }, None),
            (MemberRecord { problems: vec![problem("no port 16514", "free it")], ..record("node6") }, Some(Ok(etcd()))),
            (record("node7"), Some(Ok(EtcdStatus { version: "3.4.23".into(), db_bytes: QUOTA, errors: vec!["NOSPACE".into()], ..etcd() }))),
        ];
        let (records, statuses): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        check(
            &problems_of_members(&records, &statuses, QUOTA, now()),
            expect![[r#"
            etcd on 'node2' does not answer
              on node2: systemctl restart vmkeep-etcd vmkeepd; if it is gone for good: vmkeep cluster remove node2
            'node3' runs vmkeep 0.0.9, this host 0.1.0
              install the same version
            the certificate of 'node4' ends at 2027-01-15T08:00:00Z
              on node4: journalctl -u vmkeepd says why it is not renewed; one that ended: vmkeep cluster leave --forget, and join
            'node5' was let in and has not arrived
              on node5: vmkeep cluster join again with the same token; or here: vmkeep cluster remove node5
            'node6': no port 16514
              on node6: free it
            etcd on 'node7': NOSPACE
              vmkeep cluster defrag
            etcd on 'node7' has used 80 % of its quota
              vmkeep cluster defrag
            etcd 3.4.23 on 'node7' has known ways around the rights of single nodes
              apt-get install etcd-server when there is a newer one; root on a node is an administrator of the cluster until then
        "#]],
        );
    }

    #[test]
    fn an_etcd_that_cannot_lose_a_member_is_told() {
        let records = ["node1", "node2", "node3"].map(record);
        let all = records.each_ref().map(in_etcd);
        assert_eq!(problems_of_etcd(&records, &all), []);
        let learner = EtcdMember { learner: true, ..all[2].clone() };
        check(
            &problems_of_etcd(&records, &[all[0].clone(), all[1].clone(), learner]),
            expect![[r#"
            etcd has 2 members: the loss of one stops all changes
              join one more host, or any small machine with --witness
        "#]],
        );
        check(
            &problems_of_etcd(&records, &all[..1]),
            expect![[r#"
            etcd has 1 members: the loss of one stops all changes
              join two more hosts
        "#]],
        );
        check(
            &problems_of_etcd(&records[..2], &all),
            expect![[r#"
            etcd has a member that vmkeep does not know: https://10.0.0.3:2380
              wait: the leader takes it out after three minutes; or join that host again
        "#]],
        );
    }

    #[test]
    fn a_member_of_etcd_is_shown_as_what_it_is() {
        let shown = |status: Result<EtcdStatus, StoreError>| view(&status);
        let of = |health| EtcdView { health, version: Some("3.5.30".into()), size: Some(ByteCount::from_bytes(100)) };
        assert_eq!(shown(Ok(etcd())), of(EtcdHealth::Leader));
        assert_eq!(shown(Ok(EtcdStatus { leader: 2, ..etcd() })), of(EtcdHealth::Follower));
        assert_eq!(shown(Ok(EtcdStatus { leader: 2, learner: true, ..etcd() })), of(EtcdHealth::Learner));
        let silent = EtcdView { health: EtcdHealth::Silent, version: None, size: None };
        assert_eq!(shown(Err(StoreError::Unavailable("no answer".into()))), silent);
    }

    #[test]
    fn debians_etcds_are_told_about() {
        assert!(is_unsafe("3.4.23") && is_unsafe("3.5.16") && is_unsafe("3.3.25"));
        assert!(!is_unsafe("3.4.44") && !is_unsafe("3.5.31") && !is_unsafe("3.7.0"));
    }
}
