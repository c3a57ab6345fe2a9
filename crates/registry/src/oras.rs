//! SIF files in registries: `oras://`. Each is an artifact of one layer, the file as it is, in the shape that
//! `apptainer push` gives it.
//!
//! Unlike an image such a file has no configuration and is not unpacked, so it goes into a file of the caller's and
//! not into the store.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use isles_spec::image::{Descriptor, Manifest, media_type};
use isles_spec::{Algorithm, Digest, Platform, Progress, Reference};
use isles_store::{Hasher, Store};

use crate::blob::{Download, Shared};
use crate::client::object_name;
use crate::push::Push;
use crate::{Client, Error, Result};

pub const SIF_CONFIG: &str = "application/vnd.sylabs.sif.config.v1+json";
pub const SIF_LAYER: &str = "application/vnd.sylabs.sif.layer.v1.sif";
/// What versions before 3.6 wrote, one of them with a slip.
const OLD_LAYERS: [&str; 2] =
    ["application/vnd.sylabs.sif.layer.tar", "appliciation/vnd.sylabs.sif.layer.tar"];
const TITLE: &str = "org.opencontainers.image.title";
const CONFIG: &[u8] = b"{}";
const BUFFER: usize = 128 << 10;
/// What messages call a file of which only the descriptor is known.
const TARGET: &str = "the file that is fetched";

/// A SIF file in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SifArtifact {
    /// The digest of its manifest.
    pub manifest: Digest,
    /// The file itself: digest and size.
    pub file: Descriptor,
}

impl SifArtifact {
    /// The name that the file had where it was pushed.
    pub fn title(&self) -> Option<&str> {
        self.file.annotations.get(TITLE).map(String::as_str)
    }
}

impl Client {
    /// The SIF file that a name stands for.
    ///
    /// # Errors
    /// The registry cannot be spoken to, or has something else under the name.
    pub fn find_sif(&self, reference: &Reference, platform: &Platform) -> Result<SifArtifact> {
        let reference = reference.normalized();
        let resolved = self.resolve(&reference, platform)?;
        let is_sif =
            |l: &&Descriptor| l.media_type == SIF_LAYER || OLD_LAYERS.contains(&l.media_type.as_str());
        let mut layers = resolved.parsed.layers.iter().filter(is_sif);
        match (layers.next(), layers.next()) {
            (Some(file), None) => Ok(SifArtifact { manifest: resolved.manifest.digest, file: file.clone() }),
            (None, _) => {
                Err(isles_spec::Error::new(format!("{} is not a SIF file", object_name(&reference)))
                    .with_hint("an image of layers is had with docker:// in place of oras://")
                    .into())
            }
            (Some(_), Some(_)) => Err(Error::NotAnImage {
                object: object_name(&reference),
                why: "it holds several SIF files".into(),
            }),
        }
    }

    /// Writes the SIF file of a name into `file`, from its beginning, and checks it. Nothing of the file may be used
    /// where this fails.
    pub fn pull_sif(
        &self,
        reference: &Reference,
        platform: &Platform,
        file: &mut File,
        progress: &dyn Progress,
    ) -> Result<SifArtifact> {
        let artifact = self.find_sif(reference, platform)?;
        let repository = self.repository(&reference.normalized())?;
        let id = progress.begin(artifact.file.digest.short(), Some(artifact.file.size));
        let shared = Shared::default();
        let notice = |text: &str| progress.status(id, text);
        let download = Download::new(&repository, &artifact.file, &shared, &notice);
        let mut into = Checked::new(file, artifact.file.digest.algorithm())?;
        let fetched: Result<()> = (|| {
            let (mut stream, mut buffer) = (download.stream(0), vec![0; BUFFER]);
            loop {
                let read = stream.read(&mut buffer);
                match read.map_err(|e| repository.failed_to_fetch(&artifact.file, e))? {
                    0 => return Ok(()),
                    n => {
                        into.write(&buffer[..n])?;
                        progress.advance(id, n as u64);
                    }
                }
            }
        })();
        progress.end(id, if fetched.is_ok() { "done" } else { "failed" });
        fetched?;
        let (actual, expected) = (into.digest(), artifact.file.digest.clone());
        if actual != expected {
            let (host, object) = (repository.registry.clone(), object_name(reference));
            return Err(Error::Mismatch { host, object, expected, actual });
        }
        Ok(artifact)
    }

    /// Sends a SIF file to a registry as `target`. Its title, the name that a pull suggests, is that of `path`. The
    /// store keeps nothing of it but the configuration's two bytes.
    pub fn push_sif(
        &self,
        store: &Store,
        path: &Path,
        target: &Reference,
        progress: &dyn Progress,
    ) -> Result<Descriptor> {
        let target = target.normalized();
        let mut file = open(path)?;
        let (digest, size) = digest_of(&mut file, path)?;
        let mut layer = Descriptor::new(SIF_LAYER, digest, size);
        if let Some(title) = path.file_name() {
            layer.annotations.insert(TITLE.to_owned(), title.to_string_lossy().into_owned());
        }
        let lease = store.lease()?;
        let config = Descriptor::new(SIF_CONFIG, store.put_bytes(&lease, CONFIG)?, CONFIG.len() as u64);
        let repository = self.repository(&target)?;
        let push = Push::of_file(&repository, store, &lease, (&layer.digest, &file), progress);
        push.blob(&layer)?;
        push.blob(&config)?;
        let manifest = Manifest::new(config, vec![layer.clone()]);
        let bytes = serde_json::to_vec(&manifest)
            .map_err(|e| Error::NotAnImage { object: path.display().to_string(), why: e.to_string() })?;
        push.sender.document(media_type::OCI_MANIFEST, &bytes, &target)
    }
}

/// A file being written from its beginning, and its digest.
pub(crate) struct Checked<'f> {
    file: &'f mut File,
    hash: Hasher,
    pub written: u64,
}

impl<'f> Checked<'f> {
    /// Empties the file.
    pub fn new(file: &'f mut File, algorithm: Algorithm) -> Result<Checked<'f>> {
        file.rewind().and_then(|()| file.set_len(0)).map_err(|e| failed("empty", Path::new(TARGET), &e))?;
        Ok(Checked { file, hash: Hasher::new(algorithm), written: 0 })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| failed("write", Path::new(TARGET), &e))?;
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    pub fn digest(self) -> Digest {
        self.hash.finish()
    }
}

pub(crate) fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| failed("open", path, &e))
}

/// The SHA-256 digest and the size of a file.
pub(crate) fn digest_of(file: &mut File, path: &Path) -> Result<(Digest, u64)> {
    isles_store::digest_of_file(file).map_err(|e| failed("read", path, &e))
}

pub(crate) fn failed(operation: &'static str, path: &Path, e: &std::io::Error) -> Error {
    let denied = e.kind() == std::io::ErrorKind::PermissionDenied;
    Error::File { operation, path: path.to_owned(), cause: crate::http::sentence(e), denied }
}
