//! An ext3 file system with nothing but folders in it, made from scratch: what a writable overlay in a file is. Any
//! kernel and fuse2fs mount it; `mkfs.ext3` is not needed.
//!
//! One idea: all that such a file system says of itself follows from its size and from the list of its folders, so it
//! is computed in memory (bitmaps, descriptors, inodes) and only the blocks that are not zero are written. Blocks have
//! 4 KiB and groups 32768 of them.
//!
//! Specification: Linux, Documentation/filesystems/ext4 (whose older features these are); the journal's superblock is
//! that of jbd2.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const BLOCK: u64 = 4096;
const BLOCKS_PER_GROUP: u64 = 8 * BLOCK;
const INODE: u64 = 256;
/// One inode for so many bytes.
const BYTES_PER_INODE: u64 = 16 << 10;
/// Inodes below this are the file system's own.
const FIRST_INODE: u32 = 11;
const ROOT: u32 = 2;
const JOURNAL: u32 = 8;
/// Pointers to blocks in one block.
const POINTERS: usize = (BLOCK / 4) as usize;
const DIRECT: usize = 12;

/// A folder of the new file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Relative, with `/` between names; what is above it comes earlier in the list.
    pub path: String,
    pub mode: u16,
}

/// How the file system is to be.
#[derive(Debug, Clone)]
pub struct NewExt3<'a> {
    /// Whom everything belongs to.
    pub owner: (u32, u32),
    /// Seconds since 1970.
    pub time: u32,
    pub uuid: [u8; 16],
    pub folders: &'a [Folder],
}

/// What the numbers of blocks come to.
struct Layout {
    blocks: u64,
    groups: u64,
    inodes_per_group: u64,
    /// Blocks of the descriptors of all groups.
    descriptors: u64,
    /// Blocks of one group's inodes.
    table: u64,
}

/// Whether a group has a copy of the superblock: 0, 1 and powers of 3, 5 and 7.
fn has_copy(group: u64) -> bool {
    let is_power = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group < 2 || [3, 5, 7].into_iter().any(is_power)
}

impl Layout {
    fn of(size: u64) -> Layout {
        let mut blocks = size / BLOCK;
        loop {
            let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
            let descriptors = (groups * 32).div_ceil(BLOCK);
            let inodes = (blocks * BLOCK / BYTES_PER_INODE).div_ceil(groups);
            // As many as fill whole blocks of the table.
            let inodes_per_group = inodes.next_multiple_of(BLOCK / INODE).max(BLOCK / INODE);
            let table = inodes_per_group * INODE / BLOCK;
            let last = blocks - (groups - 1) * BLOCKS_PER_GROUP;
            // A last group that is too small for its own tables is left out.
            if groups > 1 && last < descriptors + table + 64 {
                blocks -= last;
                continue;
            }
            return Layout { blocks, groups, inodes_per_group, descriptors, table };
        }
    }

    fn start(&self, group: u64) -> u64 {
        group * BLOCKS_PER_GROUP
    }

    fn end(&self, group: u64) -> u64 {
        (self.start(group) + BLOCKS_PER_GROUP).min(self.blocks)
    }

    /// The group's bitmap of blocks; that of inodes and the inodes follow it.
    fn bitmap(&self, group: u64) -> u64 {
        self.start(group) + if has_copy(group) { 1 + self.descriptors } else { 0 }
    }

    fn place_of(&self, inode: u32) -> u64 {
        let (group, index) =
            (u64::from(inode - 1) / self.inodes_per_group, u64::from(inode - 1) % self.inodes_per_group);
        (self.bitmap(group) + 2) * BLOCK + index * INODE
    }

    /// As mke2fs has it.
    fn journal_blocks(&self) -> u64 {
        match self.blocks {
            ..32_768 => 1024,
            32_768..262_144 => 4096,
            _ => 8192,
        }
    }
}

/// The file system while it is put together.
struct Maker<'a> {
    file: &'a File,
    layout: Layout,
    used: Vec<bool>,
    /// No block before this one is free.
    next: u64,
    folders_in_group: Vec<u16>,
    inodes: u32,
    new: &'a NewExt3<'a>,
}

