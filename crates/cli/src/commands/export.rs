//! `export`: what there is, as manifests that `apply` takes.

use clap::{Args, ValueEnum};
use serde_json::Value;
use vmkeep_api::body::{ImageView, NetworkView, PoolView, VmView};
use vmkeep_types::image::ImageSource;
use vmkeep_types::manifest::{Manifest, to_yaml_full, to_yaml_minimal};

use super::pages;
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::Format;

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Only these kinds
    #[arg(long, value_enum, value_delimiter = ',', default_value = "pool,network,image,vm")]
    kind: Vec<Kind>,
    /// Only VMs with these labels: tier=db,app=web
    #[arg(short = 'l', long, value_name = "LABELS")]
    label: Option<String>,
    /// Every field, defaults too
    #[arg(long)]
    full: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Kind {
    Pool,
    Network,
    Image,
    Vm,
}

pub async fn run(ctx: &Ctx, args: ExportArgs) -> Result<(), Failure> {
    let mut manifests = Vec::new();
    if args.kind.contains(&Kind::Pool) {
        manifests.extend(pages::<PoolView>(ctx, "pool.list", None).await?.into_iter().map(|p| Manifest::Pool(p.spec)));
    }
    if args.kind.contains(&Kind::Network) {
        manifests.extend(pages::<NetworkView>(ctx, "network.list", None).await?.into_iter().map(|n| Manifest::Network(n.spec)));
    }
    if args.kind.contains(&Kind::Image) {
        for image in pages::<ImageView>(ctx, "image.list", None).await? {
            match image.spec.source {
                ImageSource::Url { .. } | ImageSource::Build { .. } => manifests.push(Manifest::Image(image.spec)),
                // Its bytes came from somebody's computer: no manifest can bring them back.
                ImageSource::Upload { .. } | ImageSource::Volume { .. } => {
                    ctx.printer
                        .say(&format!("image '{}' is left out: save it with 'vmkeep image export {}'", image.spec.name, image.spec.name));
                }
            }
        }
    }
    if args.kind.contains(&Kind::Vm) {
        manifests.extend(pages::<VmView>(ctx, "vm.list", args.label.as_deref()).await?.into_iter().map(|v| Manifest::Vm(v.spec)));
    }
    print(ctx, &manifests, args.full)
}

fn print(ctx: &Ctx, manifests: &[Manifest], full: bool) -> Result<(), Failure> {
    match ctx.printer.format {
        Format::Json => return ctx.printer.value(&manifests.iter().map(Manifest::to_json).collect::<Vec<Value>>()),
        Format::Name => manifests.iter().for_each(|m| ctx.printer.out(&format!("{}/{}", m.kind(), m.name()))),
        Format::Table | Format::Wide | Format::Yaml => {
            for manifest in manifests {
                let text = if full { to_yaml_full(manifest) } else { to_yaml_minimal(manifest) };
                ctx.printer.out(&format!("---\n{}", text.trim_start_matches("---\n").trim_end()));
            }
        }
    }
    Ok(())
}
