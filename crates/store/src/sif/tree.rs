//! An image's root file system with some files put over it, as the writer of squashfs images wants it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use isles_squashfs::{FileType, Node, Tree};

use crate::Merged;
use crate::merged::{FileKind, Stat};

/// Something that is put over an image; all of it belongs to root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// A folder, where nothing is yet.
    Folder { mode: u32 },
    /// A file, in place of whatever is there.
    File { mode: u32, content: Vec<u8> },
    /// A symbolic link, where nothing is yet.
    Link { target: String },
}

/// Clean relative paths.
type AddedFiles = BTreeMap<Vec<u8>, Added>;

pub(super) struct Overlaid<'a> {
    merged: &'a Merged,
    added: AddedFiles,
    /// When what is added was changed, seconds since 1970.
    time: i64,
}

impl<'a> Overlaid<'a> {
    /// `added` has absolute paths. What cannot be put there without going through a link or a file of the image, and
    /// folders and links where something is, are left out; files below such a thing take its place.
    pub fn new(merged: &'a Merged, added: &[(String, Added)], time: i64) -> Overlaid<'a> {
        let mut overlaid = Overlaid { merged, added: AddedFiles::new(), time };
        for (path, what) in added {
            let path = path.trim_matches('/').as_bytes();
            let is_forced = matches!(what, Added::File { .. });
            let parents: Vec<&[u8]> =
                path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at]).collect();
            let is_blocked = |at: &&[u8]| {
                let here = overlaid.added.get(*at);
                let is_folder = match here {
                    Some(added) => matches!(added, Added::Folder { .. }),
                    None => overlaid.below(at).is_none_or(|stat| stat.kind == FileKind::Dir),
                };
                !is_folder
            };
            let exists = overlaid.below(path).is_some() || overlaid.added.contains_key(path);
            if !is_forced && (exists || parents.iter().any(is_blocked)) {
                continue;
            }
            for parent in parents {
                if overlaid.below(parent).is_none_or(|stat| stat.kind != FileKind::Dir) {
                    overlaid.added.entry(parent.to_vec()).or_insert(Added::Folder { mode: 0o755 });
                }
            }
            overlaid.added.insert(path.to_vec(), what.clone());
        }
        overlaid
    }

    /// What the image itself has at a path that leads through real folders only.
    fn below(&self, path: &[u8]) -> Option<Stat> {
        let whole = Path::new(OsStr::from_bytes(path));
        let real = |at: &Path| self.merged.lstat(at).ok();
        for parent in whole.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
            if real(parent)?.kind != FileKind::Dir {
                return None;
            }
        }
        real(whole)
    }

    fn node_of(&self, name: &[u8], path: &[u8], stat: &Stat) -> io::Result<Node> {
        let at = Path::new(OsStr::from_bytes(path));
        let file_type = match stat.kind {
            FileKind::Dir => FileType::Dir,
            FileKind::File => FileType::File,
            FileKind::Symlink => FileType::Symlink,
            FileKind::CharDevice => FileType::CharDevice,
            FileKind::BlockDevice => FileType::BlockDevice,
            FileKind::Fifo => FileType::Fifo,
            FileKind::Socket => FileType::Socket,
        };
        let mut node = Node::new(name, file_type, stat.mode);
        (node.uid, node.gid, node.mtime) = (stat.uid, stat.gid, stat.mtime.0);
        match file_type {
            FileType::File => node.size = stat.size,
            FileType::Symlink => {
                node.target = self.merged.readlink(at).map_err(io::Error::other)?.as_bytes().to_vec();
            }
            FileType::CharDevice | FileType::BlockDevice => node.device = stat.device,
            _ => {}
        }
        if file_type != FileType::Dir && stat.links > 1 {
            node.link = Some(stat.inode);
        }
        let xattrs = self.merged.xattrs(at).map_err(io::Error::other)?;
        node.xattrs = xattrs.into_iter().map(|(name, value)| (name.as_bytes().to_vec(), value)).collect();
        // Of what else there is (access control lists) such an image cannot say anything.
        node.xattrs.retain(|(name, _)| [&b"user."[..], b"security."].iter().any(|p| name.starts_with(p)));
        Ok(node)
    }

    fn node_of_added(&self, name: &[u8], added: &Added) -> Node {
        let (file_type, mode) = match added {
            Added::Folder { mode } => (FileType::Dir, *mode),
            Added::File { mode, .. } => (FileType::File, *mode),
            Added::Link { .. } => (FileType::Symlink, 0o777),
        };
        let mut node = Node::new(name, file_type, mode);
        node.mtime = self.time;
        match added {
            Added::File { content, .. } => node.size = content.len() as u64,
            Added::Link { target } => node.target = target.as_bytes().to_vec(),
            Added::Folder { .. } => {}
        }
        node
    }
}

