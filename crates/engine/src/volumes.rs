//! Volumes of containers: made and filled when a container wants them, kept while one has them, removed with it where
//! nobody gave them a name.
//!
//! Which containers use a volume is read from their records; nothing counts. Whoever makes a container holds the store's
//! lock of volumes shared from the moment it looks for them until its record is written, and whoever removes one
//! holds it alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use isles_sandbox::identity::Identity;
use isles_sandbox::setup::{MountFlags, MountSource};
use isles_spec::image::ContainerConfig;
use isles_spec::volume::{Backing, check_name};
use isles_spec::{Mount, MountKind, VolumeSpec, Workload};
use isles_store::{Volume, VolumeRecord};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::name;
use crate::plan::Behind;
use crate::record::now;
use crate::view::{View, absolute};

/// Docker's mark of a volume that nobody named: such volumes are pruned before others.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";

impl Engine {
    /// Makes a volume, or finds the one of that name that was made with the same options. Without a name it gets one, and
    /// docker's mark; it goes with no container, because whoever made it may have written down what it is called.
    ///
    /// # Errors
    /// The name or an option is not possible, or a volume of that name has other options.
    pub fn create_volume(&self, name: Option<&str>, spec: &VolumeSpec) -> Result<Volume> {
        let mut spec = spec.clone();
        let name = match name {
            Some(name) => name.to_owned(),
            None => {
                spec.labels.insert(ANONYMOUS.to_owned(), String::new());
                name::id()?
            }
        };
        check_name(&name)?;
        self.check_backing(&spec)?;
        let record = VolumeRecord { name, created: now(), spec, anonymous: false, goes_with: None };
        let (volume, made) = self.store.create_volume(&record)?;
        if !made && volume.record.spec.options != record.spec.options {
            return Err(Error::VolumeDiffers(record.name));
        }
        Ok(volume)
    }

    /// Whether nobody named a volume.
    pub fn is_anonymous(volume: &Volume) -> bool {
        volume.record.anonymous || volume.record.spec.labels.contains_key(ANONYMOUS)
    }

    /// Which containers have which volumes: names of volumes with the IDs of containers, newest container first.
    pub fn users_of_volumes(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for info in self.containers()? {
            for name in names(&info.record.workload) {
                users.entry(name.to_owned()).or_default().push(info.record.id.clone());
            }
        }
        Ok(users)
    }

    /// Removes a volume that no container has.
    ///
    /// # Errors
    /// There is none of that name, or a container has it, running or not.
    pub fn remove_volume(&self, name: &str) -> Result<()> {
        let _alone = self.store.lock_volumes(true)?;
        let volume = self.store.volume(name)?;
        match self.users_of_volumes()?.remove(name) {
            Some(users) => Err(Error::VolumeInUse { name: name.to_owned(), users }),
            None => Ok(self.store.remove_volume(&volume)?),
        }
    }

    /// Removes those of the volumes that no container has. Returns their names and the bytes that they took.
    pub fn prune_volumes(&self, wanted: &dyn Fn(&Volume) -> bool) -> Result<(Vec<String>, u64)> {
        let _alone = self.store.lock_volumes(true)?;
        let users = self.users_of_volumes()?;
        let (mut removed, mut bytes) = (Vec::new(), 0);
        for volume in self.store.volumes()? {
            if !users.contains_key(volume.name()) && wanted(&volume) {
                let size = volume.disk_bytes();
                self.store.remove_volume(&volume)?;
                removed.push(volume.record.name);
                bytes += size;
            }
        }
        Ok((removed, bytes))
    }

    /// The mounts of another container, as `--volumes-from NAME[:ro|:rw]` wants them: its volumes and what it has of the
    /// host. Places that are taken already are left out.
    pub fn volumes_from(&self, text: &str, taken: &[Mount]) -> Result<Vec<Mount>> {
        let (name, mode) = text.split_once(':').unwrap_or((text, ""));
        let read_only = match mode {
            "" => None,
            "ro" => Some(true),
            "rw" => Some(false),
            _ => {
                return Err(isles_spec::Error::new(format!("invalid mode '{mode}' of '{text}'"))
                    .with_hint("write --volumes-from NAME, NAME:ro or NAME:rw")
                    .into());
            }
        };
        let mounts = self.find(name)?.record.workload.mounts.into_iter().filter(|mount| {
            matches!(mount.kind, MountKind::Volume { .. } | MountKind::Bind { .. })
                && !taken.iter().any(|other| other.destination == mount.destination)
        });
        // What was read-only stays so.
        Ok(mounts
            .map(|mount| Mount { read_only: mount.read_only || read_only == Some(true), ..mount })
            .collect())
    }

    /// Gives a new container its volumes: those that its image declares as well, and names for those that have none.
    /// None of them is removed until the file is dropped; the container's record has to be written by then.
    pub(crate) fn adopt_volumes(
        &self,
        workload: &mut Workload,
        image: &ContainerConfig,
        id: &str,
    ) -> Result<Option<File>> {
        if workload.image_volumes {
            for place in image.volumes.keys() {
                let destination = absolute(Path::new(place));
                let taken = workload.mounts.iter().any(|mount| absolute(&mount.destination) == destination);
                if !taken && destination != Path::new("/") {
                    let kind = MountKind::volume(None);
                    workload.mounts.push(Mount { destination, kind, read_only: false, optional: false });
                }
            }
            // Whoever is mounted below another has to come after it.
            workload.mounts.sort_by_key(|mount| absolute(&mount.destination).components().count());
        }
        if !workload.mounts.iter().any(|mount| matches!(mount.kind, MountKind::Volume { .. })) {
            return Ok(None);
        }
        let lock = self.store.lock_volumes(false)?;
        let goes_with = workload.remove.then(|| id.to_owned());
        for mount in &mut workload.mounts {
            let MountKind::Volume { name, make, .. } = &mut mount.kind else { continue };
            let mut record = VolumeRecord {
                name: String::new(),
                created: now(),
                spec: make.clone(),
                anonymous: name.is_none(),
                goes_with: None,
            };
            if name.is_none() {
                record.goes_with.clone_from(&goes_with);
                record.spec.labels.insert(ANONYMOUS.to_owned(), String::new());
                *name = Some(name::id()?);
            }
            record.name = name.clone().unwrap_or_default();
            self.check_backing(&record.spec)?;
            self.store.create_volume(&record)?;
        }
        Ok(Some(lock))
    }

