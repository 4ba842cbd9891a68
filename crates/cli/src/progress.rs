//! Progress of operations and transfers on stderr: bars and steps on a terminal, plain lines elsewhere.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use vmkeep_types::operation::{OpState, Operation};

use crate::commands::op::guest_writes;
use crate::plain::escaped;
use crate::printer::Printer;

/// Redraws a second; more only costs the terminal.
const REDRAWS_HZ: u8 = 10;

/// All bars of one command.
pub struct Board {
    multi: Option<MultiProgress>,
    quiet: bool,
    utf8: bool,
}

impl Board {
    pub fn new(printer: &Printer) -> Self {
        let draws = printer.err_tty && !printer.is_quiet();
        let multi = draws.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS_HZ)));
        Self { multi, quiet: printer.is_quiet(), utf8: printer.utf8 }
    }

    pub fn track(&self, op: &Operation) -> Track {
        let bar = self.multi.as_ref().map(|m| m.add(self.spinner(&format!("{} {}", verb(&op.kind), op.resource.name))));
        Track { bar, multi: self.multi.clone(), quiet: self.quiet, utf8: self.utf8, steps: 0, blocked: None }
    }

    fn spinner(&self, label: &str) -> ProgressBar {
        let bar = ProgressBar::no_length();
        bar.set_style(style("{spinner} {prefix}  {wide_msg}", self.utf8));
        bar.set_prefix(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    /// A bar over bytes.
    pub fn bytes(&self, label: &str) -> Arc<dyn Fn(u64, Option<u64>) + Send + Sync> {
        let Some(multi) = &self.multi else { return Arc::new(|_, _| {}) };
        let bar = multi.add(ProgressBar::no_length());
        bar.set_style(style("{prefix}  {bytes} {binary_bytes_per_sec}", self.utf8));
        bar.set_prefix(label.to_owned());
        let known = style("{prefix}  [{bar:30}] {percent:>3}%  {bytes} of {total_bytes}  {binary_bytes_per_sec}  {eta} left", self.utf8);
        Arc::new(move |done, total| {
            if let (Some(total), None) = (total, bar.length()) {
                bar.set_length(total);
                bar.set_style(known.clone());
            }
            bar.set_position(done);
            if total == Some(done) {
                bar.finish_and_clear();
            }
        })
    }
}

fn style(template: &str, utf8: bool) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the templates of this file are well formed");
    if utf8 { style.progress_chars("━╸─") } else { style.progress_chars("=> ").tick_chars("-\\|/ ") }
}

/// The progress of one operation.
pub struct Track {
    bar: Option<ProgressBar>,
    multi: Option<MultiProgress>,
    quiet: bool,
    utf8: bool,
    /// Steps that were shown already.
    steps: usize,
    blocked: Option<String>,
}

impl Track {
    pub fn update(&mut self, op: &Operation) {
        for step in op.steps.iter().skip(self.steps) {
            self.line(&format!("  {}: {step}", op.resource.name));
        }
        self.steps = self.steps.max(op.steps.len());
        if op.blocked != self.blocked {
            if let Some(why) = &op.blocked {
                self.line(&format!("  {}: waits: {why}", op.resource.name));
            }
            self.blocked.clone_from(&op.blocked);
        }
        if let (Some(bar), Some(p)) = (&self.bar, op.progress) {
            if bar.length() != Some(p.total) {
                bar.set_style(style("{spinner} {prefix}  [{bar:30}] {percent:>3}%  {wide_msg}", self.utf8));
                bar.set_length(p.total);
            }
            bar.set_position(p.done);
            if let Some(copying) = &op.copying {
                bar.set_message(guest_writes(copying));
            }
        }
    }

    /// Takes the bar away and says how it ended; a failure is said by the command.
    pub fn end(&mut self, end: Option<&Operation>) {
        if let Some(op) = end {
            self.update(op);
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if let Some(op) = end.filter(|op| op.state == OpState::Done) {
            self.line(&format!("{} '{}' {}{}", op.resource.kind, op.resource.name, past(verb(&op.kind)), took(op)));
        }
    }

    fn line(&self, text: &str) {
        if self.quiet {
            return;
        }
        let text = escaped(text);
        match &self.multi {
            Some(multi) => {
                let _ = multi.println(text);
            }
            None => eprintln!("{text}"),
        }
    }
}

/// `start` of `vm.start`.
pub fn verb(kind: &str) -> &str {
    kind.split_once('.').map_or(kind, |(_, verb)| verb)
}

fn past(verb: &str) -> String {
    let known = match verb {
        "stop" => "stopped",
        "kill" => "killed",
        "build" => "built",
        "reset" => "reset",
        "apply" => "applied",
        "upgrade-machine" => "given the newest machine from its next cold start on",
        v if v.ends_with('e') => return format!("{v}d"),
        "start" | "restart" | "reboot" | "import" | "adopt" | "reinit" | "rebuild" => "",
        _ => return format!("{verb} done"),
    };
    match (known, verb) {
        ("", "rebuild") => "rebuilt".into(),
        ("", "reinit") => "prepared for a new first boot".into(),
        ("", verb) => format!("{verb}ed"),
        (known, _) => known.into(),
    }
}

/// `, after 2.3 s`, where it took long enough to matter.
fn took(op: &Operation) -> String {
    let Some(ended) = op.ended_at else { return String::new() };
    let millis = ended.duration_since(op.created_at).as_millis();
    if millis < 100 { String::new() } else { format!(" after {}.{} s", millis / 1000, millis % 1000 / 100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_tense() {
        let all = ["create", "start", "stop", "import", "rebuild", "pause", "clone", "frob"].map(past);
        assert_eq!(all, ["created", "started", "stopped", "imported", "rebuilt", "paused", "cloned", "frob done"]);
    }
}
