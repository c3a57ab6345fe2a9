//! A network of its own for a container of somebody who has no rights on the host's: addresses, published ports, and
//! the thread that serves them ([`isles_network::user`]).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use isles_network::Subnet;
use isles_network::netlink::message::Batch;
use isles_network::netlink::{Socket, route};
use isles_network::place;
use isles_network::state::{DEFAULT, Networks, Places};
use isles_network::user::inside::{EXPOSED, Ipv4Net, Ipv6Net, MAC, MTU, Plan};
use isles_network::user::neighbour;
use isles_network::user::rules::{self, Changes, Rules, Shared};
use isles_network::user::{self, Kind, Listener, Service};
use isles_sandbox::identity::Identity;
use isles_sandbox::network::Entered;
use isles_sandbox::setup::NetworkMessages;
use isles_spec::{NetworkMode, NetworkUse, Port, Protocol, Workload};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with};
use rustix::thread::CapabilitySet;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::networks::Taken;

/// The third byte of the network's address (10.0.n.0/24), where the host's own networks leave it free.
const NETWORKS: std::ops::RangeInclusive<u8> = 2..=254;
/// The prefix of the network of IPv6 (RFC 4193).
const PREFIX: [u16; 4] = [0xfd69, 0x736c, 0x6573, 0];
const ROUTER: u8 = 2;
const CONTAINER: u8 = 100;
/// All of them, of which one is a container's from its start on.
const OWN: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 0, 0), 16);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// What the network of a container is to be.
#[derive(Debug)]
pub(crate) struct UserNetwork {
    pub plan: Plan,
    host_loopback: bool,
    listeners: Vec<Listener>,
    /// The published ports, as they are on the host.
    pub ports: Vec<Port>,
    shared: Vec<Shared>,
    internal: bool,
    /// The container's ID, where it shares networks.
    container: Option<String>,
}

/// A network that exists, and that nobody serves yet.
#[derive(Debug)]
pub(crate) struct Unserved {
    /// The socket by which more can be said of its devices.
    pub network: OwnedFd,
    pub plan: Plan,
    pub host_loopback: bool,
    pub listeners: Vec<Listener>,
    /// Networks of several containers, and whether they lead nowhere else.
    pub shared: Vec<Shared>,
    pub internal: bool,
    /// The container's ID, where it shares networks: it may join and leave some while it runs.
    pub container: Option<String>,
}

/// What a container's `network` is where nothing is said of it: root's containers are on the usual bridge, where this root
/// may make one, and the host's firewall lets through what goes there.
pub(crate) fn usual(network: NetworkMode, identity: Identity) -> NetworkMode {
    let may_bridge = || {
        let have = rustix::thread::capabilities(None);
        have.is_ok_and(|have| have.effective.contains(CapabilitySet::NET_ADMIN))
    };
    match network {
        NetworkMode::Default if identity == Identity::Root && may_bridge() && place::lets_through() => {
            NetworkMode::Networks(vec![NetworkUse { name: DEFAULT.to_owned(), ..NetworkUse::default() }])
        }
        NetworkMode::Default => NetworkMode::User { host_loopback: false },
        other => other,
    }
}

/// Whether a container's `network` is one of its own that is served by a process of the user's.
pub(crate) fn is_served(network: &NetworkMode, identity: Identity) -> bool {
    match network {
        NetworkMode::User { .. } | NetworkMode::Default => true,
        NetworkMode::Networks(_) => identity != Identity::Root,
        _ => false,
    }
}

/// The networks that a container of this user shares with others. An ordinary user has no bridge, and a network of the
/// container's own instead of the usual one.
pub(crate) fn shares(network: &NetworkMode, identity: Identity) -> Option<&[NetworkUse]> {
    let NetworkMode::Networks(uses) = network else { return None };
    let usual = NetworkUse { name: DEFAULT.to_owned(), ..NetworkUse::default() };
    (identity == Identity::Root || *uses != [usual]).then_some(uses)
}

