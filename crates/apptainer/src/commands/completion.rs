//! `apptainer completion`: what a shell asks when a word of the command line is to be completed.
//!
//! A script asks this program, which knows its tables: `apptainer __complete WORD…` prints a candidate a line, with what it is
//! behind a tab, and at last `:4` where only these are meant, or `:0` where files are as well. These are the words of cobra's
//! protocol, so scripts that Apptainer itself has written work, too.

use crate::command::{Arity, Command, Context};
use crate::commands::ROOT;
use crate::failure::Failure;
use crate::flag::{Flag, Kind};
use crate::global;

static NO_DESCRIPTIONS: Flag = Flag::switch("no-descriptions", "candidates alone, without what they are");

const LONG: &str = "Prints a script that completes the command line of `apptainer` and `singularity`.";

/// What asks for candidates.
pub const ASKS: &str = "__complete";
/// The same for those alone.
pub const ASKS_BARE: &str = "__completeNoDesc";

pub static COMMAND: Command = Command {
    usage: "completion",
    short: "Generate the autocompletion script for the specified shell",
    commands: &[&BASH, &FISH, &POWERSHELL, &ZSH],
    ..Command::EMPTY
};

static BASH: Command = Command {
    usage: "bash",
    short: "Generate the autocompletion script for bash",
    long: LONG,
    examples: "apptainer completion bash > /etc/bash_completion.d/apptainer",
    flags: &[&[&NO_DESCRIPTIONS]],
    arity: Arity::Exactly(0),
    run: |cx| script(cx, BASH_SCRIPT),
    ..Command::EMPTY
};

static FISH: Command = Command {
    usage: "fish",
    short: "Generate the autocompletion script for fish",
    long: LONG,
    examples: "apptainer completion fish > ~/.config/fish/completions/apptainer.fish",
    flags: &[&[&NO_DESCRIPTIONS]],
    arity: Arity::Exactly(0),
    run: |cx| script(cx, FISH_SCRIPT),
    ..Command::EMPTY
};

static POWERSHELL: Command = Command {
    usage: "powershell",
    short: "Not supported",
    flags: &[&[&NO_DESCRIPTIONS]],
    hidden: true,
    run: |_| {
        let instead = "there are scripts for bash, fish and zsh";
        Err(Failure::unsupported("apptainer completion powershell", instead))
    },
    ..Command::EMPTY
};

static ZSH: Command = Command {
    usage: "zsh",
    short: "Generate the autocompletion script for zsh",
    long: LONG,
    examples: "apptainer completion zsh > \"${fpath[1]}/_apptainer\"",
    flags: &[&[&NO_DESCRIPTIONS]],
    arity: Arity::Exactly(0),
    run: |cx| script(cx, ZSH_SCRIPT),
    ..Command::EMPTY
};

const BASH_SCRIPT: &str = r#"# bash completion of apptainer and singularity
_apptainer_complete() {
    local words=("${COMP_WORDS[@]:1:COMP_CWORD}") answer line files=
    [ "${#words[@]}" -ge "$COMP_CWORD" ] || words+=("")
    answer=$("${COMP_WORDS[0]}" ASKS "${words[@]}" 2>/dev/null) || return
    COMPREPLY=()
    while IFS= read -r line; do
        case $line in
            :0) files=yes ;;
            :*) ;;
            *) COMPREPLY+=("${line%%$'\t'*}") ;;
        esac
    done <<< "$answer"
    [ -z "$files" ] || compopt -o default 2>/dev/null
    [ "${#COMPREPLY[@]}" -ne 1 ] || [ "${COMPREPLY[0]: -1}" != = ] || compopt -o nospace 2>/dev/null
}
complete -F _apptainer_complete apptainer singularity
"#;

const FISH_SCRIPT: &str = r#"# fish completion of apptainer and singularity
function __apptainer_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in ($words[1] ASKS $words[2..-1] 2>/dev/null)
        switch $line
            case ':0'
                __fish_complete_path (commandline -ct)
            case ':*'
            case '*'
                echo $line
        end
    end
end
complete -c apptainer -f -a '(__apptainer_complete)'
complete -c singularity -f -a '(__apptainer_complete)'
"#;

