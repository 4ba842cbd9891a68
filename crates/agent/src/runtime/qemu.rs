//! The QEMU process of a running VM, and whether a newer QEMU was installed since it started.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use vmkeep_types::observed::QemuFacts;

use super::node::Node;
use super::report::State;

/// Where libvirt keeps a domain's PID file, made when its QEMU starts; the same for libvirtd and virtqemud.
const PID_DIR: &str = "/run/libvirt/qemu";

/// After a start.
pub async fn started(node: &Node, state: &mut State) {
    state.qemu = None;
    describe(node, state).await;
}

/// While it runs: an upgrade of the package is seen within a minute.
pub async fn look(node: &Node, state: &mut State) {
    if state.domain.known().is_some_and(|d| d.state.is_live()) {
        describe(node, state).await;
    }
}

async fn describe(node: &Node, state: &mut State) {
    if state.qemu.is_none() {
        let version = node.hv.versions().await.ok().map(|v| v.qemu);
        let accel = state.choices.domain_type.clone().unwrap_or_else(|| "qemu".into());
        state.qemu = Some(QemuFacts { pid: None, version, outdated: false, accel });
    }
    let Ok(profile) = node.profile().await else { return };
    let name = state.name_there.clone().unwrap_or_else(|| state.order.spec.name.to_string());
    let pid_file = Path::new(PID_DIR).join(format!("{name}.pid"));
    let outdated = is_older(&pid_file, Path::new(&profile.emulator));
    if let Some(qemu) = &mut state.qemu {
        qemu.pid = std::fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok());
        qemu.outdated = outdated;
    }
}

/// The program was put there after the process started. A package puts a new file in place, which sets its change time; its
/// modification time is that of the build.
fn is_older(pid_file: &Path, program: &Path) -> bool {
    let changed = |path: &Path| std::fs::metadata(path).map(|m| (m.ctime(), m.ctime_nsec()));
    matches!((changed(pid_file), changed(program)), (Ok(started), Ok(installed)) if installed > started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_makes_its_processes_old() {
        let dir = tempfile::tempdir().expect("a folder");
        let (pid_file, program) = (dir.path().join("a.pid"), dir.path().join("qemu"));
        let put = |path: &Path| {
            // File times are as coarse as the kernel's tick.
            std::thread::sleep(std::time::Duration::from_millis(20));
            let fresh = path.with_extension("new");
            std::fs::write(&fresh, "1").expect("written");
            std::fs::rename(&fresh, path).expect("in place");
        };
        put(&program);
        assert!(!is_older(&pid_file, &program), "it does not run");
        put(&pid_file);
        assert!(!is_older(&pid_file, &program));
        put(&program);
        assert!(is_older(&pid_file, &program));
        put(&pid_file);
        assert!(!is_older(&pid_file, &program), "started again");
    }
}
