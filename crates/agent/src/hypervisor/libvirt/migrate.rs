//! Sending a domain to another host, peer to peer: this libvirtd talks to the other one, so our end or its answer's loss
//! changes nothing about what becomes of the guest.

use std::ffi::CStr;
use std::net::IpAddr;
use std::os::raw::{c_char, c_int};

use virt_sys as sys;

use super::conn::c_string;
use super::domain::Domain;
use super::error::{check, last, said};
use super::stats::number;
use crate::hypervisor::{HvError, MigrateTo, MigrationStats, StayDisks};

/// libvirt counts bandwidth in MiB per second.
const MIB: u64 = 1 << 20;

/// libvirt's typed parameters; freed with the strings in them.
struct Params {
    list: sys::virTypedParameterPtr,
    count: c_int,
    room: c_int,
}

impl Drop for Params {
    fn drop(&mut self) {
        // SAFETY: nobody else has the list.
        unsafe { sys::virTypedParamsFree(self.list, self.count) };
    }
}

impl Params {
    fn string(&mut self, name: &CStr, value: &str) -> Result<(), HvError> {
        let value = c_string(value)?;
        // SAFETY: libvirt makes and grows the list and copies the string.
        let added = unsafe { sys::virTypedParamsAddString(&mut self.list, &mut self.count, &mut self.room, name.as_ptr(), value.as_ptr()) };
        check(added, None).map(drop)
    }

    fn number(&mut self, name: &CStr, value: u64) -> Result<(), HvError> {
        // SAFETY: as above.
        let added = unsafe { sys::virTypedParamsAddULLong(&mut self.list, &mut self.count, &mut self.room, name.as_ptr(), value) };
        check(added, None).map(drop)
    }

    fn of(to: &MigrateTo) -> Result<Self, HvError> {
        let mut all = Self { list: std::ptr::null_mut(), count: 0, room: 0 };
        all.string(sys::VIR_MIGRATE_PARAM_URI, &to.data)?;
        // Else QEMU would listen on every address of the host.
        if let Some(address) = address(&to.data) {
            all.string(sys::VIR_MIGRATE_PARAM_LISTEN_ADDRESS, &address.to_string())?;
        }
        if let Some(bytes) = to.bandwidth_bytes {
            all.number(sys::VIR_MIGRATE_PARAM_BANDWIDTH, (bytes / MIB).max(1))?;
        }
        for disk in &to.copy_disks {
            all.string(sys::VIR_MIGRATE_PARAM_MIGRATE_DISKS, disk)?;
        }
        Ok(all)
    }
}

