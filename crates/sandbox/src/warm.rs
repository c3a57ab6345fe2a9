//! A sandbox that stays when its program has ended, for the next program that wants the same one.
//!
//! An init holds the namespaces, and in them the root file system, /proc, /dev and /sys with all that is hidden and
//! protected there, which is most of what a start takes. Each program gets a copy of the mount namespace, to which its own
//! mounts are added.
//!
//! The next program must find what the first one has found. The root is an overlay that is written in memory; when a program
//! has ended, whoever keeps the sandbox asks whether it is [clean](WarmSandbox::is_clean): nothing was written to that memory,
//! to /dev/shm or to the folder of terminals, nothing is left of System V IPC or in message queues, and no process is left. One
//! that is not is thrown away, with all that runs in it. /dev cannot be written, and whatever else can is mounted anew for each
//! program. At any time there is one program in a sandbox, and nobody else.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isles_spec::Propagation;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{
    AtFlags, Dir, Mode, OFlags, RawDir, SeekFrom, Timestamps, fstatvfs, mkdirat, openat, statat, utimensat,
};

use crate::error::{SpawnError, Step};
use crate::plan::initial_user_namespace;
use crate::setup::{
    CgroupEntry, Mount, MountSource, Namespace, Prepared, PreparedSource, RootFs, Setup, Stdio, UserNs,
};
use crate::spawn::{Child, owned, spawn};
use crate::sys::{Errno, mount as m, process as p};

/// See the top of this module. Dropped, it ends, and all that runs in it.
#[derive(Debug)]
pub struct WarmSandbox {
    kind: WarmKind,
    init: Child,
    /// Its PID namespace, and that of this process.
    pub(crate) pids: OwnedFd,
    pub(crate) own_pids: OwnedFd,
    proc: OwnedFd,
    own_ipc: OwnedFd,
    queues: Option<OwnedFd>,
    /// What can be written in it: the memory of its root, /dev/shm, and the folder of terminals.
    written: Vec<Fresh>,
}

/// What the programs of one sandbox agree in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmKind {
    lowers: Vec<PathBuf>,
    size: Option<u64>,
    userxattr: bool,
    hostname: Option<String>,
    domainname: Option<String>,
    /// That are there already.
    mounts: Vec<Mount>,
    masked: Vec<String>,
    read_only: Vec<String>,
    /// Where each program mounts something of its own, and whether that is a folder.
    places: Vec<(PathBuf, bool)>,
}

/// A file system in memory, and what it was like before any program.
#[derive(Debug)]
struct Fresh {
    memory: OwnedFd,
    /// Blocks and inodes: whatever is written, made or hidden takes some.
    free: (u64, u64),
    /// All that was made for mounts, and what tells whether it has changed.
    made: Vec<(PathBuf, Looks)>,
}

/// Mode, owner, group, size, times of change of the content and of the inode.
type Looks = (u32, u32, u32, i64, (i64, u64), (i64, u64));

