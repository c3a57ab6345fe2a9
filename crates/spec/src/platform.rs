//! Platforms, spelled `os/arch[/variant]` (OCI image-spec, image-index.md; normal forms of containerd).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The operating system and processor that an image is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

impl Platform {
    /// A platform without versions and features, in its normal form (`x86_64` is `amd64`,
    /// `aarch64` and `arm64/v8` are `arm64`).
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = os.to_ascii_lowercase();
        let architecture = architecture.to_ascii_lowercase();
        let variant = variant.map(str::to_ascii_lowercase).filter(|v| !v.is_empty());
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("i386" | "i486" | "i586" | "i686" | "x86", _) => ("386", None),
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", Some(v)) => ("amd64", Some(v)),
            ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
            ("aarch64" | "arm64", Some(v)) => ("arm64", Some(v)),
            ("armhf", _) => ("arm", Some("v7")),
            ("armel", _) => ("arm", Some("v6")),
            ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            ("powerpc64le" | "ppc64el", v) => ("ppc64le", v),
            (a, v) => (a, v),
        };
        Platform {
            architecture: architecture.to_owned(),
            os: if os == "macos" { "darwin".to_owned() } else { os },
            variant: variant.map(str::to_owned),
            os_version: None,
            os_features: Vec::new(),
        }
    }

    /// The platform that this program was built for.
    pub fn host() -> Self {
        Platform::new(std::env::consts::OS, std::env::consts::ARCH, None)
    }

    /// Whether an image for `other` serves a request for `self`: same system and processor, and the
    /// same variant where the request names one.
    pub fn accepts(&self, other: &Platform) -> bool {
        let want = Platform::new(&self.os, &self.architecture, self.variant.as_deref());
        let have = Platform::new(&other.os, &other.architecture, other.variant.as_deref());
        want.os == have.os
            && want.architecture == have.architecture
            && (want.variant == have.variant || (self.variant.is_none() && want.architecture != "arm"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = || {
            Error::new(format!("invalid platform '{s}'"))
                .with_hint("a platform is written os/arch or os/arch/variant, for example linux/amd64")
        };
        let parts: Vec<&str> = s.split('/').collect();
        let word = |p: &&str| {
            p.starts_with(|c: char| c.is_ascii_alphanumeric())
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        if !parts.iter().all(word) {
            return Err(bad());
        }
        match parts[..] {
            ["linux"] => Ok(Platform::host()),
            [arch] => Ok(Platform::new("linux", arch, None)),
            [os, arch] => Ok(Platform::new(os, arch, None)),
            [os, arch, variant] => Ok(Platform::new(os, arch, Some(variant))),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(v) => write!(f, "/{v}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_reach_one_normal_form() {
        for (text, normal) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("arm64", "linux/arm64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), normal, "{text}");
        }
        for bad in ["", "/", "linux/", "a/b/c/d", "linux/am d64", "../amd64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_request_without_a_variant_takes_any() {
        let amd64: Platform = "linux/amd64".parse().unwrap();
        assert!(amd64.accepts(&"linux/amd64/v2".parse().unwrap()));
        assert!(!amd64.accepts(&"linux/arm64".parse().unwrap()));
        assert!(!"linux/arm/v6".parse::<Platform>().unwrap().accepts(&"linux/arm/v7".parse().unwrap()));
    }
}
