//! Blobs on their way into a repository: a file that grows, and becomes the blob when its digest is right.
//!
//! The file is all there is, so whoever comes after a process that died goes on where it was. The hash of what has
//! come lives in memory only and is worth something while it covers the whole file; else the file is read once
//! more at the end.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use isles_spec::{Algorithm, Digest};
use rustix::fs::{FlockOperation, flock};

use super::Hosted;
use crate::error::At;
use crate::hash::{Hasher, digest_of_stream};
use crate::{Error, Result};

const BUFFER: usize = 1 << 20;
/// Characters of an upload's ID.
const ID: usize = 32;

/// The hash of the first bytes of an upload.
#[derive(Clone)]
pub struct RunningHash {
    hasher: Hasher,
    algorithm: Algorithm,
    bytes: u64,
}

impl RunningHash {
    /// Of nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        RunningHash { hasher: Hasher::new(algorithm), algorithm, bytes: 0 }
    }
}

/// A blob that is being pushed, for one request. Nobody else writes to it meanwhile.
pub struct Upload {
    hosted: Hosted,
    id: String,
    path: PathBuf,
    file: File,
    size: u64,
    hash: Option<RunningHash>,
}

/// An upload of which all has come, and whose digest is right.
pub struct WholeUpload {
    upload: Upload,
    digest: Digest,
    /// Whether its bytes survive a power cut.
    on_disk: bool,
}

pub(super) fn is_id(id: &str) -> bool {
    id.len() == ID && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl Hosted {
    fn upload_path(&self, id: &str) -> Option<PathBuf> {
        is_id(id).then(|| self.dir.join("uploads").join(id))
    }

    /// The one upload of a blob that this registry brings here by itself, begun or gone on with; waits while another
    /// process does that. What came before is checked with the rest at the end.
    pub fn fetching(&self, digest: &Digest) -> Result<Upload> {
        let folder = self.folder("uploads")?;
        let id: String = digest.hex().chars().take(ID).collect();
        let path = folder.join(&id);
        loop {
            let file = File::options()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&path)
                .at("create", &path)?;
            flock(&file, FlockOperation::LockExclusive).at("lock", &path)?;
            // Whoever had the lock may have made the blob of it.
            let ours = file.metadata().at("read", &path)?;
            if fs::metadata(&path).is_ok_and(|there| there.ino() == ours.ino() && there.dev() == ours.dev()) {
                let size = ours.len();
                let hash = (size == 0).then(|| RunningHash::new(digest.algorithm()));
                return Ok(Upload { hosted: self.clone(), id, path, file, size, hash });
            }
        }
    }

    /// Begins a push of a blob.
    pub fn start_upload(&self, algorithm: Algorithm) -> Result<Upload> {
        let folder = self.folder("uploads")?;
        let id = format!("{}{}", crate::random_name(), crate::random_name());
        let path = folder.join(&id);
        let file = File::options()
            .read(true)
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .at("create", &path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).at("lock", &path)?;
        let hash = Some(RunningHash::new(algorithm));
        Ok(Upload { hosted: self.clone(), id, path, file, size: 0, hash })
    }

    /// How many bytes have come of an upload; nothing where there is none of this ID.
    pub fn upload_size(&self, id: &str) -> Option<u64> {
        fs::metadata(self.upload_path(id)?).ok().map(|m| m.len())
    }

    /// Goes on with an upload. `hash` is what [`Upload::pause`] gave, if it is at hand. Nothing where there is none
    /// of this ID; an error while another request writes to it.
    pub fn resume_upload(&self, id: &str, hash: Option<RunningHash>) -> Result<Option<Upload>> {
        let Some(path) = self.upload_path(id) else { return Ok(None) };
        let file = match File::options().read(true).append(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", &path, e)),
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::InUse { what: "upload", name: id.to_owned() });
        }
        // Finished or cancelled while it was opened.
        if !path.exists() {
            return Ok(None);
        }
        let size = file.metadata().at("read", &path)?.len();
        let hash = match hash {
            Some(hash) if hash.bytes == size => Some(hash),
            _ if size == 0 => Some(RunningHash::new(Algorithm::Sha256)),
            _ => None,
        };
        Ok(Some(Upload { hosted: self.clone(), id: id.to_owned(), path, file, size, hash }))
    }

    /// Gives an upload up. Returns whether there was one.
    pub fn cancel_upload(&self, id: &str) -> Result<bool> {
        match self.upload_path(id) {
            Some(path) => super::remove(&path),
            None => Ok(false),
        }
    }
}

