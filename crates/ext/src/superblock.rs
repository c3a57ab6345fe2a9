//! The superblock: what a file system says of itself (`super.rst`).

use crate::error::{Error, Result, damaged};

/// Where it begins, in bytes.
pub(crate) const AT: u64 = 1024;
pub(crate) const LENGTH: usize = 1024;
const MAGIC: u16 = 0xef53;
/// The inodes of the first revision.
const OLD_INODE: u16 = 128;
/// Blocks of 64 KiB are the largest that any kernel makes.
const MOST_LOG: u32 = 6;

/// Bits of the features without which an image cannot be read (`s_feature_incompat`).
const COMPRESSION: u32 = 0x1;
const FILETYPE: u32 = 0x2;
const RECOVER: u32 = 0x4;
const JOURNAL_DEVICE: u32 = 0x8;
const META_GROUPS: u32 = 0x10;
const EXTENTS: u32 = 0x40;
const BITS_64: u32 = 0x80;
const MULTI_MOUNT: u32 = 0x100;
const FLEXIBLE_GROUPS: u32 = 0x200;
const LARGE_ATTRIBUTES: u32 = 0x400;
const CHECKSUM_SEED: u32 = 0x2000;
const LARGE_DIRS: u32 = 0x4000;
const INLINE: u32 = 0x8000;
const ENCRYPTED: u32 = 0x1_0000;
const CASE_FOLDED: u32 = 0x2_0000;
const READ: u32 = FILETYPE
    | RECOVER
    | EXTENTS
    | BITS_64
    | MULTI_MOUNT
    | FLEXIBLE_GROUPS
    | LARGE_ATTRIBUTES
    | CHECKSUM_SEED
    | LARGE_DIRS;
const REFUSED: [(u32, &str); 7] = [
    (COMPRESSION, "has compressed files"),
    (JOURNAL_DEVICE, "is the journal of another one"),
    (META_GROUPS, "has its descriptors in meta block groups"),
    (INLINE, "has files inside inodes"),
    (ENCRYPTED, "has encrypted files"),
    (CASE_FOLDED, "has names without case"),
    (!(READ | COMPRESSION | JOURNAL_DEVICE | META_GROUPS | INLINE | ENCRYPTED | CASE_FOLDED), ""),
];

#[derive(Debug, Clone)]
pub(crate) struct Superblock {
    pub inodes: u32,
    pub blocks: u64,
    /// Bytes of a block.
    pub block: u64,
    pub inodes_per_group: u32,
    pub groups: u64,
    /// Bytes of an inode.
    pub inode: u64,
    /// Bytes of a group's descriptor.
    pub descriptor: u64,
    /// Entries of folders say what kind of file they lead to.
    pub has_types: bool,
    pub has_attributes: bool,
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

impl Superblock {
    /// Reads it. `size` is that of the image in bytes.
    pub fn parse(bytes: &[u8; LENGTH], size: u64) -> Result<Superblock> {
        let (word, half) = (|at| u32_at(bytes, at), |at| u16_at(bytes, at));
        if half(56) != MAGIC {
            return damaged("it has no superblock");
        }
        let has_features = word(76) >= 1;
        let incompatible = if has_features { word(96) } else { 0 };
        for (bits, what) in REFUSED {
            match incompatible & bits {
                0 => {}
                unknown if what.is_empty() => {
                    return Err(Error::Unsupported { what: format!("has features {unknown:#x}") });
                }
                _ => return Err(Error::Unsupported { what: what.to_owned() }),
            }
        }
        if incompatible & RECOVER != 0 {
            return Err(Error::Journal);
        }
        if word(24) > MOST_LOG {
            return damaged(format!("its blocks would have 1024 << {} bytes", word(24)));
        }
        let block = 1024u64 << word(24);
        let is_64 = incompatible & BITS_64 != 0;
        let blocks = u64::from(word(4)) | if is_64 { u64::from(word(0x150)) << 32 } else { 0 };
        if blocks.checked_mul(block).is_none_or(|bytes| bytes > size) {
            return damaged(format!("{blocks} blocks of {block} bytes do not fit into {size} bytes"));
        }
        let first_block = u64::from(word(20));
        let (per_group, inodes_per_group) = (u64::from(word(32)), word(40));
        if per_group == 0 || inodes_per_group == 0 || first_block >= blocks {
            return damaged("its groups are empty");
        }
        let groups = (blocks - first_block).div_ceil(per_group);
        let inode = u64::from(if has_features { half(88) } else { OLD_INODE });
        if inode < OLD_INODE.into() || inode > block || !inode.is_power_of_two() {
            return damaged(format!("its inodes would have {inode} bytes"));
        }
        let descriptor = if is_64 { u64::from(half(254)) } else { 32 };
        if descriptor < 32 || descriptor > block || !descriptor.is_power_of_two() {
            return damaged(format!("descriptors of its groups would have {descriptor} bytes"));
        }
        Ok(Superblock {
            inodes: word(0),
            blocks,
            block,
            inodes_per_group,
            groups,
            inode,
            descriptor,
            has_types: incompatible & FILETYPE != 0,
            has_attributes: has_features && word(92) & 0x8 != 0,
        })
    }
}
