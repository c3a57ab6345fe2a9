//! How an image came to be, as SLSA v1 provenance (slsa.dev/spec/v1.0/provenance). Of secrets it has the IDs, and
//! of build arguments the values only where everything is asked for.

use std::time::{SystemTime, UNIX_EPOCH};

use isles_spec::Platform;
use isles_spec::time::rfc3339;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::Provenance;
use super::packages::escaped;
use crate::fetch::Remote;
use crate::git::{self, Repository};
use crate::output::Predicate;
use crate::snapshot::Build;

const KIND: &str = "https://slsa.dev/provenance/v1";
/// What the members of the external parameters mean is told in ARCHITECTURE.md.
const BUILD_TYPE: &str = "urn:isles:build:1";

/// Something from elsewhere that went into an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dependency {
    /// A package URL, or the address of a file or a repository.
    pub uri: String,
    /// The name of the algorithm as in-toto has it: `sha256`, `sha1`.
    pub algorithm: String,
    pub hex: String,
}

impl Dependency {
    /// An image of a registry, by the digest that its name stood for.
    pub fn image(
        name: &isles_spec::Reference,
        platform: &Platform,
        digest: &isles_spec::Digest,
    ) -> Dependency {
        let name = name.normalized();
        let tag = name.tag().map(|t| format!("@{}", escaped(t))).unwrap_or_default();
        let platform = escaped(&platform.to_string());
        Dependency {
            uri: format!("pkg:docker/{}{tag}?platform={platform}", name.familiar_name()),
            algorithm: digest.algorithm().name().to_owned(),
            hex: digest.hex().to_owned(),
        }
    }
}

impl Dependency {
    /// A file behind a URL.
    pub fn file(remote: &Remote) -> Dependency {
        let algorithm = remote.digest.algorithm().name().to_owned();
        Dependency { uri: without_user(&remote.url), algorithm, hex: remote.digest.hex().to_owned() }
    }

    /// A commit of a repository.
    pub fn repository(repository: &Repository, found: &git::Found) -> Dependency {
        let reference = repository.reference.as_ref().map(|r| format!("#{r}")).unwrap_or_default();
        Dependency {
            uri: format!("{}{reference}", without_user(&repository.remote)),
            algorithm: if found.commit.len() == 64 { "sha256" } else { "sha1" }.to_owned(),
            hex: found.commit.clone(),
        }
    }
}

/// An address without a user, who may be a token, and without a password.
fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, format!("/{path}")),
        None => (rest, String::new()),
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// What a build knows of itself.
#[derive(Debug)]
pub struct Told<'a> {
    /// The language of the recipe.
    pub frontend: &'static str,
    /// Its name, without the folders that it is in.
    pub recipe: String,
    pub text: &'a [u8],
    pub began: SystemTime,
}

pub fn predicate(build: &Build<'_>, wanted: &Provenance, told: &Told<'_>) -> Predicate {
    let options = build.options;
    let mut args = Map::new();
    if let Some(target) = &options.target {
        args.insert("target".into(), json!(target));
    }
    if wanted.max {
        for (name, value) in &options.build_args {
            args.insert(format!("build-arg:{name}"), json!(value));
        }
        for (name, value) in &options.labels {
            args.insert(format!("label:{name}"), json!(value));
        }
    }
    let secrets: Vec<Value> =
        options.secrets.keys().map(|id| json!({ "id": id, "optional": true })).collect();
    let mut locals = vec![json!({ "name": "context" })];
    locals.extend(options.contexts.iter().map(|(name, _)| json!({ "name": format!("context:{name}") })));
    let mut external = json!({
        "configSource": {
            "path": told.recipe,
            "digest": { "sha256": isles_spec::digest::hex(&Sha256::digest(told.text)) },
        },
        "request": { "frontend": told.frontend, "args": args, "locals": locals },
    });
    if !secrets.is_empty() {
        external["request"]["secrets"] = secrets.into();
    }
    let mut internal = json!({
        "builderPlatform": Platform::host().to_string(),
        "platform": build.platform.to_string(),
    });
    if wanted.max {
        internal["recipe"] = String::from_utf8_lossy(told.text).into();
    }
    let mut metadata = json!({});
    // With a fixed time the same build says the same.
    if build.epoch.is_none() {
        let time =
            |t: SystemTime| rfc3339(t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed()));
        metadata["invocationId"] = isles_store::random_name().into();
        metadata["startedOn"] = time(told.began).into();
        metadata["finishedOn"] = time(SystemTime::now()).into();
    }
    let body = json!({
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": external,
            "internalParameters": internal,
            "resolvedDependencies": build.dependencies().iter().map(|d| json!({
                "uri": d.uri,
                "digest": { &d.algorithm: d.hex },
            })).collect::<Vec<_>>(),
        },
        "runDetails": {
            "builder": {
                "id": wanted.builder,
                "version": { "isles": env!("CARGO_PKG_VERSION") },
            },
            "metadata": metadata,
        },
    });
    Predicate { kind: KIND.into(), file: "provenance.json", body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_tell_no_secret() {
        for (url, expected) in [
            ("https://user:word@host/x.git", "https://host/x.git"),
            ("https://token@host:1/x@y", "https://host:1/x@y"),
            ("https://host", "https://host"),
            ("git@host:x.git", "git@host:x.git"),
        ] {
            assert_eq!(without_user(url), expected);
        }
    }

    #[test]
    fn images_as_dependencies() {
        let digest: isles_spec::Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let of =
            |name: &str| Dependency::image(&name.parse().unwrap(), &"linux/amd64".parse().unwrap(), &digest);
        assert_eq!(of("debian:12").uri, "pkg:docker/debian@12?platform=linux%2Famd64");
        assert_eq!(
            of("localhost:5000/a/b").uri,
            "pkg:docker/localhost:5000/a/b@latest?platform=linux%2Famd64"
        );
        assert_eq!((of("x").algorithm.as_str(), of("x").hex.len()), ("sha256", 64));
    }
}
