//! `ha …`: what happens when a host dies, and what happened when one did.

use std::io::Write;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Subcommand, ValueEnum};
use vmkeep_api::ha::{ConfirmDead, HaBrake, HaChange, HaCheck, HaDisarm, HaForecast, HaHistory, HaIncident, HaNode, HaNodeState, HaStatus};
use vmkeep_types::ha::{HaSettings, Proof, ShutdownPolicy, TimerProfile};
use vmkeep_types::name::Name;

use super::{fence, or_dash, word};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Format, Tone};
use crate::time;

#[derive(Debug, Subcommand)]
pub enum HaCommand {
    /// Hosts, who decides, the timers, and VMs that wait for another host
    Status,
    /// For each highly available VM: where it would run again if its host died now, after how long, or what keeps it from that
    Check,
    /// Hosts that died, and what became of their VMs
    History,
    /// Switch it off for work on the network or the store: nothing is fenced or recovered, and VMs run on
    Disarm {
        /// What is done instead
        mode: DisarmMode,
        /// Told to everybody who asks
        #[arg(long, value_name = "TEXT")]
        why: Option<String>,
    },
    /// Switch it on again
    Arm,
    /// Change how it is set
    #[command(arg_required_else_help = true)]
    Set {
        /// What becomes of highly available VMs when their host is shut down or rebooted
        #[arg(long, value_name = "POLICY", value_parser = policies())]
        shutdown_policy: Option<ShutdownPolicy>,
        /// How soon a host counts as dead, and how often it says that it lives
        #[arg(long, value_parser = profiles())]
        profile: Option<TimerProfile>,
    },
    /// Ask a host's fence agent whether its power is on
    FenceTest(fence::Trial),
    /// Say that a host is dead: its highly available VMs are started elsewhere
    ///
    /// Where no watchdog and no fence agent can prove it, only a person can. The host must have been silent for 15 s. If it lives all
    /// the same, its VMs run twice and destroy their disks: look at the host, or pull its plug, before you say so. A silent host may run
    /// its VMs: a lost cable is silence, too. It ends them when it is back, and that is too late for their disks.
    ConfirmDead {
        /// Host that is off
        name: Name,
        /// Its name once more, where nobody can be asked to type it
        #[arg(long, value_name = "NAME")]
        typed: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DisarmMode {
    /// All VMs stay where they are
    Freeze,
}

fn profiles() -> impl TypedValueParser<Value = TimerProfile> {
    let help = |profile| match profile {
        TimerProfile::Standard => "To 1000 hosts: dead after 38 s, and an outage of 8 s does nothing",
        TimerProfile::Fast => "To 64 hosts on a quiet network: dead after 17 s, and an outage of 1.7 s does nothing",
    };
    one_of(TimerProfile::ALL.map(|profile| (profile.as_str(), help(profile), profile)))
}

fn policies() -> impl TypedValueParser<Value = ShutdownPolicy> {
    let help = |policy| match policy {
        ShutdownPolicy::Migrate => {
            "They move away while they run, and the host waits for that; those that cannot start elsewhere afterwards"
        }
        ShutdownPolicy::Freeze => "They go off and wait for their host",
        ShutdownPolicy::Failover => "They go off and start elsewhere",
        ShutdownPolicy::Conditional => "Freeze for a reboot, failover for a shutdown",
    };
    one_of(ShutdownPolicy::ALL.map(|policy| (policy.as_str(), help(policy), policy)))
}

/// Values of the contract by their words, each with its help.
fn one_of<T: Clone + Send + Sync + 'static, const N: usize>(
    values: [(&'static str, &'static str, T); N],
) -> impl TypedValueParser<Value = T> {
    let words: Vec<PossibleValue> = values.iter().map(|(word, help, _)| PossibleValue::new(*word).help(*help)).collect();
    let meant = move |said: String| values.iter().find(|(word, ..)| *word == said).expect("clap took no other word").2.clone();
    PossibleValuesParser::new(words).map(meant)
}

pub async fn run(ctx: &Ctx, command: HaCommand) -> Result<(), Failure> {
    match command {
        HaCommand::Status => status(ctx).await,
        HaCommand::Check => check(ctx).await,
        HaCommand::History => history(ctx).await,
        HaCommand::Disarm { mode: DisarmMode::Freeze, why } => {
            if ctx.is_rehearsal("disarm high availability") {
                return Ok(());
            }
            ctx.call("ha.disarm")?.json(&HaDisarm { why }).done().await?;
            ctx.printer.say("high availability is disarmed: VMs run on, and wait for a host that dies; at the end: vmkeep ha arm");
            Ok(())
        }
        HaCommand::Arm => {
            if ctx.is_rehearsal("arm high availability") {
                return Ok(());
            }
            ctx.call("ha.arm")?.done().await?;
            ctx.printer.say("high availability is armed again");
            Ok(())
        }
        HaCommand::Set { shutdown_policy, profile } => set(ctx, &HaChange { shutdown_policy, profile }).await,
        HaCommand::FenceTest(trial) => fence::test(ctx, &trial).await,
        HaCommand::ConfirmDead { name, typed } => confirm_dead(ctx, &name, typed).await,
    }
}

async fn set(ctx: &Ctx, change: &HaChange) -> Result<(), Failure> {
    if ctx.is_rehearsal("change how high availability is set") {
        return Ok(());
    }
    let now: HaSettings = ctx.call("ha.set")?.json(change).answer().await?;
    if !matches!(ctx.printer.format, Format::Table | Format::Wide) {
        return ctx.printer.value(&now);
    }
    ctx.printer.say(&format!("a host that is shut down or rebooted: {}", policy(now.shutdown_policy)));
    let profile = now.profile.as_str();
    ctx.printer
        .say(&format!("timers: {profile}; a host whose watchdog is armed takes them up after `vmkeep ha disarm freeze` and `ha arm`"));
    Ok(())
}

fn policy(policy: ShutdownPolicy) -> &'static str {
    match policy {
        ShutdownPolicy::Migrate => "migrate: its highly available VMs move away first",
        ShutdownPolicy::Freeze => "freeze: its VMs wait for it",
        ShutdownPolicy::Failover => "failover: its highly available VMs start elsewhere",
        ShutdownPolicy::Conditional => "conditional: VMs wait for a reboot, and start elsewhere after a shutdown",
    }
}

