//! What may be thrown away: records of the build cache, downloads by digest, and what only spares time. Ordered
//! by last use, which is the modification time of their files.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use isles_spec::{Algorithm, Digest};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::error::At;
use crate::hash::{Hasher, digest_of};
use crate::layer::to_json;
use crate::{Error, Lease, Result, Store};

const RECORD_LIMIT: u64 = 4 << 20;
const MEMORY_LIMIT: u64 = 256 << 20;
/// When a file was last used is told to this.
const USED: Duration = Duration::from_secs(3600);

/// What a step of a build gave, kept under the key of everything that went into it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildRecord {
    /// Blobs and layers (by diff ID) that the record needs. The collector keeps them as long as the record.
    pub holds: Vec<Digest>,
    /// Whatever the builder wants to find again.
    pub value: serde_json::Value,
}

/// Files of the cache that only spare time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Digests of files, by the folder that they are in.
    Files,
    /// Signed indices of package archives, by URL.
    Indices,
    /// What was behind a URL when it was last asked for.
    Urls,
    /// Decompressed blocks of image files.
    Blocks,
}

impl Memory {
    pub(crate) const ALL: [Memory; 4] = [Memory::Files, Memory::Indices, Memory::Urls, Memory::Blocks];

    pub(crate) fn folder(self) -> &'static str {
        match self {
            Memory::Files => "cache/files",
            Memory::Indices => "cache/debian",
            Memory::Urls => "cache/urls",
            Memory::Blocks => "cache/blocks",
        }
    }
}

