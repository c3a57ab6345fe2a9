//! What a container wrote to its root file system: as a list, as a layer, and with all that is below as one archive.

use std::io::Write;
use std::path::{Path, PathBuf};

use isles_sandbox::background::{Afterwards, afterwards};
use isles_sandbox::cgroup::{Group, Layout};
use isles_spec::{Root, Workload, Writable};
use isles_store::{Change, CommitOptions, CommittedLayer, Image, Lease, Merged};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::record::{Info, Record, Status};
use crate::view::absolute;

/// Where every container has something mounted (the rest of the places is in its workload).
const PLACES: [&str; 6] = ["/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// The layers of a root, base first, and the folder over them that is written to.
struct Layers {
    lowers: Vec<PathBuf>,
    upper: Option<PathBuf>,
}

impl Engine {
    /// The paths that a container added, changed and deleted, sorted.
    pub fn changes(&self, name: &str) -> Result<Vec<(PathBuf, Change)>> {
        let record = self.find(name)?.record;
        let layers = self.layers_of(&record)?;
        let Some(upper) = layers.upper else {
            return Err(Error::impossible(
                format!("a list of what container {name} wrote"),
                "it wrote in place or into memory, so nothing tells the new from the old",
            ));
        };
        let ownership = self.store.ownership();
        let lowers = Merged::open(&layers.lowers, ownership)?;
        let left = isles_store::left_by_mounts(&upper, &lowers, &places(&record.workload))?;
        Ok(isles_store::changes(&upper, &lowers, ownership, &left)?)
    }

    /// Makes a layer of what a container wrote. One that runs stands still meanwhile where `pause` is asked for and it has
    /// a control group to do that with; `warn` is told where not.
    pub fn layer_of_container(
        &self,
        lease: &Lease,
        name: &str,
        pause: bool,
        warn: &dyn Fn(&str),
    ) -> Result<(Info, Image, CommittedLayer)> {
        let info = self.find(name)?;
        let Some(image) = self.image_of(&info.record)? else {
            return Err(Error::impossible(
                format!("an image of container {name}"),
                "it stands on no image, and a layer needs one below it",
            ));
        };
        let layers = self.layers_of(&info.record)?;
        let Some(upper) = layers.upper else {
            return Err(Error::impossible(
                format!("an image of container {name}"),
                "what it wrote is in memory",
            ));
        };
        let runs = info.status == Status::Running;
        let still = if runs && pause { self.still(&info.record.id, warn)? } else { None };
        let lowers = Merged::open(&layers.lowers, self.store.ownership())?;
        let exclude = isles_store::left_by_mounts(&upper, &lowers, &places(&info.record.workload))?;
        let options =
            CommitOptions { lowers: layers.lowers, exclude, live: runs, ..CommitOptions::default() };
        let layer = self.store.layer_from_upper(lease, &upper, &options);
        drop(still);
        Ok((info, image, layer?))
    }

    /// Writes what the root of a container shows as a tar archive, without what is mounted in it.
    pub fn export(&self, name: &str, out: &mut dyn Write) -> Result<()> {
        let info = self.find(name)?;
        let Layers { mut lowers, upper } = self.layers_of(&info.record)?;
        lowers.extend(upper);
        Ok(self.store.write_root(&lowers, out)?)
    }

    fn layers_of(&self, record: &Record) -> Result<Layers> {
        let workload = &record.workload;
        let (lowers, own) = match &workload.root {
            Root::Image { manifest, .. } => (self.store.layers_of(&self.store.image(manifest)?)?, true),
            Root::Directory(path) => (vec![path.clone()], workload.writable != Writable::Usual),
            Root::File(image) => {
                return Err(Error::impossible(
                    format!("what container {} shows, as layers,", record.name),
                    format!(
                        "its root is the image file '{}'; copy files with 'isles cp'",
                        image.path.display()
                    ),
                ));
            }
        };
        if !workload.overlays.is_empty() {
            return Err(Error::impossible(
                format!("what container {} shows, as layers,", record.name),
                "other file systems lie over its image",
            ));
        }
        let upper = match &workload.writable {
            Writable::Usual if own => Some(self.store.container(&record.id)?.upper()),
            Writable::Folder(path) => Some(path.join("upper")),
            _ => None,
        };
        Ok(Layers { lowers, upper })
    }

    /// Stops the processes of a container until this is dropped.
    fn still(&self, id: &str, warn: &dyn Fn(&str)) -> Result<Option<Afterwards>> {
        let layout = Layout::detect().map_err(|e| Error::system("look at the control groups", e))?;
        let mut group = Group::open(&layout, &self.group_name(id))?;
        if group.is_frozen() {
            return Ok(None);
        }
        let why = match group.is_absent() {
            true => "it has no control group".to_owned(),
            false => {
                // Whoever kills this process must not leave a container that never goes on.
                let name = self.group_name(id);
                let thaw = afterwards(move || {
                    if let Ok(mut group) = Group::open(&layout, &name) {
                        drop(group.thaw());
                    }
                });
                let thaw = thaw.map_err(|e| Error::system("stop the container", e))?;
                match group.freeze() {
                    Ok(()) => return Ok(Some(thaw)),
                    Err(e) => e.to_string(),
                }
            }
        };
        warn(&format!("the container goes on while its files are read: {why}"));
        Ok(None)
    }
}

/// Where something is mounted in a container, so that its root has places for that.
fn places(workload: &Workload) -> Vec<PathBuf> {
    let mounts = workload.mounts.iter().map(|mount| absolute(&mount.destination));
    let devices = workload.devices.iter().map(|device| absolute(&device.destination));
    PLACES.iter().map(|place| Path::new(place).to_owned()).chain(mounts).chain(devices).collect()
}
