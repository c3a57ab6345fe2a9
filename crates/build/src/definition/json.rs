//! A definition as JSON, as `apptainer build --json` takes it and as Apptainer's own types are written:
//! `{"header": {…}, "imageData": {…}, "buildData": {…}, "customData": {…}}`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use isles_spec::null_default;
use serde::{Deserialize, Serialize};

use super::syntax::{Definition, SectionKind, Stage};
use crate::position::{Diagnostic, SourceText, Span};

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    header: BTreeMap<String, String>,
    image_data: ImageData,
    build_data: BuildData,
    /// Sections of apps: `appinstall NAME`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    custom_data: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    app_order: Vec<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ImageData {
    #[serde(deserialize_with = "null_default")]
    labels: BTreeMap<String, String>,
    image_scripts: ImageScripts,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ImageScripts {
    help: Script,
    environment: Script,
    #[serde(alias = "runscript")]
    run_script: Script,
    test: Script,
    #[serde(alias = "startscript")]
    start_script: Script,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BuildData {
    #[serde(deserialize_with = "null_default")]
    files: Vec<Files>,
    #[serde(alias = "scripts")]
    build_scripts: BuildScripts,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BuildScripts {
    arguments: Script,
    pre: Script,
    setup: Script,
    post: Script,
    test: Script,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
struct Script {
    args: String,
    script: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Files {
    args: String,
    #[serde(deserialize_with = "null_default")]
    files: Vec<FilePair>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct FilePair {
    #[serde(alias = "src")]
    source: String,
    #[serde(alias = "dst")]
    destination: String,
}

/// Whether a text is one in JSON: no definition file begins so.
pub fn is_json(text: &str) -> bool {
    let text = text.trim_start_matches('\u{feff}').trim_start();
    text.starts_with(['{', '[']) && !text.starts_with("{{")
}

/// The definition file that a specification, or a list of one for each stage, means.
///
/// # Errors
/// It is not such a document, or says what no definition file can.
pub fn to_text(source: &SourceText) -> Result<Arc<SourceText>, Diagnostic> {
    let text = source.text();
    let documents: Result<Vec<Document>, _> = match text.trim_start().starts_with('[') {
        true => serde_json::from_str(text),
        false => serde_json::from_str(text).map(|one| vec![one]),
    };
    let documents = documents.map_err(|e| {
        let line = source.line_span(e.line().max(1));
        let at = line.start + e.column().saturating_sub(1).min(line.end - line.start);
        source
            .at(Span::new(at, at + 1), format!("it is no definition in JSON: {e}"))
            .with_suggestion("leave out --json for a definition file")
    })?;
    let mut out = String::new();
    for document in &documents {
        stage(document, &mut out).map_err(|(place, text)| {
            let text = text.escape_debug();
            source
                .at(
                    Span::default(),
                    format!("{place} has the text '{text}', which means something else there"),
                )
                .with_suggestion(
                    "'%' and 'bootstrap:' begin something new, and '#' a comment; put something before them",
                )
        })?;
    }
    Ok(SourceText::new(source.name(), out.as_bytes()))
}

/// Whether a line would be read as the beginning of something else.
fn begins_something(line: &str) -> bool {
    line.trim_start().starts_with('%') || line.get(..10).is_some_and(|w| w.eq_ignore_ascii_case("bootstrap:"))
}

/// Writes a stage; gives a text that would be read as something else, and where it is.
fn stage<'d>(document: &'d Document, out: &mut String) -> Result<(), (String, &'d str)> {
    let mut keys: Vec<_> = document.header.iter().collect();
    // The line that a stage begins with comes first.
    keys.sort_by_key(|(key, _)| !key.eq_ignore_ascii_case("bootstrap"));
    for (key, value) in keys {
        let odd = |line: &str| begins_something(line) || line.trim_end().ends_with('\\');
        if value.contains('#') || value.lines().any(odd) {
            return Err((format!("the field {key}"), value));
        }
        out.push_str(&format!("{key}: {}\n", value.trim_end().replace('\n', "\\n\\\n")));
    }
    let (image, scripts) = (&document.image_data, &document.build_data.build_scripts);
    let test = if scripts.test.script.is_empty() { &image.image_scripts.test } else { &scripts.test };
    for (kind, script) in [
        (SectionKind::Arguments, &scripts.arguments),
        (SectionKind::Pre, &scripts.pre),
        (SectionKind::Setup, &scripts.setup),
        (SectionKind::Post, &scripts.post),
        (SectionKind::Test, test),
        (SectionKind::Help, &image.image_scripts.help),
        (SectionKind::Environment, &image.image_scripts.environment),
        (SectionKind::Runscript, &image.image_scripts.run_script),
        (SectionKind::Startscript, &image.image_scripts.start_script),
    ] {
        section(kind.name(), &script.args, &script.script, out)?;
    }
    for files in &document.build_data.files {
        let quoted = |path: &str| format!("\"{}\"", path.replace('"', "\\\""));
        let line = |pair: &FilePair| match pair.destination.as_str() {
            "" => quoted(&pair.source),
            to => format!("{} {}", quoted(&pair.source), quoted(to)),
        };
        let lines: Vec<String> = files.files.iter().map(line).collect();
        out.push_str(&format!("%files {}\n{}\n", files.args, lines.join("\n")));
    }
    if !image.labels.is_empty() {
        out.push_str("%labels\n");
        for (name, value) in &image.labels {
            if begins_something(name)
                || name.starts_with('#')
                || name.contains(['\n', ' '])
                || name.is_empty()
            {
                return Err(("a label".into(), name));
            }
            out.push_str(&format!("{name} {}\n", value.replace('\n', " ")));
        }
    }
    let order: HashMap<&str, usize> =
        document.app_order.iter().enumerate().map(|(number, app)| (app.as_str(), number)).collect();
    let order = |name: &str| order.get(name.split(' ').nth(1).unwrap_or_default()).copied();
    let mut custom: Vec<_> = document.custom_data.iter().collect();
    custom.sort_by_key(|(name, _)| order(name).unwrap_or(usize::MAX));
    for (name, body) in custom {
        section(name, "", body, out)?;
    }
    Ok(())
}

fn section<'d>(name: &str, args: &str, body: &'d str, out: &mut String) -> Result<(), (String, &'d str)> {
    if body.is_empty() {
        return Ok(());
    }
    let opens = |line: &&str| {
        line.trim_start().starts_with('%')
            || line.get(..10).is_some_and(|w| w.eq_ignore_ascii_case("bootstrap:"))
    };
    if let Some(line) = body.lines().find(opens) {
        return Err((format!("%{name}"), line.trim()));
    }
    let end = if body.ends_with('\n') { "" } else { "\n" };
    out.push_str(&format!("{}\n{body}{end}", format!("%{name} {args}").trim_end()));
    Ok(())
}

impl Definition {
    /// The stages as a list in JSON, which [`to_text`] reads.
    pub fn to_json(&self) -> String {
        let documents: Vec<Document> = self.stages.iter().map(document).collect();
        serde_json::to_string_pretty(&documents).unwrap_or_default()
    }
}

fn document(stage: &Stage) -> Document {
    let script = |kind| Script {
        args: stage.all(kind).last().map(|s| s.arguments.text.clone()).unwrap_or_default(),
        script: stage.text(kind).unwrap_or_default(),
    };
    let mut files: Vec<Files> = Vec::new();
    for section in stage.all(SectionKind::Files) {
        let pair = |copy: super::FileCopy| FilePair {
            source: copy.source.text,
            destination: copy.destination.map(|d| d.text).unwrap_or_default(),
        };
        let pairs: Vec<FilePair> = section.copies().into_iter().map(pair).collect();
        match files.iter_mut().find(|f| f.args == section.arguments.text) {
            Some(same) => same.files.extend(pairs),
            None => files.push(Files { args: section.arguments.text.clone(), files: pairs }),
        }
    }
    let mut custom_data: BTreeMap<String, String> = BTreeMap::new();
    for section in &stage.sections {
        if let Some(app) = section.app() {
            custom_data.entry(format!("{} {app}", section.kind.name())).or_default().push_str(&section.body);
        }
    }
    let labels = stage.text(SectionKind::Labels).unwrap_or_default();
    Document {
        header: stage.header.iter().map(|f| (f.key.text.clone(), f.value.text.clone())).collect(),
        image_data: ImageData {
            labels: super::labels::of_section(&labels).into_iter().collect(),
            image_scripts: ImageScripts {
                help: script(SectionKind::Help),
                environment: script(SectionKind::Environment),
                run_script: script(SectionKind::Runscript),
                test: script(SectionKind::Test),
                start_script: script(SectionKind::Startscript),
            },
        },
        build_data: BuildData {
            files,
            build_scripts: BuildScripts {
                arguments: script(SectionKind::Arguments),
                pre: script(SectionKind::Pre),
                setup: script(SectionKind::Setup),
                post: script(SectionKind::Post),
                test: script(SectionKind::Test),
            },
        },
        custom_data,
        app_order: super::apps::names(stage).into_iter().map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::syntax;

    #[test]
    fn a_definition_survives_both_ways() {
        let text = "Bootstrap: docker\nFrom: a\nStage: one\nSetOpt: x\\n\\\ny\n%files\n'a b' /c\nd\n%post -c /bin/bash\n\
            echo\n%test\ntrue\n%labels\nA b c\n%appinstall z\nmake\n%apprun a\nx\n%help\nwords\n\
            Bootstrap: scratch\n%files from one\n/x\n";
        let parse = |text: &str| syntax::parse(&SourceText::new("x.def", text.as_bytes())).unwrap();
        let definition = parse(text);
        let json = definition.to_json();
        let again = to_text(&SourceText::new("x.json", json.as_bytes())).unwrap();
        let read = parse(again.text());
        assert_eq!(read.to_json(), json, "{}", again.text());
        assert_eq!(read.stages[0].text(SectionKind::Post).unwrap(), "echo\n");
        assert_eq!(super::super::apps::names(&read.stages[0]), ["z", "a"]);
    }

    #[test]
    fn what_go_writes() {
        let json = r#"{"header":{"from":"a","bootstrap":"docker"},"imageData":{"metadata":null,"labels":null,
            "imageScripts":{"runScript":{"args":"","script":"echo"}}},"buildData":{"files":null,"buildScripts":
            {"post":{"args":"-c /bin/bash","script":"x\n"}}},"customData":null,"raw":"","appOrder":null}"#;
        let text = to_text(&SourceText::new("x.json", json.as_bytes())).unwrap();
        assert_eq!(text.text(), "bootstrap: docker\nfrom: a\n%post -c /bin/bash\nx\n%runscript\necho\n");
        for (text, json) in [("{}", true), (" [\n{}]", true), ("{{ A }}: b", false), ("Bootstrap: x", false)]
        {
            assert_eq!(is_json(text), json, "{text}");
        }
        for (bad, part) in [
            ("{", "no definition in JSON"),
            (r#"{"header":1}"#, "no definition in JSON"),
            (r#"{"header":{"from":"a#b"}}"#, "the field from has the text 'a#b'"),
            (r#"{"header":{"from":"a\n%post"}}"#, "the field from"),
            (r#"{"imageData":{"labels":{"bootstrap: x":"y"}}}"#, "a label"),
            (r#"{"buildData":{"buildScripts":{"post":{"script":"a\n %b\n"}}}}"#, "%post has the text '%b'"),
        ] {
            let error = to_text(&SourceText::new("x.json", bad.as_bytes())).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
