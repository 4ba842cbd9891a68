//! The index of domain names and MACs, completed once for what an older vmkeep wrote without it.

use std::collections::BTreeSet;

use vmkeep_store::{Compare, Store, StoreError, Txn, keys, typed};
use vmkeep_types::ids::VmId;
use vmkeep_types::record::{VmChoices, VmRecord};

use super::vm_resolve::{chosen_macs, fixed_macs};

/// Each entry is written if it is absent, then the mark that all are there. A crash in between begins again.
///
/// # Errors
/// The store's.
pub async fn complete(store: &dyn Store) -> Result<(), StoreError> {
    if store.get(keys::INDEXED).await?.is_some() {
        return Ok(());
    }
    let there: BTreeSet<String> = store.list_many(&[keys::ALL_DOMAINS, keys::ALL_MACS]).await?.items.into_iter().map(|kv| kv.key).collect();
    for record in typed::list_readable::<VmRecord>(store, keys::ALL_VMS).await? {
        let vm = record.value;
        let chosen = typed::get_json::<VmChoices>(store, &keys::choices(vm.id)).await?.map(|kept| kept.value).unwrap_or_default();
        let macs = fixed_macs(&vm.spec).into_iter().chain(chosen_macs(&chosen)).map(|mac| keys::mac(&mac));
        for key in macs.chain([keys::domain(&vm.spec.name)]).filter(|key| !there.contains(key)) {
            enter(store, key, vm.id).await?;
        }
    }
    store.txn(Txn::default().then(typed::put(keys::INDEXED, &true))).await.map(drop)
}

async fn enter(store: &dyn Store, key: String, vm: VmId) -> Result<(), StoreError> {
    store.txn(Txn::default().when(Compare::Absent(key.clone())).then(typed::put(key, &vm))).await.map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vmkeep_store::Op;
    use vmkeep_store::embedded::EmbeddedStore;

    use super::*;

    #[tokio::test]
    async fn what_was_written_without_an_index_is_entered_once() {
        let store = EmbeddedStore::in_memory().expect("memory");
        let id = VmId(uuid::Uuid::from_u128(1));
        let record = json!({
            "id": id, "project": "default", "created_at": "2026-01-01T00:00:00Z", "origin": "created", "volumes": {}, "leaving": null,
            "spec": {"name": "web1", "nics": [{"name": "lan", "mac": "52:54:00:00:00:0A"}, {"name": "wan"}]},
        });
        let choices = VmChoices { macs: [("wan".parse().expect("a name"), "52:54:00:00:00:0b".to_owned())].into(), ..VmChoices::default() };
        let project = "default".parse().expect("a name");
        let old = Txn::default()
            .then(Op::Put(keys::vm(&project, id), serde_json::to_vec(&record).expect("JSON")))
            .then(typed::put(keys::choices(id), &choices));
        store.txn(old).await.expect("written");
        complete(&store).await.expect("completed");
        let index = store.list_many(&[keys::ALL_DOMAINS, keys::ALL_MACS]).await.expect("a list").items;
        let index: Vec<&str> = index.iter().map(|kv| kv.key.as_str()).collect();
        assert_eq!(index, ["domain/web1", "mac/52:54:00:00:00:0a", "mac/52:54:00:00:00:0b"]);
        let at = store.revision().await.expect("a revision");
        complete(&store).await.expect("nothing to do");
        assert_eq!(store.revision().await.expect("a revision"), at);
    }
}
