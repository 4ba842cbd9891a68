//! Every reader of XML that came from libvirt, in a row: what `tests/mutated.rs` and `fuzz/` throw text at. Others may have
//! edited that XML, and a guest may have had a word in it.

use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkSpec;
use vmkeep_types::record::VmChoices;

use crate::hypervisor::xml as hv;
use crate::net::host::{Forward6, NatHost};
use crate::net::nat;
use crate::{domain, http};

/// How the two readers that may refuse took it.
#[derive(Debug)]
pub struct Taken {
    pub adopted: Result<(), Error>,
    pub compared: Result<domain::Comparison, Error>,
}

/// Reads `xml` as a domain and as a network, and compares it with `wanted`.
pub fn read(xml: &str, wanted: &str) -> Taken {
    let spec: NetworkSpec = serde_json::from_value(serde_json::json!({"name": "default"})).expect("a name is a whole network");
    let disk = vmkeep_types::vm::Disk::root_name();
    drop(domain::parse_metadata(xml));
    drop(domain::choices_from(xml, &VmChoices::default()));
    drop(domain::disk_target(xml, &disk));
    drop(domain::live_plan(wanted, xml));
    drop(domain::live_plan(xml, wanted));
    drop(http::xml::facts(xml));
    drop((hv::with_prefix(xml), hv::without_prefix(xml), hv::vnc_socket(xml), hv::network_settings(xml)));
    drop((hv::network_with_identity(xml, wanted), hv::network_with_identity(wanted, xml)));
    hv::agent_connected(xml);
    let host = NatHost { routes: Vec::new(), forward6: Forward6::Safe, fresh: uuid::Uuid::nil() };
    drop(nat::describe(&Name::known("default"), &spec, "vmkeep-default", Some(xml), &host));
    Taken { adopted: domain::adopt(xml, xml, None).map(drop), compared: domain::compare(wanted, xml) }
}
