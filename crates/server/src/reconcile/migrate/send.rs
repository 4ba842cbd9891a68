//! A VM is told to go by the leader itself: for a drain, or for high availability.

use vmkeep_core::migrate::TIMEOUT_SECONDS;
use vmkeep_store::{Compare, Txn, keys, typed};
use vmkeep_types::ids::{OperationId, Revision};
use vmkeep_types::migration::{MigrateOptions, Migration, MovePhase};
use vmkeep_types::operation::{OpState, Operation, Wanted};
use vmkeep_types::record::VmRecord;

use crate::app::vm_migrate::KIND;
use crate::app::vm_parts::resource;
use crate::reconcile::vm::op_key;

/// Where to, for whom, and why.
pub struct Sent<'a> {
    pub options: MigrateOptions,
    pub by: &'a str,
    /// The first step of its operation.
    pub step: String,
}

/// Adds the wish and its operation, whose id is told, to a transaction.
pub fn send(txn: Txn, vm: &VmRecord, wish: Revision, sent: Sent<'_>, now: jiff::Timestamp) -> (Txn, OperationId) {
    let op = Operation {
        id: OperationId(uuid::Uuid::now_v7()),
        project: vm.project.clone(),
        kind: KIND.into(),
        resource: resource(vm),
        state: OpState::Pending,
        steps: vec![sent.step],
        progress: None,
        copying: None,
        blocked: None,
        error: None,
        wanted: Wanted::Moved,
        by: sent.by.to_owned(),
        created_at: now,
        ended_at: None,
    };
    let migration = Migration {
        op: op.id,
        vm: vm.id,
        project: vm.project.clone(),
        options: sent.options,
        phase: MovePhase::Asked,
        way: None,
        stop: None,
        broke: None,
        deadline: now.checked_add(jiff::SignedDuration::from_secs(TIMEOUT_SECONDS)).unwrap_or(jiff::Timestamp::MAX),
    };
    let txn = txn
        .when(Compare::ModifiedAt(keys::vm(&vm.project, vm.id), wish))
        .when(Compare::Absent(keys::migration(vm.id)))
        .then(typed::put(keys::migration(vm.id), &migration))
        .then(typed::put(op_key(&op), &op));
    (txn, op.id)
}
