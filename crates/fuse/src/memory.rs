//! A file system in memory, to test with.

use rustix::io::{Errno, Result};

use crate::file_system::{Attributes, DirEntry, FileKind, FileSystem, Statistics};

/// One file: its kind, the bytes of a file or the target of a link, and the names of a folder.
pub struct Node {
    pub kind: FileKind,
    pub data: Vec<u8>,
    pub names: Vec<(Vec<u8>, u64)>,
}

/// Files by number; 0 is the root.
pub struct Memory {
    pub nodes: Vec<Node>,
    pub xattrs: bool,
}

impl Memory {
    /// `/big` (counting bytes), `/etc/hello`, `/link` to it, `/many` with a thousand names, `/null`.
    pub fn example() -> Memory {
        let node = |kind, data: &[u8]| Node { kind, data: data.to_vec(), names: Vec::new() };
        let big: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let mut nodes = vec![
            node(FileKind::Dir, b""),
            node(FileKind::File, &big),
            node(FileKind::Dir, b""),
            node(FileKind::File, b"hello\n"),
            node(FileKind::Symlink, b"etc/hello"),
            node(FileKind::Dir, b""),
            node(FileKind::CharDevice, b""),
        ];
        let names = |list: &[(&str, u64)]| list.iter().map(|(n, f)| (n.as_bytes().to_vec(), *f)).collect();
        nodes[0].names = names(&[("big", 1), ("etc", 2), ("link", 4), ("many", 5), ("null", 6)]);
        nodes[2].names = names(&[("hello", 3), ("same", 3)]);
        nodes[5].names = (0..1000).map(|n| (format!("name-{n:04}").into_bytes(), 3)).collect();
        Memory { nodes, xattrs: true }
    }

    fn node(&self, file: u64) -> Result<&Node> {
        usize::try_from(file).ok().and_then(|at| self.nodes.get(at)).ok_or(Errno::IO)
    }

    fn folder(&self, file: u64) -> Result<&Node> {
        let node = self.node(file)?;
        if node.kind == FileKind::Dir { Ok(node) } else { Err(Errno::NOTDIR) }
    }
}

impl FileSystem for Memory {
    fn root(&self) -> u64 {
        0
    }

    fn attributes(&self, file: u64) -> Result<Attributes> {
        let node = self.node(file)?;
        Ok(Attributes {
            inode: file + 100,
            kind: node.kind,
            mode: if node.kind == FileKind::Dir { 0o755 } else { 0o644 },
            links: 1,
            uid: 0,
            gid: 0,
            size: node.data.len() as u64,
            mtime: 1_000_000_000,
            device: if node.kind == FileKind::CharDevice { (1, 3) } else { (0, 0) },
        })
    }

    fn lookup(&self, folder: u64, name: &[u8]) -> Result<u64> {
        let found = self.folder(folder)?.names.iter().find(|(n, _)| n == name);
        found.map(|(_, file)| *file).ok_or(Errno::NOENT)
    }

    fn read(&self, file: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let data = &self.node(file)?.data;
        let rest = usize::try_from(offset).ok().and_then(|at| data.get(at..)).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn read_link(&self, file: u64) -> Result<Vec<u8>> {
        let node = self.node(file)?;
        if node.kind == FileKind::Symlink { Ok(node.data.clone()) } else { Err(Errno::INVAL) }
    }

    fn read_dir(&self, folder: u64, cursor: u64, take: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        let names = self.folder(folder)?.names.iter().zip(1..);
        for ((name, file), next) in names.skip(usize::try_from(cursor).unwrap_or(usize::MAX)) {
            let kind = self.node(*file)?.kind;
            if !take(&DirEntry { name: name.clone(), file: *file, inode: file + 100, kind, next }) {
                break;
            }
        }
        Ok(())
    }

    fn has_xattrs(&self) -> bool {
        self.xattrs
    }

    fn xattrs(&self, file: u64) -> Result<Vec<Vec<u8>>> {
        self.node(file).map(|_| if file == 3 { vec![b"user.one".to_vec()] } else { Vec::new() })
    }

    fn xattr(&self, file: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.node(file).map(|_| (file == 3 && name == b"user.one").then(|| b"value".to_vec()))
    }

    fn statistics(&self) -> Statistics {
        Statistics { bytes: 3_000_006, files: self.nodes.len() as u64 }
    }
}
