//! Between clone3 and exec. Nothing here allocates, locks or panics: strings are in the [`Plan`], scratch
//! space is on the stack, and an error is a step, an index into the plan, and an errno.

use std::ffi::{CStr, CString};

use crate::credentials::{filters, user};
use crate::dev;
use crate::error::Step;
use crate::plan::{Plan, PlannedRoot};
use crate::root::{self, PATH_ROOM, mount_point};
use crate::sys::process::{self as p, CLONE_NEWTIME};
use crate::sys::{self, Errno};

/// What the child says before it gives up: step, errno, index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failure {
    pub step: Step,
    pub errno: i32,
    pub index: u32,
}

impl Failure {
    pub(crate) const LEN: usize = 9;
    /// Set in the first byte of what did not end the start.
    pub(crate) const WARNING: u8 = 0x80;

    pub(crate) fn bytes(self) -> [u8; Failure::LEN] {
        let (e, i) = (self.errno.to_le_bytes(), self.index.to_le_bytes());
        [self.step as u8, e[0], e[1], e[2], e[3], i[0], i[1], i[2], i[3]]
    }

    pub(crate) fn from_bytes(b: &[u8; Failure::LEN]) -> Self {
        Failure {
            step: Step::from_byte(b[0] & !Failure::WARNING),
            errno: i32::from_le_bytes([b[1], b[2], b[3], b[4]]),
            index: u32::from_le_bytes([b[5], b[6], b[7], b[8]]),
        }
    }
}

pub(crate) type Done<T = ()> = Result<T, Failure>;

/// Names the step of an error.
pub(crate) trait At<T> {
    fn at(self, step: Step) -> Done<T>;
    fn at_index(self, step: Step, index: usize) -> Done<T>;
}

impl<T> At<T> for sys::Result<T> {
    fn at(self, step: Step) -> Done<T> {
        self.at_index(step, 0)
    }

    fn at_index(self, step: Step, index: usize) -> Done<T> {
        self.map_err(|Errno(errno)| Failure { step, errno, index: index as u32 })
    }
}

/// The ends of the pipes and sockets that the child has.
pub(crate) struct Ends {
    /// Failures go here; it closes when the program starts.
    pub report: i32,
    /// A byte comes from here for each gate that is open, and when the parent has helped. -1 where neither is.
    pub go: i32,
    /// A byte goes here when a gate is reached; the terminal goes here as well. -1 where nobody listens.
    pub news: i32,
    /// The parent's memory is also the child's, until that runs its program.
    pub shares_memory: bool,
}

/// The whole start, in order.
pub(crate) fn start(plan: &Plan<'_>, ends: &Ends) -> ! {
    let Err(failure) = steps(plan, ends);
    // After a gate nobody may be left who reads.
    // SAFETY: ignoring a signal has no preconditions.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let _ = sys::write_all(ends.report, &failure.bytes());
    p::exit(if failure.step == Step::Exec { 127 } else { 125 })
}

