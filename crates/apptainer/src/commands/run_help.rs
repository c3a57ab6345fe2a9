//! `apptainer run-help`: the help text of an image.

use std::path::Path;

use crate::command::{Arity, Command};
use crate::flag::Flag;
use crate::looked_into::inspection;

static APP: Flag = Flag::text("app", "name", "of one of the image's apps").env(&["APP"]);

pub static COMMAND: Command = Command {
    usage: "run-help [run-help options...] <image path>",
    short: "Show the user-defined help for an image",
    long: "It is the section %help of a definition file, or %apphelp of an app.",
    examples: "apptainer run-help container.sif",
    flags: &[&[&APP]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: |cx| {
        let attributes = inspection(Path::new(&cx.arguments[0]))?.data.attributes;
        let text = match cx.values.word(&APP) {
            Some(app) => attributes.apps.get(app).map(|app| app.helpfile.clone()).unwrap_or_default(),
            None => attributes.helpfile,
        };
        let text =
            if text.is_empty() { "No help sections were defined for this image".to_owned() } else { text };
        cx.print(text + "\n")?;
        Ok(0)
    },
    ..Command::EMPTY
};
