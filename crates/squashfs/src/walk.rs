//! All files of an image, for whoever copies or compares it as a whole.

use std::collections::HashSet;

use crate::dir::{Entry, ReadDir};
use crate::error::{Result, damaged};
use crate::image::Image;
use crate::inode::{FileType, Inode, InodeRef};
use crate::meta;

/// Deeper trees cannot be named: PATH_MAX is 4096.
const DEPTH: usize = 2048;
/// Bytes of the image that are looked at together.
const WINDOW: usize = 64 << 10;

/// A file that a walk came by.
#[derive(Debug, Clone)]
pub struct Walked {
    /// Without a `/` at the beginning; empty for the root.
    pub path: Vec<u8>,
    pub inode: Inode,
}

/// A walk through an image: a directory before what is in it, names in the order of their bytes.
pub struct Walk<'a> {
    image: &'a Image,
    begun: bool,
    path: Vec<u8>,
    /// The open directories, and how long the path is without their entries' names.
    open: Vec<(ReadDir<'a>, usize)>,
    /// A directory has one name, or the tree would be endless.
    seen: HashSet<InodeRef>,
    /// Bytes of listings that may follow. Sound directories share none of them; with shared ones a small
    /// image could have any number of names.
    listings: u64,
}

impl Image {
    /// Walks through all files. Ends, whatever the image: a directory that is reached twice is damage.
    pub fn walk(&self) -> Walk<'_> {
        Walk {
            image: self,
            begun: false,
            path: Vec::new(),
            open: Vec::new(),
            seen: HashSet::new(),
            listings: 0,
        }
    }

    /// Bytes of all directories together, at most: told by the headers of their blocks.
    fn directory_bytes(&self) -> Result<u64> {
        let region = self.superblock.directory_region();
        let mut blocks = 0;
        let mut window = vec![0; WINDOW];
        let mut at = region.start;
        while region.end.saturating_sub(at) >= 2 {
            window.truncate((region.end - at).min(WINDOW as u64) as usize);
            self.read_raw(&mut window, at)?;
            let mut offset = 0;
            while let Some(header) = window.get(offset..offset + 2) {
                let size = u16::from_le_bytes([header[0], header[1]]) & !meta::RAW;
                if size == 0 {
                    return damaged(at + offset as u64, "a metadata block of 0 bytes");
                }
                blocks += 1;
                offset += 2 + usize::from(size);
            }
            at += offset as u64;
        }
        Ok(blocks * meta::BLOCK as u64)
    }
}

impl Walk<'_> {
    fn step(&mut self) -> Result<Option<Walked>> {
        if !self.begun {
            self.begun = true;
            self.listings = self.image.directory_bytes()?;
            let inode = self.image.inode(self.image.root())?;
            return self.visit(inode).map(Some);
        }
        while let Some((list, len)) = self.open.last_mut() {
            self.path.truncate(*len);
            let Some(entry) = list.next().transpose()? else {
                self.open.pop();
                continue;
            };
            let inode = self.image.inode(entry.inode)?;
            self.check(&entry, &inode)?;
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&entry.name);
            return self.visit(inode).map(Some);
        }
        Ok(None)
    }

    fn check(&self, entry: &Entry, inode: &Inode) -> Result<()> {
        if entry.file_type != inode.file_type {
            let name = entry.name.escape_ascii();
            return damaged(
                inode.at(self.image),
                format!("'{name}' is not the file that its directory says"),
            );
        }
        Ok(())
    }

    fn visit(&mut self, inode: Inode) -> Result<Walked> {
        if inode.file_type == FileType::Dir {
            if !self.seen.insert(inode.reference) {
                return damaged(inode.at(self.image), "a directory is in more than one place");
            }
            let Some(left) = self.listings.checked_sub(inode.size) else {
                return damaged(inode.at(self.image), "directories share what is in them");
            };
            self.listings = left;
            if self.open.len() >= DEPTH {
                return damaged(inode.at(self.image), format!("directories are deeper than {DEPTH}"));
            }
            self.open.push((self.image.read_dir(&inode, 0)?, self.path.len()));
        }
        Ok(Walked { path: self.path.clone(), inode })
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Walked>;

    fn next(&mut self) -> Option<Result<Walked>> {
        let step = self.step();
        if step.is_err() {
            self.open.clear();
        }
        step.transpose()
    }
}
