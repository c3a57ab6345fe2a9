//! One suite of an archive: its index kept and renewed, its lists of packages, its files.
//!
//! What was fetched stays in the store's cache: lists and packages by their SHA-256, which the signed index
//! names, and the index itself by its URL. An index is verified again each time it is used.

use std::fs;
use std::io::{self, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isles_openpgp::Key;
use isles_registry::web::{Validator, Web, Wish};
use isles_spec::{Digest, Progress};
use isles_store::{Memory, Store};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::compression;
use super::error::{Error, Result};
use super::release::{Clock, LIMIT, Listed, Release};

/// A list of packages may have this many bytes, decompressed; Debian's largest has 60 MB.
const LIST_LIMIT: u64 = 1 << 30;
/// So long a server may take to say whether its index has changed, where an older one is here.
const PATIENCE: Duration = Duration::from_secs(5);

/// An archive, or another place of packages, and one of its suites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub url: String,
    pub suite: String,
    pub components: Vec<String>,
}

/// How fresh an index must be.
#[derive(Debug, Clone, Copy)]
pub struct Freshness {
    /// An index that was asked for so recently is used without asking.
    pub max_age: Duration,
    /// Never ask while there is one.
    pub offline: bool,
}

/// A suite with its verified index.
pub struct Suite<'s> {
    store: &'s Store,
    web: &'s Web,
    pub place: Place,
    pub release: Release,
    /// The SHA-256 of the index.
    pub digest: [u8; 32],
}

