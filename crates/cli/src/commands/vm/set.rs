//! `vm set`: fields of the wish, one by one. See [`crate::fields`] for what a FIELD=VALUE may be.

use clap::{Args, ValueEnum};
use vmkeep_types::manifest::vm_from_json;
use vmkeep_types::name::Name;

use super::{get, power, put};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::fields::assign_all;

#[derive(Debug, Args)]
pub struct SetArgs {
    /// VM to change
    name: Name,
    /// FIELD=VALUE, like memory=4G, disks[root].size=40G, labels.tier=db; null = the default
    #[arg(required_unless_present = "machine", value_name = "FIELD=VALUE")]
    fields: Vec<String>,
    /// 'latest': the newest version of its kind of machine from the next cold start on (the version is chosen once otherwise)
    #[arg(long, value_name = "latest", conflicts_with = "fields")]
    machine: Option<Machine>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Machine {
    Latest,
}

pub async fn run(ctx: &Ctx, args: SetArgs) -> Result<(), Failure> {
    if let Some(Machine::Latest) = args.machine {
        return power::each(ctx, "upgrade-machine", std::slice::from_ref(&args.name)).await;
    }
    let view = get(ctx, &args.name).await?;
    let mut spec = assign_all(&view.spec, &args.fields, vm_from_json)?;
    crate::files::read_at_files(&mut spec, std::path::Path::new("."))?;
    if spec.name != args.name {
        return Err(Failure::usage("the name is not a field to set", format!("'vmkeep vm rename {} {}'", args.name, spec.name)));
    }
    if spec == view.spec {
        ctx.printer.say(&format!("vm '{}' is like that already", args.name));
        return Ok(());
    }
    put(ctx, &spec, view.spec_revision).await
}
