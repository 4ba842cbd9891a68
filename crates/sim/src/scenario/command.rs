//! The commands of a script.

use vmkeep_core::ha::record::{DisarmMode, Farewell, MoveHow, NodeNo, RunWish, VmNo};
use vmkeep_types::nearest;

/// Something that is on or off, or is made so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Agent,
    Fenced,
    Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtcdDoes {
    Elect,
    Switch(Switch),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Power(NodeNo, Switch),
    Network(NodeNo, Switch),
    Storage(NodeNo, Switch),
    /// Off: nothing can be read from the store, while transactions pass.
    Store(NodeNo, Switch),
    /// For so many ms.
    Pause(NodeNo, Part, u64),
    Leave(NodeNo, Farewell),
    Upgrade(NodeNo),
    Candidate(NodeNo, Switch),
    Maintenance(NodeNo, Switch),
    Disarm(DisarmMode),
    Arm,
    ConfirmDead(NodeNo),
    Etcd(EtcdDoes),
    /// The wall clock jumps by so many ms.
    ClockStep(NodeNo, i64),
    /// libvirt answers nothing for so many ms.
    LibvirtHangs(NodeNo, u64),
    /// Its QEMU sleeps in the kernel and outlives SIGKILL.
    QemuSticks(VmNo),
    QemuCrashes(VmNo),
    Vm(VmNo, VmCommand),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmCommand {
    Run(RunWish),
    Add(NodeNo),
    Move(MoveHow, NodeNo),
    /// By somebody's hand, behind our back.
    Moved(NodeNo),
    FailStart(u32, Option<NodeNo>),
    FailStop(u32),
    FailMigrate(u32),
}

const VERBS: [&str; 18] = [
    "power",
    "network",
    "storage",
    "store",
    "pause",
    "shutdown",
    "reboot",
    "upgrade",
    "candidate",
    "maintenance",
    "disarm",
    "arm",
    "vm",
    "confirm-dead",
    "etcd",
    "clock",
    "libvirt",
    "qemu",
];

const VM_VERBS: [&str; 12] = [
    "started",
    "stopped",
    "disabled",
    "ignored",
    "delete",
    "add",
    "migrate",
    "relocate",
    "moved",
    "fail-start",
    "fail-stop",
    "fail-migrate",
];

/// Longest pause, s: longer than any run.
const SECONDS_MAX: f64 = 1_000_000.0;

/// The names that commands may use.
pub struct Names<'a> {
    pub nodes: &'a [&'a str],
    pub vms: &'a [&'a str],
}

struct Words<'a> {
    names: &'a Names<'a>,
    rest: std::str::SplitWhitespace<'a>,
}

/// One command, or what is wrong with it, in words.
pub fn parse(text: &str, names: &Names<'_>) -> Result<Command, String> {
    let mut words = Words { names, rest: text.split_whitespace() };
    let verb = words.word("a command")?;
    let command = match verb {
        "power" => Command::Power(words.node()?, words.switch()?),
        "network" => Command::Network(words.node()?, words.switch()?),
        "storage" => Command::Storage(words.node()?, words.switch()?),
        "store" => Command::Store(words.node()?, words.one_of(&[("fail", Switch::Off), ("work", Switch::On)])?),
        "pause" => {
            let node = words.node()?;
            let part = words.one_of(&[("agent", Part::Agent), ("fenced", Part::Fenced), ("host", Part::Host)])?;
            Command::Pause(node, part, words.seconds()?)
        }
        "shutdown" => Command::Leave(words.node()?, Farewell::Shutdown),
        "reboot" => Command::Leave(words.node()?, Farewell::Reboot),
        "upgrade" => Command::Upgrade(words.node()?),
        "candidate" => Command::Candidate(words.node()?, words.one_of(&[("stop", Switch::Off), ("start", Switch::On)])?),
        "maintenance" => Command::Maintenance(words.node()?, words.switch()?),
        "disarm" => Command::Disarm(words.one_of(&[("freeze", DisarmMode::Freeze), ("ignore", DisarmMode::Ignore)])?),
        "arm" => Command::Arm,
        "confirm-dead" => Command::ConfirmDead(words.node()?),
        "etcd" => {
            let (on, off) = (EtcdDoes::Switch(Switch::On), EtcdDoes::Switch(Switch::Off));
            Command::Etcd(words.one_of(&[("elect", EtcdDoes::Elect), ("on", on), ("off", off)])?)
        }
        "clock" => {
            let node = words.node()?;
            words.one_of(&[("step", ())])?;
            Command::ClockStep(node, words.signed_seconds()?)
        }
        "libvirt" => {
            let node = words.node()?;
            words.one_of(&[("hang", ())])?;
            Command::LibvirtHangs(node, words.seconds()?)
        }
        "qemu" => {
            let vm = words.vm()?;
            words.one_of(&[("stick", Command::QemuSticks(vm)), ("crash", Command::QemuCrashes(vm))])?
        }
        "vm" => words.vm_command()?,
        other => return Err(format!("there is no command '{other}'{}", nearest::hint(other, &VERBS))),
    };
    match words.rest.next() {
        Some(more) => Err(format!("'{more}' is one word too many")),
        None => Ok(command),
    }
}

