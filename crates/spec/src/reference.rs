//! Image names by Docker's rules (distribution/reference, `reference.go`): `[host[:port]/]path[:tag][@digest]`.
//!
//! A first component with a dot, a colon or the word `localhost` is a registry; otherwise the registry is
//! `docker.io`, whose one-component names live under `library/`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Digest, Error, Result};

/// The registry of names that do not mention one.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of names that have neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
const NAME_LIMIT: usize = 255;
const TAG_LIMIT: usize = 128;

/// The name of an image in a registry or in the local store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses a name; `docker://` before it is allowed.
    pub fn parse(text: &str) -> Result<Self> {
        text.parse()
    }

    /// Host and optional port, `docker.io` where the name did not mention one.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry, with `library/` where Docker implies it.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag as written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The tag, or `latest` where there is neither tag nor digest.
    pub fn tag_or_default(&self) -> Option<&str> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG),
        }
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same name with `latest` spelled out where it is implied.
    pub fn normalized(&self) -> Self {
        let mut out = self.clone();
        out.tag = self.tag_or_default().map(str::to_owned);
        out
    }

    /// The same repository with another tag and no digest. The tag must be valid.
    pub fn with_tag(&self, tag: &str) -> Result<Self> {
        check_tag(tag)?;
        let mut out = self.clone();
        out.tag = Some(tag.to_owned());
        out.digest = None;
        Ok(out)
    }

    /// The same repository with a digest and no tag.
    pub fn with_digest(&self, digest: Digest) -> Self {
        let mut out = self.clone();
        out.tag = None;
        out.digest = Some(digest);
        out
    }

    /// Registry and repository without tag and digest, as people write it (`debian`, `user/app`).
    pub fn familiar_name(&self) -> String {
        if self.registry == DEFAULT_REGISTRY {
            self.repository.strip_prefix("library/").unwrap_or(&self.repository).to_owned()
        } else {
            format!("{}/{}", self.registry, self.repository)
        }
    }

    /// The whole name as people write it: without `docker.io/library/`, with the tag or digest.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    /// The host and port to connect to (`registry-1.docker.io` stands behind `docker.io`).
    pub fn endpoint(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { &self.registry }
    }

    /// Whether the registry is on this machine, where plain HTTP is allowed unasked.
    pub fn is_loopback(&self) -> bool {
        let host = match self.registry.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default(),
            None => self.registry.split(':').next().unwrap_or_default(),
        };
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Whether a tag, or a whole name, means this one among the names in an archive.
    pub fn goes_by(&self, wanted: &str) -> bool {
        self.tag() == Some(wanted)
            || wanted.parse::<Reference>().is_ok_and(|w| w.normalized() == self.normalized())
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name = name + ":" + tag;
        }
        if let Some(digest) = &self.digest {
            name = format!("{name}@{digest}");
        }
        name
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: String| {
            Error::new(format!("invalid image name '{text}': {why}")).with_hint(
                "an image name is written [registry/]name[:tag][@sha256:digest], for example debian:12",
            )
        };
        let bare = text.strip_prefix("docker://").unwrap_or(text);
        let (rest, digest) = match bare.split_once('@') {
            Some((rest, d)) => (rest, Some(d.parse::<Digest>().map_err(|e| bad(e.to_string()))?)),
            None => (bare, None),
        };
        // A colon after the last slash separates the tag; one before it belongs to a port.
        let (name, tag) = match rest.rfind(':') {
            Some(colon) if !rest[colon..].contains('/') => (&rest[..colon], Some(&rest[colon + 1..])),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag).map_err(|_| bad(format!("'{tag}' is not a valid tag")))?;
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path))
                if first.contains(['.', ':', '['])
                    || first == "localhost"
                    || first.chars().any(|c| c.is_ascii_uppercase()) =>
            {
                check_host(first).map_err(&bad)?;
                let first = if matches!(first, "index.docker.io" | "registry-1.docker.io") {
                    DEFAULT_REGISTRY
                } else {
                    first
                };
                (first, path)
            }
            _ => (DEFAULT_REGISTRY, name),
        };
        if name.is_empty() || path.is_empty() {
            return Err(bad("the name is empty".into()));
        }
        if name.len() > NAME_LIMIT {
            return Err(bad(format!("the name is longer than {NAME_LIMIT} characters")));
        }
        if tag.is_none()
            && digest.is_none()
            && path.len() == 64
            && path.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(bad("64 hexadecimal characters would be taken for an image ID".into()));
        }
        for component in path.split('/') {
            check_component(component).map_err(&bad)?;
        }
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        Ok(Reference { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }
}

