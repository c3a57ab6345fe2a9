//! Processes and what they may do: clone3(2), setns(2), capset(2), prctl(2), seccomp(2), and waiting.

use std::ffi::{CStr, c_char};
use std::os::fd::{FromRawFd, OwnedFd};

use super::{Errno, Fd, Result, check};

/// `struct clone_args` as of Linux 5.7.
#[repr(C)]
#[derive(Debug, Default)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

pub const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
pub const CLONE_NEWTIME: u64 = 0x80;

/// Where a clone comes back.
pub enum Side {
    Child,
    Parent { pid: i32, pidfd: Fd },
}

/// Makes a process with a copy of the caller's memory. The child has one thread, so it may only do what
/// needs no lock that another thread of the parent held: in practice, system calls.
pub fn clone3(flags: u64, cgroup: Option<i32>) -> Result<Side> {
    let mut pidfd: i32 = -1;
    let args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64 | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.unwrap_or(0) as u64,
        ..Default::default()
    };
    // SAFETY: without CLONE_VM this is a fork: the child gets its own copy of the memory and of this stack
    // frame. The structure lives and has the size that is given.
    let answer = check(unsafe { libc::syscall(libc::SYS_clone3, &args, std::mem::size_of::<CloneArgs>()) })?;
    Ok(match answer {
        0 => Side::Child,
        pid => Side::Parent { pid: pid as i32, pidfd: Fd(pidfd) },
    })
}

/// What a process runs that shares its maker's memory: on a stack of its own, and never coming back.
#[cfg(target_arch = "x86_64")]
pub type Entry = unsafe extern "C" fn(*const std::ffi::c_void) -> !;

/// As [`clone3`], but the child has the caller's memory itself instead of a copy, as with vfork(2): the calling thread
/// waits until the child has executed a program or ended. Copying costs more the bigger a process is.
///
/// # Safety
/// `entry` and `argument` fit each other. What the child writes, other threads of the caller see: it keeps to its stack,
/// and to what no other thread uses. Signals that have handlers are blocked in the calling thread.
#[cfg(target_arch = "x86_64")]
pub unsafe fn clone_sharing(
    flags: u64,
    cgroup: Option<i32>,
    stack: &mut super::stack::Stack,
    entry: Entry,
    argument: *const std::ffi::c_void,
) -> Result<(i32, Fd)> {
    let mut pidfd: i32 = -1;
    let sharing = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64;
    let args = CloneArgs {
        flags: flags | sharing | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.bottom() as u64,
        stack_size: super::stack::SIZE as u64,
        cgroup: cgroup.unwrap_or(0) as u64,
        ..Default::default()
    };
    let answer: i64;
    // SAFETY: the structure lives and has the size that is given. The child begins behind the call with its own stack,
    // whose top is aligned, and goes where it never comes back from, so nothing of this frame is used by two; the caller
    // keeps the other promises.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => answer,
            in("rdi") &raw const args,
            in("rsi") std::mem::size_of::<CloneArgs>(),
            in("r12") entry,
            in("r13") argument,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    match answer {
        pid if pid > 0 => Ok((pid as i32, Fd(pidfd))),
        error => Err(Errno(-error as i32)),
    }
}

/// Makes a process that is a child of this one's parent, and of whose end that parent hears. 0 in the child.
pub fn clone_sibling(flags: u64, cgroup: Option<i32>) -> Result<i32> {
    let args = CloneArgs {
        flags: flags | libc::CLONE_PARENT as u64 | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        cgroup: cgroup.unwrap_or(0) as u64,
        ..Default::default()
    };
    // SAFETY: as in `clone3`.
    check(unsafe { libc::syscall(libc::SYS_clone3, &args, std::mem::size_of::<CloneArgs>()) })
        .map(|pid| pid as i32)
}

/// Enters the namespace behind a descriptor.
pub fn setns(fd: i32, kind: i32) -> Result<()> {
    // SAFETY: setns(2) of a number has no memory effects.
    check(unsafe { libc::setns(fd, kind) }.into()).map(drop)
}

