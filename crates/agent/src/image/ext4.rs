//! Looks up files in ext2, ext3 and ext4 (kernel documentation, filesystems/ext4): enough for `/etc/os-release`.
//!
//! Nobody vouches for the content: every number in it may be a lie. Reads are counted, and when the budget is spent everything
//! is absent; so is what is not understood (inline data, encryption, `meta_bg`).

use std::cell::Cell;

use super::qcow2::Disk;

const ROOT_INODE: u32 = 2;
const MAGIC_AT: usize = 56;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE: u32 = 0x1000_0000;
const MODE_FOLDER: u16 = 0x4000;
const MODE_FILE: u16 = 0x8000;
const MODE_LINK: u16 = 0xa000;
const EXTENT_MAGIC: u16 = 0xf30a;
/// An extent of this many blocks or more was reserved, not written.
const EXTENT_WRITTEN_MAX: u16 = 32768;
const EXTENT_DEPTH_MAX: u32 = 5;
/// Blocks that an old inode names itself.
const DIRECT_BLOCKS: u64 = 12;
/// Reads in one file system: about 64 MiB.
const READS_MAX: u32 = 16 << 10;
const LINKS_MAX: u32 = 8;
const FILE_BYTES_MAX: usize = 16 << 10;
/// A folder of 100 000 entries has about 4 MiB.
const FOLDER_BYTES_MAX: usize = 4 << 20;

pub struct Ext4<'a> {
    disk: &'a Disk,
    start: u64,
    block_bytes: u64,
    first_block: u64,
    inodes_per_group: u32,
    inode_bytes: u64,
    descriptor_bytes: u64,
    reads_left: Cell<u32>,
}

