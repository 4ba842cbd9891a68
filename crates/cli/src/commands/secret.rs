//! `secret show|rotate`: the keys under which passwords and user-data lie sealed. The secrets themselves are their VMs'.

use std::time::Duration;

use clap::Subcommand;
use vmkeep_api::secret::SecretsView;

use super::joined;
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Format};
use crate::time;

/// Between two looks at a rotation; on one host it takes less.
const LOOK: Duration = Duration::from_millis(200);
/// How long it is followed when nobody says so: a host that is away may stay away.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Keys under which passwords and user-data lie sealed, and the hosts that can open them
    Show,
    /// Give the hosts of the control plane new keys, and the control plane a new one; what the old ones opened stays readable by the new ones
    ///
    /// Back the store up afterwards, with seal.key: an older backup opens only with the key of then. A secret that somebody may have read
    /// is to be changed, too.
    Rotate,
}

pub async fn run(ctx: &Ctx, command: SecretCommand) -> Result<(), Failure> {
    match command {
        SecretCommand::Show => {
            let view: SecretsView = ctx.call("secret.show")?.answer().await?;
            print(ctx, &view)
        }
        SecretCommand::Rotate => rotate(ctx).await,
    }
}

async fn rotate(ctx: &Ctx) -> Result<(), Failure> {
    if ctx.is_rehearsal("renew the keys under which secrets lie sealed") {
        return Ok(());
    }
    let mut view: SecretsView = ctx.call("secret.rotate")?.answer().await?;
    let patience = ctx.global.timeout.map_or(PATIENCE, |limit| Duration::from_secs(limit.get()));
    let until = tokio::time::Instant::now() + if ctx.global.no_wait { Duration::ZERO } else { patience };
    while view.rotation.is_some() && tokio::time::Instant::now() < until {
        tokio::time::sleep(LOOK).await;
        view = ctx.call("secret.show")?.answer().await?;
    }
    match &view.rotation {
        None => ctx.printer.say("all hosts of the control plane have new keys; back the store up anew, with seal.key"),
        Some(rotation) if rotation.waits_for.is_empty() => ctx.printer.say("it goes on by itself: vmkeep secret show"),
        Some(rotation) => {
            ctx.printer.say(&format!("it goes on by itself, and waits for {}: vmkeep secret show", joined(&rotation.waits_for)));
        }
    }
    match ctx.printer.format {
        Format::Json | Format::Yaml => ctx.printer.value(&view),
        Format::Table | Format::Wide | Format::Name => Ok(()),
    }
}

fn print(ctx: &Ctx, view: &SecretsView) -> Result<(), Failure> {
    if !matches!(ctx.printer.format, Format::Table | Format::Wide) {
        return ctx.printer.value(view);
    }
    let renewed = view.rotation.as_ref().map_or_else(
        || "no".to_owned(),
        |now| {
            let waits = if now.waits_for.is_empty() { String::new() } else { format!("; waits for {}", joined(&now.waits_for)) };
            format!("since {}, by {}{waits}", time::local(now.at), now.by)
        },
    );
    let (newest, older) = (view.keys.last().cloned().unwrap_or_else(|| "-".into()), view.keys.len().saturating_sub(1));
    ctx.printer.card(&[("Sealed with", newest), ("Older keys", older.to_string()), ("Being renewed", renewed)]);
    ctx.printer.out("");
    let row = |host: &vmkeep_api::secret::SecretsHost| -> Vec<Cell> { vec![host.node.to_string().into(), host.key.clone().into()] };
    ctx.printer.table(&["HOST", "KEY"], view.hosts.iter().map(row).collect());
    Ok(())
}
