//! A SIF file as an image: its root file system becomes one layer, and what the file says of itself the configuration.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;

use isles_sif::{FileSystem, INSPECTION, Inspection, Kind, OCI_CONFIG, Object, Sif};
use isles_spec::image::{ContainerConfig, History, ImageConfig};
use isles_spec::time::rfc3339;
use isles_spec::{Algorithm, Digest, Platform, Progress, Reference};

use super::archive::{self, Meaning};
use super::file_tree::FileTree;
use super::tree::TEXT_LIMIT;
use crate::hash::digest_of;
use crate::pipe::{Gone, Source, pipe};
use crate::{BuildRecord, CommittedLayer, Error, Image, Lease, NewImage, Result, Store};

const BUFFER: usize = 256 << 10;
const BUFFERS: usize = 4;
/// Below this many bytes no ratio is suspicious.
const RATIO_GRACE: u64 = 1 << 30;
/// What starts an image whose root file system has `/.singularity.d`.
const RUN: &str = "/.singularity.d/actions/run";
/// The same where somebody has left the former out.
const RUNSCRIPT: &str = "/.singularity.d/runscript";
/// A file that was changed so recently may be changed again without a sign of it, in seconds.
const FRESH: i64 = 3;

/// An image file that the store can take in.
#[derive(Debug, Clone, Copy)]
pub enum SifSource<'a> {
    Sif(&'a Sif),
    /// One whose root file system is encrypted, and the passphrase that opens it. What is in it lies open in the store then, and
    /// nothing remembers that the file was taken in: whoever has not the passphrase does not come by it.
    Encrypted(&'a Sif, &'a [u8]),
    /// A file with a squashfs image in it and nothing else; the name is for messages.
    Squashfs(&'a std::fs::File, &'a str),
    /// The same with an image of ext2, ext3 or ext4.
    Ext(&'a std::fs::File, &'a str),
}

impl Store {
    /// Makes an image of a SIF file or of a squashfs image and gives it names. A file that was taken in before and has
    /// not changed since is not read again.
    pub fn import_sif(
        &self,
        lease: &Lease,
        source: SifSource<'_>,
        refs: &[Reference],
        progress: &dyn Progress,
    ) -> Result<Image> {
        let (file, name) = match source {
            SifSource::Sif(sif) | SifSource::Encrypted(sif, _) => (sif.file(), sif.name()),
            SifSource::Squashfs(file, name) | SifSource::Ext(file, name) => (file, name),
        };
        let key = if matches!(source, SifSource::Encrypted(..)) { None } else { key(file, name)? };
        if let Some(key) = &key
            && let Some(record) = self.build_record(lease, key)?
            && let Some(manifest) = record.value.as_str().and_then(|text| text.parse::<Digest>().ok())
            && let Ok(bytes) = self.read_document(&manifest)
        {
            return self.put_image(lease, &NewImage { manifest: &bytes, refs, ..NewImage::default() });
        }
        let id = progress.begin(name, None);
        let made = match source {
            SifSource::Sif(sif)
                if sif.primary().is_none() && sif.of_kind(Kind::OciRootIndex).next().is_some() =>
            {
                self.import_oci_sif(lease, sif, refs)
            }
            SifSource::Sif(sif) => self.import_root(lease, sif, None, refs),
            SifSource::Encrypted(sif, passphrase) => self.import_root(lease, sif, Some(passphrase), refs),
            SifSource::Squashfs(..) | SifSource::Ext(..) => {
                let size = file.metadata().map_err(|e| Error::Io {
                    doing: "read",
                    object: name.into(),
                    source: e,
                })?;
                let root = match source {
                    SifSource::Ext(..) => FileTree::ext(file, 0, size.len(), name)?,
                    _ => FileTree::squashfs(file, 0, size.len(), name)?,
                };
                let layer = self.layer_of_tree(lease, &root, size.len(), Meaning::Root, name)?;
                self.put_flat(lease, layer, flat_config(None, &root), refs)
            }
        };
        progress.end(id, if made.is_ok() { "done" } else { "failed" });
        let image = made?;
        if let Some(key) = &key {
            let mut holds = image.config.rootfs.diff_ids.clone();
            holds.extend([image.id().clone(), image.manifest_digest.clone()]);
            holds.extend(image.manifest.layers.iter().map(|layer| layer.digest.clone()));
            let value = serde_json::Value::String(image.manifest_digest.to_string());
            self.put_build_record(key, &BuildRecord { holds, value })?;
        }
        Ok(image)
    }

    fn import_root(
        &self,
        lease: &Lease,
        sif: &Sif,
        passphrase: Option<&[u8]>,
        refs: &[Reference],
    ) -> Result<Image> {
        let partition = sif.primary().ok_or_else(|| no_root(sif))?;
        let root = partition_of(sif, partition, passphrase)?;
        let layer = self.layer_of_tree(lease, &root, partition.size, Meaning::Root, sif.name())?;
        self.put_flat(lease, layer, flat_config(Some(sif), &root), refs)
    }

    fn put_flat(
        &self,
        lease: &Lease,
        layer: CommittedLayer,
        mut config: ImageConfig,
        refs: &[Reference],
    ) -> Result<Image> {
        config.rootfs.diff_ids = vec![layer.diff_id.clone()];
        self.assemble(lease, &config, &[layer.blob], refs)
    }

