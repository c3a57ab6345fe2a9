//! Looks for damage: hashes blobs again and compares layers with the archives they came from.
//!
//! Blobs are hashed by several threads, each with one buffer. A layer is compared in the memory that its
//! list of files takes. What changes meanwhile by other hands is no damage: what is gone by the time it is
//! looked at was not needed, and a lease holds what is being compared.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use isles_spec::{Digest, Progress, Reference};

use crate::error::At;
use crate::hash::digest_of_stream;
use crate::{Error, LayerInfo, Lease, Result, Store};

const BUFFER: usize = 256 << 10;
const THREADS: usize = 8;

/// How closely layers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Blobs only.
    Blobs,
    /// Metadata of every entry, content of one file in so many.
    Sampled(u32),
    /// Everything.
    Full,
}

/// What a verification looks at.
#[derive(Debug, Clone, Copy)]
pub struct VerifyOptions {
    pub depth: Depth,
    /// Unpack damaged layers again where their archive is good, and remove what else is damaged, so that the
    /// next pull fetches it again.
    pub repair: bool,
}

/// What was done about a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cure {
    /// Nothing: it was not asked for, or a running container stands on it.
    None,
    /// It was removed; pulling one of the images brings it back.
    Removed,
    /// It was made anew from what is here.
    Restored,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The blob or the layer (by diff ID), or the manifest of an incomplete image. A name that cannot be read has
    /// none.
    pub digest: Option<Digest>,
    /// One line for people.
    pub what: String,
    /// Names of the images that need it.
    pub images: Vec<Reference>,
    pub cure: Cure,
}

/// What a verification found.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    pub images: u64,
    pub blobs: u64,
    pub layers: u64,
    /// Bytes read and hashed.
    pub bytes: u64,
    pub problems: Vec<Problem>,
}

/// Which names need which blobs and layers.
type Needs = BTreeMap<Digest, BTreeSet<Reference>>;

/// Everything that the steps share.
struct Verification<'a> {
    store: &'a Store,
    lease: Lease,
    options: VerifyOptions,
    progress: &'a dyn Progress,
    needs: Needs,
    /// Layers that running containers stand on.
    busy: HashSet<Digest>,
    bytes: AtomicU64,
    problems: Mutex<Vec<Problem>>,
}

impl Store {
    /// Checks the whole store.
    pub fn verify(&self, options: &VerifyOptions, progress: &dyn Progress) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        if !self.root.join("version").exists() {
            return Ok(report);
        }
        let blobs = self.all_blobs()?;
        let layers = self.all_layers()?;
        let verification = Verification {
            store: self,
            lease: self.lease()?,
            options: *options,
            progress,
            needs: self.needs()?,
            busy: self.layers_in_use()?,
            bytes: AtomicU64::new(0),
            problems: Mutex::default(),
        };
        report.blobs = blobs.len() as u64;
        report.layers = layers.len() as u64;
        verification.blobs(&blobs)?;
        verification.downloads(&self.downloads()?)?;
        verification.layers(&layers)?;
        report.images = verification.images()?;
        report.bytes = verification.bytes.into_inner();
        report.problems = verification.problems.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.problems.sort_by(|a, b| a.digest.cmp(&b.digest).then_with(|| a.what.cmp(&b.what)));
        Ok(report)
    }

    /// Whether everything that an image is made of is here, so that it can be run, saved and pushed.
    pub fn is_whole(&self, image: &crate::Image) -> bool {
        self.has_blob(&image.manifest_digest)
            && image.config.rootfs.diff_ids.iter().zip(&image.manifest.layers).all(|(diff_id, blob)| {
                self.has_layer(diff_id)
                    && matches!(self.blob_of_layer(diff_id, Some(&blob.digest)), Ok(Some(_)))
            })
    }

    fn needs(&self) -> Result<Needs> {
        let mut needs = Needs::new();
        let mut need = |digest: Digest, names: &[Reference]| {
            needs.entry(digest).or_default().extend(names.iter().cloned());
        };
        let mut by_manifest: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
        for (reference, target) in self.references()? {
            need(target.clone(), std::slice::from_ref(&reference));
            // An index that cannot be read leads nowhere, and is itself the problem.
            for manifest in self.manifests_of_index(&target).unwrap_or_default() {
                by_manifest.entry(manifest).or_default().push(reference.clone());
            }
            by_manifest.entry(target).or_default().push(reference);
        }
        for manifest in self.recorded()? {
            let names = by_manifest.get(&manifest).map(Vec::as_slice).unwrap_or_default();
            need(manifest.clone(), names);
            let Ok((config, layers)) = self.parts_recorded(&manifest) else { continue };
            need(config, names);
            for diff_id in layers {
                for blob in self.blobs_of(&diff_id) {
                    need(blob, names);
                }
                need(diff_id, names);
            }
            if let Ok(image) = self.image(&manifest) {
                image.manifest.layers.into_iter().for_each(|blob| need(blob.digest, names));
            }
        }
        Ok(needs)
    }

    fn layers_in_use(&self) -> Result<HashSet<Digest>> {
        let mut busy = HashSet::new();
        for id in self.containers()? {
            let Ok(container) = self.container(&id) else { continue };
            if !container.is_locked() {
                continue;
            }
            let holds = container.read("holds").ok().flatten().unwrap_or_default();
            for held in String::from_utf8_lossy(&holds).lines().filter_map(|l| l.parse::<Digest>().ok()) {
                if let Ok((_, layers)) = self.parts_recorded(&held) {
                    busy.extend(layers);
                }
                busy.insert(held);
            }
        }
        Ok(busy)
    }
}

