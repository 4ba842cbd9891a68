//! What libvirt has otherwise than was wished.

use vmkeep_types::network::NetworkSpec;

use super::*;
use crate::hypervisor::fake::Fault;
use crate::hypervisor::{HvError, LiveChange, UndefineKeep};

#[tokio::test]
async fn a_network_that_has_changed_is_no_drift_of_its_vms() {
    let mut bed = Bed::new(json!({"nics": [{"name": "lan"}]})).await;
    let network = |mtu: Option<u32>| -> NetworkSpec { serde_json::from_value(json!({"name": "default", "mtu": mtu})).expect("a network") };
    bed.give(|order| drop(order.networks.insert(Name::known("default"), network(None)))).await;
    let before = bed.until("it runs", |seen| seen.domain == Observed::Known(DomainState::Running) && seen.memory.networks.is_some()).await;
    bed.give(|order| drop(order.networks.insert(Name::known("default"), network(Some(9000))))).await;
    let seen = bed.until("it is taken in", |seen| seen.memory.networks != before.memory.networks && !seen.pending.is_empty()).await;
    let told = |changes: &[FieldChange]| changes.iter().map(|c| format!("{} {}", c.field, c.to)).collect::<Vec<_>>();
    assert_eq!((told(&seen.drift), told(&seen.pending)), (vec![], vec!["nics[lan].mtu 9000".to_owned()]));
    assert!(bed.hv.xml(VM, XmlKind::Inactive).await.expect("xml").contains("9000"));
}

#[tokio::test]
async fn what_changed_in_the_running_domain_only_is_drift_and_mended() {
    let mut bed = Bed::running(json!({"cpus": {"count": 1, "max": 4}, "memory": {"size": "64M", "max": "128M"}})).await;
    bed.hv.change(VM, LiveChange::MemoryKib(32 << 10)).await.expect("it runs");
    bed.nudge();
    let seen = bed.until("the drift shows", |seen| !seen.drift.is_empty()).await;
    assert_eq!(fields(&seen.drift), ["memory.size: 32M -> 64M"]);
    bed.edit(|_| ()).await;
    let seen = bed.until("it is mended", |seen| seen.drift.is_empty() && seen.memory.applied == Revision(2)).await;
    assert_eq!(seen.steps, ["memory.size changed from 32M to 64M"]);
    bed.until_event("vm.drift-over").await;
    // More than wished is what a guest has that did not hear the balloon yet.
    bed.hv.change(VM, LiveChange::MemoryKib(128 << 10)).await.expect("it runs");
    bed.hv.set_autostart(VM, true).await.expect("it exists");
    bed.nudge();
    bed.until_event("vm.autostart").await;
    assert_eq!(bed.until("a word", |_| true).await.drift, vec![]);
}

#[tokio::test]
async fn a_change_that_libvirt_refused_waits_and_is_no_drift() {
    let mut bed = Bed::running(json!({"cpus": {"count": 1, "max": 4}})).await;
    bed.hv.fault_next("change", Fault::Fail(HvError::Refused("not now".into())));
    bed.edit(|spec| spec.cpus.count = 2).await;
    let waits = ["cpus.count: 1 -> 2".to_owned()];
    bed.until("it waits", |seen| fields(&seen.pending) == waits).await;
    bed.hv.set_autostart(VM, true).await.expect("it exists");
    bed.nudge();
    bed.until_event("vm.autostart").await;
    let seen = bed.until("a word", |_| true).await;
    assert_eq!((fields(&seen.pending).as_slice(), seen.drift), (waits.as_slice(), vec![]));
}

#[tokio::test]
async fn a_running_domain_that_was_undefined_is_drift() {
    let bed = Bed::running(json!({})).await;
    bed.hv.undefine(VM, UndefineKeep::State).await.expect("undefined");
    let seen = bed.until("it is noticed", |seen| !seen.drift.is_empty()).await;
    assert_eq!(seen.drift[0].field, "domain");
    assert_eq!(seen.domain, Observed::Known(DomainState::Running));
}

/// What was compared once is not compared again, but a domain that went and came back was never compared as gone.
#[tokio::test]
async fn what_somebody_puts_back_as_it_was_is_no_drift_any_more() {
    let mut bed = Bed::new(json!({})).await;
    bed.give(|order| order.power.want = PowerWish::Off).await;
    bed.until("it is defined", |seen| seen.memory.applied == Revision(1) && seen.also_open.is_some()).await;
    let there = bed.hv.xml(VM, XmlKind::Inactive).await.expect("it is defined");
    bed.hv.undefine(VM, UndefineKeep::State).await.expect("undefined");
    bed.until("it is missed", |seen| seen.drift.first().is_some_and(|drift| drift.field == "domain")).await;
    bed.hv.define(&there, Words::Ours).await.expect("defined");
    bed.until("it is back", |seen| seen.drift.is_empty()).await;
    let other = there.replace(">65536<", ">32768<");
    assert_ne!(other, there);
    bed.hv.define(&other, Words::Ours).await.expect("defined");
    bed.until("it is changed", |seen| !seen.drift.is_empty()).await;
    bed.hv.define(&there, Words::Ours).await.expect("defined");
    bed.until("it is put back", |seen| seen.drift.is_empty()).await;
}
