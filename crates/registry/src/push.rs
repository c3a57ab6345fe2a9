//! Push: what the registry has is not sent, what a sibling repository has is mounted, the rest is uploaded,
//! several blobs at once (distribution-spec, "Push").

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::Mutex;

use isles_spec::image::{Descriptor, Index, Manifest, media_type};
use isles_spec::{Digest, Platform, Progress, Reference};
use isles_store::{Compression, Image, Lease, Offer, Store};

use crate::client::Repository;
use crate::http::{lock, sentence};
use crate::manifest::digest_of;
use crate::together;
use crate::upload::{Nearby, Sender};
use crate::{Client, Error, Result};

const DOCKER_TYPES: &str = "application/vnd.docker.";
/// Repositories that are tried as the source of a mount.
const MOUNT_SOURCES: usize = 3;

/// What a push did.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// What the name stands for in the registry now.
    pub target: Descriptor,
    pub uploaded: usize,
    pub mounted: usize,
    /// Blobs that the registry had already.
    pub existing: usize,
    /// Bytes of blobs that went over the network.
    pub bytes: u64,
}

/// Everything that stays the same in one push.
pub(crate) struct Push<'a> {
    pub sender: Sender<'a>,
    store: &'a Store,
    lease: &'a Lease,
    connections: usize,
    /// Repositories of the same registry that should have a blob.
    sources: HashMap<Digest, Vec<String>>,
    /// A blob that is no blob of the store's.
    file: Option<(&'a Digest, &'a File)>,
}

/// A blob that the registry must have before the manifest.
enum Part<'a> {
    Blob(&'a Descriptor),
    /// A layer; one that is here uncompressed is compressed first.
    Layer {
        place: usize,
        blob: &'a Descriptor,
        diff_id: &'a Digest,
    },
}

impl Client {
    /// Sends an image of the store to a registry as `target`. `name` is a name, an ID or a digest in the
    /// store. A name that stands for several platforms is pushed whole where all of them are here and
    /// `platform` does not choose one.
    pub fn push(
        &self,
        store: &Store,
        name: &str,
        platform: Option<&Platform>,
        target: &Reference,
        progress: &dyn Progress,
    ) -> Result<Pushed> {
        self.pushed(store, target, progress, |push, target| match whole_index(store, name, platform)? {
            Some((digest, index)) => push.index(&digest, &index, target),
            None => push.image(&store.resolve(name, platform)?, Some(target)),
        })
    }

    /// Sends a manifest or an index of the store as it is, with everything that it names: images whose layers
    /// stay in the encoding that they have, attestations, caches.
    pub fn push_document(
        &self,
        store: &Store,
        document: &Descriptor,
        target: &Reference,
        progress: &dyn Progress,
    ) -> Result<Pushed> {
        self.pushed(store, target, progress, |push, target| push.as_it_is(document, Some(target)))
    }

    fn pushed(
        &self,
        store: &Store,
        target: &Reference,
        progress: &dyn Progress,
        send: impl FnOnce(&Push<'_>, &Reference) -> Result<Descriptor>,
    ) -> Result<Pushed> {
        let repository = self.repository(target)?;
        let lease = store.lease()?;
        let connections = self.options.connections;
        let sources = sources(store, target)?;
        let push = Push { connections, sources, ..Push::new(&repository, store, &lease, progress) };
        let sent = send(&push, &target.normalized())?;
        Ok(push.sender.counts.pushed(sent))
    }
}

/// The index that a name stands for, where every image in it is here.
fn whole_index(store: &Store, name: &str, platform: Option<&Platform>) -> Result<Option<(Digest, Index)>> {
    let Ok(reference) = name.parse::<Reference>() else { return Ok(None) };
    let (None, Some(digest)) = (platform, store.lookup(&reference)?) else { return Ok(None) };
    if store.has_image(&digest) {
        return Ok(None);
    }
    let Ok(index) = serde_json::from_slice::<Index>(&store.read_document(&digest)?) else { return Ok(None) };
    let here = |d: &Descriptor| store.has_image(&d.digest) || (is_artefact(d) && store.has_blob(&d.digest));
    let images = index.manifests.iter().filter(|d| store.has_image(&d.digest)).count();
    let whole = images > 0 && index.manifests.iter().all(here);
    Ok(whole.then_some((digest, index)))
}

/// What an index names besides images: attestations, as BuildKit marks them.
fn is_artefact(entry: &Descriptor) -> bool {
    entry.platform.as_ref().is_some_and(|p| p.os == "unknown" && p.architecture == "unknown")
}

/// Which other repositories of the target's registry hold which blobs, as far as the names here tell.
fn sources(store: &Store, target: &Reference) -> Result<HashMap<Digest, Vec<String>>> {
    let mut found: HashMap<Digest, Vec<String>> = HashMap::new();
    let mut seen = HashSet::new();
    for (reference, digest) in store.references()? {
        let sibling = reference.registry() == target.registry()
            && reference.repository() != target.repository()
            && seen.insert((reference.repository().to_owned(), digest.clone()));
        if !sibling {
            continue;
        }
        let images = if store.has_image(&digest) {
            vec![digest]
        } else {
            let index = store.read_document(&digest).ok();
            let index = index.and_then(|text| serde_json::from_slice::<Index>(&text).ok());
            index.map(|i| i.manifests.into_iter().map(|d| d.digest).collect()).unwrap_or_default()
        };
        for image in images.iter().filter(|d| store.has_image(d)) {
            let Ok(image) = store.image(image) else { continue };
            for blob in image.manifest.layers.iter().chain([&image.manifest.config]) {
                let names = found.entry(blob.digest.clone()).or_default();
                if names.len() < MOUNT_SOURCES && !names.iter().any(|n| n == reference.repository()) {
                    names.push(reference.repository().to_owned());
                }
            }
        }
    }
    Ok(found)
}

impl<'a> Push<'a> {
    /// A push of blobs of the store, and of one in a file.
    pub fn of_file(
        repository: &'a Repository<'a>,
        store: &'a Store,
        lease: &'a Lease,
        file: (&'a Digest, &'a File),
        progress: &'a dyn Progress,
    ) -> Push<'a> {
        Push { file: Some(file), ..Push::new(repository, store, lease, progress) }
    }

