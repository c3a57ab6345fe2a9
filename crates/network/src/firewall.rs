//! The table `inet isles` of the host's firewall: what every network shares is said once; a network adds elements to
//! sets, and a published port adds one element to a map. What a packet costs depends on neither number.
//!
//! Nobody else's tables are touched. What another table of the host drops stays dropped: an `accept` here ends this
//! table only.

use std::io;
use std::net::IpAddr;

use crate::error::{Error, Result};
use crate::netlink::nft::{self, Element, Field, Hook, Meta, Rule, Set, Transaction, Verdict, types};
use crate::netlink::route::octets;
use crate::netlink::{Refusal, Socket};
use crate::port::Port;
use crate::subnet::Subnet;

const TABLE: &str = "isles";
/// Where the host's owner may add rules that come before ours; `isles` only makes it, empty.
const USER: &str = "user";

const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// Devices have names of up to 15 bytes and a zero.
const DEVICE_NAME: u32 = 16;

const BRIDGES: Set = Set { name: "bridges", key: (types::DEVICE, DEVICE_NAME), data: None, intervals: false };
/// Those whose containers reach nobody outside.
const INTERNAL: Set =
    Set { name: "internal", key: (types::DEVICE, DEVICE_NAME), data: None, intervals: false };
/// Pairs of a device with itself: what stays in one network.
const SAME: Set = Set {
    name: "same",
    key: (types::concatenated(&[types::DEVICE, types::DEVICE]), 2 * DEVICE_NAME),
    data: None,
    intervals: false,
};
const SUBNETS4: Set = Set { name: "subnets4", key: (types::IPV4, 4), data: None, intervals: true };
const SUBNETS6: Set = Set { name: "subnets6", key: (types::IPV6, 16), data: None, intervals: true };
/// Published at one address of the host.
const PORTS4: Set = Set {
    name: "ports4",
    key: (types::concatenated(&[types::PROTOCOL, types::IPV4, types::PORT]), 12),
    data: Some((types::concatenated(&[types::IPV4, types::PORT]), 8)),
    intervals: false,
};
const PORTS6: Set = Set {
    name: "ports6",
    key: (types::concatenated(&[types::PROTOCOL, types::IPV6, types::PORT]), 24),
    data: Some((types::concatenated(&[types::IPV6, types::PORT]), 20)),
    intervals: false,
};
/// Published at all addresses of the host.
const ANYWHERE4: Set = Set {
    name: "anywhere4",
    key: (types::concatenated(&[types::PROTOCOL, types::PORT]), 8),
    data: PORTS4.data,
    intervals: false,
};
const ANYWHERE6: Set = Set {
    name: "anywhere6",
    key: (types::concatenated(&[types::PROTOCOL, types::PORT]), 8),
    data: PORTS6.data,
    intervals: false,
};
/// State directories all of whose networks and ports are said here.
const ROOTS: Set = Set { name: "roots", key: (types::DEVICE, DEVICE_NAME), data: None, intervals: false };
/// Families of packets that the host forwards for us alone.
const CLOSED: Set = Set { name: "closed", key: (types::FAMILY, 1), data: None, intervals: false };
const SETS: [Set; 11] =
    [BRIDGES, INTERNAL, SAME, SUBNETS4, SUBNETS6, PORTS4, PORTS6, ANYWHERE4, ANYWHERE6, ROOTS, CLOSED];

/// What the firewall has to know of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    pub bridge: String,
    pub subnets: Vec<Subnet>,
    /// Its containers reach nobody outside, and nobody reaches them.
    pub internal: bool,
}

/// A port of the host and where what comes to it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    pub port: Port,
    pub target: IpAddr,
}

/// All that one state directory has to say. Others may have their own networks beside.
#[derive(Debug, Clone, Copy)]
pub struct Share<'a> {
    /// Up to 15 bytes by which the state directory is known.
    pub root: &'a str,
    pub zones: &'a [Zone],
    pub ports: &'a [Published],
    /// The host forwards IPv4, or IPv6, for us alone: what goes between others' devices is dropped.
    pub closed: [bool; 2],
}

