//! Console logs: virtlogd rotates all of them at one size, which a VM's wish cannot change.

use std::fs;
use std::path::Path;

use vmkeep_types::host::CheckRow;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::Serial;

use super::row::{ok, warn};

const CONFIG: &str = "/etc/libvirt/virtlogd.conf";
/// virtlogd's own, in libvirt's src/logging/log_daemon_config.c.
const MAX_SIZE_DEFAULT: ByteCount = ByteCount::from_mib(2);

#[derive(Clone, Copy, Debug)]
pub struct LogFacts {
    pub max_size: ByteCount,
}

pub fn gather() -> LogFacts {
    LogFacts { max_size: max_size(&fs::read_to_string(Path::new(CONFIG)).unwrap_or_default()) }
}

/// The last setting counts; 0 is no limit.
fn max_size(config: &str) -> ByteCount {
    let value = |line: &str| line.trim().strip_prefix("max_size")?.trim().strip_prefix('=')?.trim().parse().ok();
    match config.lines().filter_map(value).next_back() {
        None => MAX_SIZE_DEFAULT,
        Some(0) => ByteCount::from_bytes(u64::MAX),
        Some(bytes) => ByteCount::from_bytes(bytes),
    }
}

pub fn judge(facts: &LogFacts) -> Vec<CheckRow> {
    let wish = Serial::default().log;
    if facts.max_size == ByteCount::from_bytes(u64::MAX) {
        let why = "virtlogd keeps console logs whole: a guest can fill the disk with its own";
        return vec![warn("serial-logs", "no limit", why, Some(mend(wish)))];
    }
    let found = format!("virtlogd rotates console logs at {}", facts.max_size.human());
    if facts.max_size >= wish {
        return vec![ok("serial-logs", found)];
    }
    let why = format!("less of a console is kept than the {} that VMs wish by default", wish.human());
    vec![warn("serial-logs", found, why, Some(mend(wish)))]
}

fn mend(size: ByteCount) -> String {
    format!("sed -i '/^max_size/d; $ a max_size = {}' {CONFIG}; systemctl reload virtlogd", size.bytes())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn check(config: &str, expect: Expect) {
        expect.assert_eq(&show(&judge(&LogFacts { max_size: max_size(config) })));
    }

    #[test]
    fn the_size_of_virtlogd_counts() {
        check(
            "#max_size = 2097152\n",
            expect![[r#"
                warn serial-logs: virtlogd rotates console logs at 2M
                  less of a console is kept than the 10M that VMs wish by default
                  $ sed -i '/^max_size/d; $ a max_size = 10485760' /etc/libvirt/virtlogd.conf; systemctl reload virtlogd
            "#]],
        );
        check(
            "max_size = 1\nmax_size = 20971520\n",
            expect![[r#"
            ok serial-logs: virtlogd rotates console logs at 20M
        "#]],
        );
        check(
            "max_size=0\n",
            expect![[r#"
                warn serial-logs: no limit
                  virtlogd keeps console logs whole: a guest can fill the disk with its own
                  $ sed -i '/^max_size/d; $ a max_size = 10485760' /etc/libvirt/virtlogd.conf; systemctl reload virtlogd
            "#]],
        );
    }
}
