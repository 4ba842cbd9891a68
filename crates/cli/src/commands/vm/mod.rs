//! `vm …`: virtual machines.

pub mod adopt;
pub mod clone;
pub mod console;
pub mod create;
pub mod delete;
pub mod device;
pub mod edit;
pub mod exec;
pub mod explain;
pub mod ip;
pub mod list;
pub mod logs;
pub mod migrate;
pub mod power;
pub mod screen;
pub mod set;
pub mod show;
pub mod ssh;
pub mod vnc;

use clap::Subcommand;
use vmkeep_api::body::{ActionRequest, VmView};
use vmkeep_api::client::Call;
use vmkeep_types::error::Error;
use vmkeep_types::ids::Revision;
use vmkeep_types::name::Name;
use vmkeep_types::vm::VmSpec;

use crate::commands::apply;
use crate::context::Ctx;
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// List VMs
    #[command(visible_aliases = ["ls", "get"])]
    List(list::ListArgs),
    /// Show one VM; -o yaml prints its manifest
    Show(show::ShowArgs),
    /// Make a VM from fields, without a manifest
    Create(create::CreateArgs),
    /// Start VMs; ends a hold
    Start(power::Names),
    /// Shut VMs down and keep them off
    Stop(power::StopArgs),
    /// Pull the plug: VMs are off at once and kept off
    Kill(power::Names),
    /// Off and on again (cold): applies what is pending
    Restart(power::RestartArgs),
    /// Ask the guest to reboot; applies nothing that is pending
    Reboot(power::Names),
    /// Push the reset button
    Reset(power::Names),
    /// Stop the vCPUs; memory is kept
    Pause(power::Names),
    /// Let paused VMs go on
    Resume(power::Names),
    /// Move VMs to another host while they run
    Migrate(migrate::MigrateArgs),
    /// Delete VMs and their disks
    #[command(visible_alias = "rm")]
    Delete(delete::DeleteArgs),
    /// Give a VM another name; it keeps its uuid
    Rename(clone::RenameArgs),
    /// Copy a stopped VM with its disks
    Clone(clone::CloneArgs),
    /// Change fields: 'vmkeep vm set web memory=4G'
    Set(set::SetArgs),
    /// Change the manifest in $EDITOR
    Edit(edit::EditArgs),
    /// Grow a disk
    ResizeDisk(device::ResizeDiskArgs),
    /// Add a disk, NIC or CD
    #[command(subcommand)]
    Attach(device::AttachCommand),
    /// Take away a disk, NIC or CD; a disk's data is kept as a volume
    #[command(subcommand)]
    Detach(device::DetachCommand),
    /// Serial console; Ctrl-] detaches
    Console(console::ConsoleArgs),
    /// Open a private unix socket (or a port) for one VNC viewer
    Vnc(vnc::VncArgs),
    /// Save a picture of the display
    Screenshot(screen::ScreenshotArgs),
    /// Press keys: 'vmkeep vm sendkey web leftctrl leftalt delete'
    Sendkey(screen::SendkeyArgs),
    /// Run a program in the guest by its agent
    Exec(exec::ExecArgs),
    /// IP addresses and where they are known from
    Ip(ip::IpArgs),
    /// Why it is where it is: every host, and why it is chosen or not
    Explain(explain::ExplainArgs),
    /// Log in with ssh; the host key is pinned to the VM's uuid
    Ssh(ssh::SshArgs),
    /// The domain XML that libvirt has
    Xml(power::One),
    /// What happened to a VM
    Events(logs::EventsArgs),
    /// Last lines of a VM's logs
    Logs(logs::LogsArgs),
    /// Take over a libvirt domain without stopping it
    Adopt(adopt::AdoptArgs),
    /// Let a VM go: a plain libvirt domain stays and keeps running
    Release(power::Names),
    /// Have cloud-init run anew at the next boot
    Reinit(power::Names),
    /// Make the root disk anew from its image; its data is lost
    Rebuild(power::RebuildArgs),
}

