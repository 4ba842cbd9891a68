//! `vm resize-disk`, `vm attach`, `vm detach`: devices of the wish; the agent plugs them while the VM runs where it can.

use clap::{Args, Subcommand};
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::{Cdrom, Disk, Nic, VmSpec};

use super::{get, put};
use crate::commands::joined;
use crate::context::Ctx;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct ResizeDiskArgs {
    /// VM
    name: Name,
    /// Disk
    disk: Name,
    /// New size like 40G, or +10G; disks only grow
    size: Growth,
}

#[derive(Clone, Copy, Debug)]
enum Growth {
    To(ByteCount),
    By(ByteCount),
}

impl std::str::FromStr for Growth {
    type Err = vmkeep_types::units::UnitError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix('+') {
            Some(more) => more.parse().map(Self::By),
            None => text.parse().map(Self::To),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum AttachCommand {
    /// A disk: an existing volume, an empty one, or a clone of an image
    Disk {
        /// VM
        vm: Name,
        /// Name of the disk in the VM
        disk: Name,
        /// Existing volume
        #[arg(long, conflicts_with_all = ["image", "size"])]
        volume: Option<Name>,
        /// Image that it is cloned from
        #[arg(long)]
        image: Option<Name>,
        /// Size; required for an empty disk
        #[arg(long, required_unless_present_any = ["volume", "image"])]
        size: Option<ByteCount>,
        /// Pool of a new disk
        #[arg(long, default_value = "default")]
        pool: Name,
    },
    /// A NIC
    Nic {
        /// VM
        vm: Name,
        /// Name of the NIC in the VM
        nic: Name,
        /// Network
        #[arg(long, default_value = "default")]
        network: Name,
        /// MAC address; chosen when omitted
        #[arg(long)]
        mac: Option<String>,
    },
    /// A CD: put into the drive of that name, which is made when it is not there
    Cdrom {
        /// VM
        vm: Name,
        /// ISO image
        image: Name,
        /// Drive
        #[arg(long, default_value = "cd0")]
        drive: Name,
    },
}

#[derive(Debug, Subcommand)]
pub enum DetachCommand {
    /// A disk; its data is kept as an unused volume
    Disk {
        /// VM
        vm: Name,
        /// Disk
        disk: Name,
    },
    /// A NIC
    Nic {
        /// VM
        vm: Name,
        /// NIC
        nic: Name,
    },
    /// A CD: the tray is empty afterwards
    Cdrom {
        /// VM
        vm: Name,
        /// Drive
        #[arg(default_value = "cd0")]
        drive: Name,
        /// Take the drive away too (after restart)
        #[arg(long)]
        remove_drive: bool,
    },
}

/// Reads the wish, changes it and writes it back.
async fn change(ctx: &Ctx, name: &Name, change: impl FnOnce(&mut VmSpec) -> Result<(), Failure>) -> Result<(), Failure> {
    let view = get(ctx, name).await?;
    let mut spec = view.spec;
    change(&mut spec)?;
    put(ctx, &spec, view.spec_revision).await
}

fn absent(kind: &str, name: &Name, there: &[&Name]) -> Failure {
    let there = if there.is_empty() { "it has none".into() } else { format!("there are: {}", joined(there)) };
    Error::not_found(kind, name).hint(there).into()
}

fn disk<'a>(spec: &'a mut VmSpec, name: &Name) -> Result<&'a mut Disk, Failure> {
    let Some(index) = spec.disks.iter().position(|d| &d.name == name) else {
        return Err(absent("disk", name, &spec.disks.iter().map(|d| &d.name).collect::<Vec<_>>()));
    };
    Ok(&mut spec.disks[index])
}

