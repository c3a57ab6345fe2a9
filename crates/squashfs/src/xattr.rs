//! Extended attributes: lists that files share, of names with one of three prefixes.

use crate::error::{Result, damaged};
use crate::image::Image;
use crate::inode::{Inode, NOTHING};
use crate::meta::{Place, Reader};
use crate::superblock::NONE;

/// The prefixes, by their numbers.
pub(crate) const PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
/// The value is elsewhere, shared with other lists.
pub(crate) const ELSEWHERE: u16 = 0x100;
/// Linux's XATTR_NAME_MAX.
pub(crate) const NAME_MAX: usize = 255;
/// Linux's XATTR_SIZE_MAX.
pub(crate) const VALUE_MAX: u32 = 64 << 10;
/// Names and values of one file. Linux lists 64 KiB of names at most.
const LIST_MAX: usize = 1 << 20;

/// An extended attribute: its name with the prefix, and its value.
pub type Xattr = (Vec<u8>, Vec<u8>);

impl Image {
    /// The extended attributes of a file, in the order of the image.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>> {
        let table = self.superblock.xattr_table;
        if inode.xattrs == NOTHING || table == NONE {
            return Ok(Vec::new());
        }
        let mut head = [0; 16];
        self.read_raw(&mut head, table)?;
        let half = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let start = u64::from(half(0)) | u64::from(half(4)) << 32;
        let lists = half(8);
        if inode.xattrs >= lists {
            return damaged(inode.at(self), format!("list of attributes {} of {lists}", inode.xattrs));
        }
        if start < self.superblock.directory_table || start >= table {
            return damaged(table, "the attributes are outside of their table");
        }
        let mut entry = self.table_entry(table + 16, u64::from(inode.xattrs), 16)?;
        let (list, count) = (entry.u64()?, entry.u32()?);
        let place =
            |reference: u64| Place { block: start.saturating_add(reference >> 16), offset: reference as u16 };
        let mut r = Reader::new(self, start..table, place(list))?;
        let mut out: Vec<Xattr> = Vec::new();
        let mut bytes = 0;
        for _ in 0..count {
            let (kind, len) = (r.u16()?, usize::from(r.u16()?));
            let Some(prefix) = PREFIXES.get(usize::from(kind & !ELSEWHERE)) else {
                return r.damaged(format!("an attribute of the unknown kind {kind:#x}"));
            };
            if len == 0 || prefix.len() + len > NAME_MAX {
                return r.damaged(format!("an attribute's name of {len} bytes"));
            }
            let mut name = prefix.to_vec();
            name.extend(r.bytes(len)?);
            if name.contains(&0) {
                return r.damaged("an attribute's name contains a NUL byte");
            }
            let size = r.u32()?;
            let value = if kind & ELSEWHERE == 0 {
                value(&mut r, size)?
            } else {
                if size != 8 {
                    return r.damaged(format!("a reference of {size} bytes to an attribute's value"));
                }
                let reference = r.u64()?;
                let mut there = Reader::new(self, start..table, place(reference))?;
                let size = there.u32()?;
                value(&mut there, size)?
            };
            bytes += name.len() + value.len() + 16;
            if bytes > LIST_MAX {
                return r.damaged("a file's attributes are too large");
            }
            out.push((name, value));
        }
        Ok(out)
    }
}

fn value(r: &mut Reader<'_>, size: u32) -> Result<Vec<u8>> {
    if size > VALUE_MAX {
        return r.damaged(format!("an attribute's value of {size} bytes"));
    }
    r.bytes(size as usize)
}
