//! What a stage of a definition file begins with: the agents of `Bootstrap:`.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use isles_engine::{Step, StepOutput, StepRoot};
use isles_spec::image::{Descriptor, media_type};
use isles_spec::nearest::nearest;
use isles_spec::source::DebianSuite;
use isles_spec::{Platform, Progress};

use super::syntax::Stage;
use crate::debian::{self, Runner};
use crate::error::{Error, Result};
use crate::images;
use crate::key::Key;
use crate::position::{SourceText, Spanned};
use crate::snapshot::{Build, Layer, Snapshot};

/// The agents that are carried out.
const AGENTS: [&str; 7] =
    ["docker", "docker-archive", "oci", "oci-archive", "localimage", "debootstrap", "scratch"];
/// Agents that others have, and what to do instead.
const OTHERS: [(&str, &str); 14] = [
    ("docker-daemon", "save the image with `docker save` and use docker-archive"),
    ("library", "images in the SIF format come in a later version; use docker"),
    ("oras", "images in the SIF format come in a later version; use docker"),
    ("shub", "the service is gone; use docker"),
    ("yum", "use docker and an image of the distribution"),
    ("dnf", "use docker and an image of the distribution"),
    ("zypper", "use docker and an image of the distribution"),
    ("arch", "use docker and From: archlinux"),
    ("busybox", "use docker and From: busybox"),
    ("buildkit", "build the Dockerfile with `isles build` and use docker"),
    ("dockerfile", "build the Dockerfile with `isles build` and use docker"),
    ("http", "fetch the image and use localimage"),
    ("https", "fetch the image and use localimage"),
    ("instance", "use docker or localimage"),
];

/// Makes what the header of a stage says.
pub fn bootstrap(build: &Build<'_>, source: &SourceText, stage: &Stage, context: &Path) -> Result<Snapshot> {
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
    let at = |word: &Spanned, e: Error| crate::dockerfile::execute::place(source, word.span, e);
    match name.as_str() {
        "docker" => {
            let from = from()?;
            let name = docker_name(stage, from);
            let image = images::named(build, &name, &build.platform).map_err(|e| at(from, e))?;
            Ok(images::base(&image, &build.platform))
        }
        "docker-archive" | "oci" | "oci-archive" => {
            let from = from()?;
            let (path, select) = path_and_name(context, from);
            let image = images::on_disk(build, &path, select.as_deref()).map_err(|e| at(from, e))?;
            Ok(images::base(&image, &build.platform))
        }
        "localimage" => {
            let from = from()?;
            local_image(build, context, from).map_err(|e| at(from, e))
        }
        "scratch" => Ok(images::scratch(&build.platform)),
        "debootstrap" => debian(build, &suite(build, source, stage, agent)?).map_err(|e| at(agent, e)),
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

fn local_image(build: &Build<'_>, context: &Path, from: &Spanned) -> Result<Snapshot> {
    for scheme in ["oci:", "oci-archive:", "docker-archive:"] {
        if let Some(rest) = from.strip_prefix(scheme) {
            let (path, select) = path_and_name(context, &Spanned::new(rest, from.span));
            let image = images::on_disk(build, &path, select.as_deref())?;
            return Ok(images::base(&image, &build.platform));
        }
    }
    let path = context.join(&from.text);
    if !path.exists() {
        let error = isles_spec::Error::new(format!("no image at '{}'", path.display()));
        return Err(error
            .with_hint("localimage takes a file or a folder; an image by name is had with docker")
            .into());
    }
    if path.is_dir() && !path.join("oci-layout").exists() {
        return images::of_folder(build, &path);
    }
    let image = images::on_disk(build, &path, None)?;
    Ok(images::base(&image, &build.platform))
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
    let made = debian::bootstrap(&runner, build.store, &build.lease, suite, &options, build.progress)?;
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
