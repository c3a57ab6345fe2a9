//! IDs of containers, and names for those that got none: two words that are easy to say, and four digits of the ID
//! that make them unlikely to meet again.

use crate::error::{Error, Result};

const ADJECTIVES: [&str; 32] = [
    "amber", "basalt", "blue", "breezy", "bright", "calm", "cedar", "clear", "coral", "dewy", "far", "foggy",
    "gentle", "green", "grey", "high", "hidden", "long", "low", "misty", "mossy", "northern", "outer",
    "quiet", "rocky", "round", "salty", "sandy", "silver", "small", "sunny", "windy",
];
const NOUNS: [&str; 32] = [
    "atoll", "bay", "beach", "buoy", "cape", "cay", "cliff", "cove", "crag", "dune", "ferry", "fjord",
    "gull", "harbor", "heron", "inlet", "jetty", "kelp", "lagoon", "lantern", "pebble", "pier", "puffin",
    "quay", "reef", "shoal", "shore", "skerry", "sound", "spit", "tern", "tide",
];

/// A fresh ID: 64 hexadecimal digits.
pub fn id() -> Result<String> {
    let mut bytes = [0u8; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::system("get random numbers", e)),
        }
    }
    Ok(isles_spec::digest::hex(&bytes))
}

/// The name that goes with an ID.
pub fn of(id: &str) -> String {
    let number =
        |from: usize| id.get(from..from + 2).and_then(|h| usize::from_str_radix(h, 16).ok()).unwrap_or(0);
    let digits = id.get(..4).unwrap_or_default();
    format!("{}_{}_{digits}", ADJECTIVES[number(4) % 32], NOUNS[number(6) % 32])
}

/// Checks a name that a person gave (moby's `names.RestrictedNamePattern`).
pub fn check(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let fine = name.len() >= 2
        && name.len() <= 255
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if fine {
        return Ok(());
    }
    Err(isles_spec::Error::new(format!("invalid container name '{name}'"))
        .with_hint(
            "a name has two or more letters, digits, '_', '.' and '-', and begins with a letter or digit",
        )
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names() {
        let (one, other) = (id().unwrap(), id().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.len(), 64);
        check(&of(&one)).unwrap();
        assert_eq!(of("0123000100000000"), "amber_bay_0123");
        for bad in ["", "a", "-a", ".a", "a/b", "a b", "é1", &"x".repeat(256)] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
