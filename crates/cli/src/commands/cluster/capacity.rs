//! `cluster capacity`: what may fail.

use vmkeep_api::place::{CapacityAnswer, CapacityBreak, CpuBaseline, CpuStranger, NodeRoom};
use vmkeep_types::name::Name;

use crate::commands::joined;
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Format};

/// VMs that are named one by one.
const NAMES_MAX: usize = 5;

pub async fn run(ctx: &Ctx) -> Result<(), Failure> {
    let answer: CapacityAnswer = ctx.call("place.capacity")?.answer().await?;
    if !matches!(ctx.printer.format, Format::Table | Format::Wide) {
        return ctx.printer.value(&answer);
    }
    let rows = answer.nodes.iter().map(row).collect();
    ctx.printer.table(&["NODE", "VMS", "MEMORY", "OF", "VCPUS", "OF"], rows);
    ctx.printer.out("");
    ctx.printer.out(&words(&answer));
    Ok(())
}

fn row(room: &NodeRoom) -> Vec<Cell> {
    let limit = |text: Option<String>| Cell::from(text.unwrap_or_else(|| "no limit".into()));
    vec![
        room.node.to_string().into(),
        room.vms.into(),
        room.memory_taken.human().into(),
        limit(room.memory_limit.map(|of| of.human())),
        room.vcpus_taken.to_string().into(),
        limit(room.vcpus_limit.map(|of| of.to_string())),
    ]
}

fn words(answer: &CapacityAnswer) -> String {
    let mut lines = vec![match (answer.nodes.len(), answer.may_fail) {
        (0, _) => "There is no node.".to_owned(),
        (1, _) => "There is one node: if it fails, everything waits for it.".to_owned(),
        (_, 0) => "No node may fail: not everything would fit on the others.".to_owned(),
        (_, 1) => "1 node may fail, and everything still fits on the others (N+1).".to_owned(),
        (_, n) => format!("{n} nodes may fail at once, and everything still fits on the others (N+{n})."),
    }];
    lines.extend(answer.breaks.as_ref().filter(|_| answer.nodes.len() > 1).map(breaks));
    if !answer.all_tried {
        lines.push("Not every set of failed nodes was tried, only those with the fullest ones.".into());
    }
    lines.push(match &answer.largest {
        Some(largest) => {
            format!("Room for one more VM of up to {} of memory with {} vCPUs, on {}.", largest.memory.human(), largest.vcpus, largest.node)
        }
        None => "There is no room for another VM.".into(),
    });
    if answer.homeless > 0 {
        lines.push(format!("{} of {} VMs have no node now: `vmkeep vm explain NAME` says why.", answer.homeless, answer.vms));
    }
    if answer.bound > 0 && answer.nodes.len() > 1 {
        lines.push(format!("{} of {} VMs have their disks on one node only: if that fails they wait for it.", answer.bound, answer.vms));
    }
    lines.extend(answer.cpu.iter().filter(|_| answer.nodes.len() > 1).flat_map(cpu));
    lines.join("\n")
}

/// The CPU of the cluster, and who cannot run what VMs have got.
fn cpu(baseline: &CpuBaseline) -> Vec<String> {
    let features = if baseline.features.is_empty() { String::new() } else { format!(" with {}", baseline.features.join(", ")) };
    let mut lines = vec![match (&baseline.model, &baseline.why_not) {
        (Some(model), _) => format!("CPU of the cluster (cpu: {{model: cluster}}): {model}{features}."),
        (None, why) => format!("There is no CPU of the cluster: {}.", why.as_deref().unwrap_or("no reason is told")),
    }];
    let (shown, more) = baseline.strangers.split_at(baseline.strangers.len().min(NAMES_MAX));
    let told = |found: &CpuStranger| match found.vms {
        1 => format!("1 VM with the CPU of the cluster cannot come to {}: {}.", found.node, found.text),
        n => format!("{n} VMs with the CPU of the cluster cannot come to {}: {}.", found.node, found.text),
    };
    lines.extend(shown.iter().map(told));
    if !more.is_empty() {
        lines.push(format!("The same is so of {} more nodes: `vmkeep cluster capacity -o yaml` tells them all.", more.len()));
    }
    lines
}

fn breaks(found: &CapacityBreak) -> String {
    let (shown, more) = found.left_over.split_at(found.left_over.len().min(NAMES_MAX));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    format!("If {} fail, these find no other: {}{more}.", and(&found.failed), joined(shown))
}

fn and(names: &[Name]) -> String {
    names.iter().map(Name::to_string).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_may_fail_is_said_in_words() {
        let told = |fields: serde_json::Value| {
            let mut whole = json!({"vms": 9, "homeless": 0, "bound": 0, "may_fail": 1, "all_tried": true, "breaks": null, "largest": null, "nodes": []});
            whole.as_object_mut().expect("a map").extend(fields.as_object().expect("a map").clone());
            words(&serde_json::from_value(whole).expect("an answer"))
        };
        let room =
            |node: &str| json!({"node": node, "vms": 3, "memory_taken": "3G", "memory_limit": "8G", "vcpus_taken": 3, "vcpus_limit": 32});
        let largest = json!({"node": "n1", "memory": "5G", "vcpus": 29});
        expect![[r#"
            There is one node: if it fails, everything waits for it.
            Room for one more VM of up to 5G of memory with 29 vCPUs, on n1."#]]
        .assert_eq(&told(json!({"nodes": [room("n1")], "may_fail": 0, "largest": largest, "bound": 3})));
        expect![[r#"
            1 node may fail, and everything still fits on the others (N+1).
            If n1 and n2 fail, these find no other: a, b, c, d, e and 1 more.
            Not every set of failed nodes was tried, only those with the fullest ones.
            There is no room for another VM.
            2 of 9 VMs have no node now: `vmkeep vm explain NAME` says why.
            4 of 9 VMs have their disks on one node only: if that fails they wait for it."#]]
        .assert_eq(&told(json!({
            "nodes": [room("n1"), room("n2"), room("n3")], "all_tried": false, "homeless": 2, "bound": 4,
            "breaks": {"failed": ["n1", "n2"], "left_over": ["a", "b", "c", "d", "e", "f"]}
        })));
        let cpu = |cpu: serde_json::Value| told(json!({"nodes": [room("n1"), room("n2")], "largest": largest, "cpu": cpu}));
        expect![[r#"
            1 node may fail, and everything still fits on the others (N+1).
            Room for one more VM of up to 5G of memory with 29 vCPUs, on n1.
            CPU of the cluster (cpu: {model: cluster}): Haswell-noTSX with pdpe1gb, ssbd.
            3 VMs with the CPU of the cluster cannot come to n2: of the CPU Cooperlake, which all nodes could run when the VM got it, guests cannot have here: avx512f."#]].assert_eq(&cpu(json!({"model": "Haswell-noTSX", "features": ["pdpe1gb", "ssbd"], "why_not": null, "strangers": [
            {"node": "n2", "vms": 3, "text": "of the CPU Cooperlake, which all nodes could run when the VM got it, guests cannot have here: avx512f"}]})));
        expect![[r#"
            1 node may fail, and everything still fits on the others (N+1).
            Room for one more VM of up to 5G of memory with 29 vCPUs, on n1.
            There is no CPU of the cluster: no node has hardware virtualisation."#]]
        .assert_eq(&cpu(json!({"model": null, "features": [], "why_not": "no node has hardware virtualisation", "strangers": []})));
    }
}
