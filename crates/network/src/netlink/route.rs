//! Devices, addresses and routes: rtnetlink(7), linux/if_link.h, linux/veth.h.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::message::{self, Batch, Body};
use super::{Refusal, Socket};
use crate::subnet::Subnet;

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const GET_ADDRESS: u16 = 22;
const GET_ROUTE: u16 = 26;

/// Attributes of devices (IFLA_*).
const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
/// Words of whoever made the device (IFLA_IFALIAS), so many at most.
const ALIAS: u16 = 20;
const LONGEST_ALIAS: usize = 254;
const NAMESPACE_FD: u16 = 28;
/// How many queues a device has, to send and to receive.
const SEND_QUEUES: u16 = 31;
const RECEIVE_QUEUES: u16 = 32;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
/// What a device is as a part of another one (IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA, IFLA_BRPORT_MODE).
const INFO_PORT_KIND: u16 = 4;
const INFO_PORT_DATA: u16 = 5;
const PORT_HAIRPIN: u16 = 4;
/// IFF_UP.
const UP: u32 = 1;
/// IFA_F_NODAD: an address that we have given ourselves needs no search for others that have it.
const NO_DUPLICATE_DETECTION: u8 = 2;

const INET: u8 = 2;
const INET6: u8 = 10;

/// The number of a device in its namespace; `None` where there is none of that name.
pub fn index(socket: &mut Socket, name: &str) -> io::Result<Option<u32>> {
    Ok(find(socket, name)?.map(|(index, _)| index))
}

/// The number of a device, and whether it is up.
pub fn find(socket: &mut Socket, name: &str) -> io::Result<Option<(u32, bool)>> {
    let mut batch = Batch::new();
    // Acknowledged, too: that ends the answers.
    batch.command(GET_LINK, 0, |body| {
        body.fixed(&link(0, 0)).text(NAME, name);
    });
    match socket.ask(&batch) {
        Ok(answers) => Ok(answers.iter().find(|answer| answer.kind == NEW_LINK).and_then(|answer| {
            let number = |at: usize| answer.body.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
            Some((number(4)?, number(8)? & UP != 0))
        })),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes a bridge that is not up yet, and returns its number; one that is there already is taken as it is. `of` tells
/// whose it is, where that is not too long for the kernel.
pub fn add_bridge(socket: &mut Socket, name: &str, mtu: Option<u32>, of: &str) -> io::Result<u32> {
    let mut batch = Batch::new();
    batch.command(NEW_LINK, message::CREATE | message::EXCLUSIVE, |body| {
        body.fixed(&link(0, 0)).text(NAME, name);
        if let Some(mtu) = mtu {
            body.number(MTU, mtu);
        }
        body.nested(LINK_INFO, |info| {
            info.text(INFO_KIND, "bridge");
        });
    });
    if of.len() <= LONGEST_ALIAS {
        batch.command(NEW_LINK, 0, |body| {
            body.fixed(&link(0, 0)).text(NAME, name).text(ALIAS, of);
        });
    }
    match socket.apply(&batch) {
        Ok(()) => {}
        // Another process was faster.
        Err(e) if e.errno() == Some(rustix::io::Errno::EXIST.raw_os_error()) => {}
        Err(e) => return Err(e.into()),
    }
    index(socket, name)?.ok_or_else(|| rustix::io::Errno::NODEV.into())
}

/// A bridge that no device is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleBridge {
    pub name: String,
    /// Whose it is.
    pub of: String,
    pub subnets: Vec<Subnet>,
}

/// The bridges of which it is said whose they are, and that no device is in.
pub fn idle_bridges(socket: &mut Socket) -> io::Result<Vec<IdleBridge>> {
    let number = |bytes: &[u8]| bytes.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes));
    let mut batch = Batch::new();
    batch.message(GET_LINK, message::DUMP, |body: &mut Body<'_>| {
        body.fixed(&link(0, 0));
    });
    let (mut found, mut busy) = (Vec::new(), Vec::new());
    for answer in socket.ask(&batch)?.iter().filter(|answer| answer.kind == NEW_LINK) {
        let (Some(index), Some(attributes)) = (answer.body.get(4..).and_then(number), answer.body.get(16..))
        else {
            continue;
        };
        busy.extend(message::attribute(attributes, MASTER).and_then(number));
        let kind =
            message::attribute(attributes, LINK_INFO).and_then(|info| message::attribute(info, INFO_KIND));
        let words = |kind: u16| message::attribute(attributes, kind).map(message::text);
        if let (Some("bridge"), Some(name), Some(of)) =
            (kind.map(message::text).as_deref(), words(NAME), words(ALIAS))
        {
            found.push((index, IdleBridge { name, of, subnets: Vec::new() }));
        }
    }
    found.retain(|(index, _)| !busy.contains(index));
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let mut batch = Batch::new();
    batch.message(GET_ADDRESS, message::DUMP, |body: &mut Body<'_>| {
        body.fixed(&[0; 8]);
    });
    for answer in socket.ask(&batch)?.iter().filter(|answer| answer.kind == NEW_ADDRESS) {
        let (Some(index), Some(attributes)) = (answer.body.get(4..).and_then(number), answer.body.get(8..))
        else {
            continue;
        };
        let address = message::attribute(attributes, ADDRESS).and_then(|bytes| {
            let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
            v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
        });
        let subnet = address.and_then(|address| Subnet::containing(address, answer.body[1]).ok());
        if let (Some(subnet), Some((_, bridge))) = (subnet, found.iter_mut().find(|(own, _)| *own == index)) {
            bridge.subnets.push(subnet);
        }
    }
    Ok(found.into_iter().map(|(_, bridge)| bridge).collect())
}

