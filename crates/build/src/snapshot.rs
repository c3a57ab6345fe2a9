//! What a stage is at one moment: layers and a configuration, and how the next layer comes to be.
//!
//! The one idea of the cache: a step's key is made of the layers below it (by diff ID, that is by content) and
//! of everything that goes into the step itself. A step that gives the layer it gave before leaves the keys of
//! all later steps as they were, whatever made it run again. What the configuration says counts where a step
//! uses it.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use isles_engine::Engine;
use isles_spec::image::{Descriptor, History, ImageConfig};
use isles_spec::time::rfc3339;
use isles_spec::{Digest, Platform, Progress};
use isles_store::{BuildRecord, CommitOptions, CommittedLayer, Image, Lease, Merged, Store};
use serde::{Deserialize, Serialize};

use crate::attest::Dependency;
use crate::cache_transfer::Transfer;
use crate::digests::Digests;
use crate::error::Result;
use crate::key::Key;
use crate::options::BuildOptions;
use crate::upper::Upper;

/// What BuildKit writes beside each entry of the history that it makes.
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

/// A layer of a stage.
#[derive(Debug, Clone)]
pub struct Layer {
    pub diff_id: Digest,
    /// As a manifest refers to it.
    pub blob: Descriptor,
}

/// A stage at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub layers: Vec<Layer>,
    pub config: ImageConfig,
    /// When the last layer was made (RFC 3339).
    pub created: Option<String>,
    /// Its next steps are made anew, whatever the cache has.
    pub renewed: bool,
}

/// One build under way: what all its stages share.
pub struct Build<'a> {
    pub engine: &'a Engine,
    pub store: &'a Store,
    pub client: &'a isles_registry::Client,
    pub options: &'a BuildOptions,
    pub progress: &'a dyn Progress,
    pub lease: &'a Lease,
    pub platform: Platform,
    /// What titles of steps begin with, where a build is for several platforms.
    pub label: String,
    /// The time that new things get, where the caller fixes it.
    pub epoch: Option<i64>,
    /// Digests of files in layers.
    pub layer_digests: Digests,
    /// Keys of steps that some stage is working on.
    busy: Mutex<HashSet<Digest>>,
    idle: Condvar,
    worked: AtomicBool,
    /// Layers of steps, in the order in which they were had.
    pub noted: Mutex<Vec<Noted>>,
    /// What came from elsewhere.
    dependencies: Mutex<BTreeSet<Dependency>>,
    /// Caches of other builders.
    pub transfer: Transfer,
    /// Titles of steps that were found, kept back until it turns out that others have to be made.
    found: Mutex<Vec<String>>,
}

/// What the record of a step says.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    diff_id: Digest,
    size: u64,
    /// The blob of a layer that came compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blob: Option<Descriptor>,
    created: String,
    /// The step, for people.
    #[serde(default)]
    about: String,
    /// Under a shortcut, the key that says everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Digest>,
}

/// A layer as the cache has it.
#[derive(Debug, Clone)]
struct Kept {
    layer: Layer,
    created: String,
    /// Found by a shortcut, the key that says everything.
    key: Option<Digest>,
}

impl From<Made> for Kept {
    fn from(made: Made) -> Kept {
        let Made { diff_id, size, blob, created, key, .. } = made;
        let plain = || Descriptor::new(isles_spec::image::media_type::OCI_LAYER, diff_id.clone(), size);
        let blob = blob.unwrap_or_else(plain);
        Kept { layer: Layer { diff_id, blob }, created, key }
    }
}

/// A layer that a build came by, and where it is kept.
#[derive(Debug, Clone)]
pub struct Noted {
    /// Keys that lead to it.
    pub keys: Vec<Digest>,
    /// The diff IDs below it.
    pub below: Vec<Digest>,
    pub diff_id: Digest,
    pub created: String,
}

impl Snapshot {
    /// Nothing yet, for a platform.
    pub fn empty(platform: &Platform) -> Snapshot {
        Snapshot { layers: Vec::new(), config: ImageConfig::empty(platform), created: None, renewed: false }
    }

    /// What an image is.
    pub fn of_image(image: &Image) -> Snapshot {
        let mut config = image.config.clone();
        // Of the parts that other programs add, those at the top describe the old image.
        config.rest.clear();
        let layers = config.rootfs.diff_ids.iter().zip(&image.manifest.layers);
        let layers = layers.map(|(d, blob)| Layer { diff_id: d.clone(), blob: blob.clone() }).collect();
        Snapshot { layers, created: config.created.clone(), config, renewed: false }
    }

    /// A key for a step on these layers.
    pub fn key(&self, kind: &str, build: &Build<'_>) -> Key {
        let platform = self.config.platform().to_string();
        Key::new(kind)
            .with("platform", platform)
            .with("epoch", build.epoch.map(|e| e.to_string()).unwrap_or_default())
            .with_list("layers", self.layers.iter().map(|l| l.diff_id.to_string()))
    }