    /// Removes the volumes of a container that is gone which nobody named and no other container has.
    pub fn release_volumes(&self, workload: &Workload) -> Result<()> {
        if names(workload).next().is_none() {
            return Ok(());
        }
        let _alone = self.store.lock_volumes(true)?;
        let users = self.users_of_volumes()?;
        for name in names(workload).filter(|name| !users.contains_key(*name)) {
            match self.store.volume(name) {
                Ok(volume) if volume.record.anonymous => self.store.remove_volume(&volume)?,
                Ok(_) | Err(isles_store::Error::NoVolume { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Removes the volumes that were to go with a container whose monitor could not take them along.
    pub(crate) fn collect_volumes(&self) -> Result<()> {
        let orphaned = |volume: &Volume| {
            let with = volume.record.goes_with.as_deref();
            with.is_some_and(|id| {
                matches!(self.store.container(id), Err(isles_store::Error::NoContainer { .. }))
            })
        };
        if self.store.volumes()?.iter().any(orphaned) {
            self.prune_volumes(&orphaned).map(drop)
        } else {
            Ok(())
        }
    }

    /// Whether this process can have a volume with these options.
    fn check_backing(&self, spec: &VolumeSpec) -> Result<()> {
        match spec.backing()? {
            Backing::Mounted { kind, .. } if kind != "tmpfs" && self.identity != Identity::Root => Err(
                Error::impossible(format!("a volume of type {kind}"), "only root mounts such a file system"),
            ),
            _ => Ok(()),
        }
    }

    /// What stands behind a mount of a volume, filled from the image where it is empty.
    pub(crate) fn behind_volume(&self, mount: &Mount, view: &View) -> Result<Option<Behind>> {
        let MountKind::Volume { name: Some(name), copy_up, subpath, .. } = &mount.kind else {
            return Ok(None);
        };
        let volume = self.store.volume(name)?;
        let (folder, recursive, flags) = match volume.record.spec.backing()? {
            Backing::Mounted { kind, device, options, flags } => {
                if let Some(path) = subpath {
                    return Err(Error::impossible(
                        format!("'{}' of volume {name}", path.display()),
                        "its file system is mounted as a whole",
                    ));
                }
                let options = options.iter().map(|option| {
                    let (key, value) = option.split_once('=').unwrap_or((option, ""));
                    (key.to_owned(), value.to_owned())
                });
                let source = MountSource::Filesystem { kind, source: device, options: options.collect() };
                return Ok(Some(Behind { source, flags: mount_flags(&flags) }));
            }
            Backing::Bind { source, recursive, flags } => {
                std::fs::metadata(&source).map_err(|e| Error::file("bind, for a volume,", &source, e))?;
                (source, recursive, mount_flags(&flags))
            }
            Backing::Own => {
                if *copy_up && let View::Layers(layers) = view {
                    volume.fill(&self.store, layers, &mount.destination)?;
                }
                (volume.data(), true, MountFlags::default())
            }
        };
        let source = match subpath {
            None => MountSource::Bind { source: folder, recursive },
            Some(path) => {
                let directory = below(&folder, path)
                    .and_then(|found| rustix::fs::fstat(&found))
                    .map(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
                    .map_err(|e| Error::SubPath {
                        volume: name.clone(),
                        path: path.clone(),
                        source: e.into(),
                    })?;
                MountSource::Inside { place: folder, path: path.clone(), directory }
            }
        };
        Ok(Some(Behind { source, flags }))
    }
}

/// A file of a folder, whose links lead nowhere else (CVE-2017-1002101). The same is resolved once more when it is mounted.
fn below(folder: &Path, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags | OFlags::DIRECTORY, Mode::empty())?;
    openat2(folder, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// The names of a container's volumes.
fn names(workload: &Workload) -> impl Iterator<Item = &str> {
    workload.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Volume { name, .. } => name.as_deref(),
        _ => None,
    })
}

fn mount_flags(words: &[String]) -> MountFlags {
    let mut flags = MountFlags::default();
    for word in words {
        match word.as_str() {
            "ro" => flags.read_only = true,
            "nosuid" => flags.nosuid = true,
            "nodev" => flags.nodev = true,
            "noexec" => flags.noexec = true,
            "noatime" => flags.noatime = true,
            "relatime" => flags.relatime = true,
            "strictatime" => flags.strictatime = true,
            "nodiratime" => flags.nodiratime = true,
            // The opposites are how a new mount is anyway.
            _ => {}
        }
    }
    flags
}

/// What a person sees as the place of a volume's files.
pub fn mountpoint(volume: &Volume) -> PathBuf {
    match volume.record.spec.backing() {
        Ok(Backing::Bind { source, .. }) => source,
        _ => volume.data(),
    }
}
