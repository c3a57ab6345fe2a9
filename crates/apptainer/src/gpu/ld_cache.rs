//! /etc/ld.so.cache: which libraries the host's loader knows, by name (glibc, `elf/cache.c` and
//! `sysdeps/generic/dl-cache.h`). Read in place of running ldconfig.

use std::path::PathBuf;

const NEW_MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const HEADER: usize = 48;
const ENTRY: usize = 24;
const OLD_ENTRY: usize = 12;

/// A library of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// As programs ask for it: `libcuda.so.1`.
    pub name: String,
    pub path: PathBuf,
}

/// All libraries of a cache, in its order; what does not make sense is left out.
pub fn parse(bytes: &[u8]) -> Vec<Known> {
    let Some(start) = start(bytes) else { return Vec::new() };
    let cache = &bytes[start..];
    let number = |at: usize| -> Option<usize> {
        let bytes: [u8; 4] = cache.get(at..at + 4)?.try_into().ok()?;
        // Byte order is the host's, as the cache is.
        usize::try_from(u32::from_ne_bytes(bytes)).ok()
    };
    let count = number(NEW_MAGIC.len()).unwrap_or(0).min(cache.len().saturating_sub(HEADER) / ENTRY);
    let text = |at: usize| -> Option<String> {
        let rest = cache.get(at..)?;
        let end = rest.iter().take(4096).position(|byte| *byte == 0)?;
        String::from_utf8(rest[..end].to_vec()).ok().filter(|text| !text.is_empty())
    };
    (0..count)
        .filter_map(|n| {
            let at = HEADER + n * ENTRY;
            Some(Known { name: text(number(at + 4)?)?, path: text(number(at + 8)?)?.into() })
        })
        .filter(|known| known.path.is_absolute())
        .collect()
}

/// Where the present form begins: at once, or behind the old form.
fn start(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(NEW_MAGIC) {
        return Some(0);
    }
    if !bytes.starts_with(OLD_MAGIC) {
        return None;
    }
    let count: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
    let length = usize::try_from(u32::from_ne_bytes(count)).ok()?.checked_mul(OLD_ENTRY)?.checked_add(16)?;
    let at = length.checked_next_multiple_of(8)?;
    bytes.get(at..)?.starts_with(NEW_MAGIC).then_some(at)
}

/// A cache for tests.
#[cfg(test)]
pub fn made(libraries: &[(&str, &str)]) -> Vec<u8> {
    let mut out = NEW_MAGIC.to_vec();
    out.extend((libraries.len() as u32).to_ne_bytes());
    out.resize(HEADER, 0);
    let mut strings = Vec::new();
    let base = HEADER + libraries.len() * ENTRY;
    for (name, path) in libraries {
        let key = base + strings.len();
        strings.extend([name.as_bytes(), b"\0"].concat());
        let value = base + strings.len();
        strings.extend([path.as_bytes(), b"\0"].concat());
        out.extend(0x0303u32.to_ne_bytes());
        out.extend((key as u32).to_ne_bytes());
        out.extend((value as u32).to_ne_bytes());
        out.extend([0; 12]);
    }
    out.extend(strings);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_in_both_forms() {
        let new = made(&[("libcuda.so.1", "/usr/lib/libcuda.so.1"), ("libodd.so", "relative")]);
        let expected = [Known { name: "libcuda.so.1".into(), path: "/usr/lib/libcuda.so.1".into() }];
        assert_eq!(parse(&new), expected);
        let mut old = OLD_MAGIC.to_vec();
        old.resize(12, 0);
        old.extend(1u32.to_ne_bytes());
        old.resize(32, 0);
        old.extend(&new);
        assert_eq!(parse(&old), expected);
    }

    #[test]
    fn damaged_caches_do_no_harm() {
        let good = made(&[("a.so", "/a.so"), ("b.so", "/b.so")]);
        for length in 0..good.len() {
            let _ = parse(&good[..length]);
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = 0xff;
            let _ = parse(&bad);
        }
        assert!(parse(b"").is_empty());
    }

    #[test]
    fn the_hosts_own_cache() {
        let Ok(bytes) = std::fs::read("/etc/ld.so.cache") else {
            println!("skip: this host has no /etc/ld.so.cache");
            return;
        };
        assert!(parse(&bytes).iter().any(|known| known.name == "libc.so.6"));
    }
}
