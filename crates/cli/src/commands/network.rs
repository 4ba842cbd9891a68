//! `network list|show|create|edit|delete`.

use clap::{Args, Subcommand, ValueEnum};
use vmkeep_api::body::{NetworkFound, NetworkView};
use vmkeep_types::error::Code;
use vmkeep_types::manifest::{Manifest, to_yaml_minimal};
use vmkeep_types::name::Name;
use vmkeep_types::network::{NetworkMode, NetworkSpec};

use super::{each_of, joined, pages, show_wish, word};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::fields::assign_all;
use crate::printer::{Cell, Row};
use crate::time;

#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// List networks
    #[command(visible_aliases = ["ls", "get"])]
    List,
    /// Show one network
    Show {
        /// Network to show
        name: Name,
    },
    /// Make a network
    Create(CreateArgs),
    /// Change fields: 'vmkeep network set lan mtu=9000'
    Set {
        /// Network to change
        name: Name,
        /// FIELD=VALUE
        #[arg(required = true, value_name = "FIELD=VALUE")]
        fields: Vec<String>,
    },
    /// Change a network in $EDITOR
    Edit {
        /// Network to change
        name: Name,
    },
    /// Delete networks that nothing uses
    #[command(visible_alias = "rm")]
    Delete {
        /// Networks to delete
        #[arg(required = true)]
        names: Vec<Name>,
    },
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the network
    name: Name,
    /// nat: a private subnet behind the host; bridge: plugged into an existing bridge
    #[arg(long, value_enum, default_value = "nat")]
    mode: ModeArg,
    /// Bridge of the host
    #[arg(long, required_if_eq("mode", "bridge"))]
    bridge: Option<String>,
    /// Address and prefix of the gateway, like 10.77.3.1/24; chosen when omitted
    #[arg(long, value_name = "CIDR")]
    ipv4: Option<String>,
    /// Address and prefix of the gateway; a ULA /64 is chosen when omitted. `host check` tells when IPv6 waits
    #[arg(long, value_name = "CIDR")]
    ipv6: Option<String>,
    /// Bytes
    #[arg(long)]
    mtu: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum ModeArg {
    Nat,
    Bridge,
}

/// Bridge, IPv4 and IPv6: as wished, else as they were chosen where all nodes chose the same.
fn chosen(view: &NetworkView) -> (Option<String>, Option<String>, Option<String>) {
    let same = |of: &dyn Fn(&NetworkFound) -> Option<String>| {
        let mut found: Vec<String> = view.found.values().filter_map(of).collect();
        found.dedup();
        match found.len() {
            0 => None,
            1 => found.pop(),
            _ => Some("differs by node".into()),
        }
    };
    let address = |v6: bool| move |found: &NetworkFound| found.addresses.iter().find(|address| address.contains(':') == v6).cloned();
    let spec = &view.spec;
    (
        spec.bridge.clone().or_else(|| same(&|found| Some(found.bridge.clone()))),
        spec.ipv4.clone().or_else(|| same(&address(false))),
        spec.ipv6.clone().or_else(|| same(&address(true))),
    )
}

impl Row for NetworkView {
    const HEAD: &'static [&'static str] = &["NAME", "MODE", "BRIDGE", "IPV4", "USED-BY"];
    const WIDE: &'static [&'static str] = &["IPV6", "MTU", "DOMAIN", "ID"];
    fn name(&self) -> String {
        self.spec.name.to_string()
    }
    fn cells(&self) -> Vec<Cell> {
        let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let (bridge, ipv4, _) = chosen(self);
        let used = if self.used_by.is_empty() { "-".into() } else { joined(&self.used_by) };
        vec![self.name().into(), word(&self.spec.mode).into(), dash(&bridge).into(), dash(&ipv4).into(), used.into()]
    }
    fn wide(&self) -> Vec<Cell> {
        let mtu = self.spec.mtu.map_or_else(|| "-".into(), |m| m.to_string());
        vec![chosen(self).2.unwrap_or_else(|| "-".into()).into(), mtu.into(), self.spec.domain.clone().into(), self.id.into()]
    }
}

