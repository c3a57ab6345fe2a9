//! Which variables an instruction sees: ENV before ARG, the caller's values before defaults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use isles_spec::Platform;

use super::instruction::Argument;
use super::words::Expander;
use crate::position::{Diagnostic, SourceText, Spanned};

/// Proxies may be passed without being declared; they count neither for the cache nor for the history.
pub const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Variables before the first FROM.
#[derive(Debug, Clone, Default)]
pub struct Globals {
    /// Those that the file declares.
    declared: Vec<(String, Option<String>)>,
    /// BUILDPLATFORM and its kin, which every stage may declare.
    platform: BTreeMap<String, String>,
    given: BTreeMap<String, String>,
}

/// The ARGs in effect at one place of a stage, in the order in which they were declared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    args: Vec<(String, Option<String>)>,
}

/// Words of a recipe, for expansion with warnings.
pub struct Words<'w> {
    pub source: &'w SourceText,
    pub escape: char,
    pub warnings: &'w Mutex<Vec<Diagnostic>>,
}

impl Globals {
    /// The platform's variables and what the caller gave.
    pub fn new(target: &Platform, target_stage: &str, given: &BTreeMap<String, String>) -> Globals {
        let mut platform = BTreeMap::new();
        for (prefix, p) in [("BUILD", &Platform::host()), ("TARGET", target)] {
            platform.insert(format!("{prefix}PLATFORM"), p.to_string());
            platform.insert(format!("{prefix}OS"), p.os.clone());
            platform.insert(format!("{prefix}OSVERSION"), p.os_version.clone().unwrap_or_default());
            platform.insert(format!("{prefix}ARCH"), p.architecture.clone());
            platform.insert(format!("{prefix}VARIANT"), p.variant.clone().unwrap_or_default());
        }
        platform.insert("TARGETSTAGE".into(), target_stage.to_owned());
        for (name, value) in given {
            if let Some(known) = platform.get_mut(name) {
                known.clone_from(value);
            }
        }
        Globals { declared: Vec::new(), platform, given: given.clone() }
    }

    /// Declares the ARGs before the first FROM.
    pub fn declare(&mut self, words: &Words<'_>, arguments: &[Argument]) -> Result<(), Diagnostic> {
        for argument in arguments {
            let value = match (self.given.get(&argument.name.text), &argument.default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(words.expand(default, &|n| self.lookup(n))?),
                (None, None) => None,
            };
            self.declared.push((argument.name.text.clone(), value));
        }
        Ok(())
    }

    /// The value that FROM sees.
    pub fn lookup(&self, name: &str) -> Option<String> {
        let declared = self.declared.iter().rev().find(|(n, _)| n == name);
        declared.and_then(|(_, v)| v.clone()).or_else(|| self.platform.get(name).cloned())
    }

    /// The names that FROM may use.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.declared.iter().map(|(n, _)| n.as_str())
    }

    /// Proxies that the caller gave, in capitals and in small letters, since programs look for one or the other.
    pub fn proxies(&self) -> Vec<String> {
        let other =
            |name: &str| self.given.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v);
        let value = |name: &str| self.given.get(name).or_else(|| other(name));
        PROXIES.iter().filter_map(|n| Some(format!("{n}={}", value(n)?))).collect()
    }

    /// Values that the caller gave and that nothing can have used.
    pub fn unused(&self, declared: &BTreeSet<String>) -> Vec<&str> {
        let known = |n: &str| {
            declared.contains(n)
                || self.declared.iter().any(|(d, _)| d == n)
                || self.platform.contains_key(n)
                || PROXIES.contains(&n)
                || n.starts_with("BUILDKIT_")
                || n == "SOURCE_DATE_EPOCH"
        };
        self.given.keys().map(String::as_str).filter(|n| !known(n)).collect()
    }
}

impl Scope {
    /// Declares an ARG of a stage. Without a default it takes the global value of the same name.
    pub fn declare(
        &mut self,
        words: &Words<'_>,
        globals: &Globals,
        env: &[String],
        argument: &Argument,
    ) -> Result<(), Diagnostic> {
        let name = &argument.name.text;
        let value = match (globals.given.get(name), &argument.default) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(default)) => Some(words.expand(default, &|n| self.lookup(env, n))?),
            (None, None) => globals.lookup(name),
        };
        match self.args.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => self.args.push((name.clone(), value)),
        }
        Ok(())
    }

    /// The value of a variable: of the environment, or else of an ARG.
    pub fn lookup(&self, env: &[String], name: &str) -> Option<String> {
        get(env, name)
            .map(str::to_owned)
            .or_else(|| self.args.iter().find(|(n, _)| n == name).and_then(|(_, v)| v.clone()))
    }

    /// The value of an ARG as it is in effect.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.args.iter().find(|(n, _)| n == name).and_then(|(_, v)| v.as_deref())
    }

    /// The environment of a RUN: ENV, and the ARGs that it does not hide.
    pub fn environment(&self, env: &[String]) -> Vec<String> {
        let mut out = env.to_vec();
        for (name, value) in &self.args {
            if let (Some(value), None) = (value, get(env, name)) {
                out.push(format!("{name}={value}"));
            }
        }
        out
    }

    /// What BuildKit writes before the command of a RUN in the history: how many ARGs are in effect, and which.
    pub fn history_prefix(&self, env: &[String]) -> String {
        if self.args.is_empty() {
            return String::new();
        }
        let mut out = format!("|{}", self.args.len());
        for (name, _) in &self.args {
            out.push_str(&format!(" {name}={}", self.lookup(env, name).unwrap_or_default()));
        }
        out.push(' ');
        out
    }
}

