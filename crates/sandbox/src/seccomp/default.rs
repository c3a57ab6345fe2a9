//! The default profile: the facts of Docker's own (moby/profiles), grouped by what allows them.
//!
//! Lists of names only, so that reading it costs nothing; a test holds it equal to the JSON in verdict.

use std::borrow::Cow;

use isles_spec::Result;

use super::Arch;
use super::profile::{Action, Compare, Condition, Host, Profile, Rule};
use crate::capability::CapabilitySet;

/// Allowed to everyone.
const ALWAYS: &str = "\
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 \
    clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
    clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 \
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 \
    fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl \
    fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 \
    fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait \
    futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid getegid32 geteuid \
    geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid \
    getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list \
    getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32 getxattr \
    getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy \
    io_getevents io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link \
    linkat listen listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat \
    lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod \
    mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive \
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv \
    msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat \
    openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll \
    ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 \
    pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 \
    restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo \
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
    sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop \
    semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 \
    setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid \
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit set_robust_list \
    setsid setsockopt set_thread_area set_tid_address setuid setuid32 setxattr setxattrat shmat shmctl \
    shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair \
    splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs \
    sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 \
    timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe \
    utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// Allowed to those who have the capability in their bounding set.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
        lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
        quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module init_module finit_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("SYS_RAWIO", "iopl ioperm"),
    ("SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// Kinds of socket with a hole each: AF_ALG (38) and AF_VSOCK (40) reach kernel code that containers have no use for.
const SOCKETS: [(Compare, u64); 3] = [(Compare::Lt, 38), (Compare::Eq, 39), (Compare::Gt, 40)];

/// What personality(2) may be asked for: Linux, 32-bit Linux, each with UNAME26, and "what is it now".
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The flags of clone(2) that make namespaces.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// The profile that containers get when nothing is said, for the host's kernel and the container's
/// capabilities.
///
/// # Errors
/// On a processor without a table of system calls ([`Host::here`]).
pub fn default_profile(capabilities: CapabilitySet) -> Result<Profile> {
    Ok(for_host(&Host::here(capabilities)?))
}

pub(super) fn for_host(host: &Host) -> Profile {
    let mut profile = Profile::new(host.arch, Action::Errno(libc::EPERM as u16));
    if host.arch == Arch::X86_64 {
        profile.arches.extend([Arch::X86, Arch::X32]);
    }
    let has = |name: &str| CapabilitySet::bit(name).is_some_and(|bit| host.capabilities.has(bit));
    let mut rule = |names: &'static str, action, conditions| {
        let names = names.split_ascii_whitespace().map(Cow::Borrowed).collect();
        profile.rules.push(Rule { names, action, conditions });
    };
    let on = |index, compare, value| vec![Condition { index, compare, value }];

    rule(ALWAYS, Action::Allow, vec![]);
    // Before 4.8 a tracer could change a call after the filter had seen it.
    if host.kernel >= (4, 8) {
        rule("process_vm_readv process_vm_writev ptrace", Action::Allow, vec![]);
    }
    for (compare, family) in SOCKETS {
        rule("socket", Action::Allow, on(0, compare, family));
    }
    for persona in PERSONALITIES {
        rule("personality", Action::Allow, on(0, Compare::Eq, persona));
    }
    match host.arch {
        Arch::X86_64 | Arch::X32 => rule("arch_prctl modify_ldt", Action::Allow, vec![]),
        Arch::X86 => rule("modify_ldt", Action::Allow, vec![]),
        Arch::Aarch64 => rule("sync_file_range2", Action::Allow, vec![]),
    }
    for (capability, names) in BY_CAPABILITY {
        if has(capability) {
            rule(names, Action::Allow, vec![]);
        }
    }
    if !has("SYS_ADMIN") {
        rule("clone", Action::Allow, on(0, Compare::MaskedEq { mask: CLONE_NAMESPACES }, 0));
        rule("clone3", Action::Errno(libc::ENOSYS as u16), vec![]);
    }
    profile
}