pub async fn run(ctx: &Ctx, command: NetworkCommand) -> Result<(), Failure> {
    match command {
        NetworkCommand::List => ctx.printer.list(&pages::<NetworkView>(ctx, "network.list", None).await?),
        NetworkCommand::Show { name } => show_one(ctx, &get(ctx, &name).await?),
        NetworkCommand::Create(args) => create(ctx, args).await,
        NetworkCommand::Set { name, fields } => {
            let view = get(ctx, &name).await?;
            put(ctx, &name, &assign_all(&view.spec, &fields, vmkeep_types::manifest::network_from_json)?, "updated").await
        }
        NetworkCommand::Edit { name } => edit(ctx, &name).await,
        NetworkCommand::Delete { names } => {
            ctx.confirm(&format!("Delete network {}?", joined(&names)))?;
            each_of(ctx, &names, async |name| {
                let call = ctx.call("network.delete")?.field("name", name);
                ctx.change(&format!("delete network '{name}'"), call).await
            })
            .await
        }
    }
}

async fn get(ctx: &Ctx, name: &Name) -> Result<NetworkView, Failure> {
    Ok(ctx.call("network.get")?.field("name", name).answer().await?)
}

async fn put(ctx: &Ctx, name: &Name, spec: &NetworkSpec, done: &str) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("change network '{name}'")) {
        return Ok(());
    }
    let view: NetworkView = ctx.call("network.put")?.field("name", name).json(spec).answer().await?;
    ctx.printer.say(&format!("network '{name}' {done}"));
    if !view.used_by.is_empty() {
        let users = joined(&view.used_by);
        ctx.printer.hint(&format!("what runs on it takes the rest of the change at its next cold start (vmkeep vm restart): {users}"));
    }
    Ok(())
}

async fn create(ctx: &Ctx, args: CreateArgs) -> Result<(), Failure> {
    match get(ctx, &args.name).await {
        Ok(_) => {
            let error = vmkeep_types::error::Error::conflict(format!("network '{}' exists already", args.name));
            return Err(error.hint(format!("change it with 'vmkeep network set {}'", args.name)).into());
        }
        Err(Failure::Error(e)) if e.code == Code::NotFound => {}
        Err(e) => return Err(e),
    }
    let mode = if args.mode == ModeArg::Nat { NetworkMode::Nat } else { NetworkMode::Bridge };
    let smallest = serde_json::json!({ "name": args.name, "mode": mode });
    let mut spec: NetworkSpec = serde_json::from_value(smallest).expect("a name and a mode are a whole network");
    (spec.bridge, spec.ipv4, spec.ipv6, spec.mtu) = (args.bridge, args.ipv4, args.ipv6, args.mtu);
    put(ctx, &args.name, &spec, "created").await
}

async fn edit(ctx: &Ctx, name: &Name) -> Result<(), Failure> {
    let view = get(ctx, name).await?;
    let text = to_yaml_minimal(&Manifest::Network(view.spec.clone()));
    crate::commands::vm::edit::edit_text(ctx, &format!("network-{name}"), &text, async |file, text| {
        let spec = crate::files::read_network(file, text)?;
        put(ctx, name, &spec, "updated").await
    })
    .await
}

fn show_one(ctx: &Ctx, view: &NetworkView) -> Result<(), Failure> {
    let spec = &view.spec;
    let (bridge, ipv4, ipv6) = chosen(view);
    let card = [
        ("Name", view.name()),
        ("Description", spec.description.clone()),
        ("Mode", word(&spec.mode)),
        ("Bridge", bridge.unwrap_or_default()),
        ("IPv4", ipv4.unwrap_or_default()),
        ("IPv6", ipv6.unwrap_or_default()),
        ("MTU", spec.mtu.map(|m| m.to_string()).unwrap_or_default()),
        ("Domain", spec.domain.clone()),
        ("Used by", joined(&view.used_by)),
        ("Created", time::local(view.created_at)),
        ("Id", view.id.to_string()),
    ];
    show_wish(ctx, view, Manifest::Network(view.spec.clone()), &card)
}
