//! Certificates for libvirt and QEMU where both look for them, and libvirt's TLS socket: VMs move between members, encrypted,
//! without a setting.
//!
//! ```text
//!  cluster/libvirt.{key,pem} ──► /etc/pki/CA, /etc/pki/libvirt   root's; libvirt to libvirt, port 16514
//!  cluster/qemu.{key,pem}    ──► /etc/pki/qemu                   QEMU's user's; memory and disks, QEMU to QEMU
//! ```
//! AppArmor lets QEMU read there and not in our folder, so both have copies. A folder with files of an administrator's has no
//! mark of ours and is left alone; `[migration]` in vmkeepd.toml leaves all of it alone.
//!
//! The socket is opened once, which restarts libvirt; VMs run on. Later certificates are told to libvirt while it runs.
//!
//! How it fails: what is missing is a problem in `cluster status`, with the command that mends it.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use nix::unistd::{Uid, User};
use vmkeep_agent::host::check::ports::is_listened_on;
use vmkeep_types::cluster::{ClusterProblem, MemberRole};

use super::etcd::{by_systemd, systemctl};
use super::pki::{self, Purpose};
use super::status::problem;
use crate::config::{Config, HypervisorKind};
use crate::member::{Member, Paths, write_whole};

/// Where libvirt is reached by other hosts.
pub const TLS_PORT: u16 = 16514;
const PKI: &str = "/etc/pki";
const QEMU_CONF: &str = "/etc/libvirt/qemu.conf";
/// Debian's.
const QEMU_USER: &str = "libvirt-qemu";
/// In a folder that we write; without it what is there is an administrator's.
const MARK: &str = "written-by-vmkeep";
const MARK_TEXT: &str = "vmkeepd writes certificates and keys of this folder anew when they age. Without this file it leaves them alone.\n";

/// This host's libvirt and QEMU, as far as certificates go.
pub struct Libvirt {
    pki: PathBuf,
    qemu_conf: PathBuf,
    /// The socket was opened, or that failed; not again in this process: each try restarts libvirt.
    tried: AtomicBool,
}

impl Default for Libvirt {
    fn default() -> Self {
        Self { pki: PKI.into(), qemu_conf: QEMU_CONF.into(), tried: AtomicBool::new(false) }
    }
}

/// Files that belong together.
struct Set {
    what: &'static str,
    dir: PathBuf,
    /// Keys first: a certificate is there when its key is.
    files: Vec<(PathBuf, u32, Vec<u8>)>,
    owner: Uid,
}

impl Set {
    fn is_ours(&self) -> bool {
        self.dir.join(MARK).exists()
    }

    /// A file of somebody else's.
    fn foreign(&self) -> Option<&Path> {
        self.files.iter().map(|(at, ..)| at.as_path()).find(|at| !self.is_ours() && at.symlink_metadata().is_ok())
    }

