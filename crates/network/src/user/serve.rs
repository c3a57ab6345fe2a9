//! The thread that serves a container's network.
//!
//! It sleeps until the container looks for its router, or somebody connects to a published port; only then is there a
//! link, a stack, and memory for them. A container that never speaks costs a thread that never ran.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use isles_sandbox::network::Entered;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, recv, send};
use serde::{Deserialize, Serialize};

use super::inside;
use super::late::{Late, answer_names};
use super::relay::{FIRST_RELAYED, Relay, Sockets};
use super::ring::Ring;
use super::rules::{Rules, canonical};
use super::stack::{FIRST_FLOW, Stack};
use crate::netlink::message::{self, Batch};

/// Numbers of what is waited for besides flows: the link, the kernel's questions, the end, and published ports.
const LINK: u64 = 0;
const QUESTIONS: u64 = 1;
const END: u64 = 2;
const PORTS: u64 = 3;
/// Frames that are read before sockets get their turn, and connections that are accepted.
const TURN: usize = 64;
/// Sockets that are made at once in the container's network namespace.
const SOCKETS: usize = 16;
/// A question for a neighbour, and the attribute that says for which (RTM_GETNEIGH, NDA_DST).
const GET_NEIGHBOUR: u16 = 30;
const NEIGHBOUR: u16 = 1;
/// The thread's stack. What is large is allocated.
const STACK: usize = 128 << 10;

/// A port of the host that leads into the container: sockets that listen, or take datagrams.
#[derive(Debug)]
pub struct Listener {
    pub socket: OwnedFd,
    pub kind: Kind,
    /// Where the container has it.
    pub port: u16,
    /// The socket is one of IPv6.
    pub ipv6: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Stream,
    Datagrams,
    /// What other containers want of this one.
    NeighboursStream,
    NeighboursDatagrams,
}

/// A network that is served until this is dropped; then its ports are free.
#[derive(Debug)]
pub struct Service {
    end: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.end, &1u64.to_ne_bytes());
        // It waits for nobody.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Serves the network of a container that was made with [`inside::Plan::messages`], on whose socket `network` they were
/// sent. `late` is for one that shares no networks yet. What fails later is told to `warn`, by the thread.
///
/// # Errors
/// No thread, or no descriptor.
pub fn serve(
    network: OwnedFd,
    rules: Rules,
    listeners: Vec<Listener>,
    late: Option<Late>,
    warn: impl FnOnce(io::Error) + Send + 'static,
) -> io::Result<Service> {
    let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let theirs = end.clone();
    let thread =
        std::thread::Builder::new().name("network".to_owned()).stack_size(STACK).spawn(move || {
            if let Err(e) = run(&network, rules, listeners, late, &theirs) {
                warn(e);
            }
        })?;
    Ok(Service { end, thread: Some(thread) })
}

fn run(
    network: &OwnedFd,
    rules: Rules,
    listeners: Vec<Listener>,
    mut late: Option<Late>,
    end: &Arc<OwnedFd>,
) -> io::Result<()> {
    if !first(network, &listeners, end)? {
        return Ok(());
    }
    let plan = rules.plan;
    let entered = Entered::of(network.as_fd())?;
    let ring = Ring::new(entered.socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?, plan.mac)?;
    let waiting = epoll::create(CreateFlags::CLOEXEC)?;
    let level = EventFlags::IN;
    epoll::add(&waiting, ring.as_fd(), EventData::new_u64(LINK), level)?;
    epoll::add(&waiting, network, EventData::new_u64(QUESTIONS), level)?;
    epoll::add(&waiting, &**end, EventData::new_u64(END), level)?;
    for (number, listener) in listeners.iter().enumerate() {
        epoll::add(&waiting, &listener.socket, EventData::new_u64(PORTS + number as u64), level)?;
    }
    say(network, &plan.known());
    let mut stack = Stack::new(ring, rules, waiting.try_clone()?);
    // A connection that is passed on takes two descriptors, one of the stack's takes one: so not many fewer fit in all.
    let mut relay = Relay::new(sockets(&entered), waiting.try_clone()?, stack.most() / 8);
    let mut ports: Vec<Port> = Vec::new();
    for listener in listeners {
        // Whether somebody listens is only known for connections: those are tried by IPv6 first.
        let container: IpAddr = match (listener.ipv6 && listener.kind == Kind::Stream, plan.v6) {
            (true, Some(net)) => net.container.into(),
            _ => plan.v4.container.into(),
        };
        let port = SocketAddr::new(container, listener.port);
        ports.push(match listener.kind {
            Kind::Stream => Port::Stream(listener.socket, port),
            Kind::Datagrams => Port::Datagrams(stack.publish(listener.socket), port),
            Kind::NeighboursStream => Port::Neighbours(listener.socket, Kind::Stream),
            Kind::NeighboursDatagrams => Port::Neighbours(listener.socket, Kind::Datagrams),
        });
    }
    let mut events = Vec::with_capacity(256);
    loop {
        stack.elsewhere = relay.descriptors();
        let wait = stack.tick(Instant::now());
        let wait = if relay.is_unsettled() { Duration::ZERO } else { wait };
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        events.clear();
        match epoll::wait(&waiting, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let now = Instant::now();
        for event in &events {
            match event.data.u64() {
                LINK => {
                    for _ in 0..TURN {
                        let Some(frame) = stack.link.receive() else { break };
                        stack.frame(&frame, now);
                    }
                }
                QUESTIONS => {
                    answer(network);
                    // Whoever lets the container join a network says so by a neighbour.
                    stack.refresh();
                    if let Some(mut joins) = late.take_if(|_| !stack.rules.shared.is_empty()) {
                        if let Some(resolver) = joins.resolver(&entered) {
                            answer_names(resolver, end.clone());
                        }
                        match joins.listeners() {
                            Ok(listeners) => {
                                for (socket, kind) in listeners {
                                    let token = EventData::new_u64(PORTS + ports.len() as u64);
                                    epoll::add(&waiting, &socket, token, level)?;
                                    ports.push(Port::Neighbours(socket, kind));
                                }
                            }
                            // Whoever waits for them says that it failed, and may try again.
                            Err(_) => late = Some(joins),
                        }
                    }
                }
                END => return Ok(()),
                token if token >= FIRST_RELAYED => relay.stirred(token, event.flags),
                token if token >= FIRST_FLOW => stack.stirred(token, now),
                token => match ports.get((token - PORTS) as usize) {
                    Some(Port::Stream(socket, port)) => accept(&mut stack, &mut relay, socket, *port, now),
                    Some(Port::Datagrams(number, port)) => stack.came(*number, *port, now),
                    Some(Port::Neighbours(socket, kind)) => welcome(&mut stack, socket, *kind, now),
                    None => {}
                },
            }
        }
        stack.settle(now);
        relay.settle();
    }
}

/// Sockets of TCP in the namespace, some of which are always there.
fn sockets(entered: &Entered) -> Sockets<'_> {
    let mut spare = [Vec::new(), Vec::new()];
    Box::new(move |ipv6| {
        let spare = &mut spare[usize::from(ipv6)];
        if spare.is_empty() {
            let domain = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
            entered.sockets(domain, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0, SOCKETS, spare)?;
        }
        spare.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
    })
}

