//! Garbage collection: what no name, container, lease or cache record reaches goes.
//!
//! Marking and taking out of sight happen in short turns under the store's `gc.lock`, held alone; each turn
//! marks afresh, so that what became reachable in between stays. The deleting of trees happens outside.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isles_spec::image::{Index, Manifest};
use isles_spec::{Algorithm, Digest, Reference};
use rustix::fs::{FlockOperation, flock};

use crate::evict::{self, Kind};
use crate::refs::names_in;
use crate::{Error, ImageSummary, Result, Store};

/// Objects that one turn takes away.
const TURN: usize = 256;
/// A download that nobody has continued for so long is given up.
const PARTIAL_AGE: Duration = Duration::from_secs(24 * 3600);

/// What a pruning takes away, besides blobs and layers that nothing needs.
#[derive(Clone, Default)]
pub struct PruneOptions<'a> {
    /// Also images that have a name but no container, not only nameless ones.
    pub all_images: bool,
    /// Which of these images may go; all where nothing is said.
    pub may_go: Option<&'a dyn Fn(&ImageSummary) -> bool>,
    /// Also the build cache and downloads, as far as they exceed `cache_budget`.
    pub cache: bool,
    /// Bytes of cache that may stay, the most recently used first.
    pub cache_budget: u64,
    /// Unreachable objects that are younger stay, and what was used since in caches.
    pub grace: Duration,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What went, or would go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Names of images, and IDs of nameless ones.
    pub images: Vec<String>,
    pub layers: Vec<Digest>,
    pub blobs: Vec<Digest>,
    pub build_records: usize,
    pub downloads: usize,
    /// Folders of `RUN --mount=type=cache`.
    pub cache_mounts: usize,
    /// Files of the cache that only spare time.
    pub memories: usize,
    /// Bytes on disk.
    pub freed: u64,
}

/// One kind of content and what it takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsageLine {
    pub count: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes that nothing needs, or for caches all.
    pub reclaimable: u64,
}

/// What the store takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Images; their bytes are those of layers and blobs that some image needs.
    pub images: UsageLine,
    pub blobs: UsageLine,
    pub layers: UsageLine,
    /// Repositories that a registry serves; their bytes are those that no image needs. `isles registry gc` knows which
    /// of them could go.
    pub served: UsageLine,
    pub containers: UsageLine,
    /// Volumes; who uses them the store does not know, so none counts as reclaimable.
    pub volumes: UsageLine,
    pub build_cache: UsageLine,
    pub downloads: UsageLine,
    /// Bytes that processes left which were killed, and downloads that nobody continues.
    pub leftovers: u64,
}

/// What can be reached.
#[derive(Default)]
pub(crate) struct Reach {
    pub blobs: HashSet<Digest>,
    pub layers: HashSet<Digest>,
}

/// Which roots count.
pub(crate) struct Roots<'a> {
    /// Manifests of images that go.
    pub dropped: &'a HashSet<Digest>,
    /// Files of build records that go; all where `None`.
    pub evicted: Option<&'a HashSet<&'a Path>>,
}

/// Blobs, and layers with their folders.
type Garbage = (Vec<Digest>, Vec<(Digest, PathBuf)>);

impl Store {
    /// Removes what is not needed. Runs beside everything else; stops others for moments only.
    pub fn prune(&self, options: &PruneOptions<'_>) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        let mut sizes = Sizes::default();
        let dropped = {
            // In one turn, so that no name is given to an image that is going.
            let _alone = if options.dry_run { None } else { Some(self.exclude()?) };
            let (dropped, names) = self.images_to_drop(options, &mut pruned)?;
            if !options.dry_run {
                names.iter().try_for_each(|reference| self.remove_ref(reference).map(drop))?;
                dropped.iter().try_for_each(|manifest| self.remove_record(manifest))?;
            }
            dropped
        };
        let mut evicted = Vec::new();
        if options.cache {
            evicted = self.over_budget(&dropped, options.cache_budget, options.grace, &mut sizes)?;
        }
        if options.dry_run {
            evicted.iter().for_each(|item| item.count(&mut pruned));
            let roots = Roots { dropped: &dropped, evicted: Some(&evict::paths(&evicted)) };
            let (blobs, layers) = self.garbage(&roots, options.grace, None)?;
            pruned.freed += sizes.of_all(self, &blobs, &layers);
            pruned.blobs = blobs;
            pruned.layers = layers.into_iter().map(|(digest, _)| digest).collect();
            pruned.freed += self.old_partials(true)? + clear_tmp(self, true)?;
            return Ok(pruned);
        }
        for item in &evicted {
            if self.evict(item)? {
                item.count(&mut pruned);
            }
        }
        self.sweep(options.grace, None, &mut sizes, &mut pruned)?;
        pruned.freed += self.old_partials(false)? + clear_tmp(self, false)?;
        Ok(pruned)
    }