impl WarmSandbox {
    /// A sandbox for this program, which is of that kind, and others such as it; `None` where they can have none: in a user
    /// namespace other than the first.
    ///
    /// # Errors
    /// As those of [`crate::spawn`].
    pub fn new(setup: &Setup, kind: WarmKind) -> Result<Option<WarmSandbox>, SpawnError> {
        let Some(Prepared { place, name, source: PreparedSource::Memory { folders, .. } }) =
            setup.prepared.first()
        else {
            return Ok(None);
        };
        if !initial_user_namespace() {
            // Some file systems cannot be made there, and those of the host take their place.
            return Ok(None);
        }
        let failed = |cause| SpawnError { step: Step::Prepare, object: "warm sandbox".to_owned(), cause };
        let memory = memory(kind.size, folders).map_err(failed)?;
        let mut bare = Setup::new(setup.root.clone(), &[]);
        bare.prepared = vec![Prepared {
            place: place.clone(),
            source: PreparedSource::Mount(memory.try_clone().map_err(failed)?),
            name: name.clone(),
        }];
        bare.hostname.clone_from(&kind.hostname);
        bare.domainname.clone_from(&kind.domainname);
        bare.mounts.clone_from(&kind.mounts);
        for mount in &mut bare.mounts {
            mount.flags.read_only |= mount.source == MountSource::Dev;
        }
        let place = |(path, directory): &(PathBuf, bool)| {
            Mount::new(path, MountSource::Place { directory: *directory })
        };
        bare.mounts.extend(kind.places.iter().map(place));
        bare.masked_paths.clone_from(&kind.masked);
        bare.read_only_paths.clone_from(&kind.read_only);
        bare.process.init = true;
        bare.process.init_stays = true;
        let v1_procs: io::Result<_> = setup.cgroup.v1_procs.iter().map(OwnedFd::try_clone).collect();
        bare.cgroup = CgroupEntry {
            v2: setup.cgroup.v2.as_ref().map(OwnedFd::try_clone).transpose().map_err(failed)?,
            v1_procs: v1_procs.map_err(failed)?,
        };
        let null = || File::options().read(true).write(true).open("/dev/null").map(|f| Some(f.into()));
        bare.stdio = Stdio {
            stdin: null().map_err(failed)?,
            stdout: null().map_err(failed)?,
            stderr: null().map_err(failed)?,
            further: Vec::new(),
        };
        let mut init = spawn(&bare)?;
        let has = |path: &str| kind.mounts.iter().any(|mount| mount.destination == Path::new(path));
        let held = || -> io::Result<_> {
            let of = |path: &str| File::open(format!("/proc/{}/{path}", init.pid())).map(OwnedFd::from);
            let own = |name: &str| File::open(format!("/proc/self/ns/{name}")).map(OwnedFd::from);
            let proc = of("root/proc")?;
            if !only_init(proc.as_fd(), Duration::from_secs(PATIENCE.cast_unsigned())) {
                return Err(io::Error::other("its init has a child that does not end"));
            }
            let mut written = vec![Fresh::of(memory)?];
            for path in ["/dev/shm", "/dev/pts"] {
                if has(path) {
                    written.push(Fresh::of(of(&format!("root{path}"))?)?);
                }
            }
            let queues = has("/dev/mqueue").then(|| of("root/dev/mqueue")).transpose()?;
            Ok((of("ns/pid")?, own("pid")?, own("ipc")?, proc, queues, written))
        };
        match held() {
            Ok((pids, own_pids, own_ipc, proc, queues, written)) => {
                Ok(Some(WarmSandbox { kind, init, pids, own_pids, proc, own_ipc, queues, written }))
            }
            Err(e) => {
                let _ = init.kill(libc::SIGKILL);
                let _ = init.wait();
                Err(failed(e))
            }
        }
    }

    /// Whether this is a sandbox for programs of that kind.
    pub fn fits(&self, kind: &WarmKind) -> bool {
        *kind == self.kind
    }

    /// Whether it is as it was before the first program. No program is in it any more.
    pub fn is_clean(&self) -> bool {
        only_init(self.proc.as_fd(), Duration::from_millis(1))
            && self.written.iter().all(Fresh::holds)
            && self.queues.as_ref().is_none_or(|queues| is_empty(queues.as_fd()))
            && self.has_no_ipc()
    }

    /// Whether there is nothing of System V IPC.
    fn has_no_ipc(&self) -> bool {
        if p::setns(self.holder(), libc::CLONE_NEWIPC).is_err() {
            return false;
        }
        let none = matches!(p::system_v_objects(), Ok(0));
        if p::setns(self.own_ipc.as_raw_fd(), libc::CLONE_NEWIPC).is_err() {
            // In a container's namespaces this process must not go on.
            std::process::abort();
        }
        none
    }

    /// The process that holds all of its namespaces.
    pub(crate) fn holder(&self) -> i32 {
        self.init.pidfd().as_raw_fd()
    }

    /// Whether a mount is there already.
    pub(crate) fn has(&self, mount: &Mount) -> bool {
        self.kind.mounts.contains(mount)
    }
}

