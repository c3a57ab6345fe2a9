//! Copies what a name stands for from one place to another, byte for byte: nothing is unpacked, nothing is compressed
//! anew, so digests stay as they are and signatures stay good. Blobs go through in pieces; what the target has is not
//! read.

use std::collections::{HashSet, VecDeque};
use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use isles_spec::image::{Descriptor, ImageConfig, Index, Manifest, media_type};
use isles_spec::{Digest, Platform, Progress, Reference};
use isles_store::{DockerArchiveWriter, Layout, LayoutWriter};

use crate::blob::{Download, Shared};
use crate::client::Repository;
use crate::hash::Verified;
use crate::http::lock;
use crate::manifest::{Document, MANIFEST_LIMIT, choose, digest_of, kind_of, platforms_of};
use crate::together;
use crate::upload::{Counts, Nearby, Sender};
use crate::{Client, Error, Result};

/// An index in an index in an index is more than anyone makes.
const DEPTH: usize = 4;
/// Manifests that one copy brings, referrers among them.
const MANIFESTS: usize = 10_000;

/// Where a copy comes from.
#[derive(Clone, Copy)]
pub enum CopyFrom<'a> {
    Registry(&'a Client, &'a Reference),
    /// A manifest or an index of a layout.
    Layout(&'a Layout, &'a Descriptor),
}

/// Where a copy goes.
#[derive(Clone, Copy)]
pub enum CopyTo<'a> {
    Registry(&'a Client, &'a Reference),
    Layout(&'a LayoutWriter),
}

/// What is copied.
#[derive(Debug, Clone, Default)]
pub struct CopyOptions {
    /// Of an index, the image for this platform only; the index with all that it names where missing.
    pub platform: Option<Platform>,
    /// Also what refers to it, such as signatures, and what refers to that.
    pub referrers: bool,
}

/// What a copy did.
#[derive(Debug, Clone)]
pub struct Copied {
    /// What the target's name stands for.
    pub target: Descriptor,
    /// What refers to it and was copied too.
    pub referrers: Vec<Descriptor>,
    /// Manifests and indexes that were copied.
    pub manifests: usize,
    /// Blobs that were sent, that another repository there had, and that were there.
    pub copied: usize,
    pub mounted: usize,
    pub existing: usize,
    /// Bytes of blobs that were sent.
    pub bytes: u64,
}

/// Copies what `from` stands for.
pub fn copy(
    from: CopyFrom<'_>,
    to: CopyTo<'_>,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<Copied> {
    let source = Source::of(from)?;
    let repository;
    let (target, connections) = match to {
        CopyTo::Registry(client, reference) => {
            repository = client.repository(reference)?;
            (Target::Registry(Sender::new(&repository, progress), reference), client.options.connections)
        }
        CopyTo::Layout(writer) => {
            let connections = if writer.is_serial() { 1 } else { source.connections() };
            (Target::Layout(writer, Counts::default()), connections)
        }
    };
    let siblings = match (&source, &target) {
        (Source::Registry(_, there, _), Target::Registry(sender, _))
            if there.base == sender.repository.base && there.name != sender.repository.name =>
        {
            vec![there.name.clone()]
        }
        _ => Vec::new(),
    };
    let job = Job { source, target, siblings, connections, progress, seen: Mutex::default() };
    let root = job.source.chosen(options.platform.as_ref())?;
    let mut subjects = VecDeque::new();
    job.document(&root, true, 0, &mut subjects)?;
    let mut referrers = Vec::new();
    while let (true, Some(subject)) = (options.referrers, subjects.pop_front()) {
        for found in job.source.referrers(&subject)? {
            if lock(&job.seen).contains(&found.digest) {
                continue;
            }
            let document = job.source.document(&found)?;
            job.document(&document, false, 0, &mut subjects)?;
            referrers.push(found);
        }
    }
    let manifests = lock(&job.seen).len();
    let done = job.target.counts().pushed(root.descriptor());
    Ok(Copied {
        target: done.target,
        referrers,
        manifests,
        copied: done.uploaded,
        mounted: done.mounted,
        existing: done.existing,
        bytes: done.bytes,
    })
}

