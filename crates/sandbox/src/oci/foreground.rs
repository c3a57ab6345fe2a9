//! Staying with a container until it ends: signals are handed on, the exit code is its own.

use std::io;

use crate::spawn::Child;

/// Hands every signal on to the process and returns its exit code, 128 and the number for a signal.
///
/// The calling process must have one thread; its signals stay blocked.
pub fn wait(child: &mut Child) -> io::Result<u8> {
    // SAFETY: the set lives and is filled before it is used.
    let all = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT] {
            libc::sigdelset(&mut set, fault);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    };
    loop {
        // An end before the signals were blocked has left no signal behind, so look first.
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        let mut signal = 0;
        // SAFETY: the set and the number live.
        if unsafe { libc::sigwait(&all, &mut signal) } != 0 {
            continue;
        }
        match signal {
            libc::SIGCHLD => {}
            // The terminal's own business, and those that stop this process rather than the container's.
            libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU | libc::SIGURG => {}
            other => child.kill(other)?,
        }
    }
}
