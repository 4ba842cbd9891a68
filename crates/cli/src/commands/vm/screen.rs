//! `vm screenshot`, `vm sendkey`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;
use vmkeep_api::body::SendKeyRequest;
use vmkeep_types::name::Name;

use crate::context::Ctx;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct ScreenshotArgs {
    /// VM
    name: Name,
    /// File to write, '-' = stdout; default: NAME.png or .ppm, as QEMU makes it
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct SendkeyArgs {
    /// VM
    name: Name,
    /// Keys pressed together, like 'leftctrl leftalt delete'
    #[arg(required = true)]
    keys: Vec<String>,
}

pub async fn screenshot(ctx: &Ctx, args: ScreenshotArgs) -> Result<(), Failure> {
    let (kind, bytes) = ctx.call("vm.screenshot")?.field("name", &args.name).typed_bytes().await?;
    let file = args.file.unwrap_or_else(|| {
        let ending = if kind.starts_with("image/png") { "png" } else { "ppm" };
        PathBuf::from(format!("{}.{ending}", args.name))
    });
    if file == Path::new("-") {
        if std::io::stdout().is_terminal() {
            return Err(Failure::usage("a picture is nothing for a terminal", "redirect it: > screen.png"));
        }
        ctx.printer.out_bytes(&bytes);
        return Ok(());
    }
    std::fs::write(&file, &bytes).map_err(|e| Failure::io(format!("cannot write {}", file.display()), &e))?;
    ctx.printer.out(&file.display().to_string());
    Ok(())
}

pub async fn sendkey(ctx: &Ctx, args: SendkeyArgs) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("press {} in vm '{}'", args.keys.join("+"), args.name)) {
        return Ok(());
    }
    // `ctrl-alt-delete` is what people type first.
    let keys = args.keys.iter().flat_map(|k| k.split(['-', '+'])).map(|k| key(&k.to_ascii_lowercase())).collect();
    Ok(ctx.call("vm.sendkey")?.field("name", &args.name).json(&SendKeyRequest { keys }).done().await?)
}

fn key(word: &str) -> String {
    match word {
        "ctrl" => "leftctrl",
        "alt" => "leftalt",
        "shift" => "leftshift",
        "meta" | "win" => "leftmeta",
        "del" => "delete",
        "ret" | "return" => "enter",
        other => other.strip_prefix("key_").unwrap_or(other),
    }
    .to_owned()
}
