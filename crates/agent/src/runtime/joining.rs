//! The life of the node that stands in the store when an agent starts, and whether the next one may begin.
//!
//! | it was | this boot | another boot |
//! |---|---|---|
//! | not armed | goes on; sealed and proved dead: what others own by now is ended here, then the next | that boot was its end, unless its heartbeat goes on |
//! | armed | goes on; sealed: only a reset leads on | waits until its end is proved |
//! | closed by its own goodbye | the next | the next |
//!
//! What decides is `core::ha::life`. A host alone has nobody who could take its VMs: it begins anew with each boot.

use vmkeep_core::ha::life::{Before, Boot, Guests, Join, join};
use vmkeep_store::{Compare, Op, StoreError, Txn, keys, typed};
use vmkeep_types::host::EpochRecord;
use vmkeep_types::ids::Revision;
use vmkeep_types::record::Owner;

use super::node::Node;
use super::standing::Life;

/// What must hold when the next life begins, beside that the record is unchanged.
///
/// # Errors
/// It may not begin now, and why; the store's.
pub async fn judge(node: &Node, record: &EpochRecord, read_at: Revision, before: &Before) -> Result<Option<Compare>, StoreError> {
    if node.config.peers.is_none() {
        return Ok(None);
    }
    if before.boot == Boot::Another && !before.armed {
        if !before.closed {
            node.wait_for_silence().await?;
        }
        return Ok(None);
    }
    let was_taken = before.boot == Boot::This && before.sealed && !before.armed;
    let guests = if was_taken { end_strays(node).await? } else { Guests::None };
    let (name, epoch) = (&node.name, record.epoch);
    let no = |why: String| Err(StoreError::Unavailable(why));
    match join(*before, guests) {
        Join::GoOn => Ok(None),
        Join::Next if before.closed => Ok(None),
        Join::Next => Ok(Some(Compare::Present(keys::confirmed(name, epoch)))),
        Join::Ended => {
            node.config.guard.sealed().await;
            node.standing.set_life(Life::Sealed);
            no(format!("the cluster has ended this life of {name}: the host must be reset"))
        }
        Join::Wait => {
            if before.boot == Boot::Another {
                let same = Compare::ModifiedAt(keys::epoch(name), read_at);
                node.store.txn(Txn::default().when(same).then(Op::Put(keys::waiting(name), Vec::new()))).await?;
            }
            no(format!("{name} waits for the proof that its life before has ended (epoch {epoch}): vmkeep ha status"))
        }
    }
}

/// Ends the guests of VMs that this node does not own any more: they may run elsewhere.
async fn end_strays(node: &Node) -> Result<Guests, StoreError> {
    let Ok(domains) = node.hv.list().await else { return Ok(Guests::Some) };
    let mut guests = Guests::None;
    for domain in domains.iter().filter(|domain| domain.is_our_guest()) {
        let owner = typed::get_json::<Owner>(node.store.as_ref(), &keys::owner(domain.uuid)).await?;
        if owner.is_some_and(|owner| owner.value.node == node.name) {
            continue;
        }
        tracing::error!(vm = %domain.name, "it is another node's by now, and is ended here");
        if node.hv.destroy(domain.uuid).await.is_err() {
            guests = Guests::Some;
        }
    }
    Ok(guests)
}