/// What is kept beside an index.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// Seconds since 1970.
    asked: u64,
    etag: Option<String>,
    last_modified: Option<String>,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl<'s> Suite<'s> {
    /// Gets the index of a suite: the one that is here where it is fresh enough or the mirror cannot be
    /// reached, otherwise the mirror's.
    pub fn open(
        store: &'s Store,
        web: &'s Web,
        place: Place,
        keyring: &[Key],
        clock: Clock,
        freshness: Freshness,
        progress: &dyn Progress,
    ) -> Result<Suite<'s>> {
        let url = format!("{}/dists/{}/InRelease", place.url, place.suite);
        let known = known(store, &url).and_then(|(bytes, kept)| {
            let release = Release::verify(&bytes, &url, &place.suite, keyring, clock).ok()?;
            Some((bytes, release, kept))
        });
        let make = |bytes: &[u8], release, place| Suite {
            store,
            web,
            place,
            release,
            digest: Sha256::digest(bytes).into(),
        };
        let Some((old_bytes, old, kept)) = known else {
            let work = progress.begin(&url, None);
            let fetched = fetch_index(web, &url, Wish::default());
            progress.end(work, if fetched.is_ok() { "done" } else { "failed" });
            let (bytes, validator) = fetched?.ok_or_else(|| Error::Answer {
                url: url.clone(),
                reason: "the answer says that nothing changed, and nothing was here".into(),
            })?;
            let release = Release::verify(&bytes, &url, &place.suite, keyring, clock)?;
            keep(store, &url, &bytes, validator)?;
            return Ok(make(&bytes, release, place));
        };
        let age = clock.now.saturating_sub(kept.asked);
        if freshness.offline || age < freshness.max_age.as_secs() {
            return Ok(make(&old_bytes, old, place));
        }
        let validator = Validator { etag: kept.etag, last_modified: kept.last_modified };
        let wish = Wish { known: Some(&validator), within: Some(PATIENCE), ..Wish::default() };
        match fetch_index(web, &url, wish) {
            Ok(None) => {
                keep(store, &url, &old_bytes, validator)?;
                Ok(make(&old_bytes, old, place))
            }
            Ok(Some((bytes, validator))) => {
                let release = Release::verify(&bytes, &url, &place.suite, keyring, clock)?;
                if release.date < old.date {
                    return Err(Error::Untrusted {
                        url,
                        reason: "it is older than the one that was here before".into(),
                        hint: Some("the mirror lags behind or someone replays an old state; use another one"),
                    });
                }
                keep(store, &url, &bytes, validator)?;
                Ok(make(&bytes, release, place))
            }
            Err(e) => {
                let work = progress.begin(&url, None);
                progress.end(work, &format!("not reachable, so the index from before is used: {e}"));
                Ok(make(&old_bytes, old, place))
            }
        }
    }

    /// The list of packages of one component, as text.
    pub fn packages(&self, component: &str, architecture: &str, progress: &dyn Progress) -> Result<String> {
        let path = format!("{component}/binary-{architecture}/Packages");
        // gzip is a third larger than xz and is read three times as fast.
        let found = [".zst", ".gz", ".xz", ""].iter().find_map(|extension| {
            let path = format!("{path}{extension}");
            self.release.file(&path).map(|listed| (path, listed))
        });
        let (path, listed) = found.ok_or_else(|| Error::NotServed {
            suite: self.place.suite.clone(),
            url: self.place.url.clone(),
            what: format!("component {component} on {architecture}"),
        })?;
        let plain = self.release.file(&format!("{component}/binary-{architecture}/Packages"));
        let url = if self.release.by_hash {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let hash = isles_spec::digest::hex(&listed.sha256);
            format!("{}/dists/{}/{folder}/by-hash/SHA256/{hash}", self.place.url, self.place.suite)
        } else {
            format!("{}/dists/{}/{path}", self.place.url, self.place.suite)
        };
        let file = self.list(&url, &path, listed, progress)?;
        let expect = plain.map_or(listed.size.saturating_mul(5), |p| p.size);
        let bytes = compression::read_all(file, LIST_LIMIT, expect)
            .map_err(|e| Error::malformed(format!("'{url}'"), e.to_string()))?
            .ok_or_else(|| Error::Limit {
                object: format!("'{url}'"),
                what: "the list",
                limit: LIST_LIMIT,
            })?;
        String::from_utf8(bytes).map_err(|_| Error::malformed(format!("'{url}'"), "it is not UTF-8"))
    }

    /// Whether a file is in the cache.
    pub fn has(&self, listed: &Listed) -> Result<bool> {
        Ok(self.store.download(&Digest::sha256(&listed.sha256))?.is_some())
    }

    /// A file that the index vouches for, shown under its name in the index.
    fn list(&self, url: &str, name: &str, listed: &Listed, progress: &dyn Progress) -> Result<fs::File> {
        if let Some(file) = self.store.download(&Digest::sha256(&listed.sha256))? {
            return Ok(file);
        }
        let work = progress.begin(name, Some(listed.size));
        let result = self.part(url, listed, progress, work);
        progress.end(work, if result.is_ok() { "done" } else { "failed" });
        result
    }

    /// A file of the archive that the index vouches for, from the cache or the mirror, as a part of some work.
    pub fn part(&self, url: &str, listed: &Listed, progress: &dyn Progress, work: u64) -> Result<fs::File> {
        let digest = Digest::sha256(&listed.sha256);
        if let Some(file) = self.store.download(&digest)? {
            return Ok(file);
        }
        let mut stream = Resuming {
            web: self.web,
            url,
            position: 0,
            size: listed.size,
            reader: None,
            attempt: 0,
            progress,
            work,
            failure: None,
        };
        let result = self.store.put_download(&digest, &mut stream, listed.size);
        match (result, stream.failure) {
            (Ok(file), _) => Ok(file),
            (Err(_), Some(failure)) => Err(failure),
            (Err(isles_store::Error::WrongDigest { actual, expected, .. }), None) => Err(Error::WrongHash {
                object: format!("'{url}'"),
                expected: expected.hex().to_owned(),
                actual: actual.hex().to_owned(),
            }),
            (Err(isles_store::Error::Limit { .. }), None) => Err(Error::Answer {
                url: url.to_owned(),
                reason: format!("it is longer than the {} bytes that the index says", listed.size),
            }),
            (Err(e), None) => Err(e.into()),
        }
    }
}

/// What an index from a URL and what is known of it are called in the cache.
fn cache_names(url: &str) -> (String, String) {
    let name = isles_spec::digest::hex(&Sha256::digest(url.as_bytes()));
    let beside = format!("{name}.json");
    (name, beside)
}

/// The index that is kept of a URL. What cannot be read is as good as nothing.
fn known(store: &Store, url: &str) -> Option<(Vec<u8>, Kept)> {
    let (name, beside) = cache_names(url);
    let bytes = store.remembered(Memory::Indices, &name).ok()??;
    let kept = store.remembered(Memory::Indices, &beside).ok()??;
    Some((bytes, serde_json::from_slice(&kept).ok()?))
}

