//! What is written down of networks, below one folder: `nets/NAME.json` for each network, `endpoints/CONTAINER.json` for the
//! places that a container has in them, `addresses/NETWORK/ADDRESS` with the container that has the address, and
//! `cursors/NETWORK`, from where on the next one is looked for. Whoever changes anything holds the lock.
//!
//! An address is given by making its file, so two containers never share one, and what that costs does not depend on how many
//! there are.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use isles_spec::{Error as Spelling, Port};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::firewall::Zone;
use crate::subnet::Subnet;

/// The network that a container is in where nothing else is said.
pub const DEFAULT: &str = "bridge";
/// A record has names, addresses and labels.
const LIMIT: u64 = 4 << 20;
/// Nobody has so many addresses one after the other.
const MOST_IN_A_ROW: usize = 1 << 20;
/// Names of devices have 15 bytes at most.
const BRIDGE_PREFIX: &str = "isl";

/// A network: a bridge, and the addresses behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub name: String,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Nanoseconds since 1970.
    pub created: u64,
    /// The device.
    pub bridge: String,
    pub pools: Vec<Pool>,
    /// Nobody in it reaches anybody outside, and the other way round.
    #[serde(default)]
    pub internal: bool,
    #[serde(default)]
    pub mtu: Option<u32>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// The number of a file, and when it was written.
pub type Stamp = (u64, i64, i64);

/// Addresses of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub subnet: Subnet,
    /// The host's own address in it.
    pub gateway: IpAddr,
    /// From where addresses are given that nobody has chosen; all of the subnet where not given.
    #[serde(default)]
    pub range: Option<Subnet>,
}

/// The place of a container in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub network: String,
    /// The network's.
    pub id: String,
    /// The host's end of the pair of devices.
    pub device: String,
    pub mac: [u8; 6],
    /// With the bits that the network's addresses share.
    pub addresses: Vec<(IpAddr, u8)>,
    pub gateways: Vec<IpAddr>,
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// All places of a container, and its published ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// The container's.
    pub name: String,
    pub endpoints: Vec<Endpoint>,
    /// With the ports of the host that were chosen.
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// What is wanted of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    pub pools: Vec<(Option<Subnet>, Option<IpAddr>, Option<Subnet>)>,
    pub ipv6: bool,
    pub internal: bool,
    pub mtu: Option<u32>,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
}

/// The folder. Dropping it lets go of the lock.
#[derive(Debug)]
pub struct Networks {
    root: PathBuf,
    _lock: File,
}

impl Networks {
    /// Opens the folder, alone.
    pub fn open(root: &Path) -> Result<Networks> {
        let failed = |e: io::Error| Error::system(format!("open {}", root.display()), e);
        for name in ["nets", "endpoints", "addresses", "cursors"] {
            fs::create_dir_all(root.join(name)).map_err(failed)?;
        }
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(root.join("lock"))
            .map_err(failed)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        Ok(Networks { root: root.to_owned(), _lock: lock })
    }

