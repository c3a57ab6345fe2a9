//! The environment of the container: what passes from the host, what the caller wishes, and what the program itself
//! says.
//!
//! Three kinds of variables, as Apptainer has them. *Fixed* ones are there from the beginning (`HOME`,
//! `APPTAINER_NAME`). Those *of the host* count where the image says nothing else. Those that are *wanted*
//! (`APPTAINERENV_X`, `SINGULARITYENV_X`, `--env`, `--env-file`) win over the image; unless `--no-eval` is given a
//! shell in the container reads them once, so `$(…)` and `$NAME` in them mean something, as people rely on.

use std::collections::BTreeMap;

use crate::talk::Talk;

/// Where programs are looked for when the image does not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where programs of the host are looked for besides, in Apptainer's order.
pub const PATH_OF_HOST: &str = "/bin:/usr/bin:/sbin:/usr/sbin:/usr/local/bin:/usr/local/sbin";
const NEW: &str = "APPTAINERENV_";
const OLD: &str = "SINGULARITYENV_";
/// The caller's wishes for PATH, under the names that the scripts of images know.
pub const PREPEND_PATH: &str = "SING_USER_DEFINED_PREPEND_PATH";
pub const APPEND_PATH: &str = "SING_USER_DEFINED_APPEND_PATH";
pub const WHOLE_PATH: &str = "SING_USER_DEFINED_PATH";
/// Where libraries of the host are lent.
pub const LIBS: &str = "/.singularity.d/libs";

/// Pass even where the environment is clean.
const ALWAYS: [&str; 11] = [
    "TERM",
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "no_proxy",
    "NO_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "ftp_proxy",
    "FTP_PROXY",
];
/// Never pass, and cannot be wished for.
const NEVER: [&str; 6] =
    ["HOME", "PATH", "APPTAINER_SHELL", "APPTAINER_APPNAME", "SINGULARITY_SHELL", "SINGULARITY_APPNAME"];
/// What ranks of an MPI program find each other by (`--mpi`): PMI-1 and PMI-2, PMIx, Open MPI, MPICH's Hydra, Intel MPI,
/// Slurm, PALS, Flux.
const MPI: [&str; 11] =
    ["PMI_", "PMIX_", "OMPI_", "PRTE_", "MPI_LOCAL", "MPIR_", "HYDI_", "I_MPI_", "SLURM_", "PALS_", "FLUX_"];
/// Shells do not let these be set.
const READ_ONLY: [&str; 9] =
    ["UID", "EUID", "GID", "PPID", "SHELLOPTS", "BASHOPTS", "BASH_VERSINFO", "IFS", "OPTIND"];

/// What was asked for on the command line.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    pub clean: bool,
    pub mpi: bool,
    /// `--no-env`
    pub without: Vec<String>,
    /// `--env`
    pub set: BTreeMap<String, String>,
    /// Variables of files; of those the command line sets, too, its value counts.
    pub from_files: BTreeMap<String, String>,
}

/// The variables of a container, each kind in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    pub fixed: BTreeMap<String, String>,
    pub host: BTreeMap<String, String>,
    pub wanted: BTreeMap<String, String>,
}

/// Sorts the variables of the host, and adds the wishes.
pub fn environment(host: &[(String, String)], wishes: &Wishes, talk: &Talk) -> Environment {
    let mut out = Environment::default();
    if wishes.clean {
        out.host.insert("LANG".into(), "C".into());
    }
    let mut asked: Vec<(String, String)> = Vec::new();
    for (name, value) in &wishes.from_files {
        if wishes.set.contains_key(name) {
            talk.warning(&overridden(name));
        } else {
            asked.push((format!("{NEW}{name}"), value.clone()));
        }
    }
    asked.extend(wishes.set.iter().map(|(name, value)| (format!("{NEW}{name}"), value.clone())));
    let all = asked.iter().chain(host.iter().filter(|(name, _)| !asked.iter().any(|(a, _)| a == name)));
    let all: Vec<&(String, String)> = all.collect();
    warn_of_old_names(&all, talk);
    for prefix in [NEW, OLD] {
        for (name, value) in &all {
            if let Some(key) = name.strip_prefix(prefix).filter(|key| !key.is_empty()) {
                want(&mut out, name, key, value, talk);
            }
        }
    }
    for (name, value) in host {
        let own = [NEW, OLD, crate::variables::NEW, crate::variables::OLD];
        let passes = ALWAYS.contains(&name.as_str())
            || !wishes.clean
            || wishes.mpi && MPI.iter().any(|prefix| name.starts_with(prefix));
        let barred = own.iter().any(|prefix| name.starts_with(prefix))
            || NEVER.contains(&name.as_str())
            || name == "LD_LIBRARY_PATH"
            || wishes.without.contains(name)
            || !is_name(name);
        if passes && !barred && !out.wanted.contains_key(name) {
            out.host.insert(name.clone(), value.clone());
        }
    }
    out.host.retain(|name, _| !out.wanted.contains_key(name));
    out
}

