//! Push: what the registry has is not sent, what a sibling repository has is mounted, the rest is uploaded,
//! several blobs at once (distribution-spec, "Push").

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use isles_spec::image::{Descriptor, Index, Manifest, media_type};
use isles_spec::{Digest, Platform, Progress, Reference};
use isles_store::{Compression, Image, Lease, Offer, Store};
use ureq::http::{HeaderMap, HeaderValue, Method, Uri, header};

use crate::auth::Scope;
use crate::client::{Call, Repository, object_name};
use crate::http::{Payload, lock, sentence, text_of};
use crate::manifest::{digest_of, manifest_name};
use crate::{Client, Error, Result, location};

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

#[derive(Default)]
struct Counts {
    uploaded: AtomicU64,
    mounted: AtomicU64,
    existing: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
}

impl Counts {
    fn pushed(&self, target: Descriptor) -> Pushed {
        let number = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Pushed {
            target,
            uploaded: number(&self.uploaded) as usize,
            mounted: number(&self.mounted) as usize,
            existing: number(&self.existing) as usize,
            bytes: number(&self.bytes),
        }
    }
}

/// Everything that stays the same in one push.
pub(crate) struct Push<'a> {
    repository: &'a Repository<'a>,
    store: &'a Store,
    lease: &'a Lease,
    progress: &'a dyn Progress,
    connections: usize,
    /// Repositories of the same registry that should have a blob.
    sources: HashMap<Digest, Vec<String>>,
    counts: Counts,
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
        let repository = self.repository(target)?;
        let lease = store.lease()?;
        let connections = self.options.connections;
        let sources = sources(store, target)?;
        let push = Push { connections, sources, ..Push::new(&repository, store, &lease, progress) };
        let target = target.normalized();
        let sent = match whole_index(store, name, platform)? {
            Some((digest, index)) => push.index(&digest, &index, &target)?,
            None => push.image(&store.resolve(name, platform)?, Some(&target))?,
        };
        Ok(push.counts.pushed(sent))
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
        let repository = self.repository(target)?;
        let lease = store.lease()?;
        let connections = self.options.connections;
        let sources = sources(store, target)?;
        let push = Push { connections, sources, ..Push::new(&repository, store, &lease, progress) };
        let sent = push.as_it_is(document, Some(&target.normalized()))?;
        Ok(push.counts.pushed(sent))
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
        let (sources, counts) = (HashMap::new(), Counts::default());
        Push { repository, store, lease, progress, connections: 1, sources, counts, file: None }
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
        self.document(kind, &bytes, target)
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
        let by_digest = self.repository.reference()?.with_digest(document.digest.clone());
        self.document(&document.media_type, &bytes, target.unwrap_or(&by_digest))
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
        let by_digest = self.repository.reference()?.with_digest(digest_of(algorithm, &bytes));
        self.document(&image.manifest_media_type, &bytes, target.unwrap_or(&by_digest))
    }

    /// Brings the parts to the registry, several at once.
    fn parts(&self, parts: &[Part<'_>], layers: &Mutex<Vec<Descriptor>>) -> Result<()> {
        let queue = Mutex::new((parts.iter(), HashSet::new()));
        let failed = Mutex::new(None);
        let next = || {
            let mut queue = lock(&queue);
            let (parts, seen) = &mut *queue;
            // A layer that occurs twice is one blob.
            parts.find(|part| match part {
                Part::Blob(_) => true,
                Part::Layer { blob, .. } => seen.insert(blob.digest.clone()),
            })
        };
        let work = || {
            while let Some(part) = next() {
                if let Err(e) = self.part(part, layers) {
                    self.counts.stop.store(true, Ordering::Relaxed);
                    lock(&failed).get_or_insert(e);
                    return;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.connections.min(parts.len()) {
                scope.spawn(work);
            }
            work();
        });
        failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
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
        let id = self.progress.begin(blob.digest.short(), Some(blob.size));
        let result = self.offer(blob, id);
        self.progress.end(id, result.as_ref().map_or("failed", |how| how));
        result.map(|_| ())
    }

    fn offer(&self, blob: &Descriptor, id: u64) -> Result<&'static str> {
        let object = format!("blob {}", blob.digest);
        let scope = Scope::of(&self.repository.name, "pull,push");
        let url = self.repository.url(&format!("blobs/{}", blob.digest))?;
        let call = Call::get(url, &scope, "push", &object).method(Method::HEAD);
        let response = self.repository.send(&call)?;
        match response.status().as_u16() {
            200 => {
                self.counts.existing.fetch_add(1, Ordering::Relaxed);
                return Ok("already there");
            }
            401 => return Err(self.repository.refused(&call, response)),
            // Stores that the question was redirected to may refuse it. The upload then says more.
            _ => {}
        }
        let mut session = None;
        let offer = self.offered(blob)?;
        let siblings = self.sources.get(&blob.digest).map_or(&[][..], Vec::as_slice);
        let mut sources: Vec<Option<&str>> = siblings.iter().map(|name| Some(name.as_str())).collect();
        if sources.is_empty() && offer.is_some() {
            sources.push(None);
        }
        for source in sources {
            match self.mount(blob, source, offer.as_ref(), &object)? {
                Mounted::Yes => {
                    self.counts.mounted.fetch_add(1, Ordering::Relaxed);
                    return Ok("mounted");
                }
                Mounted::Upload(place) => session = Some(place),
                Mounted::No => {}
            }
            if session.is_some() {
                break;
            }
        }
        self.upload(blob, session, &object, &scope, id)?;
        self.counts.uploaded.fetch_add(1, Ordering::Relaxed);
        Ok("pushed")
    }

    /// Offers a blob of the store to a registry on this machine, which may serve the same store.
    fn offered(&self, blob: &Descriptor) -> Result<Option<Offer>> {
        if !self.repository.reference()?.is_loopback() || !self.store.has_blob(&blob.digest) {
            return Ok(None);
        }
        Ok(Some(self.store.offer(std::slice::from_ref(&blob.digest))?))
    }

    /// Asks the registry to take the blob from a sibling repository, or by an offer, which registries that know of
    /// none pass over. It may begin an upload instead.
    fn mount(
        &self,
        blob: &Descriptor,
        source: Option<&str>,
        offer: Option<&Offer>,
        object: &str,
    ) -> Result<Mounted> {
        let mut scope = Scope::of(&self.repository.name, "pull,push");
        let url = self.repository.url("blobs/uploads/")?;
        let mut url = location::with_query(&url, "mount", &blob.digest.to_string());
        if let Some(name) = source {
            scope = scope.and_pull(name);
            url = url.and_then(|u| location::with_query(&u, "from", name));
        }
        if let Some(offer) = offer {
            url = url.and_then(|u| location::with_query(&u, "offer", offer.id()));
        }
        let Some(url) = url else { return Ok(Mounted::No) };
        let call = Call { payload: Payload::Bytes(b""), ..Call::get(url, &scope, "push", object) };
        match self.repository.send(&call.method(Method::POST)) {
            Ok(r) if r.status() == 201 => Ok(Mounted::Yes),
            Ok(r) if r.status() == 202 => Ok(Mounted::Upload(self.session(r.headers())?)),
            // No right to the other repository, or no mounts here: the blob is sent.
            Ok(_) | Err(Error::Unauthorized { .. } | Error::Denied { .. }) => Ok(Mounted::No),
            Err(e) => Err(e),
        }
    }

    fn session(&self, headers: &HeaderMap) -> Result<Uri> {
        self.repository.place(text_of(headers, &header::LOCATION).unwrap_or_default())
    }

    /// Sends a blob. After a broken connection the registry is asked how much has arrived.
    fn upload(
        &self,
        blob: &Descriptor,
        session: Option<Uri>,
        object: &str,
        scope: &Scope,
        id: u64,
    ) -> Result<()> {
        let own;
        let file = match self.file {
            Some((digest, file)) if *digest == blob.digest => file,
            _ => {
                own = self.store.open_blob(&blob.digest)?;
                &own
            }
        };
        let counter = AtomicU64::new(0);
        let mut session = session;
        let mut sent = 0;
        let mut attempt = 0;
        loop {
            let place = match session.take() {
                Some(place) => place,
                None => {
                    sent = 0;
                    self.start(object, scope)?
                }
            };
            let outcome = self.send(file, blob, &place, sent, object, scope, &|n| {
                // A repeated part is no progress.
                let now = counter.load(Ordering::Relaxed);
                if n > now {
                    counter.store(n, Ordering::Relaxed);
                    self.counts.bytes.fetch_add(n - now, Ordering::Relaxed);
                    self.progress.advance(id, n - now);
                }
            });
            let error = match outcome {
                Ok(()) => return Ok(()),
                Err(e) => e,
            };
            let passing = match &error {
                Error::Broken { .. } | Error::TooManyRequests { .. } => true,
                Error::Refused { status, .. } => crate::retry::is_transient(*status),
                _ => false,
            };
            if !passing || self.counts.stop.load(Ordering::Relaxed) {
                return Err(error);
            }
            attempt += 1;
            let Some(wait) = self.repository.retry().wait(attempt, None) else { return Err(error) };
            self.progress.status(id, &format!("retry {attempt}: {error}"));
            std::thread::sleep(wait);
            if let Some((next, offset)) = self.arrived(&place, object, scope)
                && offset <= blob.size
            {
                if offset > sent {
                    attempt = 0;
                }
                (session, sent) = (Some(next), offset);
            }
        }
    }

    fn start(&self, object: &str, scope: &Scope) -> Result<Uri> {
        let url = self.repository.url("blobs/uploads/")?;
        let call = Call { payload: Payload::Bytes(b""), ..Call::get(url, scope, "push", object) };
        let response = self.repository.expect(call.method(Method::POST), &[202])?;
        self.session(response.headers())
    }

    /// How many bytes of an upload the registry has, and where to go on; none where it forgot.
    fn arrived(&self, place: &Uri, object: &str, scope: &Scope) -> Option<(Uri, u64)> {
        let call = Call::get(place.clone(), scope, "push", object);
        let response = self.repository.expect(call, &[204]).ok()?;
        let (_, last) = text_of(response.headers(), &header::RANGE)?.split_once('-')?;
        let next = self.session(response.headers()).unwrap_or_else(|_| place.clone());
        // `0-0` stands for nothing as well as for one byte; nothing is the safe reading.
        let last: u64 = last.trim().parse().ok()?;
        Some((next, if last == 0 { 0 } else { last + 1 }))
    }

    /// Sends the bytes from `offset` on and completes the upload: in one request where it is the whole blob.
    #[allow(clippy::too_many_arguments)]
    fn send(
        &self,
        file: &File,
        blob: &Descriptor,
        place: &Uri,
        offset: u64,
        object: &str,
        scope: &Scope,
        sent: &dyn Fn(u64),
    ) -> Result<()> {
        let open = || -> io::Result<Box<dyn Read + '_>> {
            let mut file = file.try_clone()?;
            file.seek(SeekFrom::Start(offset))?;
            let rest = file.take(blob.size - offset);
            Ok(Box::new(Outgoing { rest, done: offset, sent, stop: &self.counts.stop }))
        };
        let octets = HeaderValue::from_static("application/octet-stream");
        let mut place = place.clone();
        let payload = Payload::Stream { size: blob.size - offset, open: &open };
        let whole = offset == 0;
        if !whole && offset < blob.size {
            let mut call = Call { payload, ..Call::get(place, scope, "push", object) }.method(Method::PATCH);
            call.headers.insert(header::CONTENT_TYPE, octets.clone());
            let range = format!("{offset}-{}", blob.size - 1);
            if let Ok(range) = HeaderValue::try_from(range) {
                call.headers.insert(header::CONTENT_RANGE, range);
            }
            let response = self.repository.once(&call)?;
            if !matches!(response.status().as_u16(), 201 | 202) {
                return Err(self.repository.refused(&call, response));
            }
            place = self.session(response.headers())?;
        }
        let url = location::with_query(&place, "digest", &blob.digest.to_string()).ok_or_else(|| {
            Error::Protocol {
                host: self.repository.registry.clone(),
                why: "it names no place to send to".into(),
            }
        })?;
        let payload = if whole { payload } else { Payload::Bytes(b"") };
        let mut call = Call { payload, ..Call::get(url, scope, "push", object) }.method(Method::PUT);
        call.headers.insert(header::CONTENT_TYPE, octets);
        let response = self.repository.once(&call)?;
        match response.status().as_u16() {
            201 | 204 => Ok(()),
            _ => Err(self.repository.refused(&call, response)),
        }
    }

    /// Sends a manifest or an index under a name.
    pub fn document(&self, kind: &str, bytes: &[u8], target: &Reference) -> Result<Descriptor> {
        let object = object_name(target);
        let scope = Scope::of(&self.repository.name, "pull,push");
        let url = self.repository.url(&format!("manifests/{}", manifest_name(target)))?;
        let call = Call { payload: Payload::Bytes(bytes), ..Call::get(url, &scope, "push", &object) };
        let mut call = call.method(Method::PUT);
        if let Ok(kind) = HeaderValue::from_str(kind) {
            call.headers.insert(header::CONTENT_TYPE, kind);
        }
        let response = self.repository.expect(call, &[200, 201, 202])?;
        let said = text_of(response.headers(), &crate::manifest::CONTENT_DIGEST);
        let said = said.and_then(|t| t.parse::<Digest>().ok());
        let algorithm =
            target.digest().or(said.as_ref()).map_or(isles_spec::Algorithm::Sha256, Digest::algorithm);
        let digest = digest_of(algorithm, bytes);
        if let Some(actual) = said.filter(|d| *d != digest) {
            let host = self.repository.registry.clone();
            return Err(Error::Mismatch { host, object, expected: digest, actual });
        }
        Ok(Descriptor::new(kind, digest, bytes.len() as u64))
    }
}

enum Mounted {
    Yes,
    Upload(Uri),
    No,
}

/// A blob on its way out: counts, and breaks off when another part failed.
struct Outgoing<'a> {
    rest: io::Take<File>,
    done: u64,
    sent: &'a dyn Fn(u64),
    stop: &'a AtomicBool,
}

impl Read for Outgoing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("another part of the image failed"));
        }
        let n = self.rest.read(buffer)?;
        self.done += n as u64;
        (self.sent)(self.done);
        Ok(n)
    }
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
