//! From one container to another of the same user's, where both are in a network: no packet is passed on, but what is in
//! it. Whoever serves the one asks whoever serves the other, through a socket in that one's folder (unix(7)), and the
//! two stacks speak to their containers as if there were a wire.
//!
//! A connection begins with who speaks to whom ([`Introduction`]). Of a stream the answer is one byte when the other
//! container has taken it, and the end where it has not; datagrams go at once.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, send,
    socket_with,
};

use super::rules::canonical;
use super::serve::Kind;

/// The length of an introduction: a version, then address and port of each end.
pub const LENGTH: usize = 1 + 2 * 18;
const VERSION: u8 = 1;
/// The other container has taken the connection.
pub const TAKEN: u8 = 1;
const BACKLOG: i32 = 128;
/// What a socket is called before somebody listens.
const NEW: &str = "network.new";

/// Who speaks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Introduction {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

impl Introduction {
    pub fn bytes(&self) -> [u8; LENGTH] {
        let mut bytes = [VERSION; LENGTH];
        for (place, end) in bytes[1..].chunks_exact_mut(18).zip([self.from, self.to]) {
            let address = match end.ip() {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            place[..16].copy_from_slice(&address.octets());
            place[16..].copy_from_slice(&end.port().to_be_bytes());
        }
        bytes
    }

    pub fn read(bytes: &[u8]) -> Option<Introduction> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        let end = |at: usize| -> Option<SocketAddr> {
            let address = Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).ok()?);
            let port = u16::from_be_bytes([bytes[at + 16], bytes[at + 17]]);
            Some(SocketAddr::new(canonical(address.into()), port))
        };
        let (from, to) = (end(1)?, end(19)?);
        (bytes[0] == VERSION && from.is_ipv4() == to.is_ipv4()).then_some(Introduction { from, to })
    }
}

fn name(kind: Kind) -> &'static str {
    if kind == Kind::Datagrams { "network.datagrams" } else { "network.stream" }
}

fn type_of(kind: Kind) -> SocketType {
    if kind == Kind::Datagrams { SocketType::SEQPACKET } else { SocketType::STREAM }
}

/// The socket of that name in a folder. A path of a socket has 107 bytes at most, and a folder may be anywhere.
fn address(folder: &File, name: &str) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())))
}

/// Listens in the folder of a container for what others of its networks want. The name is there when somebody listens.
pub fn hear(folder: &Path, kind: Kind) -> io::Result<OwnedFd> {
    let (new, known) = (folder.join(NEW), folder.join(name(kind)));
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let folder = File::open(folder)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, type_of(kind), flags, None)?;
    bind(&socket, &address(&folder, NEW)?)?;
    listen(&socket, BACKLOG)?;
    std::fs::rename(new, known)?;
    Ok(socket)
}

/// Whether somebody listens in the folder of a container. Who connects and says nothing is forgotten.
pub fn is_heard(folder: &Path) -> bool {
    let Ok(folder) = File::open(folder) else { return false };
    [Kind::Stream, Kind::Datagrams].into_iter().all(|kind| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, type_of(kind), flags, None);
        let connected = socket.and_then(|socket| connect(&socket, &address(&folder, name(kind))?));
        // A queue that is full is somebody's.
        matches!(connected, Ok(()) | Err(Errno::AGAIN))
    })
}

/// Asks whoever serves the container with that folder.
pub fn ask(folder: &Path, kind: Kind, introduction: &Introduction) -> Result<OwnedFd, Errno> {
    // One that has no such folder, or nobody who listens in it, does not run.
    let gone = |_| Errno::HOSTUNREACH;
    let folder = File::open(folder).map_err(|_| Errno::HOSTUNREACH)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, type_of(kind), flags, None)?;
    connect(&socket, &address(&folder, name(kind))?).map_err(gone)?;
    send(&socket, &introduction.bytes(), SendFlags::NOSIGNAL).map_err(gone)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn introductions() {
        for (from, to) in [("10.1.0.2:5", "10.1.0.3:80"), ("[fd00::2]:5", "[fd00::3]:80")] {
            let said = Introduction { from: from.parse().unwrap(), to: to.parse().unwrap() };
            assert_eq!(Introduction::read(&said.bytes()), Some(said));
            assert_eq!(Introduction::read(&said.bytes()[1..]), None);
            let mut other = said.bytes();
            other[0] = 9;
            assert_eq!(Introduction::read(&other), None);
        }
        assert_eq!(Introduction::read(&[1; 5]), None);
    }

    #[test]
    fn who_is_not_there_is_not_reached() {
        let dir = tempfile::tempdir().unwrap();
        let said = Introduction { from: "10.1.0.2:5".parse().unwrap(), to: "10.1.0.3:80".parse().unwrap() };
        for kind in [Kind::Stream, Kind::Datagrams] {
            assert_eq!(ask(dir.path(), kind, &said).unwrap_err(), Errno::HOSTUNREACH);
            let socket = hear(dir.path(), kind).unwrap();
            assert!(!is_heard(dir.path()), "one of two is not enough");
            ask(dir.path(), kind, &said).unwrap();
            // The next one in the same folder takes its place.
            drop(socket);
            assert_eq!(ask(dir.path(), kind, &said).unwrap_err(), Errno::HOSTUNREACH);
            hear(dir.path(), kind).unwrap();
        }
        assert!(!is_heard(dir.path()), "nobody listens any more");
        let _both = [Kind::Stream, Kind::Datagrams].map(|kind| hear(dir.path(), kind).unwrap());
        assert!(is_heard(dir.path()));
        assert_eq!(ask(&dir.path().join("none"), Kind::Stream, &said).unwrap_err(), Errno::HOSTUNREACH);
    }
}
