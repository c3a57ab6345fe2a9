//! The mount interface by descriptors (fsopen(2), open_tree(2), move_mount(2), mount_setattr(2)).

use std::ffi::CStr;

use super::{Fd, Result, check};

pub const ATTR_RDONLY: u64 = 0x1;
pub const ATTR_NOSUID: u64 = 0x2;
pub const ATTR_NODEV: u64 = 0x4;
pub const ATTR_NOEXEC: u64 = 0x8;
pub const ATTR_ATIME_MASK: u64 = 0x70;
pub const ATTR_NOATIME: u64 = 0x10;
pub const ATTR_STRICTATIME: u64 = 0x20;
pub const ATTR_NODIRATIME: u64 = 0x80;
pub const ATTR_IDMAP: u64 = 0x10_0000;
pub const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

const AT_EMPTY_PATH: libc::c_int = libc::AT_EMPTY_PATH;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// Begins a file system of a type.
pub fn fsopen(kind: &CStr) -> Result<Fd> {
    // SAFETY: the name is terminated; 1 is FSOPEN_CLOEXEC.
    check(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1) }).map(|fd| Fd(fd as i32))
}

/// Begins a file system that shows its type as its source, as tools that list mounts expect.
pub fn fsopen_named(kind: &CStr) -> Result<Fd> {
    let context = fsopen(kind)?;
    set_string(&context, c"source", kind)?;
    Ok(context)
}

/// Sets an option with a value.
pub fn set_string(context: &Fd, key: &CStr, value: &CStr) -> Result<()> {
    // SAFETY: both strings are terminated.
    check(unsafe {
        libc::syscall(libc::SYS_fsconfig, context.0, FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr(), 0)
    })
    .map(drop)
}

/// Sets an option without a value.
pub fn set_flag(context: &Fd, key: &CStr) -> Result<()> {
    // SAFETY: the key is terminated; a flag has no value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.0, FSCONFIG_SET_FLAG, key.as_ptr(), 0usize, 0) })
        .map(drop)
}

/// Makes the file system and a mount of it that is attached nowhere.
pub fn create(context: &Fd, attributes: u64) -> Result<Fd> {
    // SAFETY: the command takes neither key nor value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.0, FSCONFIG_CMD_CREATE, 0usize, 0usize, 0) })?;
    // SAFETY: fsmount(2) of a descriptor has no memory effects; 1 is FSMOUNT_CLOEXEC.
    check(unsafe { libc::syscall(libc::SYS_fsmount, context.0, 1, attributes as libc::c_uint) })
        .map(|fd| Fd(fd as i32))
}

/// A copy of the mount at `path` (seen from `dir`; an empty path is `dir` itself) that is attached nowhere.
pub fn clone_tree(dir: i32, path: &CStr, recursive: bool) -> Result<Fd> {
    let mut flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH as libc::c_uint;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    // SAFETY: the path is terminated.
    check(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) }).map(|fd| Fd(fd as i32))
}

/// Attaches a mount at the place that a descriptor holds.
pub fn attach(mount: &Fd, place: i32) -> Result<()> {
    attach_raw(mount.0, place)
}

/// The same for a descriptor that somebody else closes.
pub fn attach_raw(mount: i32, place: i32) -> Result<()> {
    // SAFETY: both paths are empty and terminated.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount,
            c"".as_ptr(),
            place,
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Changes the attributes of the mount behind a descriptor, and of those below it.
pub fn set_attributes(
    mount: i32,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
    userns: i32,
) -> Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attr = MountAttr { set, clear, propagation, userns_fd: userns.max(0) as u64 };
    let flags = AT_EMPTY_PATH as libc::c_uint | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is empty and terminated, the structure lives and has the size that is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount,
            c"".as_ptr(),
            flags,
            &attr,
            std::mem::size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// As [`set_attributes`] for one attached mount, by mount(2): for Linux before 5.12. What the mount has already stays,
/// because a user namespace may not take it away.
pub fn remount(mount: i32, set: u64, clear: u64, propagation: u64) -> Result<()> {
    const SAME: u64 = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
    /// Flags of mount_setattr(2), of mount(2) and of statvfs(3).
    const OTHERS: [(u64, u64, u64); 4] = [
        (ATTR_NOATIME, libc::MS_NOATIME, 0x400),
        (ATTR_STRICTATIME, libc::MS_STRICTATIME, 0),
        (ATTR_NODIRATIME, libc::MS_NODIRATIME, 0x800),
        (ATTR_NOSYMFOLLOW, 0x100, 0x2000),
    ];
    let path = super::path_of_descriptor(mount);
    let call = |flags: u64| {
        // SAFETY: the path is terminated, the other pointers may be null for these kinds of call.
        let answer = unsafe {
            libc::mount(std::ptr::null(), path.as_ptr().cast(), std::ptr::null(), flags, std::ptr::null())
        };
        check(answer.into()).map(drop)
    };
    if set != 0 || clear != 0 {
        // SAFETY: all zeroes is a valid statvfs, and the call fills it.
        let has = unsafe {
            let mut stat: libc::statvfs = std::mem::zeroed();
            check(libc::fstatvfs(mount, &raw mut stat).into())?;
            stat.f_flag
        };
        let mut flags = (has & SAME | set & SAME) & !(clear & SAME);
        for (attribute, flag, found) in OTHERS {
            if set & attribute != 0 || has & found != 0 && clear & attribute == 0 {
                flags |= flag;
            }
        }
        call(libc::MS_REMOUNT | libc::MS_BIND | flags)?;
    }
    if propagation != 0 { call(propagation) } else { Ok(()) }
}

/// Sets the propagation of the root of this mount namespace, with `MS_REC` of everything in it (mount(2)).
pub fn propagation(flags: u64) -> Result<()> {
    // SAFETY: the path is terminated, the other pointers may be null for this kind of call.
    check(
        unsafe { libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), flags, std::ptr::null()) }
            .into(),
    )
    .map(drop)
}

/// Makes the current folder the root and lets go of the old one (pivot_root(2), "`.` and `.`").
pub fn pivot_here() -> Result<()> {
    // SAFETY: both paths are terminated.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    // SAFETY: the path is terminated.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }.into()).map(drop)
}