    /// The folders of the layers, base first.
    pub fn lowers(&self, store: &Store) -> Result<Vec<PathBuf>> {
        let mut shown = self.layers.len();
        while shown > 0 {
            shown -= 1;
            // A layer may hide everything below it, which overlay does not look for at the root.
            if store.layer_info(&self.layers[shown].diff_id)?.opaque {
                break;
            }
        }
        Ok(store.layer_paths(self.layers[shown..].iter().map(|layer| &layer.diff_id))?)
    }

    /// The layers as one tree, to read from.
    pub fn view(&self, store: &Store) -> Result<Merged> {
        Ok(Merged::open(&self.lowers(store)?, store.ownership())?)
    }

    /// Notes a change of the configuration in the history.
    pub fn note(&mut self, created_by: impl Into<String>) {
        self.push_history(created_by.into(), None);
    }

    fn push_history(&mut self, created_by: String, layer: Option<&str>) {
        self.config.history.push(History {
            // Filled in at the end where no layer gives one.
            created: layer.map(str::to_owned),
            created_by: Some(created_by),
            comment: Some(HISTORY_COMMENT.to_owned()),
            empty_layer: layer.is_none(),
            ..History::default()
        });
    }

    /// Adds a layer that was made elsewhere.
    pub fn push_layer(&mut self, layer: Layer, created: &str, created_by: String) {
        self.layers.push(layer);
        self.push_history(created_by, Some(created));
        self.created = Some(created.to_owned());
    }
}

/// A step of a build as the cache and the progress see it.
pub struct Step<'s> {
    /// What the progress shows.
    pub title: &'s str,
    pub key: Digest,
    /// A key that is found faster and says less; the layer is kept under it too.
    pub shortcut: Option<Digest>,
    pub created_by: String,
}

