//! Frames as they go over the link: Ethernet, IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293), UDP, ICMP, ARP, and what
//! the kernel says of each (struct virtio_net_header: segments that are still together, checksums that are not there yet).
//!
//! What comes from a container is read without trust: every length is looked at, and what isn't understood is `None`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a frame begins with: the kernel's words about it, then Ethernet's header.
pub const WORDS: usize = 10;
pub const ETHERNET: usize = 14;
/// The most that stands before what a program sent.
pub const HEADERS: usize = 128;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
/// VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_UDP, VIRTIO_NET_HDR_GSO_TCPV6,
/// VIRTIO_NET_HDR_GSO_UDP_L4.
const NEEDS_CHECKSUM: u8 = 1;
const SEGMENTS_TCPV4: u8 = 1;
const PARTS_UDP: u8 = 3;
const SEGMENTS_TCPV6: u8 = 4;
const SEGMENTS_UDP: u8 = 5;
/// So many headers of IPv6 are skipped before a packet is given up.
const EXTENSIONS: usize = 8;

/// What a container sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Who has this address? Asked by one who says that he has the other.
    Arp {
        asked: Ipv4Addr,
        asker: Ipv4Addr,
    },
    Ip(Ip<'a>),
}

/// A packet, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub payload: &'a [u8],
    /// Datagrams of UDP that the kernel left together: how long each is.
    pub each: Option<usize>,
    /// Which part of a packet this is.
    pub part: Option<Part>,
}

/// A place in a packet that was too long for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What tells the packet from others of the same two.
    pub id: u32,
    /// Where its payload goes.
    pub offset: usize,
    pub last: bool,
}

impl Part {
    /// Of 13 bits in units of eight bytes, and one that says that more follow.
    fn new(id: u32, offset: u16, last: bool) -> Part {
        Part { id, offset: usize::from(offset) * 8, last }
    }
}

/// Reads a frame with the kernel's words before it.
pub fn frame(bytes: &[u8]) -> Option<Frame<'_>> {
    let words = bytes.get(..WORDS)?;
    let ethernet = bytes.get(WORDS..WORDS + ETHERNET)?;
    let body = bytes.get(WORDS + ETHERNET..)?;
    let size = usize::from(u16::from_ne_bytes([words[4], words[5]]));
    let each = (words[1] & 0x7f == SEGMENTS_UDP && size > 0).then_some(size);
    match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
        ARP => arp(body),
        IPV4 => ipv4(body).map(|ip| Frame::Ip(Ip { each, ..ip })),
        IPV6 => ipv6(body).map(|ip| Frame::Ip(Ip { each, ..ip })),
        _ => None,
    }
}

fn arp(body: &[u8]) -> Option<Frame<'_>> {
    let body = body.first_chunk::<28>()?;
    // A request, of IPv4 over Ethernet.
    if body[..8] != [0, 1, 8, 0, 6, 4, 0, 1] {
        return None;
    }
    let asker = Ipv4Addr::new(body[14], body[15], body[16], body[17]);
    let asked = Ipv4Addr::new(body[24], body[25], body[26], body[27]);
    Some(Frame::Arp { asked, asker })
}

fn ipv4(body: &[u8]) -> Option<Ip<'_>> {
    let header = body.first_chunk::<20>()?;
    let length = usize::from(header[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // A part of a packet has a place in it, or says that more follow.
    let place = u16::from_be_bytes([header[6], header[7]]);
    let id = u16::from_be_bytes([header[4], header[5]]);
    let part = Part::new(id.into(), place & 0x1fff, place & 0x2000 == 0);
    if header[0] >> 4 != 4 || length < 20 {
        return None;
    }
    Some(Ip {
        source: <[u8; 4]>::try_from(&header[12..16]).ok()?.into(),
        destination: <[u8; 4]>::try_from(&header[16..20]).ok()?.into(),
        protocol: header[9],
        payload: body.get(length..total)?,
        each: None,
        part: (place & 0x3fff != 0).then_some(part),
    })
}

fn ipv6(body: &[u8]) -> Option<Ip<'_>> {
    let header = body.first_chunk::<40>()?;
    let total = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let mut payload = body.get(40..40 + total)?;
    let mut protocol = header[6];
    let mut part = None;
    for _ in 0..EXTENSIONS {
        if protocol == 44 {
            // What is behind it is a part of whatever is there.
            let (head, rest) = payload.split_first_chunk::<8>()?;
            let place = u16::from_be_bytes([head[2], head[3]]);
            let id = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
            part = Some(Part::new(id, place >> 3, place & 1 == 0));
            (protocol, payload) = (head[0], rest);
            break;
        }
        // Options for all on the way, routing, options for the receiver.
        if !matches!(protocol, 0 | 43 | 60) {
            break;
        }
        let (next, length) = (*payload.first()?, *payload.get(1)?);
        payload = payload.get((usize::from(length) + 1) * 8..)?;
        protocol = next;
    }
    (header[0] >> 4 == 6).then_some(Ip {
        source: <[u8; 16]>::try_from(&header[8..24]).ok()?.into(),
        destination: <[u8; 16]>::try_from(&header[24..40]).ok()?.into(),
        protocol,
        payload,
        each: None,
        part,
    })
}