impl UserNetwork {
    /// The network of a container; `None` where it has another kind. The host's ports are taken from here on.
    ///
    /// # Errors
    /// A port is taken already, or not this user's to take; or the container's network has no ports of its own.
    pub fn of(workload: &Workload, identity: Identity) -> Result<Option<UserNetwork>> {
        let (network, wanted) = (&workload.network, &workload.ports);
        if !is_served(network, identity) {
            return match (network, wanted.is_empty()) {
                (_, true) | (NetworkMode::Networks(_), _) => Ok(None),
                (NetworkMode::None, _) => Err(no_ports("it has no network")),
                (NetworkMode::Container(_) | NetworkMode::Path(_), _) => {
                    Err(no_ports("its network is another's, who may publish them"))
                }
                _ => Err(no_ports(
                    "the network is the host's, and so are the container's ports; use --network slirp4netns",
                )),
            };
        }
        let mut listeners = Vec::new();
        let mut ports = Vec::with_capacity(wanted.len());
        for port in wanted {
            ports.push(publish(port, &mut listeners)?);
        }
        let host_loopback = matches!(network, NetworkMode::User { host_loopback: true });
        let (shared, internal) = (Vec::new(), false);
        Ok(Some(UserNetwork {
            plan: plan(&routes(), &[]),
            host_loopback,
            listeners,
            ports,
            shared,
            internal,
            container: None,
        }))
    }

    /// Lets the container `id` have places in networks, where others find it by its folder.
    pub fn share(&mut self, id: &str, taken: &Taken, folder: &Path) -> Result<()> {
        let places = &taken.places;
        self.shared = shared(places);
        self.internal = taken.is_internal();
        self.container = Some(id.to_owned());
        self.plan = plan(&routes(), &self.shared);
        self.plan.mac = places.endpoints.first().map_or(MAC, |first| first.mac);
        // One device is in all of them.
        self.plan.mtu = taken.mtu().map_or(MTU, |mtu| mtu.min(MTU));
        for (kind, served) in
            [(Kind::Stream, Kind::NeighboursStream), (Kind::Datagrams, Kind::NeighboursDatagrams)]
        {
            let socket = neighbour::hear(folder, kind).map_err(|e| Error::file("listen in", folder, e))?;
            self.listeners.push(Listener { socket, kind: served, port: 0, ipv6: false });
        }
        Ok(())
    }

    /// What makes it, in the container.
    pub fn messages(&self) -> NetworkMessages {
        let further: Vec<(IpAddr, u8)> =
            self.shared.iter().map(|shared| (shared.own, shared.subnet.prefix())).collect();
        let batch = self.plan.messages(&further);
        NetworkMessages { bytes: batch.bytes().to_vec(), number: batch.commands() }
    }

    /// What it is when the container is there.
    pub fn made(self, network: OwnedFd) -> Unserved {
        let UserNetwork { plan, host_loopback, listeners, shared, internal, container, .. } = self;
        Unserved { network, plan, host_loopback, listeners, shared, internal, container }
    }

    /// The servers that a container asks for names, for its resolv.conf(5): as many as the host has, each of which one
    /// address of the network stands for.
    pub fn resolvers(&self, resolv_conf: &str) -> Vec<IpAddr> {
        let [a, b, c, router] = self.plan.v4.router.octets();
        let last = |number: usize| router + 1 + number as u8;
        (0..rules::servers(resolv_conf).len())
            .map(|number| Ipv4Addr::new(a, b, c, last(number)).into())
            .collect()
    }
}

impl Unserved {
    /// Serves the network, until what comes back is dropped.
    pub fn serve(self, engine: &Engine) -> Result<Service> {
        let mut rules = Rules::new(self.plan, self.host_loopback);
        if let Some(container) = self.container {
            let networks = engine.networks_dir();
            let containers = engine.store().root().join("containers");
            let find = move |network: &str, address: IpAddr| {
                Networks::owner(&networks, network, address).map(|id| containers.join(id))
            };
            rules = rules
                .with_shared(self.shared, self.internal, Box::new(find))
                .with_changes(changes(engine.networks_dir(), container));
        }
        // A thread that stays behind has nobody to tell; the container is told by silence.
        user::serve(self.network, rules, self.listeners, |e| {
            eprintln!("isles: the container's network ended: {e}")
        })
        .map_err(|e| Error::system("serve the container's network", e))
    }
}

/// The networks of a container's places as those see them who serve it.
fn shared(places: &Places) -> Vec<Shared> {
    let mut all = Vec::new();
    for endpoint in &places.endpoints {
        for (own, prefix) in &endpoint.addresses {
            let gateway = endpoint.gateways.iter().find(|gateway| gateway.is_ipv4() == own.is_ipv4());
            let (Some(gateway), Ok(subnet)) = (gateway, Subnet::containing(*own, *prefix)) else { continue };
            all.push(Shared { network: endpoint.id.clone(), subnet, own: *own, gateway: *gateway });
        }
    }
    all
}