/// One end of a pair of devices.
#[derive(Debug, Clone, Copy)]
pub struct Inside<'a> {
    pub name: &'a str,
    pub mac: [u8; 6],
    /// Where it is made.
    pub namespace: BorrowedFd<'a>,
}

/// Makes a pair of devices: one end on the bridge `master`, up; the other in the container's namespace.
/// `ipv6` is whether the kernel knows IPv6: the end on the bridge has no address, and speaks to nobody. A bridge carries what
/// is for many to all of its ports, so with a thousand of them each that looks for a router would cost as much as a start.
pub fn add_pair(
    socket: &mut Socket,
    name: &str,
    master: u32,
    mtu: Option<u32>,
    ipv6: bool,
    inside: &Inside<'_>,
) -> Result<(), Refusal> {
    let mut batch = Batch::new();
    batch.command(NEW_LINK, message::CREATE | message::EXCLUSIVE, |body| {
        body.fixed(&link(0, 0)).text(NAME, name).number(MASTER, master);
        one_queue(body);
        if let Some(mtu) = mtu {
            body.number(MTU, mtu);
        }
        body.nested(LINK_INFO, |info| {
            info.text(INFO_KIND, "veth").nested(INFO_DATA, |data| {
                data.nested(VETH_PEER, |peer| {
                    peer.fixed(&link(0, 0)).text(NAME, inside.name).attribute(ADDRESS, &inside.mac);
                    one_queue(peer);
                    if let Some(mtu) = mtu {
                        peer.number(MTU, mtu);
                    }
                    peer.number(NAMESPACE_FD, inside.namespace.as_raw_fd() as u32);
                });
            });
        });
    });
    // Where the host filters bridged packets (br_netfilter), what a container sends to a port that it has published itself
    // is turned around in the bridge, and must be let out where it came in.
    batch.command(NEW_LINK, 0, |body| {
        body.fixed(&link(0, 0)).text(NAME, name);
        if ipv6 {
            no_own_addresses(body);
        }
        body.nested(LINK_INFO, |info| {
            info.text(INFO_PORT_KIND, "bridge").nested(INFO_PORT_DATA, |data| {
                data.attribute(PORT_HAIRPIN, &[1]);
            });
        });
    });
    // Not before: what is up looks for an address at once, under the lock that all who change devices wait for.
    batch.command(NEW_LINK, 0, |body| {
        body.fixed(&link(0, UP)).text(NAME, name);
    });
    socket.apply(&batch)
}

