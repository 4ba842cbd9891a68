//! `cluster simulate`: VMs that do not exist, placed as they would be.

use std::str::FromStr;

use clap::Args;
use vmkeep_api::place::{SimulateAnswer, SimulateRequest, SimulatedVms};
use vmkeep_types::manifest::{self, Manifest};
use vmkeep_types::name::Name;
use vmkeep_types::vm::VmSpec;

use crate::context::Ctx;
use crate::failure::Failure;
use crate::fields::assign_all;
use crate::printer::Format;

/// Nodes whose reason is told when it breaks.
const NODES_MAX: usize = 10;

#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// How many of what: 100xweb.yaml (the VMs of a manifest), or 100xcpus=2,memory=4G; may be given again
    #[arg(long, required = true, value_name = "COUNTxSPEC")]
    add: Vec<Add>,
}

#[derive(Clone, Debug)]
struct Add {
    count: u32,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    File(String),
    Fields(Vec<String>),
}

impl FromStr for Add {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not COUNTxSPEC; write it like 100xweb.yaml or 100xcpus=2,memory=4G");
        let (count, what) = text.split_once('x').ok_or_else(wrong)?;
        let count = count.parse().map_err(|_| wrong())?;
        if what.is_empty() || count == 0 {
            return Err(wrong());
        }
        let what = if what.contains('=') && !what.ends_with(".yaml") && !what.ends_with(".yml") {
            What::Fields(what.split(',').map(str::to_owned).collect())
        } else {
            What::File(what.to_owned())
        };
        Ok(Self { count, what })
    }
}

impl Add {
    fn vms(&self, n: usize) -> Result<Vec<SimulatedVms>, Failure> {
        let specs = match &self.what {
            What::Fields(fields) => {
                let name: Name = format!("sim{}", n + 1).parse().expect("a word and a number make a name");
                vec![assign_all(&VmSpec::named(name), fields, manifest::vm_from_json)?]
            }
            What::File(file) => {
                let text = std::fs::read_to_string(file).map_err(|e| Failure::io(format!("cannot read {file}"), &e))?;
                let vm = |document: manifest::Document| match document.manifest {
                    Manifest::Vm(spec) => Some(spec),
                    Manifest::Network(_) | Manifest::Image(_) | Manifest::Pool(_) => None,
                };
                manifest::parse(file, &text)?.into_iter().filter_map(vm).collect()
            }
        };
        let planned = |mut spec: VmSpec| {
            // Not looked at by placement; files that it names are not read.
            spec.cloud_init = None;
            SimulatedVms { count: self.count, spec: serde_json::to_value(spec).expect("a spec has only text keys") }
        };
        Ok(specs.into_iter().map(planned).collect())
    }
}

pub async fn run(ctx: &Ctx, args: SimulateArgs) -> Result<(), Failure> {
    let mut request = SimulateRequest { add: Vec::new() };
    for (n, add) in args.add.iter().enumerate() {
        request.add.extend(add.vms(n)?);
    }
    if request.add.is_empty() {
        return Err(Failure::usage("there is no VM in what is to be added", "the file must have a document with kind: vm"));
    }
    let answer: SimulateAnswer = ctx.call("place.simulate")?.json(&request).answer().await?;
    if !matches!(ctx.printer.format, Format::Table | Format::Wide) {
        return ctx.printer.value(&answer);
    }
    let rows = answer.by_node.iter().map(|(node, count)| vec![node.to_string().into(), (*count).into()]).collect();
    ctx.printer.table(&["NODE", "MORE-VMS"], rows);
    ctx.printer.out("");
    ctx.printer.out(&words(&answer));
    Ok(())
}

fn words(answer: &SimulateAnswer) -> String {
    let mut lines = Vec::new();
    match &answer.broken {
        None => lines.push(format!("All {} fit.", answer.wanted)),
        Some(broken) => {
            lines.push(format!("{} of {} fit; '{}' is the first that finds no node:", answer.placed, answer.wanted, broken.vm));
            lines.extend(broken.nodes.iter().take(NODES_MAX).map(|verdict| format!("  {}: {}", verdict.node, verdict.text)));
            if broken.nodes.len() > NODES_MAX {
                lines.push(format!("  and {} more nodes; -o json tells them all", broken.nodes.len() - NODES_MAX));
            }
        }
    }
    lines.push(format!("Nodes that may fail: {} now, {} with them.", answer.may_fail_before, answer.may_fail_after));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, wanted: Expect) {
        let told = text.parse::<Add>().map_or_else(|e| e, |add| format!("{add:?}"));
        wanted.assert_eq(&told);
    }

    #[test]
    fn how_many_of_what() {
        check("100xweb.yaml", expect![[r#"Add { count: 100, what: File("web.yaml") }"#]]);
        check("2xcpus=2,memory=4G", expect![[r#"Add { count: 2, what: Fields(["cpus=2", "memory=4G"]) }"#]]);
        check("0xa.yaml", expect!["'0xa.yaml' is not COUNTxSPEC; write it like 100xweb.yaml or 100xcpus=2,memory=4G"]);
        check("web.yaml", expect!["'web.yaml' is not COUNTxSPEC; write it like 100xweb.yaml or 100xcpus=2,memory=4G"]);
        let add: Add = "3xcpus=2,memory=4G".parse().expect("it is well formed");
        let vms = add.vms(0).expect("two fields");
        assert_eq!((vms[0].count, &vms[0].spec["name"], &vms[0].spec["cpus"]["count"]), (3, &"sim1".into(), &2.into()));
        assert!("3xmemory=4".parse::<Add>().expect("it is well formed").vms(0).is_err(), "a size needs its unit");
    }
}
