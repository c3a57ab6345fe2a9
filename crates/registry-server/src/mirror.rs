//! Repositories that are another registry's: what is asked for is fetched once, kept, and served from here.
//!
//! A tag is believed for a while; then the upstream is asked with HEAD, which counts as no pull, and where it does not
//! answer, what is here is served. The upstream is asked without credentials, so nobody gets what only somebody else
//! may have. Only blobs are fetched that a manifest here names.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use isles_registry::{Client, ClientOptions, Credentials, Registries, retry};
use isles_spec::{Algorithm, Digest, Reference};
use isles_store::{Hosted, NewManifest, Store, is_tag};

use crate::config::MirrorConfig;

const FRESH: Duration = Duration::from_secs(300);
/// What the upstream lacked is not asked for again for so long.
const MISSING: Duration = Duration::from_secs(60);
const MOST_MISSING: usize = 10_000;
/// An upstream that is silent for so long counts as gone.
const STALL: Duration = Duration::from_secs(10);
/// Bytes of a blob.
const LIMIT: u64 = 256 << 30;

/// All mirrors of a server.
pub struct Mirrors {
    mirrors: Vec<MirrorConfig>,
    client: Client,
    /// What is being fetched.
    flights: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    missing: Mutex<HashMap<String, Instant>>,
}

impl Mirrors {
    pub fn new(mirrors: &[MirrorConfig]) -> Mirrors {
        let retry = retry::Policy {
            retries: 1,
            backoff: Duration::from_millis(200),
            patience: Duration::from_secs(2),
        };
        let options = ClientOptions {
            credentials: Credentials::none(),
            registries: Some(Registries::default()),
            retry,
            stall: STALL,
            ..ClientOptions::default()
        };
        let client = Client::new(options);
        Mirrors { mirrors: mirrors.to_vec(), client, flights: Mutex::default(), missing: Mutex::default() }
    }

    /// The mirror of a repository, and the repository that it mirrors.
    fn of(&self, repository: &str) -> Option<(&MirrorConfig, Reference)> {
        self.mirrors.iter().find_map(|mirror| {
            let rest = match mirror.prefix.as_str() {
                "" => repository,
                prefix => repository.strip_prefix(prefix)?.strip_prefix('/')?,
            };
            Some((mirror, Reference::parse(&format!("{}/{rest}", mirror.upstream)).ok()?))
        })
    }

    /// Whether a repository is another registry's.
    pub fn has(&self, repository: &str) -> bool {
        self.of(repository).is_some()
    }

    /// Sees to it, as far as it can, that a manifest of a mirrored repository is here, and that a tag is not too old.
    pub fn manifest(&self, store: &Store, hosted: &Hosted, name: &str) {
        let Some((mirror, upstream)) = self.of(hosted.name()) else { return };
        if mirror.offline {
            return;
        }
        let key = format!("{}:{name}", hosted.name());
        if self.current(mirror, hosted, name) || self.is_missing(&key) {
            return;
        }
        self.alone(&key, || {
            if !self.current(mirror, hosted, name) && self.fetch(store, hosted, &upstream, name).is_none() {
                self.note_missing(&key);
            }
        });
    }

    /// Whether what is here need not be asked for.
    fn current(&self, mirror: &MirrorConfig, hosted: &Hosted, name: &str) -> bool {
        if let Ok(digest) = name.parse::<Digest>() {
            return matches!(hosted.manifest(&digest), Ok(Some(_)));
        }
        let here =
            matches!(hosted.tag(name), Ok(Some(digest)) if matches!(hosted.manifest(&digest), Ok(Some(_))));
        let age = hosted.tagged(name).and_then(|t| t.elapsed().ok());
        here && age.is_some_and(|age| age < mirror.fresh.unwrap_or(FRESH))
    }

