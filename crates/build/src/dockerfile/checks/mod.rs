//! Build checks: what is odd about a Dockerfile that may still be right, found without building it.
//!
//! The rules and what they apply to are those of BuildKit's frontend 1.26, by its code: [`nodes`] looks at
//! instructions as they are written, [`stages`] goes through the stages as a build would and knows the
//! variables at each place. A finding has the lines of its instruction, as other tools show it, and the
//! exact place for the picture.

pub mod config;
mod nodes;
pub mod rules;
mod stages;
mod steps;
mod top;
pub mod used;

use std::collections::BTreeMap;
use std::sync::Arc;

use isles_spec::image::ImageConfig;
use isles_spec::{Error as Spelling, Platform};

use self::config::Config;
use self::rules::Rule;
use self::used::Stages;
use super::instruction;
use super::lines::requested_checks;
use super::syntax::{self, Node};
use crate::error::Error;
use crate::pattern::Ignore;
use crate::position::{Diagnostic, SourceText, Span};

/// The build argument that replaces the options of the file.
pub const ARGUMENT: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// More findings than this are only counted.
const MAX_FINDINGS: usize = 1000;

/// What a Dockerfile is looked at with.
pub struct Look<'a> {
    pub platform: &'a Platform,
    pub build_args: &'a BTreeMap<String, String>,
    /// Without one, all stages are looked at.
    pub target: Option<&'a str>,
    /// With a target, stages that it does not need are looked at only as far as they are written.
    pub all_stages: bool,
    /// What `.dockerignore` leaves out.
    pub ignore: &'a Ignore,
    /// What stands for a name instead of a stage or an image (`--build-context`), if something does.
    pub named: &'a (dyn Fn(&str) -> Option<String> + 'a),
    /// The configuration of a base image; `None` where it cannot be had.
    pub base: &'a (dyn Fn(&str, &Platform) -> Option<ImageConfig> + 'a),
}

/// A rule that something breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub rule: &'static Rule,
    pub detail: String,
    /// First and last line of the instruction, from 1.
    pub lines: (usize, usize),
    /// The place, with `rule: detail` as its message.
    pub place: Diagnostic,
}

/// What came of looking at a file.
#[derive(Debug)]
pub struct Checked {
    pub source: Arc<SourceText>,
    /// By line.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub left_out: usize,
    /// The file is wrong; the rest was not looked at.
    pub error: Option<Error>,
    /// Findings fail a build.
    pub strict: bool,
    /// What the stages use, where they could be gone through.
    pub stages: Option<Stages>,
    /// Base images that could not be looked at, and why.
    pub unknown: Vec<String>,
}

impl Checked {
    /// The error of a build whose findings are errors.
    pub fn refusal(&self) -> Option<Diagnostic> {
        let first = self.findings.first().filter(|_| self.strict)?;
        let mut names: Vec<&str> = self.findings.iter().map(|f| f.rule.name).collect();
        names.sort_unstable();
        names.dedup();
        let place = Diagnostic {
            message: format!("checks fail the build: {}", names.join(", ")),
            ..first.place.clone()
        };
        Some(
            place
                .with_suggestion("the file asks for that by check=error=true; correct it, or skip the rules"),
        )
    }
}

/// Where a finding is.
#[derive(Debug, Clone, Copy)]
struct Place {
    lines: (usize, usize),
    span: Span,
}

impl Place {
    /// The keyword of an instruction.
    fn of(node: &Node) -> Place {
        Place { lines: (node.line.start_line, node.end_line), span: node.keyword.span }
    }

    fn at(self, span: Span) -> Place {
        Place { span, ..self }
    }
}

/// Findings as they are made.
struct Report {
    source: Arc<SourceText>,
    config: Arc<Config>,
    findings: Vec<Finding>,
    left_out: usize,
}

impl Report {
    /// Notes a finding, if the rule holds by `config`.
    fn add(
        &mut self,
        config: &Config,
        rule: &'static Rule,
        place: Place,
        detail: String,
        hint: Option<String>,
    ) {
        if !config.wants(rule) {
            return;
        }
        if self.findings.len() >= MAX_FINDINGS {
            self.left_out += 1;
            return;
        }
        let mut shown = self.source.at(place.span, format!("{}: {detail}", rule.name));
        shown.suggestion = hint;
        self.findings.push(Finding { rule, detail, lines: place.lines, place: shown });
    }

    /// Notes a finding by the rules of the whole file.
    fn add_for_file(&mut self, rule: &'static Rule, place: Place, detail: String, hint: Option<String>) {
        let config = self.config.clone();
        self.add(&config, rule, place, detail, hint);
    }
}

/// Whether findings fail a build.
///
/// # Errors
/// The options of the caller or of the file cannot be read.
pub fn is_strict(source: &SourceText, build_args: &BTreeMap<String, String>) -> Result<bool, Error> {
    options(source, build_args).map(|config| config.error)
}

/// Looks at a Dockerfile.
pub fn check(source: &Arc<SourceText>, look: &Look<'_>) -> Checked {
    let config = Arc::default();
    let mut report = Report { source: source.clone(), config, findings: Vec::new(), left_out: 0 };
    let result = look_at(&mut report, look);
    let mut findings = report.findings;
    findings.sort_by_key(|f| f.lines.0);
    let (stages, error) = match result {
        Ok(stages) => (Some(stages), None),
        Err(error) => (None, Some(error)),
    };
    let (left_out, strict) = (report.left_out, report.config.error);
    Checked { source: source.clone(), findings, left_out, error, strict, stages, unknown: Vec::new() }
}

fn look_at(report: &mut Report, look: &Look<'_>) -> Result<Stages, Error> {
    let source = report.source.clone();
    report.config = Arc::new(options(&source, look.build_args)?);
    let tree = syntax::parse(source)?;
    let nodes = tree.nodes.clone();
    let recipe = instruction::recipe(tree);
    // Of a file that is wrong, what stands before the wrong place is looked at.
    let last = recipe.as_ref().err().map_or(usize::MAX, |error| error.line);
    nodes::written(report, &nodes, last);
    let recipe = recipe?;
    nodes::names_and_casing(report, &recipe);
    stages::go_through(report, look, &recipe, &nodes)
}

/// The options of the caller, or else of the file.
fn options(source: &SourceText, build_args: &BTreeMap<String, String>) -> Result<Config, Error> {
    let hint = "write skip=RULE,…;error=true;experimental=RULE,…";
    if let Some(given) = build_args.get(ARGUMENT) {
        return Config::parse(given)
            .map_err(|why| Spelling::new(format!("cannot read {ARGUMENT}: {why}")).with_hint(hint).into());
    }
    let Some(text) = requested_checks(source.text()) else { return Ok(Config::default()) };
    Config::parse(text).map_err(|why| {
        let start = text.as_ptr() as usize - source.text().as_ptr() as usize;
        let span = Span::new(start, start + text.len());
        source.at(span, format!("cannot read the options of checks: {why}")).with_suggestion(hint).into()
    })
}
