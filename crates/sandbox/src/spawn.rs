//! The parent's side of a start: one clone3, the help that only it can give, and the verdict of the child.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::beside::Usage;
use crate::child::{self, Ends, Failure};
use crate::error::{SpawnError, Step};
use crate::plan::Plan;
use crate::setup::Setup;
use crate::signals;
use crate::sys::process::{self as p, Side};
use crate::sys::{self, Errno, Fd};
use crate::terminal;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    Code(u8),
    Signal(u8),
}

impl ExitStatus {
    /// The code, or 128 and the signal, as shells give it.
    pub fn code(self) -> u8 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128u8.wrapping_add(signal),
        }
    }
}

/// A running process tree. Dropping it neither waits nor kills.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
    /// The master of the process's terminal, where it has one.
    pub terminal: Option<OwnedFd>,
    /// The listener of a filter that notifies.
    pub seccomp_listener: Option<OwnedFd>,
    /// The socket that [`crate::setup::NetworkMessages`] were sent on.
    pub network: Option<OwnedFd>,
    /// What could not be done, and may be missing: optional mounts.
    pub warnings: Vec<SpawnError>,
    status: Option<ExitStatus>,
    usage: Usage,
}

impl Child {
    /// A child of this process that it had before it executed itself anew ([`crate::execute_again`]). It has
    /// not been waited for, so its number is its own still.
    pub fn adopt(pid: i32) -> io::Result<Child> {
        let number = rustix_pid(pid)?;
        let pidfd = rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty())?;
        Ok(Child {
            pid,
            pidfd,
            terminal: None,
            seccomp_listener: None,
            network: None,
            warnings: Vec::new(),
            status: None,
            usage: Usage::default(),
        })
    }

    /// The process ID as the caller sees it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its mount namespace (Linux 6.11; `None` before). Whoever holds it when the process ends makes that end earlier: what
    /// is mounted there is let go when the last one lets go of the namespace, which takes longer than the rest of an end.
    pub fn mount_namespace(&self) -> Option<OwnedFd> {
        p::mount_namespace(self.pidfd.as_raw_fd()).ok()
    }

    /// Readable when the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.pidfd.as_fd()
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.reap(0)? {
                return Ok(status);
            }
        }
    }

    /// The status, when the process has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.reap(libc::WNOHANG)
    }

    fn reap(&mut self, flags: i32) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let mut usage = Usage::default();
            self.status = reap_measured(self.pid, flags, &mut usage)?;
            self.usage = usage;
        }
        Ok(self.status)
    }

    /// What the process, and those that it waited for, took; known after the end of it.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Sends a signal through the descriptor, so it never hits a stranger with the same number.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        // SAFETY: the call takes numbers, and the signal information may be null.
        let answer =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal, 0usize, 0) };
        match sys::check(answer) {
            Ok(_) | Err(Errno(libc::ESRCH)) => Ok(()),
            Err(Errno(e)) => Err(io::Error::from_raw_os_error(e)),
        }
    }
}

