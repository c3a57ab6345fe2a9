//! Images from files: OCI layout folders and archives (image-spec, image-layout.md), Docker archives as
//! `docker save` and `podman save` write them.
//!
//! An archive is read once, from beginning to end, so it may come from a pipe: what may be a blob goes into
//! the store under the digest that it turns out to have, small documents are kept in memory, and the
//! documents decide at the end. Nothing is believed: every digest is checked, every size bounded, and `urls`
//! of foreign layers are not looked at.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use isles_spec::image::{Descriptor, ImageConfig, Index, Manifest, attached, media_type};
use isles_spec::{Algorithm, Digest, Progress, Quiet, Reference};
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

use crate::decompress::{Decoder, Encoding};
use crate::error::At;
use crate::layer::to_json;
use crate::tar::{Entry, Kind, ReadLimits, Reader, display};
use crate::{Error, Image, Lease, NewImage, Result, Store};

const BUFFER: usize = 256 << 10;
/// Files of an archive that are not blobs, in number and in bytes of all.
const DOCUMENTS: usize = 20_000;
const DOCUMENT_BYTES: usize = 64 << 20;
/// Indexes within indexes.
const NESTING: usize = 4;
/// Manifests that one import looks at.
const MANIFESTS: usize = 1000;
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image that was read, with the names that it got.
pub type Imported = (Image, Vec<Reference>);

impl Store {
    /// Reads images from an archive (OCI or Docker, also compressed), which is recognised by its content,
    /// and gives them the names it says.
    pub fn import_archive(
        &self,
        lease: &Lease,
        archive: &mut (dyn Read + Send),
        progress: &dyn Progress,
    ) -> Result<Vec<Imported>> {
        self.import_from_archive(lease, archive, None, progress)
    }

