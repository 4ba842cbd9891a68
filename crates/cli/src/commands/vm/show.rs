//! `vm show`, `vm xml`. `-o yaml` is the manifest: what `apply` takes, shortest form; `--full` adds defaults and choices.

use clap::Args;
use vmkeep_api::body::{MovableAnswer, VmView, XmlAnswer};
use vmkeep_api::ha::HaForecast;
use vmkeep_types::manifest::{vm_to_yaml_full, vm_to_yaml_minimal};
use vmkeep_types::name::Name;
use vmkeep_types::observed::FieldChange;
use vmkeep_types::operation::Operation;
use vmkeep_types::record::FirmwareChoice;
use vmkeep_types::vm::Nic;

use super::{get, list, migrate};
use crate::commands::{joined, pages, word};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Format, Row, Tone, yaml};
use crate::time;

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// VM to show
    name: Name,
    /// With -o yaml: every field, and what was chosen once and is kept
    #[arg(long)]
    full: bool,
}

pub async fn run(ctx: &Ctx, args: ShowArgs) -> Result<(), Failure> {
    let view = get(ctx, &args.name).await?;
    match ctx.printer.format {
        Format::Yaml if args.full => {
            ctx.printer.out(vm_to_yaml_full(&view.spec).trim_end());
            ctx.printer.out("# chosen once and kept:");
            for line in yaml(&view.choices)?.trim_end().lines() {
                ctx.printer.out(&format!("#   {line}"));
            }
        }
        Format::Yaml => ctx.printer.out(vm_to_yaml_minimal(&view.spec).trim_end()),
        Format::Json => ctx.printer.value(&view)?,
        Format::Name => ctx.printer.out(&view.name()),
        Format::Table | Format::Wide => {
            // A daemon of before does not say it.
            let movable = ctx.call("vm.movable")?.field("name", &args.name).answer::<MovableAnswer>().await.ok();
            let forecast = match view.spec.ha {
                Some(_) => ctx.call("vm.forecast")?.field("name", &args.name).answer::<HaForecast>().await.ok(),
                None => None,
            };
            let waits = waits_for(ctx, &view).await?;
            card(ctx, &view, waits, movable.as_ref(), forecast.as_ref());
        }
    }
    Ok(())
}

/// Of a VM without a node: what its operation waits for.
async fn waits_for(ctx: &Ctx, view: &VmView) -> Result<String, Failure> {
    if view.status.node.is_some() {
        return Ok(String::new());
    }
    let ops = pages::<Operation>(ctx, "op.list", None).await?;
    let its = ops.into_iter().rev().find(|op| op.resource.uid == view.id.0 && !op.state.is_over() && op.blocked.is_some());
    Ok(its.and_then(|op| op.blocked).unwrap_or_default())
}

fn changes(changes: &[FieldChange]) -> String {
    changes.iter().map(|c| format!("{}: {} -> {}", c.field, c.from, c.to)).collect::<Vec<_>>().join("\n")
}

