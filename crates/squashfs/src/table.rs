//! Tables that are found through an index: owners, fragments, inodes by number, attributes.
//!
//! The entries lie in metadata blocks; the index is a list of those blocks' positions, uncompressed. It is
//! read entry by entry, because a large image may claim a large index.

use crate::error::{Error, Result, damaged};
use crate::image::Image;
use crate::inode::InodeRef;
use crate::meta::{self, Place, Reader};
use crate::superblock::NONE;

impl Image {
    /// A reader at entry `n` of the table whose index is at `index`; entries have `size` bytes.
    pub(crate) fn table_entry(&self, index: u64, n: u64, size: u64) -> Result<Reader<'_>> {
        let byte = n * size;
        let pointer = (byte / meta::BLOCK as u64)
            .checked_mul(8)
            .and_then(|offset| index.checked_add(offset))
            .ok_or_else(|| Error::Damaged { at: index, what: "a table is too large".into() })?;
        let mut raw = [0; 8];
        self.read_raw(&mut raw, pointer)?;
        let block = u64::from_le_bytes(raw);
        let region = self.superblock.directory_table..index;
        if !region.contains(&block) {
            return damaged(pointer, "the index of a table points outside of it");
        }
        Reader::new(self, region, Place { block, offset: (byte % meta::BLOCK as u64) as u16 })
    }

    /// The user or group with an index.
    pub(crate) fn owner(&self, index: u16, at: u64) -> Result<u32> {
        let owners = match self.owners.get() {
            Some(owners) => owners,
            None => {
                let owners = self.read_owners()?;
                self.owners.get_or_init(|| owners)
            }
        };
        match owners.get(usize::from(index)) {
            Some(id) => Ok(*id),
            None => damaged(at, format!("owner {index} of {}", owners.len())),
        }
    }

    /// All of them: there are 65535 at most.
    fn read_owners(&self) -> Result<Vec<u32>> {
        let count = usize::from(self.superblock.ids);
        let mut owners = Vec::with_capacity(count);
        const EACH: usize = meta::BLOCK / 4;
        while owners.len() < count {
            let mut reader = self.table_entry(self.superblock.id_table, owners.len() as u64, 4)?;
            for _ in 0..EACH.min(count - owners.len()) {
                owners.push(reader.u32()?);
            }
        }
        Ok(owners)
    }

    /// Where a fragment block is: its position and its size as written.
    pub(crate) fn fragment(&self, n: u32, at: u64) -> Result<(u64, u32)> {
        if n >= self.superblock.fragments {
            return damaged(at, format!("fragment {n} of {}", self.superblock.fragments));
        }
        let mut reader = self.table_entry(self.superblock.fragment_table, u64::from(n), 16)?;
        Ok((reader.u64()?, reader.u32()?))
    }

    /// The inode with a number, where the image has a table for that (it is exportable); none where not.
    pub fn by_number(&self, number: u32) -> Result<Option<InodeRef>> {
        let table = self.superblock.export_table;
        if !self.statistics().exportable || table == NONE || number == 0 || number > self.superblock.inodes {
            return Ok(None);
        }
        let raw = self.table_entry(table, u64::from(number - 1), 8)?.u64()?;
        Ok(Some(InodeRef::from_raw(raw)))
    }
}
