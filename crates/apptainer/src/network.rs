//! `--net`, `--network` and `--network-args`: what CNI plugins do for Apptainer, by the networks of the engine.
//!
//! One idea: `bridge`, `ptp` and `fakeroot`, the kinds that Apptainer brings along, all lead out of the container and let the
//! host's ports in, and so does the engine's usual network; a kind by any other name is a network that `isles network create`
//! has made. Arguments are those of Apptainer's `pkg/network`: `[NETWORK:]KEY=VALUE[;KEY=VALUE]`.

use std::net::IpAddr;

use isles_spec::{NetworkMode, NetworkUse, Port};

use crate::action_flags as flags;
use crate::failure::Failure;
use crate::parse::Values;
use crate::talk::Talk;

/// The kinds of Apptainer's own configuration that lead to the world.
const USUAL: [&str; 3] = ["bridge", "ptp", "fakeroot"];
/// Those that put the container into the network of one of the host's devices.
const OF_DEVICE: [&str; 2] = ["ipvlan", "macvlan"];
/// The name of the engine's usual network.
const BRIDGE: &str = "bridge";

/// What an action says about the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    pub mode: NetworkMode,
    /// Ports of the host that lead into the container (`portmap`).
    pub ports: Vec<Port>,
}

impl Network {
    /// Whether the container has connections that are not those of the host.
    pub fn is_own(&self) -> bool {
        matches!(self.mode, NetworkMode::Networks(_))
    }

    /// Reads the flags. `boot` stands for `--net`.
    ///
    /// # Errors
    /// A kind or an argument is none, or none that can be here.
    pub fn of(values: &Values, boot: bool, talk: &Talk) -> Result<Network, Failure> {
        let (named, arguments) = (values.word(&flags::NETWORK), values.list(&flags::NETWORK_ARGS));
        let asked = values.is(&flags::NET) || boot;
        if let Some(path) = values.word(&flags::NETNS_PATH) {
            if asked || named.is_some() || !arguments.is_empty() {
                return Err(Failure::new("--netns-path and --net exclude each other")
                    .with_hint("join a network namespace, or have one of your own"));
            }
            return Ok(Network { mode: NetworkMode::Path(path.into()), ..Network::default() });
        }
        let why = [(named.is_some(), "--network"), (!arguments.is_empty(), "--network-args")];
        if let Some((_, flag)) = why.iter().find(|(given, _)| *given && !asked) {
            talk.info(&format!("Setting --net (required by {flag})"));
        }
        if !asked && named.is_none() && arguments.is_empty() {
            return Ok(Network { mode: NetworkMode::Host, ..Network::default() });
        }
        let kinds: Vec<&str> = named.unwrap_or(BRIDGE).split(',').map(str::trim).collect();
        if kinds == ["none"] {
            if !arguments.is_empty() {
                return Err(Failure::new("--network-args: the network 'none' has no connections")
                    .with_hint("leave them out, or say --network bridge"));
            }
            return Ok(Network { mode: NetworkMode::None, ..Network::default() });
        }
        let mut uses: Vec<NetworkUse> = Vec::with_capacity(kinds.len());
        for kind in &kinds {
            let name = if USUAL.contains(kind) { BRIDGE } else { kind };
            check(kind)?;
            if uses.iter().any(|known| known.name == name) {
                return Err(Failure::unsupported(
                    format!("more than one of the networks {}", USUAL.join(", ")),
                    "they are one network here, in which a container has one place",
                ));
            }
            uses.push(NetworkUse { name: name.to_owned(), ..NetworkUse::default() });
        }
        let mut ports = Vec::new();
        for argument in arguments {
            apply(argument, &kinds, &mut uses, &mut ports, talk)?;
        }
        Ok(Network { mode: NetworkMode::Networks(uses), ports })
    }
}

