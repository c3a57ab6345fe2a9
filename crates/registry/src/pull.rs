//! Pull: manifest, configuration and layers, several at once, straight into the store.

use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use isles_spec::image::{Descriptor, ImageConfig};
use isles_spec::{Digest, Platform, Progress, Reference};
use isles_store::{Image, Ingested, Lease, NewImage, Skipped, Store};

use crate::blob::{Download, Shared};
use crate::client::{Repository, object_name};
use crate::http::lock;
use crate::manifest::{MANIFEST_LIMIT, Resolved};
use crate::together;
use crate::{Client, Error, Result};

/// What a pull did.
#[derive(Debug, Clone)]
pub struct Pulled {
    pub image: Image,
    /// What the name stands for: the digest of the index, or of the manifest where there is none.
    pub target: Digest,
    /// Nothing had to be fetched: the image was here and is the current one.
    pub up_to_date: bool,
    pub layers_fetched: usize,
    pub layers_reused: usize,
    /// Bytes of layers that came over the network.
    pub bytes: u64,
    /// What could not be made here, such as devices.
    pub skipped: Vec<Skipped>,
}

impl Client {
    /// Brings an image into the store, under its name, unless the current one is there already. Whatever an
    /// earlier try fetched is used; layers that are here in another compression are not fetched again.
    pub fn pull(
        &self,
        store: &Store,
        reference: &Reference,
        platform: &Platform,
        progress: &dyn Progress,
    ) -> Result<Pulled> {
        let reference = reference.normalized();
        if let Some((image, target)) = self.current(store, &reference, platform)? {
            let layers_reused = image.manifest.layers.len();
            return Ok(Pulled {
                image,
                target,
                up_to_date: true,
                layers_fetched: 0,
                layers_reused,
                bytes: 0,
                skipped: Vec::new(),
            });
        }
        let repository = self.source(&reference)?;
        let resolved = repository.resolve(&reference, platform)?;
        let lease = store.lease()?;
        let config = configuration(&repository, store, &lease, &reference, platform, &resolved)?;
        let layers = distinct(&config.rootfs.diff_ids, &resolved.parsed.layers);
        let shared = Shared::default();
        let done =
            fetch_layers(&repository, store, &lease, &layers, self.options.connections, &shared, progress)?;
        let names = names(&reference, &resolved)?;
        let image = store.put_image(
            &lease,
            &NewImage {
                manifest: &resolved.manifest.bytes,
                media_type: Some(&resolved.manifest.media_type),
                index: resolved.index.as_ref().map(|i| i.bytes.as_slice()),
                refs: &names,
            },
        )?;
        let layers_reused = done.iter().filter(|i| i.reused).count();
        Ok(Pulled {
            image,
            target: resolved.target,
            up_to_date: false,
            layers_fetched: done.len() - layers_reused,
            layers_reused,
            bytes: shared.fetched.load(Ordering::Relaxed),
            skipped: done.into_iter().flat_map(|i| i.skipped).collect(),
        })
    }

    /// The configuration of the image that a name stands for on a platform, without its layers. Where the name
    /// stands for one image only, that may be for another platform. Nothing is kept.
    pub fn image_config(&self, reference: &Reference, platform: &Platform) -> Result<ImageConfig> {
        let repository = self.source(reference)?;
        let resolved = repository.resolve(reference, platform)?;
        let bytes = repository.small_blob(&resolved.parsed.config, MANIFEST_LIMIT)?;
        serde_json::from_slice(&bytes).map_err(|e| Error::NotAnImage {
            object: object_name(reference),
            why: format!("its configuration is not that of an image: {e}"),
        })
    }

    /// Brings one layer of a repository into the store, unless it is there.
    pub fn fetch_layer(
        &self,
        store: &Store,
        lease: &Lease,
        repository: &Reference,
        blob: &Descriptor,
        diff_id: &Digest,
        progress: &dyn Progress,
    ) -> Result<Ingested> {
        let repository = self.source(repository)?;
        fetch_layer(&repository, store, lease, diff_id, blob, &Shared::default(), progress)
    }

    /// Fetches a blob that is a document, and checks its digest.
    pub fn document_blob(&self, repository: &Reference, blob: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        self.source(repository)?.small_blob(blob, limit)
    }

