//! What becomes of a finished build: a name in the store, a registry, archives, or the files themselves
//! (`--output`, in the words of `docker buildx build`).
//!
//! Every output takes the same result and gives it the form that it needs ([`bundle`]): layers in an encoding,
//! annotations, an index where there are several platforms or attestations.

mod annotation;
mod bundle;
pub(crate) mod files;
mod write;

use std::path::PathBuf;

use isles_spec::{Error as Spelling, Reference};
use isles_store::Compression;

pub use annotation::Annotation;
pub(crate) use bundle::bundle;
pub use bundle::{Bundle, Made, Predicate};
pub(crate) use write::name;
pub use write::{Outputs, Written, check, into_file, write};

use crate::dockerfile::mount::fields;

/// One `--output`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub kind: Kind,
    pub encoding: Encoding,
    /// What the image is called in an archive or a layout; the names of the build where nothing is said.
    pub names: Vec<Reference>,
}

/// Where a result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The files of the image, below a folder.
    Local { folder: PathBuf, split: Option<bool> },
    /// The files of the image as a tar archive.
    Tar(Destination),
    /// An OCI layout, as an archive or a folder.
    Oci { to: Destination, folder: bool },
    /// What `docker load` reads.
    Docker(Destination),
    /// A SIF file, for Apptainer and Singularity.
    Sif(PathBuf),
    /// Nowhere: the build only fills the cache.
    Nowhere,
    /// An image in the store, and in a registry with `push`. Without names of its own it has those of the build.
    Image { names: Vec<Reference>, push: bool, by_digest: bool },
}

/// Where an archive goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    Stdout,
    Path(PathBuf),
}

/// How layers are encoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoding {
    /// What the caller says; what the output usually has, where nothing.
    pub layers: Option<Layers>,
    pub level: Option<u32>,
    /// Also the layers of base images, which otherwise stay as they came.
    pub force: bool,
    /// Docker's media types instead of the OCI's.
    pub docker_types: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layers {
    Plain,
    Compressed(Compression),
}

const KEYS: &str = "type, dest, tar, name, push, push-by-digest, compression, compression-level, \
                    force-compression, oci-mediatypes, rewrite-timestamp and platform-split";

impl Output {
    /// An image in the store, or in a registry too.
    pub fn image(push: bool) -> Output {
        let kind = Kind::Image { names: Vec::new(), push, by_digest: false };
        Output { kind, encoding: Encoding::default(), names: Vec::new() }
    }

    /// A SIF file.
    pub fn sif(path: impl Into<PathBuf>) -> Output {
        Output { kind: Kind::Sif(path.into()), encoding: Encoding::default(), names: Vec::new() }
    }

    pub fn is_stdout(&self) -> bool {
        match &self.kind {
            Kind::Tar(to) | Kind::Docker(to) | Kind::Oci { to, .. } => *to == Destination::Stdout,
            Kind::Local { .. } | Kind::Image { .. } | Kind::Sif(_) | Kind::Nowhere => false,
        }
    }

    /// Reads `type=oci,dest=FILE`; a lone path is a folder for the files, and `-` an archive of them.
    pub fn parse(text: &str) -> Result<Output, Spelling> {
        let wrong = |why: String| Spelling::new(format!("invalid output '{text}': {why}"));
        let fields = fields(text).map_err(|why| wrong(why.to_owned()))?;
        if let [only] = fields.as_slice()
            && !only.contains('=')
        {
            let kind = match only.as_str() {
                "-" => Kind::Tar(Destination::Stdout),
                folder => Kind::Local { folder: folder.into(), split: None },
            };
            return Ok(Output { kind, encoding: Encoding::default(), names: Vec::new() });
        }
        let mut given = Given::default();
        for field in &fields {
            let (key, value) = field.split_once('=').ok_or_else(|| {
                wrong(format!("'{field}' is no KEY=VALUE")).with_hint(format!("keys are {KEYS}"))
            })?;
            given.take(key, value).map_err(|why| wrong(why).with_hint(format!("keys are {KEYS}")))?;
        }
        given.output().map_err(|why| {
            wrong(why).with_hint("write type=local|tar|oci|docker|sif|image|registry|cacheonly,…")
        })
    }
}

#[derive(Default)]
struct Given {
    kind: Option<String>,
    dest: Option<String>,
    tar: Option<bool>,
    names: Vec<Reference>,
    push: Option<bool>,
    by_digest: bool,
    split: Option<bool>,
    encoding: Encoding,
}

