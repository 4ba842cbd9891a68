//! `launch IMAGE NAME`: one command from an image to a running VM.
//!
//! Logging in must be possible: a key that is given, else the user's own `~/.ssh/id_*.pub`, else a console password that is made
//! here, printed once as soon as the server has the wish, and good for one login.

use std::path::{Path, PathBuf};

use clap::Args;
use uuid::Uuid;
use vmkeep_types::error::Error;
use vmkeep_types::image::{Found, ImageFacts, ImageKind};
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::{CloudInit, Cpus, Disk, Memory, Nic, VmSpec};

use crate::context::Ctx;
use crate::failure::Failure;
use crate::files::{home, key_lines};

#[derive(Debug, Args)]
pub struct LaunchArgs {
    /// Image that the root disk is cloned from
    image: Name,
    /// Name of the VM
    name: Name,
    /// vCPUs
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Memory
    #[arg(long, default_value = "1G", value_name = "SIZE")]
    memory: ByteCount,
    /// Size of the root disk; default: the image's
    #[arg(long, value_name = "SIZE")]
    disk: Option<ByteCount>,
    /// Network; may be repeated for more NICs
    #[arg(long, default_value = "default")]
    network: Vec<Name>,
    /// Public key file, or the key itself; may be repeated; default: ~/.ssh/id_*.pub
    #[arg(long, value_name = "FILE")]
    ssh_key: Vec<String>,
    /// User to make in the guest; default: the image's own
    #[arg(long)]
    user: Option<String>,
    /// Label; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Attach to the serial console when it runs
    #[arg(long, conflicts_with = "no_wait")]
    console: bool,
}

pub async fn run(ctx: &Ctx, args: LaunchArgs) -> Result<(), Failure> {
    let image = super::image::get(ctx, &args.image).await.map_err(|e| hint_image(e, &args.image))?;
    if image.facts.as_ref().is_some_and(|f| f.kind == ImageKind::Iso) {
        let error = Error::invalid(format!("image '{}' is a CD", args.image));
        return Err(error.hint(format!("make a VM with a disk, then 'vmkeep vm attach cdrom VM {}'", args.image)).into());
    }
    let (login, password) = login(ctx, &args, image.facts.as_ref())?;
    let mut spec = spec(&args, login)?;
    if let Some(facts) = &image.facts {
        spec.os = facts.os;
    }
    // At once: nothing that ends the waiting may take the only password along.
    let tell_password = || {
        if let Some(password) = &password {
            let user = args.user.as_deref().unwrap_or("the image's user");
            ctx.printer.warn(&format!(
                "no ssh key: the console password of {user} is {password} (shown only now; the first login asks for another one)"
            ));
        }
    };
    super::vm::create::submit(ctx, &spec, tell_password).await?;
    if ctx.global.dry_run {
        return Ok(());
    }
    if args.console {
        return super::vm::console::attach(ctx, &args.name, super::vm::console::Window::Untold).await;
    }
    if !ctx.global.no_wait {
        ctx.printer.hint(&format!("'vmkeep console {0}', 'vmkeep vm ip {0} --wait', 'vmkeep vm ssh {0}'", args.name));
    }
    Ok(())
}

fn hint_image(failure: Failure, image: &Name) -> Failure {
    let Failure::Error(mut e) = failure else { return failure };
    if e.code == vmkeep_types::error::Code::NotFound {
        let buildable = vmkeep_types::image::BuildRecipe::ALL.iter().any(|r| r.as_str() == image.as_str());
        let how = if buildable { format!("'vmkeep image build {image}'") } else { "'vmkeep image import FILE|URL'".into() };
        e.hint = Some(format!("see 'vmkeep image list', or make it with {how}"));
    }
    e.into()
}

