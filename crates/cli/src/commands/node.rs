//! `node …`: hosts, their facts, and what people say of them.

use std::collections::BTreeSet;

use clap::{Args, Subcommand, ValueEnum};
use vmkeep_api::body::{Accepted, NodeView};
use vmkeep_api::place::{DrainRequest, NodeActionRequest};
use vmkeep_types::host::{KvmState, NodeHealth, NodeOffers};
use vmkeep_types::manifest::node_from_json;
use vmkeep_types::migration::MoveManner;
use vmkeep_types::name::Name;
use vmkeep_types::node::{Averages, Closure, Cordon, NodeSpec, Ratio, Taint};
use vmkeep_types::operation::OpState;
use vmkeep_types::units::Seconds;

use super::{each_of, fence, joined, or_dash, pages, show, word};
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
        #[arg(required_unless_present = "fence", value_name = "FIELD=VALUE")]
        fields: Vec<String>,
        /// Cut its power by this fence agent: --fence ipmilan ip=192.0.2.9 username=admin password=@FILE; 'none' forgets it
        ///
        /// FIELD=VALUE are then the agent's options, as its manual page calls them (man fence_ipmilan). @FILE takes a value from a
        /// file, so that it stands in no list of processes; '***' keeps what is there.
        #[arg(long, value_name = "AGENT")]
        fence: Option<String>,
    },
    /// As `ha fence-test`
    #[command(hide = true)]
    FenceTest(fence::Trial),
    /// Place no new VMs on hosts; those that are there stay
    Cordon {
        /// Hosts to close
        #[arg(required = true)]
        names: Vec<Name>,
        /// Told to everybody who asks why nothing is placed there
        #[arg(long, value_name = "TEXT")]
        why: Option<String>,
    },
    /// Take new VMs again; ends a drain and maintenance
    Uncordon {
        /// Hosts to open
        #[arg(required = true)]
        names: Vec<Name>,
    },
    /// Place no new VMs on a host, and move those that are there to others, a few at once
    ///
    /// What cannot move is told with its reason and stays; the others go on. VMs that are off move as they are. --timeout: no VM
    /// is told to go any more after that; those under way arrive. 'vmkeep op cancel ID' likewise.
    Drain {
        /// Host to empty
        name: Name,
        #[command(flatten)]
        how: DrainArgs,
    },
    /// Work on a host: 'on' drains it and marks it so, 'off' takes new VMs again
    Maintenance {
        /// Host to work on
        name: Name,
        /// Whether it is in maintenance from now on
        to: Switch,
        #[command(flatten)]
        how: DrainArgs,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Told to everybody who asks why nothing is placed there
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// Migrations at once, 1 to 3
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3))]
    at_once: u32,
    /// What cannot move while it runs is shut down, moved, started again
    #[arg(long)]
    or_cold: bool,
}

impl DrainArgs {
    fn request(self, closure: Closure, timeout: Option<Seconds>) -> DrainRequest {
        let manner = if self.or_cold { MoveManner::LiveOrCold } else { MoveManner::Live };
        DrainRequest { why: self.why, closure, at_once: Some(self.at_once), manner, timeout }
    }
}

impl Row for NodeView {
    const HEAD: &'static [&'static str] = &["NAME", "STATE", "CPUS", "MEMORY", "KVM"];
    const WIDE: &'static [&'static str] = &["DOMAIN", "LABELS", "LIBVIRT", "QEMU", "VMKEEP"];
    fn name(&self) -> String {
        self.facts.name.to_string()
    }
    fn cells(&self) -> Vec<Cell> {
        let facts = &self.facts;
        let closure = self.cordon.as_ref().map(|cordon| cordon.closure);
        let state = match self.state.as_ref().map(|state| state.state) {
            Some(NodeHealth::Offline) => Cell("offline".into(), Tone::Bad),
            Some(NodeHealth::Suspect) => Cell("suspect".into(), Tone::Warn),
            _ if !facts.hypervisor_up => Cell("no-libvirt".into(), Tone::Bad),
            _ if closure == Some(Closure::Maintenance) => Cell("maintenance".into(), Tone::Warn),
            _ if closure.is_some() => Cell("cordoned".into(), Tone::Warn),
            Some(NodeHealth::Online) => Cell("online".into(), Tone::Good),
            None => Cell("online".into(), Tone::Good),
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
        NodeCommand::Set { name, fields, fence: None } => set(ctx, &name, &fields).await,
        NodeCommand::Set { name, fields, fence: Some(agent) } => fence::set(ctx, &name, agent, &fields).await,
        NodeCommand::FenceTest(trial) => fence::test(ctx, &trial).await,
        NodeCommand::Cordon { names, why } => act(ctx, &names, "cordon", &NodeActionRequest { why }).await,
        NodeCommand::Uncordon { names } => act(ctx, &names, "uncordon", &NodeActionRequest::default()).await,
        NodeCommand::Drain { name, how } => drain(ctx, &name, how.request(Closure::Cordon, ctx.global.timeout)).await,
        NodeCommand::Maintenance { name, to: Switch::On, how } => {
            drain(ctx, &name, how.request(Closure::Maintenance, ctx.global.timeout)).await
        }
        NodeCommand::Maintenance { name, to: Switch::Off, .. } => act(ctx, &[name], "uncordon", &NodeActionRequest::default()).await,
    }
}

