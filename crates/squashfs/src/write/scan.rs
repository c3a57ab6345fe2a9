//! Lists a tree into records, numbers its inodes, and finds files with several names.

use std::collections::HashMap;

use super::Options;
use crate::dir::NAME_MAX;
use crate::error::{Error, Result};
use crate::inode::{FileType, NOTHING};
use crate::tree::{Node, Tree};
use crate::xattr::{self, PREFIXES, VALUE_MAX, Xattr};

/// PATH_MAX without its NUL.
const LINK_MAX: usize = 4095;
/// Deeper trees cannot be named: PATH_MAX is 4096. Bounds the walk where a tree has no end.
const DEPTH: u32 = 2048;

/// A file of the tree.
pub(super) struct Record {
    pub name: Box<[u8]>,
    pub parent: u32,
    pub file_type: FileType,
    pub mode: u16,
    /// Indices into the table of owners.
    pub uid: u16,
    pub gid: u16,
    pub mtime: u32,
    pub size: u64,
    pub device: (u32, u32),
    pub target: Box<[u8]>,
    /// Index into the lists of attributes, or `NOTHING`.
    pub xattrs: u32,
    /// The record of the file's first name, which may be this one.
    pub first: u32,
    pub number: u32,
    pub nlink: u32,
    /// A directory's children: they have consecutive records, in the order of their names.
    pub children: std::ops::Range<u32>,
    depth: u32,
}

/// A tree that was listed. The root is record 0.
pub(super) struct Scanned {
    pub records: Vec<Record>,
    /// Directories, each before those in it.
    pub dirs: Vec<u32>,
    pub owners: Vec<u32>,
    pub xattrs: Vec<Vec<Xattr>>,
    pub inodes: u32,
}

impl Scanned {
    pub(super) fn path(&self, record: u32) -> Vec<u8> {
        path(&self.records, record)
    }
}

fn path(records: &[Record], mut record: u32) -> Vec<u8> {
    let mut names = Vec::new();
    while record != 0 {
        names.push(&*records[record as usize].name);
        record = records[record as usize].parent;
    }
    names.reverse();
    names.join(&b'/')
}

struct Scan<'a> {
    options: &'a Options,
    records: Vec<Record>,
    owners: HashMap<u32, u16>,
    owner_list: Vec<u32>,
    lists: HashMap<Vec<Xattr>, u32>,
    links: HashMap<(u64, u64), u32>,
    inodes: u32,
}

pub(super) fn scan(tree: &mut dyn Tree, options: &Options) -> Result<Scanned> {
    let mut scan = Scan {
        options,
        records: Vec::new(),
        owners: HashMap::new(),
        owner_list: Vec::new(),
        lists: HashMap::new(),
        links: HashMap::new(),
        inodes: 0,
    };
    let mut root = tree.root().map_err(source("look at", b"/"))?;
    if root.file_type != FileType::Dir {
        return refused(b"/", "it is not a directory");
    }
    root.link = None;
    scan.add(root, 0, b"")?;
    let mut dirs = Vec::new();
    let mut todo = vec![0];
    while let Some(dir) = todo.pop() {
        let at = path(&scan.records, dir);
        let mut children = tree.children(&at).map_err(source("list", shown(&at)))?;
        children.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(twice) = children.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return refused(&join(&at, &twice[0].name), "the name is there twice");
        }
        let from = scan.records.len() as u32;
        for child in children {
            scan.add(child, dir, &at)?;
        }
        let range = from..scan.records.len() as u32;
        todo.extend(range.clone().rev().filter(|n| scan.records[*n as usize].file_type == FileType::Dir));
        let subdirs = range.clone().filter(|n| scan.records[*n as usize].file_type == FileType::Dir).count();
        let record = &mut scan.records[dir as usize];
        record.children = range;
        record.nlink = subdirs as u32 + 2;
        dirs.push(dir);
    }
    let mut lists: Vec<(Vec<Xattr>, u32)> = scan.lists.into_iter().collect();
    lists.sort_by_key(|(_, index)| *index);
    Ok(Scanned {
        records: scan.records,
        dirs,
        owners: scan.owner_list,
        xattrs: lists.into_iter().map(|(list, _)| list).collect(),
        inodes: scan.inodes,
    })
}

