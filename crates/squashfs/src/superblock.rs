//! The first 96 bytes of an image: where its tables are, and how it is compressed.

use std::ops::Range;

use crate::codec::Codec;
use crate::error::{Error, Result, damaged};

/// Bytes of the superblock.
pub(crate) const SIZE: usize = 96;
/// `hsqs`; images of squashfs 1 to 3 may have it the other way round.
const MAGIC: u32 = 0x7371_7368;
/// A table that is not there.
pub(crate) const NONE: u64 = u64::MAX;

/// The smallest and the largest block of file data.
pub(crate) const BLOCK_SIZES: Range<u32> = 4096..(1 << 20) + 1;

pub(crate) mod flag {
    pub const RAW_INODES: u16 = 0x1;
    pub const RAW_DATA: u16 = 0x2;
    pub const RAW_FRAGMENTS: u16 = 0x8;
    pub const NO_FRAGMENTS: u16 = 0x10;
    pub const ALWAYS_FRAGMENTS: u16 = 0x20;
    pub const DEDUPLICATED: u16 = 0x40;
    pub const EXPORTABLE: u16 = 0x80;
    pub const RAW_XATTRS: u16 = 0x100;
    pub const NO_XATTRS: u16 = 0x200;
    pub const CODEC_OPTIONS: u16 = 0x400;
    pub const RAW_IDS: u16 = 0x800;
}

/// The superblock's fields, checked on the way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub inodes: u32,
    pub made: u32,
    pub block_size: u32,
    pub fragments: u32,
    pub codec: Codec,
    pub flags: u16,
    pub ids: u16,
    pub root: u64,
    /// Bytes of the image that mean anything; padding may follow.
    pub bytes_used: u64,
    pub id_table: u64,
    pub xattr_table: u64,
    pub inode_table: u64,
    pub directory_table: u64,
    pub fragment_table: u64,
    pub export_table: u64,
}

impl Superblock {
    /// Reads the fields of an image of which `len` bytes are there.
    pub(crate) fn parse(raw: &[u8; SIZE], len: u64) -> Result<Superblock> {
        let u16_at = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        match u32_at(0) {
            MAGIC => {}
            magic if magic == MAGIC.swap_bytes() => {
                return Err(Error::Unsupported { what: "squashfs before version 4, big-endian".into() });
            }
            magic => {
                return Err(Error::NotSquashfs { reason: format!("it begins with {magic:#010x}") });
            }
        }
        let (major, minor) = (u16_at(28), u16_at(30));
        if (major, minor) != (4, 0) {
            return Err(Error::Unsupported { what: format!("squashfs version {major}.{minor}") });
        }
        let codec = Codec::from_id(u16_at(20))?;
        let block = Superblock {
            inodes: u32_at(4),
            made: u32_at(8),
            block_size: u32_at(12),
            fragments: u32_at(16),
            codec,
            flags: u16_at(24),
            ids: u16_at(26),
            root: u64_at(32),
            bytes_used: u64_at(40),
            id_table: u64_at(48),
            xattr_table: u64_at(56),
            inode_table: u64_at(64),
            directory_table: u64_at(72),
            fragment_table: u64_at(80),
            export_table: u64_at(88),
        };
        block.check(u16_at(22), len)?;
        Ok(block)
    }

    fn check(&self, log: u16, len: u64) -> Result<()> {
        if !BLOCK_SIZES.contains(&self.block_size) || !self.block_size.is_power_of_two() {
            return damaged(12, format!("blocks of {} bytes", self.block_size));
        }
        if u32::from(log) != self.block_size.trailing_zeros() {
            return damaged(22, "the two sizes of a block differ");
        }
        if self.bytes_used > len {
            return damaged(
                40,
                format!("it is cut short: it should have {} bytes and has {len}", self.bytes_used),
            );
        }
        if self.inodes == 0 || self.ids == 0 {
            return damaged(4, "no inodes or no owners");
        }
        let end = self.bytes_used;
        let inside = |at: u64, bytes: u64| at >= SIZE as u64 && at <= end && end - at >= bytes;
        if !inside(self.inode_table, 3)
            || !inside(self.directory_table, 0)
            || self.inode_table >= self.directory_table
        {
            return damaged(64, "the inode or directory table is outside of the image");
        }
        // What else there is follows the directories, so that a bound on one is a bound on the other.
        let optional = |at: u64| at == NONE || (inside(at, 0) && at >= self.directory_table);
        if !inside(self.id_table, 8) || self.id_table < self.directory_table {
            return damaged(48, "the table of owners is outside of the image");
        }
        if !optional(self.xattr_table) || !optional(self.export_table) {
            return damaged(56, "a table is outside of the image");
        }
        if self.fragments > 0 && !(inside(self.fragment_table, 8) && optional(self.fragment_table)) {
            return damaged(80, "the table of fragments is outside of the image");
        }
        Ok(())
    }

    /// Where inodes are.
    pub(crate) fn inode_region(&self) -> Range<u64> {
        self.inode_table..self.directory_table
    }

    /// Where directories are, at most: up to the first index of the tables that follow.
    pub(crate) fn directory_region(&self) -> Range<u64> {
        let followers = [self.fragment_table, self.export_table, self.id_table, self.xattr_table];
        let end = followers.into_iter().filter(|at| *at >= self.directory_table).min();
        self.directory_table..end.unwrap_or(self.bytes_used).min(self.bytes_used)
    }

    pub(crate) fn to_bytes(&self) -> [u8; SIZE] {
        let mut out = Vec::with_capacity(SIZE);
        for word in [MAGIC, self.inodes, self.made, self.block_size, self.fragments] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let log = self.block_size.trailing_zeros() as u16;
        for half in [self.codec.id(), log, self.flags, self.ids, 4, 0] {
            out.extend_from_slice(&half.to_le_bytes());
        }
        for long in [
            self.root,
            self.bytes_used,
            self.id_table,
            self.xattr_table,
            self.inode_table,
            self.directory_table,
            self.fragment_table,
            self.export_table,
        ] {
            out.extend_from_slice(&long.to_le_bytes());
        }
        let mut raw = [0; SIZE];
        raw.copy_from_slice(&out);
        raw
    }
}
