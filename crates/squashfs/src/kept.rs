//! Decompressed blocks in a file beside the image, for whoever opens the same image again.
//!
//! A program that starts reads the same blocks each time, and decompressing them is most of what that costs. So whoever is
//! done with an image may write down which blocks it needed, whole and with their checksums looked at, and whoever opens
//! the image next takes them from there. Which file belongs to which image, and who may write it, is the caller's to
//! know: the `label` must be another one where the image is another one. What is wrong with such a file only means that
//! blocks are decompressed as they would be without it.
//!
//! The file: a magic number; the lengths of the label and of the index; the label; the index, sorted by position in the
//! image and size as written, 32 bytes a block; and the blocks.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cache::{Block, Key};
use crate::image::Image;

const MAGIC: &[u8; 16] = b"isles blocks 1\r\n";
const HEAD: usize = MAGIC.len() + 8;
const LABEL: usize = 4096;
/// `at` (8 bytes), where the next metadata block is (8), where the block is in the file (8), size as written (4), bytes (4).
const ENTRY: usize = 32;
/// Blocks of one file, and their bytes.
const BLOCKS: usize = 2048;
const ROOM: u64 = 8 << 20;
/// It is not worth a file to spare the decompression of fewer bytes.
const LEAST: u64 = 256 << 10;

/// Blocks that were written down.
#[derive(Debug)]
pub(crate) struct Kept {
    file: File,
    entries: Vec<Entry>,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: Key,
    next: u64,
    place: u64,
    len: u32,
}

impl Entry {
    fn parse(raw: &[u8; ENTRY]) -> Entry {
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| raw[at + n]));
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| raw[at + n]));
        Entry { key: (u64_at(0), u32_at(24)), next: u64_at(8), place: u64_at(16), len: u32_at(28) }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.key.0.to_le_bytes());
        out.extend(self.next.to_le_bytes());
        out.extend(self.place.to_le_bytes());
        out.extend(self.key.1.to_le_bytes());
        out.extend(self.len.to_le_bytes());
    }
}

impl Kept {
    /// Opens what was written under a label; `None` where it was another one, or the file is not as it should be.
    fn open(file: File, label: &[u8], largest: usize) -> Option<Kept> {
        let length = file.metadata().ok()?.len();
        // The head and, of most files, the whole index.
        let mut begin = [0; 4096];
        let there = usize::try_from(length).map_or(begin.len(), |length| length.min(begin.len()));
        let begin = &mut begin[..there];
        file.read_exact_at(begin, 0).ok()?;
        let rest = begin.strip_prefix(MAGIC.as_slice())?;
        let (label_len, rest) = rest.split_first_chunk::<4>()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let label_len = u32::from_le_bytes(*label_len) as usize;
        let count = u32::from_le_bytes(*count) as usize;
        if label_len != label.len() || !rest.starts_with(label) || count > BLOCKS {
            return None;
        }
        let (start, size) = (HEAD + label_len, count * ENTRY);
        let mut more;
        let index = match begin.get(start..start + size) {
            Some(index) => index,
            None => {
                more = vec![0; size];
                file.read_exact_at(&mut more, start as u64).ok()?;
                &more
            }
        };
        let entries: Vec<Entry> = index.as_chunks::<ENTRY>().0.iter().map(Entry::parse).collect();
        let sorted = entries.is_sorted_by(|a, b| a.key < b.key);
        let inside = |e: &Entry| {
            e.len > 0
                && e.len as usize <= largest
                && e.place.checked_add(u64::from(e.len)).is_some_and(|end| end <= length)
        };
        if !sorted || !entries.iter().all(inside) {
            return None;
        }
        let bytes = entries.iter().map(|e| u64::from(e.len)).sum();
        Some(Kept { file, entries, bytes })
    }

    fn find(&self, key: Key) -> Option<&Entry> {
        self.entries.binary_search_by_key(&key, |e| e.key).ok().and_then(|at| self.entries.get(at))
    }

    /// Fills `out` from `from` on of a block. `false` where it was not written down, or has not so many bytes.
    pub(crate) fn fill(&self, key: Key, from: usize, out: &mut [u8]) -> bool {
        let Some(entry) = self.find(key) else { return false };
        let within = from.checked_add(out.len()).is_some_and(|end| end <= entry.len as usize);
        within && self.file.read_exact_at(out, entry.place + from as u64).is_ok()
    }

    /// A whole block.
    pub(crate) fn block(&self, key: Key) -> Option<Block> {
        let entry = self.find(key)?;
        let mut data = vec![0; entry.len as usize];
        self.file.read_exact_at(&mut data, entry.place).ok()?;
        Some(Block { data, next: entry.next })
    }
}

/// Where a block is that is to be written down.
enum Source {
    Memory(Arc<Block>),
    File(Entry),
}

impl Source {
    fn len(&self) -> u64 {
        match self {
            Source::Memory(block) => block.data.len() as u64,
            Source::File(entry) => entry.len.into(),
        }
    }
}

impl Image {
    /// Takes decompressed blocks from a file that [`Image::keep_blocks`] has written under the same label, from now on.
    /// Says whether the file is such a one.
    pub fn recall_blocks(&self, file: File, label: &[u8]) -> bool {
        let largest = (self.superblock.block_size as usize).max(crate::meta::BLOCK);
        let kept = Kept::open(file, label, largest);
        kept.is_some_and(|kept| self.kept.set(kept).is_ok())
    }