impl Store {
    /// What was remembered under a name, which must do as a file name, and marks it as used now.
    pub fn remembered(&self, memory: Memory, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.root.join(memory.folder()).join(name);
        match crate::atomic::read_bounded(&path, MEMORY_LIMIT) {
            Ok(bytes) => {
                touch(&path);
                Ok(Some(bytes))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    /// The file of what was remembered under a name, where it is this user's alone to write; marks it as used, to the hour.
    pub fn remembered_file(&self, memory: Memory, name: &str) -> Option<File> {
        let path = self.root.join(memory.folder()).join(name);
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(&path).ok()?;
        let found = file.metadata().ok()?;
        let ours = found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
        if !found.is_file() || !ours {
            return None;
        }
        if found.modified().ok()?.elapsed().is_ok_and(|age| age > USED) {
            touch(&path);
        }
        Some(file)
    }

    /// Remembers something under a name. A power cut may leave it empty or cut short.
    pub fn remember(&self, memory: Memory, name: &str, content: &[u8]) -> Result<()> {
        self.remember_by(memory, name, |file| file.write_all(content))
    }

    /// The same, for what is written piece by piece.
    pub fn remember_by(
        &self,
        memory: Memory,
        name: &str,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<()> {
        let path = self.dir(memory.folder())?.join(name);
        // Written in this process's own folder, so that nothing is left beside it when the process is killed.
        let temporary = self.scratch("memory")?;
        let written = File::options().write(true).create_new(true).mode(0o600).open(&temporary);
        let result = written
            .and_then(|mut file| write(&mut file))
            .and_then(|()| fs::rename(&temporary, &path))
            .at("write", &path);
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        result
    }

    fn record_path(&self, key: &Digest) -> PathBuf {
        self.root.join("cache/build").join(format!("{}-{}", key.algorithm().name(), key.hex()))
    }

    /// Looks a build record up, lets the lease hold what it needs, and marks it as used now. A record whose
    /// layers or blobs are gone counts as absent.
    pub fn build_record(&self, lease: &Lease, key: &Digest) -> Result<Option<BuildRecord>> {
        let path = self.record_path(key);
        let text = match crate::atomic::read_bounded(&path, RECORD_LIMIT) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        // An unreadable record (cut short by a power cut) is as good as none.
        let Ok(record) = serde_json::from_slice::<BuildRecord>(&text) else { return Ok(None) };
        record.holds.iter().try_for_each(|digest| lease.hold(digest))?;
        if !record.holds.iter().all(|d| self.has_layer(d) || self.has_blob(d)) {
            return Ok(None);
        }
        touch(&path);
        Ok(Some(record))
    }

    /// Keeps a build record under its key. Hold what it needs by a lease until this returns.
    pub fn put_build_record(&self, key: &Digest, record: &BuildRecord) -> Result<()> {
        self.dir("cache/build")?;
        let _shared = self.share()?;
        crate::atomic::replace_volatile(&self.record_path(key), &to_json(record)?)
    }

    /// Forgets a build record.
    pub fn remove_build_record(&self, key: &Digest) -> Result<()> {
        crate::atomic::remove_file(&self.record_path(key))
    }

    pub(crate) fn download_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("cache/downloads").join(digest.algorithm().name()).join(&hex[..2]).join(hex)
    }

    /// A downloaded file by its digest, if it is cached; marks it as used now.
    pub fn download(&self, digest: &Digest) -> Result<Option<File>> {
        let path = self.download_path(digest);
        match File::open(&path) {
            Ok(file) => {
                touch(&path);
                Ok(Some(file))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("open", &path, e)),
        }
    }

    /// Caches a download: reads `content` to its end, which must have the given digest and at most `limit`
    /// bytes, and returns the file at its beginning.
    pub fn put_download(&self, digest: &Digest, content: &mut dyn Read, limit: u64) -> Result<File> {
        let failed = |source| Error::Fetch { digest: digest.clone(), source };
        let (temporary, actual) =
            self.receive(digest.algorithm(), content, limit, &digest.to_string(), &failed)?;
        if actual != *digest {
            let _ = fs::remove_file(&temporary);
            let object = "the download".to_owned();
            return Err(Error::WrongDigest { object, expected: digest.clone(), actual });
        }
        self.name_download(&temporary, digest)
    }

    /// Caches a download whose digest nobody knows before: reads `content`, which messages call `name`, to its
    /// end. Gives the SHA-256 and the file at its beginning.
    pub fn add_download(&self, name: &str, content: &mut dyn Read, limit: u64) -> Result<(Digest, File)> {
        let failed = |source| Error::io("read", std::path::Path::new(name), source);
        let (temporary, digest) = self.receive(Algorithm::Sha256, content, limit, name, &failed)?;
        Ok((digest.clone(), self.name_download(&temporary, &digest)?))
    }

    /// Writes a download of at most `limit` bytes to a file, and hashes it on the way.
    fn receive(
        &self,
        algorithm: Algorithm,
        content: &mut dyn Read,
        limit: u64,
        name: &str,
        failed: &dyn Fn(io::Error) -> Error,
    ) -> Result<(PathBuf, Digest)> {
        let temporary = self.scratch("download")?;
        let result = (|| {
            let mut file =
                File::options().write(true).create_new(true).open(&temporary).at("create", &temporary)?;
            let mut hasher = Hasher::new(algorithm);
            let mut buffer = vec![0u8; 128 << 10];
            let mut size = 0u64;
            loop {
                let n = match content.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => return Err(failed(e)),
                };
                size += n as u64;
                if size > limit {
                    let (object, what) = (name.to_owned(), "the download".to_owned());
                    return Err(Error::Limit { object, what, limit });
                }
                hasher.update(&buffer[..n]);
                file.write_all(&buffer[..n]).at("write", &temporary)?;
            }
            file.sync_data().at("write to disk", &temporary)?;
            Ok(hasher.finish())
        })();
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        Ok((temporary, result?))
    }

    /// Gives a download that is whole its name.
    fn name_download(&self, temporary: &std::path::Path, digest: &Digest) -> Result<File> {
        let path = self.download_path(digest);
        let result = (|| {
            if let Some(parent) = path.parent()
                && !parent.is_dir()
            {
                self.prepare()?;
                fs::create_dir_all(parent).at("create", parent)?;
            }
            fs::rename(temporary, &path).at("write", &path)?;
            File::open(&path).at("open", &path)
        })();
        if result.is_err() {
            let _ = fs::remove_file(temporary);
        }
        result
    }

    /// The digest of a document.
    pub fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        digest_of(algorithm, bytes)
    }

    /// The key of a build record from its parts; each part is separated from the next by its length.
    pub fn cache_key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Digest {
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        digest_of(Algorithm::Sha256, &bytes)
    }
}

/// What a build record is of: the member `about` of what the builder keeps.
pub(crate) fn about(path: &std::path::Path) -> String {
    let text = crate::atomic::read_bounded(path, RECORD_LIMIT).unwrap_or_default();
    let value = serde_json::from_slice::<BuildRecord>(&text).map(|r| r.value).unwrap_or_default();
    let about = value.get("about").and_then(|a| a.as_str()).map(str::to_owned);
    // Where an image is kept, that is all there is to say.
    about.or_else(|| Some(format!("image {}", value.as_str()?))).unwrap_or_else(|| "a build".into())
}

/// What a build record needs; nothing where it cannot be read.
pub(crate) fn holds_of(path: &std::path::Path) -> Vec<Digest> {
    let text = crate::atomic::read_bounded(path, RECORD_LIMIT).unwrap_or_default();
    serde_json::from_slice::<BuildRecord>(&text).map(|r| r.holds).unwrap_or_default()
}

/// Marks a file as used now. Where that fails the file only looks older than it is.
fn touch(path: &std::path::Path) {
    if let Ok(file) = File::open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}
