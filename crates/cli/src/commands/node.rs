//! `node …`: hosts, their facts, and what people say of them.

use clap::Subcommand;
use vmkeep_api::body::NodeView;
use vmkeep_api::place::NodeActionRequest;
use vmkeep_types::host::{KvmState, NodeHealth};
use vmkeep_types::manifest::node_from_json;
use vmkeep_types::name::Name;
use vmkeep_types::node::{Averages, NodeSpec, Ratio, Taint};

use super::{joined, or_dash, pages, show, word};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::fields::assign_all;
use crate::printer::{Cell, Row, Tone};
use crate::time;

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List hosts
    #[command(visible_aliases = ["ls", "get"])]
    List,
    /// Show one host
    Show {
        /// Host to show
        name: Name,
    },
    /// Change what is said of a host: 'vmkeep node set node1 labels.disk=ssd overcommit.memory=1.5'
    Set {
        /// Host to change
        name: Name,
        /// FIELD=VALUE, like failure_domain=rack1, reserve.memory=4G, taints=[{key: gpu}]; null = the default
        #[arg(required = true, value_name = "FIELD=VALUE")]
        fields: Vec<String>,
    },
    /// Place no new VMs on hosts; those that are there stay
    Cordon {
        /// Hosts to close
        #[arg(required = true)]
        names: Vec<Name>,
        /// Told to everybody who asks why nothing is placed there
        #[arg(long, value_name = "TEXT")]
        why: Option<String>,
    },
    /// Take new VMs again
    Uncordon {
        /// Hosts to open
        #[arg(required = true)]
        names: Vec<Name>,
    },
}

impl Row for NodeView {
    const HEAD: &'static [&'static str] = &["NAME", "STATE", "CPUS", "MEMORY", "KVM"];
    const WIDE: &'static [&'static str] = &["DOMAIN", "LABELS", "LIBVIRT", "QEMU", "VMKEEP"];
    fn name(&self) -> String {
        self.facts.name.to_string()
    }
    fn cells(&self) -> Vec<Cell> {
        let facts = &self.facts;
        let state = match self.state.as_ref().map(|state| state.state) {
            Some(NodeHealth::Offline) => Cell("offline".into(), Tone::Bad),
            Some(NodeHealth::Suspect) => Cell("suspect".into(), Tone::Warn),
            _ if !facts.hypervisor_up => Cell("no-libvirt".into(), Tone::Bad),
            _ if self.cordon.is_some() => Cell("cordoned".into(), Tone::Warn),
            Some(NodeHealth::Online) => Cell("online".into(), Tone::Good),
            None => Cell("up".into(), Tone::Good),
        };
        let kvm = match &facts.kvm {
            KvmState::Usable => Cell("yes".into(), Tone::Good),
            KvmState::Unusable { .. } => Cell("no".into(), Tone::Warn),
        };
        vec![self.name().into(), state, facts.cpus.into(), facts.memory.human().into(), kvm]
    }
    fn wide(&self) -> Vec<Cell> {
        let (facts, spec) = (&self.facts, self.spec.as_ref());
        vec![
            or_dash(spec.and_then(|spec| spec.failure_domain.as_ref())).into(),
            labels(spec).into(),
            or_dash(facts.libvirt_version.as_ref()).into(),
            or_dash(facts.qemu_version.as_ref()).into(),
            facts.vmkeep_version.clone().into(),
        ]
    }
}

fn labels(spec: Option<&NodeSpec>) -> String {
    let pairs: Vec<String> = spec.iter().flat_map(|spec| &spec.labels).map(|(k, v)| format!("{k}={v}")).collect();
    if pairs.is_empty() { "-".into() } else { pairs.join(",") }
}

pub async fn run(ctx: &Ctx, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List => ctx.printer.list(&pages::<NodeView>(ctx, "node.list", None).await?),
        NodeCommand::Show { name } => show_one(ctx, &get(ctx, &name).await?),
        NodeCommand::Set { name, fields } => set(ctx, &name, &fields).await,
        NodeCommand::Cordon { names, why } => act(ctx, &names, "cordon", &NodeActionRequest { why }).await,
        NodeCommand::Uncordon { names } => act(ctx, &names, "uncordon", &NodeActionRequest::default()).await,
    }
}

async fn get(ctx: &Ctx, name: &Name) -> Result<NodeView, Failure> {
    Ok(ctx.call("node.get")?.field("name", name).answer().await?)
}

