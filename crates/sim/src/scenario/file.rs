//! The scenario file. docs/guide/sim.md describes it.

use std::collections::BTreeMap;

use serde::Deserialize;
use vmkeep_core::ha::record::{NodeNo, Rule, RunWish, Settings, ShutdownPolicy, StorageCan, Strictness, VmNo, WatchdogKind, Wish};
use vmkeep_core::ha::timers::Profile;
use vmkeep_types::error::{Error, Problem};
use vmkeep_types::manifest;
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;

use super::command::{self, Command, Names, Switch};

/// Nodes and VMs of one scenario: what is still played in seconds.
const NODES_MAX: usize = 1_000;
const VMS_MAX: usize = 20_000;

/// The longest script, s.
const UNTIL_MAX: f64 = 1_000_000.0;

/// A script without `until` ends so long after its last step, s.
const AFTERWARDS: f64 = 300.0;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScenarioFile {
    nodes: BTreeMap<Name, Option<NodeFile>>,
    #[serde(default)]
    vms: BTreeMap<Name, VmFile>,
    #[serde(default)]
    rules: Vec<RuleFile>,
    #[serde(default)]
    settings: SettingsFile,
    #[serde(default)]
    steps: Vec<StepFile>,
    #[serde(default)]
    until: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SwitchFile {
    #[default]
    On,
    Off,
}

impl From<SwitchFile> for Switch {
    fn from(is: SwitchFile) -> Self {
        match is {
            SwitchFile::On => Self::On,
            SwitchFile::Off => Self::Off,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WatchdogFile {
    #[default]
    Hardware,
    Software,
    /// There is none that could be armed.
    None,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NodeFile {
    power: SwitchFile,
    network: SwitchFile,
    cpus: Option<u32>,
    memory: Option<ByteCount>,
    /// Its power can be cut by a fence agent.
    stonith: Option<SwitchFile>,
    watchdog: WatchdogFile,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RunFile {
    #[default]
    Started,
    Stopped,
    Disabled,
    Ignored,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VmFile {
    node: Name,
    #[serde(default)]
    run: RunFile,
    #[serde(default = "one")]
    max_restart: u8,
    #[serde(default = "one")]
    max_relocate: u8,
    #[serde(default = "yes")]
    failback: bool,
    #[serde(default = "middle")]
    priority: u8,
    #[serde(default)]
    cpus: Option<u32>,
    #[serde(default)]
    memory: Option<ByteCount>,
}

fn one() -> u8 {
    1
}

fn yes() -> bool {
    true
}

fn middle() -> u8 {
    3
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum RuleFile {
    NodeAffinity {
        vms: Vec<Name>,
        nodes: BTreeMap<Name, u32>,
        #[serde(default)]
        strict: bool,
    },
    VmAffinity {
        vms: Vec<Name>,
        affinity: AffinityFile,
        #[serde(default)]
        strict: bool,
    },
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AffinityFile {
    Positive,
    Negative,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PolicyFile {
    Migrate,
    Freeze,
    Failover,
    #[default]
    Conditional,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ProfileFile {
    #[default]
    Standard,
    Fast,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SettingsFile {
    shutdown_policy: PolicyFile,
    failback: bool,
    profile: ProfileFile,
    /// The storage of all disks can refuse a node (Ceph's blocklist).
    storage_fence: bool,
}

impl Default for SettingsFile {
    fn default() -> Self {
        Self { shutdown_policy: PolicyFile::default(), failback: true, profile: ProfileFile::default(), storage_fence: false }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepFile {
    at: f64,
    r#do: Vec<String>,
}

/// One node at the beginning.
#[derive(Clone, Debug)]
pub struct NodeStart {
    pub name: Name,
    pub power: Switch,
    pub network: Switch,
    pub stonith: Switch,
    /// None: there is none that could be armed.
    pub watchdog: Option<WatchdogKind>,
}

#[derive(Clone, Debug)]
pub struct VmStart {
    pub name: Name,
    pub wish: Wish,
    /// None: it comes later, by `vm V add N`.
    pub node: Option<NodeNo>,
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub nodes: Vec<NodeStart>,
    pub vms: Vec<VmStart>,
    pub settings: Settings,
    pub profile: Profile,
    /// By time, ms; each with its words.
    pub steps: Vec<(u64, String, Command)>,
    pub until: u64,
}

fn ms(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}

/// What every VM is that a script adds.
const ADDED: Wish = Wish { run: RunWish::Started, priority: 3, max_restart: 1, max_relocate: 1, failback: true, cpus: 1, memory_mib: 1024 };

/// Node 10 comes after node 9.
fn natural(name: &Name) -> (usize, &str) {
    (name.as_str().len(), name.as_str())
}

/// Reads a scenario.
///
/// # Errors
/// Every problem with line and column.
pub fn read(file: &str, text: &str) -> Result<Scenario, Error> {
    let read: ScenarioFile = manifest::parse_other(file, text, problems)?;
    Ok(build(read))
}

/// Names in order, those of VMs that are added later at the end.
fn names(file: &ScenarioFile) -> (Vec<&Name>, Vec<String>) {
    let mut nodes: Vec<&Name> = file.nodes.keys().collect();
    nodes.sort_by_key(|name| natural(name));
    let mut vms: Vec<&Name> = file.vms.keys().collect();
    vms.sort_by_key(|name| natural(name));
    let mut vms: Vec<String> = vms.into_iter().map(ToString::to_string).collect();
    for text in file.steps.iter().flat_map(|step| &step.r#do) {
        if let Some(vm) = command::added_vm(text)
            && vm.parse::<Name>().is_ok()
            && !vms.iter().any(|known| known == vm)
        {
            vms.push(vm.to_owned());
        }
    }
    (nodes, vms)
}

fn problems(file: &ScenarioFile) -> Vec<Problem> {
    let mut found: Vec<Problem> = Vec::new();
    let mut bad = |field: String, message: String| found.push(Problem { field, message });
    let (nodes, vms) = names(file);
    if nodes.is_empty() || nodes.len() > NODES_MAX || vms.len() > VMS_MAX {
        bad("nodes".into(), format!("a scenario has 1 to {NODES_MAX} nodes and at most {VMS_MAX} VMs"));
    }
    let nodes: Vec<&str> = nodes.iter().map(|name| name.as_str()).collect();
    let vms: Vec<&str> = vms.iter().map(String::as_str).collect();
    let hint = |word: &str, known: &[&str]| vmkeep_types::nearest::hint(word, known);
    for (name, vm) in &file.vms {
        if !nodes.contains(&vm.node.as_str()) {
            bad(format!("vms.{name}.node"), format!("there is no node '{}'{}", vm.node, hint(vm.node.as_str(), &nodes)));
        }
        if !(1..=5).contains(&vm.priority) {
            bad(format!("vms.{name}.priority"), "a priority is 1 (first) to 5".into());
        }
    }
    for (n, rule) in file.rules.iter().enumerate() {
        let (RuleFile::NodeAffinity { vms: of, .. } | RuleFile::VmAffinity { vms: of, .. }) = rule;
        for (i, vm) in of.iter().enumerate().filter(|(_, vm)| !vms.contains(&vm.as_str())) {
            bad(format!("rules[{n}].vms[{i}]"), format!("there is no VM '{vm}'{}", hint(vm.as_str(), &vms)));
        }
        if let RuleFile::NodeAffinity { nodes: of, .. } = rule {
            for node in of.keys().filter(|node| !nodes.contains(&node.as_str())) {
                bad(format!("rules[{n}].nodes.{node}"), format!("there is no node '{node}'{}", hint(node.as_str(), &nodes)));
            }
        }
    }
    let mut last = 0.0;
    for (n, step) in file.steps.iter().enumerate() {
        if !(step.at >= last && step.at <= UNTIL_MAX) {
            bad(format!("steps[{n}].at"), format!("{} is not in order: the step before is at {last} s", step.at));
        }
        last = step.at;
        for (i, text) in step.r#do.iter().enumerate() {
            if let Err(message) = command::parse(text, &Names { nodes: &nodes, vms: &vms }) {
                bad(format!("steps[{n}].do[{i}]"), message);
            }
        }
    }
    if file.until.is_some_and(|until| !(until >= last && until <= UNTIL_MAX)) {
        bad("until".into(), format!("the end must come after the last step, at {last} s, and before {UNTIL_MAX} s"));
    }
    found
}

fn build(file: ScenarioFile) -> Scenario {
    let (nodes, vm_names) = names(&file);
    let nodes: Vec<Name> = nodes.into_iter().cloned().collect();
    let node_no = |name: &Name| {
        let n = nodes.iter().position(|node| node == name).expect("checked");
        NodeNo(u16::try_from(n).expect("checked"))
    };
    let vm_no = |name: &Name| {
        let n = vm_names.iter().position(|vm| vm == name.as_str()).expect("checked");
        VmNo(u32::try_from(n).expect("checked"))
    };
    let how = |strict: bool| if strict { Strictness::Strict } else { Strictness::Preferred };
    let rules = file.rules.iter().map(|rule| match rule {
        RuleFile::NodeAffinity { vms, nodes: of, strict } => {
            let of = of.iter().map(|(node, weight)| (node_no(node), *weight)).collect();
            Rule::Nodes { vms: vms.iter().map(vm_no).collect(), nodes: of, how: how(*strict) }
        }
        RuleFile::VmAffinity { vms, affinity: AffinityFile::Positive, strict } => {
            Rule::Together { vms: vms.iter().map(vm_no).collect(), how: how(*strict) }
        }
        RuleFile::VmAffinity { vms, affinity: AffinityFile::Negative, strict } => {
            Rule::Apart { vms: vms.iter().map(vm_no).collect(), how: how(*strict) }
        }
    });
    let of = |name: &Name| file.nodes[name].as_ref();
    let starts: Vec<NodeStart> = nodes.iter().map(|name| node_start(name, of(name))).collect();
    let sizes = nodes.iter().map(|name| {
        let node = of(name);
        let memory = node.and_then(|n| n.memory).unwrap_or(ByteCount::from_gib(64));
        (node.and_then(|n| n.cpus).unwrap_or(16), memory.mib())
    });
    let stonith = (0u16..).zip(&starts).filter(|(_, start)| start.stonith == Switch::On).map(|(n, _)| NodeNo(n)).collect();
    let settings = Settings {
        rules: rules.collect(),
        shutdown: match file.settings.shutdown_policy {
            PolicyFile::Migrate => ShutdownPolicy::Migrate,
            PolicyFile::Freeze => ShutdownPolicy::Freeze,
            PolicyFile::Failover => ShutdownPolicy::Failover,
            PolicyFile::Conditional => ShutdownPolicy::Conditional,
        },
        failback: file.settings.failback,
        sizes: sizes.collect(),
        stonith,
        storage: if file.settings.storage_fence { StorageCan::RefuseNodes } else { StorageCan::Nothing },
    };
    let vms = vm_names.iter().map(|name| {
        let name: Name = name.parse().expect("checked");
        let vm = file.vms.get(&name);
        VmStart { wish: vm.map_or(ADDED, wish), node: vm.map(|vm| node_no(&vm.node)), name }
    });
    let vms = vms.collect();
    let last = file.steps.last().map_or(0.0, |step| step.at);
    let node_names: Vec<&str> = nodes.iter().map(Name::as_str).collect();
    let known: Vec<&str> = vm_names.iter().map(String::as_str).collect();
    let all = Names { nodes: &node_names, vms: &known };
    let parsed = |text: &String| command::parse(text, &all).expect("checked");
    let steps = file.steps.iter().flat_map(|step| step.r#do.iter().map(move |text| (ms(step.at), text)));
    let steps = steps.map(|(at, text)| (at, text.clone(), parsed(text))).collect();
    let profile = match file.settings.profile {
        ProfileFile::Standard => Profile::Standard,
        ProfileFile::Fast => Profile::Fast,
    };
    Scenario { nodes: starts, vms, settings, profile, steps, until: ms(file.until.unwrap_or(last + AFTERWARDS)) }
}

fn node_start(name: &Name, node: Option<&NodeFile>) -> NodeStart {
    let on = |switch: Option<SwitchFile>| Switch::from(switch.unwrap_or_default());
    NodeStart {
        name: name.clone(),
        power: on(node.map(|n| n.power)),
        network: on(node.map(|n| n.network)),
        stonith: node.and_then(|n| n.stonith).unwrap_or(SwitchFile::Off).into(),
        watchdog: match node.map(|n| n.watchdog).unwrap_or_default() {
            WatchdogFile::Hardware => Some(WatchdogKind::Hardware),
            WatchdogFile::Software => Some(WatchdogKind::Software),
            WatchdogFile::None => None,
        },
    }
}

fn wish(vm: &VmFile) -> Wish {
    Wish {
        run: match vm.run {
            RunFile::Started => RunWish::Started,
            RunFile::Stopped => RunWish::Stopped,
            RunFile::Disabled => RunWish::Disabled,
            RunFile::Ignored => RunWish::Ignored,
        },
        priority: vm.priority,
        max_restart: vm.max_restart,
        max_relocate: vm.max_relocate,
        failback: vm.failback,
        cpus: vm.cpus.unwrap_or(1),
        memory_mib: vm.memory.unwrap_or(ByteCount::from_gib(1)).mib(),
    }
}
