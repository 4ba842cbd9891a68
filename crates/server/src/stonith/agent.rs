//! One run of one of Debian's fence agents: options on its stdin, never among its arguments, where `ps` shows them to everybody.
//!
//! ```text
//!  action=off\nip=…\npassword=…\n ──stdin──► /usr/sbin/fence_ipmilan ──► exit 0 done │ 2 the power is off (status) │ else failed
//! ```
//! The agent has a time for it, after which its whole process group is killed. What it said is kept for people, with the values
//! of secret options blotted out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use vmkeep_types::stonith::{HIDDEN, is_secret};

/// Where Debian installs them.
pub const FOLDER: &str = "/usr/sbin";

/// Words of an agent that are kept.
const WORDS_BYTES_MAX: usize = 400;
/// Output of an agent that is read; the rest is thrown away.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Status,
    Off,
    On,
    Reboot,
}

impl Action {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Off => "off",
            Self::On => "on",
            Self::Reboot => "reboot",
        }
    }

    /// Agents wait until the power has really changed.
    fn patience(self) -> Duration {
        match self {
            Self::Status => Duration::from_secs(20),
            Self::Off | Self::On => Duration::from_secs(60),
            Self::Reboot => Duration::from_secs(120),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    On,
    Off,
}

/// Everything an agent is told, secrets in the clear; never shown, never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Orders {
    /// `ipmilan`
    pub agent: String,
    pub options: BTreeMap<String, String>,
    /// Where agents are.
    pub folder: PathBuf,
}

impl std::fmt::Debug for Orders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orders").field("agent", &self.agent).field("options", &self.options.keys()).finish_non_exhaustive()
    }
}

#[derive(Debug, Error)]
pub enum AgentError {
    #[error("fence_{agent} is not installed on this control node: {why}; apt-get install fence-agents")]
    Missing { agent: String, why: std::io::Error },
    #[error("fence_{agent} was not done with '{action}' after {seconds} s, and was killed")]
    Late { agent: String, action: &'static str, seconds: u64 },
    #[error("fence_{agent}: '{action}' failed: {words}")]
    Failed { agent: String, action: &'static str, words: String },
}

/// Is the power on?
///
/// # Errors
/// The agent does not know.
pub async fn status(orders: &Orders) -> Result<Power, AgentError> {
    match run(orders, Action::Status).await? {
        (Some(0), _) => Ok(Power::On),
        (Some(2), _) => Ok(Power::Off),
        (_, words) => Err(failed(orders, Action::Status, words)),
    }
}

/// Does it, and does not come back before it is done.
///
/// # Errors
/// It is not known to be done.
pub async fn act(orders: &Orders, action: Action) -> Result<(), AgentError> {
    match run(orders, action).await? {
        (Some(0), _) => Ok(()),
        (_, words) => Err(failed(orders, action, words)),
    }
}

fn failed(orders: &Orders, action: Action, words: String) -> AgentError {
    AgentError::Failed { agent: orders.agent.clone(), action: action.as_str(), words }
}

async fn run(orders: &Orders, action: Action) -> Result<(Option<i32>, String), AgentError> {
    let program = orders.folder.join(format!("fence_{}", orders.agent));
    let mut child = spawn(&program).map_err(|why| AgentError::Missing { agent: orders.agent.clone(), why })?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok());
    let patience = action.patience();
    let ended = tokio::time::timeout(patience, converse(&mut child, orders, action)).await;
    if ended.is_err()
        && let Some(group) = group
    {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    match ended {
        Ok(told) => told.map_err(|why| AgentError::Missing { agent: orders.agent.clone(), why }),
        Err(_) => Err(AgentError::Late { agent: orders.agent.clone(), action: action.as_str(), seconds: patience.as_secs() }),
    }
}

fn spawn(program: &Path) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C").env("PATH", PATH).current_dir("/").process_group(0).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

async fn converse(child: &mut Child, orders: &Orders, action: Action) -> std::io::Result<(Option<i32>, String)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let orders_for_it = async {
        if let Some(mut stdin) = stdin {
            // One that ends without reading is told by its exit code.
            let _ = stdin.write_all(written(orders, action).as_bytes()).await;
        }
    };
    let ((), out, err) = tokio::join!(orders_for_it, read(stdout), read(stderr));
    let code = child.wait().await?.code();
    Ok((code, words(orders, &if err.trim().is_empty() { out } else { err })))
}

/// As fence agents read it: one option on a line.
fn written(orders: &Orders, action: Action) -> String {
    let options = orders.options.iter().map(|(key, value)| format!("{key}={value}\n"));
    format!("action={}\n", action.as_str()) + &options.collect::<String>()
}

async fn read(from: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        let mut limited = from.take(OUTPUT_BYTES_MAX);
        let _ = limited.read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(&mut limited.into_inner(), &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last that it said, on one line, without secrets.
fn words(orders: &Orders, said: &str) -> String {
    let secret = orders.options.iter().filter(|(key, value)| is_secret(key) && !value.is_empty());
    let blotted = secret.fold(said.to_owned(), |said, (_, value)| said.replace(value.as_str(), HIDDEN));
    let lines: Vec<&str> = blotted.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let line = lines.join("; ");
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    let from = line.char_indices().rev().take(WORDS_BYTES_MAX).last().map_or(0, |(at, _)| at);
    if line.is_empty() { "it said nothing".into() } else { line[from..].to_owned() }
}