const ZSH_SCRIPT: &str = r#"#compdef apptainer singularity
_apptainer() {
    local -a found
    local line files=
    for line in "${(@f)$(${words[1]} ASKS "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        case $line in
            :0) files=yes ;;
            :*|'') ;;
            *) found+=("${${line//:/\\:}/$'\t'/:}") ;;
        esac
    done
    (( ${#found} )) && _describe -t commands apptainer found
    [[ -n $files ]] && _files
}
if [ "${funcstack[1]}" = "_apptainer" ]; then _apptainer "$@"; else compdef _apptainer apptainer singularity; fi
"#;

fn script(cx: &Context<'_>, text: &str) -> Result<u8, Failure> {
    let asks = if cx.values.is(&NO_DESCRIPTIONS) { ASKS_BARE } else { ASKS };
    cx.print(text.replace("ASKS", asks)).map(|()| 0)
}

/// The candidates for the last of the words, as a shell is told.
pub fn candidates(words: &[String], described: bool) -> String {
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let mut path = vec![&ROOT];
    let mut flags: Vec<&Flag> = global::FLAGS.to_vec();
    let (mut value_of, mut arguments) = (None, 0);
    for word in before {
        if value_of.take().is_some() {
            continue;
        }
        let command = *path.last().unwrap_or(&&ROOT);
        if word.starts_with('-') && word.len() > 1 {
            value_of = takes_value(&flags, word);
        } else if let Some(next) = command.commands.iter().find(|next| next.goes_by(word)) {
            path.push(next);
            flags.extend(next.all_flags());
        } else {
            arguments += 1;
        }
    }
    let command = *path.last().unwrap_or(&&ROOT);
    let mut found: Vec<(String, &str)> = Vec::new();
    // Behind the image stand the words of its program.
    let flags_end = !command.interspersed && arguments > 0;
    let group = !command.commands.is_empty();
    if value_of.is_none() && last.starts_with('-') && !flags_end {
        let own: Vec<&Flag> = if path.len() == 1 { flags } else { command.all_flags() };
        let shown = own.iter().filter(|flag| !flag.hidden);
        found.extend(shown.map(|flag| {
            let end = if flag.kind == Kind::Switch { "" } else { "=" };
            (format!("--{}{end}", flag.name), flag.about)
        }));
        found.push(("--help".to_owned(), "help for it"));
    } else if value_of.is_none() && group {
        let shown = command.commands.iter().filter(|command| !command.hidden);
        found.extend(shown.map(|command| (command.name().to_owned(), command.short)));
    }
    found.retain(|(word, _)| word.starts_with(last));
    found.sort();
    let line = |(word, about): (String, &str)| {
        if described {
            format!("{word}\t{}\n", about.replace(['\t', '\n'], " "))
        } else {
            format!("{word}\n")
        }
    };
    let files = !group && (value_of.is_some() || !last.starts_with('-')) || value_of.is_some();
    let end = if files { ":0\n" } else { ":4\n" };
    found.into_iter().map(line).chain([end.to_owned()]).collect()
}

/// The flag whose value is the next word.
fn takes_value<'f>(flags: &[&'f Flag], word: &str) -> Option<&'f Flag> {
    let known = |flag: &&&Flag| match word.strip_prefix("--") {
        Some(name) => flag.name == name,
        // Of several letters the last one may have a value.
        None => flag.short.is_some_and(|short| word.ends_with(short)),
    };
    flags.iter().rev().find(known).copied().filter(|flag| flag.kind != Kind::Switch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &[&str]) -> String {
        candidates(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>(), false)
    }

    #[test]
    fn what_is_offered() {
        for (words, expected) in [
            (&["ex"][..], "exec\n:4\n"),
            (&["instance", "sta"], "start\nstats\n:4\n"),
            (&["--config", "ex"], ":0\n"),
            (&["exec", "--writ"], "--writable\n--writable-tmpfs\n:4\n"),
            (&["exec", "--bin"], "--bind=\n:4\n"),
            (&["exec", "-B", ""], ":0\n"),
            (&["exec", "-B", "/a", "--hostna"], "--hostname=\n:4\n"),
            (&["exec", "x.sif", "--writ"], ":4\n"),
            (&["exec", ""], ":0\n"),
            (&["pull", "x", "--for"], "--force\n:4\n"),
            (&["completion", ""], "bash\nfish\nzsh\n:4\n"),
            (&["--deb"], "--debug\n:4\n"),
        ] {
            assert_eq!(asked(words), expected, "{words:?}");
        }
        let described = candidates(&["ru".to_owned()], true);
        assert!(described.starts_with("run\tRun "), "{described}");
    }
}
