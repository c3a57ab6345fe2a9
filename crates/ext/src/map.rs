//! Where the blocks of a file are: by pointers of up to three levels (ext2, ext3) or by a tree of extents (ext4).

use crate::error::{Result, damaged};
use crate::image::Image;
use crate::inode::Inode;
use crate::superblock::{u16_at, u32_at};

const DIRECT: u64 = 12;
const EXTENT_MAGIC: u16 = 0xf30a;
/// As the kernel's (`EXT4_MAX_EXTENT_DEPTH`).
const DEPTH: u16 = 5;
/// An extent that is longer was reserved and never written to.
const WRITTEN: u32 = 32_768;
const ENTRY: usize = 12;

/// Blocks of a file that lie one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Of the image; `None` for a hole.
    pub block: Option<u64>,
    /// At least 1.
    pub count: u64,
}

const fn hole(count: u64) -> Run {
    Run { block: None, count }
}

impl Image {
    /// Where a file's block `at` is, and how many lie behind it.
    pub(crate) fn run(&self, inode: &Inode, at: u64) -> Result<Run> {
        if inode.has_extents { self.by_extents(inode, at) } else { self.by_pointers(inode, at) }
    }

    fn by_pointers(&self, inode: &Inode, at: u64) -> Result<Run> {
        if let Some(index) = usize::try_from(at).ok().filter(|_| at < DIRECT) {
            return Ok(consecutive(&inode.pointers[..4 * DIRECT as usize], index));
        }
        let each = self.superblock().block / 4;
        let mut rest = at - DIRECT;
        let mut span = 1;
        for level in 0..3 {
            span *= each;
            if rest < span {
                let top = u32_at(&inode.pointers, 4 * (DIRECT as usize + level));
                return self.below(top, span / each, rest);
            }
            rest -= span;
        }
        damaged(format!("inode {} is larger than a file can be", inode.number))
    }

    /// Goes down from a block of pointers, each of which stands for `span` blocks.
    fn below(&self, pointer: u32, mut span: u64, mut at: u64) -> Result<Run> {
        let mut pointer = pointer;
        loop {
            if pointer == 0 {
                let whole = span * (self.superblock().block / 4);
                return Ok(hole(whole - at));
            }
            let block = self.block(pointer.into())?;
            let index = (at / span) as usize;
            if span == 1 {
                return Ok(consecutive(&block, index));
            }
            pointer = u32_at(&block, 4 * index);
            at %= span;
            span /= self.superblock().block / 4;
        }
    }

    fn by_extents(&self, inode: &Inode, at: u64) -> Result<Run> {
        let odd = |what: &str| damaged(format!("the extents of inode {} {what}", inode.number));
        let mut node = inode.pointers.to_vec();
        let mut above: Option<u16> = None;
        // The first block behind this node's, which a hole at its end reaches to.
        let mut end = u64::MAX;
        loop {
            let (entries, depth) = (usize::from(u16_at(&node, 2)), u16_at(&node, 6));
            if u16_at(&node, 0) != EXTENT_MAGIC || (entries + 1) * ENTRY > node.len() {
                return odd("are none");
            }
            if depth > DEPTH || above.is_some_and(|above| depth + 1 != above) {
                return odd("lead in circles");
            }
            above = Some(depth);
            let start = |n: usize| u64::from(u32_at(&node, (n + 1) * ENTRY));
            // The last entry that does not begin behind the block.
            let (mut low, mut high) = (0, entries);
            while low < high {
                let middle = (low + high) / 2;
                if start(middle) <= at { low = middle + 1 } else { high = middle }
            }
            if low < entries {
                end = end.min(start(low));
            }
            let Some(found) = low.checked_sub(1) else { return Ok(hole(end - at)) };
            let entry = &node[(found + 1) * ENTRY..(found + 2) * ENTRY];
            if depth > 0 {
                let child = u64::from(u32_at(entry, 4)) | u64::from(u16_at(entry, 8)) << 32;
                node = self.block(child)?;
                continue;
            }
            let length = u32::from(u16_at(entry, 4));
            let count = u64::from(if length > WRITTEN { length - WRITTEN } else { length });
            let into = at - start(found);
            if into >= count {
                return Ok(hole(end - at));
            }
            if length > WRITTEN {
                return Ok(hole(count - into));
            }
            let block = u64::from(u32_at(entry, 8)) | u64::from(u16_at(entry, 6)) << 32;
            return Ok(Run { block: Some(block + into), count: count - into });
        }
    }
}

/// The pointer at `index`, and how many behind it lead to the next block, or to none as it does.
fn consecutive(pointers: &[u8], index: usize) -> Run {
    let of = |n: usize| u64::from(u32_at(pointers, 4 * n));
    let first = of(index);
    let next = |n: usize| if first == 0 { 0 } else { first + (n - index) as u64 };
    let count = (index..pointers.len() / 4).take_while(|n| of(*n) == next(*n)).count() as u64;
    Run { block: (first != 0).then_some(first), count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_in_a_row() {
        let bytes: Vec<u8> = [7u32, 8, 9, 0, 0, 3, 5].iter().flat_map(|p| p.to_le_bytes()).collect();
        let run = |index| consecutive(&bytes, index);
        assert_eq!(run(0), Run { block: Some(7), count: 3 });
        assert_eq!(run(2), Run { block: Some(9), count: 1 });
        assert_eq!(run(3), hole(2));
        assert_eq!(run(5), Run { block: Some(3), count: 1 });
    }
}