/// Reads which networks a container shares, whenever that has changed.
fn changes(networks: PathBuf, container: String) -> Changes {
    let mut seen = None;
    Box::new(move || {
        let stamp = Networks::stamp(&networks, &container)?;
        if seen == Some(stamp) {
            return None;
        }
        let places = Networks::places(&networks, &container).ok()??;
        let is_internal =
            |id: &str| Networks::find(&networks, id).is_ok_and(|found| found.is_some_and(|net| net.internal));
        let internal = places.endpoints.iter().all(|endpoint| is_internal(&endpoint.id));
        seen = Some(stamp);
        Some((shared(&places), internal))
    })
}

/// Whether a network has addresses that may be those of a container's own from its start on.
pub(crate) fn may_overlap(subnet: Subnet) -> bool {
    Subnet::containing(OWN.0.into(), OWN.1).is_ok_and(|own| own.overlaps(subnet))
}

/// Gives the device of a container that runs further addresses, or takes them away.
pub(crate) fn change_addresses(pid: i32, addresses: &[(IpAddr, u8)], gives: bool) -> Result<()> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace = std::fs::File::open(&path).map_err(|e| Error::file("open", &path, e))?;
    let mut batch = Batch::new();
    for (address, prefix) in addresses {
        match gives {
            true => route::address(&mut batch, EXPOSED, *address, *prefix),
            false => route::no_address(&mut batch, EXPOSED, *address, *prefix),
        }
    }
    let say = || -> io::Result<()> {
        let entered = Entered::namespace(&namespace.into())?;
        let socket = entered.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        Ok(Socket::opened(socket).apply(&batch)?)
    };
    say().map_err(|e| Error::system("change the addresses of the container", e))
}

fn no_ports(reason: &str) -> Error {
    Error::impossible("publishing a port of the container", reason)
}

/// Addresses that are not those of the host's networks (`routes`: its /proc/net/route), nor of those that the container
/// shares. Where the host has ways to everything, the container's own networks count more: it would lose the way to them.
fn plan(routes: &str, shared: &[Shared]) -> Plan {
    let v6 = Path::new("/proc/net/if_inet6").exists()
        && std::fs::read("/proc/sys/net/ipv6/conf/all/disable_ipv6")
            .is_ok_and(|value| value.starts_with(b"0"));
    let apart = |n: u8| {
        let own = Subnet::containing(Ipv4Addr::new(10, 0, n, 0).into(), 24);
        own.is_ok_and(|own| shared.iter().all(|shared| !shared.subnet.overlaps(own)))
    };
    let free = |n: &u8| is_free(routes, Ipv4Addr::new(10, 0, *n, 0)) && apart(*n);
    let n = NETWORKS.clone().find(free).or_else(|| NETWORKS.clone().find(|n| apart(*n)));
    let n = n.unwrap_or(*NETWORKS.start());
    let [a, b, c, d] = PREFIX;
    let address = |last: u8| Ipv6Addr::new(a, b, c, d, 0, 0, 0, last.into());
    Plan {
        v4: Ipv4Net {
            container: Ipv4Addr::new(10, 0, n, CONTAINER),
            router: Ipv4Addr::new(10, 0, n, ROUTER),
        },
        v6: v6.then(|| Ipv6Net { container: address(CONTAINER), router: address(ROUTER) }),
        mac: MAC,
        mtu: MTU,
    }
}

/// The host's ways: the kernel's table.
fn routes() -> String {
    std::fs::read_to_string("/proc/net/route").unwrap_or_default()
}

/// Whether the host has no way to a network of 24 bits but the default one. The kernel's table has addresses and masks as
/// hexadecimal numbers in its own order of bytes.
fn is_free(routes: &str, network: Ipv4Addr) -> bool {
    let number =
        |word: Option<&str>| u32::from_str_radix(word?, 16).ok().map(|n| u32::from_be_bytes(n.to_ne_bytes()));
    let own = u32::from(network);
    routes.lines().skip(1).all(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (destination, mask) = (number(words.next()), number(words.nth(5)));
        let (Some(destination), Some(mask)) = (destination, mask) else { return true };
        // Routes of half the world are what some private networks have instead of the default one.
        mask.count_ones() <= 1 || own & mask & 0xffff_ff00 != destination & mask & 0xffff_ff00
    })
}

/// Takes a port of the host, for both kinds of addresses where none is given. Returns it as it was taken.
fn publish(port: &Port, listeners: &mut Vec<Listener>) -> Result<Port> {
    let mut taken = *port;
    match port.address {
        Some(address) => taken.host = take(port, address, port.host, listeners)?,
        None => {
            taken.host = take(port, Ipv4Addr::UNSPECIFIED.into(), port.host, listeners)?;
            match take(port, Ipv6Addr::UNSPECIFIED.into(), taken.host, listeners) {
                Err(Error::Port { source, .. }) if source.kind() == io::ErrorKind::Unsupported => {}
                Err(Error::Port { source, .. })
                    if matches!(
                        rustix::io::Errno::from_io_error(&source),
                        Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL)
                    ) => {}
                other => drop(other?),
            }
        }
    }
    Ok(taken)
}

