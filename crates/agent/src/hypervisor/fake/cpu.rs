//! The CPUs of the fake: each model is its maker's first features, and a newer one has more of them.

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

/// The features of the model, and those that are named beyond it: like libvirt, which leaves in what the host disables.
pub fn expand(cpu: &str) -> Result<String, HvError> {
    let tree = crate::domain::tree::parse(cpu).map_err(|e| HvError::Refused(e.message))?;
    let model = tree.text_at("model").unwrap_or_default();
    let Some((_, features)) = MODELS.iter().find(|(name, _)| *name == model) else {
        return Err(HvError::Refused(format!("internal error: Unknown CPU model {model}")));
    };
    let more = tree.all("feature").filter(|f| f.get("policy") == Some("require")).filter_map(|f| f.get("name"));
    let all: String = features.split_whitespace().chain(more).map(|name| format!("<feature policy='require' name='{name}'/>")).collect();
    Ok(format!("<cpu mode='custom' match='exact'><model fallback='forbid'>{model}</model>{all}</cpu>"))
}
