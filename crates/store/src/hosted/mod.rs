//! Repositories that a registry serves from this store.
//!
//! One idea: a repository owns no bytes. It is a folder of small files that say which blobs of the store may be
//! had by its name, so pushing what is here already, and mounting, write one empty file.
//!
//! ```text
//! registry/<repository>/               a slash is written `+`
//!     tags/<tag>                       the digest of a manifest or an index
//!     manifests/<alg>-<hex>            its media type, and what it is about
//!     blobs/<alg>-<hex>                who brought it, where that is known; its time is when somebody last asked for it
//!                                      to push on it
//!     pulled/<alg>-<hex>               empty; its time is when somebody last asked for the manifest
//!     referrers/<alg>-<hex>/<alg>-<hex>  the descriptor of a manifest whose subject is the first
//!     uploads/<id>                     what has come of a blob that is being pushed
//! ```
//!
//! What has a link here is not collected. Links that no manifest needs go with [`Store::collect_hosted`].
//!
//! Specification: OCI distribution-spec 1.1.

mod collect;
mod manifest;
mod upload;
mod verify;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use isles_spec::Digest;
use rustix::fs::{FlockOperation, flock};

use crate::error::At;
use crate::refs::names_in;
use crate::{Error, Result, Store};

pub use collect::{HostedCollected, HostedPolicy, HostedTag, HostedUsage};
pub use manifest::{HostedManifest, NewManifest};
pub use upload::{RunningHash, Upload, WholeUpload};
pub use verify::{HostedProblem, HostedReport};

const ROOT: &str = "registry";
const OFFERS: &str = "registry-offers";
/// Characters of a repository's name; file names have no more.
const NAME_LIMIT: usize = 255;
/// Characters of a tag.
const TAG_LIMIT: usize = 128;
/// Bytes of the small files.
const SMALL: u64 = 16 << 20;
/// Pulls are noted as often.
const PULL_NOTED: Duration = Duration::from_secs(3600);
/// Bytes of a user's name.
const USER_LIMIT: u64 = 4096;

/// One repository that a registry serves. It exists when something is in it.
#[derive(Debug, Clone)]
pub struct Hosted {
    store: Store,
    name: String,
    dir: PathBuf,
}

/// Something of repositories, held until this is dropped: whoever else asks for it waits, whatever process they are in.
#[derive(Debug)]
pub struct HostedLock {
    _file: File,
}

/// Blobs that whoever may write to the store lets a registry over it take, for as long as this lives: what is pushed
/// to a registry on the same host need not be sent.
#[derive(Debug)]
pub struct Offer {
    path: PathBuf,
    id: String,
}

impl Offer {
    /// What the registry is told.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a name may be that of a repository (distribution-spec, "Pulling manifests").
pub fn is_repository_name(name: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let component = |c: &str| {
        let bytes = c.as_bytes();
        let ends = bytes.first().zip(bytes.last()).is_some_and(|(a, z)| alphanumeric(*a) && alphanumeric(*z));
        // Between the letters: one dot, one or two underscores, any number of dashes.
        ends && c
            .split(|c: char| c.is_ascii() && alphanumeric(c as u8))
            .all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
    };
    name.len() <= NAME_LIMIT && name.split('/').all(component)
}

/// Whether a name may be a tag.
pub fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_LIMIT
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

fn leaf(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}

fn digest_of_leaf(name: &str) -> Option<Digest> {
    name.replacen('-', ":", 1).parse().ok()
}

impl Store {
    /// A repository by its name, which must be one ([`is_repository_name`]).
    pub fn hosted(&self, name: &str) -> Result<Hosted> {
        if !is_repository_name(name) {
            return Err(Error::document(format!("the repository '{name}'"), "its name is not one"));
        }
        let dir = self.root.join(ROOT).join(name.replace('/', "+"));
        Ok(Hosted { store: self.clone(), name: name.to_owned(), dir })
    }

    /// The names of all repositories, sorted.
    pub fn hosted_names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> =
            names_in(&self.root.join(ROOT))?.iter().map(|n| n.replace('+', "/")).collect();
        names.retain(|name| is_repository_name(name));
        names.sort();
        Ok(names)
    }

    /// When the list of repositories changed last.
    pub fn hosted_changed(&self) -> Option<SystemTime> {
        fs::metadata(self.root.join(ROOT)).and_then(|m| m.modified()).ok()
    }

    /// Offers blobs to registries over this store.
    pub fn offer(&self, blobs: &[Digest]) -> Result<Offer> {
        let folder = self.dir(OFFERS)?;
        let id = format!("{}{}", crate::random_name(), crate::random_name());
        let path = folder.join(&id);
        let text: String = blobs.iter().map(|d| format!("{d}\n")).collect();
        crate::atomic::replace_volatile(&path, text.as_bytes())?;
        Ok(Offer { path, id })
    }

