//! What becomes of a highly available VM: where it runs, by which right, and how the death of its host was proved.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::host::text;
use crate::wait::until;

/// Silence, a proof, a start, and what two cores add.
pub const RECOVERED: Duration = Duration::from_secs(180);

/// Where a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// Index of the host.
    pub host: usize,
    /// The right to run it: one more with each owner.
    pub generation: u64,
}

impl Home {
    /// None: it does not run, or it is not known at this moment.
    pub fn of(vm: &Value) -> Option<Self> {
        let status = &vm["status"];
        let host = status["node"].as_str()?.strip_prefix("node")?.parse::<usize>().ok()?.checked_sub(1)?;
        (status["phase"] == "running").then_some(Self { host, generation: status["generation"].as_u64()? })
    }

    /// Its node's name.
    pub fn node(self) -> String {
        format!("node{}", self.host + 1)
    }
}

/// One death, in seconds after the last sign of life.
#[derive(Clone, Debug, PartialEq)]
pub struct Death {
    pub proof: String,
    pub sealed: f64,
    pub dead: f64,
    pub placed: f64,
    pub running: f64,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { proof, sealed, dead, placed, running } = self;
        write!(f, "silent 0.0 s, sealed {sealed:.1} s, dead by {proof} {dead:.1} s, placed {placed:.1} s, running {running:.1} s")
    }
}

impl Cluster {
    /// Waits until the VM runs in another right than `before`, as host `asked` tells.
    pub fn until_recovered(&self, asked: usize, vm: &str, before: Home) -> Home {
        until(&format!("{vm} runs elsewhere than on {}", before.node()), RECOVERED, || {
            let out = self.host(asked).vmkeep(["vm", "show", vm, "-o", "json"]);
            let shown: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
            let home = Home::of(&shown).filter(|home| home.generation > before.generation);
            home.ok_or_else(|| {
                let status = text(&self.host(asked).vmkeep(["ha", "status"]).stdout);
                format!("{}{}\n{status}\n{}", shown["status"], text(&out.stderr), self.logs())
            })
        })
    }

    /// Waits until the history tells all of the newest death of this node, with this VM.
    pub fn death(&self, asked: usize, node: &str, vm: &str) -> Death {
        until(&format!("the history tells of {node}"), RECOVERED, || {
            let out = self.host(asked).vmkeep(["ha", "history", "-o", "json"]);
            let told: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
            let found = told["incidents"].as_array().into_iter().flatten().find(|death| death["incident"]["node"] == node);
            found.and_then(|death| told_of(death, vm)).ok_or_else(|| format!("{told}{}", text(&out.stderr)))
        })
    }
}

fn told_of(death: &Value, vm: &str) -> Option<Death> {
    let rescue = death["vms"].as_array()?.iter().find(|rescue| rescue["name"] == vm)?;
    let at = |value: &Value| value.as_str()?.parse::<Timestamp>().ok();
    let silent = at(&death["incident"]["silent_since"])?;
    let after = |value: &Value| Some(at(value)?.duration_since(silent).as_secs_f64());
    Some(Death {
        proof: death["confirmed"]["proof"].as_str()?.to_owned(),
        sealed: after(&death["incident"]["sealed_at"])?,
        dead: after(&death["confirmed"]["at"])?,
        placed: after(&rescue["placed_at"])?,
        running: after(&rescue["running_at"])?,
    })
}
