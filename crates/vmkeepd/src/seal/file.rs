//! The key of this host on its disk.
//!
//! ```text
//!  seal.key         0600, made at the first start
//!  seal.key.next    0600, there while it is about to take that one's place
//! ```
//! A file is written beside and linked under its name when it is whole, so that two processes of one host get the same, and a crash leaves no half.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use vmkeep_store::crash;
use vmkeep_store::seal::text::SecretKey;

pub const NAME: &str = "seal.key";
const NEXT: &str = "seal.key.next";

#[derive(Clone, Debug)]
pub struct KeyFile {
    state: PathBuf,
}

impl KeyFile {
    /// In the state directory.
    pub fn of(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    /// The host's key; made when there is none.
    ///
    /// # Errors
    /// The disk's; a file that holds no key.
    pub fn load(&self) -> anyhow::Result<SecretKey> {
        self.made(NAME)
    }

    /// The key that is to take its place; the same until it does.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn next(&self) -> anyhow::Result<SecretKey> {
        let next = self.made(NEXT)?;
        crash::point("seal next");
        Ok(next)
    }

    /// The next key is the host's from here on, also after a crash.
    ///
    /// # Errors
    /// The disk's.
    pub fn promote(&self) -> anyhow::Result<()> {
        let moved = std::fs::rename(self.state.join(NEXT), self.state.join(NAME)).and_then(|()| sync(&self.state));
        moved.with_context(|| format!("the next key cannot take the place of {}", self.state.join(NAME).display()))?;
        crash::point("seal promoted");
        Ok(())
    }

    /// The key as another process of this host may have renewed it; None: it is not there.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn look(&self) -> anyhow::Result<Option<SecretKey>> {
        if self.state.join(NAME).exists() { self.load().map(Some) } else { Ok(None) }
    }

    fn made(&self, name: &str) -> anyhow::Result<SecretKey> {
        let file = self.state.join(name);
        if !file.exists() {
            make(&file).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        SecretKey::parse(&text)
            .with_context(|| format!("{} holds no key; put it back from a backup, or remove it and write all secrets anew", file.display()))
    }
}

fn make(file: &Path) -> std::io::Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let new = file.with_file_name(format!(".{name}.{}", std::process::id()));
    let mut out = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    out.write_all(SecretKey::random().to_text().as_bytes())?;
    out.sync_all()?;
    let linked = std::fs::hard_link(&new, file);
    std::fs::remove_file(&new)?;
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    file.parent().map_or(Ok(()), sync)
}

fn sync(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn rights(file: &Path) -> u32 {
        std::fs::metadata(file).expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn a_host_has_one_key_that_only_it_reads() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = KeyFile::of(dir.path());
        assert!(file.look().expect("no file").is_none());
        let key = file.load().expect("made");
        assert_eq!(file.load().expect("read").public(), key.public());
        assert_eq!(rights(&dir.path().join(NAME)), 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1);
        std::fs::write(dir.path().join(NAME), "nonsense").expect("written");
        assert!(file.load().expect_err("no key").to_string().contains("write all secrets anew"));
    }

    #[test]
    fn the_next_key_is_one_until_it_takes_the_place_of_the_first() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = KeyFile::of(dir.path());
        let first = file.load().expect("made");
        let next = file.next().expect("made");
        assert_ne!(next.public(), first.public());
        assert_eq!(file.next().expect("again").public(), next.public());
        assert_eq!(rights(&dir.path().join(NEXT)), 0o600);
        file.promote().expect("renamed");
        assert_eq!(file.load().expect("read").public(), next.public());
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1);
    }
}
