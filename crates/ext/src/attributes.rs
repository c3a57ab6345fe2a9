//! Extended attributes: behind the fields of an inode, and in a block that inodes may share (`attributes.rst`).

use crate::error::{Result, damaged};
use crate::image::Image;
use crate::inode::Inode;
use crate::superblock::{u16_at, u32_at};

const MAGIC: u32 = 0xea02_0000;
/// Of the block; behind the fields of an inode there is the magic number alone.
const BLOCK_HEAD: usize = 32;
const ENTRY_HEAD: usize = 16;
/// The namespaces of names that are shown. Access control lists (2 and 3) are kept in a form of their own.
const PREFIXES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];

impl Image {
    /// Names and values. Values that have an inode of their own are left out.
    pub fn attributes(&self, inode: &Inode) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut all = Vec::new();
        if u32_at(&inode.rest, 0) == MAGIC {
            read(inode, &inode.rest[4..], 0, &mut all)?;
        }
        if inode.attributes != 0 {
            let block = self.block(inode.attributes)?;
            if u32_at(&block, 0) != MAGIC {
                return damaged(format!("the attributes of inode {} are none", inode.number));
            }
            read(inode, &block, BLOCK_HEAD, &mut all)?;
        }
        Ok(all)
    }
}

/// Entries begin at `at`; values are counted from the beginning of `bytes`.
fn read(inode: &Inode, bytes: &[u8], mut at: usize, all: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<()> {
    let odd = || damaged(format!("the attributes of inode {} leave their place", inode.number));
    // The end is a word of zeros, or the end of the place.
    while at + 4 <= bytes.len() && u32_at(bytes, at) != 0 {
        let (length, space) = (usize::from(bytes[at]), bytes.get(at + 1).copied().unwrap_or(0));
        let Some(name) = bytes.get(at + ENTRY_HEAD..at + ENTRY_HEAD + length) else { return odd() };
        let (offset, of, size) =
            (usize::from(u16_at(bytes, at + 2)), u32_at(bytes, at + 4), u32_at(bytes, at + 8) as usize);
        at = (at + ENTRY_HEAD + length).next_multiple_of(4);
        let Some((_, prefix)) = PREFIXES.iter().find(|(number, _)| *number == space) else { continue };
        if of != 0 {
            continue;
        }
        let value = offset.checked_add(size).and_then(|end| bytes.get(offset..end));
        let Some(value) = value else { return odd() };
        all.push(([prefix, name].concat(), value.to_vec()));
    }
    Ok(())
}
