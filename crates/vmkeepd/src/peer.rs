//! Who is at the other end of the unix socket: the kernel's word, not the client's.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Gid, Group, Uid, User};
use vmkeep_types::record::{Caller, Role};

use crate::config::Config;

/// `SO_PEERGROUPS` of asm-generic/socket.h.
const SO_PEERGROUPS: libc::c_int = 59;
/// Groups of one process; Linux allows 65 536, people have a dozen.
const GROUPS_MAX: usize = 1024;

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
    pub user: String,
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
        let named = self.users.get(&peer.user).copied();
        let in_group = self.group.is_some_and(|group| peer.groups.contains(&group.as_raw()));
        let role = match peer.uid {
            0 => Role::Admin,
            // What is said of a user wins over what is said of the group.
            _ => named.or(in_group.then_some(self.group_role))?,
        };
        Some(Caller { name: peer.user.clone(), role })
    }
}

impl Peer {
    pub fn of(socket: BorrowedFd<'_>) -> std::io::Result<Self> {
        let credentials = getsockopt(&socket, PeerCredentials)?;
        let uid = Uid::from_raw(credentials.uid());
        let mut groups = groups(socket)?;
        groups.push(credentials.gid());
        let user = User::from_uid(uid).ok().flatten().map_or_else(|| format!("uid {uid}"), |user| user.name);
        Ok(Self { uid: uid.as_raw(), user, groups })
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

    #[test]
    fn the_kernel_names_the_peer() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let peer = Peer::of(ours.as_fd()).expect("credentials");
        assert_eq!(peer.uid, Uid::current().as_raw());
        assert!(peer.groups.contains(&Gid::current().as_raw()));
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
        let peer = |uid, user: &str, groups: &[u32]| Peer { uid, user: user.into(), groups: groups.to_vec() };
        let role = |p: Peer| roles.caller(&p).map(|c| c.role);
        assert_eq!(role(peer(0, "root", &[0])), Some(Role::Admin));
        assert_eq!(role(peer(1000, "me", &[1000, 700])), Some(Role::Operator));
        assert_eq!(role(peer(1001, "eve", &[700])), Some(Role::Viewer), "a named user's role wins");
        assert_eq!(role(peer(1002, "ops", &[1002])), Some(Role::Admin), "a named user needs no group");
        assert_eq!(role(peer(1003, "stranger", &[1003])), None);
        let no_group = Roles { group: None, ..roles.clone() };
        assert_eq!(no_group.caller(&peer(1000, "me", &[700])), None);
    }
}
