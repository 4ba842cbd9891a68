//! `completions`, `man`: made from the grammar itself.

use std::path::PathBuf;

use clap::{Args, CommandFactory, ValueEnum};

use crate::cli::Cli;
use crate::context::Ctx;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Directory to write into, like /usr/local/share/man/man1
    directory: PathBuf,
}

pub fn completions(ctx: &Ctx, args: &CompletionsArgs) -> Result<(), Failure> {
    let (shell, place) = match args.shell {
        Shell::Bash => (clap_complete::Shell::Bash, "vmkeep completions bash > ~/.local/share/bash-completion/completions/vmkeep"),
        Shell::Zsh => (clap_complete::Shell::Zsh, "vmkeep completions zsh > ~/.zfunc/_vmkeep   (with ~/.zfunc in fpath before compinit)"),
        Shell::Fish => (clap_complete::Shell::Fish, "vmkeep completions fish > ~/.config/fish/completions/vmkeep.fish"),
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vmkeep", &mut script);
    ctx.printer.out_bytes(&script);
    if ctx.printer.out_tty {
        ctx.printer.hint(place);
    }
    Ok(())
}

pub fn man(ctx: &Ctx, args: &ManArgs) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("write man pages into {}", args.directory.display())) {
        return Ok(());
    }
    let what = format!("cannot write man pages into {}", args.directory.display());
    std::fs::create_dir_all(&args.directory).map_err(|e| Failure::io(&what, &e))?;
    clap_mangen::generate_to(Cli::command(), &args.directory).map_err(|e| Failure::io(&what, &e))?;
    ctx.printer.say(&format!(
        "man pages are in {}; read one with 'man -l {}/vmkeep.1'",
        args.directory.display(),
        args.directory.display()
    ));
    Ok(())
}
