//! What a stage of a definition file begins with: the agents of `Bootstrap:`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use isles_engine::{Step, StepOutput, StepRoot};
use isles_registry::{ClientOptions, Daemon, Library, LibraryName};
use isles_spec::image::{Descriptor, media_type};
use isles_spec::nearest::nearest;
use isles_spec::source::DebianSuite;
use isles_spec::{Platform, Progress, Reference};
use isles_store::Image;

use super::distribution;
use super::execute::of_host;
use super::local::{Base, Known, Signers, base_of_local_image, of_sif};
use super::syntax::Stage;
use crate::debian::{self, Runner};
use crate::error::{Error, Result};
use crate::images;
use crate::key::Key;
use crate::options::BuildOptions;
use crate::position::{Diagnostic, SourceText, Spanned};
use crate::recipe::{Found, Language};
use crate::snapshot::{Build, Layer, Scratch, Snapshot};

/// The agents that are carried out.
const AGENTS: [&str; 18] = [
    "docker",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "library",
    "oras",
    "localimage",
    "debootstrap",
    "yum",
    "dnf",
    "zypper",
    "arch",
    "busybox",
    "scratch",
    "dockerfile",
    "buildkit",
    "shub",
];
/// What others have, and what to do instead.
const OTHERS: [(&str, &str); 4] = [
    ("shub", "the service is gone; many of its images are at docker.io now, which docker reads"),
    ("http", "fetch the image and use localimage"),
    ("https", "fetch the image and use localimage"),
    ("instance", "use docker or localimage"),
];
/// The library that is asked where nobody names one.
const LIBRARY: &str = "https://library.sylabs.io";

/// Makes what the header of a stage says. Whatever the recipe builds on may be odd, which goes to `warnings`.
pub fn bootstrap(
    build: &Build<'_>,
    source: &SourceText,
    stage: &Stage,
    recipe: &Found,
    warnings: &Mutex<Vec<Diagnostic>>,
) -> Result<Base> {
    let Some(agent) = stage.field("bootstrap") else {
        return Err(source
            .at(stage.span, "the header has no Bootstrap")
            .with_suggestion(
                "begin with 'Bootstrap: docker' and 'From: IMAGE', or with 'Bootstrap: debootstrap'",
            )
            .into());
    };
    let from = || {
        stage.field("from").ok_or_else(|| {
            source.at(agent.span, format!("Bootstrap: {} needs From", agent.text)).with_suggestion(
                match agent.text.as_str() {
                    "docker" => "write From: IMAGE, for example From: debian:12",
                    _ => "write From: PATH",
                },
            )
        })
    };
    let name = agent.to_ascii_lowercase();
    let context = recipe.context.as_path();
    if recipe.fetched {
        inside(source, stage, context, agent, &name)?;
    }
    let at = |word: &Spanned, e: Error| crate::dockerfile::execute::place(source, word.span, e);
    let oci = |image: &Image| Base { snapshot: images::base(image, &build.platform), oci: true };
    let plain = |snapshot| Base { snapshot, oci: false };
    match name.as_str() {
        "docker" => {
            let from = from()?;
            let name = docker_name(stage, from);
            images::named(build, &name, &build.platform).map(|image| oci(&image)).map_err(|e| at(from, e))
        }
        "docker-daemon" => {
            let from = from()?;
            let name = from.trim_start_matches("docker-daemon:").trim_start_matches("//");
            let image = Daemon::from_environment().map_err(Error::from);
            let image = image.and_then(|daemon| images::of_daemon(build, &daemon, name));
            image.map(|image| oci(&image)).map_err(|e| at(from, e))
        }
        "docker-archive" | "oci" | "oci-archive" => {
            let from = from()?;
            let (path, select) = path_and_name(context, from);
            let image = images::on_disk(build, &path, select.as_deref()).map_err(|e| at(from, e))?;
            Ok(oci(&image))
        }
        "localimage" => {
            let from = from()?;
            local_image(build, source, stage, context, from).map_err(|e| at(from, e))
        }
        "library" | "oras" => {
            let from = from()?;
            fetched(build, source, stage, from, &name).map_err(|e| at(from, e))
        }
        "scratch" => Ok(plain(images::scratch(&build.platform))),
        "debootstrap" => {
            debian(build, &suite(build, source, stage, agent)?).map(plain).map_err(|e| at(agent, e))
        }
        "dockerfile" | "buildkit" => {
            let from = from()?;
            let snapshot = dockerfile(build, source, stage, &context.join(&from.text), warnings);
            snapshot.map(|snapshot| Base { snapshot, oci: true }).map_err(|e| at(from, e))
        }
        _ if distribution::is_agent(&name) => distribution::bootstrap(build, source, stage, agent).map(plain),
        _ => {
            let error =
                source.at(agent.span, format!("the bootstrap agent '{}' is not supported", agent.text));
            let other = OTHERS.iter().find(|(n, _)| *n == name).map(|(_, hint)| (*hint).to_owned());
            let near = nearest(&name, AGENTS).map(|n| format!("did you mean {n}?"));
            Err(error
                .with_suggestion(other.or(near).unwrap_or_else(|| format!("known are {}", AGENTS.join(", "))))
                .into())
        }
    }
}

