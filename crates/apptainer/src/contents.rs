//! What an image has, as far as it decides how programs in it are started.

use std::path::Path;

use isles_engine::{Engine, Inside};

use crate::failure::Failure;
use crate::image::Image;

/// glibc is the largest file that is read.
const LARGEST: u64 = 32 << 20;

/// A look into an image.
#[derive(Debug)]
pub struct Contents(Inside);

impl Contents {
    pub fn open(engine: &Engine, image: &Image) -> Result<Contents, Failure> {
        let (of_store, file) = (image.store_image.as_ref(), image.file.as_ref());
        Ok(Contents(engine.inside(&image.root, of_store, file, image.secret.as_deref())?))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.0.stat(Path::new(path)).is_some()
    }

    pub fn is_program(&self, path: &str) -> bool {
        self.0
            .stat(Path::new(path))
            .is_some_and(|found| found.kind == isles_store::FileKind::File && found.mode & 0o111 != 0)
    }

    /// The names in a folder; none where it is no folder. One that is not UTF-8 is changed, so nothing has it.
    pub fn names(&self, path: &str) -> Vec<String> {
        let names = self.0.names(Path::new(path));
        names.into_iter().map(|name| name.to_string_lossy().into_owned()).collect()
    }

    /// The look itself, for the start of a container of the same image.
    pub fn inside(&self) -> &Inside {
        &self.0
    }

    /// A regular file; `None` where there is none, or none that can be read.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.0.read(Path::new(path), LARGEST).ok().flatten()
    }

    pub fn read_text(&self, path: &str) -> Option<String> {
        self.read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }
}