pub async fn resize_disk(ctx: &Ctx, args: ResizeDiskArgs) -> Result<(), Failure> {
    let volume = match args.size {
        Growth::To(_) => None,
        // The wish may not say a size: then it is the volume's.
        Growth::By(_) => {
            let volumes = crate::commands::pages::<vmkeep_api::body::VolumeView>(ctx, "volume.list", None).await?;
            volumes.into_iter().find(|v| v.vm.as_ref() == Some(&args.name) && v.attached.as_ref().is_some_and(|a| a.disk == args.disk))
        }
    };
    change(ctx, &args.name, |spec| {
        let disk = disk(spec, &args.disk)?;
        let now = disk.size.max(volume.and_then(|v| v.size));
        let wanted = match (args.size, now) {
            (Growth::To(size), _) => size,
            (Growth::By(more), Some(now)) => ByteCount::from_bytes(now.bytes().saturating_add(more.bytes())),
            (Growth::By(_), None) => {
                return Err(Error::refused(format!("the size of disk '{}' is not known yet", args.disk))
                    .hint("give the whole size")
                    .into());
            }
        };
        if now.is_some_and(|now| wanted < now) {
            let message = format!("disk '{}' has {} and cannot shrink to {wanted}", args.disk, now.unwrap_or_default());
            return Err(Error::invalid(message).hint("make a smaller disk and copy the data inside the guest").into());
        }
        disk.size = Some(wanted);
        Ok(())
    })
    .await
}

pub async fn attach(ctx: &Ctx, command: AttachCommand) -> Result<(), Failure> {
    let taken = |kind: &str, name: &Name| Failure::from(Error::conflict(format!("the vm has a {kind} '{name}' already")));
    match command {
        AttachCommand::Disk { vm, disk, volume, image, size, pool } => {
            change(ctx, &vm, |spec| {
                if spec.disks.iter().any(|d| d.name == disk) {
                    return Err(taken("disk", &disk));
                }
                let empty = volume.is_none() && image.is_none();
                spec.disks.push(Disk { image, volume, size, empty, pool, ..Disk::named(disk) });
                Ok(())
            })
            .await
        }
        AttachCommand::Nic { vm, nic, network, mac } => {
            change(ctx, &vm, |spec| {
                if spec.nics.iter().any(|n| n.name == nic) {
                    return Err(taken("NIC", &nic));
                }
                let plain = Nic::named(nic);
                spec.nics.push(Nic { network, mac: mac.unwrap_or(plain.mac.clone()), ..plain });
                Ok(())
            })
            .await
        }
        AttachCommand::Cdrom { vm, image, drive } => {
            change(ctx, &vm, |spec| {
                match spec.cdroms.iter_mut().find(|c| c.name == drive) {
                    Some(cdrom) => cdrom.image = Some(image),
                    None => spec.cdroms.push(Cdrom { name: drive, image: Some(image) }),
                }
                Ok(())
            })
            .await
        }
    }
}

pub async fn detach(ctx: &Ctx, command: DetachCommand) -> Result<(), Failure> {
    match command {
        DetachCommand::Disk { vm, disk: name } => {
            change(ctx, &vm, |spec| {
                disk(spec, &name)?;
                spec.disks.retain(|d| d.name != name);
                spec.boot.retain(|b| b != &name);
                Ok(())
            })
            .await?;
            ctx.printer
                .say(&format!("the data of disk '{name}' is kept: once the guest has let go of it, see 'vmkeep volume list --unused'"));
            Ok(())
        }
        DetachCommand::Nic { vm, nic } => {
            change(ctx, &vm, |spec| {
                if !spec.nics.iter().any(|n| n.name == nic) {
                    return Err(absent("NIC", &nic, &spec.nics.iter().map(|n| &n.name).collect::<Vec<_>>()));
                }
                spec.nics.retain(|n| n.name != nic);
                spec.boot.retain(|b| b != &nic);
                Ok(())
            })
            .await
        }
        DetachCommand::Cdrom { vm, drive, remove_drive } => {
            change(ctx, &vm, |spec| {
                let Some(index) = spec.cdroms.iter().position(|c| c.name == drive) else {
                    return Err(absent("CD drive", &drive, &spec.cdroms.iter().map(|c| &c.name).collect::<Vec<_>>()));
                };
                if remove_drive {
                    spec.cdroms.remove(index);
                    spec.boot.retain(|b| b != &drive);
                } else {
                    spec.cdroms[index].image = None;
                }
                Ok(())
            })
            .await
        }
    }
}