/// Copies one image into an archive for `docker load`, whose layers are decompressed on the way.
pub fn copy_to_docker_archive(
    from: CopyFrom<'_>,
    platform: &Platform,
    mut writer: DockerArchiveWriter<'_>,
    names: &[Reference],
    progress: &dyn Progress,
) -> Result<Descriptor> {
    let source = Source::of(from)?;
    let document = source.chosen(Some(platform))?;
    let odd = |why: String| Error::NotAnImage { object: source.object(), why };
    let manifest: Manifest = serde_json::from_slice(&document.bytes)
        .map_err(|e| odd(format!("its manifest is not valid: {e}")))?;
    let config = source.small(&manifest.config)?;
    let parsed: ImageConfig = serde_json::from_slice(&config)
        .map_err(|e| odd(format!("its configuration is not that of an image: {e}")))?;
    let diff_ids = &parsed.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        let (l, d) = (manifest.layers.len(), diff_ids.len());
        return Err(odd(format!("it has {l} layers, its configuration speaks of {d}")));
    }
    for (blob, diff_id) in manifest.layers.iter().zip(diff_ids) {
        let id = progress.begin(blob.digest.short(), Some(blob.size));
        let done = source.with_blob(blob, &mut |open| {
            let mut data = Told { inner: open(0)?, told: &|n| progress.advance(id, n) };
            writer.layer(blob, diff_id, &mut data).map_err(own)
        });
        progress.end(id, if done.is_ok() { "copied" } else { "failed" });
        done?;
    }
    writer.finish(&config, names)?;
    Ok(document.descriptor())
}

/// An error of ours that went through the store comes out as itself.
fn own(error: isles_store::Error) -> Error {
    match error {
        isles_store::Error::Io { doing, object, source } => match source.downcast::<Error>() {
            Ok(ours) => ours,
            Err(source) => isles_store::Error::Io { doing, object, source }.into(),
        },
        other => other.into(),
    }
}

enum Source<'a> {
    Registry(&'a Client, Repository<'a>, &'a Reference),
    Layout(&'a Layout, &'a Descriptor),
}

enum Target<'a> {
    Registry(Sender<'a>, &'a Reference),
    Layout(&'a LayoutWriter, Counts),
}

type Opened<'o> = &'o dyn Fn(u64) -> Result<Box<dyn Read + 'o>>;

