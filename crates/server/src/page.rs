//! Places in a list: `STORE:REVISION:NAME`, what `next` says and `?after=` takes.
//!
//! Each page is read when it is asked for; the revision is the one at which the first was. A watch that begins there tells of
//! everything that changed between the pages. A place ends with its store, and when that revision is compacted: such a watch
//! would not be possible any more.

use vmkeep_store::{Store, StoreError, StoreId, keys};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::Revision;

/// Behind the last row of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first page was read at it.
    pub begun: Revision,
    pub name: String,
}

impl Place {
    pub fn token(store: &StoreId, begun: Revision, name: &str) -> String {
        format!("{}:{begun}:{name}", store.0)
    }

    /// # Errors
    /// `Invalid` for what is no place; `Stale` for one that has ended.
    pub async fn read(store: &dyn Store, token: &str) -> Result<Self, Error> {
        let mut parts = token.splitn(3, ':');
        let (id, begun, name) = (parts.next(), parts.next().and_then(|n| n.parse().ok()), parts.next());
        let (Some(id), Some(begun), Some(name)) = (id, begun.map(Revision), name) else {
            return Err(Error::invalid(format!("after '{}' is no place in a list", token.escape_debug()))
                .hint("send the `next` of the page before"));
        };
        let ended = |why: &str| Error::new(Code::Stale, format!("the list has to be read anew: {why}")).hint("begin again without `after`");
        if id != store.id().0 {
            return Err(ended("the store is another one"));
        }
        // Whether the history since then is there is told by a watch alone; under this key it has nothing to carry.
        match store.watch(keys::LEVEL, begun.next()).await {
            Ok(_) => Ok(Self { begun, name: name.to_owned() }),
            Err(StoreError::Compacted { .. }) => Err(ended("its first page is too old")),
            Err(other) => Err(crate::app::store_error(other)),
        }
    }
}
