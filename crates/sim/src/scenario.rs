//! `vmkeep sim FILE`: a cluster and a script, played through; what happened as a story or as facts.
//!
//! [`file`] reads, [`command`] is the language of the script, [`play`] carries it out, [`report`] tells.

pub mod command;
pub mod file;
pub mod play;
pub mod report;

use vmkeep_types::error::Error;

pub use report::Report;

/// Reads a scenario and plays it. The same text and seed give the same report.
///
/// # Errors
/// The file is no scenario: every problem with line and column.
pub fn run(name: &str, text: &str, seed: u64) -> Result<Report, Error> {
    let scenario = file::read(name, text)?;
    Ok(play::play(&scenario, seed))
}
