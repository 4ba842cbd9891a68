//! Machine types of the VMs that QEMU will not have for ever.

use std::collections::BTreeSet;

use vmkeep_types::host::CheckRow;

use super::row::{ok, warn};
use crate::domain::deprecated_machines;
use crate::hypervisor::{Hypervisor, XmlKind};

/// VMs named in the row.
const SHOWN_MAX: usize = 3;

/// Versioned machine types.
#[derive(Clone, Debug)]
pub struct MachineFacts {
    pub deprecated: BTreeSet<String>,
    /// Name of each domain that vmkeep made or adopted, and its machine.
    pub used: Vec<(String, String)>,
}

/// None: libvirt does not tell, which another row says.
pub async fn gather(hypervisor: &dyn Hypervisor) -> Option<MachineFacts> {
    let deprecated = deprecated_machines(&hypervisor.capabilities().await.ok()?).ok()?;
    let mut used = Vec::new();
    for domain in hypervisor.list().await.ok()?.into_iter().filter(|domain| domain.metadata.is_some()) {
        let Ok(xml) = hypervisor.xml(domain.uuid, XmlKind::Inactive).await else { continue };
        used.extend(crate::domain::machine_of(&xml).map(|machine| (domain.name, machine)));
    }
    Some(MachineFacts { deprecated, used })
}

pub fn judge(facts: &MachineFacts) -> Vec<CheckRow> {
    let old: Vec<String> = facts
        .used
        .iter()
        .filter(|(_, machine)| facts.deprecated.contains(machine))
        .map(|(name, machine)| format!("{name} ({machine})"))
        .collect();
    if old.is_empty() {
        return vec![ok("machines", format!("{} types deprecated in this QEMU, used by no VM", facts.deprecated.len()))];
    }
    let more = if old.len() > SHOWN_MAX { format!(" and {} more", old.len() - SHOWN_MAX) } else { String::new() };
    let found = format!("{}{more}", old[..old.len().min(SHOWN_MAX)].join(", "));
    let why = "these machine types are deprecated: a later QEMU will not start the VMs";
    vec![warn("machines", found, why, Some("vmkeep vm set NAME --machine latest, then vmkeep vm restart NAME".into()))]
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn check(used: &[(&str, &str)], expect: Expect) {
        let deprecated = ["pc-q35-2.4", "pc-q35-6.2"].map(str::to_owned).into();
        let used = used.iter().map(|(name, machine)| ((*name).to_owned(), (*machine).to_owned())).collect();
        expect.assert_eq(&show(&judge(&MachineFacts { deprecated, used })));
    }

    #[test]
    fn old_machines_are_named() {
        check(
            &[("web1", "pc-q35-10.0")],
            expect![[r#"
                ok machines: 2 types deprecated in this QEMU, used by no VM
            "#]],
        );
        check(
            &[("a", "pc-q35-6.2"), ("web1", "pc-q35-10.0"), ("b", "pc-q35-2.4"), ("c", "pc-q35-6.2"), ("d", "pc-q35-6.2")],
            expect![[r#"
                warn machines: a (pc-q35-6.2), b (pc-q35-2.4), c (pc-q35-6.2) and 1 more
                  these machine types are deprecated: a later QEMU will not start the VMs
                  $ vmkeep vm set NAME --machine latest, then vmkeep vm restart NAME
            "#]],
        );
    }

    #[tokio::test]
    async fn the_fake_tells_which_are_old() {
        let facts = gather(&crate::hypervisor::fake::FakeHypervisor::new()).await.expect("told");
        assert_eq!(facts.deprecated.into_iter().collect::<Vec<_>>(), ["pc-q35-2.4", "pc-q35-6.2"]);
    }
}
