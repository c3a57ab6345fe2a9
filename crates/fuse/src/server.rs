//! One answer for each request.

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::{Errno, Result};

use crate::file_system::{DirEntry, FileKind, FileSystem};
use crate::message::{
    FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, LEAST_MINOR, MAJOR, MINOR, MOST, ROOT, Request, feature, opcode,
};
use crate::reply::{Reply, dirent_size};

const PAGE: usize = 4096;
/// The longest name that a path may have (`NAME_MAX`).
const NAME: usize = 255;

/// Bytes that the kernel reads before they are asked for. A fault in a mapped file reads as many around it, and more
/// than this mostly means blocks that nobody needs; who reads on gets the rest of a block from a cache.
const READ_AHEAD: u32 = 32 << 10;

/// What is asked of the kernel, as far as it knows it.
const WANTED: u32 = feature::ASYNC_READ
    | feature::DO_READDIRPLUS
    | feature::READDIRPLUS_AUTO
    | feature::NO_OPEN_SUPPORT
    | feature::PARALLEL_DIROPS
    | feature::MAX_PAGES
    | feature::CACHE_SYMLINKS
    | feature::NO_OPENDIR_SUPPORT;

/// A file system and what was agreed on with the kernel about it. Shared by all threads that serve.
#[derive(Debug)]
pub struct Server<F> {
    file_system: F,
    /// Features of INIT that both sides know.
    agreed: AtomicU32,
}

impl<F: FileSystem> Server<F> {
    pub fn new(file_system: F) -> Self {
        Server { file_system, agreed: AtomicU32::new(0) }
    }

    pub fn file_system(&self) -> &F {
        &self.file_system
    }

