//! Closing descriptors whose closing takes long.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// Closes a descriptor by a process that nobody waits for, after a time.
///
/// The kernel lets whoever closes some of them last wait until all processors have seen what was done by them: after something
/// was taken out of the firewall (`synchronize_rcu`), or for a watch of files (`synchronize_srcu`), 10 to 25 ms.
pub fn close(fd: OwnedFd, after: Duration) {
    let number = fd.as_raw_fd();
    // SAFETY: both children call nothing but functions that are safe after fork (signal-safety(7)), and leave by _exit; the
    // descriptor is open.
    unsafe {
        match libc::fork() {
            // Without it, we wait.
            -1 => {}
            0 => {
                // Locks and pipes of ours are not to live longer than we do: closed before anybody goes on.
                let at = libc::dup2(number, 0).max(0) as libc::c_uint;
                libc::close_range(at + 1, libc::c_uint::MAX, 0);
                // One whose parent is gone needs nobody to wait for it.
                if libc::fork() == 0 {
                    let soon = libc::timespec {
                        tv_sec: after.as_secs().cast_signed(),
                        tv_nsec: after.subsec_nanos().into(),
                    };
                    libc::nanosleep(&raw const soon, std::ptr::null_mut());
                }
                libc::_exit(0);
            }
            child => {
                drop(fd);
                while libc::waitpid(child, std::ptr::null_mut(), 0) == -1
                    && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
                {}
            }
        }
    }
}