fn spec(args: &LaunchArgs, login: Option<CloudInit>) -> Result<VmSpec, Failure> {
    let mut spec = VmSpec::named(args.name.clone());
    for label in &args.label {
        let (key, value) = label.split_once('=').ok_or_else(|| Failure::usage(format!("'{label}' is not KEY=VALUE"), "like tier=db"))?;
        spec.labels.insert(key.to_owned(), value.to_owned());
    }
    spec.cpus = Cpus { count: args.cpus, ..Cpus::default() };
    spec.memory = Memory { size: args.memory, ..Memory::default() };
    spec.disks = vec![Disk { image: Some(args.image.clone()), size: args.disk, ..Disk::named(Disk::root_name()) }];
    spec.nics = args.network.iter().enumerate().map(|(i, network)| Nic { network: network.clone(), ..Nic::named(nic_name(i)) }).collect();
    spec.cloud_init = login;
    Ok(spec)
}

fn nic_name(index: usize) -> Name {
    if index == 0 { Nic::default_name() } else { format!("lan{index}").parse().expect("lan and a number is a name") }
}

/// Keys or a password for the seed; none for an image that cannot use them.
fn login(ctx: &Ctx, args: &LaunchArgs, facts: Option<&ImageFacts>) -> Result<(Option<CloudInit>, Option<String>), Failure> {
    let mut login = CloudInit { user: args.user.clone(), ..CloudInit::default() };
    if facts.is_some_and(|f| f.cloud_init == Found::No) {
        ctx.printer.warn(&format!("image '{}' has no cloud-init: it takes no user, key or password from outside", args.image));
        return Ok((None, None));
    }
    login.ssh_keys = keys(&args.ssh_key)?;
    if !login.ssh_keys.is_empty() {
        return Ok((Some(login), None));
    }
    let password = password();
    login.password = Some(password.clone());
    login.password_expires = true;
    Ok((Some(login), Some(password)))
}

fn keys(given: &[String]) -> Result<Vec<String>, Failure> {
    let mut keys = Vec::new();
    for key in given {
        // `ssh-ed25519 AAAA… me@host` is the key itself; a path has no space before its name ends in .pub.
        if key.starts_with("ssh-") && key.contains(' ') || key.starts_with("ecdsa-") || key.starts_with("sk-") {
            keys.push(key.clone());
        } else {
            keys.extend(key_lines(&read_key(Path::new(key))?));
        }
    }
    if given.is_empty() {
        for file in own_key_files() {
            keys.extend(key_lines(&read_key(&file)?));
        }
    }
    Ok(keys)
}

fn read_key(file: &Path) -> Result<String, Failure> {
    let file = match (file.strip_prefix("~"), home()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => file.to_owned(),
    };
    let text = std::fs::read_to_string(&file).map_err(|e| Failure::io(format!("cannot read the key {}", file.display()), &e))?;
    if text.contains("PRIVATE KEY") {
        return Err(Error::invalid(format!("{} is a private key", file.display())).hint("give the .pub file beside it").into());
    }
    Ok(text)
}

/// `~/.ssh/id_*.pub`, in order of name.
fn own_key_files() -> Vec<PathBuf> {
    let Some(entries) = home().and_then(|h| std::fs::read_dir(h.join(".ssh")).ok()) else { return Vec::new() };
    let is_key = |p: &PathBuf| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("id_") && n.ends_with(".pub"));
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(is_key).collect();
    files.sort();
    files
}

/// 16 characters of 32: 80 bits from the system's random numbers, none of them easily mistaken for another.
fn password() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    // Bytes 6 and 8 of a v4 hold its version and variant.
    let random = a.as_bytes().iter().chain(b.as_bytes()).enumerate().filter(|(i, _)| ![6, 8, 22, 24].contains(i));
    random.take(16).map(|(_, byte)| LETTERS[usize::from(byte & 31)] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_file_or_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("id.pub");
        std::fs::write(&file, "# mine\nssh-ed25519 AAAA me\n").expect("written");
        let given = [file.display().to_string(), "ssh-rsa BBBB you".into()];
        assert_eq!(keys(&given).expect("keys"), ["ssh-ed25519 AAAA me", "ssh-rsa BBBB you"]);
        std::fs::write(&file, "-----BEGIN OPENSSH PRIVATE KEY-----").expect("written");
        assert!(keys(&given[..1]).is_err(), "a private key never leaves this computer");
    }

    #[test]
    fn passwords_differ() {
        assert_eq!(password().len(), 16);
        assert_ne!(password(), password());
    }
}
