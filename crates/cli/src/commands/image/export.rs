//! `image export`: download an image: a disk as qcow2, a CD as ISO. The file appears under its name only when it is whole.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use vmkeep_types::image::ImageKind;
use vmkeep_types::name::Name;

use crate::context::Ctx;
use crate::failure::{Failure, INTERRUPTED};
use crate::progress::Board;

/// The host may first have to convert the image.
const PATIENCE: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Image to download
    name: Name,
    /// File to write, '-' = stdout; default: NAME.qcow2, of a CD NAME.iso
    file: Option<PathBuf>,
}

pub async fn run(ctx: &Ctx, args: ExportArgs) -> Result<(), Failure> {
    let file = match args.file {
        Some(file) => file,
        None => {
            let facts = super::get(ctx, &args.name).await?.facts;
            let ending = if facts.is_some_and(|f| f.kind == ImageKind::Iso) { "iso" } else { "qcow2" };
            PathBuf::from(format!("{}.{ending}", args.name))
        }
    };
    if ctx.is_rehearsal(&format!("write image '{}' to {}", args.name, file.display())) {
        return Ok(());
    }
    if file != Path::new("-") && file.exists() {
        ctx.confirm(&format!("Overwrite {}?", file.display()))?;
    }
    let bar = Board::new(&ctx.printer).bytes("download");
    let call = ctx.call("image.export")?.field("name", &args.name).patience(PATIENCE);
    if file == Path::new("-") {
        if std::io::stdout().is_terminal() {
            return Err(Failure::usage("an image is nothing for a terminal", "redirect it: > image.qcow2"));
        }
        call.download(&mut tokio::io::stdout(), &*bar).await?;
        return Ok(());
    }
    let directory = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let what = format!("cannot write {}", file.display());
    let part = tempfile::NamedTempFile::new_in(directory).map_err(|e| Failure::io(&what, &e))?;
    let mut out = tokio::fs::File::from_std(part.reopen().map_err(|e| Failure::io(&what, &e))?);
    let bytes = tokio::select! {
        bytes = call.download(&mut out, &*bar) => bytes?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::Code(INTERRUPTED)),
    };
    out.sync_all().await.map_err(|e| Failure::io(&what, &e))?;
    part.persist(&file).map_err(|e| Failure::io(&what, &e.error))?;
    ctx.printer.say(&format!("{}: {bytes} bytes", file.display()));
    Ok(())
}