impl Upload {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Bytes that have come.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Another descriptor of what has come, for readers at any place.
    pub fn reader(&self) -> Result<File> {
        self.file.try_clone().at("read", &self.path)
    }

    /// What the next request may go on with.
    pub fn pause(self) -> Option<RunningHash> {
        self.hash
    }

    /// Gives it up.
    pub fn discard(self) -> Result<()> {
        super::remove(&self.path).map(drop)
    }

    /// Makes this a blob of the repository: all of [`Upload::whole`] and [`WholeUpload::link`].
    pub fn finish(self, expected: &Digest) -> Result<u64> {
        self.whole(expected)?.link()
    }

    /// Says that all has come. Another digest than this is an error, and what has come is gone. What takes its time
    /// is done here: reading, and writing to the disk.
    pub fn whole(mut self, expected: &Digest) -> Result<WholeUpload> {
        let actual = match self.hash.take().filter(|h| h.algorithm == expected.algorithm()) {
            Some(hash) => hash.hasher.finish(),
            None => self.read_again(expected.algorithm())?,
        };
        if actual != *expected {
            super::remove(&self.path)?;
            let object = "the content".to_owned();
            return Err(Error::WrongDigest { object, expected: expected.clone(), actual });
        }
        let mut whole = WholeUpload { upload: self, digest: expected.clone(), on_disk: false };
        if !whole.is_here() {
            whole.sync()?;
        }
        Ok(whole)
    }

    fn read_again(&mut self, algorithm: Algorithm) -> Result<Digest> {
        self.file.seek(SeekFrom::Start(0)).at("read", &self.path)?;
        let read = digest_of_stream(&mut self.file, algorithm, &mut vec![0; BUFFER], &mut |_| {});
        Ok(read.at("read", &self.path)?.0)
    }
}

impl WholeUpload {
    /// Bytes of it.
    pub fn size(&self) -> u64 {
        self.upload.size
    }

    /// Makes this a blob of the repository.
    pub fn link(mut self) -> Result<u64> {
        let (hosted, path) = (self.upload.hosted.clone(), self.upload.path.clone());
        {
            // The link first: what has one is not collected.
            let _shared = hosted.store.share()?;
            hosted.touch(&hosted.blob_link(&self.digest))?;
        }
        if self.is_here() {
            super::remove(&path)?;
            return Ok(self.upload.size);
        }
        // Not yet, where the blob was here and has been collected since.
        self.sync()?;
        let target = hosted.store.blob_dir(&self.digest)?.join(self.digest.hex());
        fs::rename(&path, &target).at("write", &target)?;
        crate::atomic::sync_parent(&target).at("write", &target)?;
        Ok(self.upload.size)
    }

    /// Whether the store has the same blob.
    fn is_here(&self) -> bool {
        self.upload.hosted.store.blob_size(&self.digest) == Some(self.upload.size)
    }

    fn sync(&mut self) -> Result<()> {
        if !self.on_disk {
            self.upload.file.sync_data().at("write to disk", &self.upload.path)?;
            self.on_disk = true;
        }
        Ok(())
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        if let Some(hash) = &mut self.hash {
            hash.hasher.update(&bytes[..n]);
            hash.bytes += n as u64;
        }
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
