//! Programs of the host beside this one, started by posix_spawn(3): without a copy of this process's memory, and so as fast
//! however big it is. The standard library forks where it was linked statically.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::time::Duration;

/// A program to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// The file; no PATH is searched.
    pub path: &'a CStr,
    /// With the name that it is called by.
    pub argv: &'a [CString],
    /// `NAME=VALUE`; all of its environment.
    pub env: &'a [CString],
    pub folder: &'a CStr,
    pub streams: [BorrowedFd<'a>; 3],
}

/// What a program took (getrusage(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub user: Duration,
    pub system: Duration,
    /// The most memory that it had at once, in KiB.
    pub peak_kibibytes: u64,
}

impl Usage {
    pub(crate) fn of(usage: &libc::rusage) -> Usage {
        let time = |t: libc::timeval| Duration::new(t.tv_sec.max(0) as u64, t.tv_usec.max(0) as u32 * 1000);
        Usage {
            user: time(usage.ru_utime),
            system: time(usage.ru_stime),
            peak_kibibytes: usage.ru_maxrss.max(0) as u64,
        }
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Code(i32),
    Signal(i32),
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// Starts a program as the leader of a process group of its own, with no signal blocked or ignored, and gives its process
/// ID. It has to be waited for ([`wait`]).
///
/// # Errors
/// As those of execve(2), of the folder, or of the system's bounds.
pub fn start(program: &Program<'_>) -> io::Result<i32> {
    // A stream whose number is that of another one would be overwritten before its turn.
    let mut moved: Vec<OwnedFd> = Vec::new();
    let mut numbers = [0; 3];
    for (target, stream) in program.streams.iter().enumerate() {
        let number = stream.as_raw_fd();
        numbers[target] = number;
        if number < 3 && number != target as i32 {
            // SAFETY: fcntl(2) of numbers; the new descriptor belongs to nobody else.
            let copy = unsafe {
                let copy = libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3);
                if copy < 0 {
                    return Err(io::Error::last_os_error());
                }
                OwnedFd::from_raw_fd(copy)
            };
            numbers[target] = copy.as_raw_fd();
            moved.push(copy);
        }
    }
    let pointers = |list: &[CString]| -> Vec<*mut libc::c_char> {
        list.iter().map(|text| text.as_ptr().cast_mut()).chain([null_mut()]).collect()
    };
    let (argv, env) = (pointers(program.argv), pointers(program.env));
    let mut pid = 0;
    // SAFETY: both objects are initialised before use and destroyed once; all strings and lists outlive the call, and
    // lists end with a null pointer.
    unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
        check(libc::posix_spawn_file_actions_init(&raw mut actions))?;
        let mut attributes: libc::posix_spawnattr_t = std::mem::zeroed();
        let prepared = (|| {
            check(libc::posix_spawnattr_init(&raw mut attributes))?;
            for (target, number) in numbers.iter().enumerate() {
                check(libc::posix_spawn_file_actions_adddup2(&raw mut actions, *number, target as i32))?;
            }
            check(libc::posix_spawn_file_actions_addchdir_np(&raw mut actions, program.folder.as_ptr()))?;
            let mut none: libc::sigset_t = std::mem::zeroed();
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigfillset(&raw mut all);
            check(libc::posix_spawnattr_setsigmask(&raw mut attributes, &raw const none))?;
            check(libc::posix_spawnattr_setsigdefault(&raw mut attributes, &raw const all))?;
            check(libc::posix_spawnattr_setpgroup(&raw mut attributes, 0))?;
            let flags =
                libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETPGROUP;
            check(libc::posix_spawnattr_setflags(&raw mut attributes, flags as libc::c_short))
        })();
        let started = prepared.and_then(|()| {
            let (actions, attributes) = (&raw const actions, &raw const attributes);
            let path = program.path.as_ptr();
            check(libc::posix_spawn(&raw mut pid, path, actions, attributes, argv.as_ptr(), env.as_ptr()))
        });
        libc::posix_spawnattr_destroy(&raw mut attributes);
        libc::posix_spawn_file_actions_destroy(&raw mut actions);
        started?;
    }
    drop(moved);
    Ok(pid)
}

/// Waits until a program that [`start`] gave has ended, and leaves its number to it: it is still to be waited for.
///
/// # Errors
/// There is no such child.
pub fn await_end(pid: i32) -> io::Result<()> {
    // SAFETY: all zeroes is a valid siginfo, and the call fills it.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        while libc::waitid(libc::P_PID, pid.unsigned_abs(), &raw mut info, libc::WEXITED | libc::WNOWAIT) < 0
        {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Waits for a program that [`start`] gave.
///
/// # Errors
/// There is no such child.
pub fn wait(pid: i32) -> io::Result<(End, Usage)> {
    let mut status = 0;
    // SAFETY: all zeroes is a valid rusage, and the call fills both.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        while libc::wait4(pid, &raw mut status, 0, &raw mut usage) < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        usage
    };
    let end = if libc::WIFEXITED(status) {
        End::Code(libc::WEXITSTATUS(status))
    } else {
        End::Signal(libc::WTERMSIG(status))
    };
    Ok((end, Usage::of(&usage)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    fn run(words: &[&str], stdout: &File) -> (End, Usage) {
        let words: Vec<CString> = words.iter().map(|w| CString::new(*w).unwrap()).collect();
        let env = [c"A=b".to_owned()];
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let program = Program {
            path: c"/bin/sh",
            argv: &words,
            env: &env,
            folder: c"/usr",
            streams: [null.as_fd(), stdout.as_fd(), null.as_fd()],
        };
        wait(start(&program).unwrap()).unwrap()
    }

    #[test]
    fn a_program_has_its_folder_streams_environment_and_group() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let out = File::create(&path).unwrap();
        let script = "echo $A; pwd; [ $(cut -d' ' -f5 /proc/$$/stat) = $$ ] && echo leads; kill -PIPE $$";
        let (end, usage) = run(&["sh", "-c", script], &out);
        assert_eq!(end, End::Signal(libc::SIGPIPE));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "b\n/usr\nleads\n");
        assert!(usage.peak_kibibytes > 0);
        assert_eq!(run(&["sh", "-c", "exit 7"], &out).0, End::Code(7));
    }

    #[test]
    fn what_cannot_be_started_is_an_error() {
        let null = File::open("/dev/null").unwrap();
        let streams = [null.as_fd(), null.as_fd(), null.as_fd()];
        let argv = [c"x".to_owned()];
        for (path, folder) in
            [(c"/no/such/program", c"/"), (c"/bin/sh", c"/no/such/folder"), (c"/etc/passwd", c"/")]
        {
            assert!(start(&Program { path, argv: &argv, env: &[], folder, streams }).is_err());
        }
    }
}
