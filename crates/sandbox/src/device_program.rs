//! Programs of the host that serve a mount of a container's, whose `/dev/fuse` they are given as descriptor 3 (libfuse takes
//! `/dev/fd/3` in the place of a mount point).
//!
//! Such a program is in a session of its own, so no key of a terminal ends it, and in the user namespace of the mount
//! where that has other IDs than the caller: whom its files belong to is then said in the IDs that the container knows.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::sys::{self, process as p};

/// The descriptor that a program finds its device at.
pub const DEVICE: i32 = 3;

/// Starts a program, whose first word is looked for on the caller's PATH. `with_caller` has it told to end when this thread
/// does; a program that goes into the background by itself is left alone.
///
/// # Errors
/// There is no such program, or the user namespace cannot be joined.
pub fn start(
    words: &[String],
    device: &OwnedFd,
    user: Option<&OwnedFd>,
    with_caller: bool,
) -> io::Result<Child> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    // Its number is taken by this, if by nothing else: the standard library would have its own report there.
    let held = rustix::io::fcntl_dupfd_cloexec(device, DEVICE)?;
    let (device, user) = (held.as_raw_fd(), user.map(AsRawFd::as_raw_fd));
    let parent = std::process::id();
    // SAFETY: what it calls may be called between fork and exec: it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            sys::check(libc::setsid().into())?;
            p::let_signals_through();
            if let Some(user) = user {
                p::setns(user, libc::CLONE_NEWUSER)?;
            }
            p::dup_to(device, DEVICE)?;
            if with_caller {
                p::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as u64)?;
                // It was killed before it was looked at.
                if libc::getppid().cast_unsigned() != parent {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
            }
            Ok(())
        })
    };
    command.spawn()
}
