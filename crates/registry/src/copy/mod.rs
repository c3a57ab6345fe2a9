//! Copies what a name stands for from one place to another, byte for byte: nothing is unpacked, nothing is compressed
//! anew, so digests stay as they are and signatures stay good. Blobs go through in pieces; what the target has is not
//! read.

mod source;
mod target;

use std::collections::{HashSet, VecDeque};
use std::sync::Mutex;

use isles_spec::image::{Descriptor, ImageConfig, Manifest, attached, media_type};
use isles_spec::{Digest, Platform, Progress, Reference};
use isles_store::{DockerArchiveWriter, Layout, LayoutWriter, Lease, Store};

use crate::http::lock;
use crate::manifest::Document;
use crate::together;
use crate::upload::{Counts, Sender};
use crate::{Client, Error, Result};

use source::{Source, too_deep};
use target::{Target, Told, Under, own};

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
    /// Documents and blobs as they are, held by the lease. Images are made of them afterwards
    /// ([`Store::import_document`]).
    Store(&'a Store, &'a Lease),
}

/// Which images of an index are copied.
#[derive(Debug, Clone, Default)]
pub enum Platforms {
    /// The index, with all that it names.
    #[default]
    All,
    /// The image for this one, without the index.
    One(Platform),
    /// An index with the images for these.
    These(Vec<Platform>),
}

/// What is copied.
#[derive(Debug, Clone, Default)]
pub struct CopyOptions {
    pub platforms: Platforms,
    /// Also what refers to it, such as signatures, and what refers to that; and what lies beside it under the tags of
    /// cosign.
    pub referrers: bool,
}

/// What a copy did.
#[derive(Debug, Clone)]
pub struct Copied {
    /// What the target's name stands for.
    pub target: Descriptor,
    /// What refers to it and was copied too; what lies under a tag of its own has that as its name.
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
        CopyTo::Store(store, lease) => (Target::Store(store, lease, Counts::default()), source.connections()),
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
    let root = job.source.chosen(&options.platforms)?;
    let mut subjects = VecDeque::new();
    job.document(&root, Under::Target, 0, &mut subjects)?;
    let mut referrers = Vec::new();
    while let (true, Some(subject)) = (options.referrers, subjects.pop_front()) {
        for found in job.source.referrers(&subject)? {
            if lock(&job.seen).contains(&found.digest) {
                continue;
            }
            let document = job.source.document(&found)?;
            job.document(&document, Under::Digest, 0, &mut subjects)?;
            referrers.push(found);
        }
        for tag in attached::KINDS.iter().filter_map(|kind| attached::tag(&subject, kind)) {
            let Some(document) = job.source.tagged(&tag)? else { continue };
            // Nobody signs signatures by such tags.
            job.document(&document, Under::Tag(&tag), 0, &mut VecDeque::new())?;
            let mut found = document.descriptor();
            found.annotations.insert("org.opencontainers.image.ref.name".into(), tag);
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
    let document = source.chosen(&Platforms::One(platform.clone()))?;
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

impl Document {
    pub(crate) fn descriptor(&self) -> Descriptor {
        Descriptor::new(&self.media_type, self.digest.clone(), self.bytes.len() as u64)
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
        under: Under<'_>,
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
                    self.document(&child, Under::Digest, depth + 1, subjects)?;
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
        self.target.document(document, under)?;
        subjects.push_back(document.digest.clone());
        Ok(())
    }

    /// Copies blobs, several at once.
    fn blobs(&self, blobs: &[Descriptor]) -> Result<()> {
        let queue = Mutex::new(blobs.iter());
        let threads = self.connections.min(blobs.len());
        together::each(threads, &self.target.counts().stop, &|| lock(&queue).next(), &|blob| {
            self.target.blob(&self.source, blob, &self.siblings, self.progress)
        })
    }
}