/// Refuses what a recipe that was fetched would have of the host.
fn inside(source: &SourceText, stage: &Stage, context: &Path, agent: &Spanned, name: &str) -> Result<()> {
    let refused = |span, what: &str| Err(of_host(source, span, what));
    match name {
        "yum" | "dnf" | "zypper" | "arch" => {
            refused(agent.span, &format!("Bootstrap: {name} runs a program"))
        }
        "docker-daemon" => refused(agent.span, "Bootstrap: docker-daemon takes an image that is"),
        "docker-archive" | "oci" | "oci-archive" | "localimage" | "dockerfile" | "buildkit" => {
            let Some(from) = stage.field("from") else { return Ok(()) };
            let schemes = ["oci:", "oci-archive:", "docker-archive:"];
            let text = schemes.iter().find_map(|s| from.strip_prefix(s)).unwrap_or(&from.text);
            let whole = context.join(text);
            let mut paths = vec![context.join(&from.text), whole.clone()];
            // The name of an image in an archive stands behind its path.
            paths.extend(text.split_once(':').map(|(path, _)| context.join(path)));
            if matches!(name, "dockerfile" | "buildkit") {
                match stage.field("filename") {
                    Some(file) => paths.push(whole.join(&file.text)),
                    // Where it cannot be found, the build says why.
                    None => paths.extend(crate::recipe::find(&whole).ok().map(|found| found.file)),
                }
            }
            let top = context.canonicalize().map_err(Error::io("find", context))?;
            // What is not there is no file of the host's; it is an image of the store, or an error.
            let leads_out = |path: &PathBuf| path.canonicalize().is_ok_and(|path| !path.starts_with(&top));
            match paths.iter().any(leads_out) {
                true => refused(from.span, &format!("'{}' is", from.text)),
                false => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// `From`, with `Registry` and `Namespace` before it.
fn docker_name(stage: &Stage, from: &Spanned) -> String {
    let mut name = from.trim_start_matches("docker://").trim_start_matches("//").to_owned();
    for key in ["namespace", "registry"] {
        if let Some(prefix) = stage.field(key) {
            name = format!("{}/{name}", prefix.trim_end_matches('/'));
        }
    }
    name
}

/// `PATH[:NAME]`, relative to the recipe.
fn path_and_name(context: &Path, from: &Spanned) -> (PathBuf, Option<String>) {
    let whole = context.join(&from.text);
    match from.split_once(':') {
        Some((path, name)) if !whole.exists() => (context.join(path), Some(name.to_owned())),
        _ => (whole, None),
    }
}

/// Who must have signed what a stage begins with.
fn signers(build: &Build<'_>, source: &SourceText, stage: &Stage) -> Result<Signers> {
    let keyring = build.options.definition.keyring.clone();
    let Some(field) = stage.field("fingerprints") else {
        return Ok(Signers { keyring, ..Signers::default() });
    };
    let fingerprints = Signers::parse(field).map_err(|why| {
        source.at(field.span, why).with_suggestion("`gpg --fingerprint` and `apptainer key list` show them")
    })?;
    Ok(Signers { fingerprints, keyring })
}

fn local_image(
    build: &Build<'_>,
    source: &SourceText,
    stage: &Stage,
    context: &Path,
    from: &Spanned,
) -> Result<Base> {
    let signers = signers(build, source, stage)?;
    for scheme in ["oci:", "oci-archive:", "docker-archive:"] {
        if let Some(rest) = from.strip_prefix(scheme) {
            let (path, select) = path_and_name(context, &Spanned::new(rest, from.span));
            return base_of_local_image(build, &path, select.as_deref(), &signers);
        }
    }
    let path = context.join(&from.text);
    if path.exists() {
        return base_of_local_image(build, &path, None, &signers);
    }
    // A name or an ID of an image that is here. Nothing is fetched.
    match build.store.resolve(from, Some(&build.platform)) {
        Ok(image) if signers.fingerprints.is_empty() => {
            let image = images::hold(build, image)?;
            Ok(Base { snapshot: images::base(&image, &build.platform), oci: true })
        }
        Ok(_) => Err(isles_spec::Error::new(format!("the image '{}' of the store has no signatures", from.text))
            .with_hint("only a SIF file has signatures; leave Fingerprints out")
            .into()),
        Err(_) => Err(isles_spec::Error::new(format!("no image at '{}'", path.display()))
            .with_hint("localimage takes a file, a folder or an image that is here; others by name are had with docker")
            .into()),
    }
}

/// An image of a library or of a registry that keeps SIF files, which is fetched only where its digest is new.
fn fetched(
    build: &Build<'_>,
    source: &SourceText,
    stage: &Stage,
    from: &Spanned,
    agent: &str,
) -> Result<Base> {
    let signers = signers(build, source, stage)?;
    let scratch = Scratch::new(build.store)?;
    let path = scratch.0.join("image.sif");
    let create = || {
        let mut options = File::options();
        options.read(true).write(true).create_new(true).open(&path).map_err(Error::io("create", &path))
    };
    // What was never signed by anybody is not asked for again; signatures are looked at in the file.
    let before = |known: &Known<'_>| match signers.fingerprints.is_empty() {
        true => known.base(build),
        false => Ok(None),
    };
    if agent == "oras" {
        let text = from.trim_start_matches("oras://").trim_start_matches("//");
        let reference = Reference::parse(text)?;
        let artifact = build.client.find_sif(&reference, &build.platform)?;
        let name = format!("oras://{text}");
        let known = Known { name: &name, stamp: artifact.file.digest.to_string() };
        if let Some(base) = before(&known)? {
            return Ok(base);
        }
        build.note_work();
        let mut file = create()?;
        build.client.pull_sif(&reference, &build.platform, &mut file, build.progress)?;
        return of_sif(build, file, &known, &signers);
    }
    let name = LibraryName::parse(from)?;
    let options = &build.options.definition;
    let server = stage.field("library").map(|f| f.text.clone()).or_else(|| name.host.clone());
    let usual = options.library.as_deref().unwrap_or(LIBRARY);
    let server = server.unwrap_or_else(|| usual.to_owned());
    // The token is for the caller's library, and a recipe may name any other.
    let token = options.library_token.as_deref().filter(|_| Library::is_same_server(&server, usual));
    // A recipe may name any server.
    let options = ClientOptions { guarded: true, ..build.options.bootstrap.client.clone() };
    let library = Library::new(&options, &server, token)?;
    let architecture = &build.platform.architecture;
    let image = library.find(&name, architecture)?;
    let shown = name.to_string();
    if let Some(digest) = image.digest() {
        let known = Known { name: &shown, stamp: digest.to_string() };
        if let Some(base) = before(&known)? {
            return Ok(base);
        }
    }
    build.note_work();
    let mut file = create()?;
    let image = library.pull(&name, architecture, &mut file, build.progress)?;
    // An old library does not tell the digest: the file is taken for another one each time.
    let stamp = image.digest().map_or_else(isles_store::random_name, |digest| digest.to_string());
    of_sif(build, file, &Known { name: &shown, stamp }, &signers)
}

/// A Dockerfile of a folder, as a stage.
fn dockerfile(
    build: &Build<'_>,
    source: &SourceText,
    stage: &Stage,
    context: &Path,
    warnings: &Mutex<Vec<Diagnostic>>,
) -> Result<Snapshot> {
    if let Some(frontend) = stage.field("frontend").filter(|f| f.text != "dockerfile.v0") {
        return Err(source
            .at(frontend.span, format!("the frontend '{}' is not supported", frontend.text))
            .with_suggestion("Dockerfiles are built by dockerfile.v0, which need not be named")
            .into());
    }
    let found = match stage.field("filename") {
        Some(name) => {
            let file = context.join(&name.text);
            let context = context.to_owned();
            Found { file, text: None, language: Language::Dockerfile, context, fetched: false, made: None }
        }
        None => crate::recipe::find(context)?,
    };
    if found.language != Language::Dockerfile {
        let why = format!("'{}' is no Dockerfile", found.file.display());
        return Err(isles_spec::Error::new(why).with_hint("name it with Filename").into());
    }
    let arguments = stage.field("buildargs").map(|f| f.text.clone()).unwrap_or_default();
    let mut build_args = std::collections::BTreeMap::new();
    for word in arguments.split(|c: char| c.is_whitespace() || c == ',').filter(|w| !w.is_empty()) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        build_args.insert(name.to_owned(), value.to_owned());
    }
    let options = BuildOptions {
        build_args,
        target: stage.field("target").map(|f| f.text.clone()),
        tags: Vec::new(),
        labels: Default::default(),
        ..build.options.clone()
    };
    let inner = build.inner(&options);
    let text = SourceText::new(found.file.display().to_string(), &found.read()?);
    let (snapshot, odd) = crate::dockerfile::execute::execute(&inner, &found, text)?;
    for layer in &snapshot.layers {
        build.lease.hold(&layer.diff_id)?;
    }
    if inner.worked() {
        build.note_work();
    }
    warnings.lock().unwrap_or_else(PoisonError::into_inner).extend(odd);
    Ok(snapshot)
}

/// What the header of a debootstrap asks for.
fn suite(build: &Build<'_>, source: &SourceText, stage: &Stage, agent: &Spanned) -> Result<DebianSuite> {
    let version = stage.field("osversion").ok_or_else(|| {
        source
            .at(agent.span, "Bootstrap: debootstrap needs OSVersion")
            .with_suggestion("write OSVersion: SUITE, for example OSVersion: bookworm")
    })?;
    let include = stage.field("include").map(|f| f.text.clone()).unwrap_or_default();
    let words = include.split(|c: char| c.is_whitespace() || c == ',').filter(|w| !w.is_empty());
    let mirror =
        stage.field("mirrorurl").map(|f| f.replace("%{OSVERSION}", version).trim_end_matches('/').to_owned());
    Ok(DebianSuite {
        suite: version.text.clone(),
        include: words.map(str::to_owned).collect(),
        variant: None,
        mirror,
        architecture: architecture(build),
    })
}

/// The architecture, where it is not the host's.
fn architecture(build: &Build<'_>) -> Option<String> {
    (build.platform.architecture != Platform::host().architecture)
        .then(|| build.platform.architecture.clone())
}

/// A Debian system as a stage.
pub fn debian(build: &Build<'_>, suite: &DebianSuite) -> Result<Snapshot> {
    // Two stages of the same suite are bootstrapped once.
    let _turn = build.turn(&Key::new("suite").with("suite", format!("{suite:?}")).finish());
    let mut options = build.options.bootstrap.clone();
    options.cache &= !build.options.no_cache;
    options.source_date_epoch = build.epoch.or(options.source_date_epoch);
    let runner = EngineRunner { build };
    let made = debian::bootstrap(&runner, build.store, build.lease, suite, &options, build.progress)?;
    if !made.reused {
        build.note_work();
    }
    let layer = Layer {
        blob: Descriptor::new(media_type::OCI_LAYER, made.diff_id.clone(), made.size),
        diff_id: made.diff_id.clone(),
    };
    let created_by = format!("debian://{} ({} packages)", suite.suite, made.packages.len());
    Ok(images::of_layer(build, layer, made.config(), made.date, created_by))
}

/// Runs the packages' scripts in the sandbox.
struct EngineRunner<'b> {
    build: &'b Build<'b>,
}

impl Runner for EngineRunner<'_> {
    fn run(
        &self,
        root: &Path,
        argv: Vec<String>,
        env: Vec<String>,
        progress: &dyn Progress,
        work: u64,
    ) -> debian::Result<(u8, Vec<u8>)> {
        let mut step = Step::new(StepRoot::Directory(root), argv);
        step.env = env;
        step.interpreter =
            isles_engine::foreign::interpreter(&self.build.platform).map_err(isles_engine::Error::from)?;
        let watched = LastLine { inner: progress, partial: Mutex::default() };
        let outcome = self.build.engine.run_step(&step, StepOutput { progress: &watched, id: work })?;
        Ok((outcome.exit.code(), outcome.tail))
    }
}

