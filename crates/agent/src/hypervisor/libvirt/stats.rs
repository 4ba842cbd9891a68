//! Counters of all running domains in one call.

use std::ffi::CStr;
use std::os::raw::c_uint;

use virt_sys as sys;

use super::conn::Conn;
use super::domain::uuid_of;
use super::error::check;
use crate::hypervisor::{DomainStats, HvError};

pub fn all(conn: &Conn) -> Result<Vec<DomainStats>, HvError> {
    let wanted: c_uint = sys::VIR_DOMAIN_STATS_CPU_TOTAL
        | sys::VIR_DOMAIN_STATS_BALLOON
        | sys::VIR_DOMAIN_STATS_VCPU
        | sys::VIR_DOMAIN_STATS_INTERFACE
        | sys::VIR_DOMAIN_STATS_BLOCK;
    // A domain in the middle of something long gives what can be had at once, instead of holding up the others.
    let flags = sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT;
    let mut list: *mut sys::virDomainStatsRecordPtr = std::ptr::null_mut();
    // SAFETY: libvirt fills a null-terminated list with n records; it stays ours until it is freed, records included.
    unsafe {
        let n = check(sys::virConnectGetAllDomainStats(conn.ptr(), wanted, &mut list, flags), None)?;
        let all = (0..n as usize).map(|i| one(&**list.add(i))).collect();
        sys::virDomainStatsRecordListFree(list);
        Ok(all)
    }
}

/// # Safety
/// A record as libvirt made it.
unsafe fn one(record: &sys::_virDomainStatsRecord) -> DomainStats {
    // SAFETY: by the caller's word: nparams parameters, a valid domain.
    let (uuid, parameters) = unsafe {
        let parameters: &[sys::_virTypedParameter] =
            if record.nparams > 0 { std::slice::from_raw_parts(record.params, record.nparams as usize) } else { &[] };
        (uuid_of(record.dom).ok(), parameters)
    };
    let mut stats = DomainStats { uuid, ..DomainStats::default() };
    for parameter in parameters {
        // SAFETY: field is a C string within its 80 bytes; the value is read by its own type.
        let (Ok(field), Some(value)) = (unsafe { CStr::from_ptr(parameter.field.as_ptr()) }.to_str(), (unsafe { number(parameter) }))
        else {
            continue;
        };
        take(&mut stats, field, value);
    }
    stats
}

/// # Safety
/// A parameter as libvirt made it.
pub unsafe fn number(p: &sys::_virTypedParameter) -> Option<u64> {
    // SAFETY: the union's field is chosen by the type that stands beside it.
    unsafe {
        match p.type_ as u32 {
            sys::VIR_TYPED_PARAM_ULLONG => Some(p.value.ul),
            sys::VIR_TYPED_PARAM_LLONG => u64::try_from(p.value.l).ok(),
            sys::VIR_TYPED_PARAM_UINT => Some(p.value.ui.into()),
            sys::VIR_TYPED_PARAM_INT => u64::try_from(p.value.i).ok(),
            _ => None,
        }
    }
}

/// Fields are named `block.0.rd.bytes`, `net.1.rx.bytes`, …: disks and NICs are summed up.
fn take(stats: &mut DomainStats, field: &str, value: u64) {
    let (group, rest) = field.split_once('.').unwrap_or((field, ""));
    let per_device = rest.split_once('.').filter(|(n, _)| n.bytes().all(|b| b.is_ascii_digit())).map(|(_, what)| what);
    let sum = match (group, per_device.unwrap_or(rest)) {
        ("cpu", "time") => return stats.cpu_time_ns = value,
        ("vcpu", "current") => return stats.vcpus = u32::try_from(value).unwrap_or(u32::MAX),
        ("balloon", "current") => return stats.memory_kib = value,
        ("balloon", "rss") => return stats.rss_kib = value,
        ("block", "rd.bytes") => &mut stats.disk_read_bytes,
        ("block", "wr.bytes") => &mut stats.disk_write_bytes,
        ("block", "rd.reqs") => &mut stats.disk_read_ops,
        ("block", "wr.reqs") => &mut stats.disk_write_ops,
        ("net", "rx.bytes") => &mut stats.net_rx_bytes,
        ("net", "tx.bytes") => &mut stats.net_tx_bytes,
        _ => return,
    };
    *sum = sum.saturating_add(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_summed_up() {
        let mut stats = DomainStats::default();
        let fields = [
            ("cpu.time", 5),
            ("cpu.user", 99),
            ("vcpu.current", 2),
            ("vcpu.0.time", 99),
            ("balloon.current", 7),
            ("balloon.rss", 8),
            ("block.count", 99),
            ("block.0.rd.bytes", 10),
            ("block.1.rd.bytes", 20),
            ("block.0.wr.reqs", 1),
            ("net.0.rx.bytes", 3),
            ("net.11.rx.bytes", 4),
        ];
        for (field, value) in fields {
            take(&mut stats, field, value);
        }
        let want = DomainStats {
            cpu_time_ns: 5,
            vcpus: 2,
            memory_kib: 7,
            rss_kib: 8,
            disk_read_bytes: 30,
            disk_write_ops: 1,
            net_rx_bytes: 7,
            ..DomainStats::default()
        };
        assert_eq!(stats, want);
    }
}
