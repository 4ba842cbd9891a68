//! The guest's CPU: chosen once as a written-out model, so that a new QEMU or microcode does not change it.

use vmkeep_types::error::Error;
use vmkeep_types::nearest;
use vmkeep_types::vm::{Switch, VmSpec};

use crate::domain::BuildInput;
use crate::domain::tree::{self, Element, el};

/// The element, and what its overlaid features were before the overlay: the choice is kept without it.
pub struct Cpu {
    pub element: Element,
    /// Feature to its policy in the model, or none.
    pub overlaid: Vec<(String, Option<String>)>,
}

pub fn cpu(input: &BuildInput<'_>, warnings: &mut Vec<String>) -> Result<Cpu, Error> {
    let spec = &input.order.spec;
    let mut element = base(input, warnings)?;
    element.children.retain(|c| c.name != "topology");
    let mut overlaid = Vec::new();
    for (feature, switch) in &spec.cpu.features {
        let before = element.all("feature").find(|f| f.get("name") == Some(feature)).and_then(|f| f.get("policy")).map(str::to_owned);
        element.children.retain(|c| !(c.name == "feature" && c.get("name") == Some(feature)));
        let policy = match switch {
            Switch::On => "require",
            Switch::Off => "disable",
        };
        element.children.push(el("feature").attr("policy", policy).attr("name", feature));
        overlaid.push((feature.clone(), before));
    }
    let at = element.children.iter().position(|c| c.name == "feature").unwrap_or(element.children.len());
    element.children.insert(at, topology(spec));
    Ok(Cpu { element, overlaid })
}

fn base(input: &BuildInput<'_>, warnings: &mut Vec<String>) -> Result<Element, Error> {
    let (choices, host, model) = (&input.order.choices, input.host, input.order.spec.cpu.model.as_str());
    let same_kind = choices.domain_type.as_deref().is_none_or(|t| t == host.domain_type);
    if let (true, "auto" | "cluster", Some(xml)) = (same_kind, model, &choices.cpu_xml) {
        return tree::parse(xml);
    }
    let maximum = || el("cpu").attr("mode", "maximum").attr("check", "none").attr("migratable", "on");
    match model {
        "auto" | "cluster" if host.has_kvm() => {
            let by_libvirt = || el("cpu").attr("mode", "host-model").attr("check", "partial");
            Ok(host.host_cpu.clone().unwrap_or_else(by_libvirt))
        }
        "host" if host.has_kvm() => Ok(el("cpu").attr("mode", "host-passthrough").attr("check", "none").attr("migratable", "on")),
        "host" => {
            warnings.push("cpu.model: host needs hardware virtualisation; the CPU is QEMU's best one (max)".into());
            Ok(maximum())
        }
        "auto" | "cluster" | "max" => Ok(maximum()),
        name => named(input, name),
    }
}

fn named(input: &BuildInput<'_>, name: &str) -> Result<Element, Error> {
    let known = &input.host.cpu_models;
    if !known.is_empty() && !known.contains(name) {
        let words: Vec<&str> = known.iter().map(String::as_str).collect();
        let near = nearest::nearest(name, words).map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
        return Err(Error::invalid(format!("cpu.model: QEMU on this host knows no CPU '{name}'{near}"))
            .hint("`virsh domcapabilities` lists the models; auto takes the host's"));
    }
    let model = el("model").attr("fallback", "forbid").text(name);
    Ok(el("cpu").attr("mode", "custom").attr("match", "exact").attr("check", "partial").child(model))
}

/// One socket unless told otherwise: licences and NUMA-aware guests count sockets.
fn topology(spec: &VmSpec) -> Element {
    let (threads, sockets) = (spec.cpus.threads.unwrap_or(1).max(1), spec.cpus.sockets.unwrap_or(1).max(1));
    let cores = spec.cpus.cores.unwrap_or_else(|| spec.cpus.max() / threads.saturating_mul(sockets).max(1)).max(1);
    el("topology").attr("sockets", sockets).attr("cores", cores).attr("threads", threads)
}