    /// Whether so much was decompressed that it is worth writing down.
    pub fn has_blocks_to_keep(&self) -> bool {
        let known = self.kept.get().map_or(0, |kept| kept.bytes);
        let fresh = self.decompressed.load(Ordering::Relaxed);
        // A file grows by its eighth at least, so what is written again and again comes to little.
        fresh >= LEAST.max(known / 8) && known + LEAST <= ROOM
    }

    /// Writes down the blocks of the file that was recalled, and those that are in memory, up to 8 MiB.
    ///
    /// # Errors
    /// Those of `out`, and of the file that was recalled.
    pub fn keep_blocks(&self, out: &mut dyn Write, label: &[u8]) -> io::Result<()> {
        if label.len() > LABEL {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut blocks: BTreeMap<Key, Source> = BTreeMap::new();
        let mut room = ROOM;
        let mut add = |key: Key, source: Source| {
            let (full, len) = (blocks.len() >= BLOCKS, source.len());
            if let Slot::Vacant(slot) = blocks.entry(key)
                && !full
                && len <= room
                && len > 0
            {
                room -= len;
                slot.insert(source);
            }
        };
        for entry in self.kept.get().map_or(&[][..], |kept| &kept.entries) {
            add(entry.key, Source::File(*entry));
        }
        for (key, block) in self.blocks_in_memory() {
            add(key, Source::Memory(block));
        }
        let mut place = (HEAD + label.len() + blocks.len() * ENTRY) as u64;
        let mut head = MAGIC.to_vec();
        head.extend((label.len() as u32).to_le_bytes());
        head.extend((blocks.len() as u32).to_le_bytes());
        head.extend(label);
        for (key, source) in &blocks {
            let next = match source {
                Source::Memory(block) => block.next,
                Source::File(entry) => entry.next,
            };
            // Blocks have a mebibyte at most.
            Entry { key: *key, next, place, len: source.len() as u32 }.write(&mut head);
            place += source.len();
        }
        out.write_all(&head)?;
        for source in blocks.values() {
            match (source, self.kept.get()) {
                (Source::Memory(block), _) => out.write_all(&block.data)?,
                (Source::File(entry), Some(kept)) => {
                    let mut data = vec![0; entry.len as usize];
                    kept.file.read_exact_at(&mut data, entry.place)?;
                    out.write_all(&data)?;
                }
                (Source::File(_), None) => return Err(io::ErrorKind::NotFound.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn example() -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(5u32.to_le_bytes());
        out.extend(2u32.to_le_bytes());
        out.extend(b"label");
        let place = (out.len() + 2 * ENTRY) as u64;
        Entry { key: (10, 0), next: 77, place, len: 3 }.write(&mut out);
        Entry { key: (10, 4), next: 0, place: place + 3, len: 4 }.write(&mut out);
        out.extend(b"abcdefg");
        out
    }

    #[test]
    fn blocks_are_found_by_position_and_size() {
        let kept = Kept::open(file(&example()), b"label", 8192).unwrap();
        assert_eq!(kept.bytes, 7);
        let block = kept.block((10, 0)).unwrap();
        assert_eq!((block.data.as_slice(), block.next), (&b"abc"[..], 77));
        let mut out = [0; 2];
        assert!(kept.fill((10, 4), 2, &mut out));
        assert_eq!(&out, b"fg");
        assert!(!kept.fill((10, 4), 3, &mut out), "beyond the block");
        assert!(!kept.fill((10, 4), usize::MAX, &mut out));
        assert!(kept.block((10, 5)).is_none() && kept.block((9, 0)).is_none());
    }

    #[test]
    fn what_is_not_as_it_should_be_is_not_believed() {
        let good = example();
        let at = |n: usize| HEAD + 5 + n;
        assert!(Kept::open(file(&good), b"other", 8192).is_none());
        assert!(Kept::open(file(&good), b"labe", 8192).is_none());
        assert!(Kept::open(file(&good), b"label", 3).is_none(), "larger than a block can be");
        for len in 0..good.len() {
            assert!(Kept::open(file(&good[..len]), b"label", 8192).is_none(), "{len}");
        }
        let changes: [(&str, usize, &[u8]); 6] = [
            ("the magic number", 0, b"I"),
            ("more blocks than there are", 20, &[9]),
            ("more blocks than there may be", 20, &[0xff; 4]),
            ("out of order", at(0), &[99]),
            ("beyond the file", at(16), &[0xff; 8]),
            ("an empty block", at(28), &[0; 4]),
        ];
        for (what, place, bytes) in changes {
            let mut bad = good.clone();
            bad[place..place + bytes.len()].copy_from_slice(bytes);
            assert!(Kept::open(file(&bad), b"label", 8192).is_none(), "{what}");
        }
    }

    #[test]
    fn a_file_that_shrinks_has_no_blocks() {
        let shrinking = file(&example());
        let kept = Kept::open(shrinking.try_clone().unwrap(), b"label", 8192).unwrap();
        shrinking.set_len(50).unwrap();
        assert!(kept.block((10, 0)).is_none() && !kept.fill((10, 4), 0, &mut [0; 2]));
    }
}
