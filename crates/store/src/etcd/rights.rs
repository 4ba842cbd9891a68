//! Who may do what in etcd: a user for each member, by the common name of its certificate.
//!
//! | user | its roles | may |
//! |---|---|---|
//! | `root` | `root` | nobody's: it has no password and no certificate; etcd wants one before it asks who somebody is |
//! | `node:NAME`, a control node | `root` | everything |
//! | `node:NAME`, another member | `guest`, `node:NAME` | read what it must compare; write `n/NAME/` and `cluster/word/NAME` |
//! | `node:NAME`, taken out | `guest` | read `cluster/`: that it was taken out |
//!
//! How it fails: each step can be repeated and by several control nodes at once. Requests that are under way while rights change
//! are refused by etcd unheard, and sent again (see `outcome`).

use std::collections::BTreeSet;

use etcd_client::{AuthClient, Error, Permission, PermissionType, RoleRevokePermissionOptions, UserAddOptions};
use vmkeep_types::name::Name;

use super::error::Purpose;
use super::{EtcdStore, range_end};
use crate::{StoreError, keys};

/// Everybody's who was ever a member.
const GUEST: &str = "guest";
/// etcd's own: it may do everything, and needs not be made.
const ROOT: &str = "root";

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// A control node.
    All,
    /// It writes its own node's keys.
    Own,
    /// It is no member any more.
    None,
}

/// Key, end of the range and type, as etcd keeps them.
type Allowed = (Vec<u8>, Vec<u8>, i32);

/// etcd's users and roles as they were when it was asked.
pub struct Rights<'a> {
    store: &'a EtcdStore,
    users: BTreeSet<String>,
    roles: BTreeSet<String>,
}

/// The user that a node's certificate makes it.
pub fn user_of(node: &Name) -> String {
    format!("node:{node}")
}

fn all_under(prefix: &str, right: PermissionType) -> Allowed {
    (prefix.into(), range_end(prefix), right.into())
}

fn only(key: &str, right: PermissionType) -> Allowed {
    (key.into(), Vec::new(), right.into())
}

fn of_guests() -> BTreeSet<Allowed> {
    // The smallest key, which is never there: asked for the revision that the store is at.
    [only("\0", PermissionType::Read), all_under(keys::ALL_CLUSTER, PermissionType::Read)].into()
}

fn of_node(node: &Name) -> BTreeSet<Allowed> {
    let about = [keys::owned(node), keys::fences(node), keys::all_confirmed(node)];
    let about = about.iter().map(String::as_str).chain([keys::ALL_OWNERS, keys::ALL_POOLS, keys::ALL_CONTROL]);
    let read = about.map(|prefix| all_under(prefix, PermissionType::Read));
    let write = [all_under(&keys::all_of_node(node), PermissionType::Readwrite), only(&keys::word(node), PermissionType::Readwrite)];
    read.chain(write).collect()
}

impl EtcdStore {
    /// The users and roles that there are.
    ///
    /// # Errors
    /// No majority, or this node is no control node.
    pub async fn rights(&self) -> Result<Rights<'_>, StoreError> {
        let users = self.auth(Purpose::Read, |mut auth| async move { auth.user_list().await }).await?;
        let roles = self.auth(Purpose::Read, |mut auth| async move { auth.role_list().await }).await?;
        let set = |names: &[String]| names.iter().cloned().collect();
        Ok(Rights { store: self, users: set(users.users()), roles: set(roles.roles()) })
    }

    async fn auth<T, F>(&self, purpose: Purpose, call: impl Fn(AuthClient) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.members.outcome(purpose, |client| call(client.auth_client())).await
    }
}

impl Rights<'_> {
    /// Nodes that have a user, also those that were taken out.
    pub fn nodes(&self) -> impl Iterator<Item = Name> {
        self.users.iter().filter_map(|user| user.strip_prefix("node:")?.parse().ok())
    }

    /// Makes it so, whatever it was.
    ///
    /// # Errors
    /// No majority, or this node is no control node.
    pub async fn give(&mut self, node: &Name, right: Right) -> Result<(), StoreError> {
        let user = user_of(node);
        let user = user.as_str();
        self.has_user(user).await?;
        let roles: Vec<&str> = match right {
            Right::All => vec![ROOT],
            Right::Own => {
                self.has_role(user, &of_node(node)).await?;
                vec![GUEST, user]
            }
            Right::None => vec![GUEST],
        };
        self.has_role(GUEST, &of_guests()).await?;
        let store = self.store;
        let found = store.auth(Purpose::Read, |mut auth| async move { auth.user_get(user).await }).await?;
        for role in roles.iter().filter(|role| !found.roles().iter().any(|has| has == **role)) {
            store.auth(Purpose::Write, |mut auth| async move { auth.user_grant_role(user, *role).await }).await?;
        }
        for role in found.roles().iter().filter(|has| !roles.contains(&has.as_str())) {
            store.auth(Purpose::Write, |mut auth| async move { auth.user_revoke_role(user, role).await }).await?;
        }
        Ok(())
    }

    /// From now on nobody does what he was not given the right to.
    ///
    /// # Errors
    /// No majority.
    pub async fn enforce(mut self) -> Result<(), StoreError> {
        self.has_user(ROOT).await?;
        let store = self.store;
        store.auth(Purpose::Write, |mut auth| async move { auth.user_grant_role(ROOT, ROOT).await }).await?;
        store.auth(Purpose::Write, |mut auth| async move { auth.auth_enable().await }).await.map(drop)
    }

    async fn has_user(&mut self, user: &str) -> Result<(), StoreError> {
        if self.users.contains(user) {
            return Ok(());
        }
        let by_certificate = &|| Some(UserAddOptions::new().with_no_pwd());
        let added = self.store.auth(Purpose::Write, |mut auth| async move { auth.user_add(user, "", by_certificate()).await }).await;
        unless_there(added.map(drop))?;
        self.users.insert(user.to_owned());
        Ok(())
    }

    async fn has_role(&mut self, role: &str, wanted: &BTreeSet<Allowed>) -> Result<(), StoreError> {
        let store = self.store;
        if self.roles.insert(role.to_owned()) {
            unless_there(store.auth(Purpose::Write, |mut auth| async move { auth.role_add(role).await }).await.map(drop))?;
        }
        let found = store.auth(Purpose::Read, |mut auth| async move { auth.role_get(role).await }).await?.permissions();
        let found: BTreeSet<Allowed> = found.iter().map(|p| (p.key().to_vec(), p.range_end().to_vec(), p.get_type())).collect();
        for (key, end, _) in found.difference(wanted) {
            let range = &|| Some(RoleRevokePermissionOptions::new().with_range_end(end.clone()));
            store.auth(Purpose::Write, |mut auth| async move { auth.role_revoke_permission(role, key.clone(), range()).await }).await?;
        }
        for (key, end, right) in wanted.difference(&found) {
            let right = PermissionType::try_from(*right).map_err(|e| StoreError::Invalid(e.to_string()))?;
            let allowed = &|| Permission::new(right, key.clone()).with_range_end(end.clone());
            store.auth(Purpose::Write, |mut auth| async move { auth.role_grant_permission(role, allowed()).await }).await?;
        }
        Ok(())
    }
}

/// Another control node was sooner.
fn unless_there(made: Result<(), StoreError>) -> Result<(), StoreError> {
    match made {
        Err(StoreError::Unknown(words) | StoreError::Unavailable(words)) if words.contains("already exists") => Ok(()),
        made => made,
    }
}
