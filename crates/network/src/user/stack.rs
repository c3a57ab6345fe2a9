//! All connections of a network: which of the container's packets belongs to which socket of the host's, and the other
//! way round.
//!
//! Each has one flow: a connection of TCP, two ends that send each other datagrams, or two that ping. Their number is
//! bounded by the descriptors that this process may have. Where there are too many, new connections of TCP are refused;
//! of the others, the one that was quiet for the longest goes.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send};

use super::inside::MTU;
use super::link::{Link, way};
use super::neighbour::{self, Introduction};
use super::packet::{self, Frame, Ip, RST, SYN, Segment};
use super::parts::Parts;
use super::rules::{Rules, Target};
use super::serve::Kind;
use super::socket;
use super::tcp::{Connection, Ends, Fate, IDLE, Outside, SCRATCH};

/// So many flows at most, and so many descriptors of the process that are left alone.
const FLOWS: usize = 8192;
const OTHER_DESCRIPTORS: usize = 128;
/// What connections may keep of what their sockets did not take, all together.
const KEPT: usize = 16 << 20;
/// Datagrams that are passed on before others get their turn.
const TURN: usize = 32;
/// Two ends of datagrams that are quiet for so long are forgotten: before the second one has spoken, and after.
const UNANSWERED: Duration = Duration::from_secs(30);
const ANSWERED: Duration = Duration::from_secs(180);
/// How often what is forgotten is looked for.
const SWEEP: Duration = Duration::from_secs(10);

/// A number that a descriptor of a flow has in the set of those that are waited for.
pub const FIRST_FLOW: u64 = 1 << 32;

/// What flows are told apart by: the protocol, and both ends.
type Key = (u8, Ends);

#[derive(Debug)]
enum Flow {
    Tcp(Box<Connection>),
    Datagrams(Datagrams),
    /// One from another container, of whom it is not known yet what it wants.
    Unknown(OwnedFd, Kind, Instant),
}

/// Two ends that send each other datagrams, or echoes.
#[derive(Debug)]
struct Datagrams {
    protocol: u8,
    ends: Ends,
    way: Outward,
    last: Instant,
    answered: bool,
}

/// Where a datagram of the container goes.
#[derive(Debug)]
enum Outward {
    /// Through a socket of the flow's own.
    Own(OwnedFd),
    /// Through one to whoever serves another container. A message of no bytes would be its end, so there is none.
    Neighbour(OwnedFd),
    /// Back to one who sent to a published port: its number, and the real address.
    Published(usize, SocketAddr),
}

/// The stack, between a link and the host's sockets.
#[derive(Debug)]
pub struct Stack<L> {
    pub link: L,
    pub rules: Rules,
    /// How many descriptors others have that would be a flow's.
    pub elsewhere: usize,
    /// Where the flows' sockets are waited for; numbers from [`FIRST_FLOW`].
    waiting: OwnedFd,
    flows: Vec<Option<Flow>>,
    free: Vec<usize>,
    keys: HashMap<Key, usize>,
    /// Sockets of published ports of UDP.
    published: Vec<OwnedFd>,
    most: usize,
    scratch: Box<[u8]>,
    room: usize,
    /// Flows that are to say something when all that came has been read.
    unsettled: Vec<usize>,
    next_late: Option<Instant>,
    next_sweep: Instant,
    numbers: RandomState,
    parts: Parts,
    /// What the largest packet to the container has.
    largest: usize,
    count: u64,
    /// How many there are of [`Flow::Unknown`].
    unknown: usize,
}

impl<L: Link> Stack<L> {
    /// # Errors
    /// The kernel has no descriptor left.
    pub fn new(link: L, rules: Rules, waiting: OwnedFd) -> Stack<L> {
        Stack {
            largest: rules.plan.mtu as usize,
            link,
            rules,
            elsewhere: 0,
            waiting,
            flows: Vec::new(),
            free: Vec::new(),
            keys: HashMap::new(),
            published: Vec::new(),
            most: socket::descriptors().saturating_sub(OTHER_DESCRIPTORS).clamp(64, FLOWS),
            scratch: vec![0; SCRATCH].into(),
            room: KEPT,
            unsettled: Vec::new(),
            next_late: None,
            next_sweep: Instant::now() + SWEEP,
            numbers: RandomState::new(),
            parts: Parts::default(),
            count: 0,
            unknown: 0,
        }
    }

