//! `pool list|show`: where volumes and images lie.

use clap::Subcommand;
use vmkeep_api::body::PoolView;
use vmkeep_types::name::Name;
use vmkeep_types::pool::PoolDriver;

use super::{pages, show};
use crate::context::Ctx;
use crate::failure::Failure;
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
}

fn driver(pool: &PoolView) -> (&'static str, String) {
    match &pool.spec.driver {
        PoolDriver::Dir { path, .. } => ("dir", path.clone()),
    }
}

impl Row for PoolView {
    const HEAD: &'static [&'static str] = &["NAME", "DRIVER", "PATH"];
    const WIDE: &'static [&'static str] = &["ID", "DESCRIPTION"];
    fn name(&self) -> String {
        self.spec.name.to_string()
    }
    fn cells(&self) -> Vec<Cell> {
        let (kind, path) = driver(self);
        vec![self.name().into(), kind.into(), path.into()]
    }
    fn wide(&self) -> Vec<Cell> {
        vec![self.id.into(), self.spec.description.clone().into()]
    }
}

pub async fn run(ctx: &Ctx, command: PoolCommand) -> Result<(), Failure> {
    let PoolCommand::Show { name } = command else {
        return ctx.printer.list(&pages::<PoolView>(ctx, "pool.list", None).await?);
    };
    let pool: PoolView = ctx.call("pool.get")?.field("name", &name).answer().await?;
    let (kind, path) = driver(&pool);
    let card = [
        ("Name", pool.name()),
        ("Description", pool.spec.description.clone()),
        ("Driver", kind.into()),
        ("Path", path),
        ("Created", time::local(pool.created_at)),
        ("Id", pool.id.to_string()),
    ];
    show(ctx, &pool, &card)
}
