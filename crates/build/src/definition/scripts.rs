//! What a definition file leaves in an image below `/.singularity.d`, where Apptainer looks for it: the names and
//! the order in which the files are read are Apptainer's, the text is ours.
//!
//! The image starts by `/.singularity.d/actions/run`, which reads the environment and runs the runscript.

use std::collections::BTreeMap;

use isles_spec::image::ContainerConfig;

pub const ROOT: &str = "/.singularity.d";
/// What the image's ENTRYPOINT is.
pub const RUN: &str = "/.singularity.d/actions/run";
/// A `%post` may add lines here, which are read when the image runs.
pub const POST_ENVIRONMENT: &str = "/.singularity.d/env/91-environment.sh";
/// A `%post` may add `name value` lines here.
pub const POST_LABELS: &str = "/.singularity.d/post-labels";

const READ_ENVIRONMENT: &str = "for script in /.singularity.d/env/*.sh; do\n\
    \x20   if [ -f \"$script\" ]; then\n\
    \x20       . \"$script\"\n\
    \x20   fi\n\
    done\n\
    unset script\n";

/// The actions that the image knows: what each does after it has read the environment.
fn action(name: &str) -> String {
    let then = match name {
        "run" => "exec /.singularity.d/runscript \"$@\"",
        "start" => {
            "if [ -x /.singularity.d/startscript ]; then\n    exec /.singularity.d/startscript \"$@\"\nfi"
        }
        "test" => "if [ -x /.singularity.d/test ]; then\n    exec /.singularity.d/test \"$@\"\nfi",
        "shell" => "if [ -x /bin/bash ]; then\n    exec /bin/bash --norc \"$@\"\nfi\nexec /bin/sh \"$@\"",
        _ => "exec \"$@\"",
    };
    format!("#!/bin/sh\n{READ_ENVIRONMENT}{then}\n")
}

/// A file or a link, with its absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    File { path: String, mode: u32, text: String },
    Link { path: String, target: &'static str },
}

impl Entry {
    pub fn script(path: impl Into<String>, text: impl Into<String>) -> Entry {
        Entry::File { path: path.into(), mode: 0o755, text: text.into() }
    }

    pub fn text(path: impl Into<String>, text: impl Into<String>) -> Entry {
        Entry::File { path: path.into(), mode: 0o644, text: text.into() }
    }
}

/// What is there before `%post` runs, the same in every image.
pub fn skeleton() -> Vec<Entry> {
    let mut out: Vec<Entry> = ["exec", "run", "shell", "start", "test"]
        .iter()
        .map(|name| Entry::script(format!("{ROOT}/actions/{name}"), action(name)))
        .collect();
    out.push(Entry::script(POST_ENVIRONMENT, ""));
    for (path, target) in [
        ("/.exec", ".singularity.d/actions/exec"),
        ("/.run", ".singularity.d/actions/run"),
        ("/.shell", ".singularity.d/actions/shell"),
        ("/.test", ".singularity.d/actions/test"),
        ("/environment", ".singularity.d/env/90-environment.sh"),
        ("/singularity", ".singularity.d/runscript"),
    ] {
        out.push(Entry::Link { path: path.to_owned(), target });
    }
    out
}

/// The image's own environment (ENV) as a script. What is set already wins, as it does with ENV.
pub fn image_environment(env: &[String]) -> Entry {
    let mut text = String::from("#!/bin/sh\n");
    for (name, value) in env.iter().filter_map(|e| e.split_once('=')) {
        let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if plain && !name.starts_with(|c: char| c.is_ascii_digit()) {
            text.push_str(&format!("export {name}=\"${{{name}:-{}}}\"\n", in_double_quotes(value)));
        }
    }
    Entry::script(format!("{ROOT}/env/10-docker2singularity.sh"), text)
}

fn in_double_quotes(value: &str) -> String {
    value.chars().fold(String::new(), |mut out, c| {
        if matches!(c, '"' | '$' | '`' | '\\' | '}') {
            out.push('\\');
        }
        out.push(c);
        out
    })
}