impl Verification<'_> {
    fn problem(&self, digest: &Digest, what: String, cure: Cure) {
        let images = self.needs.get(digest).into_iter().flatten().cloned().collect();
        let problem = Problem { digest: Some(digest.clone()), what, images, cure };
        locked(&self.problems).push(problem);
    }

    /// Hashes every blob.
    fn blobs(&self, blobs: &[Digest]) -> Result<()> {
        let sizes = blobs.iter().filter_map(|d| self.store.blob_size(d)).sum();
        let id = self.progress.begin("blobs", Some(sizes));
        let result = each(blobs, |digest| {
            let path = self.store.blob_path(digest);
            let Some(what) = self.damage_of("the blob", &path, digest, id)? else { return Ok(()) };
            let mut cure = Cure::None;
            if self.options.repair {
                self.store.remove_blob(digest)?;
                cure = Cure::Removed;
            }
            self.problem(digest, what, cure);
            Ok(())
        });
        self.progress.end(id, if result.is_ok() { "checked" } else { "failed" });
        result
    }

    /// Hashes every download.
    fn downloads(&self, downloads: &[Digest]) -> Result<()> {
        if downloads.is_empty() {
            return Ok(());
        }
        let id = self.progress.begin("downloads", None);
        let result = each(downloads, |digest| {
            let path = self.store.download_path(digest);
            let Some(what) = self.damage_of("the download", &path, digest, id)? else { return Ok(()) };
            let mut cure = Cure::None;
            if self.options.repair {
                crate::atomic::remove_file(&path)?;
                cure = Cure::Removed;
            }
            self.problem(digest, what, cure);
            Ok(())
        });
        self.progress.end(id, if result.is_ok() { "checked" } else { "failed" });
        result
    }

    fn damage_of(&self, kind: &str, path: &Path, digest: &Digest, id: u64) -> Result<Option<String>> {
        let mut file = match File::open(path) {
            // Removed since it was listed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.at("open", path)?,
        };
        let mut told = |n| {
            self.bytes.fetch_add(n, Ordering::Relaxed);
            self.progress.advance(id, n);
        };
        let read = digest_of_stream(&mut file, digest.algorithm(), &mut vec![0; BUFFER], &mut told);
        let actual = match read {
            Ok((actual, _)) => actual,
            Err(e) => return Ok(Some(format!("{kind} cannot be read: {e}"))),
        };
        Ok((actual != *digest).then(|| format!("{kind} has the content of {actual}")))
    }

    /// Looks at every layer's record and, as deep as asked, at its tree.
    fn layers(&self, layers: &[(Digest, PathBuf)]) -> Result<()> {
        let id = self.progress.begin("layers", None);
        let result = each(layers, |(diff_id, path)| {
            let own = *path == self.store.layer_dir(diff_id);
            self.lease.hold(diff_id)?;
            let damage = match self.damage_of_record(diff_id, path) {
                None if own => self.damage_of_tree(diff_id, id)?,
                other => other,
            };
            // Gone since it was listed.
            let Some(what) = damage.filter(|_| path.exists()) else { return Ok(()) };
            let cure = if self.options.repair { self.cure_layer(diff_id, path, own)? } else { Cure::None };
            let busy = self.options.repair && cure == Cure::None;
            let what =
                if busy { format!("{what} (left, because a running container uses it)") } else { what };
            self.problem(diff_id, what, cure);
            Ok(())
        });
        self.progress.end(id, if result.is_ok() { "checked" } else { "failed" });
        result
    }

    fn damage_of_record(&self, diff_id: &Digest, path: &Path) -> Option<String> {
        let record = path.join("layer.json");
        let info = match std::fs::read(&record) {
            Ok(text) => serde_json::from_slice::<LayerInfo>(&text).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        match info {
            Err(e) => Some(format!("the layer's record layer.json is not valid: {e}")),
            Ok(info) if info.diff_id != *diff_id => {
                Some("the layer's record is that of another layer".into())
            }
            Ok(_) if !path.join("root").is_dir() => Some("the layer has no files".into()),
            Ok(_) if !self.store.is_settled(path) => {
                Some("the machine stopped before the layer was on disk".into())
            }
            Ok(_) => None,
        }
    }

    fn damage_of_tree(&self, diff_id: &Digest, id: u64) -> Result<Option<String>> {
        let every = match self.options.depth {
            Depth::Blobs => return Ok(None),
            Depth::Sampled(every) => every,
            Depth::Full => 1,
        };
        let info = match self.store.layer_info(diff_id) {
            Err(Error::NoLayer { .. }) => return Ok(None),
            other => other?,
        };
        // Without a good archive there is nothing to compare with, and that is reported as such.
        let Some(blob) = self.good_blob(&info)? else { return Ok(None) };
        let _one_at_a_time = crate::ingest::DigestLock::take(self.store, diff_id, &|_| ())?;
        let compared = match self.store.compare_layer(&info, &blob, every) {
            Ok(compared) => compared,
            Err(e @ Error::Io { .. }) if e.is_full_disk() => return Err(e),
            Err(e) => return Ok(Some(e.to_string())),
        };
        self.bytes.fetch_add(compared.bytes, Ordering::Relaxed);
        self.progress.advance(id, compared.bytes);
        Ok(compared.summary().map(|what| format!("the layer's files differ from its archive: {what}")))
    }

    /// A blob of a layer that has been found good.
    fn good_blob(&self, info: &LayerInfo) -> Result<Option<Digest>> {
        for blob in &info.blobs {
            self.lease.hold(&blob.digest)?;
            let problems = locked(&self.problems);
            let bad = problems
                .iter()
                .any(|p| p.digest.as_ref() == Some(&blob.digest) && p.what.starts_with("the blob"));
            if !bad && self.store.blob_size(&blob.digest) == Some(blob.size) {
                return Ok(Some(blob.digest.clone()));
            }
        }
        Ok(None)
    }

    /// Unpacks a layer again from a good blob, or removes it. Files under a running container stay.
    fn cure_layer(&self, diff_id: &Digest, path: &Path, own: bool) -> Result<Cure> {
        if self.busy.contains(diff_id) {
            return Ok(Cure::None);
        }
        let good = match self.store.layer_info(diff_id) {
            Ok(info) if own => {
                let good = self.good_blob(&info)?;
                info.blobs.into_iter().find(|b| Some(&b.digest) == good.as_ref())
            }
            _ => None,
        };
        self.store.discard_dir(path)?;
        let Some(blob) = good else { return Ok(Cure::Removed) };
        let mut open = |_: u64| -> io::Result<Box<dyn Read>> { Err(io::ErrorKind::NotFound.into()) };
        match self.store.ingest_layer(&self.lease, &blob, diff_id, &mut open, &isles_spec::Quiet) {
            Ok(_) => {
                self.store.settle(std::slice::from_ref(diff_id))?;
                Ok(Cure::Restored)
            }
            Err(e) if e.is_full_disk() => Err(e),
            Err(_) => Ok(Cure::Removed),
        }
    }

    /// Looks whether every image has its parts. Returns how many images there are.
    fn images(&self) -> Result<u64> {
        let store = self.store;
        let manifests = store.recorded()?;
        for manifest in &manifests {
            match store.parts_recorded(manifest) {
                Ok(_) => {}
                // Removed since it was listed.
                Err(Error::NoImage { .. }) => continue,
                Err(e) => {
                    let cure = if self.options.repair {
                        store.remove_record(manifest)?;
                        Cure::Removed
                    } else {
                        Cure::None
                    };
                    self.problem(manifest, format!("the image's record is damaged: {e}"), cure);
                    continue;
                }
            }
            match store.image(manifest) {
                Ok(image) => {
                    for (diff_id, blob) in image.config.rootfs.diff_ids.iter().zip(&image.manifest.layers) {
                        self.image_layer(diff_id, &blob.digest);
                    }
                }
                Err(Error::NoImage { .. }) => {}
                Err(Error::NoBlob { digest }) => {
                    let role = if digest == *manifest { "manifest" } else { "configuration" };
                    self.missing(&digest, format!("the image's {role} is missing"));
                }
                // Damage to a document has been found with the blobs.
                Err(Error::Damaged { .. }) => {}
                Err(e) => self.problem(manifest, format!("the image cannot be read: {e}"), Cure::None),
            }
        }
        self.names(&manifests)?;
        Ok(manifests.len() as u64)
    }

    fn image_layer(&self, diff_id: &Digest, blob: &Digest) {
        let store = self.store;
        let archive = store.has_blob(blob) || matches!(store.blob_of_layer(diff_id, None), Ok(Some(_)));
        if !archive {
            self.missing(blob, format!("the archive of layer {diff_id} is missing"));
        }
        if !archive && !store.has_layer(diff_id) {
            self.missing(diff_id, "the layer is missing".into());
        }
    }

    /// Something that is not here, unless it has just been said that it was damaged, or missing elsewhere.
    fn missing(&self, digest: &Digest, what: String) {
        let known = {
            let problems = locked(&self.problems);
            problems.iter().any(|p| p.digest.as_ref() == Some(digest))
        };
        if !known {
            self.problem(digest, what, Cure::None);
        }
    }

    /// Looks whether every name stands for something. `manifests` are those of images that have been looked at.
    fn names(&self, manifests: &[Digest]) -> Result<()> {
        let store = self.store;
        for (reference, _) in store.reference_files()? {
            let (digest, what) = match store.lookup(&reference) {
                // Taken away since it was listed.
                Ok(None) => continue,
                Ok(Some(target)) => {
                    let here = manifests.contains(&target)
                        || store.has_image(&target)
                        || store.manifests_of_index(&target).is_ok_and(|found| !found.is_empty());
                    if here {
                        continue;
                    }
                    (
                        Some(target),
                        format!("the name {} stands for an image that is not here", reference.familiar()),
                    )
                }
                Err(e) => (None, e.to_string()),
            };
            let cure = if self.options.repair {
                store.remove_ref(&reference)?;
                Cure::Removed
            } else {
                Cure::None
            };
            locked(&self.problems).push(Problem { digest, what, images: vec![reference], cure });
        }
        Ok(())
    }
}

/// Calls a function for every item, on several threads. The first error ends it.
fn each<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS).min(items.len());
    let queue = Mutex::new(items.iter());
    let failed = Mutex::new(None);
    let run = || {
        while let Some(item) = locked(&queue).next()
            && locked(&failed).is_none()
        {
            if let Err(e) = work(item) {
                locked(&failed).get_or_insert(e);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
