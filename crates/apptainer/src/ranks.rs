//! Ranks of one parallel job on one node, which are in one user namespace without having been asked to: MPI copies large
//! messages straight from the memory of the other rank (process_vm_readv(2), XPMEM), which the kernel allows within one
//! user namespace only, and libraries of MPI find out too late that it does not. Each rank still has a container of
//! its own, with its own image.
//!
//! That a process is a rank is told by variables of whoever started it, and so is, mostly, which job it belongs to. A file
//! for the job names the processes that run. The first to come makes the user namespace while the others wait; they
//! join that of any process that the file names and that lives. So a file that was left behind says nothing, and is
//! removed by whoever makes the next one.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use isles_engine::{Engine, Target};
use rustix::fs::FlockOperation;
use rustix::process::getppid;

use crate::failure::Failure;
use crate::launch::Launch;
use crate::lock::{self, Lock};

/// Some ten thousand processes; a node has fewer.
const LARGEST: u64 = 1 << 20;
/// File names have 255 bytes.
const LONGEST_NAME: usize = 120;

/// What launchers set: the number of the rank, how many there are (those that tell it: more than one is a job), and what
/// names the job.
const LAUNCHERS: [(&str, &str, &[&str]); 6] = [
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", &["PMIX_NAMESPACE"]),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS", &["PMIX_NAMESPACE"]),
    ("PMI_RANK", "PMI_SIZE", &["PMI_JOBID"]),
    ("PALS_RANKID", "PALS_LOCAL_SIZE", &["PALS_APID"]),
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE", &["FLUX_JOB_ID"]),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", &["SLURM_JOB_ID", "SLURM_STEP_ID"]),
];

/// A rank that has found the others, or waits for none.
pub struct Rank {
    lock: Lock,
    shared: Option<File>,
    own: Cell<Option<Target>>,
}

impl Rank {
    /// Looks for the others. `None` where this is no rank, or its container has not the IDs of the caller alone.
    pub fn arrive(launch: &Launch<'_>, engine: &Engine) -> Option<Rank> {
        if launch.caller.uid == 0 || launch.settings.fakeroot {
            return None;
        }
        let job = job(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()), &parent)?;
        let found = meet(launch.caller.uid, &job, engine);
        let warn = |failure: &Failure| {
            let text = format!(
                "ranks of this job on this node are in user namespaces of their own: {}",
                failure.message
            );
            launch.cx.talk.warning(&text);
        };
        found.inspect_err(warn).ok()
    }

    /// That of the others.
    pub fn user_namespace(&self) -> Option<&File> {
        self.shared.as_ref()
    }

    /// Tells the others of the program, and lets them go on where this is the first.
    pub fn runs(&self, pid: i32) {
        self.own.set(Target::of(pid));
        if self.shared.is_some() && self.lock.take(FlockOperation::LockExclusive).is_err() {
            return;
        }
        let mut members = members(&self.lock.file);
        members.extend(self.own.get());
        // Where it cannot be written, others join somebody else, or start anew.
        let _ = write(&self.lock.file, &members);
        let _ = self.lock.take(FlockOperation::Unlock);
    }

    /// Takes the program's name off, and the file with the last one.
    pub fn leave(self) {
        if self.lock.take(FlockOperation::LockExclusive).is_err() {
            return;
        }
        let mut members = members(&self.lock.file);
        members.retain(|member| Some(*member) != self.own.get() && member.lives());
        if members.is_empty() && self.lock.is_there() {
            self.lock.remove();
        } else {
            let _ = write(&self.lock.file, &members);
        }
    }
}

/// Finds a process of the job whose user namespace can be shared. Without one the lock is still held.
fn meet(uid: u32, job: &str, engine: &Engine) -> Result<Rank, Failure> {
    let lock = Lock::to_decide(&lock::place(uid, &format!("ranks-{job}")), uid)?;
    let shared = members(&lock.file).into_iter().find_map(|member| engine.user_namespace_of(member));
    if shared.is_some() {
        lock.take(FlockOperation::Unlock)?;
    } else {
        collect(uid);
    }
    Ok(Rank { lock, shared, own: Cell::new(None) })
}

/// Removes the files of jobs all of whose processes were killed together with their containers.
fn collect(uid: u32) {
    for path in lock::all(uid, "ranks-") {
        let Ok(lock) = Lock::open(path, uid) else { continue };
        let free = lock.take(FlockOperation::NonBlockingLockExclusive).is_ok();
        if free && lock.is_there() && !members(&lock.file).into_iter().any(Target::lives) {
            lock.remove();
        }
    }
}

