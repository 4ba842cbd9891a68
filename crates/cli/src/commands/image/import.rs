//! `image import FILE|URL`: a file goes up with a bar and can be resumed; a URL is fetched by the host itself.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use uuid::Uuid;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::image::{ImageSource, ImageSpec};
use vmkeep_types::name::Name;

use crate::context::Ctx;
use crate::failure::{Failure, INTERRUPTED};
use crate::progress::Board;

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// File of this computer, or http(s) URL
    #[arg(value_name = "FILE|URL")]
    source: String,
    /// Name of the image; default: from the file's name
    #[arg(long)]
    name: Option<Name>,
    /// Checksum that the source must have, in hex
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    sha256: Option<String>,
    /// Words about it
    #[arg(long, default_value = "")]
    description: String,
    /// Pool that it lies in
    #[arg(long, default_value = "default")]
    pool: Name,
    /// Go on with an upload that broke; its id was printed
    #[arg(long, value_name = "UPLOAD")]
    resume: Option<Uuid>,
}

fn sha256(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a SHA-256 is 64 hexadecimal digits".into())
    }
}

pub async fn run(ctx: &Ctx, args: ImportArgs) -> Result<(), Failure> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_of(&args.source)?,
    };
    let is_url = args.source.starts_with("http://") || args.source.starts_with("https://");
    if !ctx.global.dry_run {
        refuse_taken(ctx, &name).await?;
    }
    let source = if is_url {
        ImageSource::Url { url: args.source.clone(), sha256: args.sha256 }
    } else {
        let Some(upload) = upload(ctx, Path::new(&args.source), args.resume, &name).await? else { return Ok(()) };
        ImageSource::Upload { upload, sha256: args.sha256 }
    };
    super::create(ctx, ImageSpec { name, description: args.description, labels: BTreeMap::new(), pool: args.pool, source }).await
}

/// Told before the bytes go up, not after an hour of it.
async fn refuse_taken(ctx: &Ctx, name: &Name) -> Result<(), Failure> {
    match super::get(ctx, name).await {
        Ok(_) => {
            let error = Error::conflict(format!("image '{name}' exists already"));
            Err(error.hint(format!("give another name with --name, or 'vmkeep image delete {name}'")).into())
        }
        Err(Failure::Error(e)) if e.code == Code::NotFound => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// None in a dry run.
async fn upload(ctx: &Ctx, file: &Path, resume: Option<Uuid>, name: &Name) -> Result<Option<Uuid>, Failure> {
    let meta = std::fs::metadata(file).map_err(|e| Failure::io(format!("cannot read {}", file.display()), &e))?;
    if !meta.is_file() {
        return Err(Failure::usage(format!("{} is not a file", file.display()), "give one image file, or a URL"));
    }
    if ctx.is_rehearsal(&format!("upload {} ({} bytes) as image '{name}'", file.display(), meta.len())) {
        return Ok(None);
    }
    let client = ctx.client()?;
    let begun = client.begin_upload(resume).await?;
    let id = begun.upload;
    let again = format!("'vmkeep image import {} --name {name} --resume {id}'", file.display());
    ctx.printer.say(&format!("upload {id}; should it break, go on with {again}"));
    let bar = Board::new(&ctx.printer).bytes("upload");
    tokio::select! {
        done = client.upload(file, begun, bar) => done.map(|()| Some(id)).map_err(|e| resumable(e, &again)),
        _ = tokio::signal::ctrl_c() => {
            ctx.printer.say("");
            ctx.printer.warn(&format!("stopped; what is there is kept for a while: go on with {again}"));
            Err(Failure::Code(INTERRUPTED))
        }
    }
}

fn resumable(mut error: Error, again: &str) -> Failure {
    if error.code.retryable() {
        error.hint = Some(format!("go on with {again}"));
    }
    error.into()
}

/// `debian-12` for `…/Debian_12.qcow2?x=1`.
fn name_of(source: &str) -> Result<Name, Failure> {
    let path = source.split(['?', '#']).next().unwrap_or(source);
    let file = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
    let endings = [".qcow2", ".img", ".raw", ".vmdk", ".vhdx", ".ova", ".iso"];
    let stem = endings
        .iter()
        .find_map(|e| file.to_ascii_lowercase().strip_suffix(e).map(str::to_owned))
        .unwrap_or_else(|| file.to_ascii_lowercase());
    let name: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let bad = || Failure::usage(format!("no name for an image can be made of '{file}'"), "give one with --name");
    name.trim_matches('-').parse().map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_files() {
        for (source, name) in [
            ("https://x.org/a/Debian_12.genericcloud.qcow2?x=1", "debian-12-genericcloud"),
            ("./disk.img", "disk"),
            ("/tmp/My Disk", "my-disk"),
        ] {
            assert_eq!(name_of(source).expect(source).as_str(), name);
        }
        assert!(name_of("https://x.org/?").is_ok_and(|n| n.as_str() == "x-org"));
        assert!(name_of("___").is_err());
        assert!(sha256("zz").is_err());
    }
}
