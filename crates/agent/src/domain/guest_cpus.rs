//! Which CPUs guests of one kind (`kvm` or `qemu`) can have, as placement compares them: the host's own model, all features that
//! guests can have, and the models that miss only a few of these.
//!
//! libvirt tells the nearest model of a CPU and how it differs; models that are not whole it tells with what they lack
//! (`<blockers>`), older ones without: then each model is written out and compared. What it refuses to tell stays empty, which
//! refuses no VM.

use std::collections::{BTreeMap, BTreeSet};

use vmkeep_types::error::Error;

use super::profile::host_cpu;
use super::tree::{self, Element, el};
use crate::hypervisor::{HvError, Hypervisor};

/// Of models that lack more, nobody switches so much off: the host's own one is told in any case.
const LACKING_MAX: usize = 16;
/// QEMU 10 knows some 110 models.
const MODELS_MAX: usize = 400;

/// Policies of features that a CPU has, and of those of its model that it has not.
const HAS: &[&str] = &["require", "force"];
const LACKS: &[&str] = &["disable", "forbid"];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestCpus {
    pub own: String,
    pub features: BTreeSet<String>,
    pub models_without: BTreeMap<String, BTreeSet<String>>,
}

impl GuestCpus {
    /// For guests of the kind whose domain capabilities are given; nothing where these have no CPU of the host.
    ///
    /// # Errors
    /// The capabilities do not parse.
    pub async fn learn(hv: &dyn Hypervisor, capabilities: &str) -> Result<Self, Error> {
        let tree = tree::parse(capabilities)?;
        let Some(host_cpu) = host_cpu(&tree) else { return Ok(Self::default()) };
        let asked = Asked { hv, kind: tree.text_at("domain").unwrap_or_default(), capabilities: &tree };
        Ok(asked.about(&host_cpu).await)
    }
}

/// Whom is asked, and about which guests.
struct Asked<'a> {
    hv: &'a dyn Hypervisor,
    kind: &'a str,
    capabilities: &'a Element,
}

impl Asked<'_> {
    async fn about(&self, host_cpu: &Element) -> GuestCpus {
        let own = host_cpu.text_at("model").unwrap_or_default().to_owned();
        let disabled = features(host_cpu, LACKS);
        // libvirt writes out the model, whatever of it the host disables.
        let all = self.expand(host_cpu).await.map(|whole| features(&whole, HAS).difference(&disabled).cloned().collect::<BTreeSet<_>>());
        let all =
            all.inspect_err(|e| tracing::warn!(error = %e, "libvirt does not tell which CPU features guests can have")).unwrap_or_default();
        let mut models_without = match blockers(self.capabilities) {
            told if !told.is_empty() => told,
            _ if all.is_empty() => BTreeMap::new(),
            _ => self.compared(&all).await,
        };
        models_without.retain(|_, lacking| lacking.len() <= LACKING_MAX);
        // By libvirt's word a guest can have this model so, whatever QEMU misses of it besides.
        models_without.insert(own.clone(), disabled);
        GuestCpus { own, features: all, models_without }
    }

    async fn expand(&self, cpu: &Element) -> Result<Element, HvError> {
        let xml = self.hv.expand_cpu(self.kind, cpu.write().trim()).await?;
        tree::parse(&xml).map_err(|e| HvError::Refused(e.message))
    }

    async fn compared(&self, all: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<String>> {
        let models = custom(self.capabilities).flat_map(|mode| mode.all("model")).filter(|model| model.get("usable") == Some("no"));
        let mut found = BTreeMap::new();
        for model in models.take(MODELS_MAX) {
            let cpu = el("cpu").attr("mode", "custom").attr("match", "exact").child(el("model").text(&model.text));
            // A model that libvirt cannot write out is one that guests cannot have.
            if let Ok(whole) = self.expand(&cpu).await {
                // libvirt itself switches off what it knows that such guests cannot have.
                let mut lacking = features(&whole, LACKS);
                lacking.extend(features(&whole, HAS).difference(all).cloned());
                found.insert(model.text.clone(), lacking);
            }
        }
        found
    }
}

fn features(cpu: &Element, policies: &[&str]) -> BTreeSet<String> {
    let wanted = |f: &&Element| f.get("policy").is_some_and(|policy| policies.contains(&policy));
    cpu.all("feature").filter(wanted).filter_map(|f| f.get("name").map(str::to_owned)).collect()
}

