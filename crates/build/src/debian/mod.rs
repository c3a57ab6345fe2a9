//! A Debian system out of nothing but an archive: `debian://SUITE` and `Bootstrap: debootstrap`.
//!
//! The way of a package: a signed index ([`release`]) vouches for lists of packages ([`packages`]), from
//! which those that are needed are chosen ([`resolve`]); they are fetched ([`archive`]), unpacked by all
//! processors at once ([`deb`], [`tree`]), made known to dpkg ([`database`]) and configured by it inside the
//! sandbox ([`configure`]). The result is one layer. It depends on the packages and the options alone, so it
//! is found again by them.
//!
//! Specifications: Debian Policy 4.7, DebianRepository/Format (wiki.debian.org), deb(5), deb822(5).

mod archive;
pub(crate) mod compression;
mod configure;
mod control;
mod database;
mod deb;
mod error;
mod packages;
mod release;
mod resolve;
mod source;
mod tidy;
mod tree;
mod version;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use isles_registry::ClientOptions;
use isles_registry::web::Web;
use isles_spec::image::ContainerConfig;
use isles_spec::source::DebianSuite;
use isles_spec::{Digest, Platform, Progress};
use isles_store::{BuildRecord, CommitOptions, Lease, Store};
use serde::{Deserialize, Serialize};

use archive::{Freshness, Place, Suite};
use database::Installed;
pub use error::{Error, Result};
use packages::Index;
use release::{Clock, Listed};
pub use resolve::Variant;
use resolve::{Selection, Wanted};
use tree::{Tree, Unpacked};

/// Changes with everything that makes the same packages give another tree.
const RECIPE: &str = "debian 1";
/// Connections to the mirror at once.
const CONNECTIONS: usize = 6;

/// What a caller may say beside the suite. The default is right for most.
#[derive(Debug, Clone)]
pub struct BootstrapOptions {
    /// Archive areas; empty is `main`.
    pub components: Vec<String>,
    /// Packages to leave out, with what only they would bring.
    pub exclude: Vec<String>,
    /// Take what packages recommend.
    pub recommends: bool,
    /// Suites beside the main one that may have later versions: its `-updates`, or a URL and a suite.
    pub also: Vec<(Option<String>, String)>,
    /// Where the suite names no mirror; before the machine's own apt configuration.
    pub mirror: Option<String>,
    /// Keyrings to check the archive with; empty is the machine's own.
    pub keyring: Vec<PathBuf>,
    /// Refuse an index past its `Valid-Until`. Off for archives of old states.
    pub check_valid_until: bool,
    /// Do not ask the mirror whether it has a newer index, if one is here.
    pub offline: bool,
    /// An index that was asked for so recently is used without asking.
    pub max_age: Duration,
    /// Later times become this one; without it, the newest time of a file in the packages is taken.
    pub source_date_epoch: Option<i64>,
    /// Use and keep finished layers.
    pub cache: bool,
    /// How to speak to the mirror.
    pub client: ClientOptions,
}

impl Default for BootstrapOptions {
    fn default() -> Self {
        BootstrapOptions {
            components: Vec::new(),
            exclude: Vec::new(),
            recommends: false,
            also: Vec::new(),
            mirror: None,
            keyring: Vec::new(),
            check_valid_until: true,
            offline: false,
            max_age: Duration::from_secs(3600),
            source_date_epoch: crate::options::inherited_epoch(),
            cache: true,
            client: ClientOptions { guarded: true, ..ClientOptions::default() },
        }
    }
}

/// A Debian system as a layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bootstrapped {
    /// The layer's diff ID, which is also the digest of its uncompressed blob.
    pub diff_id: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Name and version of the packages.
    pub packages: BTreeMap<String, String>,
    /// What the times of files were cut off at, seconds since 1970.
    pub date: i64,
    /// The layer was there already.
    #[serde(skip)]
    pub reused: bool,
}

impl Bootstrapped {
    /// What an image of the layer starts with.
    pub fn config(&self) -> ContainerConfig {
        ContainerConfig {
            env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
            cmd: Some(vec!["bash".into()]),
            ..ContainerConfig::default()
        }
    }
}

/// What runs a program as root in a root file system: the engine, or a test's stand-in.
pub trait Runner {
    /// Runs the program, with the last line of its output as the status of `work`; gives its exit code and the
    /// end of its output.
    fn run(
        &self,
        root: &Path,
        argv: Vec<String>,
        env: Vec<String>,
        progress: &dyn Progress,
        work: u64,
    ) -> Result<(u8, Vec<u8>)>;
}

