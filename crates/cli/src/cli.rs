//! The grammar: `vmkeep NOUN VERB`, a few verbs at the root, and options that hold everywhere.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use vmkeep_types::name::Name;
use vmkeep_types::units::Seconds;

use crate::commands;
use crate::printer::{ColorChoice, Format};

/// Where vmkeepd listens.
pub const SOCKET: &str = "/run/vmkeep/vmkeepd.sock";

const EXAMPLES: &str = "Examples:
  vmkeep image build tiny
  vmkeep launch tiny hello --console
  vmkeep apply -f web.yaml
  vmkeep vm list
  vmkeep host check

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 absent, 4 conflict, 5 control plane unreachable";

/// Virtual machines that are kept running.
#[derive(Debug, Parser)]
#[command(name = "vmkeep", version, about, after_help = EXAMPLES, infer_subcommands = false, max_term_width = 120)]
#[command(disable_help_subcommand = true, disable_help_flag = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Format of the data on stdout
    #[arg(short = 'o', long, global = true, value_enum, default_value = "table")]
    pub output: Format,
    /// Wait for the end of the work and show its steps (the default)
    #[arg(long, global = true, overrides_with = "no_wait")]
    pub wait: bool,
    /// Return as soon as the wish is written
    #[arg(long, global = true)]
    pub no_wait: bool,
    /// How long to wait, like 90s or 5m; for 'vm stop': how long the guest may take before it is killed
    #[arg(long, global = true, value_name = "TIME")]
    pub timeout: Option<Seconds>,
    /// Do not ask before something is destroyed
    #[arg(short = 'y', long, global = true)]
    pub yes: bool,
    /// Say what would be done and change nothing
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Results only: no progress, no hints
    #[arg(short = 'q', long, global = true)]
    pub quiet: bool,
    /// Project to work in
    #[arg(long, global = true, env = "VMKEEP_PROJECT", default_value = "default", value_name = "NAME", hide_env_values = true)]
    pub project: Name,
    /// Socket of the local daemon
    #[arg(long, global = true, env = "VMKEEP_SOCKET", default_value = SOCKET, value_name = "PATH", hide_env_values = true)]
    pub socket: PathBuf,
    /// Server to talk to instead, like https://host:8443; several of one cluster with commas between
    #[arg(long, global = true, env = "VMKEEP_SERVER", value_name = "URL", hide_env_values = true)]
    pub server: Option<String>,
    /// File with the token for --server (or the token itself in VMKEEP_TOKEN)
    #[arg(long, global = true, env = "VMKEEP_TOKEN_FILE", value_name = "FILE", hide_env_values = true)]
    pub token_file: Option<PathBuf>,
    /// Certificate of the authority that signed the server's
    #[arg(long, global = true, env = "VMKEEP_CA_FILE", value_name = "FILE", hide_env_values = true)]
    pub ca_file: Option<PathBuf>,
    /// Your certificate for --server, if it takes certificates of users; its key with --key-file
    #[arg(long, global = true, env = "VMKEEP_CERT_FILE", value_name = "FILE", hide_env_values = true, requires = "key_file")]
    pub cert_file: Option<PathBuf>,
    /// Key of --cert-file
    #[arg(long, global = true, env = "VMKEEP_KEY_FILE", value_name = "FILE", hide_env_values = true, requires = "cert_file")]
    pub key_file: Option<PathBuf>,
    /// Colours; NO_COLOR is obeyed
    #[arg(long, global = true, value_enum, default_value = "auto", value_name = "WHEN")]
    pub color: ColorChoice,
    /// Print help
    #[arg(short = 'h', long, global = true, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make what manifests say
    Apply(commands::apply::ApplyArgs),
    /// Show what apply would change, field by field, and what needs a restart
    Plan(commands::apply::PlanArgs),
    /// Delete what manifests name
    Delete(commands::delete::DeleteArgs),
    /// Write everything as manifests
    Export(commands::export::ExportArgs),
    /// Explain a field of a manifest: vm.disks.cache
    Explain(commands::explain::ExplainArgs),
    /// Make and start a VM from an image
    Launch(commands::launch::LaunchArgs),
    /// VMs by their use of CPU, memory, disk and network
    Top(commands::top::TopArgs),
    /// Serial console of a VM (same as 'vm console')
    Console(commands::vm::console::ConsoleArgs),
    /// What happened (same as 'event list')
    Events(commands::event::ListArgs),
    /// Virtual machines
    #[command(subcommand)]
    Vm(commands::vm::VmCommand),
    /// What VM disks are made from
    #[command(subcommand)]
    Image(commands::image::ImageCommand),
    /// Disks' data
    #[command(subcommand)]
    Volume(commands::volume::VolumeCommand),
    /// Networks that VMs attach to
    #[command(subcommand)]
    Network(commands::network::NetworkCommand),
    /// Where volumes and images lie
    #[command(subcommand)]
    Pool(commands::pool::PoolCommand),
    /// Hosts
    #[command(subcommand)]
    Node(commands::node::NodeCommand),
    /// Many hosts as one
    #[command(subcommand)]
    Cluster(commands::cluster::ClusterCommand),
    /// What happens when a host dies
    #[command(subcommand)]
    Ha(commands::ha::HaCommand),
    /// The host itself
    #[command(subcommand)]
    Host(commands::host::HostCommand),
    /// Long work
    #[command(subcommand)]
    Op(commands::op::OpCommand),
    /// What happened
    #[command(subcommand)]
    Event(commands::event::EventCommand),
    /// Access over the network
    #[command(subcommand)]
    Token(commands::token::TokenCommand),
    /// Keys under which passwords lie sealed
    #[command(subcommand)]
    Secret(commands::secret::SecretCommand),
    /// Play through what happens to a cluster when its nodes fail
    Sim(commands::sim::SimArgs),
    /// Versions of this program and the daemon
    Version,
    /// Completions for a shell
    Completions(commands::shell::CompletionsArgs),
    /// Write man pages into a directory
    Man(commands::shell::ManArgs),
}