    fn put(&self) -> anyhow::Result<()> {
        let make = |dir: &Path| {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).with_context(|| format!("cannot make {}", dir.display()))
        };
        make(&self.dir)?;
        // Before the first file: what a crash leaves is ours.
        let mark = self.dir.join(MARK);
        if !mark.exists() {
            write_whole(&mark, 0o644, MARK_TEXT.as_bytes())?;
        }
        for (at, mode, bytes) in &self.files {
            make(at.parent().context("a file lies in a folder")?)?;
            if !fs::read(at).is_ok_and(|old| old == *bytes) {
                write_whole(at, *mode, bytes)?;
            }
            if fs::metadata(at).is_ok_and(|meta| meta.uid() != self.owner.as_raw()) {
                nix::unistd::chown(at, Some(self.owner), None).with_context(|| format!("cannot give {} to its user", at.display()))?;
            }
        }
        Ok(())
    }

    fn take_away(&self) -> anyhow::Result<()> {
        if !self.is_ours() {
            return Ok(());
        }
        let mark = self.dir.join(MARK);
        for at in self.files.iter().rev().map(|(at, ..)| at).chain([&mark]) {
            match fs::remove_file(at) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).with_context(|| format!("cannot remove {}", at.display())),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Libvirt {
    /// Does what is missing here; what could not be done.
    pub fn keep(&self, config: &Config, member: &Member) -> Vec<ClusterProblem> {
        let asked = config.hypervisor == HypervisorKind::Libvirt && config.migration.is_none();
        if !asked || !member.has(MemberRole::Compute) {
            return Vec::new();
        }
        self.put_and_open(member).unwrap_or_else(|error| {
            let why = format!("VMs cannot move to this host: {error:#}");
            vec![problem(why, "mend that; vmkeepd tries again, at the latest when it is restarted")]
        })
    }

    fn put_and_open(&self, member: &Member) -> anyhow::Result<Vec<ClusterProblem>> {
        let paths = member.paths();
        let sets = self.sets(&paths)?;
        let foreign: Vec<ClusterProblem> = sets.iter().filter_map(|set| Some(left_alone(set, set.foreign()?))).collect();
        if !foreign.is_empty() {
            return Ok(foreign);
        }
        sets.iter().try_for_each(Set::put)?;
        let ip: IpAddr = member.address.parse().context("the member's address")?;
        let at = SocketAddr::new(ip, TLS_PORT);
        if !is_listened_on(at) {
            if !by_systemd() || self.tried.swap(true, Ordering::SeqCst) {
                return Ok(vec![closed()]);
            }
            open_socket()?;
            note_told(&paths)?;
        } else if !is_told(&paths)? {
            tell()?;
            note_told(&paths)?;
        }
        Ok(Vec::new())
    }

    fn sets(&self, paths: &Paths) -> anyhow::Result<[Set; 2]> {
        let read = |path: PathBuf| fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
        let files = |purpose: Purpose, keys: [&str; 2], ca: &str, certs: [&str; 2]| -> anyhow::Result<_> {
            let (key, chain) = (read(purpose.key(paths))?, read(purpose.cert(paths))?);
            let authority = pki::authority_of(&chain)?.into_bytes();
            let at = |name: &str| self.pki.join(name);
            let secret = keys.map(|name| (at(name), 0o600, key.clone()));
            let shown = certs.map(|name| (at(name), 0o644, chain.clone()));
            Ok(secret.into_iter().chain([(at(ca), 0o644, authority)]).chain(shown).collect())
        };
        let of_libvirt = files(
            Purpose::Libvirt,
            ["libvirt/private/serverkey.pem", "libvirt/private/clientkey.pem"],
            "CA/cacert.pem",
            ["libvirt/servercert.pem", "libvirt/clientcert.pem"],
        )?;
        let of_qemu = files(
            Purpose::Qemu,
            ["qemu/server-key.pem", "qemu/client-key.pem"],
            "qemu/ca-cert.pem",
            ["qemu/server-cert.pem", "qemu/client-cert.pem"],
        )?;
        let conf = fs::read_to_string(&self.qemu_conf).unwrap_or_default();
        Ok([
            Set { what: "libvirt", dir: self.pki.join("libvirt"), files: of_libvirt, owner: Uid::from_raw(0) },
            Set { what: "QEMU", dir: self.pki.join("qemu"), files: of_qemu, owner: qemu_user(&conf) },
        ])
    }

    /// Of a host that leaves: libvirt does not start with a socket whose certificates are gone.
    ///
    /// # Errors
    /// The disk's.
    pub fn take_away(&self, paths: &Paths) -> anyhow::Result<()> {
        // Without our own files none were given to libvirt either.
        let Ok(sets) = self.sets(paths) else { return Ok(()) };
        if by_systemd() && sets[0].is_ours() {
            let tls = format!("{}-tls.socket", daemon());
            systemctl(&["disable", "--now", &tls]).unwrap_or_else(|error| tracing::warn!(%error, "libvirt's TLS socket stays open"));
        }
        sets.iter().try_for_each(Set::take_away)
    }
}

fn left_alone(set: &Set, file: &Path) -> ClusterProblem {
    problem(
        format!("{} has certificates of its own here ({}), which vmkeep leaves alone", set.what, file.display()),
        "[migration] in vmkeepd.toml says how other hosts reach this one's libvirt with them; or move those files away",
    )
}

fn closed() -> ClusterProblem {
    let mend = if by_systemd() {
        let daemon = daemon();
        format!("{}; VMs run on", [stopping(daemon), opening(daemon)].map(|args| format!("systemctl {}", args.join(" "))).join(" && "))
    } else {
        "restart libvirtd with listen_tls = 1 in libvirtd.conf and --listen; VMs run on".into()
    };
    problem(format!("VMs cannot move to this host: libvirt does not listen on port {TLS_PORT}"), mend)
}

/// Whose socket it is: of the one daemon for all, or of the one that speaks for those that each do a part.
fn daemon() -> &'static str {
    let one = ["libvirtd.socket", "libvirtd.service"].iter().any(|unit| systemctl(&["is-active", "--quiet", unit]).is_ok());
    if one { "libvirtd" } else { "virtproxyd" }
}