    /// As [`Store::import_archive`]; of an OCI layout only the image with the name or tag `select`.
    pub fn import_from_archive(
        &self,
        lease: &Lease,
        archive: &mut (dyn Read + Send),
        select: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Vec<Imported>> {
        let files = self.read_archive(lease, archive, progress)?;
        let import = Import { store: self, lease, progress, from: From::Store };
        let names = files.docker_names();
        if let Some(index) = files.documents.get(&b"index.json"[..]) {
            return import.index(index, select, &names);
        }
        match files.documents.get(&b"manifest.json"[..]) {
            Some(manifest) => import.docker(manifest, &files),
            None if files.documents.contains_key(&b"repositories"[..]) => Err(Error::Unsupported {
                object: "the archive".into(),
                what: "the format of Docker before 1.10".into(),
            }),
            None => Err(Error::Archive {
                object: "the file".into(),
                reason: "it has neither index.json nor manifest.json, so it is no image".into(),
            }),
        }
    }

    /// Reads images from an OCI layout folder: the one with the name or tag `select`, or all.
    pub fn import_oci_dir(
        &self,
        lease: &Lease,
        dir: &Path,
        select: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Vec<Imported>> {
        self.read_layout(lease, dir, select, progress).map_err(|e| e.or_outside(&self.root))
    }

    /// Takes the images of a manifest or an index that is in the store with all its blobs, and that the lease holds.
    pub fn import_document(
        &self,
        lease: &Lease,
        root: &Descriptor,
        progress: &dyn Progress,
    ) -> Result<Vec<Imported>> {
        let import = Import { store: self, lease, progress, from: From::Store };
        let mut walk = Walk { seen: HashSet::new(), left: MANIFESTS, out: Vec::new() };
        import.descriptor(root, None, Vec::new(), &HashMap::new(), 0, &mut walk)?;
        if walk.out.is_empty() {
            return Err(Error::document(&root.digest, "it names no image"));
        }
        Ok(walk.out)
    }

    fn read_layout(
        &self,
        lease: &Lease,
        dir: &Path,
        select: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Vec<Imported>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(dir, flags, Mode::empty()).at("open", dir)?;
        let read = |name: &str| -> Result<Vec<u8>> {
            let file = crate::sys::open_in_root(fd.as_fd(), name.as_bytes(), OFlags::RDONLY, false)
                .at("open", &dir.join(name))?;
            bounded(File::from(file), self.limits.document, name)
        };
        match read("oci-layout") {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let reason = "it has no file oci-layout, so it is no image layout";
                return Err(Error::document(dir.display(), reason));
            }
            other => other?,
        };
        let index = read("index.json")?;
        let import = Import { store: self, lease, progress, from: From::Dir(fd, dir) };
        import.index(&index, select, &HashMap::new())
    }

    fn read_archive(
        &self,
        lease: &Lease,
        archive: &mut (dyn Read + Send),
        progress: &dyn Progress,
    ) -> Result<Files> {
        let object = "the archive";
        let id = progress.begin("reading the archive", None);
        let input = Decoder::new(BufReader::with_capacity(BUFFER, archive)).map_err(|source| Error::Io {
            doing: "read",
            object: object.into(),
            source,
        })?;
        let limits = ReadLimits { entries: 100_000, ..ReadLimits::default() };
        let mut reader = Reader::new(BufReader::with_capacity(BUFFER, input), limits);
        let mut entry = Entry::default();
        let mut files = Files::default();
        let mut bytes = 0;
        while reader.next(&mut entry).map_err(|e| e.of(object))? {
            let mut path = Vec::new();
            crate::dirs::clean(&entry.path, &mut path)
                .map_err(|reason| Error::Archive { object: object.into(), reason: reason.into() })?;
            match entry.kind {
                Kind::File => {}
                Kind::Symlink | Kind::Hardlink => {
                    let base = if entry.kind == Kind::Symlink { crate::dirs::split(&path).0 } else { b"" };
                    if files.links.len() < DOCUMENTS
                        && let Some(target) = relative(base, &entry.link)
                    {
                        files.links.insert(path, target);
                    }
                    continue;
                }
                _ => continue,
            }
            progress.advance(id, entry.size);
            let named = blob_digest(&path);
            if named.is_none() && !path.ends_with(b".tar") && entry.size <= self.limits.document as u64 {
                let data = reader.read_all(self.limits.document).map_err(|e| e.of(object))?;
                bytes += data.len();
                if files.documents.len() >= DOCUMENTS || bytes > DOCUMENT_BYTES {
                    let limit = DOCUMENT_BYTES as u64;
                    return Err(Error::Limit {
                        object: object.into(),
                        what: "what is not a layer".into(),
                        limit,
                    });
                }
                files.documents.insert(path, data);
                continue;
            }
            if entry.size > self.limits.layer_bytes || entry.sparse.is_some() {
                let what = format!("the size of '{}'", display(&path));
                return Err(Error::Limit { object: object.into(), what, limit: self.limits.layer_bytes });
            }
            let algorithm = named.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
            let mut blob = self.blob_writer(lease, algorithm)?;
            let mut start = [0u8; 8];
            let mut seen = 0;
            loop {
                let slice = reader.data().map_err(|e| e.of(object))?;
                if slice.is_empty() {
                    break;
                }
                if seen < start.len() {
                    let n = slice.len().min(start.len() - seen);
                    start[seen..seen + n].copy_from_slice(&slice[..n]);
                    seen += n;
                }
                io::Write::write_all(&mut blob, slice).at("write a blob in", self.root())?;
                let n = slice.len();
                reader.consume(n);
            }
            let (digest, size) = blob.finish(lease, named.as_ref())?;
            let encoding = Encoding::of(&start[..seen]);
            files.blobs.insert(path, Stored { digest, size, encoding });
        }
        progress.end(id, "read");
        Ok(files)
    }
}

/// What an archive had.
#[derive(Default)]
struct Files {
    documents: HashMap<Vec<u8>, Vec<u8>>,
    blobs: HashMap<Vec<u8>, Stored>,
    links: HashMap<Vec<u8>, Vec<u8>>,
}

struct Stored {
    digest: Digest,
    size: u64,
    encoding: Encoding,
}

impl Files {
    /// The path behind links, as Docker wrote them for layers that images share.
    fn follow<'a>(&'a self, path: &'a [u8]) -> &'a [u8] {
        let mut path = path;
        for _ in 0..8 {
            match self.links.get(path) {
                Some(target) => path = target,
                None => break,
            }
        }
        path
    }