/// A name for the job that this process is a rank of; `variable` finds what is set and not empty.
fn job(variable: &dyn Fn(&str) -> Option<String>, parent: &dyn Fn() -> Option<Target>) -> Option<String> {
    let (launcher, size, names) = LAUNCHERS.iter().find(|(rank, _, _)| variable(rank).is_some())?;
    if variable(size).is_some_and(|size| size.parse() == Ok(1)) {
        return None;
    }
    let told: Option<Vec<String>> = names.iter().map(|name| variable(name)).collect();
    // A launcher that has no name for the job starts its ranks itself.
    let told = match told {
        Some(told) => told.join("."),
        None => parent().map(|parent| format!("{}-{}", parent.pid, parent.began))?,
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    Some(format!("{launcher}-{told}").chars().map(plain).take(LONGEST_NAME).collect())
}

fn parent() -> Option<Target> {
    Target::of(getppid()?.as_raw_nonzero().get())
}

/// The processes that a file names: a line for each, its number and when it began.
fn members(file: &File) -> Vec<Target> {
    let length = file.metadata().map_or(0, |found| found.len().min(LARGEST));
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    if file.read_exact_at(&mut bytes, 0).is_err() {
        return Vec::new();
    }
    let target = |line: &str| {
        let (pid, began) = line.split_once(' ')?;
        Some(Target { pid: pid.parse().ok()?, began: began.parse().ok()? })
    };
    String::from_utf8_lossy(&bytes).lines().filter_map(target).collect()
}

fn write(file: &File, members: &[Target]) -> io::Result<()> {
    let text: String = members.iter().map(|member| format!("{} {}\n", member.pid, member.began)).collect();
    file.set_len(0)?;
    file.write_all_at(text.as_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_by_their_variables() {
        let parent = || Some(Target { pid: 7, began: 900 });
        for (variables, name) in [
            (&[][..], None),
            (&[("SLURM_JOB_ID", "5")], None),
            (
                &[
                    ("OMPI_COMM_WORLD_RANK", "0"),
                    ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
                    ("PMIX_NAMESPACE", "28@1"),
                ],
                Some("OMPI_COMM_WORLD_RANK-28_1"),
            ),
            (&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "1")], None),
            (&[("PMI_RANK", "1"), ("PMI_SIZE", "4")], Some("PMI_RANK-7-900")),
            (&[("PMI_RANK", "1"), ("PMI_SIZE", "4"), ("PMI_JOBID", "3.0")], Some("PMI_RANK-3.0")),
            (
                &[
                    ("SLURM_PROCID", "0"),
                    ("SLURM_STEP_NUM_TASKS", "2"),
                    ("SLURM_JOB_ID", "5"),
                    ("SLURM_STEP_ID", "1"),
                ],
                Some("SLURM_PROCID-5.1"),
            ),
            (&[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_JOB_ID", "5")], None),
            // Ranks of an mpirun that Slurm started as one task for each node.
            (
                &[
                    ("SLURM_PROCID", "0"),
                    ("SLURM_STEP_NUM_TASKS", "1"),
                    ("OMPI_COMM_WORLD_RANK", "2"),
                    ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
                    ("PMIX_NAMESPACE", "9"),
                ],
                Some("OMPI_COMM_WORLD_RANK-9"),
            ),
        ] {
            let set = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            assert_eq!(job(&set, &parent).as_deref(), name, "{variables:?}");
        }
        let long = |name: &str| (name == "PMI_RANK" || name == "PMI_JOBID").then(|| "../".repeat(999));
        let name = job(&long, &parent).unwrap();
        assert!(name.len() == LONGEST_NAME && !name.contains('/'), "{name}");
    }

    #[test]
    fn files_of_jobs_are_read_whatever_is_in_them() {
        let file = tempfile::tempfile().unwrap();
        let all = [Target { pid: 3, began: 5 }, Target { pid: 4, began: 6 }];
        write(&file, &all).unwrap();
        assert_eq!(members(&file), all);
        write(&file, &all[..1]).unwrap();
        assert_eq!(members(&file), all[..1]);
        file.set_len(0).unwrap();
        file.write_all_at(b"x 1\n\xff\n9\n99999999999999999999 1\n8 2", 0).unwrap();
        assert_eq!(members(&file), [Target { pid: 8, began: 2 }]);
    }
}
