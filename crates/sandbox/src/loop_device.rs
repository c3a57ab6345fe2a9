//! Images that the kernel mounts: a loop device (loop(4)) over a part of an open file, and the file system on it.
//! For root only; the kernel lets nobody else have one.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::sys::{self, Errno, mount as m};

const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const SECTOR: u64 = 512;

/// `struct loop_config` with its `struct loop_info64` (`include/uapi/linux/loop.h`).
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

/// Mounts the file system in `size` bytes of a file from `offset` on, attached nowhere; to be written to, the file has to
/// be open for that. The file is the one that is open, whatever its name means by now. The loop device goes when the
/// mount does.
///
/// # Errors
/// Not root, no loop device left, or nothing that this kernel can mount.
pub fn mount(file: &File, offset: u64, size: u64, kind: &CStr, writable: bool) -> io::Result<OwnedFd> {
    // Open until the mount holds the device.
    let (_device, path) = attach(file, offset, size, writable)?;
    let context = m::fsopen(kind)?;
    let make = || {
        m::set_string(&context, c"source", &path)?;
        let safe = m::ATTR_NOSUID | m::ATTR_NODEV;
        if kind == c"ext4" {
            // Otherwise the image says what a damage in it does, and that may be to stop the whole machine.
            m::set_string(&context, c"errors", if writable { c"remount-ro" } else { c"continue" })?;
        }
        if writable {
            return m::create(&context, safe);
        }
        m::set_flag(&context, c"ro")?;
        if kind == c"ext4" {
            // What a crash has left in the journal cannot be written back to a file that is only read.
            m::set_flag(&context, c"noload")?;
        }
        m::create(&context, m::ATTR_RDONLY | safe)
    };
    let mount = make()?;
    let raw = mount.0;
    std::mem::forget(mount);
    // SAFETY: the descriptor was owned by the value that was just forgotten.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// A loop device that goes when nobody has it open any more.
fn attach(file: &File, offset: u64, size: u64, writable: bool) -> sys::Result<(sys::Fd, CString)> {
    /// Others look for a free device at the same time.
    const TRIES: u32 = 64;
    let control = sys::open(c"/dev/loop-control", libc::O_RDWR, 0)?;
    let config = LoopConfig {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: 0,
        device: 0,
        inode: 0,
        rdevice: 0,
        offset,
        // Part of a sector is none; what is behind the end of the file, the kernel leaves out.
        size_limit: size.next_multiple_of(SECTOR),
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_AUTOCLEAR | if writable { 0 } else { LO_FLAGS_READ_ONLY },
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
        reserved: [0; 8],
    };
    for _ in 0..TRIES {
        // SAFETY: the request takes nothing.
        let number = sys::check(unsafe { libc::ioctl(control.0, LOOP_CTL_GET_FREE) }.into())?;
        let path = CString::new(format!("/dev/loop{number}")).map_err(|_| Errno(libc::EINVAL))?;
        let device = sys::open(&path, if writable { libc::O_RDWR } else { libc::O_RDONLY }, 0)?;
        // SAFETY: the request reads the structure, which lives and has the layout of the kernel's.
        match sys::check(unsafe { libc::ioctl(device.0, LOOP_CONFIGURE, &raw const config) }.into()) {
            Ok(_) => return Ok((device, path)),
            Err(Errno(libc::EBUSY)) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Errno(libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn an_image_does_not_say_what_a_damage_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let made = Command::new("mkfs.ext3").args(["-q", "-F", "-e", "panic"]).arg(&path).arg("4m").status();
        if !made.is_ok_and(|status| status.success()) {
            println!("skip: mkfs.ext3 (package e2fsprogs) is missing");
            return;
        }
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let size = file.metadata().unwrap().len();
        for (writable, expected) in [(false, "errors=continue"), (true, "errors=remount-ro")] {
            let mounted = match mount(&file, 0, size, c"ext4", writable) {
                Ok(mounted) => File::from(mounted),
                Err(e) => {
                    println!("skip: the kernel mounts no ext3 image here: {e}");
                    return;
                }
            };
            let number = libc::minor(mounted.metadata().unwrap().dev());
            let Ok(options) = std::fs::read_to_string(format!("/proc/fs/ext4/loop{number}/options")) else {
                println!("skip: this kernel does not list the options of ext4");
                return;
            };
            assert!(options.lines().any(|line| line == expected), "{options}");
        }
    }
}
