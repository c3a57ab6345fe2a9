//! Options of `isles run` that say which networks the container is in.

use std::net::IpAddr;

use isles_spec::{NetworkMode, NetworkUse, parse_mac};

use super::Args;
use super::workload::unknown;
use crate::failure::Failure;

/// What `--network` is where it is not given.
const USUAL_NETWORK: &str = "ISLES_NETWORK";
const MODES: &str = "slirp4netns, none, host, NAME[:ip=…,alias=…], container:NAME and ns:PATH";
/// What may be said of a link, by docker's `--link`, which is gone from new networks of docker's as well.
pub const NO_LINKS: (&str, &str) = (
    "links between containers are not supported",
    "let both be in a network, with 'isles network create NAME' and '--network NAME': there they find each other by name, or by --network-alias",
);

/// The network that the options describe.
pub fn network(args: &Args) -> Result<NetworkMode, Failure> {
    if !args.link.is_empty() {
        return Err(Failure::new(NO_LINKS.0).with_hint(NO_LINKS.1));
    }
    let usual = std::env::var(USUAL_NETWORK).unwrap_or_default();
    let mut modes: Vec<&str> =
        args.network.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
    let wants_ports = !args.publish.is_empty() || args.publish_all;
    let wants_place = args.ip.is_some()
        || args.ip6.is_some()
        || args.mac_address.is_some()
        || !args.network_alias.is_empty();
    if modes.is_empty() && !usual.is_empty() && !wants_ports && !wants_place {
        modes.push(&usual);
    }
    let only = match modes.as_slice() {
        [] if wants_place => None,
        [] => Some(NetworkMode::Default),
        [one] => single(one)?,
        _ => None,
    };
    if let Some(mode) = only {
        let served = matches!(mode, NetworkMode::User { .. } | NetworkMode::Default);
        if wants_ports && !served || wants_place {
            return Err(Failure::new("ports and addresses need a network of the container's own")
                .with_hint("leave out --network, or name a network such as bridge"));
        }
        return Ok(mode);
    }
    let words = if modes.is_empty() { vec!["bridge"] } else { modes };
    let mut uses: Vec<NetworkUse> = Vec::with_capacity(words.len());
    for word in words {
        let wanted = match word.split_once(':') {
            Some((mode @ ("container" | "ns" | "slirp4netns" | "pasta" | "pod"), _)) => {
                return Err(unknown(
                    "network",
                    &format!("{mode}:…"),
                    "names of networks, where there are several",
                ));
            }
            _ => NetworkUse::parse(word)?,
        };
        if matches!(wanted.name.as_str(), "host" | "none" | "default") {
            return Err(unknown(
                "network",
                word,
                "names of networks, where there are several or something is wanted of one",
            ));
        }
        if uses.iter().any(|other| other.name == wanted.name) {
            return Err(Failure::new(format!("the network {} is named twice", wanted.name))
                .with_hint("name each network once"));
        }
        uses.push(wanted);
    }
    if let Some(first) = uses.first_mut() {
        first.aliases.extend(args.network_alias.iter().cloned());
        first.addresses.extend(args.ip.map(IpAddr::V4).into_iter().chain(args.ip6.map(IpAddr::V6)));
        match (args.mac_address.as_deref(), first.mac) {
            (Some(_), Some(_)) => {
                return Err(Failure::new("the address of the device is given twice")
                    .with_hint("give --mac-address, or mac= with the network"));
            }
            (given, own) => first.mac = given.map(parse_mac).transpose()?.or(own),
        }
    }
    for wanted in &uses {
        for kind in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
            if wanted.addresses.iter().filter(|address| kind(address)).count() > 1 {
                return Err(Failure::new(format!(
                    "two addresses of one kind in the network {}",
                    wanted.name
                ))
                .with_hint("a container has one IPv4 address and one IPv6 address in a network"));
            }
        }
    }
    Ok(NetworkMode::Networks(uses))
}

/// Modes of which there is one; `None` for the name of a network.
fn single(word: &str) -> Result<Option<NetworkMode>, Failure> {
    Ok(match word {
        "default" => Some(NetworkMode::Default),
        "none" => Some(NetworkMode::None),
        "host" => Some(NetworkMode::Host),
        // Podman's words for networks that need no rights.
        "slirp4netns" | "pasta" | "private" => Some(NetworkMode::User { host_loopback: false }),
        "slirp4netns:allow_host_loopback=true" | "pasta:--map-gw" => {
            Some(NetworkMode::User { host_loopback: true })
        }
        _ => match word.split_once(':') {
            Some(("container", name)) if !name.is_empty() => Some(NetworkMode::Container(name.to_owned())),
            Some(("ns", path)) if !path.is_empty() => Some(NetworkMode::Path(path.into())),
            Some(("container" | "ns" | "slirp4netns" | "pasta" | "host" | "none" | "private" | "pod", _)) => {
                return Err(unknown("network", word, MODES));
            }
            // What is wanted of a network has a name and a value.
            Some((name, wishes)) if !name.contains('=') && !wishes.contains('=') => {
                return Err(unknown("network", word, MODES));
            }
            _ => None,
        },
    })
}