/// Makes a Debian system, or finds one that was made of the same packages with the same options. `lease`
/// holds the layer until the caller has made it part of something.
///
/// The first run fetches some 40 MB. A later one asks the mirror whether its index has changed, at most
/// once in [`BootstrapOptions::max_age`]; where it cannot be reached, what is here is used.
pub fn bootstrap(
    runner: &dyn Runner,
    store: &Store,
    lease: &Lease,
    suite: &DebianSuite,
    options: &BootstrapOptions,
    progress: &dyn Progress,
) -> Result<Bootstrapped> {
    let plan = Plan::new(suite, options)?;
    let web = Web::guarded(&options.client);
    let keyring = release::keyring(&plan.keyring)?;
    let clock = Clock { now: archive::now(), check_valid_until: options.check_valid_until };
    let freshness = Freshness { max_age: options.max_age, offline: options.offline };
    let mut suites = Vec::new();
    for place in &plan.places {
        suites.push(Suite::open(store, &web, place.clone(), &keyring, clock, freshness, progress)?);
    }
    // The same indices and wishes have led to the same packages before.
    let shortcut = plan.key(suites.iter().map(|s| s.digest.as_slice()));
    if options.cache
        && let Some(record) = store.build_record(lease, &shortcut)?
        && let Ok(mut known) = serde_json::from_value::<Bootstrapped>(record.value)
    {
        known.reused = true;
        return Ok(known);
    }
    let mut texts = Vec::new();
    for (at, suite) in suites.iter().enumerate() {
        for component in &suite.place.components {
            texts.push((at, suite.packages(component, &plan.architecture, progress)?));
            if !suite.release.all_included
                && suite.release.file(&format!("{component}/binary-all/Packages.gz")).is_some()
            {
                texts.push((at, suite.packages(component, "all", progress)?));
            }
        }
    }
    let mut index = Index::default();
    for (at, text) in &texts {
        index.add(text, *at).map_err(|why| {
            Error::malformed(format!("a list of packages of '{}'", suites[*at].place.url), why)
        })?;
    }
    index.finish();
    let selection = resolve::resolve(&index, &plan.wanted(options))?;
    let key = plan.key(selection.packages.values().map(|p| p.sha256.as_slice()));
    let mut made = None;
    if options.cache
        && let Some(record) = store.build_record(lease, &key)?
        && let Ok(mut known) = serde_json::from_value::<Bootstrapped>(record.value)
    {
        known.reused = true;
        made = Some(known);
    }
    let made = match made {
        Some(made) => made,
        None => Bootstrap { runner, store, lease, suites: &suites, plan: &plan, options, progress }
            .make(&selection)?,
    };
    if options.cache {
        let value = serde_json::to_value(&made)
            .map_err(|e| Error::malformed("the record of the layer", e.to_string()))?;
        let record = BuildRecord { holds: vec![made.diff_id.clone()], value };
        store.put_build_record(&key, &record)?;
        store.put_build_record(&shortcut, &record)?;
    }
    Ok(made)
}

/// What is to be made, with everything that was left open decided.
struct Plan {
    places: Vec<Place>,
    variant: Variant,
    include: Vec<String>,
    architecture: String,
    keyring: Vec<PathBuf>,
    /// Options that shape the tree, for the key.
    shape: String,
}

impl Plan {
    fn new(suite: &DebianSuite, options: &BootstrapOptions) -> Result<Plan> {
        let name = suite.suite.as_str();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '+' | '_');
        if name.is_empty() || !name.chars().all(plain) || name.starts_with(['.', '-']) {
            return Err(isles_spec::Error::new(format!("invalid Debian suite '{name}'"))
                .with_hint("a suite is a word such as bookworm or stable")
                .into());
        }
        let hosts = source::of_host(Path::new("/"));
        let mut keyring = options.keyring.clone();
        let mut base = |wanted: &Option<String>, suite: &str| -> Result<String> {
            let given = wanted.as_deref().or(options.mirror.as_deref());
            if let Some(url) = given {
                return Ok(url.trim_end_matches('/').to_owned());
            }
            let source =
                source::choose(&hosts, suite).ok_or_else(|| Error::NoMirror { suite: suite.to_owned() })?;
            if options.keyring.is_empty() {
                keyring.extend(source.signed_by.iter().filter(|k| k.exists()).cloned());
            }
            Ok(source.url.clone())
        };
        let components = match options.components.as_slice() {
            [] => vec!["main".to_owned()],
            some => some.to_vec(),
        };
        let mut places = vec![Place {
            url: base(&suite.mirror, name)?,
            suite: name.to_owned(),
            components: components.clone(),
        }];
        for (url, also) in &options.also {
            let mirror = url.clone().or_else(|| suite.mirror.clone());
            let url = base(&mirror, also)?;
            places.push(Place { url, suite: also.clone(), components: components.clone() });
        }
        keyring.sort();
        keyring.dedup();
        let architecture = match &suite.architecture {
            Some(architecture) => debian_architecture(architecture).to_owned(),
            None => debian_architecture(&Platform::host().architecture).to_owned(),
        };
        let variant: Variant = suite.variant.as_deref().unwrap_or_default().parse()?;
        let mut shape = format!(
            "{RECIPE}\n{architecture}\n{}\n{:?}\n{}\n",
            variant.name(),
            options.source_date_epoch,
            options.recommends
        );
        for place in &places {
            shape.push_str(&format!("{} {} {}\n", place.url, place.suite, place.components.join(" ")));
        }
        let mut include = suite.include.clone();
        include.sort();
        include.dedup();
        shape.push_str(&format!("+{}\n-{}\n", include.join(" "), options.exclude.join(" ")));
        Ok(Plan { places, variant, include, architecture, keyring, shape })
    }

    fn wanted<'w>(&'w self, options: &'w BootstrapOptions) -> Wanted<'w> {
        Wanted {
            variant: self.variant,
            include: &self.include,
            exclude: &options.exclude,
            recommends: options.recommends,
            architecture: &self.architecture,
        }
    }

    fn key<'k>(&'k self, parts: impl Iterator<Item = &'k [u8]>) -> Digest {
        Store::cache_key(std::iter::once(self.shape.as_bytes()).chain(parts))
    }
}

