//! Reads a qcow2 that `qemu-img convert` has just made for us: no backing file, no compression, no encryption (QEMU
//! docs/interop/qcow2.txt). Anything else is an error.

use std::fs::File;
use std::io::{Error, Result};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::pool::qcow2::Header;

/// Bits of a table's entry that are an offset.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZEROES: u64 = 1;

pub struct Disk {
    file: File,
    cluster_bits: u32,
    size: u64,
    l1_offset: u64,
    l1_entries: u64,
}

impl Disk {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let header = Header::of(&file)?;
        let plain = header.version == 3 && header.backing.is_none() && !header.encrypted && header.features == 0;
        if !plain || !(9..=21).contains(&header.cluster_bits) {
            return Err(Error::other("not a plain qcow2"));
        }
        let Header { size, cluster_bits, l1_offset, l1_entries, .. } = header;
        Ok(Self { file, cluster_bits, size, l1_offset, l1_entries: u64::from(l1_entries) })
    }

    /// Up to `count` bytes, less at the disk's end.
    pub fn read(&self, offset: u64, count: usize) -> Result<Vec<u8>> {
        let count = self.size.saturating_sub(offset).min(count as u64);
        let (cluster, mut bytes) = (1u64 << self.cluster_bits, Vec::new());
        while (bytes.len() as u64) < count {
            let at = offset + bytes.len() as u64;
            let piece = (cluster - at % cluster).min(count - bytes.len() as u64);
            let mut buffer = vec![0; usize::try_from(piece).map_err(Error::other)?];
            if let Some(start) = self.cluster_of(at)? {
                self.file.read_exact_at(&mut buffer, start + at % cluster)?;
            }
            bytes.append(&mut buffer);
        }
        Ok(bytes)
    }

    /// Where the cluster with this byte lies in the file; None: it reads as zeroes.
    fn cluster_of(&self, at: u64) -> Result<Option<u64>> {
        let per_table = 1u64 << (self.cluster_bits - 3);
        let number = at >> self.cluster_bits;
        let (l1, l2) = (number / per_table, number % per_table);
        if l1 >= self.l1_entries {
            return Err(Error::other("beyond the table"));
        }
        let table = self.entry(self.l1_offset + l1 * 8)? & OFFSET_MASK;
        if table == 0 {
            return Ok(None);
        }
        let entry = self.entry(table + l2 * 8)?;
        if entry & COMPRESSED != 0 {
            return Err(Error::other("compressed"));
        }
        let start = entry & OFFSET_MASK;
        Ok((start != 0 && entry & ZEROES == 0).then_some(start))
    }

    fn entry(&self, at: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_be_bytes(bytes))
    }
}