fn card(ctx: &Ctx, view: &VmView, waits: String, movable: Option<&MovableAnswer>, forecast: Option<&HaForecast>) {
    let (spec, status) = (&view.spec, &view.status);
    let since = status.since.map(|at| format!(", since {}", time::local(at))).unwrap_or_default();
    let error = status.error.as_ref();
    let restarts = &status.restarts;
    let restarts = match (restarts.count, &restarts.last_reason) {
        (0, _) => String::new(),
        (n, reason) => format!("{n}, the last: {}", reason.as_deref().unwrap_or("unknown reason")),
    };
    let condition = [
        ("Name", view.name()),
        ("Description", spec.description.clone()),
        ("State", format!("{}{since}", ctx.printer.paint(&time::localized(&status.text), list::tone(status.phase)))),
        ("Waits for", waits),
        ("Error", error.map(ToString::to_string).unwrap_or_default()),
        ("Hint", error.and_then(|e| e.hint.clone()).unwrap_or_default()),
        ("Warnings", status.warnings.join("\n")),
        ("Restarts", restarts),
        ("After restart", changes(&status.pending)),
        ("Drift", changes(&status.drift)),
        ("Conflicts", changes(&status.conflicts)),
        ("QEMU", if status.qemu_outdated { "older than the installed one; 'vm restart' renews it".into() } else { String::new() }),
    ];
    let what = [
        ("Run", word(&spec.run)),
        ("CPUs", cpus(view)),
        ("Memory", spec.memory.size.human()),
        ("Machine", machine(view)),
        ("Labels", joined(&spec.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>())),
        ("Node", status.node.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("Movable", movable.map(migrate::words).unwrap_or_default()),
        ("If its node dies", forecast.map(|forecast| forecast.text.clone()).unwrap_or_default()),
        ("Accelerator", status.accel.clone().unwrap_or_default()),
        ("Origin", word(&view.origin)),
        ("Created", time::local(view.created_at)),
        ("Revision", view.spec_revision.to_string()),
        ("Id", view.id.to_string()),
    ];
    ctx.printer.card(&[&condition[..], &what[..]].concat());
    devices(ctx, view);
}

fn cpus(view: &VmView) -> String {
    let cpus = &view.spec.cpus;
    let max = if cpus.max() > cpus.count { format!(" of {}", cpus.max()) } else { String::new() };
    format!("{}{max} ({})", cpus.count, view.spec.cpu.model)
}

fn machine(view: &VmView) -> String {
    let machine = view.choices.machine.clone().unwrap_or_else(|| word(&view.spec.machine));
    match &view.choices.firmware {
        Some(FirmwareChoice::Bios) => format!("{machine}, BIOS"),
        Some(FirmwareChoice::Uefi { secure_boot: true, .. }) => format!("{machine}, UEFI with Secure Boot"),
        Some(FirmwareChoice::Uefi { secure_boot: false, .. }) => format!("{machine}, UEFI"),
        None => machine,
    }
}

fn devices(ctx: &Ctx, view: &VmView) {
    let spec = &view.spec;
    let dim = |text: String| Cell(text, Tone::Plain);
    if !spec.disks.is_empty() {
        ctx.printer.out("");
        let rows = spec.disks.iter().map(|d| {
            let from = match (&d.image, &d.volume) {
                (Some(image), _) => format!("image {image}"),
                (None, Some(volume)) => format!("volume {volume}"),
                (None, None) => "empty".into(),
            };
            let size = d.size.map_or_else(|| "-".into(), |s| s.human());
            vec![
                d.name.to_string().into(),
                dim(size),
                from.into(),
                word(&d.bus(spec.os)).into(),
                word(&d.cache).into(),
                d.pool.to_string().into(),
            ]
        });
        ctx.printer.table(&["DISK", "SIZE", "FROM", "BUS", "CACHE", "POOL"], rows.collect());
    }
    if !spec.cdroms.is_empty() {
        ctx.printer.out("");
        let rows = spec.cdroms.iter().map(|c| {
            let image = c.image.as_ref().map_or_else(|| "(empty)".to_owned(), ToString::to_string);
            vec![c.name.to_string().into(), image.into()]
        });
        ctx.printer.table(&["CDROM", "IMAGE"], rows.collect());
    }
    if !spec.nics.is_empty() {
        ctx.printer.out("");
        let rows = spec.nics.iter().map(|n| {
            let mac = view.choices.macs.get(&n.name).cloned().unwrap_or_else(|| n.mac.clone());
            vec![
                n.name.to_string().into(),
                n.network.to_string().into(),
                mac.into(),
                word(&n.model(spec.os)).into(),
                addresses(view, n).into(),
            ]
        });
        ctx.printer.table(&["NIC", "NETWORK", "MAC", "MODEL", "ADDRESSES"], rows.collect());
    }
}

/// As wished, and what DHCP keeps for it.
fn addresses(view: &VmView, nic: &Nic) -> String {
    let kept = view.status.addresses.get(&nic.name).filter(|_| nic.addresses.iter().any(|address| address == "dhcp"));
    let kept = kept.map(|kept| format!(" ({kept})")).unwrap_or_default();
    nic.addresses.join(", ") + &kept
}

pub async fn xml(ctx: &Ctx, name: &Name) -> Result<(), Failure> {
    let answer: XmlAnswer = ctx.call("vm.xml")?.field("name", name).answer().await?;
    match ctx.printer.format {
        Format::Json | Format::Yaml => ctx.printer.value(&answer)?,
        _ => ctx.printer.out(answer.xml.trim_end()),
    }
    Ok(())
}