    /// Removes an image by name (only the name, while others stand for it) or by ID (with all its names if
    /// `force`, else only while it has one at most), then frees what it alone needed. A container that
    /// stands on the image, or a lease on its manifest, forbids it; with `force` only the name goes.
    pub fn remove_image(&self, name: &str, force: bool) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        let candidates = {
            // In one turn, so that no name is given to an image that is going.
            let _alone = self.exclude()?;
            self.forget_image(name, force, &mut pruned)?
        };
        self.sweep(Duration::ZERO, Some(&candidates), &mut Sizes::default(), &mut pruned)?;
        Ok(pruned)
    }

    /// Takes the names and records away that a removal takes away, and returns what may be garbage now.
    fn forget_image(&self, name: &str, force: bool, pruned: &mut Pruned) -> Result<HashSet<Digest>> {
        let named = name.parse::<Reference>().ok().filter(|r| matches!(self.lookup(r), Ok(Some(_))));
        let names = self.references()?;
        let mut manifests = HashSet::new();
        let mut going = Vec::new();
        match &named {
            Some(reference) => {
                if let Some(target) = self.lookup(reference)? {
                    manifests.extend(self.manifests_behind(&target)?);
                }
                going.push(reference.normalized());
            }
            None => {
                let image = self.resolve(name, None)?;
                let same = self.images()?.into_iter().filter(|i| i.id == *image.id());
                manifests.extend(same.map(|i| i.manifest_digest));
                for (reference, target) in &names {
                    if !self.manifests_behind(target)?.is_disjoint(&manifests) {
                        going.push(reference.clone());
                    }
                }
                if going.len() > 1 && !force {
                    return Err(Error::SeveralNames { name: name.to_owned() });
                }
            }
        }
        let mut kept = HashSet::new();
        for (reference, target) in &names {
            if !going.iter().any(|g| g == reference || g == &reference.normalized()) {
                kept.extend(self.manifests_behind(target)?);
            }
        }
        let mut dropped: HashSet<Digest> = manifests.difference(&kept).cloned().collect();
        let mut held: HashSet<Digest> = self.held_by_containers()?.into_iter().collect();
        held.extend(self.leased()?);
        if !dropped.is_disjoint(&held) {
            if !force {
                return Err(Error::InUse { what: "image", name: name.to_owned() });
            }
            dropped.retain(|d| !held.contains(d));
        }
        let mut candidates = HashSet::new();
        for manifest in &dropped {
            candidates.insert(manifest.clone());
            // A damaged image can be removed too.
            if let Ok(image) = self.image(manifest) {
                candidates.extend(image.manifest.layers.into_iter().map(|l| l.digest));
            }
            let (config, layers) = self.parts_recorded(manifest)?;
            candidates.insert(config);
            for diff_id in layers {
                candidates.extend(self.blobs_of(&diff_id));
                candidates.insert(diff_id);
            }
        }
        for reference in &going {
            if let Some(target) = self.lookup(reference)? {
                let mut beside = Reach::default();
                self.mark_artefacts(&target, &mut beside);
                candidates.extend(beside.blobs);
                candidates.insert(target);
            }
            self.remove_ref(reference)?;
            pruned.images.push(reference.familiar());
        }
        if going.is_empty() {
            pruned.images.push(name.to_owned());
        }
        dropped.iter().try_for_each(|manifest| self.remove_record(manifest))?;
        Ok(candidates)
    }

    /// Counts and sizes by kind.
    pub fn disk_usage(&self) -> Result<DiskUsage> {
        let mut sizes = Sizes::default();
        let (none, nothing) = (HashSet::new(), HashSet::new());
        let reach = self.mark(&Roots { dropped: &none, evicted: Some(&nothing) })?;
        let mut images = self.mark_local(&Roots { dropped: &none, evicted: None })?;
        let served = self.hosted_blobs()?;
        let mut usage = DiskUsage::default();
        usage.images.count = self.images()?.len() as u64;
        for digest in self.all_blobs()? {
            let bytes = sizes.blob(self, &digest);
            usage.blobs.count += 1;
            usage.blobs.bytes += bytes;
            usage.blobs.reclaimable += if reach.blobs.contains(&digest) { 0 } else { bytes };
            usage.images.bytes += if images.blobs.contains(&digest) { bytes } else { 0 };
            let only_served = served.contains(&digest) && !images.blobs.contains(&digest);
            usage.served.bytes += if only_served { bytes } else { 0 };
        }
        for name in self.hosted_names()? {
            usage.served.count += 1;
            usage.served.bytes += self.hosted(&name)?.usage()?.uploads;
        }
        for (digest, path) in self.all_layers()? {
            let bytes = sizes.layer(&path);
            usage.layers.count += 1;
            usage.layers.bytes += bytes;
            usage.layers.reclaimable += if reach.layers.contains(&digest) { 0 } else { bytes };
            usage.images.bytes += if images.layers.contains(&digest) { bytes } else { 0 };
        }
        for id in self.containers()? {
            let container = self.container(&id)?;
            let bytes = disk_bytes(container.path());
            usage.containers.count += 1;
            usage.containers.bytes += bytes;
            usage.containers.reclaimable += if container.is_locked() { 0 } else { bytes };
        }
        for volume in self.volumes()? {
            usage.volumes.count += 1;
            usage.volumes.bytes += volume.disk_bytes();
        }
        // What is served counts there, not in a cache.
        images.blobs.extend(served);
        let mut counted = Reach::default();
        for item in self.cached()? {
            let more = match &item.kind {
                Kind::Record(holds) => self.extra(holds, &images, &mut counted, &mut sizes),
                Kind::Download | Kind::Memory | Kind::Mount(_) => 0,
            };
            let line = match item.kind {
                Kind::Download => &mut usage.downloads,
                Kind::Record(_) | Kind::Memory | Kind::Mount(_) => &mut usage.build_cache,
            };
            line.count += 1;
            line.bytes += item.bytes + more;
            line.reclaimable += if item.in_use() { 0 } else { item.bytes + more };
        }
        usage.leftovers = self.old_partials(true)? + clear_tmp(self, true)?;
        Ok(usage)
    }

    /// The images that a pruning drops, and the names that go with them.
    fn images_to_drop(
        &self,
        options: &PruneOptions<'_>,
        pruned: &mut Pruned,
    ) -> Result<(HashSet<Digest>, Vec<Reference>)> {
        let mut held: HashSet<Digest> = self.held_by_containers()?.into_iter().collect();
        held.extend(self.leased()?);
        let mut dropped = HashSet::new();
        let mut names = Vec::new();
        for image in self.images()? {
            let named = !image.references.is_empty();
            if held.contains(&image.manifest_digest)
                || (!options.all_images && named)
                || !options.may_go.is_none_or(|may| may(&image))
            {
                continue;
            }
            if image.references.is_empty() {
                pruned.images.push(image.id.to_string());
            }
            names.extend(image.references);
            dropped.insert(image.manifest_digest);
        }
        names.sort();
        names.dedup();
        pruned.images.extend(names.iter().map(Reference::familiar));
        Ok((dropped, names))
    }

    /// Takes garbage away, turn by turn. With `candidates`, nothing else.
    pub(crate) fn sweep(
        &self,
        grace: Duration,
        candidates: Option<&HashSet<Digest>>,
        sizes: &mut Sizes,
        pruned: &mut Pruned,
    ) -> Result<()> {
        let (none, nothing) = (HashSet::new(), HashSet::new());
        loop {
            let mut aside = Vec::new();
            let mut taken = 0;
            {
                let _alone = self.exclude()?;
                let roots = Roots { dropped: &none, evicted: Some(&nothing) };
                let (blobs, layers) = self.garbage(&roots, grace, candidates)?;
                for (digest, path) in layers.into_iter().take(TURN) {
                    if let Some(gone) = self.set_aside(&path)? {
                        aside.push(gone);
                        taken += 1;
                        pruned.layers.push(digest);
                    }
                }
                for digest in blobs.into_iter().take(TURN) {
                    pruned.freed += sizes.blob(self, &digest);
                    self.remove_blob(&digest)?;
                    taken += 1;
                    pruned.blobs.push(digest);
                }
            }
            for path in aside {
                pruned.freed += disk_bytes(&path);
                crate::remove::tree(&path)?;
            }
            if taken == 0 {
                return Ok(());
            }
        }
    }

    /// What nothing reaches: blobs, and layers with their folders.
    fn garbage(
        &self,
        roots: &Roots<'_>,
        grace: Duration,
        candidates: Option<&HashSet<Digest>>,
    ) -> Result<Garbage> {
        let reach = self.mark(roots)?;
        let old = |path: &Path| {
            grace.is_zero()
                || fs::symlink_metadata(path)
                    .and_then(|m| m.modified())
                    .is_ok_and(|t| t.elapsed().is_ok_and(|age| age >= grace))
        };
        let asked = |digest: &Digest| candidates.is_none_or(|c| c.contains(digest));
        let mut blobs = match candidates {
            Some(candidates) => candidates.iter().filter(|d| self.has_blob(d)).cloned().collect(),
            None => self.all_blobs()?,
        };
        blobs.retain(|d| !reach.blobs.contains(d) && old(&self.blob_path(d)));
        let mut layers = self.all_layers()?;
        layers.retain(|(d, path)| asked(d) && !reach.layers.contains(d) && old(&path.join("layer.json")));
        Ok((blobs, layers))
    }

    pub(crate) fn mark(&self, roots: &Roots<'_>) -> Result<Reach> {
        let mut reach = self.mark_local(roots)?;
        reach.blobs.extend(self.hosted_blobs()?);
        Ok(reach)
    }

    /// As [`Store::mark`], without what a registry serves.
    fn mark_local(&self, roots: &Roots<'_>) -> Result<Reach> {
        let mut reach = Reach::default();
        let mut held = self.leased()?;
        held.extend(self.held_by_containers()?);
        if let Some(evicted) = roots.evicted {
            let stay = |(path, _): &(PathBuf, _)| !evicted.contains(path.as_path());
            held.extend(self.build_records()?.into_iter().filter(stay).flat_map(|(_, holds)| holds));
        }
        for image in self.images()? {
            if roots.dropped.contains(&image.manifest_digest) {
                continue;
            }
            self.mark_image(&image.manifest_digest, &mut reach);
        }
        for (_, target) in self.references()? {
            if !roots.dropped.contains(&target) {
                self.mark_artefacts(&target, &mut reach);
                reach.blobs.insert(target);
            }
        }
        for digest in held {
            if self.has_image(&digest) {
                self.mark_image(&digest, &mut reach);
            }
            self.mark_layer(&digest, &mut reach);
            reach.blobs.insert(digest);
        }
        Ok(reach)
    }

    fn mark_image(&self, manifest: &Digest, reach: &mut Reach) {
        reach.blobs.insert(manifest.clone());
        // A damaged image keeps what is left of it, for the pull that repairs it.
        if let Ok((config, layers)) = self.parts_recorded(manifest) {
            reach.blobs.insert(config);
            layers.iter().for_each(|d| self.mark_layer(d, reach));
        }
        if let Ok(image) = self.image(manifest) {
            reach.blobs.insert(image.id().clone());
            reach.blobs.extend(image.manifest.layers.iter().map(|l| l.digest.clone()));
            image.config.rootfs.diff_ids.iter().for_each(|d| self.mark_layer(d, reach));
        }
    }

    /// What an index names that is no image: attestations, with their blobs.
    fn mark_artefacts(&self, index: &Digest, reach: &mut Reach) {
        if self.has_image(index) {
            return;
        }
        let Ok(bytes) = self.read_document(index) else { return };
        let Ok(index) = serde_json::from_slice::<Index>(&bytes) else { return };
        for entry in index.manifests.iter().filter(|d| self.has_blob(&d.digest) && !self.has_image(&d.digest))
        {
            reach.blobs.insert(entry.digest.clone());
            let manifest = self.read_document(&entry.digest).ok();
            if let Some(manifest) = manifest.and_then(|m| serde_json::from_slice::<Manifest>(&m).ok()) {
                reach.blobs.insert(manifest.config.digest);
                reach.blobs.extend(manifest.layers.into_iter().map(|l| l.digest));
            }
        }
    }

    pub(crate) fn mark_layer(&self, diff_id: &Digest, reach: &mut Reach) {
        if reach.layers.insert(diff_id.clone()) {
            reach.blobs.extend(self.blobs_of(diff_id));
        }
    }

    pub(crate) fn blobs_of(&self, diff_id: &Digest) -> Vec<Digest> {
        let info = self.layer_info(diff_id).map(|i| i.blobs).unwrap_or_default();
        info.into_iter().map(|b| b.digest).collect()
    }

    /// The manifests of local images that a name's target stands for.
    fn manifests_behind(&self, target: &Digest) -> Result<HashSet<Digest>> {
        if self.has_image(target) {
            return Ok(HashSet::from([target.clone()]));
        }
        Ok(self.manifests_of_index(target)?.into_iter().collect())
    }

    pub(crate) fn all_blobs(&self) -> Result<Vec<Digest>> {
        self.digests_in("blobs")
    }

    /// Everything that was downloaded and is kept.
    pub(crate) fn downloads(&self) -> Result<Vec<Digest>> {
        self.digests_in("cache/downloads")
    }

    /// The names of files below `<folder>/<algorithm>/<first two>/`.
    fn digests_in(&self, folder: &str) -> Result<Vec<Digest>> {
        let mut out = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let dir = self.root.join(folder).join(algorithm.name());
            for two in names_in(&dir)? {
                let names = names_in(&dir.join(two))?;
                out.extend(names.iter().filter_map(|hex| format!("{}:{hex}", algorithm.name()).parse().ok()));
            }
        }
        out.sort();
        Ok(out)
    }

    /// All unpacked layers, in every flavour of ownership, with their folders.
    pub(crate) fn all_layers(&self) -> Result<Vec<(Digest, PathBuf)>> {
        let dir = self.root.join("layers");
        let mut out = Vec::new();
        for name in names_in(&dir)? {
            let hex = name.split('.').next().unwrap_or_default();
            let algorithm = if hex.len() == Algorithm::Sha512.hex_len() { "sha512" } else { "sha256" };
            if let Ok(digest) = format!("{algorithm}:{hex}").parse() {
                out.push((digest, dir.join(&name)));
            }
        }
        out.sort();
        Ok(out)
    }

    /// Removes downloads that nobody continues. Returns their bytes.
    fn old_partials(&self, dry_run: bool) -> Result<u64> {
        let dir = self.root.join("partial");
        let mut freed = 0;
        for name in names_in(&dir)? {
            let path = dir.join(&name);
            let Ok(meta) = fs::metadata(&path) else { continue };
            let age = meta.modified().ok().and_then(|t| t.elapsed().ok()).unwrap_or_default();
            let Ok(file) = File::open(&path) else { continue };
            let free = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if free && (age > PARTIAL_AGE || name.ends_with(".lock")) {
                freed += meta.blocks() * 512;
                if !dry_run {
                    crate::atomic::remove_file(&path)?;
                }
            }
        }
        Ok(freed)
    }
}

