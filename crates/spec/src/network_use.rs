//! What a workload wants of one network, as `run --network` has it: podman's `NAME:ip=…,alias=…` and docker's
//! `name=NAME,ip=…,alias=…`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A network, and what a workload wants of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkUse {
    /// Its name, or its ID.
    pub name: String,
    /// Further names by which others in the network find the workload.
    pub aliases: Vec<String>,
    /// Addresses of the caller's choice.
    pub addresses: Vec<IpAddr>,
    /// The address of the device, in place of one that is made of its IP address.
    pub mac: Option<[u8; 6]>,
}

impl NetworkUse {
    /// Reads a network's name, by itself or with what is wanted of it.
    ///
    /// # Errors
    /// A word is not known, or its value is none.
    pub fn parse(text: &str) -> Result<NetworkUse> {
        let mut out = NetworkUse::default();
        // Addresses have colons, too.
        let words = match text.split_once(':').filter(|(name, _)| !name.contains('=')) {
            Some((name, words)) => {
                name.clone_into(&mut out.name);
                words
            }
            None if text.contains('=') => text,
            None => {
                text.clone_into(&mut out.name);
                ""
            }
        };
        for word in words.split(',').filter(|_| !words.is_empty()) {
            let bad = || {
                Error::new(format!("invalid wish '{word}' of a network"))
                    .with_hint("known are name=NAME, ip=ADDRESS, ip6=ADDRESS, alias=NAME and mac=ADDRESS")
            };
            match word.split_once('=').filter(|(_, value)| !value.is_empty()) {
                Some(("name", name)) if out.name.is_empty() => name.clone_into(&mut out.name),
                Some((kind @ ("ip" | "ip6"), address)) => {
                    let address: IpAddr = address.parse().map_err(|_| bad())?;
                    if kind == "ip6" && address.is_ipv4() {
                        return Err(bad());
                    }
                    out.addresses.push(address);
                }
                Some(("alias", name)) => out.aliases.push(name.to_owned()),
                Some(("mac" | "mac-address", address)) => out.mac = Some(parse_mac(address)?),
                _ => return Err(bad()),
            }
        }
        if out.name.is_empty() {
            return Err(Error::new(format!("'{text}' names no network"))
                .with_hint("write NAME, NAME:ip=ADDRESS, or name=NAME,ip=ADDRESS"));
        }
        Ok(out)
    }
}

/// Reads the address of a device: six bytes with colons between.
///
/// # Errors
/// It is none, or one of a group, which is nobody's own.
pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let byte = |part: &str| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten();
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()).filter(|mac| mac[0] & 1 == 0).ok_or_else(|| {
        Error::new(format!("invalid address of a device '{text}'"))
            .with_hint("write six bytes such as 02:42:ac:11:00:02; the first one is even")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses() {
        let all = NetworkUse {
            name: "a".into(),
            aliases: vec!["x".into(), "y".into()],
            addresses: vec![[10, 0, 0, 2].into(), "fd00::2".parse().unwrap()],
            mac: Some([2, 0, 0, 0, 0, 1]),
        };
        for text in [
            "a:ip=10.0.0.2,alias=x,ip6=fd00::2,mac=02:00:00:00:00:01,alias=y",
            "name=a,ip=10.0.0.2,alias=x,alias=y,ip6=fd00::2,mac-address=02:00:00:00:00:01",
            "alias=x,alias=y,ip=10.0.0.2,ip=fd00::2,mac=02:00:00:00:00:01,name=a",
        ] {
            assert_eq!(NetworkUse::parse(text).unwrap(), all, "{text}");
        }
        let plain = NetworkUse { name: "a".into(), ..NetworkUse::default() };
        assert_eq!(NetworkUse::parse("a").unwrap(), plain);
        assert_eq!(NetworkUse::parse("a:").unwrap(), plain);
        for (text, word) in [
            ("", "names no network"),
            (":ip=10.0.0.2", "names no network"),
            ("ip=10.0.0.2", "names no network"),
            ("a:ip=", "'ip='"),
            ("a:ip=x", "'ip=x'"),
            ("a:ip6=10.0.0.2", "'ip6=10.0.0.2'"),
            ("a:name=b", "'name=b'"),
            ("a:gw-priority=1", "'gw-priority=1'"),
            ("a:x", "'x'"),
            ("a:mac=01:00:00:00:00:01", "'01:00:00:00:00:01'"),
            ("a:mac=2:0:0:0:0:1", "'2:0:0:0:0:1'"),
            ("a:ip=10.0.0.2,", "''"),
        ] {
            let error = NetworkUse::parse(text).unwrap_err();
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
    }
}
