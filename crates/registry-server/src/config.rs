//! What a server is told: by a file in TOML, and by options that go before it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isles_spec::{Platform, Reference, quantity};
use serde::{Deserialize, Deserializer};

use crate::access::{Access, Rule};
use crate::{Error, Result};

const LIMIT: u64 = 1 << 20;
const PORT: u16 = 5000;

/// Everything that can be said. [`Config::default`] is an open registry on loopback.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses, as `host:port`.
    pub listen: Vec<String>,
    /// As clients reach it, where that is not how they ask: behind a proxy, `https://registry.example`.
    pub url: Option<String>,
    pub tls: Option<TlsConfig>,
    /// A file of `htpasswd -B`.
    pub htpasswd: Option<PathBuf>,
    /// Everybody may pull.
    #[serde(rename = "anonymous-pull", alias = "anonymous_pull")]
    pub anonymous_pull: bool,
    pub groups: BTreeMap<String, Vec<String>>,
    pub access: Vec<Rule>,
    pub retention: Vec<Retention>,
    pub quota: Quota,
    pub mirror: Vec<MirrorConfig>,
    pub collect: Collect,
    /// A connection on which nothing moves for so long is closed; a minute where missing.
    #[serde(deserialize_with = "duration")]
    pub idle: Option<Duration>,
}

/// Certificates.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, untagged)]
pub enum TlsConfig {
    /// PEM files, read again when they change.
    Files { cert: PathBuf, key: PathBuf },
    /// One that the server makes for these names, and keeps in the store.
    SelfSigned {
        #[serde(rename = "self-signed")]
        names: Vec<String>,
    },
}

/// Which tags go, and which may not change. The first line that fits a tag decides.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Retention {
    /// A pattern of repositories; all where missing.
    pub repositories: Option<String>,
    /// A pattern of tags; all where missing.
    pub tags: Option<String>,
    /// The newest so many stay.
    pub keep_last: Option<usize>,
    /// Older ones go, unless they are among the newest.
    #[serde(deserialize_with = "duration")]
    pub max_age: Option<Duration>,
    /// So do those that nobody has pulled for so long, unless they are younger.
    #[serde(deserialize_with = "duration")]
    pub unpulled: Option<Duration>,
    /// Manifests without a tag go after this time.
    #[serde(deserialize_with = "duration")]
    pub untagged: Option<Duration>,
    /// A tag that is there never changes, and does not go.
    pub immutable: bool,
}

/// Bytes that may be stored.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// In one repository.
    #[serde(deserialize_with = "bytes")]
    pub repository: Option<u64>,
    /// That one user has brought, in whatever repositories.
    #[serde(deserialize_with = "bytes")]
    pub user: Option<u64>,
    /// In all repositories, what several have counted once.
    #[serde(deserialize_with = "bytes")]
    pub total: Option<u64>,
}

/// A registry whose images are served and kept here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MirrorConfig {
    /// What the names of its repositories begin with here; all names are its where empty.
    pub prefix: String,
    /// The registry, and what the names there begin with: `docker.io`, `ghcr.io/owner`.
    pub upstream: String,
    /// For how long a tag is believed without asking; five minutes where missing.
    #[serde(deserialize_with = "duration")]
    pub fresh: Option<Duration>,
    /// Never ask; only what is here.
    pub offline: bool,
    /// Of images for several platforms, only those for these are fetched; all where empty.
    #[serde(deserialize_with = "platforms")]
    pub platforms: Vec<Platform>,
    /// The login at the upstream, and the file with its password. What it opens is for `users` only.
    pub username: Option<String>,
    #[serde(rename = "password-file")]
    pub password_file: Option<PathBuf>,
    /// Who may have anything of this mirror, where it has a login: names, `@group`, `*` for whoever has logged in.
    pub users: Vec<String>,
}

impl std::str::FromStr for MirrorConfig {
    type Err = isles_spec::Error;

    /// Reads `PREFIX=REGISTRY[/PATH]`, or without a prefix `REGISTRY[/PATH]`. The registry may be a URL.
    fn from_str(text: &str) -> isles_spec::Result<Self> {
        let (prefix, upstream) = text.split_once('=').unwrap_or(("", text));
        let mut mirror =
            MirrorConfig { prefix: prefix.into(), upstream: upstream.into(), ..Default::default() };
        mirror.check().map_err(|why| {
            isles_spec::Error::new(format!("invalid mirror '{text}': {why}"))
                .with_hint("a mirror is written PREFIX=REGISTRY, for example hub=docker.io")
        })?;
        Ok(mirror)
    }
}

