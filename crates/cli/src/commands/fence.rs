//! `node set NAME --fence …` and `ha fence-test`: how a host's power is cut.

use std::collections::BTreeMap;

use clap::Args;
use vmkeep_types::name::Name;
use vmkeep_types::stonith::{FenceFound, FenceSpec, FenceTest, FenceView};

use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::Format;

/// The word for no agent at all.
const NONE: &str = "none";

pub async fn set(ctx: &Ctx, name: &Name, agent: String, options: &[String]) -> Result<(), Failure> {
    if agent == NONE {
        if ctx.is_rehearsal(&format!("forget how the power of '{name}' is cut")) {
            return Ok(());
        }
        ctx.call("fence.delete")?.field("name", name).done().await?;
        ctx.printer.say(&format!("the power of '{name}' is cut by nobody now"));
        return Ok(());
    }
    let options = options.iter().map(|text| option(text)).collect::<Result<BTreeMap<_, _>, _>>()?;
    if ctx.is_rehearsal(&format!("cut the power of '{name}' by fence_{agent}")) {
        return Ok(());
    }
    let view: FenceView = ctx.call("fence.put")?.field("name", name).json(&FenceSpec { agent, options }).answer().await?;
    ctx.printer.say(&format!("the power of '{name}' is cut by fence_{}; try it: vmkeep ha fence-test {name}", view.agent));
    Ok(())
}

fn option(text: &str) -> Result<(String, String), Failure> {
    let wrong = || Failure::usage(format!("'{text}' is not OPTION=VALUE"), "write it like ip=192.0.2.9 or password=@FILE");
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(wrong)?;
    let Some(file) = value.strip_prefix('@') else { return Ok((key.to_owned(), value.to_owned())) };
    let read = std::fs::read_to_string(file);
    let text = read.map_err(|e| Failure::usage(format!("{key}: cannot read {file}: {e}"), "the file holds the value on one line"))?;
    Ok((key.to_owned(), text.trim_end_matches(['\n', '\r']).to_owned()))
}

#[derive(Debug, Args)]
pub struct Trial {
    /// Host to ask for
    name: Name,
    /// Switch the power off and on again: only of a host that owns no VM, and asked of another one
    #[arg(long)]
    really: bool,
}

pub async fn test(ctx: &Ctx, trial: &Trial) -> Result<(), Failure> {
    let Trial { name, really } = trial;
    let really = *really;
    let what = if really { "switch the power of" } else { "ask for the power of" };
    if ctx.is_rehearsal(&format!("{what} '{name}'")) {
        return Ok(());
    }
    if really {
        ctx.confirm(&format!("Switch the power of {name} off and on again?"))?;
    }
    let view: FenceView = ctx.call("fence.test")?.field("name", name).json(&FenceTest { really }).answer().await?;
    let found = view.tested.as_ref().map(|tested| tested.found.clone());
    let options = view.options.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ");
    let power = match &found {
        Some(FenceFound::On) => "on".into(),
        Some(FenceFound::Off) => "off".into(),
        Some(FenceFound::Unknown { why }) => format!("unknown: {why}"),
        None => String::new(),
    };
    match ctx.printer.format {
        Format::Table | Format::Wide => {
            ctx.printer.card(&[("Node", name.to_string()), ("Agent", view.agent.clone()), ("Options", options), ("Power", power)]);
        }
        _ => ctx.printer.value(&view)?,
    }
    match found {
        Some(FenceFound::Unknown { why }) => Err(Failure::from(vmkeep_types::error::Error::refused(why))),
        _ => Ok(()),
    }
}
