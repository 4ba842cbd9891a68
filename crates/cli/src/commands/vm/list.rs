//! `vm list`: one line per VM; `-A` adds libvirt's other domains, `-w` goes on with changes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::Args;
use serde::Serialize;
use vmkeep_api::body::{DomainView, VmPhase, VmView};
use vmkeep_types::ids::VmId;

use crate::commands::watch::{Change, watch};
use crate::commands::{or_dash, pages, word};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::plain::one_line;
use crate::printer::{Cell, Format, Row, Tone};
use crate::time;

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Also domains that vmkeep neither made nor adopted
    #[arg(short = 'A', long)]
    all: bool,
    /// Only VMs with these labels: tier=db,app=web
    #[arg(short = 'l', long, value_name = "LABELS")]
    label: Option<String>,
    /// Go on with changes until Ctrl-C
    #[arg(short, long, conflicts_with = "all")]
    watch: bool,
}

pub fn tone(phase: VmPhase) -> Tone {
    match phase {
        VmPhase::Running => Tone::Good,
        VmPhase::Failed => Tone::Bad,
        VmPhase::Stopped => Tone::Dim,
        VmPhase::Pending | VmPhase::Preparing | VmPhase::Starting | VmPhase::Stopping | VmPhase::Migrating | VmPhase::Deleting => {
            Tone::Plain
        }
        VmPhase::Paused | VmPhase::Backoff | VmPhase::Unknown => Tone::Warn,
    }
}

/// What a table has room for; 'vm show' tells all.
const STATE_CHARS_MAX: usize = 60;

fn in_short(text: &str) -> String {
    if text.chars().count() <= STATE_CHARS_MAX {
        return text.to_owned();
    }
    let kept: String = text.chars().take(STATE_CHARS_MAX - 3).collect();
    format!("{}...", kept.trim_end())
}

/// What waits for a restart is among the notes.
fn state(vm: &VmView) -> String {
    if vm.status.phase == VmPhase::Running { "running".into() } else { in_short(&time::localized(&vm.status.text)) }
}

/// What DHCP keeps for its first NIC that has one, while somebody may answer there.
fn address(vm: &VmView) -> Option<IpAddr> {
    let live = matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused | VmPhase::Migrating | VmPhase::Stopping);
    let first = || vm.spec.nics.iter().find_map(|nic| vm.status.addresses.get(&nic.name)).copied();
    live.then(first).flatten()
}

/// What is not as wished, in short.
fn notes(vm: &VmView) -> String {
    let status = &vm.status;
    let mut notes = Vec::new();
    for (n, word) in [(status.pending.len(), "pending"), (status.drift.len(), "drift"), (status.conflicts.len(), "conflict")] {
        if n > 0 {
            notes.push(format!("{word} {n}"));
        }
    }
    if status.qemu_outdated {
        notes.push("qemu outdated".into());
    }
    notes.join(", ")
}

impl Row for VmView {
    const HEAD: &'static [&'static str] = &["NAME", "STATE", "CPUS", "MEMORY", "ADDRESS", "NODE", "AGE", "NOTES"];
    const WIDE: &'static [&'static str] = &["IMAGE", "ACCEL", "RESTARTS", "LABELS", "ID"];
    fn name(&self) -> String {
        self.spec.name.to_string()
    }
    fn cells(&self) -> Vec<Cell> {
        vec![
            self.name().into(),
            Cell(state(self), tone(self.status.phase)),
            self.spec.cpus.count.into(),
            self.spec.memory.size.human().into(),
            or_dash(address(self).as_ref()).into(),
            or_dash(self.status.node.as_ref()).into(),
            time::age(self.created_at, jiff::Timestamp::now()).into(),
            Cell(notes(self), Tone::Warn),
        ]
    }
    fn wide(&self) -> Vec<Cell> {
        let image = self.spec.image.as_ref().or_else(|| self.spec.disks.iter().find_map(|d| d.image.as_ref()));
        let labels: Vec<String> = self.spec.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        vec![
            or_dash(image).into(),
            or_dash(self.status.accel.as_ref()).into(),
            self.status.restarts.count.into(),
            labels.join(",").into(),
            self.id.into(),
        ]
    }
}

/// A VM of ours or a domain of somebody else.
#[derive(Serialize)]
#[serde(untagged)]
enum Any {
    Vm(Box<VmView>),
    Foreign(DomainView),
}

impl Row for Any {
    const HEAD: &'static [&'static str] = VmView::HEAD;
    const WIDE: &'static [&'static str] = VmView::WIDE;
    fn name(&self) -> String {
        match self {
            Self::Vm(vm) => vm.name(),
            Self::Foreign(domain) => domain.name.clone(),
        }
    }
    fn cells(&self) -> Vec<Cell> {
        match self {
            Self::Vm(vm) => vm.cells(),
            Self::Foreign(domain) => {
                let dash = || Cell("-".into(), Tone::Plain);
                let whose = if domain.lost { "ours, but not in the store" } else { "not ours" };
                let state = Cell(format!("{} ({whose})", word(&domain.state)), if domain.lost { Tone::Warn } else { Tone::Dim });
                vec![domain.name.clone().into(), state, dash(), dash(), dash(), dash(), dash(), "".into()]
            }
        }
    }
    fn wide(&self) -> Vec<Cell> {
        match self {
            Self::Vm(vm) => vm.wide(),
            Self::Foreign(domain) => vec!["-".into(), "-".into(), "-".into(), "".into(), domain.uuid.into()],
        }
    }
}