/// Makes a file system of `size` bytes in a file that is empty and has this size already.
pub fn make(file: &File, size: u64, new: &NewExt3<'_>) -> io::Result<()> {
    let layout = Layout::of(size);
    let groups = layout.groups as usize;
    let mut maker = Maker {
        file,
        used: vec![false; layout.blocks as usize],
        next: 0,
        folders_in_group: vec![0; groups],
        inodes: FIRST_INODE - 1,
        layout,
        new,
    };
    for group in 0..maker.layout.groups {
        let tables = maker.layout.bitmap(group) + 2 + maker.layout.table;
        for block in maker.layout.start(group)..tables {
            maker.used[block as usize] = true;
        }
    }
    maker.journal()?;
    maker.folders()?;
    maker.tables()
}

impl Maker<'_> {
    fn put(&self, block: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, block * BLOCK)
    }

    fn take(&mut self) -> io::Result<u64> {
        let from = self.next as usize;
        let found = self.used[from..].iter().position(|used| !used);
        let block = from + found.ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
        self.used[block] = true;
        self.next = block as u64 + 1;
        Ok(block as u64)
    }

    /// The 15 pointers of an inode to these blocks, and how many blocks of pointers that takes.
    fn pointers(&mut self, blocks: &[u64]) -> io::Result<([u32; 15], u64)> {
        let mut pointers = [0; 15];
        let (direct, rest) = blocks.split_at(blocks.len().min(DIRECT));
        for (pointer, block) in pointers.iter_mut().zip(direct) {
            *pointer = *block as u32;
        }
        let mut extra = 0;
        let (single, double) = rest.split_at(rest.len().min(POINTERS));
        if !single.is_empty() {
            pointers[12] = self.pointer_block(single)?;
            extra += 1;
        }
        if !double.is_empty() {
            let mut middle = Vec::new();
            for piece in double.chunks(POINTERS) {
                middle.push(u64::from(self.pointer_block(piece)?));
            }
            pointers[13] = self.pointer_block(&middle)?;
            extra += 1 + middle.len() as u64;
        }
        Ok((pointers, extra))
    }

    fn pointer_block(&mut self, blocks: &[u64]) -> io::Result<u32> {
        let at = self.take()?;
        let bytes: Vec<u8> = blocks.iter().flat_map(|block| (*block as u32).to_le_bytes()).collect();
        self.put(at, &bytes)?;
        Ok(at as u32)
    }

    /// Writes an inode: its mode, links and blocks, and how many more blocks hold pointers.
    fn inode(
        &self,
        number: u32,
        mode: u16,
        links: u16,
        blocks: &[u64],
        pointers: ([u32; 15], u64),
    ) -> io::Result<()> {
        let mut bytes = [0u8; INODE as usize];
        let (uid, gid) = if number == JOURNAL { (0, 0) } else { self.new.owner };
        let size = blocks.len() as u64 * BLOCK;
        let sectors = (blocks.len() as u64 + pointers.1) * (BLOCK / 512);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &mode.to_le_bytes());
        put(2, &(uid as u16).to_le_bytes());
        put(4, &(size as u32).to_le_bytes());
        for at in [8, 12, 16] {
            put(at, &self.new.time.to_le_bytes());
        }
        put(24, &(gid as u16).to_le_bytes());
        put(26, &links.to_le_bytes());
        put(28, &(sectors as u32).to_le_bytes());
        for (n, pointer) in pointers.0.iter().enumerate() {
            put(40 + 4 * n, &pointer.to_le_bytes());
        }
        put(120, &((uid >> 16) as u16).to_le_bytes());
        put(122, &((gid >> 16) as u16).to_le_bytes());
        // The room for nanoseconds and the like, which begins behind the first 128 bytes.
        put(128, &32u16.to_le_bytes());
        self.file.write_all_at(&bytes, self.layout.place_of(number))
    }

    fn journal(&mut self) -> io::Result<()> {
        let count = self.layout.journal_blocks();
        let blocks = (0..count).map(|_| self.take()).collect::<io::Result<Vec<u64>>>()?;
        let mut bytes = [0u8; 1024];
        // Big-endian, unlike all the rest: the mark, a superblock of version 2, the size of blocks, how many there
        // are, where the log begins, the first transaction, and one file system that uses it.
        for (at, value) in
            [(0, 0xc03b_3998), (4, 4), (12, BLOCK as u32), (16, count as u32), (20, 1), (24, 1), (64, 1)]
        {
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        self.put(blocks[0], &bytes)?;
        let pointers = self.pointers(&blocks)?;
        self.inode(JOURNAL, 0o100_600, 1, &blocks, pointers)
    }

    fn folders(&mut self) -> io::Result<()> {
        // lost+found has room from the beginning, because there may be none when it is needed.
        let mut all: Vec<(String, u16, usize)> = vec![("lost+found".to_owned(), 0o700, 4)];
        all.extend(self.new.folders.iter().map(|folder| (folder.path.clone(), folder.mode, 1)));
        let numbers: Vec<u32> = (0..all.len()).map(|n| FIRST_INODE + n as u32).collect();
        self.inodes = FIRST_INODE - 1 + all.len() as u32;
        let number_of = |path: &str| match path {
            "" => Some(ROOT),
            path => all.iter().position(|(known, ..)| known == path).map(|n| numbers[n]),
        };
        let parent_of =
            |path: &str| path.rsplit_once('/').map_or(String::new(), |(parent, _)| parent.to_owned());
        let mut list: Vec<(String, u16, usize, u32)> = vec![(String::new(), 0o755, 1, ROOT)];
        list.extend(
            all.iter().zip(&numbers).map(|((path, mode, blocks), n)| (path.clone(), *mode, *blocks, *n)),
        );
        for (path, mode, count, number) in list {
            let odd = || io::Error::new(io::ErrorKind::InvalidInput, format!("nothing is above '{path}'"));
            let above = number_of(&parent_of(&path)).ok_or_else(odd)?;
            let mut entries = vec![(number, ".".to_owned()), (above, "..".to_owned())];
            let children: Vec<(u32, String)> = all
                .iter()
                .zip(&numbers)
                .filter(|((child, ..), _)| parent_of(child) == path)
                .map(|((child, ..), number)| (*number, child.rsplit('/').next().unwrap_or(child).to_owned()))
                .collect();
            let links = 2 + children.len() as u16;
            entries.extend(children);
            let content = listing(&entries)?;
            let mut blocks = Vec::new();
            for n in 0..count.max(content.len()) {
                let at = self.take()?;
                self.put(at, content.get(n).map_or(&listing(&[])?[0], |block| block))?;
                blocks.push(at);
            }
            let pointers = self.pointers(&blocks)?;
            self.inode(number, 0o040_000 | mode, links, &blocks, pointers)?;
            let group = u64::from(number - 1) / self.layout.inodes_per_group;
            self.folders_in_group[group as usize] += 1;
        }
        Ok(())
    }

    /// The bitmaps and descriptors of all groups, and the superblock with its copies.
    fn tables(&self) -> io::Result<()> {
        let layout = &self.layout;
        let mut descriptors = vec![0u8; (layout.descriptors * BLOCK) as usize];
        let (mut free_blocks, mut free_inodes) = (0u64, 0u64);
        for group in 0..layout.groups {
            let (start, end) = (layout.start(group), layout.end(group));
            let mut blocks = vec![0xffu8; BLOCK as usize];
            let mut free = 0u16;
            for block in (start..end).filter(|block| !self.used[*block as usize]) {
                let bit = (block - start) as usize;
                blocks[bit / 8] &= !(1 << (bit % 8));
                free += 1;
            }
            let mut inodes = vec![0xffu8; BLOCK as usize];
            let mut unused = 0u16;
            for index in 0..layout.inodes_per_group {
                if group * layout.inodes_per_group + index >= u64::from(self.inodes) {
                    inodes[index as usize / 8] &= !(1 << (index % 8));
                    unused += 1;
                }
            }
            let bitmap = layout.bitmap(group);
            self.put(bitmap, &blocks)?;
            self.put(bitmap + 1, &inodes)?;
            let at = group as usize * 32;
            for (n, block) in [bitmap, bitmap + 1, bitmap + 2].into_iter().enumerate() {
                descriptors[at + 4 * n..at + 4 * n + 4].copy_from_slice(&(block as u32).to_le_bytes());
            }
            let counts = [free, unused, self.folders_in_group[group as usize]];
            for (n, count) in counts.into_iter().enumerate() {
                descriptors[at + 12 + 2 * n..at + 14 + 2 * n].copy_from_slice(&count.to_le_bytes());
            }
            free_blocks += u64::from(free);
            free_inodes += u64::from(unused);
        }
        for group in (0..layout.groups).filter(|group| has_copy(*group)) {
            let start = layout.start(group);
            let offset = if group == 0 { 1024 } else { 0 };
            let superblock = self.superblock(group as u16, free_blocks as u32, free_inodes as u32);
            self.file.write_all_at(&superblock, start * BLOCK + offset)?;
            self.put(start + 1, &descriptors)?;
        }
        Ok(())
    }

    fn superblock(&self, group: u16, free_blocks: u32, free_inodes: u32) -> [u8; 1024] {
        let layout = &self.layout;
        let mut bytes = [0u8; 1024];
        let words = [
            (0, (layout.inodes_per_group * layout.groups) as u32),
            (4, layout.blocks as u32),
            (12, free_blocks),
            (16, free_inodes),
            // Blocks of 1024 << 2 bytes.
            (24, 2),
            (28, 2),
            (32, BLOCKS_PER_GROUP as u32),
            (36, BLOCKS_PER_GROUP as u32),
            (40, layout.inodes_per_group as u32),
            (48, self.new.time),
            (64, self.new.time),
            // Revision 1, which has features.
            (76, 1),
            (84, FIRST_INODE),
            // A journal and extended attributes; types in folders; few copies of the superblock and large files.
            (92, 0x4 | 0x8),
            (96, 0x2),
            (100, 0x1 | 0x2),
            (224, JOURNAL),
            // Attributes of users, and access control lists.
            (256, 0xc),
            (264, self.new.time),
        ];
        for (at, word) in words {
            bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(word));
        }
        // Never checked for its age; the mark; clean; errors are passed over; the size of inodes; whose copy it is.
        for (at, half) in [(54, 0xffff), (56, 0xef53), (58, 1), (60, 1), (88, INODE as u16), (90, group)] {
            bytes[at..at + 2].copy_from_slice(&u16::to_le_bytes(half));
        }
        bytes[104..120].copy_from_slice(&self.new.uuid);
        bytes
    }
}