fn steps(plan: &Plan<'_>, ends: &Ends) -> Done<std::convert::Infallible> {
    // First of all, so that the rest of the start counts and is bounded as well.
    for group in &plan.setup.cgroup.v1_procs {
        use std::os::fd::AsRawFd;
        // 0 is whoever writes. What counts is the right of whoever has opened the file (cgroups(7)).
        sys::write_all(group.as_raw_fd(), b"0").at(Step::EnterCgroup)?;
    }
    if plan.parent_helps() {
        wait_for_go(ends)?;
    }
    // Early as well: what a server in the parent serves would be waited for when that is gone.
    die_with_parent(plan, ends)?;
    ids(plan)?;
    time(plan)?;
    if let Some(score) = &plan.oom {
        write_own(plan, c"self/oom_score_adj", score).at(Step::OomScore)?;
    }
    let owner_may_look = plan.setup.gate.open_to_owner;
    if let Some(profile) = &plan.apparmor {
        // Kernels before 5.8 have one file for all security modules.
        match write_own(plan, c"self/attr/apparmor/exec", profile) {
            Err(Errno(libc::ENOENT)) => write_own(plan, c"self/attr/exec", profile),
            other => other,
        }
        .at(Step::AppArmor)?;
    }
    // Nobody of the container may look into this process, or trace it, while it is half way in (CVE-2019-5736).
    // Not earlier: the files of /proc/self, the maps among them, would be root's.
    // In the caller's memory, and as the caller, there is nobody else who could; root stays hidden from then on, since a
    // child may have become somebody else in the same memory.
    if !(ends.shares_memory && plan.maps_by_child) {
        p::prctl(libc::PR_SET_DUMPABLE, 0).at(Step::Prepare)?;
    }
    if plan.setup.new_keyring {
        // Without keyrings in the kernel there is nothing to share either. 1 is KEYCTL_JOIN_SESSION_KEYRING.
        // SAFETY: a null name asks for an anonymous keyring.
        let _ = unsafe { libc::syscall(libc::SYS_keyctl, 1, 0usize) };
    }
    if plan.process.new_session || plan.process.terminal.is_some() {
        // SAFETY: setsid(2) has no preconditions; a process that leads its group already stays in its session.
        unsafe { libc::setsid() };
    }
    names(plan)?;
    if plan.new_network {
        p::loopback_up().at(Step::Loopback)?;
        if let Some(messages) = &plan.setup.namespaces.network_messages {
            crate::network::set_up(messages, ends.news)?;
        }
    }
    if plan.setup.gate.before_root {
        p::prctl(libc::PR_SET_DUMPABLE, owner_may_look.into()).at(Step::Gate)?;
        tell(ends, b'r');
        wait_for_go(ends)?;
        p::prctl(libc::PR_SET_DUMPABLE, 0).at(Step::Gate)?;
    }
    if plan.new_mount {
        let root = match plan.warm {
            Some(warm) => root::of_warm(plan, warm)?,
            None => root::mount(plan)?,
        };
        for (index, mount) in plan.mounts.iter().enumerate() {
            match root::place(plan, root.0, mount, index) {
                Err(failure) if mount.optional => warn(ends, failure),
                other => other?,
            }
        }
        dev::devices(plan, root.0)?;
        root::seal(plan)?;
        root::sysctls(plan)?;
        root::cover(plan, root.0)?;
        root::enter(plan, &root)?;
    } else if let PlannedRoot::Change(path) = &plan.root {
        // In somebody else's mount namespace nothing is mounted, and the root can only be changed.
        let root = sys::open(path, libc::O_PATH | libc::O_DIRECTORY, 0).at(Step::Root)?;
        sys::fchdir(root.0).at(Step::PivotRoot)?;
        sys::chroot(c".").at(Step::PivotRoot)?;
        sys::chdir(c"/").at(Step::PivotRoot)?;
    }
    streams(plan, ends)?;
    scheduling(plan)?;
    for (index, (resource, soft, hard)) in plan.rlimits.iter().enumerate() {
        p::set_rlimit(*resource, *soft, *hard).at_index(Step::Rlimit, index)?;
    }
    if let Some(mask) = plan.process.umask {
        // SAFETY: umask(2) cannot fail.
        unsafe { libc::umask(mask) };
    }
    crate::interpreter::register(&plan.interpreters, ends)?;
    user(plan)?;
    // Again, because the change of user clears it.
    die_with_parent(plan, ends)?;
    working_directory(plan)?;
    if plan.process.init {
        crate::init::become_init(plan, ends.report);
        if plan.setup.process.args.is_empty() {
            // The end of the report says that all is well.
            p::exit(0);
        }
    }
    if !plan.process.keep_descriptors {
        p::close_on_exec_from(3 + plan.setup.stdio.further.len() as u32).at(Step::Streams)?;
    }
    if plan.process.no_new_privileges {
        p::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).at(Step::NoNewPrivileges)?;
    }
    // A listener is handed over while somebody is there to take it; other filters come as late as they can.
    let early = plan.setup.gate.before_exec.is_some() && plan.process.seccomp.iter().any(|f| f.listens());
    if early {
        filters(plan, ends)?;
    }
    gate(plan, ends)?;
    reset_signals();
    let first = first_candidate(plan);
    if !early {
        filters(plan, ends)?;
    }
    exec(plan, first)
}

