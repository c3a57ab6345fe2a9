//! What the scripts of `/.singularity.d/env` do, where that is known without a shell.
//!
//! Most images have the scripts that Apptainer, or Isles, writes into all of them, and beside those only variables with
//! plain values. Then the environment is made here, and a program is started without `/bin/sh` before it: that saves a
//! quarter of a start. Whatever is not known for certain is left to the shell.

use std::collections::BTreeMap;

use isles_build::definition::OWN_SCRIPTS;
use sha2::{Digest, Sha256};

use crate::contents::Contents;
use crate::environment::{self, plain_word};

const FOLDER: &str = "/.singularity.d/env";
/// More or longer scripts than these do more than set a few variables.
const MOST: usize = 32;
const LONGEST: usize = 64 << 10;

/// SHA-256 of scripts of Apptainer's 1.x, without their comments. They look for the chosen app, which is not for
/// here; they set `LD_LIBRARY_PATH` and `PS1`, and make the caller's PATH, as [`environment::Environment::plain`] does.
const APPTAINERS: [(&str, &str); 3] = [
    ("95-apps.sh", "f3916df8b764385c0f4553ed9eb21f660688c36176721c5ee54f98216f15d0f6"),
    ("99-base.sh", "0c032a98cea1fdf09acf29bedc4b7510f17517d96f0c90e02d511a463ff314b1"),
    ("99-runtimevars.sh", "67a5cbe8945583683ce8bea02a4e641c1d212a4f64403b5507631da8287ab07e"),
];

/// What comes before PATH in a script that Isles makes of an image's ENV: the host's PATH does not count.
const NO_PATH_OF_HOST: [&str; 3] =
    ["if [ -n \"${APPTAINER_CONTAINER:-${SINGULARITY_CONTAINER:-}}\" ]; then", "PATH=", "fi"];

/// The variables that the scripts of an image set, `NAME=VALUE` each; `None` where only a shell can tell.
pub fn variables(contents: &Contents) -> Option<Vec<String>> {
    let mut names = contents.names(FOLDER);
    names.retain(|name| name.ends_with(".sh"));
    names.sort_unstable();
    if names.len() > MOST {
        return None;
    }
    let mut out = BTreeMap::new();
    for name in names {
        read(&name, &contents.read_text(&format!("{FOLDER}/{name}"))?, &mut out)?;
    }
    Some(out.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

/// Reads one script; `None` where it is not understood.
fn read(name: &str, text: &str, out: &mut BTreeMap<String, String>) -> Option<()> {
    if text.len() > LONGEST {
        return None;
    }
    let lines: Vec<&str> =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    if is_known(name, text, &lines) {
        return Some(());
    }
    // What is exported last stays; but PATH is completed after this script only.
    let of_config = name.starts_with("10-docker");
    let lines = match lines.iter().position(|line| *line == NO_PATH_OF_HOST[0]) {
        Some(at) if of_config && lines.get(at..at + 3) == Some(&NO_PATH_OF_HOST[..]) => {
            [&lines[..at], &lines[at + 3..]].concat()
        }
        _ => lines,
    };
    for line in lines {
        let (name, value) = line.strip_prefix("export ")?.trim_start().split_once('=')?;
        let special = ["LD_LIBRARY_PATH", "PS1", "PROMPT_COMMAND", "HOME", "PWD", "IFS"].contains(&name);
        if !environment::is_name(name) || special || name == "PATH" && !of_config || out.contains_key(name) {
            return None;
        }
        // Names of these kinds are the program's own.
        if ["APPTAINER", "SINGULARITY", "SING_USER"].iter().any(|own| name.starts_with(own)) {
            return None;
        }
        let value = match value.strip_prefix(&format!("\"${{{name}:-")) {
            // Nothing has set it before.
            Some(rest) => otherwise(rest.strip_suffix("}\"")?)?,
            None => plain_word(value)?,
        };
        // An empty one of an image lets none of the host through, and is none itself.
        if value.is_empty() {
            return None;
        }
        out.insert(name.to_owned(), value);
    }
    Some(())
}

fn is_known(name: &str, text: &str, lines: &[&str]) -> bool {
    if OWN_SCRIPTS.contains(&(name, text)) {
        return true;
    }
    let Some((_, known)) = APPTAINERS.iter().find(|(known, _)| *known == name) else { return false };
    let mut hash = Sha256::new();
    for line in lines {
        hash.update(line);
        hash.update("\n");
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    found == *known
}

/// The word of `${NAME:-WORD}` between double quotes, which may have quotes of its own.
fn otherwise(word: &str) -> Option<String> {
    let word = match word.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"')?,
        None => word,
    };
    let mut out = String::with_capacity(word.len());
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                c @ ('"' | '\\' | '$' | '`' | '}') => out.push(c),
                c => out.extend(['\\', c]),
            },
            '"' | '$' | '`' | '}' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, text: &str) -> Option<String> {
        let mut out = BTreeMap::new();
        read(name, text, &mut out)?;
        Some(out.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn scripts_that_are_understood() {
        for (name, text, expected) in [
            ("90-environment.sh", "", ""),
            ("90-environment.sh", "#!/bin/sh\n# note\n\n", ""),
            ("90-environment.sh", "#!/bin/sh\nexport A=1\n  export B='x $y'\n", "A=1 B=x $y"),
            ("10-docker2singularity.sh", "#!/bin/sh\nexport PATH=\"/a:/b\"\n", "PATH=/a:/b"),
            ("10-docker2singularity.sh", "export LANG=\"${LANG:-\"C.UTF-8\"}\"\n", "LANG=C.UTF-8"),
            ("10-docker2singularity.sh", "export A=\"${A:-a\\$b\\}c d}\"\n", "A=a$b}c d"),
        ] {
            assert_eq!(of(name, text).as_deref(), Some(expected), "{name}: {text}");
        }
    }

    #[test]
    fn scripts_that_need_a_shell() {
        for (name, text) in [
            ("90-environment.sh", "A=1\n"),
            ("90-environment.sh", "export A\n"),
            ("90-environment.sh", "export A=$B\n"),
            ("90-environment.sh", "export A=\"$(date)\"\n"),
            ("90-environment.sh", "export A=1 B=2\n"),
            ("90-environment.sh", "export A=1; export B=2\n"),
            ("90-environment.sh", "export A=\n"),
            ("90-environment.sh", "export A=1\nexport A=2\n"),
            ("90-environment.sh", "export A=\"${B:-1}\"\n"),
            ("90-environment.sh", "export A=\"${A:-$B}\"\n"),
            ("90-environment.sh", "export A='one\ntwo'\n"),
            ("90-environment.sh", "export PATH=/only\n"),
            ("90-environment.sh", "export LD_LIBRARY_PATH=/opt/lib\n"),
            ("90-environment.sh", "export PS1=x\n"),
            ("90-environment.sh", "export HOME=/x\n"),
            ("90-environment.sh", "export APPTAINER_NAME=x\n"),
            ("90-environment.sh", "module load x\n"),
            ("95-apps.sh", "#!/bin/sh\necho no\n"),
            ("99-base.sh", "export LATE=$W\n"),
        ] {
            assert_eq!(of(name, text), None, "{name}: {text}");
        }
    }

    #[test]
    fn the_scripts_of_all_images_are_known() {
        for (name, text) in OWN_SCRIPTS {
            assert_eq!(of(name, text).as_deref(), Some(""), "{name}");
            assert!(of(name, &format!("{text}echo more\n")).is_none(), "{name}");
        }
    }
}
