//! A container's place in networks, in the kernel: the bridge, the pair of devices, addresses, and published ports. All of
//! it is said by the process that starts the container, in the network namespace that it is in.

use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use isles_spec::{Port, Protocol};
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, bind, getsockname, listen, shutdown, socket_with,
    sockopt,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Error, Result};
use crate::firewall::{self, Published, Zone};
use crate::netlink::message::Batch;
use crate::netlink::{Socket, route};
use crate::state::{Endpoint, Network, Networks, Places};

/// Say that the host forwards packets of IPv4, or IPv6, only since there are networks of ours, so others' are not to be
/// forwarded.
const CLOSED: [&str; 2] = ["forwards-for-us-alone", "forwards-for-us-alone-6"];

/// What the largest packet has where the network says nothing: nothing is on the way between its containers and the host that
/// could not take it, and each costs the same however long it is.
const MTU: u32 = 65_535;
/// The same of what goes on from there, which is Ethernet's as ever.
const OUTSIDE_MTU: u32 = 1500;

/// Whether what goes out of a bridge gets through the host's own firewall.
pub fn lets_through() -> bool {
    Socket::netfilter().and_then(|mut rules| firewall::others_drop(&mut rules)).is_ok_and(|drops| !drops)
}

/// Sees to it that a network is there, and the firewall knows of it: also after a reboot, after somebody has flushed it, and
/// after a crash in the middle of this. The lock of `root` is held. The ports of `container` are published later.
pub fn prepare(root: &Path, network: &Network, container: &str) -> Result<()> {
    let fail = |e: io::Error| Error::system(format!("make the network {}", network.name), e);
    let mut links = Socket::route().map_err(fail)?;
    let found = route::find(&mut links, &network.bridge).map_err(fail)?;
    let mut rules = Socket::netfilter().map_err(fail)?;
    let newly = forward(root, network).map_err(fail)?;
    let mark = mark(root);
    if newly || !firewall::knows(&mut rules, &mark).map_err(fail)? {
        let zones: Vec<_> = Networks::list(root)?.iter().map(Network::zone).collect();
        let mut ports = Vec::new();
        for (id, places) in Networks::all_places(root)? {
            if id != container {
                ports.extend(published(&places));
            }
        }
        let closed = CLOSED.map(|name| root.join(name).exists());
        let share = firewall::Share { root: &mark, zones: &zones, ports: &ports, closed };
        firewall::say(&mut rules, &share)?;
    }
    // One that is up has been made to the end.
    if found.is_some_and(|(_, up)| up) {
        return Ok(());
    }
    firewall::add(&mut rules, &network.zone()).map_err(|e| fail(e.into()))?;
    let index = match found {
        Some((index, _)) => index,
        None => {
            // What stays is tried again by the next one.
            let _ = sweep(&mut links, &mut rules);
            let of = root.to_str().unwrap_or_default();
            route::add_bridge(&mut links, &network.bridge, network.mtu, of).map_err(fail)?
        }
    };
    // Published ports are reached by way of the host's loopback, too.
    set(&format!("net/ipv4/conf/{}/route_localnet", network.bridge), "1").map_err(fail)?;
    let mut batch = Batch::new();
    for pool in &network.pools {
        route::address(&mut batch, index, pool.gateway, pool.subnet.prefix());
    }
    route::up(&mut batch, index);
    links.apply(&batch).map_err(|e| fail(e.into()))
}

/// Removes what is left of networks of state directories that were deleted: bridges that no container is in, and what the
/// firewall knows of them. One whose directory is only out of sight (in another mount namespace) is made anew by its next
/// start, as after a reboot.
fn sweep(links: &mut Socket, rules: &mut Socket) -> io::Result<()> {
    for bridge in route::idle_bridges(links)? {
        let of = Path::new(&bridge.of);
        if !of.is_absolute() || of.try_exists().unwrap_or(true) {
            continue;
        }
        route::remove(links, &bridge.name)?;
        firewall::remove(rules, &Zone { bridge: bridge.name, subnets: bridge.subnets, internal: true })?;
        firewall::forget(rules, &mark(of))?;
    }
    Ok(())
}

/// By what a state directory is known in the firewall.
fn mark(root: &Path) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    root.hash(&mut hasher);
    format!("{:015x}", hasher.finish() >> 4)
}

