//! `cluster init|token|join|leave|recover|lost|status|remove|promote|demote|backup|defrag|upgrade-check|raise-level|vip|capacity|simulate|balance`: many hosts as one.

mod balance;
mod capacity;
mod form;
mod recover;
mod simulate;
mod status;
mod upgrade;
mod vip;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use vmkeep_types::name::Name;
use vmkeep_types::units::Seconds;

use crate::context::Ctx;
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Make this host the first member of a cluster; its VMs run on
    Init(InitArgs),
    /// Make a token for one host to join with
    Token(TokenArgs),
    /// Make this host a member of a cluster
    Join(JoinArgs),
    /// Take this host out of its cluster; it is a single host again and can join anew
    Leave(LeaveArgs),
    /// Restore the store when etcd's majority is lost for good; on a control node that is left
    Recover(RecoverArgs),
    /// Confirm that a node which a recovery waits for is gone for good
    ///
    /// Its VMs are started elsewhere. If it lives all the same, they run twice and destroy their disks, until it has joined again and ends
    /// those of its own: look at the host, or pull its plug, before you say so.
    Lost {
        /// Its node name
        node: Name,
    },
    /// Members, etcd's health, what is degraded and what to do
    #[command(visible_alias = "show")]
    Status,
    /// Take out a member that does not come back
    #[command(visible_alias = "rm")]
    Remove {
        /// Its node name
        node: Name,
    },
    /// Make a compute node a control node with a vote in etcd; five votes at most
    Promote {
        /// Its node name
        node: Name,
    },
    /// Make a control node a compute node: its API and its vote in etcd go, its VMs stay
    Demote {
        /// Its node name
        node: Name,
    },
    /// Copy etcd's database to a file on the node that answers; control nodes do so every 6 hours too
    Backup,
    /// Give disk space of etcd back, one member after the other, and let writes in again
    Defrag,
    /// Versions of all members, what is in the way of a rolling upgrade, and the next step
    UpgradeCheck,
    /// Raise the store's format level to the newest that every member can write; older versions are refused from then on
    RaiseLevel,
    /// The API's one address, on a control node that answers (keepalived)
    #[command(subcommand)]
    Vip(vip::VipCommand),
    /// How many hosts may fail with everything still fitting, and the largest VM there is room for
    Capacity,
    /// See whether these VMs would fit, and where it breaks
    Simulate(simulate::SimulateArgs),
    /// The few moves that would help most, from measured load
    Balance(balance::BalanceArgs),
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// IP address of this host by which the others will reach it; without it, that of the default route
    #[arg(long, value_name = "IP")]
    address: Option<String>,
    /// An etcd of yours instead of one that vmkeep runs: empty, with TLS, and for this cluster alone; several endpoints with commas
    #[arg(long, value_name = "URL", value_delimiter = ',', requires_all = ["etcd_ca", "etcd_cert", "etcd_key"])]
    etcd: Vec<String>,
    /// Who signs its certificates, PEM
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_ca: Option<PathBuf>,
    /// The certificate that every host of the cluster shows it, PEM
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_cert: Option<PathBuf>,
    /// That certificate's key, PEM
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct TokenArgs {
    /// It ends after this time, at most a day; without it, an hour
    #[arg(long, value_name = "TIME")]
    expires_in: Option<Seconds>,
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    /// A control node of the cluster, like 10.0.0.1 or 10.0.0.1:7443
    address: String,
    /// From 'vmkeep cluster token' there
    #[arg(long, env = "VMKEEP_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    /// IP address of this host by which the others will reach it; without it, the one it reaches them from
    #[arg(long, value_name = "IP")]
    own_address: Option<String>,
    /// etcd only: a third vote for two hosts, on any small machine
    #[arg(long)]
    witness: bool,
    /// A control node although there are three already; five votes at most
    #[arg(long, conflicts_with = "witness")]
    control: bool,
}

#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// A file of 'vmkeep cluster backup' on this host; without it, what this host's own etcd still has
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// A node that is gone for good: nobody waits for what it runs
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    lost: Vec<Name>,
}

#[derive(Debug, Args)]
pub struct LeaveArgs {
    /// Without asking the cluster: it has taken this host out already, or exists no more
    #[arg(long)]
    forget: bool,
}

pub async fn run(ctx: &Ctx, command: ClusterCommand) -> Result<(), Failure> {
    match command {
        ClusterCommand::Init(args) => form::init(ctx, args).await,
        ClusterCommand::Token(args) => form::token(ctx, args).await,
        ClusterCommand::Join(args) => form::join(ctx, args).await,
        ClusterCommand::Leave(args) => form::leave(ctx, args).await,
        ClusterCommand::Recover(args) => recover::run(ctx, args).await,
        ClusterCommand::Lost { node } => recover::lost(ctx, &node).await,
        ClusterCommand::Status => status::status(ctx).await,
        ClusterCommand::Remove { node } => status::remove(ctx, &node).await,
        ClusterCommand::Promote { node } => status::promote(ctx, &node).await,
        ClusterCommand::Demote { node } => status::demote(ctx, &node).await,
        ClusterCommand::Backup => status::backup(ctx).await,
        ClusterCommand::Defrag => status::defrag(ctx).await,
        ClusterCommand::UpgradeCheck => upgrade::check(ctx).await,
        ClusterCommand::RaiseLevel => upgrade::raise(ctx).await,
        ClusterCommand::Vip(command) => vip::run(ctx, command).await,
        ClusterCommand::Capacity => capacity::run(ctx).await,
        ClusterCommand::Simulate(args) => simulate::run(ctx, args).await,
        ClusterCommand::Balance(args) => balance::run(ctx, args).await,
    }
}
