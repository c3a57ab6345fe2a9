//! `isles build --check` and `--call`: what a recipe says, without building it. Documents and exit codes are
//! those of `docker buildx build`.

use std::str::FromStr;

use isles_build::dockerfile::checks::Checked;
use isles_build::dockerfile::outline::{self, Named, Outline, Targets};
use isles_build::elsewhere::Fetched;
use isles_build::position::SourceText;
use isles_build::recipe::{Found, Language};
use isles_build::{BuildOptions, Reach, definition, dockerfile};
use isles_engine::Engine;
use isles_spec::Error as Spelling;
use serde::Serialize;

use super::{What, failure, lint};
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::format::count;
use crate::ui::progress::Bars;
use crate::ui::table::Table;

/// What to do instead of building.
#[derive(Debug, clap::Args)]
pub struct Instead {
    /// Check the recipe and build nothing; the exit code is 1 where something is odd. Short for --call=check.
    #[arg(long, conflicts_with = "call")]
    check: bool,
    /// What to do: build; check the recipe; show the outline, which is what the target takes from its caller; or
    /// list the targets. With format=json as a document, with ignorestatus=true without an exit code of 1.
    #[arg(long, value_name = "METHOD[,format=json]", default_value = "build")]
    call: Call,
}

/// What is done with a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    method: Method,
    json: bool,
    ignore_status: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Build,
    Check,
    Outline,
    Targets,
}

const CHECK: Call = Call { method: Method::Check, json: false, ignore_status: false };

impl Instead {
    /// What to do instead of building.
    pub fn wanted(&self) -> Option<Call> {
        let call = if self.check { CHECK } else { self.call };
        Some(call).filter(|c| c.method != Method::Build)
    }
}

impl FromStr for Call {
    type Err = Spelling;

    fn from_str(text: &str) -> Result<Self, Spelling> {
        let bad = |what: &str| {
            Spelling::new(format!("'{what}' is no part of --call"))
                .with_hint("write build, check, outline or targets, and format=json after a comma")
        };
        let mut method = None;
        let (mut json, mut ignore_status) = (false, false);
        for field in text.split(',') {
            let named = match field {
                "build" => Method::Build,
                "check" | "lint" => Method::Check,
                "outline" => Method::Outline,
                "targets" => Method::Targets,
                "format=json" | "format=text" => {
                    json = field.ends_with("json");
                    continue;
                }
                "ignorestatus=true" | "ignorestatus=false" => {
                    ignore_status = field.ends_with("true");
                    continue;
                }
                other => return Err(bad(other)),
            };
            if method.replace(named).is_some() {
                return Err(bad(field));
            }
        }
        Ok(Call { method: method.unwrap_or(Method::Build), json, ignore_status })
    }
}

/// Does what is asked for instead of building.
pub fn cmd_call(cx: &Context, args: &super::Args, call: Call) -> Result<Code, Failure> {
    let options = super::options(args)?;
    let what = super::what(cx, args, &args.connection.client(), &options, &Bars::new(&cx.ui))?;
    let found = match &what {
        What::Recipe(found) | What::Fetched(Fetched { found, .. }) => found,
        What::Suite(_) => {
            let path = args.path().display();
            return Err(Failure::new(format!("'{path}' is no recipe, so there is nothing to look at")));
        }
    };
    match (call.method, found.language) {
        (Method::Check, Language::Definition) if !call.json => check_definition(cx, args, found, call),
        (_, Language::Definition) => {
            Err(Failure::new(format!("'{}' is a definition file", found.file.display()))
                .with_hint("outline, targets and JSON are for Dockerfiles; --check works with both"))
        }
        (Method::Targets, Language::Dockerfile) => {
            let bytes = found.read().map_err(|e| failure(&e))?;
            let source = SourceText::new(found.file.display().to_string(), &bytes);
            let recipe = dockerfile::parse(source).map_err(|e| failure(&e.into()))?;
            let targets = outline::targets(&recipe);
            show(cx, call, &targets, targets_text)
        }
        (Method::Outline, Language::Dockerfile) => {
            let checked = look(cx, args, found, false)?;
            match (checked.error, &checked.stages) {
                (Some(error), _) => Err(failure(&error)),
                (None, Some(stages)) => show(cx, call, &outline::outline(stages), outline_text),
                (None, None) => Err(Failure::new("the recipe has no outline")),
            }
        }
        (Method::Check | Method::Build, Language::Dockerfile) => {
            let checked = look(cx, args, found, true)?;
            let odd = checked.error.is_some() || !checked.findings.is_empty();
            if call.json {
                show(cx, call, &outline::findings(&checked), |_| String::new())?;
            } else {
                show_findings(cx, &checked)?;
                let refusal = checked.refusal().map(Into::into);
                if let Some(error) = checked.error.or(refusal) {
                    return Err(failure(&error));
                }
            }
            Ok(status(odd, call))
        }
    }
}

fn status(odd: bool, call: Call) -> Code {
    if odd && !call.ignore_status { Code(1) } else { Code::SUCCESS }
}

