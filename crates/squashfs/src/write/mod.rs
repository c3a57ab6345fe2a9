//! Writes images: first the tree is listed, then data is packed, then the tables are made.
//!
//! What stays in memory is a record of some 150 bytes for each file, and a few blocks for each thread.

mod data;
mod pack;
mod scan;
mod tables;

use std::io::{Seek, SeekFrom, Write};

pub use pack::Compression;

use crate::error::{Error, Result};
use crate::superblock::{self, BLOCK_SIZES, NONE, Superblock, flag};
use crate::tree::Tree;

/// Which ends of files share blocks with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragments {
    /// None: every file has blocks of its own.
    Never,
    /// Files that are smaller than a block.
    Small,
    /// All of them. The smallest image; the end of a large file is farther away.
    Always,
}

/// How an image is to be.
#[derive(Debug, Clone)]
pub struct Options {
    pub compression: Compression,
    /// A power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
    pub fragments: Fragments,
    /// Files with the same content are stored once.
    pub deduplicate: bool,
    /// With a table that finds inodes by their numbers, for NFS.
    pub exportable: bool,
    /// With extended attributes.
    pub xattrs: bool,
    /// When the image says that it was made, in seconds since 1970.
    pub made: u32,
    /// Files changed later say that they were changed then (`SOURCE_DATE_EPOCH`).
    pub latest: Option<u32>,
    /// Whom all files belong to: user and group.
    pub owner: Option<(u32, u32)>,
    /// Threads that compress; 0 for one for each processor. The image does not depend on it.
    pub threads: usize,
    /// The image ends at a multiple of so many bytes. Loop devices need 512, mksquashfs has 4096.
    pub padding: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            compression: Compression::default(),
            block_size: 128 << 10,
            fragments: Fragments::Small,
            deduplicate: true,
            exportable: true,
            xattrs: true,
            made: 0,
            latest: None,
            owner: None,
            threads: 0,
            padding: 4096,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes, with the padding.
    pub bytes: u64,
    pub inodes: u32,
    /// Files whose content was there already.
    pub duplicates: u64,
}

/// Writes an image of `tree` where `out` stands, and leaves `out` at its end.
pub fn write<W: Write + Seek>(tree: &mut dyn Tree, out: &mut W, options: &Options) -> Result<Written> {
    check(options)?;
    let scanned = scan::scan(tree, options)?;
    let start = out.stream_position().map_err(Error::Write)?;
    let mut head = vec![0; superblock::SIZE];
    head.extend(options.compression.options());
    out.write_all(&head).map_err(Error::Write)?;
    let packed = data::pack(tree, &scanned, out, head.len() as u64, options)?;

    let mut sink = tables::Sink { out, at: packed.end };
    let tables = tables::write(&scanned, &packed, &mut sink, options)?;
    let end = sink.at;
    let superblock = Superblock {
        inodes: scanned.inodes,
        made: options.made,
        block_size: options.block_size,
        fragments: packed.fragments.len() as u32,
        codec: options.compression.codec(),
        flags: flags(options),
        ids: scanned.owners.len() as u16,
        root: tables.root.raw(),
        bytes_used: end,
        id_table: tables.owners,
        xattr_table: tables.xattrs.unwrap_or(NONE),
        inode_table: packed.end,
        directory_table: tables.directories,
        fragment_table: tables.fragments,
        export_table: tables.exports.unwrap_or(NONE),
    };
    let bytes = end.next_multiple_of(u64::from(options.padding.max(1)));
    sink.write(&vec![0; (bytes - end) as usize])?;
    let mut finish = || {
        out.seek(SeekFrom::Start(start))?;
        out.write_all(&superblock.to_bytes())?;
        out.seek(SeekFrom::Start(start + bytes))?;
        out.flush()
    };
    finish().map_err(Error::Write)?;
    Ok(Written { bytes, inodes: scanned.inodes, duplicates: packed.duplicates })
}

fn check(options: &Options) -> Result<()> {
    if !BLOCK_SIZES.contains(&options.block_size) || !options.block_size.is_power_of_two() {
        return Err(Error::Option(format!(
            "blocks of {} bytes; it must be a power of two from 4096 to 1048576",
            options.block_size
        )));
    }
    if options.padding > 1 << 20 {
        return Err(Error::Option(format!("padding to {} bytes; 1048576 are the most", options.padding)));
    }
    options.compression.check()
}

fn flags(options: &Options) -> u16 {
    let mut flags = 0;
    if options.compression == Compression::None {
        flags |= flag::RAW_INODES | flag::RAW_DATA | flag::RAW_FRAGMENTS | flag::RAW_XATTRS | flag::RAW_IDS;
    }
    flags |= match options.fragments {
        Fragments::Never => flag::NO_FRAGMENTS,
        Fragments::Small => 0,
        Fragments::Always => flag::ALWAYS_FRAGMENTS,
    };
    for (yes, bit) in [
        (options.deduplicate, flag::DEDUPLICATED),
        (options.exportable, flag::EXPORTABLE),
        (!options.xattrs, flag::NO_XATTRS),
        (!options.compression.options().is_empty(), flag::CODEC_OPTIONS),
    ] {
        flags |= if yes { bit } else { 0 };
    }
    flags
}
