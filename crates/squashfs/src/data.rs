//! What files hold: blocks one after the other, holes, and ends that share a block with others.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result, damaged};
use crate::image::Image;
use crate::inode::{Body, FileBody, Inode, InodeRef, NOTHING};
use crate::meta::{Place, Reader};
use crate::partial::Piece;

/// The bit in a block's size that says it is not compressed.
pub(crate) const RAW: u32 = 1 << 24;
/// The sizes of so many blocks are added up in no time; only beyond that it is worth remembering sums.
const STRIDE: u64 = 2048;
/// Files whose sums are remembered, and how many of each: up to a tebibyte in blocks of 128 KiB. Together they
/// have 3 MiB at most.
const FILES: usize = 32;
const SUMS: usize = 4096;

/// Sums of the sizes of blocks of large files, so that reading on costs the same everywhere in the file.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints(Mutex<HashMap<InodeRef, Vec<Checkpoint>>>);

/// The state before block `STRIDE * (index + 1)`.
#[derive(Debug, Clone, Copy)]
struct Checkpoint {
    sizes: Place,
    data: u64,
}

impl Checkpoints {
    fn lock(&self) -> MutexGuard<'_, HashMap<InodeRef, Vec<Checkpoint>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The nearest known state at or before a block: which block, and the state.
    fn before(&self, file: InodeRef, block: u64) -> Option<(u64, Checkpoint)> {
        let known = self.lock();
        let sums = known.get(&file)?;
        let index = ((block / STRIDE) as usize).min(sums.len()).checked_sub(1)?;
        Some(((index as u64 + 1) * STRIDE, sums[index]))
    }

    fn remember(&self, file: InodeRef, block: u64, state: Checkpoint) {
        let mut known = self.lock();
        if known.len() >= FILES && !known.contains_key(&file) {
            known.clear();
        }
        let sums = known.entry(file).or_default();
        // Another thread may have been here first.
        if sums.len() as u64 + 1 == block / STRIDE && sums.len() < SUMS {
            sums.push(state);
        }
    }
}

/// The blocks of a file from one on.
struct Blocks<'a> {
    sizes: Reader<'a>,
    at: u64,
}

impl Blocks<'_> {
    /// Position and size as written of the next block; a size of 0 is a hole.
    fn next(&mut self) -> Result<(u64, u32)> {
        let word = self.sizes.u32()?;
        let at = self.at;
        self.at = at
            .checked_add(u64::from(word & (RAW - 1)))
            .ok_or_else(|| Error::Damaged { at, what: "a file's blocks are outside of the image".into() })?;
        Ok((at, word))
    }

    /// Passes by some blocks, `most` at most and one at least; how many.
    fn skip(&mut self, most: u64) -> Result<u64> {
        let chunk = self.sizes.chunk()?;
        let n = most.min(chunk.len() as u64 / 4) as usize;
        if n == 0 {
            // The size lies across two blocks of metadata.
            return self.next().map(|_| 1);
        }
        let words = chunk[..n * 4].chunks_exact(4);
        let sizes = words.map(|w| u64::from(u32::from_le_bytes([w[0], w[1], w[2], w[3]]) & (RAW - 1)));
        // Some 2048 sizes of 24 bits.
        let sum: u64 = sizes.sum();
        self.sizes.consume(n * 4);
        let at = self.at;
        self.at = at
            .checked_add(sum)
            .ok_or_else(|| Error::Damaged { at, what: "a file's blocks are outside of the image".into() })?;
        Ok(n as u64)
    }
}

impl Image {
    /// Reads from a regular file: as many bytes as fit in `out` and there are from `offset` on.
    pub fn read_at(&self, inode: &Inode, out: &mut [u8], offset: u64) -> Result<usize> {
        let Body::File(body) = &inode.body else {
            return Err(Error::Kind { number: inode.number, wanted: "regular file" });
        };
        let wanted = inode.size.saturating_sub(offset).min(out.len() as u64) as usize;
        let mut out = &mut out[..wanted];
        let block_size = self.superblock.block_size as usize;
        let mut index = offset / block_size as u64;
        let mut skip = (offset % block_size as u64) as usize;
        let mut blocks = None;
        while !out.is_empty() {
            // The last block is the only one that may have fewer bytes.
            let len = (inode.size - index * block_size as u64).min(block_size as u64) as usize;
            let (piece, rest) = out.split_at_mut((len - skip).min(out.len()));
            if index < body.blocks {
                let blocks = match &mut blocks {
                    Some(blocks) => blocks,
                    none => none.insert(self.blocks_from(inode, body, index)?),
                };
                let (at, word) = blocks.next()?;
                self.read_block(at, word, len, skip, piece)?;
            } else {
                self.read_fragment(inode, body, skip, piece)?;
            }
            out = rest;
            skip = 0;
            index += 1;
        }
        Ok(wanted)
    }