impl<'a> Source<'a> {
    fn of(from: CopyFrom<'a>) -> Result<Source<'a>> {
        Ok(match from {
            CopyFrom::Registry(client, reference) => {
                Source::Registry(client, client.source(reference)?, reference)
            }
            CopyFrom::Layout(layout, root) => Source::Layout(layout, root),
        })
    }

    /// What messages call it.
    fn object(&self) -> String {
        match self {
            Source::Registry(_, _, reference) => crate::client::object_name(reference),
            Source::Layout(_, root) => root.digest.to_string(),
        }
    }

    fn connections(&self) -> usize {
        match self {
            Source::Registry(client, ..) => client.options.connections,
            Source::Layout(..) => 1,
        }
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        match self {
            Source::Registry(_, repository, reference) => {
                repository.manifest(&reference.with_digest(descriptor.digest.clone()))
            }
            Source::Layout(layout, _) => {
                let bytes = layout.document(&descriptor.digest)?;
                let media_type = kind_of(&descriptor.digest.to_string(), &descriptor.media_type, &bytes)?;
                Ok(Document { digest: descriptor.digest.clone(), media_type, bytes })
            }
        }
    }

    /// What the name stands for, on one platform where that is given.
    fn chosen(&self, platform: Option<&Platform>) -> Result<Document> {
        let mut found = match self {
            Source::Registry(_, repository, reference) => repository.manifest(reference)?,
            Source::Layout(_, root) => self.document(root)?,
        };
        let Some(platform) = platform else { return Ok(found) };
        for _ in 0..=DEPTH {
            if !media_type::is_index(&found.media_type) {
                return Ok(found);
            }
            let index = self.index(&found)?;
            let entry = choose(&index, platform).ok_or_else(|| Error::NoPlatform {
                object: self.object(),
                wanted: platform.to_string(),
                available: platforms_of(&index),
            })?;
            found = self.document(entry)?;
        }
        Err(too_deep(self))
    }

    fn index(&self, document: &Document) -> Result<Index> {
        serde_json::from_slice(&document.bytes).map_err(|e| Error::NotAnImage {
            object: self.object(),
            why: format!("its index is not valid: {e}"),
        })
    }

    /// A small blob whole.
    fn small(&self, blob: &Descriptor) -> Result<Vec<u8>> {
        match self {
            Source::Registry(_, repository, _) => repository.small_blob(blob, MANIFEST_LIMIT),
            Source::Layout(layout, _) => Ok(layout.document(&blob.digest)?),
        }
    }

    /// Lends a blob for reading from any offset on, checked as far as it passes.
    fn with_blob(&self, blob: &Descriptor, work: &mut dyn FnMut(Opened<'_>) -> Result<()>) -> Result<()> {
        match self {
            Source::Registry(_, repository, _) => {
                let shared = Shared::default();
                let download = Download::new(repository, blob, &shared, &|_| {});
                work(&|offset| {
                    let stream = download.afresh().stream(offset);
                    Ok(Box::new(Verified::new(stream, blob, &repository.registry, offset)))
                })
            }
            Source::Layout(layout, _) => work(&|offset| {
                let part = layout.blob(&blob.digest, offset)?;
                Ok(Box::new(Verified::new(part, blob, "the layout", offset)))
            }),
        }
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        let layout = match self {
            Source::Registry(_, repository, _) => return repository.referrers(subject),
            Source::Layout(layout, _) => layout,
        };
        let mut found = Vec::new();
        for root in layout.roots() {
            let document = self.document(root)?;
            let about = Subject::of(&document.bytes);
            if about.subject.is_some_and(|s| s.digest == *subject) {
                let mut root = root.clone();
                root.annotations.remove("org.opencontainers.image.ref.name");
                root.artifact_type = root.artifact_type.or(about.artifact_type);
                found.push(root);
            }
        }
        Ok(found)
    }
}

/// What a manifest or an index says it is about.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Subject {
    #[serde(default)]
    subject: Option<Descriptor>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
}

impl Subject {
    fn of(document: &[u8]) -> Subject {
        let mut found: Subject = serde_json::from_slice(document).unwrap_or_default();
        found.artifact_type = found.artifact_type.or(found.config.as_ref().map(|c| c.media_type.clone()));
        found
    }
}

fn too_deep(source: &Source<'_>) -> Error {
    let why = "its index holds an index that holds an index and so on".into();
    Error::NotAnImage { object: source.object(), why }
}

impl Document {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new(&self.media_type, self.digest.clone(), self.bytes.len() as u64)
    }
}

impl Target<'_> {
    fn counts(&self) -> &Counts {
        match self {
            Target::Registry(sender, _) => &sender.counts,
            Target::Layout(_, counts) => counts,
        }
    }

    /// Keeps a document: under the target's name, or by its digest.
    fn document(&self, document: &Document, named: bool) -> Result<()> {
        match self {
            Target::Registry(sender, reference) => {
                let name = match named {
                    true => (*reference).clone(),
                    false => sender.repository.reference()?.with_digest(document.digest.clone()),
                };
                if let Some(wanted) = name.digest().filter(|d| **d != document.digest) {
                    return Err(Error::Mismatch {
                        host: sender.repository.registry.clone(),
                        object: crate::client::object_name(&name),
                        expected: wanted.clone(),
                        actual: digest_of(wanted.algorithm(), &document.bytes),
                    });
                }
                let (sent, listed) = sender.document_about(&document.media_type, &document.bytes, &name)?;
                match Subject::of(&document.bytes) {
                    Subject { subject: Some(subject), artifact_type, .. } if !listed => {
                        let entry = Descriptor { artifact_type, ..sent };
                        sender.list_under_tag(&subject.digest, &entry)
                    }
                    _ => Ok(()),
                }
            }
            Target::Layout(writer, _) => {
                if writer.has(&document.digest) {
                    return Ok(());
                }
                Ok(writer.blob(&document.descriptor(), &mut &document.bytes[..])?)
            }
        }
    }
}

