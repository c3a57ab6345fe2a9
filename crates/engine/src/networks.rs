//! Containers in networks: places are taken before the start, made in the kernel when the container's network namespace is
//! there, and given back when it ends.
//!
//! What is written down of a place comes before anything in the kernel, so whatever is left by a crash is found by it
//! ([`Engine::collect_networks`]). Devices are never removed one by one: they go with the container's namespace.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use isles_network::dns::{Resolver, Sockets, Upstreams};
use isles_network::place::{self, Held};
use isles_network::state::{DEFAULT, Endpoint, Network, Networks, Places, Wish};
use isles_network::user::door::{self, Door, Passing};
use isles_network::user::inside::MAC;
use isles_sandbox::identity::Identity;
use isles_sandbox::network::Entered;
use isles_spec::{Dns, NetworkUse, Workload};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::name;
use crate::record::{Record, now};
use crate::user_network::shares;

/// The places of a container that is about to start. Dropping it gives them back.
pub(crate) struct Taken {
    engine: Engine,
    container: String,
    networks: Vec<Network>,
    pub places: Places,
    /// What keeps the published ports from others.
    held: Vec<Held>,
    /// On which the container asks for names.
    sockets: RefCell<Option<Sockets>>,
    kept: bool,
}

impl Taken {
    /// Makes the places, in the kernel, of a container whose first process this is.
    ///
    /// An ordinary user's are made by what the process does itself, and lead where whoever stays with it sends what comes
    /// (`network`); only names are asked for in the namespace.
    pub fn connect(&self, pid: i32, network: Option<BorrowedFd<'_>>) -> Result<()> {
        if let Some(network) = network {
            let entered =
                Entered::of(network).map_err(|e| Error::system("enter the container's network", e))?;
            *self.sockets.borrow_mut() = Some(Sockets::of_entered(&entered)?);
            return Ok(());
        }
        let path = format!("/proc/{pid}/ns/net");
        let namespace = File::open(&path).map_err(|e| Error::file("open", &path, e))?;
        for (number, (network, endpoint)) in self.networks.iter().zip(&self.places.endpoints).enumerate() {
            place::connect(network, endpoint, namespace.as_fd(), number, number == 0)?;
        }
        *self.sockets.borrow_mut() = Some(Sockets::open(namespace.as_fd())?);
        Ok(place::publish(&self.places)?)
    }

    /// Kernel parameters that the container's first process is to set. It does so by a /proc of its own: in that of the host,
    /// which the kernel keeps a name in for each network namespace, it would look through thousands of the same.
    pub fn parameters(&self) -> Option<(String, String)> {
        // As docker has it: a program needs no rights to serve a low port of its own namespace.
        let low_ports = || ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        self.engine.has_bridges().then(low_ports)
    }

    /// Whether none of them leads to anybody else.
    pub fn is_internal(&self) -> bool {
        self.networks.iter().all(|network| network.internal)
    }

    /// The smallest MTU of those that have one of their own.
    pub fn mtu(&self) -> Option<u32> {
        self.networks.iter().filter_map(|network| network.mtu).min()
    }

    /// Leaves the places to the container. What keeps its ports is to stay open while it runs, and its questions for names
    /// are to be answered.
    pub fn keep(mut self, dns: &Dns) -> Kept {
        self.kept = true;
        let sockets = self.sockets.take();
        let resolver = sockets.map(|sockets| resolver(&self.engine, sockets, &self.container, dns));
        let (mut held, mut doors) = (Vec::new(), Vec::new());
        // Nobody from elsewhere comes into a network that leads nowhere.
        let closed = self.networks.first().is_none_or(|network| network.internal);
        for mut port in std::mem::take(&mut self.held) {
            if closed {
                port.stop_listening();
            }
            match port.listens {
                true => doors.push(Door { socket: port.socket, port: port.port }),
                false => held.push(port.socket.into()),
            }
        }
        Kept { held, doors, resolver }
    }
}

/// What stays with a container in networks while it runs.
pub(crate) struct Kept {
    /// Sockets that keep its ports.
    pub held: Vec<File>,
    /// Those of them that lead to it.
    pub doors: Vec<Door>,
    pub resolver: Option<Resolver>,
}

