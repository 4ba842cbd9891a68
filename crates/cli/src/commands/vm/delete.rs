//! `vm delete`: shows the volumes that would go, asks, then deletes.

use clap::Args;
use vmkeep_api::body::{VmPhase, VolumeView};
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;

use super::get;
use crate::commands::{joined, pages};
use crate::context::Ctx;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// VMs to delete
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Name>,
    /// Keep the disks as unused volumes
    #[arg(long)]
    keep_disks: bool,
}

pub async fn run(ctx: &Ctx, args: DeleteArgs) -> Result<(), Failure> {
    let disks = if args.keep_disks { Disks::Keep } else { Disks::Delete };
    ask(ctx, &args.names, disks).await?;
    delete(ctx, &args.names, disks).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Disks {
    Delete,
    Keep,
}

/// Shows what would go and asks. Refuses before anything is asked when a VM is absent or protected.
pub async fn ask(ctx: &Ctx, names: &[Name], disks: Disks) -> Result<(), Failure> {
    let mut running = Vec::new();
    for name in names {
        let vm = get(ctx, name).await?;
        let off = [VmPhase::Stopped, VmPhase::Pending, VmPhase::Preparing, VmPhase::Backoff, VmPhase::Failed, VmPhase::Deleting];
        if !off.contains(&vm.status.phase) {
            running.push(name.clone());
        }
        if vm.spec.protect {
            return Err(Error::conflict(format!("vm '{name}' is protected"))
                .hint(format!("'vmkeep vm set {name} protect=false' first"))
                .into());
        }
    }
    let volumes = pages::<VolumeView>(ctx, "volume.list", None).await?;
    for name in names {
        for volume in volumes.iter().filter(|v| v.vm.as_ref() == Some(name)) {
            let size = volume.size.map(ByteCount::human).unwrap_or_default();
            let fate = match (&volume.foreign_path, disks) {
                (Some(path), _) => format!("forgotten; the adopted file stays at {path}"),
                (None, Disks::Keep) => "kept as an unused volume".to_owned(),
                (None, Disks::Delete) => "deleted with its data".to_owned(),
            };
            ctx.printer.say(&format!("  volume {} {size}: {fate}", volume.name));
        }
    }
    if !running.is_empty() {
        ctx.printer.say(&format!("  {} not off: killed at once, without a shutdown", joined_with(&running)));
    }
    let them = if names.len() == 1 { "its" } else { "their" };
    let question = match disks {
        Disks::Delete => format!("Delete vm {} and {them} disks?", joined(names)),
        Disks::Keep => format!("Delete vm {} and keep {them} disks?", joined(names)),
    };
    ctx.confirm(&question)
}

/// "web1 is", "web1, web2 are"
fn joined_with(names: &[Name]) -> String {
    format!("{} {}", joined(names), if names.len() == 1 { "is" } else { "are" })
}

/// Deletes without a question.
pub async fn delete(ctx: &Ctx, names: &[Name], disks: Disks) -> Result<(), Failure> {
    for name in names {
        let call = ctx.call("vm.delete")?.field("name", name);
        let call = if disks == Disks::Keep { call.query("keep_disks", true) } else { call };
        ctx.change(&format!("delete vm '{name}'"), call).await?;
    }
    Ok(())
}
