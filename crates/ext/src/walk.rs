//! All files of an image, for whoever copies it as a whole.

use std::collections::HashSet;

use crate::dir::Entry;
use crate::error::{Result, damaged};
use crate::image::Image;
use crate::inode::{FileType, Inode};

/// Deeper trees cannot be named: PATH_MAX is 4096.
const DEPTH: usize = 2048;

/// A file that a walk came by.
#[derive(Debug, Clone)]
pub struct Walked {
    /// Without a `/` at the beginning; empty for the root.
    pub path: Vec<u8>,
    pub inode: Inode,
}

/// A walk through an image: a folder before what is in it, names in the order of their bytes.
pub struct Walk<'a> {
    image: &'a Image,
    begun: bool,
    path: Vec<u8>,
    /// What is left of the open folders, the next entry last, and how long the path is without their entries' names.
    open: Vec<(Vec<Entry>, usize)>,
    /// A folder has one name, or the tree would be endless.
    seen: HashSet<u32>,
    /// Bytes of folders that may follow: sound ones share no blocks, and with shared ones a small image could have any
    /// number of names.
    listings: u64,
}

impl Image {
    /// Walks through all files. Ends, whatever the image: a folder that is reached twice is damage.
    pub fn walk(&self) -> Walk<'_> {
        let (listings, _) = self.statistics();
        let (path, open, seen) = (Vec::new(), Vec::new(), HashSet::new());
        Walk { image: self, begun: false, path, open, seen, listings }
    }
}

impl Walk<'_> {
    fn step(&mut self) -> Result<Option<Walked>> {
        if !self.begun {
            self.begun = true;
            return self.visit(self.image.inode(self.image.root())?).map(Some);
        }
        while let Some((entries, len)) = self.open.last_mut() {
            self.path.truncate(*len);
            let Some(entry) = entries.pop() else {
                self.open.pop();
                continue;
            };
            let inode = self.image.inode(entry.inode)?;
            if entry.file_type.is_some_and(|said| said != inode.file_type) {
                let name = entry.name.escape_ascii();
                return damaged(format!("'{name}' is not the file that its folder says"));
            }
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&entry.name);
            return self.visit(inode).map(Some);
        }
        Ok(None)
    }

    fn visit(&mut self, inode: Inode) -> Result<Walked> {
        if inode.file_type == FileType::Dir {
            if !self.seen.insert(inode.number) {
                return damaged(format!("folder {} is in more than one place", inode.number));
            }
            let Some(left) = self.listings.checked_sub(inode.size) else {
                return damaged("folders share what is in them");
            };
            self.listings = left;
            if self.open.len() >= DEPTH {
                return damaged(format!("folders are deeper than {DEPTH}"));
            }
            let mut entries = Vec::new();
            self.image.read_dir(&inode, 0, &mut |entry| {
                entries.push(entry);
                true
            })?;
            entries.sort_by(|a, b| b.name.cmp(&a.name));
            if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
                let name = pair[0].name.escape_ascii();
                return damaged(format!("folder {} has '{name}' twice", inode.number));
            }
            self.open.push((entries, self.path.len()));
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