    /// Reads a whole regular file, which may not have more than `limit` bytes.
    pub fn read_all(&self, inode: &Inode, limit: usize) -> Result<Vec<u8>> {
        if inode.size > limit as u64 {
            return Err(Error::Large { number: inode.number, size: inode.size, limit });
        }
        let mut out = vec![0; inode.size as usize];
        self.read_at(inode, &mut out, 0)?;
        Ok(out)
    }

    /// Reads `out` from `skip` on of a block that has `len` bytes.
    fn read_block(&self, at: u64, word: u32, len: usize, skip: usize, out: &mut [u8]) -> Result<()> {
        if word == 0 {
            out.fill(0);
            return Ok(());
        }
        let check = |n: usize| match n == len {
            true => Ok(()),
            false => damaged(at, format!("a block has {n} bytes instead of {len}")),
        };
        if skip == 0 && out.len() == len && self.cached(at, word).is_none() {
            // Whoever reads whole blocks keeps them somewhere, so they need no place in the cache.
            return check(self.decode(at, word, out)?);
        }
        if let Piece::Whole(block) = self.piece(at, word, len, skip, out)? {
            check(block.data.len())?;
            out.copy_from_slice(&block.data[skip..skip + out.len()]);
        }
        Ok(())
    }

    fn read_fragment(&self, inode: &Inode, body: &FileBody, skip: usize, out: &mut [u8]) -> Result<()> {
        let (number, offset) = body.fragment;
        debug_assert_ne!(number, NOTHING);
        let (at, word) = self.fragment(number, inode.at(self))?;
        if word & (RAW - 1) == 0 {
            return damaged(at, format!("fragment {number} is empty"));
        }
        let from = offset as usize + skip;
        let Piece::Whole(block) = self.piece(at, word, self.superblock.block_size as usize, from, out)?
        else {
            return Ok(());
        };
        match block.data.get(from..from + out.len()) {
            Some(data) => out.copy_from_slice(data),
            None => return damaged(at, format!("fragment {number} has {} bytes only", block.data.len())),
        }
        Ok(())
    }

    /// Reads and decompresses a block; how many bytes it has.
    pub(crate) fn decode(&self, at: u64, word: u32, out: &mut [u8]) -> Result<usize> {
        if word & RAW != 0 {
            let size = self.packed_size(at, word)?;
            let Some(out) = out.get_mut(..size) else {
                return damaged(at, format!("a block has {size} bytes instead of {}", out.len()));
            };
            self.read_raw(out, at)?;
            return Ok(size);
        }
        let n = self.with_packed(at, word, |packed| self.superblock.codec.decompress(packed, out))?;
        let n = n.map_err(|what| Error::Damaged { at, what: format!("a block: {what}") })?;
        self.count(n);
        Ok(n)
    }

    /// The bytes of a block as written.
    pub(crate) fn with_packed<T>(&self, at: u64, word: u32, with: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let size = self.packed_size(at, word)?;
        PACKED.with_borrow_mut(|packed| {
            packed.resize(size, 0);
            self.read_raw(packed, at)?;
            Ok(with(packed))
        })
    }

    fn packed_size(&self, at: u64, word: u32) -> Result<usize> {
        let size = (word & (RAW - 1)) as usize;
        if word & !(RAW | (RAW - 1)) != 0 || size > self.superblock.block_size as usize {
            return damaged(at, format!("a block has the size {word:#x}"));
        }
        Ok(size)
    }

    /// Finds block `index` of a file, by adding up the sizes of those before it.
    fn blocks_from(&self, inode: &Inode, body: &FileBody, index: u64) -> Result<Blocks<'_>> {
        let known = if index >= STRIDE { self.checkpoints.before(inode.reference, index) } else { None };
        let (mut block, state) = known.unwrap_or((0, Checkpoint { sizes: body.sizes, data: body.start }));
        let region = self.superblock.inode_region();
        let mut blocks = Blocks { sizes: Reader::new(self, region, state.sizes)?, at: state.data };
        while block < index {
            let stop = index.min((block / STRIDE + 1) * STRIDE);
            block += blocks.skip(stop - block)?;
            if block.is_multiple_of(STRIDE) {
                let state = Checkpoint { sizes: blocks.sizes.place(), data: blocks.at };
                self.checkpoints.remember(inode.reference, block, state);
            }
        }
        Ok(blocks)
    }
}

thread_local! {
    /// A block as written, of at most a mebibyte.
    static PACKED: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}
