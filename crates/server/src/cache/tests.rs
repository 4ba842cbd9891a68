use super::*;

#[test]
fn keys_that_a_view_is_made_of() {
    let id = VmId(uuid::Uuid::from_u128(1));
    let uid = id.to_string();
    for key in ["vm/default/U", "power/U", "owner/U", "choices/U", "n/node1/seen/U"] {
        assert_eq!(vm_of(&key.replace('U', &uid)), Some(id), "{key}");
    }
    for key in ["n/node1/order/U", "own/node1/U", "volume/default/U", "vm/default/x", "power/U/x", "op/default/U", ""] {
        assert_eq!(vm_of(&key.replace('U', &uid)), None, "{key}");
    }
}