impl Scan<'_> {
    fn add(&mut self, mut node: Node, parent: u32, parent_path: &[u8]) -> Result<()> {
        let index = self.records.len();
        // The highest number is taken for the parent of the root.
        if index >= NOTHING as usize - 1 {
            return refused(parent_path, "the tree has too many files");
        }
        let xattrs = std::mem::take(&mut node.xattrs);
        let here = || join(parent_path, &node.name);
        let depth = if index == 0 { 0 } else { self.records[parent as usize].depth + 1 };
        if index > 0 {
            let name = &*node.name;
            if name.is_empty() || matches!(name, b"." | b"..") || name.iter().any(|b| matches!(b, b'/' | 0)) {
                return refused(&here(), "no file can have this name");
            }
            if name.len() > NAME_MAX {
                return refused(&here(), format!("its name has more than {NAME_MAX} bytes"));
            }
            if depth > DEPTH {
                return refused(&here(), format!("it is deeper than {DEPTH} directories"));
            }
        }
        if node.file_type == FileType::Symlink
            && (node.target.is_empty() || node.target.len() > LINK_MAX || node.target.contains(&0))
        {
            return refused(&here(), "the target of the symbolic link is not a path");
        }
        if node.device.0 > 0xfff || node.device.1 > 0xf_ffff {
            return refused(&here(), "its device number is too large");
        }
        let mut first = index as u32;
        if let Some(key) = node.link.filter(|_| node.file_type != FileType::Dir) {
            first = *self.links.entry(key).or_insert(first);
        }
        let earlier = (first as usize != index).then(|| &mut self.records[first as usize]);
        let (number, file_type) = match earlier {
            Some(earlier) => {
                earlier.nlink += 1;
                (earlier.number, earlier.file_type)
            }
            None => {
                self.inodes += 1;
                (self.inodes, node.file_type)
            }
        };
        if file_type != node.file_type {
            return refused(&here(), "another name of the same file is of another type");
        }
        let (uid, gid) = self.options.owner.unwrap_or((node.uid, node.gid));
        let uid = self.owner(uid, &here)?;
        let gid = self.owner(gid, &here)?;
        let latest = i64::from(self.options.latest.unwrap_or(u32::MAX));
        let xattrs = self.list(xattrs, &here)?;
        self.records.push(Record {
            parent,
            file_type,
            mode: (node.mode & 0o7777) as u16,
            uid,
            gid,
            mtime: node.mtime.clamp(0, latest) as u32,
            size: if file_type == FileType::File { node.size } else { 0 },
            device: node.device,
            target: node.target.into(),
            name: node.name.into(),
            xattrs,
            first,
            number,
            nlink: 1,
            children: 0..0,
            depth,
        });
        Ok(())
    }

    fn owner(&mut self, id: u32, here: &dyn Fn() -> Vec<u8>) -> Result<u16> {
        if let Some(index) = self.owners.get(&id) {
            return Ok(*index);
        }
        let index = self.owner_list.len();
        // The number of owners has 16 bits as well.
        if index >= usize::from(u16::MAX) {
            return refused(&here(), "the tree's files have more than 65535 owners");
        }
        self.owners.insert(id, index as u16);
        self.owner_list.push(id);
        Ok(index as u16)
    }

    fn list(&mut self, mut list: Vec<Xattr>, here: &dyn Fn() -> Vec<u8>) -> Result<u32> {
        if list.is_empty() || !self.options.xattrs {
            return Ok(NOTHING);
        }
        list.sort();
        for (name, value) in &list {
            let known = PREFIXES.iter().any(|prefix| name.starts_with(prefix) && name.len() > prefix.len());
            if !known || name.len() > xattr::NAME_MAX || name.contains(&0) {
                let name = name.escape_ascii();
                return refused(&here(), format!("squashfs has no room for the attribute '{name}'"));
            }
            if value.len() > VALUE_MAX as usize {
                return refused(&here(), format!("its attribute '{}' is too large", name.escape_ascii()));
            }
        }
        if let Some(twice) = list.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return refused(&here(), format!("it has the attribute '{}' twice", twice[0].0.escape_ascii()));
        }
        let next = self.lists.len() as u32;
        Ok(*self.lists.entry(list).or_insert(next))
    }
}

/// How the root is called in messages.
pub(super) fn shown(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"/" } else { path }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, name].join(&b'/') }
}

pub(super) fn refused<T>(path: &[u8], reason: impl Into<String>) -> Result<T> {
    Err(Error::Entry { path: String::from_utf8_lossy(shown(path)).into_owned(), reason: reason.into() })
}

pub(super) fn source(doing: &'static str, path: &[u8]) -> impl FnOnce(std::io::Error) -> Error {
    let path = String::from_utf8_lossy(path).into_owned();
    move |source| Error::Source { doing, path, source }
}
