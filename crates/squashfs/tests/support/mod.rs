//! A folder with something of everything, and what folders and images have, to be compared.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use isles_squashfs::{FileType, Image, Node, Options};
use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, XattrFlags};
use sha2::{Digest, Sha256};

/// What is known about a file. Contents are told apart by their hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub file_type: FileType,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: i64,
    pub device: (u32, u32),
    /// Names of a file that is no directory; which of them are the same is in `first_name`.
    pub nlink: u32,
    pub first_name: String,
    pub size: u64,
    pub content: String,
    pub target: String,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

pub type Tree = BTreeMap<String, Facts>;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a program is there; says that the test is skipped where not.
pub fn has(program: &str) -> bool {
    let found = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"]
        .iter()
        .any(|dir| Path::new(dir).join(program).exists());
    if !found {
        println!("skip: {program} is not installed");
    }
    found
}

pub fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    assert!(
        out.status.success(),
        "{command:?}: {}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Bytes that no compressor makes smaller, the same every time.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Text that compresses as text does.
pub fn text(len: usize, seed: u64) -> Vec<u8> {
    let words = noise(len / 4 + 1, seed);
    words.iter().flat_map(|b| format!("w{b:03x} ").into_bytes()).take(len).collect()
}

/// Makes a folder with everything that the caller may make.
pub fn everything(root: &Path) {
    let write = |name: &str, data: &[u8]| fs::write(root.join(name), data).unwrap();
    let mode = |name: &str, mode| fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
    for dir in ["empty", "sub/deep/deeper/deepest", "many", "names", "a.d"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    const K: usize = 1024;
    for (name, len) in [
        ("empty-file", 0),
        ("one", 1),
        ("page", 4096),
        ("page+1", 4097),
        ("block-1", 128 * K - 1),
        ("block", 128 * K),
        ("block+1", 128 * K + 1),
        ("sub/blocks", 3 * 128 * K + 777),
        ("sub/deep/mib", 1024 * K),
    ] {
        write(name, &text(len, len as u64));
    }
    for (name, len) in [("sub/noise-small", 3000), ("sub/noise", 300 * K), ("sub/noise-blocks", 256 * K)] {
        write(name, &noise(len, len as u64));
    }
    write("zeros", &vec![0; 300 * K]);
    write("zeros-small", &vec![0; 5 * K]);
    for name in ["copy-1", "copy-2", "sub/deep/copy-3"] {
        write(name, &text(140 * K, 99));
    }
    for name in ["small-copy-1", "sub/small-copy-2"] {
        write(name, &text(700, 98));
    }
    let mut sparse = File::create(root.join("sparse")).unwrap();
    for at in [0u64, 2 << 20, (5 << 20) + 100] {
        sparse.seek(SeekFrom::Start(at)).unwrap();
        sparse.write_all(b"an island in a sea of zeros").unwrap();
    }
    sparse.set_len(7 << 20).unwrap();
    for n in 0..400 {
        write(&format!("many/file-with-a-rather-long-name-{n}"), format!("{n}").as_bytes());
    }
    for name in [&b"\xff\xfe not text"[..], b"line\nbreak", b" ", b"-rf", b"\\x41", &[b'n'; 255]] {
        fs::write(root.join("names").join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    fs::hard_link(root.join("one"), root.join("one-again")).unwrap();
    fs::hard_link(root.join("one"), root.join("sub/one-more")).unwrap();
    fs::hard_link(root.join("sub/blocks"), root.join("a.d/blocks")).unwrap();
    symlink("one", root.join("link")).unwrap();
    symlink("/nowhere/at/all", root.join("sub/dangling")).unwrap();
    symlink("x/".repeat(1000), root.join("long-link")).unwrap();
    let special = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from(0o640), device).unwrap();
    };
    special("fifo", rustix::fs::FileType::Fifo, 0);
    special("sub/socket", rustix::fs::FileType::Socket, 0);
    mode("page", 0o4755);
    mode("block", 0o2640);
    mode("empty", 0o1777);
    mode("many/file-with-a-rather-long-name-7", 0o444);
    xattr(root, "one", "user.colour", b"blue");
    xattr(root, "one", "user.empty", b"");
    for name in ["sub", "page", "block", "sub/blocks"] {
        xattr(root, name, "user.shared", &[b's'; 200]);
    }
    if is_root() {
        special("char", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(5, 1));
        special("sub/block-device", rustix::fs::FileType::BlockDevice, rustix::fs::makedev(259, 70000));
        for (name, uid, gid) in [("block-1", 1000, 1001), ("sub/deep", 70000, 0), ("link", 33, 4_000_000_000)]
        {
            std::os::unix::fs::lchown(root.join(name), Some(uid), Some(gid)).unwrap();
        }
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        xattr(root, "sub/noise", "security.capability", &capability);
        xattr(root, "fifo", "trusted.note", b"hidden");
        xattr(root, "empty", "trusted.note", b"hidden");
        mode("block", 0o2640);
    }
    let mut paths: Vec<_> = walk(root);
    paths.push(root.to_path_buf());
    for (n, path) in paths.iter().enumerate() {
        let time = Timespec { tv_sec: 1_000_000_000 + n as i64 * 1001, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn xattr(root: &Path, name: &str, attribute: &str, value: &[u8]) {
    match rustix::fs::lsetxattr(root.join(name), attribute, value, XattrFlags::empty()) {
        Ok(()) => {}
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => {
            println!("skip: no {attribute} on this file system");
        }
        Err(e) => panic!("{name}: {attribute}: {e}"),
    }
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    let mut out = Vec::new();
    for path in entries {
        if path.symlink_metadata().unwrap().is_dir() {
            out.extend(walk(&path));
        }
        out.push(path);
    }
    out
}

fn hash(data: &[u8]) -> String {
    Sha256::digest(data)[..8].iter().map(|b| format!("{b:02x}")).collect()
}

/// What a folder has.
pub fn of_folder(root: &Path) -> Tree {
    let mut out = Tree::new();
    let mut names: BTreeMap<(u64, u64), Vec<String>> = BTreeMap::new();
    let mut paths = walk(root);
    paths.push(root.to_path_buf());
    for path in &paths {
        let meta = path.symlink_metadata().unwrap();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        let raw = rustix::fs::FileType::from_raw_mode(meta.mode());
        let file_type = match raw {
            rustix::fs::FileType::Directory => FileType::Dir,
            rustix::fs::FileType::RegularFile => FileType::File,
            rustix::fs::FileType::Symlink => FileType::Symlink,
            rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
            rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
            rustix::fs::FileType::Fifo => FileType::Fifo,
            _ => FileType::Socket,
        };
        let (mut content, mut target, mut size) = (String::new(), String::new(), 0);
        if file_type == FileType::File {
            content = hash(&fs::read(path).unwrap());
            size = meta.len();
        }
        if file_type == FileType::Symlink {
            target = fs::read_link(path).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        }
        let mut list = vec![0; 4096];
        let n = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or(0);
        let mut xattrs = BTreeMap::new();
        for attribute in list[..n].split(|b| *b == 0).filter(|a| !a.is_empty()) {
            let mut value = vec![0; 65536];
            let n = rustix::fs::lgetxattr(path, attribute, &mut value[..]).unwrap();
            let attribute = String::from_utf8(attribute.to_vec()).unwrap();
            if attribute.starts_with("security.selinux") || attribute.starts_with("system.") {
                continue;
            }
            xattrs.insert(attribute, value[..n].to_vec());
        }
        if file_type != FileType::Dir {
            names.entry((meta.dev(), meta.ino())).or_default().push(name.clone());
        }
        let is_device = matches!(file_type, FileType::CharDevice | FileType::BlockDevice);
        let rdev = if is_device { meta.rdev() } else { 0 };
        let facts = Facts {
            file_type,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            mtime: meta.mtime(),
            device: (rustix::fs::major(rdev), rustix::fs::minor(rdev)),
            nlink: 0,
            first_name: String::new(),
            size,
            content,
            target,
            xattrs,
        };
        out.insert(name, facts);
    }
    name_links(&mut out, names.into_values());
    out
}

/// What an image has, read in pieces of odd sizes and looked up name by name.
pub fn of_image(image: &Image) -> Tree {
    let mut out = Tree::new();
    let mut names: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    let mut nlinks = BTreeMap::new();
    for walked in image.walk() {
        let walked = walked.unwrap();
        let inode = &walked.inode;
        let name = walked.path.escape_ascii().to_string();
        let (mut content, mut target, mut size) = (String::new(), String::new(), 0);
        if inode.file_type == FileType::File {
            content = hash(&read(image, inode, 60_001));
            size = inode.size;
        }
        if inode.file_type == FileType::Symlink {
            target = image.read_link(inode).unwrap().escape_ascii().to_string();
        }
        let xattrs = image.xattrs(inode).unwrap();
        let xattrs = xattrs.into_iter().map(|(k, v)| (String::from_utf8(k).unwrap(), v)).collect();
        if inode.file_type != FileType::Dir {
            names.entry(inode.reference.raw()).or_default().push(name.clone());
            nlinks.insert(name.clone(), inode.nlink);
        }
        let facts = Facts {
            file_type: inode.file_type,
            mode: inode.mode,
            owner: (inode.uid, inode.gid),
            mtime: i64::from(inode.mtime),
            device: inode.device,
            nlink: 0,
            first_name: String::new(),
            size,
            content,
            target,
            xattrs,
        };
        out.insert(name, facts);
        assert_eq!(image.inode(resolve(image, &walked.path)).unwrap(), *inode);
    }
    name_links(&mut out, names.into_values());
    for (name, nlink) in nlinks {
        assert_eq!(out[&name].nlink, nlink, "{name}");
    }
    out
}

/// Reads a whole file, `step` bytes at a time.
pub fn read(image: &Image, inode: &isles_squashfs::Inode, step: usize) -> Vec<u8> {
    let mut out = vec![0; inode.size as usize];
    let mut at = 0;
    while at < out.len() {
        let end = (at + step).min(out.len());
        let n = image.read_at(inode, &mut out[at..end], at as u64).unwrap();
        assert_eq!(n, end - at);
        at = end;
    }
    assert_eq!(image.read_at(inode, &mut [0; 10], inode.size).unwrap(), 0);
    out
}

/// Finds a path name by name.
pub fn resolve(image: &Image, path: &[u8]) -> isles_squashfs::InodeRef {
    let mut at = image.root();
    for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty()) {
        let dir = image.inode(at).unwrap();
        let entry = image.lookup(&dir, name).unwrap();
        at = entry.unwrap_or_else(|| panic!("no {}", path.escape_ascii())).inode;
    }
    at
}

fn name_links(tree: &mut Tree, names: impl Iterator<Item = Vec<String>>) {
    for mut same in names {
        same.sort();
        for name in &same {
            let facts = tree.get_mut(name).unwrap();
            facts.nlink = same.len() as u32;
            facts.first_name = same[0].clone();
        }
    }
}

/// Compares two trees file by file, for messages that can be read.
pub fn assert_same(have: &Tree, want: &Tree, what: &str) {
    for (name, facts) in want {
        assert_eq!(have.get(name), Some(facts), "{what}: '{name}'");
    }
    let more: Vec<_> = have.keys().filter(|name| !want.contains_key(*name)).collect();
    assert!(more.is_empty(), "{what}: {more:?} are too much");
}

pub fn open(path: &Path) -> Image {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    Image::open(file, 0, len).unwrap()
}

/// A tree that exists in memory only, so that anybody can make devices and other people's files.
#[derive(Default)]
pub struct Made {
    /// By path.
    pub nodes: BTreeMap<String, Node>,
    pub contents: BTreeMap<String, Vec<u8>>,
    /// More for the directory `d`, whatever the names.
    pub more: Vec<Node>,
}

impl Made {
    pub fn file(&mut self, path: &str, content: &[u8]) {
        let name = path.rsplit('/').next().unwrap();
        let mut node = Node::new(name, FileType::File, 0o644);
        node.size = content.len() as u64;
        self.nodes.insert(path.into(), node);
        self.contents.insert(path.into(), content.to_vec());
    }

    pub fn child(&mut self, name: &str, file_type: FileType, change: fn(&mut Node)) {
        let mut node = Node::new(name, file_type, 0o644);
        change(&mut node);
        self.more.push(node);
    }

    pub fn bytes(&mut self, options: &Options) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        isles_squashfs::write(self, &mut out, options).unwrap();
        out.into_inner()
    }

    pub fn image(&mut self, options: &Options) -> Image {
        in_file(&self.bytes(options)).unwrap()
    }
}

impl isles_squashfs::Tree for Made {
    fn root(&mut self) -> io::Result<Node> {
        Ok(Node::new("", FileType::Dir, 0o755))
    }

    fn children(&mut self, path: &[u8]) -> io::Result<Vec<Node>> {
        let path = std::str::from_utf8(path).unwrap();
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let here = self.nodes.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix));
        let direct = here.filter(|(name, _)| !name[prefix.len()..].contains('/'));
        let mut out: Vec<_> = direct.map(|(_, node)| node.clone()).collect();
        if path == "d" {
            out.extend(self.more.iter().cloned());
        }
        Ok(out)
    }

    fn open(&mut self, path: &[u8]) -> io::Result<Box<dyn Read + '_>> {
        let path = std::str::from_utf8(path).unwrap();
        Ok(match self.contents.get(path) {
            // What is not there is a hole.
            Some(content) if content.is_empty() => Box::new(io::repeat(0)),
            Some(content) => Box::new(content.as_slice()),
            None => Box::new(io::empty()),
        })
    }
}

/// Opens an image from memory, by way of a file that has no name.
pub fn in_file(bytes: &[u8]) -> isles_squashfs::Result<Image> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Image::open(file, 0, bytes.len() as u64)
}
