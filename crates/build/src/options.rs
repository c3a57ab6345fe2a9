//! What a caller may say about a build, and what it gets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use isles_spec::{NetworkMode, Platform, PullPolicy, Reference, Rlimit};
use isles_store::{Image, Lease};

use crate::attest::Attest;
use crate::cache_transfer::{CachePlace, CacheSource, CacheTarget};
use crate::debian::BootstrapOptions;
use crate::definition::DefinitionOptions;
use crate::named::NamedContexts;
use crate::output::Made;
use crate::position::Diagnostic;

/// What a caller may say about a build. The default is right for most.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Names for the image.
    pub tags: Vec<Reference>,
    /// Values for `ARG`, and for `{{ NAME }}` of definition files.
    pub build_args: BTreeMap<String, String>,
    /// The stage to build; the last one where nothing is said.
    pub target: Option<String>,
    /// Make every step anew. What comes of it is kept for later builds.
    pub no_cache: bool,
    /// Stages whose steps are all made anew, by name.
    pub no_cache_filter: Vec<String>,
    /// When base images are fetched.
    pub pull: PullPolicy,
    /// What to build for; this machine's platform where nothing is said.
    pub platforms: Vec<Platform>,
    /// Labels beside those of the recipe.
    pub labels: BTreeMap<String, String>,
    /// What names of a recipe stand for instead of stages and images.
    pub contexts: NamedContexts,
    /// What is attested of the image.
    pub attest: Attest,
    /// Caches of other builders that are looked into.
    pub cache_from: Vec<CacheSource>,
    /// Where this build's cache goes, for other builders.
    pub cache_to: Vec<CacheTarget>,
    /// What steps get by `RUN --mount=type=secret`, by ID; and what opens repositories and URLs, under the names
    /// that BuildKit has for it.
    pub secrets: BTreeMap<String, SecretSource>,
    /// SSH agents for `RUN --mount=type=ssh` and for git, by ID: the socket of one, or keys in files.
    pub ssh: BTreeMap<String, Vec<PathBuf>>,
    /// Rights that steps may ask for.
    pub allow: BTreeSet<Entitlement>,
    /// Steps trust the certificate authorities of the host.
    pub host_ca: bool,
    /// The network of steps that ask for none themselves.
    pub network: NetworkMode,
    /// Lines of /etc/hosts that steps get beside the host's, as `NAME:ADDRESS`.
    pub extra_hosts: Vec<String>,
    /// Size of a step's /dev/shm in bytes; 64 MiB where nothing is said.
    pub shm_size: Option<u64>,
    /// Limits of a step's processes.
    pub rlimits: Vec<Rlimit>,
    /// Later times become this one, and it is when the image was made (seconds since 1970).
    pub source_date_epoch: Option<i64>,
    /// Leave `%test` out.
    pub no_test: bool,
    /// Report steps that were found also where nothing has to be made.
    pub every_step: bool,
    /// The caller shows no output of steps, so errors bring its end along.
    pub quiet: bool,
    /// How Debian systems are bootstrapped.
    pub bootstrap: BootstrapOptions,
    /// What counts for definition files only.
    pub definition: DefinitionOptions,
}

impl BuildOptions {
    /// Whether every step of a stage of this name is made anew.
    pub(crate) fn renews(&self, stage: Option<&str>) -> bool {
        let named = |name: &str| self.no_cache_filter.iter().any(|asked| asked.eq_ignore_ascii_case(name));
        self.no_cache || stage.is_some_and(named)
    }

    /// The image holds its own cache, by option or as a build argument.
    pub(crate) fn inline_cache(&self) -> bool {
        let argument = self.build_args.get("BUILDKIT_INLINE_CACHE").map(String::as_str);
        matches!(argument, Some("1" | "true")) || self.cache_to.iter().any(|c| c.place == CachePlace::Inline)
    }

    /// The time that the caller fixes, by option, as a build argument or in the environment.
    pub(crate) fn epoch(&self) -> Option<i64> {
        let given = || self.build_args.get("SOURCE_DATE_EPOCH")?.parse().ok();
        self.source_date_epoch.or_else(given).or_else(inherited_epoch)
    }
}

/// The time that the caller's environment fixes (`SOURCE_DATE_EPOCH`, seconds since 1970).
pub fn inherited_epoch() -> Option<i64> {
    std::env::var("SOURCE_DATE_EPOCH").ok()?.parse().ok()
}

/// Where a secret comes from. It is read when somebody needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    File(PathBuf),
    /// A variable of the caller's environment.
    Variable(String),
}

impl From<PathBuf> for SecretSource {
    fn from(file: PathBuf) -> Self {
        SecretSource::File(file)
    }
}

/// A right that a recipe has only where its user grants it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entitlement {
    /// `RUN --network=host`
    NetworkHost,
    /// `RUN --security=insecure`
    SecurityInsecure,
    /// `RUN --device`: any, or one by its name.
    Device(Option<String>),
}

impl std::str::FromStr for Entitlement {
    type Err = isles_spec::Error;

    fn from_str(text: &str) -> Result<Self, isles_spec::Error> {
        Ok(match text {
            "network.host" => Entitlement::NetworkHost,
            "security.insecure" => Entitlement::SecurityInsecure,
            "device" => Entitlement::Device(None),
            _ => match text.strip_prefix("device=") {
                Some(name) if !name.is_empty() => Entitlement::Device(Some(name.to_owned())),
                _ => {
                    return Err(isles_spec::Error::new(format!("no right is called '{text}'"))
                        .with_hint("known are network.host, security.insecure, device and device=NAME"));
                }
            },
        })
    }
}

impl fmt::Display for Entitlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entitlement::NetworkHost => f.write_str("network.host"),
            Entitlement::SecurityInsecure => f.write_str("security.insecure"),
            Entitlement::Device(None) => f.write_str("device"),
            Entitlement::Device(Some(name)) => write!(f, "device={name}"),
        }
    }
}

/// What a build gave.
#[derive(Debug)]
pub struct Built {
    /// The image for the first platform.
    pub image: Image,
    /// What was made for each platform.
    pub made: Vec<Made>,
    /// The time that new things have, where the caller fixes it (seconds since 1970).
    pub epoch: Option<i64>,
    /// Nothing had to be made.
    pub cached: bool,
    /// What is odd about the recipe.
    pub warnings: Vec<Diagnostic>,
    /// Keeps the image from being collected until something else stands on it.
    pub lease: Lease,
}
