//! `vm rename`, `vm clone`.

use clap::Args;
use vmkeep_api::body::ActionRequest;
use vmkeep_types::name::Name;

use super::action;
use crate::context::Ctx;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct RenameArgs {
    /// VM
    name: Name,
    /// Its new name
    new_name: Name,
}

#[derive(Debug, Args)]
pub struct CloneArgs {
    /// VM to copy; it must be stopped
    name: Name,
    /// Name of the copy; it gets its own uuid, MACs and cloud-init instance
    new_name: Name,
}

pub async fn rename(ctx: &Ctx, args: RenameArgs) -> Result<(), Failure> {
    let request = ActionRequest { name: Some(args.new_name.clone()), ..ActionRequest::default() };
    let call = action(ctx, &args.name, "rename", &request)?;
    ctx.change(&format!("rename vm '{}' to '{}'", args.name, args.new_name), call).await
}

pub async fn clone(ctx: &Ctx, args: CloneArgs) -> Result<(), Failure> {
    let request = ActionRequest { name: Some(args.new_name.clone()), ..ActionRequest::default() };
    let call = action(ctx, &args.name, "clone", &request)?;
    ctx.change(&format!("clone vm '{}' as '{}'", args.name, args.new_name), call).await
}
