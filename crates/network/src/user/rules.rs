//! Where the packets of a container may go: to every address of the world and of the host's network, and not to what
//! the host keeps to itself.
//!
//! The host's loopback is out of reach by whatever name it has, unless it was asked for. The addresses of the
//! container's own network stand for something: the router for the host, and those after it for the servers that the host
//! asks for names, the loopback's among them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::inside::Plan;
use crate::subnet::Subnet;

/// So many servers for names there are at most (MAXNS of resolv.conf(5)).
pub const RESOLVERS: usize = 3;
/// A file with more is not read.
const RESOLV_CONF_LIMIT: u64 = 64 << 10;
const NAMES: u16 = 53;

/// A network that a container shares with others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// Its ID.
    pub network: String,
    pub subnet: Subnet,
    /// The container's own address.
    pub own: IpAddr,
    /// The address that stands for the host, as the router does.
    pub gateway: IpAddr,
}

/// Finds who has an address in the network of that ID: the folder of that container.
pub type Find = Box<dyn Fn(&str, IpAddr) -> Option<PathBuf> + Send>;

/// What a container shares with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    pub shared: Vec<Shared>,
    /// These networks lead nowhere else.
    pub internal: bool,
    /// The address of the container's device.
    pub mac: [u8; 6],
}

/// Tells what is shared now, where that has changed since it was asked last.
pub type Changes = Box<dyn FnMut() -> Option<Joined> + Send>;

/// Where packets to an address go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To that address on the host's side.
    Host(SocketAddr),
    /// To another container, which has that folder.
    Container(PathBuf),
}