    /// The names that Docker's own list gives to configurations, for archives that have both lists.
    fn docker_names(&self) -> HashMap<Digest, Vec<Reference>> {
        let mut names: HashMap<Digest, Vec<Reference>> = HashMap::new();
        let list = self.documents.get(&b"manifest.json"[..]);
        let images: Vec<DockerImage> = list.and_then(|l| serde_json::from_slice(l).ok()).unwrap_or_default();
        for image in images {
            if let Some(config) = blob_digest(image.config.as_bytes()) {
                let tags = image.repo_tags.unwrap_or_default();
                names.entry(config).or_default().extend(tags.iter().filter_map(|t| t.parse().ok()));
            }
        }
        names
    }
}

/// One image of Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub layers: Option<Vec<String>>,
}

/// Where blobs come from.
enum From<'a> {
    /// They are in the store already.
    Store,
    /// An open layout, and its path.
    Dir(OwnedFd, &'a Path),
}

struct Import<'a> {
    store: &'a Store,
    lease: &'a Lease,
    progress: &'a dyn Progress,
    from: From<'a>,
}

impl Import<'_> {
    fn docker(&self, list: &[u8], files: &Files) -> Result<Vec<Imported>> {
        let images: Vec<DockerImage> =
            serde_json::from_slice(list).map_err(|e| Error::document("manifest.json", e))?;
        if images.len() > MANIFESTS {
            let limit = MANIFESTS as u64;
            return Err(Error::Limit {
                object: "manifest.json".into(),
                what: "the number of images".into(),
                limit,
            });
        }
        images.iter().map(|image| self.docker_image(image, files)).collect()
    }

    fn docker_image(&self, image: &DockerImage, files: &Files) -> Result<Imported> {
        let find = |name: &str| -> Result<Vec<u8>> {
            let mut path = Vec::new();
            crate::dirs::clean(name.as_bytes(), &mut path).map_err(|reason| Error::document(name, reason))?;
            Ok(files.follow(&path).to_vec())
        };
        let missing =
            |name: &str| Error::document("manifest.json", format!("'{name}' is not in the archive"));
        let path = find(&image.config)?;
        let config = match (files.documents.get(&path), files.blobs.get(&path)) {
            (Some(bytes), _) => bytes.clone(),
            (None, Some(blob)) => self.store.read_document(&blob.digest)?,
            (None, None) => return Err(missing(&image.config)),
        };
        let id = self.store.put_bytes(self.lease, &config)?;
        let parsed: ImageConfig =
            serde_json::from_slice(&config).map_err(|e| Error::document(&image.config, e))?;
        let layers = image.layers.as_deref().unwrap_or_default();
        let diff_ids = &parsed.rootfs.diff_ids;
        if layers.len() != diff_ids.len() {
            let reason =
                format!("{} layers, but {} diff IDs in the configuration", layers.len(), diff_ids.len());
            return Err(Error::document(&image.config, reason));
        }
        let mut descriptors = Vec::new();
        for (name, diff_id) in layers.iter().zip(diff_ids) {
            let path = find(name)?;
            let blob = files.blobs.get(&path).ok_or_else(|| missing(name))?;
            let media_type = match blob.encoding {
                Encoding::Gzip => media_type::OCI_LAYER_GZIP,
                Encoding::Zstd => media_type::OCI_LAYER_ZSTD,
                _ => media_type::OCI_LAYER,
            };
            let descriptor = Descriptor::new(media_type, blob.digest.clone(), blob.size);
            self.layer(&descriptor, diff_id)?;
            descriptors.push(descriptor);
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            artifact_type: None,
            config: Descriptor::new(media_type::OCI_CONFIG, id, config.len() as u64),
            layers: descriptors,
            subject: None,
            annotations: Default::default(),
        };
        let tags = image.repo_tags.as_deref().unwrap_or_default();
        let refs = tags
            .iter()
            .map(|tag| tag.parse().map_err(|e| Error::document("manifest.json", e)))
            .collect::<Result<Vec<Reference>>>()?;
        let manifest = to_json(&manifest)?;
        let put = NewImage { manifest: &manifest, refs: &refs, ..NewImage::default() };
        Ok((self.store.put_image(self.lease, &put)?, refs))
    }

    /// Images of an `index.json`.
    fn index(
        &self,
        bytes: &[u8],
        select: Option<&str>,
        names: &HashMap<Digest, Vec<Reference>>,
    ) -> Result<Vec<Imported>> {
        let index: Index = serde_json::from_slice(bytes).map_err(|e| Error::document("index.json", e))?;
        let chosen: Vec<&Descriptor> =
            index.manifests.iter().filter(|d| select.map_or(!is_attached(d), |s| is_called(d, s))).collect();
        if let (Some(select), true) = (select, chosen.is_empty()) {
            return Err(Error::NoImage { name: select.to_owned() });
        }
        let mut walk = Walk { seen: HashSet::new(), left: MANIFESTS, out: Vec::new() };
        let mut absent = None;
        for descriptor in chosen {
            // Several tags may stand for one manifest; each gives its name.
            walk.seen.clear();
            match self.descriptor(descriptor, None, names_of(descriptor), names, 0, &mut walk) {
                // An archive of one platform still has the index of all.
                Err(Error::NoBlob { digest }) => absent = Some(digest),
                other => other?,
            }
        }
        match (walk.out.is_empty(), absent) {
            (true, Some(digest)) => Err(Error::NoBlob { digest }),
            (true, None) => Err(Error::document("index.json", "it names no image")),
            _ => Ok(walk.out),
        }
    }

    /// Follows a descriptor to the images behind it.
    fn descriptor(
        &self,
        descriptor: &Descriptor,
        parent: Option<&[u8]>,
        refs: Vec<Reference>,
        names: &HashMap<Digest, Vec<Reference>>,
        depth: usize,
        walk: &mut Walk,
    ) -> Result<()> {
        if depth > NESTING {
            let limit = NESTING as u64;
            return Err(Error::Limit {
                object: descriptor.digest.to_string(),
                what: "the nesting of indexes".into(),
                limit,
            });
        }
        if !walk.seen.insert(descriptor.digest.clone()) || is_attestation(descriptor) {
            return Ok(());
        }
        walk.left = walk.left.checked_sub(1).ok_or_else(|| Error::Limit {
            object: "index.json".into(),
            what: "the number of manifests".into(),
            limit: MANIFESTS as u64,
        })?;
        let bytes = self.document(&descriptor.digest)?;
        if media_type::is_index(&descriptor.media_type) {
            let index: Index =
                serde_json::from_slice(&bytes).map_err(|e| Error::document(&descriptor.digest, e))?;
            let before = walk.out.len();
            let mut absent = None;
            for child in &index.manifests {
                match self.descriptor(child, Some(&bytes), refs.clone(), names, depth + 1, walk) {
                    Err(Error::NoBlob { digest }) => absent = Some(digest),
                    other => other?,
                }
            }
            return match absent {
                Some(digest) if walk.out.len() == before => Err(Error::NoBlob { digest }),
                _ => Ok(()),
            };
        }
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| Error::document(&descriptor.digest, e))?;
        if manifest.artifact_type.is_some() || manifest.config.media_type == media_type::OCI_EMPTY {
            return Ok(());
        }
        let config = self.document(&manifest.config.digest)?;
        self.store.put_expected(self.lease, &manifest.config.digest, &config)?;
        let parsed: ImageConfig =
            serde_json::from_slice(&config).map_err(|e| Error::document(&manifest.config.digest, e))?;
        for (layer, diff_id) in manifest.layers.iter().zip(&parsed.rootfs.diff_ids) {
            self.layer(layer, diff_id)?;
        }
        let mut refs = refs;
        if refs.is_empty() {
            refs = names.get(&manifest.config.digest).cloned().unwrap_or_default();
        }
        let put = NewImage {
            manifest: &bytes,
            media_type: Some(descriptor.media_type.as_str()).filter(|t| !t.is_empty()),
            index: parent,
            refs: &refs,
        };
        let image = self.store.put_image(self.lease, &put)?;
        match walk.out.iter_mut().find(|(known, _)| known.manifest_digest == image.manifest_digest) {
            Some((_, known)) => known.extend(refs),
            None => walk.out.push((image, refs)),
        }
        Ok(())
    }

    /// A document by digest, checked.
    fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let From::Dir(fd, dir) = &self.from else { return self.store.read_document(digest) };
        let file = open_in_layout(fd, dir, digest)?;
        let bytes = bounded(file, self.store.limits.document, &digest.to_string())?;
        let actual = crate::hash::digest_of(digest.algorithm(), &bytes);
        if actual != *digest {
            return Err(Error::WrongDigest {
                object: format!("blob {digest}"),
                expected: digest.clone(),
                actual,
            });
        }
        Ok(bytes)
    }

    fn layer(&self, blob: &Descriptor, diff_id: &Digest) -> Result<()> {
        let mut open = |offset: u64| -> io::Result<Box<dyn Read>> {
            let mut file = match &self.from {
                From::Store => self.store.open_blob(&blob.digest),
                From::Dir(fd, dir) => open_in_layout(fd, dir, &blob.digest),
            }
            .map_err(io::Error::other)?;
            file.seek(SeekFrom::Start(offset))?;
            Ok(Box::new(file))
        };
        // Said at once, not as a failed fetch.
        if !self.store.has_layer(diff_id) && !self.store.has_blob(&blob.digest) {
            match &self.from {
                From::Store => return Err(Error::NoBlob { digest: blob.digest.clone() }),
                From::Dir(fd, dir) => drop(open_in_layout(fd, dir, &blob.digest)?),
            }
        }
        // Nobody waits for what is here.
        let is_here = self.store.has_layer(diff_id)
            && self.store.blob_of_layer(diff_id, Some(&blob.digest)).is_ok_and(|found| found.is_some());
        let progress: &dyn Progress = if is_here { &Quiet } else { self.progress };
        self.store.ingest_layer(self.lease, blob, diff_id, &mut open, progress).map(drop)
    }
}

