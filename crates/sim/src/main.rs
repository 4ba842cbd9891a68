//! `vmkeep-sim`: seeds by the thousand. docs/guide/sim.md says how to run millions.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use vmkeep_core::ha::timers::Profile;
use vmkeep_core::ha::weakness::Weakness;
use vmkeep_sim::seeds::{self, Class};

/// A whole cluster in one thread: faults at random, invariants checked with every change.
#[derive(Debug, Parser)]
#[command(name = "vmkeep-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run seeds; those that break an invariant are told with the command that repeats them
    Run(RunArgs),
    /// Lose one node in many clusters and tell how long its VMs were away
    Recovery(RecoveryArgs),
    /// Simulate clusters in which nothing happens and tell how fast that goes
    Speed {
        /// Nodes
        #[arg(long, default_value_t = 3)]
        nodes: usize,
        /// Simulated hours
        #[arg(long, default_value_t = 20)]
        hours: u64,
    },
    /// Play one scenario file
    Play {
        file: std::path::PathBuf,
        /// The story for people, or the facts for programs
        #[arg(short, long, value_enum, default_value = "story")]
        output: Output,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// One seed, with its story
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// From one seed to before another: 0..20000
    #[arg(long, value_name = "A..B")]
    seeds: Option<String>,
    /// Take a guard away; every one must be missed
    #[arg(long, value_name = "GUARD")]
    weak: Option<Weakness>,
    /// Fence agents lie
    #[arg(long)]
    lies: bool,
    /// Faults close to the edges of guards, as for --weak
    #[arg(long, conflicts_with = "lies")]
    sharp: bool,
}

#[derive(Debug, Args)]
struct RecoveryArgs {
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// Nodes of the clusters
    #[arg(long, value_delimiter = ',', default_values_t = [3, 5, 10, 20, 50])]
    nodes: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Story,
    Json,
}

/// An error with its places, one a line.
fn words(error: &vmkeep_types::error::Error) -> String {
    let problems = error.problems.iter().map(|p| format!("\n  {}: {}", p.field, p.message));
    std::iter::once(error.message.clone()).chain(problems).collect()
}

fn main() -> ExitCode {
    let said = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Recovery(args) => Ok(recovery(&args)),
        Command::Speed { nodes, hours } => Ok(speed(nodes, hours)),
        Command::Play { file, output, seed } => play(&file, output, seed),
    };
    match said {
        Ok(code) => code,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &RunArgs) -> Result<ExitCode, String> {
    let class = match (args.lies, args.sharp) {
        (true, _) => Class::Lies,
        (false, true) => Class::Sharp,
        (false, false) => Class::Any,
    };
    if let Some(seed) = args.seed {
        let outcome = seeds::run(seed, class, args.weak);
        print!("{}", seeds::shrunk_story(seed, class, args.weak));
        return Ok(if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let text = args.seeds.as_deref().unwrap_or("0..1000");
    let bad = || format!("'{text}' is no range of seeds; write it like 0..20000");
    let (from, to) = text.split_once("..").ok_or_else(bad)?;
    let (from, to): (u64, u64) = (from.parse().map_err(|_| bad())?, to.parse().map_err(|_| bad())?);
    let began = Instant::now();
    let (mut broken, mut events, mut simulated) = (0u64, 0u64, 0u64);
    for seed in from..to {
        let outcome = seeds::run(seed, class, args.weak);
        events += outcome.events;
        simulated += outcome.simulated_ms;
        if let Some(first) = outcome.violations.first() {
            broken += 1;
            let weak = args.weak.map_or_else(String::new, |weak| format!(" --weak {}", weak.as_str()));
            let kind = if args.lies {
                " --lies"
            } else if args.sharp {
                " --sharp"
            } else {
                ""
            };
            println!("{}: {}\n  vmkeep-sim run --seed {seed}{weak}{kind}", first.invariant, first.what);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let rate = events as f64 / seconds.max(0.001);
    eprintln!(
        "{} seeds, {broken} broken; {events} events, {rate:.0} a second; {} cluster-hours in {seconds:.1} s",
        to - from,
        simulated / 3_600_000
    );
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn recovery(args: &RecoveryArgs) -> ExitCode {
    println!("                                      first of four priorities   last of them");
    println!(
        "profile   stonith  nodes  seeds  VMs    p50     p99     p100     p50     p99     p100 (s from the last sign of life to running)"
    );
    for profile in Profile::ALL {
        for stonith in [false, true] {
            for nodes in &args.nodes {
                let class = Class::SingleLoss { nodes: *nodes, profile, stonith };
                let outcomes: Vec<seeds::Outcome> = (0..args.seeds).map(|seed| seeds::run(seed, class, None)).collect();
                let parts = |took: fn(&seeds::Outcome) -> u64| {
                    let mut all: Vec<u64> = outcomes.iter().map(took).collect();
                    all.sort_unstable();
                    [50, 99, 100].map(|part| format!("{:<7.1}", all[(all.len() - 1) * part / 100] as f64 / 1000.0)).join(" ")
                };
                let (first, last) = (parts(|o| o.first_ms), parts(|o| o.slowest_ms));
                let vms: usize = outcomes.iter().map(|o| o.recoveries).sum();
                let name = profile.as_str();
                println!("{name:<9} {stonith:<8} {nodes:<6} {:<6} {vms:<6} {first}  {last}", args.seeds);
            }
        }
    }
    ExitCode::SUCCESS
}

fn speed(nodes: usize, hours: u64) -> ExitCode {
    let began = Instant::now();
    let events: u64 = (0..hours).map(|seed| seeds::run(seed, Class::Calm { nodes }, None).events).sum();
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{hours} cluster-hours of {nodes} nodes in {seconds:.2} s: {:.0} a minute, {:.0} events a second",
        hours as f64 * 60.0 / seconds,
        events as f64 / seconds
    );
    ExitCode::SUCCESS
}

fn play(file: &std::path::Path, output: Output, seed: u64) -> Result<ExitCode, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let report = vmkeep_sim::scenario::run(&file.display().to_string(), &text, seed).map_err(|e| words(&e))?;
    print!("{}", if output == Output::Json { report.json() } else { report.story() });
    Ok(if report.facts.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
