//! Named contexts (`--build-context NAME=VALUE`): what a name of a recipe stands for instead of the stage or the
//! image of that name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use isles_spec::{Error as Spelling, Platform, Reference};

/// What a caller puts in a name's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// Files of a folder.
    Folder(PathBuf),
    /// A repository of git, an archive behind a URL, or a file there.
    Elsewhere(String),
    /// `docker-image://NAME`: an image of the store or of a registry.
    Image(String),
    /// `oci-layout://FOLDER[:TAG]`: an image in an OCI layout.
    Layout { path: PathBuf, tag: Option<String> },
}

/// Contexts by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedContexts(BTreeMap<String, NamedContext>);

impl NamedContext {
    pub fn parse(text: &str) -> Result<NamedContext, Spelling> {
        if let Some(name) = text.strip_prefix("docker-image://") {
            name.parse::<Reference>()?;
            return Ok(NamedContext::Image(name.to_owned()));
        }
        if let Some(rest) = text.strip_prefix("oci-layout://") {
            if rest.contains('@') {
                return Err(Spelling::new(format!(
                    "'{text}' names an image by digest, which layouts are not asked for"
                ))
                .with_hint("name it by its tag: oci-layout://FOLDER:TAG"));
            }
            let (path, tag) = match rest.rsplit_once(':') {
                Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
                _ => (rest, None),
            };
            return match path {
                "" => Err(Spelling::new("oci-layout:// names no folder")),
                path => Ok(NamedContext::Layout { path: path.into(), tag }),
            };
        }
        if ["target:", "input:"].iter().any(|scheme| text.starts_with(scheme)) {
            return Err(Spelling::new(format!("'{text}' cannot be a named context"))
                .with_hint("it is a word of `docker buildx bake`; name the folder or the image itself"));
        }
        if crate::elsewhere::is_elsewhere(text) {
            return Ok(NamedContext::Elsewhere(text.to_owned()));
        }
        if text.is_empty() {
            Err(Spelling::new("a named context has no value"))
        } else {
            Ok(NamedContext::Folder(text.into()))
        }
    }
}

impl NamedContexts {
    /// Reads `NAME=VALUE`, one after the other; the last of a name counts.
    pub fn parse<T: AsRef<str>>(list: impl IntoIterator<Item = T>) -> Result<NamedContexts, Spelling> {
        let mut contexts = BTreeMap::new();
        for text in list {
            let text = text.as_ref();
            match text.split_once('=') {
                Some((name, value)) if !name.is_empty() => {
                    contexts.insert(plain(name), NamedContext::parse(value)?);
                }
                _ => {
                    return Err(Spelling::new(format!("invalid named context '{text}'"))
                        .with_hint("write --build-context NAME=FOLDER, or NAME=docker-image://IMAGE"));
                }
            }
        }
        Ok(NamedContexts(contexts))
    }

    /// The name under which a context is given for a name of a recipe, if one is: `NAME::PLATFORM` before `NAME`.
    pub fn key(&self, name: &str, platform: &Platform) -> Option<String> {
        let name = plain(name);
        let own = format!("{name}::{platform}");
        [own, name].into_iter().find(|key| self.0.contains_key(key))
    }

    pub fn get(&self, key: &str) -> Option<&NamedContext> {
        self.0.get(key)
    }

    /// Names and values, for what is said about a build.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &NamedContext)> {
        self.0.iter().map(|(name, context)| (name.as_str(), context))
    }
}

/// Names as BuildKit compares them: those of images without what is the same for all of them.
fn plain(name: &str) -> String {
    let (name, platform) = match name.split_once("::") {
        Some((name, platform)) => (name, Some(platform)),
        None => (name, None),
    };
    let name = name.to_ascii_lowercase();
    let familiar = name.parse::<Reference>().map(|r| r.normalized().familiar()).unwrap_or(name);
    let name = familiar.strip_suffix(":latest").unwrap_or(&familiar);
    platform.map_or_else(|| name.to_owned(), |p| format!("{name}::{p}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        let layout = |path: &str, tag: Option<&str>| NamedContext::Layout {
            path: path.into(),
            tag: tag.map(Into::into),
        };
        let elsewhere = |text: &str| NamedContext::Elsewhere(text.into());
        for (text, expected) in [
            ("https://x/y.git#main", elsewhere("https://x/y.git#main")),
            ("git@x:y", elsewhere("git@x:y")),
            ("http://x/y.tar.gz", elsewhere("http://x/y.tar.gz")),
            ("../src", NamedContext::Folder("../src".into())),
            ("docker-image://a/b:1", NamedContext::Image("a/b:1".into())),
            ("oci-layout://x", layout("x", None)),
            ("oci-layout:///a/b:1", layout("/a/b", Some("1"))),
            ("oci-layout://a:b/c", layout("a:b/c", None)),
        ] {
            assert_eq!(NamedContext::parse(text).unwrap(), expected, "{text}");
        }
        for bad in ["", "docker-image://", "oci-layout://", "oci-layout://x@sha256:ab", "target:x"] {
            assert!(NamedContext::parse(bad).is_err(), "{bad}");
        }
        assert!(NamedContexts::parse(["a"]).is_err());
        assert!(NamedContexts::parse(["=x"]).is_err());
    }

    #[test]
    fn names() {
        let contexts = NamedContexts::parse([
            "alpine=a",
            "docker.io/library/debian:12=b",
            "Src=c",
            "src::linux/arm64=d",
        ])
        .unwrap();
        let (amd64, arm64): (Platform, Platform) =
            ("linux/amd64".parse().unwrap(), "linux/arm64".parse().unwrap());
        for (name, platform, key) in [
            ("alpine", &amd64, Some("alpine")),
            ("docker.io/library/alpine:latest", &amd64, Some("alpine")),
            ("alpine:3", &amd64, None),
            ("debian:12", &amd64, Some("debian:12")),
            ("debian", &amd64, None),
            ("SRC", &amd64, Some("src")),
            ("src", &arm64, Some("src::linux/arm64")),
        ] {
            assert_eq!(contexts.key(name, platform).as_deref(), key, "{name}");
        }
    }
}
