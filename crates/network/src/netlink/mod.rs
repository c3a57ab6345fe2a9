//! Netlink: messages to the kernel and its answers (netlink(7)), as far as devices, addresses, routes and the firewall
//! need them.

pub mod message;
pub mod nft;
pub mod route;

use std::io;
use std::os::fd::OwnedFd;

use message::{Batch, Header};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt,
};

/// A socket to one part of the kernel, of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// What one answer may have; the kernel cuts dumps to it.
    buffer: Vec<u8>,
}

/// A message of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub kind: u16,
    /// After the header.
    pub body: Vec<u8>,
}

impl Socket {
    /// To devices, addresses and routes (rtnetlink(7)).
    pub fn route() -> io::Result<Socket> {
        Socket::open(None)
    }

    /// To the firewall.
    pub fn netfilter() -> io::Result<Socket> {
        Socket::open(Some(rustix::net::netlink::NETFILTER))
    }

    /// One that somebody else has opened, in another network namespace.
    pub fn opened(fd: OwnedFd) -> Socket {
        Socket { fd, buffer: vec![0; 64 << 10] }
    }

    /// Without a protocol it is NETLINK_ROUTE, whose number is 0.
    fn open(protocol: Option<Protocol>) -> io::Result<Socket> {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        // A large transaction is one datagram. Without the right to more there is what everybody may have.
        let _ = sockopt::set_socket_send_buffer_size_force(&fd, 4 << 20);
        let _ = sockopt::set_socket_recv_buffer_size_force(&fd, 4 << 20);
        Ok(Socket { fd, buffer: vec![0; 64 << 10] })
    }

    /// Sends messages, each of which asks for an acknowledgement, and waits for all of those.
    ///
    /// # Errors
    /// The first refusal, and the number of the message that was refused.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), Refusal> {
        let whole = |source| Refusal { index: 0, source };
        send(&self.fd, batch.bytes(), SendFlags::empty()).map_err(|e| whole(e.into()))?;
        let mut missing: Vec<u32> = batch.acknowledged().to_vec();
        let mut refused: Option<Refusal> = None;
        while !missing.is_empty() {
            for (header, body) in self.receive().map_err(whole)? {
                // What comes of no message of ours is the answer of an earlier exchange.
                let position = missing.iter().position(|&sequence| sequence == header.sequence);
                if header.kind != message::ERROR {
                    continue;
                }
                let code = body.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                if code != 0 && (position.is_some() || batch.has(header.sequence)) {
                    let refusal = Refusal {
                        index: batch.index(header.sequence),
                        source: io::Error::from_raw_os_error(-code),
                    };
                    // A transaction that was refused is refused as a whole: the others have no answers of their own.
                    if refused.is_none() {
                        refused = Some(refusal);
                    }
                    if batch.is_transaction() {
                        missing.clear();
                        break;
                    }
                }
                if let Some(position) = position {
                    missing.swap_remove(position);
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Sends one question, and collects all that the kernel says to it.
    pub fn ask(&mut self, batch: &Batch) -> io::Result<Vec<Answer>> {
        send(&self.fd, batch.bytes(), SendFlags::empty())?;
        let mut answers = Vec::new();
        loop {
            for (header, body) in self.receive()? {
                if !batch.has(header.sequence) {
                    continue;
                }
                match header.kind {
                    message::ERROR => {
                        let code = body.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                        return if code == 0 {
                            Ok(answers)
                        } else {
                            Err(io::Error::from_raw_os_error(-code))
                        };
                    }
                    message::DONE => return Ok(answers),
                    kind => answers.push(Answer { kind, body }),
                }
            }
        }
    }

    /// Closes the socket aside, after something was taken out of the firewall: that is in force at once. The wait would hold
    /// the firewall's own lock, too, so it comes when there is nothing left to wait for.
    pub fn close_aside(self) {
        isles_sandbox::aside::close(self.fd, std::time::Duration::from_millis(200));
    }

    fn receive(&mut self) -> io::Result<Vec<(Header, Vec<u8>)>> {
        let (length, whole) = loop {
            match recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::TRUNC) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        if whole > length {
            return Err(io::Error::other("an answer of the kernel is too long"));
        }
        message::split(&self.buffer[..length])
    }
}

impl std::os::fd::AsFd for Socket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The kernel refused a message.
#[derive(Debug)]
pub struct Refusal {
    /// Which one, counted from 0.
    pub index: usize,
    pub source: io::Error,
}

impl Refusal {
    /// The number of the error.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> io::Error {
        refusal.source
    }
}