fn check(kind: &str) -> Result<(), Failure> {
    let other =
        "say bridge, ptp, fakeroot or none, or the name of a network that `isles network create` has made";
    match kind {
        "" => Err(Failure::new("--network names no network").with_hint(other)),
        "none" => Err(Failure::new("the network 'none' goes with no other").with_hint(other)),
        "host" => Err(Failure::unsupported("the network 'host'", "leave --net and --network out")),
        kind if OF_DEVICE.contains(&kind) => Err(Failure::unsupported(
            format!("the network '{kind}'"),
            "there are no CNI plugins here; say bridge and publish ports with --network-args portmap=…, \
             or join a namespace that has such a device with --netns-path",
        )),
        _ => Ok(()),
    }
}

/// One `[NETWORK:]KEY=VALUE[;KEY=VALUE]`.
fn apply(
    argument: &str,
    kinds: &[&str],
    uses: &mut [NetworkUse],
    ports: &mut Vec<Port>,
    talk: &Talk,
) -> Result<(), Failure> {
    let wrong = |why: String| Failure::new(format!("error while setting network arguments: {why}"));
    let (at, pairs) = match argument.split_once(':') {
        // A colon in a value begins no name of a network.
        Some((name, rest)) if !name.contains('=') => {
            let at = kinds.iter().position(|kind| *kind == name);
            let missing = || wrong(format!("network {name} wasn't specified in --network option"));
            (at.ok_or_else(missing)?, rest)
        }
        _ => (0, argument),
    };
    for pair in pairs.split(';') {
        let (key, value) = pair
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
            .ok_or_else(|| wrong(format!("invalid argument: {pair}")))?;
        match key {
            "portmap" => ports.push(portmap(value).map_err(wrong)?),
            "IP" => {
                let address: IpAddr =
                    value.parse().map_err(|_| wrong(format!("'{value}' is not an IP address")))?;
                uses[at].addresses.push(address);
            }
            "MAC" => uses[at].mac = Some(isles_spec::parse_mac(value)?),
            "ipRange" => {
                let reason = format!("{} network doesn't have ipRanges capability", kinds[at]);
                let hint = "`isles network create --subnet RANGE NAME` makes a network of these addresses for --network NAME";
                return Err(wrong(reason).with_hint(hint));
            }
            // As CNI's IgnoreUnknown has it, but not without a word.
            other => {
                talk.warning(&format!("Ignoring the network argument {other}, which no network here has"))
            }
        }
    }
    Ok(())
}