impl Given {
    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        let truth = || match value {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(format!("{key} is true or false, not '{value}'")),
        };
        match key.to_ascii_lowercase().as_str() {
            "type" => self.kind = Some(value.to_owned()),
            "dest" => self.dest = Some(value.to_owned()),
            "tar" => self.tar = Some(truth()?),
            "name" => {
                for name in value.split(',').filter(|n| !n.is_empty()) {
                    self.names.push(name.parse().map_err(|e: Spelling| e.to_string())?);
                }
            }
            "push" => self.push = Some(truth()?),
            "push-by-digest" => self.by_digest = truth()?,
            "platform-split" => self.split = Some(truth()?),
            "compression" => {
                self.encoding.layers = Some(match value {
                    "uncompressed" => Layers::Plain,
                    "gzip" => Layers::Compressed(Compression::Gzip),
                    "zstd" => Layers::Compressed(Compression::Zstd),
                    "estargz" => return Err("compression=estargz is not supported; gzip and zstd are".into()),
                    _ => return Err(format!("compression is uncompressed, gzip or zstd, not '{value}'")),
                });
            }
            "compression-level" => {
                let level = value.parse().map_err(|_| format!("'{value}' is no level of compression"))?;
                self.encoding.level = Some(level);
            }
            "force-compression" => self.encoding.force = truth()?,
            "oci-mediatypes" => self.encoding.docker_types = !truth()?,
            // Files are never younger than SOURCE_DATE_EPOCH, where it is given.
            "rewrite-timestamp" if truth()? => {}
            "rewrite-timestamp" => {
                return Err("rewrite-timestamp=false is not supported: files are never younger than \
                            SOURCE_DATE_EPOCH where it is given"
                    .into());
            }
            _ => return Err(format!("unknown key '{key}'")),
        }
        Ok(())
    }

    fn output(mut self) -> Result<Output, String> {
        let limit = match self.encoding.layers {
            Some(Layers::Compressed(Compression::Zstd)) => 22,
            Some(Layers::Plain) => 0,
            _ => 9,
        };
        if self.encoding.level.is_some_and(|level| level > limit) {
            return Err(format!("the level of compression is at most {limit}"));
        }
        let dest = self.dest.take();
        let archive = || match dest.as_deref() {
            None | Some("-") => Destination::Stdout,
            Some(path) => Destination::Path(path.into()),
        };
        let of_image = self.encoding != Encoding::default() || self.push.is_some() || self.by_digest;
        let kind = match self.kind.as_deref() {
            None => return Err("it has no type".into()),
            Some("local" | "tar" | "cacheonly") if of_image => {
                return Err("only images have layers, media types and registries".into());
            }
            Some("cacheonly") if dest.is_some() => {
                return Err("type=cacheonly writes nothing, so it has no dest".into());
            }
            Some("cacheonly") => Kind::Nowhere,
            Some("local") => match dest {
                None => return Err("type=local needs dest=FOLDER".into()),
                Some(dest) if dest == "-" => return Err("a folder cannot go to standard output".into()),
                Some(dest) => Kind::Local { folder: dest.into(), split: self.split },
            },
            Some("tar") => Kind::Tar(archive()),
            Some("oci") if self.tar == Some(false) => match archive() {
                Destination::Stdout => return Err("tar=false needs dest=FOLDER".into()),
                to => Kind::Oci { to, folder: true },
            },
            Some("oci") => Kind::Oci { to: archive(), folder: false },
            Some("docker") if self.encoding != Encoding::default() => {
                return Err("docker's archives hold plain layers; type=oci holds compressed ones".into());
            }
            Some("docker") if dest.is_none() => {
                Kind::Image { names: std::mem::take(&mut self.names), push: false, by_digest: false }
            }
            Some("docker") => Kind::Docker(archive()),
            Some("sif") if self.push.is_some() || self.by_digest || !self.names.is_empty() => {
                return Err("a SIF file goes to a registry by `isles push FILE oras://NAME`".into());
            }
            Some("sif") if self.encoding.force || self.encoding.docker_types => {
                return Err("a SIF file has no layers and media types".into());
            }
            Some("sif") => match dest {
                None => return Err("type=sif needs dest=FILE".into()),
                Some(dest) if dest == "-" => {
                    return Err("a SIF file cannot go to standard output".into());
                }
                Some(dest) => Kind::Sif(dest.into()),
            },
            Some("image" | "registry") if dest.is_some() => {
                return Err("an image has no dest; type=oci and type=docker have".into());
            }
            Some(kind @ ("image" | "registry")) => {
                let push = self.push.unwrap_or(kind == "registry") || self.by_digest;
                Kind::Image { names: std::mem::take(&mut self.names), push, by_digest: self.by_digest }
            }
            Some(other) => return Err(format!("unknown type '{other}'")),
        };
        Ok(Output { kind, encoding: self.encoding, names: self.names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        let plain = |kind| Output { kind, encoding: Encoding::default(), names: Vec::new() };
        let path = |p: &str| Destination::Path(p.into());
        let names = |n: &[&str]| n.iter().map(|n| n.parse().unwrap()).collect::<Vec<Reference>>();
        for (text, expected) in [
            ("out", Kind::Local { folder: "out".into(), split: None }),
            ("-", Kind::Tar(Destination::Stdout)),
            ("type=local,dest=a", Kind::Local { folder: "a".into(), split: None }),
            (
                "type=local,dest=a,platform-split=false",
                Kind::Local { folder: "a".into(), split: Some(false) },
            ),
            ("type=tar", Kind::Tar(Destination::Stdout)),
            ("type=tar,dest=-", Kind::Tar(Destination::Stdout)),
            ("type=tar,dest=x.tar", Kind::Tar(path("x.tar"))),
            ("type=oci,dest=x.tar", Kind::Oci { to: path("x.tar"), folder: false }),
            ("type=oci,dest=x,tar=false", Kind::Oci { to: path("x"), folder: true }),
            ("type=cacheonly", Kind::Nowhere),
            ("type=docker,dest=x.tar", Kind::Docker(path("x.tar"))),
            ("type=sif,dest=x.sif", Kind::Sif("x.sif".into())),
            ("type=docker", Kind::Image { names: Vec::new(), push: false, by_digest: false }),
            ("type=image", Kind::Image { names: Vec::new(), push: false, by_digest: false }),
            ("type=registry", Kind::Image { names: Vec::new(), push: true, by_digest: false }),
            (
                "type=image,\"name=a:1,b:2\",push=true",
                Kind::Image { names: names(&["a:1", "b:2"]), push: true, by_digest: false },
            ),
            (
                "type=image,name=a,push-by-digest=true",
                Kind::Image { names: names(&["a"]), push: true, by_digest: true },
            ),
        ] {
            assert_eq!(Output::parse(text).unwrap(), plain(expected), "{text}");
        }
        let zstd = Output::parse(
            "type=registry,compression=zstd,compression-level=19,force-compression=true,oci-mediatypes=false,\
             rewrite-timestamp=true",
        )
        .unwrap();
        let layers = Some(Layers::Compressed(Compression::Zstd));
        let expected = Encoding { layers, level: Some(19), force: true, docker_types: true };
        assert_eq!(zstd.encoding, expected);
        for text in ["type=oci,dest=x,\"name=a:1,b:2\"", "type=docker,dest=x,\"name=a:1,b:2\""] {
            assert_eq!(Output::parse(text).unwrap().names, names(&["a:1", "b:2"]), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (text, why) in [
            ("dest=x", "no type"),
            ("type=local", "dest=FOLDER"),
            ("type=local,dest=-", "standard output"),
            ("type=oci,tar=false", "dest=FOLDER"),
            ("type=tape,dest=x", "'tape'"),
            ("type=tar,color=red", "'color'"),
            ("type=tar,push=yes", "true or false"),
            ("type=tar,compression=gzip", "only images"),
            ("type=docker,dest=x,compression=gzip", "plain layers"),
            ("type=sif", "dest=FILE"),
            ("type=sif,dest=-", "standard output"),
            ("type=sif,dest=x,push=true", "isles push"),
            ("type=sif,dest=x,force-compression=true", "no layers"),
            ("type=image,dest=x", "no dest"),
            ("type=oci,compression=estargz", "estargz"),
            ("type=oci,compression=lzma", "'lzma'"),
            ("type=oci,compression-level=10", "at most 9"),
            ("type=oci,compression=zstd,compression-level=23", "at most 22"),
            ("type=oci,compression-level=x", "'x'"),
            ("type=image,name=UPPER:", "UPPER"),
            ("type=oci,rewrite-timestamp=false", "SOURCE_DATE_EPOCH"),
            ("type=cacheonly,dest=x", "no dest"),
            ("a,b", "'a'"),
        ] {
            let error = Output::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