/// The user namespace that is above the one behind a descriptor (ioctl_ns(2)). EPERM where it is above the caller's, too.
pub fn parent_of_namespace(fd: i32) -> Result<OwnedFd> {
    const NS_GET_PARENT: libc::Ioctl = libc::_IO(0xb7, 2);
    // SAFETY: the request takes no argument, and its answer is a new descriptor that nobody else owns.
    check(unsafe { libc::ioctl(fd, NS_GET_PARENT) }.into())
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The mount namespace of the process behind a pidfd (`PIDFD_GET_MNT_NAMESPACE`).
pub fn mount_namespace(pidfd: i32) -> Result<OwnedFd> {
    const PIDFD_GET_MNT_NAMESPACE: libc::Ioctl = libc::_IO(0xff, 3);
    // SAFETY: the request takes no argument, and its answer is a new descriptor that nobody else owns.
    check(unsafe { libc::ioctl(pidfd, PIDFD_GET_MNT_NAMESPACE, 0) }.into())
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// How many shared memories, message queues and sets of semaphores there are in this IPC namespace (`SHM_INFO`,
/// `MSG_INFO` and `SEM_INFO` of shmctl(2), msgctl(2) and semctl(2)).
pub fn system_v_objects() -> Result<usize> {
    const SHM_INFO: i32 = 14;
    const MSG_INFO: i32 = 12;
    const SEM_INFO: i32 = 19;
    // Larger than each of the structures, whose fields of interest are integers.
    let (mut shared, mut messages, mut semaphores) = ([0i32; 64], [0i32; 64], [0i32; 64]);
    // SAFETY: the arrays live, and are larger than what the kernel writes.
    unsafe {
        check(libc::syscall(libc::SYS_shmctl, 0, SHM_INFO, shared.as_mut_ptr()))?;
        check(libc::syscall(libc::SYS_msgctl, 0, MSG_INFO, messages.as_mut_ptr()))?;
        check(libc::syscall(libc::SYS_semctl, 0, 0, SEM_INFO, semaphores.as_mut_ptr()))?;
    }
    // `used_ids`, `msgpool` and `semusz`.
    Ok([shared[0], messages[0], semaphores[7]].iter().map(|count| usize::try_from(*count).unwrap_or(0)).sum())
}

/// unshare(2) of namespaces.
pub fn unshare(flags: i32) -> Result<()> {
    // SAFETY: unshare(2) has no memory effects.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// prctl(2) with one argument.
pub fn prctl(option: i32, argument: u64) -> Result<()> {
    // SAFETY: the options that are used here take a number.
    check(unsafe { libc::prctl(option, argument, 0u64, 0u64, 0u64) }.into()).map(drop)
}

/// Raises an ambient capability.
pub fn raise_ambient(bit: u8) -> Result<()> {
    // SAFETY: PR_CAP_AMBIENT takes numbers.
    check(
        unsafe {
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, bit as u64, 0u64, 0u64)
        }
        .into(),
    )
    .map(drop)
}

/// Clears the ambient set.
pub fn prctl_ambient_clear() -> Result<()> {
    // SAFETY: PR_CAP_AMBIENT takes numbers.
    check(
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0u64, 0u64, 0u64) }
            .into(),
    )
    .map(drop)
}

/// Sets the effective, permitted and inheritable sets of this thread.
pub fn capset(effective: u64, permitted: u64, inheritable: u64) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 of the header is followed by two data records, which live.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) }).map(drop)
}

/// The capability sets of this thread: effective, permitted, inheritable.
pub fn capget() -> Result<(u64, u64, u64)> {
    let header = [0x2008_0522u32, 0];
    let mut data = [0u32; 6];
    // SAFETY: header and data have the layout of version 3 and live.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    let join = |i: usize| u64::from(data[i]) | u64::from(data[i + 3]) << 32;
    Ok((join(0), join(1), join(2)))
}

/// Real, effective and saved user ID of this thread alone; the C library's call would stop all threads.
pub fn set_uid(id: u32) -> Result<()> {
    // SAFETY: the call takes numbers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) }).map(drop)
}

/// Real, effective and saved group ID.
pub fn set_gid(id: u32) -> Result<()> {
    // SAFETY: the call takes numbers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, id, id, id) }).map(drop)
}

/// Supplementary groups.
pub fn set_groups(groups: &[u32]) -> Result<()> {
    // SAFETY: the list lives and has the length that is given.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// setrlimit(2).
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure lives.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &limit, 0usize) }).map(drop)
}

/// getrlimit(2): soft and hard.
pub fn get_rlimit(resource: u32) -> Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure lives.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, 0usize, &raw mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// close_range(2) with CLOSE_RANGE_CLOEXEC.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: the call takes numbers; 4 is CLOSE_RANGE_CLOEXEC.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 4) }).map(drop)
}

/// execve(2); comes back only with an error.
///
/// # Safety
/// Both arrays end with a null pointer, and their strings are terminated.
pub unsafe fn execve(path: &CStr, argv: *const *const c_char, envp: *const *const c_char) -> Errno {
    // SAFETY: the caller keeps the promise above.
    unsafe { libc::execve(path.as_ptr(), argv, envp) };
    Errno::last()
}

/// execveat(2) of an open file; comes back only with an error.
///
/// # Safety
/// As for [`execve`].
pub unsafe fn execute_file(file: i32, argv: *const *const c_char, envp: *const *const c_char) -> Errno {
    // SAFETY: the caller keeps the promise above; the path is empty and terminated.
    unsafe { libc::syscall(libc::SYS_execveat, file, c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH) };
    Errno::last()
}

/// dup3(2), or nothing but clearing close-on-exec when both are the same.
pub fn dup_to(from: i32, to: i32) -> Result<()> {
    if from == to {
        // SAFETY: fcntl(2) of a number has no memory effects.
        return check(unsafe { libc::fcntl(from, libc::F_SETFD, 0) }.into()).map(drop);
    }
    // SAFETY: dup3(2) of numbers has no memory effects.
    check(unsafe { libc::dup3(from, to, 0) }.into()).map(drop)
}

/// Blocks no signal any more.
pub fn let_signals_through() {
    // SAFETY: the set is initialised before it is used, and lives.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Ends this process at once, without running anything of the program's.
pub fn exit(code: i32) -> ! {
    // SAFETY: the call does not come back.
    unsafe { libc::_exit(code) }
}

/// Brings the loopback device of this network namespace up (netdevice(7)).
pub fn loopback_up() -> Result<()> {
    // SAFETY: the call takes numbers.
    let socket =
        check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())
            .map(|fd| Fd(fd as i32))?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the structure lives and is what this request wants.
    check(unsafe { libc::ioctl(socket.0, libc::SIOCSIFFLAGS as _, &raw mut request) }.into()).map(drop)
}