/// Passes on who comes to a container by its doors, until what it gives back is dropped.
pub(crate) fn serve_doors(engine: &Engine, container: &str, doors: Vec<Door>) -> io::Result<Option<Passing>> {
    if doors.is_empty() {
        return Ok(None);
    }
    let (dir, container) = (engine.networks_dir(), container.to_owned());
    let whereto = move || {
        let places = Networks::places(&dir, &container).ok()??;
        let addresses = &places.endpoints.first()?.addresses;
        let v4 = addresses.iter().find(|(address, _)| address.is_ipv4());
        v4.or(addresses.first()).map(|(address, _)| *address)
    };
    door::serve(doors, whereto).map(Some)
}

/// Answers the questions of a container, from sockets in its network namespace.
pub(crate) fn resolver(engine: &Engine, sockets: Sockets, container: &str, dns: &Dns) -> Resolver {
    let servers = match dns.servers.as_slice() {
        [] => Upstreams::of_file(Path::new("/etc/resolv.conf")),
        own => Upstreams::given(own.iter().map(|address| std::net::SocketAddr::new(*address, 53)).collect()),
    };
    Resolver::new(sockets, &engine.networks_dir(), container, servers)
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.kept {
            // On the way out of another failure, which is the one to tell; what stays is collected later.
            let _ = self.engine.release_networks(&self.container);
        }
    }
}

impl Engine {
    /// The folder with what is written down of networks.
    pub fn networks_dir(&self) -> PathBuf {
        self.store.root().join("networks")
    }

    /// Makes a network.
    ///
    /// # Errors
    /// The name is given, or what is wanted is not possible.
    pub fn create_network(&self, name: &str, wish: &Wish) -> Result<Network> {
        let dir = self.networks_dir();
        let networks = Networks::open(&dir)?;
        let taken = known()?;
        let network = networks.create(name, &name::id()?, now(), wish, &taken)?;
        if self.has_bridges()
            && let Err(e) = place::prepare(&dir, &network, "")
        {
            drop(networks.remove(&network));
            return Err(e.into());
        }
        Ok(network)
    }

    /// Removes a network that no container is in. Returns its name.
    pub fn remove_network(&self, name: &str) -> Result<String> {
        if name == DEFAULT || modes().iter().any(|mode| mode.name == name || mode.id == name) {
            return Err(Error::impossible(format!("removing the network {name}"), "it is the engine's own"));
        }
        let network = self.network(name)?;
        if network.name == DEFAULT {
            return Err(Error::impossible(
                format!("removing the network {DEFAULT}"),
                "it is the engine's own",
            ));
        }
        let networks = Networks::open(&self.networks_dir())?;
        self.collect_places(&networks)?;
        networks.is_unused(&network)?;
        // A crash in between leaves one that is made anew by its next use.
        if self.has_bridges() {
            place::dissolve(&network)?;
        }
        networks.remove(&network)?;
        Ok(network.name)
    }

    /// Finds a network by its name or ID. The default one is written down when somebody asks for it; in the kernel it is
    /// when it is first used.
    ///
    /// # Errors
    /// There is none, or it is no network of containers' own.
    pub fn network(&self, name: &str) -> Result<Network> {
        let dir = self.networks_dir();
        if let Some(found) = Networks::find(&dir, name)? {
            return Ok(found);
        }
        if name == DEFAULT {
            return default(&Networks::open(&dir)?, &dir);
        }
        match modes().iter().find(|mode| mode.name == name || mode.id == name) {
            Some(mode) => Err(Error::impossible(
                format!("using the network {}", mode.name),
                "it stands for what the host has, and has no members",
            )),
            None => Err(Error::NoNetwork(name.to_owned())),
        }
    }

