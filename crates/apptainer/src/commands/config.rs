//! `apptainer config`: the settings of the site, directive by directive.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::site::{self, Site, Takes};

static SET: Flag = Flag::switch("set", "give a directive a value, or add one to a list").short('s');
static UNSET: Flag = Flag::switch("unset", "take a value out of a list").short('u');
static GET: Flag = Flag::switch("get", "print what a directive says").short('g');
static RESET: Flag = Flag::switch("reset", "let a directive be what it usually is").short('r');
static DRY_RUN: Flag = Flag::switch("dry-run", "print the file that would be written").short('d');

pub static COMMAND: Command = Command {
    usage: "config",
    short: "The configuration of Apptainer on this machine",
    commands: &[&super::fakeroot::COMMAND, &GLOBAL],
    ..Command::EMPTY
};

static GLOBAL: Command = Command {
    usage: "global <option> <directive> [value,...]",
    short: "Edit the file with the settings of this machine",
    long: "The file is /etc/apptainer/apptainer.conf or its older singularity.conf, or the one that `-c` names before\n\
           the command. Directives about Apptainer's set-uid program and its helpers are kept and have no effect here,\n\
           which --set says.",
    examples: "apptainer config global --set 'bind path' /scratch\napptainer config global --get 'bind path'",
    flags: &[&[&SET, &UNSET, &GET, &RESET, &DRY_RUN]],
    arity: Arity::Between(1, 2),
    interspersed: true,
    run: global,
    ..Command::EMPTY
};

fn global(cx: &Context<'_>) -> Result<u8, Failure> {
    let wanted: Vec<&Flag> =
        [&SET, &UNSET, &GET, &RESET].into_iter().filter(|flag| cx.values.is(flag)).collect();
    let [action] = wanted[..] else {
        return Err(Failure::usage("you must specify one of --set, --unset, --get or --reset"));
    };
    let name = cx.arguments[0].as_str();
    let Some((takes, _)) = site::directive(name) else {
        let near = isles_spec::nearest::nearest(name, site::DIRECTIVES.iter().map(|(name, ..)| *name));
        let failure = Failure::new(format!("'{name}' is not a valid configuration directive"));
        return Err(match near {
            Some(near) => failure.with_hint(format!("did you mean '{near}'?")),
            None => failure,
        });
    };
    if action.name == GET.name {
        let said = Site::load(cx.config)?.values(name).join(",");
        return cx.print(said + "\n").map(|()| 0);
    }
    let value = cx.arguments.get(1).map(String::as_str);
    let (path, text) = site::read(cx.config)?;
    let text = match (action.name, value) {
        ("reset", None) => without(&text, name, None),
        ("reset", Some(_)) => return Err(Failure::usage("--reset takes a directive only")),
        (_, None) => return Err(Failure::usage(format!("--{} takes a directive and a value", action.name))),
        ("unset", Some(_)) if takes != Takes::List => {
            return Err(Failure::new(format!("'{name}' is no list, of which a value could be taken out"))
                .with_hint(format!("`config global --reset '{name}'` makes it what it usually is")));
        }
        ("unset", Some(value)) => {
            value.split(',').fold(text, |text, value| without(&text, name, Some(value)))
        }
        (_, Some(value)) => {
            let values: Vec<&str> =
                if takes == Takes::List { value.split(',').collect() } else { vec![value] };
            let mut text = if takes == Takes::List { text } else { without(&text, name, None) };
            for value in values {
                takes.check(value).map_err(|why| Failure::new(format!("cannot set '{name}': {why}")))?;
                if value.contains(['\n', '\r']) {
                    return Err(Failure::new(format!("cannot set '{name}': a value is one line")));
                }
                text = format!("{}{name} = {value}\n", without(&text, name, Some(value)));
            }
            text
        }
    };
    if takes == Takes::Unread {
        cx.talk.warning(&format!("'{name}' has no effect here"));
    }
    if cx.values.is(&DRY_RUN) {
        return cx.print(text).map(|()| 0);
    }
    replace(&path, &text)
        .map_err(|e| Failure::because(format!("while writing configuration file {}", path.display()), &e))?;
    Ok(0)
}

/// The lines of a file without those of a directive, or without those that give it this value.
fn without(text: &str, name: &str, value: Option<&str>) -> String {
    let is_it =
        |line: &str| site::line(line).is_some_and(|(n, v)| n == name && value.is_none_or(|value| v == value));
    text.lines().filter(|line| !is_it(line)).map(|line| format!("{line}\n")).collect()
}

/// Replaces a file in one step, with the rights that it has.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let beside = parent.join(format!(".new-{}", isles_store::random_name()));
    let mode = fs::metadata(path).map_or(0o644, |m| m.permissions().mode() & 0o777);
    let file = File::options().write(true).create_new(true).mode(mode).open(&beside);
    let written = file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        fs::rename(&beside, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_go() {
        let text = "# bind path = /x\nbind path = /a\nmount home = no\nbind path=/b";
        assert_eq!(
            without(text, "bind path", Some("/a")),
            "# bind path = /x\nmount home = no\nbind path=/b\n"
        );
        assert_eq!(without(text, "bind path", None), "# bind path = /x\nmount home = no\n");
    }
}