/// What a walk through indexes has seen and found.
struct Walk {
    seen: HashSet<Digest>,
    left: usize,
    out: Vec<Imported>,
}

/// Opens a blob of a layout in a folder.
pub(crate) fn open_in_layout(fd: &OwnedFd, dir: &Path, digest: &Digest) -> Result<File> {
    let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
    match crate::sys::open_in_root(fd.as_fd(), name.as_bytes(), OFlags::RDONLY, false) {
        Ok(fd) => Ok(File::from(fd)),
        Err(rustix::io::Errno::NOENT) => Err(Error::NoBlob { digest: digest.clone() }),
        Err(e) => Err(Error::io("open", &dir.join(&name), e)),
    }
}

pub(crate) fn bounded(file: File, limit: usize, object: &str) -> Result<Vec<u8>> {
    let limit = limit as u64;
    let bytes = crate::read_bounded(file, limit).at("read", Path::new(object))?;
    let what = "the document's size".to_owned();
    bytes.ok_or_else(|| Error::Limit { object: object.to_owned(), what, limit })
}

/// The digest that a path in an OCI layout stands for.
pub(crate) fn blob_digest(path: &[u8]) -> Option<Digest> {
    let rest = std::str::from_utf8(path).ok()?.strip_prefix("blobs/")?;
    rest.replacen('/', ":", 1).parse().ok()
}

