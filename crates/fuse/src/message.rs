//! What the kernel sends: a header and the body of one request.

/// `FUSE_KERNEL_VERSION`; a later one would be another protocol.
pub const MAJOR: u32 = 7;
/// With 31 come the kernels that let user namespaces mount (Linux 4.18) and keep links (4.20).
pub const LEAST_MINOR: u32 = 31;
/// The version that this was written for.
pub const MINOR: u32 = 38;

/// `FUSE_ROOT_ID`.
pub const ROOT: u64 = 1;

/// So much may be asked for, and is answered, at once.
pub const MOST: usize = 1 << 20;
/// No request is longer: the kernel wants room for this header and the smallest write, and never less than 8 KiB
/// (`FUSE_MIN_READ_BUFFER`).
pub const REQUEST_ROOM: usize = 16 << 10;

/// `enum fuse_opcode`, as far as the server answers them; all others get ENOSYS.
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
}

/// Flags of INIT.
pub mod feature {
    pub const ASYNC_READ: u32 = 1;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const NO_OPEN_SUPPORT: u32 = 1 << 17;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
}

/// Flags of the answer to OPEN and OPENDIR.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
pub const FOPEN_CACHE_DIR: u32 = 1 << 3;

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub opcode: u32,
    /// Tells the answer apart from others.
    pub unique: u64,
    pub node: u64,
    pub body: Body<'a>,
}

impl<'a> Request<'a> {
    /// `struct fuse_in_header`.
    const HEADER: usize = 40;

    /// Reads a message; `None` where it is not even a header.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let header = Body(message.get(..Self::HEADER)?);
        let length = usize::try_from(header.u32(0)?).ok()?;
        let body = message.get(Self::HEADER..length)?;
        Some(Request {
            opcode: header.u32(4)?,
            unique: header.u64(8)?,
            node: header.u64(16)?,
            body: Body(body),
        })
    }
}

/// What follows the header. Fields that are not there are `None`.
#[derive(Debug, Clone, Copy)]
pub struct Body<'a>(pub &'a [u8]);

impl<'a> Body<'a> {
    pub fn u32(self, at: usize) -> Option<u32> {
        self.0.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    pub fn u64(self, at: usize) -> Option<u64> {
        self.0.get(at..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
    }

    /// A string that a null byte ends, from `at` on.
    pub fn name(self, at: usize) -> Option<&'a [u8]> {
        let rest = self.0.get(at..)?;
        rest.get(..rest.iter().position(|byte| *byte == 0)?)
    }
}
