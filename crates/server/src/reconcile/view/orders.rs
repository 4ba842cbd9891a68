//! What nodes are told and what they say, as far as it is needed to decide: a large cluster has 20 000 of each.

use vmkeep_store::{KeyValue, keys};
use vmkeep_types::addresses::Form;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::observed::Seen;
use vmkeep_types::order::Order;
use vmkeep_types::record::VmChoices;

use super::{ClusterView, Kept, Touched, decode, keep, touch_vm};

impl ClusterView {
    pub(super) fn put_order(&mut self, node: &Name, id: &str, kv: &KeyValue, touched: &mut Touched) {
        let digest = decode(kv).map(|kept: Kept<Order>| kept.value.digest());
        if let (Ok(id), Some(digest)) = (id.parse::<VmId>(), digest) {
            self.nodes.entry(node.clone()).or_default().orders.insert(id, digest);
            touch_vm(touched, id);
        }
    }

    pub(super) fn put_seen(&mut self, node: &Name, id: &str, kv: &KeyValue, touched: &mut Touched) {
        let keys = self.nodes.entry(node.clone()).or_default();
        let Some(id) = keep(&mut keys.seen, id, kv) else { return };
        forget_kept(keys.seen.get_mut(&id).expect("it was just put there"), self.choices.get(&id));
        touch_vm(touched, id);
    }

    pub(super) fn forget_what_is_kept(&mut self, id: VmId) {
        let Some(node) = self.owners.get(&id).map(|owner| &owner.value.node) else { return };
        if let Some(seen) = self.nodes.get_mut(node).and_then(|keys| keys.seen.get_mut(&id)) {
            forget_kept(seen, self.choices.get(&id));
        }
    }

    /// The level that is written; a store that does not say has the newest.
    pub fn level(&self) -> u64 {
        self.level.unwrap_or(keys::LEVEL_NOW)
    }

    /// As all members read it.
    pub fn in_form(&self, choices: VmChoices) -> VmChoices {
        let form = if self.level() >= keys::LEVEL_SHORT { Form::Short } else { Form::Long };
        VmChoices { addresses: choices.addresses.in_form(form), ..choices }
    }
}

/// What was chosen on the node is kept by now, nearly always, and says nothing new a second time.
fn forget_kept(seen: &mut Kept<Seen>, kept: Option<&Kept<VmChoices>>) {
    if kept.is_some_and(|kept| kept.value == seen.value.choices) {
        seen.value.choices = VmChoices::default();
    }
}
