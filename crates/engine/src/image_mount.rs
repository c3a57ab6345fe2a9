//! How a file system in a file gets into a container. The policy, all of it:
//!
//! | asked for | root | others |
//! |---|---|---|
//! | `auto` | the kernel mounts it; where it cannot, as for others | served by this process (FUSE); unpacked where nothing of this can be had |
//! | `kernel` | the kernel mounts it, or it is an error | an error: the kernel lets only root |
//! | `fuse` | served by this process | served by this process |
//! | `unpack` | an image of the store, made of it once and known again | the same |
//!
//! What is unpacked is no longer a file: the caller takes it into the store and runs the image ([`way`]).
//! ext3 goes the same ways as squashfs. What is encrypted is always served: the kernel has no key,
//! and unpacked it would lie open. What is mounted is always the file that was opened, never its name again; always
//! read-only, without set-uid bits and devices; and only in the mount namespace of the container, so it is gone when the
//! container is, however that ended. A server dies with the process that stays with the container.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use isles_fuse::Server;
use isles_sandbox::identity::Identity;
use isles_sandbox::setup::PreparedSource;
use isles_sandbox::{fuse, loop_device};
use isles_spec::{FileSystemKind, ImageFile, ImageMount};
use isles_store::{Merged, Ownership, Store};
use rustix::fs::{FlockOperation, OFlags};

use crate::error::{Error, Result};
use crate::file_image::FileImage;
use crate::kept_blocks;
use crate::view::View;

/// More threads than this do not wait for each other less.
const MOST_THREADS: usize = 8;
/// What a thread that serves needs.
const STACK: usize = 512 << 10;

/// How an image is really mounted: what was asked for, as far as something was. This is where that is decided, for
/// whoever asks.
pub fn way(asked: ImageMount, identity: Identity) -> ImageMount {
    let open = |path: &str| File::options().read(true).write(true).open(path).is_ok();
    // fuse(4); and loop(4), which is for root.
    let can_mount = || open("/dev/fuse") || identity == Identity::Root && open("/dev/loop-control");
    match asked {
        ImageMount::Auto if !can_mount() => ImageMount::Unpack,
        asked => asked,
    }
}

/// An image that is ready to be mounted in a container, and to be looked into.
pub struct Mountable {
    pub source: PreparedSource,
    pub view: View,
    /// Where this process serves it.
    pub server: Option<Arc<Server<FileImage>>>,
}

/// Gets an image ready. `file` is the opened file, where the caller has it; `opened` the image in it, where that was
/// looked into before.
pub fn mountable(
    image: &ImageFile,
    file: Option<&File>,
    opened: Option<Arc<Server<FileImage>>>,
    way: ImageMount,
    identity: Identity,
    store: &Store,
) -> Result<Mountable> {
    let failed = |e: io::Error| Error::file("read the image", &image.path, e);
    let file = match file {
        Some(file) => file.try_clone().map_err(failed)?,
        None => crate::image_file::open(&image.path)?,
    };
    let length = file.metadata().map_err(failed)?.len();
    let rest = length.saturating_sub(image.offset);
    let size = image.size.unwrap_or(rest);
    if size > rest || size == 0 {
        return Err(failed(io::Error::other("the file is shorter than its partition")));
    }
    let wish = |way: &str| format!("mounting '{}' {way}", image.path.display());
    let root = identity == Identity::Root;
    match way {
        ImageMount::Unpack => {
            return Err(Error::impossible(wish("unpacked"), "it was not taken into the store"));
        }
        ImageMount::Kernel if image.kind.is_encrypted() => {
            let reason =
                "it is encrypted, and decrypted as this process serves it; let --image-mount be fuse or auto";
            return Err(Error::impossible(wish("by the kernel"), reason));
        }
        ImageMount::Kernel if !root => {
            return Err(Error::impossible(wish("by the kernel"), "it lets only root mount what is in files"));
        }
        _ => {}
    }
    let by_kernel = |kind| loop_device::mount(&file, image.offset, size, kind, false);
    let kernel_cannot = |e| Error::file("let the kernel mount", &image.path, e);
    // The kernel knows more of ext4 than our reader, so that is not asked.
    if root && way != ImageMount::Fuse && image.kind == FileSystemKind::Ext {
        match by_kernel(c"ext4") {
            Ok(mount) => {
                let view = look_into(&mount)?;
                return Ok(Mountable { source: PreparedSource::Mount(mount), view, server: None });
            }
            Err(e) if way == ImageMount::Kernel => return Err(kernel_cannot(e)),
            Err(_) => {}
        }
    }
    let server = match opened {
        Some(server) => server,
        None => {
            let copy = file.try_clone().map_err(failed)?;
            let opened = FileImage::open(image.kind, copy, image.offset, size, &image.path, None)?;
            kept_blocks::recall(store, &opened, &file, image.offset, size);
            Arc::new(Server::new(opened))
        }
    };
    if root && way != ImageMount::Fuse && image.kind == FileSystemKind::Squashfs {
        match by_kernel(c"squashfs") {
            Ok(mount) => {
                let source = PreparedSource::Mount(mount);
                return Ok(Mountable { source, view: View::Image(server), server: None });
            }
            Err(e) if way == ImageMount::Kernel => return Err(kernel_cannot(e)),
            Err(_) => {}
        }
    }
    Ok(Mountable { source: served(&server)?, view: View::Image(server.clone()), server: Some(server) })
}