/// A pair of devices gets as many queues as there are processors, all but one of which the kernel takes away at once, and
/// waits for all its readers, once for each end: a third of a start, and with thousands of devices ten milliseconds.
fn one_queue(body: &mut Body<'_>) {
    body.number(SEND_QUEUES, 1).number(RECEIVE_QUEUES, 1);
}

/// Adds a message that makes a pair of devices, both of which are in this namespace and up: names, numbers, and the
/// address of the first.
pub fn own_pair(
    batch: &mut Batch,
    first: (&str, u32, [u8; 6]),
    second: (&str, u32),
    mtus: (u32, u32),
    ipv6: bool,
) {
    batch.command(NEW_LINK, message::CREATE | message::EXCLUSIVE, |body| {
        body.fixed(&link(first.1, 0)).text(NAME, first.0).attribute(ADDRESS, &first.2).number(MTU, mtus.0);
        one_queue(body);
        body.nested(LINK_INFO, |info| {
            info.text(INFO_KIND, "veth").nested(INFO_DATA, |data| {
                data.nested(VETH_PEER, |peer| {
                    peer.fixed(&link(second.1, 0)).text(NAME, second.0).number(MTU, mtus.1);
                    one_queue(peer);
                });
            });
        });
    });
    for index in [second.1, first.1] {
        if ipv6 {
            silent(batch, index);
        }
        up(batch, index);
    }
}

/// Addresses of IPv6 are given, never made up (IFLA_AF_SPEC, AF_INET6, IFLA_INET6_ADDR_GEN_MODE).
fn no_own_addresses(body: &mut Body<'_>) {
    body.nested(26, |families| {
        families.nested(INET6.into(), |inet6| {
            inet6.attribute(8, &[1]);
        });
    });
}

/// Adds a message by which a device that is not up has no address of IPv6 that it was not given, and says nothing of its
/// own accord. The kernel must know IPv6.
pub fn silent(batch: &mut Batch, index: u32) {
    batch.command(NEW_LINK, 0, |body| {
        body.fixed(&link(index, 0));
        no_own_addresses(body);
    });
}

/// Removes a device; one that is not there need not be removed.
pub fn remove(socket: &mut Socket, name: &str) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.command(DELETE_LINK, 0, |body| {
        body.fixed(&link(0, 0)).text(NAME, name);
    });
    match socket.apply(&batch) {
        Err(e) if e.errno() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(()),
        other => Ok(other?),
    }
}

/// Adds a message that makes a device work.
pub fn up(batch: &mut Batch, index: u32) {
    batch.command(NEW_LINK, 0, |body| {
        body.fixed(&link(index, UP));
    });
}

/// Adds a message that gives a device an address; one that it has already is no error.
pub fn address(batch: &mut Batch, index: u32, address: IpAddr, prefix: u8) {
    batch.command(NEW_ADDRESS, message::CREATE | message::REPLACE, |body| {
        let [a, b, c, d] = index.to_ne_bytes();
        let flags = if address.is_ipv6() { NO_DUPLICATE_DETECTION } else { 0 };
        body.fixed(&[family(address), prefix, flags, 0, a, b, c, d]);
        // IFA_ADDRESS and IFA_LOCAL.
        body.attribute(1, &octets(address)).attribute(2, &octets(address));
        if let IpAddr::V4(address) = address {
            let mask = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            // IFA_BROADCAST.
            body.attribute(4, &(u32::from(address) | mask).to_be_bytes());
        }
    });
}

/// Adds a message that takes an address from a device.
pub fn no_address(batch: &mut Batch, index: u32, address: IpAddr, prefix: u8) {
    batch.command(DELETE_ADDRESS, 0, |body| {
        let [a, b, c, d] = index.to_ne_bytes();
        body.fixed(&[family(address), prefix, 0, 0, a, b, c, d]);
        body.attribute(1, &octets(address)).attribute(2, &octets(address));
    });
}

