//! The CPUs of the fake: each model is its maker's first features, and a newer one has more of them.

use crate::domain::tree::{self, Element};
use crate::hypervisor::HvError;

/// Model to the features that it has.
const MODELS: [(&str, &str); 3] =
    [("Nehalem", "sse4.2"), ("Haswell-noTSX", "sse4.2 avx2 fma"), ("Skylake-Server", "sse4.2 avx2 fma avx512f mpx")];

/// The domain capabilities with another `<cpu>`.
pub fn instead(capabilities: &str, cpus: &str) -> String {
    let begin = capabilities.find("<cpu>").expect("the fake's capabilities have a cpu");
    let end = capabilities.find("</cpu>").expect("which ends") + "</cpu>".len();
    format!("{}{cpus}{}", &capabilities[..begin], &capabilities[end..])
}

/// libvirt's `<cpu>` of a host whose CPU is `model`, can do `usable` whole, and has `more` features and not those `without`.
pub fn host(model: &str, usable: &str, more: &str, without: &str) -> String {
    let features = |policy: &str, names: &str| -> String {
        names.split_whitespace().map(|name| format!("<feature policy='{policy}' name='{name}'/>")).collect()
    };
    let (require, disable) = (features("require", more), features("disable", without));
    let listed = MODELS.iter().map(|(name, _)| {
        let is = if usable.split_whitespace().any(|model| model == *name) { "yes" } else { "no" };
        format!("<model usable='{is}' vendor='Intel'>{name}</model>")
    });
    let listed: String = listed.collect();
    format!(
        "<cpu><mode name='host-model' supported='yes'><model fallback='forbid'>{model}</model><vendor>Intel</vendor>{require}{disable}</mode>\
         <mode name='custom' supported='yes'>{listed}</mode></cpu>"
    )
}

/// The features of the model, and those that are named beyond it. Like libvirt, which leaves in what the host disables, and switches
/// off what the model of the host (`cpus`, as [`host`] makes them) never had.
pub fn expand(cpus: Option<&str>, cpu: &str) -> Result<String, HvError> {
    let tree = parse(cpu)?;
    let model = tree.text_at("model").unwrap_or_default();
    let wanted = of_cpu(&tree).ok_or_else(|| HvError::Refused(format!("internal error: Unknown CPU model {model}")))?;
    let host = cpus.map(parse).transpose()?;
    let mode = |cpus: &Element| cpus.all("mode").find(|mode| mode.get("name") == Some("host-model")).cloned();
    let possible = host.as_ref().and_then(mode).and_then(|mode| of_cpu(&mode));
    let policy = |name: &String| if possible.as_ref().is_none_or(|all| all.contains(name)) { "require" } else { "disable" };
    let all: String = wanted.iter().map(|name| format!("<feature policy='{}' name='{name}'/>", policy(name))).collect();
    Ok(format!("<cpu mode='custom' match='exact'><model fallback='forbid'>{model}</model>{all}</cpu>"))
}

fn parse(xml: &str) -> Result<Element, HvError> {
    tree::parse(xml).map_err(|e| HvError::Refused(e.message))
}

fn of_cpu(cpu: &Element) -> Option<Vec<String>> {
    let model = cpu.text_at("model").unwrap_or_default();
    let (_, features) = MODELS.iter().find(|(name, _)| *name == model)?;
    let more = cpu.all("feature").filter(|f| f.get("policy") == Some("require")).filter_map(|f| f.get("name"));
    Some(features.split_whitespace().chain(more).map(str::to_owned).collect())
}