/// A segment of TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    pub window: u16,
    /// Options of a first segment.
    pub largest: Option<u16>,
    pub scale: Option<u8>,
    pub data: &'a [u8],
}

impl Segment<'_> {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Reads a segment.
pub fn segment(payload: &[u8]) -> Option<Segment<'_>> {
    let header = payload.first_chunk::<20>()?;
    let length = usize::from(header[12] >> 4) * 4;
    let mut options = payload.get(20..length)?;
    let data = payload.get(length..)?;
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (mut largest, mut scale) = (None, None);
    while let [kind, rest @ ..] = options {
        match kind {
            0 => break,
            1 => options = rest,
            kind => {
                let length = usize::from(*rest.first()?);
                let value = options.get(2..length)?;
                match (kind, value) {
                    (2, [a, b]) => largest = Some(u16::from_be_bytes([*a, *b])),
                    // More than 14 means 14 (RFC 7323, 2.3).
                    (3, [shift]) => scale = Some((*shift).min(14)),
                    _ => {}
                }
                options = options.get(length..)?;
            }
        }
    }
    Some(Segment {
        source: half(0),
        destination: half(2),
        sequence: word(4),
        acknowledged: word(8),
        flags: header[13],
        window: half(14),
        largest,
        scale,
        data,
    })
}

/// Reads a datagram: the ports, and what is in it.
pub fn datagram(payload: &[u8]) -> Option<(u16, u16, &[u8])> {
    let header = payload.first_chunk::<8>()?;
    let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // What the kernel left together is longer than its header can say, but has no length of 0 then.
    let data = match usize::from(half(4)) {
        0 => payload.get(8..)?,
        length => payload.get(8..length)?,
    };
    Some((half(0), half(2), data))
}

/// What stands before the data of a packet that goes to a container.
#[derive(Debug, Clone, Copy)]
pub struct Headers {
    bytes: [u8; HEADERS],
    length: usize,
}

impl std::ops::Deref for Headers {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Headers {
    fn new() -> Headers {
        Headers { bytes: [0; HEADERS], length: WORDS }
    }

    fn push(&mut self, bytes: &[u8]) -> &mut Self {
        let end = (self.length + bytes.len()).min(HEADERS);
        self.bytes[self.length..end].copy_from_slice(&bytes[..end - self.length]);
        self.length = end;
        self
    }

    fn ethernet(&mut self, to: [u8; 6], from: [u8; 6], kind: u16) -> &mut Self {
        self.push(&to).push(&from).push(&kind.to_be_bytes())
    }

    /// The header of IP for so many bytes behind it.
    fn ip(&mut self, way: &Way, protocol: u8, length: usize) -> &mut Self {
        match (way.from, way.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                self.ethernet(way.device, way.router, IPV4);
                let start = self.length;
                let total = ((20 + length) as u16).to_be_bytes();
                // May be cut by routers: DF is not set, so there is no identification either (RFC 6864 has it for those).
                self.push(&[0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, protocol, 0, 0]);
                self.push(&from.octets()).push(&to.octets());
                let sum = finish(sum(0, &self.bytes[start..self.length]));
                self.bytes[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
            }
            (from, to) => {
                self.ethernet(way.device, way.router, IPV6);
                let length = (length as u16).to_be_bytes();
                self.push(&[0x60, 0, 0, 0, length[0], length[1], protocol, 64]);
                self.push(&v6(from).octets()).push(&v6(to).octets());
            }
        }
        self
    }

