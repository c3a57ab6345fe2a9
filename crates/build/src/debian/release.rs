//! The signed index of a suite, `InRelease`: who vouches for it, for how long, and what it vouches for
//! (DebianRepository/Format, "Release files").

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use isles_openpgp::{self as openpgp, Key, Verdict, cleartext};
use isles_spec::time::parse_date;

use super::control::field;
use super::error::{Error, Result};

/// InRelease files may have this many bytes; Debian's have some 150 kB.
pub const LIMIT: u64 = 16 << 20;
/// So far may the archive's clock be ahead of ours, in seconds.
const CLOCK_TOLERANCE: u64 = 3600;

/// A file that the index vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub sha256: [u8; 32],
    pub size: u64,
}

/// A verified index of a suite.
#[derive(Debug, Clone)]
pub struct Release {
    pub suite: String,
    pub codename: String,
    /// Seconds since 1970.
    pub date: u64,
    pub valid_until: Option<u64>,
    pub by_hash: bool,
    /// The `all` packages stand in each architecture's index too.
    pub all_included: bool,
    files: HashMap<String, Listed>,
}

/// How much the dates of an index count.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Seconds since 1970.
    pub now: u64,
    /// An index past its `Valid-Until` is refused.
    pub check_valid_until: bool,
}

impl Release {
    /// Verifies an `InRelease` file that came from `url` and reads it.
    ///
    /// # Errors
    /// No key of the keyring has signed it, or one has signed something else; it is for another suite; it
    /// has expired or comes from the future.
    pub fn verify(message: &[u8], url: &str, suite: &str, keyring: &[Key], clock: Clock) -> Result<Release> {
        let untrusted = |reason: String, hint| Error::Untrusted { url: url.to_owned(), reason, hint };
        let signed = cleartext::parse(message).map_err(|e| {
            untrusted(
                format!("it is not a signed index: {}", e.0),
                Some("a proxy or a login page may have answered instead of the mirror"),
            )
        })?;
        let mut good = false;
        let mut reasons = Vec::new();
        for signature in &signed.signatures {
            let issuer = signature.issuer_name();
            match signature.verify(keyring, &signed.canonical, clock.now) {
                Verdict::Good => good = true,
                Verdict::Bad => {
                    return Err(untrusted(
                        format!("the signature of {issuer} does not fit its text"),
                        Some("it was changed on its way, or the mirror is broken; use another one"),
                    ));
                }
                Verdict::Expired(_) => reasons.push(format!("the key {issuer} has expired")),
                Verdict::Revoked => reasons.push(format!("the key {issuer} has been revoked")),
                Verdict::Unknown => reasons.push(format!("no key {issuer} in the keyring")),
            }
        }
        if !good {
            let reason =
                if reasons.is_empty() { "it has no signature".to_owned() } else { reasons.join("; ") };
            return Err(untrusted(
                reason,
                Some("a newer keyring may have the key: --keyring FILE, or update debian-archive-keyring"),
            ));
        }
        let release = Release::parse(&signed.text, url)?;
        let names = [release.suite.as_str(), release.codename.as_str()];
        // Security suites call themselves `stable-security`, older ones `stable` with a label.
        if !names.contains(&suite) {
            return Err(untrusted(
                format!("it is for the suite {} ({}), not for {suite}", release.suite, release.codename),
                Some("check the mirror's path and the spelling of the suite"),
            ));
        }
        if release.date > clock.now.saturating_add(CLOCK_TOLERANCE) {
            return Err(untrusted("it is from the future".to_owned(), Some("check this machine's clock")));
        }
        if clock.check_valid_until && release.valid_until.is_some_and(|end| end < clock.now) {
            return Err(untrusted(
                "it has expired, so newer packages may be kept from you".to_owned(),
                Some("use a mirror that is up to date; for an archive of old states turn the check off"),
            ));
        }
        Ok(release)
    }

    fn parse(text: &str, url: &str) -> Result<Release> {
        let malformed = |reason: &str| Error::malformed(format!("'{url}'"), reason);
        let when = |name: &str| match field(text, name) {
            None => Ok(None),
            Some(value) => match parse_date(value, &["UTC", "GMT", "+0000", "Z"]) {
                Some(seconds) => Ok(Some(seconds)),
                None => Err(malformed(&format!("its {name} is not a date"))),
            },
        };
        let mut files = HashMap::new();
        for line in field(text, "SHA256").ok_or_else(|| malformed("it lists no SHA-256 hashes"))?.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(hash), Some(size), Some(path)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let (Some(sha256), Ok(size)) = (parse_hash(hash), size.parse()) else {
                return Err(malformed("a line of its SHA256 field is not hash, size and path"));
            };
            files.insert(path.to_owned(), Listed { sha256, size });
        }
        Ok(Release {
            suite: field(text, "Suite").unwrap_or_default().to_owned(),
            codename: field(text, "Codename").unwrap_or_default().to_owned(),
            date: when("Date")?.ok_or_else(|| malformed("it has no date"))?,
            valid_until: when("Valid-Until")?,
            by_hash: field(text, "Acquire-By-Hash").is_some_and(|v| v.eq_ignore_ascii_case("yes")),
            all_included: field(text, "No-Support-for-Architecture-all")
                .is_some_and(|v| v.contains("Packages")),
            files,
        })
    }

    /// A file that the index vouches for, by its path below the suite.
    pub fn file(&self, path: &str) -> Option<&Listed> {
        self.files.get(path)
    }
}

/// Reads 64 hexadecimal digits.
pub fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let bytes = text.as_bytes();
    if bytes.len() != 64 {
        return None;
    }
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    let mut hash = [0; 32];
    for (at, pair) in bytes.as_chunks::<2>().0.iter().enumerate() {
        hash[at] = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(hash)
}

/// The keys of the files given, or, with none, of the archive keyrings that this machine has.
pub fn keyring(files: &[PathBuf]) -> Result<Vec<Key>> {
    let found;
    let files = if files.is_empty() {
        found = host_keyrings(Path::new("/"));
        &found
    } else {
        files
    };
    let mut keys: Vec<Key> = Vec::new();
    for path in files {
        let reason = |reason: String| Error::Keyring { path: path.clone(), reason };
        let size = fs::metadata(path).map_err(|e| reason(e.to_string()))?.len();
        if size > openpgp::LIMIT as u64 {
            return Err(reason("it is too large".into()));
        }
        let bytes = fs::read(path).map_err(|e| reason(e.to_string()))?;
        for key in openpgp::keyring(&bytes).map_err(|e| reason(e.0.into()))? {
            match keys.iter_mut().find(|k| (k.primary, k.fingerprint) == (key.primary, key.fingerprint)) {
                Some(known) => known.revoked |= key.revoked,
                None => keys.push(key),
            }
        }
    }
    if keys.is_empty() { Err(Error::NoKeyring) } else { Ok(keys) }
}

/// Where Debian and its relatives keep the keys of their archives, below `root`.
fn host_keyrings(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut list = |dir: &str, wanted: &dyn Fn(&str) -> bool| {
        let Ok(entries) = fs::read_dir(root.join(dir)) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(wanted) && entry.path().is_file() {
                found.push(entry.path());
            }
        }
    };
    // Keys that an archive has given up stand in files named so.
    list("usr/share/keyrings", &|name| {
        name.contains("-archive-") && name.ends_with(".gpg") && !name.contains("removed")
    });
    list("etc/apt/trusted.gpg.d", &|name| name.ends_with(".gpg") || name.ends_with(".asc"));
    found.sort();
    found
}
