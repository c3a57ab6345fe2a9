//! What the root file system of a container is made of: an image or a folder below, overlays on it, and on top the place
//! that is written to.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isles_fuse::Server;
use isles_sandbox::identity::Identity;
use isles_sandbox::setup::{MountSource, Prepared, PreparedSource, RootFs};
use isles_spec::{ImageFile, ImageMount, MountKind, Overlay, Root, RunAs, UserNamespace, Workload, Writable};
use isles_store::{Container, FileKind, Merged, Store};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::file_image::FileImage;
use crate::fuse_programs::{self, FuseProgram};
use crate::hosts;
use crate::image_mount::{self, mountable};
use crate::inside::Inside;
use crate::overlay_programs::{self, OverlayPrograms};
use crate::places;
use crate::plan::Behind;
use crate::run::Foreground;
use crate::view::View;

/// Places of mounts are a few folders and empty files.
pub const PLACES_SIZE: u64 = 16 << 20;

/// A root file system, and everything that has to be mounted before it.
pub struct Base {
    pub prepared: Vec<Prepared>,
    pub root: RootFs,
    /// To look into, as it is before anything is written.
    pub view: View,
    pub read_only: bool,
    /// It comes from a file that anybody may have made.
    pub untrusted: bool,
    /// What stands behind those mounts of the workload that are no binds of the host, by their places in the list.
    pub sources: Vec<Option<Behind>>,
    /// The images that this process serves.
    pub servers: Vec<Arc<Server<FileImage>>>,
    /// Locked for as long as the container runs.
    pub locks: Vec<fs::File>,
    /// Programs of the host that serve the root.
    pub programs: Option<OverlayPrograms>,
    /// Programs that serve mounts of the workload.
    pub fuse: Vec<FuseProgram>,
}

/// The kinds of root, down to the layers at the bottom.
struct Bottom {
    lowers: Vec<PathBuf>,
    view: View,
    /// A folder that may be used as it is.
    folder: Option<PathBuf>,
}

/// Gets images ready, each in a folder of the container's.
struct Images<'a> {
    folder: &'a Container,
    way: ImageMount,
    identity: Identity,
    store: &'a Store,
    /// How many folders for mounts there are.
    places: usize,
    prepared: Vec<Prepared>,
    servers: Vec<Arc<Server<FileImage>>>,
    locks: Vec<fs::File>,
    fuse: Vec<FuseProgram>,
}

impl Images<'_> {
    fn add(
        &mut self,
        image: &ImageFile,
        file: Option<&fs::File>,
        opened: Option<Arc<Server<FileImage>>>,
    ) -> Result<(PathBuf, View)> {
        // What is taken into the store is the root alone.
        let way = if self.way == ImageMount::Unpack { ImageMount::Auto } else { self.way };
        let ready = mountable(image, file, opened, way, self.identity, self.store)?;
        self.servers.extend(ready.server);
        let place = self.place(ready.source, image.path.display().to_string())?;
        Ok((place, ready.view))
    }

    /// The folder `upper` of an overlay, at a place of its own: the kernel would follow a link to anywhere on the host.
    fn upper(&mut self, of: PathBuf) -> Result<PathBuf> {
        let name = of.join("upper").display().to_string();
        self.place(PreparedSource::Folder { of, name: "upper".to_owned() }, name)
    }

    /// Has programs lay an image over what is below it. All that was prepared for that is mounted here then, and the whole
    /// is a folder.
    fn by_programs(
        &mut self,
        image: &ImageFile,
        found: &overlay_programs::Found,
        lowers: &[PathBuf],
    ) -> Result<(OverlayPrograms, PathBuf)> {
        if self.identity == Identity::Single {
            // The IDs of this process's own namespace, and before anybody looks.
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            self.servers.iter().for_each(|server| server.file_system().belongs_to(uid, gid));
        }
        let folder = self.folder.path();
        let (of_image, whole) = (folder.join("image"), folder.join("whole"));
        make(&of_image)?;
        make(&whole)?;
        let prepared = std::mem::take(&mut self.prepared);
        let places = [of_image.as_path(), &whole];
        let programs = OverlayPrograms::start(found, image, &prepared, lowers, folder, places)?;
        Ok((programs, whole))
    }

    fn place(&mut self, source: PreparedSource, name: String) -> Result<PathBuf> {
        let place = self.folder.path().join(format!("mount-{}", self.places));
        make(&place)?;
        self.places += 1;
        self.prepared.push(Prepared { place: place.clone(), source, name });
        Ok(place)
    }
}