/// A word that the shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A section as a script: its own `#!` line stays, otherwise it is for /bin/sh.
pub fn of_section(body: &str) -> String {
    let text = body.trim_start_matches(['\n', '\r']);
    if text.trim_start().starts_with("#!") {
        return text.trim_start().to_owned();
    }
    format!("#!/bin/sh\n{text}")
}

/// `%environment` as a script.
pub fn environment(body: &str) -> Entry {
    Entry::script(format!("{ROOT}/env/90-environment.sh"), format!("#!/bin/sh\n{body}"))
}

/// The runscript of an image that has none: what its ENTRYPOINT and CMD say, where arguments take the place of
/// CMD.
pub fn of_command(config: &ContainerConfig) -> String {
    let words =
        |list: &Option<Vec<String>>| list.iter().flatten().map(|w| quoted(w)).collect::<Vec<_>>().join(" ");
    let (entrypoint, cmd) = (words(&config.entrypoint), words(&config.cmd));
    let cmd = if entrypoint.is_empty() && cmd.is_empty() { quoted("/bin/sh") } else { cmd };
    let mut out = String::from("#!/bin/sh\n");
    if !cmd.is_empty() {
        out.push_str(&format!("if [ \"$#\" -eq 0 ]; then\n    set -- {cmd}\nfi\n"));
    }
    let space = if entrypoint.is_empty() { "" } else { " " };
    out.push_str(&format!("exec{space}{entrypoint} \"$@\"\n"));
    out
}

/// `%labels`: a name, a blank, and the value.
pub fn labels(body: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        Some((name.to_owned(), value.trim().to_owned()))
    };
    body.lines().filter_map(line).collect()
}

/// All labels as the file that `inspect` reads.
pub fn labels_file(labels: &BTreeMap<String, String>) -> Entry {
    let text = serde_json::to_string_pretty(labels).unwrap_or_default();
    Entry::text(format!("{ROOT}/labels.json"), text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sh(script: &str, args: &[&str]) -> String {
        let out = Command::new("/bin/sh").arg("-c").arg(script).arg("sh").args(args).output().unwrap();
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    #[test]
    fn a_command_as_a_runscript() {
        let config = |entrypoint: Option<&[&str]>, cmd: Option<&[&str]>| ContainerConfig {
            entrypoint: entrypoint.map(|w| w.iter().map(|w| (*w).to_owned()).collect()),
            cmd: cmd.map(|w| w.iter().map(|w| (*w).to_owned()).collect()),
            ..Default::default()
        };
        let both = of_command(&config(Some(&["printf", "%s|"]), Some(&["it's", "a b"])));
        assert_eq!(sh(&both, &[]), "it's|a b|");
        assert_eq!(sh(&both, &["x"]), "x|");
        let only_cmd = of_command(&config(None, Some(&["echo", "hi"])));
        assert_eq!(sh(&only_cmd, &[]), "hi\n");
        assert_eq!(sh(&only_cmd, &["echo", "other"]), "other\n");
        assert!(of_command(&config(None, None)).contains("/bin/sh"));
    }

    #[test]
    fn the_environment_of_an_image_can_be_overridden() {
        let tricky = "a\"b$c`d\\e}f'g";
        let Entry::File { text, .. } = image_environment(&[format!("T={tricky}"), "bad-name=x".into()])
        else {
            panic!()
        };
        assert_eq!(sh(&format!("unset T\n{text}\nprintf %s \"$T\""), &[]), tricky);
        assert_eq!(sh(&format!("T=own\n{text}\nprintf %s \"$T\""), &[]), "own");
        assert!(!text.contains("bad-name"));
    }

    #[test]
    fn sections() {
        assert_eq!(of_section("\n#!/usr/bin/python3\nprint(1)\n"), "#!/usr/bin/python3\nprint(1)\n");
        assert_eq!(of_section("  echo\n"), "#!/bin/sh\n  echo\n");
        let found = labels("# no\nAuthor  Ann B\nEmpty\n");
        assert_eq!(found, [("Author".into(), "Ann B".into()), ("Empty".to_owned(), String::new())]);
    }
}
