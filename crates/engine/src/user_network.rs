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
use isles_network::user::inside::{self, EXPOSED, Ipv4Net, Ipv6Net, MAC, MTU, Plan};
use isles_network::user::neighbour;
use isles_network::user::rules::{self, Changes, Joined, Rules, Shared};
use isles_network::user::{self, Kind, Late, Listener, Service};
use isles_sandbox::identity::Identity;
use isles_sandbox::network::Entered;
use isles_sandbox::setup::NetworkMessages;
use isles_spec::{Dns, NetworkMode, NetworkUse, Port, Protocol, Workload};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with};
use rustix::thread::CapabilitySet;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::hosts;
use crate::networks::Taken;

/// The third byte of the network's address (10.0.n.0/24), where the host's own networks leave it free.
const NETWORKS: std::ops::RangeInclusive<u8> = 2..=254;
/// The prefix of the network of IPv6 (RFC 4193).
const PREFIX: [u16; 4] = [0xfd69, 0x736c, 0x6573, 0];
const ROUTER: u8 = 2;
const CONTAINER: u8 = 100;
/// All of them, of which one is a container's from its start on.
const OWN: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 0, 0), 16);
const OWN_PREFIX: u8 = 24;
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
    /// The container's ID, where it is one that may share networks.
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
    /// The container's ID, where it is one that may share networks: it may join and leave some while it runs.
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

    /// It is that of the container `id`, which may join others while it runs.
    pub fn of_container(&mut self, id: &str) {
        self.container = Some(id.to_owned());
    }

    /// Lets the container have places in networks, where others find it by its folder.
    pub fn share(&mut self, taken: &Taken, folder: &Path) -> Result<()> {
        let places = &taken.places;
        self.shared = shared(places);
        self.internal = taken.is_internal();
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
    /// Serves the network of a container or a step, until what comes back is dropped.
    pub fn serve(self, engine: &Engine, dns: &Dns) -> Result<Service> {
        let mut rules = Rules::new(self.plan, self.host_loopback);
        let mut late = None;
        if let Some(container) = self.container {
            let networks = engine.networks_dir();
            let containers = engine.store().root().join("containers");
            if self.shared.is_empty() {
                late = Some(joins_late(engine, &container, dns, self.plan));
            }
            let find = move |network: &str, address: IpAddr| {
                Networks::owner(&networks, network, address).map(|id| containers.join(id))
            };
            rules = rules
                .with_shared(self.shared, self.internal, Box::new(find))
                .with_changes(changes(engine.networks_dir(), container));
        }
        // A thread that stays behind has nobody to tell; the container is told by silence.
        user::serve(self.network, rules, self.listeners, late, |e| {
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
        let mac = places.endpoints.first().map_or(MAC, |first| first.mac);
        seen = Some(stamp);
        Some(Joined { shared: shared(&places), internal, mac })
    })
}

/// What is done for a container that shares no networks when it joins the first ones.
fn joins_late(engine: &Engine, container: &str, dns: &Dns, plan: Plan) -> Late {
    let folder = engine.store().root().join("containers").join(container);
    let (engine, container, dns, own) = (engine.clone(), container.to_owned(), dns.clone(), folder.clone());
    let names = move |sockets| {
        let resolver = crate::networks::resolver(&engine, sockets, &container, &dns);
        // Its own network's addresses stand for the host's servers.
        let network = Subnet::containing(plan.v4.router.into(), OWN_PREFIX);
        let given = |server: IpAddr| {
            dns.servers.contains(&server) || network.as_ref().is_ok_and(|network| network.contains(server))
        };
        hosts::ask_at_home(&own, given).map(|()| resolver)
    };
    Late { folder, names: Box::new(names) }
}

/// Whether a network has addresses that the container has for itself since its start.
pub(crate) fn overlaps_own(pid: i32, subnet: Subnet) -> bool {
    let ways = std::fs::read_to_string(format!("/proc/{pid}/net/route")).unwrap_or_default();
    let ours =
        |net: &Subnet| Subnet::containing(OWN.0.into(), OWN.1).is_ok_and(|all| all.contains(net.first()));
    subnets(&ways).filter(ours).any(|own| own.prefix() == OWN_PREFIX && own.overlaps(subnet))
}

/// What changes on the device of a container that runs when it joins a network.
#[derive(Debug)]
pub(crate) struct Joining<'a> {
    pub addresses: &'a [(IpAddr, u8)],
    pub gateways: &'a [IpAddr],
    /// What the largest packet of the network has, where it says so.
    pub mtu: Option<u32>,
    pub mac: [u8; 6],
}

/// Gives the device of a container that runs what it needs in further networks. Whoever serves its network hears of it by the
/// gateways.
pub(crate) fn join(pid: i32, joins: &[Joining<'_>]) -> Result<()> {
    on_device(pid, |socket| {
        let most = route::mtu(socket, EXPOSED)?.unwrap_or(MTU);
        let mut batch = Batch::new();
        for network in joins {
            route::mac(&mut batch, EXPOSED, network.mac);
            for (address, prefix) in network.addresses {
                route::address(&mut batch, EXPOSED, *address, *prefix);
                if let Some(mtu) = network.mtu.filter(|mtu| *mtu < most) {
                    route::narrow(&mut batch, EXPOSED, *address, *prefix, mtu);
                }
            }
            network.gateways.iter().for_each(|gateway| inside::neighbour(&mut batch, *gateway));
        }
        Ok(batch)
    })
}

/// Takes addresses from the device of a container that runs.
pub(crate) fn leave(pid: i32, addresses: &[(IpAddr, u8)]) -> Result<()> {
    on_device(pid, |_| {
        let mut batch = Batch::new();
        addresses.iter().for_each(|(own, prefix)| route::no_address(&mut batch, EXPOSED, *own, *prefix));
        Ok(batch)
    })
}

fn on_device(pid: i32, what: impl FnOnce(&mut Socket) -> io::Result<Batch>) -> Result<()> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace = std::fs::File::open(&path).map_err(|e| Error::file("open", &path, e))?;
    let say = || -> io::Result<()> {
        let entered = Entered::namespace(&namespace.into())?;
        let mut socket =
            Socket::opened(entered.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?);
        let batch = what(&mut socket)?;
        Ok(socket.apply(&batch)?)
    };
    say().map_err(|e| Error::system("change the device of the container", e))
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

/// Whether the host has no way to a network of 24 bits but the default one.
fn is_free(routes: &str, network: Ipv4Addr) -> bool {
    let Ok(own) = Subnet::containing(network.into(), OWN_PREFIX) else { return true };
    // Routes of half the world are what some private networks have instead of the default one.
    subnets(routes).all(|way| way.prefix() <= 1 || !way.overlaps(own))
}

/// The networks in a table of ways as the kernel writes it (proc_net(5)): addresses and masks are hexadecimal numbers in its own
/// order of bytes.
fn subnets(routes: &str) -> impl Iterator<Item = Subnet> {
    let number =
        |word: Option<&str>| u32::from_str_radix(word?, 16).ok().map(|n| u32::from_be_bytes(n.to_ne_bytes()));
    routes.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let (destination, mask) = (number(words.next())?, number(words.nth(5))?);
        Subnet::containing(Ipv4Addr::from(destination).into(), mask.count_ones() as u8).ok()
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
