//! What `--help` prints, and the usage under an error. Both are made of the tables of commands and flags.

use crate::command::Command;
use crate::flag::{Flag, Kind};
use crate::global;

/// The command with those above it, outermost first: `[apptainer, instance, start]`.
pub type Path<'a> = [&'a Command];

/// The whole help of a command.
pub fn full(path: &Path<'_>) -> String {
    let Some(command) = path.last() else { return String::new() };
    let mut text = format!("{}\n\nUsage:\n  {}", command.short, usage_line(path));
    if !command.commands.is_empty() {
        text.push_str(" <command>");
    }
    text.push('\n');
    if !command.long.is_empty() {
        text.push_str(&format!("\nDescription:\n{}\n", indented(command.long)));
    }
    let flags = options(&command.all_flags());
    if path.len() == 1 {
        text.push_str(&format!("\nOptions:\n{}", options(&global::FLAGS)));
    } else if !flags.is_empty() {
        text.push_str(&format!("\nOptions:\n{flags}"));
    }
    text.push_str(&commands(command));
    if !command.examples.is_empty() {
        text.push_str(&format!("\nExamples:\n{}\n", indented(command.examples)));
    }
    text
}

/// The usage that stands below an error.
pub fn usage(path: &Path<'_>) -> String {
    let group = path.last().filter(|command| !command.commands.is_empty());
    let more = group.map(|command| format!(" <command>\n{}", commands(command))).unwrap_or_default();
    format!("Usage:\n  {}{}\n", usage_line(path), more.trim_end_matches('\n'))
}

/// `apptainer [global options...] exec [exec options...] <container> <command>`
fn usage_line(path: &Path<'_>) -> String {
    path.iter().map(|command| command.usage).collect::<Vec<_>>().join(" ")
}

fn commands(command: &Command) -> String {
    let shown: Vec<_> = command.commands.iter().filter(|command| !command.hidden).collect();
    let Some(width) = shown.iter().map(|command| command.name().len()).max() else { return String::new() };
    let lines = shown.iter().map(|c| format!("  {:<width$}  {}\n", c.name(), c.short));
    format!("\nAvailable Commands:\n{}", lines.collect::<String>())
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| if line.is_empty() { String::new() } else { format!("  {line}") })
        .collect::<Vec<_>>()
        .join("\n")
}

/// The flags of a table, a line each, with the variable that sets them.
pub fn options(flags: &[&Flag]) -> String {
    let mut shown: Vec<&&Flag> =
        flags.iter().filter(|flag| !flag.hidden && flag.deprecated.is_none()).collect();
    shown.sort_by_key(|flag| flag.name);
    let left: Vec<String> = shown.iter().map(|flag| left(flag)).collect();
    let width = left.iter().map(String::len).max().unwrap_or(0);
    let lines = shown.iter().zip(&left).map(|(flag, left)| {
        let variable = flag.variables.first().map(|key| match flag.bare {
            true => format!(" [{key}]"),
            false => format!(" [APPTAINER_{key}]"),
        });
        format!("{left:<width$}   {}{}\n", flag.about, variable.unwrap_or_default())
    });
    lines.collect()
}

fn left(flag: &Flag) -> String {
    let short = flag.short.map_or("      ".to_owned(), |short| format!("  -{short}, "));
    let tag = match flag.kind {
        Kind::Switch => String::new(),
        _ if flag.tag.is_empty() => " value".to_owned(),
        _ => format!(" {}", flag.tag),
    };
    format!("{short}--{}{tag}", flag.name)
}