impl Tree for Overlaid<'_> {
    fn root(&mut self) -> io::Result<Node> {
        let stat = self.merged.lstat(Path::new("/")).map_err(io::Error::other)?;
        let mut node = self.node_of(b"", b"", &stat)?;
        // Layers without an entry for it have the time at which they were unpacked here.
        node.mtime = self.time;
        Ok(node)
    }

    fn children(&mut self, path: &[u8]) -> io::Result<Vec<Node>> {
        let join = |name: &[u8]| if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
        let mut names: BTreeMap<Vec<u8>, Option<Added>> = BTreeMap::new();
        if path.is_empty() || self.below(path).is_some_and(|stat| stat.kind == FileKind::Dir) {
            let at = Path::new(OsStr::from_bytes(path));
            for entry in self.merged.read_dir(at).map_err(io::Error::other)? {
                names.insert(entry.name.as_bytes().to_vec(), None);
            }
        }
        let start = join(b"");
        for (added, what) in self.added.range(start.clone()..) {
            let Some(rest) = added.strip_prefix(start.as_slice()) else { break };
            if !rest.is_empty() && !rest.contains(&b'/') {
                names.insert(rest.to_vec(), Some(what.clone()));
            }
        }
        let mut nodes = Vec::with_capacity(names.len());
        for (name, added) in names {
            let child = join(&name);
            nodes.push(match added {
                Some(added) => self.node_of_added(&name, &added),
                None => {
                    let stat =
                        self.merged.lstat(Path::new(OsStr::from_bytes(&child))).map_err(io::Error::other)?;
                    self.node_of(&name, &child, &stat)?
                }
            });
        }
        Ok(nodes)
    }

    fn open(&mut self, path: &[u8]) -> io::Result<Box<dyn Read + '_>> {
        match self.added.get(path) {
            Some(Added::File { content, .. }) => Ok(Box::new(content.as_slice())),
            _ => {
                let file = self.merged.open_file(Path::new(OsStr::from_bytes(path)));
                Ok(Box::new(file.map_err(io::Error::other)?))
            }
        }
    }
}

/// For what an image says of itself: links are not followed.
impl isles_sif::Root for Overlaid<'_> {
    fn text(&self, path: &str) -> Option<String> {
        let path = path.trim_matches('/').as_bytes();
        if let Some(added) = self.added.get(path) {
            let Added::File { content, .. } = added else { return None };
            return String::from_utf8(content.clone()).ok();
        }
        self.below(path).filter(|stat| stat.kind == FileKind::File)?;
        let file = self.merged.open_file(Path::new(OsStr::from_bytes(path))).ok()?;
        String::from_utf8(crate::read_bounded(file, TEXT_LIMIT).ok()??).ok()
    }

    fn names(&self, path: &str) -> Vec<String> {
        let path = path.trim_matches('/');
        let mut names = std::collections::BTreeSet::new();
        if self.below(path.as_bytes()).is_some_and(|stat| stat.kind == FileKind::Dir) {
            let entries = self.merged.read_dir(Path::new(path)).unwrap_or_default();
            names.extend(entries.into_iter().filter_map(|entry| entry.name.into_string().ok()));
        }
        let start = format!("{path}/").into_bytes();
        let added =
            self.added.range(start.clone()..).map_while(|(added, _)| added.strip_prefix(start.as_slice()));
        let first =
            added.filter_map(|rest| std::str::from_utf8(rest).ok()?.split('/').next().map(str::to_owned));
        names.extend(first);
        names.into_iter().collect()
    }
}

/// Scripts and labels of more bytes than this are not looked at.
pub(super) const TEXT_LIMIT: u64 = 4 << 20;