/// What decides.
pub struct Rules {
    pub plan: Plan,
    /// The router stands for the host's loopback, and not for the address by which others know the host.
    pub host_loopback: bool,
    pub shared: Vec<Shared>,
    /// Nobody but the containers of shared networks is reached.
    pub internal: bool,
    find: Option<Find>,
    changes: Option<Changes>,
    resolvers: Resolvers,
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rules")
            .field("plan", &self.plan)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl Rules {
    pub fn new(plan: Plan, host_loopback: bool) -> Rules {
        Rules {
            plan,
            host_loopback,
            shared: Vec::new(),
            internal: false,
            find: None,
            changes: None,
            resolvers: Resolvers::new("/etc/resolv.conf".into()),
        }
    }

    /// Servers for names that are read from another file.
    #[must_use]
    pub fn with_resolvers(self, resolv_conf: PathBuf) -> Rules {
        Rules { resolvers: Resolvers::new(resolv_conf), ..self }
    }

    /// With networks that are shared with others, who are found by `find`.
    #[must_use]
    pub fn with_shared(self, shared: Vec<Shared>, internal: bool, find: Find) -> Rules {
        Rules { shared, internal, find: Some(find), ..self }
    }

    /// With networks that may be joined and left while the container runs.
    #[must_use]
    pub fn with_changes(self, changes: Changes) -> Rules {
        Rules { changes: Some(changes), ..self }
    }

    /// Looks at which networks are shared now.
    pub fn refresh(&mut self) {
        if let Some(now) = self.changes.as_mut().and_then(|changes| changes()) {
            (self.shared, self.internal, self.plan.mac) = (now.shared, now.internal, now.mac);
        }
    }

    /// Where packets go, or `None` where there is no way.
    pub fn target(&mut self, destination: SocketAddr) -> Option<Target> {
        self.refresh();
        if let Some(shared) = self.shared_with(destination.ip())
            && shared.gateway != destination.ip()
        {
            let find = self.find.as_ref()?;
            return find(&shared.network, destination.ip()).map(Target::Container);
        }
        self.host_target(destination).map(Target::Host)
    }

    fn shared_with(&self, address: IpAddr) -> Option<&Shared> {
        self.shared.iter().find(|shared| shared.subnet.contains(address))
    }

    /// Whether an address is the container's own.
    pub fn is_own(&self, address: IpAddr) -> bool {
        let of_plan = self.plan.addresses().any(|(own, _)| own == address);
        of_plan || self.shared.iter().any(|shared| shared.own == address)
    }

    fn host_target(&mut self, destination: SocketAddr) -> Option<SocketAddr> {
        let port = destination.port();
        match self.own(destination.ip()) {
            Own::No => (may_leave(destination.ip()) && !self.internal).then_some(destination),
            Own::Router if self.internal => None,
            Own::Router => Some(SocketAddr::new(self.host(destination.is_ipv6())?, port)),
            Own::Resolver(number) => (port == NAMES).then(|| self.resolvers.now().get(number).copied())?,
            Own::Unused => None,
        }
    }

    /// Whether the router itself answers to pings of this address.
    pub fn is_router(&self, address: IpAddr) -> bool {
        let other = self.shared_with(address).filter(|shared| shared.gateway != address);
        match (other, &self.find) {
            // One who runs has a folder that is found.
            (Some(shared), Some(find)) => find(&shared.network, address).is_some(),
            (Some(_), None) => false,
            (None, _) => matches!(self.own(address), Own::Router | Own::Resolver(_)),
        }
    }

    /// Whether an address is to be pinged on the host's side.
    pub fn may_ping(&self, address: IpAddr) -> bool {
        matches!(self.own(address), Own::No) && may_leave(address) && !self.internal
    }

    /// As whom a container sees one who comes from the host's side: as he is, unless he is one whom it cannot answer.
    pub fn seen(&self, peer: SocketAddr, to_ipv6: bool) -> Option<SocketAddr> {
        let address = canonical(peer.ip());
        let stands = address.is_ipv6() == to_ipv6
            && matches!(self.own(address), Own::No)
            && !address.is_loopback()
            && !address.is_unspecified()
            && !is_link_local(address);
        let router = if to_ipv6 {
            self.plan.v6.map(|net| net.router.into())
        } else {
            Some(self.plan.v4.router.into())
        };
        let address = if stands { Some(address) } else { router };
        address.map(|address| SocketAddr::new(address, peer.port()))
    }

    fn own(&self, address: IpAddr) -> Own {
        if let Some(shared) = self.shared_with(address) {
            return if shared.gateway == address { Own::Router } else { Own::Unused };
        }
        let (net, router) = match (address, self.plan.v6) {
            (IpAddr::V4(address), _) => {
                let (own, router) = (self.plan.v4.container.octets(), self.plan.v4.router);
                if address.octets()[..3] != own[..3] {
                    return Own::No;
                }
                (u64::from(address.octets()[3]), u64::from(router.octets()[3]))
            }
            (IpAddr::V6(address), Some(net)) => {
                let low = |address: Ipv6Addr| (u128::from(address) & u128::from(u64::MAX)) as u64;
                if address.octets()[..8] != net.container.octets()[..8] {
                    return Own::No;
                }
                (low(address), low(net.router))
            }
            (IpAddr::V6(_), None) => return Own::No,
        };
        match net.checked_sub(router) {
            Some(0) => Own::Router,
            Some(number @ 1..=3) => Own::Resolver(number as usize - 1),
            _ => Own::Unused,
        }
    }

    fn host(&self, ipv6: bool) -> Option<IpAddr> {
        if self.host_loopback {
            return Some(if ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() });
        }
        host_address(ipv6)
    }
}

/// What an address of the container's own network stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Own {
    /// It is of another network.
    No,
    Router,
    Resolver(usize),
    Unused,
}

/// The address by which others know the host: the one that it would speak to the world from. Nothing is sent for that.
pub fn host_address(ipv6: bool) -> Option<IpAddr> {
    // Addresses of documentation (RFC 5737, RFC 3849), so that no name is in it and no route but the default one.
    let (own, other): (SocketAddr, SocketAddr) = if ipv6 {
        ((Ipv6Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into())
    } else {
        ((Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::new(192, 0, 2, 1), 9).into())
    };
    let socket = UdpSocket::bind(own).ok()?;
    socket.connect(other).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// Whether what goes to an address leaves the host, or reaches it by a name that others have for it, too.
fn may_leave(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            // "This network" is the loopback to connect(2); 240.0.0.0/4 and the broadcast are nobody's.
            first != 0 && first != 127 && first < 224
        }
        IpAddr::V6(v6) => {
            // Addresses that stand for ones of IPv4 (::/96 with :: and ::1, ::ffff:0:0/96) reach those.
            let stands_for_v4 = v6.segments()[..5] == [0; 5] && matches!(v6.segments()[5], 0 | 0xffff);
            !stands_for_v4 && !v6.is_multicast() && !is_link_local(address)
        }
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80)
}

/// An address of IPv4 as such, where a socket of IPv6 took it.
pub fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        v4 => v4,
    }
}