impl MirrorConfig {
    fn check(&mut self) -> std::result::Result<(), String> {
        if !self.prefix.is_empty() && !isles_store::is_repository_name(&self.prefix) {
            return Err(format!("'{}' is no name of repositories", self.prefix));
        }
        if self.username.is_some() != self.password_file.is_some() {
            return Err("a login has a username and a password-file".into());
        }
        // What one login opens is not for everybody who asks here.
        if self.username.is_some() && self.users.is_empty() {
            return Err("a mirror with a login says in users whom it is for".into());
        }
        let (is_plain, upstream) = match self.upstream.split_once("://") {
            Some(("https", rest)) => (false, rest),
            Some(("http", rest)) => (true, rest),
            Some((scheme, _)) => return Err(format!("'{scheme}://' leads to no registry")),
            None => (false, self.upstream.as_str()),
        };
        let upstream = upstream.trim_end_matches('/').to_owned();
        let host = upstream.split('/').next().unwrap_or_default();
        if !host.contains(['.', ':']) && host != "localhost" {
            return Err(format!("'{upstream}' does not begin with a registry"));
        }
        let reference = Reference::parse(&format!("{upstream}/x")).map_err(|e| e.to_string())?;
        if is_plain && !reference.is_loopback() {
            return Err("without TLS only registries of this machine are asked; leave 'http://' out".into());
        }
        self.upstream = upstream;
        Ok(())
    }
}

/// Collecting while serving.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Collect {
    /// How often; never where missing.
    #[serde(deserialize_with = "duration")]
    pub every: Option<Duration>,
    /// What is younger stays; an hour where missing.
    #[serde(deserialize_with = "duration")]
    pub grace: Option<Duration>,
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    quantity::parse_bytes(&text).map(Some).map_err(serde::de::Error::custom)
}

fn platforms<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<Platform>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

/// Reads `90s`, `15m`, `12h`, `30d` or `8w`.
pub fn parse_duration(text: &str) -> isles_spec::Result<Duration> {
    let odd = || {
        isles_spec::Error::new(format!("invalid duration '{text}'"))
            .with_hint("a duration is written 90s, 15m, 12h, 30d or 8w")
    };
    let unit = text.chars().last().ok_or_else(odd)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        'w' => 7 * 86400,
        _ => return Err(odd()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| odd())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(odd)
}

impl Config {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Config> {
        let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
        let bytes = isles_store::read_bounded(file, LIMIT).map_err(|e| Error::io("read", path, e))?;
        let bytes =
            bytes.ok_or_else(|| Error::config(path.display(), format!("it has more than {LIMIT} bytes")))?;
        let text = String::from_utf8(bytes).map_err(|e| Error::config(path.display(), e))?;
        Config::parse(&text).map_err(|e| Error::config(path.display(), e))
    }

    fn parse(text: &str) -> std::result::Result<Config, String> {
        let mut config: Config = basic_toml::from_str(text).map_err(|e| e.to_string())?;
        let rules = config.access.iter().map(|rule| &rule.users);
        for users in rules.chain(config.mirror.iter().map(|mirror| &mirror.users)) {
            for group in users.iter().filter_map(|u| u.strip_prefix('@')) {
                if !config.groups.contains_key(group) {
                    return Err(format!("there is no group '{group}'"));
                }
            }
        }
        config.mirror.iter_mut().try_for_each(MirrorConfig::check)?;
        Ok(config)
    }

    /// Who may do what.
    pub fn access(&self) -> Access {
        Access {
            rules: self.access.clone(),
            groups: self.groups.clone(),
            users: self.htpasswd.is_some(),
            anonymous_pull: self.anonymous_pull,
            closed: self
                .mirror
                .iter()
                .filter(|m| !m.users.is_empty())
                .map(|m| (m.prefix.clone(), m.users.clone()))
                .collect(),
        }
    }

