//! `vm create`: a VM from fields, for hands and scripts without a manifest.

use clap::Args;
use uuid::Uuid;
use vmkeep_types::manifest::vm_from_json;
use vmkeep_types::name::Name;
use vmkeep_types::vm::VmSpec;

use crate::commands::apply;
use crate::context::Ctx;
use crate::failure::Failure;
use crate::fields::assign_all;

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the VM
    name: Name,
    /// FIELD=VALUE, like image=debian-13 memory=2G 'disks=[{name: root, image: tiny, size: 4G}]'
    #[arg(value_name = "FIELD=VALUE")]
    fields: Vec<String>,
}

pub async fn run(ctx: &Ctx, args: CreateArgs) -> Result<(), Failure> {
    let mut spec = assign_all(&VmSpec::named(args.name), &args.fields, vm_from_json)?;
    crate::files::read_at_files(&mut spec, std::path::Path::new("."))?;
    submit(ctx, &spec, || {}).await
}

/// Sends a new VM, calls `on_accepted` when the server has it, and follows its making.
pub async fn submit(ctx: &Ctx, spec: &VmSpec, on_accepted: impl FnOnce()) -> Result<(), Failure> {
    if ctx.global.dry_run {
        return apply::rehearse(ctx, spec, apply::Wanted::New).await;
    }
    // The key makes a repeated send harmless, should the connection break before the answer.
    let accepted = ctx.call("vm.create")?.header("idempotency-key", Uuid::new_v4()).json(spec).accepted().await?;
    on_accepted();
    ctx.finish(accepted).await.map(drop)
}