/// The host's servers for names, as its file has them now.
#[derive(Debug)]
struct Resolvers {
    file: PathBuf,
    read: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

impl Resolvers {
    fn new(file: PathBuf) -> Resolvers {
        Resolvers { file, read: None, servers: Vec::new() }
    }

    fn now(&mut self) -> &[SocketAddr] {
        let metadata = std::fs::metadata(&self.file).ok();
        let changed = metadata.as_ref().and_then(|m| m.modified().ok());
        if changed != self.read || changed.is_none() {
            let small = metadata.is_some_and(|m| m.is_file() && m.len() <= RESOLV_CONF_LIMIT);
            let text =
                if small { std::fs::read_to_string(&self.file).unwrap_or_default() } else { String::new() };
            self.servers = servers(&text).into_iter().map(|address| (address, NAMES).into()).collect();
            self.read = changed;
        }
        &self.servers
    }
}

/// The servers that a resolv.conf(5) names; the host itself where it names none, as the C library has it.
pub fn servers(text: &str) -> Vec<IpAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        // An address with a scope (fe80::1%eth0) is one that only the host can use.
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
    });
    let mut servers: Vec<IpAddr> = named.take(RESOLVERS).collect();
    if servers.is_empty() {
        servers.push(Ipv4Addr::LOCALHOST.into());
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::inside::{Ipv4Net, Ipv6Net};

    fn plan() -> Plan {
        Plan {
            v4: Ipv4Net { container: [10, 0, 2, 100].into(), router: [10, 0, 2, 2].into() },
            v6: Some(Ipv6Net {
                container: "fd69:736c:6573::64".parse().unwrap(),
                router: "fd69:736c:6573::2".parse().unwrap(),
            }),
            mac: crate::user::inside::MAC,
            mtu: crate::user::inside::MTU,
        }
    }

    #[test]
    fn where_packets_may_go() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "# x\nnameserver 127.0.0.53\nnameserver fd00::1\nsearch y\n").unwrap();
        let mut rules = Rules::new(plan(), true).with_resolvers(file.clone());
        for (asked, expected) in [
            ("1.2.3.4:80", Some("1.2.3.4:80")),
            ("169.254.169.254:80", Some("169.254.169.254:80")),
            ("[2001:db8::1]:80", Some("[2001:db8::1]:80")),
            // The host's own.
            ("127.0.0.1:80", None),
            ("127.9.9.9:80", None),
            ("0.0.0.0:80", None),
            ("0.1.2.3:80", None),
            ("[::1]:80", None),
            ("[::]:80", None),
            ("[::ffff:127.0.0.1]:80", None),
            ("[::ffff:1.2.3.4]:80", None),
            ("[::127.0.0.1]:80", None),
            // Those of many, of nobody, and of one wire.
            ("224.0.0.251:5353", None),
            ("255.255.255.255:67", None),
            ("240.0.0.1:1", None),
            ("[ff02::1]:1", None),
            ("[fe80::1]:1", None),
            // The network's own.
            ("10.0.2.2:80", Some("127.0.0.1:80")),
            ("[fd69:736c:6573::2]:80", Some("[::1]:80")),
            ("10.0.2.3:53", Some("127.0.0.53:53")),
            ("10.0.2.4:53", Some("[fd00::1]:53")),
            ("[fd69:736c:6573::3]:53", Some("127.0.0.53:53")),
            ("10.0.2.5:53", None),
            ("10.0.2.3:80", None),
            ("10.0.2.1:80", None),
            ("10.0.2.100:80", None),
            ("10.0.2.255:80", None),
        ] {
            let target = rules.target(asked.parse().unwrap());
            assert_eq!(target, expected.map(|text| Target::Host(text.parse().unwrap())), "{asked}");
        }
        // The host's loopback only where it was asked for.
        let mut rules = Rules::new(plan(), false).with_resolvers(file);
        let host = rules.target("10.0.2.2:80".parse().unwrap());
        assert!(host.is_none_or(|host| matches!(host, Target::Host(host) if !host.ip().is_loopback())));
        assert!(
            rules.is_router(IpAddr::from([10, 0, 2, 2])) && !rules.may_ping(IpAddr::from([127, 0, 0, 1]))
        );
        assert!(rules.may_ping(IpAddr::from([8, 8, 8, 8])) && !rules.may_ping(IpAddr::from([10, 0, 2, 7])));
    }

    #[test]
    fn networks_that_are_shared() {
        let shared = Shared {
            network: "n1".to_owned(),
            subnet: "10.7.0.0/16".parse().unwrap(),
            own: [10, 7, 0, 2].into(),
            gateway: [10, 7, 0, 1].into(),
        };
        let find = |network: &str, address: IpAddr| {
            (address == IpAddr::from([10, 7, 0, 3])).then(|| PathBuf::from(network))
        };
        for internal in [false, true] {
            let mut rules =
                Rules::new(plan(), true).with_shared(vec![shared.clone()], internal, Box::new(find));
            let outside = |address: &str| (!internal).then(|| Target::Host(address.parse().unwrap()));
            for (asked, expected) in [
                ("10.7.0.3:80", Some(Target::Container("n1".into()))),
                ("10.7.0.4:80", None),
                ("10.7.0.1:80", outside("127.0.0.1:80")),
                ("10.8.0.1:80", outside("10.8.0.1:80")),
                ("10.0.2.2:80", outside("127.0.0.1:80")),
            ] {
                assert_eq!(rules.target(asked.parse().unwrap()), expected, "{asked} {internal}");
            }
            assert!(rules.is_router([10, 7, 0, 3].into()) && !rules.is_router([10, 7, 0, 4].into()));
            assert!(rules.is_own([10, 7, 0, 2].into()) && !rules.is_own([10, 7, 0, 3].into()));
        }
    }

    #[test]
    fn networks_may_be_joined_and_left() {
        let shared = Shared {
            network: "n1".to_owned(),
            subnet: "10.7.0.0/16".parse().unwrap(),
            own: [10, 7, 0, 2].into(),
            gateway: [10, 7, 0, 1].into(),
        };
        let (say, said) = std::sync::mpsc::channel();
        let find = |network: &str, _: IpAddr| Some(PathBuf::from(network));
        let mut rules = Rules::new(plan(), true)
            .with_shared(Vec::new(), false, Box::new(find))
            .with_changes(Box::new(move || said.try_recv().ok()));
        let asked: SocketAddr = "10.7.0.3:80".parse().unwrap();
        assert_eq!(rules.target(asked), Some(Target::Host(asked)));
        let mac = [2, 0, 0, 0, 0, 7];
        say.send(Joined { shared: vec![shared], internal: true, mac }).unwrap();
        assert_eq!(rules.target(asked), Some(Target::Container("n1".into())));
        assert_eq!(rules.target("10.8.0.1:80".parse().unwrap()), None);
        assert!(rules.is_own([10, 7, 0, 2].into()));
        say.send(Joined { shared: Vec::new(), internal: false, mac }).unwrap();
        rules.refresh();
        assert!(!rules.is_own([10, 7, 0, 2].into()));
        assert_eq!(rules.target(asked), Some(Target::Host(asked)));
    }

    #[test]
    fn who_comes_from_outside() {
        let rules = Rules::new(plan(), false);
        for (peer, to_ipv6, seen) in [
            ("192.0.2.7:5", false, "192.0.2.7:5"),
            ("[::ffff:192.0.2.7]:5", false, "192.0.2.7:5"),
            ("127.0.0.1:5", false, "10.0.2.2:5"),
            ("10.0.2.100:5", false, "10.0.2.2:5"),
            ("[2001:db8::1]:5", false, "10.0.2.2:5"),
            ("[2001:db8::1]:5", true, "[2001:db8::1]:5"),
            ("[::1]:5", true, "[fd69:736c:6573::2]:5"),
            ("[fe80::1]:5", true, "[fd69:736c:6573::2]:5"),
        ] {
            let seen: SocketAddr = seen.parse().unwrap();
            assert_eq!(rules.seen(peer.parse().unwrap(), to_ipv6), Some(seen), "{peer}");
        }
    }

    #[test]
    fn servers_for_names() {
        for (text, expected) in [
            ("", "127.0.0.1"),
            ("nameserver\nnameserver x\n nameserver 1.1.1.1 # a\n", "1.1.1.1"),
            (
                "nameserver 1.1.1.1\nnameserver ::1\nnameserver 2.2.2.2\nnameserver 3.3.3.3",
                "1.1.1.1 ::1 2.2.2.2",
            ),
            ("nameserver fe80::1%eth0\noptions ndots:0", "127.0.0.1"),
        ] {
            let shown: Vec<String> = servers(text).iter().map(|a| a.to_string()).collect();
            assert_eq!(shown.join(" "), expected, "{text}");
        }
    }
}
