//! A host's control plane and agent as two processes: which of them changes what the host is a member of, and systemd's units for
//! that.
//!
//! ```text
//!  control:  leaving.toml or recovering.toml written ─► anew ─► waits until the agent's process is out ─► carries it out
//!  compute:  sees the file ─► anew ─► waits until it is gone
//! ```
//! The agent's process holds a lock on a file in the run directory as long as it uses the store; the kernel lets go of it however
//! the process ends. So nobody writes the node's keys while they are forgotten, and no agent uses a store that is being restored.
//!
//! How it fails: an agent's process that does not end keeps the other one waiting, which says so.

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use vmkeep_types::cluster::MemberRole;

use super::etcd::{by_systemd, run, systemctl};
use super::{LOOK_AGAIN, Restart, leave, recover};
use crate::config::{Config, NodeRole};
use crate::member::{Member, Paths};
use crate::notify::Notify;

/// Between two looks of the agent's process at whether the other one wants its host out.
const LOOK: Duration = Duration::from_secs(1);
/// Looks at a lock that is held before it is told.
const TELL_AFTER: u32 = 50;
/// For systemd to end this process and begin the units in its place.
const SWITCH_PATIENCE: Duration = Duration::from_secs(30);

/// All roles of a host in one process.
const ONE: [&str; 1] = ["vmkeepd.service"];
/// A process for each.
const TWO: [&str; 2] = ["vmkeepd@control.service", "vmkeepd@compute.service"];

/// As long as it is there this process may use the store, or change what the host is a member of.
#[derive(Default)]
pub struct Turn(#[expect(dead_code, reason = "the lock goes with it")] Option<File>);

/// Something is begun that the process with the control plane carries out.
fn is_begun(paths: &Paths) -> anyhow::Result<bool> {
    Ok(recover::is_begun(paths) || leave::is_begun_by_control(paths)?)
}

/// Waits until nothing of this host's other process is in the way. None when it is told to stop before.
///
/// # Errors
/// The disk's.
pub async fn take(config: &Config, shutdown: &CancellationToken) -> anyhow::Result<Option<Turn>> {
    let paths = Paths::new(&config.store);
    match config.only {
        None => Ok(Some(Turn::default())),
        Some(NodeRole::Control) if !is_begun(&paths)? => Ok(Some(Turn::default())),
        Some(NodeRole::Control) => Ok(lock(config, shutdown).await?.map(|file| Turn(Some(file)))),
        Some(NodeRole::Compute) => loop {
            while is_begun(&paths)? {
                if shutdown.run_until_cancelled(tokio::time::sleep(LOOK_AGAIN)).await.is_none() {
                    return Ok(None);
                }
            }
            let Some(file) = lock(config, shutdown).await? else { return Ok(None) };
            // It may have been begun since.
            if !is_begun(&paths)? {
                return Ok(Some(Turn(Some(file))));
            }
        },
    }
}

fn lock_file(config: &Config) -> PathBuf {
    config.run_dir.join("vmkeepd-compute.lock")
}

async fn lock(config: &Config, shutdown: &CancellationToken) -> anyhow::Result<Option<File>> {
    let path = lock_file(config);
    std::fs::create_dir_all(&config.run_dir).with_context(|| format!("cannot make {}", config.run_dir.display()))?;
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    for look in 1.. {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
        if look % TELL_AFTER == 0 {
            tracing::warn!(lock = %path.display(), "waiting for this host's other vmkeepd to end or begin anew");
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(LOOK_AGAIN)).await.is_none() {
            return Ok(None);
        }
    }
    Ok(None)
}

/// The agent's process begins anew, and waits, when the other one has begun something. Goes on until it is told to stop.
pub async fn watch(config: Config, restart: Restart) {
    let paths = Paths::new(&config.store);
    while restart.shutdown().run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        if is_begun(&paths).unwrap_or(false) {
            tracing::info!("this host leaves its cluster, or recovers it: the agent waits");
            return restart.ask();
        }
    }
}

/// The units that are to run, and those in their place now. None: it is as it should be.
fn switch(only: Option<NodeRole>, member: Option<&Member>) -> Option<(&'static [&'static str], &'static [&'static str])> {
    let has_both = |member: &Member| member.has(MemberRole::Control) && member.has(MemberRole::Compute);
    match (only, member) {
        (None, Some(member)) if has_both(member) => Some((&TWO, &ONE)),
        (Some(_), None) => Some((&ONE, &TWO)),
        (Some(_), Some(member)) if !has_both(member) => Some((&ONE, &TWO)),
        _ => None,
    }
}

