//! `volume list|show|create|delete`: disks' data.

use clap::{Args, Subcommand, ValueEnum};
use vmkeep_api::body::{VolumeCreate, VolumeView};
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::DiskFormat;

use super::{each_of, or_dash, pages, show, word};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Row, Tone};

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// List volumes
    #[command(visible_aliases = ["ls", "get"])]
    List {
        /// Only those that no VM uses
        #[arg(long)]
        unused: bool,
    },
    /// Show one volume
    Show {
        /// Volume to show
        name: Name,
    },
    /// Make a volume that no VM uses yet
    Create(CreateArgs),
    /// Delete volumes that no VM uses, with their data
    #[command(visible_alias = "rm")]
    Delete {
        /// Volumes to delete
        #[arg(required = true)]
        names: Vec<Name>,
    },
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the volume
    name: Name,
    /// Size, like 20G; with --image at least the image's
    #[arg(long, required_unless_present = "image")]
    size: Option<ByteCount>,
    /// Image that it is cloned from
    #[arg(long)]
    image: Option<Name>,
    /// Pool that it lies in
    #[arg(long, default_value = "default")]
    pool: Name,
    /// Node that it is made on [default: the only one, or that of the VM that takes it]
    #[arg(long)]
    node: Option<Name>,
    /// Format of the file
    #[arg(long, value_enum, default_value = "auto")]
    format: FormatArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    /// What the pool does best
    Auto,
    Qcow2,
    Raw,
}

impl From<FormatArg> for DiskFormat {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Auto => Self::Auto,
            FormatArg::Qcow2 => Self::Qcow2,
            FormatArg::Raw => Self::Raw,
        }
    }
}

impl Row for VolumeView {
    const HEAD: &'static [&'static str] = &["NAME", "SIZE", "USED", "VM", "DISK", "IMAGE"];
    const WIDE: &'static [&'static str] = &["POOL", "NODE", "FORMAT", "ID"];
    fn name(&self) -> String {
        self.name.to_string()
    }
    fn cells(&self) -> Vec<Cell> {
        let human = |size: Option<ByteCount>| size.map_or_else(|| "-".into(), ByteCount::human);
        let vm = match &self.vm {
            Some(vm) => vm.to_string().into(),
            None => Cell("unused".into(), Tone::Dim),
        };
        let disk = or_dash(self.attached.as_ref().map(|a| &a.disk));
        vec![
            self.name().into(),
            human(self.size).into(),
            human(self.allocated).into(),
            vm,
            disk.into(),
            or_dash(self.image.as_ref()).into(),
        ]
    }
    fn wide(&self) -> Vec<Cell> {
        vec![self.pool.to_string().into(), or_dash(self.node.as_ref()).into(), word(&self.format).into(), self.id.into()]
    }
}

pub async fn run(ctx: &Ctx, command: VolumeCommand) -> Result<(), Failure> {
    match command {
        VolumeCommand::List { unused } => {
            let mut volumes = pages::<VolumeView>(ctx, "volume.list", None).await?;
            volumes.retain(|v| !unused || v.attached.is_none());
            ctx.printer.list(&volumes)
        }
        VolumeCommand::Show { name } => {
            let volume: VolumeView = ctx.call("volume.get")?.field("name", &name).answer().await?;
            let human = |size: Option<ByteCount>| size.map(ByteCount::human).unwrap_or_default();
            let card = [
                ("Name", name.to_string()),
                ("Size", human(volume.size)),
                ("Used", human(volume.allocated)),
                ("VM", or_dash(volume.vm.as_ref())),
                ("Disk", or_dash(volume.attached.as_ref().map(|a| &a.disk))),
                ("Image", or_dash(volume.image.as_ref())),
                ("Pool", volume.pool.to_string()),
                ("Node", or_dash(volume.node.as_ref())),
                ("Format", word(&volume.format)),
                ("Adopted file", volume.foreign_path.clone().unwrap_or_default()),
                ("Id", volume.id.to_string()),
            ];
            show(ctx, &volume, &card)
        }
        VolumeCommand::Create(args) => create(ctx, args).await,
        VolumeCommand::Delete { names } => delete(ctx, &names).await,
    }
}

async fn create(ctx: &Ctx, args: CreateArgs) -> Result<(), Failure> {
    let words = format!("make volume '{}'", args.name);
    let format = args.format.into();
    let body = VolumeCreate { name: args.name, pool: args.pool, size: args.size, format, image: args.image, node: args.node };
    let call = ctx.call("volume.create")?.header("idempotency-key", uuid::Uuid::new_v4()).json(&body);
    ctx.change(&words, call).await
}

async fn delete(ctx: &Ctx, names: &[Name]) -> Result<(), Failure> {
    ctx.confirm(&format!("Delete {} with all data?", super::joined(names)))?;
    each_of(ctx, names, async |name| {
        let call = ctx.call("volume.delete")?.field("name", name);
        ctx.change(&format!("delete volume '{name}' and its data"), call).await
    })
    .await
}
