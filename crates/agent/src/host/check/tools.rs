//! Programs that vmkeep calls.

use std::path::{Path, PathBuf};

use vmkeep_types::host::CheckRow;

use super::row::{fail, ok, warn};
use crate::image::BUILD_TOOLS;

/// What volumes and images cannot do without: program and Debian package.
const NEEDED: [(&str, &str); 2] = [("qemu-img", "qemu-utils"), ("qemu-system-x86_64", "qemu-system-x86")];
/// What NAT networks need.
const NETWORK: [(&str, &str); 1] = [("dnsmasq", "dnsmasq-base")];

#[derive(Clone, Debug)]
pub struct ToolFacts {
    /// Names of programs that are not found.
    pub missing: Vec<&'static str>,
}

/// Where a program lies, in the folders that root's PATH has; a file with its whole path is looked for there.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|p| p.exists());
    }
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin"]
        .iter()
        .map(|d| Path::new(d).join(program))
        .find(|p| p.exists())
}

pub fn gather() -> ToolFacts {
    let all = NEEDED.iter().chain(&NETWORK).chain(&BUILD_TOOLS);
    ToolFacts { missing: all.map(|(program, _)| *program).filter(|program| find(program).is_none()).collect() }
}

pub fn judge(facts: &ToolFacts) -> Vec<CheckRow> {
    let lacking = |group: &[(&'static str, &'static str)]| -> Vec<(&'static str, &'static str)> {
        group.iter().filter(|(program, _)| facts.missing.contains(program)).copied().collect()
    };
    let (needed, network, build) = (lacking(&NEEDED), lacking(&NETWORK), lacking(&BUILD_TOOLS));
    let mut rows = Vec::new();
    if needed.is_empty() && network.is_empty() && build.is_empty() {
        rows.push(ok("tools", "all are there"));
    }
    if !needed.is_empty() {
        rows.push(fail("tools", words(&needed), "no VM can be made", Some(install(&needed))));
    }
    if !network.is_empty() {
        rows.push(fail(
            "network-tools",
            words(&network),
            "NAT networks, `default` among them, have no DHCP and DNS",
            Some(install(&network)),
        ));
    }
    if !build.is_empty() {
        rows.push(warn("build-tools", words(&build), "`vmkeep image build` does not work; importing does", Some(install(&build))));
    }
    rows
}

fn words(lacking: &[(&str, &str)]) -> String {
    format!("missing: {}", lacking.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", "))
}

fn install(lacking: &[(&str, &str)]) -> String {
    let packages: std::collections::BTreeSet<&str> = lacking.iter().map(|(_, package)| *package).collect();
    format!("apt-get install {}", packages.into_iter().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn check(missing: &[&'static str], expect: Expect) {
        expect.assert_eq(&show(&judge(&ToolFacts { missing: missing.to_vec() })));
    }

    #[test]
    fn what_may_be_missing() {
        check(
            &[],
            expect![[r#"
            ok tools: all are there
        "#]],
        );
        check(
            &["qemu-img", "dnsmasq", "mmdebstrap", "mcopy", "mmd"],
            expect![[r#"
                fail tools: missing: qemu-img
                  no VM can be made
                  $ apt-get install qemu-utils
                fail network-tools: missing: dnsmasq
                  NAT networks, `default` among them, have no DHCP and DNS
                  $ apt-get install dnsmasq-base
                warn build-tools: missing: mmdebstrap, mmd, mcopy
                  `vmkeep image build` does not work; importing does
                  $ apt-get install mmdebstrap mtools
            "#]],
        );
    }
}
