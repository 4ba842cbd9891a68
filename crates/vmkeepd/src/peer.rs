//! Who is at the other end of the unix socket: the kernel's word, not the client's.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Gid, Group, Uid, User};
use vmkeep_types::record::{Caller, Role, Via};

use crate::config::Config;

/// `SO_PEERGROUPS` of asm-generic/socket.h.
const SO_PEERGROUPS: libc::c_int = 59;
/// Groups of one process; Linux allows 65 536, people have a dozen.
const GROUPS_MAX: usize = 1024;

/// A user's name is asked for again after this time.
const NAME_LASTS: Duration = Duration::from_secs(60);
/// The host's user database may be an LDAP server far away.
const NAME_PATIENCE: Duration = Duration::from_secs(5);
/// Names kept; a host has fewer users of vmkeep.
const NAMES_MAX: usize = 1024;

/// Which socket users have which role.
#[derive(Clone, Debug)]
pub struct Roles {
    group: Option<Gid>,
    group_role: Role,
    users: std::collections::BTreeMap<String, Role>,
}

/// The process at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    /// None: the user database did not answer.
    pub user: Option<String>,
    pub groups: Vec<u32>,
}

impl Roles {
    pub fn new(config: &Config) -> Self {
        let group = Group::from_name(&config.socket_group).ok().flatten().map(|group| group.gid);
        Self { group, group_role: config.socket_role, users: config.socket_users.clone() }
    }

    pub fn group(&self) -> Option<Gid> {
        self.group
    }

    /// None: it may connect (it got through the socket's mode), but is nobody here.
    pub fn caller(&self, peer: &Peer) -> Option<Caller> {
        let named = peer.user.as_ref().and_then(|user| self.users.get(user)).copied();
        let in_group = self.group.is_some_and(|group| peer.groups.contains(&group.as_raw()));
        let role = match peer.uid {
            0 => Role::Admin,
            // It may be one of whom something else is said than of its group.
            _ if peer.user.is_none() && !self.users.is_empty() => return None,
            // What is said of a user wins over what is said of the group.
            _ => named.or(in_group.then_some(self.group_role))?,
        };
        let name = peer.user.clone().unwrap_or_else(|| format!("uid {}", peer.uid));
        Some(Caller { name, role, via: Via::Uid(peer.uid), projects: None })
    }
}

/// Names of users, kept for a while. One look-up at a time: a database that hangs takes one thread and not all of them.
#[derive(Clone, Default)]
pub struct Names {
    known: Arc<Mutex<HashMap<u32, (Instant, String)>>>,
    asking: Arc<tokio::sync::Mutex<()>>,
}

impl Names {
    /// Who is at the other end.
    ///
    /// # Errors
    /// The kernel does not say.
    pub async fn peer(&self, socket: BorrowedFd<'_>) -> std::io::Result<Peer> {
        let credentials = getsockopt(&socket, PeerCredentials)?;
        let uid = credentials.uid();
        let mut groups = groups(socket)?;
        groups.push(credentials.gid());
        Ok(Peer { uid, user: self.of(uid).await, groups })
    }

    async fn of(&self, uid: u32) -> Option<String> {
        if uid == 0 {
            return Some("root".into());
        }
        if let Some(name) = self.known(uid) {
            return Some(name);
        }
        let answer = tokio::time::timeout(NAME_PATIENCE, self.ask(uid)).await;
        answer.inspect_err(|_| tracing::warn!(uid, "the user database does not answer")).ok().flatten()
    }

    fn known(&self, uid: u32) -> Option<String> {
        let known = self.known.lock().expect("no panic holds this lock");
        known.get(&uid).filter(|(at, _)| at.elapsed() < NAME_LASTS).map(|(_, name)| name.clone())
    }

    async fn ask(&self, uid: u32) -> Option<String> {
        let one_at_a_time = self.asking.clone().lock_owned().await;
        if let Some(name) = self.known(uid) {
            return Some(name);
        }
        let asked = tokio::task::spawn_blocking(move || {
            let found = User::from_uid(Uid::from_raw(uid));
            drop(one_at_a_time);
            found
        });
        let found = asked.await.ok()?.inspect_err(|error| tracing::warn!(uid, %error, "the user database fails")).ok()?;
        let name = found.map_or_else(|| format!("uid {uid}"), |user| user.name);
        let mut known = self.known.lock().expect("no panic holds this lock");
        if known.len() >= NAMES_MAX {
            known.clear();
        }
        known.insert(uid, (Instant::now(), name.clone()));
        Some(name)
    }
}

/// The supplementary groups that the process had when it connected.
fn groups(socket: BorrowedFd<'_>) -> std::io::Result<Vec<u32>> {
    let mut groups = vec![0u32; GROUPS_MAX];
    let mut bytes = libc::socklen_t::try_from(GROUPS_MAX * size_of::<u32>()).expect("4 KiB");
    // SAFETY: the buffer has as many bytes as the kernel is told, and it writes gid_t values into it.
    let answer =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERGROUPS, groups.as_mut_ptr().cast(), &raw mut bytes) };
    if answer != 0 {
        return Err(std::io::Error::last_os_error());
    }
    groups.truncate(bytes as usize / size_of::<u32>());
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn the_kernel_names_the_peer() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let names = Names::default();
        let peer = names.peer(ours.as_fd()).await.expect("credentials");
        assert_eq!(peer.uid, Uid::current().as_raw());
        assert!(peer.groups.contains(&Gid::current().as_raw()));
        let known = User::from_uid(Uid::current()).ok().flatten().map(|user| user.name);
        assert_eq!(peer.user, known.or(Some(format!("uid {}", peer.uid))));
        assert_eq!(names.peer(ours.as_fd()).await.expect("credentials"), peer, "from memory");
        let mine: Vec<u32> = nix::unistd::getgroups().expect("groups").into_iter().map(Gid::as_raw).collect();
        assert!(mine.iter().all(|group| peer.groups.contains(group)), "{mine:?} in {peer:?}");
    }

    #[test]
    fn users_and_groups_have_roles() {
        let config = Config {
            socket_role: Role::Operator,
            socket_users: [("eve".to_owned(), Role::Viewer), ("ops".to_owned(), Role::Admin)].into(),
            ..Config::default()
        };
        let roles = Roles { group: Some(Gid::from_raw(700)), ..Roles::new(&config) };
        let peer = |uid, user: &str, groups: &[u32]| Peer { uid, user: Some(user.into()), groups: groups.to_vec() };
        let role = |p: Peer| roles.caller(&p).map(|c| c.role);
        assert_eq!(role(peer(0, "root", &[0])), Some(Role::Admin));
        assert_eq!(role(peer(1000, "me", &[1000, 700])), Some(Role::Operator));
        assert_eq!(role(peer(1001, "eve", &[700])), Some(Role::Viewer), "a named user's role wins");
        assert_eq!(role(peer(1002, "ops", &[1002])), Some(Role::Admin), "a named user needs no group");
        assert_eq!(role(peer(1003, "stranger", &[1003])), None);
        let nameless = Peer { user: None, ..peer(1001, "", &[700]) };
        assert_eq!(role(nameless.clone()), None, "it may be eve");
        let no_names = Roles { users: [].into(), ..roles.clone() };
        assert_eq!(no_names.caller(&nameless).map(|c| c.role), Some(Role::Operator));
        let no_group = Roles { group: None, ..roles.clone() };
        assert_eq!(no_group.caller(&peer(1000, "me", &[700])), None);
    }
}
