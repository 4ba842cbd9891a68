//! `vm ssh`: OpenSSH with the VM's address filled in. Host keys are pinned per VM uuid in a known_hosts of our own, so that an
//! address that went to another VM neither alarms nor deceives.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;

use super::get;
use super::ip::{Address, addresses};
use crate::context::Ctx;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct SshArgs {
    /// VM
    name: Name,
    /// User in the guest; default: cloud_init.user, else the image's usual one
    #[arg(short = 'l', long)]
    user: Option<String>,
    /// Private key
    #[arg(short = 'i', long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Command for the guest
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub async fn run(ctx: &Ctx, args: SshArgs) -> Result<(), Failure> {
    let view = get(ctx, &args.name).await?;
    let found = addresses(ctx, &args.name, ctx.global.wait).await?;
    let address = found.iter().find(|a| !a.is_link_local()).ok_or_else(|| {
        Error::not_found("reachable address of vm", &args.name)
            .hint("it may still be booting: try 'vmkeep vm ssh --wait', or 'vmkeep console'")
    })?;
    let known_hosts = known_hosts()?;
    let mut ssh = Command::new("ssh");
    // A guest that is initialised anew, or whose root disk is made anew, has new keys by right.
    let instance = if view.instance == 0 { String::new() } else { format!("-{}", view.instance) };
    ssh.arg("-o").arg(format!("HostKeyAlias=vmkeep-{}{instance}", view.id));
    ssh.arg("-o").arg(format!("UserKnownHostsFile={}", known_hosts.display()));
    ssh.args(["-o", "StrictHostKeyChecking=accept-new", "-o", "CheckHostIP=no"]);
    if let Some(identity) = &args.identity {
        ssh.arg("-i").arg(identity);
    }
    if let Some(user) = args.user.clone().or_else(|| usual_user(&view)) {
        ssh.arg("-l").arg(user);
    }
    ssh.arg("--").arg(address.plain()).args(&args.command);
    if ctx.is_rehearsal(&format!("run {ssh:?}")) {
        return Ok(());
    }
    // exec: ssh has the terminal for itself, and its exit code is ours.
    let error = ssh.exec();
    Err(Error::refused(format!("cannot start ssh: {error}")).hint("install it: 'apt install openssh-client'").into())
}

/// The user that the seed makes, or that images of this system come with.
fn usual_user(view: &vmkeep_api::body::VmView) -> Option<String> {
    let wished = view.spec.cloud_init.as_ref().and_then(|c| c.user.clone());
    let image = view.spec.image.as_ref().or_else(|| view.spec.disks.iter().find_map(|d| d.image.as_ref()))?;
    let systems = ["debian", "ubuntu", "fedora", "rocky", "almalinux", "arch", "alpine"];
    wished.or_else(|| systems.iter().find(|s| image.as_str().starts_with(**s)).map(|s| (*s).to_owned()))
}

fn known_hosts() -> Result<PathBuf, Failure> {
    let config = std::env::var_os("XDG_CONFIG_HOME").filter(|d| !d.is_empty()).map(PathBuf::from);
    let config = config.or_else(|| crate::files::home().map(|h| h.join(".config")));
    let directory = config.ok_or_else(|| Error::invalid("HOME is not set: there is no place for host keys"))?.join("vmkeep");
    std::fs::create_dir_all(&directory).map_err(|e| Failure::io(format!("cannot make {}", directory.display()), &e))?;
    Ok(directory.join("known_hosts"))
}