impl Words<'_> {
    /// Expands a word. That a variable is not set is what the checks find.
    pub fn expand(
        &self,
        word: &Spanned,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<String, Diagnostic> {
        Expander::new(self.escape, lookup).text(word).map_err(|e| e.at(self.source, word.span))
    }

    /// Expands in the environment of a stage.
    pub fn expand_in(&self, word: &Spanned, scope: &Scope, env: &[String]) -> Result<String, Diagnostic> {
        self.expand(word, &|n| scope.lookup(env, n))
    }

    /// Expands into words: blanks in variables separate them.
    pub fn split(&self, word: &Spanned, scope: &Scope, env: &[String]) -> Result<Vec<String>, Diagnostic> {
        Expander::new(self.escape, &|n| scope.lookup(env, n))
            .words(word)
            .map_err(|e| e.at(self.source, word.span))
    }

    pub fn warn(&self, warning: Diagnostic) {
        let mut warnings = self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
}

/// The value of a variable in an environment.
pub fn get<'e>(env: &'e [String], name: &str) -> Option<&'e str> {
    env.iter().find_map(|e| e.strip_prefix(name)?.strip_prefix('='))
}

/// Sets a variable in place; a new one comes last.
pub fn set(env: &mut Vec<String>, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    match env.iter_mut().find(|e| e.strip_prefix(name).is_some_and(|r| r.starts_with('='))) {
        Some(old) => *old = entry,
        None => env.push(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Span;

    fn arg(name: &str, default: Option<&str>) -> Argument {
        let spanned = |t: &str| Spanned::new(t, Span::default());
        Argument { name: spanned(name), default: default.map(spanned) }
    }

    #[test]
    fn which_value_wins() {
        let source = SourceText::new("Dockerfile", b"FROM x\n");
        let warnings = Mutex::default();
        let words = Words { source: &source, escape: '\\', warnings: &warnings };
        let given = BTreeMap::from([("GIVEN".to_owned(), "caller".to_owned())]);
        let platform: Platform = "linux/arm64".parse().unwrap();
        let mut globals = Globals::new(&platform, "default", &given);
        globals
            .declare(
                &words,
                &[arg("G", Some("global")), arg("GIVEN", Some("x")), arg("H", Some("${G}-$GIVEN"))],
            )
            .unwrap();
        assert_eq!(globals.lookup("H").as_deref(), Some("global-caller"));
        let env = vec!["E=env".to_owned()];
        let mut scope = Scope::default();
        for a in [
            arg("G", None),
            arg("GIVEN", None),
            arg("E", Some("hidden")),
            arg("LATER", Some("1")),
            arg("LATER", Some("$G-2")),
            arg("NONE", None),
            arg("TARGETARCH", None),
            arg("H", Some("own")),
        ] {
            scope.declare(&words, &globals, &env, &a).unwrap();
        }
        for (name, value) in [
            ("G", Some("global")),
            ("GIVEN", Some("caller")),
            ("E", Some("env")),
            ("LATER", Some("global-2")),
            ("NONE", None),
            ("TARGETARCH", Some("arm64")),
            ("H", Some("own")),
            ("UNDECLARED", None),
        ] {
            assert_eq!(scope.lookup(&env, name).as_deref(), value, "{name}");
        }
        let environment = scope.environment(&env);
        assert_eq!(environment[0], "E=env");
        assert!(environment.contains(&"LATER=global-2".to_owned()));
        assert!(!environment.iter().any(|e| e.starts_with("E=hidden") || e.starts_with("NONE")));
        assert_eq!(
            scope.history_prefix(&env),
            "|7 G=global GIVEN=caller E=env LATER=global-2 NONE= TARGETARCH=arm64 H=own "
        );
        let word = Spanned::new("$LATRE ${X:-x}", Span::new(0, 4));
        assert_eq!(words.expand_in(&word, &scope, &env).unwrap(), " x");
    }

    #[test]
    fn the_environment_keeps_its_order() {
        let mut env = vec!["A=1".to_owned(), "AB=2".to_owned()];
        set(&mut env, "AB", "3");
        set(&mut env, "C", "");
        set(&mut env, "A", "4=5");
        assert_eq!(env, ["A=4=5", "AB=3", "C="]);
        assert_eq!(get(&env, "A"), Some("4=5"));
        assert_eq!(get(&env, "B"), None);
    }
}
