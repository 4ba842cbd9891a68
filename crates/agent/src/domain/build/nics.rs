//! NICs.

use vmkeep_types::error::Error;
use vmkeep_types::vm::{AutoU32, Link, Nic, NicModel};

use super::{alias, boot_order};
use crate::domain::BuildInput;
use crate::domain::tree::{Element, el};

/// More queues than this help no guest and cost interrupts.
const QUEUES_AUTO_MAX: u32 = 8;

pub fn nics(input: &BuildInput<'_>) -> Result<Vec<Element>, Error> {
    input.order.spec.nics.iter().map(|nic| interface(input, nic)).collect()
}

fn interface(input: &BuildInput<'_>, nic: &Nic) -> Result<Element, Error> {
    let attach = input.nics.get(&nic.name).ok_or_else(|| Error::internal(format!("nics[{}]: there is no network for it", nic.name)))?;
    let (kind, source) = match (&attach.libvirt_network, &attach.bridge) {
        (Some(network), _) => ("network", el("source").attr("network", network)),
        (None, Some(bridge)) => ("bridge", el("source").attr("bridge", bridge)),
        (None, None) => return Err(Error::internal(format!("nics[{}]: network {} leads nowhere", nic.name, nic.network))),
    };
    let chosen = input.order.choices.macs.get(&nic.name).cloned();
    let mac = if nic.mac == "auto" { chosen } else { Some(nic.mac.to_ascii_lowercase()) };
    let mtu = match nic.mtu {
        AutoU32::Is(n) => Some(n),
        AutoU32::Auto => attach.mtu,
    };
    let state = match nic.link {
        Link::Up => "up",
        Link::Down => "down",
    };
    let element = el("interface").attr("type", kind).children(mac.map(|m| el("mac").attr("address", m))).child(source);
    Ok(element
        .child(el("model").attr("type", model(input, nic)))
        .children(driver(input, nic))
        .children(mtu.map(|n| el("mtu").attr("size", n)))
        .child(el("link").attr("state", state))
        .children(boot_order(&input.order.spec, &nic.name))
        .child(alias(&format!("ua-nic-{}", nic.name))))
}

fn model(input: &BuildInput<'_>, nic: &Nic) -> &'static str {
    match nic.model(input.order.spec.os) {
        NicModel::Virtio => "virtio",
        NicModel::E1000e => "e1000e",
        NicModel::Rtl8139 => "rtl8139",
    }
}

/// Several queues pay only when the kernel serves them (vhost), so without it `auto` is one.
fn driver(input: &BuildInput<'_>, nic: &Nic) -> Option<Element> {
    let vhost = input.host.has_kvm() && input.host.vhost_net;
    let queues = match nic.queues {
        AutoU32::Is(n) => n,
        AutoU32::Auto if vhost => input.order.spec.cpus.max().min(QUEUES_AUTO_MAX),
        AutoU32::Auto => 1,
    };
    let several = model(input, nic) == "virtio" && queues > 1;
    several.then(|| el("driver").attr_if("name", vhost.then_some("vhost")).attr("queues", queues))
}