/// Lets the host forward packets. Where it did not before, it is to do so for our networks only. Says whether that is new.
fn forward(root: &Path, network: &Network) -> io::Result<bool> {
    const FORWARD: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
    let mut newly = false;
    for (number, name) in FORWARD.into_iter().enumerate() {
        let ipv6 = number == 1;
        if network.pools.iter().any(|pool| pool.subnet.is_ipv6() == ipv6) && get(name)?.trim() == "0" {
            if ipv6 {
                keep_routers()?;
            }
            fs::write(root.join(CLOSED[number]), "")?;
            set(name, "1")?;
            newly = true;
        }
    }
    Ok(newly)
}

/// A host that forwards IPv6 does not listen to routers any more, who may have given it its only way out, unless it is told to
/// (`accept_ra` is 2).
fn keep_routers() -> io::Result<()> {
    const DEVICES: &str = "/proc/sys/net/ipv6/conf";
    for device in fs::read_dir(DEVICES)? {
        let name = device?.file_name();
        let Some(name) = name.to_str().filter(|name| *name != "all") else { continue };
        let accepts = format!("net/ipv6/conf/{name}/accept_ra");
        if get(&accepts).is_ok_and(|now| now.trim() == "1") {
            set(&accepts, "2")?;
        }
    }
    Ok(())
}

fn get(name: &str) -> io::Result<String> {
    fs::read_to_string(Path::new("/proc/sys").join(name))
}

fn set(name: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys").join(name);
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value)
}

/// Removes a network from the kernel.
pub fn dissolve(network: &Network) -> Result<()> {
    let fail = |e: io::Error| Error::system(format!("remove the network {}", network.name), e);
    route::remove(&mut Socket::route().map_err(fail)?, &network.bridge).map_err(fail)?;
    let mut rules = Socket::netfilter().map_err(fail)?;
    let done = firewall::remove(&mut rules, &network.zone()).map_err(fail);
    rules.close_aside();
    done
}

/// What the largest packet has that leaves a network by its router.
fn outside(network: &Network) -> Option<u32> {
    network.mtu.is_none().then_some(OUTSIDE_MTU)
}

/// Connects a container's network namespace with a network. `number` says which of its devices that is. `first` is the
/// network with the way out.
pub fn connect(
    network: &Network,
    endpoint: &Endpoint,
    namespace: BorrowedFd<'_>,
    number: usize,
    first: bool,
) -> Result<()> {
    let fail = |e: io::Error| Error::system(format!("connect with the network {}", network.name), e);
    let mut links = Socket::route().map_err(fail)?;
    let bridge = route::index(&mut links, &network.bridge)
        .map_err(fail)?
        .ok_or_else(|| fail(io::Error::other(format!("the device {} is gone", network.bridge))))?;
    let name = format!("eth{number}");
    let ipv6 = Path::new("/proc/sys/net/ipv6").exists();
    let inside = route::Inside { name: &name, mac: endpoint.mac, namespace };
    let mtu = network.mtu.or(Some(MTU));
    let add = |links: &mut Socket| route::add_pair(links, &endpoint.device, bridge, mtu, ipv6, &inside);
    let added = match add(&mut links) {
        // That of the container's last run: the kernel takes namespaces apart in its own time.
        Err(e) if e.errno() == Some(rustix::io::Errno::EXIST.raw_os_error()) => {
            route::remove(&mut links, &endpoint.device).map_err(fail)?;
            add(&mut links)
        }
        other => other,
    };
    added.map_err(|e| fail(e.into()))?;
    within(namespace, || {
        let mut links = Socket::route()?;
        let index = route::index(&mut links, &name)?.ok_or(io::ErrorKind::NotFound)?;
        let mut batch = Batch::new();
        if ipv6 && endpoint.addresses.iter().all(|(address, _)| address.is_ipv4()) {
            route::silent(&mut batch, index);
        }
        for (address, prefix) in &endpoint.addresses {
            route::address(&mut batch, index, *address, *prefix);
        }
        route::up(&mut batch, index);
        if first && !network.internal {
            for gateway in &endpoint.gateways {
                route::default_route(&mut batch, index, *gateway, outside(network));
            }
        }
        Ok(links.apply(&batch)?)
    })
    .map_err(fail)
}

/// Lets the way out of a container be by another of its networks than before.
pub fn lead_out(
    network: &Network,
    endpoint: &Endpoint,
    namespace: BorrowedFd<'_>,
    number: usize,
) -> Result<()> {
    if network.internal {
        return Ok(());
    }
    let fail = |e: io::Error| Error::system(format!("lead out by the network {}", network.name), e);
    within(namespace, || {
        let mut links = Socket::route()?;
        let index = route::index(&mut links, &format!("eth{number}"))?.ok_or(io::ErrorKind::NotFound)?;
        let mut batch = Batch::new();
        for gateway in &endpoint.gateways {
            route::default_route(&mut batch, index, *gateway, outside(network));
        }
        Ok(links.apply(&batch)?)
    })
    .map_err(fail)
}

