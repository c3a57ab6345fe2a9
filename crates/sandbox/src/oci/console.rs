//! Handing descriptors to others: the terminal's master to the engine, the seccomp listener to its agent.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Connects to a socket in the file system; a path longer than a socket address is reached through a descriptor of its
/// folder.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let long = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).len() > 107;
    let (Some(parent), Some(name), true) = (path.parent(), path.file_name(), long) else {
        return UnixStream::connect(path);
    };
    let folder = std::fs::File::open(parent)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&folder);
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{fd}")).join(name))
}

/// Connects to `path` and sends `message` with descriptors.
pub fn send(path: &Path, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let socket = connect(path)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fds.len() > 4 || !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(&socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    // The descriptors went with the first byte.
    std::io::Write::write_all(&mut &socket, &message[sent..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use std::io::IoSliceMut;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_descriptor_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(120));
        std::fs::create_dir(&long).unwrap();
        // Bound by a short name, found by the long one.
        let short = dir.path().join("s");
        std::os::unix::fs::symlink(&long, &short).unwrap();
        let listener = UnixListener::bind(short.join("socket")).unwrap();
        let file = std::fs::File::open("/dev/zero").unwrap();
        send(&long.join("socket"), b"hello", &[file.as_fd()]).unwrap();

        let (peer, _) = listener.accept().unwrap();
        let mut text = [0; 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got =
            recvmsg(&peer, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::empty()).unwrap();
        assert_eq!(&text[..got.bytes], b"hello");
        let fds: Vec<_> = control
            .drain()
            .filter_map(|m| match m {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(rustix::fs::fstat(&fds[0]).unwrap().st_rdev, rustix::fs::fstat(&file).unwrap().st_rdev);
    }
}
