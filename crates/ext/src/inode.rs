//! Inodes: what a file is, and where its content begins (`inodes.rst`).

use crate::error::{Result, damaged};
use crate::superblock::{u16_at, u32_at};

/// The bytes that the first revision has.
const OLD: usize = 128;
const POINTERS: usize = 40;
pub(crate) const POINTERS_LENGTH: usize = 60;
const EXTENTS: u32 = 0x8_0000;
const ENCRYPTED: u32 = 0x800;
const INLINE: u32 = 0x1000_0000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    File,
    Dir,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl FileType {
    /// By the upper bits of a mode (inode(7)).
    fn of_mode(mode: u16) -> Option<FileType> {
        Some(match mode & 0o170_000 {
            0o010_000 => FileType::Fifo,
            0o020_000 => FileType::CharDevice,
            0o040_000 => FileType::Dir,
            0o060_000 => FileType::BlockDevice,
            0o100_000 => FileType::File,
            0o120_000 => FileType::Symlink,
            0o140_000 => FileType::Socket,
            _ => return None,
        })
    }

    /// By the number that an entry of a folder has.
    pub(crate) fn of_entry(number: u8) -> Option<FileType> {
        const TYPES: [FileType; 7] = [
            FileType::File,
            FileType::Dir,
            FileType::CharDevice,
            FileType::BlockDevice,
            FileType::Fifo,
            FileType::Socket,
            FileType::Symlink,
        ];
        TYPES.get(usize::from(number).checked_sub(1)?).copied()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    pub number: u32,
    pub file_type: FileType,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Pointers to blocks, a tree of extents, or the target of a short link.
    pub(crate) pointers: [u8; POINTERS_LENGTH],
    pub(crate) has_extents: bool,
    /// The block with further attributes, 0 for none.
    pub(crate) attributes: u64,
    /// What is behind the fields: attributes that fit there.
    pub(crate) rest: Vec<u8>,
}

impl Inode {
    pub(crate) fn parse(number: u32, bytes: &[u8]) -> Result<Inode> {
        let (word, half) = (|at| u32_at(bytes, at), |at| u16_at(bytes, at));
        let mode = half(0);
        let Some(file_type) = FileType::of_mode(mode) else {
            return damaged(format!("inode {number} is of no kind: mode {mode:o}"));
        };
        let flags = word(32);
        if flags & (ENCRYPTED | INLINE) != 0 {
            return damaged(format!("inode {number} has flags {flags:#x}, and the file system has them not"));
        }
        let mut pointers = [0; POINTERS_LENGTH];
        pointers.copy_from_slice(&bytes[POINTERS..POINTERS + POINTERS_LENGTH]);
        let mut size = u64::from(word(4));
        // In older ones the upper half means something else for folders.
        if file_type == FileType::File {
            size |= u64::from(word(108)) << 32;
        }
        let extra = if bytes.len() > OLD { usize::from(half(OLD)) } else { 0 };
        if OLD + extra > bytes.len() {
            return damaged(format!("inode {number} has {extra} bytes of further fields"));
        }
        // Two more bits of seconds, where there is room for them.
        let epoch = if extra >= 12 { i64::from(word(136) & 3) } else { 0 };
        let mtime = i64::from(word(16).cast_signed()) + (epoch << 32);
        let device = match file_type {
            FileType::CharDevice | FileType::BlockDevice => device(&pointers),
            _ => (0, 0),
        };
        Ok(Inode {
            number,
            file_type,
            mode: u32::from(mode & 0o7777),
            uid: u32::from(half(2)) | u32::from(half(120)) << 16,
            gid: u32::from(half(24)) | u32::from(half(122)) << 16,
            links: half(26).into(),
            size,
            mtime,
            device,
            pointers,
            has_extents: flags & EXTENTS != 0,
            attributes: u64::from(word(104)) | u64::from(half(118)) << 32,
            // Where nothing says how many fields there are, nothing is behind them.
            rest: if extra == 0 { Vec::new() } else { bytes[OLD + extra..].to_vec() },
        })
    }

    /// The target of a link that is short enough for the inode itself.
    pub(crate) fn short_target(&self) -> Option<&[u8]> {
        let target = self.pointers.get(..usize::try_from(self.size).ok()?)?;
        (target.len() < POINTERS_LENGTH && !self.has_extents).then_some(target)
    }
}

/// Small numbers have the old form, others the new one.
fn device(pointers: &[u8; POINTERS_LENGTH]) -> (u32, u32) {
    match (u32_at(pointers, 0), u32_at(pointers, 4)) {
        (0, new) => ((new & 0xf_ff00) >> 8, new & 0xff | (new >> 12) & 0xf_ff00),
        (old, _) => ((old >> 8) & 0xff, old & 0xff),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_devices() {
        let of = |old: u32, new: u32| {
            let mut pointers = [0; POINTERS_LENGTH];
            pointers[..4].copy_from_slice(&old.to_le_bytes());
            pointers[4..8].copy_from_slice(&new.to_le_bytes());
            device(&pointers)
        };
        assert_eq!(of(0x0103, 0), (1, 3));
        assert_eq!(of(0, 0), (0, 0));
        // makedev(259, 70000), as the kernel's new_encode_dev has it.
        assert_eq!(of(0, (70_000 & 0xff) | 259 << 8 | (70_000 & !0xff) << 12), (259, 70_000));
    }
}
