//! Repositories that are another registry's: what is asked for is fetched once, kept, and served from here.
//!
//! A tag is believed for a while; then the upstream is asked with HEAD, which counts as no pull, and where it does not
//! answer soon, what is here is served. The upstream is asked without a login unless the configuration has one, and
//! says for whom; so nobody gets what only somebody else may have. Only blobs are fetched that a manifest here names.
//! A blob that the store has already is given only when the upstream has it too.

mod flight;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use isles_registry::{Client, ClientOptions, Credentials, Error as Upstream, Login, Registries, retry};
use isles_spec::image::{Index, media_type};
use isles_spec::{Digest, Platform, Reference};
use isles_store::{Hosted, NewManifest, Store, is_tag};

use crate::config::MirrorConfig;
use crate::reply::Reply;
use crate::{Error, Result};

pub use flight::Flight;
use flight::State;

const FRESH: Duration = Duration::from_secs(300);
/// What the upstream lacked, or refused, is not asked for again for so long.
const MISSING: Duration = Duration::from_secs(60);
const MOST_MISSING: usize = 10_000;
/// An upstream that is silent for so long counts as gone.
const STALL: Duration = Duration::from_secs(10);
/// So long is waited for an upstream where there is an older answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a blob.
const LIMIT: u64 = 256 << 30;
const PASSWORD_LIMIT: u64 = 64 << 10;

/// All mirrors of a server.
pub struct Mirrors {
    mirrors: Vec<Arc<Mirror>>,
    /// What is being asked for.
    turns: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// Blobs that are being fetched.
    flights: Arc<Mutex<HashMap<String, Arc<Flight>>>>,
    missing: Mutex<HashMap<String, (Instant, Missing)>>,
}

struct Mirror {
    config: MirrorConfig,
    client: Client,
}

/// Why something could not be had.
#[derive(Debug, Clone)]
enum Missing {
    /// There is none.
    Absent,
    /// The upstream takes no more requests for now.
    Limited(Option<Duration>),
    /// It does not answer, or not as it should.
    Away(String),
}

impl Missing {
    fn of(error: &Upstream) -> Missing {
        match error {
            Upstream::NotFound { .. } | Upstream::Unauthorized { .. } | Upstream::Denied { .. } => {
                Missing::Absent
            }
            Upstream::TooManyRequests { retry_after, .. } => Missing::Limited(*retry_after),
            other => Missing::Away(other.to_string()),
        }
    }

    /// For how long it is not asked for again.
    fn lasts(&self) -> Duration {
        match self {
            Missing::Limited(Some(wait)) => MISSING.max((*wait).min(MISSING * 60)),
            _ => MISSING,
        }
    }

    /// What whoever asks is told, where there is no older answer. Nothing where the usual answer says it.
    fn told(&self) -> std::result::Result<(), Reply> {
        match self {
            Missing::Absent => Ok(()),
            Missing::Limited(wait) => {
                let seconds = wait.map_or(MISSING, |w| w).as_secs().max(1).to_string();
                let text = "the registry that is mirrored takes no more requests for now";
                Err(Reply::error(429, "TOOMANYREQUESTS", text).with("retry-after", seconds))
            }
            Missing::Away(_) => Err(Reply::error(
                502,
                "UNKNOWN",
                "the registry that is mirrored does not answer as it should",
            )),
        }
    }
}

/// A blob of a mirrored repository, as far as a mirror has to do with it.
pub enum Fetched {
    /// It is here, or nobody has it.
    AsItIs,
    Coming(Arc<Flight>),
}

impl Mirrors {
    pub fn new(mirrors: &[MirrorConfig]) -> Result<Mirrors> {
        let mirrors = mirrors.iter().map(|config| Mirror::new(config).map(Arc::new));
        Ok(Mirrors {
            mirrors: mirrors.collect::<Result<_>>()?,
            turns: Mutex::default(),
            flights: Arc::default(),
            missing: Mutex::default(),
        })
    }

    /// The mirror of a repository, and the repository that it mirrors.
    fn of(&self, repository: &str) -> Option<(&Arc<Mirror>, Reference)> {
        self.mirrors.iter().find_map(|mirror| {
            let rest = match mirror.config.prefix.as_str() {
                "" => repository,
                prefix => repository.strip_prefix(prefix)?.strip_prefix('/')?,
            };
            Some((mirror, Reference::parse(&format!("{}/{rest}", mirror.config.upstream)).ok()?))
        })
    }

