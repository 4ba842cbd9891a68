//! A cluster in an etcd of its operator's: what vmkeep uses of it, and what it leaves to its keeper.
//!
//! ```text
//!  cluster init --etcd URL… ─► etcd-client.{ca.pem,pem,key} in the cluster's folder ─► the store moves there ─► member.toml: external
//!  cluster join             ─► gets the same files from the control node that lets it in
//! ```
//! Members of that etcd, its copies, its quota and its defragmentation are its keeper's. Its users are too: all hosts of the cluster
//! show one certificate, so etcd does not hold a node to its own keys. A member's file wins over what the others have: a new
//! certificate is laid down on each host.

use std::fs;
use std::path::Path;

use anyhow::Context;
use futures_util::future::join_all;
use http::Uri;
use vmkeep_store::etcd::{EtcdConfig, EtcdStore, admin};
use vmkeep_store::{Compare, Held, Store, Txn, keys};
use vmkeep_types::cluster::{ClusterProblem, EtcdAccess, EtcdEndpointView, EtcdHealth};
use vmkeep_types::error::{Code, Error};

use super::status::{MEMBER_PATIENCE, problem, view};
use super::{Cluster, ETCD_PATIENCE, internal, pki};
use crate::member::{Member, Paths, write_whole};

/// Before its end; nobody renews it but its keeper.
const CERTIFICATE_SOON: jiff::SignedDuration = jiff::SignedDuration::from_hours(14 * 24);
/// What is told when such a cluster begins.
pub(super) const WARNING: &str =
    "in an etcd of yours every host may write every key, and its backups, quota and members are yours to keep: docs/guide/cluster.md";

/// What is wrong with a wish for such an etcd, before anything is asked.
///
/// # Errors
/// An endpoint that is none, or a file that holds no PEM.
pub(super) fn check(access: &EtcdAccess) -> Result<(), Error> {
    if access.endpoints.is_empty() {
        return Err(Error::invalid("an etcd of yours has at least one endpoint").hint("--etcd https://192.0.2.11:2379"));
    }
    for endpoint in &access.endpoints {
        let uri = endpoint.parse::<Uri>().ok();
        let is_good = uri.is_some_and(|uri| uri.scheme_str() == Some("https") && uri.port().is_some() && uri.host().is_some());
        if !is_good {
            return Err(
                Error::invalid(format!("\"{endpoint}\" is no endpoint of an etcd with TLS")).hint("write it like https://192.0.2.11:2379")
            );
        }
    }
    for (text, what) in [(&access.ca, "authority"), (&access.cert, "certificate"), (&access.key, "key")] {
        if !text.contains("-----BEGIN ") {
            return Err(Error::invalid(format!("the {what} of etcd's client holds no PEM"))
                .hint("--etcd-ca, --etcd-cert and --etcd-key name files"));
        }
    }
    Ok(())
}

/// # Errors
/// The disk's.
pub(super) fn lay_down(paths: &Paths, access: &EtcdAccess) -> anyhow::Result<()> {
    let tls = paths.etcd_access();
    write_whole(&tls.ca, 0o644, access.ca.as_bytes())?;
    write_whole(&tls.cert, 0o644, access.cert.as_bytes())?;
    write_whole(&tls.key, 0o600, access.key.as_bytes())
}

/// What a host needs that joins.
///
/// # Errors
/// The disk's.
pub(super) fn taken_up(paths: &Paths, endpoints: Vec<String>) -> anyhow::Result<EtcdAccess> {
    let tls = paths.etcd_access();
    let read = |file: &Path| fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
    Ok(EtcdAccess { endpoints, ca: read(&tls.ca)?, cert: read(&tls.cert)?, key: read(&tls.key)? })
}

/// It answers, and nobody's keys are in it: it is this cluster's alone. What a broken attempt to move left there may be.
///
/// # Errors
/// It does not answer, refuses, or holds something.
pub(super) async fn is_free(client: &EtcdConfig) -> Result<(), Error> {
    let at = client.endpoints.join(" ");
    let late = |_| Error::new(Code::Refused, format!("etcd at {at} does not answer within {} s", ETCD_PATIENCE.as_secs()));
    let connected = tokio::time::timeout(ETCD_PATIENCE, EtcdStore::connect(client)).await.map_err(late)?;
    let store = connected.map_err(|e| {
        Error::refused(format!("etcd at {at} cannot be used: {e}"))
            .hint("etcdctl --endpoints … --cacert … --cert … --key … endpoint health")
    })?;
    let empty = Txn::default().when(Compare::PrefixEmpty(String::new()));
    let broken = Txn::default().when(Compare::Present(keys::CLUSTER_MOVING.into()));
    for look in [empty, broken] {
        if store.txn(look).await.map_err(vmkeep_server::app::store_error)?.held == Held::Yes {
            return Ok(());
        }
    }
    Err(Error::conflict(format!("etcd at {at} holds keys already: a cluster needs one for itself"))
        .hint("give it another one, or empty this: etcdctl … del --prefix ''"))
}

