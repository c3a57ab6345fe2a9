//! A file system in a file as a tar archive, the form in which layers come.

use std::collections::HashMap;
use std::io::{self, Write};

use isles_squashfs::FileType;

use super::file_tree::{FileTree, Leaf};
use crate::tar::{Entry, Kind, Writer, display};
use crate::xattr;

const BUFFER: usize = 256 << 10;

/// What an image stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A whole root file system: nothing in it hides anything.
    Root,
    /// One layer over others, with the markers of an overlay.
    Layer,
}

/// Writes the files of an image as an archive: the same image gives the same bytes. They may have `limit` bytes, since a
/// small image can claim files of any size.
pub(super) fn write<W: Write>(image: &FileTree, meaning: Meaning, limit: u64, out: W) -> io::Result<W> {
    let mut total = 0u64;
    let mut writer = Writer::new(out);
    let mut first: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut buffer = vec![0; BUFFER];
    for walked in image.walk() {
        let (walked, inode) = walked?;
        let inode = &inode;
        let mut xattrs = image.xattrs(inode)?;
        let is_opaque = xattrs.iter().any(|(name, value)| {
            matches!(name.as_slice(), b"trusted.overlay.opaque" | b"user.overlay.opaque") && value == b"y"
        });
        xattrs.retain(|(name, _)| xattr::exported(name));
        if walked.is_empty() {
            // The root has an entry only where it is not what a root is anyway.
            let is_plain = inode.mode == 0o755 && (inode.uid, inode.gid) == (0, 0) && xattrs.is_empty();
            if !is_plain {
                writer.begin(&entry(b"./".to_vec(), Kind::Dir, inode, xattrs))?;
            }
            continue;
        }
        let (parent, name) = match walked.iter().rposition(|b| *b == b'/') {
            Some(at) => walked.split_at(at + 1),
            None => (&[][..], walked.as_slice()),
        };
        let kind = match inode.file_type {
            FileType::Dir => Kind::Dir,
            FileType::File => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::CharDevice if inode.device == (0, 0) => {
                if meaning == Meaning::Layer {
                    writer.begin(&Entry { path: [parent, b".wh.", name].concat(), ..Entry::default() })?;
                }
                continue;
            }
            FileType::CharDevice => Kind::CharDevice,
            FileType::Fifo => Kind::Fifo,
            // Sockets belong to processes; archives cannot hold them.
            FileType::Socket => continue,
        };
        if meaning == Meaning::Root && name.starts_with(b".wh.") {
            let path = display(&walked);
            return Err(io::Error::other(format!("'{path}' would hide a file as soon as it is in a layer")));
        }
        let mut path = walked.clone();
        if kind == Kind::Dir {
            path.push(b'/');
        }
        let mut entry = entry(path, kind, inode, xattrs);
        if kind == Kind::Symlink {
            entry.link = image.read_link(inode)?;
        } else if kind != Kind::Dir && inode.links > 1 {
            match first.get(&inode.number) {
                Some(other) => {
                    (entry.kind, entry.link, entry.size) = (Kind::Hardlink, other.clone(), 0);
                    entry.xattrs.clear();
                }
                None => drop(first.insert(inode.number, walked.clone())),
            }
        }
        total = total.saturating_add(entry.size);
        if total > limit {
            return Err(io::Error::other(format!(
                "its files have more than {limit} bytes, for what the image has"
            )));
        }
        writer.begin(&entry)?;
        if entry.kind == Kind::File {
            let mut at = 0;
            while at < inode.size {
                let n = image.read_at(inode, &mut buffer, at)?;
                if n == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                writer.data(&buffer[..n])?;
                at += n as u64;
            }
        }
        if kind == Kind::Dir && meaning == Meaning::Layer && is_opaque {
            let path = [walked.as_slice(), b"/.wh..wh..opq"].concat();
            writer.begin(&Entry { path, ..Entry::default() })?;
        }
    }
    writer.finish()
}

fn entry(path: Vec<u8>, kind: Kind, inode: &Leaf, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Entry {
    Entry {
        path,
        kind,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        mtime: (inode.mtime, 0),
        size: if kind == Kind::File { inode.size } else { 0 },
        device: inode.device,
        xattrs,
        ..Entry::default()
    }
}
