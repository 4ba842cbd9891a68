//! Memory, hugepages and same-page merging.

use std::fs;

use vmkeep_types::host::CheckRow;
use vmkeep_types::units::ByteCount;

use super::row::{fail, ok, warn};
use crate::host::facts::meminfo_field;

/// Below this not even the host's own services and one small VM fit.
const TOTAL_MIN: ByteCount = ByteCount::from_mib(900);
/// Less than this left: the next VM start meets the OOM killer.
const AVAILABLE_MIN: ByteCount = ByteCount::from_mib(512);

#[derive(Clone, Debug)]
pub struct MemoryFacts {
    pub total: ByteCount,
    pub available: ByteCount,
    pub swap: ByteCount,
    pub huge_total: u64,
    pub huge_free: u64,
    pub huge_size: ByteCount,
    /// The bracketed word of transparent_hugepage/enabled: `always`, `madvise`, `never`; None = the kernel has none.
    pub transparent: Option<String>,
}

pub fn gather() -> MemoryFacts {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |field| meminfo_field(&meminfo, field).unwrap_or_default();
    // The counts have no unit; meminfo_field reads them as KiB.
    let count = |field| bytes(field).bytes() >> 10;
    let thp = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok();
    MemoryFacts {
        total: bytes("MemTotal"),
        available: bytes("MemAvailable"),
        swap: bytes("SwapTotal"),
        huge_total: count("HugePages_Total"),
        huge_free: count("HugePages_Free"),
        huge_size: bytes("Hugepagesize"),
        transparent: thp.and_then(|t| Some(t.split_once('[')?.1.split_once(']')?.0.to_owned())),
    }
}

pub fn judge(facts: &MemoryFacts) -> Vec<CheckRow> {
    vec![memory(facts), hugepages(facts)]
}

fn memory(facts: &MemoryFacts) -> CheckRow {
    let found = format!("{} of {} available, swap {}", facts.available.human(), facts.total.human(), facts.swap.human());
    if facts.total < TOTAL_MIN {
        return fail("memory", found, "a host with less than 1G has no room for VMs", None);
    }
    if facts.available < AVAILABLE_MIN {
        let why = "the next VM may make the kernel kill processes, QEMU among them";
        return warn("memory", found, why, Some("ps -eo rss,comm --sort=-rss | head".into()));
    }
    ok("memory", found)
}

fn hugepages(facts: &MemoryFacts) -> CheckRow {
    let transparent = facts.transparent.as_deref().unwrap_or("not in this kernel");
    let reserved = ByteCount::from_bytes(facts.huge_total.saturating_mul(facts.huge_size.bytes()));
    let found = match facts.huge_total {
        0 => format!("none reserved; transparent hugepages: {transparent}"),
        n => format!("{n} of {} reserved, {} free; transparent hugepages: {transparent}", facts.huge_size.human(), facts.huge_free),
    };
    if reserved.bytes() > facts.total.bytes() / 10 * 9 {
        let why = "almost all memory is reserved for VMs with `hugepages: true`; everything else starves";
        return warn("hugepages", found, why, Some("sysctl vm.nr_hugepages=NUMBER".into()));
    }
    if facts.transparent.as_deref() == Some("never") && facts.huge_total == 0 {
        let why = "guest memory is mapped in 4K pages: 5 to 20 % slower for large VMs";
        return warn("hugepages", found, why, Some("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled".into()));
    }
    ok("hugepages", found)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn check(change: impl FnOnce(&mut MemoryFacts), expect: Expect) {
        let mut facts = MemoryFacts {
            total: ByteCount::from_gib(64),
            available: ByteCount::from_gib(40),
            swap: ByteCount::ZERO,
            huge_total: 0,
            huge_free: 0,
            huge_size: ByteCount::from_mib(2),
            transparent: Some("madvise".into()),
        };
        change(&mut facts);
        expect.assert_eq(&show(&judge(&facts)));
    }

    #[test]
    fn memory_from_good_to_bad() {
        check(
            |_| {},
            expect![[r#"
                ok memory: 40G of 64G available, swap 0B
                ok hugepages: none reserved; transparent hugepages: madvise
            "#]],
        );
        check(
            |f| f.available = ByteCount::from_mib(200),
            expect![[r#"
                warn memory: 200M of 64G available, swap 0B
                  the next VM may make the kernel kill processes, QEMU among them
                  $ ps -eo rss,comm --sort=-rss | head
                ok hugepages: none reserved; transparent hugepages: madvise
            "#]],
        );
        check(
            |f| f.total = ByteCount::from_mib(480),
            expect![[r#"
                fail memory: 40G of 480M available, swap 0B
                  a host with less than 1G has no room for VMs
                ok hugepages: none reserved; transparent hugepages: madvise
            "#]],
        );
    }

    #[test]
    fn hugepages_too_few_and_too_many() {
        check(
            |f| f.transparent = Some("never".into()),
            expect![[r#"
                ok memory: 40G of 64G available, swap 0B
                warn hugepages: none reserved; transparent hugepages: never
                  guest memory is mapped in 4K pages: 5 to 20 % slower for large VMs
                  $ echo madvise > /sys/kernel/mm/transparent_hugepage/enabled
            "#]],
        );
        check(
            |f| {
                f.huge_total = 31_000;
                f.huge_free = 30_000;
            },
            expect![[r#"
                ok memory: 40G of 64G available, swap 0B
                warn hugepages: 31000 of 2M reserved, 30000 free; transparent hugepages: madvise
                  almost all memory is reserved for VMs with `hugepages: true`; everything else starves
                  $ sysctl vm.nr_hugepages=NUMBER
            "#]],
        );
    }
}