impl<'a> Words<'a> {
    fn word(&mut self, what: &str) -> Result<&'a str, String> {
        self.rest.next().ok_or_else(|| format!("{what} is missing"))
    }

    fn node(&mut self) -> Result<NodeNo, String> {
        let word = self.word("the name of a node")?;
        let found = self.names.nodes.iter().position(|name| *name == word).and_then(|n| u16::try_from(n).ok());
        found.map(NodeNo).ok_or_else(|| format!("there is no node '{word}'{}", nearest::hint(word, self.names.nodes)))
    }

    fn vm(&mut self) -> Result<VmNo, String> {
        let word = self.word("the name of a VM")?;
        let found = self.names.vms.iter().position(|name| *name == word).and_then(|n| u32::try_from(n).ok());
        found.map(VmNo).ok_or_else(|| format!("there is no VM '{word}'{}", nearest::hint(word, self.names.vms)))
    }

    fn one_of<T: Clone>(&mut self, words: &[(&str, T)]) -> Result<T, String> {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let word = self.word(&format!("one of {}", nearest::list(&known)))?;
        let found = words.iter().find(|(known, _)| *known == word).map(|(_, value)| value.clone());
        found.ok_or_else(|| format!("'{word}' means nothing here{}", nearest::hint(word, &known)))
    }

    fn switch(&mut self) -> Result<Switch, String> {
        self.one_of(&[("on", Switch::On), ("off", Switch::Off)])
    }

    fn number(&mut self, what: &str) -> Result<f64, String> {
        let word = self.word(what)?;
        let number: f64 = word.trim_end_matches('s').parse().map_err(|_| format!("'{word}' is not {what}"))?;
        if number.is_finite() && number.abs() <= SECONDS_MAX { Ok(number) } else { Err(format!("'{word}' is too much")) }
    }

    fn seconds(&mut self) -> Result<u64, String> {
        let seconds = self.number("a number of seconds")?;
        if seconds < 0.0 { Err("a time cannot be negative".into()) } else { Ok((seconds * 1000.0) as u64) }
    }

    fn signed_seconds(&mut self) -> Result<i64, String> {
        Ok((self.number("a number of seconds")? * 1000.0) as i64)
    }

    fn count(&mut self) -> Result<u32, String> {
        let word = self.word("a count")?;
        word.parse().map_err(|_| format!("'{word}' is not a count"))
    }

    fn vm_command(&mut self) -> Result<Command, String> {
        let vm = self.vm()?;
        let verb = self.word("what becomes of the VM")?;
        let does = match verb {
            "started" => VmCommand::Run(RunWish::Started),
            "stopped" => VmCommand::Run(RunWish::Stopped),
            "disabled" => VmCommand::Run(RunWish::Disabled),
            "ignored" => VmCommand::Run(RunWish::Ignored),
            "delete" => VmCommand::Run(RunWish::Deleted),
            "add" => VmCommand::Add(self.node()?),
            "migrate" => VmCommand::Move(MoveHow::Live, self.node()?),
            "relocate" => VmCommand::Move(MoveHow::Cold, self.node()?),
            "moved" => VmCommand::Moved(self.node()?),
            "fail-start" => {
                let count = self.count()?;
                let node = if self.rest.clone().next().is_some() { Some(self.node()?) } else { None };
                VmCommand::FailStart(count, node)
            }
            "fail-stop" => VmCommand::FailStop(self.count()?),
            "fail-migrate" => VmCommand::FailMigrate(self.count()?),
            other => return Err(format!("a VM cannot be '{other}'{}", nearest::hint(other, &VM_VERBS))),
        };
        Ok(Command::Vm(vm, does))
    }
}

/// The VM that `vm V add N` brings in, if the text is that.
pub fn added_vm(text: &str) -> Option<&str> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        ["vm", vm, "add", _] => Some(vm),
        _ => None,
    }
}
