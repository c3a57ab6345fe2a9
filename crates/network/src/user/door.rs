//! Published ports of root's to which the kernel leads nobody: the host's own address of IPv6 (`::1`), from which it knows no way
//! into another network namespace, and all of IPv6 where the container has addresses of IPv4 only.
//!
//! The socket that keeps such a port from other programs listens. Whoever connects with it is passed on to the container by
//! a thread of the process that stays with it; everybody else is led there by the firewall and never seen here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, acceptfrom_with, socket_with};

use super::relay::{FIRST_RELAYED, Relay};
use super::socket::{descriptors, reset};

/// Numbers of what is waited for besides connections.
const END: u64 = 0;
const DOORS: u64 = 1;
/// Connections that are accepted before others get their turn.
const TURN: usize = 64;
/// The thread's stack. What is large is allocated.
const STACK: usize = 128 << 10;

/// A port of the host's that listens, and the one of the container's to which it leads.
#[derive(Debug)]
pub struct Door {
    pub socket: OwnedFd,
    pub port: u16,
}

/// Connections are passed on until this is dropped; then the ports are free.
#[derive(Debug)]
pub struct Passing {
    end: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Passing {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.end, &1u64.to_ne_bytes());
        // It waits for nobody.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Passes on who comes to these ports, until what it gives back is dropped. `whereto` is asked for the container's address
/// with each that comes; without one they are refused.
///
/// # Errors
/// No thread, or no descriptor.
pub fn serve(doors: Vec<Door>, whereto: impl Fn() -> Option<IpAddr> + Send + 'static) -> io::Result<Passing> {
    let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let theirs = end.clone();
    let thread = std::thread::Builder::new().name("ports".to_owned()).stack_size(STACK).spawn(move || {
        // Where no descriptor is left, the ports are closed with it.
        let _ = run(&doors, &whereto, &theirs);
    })?;
    Ok(Passing { end, thread: Some(thread) })
}

fn run(doors: &[Door], whereto: &dyn Fn() -> Option<IpAddr>, end: &OwnedFd) -> io::Result<()> {
    // Most of them nobody ever comes to.
    if !first(doors, end)? {
        return Ok(());
    }
    let waiting = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&waiting, end, EventData::new_u64(END), EventFlags::IN)?;
    for (number, door) in doors.iter().enumerate() {
        let token = EventData::new_u64(DOORS + number as u64);
        epoll::add(&waiting, &door.socket, token, EventFlags::IN)?;
    }
    // A connection takes two descriptors, so all of them take half of what there are.
    let mut relay = Relay::new(Box::new(socket), waiting.try_clone()?, descriptors() / 4);
    let mut events = Vec::with_capacity(64);
    loop {
        let wait = relay.is_unsettled().then(|| timespec(Duration::ZERO));
        events.clear();
        match epoll::wait(&waiting, rustix::buffer::spare_capacity(&mut events), wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for event in &events {
            match event.data.u64() {
                END => return Ok(()),
                token if token >= FIRST_RELAYED => relay.stirred(token, event.flags),
                token => {
                    if let Some(door) = doors.get((token - DOORS) as usize) {
                        accept(door, whereto, &mut relay);
                    }
                }
            }
        }
        relay.settle();
    }
}

/// Waits until there is something to do; `false` where it is to end.
fn first(doors: &[Door], end: &OwnedFd) -> io::Result<bool> {
    let sockets = doors.iter().map(|door| &door.socket);
    let mut fds: Vec<PollFd<'_>> =
        [end].into_iter().chain(sockets).map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    loop {
        match poll(&mut fds, None) {
            Ok(_) => return Ok(fds[0].revents().is_empty()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn accept(door: &Door, whereto: &dyn Fn() -> Option<IpAddr>, relay: &mut Relay<'_>) {
    for _ in 0..TURN {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // One that has gone again, or no descriptor is left: the next one may find things better.
        let Ok((connection, Some(peer))) = acceptfrom_with(&door.socket, flags) else { return };
        let Ok(peer) = SocketAddr::try_from(peer) else { continue };
        let place = whereto().map(|address| SocketAddr::new(address, door.port));
        if let Err(connection) = relay.open(connection, peer, [place, None]) {
            reset(&connection);
        }
    }
}

/// A socket of the host's.
fn socket(ipv6: bool) -> io::Result<OwnedFd> {
    let family = if ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    fn door(port: u16) -> Option<(Door, SocketAddr)> {
        let listener = TcpListener::bind("[::1]:0").or_else(|_| TcpListener::bind("127.0.0.1:0")).ok()?;
        listener.set_nonblocking(true).ok()?;
        let address = listener.local_addr().ok()?;
        Some((Door { socket: listener.into(), port }, address))
    }

    #[test]
    fn who_comes_is_passed_on_until_the_end() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (door, address) = door(server.local_addr().unwrap().port()).unwrap();
        let service = serve(vec![door], || Some(Ipv4Addr::LOCALHOST.into())).unwrap();
        for text in [&b"first"[..], b"second"] {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(text).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let (mut inside, _) = server.accept().unwrap();
            let mut said = Vec::new();
            inside.read_to_end(&mut said).unwrap();
            inside.write_all(&said).unwrap();
            drop(inside);
            let mut back = Vec::new();
            client.read_to_end(&mut back).unwrap();
            assert_eq!(back, text);
        }
        // Nobody listens any more.
        drop(server);
        let mut client = TcpStream::connect(address).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        // The port is free at once.
        drop(service);
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn without_an_address_it_leads_nowhere() {
        let (door, address) = door(1).unwrap();
        let _service = serve(vec![door], || None).unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
