//! A further process in the namespaces of one that runs: what `exec` does in an instance, and what the ranks of one
//! node do that share a container.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use isles_sandbox::identity::Identity;
use isles_sandbox::setup::{Namespaces, RootFs, user_namespace_of_caller};
use isles_sandbox::signals::Signals;
use isles_sandbox::{Child, Setup};
use isles_spec::Workload;
use isles_spec::image::ContainerConfig;
use isles_store::Merged;

use crate::background::Target;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::plan::{Parts, plan};
use crate::run::{Foreground, attend};
use crate::start::{Fence, null, spawn};
use crate::step::Exit;
use crate::view::View;

impl Engine {
    /// Runs a process with the root and in the namespaces of `target`, on the caller's standard streams until it ends.
    /// Of the workload, what belongs to the container counts no more: its root, mounts, namespaces and limits. The
    /// process must have one thread.
    ///
    /// # Errors
    /// The target has ended, or belongs to somebody else; and as for [`Engine::run`].
    pub fn run_in(&self, target: Target, workload: &Workload, foreground: &Foreground<'_>) -> Result<Exit> {
        self.run_in_group(target, workload, foreground, None)
    }

    /// As [`Engine::run_in`], in the control group of this name, where there is one.
    pub(crate) fn run_in_group(
        &self,
        target: Target,
        workload: &Workload,
        foreground: &Foreground<'_>,
        group: Option<&str>,
    ) -> Result<Exit> {
        let signals = Signals::block().map_err(|e| Error::system("wait for signals", e))?;
        let mut child = self.start_in_group(target, workload, foreground, group, crate::terminal::size())?;
        Ok(attend(&mut child, workload, &signals, None, &|| {})?.into())
    }

    /// Starts it, with a terminal of this size where it has one.
    pub(crate) fn start_in_group(
        &self,
        target: Target,
        workload: &Workload,
        foreground: &Foreground<'_>,
        group: Option<&str>,
        size: (u16, u16),
    ) -> Result<Child> {
        self.start_with(target, workload, foreground, group, size, Vec::new())
    }

    /// The same with these descriptors as its third and further ones.
    pub(crate) fn start_with(
        &self,
        target: Target,
        workload: &Workload,
        foreground: &Foreground<'_>,
        group: Option<&str>,
        size: (u16, u16),
        further: Vec<OwnedFd>,
    ) -> Result<Child> {
        let wish = || format!("joining the process {}", target.pid);
        let (pid, joined) = open_namespaces(target.pid, Namespaces::of_process);
        // Looked at afterwards: what was opened is then of the one that was meant.
        if !target.lives() {
            return Err(Error::impossible(wish(), "it has ended"));
        }
        let joined = joined.map_err(|e| Error::impossible(wish(), e.to_string()))?;
        let root = format!("/proc/{pid}/root");
        let view = View::from(Merged::open(&[root.into()], self.store().ownership())?);
        let workload = &Workload { mounts: Vec::new(), devices: Vec::new(), ..workload.clone() };
        let image = ContainerConfig::default();
        let planned = plan(Parts {
            workload,
            image: &image,
            identity: self.identity(),
            prepared: Vec::new(),
            root: RootFs::Directory("/".into()),
            read_only_root: false,
            untrusted_root: false,
            view: &view,
            sources: Vec::new(),
            hostname: "",
            pid_of: &|name| Err(Error::NoContainer(name.to_owned())),
            extra: Vec::new(),
            interpreters: Vec::new(),
            terminal: workload.tty.then_some(size),
            warn: foreground.warn,
        })?;
        let mut setup = Setup {
            namespaces: joined,
            mounts: Vec::new(),
            devices: Vec::new(),
            masked_paths: Vec::new(),
            read_only_paths: Vec::new(),
            sysctls: Vec::new(),
            hostname: None,
            new_keyring: false,
            ..planned.setup
        };
        setup.process.create_cwd = false;
        setup.stdio.further = further;
        if !workload.interactive && !workload.tty {
            setup.stdio.stdin = Some(null()?);
        }
        if let Some(group) = group {
            let fence = Fence::leftover(group)?;
            let admitted = fence.admit(&mut setup);
            // It is the container's, which goes on.
            fence.keep();
            admitted?;
        }
        let child = spawn(&setup, &view)?;
        (foreground.started)(child.pid());
        Ok(child)
    }

    /// The user namespace of a container's process, for [`Foreground::user_namespace`]: `None` where it has ended, or has
    /// other IDs than the caller's own.
    pub fn user_namespace_of(&self, target: Target) -> Option<File> {
        if self.identity() != Identity::Single {
            return None;
        }
        let found = open_namespaces(target.pid, user_namespace_of_caller).1.ok();
        // Looked at afterwards: what was opened is then of the one that was meant.
        found.filter(|_| target.lives()).map(File::from)
    }
}

/// The namespaces of a process, or of the program that it stands before: nobody but root may look into an init of ours,
/// which is not the container's (CVE-2019-5736), but the program is in the same ones.
fn open_namespaces<T>(pid: i32, open: impl Fn(i32) -> io::Result<T>) -> (i32, io::Result<T>) {
    match open(pid) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let Some(program) = program_of(pid) else { return (pid, Err(e)) };
            match open(program.pid) {
                // The number may be another's by now.
                Ok(found) if program.lives() && parent(program.pid) == Some(pid) => (program.pid, Ok(found)),
                _ => (pid, Err(e)),
            }
        }
        other => (pid, other),
    }
}

/// The user namespace of a process, where it is not that of this one.
pub(crate) fn other_user_namespace(pid: i32) -> io::Result<Option<OwnedFd>> {
    use std::os::unix::fs::MetadataExt;
    let theirs = open_namespaces(pid, |pid| File::open(format!("/proc/{pid}/ns/user"))).1?;
    let (found, own) = (theirs.metadata()?, std::fs::metadata("/proc/self/ns/user")?);
    let same = (found.dev(), found.ino()) == (own.dev(), own.ino());
    Ok(if same { None } else { Some(theirs.into()) })
}

/// The program that an init of ours stands before.
pub(crate) fn program_of(pid: i32) -> Option<Target> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let program = Target::of(children.split_whitespace().next()?.parse().ok()?)?;
    (parent(program.pid) == Some(pid)).then_some(program)
}

/// The process that a process is a child of (proc_pid_status(5)).
fn parent(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_known() {
        let own = std::process::id() as i32;
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        assert_eq!(parent(pid), Some(own));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_ne!(parent(pid), Some(own));
        assert_eq!(parent(-1), None);
    }
}
