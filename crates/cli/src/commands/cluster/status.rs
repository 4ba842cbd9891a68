//! How the cluster is, and what mends it.

use std::time::Duration;

use vmkeep_types::cluster::{ClusterBackup, ClusterMemberView, ClusterView, EtcdHealth, MemberState};
use vmkeep_types::name::Name;

use crate::commands::{joined, or_dash, word};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Format, Row, Tone};

/// A database is copied on each member.
const DEFRAG_PATIENCE: Duration = Duration::from_secs(300);

impl Row for ClusterMemberView {
    const HEAD: &'static [&'static str] = &["NODE", "ADDRESS", "ROLES", "STATE", "ETCD"];
    const WIDE: &'static [&'static str] = &["VMKEEP", "ETCD VERSION", "ETCD SIZE", "CERTIFICATE UNTIL"];
    fn name(&self) -> String {
        self.record.node.to_string()
    }
    fn cells(&self) -> Vec<Cell> {
        let roles: Vec<String> = self.record.roles.iter().map(word).collect();
        let state = match self.record.state {
            MemberState::Member => Cell("member".into(), Tone::Good),
            MemberState::Joining => Cell("joining".into(), Tone::Warn),
        };
        let etcd = self.etcd.as_ref().map_or_else(|| Cell("-".into(), Tone::Plain), |etcd| health(etcd.health));
        vec![self.name().into(), self.record.address.clone().into(), joined(&roles).into(), state, etcd]
    }
    fn wide(&self) -> Vec<Cell> {
        let version = self.etcd.as_ref().and_then(|etcd| etcd.version.clone());
        let size = self.etcd.as_ref().and_then(|etcd| etcd.size).map(|size| size.human());
        let until = self.record.certificate_until.map(crate::time::local);
        let of_etcd = [or_dash(version.as_ref()).into(), or_dash(size.as_ref()).into()];
        [self.record.version.clone().into()].into_iter().chain(of_etcd).chain([or_dash(until.as_ref()).into()]).collect()
    }
}

fn health(health: EtcdHealth) -> Cell {
    let tone = match health {
        EtcdHealth::Leader | EtcdHealth::Follower => Tone::Good,
        EtcdHealth::Learner => Tone::Warn,
        EtcdHealth::Silent => Tone::Bad,
    };
    Cell(word(&health), tone)
}

pub async fn status(ctx: &Ctx) -> Result<(), Failure> {
    let view: ClusterView = ctx.call("cluster.show")?.answer().await?;
    match ctx.printer.format {
        Format::Json | Format::Yaml => return ctx.printer.value(&view),
        Format::Table | Format::Wide | Format::Name => {}
    }
    match view.cluster {
        None => ctx.printer.say("this host is in no cluster"),
        Some(id) => ctx.printer.say(&format!("cluster {id}")),
    }
    if view.cluster.is_some() {
        ctx.printer.list(&view.members)?;
    }
    for seen in &view.etcd {
        let of_etcd = [Some(word(&seen.etcd.health)), seen.etcd.version.clone(), seen.etcd.size.map(|size| size.human())];
        ctx.printer.say(&format!("etcd {}: {}", seen.url, of_etcd.into_iter().flatten().collect::<Vec<_>>().join(", ")));
    }
    for problem in &view.problems {
        ctx.printer.warn(&problem.message);
        ctx.printer.hint(&problem.mend);
    }
    Ok(())
}

pub async fn remove(ctx: &Ctx, node: &Name) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("take '{node}' out of the cluster")) {
        return Ok(());
    }
    ctx.confirm(&format!("Take '{node}' out of the cluster? It must be off, or it goes on believing that it is a member."))?;
    ctx.call("cluster.remove")?.field("name", node).done().await?;
    ctx.printer.say(&format!("'{node}' is no member any more"));
    Ok(())
}

pub async fn promote(ctx: &Ctx, node: &Name) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("make '{node}' a control node")) {
        return Ok(());
    }
    ctx.call("cluster.promote")?.field("name", node).done().await?;
    ctx.printer.say(&format!("'{node}' becomes a control node; VMs go on"));
    ctx.printer.hint("vmkeep cluster status shows its etcd as a follower when it is one, within a minute");
    Ok(())
}

pub async fn demote(ctx: &Ctx, node: &Name) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("make '{node}' a compute node")) {
        return Ok(());
    }
    ctx.confirm(&format!("Take the role of a control node from '{node}'? Its API and its vote in etcd go, its VMs stay."))?;
    ctx.call("cluster.demote")?.field("name", node).done().await?;
    ctx.printer.say(&format!("'{node}' becomes a compute node; VMs go on"));
    Ok(())
}

pub async fn backup(ctx: &Ctx) -> Result<(), Failure> {
    if ctx.is_rehearsal("copy etcd's database to a file") {
        return Ok(());
    }
    let made: ClusterBackup = ctx.call("cluster.backup")?.answer().await?;
    match ctx.printer.format {
        Format::Json | Format::Yaml => ctx.printer.value(&made)?,
        Format::Table | Format::Wide | Format::Name => ctx.printer.out(&made.file),
    }
    ctx.printer.say(&format!("{} on '{}'", made.size.human(), made.node));
    Ok(())
}

pub async fn defrag(ctx: &Ctx) -> Result<(), Failure> {
    if ctx.is_rehearsal("defragment etcd on each member in turn") {
        return Ok(());
    }
    ctx.call("cluster.defrag")?.patience(DEFRAG_PATIENCE).done().await?;
    ctx.printer.say("etcd's databases are as small as they can be");
    Ok(())
}