    /// Leaves the checksum, of which only what comes from the addresses is there, to whoever needs it.
    fn checksum_later(&mut self, start: usize, offset: usize, way: &Way, protocol: u8, length: usize) {
        let partial = fold(pseudo(way, protocol, length));
        self.bytes[start + offset..start + offset + 2].copy_from_slice(&partial.to_be_bytes());
        self.bytes[0] = NEEDS_CHECKSUM;
        self.bytes[6..8].copy_from_slice(&((start - WORDS) as u16).to_ne_bytes());
        self.bytes[8..10].copy_from_slice(&(offset as u16).to_ne_bytes());
    }
}

/// From where to where a packet goes, in IP's and in Ethernet's addresses.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    pub from: IpAddr,
    pub to: IpAddr,
    pub device: [u8; 6],
    pub router: [u8; 6],
}

/// What a segment to a container says.
#[derive(Debug, Clone, Copy)]
pub struct Said {
    pub from: u16,
    pub to: u16,
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    pub window: u16,
    /// Options of a first segment.
    pub largest: Option<u16>,
    pub scale: Option<u8>,
}

/// The headers of a segment with so many bytes of data, which the kernel cuts where one packet must not have more than
/// `largest`.
pub fn tcp(way: &Way, said: &Said, data: usize, largest: u16) -> Headers {
    let options = if said.largest.is_some() { 4 } else { 0 } + if said.scale.is_some() { 4 } else { 0 };
    let length = 20 + options + data;
    let mut out = Headers::new();
    out.ip(way, TCP, length);
    let start = out.length;
    out.push(&said.from.to_be_bytes()).push(&said.to.to_be_bytes());
    out.push(&said.sequence.to_be_bytes()).push(&said.acknowledged.to_be_bytes());
    out.push(&[((20 + options) as u8 / 4) << 4, said.flags]).push(&said.window.to_be_bytes());
    out.push(&[0; 4]);
    if let Some(largest) = said.largest {
        out.push(&[2, 4]).push(&largest.to_be_bytes());
    }
    if let Some(scale) = said.scale {
        out.push(&[1, 3, 3, scale]);
    }
    out.checksum_later(start, 16, way, TCP, length);
    if data > usize::from(largest) {
        out.bytes[1] = if way.to.is_ipv4() { SEGMENTS_TCPV4 } else { SEGMENTS_TCPV6 };
        let headers = (out.length - WORDS) as u16;
        out.bytes[2..4].copy_from_slice(&headers.to_ne_bytes());
        out.bytes[4..6].copy_from_slice(&largest.to_ne_bytes());
    }
    out
}

