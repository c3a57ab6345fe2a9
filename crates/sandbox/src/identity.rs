//! Whose files these are: what this process may own and map (user_namespaces(7), subuid(5)).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use isles_spec::IdMapping;

use crate::plan::initial_user_namespace;
use crate::sys::process as p;
use crate::sys::{self, Errno};

/// How this process stands to user and group IDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// Real root: chown(2) and mknod(2) work.
    Root,
    /// Root of a user namespace with a range of IDs: chown works inside the range.
    Mapped,
    /// One ID. Containers map their root to it.
    Single,
}

/// Looks at the credentials and the namespace of this process.
pub fn detect() -> Identity {
    // SAFETY: geteuid(2) has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        return Identity::Single;
    }
    if initial_user_namespace() {
        // Root that gave its rights away is an ordinary user.
        const CHOWN_AND_ADMIN: u64 = 1 | 1 << 21;
        let able = p::capget().is_ok_and(|(effective, _, _)| effective & CHOWN_AND_ADMIN == CHOWN_AND_ADMIN);
        return if able { Identity::Root } else { Identity::Single };
    }
    let ids = |file: &str| -> u64 {
        crate::proc_file::read(file)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
            .sum()
    };
    if ids("/proc/self/uid_map") > 1 && ids("/proc/self/gid_map") > 1 {
        Identity::Mapped
    } else {
        Identity::Single
    }
}

/// Whether this process is root of the machine itself, with or without its rights.
pub fn is_real_root() -> bool {
    // SAFETY: geteuid(2) has no preconditions and cannot fail.
    (unsafe { libc::geteuid() }) == 0 && initial_user_namespace()
}

/// A range of subordinate IDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subordinate {
    pub first: u32,
    pub count: u32,
}

/// The first range that `file` (/etc/subuid or /etc/subgid) gives to the user of that name or ID.
pub fn subordinate(file: &Path, name: Option<&str>, id: u32) -> Option<Subordinate> {
    let text = fs::read_to_string(file).ok()?;
    let id = id.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        if owner != id && Some(owner) != name {
            return None;
        }
        let first = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        (count > 0).then_some(Subordinate { first, count })
    })
}

/// Why a mapped namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// No range is there, or no program to map it: go on with one ID.
    #[error("no subordinate IDs for this user")]
    NoRange,
    #[error("cannot make a user namespace")]
    Unshare(#[source] io::Error),
    #[error("{program} failed: {message}")]
    Helper { program: &'static str, message: String },
}

/// The map of root to the caller and of 1 and up to a subordinate range.
pub fn ranged_map(own: u32, range: Subordinate) -> Vec<IdMapping> {
    vec![
        IdMapping { inside: 0, outside: own, length: 1 },
        IdMapping { inside: 1, outside: range.first, length: range.count },
    ]
}

/// Whether [`enter_mapped`] has a range to map and the programs that map it.
pub fn has_range() -> bool {
    // SAFETY: geteuid(2) has no preconditions and cannot fail.
    ranges(unsafe { libc::geteuid() }).is_some()
}

/// What /etc/subuid and /etc/subgid give to a user, where there are programs that map it.
fn ranges(uid: u32) -> Option<(Subordinate, Subordinate)> {
    let name = user_name(uid);
    let uids = subordinate(Path::new("/etc/subuid"), name.as_deref(), uid)?;
    let gids = subordinate(Path::new("/etc/subgid"), name.as_deref(), uid)?;
    ["newuidmap", "newgidmap"].iter().all(|program| on_path(program).next().is_some()).then_some((uids, gids))
}

/// Moves this process into a user and mount namespace in which it is root and owns the range that
/// /etc/subuid and /etc/subgid give it. The process must have one thread. `newuidmap` and `newgidmap` run
/// once, from a helper that stays outside.
///
/// # Errors
/// After [`EnterError::Helper`] the process is in a namespace all the same, with its own ID as root; after the
/// others it is where it was.
pub fn enter_mapped() -> Result<(), EnterError> {
    // SAFETY: geteuid(2) and getegid(2) have no preconditions and cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let (uids, gids) = ranges(uid).ok_or(EnterError::NoRange)?;
    let os = |e: Errno| EnterError::Unshare(e.into());
    let (ready_read, ready_write) = sys::pipe().map_err(os)?;
    let (done_read, done_write) = sys::pipe().map_err(os)?;
    let target = std::process::id();
    // SAFETY: this process has one thread, so the child may allocate.
    let helper = unsafe { libc::fork() };
    if helper < 0 {
        return Err(EnterError::Unshare(io::Error::last_os_error()));
    }
    if helper == 0 {
        drop(ready_write);
        let mut byte = [0];
        if sys::read(ready_read.0, &mut byte) != Ok(1) {
            p::exit(0);
        }
        let said = match write_maps(target, uid, uids, gid, gids) {
            Ok(()) => String::new(),
            Err(EnterError::Helper { program, message }) => format!("{program} {message}"),
            Err(other) => other.to_string(),
        };
        let _ = sys::write_all(done_write.0, said.as_bytes());
        p::exit(0);
    }
    drop(ready_read);
    drop(done_write);
    let unshared = p::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS).map_err(os);
    if unshared.is_ok() {
        let _ = sys::write_all(ready_write.0, b"g");
    }
    drop(ready_write);
    let mut said = Vec::new();
    let mut room = [0u8; 512];
    while let Ok(n @ 1..) = sys::read(done_read.0, &mut room) {
        said.extend_from_slice(&room[..n]);
    }
    // SAFETY: the helper is this process's own child; the status is not wanted.
    unsafe { libc::waitpid(helper, std::ptr::null_mut(), 0) };
    unshared?;
    if !said.is_empty() {
        let text = String::from_utf8_lossy(&said).into_owned();
        let program = if text.starts_with("newgidmap") { "newgidmap" } else { "newuidmap" };
        let message = text.strip_prefix(program).unwrap_or(&text).trim().to_owned();
        // There is no way back out of the namespace, but one ID can always be mapped.
        map_own_id(uid, gid).map_err(EnterError::Unshare)?;
        return Err(EnterError::Helper { program, message });
    }
    p::set_gid(0).map_err(os)?;
    p::set_uid(0).map_err(os)?;
    p::set_groups(&[]).map_err(os)?;
    crate::sys::mount::propagation(libc::MS_SLAVE | libc::MS_REC).map_err(os)
}

