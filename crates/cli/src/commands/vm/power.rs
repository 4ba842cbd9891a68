//! Start, stop and their like: one action on one or more VMs, sent first, then followed side by side.

use clap::Args;
use vmkeep_api::body::{ActionRequest, VmView};
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::operation::OpState;

use super::action;
use crate::commands::{joined, pages};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::Format;

#[derive(Debug, Args)]
pub struct One {
    /// VM
    pub name: Name,
}

#[derive(Debug, Args)]
pub struct Names {
    /// VMs
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<Name>,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    /// VMs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Name>,
    /// Pull the plug at once (same as 'vm kill')
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub struct RestartArgs {
    /// VMs
    #[arg(required_unless_present = "outdated", value_name = "NAME")]
    names: Vec<Name>,
    /// All that run with an older QEMU than the installed one, one after the other
    #[arg(long, conflicts_with = "names")]
    outdated: bool,
}

pub async fn each(ctx: &Ctx, verb: &str, names: &[Name]) -> Result<(), Failure> {
    all(ctx, verb, names, &ActionRequest::default()).await
}

/// One action on several VMs.
pub async fn all(ctx: &Ctx, verb: &str, names: &[Name], request: &ActionRequest) -> Result<(), Failure> {
    let mut operations = Vec::new();
    let mut failures = Vec::new();
    for name in names {
        if ctx.is_rehearsal(&format!("{verb} vm '{name}'")) {
            continue;
        }
        match action(ctx, name, verb, request)?.accepted().await {
            Ok(accepted) => {
                accepted.warnings.iter().for_each(|w| ctx.printer.warn(w));
                accepted.note.iter().for_each(|n| ctx.printer.say(n));
                operations.push(accepted.operation);
            }
            Err(e) => failures.push(Failure::from(e)),
        }
    }
    // `stop --timeout` is the guest's time: the waiting must outlast the kill that follows it.
    let patience = if request.timeout.is_some() { None } else { ctx.global.timeout };
    let ends = if operations.is_empty() { Vec::new() } else { ctx.follow_all(operations, patience).await? };
    match ctx.printer.format {
        Format::Json | Format::Yaml if ends.len() == 1 => ctx.printer.value(&ends[0])?,
        Format::Json | Format::Yaml => ctx.printer.value(&ends)?,
        Format::Name => ends.iter().for_each(|op| ctx.printer.out(op.resource.name.as_str())),
        Format::Table | Format::Wide => {}
    }
    let failed = ends.into_iter().filter(|op| op.state.is_over() && op.state != OpState::Done);
    failures.extend(failed.map(|op| Failure::Operation(Box::new(op))));
    // The last failure ends the command; those before it are said here.
    let last = failures.pop();
    for failure in &failures {
        failure.report(&ctx.printer);
    }
    last.map_or(Ok(()), Err)
}

pub async fn stop(ctx: &Ctx, args: StopArgs) -> Result<(), Failure> {
    if args.force {
        return each(ctx, "kill", &args.names).await;
    }
    all(ctx, "stop", &args.names, &ActionRequest { timeout: ctx.global.timeout, ..ActionRequest::default() }).await
}

pub async fn restart(ctx: &Ctx, args: RestartArgs) -> Result<(), Failure> {
    if !args.outdated {
        return each(ctx, "restart", &args.names).await;
    }
    let mut vms = pages::<VmView>(ctx, "vm.list", None).await?;
    vms.retain(|vm| vm.status.qemu_outdated);
    if vms.is_empty() {
        ctx.printer.say("no VM runs with an outdated QEMU");
        return Ok(());
    }
    let names: Vec<Name> = vms.into_iter().map(|vm| vm.spec.name).collect();
    ctx.confirm(&format!("Restart {} one after the other?", joined(&names)))?;
    for name in &names {
        each(ctx, "restart", std::slice::from_ref(name)).await?;
    }
    Ok(())
}

/// A guest's reboot keeps its QEMU, so nothing that is pending is applied: said before somebody waits for it.
pub async fn reboot(ctx: &Ctx, names: &[Name]) -> Result<(), Failure> {
    for name in names {
        let view = super::get(ctx, name).await?;
        if !view.status.pending.is_empty() {
            let fields: Vec<&str> = view.status.pending.iter().map(|c| c.field.as_str()).collect();
            ctx.printer.warn(&format!("a reboot of '{name}' does not apply {}; 'vmkeep vm restart {name}' does", joined(&fields)));
        }
    }
    each(ctx, "reboot", names).await
}

pub async fn release(ctx: &Ctx, names: &[Name]) -> Result<(), Failure> {
    ctx.confirm(&format!("Release {}? The domains stay and run on, but vmkeep keeps them running no longer.", joined(names)))?;
    each(ctx, "release", names).await
}

#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// VMs; they must be off
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Name>,
    /// Image to make the root disk from; default: the one it was made from
    #[arg(long)]
    image: Option<Name>,
}

pub async fn rebuild(ctx: &Ctx, args: RebuildArgs) -> Result<(), Failure> {
    let names = &args.names;
    for name in names {
        let view = super::get(ctx, name).await?;
        if view.spec.protect {
            return Err(Error::conflict(format!("vm '{name}' is protected"))
                .hint(format!("'vmkeep vm set {name} protect=false' first"))
                .into());
        }
    }
    ctx.confirm(&format!("Rebuild {}? Everything on the root disk is lost.", joined(names)))?;
    all(ctx, "rebuild", names, &ActionRequest { image: args.image, ..ActionRequest::default() }).await
}