fn die_with_parent(plan: &Plan<'_>, ends: &Ends) -> Done {
    if plan.setup.die_with_parent {
        p::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64).at(Step::Prepare)?;
        // The parent may be gone already: then nobody reads reports.
        let mut poll = libc::pollfd { fd: ends.report, events: 0, revents: 0 };
        // SAFETY: the structure lives.
        if unsafe { libc::poll(&mut poll, 1, 0) } > 0 && poll.revents & libc::POLLERR != 0 {
            p::exit(125);
        }
    }
    Ok(())
}

/// Reports what goes on all the same.
fn warn(ends: &Ends, failure: Failure) {
    let mut bytes = failure.bytes();
    bytes[0] |= Failure::WARNING;
    let _ = sys::write_all(ends.report, &bytes);
}

pub(crate) fn wait_for_go(ends: &Ends) -> Done {
    let mut byte = [0];
    match sys::read(ends.go, &mut byte).at(Step::Gate)? {
        1 => Ok(()),
        // The parent is gone or gave up.
        _ => p::exit(125),
    }
}

pub(crate) fn tell(ends: &Ends, word: u8) {
    if ends.news >= 0 {
        let _ = sys::write_all(ends.news, &[word]);
    }
}

/// Writes a file of this process in the caller's /proc, whichever root and namespaces this process is in: a joined
/// container's /proc may be anything (CVE-2019-19921, CVE-2025-52881).
fn write_own(plan: &Plan<'_>, path: &CStr, bytes: &[u8]) -> sys::Result<()> {
    use std::os::fd::AsRawFd;
    let file = sys::open_in_root(plan.proc.as_raw_fd(), path, libc::O_WRONLY)?;
    sys::write_all(file.0, bytes)
}

fn ids(plan: &Plan<'_>) -> Done {
    if let Some((uids, gids)) = &plan.maps {
        if plan.maps_by_child {
            // Without this a process could shed a group that is there to deny it something (CVE-2014-8989).
            match write_own(plan, c"self/setgroups", b"deny") {
                Ok(()) | Err(Errno(libc::ENOENT)) => {}
                Err(e) => return Err(e).at(Step::MapIds),
            }
            write_own(plan, c"self/gid_map", gids).at(Step::MapIds)?;
            write_own(plan, c"self/uid_map", uids).at(Step::MapIds)?;
        } else if plan.become_root {
            p::set_groups(&[]).at(Step::BecomeRoot)?;
        }
        if plan.become_root {
            p::set_gid(0).at(Step::BecomeRoot)?;
            p::set_uid(0).at(Step::BecomeRoot)?;
        }
    }
    Ok(())
}

fn time(plan: &Plan<'_>) -> Done {
    match &plan.time_offsets {
        Some(lines) => {
            // Whoever enters a time namespace freezes its clocks, so this process only prepares it: its children
            // and, since Linux 6.2, the program that it becomes are in it.
            p::unshare(CLONE_NEWTIME as i32).at(Step::TimeOffsets)?;
            write_own(plan, c"self/timens_offsets", lines).at(Step::TimeOffsets)
        }
        None => Ok(()),
    }
}

fn names(plan: &Plan<'_>) -> Done {
    if let Some(name) = &plan.hostname {
        // SAFETY: the name lives and has the length that is given.
        sys::check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into())
            .at(Step::Hostname)?;
    }
    if let Some(name) = &plan.domainname {
        // SAFETY: the name lives and has the length that is given.
        sys::check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into())
            .at(Step::Hostname)?;
    }
    Ok(())
}

