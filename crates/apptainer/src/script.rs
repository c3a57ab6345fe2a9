//! The action script: what `/bin/sh` of the image runs before the program, where it has one.
//!
//! It reads the scripts of `/.singularity.d/env` as Apptainer does, and that order is all of it: the image's variables
//! are made from nothing, what the caller wants comes after `99-base.sh`, and variables of the host count where
//! nothing was set. Values travel as variables with numbers for names, so that no text of the caller is part of
//! the script; only what `--no-eval` would leave alone is read by the shell.

use crate::environment::{DEFAULT_PATH, Environment, LIBS, PROMPT, prompt_command};

/// What `%post` may add to, where nothing else was said.
pub const POST_ENVIRONMENT: &str = "/.singularity.d/env/91-environment.sh";

/// What is done once the environment is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Exec,
    Run,
    Shell,
    Test,
    /// The startscript of an instance.
    Start,
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Action::Exec => "exec",
            Action::Run => "run",
            Action::Shell => "shell",
            Action::Test => "test",
            Action::Start => "start",
        }
    }
}

/// The script and the variables that it starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    pub text: String,
    pub env: Vec<String>,
}

/// How the script is to be.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    pub action: Action,
    /// The shell reads wanted values.
    pub evaluate: bool,
    /// Texts of `--env-file` that only a shell can read.
    pub files: &'a [String],
    /// Wanted variables that win over those texts (`--env`).
    pub firm: &'a [String],
    /// Libraries of the host are lent in [`LIBS`].
    pub libraries: bool,
    /// Messages of the script: nothing but errors, or information as well.
    pub quiet: bool,
}

const FUNCTIONS: &str = r#"
__fail() { printf 'FATAL:   %s\n' "$1" >&2; exit 255; }
__keep() { eval "if [ -z \"\${$1+x}\" ]; then $1=\$__$2; export $1; elif [ -z \"\$$1\" ]; then unset $1; fi"; unset "__$2"; }
__take() { eval "$1=\$__$2"; export "$1"; unset "__$2"; }
__read() { eval "__text=\$__$2"; unset "__$2"; eval "$1=\"$__text\""; export "$1"; unset __text; }
__complete() {
    __rest=$__default:
    while [ -n "$__rest" ]; do
        case :$PATH: in *:"${__rest%%:*}":*) ;; *) PATH=${PATH:+$PATH:}${__rest%%:*} ;; esac
        __rest=${__rest#*:}
    done
    export PATH
}
__find() {
    case $1 in
    */*)
        [ -e "$1" ] || __fail "stat $1: no such file or directory"
        [ ! -d "$1" ] && [ -x "$1" ] || __fail "$1: permission denied"
        return ;;
    esac
    __rest=$PATH:
    while [ -n "$__rest" ]; do
        if [ -f "${__rest%%:*}/$1" ] && [ -x "${__rest%%:*}/$1" ]; then return; fi
        __rest=${__rest#*:}
    done
    __fail "\"$1\": executable file not found in \$PATH"
}
"#;

/// Scripts of the image; `__wanted` comes after the one that all images have, or at the end.
const READ_SCRIPTS: &str = r#"
unset PS1
unset PATH
if [ -d /.singularity.d/env ]; then
    for __script in /.singularity.d/env/*.sh; do
        [ -f "$__script" ] || continue
        case $__script in
        */90-environment.sh) [ -n "${PATH+x}" ] || __complete; . "$__script" ;;
        */10-docker2singularity.sh | */10-docker.sh) . "$__script"; __complete ;;
        */99-base.sh) . "$__script"; __wanted; __wanted() { :; } ;;
        *) . "$__script" ;;
        esac
    done
elif [ -f /environment ]; then
    . /environment
fi
[ -n "${PATH+x}" ] || __complete
__wanted
if [ -n "${SING_USER_DEFINED_PREPEND_PATH:-}" ]; then PATH=$SING_USER_DEFINED_PREPEND_PATH:$PATH; fi
if [ -n "${SING_USER_DEFINED_APPEND_PATH:-}" ]; then PATH=$PATH:$SING_USER_DEFINED_APPEND_PATH; fi
if [ -n "${SING_USER_DEFINED_PATH:-}" ]; then PATH=$SING_USER_DEFINED_PATH; fi
unset SING_USER_DEFINED_PREPEND_PATH SING_USER_DEFINED_APPEND_PATH SING_USER_DEFINED_PATH
export PATH PWD
"#;