fn want(out: &mut Environment, name: &str, key: &str, value: &str, talk: &Talk) {
    let key = match key {
        "PREPEND_PATH" => PREPEND_PATH,
        "APPEND_PATH" => APPEND_PATH,
        "PATH" => WHOLE_PATH,
        key if NEVER.contains(&key) => {
            talk.warning(&format!("Overriding {key} environment variable with {name} is not permitted"));
            return;
        }
        key => key,
    };
    if !is_name(key) || READ_ONLY.contains(&key) {
        return;
    }
    match out.wanted.get(key) {
        Some(earlier) if earlier != value => talk.warning(&format!(
            "Skipping environment variable [{name}={value}], {key} is already overridden with different value [{earlier}]"
        )),
        Some(_) => {}
        None => drop(out.wanted.insert(key.to_owned(), value.to_owned())),
    }
}

fn warn_of_old_names(all: &[&(String, String)], talk: &Talk) {
    for (old, value) in all {
        let Some(key) = old.strip_prefix(OLD).filter(|key| !key.is_empty()) else { continue };
        let new = format!("{NEW}{key}");
        match all.iter().find(|(name, _)| *name == new) {
            Some((_, newer)) if newer != value => {
                talk.warning(&format!("{old} and {new} have different values, using the latter"));
            }
            Some(_) => {}
            None => talk.info(&format!("Environment variable {old} is set, but {new} is preferred")),
        }
    }
}

/// A name that every shell takes. Others, such as the functions that bash exports, do not pass.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl Environment {
    /// Whether a shell would make something else of a wanted value.
    pub fn wants_evaluation(&self) -> bool {
        self.wanted.values().any(|value| value.contains(['$', '`', '\\']))
    }

    /// The whole environment where no shell takes part, over the image's own.
    pub fn plain(&self, of_image: &[String]) -> Vec<String> {
        let mut all: BTreeMap<&str, String> = BTreeMap::new();
        for (name, value) in &self.host {
            all.insert(name, value.clone());
        }
        for (name, value) in of_image.iter().filter_map(|entry| entry.split_once('=')) {
            all.insert(name, value.to_owned());
        }
        let path = all.get("PATH").filter(|path| !path.is_empty());
        let path = path.map_or_else(|| DEFAULT_PATH.to_owned(), |path| completed(path));
        all.insert(
            "LD_LIBRARY_PATH",
            match all.get("LD_LIBRARY_PATH").filter(|path| !path.is_empty()) {
                Some(path) => format!("{path}:{LIBS}"),
                None => LIBS.to_owned(),
            },
        );
        all.insert("PS1", PROMPT.to_owned());
        all.insert("PROMPT_COMMAND", prompt_command());
        for (name, value) in &self.wanted {
            let value = if name == "LD_LIBRARY_PATH" && !value.is_empty() {
                format!("{value}:{LIBS}")
            } else {
                value.clone()
            };
            all.insert(name, value);
        }
        let wish = |name: &str| self.wanted.get(name).filter(|value| !value.is_empty());
        let mut path = path;
        if let Some(before) = wish(PREPEND_PATH) {
            path = format!("{before}:{path}");
        }
        if let Some(after) = wish(APPEND_PATH) {
            path = format!("{path}:{after}");
        }
        if let Some(whole) = wish(WHOLE_PATH) {
            path.clone_from(whole);
        }
        for name in [PREPEND_PATH, APPEND_PATH, WHOLE_PATH] {
            all.remove(name);
        }
        all.insert("PATH", path);
        for (name, value) in &self.fixed {
            all.insert(name, value.clone());
        }
        all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

/// The prompt of shells in a container.
pub const PROMPT: &str = "Apptainer> ";

/// How bash gets the prompt, whatever its start-up files say.
pub fn prompt_command() -> String {
    format!("PS1=\"{PROMPT}\"; unset PROMPT_COMMAND")
}

/// A PATH with the usual folders that it lacks behind it.
fn completed(path: &str) -> String {
    let known: Vec<&str> = path.split(':').collect();
    let missing = DEFAULT_PATH.split(':').filter(|folder| !known.contains(folder));
    known.iter().copied().chain(missing).collect::<Vec<_>>().join(":")
}

/// The variables that a file of shell assignments sets, where no shell is needed to know: comments, `NAME=word`,
/// `NAME='…'`, `NAME="…"`, with or without `export` before it. The number of the line, where one is needed.
pub fn read_assignments(text: &str) -> Result<BTreeMap<String, String>, usize> {
    let mut out = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let (name, value) = line.split_once('=').ok_or(number + 1)?;
        if !is_name(name) {
            return Err(number + 1);
        }
        out.insert(name.to_owned(), plain_word(value).ok_or(number + 1)?);
    }
    Ok(out)
}

/// Whether a line of a file of variables seems to set this one.
pub fn may_set(text: &str, name: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('='))
    })
}

/// What is said where a variable is in a file and on the command line.
pub fn overridden(name: &str) -> String {
    format!("Ignored environment file variable {name}: override from --env")
}