    /// All networks, by name, for those who only look.
    pub fn list(root: &Path) -> Result<Vec<Network>> {
        let mut all: Vec<Network> =
            records(&root.join("nets"))?.into_iter().map(|(_, found)| found).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Finds a network by its name, its ID, or the beginning of its ID.
    pub fn find(root: &Path, name: &str) -> Result<Option<Network>> {
        if check_name(name).is_ok()
            && let Some(found) = read(&root.join("nets").join(format!("{name}.json")))?
        {
            return Ok(Some(found));
        }
        let mut close =
            Self::list(root)?.into_iter().filter(|net| !name.is_empty() && net.id.starts_with(name));
        match (close.next(), close.next()) {
            (Some(_), Some(_)) => Err(Error::Spelling(Spelling::new(format!(
                "'{name}' is the beginning of several network IDs"
            )))),
            (found, _) => Ok(found),
        }
    }

    /// The places of a container.
    pub fn places(root: &Path, container: &str) -> Result<Option<Places>> {
        read(&root.join("endpoints").join(format!("{container}.json")))
    }

    /// What tells one state of a container's places from the next.
    pub fn stamp(root: &Path, container: &str) -> Option<Stamp> {
        let found = fs::metadata(root.join("endpoints").join(format!("{container}.json"))).ok()?;
        // Each is a file of its own, moved into place; a number may be used again.
        Some((found.ino(), found.mtime(), found.mtime_nsec()))
    }

    /// The places of all containers, by their IDs.
    pub fn all_places(root: &Path) -> Result<Vec<(String, Places)>> {
        records(&root.join("endpoints"))
    }

    /// Makes a network. `taken` are the subnets that the host has use for.
    ///
    /// # Errors
    /// The name is given, or a subnet is not possible or overlaps another one.
    pub fn create(
        &self,
        name: &str,
        id: &str,
        created: u64,
        wish: &Wish,
        taken: &[Subnet],
    ) -> Result<Network> {
        check_name(name)?;
        if Self::find(&self.root, name)?.is_some_and(|found| found.name == name) {
            return Err(Error::Exists(name.to_owned()));
        }
        let others = Self::list(&self.root)?;
        let mut used: Vec<Subnet> =
            others.iter().flat_map(|net| net.pools.iter().map(|pool| pool.subnet)).collect();
        let mut pools = Vec::new();
        for (subnet, gateway, range) in &wish.pools {
            let subnet = match subnet {
                Some(subnet) => {
                    if let Some(other) = used.iter().find(|other| other.overlaps(*subnet)) {
                        return Err(bad(format!(
                            "the subnet {subnet} overlaps {other}, which another network has"
                        )));
                    }
                    *subnet
                }
                None => free4(&used, taken)?,
            };
            pools.push(pool(subnet, *gateway, *range)?);
            used.push(subnet);
        }
        if pools.iter().all(|pool| pool.subnet.is_ipv6()) && (!wish.ipv6 || pools.is_empty()) {
            let subnet = free4(&used, taken)?;
            pools.insert(0, pool(subnet, None, None)?);
        }
        if wish.ipv6 && !pools.iter().any(|pool| pool.subnet.is_ipv6()) {
            pools.push(pool(unique6(id)?, None, None)?);
        }
        let network = Network {
            name: name.to_owned(),
            id: id.to_owned(),
            created,
            bridge: format!("{BRIDGE_PREFIX}{}", &id[..12.min(id.len())]),
            pools,
            internal: wish.internal,
            mtu: wish.mtu,
            labels: wish.labels.clone(),
            options: wish.options.clone(),
        };
        fs::create_dir_all(self.addresses(&network)).map_err(|e| Error::system("write down a network", e))?;
        self.write(&self.root.join("nets").join(format!("{name}.json")), &network)?;
        Ok(network)
    }

    /// # Errors
    /// A container is in it.
    pub fn is_unused(&self, network: &Network) -> Result<()> {
        let users: Vec<String> = Self::all_places(&self.root)?
            .into_iter()
            .filter(|(_, places)| places.endpoints.iter().any(|endpoint| endpoint.id == network.id))
            .map(|(_, places)| places.name)
            .collect();
        if !users.is_empty() {
            return Err(Error::InUse { name: network.name.clone(), users });
        }
        Ok(())
    }

    /// Forgets a network.
    ///
    /// # Errors
    /// A container is in it.
    pub fn remove(&self, network: &Network) -> Result<()> {
        self.is_unused(network)?;
        forget(&self.root.join("nets").join(format!("{}.json", network.name)))?;
        forget(&self.root.join("cursors").join(&network.id))?;
        match fs::remove_dir_all(self.addresses(network)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::system("forget the addresses of a network", e))
            }
            _ => Ok(()),
        }
    }

    /// Gives a container an address of each kind that the network has.
    ///
    /// # Errors
    /// One that was asked for is not possible or another container's, or none is left.
    pub fn give(&self, network: &Network, container: &str, asked: &[IpAddr]) -> Result<Vec<(IpAddr, u8)>> {
        let mut given: Vec<(IpAddr, u8)> = Vec::new();
        let outcome = (|| {
            for address in asked {
                let pool =
                    network.pools.iter().find(|pool| pool.subnet.contains(*address)).ok_or_else(|| {
                        let subnets = network.pools.iter().map(|pool| pool.subnet.to_string());
                        bad(format!(
                            "the address {address} is in no subnet of the network {}: {}",
                            network.name,
                            subnets.collect::<Vec<_>>().join(", ")
                        ))
                    })?;
                if !pool.subnet.is_usable(*address) || *address == pool.gateway {
                    return Err(bad(format!("the address {address} is the network's own")));
                }
                if !self.take(network, *address, container)? {
                    return Err(bad(format!("the address {address} is in use already")));
                }
                given.push((*address, pool.subnet.prefix()));
            }
            for pool in &network.pools {
                if !given.iter().any(|(address, _)| pool.subnet.contains(*address)) {
                    given.push((self.next(network, pool, container)?, pool.subnet.prefix()));
                }
            }
            Ok(())
        })();
        match outcome {
            Ok(()) => Ok(given),
            Err(e) => {
                for (address, _) in given {
                    self.take_back(network, address);
                }
                Err(e)
            }
        }
    }

    fn next(&self, network: &Network, pool: &Pool, container: &str) -> Result<IpAddr> {
        let range = pool.range.unwrap_or(pool.subnet);
        let full = || bad(format!("the network {} has no free address in {range}", network.name));
        let cursor_file = self.root.join("cursors").join(&network.id);
        // One that cannot be read only makes the search longer.
        let mut cursors: BTreeMap<String, String> = read(&cursor_file).ok().flatten().unwrap_or_default();
        let last = cursors.get(&pool.subnet.to_string()).and_then(|text| text.parse::<IpAddr>().ok());
        let begin = last.and_then(|address| range.offset(address)).map_or(0, |offset| offset + 1);
        let end = range.offset(range.last()).unwrap_or(0);
        for offset in (begin..=end).chain(0..begin.min(end + 1)).take(MOST_IN_A_ROW) {
            let Some(address) = range.nth(offset) else { continue };
            let usable = pool.subnet.is_usable(address) && address != pool.gateway;
            if usable && self.take(network, address, container)? {
                cursors.insert(pool.subnet.to_string(), address.to_string());
                write_over(&cursor_file, &cursors)?;
                return Ok(address);
            }
        }
        Err(full())
    }

    /// `false` where somebody has it.
    fn take(&self, network: &Network, address: IpAddr, container: &str) -> Result<bool> {
        let path = self.addresses(network).join(address.to_string());
        let failed = |e| Error::system(format!("take the address {address}"), e);
        match File::options().write(true).create_new(true).open(&path) {
            Ok(mut file) => file.write_all(container.as_bytes()).map(|()| true).map_err(failed),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(failed(e)),
        }
    }

    fn take_back(&self, network: &Network, address: IpAddr) {
        let _ = fs::remove_file(self.addresses(network).join(address.to_string()));
    }

    fn addresses(&self, network: &Network) -> PathBuf {
        self.root.join("addresses").join(&network.id)
    }

    /// Writes down where a container is.
    pub fn put(&self, container: &str, places: &Places) -> Result<()> {
        self.write(&self.root.join("endpoints").join(format!("{container}.json")), places)
    }

    /// Forgets where a container is, and gives its addresses back. Returns what was written down.
    pub fn release(&self, container: &str) -> Result<Option<Places>> {
        let Some(places) = Self::places(&self.root, container)? else { return Ok(None) };
        for endpoint in &places.endpoints {
            self.release_addresses(endpoint)?;
        }
        forget(&self.root.join("endpoints").join(format!("{container}.json")))?;
        Ok(Some(places))
    }

    /// Which container has an address in the network of that ID.
    pub fn owner(root: &Path, network: &str, address: IpAddr) -> Option<String> {
        let owner =
            fs::read_to_string(root.join("addresses").join(network).join(address.to_string())).ok()?;
        // What a crash left half written is nobody's.
        (!owner.is_empty() && owner.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(owner)
    }

    /// Gives the addresses of one place back.
    pub fn release_addresses(&self, endpoint: &Endpoint) -> Result<()> {
        for (address, _) in &endpoint.addresses {
            forget(&self.root.join("addresses").join(&endpoint.id).join(address.to_string()))?;
        }
        Ok(())
    }

    /// Releases what belongs to containers that do not live, and addresses of others where a crash came before it was all
    /// written down: whoever takes some holds the lock until then. `before` takes what there is of them in the kernel, while
    /// it is still known.
    pub fn collect(
        &self,
        lives: &dyn Fn(&str) -> bool,
        before: &dyn Fn(&Places) -> Result<()>,
    ) -> Result<()> {
        // What an address is kept for is in the places of one that lives.
        let mut known: HashSet<(String, IpAddr)> = HashSet::new();
        for (container, places) in Self::all_places(&self.root)? {
            if lives(&container) {
                for endpoint in places.endpoints {
                    known.extend(endpoint.addresses.iter().map(|(at, _)| (endpoint.id.clone(), *at)));
                }
            } else {
                before(&places)?;
                self.release(&container)?;
            }
        }
        for network in Self::list(&self.root)? {
            let Ok(entries) = fs::read_dir(self.addresses(&network)) else { continue };
            for entry in entries.flatten() {
                let at = entry.file_name().to_str().and_then(|name| name.parse::<IpAddr>().ok());
                if !at.is_some_and(|at| known.contains(&(network.id.clone(), at))) {
                    forget(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    fn write<T: Serialize>(&self, path: &Path, value: &T) -> Result<()> {
        let failed = |e: io::Error| Error::system(format!("write {}", path.display()), e);
        let text = serde_json::to_vec(value).map_err(|e| failed(e.into()))?;
        let aside = path.with_extension("new");
        // Networks outlive a power cut; addresses and places mean nothing after one.
        let mut file = File::create(&aside).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        if path.parent().is_some_and(|dir| dir.ends_with("nets")) {
            file.sync_all().map_err(failed)?;
        }
        fs::rename(&aside, path).map_err(failed)
    }
}

impl Network {
    /// What the firewall has to know of it.
    pub fn zone(&self) -> Zone {
        Zone {
            bridge: self.bridge.clone(),
            subnets: self.pools.iter().map(|pool| pool.subnet).collect(),
            internal: self.internal,
        }
    }
}

/// Whether a network may have this name (docker: the same as containers).
///
/// # Errors
/// It may not, or it is a mode's.
pub fn check_name(name: &str) -> Result<()> {
    let fine = name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if !fine || matches!(name, "host" | "none" | "default" | "container" | "ns") {
        return Err(Error::Spelling(
            Spelling::new(format!("invalid network name '{name}'")).with_hint(
                "a name has letters, digits, '_', '.' and '-', begins with a letter or digit, and is none of host, none and default",
            ),
        ));
    }
    Ok(())
}

fn pool(subnet: Subnet, gateway: Option<IpAddr>, range: Option<Subnet>) -> Result<Pool> {
    let width = if subnet.is_ipv6() { 128 } else { 32 };
    if subnet.prefix() + 2 > width {
        return Err(bad(format!("the subnet {subnet} has no room for a host and a container")));
    }
    if range.is_some_and(|range| !subnet.contains(range.first()) || !subnet.contains(range.last())) {
        return Err(bad(format!("the range is not in the subnet {subnet}")));
    }
    let gateway = match gateway {
        Some(gateway) if !subnet.is_usable(gateway) => {
            return Err(bad(format!("the gateway {gateway} is no usable address of the subnet {subnet}")));
        }
        Some(gateway) => gateway,
        None => subnet.nth(1).ok_or_else(|| bad(format!("the subnet {subnet} has no room")))?,
    };
    Ok(Pool { subnet, gateway, range })
}

/// A subnet of private addresses (RFC 1918) that nobody has use for: those that docker takes as well.
fn free4(used: &[Subnet], taken: &[Subnet]) -> Result<Subnet> {
    let sixteens = (18..32u8).map(|b| ([172, b, 0, 0], 16));
    let twentys = (0..16u8).map(|n| ([192, 168, n * 16, 0], 20));
    let tens = (0..=255u8).map(|n| ([10, n, 0, 0], 16));
    sixteens
        .chain(twentys)
        .chain(tens)
        .filter_map(|(octets, prefix)| Subnet::containing(octets.into(), prefix).ok())
        .find(|subnet| !used.iter().chain(taken).any(|other| other.prefix() > 0 && other.overlaps(*subnet)))
        .ok_or_else(|| bad("all private subnets are in use; name one with --subnet".to_owned()))
}

/// A subnet of the unique local addresses (RFC 4193), by the network's ID.
fn unique6(id: &str) -> Result<Subnet> {
    let digit = |at: usize| id.get(at..at + 2).and_then(|h| u8::from_str_radix(h, 16).ok()).unwrap_or(0);
    let mut octets = [0u8; 16];
    octets[0] = 0xfd;
    for (at, octet) in octets.iter_mut().enumerate().take(8).skip(1) {
        *octet = digit(2 * at);
    }
    Ok(Subnet::containing(octets.into(), 64)?)
}

fn bad(text: String) -> Error {
    Error::Spelling(Spelling::new(text))
}

fn records<T: for<'de> Deserialize<'de>>(dir: &Path) -> Result<Vec<(String, T)>> {
    let failed = |e| Error::system(format!("read {}", dir.display()), e);
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut out = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let Some(name) =
            path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json").map(str::to_owned))
        else {
            continue;
        };
        // One that vanishes meanwhile is gone.
        if let Some(found) = read(&path)? {
            out.push((name, found));
        }
    }
    Ok(out)
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    let failed = |e: io::Error| Error::system(format!("read {}", path.display()), e);
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, LIMIT), &mut text).map_err(failed)?;
    serde_json::from_slice(&text).map(Some).map_err(|e| failed(e.into()))
}

/// Writes over what is in a file, for what may be lost. A start does so each time, and where one file takes the place of
/// another, ext4 puts the new one on the disk at once, and may wait for the disk to hear what is free (`discard`).
fn write_over<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let failed = |e: io::Error| Error::system(format!("write {}", path.display()), e);
    let mut text = serde_json::to_vec(value).map_err(|e| failed(e.into()))?;
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    // What was longer ends in spaces, which JSON has no use for; what is not ours is not filled up.
    text.resize(text.len().max(length.min(LIMIT) as usize), b' ');
    file.write_all_at(&text, 0).map_err(failed)
}

fn forget(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::system(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    fn wish(pools: &[&str]) -> Wish {
        Wish { pools: pools.iter().map(|p| (Some(subnet(p)), None, None)).collect(), ..Wish::default() }
    }

    #[test]
    fn networks_are_made_found_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let networks = Networks::open(dir.path()).unwrap();
        let taken = [subnet("172.18.0.0/16"), subnet("0.0.0.0/0")];
        let net = networks.create("one", ID, 5, &Wish::default(), &taken).unwrap();
        assert_eq!(net.pools[0].subnet, subnet("172.19.0.0/16"));
        assert_eq!(
            (net.pools[0].gateway.to_string().as_str(), net.bridge.as_str()),
            ("172.19.0.1", "isl0123456789ab")
        );
        assert_eq!(Networks::find(dir.path(), "0123").unwrap().unwrap(), net);
        assert_eq!(Networks::find(dir.path(), "two").unwrap(), None);
        assert!(matches!(networks.create("one", ID, 5, &Wish::default(), &[]), Err(Error::Exists(_))));
        let other = networks
            .create("two", &ID.replace('0', "f"), 5, &Wish { ipv6: true, ..Wish::default() }, &taken)
            .unwrap();
        assert_eq!(other.pools[0].subnet, subnet("172.20.0.0/16"));
        assert!(other.pools[1].subnet.is_ipv6());
        for (name, wish) in [
            ("x", wish(&["172.19.5.0/24"])),
            ("x", wish(&["10.0.0.0/31"])),
            (
                "x",
                Wish {
                    pools: vec![(Some(subnet("10.0.0.0/24")), Some("10.1.0.1".parse().unwrap()), None)],
                    ..Wish::default()
                },
            ),
            (
                "x",
                Wish {
                    pools: vec![(Some(subnet("10.0.0.0/24")), None, Some(subnet("10.1.0.0/28")))],
                    ..Wish::default()
                },
            ),
            ("host", Wish::default()),
            ("../x", Wish::default()),
            ("", Wish::default()),
        ] {
            assert!(networks.create(name, ID, 5, &wish, &[]).is_err(), "{name} {wish:?}");
        }
        networks.remove(&net).unwrap();
        assert_eq!(Networks::list(dir.path()).unwrap(), [other]);
    }

    #[test]
    fn addresses_are_given_once() {
        let dir = tempfile::tempdir().unwrap();
        let networks = Networks::open(dir.path()).unwrap();
        let net = networks.create("one", ID, 5, &wish(&["10.0.0.0/29"]), &[]).unwrap();
        let give = |asked: &[&str]| {
            let asked: Vec<IpAddr> = asked.iter().map(|a| a.parse().unwrap()).collect();
            networks.give(&net, "c", &asked).map(|given| given[0].0.to_string())
        };
        // The first is the network's, the second the host's, the last is for all.
        assert_eq!(give(&[]).unwrap(), "10.0.0.2");
        assert_eq!(give(&["10.0.0.4"]).unwrap(), "10.0.0.4");
        assert_eq!(give(&[]).unwrap(), "10.0.0.3");
        assert_eq!(give(&[]).unwrap(), "10.0.0.5");
        assert_eq!(give(&[]).unwrap(), "10.0.0.6");
        assert!(give(&[]).unwrap_err().to_string().contains("no free address"));
        for bad in ["10.0.0.4", "10.0.0.1", "10.0.0.0", "10.0.0.7", "10.0.1.1", "fd00::1"] {
            assert!(give(&[bad]).is_err(), "{bad}");
        }
        // What comes back is given again, though not at once.
        fs::remove_file(dir.path().join("addresses").join(ID).join("10.0.0.3")).unwrap();
        assert_eq!(give(&[]).unwrap(), "10.0.0.3");
        assert!(give(&[]).is_err());
    }

    #[test]
    fn where_the_search_goes_on_is_written_over_what_was() {
        let dir = tempfile::tempdir().unwrap();
        let networks = Networks::open(dir.path()).unwrap();
        let net = networks.create("one", ID, 5, &wish(&["10.0.0.0/24"]), &[]).unwrap();
        let next = || networks.give(&net, "c", &[]).unwrap()[0].0.to_string();
        let cursor = dir.path().join("cursors").join(ID);
        assert_eq!(next(), "10.0.0.2");
        let file = fs::metadata(&cursor).unwrap().ino();
        for (before, expected) in [
            ("", "10.0.0.3"),
            ("{\"10.0.0.0/24\":\"10.0.0.200\"}      ", "10.0.0.201"),
            ("{\"10.0.0.0/24\":\"10.0.0", "10.0.0.4"),
        ] {
            fs::write(&cursor, before).unwrap();
            assert_eq!(next(), expected, "{before}");
            assert_eq!(
                fs::read_to_string(&cursor).unwrap().trim_end(),
                format!("{{\"10.0.0.0/24\":\"{expected}\"}}")
            );
        }
        assert_eq!(fs::metadata(&cursor).unwrap().ino(), file);
    }

    #[test]
    fn places_go_with_their_containers() {
        let dir = tempfile::tempdir().unwrap();
        let networks = Networks::open(dir.path()).unwrap();
        let net = networks.create("one", ID, 5, &wish(&["10.0.0.0/24"]), &[]).unwrap();
        let place = |container: &str| {
            let addresses = networks.give(&net, container, &[]).unwrap();
            let endpoint = Endpoint {
                network: net.name.clone(),
                id: net.id.clone(),
                device: "d".into(),
                mac: [2; 6],
                addresses,
                gateways: vec![],
                aliases: vec![],
            };
            let places = Places { name: container.to_owned(), endpoints: vec![endpoint], ports: vec![] };
            networks.put(container, &places).unwrap();
            places
        };
        let (first, second) = (place("a"), place("b"));
        assert!(matches!(networks.remove(&net), Err(Error::InUse { users, .. }) if users.len() == 2));
        // One that died before its places were written down.
        networks.give(&net, "c", &[]).unwrap();
        // One that lives, and whose joining was cut short.
        networks.give(&net, "b", &[]).unwrap();
        let gone = std::cell::RefCell::new(Vec::new());
        let before = |places: &Places| {
            gone.borrow_mut().push(places.clone());
            Ok(())
        };
        networks.collect(&|container| container == "b", &before).unwrap();
        assert_eq!(gone.into_inner(), [first]);
        assert_eq!(Networks::all_places(dir.path()).unwrap(), [("b".to_owned(), second)]);
        assert_eq!(fs::read_dir(networks.addresses(&net)).unwrap().count(), 1);
        networks.release("b").unwrap();
        networks.remove(&net).unwrap();
    }
}