    /// What a repository of the registry `namespace` is called here: containerd names the registry that it means in the
    /// parameter `ns`. Nothing where that is no registry that is mirrored.
    pub fn here(&self, namespace: &str, repository: &str) -> Option<String> {
        let wanted = Reference::parse(&format!("{namespace}/{repository}")).ok()?;
        self.mirrors.iter().find_map(|mirror| {
            let config = &mirror.config;
            let all = Reference::parse(&format!("{}/x", config.upstream)).ok()?;
            let above = all.repository().rsplit_once('/').map_or("", |(above, _)| above);
            // `docker.io/x` is `docker.io/library/x` spelled out.
            let above = if config.upstream.contains('/') { above } else { "" };
            if all.registry() != wanted.registry() {
                return None;
            }
            let rest = match above {
                "" => wanted.repository(),
                above => wanted.repository().strip_prefix(above)?.strip_prefix('/')?,
            };
            Some(if config.prefix.is_empty() { rest.to_owned() } else { format!("{}/{rest}", config.prefix) })
        })
    }

    /// Whether a repository is another registry's.
    pub fn has(&self, repository: &str) -> bool {
        self.of(repository).is_some()
    }

    /// Sees to it, as far as it can, that a manifest of a mirrored repository is here, and that a tag is not too old.
    ///
    /// # Errors
    /// What to answer, where there is nothing here and the upstream cannot be asked.
    pub fn manifest(&self, store: &Store, hosted: &Hosted, name: &str) -> std::result::Result<(), Reply> {
        let Some((mirror, upstream)) = self.of(hosted.name()) else { return Ok(()) };
        if mirror.config.offline || mirror.current(hosted, name) {
            return Ok(());
        }
        let key = format!("{}:{name}", hosted.name());
        let here = is_here(hosted, name);
        if let Some(missing) = self.is_missing(&key) {
            return if here { Ok(()) } else { missing.told() };
        }
        self.alone(&key, || {
            if mirror.current(hosted, name) {
                return Ok(());
            }
            if let Some(missing) = self.is_missing(&key) {
                return if here { Ok(()) } else { missing.told() };
            }
            let done = if here {
                // Whoever has an older answer does not wait for long; the new one is for the next who ask.
                let (told, done) = mpsc::channel();
                let (mirror, store, hosted) = (mirror.clone(), store.clone(), hosted.clone());
                let name = name.to_owned();
                std::thread::spawn(move || told.send(mirror.fetch(&store, &hosted, &upstream, &name)));
                done.recv_timeout(PATIENCE).unwrap_or(Err(Missing::Away("no answer in time".into())))
            } else {
                mirror.fetch(store, hosted, &upstream, name)
            };
            match done {
                Ok(()) => Ok(()),
                Err(missing) => {
                    self.note_missing(&key, &missing);
                    if here { Ok(()) } else { missing.told() }
                }
            }
        })
    }

    /// Sees to it, as far as it can, that a blob of a mirrored repository is here, or on its way.
    ///
    /// # Errors
    /// What to answer, where the upstream cannot be asked.
    pub fn blob(&self, hosted: &Hosted, digest: &str) -> std::result::Result<Fetched, Reply> {
        let Some((mirror, upstream)) = self.of(hosted.name()) else { return Ok(Fetched::AsItIs) };
        let Ok(digest) = digest.parse::<Digest>() else { return Ok(Fetched::AsItIs) };
        let key = format!("{}@{digest}", hosted.name());
        let here = || hosted.blob(&digest).is_some();
        if here() || mirror.config.offline || !is_named(hosted, &digest) {
            return Ok(Fetched::AsItIs);
        }
        self.alone(&key, || {
            if let Some(flight) = self.flights().get(&key) {
                return Ok(Fetched::Coming(flight.clone()));
            }
            if let Some(missing) = self.is_missing(&key) {
                return missing.told().map(|()| Fetched::AsItIs);
            }
            if here() {
                return Ok(Fetched::AsItIs);
            }
            let size = match mirror.client.blob_size(&upstream, &digest) {
                Ok(size) if size <= LIMIT => size,
                Ok(_) => return Ok(Fetched::AsItIs),
                Err(e) => {
                    let missing = Missing::of(&e);
                    self.note_missing(&key, &missing);
                    return missing.told().map(|()| Fetched::AsItIs);
                }
            };
            // The store may have it for another repository, or as part of an image. That the upstream has it too is
            // known by now, so nothing is given that is somebody's alone.
            if matches!(hosted.adopt(&digest), Ok(Some(_))) {
                return Ok(Fetched::AsItIs);
            }
            self.begin(mirror, hosted, &upstream, &digest, size, &key)
        })
    }

