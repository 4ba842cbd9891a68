//! `node list|show`: hosts and their facts.

use clap::Subcommand;
use vmkeep_api::body::NodeView;
use vmkeep_types::error::Error;
use vmkeep_types::host::{KvmState, NodeHealth};
use vmkeep_types::name::Name;

use super::{or_dash, pages, show, word};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Row, Tone};

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
}

impl Row for NodeView {
    const HEAD: &'static [&'static str] = &["NAME", "STATE", "CPUS", "MEMORY", "KVM"];
    const WIDE: &'static [&'static str] = &["LIBVIRT", "QEMU", "VMKEEP"];
    fn name(&self) -> String {
        self.facts.name.to_string()
    }
    fn cells(&self) -> Vec<Cell> {
        let facts = &self.facts;
        let state = match self.state.as_ref().map(|state| state.state) {
            Some(NodeHealth::Offline) => Cell("offline".into(), Tone::Bad),
            Some(NodeHealth::Suspect) => Cell("suspect".into(), Tone::Warn),
            _ if !facts.hypervisor_up => Cell("no-libvirt".into(), Tone::Bad),
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
        let facts = &self.facts;
        vec![
            or_dash(facts.libvirt_version.as_ref()).into(),
            or_dash(facts.qemu_version.as_ref()).into(),
            facts.vmkeep_version.clone().into(),
        ]
    }
}

pub async fn run(ctx: &Ctx, command: NodeCommand) -> Result<(), Failure> {
    let nodes = pages::<NodeView>(ctx, "node.list", None).await?;
    let NodeCommand::Show { name } = command else {
        return ctx.printer.list(&nodes);
    };
    let node = nodes.iter().find(|n| n.facts.name == name).ok_or_else(|| Error::not_found("node", &name))?;
    let facts = &node.facts;
    let kvm = match &facts.kvm {
        KvmState::Usable => "usable".to_owned(),
        KvmState::Unusable { why } => format!("unusable: {why}"),
    };
    let state = node.state.as_ref().map(|s| format!("{} since {}", word(&s.state), crate::time::local(s.since))).unwrap_or_default();
    let card = [
        ("Name", name.to_string()),
        ("State", state),
        ("Address", facts.address.clone().unwrap_or_default()),
        ("libvirt", if facts.hypervisor_up { "answers".into() } else { "does not answer".into() }),
        ("CPUs", facts.cpus.to_string()),
        ("Memory", facts.memory.human()),
        ("KVM", kvm),
        ("libvirt version", or_dash(facts.libvirt_version.as_ref())),
        ("QEMU version", or_dash(facts.qemu_version.as_ref())),
        ("vmkeep version", facts.vmkeep_version.clone()),
        ("Boot id", facts.boot_id.clone()),
        ("Epoch", facts.epoch.to_string()),
    ];
    show(ctx, node, &card)
}
