//! SCIF apps: several programs with an environment, a help text and tests of their own in one image
//! (Scientific Filesystem 0.0.1, <https://sci-f.github.io>), as Apptainer lays them out.
//!
//! What `%appinstall` may look at is there before `%post`; the rest comes last, so that it can change without
//! anything being run again.

use std::collections::HashSet;

use super::labels::{self, Labels};
use super::scripts::{self, quoted};
use super::syntax::{Section, SectionKind, Stage};
use super::tree::{Entry, below};
use crate::position::{Diagnostic, SourceText};

/// So many apps may an image have.
const MOST: usize = 1000;
/// The exports of all apps.
pub const EXPORTS: &str = "env/94-appsbase.sh";

/// The apps of a stage in the order of their first mention.
pub fn names(stage: &Stage) -> Vec<&str> {
    let mut seen = HashSet::new();
    stage.sections.iter().filter_map(Section::app).filter(|name| seen.insert(*name)).collect()
}

/// Refuses names that are no folder's, and more apps than anybody has.
pub fn check(source: &SourceText, stage: &Stage) -> Result<(), Diagnostic> {
    if let Some(name) = names(stage).get(MOST) {
        let section = stage.sections.iter().find(|s| s.app() == Some(name));
        let span = section.map(|s| s.name.span).unwrap_or_default();
        return Err(source
            .at(span, format!("an image has {MOST} apps at most"))
            .with_suggestion("put some of them into another image"));
    }
    for section in &stage.sections {
        let odd = |name: &&str| matches!(*name, "." | "..") || name.contains('/') || name.starts_with('-');
        if let Some(name) = section.app().filter(odd) {
            return Err(source
                .at(section.arguments.span, format!("'{name}' is no name for an app"))
                .with_suggestion("an app is named as a folder is, without a slash"));
        }
    }
    Ok(())
}

/// Where an app is.
pub fn root(name: &str) -> String {
    format!("/scif/apps/{name}")
}

fn text(stage: &Stage, name: &str, kind: SectionKind) -> Option<String> {
    let mut sections = stage.all(kind).filter(|s| s.app() == Some(name)).peekable();
    sections.peek()?;
    let text: String = sections.map(|s| s.body.text.as_str()).collect();
    Some(text).filter(|text| !text.trim().is_empty())
}

/// What is there before `%post`: folders, and the app's own variables.
pub fn before_post(stage: &Stage) -> Vec<Entry> {
    let mut out = Vec::new();
    for name in names(stage) {
        let root = root(name);
        for folder in ["bin", "lib", "scif/env"] {
            out.push(Entry::folder(format!("{root}/{folder}")));
        }
        for folder in ["input", "output"] {
            out.push(Entry::folder(format!("/scif/data/{name}/{folder}")));
        }
        let text = format!(
            "#!/bin/sh\n\
             SCIF_APPNAME={}\n\
             SCIF_APPROOT=\"/scif/apps/$SCIF_APPNAME\"\n\
             SCIF_APPMETA=\"$SCIF_APPROOT/scif\"\n\
             SCIF_DATA=/scif/data\n\
             SCIF_APPDATA=\"$SCIF_DATA/$SCIF_APPNAME\"\n\
             SCIF_APPINPUT=\"$SCIF_APPDATA/input\"\n\
             SCIF_APPOUTPUT=\"$SCIF_APPDATA/output\"\n\
             export SCIF_APPNAME SCIF_APPROOT SCIF_APPMETA SCIF_DATA SCIF_APPDATA SCIF_APPINPUT SCIF_APPOUTPUT\n",
            quoted(name)
        );
        out.push(Entry::script(format!("{root}/scif/env/01-base.sh"), text));
    }
    out
}

/// What `%post` ends with: every app's `%appinstall`, in its folder and with its variables.
pub fn install(stage: &Stage) -> String {
    let mut out = String::new();
    for name in names(stage) {
        let Some(text) = text(stage, name, SectionKind::AppInstall) else { continue };
        let root = quoted(&root(name));
        out.push_str(&format!("\ncd /\n. {root}/scif/env/01-base.sh\ncd {root}\n{text}\ncd /\n"));
    }
    out
}

