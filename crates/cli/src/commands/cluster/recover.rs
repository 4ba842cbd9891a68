//! When the majority of etcd is lost for good.

use std::time::{Duration, Instant};

use vmkeep_types::cluster::{ClusterRecover, ClusterRecovering, ClusterView};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;

use super::RecoverArgs;
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::Format;

/// A database of 8 GiB is read and written meanwhile.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How the daemon tells that nothing was restored.
const FAILED: &str = "this host did not recover";

pub async fn run(ctx: &Ctx, args: RecoverArgs) -> Result<(), Failure> {
    if ctx.is_rehearsal("restore the cluster's store on this host") {
        return Ok(());
    }
    ctx.confirm(
        "Restore the store on this host alone? The other members of etcd must be off for good or cut off, and are members no more: \
         where they live on as a majority, VMs could run twice.",
    )?;
    let from = match args.from {
        Some(file) => Some(std::path::absolute(&file).map_err(|e| Failure::io(format!("{}", file.display()), &e))?),
        None => None,
    };
    let wish = ClusterRecover { from: from.map(|file| file.display().to_string()), lost: args.lost.into_iter().collect() };
    let begun: ClusterRecovering = ctx.call("cluster.recover")?.json(&wish).answer().await?;
    let begin = Instant::now();
    loop {
        match ctx.call("cluster.show")?.answer::<ClusterView>().await {
            Ok(view) if view.members.iter().any(|member| member.record.node == begun.node) => break,
            Ok(view) => {
                if let Some(why) = view.problems.iter().find(|problem| problem.message.starts_with(FAILED)) {
                    return Err(Error::refused(&why.message).hint(&why.mend).into());
                }
            }
            Err(error) if error.code == Code::Unavailable => {}
            Err(error) => return Err(error.into()),
        }
        if begin.elapsed() > PATIENCE {
            let late = Error::new(Code::Unavailable, "vmkeepd does not come back with the restored store");
            return Err(late.hint("journalctl -u vmkeepd says what it waits for; it goes on by itself").into());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    match ctx.printer.format {
        Format::Json | Format::Yaml => ctx.printer.value(&begun)?,
        Format::Name => ctx.printer.out(begun.node.as_str()),
        Format::Table | Format::Wide => ctx.printer.say(&format!("cluster {} lives on '{}'", begun.cluster, begun.node)),
    }
    ctx.printer.hint("nothing is started before every node has said what it runs: vmkeep cluster status");
    Ok(())
}

pub async fn lost(ctx: &Ctx, node: &Name) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("confirm that '{node}' is gone for good")) {
        return Ok(());
    }
    ctx.confirm(&format!("Is '{node}' off for good? What ran there is started elsewhere: if it lives, VMs run twice."))?;
    ctx.call("cluster.lost")?.field("name", node).done().await?;
    ctx.printer.say(&format!("nobody waits for '{node}' any more"));
    Ok(())
}