fn stopping(daemon: &str) -> Vec<String> {
    let units = ["service", "socket"].map(|kind| format!("{daemon}.{kind}"));
    ["stop".to_owned()].into_iter().chain(units).chain(["ro", "admin"].map(|which| format!("{daemon}-{which}.socket"))).collect()
}

fn opening(daemon: &str) -> Vec<String> {
    ["enable".into(), "--now".into(), format!("{daemon}-tls.socket"), format!("{daemon}.service")].into()
}

/// systemd gives a daemon its sockets when it starts, and no socket to one that runs.
fn open_socket() -> anyhow::Result<()> {
    let daemon = daemon();
    let args = |args: &[String]| systemctl(&args.iter().map(String::as_str).collect::<Vec<_>>());
    tracing::info!(daemon, "libvirt is restarted with its TLS socket; VMs run on");
    args(&stopping(daemon))?;
    let opened = args(&opening(daemon));
    if opened.is_err() {
        systemctl(&["start", &format!("{daemon}.service")])?;
    }
    opened
}

/// Which certificate libvirt was told of last.
fn told_file(paths: &Paths) -> PathBuf {
    paths.dir.join("libvirt.told")
}

fn shown_now(paths: &Paths) -> anyhow::Result<String> {
    pki::pem_fingerprint(&fs::read_to_string(Purpose::Libvirt.cert(paths))?)
}

fn is_told(paths: &Paths) -> anyhow::Result<bool> {
    let now = shown_now(paths)?;
    Ok(fs::read_to_string(told_file(paths)).is_ok_and(|told| told == now))
}

fn note_told(paths: &Paths) -> anyhow::Result<()> {
    write_whole(&told_file(paths), 0o600, shown_now(paths)?.as_bytes())
}

