//! A compiled filter and its installation.

use std::os::fd::{FromRawFd, OwnedFd};

use super::profile::Flags;

/// A filter for seccomp(2), ready to install.
#[derive(Clone)]
pub struct Bpf {
    instructions: Vec<libc::sock_filter>,
    flags: Flags,
    listens: bool,
}

impl Bpf {
    pub(super) fn new(instructions: Vec<libc::sock_filter>, flags: Flags, listens: bool) -> Self {
        Bpf { instructions, flags, listens }
    }

    /// The program, for those who want to look at it or judge it.
    pub fn instructions(&self) -> &[libc::sock_filter] {
        &self.instructions
    }

    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// Whether a rule hands calls to a listener: [`Bpf::install`] then returns its descriptor.
    pub fn listens(&self) -> bool {
        self.listens
    }

    /// Puts the filter on the calling thread for good. The thread needs `no_new_privs` or CAP_SYS_ADMIN
    /// in its user namespace. Neither allocates nor locks, so it may run between clone and exec.
    ///
    /// Returns the listener's descriptor (close-on-exec) where a rule notifies; else `None`. The error is the
    /// number of seccomp(2).
    pub fn install(&self) -> Result<Option<OwnedFd>, i32> {
        let program = libc::sock_fprog {
            len: self.instructions.len() as u16,
            filter: self.instructions.as_ptr().cast_mut(),
        };
        let mut flags = self.flags.bits();
        if self.listens {
            flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
            if self.flags.tsync {
                flags |= libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
            }
        }
        // SAFETY: `program` points at `len` instructions that live across the call; the kernel copies them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                (&raw const program).cast::<libc::c_void>(),
            )
        };
        match result {
            0 if !self.listens => Ok(None),
            fd if fd >= 0 && self.listens => {
                // SAFETY: with NEW_LISTENER the result is a descriptor that nobody else owns.
                Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
            }
            // A positive result without a listener is the thread that TSYNC could not reach.
            n if n > 0 => Err(libc::ESRCH),
            // SAFETY: errno is the calling thread's own.
            _ => Err(unsafe { *libc::__errno_location() }),
        }
    }
}

impl std::fmt::Debug for Bpf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bpf({} instructions, {:?})", self.instructions.len(), self.flags)
    }
}