    /// A layer of a file system of `size` bytes: one thread reads it, this one makes the layer.
    pub(super) fn layer_of_tree(
        &self,
        lease: &Lease,
        image: &FileTree,
        size: u64,
        meaning: Meaning,
        name: &str,
    ) -> Result<CommittedLayer> {
        let limit = size.saturating_mul(self.limits().ratio).max(RATIO_GRACE).min(self.limits().layer_bytes);
        let (source, mut sink) = pipe(BUFFERS, BUFFER);
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || {
                let out = Feed { source, buffer: None, filled: 0 };
                archive::write(image, meaning, limit, out).and_then(|mut out| out.flush())
            });
            let made = self.layer_from_tar(lease, &mut sink);
            drop(sink);
            let read = reading.join().unwrap_or_else(|_| Err(io::Error::other("the reader broke off")));
            match (read, made) {
                // What the reader fails with where the other end gave up says nothing.
                (Err(e), _) if e.kind() != io::ErrorKind::BrokenPipe => {
                    Err(Error::Archive { object: name.to_owned(), reason: e.to_string() })
                }
                (_, made) => made,
            }
        })
    }
}

/// A writer into a pipe.
struct Feed {
    source: Source,
    buffer: Option<Vec<u8>>,
    filled: usize,
}

impl Write for Feed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_: Gone| io::Error::from(io::ErrorKind::BrokenPipe);
        let mut buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => self.source.buffer().map_err(gone)?,
        };
        let n = bytes.len().min(buffer.len() - self.filled);
        buffer[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
        self.filled += n;
        if self.filled == buffer.len() {
            self.source.send(buffer, std::mem::take(&mut self.filled)).map_err(gone)?;
        } else {
            self.buffer = Some(buffer);
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(buffer) = self.buffer.take() {
            let filled = std::mem::take(&mut self.filled);
            self.source.send(buffer, filled).map_err(|Gone| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
        Ok(())
    }
}

pub(super) fn no_root(sif: &Sif) -> Error {
    Error::document(sif.name(), "it has no partition with a root file system")
}

/// The file system in a partition.
fn partition_of(sif: &Sif, object: &Object, passphrase: Option<&[u8]>) -> Result<FileTree> {
    let unsupported = |what: &str| {
        let what = format!("{what} as the root file system of an image in the store");
        Err(Error::Unsupported { object: sif.name().to_owned(), what })
    };
    match object.partition().map(|partition| partition.file_system) {
        Some(FileSystem::Squashfs) => FileTree::squashfs(sif.file(), object.offset, object.size, sif.name()),
        Some(FileSystem::Ext3) => FileTree::ext(sif.file(), object.offset, object.size, sif.name()),
        Some(kind @ (FileSystem::EncryptedSquashfs | FileSystem::GocryptfsSquashfs)) => match passphrase {
            Some(passphrase) => {
                let luks = kind == FileSystem::EncryptedSquashfs;
                FileTree::decrypted(sif.file(), object.offset, object.size, luks, passphrase, sif.name())
            }
            None => unsupported("an encrypted partition, which would lie open there,"),
        },
        _ => unsupported("such a partition"),
    }
}

/// The configuration of an image with a file's root file system.
///
/// A file that was converted from an OCI image, which a definition without sections tells, starts as that image did;
/// others start by their runscript. Of both the rest is as the OCI image had it, as far as there was one.
fn flat_config(sif: Option<&Sif>, root: &FileTree) -> ImageConfig {
    let text = |object: Option<&Object>| {
        let bytes = sif?.read(object?, TEXT_LIMIT).ok()?;
        String::from_utf8(bytes).ok()
    };
    let json = |name| text(sif.and_then(|sif| sif.json(name)));
    let of_oci: Option<ContainerConfig> = json(OCI_CONFIG).and_then(|text| serde_json::from_str(&text).ok());
    let inspection = json(INSPECTION).and_then(|text| Inspection::from_json(text.as_bytes()));
    let attributes = inspection.unwrap_or_else(|| Inspection::of(root)).data.attributes;
    let definition = text(sif.and_then(|sif| sif.of_kind(Kind::Definition).next()));
    let definition = definition.unwrap_or_else(|| attributes.deffile.clone());
    let is_converted = of_oci.is_some()
        && !definition.trim().is_empty()
        && !definition.lines().any(|line| line.trim_start().starts_with('%'));

    let arch = sif.map(|sif| sif.header().arch.name()).filter(|name| *name != "unknown");
    let mut platform = Platform::host();
    if let Some(arch) = arch.filter(|arch| *arch != platform.architecture) {
        platform = Platform::new("linux", arch, None);
    }
    let mut config = ImageConfig::empty(&platform);
    config.config = of_oci.unwrap_or_default();
    if !is_converted {
        config.config.labels = attributes.labels;
    }
    if !is_converted && let Some(start) = [RUN, RUNSCRIPT].into_iter().find(|path| root.find(path).is_some())
    {
        config.config.entrypoint = Some(vec![start.to_owned()]);
        config.config.cmd = None;
    }
    config.created =
        sif.map(|sif| sif.header().created).filter(|time| (0..1 << 40).contains(time)).map(rfc3339);
    let history =
        History { created: config.created.clone(), created_by: Some("SIF".into()), ..History::default() };
    config.history = vec![history];
    config
}

/// What tells that a file is the one that was read before; none while it is so fresh that it may still change.
fn key(file: &std::fs::File, name: &str) -> Result<Option<Digest>> {
    let stat =
        file.metadata().map_err(|source| Error::Io { doing: "look at", object: name.to_owned(), source })?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs().cast_signed());
    if stat.ctime() > now - FRESH {
        return Ok(None);
    }
    let facts = [stat.size().cast_signed(), stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec()];
    let text = format!("image file 1 {} {} {facts:?}", stat.dev(), stat.ino());
    Ok(Some(digest_of(Algorithm::Sha256, text.as_bytes())))
}
