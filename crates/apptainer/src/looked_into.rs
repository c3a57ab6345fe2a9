//! What an image on disk says of itself, without running anything of it: from the document in a SIF file, or from the
//! files below `/.singularity.d`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use isles_engine::image_file::{self, Form};
use isles_sif::{FileSystem, INSPECTION, Inspection, Kind, Root, Sif};
use isles_spec::FileSystemKind;
use isles_store::FileTree;
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, openat2};

use crate::failure::Failure;

/// Documents and definition files of more bytes than this are not read.
const LIMIT: u64 = 4 << 20;

/// What the image at `path` says of itself.
pub fn inspection(path: &Path) -> Result<Inspection, Failure> {
    let name = path.display().to_string();
    let failed = |e: io::Error| Failure::because(format!("Failed to open image {name}"), &e);
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Ok(Inspection::of(&Sandbox { root: file.into() }));
    }
    if isles_sif::is_sif(&file).map_err(failed)? {
        return of_sif(&Sif::from_file(file, name)?);
    }
    let size = file.metadata().map_err(failed)?.len();
    match image_file::form(&file).map_err(failed)? {
        Some(Form::Bare(FileSystemKind::Squashfs)) => {
            return Ok(Inspection::of(&FileTree::squashfs(&file, 0, size, &name)?));
        }
        Some(Form::Bare(FileSystemKind::Ext)) => {
            return Ok(Inspection::of(&FileTree::ext(&file, 0, size, &name)?));
        }
        _ => {}
    }
    Err(Failure::new(format!("Failed to open image {name}: image format not recognized"))
        .with_hint("an image here is a file of SIF, squashfs or ext3, or a folder with a root file system"))
}

fn of_sif(sif: &Sif) -> Result<Inspection, Failure> {
    if let Some(object) = sif.json(INSPECTION)
        && let Some(inspection) = Inspection::from_json(&sif.read(object, LIMIT)?)
    {
        return Ok(inspection);
    }
    let primary = sif.primary().and_then(|object| Some((object, object.partition()?.file_system)));
    let mut inspection = match primary {
        Some((object, FileSystem::Squashfs)) => {
            Inspection::of(&FileTree::squashfs(sif.file(), object.offset, object.size, sif.name())?)
        }
        Some((object, FileSystem::Ext3)) => {
            Inspection::of(&FileTree::ext(sif.file(), object.offset, object.size, sif.name())?)
        }
        _ => Inspection::default(),
    };
    if let Some(object) = sif.of_kind(Kind::Definition).next() {
        let text = String::from_utf8_lossy(&sif.read(object, LIMIT)?).into_owned();
        inspection.data.attributes.deffile = text.trim_end_matches('\n').to_owned();
    }
    Ok(inspection)
}

/// A folder with a root file system, whose links lead nowhere else.
struct Sandbox {
    root: OwnedFd,
}

impl Sandbox {
    fn open(&self, path: &str, flags: OFlags) -> Option<OwnedFd> {
        // A pipe in its place is not waited for.
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()
    }
}

impl Root for Sandbox {
    fn text(&self, path: &str) -> Option<String> {
        let file = File::from(self.open(path, OFlags::empty())?);
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        String::from_utf8(isles_store::read_bounded(file, LIMIT).ok()??).ok()
    }

    fn names(&self, path: &str) -> Vec<String> {
        let Some(entries) = self.open(path, OFlags::DIRECTORY).and_then(|dir| Dir::read_from(dir).ok())
        else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned));
        names.filter(|name| !matches!(name.as_str(), "." | "..")).collect()
    }
}