/// It reads its certificates again; connections go on.
fn tell() -> anyhow::Result<()> {
    let daemon = if by_systemd() { daemon() } else { "libvirtd" };
    let mut command = Command::new("virt-admin");
    command.args(["-c", &format!("{daemon}:///system"), "server-update-tls", daemon]).env("LC_ALL", "C.UTF-8");
    let out = command.stdin(Stdio::null()).output().context("cannot run virt-admin: apt-get install libvirt-clients")?;
    if !out.status.success() {
        bail!("libvirt does not read its certificates again: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    tracing::info!("libvirt has read its certificates again");
    Ok(())
}

/// Who reads QEMU's key.
fn qemu_user(conf: &str) -> Uid {
    let said =
        conf.lines().find_map(|line| line.trim().strip_prefix("user")?.trim_start().strip_prefix('=').map(|v| v.trim().trim_matches('"')));
    let user = said.unwrap_or(QEMU_USER);
    let by_number = user.trim_start_matches('+').parse().ok().map(Uid::from_raw);
    let by_name = || User::from_name(user).ok().flatten().map(|user| user.uid);
    by_number.or_else(by_name).unwrap_or(Uid::from_raw(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use uuid::Uuid;
    use vmkeep_types::name::Name;

    use super::super::pki::{Authority, issue_own};
    use super::*;

    fn bed() -> (tempfile::TempDir, Libvirt, Paths) {
        let dir = tempfile::tempdir().expect("a folder");
        let paths = Paths::new(dir.path());
        let authority = Authority::open_or_make(&paths, Uuid::from_u128(1)).expect("made");
        issue_own(&authority, &paths, &Name::known("a"), "10.0.0.1", &Purpose::of(&[MemberRole::Compute])).expect("issued");
        let conf = dir.path().join("qemu.conf");
        fs::write(&conf, "# user = \"other\"\nuser = \"root\"\n").expect("written");
        let libvirt = Libvirt { pki: dir.path().join("pki"), qemu_conf: conf, tried: AtomicBool::new(false) };
        (dir, libvirt, paths)
    }

    fn all(libvirt: &Libvirt) -> Vec<String> {
        let mut found = Vec::new();
        let mut dirs = vec![libvirt.pki.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let meta = entry.metadata().expect("there");
                if meta.is_dir() {
                    dirs.push(entry.path());
                } else {
                    let path = entry.path();
                    found.push(format!(
                        "{:o} {}",
                        meta.permissions().mode() & 0o777,
                        path.strip_prefix(&libvirt.pki).expect("below").display()
                    ));
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn files_are_where_libvirt_and_qemu_look_and_go_again() {
        let (_dir, libvirt, paths) = bed();
        libvirt.sets(&paths).expect("sets").iter().try_for_each(Set::put).expect("written");
        let there = all(&libvirt);
        expect_test::expect![[r#"
            600 libvirt/private/clientkey.pem
            600 libvirt/private/serverkey.pem
            600 qemu/client-key.pem
            600 qemu/server-key.pem
            644 CA/cacert.pem
            644 libvirt/clientcert.pem
            644 libvirt/servercert.pem
            644 libvirt/written-by-vmkeep
            644 qemu/ca-cert.pem
            644 qemu/client-cert.pem
            644 qemu/server-cert.pem
            644 qemu/written-by-vmkeep"#]]
        .assert_eq(&there.join("\n"));
        let written = fs::metadata(libvirt.pki.join("qemu/server-key.pem")).expect("there").modified().expect("a time");
        libvirt.sets(&paths).expect("sets").iter().try_for_each(Set::put).expect("again");
        assert_eq!(fs::metadata(libvirt.pki.join("qemu/server-key.pem")).expect("there").modified().expect("a time"), written);
        assert_ne!(
            fs::read(libvirt.pki.join("CA/cacert.pem")).expect("there"),
            fs::read(libvirt.pki.join("qemu/ca-cert.pem")).expect("there")
        );
        libvirt.take_away(&paths).expect("taken away");
        assert_eq!(all(&libvirt), Vec::<String>::new());
    }

    #[test]
    fn what_an_administrator_put_there_stays() {
        let (_dir, libvirt, paths) = bed();
        fs::create_dir_all(libvirt.pki.join("CA")).expect("a folder");
        fs::write(libvirt.pki.join("CA/cacert.pem"), "mine").expect("written");
        let sets = libvirt.sets(&paths).expect("sets");
        assert_eq!(sets[0].foreign(), Some(libvirt.pki.join("CA/cacert.pem").as_path()));
        assert_eq!(sets[1].foreign(), None);
        let member = Member {
            cluster: Uuid::from_u128(1),
            node: Name::known("a"),
            roles: vec![MemberRole::Compute],
            address: "10.0.0.1".into(),
            etcd: crate::member::MemberEtcd { endpoints: Vec::new(), external: false },
            dir: paths.dir.clone(),
        };
        let told = libvirt.keep(&Config::default(), &member);
        assert!(told.len() == 1 && told[0].message.starts_with("libvirt has certificates of its own here"), "{told:?}");
        libvirt.take_away(&paths).expect("nothing to take");
        assert_eq!(all(&libvirt), ["644 CA/cacert.pem"]);
    }

    #[test]
    fn qemus_user_is_read_from_its_settings() {
        assert_eq!(qemu_user("user = \"root\"\n"), Uid::from_raw(0));
        assert_eq!(qemu_user("#user = \"root\"\n user=\"+64055\"\n"), Uid::from_raw(64055));
        assert_eq!(qemu_user("username = 1\n"), qemu_user(""));
    }
}