struct Inode {
    mode: u16,
    flags: u32,
    size: u64,
    block: Vec<u8>,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl<'a> Ext4<'a> {
    /// The file system that begins at byte `start` of the disk.
    pub fn open(disk: &'a Disk, start: u64) -> Option<Self> {
        let block = disk.read(start.checked_add(1024)?, 1024).ok()?;
        let (size, features) = (u32_at(&block, 24)?, u32_at(&block, 96)?);
        let inodes_per_group = u32_at(&block, 40)?;
        if u16_at(&block, MAGIC_AT)? != 0xef53 || size > 6 || features & INCOMPAT_META_BG != 0 || inodes_per_group == 0 {
            return None;
        }
        let old = u32_at(&block, 76)? == 0;
        Some(Self {
            disk,
            start,
            block_bytes: 1024 << size,
            first_block: u64::from(u32_at(&block, 20)?),
            inodes_per_group,
            inode_bytes: if old { 128 } else { u64::from(u16_at(&block, 88)?) },
            descriptor_bytes: if features & INCOMPAT_64BIT != 0 { u64::from(u16_at(&block, 254)?.max(32)) } else { 32 },
            reads_left: Cell::new(READS_MAX),
        })
    }

    pub fn exists(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    pub fn file(&self, path: &str) -> Option<Vec<u8>> {
        self.file_up_to(path, FILE_BYTES_MAX)
    }

    /// The first bytes of a plain file.
    pub fn file_up_to(&self, path: &str, bytes_max: usize) -> Option<Vec<u8>> {
        let inode = self.find(path)?;
        if inode.mode & 0xf000 == MODE_FILE { self.content(&inode, bytes_max) } else { None }
    }

    /// What a folder holds, without `.` and `..`.
    pub fn names(&self, path: &str) -> Option<Vec<String>> {
        let folder = self.find(path)?;
        let entries = self.entries(&folder)?.into_iter().map(|(name, _)| String::from_utf8_lossy(&name).into_owned());
        Some(entries.filter(|name| name != "." && name != "..").collect())
    }

    fn read(&self, offset: u64, count: usize) -> Option<Vec<u8>> {
        self.reads_left.set(self.reads_left.get().checked_sub(1)?);
        let bytes = self.disk.read(self.start.checked_add(offset)?, count).ok()?;
        (bytes.len() == count).then_some(bytes)
    }

    fn block(&self, number: u64) -> Option<Vec<u8>> {
        self.read(number.checked_mul(self.block_bytes)?, usize::try_from(self.block_bytes).ok()?)
    }

    fn inode(&self, number: u32) -> Option<Inode> {
        let index = number.checked_sub(1)?;
        let (group, within) = (u64::from(index / self.inodes_per_group), u64::from(index % self.inodes_per_group));
        let at = (self.first_block + 1) * self.block_bytes + group * self.descriptor_bytes;
        let descriptor = self.read(at, usize::try_from(self.descriptor_bytes).ok()?)?;
        let high = if self.descriptor_bytes >= 64 { u64::from(u32_at(&descriptor, 40)?) } else { 0 };
        let table = (high << 32) | u64::from(u32_at(&descriptor, 8)?);
        let bytes = self.read(table.checked_mul(self.block_bytes)?.checked_add(within * self.inode_bytes)?, 128)?;
        Some(Inode {
            mode: u16_at(&bytes, 0)?,
            flags: u32_at(&bytes, 32)?,
            size: (u64::from(u32_at(&bytes, 108)?) << 32) | u64::from(u32_at(&bytes, 4)?),
            block: bytes[40..100].to_vec(),
        })
    }

    /// A file's block on the disk; None: it has none, and reads as zeroes.
    fn place(&self, inode: &Inode, block: u64) -> Option<Option<u64>> {
        if inode.flags & FLAG_INLINE != 0 {
            return None;
        }
        if inode.flags & FLAG_EXTENTS != 0 {
            return self.in_extents(inode.block.clone(), block);
        }
        let number = if block < DIRECT_BLOCKS {
            u32_at(&inode.block, usize::try_from(block).ok()? * 4)?
        } else {
            let within = usize::try_from(block - DIRECT_BLOCKS).ok()?;
            u32_at(&self.block(u64::from(u32_at(&inode.block, 48)?))?, within.checked_mul(4)?)?
        };
        Some((number != 0).then_some(u64::from(number)))
    }

    fn in_extents(&self, mut node: Vec<u8>, block: u64) -> Option<Option<u64>> {
        for _ in 0..=EXTENT_DEPTH_MAX {
            if u16_at(&node, 0)? != EXTENT_MAGIC {
                return None;
            }
            let (count, depth) = (usize::from(u16_at(&node, 2)?), u16_at(&node, 6)?);
            let begins = |n: &usize| u32_at(&node, 12 + n * 12).is_some_and(|first| u64::from(first) <= block);
            let Some(entry) = (0..count).take_while(begins).last().map(|n| 12 + n * 12) else { return Some(None) };
            if depth > 0 {
                let child = (u64::from(u16_at(&node, entry + 8)?) << 32) | u64::from(u32_at(&node, entry + 4)?);
                node = self.block(child)?;
                continue;
            }
            let (first, length) = (u64::from(u32_at(&node, entry)?), u16_at(&node, entry + 4)?);
            let start = (u64::from(u16_at(&node, entry + 6)?) << 32) | u64::from(u32_at(&node, entry + 8)?);
            let written = length <= EXTENT_WRITTEN_MAX && block - first < u64::from(length);
            return Some(written.then(|| start + (block - first)));
        }
        None
    }

    fn content(&self, inode: &Inode, bytes_max: usize) -> Option<Vec<u8>> {
        let size = usize::try_from(inode.size).unwrap_or(usize::MAX).min(bytes_max);
        let (block_bytes, mut bytes) = (usize::try_from(self.block_bytes).ok()?, Vec::new());
        for number in 0..size.div_ceil(block_bytes) as u64 {
            match self.place(inode, number)? {
                Some(block) => bytes.extend(self.block(block)?),
                None => bytes.resize(bytes.len() + block_bytes, 0),
            }
        }
        bytes.truncate(size);
        Some(bytes)
    }

    /// Names and inodes. The blocks of a hashed folder's index look like free entries.
    fn entries(&self, folder: &Inode) -> Option<Vec<(Vec<u8>, u32)>> {
        if folder.mode & 0xf000 != MODE_FOLDER {
            return None;
        }
        let bytes = self.content(folder, FOLDER_BYTES_MAX)?;
        let mut found = Vec::new();
        for block in bytes.chunks(usize::try_from(self.block_bytes).ok()?) {
            let mut at = 0;
            while let (Some(inode), Some(length), Some(name_bytes)) = (u32_at(block, at), u16_at(block, at + 4), block.get(at + 6)) {
                if inode != 0
                    && let Some(name) = block.get(at + 8..at + 8 + usize::from(*name_bytes))
                {
                    found.push((name.to_vec(), inode));
                }
                if length < 8 {
                    break;
                }
                at += usize::from(length);
            }
        }
        Some(found)
    }

    /// Follows links, none of which leads out of the file system: `..` of its root is the root.
    fn find(&self, path: &str) -> Option<Inode> {
        let mut todo: Vec<String> = path.rsplit('/').map(str::to_owned).collect();
        let (mut folders, mut links_left) = (vec![ROOT_INODE], LINKS_MAX);
        let mut current = self.inode(ROOT_INODE)?;
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." if folders.len() > 1 => drop(folders.pop()),
                ".." => {}
                name => {
                    let (_, number) = self.entries(&current)?.into_iter().find(|(n, _)| n == name.as_bytes())?;
                    let inode = self.inode(number)?;
                    if inode.mode & 0xf000 != MODE_LINK {
                        folders.push(number);
                        current = inode;
                        continue;
                    }
                    links_left = links_left.checked_sub(1)?;
                    let target = self.target(&inode)?;
                    if target.starts_with('/') {
                        folders.truncate(1);
                    }
                    todo.extend(target.rsplit('/').map(str::to_owned));
                }
            }
            current = self.inode(*folders.last()?)?;
        }
        Some(current)
    }

    /// A short target stands in the inode itself.
    fn target(&self, link: &Inode) -> Option<String> {
        let bytes = if link.size < 60 && link.flags & FLAG_EXTENTS == 0 {
            link.block.get(..usize::try_from(link.size).ok()?)?.to_vec()
        } else {
            self.content(link, usize::try_from(self.block_bytes).ok()?)?
        };
        String::from_utf8(bytes).ok()
    }
}
