//! Compresses blocks. The same block gives the same bytes, whatever was compressed before it.

use flate2::{Compress, FlushCompress, Status};

use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::meta::RAW;

/// From here on zstd finds matches in hash tables whose layout depends on what its context compressed before
/// (the "salt" of its row tables, since 1.5.5), so every block gets a context of its own.
const ZSTD_STATEFUL: i32 = 5;

/// How an image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// Levels 1 to 9. All readers have it.
    Gzip(u32),
    /// Levels 1 to 22. Linux 4.14 or later, squashfs-tools 4.4 or later.
    Zstd(i32),
}

impl Default for Compression {
    fn default() -> Self {
        // Smaller than gzip 9 on a Debian tree, at a quarter of its time, and read in half of it.
        Compression::Zstd(6)
    }
}

impl Compression {
    pub(crate) fn check(self) -> Result<()> {
        let (name, level, most) = match self {
            Compression::None => return Ok(()),
            Compression::Gzip(level) => ("gzip", i64::from(level), 9),
            Compression::Zstd(level) => ("zstd", i64::from(level), 22),
        };
        if !(1..=most).contains(&level) {
            return Err(Error::Option(format!("{name} level {level}; it must be from 1 to {most}")));
        }
        Ok(())
    }

    pub(crate) fn codec(self) -> Codec {
        match self {
            Compression::None | Compression::Gzip(_) => Codec::Gzip,
            Compression::Zstd(_) => Codec::Zstd,
        }
    }

    /// What stands behind the superblock where the level is not mksquashfs's default: a metadata block.
    pub(crate) fn options(self) -> Vec<u8> {
        let body = match self {
            Compression::None | Compression::Gzip(9) | Compression::Zstd(15) => return Vec::new(),
            // The level, zlib's window of 15 bits, no choice between strategies.
            Compression::Gzip(level) => [&level.to_le_bytes()[..], &[15, 0, 0, 0]].concat(),
            Compression::Zstd(level) => level.to_le_bytes().to_vec(),
        };
        let mut out = (RAW | body.len() as u16).to_le_bytes().to_vec();
        out.extend(body);
        out
    }
}

/// The state of a compressor.
pub(crate) struct Packer {
    compression: Compression,
    gzip: Option<Compress>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Packer {
    pub(crate) fn new(compression: Compression) -> Packer {
        Packer { compression, gzip: None, zstd: None }
    }

    /// Compresses a block; none where that does not make it smaller.
    pub(crate) fn pack(&mut self, block: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
        let packed = match self.compression {
            Compression::None => None,
            Compression::Gzip(level) => self.deflate(block, level),
            Compression::Zstd(level) => Some(self.zstd(block, level)?),
        };
        Ok(packed.filter(|packed| packed.len() < block.len()))
    }

    fn deflate(&mut self, block: &[u8], level: u32) -> Option<Vec<u8>> {
        let state = self.gzip.get_or_insert_with(|| Compress::new(flate2::Compression::new(level), true));
        state.reset();
        let mut out = Vec::with_capacity(block.len());
        match state.compress_vec(block, &mut out, FlushCompress::Finish) {
            Ok(Status::StreamEnd) => Some(out),
            // It did not fit, so it is not smaller.
            _ => None,
        }
    }

    fn zstd(&mut self, block: &[u8], level: i32) -> std::io::Result<Vec<u8>> {
        if self.zstd.is_none() || level >= ZSTD_STATEFUL {
            self.zstd = Some(zstd::bulk::Compressor::new(level)?);
        }
        let Some(state) = &mut self.zstd else { unreachable!("it was set in the line above") };
        let mut out = Vec::with_capacity(zstd::zstd_safe::compress_bound(block.len()));
        state.compress_to_buffer(block, &mut out)?;
        Ok(out)
    }
}