    /// The addresses, with the usual port where they name none.
    pub fn addresses(&self) -> Vec<String> {
        if self.listen.is_empty() {
            return vec![format!("127.0.0.1:{PORT}")];
        }
        let whole = |a: &String| match a.rsplit_once(':') {
            _ if a.parse::<std::net::Ipv6Addr>().is_ok() => format!("[{a}]:{PORT}"),
            Some((host, port))
                if port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')) =>
            {
                if host.is_empty() { format!("0.0.0.0:{port}") } else { a.clone() }
            }
            _ => format!("{a}:{PORT}"),
        };
        self.listen.iter().map(whole).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Action;

    #[test]
    fn a_whole_file() {
        let config = Config::parse(
            r#"
            listen = ["0.0.0.0:5000"]
            htpasswd = "/etc/isles/users"
            anonymous-pull = true
            [tls]
            cert = "a"
            key = "b"
            [groups]
            staff = ["ann"]
            [[access]]
            repositories = "course/**"
            users = ["@staff"]
            allow = ["pull", "push"]
            [[retention]]
            tags = "ci-*"
            keep-last = 3
            max-age = "30d"
            untagged = "1d"
            unpulled = "90d"
            [quota]
            repository = "10g"
            user = "1g"
            [[mirror]]
            prefix = "hub"
            upstream = "docker.io"
            fresh = "10m"
            platforms = ["linux/amd64"]
            username = "lab"
            password-file = "/etc/isles/hub"
            users = ["@staff"]
            [collect]
            every = "1h"
            "#,
        )
        .unwrap();
        assert!(config.access().allows(Some("ann"), "course/x", Action::Push));
        assert!(config.anonymous_pull && Config::parse("anonymous_pull = true").unwrap().anonymous_pull);
        assert_eq!(config.quota.repository, Some(10 << 30));
        assert_eq!(config.retention[0].max_age, Some(Duration::from_secs(30 * 86400)));
        assert_eq!(config.mirror[0].fresh, Some(Duration::from_secs(600)));
        assert!(matches!(config.tls, Some(TlsConfig::Files { .. })));
        let own = Config::parse("[tls]\nself-signed = [\"lab.example\"]").unwrap();
        assert_eq!(own.tls, Some(TlsConfig::SelfSigned { names: vec!["lab.example".into()] }));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "lisen = []",
            "[[access]]\nrepositories = \"*\"\nusers = [\"@nobody\"]\nallow = [\"pull\"]",
            "[[access]]\nrepositories = \"*\"\nusers = []\nallow = [\"fly\"]",
            "[quota]\ntotal = \"much\"",
            "[collect]\nevery = \"soon\"",
            "[[mirror]]\nprefix = \"hub\"",
            "[[mirror]]\nprefix = \"UP\"\nupstream = \"docker.io\"",
            "[[mirror]]\nupstream = \"docker.io\"\nusername = \"a\"\npassword-file = \"b\"",
            "[[mirror]]\nupstream = \"docker.io\"\nusername = \"a\"\nusers = [\"*\"]",
            "[[mirror]]\nupstream = \"docker.io\"\nusers = [\"@nobody\"]",
            "[tls]\ncert = \"a\"",
            "=",
        ] {
            assert!(Config::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mirrors_are_names_or_urls() {
        for (text, prefix, upstream) in [
            ("hub=docker.io", "hub", "docker.io"),
            ("ghcr.io/owner", "", "ghcr.io/owner"),
            ("hub=https://docker.io/", "hub", "docker.io"),
            ("m=http://127.0.0.1:5000", "m", "127.0.0.1:5000"),
            ("http://localhost:5000/a", "", "localhost:5000/a"),
        ] {
            let mirror: MirrorConfig = text.parse().unwrap();
            assert_eq!((mirror.prefix.as_str(), mirror.upstream.as_str()), (prefix, upstream), "{text}");
        }
        for (text, why) in [
            ("m=http://docker.io", "without TLS"),
            ("m=ftp://docker.io", "ftp"),
            ("m=docker", "begin with a registry"),
            ("m=", "begin with a registry"),
        ] {
            let said = text.parse::<MirrorConfig>().unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
        assert_eq!(
            Config::parse("[[mirror]]\nupstream = \"https://quay.io\"").unwrap().mirror[0].upstream,
            "quay.io"
        );
    }

    #[test]
    fn addresses_and_durations() {
        let config = |a: &str| Config { listen: vec![a.into()], ..Config::default() };
        for (given, whole) in [
            ("1.2.3.4:80", "1.2.3.4:80"),
            ("host", "host:5000"),
            (":5001", "0.0.0.0:5001"),
            ("[::1]:80", "[::1]:80"),
            ("[::1]", "[::1]:5000"),
            ("::1", "[::1]:5000"),
        ] {
            assert_eq!(config(given).addresses(), [whole], "{given}");
        }
        assert_eq!(Config::default().addresses(), ["127.0.0.1:5000"]);
        for (text, seconds) in [
            ("90s", Some(90)),
            ("2m", Some(120)),
            ("1w", Some(604800)),
            ("", None),
            ("5", None),
            ("-1s", None),
            ("é", None),
        ] {
            assert_eq!(parse_duration(text).ok(), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
