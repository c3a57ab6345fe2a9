//! Writing into an ext3 image as an ordinary user, whose kernel mounts none: fuse2fs serves the image, and fuse-overlayfs lays
//! it over the root, because the kernel's own overlay needs of what is written to more than fuse2fs can do. They are
//! programs of the host, and what they leave in the image is what they leave for Apptainer, too.
//!
//! They run between [`OverlayPrograms::start`] and [`OverlayPrograms::finish`], in namespaces that this process has moved
//! into ([`prepare`]); what lies below is mounted there, and the container has their mount as a folder.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use isles_sandbox::identity::{Identity, on_path};
use isles_sandbox::mount_program::{self, MountProgram};
use isles_sandbox::setup::{Prepared, PreparedSource};
use isles_spec::{ImageFile, MountKind, Workload, Writable};

use crate::error::{Error, Result};
use crate::image_mount;

const SERVES_IMAGE: &str = "fuse2fs";
const LAYS_OVER: &str = "fuse-overlayfs";

/// The image that these programs write to, where the workload asks for that here.
pub fn wanted(workload: &Workload, identity: Identity) -> Option<&ImageFile> {
    match &workload.writable {
        Writable::File(image) if identity != Identity::Root => Some(image),
        _ => None,
    }
}

fn wish(image: &ImageFile) -> String {
    format!("writing into '{}'", image.path.display())
}

/// Where nobody stays who could end the programs.
pub fn refuse_in_background(workload: &Workload, identity: Identity) -> Result<()> {
    if let Some(mount) = workload.mounts.iter().find(|mount| matches!(mount.kind, MountKind::Fuse { .. })) {
        let wish = format!("a mount at {} that a program serves", mount.destination.display());
        return Err(Error::impossible(
            wish,
            "the container is in the background, where nobody could end the program",
        ));
    }
    wanted(workload, identity).map_or(Ok(()), |image| {
        let reason =
            "an ordinary user does so in the foreground only, and with --rm; use a folder as the overlay";
        Err(Error::impossible(wish(image), reason))
    })
}

/// Finds the programs, and moves this process, which has to have one thread, to where they can mount.
pub fn prepare(image: &ImageFile, identity: Identity) -> Result<Found> {
    let found = Found { ext: find(SERVES_IMAGE, image)?, overlay: find(LAYS_OVER, image)? };
    if image.offset != 0 {
        let reason = "fuse2fs writes to a whole file only, and this is a partition of a SIF file; use a file of its own";
        return Err(Error::impossible(wish(image), reason));
    }
    // Root of a namespace is in one of its own.
    if identity == Identity::Single && !rustix::process::geteuid().is_root() {
        mount_program::enter_own_namespaces().map_err(|e| Error::system("make a user namespace", e))?;
    }
    Ok(found)
}

fn find(name: &str, image: &ImageFile) -> Result<PathBuf> {
    let usual = ["/usr/bin", "/usr/sbin", "/sbin"].map(|folder| Path::new(folder).join(name));
    let usual = usual.into_iter().filter(|file| file.is_file());
    on_path(name).chain(usual).find(|file| file.is_absolute()).ok_or_else(|| {
        let reason = format!(
            "only the kernel writes ext3, and only for root; others need {SERVES_IMAGE} and {LAYS_OVER}, and {name} is not \
             installed"
        );
        Error::impossible(wish(image), reason)
    })
}

/// Where the programs are.
pub struct Found {
    ext: PathBuf,
    overlay: PathBuf,
}

/// The programs, while they run.
#[derive(Debug)]
pub struct OverlayPrograms {
    overlay: MountProgram,
    ext: MountProgram,
    /// What is mounted for them here, the first below the others.
    _below: Below,
    /// Locked as long as they write to it.
    _image: File,
}

impl OverlayPrograms {
    /// Mounts the image over what is below it, bottom first, each of which is mounted here or a folder of the host.
    /// `places` are two empty folders in `folder`: for the image, and for the whole.
    pub fn start(
        found: &Found,
        image: &ImageFile,
        prepared: &[Prepared],
        lowers: &[PathBuf],
        folder: &Path,
        places: [&Path; 2],
    ) -> Result<OverlayPrograms> {
        let failed = |e: io::Error| Error::file("write into the image", &image.path, e);
        let (file, _) = image_mount::locked(image)?;
        let mut below = Below(Vec::new());
        for mount in prepared {
            mount_program::mount_here(mount)?;
            below.0.push(mount.place.clone());
        }
        // By short names in this folder: a path of the host may have any characters.
        let mut names = Vec::new();
        for (number, lower) in lowers.iter().enumerate() {
            let name = format!("lower-{number}");
            let place = folder.join(&name);
            std::fs::create_dir(&place).map_err(failed)?;
            let (of, last) = (lower.parent(), lower.file_name().and_then(OsStr::to_str));
            let (Some(of), Some(last)) = (of, last) else {
                return Err(Error::impossible(wish(image), format!("over '{}'", lower.display())));
            };
            let source = PreparedSource::Folder { of: of.to_owned(), name: last.to_owned() };
            mount_program::mount_here(&Prepared {
                place: place.clone(),
                source,
                name: lower.display().to_string(),
            })?;
            below.0.push(place);
            names.push(name);
        }
        let [of_image, whole] = places;
        let descriptor = file.as_raw_fd();
        // The program opens it once more, whatever its name means by then; fuse2fs has no other way to be given a file.
        let path = format!("/proc/{}/fd/{descriptor}", std::process::id());
        let arguments =
            [OsStr::new(&path), of_image.as_os_str(), "-f".as_ref(), "-o".as_ref(), "fakeroot".as_ref()];
        let ext = MountProgram::start(&found.ext, &arguments, folder, of_image).map_err(failed)?;
        image_mount::overlay_folders(&File::open(of_image).map_err(failed)?, image)?;
        let short = |place: &Path| place.file_name().unwrap_or_default().to_string_lossy().into_owned();
        names.reverse();
        // Not every file system below has access control lists.
        let options = format!(
            "noacl,lowerdir={},upperdir={of_image}/upper,workdir={of_image}/work",
            names.join(":"),
            of_image = short(of_image)
        );
        let whole_name = short(whole);
        let arguments = ["-f".as_ref(), "-o".as_ref(), OsStr::new(&options), OsStr::new(&whole_name)];
        let overlay = MountProgram::start(&found.overlay, &arguments, folder, whole).map_err(failed)?;
        // Whose its root is the kernel asks then, and not before something is made in it.
        std::fs::metadata(whole).map_err(failed)?;
        Ok(OverlayPrograms { overlay, ext, _below: below, _image: file })
    }

    /// Ends them, when all that was written is in the image.
    pub fn finish(self) -> Result<()> {
        let failed = |e| Error::system("write all of it into the image", e);
        let ends = [self.overlay.finish(), self.ext.finish()];
        ends.into_iter().collect::<io::Result<()>>().map_err(failed)
    }
}

/// Mounts of this process, which go in the opposite order.
#[derive(Debug)]
struct Below(Vec<PathBuf>);

impl Drop for Below {
    fn drop(&mut self) {
        for place in self.0.iter().rev() {
            let _ = mount_program::detach(place);
        }
    }
}
