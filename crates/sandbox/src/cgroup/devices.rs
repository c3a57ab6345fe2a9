//! Which devices a group may open and make: rules for v1, a small eBPF program for v2.
//!
//! The rules are first brought into the kernel's own v1 form, a default with exceptions
//! (`cgroup-v1/devices.rst`), so that both versions decide alike. The program has no loop and no map: one
//! comparison after the other (BPF_PROG_TYPE_CGROUP_DEVICE, bpf(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The two kinds of device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Block,
    Char,
}

/// What may be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access(u8);

impl Access {
    const MKNOD: u8 = 1;
    const READ: u8 = 2;
    const WRITE: u8 = 4;
    pub const ALL: Access = Access(7);

    /// From some of `r`, `w` and `m`; an empty text is all of them.
    pub fn parse(text: &str) -> Option<Access> {
        let mut bits = 0;
        for c in text.chars() {
            bits |= match c {
                'm' => Access::MKNOD,
                'r' => Access::READ,
                'w' => Access::WRITE,
                _ => return None,
            };
        }
        Some(if bits == 0 { Access::ALL } else { Access(bits) })
    }

    fn text(self) -> String {
        [(Access::READ, 'r'), (Access::WRITE, 'w'), (Access::MKNOD, 'm')]
            .iter()
            .filter(|(bit, _)| self.0 & bit != 0)
            .map(|(_, c)| c)
            .collect()
    }
}

/// One line of `linux.resources.devices`; later ones win.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule {
    pub allow: bool,
    /// `None` is every kind and, with no number either, every device.
    pub kind: Option<DeviceKind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: Access,
}

impl DeviceRule {
    /// A rule about everything.
    pub fn all(allow: bool) -> DeviceRule {
        DeviceRule { allow, kind: None, major: None, minor: None, access: Access::ALL }
    }

    /// A rule that allows one device or, without a minor number, a class of them.
    pub fn allow(kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: Access) -> DeviceRule {
        DeviceRule { allow: true, kind: Some(kind), major, minor, access }
    }

    /// What every container may use: making nodes of any device, and opening null, zero, full, random,
    /// urandom, tty, console, ptmx and pseudo terminals (runtime-spec config-linux.md#default-devices).
    pub fn container() -> Vec<DeviceRule> {
        use DeviceKind::{Block, Char};
        let mut rules = vec![DeviceRule::all(false)];
        for kind in [Block, Char] {
            rules.push(DeviceRule::allow(kind, None, None, Access(Access::MKNOD)));
        }
        let known = [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0))];
        for (major, minor) in known.into_iter().chain([(5, Some(1)), (5, Some(2)), (136, None)]) {
            rules.push(DeviceRule::allow(Char, Some(major), minor, Access::ALL));
        }
        rules
    }

    /// The file and the line for cgroup v1.
    pub(super) fn v1(&self) -> (&'static str, String) {
        let file = if self.allow { "devices.allow" } else { "devices.deny" };
        let Some(kind) = self.kind else { return (file, "a".into()) };
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let kind = if kind == DeviceKind::Block { 'b' } else { 'c' };
        (file, format!("{kind} {}:{} {}", number(self.major), number(self.minor), self.access.text()))
    }
}

/// A default and what differs from it.
struct Policy {
    allow: bool,
    exceptions: Vec<(DeviceKind, Option<u32>, Option<u32>, u8)>,
}

impl Policy {
    fn of(rules: &[DeviceRule]) -> Policy {
        let mut policy = Policy { allow: true, exceptions: Vec::new() };
        for rule in rules {
            let Some(kind) = rule.kind else {
                policy = Policy { allow: rule.allow, exceptions: Vec::new() };
                continue;
            };
            let at = policy
                .exceptions
                .iter()
                .position(|(k, major, minor, _)| (*k, *major, *minor) == (kind, rule.major, rule.minor));
            match (rule.allow == policy.allow, at) {
                (true, Some(at)) => {
                    policy.exceptions[at].3 &= !rule.access.0;
                    if policy.exceptions[at].3 == 0 {
                        policy.exceptions.remove(at);
                    }
                }
                (true, None) => {}
                (false, Some(at)) => policy.exceptions[at].3 |= rule.access.0,
                (false, None) => policy.exceptions.push((kind, rule.major, rule.minor, rule.access.0)),
            }
        }
        policy
    }
}