/// Maps root of the namespace that this process has just made to the caller, where nothing is mapped yet.
fn map_own_id(uid: u32, gid: u32) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    for (file, id) in [("/proc/self/uid_map", uid), ("/proc/self/gid_map", gid)] {
        if fs::read_to_string(file)?.trim().is_empty() {
            fs::write(file, format!("0 {id} 1"))?;
        }
    }
    Ok(crate::sys::mount::propagation(libc::MS_SLAVE | libc::MS_REC)?)
}

/// Moves this process into the user namespace that `pid`, a process of the same user, got from [`enter_mapped`], and into
/// a mount namespace of its own there. What both start can then see and join each other. The process must have one
/// thread.
pub fn enter_mapped_of(pid: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let namespace = fs::File::open(format!("/proc/{pid}/ns/user"))?;
    p::setns(namespace.as_raw_fd(), libc::CLONE_NEWUSER)?;
    p::unshare(libc::CLONE_NEWNS)?;
    p::set_gid(0)?;
    p::set_uid(0)?;
    p::set_groups(&[])?;
    Ok(crate::sys::mount::propagation(libc::MS_SLAVE | libc::MS_REC)?)
}

fn write_maps(pid: u32, uid: u32, uids: Subordinate, gid: u32, gids: Subordinate) -> Result<(), EnterError> {
    for (program, own, range) in [("newuidmap", uid, uids), ("newgidmap", gid, gids)] {
        let mut command = Command::new(program);
        command.arg(pid.to_string());
        for m in ranged_map(own, range) {
            command.args([m.inside.to_string(), m.outside.to_string(), m.length.to_string()]);
        }
        let output = command.output().map_err(|e| EnterError::Helper { program, message: e.to_string() })?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(EnterError::Helper { program, message });
        }
    }
    Ok(())
}

/// The files of a program's name in the folders of PATH, in their order.
pub fn on_path(program: &str) -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let files: Vec<PathBuf> = std::env::split_paths(&path).map(|dir| dir.join(program)).collect();
    files.into_iter().filter(|file| file.is_file())
}

/// The name of a user in /etc/passwd.
pub fn user_name(uid: u32) -> Option<String> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == uid).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_subuid_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("subuid");
        fs::write(&file, "other:1:5\nme:100000:65536\n4242:300000:10\nbad:x:y\nnone:5:0\n").unwrap();
        let range = |name, id| subordinate(&file, name, id).map(|r| (r.first, r.count));
        assert_eq!(range(Some("me"), 1000), Some((100_000, 65_536)));
        assert_eq!(range(None, 4242), Some((300_000, 10)));
        assert_eq!(range(Some("bad"), 7), None);
        assert_eq!(range(Some("none"), 7), None);
        assert_eq!(range(None, 7), None);
    }
}
