//! A look into the root of a workload before it runs: for doors that decide by what an image has.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use isles_fuse::Server;
use isles_sandbox::loop_device;
use isles_spec::{ImageFile, Root};
use isles_store::{Image, Merged, Store};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::file_image::FileImage;
use crate::image_mount::look_into;
use crate::kept_blocks;
use crate::view::{Look, View, read};

/// A root file system as it is at rest, without overlays and what is mounted into it.
#[derive(Debug)]
pub struct Inside(View);

impl Inside {
    /// What a path leads to, through links.
    pub fn stat(&self, path: &Path) -> Option<Look> {
        self.0.stat(path)
    }

    /// The content of a regular file of at most `limit` bytes; `None` where there is no such file.
    pub fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
        read(&self.0, path, limit)
    }

    /// The names in a folder; none where it is no folder.
    pub fn names(&self, path: &Path) -> Vec<OsString> {
        self.0.names(path)
    }

    /// The image, where it is a file that this process reads.
    pub(crate) fn server(&self) -> Option<Arc<Server<FileImage>>> {
        match &self.0 {
            View::Image(server) => Some(server.clone()),
            View::Layers(_) => None,
        }
    }
}

impl Engine {
    /// Opens the root of a workload to look into it. `image` is that of [`Root::Image`], `file` that of
    /// [`Root::File`], opened already, and `secret` the passphrase of one that is encrypted. To run such an image takes
    /// this look ([`Foreground::inside`](crate::Foreground::inside)), since nothing keeps the passphrase.
    pub fn inside(
        &self,
        root: &Root,
        image: Option<&Image>,
        file: Option<&File>,
        secret: Option<&[u8]>,
    ) -> Result<Inside> {
        let ownership = self.store.ownership();
        let view = match (root, image) {
            (Root::Directory(path), _) => Merged::open(std::slice::from_ref(path), ownership)?.into(),
            (Root::Image { .. }, Some(image)) => {
                Merged::open(&self.store.layers_of(image)?, ownership)?.into()
            }
            (Root::Image { name, .. }, None) => {
                return Err(Error::impossible(format!("image {name}"), "it was not looked up"));
            }
            (Root::File(image), _) => of_file(image, file, secret, &self.store)?,
        };
        Ok(Inside(view))
    }
}

fn of_file(image: &ImageFile, file: Option<&File>, secret: Option<&[u8]>, store: &Store) -> Result<View> {
    let failed = |e| Error::file("read the image", &image.path, e);
    let file = match file {
        Some(file) => file.try_clone().map_err(failed)?,
        None => crate::image_file::open(&image.path)?,
    };
    let length = file.metadata().map_err(failed)?.len();
    let size = image.size.unwrap_or_else(|| length.saturating_sub(image.offset));
    let copy = file.try_clone().map_err(failed)?;
    match FileImage::open(image.kind, copy, image.offset, size, &image.path, secret) {
        Ok(opened) => {
            kept_blocks::recall(store, &opened, &file, image.offset, size);
            Ok(View::Image(Arc::new(Server::new(opened))))
        }
        // Root's kernel may know what our reader does not.
        Err(e @ Error::Ext { .. }) => match loop_device::mount(&file, image.offset, size, c"ext4", false) {
            Ok(mount) => look_into(&mount),
            Err(_) => Err(e),
        },
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_looked_into() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/passwd"), "inside").unwrap();
        let engine = Engine::open_single(dir.path().join("state")).unwrap();
        let inside = engine.inside(&Root::Directory(root), None, None, None).unwrap();
        assert!(
            inside.stat(Path::new("/etc/passwd")).is_some() && inside.stat(Path::new("/etc/group")).is_none()
        );
        assert_eq!(inside.read(Path::new("/etc/passwd"), 10).unwrap().as_deref(), Some(&b"inside"[..]));
        assert!(engine.inside(&Root::Directory("/nonexistent/x".into()), None, None, None).is_err());
    }
}