/// A published port, in the stack.
enum Port {
    Stream(OwnedFd, SocketAddr),
    Datagrams(usize, SocketAddr),
    Neighbours(OwnedFd, Kind),
}

/// Waits until there is something to do; `false` where it is to end.
fn first(network: &OwnedFd, listeners: &[Listener], end: &OwnedFd) -> io::Result<bool> {
    let mut fds: Vec<PollFd<'_>> = [end, network]
        .into_iter()
        .chain(listeners.iter().map(|listener| &listener.socket))
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    loop {
        match poll(&mut fds, None) {
            Ok(_) => return Ok(fds[0].revents().is_empty()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn accept(stack: &mut Stack<Ring>, relay: &mut Relay<'_>, socket: &OwnedFd, port: SocketAddr, now: Instant) {
    let v4 = SocketAddr::new(stack.rules.plan.v4.container.into(), port.port());
    for _ in 0..TURN {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::acceptfrom_with(socket, flags) {
            Ok((connection, Some(peer))) => {
                let Ok(peer) = SocketAddr::try_from(peer) else { continue };
                let connection = if canonical(peer.ip()).is_loopback() {
                    match relay.open(connection, peer, [Some(port), port.is_ipv6().then_some(v4)]) {
                        Ok(()) => continue,
                        Err(connection) => connection,
                    }
                } else {
                    connection
                };
                stack.accepted(connection, peer, port, now);
            }
            Err(Errno::AGAIN) => return,
            // One that has gone again, or no descriptor is left: the next one may find things better.
            Ok(_) | Err(_) => return,
        }
    }
}

fn welcome(stack: &mut Stack<Ring>, socket: &OwnedFd, kind: Kind, now: Instant) {
    for _ in 0..TURN {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(connection) = rustix::net::accept_with(socket, flags) else { return };
        stack.introduced(connection, kind, now);
    }
}

/// The kernel looks for neighbours: all of them are at the router.
fn answer(network: &OwnedFd) {
    let mut buffer = [0; 4096];
    while let Ok((length, _)) = recv(network, &mut buffer, RecvFlags::DONTWAIT) {
        let mut batch = Batch::new();
        for (header, body) in message::split(&buffer[..length.min(buffer.len())]).unwrap_or_default() {
            let address = body.get(12..).and_then(|attributes| message::attribute(attributes, NEIGHBOUR));
            let address = address.and_then(|address| {
                let v4 = <[u8; 4]>::try_from(address).ok().map(IpAddr::from);
                v4.or_else(|| <[u8; 16]>::try_from(address).ok().map(IpAddr::from))
            });
            if let (GET_NEIGHBOUR, Some(address)) = (header.kind, address) {
                inside::neighbour(&mut batch, address);
            }
        }
        if !batch.is_empty() {
            say(network, &batch);
        }
    }
}

/// Says something about the namespace. A container that has changed its devices has no use for it, and finds out itself.
fn say(network: &OwnedFd, batch: &Batch) {
    let _ = send(network, batch.bytes(), SendFlags::DONTWAIT);
}
