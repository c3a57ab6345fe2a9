//! Blocks of gzip data that are inflated only as far as somebody has read.
//!
//! A program that starts reads a few pages here and there in its libraries, and inflating is most of what that costs.
//! So a block is inflated up to what is wanted, and its decompressor waits for the rest to be wanted. What is handed out
//! that way has come out of the decompressor without an error; the block's checksum, which is at its end, and its
//! length are looked at when its end is read. Other codecs have no use for it: zstd makes 128 KiB at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flate2::{Decompress, FlushDecompress, Status};

use crate::cache::{Block, Key};
use crate::codec::Codec;
use crate::data::RAW;
use crate::error::{Error, Result, damaged};
use crate::image::Image;

/// So few bytes at the end of a block are inflated with what is before them.
const REST: usize = 8 << 10;
/// Bytes of blocks that wait, and how many there are at most, each with some 50 KiB for its decompressor.
const ROOM: usize = 2 << 20;
const MOST: usize = 16;

/// A block of which something is known.
#[derive(Debug)]
struct Partial {
    key: Key,
    state: Decompress,
    /// One byte more than the block may have: then the end of the data is met, or there is too much of it.
    data: Vec<u8>,
}

impl Partial {
    fn filled(&self) -> usize {
        self.state.total_out() as usize
    }

    /// Inflates up to `target` bytes; whether the data has ended with them, or earlier.
    fn inflate(&mut self, packed: &[u8], target: usize) -> std::result::Result<bool, &'static str> {
        let target = target.min(self.data.len());
        while self.filled() < target {
            let (read, filled) = (self.state.total_in() as usize, self.filled());
            let rest = packed.get(read..).unwrap_or_default();
            let status = self
                .state
                .decompress(rest, &mut self.data[filled..target], FlushDecompress::None)
                .map_err(|_| "its gzip data is invalid")?;
            if status == Status::StreamEnd {
                return Ok(true);
            }
            if (self.state.total_in() as usize, self.filled()) == (read, filled) {
                return Err("its gzip data is cut short");
            }
        }
        if self.filled() == self.data.len() { Err("it decompresses to too much") } else { Ok(false) }
    }
}

/// Blocks that wait, the one that was read least recently first.
#[derive(Debug)]
pub(crate) struct Partials {
    waiting: Mutex<Vec<Partial>>,
    most: usize,
}