/// Of `tcp://10.0.0.2` or `tcp://[fd00::2]`.
fn address(uri: &str) -> Option<IpAddr> {
    uri.strip_prefix("tcp://")?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn flags(to: &MigrateTo) -> u32 {
    let always = sys::VIR_MIGRATE_LIVE
        | sys::VIR_MIGRATE_PEER2PEER
        | sys::VIR_MIGRATE_PERSIST_DEST
        | sys::VIR_MIGRATE_PAUSED
        | sys::VIR_MIGRATE_ABORT_ON_ERROR;
    let when = |wanted: bool, flag: u32| if wanted { flag } else { 0 };
    always
        | when(to.auto_converge, sys::VIR_MIGRATE_AUTO_CONVERGE)
        | when(to.encrypted, sys::VIR_MIGRATE_TLS)
        // Else it refuses shared folders that it does not know, and disks with a cache, which QEMU flushes before it hands over.
        | when(to.stay_disks == StayDisks::Shared, sys::VIR_MIGRATE_UNSAFE)
        | when(!to.copy_disks.is_empty(), sys::VIR_MIGRATE_NON_SHARED_DISK)
}

/// Returns when it is over, one way or the other.
pub fn send(domain: &Domain<'_>, to: &MigrateTo) -> Result<(), HvError> {
    let params = Params::of(to)?;
    let connect = c_string(&to.connect)?;
    let count = params.count as u32;
    // SAFETY: our handle, a C string, the list as libvirt made it.
    let sent = unsafe { sys::virDomainMigrateToURI3(domain.ptr(), connect.as_ptr(), params.list, count, flags(to)) };
    if sent < 0 { Err(last(Some(domain.uuid()))) } else { Ok(()) }
}

/// The migration of the domain that is under way, in or out.
pub fn stats(domain: &Domain<'_>) -> Result<Option<MigrationStats>, HvError> {
    let (mut kind, mut count): (c_int, c_int) = (0, 0);
    let mut list: sys::virTypedParameterPtr = std::ptr::null_mut();
    // SAFETY: our handle, live out pointers.
    if unsafe { sys::virDomainGetJobStats(domain.ptr(), &mut kind, &mut list, &mut count, 0) } < 0 {
        let said = said();
        let off = said.code == sys::VIR_ERR_OPERATION_INVALID;
        return if off { Ok(None) } else { Err(said.meaning(Some(domain.uuid()))) };
    }
    let params = Params { list, count, room: count };
    if !matches!(kind as u32, sys::VIR_DOMAIN_JOB_BOUNDED | sys::VIR_DOMAIN_JOB_UNBOUNDED) {
        return Ok(None);
    }
    let value = |name: &CStr| value(&params, name);
    let migrations = [sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN, sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT];
    if value(sys::VIR_DOMAIN_JOB_OPERATION).is_some_and(|operation| !migrations.iter().any(|m| u64::from(*m) == operation)) {
        return Ok(None);
    }
    let of = |name: &CStr| value(name).unwrap_or(0);
    Ok(Some(MigrationStats {
        done_bytes: of(sys::VIR_DOMAIN_JOB_DATA_PROCESSED),
        total_bytes: of(sys::VIR_DOMAIN_JOB_DATA_PROCESSED).saturating_add(of(sys::VIR_DOMAIN_JOB_DATA_REMAINING)),
        dirty_bytes_per_second: of(sys::VIR_DOMAIN_JOB_MEMORY_DIRTY_RATE).saturating_mul(of(sys::VIR_DOMAIN_JOB_MEMORY_PAGE_SIZE)),
        expected_downtime_ms: of(sys::VIR_DOMAIN_JOB_DOWNTIME),
    }))
}

fn value(params: &Params, name: &CStr) -> Option<u64> {
    let name: *const c_char = name.as_ptr();
    // SAFETY: the list as libvirt made it; the parameter is read while the list lives.
    unsafe {
        let found = sys::virTypedParamsGet(params.list, params.count, name);
        found.as_ref().and_then(|parameter| number(parameter))
    }
}

pub fn abort(domain: &Domain<'_>) -> Result<(), HvError> {
    // SAFETY: our handle.
    check(unsafe { sys::virDomainAbortJob(domain.ptr()) }, Some(domain.uuid())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_what_libvirt_is_told() {
        let plain = MigrateTo {
            connect: "qemu+tls://10.0.0.2/system".into(),
            data: "tcp://10.0.0.2".into(),
            encrypted: false,
            bandwidth_bytes: None,
            auto_converge: false,
            copy_disks: Vec::new(),
            stay_disks: StayDisks::None,
        };
        let always = flags(&plain);
        let paused = sys::VIR_MIGRATE_PAUSED | sys::VIR_MIGRATE_PEER2PEER | sys::VIR_MIGRATE_PERSIST_DEST | sys::VIR_MIGRATE_LIVE;
        assert_eq!(always & paused, paused, "it does not run there before vmkeep says so, and its domain stays");
        assert_eq!(always & (sys::VIR_MIGRATE_UNDEFINE_SOURCE | sys::VIR_MIGRATE_POSTCOPY), 0);
        let adds = |to: MigrateTo| flags(&to) ^ always;
        assert_eq!(adds(MigrateTo { encrypted: true, ..plain.clone() }), sys::VIR_MIGRATE_TLS);
        assert_eq!(adds(MigrateTo { auto_converge: true, ..plain.clone() }), sys::VIR_MIGRATE_AUTO_CONVERGE);
        assert_eq!(adds(MigrateTo { copy_disks: vec!["vda".into()], ..plain.clone() }), sys::VIR_MIGRATE_NON_SHARED_DISK);
        assert_eq!(adds(MigrateTo { stay_disks: StayDisks::Shared, ..plain.clone() }), sys::VIR_MIGRATE_UNSAFE);
    }

    #[test]
    fn qemu_listens_where_it_is_told_only() {
        for (uri, want) in
            [("tcp://10.0.0.2", Some("10.0.0.2")), ("tcp://[fd00::2]", Some("fd00::2")), ("tcp://node2", None), ("rdma://x", None)]
        {
            assert_eq!(address(uri).map(|a| a.to_string()).as_deref(), want, "{uri}");
        }
    }
}
