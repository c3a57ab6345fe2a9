//! Process 1 of a container that asked for an init: reaps orphans, hands signals on, ends with the program; or, where
//! it is to stay, when it is asked to and nobody is left.

use crate::credentials;
use crate::plan::Plan;
use crate::sys::process as p;

/// Splits this process: the child goes on to become the program, the parent stays as init and never returns.
pub(crate) fn become_init(plan: &Plan<'_>, report: i32) {
    // SAFETY: all zeroes is a valid set.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // Before there is a child: one that ended before its SIGCHLD is waited for would never be noticed. The program's
    // side lets go of them again before it runs.
    // SAFETY: the set lives.
    unsafe {
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
        // Ignored, as a caller may have left it, it would not come either.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
    // Not fork(3): that waits for the locks of the C library, which another thread of the caller may have held.
    let child = match p::clone3(0, None) {
        Ok(p::Side::Child) => return,
        Ok(p::Side::Parent { pid, pidfd: _ }) => pid,
        Err(_) => p::exit(125),
    };
    // Only the program's side installs filters.
    if credentials::drop_reserve(plan).is_err() {
        p::exit(125);
    }
    // SAFETY: close(2) of numbers has no memory effects. Nothing of the start may stay open here, or the parent
    // would wait for a report that does not come.
    unsafe {
        libc::close(report);
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
    }
    let stays = plan.process.init_stays;
    if stays && plan.setup.gate.open_to_owner && p::prctl(libc::PR_SET_DUMPABLE, 1).is_err() {
        p::exit(125);
    }
    // Whether the program has ended, and the signal by which somebody wants all of this to end.
    let (mut ended, mut asked) = (false, None);
    // SAFETY: the set and the status live.
    unsafe {
        loop {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let signal = libc::sigwaitinfo(&all, &mut info);
            if signal == libc::SIGCHLD {
                loop {
                    let mut status = 0;
                    let pid = libc::waitpid(-1, &mut status, libc::WNOHANG);
                    if pid <= 0 {
                        break;
                    }
                    if pid == child && stays {
                        ended = true;
                        asked.into_iter().for_each(tell_the_rest);
                    } else if pid == child {
                        let code = if libc::WIFSIGNALED(status) {
                            128 + libc::WTERMSIG(status)
                        } else {
                            libc::WEXITSTATUS(status)
                        };
                        p::exit(code);
                    }
                }
            } else if signal > 0 {
                if matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT) {
                    asked = Some(signal);
                }
                if ended {
                    tell_the_rest(signal);
                } else {
                    libc::kill(child, signal);
                }
            }
            // Nobody is left where nothing can be waited for.
            if ended && asked.is_some() && libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) < 0 {
                p::exit(0);
            }
        }
    }
}

/// Signals what the program has left behind. Outside of a PID namespace that would be everybody.
fn tell_the_rest(signal: i32) {
    // SAFETY: getpid(2) and kill(2) have no memory effects.
    unsafe {
        if libc::getpid() == 1 {
            libc::kill(-1, signal);
        }
    }
}