impl Partials {
    /// For blocks of up to `largest` bytes.
    pub(crate) fn new(largest: usize) -> Partials {
        Partials { waiting: Mutex::default(), most: (ROOM / largest.max(1)).clamp(2, MOST) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Partial>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that wait, and how many bytes each may have.
    pub(crate) fn keys(&self) -> Vec<(Key, usize)> {
        self.lock().iter().map(|partial| (partial.key, partial.data.len() - 1)).collect()
    }

    /// Takes a block out, so nobody waits for somebody else's decompression.
    fn take(&self, key: Key, room: usize) -> Option<Partial> {
        let mut waiting = self.lock();
        let place = waiting.iter().position(|partial| partial.key == key && partial.data.len() == room)?;
        Some(waiting.remove(place))
    }

    /// A new one, with the decompressor of another where there are enough.
    fn begin(&self, key: Key, room: usize) -> Partial {
        let mut waiting = self.lock();
        let old = if waiting.len() >= self.most { Some(waiting.remove(0)) } else { None };
        drop(waiting);
        let state = match old {
            Some(Partial { mut state, .. }) => {
                state.reset(true);
                state
            }
            None => Decompress::new(true),
        };
        Partial { key, state, data: vec![0; room] }
    }

    /// Another thread may have put the same block back already; the one of which more is known stays.
    fn put(&self, partial: Partial) {
        let mut waiting = self.lock();
        if let Some(place) = waiting.iter().position(|other| other.key == partial.key) {
            if waiting[place].filled() > partial.filled() {
                return;
            }
            waiting.remove(place);
        } else if waiting.len() >= self.most {
            waiting.remove(0);
        }
        waiting.push(partial);
    }
}

/// What [`Image::piece`] has.
pub(crate) enum Piece {
    /// The bytes are where they were wanted.
    Copied,
    /// The whole block, to take them from.
    Whole(Arc<Block>),
}

impl Image {
    /// Fills `out` from `from` on of a data or fragment block of at most `len` bytes, or gets the whole block, through
    /// the cache. `word` is its size as written.
    pub(crate) fn piece(&self, at: u64, word: u32, len: usize, from: usize, out: &mut [u8]) -> Result<Piece> {
        if let Some(block) = self.cached(at, word) {
            return Ok(Piece::Whole(block));
        }
        if self.kept.get().is_some_and(|kept| kept.fill((at, word), from, out)) {
            return Ok(Piece::Copied);
        }
        let end = from.saturating_add(out.len());
        if self.superblock.codec != Codec::Gzip || word & RAW != 0 || end > len {
            return self.block(at, word, len).map(Piece::Whole);
        }
        let (key, room) = ((at, word), len + 1);
        // No more than is wanted: of the blocks of a library that a program starts with, most are never read on.
        let target = if end + REST >= len { room } else { end };
        let mut partial = match self.partials.take(key, room) {
            Some(partial) => partial,
            None if target == room => return self.block(at, word, len).map(Piece::Whole),
            None => self.partials.begin(key, room),
        };
        if partial.filled() < end {
            let before = partial.filled();
            let ended = self.with_packed(at, word, |packed| partial.inflate(packed, target))?;
            self.count(partial.filled() - before);
            if ended.map_err(|what| Error::Damaged { at, what: format!("a block: {what}") })? {
                let filled = partial.filled();
                partial.data.truncate(filled);
                return Ok(Piece::Whole(self.keep(at, word, partial.data)));
            }
        }
        out.copy_from_slice(&partial.data[from..end]);
        self.partials.put(partial);
        Ok(Piece::Copied)
    }

    /// Decompresses the rest of a block that waits; `None` where it does not wait any more.
    pub(crate) fn finish(&self, key: Key, len: usize) -> Result<Option<Arc<Block>>> {
        let room = len + 1;
        let Some(mut partial) = self.partials.take(key, room) else { return Ok(None) };
        let (at, word) = key;
        let ended = self.with_packed(at, word, |packed| partial.inflate(packed, room))?;
        match ended {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(what) => return damaged(at, format!("a block: {what}")),
        }
        let filled = partial.filled();
        partial.data.truncate(filled);
        Ok(Some(self.keep(at, word, partial.data)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    fn packed(data: &[u8]) -> Vec<u8> {
        let mut out = vec![0; data.len() + 1000];
        let mut state = Compress::new(Compression::new(6), true);
        assert_eq!(state.compress(data, &mut out, FlushCompress::Finish).unwrap(), Status::StreamEnd);
        out.truncate(state.total_out() as usize);
        out
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n / 7 % 253) as u8 ^ (n % 5) as u8).collect()
    }

    #[test]
    fn steps_give_what_one_go_gives() {
        let data = bytes(100_000);
        let packed = packed(&data);
        let partials = Partials::new(131_072);
        let mut partial = partials.begin((1, 2), data.len() + 1);
        for target in [1, 2, 30_000, 30_000, 65_536, 99_999] {
            assert_eq!(partial.inflate(&packed, target), Ok(false), "{target}");
            assert_eq!(partial.data[..target], data[..target]);
        }
        assert_eq!(partial.inflate(&packed, data.len() + 1), Ok(true));
        assert_eq!((partial.filled(), &partial.data[..data.len()]), (data.len(), &data[..]));
    }

    #[test]
    fn damage_is_found_where_it_is_met() {
        let data = bytes(100_000);
        let whole = packed(&data);
        let partials = Partials::new(131_072);
        let mut cut = partials.begin((1, 2), data.len() + 1);
        assert_eq!(cut.inflate(&whole[..whole.len() / 2], 100), Ok(false));
        assert_eq!(cut.inflate(&whole[..whole.len() / 2], data.len()), Err("its gzip data is cut short"));
        let mut shorter = partials.begin((1, 2), 50_001);
        assert_eq!(shorter.inflate(&whole, 50_001), Err("it decompresses to too much"));
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        let mut checked = partials.begin((1, 2), data.len() + 1);
        assert_eq!(checked.inflate(&changed, data.len() / 2), Ok(false));
        assert_eq!(
            checked.inflate(&changed, data.len() + 1),
            Err("its gzip data is invalid"),
            "the checksum"
        );
    }

    #[test]
    fn so_many_wait_and_the_longest_of_the_same_stays() {
        let packed = packed(&bytes(1000));
        let partials = Partials::new(1 << 20);
        assert_eq!(partials.most, 2);
        for n in 0..5 {
            let partial = partials.begin((n, 0), 1001);
            partials.put(partial);
            assert!(partials.lock().len() <= 2);
        }
        assert!(partials.take((2, 0), 1001).is_none());
        assert!(partials.take((4, 0), 1000).is_none(), "another length is another block");
        let mut longer = partials.take((4, 0), 1001).unwrap();
        longer.inflate(&packed, 500).unwrap();
        partials.put(longer);
        partials.put(Partial { key: (4, 0), state: Decompress::new(true), data: vec![0; 1001] });
        assert_eq!(partials.take((4, 0), 1001).unwrap().filled(), 500);
        assert!(partials.take((4, 0), 1001).is_none());
    }
}
