//! `apptainer confgen`: a file with all settings of a site, from an older one or with what they usually are.

use std::path::Path;

use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::site::{self, Site, Takes};

use super::config::replace;

pub static COMMAND: Command = Command {
    usage: "confgen [oldconffile] newconffile",
    short: "Create an apptainer.conf, optionally initializing settings from an old one",
    long: "Every directive that Apptainer has is in the new file; those that have no effect here are marked.",
    examples: "apptainer confgen oldapptainer.conf newapptainer.conf",
    hidden: true,
    arity: Arity::AtLeast(0),
    run,
    ..Command::EMPTY
};

fn run(cx: &Context<'_>) -> Result<u8, Failure> {
    let (old, new) = match cx.arguments {
        [new] => (None, new),
        [old, new] => (Some(Path::new(old)), new),
        _ => return Err(Failure::usage("unexpected number of parameters")),
    };
    let site = old.map(|old| Site::load(Some(old))).transpose()?.unwrap_or_default();
    replace(Path::new(new), &text(&site))
        .map_err(|e| Failure::because(format!("while writing configuration file {new}"), &e))?;
    Ok(0)
}

/// All directives in the order of their names, with what each takes.
fn text(site: &Site) -> String {
    let mut all: Vec<_> = site::DIRECTIVES.iter().collect();
    all.sort_by_key(|(name, ..)| *name);
    let mut out = String::from("# Settings of Apptainer for this machine.\n");
    for (name, takes, usual) in all {
        let about = match takes {
            Takes::YesNo => "yes or no".to_owned(),
            Takes::OneOf(words) => words.join(", "),
            Takes::Size => "megabytes".to_owned(),
            Takes::List => "a value, as often as there are some".to_owned(),
            Takes::Unread => "without effect in Isles".to_owned(),
        };
        let usual = if usual.is_empty() { "nothing" } else { usual };
        out.push_str(&format!("\n# {name}: {about}; usually {usual}\n"));
        for value in site.values(name) {
            // An empty value says nothing.
            let mark = if value.is_empty() { "# " } else { "" };
            out.push_str(&format!("{mark}{name} = {value}\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_says_what_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.conf");
        std::fs::write(&file, text(&Site::default())).unwrap();
        let usual = Site::load(Some(&file)).unwrap();
        for (name, ..) in site::DIRECTIVES {
            assert_eq!(usual.values(name), Site::default().values(name), "{name}");
        }
        std::fs::write(&file, "mount tmp = no\nbind path = /a\nbind path = /b\nmax loop devices = 7\n")
            .unwrap();
        let old = Site::load(Some(&file)).unwrap();
        std::fs::write(&file, text(&old)).unwrap();
        let new = Site::load(Some(&file)).unwrap();
        assert_eq!((new.is("mount tmp"), new.bind_paths().len()), (false, 2));
        assert_eq!(new.one("max loop devices"), "7");
    }
}