    /// Looks at which networks the container shares now.
    pub fn refresh(&mut self) {
        self.rules.refresh();
        self.link.belongs_to(self.rules.plan.mac);
    }

    /// How many flows there may be, each with one descriptor.
    pub fn most(&self) -> usize {
        self.most
    }

    fn is_full(&self) -> bool {
        self.keys.len() + self.elsewhere >= self.most
    }

    /// The set of descriptors that is waited for.
    pub fn waiting(&self) -> &OwnedFd {
        &self.waiting
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// A frame came from a container, with the kernel's words before it.
    pub fn frame(&mut self, bytes: &[u8], now: Instant) {
        match packet::frame(bytes) {
            // Every address but its own is at the router: it looks for duplicates of that one.
            Some(Frame::Arp { asked, asker }) if !self.is_own(asked.into()) && !asker.is_unspecified() => {
                let way = way(asked.into(), asker.into());
                self.link.send(&packet::arp_reply(asked, asker, way.device, way.router), &[]);
            }
            Some(Frame::Ip(ip)) if is_one(ip.source) && self.is_own(ip.source) => match ip.part {
                None => self.packet(&ip, now),
                Some(_) => {
                    if let Some(payload) = self.parts.take(&ip) {
                        self.packet(&Ip { payload: &payload, part: None, ..ip }, now);
                    }
                }
            },
            _ => {}
        }
    }

    /// Whether the container has an address. It may have one of a network that it has just joined.
    fn is_own(&mut self, address: IpAddr) -> bool {
        self.rules.is_own(address) || {
            self.rules.refresh();
            self.rules.is_own(address)
        }
    }

    fn packet(&mut self, ip: &Ip<'_>, now: Instant) {
        match ip.protocol {
            packet::TCP => {
                if let Some(segment) = packet::segment(ip.payload) {
                    self.segment(ip, &segment, now);
                }
            }
            packet::UDP => {
                if let Some((from, to, data)) = packet::datagram(ip.payload)
                    && from != 0
                    && to != 0
                {
                    let ends = ends(ip, from, to);
                    for datagram in data.chunks(ip.each.unwrap_or(data.len()).max(1)) {
                        self.datagram(packet::UDP, ends, datagram, now);
                    }
                    if data.is_empty() {
                        self.datagram(packet::UDP, ends, data, now);
                    }
                }
            }
            packet::ICMP | packet::ICMPV6 => self.icmp(ip, now),
            _ => {}
        }
    }

    fn segment(&mut self, ip: &Ip<'_>, segment: &Segment<'_>, now: Instant) {
        let ends = ends(ip, segment.source, segment.destination);
        if let Some(&index) = self.keys.get(&(packet::TCP, ends)) {
            self.with(index, now, |connection, outside| connection.received(segment, outside));
            self.unsettled.push(index);
            return;
        }
        if segment.has(RST) {
            return;
        }
        if !segment.has(SYN) || segment.has(packet::ACK) {
            return self.refuse(ends, segment);
        }
        let Some(target) = self.rules.target(ends.remote) else {
            return self.out_of_reach(ends, segment.sequence, Errno::ACCESS);
        };
        if self.is_full() && !self.forget_quiet() {
            return self.refuse(ends, segment);
        }
        let is_container = matches!(target, Target::Container(_));
        match reach(Kind::Stream, &target, ends) {
            Ok(socket) => {
                let number = self.number(ends);
                let mut connection = Connection::asked(ends, socket, segment, number, now);
                connection.awaits_word = is_container;
                self.add(packet::TCP, ends, Flow::Tcp(Box::new(connection)));
            }
            Err(errno) => self.failed(ends, segment.sequence.wrapping_add(1), errno),
        }
    }

    /// Another container has something for this one.
    pub fn introduced(&mut self, socket: OwnedFd, kind: Kind, now: Instant) {
        if self.keys.len() + self.unknown + self.elsewhere >= self.most {
            return;
        }
        if self.insert(Flow::Unknown(socket, kind, now)).is_some() {
            self.unknown += 1;
        }
    }

    /// Reads what another container wants.
    fn learn(&mut self, index: usize, now: Instant) {
        let Some(Some(Flow::Unknown(socket, ..))) = self.flows.get(index) else { return };
        let mut bytes = [0; neighbour::LENGTH];
        let got = match recv(socket, &mut bytes, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => 0,
            Ok((length, _)) => length,
        };
        let Some(Flow::Unknown(socket, kind, _)) = self.remove(index) else { return };
        let Some(said) = Introduction::read(&bytes[..got]) else { return };
        self.rules.refresh();
        let from_shared = self.rules.shared.iter().any(|shared| {
            shared.own == said.to.ip()
                && shared.subnet.contains(said.from.ip())
                && said.from.ip() != shared.own
        });
        if !from_shared || said.from.port() == 0 || said.to.port() == 0 {
            return;
        }
        let ends = Ends { container: said.to, remote: said.from };
        match kind {
            Kind::Datagrams => {
                if let Some(&index) = self.keys.get(&(packet::UDP, ends)) {
                    // The other one has forgotten; what is known here is of no use any more.
                    drop(self.remove(index));
                }
                if let Some(index) = self.add_datagrams(packet::UDP, ends, Outward::Neighbour(socket), now) {
                    self.answered(index, now);
                }
            }
            _ => self.open_to(socket, ends, true, now),
        }
    }

    /// Somebody on the host's side has connected to a published port. `port` is where the container listens.
    pub fn accepted(&mut self, socket: OwnedFd, peer: SocketAddr, port: SocketAddr, now: Instant) {
        let Some(mut ends) =
            self.rules.seen(peer, port.is_ipv6()).map(|remote| Ends { container: port, remote })
        else {
            return;
        };
        // Two may come to look like one, where the router stands for them.
        for _ in 0..16 {
            if !self.keys.contains_key(&(packet::TCP, ends)) {
                break;
            }
            let other = 1024 + self.number(ends) % 64000;
            ends.remote.set_port(other as u16);
        }
        self.open_to(socket, ends, false, now);
    }

    /// Begins a connection to the container. `says` is whether the other side waits for a word that it is taken.
    fn open_to(&mut self, socket: OwnedFd, ends: Ends, says: bool, now: Instant) {
        let full = self.is_full() && !self.forget_quiet();
        if full || self.keys.contains_key(&(packet::TCP, ends)) {
            return;
        }
        let number = self.number(ends);
        let mut connection = Connection::accepted(ends, socket, number, now);
        connection.says_word = says;
        if let Some(index) = self.add(packet::TCP, ends, Flow::Tcp(Box::new(connection))) {
            self.with(index, now, |connection, outside| {
                connection.begin(outside);
                Fate::Stays
            });
        }
    }

    /// Takes a socket of a published port of UDP; the number by which [`Stack::came`] knows it.
    pub fn publish(&mut self, socket: OwnedFd) -> usize {
        self.published.push(socket);
        self.published.len() - 1
    }

    /// Datagrams came to a published port.
    pub fn came(&mut self, published: usize, port: SocketAddr, now: Instant) {
        for _ in 0..TURN {
            let Some(socket) = self.published.get(published) else { return };
            let received = rustix::net::recvfrom(socket, &mut self.scratch[..64 << 10], RecvFlags::DONTWAIT);
            let (length, peer) = match received {
                Ok((length, _, Some(peer))) => (length, peer),
                Err(Errno::AGAIN) => return,
                // What is said of an answer that was sent before.
                Ok(_) | Err(_) => continue,
            };
            let Ok(peer) = SocketAddr::try_from(peer) else { continue };
            let Some(remote) = self.rules.seen(peer, port.is_ipv6()) else { continue };
            let ends = Ends { container: port, remote };
            let index = match self.keys.get(&(packet::UDP, ends)) {
                Some(&index) => Some(index),
                None => {
                    let way = Outward::Published(published, peer);
                    self.add_datagrams(packet::UDP, ends, way, now)
                }
            };
            if let Some(Some(Flow::Datagrams(flow))) = index.and_then(|index| self.flows.get_mut(index)) {
                flow.last = now;
            }
            self.count += 1;
            send_datagram(&mut self.link, ends, &self.scratch[..length], (self.largest, self.count));
        }
    }

    /// A flow's socket has something to say. `token` is the one that was waited with.
    pub fn stirred(&mut self, token: u64, now: Instant) {
        let Ok(index) = usize::try_from(token - FIRST_FLOW) else { return };
        match self.flows.get(index) {
            Some(Some(Flow::Tcp(_))) => {
                self.with(index, now, |connection, outside| connection.stirred(outside));
                self.unsettled.push(index);
            }
            Some(Some(Flow::Datagrams(_))) => self.answered(index, now),
            Some(Some(Flow::Unknown(..))) => self.learn(index, now),
            _ => {}
        }
    }

    /// All that came has been read: what there is to say is said.
    pub fn settle(&mut self, now: Instant) {
        let mut unsettled = std::mem::take(&mut self.unsettled);
        unsettled.sort_unstable();
        unsettled.dedup();
        for index in unsettled.drain(..) {
            self.with(index, now, |connection, outside| connection.settle(outside));
        }
        self.unsettled = unsettled;
    }

    /// What time has brought. How long nothing more happens by itself.
    pub fn tick(&mut self, now: Instant) -> Duration {
        let sweep = self.next_sweep <= now;
        if sweep {
            self.next_sweep = now + SWEEP;
        }
        if sweep || self.next_late.is_some_and(|late| late <= now) {
            self.next_late = None;
            for index in 0..self.flows.len() {
                match &self.flows[index] {
                    Some(Flow::Tcp(connection))
                        if connection.deadline.is_some_and(|deadline| deadline <= now) =>
                    {
                        self.with(index, now, |connection, outside| connection.late(outside));
                    }
                    Some(Flow::Tcp(_)) if sweep => {
                        self.with(index, now, |connection, outside| connection.look(outside));
                    }
                    Some(Flow::Datagrams(flow)) if sweep && flow.is_over(now) => drop(self.remove(index)),
                    Some(Flow::Unknown(_, _, since))
                        if sweep && now.saturating_duration_since(*since) >= SWEEP =>
                    {
                        drop(self.remove(index));
                    }
                    _ => {}
                }
                if let Some(Some(Flow::Tcp(connection))) = self.flows.get(index) {
                    self.next_late = earlier(self.next_late, connection.deadline);
                }
            }
        }
        let next = earlier(self.next_late, Some(self.next_sweep)).unwrap_or(now + IDLE);
        // Nothing is due in an empty stack.
        if self.keys.is_empty() && self.unknown == 0 { IDLE } else { next.saturating_duration_since(now) }
    }

    fn with(
        &mut self,
        index: usize,
        now: Instant,
        act: impl FnOnce(&mut Connection, &mut Outside<'_, L>) -> Fate,
    ) {
        let Some(Some(Flow::Tcp(connection))) = self.flows.get_mut(index) else { return };
        let mut outside =
            Outside { link: &mut self.link, scratch: &mut self.scratch, now, room: &mut self.room };
        let fate = act(connection, &mut outside);
        self.next_late = earlier(self.next_late, connection.deadline);
        match fate {
            Fate::Stays => {}
            Fate::Over => drop(self.remove(index)),
            Fate::Refused => self.ask_again(index, now),
            Fate::Failed(errno) => {
                let (ends, expected) = (connection.ends, connection.expected());
                connection.reset_socket();
                drop(self.remove(index));
                self.failed(ends, expected, errno);
            }
        }
    }

    /// What listens in a container often does so by IPv4 alone, and those who connect by IPv6 first would never get there.
    fn ask_again(&mut self, index: usize, now: Instant) {
        let v4 = SocketAddr::from((self.rules.plan.v4.container, 0));
        let Some(Flow::Tcp(connection)) = self.remove(index) else { return };
        let Connection { ends, socket, says_word, .. } = *connection;
        if ends.container.is_ipv6() && !says_word {
            let port = SocketAddr::new(v4.ip(), ends.container.port());
            self.accepted(socket, ends.remote, port, now);
        } else {
            super::socket::reset(&socket);
        }
    }

    fn datagram(&mut self, protocol: u8, ends: Ends, data: &[u8], now: Instant) {
        let index = match self.keys.get(&(protocol, ends)) {
            Some(&index) => index,
            None => {
                let Some(target) = self.rules.target(ends.remote) else {
                    return self.unreachable(protocol, ends, Errno::ACCESS);
                };
                let socket = match reach(Kind::Datagrams, &target, ends) {
                    Ok(socket) => socket,
                    Err(errno) => return self.unreachable(protocol, ends, errno),
                };
                let way = match target {
                    Target::Host(_) => Outward::Own(socket),
                    Target::Container(_) => Outward::Neighbour(socket),
                };
                match self.add_datagrams(protocol, ends, way, now) {
                    Some(index) => index,
                    None => return,
                }
            }
        };
        self.outward(index, data, now);
    }

    /// Sends to the host's side.
    fn outward(&mut self, index: usize, data: &[u8], now: Instant) {
        let Some(Some(Flow::Datagrams(flow))) = self.flows.get_mut(index) else { return };
        flow.last = now;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = match &flow.way {
            Outward::Neighbour(_) if data.is_empty() => return,
            Outward::Own(socket) | Outward::Neighbour(socket) => send(socket, data, flags),
            Outward::Published(number, peer) => {
                flow.answered = true;
                match self.published.get(*number) {
                    Some(socket) => rustix::net::sendto(socket, data, flags, peer),
                    None => return,
                }
            }
        };
        // What a queue has no room for is lost.
        if let Err(errno) = sent
            && !matches!(errno, Errno::AGAIN | Errno::NOBUFS)
        {
            let (protocol, ends) = (flow.protocol, flow.ends);
            // Who serves the other container has forgotten this flow, or is gone: the next one is asked for anew.
            if matches!(flow.way, Outward::Neighbour(_)) {
                drop(self.remove(index));
            } else {
                self.unreachable(protocol, ends, errno);
            }
        }
    }

    /// Datagrams came from the host's side.
    fn answered(&mut self, index: usize, now: Instant) {
        for _ in 0..TURN {
            let Some(Some(Flow::Datagrams(flow))) = self.flows.get_mut(index) else { return };
            let (socket, is_neighbour) = match &flow.way {
                Outward::Own(socket) => (socket, false),
                Outward::Neighbour(socket) => (socket, true),
                Outward::Published(..) => return,
            };
            match recv(socket, &mut self.scratch[..64 << 10], RecvFlags::DONTWAIT) {
                Ok((0, _)) if is_neighbour => return drop(self.remove(index)),
                Ok((length, _)) => {
                    flow.last = now;
                    flow.answered = true;
                    let data = &mut self.scratch[..length];
                    if flow.protocol == packet::UDP {
                        self.count += 1;
                        send_datagram(&mut self.link, flow.ends, data, (self.largest, self.count));
                    } else {
                        echoed(&mut self.link, flow.ends, data, self.largest);
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) if is_neighbour => return drop(self.remove(index)),
                Err(errno) => {
                    let (protocol, ends) = (flow.protocol, flow.ends);
                    return self.unreachable(protocol, ends, errno);
                }
            }
        }
        // There may be more, which is only said once where nothing else is waited for.
        self.unsettled_datagrams(index);
    }

    fn unsettled_datagrams(&mut self, index: usize) {
        if let Some(Some(Flow::Datagrams(Datagrams {
            way: Outward::Own(socket) | Outward::Neighbour(socket),
            ..
        }))) = self.flows.get(index)
        {
            let data = EventData::new_u64(FIRST_FLOW + index as u64);
            let _ = epoll::modify(&self.waiting, socket, data, EventFlags::IN | EventFlags::ET);
        }
    }

    /// Pings (RFC 792, RFC 4443), and questions for the router (RFC 4861, 7.2).
    fn icmp(&mut self, ip: &Ip<'_>, now: Instant) {
        let Some((head, data)) = ip.payload.split_first_chunk::<8>() else { return };
        let word = [head[4], head[5], head[6], head[7]];
        let back = way(ip.destination, ip.source);
        match (ip.protocol, head[0]) {
            (packet::ICMP, 8) | (packet::ICMPV6, 128) if self.rules.is_router(ip.destination) => {
                let kind = if ip.protocol == packet::ICMP { 0 } else { 129 };
                self.link.send(&packet::icmp(&back, kind, 0, word, data), data);
            }
            (packet::ICMP, 8) | (packet::ICMPV6, 128) => {
                let identity = u16::from_be_bytes([head[4], head[5]]);
                let ends = ends(ip, identity, 0);
                let index = match self.keys.get(&(ip.protocol, ends)) {
                    Some(&index) => Some(index),
                    None if !self.rules.may_ping(ip.destination) => None,
                    None => socket::ping(ip.destination)
                        .ok()
                        .and_then(|socket| self.add_datagrams(ip.protocol, ends, Outward::Own(socket), now)),
                };
                match index {
                    Some(index) => self.outward(index, ip.payload, now),
                    None => self.unreachable(ip.protocol, ends, Errno::ACCESS),
                }
            }
            (packet::ICMPV6, 135) => {
                let Some(asked) = data.first_chunk::<16>() else { return };
                let asked = std::net::Ipv6Addr::from(*asked);
                if self.rules.is_own(asked.into()) || ip.source.is_unspecified() {
                    return;
                }
                // From a router, asked for, and instead of what was known; with its address as an option.
                let mut answer = [0; 24];
                answer[..16].copy_from_slice(&asked.octets());
                answer[16..18].copy_from_slice(&[2, 1]);
                answer[18..].copy_from_slice(&back.router);
                let back = way(asked.into(), ip.source);
                self.link.send(&packet::icmp(&back, 136, 0, [0xe0, 0, 0, 0], &answer), &answer);
            }
            _ => {}
        }
    }

    /// A connection could not be made.
    fn failed(&mut self, ends: Ends, expected: u32, errno: Errno) {
        match errno {
            Errno::CONNREFUSED | Errno::CONNRESET | Errno::MFILE | Errno::NFILE | Errno::NOBUFS => {
                self.reset(ends, 0, Some(expected));
            }
            errno => self.out_of_reach(ends, expected.wrapping_sub(1), errno),
        }
    }

    /// Tells the container that there is no such connection (RFC 9293, 3.10.7.1).
    fn refuse(&mut self, ends: Ends, segment: &Segment<'_>) {
        if segment.has(packet::ACK) {
            self.reset(ends, segment.acknowledged, None);
        } else {
            let length =
                segment.data.len() as u32 + u32::from(segment.has(SYN)) + u32::from(segment.has(packet::FIN));
            self.reset(ends, 0, Some(segment.sequence.wrapping_add(length)));
        }
    }

    fn reset(&mut self, ends: Ends, sequence: u32, acknowledged: Option<u32>) {
        let said = packet::Said {
            from: ends.remote.port(),
            to: ends.container.port(),
            sequence,
            acknowledged: acknowledged.unwrap_or(0),
            flags: RST | if acknowledged.is_some() { packet::ACK } else { 0 },
            window: 0,
            largest: None,
            scale: None,
        };
        self.link.send(&packet::tcp(&way(ends.remote.ip(), ends.container.ip()), &said, 0, u16::MAX), &[]);
    }

    /// Tells the container that a datagram did not arrive, and why.
    fn unreachable(&mut self, protocol: u8, ends: Ends, errno: Errno) {
        self.explain(protocol, ends, [0, 8, 0, 0], errno);
    }

    /// The same of a segment, which is known by its number.
    fn out_of_reach(&mut self, ends: Ends, sequence: u32, errno: Errno) {
        self.explain(packet::TCP, ends, sequence.to_be_bytes(), errno);
    }

    fn explain(&mut self, protocol: u8, ends: Ends, word: [u8; 4], errno: Errno) {
        let v4 = ends.container.is_ipv4();
        let (code4, code6) = match errno {
            Errno::CONNREFUSED => (3, 4),
            Errno::HOSTUNREACH | Errno::TIMEDOUT | Errno::HOSTDOWN => (1, 3),
            Errno::ACCESS | Errno::PERM => (13, 1),
            Errno::NETUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL | Errno::INVAL => (0, 0),
            _ => return,
        };
        let from = match (v4, self.rules.plan.v6) {
            // The host itself says that nobody listens there; all else is the router's word.
            _ if errno == Errno::CONNREFUSED => ends.remote.ip(),
            (true, _) => self.rules.plan.v4.router.into(),
            (false, Some(net)) => net.router.into(),
            (false, None) => return,
        };
        let (quoted, length) = packet::quote(protocol, ends.container, ends.remote, word);
        let quoted = &quoted[..length];
        let (kind, code) = if v4 { (3, code4) } else { (1, code6) };
        let headers = packet::icmp(&way(from, ends.container.ip()), kind, code, [0; 4], quoted);
        self.link.send(&headers, quoted);
    }

    fn add_datagrams(&mut self, protocol: u8, ends: Ends, way: Outward, now: Instant) -> Option<usize> {
        if self.is_full() && !self.forget_quiet() {
            return None;
        }
        let flow = Datagrams { protocol, ends, way, last: now, answered: false };
        self.add(protocol, ends, Flow::Datagrams(flow))
    }

    fn add(&mut self, protocol: u8, ends: Ends, flow: Flow) -> Option<usize> {
        let index = self.insert(flow)?;
        self.keys.insert((protocol, ends), index);
        Some(index)
    }

    fn insert(&mut self, flow: Flow) -> Option<usize> {
        let index = self.free.pop().unwrap_or(self.flows.len());
        let data = EventData::new_u64(FIRST_FLOW + index as u64);
        let both = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let waits = match &flow {
            Flow::Tcp(connection) => epoll::add(&self.waiting, &connection.socket, data, both),
            Flow::Datagrams(Datagrams { way: Outward::Own(socket) | Outward::Neighbour(socket), .. }) => {
                epoll::add(&self.waiting, socket.as_fd(), data, EventFlags::IN | EventFlags::ET)
            }
            Flow::Datagrams(_) => Ok(()),
            Flow::Unknown(socket, ..) => {
                epoll::add(&self.waiting, socket, data, EventFlags::IN | EventFlags::ET)
            }
        };
        if index == self.flows.len() {
            self.flows.push(None);
        }
        if waits.is_err() {
            self.free.push(index);
            return None;
        }
        self.flows[index] = Some(flow);
        Some(index)
    }

    fn remove(&mut self, index: usize) -> Option<Flow> {
        let flow = self.flows.get_mut(index).and_then(Option::take)?;
        // One whose socket is used again would be waited for under an old number.
        if let Flow::Tcp(connection) = &flow {
            let _ = epoll::delete(&self.waiting, &connection.socket);
        }
        match &flow {
            Flow::Tcp(connection) => {
                self.room += connection.kept();
                self.keys.remove(&(packet::TCP, connection.ends));
            }
            Flow::Datagrams(flow) => drop(self.keys.remove(&(flow.protocol, flow.ends))),
            Flow::Unknown(socket, ..) => {
                let _ = epoll::delete(&self.waiting, socket);
                self.unknown -= 1;
            }
        }
        self.free.push(index);
        Some(flow)
    }

    /// Forgets the datagrams that were quiet for the longest; `false` where there are none.
    fn forget_quiet(&mut self) -> bool {
        let quiet = self.flows.iter().enumerate().filter_map(|(index, flow)| match flow {
            Some(Flow::Datagrams(flow)) => Some((flow.last, index)),
            _ => None,
        });
        let Some((_, index)) = quiet.min() else { return false };
        self.remove(index).is_some()
    }

    /// A first sequence number that nobody can guess (RFC 6528).
    fn number(&mut self, ends: Ends) -> u32 {
        self.count += 1;
        self.numbers.hash_one((ends, self.count)) as u32
    }
}

impl Datagrams {
    fn is_over(&self, now: Instant) -> bool {
        let quiet = now.saturating_duration_since(self.last);
        quiet >= if self.answered { ANSWERED } else { UNANSWERED }
    }
}

/// A socket through which a target is reached.
fn reach(kind: Kind, target: &Target, ends: Ends) -> Result<OwnedFd, Errno> {
    match target {
        Target::Host(address) if kind == Kind::Datagrams => socket::connecting(SocketType::DGRAM, *address),
        Target::Host(address) => socket::connecting(SocketType::STREAM, *address),
        Target::Container(folder) => {
            neighbour::ask(folder, kind, &Introduction { from: ends.container, to: ends.remote })
        }
    }
}

fn ends(ip: &Ip<'_>, from: u16, to: u16) -> Ends {
    Ends { container: (ip.source, from).into(), remote: (ip.destination, to).into() }
}

/// Whether an address is one of one device, which can be answered.
fn is_one(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && !broadcast
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// With what the largest packet has, and a number of the datagram.
fn send_datagram<L: Link>(link: &mut L, ends: Ends, data: &[u8], (largest, number): (usize, u64)) {
    let headers = if ends.container.is_ipv4() { 28 } else { 48 };
    // What one frame of the link takes; no program sends more.
    if data.len() + headers <= MTU as usize {
        let way = way(ends.remote.ip(), ends.container.ip());
        let (from, to) = (ends.remote.port(), ends.container.port());
        link.send(&packet::udp(&way, from, to, data.len(), largest, number as u16), data);
    }
}

/// The answer to a ping. The kernel put its own identity in the place of the container's.
fn echoed<L: Link>(link: &mut L, ends: Ends, message: &[u8], largest: usize) {
    let Some((head, data)) = message.split_first_chunk::<8>() else { return };
    if matches!((ends.container.is_ipv4(), head[0]), (true, 0) | (false, 129)) && data.len() + 48 <= largest {
        let [a, b] = ends.container.port().to_be_bytes();
        let way = way(ends.remote.ip(), ends.container.ip());
        link.send(&packet::icmp(&way, head[0], 0, [a, b, head[6], head[7]], data), data);
    }
}
