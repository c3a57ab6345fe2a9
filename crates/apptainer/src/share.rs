//! `--sharens`: processes that the same parent starts, such as the ranks that an `mpirun` or a Slurm step has on one node,
//! run in one container. So they are in one user namespace, and may copy from each other's memory
//! (process_vm_readv(2), XPMEM).
//!
//! Whoever comes first starts an instance; the others join it; whoever is last ends it. Two locks decide who that is: one
//! is held while something is decided, the other is shared by all who run. Where all of them are killed nobody is
//! left to decide, so the process that stays with the container watches the parent as well, and ends with it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use isles_engine::Target;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open};

use crate::failure::Failure;
use crate::instance::{self, Shelf, Watch};
use crate::launch::Launch;

/// Where locks are of this machine alone, and gone when it is restarted.
const FOLDER: &str = "/dev/shm";

/// Runs the program in the container that the processes of this parent share.
pub fn run(launch: &Launch<'_>, image: &str) -> Result<u8, Failure> {
    let parent = getppid()
        .and_then(|pid| Target::of(pid.as_raw_nonzero().get()))
        .ok_or_else(|| Failure::new("--sharens: the parent process has ended"))?;
    let name = format!("sharens-{}-{}", parent.pid, parent.began);
    let shelf = Shelf::find(launch.cx, None)?;
    let place = Path::new(FOLDER).join(format!("isles-{}-{name}", launch.caller.uid));
    let deciding = Lock::to_decide(&place.with_extension("lock"), launch.caller.uid)?;
    let record = match shelf.get(&name) {
        Ok(record) => record,
        Err(_) => {
            let started = |container: i32| watch(parent, container);
            instance::start(launch, image, &name, &Watch { started: &started, shared: true })?
        }
    };
    // Opened after the start: the process that stays with the container has what was open before, and a lock is held
    // for as long as anybody has its descriptor.
    let running = Lock::open(place.with_extension("use"), launch.caller.uid)?;
    running.take(FlockOperation::LockShared)?;
    deciding.take(FlockOperation::Unlock)?;
    let exit = instance::in_instance(launch, &record);
    deciding.take(FlockOperation::LockExclusive)?;
    // Nobody can join while this is decided, and those who run hold the other lock.
    running.take(FlockOperation::Unlock)?;
    if running.take(FlockOperation::NonBlockingLockExclusive).is_ok() {
        if record.process.lives() {
            instance::kill(record.pid, Signal::KILL);
        }
        shelf.forget(&name);
        running.remove();
        deciding.remove();
    }
    deciding.take(FlockOperation::Unlock)?;
    exit
}

/// Ends the container with the parent of those who share it. Called in the process that stays with it.
fn watch(parent: Target, container: i32) {
    std::thread::spawn(move || {
        let there = Pid::from_raw(parent.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let Some(parent_fd) = there
            && parent.lives()
        {
            let mut fds = [PollFd::from_borrowed_fd(parent_fd.as_fd(), PollFlags::IN)];
            while matches!(poll(&mut fds, None), Err(rustix::io::Errno::INTR)) {}
        }
        instance::kill(container, Signal::KILL);
    });
}

struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// The lock under which is decided, taken. One whose file was removed meanwhile is nobody's any more.
    fn to_decide(path: &Path, uid: u32) -> Result<Lock, Failure> {
        loop {
            let lock = Lock::open(path.to_owned(), uid)?;
            lock.take(FlockOperation::LockExclusive)?;
            let own = lock.file.metadata().map(|found| found.ino()).ok();
            if own.is_some() && own == fs::symlink_metadata(path).map(|found| found.ino()).ok() {
                return Ok(lock);
            }
        }
    }

    /// The file belongs to the caller, whoever may have put one there before.
    fn open(path: PathBuf, uid: u32) -> Result<Lock, Failure> {
        let failed =
            |e: &std::io::Error| Failure::because(format!("cannot use the lock '{}'", path.display()), e);
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let opened = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(&path);
        let file = opened.map_err(|e| failed(&e))?;
        if file.metadata().map_err(|e| failed(&e))?.uid() != uid {
            return Err(Failure::new(format!("the lock '{}' belongs to another user", path.display())));
        }
        Ok(Lock { path, file })
    }

    fn take(&self, how: FlockOperation) -> Result<(), Failure> {
        loop {
            match rustix::fs::flock(&self.file, how) {
                Err(rustix::io::Errno::INTR) => {}
                other => {
                    let what = || format!("cannot take the lock '{}'", self.path.display());
                    return other.map_err(|e| Failure::because(what(), &std::io::Error::from(e)));
                }
            }
        }
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}
