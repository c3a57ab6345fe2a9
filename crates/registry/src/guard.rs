//! Which addresses a URL that others wrote may not lead to: link-local ones, where clouds hand out the secrets
//! of a machine (169.254.169.254 and its kin). Checked where names become addresses, so neither a redirect
//! nor a name that answers differently the second time gets around it. A proxy sees to its own addresses.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// EC2's metadata over IPv6, a unique local address that is one by use only.
const EC2: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254);

/// Whether nothing may be asked for at an address.
pub fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6 == EC2,
    }
}

/// The usual resolver, without addresses that are not to be asked.
#[derive(Debug, Default)]
pub(crate) struct Guarded(DefaultResolver);

impl Resolver for Guarded {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let all = self.0.resolve(uri, config, timeout)?;
        match all.iter().find(|a| is_link_local(a.ip())) {
            None => Ok(all),
            // One bad address makes the name suspect, and the others are no loss.
            Some(bad) => Err(ureq::Error::Io(io::Error::other(LinkLocal(*bad)))),
        }
    }
}

/// Why a connection was not made.
#[derive(Debug)]
pub(crate) struct LinkLocal(SocketAddr);

impl LinkLocal {
    pub fn at(&self, host: &str) -> isles_spec::Error {
        isles_spec::Error::new(format!(
            "'{host}' is at the link-local address {}, which is not asked",
            self.0.ip()
        ))
        .with_hint("services there tell the secrets of this machine; copy the file to another place")
    }
}

impl fmt::Display for LinkLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is a link-local address", self.0.ip())
    }
}

impl std::error::Error for LinkLocal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_addresses_are_not_asked() {
        for (address, refused) in [
            ("169.254.169.254", true),
            ("169.254.0.1", true),
            ("::ffff:169.254.169.254", true),
            ("fe80::1", true),
            ("fd00:ec2::254", true),
            ("127.0.0.1", false),
            ("10.0.0.1", false),
            ("169.253.1.1", false),
            ("fd00::1", false),
            ("::1", false),
        ] {
            assert_eq!(is_link_local(address.parse().unwrap()), refused, "{address}");
        }
    }
}
