//! `apptainer inspect`: what an image says of itself.

use std::path::Path;

use isles_sif::{App, Attributes, Inspection};
use serde::Serialize as _;

use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::looked_into::inspection;

static ALL: Flag = Flag::switch("all", "show all there is, as JSON");
static APP: Flag = Flag::text("app", "name", "of one of the image's apps");
static DEFFILE: Flag = Flag::switch("deffile", "the definition file that the image was made from").short('d');
static ENVIRONMENT: Flag = Flag::switch("environment", "the scripts that make the environment").short('e');
static HELPFILE: Flag = Flag::switch("helpfile", "the help text").short('H');
static JSON: Flag = Flag::switch("json", "print JSON").short('j');
static LABELS: Flag =
    Flag::switch("labels", "the labels, which are shown unless something else is asked for").short('l');
static LIST_APPS: Flag = Flag::switch("list-apps", "the names of the image's apps");
static RUNSCRIPT: Flag = Flag::switch("runscript", "the runscript").short('r');
static STARTSCRIPT: Flag = Flag::switch("startscript", "the startscript").short('s');
static TEST: Flag = Flag::switch("test", "the test script").short('t');

pub static COMMAND: Command = Command {
    usage: "inspect [inspect options...] <image path>",
    short: "Show metadata for an image",
    examples: "apptainer inspect container.sif\napptainer inspect --runscript container.sif",
    flags: &[&[
        &ALL,
        &APP,
        &DEFFILE,
        &ENVIRONMENT,
        &HELPFILE,
        &JSON,
        &LABELS,
        &LIST_APPS,
        &RUNSCRIPT,
        &STARTSCRIPT,
        &TEST,
    ]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run,
    ..Command::EMPTY
};

fn run(cx: &Context<'_>) -> Result<u8, Failure> {
    let whole = inspection(Path::new(&cx.arguments[0]))?;
    let all = cx.values.is(&ALL);
    let app = cx.values.word(&APP).filter(|_| !all);
    let shown = chosen(cx, whole, app, all);
    if all || cx.values.is(&JSON) {
        cx.print(json(&shown) + "\n")?;
    } else {
        cx.print(text(&shown.data.attributes, app, cx.values.is(&LIST_APPS)))?;
    }
    Ok(0)
}

/// Leaves what the flags ask for.
fn chosen(cx: &Context<'_>, mut whole: Inspection, app: Option<&str>, all: bool) -> Inspection {
    let is = |flag| all || cx.values.is(flag);
    let others = [&HELPFILE, &DEFFILE, &RUNSCRIPT, &STARTSCRIPT, &TEST, &ENVIRONMENT, &LIST_APPS];
    let labels = is(&LABELS) || !others.iter().any(|flag| cx.values.is(flag));
    let attributes = &mut whole.data.attributes;
    let keep = |app: &mut App| {
        for (kept, text) in [
            (is(&RUNSCRIPT), &mut app.runscript),
            (is(&STARTSCRIPT), &mut app.startscript),
            (is(&TEST), &mut app.test),
            (is(&HELPFILE), &mut app.helpfile),
        ] {
            if !kept {
                text.clear();
            }
        }
        if !is(&ENVIRONMENT) {
            app.environment.clear();
        }
        if !labels {
            app.labels.clear();
        }
    };
    let mut of_image = App {
        environment: std::mem::take(&mut attributes.environment),
        labels: std::mem::take(&mut attributes.labels),
        runscript: std::mem::take(&mut attributes.runscript),
        startscript: std::mem::take(&mut attributes.startscript),
        test: std::mem::take(&mut attributes.test),
        helpfile: std::mem::take(&mut attributes.helpfile),
    };
    keep(&mut of_image);
    if !is(&DEFFILE) {
        attributes.deffile.clear();
    }
    if app.is_none() {
        attributes.environment = of_image.environment;
        attributes.labels = of_image.labels;
        attributes.runscript = of_image.runscript;
        attributes.startscript = of_image.startscript;
        attributes.test = of_image.test;
        attributes.helpfile = of_image.helpfile;
    }
    if !all {
        let listed = cx.values.is(&LIST_APPS);
        attributes.apps.retain(|name, _| listed || app == Some(name.as_str()));
        // A list has all of each app, of which plain text shows the names.
        if !listed {
            attributes.apps.values_mut().for_each(keep);
        }
    }
    whole
}

/// As Apptainer prints it: with tabs, and with characters that HTML knows as numbers.
fn json(shown: &Inspection) -> String {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    // Strings only: there is nothing that JSON cannot say.
    let _ = shown.serialize(&mut serializer);
    // Those characters are in strings only.
    let text = String::from_utf8_lossy(&bytes);
    text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

fn text(attributes: &Attributes, app: Option<&str>, list: bool) -> String {
    let mut out = String::new();
    let mut line = |text: &str| out.push_str(&format!("{text}\n"));
    if list {
        attributes.apps.keys().for_each(|name| line(name));
    }
    let none = App::default();
    let app = app.and_then(|name| attributes.apps.get(name)).unwrap_or(&none);
    if !attributes.deffile.is_empty() {
        line(&attributes.deffile);
    }
    for (own, of_app) in [
        (&attributes.runscript, &app.runscript),
        (&attributes.startscript, &app.startscript),
        (&attributes.test, &app.test),
        (&attributes.helpfile, &app.helpfile),
    ] {
        let shown = if own.is_empty() { of_app } else { own };
        if !shown.is_empty() {
            line(shown);
        }
    }
    let environment =
        if attributes.environment.is_empty() { &app.environment } else { &attributes.environment };
    for (path, script) in environment {
        line(&format!("=== {path} ===\n{script}\n"));
    }
    let labels = if attributes.labels.is_empty() { &app.labels } else { &attributes.labels };
    for (name, value) in labels {
        line(&format!("{name}: {value}"));
    }
    out
}
