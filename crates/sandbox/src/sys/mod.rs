//! The system calls that a start makes, as thin as they are: no allocation, no lock, an errno on failure.
//!
//! Everything here is safe to call in a child between clone3 and exec.

pub mod mount;
pub mod process;
#[cfg(target_arch = "x86_64")]
pub mod stack;

use std::ffi::CStr;

/// An error number of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

pub type Result<T> = std::result::Result<T, Errno>;

impl Errno {
    /// That of the last call in this thread.
    pub fn last() -> Errno {
        // SAFETY: the pointer is to this thread's errno and always valid.
        Errno(unsafe { *libc::__errno_location() })
    }
}

impl From<Errno> for std::io::Error {
    fn from(Errno(errno): Errno) -> std::io::Error {
        std::io::Error::from_raw_os_error(errno)
    }
}

/// Turns the answer of a raw system call into a result.
pub fn check(answer: libc::c_long) -> Result<libc::c_long> {
    if answer < 0 { Err(Errno::last()) } else { Ok(answer) }
}

/// A descriptor that is closed when dropped. Unlike `OwnedFd` it does not abort the program when the close
/// fails, which in a child that closed ranges of descriptors it may.
#[derive(Debug)]
pub struct Fd(pub i32);

impl Drop for Fd {
    fn drop(&mut self) {
        if self.0 >= 0 {
            // SAFETY: close(2) of a number has no memory effects.
            unsafe { libc::close(self.0) };
        }
    }
}

const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;
const RESOLVE_IN_ROOT: u64 = 0x10;

