//! Files by their paths, with the image as `/`.

use crate::error::{Error, Result};
use crate::image::Image;
use crate::inode::{FileType, Inode};

/// As the kernel's own limit (path_resolution(7)).
const LINKS: usize = 40;
/// What links may make of a path. Forty of them, each of 4095 bytes of names, are no honest path.
const NAMES: usize = 4096;

impl Image {
    /// Finds a file by its path; `/` at the beginning and `..` stay inside of the image. Symbolic links are
    /// followed in all components, and in the last one if `follow` says so. None where there is no such file.
    pub fn find(&self, path: &[u8], follow: bool) -> Result<Option<Inode>> {
        let root = self.inode(self.root())?;
        let mut todo: Vec<Vec<u8>> = components(path);
        let mut above: Vec<Inode> = Vec::new();
        let mut here = root.clone();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if here.file_type != FileType::Dir {
                return Ok(None);
            }
            if name == b".." {
                here = above.pop().unwrap_or_else(|| root.clone());
                continue;
            }
            let Some(entry) = self.lookup(&here, &name)? else { return Ok(None) };
            let inode = self.inode(entry.inode)?;
            if inode.file_type != FileType::Symlink || (todo.is_empty() && !follow) {
                above.push(std::mem::replace(&mut here, inode));
                continue;
            }
            links += 1;
            let target = self.read_link(&inode)?;
            todo.extend(components(&target));
            if links > LINKS || todo.len() > NAMES {
                return Err(Error::Loop { path: String::from_utf8_lossy(path).into_owned() });
            }
            if target.starts_with(b"/") {
                above.clear();
                here = root.clone();
            }
        }
        Ok(Some(here))
    }
}

/// The names in a path, last one first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|b| *b == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names.rev().map(<[u8]>::to_vec).collect()
}