/// Everything that stays the same in one copy.
struct Job<'a> {
    source: Source<'a>,
    target: Target<'a>,
    /// Repositories of the target's registry from which blobs can be mounted.
    siblings: Vec<String>,
    connections: usize,
    progress: &'a dyn Progress,
    /// Documents that were copied.
    seen: Mutex<HashSet<Digest>>,
}

impl Job<'_> {
    /// Copies what a document names, then the document.
    fn document(
        &self,
        document: &Document,
        named: bool,
        depth: usize,
        subjects: &mut VecDeque<Digest>,
    ) -> Result<()> {
        if depth > DEPTH {
            return Err(too_deep(&self.source));
        }
        {
            let mut seen = lock(&self.seen);
            seen.insert(document.digest.clone());
            if seen.len() > MANIFESTS {
                let why = format!("it stands for more than {MANIFESTS} manifests");
                return Err(Error::NotAnImage { object: self.source.object(), why });
            }
        }
        if media_type::is_index(&document.media_type) {
            let mut blobs = Vec::new();
            for entry in self.source.index(document)?.manifests {
                if lock(&self.seen).contains(&entry.digest) {
                    continue;
                }
                if media_type::is_index(&entry.media_type) || media_type::is_manifest(&entry.media_type) {
                    let child = self.source.document(&entry)?;
                    self.document(&child, false, depth + 1, subjects)?;
                } else {
                    blobs.push(entry);
                }
            }
            self.blobs(&blobs)?;
        } else {
            let manifest: Manifest =
                serde_json::from_slice(&document.bytes).map_err(|e| Error::NotAnImage {
                    object: self.source.object(),
                    why: format!("its manifest is not valid: {e}"),
                })?;
            // What may not be passed on is had from where its URLs lead, if anybody wants it.
            let passed_on =
                |d: &&Descriptor| d.media_type != media_type::DOCKER_FOREIGN_LAYER || d.urls.is_empty();
            let mut blobs: Vec<Descriptor> =
                manifest.layers.iter().filter(passed_on).chain([&manifest.config]).cloned().collect();
            blobs.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.digest.cmp(&b.digest)));
            blobs.dedup_by(|a, b| a.digest == b.digest);
            self.blobs(&blobs)?;
        }
        self.target.document(document, named)?;
        subjects.push_back(document.digest.clone());
        Ok(())
    }

    /// Copies blobs, several at once.
    fn blobs(&self, blobs: &[Descriptor]) -> Result<()> {
        let queue = Mutex::new(blobs.iter());
        let threads = self.connections.min(blobs.len());
        together::each(threads, &self.target.counts().stop, &|| lock(&queue).next(), &|blob| self.blob(blob))
    }

    fn blob(&self, blob: &Descriptor) -> Result<()> {
        match &self.target {
            Target::Registry(sender, _) => self.source.with_blob(blob, &mut |open| {
                let nearby = || Ok(Nearby { siblings: &self.siblings, offer: None });
                sender.blob(blob, &nearby, open)
            }),
            Target::Layout(writer, counts) => {
                if writer.has(&blob.digest) {
                    counts.existing.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                let id = self.progress.begin(blob.digest.short(), Some(blob.size));
                let done = self.source.with_blob(blob, &mut |open| {
                    let told = |n| {
                        counts.bytes.fetch_add(n, Ordering::Relaxed);
                        self.progress.advance(id, n);
                    };
                    let mut data =
                        Told { inner: Stopped { inner: open(0)?, stop: &counts.stop }, told: &told };
                    writer.blob(blob, &mut data).map_err(own)
                });
                self.progress.end(id, if done.is_ok() { "copied" } else { "failed" });
                done?;
                counts.uploaded.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}

/// Tells how many bytes pass.
struct Told<'a, R> {
    inner: R,
    told: &'a dyn Fn(u64),
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        (self.told)(n as u64);
        Ok(n)
    }
}

/// Ends when another part has failed.
struct Stopped<'a, R> {
    inner: R,
    stop: &'a AtomicBool,
}

impl<R: Read> Read for Stopped<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("another part of the image failed"));
        }
        self.inner.read(out)
    }
}