/// What only matters when the image runs. `exports` is what the base exports of its own apps.
pub fn metadata(stage: &Stage, exports: &str) -> Vec<Entry> {
    let mut out = Vec::new();
    let mut exports = exports.to_owned();
    for name in names(stage) {
        let at = |file: &str| format!("{}/scif/{file}", root(name));
        let section = |kind| text(stage, name, kind);
        let environment = section(SectionKind::AppEnv);
        let run = section(SectionKind::AppRun);
        out.extend(environment.as_ref().map(|body| Entry::script(at("env/90-environment.sh"), body)));
        for (kind, file) in [
            (SectionKind::AppRun, "runscript"),
            (SectionKind::AppTest, "test"),
            (SectionKind::AppStart, "startscript"),
        ] {
            out.extend(section(kind).map(|body| Entry::script(at(file), scripts::of_section("", &body))));
        }
        out.extend(section(SectionKind::AppHelp).map(|body| Entry::text(at("runscript.help"), body)));
        let mut labels = Labels::from([("SCIF_APP_NAME".to_owned(), name.to_owned())]);
        labels.extend(section(SectionKind::AppLabels).iter().flat_map(|body| labels::of_section(body)));
        out.push(Entry::text(at("labels.json"), labels::file(&labels)));
        exports.push_str(&exports_of(
            name,
            environment.is_some(),
            run.is_some(),
            section(SectionKind::AppStart).is_some(),
        ));
    }
    if !out.is_empty() {
        out.push(Entry::script(below(EXPORTS), exports));
    }
    out
}

/// Every app can find the others.
fn exports_of(name: &str, environment: bool, run: bool, start: bool) -> String {
    let variable: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    let root = root(name);
    let mut out = format!("## {}\n", name.escape_default());
    let mut export = |what: &str, value: String| {
        out.push_str(&format!("export SCIF_APP{what}_{variable}={}\n", quoted(&value)));
    };
    export("DATA", format!("/scif/data/{name}"));
    export("META", format!("{root}/scif"));
    export("ROOT", root.clone());
    export("BIN", format!("{root}/bin"));
    export("LIB", format!("{root}/lib"));
    export("LABELS", format!("{root}/scif/labels.json"));
    if environment {
        export("ENV", format!("{root}/scif/env/90-environment.sh"));
    }
    if run {
        export("RUN", format!("{root}/scif/runscript"));
    }
    if start {
        export("START", format!("{root}/scif/startscript"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::syntax;

    fn stage(text: &str) -> Stage {
        let source = SourceText::new("x.def", format!("Bootstrap: scratch\n{text}").as_bytes());
        syntax::parse(&source).unwrap().stages.remove(0)
    }

    #[test]
    fn sections_of_an_app_come_together() {
        let stage = stage(
            "%apprun b\necho b\n%appinstall a\nmake\n%appenv a\nexport X=1\n%appinstall a more\nmake more\n\
             %applabels a\nV 1\n%apphelp a\nwords\n%apptest a\n%appstart b\nx\n",
        );
        assert_eq!(names(&stage), ["b", "a"]);
        let install = install(&stage);
        assert!(install.contains("cd '/scif/apps/a'\nmake\nmake more\n") && !install.contains("apps/b"));
        let before: Vec<_> = before_post(&stage).iter().map(|e| e.path().to_owned()).collect();
        for path in ["/scif/apps/b/bin", "/scif/data/a/input", "/scif/apps/a/scif/env/01-base.sh"] {
            assert!(before.iter().any(|p| p == path), "{path}");
        }
        let after = metadata(&stage, "# base\n");
        let find = |path: &str| {
            after.iter().find_map(|e| match e {
                Entry::File { path: p, text, .. } if p == path => Some(text.as_str()),
                _ => None,
            })
        };
        assert_eq!(find("/scif/apps/b/scif/runscript"), Some("#!/bin/sh\necho b\n"));
        assert_eq!(find("/scif/apps/a/scif/runscript.help"), Some("words\n"));
        assert_eq!(find("/scif/apps/a/scif/test"), None, "an empty section is none");
        assert!(find("/scif/apps/b/scif/startscript").is_some());
        assert!(find("/scif/apps/a/scif/labels.json").unwrap().contains("\"SCIF_APP_NAME\": \"a\""));
        let exports = find("/.singularity.d/env/94-appsbase.sh").unwrap();
        assert!(exports.starts_with("# base\n## b\n") && exports.contains("SCIF_APPENV_a="), "{exports}");
        assert!(
            !exports.contains("SCIF_APPENV_b")
                && exports.contains("SCIF_APPRUN_b=")
                && exports.contains("SCIF_APPSTART_b=")
        );
    }

    #[test]
    fn names_that_are_no_folders() {
        for (name, fine) in [("a.b-c", true), ("..", false), ("a/b", false), ("-x", false)] {
            let text = format!("Bootstrap: scratch\n%apprun {name}\nx\n");
            let source = SourceText::new("x.def", text.as_bytes());
            let stage = syntax::parse(&source).unwrap().stages.remove(0);
            assert_eq!(check(&source, &stage).is_ok(), fine, "{name}");
        }
        let many: String = (0..=MOST).map(|n| format!("%apprun {n}\nx\n")).collect();
        let source = SourceText::new("x.def", many.as_bytes());
        let stage = syntax::parse(&source).unwrap().stages.remove(0);
        assert!(check(&source, &stage).unwrap_err().message.contains("at most"));
        assert!(exports_of("a b'c", true, true, false).contains("'/scif/apps/a b'\\''c'"));
    }
}
