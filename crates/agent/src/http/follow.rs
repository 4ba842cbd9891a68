//! A log as it grows: over rotations, until its reader goes or the file does.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::stream::{self, Stream};

/// Between two looks at a log that said nothing.
const LOOK: Duration = Duration::from_millis(500);
/// Looks at a name without a file before the log is over; a rotation is shorter.
const LOOKS_WITHOUT: u32 = 10;
const PIECE_BYTES: usize = 64 << 10;

/// Opens the log under its name.
type Open = Box<dyn Fn() -> io::Result<File> + Send>;

pub struct Follow {
    open: Open,
    /// Read up to where it goes on. None: nothing was ever written.
    file: Option<File>,
    without: u32,
}

#[derive(Debug, PartialEq)]
enum Look {
    Grew(Bytes),
    Quiet,
    Over,
}

impl Follow {
    pub fn new(open: Open, file: Option<File>) -> Self {
        Self { open, file, without: 0 }
    }

    /// What is written from now on.
    pub fn stream(self) -> impl Stream<Item = io::Result<Bytes>> {
        stream::try_unfold(self, |mut follow| async move {
            loop {
                let looked = tokio::task::spawn_blocking(move || (follow.look(), follow)).await.map_err(io::Error::other)?;
                follow = looked.1;
                match looked.0? {
                    Look::Grew(piece) => return Ok(Some((piece, follow))),
                    Look::Quiet => tokio::time::sleep(LOOK).await,
                    Look::Over => return Ok(None),
                }
            }
        })
    }

    fn look(&mut self) -> io::Result<Look> {
        if let Some(piece) = self.read()? {
            return Ok(Look::Grew(piece));
        }
        let now = match (self.open)() {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.without += 1;
                let over = self.file.is_some() && self.without >= LOOKS_WITHOUT;
                return Ok(if over { Look::Over } else { Look::Quiet });
            }
            Err(error) => return Err(error),
        };
        self.without = 0;
        let which = |file: &File| file.metadata().map(|m| (m.dev(), m.ino()));
        if self.file.as_ref().map(which).transpose()? == Some(which(&now)?) {
            return Ok(Look::Quiet);
        }
        // What was written to the old one between the two reads.
        let last = self.read()?;
        self.file = Some(now);
        match last {
            Some(piece) => Ok(Look::Grew(piece)),
            None => Ok(self.read()?.map_or(Look::Quiet, Look::Grew)),
        }
    }

    fn read(&mut self) -> io::Result<Option<Bytes>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let mut piece = vec![0; PIECE_BYTES];
        let read = file.read(&mut piece)?;
        piece.truncate(read);
        Ok((read > 0).then(|| piece.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn it_goes_on_over_a_rotation_and_ends_with_the_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("vm.log");
        let name = path.clone();
        let mut follow = Follow::new(Box::new(move || File::open(&name)), None);
        let see = |follow: &mut Follow| match follow.look().expect("it reads") {
            Look::Grew(piece) => String::from_utf8(piece.to_vec()).expect("text"),
            other => format!("{other:?}"),
        };
        for _ in 0..2 * LOOKS_WITHOUT {
            assert_eq!(see(&mut follow), "Quiet", "nothing was ever written");
        }
        let mut log = File::create(&path).expect("a file");
        log.write_all(b"one\n").expect("written");
        assert_eq!(see(&mut follow), "one\n");
        assert_eq!(see(&mut follow), "Quiet");
        // As virtlogd does: the last words go to the old file.
        std::fs::rename(&path, dir.path().join("vm.log.0")).expect("renamed");
        std::fs::write(&path, "three\n").expect("a file");
        log.write_all(b"two\n").expect("written");
        assert_eq!(see(&mut follow), "two\n");
        assert_eq!(see(&mut follow), "three\n");
        std::fs::remove_file(&path).expect("gone");
        for _ in 1..LOOKS_WITHOUT {
            assert_eq!(see(&mut follow), "Quiet");
        }
        assert_eq!(see(&mut follow), "Over");
    }
}