fn check_tag(tag: &str) -> Result<()> {
    let first = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let rest = |b: u8| first(b) || b == b'.' || b == b'-';
    let bytes = tag.as_bytes();
    if !bytes.is_empty() && bytes.len() <= TAG_LIMIT && first(bytes[0]) && bytes.iter().all(|b| rest(*b)) {
        return Ok(());
    }
    Err(Error::new(format!("invalid tag '{tag}'")).with_hint(
        "a tag has at most 128 letters, digits, '_', '.' and '-', and starts with none of the last two",
    ))
}

fn check_host(host: &str) -> std::result::Result<(), String> {
    let bad = || Err(format!("'{host}' is not a valid registry host"));
    let (name, port) = if let Some(v6) = host.strip_prefix('[') {
        let Some((address, after)) = v6.split_once(']') else { return bad() };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return bad();
        }
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return bad(),
        }
    } else {
        match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        }
    };
    if port.is_some_and(|p| p.parse::<u16>().is_err() || !p.bytes().all(|b| b.is_ascii_digit())) {
        return bad();
    }
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if name.is_some_and(|n| !n.split('.').all(label)) {
        return bad();
    }
    Ok(())
}

/// `[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*`
fn check_component(component: &str) -> std::result::Result<(), String> {
    if component.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("'{component}' has upper-case letters, and repository names are lower case"));
    }
    let bad = || Err(format!("'{component}' is not a valid path component"));
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let mut i = 0;
    loop {
        let word = bytes[i..].iter().take_while(|b| alnum(**b)).count();
        if word == 0 {
            return bad();
        }
        i += word;
        if i == bytes.len() {
            return Ok(());
        }
        let separators = bytes[i..].iter().take_while(|b| !alnum(**b)).count();
        match &bytes[i..i + separators] {
            b"." | b"_" | b"__" => {}
            dashes if dashes.iter().all(|b| *b == b'-') => {}
            _ => return bad(),
        }
        i += separators;
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(format!("{}/{}", self.registry, self.repository)))
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_rules() {
        let hex = "a".repeat(64);
        for (text, full, familiar) in [
            ("debian", "docker.io/library/debian", "debian"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("docker://debian:12", "docker.io/library/debian:12", "debian:12"),
            ("user/app:tag", "docker.io/user/app:tag", "user/app:tag"),
            ("docker.io/debian", "docker.io/library/debian", "debian"),
            ("index.docker.io/library/debian", "docker.io/library/debian", "debian"),
            ("localhost/x", "localhost/x", "localhost/x"),
            ("localhost:5000/x:1", "localhost:5000/x:1", "localhost:5000/x:1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c"),
            ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
            ("ghcr.io/a/b_c__d-e--f.g", "ghcr.io/a/b_c__d-e--f.g", "ghcr.io/a/b_c__d-e--f.g"),
            ("Host/x", "Host/x", "Host/x"),
        ] {
            let r = Reference::parse(text).unwrap();
            assert_eq!(r.to_string(), full, "{text}");
            assert_eq!(r.familiar(), familiar, "{text}");
            assert_eq!(Reference::parse(full).unwrap(), r, "{text}");
        }
        let pinned = Reference::parse(&format!("debian:12@sha256:{hex}")).unwrap();
        assert_eq!(pinned.tag(), Some("12"));
        assert_eq!(pinned.digest().unwrap().hex(), hex);
        assert_eq!(Reference::parse(&format!("x@sha256:{hex}")).unwrap().tag_or_default(), None);
        assert_eq!(Reference::parse("x").unwrap().normalized().familiar(), "x:latest");
    }

    #[test]
    fn bad_names() {
        let long = "a".repeat(256);
        for bad in [
            "",
            ":",
            "@",
            "/",
            "a/",
            "/a",
            "a//b",
            "Debian",
            "a:",
            "a:-x",
            "a b",
            "a:x y",
            "a@sha256:abc",
            "../a",
            "a/../b",
            "a___b",
            "a..b",
            "-a",
            "a-",
            "host:port/x",
            "host:99999/x",
            "[::1/x",
            "http://a/b",
            "docker://",
            "a:b:c",
            "é",
            &long,
            &"f".repeat(64),
            &format!("a:{}", "t".repeat(129)),
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn loopback_registries() {
        for (text, yes) in [
            ("localhost:5000/x", true),
            ("127.0.0.1:5000/x", true),
            ("127.9.9.9/x", true),
            ("[::1]:1/x", true),
            ("debian", false),
            ("localhost.example.org/x", false),
            ("10.0.0.1:5000/x", false),
        ] {
            assert_eq!(Reference::parse(text).unwrap().is_loopback(), yes, "{text}");
        }
    }
}
