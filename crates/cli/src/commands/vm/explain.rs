//! `vm explain`: why a VM is where it is, node by node.

use clap::Args;
use vmkeep_api::place::PlacementAnswer;
use vmkeep_types::name::Name;

use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Format, Tone};

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// VM to explain
    name: Name,
}

pub async fn run(ctx: &Ctx, args: ExplainArgs) -> Result<(), Failure> {
    let answer: PlacementAnswer = ctx.call("vm.explain")?.field("name", &args.name).answer().await?;
    match ctx.printer.format {
        Format::Table | Format::Wide => {}
        Format::Name => {
            answer.choice.iter().for_each(|node| ctx.printer.out(node.as_str()));
            return Ok(());
        }
        Format::Json | Format::Yaml => return ctx.printer.value(&answer),
    }
    let rows = answer.nodes.iter().map(|verdict| {
        let fits = if verdict.fits { Cell("yes".into(), Tone::Good) } else { Cell("no".into(), Tone::Warn) };
        let here = if answer.node.as_ref() == Some(&verdict.node) { "*" } else { "" };
        vec![verdict.node.to_string().into(), here.to_owned().into(), fits, verdict.text.clone().into()]
    });
    ctx.printer.table(&["NODE", "HERE", "FITS", "WHY"], rows.collect());
    ctx.printer.say(&words(&answer));
    Ok(())
}

fn words(answer: &PlacementAnswer) -> String {
    match (&answer.node, &answer.choice) {
        (Some(node), Some(choice)) if node == choice => format!("'{}' is on {node}, and would be placed there again", answer.vm),
        (Some(node), Some(choice)) => {
            format!("'{}' is on {node}; it would be placed on {choice} now, and is not moved by itself", answer.vm)
        }
        (Some(node), None) => format!("'{}' is on {node}; no node would take it now", answer.vm),
        (None, Some(choice)) => format!("'{}' has no node yet; {choice} can take it", answer.vm),
        (None, None) => format!("'{}' has no node, and none can take it", answer.vm),
    }
}
