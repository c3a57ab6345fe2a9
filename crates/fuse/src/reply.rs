//! What goes back to the kernel: a header and the body of one answer, in a buffer that is used again and again.

use rustix::io::Errno;

use crate::file_system::{Attributes, FileKind};

/// `struct fuse_out_header`.
const HEADER: usize = 16;
/// Names and attributes may be kept this long, in seconds: longer than any machine runs.
const FOR_EVER: u64 = 100 * 365 * 24 * 3600;
const BLOCK: u64 = 4096;

/// An answer on its way.
#[derive(Debug, Default)]
pub struct Reply {
    bytes: Vec<u8>,
    /// Behind this, the buffer holds what it held before.
    end: usize,
}

impl Reply {
    /// Begins an answer.
    pub fn begin(&mut self) {
        self.end = 0;
        self.put(&[0; HEADER]);
    }

    /// The bytes to write, once the header is known.
    pub fn finish(&mut self, unique: u64, outcome: Result<(), Errno>) -> &[u8] {
        if outcome.is_err() {
            self.end = HEADER;
        }
        // The kernel takes no others.
        let known = |errno: &Errno| (1..512).contains(&errno.raw_os_error());
        let error = outcome.err().map_or(0, |e| -Some(e).filter(known).unwrap_or(Errno::IO).raw_os_error());
        let length = self.end as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[4..8].copy_from_slice(&error.to_ne_bytes());
        self.bytes[8..HEADER].copy_from_slice(&unique.to_ne_bytes());
        &self.bytes[..self.end]
    }

    /// Bytes of the body so far.
    pub fn len(&self) -> usize {
        self.end - HEADER
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// The next bytes of the body, to be filled, and then taken by [`Reply::take`].
    pub fn room(&mut self, length: usize) -> &mut [u8] {
        let wanted = self.end + length;
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        }
        &mut self.bytes[self.end..wanted]
    }

    /// Takes what was filled of [`Reply::room`].
    pub fn take(&mut self, length: usize) {
        self.end = self.bytes.len().min(self.end + length);
    }

    pub fn u16(&mut self, n: u16) {
        self.put(&n.to_ne_bytes());
    }

    pub fn u32(&mut self, n: u32) {
        self.put(&n.to_ne_bytes());
    }

    pub fn u64(&mut self, n: u64) {
        self.put(&n.to_ne_bytes());
    }

    /// `struct fuse_entry_out`; without attributes a name that is not there, which the kernel remembers as well.
    pub fn entry(&mut self, found: Option<(u64, &Attributes)>) {
        self.u64(found.map_or(0, |(node, _)| node));
        self.u64(0);
        self.u64(FOR_EVER);
        self.u64(FOR_EVER);
        self.u64(0);
        match found {
            Some((_, attributes)) => self.attributes(attributes),
            None => self.put(&[0; 88]),
        }
    }

    /// `struct fuse_attr_out`.
    pub fn attributes_for_ever(&mut self, attributes: &Attributes) {
        self.u64(FOR_EVER);
        self.u64(0);
        self.attributes(attributes);
    }

    /// `struct fuse_attr`.
    fn attributes(&mut self, a: &Attributes) {
        self.u64(a.inode);
        self.u64(a.size);
        self.u64(a.size.div_ceil(512));
        for _ in 0..3 {
            self.u64(a.mtime.cast_unsigned());
        }
        for _ in 0..3 {
            self.u32(0);
        }
        self.u32(a.kind.mode() | a.mode & 0o7777);
        self.u32(a.links);
        self.u32(a.uid);
        self.u32(a.gid);
        // As `new_encode_dev` of the kernel has it.
        let (major, minor) = a.device;
        self.u32(minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12);
        self.u32(BLOCK as u32);
        self.u32(0);
    }

    /// `struct fuse_dirent`; `next` is where a reader goes on after it. Names are filled up to eight bytes.
    pub fn dirent(&mut self, inode: u64, next: u64, kind: FileKind, name: &[u8]) {
        self.u64(inode);
        self.u64(next);
        self.u32(name.len() as u32);
        self.u32(kind.mode() >> 12);
        self.put(name);
        self.put(&[0; 8][..padding(name)]);
    }

    /// `struct fuse_statfs_out`.
    pub fn statistics(&mut self, bytes: u64, files: u64) {
        self.u64(bytes.div_ceil(BLOCK));
        self.u64(0);
        self.u64(0);
        self.u64(files);
        self.u64(0);
        self.u32(BLOCK as u32);
        // NAME_MAX
        self.u32(255);
        self.u32(BLOCK as u32);
        self.put(&[0; 28]);
    }
}

fn padding(name: &[u8]) -> usize {
    name.len().next_multiple_of(8) - name.len()
}

/// Bytes of `struct fuse_dirent` with its name, and of `struct fuse_entry_out` before it where `plus`.
pub fn dirent_size(name: &[u8], plus: bool) -> usize {
    24 + name.len().next_multiple_of(8) + if plus { 128 } else { 0 }
}
