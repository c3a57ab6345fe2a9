//! Network namespaces: what a new one gets, and sockets in it for those who are not.
//!
//! A socket belongs to the network namespace of the process that made it, wherever it is used. So a process that enters
//! the namespace makes sockets for one that stays outside. It also holds those that take time to close (the kernel
//! waits for all who may still look at a packet(7) socket), so that nobody waits for that.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::child::{Done, Failure};
use crate::error::Step;
use crate::setup::NetworkMessages;
use crate::spawn::reap;
use crate::sys::process::{self as p, Side};
use crate::sys::{self, Errno, Fd};
use crate::terminal;

/// The network namespace of a socket, and the user namespace that a namespace belongs to (ioctl_ns(2)).
const SIOCGSKNS: libc::Ioctl = 0x894c;
const NS_GET_USERNS: libc::Ioctl = 0xb701;
/// Changes of neighbours, and questions for them (RTNLGRP_NEIGH).
const NEIGHBOURS: libc::c_int = 3;
/// A header of netlink and the number of an error.
const REFUSAL: usize = 20;
/// A domain, a kind, a protocol, and how many.
const REQUEST: usize = 16;
/// The word that comes with a socket. What comes alone is the number of an error, which this is of none that socket(2) has.
const SOCKET: u8 = b's';

/// Sends the messages, and the socket over `news`. Runs between clone3 and exec.
pub(crate) fn set_up(messages: &NetworkMessages, news: i32) -> Done {
    let failure =
        |index: usize| move |Errno(errno)| Failure { step: Step::Devices, errno, index: index as u32 };
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes numbers.
    let socket = sys::check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) }.into())
        .map(|fd| Fd(fd as i32))
        .map_err(failure(0))?;
    // SAFETY: the bytes live, and are as many as is said.
    let sent = unsafe { libc::send(socket.0, messages.bytes.as_ptr().cast(), messages.bytes.len(), 0) };
    sys::check(sent as libc::c_long).map_err(failure(0))?;
    let mut heard = 0;
    while heard < messages.number {
        let mut bytes = [0; 4096];
        let length = sys::read(socket.0, &mut bytes).map_err(failure(heard))?;
        let mut rest = &bytes[..length];
        while rest.len() >= REFUSAL {
            let word = |at: usize| [rest[at], rest[at + 1], rest[at + 2], rest[at + 3]];
            let refused = i32::from_ne_bytes(word(16));
            if refused != 0 {
                return Err(failure(heard)(Errno(-refused)));
            }
            heard += 1;
            let length = (u32::from_ne_bytes(word(0)) as usize).max(REFUSAL).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
    let group = NEIGHBOURS;
    // SAFETY: the option is an int, which lives.
    let joined = unsafe {
        libc::setsockopt(
            socket.0,
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    sys::check(joined.into()).map_err(failure(heard))?;
    terminal::send(news, b'n', socket.0).map_err(failure(heard))
}

/// A process in a network namespace, which makes sockets there until this is dropped.
#[derive(Debug)]
pub struct Entered {
    requests: OwnedFd,
}

impl Entered {
    /// Enters the namespace of a socket. It takes the rights over it: those of root, or of the user who made the user
    /// namespace that it belongs to. The caller may have threads.
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Entered> {
        // SAFETY: the request takes a descriptor and gives a new one.
        let network = sys::check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) }.into())
            .map(|fd| Fd(fd as i32))
            .map_err(os)?;
        Entered::namespace(&owned(network))
    }

    /// The same of a namespace itself, as /proc/PID/ns/net is one.
    pub fn namespace(network: &OwnedFd) -> io::Result<Entered> {
        let network = network.as_raw_fd();
        // SAFETY: as above.
        let user = sys::check(unsafe { libc::ioctl(network, NS_GET_USERNS) }.into())
            .map(|fd| Fd(fd as i32))
            .map_err(os)?;
        let own = sys::open(c"/proc/self/ns/user", libc::O_RDONLY, 0).map_err(os)?;
        let (theirs, ours) = (sys::stat(user.0).map_err(os)?, sys::stat(own.0).map_err(os)?);
        let other = (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino);
        let (here, there) = sys::socket_pair().map_err(os)?;
        match p::clone3(0, None).map_err(os)? {
            Side::Child => {
                // Nobody's child: it may outlive the caller for a moment, and needs nobody who waits for it.
                if let Ok(Side::Child) = p::clone3(0, None) {
                    let _ = entered(there.0, other.then_some(user.0), network);
                }
                p::exit(0)
            }
            Side::Parent { pid, .. } => {
                reap(pid, 0)?;
                Ok(Entered { requests: owned(here) })
            }
        }
    }

    /// A socket of this domain, kind and protocol (socket(2)).
    pub fn socket(&self, domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
        let mut sockets = Vec::with_capacity(1);
        self.sockets(domain, kind, protocol, 1, &mut sockets)?;
        sockets.pop().ok_or_else(gone)
    }

    /// So many of them, which costs little more than one. None is added where there is an error.
    pub fn sockets(
        &self,
        domain: i32,
        kind: i32,
        protocol: i32,
        number: usize,
        into: &mut Vec<OwnedFd>,
    ) -> io::Result<()> {
        let mut request = [0; REQUEST];
        let number = number as i32;
        for (place, value) in request.as_chunks_mut::<4>().0.iter_mut().zip([domain, kind, protocol, number])
        {
            *place = value.to_ne_bytes();
        }
        sys::write_all(self.requests.as_raw_fd(), &request).map_err(os)?;
        let before = into.len();
        let mut failed = None;
        for _ in 0..number {
            match terminal::receive(self.requests.as_raw_fd()).map_err(os)? {
                Some((_, Some(socket))) => into.push(owned(socket)),
                // This process may have no more. The others come nevertheless.
                Some((SOCKET, None)) => failed = Some(io::Error::from_raw_os_error(libc::EMFILE)),
                // Nothing comes after an error.
                Some((errno, None)) => {
                    failed = Some(io::Error::from_raw_os_error(errno.into()));
                    break;
                }
                None => return Err(gone()),
            }
        }
        match failed {
            Some(failed) => {
                into.truncate(before);
                Err(failed)
            }
            None => Ok(()),
        }
    }
}