async fn drain(ctx: &Ctx, name: &Name, request: DrainRequest) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("drain node '{name}'")) {
        return Ok(());
    }
    let maintenance = request.closure == Closure::Maintenance;
    let accepted: Accepted = ctx.call("node.drain")?.field("name", name).json(&request).accepted().await?;
    // `--timeout` is the drain's own: it is followed until those under way have come.
    let operation = ctx.follow_all(vec![accepted.operation], None).await?.pop().expect("one went in");
    ctx.print_operation(&operation)?;
    match operation.state {
        OpState::Done if maintenance => {
            ctx.printer.say(&format!("node '{name}' is empty and in maintenance; at its end: vmkeep node maintenance {name} off"))
        }
        OpState::Done => ctx.printer.say(&format!("node '{name}' is empty and takes no new VMs; to open it: vmkeep node uncordon {name}")),
        state if state.is_over() => return Err(Failure::Operation(Box::new(operation))),
        _ => {}
    }
    Ok(())
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
    ctx.printer.say(&format!("node '{name}' updated"));
    Ok(())
}

async fn act(ctx: &Ctx, names: &[Name], action: &str, request: &NodeActionRequest) -> Result<(), Failure> {
    each_of(ctx, names, async |name| {
        if ctx.is_rehearsal(&format!("{action} node '{name}'")) {
            return Ok(());
        }
        let _: NodeView = ctx.call("node.action")?.field("name", name).field("action", action).json(request).answer().await?;
        ctx.printer.say(&format!("node '{name}' is {action}ed"));
        Ok(())
    })
    .await
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

/// The host's own model and how guests' differs from it.
fn cpu(offers: &NodeOffers) -> String {
    let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
    let with = if offers.cpu_features.is_empty() { String::new() } else { format!("\nwith {}", list(&offers.cpu_features)) };
    let lacks = offers.cpu_models_without.get(&offers.cpu_model).filter(|lacks| !lacks.is_empty());
    match offers.cpu_model.as_str() {
        "" => "-".into(),
        model => format!("{model}{with}{}", lacks.map(|lacks| format!("\nwithout {}", list(lacks))).unwrap_or_default()),
    }
}

fn show_one(ctx: &Ctx, node: &NodeView) -> Result<(), Failure> {
    let facts = &node.facts;
    let kvm = match &facts.kvm {
        KvmState::Usable => "usable".to_owned(),
        KvmState::Unusable { why } => format!("unusable: {why}"),
    };
    let state = node.state.as_ref().map(|s| format!("{} since {}", word(&s.state), time::local(s.since))).unwrap_or_default();
    let spec = node.spec.clone().unwrap_or_else(|| NodeSpec::named(facts.name.clone()));
    let told = |c: &Cordon| {
        let what = if c.closure == Closure::Maintenance { "for maintenance, " } else { "" };
        format!("{what}by {} since {} {}", c.by, time::local(c.at), c.why).trim_end().to_owned()
    };
    let cordon = node.cordon.as_ref().map(told);
    let mut card = vec![
        ("Name", facts.name.to_string()),
        ("State", state),
        ("Address", facts.address.clone().unwrap_or_default()),
        ("Description", spec.description.clone()),
        ("libvirt", if facts.hypervisor_up { "answers".into() } else { "does not answer".into() }),
        ("Cordoned", or_dash(cordon.as_ref())),
        ("CPUs", facts.cpus.to_string()),
        ("CPU of guests", cpu(&facts.offers)),
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
    if let Some(reset) = &node.last_reset {
        card.push(("Last reset", format!("{}, {}", time::local(reset.at), reset.message)));
    }
    show(ctx, node, &card)
}