impl<'a> Build<'a> {
    pub fn new(
        engine: &'a Engine,
        client: &'a isles_registry::Client,
        options: &'a BuildOptions,
        lease: &'a Lease,
        platform: Platform,
        progress: &'a dyn Progress,
    ) -> Build<'a> {
        let store = engine.store();
        Build {
            engine,
            store,
            client,
            options,
            progress,
            lease,
            label: if options.platforms.len() > 1 { format!("{platform} ") } else { String::new() },
            platform,
            epoch: options.epoch(),
            layer_digests: Digests::of(store, Path::new("layers")),
            busy: Mutex::default(),
            idle: Condvar::new(),
            worked: AtomicBool::new(false),
            noted: Mutex::default(),
            dependencies: Mutex::default(),
            transfer: Transfer::default(),
            found: Mutex::default(),
        }
    }

    /// A build of another recipe for this one.
    pub fn inner<'b>(&'b self, options: &'b BuildOptions) -> Build<'b> {
        let platform = self.platform.clone();
        let build = Build::new(self.engine, self.client, options, self.lease, platform, self.progress);
        Build { epoch: self.epoch, ..build }
    }

    /// The key of what the caller puts in a name's place, if that is something.
    pub fn named(&self, name: &str) -> Option<String> {
        self.options.contexts.key(name, &self.platform)
    }

    /// Notes something from elsewhere that goes into the image, for its provenance.
    pub fn depends_on(&self, dependency: Dependency) {
        self.dependencies.lock().unwrap_or_else(PoisonError::into_inner).insert(dependency);
    }

    /// What was noted, sorted.
    pub fn dependencies(&self) -> Vec<Dependency> {
        self.dependencies.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Whether something had to be made that no record had.
    pub fn worked(&self) -> bool {
        self.worked.load(Ordering::Relaxed)
    }

    /// Says that something is being made. A build that makes nothing is silent.
    pub fn note_work(&self) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        self.worked.store(true, Ordering::Relaxed);
        for title in found.drain(..) {
            self.progress.end(self.progress.begin(&title, None), "cached");
        }
    }

    /// The layer that is kept under a key.
    fn known(&self, snapshot: &Snapshot, key: &Digest, title: &str) -> Result<Option<Kept>> {
        if self.options.no_cache || snapshot.renewed {
            return Ok(None);
        }
        match self.recorded(key)? {
            Some(kept) => Ok(Some(kept)),
            None => self.imported(key, title),
        }
    }

    fn recorded(&self, key: &Digest) -> Result<Option<Kept>> {
        let Some(record) = self.store.build_record(self.lease, key)? else { return Ok(None) };
        let Ok(made) = serde_json::from_value::<Made>(record.value) else { return Ok(None) };
        Ok(self.store.has_layer(&made.diff_id).then(|| made.into()))
    }

    /// The layer that another builder's cache has under a key; it is kept here from now on.
    fn imported(&self, key: &Digest, title: &str) -> Result<Option<Kept>> {
        let Some(imported) = self.transfer.find(key) else { return Ok(None) };
        let Some(blob) = imported.fetch(self)? else { return Ok(None) };
        let layer = Layer { diff_id: imported.diff_id.clone(), blob };
        let kept = Kept { layer, created: imported.created.clone(), key: None };
        self.keep(key, &kept, title)?;
        Ok(Some(kept))
    }

    fn keep(&self, key: &Digest, kept: &Kept, title: &str) -> Result<()> {
        let layer = &kept.layer;
        let made = Made {
            diff_id: layer.diff_id.clone(),
            size: layer.blob.size,
            blob: (layer.blob.digest != layer.diff_id).then(|| layer.blob.clone()),
            created: kept.created.clone(),
            about: title.to_owned(),
            key: kept.key.clone(),
        };
        let value = serde_json::to_value(made).unwrap_or_default();
        Ok(self.store.put_build_record(key, &BuildRecord { holds: vec![layer.diff_id.clone()], value })?)
    }

    /// Adds the layer that is kept under `shortcut`, if there is one.
    pub fn add_known(
        &self,
        snapshot: &mut Snapshot,
        title: &str,
        shortcut: &Digest,
        created_by: &str,
    ) -> Result<bool> {
        let Some(kept) = self.known(snapshot, shortcut, title)? else { return Ok(false) };
        self.say_cached(title);
        let keys = kept.key.iter().chain([shortcut]).cloned().collect();
        self.push(snapshot, kept, keys, created_by.to_owned());
        Ok(true)
    }

    /// Adds a layer, and notes under which keys it is kept.
    fn push(&self, snapshot: &mut Snapshot, kept: Kept, keys: Vec<Digest>, created_by: String) {
        let noted = Noted {
            keys,
            below: snapshot.layers.iter().map(|l| l.diff_id.clone()).collect(),
            diff_id: kept.layer.diff_id.clone(),
            created: kept.created.clone(),
        };
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).push(noted);
        snapshot.push_layer(kept.layer, &kept.created, created_by);
    }

    fn say_cached(&self, title: &str) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if self.worked() || self.options.every_step {
            self.progress.end(self.progress.begin(title, None), "cached");
        } else {
            found.push(title.to_owned());
        }
    }

    /// Adds the layer of a step: the one that is kept under its key, or the one that `make` makes. Stages that
    /// come to the same step at the same time make it once.
    pub fn add(
        &self,
        snapshot: &mut Snapshot,
        step: Step<'_>,
        make: impl FnOnce(&Snapshot, u64) -> Result<CommittedLayer>,
    ) -> Result<()> {
        let _turn = self.turn(&step.key);
        let mut keys = vec![step.key.clone()];
        keys.extend(step.shortcut.clone());
        if let Some(kept) = self.known(snapshot, &step.key, step.title)? {
            if let Some(shortcut) = &step.shortcut {
                self.keep(shortcut, &Kept { key: Some(step.key), ..kept.clone() }, step.title)?;
            }
            self.say_cached(step.title);
            self.push(snapshot, kept, keys, step.created_by);
            return Ok(());
        }
        self.note_work();
        let work = self.progress.begin(step.title, None);
        let made = make(snapshot, work);
        self.progress.end(work, if made.is_ok() { "done" } else { "failed" });
        let made = made?;
        let layer = Layer { diff_id: made.diff_id, blob: made.blob };
        let kept = Kept { layer, created: self.now(), key: None };
        self.keep(&step.key, &kept, step.title)?;
        if let Some(shortcut) = &step.shortcut {
            self.keep(shortcut, &Kept { key: Some(step.key), ..kept.clone() }, step.title)?;
        }
        self.push(snapshot, kept, keys, step.created_by);
        Ok(())
    }

    /// The present, or what the caller says it is (RFC 3339).
    pub fn now(&self) -> String {
        rfc3339(self.seconds())
    }

    /// As [`Self::now`], in seconds since 1970.
    pub fn seconds(&self) -> i64 {
        let now = || UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs().cast_signed());
        self.epoch.unwrap_or_else(now)
    }

    /// Waits until nobody else works on a key.
    pub fn turn(&self, key: &Digest) -> Turn<'_> {
        let mut busy = self.busy();
        while !busy.insert(key.clone()) {
            busy = self.idle.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        Turn { busy: &self.busy, idle: &self.idle, key: key.clone() }
    }

    fn busy(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to work on a key.
pub struct Turn<'b> {
    busy: &'b Mutex<HashSet<Digest>>,
    idle: &'b Condvar,
    key: Digest,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.idle.notify_all();
    }
}

/// Makes a layer of what was written.
pub fn commit(build: &Build<'_>, upper: Upper<'_>) -> Result<CommittedLayer> {
    let folder = upper.finish()?;
    let options = CommitOptions { clamp_mtime: build.epoch, ..CommitOptions::default() };
    Ok(build.store.commit_layer(build.lease, &folder, &options)?)
}

/// A folder of the store that goes when it is done with.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(store: &Store) -> Result<Scratch> {
        Ok(Scratch(store.scratch_dir()?))
    }

    /// A new folder in it.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::create_dir(&path).map_err(crate::Error::io("create", &path))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is collected when this process is gone.
        let _ = isles_store::remove_tree(&self.0);
    }
}