impl Drop for WarmSandbox {
    fn drop(&mut self) {
        let _ = self.init.kill(libc::SIGKILL);
        // It ends when all others have, and were waited for.
        let timeout = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&self.init.pidfd(), PollFlags::IN)], Some(&timeout));
        if ended.is_ok_and(|count| count > 0) {
            let _ = self.init.wait();
        }
    }
}

/// Seconds that the beginning and the end of a sandbox are waited for: forgetting to wait for a program in it would be for
/// ever.
const PATIENCE: i64 = 10;

/// A tmpfs with these folders, attached nowhere.
fn memory(size: Option<u64>, folders: &[String]) -> io::Result<OwnedFd> {
    let make = || {
        let context = m::fsopen_named(c"tmpfs")?;
        if let Some(size) = size {
            let size = CString::new(size.to_string()).map_err(|_| Errno(libc::EINVAL))?;
            m::set_string(&context, c"size", &size)?;
        }
        m::set_string(&context, c"mode", c"755")?;
        m::create(&context, m::ATTR_NOSUID | m::ATTR_NODEV)
    };
    let mount = owned(make()?);
    for folder in folders {
        mkdirat(&mount, folder, Mode::from(0o755))?;
    }
    Ok(mount)
}

/// Whether a /proc shows one process, now or within this time: others that have ended may not have been waited for yet.
fn only_init(proc: BorrowedFd<'_>, patience: Duration) -> bool {
    let mut pause = Duration::from_micros(20);
    let mut waited = Duration::ZERO;
    loop {
        if shows_only_init(proc).unwrap_or(false) {
            return true;
        }
        if waited >= patience {
            return false;
        }
        std::thread::sleep(pause);
        waited += pause;
        pause *= 2;
    }
}

/// Where processes begin in the folder /proc, after all that is there in any case. They come in the order of their numbers, after
/// `self` and `thread-self`. A kernel that has another order shows something else here, and all of it is read.
const PROCESSES: u64 = 256;

fn shows_only_init(proc: BorrowedFd<'_>) -> io::Result<bool> {
    let mut shown = Vec::with_capacity(3);
    each_entry(proc, PROCESSES, |name| {
        shown.push(name.to_owned());
        shown.len() <= 3
    })?;
    if shown == [&b"self"[..], b"thread-self", b"1"] {
        return Ok(true);
    }
    let mut processes = 0;
    each_entry(proc, 0, |name| {
        processes += usize::from(name.first().is_some_and(u8::is_ascii_digit));
        true
    })?;
    Ok(processes == 1)
}

fn is_empty(folder: BorrowedFd<'_>) -> bool {
    let mut empty = true;
    let read = each_entry(folder, 0, |name| {
        empty &= name == b"." || name == b"..";
        empty
    });
    read.is_ok() && empty
}

/// Gives the entries of a folder that is open from this place in it on, as long as more are wanted.
fn each_entry(
    folder: BorrowedFd<'_>,
    from: u64,
    mut wants_more: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    rustix::fs::seek(folder, SeekFrom::Start(from))?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(folder, &mut buffer);
    while let Some(entry) = entries.next() {
        if !wants_more(entry?.file_name().to_bytes()) {
            break;
        }
    }
    Ok(())
}