/// Libraries that are lent come after those of the image, whose folders only its own ldconfig knows.
const LIBRARIES_LAST: &str = r#"
if [ "${LD_LIBRARY_PATH:-}" = "$__libs" ]; then
    __folders=$(/sbin/ldconfig -Nv 2>/dev/null | while IFS= read -r __line; do
        case $__line in /*:*) printf '%s:' "${__line%%:*}" ;; esac
    done)
    LD_LIBRARY_PATH=$__folders$__libs
fi
"#;

/// Makes the script. `of_image` are the variables of an image that has no scripts which set them.
pub fn script(env: &Environment, of_image: &[String], options: &Options<'_>) -> Script {
    let mut out: Vec<String> = env.fixed.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut number = 0;
    let mut lend = |value: &str, out: &mut Vec<String>| {
        number += 1;
        out.push(format!("__{number}={value}"));
        number
    };
    let mut text = format!("__default={DEFAULT_PATH}\n__libs={LIBS}{FUNCTIONS}__wanted() {{\n:\n");
    let mut want = |name: &str, value: &str, out: &mut Vec<String>| {
        let value = match name {
            "LD_LIBRARY_PATH" if !value.is_empty() => format!("{value}:{LIBS}"),
            _ => value.to_owned(),
        };
        let (how, value) = if options.evaluate && value.contains(['$', '`', '\\', '"']) {
            ("__read", with_quotes_escaped(&value))
        } else {
            ("__take", value)
        };
        format!("{how} {name} {}\n", lend(&value, out))
    };
    let firm = |name: &String| options.firm.contains(name) && !options.files.is_empty();
    for (name, value) in env.wanted.iter().filter(|(name, _)| !firm(name)) {
        text.push_str(&want(name, value, &mut out));
    }
    if !options.files.is_empty() {
        text.push_str("set -a\n");
        for (n, file) in options.files.iter().enumerate() {
            out.push(format!("__file{n}={file}"));
            text.push_str(&format!("eval \"$__file{n}\"; unset __file{n}\n"));
        }
        text.push_str("set +a\n");
    }
    for (name, value) in env.wanted.iter().filter(|(name, _)| firm(name)) {
        text.push_str(&want(name, value, &mut out));
    }
    text.push_str("}\n");
    for (name, value) in of_image.iter().filter_map(|entry| entry.split_once('=')) {
        if crate::environment::is_name(name) && name != "PATH" {
            let at = lend(value, &mut out);
            text.push_str(&format!("__take {name} {at}\n"));
        }
    }
    let path = of_image.iter().find_map(|entry| entry.strip_prefix("PATH="));
    let read = match path {
        Some(path) => {
            let at = lend(path, &mut out);
            READ_SCRIPTS.replacen("unset PATH", &format!("__take PATH {at}; __complete"), 1)
        }
        None => READ_SCRIPTS.to_owned(),
    };
    text.push_str(&read);
    text.push_str("if [ -z \"${LD_LIBRARY_PATH:-}\" ]; then export LD_LIBRARY_PATH=$__libs; fi\n");
    if options.libraries {
        text.push_str(LIBRARIES_LAST);
    }
    for (name, value) in &env.host {
        let at = lend(value, &mut out);
        text.push_str(&format!("__keep {name} {at}\n"));
    }
    text.push_str(&format!(
        "[ -n \"${{PS1:-}}\" ] || PS1='{PROMPT}'\nexport PS1\nPROMPT_COMMAND='{}'\nexport PROMPT_COMMAND\n",
        prompt_command()
    ));
    text.push_str(
        "export APPTAINER_ENVIRONMENT=\"${APPTAINER_ENVIRONMENT:-/.singularity.d/env/91-environment.sh}\"\n\
         export SINGULARITY_ENVIRONMENT=\"$APPTAINER_ENVIRONMENT\"\n\
         __app=${APPTAINER_APPNAME:-${SINGULARITY_APPNAME:-}}\n",
    );
    text.push_str(&then(options));
    Script { text, env: out }
}

/// So that the value can stand between double quotes; an escaped quote stays one.
fn with_quotes_escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut escaped = false;
    for c in value.chars() {
        if c == '"' && !escaped {
            out.push('\\');
        }
        escaped = c == '\\' && !escaped;
        out.push(c);
    }
    // A backslash at the end would take the quote that closes.
    if escaped {
        out.push('\\');
    }
    out
}

fn then(options: &Options<'_>) -> String {
    let info =
        |text: &str| if options.quiet { ":".to_owned() } else { format!("echo 'INFO:    {text}' >&2") };
    let error = |text: &str| format!("echo \"ERROR:   {text}\" >&2; exit 1");
    let of_app = |file: &str, what: &str| {
        format!(
            "if [ -n \"$__app\" ]; then\n\
             [ ! -x \"/scif/apps/$__app/scif/{file}\" ] || exec \"/scif/apps/$__app/scif/{file}\" \"$@\"\n\
             {}\nfi\n\
             [ ! -x /.singularity.d/{file} ] || exec /.singularity.d/{file} \"$@\"\n",
            error(&format!("no {what} for contained app: $__app"))
        )
    };
    match options.action {
        Action::Exec => "__find \"$1\"\nexec \"$@\"\n".to_owned(),
        Action::Shell => "__shell=${SINGULARITY_SHELL:-${APPTAINER_SHELL:-}}\n\
            if [ -n \"$__shell\" ] && [ -x \"$__shell\" ]; then exec \"$__shell\" \"$@\"; fi\n\
            if [ -x /bin/bash ]; then SHELL=/bin/bash; export SHELL; exec /bin/bash --norc \"$@\"; fi\n\
            SHELL=/bin/sh; export SHELL; exec /bin/sh \"$@\"\n"
            .to_owned(),
        Action::Run => format!(
            "{}[ ! -x /apptainer ] || exec /apptainer \"$@\"\n[ ! -x /singularity ] || exec /singularity \"$@\"\n\
             {}\nexec /bin/sh \"$@\"\n",
            of_app("runscript", "runscript"),
            info("No runscript found in container, executing /bin/sh")
        ),
        Action::Test => {
            format!(
                "{}{}\nexit 0\n",
                of_app("test", "tests"),
                info("No test script found in container, exiting")
            )
        }
        Action::Start => format!(
            "{}{}\nexit 0\n",
            of_app("startscript", "startscript"),
            info("No instance start script found in container")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    const OPTIONS: Options<'_> = Options {
        action: Action::Exec,
        evaluate: true,
        files: &[],
        firm: &[],
        libraries: false,
        quiet: false,
    };

    fn map(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// Runs a script in all shells that are here, with a folder in the place of `/.singularity.d`.
    fn run(dir: &Path, script: &Script, args: &[&str]) -> (i32, String, String) {
        let text = script.text.replace("/.singularity.d", dir.to_str().unwrap());
        let mut outputs = Vec::new();
        for shell in [&["/bin/dash"][..], &["/bin/bash", "--posix"], &["/bin/busybox", "sh"]] {
            if !Path::new(shell[0]).exists() {
                println!("skip: {} is not installed", shell[0]);
                continue;
            }
            let env = script.env.iter().filter_map(|entry| entry.split_once('='));
            let out = Command::new(shell[0])
                .args(&shell[1..])
                .args(["-c", &text, "apptainer"])
                .args(args)
                .env_clear()
                .envs(env)
                .output()
                .unwrap();
            let said = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            outputs.push((out.status.code().unwrap(), said(out.stdout), said(out.stderr)));
        }
        for pair in outputs.windows(2) {
            assert_eq!((pair[0].0, &pair[0].1), (pair[1].0, &pair[1].1), "shells differ: {outputs:?}");
        }
        outputs.swap_remove(0)
    }

    fn image(scripts: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("env")).unwrap();
        for (name, text) in scripts {
            fs::write(dir.path().join(name), text).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(dir.path().join(name), mode).unwrap();
        }
        dir
    }

    #[test]
    fn the_image_then_the_caller_then_the_host() {
        let dir = image(&[
            (
                "env/10-docker2singularity.sh",
                "export PATH=\"${PATH:-/image:/bin}\"\nexport A=\"${A:-image}\"\n",
            ),
            ("env/90-environment.sh", "export B=image\nexport E=\nexport W=image\n"),
            ("env/99-base.sh", "export LATE=$W\n"),
        ]);
        let env = Environment {
            fixed: map(&[("HOME", "/h"), ("APPTAINER_NAME", "x.sif")]),
            host: map(&[("A", "host"), ("B", "host"), ("C", "a b\n'\"$x"), ("E", "host")]),
            wanted: map(&[("W", "own"), ("X", r#"$HOME `echo x` $(echo y) q"q \"r"#), ("T", r"end\")]),
        };
        let show = [
            "sh",
            "-c",
            "printf '%s|' \"$PATH\" \"$A\" \"$B\" \"$C\" \"${E-gone}\" \"$W\" \"$LATE\" \"$X\" \"$T\" \"$APPTAINER_NAME\"",
        ];
        let (code, out, err) = run(dir.path(), &script(&env, &[], &OPTIONS), &show);
        let path = "/image:/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin";
        let expected = format!("{path}|image|image|a b\n'\"$x|gone|own|image|/h x y q\"q \"r|end\\|x.sif|");
        assert_eq!((code, out.as_str()), (0, expected.as_str()), "{err}");
        let options = Options { evaluate: false, ..OPTIONS };
        let (_, out, _) = run(dir.path(), &script(&env, &[], &options), &["sh", "-c", "printf %s \"$X\""]);
        assert_eq!(out, env.wanted["X"], "--no-eval");
        let list = ["sh", "-c", "env | grep '^__'; echo $PS1"];
        assert_eq!(
            run(dir.path(), &script(&env, &[], &OPTIONS), &list).1,
            "Apptainer>\n",
            "nothing is left over"
        );
    }

    #[test]
    fn an_image_without_scripts() {
        let dir = tempfile::tempdir().unwrap();
        let env = Environment {
            host: map(&[("A", "host"), ("B", "host")]),
            wanted: map(&[(crate::environment::PREPEND_PATH, "/first")]),
            ..Environment::default()
        };
        let of_image = ["A=image $x".to_owned(), "PATH=/bin".into()];
        let show = ["sh", "-c", "printf '%s|' \"$A\" \"$B\" \"$PATH\" \"$LD_LIBRARY_PATH\""];
        let (_, out, err) = run(dir.path(), &script(&env, &of_image, &OPTIONS), &show);
        let path = "/first:/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin";
        assert_eq!(out, format!("image $x|host|{path}|{}/libs|", dir.path().display()), "{err}");
        let (_, out, _) = run(dir.path(), &script(&env, &[], &OPTIONS), &show);
        assert_eq!(out, format!("host|host|/first:{DEFAULT_PATH}|{}/libs|", dir.path().display()));
    }

    #[test]
    fn files_of_variables_are_read_by_the_shell() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["A=1\nif true; then B=$A$A; fi\n".to_owned()];
        let options = Options { files: &files, ..OPTIONS };
        let (_, out, err) =
            run(dir.path(), &script(&Environment::default(), &[], &options), &["sh", "-c", "echo $A $B"]);
        assert_eq!(out, "1 11\n", "{err}");
    }

    #[test]
    fn programs_that_are_not_there_are_255() {
        let dir = image(&[("plain", "")]);
        fs::write(dir.path().join("none"), "").unwrap();
        let folder = dir.path().to_str().unwrap();
        let none = format!("{folder}/none");
        for (program, code, said) in [
            ("nosuch", 255, "FATAL:   \"nosuch\": executable file not found in $PATH\n".to_owned()),
            ("/nosuch/x", 255, "FATAL:   stat /nosuch/x: no such file or directory\n".into()),
            (folder, 255, format!("FATAL:   {folder}: permission denied\n")),
            (&none, 255, format!("FATAL:   {none}: permission denied\n")),
            ("false", 1, String::new()),
        ] {
            let (got, _, err) = run(dir.path(), &script(&Environment::default(), &[], &OPTIONS), &[program]);
            assert_eq!((got, err), (code, said), "{program}");
        }
    }

    #[test]
    fn what_each_action_runs() {
        let dir = image(&[
            ("runscript", "#!/bin/sh\necho run \"$@\"\n"),
            ("test", "#!/bin/sh\nexit 7\n"),
            ("startscript", "#!/bin/sh\necho start\n"),
        ]);
        let bare = tempfile::tempdir().unwrap();
        let with = |action, dir: &Path, app: &str| {
            let mut env = Environment::default();
            if !app.is_empty() {
                env.fixed.insert("APPTAINER_APPNAME".into(), app.into());
            }
            run(dir, &script(&env, &[], &Options { action, ..OPTIONS }), &["-c", "echo $0 $1"])
        };
        assert_eq!(with(Action::Run, dir.path(), "").1, "run -c echo $0 $1\n");
        assert_eq!(with(Action::Test, dir.path(), "").0, 7);
        assert_eq!(with(Action::Start, dir.path(), "").1, "start\n");
        let (code, _, err) = with(Action::Run, dir.path(), "nosuch");
        assert_eq!((code, err.as_str()), (1, "ERROR:   no runscript for contained app: nosuch\n"));
        let (code, _, err) = with(Action::Run, bare.path(), "");
        assert_eq!(
            (code, err.as_str()),
            (0, "INFO:    No runscript found in container, executing /bin/sh\n")
        );
        assert_eq!(with(Action::Test, bare.path(), "").0, 0);
    }
}
