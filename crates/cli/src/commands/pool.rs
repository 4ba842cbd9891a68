//! `pool list|show|create|set|edit|delete`: where volumes and images lie.

use clap::{Args, Subcommand};
use vmkeep_api::body::{PoolSpace, PoolView};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::manifest::{Manifest, pool_from_json, to_yaml_minimal};
use vmkeep_types::name::Name;
use vmkeep_types::pool::{PoolDriver, PoolSpec};
use vmkeep_types::units::ByteCount;

use super::vm::edit::edit_text;
use super::{each_of, joined, pages, show_wish};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::fields::assign_all;
use crate::printer::{Cell, Row};
use crate::time;

#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// List pools
    #[command(visible_aliases = ["ls", "get"])]
    List,
    /// Show one pool
    Show {
        /// Pool to show
        name: Name,
    },
    /// Make a pool of a folder
    Create(CreateArgs),
    /// Change fields: 'vmkeep pool set fast description=NVMe'
    Set {
        /// Pool to change
        name: Name,
        /// FIELD=VALUE
        #[arg(required = true, value_name = "FIELD=VALUE")]
        fields: Vec<String>,
    },
    /// Change a pool in $EDITOR
    Edit {
        /// Pool to change
        name: Name,
    },
    /// Delete pools that nothing lies in; their folders stay
    #[command(visible_alias = "rm")]
    Delete {
        /// Pools to delete
        #[arg(required = true)]
        names: Vec<Name>,
    },
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the pool
    name: Name,
    /// Folder of the host, its own and no other pool's; made when it is first used
    #[arg(long)]
    path: String,
    /// Every host has the same files there (NFS, CephFS): volumes are bound to no host
    #[arg(long)]
    shared: bool,
    /// In words
    #[arg(long, default_value = "")]
    description: String,
}

fn driver(pool: &PoolView) -> (&'static str, String, &'static str) {
    match &pool.spec.driver {
        PoolDriver::Dir { path, shared } => ("dir", path.clone(), if *shared { "yes" } else { "no" }),
    }
}

/// A shared pool is the same on all nodes; others are counted together.
fn space(pool: &PoolView) -> Option<PoolSpace> {
    let PoolDriver::Dir { shared, .. } = &pool.spec.driver;
    let all = pool.found.values().copied();
    let sum = |a: ByteCount, b: ByteCount| ByteCount::from_bytes(a.bytes().saturating_add(b.bytes()));
    all.reduce(|a, b| if *shared { b } else { PoolSpace { size: sum(a.size, b.size), free: sum(a.free, b.free) } })
}

impl Row for PoolView {
    const HEAD: &'static [&'static str] = &["NAME", "DRIVER", "PATH", "SIZE", "FREE"];
    const WIDE: &'static [&'static str] = &["SHARED", "ID", "DESCRIPTION"];
    fn name(&self) -> String {
        self.spec.name.to_string()
    }
    fn cells(&self) -> Vec<Cell> {
        let (kind, path, _) = driver(self);
        let [size, free] = space(self).map_or_else(|| ["-".into(), "-".into()], |s| [s.size, s.free].map(ByteCount::human));
        vec![self.name().into(), kind.into(), path.into(), size.into(), free.into()]
    }
    fn wide(&self) -> Vec<Cell> {
        vec![driver(self).2.into(), self.id.into(), self.spec.description.clone().into()]
    }
}

pub async fn run(ctx: &Ctx, command: PoolCommand) -> Result<(), Failure> {
    match command {
        PoolCommand::List => ctx.printer.list(&pages::<PoolView>(ctx, "pool.list", None).await?),
        PoolCommand::Show { name } => show_one(ctx, &get(ctx, &name).await?),
        PoolCommand::Create(args) => create(ctx, args).await,
        PoolCommand::Set { name, fields } => {
            let view = get(ctx, &name).await?;
            put(ctx, &name, &assign_all(&view.spec, &fields, pool_from_json)?, "updated").await
        }
        PoolCommand::Edit { name } => edit(ctx, &name).await,
        PoolCommand::Delete { names } => {
            ctx.confirm(&format!("Delete pool {}? Folders and what lies in them stay.", joined(&names)))?;
            each_of(ctx, &names, async |name| delete(ctx, name).await).await
        }
    }
}

async fn get(ctx: &Ctx, name: &Name) -> Result<PoolView, Failure> {
    Ok(ctx.call("pool.get")?.field("name", name).answer().await?)
}

async fn put(ctx: &Ctx, name: &Name, spec: &PoolSpec, done: &str) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("write pool '{name}'")) {
        return Ok(());
    }
    let _: PoolView = ctx.call("pool.put")?.field("name", name).json(spec).answer().await?;
    ctx.printer.say(&format!("pool '{name}' {done}"));
    Ok(())
}

async fn create(ctx: &Ctx, args: CreateArgs) -> Result<(), Failure> {
    match get(ctx, &args.name).await {
        Ok(_) => {
            let error = Error::conflict(format!("pool '{}' exists already", args.name));
            return Err(error.hint(format!("change it with 'vmkeep pool set {}'", args.name)).into());
        }
        Err(Failure::Error(e)) if e.code == Code::NotFound => {}
        Err(e) => return Err(e),
    }
    let driver = PoolDriver::Dir { path: args.path, shared: args.shared };
    put(ctx, &args.name, &PoolSpec { name: args.name.clone(), description: args.description, driver }, "created").await
}

async fn edit(ctx: &Ctx, name: &Name) -> Result<(), Failure> {
    let view = get(ctx, name).await?;
    let text = to_yaml_minimal(&Manifest::Pool(view.spec.clone()));
    edit_text(ctx, &format!("pool-{name}"), &text, async |file, text| {
        let spec = crate::files::read_pool(file, text)?;
        put(ctx, name, &spec, "updated").await
    })
    .await
}

pub async fn delete(ctx: &Ctx, name: &Name) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("delete pool '{name}'")) {
        return Ok(());
    }
    ctx.call("pool.delete")?.field("name", name).done().await?;
    ctx.printer.say(&format!("pool '{name}' is deleted; its folder stays"));
    Ok(())
}

fn space_line((node, space): (&Name, &PoolSpace)) -> String {
    format!("{} free of {} on {node}", space.free.human(), space.size.human())
}

fn show_one(ctx: &Ctx, pool: &PoolView) -> Result<(), Failure> {
    let (kind, path, shared) = driver(pool);
    let card = [
        ("Name", pool.name()),
        ("Description", pool.spec.description.clone()),
        ("Driver", kind.into()),
        ("Path", path),
        ("Shared", shared.into()),
        (
            "Not on",
            pool.not_on
                .iter()
                .map(|node| format!("{node}: what is at its path is not the pool (not mounted?)"))
                .collect::<Vec<_>>()
                .join("\n"),
        ),
        ("Space", pool.found.iter().map(space_line).collect::<Vec<_>>().join("\n")),
        ("Created", time::local(pool.created_at)),
        ("Mark", pool.mark.map(|mark| mark.to_string()).unwrap_or_default()),
        ("Id", pool.id.to_string()),
    ];
    show_wish(ctx, pool, Manifest::Pool(pool.spec.clone()), &card)
}