/// Has systemd run the host's roles as they belong: a process for each on a member that has both, one on a host alone. The units
/// exclude each other, so this process is ended by it; where that does not come about it goes on as it is.
pub async fn run_as_it_belongs(config: &Config, member: Option<&Member>, notify: &Notify, shutdown: &CancellationToken) {
    let Some((wanted, now)) = switch(config.only, member).filter(|_| by_systemd() && config.etcd.is_none()) else { return };
    // systemd may be waiting for it, and would take what follows for a start that was broken off.
    notify.ready("a unit for each role takes over, or one for all");
    let all = |verb: &'static str, units: &[&'static str]| systemctl(&[&[verb], units].concat());
    let switched = all("enable", wanted).and_then(|()| all("disable", now)).and_then(|()| started_from_outside(wanted));
    match switched {
        Ok(()) => {
            tracing::info!(units = wanted.join(" "), "systemd runs this host's roles in these units from now on");
            if tokio::time::timeout(SWITCH_PATIENCE, shutdown.cancelled()).await.is_err() {
                tracing::warn!("systemd has not ended this process: it goes on");
            }
        }
        Err(error) => tracing::warn!(error = format!("{error:#}"), "this host's roles go on in the units that they are in"),
    }
}

/// The first of them ends this unit with all that is in it: a systemctl in here would not come to the second.
fn started_from_outside(units: &[&str]) -> anyhow::Result<()> {
    let mut command = std::process::Command::new("systemd-run");
    command.args([
        "--quiet",
        "--collect",
        "--no-block",
        "--description=vmkeep: other units for this host's roles",
        "--",
        "systemctl",
        "start",
    ]);
    run(command.args(units)).map(drop)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use vmkeep_types::name::Name;

    use super::*;
    use crate::member::MemberEtcd;

    fn member(roles: &[MemberRole]) -> Member {
        Member {
            cluster: Uuid::from_u128(1),
            node: Name::known("a"),
            roles: roles.to_vec(),
            address: "10.0.0.1".into(),
            etcd: MemberEtcd { endpoints: vec!["https://10.0.0.1:2379".into()], external: false },
            dir: PathBuf::new(),
        }
    }

    #[test]
    fn a_member_with_both_roles_has_a_unit_for_each_and_a_host_alone_one() {
        let both = member(&[MemberRole::Control, MemberRole::Compute]);
        assert_eq!(switch(None, Some(&both)), Some((&TWO[..], &ONE[..])));
        assert_eq!(switch(Some(NodeRole::Control), None), Some((&ONE[..], &TWO[..])));
        assert_eq!(switch(Some(NodeRole::Compute), Some(&both)), None);
        let demoted = member(&[MemberRole::Compute]);
        assert_eq!(switch(Some(NodeRole::Control), Some(&demoted)), Some((&ONE[..], &TWO[..])));
        assert_eq!(switch(None, None), None);
        for alone in [MemberRole::Compute, MemberRole::Witness] {
            assert_eq!(switch(None, Some(&member(&[alone]))), None);
        }
    }

    #[tokio::test]
    async fn what_changes_the_membership_waits_for_the_agent_and_the_agent_for_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let config = |only| Config { store: dir.path().into(), run_dir: dir.path().join("run"), only: Some(only), ..Config::default() };
        let (control, compute) = (config(NodeRole::Control), config(NodeRole::Compute));
        let paths = Paths::new(dir.path());
        paths.make().expect("a folder");
        let stop = CancellationToken::new();
        let agent = take(&compute, &stop).await.expect("a lock").expect("nothing is begun");
        drop(take(&control, &stop).await.expect("no lock").expect("nothing is begun"));

        let begun = paths.dir.join("recovering.toml");
        std::fs::write(&begun, "").expect("written");
        let (other, stopped) = (control.clone(), stop.clone());
        let waits = tokio::spawn(async move { take(&other, &stopped).await });
        tokio::time::sleep(LOOK_AGAIN).await;
        assert!(!waits.is_finished(), "an agent uses the store");
        drop(agent);
        let work = waits.await.expect("no panic").expect("a lock").expect("not stopped");

        let (other, stopped) = (compute.clone(), stop.clone());
        let waits = tokio::spawn(async move { take(&other, &stopped).await });
        std::fs::remove_file(&begun).expect("there");
        tokio::time::sleep(LOOK_AGAIN).await;
        assert!(!waits.is_finished(), "it is still being carried out");
        drop(work);
        assert!(waits.await.expect("no panic").expect("a lock").is_some());
        std::fs::write(&begun, "").expect("written");
        stop.cancel();
        assert!(take(&compute, &stop).await.expect("no error").is_none(), "told to stop");
    }
}