    /// Fetches a manifest. Nothing where that could not be done.
    fn fetch(&self, store: &Store, hosted: &Hosted, upstream: &Reference, name: &str) -> Option<()> {
        let (reference, tags) = match name.parse::<Digest>() {
            Ok(digest) => (upstream.with_digest(digest), vec![]),
            Err(_) if is_tag(name) => (upstream.with_tag(name).ok()?, vec![name]),
            Err(_) => return None,
        };
        if let [tag] = tags.as_slice()
            && let Some(known) = hosted.tag(tag).ok()?
            && let Some(manifest) = hosted.manifest(&known).ok()?
            && self.client.head_manifest(&reference).ok()?.digest == known
        {
            // Nothing changed: the tag is as good as new.
            let bytes = store.read_document(&known).ok()?;
            let same =
                NewManifest { bytes: &bytes, media_type: &manifest.media_type, digest: &known, tags: &tags };
            return hosted.put_manifest(&same).ok().map(drop);
        }
        let found = self.client.manifest(&reference).ok()?;
        let new = NewManifest {
            bytes: &found.bytes,
            media_type: &found.media_type,
            digest: &found.digest,
            tags: &tags,
        };
        hosted.put_manifest(&new).ok().map(drop)
    }

    /// Sees to it, as far as it can, that a blob of a mirrored repository is here.
    pub fn blob(&self, hosted: &Hosted, digest: &str) {
        let Some((mirror, upstream)) = self.of(hosted.name()) else { return };
        let Ok(digest) = digest.parse::<Digest>() else { return };
        let key = format!("{}@{digest}", hosted.name());
        if hosted.blob(&digest).is_some() || self.is_missing(&key) || !is_named(hosted, &digest) {
            return;
        }
        self.alone(&key, || {
            // The store may have it for another repository, or as part of an image.
            if hosted.blob(&digest).is_some()
                || matches!(hosted.adopt(&digest), Ok(Some(_)))
                || mirror.offline
            {
                return;
            }
            if self.fetch_blob(hosted, &upstream, &digest).is_none() {
                self.note_missing(&key);
            }
        });
    }

    fn fetch_blob(&self, hosted: &Hosted, upstream: &Reference, digest: &Digest) -> Option<()> {
        let mut upload = hosted.start_upload(Algorithm::Sha256).ok()?;
        let id = upload.id().to_owned();
        let fetched = self.client.blob(upstream, digest, LIMIT, &mut upload);
        let kept = fetched.ok().and_then(|_| upload.finish(digest).ok());
        if kept.is_none() {
            let _ = hosted.cancel_upload(&id);
        }
        kept.map(drop)
    }

    /// Does some work while nobody else in this process does work of the same name.
    fn alone(&self, key: &str, work: impl FnOnce()) {
        let flights = || self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let flight = flights().entry(key.to_owned()).or_default().clone();
        {
            let _turn = flight.lock().unwrap_or_else(PoisonError::into_inner);
            work();
        }
        let mut flights = flights();
        // Two hold it: the map and this one.
        if Arc::strong_count(&flight) <= 2 {
            flights.remove(key);
        }
    }

    fn is_missing(&self, key: &str) -> bool {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.get(key).is_some_and(|at| at.elapsed() < MISSING)
    }

    fn note_missing(&self, key: &str) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.len() >= MOST_MISSING {
            missing.clear();
        }
        missing.insert(key.to_owned(), Instant::now());
    }
}

/// Whether a manifest of the repository names a blob.
fn is_named(hosted: &Hosted, digest: &Digest) -> bool {
    let manifests = hosted.manifests().unwrap_or_default();
    manifests.iter().any(|m| matches!(hosted.manifest(m), Ok(Some(m)) if m.blobs.contains(digest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_mirrored_repositories() {
        let mirror = |text: &str| text.parse::<MirrorConfig>().unwrap();
        let mirrors = Mirrors::new(&[mirror("hub=docker.io"), mirror("lab/mirror=r.example:5000/course")]);
        for (name, upstream) in [
            ("hub/debian", Some("docker.io/library/debian")),
            ("hub/a/b", Some("docker.io/a/b")),
            ("lab/mirror/x", Some("r.example:5000/course/x")),
            ("hub", None),
            ("hubris/x", None),
            ("other", None),
        ] {
            let found = mirrors.of(name).map(|(_, r)| format!("{}/{}", r.registry(), r.repository()));
            assert_eq!(found.as_deref(), upstream, "{name}");
        }
        assert!(Mirrors::new(&[mirror("docker.io")]).has("anything"));
        for bad in ["", "UP=docker.io", "hub=", "hub=library", "hub=docker.io/UP"] {
            assert!(bad.parse::<MirrorConfig>().is_err(), "{bad}");
        }
    }
}