    /// Begins to fetch a blob, on a thread of its own. Waits where another process fetches it.
    fn begin(
        &self,
        mirror: &Arc<Mirror>,
        hosted: &Hosted,
        upstream: &Reference,
        digest: &Digest,
        size: u64,
        key: &str,
    ) -> std::result::Result<Fetched, Reply> {
        let failed = |e: isles_store::Error| crate::handle::failed(&e);
        let mut upload = hosted.fetching(digest).map_err(failed)?;
        if hosted.blob(digest).is_some() {
            let _ = hosted.cancel_upload(upload.id());
            return Ok(Fetched::AsItIs);
        }
        if upload.size() > size {
            let _ = hosted.cancel_upload(upload.id());
            upload = hosted.fetching(digest).map_err(failed)?;
        }
        let flight = Arc::new(Flight::new(upload.reader().map_err(failed)?, size, upload.size()));
        self.flights().insert(key.to_owned(), flight.clone());
        let (mirror, upstream, digest) = (mirror.clone(), upstream.clone(), digest.clone());
        let (flights, key, told) = (self.flights.clone(), key.to_owned(), flight.clone());
        std::thread::spawn(move || {
            let begun = upload.size();
            let fetched = mirror.client.blob(&upstream, &digest, size, begun, &mut |bytes| {
                use std::io::Write as _;
                upload.write_all(bytes)?;
                told.tell(State::Coming(upload.size()));
                Ok(())
            });
            // What has come of a download that broke stays, and the next one goes on with it.
            let kept = fetched.is_ok() && upload.finish(&digest).is_ok();
            flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            told.tell(if kept { State::Whole } else { State::Failed });
        });
        Ok(Fetched::Coming(flight))
    }

    fn flights(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does some work while nobody else in this process does work of the same name.
    fn alone<T>(&self, key: &str, work: impl FnOnce() -> T) -> T {
        let turns = || self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = turns().entry(key.to_owned()).or_default().clone();
        let done = {
            let _mine = turn.lock().unwrap_or_else(PoisonError::into_inner);
            work()
        };
        let mut turns = turns();
        // Two hold it: the map and this one.
        if Arc::strong_count(&turn) <= 2 {
            turns.remove(key);
        }
        done
    }

    fn is_missing(&self, key: &str) -> Option<Missing> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.get(key).filter(|(at, why)| at.elapsed() < why.lasts()).map(|(_, why)| why.clone())
    }

    fn note_missing(&self, key: &str, why: &Missing) {
        if let Missing::Away(text) = why {
            eprintln!("isles registry: mirror: {key}: {text}");
        }
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.len() >= MOST_MISSING {
            missing.clear();
        }
        missing.insert(key.to_owned(), (Instant::now(), why.clone()));
    }
}

impl Mirror {
    fn new(config: &MirrorConfig) -> Result<Mirror> {
        let retry = retry::Policy {
            retries: 1,
            backoff: Duration::from_millis(200),
            patience: Duration::from_secs(2),
        };
        let credentials = match (&config.username, &config.password_file) {
            (Some(user), Some(path)) => {
                let failed = |e| Error::io("read", path, e);
                let file = std::fs::File::open(path).map_err(failed)?;
                let bytes = isles_store::read_bounded(file, PASSWORD_LIMIT).map_err(failed)?;
                let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
                let text = text.ok_or_else(|| Error::config(path.display(), "it holds no password"))?;
                let password = text.trim_end_matches(['\n', '\r']).to_owned();
                Credentials::fixed(Login::Password { user: user.clone(), password })
            }
            _ => Credentials::none(),
        };
        let client = Client::new(ClientOptions {
            credentials,
            registries: Some(Registries::default()),
            retry,
            stall: STALL,
            ..ClientOptions::default()
        });
        Ok(Mirror { config: config.clone(), client })
    }