/// What the largest packet has that a device takes; `None` where there is no such device.
pub fn mtu(socket: &mut Socket, index: u32) -> io::Result<Option<u32>> {
    let mut batch = Batch::new();
    batch.command(GET_LINK, 0, |body| {
        body.fixed(&link(index, 0));
    });
    let answers = socket.ask(&batch)?;
    Ok(answers.iter().find(|answer| answer.kind == NEW_LINK).and_then(|answer| {
        let bytes = message::attribute(answer.body.get(16..)?, MTU)?;
        bytes.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))
    }))
}

/// Adds a message that gives a device another address.
pub fn mac(batch: &mut Batch, index: u32, mac: [u8; 6]) {
    batch.command(NEW_LINK, 0, |body| {
        body.fixed(&link(index, 0)).attribute(ADDRESS, &mac);
    });
}

/// Adds a message by which packets to the network of an address of the device's own, which the kernel has made a way for, are
/// no larger than `mtu`. The way goes with the address.
pub fn narrow(batch: &mut Batch, index: u32, own: IpAddr, prefix: u8, mtu: u32) {
    let Ok(subnet) = Subnet::containing(own, prefix) else { return };
    batch.command(NEW_ROUTE, message::CREATE | message::REPLACE, |body| {
        // The main table, made by the kernel, on this link or (IPv6) everywhere, unicast.
        let scope = if own.is_ipv4() { 253 } else { 0 };
        body.fixed(&[family(own), prefix, 0, 0, 254, 2, scope, 1, 0, 0, 0, 0]);
        // RTA_DST and RTA_OIF.
        body.attribute(1, &octets(subnet.first())).number(4, index);
        match own {
            // RTA_PREFSRC.
            IpAddr::V4(_) => body.attribute(7, &octets(own)),
            // RTA_PRIORITY, as the kernel's has it.
            IpAddr::V6(_) => body.number(6, 256),
        };
        // RTA_METRICS with RTAX_MTU.
        body.nested(8, |metrics| {
            metrics.number(2, mtu);
        });
    });
}

/// Adds a message that sends everything that has no other way to `gateway`, in packets of at most `mtu` where that is less
/// than what the device has.
pub fn default_route(batch: &mut Batch, index: u32, gateway: IpAddr, mtu: Option<u32>) {
    batch.command(NEW_ROUTE, message::CREATE | message::REPLACE, |body| {
        // The main table, made at start, everywhere, unicast.
        body.fixed(&[family(gateway), 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]);
        // RTA_GATEWAY and RTA_OIF.
        body.attribute(5, &octets(gateway)).number(4, index);
        if let Some(mtu) = mtu {
            // RTA_METRICS with RTAX_MTU.
            body.nested(8, |metrics| {
                metrics.number(2, mtu);
            });
        }
    });
}

/// The networks that the host knows a way to, beyond the one for everything else.
pub fn known(socket: &mut Socket) -> io::Result<Vec<Subnet>> {
    let mut batch = Batch::new();
    batch.message(GET_ROUTE, message::DUMP, |body: &mut Body<'_>| {
        body.fixed(&[0; 12]);
    });
    let found = |body: &[u8]| {
        let prefix = *body.get(1)?;
        let address = message::attribute(body.get(12..)?, 1)?;
        let address: IpAddr = match address.len() {
            4 => <[u8; 4]>::try_from(address).ok()?.into(),
            16 => <[u8; 16]>::try_from(address).ok()?.into(),
            _ => return None,
        };
        Subnet::containing(address, prefix).ok().filter(|_| prefix > 0)
    };
    let answers = socket.ask(&batch)?;
    Ok(answers.iter().filter(|a| a.kind == NEW_ROUTE).filter_map(|a| found(&a.body)).collect())
}

/// struct ifinfomsg. What is said of the flags is only what is asked for.
fn link(index: u32, flags: u32) -> [u8; 16] {
    let mut out = [0; 16];
    out[4..8].copy_from_slice(&index.to_ne_bytes());
    out[8..12].copy_from_slice(&flags.to_ne_bytes());
    out[12..16].copy_from_slice(&flags.to_ne_bytes());
    out
}

pub(crate) fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { INET } else { INET6 }
}

/// The bytes of an address, as the network has them.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
