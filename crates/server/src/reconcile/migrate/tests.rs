//! From what a migration begins.

use std::collections::BTreeMap;

use serde::Serialize;
use vmkeep_store::{KeyValue, keys};
use vmkeep_types::ids::{Epoch, Generation, OperationId, Revision, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::observed::{Doing, DomainState, Observed, RestartCount, Seen, VmMemory};
use vmkeep_types::record::{Owner, VmChoices};

use super::{Guest, guest};
use crate::reconcile::view::ClusterView;

fn kv<T: Serialize>(key: String, value: &T) -> KeyValue {
    KeyValue { key, value: serde_json::to_vec(value).expect("plain data"), created: Revision(1), modified: Revision(1) }
}

/// What a VM is taken for whose node said this of it last.
fn check(domain: DomainState, doing: Option<Doing>) -> String {
    let (vm, node) = (VmId(uuid::Uuid::from_u128(1)), Name::known("a"));
    let owner = Owner { vm, project: Name::known("default"), node: node.clone(), epoch: Epoch(1), generation: Generation(4), to: None };
    let seen = Seen {
        vm,
        generation: Generation(4),
        epoch: Epoch(1),
        spec_revision: Revision(1),
        power_cycle: 0,
        ordered_cycle: 0,
        domain: Observed::Known(domain),
        paused: None,
        addresses: BTreeMap::new(),
        doing,
        held: None,
        error: None,
        steps: Vec::new(),
        choices: VmChoices::default(),
        pending: Vec::new(),
        drift: Vec::new(),
        conflicts: Vec::new(),
        qemu: None,
        volumes: BTreeMap::new(),
        also_open: None,
        restarts: RestartCount::default(),
        memory: VmMemory::default(),
        since: jiff::Timestamp::UNIX_EPOCH,
        warnings: Vec::new(),
    };
    let view = ClusterView::new(Revision(1), &[kv(keys::owner(vm), &owner), kv(keys::seen(&node, vm), &seen)]).0;
    match guest(&view, vm) {
        Guest::Now(travel) => format!("{travel:?}"),
        Guest::Busy(why) => why.to_owned(),
    }
}

#[test]
fn a_word_of_the_last_migration_is_no_word_of_now() {
    let moving = || Some(Doing::Moving { op: OperationId(uuid::Uuid::from_u128(7)) });
    assert_eq!(check(DomainState::Running, None), "Running");
    assert_eq!(check(DomainState::Paused, None), "Paused");
    let waits = "its node has not looked at it since its last migration";
    assert_eq!(check(DomainState::Paused, moving()), waits);
    assert_eq!(check(DomainState::Running, moving()), waits);
}