fn take(port: &Port, address: IpAddr, number: u16, listeners: &mut Vec<Listener>) -> Result<u16> {
    let failed = |source: rustix::io::Errno| Error::Port {
        port: Port { address: port.address, host: number, ..*port }.to_string(),
        source: source.into(),
    };
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, served) = match port.protocol {
        Protocol::Tcp => (SocketType::STREAM, Kind::Stream),
        Protocol::Udp => (SocketType::DGRAM, Kind::Datagrams),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, None).map_err(failed)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true).map_err(failed)?;
    }
    if port.protocol == Protocol::Tcp {
        // Connections of a container that was here before may linger.
        sockopt::set_socket_reuseaddr(&socket, true).map_err(failed)?;
    }
    bind(&socket, &SocketAddr::new(address, number)).map_err(failed)?;
    if port.protocol == Protocol::Tcp {
        listen(&socket, BACKLOG).map_err(failed)?;
    }
    let bound = getsockname(&socket).map_err(failed)?;
    let host = SocketAddr::try_from(bound).map_err(failed)?.port();
    listeners.push(Listener { socket, kind: served, port: port.container, ipv6: address.is_ipv6() });
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's table of ways to these networks.
    fn table(rows: &[(&str, &str)]) -> String {
        let hex = |text: &str| {
            let address: Ipv4Addr = text.parse().unwrap();
            format!("{:08X}", u32::from_ne_bytes(u32::from(address).to_be_bytes()))
        };
        let row = |(d, m): &(&str, &str)| {
            format!("eth0\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0\n", hex(d), hex(m))
        };
        "Iface\tDestination\t…\n".to_owned() + &rows.iter().map(row).collect::<String>()
    }

    #[test]
    fn networks_of_the_host_are_left_alone() {
        for (rows, free) in [
            (&[][..], true),
            (&[("0.0.0.0", "0.0.0.0"), ("128.0.0.0", "128.0.0.0"), ("0.0.0.0", "128.0.0.0")], true),
            (&[("10.0.2.0", "255.255.255.0")], false),
            (&[("10.0.0.0", "255.0.0.0")], false),
            (&[("10.0.2.64", "255.255.255.192")], false),
            (&[("10.0.3.0", "255.255.255.0"), ("192.168.0.0", "255.255.0.0")], true),
        ] {
            assert_eq!(is_free(&table(rows), [10, 0, 2, 0].into()), free, "{rows:?}");
        }
        assert!(is_free("garbage\nmore garbage", [10, 0, 2, 0].into()));
    }

    #[test]
    fn shared_networks_are_left_alone() {
        let shared = |subnet: &str| Shared {
            network: "n".to_owned(),
            subnet: subnet.parse().unwrap(),
            own: [10, 0, 2, 2].into(),
            gateway: [10, 0, 2, 1].into(),
        };
        // Also where the host has ways to all that there is to choose from.
        for host in [&[][..], &[("10.0.2.0", "255.255.255.0")], &[("10.0.0.0", "255.0.0.0")]] {
            for subnet in ["10.0.2.0/24", "10.0.0.0/18", "172.18.0.0/16"] {
                let shared = shared(subnet);
                let plan = plan(&table(host), std::slice::from_ref(&shared));
                assert!(!shared.subnet.contains(plan.v4.router.into()), "{host:?}, {subnet}");
            }
        }
    }

    #[test]
    fn ports_are_taken_once() {
        let mut listeners = Vec::new();
        let wanted = Port {
            address: Some(Ipv4Addr::LOCALHOST.into()),
            host: 0,
            container: 80,
            protocol: Protocol::Tcp,
        };
        let taken = publish(&wanted, &mut listeners).unwrap();
        assert!(taken.host != 0 && listeners.len() == 1);
        let error = publish(&taken, &mut listeners).unwrap_err();
        assert!(error.to_string().contains(&format!("127.0.0.1:{}/tcp", taken.host)), "{error}");
        // Of another protocol it is another port; without an address, both kinds of addresses have it.
        publish(&Port { protocol: Protocol::Udp, ..taken }, &mut listeners).unwrap();
        let both =
            publish(&Port { address: None, protocol: Protocol::Udp, ..wanted }, &mut listeners).unwrap();
        assert!(both.host != 0 && both.address.is_none());
    }
}