fn streams(plan: &Plan<'_>, ends: &Ends) -> Done {
    if let Some((rows, columns)) = plan.process.terminal {
        return crate::terminal::in_child(ends.news, rows, columns, plan.new_mount).at(Step::Terminal);
    }
    use std::os::fd::AsRawFd;
    let stdio = &plan.setup.stdio;
    // The givers may themselves be 0 to 2: lift them out of the way first.
    let mut lifted = [-1; 3];
    for (slot, given) in lifted.iter_mut().zip([&stdio.stdin, &stdio.stdout, &stdio.stderr]) {
        if let Some(fd) = given {
            // SAFETY: fcntl(2) of numbers has no memory effects.
            *slot = sys::check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 64) }.into())
                .at(Step::Streams)? as i32;
        }
    }
    for (target, fd) in lifted.into_iter().enumerate() {
        if fd >= 0 {
            p::dup_to(fd, target as i32).at(Step::Streams)?;
        } else {
            // A stream that the caller had closed is /dev/null, never the first file that is opened later.
            // SAFETY: fcntl(2) of numbers has no memory effects.
            if unsafe { libc::fcntl(target as i32, libc::F_GETFD) } < 0 {
                let null = sys::open(c"/dev/null", libc::O_RDWR, 0).at(Step::Streams)?;
                p::dup_to(null.0, target as i32).at(Step::Streams)?;
                if null.0 == target as i32 {
                    std::mem::forget(null);
                }
            }
        }
    }
    for (index, fd) in stdio.further.iter().enumerate() {
        p::dup_to(fd.as_raw_fd(), 3 + index as i32).at(Step::Streams)?;
    }
    Ok(())
}

fn scheduling(plan: &Plan<'_>) -> Done {
    let s = &plan.process.scheduling;
    if let Some((class, level)) = s.io_priority {
        let value = i64::from(class) << 13 | i64::from(level);
        // SAFETY: the call takes numbers; 1 is IOPRIO_WHO_PROCESS.
        sys::check(unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, value) }).at(Step::Scheduling)?;
    }
    if let Some(policy) = &s.policy {
        let attr: [u64; 6] = [
            48 | u64::from(policy.policy) << 32,
            policy.flags,
            u64::from(policy.nice as u32) | u64::from(policy.priority) << 32,
            policy.runtime,
            policy.deadline,
            policy.period,
        ];
        // SAFETY: the array has the layout of the first 48 bytes of struct sched_attr, and lives.
        sys::check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attr.as_ptr(), 0) })
            .at(Step::Scheduling)?;
    }
    if let Some(cpus) = &s.affinity {
        let mut mask = [0u64; 16];
        for cpu in cpus {
            if let Some(word) = mask.get_mut(*cpu as usize / 64) {
                *word |= 1 << (cpu % 64);
            }
        }
        // SAFETY: the mask lives and has the size that is given.
        sys::check(unsafe {
            libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&mask), mask.as_ptr())
        })
        .at(Step::Scheduling)?;
    }
    if let Some(personality) = s.personality {
        // SAFETY: the call takes a number.
        sys::check(unsafe { libc::syscall(libc::SYS_personality, personality) }).at(Step::Scheduling)?;
    }
    Ok(())
}

fn working_directory(plan: &Plan<'_>) -> Done {
    let mut entered = enter_directory(plan, &plan.cwd, plan.process.create_cwd);
    for other in &plan.cwd_else {
        if entered.is_ok() {
            break;
        }
        // The first one is the one to tell of.
        entered = enter_directory(plan, other, false).or(entered);
    }
    entered
}

fn enter_directory(plan: &Plan<'_>, cwd: &CStr, create: bool) -> Done {
    match sys::chdir(cwd) {
        Ok(()) => {}
        Err(Errno(libc::ENOENT)) if create && plan.new_mount => {
            let root = sys::open(c"/", libc::O_PATH | libc::O_DIRECTORY, 0).at(Step::WorkingDirectory)?;
            let below = cwd.to_bytes_with_nul();
            let below = below.strip_prefix(b"/").unwrap_or(below);
            let below = CStr::from_bytes_with_nul(below).unwrap_or(c".");
            mount_point(root.0, below, true, false).at(Step::WorkingDirectory)?;
            sys::chdir(cwd).at(Step::WorkingDirectory)?;
        }
        Err(e) => return Err(e).at(Step::WorkingDirectory),
    }
    // A folder outside the root has no path from it (CVE-2024-21626).
    let mut room = [0u8; PATH_ROOM];
    // SAFETY: the buffer lives and has the length that is given.
    let length = sys::check(unsafe { libc::syscall(libc::SYS_getcwd, room.as_mut_ptr(), room.len()) })
        .at(Step::WorkingDirectory)?;
    if length < 1 || room[0] != b'/' {
        return Err(Errno(libc::ENOENT)).at(Step::WorkingDirectory);
    }
    Ok(())
}

