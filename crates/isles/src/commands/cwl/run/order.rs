//! What is to be run, as it is named and read: the document, the job with its requirements and overrides, and what is
//! wrong with them.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use isles_cwl::document::{Diagnostic, Documents};
use isles_cwl::job;
use isles_cwl::load::Loader;
use isles_cwl::model::{Process, Version};
use isles_cwl::overrides::{self, Override};
use isles_cwl::tree::Node;
use isles_cwl::value::{Map, Value};
use isles_cwl::web::Web;
use isles_flow::history::History;
use isles_registry::web::Wish;

use crate::context::Context;
use crate::failure::Failure;
use crate::registry::Connection;
use crate::ui::Ui;

/// `FILE#NAME`, unless there is a file of that whole name.
pub(super) fn split(word: &str) -> (PathBuf, Option<String>) {
    let plain = word.strip_prefix("file://").unwrap_or(word);
    match plain.rsplit_once('#') {
        Some((path, fragment)) if !Path::new(plain).exists() => (path.into(), Some(fragment.to_owned())),
        _ => (plain.into(), None),
    }
}

/// A job file that names its process (`cwl:tool`).
pub(super) fn job_with_tool(loader: &mut Loader, path: &Path) -> Option<job::Order> {
    let order = job::read(&mut loader.documents, path).ok()?;
    order.tool.is_some().then_some(order)
}

pub(super) fn read_job(
    loader: &mut Loader,
    word: &str,
    basedir: Option<&Path>,
) -> Result<job::Order, Failure> {
    let read = if word == "-" {
        let text = std::io::read_to_string(std::io::stdin().lock())
            .map_err(|e| Failure::because("cannot read the job from standard input", &e))?;
        let folder = basedir.map_or_else(|| std::env::current_dir().unwrap_or_default(), Path::to_owned);
        let read = loader.documents.read_text("standard input", &folder, text);
        read.and_then(|(_, node)| job::of_node(&loader.documents, &node))
    } else {
        job::read(&mut loader.documents, Path::new(word.strip_prefix("file://").unwrap_or(word)))
    };
    read.map_err(|e| Failure { message: told(&loader.documents, &e), hint: e.hint, ..Failure::default() })
}

/// The overrides that stand in a file.
pub(super) fn overridden(loader: &mut Loader, node: &Node, file: &Path, version: Version) -> Vec<Override> {
    let folder =
        std::path::absolute(file).ok().and_then(|file| file.parent().map(Path::to_owned)).unwrap_or_default();
    let mut out = Vec::new();
    for entry in node.as_map().unwrap_or_default() {
        let (document, fragment) = overrides::target(&entry.key, &folder);
        let requirements = match entry.value.get("requirements") {
            Some(node) => loader.outer_requirements(node, version, true),
            None => Vec::new(),
        };
        out.push(Override { document, fragment, requirements });
    }
    out
}

/// The inputs that a run began with.
pub(super) fn inputs_of(cx: &Context, id: &str) -> Result<Value, Failure> {
    let history =
        History::open(&cx.state_dir()?.join("flow")).map_err(|e| Failure::because("cannot go on", &e))?;
    let run = history.find(Some(id)).map_err(|e| Failure::because("cannot go on", &e))?;
    if run.inputs.contains(isles_flow::run::SECRET) {
        return Err(Failure::new(format!(
            "cannot go on with the run {id}: it has secret inputs, which nobody knows any more"
        ))
        .with_hint("start it anew; with --cache, what was done is not done again"));
    }
    isles_cwl::outputs::from_json(&run.inputs).map_err(|e| {
        Failure::new(format!("cannot go on with the run {id}: its inputs are not readable: {e}"))
    })
}

pub(super) fn unknown_inputs(process: &Process, inputs: &Map, ui: &Ui) {
    for name in inputs.keys() {
        if !process.inputs.iter().any(|i| i.name == *name) && &**name != "id" {
            ui.warning(&format!("the job gives `{name}`, which is no input of {}", process.id));
        }
    }
}

/// The way to the web: through the same proxies, and with the same trust, as to registries.
pub(super) fn web(folder: PathBuf, ui: Ui) -> Web {
    /// Of one file.
    const MOST: u64 = 100 << 30;
    let fetch = move |url: &str, path: &Path| {
        let get = || -> Result<(), String> {
            let answer = isles_registry::web::Web::new(&Connection { tls_verify: true }.options())
                .get(url, Wish::default())
                .map_err(|e| e.to_string())?;
            if answer.status != 200 {
                return Err(format!("the server answers {}", answer.status));
            }
            let fail = |e: std::io::Error| e.to_string();
            let mut file = std::fs::File::create(path).map_err(fail)?;
            let copied = std::io::copy(&mut answer.reader().take(MOST + 1), &mut file).map_err(fail)?;
            if copied > MOST {
                return Err(format!("it is longer than {} GiB", MOST >> 30));
            }
            Ok(())
        };
        let got = get().map_err(|e| format!("cannot fetch {url}: {e}"));
        if let Err(e) = &got {
            ui.warning(e);
        }
        got
    };
    Web::new(folder, Box::new(fetch))
}

pub(super) fn told(documents: &Documents, diagnostic: &Diagnostic) -> String {
    let place = documents.sources.place(diagnostic.at);
    if place.is_empty() { diagnostic.message.clone() } else { format!("{place}: {}", diagnostic.message) }
}

/// Everything that is wrong with a document, each with its line.
pub(super) fn refused(loader: &Loader) -> Failure {
    let mut lines = Vec::new();
    for (i, error) in loader.errors.iter().enumerate() {
        let mut text = told(&loader.documents, error);
        if let Some(line) = loader.documents.sources.line(error.at) {
            let number = error.at.line.to_string();
            let margin = " ".repeat(number.len());
            let before: String = line
                .chars()
                .take(error.at.column.saturating_sub(1) as usize)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            let shown: String = line.chars().take(200).collect();
            text.push_str(&format!("\n {number} | {shown}\n {margin} | {before}^"));
        }
        if let Some(hint) = &error.hint {
            text.push_str(&format!("\n {hint}"));
        }
        if i > 0 {
            text.insert(0, '\n');
        }
        lines.push(text);
    }
    let count = loader.errors.len();
    if count > 1 {
        lines.push(format!("\n{count} errors"));
    }
    Failure::new(lines.join(""))
}
