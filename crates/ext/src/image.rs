//! An open image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::error::{Error, Result, damaged};
use crate::inode::{FileType, Inode};
use crate::superblock::{self, Superblock, u32_at};

const ROOT: u32 = 2;
/// A link's target, with an end (PATH_MAX).
const LONGEST_TARGET: u64 = 4096;

/// A file system in a file, or in a part of one.
#[derive(Debug)]
pub struct Image {
    file: File,
    /// Where it begins, in bytes.
    offset: u64,
    superblock: Superblock,
}

impl Image {
    /// Opens what lies in `file` from `offset` on, in `size` bytes.
    pub fn open(file: File, offset: u64, size: u64) -> Result<Image> {
        let mut bytes = [0; superblock::LENGTH];
        read(&file, offset.saturating_add(superblock::AT), &mut bytes)?;
        Ok(Image { file, offset, superblock: Superblock::parse(&bytes, size)? })
    }

    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The inode of the folder that all paths begin at.
    pub fn root(&self) -> u32 {
        ROOT
    }

    /// Bytes of all blocks, and the inodes that there is room for.
    pub fn statistics(&self) -> (u64, u32) {
        (self.superblock.blocks * self.superblock.block, self.superblock.inodes)
    }

    /// Whether files may have extended attributes.
    pub fn has_attributes(&self) -> bool {
        self.superblock.has_attributes
    }

    fn read(&self, block: u64, within: u64, buffer: &mut [u8]) -> Result<()> {
        let (size, count) = (self.superblock.block, self.superblock.blocks);
        let blocks = (within + buffer.len() as u64).div_ceil(size);
        if block.checked_add(blocks).is_none_or(|end| end > count) {
            return damaged(format!("block {block} is behind its end"));
        }
        read(&self.file, self.offset + block * size + within, buffer)
    }

    pub(crate) fn block(&self, block: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.superblock.block as usize];
        self.read(block, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// The inode of a number, which may be any.
    pub fn inode(&self, number: u32) -> Result<Inode> {
        let of = &self.superblock;
        if number == 0 || number > of.inodes {
            return damaged(format!("there is no inode {number}"));
        }
        let (group, index) = ((number - 1) / of.inodes_per_group, (number - 1) % of.inodes_per_group);
        if u64::from(group) >= of.groups {
            return damaged(format!("there is no group {group}"));
        }
        let mut descriptor = [0; 64];
        let descriptor = &mut descriptor[..of.descriptor.min(64) as usize];
        let at = u64::from(group) * of.descriptor;
        // Behind the block that the superblock is in.
        let first = superblock::AT / of.block + 1;
        self.read(first + at / of.block, at % of.block, descriptor)?;
        let high = if descriptor.len() == 64 { u64::from(u32_at(descriptor, 40)) } else { 0 };
        let table = u64::from(u32_at(descriptor, 8)) | high << 32;
        let at = u64::from(index) * of.inode;
        let mut bytes = vec![0; of.inode as usize];
        self.read(table.saturating_add(at / of.block), at % of.block, &mut bytes)?;
        Inode::parse(number, &bytes)
    }

    /// Fills the buffer with a file's content from `offset` on; less only at its end.
    pub fn read_at(&self, inode: &Inode, buffer: &mut [u8], offset: u64) -> Result<usize> {
        if inode.file_type != FileType::File {
            return Err(Error::Kind { number: inode.number, wanted: "regular file" });
        }
        self.content(inode, buffer, offset)
    }

    fn content(&self, inode: &Inode, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let left = usize::try_from(inode.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let buffer = &mut buffer[..length];
        let size = self.superblock.block;
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let run = self.run(inode, at / size)?;
            let within = at % size;
            let here = (run.count.saturating_mul(size) - within).min((length - done) as u64) as usize;
            let piece = &mut buffer[done..done + here];
            match run.block {
                Some(block) => self.read(block, within, piece)?,
                None => piece.fill(0),
            }
            done += here;
        }
        Ok(length)
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.file_type != FileType::Symlink {
            return Err(Error::Kind { number: inode.number, wanted: "symbolic link" });
        }
        if let Some(target) = inode.short_target() {
            return Ok(target.to_vec());
        }
        if inode.size >= LONGEST_TARGET {
            return damaged(format!("the link of inode {} has {} bytes", inode.number, inode.size));
        }
        let mut target = vec![0; inode.size as usize];
        self.content(inode, &mut target, 0)?;
        Ok(target)
    }
}

fn read(file: &File, at: u64, buffer: &mut [u8]) -> Result<()> {
    file.read_exact_at(buffer, at).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => Error::Damaged { what: format!("it ends before byte {at}") },
        _ => Error::Read { at, source },
    })
}