/// Whether the program is there and may be run.
fn program_exists(plan: &Plan<'_>) -> sys::Result<()> {
    let mut answer = Err(Errno(libc::ENOENT));
    for path in &plan.candidates {
        let found = sys::open(path, libc::O_PATH, 0).and_then(|file| {
            if sys::stat(file.0)?.st_mode & libc::S_IFMT != libc::S_IFREG {
                return Err(Errno(libc::EACCES));
            }
            let flags = libc::AT_EACCESS;
            // SAFETY: the path is terminated; AT_EACCESS asks for the rights of this process as it is now.
            sys::check(unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, flags) }.into())
                .map(drop)
        });
        match found {
            Ok(()) => return Ok(()),
            Err(Errno(libc::ENOENT | libc::ENOTDIR)) => {}
            Err(e) => answer = Err(e),
        }
    }
    answer
}

fn gate(plan: &Plan<'_>, ends: &Ends) -> Done {
    use std::os::fd::AsRawFd;
    if let Some(fifo) = &plan.setup.gate.before_exec {
        if plan.setup.gate.check_program {
            program_exists(plan).at(Step::Exec)?;
        }
        // Whoever opens the gate may come much later. Until then nothing of the caller's stays open here, neither
        // its locks nor its folders; and it is closed before the caller hears that it may go on.
        if let Some(late) = &plan.setup.gate.late_report {
            // SAFETY: dup3(2) of numbers has no memory effects.
            let moved = unsafe { libc::dup3(late.as_raw_fd(), ends.report, libc::O_CLOEXEC) };
            sys::check(moved.into()).at(Step::Gate)?;
        }
        let mut kept = [ends.news, fifo.as_raw_fd(), ends.report];
        kept.sort_unstable();
        let mut from = 3 + plan.setup.stdio.further.len() as i32;
        // Those that the program is to have belong to it.
        let kept = kept.into_iter().chain([i32::MAX]).filter(|_| !plan.process.keep_descriptors);
        for next in kept {
            if from < next {
                // SAFETY: close_range(2) of numbers has no memory effects; nothing here owns what is closed.
                unsafe { libc::syscall(libc::SYS_close_range, from, next - 1, 0) };
            }
            from = next.saturating_add(1);
        }
        p::prctl(libc::PR_SET_DUMPABLE, plan.setup.gate.open_to_owner.into()).at(Step::Gate)?;
        tell(ends, b'x');
        // SAFETY: as above.
        unsafe { libc::close(ends.news) };
        let mut byte = [0];
        match sys::read(fifo.as_raw_fd(), &mut byte).at(Step::Gate)? {
            0 => p::exit(125),
            _ => p::prctl(libc::PR_SET_DUMPABLE, 0).at(Step::Gate),
        }
    } else {
        Ok(())
    }
}

/// Signals as a program expects to find them: the Rust runtime ignores SIGPIPE, and masks are inherited.
fn reset_signals() {
    // SAFETY: SIG_DFL is a valid disposition, the set lives and is initialised before it is used.
    unsafe {
        for signal in 1..=64 {
            if signal != libc::SIGKILL && signal != libc::SIGSTOP {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// The first place of PATH where there is something: a call that finds nothing to execute takes ten times longer.
fn first_candidate(plan: &Plan<'_>) -> usize {
    // SAFETY: the path is terminated.
    let there = |path: &CString| unsafe { libc::access(path.as_ptr(), libc::F_OK) } == 0;
    plan.candidates.iter().position(there).unwrap_or(0)
}

/// Tries the program in each folder of PATH, from the first one that may have it, as execvp(3) does.
fn exec(plan: &Plan<'_>, first: usize) -> Done<std::convert::Infallible> {
    let mut denied = false;
    let mut last = Errno(libc::ENOENT);
    for path in &plan.candidates[first..] {
        // SAFETY: both arrays were made with a null pointer at their end, over strings that live in the plan.
        let errno = unsafe { p::execve(path, plan.argv.pointers.as_ptr(), plan.env.pointers.as_ptr()) };
        match errno.0 {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => denied = true,
            _ => {
                last = errno;
                break;
            }
        }
    }
    let errno = if denied && last.0 == libc::ENOENT { Errno(libc::EACCES) } else { last };
    Err(errno).at(Step::Exec)
}
