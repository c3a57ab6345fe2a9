//! What `isles run SOURCE` may be given: a name, an image on disk, a recipe, or a Debian suite. Singularity's spellings
//! are the same words; only `instance://` is its own.

use std::fmt;
use std::path::PathBuf;

use crate::{Error, Reference, Result};

/// Where the root file system of a workload comes from, as a person spelled it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A name in the local store or in a registry.
    Name(Reference),
    /// An image ID or a prefix of one, at least four hexadecimal characters, or `sha256:…`.
    Id(String),
    /// `oci:DIR[:TAG]`: an OCI image layout in a folder.
    OciLayout { path: PathBuf, tag: Option<String> },
    /// `oci-archive:FILE[:TAG]`: an OCI image layout in a tar file.
    OciArchive { path: PathBuf, tag: Option<String> },
    /// `docker-archive:FILE[:NAME:TAG]`: what `docker save` writes.
    DockerArchive { path: PathBuf, name: Option<String> },
    /// A Dockerfile, a definition file, or a folder that holds one.
    Recipe(PathBuf),
    /// A file with a file system in it: SIF, squashfs or ext3.
    File(PathBuf),
    /// A folder that is a root file system, which Singularity calls a sandbox.
    Tree(PathBuf),
    /// `instance://NAME`: what runs already.
    Instance(String),
    /// `oras://NAME` or `library://NAME`: a SIF file in a registry or a library.
    Sif(String),
    /// `http://…` or `https://…`: an image file on the web.
    Url(String),
    /// `docker-daemon:NAME`: an image of the Docker daemon on this machine.
    Daemon(String),
    /// `debian://SUITE[?include=a,b&variant=minbase&mirror=URL]`.
    Debian(DebianSuite),
}

/// What a word leads to that could be a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisk {
    Nothing,
    /// A Dockerfile, a definition file, or a folder that holds one.
    Recipe,
    /// A file with a file system in it.
    ImageFile,
    /// A folder with a root file system.
    Tree,
    /// Something else.
    Other,
}

/// Endings that only image files have.
const IMAGE_ENDINGS: [&str; 4] = [".sif", ".sqfs", ".squashfs", ".sqsh"];

/// A Debian release to bootstrap, and what to put into it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DebianSuite {
    pub suite: String,
    /// Packages beside those of the variant.
    pub include: Vec<String>,
    /// `minbase` (required packages and apt) or `essential` (essential packages only).
    pub variant: Option<String>,
    pub mirror: Option<String>,
    pub architecture: Option<String>,
}

