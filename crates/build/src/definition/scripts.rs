//! The text of the scripts below `/.singularity.d`: the names, the order in which they are read and what they do are
//! Apptainer's, the text is ours.

use isles_spec::image::ContainerConfig;

const READ_ENVIRONMENT: &str = "for script in /.singularity.d/env/*.sh; do\n\
    \x20   if [ -f \"$script\" ]; then\n\
    \x20       . \"$script\"\n\
    \x20   fi\n\
    done\n\
    unset script\n\
    app=\"${APPTAINER_APPNAME:-${SINGULARITY_APPNAME:-}}\"\n";

/// The actions that an image knows.
pub const ACTIONS: [&str; 5] = ["exec", "run", "shell", "start", "test"];

/// One of [`ACTIONS`]: what it does after it has read the environment.
pub fn action(name: &str) -> String {
    // The file of an app, the file of the image, and what is done where there is none.
    let choose = |what: &str, file: &str, otherwise: &str| {
        format!(
            "if [ -n \"$app\" ]; then\n\
             \x20   if [ -x \"/scif/apps/$app/scif/{file}\" ]; then\n\
             \x20       exec \"/scif/apps/$app/scif/{file}\" \"$@\"\n\
             \x20   fi\n\
             \x20   echo \"no {what} for the app $app\" >&2\n\
             \x20   exit 1\n\
             fi\n\
             if [ -x /.singularity.d/{file} ]; then\n\
             \x20   exec /.singularity.d/{file} \"$@\"\n\
             fi\n\
             {otherwise}\n"
        )
    };
    let before = match name {
        // Apptainer's process 1 of an instance waits for this.
        "start" => "kill -CONT 1 2>/dev/null\n",
        _ => "",
    };
    let then = match name {
        "run" => choose("runscript", "runscript", "exec /bin/sh \"$@\""),
        "start" => choose("startscript", "startscript", "exit 0"),
        "test" => choose("test", "test", "exit 0"),
        "shell" => "shell=\"${APPTAINER_SHELL:-${SINGULARITY_SHELL:-}}\"\n\
            if [ -n \"$shell\" ] && [ -x \"$shell\" ]; then\n    exec \"$shell\" \"$@\"\nfi\n\
            if [ -x /bin/bash ]; then\n    export SHELL=/bin/bash\n    exec /bin/bash --norc \"$@\"\nfi\n\
            export SHELL=/bin/sh\n\
            exec /bin/sh \"$@\"\n"
            .to_owned(),
        _ => "exec \"$@\"\n".to_owned(),
    };
    format!("#!/bin/sh\n{before}{READ_ENVIRONMENT}{then}")
}

/// `env/95-apps.sh`: finds the app that the caller chose, by either name.
pub const CHOSEN_APP: &str = "#!/bin/sh\n\
    app=\"${APPTAINER_APPNAME:-${SINGULARITY_APPNAME:-}}\"\n\
    if [ -n \"$app\" ]; then\n\
    \x20   if [ ! -d \"/scif/apps/$app\" ]; then\n\
    \x20       echo \"the image has no app $app\" >&2\n\
    \x20       exit 1\n\
    \x20   fi\n\
    \x20   APPTAINER_APPNAME=\"$app\" SINGULARITY_APPNAME=\"$app\"\n\
    \x20   SCIF_APPS=/scif/apps SCIF_APPROOT=\"/scif/apps/$app\"\n\
    \x20   export APPTAINER_APPNAME SINGULARITY_APPNAME SCIF_APPS SCIF_APPROOT\n\
    \x20   PATH=\"/scif/apps/$app:$PATH\"\n\
    \x20   if [ -d \"/scif/apps/$app/bin\" ]; then\n\
    \x20       PATH=\"/scif/apps/$app/bin:$PATH\"\n\
    \x20   fi\n\
    \x20   if [ -d \"/scif/apps/$app/lib\" ]; then\n\
    \x20       export LD_LIBRARY_PATH=\"/scif/apps/$app/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\"\n\
    \x20   fi\n\
    \x20   for scif in 01-base 90-environment; do\n\
    \x20       if [ -f \"/scif/apps/$app/scif/env/$scif.sh\" ]; then\n\
    \x20           . \"/scif/apps/$app/scif/env/$scif.sh\"\n\
    \x20       fi\n\
    \x20   done\n\
    \x20   unset scif\n\
    \x20   export PATH\n\
    fi\n\
    unset app\n";

/// `env/99-base.sh`: libraries that the runtime lends, and the prompt.
pub const LIBRARIES: &str = "#!/bin/sh\n\
    export LD_LIBRARY_PATH=\"${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs\"\n\
    export PS1='Apptainer> '\n";

/// `env/99-runtimevars.sh`: what the caller asked for PATH, which counts last.
pub const CALLERS_PATH: &str = "#!/bin/sh\n\
    if [ -n \"${SING_USER_DEFINED_PREPEND_PATH:-}\" ]; then\n\
    \x20   PATH=\"$SING_USER_DEFINED_PREPEND_PATH:$PATH\"\n\
    fi\n\
    if [ -n \"${SING_USER_DEFINED_APPEND_PATH:-}\" ]; then\n\
    \x20   PATH=\"$PATH:$SING_USER_DEFINED_APPEND_PATH\"\n\
    fi\n\
    if [ -n \"${SING_USER_DEFINED_PATH:-}\" ]; then\n\
    \x20   PATH=\"$SING_USER_DEFINED_PATH\"\n\
    fi\n\
    unset SING_USER_DEFINED_PREPEND_PATH SING_USER_DEFINED_APPEND_PATH SING_USER_DEFINED_PATH\n\
    export PATH\n";