fn fetch_index(web: &Web, url: &str, wish: Wish<'_>) -> Result<Option<(Vec<u8>, Validator)>> {
    let fetch = |source| Error::Fetch { url: url.to_owned(), source: Box::new(source) };
    let answer = web.get(url, wish).map_err(fetch)?;
    match answer.status {
        200 => {
            let validator = answer.validator.clone();
            let bytes = answer
                .bytes(LIMIT)
                .map_err(|e| Error::Answer { url: url.to_owned(), reason: e.to_string() })?
                .ok_or_else(|| Error::Limit {
                    object: format!("'{url}'"),
                    what: "the index",
                    limit: LIMIT,
                })?;
            Ok(Some((bytes, validator)))
        }
        304 => Ok(None),
        404 => Err(Error::Answer {
            url: url.to_owned(),
            reason: "the mirror has no such suite, or none with a signed index".into(),
        }),
        status => Err(Error::Answer { url: url.to_owned(), reason: format!("status {status}") }),
    }
}

/// Keeps an index. A crash leaves the old one or the new one; the little file beside it is renewed after it.
fn keep(store: &Store, url: &str, bytes: &[u8], validator: Validator) -> Result<()> {
    let kept = Kept { asked: now(), etag: validator.etag, last_modified: validator.last_modified };
    let json = serde_json::to_vec(&kept).unwrap_or_default();
    let (name, beside) = cache_names(url);
    store.remember(Memory::Indices, &name, bytes)?;
    Ok(store.remember(Memory::Indices, &beside, &json)?)
}

/// A download that goes on where the connection broke.
struct Resuming<'a> {
    web: &'a Web,
    url: &'a str,
    position: u64,
    size: u64,
    reader: Option<Box<dyn Read>>,
    attempt: u32,
    progress: &'a dyn Progress,
    work: u64,
    failure: Option<Error>,
}

impl Resuming<'_> {
    fn open(&mut self) -> Result<Box<dyn Read>> {
        let wish = Wish { from: self.position, ..Wish::default() };
        let answer = self
            .web
            .get(self.url, wish)
            .map_err(|source| Error::Fetch { url: self.url.to_owned(), source: Box::new(source) })?;
        let skip = match answer.status {
            200 => self.position,
            206 => 0,
            404 => {
                let reason = "the mirror does not have it; it may be in the middle of an update".into();
                return Err(Error::Answer { url: self.url.to_owned(), reason });
            }
            status => {
                return Err(Error::Answer { url: self.url.to_owned(), reason: format!("status {status}") });
            }
        };
        let mut reader = answer.reader();
        io::copy(&mut reader.by_ref().take(skip), &mut io::sink())
            .map_err(|e| Error::Answer { url: self.url.to_owned(), reason: e.to_string() })?;
        Ok(Box::new(reader))
    }
}

impl Read for Resuming<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.reader.is_none() {
                match self.open() {
                    Ok(reader) => self.reader = Some(reader),
                    Err(e) => {
                        let text = e.to_string();
                        self.failure = Some(e);
                        return Err(io::Error::other(text));
                    }
                }
            }
            let Some(reader) = &mut self.reader else { continue };
            let cause = match reader.read(out) {
                Ok(0) if self.position < self.size && !out.is_empty() => "it ended too early".to_owned(),
                Ok(n) => {
                    self.position += n as u64;
                    if n > 0 && std::mem::take(&mut self.attempt) > 0 {
                        self.progress.status(self.work, "");
                    }
                    self.progress.advance(self.work, n as u64);
                    return Ok(n);
                }
                Err(e) => e.to_string(),
            };
            self.reader = None;
            self.attempt += 1;
            let Some(wait) = self.web.retry().wait_before(self.attempt) else {
                self.failure = Some(Error::Answer { url: self.url.to_owned(), reason: cause.clone() });
                return Err(io::Error::other(cause));
            };
            let name = self.url.rsplit('/').next().unwrap_or(self.url);
            self.progress.status(self.work, &format!("retry {} of {name}: {cause}", self.attempt));
            std::thread::sleep(wait);
        }
    }
}
