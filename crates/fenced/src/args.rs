//! Arguments: what differs between hosts and test hosts.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(
    name = "vmkeep-fenced",
    version,
    about = "Kills this host's VMs and lets its watchdog bite when the cluster no longer hears of it"
)]
pub struct Args {
    /// Where the agent finds it
    #[arg(long, value_name = "PATH", default_value = "/run/vmkeep/fenced.sock")]
    pub socket: PathBuf,
    /// auto (hardware before software), none, /dev/watchdogN, or unix:PATH for test hosts
    #[arg(long, default_value = "auto")]
    pub watchdog: Choice,
    /// Cgroup whose processes are killed; may be given more than once. Default: libvirt's partition /machine/vmkeepha, wherever it is
    #[arg(long, value_name = "FOLDER")]
    pub cgroup: Vec<PathBuf>,
    /// Where the reason of a reset is written
    #[arg(long, value_name = "FILE", default_value = "/var/lib/vmkeep/fenced/reason.json")]
    pub reason: PathBuf,
    /// What tells this boot from others
    #[arg(long, value_name = "FILE", default_value = "/proc/sys/kernel/random/boot_id")]
    pub boot_id: PathBuf,
    /// Say what would be used, and end: nothing is opened
    #[arg(long)]
    pub check: bool,
    /// Say whether the program that runs is armed, and end: idle, armed, sealed, or nobody answers
    #[arg(long, conflicts_with = "check")]
    pub status: bool,
    /// The state of the program before this one; set by itself
    #[arg(long, hide = true, value_name = "FD")]
    pub inherit: Option<i32>,
}

/// Which watchdog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    Auto,
    None,
    Device(PathBuf),
    /// A test host's, at this socket.
    Lab(PathBuf),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            _ => match word.strip_prefix("unix:") {
                Some(path) => Ok(Self::Lab(path.into())),
                None if word.starts_with("/dev/") => Ok(Self::Device(word.into())),
                None => Err(format!("'{word}' is no watchdog: write auto, none, /dev/watchdogN or unix:PATH")),
            },
        }
    }
}