async fn confirm_dead(ctx: &Ctx, name: &Name, typed: Option<String>) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("confirm that '{name}' is dead")) {
        return Ok(());
    }
    let typed = match typed {
        Some(typed) => typed,
        None if ctx.printer.err_tty => {
            eprint!("If '{name}' lives, its VMs will run twice and destroy their disks. Is it off? Type its name: ");
            let _ = std::io::stderr().flush();
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map_err(|e| Failure::io("cannot read the answer", &e))?;
            line
        }
        None => return Err(Failure::usage("there is no terminal to type the name on", format!("give --typed {name}"))),
    };
    ctx.call("ha.confirm-dead")?.field("name", name).json(&ConfirmDead { typed }).done().await?;
    ctx.printer.say(&format!("'{name}' counts as dead; its highly available VMs are started elsewhere: vmkeep ha status"));
    Ok(())
}

async fn status(ctx: &Ctx) -> Result<(), Failure> {
    let answer: HaStatus = ctx.call("ha.status")?.answer().await?;
    if !matches!(ctx.printer.format, Format::Table | Format::Wide) {
        return ctx.printer.value(&answer);
    }
    let printer = &ctx.printer;
    let armed = answer.disarmed.as_ref().map_or_else(
        || "armed".to_owned(),
        |disarm| format!("disarmed by {} since {} {}", disarm.by, time::local(disarm.at), disarm.why).trim_end().to_owned(),
    );
    if let Some(why) = &answer.alone {
        printer.card(&[("State", format!("nothing is armed: {why}")), ("Decides", "nobody: there is nothing to decide".to_owned())]);
        printer.out("");
        printer.table(&["NODE", "STATE", "EPOCH", "VMS", "IF IT DIES"], answer.nodes.iter().map(node).collect());
        return Ok(());
    }
    let (timers, profile, s) = (&answer.timers, answer.settings.profile.as_str(), |ms: u64| format!("{} s", ms / 1000));
    printer.card(&[
        ("State", armed),
        ("Decides", or_dash(answer.leader.as_ref())),
        (
            "Timers",
            format!("{profile}: renew {}, sealed after {}, killed after {}", s(timers.renew_ms), s(timers.seal_ms), s(timers.kill_ms)),
        ),
        ("Holds", timers.inequality.clone()),
        ("Brake", brake(&answer.brake)),
        ("Shutdown", policy(answer.settings.shutdown_policy).to_owned()),
    ]);
    for problem in &answer.problems {
        printer.warn(problem);
    }
    printer.out("");
    printer.table(&["NODE", "STATE", "EPOCH", "VMS", "IF IT DIES"], answer.nodes.iter().map(node).collect());
    if !answer.queue.is_empty() {
        printer.out("");
        let row = |w: &vmkeep_api::ha::HaWaiting| -> Vec<Cell> {
            vec![w.vm.to_string().into(), w.priority.to_string().into(), w.from.to_string().into(), w.why.clone().into()]
        };
        printer.table(&["WAITS", "PRIORITY", "FROM", "WHY"], answer.queue.iter().map(row).collect());
    }
    Ok(())
}

