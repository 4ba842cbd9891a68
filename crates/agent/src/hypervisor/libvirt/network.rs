//! libvirt networks: made, redefined when their description changed, removed.

use virt_sys as sys;

use super::conn::{Conn, c_string};
use super::error::{check, last, said, take_text, text};
use crate::hypervisor::{HostChange, HvError, Lease, xml};

struct Network(sys::virNetworkPtr);

impl Drop for Network {
    fn drop(&mut self) {
        // SAFETY: we own the reference.
        unsafe { sys::virNetworkFree(self.0) };
    }
}

/// Defined as wanted, active, and started with libvirt.
///
/// A change of a network in use is stored; it takes effect when the network is ensured without guests on it: restarting it would
/// cut them off.
pub fn ensure(conn: &Conn, name: &str, wanted: &str) -> Result<(), HvError> {
    let network = match find(conn, name)? {
        None => define(conn, wanted)?,
        Some(present) => {
            let network = define(conn, &xml::network_with_identity(wanted, &present.xml(sys::VIR_NETWORK_XML_INACTIVE)?))?;
            if network.is_active()? && xml::network_settings(&network.xml(0)?) != network.xml(sys::VIR_NETWORK_XML_INACTIVE)? {
                if network.ports()? == 0 {
                    // SAFETY: our handle.
                    check(unsafe { sys::virNetworkDestroy(network.0) }, None)?;
                } else {
                    tracing::warn!(network = name, "changed, but guests are on it: the change takes effect when they are off");
                }
            }
            network
        }
    };
    // SAFETY: our handle.
    unsafe {
        check(sys::virNetworkSetAutostart(network.0, 1), None)?;
        if !network.is_active()? {
            check(sys::virNetworkCreate(network.0), None)?;
        }
    }
    Ok(())
}

pub fn stored_xml(conn: &Conn, name: &str) -> Result<Option<String>, HvError> {
    find(conn, name)?.map(|network| network.xml(sys::VIR_NETWORK_XML_INACTIVE)).transpose()
}

pub fn stored_xml_if_active(conn: &Conn, name: &str) -> Result<Option<String>, HvError> {
    let Some(network) = find(conn, name)? else { return Ok(None) };
    if network.is_active()? { network.xml(sys::VIR_NETWORK_XML_INACTIVE).map(Some) } else { Ok(None) }
}

/// Absent is fine.
pub fn remove(conn: &Conn, name: &str) -> Result<(), HvError> {
    let Some(network) = find(conn, name)? else { return Ok(()) };
    // SAFETY: our handle.
    unsafe {
        if network.is_active()? {
            check(sys::virNetworkDestroy(network.0), None)?;
        }
        check(sys::virNetworkUndefine(network.0), None)?;
    }
    Ok(())
}

/// An entry that is to go and is gone already is left; the others are changed where the network runs and where it is stored.
pub fn change_hosts(conn: &Conn, name: &str, changes: &[HostChange]) -> Result<(), HvError> {
    let Some(network) = find(conn, name)? else { return Err(HvError::WrongState(format!("libvirt has no network '{name}'"))) };
    let live = if network.is_active()? { sys::VIR_NETWORK_UPDATE_AFFECT_LIVE } else { 0 };
    for change in changes {
        let (add, remove) = (sys::VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, sys::VIR_NETWORK_UPDATE_COMMAND_DELETE);
        let (dhcp, dns) = (sys::VIR_NETWORK_SECTION_IP_DHCP_HOST, sys::VIR_NETWORK_SECTION_DNS_HOST);
        let (command, section, xml) = match change {
            HostChange::Add(xml) => (add, dhcp, xml),
            HostChange::Remove(xml) => (remove, dhcp, xml),
            HostChange::AddName(xml) => (add, dns, xml),
            HostChange::RemoveName(xml) => (remove, dns, xml),
        };
        let xml = c_string(xml)?;
        let flags = live | sys::VIR_NETWORK_UPDATE_AFFECT_CONFIG;
        // SAFETY: our handle, a C string.
        let made = unsafe { sys::virNetworkUpdate(network.0, command, section, -1, xml.as_ptr(), flags) };
        match (check(made, None), change) {
            (Ok(_), _) => {}
            (Err(error), HostChange::Remove(_) | HostChange::RemoveName(_)) => {
                tracing::debug!(network = name, "an entry is gone already: {error}");
            }
            (Err(error), HostChange::Add(_) | HostChange::AddName(_)) => return Err(error),
        }
    }
    Ok(())
}

pub fn leases(conn: &Conn, name: &str) -> Result<Vec<Lease>, HvError> {
    let Some(network) = find(conn, name)? else { return Ok(Vec::new()) };
    if !network.is_active()? {
        return Ok(Vec::new());
    }
    let mut array: *mut sys::virNetworkDHCPLeasePtr = std::ptr::null_mut();
    // SAFETY: libvirt fills the array of records; each is ours, with the strings in it.
    unsafe {
        let n = check(sys::virNetworkGetDHCPLeases(network.0, std::ptr::null(), &mut array, 0), None)?;
        let mut leases = Vec::new();
        for i in 0..n as usize {
            let record = *array.add(i);
            let address = text((*record).ipaddr).and_then(|ip| ip.parse().ok());
            leases.extend(text((*record).mac).zip(address).map(|(mac, address)| Lease { mac, address }));
            sys::virNetworkDHCPLeaseFree(record);
        }
        libc::free(array.cast());
        Ok(leases)
    }
}

fn find(conn: &Conn, name: &str) -> Result<Option<Network>, HvError> {
    let c_name = c_string(name)?;
    // SAFETY: a C string, a live connection.
    let ptr = unsafe { sys::virNetworkLookupByName(conn.ptr(), c_name.as_ptr()) };
    if !ptr.is_null() {
        return Ok(Some(Network(ptr)));
    }
    let said = said();
    if said.code == sys::VIR_ERR_NO_NETWORK { Ok(None) } else { Err(said.meaning(None)) }
}

fn define(conn: &Conn, xml: &str) -> Result<Network, HvError> {
    let xml = c_string(xml)?;
    // SAFETY: a C string, a live connection.
    let ptr = unsafe { sys::virNetworkDefineXML(conn.ptr(), xml.as_ptr()) };
    if ptr.is_null() { Err(last(None)) } else { Ok(Network(ptr)) }
}

impl Network {
    fn is_active(&self) -> Result<bool, HvError> {
        // SAFETY: our handle.
        Ok(check(unsafe { sys::virNetworkIsActive(self.0) }, None)? == 1)
    }

    fn xml(&self, flags: u32) -> Result<String, HvError> {
        // SAFETY: our handle.
        unsafe { take_text(sys::virNetworkGetXMLDesc(self.0, flags), None) }
    }

    /// NICs of guests on it.
    fn ports(&self) -> Result<usize, HvError> {
        // SAFETY: with a null array libvirt only counts.
        let n = check(unsafe { sys::virNetworkListAllPorts(self.0, std::ptr::null_mut(), 0) }, None)?;
        Ok(usize::try_from(n).unwrap_or_default())
    }
}
