//! Programs of the host that mount and serve a file system (fuse2fs, fuse-overlayfs), for ordinary users.
//!
//! Such a program makes its mount itself, and needs the rights of root over the mount namespace that it is in. So this
//! process moves into a user and mount namespace of its own first, in which it is who it was and has these rights, and the
//! program gets them as ambient capabilities (capabilities(7)). Containers are made from there as from anywhere else.
//!
//! The program is in a session of its own, so no key of a terminal ends it, and is told to end when this process is
//! killed: it writes what it has in memory, and goes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::SpawnError;
use crate::setup::{Prepared, UserNs};
use crate::sys::{self, mount as m, process as p};
use isles_spec::IdMapping;

/// A program that has not mounted, or has not ended, by then does not work.
const PATIENCE: Duration = Duration::from_secs(30);
/// So much of what it said is said on.
const TALK: u64 = 2000;

/// Moves this process into a user and mount namespace of its own, with the IDs that it has. It must have one thread.
pub fn enter_own_namespaces() -> io::Result<()> {
    // SAFETY: geteuid(2) and getegid(2) have no preconditions and cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    p::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    Ok(m::propagation(libc::MS_SLAVE | libc::MS_REC)?)
}

/// Mounts something in the namespace of this process, which [`enter_own_namespaces`] made.
pub fn mount_here(prepared: &Prepared) -> Result<(), SpawnError> {
    // SAFETY: as above.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let own = |id| vec![IdMapping { inside: id, outside: id, length: 1 }];
    let planned = crate::prepared::plan(prepared, &UserNs::New { uids: own(uid), gids: own(gid) })?;
    let failed = |cause| SpawnError {
        step: crate::error::Step::Image,
        object: prepared.name.clone(),
        cause: io::Error::from(cause),
    };
    crate::prepared::mount(&planned).map_err(failed)
}

/// Lets go of what is mounted at a place, whoever still uses it.
pub fn detach(place: &Path) -> io::Result<()> {
    let place = std::ffi::CString::new(place.as_os_str().as_encoded_bytes())?;
    // SAFETY: the path is terminated.
    sys::check(unsafe { libc::umount2(place.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) }.into())?;
    Ok(())
}

/// A program that serves a mount.
#[derive(Debug)]
pub struct MountProgram {
    name: String,
    child: Child,
    end: OwnedFd,
    place: PathBuf,
    said: File,
}

impl MountProgram {
    /// Starts a program, and waits until it has mounted something at `place`. What it says is kept for an error.
    ///
    /// # Errors
    /// It ended before, with its own words, or did nothing in half a minute.
    pub fn start(
        program: &Path,
        arguments: &[&OsStr],
        folder: &Path,
        place: &Path,
    ) -> io::Result<MountProgram> {
        let before = device_of(place)?;
        let mut changes = File::open("/proc/self/mountinfo")?;
        let said = unnamed(folder)?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder);
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said.try_clone()?);
        let parent = std::process::id();
        // SAFETY: what it calls may be called between fork and exec: it allocates nothing and takes no lock.
        unsafe { command.pre_exec(move || prepare(parent)) };
        let child = command.spawn()?;
        let pid = rustix::process::Pid::from_child(&child);
        let end = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut this = MountProgram { name, child, end, place: place.to_owned(), said };
        let until = Instant::now() + PATIENCE;
        loop {
            if this.ended(Duration::ZERO)? {
                return Err(this.failed("ended"));
            }
            if device_of(place)? != before {
                return Ok(this);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(this.failed("mounts nothing"));
            }
            use rustix::event::{PollFd, PollFlags};
            let mut fds = [
                PollFd::new(&this.end, PollFlags::IN),
                // Readable at any time, and otherwise ready when mounts change (proc_pid_mounts(5)).
                PollFd::new(&changes, PollFlags::PRI),
            ];
            poll(&mut fds, left)?;
            // The change counts as seen when it has been read.
            changes.rewind()?;
            io::copy(&mut changes, &mut io::sink())?;
        }
    }

    fn ended(&self, within: Duration) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags};
        let mut fds = [PollFd::from_borrowed_fd(self.end.as_fd(), PollFlags::IN)];
        poll(&mut fds, within)?;
        Ok(!fds[0].revents().is_empty())
    }

    fn failed(&mut self, what: &str) -> io::Error {
        let mut text = Vec::new();
        let _ = self.said.rewind().and_then(|()| (&self.said).take(TALK).read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" ");
        io::Error::other(if text.is_empty() {
            format!("{} {what} without a word", self.name)
        } else {
            format!("{} {what}: {text}", self.name)
        })
    }

    /// Ends it, when it has written all that it knows.
    pub fn finish(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        if let Ok(root) = File::open(&self.place) {
            // What the kernel has of it in memory; a program that is told to end is asked no more.
            // SAFETY: syncfs(2) of a descriptor has no memory effects.
            unsafe { libc::syncfs(std::os::fd::AsRawFd::as_raw_fd(&root)) };
        }
        let gone = rustix::process::pidfd_send_signal(&self.end, rustix::process::Signal::TERM);
        if gone.is_ok() && !self.ended(PATIENCE)? {
            return Err(self.failed("does not end"));
        }
        // What is still mounted goes with `self`.
        self.child.wait().map(drop)
    }
}

impl Drop for MountProgram {
    fn drop(&mut self) {
        if self.end().is_err() {
            let _ = self.child.kill();
        }
        let _ = detach(&self.place);
        let _ = self.child.wait();
    }
}

fn poll(fds: &mut [rustix::event::PollFd<'_>], within: Duration) -> io::Result<()> {
    let timeout = rustix::event::Timespec {
        tv_sec: within.as_secs().cast_signed(),
        tv_nsec: within.subsec_nanos().into(),
    };
    match rustix::event::poll(fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The file system that a place is in. A server that does not answer yet is not asked.
fn device_of(place: &Path) -> io::Result<(u32, u32, u64)> {
    use rustix::fs::{AtFlags, CWD, StatxFlags};
    let found = rustix::fs::statx(
        CWD,
        place,
        AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC,
        StatxFlags::MNT_ID,
    )?;
    Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_mnt_id))
}

/// A file without a name in a folder.
fn unnamed(folder: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = folder.join("talk");
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(path)?;
    Ok(file)
}

/// Between fork and exec.
fn prepare(parent: u32) -> io::Result<()> {
    // SAFETY: setsid(2) has no memory effects.
    sys::check(unsafe { libc::setsid() }.into())?;
    let (effective, permitted, _) = p::capget()?;
    p::capset(effective, permitted, permitted)?;
    for bit in (0..64).filter(|bit| permitted & 1 << bit != 0) {
        p::raise_ambient(bit)?;
    }
    // Signals are the caller's to wait for, and not the program's.
    p::let_signals_through();
    p::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as u64)?;
    // It was killed before it was looked at.
    // SAFETY: getppid(2) has no preconditions and cannot fail.
    if unsafe { libc::getppid() }.cast_unsigned() != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}