/// Sizes on disk, measured once.
#[derive(Default)]
pub(crate) struct Sizes {
    layers: HashMap<PathBuf, u64>,
}

impl Sizes {
    pub fn blob(&mut self, store: &Store, digest: &Digest) -> u64 {
        fs::metadata(store.blob_path(digest)).map(|m| m.blocks() * 512).unwrap_or_default()
    }

    pub fn layer(&mut self, path: &Path) -> u64 {
        *self.layers.entry(path.to_owned()).or_insert_with(|| disk_bytes(path))
    }

    fn of_all(&mut self, store: &Store, blobs: &[Digest], layers: &[(Digest, PathBuf)]) -> u64 {
        let of_layers: u64 = layers.iter().map(|(_, path)| self.layer(path)).sum();
        of_layers + blobs.iter().map(|d| self.blob(store, d)).sum::<u64>()
    }
}

/// Bytes on disk of a tree; files with several names count once. What cannot be read counts nothing.
pub fn disk_bytes(path: &Path) -> u64 {
    let mut seen = HashSet::new();
    let mut todo = vec![path.to_owned()];
    let mut bytes = 0;
    while let Some(path) = todo.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.nlink() < 2 || meta.is_dir() || seen.insert((meta.dev(), meta.ino())) {
            bytes += meta.blocks() * 512;
        }
        if meta.is_dir()
            && let Ok(entries) = fs::read_dir(&path)
        {
            todo.extend(entries.flatten().map(|e| e.path()));
        }
    }
    bytes
}

/// Removes leftovers of dead processes from `tmp/`. Returns their bytes.
pub(crate) fn clear_tmp(store: &Store, dry_run: bool) -> Result<u64> {
    let tmp = store.root.join("tmp");
    let mut freed = 0;
    for name in names_in(&tmp)? {
        let path = tmp.join(&name);
        // Held until the folder is gone.
        let _lock = if name.starts_with("work-") {
            match File::open(&path) {
                Ok(dir) if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() => Some(dir),
                Ok(_) => continue,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("open", &path, e)),
            }
        } else if name.starts_with("gone-") {
            None
        } else {
            continue;
        };
        freed += disk_bytes(&path);
        if !dry_run {
            crate::remove::tree(&path)?;
        }
    }
    Ok(freed)
}
