//! An image that is open: its bytes, its caches, and the blocks between the two.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::cache::{Block, Cache, Key};
use crate::codec::Codec;
use crate::data::Checkpoints;
use crate::dir::Resume;
use crate::error::{Error, Result, damaged};
use crate::inode::{FileType, InodeRef};
use crate::kept::Kept;
use crate::meta;
use crate::partial::Partials;
use crate::source::Source;
use crate::superblock::{self, Superblock, flag};

/// What an open image may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes for decompressed blocks, of which a quarter is for metadata.
    pub cache: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { cache: 16 << 20 }
    }
}

/// What `statfs` and people want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    pub inodes: u32,
    /// Bytes of the image, without the padding behind it.
    pub bytes_used: u64,
    pub block_size: u32,
    pub fragments: u32,
    /// Seconds since 1970.
    pub made: u32,
    pub codec: Codec,
    /// Inodes can be found by their numbers ([`Image::by_number`]).
    pub exportable: bool,
}

/// An open image. Reads by position only, so threads share it, and so may others the source.
#[derive(Debug)]
pub struct Image {
    source: Box<dyn Source>,
    /// Where the image begins in the source.
    start: u64,
    pub(crate) superblock: Superblock,
    metadata: Cache,
    data: Cache,
    pub(crate) owners: OnceLock<Vec<u32>>,
    pub(crate) resume: Resume,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) partials: Partials,
    /// Blocks that were decompressed when the image was open before.
    pub(crate) kept: OnceLock<Kept>,
    /// Bytes that were decompressed now.
    pub(crate) decompressed: AtomicU64,
}

impl Image {
    /// Opens the image in `len` bytes of `source`, which is a file mostly, from `start` on.
    pub fn open(source: impl Source + 'static, start: u64, len: u64) -> Result<Image> {
        Image::open_with(source, start, len, Limits::default())
    }

