//! `vm adopt`: takes over an existing libvirt domain without stopping it.

use clap::Args;
use vmkeep_api::body::AdoptRequest;
use vmkeep_types::name::Name;

use crate::context::Ctx;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// libvirt domain: its name or UUID (see 'vmkeep vm list -A')
    domain: String,
    /// Name in vmkeep; default: the domain's
    #[arg(long)]
    name: Option<Name>,
    /// Node that the domain is on [default: the one that answers]
    #[arg(long)]
    node: Option<Name>,
    /// Of a VM that vmkeep has: take its disk chains as they are now
    #[arg(long)]
    disks: bool,
}

pub async fn run(ctx: &Ctx, args: AdoptArgs) -> Result<(), Failure> {
    let words =
        if args.disks { format!("take the disks of '{}' as they are", args.domain) } else { format!("adopt domain '{}'", args.domain) };
    let request = AdoptRequest { domain: args.domain, name: args.name, node: args.node, disks: args.disks };
    let call = ctx.call("vm.adopt")?.json(&request);
    ctx.change(&words, call).await
}