    /// The image that a name stands for here, if it is complete and the registry's is the same.
    fn current(
        &self,
        store: &Store,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Option<(Image, Digest)>> {
        let Some(here) = store.lookup(reference)? else { return Ok(None) };
        let image = match store.resolve(&reference.to_string(), Some(platform)) {
            Ok(image) if store.is_whole(&image) => image,
            _ => return Ok(None),
        };
        // Content with a digest is what it is; the registry need not be asked.
        if reference.digest().is_none() && self.head_manifest(reference)?.digest != here {
            return Ok(None);
        }
        Ok(Some((image, here)))
    }
}

/// The names that the image gets.
fn names(reference: &Reference, resolved: &Resolved) -> Result<Vec<Reference>> {
    let named = [Some(&resolved.manifest.digest), resolved.index.as_ref().map(|i| &i.digest)];
    match reference.digest() {
        Some(digest) if !named.contains(&Some(digest)) => Err(Error::NotAnImage {
            object: reference.familiar(),
            why: "it is an index of indexes; name one of those".into(),
        }),
        _ => Ok(vec![reference.clone()]),
    }
}

/// Fetches and checks the configuration: it must fit the manifest and the platform.
fn configuration(
    repository: &Repository<'_>,
    store: &Store,
    lease: &Lease,
    reference: &Reference,
    platform: &Platform,
    resolved: &Resolved,
) -> Result<ImageConfig> {
    let blob = &resolved.parsed.config;
    let odd = |why: String| Error::NotAnImage { object: object_name(reference), why };
    lease.hold(&blob.digest)?;
    let bytes = if store.has_blob(&blob.digest) {
        store.read_document(&blob.digest)?
    } else {
        let bytes = repository.small_blob(blob, store.limits().document as u64)?;
        store.put_expected(lease, &blob.digest, &bytes)?;
        bytes
    };
    let config: ImageConfig = serde_json::from_slice(&bytes).map_err(|e| {
        let kind = crate::error::one_line(&blob.media_type);
        odd(format!("its configuration ({kind}) is not that of an image: {e}"))
    })?;
    let (layers, diff_ids) = (resolved.parsed.layers.len(), config.rootfs.diff_ids.len());
    if layers != diff_ids {
        return Err(odd(format!("it has {layers} layers, its configuration speaks of {diff_ids}")));
    }
    let most = store.limits().layers;
    if layers > most {
        return Err(odd(format!("it has {layers} layers, and {most} is the limit")));
    }
    let largest = store.limits().layer_bytes;
    if let Some(layer) = resolved.parsed.layers.iter().find(|l| l.size > largest) {
        let (host, object) = (repository.registry.clone(), format!("layer {}", layer.digest));
        return Err(Error::TooLarge { host, object, limit: largest });
    }
    let found = config.platform();
    if let Some(promised) = resolved.promised.as_ref().filter(|p| !p.accepts(&found)) {
        return Err(odd(format!("its index says {promised}, its configuration says {found}")));
    }
    // Configurations made by hand often leave the platform out.
    let unsaid = config.architecture.is_empty() || config.os.is_empty();
    if resolved.promised.is_none() && !unsaid && !platform.accepts(&found) {
        return Err(Error::WrongPlatform {
            object: object_name(reference),
            wanted: platform.to_string(),
            found: found.to_string(),
        });
    }
    Ok(config)
}

/// Every layer once, the largest first, as it takes the longest.
fn distinct<'a>(diff_ids: &'a [Digest], blobs: &'a [Descriptor]) -> Vec<(&'a Digest, &'a Descriptor)> {
    let mut layers: Vec<_> = diff_ids.iter().zip(blobs).collect();
    layers.sort_by(|a, b| a.0.cmp(b.0));
    layers.dedup_by(|a, b| a.0 == b.0);
    layers.sort_by_key(|(_, blob)| std::cmp::Reverse(blob.size));
    layers
}

fn fetch_layers(
    repository: &Repository<'_>,
    store: &Store,
    lease: &Lease,
    layers: &[(&Digest, &Descriptor)],
    connections: usize,
    shared: &Shared,
    progress: &dyn Progress,
) -> Result<Vec<Ingested>> {
    let queue = Mutex::new(layers.iter());
    let done = Mutex::new(Vec::new());
    let fetch = |&(diff_id, blob): &(&Digest, &Descriptor)| {
        let ingested = fetch_layer(repository, store, lease, diff_id, blob, shared, progress)?;
        lock(&done).push(ingested);
        Ok(())
    };
    together::each(connections.min(layers.len()), &shared.stop, &|| lock(&queue).next(), &fetch)?;
    Ok(done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn fetch_layer(
    repository: &Repository<'_>,
    store: &Store,
    lease: &Lease,
    diff_id: &Digest,
    blob: &Descriptor,
    shared: &Shared,
    progress: &dyn Progress,
) -> Result<Ingested> {
    let watched = Watched { inner: progress, id: AtomicU64::new(u64::MAX) };
    let notice = |text: &str| watched.notice(text);
    let download = Download::new(repository, blob, shared, &notice);
    let mut open = |offset: u64| -> io::Result<Box<dyn Read + '_>> {
        match download.open(offset) {
            Ok(incoming) => Ok(Box::new(incoming)),
            Err(e) => Err(io::Error::other(e)),
        }
    };
    store.ingest_layer(lease, blob, diff_id, &mut open, &watched).map_err(own_error)
}

/// An error of ours that went through the store comes out as itself.
fn own_error(error: isles_store::Error) -> Error {
    match error {
        isles_store::Error::Fetch { digest, source } => match source.downcast::<Error>() {
            Ok(ours) => ours,
            Err(source) => isles_store::Error::Fetch { digest, source }.into(),
        },
        other => other.into(),
    }
}

/// Passes progress on and remembers under which number, so that retries can be told under it too.
struct Watched<'a> {
    inner: &'a dyn Progress,
    id: AtomicU64,
}

impl Watched<'_> {
    fn notice(&self, text: &str) {
        let id = self.id.load(Ordering::Relaxed);
        if id != u64::MAX {
            self.inner.status(id, text);
        }
    }
}

impl Progress for Watched<'_> {
    fn begin(&self, what: &str, total: Option<u64>) -> u64 {
        let id = self.inner.begin(what, total);
        self.id.store(id, Ordering::Relaxed);
        id
    }
    fn advance(&self, id: u64, bytes: u64) {
        self.inner.advance(id, bytes);
    }
    fn status(&self, id: u64, text: &str) {
        self.inner.status(id, text);
    }
    fn end(&self, id: u64, text: &str) {
        self.inner.end(id, text);
    }
    fn output(&self, id: u64, bytes: &[u8]) {
        self.inner.output(id, bytes);
    }
}
