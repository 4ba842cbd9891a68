//! `image import|build|list|show|set|edit|delete|export`: what VM disks are made from.

mod export;
mod import;

use std::collections::BTreeMap;

use clap::{Args, Subcommand, ValueEnum};
use vmkeep_api::body::{ImageView, ObjectState};
use vmkeep_types::image::{BuildRecipe, ImageSource, ImageSpec};
use vmkeep_types::manifest::{Manifest, image_from_json, to_yaml_minimal};
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;

use super::vm::edit::edit_text;
use super::{each_of, joined, pages, show_wish, word};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::fields::assign_all;
use crate::printer::{Cell, Row, Tone};
use crate::time;

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List images
    #[command(visible_aliases = ["ls", "get"])]
    List {
        /// Only images with these labels: os=debian,team=web
        #[arg(short = 'l', long, value_name = "LABELS")]
        label: Option<String>,
    },
    /// Show one image and what was found in it
    Show {
        /// Image to show
        name: Name,
    },
    /// Import a file of this computer, or a URL that the host fetches (qcow2, raw, vmdk, vhdx, ova, iso)
    #[command(visible_alias = "create")]
    Import(import::ImportArgs),
    /// Build an image on the host from its own apt sources
    Build(BuildArgs),
    /// Change what is said of an image: 'vmkeep image set web labels.team=web description="for web"'
    Set {
        /// Image to change
        name: Name,
        /// FIELD=VALUE
        #[arg(required = true, value_name = "FIELD=VALUE")]
        fields: Vec<String>,
    },
    /// Change an image's description and labels in $EDITOR
    Edit {
        /// Image to change
        name: Name,
    },
    /// Download an image: a disk as qcow2, a CD as ISO
    Export(export::ExportArgs),
    /// Delete images that nothing uses
    #[command(visible_alias = "rm")]
    Delete {
        /// Images to delete
        #[arg(required = true)]
        names: Vec<Name>,
    },
}

#[derive(Debug, Args)]
pub struct BuildArgs {
    /// What to build
    #[arg(value_enum)]
    recipe: RecipeArg,
    /// Name of the image; default: the recipe's
    #[arg(long)]
    name: Option<Name>,
    /// Pool that it lies in
    #[arg(long, default_value = "default")]
    pool: Name,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RecipeArg {
    /// Kernel and busybox: boots in seconds, for tests
    Tiny,
    /// Debian 12 with cloud-init and guest agent
    #[value(name = "debian-12")]
    Debian12,
    /// Debian 13 with cloud-init and guest agent
    #[value(name = "debian-13")]
    Debian13,
}

impl From<RecipeArg> for BuildRecipe {
    fn from(recipe: RecipeArg) -> Self {
        match recipe {
            RecipeArg::Tiny => Self::Tiny,
            RecipeArg::Debian12 => Self::Debian12,
            RecipeArg::Debian13 => Self::Debian13,
        }
    }
}

impl Row for ImageView {
    const HEAD: &'static [&'static str] = &["NAME", "STATE", "SIZE", "STORED", "OS", "USED-BY"];
    const WIDE: &'static [&'static str] = &["FIRMWARE", "CLOUD-INIT", "POOL", "CREATED", "LABELS", "ID"];
    fn name(&self) -> String {
        self.spec.name.to_string()
    }
    fn cells(&self) -> Vec<Cell> {
        let state = match self.state {
            ObjectState::Pending => Cell("pending".into(), Tone::Warn),
            ObjectState::Ready => Cell("ready".into(), Tone::Good),
            ObjectState::Failed => Cell("failed".into(), Tone::Bad),
        };
        let facts = self.facts.as_ref();
        let size = facts.map_or_else(|| "-".into(), |f| f.virtual_size.human());
        let stored = facts.map_or_else(|| "-".into(), |f| f.stored_size.human());
        let os = facts.map_or_else(|| "-".into(), |f| f.os_name.clone().unwrap_or_else(|| word(&f.os)));
        vec![self.name().into(), state, size.into(), stored.into(), os.into(), self.used_by.len().into()]
    }
    fn wide(&self) -> Vec<Cell> {
        let facts = self.facts.as_ref();
        let of = |pick: fn(&vmkeep_types::image::ImageFacts) -> String| facts.map_or_else(|| "-".into(), pick);
        vec![
            of(|f| word(&f.firmware)).into(),
            of(|f| word(&f.cloud_init)).into(),
            self.spec.pool.to_string().into(),
            time::local(self.created_at).into(),
            labels(self).into(),
            self.id.into(),
        ]
    }
}