impl Source {
    /// Reads a spelling. Whether a plain word is a name or something on disk depends on the disk, so the caller says what
    /// it found: `look` is asked for words that could be a path.
    pub fn parse(text: &str, look: impl Fn(&str) -> OnDisk) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("debian://") {
            return DebianSuite::parse(rest).map(Source::Debian);
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (path, tag) = path_and_tag(rest)?;
            return Ok(Source::OciArchive { path, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, name) = match rest.split_once(':') {
                Some((path, name)) => (path, Some(name.to_owned())),
                None => (rest, None),
            };
            return Ok(Source::DockerArchive { path: non_empty(path)?, name });
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, tag) = path_and_tag(rest)?;
            return Ok(Source::OciLayout { path, tag });
        }
        if let Some(name) = text.strip_prefix("instance://") {
            let fine = !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
            return if fine {
                Ok(Source::Instance(name.to_owned()))
            } else {
                Err(Error::new(format!("invalid name of an instance: '{name}'"))
                    .with_hint("it has letters, digits, '-', '.' and '_'"))
            };
        }
        if let Some(name) = text.strip_prefix("docker-daemon:") {
            let name = name.strip_prefix("//").unwrap_or(name);
            Reference::parse(name)?;
            return Ok(Source::Daemon(name.to_owned()));
        }
        match text.split_once("://") {
            Some(("oras" | "library", rest)) if !rest.is_empty() => return Ok(Source::Sif(text.to_owned())),
            Some(("http" | "https", rest)) if !rest.is_empty() => return Ok(Source::Url(text.to_owned())),
            Some(("shub", _)) => return Err(shub()),
            None | Some(("docker", _)) => {}
            Some((scheme, _)) => {
                return Err(Error::new(format!("unknown kind of source '{scheme}://'")).with_hint(
                    "known are docker://, oras://, library://, https://, debian:// and instance://, and oci:, \
                     oci-archive:, docker-archive: and docker-daemon:",
                ));
            }
        }
        let looks_like_path = text.starts_with(['/', '.', '~'])
            || text.ends_with(".def")
            || text.ends_with("Dockerfile")
            || text.ends_with("Containerfile");
        let is_image = IMAGE_ENDINGS.iter().any(|ending| text.ends_with(ending));
        if looks_like_path || is_image || Reference::parse(text).is_err() || text.contains('/') {
            match look(text) {
                OnDisk::Recipe => return Ok(Source::Recipe(PathBuf::from(text))),
                OnDisk::ImageFile => return Ok(Source::File(PathBuf::from(text))),
                OnDisk::Tree => return Ok(Source::Tree(PathBuf::from(text))),
                OnDisk::Nothing if is_image => {
                    return Err(Error::new(format!("no image at '{text}'"))
                        .with_hint("a word with this ending is a file with a file system in it"));
                }
                OnDisk::Other if is_image => {
                    return Err(Error::new(format!("'{text}' is no image"))
                        .with_hint("files of SIF, squashfs and ext3 are known by how they begin"));
                }
                OnDisk::Nothing | OnDisk::Other => {}
            }
        }
        if looks_like_path {
            return Err(Error::new(format!("no recipe and no image at '{text}'")).with_hint(
                "a recipe is a Dockerfile, a Containerfile, a *.def file, or a folder that holds one; an image is a \
                 file of SIF, squashfs or ext3, or a folder with a root file system",
            ));
        }
        if text.starts_with("sha256:") {
            let digest: crate::Digest = text.parse()?;
            return Ok(Source::Id(digest.to_string()));
        }
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Source::Id(text.to_owned()));
        }
        Reference::parse(text).map(Source::Name)
    }
}

/// What there is to say about `shub://`.
pub fn shub() -> Error {
    Error::new("shub:// is not supported")
        .with_hint("Singularity Hub was switched off in 2021; use docker:// or oras://")
}

fn non_empty(path: &str) -> Result<PathBuf> {
    if path.is_empty() { Err(Error::new("the path of the image is empty")) } else { Ok(PathBuf::from(path)) }
}

fn path_and_tag(rest: &str) -> Result<(PathBuf, Option<String>)> {
    match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => Ok((non_empty(path)?, Some(tag.to_owned()))),
        _ => Ok((non_empty(rest)?, None)),
    }
}