impl Engine {
    /// Decides what the root is made of, and gets it ready.
    pub(crate) fn base(
        &self,
        folder: &Container,
        workload: &Workload,
        foreground: &Foreground<'_>,
    ) -> Result<Base> {
        let by_programs = overlay_programs::wanted(workload, self.identity);
        // Before anything is served, since this process must have one thread.
        let found = by_programs.map(|image| overlay_programs::prepare(image, self.identity)).transpose()?;
        let mut images = Images {
            folder,
            way: workload.image_mount,
            identity: self.identity,
            store: &self.store,
            places: 0,
            prepared: Vec::new(),
            servers: Vec::new(),
            locks: Vec::new(),
            fuse: Vec::new(),
        };
        let bottom = self.bottom(workload, foreground, &mut images)?;
        let mut lowers = bottom.lowers;
        // What is in the file of the root is of the same opened file.
        let opened = |image: &ImageFile| {
            let same = matches!(&workload.root, Root::File(root) if root.path == image.path);
            foreground.file.filter(|_| same)
        };
        for overlay in &workload.overlays {
            lowers.push(match overlay {
                Overlay::Folder(path) => {
                    let path = path.canonicalize().map_err(|e| Error::file("use the overlay", path, e))?;
                    // A link is looked at itself: it could lead to any folder of the host.
                    match path.join("upper").symlink_metadata() {
                        Ok(found) if found.is_symlink() => return Err(is_link(&path, "upper")),
                        Ok(found) if found.is_dir() => images.upper(path)?,
                        _ => path,
                    }
                }
                Overlay::File(image) => {
                    let (place, view) = images.add(image, opened(image), None)?;
                    // One that was written to has the folders of an overlay in it.
                    let upper = Path::new("/upper");
                    if view.read_link(upper).is_some() {
                        return Err(is_link(&image.path, "upper"));
                    }
                    let written = view.stat(upper).is_some_and(|found| found.kind == FileKind::Dir);
                    if written { images.upper(place)? } else { place }
                }
            });
        }
        let programs = match (by_programs, &found) {
            (Some(image), Some(found)) => Some(images.by_programs(image, found, &lowers)?),
            _ => None,
        };
        let mut sources = Vec::with_capacity(workload.mounts.len());
        for (number, mount) in workload.mounts.iter().enumerate() {
            sources.push(match &mount.kind {
                MountKind::File { text, mode } => {
                    let path = hosts::write(folder.path(), &format!("file-{number}"), text, *mode)?;
                    Some(MountSource::Bind { source: path, recursive: false }.into())
                }
                MountKind::Image { image, inside } => {
                    let (place, view) = images.add(image, opened(image), None)?;
                    let found = view.stat(inside).ok_or_else(|| {
                        let wish = format!("binding '{}' of '{}'", inside.display(), image.path.display());
                        Error::impossible(wish, "the image has nothing there")
                    })?;
                    let directory = found.kind == FileKind::Dir;
                    Some(MountSource::Inside { place, path: inside.clone(), directory }.into())
                }
                MountKind::Fuse { program, inside, daemon } => {
                    let (served, source) = fuse_programs::prepare(workload, mount)?;
                    let place = images.place(source, program.join(" "))?;
                    images.fuse.push(FuseProgram {
                        program: program.clone(),
                        inside: *inside,
                        daemon: *daemon,
                        served,
                    });
                    Some(MountSource::Inside { place, path: "/".into(), directory: true }.into())
                }
                MountKind::Volume { .. } => self.behind_volume(mount, &bottom.view)?,
                _ => None,
            });
        }
        let (programs, whole) = programs.unzip();
        let written = if whole.is_some() { None } else { written(workload, &mut images)? };
        if let (Identity::Single, Root::Directory(path)) = (self.identity, &workload.root)
            && let Some(Prepared { source: PreparedSource::Memory { folders, .. }, .. }) =
                images.prepared.last_mut()
        {
            let uid = rustix::process::geteuid().as_raw();
            folders.extend(places::folders(workload, path, &bottom.view, uid));
        }
        let (root, read_only) = match (written, bottom.folder) {
            _ if whole.is_some() => (RootFs::Directory(whole.unwrap_or_default()), false),
            (None, Some(path)) if workload.overlays.is_empty() => (RootFs::Directory(path), false),
            (None, Some(path)) => {
                return Err(Error::impossible(
                    format!("overlays over the folder '{}'", path.display()),
                    "it is written to itself; let what is written go into memory, or nowhere",
                ));
            }
            (written, _) => {
                let stays = matches!(workload.writable, Writable::Folder(_) | Writable::File(_));
                let volatile = workload.remove && !stays;
                let (upper, work) = written.unwrap_or((folder.upper(), folder.work()));
                // Root in a user namespace may not set the others.
                let in_userns = workload.userns == UserNamespace::KeepId;
                let userxattr = self.store.ownership().userxattr() || in_userns;
                let root = RootFs::Overlay { lowers, upper, work, volatile, userxattr, foreign: stays };
                (root, workload.writable == Writable::Nowhere)
            }
        };
        Ok(Base {
            prepared: images.prepared,
            root,
            view: bottom.view,
            read_only: read_only || workload.read_only,
            untrusted: matches!(workload.root, Root::File(_)) || workload.run_as == RunAs::Caller,
            sources,
            servers: images.servers,
            locks: images.locks,
            programs,
            fuse: images.fuse,
        })
    }