fn brake(brake: &HaBrake) -> String {
    let HaBrake { silent, live, limit, why } = brake;
    match why {
        Some(why) => format!("on: {why}"),
        None => format!("off: {silent} of {live} hosts silent, {limit} may be at once, and never more than half"),
    }
}

fn node(node: &HaNode) -> Vec<Cell> {
    let tone = match node.state {
        HaNodeState::Online => Tone::Good,
        HaNodeState::Away | HaNodeState::Leaving | HaNodeState::Silent | HaNodeState::Waiting => Tone::Warn,
        HaNodeState::Sealed | HaNodeState::Dead => Tone::Bad,
    };
    let told = match &node.confirmed {
        Some(confirmed) if confirmed.proof != Proof::Goodbye => {
            format!("dead since {} ({}, {})", time::local(confirmed.at), confirmed.proof, confirmed.by)
        }
        Some(_) | None => node.proof.clone(),
    };
    vec![node.node.to_string().into(), Cell(word(&node.state), tone), or_dash(node.epoch.as_ref()).into(), node.vms.into(), told.into()]
}

async fn check(ctx: &Ctx) -> Result<(), Failure> {
    let answer: HaCheck = ctx.call("ha.check")?.answer().await?;
    if !matches!(ctx.printer.format, Format::Table | Format::Wide) {
        return ctx.printer.value(&answer);
    }
    if answer.vms.is_empty() {
        ctx.printer.say("no VM is highly available; `ha: {}` in its manifest makes it so");
        return Ok(());
    }
    let row = |vm: &HaForecast| -> Vec<Cell> {
        let tone = if vm.to.is_some() && vm.after_ms.is_some() { Tone::Good } else { Tone::Warn };
        vec![vm.vm.to_string().into(), or_dash(vm.node.as_ref()).into(), Cell(vm.text.clone(), tone)]
    };
    ctx.printer.table(&["VM", "NODE", "IF ITS NODE DIES"], answer.vms.iter().map(row).collect());
    Ok(())
}

async fn history(ctx: &Ctx) -> Result<(), Failure> {
    let answer: HaHistory = ctx.call("ha.history")?.answer().await?;
    if !matches!(ctx.printer.format, Format::Table | Format::Wide) {
        return ctx.printer.value(&answer);
    }
    if answer.incidents.is_empty() {
        ctx.printer.say("no host has died");
    }
    for death in &answer.incidents {
        story(death).iter().for_each(|line| ctx.printer.out(line));
    }
    Ok(())
}

fn story(death: &HaIncident) -> Vec<String> {
    let incident = &death.incident;
    let after = |at: jiff::Timestamp| format!("{:>6.1} s", at.duration_since(incident.silent_since).as_secs_f64());
    let mut lines = vec![
        format!("{}, epoch {}", incident.node, incident.epoch),
        format!("  {}  last sign of life", time::local(incident.silent_since)),
        format!("  {}  sealed by {}", after(incident.sealed_at), incident.sealed_by),
    ];
    match &death.confirmed {
        Some(confirmed) => lines.push(format!("  {}  dead, by {} ({})", after(confirmed.at), confirmed.proof, confirmed.by)),
        None => lines.push("            its end is not proved".into()),
    }
    let mut told: Vec<(jiff::Timestamp, String)> = Vec::new();
    for vm in &death.vms {
        told.push((vm.placed_at, format!("{} is placed on {}", vm.name, vm.to)));
        told.extend(vm.running_at.map(|at| (at, format!("{} runs on {}", vm.name, vm.to))));
    }
    told.sort();
    lines.extend(told.into_iter().map(|(at, what)| format!("  {}  {what}", after(at))));
    lines
}
