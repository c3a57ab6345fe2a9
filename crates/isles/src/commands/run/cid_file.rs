//! The file of `--cidfile`, which is not there unless it names a container.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The file of `--cidfile`. It goes again where there came no container that it could name.
pub(super) struct CidFile {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl CidFile {
    pub(super) fn new(path: &Path) -> Result<CidFile, Failure> {
        match File::options().write(true).create_new(true).open(path) {
            Ok(file) => Ok(CidFile { path: path.to_owned(), file, kept: false }),
            Err(e) => {
                let what = format!("cannot write the container's ID to '{}'", path.display());
                let failure = Failure::because(what, &e);
                Err(match e.kind() {
                    io::ErrorKind::AlreadyExists => {
                        failure.with_hint("it may name another container; remove the file, or choose another")
                    }
                    _ => failure,
                })
            }
        }
    }

    pub(super) fn write(&self, id: &str) -> io::Result<()> {
        (&self.file).write_all(id.as_bytes())
    }

    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