    /// A push of blobs of the store over one connection.
    fn new(
        repository: &'a Repository<'a>,
        store: &'a Store,
        lease: &'a Lease,
        progress: &'a dyn Progress,
    ) -> Push<'a> {
        let sender = Sender::new(repository, progress);
        Push { sender, store, lease, connections: 1, sources: HashMap::new(), file: None }
    }
}

impl Push<'_> {
    /// Sends every image of an index, then the index.
    fn index(&self, digest: &Digest, index: &Index, target: &Reference) -> Result<Descriptor> {
        let bytes = self.store.read_document(digest)?;
        let mut renamed = Vec::new();
        for entry in index.manifests.iter().filter(|d| !self.store.has_image(&d.digest)) {
            self.as_it_is(entry, None)?;
        }
        for entry in index.manifests.iter().filter(|d| self.store.has_image(&d.digest)) {
            let sent = self.image(&self.store.image(&entry.digest)?, None)?;
            if sent.digest != entry.digest {
                renamed.push((entry.digest.clone(), sent));
            }
        }
        let kind = index.media_type.as_deref().unwrap_or(media_type::OCI_INDEX);
        let bytes = if renamed.is_empty() { bytes } else { replaced(&bytes, &renamed)? };
        self.sender.document(kind, &bytes, target)
    }

    /// Sends a document, and what it names before it; by `target` or, without one, by its digest.
    fn as_it_is(&self, document: &Descriptor, target: Option<&Reference>) -> Result<Descriptor> {
        let bytes = self.store.read_document(&document.digest)?;
        if media_type::is_index(&document.media_type) {
            let index: Index = serde_json::from_slice(&bytes).map_err(unwritable)?;
            for entry in &index.manifests {
                self.as_it_is(entry, None)?;
            }
        } else {
            let manifest: Manifest = serde_json::from_slice(&bytes).map_err(unwritable)?;
            let mut blobs: Vec<&Descriptor> = manifest.layers.iter().chain([&manifest.config]).collect();
            blobs.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.digest.cmp(&b.digest)));
            blobs.dedup_by(|a, b| a.digest == b.digest);
            let parts: Vec<Part<'_>> = blobs.into_iter().map(Part::Blob).collect();
            self.parts(&parts, &Mutex::default())?;
        }
        let by_digest = self.sender.repository.reference()?.with_digest(document.digest.clone());
        self.sender.document(&document.media_type, &bytes, target.unwrap_or(&by_digest))
    }

    /// Sends an image's blobs and its manifest, by `target` or, without one, by its digest.
    fn image(&self, image: &Image, target: Option<&Reference>) -> Result<Descriptor> {
        let manifest = &image.manifest;
        let mut parts: Vec<Part<'_>> = manifest
            .layers
            .iter()
            .zip(&image.config.rootfs.diff_ids)
            .enumerate()
            .map(|(place, (blob, diff_id))| Part::Layer { place, blob, diff_id })
            .collect();
        parts.sort_by_key(|p| match p {
            Part::Layer { blob, .. } | Part::Blob(blob) => std::cmp::Reverse(blob.size),
        });
        parts.push(Part::Blob(&manifest.config));
        let layers = Mutex::new(manifest.layers.clone());
        self.parts(&parts, &layers)?;
        let layers = layers.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bytes = if layers == manifest.layers {
            self.store.read_document(&image.manifest_digest)?
        } else {
            let changed = Manifest { layers, ..manifest.clone() };
            serde_json::to_vec(&changed).map_err(unwritable)?
        };
        let algorithm = image.manifest_digest.algorithm();
        let by_digest = self.sender.repository.reference()?.with_digest(digest_of(algorithm, &bytes));
        self.sender.document(&image.manifest_media_type, &bytes, target.unwrap_or(&by_digest))
    }

    /// Brings the parts to the registry, several at once.
    fn parts(&self, parts: &[Part<'_>], layers: &Mutex<Vec<Descriptor>>) -> Result<()> {
        let queue = Mutex::new((parts.iter(), HashSet::new()));
        let next = || {
            let mut queue = lock(&queue);
            let (parts, seen) = &mut *queue;
            // A layer that occurs twice is one blob.
            parts.find(|part| match part {
                Part::Blob(_) => true,
                Part::Layer { blob, .. } => seen.insert(blob.digest.clone()),
            })
        };
        let threads = self.connections.min(parts.len());
        together::each(threads, &self.sender.counts.stop, &next, &|part| self.part(part, layers))
    }

    fn part(&self, part: &Part<'_>, layers: &Mutex<Vec<Descriptor>>) -> Result<()> {
        match part {
            Part::Blob(blob) => self.blob(blob),
            Part::Layer { place, blob, diff_id } => {
                let docker = blob.media_type.starts_with(DOCKER_TYPES);
                if !matches!(blob.media_type.as_str(), media_type::OCI_LAYER | media_type::DOCKER_LAYER) {
                    match self.blob(blob) {
                        // The same layer is here under another compression, and the registry has neither.
                        Err(Error::Store(e)) if matches!(*e, isles_store::Error::NoBlob { .. }) => {}
                        other => return other,
                    }
                }
                let mut compressed = self.store.compressed_layer(self.lease, diff_id, Compression::Gzip)?;
                compressed.media_type = media_type::layer(&compressed.media_type, docker).to_owned();
                self.blob(&compressed)?;
                let mut layers = lock(layers);
                let plain = layers[*place].digest.clone();
                for layer in layers.iter_mut().filter(|l| l.digest == plain) {
                    layer.media_type.clone_from(&compressed.media_type);
                    layer.digest = compressed.digest.clone();
                    layer.size = compressed.size;
                }
                Ok(())
            }
        }
    }

    /// Sees to it that the registry has a blob.
    pub fn blob(&self, blob: &Descriptor) -> Result<()> {
        self.lease.hold(&blob.digest)?;
        let siblings = self.sources.get(&blob.digest).map_or(&[][..], Vec::as_slice);
        let nearby = || Ok(Nearby { siblings, offer: self.offered(blob)? });
        self.sender.blob(blob, &nearby, &|offset| {
            let mut file = match self.file {
                Some((digest, file)) if *digest == blob.digest => file.try_clone().map_err(reading(blob))?,
                _ => self.store.open_blob(&blob.digest)?,
            };
            file.seek(SeekFrom::Start(offset)).map_err(reading(blob))?;
            Ok(Box::new(file))
        })
    }

    /// Offers a blob of the store to a registry on this machine, which may serve the same store.
    fn offered(&self, blob: &Descriptor) -> Result<Option<Offer>> {
        if !self.sender.repository.reference()?.is_loopback() || !self.store.has_blob(&blob.digest) {
            return Ok(None);
        }
        Ok(Some(self.store.offer(std::slice::from_ref(&blob.digest))?))
    }
}

/// Why a blob cannot be read.
fn reading(blob: &Descriptor) -> impl Fn(io::Error) -> Error {
    let object = format!("blob {}", blob.digest);
    move |source| isles_store::Error::Io { doing: "read", object: object.clone(), source }.into()
}

/// The index with the descriptors of manifests that changed on their way out.
fn replaced(index: &[u8], renamed: &[(Digest, Descriptor)]) -> Result<Vec<u8>> {
    let mut value: serde_json::Value = serde_json::from_slice(index).map_err(unwritable)?;
    let entries = value.get_mut("manifests").and_then(|m| m.as_array_mut());
    for entry in entries.into_iter().flatten() {
        let digest = entry.get("digest").and_then(|d| d.as_str()).unwrap_or_default().to_owned();
        if let Some((_, sent)) = renamed.iter().find(|(old, _)| old.to_string() == digest) {
            entry["digest"] = sent.digest.to_string().into();
            entry["size"] = sent.size.into();
        }
    }
    serde_json::to_vec(&value).map_err(unwritable)
}

fn unwritable(e: serde_json::Error) -> Error {
    Error::NotAnImage { object: "the image".into(), why: sentence(&e.into()) }
}