/// Opens a path below `root` as if that were `/`; no magic link is followed (openat2(2)).
pub fn open_in_root(root: i32, path: &CStr, flags: i32) -> Result<Fd> {
    openat2(root, path, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
}

/// The same, and no symbolic link at all.
pub fn open_in_root_no_links(root: i32, path: &CStr, flags: i32, mode: u32) -> Result<Fd> {
    openat2(root, path, flags, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS)
}

fn openat2(root: i32, path: &CStr, flags: i32, mode: u32, resolve: u64) -> Result<Fd> {
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    let how = How { flags: (flags | libc::O_CLOEXEC) as u32 as u64, mode: mode.into(), resolve };
    loop {
        // SAFETY: the path is terminated, the structure lives and has the size that is given.
        let answer = check(unsafe {
            libc::syscall(libc::SYS_openat2, root, path.as_ptr(), &how, std::mem::size_of::<How>())
        });
        match answer {
            // A rename raced with the walk (openat2(2)); the kernel asks to try again.
            Err(Errno(libc::EAGAIN | libc::EINTR)) => continue,
            other => return other.map(|fd| Fd(fd as i32)),
        }
    }
}

/// `/proc/self/fd/N`, terminated.
pub fn path_of_descriptor(fd: i32) -> [u8; 26] {
    let mut path = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0\0";
    let (mut digits, mut number) = ([0u8; 10], fd.unsigned_abs());
    let mut count = 0;
    loop {
        digits[count] = b'0' + (number % 10) as u8;
        number /= 10;
        count += 1;
        if number == 0 {
            break;
        }
    }
    for at in 0..count {
        path[14 + at] = digits[count - 1 - at];
    }
    path
}

/// open(2) of a path of the caller's root.
pub fn open(path: &CStr, flags: i32, mode: u32) -> Result<Fd> {
    openat(libc::AT_FDCWD, path, flags, mode)
}

/// openat(2).
pub fn openat(dir: i32, path: &CStr, flags: i32, mode: u32) -> Result<Fd> {
    // SAFETY: the path is terminated.
    check(unsafe { libc::openat(dir, path.as_ptr(), flags | libc::O_CLOEXEC, mode) }.into())
        .map(|fd| Fd(fd as i32))
}

/// mkdirat(2).
pub fn mkdirat(dir: i32, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the name is terminated.
    check(unsafe { libc::mkdirat(dir, name.as_ptr(), mode) }.into()).map(drop)
}

/// mknodat(2).
pub fn mknodat(dir: i32, name: &CStr, mode: u32, device: u64) -> Result<()> {
    // SAFETY: the name is terminated.
    check(unsafe { libc::mknodat(dir, name.as_ptr(), mode, device) }.into()).map(drop)
}

/// symlinkat(2).
pub fn symlinkat(target: &CStr, dir: i32, name: &CStr) -> Result<()> {
    // SAFETY: both strings are terminated.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir, name.as_ptr()) }.into()).map(drop)
}

/// unlinkat(2) of a file or link.
pub fn unlinkat(dir: i32, name: &CStr) -> Result<()> {
    // SAFETY: the name is terminated.
    check(unsafe { libc::unlinkat(dir, name.as_ptr(), 0) }.into()).map(drop)
}

/// fchmodat(2).
pub fn chmodat(dir: i32, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the name is terminated.
    check(unsafe { libc::fchmodat(dir, name.as_ptr(), mode, 0) }.into()).map(drop)
}

/// fchownat(2).
pub fn chownat(dir: i32, name: &CStr, uid: u32, gid: u32) -> Result<()> {
    // SAFETY: the name is terminated.
    check(unsafe { libc::fchownat(dir, name.as_ptr(), uid, gid, libc::AT_SYMLINK_NOFOLLOW) }.into()).map(drop)
}

/// chroot(2).
pub fn chroot(path: &CStr) -> Result<()> {
    // SAFETY: the path is terminated.
    check(unsafe { libc::chroot(path.as_ptr()) }.into()).map(drop)
}

/// fchdir(2).
pub fn fchdir(dir: i32) -> Result<()> {
    // SAFETY: fchdir(2) of a number has no memory effects.
    check(unsafe { libc::fchdir(dir) }.into()).map(drop)
}

/// chdir(2).
pub fn chdir(path: &CStr) -> Result<()> {
    // SAFETY: the path is terminated.
    check(unsafe { libc::chdir(path.as_ptr()) }.into()).map(drop)
}

/// What fstat(2) says of a descriptor.
pub fn stat(fd: i32) -> Result<libc::stat> {
    // SAFETY: all zeroes is a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives.
    check(unsafe { libc::fstat(fd, &mut stat) }.into()).map(|_| stat)
}

/// Writes all bytes.
pub fn write_all(fd: i32, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the buffer lives and has the length that is given.
        match check(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) } as libc::c_long) {
            Ok(n) => bytes = &bytes[n as usize..],
            Err(Errno(libc::EINTR)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// One read(2), again when a signal came in between.
pub fn read(fd: i32, buffer: &mut [u8]) -> Result<usize> {
    loop {
        // SAFETY: the buffer lives and has the length that is given.
        match check(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) } as libc::c_long) {
            Ok(n) => return Ok(n as usize),
            Err(Errno(libc::EINTR)) => {}
            Err(e) => return Err(e),
        }
    }
}

/// A pipe whose ends close on exec: read end, write end. Neither is a standard stream.
pub fn pipe() -> Result<(Fd, Fd)> {
    let mut ends = [-1; 2];
    // SAFETY: the array has room for both descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }.into())?;
    Ok((above_streams(Fd(ends[0]))?, above_streams(Fd(ends[1]))?))
}

/// Two connected sockets that keep the bounds of messages and close on exec. Neither is a standard stream.
pub fn socket_pair() -> Result<(Fd, Fd)> {
    let mut ends = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for both descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }.into())?;
    Ok((above_streams(Fd(ends[0]))?, above_streams(Fd(ends[1]))?))
}

/// The same file at a number above 2. A caller with closed standard streams would else find our pipes there,
/// and the child would cover them with the streams of the program.
fn above_streams(fd: Fd) -> Result<Fd> {
    if fd.0 > 2 {
        return Ok(fd);
    }
    // SAFETY: fcntl(2) of numbers has no memory effects.
    check(unsafe { libc::fcntl(fd.0, libc::F_DUPFD_CLOEXEC, 3) }.into()).map(|lifted| Fd(lifted as i32))
}