    /// Whether what is here need not be asked for.
    fn current(&self, hosted: &Hosted, name: &str) -> bool {
        if name.parse::<Digest>().is_ok() {
            return is_here(hosted, name);
        }
        let age = hosted.tagged(name).and_then(|t| t.elapsed().ok());
        is_here(hosted, name) && age.is_some_and(|age| age < self.config.fresh.unwrap_or(FRESH))
    }

    /// Fetches a manifest.
    fn fetch(
        &self,
        store: &Store,
        hosted: &Hosted,
        upstream: &Reference,
        name: &str,
    ) -> std::result::Result<(), Missing> {
        let own = |e: isles_store::Error| Missing::Away(e.to_string());
        let (reference, tags) = match name.parse::<Digest>() {
            Ok(digest) => {
                if !self.wants(store, hosted, &digest) {
                    return Err(Missing::Absent);
                }
                (upstream.with_digest(digest), vec![])
            }
            Err(_) if is_tag(name) => {
                (upstream.with_tag(name).map_err(|e| Missing::Away(e.to_string()))?, vec![name])
            }
            Err(_) => return Err(Missing::Absent),
        };
        if let [tag] = tags.as_slice()
            && let Some(known) = hosted.tag(tag).map_err(own)?
            && let Some(manifest) = hosted.manifest(&known).map_err(own)?
            && self.client.head_manifest(&reference).map_err(|e| Missing::of(&e))?.digest == known
        {
            // Nothing changed: the tag is as good as new.
            let bytes = store.read_document(&known).map_err(own)?;
            let same =
                NewManifest { bytes: &bytes, media_type: &manifest.media_type, digest: &known, tags: &tags };
            return hosted.put_manifest(&same).map(drop).map_err(own);
        }
        let found = self.client.manifest(&reference).map_err(|e| Missing::of(&e))?;
        let new = NewManifest {
            bytes: &found.bytes,
            media_type: &found.media_type,
            digest: &found.digest,
            tags: &tags,
        };
        hosted.put_manifest(&new).map(drop).map_err(own)
    }

    /// Whether a manifest is for a platform that is wanted, as far as indexes here tell.
    fn wants(&self, store: &Store, hosted: &Hosted, manifest: &Digest) -> bool {
        let wanted = &self.config.platforms;
        if wanted.is_empty() {
            return true;
        }
        let fits = |p: &Platform| wanted.iter().any(|w| w.accepts(p));
        let mut named = false;
        for digest in hosted.manifests().unwrap_or_default() {
            let Ok(Some(record)) = hosted.manifest(&digest) else { continue };
            if !media_type::is_index(&record.media_type) || !record.manifests.contains(manifest) {
                continue;
            }
            let bytes = store.read_document(&digest).unwrap_or_default();
            let Ok(index) = serde_json::from_slice::<Index>(&bytes) else { continue };
            for entry in index.manifests.iter().filter(|d| d.digest == *manifest) {
                named = true;
                if entry.platform.as_ref().is_none_or(fits) {
                    return true;
                }
            }
        }
        !named
    }
}

/// Whether a manifest is here, by tag or digest.
fn is_here(hosted: &Hosted, name: &str) -> bool {
    let digest = match name.parse::<Digest>() {
        Ok(digest) => Some(digest),
        Err(_) => hosted.tag(name).ok().flatten(),
    };
    digest.is_some_and(|digest| matches!(hosted.manifest(&digest), Ok(Some(_))))
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
        let both = [mirror("hub=docker.io"), mirror("lab/mirror=r.example:5000/course")];
        let mirrors = Mirrors::new(&both).unwrap();
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
        for (namespace, name, here) in [
            ("docker.io", "library/debian", Some("hub/library/debian")),
            ("docker.io", "a/b", Some("hub/a/b")),
            ("r.example:5000", "course/x", Some("lab/mirror/x")),
            ("r.example:5000", "other/x", None),
            ("ghcr.io", "a/b", None),
            ("not a host", "a", None),
        ] {
            assert_eq!(mirrors.here(namespace, name).as_deref(), here, "{namespace} {name}");
        }
        let all = Mirrors::new(&[mirror("docker.io")]).unwrap();
        assert!(all.has("anything"));
        assert_eq!(all.here("docker.io", "library/debian").as_deref(), Some("library/debian"));
        for bad in ["", "UP=docker.io", "hub=", "hub=library", "hub=docker.io/UP"] {
            assert!(bad.parse::<MirrorConfig>().is_err(), "{bad}");
        }
    }
}