/// One eBPF instruction as the kernel has it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const TYPE: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The program that decides as the rules do: it returns 1 for what is allowed.
pub fn device_program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let op = |code: u8, dst: u8, src: u8, offset: i16, immediate: i32| Instruction {
        code,
        registers: dst | src << 4,
        offset,
        immediate,
    };
    let load = |dst: u8, offset: i16| op(0x61, dst, 1, offset, 0);
    let mov = |dst: u8, value: i32| op(0xb4, dst, 0, 0, value);
    let exit = op(0x95, 0, 0, 0, 0);
    let policy = Policy::of(rules);
    // struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor.
    let mut code = vec![
        load(TYPE, 0),
        op(0xbc, WANTED, TYPE, 0, 0),
        op(0x54, TYPE, 0, 0, 0xffff),
        op(0x74, WANTED, 0, 0, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for (kind, major, minor, access) in &policy.exceptions {
        let mut tests = vec![(TYPE, if *kind == DeviceKind::Block { 1 } else { 2 })];
        tests.extend(major.map(|n| (MAJOR, n as i32)));
        tests.extend(minor.map(|n| (MINOR, n as i32)));
        // What remains of the wish after the exception: nothing for one that allows, something for one that denies.
        let (mask, test) = if policy.allow { (*access, 0x16) } else { (!access & 7, 0x56) };
        let masked = policy.allow || *access != 7;
        let mut left = (tests.len() + if masked { 3 } else { 0 } + 1) as i16;
        for (register, value) in tests {
            code.push(op(0x56, register, 0, left, value));
            left -= 1;
        }
        if masked {
            code.extend([
                op(0xbc, 0, WANTED, 0, 0),
                op(0x54, 0, 0, 0, i32::from(mask)),
                op(test, 0, 0, 2, 0),
            ]);
        }
        code.extend([mov(0, i32::from(!policy.allow)), exit]);
    }
    code.extend([mov(0, i32::from(policy.allow)), exit]);
    code
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;

#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replace: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttributes {
    target: u32,
    kind: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are a zero-padded prefix of the kernel's union for this command, and what they point
    // at lives in the caller's frame.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes).cast::<libc::c_void>(),
            size_of::<T>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Puts the rules on a cgroup v2 directory, in place of those that this function put there before.
pub(super) fn attach(group: BorrowedFd<'_>, rules: &[DeviceRule]) -> io::Result<()> {
    let code = device_program(rules);
    let mut load = LoadAttributes {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    load.name[..13].copy_from_slice(b"isles_devices");
    let program = owned(bpf(BPF_PROG_LOAD, &mut load)?);

    let mut ids = [0u32; 64];
    let mut query = QueryAttributes {
        target: group.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..QueryAttributes::default()
    };
    bpf(BPF_PROG_QUERY, &mut query)?;
    let old = match ids.get(..query.count as usize) {
        Some([id]) => {
            let mut get = [*id, 0, 0];
            Some(owned(bpf(BPF_PROG_GET_FD_BY_ID, &mut get)?))
        }
        _ => None,
    };
    let mut attach = AttachAttributes {
        target: group.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI | if old.is_some() { BPF_F_REPLACE } else { 0 },
        replace: old.as_ref().map_or(0, |fd| fd.as_raw_fd() as u32),
    };
    bpf(BPF_PROG_ATTACH, &mut attach)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a device program.
    fn allowed(code: &[Instruction], kind: u32, wanted: u32, major: u32, minor: u32) -> bool {
        let context = [wanted << 16 | kind, major, minor];
        let mut r = [0u32; 8];
        let mut pc = 0usize;
        loop {
            let i = code[pc];
            let (dst, src) = ((i.registers & 15) as usize, (i.registers >> 4) as usize);
            pc += 1;
            match i.code {
                0x61 => r[dst] = context[i.offset as usize / 4],
                0xbc => r[dst] = r[src],
                0xb4 => r[dst] = i.immediate as u32,
                0x54 => r[dst] &= i.immediate as u32,
                0x74 => r[dst] >>= i.immediate,
                0x56 => pc += if r[dst] != i.immediate as u32 { i.offset as usize } else { 0 },
                0x16 => pc += if r[dst] == i.immediate as u32 { i.offset as usize } else { 0 },
                0x95 => return r[0] == 1,
                code => panic!("unexpected instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn default_rules_decide() {
        let code = device_program(&DeviceRule::container());
        assert!(allowed(&code, 2, 6, 1, 3), "read and write /dev/null");
        assert!(allowed(&code, 2, 2, 136, 77), "a pseudo terminal");
        assert!(allowed(&code, 1, 1, 8, 0), "making a node");
        assert!(!allowed(&code, 1, 2, 8, 0), "reading a disk");
        assert!(!allowed(&code, 1, 3, 8, 0), "making and reading a disk");
        assert!(!allowed(&code, 2, 2, 1, 1), "/dev/mem");
    }

    #[test]
    fn later_rules_win_as_on_v1() {
        let char = |allow, access: &str| DeviceRule {
            allow,
            kind: Some(DeviceKind::Char),
            major: Some(10),
            minor: Some(200),
            access: Access::parse(access).unwrap(),
        };
        let code = device_program(&[DeviceRule::all(false), char(true, "rw"), char(false, "w")]);
        assert!(allowed(&code, 2, 2, 10, 200));
        assert!(!allowed(&code, 2, 4, 10, 200));
        assert!(!allowed(&code, 2, 6, 10, 200));
        let code = device_program(&[DeviceRule::all(true), char(false, "w")]);
        assert!(allowed(&code, 2, 2, 10, 200));
        assert!(!allowed(&code, 2, 6, 10, 200));
        assert!(allowed(&code, 2, 6, 10, 201));
        let code = device_program(&[char(false, "rwm"), DeviceRule::all(true)]);
        assert!(allowed(&code, 2, 7, 10, 200));
        assert_eq!(char(true, "rw").v1(), ("devices.allow", "c 10:200 rw".into()));
        assert_eq!(DeviceRule::all(false).v1(), ("devices.deny", "a".into()));
        assert!(Access::parse("rx").is_none());
    }
}