impl DebianSuite {
    /// What follows `debian://`.
    pub fn parse(text: &str) -> Result<Self> {
        let (suite, query) = text.split_once('?').unwrap_or((text, ""));
        let word = |s: &str| {
            !s.is_empty()
                && !s.starts_with(['-', '.'])
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'+'))
        };
        if !word(suite) {
            return Err(Error::new(format!("invalid Debian suite '{suite}'"))
                .with_hint("write debian://bookworm, or debian://bookworm?include=python3,make"));
        }
        let mut out = DebianSuite { suite: suite.to_owned(), ..Default::default() };
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "include" => {
                    for package in value.split(',').filter(|p| !p.is_empty()) {
                        if !word(package) {
                            return Err(Error::new(format!("invalid Debian package name '{package}'")));
                        }
                        out.include.push(package.to_owned());
                    }
                }
                "variant" if matches!(value, "minbase" | "essential") => out.variant = Some(value.to_owned()),
                "variant" => {
                    return Err(Error::new(format!("unknown variant '{value}'"))
                        .with_hint("known variants are minbase and essential"));
                }
                "mirror" => out.mirror = Some(value.to_owned()),
                "arch" if word(value) => out.architecture = Some(value.to_owned()),
                _ => {
                    return Err(Error::new(format!("unknown setting '{key}' of debian://{suite}"))
                        .with_hint("known settings are include, variant, mirror and arch"));
                }
            }
        }
        Ok(out)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tagged = |f: &mut fmt::Formatter<'_>, scheme: &str, path: &PathBuf, tag: &Option<String>| {
            write!(f, "{scheme}:{}", path.display())?;
            tag.iter().try_for_each(|t| write!(f, ":{t}"))
        };
        match self {
            Source::Name(r) => f.write_str(&r.familiar()),
            Source::Id(id) => f.write_str(id),
            Source::OciLayout { path, tag } => tagged(f, "oci", path, tag),
            Source::OciArchive { path, tag } => tagged(f, "oci-archive", path, tag),
            Source::DockerArchive { path, name } => tagged(f, "docker-archive", path, name),
            Source::Recipe(path) | Source::File(path) | Source::Tree(path) => write!(f, "{}", path.display()),
            Source::Instance(name) => write!(f, "instance://{name}"),
            Source::Sif(text) | Source::Url(text) => f.write_str(text),
            Source::Daemon(name) => write!(f, "docker-daemon:{name}"),
            Source::Debian(d) => write!(f, "debian://{}", d.suite),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        let on_disk = |s: &str| match s {
            "x.def" | "./app" | "app" | "dir/app" | "Dockerfile" => OnDisk::Recipe,
            "x.sif" | "./image" | "dir/x.img" => OnDisk::ImageFile,
            "./tree" | "tree" | "dir/tree" => OnDisk::Tree,
            "./other" | "other.sif" => OnDisk::Other,
            _ => OnDisk::Nothing,
        };
        let parse = |s: &str| Source::parse(s, on_disk).unwrap();
        assert!(matches!(parse("debian"), Source::Name(_)));
        assert!(matches!(parse("docker://debian:12"), Source::Name(_)));
        assert!(matches!(parse("app"), Source::Name(_)), "a bare word is an image, ./app is the folder");
        assert!(matches!(parse("./app"), Source::Recipe(_)));
        assert!(matches!(parse("dir/app"), Source::Recipe(_)));
        assert!(matches!(parse("x.def"), Source::Recipe(_)));
        assert!(matches!(parse("Dockerfile"), Source::Recipe(_)));
        for file in ["x.sif", "./image", "dir/x.img"] {
            assert_eq!(parse(file), Source::File(file.into()));
        }
        assert_eq!(parse("./tree"), Source::Tree("./tree".into()));
        assert_eq!(parse("dir/tree"), Source::Tree("dir/tree".into()));
        assert!(matches!(parse("tree"), Source::Name(_)), "a bare word is an image in a registry");
        assert_eq!(parse("instance://web-1"), Source::Instance("web-1".into()));
        assert_eq!(parse("oras://localhost:5000/a:1"), Source::Sif("oras://localhost:5000/a:1".into()));
        assert_eq!(parse("library://a/b/c"), Source::Sif("library://a/b/c".into()));
        assert_eq!(parse("https://example.org/x.sif"), Source::Url("https://example.org/x.sif".into()));
        assert_eq!(parse("docker-daemon:app:1"), Source::Daemon("app:1".into()));
        assert_eq!(parse("docker-daemon://app").to_string(), "docker-daemon:app");
        assert_eq!(parse("oci:/a/b:t"), Source::OciLayout { path: "/a/b".into(), tag: Some("t".into()) });
        assert_eq!(parse("oci:/a:1/b"), Source::OciLayout { path: "/a:1/b".into(), tag: None });
        assert_eq!(
            parse("docker-archive:x.tar:a/b:1"),
            Source::DockerArchive { path: "x.tar".into(), name: Some("a/b:1".into()) }
        );
        let Source::Debian(d) = parse("debian://bookworm?include=python3,libstdc++6&variant=minbase") else {
            panic!("not a suite")
        };
        assert_eq!(d.include, ["python3", "libstdc++6"]);
        for bad in [
            "",
            "nothere.def",
            "./nothere",
            "ftp://x",
            "oras://",
            "https://",
            "shub://a/b",
            "docker-daemon:",
            "nothere.sif",
            "other.sif",
            "./other",
            "instance://",
            "instance://../x",
            "oci:",
            "debian://",
            "debian://../x",
            "debian://a?include=-x;y",
            "debian://a?variant=huge",
            "debian://a?color=red",
            "sha256:abc",
        ] {
            assert!(Source::parse(bad, on_disk).is_err(), "{bad}");
        }
    }
}