    /// All networks, by name, with the default one.
    pub fn networks(&self) -> Result<Vec<Network>> {
        let dir = self.networks_dir();
        let mut all = Networks::list(&dir)?;
        if !all.iter().any(|network| network.name == DEFAULT) {
            all.push(default(&Networks::open(&dir)?, &dir)?);
            all.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(all)
    }

    /// The places of all containers that have some, by their IDs.
    pub fn places(&self) -> Result<Vec<(String, Places)>> {
        Ok(Networks::all_places(&self.networks_dir())?)
    }

    /// The places of one container.
    pub fn places_of(&self, id: &str) -> Result<Option<Places>> {
        Ok(Networks::places(&self.networks_dir(), id)?)
    }

    /// Whether networks are bridges in the kernel, which only root may make.
    pub(crate) fn has_bridges(&self) -> bool {
        self.identity == Identity::Root
    }

    /// Takes the places that a container wants.
    pub(crate) fn take_places(&self, record: &Record) -> Result<Option<Taken>> {
        let workload = &record.workload;
        let Some(uses) = shares(&workload.network, self.identity) else { return Ok(None) };
        let dir = self.networks_dir();
        let (mut ports, mut held) = (Vec::new(), Vec::new());
        // An ordinary user's container has one device, whichever networks it is in.
        let mac = uses.iter().find_map(|wanted| wanted.mac).unwrap_or(MAC);
        if !self.has_bridges() && uses.iter().any(|wanted| wanted.mac.is_some_and(|other| other != mac)) {
            return Err(Error::impossible(
                "giving a container several MAC addresses",
                "that of an ordinary user has one device for all its networks",
            ));
        }
        // An ordinary user's are taken by those who serve them.
        if self.has_bridges() {
            ports.clone_from(&workload.ports);
            held = place::reserve(&mut ports).map_err(|e| self.whose(e))?;
        }
        let mut taken = Taken {
            engine: self.clone(),
            container: record.id.clone(),
            networks: Vec::with_capacity(uses.len()),
            places: Places { name: record.name.clone(), endpoints: Vec::new(), ports },
            held,
            sockets: RefCell::new(None),
            kept: false,
        };
        // Behind what gives the places back on a failure, which takes this lock itself.
        let networks = Networks::open(&dir)?;
        // A container that was killed with its monitor has its places still.
        self.give_back(&networks, &record.id)?;
        for (number, wanted) in uses.iter().enumerate() {
            let network = match Networks::find(&dir, &wanted.name)? {
                Some(network) => network,
                None if wanted.name == DEFAULT => default(&networks, &dir)?,
                None => return Err(Error::NoNetwork(wanted.name.clone())),
            };
            let mut endpoint = take(&networks, &network, record, wanted, number)?;
            if !self.has_bridges() {
                endpoint.mac = mac;
            }
            taken.places.endpoints.push(endpoint);
            taken.networks.push(network);
            networks.put(&record.id, &taken.places)?;
            if let Some(network) = taken.networks.last().filter(|_| self.has_bridges()) {
                place::prepare(&dir, network, &record.id)?;
            }
        }
        drop(networks);
        let ipv6 = taken
            .places
            .endpoints
            .first()
            .is_some_and(|first| first.addresses.iter().any(|(a, _)| a.is_ipv6()));
        if self.has_bridges() && !ipv6 {
            // What comes by IPv6 would have nobody to go to.
            for port in taken.places.ports.iter_mut().filter(|port| port.address.is_none()) {
                port.address = Some(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
            }
        }
        Ok(Some(taken))
    }

    /// Says which container has a port.
    fn whose(&self, error: isles_network::Error) -> Error {
        let isles_network::Error::PortTaken { address, port, protocol, .. } = &error else {
            return error.into();
        };
        let has = |places: &Places| {
            places.ports.iter().any(|found| found.host.to_string() == *port && found.protocol == *protocol)
        };
        let all = self.places().unwrap_or_default();
        let whose = all.into_iter().find(|(_, places)| has(places)).map(|(_, places)| places.name);
        let (address, port, protocol) = (address.clone(), port.clone(), *protocol);
        isles_network::Error::PortTaken { address, port, protocol, whose }.into()
    }

    /// Gives back what a container that has ended has of networks.
    pub(crate) fn release_networks(&self, id: &str) -> Result<()> {
        let dir = self.networks_dir();
        if Networks::places(&dir, id)?.is_none() {
            return Ok(());
        }
        self.give_back(&Networks::open(&dir)?, id)?;
        Ok(())
    }

    /// Gives back what containers have of networks that do not run any more.
    pub(crate) fn collect_networks(&self) -> Result<()> {
        let dir = self.networks_dir();
        if !dir.join("endpoints").is_dir() {
            return Ok(());
        }
        self.collect_places(&Networks::open(&dir)?)
    }

    fn collect_places(&self, networks: &Networks) -> Result<()> {
        // An ordinary user's ports are his monitor's, and went with it.
        let withdraw = |places: &Places| if self.has_bridges() { place::withdraw(places) } else { Ok(()) };
        Ok(networks.collect(&|id: &str| self.is_alive(id), &withdraw)?)
    }

    /// Out of the kernel first: what is written down is how it is found.
    pub(crate) fn give_back(&self, networks: &Networks, id: &str) -> Result<()> {
        if let Some(places) = Networks::places(&self.networks_dir(), id)? {
            if self.has_bridges() {
                place::withdraw(&places)?;
            }
            networks.release(id)?;
        }
        Ok(())
    }
}

/// What `--network` knows beside networks of containers' own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mode {
    pub name: &'static str,
    /// Docker's.
    pub driver: &'static str,
    /// The same everywhere.
    pub id: String,
}

/// The modes that are listed as networks, as docker does.
pub fn modes() -> [Mode; 2] {
    [("host", "host"), ("none", "null")].map(|(name, driver)| Mode {
        name,
        driver,
        id: isles_store::Store::cache_key([b"isles network mode".as_slice(), name.as_bytes()])
            .hex()
            .to_owned(),
    })
}

/// The network of those who name none, which is made where it is not there.
pub(crate) fn default(networks: &Networks, dir: &Path) -> Result<Network> {
    match Networks::find(dir, DEFAULT)? {
        Some(found) => Ok(found),
        None => Ok(networks.create(DEFAULT, &name::id()?, now(), &Wish::default(), &known()?)?),
    }
}

/// Takes a place in one network, and writes nothing down.
pub(crate) fn take(
    networks: &Networks,
    network: &Network,
    record: &Record,
    wanted: &NetworkUse,
    number: usize,
) -> Result<Endpoint> {
    let addresses = networks.give(network, &record.id, &wanted.addresses)?;
    let mac = wanted.mac.unwrap_or_else(|| mac(addresses.first().map(|(address, _)| *address)));
    Ok(Endpoint {
        network: network.name.clone(),
        id: network.id.clone(),
        device: device(&record.id, number),
        mac,
        addresses,
        gateways: network.pools.iter().map(|pool| pool.gateway).collect(),
        aliases: wanted.aliases.clone(),
    })
}

/// The host's end of a container's device. Names have 15 bytes at most.
pub(crate) fn device(id: &str, number: usize) -> String {
    format!("iv{:.10}{number}", id)
}

/// As docker has it: of the address, so a container that gets the same address again is the same for its neighbours.
fn mac(address: Option<IpAddr>) -> [u8; 6] {
    let [.., a, b, c, d] = match address {
        Some(IpAddr::V4(address)) => address.octets(),
        Some(IpAddr::V6(address)) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
        None => [0; 4],
    };
    [0x02, 0x42, a, b, c, d]
}

/// The subnets that the host has use for.
fn known() -> Result<Vec<isles_network::Subnet>> {
    let failed = |e| Error::system("look at the routes of the host", e);
    let mut links = isles_network::netlink::Socket::route().map_err(failed)?;
    isles_network::netlink::route::known(&mut links).map_err(failed)
}

/// Names and addresses for /etc/hosts of a container in networks.
pub(crate) fn own_names(places: &Places, hostname: &str, workload: &Workload) -> Vec<(IpAddr, String)> {
    let names = match hostname.split_once('.') {
        // A name with a domain is found without it as well.
        Some((short, _)) if !workload.system.bare_etc => format!("{hostname} {short}"),
        _ => hostname.to_owned(),
    };
    let addresses = places.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    addresses.map(|(address, _)| (*address, names.clone())).collect()
}