/// Shows the output of a program as the present state of the work: worth a look while it lasts, and nothing
/// that a log should have.
struct LastLine<'p> {
    inner: &'p dyn Progress,
    partial: Mutex<Vec<u8>>,
}

impl Progress for LastLine<'_> {
    fn begin(&self, what: &str, total: Option<u64>) -> u64 {
        self.inner.begin(what, total)
    }
    fn advance(&self, id: u64, bytes: u64) {
        self.inner.advance(id, bytes);
    }
    fn status(&self, id: u64, text: &str) {
        self.inner.status(id, text);
    }
    fn end(&self, id: u64, text: &str) {
        self.inner.end(id, text);
    }
    fn output(&self, id: u64, bytes: &[u8]) {
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        partial.extend_from_slice(bytes);
        let Some(end) = partial.iter().rposition(|b| *b == b'\n') else { return };
        let whole: Vec<u8> = partial.drain(..=end).collect();
        let text = String::from_utf8_lossy(&whole);
        if let Some(line) = text.lines().rev().find(|line| !line.trim().is_empty()) {
            self.inner.status(id, line.trim());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Told(Mutex<Vec<String>>);

    impl Progress for Told {
        fn begin(&self, _: &str, _: Option<u64>) -> u64 {
            7
        }
        fn advance(&self, _: u64, _: u64) {}
        fn status(&self, id: u64, text: &str) {
            self.0.lock().unwrap().push(format!("{id} {text}"));
        }
        fn end(&self, _: u64, _: &str) {}
        fn output(&self, _: u64, bytes: &[u8]) {
            panic!("{bytes:?} would be in the log");
        }
    }

    #[test]
    fn output_is_a_state() {
        let told = Told::default();
        let watched = LastLine { inner: &told, partial: Mutex::default() };
        for part in ["Setting up", " libc6 ...\nSetting up awk", " ...\nSetting up bash\n\n", "no end"] {
            watched.output(7, part.as_bytes());
        }
        assert_eq!(*told.0.lock().unwrap(), ["7 Setting up libc6 ...", "7 Setting up bash"]);
    }
}
