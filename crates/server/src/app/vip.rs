//! The API's one address: what is wished. keepalived on the control nodes carries it out.

use std::net::Ipv4Addr;

use vmkeep_store::{Op, Store, Txn, keys, typed};
use vmkeep_types::cluster::Vip;
use vmkeep_types::error::Error;

use super::cluster::members;
use super::{commit, get};

/// Of an interface's name: the kernel's limit.
const INTERFACE_CHARS_MAX: usize = 15;

/// # Errors
/// The store's.
pub async fn show(store: &dyn Store) -> Result<Option<Vip>, Error> {
    Ok(get::<Vip>(store, keys::CLUSTER_VIP).await?.map(|found| found.value))
}

/// # Errors
/// It is no such address, or a member's; the store's.
pub async fn set(store: &dyn Store, vip: &Vip) -> Result<(), Error> {
    let ip = ip(vip)?;
    let interface = |name: &String| {
        !name.is_empty() && name.len() <= INTERFACE_CHARS_MAX && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    if let Some(name) = vip.interface.as_ref().filter(|name| !interface(name)) {
        return Err(Error::invalid(format!("'{name}' is no interface")));
    }
    let members = members(store).await?;
    if members.is_empty() {
        return Err(Error::refused("this host is in no cluster").hint("one host is reached at its own address"));
    }
    if let Some(member) = members.iter().find(|member| member.address == ip.to_string()) {
        return Err(Error::conflict(format!("{ip} is the address of '{}' itself", member.node)).hint("give one that nobody has"));
    }
    commit(store, Txn::default().then(typed::put(keys::CLUSTER_VIP, vip))).await.map(drop)
}

/// # Errors
/// The store's.
pub async fn clear(store: &dyn Store) -> Result<(), Error> {
    commit(store, Txn::default().then(Op::Delete(keys::CLUSTER_VIP.into()))).await.map(drop)
}

/// The address without its network.
///
/// # Errors
/// It is none that others can use.
pub fn ip(vip: &Vip) -> Result<Ipv4Addr, Error> {
    let wrong =
        || Error::invalid(format!("'{}' is no address with its network", vip.address)).hint("write it like 10.0.0.100/24; IPv4 only");
    let (ip, length) = vip.address.split_once('/').ok_or_else(wrong)?;
    let (ip, length): (Ipv4Addr, u8) = (ip.parse().map_err(|_| wrong())?, length.parse().map_err(|_| wrong())?);
    if !(1..=32).contains(&length) || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
        return Err(wrong());
    }
    Ok(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let of = |text: &str| ip(&Vip { address: text.into(), interface: None }).map(|ip| ip.to_string()).unwrap_or_default();
        assert_eq!(of("10.0.0.100/24"), "10.0.0.100");
        for bad in ["", "10.0.0.1", "10.0.0.1/33", "10.0.0.1/0", "127.0.0.1/8", "fd00::1/64", "x/24", "224.0.0.1/4"] {
            assert_eq!(of(bad), "", "{bad}");
        }
    }
}