fn rustix_pid(pid: i32) -> io::Result<rustix::process::Pid> {
    rustix::process::Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

pub(crate) fn reap(pid: i32, flags: i32) -> io::Result<Option<ExitStatus>> {
    reap_measured(pid, flags, &mut Usage::default())
}

fn reap_measured(pid: i32, flags: i32, usage: &mut Usage) -> io::Result<Option<ExitStatus>> {
    let mut status = 0;
    // SAFETY: all zeroes is a valid rusage.
    let mut taken: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: the status and the usage live.
        let ended = unsafe { libc::wait4(pid, &mut status, flags | libc::__WALL, &mut taken) };
        *usage = Usage::of(&taken);
        match ended {
            0 => return Ok(None),
            n if n > 0 && libc::WIFSIGNALED(status) => {
                return Ok(Some(ExitStatus::Signal(libc::WTERMSIG(status) as u8)));
            }
            n if n > 0 && libc::WIFEXITED(status) => {
                return Ok(Some(ExitStatus::Code(libc::WEXITSTATUS(status) as u8)));
            }
            n if n > 0 => return Ok(None),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Starts a process tree and comes back when the program runs: its execve(2) has succeeded.
///
/// The caller stays as it is, whatever namespaces are made or joined, and may have threads. [`Pending`] is the same
/// with halts on the way. Where nothing of the start needs the calling thread it is made in the caller's own memory, as
/// with vfork(2), without a copy of it. Root's memory is closed to others from then on (PR_SET_DUMPABLE).
///
/// # Errors
/// The step that failed, what it was about, and the kernel's error. Nothing of the container is left then;
/// [`SpawnError::exit_code`] is the exit code that goes with it, and [`crate::explain`] finds out more where it was
/// the program that could not be run.
pub fn spawn(setup: &Setup) -> Result<Child, SpawnError> {
    Pending::new(setup)?.finish()
}

/// What the child said on [`crate::setup::Gate::late_report`]: `None` when it said nothing, so the program runs.
pub fn late_failure(said: &[u8], program: &str) -> Option<SpawnError> {
    let failure = Failure::from_bytes(said.first_chunk()?);
    let object = if failure.step == Step::Exec { program } else { "" };
    Some(SpawnError::new(failure.step, object, failure.errno))
}

/// A start on its way. Dropped before [`Pending::finish`], it is given up: the child ends by itself, because
/// the pipes that it waits on close.
pub struct Pending<'a> {
    plan: Plan<'a>,
    pid: i32,
    pidfd: Option<OwnedFd>,
    report: Fd,
    go: Option<Fd>,
    news: Option<Fd>,
    terminal: Option<OwnedFd>,
    seccomp_listener: Option<OwnedFd>,
    network: Option<OwnedFd>,
    warnings: Vec<SpawnError>,
    helped_late: bool,
    done: bool,
}

impl<'a> Pending<'a> {
    /// Makes the process. It goes on by itself up to the first gate of [`crate::setup::Gate`].
    pub fn new(setup: &'a Setup) -> Result<Pending<'a>, SpawnError> {
        let plan = Plan::new(setup)?;
        let fail = |step| move |Errno(e)| SpawnError::new(step, "", e);
        let (report_read, report_write) = sys::pipe().map_err(fail(Step::Prepare))?;
        let gated = setup.gate.before_root || setup.gate.before_exec.is_some();
        let go = if plan.parent_helps() || setup.gate.before_root || plan.interpreters.maps.is_some() {
            Some(sys::pipe().map_err(fail(Step::Prepare))?)
        } else {
            None
        };
        let by_another = !plan.joins_as_thread();
        let shares_memory = !by_another && plan.may_share_memory();
        let listens = setup.process.seccomp.iter().any(|f| f.listens());
        let late = plan.interpreters.maps.is_some();
        let networked = setup.namespaces.network_messages.is_some();
        let news = if gated || by_another || listens || late || networked || setup.process.terminal.is_some()
        {
            Some(sys::socket_pair().map_err(fail(Step::Prepare))?)
        } else {
            None
        };
        let ends = Ends {
            report: report_write.0,
            go: go.as_ref().map_or(-1, |(read, _)| read.0),
            news: news.as_ref().map_or(-1, |(_, child)| child.0),
            shares_memory,
        };
        let cgroup = setup.cgroup.v2.as_ref().map(AsRawFd::as_raw_fd);
        let (pid, pidfd) = if by_another {
            through_another(&plan, &ends, cgroup, &report_read)?
        } else {
            let parents_ends =
                [Some(&report_read), go.as_ref().map(|(_, w)| w), news.as_ref().map(|(p, _)| p)];
            let begin = || -> Infallible {
                // They must not stay open here, or the parent's death would go unnoticed.
                close_all(&parents_ends);
                child::start(&plan, &ends)
            };
            let elsewhere = Elsewhere::enter(&plan)?;
            let made = if shares_memory {
                in_own_memory(plan.flags, cgroup, &begin)
            } else {
                p::clone3(plan.flags, cgroup).map(|side| match side {
                    Side::Child => match begin() {},
                    Side::Parent { pid, pidfd } => (pid, pidfd),
                })
            };
            drop(elsewhere);
            made.map_err(fail(Step::Clone))?
        };
        if shares_memory {
            // All that there was to say is said. Another child that is being made may hold the pipe a while longer.
            // SAFETY: fcntl(2) with numbers has no memory effects.
            unsafe { libc::fcntl(report_read.0, libc::F_SETFL, libc::O_NONBLOCK) };
        }
        let pidfd_raw = pidfd.0;
        std::mem::forget(pidfd);
        drop(report_write);
        let mut pending = Pending {
            plan,
            pid,
            // SAFETY: the descriptor was just given by the kernel and is owned by nobody else.
            pidfd: Some(unsafe { OwnedFd::from_raw_fd(pidfd_raw) }),
            report: report_read,
            go: go.map(|(_, write)| write),
            news: news.map(|(parent, _)| parent),
            terminal: None,
            seccomp_listener: None,
            network: None,
            warnings: Vec::new(),
            helped_late: false,
            done: false,
        };
        pending.help()?;
        Ok(pending)
    }

    /// The process, stopped at a gate or under way.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// What only the parent may do: the maps of a user namespace.
    fn help(&mut self) -> Result<(), SpawnError> {
        if !self.plan.parent_helps() {
            return Ok(());
        }
        if let Some((uids, gids)) = &self.plan.maps
            && !self.plan.maps_by_child
        {
            write_maps(self.pid, uids, gids)?;
        }
        self.proceed()
    }

    /// The maps of the user namespace that is made for interpreters, when the child has made it.
    fn help_late(&mut self) -> Result<(), SpawnError> {
        if self.plan.interpreters.maps.is_none() || std::mem::replace(&mut self.helped_late, true) {
            return Ok(());
        }
        self.reach(b'u')?;
        if let Some((uids, gids)) = &self.plan.interpreters.maps {
            write_maps(self.pid, uids, gids)?;
        }
        self.proceed()
    }

    /// Lets the child pass the gate that it waits at.
    pub fn proceed(&self) -> Result<(), SpawnError> {
        match &self.go {
            Some(go) => sys::write_all(go.0, b"g").or_else(|e| {
                // The child is gone; what it reported says why.
                if e == Errno(libc::EPIPE) { Ok(()) } else { Err(SpawnError::new(Step::Gate, "", e.0)) }
            }),
            None => Ok(()),
        }
    }

    /// Waits until the child is at the gate `word` (`r` before the root, `x` before the program), keeping the
    /// terminal that may come first.
    fn reach(&mut self, word: u8) -> Result<(), SpawnError> {
        let Some(news) = &self.news else { return Ok(()) };
        loop {
            let said = terminal::receive(news.0).map_err(|Errno(e)| SpawnError::new(Step::Gate, "", e))?;
            match said {
                None => return self.verdict(),
                Some((b't', Some(fd))) => self.terminal = Some(owned(fd)),
                Some((b's', Some(fd))) => self.seccomp_listener = Some(owned(fd)),
                Some((b'n', Some(fd))) => self.network = Some(owned(fd)),
                Some((got, _)) if got == word => return Ok(()),
                Some(_) => {}
            }
        }
    }

    /// The socket that [`crate::setup::NetworkMessages`] were sent on, from the first gate on.
    pub fn network(&self) -> Option<BorrowedFd<'_>> {
        self.network.as_ref().map(std::os::fd::AsFd::as_fd)
    }

    /// Waits until the namespaces exist and the child waits before it enters the root.
    pub fn wait_before_root(&mut self) -> Result<(), SpawnError> {
        self.reach(b'r')
    }

    /// Waits until all is set up and the child waits for its FIFO; then the child is on its own.
    pub fn wait_before_exec(mut self) -> Result<Child, SpawnError> {
        self.halt_before_exec()?;
        self.into_child()
    }

    /// The same, and stays with the child: when it may pass, [`Pending::finish`] tells how it went on.
    pub fn halt_before_exec(&mut self) -> Result<(), SpawnError> {
        self.help_late()?;
        self.reach(b'x')
    }

    /// Waits until the program runs.
    pub fn finish(mut self) -> Result<Child, SpawnError> {
        self.help_late()?;
        self.verdict()?;
        let listens = self.plan.process.seccomp.iter().any(|f| f.listens());
        let networked = self.plan.new_network && self.plan.setup.namespaces.network_messages.is_some();
        if listens
            || networked && self.network.is_none()
            || self.plan.process.terminal.is_some() && self.terminal.is_none()
        {
            self.reach(0)?;
        }
        self.into_child()
    }

    fn into_child(mut self) -> Result<Child, SpawnError> {
        self.done = true;
        let Some(pidfd) = self.pidfd.take() else {
            return Err(SpawnError::new(Step::Clone, "", libc::ECHILD));
        };
        Ok(Child {
            pid: self.pid,
            pidfd,
            terminal: self.terminal.take(),
            seccomp_listener: self.seccomp_listener.take(),
            network: self.network.take(),
            warnings: std::mem::take(&mut self.warnings),
            status: None,
            usage: Usage::default(),
        })
    }

    /// Reads the report: nothing at all when the program was started.
    fn verdict(&mut self) -> Result<(), SpawnError> {
        loop {
            let mut bytes = [0; Failure::LEN];
            let mut have = 0;
            while have < bytes.len() {
                match sys::read(self.report.0, &mut bytes[have..]) {
                    Ok(0) | Err(Errno(libc::EAGAIN)) => break,
                    Ok(n) => have += n,
                    Err(Errno(e)) => return Err(SpawnError::new(Step::Prepare, "", e)),
                }
            }
            if have == 0 {
                return Ok(());
            }
            let said = self.plan.explain(Failure::from_bytes(&bytes));
            if bytes[0] & Failure::WARNING == 0 {
                self.done = true;
                let _ = reap(self.pid, 0);
                return Err(said);
            }
            self.warnings.push(said);
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.done {
            // SAFETY: the child has not been waited for, so the number is still its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            let _ = reap(self.pid, 0);
        }
    }
}

/// Says which IDs the user namespace of a process has.
fn write_maps(pid: i32, uids: &[u8], gids: &[u8]) -> Result<(), SpawnError> {
    for (file, text) in [("gid_map", gids), ("uid_map", uids)] {
        std::fs::write(format!("/proc/{pid}/{file}"), text).map_err(|e| SpawnError {
            step: Step::MapIds,
            object: String::from_utf8_lossy(text).trim().replace('\n', ", "),
            cause: e,
        })?;
    }
    Ok(())
}

pub(crate) fn owned(fd: Fd) -> OwnedFd {
    let raw = fd.0;
    std::mem::forget(fd);
    // SAFETY: the descriptor was owned by the value that was just forgotten.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

fn close_all(ends: &[Option<&Fd>]) {
    for fd in ends.iter().flatten() {
        // SAFETY: close(2) of a number has no memory effects; the child never drops the owners of these.
        unsafe { libc::close(fd.0) };
    }
}

/// The namespaces that the child is to be in, while the calling thread is in them itself: a child is made where its maker
/// is. They are left again when this is dropped.
struct Elsewhere<'a> {
    own: Vec<(Fd, i32)>,
    own_pids: Option<&'a OwnedFd>,
}

impl<'a> Elsewhere<'a> {
    fn enter(plan: &Plan<'a>) -> Result<Elsewhere<'a>, SpawnError> {
        let mut elsewhere = Elsewhere { own: Vec::with_capacity(plan.joins.len()), own_pids: None };
        if let Some(warm) = plan.warm {
            // It is only for children.
            p::setns(warm.pids.as_raw_fd(), libc::CLONE_NEWPID)
                .map_err(|Errno(e)| SpawnError::new(Step::JoinNamespace, "", e))?;
            elsewhere.own_pids = Some(&warm.own_pids);
        }
        for (index, (fd, kind)) in plan.joins.iter().enumerate() {
            let fail = |Errno(errno): Errno| {
                plan.explain(Failure { step: Step::JoinNamespace, errno, index: index as u32 })
            };
            let name = match *kind {
                libc::CLONE_NEWIPC => c"thread-self/ns/ipc",
                libc::CLONE_NEWUTS => c"thread-self/ns/uts",
                libc::CLONE_NEWNET => c"thread-self/ns/net",
                _ => c"thread-self/ns/cgroup",
            };
            let own = sys::openat(plan.proc.as_raw_fd(), name, libc::O_RDONLY, 0).map_err(fail)?;
            p::setns(*fd, *kind).map_err(fail)?;
            elsewhere.own.push((own, *kind));
        }
        Ok(elsewhere)
    }
}

impl Drop for Elsewhere<'_> {
    fn drop(&mut self) {
        if let Some(own) = self.own_pids
            && p::setns(own.as_raw_fd(), libc::CLONE_NEWPID).is_err()
        {
            // Nor may its other children be in a container.
            std::process::abort();
        }
        for (own, kind) in self.own.drain(..).rev() {
            if p::setns(own.0, kind).is_err() {
                // In a container's namespaces this process must not go on.
                std::process::abort();
            }
        }
    }
}

/// Makes a child in this process's own memory, and comes back when it runs its program or has given up.
#[cfg(target_arch = "x86_64")]
fn in_own_memory<F: Fn() -> Infallible>(
    flags: u64,
    cgroup: Option<i32>,
    begin: &F,
) -> sys::Result<(i32, Fd)> {
    use std::cell::RefCell;
    use std::ffi::c_void;

    use crate::sys::stack::Stack;

    unsafe extern "C" fn enter<F: Fn() -> Infallible>(begin: *const c_void) -> ! {
        // SAFETY: it is the address of an `F`, and whoever owns that waits.
        let begin = unsafe { &*begin.cast::<F>() };
        match begin() {}
    }

    thread_local! {
        static STACK: RefCell<Option<Stack>> = const { RefCell::new(None) };
    }

    STACK.with_borrow_mut(|kept| {
        let stack = match kept {
            Some(stack) => stack,
            None => kept.insert(Stack::new()?),
        };
        let _blocked = signals::Blocked::all();
        // SAFETY: the entry takes what it is given. The child writes to its own stack, to descriptors and to this
        // thread's errno; signals are blocked, and it lets go of them when no handler is left.
        unsafe { p::clone_sharing(flags, cgroup, stack, enter::<F>, std::ptr::from_ref(begin).cast()) }
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn in_own_memory<F: Fn() -> Infallible>(_: u64, _: Option<i32>, _: &F) -> sys::Result<(i32, Fd)> {
    Err(Errno(libc::ENOSYS))
}

/// A start that joins namespaces: a short-lived process enters them and makes the child, which becomes the
/// caller's own. A PID namespace holds only for children, and new namespaces belong to the user namespace of
/// whoever makes them, so the caller cannot do this itself without being changed.
fn through_another(
    plan: &Plan<'_>,
    ends: &Ends,
    cgroup: Option<i32>,
    report: &Fd,
) -> Result<(i32, Fd), SpawnError> {
    let fail = |step| move |Errno(e)| SpawnError::new(step, "", e);
    // Not the socket for news: the child may have some before its number is said.
    let (number_read, number_write) = sys::pipe().map_err(fail(Step::Prepare))?;
    match p::clone3(0, None).map_err(fail(Step::Clone))? {
        Side::Child => {
            let enter = || -> Result<i32, Failure> {
                let at = |step: Step, index: usize| {
                    move |Errno(errno): Errno| Failure { step, errno, index: index as u32 }
                };
                p::prctl(libc::PR_SET_DUMPABLE, 0).map_err(at(Step::Prepare, 0))?;
                for (index, (fd, kind)) in plan.joins.iter().enumerate() {
                    p::setns(*fd, *kind).map_err(at(Step::JoinNamespace, index))?;
                    if *kind == libc::CLONE_NEWUSER {
                        // Root of the joined namespace, where it has one.
                        let _ = p::set_gid(0);
                        let _ = p::set_uid(0);
                    }
                }
                if let Some(fd) = plan.joins_pid {
                    p::setns(fd, libc::CLONE_NEWPID).map_err(at(Step::JoinNamespace, plan.joins.len()))?;
                }
                p::clone_sibling(plan.flags, cgroup).map_err(at(Step::Clone, 0))
            };
            match enter() {
                Ok(0) => {
                    for fd in [&number_read, &number_write] {
                        // SAFETY: close(2) of a number has no memory effects; nobody drops the owners of these here.
                        unsafe { libc::close(fd.0) };
                    }
                    child::start(plan, ends)
                }
                Ok(pid) => {
                    let _ = sys::write_all(number_write.0, &pid.to_le_bytes());
                    p::exit(0)
                }
                Err(failure) => {
                    let _ = sys::write_all(ends.report, &failure.bytes());
                    p::exit(125)
                }
            }
        }
        Side::Parent { pid, pidfd: _ } => {
            let status = reap(pid, 0);
            let mut bytes = [0; 4];
            let went_well = matches!(status, Ok(Some(ExitStatus::Code(0))));
            if !went_well || sys::read(number_read.0, &mut bytes) != Ok(4) {
                // What it had to say it has said by now; one that was killed has said nothing.
                // SAFETY: fcntl(2) with numbers has no memory effects.
                unsafe { libc::fcntl(report.0, libc::F_SETFL, libc::O_NONBLOCK) };
                let mut failure = [0; Failure::LEN];
                return Err(match sys::read(report.0, &mut failure) {
                    Ok(n) if n == failure.len() => plan.explain(Failure::from_bytes(&failure)),
                    _ => SpawnError::new(Step::Clone, "", libc::ECHILD),
                });
            }
            let pid = i32::from_le_bytes(bytes);
            // The child has not been waited for, so its number is still its own.
            // SAFETY: the call takes numbers.
            let fd = sys::check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
                .map_err(fail(Step::Clone))?;
            Ok((pid, Fd(fd as i32)))
        }
    }
}