async fn set(ctx: &Ctx, name: &Name, fields: &[String]) -> Result<(), Failure> {
    let old = get(ctx, name).await?.spec.unwrap_or_else(|| NodeSpec::named(name.clone()));
    let spec = assign_all(&old, fields, node_from_json)?;
    if spec.name != *name {
        return Err(Failure::usage("the name is not a field to set", "a node has the name that it joined with"));
    }
    if spec == old {
        ctx.printer.say(&format!("node '{name}' is like that already"));
        return Ok(());
    }
    if ctx.is_rehearsal(&format!("change node '{name}'")) {
        return Ok(());
    }
    let _: NodeView = ctx.call("node.put")?.field("name", name).json(&spec).answer().await?;
    ctx.printer.say(&format!("node '{name}' is written"));
    Ok(())
}

async fn act(ctx: &Ctx, names: &[Name], action: &str, request: &NodeActionRequest) -> Result<(), Failure> {
    for name in names {
        if ctx.is_rehearsal(&format!("{action} node '{name}'")) {
            continue;
        }
        let _: NodeView = ctx.call("node.action")?.field("name", name).field("action", action).json(request).answer().await?;
        ctx.printer.say(&format!("node '{name}' is {action}ed"));
    }
    Ok(())
}

fn taint(taint: &Taint) -> String {
    let value = taint.value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
    format!("{}{value} ({})", taint.key, word(&taint.effect))
}

fn factor(ratio: Option<Ratio>) -> String {
    ratio.map_or_else(|| "default".into(), |ratio| ratio.to_string())
}

fn over(averages: Averages) -> String {
    let percent = |permille: u32| format!("{}.{}%", permille / 10, permille % 10);
    format!("{} over a minute, {} over five", percent(averages.minute), percent(averages.five_minutes))
}

fn show_one(ctx: &Ctx, node: &NodeView) -> Result<(), Failure> {
    let facts = &node.facts;
    let kvm = match &facts.kvm {
        KvmState::Usable => "usable".to_owned(),
        KvmState::Unusable { why } => format!("unusable: {why}"),
    };
    let state = node.state.as_ref().map(|s| format!("{} since {}", word(&s.state), time::local(s.since))).unwrap_or_default();
    let spec = node.spec.clone().unwrap_or_else(|| NodeSpec::named(facts.name.clone()));
    let cordon = node.cordon.as_ref().map(|c| format!("by {} since {} {}", c.by, time::local(c.at), c.why).trim_end().to_owned());
    let mut card = vec![
        ("Name", facts.name.to_string()),
        ("State", state),
        ("Address", facts.address.clone().unwrap_or_default()),
        ("Description", spec.description.clone()),
        ("libvirt", if facts.hypervisor_up { "answers".into() } else { "does not answer".into() }),
        ("Cordoned", or_dash(cordon.as_ref())),
        ("CPUs", facts.cpus.to_string()),
        ("Memory", facts.memory.human()),
        ("KVM", kvm),
        ("NUMA nodes", facts.offers.numa.len().max(1).to_string()),
        ("Labels", labels(Some(&spec))),
        ("Taints", joined(&spec.taints.iter().map(taint).collect::<Vec<_>>())),
        ("Failure domain", or_dash(spec.failure_domain.as_ref())),
        ("Overcommit", format!("CPU {}, memory {}", factor(spec.overcommit.cpu), factor(spec.overcommit.memory))),
        ("Reserve", format!("{} CPUs, {} of memory", spec.reserve.cpus, spec.reserve.memory.human())),
    ];
    if let Some(load) = &node.load {
        card.extend([
            ("CPU in use", over(load.cpu)),
            ("Memory in use", load.memory_used.human()),
            ("CPU waited for", over(load.cpu_stall)),
            ("Memory waited for", over(load.memory_stall)),
            ("Disks waited for", over(load.io_stall)),
        ]);
    }
    card.extend([
        ("libvirt version", or_dash(facts.libvirt_version.as_ref())),
        ("QEMU version", or_dash(facts.qemu_version.as_ref())),
        ("vmkeep version", facts.vmkeep_version.clone()),
        ("Boot id", facts.boot_id.clone()),
        ("Epoch", facts.epoch.to_string()),
    ]);
    show(ctx, node, &card)
}
