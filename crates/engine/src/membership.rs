//! Containers that join networks and leave them, also while they run.
//!
//! With bridges that is a further pair of devices, made by whoever asks for it. An ordinary user's container has one device, and
//! a process that serves it: that one reads from what is written down which networks there are, and is told to look by a
//! neighbour of the container's ([`join`]).

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use isles_network::place;
use isles_network::state::{DEFAULT, Endpoint, Network, Networks, Places};
use isles_network::user::inside::MAC;
use isles_network::user::neighbour;
use isles_spec::{NetworkMode, NetworkUse};
use isles_store::Container;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::hosts;
use crate::networks::{default, device, own_names, take};
use crate::record::Record;
use crate::user_network::{Joining, is_served, join, leave, overlaps_own, shares};
use crate::watch::Watch;

/// How long whoever serves a container's network may take to hear that it has joined another one.
const PATIENCE: Duration = Duration::from_secs(10);

impl Engine {
    /// Connects a container that runs with a network, or lets one that does not be in it when it starts.
    ///
    /// # Errors
    /// It is in it already, or has no networks at all.
    pub fn connect_network(&self, name: &str, wanted: &NetworkUse) -> Result<()> {
        let network = self.network(&wanted.name)?;
        let found = self.find(name)?;
        let container = self.store.container(&found.record.id)?;
        let _names = self.store.lock_names()?;
        let mut record = Record::load(&container)?.ok_or_else(|| Error::NoContainer(name.to_owned()))?;
        let refused = |why: &str| {
            Error::impossible(format!("connecting container {name} with the network {}", network.name), why)
        };
        // An ordinary user's own network stands for the usual one, and stays beside those that it shares.
        if is_by_itself(&record.workload.network) && !self.has_bridges() {
            let usual = NetworkUse { name: DEFAULT.to_owned(), ..NetworkUse::default() };
            record.workload.network = NetworkMode::Networks(vec![usual]);
        }
        let uses = match &mut record.workload.network {
            NetworkMode::Networks(uses) => uses,
            NetworkMode::None => return Err(refused("it was made with --network none, and has none")),
            NetworkMode::User { .. } | NetworkMode::Default => {
                return Err(refused(
                    "its network is slirp4netns, which nobody shares; make it with --network bridge",
                ));
            }
            _ => return Err(refused("it shares the network of the host, or of another container")),
        };
        if uses.iter().any(|other| other.name == network.name || network.id.starts_with(&other.name)) {
            return Err(refused("it is in it already"));
        }
        let other_mac = |other: &NetworkUse| other.mac.is_some() && other.mac != wanted.mac;
        if wanted.mac.is_some() && !self.has_bridges() && uses.iter().any(other_mac) {
            return Err(refused(
                "it was given another MAC address before, and that of an ordinary user has one device for all networks",
            ));
        }
        uses.push(NetworkUse { name: network.name.clone(), ..wanted.clone() });
        let alive = self.is_alive(&found.record.id);
        if alive && !self.has_bridges() {
            let pid = found.state.pid.ok_or_else(|| Error::NotRunning(name.to_owned()))?;
            let endpoints = self.join_served(&network, &record, wanted, pid, container.path())?;
            self.change_names(&record, &container, &endpoints, true)?;
            return record.save(&container);
        }
        if alive && let Some(pid) = found.state.pid {
            let endpoint = self.join_bridged(&network, &record, wanted, pid)?;
            self.change_names(&record, &container, &[endpoint], true)?;
        }
        record.save(&container)
    }

    /// Lets a container that runs know the names that it has in networks, or forget them.
    fn change_names(
        &self,
        record: &Record,
        container: &Container,
        endpoints: &[Endpoint],
        adds: bool,
    ) -> Result<()> {
        let hostname = self.hostname(&record.workload, &record.id)?;
        let places = Places { endpoints: endpoints.to_vec(), ..Places::default() };
        let names = own_names(&places, &hostname, &record.workload);
        hosts::change_own_names(container.path(), &names, adds)
    }

