//! `host check`: what is right and wrong with the host, why, and what mends it; fails when a row does. `host uninstall`: the
//! orderly way out.

use clap::Subcommand;
use vmkeep_api::body::{DomainView, HostCheck, VmView};
use vmkeep_types::error::Error;
use vmkeep_types::host::{CheckLevel, CheckRow};
use vmkeep_types::name::Name;

use super::vm::power;
use super::{joined, pages};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Format, Row, Tone};

#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// What is right and wrong with the host; exit code 1 when a row fails
    Check,
    /// Before the package is removed for good: let all VMs go, and say what stays where
    Uninstall {
        /// Release every VM, whatever its state: plain libvirt domains stay, running ones run on
        #[arg(long, required = true)]
        release_all: bool,
    },
}

impl Row for CheckRow {
    const HEAD: &'static [&'static str] = &["CHECK", "STATE", "FOUND"];
    const WIDE: &'static [&'static str] = &["WHY", "MEND"];
    fn name(&self) -> String {
        self.id.clone()
    }
    fn cells(&self) -> Vec<Cell> {
        vec![self.id.clone().into(), state(self.level), self.found.clone().into()]
    }
    fn wide(&self) -> Vec<Cell> {
        vec![self.why.clone().into(), self.mend.clone().unwrap_or_default().into()]
    }
}

fn state(level: CheckLevel) -> Cell {
    match level {
        CheckLevel::Ok => Cell("ok".into(), Tone::Good),
        CheckLevel::Warn => Cell("warn".into(), Tone::Warn),
        CheckLevel::Fail => Cell("fail".into(), Tone::Bad),
    }
}

pub async fn run(ctx: &Ctx, command: HostCommand) -> Result<(), Failure> {
    match command {
        HostCommand::Check => check(ctx).await,
        HostCommand::Uninstall { release_all: _ } => uninstall(ctx).await,
    }
}

/// Releases what the project holds; packages are the administrator's.
async fn uninstall(ctx: &Ctx) -> Result<(), Failure> {
    let vms = pages::<VmView>(ctx, "vm.list", None).await?;
    let names: Vec<Name> = vms.into_iter().map(|vm| vm.spec.name).collect();
    if names.is_empty() {
        ctx.printer.say("there is no VM to release");
    } else {
        power::release(ctx, &names).await?;
    }
    if ctx.global.dry_run {
        return Ok(());
    }
    if !ctx.global.no_wait {
        let mut left: Vec<DomainView> = pages(ctx, "domain.list", None).await?;
        left.retain(|domain| domain.ours);
        if !left.is_empty() {
            let names: Vec<&str> = left.iter().map(|domain| domain.name.as_str()).collect();
            let error = Error::conflict(format!("still vmkeep's: {}", joined(&names)));
            return Err(error.hint("are they of another project? repeat with --project NAME").into());
        }
    }
    ctx.printer.say(
        "What stays:
  libvirt domains, running or not: 'virsh list --all'; none starts at boot before 'virsh autostart NAME'
  their network: 'virsh net-list --all'
  their disks, and images: the pool's folder, /var/lib/libvirt/images/vmkeep/ if it was not changed
  store and configuration: /var/lib/vmkeep/, /etc/vmkeep/
Now 'apt purge vmkeep' removes the programs. It deletes no disk and no store, and says what it kept.
To take a domain back later: install vmkeep again, then 'vmkeep vm adopt NAME'.",
    );
    Ok(())
}

async fn check(ctx: &Ctx) -> Result<(), Failure> {
    let check: HostCheck = ctx.call("host.check")?.answer().await?;
    print(ctx, &check)?;
    let count = |level| check.rows.iter().filter(|r| r.level == level).count();
    let (warn, fail) = (count(CheckLevel::Warn), count(CheckLevel::Fail));
    ctx.printer.say(&format!("{} checks: {} ok, {warn} warn, {fail} fail", check.rows.len(), check.rows.len() - warn - fail));
    if fail > 0 { Err(Failure::Code(1)) } else { Ok(()) }
}

fn print(ctx: &Ctx, check: &HostCheck) -> Result<(), Failure> {
    match ctx.printer.format {
        Format::Json | Format::Yaml => return ctx.printer.value(check),
        _ => ctx.printer.list(&check.rows)?,
    }
    if ctx.printer.format != Format::Table {
        return Ok(());
    }
    // Below the table, so that a long reason does not spoil its columns.
    for row in check.rows.iter().filter(|r| r.level != CheckLevel::Ok) {
        let Cell(word, tone) = state(row.level);
        ctx.printer.out("");
        ctx.printer.out(&format!(
            "{} {}: {}",
            ctx.printer.paint(&word, tone),
            row.id,
            if row.why.is_empty() { &row.found } else { &row.why }
        ));
        if let Some(mend) = &row.mend {
            ctx.printer.out(&format!("     {mend}"));
        }
    }
    Ok(())
}