pub async fn run(ctx: &Ctx, command: ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::List { label } => ctx.printer.list(&pages::<ImageView>(ctx, "image.list", label.as_deref()).await?),
        ImageCommand::Show { name } => show_one(ctx, &get(ctx, &name).await?),
        ImageCommand::Import(args) => import::run(ctx, args).await,
        ImageCommand::Build(args) => {
            let recipe = BuildRecipe::from(args.recipe);
            let name = args.name.unwrap_or_else(|| Name::known(recipe.as_str()));
            let source = ImageSource::Build { recipe };
            create(ctx, ImageSpec { name, description: String::new(), labels: BTreeMap::new(), pool: args.pool, source }).await
        }
        ImageCommand::Set { name, fields } => {
            let view = get(ctx, &name).await?;
            put(ctx, &name, &assign_all(&view.spec, &fields, image_from_json)?).await
        }
        ImageCommand::Edit { name } => edit(ctx, &name).await,
        ImageCommand::Export(args) => export::run(ctx, args).await,
        ImageCommand::Delete { names } => {
            ctx.confirm(&format!("Delete image {}?", joined(&names)))?;
            each_of(ctx, &names, async |name| {
                let call = ctx.call("image.delete")?.field("name", name);
                ctx.change(&format!("delete image '{name}'"), call).await
            })
            .await
        }
    }
}

pub async fn get(ctx: &Ctx, name: &Name) -> Result<ImageView, Failure> {
    Ok(ctx.call("image.get")?.field("name", name).answer().await?)
}

async fn put(ctx: &Ctx, name: &Name, spec: &ImageSpec) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("change image '{name}'")) {
        return Ok(());
    }
    let _: ImageView = ctx.call("image.put")?.field("name", name).json(spec).answer().await?;
    ctx.printer.say(&format!("image '{name}' updated"));
    Ok(())
}

async fn edit(ctx: &Ctx, name: &Name) -> Result<(), Failure> {
    let view = get(ctx, name).await?;
    let text = to_yaml_minimal(&Manifest::Image(view.spec.clone()));
    edit_text(ctx, &format!("image-{name}"), &text, async |file, text| {
        let spec = crate::files::read_image(file, text)?;
        put(ctx, name, &spec).await
    })
    .await
}

fn labels(view: &ImageView) -> String {
    view.spec.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Has the host make the image, and shows what it found in it.
async fn create(ctx: &Ctx, spec: ImageSpec) -> Result<(), Failure> {
    let name = spec.name.clone();
    let call = ctx.call("image.create")?.header("idempotency-key", uuid::Uuid::new_v4()).json(&spec);
    ctx.change(&format!("make image '{name}'"), call).await?;
    if ctx.global.dry_run || ctx.global.no_wait {
        return Ok(());
    }
    for warning in get(ctx, &name).await?.facts.map(|f| f.warnings).unwrap_or_default() {
        ctx.printer.warn(&warning);
    }
    Ok(())
}

fn source(source: &ImageSource) -> String {
    match source {
        ImageSource::Url { url, .. } => url.clone(),
        ImageSource::Upload { .. } => "an uploaded file".into(),
        ImageSource::Build { recipe } => format!("built: {}", recipe.as_str()),
        ImageSource::Volume { volume } => format!("volume {volume}"),
    }
}

fn show_one(ctx: &Ctx, view: &ImageView) -> Result<(), Failure> {
    let facts = view.facts.as_ref();
    let of = |pick: &dyn Fn(&vmkeep_types::image::ImageFacts) -> String| facts.map(pick).unwrap_or_default();
    let human = |size: ByteCount| size.human();
    let card = [
        ("Name", view.name()),
        ("Description", view.spec.description.clone()),
        ("State", word(&view.state)),
        ("Kind", of(&|f| word(&f.kind))),
        ("Size", of(&|f| human(f.virtual_size))),
        ("Stored", of(&|f| human(f.stored_size))),
        ("OS", of(&|f| f.os_name.clone().unwrap_or_else(|| word(&f.os)))),
        ("Firmware", of(&|f| word(&f.firmware))),
        ("cloud-init", of(&|f| word(&f.cloud_init))),
        ("Guest agent", of(&|f| word(&f.guest_agent))),
        ("virtio", of(&|f| word(&f.virtio))),
        ("Warnings", of(&|f| f.warnings.join("\n"))),
        ("Source", source(&view.spec.source)),
        ("SHA-256", of(&|f| f.sha256.clone().unwrap_or_default())),
        ("Pool", view.spec.pool.to_string()),
        ("Labels", labels(view)),
        ("Used by", joined(&view.used_by)),
        ("Created", time::local(view.created_at)),
        ("Id", view.id.to_string()),
    ];
    show_wish(ctx, view, Manifest::Image(view.spec.clone()), &card)
}
