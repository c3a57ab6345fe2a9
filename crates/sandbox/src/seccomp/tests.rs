//! Our verdicts beside libseccomp's, for every number on every interface, with an interpreter of our own.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::compile::compile_for;
use super::profile::{Action, Compare, Condition, Host, Profile, Rule};
use super::{Arch, Bpf, compile, default, single_id_emulation, syscalls};
use crate::capability::CapabilitySet;

const X86: [Arch; 3] = [Arch::X86_64, Arch::X86, Arch::X32];

fn host(capabilities: CapabilitySet) -> Host {
    Host { arch: Arch::X86_64, capabilities, kernel: (6, 18) }
}

/// As for a kernel that has x32.
fn whole(profile: &Profile) -> isles_spec::Result<Bpf> {
    compile_for(profile, true)
}

/// Runs a program as the kernel would (only what seccomp programs may contain).
fn run(program: &[libc::sock_filter], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = [0u32; 16];
    (data[0], data[1]) = (nr, arch);
    for (i, arg) in args.iter().enumerate() {
        (data[4 + 2 * i], data[5 + 2 * i]) = (*arg as u32, (*arg >> 32) as u32);
    }
    let (mut a, mut pc) = (0u32, 0usize);
    loop {
        let op = program[pc];
        pc += 1;
        let branch = |taken: bool| if taken { op.jt as usize } else { op.jf as usize };
        match u32::from(op.code) {
            0x20 => a = data[op.k as usize / 4],
            0x06 => return op.k,
            0x05 => pc += op.k as usize,
            0x15 => pc += branch(a == op.k),
            0x25 => pc += branch(a > op.k),
            0x35 => pc += branch(a >= op.k),
            0x45 => pc += branch(a & op.k != 0),
            0x54 => a &= op.k,
            code => panic!("unexpected instruction {code:#x}"),
        }
    }
}