fn custom(capabilities: &Element) -> impl Iterator<Item = &Element> {
    let modes = capabilities.find("cpu").into_iter().flat_map(|cpu| cpu.all("mode"));
    modes.filter(|mode| mode.get("name") == Some("custom"))
}

fn blockers(capabilities: &Element) -> BTreeMap<String, BTreeSet<String>> {
    let names = |e: &Element| e.all("feature").filter_map(|f| f.get("name").map(str::to_owned)).collect();
    let told = custom(capabilities).flat_map(|mode| mode.all("blockers"));
    told.filter_map(|e| Some((e.get("model")?.to_owned(), names(e)))).take(MODELS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use vmkeep_types::host::KvmState;

    use super::*;
    use crate::domain::HostProfile;
    use crate::hypervisor::fake::FakeHypervisor;

    async fn check(host: (&str, &str, &str, &str), wanted: Expect) {
        let hv = FakeHypervisor::new();
        hv.offer_kvm();
        hv.offer_cpu(host.0, host.1, host.2, host.3);
        let profile = HostProfile::gather(&hv, &KvmState::Usable).await.expect("capabilities");
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        let cpus = profile.guest_cpus;
        let without: Vec<String> = cpus.models_without.iter().map(|(model, lacking)| format!("{model} but: {}", list(lacking))).collect();
        wanted.assert_eq(&format!("{}: {}\n{}", cpus.own, list(&cpus.features), without.join("\n")));
    }

    #[tokio::test]
    async fn models_are_compared_where_libvirt_names_no_blockers() {
        check(
            ("Skylake-Server", "Nehalem Haswell-noTSX", "ssbd", "mpx"),
            expect![[r#"
                Skylake-Server: avx2 avx512f fma ssbd sse4.2
                Skylake-Server but: mpx"#]],
        )
        .await;
        check(
            ("Nehalem", "Nehalem", "ssbd", ""),
            expect![[r#"
                Nehalem: ssbd sse4.2
                Haswell-noTSX but: avx2 fma
                Nehalem but: 
                Skylake-Server but: avx2 avx512f fma mpx"#]],
        )
        .await;
        // libvirt does not know the model that it names.
        check(
            ("Unheard-Of", "Nehalem", "", "x"),
            expect![[r#"
                Unheard-Of: 
                Unheard-Of but: x"#]],
        )
        .await;
    }

    #[test]
    fn what_libvirt_names_is_taken() {
        let xml = "<domainCapabilities><cpu><mode name='custom'><model usable='no'>A</model><blockers model='A'><feature name='x'/>\
            <feature name='y'/></blockers></mode><mode name='other'><blockers model='B'/></mode></cpu></domainCapabilities>";
        let told = blockers(&tree::parse(xml).expect("it parses"));
        assert_eq!(format!("{told:?}"), r#"{"A": {"x", "y"}}"#);
    }

    #[tokio::test]
    async fn it_is_asked_about_the_kind_of_guest_that_the_capabilities_tell() {
        let (hv, emulating) = (FakeHypervisor::new(), FakeHypervisor::new());
        hv.offer_kvm();
        hv.offer_cpu("Nehalem", "Nehalem", "ssbd", "");
        let of_kvm = hv.domain_capabilities("kvm", "q35").await.expect("capabilities");
        let of_qemu = of_kvm.replace("<domain>kvm</domain>", "<domain>qemu</domain>");
        let told = async |xml: &str| GuestCpus::learn(&emulating, xml).await.expect("they parse").features.len();
        assert_eq!((told(&of_kvm).await, told(&of_qemu).await), (0, 2), "one without KVM tells nothing of guests with it");
        assert_eq!(told("<domainCapabilities><domain>qemu</domain></domainCapabilities>").await, 0);
        assert!(GuestCpus::learn(&emulating, "<domainCapabilities>").await.is_err());
    }

    #[tokio::test]
    async fn an_emulating_host_tells_nothing() {
        let why = KvmState::Unusable { why: "no vmx".into() };
        let profile = HostProfile::gather(&FakeHypervisor::new(), &why).await.expect("capabilities");
        assert_eq!(profile.guest_cpus, GuestCpus::default());
    }
}
