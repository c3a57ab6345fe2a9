//! An image as a SIF file: its merged root file system as squashfs, and what it was made from beside it.

use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};

use isles_sif::{Arch, FileSystem, INSPECTION, Inspection, Kind, NewObject, NewSif, OCI_CONFIG, Role};
use isles_squashfs::{Options, Written};
use rustix::fs::{Mode, OFlags};

use super::tree::{Added, Overlaid};
use crate::error::At;
use crate::layer::to_json;
use crate::{Error, Image, Merged, Result, Store};

/// What a SIF file has beyond the image.
#[derive(Debug, Clone)]
pub struct NewSifImage<'a> {
    /// What is put over the root file system, by absolute paths.
    pub added: &'a [(String, Added)],
    /// The definition file, or what stands for it.
    pub definition: &'a str,
    /// How its file system is written; its times are those of `latest`.
    pub squashfs: Options,
    /// Files changed later say that they were changed then, and so does what is added (`SOURCE_DATE_EPOCH`).
    pub latest: Option<i64>,
    /// The identity of the file; all zeros for none.
    pub uuid: [u8; 16],
}

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SifMade {
    /// Bytes of the root file system in the file.
    pub root: u64,
    pub files: u32,
}

impl Store {
    /// Makes a SIF file at `path`, in place of what may be there.
    pub fn export_sif(&self, image: &Image, new: &NewSifImage<'_>, path: &Path) -> Result<SifMade> {
        let platform = image.config.platform();
        let arch = Arch::from_name(&platform.architecture).ok_or_else(|| Error::Unsupported {
            object: "a SIF file".to_owned(),
            what: format!("the architecture {}", platform.architecture),
        })?;
        let merged = Merged::open(&self.layers_of(image)?, self.ownership())?;
        let mut tree = Overlaid::new(&merged, new.added, new.latest.unwrap_or(0));
        let inspection = Inspection::of(&tree).to_json();
        let config = to_json(&image.config.config)?;
        let (root, written) = squashed(&mut tree, new, path)?;
        let root = BufReader::with_capacity(1 << 20, root);
        let objects = vec![
            NewObject::new(Kind::Definition, new.definition.as_bytes()),
            NewObject::json(INSPECTION, inspection.as_slice()),
            NewObject::json(OCI_CONFIG, config.as_slice()),
            NewObject::partition(FileSystem::Squashfs, Role::Primary, arch, root),
        ];
        NewSif { uuid: new.uuid, ..NewSif::new(objects) }.create(path)?;
        Ok(SifMade { root: written.bytes, files: written.inodes })
    }
}

/// The tree as a squashfs image, in a file without a name beside `path` that stands at its beginning.
pub(super) fn squashed(
    tree: &mut Overlaid<'_>,
    new: &NewSifImage<'_>,
    path: &Path,
) -> Result<(File, Written)> {
    let latest = new.latest.map(|latest| u32::try_from(latest.max(0)).unwrap_or(u32::MAX));
    let options = Options { latest, made: latest.unwrap_or(0), ..new.squashfs.clone() };
    let mut file = unnamed_beside(path)?;
    let written = isles_squashfs::write(tree, &mut file, &options)
        .map_err(|source| Error::Squashfs { object: path.display().to_string(), source })?;
    file.rewind().at("read", path)?;
    Ok((file, written))
}

/// A file without a name on the file system where `path` will be: it is gone with this process.
fn unnamed_beside(path: &Path) -> Result<File> {
    let parent =
        path.parent().filter(|p| !p.as_os_str().is_empty()).map_or(PathBuf::from("."), Path::to_owned);
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(&parent, flags, Mode::RUSR | Mode::WUSR) {
        return Ok(File::from(file));
    }
    // Some file systems, NFS among them, have no such files.
    let named = parent.join(format!(".new-{}", crate::random_name()));
    let file = File::options().read(true).write(true).create_new(true).open(&named).at("create", &named)?;
    std::fs::remove_file(&named).at("remove", &named)?;
    Ok(file)
}