/// libseccomp's program for a profile, and the names it does not know; `None` where it is not installed.
fn oracle(profile: &Profile) -> Option<(Vec<libc::sock_filter>, BTreeSet<String>)> {
    static TOOL: OnceLock<Option<tempfile::TempDir>> = OnceLock::new();
    let tool = TOOL.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/seccomp/oracle.c");
        let made =
            Command::new("cc").args([source, "-o"]).arg(dir.path().join("oracle")).arg("-lseccomp").output();
        made.is_ok_and(|o| o.status.success()).then_some(dir)
    });
    let Some(dir) = tool else {
        println!("skip: no C compiler or no libseccomp to compare with (libseccomp-dev)");
        return None;
    };
    let mut text = format!("default {}\n", profile.default_action.value());
    for arch in &profile.arches {
        text += match arch {
            Arch::X86_64 => "arch x86_64\n",
            Arch::X86 => "arch x86\n",
            Arch::X32 => "arch x32\n",
            Arch::Aarch64 => "arch aarch64\n",
        };
    }
    for rule in profile.rules.iter().filter(|r| r.action != profile.default_action) {
        let repeats =
            rule.conditions.iter().map(|c| c.index).collect::<BTreeSet<_>>().len() < rule.conditions.len();
        let groups: Vec<&[Condition]> =
            if repeats { rule.conditions.chunks(1).collect() } else { vec![&rule.conditions] };
        for name in &rule.names {
            for group in &groups {
                text += &format!("rule {name} {} {}", rule.action.value(), group.len());
                for c in *group {
                    let (op, a, b) = match c.compare {
                        Compare::Ne => (1, c.value, 0),
                        Compare::Lt => (2, c.value, 0),
                        Compare::Le => (3, c.value, 0),
                        Compare::Eq => (4, c.value, 0),
                        Compare::Ge => (5, c.value, 0),
                        Compare::Gt => (6, c.value, 0),
                        Compare::MaskedEq { mask } => (7, mask, c.value),
                    };
                    text += &format!(" {} {op} {a} {b}", c.index);
                }
                text.push('\n');
            }
        }
    }
    let mut child = Command::new(dir.path().join("oracle"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let unknown = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "libseccomp: {unknown}");
    let program = output
        .stdout
        .chunks_exact(8)
        .map(|b| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect();
    Some((program, unknown.lines().map(str::to_owned).collect()))
}

/// Arguments around every value that the profile compares anything with.
fn samples(profile: &Profile) -> Vec<[u64; 6]> {
    let mut values = BTreeSet::from([0, 1, u64::MAX]);
    for c in profile.rules.iter().flat_map(|r| &r.conditions) {
        let v = c.value;
        values.extend([v, v.wrapping_add(1), v.wrapping_sub(1), v | 1 << 32, v ^ 1 << 63, v << 1]);
        if let Compare::MaskedEq { mask } = c.compare {
            values.extend([mask, !mask, mask & mask.wrapping_neg(), v | !mask]);
        }
    }
    let mut out: Vec<[u64; 6]> = values.iter().map(|v| [*v; 6]).collect();
    for (i, v) in values.iter().enumerate() {
        let other = *values.iter().nth((i * 7 + 3) % values.len()).unwrap();
        out.push([*v, other, *v, other, *v, other]);
        out.push([other, *v, other, *v, 16, 9]);
        out.push([16, *v, 9, 0, *v, other]);
    }
    out
}

fn agrees(title: &str, profile: &Profile) {
    let Some((theirs, unknown)) = oracle(profile) else { return };
    let ours = whole(profile).unwrap();
    let all = samples(profile);
    let named: Vec<&str> = profile.rules.iter().flat_map(|r| r.names.iter().map(|n| &**n)).collect();
    let top = |arch: Arch| {
        let named = named.iter().filter_map(|n| syscalls::numbers(n)).map(|n| n[arch.column()] as u32);
        named.filter(|n| *n < 5000).max().unwrap_or(0).max(syscalls::BASELINE)
    };
    let strange: BTreeSet<(Arch2, u32)> = unknown
        .iter()
        .filter_map(|name| syscalls::numbers(name))
        .flat_map(|n| X86.map(|a| (Arch2(a), n[a.column()] as u32)))
        .collect();
    let carriers = ["socketcall", "ipc"];
    let tested: BTreeSet<(Arch2, u32)> = profile
        .rules
        .iter()
        .filter(|r| !r.conditions.is_empty())
        .flat_map(|r| r.names.iter().map(|n| &**n))
        .chain(carriers)
        .filter_map(syscalls::numbers)
        .flat_map(|n| X86.map(|a| (Arch2(a), n[a.column()] as u32)))
        .collect();
    let mut compared = 0u64;
    for arch in X86 {
        let mark = if arch == Arch::X32 { 0x4000_0000 } else { 0 };
        for nr in (0..1024).chain([!mark, 0x3fff_ffff]) {
            if strange.contains(&(Arch2(arch), nr)) {
                continue;
            }
            let several = if tested.contains(&(Arch2(arch), nr)) { &all[..] } else { &all[..2] };
            for args in several {
                let a = run(ours.instructions(), arch.audit(), nr | mark, *args);
                let b = run(&theirs, arch.audit(), nr | mark, *args);
                let young = nr > top(arch)
                    && nr | mark != u32::MAX
                    && profile.default_action.refuses()
                    && b == profile.default_action.value();
                let expected = if young { Action::Errno(38).value() } else { b };
                assert_eq!(a, expected, "{title}: {arch:?} {nr} {args:x?} ({a:#x}, not {expected:#x})");
                compared += 1;
            }
        }
    }
    let mips = run(ours.instructions(), 0x8, 0, [0; 6]);
    assert_eq!(mips, run(&theirs, 0x8, 0, [0; 6]), "{title}: a foreign processor");
    println!("{title}: {compared} verdicts, ours {}, libseccomp {}", ours.instructions().len(), theirs.len());
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Arch2(Arch);

impl PartialOrd for Arch {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Arch {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.column().cmp(&other.column())
    }
}

fn shared_profile() -> Option<Vec<u8>> {
    let dir = std::env::var("ISLES_CONFORMANCE")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/conformance").to_owned());
    let file = format!("{dir}/seccomp/default.json");
    let text = std::fs::read(&file);
    if text.is_err() {
        println!("skip: no {file}");
    }
    text.ok()
}

#[test]
fn docker_profile_has_libseccomps_verdicts() {
    let Some(text) = shared_profile() else { return };
    for capabilities in [CapabilitySet::CONTAINER, CapabilitySet::ALL, CapabilitySet::EMPTY] {
        let profile = Profile::from_json(&text, &host(capabilities)).unwrap();
        agrees(&format!("docker {capabilities:?}"), &profile);
    }
}

#[test]
fn podman_profile_has_libseccomps_verdicts() {
    let Ok(text) = std::fs::read("/usr/share/containers/seccomp.json") else {
        println!("skip: no /usr/share/containers/seccomp.json (podman)");
        return;
    };
    for capabilities in [CapabilitySet::CONTAINER, CapabilitySet::EMPTY] {
        let profile = Profile::from_json(&text, &host(capabilities)).unwrap();
        agrees(&format!("podman {capabilities:?}"), &profile);
    }
}

#[test]
fn empty_profiles_have_libseccomps_verdicts() {
    for action in [Action::Errno(1), Action::Errno(38), Action::Allow, Action::Log, Action::KillProcess] {
        for arches in [&X86[..], &X86[..1], &X86[..2]] {
            let mut profile = Profile::new(Arch::X86_64, action);
            profile.arches = arches.to_vec();
            agrees(&format!("empty {action:?} {arches:?}"), &profile);
        }
    }
}

#[test]
fn every_operator_has_libseccomps_verdicts() {
    let big = 0x1234_5678_9abc_def0_u64;
    let mut profile = Profile::new(Arch::X86_64, Action::Allow);
    profile.arches = X86.to_vec();
    let rule = |name: &'static str, action, conditions: Vec<Condition>| Rule {
        names: vec![name.into()],
        action,
        conditions,
    };
    let on = |index, compare, value| Condition { index, compare, value };
    let calls =
        ["read", "write", "openat", "close", "mmap", "ioctl", "dup", "pipe2", "poll", "lseek", "fcntl"];
    let compares = [Compare::Ne, Compare::Lt, Compare::Le, Compare::Eq, Compare::Ge, Compare::Gt];
    let values = [0, 1, 0xffff_ffff, 0x1_0000_0000, big, u64::MAX];
    for compare in compares {
        for value in values {
            let mut one = profile.clone();
            one.rules.push(rule("read", Action::Errno(5), vec![on(1, compare, value)]));
            agrees(&format!("{compare:?} {value:#x}"), &one);
        }
    }
    for (i, compare) in compares.into_iter().chain([Compare::MaskedEq { mask: 0xff00_0000_00f0 }]).enumerate()
    {
        let value = if matches!(compare, Compare::MaskedEq { .. }) { 0x1200_0000_0010 } else { big };
        profile.rules.push(rule(calls[i], Action::Errno(5), vec![on(i as u8 % 6, compare, value)]));
    }
    profile.rules.push(rule("poll", Action::Trap(0), vec![on(0, Compare::Eq, 16), on(2, Compare::Eq, 9)]));
    profile.rules.push(rule("lseek", Action::Trace(7), vec![on(0, Compare::Eq, 16), on(0, Compare::Eq, 9)]));
    profile.rules.push(rule("fcntl", Action::Notify, vec![on(4, Compare::Eq, 16)]));
    profile.rules.push(rule("fcntl", Action::Log, vec![]));
    agrees("all operators", &profile);
}

#[test]
fn a_large_filter_jumps_far() {
    let mut profile = Profile::new(Arch::X86_64, Action::Errno(1));
    profile.arches = X86.to_vec();
    for name in ["read", "getpid", "write", "uname", "openat", "kill", "fstat"] {
        for value in 0..24 {
            profile.rules.push(Rule {
                names: vec![name.into()],
                action: Action::Allow,
                conditions: vec![Condition { index: 0, compare: Compare::Eq, value: value << 20 }],
            });
        }
    }
    agrees("large", &profile);
    for value in 0..2000 {
        profile.rules.push(Rule {
            names: vec!["ioctl".into()],
            action: Action::Allow,
            conditions: vec![Condition { index: 1, compare: Compare::Eq, value }],
        });
    }
    assert!(whole(&profile).unwrap_err().to_string().contains("4096"));
}

#[test]
fn the_built_in_profile_is_dockers() {
    let Some(text) = shared_profile() else { return };
    for capabilities in [CapabilitySet::CONTAINER, CapabilitySet::ALL, CapabilitySet::EMPTY] {
        for (arch, kernel) in [(Arch::X86_64, (6, 18)), (Arch::Aarch64, (6, 1)), (Arch::X86_64, (4, 4))] {
            let host = Host { arch, capabilities, kernel };
            let theirs = whole(&Profile::from_json(&text, &host).unwrap()).unwrap();
            let profile = default::for_host(&host);
            let ours = whole(&profile).unwrap();
            let all = samples(&profile);
            for arch in &profile.arches {
                let mark = if *arch == Arch::X32 { 0x4000_0000 } else { 0 };
                for nr in (0..1024).map(|nr| nr | mark) {
                    for args in &all {
                        let args = *args;
                        assert_eq!(
                            run(ours.instructions(), arch.audit(), nr, args),
                            run(theirs.instructions(), arch.audit(), nr, args),
                            "{host:?} {arch:?} {nr} {args:x?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn young_calls_and_clone3_fall_back() {
    let profile = default::for_host(&host(CapabilitySet::CONTAINER));
    let bpf = whole(&profile).unwrap();
    let verdict = |arch: Arch, nr| run(bpf.instructions(), arch.audit(), nr, [0; 6]);
    assert_eq!(verdict(Arch::X86_64, 435), Action::Errno(38).value(), "clone3");
    assert_eq!(verdict(Arch::X86_64, 600), Action::Errno(38).value());
    assert_eq!(verdict(Arch::X86, 600), Action::Errno(38).value());
    assert_eq!(verdict(Arch::X32, 0x4000_0000 | 600), Action::Errno(38).value());
    assert_eq!(verdict(Arch::X86_64, 165), Action::Errno(1).value(), "mount");
    assert_eq!(verdict(Arch::X86, 21), Action::Errno(1).value(), "mount of i386");
    assert_eq!(verdict(Arch::X32, 0x4000_0000 | 165), Action::Errno(1).value(), "mount of x32");

    // clone filtered by its flags and clone3 not mentioned: clone3 must not be a way around.
    for default in [Action::Allow, Action::Errno(1)] {
        let mut profile = Profile::new(Arch::X86_64, default);
        let action = if default == Action::Allow { Action::Errno(1) } else { Action::Allow };
        profile.rules.push(Rule {
            names: vec!["clone".into()],
            action,
            conditions: vec![Condition {
                index: 0,
                compare: Compare::MaskedEq { mask: 0x7e02_0000 },
                value: 0,
            }],
        });
        let bpf = whole(&profile).unwrap();
        assert_eq!(run(bpf.instructions(), Arch::X86_64.audit(), 435, [0; 6]), Action::Errno(38).value());
    }
    let mut alone = Profile::new(Arch::X86_64, Action::Allow);
    alone.flags.spec_allow = true;
    let bpf = whole(&alone).unwrap();
    assert_eq!(run(bpf.instructions(), Arch::X86.audit(), 5, [0; 6]), Action::KillThread.value());
    assert_eq!(
        run(bpf.instructions(), Arch::X86_64.audit(), 0x4000_0001, [0; 6]),
        Action::KillThread.value()
    );
}

#[test]
fn the_default_filter_stays_small() {
    // What a start pays for grows with this: a linear filter of the same verdicts has some 1,500 instructions.
    for capabilities in [CapabilitySet::CONTAINER, CapabilitySet::ALL, CapabilitySet::EMPTY] {
        let length = whole(&default::for_host(&host(capabilities))).unwrap().instructions().len();
        assert!(length <= 360, "{capabilities:?}: {length}");
    }
}

#[test]
fn an_interface_that_the_kernel_lacks_is_missing() {
    let mut profile = default::for_host(&host(CapabilitySet::CONTAINER));
    let (all, some) = (whole(&profile).unwrap(), compile_for(&profile, false).unwrap());
    assert!(some.instructions().len() * 4 < all.instructions().len() * 3, "{some:?} of {all:?}");
    let verdict = |bpf: &Bpf, arch: Arch, nr| run(bpf.instructions(), arch.audit(), nr, [0; 6]);
    for nr in (0..600).chain([0x4000_0000, 0x4000_0027, 0x4000_00a5, 0x4000_0258, 0x7fff_ffff, u32::MAX - 1])
    {
        let missing = Action::Errno(38).value();
        let expected = if nr >= 0x4000_0000 { missing } else { verdict(&all, Arch::X86_64, nr) };
        assert_eq!(verdict(&some, Arch::X86_64, nr), expected, "{nr:#x}");
        assert_eq!(verdict(&some, Arch::X86, nr), verdict(&all, Arch::X86, nr), "{nr:#x} of i386");
    }
    // What a tracer left out.
    assert_eq!(verdict(&some, Arch::X86_64, u32::MAX), verdict(&all, Arch::X86_64, u32::MAX));
    // Where somebody is to see such a call, or it is to end the program, the profile counts.
    profile.rules.push(Rule { names: vec!["bpf".into()], action: Action::Log, conditions: vec![] });
    let logged = compile_for(&profile, false).unwrap();
    assert_eq!(verdict(&logged, Arch::X32, 0x4000_0000 | 165), Action::Errno(1).value());
}

#[test]
fn one_id_emulation() {
    let alone = single_id_emulation(Arch::X86_64).unwrap();
    let mut profile = default::for_host(&host(CapabilitySet::CONTAINER));
    profile.emulate_owners();
    let both = whole(&profile).unwrap();
    let modes = [libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK, 0, libc::S_IFCHR, libc::S_IFBLK];
    for bpf in [&alone, &both] {
        let verdict = |arch: Arch, name: &str, args: [u64; 6]| {
            let mark = if arch == Arch::X32 { 0x4000_0000 } else { 0 };
            let nr = syscalls::numbers(name).unwrap()[arch.column()];
            run(bpf.instructions(), arch.audit(), nr as u32 | mark, args)
        };
        for arch in X86 {
            for name in ["chown", "fchownat", "setresuid", "setgroups"] {
                assert_eq!(verdict(arch, name, [7; 6]), Action::Errno(0).value(), "{name}");
            }
            for mode in modes {
                let device = mode == libc::S_IFCHR || mode == libc::S_IFBLK;
                let expected = if device { Action::Errno(0) } else { Action::Allow }.value();
                let mode = u64::from(mode | 0o644);
                assert_eq!(verdict(arch, "mknod", [0, mode, 0, 0, 0, 0]), expected);
                assert_eq!(verdict(arch, "mknodat", [0, 0, mode, 0, 0, 0]), expected);
            }
            assert_eq!(verdict(arch, "setxattr", [0; 6]), Action::Allow.value());
        }
        assert_eq!(verdict(Arch::X86, "chown32", [7; 6]), Action::Errno(0).value());
    }
}

/// Installs in a child, so that this process stays as it is; the child's exit code says what happened.
fn in_child(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child only makes system calls and leaves with _exit.
    unsafe {
        match libc::fork() {
            0 => libc::_exit(body()),
            pid => {
                let mut status = 0;
                assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
                if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) }
            }
        }
    }
}

#[test]
fn the_kernel_takes_it() {
    let Ok(here) = Host::here(CapabilitySet::CONTAINER) else {
        println!("skip: no table of system calls for this processor");
        return;
    };
    let bpf = compile(&default::for_host(&here)).unwrap();
    let owners = single_id_emulation(here.arch).unwrap();
    let code = in_child(|| {
        // SAFETY: plain system calls on constants.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if bpf.install().is_err() || owners.install().is_err() {
                return 1;
            }
            if libc::syscall(libc::SYS_mount, 0, 0, 0, 0, 0) != -1 || *libc::__errno_location() != libc::EPERM
            {
                return 2;
            }
            if libc::syscall(libc::SYS_clone3, 0, 0) != -1 || *libc::__errno_location() != libc::ENOSYS {
                return 3;
            }
            if libc::chown(c"/nonexistent".as_ptr(), 1, 1) != 0 || libc::setgroups(0, std::ptr::null()) != 0 {
                return 4;
            }
            if libc::syscall(libc::SYS_getpid) <= 0 { 5 } else { 0 }
        }
    });
    assert_eq!(code, 0);
}

#[test]
fn a_listener_gets_its_descriptor() {
    let Some(arch) = Arch::native() else { return };
    let mut profile = Profile::new(arch, Action::Allow);
    profile.rules.push(Rule { names: vec!["mkdirat".into()], action: Action::Notify, conditions: vec![] });
    profile.flags.tsync = true;
    let bpf = compile(&profile).unwrap();
    let code = in_child(|| {
        // SAFETY: a plain system call on constants.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        match bpf.install() {
            Ok(Some(_)) => 0,
            Ok(None) => 1,
            Err(errno) => errno,
        }
    });
    assert_eq!(code, 0);
}
