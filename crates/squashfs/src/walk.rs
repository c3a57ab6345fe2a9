//! All files of an image, for whoever copies or compares it as a whole.

use std::collections::HashSet;

use crate::dir::{Entry, ReadDir};
use crate::error::{Result, damaged};
use crate::image::Image;
use crate::inode::{FileType, Inode, InodeRef};

/// Deeper trees cannot be named: PATH_MAX is 4096.
const DEPTH: usize = 2048;

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
}

impl Image {
    /// Walks through all files. Ends, whatever the image: a directory that is reached twice is damage.
    pub fn walk(&self) -> Walk<'_> {
        Walk { image: self, begun: false, path: Vec::new(), open: Vec::new(), seen: HashSet::new() }
    }
}

impl Walk<'_> {
    fn step(&mut self) -> Result<Option<Walked>> {
        if !self.begun {
            self.begun = true;
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
        if entry.file_type != inode.file_type || entry.number != inode.number {
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