    /// The bytes to send back for a message; `None` where there is no answer.
    pub(crate) fn answer<'a>(&self, message: &[u8], reply: &'a mut Reply) -> Option<&'a [u8]> {
        let request = Request::parse(message)?;
        if matches!(request.opcode, opcode::FORGET | opcode::BATCH_FORGET) {
            return None;
        }
        reply.begin();
        let outcome = self.respond(&request, reply);
        Some(reply.finish(request.unique, outcome))
    }

    fn respond(&self, request: &Request<'_>, reply: &mut Reply) -> Result<()> {
        let body = request.body;
        let file = || self.file(request.node);
        match request.opcode {
            opcode::INIT => self.init(request, reply),
            opcode::LOOKUP => self.lookup(file()?, body.name(0).ok_or(Errno::INVAL)?, reply),
            opcode::GETATTR => {
                reply.attributes_for_ever(&self.file_system.attributes(file()?)?);
                Ok(())
            }
            opcode::READLINK => {
                let target = self.file_system.read_link(file()?)?;
                // The kernel has a page for it.
                if target.len() >= PAGE {
                    return Err(Errno::NAMETOOLONG);
                }
                reply.put(&target);
                Ok(())
            }
            opcode::OPEN => self.open(feature::NO_OPEN_SUPPORT, FOPEN_KEEP_CACHE, reply),
            opcode::OPENDIR => {
                self.open(feature::NO_OPENDIR_SUPPORT, FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR, reply)
            }
            opcode::READ => {
                let (offset, size) = piece(request)?;
                let size = size.min(MOST);
                let filled = self.file_system.read(file()?, offset, reply.room(size))?;
                reply.take(filled.min(size));
                Ok(())
            }
            opcode::READDIR => self.read_dir(request, false, reply),
            opcode::READDIRPLUS => self.read_dir(request, true, reply),
            opcode::RELEASE | opcode::RELEASEDIR | opcode::DESTROY | opcode::ACCESS => Ok(()),
            opcode::STATFS => {
                let statistics = self.file_system.statistics();
                reply.statistics(statistics.bytes, statistics.files);
                Ok(())
            }
            opcode::GETXATTR | opcode::LISTXATTR if !self.file_system.has_xattrs() => Err(Errno::NOSYS),
            opcode::GETXATTR => {
                let name = body.name(8).ok_or(Errno::INVAL)?;
                let value = self.file_system.xattr(file()?, name)?.ok_or(Errno::NODATA)?;
                sized(&value, body.u32(0), reply)
            }
            opcode::LISTXATTR => {
                let mut list = Vec::new();
                for name in self.file_system.xattrs(file()?)? {
                    list.extend_from_slice(&name);
                    list.push(0);
                }
                sized(&list, body.u32(0), reply)
            }
            opcode::SETATTR
            | opcode::SYMLINK
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::RENAME
            | opcode::RENAME2
            | opcode::LINK
            | opcode::WRITE
            | opcode::SETXATTR
            | opcode::REMOVEXATTR
            | opcode::CREATE
            | opcode::FALLOCATE
            | opcode::COPY_FILE_RANGE
            | opcode::TMPFILE => Err(Errno::ROFS),
            // Of most others, INTERRUPT among them, the kernel does not ask again.
            _ => Err(Errno::NOSYS),
        }
    }

    /// `struct fuse_init_in` to `struct fuse_init_out`.
    fn init(&self, request: &Request<'_>, reply: &mut Reply) -> Result<()> {
        let body = request.body;
        let (major, minor) = (body.u32(0).ok_or(Errno::INVAL)?, body.u32(4).ok_or(Errno::INVAL)?);
        if major > MAJOR {
            // The kernel asks again with the version that it reads here.
            reply.u32(MAJOR);
            reply.put(&[0; 60]);
            return Ok(());
        }
        if major < MAJOR || minor < LEAST_MINOR {
            return Err(Errno::PROTO);
        }
        let read_ahead = body.u32(8).ok_or(Errno::INVAL)?;
        let agreed = body.u32(12).ok_or(Errno::INVAL)? & WANTED;
        self.agreed.store(agreed, Ordering::Release);
        reply.u32(MAJOR);
        reply.u32(minor.min(MINOR));
        reply.u32(read_ahead.min(READ_AHEAD));
        reply.u32(agreed);
        // Requests in the background, and from how many on the kernel takes it easier.
        reply.u16(64);
        reply.u16(48);
        // Nothing is written.
        reply.u32(PAGE as u32);
        // Times to the nanosecond.
        reply.u32(1);
        reply.u16((MOST / PAGE) as u16);
        reply.put(&[0; 34]);
        Ok(())
    }

    /// The file of a node. Node 0 does not exist and 1 is the root, so the others are moved up by two.
    fn file(&self, node: u64) -> Result<u64> {
        match node {
            0 => Err(Errno::STALE),
            ROOT => Ok(self.file_system.root()),
            other => Ok(other - 2),
        }
    }

    fn node(&self, file: u64) -> Result<u64> {
        if file == self.file_system.root() { Ok(ROOT) } else { file.checked_add(2).ok_or(Errno::IO) }
    }

    fn lookup(&self, folder: u64, name: &[u8], reply: &mut Reply) -> Result<()> {
        if name.len() > NAME {
            return Err(Errno::NAMETOOLONG);
        }
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        match self.file_system.lookup(folder, name) {
            Ok(file) => {
                let attributes = self.file_system.attributes(file)?;
                reply.entry(Some((self.node(file)?, &attributes)));
                Ok(())
            }
            Err(Errno::NOENT) => {
                reply.entry(None);
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// "Not implemented" means that nothing has to be opened at all, to a kernel that knows it.
    fn open(&self, feature: u32, flags: u32, reply: &mut Reply) -> Result<()> {
        if self.agreed.load(Ordering::Acquire) & feature != 0 {
            return Err(Errno::NOSYS);
        }
        reply.u64(0);
        reply.u32(flags);
        reply.u32(0);
        Ok(())
    }

    /// The first two offsets are those behind `.` and `..`, the others cursors of the file system, moved up by two.
    fn read_dir(&self, request: &Request<'_>, plus: bool, reply: &mut Reply) -> Result<()> {
        let folder = self.file(request.node)?;
        let (offset, size) = piece(request)?;
        let size = size.min(MOST);
        let own = self.file_system.attributes(folder)?;
        if own.kind != FileKind::Dir {
            return Err(Errno::NOTDIR);
        }
        for (name, next) in [(&b"."[..], 1), (b"..", 2)] {
            if offset < next {
                if reply.len() + dirent_size(name, plus) > size {
                    return Ok(());
                }
                // The kernel has these two.
                if plus {
                    reply.entry(None);
                }
                reply.dirent(own.inode, next, FileKind::Dir, name);
            }
        }
        let mut odd = false;
        self.file_system.read_dir(folder, offset.saturating_sub(2), &mut |entry: &DirEntry| {
            odd = entry.name.len() > NAME || entry.next.checked_add(2).is_none();
            if odd || reply.len() + dirent_size(&entry.name, plus) > size {
                return false;
            }
            if plus {
                // A file that cannot be looked at is found out when it is looked for.
                let attributes = self.file_system.attributes(entry.file).ok();
                reply.entry(self.node(entry.file).ok().zip(attributes.as_ref()));
            }
            reply.dirent(entry.inode, entry.next + 2, entry.kind, &entry.name);
            true
        })?;
        if odd { Err(Errno::IO) } else { Ok(()) }
    }
}

/// Offset and size of `struct fuse_read_in`.
fn piece(request: &Request<'_>) -> Result<(u64, usize)> {
    let offset = request.body.u64(8).ok_or(Errno::INVAL)?;
    let size = request.body.u32(16).ok_or(Errno::INVAL)?;
    Ok((offset, usize::try_from(size).unwrap_or(MOST)))
}

/// An answer for a buffer of the given size; with none the question is how large it would have to be.
fn sized(value: &[u8], room: Option<u32>, reply: &mut Reply) -> Result<()> {
    let room = usize::try_from(room.ok_or(Errno::INVAL)?).unwrap_or(usize::MAX);
    if value.len() > MOST {
        return Err(Errno::TOOBIG);
    }
    if room == 0 {
        reply.u32(value.len() as u32);
        reply.u32(0);
    } else if room < value.len() {
        return Err(Errno::RANGE);
    } else {
        reply.put(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend((40 + body.len() as u32).to_ne_bytes());
        out.extend(opcode.to_ne_bytes());
        out.extend(7u64.to_ne_bytes());
        out.extend(node.to_ne_bytes());
        out.extend([0; 16]);
        out.extend(body);
        out
    }

    fn words(list: &[u32]) -> Vec<u8> {
        list.iter().flat_map(|n| n.to_ne_bytes()).collect()
    }

    /// Offset and size as READ and READDIR have them.
    fn piece(offset: u64, size: u32) -> Vec<u8> {
        [&[0; 8][..], &offset.to_ne_bytes(), &size.to_ne_bytes(), &[0; 20]].concat()
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The body of an answer, or its error.
    fn ask(server: &Server<Memory>, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>> {
        let mut reply = Reply::default();
        let answer = server.answer(&message(opcode, node, body), &mut reply).unwrap();
        assert_eq!(u32_at(answer, 0) as usize, answer.len());
        assert_eq!(u64_at(answer, 8), 7);
        match u32_at(answer, 4).cast_signed() {
            0 => Ok(answer[16..].to_vec()),
            error => Err(Errno::from_raw_os_error(-error)),
        }
    }

    fn server() -> Server<Memory> {
        Server::new(Memory::example())
    }

    fn node_of(server: &Server<Memory>, folder: u64, name: &str) -> u64 {
        let body = [name.as_bytes(), &[0]].concat();
        u64_at(&ask(server, opcode::LOOKUP, folder, &body).unwrap(), 0)
    }

    #[test]
    fn versions_and_features_are_agreed_on() {
        let server = server();
        let all = u32::MAX;
        let out = ask(&server, opcode::INIT, 0, &words(&[7, 45, 131_072, all, 0])).unwrap();
        assert_eq!(out.len(), 64);
        assert_eq!((u32_at(&out, 0), u32_at(&out, 4), u32_at(&out, 8)), (7, MINOR, READ_AHEAD));
        assert_eq!(u32_at(&out, 12), WANTED);
        let out = ask(&server, opcode::INIT, 0, &words(&[7, 31, 4096, 0])).unwrap();
        assert_eq!((u32_at(&out, 4), u32_at(&out, 12)), (31, 0));
        assert_eq!(ask(&server, opcode::INIT, 0, &words(&[7, 30, 0, 0])), Err(Errno::PROTO));
        assert_eq!(ask(&server, opcode::INIT, 0, &words(&[6, 40, 0, 0])), Err(Errno::PROTO));
        assert_eq!(u32_at(&ask(&server, opcode::INIT, 0, &words(&[8, 0])).unwrap(), 0), 7);
        for short in 0..4 {
            assert_eq!(ask(&server, opcode::INIT, 0, &words(&[7, 31, 0, 0][..short])), Err(Errno::INVAL));
        }
    }

    #[test]
    fn files_are_found_and_read() {
        let server = server();
        let etc = node_of(&server, ROOT, "etc");
        let hello = node_of(&server, etc, "hello");
        assert_eq!(hello, node_of(&server, etc, "same"), "one file has one number");
        assert_eq!(node_of(&server, ROOT, "nothing"), 0, "the kernel may keep in mind what is not there");
        let attributes = ask(&server, opcode::GETATTR, hello, &[0; 16]).unwrap();
        assert_eq!((u64_at(&attributes, 16), u64_at(&attributes, 24)), (103, 6));
        assert_eq!(u32_at(&attributes, 16 + 60), 0o100_644);
        assert_eq!(ask(&server, opcode::READ, hello, &piece(1, 100)).unwrap(), b"ello\n");
        assert_eq!(ask(&server, opcode::READ, hello, &piece(6, 100)).unwrap(), b"");
        assert_eq!(ask(&server, opcode::READ, hello, &piece(u64::MAX, 100)).unwrap(), b"");
        let big = node_of(&server, ROOT, "big");
        assert_eq!(ask(&server, opcode::READ, big, &piece(0, u32::MAX)).unwrap().len(), MOST);
        let link = node_of(&server, ROOT, "link");
        assert_eq!(ask(&server, opcode::READLINK, link, &[]).unwrap(), b"etc/hello");
        let null = ask(&server, opcode::GETATTR, node_of(&server, ROOT, "null"), &[0; 16]).unwrap();
        assert_eq!(u32_at(&null, 16 + 76), 0x103);
        assert_eq!(u64_at(&ask(&server, opcode::STATFS, ROOT, &[]).unwrap(), 24), 7);
    }

    #[test]
    fn folders_are_read_in_pieces() {
        let server = server();
        let many = node_of(&server, ROOT, "many");
        for plus in [false, true] {
            let (opcode, before) = if plus { (opcode::READDIRPLUS, 128) } else { (opcode::READDIR, 0) };
            let (mut names, mut offset) = (Vec::new(), 0);
            loop {
                let bytes = ask(&server, opcode, many, &piece(offset, 4096)).unwrap();
                let mut at = 0;
                while at < bytes.len() {
                    let entry = &bytes[at + before..];
                    let length = u32_at(entry, 16) as usize;
                    names.push(String::from_utf8(entry[24..24 + length].to_vec()).unwrap());
                    offset = u64_at(entry, 8);
                    if plus {
                        assert_eq!(u64_at(&bytes[at..], 0) != 0, names.len() > 2, "the kernel has . and ..");
                    }
                    at += dirent_size(&entry[24..24 + length], plus);
                }
                if bytes.is_empty() {
                    break;
                }
            }
            assert_eq!((names.len(), names[0].as_str(), names[1].as_str()), (1002, ".", ".."));
            assert_eq!((names[2].as_str(), names[1001].as_str()), ("name-0000", "name-0999"));
            assert_eq!(ask(&server, opcode, many, &piece(u64::MAX, 4096)).unwrap(), b"");
            assert_eq!(ask(&server, opcode, many, &piece(0, 8)).unwrap(), b"", "no half entries");
            assert_eq!(
                ask(&server, opcode, node_of(&server, ROOT, "big"), &piece(0, 99)),
                Err(Errno::NOTDIR)
            );
        }
    }

    #[test]
    fn extended_attributes() {
        let mut server = server();
        let hello = node_of(&server, node_of(&server, ROOT, "etc"), "hello");
        let get = |server: &Server<Memory>, node: u64, size: u32, name: &str| {
            ask(server, opcode::GETXATTR, node, &[&words(&[size, 0])[..], name.as_bytes(), &[0]].concat())
        };
        assert_eq!(get(&server, hello, 0, "user.one").unwrap(), words(&[5, 0]));
        assert_eq!(get(&server, hello, 5, "user.one").unwrap(), b"value");
        assert_eq!(get(&server, hello, 4, "user.one"), Err(Errno::RANGE));
        assert_eq!(get(&server, hello, 0, "user.two"), Err(Errno::NODATA));
        assert_eq!(get(&server, ROOT, 0, "user.one"), Err(Errno::NODATA));
        assert_eq!(ask(&server, opcode::LISTXATTR, hello, &words(&[99, 0])).unwrap(), b"user.one\0");
        assert_eq!(ask(&server, opcode::LISTXATTR, hello, &words(&[3, 0])), Err(Errno::RANGE));
        assert_eq!(ask(&server, opcode::LISTXATTR, ROOT, &words(&[0, 0])).unwrap(), words(&[0, 0]));
        server.file_system.xattrs = false;
        assert_eq!(get(&server, hello, 0, "user.one"), Err(Errno::NOSYS), "the kernel asks no more");
    }

    #[test]
    fn opening_is_left_out_where_the_kernel_knows_that() {
        let server = server();
        for (features, opcode, flags) in [
            (0, opcode::OPEN, Some(FOPEN_KEEP_CACHE)),
            (0, opcode::OPENDIR, Some(FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR)),
            (u32::MAX, opcode::OPEN, None),
            (u32::MAX, opcode::OPENDIR, None),
        ] {
            ask(&server, opcode::INIT, 0, &words(&[7, 38, 0, features])).unwrap();
            let answer = ask(&server, opcode, ROOT, &words(&[0, 0]));
            assert_eq!(answer.map(|out| u32_at(&out, 8)), flags.ok_or(Errno::NOSYS));
        }
    }

    #[test]
    fn nothing_is_written_and_nothing_unknown_is_done() {
        let server = server();
        for write in [4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51] {
            assert_eq!(ask(&server, write, ROOT, &[0; 64]), Err(Errno::ROFS), "{write}");
        }
        for unknown in [0, 7, 20, 25, 31, 36, 37, 39, 40, 46, 48, 50, 99, 4096, u32::MAX] {
            assert_eq!(ask(&server, unknown, ROOT, &[0; 64]), Err(Errno::NOSYS), "{unknown}");
        }
        for silent in [opcode::FORGET, opcode::BATCH_FORGET] {
            assert!(server.answer(&message(silent, 3, &[0; 16]), &mut Reply::default()).is_none());
        }
    }

    #[test]
    fn odd_messages_get_an_error_or_nothing() {
        let server = server();
        let mut reply = Reply::default();
        for length in 0..40 {
            assert!(server.answer(&message(opcode::LOOKUP, ROOT, b"etc\0")[..length], &mut reply).is_none());
        }
        let mut longer = message(opcode::LOOKUP, ROOT, b"etc\0");
        longer[0] += 1;
        assert!(server.answer(&longer, &mut reply).is_none(), "shorter than it says");
        longer[0] = 3;
        assert!(server.answer(&longer, &mut reply).is_none(), "no room for the header");
        for name in [&b"etc"[..], b"", b"\0", b".\0", b"..\0", b"a/b\0"] {
            assert_eq!(ask(&server, opcode::LOOKUP, ROOT, name), Err(Errno::INVAL), "{name:?}");
        }
        let long = [vec![b'x'; 256], vec![0]].concat();
        assert_eq!(ask(&server, opcode::LOOKUP, ROOT, &long), Err(Errno::NAMETOOLONG));
        for node in [0, 1000, u64::MAX] {
            for opcode in 1..60 {
                if ![opcode::FORGET, opcode::BATCH_FORGET].contains(&opcode) {
                    let _ = ask(&server, opcode, node, &[]);
                    let _ = ask(&server, opcode, node, &[0xff; 64]);
                }
            }
            assert!(ask(&server, opcode::GETATTR, node, &[]).is_err());
        }
    }

    /// `ISLES_FUZZ` is how many are tried (20,000 where it is not set).
    #[test]
    fn messages_at_random_do_no_harm() {
        let rounds: usize = std::env::var("ISLES_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
        let server = server();
        let mut reply = Reply::default();
        let mut state = 0x5eed_1234_cafe_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut answered = 0;
        for _ in 0..rounds {
            let mut body: Vec<u8> = (0..random() % 96).map(|_| random() as u8).collect();
            if random().is_multiple_of(2) {
                // Offsets and sizes that could be: small, or the largest there are.
                let value: u64 = [0, 1, 4096, u64::MAX][random() as usize % 4];
                body.chunks_exact_mut(8).for_each(|field| field.copy_from_slice(&value.to_le_bytes()));
            }
            let node = [ROOT, 2, 3, random()][random() as usize % 4];
            let mut bytes = message(random() as u32 % 56, node, &body);
            if random().is_multiple_of(8) {
                let at = random() as usize % bytes.len();
                bytes[at] = random() as u8;
            }
            answered += usize::from(server.answer(&bytes, &mut reply).is_some());
        }
        assert!(answered > rounds / 4, "{answered} of {rounds} answered");
    }
}
