//! libvirt networks: made, redefined when their description changed, removed.

use virt_sys as sys;

use super::conn::{Conn, c_string};
use super::error::{check, last, said, take_text};
use crate::hypervisor::HvError;
use crate::hypervisor::xml;

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
