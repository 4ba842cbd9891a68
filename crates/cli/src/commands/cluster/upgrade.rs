//! Rolling upgrades.

use vmkeep_types::cluster::{UpgradeMember, UpgradeView};

use crate::commands::{joined, or_dash, word};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Format, Row};

impl Row for UpgradeMember {
    const HEAD: &'static [&'static str] = &["NODE", "ROLES", "VMKEEP", "AGENT", "LEVEL"];
    const WIDE: &'static [&'static str] = &[];
    fn name(&self) -> String {
        self.node.to_string()
    }
    fn cells(&self) -> Vec<Cell> {
        let roles: Vec<String> = self.roles.iter().map(word).collect();
        let [version, level] = [self.version.clone(), self.level.to_string()];
        vec![self.name().into(), joined(&roles).into(), version.into(), or_dash(self.agent.as_ref()).into(), level.into()]
    }
    fn wide(&self) -> Vec<Cell> {
        Vec::new()
    }
}

/// Exit code 1 when something is in the way.
pub async fn check(ctx: &Ctx) -> Result<(), Failure> {
    let view: UpgradeView = ctx.call("cluster.upgrade")?.answer().await?;
    match ctx.printer.format {
        Format::Json | Format::Yaml => ctx.printer.value(&view)?,
        Format::Table | Format::Wide | Format::Name => {
            ctx.printer.list(&view.members)?;
            for problem in &view.problems {
                ctx.printer.warn(&problem.message);
                ctx.printer.hint(&problem.mend);
            }
            ctx.printer.say(&format!("the store has level {}; next: {}", view.level, view.next));
        }
    }
    if view.problems.is_empty() { Ok(()) } else { Err(Failure::Code(1)) }
}

pub async fn raise(ctx: &Ctx) -> Result<(), Failure> {
    if ctx.is_rehearsal("raise the store's format level") {
        return Ok(());
    }
    ctx.confirm("Raise the store's format level? Versions that do not know it are refused from then on.")?;
    let level: u64 = ctx.call("cluster.raise-level")?.answer().await?;
    ctx.printer.say(&format!("the store has level {level}"));
    Ok(())
}