    /// The same with limits of the caller's.
    pub fn open_with(source: impl Source + 'static, start: u64, len: u64, limits: Limits) -> Result<Image> {
        let source: Box<dyn Source> = Box::new(source);
        let mut raw = [0; superblock::SIZE];
        if len < raw.len() as u64 {
            return Err(Error::NotSquashfs { reason: format!("it has {len} bytes") });
        }
        if start.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
            return damaged(0, "its place in the file is beyond all files");
        }
        read_exact(&*source, &mut raw, start, 0)?;
        let superblock = Superblock::parse(&raw, len)?;
        let block = superblock.block_size as usize;
        let image = Image {
            source,
            start,
            metadata: Cache::new(limits.cache / 4, meta::BLOCK),
            data: Cache::new(limits.cache / 4 * 3, block),
            partials: Partials::new(block),
            superblock,
            owners: OnceLock::new(),
            resume: Resume::default(),
            checkpoints: Checkpoints::default(),
            kept: OnceLock::new(),
            decompressed: AtomicU64::new(0),
        };
        // Needed next in any case, and a good proof that this is an image that can be read.
        if image.inode(image.root())?.file_type != FileType::Dir {
            return damaged(32, "the root is not a directory");
        }
        Ok(image)
    }

    /// The root directory.
    pub fn root(&self) -> InodeRef {
        InodeRef::from_raw(self.superblock.root)
    }

    /// Whether any file has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.superblock.xattr_table != superblock::NONE
    }

    pub fn statistics(&self) -> Statistics {
        let s = &self.superblock;
        Statistics {
            inodes: s.inodes,
            bytes_used: s.bytes_used,
            block_size: s.block_size,
            fragments: s.fragments,
            made: s.made,
            codec: s.codec,
            exportable: s.flags & flag::EXPORTABLE != 0 && s.export_table != superblock::NONE,
        }
    }

    /// Reads bytes of the image as they are.
    pub(crate) fn read_raw(&self, out: &mut [u8], at: u64) -> Result<()> {
        let end = at.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.superblock.bytes_used) {
            return damaged(at, format!("{} bytes are outside of the image", out.len()));
        }
        // Cannot overflow: the image is inside of the file.
        read_exact(&*self.source, out, self.start + at, at)
    }

    /// The metadata block at a position.
    pub(crate) fn metadata(&self, at: u64) -> Result<Arc<Block>> {
        if let Some(block) = self.metadata.get((at, 0)) {
            return Ok(block);
        }
        if let Some(block) = self.kept.get().and_then(|kept| kept.block((at, 0))) {
            let block = Arc::new(block);
            self.metadata.insert((at, 0), block.clone());
            return Ok(block);
        }
        // One call for a block and its header, and for a part of the next one.
        let mut raw = [0; meta::BLOCK + 2];
        let there = self.superblock.bytes_used.saturating_sub(at).min(raw.len() as u64) as usize;
        if there < 3 {
            return damaged(at, "a metadata block is outside of the image");
        }
        let raw = &mut raw[..there];
        self.read_raw(raw, at)?;
        let header = u16::from_le_bytes([raw[0], raw[1]]);
        let (size, packed) = (usize::from(header & 0x7fff), header & meta::RAW == 0);
        if size == 0 || size > meta::BLOCK {
            return damaged(at, format!("a metadata block of {size} bytes"));
        }
        let Some(body) = raw.get(2..2 + size) else {
            return damaged(at, "a metadata block ends outside of the image");
        };
        let mut data;
        if packed {
            data = vec![0; meta::BLOCK];
            let n = self.superblock.codec.decompress(body, &mut data);
            let n = n.map_err(|what| Error::Damaged { at, what: format!("a metadata block: {what}") })?;
            self.count(n);
            data.truncate(n);
            if n < meta::BLOCK / 2 {
                data.shrink_to_fit();
            }
        } else {
            data = body.to_vec();
        }
        if data.is_empty() {
            return damaged(at, "an empty metadata block");
        }
        let block = Arc::new(Block { data, next: at + 2 + size as u64 });
        self.metadata.insert((at, 0), block.clone());
        Ok(block)
    }

    /// A data or fragment block from the cache.
    pub(crate) fn cached(&self, at: u64, word: u32) -> Option<Arc<Block>> {
        self.data.get((at, word))
    }

    /// Notes that bytes were decompressed.
    pub(crate) fn count(&self, bytes: usize) {
        self.decompressed.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Whole blocks, of metadata first. Those that wait for somebody to read on are decompressed to their end.
    pub(crate) fn blocks_in_memory(&self) -> Vec<(Key, Arc<Block>)> {
        let mut all = self.metadata.all();
        // What is not compressed is no faster to have from elsewhere.
        let data = self.data.all();
        all.extend(data.into_iter().filter(|((_, word), _)| word & crate::data::RAW == 0));
        for (key, len) in self.partials.keys() {
            // Damage is for whoever reads it.
            if let Ok(Some(block)) = self.finish(key, len) {
                all.push((key, block));
            }
        }
        all
    }

    /// A data or fragment block of at most `len` bytes, through the cache. `word` is its size as written.
    pub(crate) fn block(&self, at: u64, word: u32, len: usize) -> Result<Arc<Block>> {
        if let Some(block) = self.cached(at, word) {
            return Ok(block);
        }
        let mut data = vec![0; len];
        let n = self.decode(at, word, &mut data)?;
        data.truncate(n);
        Ok(self.keep(at, word, data))
    }

    /// Puts a data or fragment block into the cache.
    pub(crate) fn keep(&self, at: u64, word: u32, mut data: Vec<u8>) -> Arc<Block> {
        if data.len() < data.capacity() / 4 * 3 {
            data.shrink_to_fit();
        }
        let block = Arc::new(Block { data, next: 0 });
        self.data.insert((at, word), block.clone());
        block
    }
}

/// `at` is the position in the image, for the error.
fn read_exact(source: &dyn Source, out: &mut [u8], offset: u64, at: u64) -> Result<()> {
    source.read_exact_at(out, offset).map_err(|source| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::Damaged { at, what: "the file ends here".into() },
        _ => Error::Read { at, source },
    })
}