    /// Takes a container out of a network. With `force` also what is left there of one that is gone, by its name or ID.
    ///
    /// # Errors
    /// It is not in it.
    pub fn disconnect_network(&self, network: &str, name: &str, force: bool) -> Result<()> {
        let network = self.network(network)?;
        let found = match self.find(name) {
            Err(Error::NoContainer(_)) if force => return self.forget_place(&network, name),
            other => other?,
        };
        let container = self.store.container(&found.record.id)?;
        let _names = self.store.lock_names()?;
        let mut record = Record::load(&container)?.ok_or_else(|| Error::NoContainer(name.to_owned()))?;
        let refused = |why: &str| {
            let what = format!("disconnecting container {name} from the network {}", network.name);
            Error::impossible(what, why)
        };
        let mode = &record.workload.network;
        let own = is_served(mode, self.identity) && shares(mode, self.identity).is_none();
        let has_place = |places: Places| places.endpoints.iter().any(|endpoint| endpoint.id == network.id);
        if network.name == DEFAULT && own && !self.places_of(&record.id)?.is_some_and(has_place) {
            return Err(refused(
                "a network of its own stands for it; when it is in another one, it may leave",
            ));
        }
        let is_it = |other: &NetworkUse| other.name == network.name || network.id.starts_with(&other.name);
        let member = match &mut record.workload.network {
            NetworkMode::Networks(uses) => {
                let before = uses.len();
                uses.retain(|other| !is_it(other));
                uses.len() < before
            }
            _ => false,
        };
        if !member {
            return Err(refused("it is not in it"));
        }
        let dir = self.networks_dir();
        let networks = Networks::open(&dir)?;
        if let Some(mut places) = Networks::places(&dir, &record.id)?
            && let Some(at) = places.endpoints.iter().position(|endpoint| endpoint.id == network.id)
        {
            if at == 0 && self.has_bridges() {
                place::withdraw(&places)?;
            }
            let endpoint = places.endpoints.remove(at);
            match found.state.pid.filter(|_| self.is_alive(&record.id)) {
                _ if self.has_bridges() => place::disconnect(&endpoint)?,
                // What it has changed itself is its own affair: nobody sends to that address any more.
                Some(pid) => drop(leave(pid, &endpoint.addresses)),
                None => {}
            }
            self.change_names(&record, &container, std::slice::from_ref(&endpoint), false)?;
            networks.release_addresses(&endpoint)?;
            networks.put(&record.id, &places)?;
            if at == 0 && self.has_bridges() && self.is_alive(&record.id) {
                self.lead_out(&places, &record.id, found.state.pid)?;
            }
        }
        record.save(&container)
    }
}

impl Engine {
    /// Gives a container that runs a pair of devices to a further bridge. Returns what it has taken.
    fn join_bridged(
        &self,
        network: &Network,
        record: &Record,
        wanted: &NetworkUse,
        pid: i32,
    ) -> Result<Endpoint> {
        let dir = self.networks_dir();
        let networks = Networks::open(&dir)?;
        let mut places = Networks::places(&dir, &record.id)?.unwrap_or_default();
        for stale in take_out(&mut places, network) {
            place::disconnect(&stale)?;
            networks.release_addresses(&stale)?;
        }
        let number =
            (0..).find(|n| !places.endpoints.iter().any(|e| e.device == device(&record.id, *n))).unwrap_or(0);
        let endpoint = take(&networks, network, record, wanted, number)?;
        places.endpoints.push(endpoint.clone());
        networks.put(&record.id, &places)?;
        place::prepare(&dir, network, "")?;
        let path = format!("/proc/{pid}/ns/net");
        let namespace = File::open(&path).map_err(|e| Error::file("open", &path, e))?;
        let first = places.endpoints.len() == 1;
        if let Err(e) = place::connect(network, &endpoint, namespace.as_fd(), number, first) {
            places.endpoints.pop();
            drop(networks.release_addresses(&endpoint));
            networks.put(&record.id, &places)?;
            return Err(e.into());
        }
        // One that was in no network has had nowhere for its ports to lead.
        if first {
            place::publish(&places)?;
        }
        Ok(endpoint)
    }