/// What a shell makes of a word that asks nothing of it.
pub fn plain_word(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => loop {
                match chars.next()? {
                    '\'' => break,
                    c => out.push(c),
                }
            },
            '"' => loop {
                match chars.next()? {
                    '"' => break,
                    '$' | '`' => return None,
                    '\\' => match chars.next()? {
                        c @ ('"' | '\\' | '$' | '`') => out.push(c),
                        c => out.extend(['\\', c]),
                    },
                    c => out.push(c),
                }
            },
            ' ' | '\t' => {
                let rest = chars.as_str().trim_start();
                return (rest.is_empty() || rest.starts_with('#')).then_some(out);
            }
            '\\' => out.push(chars.next()?),
            '$' | '`' | ';' | '&' | '|' | '<' | '>' | '(' | ')' => return None,
            '~' if out.is_empty() => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::talk::Level;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn of(host: &[(&str, &str)], wishes: &Wishes) -> Environment {
        environment(&pairs(host), wishes, &Talk::new(Level::Fatal, false))
    }

    fn shown(map: &BTreeMap<String, String>) -> String {
        map.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    const HOST: [(&str, &str); 12] = [
        ("A", "1"),
        ("HOME", "/h"),
        ("PATH", "/p"),
        ("LD_LIBRARY_PATH", "/l"),
        ("TERM", "xterm"),
        ("https_proxy", "p:1"),
        ("APPTAINER_BIND", "/x"),
        ("SINGULARITYENV_B", "old"),
        ("BASH_FUNC_module%%", "() { :; }"),
        ("PMI_FD", "7"),
        ("SLURM_JOB_ID", "9"),
        ("LANG", "de_DE"),
    ];

    #[test]
    fn what_passes_from_the_host() {
        let all = of(&HOST, &Wishes::default());
        assert_eq!(shown(&all.host), "A=1 LANG=de_DE PMI_FD=7 SLURM_JOB_ID=9 TERM=xterm https_proxy=p:1");
        assert_eq!(shown(&all.wanted), "B=old");
        let clean = of(&HOST, &Wishes { clean: true, ..Wishes::default() });
        assert_eq!(shown(&clean.host), "LANG=C TERM=xterm https_proxy=p:1");
        let mpi = of(&HOST, &Wishes { clean: true, mpi: true, ..Wishes::default() });
        assert_eq!(shown(&mpi.host), "LANG=C PMI_FD=7 SLURM_JOB_ID=9 TERM=xterm https_proxy=p:1");
        let without = of(&HOST, &Wishes { without: vec!["A".into()], ..Wishes::default() });
        assert!(!without.host.contains_key("A"));
    }

    #[test]
    fn wishes_win_in_their_order() {
        let host = [
            ("X", "host"),
            ("SINGULARITYENV_X", "old"),
            ("APPTAINERENV_X", "new"),
            ("SINGULARITYENV_Y", "old"),
            ("APPTAINERENV_HOME", "/evil"),
            ("APPTAINERENV_PREPEND_PATH", "/a"),
            ("SINGULARITYENV_PATH", "/b"),
            ("APPTAINERENV_UID", "5"),
            ("APPTAINERENV_", "x"),
        ];
        let env = of(&host, &Wishes::default());
        assert_eq!(shown(&env.wanted), format!("{WHOLE_PATH}=/b {PREPEND_PATH}=/a X=new Y=old"));
        assert_eq!(shown(&env.host), "");
        let set = BTreeMap::from([("X".to_owned(), "line".to_owned())]);
        let from_files = BTreeMap::from([("X".into(), "file".into()), ("Z".into(), "file".into())]);
        let env = of(&host[..3], &Wishes { set, from_files, ..Wishes::default() });
        assert_eq!(shown(&env.wanted), "X=line Z=file");
    }

    #[test]
    fn without_a_shell() {
        let mut env = of(
            &[("A", "host"), ("B", "host"), ("APPTAINERENV_C", "$x"), ("APPTAINERENV_APPEND_PATH", "/z")],
            &Wishes::default(),
        );
        env.fixed.insert("HOME".into(), "/h".into());
        assert!(env.wants_evaluation());
        let all = env.plain(&["A=image".into(), "PATH=/own:/bin".into(), "HOME=/no".into()]);
        for entry in [
            "A=image",
            "B=host",
            "C=$x",
            "HOME=/h",
            "PATH=/own:/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/z",
            "LD_LIBRARY_PATH=/.singularity.d/libs",
        ] {
            assert!(all.iter().any(|e| e == entry), "{entry}: {all:?}");
        }
        assert!(all.iter().all(|e| !e.starts_with("SING_")));
    }

    #[test]
    fn files_that_need_no_shell() {
        let text = "# note\n\nA=1\nexport B='x y # z'\n  C=\"q\\\"$\" \nD=a\\ b # note\nE=\n";
        assert_eq!(read_assignments(text), Err(5));
        let text = text.replace("\\\"$", "\\\"\\$");
        let read = read_assignments(&text).unwrap();
        assert_eq!(shown(&read), "A=1 B=x y # z C=q\"$ D=a b E=");
        for bad in
            ["A", "A B=1", "1A=2", "A=$B", "A=`x`", "A=$(x)", "A='x", "A=x; B=y", "A=x y", "A=~", "if x"]
        {
            assert_eq!(read_assignments(bad), Err(1), "{bad}");
        }
    }
}