impl Cluster {
    pub(super) fn is_external(&self) -> bool {
        self.member.as_ref().is_some_and(|member| member.etcd.external)
    }

    /// Whom `member.toml` names: its keeper may have changed it since this process began.
    pub(super) fn endpoints_now(&self) -> Result<Vec<String>, Error> {
        let now = Member::load(&self.config.store).map_err(internal)?;
        Ok(now.as_ref().map_or(self.member()?, |now| now).etcd.endpoints.clone())
    }

    /// Refused where etcd is somebody else's.
    pub(super) fn of_its_own_etcd(&self, what: &str) -> Result<(), Error> {
        if self.is_external() {
            return Err(
                Error::refused(format!("{what} is for an etcd that vmkeep runs; this cluster's is yours")).hint("docs/guide/cluster.md")
            );
        }
        Ok(())
    }

    /// How each endpoint is.
    pub(super) async fn endpoints(&self) -> Result<(Vec<EtcdEndpointView>, Vec<ClusterProblem>), Error> {
        let member = self.member()?;
        let endpoints = self.endpoints_now()?;
        let asked = endpoints.iter().map(|url| async {
            let status = tokio::time::timeout(MEMBER_PATIENCE, admin::status(&self.only(url.clone())?)).await;
            let silent = || Err(vmkeep_store::StoreError::Unavailable("no answer".into()));
            Ok::<_, Error>(EtcdEndpointView { url: url.clone(), etcd: view(&status.unwrap_or_else(|_| silent())) })
        });
        let found: Vec<EtcdEndpointView> = join_all(asked).await.into_iter().collect::<Result<_, _>>()?;
        let silent = found.iter().filter(|seen| seen.etcd.health == EtcdHealth::Silent);
        let mut problems: Vec<_> =
            silent.map(|seen| problem(format!("etcd at {} does not answer", seen.url), "mend it where it runs")).collect();
        let until = pki::validity(&member.paths().etcd_access().cert).ok().map(|(_, until)| until);
        if let Some(until) = until.filter(|until| *until < jiff::Timestamp::now() + CERTIFICATE_SOON) {
            let file = member.paths().etcd_access().cert;
            let mend = format!("lay a new one down on each host, and restart vmkeepd there: {}", file.display());
            problems.push(problem(format!("the certificate for etcd of yours ends at {until}"), mend));
        }
        Ok((found, problems))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn access(endpoints: &[&str]) -> EtcdAccess {
        let pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
        EtcdAccess { endpoints: endpoints.iter().map(ToString::to_string).collect(), ca: pem.clone(), cert: pem.clone(), key: pem }
    }

    fn refused(access: &EtcdAccess, expect: Expect) {
        expect.assert_eq(&check(access).expect_err("refused").message);
    }

    #[test]
    fn an_etcd_that_cannot_be_used() {
        check(&access(&["https://192.0.2.11:2379", "https://etcd.example:2379", "https://[fd00::1]:2379"])).expect("good");
        refused(&access(&[]), expect!["an etcd of yours has at least one endpoint"]);
        refused(&access(&["http://192.0.2.11:2379"]), expect![[r#""http://192.0.2.11:2379" is no endpoint of an etcd with TLS"#]]);
        refused(&access(&["https://192.0.2.11"]), expect![[r#""https://192.0.2.11" is no endpoint of an etcd with TLS"#]]);
        refused(
            &EtcdAccess { key: "secret".into(), ..access(&["https://192.0.2.11:2379"]) },
            expect!["the key of etcd's client holds no PEM"],
        );
    }

    #[test]
    fn what_is_laid_down_is_read_again_and_used_for_every_connection() {
        let dir = tempfile::tempdir().expect("a folder");
        let paths = Paths::new(dir.path());
        paths.make().expect("a folder");
        let own = paths.etcd_client(Vec::new()).tls.expect("TLS");
        assert!(own.key.ends_with("cluster/node.key"));
        let wanted = access(&["https://192.0.2.11:2379"]);
        lay_down(&paths, &wanted).expect("written");
        assert_eq!(taken_up(&paths, wanted.endpoints.clone()).expect("read"), wanted);
        assert!(paths.etcd_client(Vec::new()).tls.expect("TLS").key.ends_with("cluster/etcd-client.key"));
        assert_eq!(format!("{wanted:?}"), r#"EtcdAccess { endpoints: ["https://192.0.2.11:2379"], .. }"#, "no key in a log");
    }
}
