//! This program, out of a container's reach.
//!
//! A process on its way into a container, or a script in it whose interpreter is `/proc/self/exe`, runs this program's
//! file. The container can take hold of that file through `/proc/PID/exe` and, once nobody runs it any more, write to
//! it as the host's root (CVE-2019-5736). Whoever runs containers that outlive it therefore first becomes itself once
//! more: from a read-only mount of the file, which no way through /proc makes writable, or from a sealed copy in
//! memory where mounts are not allowed.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use crate::sys::{self, Errno, Fd, mount as m, process as p};

const SEALS: i32 = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;

/// Comes back when the file of this program cannot be written by way of this process: at once where that is so
/// already, else in a new execution of the same program with the same arguments. To be called before anything is done,
/// by a program with one thread.
///
/// # Errors
/// When neither a mount nor a file in memory can be made.
pub fn protect_own_program() -> io::Result<()> {
    let exe = sys::open(c"/proc/self/exe", libc::O_PATH, 0).map_err(error)?;
    if on_read_only_mount(&exe)? || is_sealed() || !may_be_written() {
        return Ok(());
    }
    let safe = match read_only_mount(exe.0) {
        Ok(mount) if on_read_only_mount(&mount)? => mount,
        _ => sealed_copy()?,
    };
    Err(error(execute(&safe)))
}

fn error(Errno(errno): Errno) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn on_read_only_mount(file: &Fd) -> io::Result<bool> {
    // SAFETY: all zeroes is a valid statvfs, and the call fills it.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        sys::check(libc::fstatvfs(file.0, &raw mut stat).into()).map_err(error)?;
        Ok(stat.f_flag & libc::ST_RDONLY != 0)
    }
}

fn is_sealed() -> bool {
    let Ok(file) = File::open("/proc/self/exe") else { return false };
    // SAFETY: fcntl(2) of numbers has no memory effects.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    // Negative where the file knows no seals.
    seals >= 0 && seals & SEALS == SEALS
}

/// Whether this user could write to the file, were it not running.
fn may_be_written() -> bool {
    let (at, path) = (libc::AT_FDCWD, c"/proc/self/exe");
    // SAFETY: the path is terminated.
    unsafe { libc::faccessat(at, path.as_ptr(), libc::W_OK, libc::AT_EACCESS) == 0 }
}

fn read_only_mount(file: i32) -> sys::Result<Fd> {
    let mount = m::clone_tree(file, c"", false)?;
    m::set_attributes(mount.0, false, m::ATTR_RDONLY, 0, 0, -1)?;
    Ok(mount)
}

fn sealed_copy() -> io::Result<Fd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // Since Linux 6.3 a file in memory says whether it may be run; before, the flag is unknown.
    let make = |more| {
        // SAFETY: the name is terminated.
        sys::check(unsafe { libc::memfd_create(c"isles".as_ptr(), flags | more) }.into())
    };
    let fd = make(libc::MFD_EXEC).or_else(|_| make(0)).map_err(error)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    let mut copy = File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    // SAFETY: fcntl(2) of numbers has no memory effects.
    sys::check(unsafe { libc::fcntl(copy.as_raw_fd(), libc::F_ADD_SEALS, SEALS) }.into()).map_err(error)?;
    Ok(Fd(std::os::fd::IntoRawFd::into_raw_fd(copy)))
}

/// Becomes this program once more, with other words. Descriptors that do not close on an execution, children, and blocked
/// signals stay; memory is as small as that of a program that has just begun. Comes back only where that failed.
pub fn execute_again(args: &[OsString]) -> io::Error {
    match sys::open(c"/proc/self/exe", libc::O_PATH, 0) {
        Ok(exe) => error(execute_with(&exe, args.iter().cloned())),
        Err(e) => error(e),
    }
}

fn execute(file: &Fd) -> Errno {
    execute_with(file, std::env::args_os())
}

fn execute_with(file: &Fd, args: impl Iterator<Item = OsString>) -> Errno {
    let terminated = |bytes: Vec<u8>| CString::new(bytes).unwrap_or_default();
    let args: Vec<CString> = args.map(|a| terminated(a.into_vec())).collect();
    let env: Vec<CString> = std::env::vars_os()
        .map(|(name, value)| terminated([name.into_vec(), value.into_vec()].join(&b'=')))
        .collect();
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    // SAFETY: both arrays end with a null pointer, over strings that live until after the call.
    unsafe { p::execute_file(file.0, pointers(&args).as_ptr(), pointers(&env).as_ptr()) }
}