pub async fn run(ctx: &Ctx, args: ListArgs) -> Result<(), Failure> {
    if args.watch {
        return watch_list(ctx, args.label.as_deref()).await;
    }
    let vms = pages::<VmView>(ctx, "vm.list", args.label.as_deref()).await?;
    if args.all {
        return list_all(ctx, vms).await;
    }
    ctx.printer.list(&vms)?;
    if vms.is_empty() && args.label.is_none() && ctx.printer.format == Format::Table {
        ctx.printer.hint("make one: 'vmkeep image build tiny', then 'vmkeep launch tiny hello'");
    }
    Ok(())
}

async fn list_all(ctx: &Ctx, vms: Vec<VmView>) -> Result<(), Failure> {
    let domains: Vec<DomainView> = pages(ctx, "domain.list", None).await?;
    let known: std::collections::HashSet<VmId> = vms.iter().map(|vm| vm.id).collect();
    let foreign = domains.into_iter().filter(|d| !d.ours && !known.contains(&d.uuid));
    let rows: Vec<Any> = vms.into_iter().map(|vm| Any::Vm(Box::new(vm))).chain(foreign.map(Any::Foreign)).collect();
    ctx.printer.list(&rows)
}

/// What there is and then every change: lines with columns that do not move, or one document per VM.
async fn watch_list(ctx: &Ctx, label: Option<&str>) -> Result<(), Failure> {
    let call = || Ok(ctx.call("vm.list")?.query_opt("label", label));
    match ctx.printer.format {
        Format::Table | Format::Wide => {
            let mut board = Board { ctx, shown: BTreeMap::new() };
            watch::<VmView>(ctx, call, |change| {
                board.take(change);
                Ok(())
            })
            .await
        }
        Format::Json | Format::Yaml | Format::Name => {
            watch::<VmView>(ctx, call, |change| match change {
                Change::All(vms) => vms.iter().try_for_each(|vm| document(ctx, vm)),
                Change::Put(vm) => document(ctx, &vm),
                Change::Deleted(_) => Ok(()),
            })
            .await
        }
    }
}

fn document(ctx: &Ctx, vm: &VmView) -> Result<(), Failure> {
    if ctx.printer.format == Format::Json {
        ctx.printer.out(&serde_json::to_string(vm).map_err(|e| vmkeep_types::error::Error::internal(e.to_string()))?);
        return Ok(());
    }
    ctx.printer.list(std::slice::from_ref(vm))
}

/// What was last said of each VM, by name.
struct Board<'a> {
    ctx: &'a Ctx,
    shown: BTreeMap<String, [String; 5]>,
}

impl Board<'_> {
    fn take(&mut self, change: Change<VmView>) {
        match change {
            Change::All(vms) => {
                if self.shown.is_empty() {
                    line(self.ctx, &["NAME", "STATE", "CPUS", "MEMORY", "NOTES"].map(str::to_owned), Tone::Plain);
                }
                let gone: Vec<String> = self.shown.keys().filter(|name| !vms.iter().any(|vm| vm.name() == **name)).cloned().collect();
                gone.into_iter().for_each(|name| self.gone(name));
                vms.iter().for_each(|vm| self.put(vm));
            }
            Change::Put(vm) => self.put(&vm),
            Change::Deleted(name) => self.gone(name),
        }
    }

    fn put(&mut self, vm: &VmView) {
        let now = texts(vm);
        if self.shown.get(&vm.name()) != Some(&now) {
            line(self.ctx, &now, tone(vm.status.phase));
            self.shown.insert(vm.name(), now);
        }
    }

    fn gone(&mut self, name: String) {
        if self.shown.remove(&name).is_some() {
            line(self.ctx, &[name, "deleted".into(), String::new(), String::new(), String::new()], Tone::Dim);
        }
    }
}

fn line(ctx: &Ctx, [name, state, cpus, memory, notes]: &[String; 5], tone: Tone) {
    // Coloured after it was padded: the codes have no width.
    let state = ctx.printer.paint(&format!("{state:<28}"), tone);
    ctx.printer.out(format!("{name:<20}  {state}  {cpus:<4}  {memory:<6}  {notes}").trim_end());
}

/// What is shown of a VM and changes: everything but its age.
fn texts(vm: &VmView) -> [String; 5] {
    [vm.name(), one_line(&time::localized(&vm.status.text)), vm.spec.cpus.count.to_string(), vm.spec.memory.size.human(), notes(vm)]
}