/// Mounts an ext3 image to be written to by the kernel, with the folders of an overlay in it. The file is locked against
/// other containers for as long as it is open.
pub fn writable(image: &ImageFile) -> Result<(PreparedSource, File)> {
    let (file, size) = locked(image)?;
    let mount = loop_device::mount(&file, image.offset, size, c"ext4", true)
        .map_err(|e| Error::file("let the kernel mount", &image.path, e))?;
    overlay_folders(&mount, image)?;
    Ok((PreparedSource::Mount(mount), file))
}

fn writing(image: &ImageFile) -> String {
    format!("writing into '{}'", image.path.display())
}

/// Opens an ext3 image to be written to, and locks it. Its path must be no link. Also says how many bytes the file system has.
pub fn locked(image: &ImageFile) -> Result<(File, u64)> {
    let failed = |action| move |e: io::Error| Error::file(action, &image.path, e);
    if image.kind != FileSystemKind::Ext {
        return Err(Error::impossible(writing(image), "only ext3 images are written to"));
    }
    // The path is the real one of what was looked at: where there is a link by now, another file is meant.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = File::options();
    let opened = options.read(true).write(true).custom_flags(flags).open(&image.path);
    let file = opened.map_err(failed("open the image"))?;
    let found = file.metadata().map_err(failed("look at the image"))?;
    let size = image.size.unwrap_or_else(|| found.len().saturating_sub(image.offset));
    if !found.is_file() || size == 0 || image.offset.saturating_add(size) > found.len() {
        return Err(failed("use the image")(io::Error::other("it is shorter than its file system")));
    }
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
        rustix::io::Errno::WOULDBLOCK => Error::impossible(writing(image), "another container does so now"),
        e => failed("lock the image")(e.into()),
    })?;
    Ok((file, size))
}

/// Makes the folders of an overlay in a mounted image, where they are not there yet.
pub fn overlay_folders(mount: &impl AsFd, image: &ImageFile) -> Result<()> {
    let failed = |action| move |e: io::Error| Error::file(action, &image.path, e);
    // The kernel takes the root of a FUSE mount for root's until somebody asks.
    rustix::fs::fstat(mount).map_err(|e| failed("look into the image")(e.into()))?;
    for name in ["upper", "work"] {
        match rustix::fs::mkdirat(mount, name, rustix::fs::Mode::from(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            // The kernel writes to no folder whose owner it cannot say in this user namespace.
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::OVERFLOW) => {
                let reason =
                    "its root folder is somebody else's; `apptainer overlay create` makes one of your own";
                return Err(Error::impossible(writing(image), reason));
            }
            Err(e) => return Err(failed("make the folders of an overlay in")(e.into())),
        }
        let found = rustix::fs::statat(mount, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("look into the image")(e.into()))?;
        if !rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir() {
            return Err(Error::impossible(writing(image), format!("its '{name}' is no folder")));
        }
    }
    Ok(())
}

/// A mount that is attached nowhere can be looked into by its descriptor.
pub fn look_into(mount: &OwnedFd) -> Result<View> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_fd().as_raw_fd()));
    Ok(Merged::open(&[path], Ownership::Root)?.into())
}

/// Begins to serve: as soon as the container has mounted, and until that mount is gone.
fn served(server: &Arc<Server<FileImage>>) -> Result<PreparedSource> {
    let failed = |e| Error::system("serve the image", e);
    let (ours, channel) = fuse::channel().map_err(failed)?;
    // The standard library would look for bounds of control groups as well, in a dozen files.
    let processors = rustix::thread::sched_getaffinity(None).map_or(2, |set| set.count());
    let threads = (processors as usize).clamp(2, MOST_THREADS);
    let server = server.clone();
    let named = || thread::Builder::new().name("image".into()).stack_size(STACK);
    let receive = move || {
        while let Ok(Some(device)) = fuse::receive(&ours) {
            let device = Arc::new(device);
            let (server, theirs) = (server.clone(), device.clone());
            let serve = move |server: &Server<FileImage>, device: &OwnedFd| {
                // Whoever waits for an answer is told by the kernel when the last descriptor is closed.
                let _ = isles_fuse::serve(server, device);
            };
            let other = server.clone();
            // Where there are no more threads to have, this one serves.
            if named().spawn(move || serve(&other, &theirs)).is_err() {
                serve(&server, &device);
            }
        }
    };
    named().spawn(receive).map_err(failed)?;
    Ok(PreparedSource::Fuse { channel, devices: threads as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("image"), dir.path().join("link"));
        std::fs::write(&path, "not empty").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let image = ImageFile { path: link, kind: FileSystemKind::Ext, offset: 0, size: None };
        let refused = writable(&image).unwrap_err().to_string();
        assert!(refused.contains("open the image"), "{refused}");
    }
}
