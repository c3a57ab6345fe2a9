//! `--sharens`: processes that the same parent starts, such as the ranks that an `mpirun` or a Slurm step has on one node,
//! run in one container. So they are in one user namespace, and may copy from each other's memory
//! (process_vm_readv(2), XPMEM).
//!
//! Whoever comes first starts an instance; the others join it; whoever is last ends it. Two locks decide who that is: one
//! is held while something is decided, the other is shared by all who run. Where all of them are killed nobody is
//! left to decide, so the process that stays with the container watches the parent as well, and ends with it.

use std::os::fd::AsFd;

use isles_engine::Target;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open};

use crate::failure::Failure;
use crate::instance::{self, Shelf, Watch};
use crate::launch::Launch;
use crate::lock::{self, Lock};

/// Runs the program in the container that the processes of this parent share.
pub fn run(launch: &Launch<'_>, image: &str) -> Result<u8, Failure> {
    let parent = getppid()
        .and_then(|pid| Target::of(pid.as_raw_nonzero().get()))
        .ok_or_else(|| Failure::new("--sharens: the parent process has ended"))?;
    let name = format!("sharens-{}-{}", parent.pid, parent.began);
    let shelf = Shelf::find(launch.cx, None)?;
    let place = lock::place(launch.caller.uid, &name);
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
        instance::kill(record.process, Signal::KILL);
        shelf.forget(&name);
        running.remove();
        deciding.remove();
    }
    deciding.take(FlockOperation::Unlock)?;
    exit
}

/// Ends the container with the parent of those who share it. Called in the process that stays with it.
fn watch(parent: Target, container: i32) {
    let container = Target::of(container);
    std::thread::spawn(move || {
        let there = Pid::from_raw(parent.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let Some(parent_fd) = there
            && parent.lives()
        {
            let mut fds = [PollFd::from_borrowed_fd(parent_fd.as_fd(), PollFlags::IN)];
            while matches!(poll(&mut fds, None), Err(rustix::io::Errno::INTR)) {}
        }
        if let Some(container) = container {
            instance::kill(container, Signal::KILL);
        }
    });
}