/// What that process does: system calls, and nothing that needs memory or a lock.
fn entered(requests: i32, user: Option<i32>, network: i32) -> sys::Result<()> {
    // SAFETY: setsid(2) has no preconditions. Signals of the caller's terminal are not for this process.
    unsafe { libc::setsid() };
    if let Some(user) = user {
        p::setns(user, libc::CLONE_NEWUSER)?;
    }
    p::setns(network, libc::CLONE_NEWNET)?;
    // What the caller has open is held open by nobody else. The three that are needed stay out of the way first.
    p::dup_to(requests, 0)?;
    // SAFETY: the call takes numbers; nothing in this process uses a descriptor but 0.
    sys::check(unsafe { libc::syscall(libc::SYS_close_range, 1u32, u32::MAX, 0u32) })?;
    loop {
        let mut request = [0; REQUEST];
        if sys::read(0, &mut request)? != request.len() {
            return Ok(());
        }
        let word =
            |at: usize| i32::from_ne_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
        for _ in 0..word(12) {
            // SAFETY: the call takes numbers.
            match sys::check(unsafe { libc::socket(word(0), word(4) | libc::SOCK_CLOEXEC, word(8)) }.into()) {
                Ok(socket) => {
                    terminal::send(0, SOCKET, socket as i32)?;
                    // One of packets stays, so that this process is the last to close it.
                    if word(0) != libc::AF_PACKET {
                        drop(Fd(socket as i32));
                    }
                }
                Err(Errno(errno)) => {
                    sys::write_all(0, &[errno.clamp(1, 255) as u8])?;
                    break;
                }
            }
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the process that had entered the network namespace is gone")
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
