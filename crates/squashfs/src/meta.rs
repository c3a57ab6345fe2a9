//! Metadata is a stream of little-endian fields in blocks of 8 KiB, each compressed for itself.

use std::ops::Range;
use std::sync::Arc;

use crate::cache::Block;
use crate::error::{Error, Result, damaged};
use crate::image::Image;

/// Bytes of a metadata block before compression; the last one of a table may have fewer.
pub(crate) const BLOCK: usize = 8192;
/// The bit in a block's header that says it is not compressed.
pub(crate) const RAW: u16 = 0x8000;

/// A place in a table: the position of a metadata block in the image, and an offset in what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    pub block: u64,
    pub offset: u16,
}

/// Reads fields one after the other, over the boundaries of blocks.
pub(crate) struct Reader<'a> {
    image: &'a Image,
    /// No block may begin at or behind this.
    end: u64,
    at: u64,
    block: Arc<Block>,
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Begins at `place`, which must be in `region`, as must be everything that is read.
    pub(crate) fn new(image: &'a Image, region: Range<u64>, place: Place) -> Result<Reader<'a>> {
        if !region.contains(&place.block) {
            return damaged(place.block, "a reference leads out of its table");
        }
        let block = image.metadata(place.block)?;
        let offset = usize::from(place.offset);
        if offset > block.data.len() {
            return damaged(place.block, format!("offset {offset} is behind the end of a metadata block"));
        }
        Ok(Reader { image, end: region.end, at: place.block, block, offset })
    }

    /// Where the next byte is.
    pub(crate) fn place(&self) -> Place {
        // Offsets are at most 8192.
        Place { block: self.at, offset: self.offset as u16 }
    }

    /// The rest of the current block, or the next block; never empty.
    pub(crate) fn chunk(&mut self) -> Result<&[u8]> {
        if self.offset == self.block.data.len() {
            let next = self.block.next;
            if next >= self.end {
                return damaged(next, "a table ends too early");
            }
            self.block = self.image.metadata(next)?;
            self.at = next;
            self.offset = 0;
        }
        Ok(&self.block.data[self.offset..])
    }

    /// Goes on behind the first `n` bytes of the chunk.
    pub(crate) fn consume(&mut self, n: usize) {
        self.offset = (self.offset + n).min(self.block.data.len());
    }

    pub(crate) fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            let chunk = self.chunk()?;
            let n = chunk.len().min(out.len() - done);
            out[done..done + n].copy_from_slice(&chunk[..n]);
            done += n;
            self.consume(n);
        }
        Ok(())
    }

    pub(crate) fn skip(&mut self, mut n: u64) -> Result<()> {
        while n > 0 {
            let len = self.chunk()?.len();
            let step = usize::try_from(n).unwrap_or(usize::MAX).min(len);
            self.consume(step);
            n -= step as u64;
        }
        Ok(())
    }

    /// `len` bytes, which the caller has bounded.
    pub(crate) fn bytes(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; len];
        self.fill(&mut out)?;
        Ok(out)
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        let mut raw = [0; 2];
        self.fill(&mut raw)?;
        Ok(u16::from_le_bytes(raw))
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        let mut raw = [0; 4];
        self.fill(&mut raw)?;
        Ok(u32::from_le_bytes(raw))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        let mut raw = [0; 8];
        self.fill(&mut raw)?;
        Ok(u64::from_le_bytes(raw))
    }

    /// An error at the current place.
    pub(crate) fn damaged<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(Error::Damaged { at: self.at, what: what.into() })
    }
}
