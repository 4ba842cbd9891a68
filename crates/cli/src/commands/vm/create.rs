//! `vm create`: a VM from fields, for hands and scripts without a manifest.

use clap::Args;
use uuid::Uuid;
use vmkeep_types::manifest::vm_from_json;
use vmkeep_types::name::Name;
use vmkeep_types::vm::VmSpec;

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
    submit(ctx, &spec).await
}

/// Sends a new VM and follows its making.
pub async fn submit(ctx: &Ctx, spec: &VmSpec) -> Result<(), Failure> {
    // The key makes a repeated send harmless, should the connection break before the answer.
    let call = ctx.call("vm.create")?.header("idempotency-key", Uuid::new_v4()).json(spec);
    ctx.change(&format!("make vm '{}'", spec.name), call).await
}