/// Whether all of a state directory is there: not where somebody has flushed the table, nor after a reboot.
pub fn knows(socket: &mut Socket, root: &str) -> io::Result<bool> {
    match socket.ask(&nft::ask_element(TABLE, ROOTS.name, &Element::key(device(root)))) {
        Ok(_) => Ok(true),
        Err(e) if is_gone(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error())
}

/// Whether another table of the host drops what is forwarded where no rule of its own says otherwise, as those of Docker and
/// of ufw do: nothing of ours gets through that.
pub fn others_drop(socket: &mut Socket) -> io::Result<bool> {
    const FORWARD: u32 = 2;
    let chains = socket.ask(&nft::ask_chains())?;
    let mut chains = chains.iter().filter_map(|answer| nft::Chain::read(&answer.body));
    Ok(chains.any(|chain| chain.ipv4 && chain.hook == Some((FORWARD, true)) && chain.table != TABLE))
}

/// Says all that a state directory has to say, and what all of them share, where that is not there.
pub fn say(socket: &mut Socket, share: &Share<'_>) -> Result<()> {
    let failed = |e: io::Error| Error::system("write the firewall's table 'inet isles'", e);
    let mut t = Transaction::new(TABLE);
    let families = share.closed.into_iter().zip([IPV4, IPV6]).filter(|(closed, _)| *closed);
    let families: Vec<_> = families.map(|(_, family)| Element::key(vec![family])).collect();
    if !families.is_empty() {
        t.known_elements(CLOSED.name, &families);
    }
    for zone in share.zones {
        for (set, elements) in of_zone(zone) {
            t.known_elements(set, &elements);
        }
    }
    for (set, elements) in by_map(share.ports) {
        t.known_elements(set, &elements);
    }
    t.known_elements(ROOTS.name, &[Element::key(device(share.root))]);
    let all = t.finish();
    match socket.ask(&nft::ask_table(TABLE)) {
        Err(e) if is_gone(&e) => found(socket, false).map_err(failed)?,
        other => drop(other.map_err(failed)?),
    }
    match socket.apply(&all).map_err(io::Error::from) {
        // One of a version that knew less.
        Err(e) if is_gone(&e) => {
            found(socket, true).map_err(failed)?;
            socket.apply(&all).map_err(|e| failed(e.into()))
        }
        other => other.map_err(failed),
    }
}

/// Makes the table, with what does not depend on networks: packets meet none of it or all of it. `anew`: in the place of one
/// that is there.
fn found(socket: &mut Socket, anew: bool) -> io::Result<()> {
    let mut t = Transaction::new(TABLE);
    if anew {
        // Made, removed, and made: so it need not be known whether it is there.
        t.table();
        t.delete_table();
    }
    t.new_table();
    for set in &SETS {
        t.set(set);
    }
    t.chain(USER, None);
    t.chain("publish", None);
    let hook = |number, priority, kind| Hook { number, priority, kind };
    t.chain("guard", Some(hook(0, -300, "filter")));
    t.chain("arriving", Some(hook(0, -100, "nat")));
    t.chain("sending", Some(hook(3, -100, "nat")));
    t.chain("forwarding", Some(hook(2, 0, "filter")));
    t.chain("leaving", Some(hook(4, 100, "nat")));

    // The bridges route the host's 127.0.0.0/8, for published ports; no container gets there (CVE-2020-8558).
    for field in [Field::Destination4, Field::Source4] {
        let rule = Rule::new().meta(Meta::InDevice, 0).among(BRIDGES.name, true).family(false);
        t.rule(
            "guard",
            &rule.field(field, 0).masked(&[255, 0, 0, 0]).is(&[127, 0, 0, 0]).verdict(Verdict::Drop),
        );
    }
    // The kernel takes answers to ::1 from no other device than the loopback, whatever it is told (rt6_need_strict). Whoever
    // asks there hears at once that nobody listens, and asks 127.0.0.1.
    let at_loopback = Rule::new().family(true).field(Field::Destination6, 0);
    t.rule("sending", &at_loopback.is(&std::net::Ipv6Addr::LOCALHOST.octets()).verdict(Verdict::Accept));
    for chain in ["arriving", "sending"] {
        t.rule(chain, &Rule::new().to_host().verdict(Verdict::Jump("publish")));
    }
    for (ipv6, at, anywhere) in [(false, PORTS4, ANYWHERE4), (true, PORTS6, ANYWHERE6)] {
        let (destination, port_slot) = if ipv6 { (Field::Destination6, 5) } else { (Field::Destination4, 2) };
        let transport = || Rule::new().family(ipv6).meta(Meta::Transport, 0);
        let rule = transport().field(destination, 1).field(Field::DestinationPort, port_slot);
        t.rule("publish", &rule.mapped(at.name).destination(ipv6));
        let rule = transport().field(Field::DestinationPort, 1);
        t.rule("publish", &rule.mapped(anywhere.name).destination(ipv6));
    }

    let rule = || Rule::new();
    let to_us = || rule().meta(Meta::OutDevice, 0).among(BRIDGES.name, true);
    let from_us = || rule().meta(Meta::InDevice, 0).among(BRIDGES.name, true);
    t.rule("forwarding", &rule().verdict(Verdict::Jump(USER)));
    // A bridge whose packets the host filters (br_netfilter) shows them here, too.
    t.rule(
        "forwarding",
        &rule()
            .meta(Meta::InDevice, 0)
            .meta(Meta::OutDevice, 4)
            .among(SAME.name, true)
            .verdict(Verdict::Accept),
    );
    for key in [Meta::InDevice, Meta::OutDevice] {
        t.rule("forwarding", &rule().meta(key, 0).among(INTERNAL.name, true).verdict(Verdict::Drop));
    }
    t.rule("forwarding", &to_us().established().verdict(Verdict::Accept));
    t.rule("forwarding", &to_us().published().verdict(Verdict::Accept));
    // Neither other networks nor neighbours of the host, who could send here because the host forwards.
    t.rule("forwarding", &to_us().verdict(Verdict::Drop));
    t.rule("forwarding", &from_us().verdict(Verdict::Accept));
    t.rule("forwarding", &rule().meta(Meta::Family, 0).among(CLOSED.name, true).verdict(Verdict::Drop));

    let bridge_out = |wanted| rule().meta(Meta::OutDevice, 0).among(BRIDGES.name, wanted);
    for (ipv6, subnets, source, destination) in [
        (false, SUBNETS4, Field::Source4, Field::Destination4),
        (true, SUBNETS6, Field::Source6, Field::Destination6),
    ] {
        let inside = |rule: Rule| rule.family(ipv6).field(source, 0).among(subnets.name, true);
        t.rule("leaving", &inside(bridge_out(false)).masquerade());
        // A container that comes back by a published port: the answer must take the same way.
        let around = inside(rule().published()).field(destination, 0).among(subnets.name, true);
        t.rule("leaving", &around.masquerade());
    }
    // From the host's loopback to a published port: nobody could answer that address.
    let loopback = bridge_out(true).family(false).field(Field::Source4, 0);
    t.rule("leaving", &loopback.masked(&[255, 0, 0, 0]).is(&[127, 0, 0, 0]).masquerade());

    match socket.apply(&t.finish()) {
        // Another process was faster.
        Err(e) if !anew && e.errno() == Some(rustix::io::Errno::EXIST.raw_os_error()) => Ok(()),
        other => Ok(other?),
    }
}

/// In a network namespace without our table: what its own programs send to these ports at an IPv4 address of its own goes
/// where it is published.
pub fn redirect(socket: &mut Socket, ports: &[Published]) -> Result<(), Refusal> {
    let mut t = Transaction::new(TABLE);
    t.table();
    t.set(&PORTS4);
    t.chain("sending", Some(Hook { number: 3, priority: -100, kind: "nat" }));
    let rule = Rule::new().family(false).meta(Meta::Transport, 0);
    let rule = rule.field(Field::Destination4, 1).field(Field::DestinationPort, 2);
    t.rule("sending", &rule.mapped(PORTS4.name).destination(false));
    for (set, elements) in by_map(ports) {
        t.elements(set, &elements);
    }
    socket.apply(&t.finish())
}

/// Adds a network; one that is there already is no error.
pub fn add(socket: &mut Socket, zone: &Zone) -> Result<(), Refusal> {
    let mut t = Transaction::new(TABLE);
    for (set, elements) in of_zone(zone) {
        t.known_elements(set, &elements);
    }
    socket.apply(&t.finish())
}

/// Removes a network. What is not there need not be removed.
pub fn remove(socket: &mut Socket, zone: &Zone) -> io::Result<()> {
    take_away(socket, &of_zone(zone))
}

/// Forgets a state directory. One that is not known need not be forgotten.
pub fn forget(socket: &mut Socket, root: &str) -> io::Result<()> {
    take_away(socket, &[(ROOTS.name, vec![Element::key(device(root))])])
}

/// Publishes ports, all of them or none.
///
/// # Errors
/// `EEXIST` where one of them is published already, `ENOENT` where the table is not there.
pub fn publish(socket: &mut Socket, ports: &[Published]) -> Result<(), Refusal> {
    let mut t = Transaction::new(TABLE);
    for (set, elements) in by_map(ports) {
        t.elements(set, &elements);
    }
    socket.apply(&t.finish())
}

/// Takes ports back. What is not there need not be removed.
pub fn withdraw(socket: &mut Socket, ports: &[Published]) -> io::Result<()> {
    take_away(socket, &by_map(ports))
}

fn take_away(socket: &mut Socket, elements: &[(&'static str, Vec<Element>)]) -> io::Result<()> {
    let gone = |e: &Refusal| is_gone(&e.source);
    let mut t = Transaction::new(TABLE);
    for (set, elements) in elements {
        t.remove_elements(set, elements, false);
    }
    match socket.apply(&t.finish()) {
        Ok(()) => return Ok(()),
        Err(e) if gone(&e) => return Ok(()),
        // Before Linux 6.3 an element must be there to be removed: one after the other, then.
        Err(_) => {}
    }
    for (set, elements) in elements {
        // Both ends of a range go together.
        for range in elements.chunks(if elements.iter().any(|e| e.end) { 2 } else { 1 }) {
            let mut t = Transaction::new(TABLE);
            t.remove_elements(set, range, true);
            match socket.apply(&t.finish()) {
                Err(e) if gone(&e) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// A name as the kernel has those of devices.
fn device(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(DEVICE_NAME as usize, 0);
    key
}

/// Elements by the set that they are of.
fn of_zone(zone: &Zone) -> Vec<(&'static str, Vec<Element>)> {
    let bridge = device(&zone.bridge);
    let mut out = vec![
        (BRIDGES.name, vec![Element::key(bridge.clone())]),
        (SAME.name, vec![Element::key([bridge.clone(), bridge.clone()].concat())]),
    ];
    if zone.internal {
        out.push((INTERNAL.name, vec![Element::key(bridge)]));
    }
    for subnet in &zone.subnets {
        let set = if subnet.is_ipv6() { SUBNETS6.name } else { SUBNETS4.name };
        let mut range = vec![Element::key(octets(subnet.first()))];
        // A range that reaches to the last address of all has no end.
        if let Some(behind) = behind(subnet.last()) {
            range.push(Element { end: true, ..Element::key(octets(behind)) });
        }
        out.push((set, range));
    }
    out
}

fn behind(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(address) => u128::from(address).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}

/// Elements by the map that they are of.
fn by_map(ports: &[Published]) -> Vec<(&'static str, Vec<Element>)> {
    let mut out: Vec<(&'static str, Vec<Element>)> = Vec::new();
    for published in ports {
        let Some((map, element)) = element(published) else { continue };
        match out.iter_mut().find(|(name, _)| *name == map) {
            Some((_, elements)) => elements.push(element),
            None => out.push((map, vec![element])),
        }
    }
    out
}

/// `None` where the host's address is of another family than the container's.
fn element(published: &Published) -> Option<(&'static str, Element)> {
    let Published { port, target } = *published;
    let padded = |number: u16| {
        let [a, b] = number.to_be_bytes();
        [a, b, 0, 0]
    };
    let mut key = vec![port.protocol.number(), 0, 0, 0];
    let map = match port.address.filter(|address| !address.is_unspecified()) {
        Some(address) if address.is_ipv6() != target.is_ipv6() => return None,
        Some(address) => {
            key.extend(octets(address));
            if address.is_ipv6() { PORTS6.name } else { PORTS4.name }
        }
        None if port.address.is_some_and(|any| any.is_ipv6() != target.is_ipv6()) => return None,
        None if target.is_ipv6() => ANYWHERE6.name,
        None => ANYWHERE4.name,
    };
    key.extend(padded(port.host));
    let mut data = octets(target);
    data.extend(padded(port.container));
    Some((map, Element { key, data: Some(data), end: false }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_map_a_port_is_in() {
        let at = |words: &str, target: &str| {
            let port = Port::parse(words).unwrap()[0];
            element(&Published { port, target: target.parse().unwrap() })
        };
        let (map, found) = at("8080:80", "10.0.0.2").unwrap();
        assert_eq!((map, found.key), ("anywhere4", vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0]));
        assert_eq!(found.data.unwrap(), [10, 0, 0, 2, 0, 80, 0, 0]);
        let (map, found) = at("127.0.0.1:53:53/udp", "10.0.0.2").unwrap();
        assert_eq!((map, found.key), ("ports4", vec![17, 0, 0, 0, 127, 0, 0, 1, 0, 53, 0, 0]));
        for (words, target, map) in [
            ("80:80", "fd00::2", Some("anywhere6")),
            ("[::1]:80:80", "fd00::2", Some("ports6")),
            ("[::]:80:80", "fd00::2", Some("anywhere6")),
            ("[::]:80:80", "10.0.0.2", None),
            ("0.0.0.0:80:80", "10.0.0.2", Some("anywhere4")),
            ("0.0.0.0:80:80", "fd00::2", None),
            ("[::1]:80:80", "10.0.0.2", None),
        ] {
            assert_eq!(at(words, target).map(|(map, _)| map), map, "{words} {target}");
        }
    }
}