impl Fresh {
    fn of(memory: OwnedFd) -> io::Result<Fresh> {
        let mut made = Vec::new();
        let mut open = vec![PathBuf::from(".")];
        while let Some(path) = open.pop() {
            // The clock of files may stand still for some milliseconds, so what changes soon must not look the same.
            let past = Timespec { tv_sec: 1, tv_nsec: 0 };
            let omitted = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
            let times = Timestamps { last_access: omitted, last_modification: past };
            utimensat(&memory, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            let looks = looks(memory.as_fd(), &path)?;
            if looks.0 & libc::S_IFMT == libc::S_IFDIR {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                for entry in Dir::new(openat(&memory, &path, flags, Mode::empty())?)? {
                    let entry = entry?;
                    let name = entry.file_name().to_bytes();
                    if name != b"." && name != b".." {
                        open.push(path.join(OsStr::from_bytes(name)));
                    }
                }
            }
            made.push((path, looks));
        }
        Ok(Fresh { free: free(memory.as_fd())?, memory, made })
    }

    /// Whether it still is so.
    fn holds(&self) -> bool {
        let memory = self.memory.as_fd();
        free(memory).is_ok_and(|now| now == self.free)
            && self.made.iter().all(|(path, before)| looks(memory, path).is_ok_and(|now| now == *before))
    }
}

fn free(memory: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let statistics = fstatvfs(memory)?;
    Ok((statistics.f_bfree, statistics.f_ffree))
}

fn looks(memory: BorrowedFd<'_>, path: &Path) -> io::Result<Looks> {
    let stat = statat(memory, path, AtFlags::SYMLINK_NOFOLLOW)?;
    let (content, inode) = ((stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec));
    Ok((stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size, content, inode))
}

impl WarmKind {
    /// The kind of a program; `None` where it can have no warm sandbox. It can where the root is an overlay that is written in
    /// memory, the user namespace is that of this process, all other namespaces are new, and no mount is shared with the host.
    pub fn of(setup: &Setup) -> Option<WarmKind> {
        let RootFs::Overlay { lowers, upper, work, userxattr, foreign: false, .. } = &setup.root else {
            return None;
        };
        let [Prepared { place, source: PreparedSource::Memory { size, .. }, .. }] = &setup.prepared[..]
        else {
            return None;
        };
        let namespaces = &setup.namespaces;
        let new = |namespace: &Namespace| matches!(namespace, Namespace::New);
        let usual = !lowers.is_empty()
            && upper.parent() == Some(place)
            && work.parent() == Some(place)
            && new(&namespaces.mount)
            && new(&namespaces.pid)
            && new(&namespaces.network)
            && new(&namespaces.ipc)
            && new(&namespaces.uts)
            && new(&namespaces.cgroup)
            && matches!(namespaces.user, UserNs::Host)
            && namespaces.time.is_none()
            && namespaces.time_joined.is_none()
            && namespaces.network_messages.is_none()
            && !setup.read_only_root
            && !setup.untrusted_root
            && setup.root_propagation.is_none()
            && setup.devices.is_empty()
            && setup.sysctls.is_empty()
            && setup.interpreters.is_empty()
            && setup.process.terminal.is_none()
            && !setup.process.init
            && !setup.gate.before_root
            && setup.gate.before_exec.is_none();
        if !usual {
            return None;
        }
        let (mut mounts, mut places) = (Vec::new(), Vec::<(PathBuf, bool)>::new());
        for mount in &setup.mounts {
            let at = mount.destination.as_path();
            let directory = match &mount.source {
                MountSource::Proc | MountSource::Sysfs | MountSource::Cgroup => None,
                MountSource::Dev | MountSource::Devpts | MountSource::Mqueue => None,
                MountSource::Bind { source, .. } => {
                    let private = [None, Some(Propagation::Private), Some(Propagation::Rprivate)];
                    if !private.contains(&mount.propagation) || mount.idmap.is_some() {
                        return None;
                    }
                    Some(source.is_dir())
                }
                MountSource::Filesystem { kind, .. } if kind == "tmpfs" && !mount.flags.copy_up => {
                    (at != Path::new("/dev/shm")).then_some(true)
                }
                _ => return None,
            };
            match directory {
                None if STANDARD.iter().any(|path| at == Path::new(path)) => mounts.push(mount.clone()),
                None => return None,
                Some(_) if places.iter().any(|(place, _)| at.starts_with(place)) => {}
                Some(directory) => places.push((at.to_owned(), directory)),
            }
        }
        Some(WarmKind {
            lowers: lowers.clone(),
            size: *size,
            userxattr: *userxattr,
            hostname: setup.hostname.clone(),
            domainname: setup.domainname.clone(),
            mounts,
            masked: setup.masked_paths.clone(),
            read_only: setup.read_only_paths.clone(),
            places,
        })
    }
}

/// Where a sandbox may have what is the same for all programs: nothing of these is below what one of them mounts.
const STANDARD: [&str; 7] =
    ["/proc", "/sys", "/sys/fs/cgroup", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"];
