//! Why a VM did not start, in the words of the program that refused.

use std::fs;
use std::path::Path;

use vmkeep_types::error::Error;

use super::node::Node;
use super::report::State;
use crate::hypervisor::HvError;

/// Where swtpm writes what it does not tell libvirt.
const SWTPM_LOGS: &str = "/var/log/swtpm/";
/// Read of such a log at most.
const LOG_BYTES_MAX: u64 = 4 << 20;

pub fn start_error(node: &Node, state: &State, error: &HvError) -> Error {
    let (name, said) = (&state.order.spec.name, error.to_string());
    if let Some(log) = log_named_in(&said) {
        let words = fs::metadata(log).ok().filter(|m| m.is_file() && m.len() <= LOG_BYTES_MAX).and_then(|_| fs::read(log).ok());
        let words = words.and_then(|bytes| swtpm_words(&String::from_utf8_lossy(&bytes)));
        let words = words.map_or_else(String::new, |words| format!("; swtpm says: {words}"));
        return Error::refused(format!("the TPM did not start: {said}{words}"))
            .hint(format!("{} on the VM's host tells more", log.display()));
    }
    let log = node.config.log_dir.display();
    let hint = format!("`vmkeep vm logs {name} --source qemu` shows QEMU's own words; serial logs are in {log}");
    Error::refused(format!("QEMU did not start: {said}")).hint(hint)
}

/// libvirt names the log of swtpm and keeps its content for itself.
fn log_named_in(message: &str) -> Option<&Path> {
    let (_, rest) = message.split_once("error log '")?;
    let path = Path::new(rest.split_once('\'')?.0);
    let plain = !path.components().any(|c| matches!(c, std::path::Component::ParentDir));
    (plain && path.starts_with(SWTPM_LOGS)).then_some(path)
}

/// The first complaint since its last start; before and after it stand calls and what follows from it.
fn swtpm_words(log: &str) -> Option<String> {
    let last = log.rfind("Starting vTPM manufacturing").map_or(log, |at| &log[at..]);
    let told = |line: &&str| !["Starting", "Successfully", "  Invoking", "Ending"].iter().any(|begin| line.starts_with(begin));
    last.lines().filter(|line| !line.trim().is_empty()).find(told).map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
Starting vTPM manufacturing as tss:tss @ Fri 27 Nov 2026 12:48:35 AM UTC
something of the try before
Ending vTPM manufacturing @ Fri 27 Nov 2026 12:48:35 AM UTC
Starting vTPM manufacturing as tss:tss @ Fri 27 Nov 2026 12:48:39 AM UTC
Successfully created RSA 2048 EK with handle 0x81010001.
  Invoking /usr/bin/swtpm_localca --type ek --ek b40236
Need read/write rights on statedir /var/lib/swtpm-localca for user tss.
swtpm_localca exit with status 1: 
An error occurred. Authoring the TPM state failed.
Ending vTPM manufacturing @ Fri 27 Nov 2026 12:48:39 AM UTC
";

    #[test]
    fn swtpm_is_heard() {
        assert_eq!(swtpm_words(LOG).as_deref(), Some("Need read/write rights on statedir /var/lib/swtpm-localca for user tss."));
        assert_eq!(swtpm_words("Starting vTPM manufacturing\nSuccessfully authored TPM state.\n"), None);
    }

    #[test]
    fn only_swtpms_own_log_is_read() {
        let named = |log: &str| {
            let words = format!("Could not run '/usr/bin/swtpm_setup'. exitstatus: 1; Check error log '{log}' for details.");
            log_named_in(&words).is_some()
        };
        assert!(named("/var/log/swtpm/libvirt/qemu/sb-swtpm.log"));
        assert!(!named("/var/log/swtpm/../../../etc/shadow"));
        assert!(!named("/etc/shadow"));
        assert!(log_named_in("QEMU is gone").is_none());
    }
}