    fn bottom(
        &self,
        workload: &Workload,
        foreground: &Foreground<'_>,
        images: &mut Images<'_>,
    ) -> Result<Bottom> {
        let ownership = self.store.ownership();
        Ok(match (&workload.root, foreground.image) {
            (Root::Directory(path), _) => Bottom {
                lowers: vec![path.clone()],
                view: Merged::open(std::slice::from_ref(path), ownership)?.into(),
                folder: Some(path.clone()),
            },
            (Root::File(image), _) => {
                let (place, view) =
                    images.add(image, foreground.file, foreground.inside.and_then(Inside::server))?;
                Bottom { lowers: vec![place], view, folder: None }
            }
            (Root::Image { name, .. }, None) => {
                return Err(Error::impossible(format!("image {name}"), "it was not looked up"));
            }
            (Root::Image { .. }, Some(image)) => {
                let lowers = self.store.layers_of(image)?;
                let view = Merged::open(&lowers, ownership)?.into();
                Bottom { lowers, view, folder: None }
            }
        })
    }
}

/// The upper and the work folder, where they are not the container's own.
fn written(workload: &Workload, images: &mut Images<'_>) -> Result<Option<(PathBuf, PathBuf)>> {
    let size = match &workload.writable {
        Writable::Usual => return Ok(None),
        Writable::Folder(path) => {
            let path = path.canonicalize().map_err(|e| Error::file("use the overlay", path, e))?;
            let folders = (path.join("upper"), path.join("work"));
            for (folder, name) in [(&folders.0, "upper"), (&folders.1, "work")] {
                make(folder)?;
                if folder.is_symlink() {
                    return Err(is_link(&path, name));
                }
            }
            return Ok(Some(folders));
        }
        Writable::File(image) => {
            let (source, lock) = image_mount::writable(image)?;
            images.locks.push(lock);
            let place = images.place(source, image.path.display().to_string())?;
            return Ok(Some((place.join("upper"), place.join("work"))));
        }
        Writable::Memory { size } => *size,
        Writable::Nowhere => Some(PLACES_SIZE),
    };
    let folders = vec!["upper".to_owned(), "work".to_owned()];
    let place = images.place(PreparedSource::Memory { size, folders }, "memory".into())?;
    Ok(Some((place.join("upper"), place.join("work"))))
}

fn is_link(overlay: &Path, name: &str) -> Error {
    Error::impossible(
        format!("using the overlay '{}'", overlay.display()),
        format!("its '{name}' is a link, and has to be a folder"),
    )
}

fn make(path: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(Error::file("make the folder", path, e)),
        _ => Ok(()),
    }
}