/// A folder's content, block by block: the last entry of a block reaches to its end.
fn listing(entries: &[(u32, String)]) -> io::Result<Vec<Vec<u8>>> {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut block: Vec<u8> = Vec::new();
    let mut last = 0;
    let close = |block: &mut Vec<u8>, last: usize| {
        let length = (BLOCK as usize - last) as u16;
        block.resize(BLOCK as usize, 0);
        block[last + 4..last + 6].copy_from_slice(&length.to_le_bytes());
    };
    for (inode, name) in entries {
        if name.is_empty() || name.len() > 255 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("'{name}' is no name")));
        }
        let length = (8 + name.len()).next_multiple_of(4);
        if block.len() + length > BLOCK as usize {
            close(&mut block, last);
            blocks.push(std::mem::take(&mut block));
        }
        last = block.len();
        block.extend_from_slice(&inode.to_le_bytes());
        block.extend_from_slice(&(length as u16).to_le_bytes());
        block.extend_from_slice(&[name.len() as u8, 2]);
        block.extend_from_slice(name.as_bytes());
        block.resize(last + length, 0);
    }
    if block.is_empty() {
        // An entry that is none.
        block.resize(8, 0);
        last = 0;
    }
    close(&mut block, last);
    blocks.push(block);
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn folder(path: &str, mode: u16) -> Folder {
        Folder { path: path.to_owned(), mode }
    }

    #[test]
    fn copies_are_where_they_belong() {
        let groups: Vec<u64> = (0..130).filter(|group| has_copy(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn file_systems_are_sound() {
        if Command::new("e2fsck").arg("-V").output().is_err() {
            println!("skip: no e2fsck");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let folders = [
            folder("upper", 0o755),
            folder("upper/a", 0o755),
            folder("upper/a/b", 0o700),
            folder("work", 0o755),
        ];
        // One group; several, the last of which is whole, just large enough, or too small; a larger journal.
        for mib in [64, 100, 128, 129, 131, 256, 1025, 5000] {
            let path = dir.path().join("image");
            let file = File::create(&path).unwrap();
            file.set_len(mib << 20).unwrap();
            let new = NewExt3 { owner: (70_000, 5), time: 1_600_000_000, uuid: [7; 16], folders: &folders };
            make(&file, mib << 20, &new).unwrap();
            let output = Command::new("e2fsck").args(["-f", "-n"]).arg(&path).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{mib} MiB: {text}{}", String::from_utf8_lossy(&output.stderr));
            let stat = Command::new("debugfs").args(["-R", "stat upper/a/b"]).arg(&path).output().unwrap();
            let stat = String::from_utf8_lossy(&stat.stdout).into_owned();
            assert!(stat.contains("Type: directory    Mode:  0700"), "{stat}");
            assert!(stat.contains("User: 70000   Group:     5"), "{stat}");
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn long_lists_take_several_blocks() {
        let entries: Vec<(u32, String)> = (0..100).map(|n| (n, format!("{n:0200}"))).collect();
        let blocks = listing(&entries).unwrap();
        assert_eq!((blocks.len(), blocks[0].len()), (6, 4096));
        assert!(listing(&[(1, "x".repeat(256))]).is_err());
    }
}
