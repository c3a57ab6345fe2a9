//! From the arguments of the program to a command of the table, and to an exit code.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::command::{Command, Context};
use crate::commands::{ROOT, completion};
use crate::failure::{FATAL, Failure, USAGE};
use crate::parse::{Parsed, Values, parse};
use crate::talk::Talk;
use crate::{global, help, variables};

/// The release of Apptainer whose command line this is. Clients take flags and defaults by it: cwltool reads
/// `(.+) version ([0-9.]+)`, Snakemake what comes after the last blank of a line that begins with `apptainer`, datalad
/// what comes after `apptainer version `. Apptainer says its own name under the name `singularity`, too, so all of them
/// know it; a name such as `singularity-ce` would make cwltool expect that project's behaviour.
pub const VERSION: &str = "1.4.5";

/// What the program around the door provides.
pub struct Host<'a> {
    /// Where images and containers are kept, or why nowhere.
    pub state_dir: &'a dyn Fn() -> Result<PathBuf, String>,
}

/// Names under which the whole program is this door.
const NAMES: [&str; 3] = ["apptainer", "singularity", RUN];
/// What the first line of a SIF file names: the file runs itself.
const RUN: &str = "run-singularity";

const MORE: &str = "Run 'apptainer --help' for more detailed usage information.\n";

/// Whether a program that is called `name` is this door.
pub fn is_name(program: &Path) -> bool {
    program.file_name().and_then(|name| name.to_str()).is_some_and(|name| NAMES.contains(&name))
}

/// Runs the command line `argv`, whose first word is the name of the program.
pub fn main(argv: Vec<OsString>, host: &Host<'_>) -> u8 {
    let quiet = Values::default();
    let mut words = Vec::with_capacity(argv.len());
    let mut argv = argv.into_iter();
    if argv.next().is_some_and(|name| Path::new(&name).file_name().is_some_and(|name| name == RUN)) {
        words.push("run".to_owned());
    }
    for word in argv {
        match word.into_string() {
            Ok(word) => words.push(word),
            Err(word) => {
                let name = word.display();
                let failure = Failure::new(format!("the argument '{name}' is not valid UTF-8"));
                global::talk(&quiet).fatal(&failure);
                return FATAL;
            }
        }
    }
    run(&words, host)
}

fn run(words: &[String], host: &Host<'_>) -> u8 {
    // Before any word is taken for a flag.
    if let Some((asks, rest)) = words.split_first()
        && [completion::ASKS, completion::ASKS_BARE].contains(&asks.as_str())
    {
        return told(&completion::candidates(rest, asks == completion::ASKS));
    }
    let mut path = vec![&ROOT];
    let (mut global, rest) = match parse(&global::FLAGS, words, false) {
        Ok(Parsed::Line(values, rest)) => (values, rest),
        Ok(Parsed::Help) => return told(&help::full(&path)),
        Err(error) => return misused(&path, &error, true),
    };
    if global.is(&global::VERSION) {
        return told(&format!("apptainer version {VERSION}\n"));
    }
    let look = |name: &str| std::env::var(name).ok();
    let talk = global::talk(&global);
    if let Err(why) = variables::apply(&global::FLAGS, &mut global, &look, &talk) {
        return failed(&talk, &Failure::new(why), &path);
    }
    let talk = global::talk(&global);
    if rest.first().is_some_and(|word| word == "help") {
        return help_of(&rest[1..]);
    }
    let Some((values, arguments)) = descend(&mut path, rest) else { return USAGE };
    let Some(mut values) = values else { return 0 };
    let command = *path.last().unwrap_or(&&ROOT);
    if let Err(error) = command.arity.check(arguments.len()) {
        return misused(&path, &error, false);
    }
    let flags = flags_of(&path);
    for flag in flags.iter().filter(|flag| values.has(flag)) {
        if let Some(instead) = flag.deprecated {
            talk.warning(&format!("Flag --{} has been deprecated, {instead}", flag.name));
        }
    }
    if let Err(why) = variables::apply(&flags, &mut values, &look, &talk) {
        return failed(&talk, &Failure::new(why), &path);
    }
    let context = Context {
        talk,
        values: &values,
        arguments: &arguments,
        config: global.word(&global::CONFIG).map(Path::new),
        host,
    };
    match (command.run)(&context) {
        Ok(code) => code,
        Err(failure) => failed(&talk, &failure, &path),
    }
}

