//! What a container's own network namespace gets: a pair of devices, addresses, routes, and a way to hear of its first
//! packet.
//!
//! The container sees `eth0`; the other end of the pair lies in the same namespace and has no address. What the
//! container sends comes out there, where a socket of ours takes it (packet(7)). This needs no `/dev/net/tun`, which
//! many machines keep from ordinary users.
//!
//! All of it is one list of messages, made before the container is: whoever makes the namespace only sends them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::netlink::message::{self, Batch};
use crate::netlink::route;

/// The devices' numbers, which a new namespace has free: 1 is its loopback.
pub const EXPOSED: u32 = 2;
pub const OUTSIDE: u32 = 3;

/// What the largest packet has. With it a whole frame and what the kernel says of it fit into 64 KiB.
pub const MTU: u32 = 65_200;

/// Of the device that the container sees, unless another one is asked for, and of the router that it believes in. No device has the router's, so that the
/// kernel does not take the packets to it for its own.
pub const MAC: [u8; 6] = [0x02, 0x42, 0, 0, 0, 0x64];
pub const ROUTER: [u8; 6] = [0x02, 0x42, 0, 0, 0, 0x02];

/// Kinds of messages and attributes: linux/rtnetlink.h, linux/neighbour.h, linux/if_link.h.
const NEW_NEIGHBOUR: u16 = 28;
const SET_NEIGHBOUR_TABLE: u16 = 67;
const TABLE_NAME: u16 = 1;
const TABLE_PARAMETERS: u16 = 6;
const PARAMETER_DEVICE: u16 = 1;
const PARAMETER_APP_PROBES: u16 = 9;
/// NUD_PERMANENT.
const PERMANENT: u16 = 0x80;

/// The addresses of a network that one container has for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub v4: Ipv4Net,
    pub v6: Option<Ipv6Net>,
    /// The address of the device that the container sees, and what the largest packet has that it takes.
    pub mac: [u8; 6],
    pub mtu: u32,
}

/// The container's and the router's address of IPv4, in a network of 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv4Net {
    pub container: Ipv4Addr,
    pub router: Ipv4Addr,
}

/// The same of IPv6, in a network of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Net {
    pub container: Ipv6Addr,
    pub router: Ipv6Addr,
}

impl Plan {
    /// The container's own addresses and how long their networks' prefixes are.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, u8)> {
        let v6 = self.v6.map(|net| (net.container.into(), 64));
        [(self.v4.container.into(), 24)].into_iter().chain(v6)
    }

    /// Where it sends what is for others.
    pub fn routers(&self) -> impl Iterator<Item = IpAddr> {
        [self.v4.router.into()].into_iter().chain(self.v6.map(|net| net.router.into()))
    }

    /// The messages that make it so in a new network namespace, with further addresses.
    pub fn messages(&self, further: &[(IpAddr, u8)]) -> Batch {
        let mut batch = Batch::new();
        route::own_pair(
            &mut batch,
            ("eth0", EXPOSED, self.mac),
            ("outside", OUTSIDE),
            (self.mtu, MTU),
            self.v6.is_some(),
        );
        for (address, prefix) in self.addresses().chain(further.iter().copied()) {
            route::address(&mut batch, EXPOSED, address, prefix);
        }
        for router in self.routers() {
            route::default_route(&mut batch, EXPOSED, router, None);
        }
        // Who looks for a neighbour asks a program first, which hears of it on the socket that sent these.
        probes(&mut batch, 1, self.v6.is_some());
        batch
    }

    /// The messages after which the kernel needs nobody to find the router.
    pub fn known(&self) -> Batch {
        let mut batch = Batch::new();
        probes(&mut batch, 0, self.v6.is_some());
        for router in self.routers() {
            neighbour(&mut batch, router);
        }
        batch
    }
}

/// Adds a message by which an address is at the router.
pub fn neighbour(batch: &mut Batch, address: IpAddr) {
    batch.command(NEW_NEIGHBOUR, message::CREATE | message::REPLACE, |body| {
        let [a, b, c, d] = EXPOSED.to_ne_bytes();
        let [low, high] = PERMANENT.to_ne_bytes();
        body.fixed(&[route::family(address), 0, 0, 0, a, b, c, d, low, high, 0, 0]);
        // NDA_DST and NDA_LLADDR.
        body.attribute(1, &route::octets(address)).attribute(2, &ROUTER);
    });
}

fn probes(batch: &mut Batch, number: u32, ipv6: bool) {
    for (table, family) in [("arp_cache", 2), ("ndisc_cache", 10)].into_iter().take(1 + usize::from(ipv6)) {
        batch.command(SET_NEIGHBOUR_TABLE, message::REPLACE, |body| {
            body.fixed(&[family, 0, 0, 0]).text(TABLE_NAME, table).nested(TABLE_PARAMETERS, |parameters| {
                parameters.number(PARAMETER_DEVICE, EXPOSED).number(PARAMETER_APP_PROBES, number);
            });
        });
    }
}
