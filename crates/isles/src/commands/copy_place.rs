//! The places that `isles copy` knows, as skopeo and we spell them.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use isles_spec::{Error as Spelling, Reference};

use crate::address::{Address, SifAddress};

/// Where images are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Registry(Reference),
    /// A name or an ID in the store.
    Store(String),
    Oci {
        path: PathBuf,
        name: Option<String>,
    },
    OciArchive {
        path: PathBuf,
        name: Option<String>,
    },
    DockerArchive {
        path: PathBuf,
        name: Option<String>,
    },
    Daemon(String),
    Sif(PathBuf),
    /// A SIF file in a registry or a library.
    Remote(SifAddress),
}

impl Place {
    /// Whether blobs are had from it, and given to it, one by one and as they are.
    pub fn streams(&self) -> bool {
        matches!(self, Place::Registry(_) | Place::Oci { .. } | Place::OciArchive { .. })
    }
}

impl FromStr for Place {
    type Err = Spelling;

    fn from_str(text: &str) -> Result<Place, Spelling> {
        let refused =
            |what: &str, hint: &str| Err(Spelling::new(format!("{what} is not supported")).with_hint(hint));
        let on_disk = |rest: &str| path_and_name(rest, |path| path.exists());
        match text.split_once(':') {
            Some(("docker", rest)) if rest.starts_with("//") => {
                Ok(Place::Registry(rest.trim_start_matches("//").parse()?))
            }
            Some(("docker", _)) => Err(Spelling::new(format!("'{text}' names no registry"))
                .with_hint("a registry is written docker://NAME")),
            Some(("isles", name)) => Ok(Place::Store(named(name)?)),
            Some(("oci", rest)) => on_disk(rest).map(|(path, name)| Place::Oci { path, name }),
            Some(("oci-archive", rest)) => on_disk(rest).map(|(path, name)| Place::OciArchive { path, name }),
            Some(("docker-archive", rest)) => {
                on_disk(rest).map(|(path, name)| Place::DockerArchive { path, name })
            }
            Some(("sif", path)) if !path.is_empty() => Ok(Place::Sif(path.into())),
            Some(("dir", _)) => refused("dir:", "oci:DIR is a folder that every tool reads"),
            Some(("containers-storage", _)) => {
                refused("containers-storage:", "podman gives its images by `podman save | isles load`")
            }
            Some(("ostree" | "sif-oci" | "tarball" | "atomic", _)) => {
                refused("this transport", "`isles copy --help` lists the places that there are")
            }
            Some((_, rest)) if rest.starts_with("//") => match text.parse::<Address>()? {
                Address::Image(name) => Ok(Place::Registry(name)),
                Address::Sif(address) => Ok(Place::Remote(address)),
                Address::Daemon(name) => Ok(Place::Daemon(name)),
            },
            Some(("docker-daemon", name)) => Ok(Place::Daemon(named(name)?)),
            _ if text.ends_with(".sif") => Ok(Place::Sif(text.into())),
            _ => Ok(Place::Store(named(text)?)),
        }
    }
}

/// A name or an ID of an image.
fn named(text: &str) -> Result<String, Spelling> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    if hex.is_empty() || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        Reference::parse(text)?;
    }
    Ok(text.to_owned())
}

/// A path and the name of an image in it. Names have colons and paths may, so what is on disk decides; else the path
/// ends at the first colon.
fn path_and_name(text: &str, exists: impl Fn(&Path) -> bool) -> Result<(PathBuf, Option<String>), Spelling> {
    let split = |at: usize| (PathBuf::from(&text[..at]), Some(text[at + 1..].to_owned()));
    let colons: Vec<usize> = text.match_indices(':').map(|(at, _)| at).collect();
    let found = if exists(Path::new(text)) {
        (PathBuf::from(text), None)
    } else {
        let there = colons.iter().rev().map(|at| split(*at)).find(|(path, _)| exists(path));
        there.or_else(|| colons.first().map(|at| split(*at))).unwrap_or((PathBuf::from(text), None))
    };
    match found {
        (path, _) if path.as_os_str().is_empty() => Err(Spelling::new("the path of the image is empty")),
        (path, name) => Ok((path, name.filter(|n| !n.is_empty()))),
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let named = |f: &mut Formatter<'_>, kind: &str, path: &Path, name: &Option<String>| {
            write!(f, "{kind}:{}", path.display())?;
            name.iter().try_for_each(|n| write!(f, ":{n}"))
        };
        match self {
            Place::Registry(name) => write!(f, "docker://{name}"),
            Place::Store(name) => write!(f, "isles:{name}"),
            Place::Oci { path, name } => named(f, "oci", path, name),
            Place::OciArchive { path, name } => named(f, "oci-archive", path, name),
            Place::DockerArchive { path, name } => named(f, "docker-archive", path, name),
            Place::Daemon(name) => write!(f, "docker-daemon:{name}"),
            Place::Sif(path) => write!(f, "sif:{}", path.display()),
            Place::Remote(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        for (text, said) in [
            ("docker://a:1", "docker://docker.io/library/a:1"),
            ("app:1", "isles:app:1"),
            ("isles:app:1", "isles:app:1"),
            ("localhost:5000/app:1", "isles:localhost:5000/app:1"),
            ("oci:/x/y:lab:1", "oci:/x/y:lab:1"),
            ("oci-archive:f.tar", "oci-archive:f.tar"),
            ("docker-archive:f.tar:app:1", "docker-archive:f.tar:app:1"),
            ("docker-daemon:app:1", "docker-daemon:app:1"),
            ("x.sif", "sif:x.sif"),
            ("sif:x", "sif:x"),
            ("oras://localhost:5000/a:1", "oras://localhost:5000/a:1"),
        ] {
            assert_eq!(text.parse::<Place>().map(|p| p.to_string()), Ok(said.to_owned()), "{text}");
        }
        for text in ["dir:x", "containers-storage:x", "docker:x", "oci:", "A B", "ostree:x", "http://x"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[test]
    fn paths_with_colons() {
        let there = |path: &Path| path == Path::new("a:b");
        let split = |text: &str| path_and_name(text, there).unwrap();
        assert_eq!(split("a:b"), ("a:b".into(), None));
        assert_eq!(split("a:b:lab:1"), ("a:b".into(), Some("lab:1".into())));
        assert_eq!(split("new:lab:1"), ("new".into(), Some("lab:1".into())));
    }
}
