//! The sockets on which a container's questions come: in its own network namespace, behind the port 53 of [`ADDRESS`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

use isles_sandbox::network::Entered;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with};

use crate::error::{Error, Result};
use crate::firewall::{self, Published};
use crate::netlink::Socket;
use crate::place::within;
use crate::port::{Port, Protocol};

/// Whom a container asks.
pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
/// Where names are asked for (RFC 1035, section 4.2).
pub const PORT: u16 = 53;

/// The sockets in a container's network namespace.
#[derive(Debug)]
pub struct Sockets {
    pub udp: OwnedFd,
    pub tcp: OwnedFd,
}

impl Sockets {
    /// Makes them, and lets the port 53 of [`ADDRESS`] lead to them, so that a program of the container can have that port.
    pub fn open(namespace: BorrowedFd<'_>) -> Result<Sockets> {
        within(namespace, || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let any = SocketAddr::new(ADDRESS, 0);
            let udp = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
            bind(&udp, &any)?;
            let tcp = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            bind(&tcp, &any)?;
            listen(&tcp, 16)?;
            let sockets = Sockets { udp, tcp };
            let ports = redirections(&sockets)?;
            let mut rules = Socket::netfilter()?;
            firewall::redirect(&mut rules, &ports)?;
            Ok(sockets)
        })
        .map_err(|e| Error::system("serve names to the container", e))
    }
}

impl Sockets {
    /// The same in the namespace that a process has entered for its owner. Where there is no firewall for him, the port is
    /// taken by the sockets themselves.
    pub fn of_entered(entered: &Entered) -> Result<Sockets> {
        let open = |port: u16| -> io::Result<Sockets> {
            let of = |kind: i32| -> io::Result<OwnedFd> {
                let socket = entered.socket(libc::AF_INET, kind | libc::SOCK_NONBLOCK, 0)?;
                bind(&socket, &SocketAddr::new(ADDRESS, port))?;
                Ok(socket)
            };
            let sockets = Sockets { udp: of(libc::SOCK_DGRAM)?, tcp: of(libc::SOCK_STREAM)? };
            listen(&sockets.tcp, 16)?;
            Ok(sockets)
        };
        let with_firewall = || -> io::Result<Sockets> {
            let sockets = open(0)?;
            let rules = entered.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)?;
            firewall::redirect(&mut Socket::opened(rules), &redirections(&sockets)?)?;
            Ok(sockets)
        };
        with_firewall().or_else(|_| open(PORT)).map_err(|e| Error::system("serve names to the container", e))
    }
}

/// What leads from the port 53 to the sockets.
fn redirections(sockets: &Sockets) -> io::Result<Vec<Published>> {
    let mut ports = Vec::with_capacity(2);
    for (socket, protocol) in [(&sockets.udp, Protocol::Udp), (&sockets.tcp, Protocol::Tcp)] {
        let bound: SocketAddr = getsockname(socket)?.try_into()?;
        let port = Port { address: Some(ADDRESS), host: PORT, container: bound.port(), protocol };
        ports.push(Published { port, target: ADDRESS });
    }
    Ok(ports)
}