/// A link's target as a path in the archive.
pub(crate) fn relative(base: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> =
        if target.starts_with(b"/") { Vec::new() } else { base.split(|b| *b == b'/').collect() };
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    parts.retain(|p| !p.is_empty());
    Some(parts.join(&b'/'))
}

/// The names that an index gives to one of its manifests. A bare tag is no name.
fn names_of(descriptor: &Descriptor) -> Vec<Reference> {
    let full = descriptor.annotations.get(CONTAINERD_NAME);
    let short = descriptor.annotations.get(REF_NAME).filter(|n| n.contains([':', '/']));
    full.or(short).and_then(|name| name.parse().ok()).into_iter().collect()
}

pub(crate) fn is_called(descriptor: &Descriptor, select: &str) -> bool {
    let wanted = select.parse::<Reference>().ok().map(|r| r.normalized());
    let names = names_of(descriptor);
    descriptor.annotations.get(REF_NAME).is_some_and(|n| n == select)
        || descriptor.digest.to_string() == select
        || names.iter().any(|n| n.tag() == Some(select) || wanted.as_ref() == Some(&n.normalized()))
}

/// Signatures and the like lie beside images under tags of their own.
pub(crate) fn is_attached(descriptor: &Descriptor) -> bool {
    descriptor.annotations.get(REF_NAME).is_some_and(|name| attached::is_tag(name))
}

/// Provenance and the like stand beside images in BuildKit's indexes.
fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.annotations.contains_key("vnd.docker.reference.type")
        || descriptor.platform.as_ref().is_some_and(|p| p.os == "unknown")
}
