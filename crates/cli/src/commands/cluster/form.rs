//! Beginning and joining: the daemon answers, starts anew, and is waited for.

use std::path::Path;
use std::time::{Duration, Instant};

use vmkeep_types::cluster::{
    ClusterFormed, ClusterInit, ClusterJoin, ClusterLeave, ClusterLeft, ClusterView, EtcdAccess, JoinTokenCreate, JoinTokenCreated,
    MemberRole,
};
use vmkeep_types::error::{Code, Error};

use super::{InitArgs, JoinArgs, LeaveArgs, TokenArgs};
use crate::commands::joined;
use crate::commands::word;
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::Format;

/// For etcd's start and a learner's catching up, within the daemon.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// For the daemon's start as a member: it moves its store meanwhile.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// How the daemon tells that a host which wanted to leave is a member still.
const STAYED: &str = "this host did not leave";
const LOOK_AGAIN: Duration = Duration::from_millis(250);

pub async fn init(ctx: &Ctx, args: InitArgs) -> Result<(), Failure> {
    if ctx.is_rehearsal("make this host the first member of a cluster") {
        return Ok(());
    }
    ctx.confirm("Make this host the first member of a cluster? There is no way back to a single host.")?;
    let wish = ClusterInit { address: args.address.clone(), etcd: access(&args)? };
    let call = ctx.call("cluster.init")?.json(&wish).patience(ANSWER_PATIENCE);
    let formed: ClusterFormed = call.answer().await?;
    ctx.printer.say("etcd answers; vmkeepd starts anew and moves its store there, VMs go on");
    arrive(ctx, &formed).await?;
    ctx.printer.hint("next: vmkeep cluster token, and on another host: vmkeep cluster join");
    Ok(())
}

/// To an etcd of one's own.
fn access(args: &InitArgs) -> Result<Option<EtcdAccess>, Error> {
    let (Some(ca), Some(cert), Some(key)) = (&args.etcd_ca, &args.etcd_cert, &args.etcd_key) else { return Ok(None) };
    let read = |file: &Path| std::fs::read_to_string(file).map_err(|e| Error::invalid(format!("cannot read {}: {e}", file.display())));
    Ok(Some(EtcdAccess { endpoints: args.etcd.clone(), ca: read(ca)?, cert: read(cert)?, key: read(key)? }))
}

pub async fn join(ctx: &Ctx, args: JoinArgs) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("join the cluster of {}", args.address)) {
        return Ok(());
    }
    let JoinArgs { address, token, own_address, witness, control } = args;
    let wish = ClusterJoin { address, token, own_address, witness, control };
    let call = ctx.call("cluster.join")?.json(&wish).patience(ANSWER_PATIENCE);
    let formed: ClusterFormed = call.answer().await?;
    arrive(ctx, &formed).await
}

/// Until the daemon is back as a member.
async fn arrive(ctx: &Ctx, formed: &ClusterFormed) -> Result<(), Failure> {
    for warning in &formed.warnings {
        ctx.printer.warn(warning);
    }
    // Only control nodes have an API to ask.
    let begin = Instant::now();
    while formed.roles.contains(&MemberRole::Control) {
        match ctx.call("cluster.show")?.answer::<ClusterView>().await {
            // Without members it is one that waits for etcd still.
            Ok(view) if view.cluster == Some(formed.cluster) && !view.members.is_empty() => break,
            // The daemon that answers went on alone and says why; the old one, still ending, has nothing to say.
            Ok(view) if !view.problems.is_empty() && view.cluster.is_none() => {
                let problem = &view.problems[0];
                return Err(Error::refused(&problem.message).hint(&problem.mend).into());
            }
            Ok(_) => {}
            Err(error) if error.code == Code::Unavailable => {}
            Err(error) => return Err(error.into()),
        }
        if begin.elapsed() > START_PATIENCE {
            let late = Error::new(Code::Unavailable, "vmkeepd does not come back as a member");
            return Err(late.hint("journalctl -u vmkeepd says what it waits for; vmkeep cluster status").into());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    match ctx.printer.format {
        Format::Json | Format::Yaml => ctx.printer.value(formed)?,
        Format::Name => ctx.printer.out(formed.node.as_str()),
        Format::Table | Format::Wide => {
            let roles: Vec<String> = formed.roles.iter().map(word).collect();
            ctx.printer.say(&format!(
                "'{}' ({}) is a member of cluster {}: {}",
                formed.node,
                formed.address,
                formed.cluster,
                joined(&roles)
            ));
        }
    }
    Ok(())
}

pub async fn leave(ctx: &Ctx, args: LeaveArgs) -> Result<(), Failure> {
    if ctx.is_rehearsal("take this host out of its cluster") {
        return Ok(());
    }
    ctx.confirm("Take this host out of its cluster? Its keys and its copy of the store are removed; domains of libvirt run on.")?;
    let left: ClusterLeft =
        ctx.call("cluster.leave")?.json(&ClusterLeave { forget: args.forget }).patience(ANSWER_PATIENCE).answer().await?;
    let begin = Instant::now();
    loop {
        match ctx.call("cluster.show")?.answer::<ClusterView>().await {
            Ok(view) if view.cluster.is_none() => break,
            Ok(view) => {
                if let Some(why) = view.problems.iter().find(|problem| problem.message.starts_with(STAYED)) {
                    return Err(Error::refused(&why.message).hint(&why.mend).into());
                }
            }
            Err(error) if error.code == Code::Unavailable => {}
            Err(error) => return Err(error.into()),
        }
        if begin.elapsed() > START_PATIENCE {
            let late = Error::new(Code::Unavailable, "vmkeepd does not come back as a single host");
            return Err(late.hint("journalctl -u vmkeepd says what it waits for; it goes on by itself").into());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    match ctx.printer.format {
        Format::Json | Format::Yaml => ctx.printer.value(&left)?,
        Format::Name => ctx.printer.out(left.node.as_str()),
        Format::Table | Format::Wide => ctx.printer.say(&format!("'{}' has left cluster {} and is a single host", left.node, left.cluster)),
    }
    Ok(())
}

pub async fn token(ctx: &Ctx, args: TokenArgs) -> Result<(), Failure> {
    if ctx.is_rehearsal("make a join token") {
        return Ok(());
    }
    let made: JoinTokenCreated = ctx.call("cluster.token")?.json(&JoinTokenCreate { expires_in: args.expires_in }).answer().await?;
    match ctx.printer.format {
        Format::Json | Format::Yaml => ctx.printer.value(&made)?,
        _ => ctx.printer.out(&made.token),
    }
    ctx.printer.hint(&format!(
        "on one other host, until {}: vmkeep cluster join {} --token TOKEN",
        crate::time::local(made.expires_at),
        made.address
    ));
    Ok(())
}
