//! Folders: entries in blocks, one after the other. A folder with an index has the same entries, since the index hides in
//! entries that are none (`directory.rst`), so all are read alike.

use crate::error::{Error, Result, damaged};
use crate::image::Image;
use crate::inode::{FileType, Inode};
use crate::superblock::{u16_at, u32_at};

/// What comes before a name.
const HEAD: usize = 8;

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub inode: u32,
    /// As the entry says, where it does.
    pub file_type: Option<FileType>,
    /// Where the entries behind this one begin; never 0.
    pub next: u64,
}

impl Image {
    /// Hands the entries of a folder but `.` and `..` to `take`, from `cursor` on: 0, or an [`Entry::next`]. Ends when `take`
    /// says `false`.
    pub fn read_dir(&self, folder: &Inode, cursor: u64, take: &mut dyn FnMut(Entry) -> bool) -> Result<()> {
        if folder.file_type != FileType::Dir {
            return Err(Error::Kind { number: folder.number, wanted: "folder" });
        }
        let size = self.superblock().block;
        let (mut number, mut at) = (cursor / size, (cursor % size) as usize);
        while number * size < folder.size {
            // One without content would be a folder of any size for nothing.
            let Some(place) = self.run(folder, number)?.block else {
                return damaged(format!("folder {} has a hole", folder.number));
            };
            let block = self.block(place)?;
            while at + HEAD <= block.len() {
                let odd = || damaged(format!("an entry of folder {} has a wrong length", folder.number));
                let length = match u16_at(&block, at + 4) {
                    // A length that does not fit into the number.
                    0 | u16::MAX if size >= 1 << 16 => block.len() - at,
                    length => length.into(),
                };
                let has_types = self.superblock().has_types;
                let name = if has_types { block[at + 6].into() } else { usize::from(u16_at(&block, at + 6)) };
                if length < HEAD || length % 4 != 0 || at + length > block.len() {
                    return odd();
                }
                let inode = u32_at(&block, at);
                let next = number * size + (at + length) as u64;
                if inode != 0 {
                    let Some(name) =
                        block.get(at + HEAD..at + HEAD + name).filter(|n| HEAD + n.len() <= length)
                    else {
                        return odd();
                    };
                    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                        return damaged(format!(
                            "folder {} has an entry without a proper name",
                            folder.number
                        ));
                    }
                    let file_type = if has_types { FileType::of_entry(block[at + 7]) } else { None };
                    if name != b"."
                        && name != b".."
                        && !take(Entry { name: name.to_vec(), inode, file_type, next })
                    {
                        return Ok(());
                    }
                }
                at += length;
            }
            (number, at) = (number + 1, 0);
        }
        Ok(())
    }

    /// The inode of a name in a folder.
    pub fn lookup(&self, folder: &Inode, name: &[u8]) -> Result<Option<u32>> {
        let mut found = None;
        self.read_dir(folder, 0, &mut |entry| {
            if entry.name == name {
                found = Some(entry.inode);
            }
            found.is_none()
        })?;
        Ok(found)
    }
}
