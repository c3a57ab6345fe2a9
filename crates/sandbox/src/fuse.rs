//! Mounts of file systems that the caller serves: made in the child, whose descriptors of `/dev/fuse` go to the caller.
//!
//! The kernel wants the device to be opened, and the descriptors of further threads to be made, in the user namespace
//! that mounts. So the child does that, and the server only gets the descriptors, through a socket: whoever has the
//! other end. The child keeps none: when the server dies they are all closed, the kernel gives the mount up, and nobody
//! waits for an answer for ever.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::prepared::{FuseAccess, FuseMount};
use crate::sys::{self, Errno, Fd, mount as m};
use crate::terminal::send;

const FUSE_DEV_IOC_CLONE: libc::Ioctl = libc::_IOR::<u32>(229, 0);

/// The two ends of a socket for descriptors of `/dev/fuse`: the server's, and the one for
/// [`crate::setup::PreparedSource::Fuse`].
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let (server, child) = sys::socket_pair().map_err(os)?;
    Ok((owned(server), owned(child)))
}

/// The next descriptor of `/dev/fuse`, ready to be read; `None` when there are no more, because all were sent or
/// the start failed.
pub fn receive(server: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    loop {
        match crate::terminal::receive(server.as_raw_fd()).map_err(os)? {
            None => return Ok(None),
            Some((_, Some(device))) => return Ok(Some(owned(device))),
            Some((_, None)) => {}
        }
    }
}

fn os(Errno(errno): Errno) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn owned(fd: Fd) -> OwnedFd {
    let raw = fd.0;
    std::mem::forget(fd);
    // SAFETY: the descriptor was owned by the value that was just forgotten.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// Makes the mount, attached nowhere, and sends the descriptors. Runs between clone3 and exec.
pub(crate) fn mount(fuse: &FuseMount) -> sys::Result<Fd> {
    let device = |number: u32| match fuse.opened.get(number as usize) {
        // SAFETY: fcntl(2) of numbers has no memory effects.
        Some(fd) => sys::check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) }.into())
            .map(|fd| Fd(fd as i32)),
        None => sys::open(c"/dev/fuse", libc::O_RDWR, 0),
    };
    let first = device(0)?;
    let context = m::fsopen(c"fuse")?;
    let mut room = [0u8; 12];
    m::set_string(&context, c"fd", number(&mut room, first.0))?;
    for (key, value) in &fuse.options {
        m::set_string(&context, key, value)?;
    }
    let flags: &[&CStr] = match fuse.access {
        FuseAccess::Image => &[c"allow_other", c"default_permissions", c"ro"],
        FuseAccess::Program { for_all: true } => &[c"allow_other"],
        FuseAccess::Program { for_all: false } => &[],
    };
    for flag in flags {
        m::set_flag(&context, flag)?;
    }
    let read_only = if fuse.access == FuseAccess::Image { m::ATTR_RDONLY } else { 0 };
    let mount = m::create(&context, read_only | m::ATTR_NOSUID | m::ATTR_NODEV)?;
    send(fuse.channel, b'f', first.0)?;
    for number in 1..fuse.devices {
        let further = device(number)?;
        // SAFETY: the request reads an int, which lives.
        sys::check(unsafe { libc::ioctl(further.0, FUSE_DEV_IOC_CLONE, &raw const first.0) }.into())?;
        send(fuse.channel, b'f', further.0)?;
    }
    // What was opened for this process stays open in it until it becomes the program, and must not: the mount would
    // live on without a server.
    for fd in &fuse.opened {
        // SAFETY: close(2) of a number has no memory effects; the owner of this one is never dropped in this process.
        unsafe { libc::close(fd.as_raw_fd()) };
    }
    Ok(mount)
}

/// A number as text, on the stack.
fn number(room: &mut [u8; 12], value: i32) -> &CStr {
    let mut at = room.len() - 1;
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        room[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    CStr::from_bytes_until_nul(&room[at..]).unwrap_or(c"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for value in [0, 7, 10, 123_456, i32::MAX] {
            assert_eq!(number(&mut [0; 12], value).to_str().unwrap(), value.to_string());
        }
    }
}