    /// Whether a blob is part of an offer.
    pub fn is_offered(&self, id: &str, blob: &Digest) -> Result<bool> {
        if !upload::is_id(id) {
            return Ok(false);
        }
        let path = self.root.join(OFFERS).join(id);
        match crate::atomic::read_bounded(&path, SMALL) {
            Ok(text) => Ok(String::from_utf8_lossy(&text).lines().any(|line| line == blob.to_string())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    /// Held by whoever adds up what repositories have and then adds something to it.
    pub fn lock_hosted(&self) -> Result<HostedLock> {
        lock(&self.dir(ROOT)?)
    }

    /// Bytes of what repositories have, manifests among it, each once, without one of them.
    pub fn hosted_bytes(&self, without: Option<&Digest>) -> Result<u64> {
        let all = self.hosted_blobs()?;
        Ok(all.iter().filter(|d| Some(*d) != without).filter_map(|d| self.blob_size(d)).sum())
    }

    /// Bytes that have come of the unfinished uploads to all repositories.
    pub fn hosted_unfinished(&self) -> Result<u64> {
        self.hosted_names()?.iter().map(|name| self.hosted(name)?.unfinished()).sum()
    }

    /// Bytes of the blobs that a user has brought to repositories, each once, without one of them.
    pub fn credited(&self, user: &str, without: Option<&Digest>) -> Result<u64> {
        let mut all = HashSet::new();
        for name in self.hosted_names()? {
            let hosted = self.hosted(&name)?;
            for digest in hosted.blobs()?.into_iter().filter(|d| Some(d) != without) {
                let who = crate::atomic::read_bounded(&hosted.blob_link(&digest), USER_LIMIT);
                if who.is_ok_and(|who| who == user.as_bytes()) {
                    all.insert(digest);
                }
            }
        }
        Ok(all.iter().filter_map(|d| self.blob_size(d)).sum())
    }

    /// Every blob that some repository has, manifests among them.
    pub(crate) fn hosted_blobs(&self) -> Result<HashSet<Digest>> {
        let mut all = HashSet::new();
        for name in self.hosted_names()? {
            let hosted = self.hosted(&name)?;
            all.extend(hosted.blobs()?);
            all.extend(hosted.manifests()?);
        }
        Ok(all)
    }
}

impl Hosted {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether anything was ever pushed to it and not removed since.
    pub fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    fn blob_link(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(leaf(digest))
    }

    /// The size of a blob that this repository has.
    pub fn blob(&self, digest: &Digest) -> Option<u64> {
        if !self.blob_link(digest).exists() {
            // Manifests are blobs too, by the specification's own account.
            self.manifest_record(digest).exists().then_some(())?;
        }
        self.store.blob_size(digest)
    }

    /// As [`Hosted::blob`], for whoever will leave it out of a push because of the answer: it stays for the grace
    /// time of collections from now on.
    pub fn promise_blob(&self, digest: &Digest) -> Result<Option<u64>> {
        let _shared = self.store.share()?;
        let Some(size) = self.blob(digest) else { return Ok(None) };
        self.touch(&self.blob_link(digest))?;
        Ok(Some(size))
    }

    /// Opens a blob that this repository has.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<File>> {
        if self.blob(digest).is_none() {
            return Ok(None);
        }
        match self.store.open_blob(digest) {
            Ok(file) => Ok(Some(file)),
            Err(Error::NoBlob { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Lets this repository have a blob of another one. Returns its size, or nothing where that has no such blob.
    pub fn mount(&self, digest: &Digest, from: &Hosted) -> Result<Option<u64>> {
        let _shared = self.store.share()?;
        let Some(size) = from.blob(digest) else { return Ok(None) };
        self.touch(&self.blob_link(digest))?;
        Ok(Some(size))
    }

    /// Lets this repository have a blob that is in the store for whatever reason. Only for those who may see
    /// everything in the store. Returns its size, or nothing where it is not here.
    pub fn adopt(&self, digest: &Digest) -> Result<Option<u64>> {
        let _shared = self.store.share()?;
        let Some(size) = self.store.blob_size(digest) else { return Ok(None) };
        self.touch(&self.blob_link(digest))?;
        Ok(Some(size))
    }

    /// Takes a blob away from this repository. Returns whether it had it. The bytes go with a collection.
    pub fn unlink_blob(&self, digest: &Digest) -> Result<bool> {
        remove(&self.blob_link(digest))
    }

    /// The blobs it has, without manifests, in no order.
    pub fn blobs(&self) -> Result<Vec<Digest>> {
        Ok(names_in(&self.dir.join("blobs"))?.iter().filter_map(|n| digest_of_leaf(n)).collect())
    }

    /// What a tag stands for.
    pub fn tag(&self, tag: &str) -> Result<Option<Digest>> {
        let path = self.dir.join("tags").join(tag);
        match crate::atomic::read_bounded(&path, SMALL) {
            Ok(text) => {
                let text = String::from_utf8_lossy(&text);
                text.trim().parse().map(Some).map_err(|e| Error::damaged(path.display(), e))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    /// When a tag was given last.
    pub fn tagged(&self, tag: &str) -> Option<SystemTime> {
        fs::metadata(self.dir.join("tags").join(tag)).and_then(|m| m.modified()).ok()
    }

    /// Its tags, sorted by bytes.
    pub fn tags(&self) -> Result<Vec<String>> {
        let mut tags = names_in(&self.dir.join("tags"))?;
        tags.retain(|tag| is_tag(tag));
        tags.sort_unstable();
        Ok(tags)
    }

    /// When the list of tags changed last.
    pub fn tags_changed(&self) -> Option<SystemTime> {
        fs::metadata(self.dir.join("tags")).and_then(|m| m.modified()).ok()
    }

    /// Notes that a manifest was pulled, or asked for by somebody who has it, at most once an hour.
    pub fn note_pull(&self, manifest: &Digest) -> Result<()> {
        let recent = |time: SystemTime| time.elapsed().is_ok_and(|age| age < PULL_NOTED);
        if self.pulled(manifest).is_some_and(recent) {
            return Ok(());
        }
        let path = self.folder("pulled")?.join(leaf(manifest));
        let open = File::options().write(true).create(true).truncate(false).open(&path);
        open.and_then(|file| file.set_modified(SystemTime::now())).at("write", &path)
    }

    /// When a manifest was last pulled, to the hour.
    pub fn pulled(&self, manifest: &Digest) -> Option<SystemTime> {
        fs::metadata(self.dir.join("pulled").join(leaf(manifest))).and_then(|m| m.modified()).ok()
    }

    /// Notes who brought a blob here, unless somebody did before. Of several at once one is noted: two names in one
    /// file would be those of nobody, and the blob on no quota.
    pub fn credit(&self, blob: &Digest, user: &str) -> Result<()> {
        let link = self.blob_link(blob);
        let noted = File::options().append(true).open(&link).and_then(|mut file| {
            use std::io::Write as _;
            flock(&file, FlockOperation::LockExclusive)?;
            if file.metadata()?.len() == 0 { file.write_all(user.as_bytes()) } else { Ok(()) }
        });
        noted.at("write", &link)
    }

    /// Takes a tag away. Returns whether it was there.
    pub fn remove_tag(&self, tag: &str) -> Result<bool> {
        remove(&self.dir.join("tags").join(tag))
    }

    /// Held by whoever changes tags for which it matters what they were.
    pub fn lock_tags(&self) -> Result<HostedLock> {
        lock(&self.folder("tags")?)
    }

    fn set_tag(&self, tag: &str, target: &Digest) -> Result<()> {
        let folder = self.folder("tags")?;
        crate::atomic::replace(&folder.join(tag), format!("{target}\n").as_bytes())
    }

    /// Removes the repository with all that it has. Returns whether it was there.
    pub fn remove(&self) -> Result<bool> {
        let there = self.exists();
        self.store.discard_dir(&self.dir)?;
        Ok(there)
    }

    fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        if !path.is_dir() {
            let relative = path.strip_prefix(&self.store.root).unwrap_or(&path);
            self.store.dir(&relative.to_string_lossy())?;
        }
        Ok(path)
    }

    /// Makes a link, or makes it new again.
    fn touch(&self, link: &Path) -> Result<()> {
        let open = || File::options().write(true).create(true).truncate(false).open(link);
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.folder("blobs")?;
                open()
            }
            other => other,
        };
        let file = file.at("write", link)?;
        file.set_modified(SystemTime::now()).at("write", link)
    }
}

/// Locks a folder, once whoever has it lets go.
fn lock(folder: &Path) -> Result<HostedLock> {
    let file = File::open(folder).at("open", folder)?;
    flock(&file, FlockOperation::LockExclusive).at("lock", folder)?;
    Ok(HostedLock { _file: file })
}

/// Removes a file. Returns whether it was there.
fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("remove", path, e)),
    }
}

#[cfg(test)]
mod tests;