pub async fn run(ctx: &Ctx, command: VmCommand) -> Result<(), Failure> {
    match command {
        VmCommand::List(args) => list::run(ctx, args).await,
        VmCommand::Show(args) => show::run(ctx, args).await,
        VmCommand::Create(args) => create::run(ctx, args).await,
        VmCommand::Start(names) => power::each(ctx, "start", &names.names).await,
        VmCommand::Stop(args) => power::stop(ctx, args).await,
        VmCommand::Kill(names) => power::each(ctx, "kill", &names.names).await,
        VmCommand::Restart(args) => power::restart(ctx, args).await,
        VmCommand::Reboot(names) => power::reboot(ctx, &names.names).await,
        VmCommand::Reset(names) => power::each(ctx, "reset", &names.names).await,
        VmCommand::Pause(names) => power::each(ctx, "pause", &names.names).await,
        VmCommand::Resume(names) => power::each(ctx, "resume", &names.names).await,
        VmCommand::Migrate(args) => migrate::run(ctx, args).await,
        VmCommand::Delete(args) => delete::run(ctx, args).await,
        VmCommand::Rename(args) => clone::rename(ctx, args).await,
        VmCommand::Clone(args) => clone::clone(ctx, args).await,
        VmCommand::Set(args) => set::run(ctx, args).await,
        VmCommand::Edit(args) => edit::run(ctx, args).await,
        VmCommand::ResizeDisk(args) => device::resize_disk(ctx, args).await,
        VmCommand::Attach(command) => device::attach(ctx, command).await,
        VmCommand::Detach(command) => device::detach(ctx, command).await,
        VmCommand::Console(args) => console::run(ctx, args).await,
        VmCommand::Vnc(args) => vnc::run(ctx, args).await,
        VmCommand::Screenshot(args) => screen::screenshot(ctx, args).await,
        VmCommand::Sendkey(args) => screen::sendkey(ctx, args).await,
        VmCommand::Exec(args) => exec::run(ctx, args).await,
        VmCommand::Ip(args) => ip::run(ctx, args).await,
        VmCommand::Explain(args) => explain::run(ctx, args).await,
        VmCommand::Ssh(args) => ssh::run(ctx, args).await,
        VmCommand::Xml(one) => show::xml(ctx, &one.name).await,
        VmCommand::Events(args) => logs::events(ctx, args).await,
        VmCommand::Logs(args) => logs::logs(ctx, args).await,
        VmCommand::Adopt(args) => adopt::run(ctx, args).await,
        VmCommand::Release(names) => power::release(ctx, &names.names).await,
        VmCommand::Reinit(names) => power::each(ctx, "reinit", &names.names).await,
        VmCommand::Rebuild(args) => power::rebuild(ctx, args).await,
    }
}

pub async fn get(ctx: &Ctx, name: &Name) -> Result<VmView, Failure> {
    match ctx.call("vm.get")?.field("name", name).answer().await {
        Err(e) if e.code == vmkeep_types::error::Code::NotFound && e.hint.is_none() => Err(e.hint("see 'vmkeep vm list'").into()),
        other => Ok(other?),
    }
}

/// `POST …/actions/{action}`.
pub fn action<'a>(ctx: &'a Ctx, name: &Name, action: &str, request: &ActionRequest) -> Result<Call<'a>, Failure> {
    Ok(ctx.call("vm.action")?.field("name", name).field("action", action).json(request))
}

/// Writes a changed wish, unless somebody else changed it since it was read.
pub async fn put(ctx: &Ctx, spec: &VmSpec, read_at: Revision) -> Result<(), Failure> {
    if ctx.global.dry_run {
        return apply::rehearse(ctx, spec, apply::Wanted::Changed).await;
    }
    let call = ctx.call("vm.put")?.field("name", &spec.name).if_match(read_at).json(spec);
    ctx.change(&format!("change vm '{}'", spec.name), call).await.map_err(|failure| match failure {
        Failure::Error(e) if e.code == vmkeep_types::error::Code::Stale && e.hint.is_none() => stale(e).into(),
        other => other,
    })?;
    if !ctx.global.no_wait {
        say_pending(ctx, &get(ctx, &spec.name).await?);
    }
    Ok(())
}

fn stale(error: Error) -> Error {
    error.hint("somebody else changed it meanwhile: look at it again and repeat")
}

/// What a change has not reached yet.
pub fn say_pending(ctx: &Ctx, view: &VmView) {
    for change in &view.status.pending {
        ctx.printer.say(&format!("  after restart: {}: {} -> {}", change.field, change.from, change.to));
    }
    if !view.status.pending.is_empty() {
        ctx.printer.hint(&format!("'vmkeep vm restart {}' applies it", view.spec.name));
    }
}
