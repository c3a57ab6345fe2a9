//! Published ports, as they are asked for: `[HOST_ADDRESS:][HOST_PORT:]CONTAINER_PORT[/PROTOCOL]`, each port perhaps a range.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::Error as Spelling;

/// What a port is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Its number in IP packets.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A port of the container that the host has, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Port {
    /// Of the host; all of its addresses where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Of the host; 0 stands for one that is free.
    pub host: u16,
    pub container: u16,
    pub protocol: Protocol,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            None => {}
        }
        write!(f, "{}/{}", self.host, self.protocol)
    }
}

impl Port {
    /// All ports that the words of one `--publish` stand for.
    pub fn parse(words: &str) -> Result<Vec<Port>, Spelling> {
        let bad = |why: &str| {
            Spelling::new(format!("invalid port '{words}': {why}")).with_hint(
                "write [HOST_ADDRESS:][HOST_PORT:]CONTAINER_PORT[/PROTOCOL], for example 8080:80 or 127.0.0.1:53:53/udp",
            )
        };
        let (rest, protocol) = match words.rsplit_once('/') {
            None => (words, Protocol::Tcp),
            Some((rest, "tcp")) => (rest, Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some((_, other)) => return Err(bad(&format!("there are tcp and udp, not '{other}'"))),
        };
        let (address, ports) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (address, ports) = inner
                    .split_once("]:")
                    .ok_or_else(|| bad("the address has no end, or no port follows it"))?;
                (Some(address), ports)
            }
            None => match rest.matches(':').count() {
                0 | 1 => (None, rest),
                2 => {
                    let (address, ports) = rest.split_once(':').unwrap_or((rest, ""));
                    (Some(address), ports)
                }
                _ => return Err(bad("an IPv6 address stands in brackets")),
            },
        };
        let address = match address {
            None | Some("") => None,
            Some(text) => Some(text.parse::<IpAddr>().map_err(|_| bad("the address is none"))?),
        };
        let (host, container) = match ports.split_once(':') {
            Some((host, container)) => (host, container),
            None => ("", ports),
        };
        let range = |text: &str| -> Result<(u16, u16), Spelling> {
            let number = |text: &str| {
                text.parse::<u16>()
                    .ok()
                    .filter(|&n| n > 0)
                    .ok_or_else(|| bad("ports are numbers from 1 to 65535"))
            };
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (number(first)?, number(last)?);
            if first > last { Err(bad("the range ends before it begins")) } else { Ok((first, last)) }
        };
        let (first, last) = range(container)?;
        let host = match host {
            "" | "0" => None,
            text => Some(range(text)?),
        };
        if let Some((from, to)) = host
            && to - from != last - first
        {
            // Docker takes any free one of the range for a single port; which one is not to be had from here.
            return Err(bad("the ranges have different lengths"));
        }
        Ok((first..=last)
            .map(|container| Port {
                address,
                host: host.map_or(0, |(from, _)| from + (container - first)),
                container,
                protocol,
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hint;

    #[test]
    fn ports() {
        let shown = |words: &str| -> Vec<String> {
            Port::parse(words).unwrap().iter().map(|p| format!("{p}>{}", p.container)).collect()
        };
        for (words, expected) in [
            ("80", "0/tcp>80"),
            ("8080:80", "8080/tcp>80"),
            ("8080:80/udp", "8080/udp>80"),
            ("127.0.0.1:8080:80", "127.0.0.1:8080/tcp>80"),
            ("127.0.0.1::80", "127.0.0.1:0/tcp>80"),
            (":8080:80", "8080/tcp>80"),
            ("[::1]:8080:80/tcp", "[::1]:8080/tcp>80"),
            ("0:80", "0/tcp>80"),
            ("8000-8002:80-82", "8000/tcp>80 8001/tcp>81 8002/tcp>82"),
            ("80-81/udp", "0/udp>80 0/udp>81"),
            ("65535:65535", "65535/tcp>65535"),
        ] {
            assert_eq!(shown(words).join(" "), expected, "{words}");
        }
        for bad in [
            "",
            "x",
            "0",
            "65536",
            "80:",
            "80:0",
            "80/sctp",
            "1-2:80",
            "9-8",
            "a:1:2",
            "::1:80:80",
            "[::1]80",
            "[::1",
            "1:2:3:4",
            "-80",
            "8080-:80",
        ] {
            let error = Port::parse(bad).unwrap_err();
            assert!(error.hint().is_some(), "{bad}");
        }
    }
}
