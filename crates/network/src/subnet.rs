//! Ranges of addresses that share a beginning (CIDR, RFC 4632).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use isles_spec::Error as Spelling;
use serde::{Deserialize, Serialize};

/// A network of IPv4 or IPv6: its first address, and how many bits all of its addresses share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Subnet {
    first: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// The network that an address is in.
    pub fn containing(address: IpAddr, prefix: u8) -> Result<Subnet, Spelling> {
        let width = width(address);
        if prefix > width {
            return Err(Spelling::new(format!(
                "invalid subnet '{address}/{prefix}': {width} bits are the most"
            )));
        }
        let first = number(address) & !hosts(width, prefix);
        Ok(Subnet { first: of_number(first, address), prefix })
    }

    pub fn first(self) -> IpAddr {
        self.first
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    pub fn is_ipv6(self) -> bool {
        self.first.is_ipv6()
    }

    pub fn last(self) -> IpAddr {
        of_number(number(self.first) | hosts(width(self.first), self.prefix), self.first)
    }

    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv6() == self.is_ipv6() && (self.first..=self.last()).contains(&address)
    }

    pub fn overlaps(self, other: Subnet) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// The address that stands `offset` after the first; `None` behind the end.
    pub fn nth(self, offset: u128) -> Option<IpAddr> {
        (offset <= hosts(width(self.first), self.prefix))
            .then(|| of_number(number(self.first) + offset, self.first))
    }

    /// How far an address stands behind the first one.
    pub fn offset(self, address: IpAddr) -> Option<u128> {
        self.contains(address).then(|| number(address) - number(self.first))
    }

    /// Whether a device may have the address: not the network's own, and not IPv4's for all devices.
    pub fn is_usable(self, address: IpAddr) -> bool {
        let small = self.prefix + 1 >= width(self.first);
        self.contains(address)
            && (small || (address != self.first && (self.is_ipv6() || address != self.last())))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

impl TryFrom<String> for Subnet {
    type Error = Spelling;

    fn try_from(text: String) -> Result<Subnet, Spelling> {
        text.parse()
    }
}

impl FromStr for Subnet {
    type Err = Spelling;

    /// Reads `ADDRESS/BITS`; the address may be any of the network.
    fn from_str(text: &str) -> Result<Subnet, Spelling> {
        let bad = || {
            Spelling::new(format!("invalid subnet '{text}'"))
                .with_hint("write ADDRESS/BITS, for example 10.5.0.0/16 or fd00:5::/64")
        };
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let digits = prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|_| digits).ok_or_else(bad)?;
        Subnet::containing(address.parse().map_err(|_| bad())?, prefix)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv6() { 128 } else { 32 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn of_number(number: u128, like: IpAddr) -> IpAddr {
    match like {
        // An address of a network of IPv4 has no more bits.
        IpAddr::V4(_) => IpAddr::V4((number as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    }
}

/// The bits in which the addresses of a network differ.
fn hosts(width: u8, prefix: u8) -> u128 {
    match width - prefix {
        128 => u128::MAX,
        bits => (1 << bits) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn spelling() {
        for (text, shown, last) in [
            ("10.1.2.3/8", "10.0.0.0/8", "10.255.255.255"),
            ("10.1.2.3/32", "10.1.2.3/32", "10.1.2.3"),
            ("0.0.0.0/0", "0.0.0.0/0", "255.255.255.255"),
            ("::/0", "::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fd00:1::5/64", "fd00:1::/64", "fd00:1::ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!((net(text).to_string(), net(text).last()), (shown.to_owned(), ip(last)), "{text}");
        }
        for bad in
            ["", "10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0/8", "10.0.0.0/+8", "10.0.0.0/", "/8"]
        {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_inside() {
        assert!(
            net("10.0.0.0/8").overlaps(net("10.3.0.0/16")) && net("10.3.0.0/16").overlaps(net("10.0.0.0/8"))
        );
        assert!(!net("10.0.0.0/16").overlaps(net("10.1.0.0/16")) && !net("::/0").overlaps(net("0.0.0.0/0")));
        assert_eq!(net("10.0.0.0/30").nth(3), Some(ip("10.0.0.3")));
        assert_eq!(net("10.0.0.0/30").nth(4), None);
        assert_eq!(net("fd00::/64").offset(ip("fd00::1:2")), Some(0x10002));
        assert_eq!(net("fd00::/64").offset(ip("fd01::")), None);
        for (subnet, address, usable) in [
            ("10.0.0.0/24", "10.0.0.0", false),
            ("10.0.0.0/24", "10.0.0.1", true),
            ("10.0.0.0/24", "10.0.0.255", false),
            ("10.0.0.0/31", "10.0.0.0", true),
            ("fd00::/64", "fd00::", false),
            ("fd00::/64", "fd00::ffff:ffff:ffff:ffff", true),
            ("10.0.0.0/24", "10.0.1.1", false),
        ] {
            assert_eq!(net(subnet).is_usable(ip(address)), usable, "{subnet} {address}");
        }
    }
}