/// The headers of a datagram, which the kernel cuts into parts where a packet must not have more than `largest` bytes; `id`
/// tells it from others then.
pub fn udp(way: &Way, from: u16, to: u16, data: usize, largest: usize, id: u16) -> Headers {
    let length = 8 + data;
    let mut out = Headers::new();
    out.ip(way, UDP, length);
    let start = out.length;
    if start - WORDS - ETHERNET + length > largest {
        let header = if way.to.is_ipv4() { 20 } else { 40 + 8 };
        out.bytes[1] = PARTS_UDP;
        out.bytes[2..4].copy_from_slice(&((start - WORDS + 8) as u16).to_ne_bytes());
        // Parts but the last one have a multiple of eight bytes.
        out.bytes[4..6].copy_from_slice(&((largest.saturating_sub(header) / 8 * 8) as u16).to_ne_bytes());
        if way.to.is_ipv4() {
            let ip = WORDS + ETHERNET;
            out.bytes[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
            out.bytes[ip + 10..ip + 12].fill(0);
            let sum = finish(sum(0, &out.bytes[ip..start]));
            out.bytes[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
        }
    }
    out.push(&from.to_be_bytes()).push(&to.to_be_bytes()).push(&(length as u16).to_be_bytes()).push(&[0; 2]);
    out.checksum_later(start, 6, way, UDP, length);
    out
}

/// What neighbours and routers say to each other (RFC 4861, section 4), and the hop limit by which it is known that nobody has
/// passed it on: the kernel believes no other (sections 7.1.1 and 7.1.2).
const NEIGHBOURS: std::ops::RangeInclusive<u8> = 133..=137;
const NOT_PASSED_ON: u8 = 255;
/// Where the hop limit stands before the end of a header of IPv6, which has 40 bytes.
const HOP_LIMIT: usize = 40 - 7;

/// The headers of a message of ICMP: its kind and code, the four bytes after the checksum, and what follows, of which the
/// checksum is made here.
pub fn icmp(way: &Way, kind: u8, code: u8, word: [u8; 4], data: &[u8]) -> Headers {
    let protocol = if way.to.is_ipv4() { ICMP } else { ICMPV6 };
    let length = 8 + data.len();
    let mut out = Headers::new();
    out.ip(way, protocol, length);
    let start = out.length;
    if protocol == ICMPV6 && NEIGHBOURS.contains(&kind) {
        out.bytes[start - HOP_LIMIT] = NOT_PASSED_ON;
    }
    out.push(&[kind, code, 0, 0]).push(&word);
    let begin = if way.to.is_ipv4() { 0 } else { pseudo(way, protocol, length) };
    let checksum = finish(sum(sum(begin, &out.bytes[start..out.length]), data));
    out.bytes[start + 2..start + 4].copy_from_slice(&checksum.to_be_bytes());
    out
}

/// The answer to [`Frame::Arp`]: the router has that address.
pub fn arp_reply(asked: Ipv4Addr, asker: Ipv4Addr, device: [u8; 6], router: [u8; 6]) -> Headers {
    let mut out = Headers::new();
    out.ethernet(device, router, ARP).push(&[0, 1, 8, 0, 6, 4, 0, 2]);
    out.push(&router).push(&asked.octets()).push(&device).push(&asker.octets());
    out
}

/// What a message of ICMP quotes of the packet that it is about: the header of IP and eight bytes behind it, of which `word`
/// are the last four. Returned with its length.
pub fn quote(protocol: u8, from: SocketAddr, to: SocketAddr, word: [u8; 4]) -> ([u8; 48], usize) {
    let way = Way { from: from.ip(), to: to.ip(), device: [0; 6], router: [0; 6] };
    let mut out = Headers::new();
    out.ip(&way, protocol, 8).push(&from.port().to_be_bytes()).push(&to.port().to_be_bytes()).push(&word);
    let quoted = &out[WORDS + ETHERNET..];
    let mut bytes = [0; 48];
    bytes[..quoted.len()].copy_from_slice(quoted);
    (bytes, quoted.len())
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(address) => address,
        IpAddr::V4(address) => address.to_ipv6_mapped(),
    }
}

/// The sum over the addresses, the protocol and the length (RFC 9293, 3.1; RFC 8200, 8.1).
fn pseudo(way: &Way, protocol: u8, length: usize) -> u32 {
    let addresses = match (way.from, way.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => sum(sum(0, &from.octets()), &to.octets()),
        (from, to) => sum(sum(0, &v6(from).octets()), &v6(to).octets()),
    };
    addresses + u32::from(protocol) + length as u32
}

/// Adds 16-bit words, the last of them perhaps half, to a sum (RFC 1071).
fn sum(begin: u32, bytes: &[u8]) -> u32 {
    let mut total = u64::from(begin);
    let (words, rest) = bytes.as_chunks::<2>();
    total += words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
    total += rest.first().map_or(0, |&byte| u64::from(byte) << 8);
    ((total & 0xffff_ffff) + (total >> 32)) as u32
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn finish(sum: u32) -> u16 {
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn way(from: &str, to: &str) -> Way {
        Way { from: from.parse().unwrap(), to: to.parse().unwrap(), device: DEVICE, router: ROUTER }
    }

    #[test]
    fn what_is_written_can_be_read() {
        for (from, to) in [("10.0.2.2", "10.0.2.100"), ("fd00::2", "fd00::64")] {
            let way = way(from, to);
            let said = Said {
                from: 80,
                to: 4000,
                sequence: 0xdead_beef,
                acknowledged: 7,
                flags: SYN | ACK,
                window: 1000,
                largest: Some(1460),
                scale: Some(7),
            };
            let mut bytes = tcp(&way, &said, 3, 1460).to_vec();
            assert_eq!(bytes[1], 0);
            bytes.extend_from_slice(b"abc");
            let Some(Frame::Ip(ip)) = frame(&bytes) else { panic!("{from}") };
            assert_eq!((ip.source, ip.destination, ip.protocol), (way.from, way.to, TCP));
            let segment = segment(ip.payload).unwrap();
            assert_eq!((segment.source, segment.destination, segment.flags), (80, 4000, SYN | ACK));
            assert_eq!((segment.sequence, segment.acknowledged, segment.window), (0xdead_beef, 7, 1000));
            assert_eq!((segment.largest, segment.scale, segment.data), (Some(1460), Some(7), &b"abc"[..]));
            assert_eq!(tcp(&way, &said, 3000, 1460)[4..6], 1460u16.to_ne_bytes());

            let mut bytes = udp(&way, 53, 99, 2, 1500, 0).to_vec();
            bytes.extend_from_slice(b"xy");
            let Some(Frame::Ip(ip)) = frame(&bytes) else { panic!("{from}") };
            assert_eq!(datagram(ip.payload), Some((53, 99, &b"xy"[..])));

            let mut bytes = icmp(&way, 8, 0, [1, 2, 3, 4], b"ping!").to_vec();
            bytes.extend_from_slice(b"ping!");
            let Some(Frame::Ip(ip)) = frame(&bytes) else { panic!("{from}") };
            let begin = if from.contains(':') { pseudo(&way, ICMPV6, ip.payload.len()) } else { 0 };
            assert_eq!(finish(sum(begin, ip.payload)), 0, "{from}");
            if from.contains(':') {
                // RFC 4861, section 7.1.2: an answer with another hop limit is not believed.
                let hops = |kind: u8| icmp(&way, kind, 0, [0; 4], b"")[WORDS + ETHERNET + 7];
                assert_eq!([hops(136), hops(129)], [255, 64]);
            }
        }
        let reply = arp_reply([10, 0, 2, 2].into(), [10, 0, 2, 100].into(), DEVICE, ROUTER);
        assert_eq!(frame(&reply), None);
        let mut request = reply.to_vec();
        request[WORDS + ETHERNET + 7] = 1;
        let asked = Frame::Arp { asked: [10, 0, 2, 100].into(), asker: [10, 0, 2, 2].into() };
        assert_eq!(frame(&request), Some(asked));
    }

    #[test]
    fn malformed_frames() {
        let way = way("10.0.2.2", "10.0.2.100");
        let good = udp(&way, 1, 2, 0, 1500, 0).to_vec();
        assert!(frame(&good).is_some());
        for length in 0..good.len() {
            assert_eq!(frame(&good[..length]), None, "{length}");
        }
        let ip = WORDS + ETHERNET;
        for (at, value) in [(ip, 0x65), (ip, 0x44), (ip, 0x4f), (ip + 2, 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(frame(&bad), None, "{at} {value}");
        }
        // A first part, and a later one.
        for (at, value, offset, last) in [(ip + 6, 0x20, 0, false), (ip + 7, 2, 16, true)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let Some(Frame::Ip(packet)) = frame(&bytes) else { panic!("{at}") };
            assert_eq!(packet.part, Some(Part { id: 0, offset, last }));
        }
        // Options that are cut off, or have a length that would never end.
        let mut segment_bytes = [0u8; 24];
        segment_bytes[12] = 6 << 4;
        for (options, good) in [
            ([2, 4, 5, 180], true),
            ([2, 1, 0, 0], false),
            ([2, 0, 0, 0], false),
            ([2, 9, 0, 0], false),
            ([1, 1, 0, 9], true),
        ] {
            segment_bytes[20..].copy_from_slice(&options);
            assert_eq!(segment(&segment_bytes).is_some(), good, "{options:?}");
        }
        for header in [0u8, 4, 7, 15] {
            segment_bytes[12] = header << 4;
            assert_eq!(segment(&segment_bytes), None, "{header}");
        }
    }

    #[test]
    fn checksums() {
        // RFC 1071, 3.
        assert_eq!(fold(sum(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
        assert_eq!(fold(sum(0, &[1])), 0x100);
        assert_eq!(fold(sum(u32::MAX, &[0xff; 65536])), 0xffff);
    }
}