    /// Lets a container that runs, and whose network is served by its monitor, be in a further one. The monitor reads
    /// that in what is written down. One that was in none that it shares is in the usual one from then on as well, if its
    /// record says so. Returns what it has taken.
    fn join_served(
        &self,
        network: &Network,
        record: &Record,
        wanted: &NetworkUse,
        pid: i32,
        folder: &Path,
    ) -> Result<Vec<Endpoint>> {
        let refused = |why: &str| {
            let what = format!("connecting container {} with a network while it runs", record.name);
            Error::impossible(what, why)
        };
        if network.pools.iter().any(|pool| overlaps_own(pid, pool.subnet)) {
            return Err(refused(
                "it has addresses of the network for itself; stop it, connect it, and start it again",
            ));
        }
        let dir = self.networks_dir();
        let networks = Networks::open(&dir)?;
        let mut before = Networks::places(&dir, &record.id)?;
        for stale in before.iter_mut().flat_map(|places| take_out(places, network)) {
            drop(leave(pid, &stale.addresses));
            networks.release_addresses(&stale)?;
        }
        let mut places = before.clone().unwrap_or(Places { name: record.name.clone(), ..Places::default() });
        let mac = wanted.mac.or(places.endpoints.first().map(|first| first.mac)).unwrap_or(MAC);
        let mut joined: Vec<(Network, Endpoint)> = Vec::with_capacity(2);
        let give_back = |joined: &[(Network, Endpoint)]| {
            joined.iter().for_each(|(_, endpoint)| drop(networks.release_addresses(endpoint)));
            // On the way out of another failure, which is the one to tell.
            let _ = match &before {
                Some(before) => networks.put(&record.id, before),
                None => networks.release(&record.id).map(drop),
            };
        };
        let usual = NetworkUse::default();
        let is_first = before.is_none() && shares_the_usual(&record.workload.network);
        let first = if is_first { Some((default(&networks, &dir)?, &usual)) } else { None };
        for (network, wanted) in first.into_iter().chain([(network.clone(), wanted)]) {
            let number = places.endpoints.len();
            match take(&networks, &network, record, wanted, number) {
                Ok(endpoint) => {
                    places.endpoints.push(endpoint.clone());
                    joined.push((network, endpoint));
                }
                Err(e) => {
                    give_back(&joined);
                    return Err(e);
                }
            }
        }
        places.endpoints.iter_mut().for_each(|endpoint| endpoint.mac = mac);
        let joining: Vec<Joining<'_>> = joined
            .iter()
            .map(|(network, endpoint)| Joining {
                addresses: &endpoint.addresses,
                gateways: &endpoint.gateways,
                mtu: network.mtu,
                mac,
            })
            .collect();
        let told = networks.put(&record.id, &places).map_err(Error::from).and_then(|()| {
            let mut watch = Watch::names(folder).map_err(|e| Error::file("watch", folder, e))?;
            join(pid, &joining)?;
            let deadline = Instant::now() + PATIENCE;
            while !neighbour::is_heard(folder) {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(refused("whoever serves its network does not answer"));
                }
                watch.wait(Some(left)).map_err(|e| Error::file("watch", folder, e))?;
            }
            Ok(())
        });
        if let Err(e) = told {
            joined.iter().for_each(|(_, endpoint)| drop(leave(pid, &endpoint.addresses)));
            give_back(&joined);
            return Err(e);
        }
        Ok(joined.into_iter().map(|(_, endpoint)| endpoint).collect())
    }

    /// Gives back what a container that is gone has of a network.
    fn forget_place(&self, network: &Network, name: &str) -> Result<()> {
        let dir = self.networks_dir();
        let networks = Networks::open(&dir)?;
        let named = |id: &str, places: &Places| id == name || places.name == name;
        let of_network = |places: &Places| places.endpoints.iter().any(|endpoint| endpoint.id == network.id);
        let all = Networks::all_places(&dir)?;
        let found = all.into_iter().find(|(id, places)| named(id, places) && of_network(places));
        match found {
            // One that lives is known by another name, and has its place still.
            Some((id, _)) if !self.is_alive(&id) => self.give_back(&networks, &id),
            _ => Err(Error::NoContainer(name.to_owned())),
        }
    }

    /// After a container has left the network with its way out: the next one has it, and the ports lead there.
    fn lead_out(&self, places: &Places, id: &str, pid: Option<i32>) -> Result<()> {
        let (Some(first), Some(pid)) = (places.endpoints.first(), pid) else { return Ok(()) };
        let path = format!("/proc/{pid}/ns/net");
        let namespace = File::open(&path).map_err(|e| Error::file("open", &path, e))?;
        let number = (0..10).find(|n| first.device == device(id, *n)).unwrap_or(0);
        place::lead_out(&self.network(&first.network)?, first, namespace.as_fd(), number)?;
        Ok(place::publish(places)?)
    }
}

/// Takes out what is left of a network that the container is not in by its record: whoever let it join was killed.
fn take_out(places: &mut Places, network: &Network) -> Vec<Endpoint> {
    places.endpoints.extract_if(.., |endpoint| endpoint.id == network.id).collect()
}

/// Whether a container has a network of its own, and nothing else was asked of that.
fn is_by_itself(network: &NetworkMode) -> bool {
    matches!(network, NetworkMode::Default | NetworkMode::User { host_loopback: false })
}

/// Whether a container of an ordinary user is to be in the usual network, which its own stands for.
fn shares_the_usual(network: &NetworkMode) -> bool {
    matches!(network, NetworkMode::Networks(uses) if uses.iter().any(|wanted| wanted.name == DEFAULT))
}
