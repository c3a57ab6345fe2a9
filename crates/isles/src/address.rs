//! Where images are fetched from and sent to: registries, and what holds SIF files: registries again (`oras://`), and
//! libraries (`library://`).

use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use isles_registry::{Library, LibraryName};
use isles_spec::{Error as Spelling, Platform, Progress, Reference};
use isles_store::Store;

use crate::failure::Failure;
use crate::registry::Connection;

/// One image elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An image of layers.
    Image(Reference),
    /// A SIF file.
    Sif(SifAddress),
    /// An image of the Docker daemon on this machine.
    Daemon(String),
}

/// A SIF file elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SifAddress {
    Registry(Reference),
    Library(LibraryName),
}

impl FromStr for Address {
    type Err = Spelling;

    fn from_str(text: &str) -> Result<Address, Spelling> {
        if let Some(name) = text.strip_prefix("oras://") {
            return Ok(Address::Sif(SifAddress::Registry(name.parse()?)));
        }
        if text.starts_with("library://") {
            let name = LibraryName::parse(text).map_err(|e| match e {
                isles_registry::Error::Name(spelling) => spelling,
                other => Spelling::new(other.to_string()),
            })?;
            return Ok(Address::Sif(SifAddress::Library(name)));
        }
        if let Some(name) = text.strip_prefix("docker-daemon:") {
            let name = name.strip_prefix("//").unwrap_or(name);
            Reference::parse(name)?;
            return Ok(Address::Daemon(name.to_owned()));
        }
        if text.starts_with("shub://") {
            return Err(isles_spec::source::shub());
        }
        Ok(Address::Image(text.parse()?))
    }
}

impl Display for SifAddress {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            SifAddress::Registry(name) => write!(f, "oras://{name}"),
            SifAddress::Library(name) => write!(f, "{name}"),
        }
    }
}

impl SifAddress {
    /// Writes the file into `file`, from its beginning. Nothing of it may be used where this fails.
    pub fn fetch(
        &self,
        connection: &Connection,
        platform: &Platform,
        file: &mut File,
        progress: &dyn Progress,
    ) -> Result<(), Failure> {
        match self {
            SifAddress::Registry(name) => {
                connection.client().pull_sif(name, platform, file, progress)?;
            }
            SifAddress::Library(name) => {
                library(connection, name)?.pull(name, &platform.architecture, file, progress)?;
            }
        }
        Ok(())
    }

    /// What an image that was fetched from here is called in the store.
    pub fn name(&self, connection: &Connection) -> Result<Reference, Failure> {
        match self {
            SifAddress::Registry(name) => Ok(name.normalized()),
            SifAddress::Library(name) => {
                let host = library(connection, name)?.host();
                let tag = name.tags.first().map_or("latest", String::as_str);
                let named = format!("{host}/{}:{tag}", name.path).parse::<Reference>();
                named.map(|name| name.normalized()).map_err(|e| {
                    Failure::because(format!("{self} has no name that the store could keep it under"), &e)
                        .with_hint("write it into a file, with -o FILE")
                })
            }
        }
    }
}

impl SifAddress {
    /// Whether an image that was fetched from here is in the store.
    pub fn is_here(
        &self,
        store: &Store,
        connection: &Connection,
        platform: &Platform,
    ) -> Result<bool, Failure> {
        let name = self.name(connection)?;
        Ok(store.resolve_reference(&name, Some(platform)).is_ok_and(|image| store.is_whole(&image)))
    }
}

/// The library that a name is of.
pub fn library(connection: &Connection, name: &LibraryName) -> Result<Library, Failure> {
    let plain = !connection.tls_verify;
    isles_apptainer::library_of(&connection.options(), plain, Some(name), None).map_err(of_door)
}

/// A failure of what `apptainer` and this program share.
pub fn of_door(failure: isles_apptainer::Failure) -> Failure {
    Failure { message: failure.message, causes: failure.causes, hint: failure.hint, code: None }
}

/// A folder of the store for a file on its way, which goes with this.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(store: &Store) -> Result<Scratch, Failure> {
        Ok(Scratch(store.scratch_dir()?))
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is collected with the rest of the store.
        let _ = isles_store::remove_tree(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        let said = |text: &str| match text.parse::<Address>() {
            Ok(Address::Image(name)) => format!("image {name}"),
            Ok(Address::Sif(SifAddress::Registry(name))) => format!("registry {name}"),
            Ok(Address::Sif(SifAddress::Library(name))) => format!("library {}", name.path),
            Ok(Address::Daemon(name)) => format!("daemon {name}"),
            Err(e) => format!("error {e}"),
        };
        for (text, expected) in [
            ("localhost:5000/a:1", "image localhost:5000/a:1"),
            ("docker://localhost:5000/a:1", "image localhost:5000/a:1"),
            ("oras://localhost:5000/a:1", "registry localhost:5000/a:1"),
            ("library://entity/col/tool:2", "library entity/col/tool"),
            ("docker-daemon:app:1", "daemon app:1"),
        ] {
            assert_eq!(said(text), expected);
        }
        for (text, word) in [("oras://A B", "error"), ("library://a//b", "empty part"), ("shub://a", "shub")]
        {
            assert!(said(text).contains(word), "{text}: {}", said(text));
        }
    }
}