/// Takes a container out of a network. What is not there need not be removed.
pub fn disconnect(endpoint: &Endpoint) -> Result<()> {
    let fail = |e: io::Error| Error::system(format!("leave the network {}", endpoint.network), e);
    route::remove(&mut Socket::route().map_err(fail)?, &endpoint.device).map_err(fail)
}

/// Does something in another network namespace, by this thread.
pub fn within<T>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = File::open("/proc/thread-self/ns/net")?;
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
    let done = work();
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Network))?;
    done
}

/// Makes the published ports of a container lead to it.
pub fn publish(places: &Places) -> Result<()> {
    let ports = published(places);
    if ports.is_empty() {
        return Ok(());
    }
    let fail = |e: io::Error| Error::system("publish ports", e);
    firewall::publish(&mut Socket::netfilter().map_err(fail)?, &ports).map_err(|e| fail(e.into()))
}

/// Takes the published ports of a container back.
pub fn withdraw(places: &Places) -> Result<()> {
    let ports = published(places);
    if ports.is_empty() {
        return Ok(());
    }
    let fail = |e: io::Error| Error::system("take ports back", e);
    let mut rules = Socket::netfilter().map_err(fail)?;
    let done = firewall::withdraw(&mut rules, &ports).map_err(fail);
    rules.close_aside();
    done
}

fn published(places: &Places) -> Vec<Published> {
    let Some(first) = places.endpoints.first() else { return Vec::new() };
    let mut out = Vec::new();
    for port in places.ports.iter().filter(|port| !is_own_address(port)) {
        for (target, _) in &first.addresses {
            out.push(Published { port: *port, target: *target });
        }
    }
    out
}

/// Takes ports of the host, and chooses those that were left open. While the descriptors are open, no other program gets
/// them.
///
/// # Errors
/// Somebody has one of them, or may not be taken from this user.
pub fn reserve(ports: &mut [Port]) -> Result<Vec<Held>> {
    let mut held = Vec::with_capacity(ports.len());
    for port in ports {
        if is_own_address(port) && port.protocol == Protocol::Udp {
            let wish = format!("publishing {port} of a container on a bridge is not possible");
            return Err(isles_spec::Error::new(format!("{wish}: the kernel leads no answer to [::1]"))
                .with_hint("publish it at 127.0.0.1, or use --network slirp4netns")
                .into());
        }
        let address = port.address.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        let socket = match reserve_one(address, port, port.address.is_none()) {
            // Without IPv6 there is IPv4 still.
            Err(e) if port.address.is_none() && is_no_ipv6(&e) => {
                reserve_one(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port, false)
            }
            other => other,
        };
        held.push(socket.map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => Error::PortTaken {
                address: port.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).to_string(),
                port: port.host.to_string(),
                protocol: port.protocol,
                whose: None,
            },
            _ => Error::system(format!("take the port {port} of the host"), e),
        })?);
    }
    Ok(held)
}

impl Held {
    /// Keeps the port only.
    pub fn stop_listening(&mut self) {
        if std::mem::take(&mut self.listens) {
            // It keeps its port (listen(2) is undone), which somebody else could share otherwise.
            let _ = shutdown(&self.socket, Shutdown::Both);
            let _ = sockopt::set_socket_reuseaddr(&self.socket, false);
        }
    }
}

/// Connections that wait to be passed on.
const BACKLOG: i32 = 128;

fn is_no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(97 | 99))
}

/// At the host's own address of IPv6, from which the kernel knows no way into a container.
fn is_own_address(port: &Port) -> bool {
    port.address == Some(IpAddr::V6(Ipv6Addr::LOCALHOST))
}

/// What keeps a port of the host from other programs.
#[derive(Debug)]
pub struct Held {
    pub socket: OwnedFd,
    /// It listens: who is led nowhere by the kernel comes to it.
    pub listens: bool,
    /// The container's port.
    pub port: u16,
}

fn reserve_one(address: IpAddr, port: &mut Port, both: bool) -> io::Result<Held> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let kind = match port.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !both)?;
    }
    let listens = address.is_ipv6() && port.protocol == Protocol::Tcp;
    if listens {
        // What was said at this port before is over. While it listens, nobody else gets it.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
    }
    bind(&socket, &SocketAddr::new(address, port.host))?;
    if port.host == 0 {
        let bound: SocketAddr = getsockname(&socket)?.try_into()?;
        port.host = bound.port();
    }
    if listens {
        listen(&socket, BACKLOG)?;
    }
    Ok(Held { socket, listens, port: port.container })
}
