//! `delete -f`: deletes what manifests name; VMs first, then what they use. What is absent already is no failure.

use std::path::PathBuf;

use clap::Args;
use vmkeep_types::error::Code;
use vmkeep_types::manifest::Manifest;
use vmkeep_types::name::Name;

use super::pool;
use super::vm::delete::{Disks, ask, delete};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::files::read_manifests;

#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// File or directory of manifests, '-' = stdin; may be repeated
    #[arg(short = 'f', long = "file", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Keep the VMs' disks as unused volumes
    #[arg(long)]
    keep_disks: bool,
}

pub async fn run(ctx: &Ctx, args: DeleteArgs) -> Result<(), Failure> {
    let (mut vms, mut others) = (Vec::new(), Vec::new());
    for document in read_manifests(&args.files)? {
        let name = document.manifest.name().clone();
        let route = match document.manifest {
            Manifest::Vm(_) => "vm.get",
            Manifest::Network(_) => "network.get",
            Manifest::Image(_) => "image.get",
            Manifest::Pool(_) => "pool.get",
        };
        let kind = document.manifest.kind();
        match ctx.call(route)?.field("name", &name).done().await {
            Ok(()) if kind == "vm" => vms.push(name),
            Ok(()) => others.push((kind, name)),
            Err(e) if e.code == Code::NotFound => ctx.printer.say(&format!("{kind} '{name}' is absent already")),
            Err(e) => return Err(e.into()),
        }
    }
    // All questions come before the first deletion.
    let disks = if args.keep_disks { Disks::Keep } else { Disks::Delete };
    if !vms.is_empty() {
        ask(ctx, &vms, disks).await?;
    }
    if !others.is_empty() {
        let names: Vec<String> = others.iter().map(|(kind, name)| format!("{kind} {name}")).collect();
        ctx.confirm(&format!("Delete {}?", names.join(", ")))?;
    }
    delete(ctx, &vms, disks).await?;
    // What lies in a pool goes before the pool.
    others.sort_by_key(|(kind, _)| *kind == "pool");
    for (kind, name) in &others {
        delete_one(ctx, kind, name).await?;
    }
    Ok(())
}

async fn delete_one(ctx: &Ctx, kind: &str, name: &Name) -> Result<(), Failure> {
    if kind == "pool" {
        return pool::delete(ctx, name).await;
    }
    let route = if kind == "network" { "network.delete" } else { "image.delete" };
    let call = ctx.call(route)?.field("name", name);
    ctx.change(&format!("delete {kind} '{name}'"), call).await
}