/// The flags of a command, and of the groups that it is in.
fn flags_of(path: &[&'static Command]) -> Vec<&'static crate::flag::Flag> {
    path.iter().skip(1).flat_map(|command| command.all_flags()).collect()
}

/// Goes down from the root to the command that the words name, and reads its flags. `None` where the words made no
/// sense, which was said; no values where help was asked for and given.
#[allow(clippy::type_complexity)]
fn descend(path: &mut Vec<&'static Command>, mut rest: Vec<String>) -> Option<(Option<Values>, Vec<String>)> {
    let mut before = Values::default();
    loop {
        let group = *path.last()?;
        let Some(command) = rest.first().and_then(|word| find(group, word)) else {
            match rest.first() {
                Some(word) => told_off(&unknown_command(path, word)),
                None if path.len() == 1 => {}
                None => told_off(&format!("Error for command \"{}\": invalid command\n\n", group.name())),
            }
            misused_group(path);
            return None;
        };
        path.push(command);
        rest.remove(0);
        match parse(&flags_of(path), &rest, command.interspersed) {
            Ok(Parsed::Line(mut values, arguments)) if command.commands.is_empty() => {
                values.inherit(before);
                return Some((Some(values), arguments));
            }
            Ok(Parsed::Line(values, arguments)) => {
                before = values;
                rest = arguments;
            }
            Ok(Parsed::Help) => {
                told(&help::full(path));
                return Some((None, Vec::new()));
            }
            Err(error) => {
                misused(path, &error, true);
                return None;
            }
        }
    }
}

fn find(group: &'static Command, word: &str) -> Option<&'static Command> {
    group.commands.iter().copied().find(|command| command.goes_by(word))
}

fn help_of(words: &[String]) -> u8 {
    let mut path = vec![&ROOT];
    for word in words {
        match path.last().and_then(|group| find(group, word)) {
            Some(command) => path.push(command),
            None => {
                told_off(&unknown_command(&path, word));
                misused_group(&path);
                return USAGE;
            }
        }
    }
    told(&help::full(&path))
}

fn unknown_command(path: &[&'static Command], word: &str) -> String {
    let name: Vec<_> = path.iter().map(|command| command.name()).collect();
    let known = path.last().map(|c| c.commands.iter().map(|c| c.name()).collect::<Vec<_>>());
    let meant = isles_spec::nearest::nearest(word, known.unwrap_or_default())
        .map(|name| format!("\n\nDid you mean this?\n\t{name}"))
        .unwrap_or_default();
    format!("Error: unknown command \"{word}\" for \"{}\"{meant}\n\n", name.join(" "))
}

/// Prints data that was asked for.
fn told(text: &str) -> u8 {
    use std::io::Write;
    // Nothing can be said where the output is closed.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    0
}

/// Prints what is wrong with a command line, whatever the level of messages.
fn told_off(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// A command line that is not understood: the error, and what the command takes.
fn misused(path: &[&'static Command], error: &str, flags: bool) -> u8 {
    let Some(command) = path.last() else { return USAGE };
    let name = command.name();
    let mut text = format!("Error for command \"{name}\": {error}\n\n");
    if flags {
        let flags = if path.len() == 1 { global::FLAGS.to_vec() } else { command.all_flags() };
        text.push_str(&format!("Options for {name} command:\n\n{}\n", help::options(&flags)));
    } else {
        text.push_str(&format!("{}\n", help::usage(path)));
    }
    told_off(&format!("{text}{MORE}"));
    USAGE
}

fn misused_group(path: &[&'static Command]) {
    told_off(&format!("{}\n{MORE}", help::usage(path)));
}

fn failed(talk: &Talk, failure: &Failure, path: &[&'static Command]) -> u8 {
    if failure.usage {
        misused(path, &failure.line(), false);
    } else {
        talk.fatal(failure);
    }
    failure.code.unwrap_or(FATAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command, with the path to it.
    fn every(command: &'static Command, name: &str, visit: &mut dyn FnMut(&str, &'static Command)) {
        visit(name, command);
        for child in command.commands {
            every(child, &format!("{name} {}", child.name()), visit);
        }
    }

    #[test]
    fn the_tables_are_sound() {
        every(&ROOT, "apptainer", &mut |name, command| {
            assert!(!command.short.is_empty(), "{name}: no line for help");
            let mut names: Vec<_> = command.commands.iter().map(|command| command.name()).collect();
            names.sort_unstable();
            for pair in names.windows(2) {
                assert_ne!(pair[0], pair[1], "{name}: a command is there twice");
            }
            let mut flags = command.all_flags();
            flags.sort_by_key(|flag| flag.name);
            for pair in flags.windows(2) {
                assert_ne!(pair[0].name, pair[1].name, "{name}: a flag is there twice");
            }
            let mut shorts: Vec<char> = flags.iter().filter_map(|flag| flag.short).collect();
            shorts.sort_unstable();
            for pair in shorts.windows(2) {
                assert_ne!(pair[0], pair[1], "{name}: a letter stands for two flags");
            }
            for flag in flags {
                assert!(!flag.about.is_empty() || flag.hidden, "{name} --{}: no line for help", flag.name);
            }
        });
    }

    #[test]
    fn names_of_the_program() {
        for (name, known) in [
            ("/usr/bin/singularity", true),
            ("apptainer", true),
            ("run-singularity", true),
            ("isles", false),
            ("/apptainer/isles", false),
        ] {
            assert_eq!(is_name(Path::new(name)), known, "{name}");
        }
    }
}