/// Debian's name for an architecture that others call differently.
fn debian_architecture(name: &str) -> &str {
    match name {
        "386" => "i386",
        "arm" => "armhf",
        "mips64le" => "mips64el",
        "ppc64le" => "ppc64el",
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// One bootstrap under way.
struct Bootstrap<'b> {
    runner: &'b dyn Runner,
    store: &'b Store,
    lease: &'b Lease,
    suites: &'b [Suite<'b>],
    plan: &'b Plan,
    options: &'b BootstrapOptions,
    progress: &'b dyn Progress,
}

/// A package with what its archive said.
struct Opened {
    control: deb::Control,
    unpacked: Unpacked,
}

impl Bootstrap<'_> {
    fn make(&self, selection: &Selection<'_>) -> Result<Bootstrapped> {
        let root = self.store.scratch_dir()?;
        let made = self.make_in(&root, selection);
        if made.is_err() {
            let _ = isles_store::remove_tree(&root);
        }
        made
    }

    fn make_in(&self, root: &Path, selection: &Selection<'_>) -> Result<Bootstrapped> {
        let io = |operation| Error::io::<std::io::Error>(operation, root);
        let tree = Tree::open(root, self.store.ownership()).map_err(io("open"))?;
        tidy::merged_usr(&tree, &self.plan.architecture).map_err(io("prepare"))?;
        let opened = self.packages(&tree, selection)?;
        let mut directories = BTreeMap::new();
        let mut installed = Vec::new();
        let mut newest = 0;
        for (package, opened) in selection.packages.values().zip(&opened) {
            newest = newest.max(opened.unpacked.newest);
            installed.push(Installed {
                name: package.name,
                architecture: package.architecture,
                control: &opened.control,
                unpacked: &opened.unpacked,
            });
        }
        // base-files says how the directories are that nearly everyone has.
        let mut order: Vec<&Installed<'_>> = installed.iter().collect();
        order.sort_by_key(|p| p.name != "base-files");
        for package in order {
            for (path, meta) in &package.unpacked.directories {
                directories.entry(path.as_slice()).or_insert(*meta);
            }
        }
        for (path, meta) in directories {
            tree.set_directory(path, meta).map_err(io("unpack into"))?;
        }
        let date = self.options.source_date_epoch.unwrap_or(newest);
        database::write(&tree, &installed).map_err(io("write dpkg's database in"))?;
        tidy::apt(&tree, &self.plan.places, &self.plan.architecture, selection)
            .map_err(io("set up apt in"))?;
        configure::prepare(&tree).map_err(io("prepare"))?;
        let script = configure::script(&installed, |name| selection.base.contains(name));
        let work = self.progress.begin(&format!("configuring {} packages", installed.len()), None);
        let argv = vec!["/bin/sh".into(), "-c".into(), script];
        let ran = self.runner.run(root, argv, configure::environment(date), self.progress, work);
        let fine = ran.as_ref().is_ok_and(|(code, _)| *code == 0);
        self.progress.end(work, if fine { "done" } else { "failed" });
        let (code, tail) = ran?;
        if code != 0 {
            return Err(Error::Configure { code, tail: String::from_utf8_lossy(&tail).into_owned() });
        }
        configure::restore(&tree).map_err(io("restore"))?;
        configure::audit(&tree)?;
        tidy::clean(&tree).map_err(io("clean"))?;
        let options = CommitOptions { clamp_mtime: Some(date), ..CommitOptions::default() };
        let layer = self.store.layer_from_scratch(self.lease, root, &options)?;
        let version = |p: &packages::Package<'_>| (p.name.to_owned(), p.version.to_owned());
        Ok(Bootstrapped {
            diff_id: layer.diff_id,
            size: layer.size,
            packages: selection.packages.values().map(version).collect(),
            date,
            reused: false,
        })
    }

    /// Gets the packages and unpacks them. As one piece of work, whose amount is what has to be fetched.
    fn packages(&self, tree: &Tree, selection: &Selection<'_>) -> Result<Vec<Opened>> {
        let (mut missing, mut bytes) = (0, 0);
        for package in selection.packages.values() {
            if !self.suites[package.origin].has(&listed(package))? {
                (missing, bytes) = (missing + 1, bytes + package.size);
            }
        }
        let what = match missing {
            0 => format!("unpacking {} packages", selection.packages.len()),
            1 => "fetching 1 package".to_owned(),
            n => format!("fetching {n} packages"),
        };
        let work = self.progress.begin(&what, (bytes > 0).then_some(bytes));
        let opened = self.fetch_and_unpack(tree, selection, work);
        self.progress.end(work, if opened.is_ok() { "done" } else { "failed" });
        opened
    }

    /// Fetches the packages over several connections, and unpacks each with as many threads as there are
    /// processors as soon as it is here. The result is in the order of the selection.
    fn fetch_and_unpack(&self, tree: &Tree, selection: &Selection<'_>, work: u64) -> Result<Vec<Opened>> {
        // The large ones first, so that no thread is left alone with one at the end.
        let mut jobs: Vec<(usize, &packages::Package<'_>)> =
            selection.packages.values().enumerate().collect();
        jobs.sort_by_key(|(_, p)| std::cmp::Reverse(p.size));
        let jobs = Mutex::new(VecDeque::from(jobs));
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let (sender, receiver) = mpsc::channel::<Result<(usize, &packages::Package<'_>, File)>>();
        let receiver = Mutex::new(receiver);
        let done = Mutex::new(Vec::new());
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let fail = |e: Error| {
            lock(&jobs).clear();
            lock(&failure).get_or_insert(e);
        };
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS {
                let sender = sender.clone();
                let (jobs, suites, progress) = (&jobs, self.suites, self.progress);
                scope.spawn(move || {
                    loop {
                        let Some((at, package)) = lock(jobs).pop_front() else { return };
                        let fetched = fetch(suites, package, progress, work);
                        if sender.send(fetched.map(|file| (at, package, file))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let next = lock(&receiver).recv();
                        match next {
                            Err(_) => return,
                            Ok(Err(e)) => fail(e),
                            Ok(Ok(_)) if lock(&failure).is_some() => {}
                            Ok(Ok((at, package, file))) => match unpack(tree, package, file) {
                                Ok(opened) => lock(&done).push((at, opened)),
                                Err(e) => fail(e),
                            },
                        }
                    }
                });
            }
        });
        if let Some(failure) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(failure);
        }
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(at, _)| *at);
        Ok(done.into_iter().map(|(_, opened)| opened).collect())
    }
}

/// Gets a package from the cache or from the archive whose list names it.
fn fetch(
    suites: &[Suite<'_>],
    package: &packages::Package<'_>,
    progress: &dyn Progress,
    work: u64,
) -> Result<File> {
    let suite = &suites[package.origin];
    // A plus may mean a blank to some servers; Debian's versions are full of them.
    let url = format!("{}/{}", suite.place.url, package.filename.replace('+', "%2b"));
    suite.part(&url, &listed(package), progress, work)
}

/// What the list says of a package's file.
fn listed(package: &packages::Package<'_>) -> Listed {
    Listed { sha256: package.sha256, size: package.size }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unpack(tree: &Tree, package: &packages::Package<'_>, file: File) -> Result<Opened> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::InvalidData => {
            Error::Refused { package: package.name.to_owned(), reason: source.to_string() }
        }
        _ => Error::Unpack { package: package.name.to_owned(), source },
    };
    let (control, data) = deb::open(file).map_err(failed)?;
    let conffiles: HashSet<String> = database::conffiles(&control).collect();
    let sums = !control.files.contains_key("md5sums");
    let unpacked = tree.unpack(data, &conffiles, sums).map_err(failed)?;
    Ok(Opened { control, unpacked })
}

#[cfg(test)]
mod tests;
