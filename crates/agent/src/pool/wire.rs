//! A file on its way to another host: what is written in it and where, without its holes, with a checksum over all of it.
//!
//! ```text
//!  piece:  offset u64 │ length u32 > 0 │ that many bytes          big-endian, offsets rise
//!  end:    size of the file u64 │ 0 u32 │ SHA-256 of all before it
//! ```
//! How it fails: a stream that ends early, has another checksum or goes on behind its end is no file. One that somebody writes
//! while it is read is not sent to its end.

use std::fs::File;
use std::io::{Error, Result};
use std::os::unix::fs::{FileExt, MetadataExt};

use bytes::Bytes;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

/// Read at once; a longer piece is no piece.
pub const PIECE_BYTES: usize = 256 << 10;
const HEAD_BYTES: usize = 12;
const SUM_BYTES: usize = 32;

/// What a file holds, as `sink` gets it piece by piece; it says whether anybody still listens. Blocks.
///
/// # Errors
/// The disk's; somebody wrote the file meanwhile.
pub fn read(file: &File, mut sink: impl FnMut(Bytes) -> bool) -> Result<()> {
    let before = state(file)?;
    let (size, mut hash, mut at) = (before.0, Sha256::new(), 0);
    while let Some((from, to)) = data(file, at, size)? {
        at = from;
        while at < to {
            let length = usize::try_from(to - at).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let mut piece = vec![0; HEAD_BYTES + length];
            piece[..8].copy_from_slice(&at.to_be_bytes());
            piece[8..HEAD_BYTES].copy_from_slice(&u32::try_from(length).expect("a piece").to_be_bytes());
            file.read_exact_at(&mut piece[HEAD_BYTES..], at)?;
            hash.update(&piece);
            at += length as u64;
            if !sink(piece.into()) {
                return Ok(());
            }
        }
    }
    if state(file)? != before {
        return Err(Error::other("it was written while it was read"));
    }
    let mut end = size.to_be_bytes().to_vec();
    end.extend(0_u32.to_be_bytes());
    hash.update(&end);
    end.extend(hash.finalize());
    sink(end.into());
    Ok(())
}

/// Size and time of the last write.
fn state(file: &File) -> Result<(u64, i64, i64)> {
    let found = file.metadata()?;
    Ok((found.len(), found.mtime(), found.mtime_nsec()))
}

/// The next bytes from `at` on that are no hole.
fn data(file: &File, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    let seek = |at: u64, whence| lseek(file, i64::try_from(at).map_err(Error::other)?, whence).map_err(Error::from);
    if at >= size {
        return Ok(None);
    }
    let from = match seek(at, Whence::SeekData) {
        Ok(from) => u64::try_from(from).map_err(Error::other)?,
        Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => return Ok(None),
        Err(error) => return Err(error),
    };
    let to = u64::try_from(seek(from, Whence::SeekHole)?).map_err(Error::other)?;
    Ok((from < size).then(|| (from, to.min(size))))
}

/// Writes what arrives into a new file, in which nothing is written yet.
pub struct Writer {
    file: File,
    hash: Sha256,
    /// What came and is no whole piece yet.
    rest: Vec<u8>,
    over: bool,
}

impl Writer {
    pub fn into_file(file: File) -> Self {
        Self { file, hash: Sha256::new(), rest: Vec::new(), over: false }
    }

    /// Takes bytes of the stream, however they are cut; how many bytes of the file they were. Blocks.
    ///
    /// # Errors
    /// The disk's; it is no such stream.
    pub fn take(&mut self, bytes: &[u8]) -> Result<u64> {
        self.rest.extend_from_slice(bytes);
        let (mut at, mut written) = (0, 0);
        while let Some(head) = self.rest.get(at..at + HEAD_BYTES) {
            if self.over {
                return Err(odd("it goes on behind its end"));
            }
            let offset = u64::from_be_bytes(head[..8].try_into().expect("8 bytes"));
            let length = u32::from_be_bytes(head[8..].try_into().expect("4 bytes")) as usize;
            if length > PIECE_BYTES {
                return Err(odd("a piece is too long"));
            }
            let body = at + HEAD_BYTES;
            let Some(data) = self.rest.get(body..body + if length == 0 { SUM_BYTES } else { length }) else { break };
            if length == 0 {
                self.hash.update(&self.rest[at..body]);
                if self.hash.finalize_reset()[..] != *data {
                    return Err(odd("its checksum is another"));
                }
                self.file.set_len(offset)?;
                self.over = true;
            } else {
                self.file.write_all_at(data, offset)?;
                self.hash.update(&self.rest[at..body + length]);
                written += length as u64;
            }
            at = body + if length == 0 { SUM_BYTES } else { length };
        }
        self.rest.drain(..at);
        Ok(written)
    }