/// Scripts of `env` that are the same in every image that we make, and set no variable but for the runtime.
pub const OWN_SCRIPTS: [(&str, &str); 3] =
    [("95-apps.sh", CHOSEN_APP), ("99-base.sh", LIBRARIES), ("99-runtimevars.sh", CALLERS_PATH)];

/// The image's own environment (ENV) as a script, `env/10-docker2singularity.sh`. What is set already wins, as it
/// does with ENV; but PATH is the image's where Apptainer starts it, since there it would be the host's.
pub fn image_environment(env: &[String]) -> String {
    let mut text = String::from("#!/bin/sh\n");
    for entry in env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !plain || name.starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        let value = in_double_quotes(value);
        if name == "PATH" {
            text.push_str(
                "if [ -n \"${APPTAINER_CONTAINER:-${SINGULARITY_CONTAINER:-}}\" ]; then\n    PATH=\nfi\n",
            );
        }
        text.push_str(&format!("export {name}=\"${{{name}:-{value}}}\"\n"));
    }
    text
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
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A section as a script: its own `#!` line stays, otherwise it is for /bin/sh. Arguments beside the name of the
/// section are the interpreter's.
pub fn of_section(arguments: &str, body: &str) -> String {
    let text = body.trim_start_matches(['\n', '\r']);
    let (interpreter, script) = match text.trim_start().strip_prefix("#!") {
        Some(rest) => {
            let (line, script) = rest.split_once('\n').unwrap_or((rest, ""));
            (line.trim(), script)
        }
        None => ("/bin/sh", text),
    };
    let arguments = arguments.split('#').next().unwrap_or_default().trim();
    let space = if arguments.is_empty() { "" } else { " " };
    let end = if script.is_empty() || script.ends_with('\n') { "" } else { "\n" };
    format!("#!{interpreter}{space}{arguments}\n{script}{end}")
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
        let only_entrypoint = of_command(&config(Some(&["printf", "%s|", "$HOME"]), None));
        assert_eq!(sh(&only_entrypoint, &["a b", "*"]), "$HOME|a b|*|", "words are no shell text");
        let only_cmd = of_command(&config(None, Some(&["echo", "hi"])));
        assert_eq!(sh(&only_cmd, &[]), "hi\n");
        assert_eq!(sh(&only_cmd, &["echo", "other"]), "other\n");
        assert!(of_command(&config(None, None)).contains("/bin/sh"));
    }

    #[test]
    fn the_environment_of_an_image_can_be_overridden() {
        let tricky = "a\"b$c`d\\e}f'g";
        let text = image_environment(&[format!("T={tricky}"), "bad-name=x".into(), "PATH=/image".into()]);
        let print = "printf '%s %s' \"$T\" \"$PATH\"";
        let host = "PATH=/host; unset T APPTAINER_CONTAINER SINGULARITY_CONTAINER\n";
        assert_eq!(sh(&format!("{host}{text}\n{print}"), &[]), format!("{tricky} /host"));
        assert_eq!(sh(&format!("{host}T=own\n{text}\n{print}"), &[]), "own /host");
        for name in ["APPTAINER", "SINGULARITY"] {
            let inside = format!("{host}{name}_CONTAINER=/x.sif\n{text}\n{print}");
            assert_eq!(sh(&inside, &[]), format!("{tricky} /image"));
        }
        assert!(!text.contains("bad-name"));
    }

    #[test]
    fn sections_as_scripts() {
        for (arguments, body, script) in [
            ("", "\n#!/usr/bin/python3\nprint(1)\n", "#!/usr/bin/python3\nprint(1)\n"),
            ("", "  echo\n", "#!/bin/sh\n  echo\n"),
            ("", "  #!/bin/bash -e \necho", "#!/bin/bash -e\necho\n"),
            ("-e # words", "echo\n", "#!/bin/sh -e\necho\n"),
            ("", "#!/bin/true", "#!/bin/true\n"),
        ] {
            assert_eq!(of_section(arguments, body), script, "{body:?}");
        }
    }

    #[test]
    fn the_callers_path_counts_last() {
        let run = |set: &str| sh(&format!("PATH=/image\n{set}\n{CALLERS_PATH}\nprintf %s \"$PATH\""), &[]);
        for (set, path) in [
            ("", "/image"),
            ("SING_USER_DEFINED_PREPEND_PATH=/a", "/a:/image"),
            ("SING_USER_DEFINED_PREPEND_PATH=/a SING_USER_DEFINED_APPEND_PATH=/b", "/a:/image:/b"),
            ("SING_USER_DEFINED_APPEND_PATH=/b SING_USER_DEFINED_PATH=/c", "/c"),
        ] {
            assert_eq!(run(set), path, "{set}");
        }
        let libraries = |set: &str| sh(&format!("{set}\n{LIBRARIES}\nprintf %s \"$LD_LIBRARY_PATH\""), &[]);
        assert_eq!(libraries("unset LD_LIBRARY_PATH"), "/.singularity.d/libs");
        assert_eq!(libraries("LD_LIBRARY_PATH=/own"), "/own:/.singularity.d/libs");
    }

    #[test]
    fn every_script_is_one_that_a_shell_reads() {
        let mut texts: Vec<String> = ACTIONS.iter().map(|name| action(name)).collect();
        texts.extend([CHOSEN_APP, LIBRARIES, CALLERS_PATH].map(str::to_owned));
        for text in texts {
            let out = Command::new("/bin/sh").args(["-n", "-c", &text]).output().unwrap();
            assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
        }
    }
}