/// `HOST[:CONTAINER]/PROTOCOL`, in Apptainer's words where it is none.
fn portmap(text: &str) -> Result<Port, String> {
    let Some((numbers, protocol)) = text.split_once('/') else {
        return Err(format!(
            "badly formatted portmap argument '{text}', must be of form portmap=hostPort:containerPort/protocol"
        ));
    };
    if !matches!(protocol, "tcp" | "udp") {
        return Err("only tcp and udp protocol can be specified".to_owned());
    }
    let number = |what: &str, text: &str| {
        let number: u16 = text.parse().map_err(|_| format!("can't convert {what} port '{text}'"))?;
        if number == 0 {
            Err(format!("{what} port must be greater than 0 and less than 65535"))
        } else {
            Ok(number)
        }
    };
    let (host, container) = numbers.split_once(':').unwrap_or((numbers, numbers));
    if container.contains(':') {
        return Err("portmap port argument is badly formatted".to_owned());
    }
    let (host, container) = (number("host", host)?, number("container", container)?);
    let protocol = if protocol == "tcp" { isles_spec::Protocol::Tcp } else { isles_spec::Protocol::Udp };
    Ok(Port { address: None, host, container, protocol })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flag::Flag;
    use crate::talk::Level;

    fn read(list: &[(&Flag, &str)]) -> Result<Network, Failure> {
        let mut values = Values::default();
        for (flag, value) in list {
            values.set(flag, value).unwrap();
        }
        Network::of(&values, false, &Talk::new(Level::Fatal, false))
    }

    fn used(name: &str) -> NetworkUse {
        NetworkUse { name: name.into(), ..NetworkUse::default() }
    }

    #[test]
    fn kinds() {
        let networks = |names: &[&str]| NetworkMode::Networks(names.iter().map(|name| used(name)).collect());
        let (net, network) = ((&flags::NET, "true"), &flags::NETWORK);
        for (list, expected) in [
            (&[][..], NetworkMode::Host),
            (&[net], networks(&["bridge"])),
            (&[net, (network, "none")], NetworkMode::None),
            (&[(network, "none")], NetworkMode::None),
            (&[(network, "ptp")], networks(&["bridge"])),
            (&[net, (network, "fakeroot")], networks(&["bridge"])),
            (&[(network, "lab")], networks(&["lab"])),
            (&[(network, "ptp,lab")], networks(&["bridge", "lab"])),
            (&[(&flags::NETNS_PATH, "/n")], NetworkMode::Path("/n".into())),
        ] {
            assert_eq!(read(list).unwrap().mode, expected, "{list:?}");
        }
    }

    #[test]
    fn arguments() {
        let arguments = |text| [(&flags::NETWORK_ARGS, text)];
        let found =
            read(&arguments("IP=10.1.0.9;portmap=8080:80/tcp;portmap=53/udp;MAC=02:00:00:00:00:07")).unwrap();
        let NetworkMode::Networks(uses) = &found.mode else { panic!("{found:?}") };
        assert_eq!((uses[0].addresses[0].to_string().as_str(), uses[0].mac.unwrap()[5]), ("10.1.0.9", 7));
        let ports: Vec<String> =
            found.ports.iter().map(|port| format!("{port} {}", port.container)).collect();
        assert_eq!(ports, ["8080/tcp 80", "53/udp 53"]);
        let of_second = [(&flags::NETWORK, "bridge,lab"), (&flags::NETWORK_ARGS, "lab:IP=10.1.0.9")];
        let NetworkMode::Networks(uses) = read(&of_second).unwrap().mode else { panic!() };
        assert!(uses[0].addresses.is_empty() && uses[1].addresses.len() == 1);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (flag, text, word) in [
            (&flags::NETWORK, "macvlan", "the network 'macvlan' is not supported"),
            (&flags::NETWORK, "bridge,ptp", "more than one of the networks"),
            (&flags::NETWORK, "bridge,none", "'none' goes with no other"),
            (&flags::NETWORK, "host", "'host'"),
            (&flags::NETWORK_ARGS, "portmap=80", "badly formatted portmap argument '80'"),
            (&flags::NETWORK_ARGS, "portmap=80:80/sctp", "only tcp and udp"),
            (&flags::NETWORK_ARGS, "portmap=0/tcp", "greater than 0"),
            (&flags::NETWORK_ARGS, "portmap=1:2:3/tcp", "badly formatted"),
            (&flags::NETWORK_ARGS, "portmap=x/tcp", "can't convert host port 'x'"),
            (&flags::NETWORK_ARGS, "IP=moon", "'moon' is not an IP address"),
            (&flags::NETWORK_ARGS, "lab:IP=10.0.0.1", "network lab wasn't specified"),
            (&flags::NETWORK_ARGS, "ipRange=10.0.0.0/24", "bridge network doesn't have ipRanges capability"),
            (&flags::NETWORK_ARGS, "IP", "invalid argument: IP"),
            (&flags::NETWORK_ARGS, "MAC=x", "'x'"),
        ] {
            let failure = read(&[(flag, text)]).unwrap_err();
            assert!(failure.message.contains(word), "{text}: {}", failure.message);
            assert_eq!(failure.code, None, "255");
        }
        let none = [(&flags::NETWORK, "none"), (&flags::NETWORK_ARGS, "portmap=80/tcp")];
        assert!(read(&none).unwrap_err().message.contains("no connections"));
        let both = [(&flags::NET, "true"), (&flags::NETNS_PATH, "/n")];
        assert!(read(&both).unwrap_err().message.contains("--netns-path"));
    }
}
