//! Where images really come from: the tables `[[registry]]` of containers-registries.conf(5), which podman, skopeo and
//! buildah read too.
//!
//! The longest prefix that fits a name decides: it may name another location, mirrors that are asked first when
//! something is pulled, and whether a certificate is demanded; or it may block the name.

use std::env;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use isles_spec::Reference;
use serde::Deserialize;

use crate::{Error, Result};

const FILE_LIMIT: u64 = 1 << 20;

/// The rules of one configuration. The default has none.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Rule>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Rule {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Mirror {
    location: String,
    insecure: bool,
    /// `all`, `digest-only` or `tag-only`.
    pull_from_mirror: String,
}

impl Registries {
    /// What the user has, or else the system: `$CONTAINERS_REGISTRIES_CONF`, `~/.config/containers/registries.conf`,
    /// `/etc/containers/registries.conf`. A file that is not there has no rules.
    pub fn from_environment() -> Result<Registries> {
        let chosen = env::var_os("CONTAINERS_REGISTRIES_CONF").filter(|v| !v.is_empty()).map(PathBuf::from);
        let config = env::var_os("XDG_CONFIG_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
        let config = config.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
        let own = config.map(|config| config.join("containers/registries.conf"));
        if let Some(file) = chosen {
            return Registries::read(&file);
        }
        match own {
            Some(file) if file.exists() => Registries::read(&file),
            _ => Registries::read(Path::new("/etc/containers/registries.conf")),
        }
    }

    fn read(path: &Path) -> Result<Registries> {
        let bad = |why: String| Error::Configuration { path: path.to_owned(), why };
        let mut text = String::new();
        match fs::File::open(path) {
            Ok(file) => {
                file.take(FILE_LIMIT).read_to_string(&mut text).map_err(|e| bad(e.to_string()))?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Registries::default()),
            Err(e) => return Err(bad(e.to_string())),
        }
        Registries::parse(&text).map_err(bad)
    }

    /// Reads the text of such a file; the error says what is wrong in it.
    pub fn parse(text: &str) -> std::result::Result<Registries, String> {
        let file: File = basic_toml::from_str(text).map_err(|e| e.to_string())?;
        let mut rules = file.registry;
        for rule in &mut rules {
            match (rule.prefix.is_empty(), rule.location.is_empty()) {
                (true, true) => return Err("a registry has neither a prefix nor a location".into()),
                (true, false) => rule.prefix = rule.location.clone(),
                (false, true) if rule.prefix.starts_with("*.") => {}
                (false, true) => rule.location = rule.prefix.clone(),
                (false, false) => {}
            }
            for mirror in &rule.mirror {
                if !matches!(mirror.pull_from_mirror.as_str(), "" | "all" | "digest-only" | "tag-only") {
                    return Err(format!("pull-from-mirror = \"{}\" is not known", mirror.pull_from_mirror));
                }
            }
        }
        Ok(Registries { rules })
    }

    /// The hosts that are spoken to without a trusted certificate, or in plain HTTP.
    pub(crate) fn insecure(&self) -> impl Iterator<Item = &str> {
        let own = self.rules.iter().filter(|rule| rule.insecure).map(|rule| rule.location.as_str());
        let mirrors = self.rules.iter().flat_map(|rule| &rule.mirror).filter(|mirror| mirror.insecure);
        own.chain(mirrors.map(|mirror| mirror.location.as_str())).map(host)
    }

    /// Where `reference` is, and where it is pushed to.
    pub(crate) fn location(&self, reference: &Reference) -> Result<Reference> {
        let Some(rule) = self.rule(reference) else { return Ok(reference.clone()) };
        if rule.blocked {
            return Err(Error::Blocked { object: reference.familiar(), prefix: rule.prefix.clone() });
        }
        if rule.location.is_empty() || rule.location == rule.prefix {
            return Ok(reference.clone());
        }
        rewritten(reference, &rule.prefix, &rule.location)
    }

    /// Where `reference` is pulled from: the mirrors, in order, and its own place at last.
    pub(crate) fn sources(&self, reference: &Reference) -> Result<Vec<Reference>> {
        let own = self.location(reference)?;
        let Some(rule) = self.rule(reference) else { return Ok(vec![own]) };
        let by_digest = reference.digest().is_some();
        let serves = |mirror: &&Mirror| match mirror.pull_from_mirror.as_str() {
            "digest-only" => by_digest,
            "tag-only" => !by_digest,
            _ => by_digest || !rule.mirror_by_digest_only,
        };
        let mirrors = rule.mirror.iter().filter(serves);
        let mirrors = mirrors.map(|mirror| rewritten(reference, &rule.prefix, &mirror.location));
        mirrors.chain([Ok(own)]).collect()
    }

    fn rule(&self, reference: &Reference) -> Option<&Rule> {
        let name = full(reference);
        let fits = self.rules.iter().filter(|rule| matched(&name, &rule.prefix).is_some());
        fits.max_by_key(|rule| rule.prefix.len())
    }
}

/// Host and repository, without tag and digest.
fn full(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

fn host(location: &str) -> &str {
    location.split('/').next().unwrap_or_default()
}

/// How much of a name a prefix covers: whole components, or a host below a domain for `*.domain`.
fn matched(name: &str, prefix: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = host(name);
        let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
        return (bare.len() > domain.len() && bare.ends_with(domain)).then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
}

fn rewritten(reference: &Reference, prefix: &str, location: &str) -> Result<Reference> {
    let name = full(reference);
    let rest = matched(&name, prefix).and_then(|length| name.get(length..)).unwrap_or_default();
    let mut text = format!("{location}{rest}");
    if let Some(tag) = reference.tag() {
        text = text + ":" + tag;
    }
    if let Some(digest) = reference.digest() {
        text = format!("{text}@{digest}");
    }
    Ok(Reference::parse(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = r#"
        unqualified-search-registries = ["docker.io"]
        short-name-mode = "enforcing"

        [[registry]]
        location = "docker.io"
        [[registry.mirror]]
        location = "127.0.0.1:5000/hub"
        insecure = true
        [[registry.mirror]]
        location = "mirror.test"
        pull-from-mirror = "digest-only"

        [[registry]]
        prefix = "docker.io/library/secret"
        blocked = true

        [[registry]]
        prefix = "ghcr.io"
        location = "cache.test:5000/ghcr"
        insecure = true

        [[registry]]
        prefix = "*.corp.test"
        insecure = true

        [[registry]]
        prefix = "quay.io/team"
        location = "quay.io/other"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "digests.test/team"
    "#;

    #[test]
    fn names_are_looked_for_elsewhere() {
        let rules = Registries::parse(RULES).unwrap();
        let digest = format!("sha256:{}", "a".repeat(64));
        for (name, expected) in [
            (
                "busybox:1.30",
                vec!["127.0.0.1:5000/hub/library/busybox:1.30", "docker.io/library/busybox:1.30"],
            ),
            (
                &*format!("busybox@{digest}"),
                vec![
                    &*format!("127.0.0.1:5000/hub/library/busybox@{digest}"),
                    &*format!("mirror.test/library/busybox@{digest}"),
                    &*format!("docker.io/library/busybox@{digest}"),
                ],
            ),
            ("secretary", vec!["127.0.0.1:5000/hub/library/secretary", "docker.io/library/secretary"]),
            ("ghcr.io/a/b:c", vec!["cache.test:5000/ghcr/a/b:c"]),
            ("ghcr.iox/a/b:c", vec!["ghcr.iox/a/b:c"]),
            ("a.corp.test:5000/x", vec!["a.corp.test:5000/x"]),
            ("quay.io/team/x:1", vec!["quay.io/other/x:1"]),
            (
                &*format!("quay.io/team/x@{digest}"),
                vec![&*format!("digests.test/team/x@{digest}"), &*format!("quay.io/other/x@{digest}")],
            ),
            ("quay.io/teams/x:1", vec!["quay.io/teams/x:1"]),
        ] {
            let sources = rules.sources(&Reference::parse(name).unwrap()).unwrap();
            let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
            let expected: Vec<String> =
                expected.iter().map(|name| Reference::parse(name).unwrap().to_string()).collect();
            assert_eq!(sources, expected, "{name}");
        }
        let blocked = rules.sources(&Reference::parse("secret").unwrap()).unwrap_err();
        assert!(blocked.to_string().contains("docker.io/library/secret"), "{blocked}");
        let insecure: Vec<&str> = rules.insecure().collect();
        assert_eq!(insecure, ["cache.test:5000", "", "127.0.0.1:5000"]);
    }

    #[test]
    fn odd_files() {
        for bad in [
            "[[registry]]",
            "[[registry]]\nlocation = 5",
            "[[registry]\nlocation = \"x\"",
            "[[registry]]\nlocation = \"x\"\n[[registry.mirror]]\nlocation = \"y\"\npull-from-mirror = \"never\"",
        ] {
            assert!(Registries::parse(bad).is_err(), "{bad}");
        }
        assert!(Registries::parse("").unwrap().rules.is_empty());
        assert!(Registries::read(Path::new("/nowhere/registries.conf")).unwrap().rules.is_empty());
    }
}