/// Looks at a Dockerfile, and says what could not be seen.
fn look(cx: &Context, args: &super::Args, found: &Found, all_stages: bool) -> Result<Checked, Failure> {
    let options = super::options(args)?;
    let engine = cx.engine()?;
    let client = args.connection.client();
    let checked = isles_build::check(&engine, Reach::Registry(&client), found, &options, all_stages)
        .map_err(|e| failure(&e))?;
    for unknown in &checked.unknown {
        cx.ui.warning(unknown);
    }
    Ok(checked)
}

/// Says what is odd about a Dockerfile whose build failed, as far as that can be told from here.
pub fn warn_of(cx: &Context, engine: &Engine, found: &Found, options: &BuildOptions) {
    if found.language == Language::Dockerfile
        && let Ok(checked) = isles_build::check(engine, Reach::Local, found, options, false)
    {
        for finding in &checked.findings {
            cx.ui.warning(&lint(&finding.place));
        }
    }
}

fn show_findings(cx: &Context, checked: &Checked) -> Result<(), Failure> {
    for finding in &checked.findings {
        cx.ui.line(&format!("warning: {}", lint(&finding.place)))?;
    }
    let number = (checked.findings.len() + checked.left_out) as u64;
    if checked.left_out > 0 {
        cx.ui.line(&format!("warning: {} more are not shown", checked.left_out))?;
    }
    if number > 0 || checked.error.is_none() {
        cx.ui.note(&summary(number));
    }
    Ok(())
}

fn summary(number: u64) -> String {
    match number {
        0 => "nothing is odd".to_owned(),
        n => count(n, "warning"),
    }
}

/// The traps of the definition language, which have no names.
fn check_definition(cx: &Context, args: &super::Args, found: &Found, call: Call) -> Result<Code, Failure> {
    let bytes = found.read().map_err(|e| failure(&e))?;
    let source = SourceText::new(found.file.display().to_string(), &bytes);
    let values = super::build_arguments(&args.build_arg);
    let arguments = definition::BuildArguments { values, strict: true };
    let (_, warnings) = definition::parse(source, &arguments).map_err(|e| failure(&e.into()))?;
    for warning in &warnings {
        cx.ui.line(&format!("warning: {}", lint(warning)))?;
    }
    cx.ui.note(&summary(warnings.len() as u64));
    Ok(status(!warnings.is_empty(), call))
}

/// A document, or its text.
fn show<T: Serialize>(
    cx: &Context,
    call: Call,
    document: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<Code, Failure> {
    if call.json {
        let json = serde_json::to_string_pretty(document)
            .map_err(|e| Failure::because("cannot write the document", &e))?;
        cx.ui.line(&json)?;
    } else {
        cx.ui.bytes(text(document).as_bytes())?;
    }
    Ok(Code::SUCCESS)
}

fn targets_text(targets: &Targets) -> String {
    let mut table = Table::new(&["TARGET", "DESCRIPTION"]);
    for target in &targets.targets {
        let name = match (target.name.as_str(), target.default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        table.row(vec![name, target.description.clone()]);
    }
    table.to_string()
}

fn outline_text(outline: &Outline) -> String {
    let mut parts = Vec::new();
    if !outline.name.is_empty() {
        let mut head = format!("TARGET:      {}\n", outline.name);
        if !outline.description.is_empty() {
            head += &format!("DESCRIPTION: {}\n", outline.description);
        }
        parts.push(head);
    }
    if !outline.args.is_empty() {
        let mut table = Table::new(&["BUILD ARG", "VALUE", "DESCRIPTION"]);
        for arg in &outline.args {
            table.row(vec![arg.name.clone(), arg.value.clone(), arg.description.clone()]);
        }
        parts.push(table.to_string());
    }
    let required = |heading, list: &[Named]| {
        let mut table = Table::new(&[heading, "REQUIRED"]);
        for named in list {
            let required = if named.required { "true" } else { "" };
            table.row(vec![named.name.clone(), required.to_owned()]);
        }
        (!list.is_empty()).then(|| table.to_string())
    };
    parts.extend(required("SECRET", &outline.secrets));
    parts.extend(required("SSH", &outline.ssh));
    if !outline.cache.is_empty() {
        let mut table = Table::new(&["CACHE"]);
        for cache in &outline.cache {
            table.row(vec![cache.id.clone()]);
        }
        parts.push(table.to_string());
    }
    parts.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls() {
        for (text, method, json, ignore_status) in [
            ("build", Method::Build, false, false),
            ("check", Method::Check, false, false),
            ("lint,format=json", Method::Check, true, false),
            ("format=json,outline", Method::Outline, true, false),
            ("targets,format=text", Method::Targets, false, false),
            ("check,ignorestatus=true", Method::Check, false, true),
        ] {
            assert_eq!(text.parse::<Call>().unwrap(), Call { method, json, ignore_status }, "{text}");
        }
        for bad in ["", "outlin", "check,outline", "check,format=yaml", "check,"] {
            assert!(bad.parse::<Call>().is_err(), "{bad}");
        }
    }
}