    /// # Errors
    /// It did not come to its end.
    pub fn end(self) -> Result<File> {
        if self.over && self.rest.is_empty() { Ok(self.file) } else { Err(odd("it ended early")) }
    }
}

fn odd(why: &str) -> Error {
    Error::other(format!("the file did not arrive whole: {why}"))
}

/// Bytes of it that are no holes.
///
/// # Errors
/// The disk's.
pub fn held_bytes(file: &File) -> Result<u64> {
    let found = file.metadata()?;
    Ok(found.len().min(found.blocks() * 512))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(file: &File) -> Vec<Bytes> {
        let mut all = Vec::new();
        read(file, |piece| {
            all.push(piece);
            true
        })
        .expect("sent");
        all
    }

    fn arrives(stream: &[u8], cut: usize) -> Result<File> {
        let mut writer = Writer::into_file(tempfile::tempfile().expect("a file"));
        for bytes in stream.chunks(cut) {
            writer.take(bytes)?;
        }
        writer.end()
    }

    fn with_holes() -> File {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&[7; 70_000], 1 << 20).expect("written");
        file.write_all_at(&vec![9; 300_000], 8 << 20).expect("written");
        file.set_len((64 << 20) + 5).expect("a hole at its end");
        file
    }

    #[test]
    fn a_file_arrives_as_it_is_without_its_holes_on_the_way() {
        let from = with_holes();
        let stream = sent(&from).concat();
        assert!(stream.len() < 2 << 20, "{} bytes for a file of 64 MiB with 370 kB in it", stream.len());
        for cut in [7, 100_000, stream.len()] {
            let to = arrives(&stream, cut).expect("whole");
            let whole = |file: &File| {
                let mut bytes = vec![0; usize::try_from(file.metadata().expect("a look").len()).expect("small")];
                file.read_exact_at(&mut bytes, 0).expect("read");
                bytes
            };
            assert!(whole(&from) == whole(&to), "cut into {cut}");
            assert!(held_bytes(&to).expect("a look") < 2 << 20, "its holes are holes");
        }
        let empty = tempfile::tempfile().expect("a file");
        assert_eq!(arrives(&sent(&empty).concat(), 3).expect("whole").metadata().expect("a look").len(), 0);
    }

    #[test]
    fn what_is_not_whole_is_no_file() {
        let stream = sent(&with_holes()).concat();
        let why = |stream: &[u8]| arrives(stream, 50_000).expect_err("refused").to_string();
        let mut flipped = stream.clone();
        flipped[40_000] ^= 1;
        let doubled = [stream.as_slice(), stream.as_slice()].concat();
        let told = [why(&stream[..stream.len() - 1]), why(&[]), why(&flipped), why(&doubled), why(&[0xff; 64])].join("\n");
        expect_test::expect![[r#"
            the file did not arrive whole: it ended early
            the file did not arrive whole: it ended early
            the file did not arrive whole: its checksum is another
            the file did not arrive whole: it goes on behind its end
            the file did not arrive whole: a piece is too long"#]]
        .assert_eq(&told);
    }

    #[test]
    fn what_is_written_meanwhile_is_not_sent_to_its_end() {
        let file = with_holes();
        let mut all = Vec::new();
        let refused = read(&file, |piece| {
            if all.is_empty() {
                std::thread::sleep(std::time::Duration::from_millis(20));
                file.write_all_at(b"guest", 1 << 20).expect("written");
            }
            all.push(piece);
            true
        });
        assert_eq!(refused.expect_err("it changed").to_string(), "it was written while it was read");
        assert!(arrives(&all.concat(), 50_000).is_err());
    }
}
