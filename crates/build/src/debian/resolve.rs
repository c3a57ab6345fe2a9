//! Which packages it takes: what was asked for, and all that it depends on (Debian Policy, chapter 7).
//!
//! Only what a fresh system needs: there is nothing to upgrade or to remove, so a choice is never taken
//! back. Alternatives are decided by what is chosen already, then in the order in which they are written.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::error::{Error, Result};
use super::packages::{Index, Package};
use super::version::Relation;

/// How much there is in a fresh system beside what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Variant {
    /// `Essential: yes` and nothing more.
    Essential,
    /// Apt beside them, without `Priority: required`.
    Apt,
    /// Essential and required packages, and apt.
    #[default]
    Minbase,
    /// And what it takes to build packages.
    Buildd,
    /// And important ones, as an installer leaves a system.
    Standard,
}

impl std::str::FromStr for Variant {
    type Err = isles_spec::Error;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match text {
            "essential" => Variant::Essential,
            "apt" => Variant::Apt,
            "" | "minbase" | "required" => Variant::Minbase,
            "buildd" => Variant::Buildd,
            "-" | "standard" | "debootstrap" | "important" => Variant::Standard,
            _ => {
                return Err(isles_spec::Error::new(format!("unknown variant '{text}' of a Debian system"))
                    .with_hint("the variants are essential, apt, minbase, buildd and standard"));
            }
        })
    }
}

impl Variant {
    pub fn name(self) -> &'static str {
        match self {
            Variant::Essential => "essential",
            Variant::Apt => "apt",
            Variant::Minbase => "minbase",
            Variant::Buildd => "buildd",
            Variant::Standard => "standard",
        }
    }
}

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted<'w> {
    pub variant: Variant,
    pub include: &'w [String],
    pub exclude: &'w [String],
    pub recommends: bool,
    /// The architecture of the system (`amd64`).
    pub architecture: &'w str,
}

/// The packages of a system, by name.
#[derive(Debug)]
pub struct Selection<'a> {
    pub packages: BTreeMap<&'a str, Package<'a>>,
    /// The base: what the variant stands for, with its dependencies.
    pub base: HashSet<&'a str>,
    /// Chosen to satisfy others, not by anyone's wish.
    pub automatic: HashSet<&'a str>,
}

/// One alternative of a dependency: `name[:arch] [(relation version)] [[arch…]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alternative<'a> {
    pub name: &'a str,
    pub bound: Option<(Relation, &'a str)>,
}

impl<'a> Alternative<'a> {
    /// `None` for text that is no dependency.
    pub fn parse(text: &'a str) -> Option<Self> {
        let text = text.trim();
        let end = text.find([' ', '(', '[', '<', ':', '\t']).unwrap_or(text.len());
        let (name, mut rest) = text.split_at(end);
        if !super::packages::is_name(name) {
            return None;
        }
        // `:any` and `:native` say what other architectures may do; there are none here.
        if let Some(qualifier) = rest.strip_prefix(':') {
            rest = qualifier.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-');
        }
        let mut bound = None;
        if let Some(inner) = rest.trim_start().strip_prefix('(') {
            let (inner, _) = inner.split_once(')')?;
            let inner = inner.trim();
            let operator = inner.find(|c: char| !matches!(c, '<' | '>' | '='))?;
            bound = Some((Relation::parse(&inner[..operator])?, inner[operator..].trim()));
        }
        Some(Alternative { name, bound })
    }

    fn allows(&self, version: &str) -> bool {
        self.bound.is_none_or(|(relation, bound)| relation.holds(version, bound))
    }

    /// Whether `package` provides the name in a version that is good enough. An unversioned provision
    /// satisfies no versioned dependency.
    fn provided_by(&self, package: &Package<'_>) -> bool {
        package.provides.split(',').filter_map(Alternative::parse).any(|p| {
            p.name == self.name
                && match (self.bound, p.bound) {
                    (None, _) => true,
                    (Some(_), Some((Relation::Equal, version))) => self.allows(version),
                    _ => false,
                }
        })
    }

    fn text(&self) -> String {
        match self.bound {
            None => self.name.to_owned(),
            Some((relation, version)) => {
                let sign = match relation {
                    Relation::Earlier => "<<",
                    Relation::EarlierOrEqual => "<=",
                    Relation::Equal => "=",
                    Relation::LaterOrEqual => ">=",
                    Relation::Later => ">>",
                };
                format!("{} ({sign} {version})", self.name)
            }
        }
    }
}

struct Resolver<'i, 'a> {
    index: &'i Index<'a>,
    wanted: &'i Wanted<'i>,
    chosen: BTreeMap<&'a str, Package<'a>>,
    /// Who brought a package in first.
    because: HashMap<&'a str, &'a str>,
    queue: VecDeque<&'a str>,
}

/// Finds the packages of a system.
///
/// # Errors
/// A package that is not there, or not in the version that is needed, with the chain of those that need
/// it; two packages that exclude each other.
pub fn resolve<'a>(index: &Index<'a>, wanted: &Wanted<'_>) -> Result<Selection<'a>> {
    let mut resolver =
        Resolver { index, wanted, chosen: BTreeMap::new(), because: HashMap::new(), queue: VecDeque::new() };
    let excluded = |name: &str| wanted.exclude.iter().any(|e| e == name);
    let mut roots: Vec<&Package<'a>> = index
        .iter()
        .filter(|p| {
            let wanted = match wanted.variant {
                Variant::Essential | Variant::Apt => p.essential,
                Variant::Minbase | Variant::Buildd => p.essential || p.priority == "required",
                Variant::Standard => p.essential || matches!(p.priority, "required" | "important"),
            };
            wanted && !excluded(p.name)
        })
        .collect();
    if roots.is_empty() {
        return Err(Error::Unsatisfied {
            package: "a base system".into(),
            reason: "no package is essential or required here".into(),
            chain: Vec::new(),
        });
    }
    let extra: &[&str] = match wanted.variant {
        Variant::Essential => &[],
        Variant::Buildd => &["apt", "build-essential"],
        _ => &["apt"],
    };
    for name in extra.iter().filter(|name| !excluded(name)) {
        roots.push(resolver.find(name)?);
    }
    let manual: HashSet<&str> = roots.iter().map(|p| p.name).collect();
    for package in roots {
        resolver.choose(package, None);
    }
    resolver.close()?;
    let base: HashSet<&str> = resolver.chosen.keys().copied().collect();
    let mut asked = HashSet::new();
    for name in wanted.include {
        let package = resolver.find(name)?;
        asked.insert(package.name);
        resolver.choose(package, None);
    }
    resolver.close()?;
    resolver.check_conflicts()?;
    let packages = resolver.chosen;
    let automatic = packages.keys().copied().filter(|n| !manual.contains(n) && !asked.contains(n)).collect();
    Ok(Selection { packages, base, automatic })
}

impl<'i, 'a> Resolver<'i, 'a> {
    /// A package that was asked for by its name, or the only one that provides it.
    fn find(&self, name: &str) -> Result<&'i Package<'a>> {
        let fits = |p: &&Package<'a>| p.architecture == self.wanted.architecture || p.architecture == "all";
        if let Some(package) = self.index.get(name).filter(fits) {
            return Ok(package);
        }
        let mut providers = self.index.providers(name).filter(fits);
        match (providers.next(), providers.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(self.unsatisfied(name, "there is no such package", None)),
            (Some(a), Some(b)) => {
                let more = 2 + providers.count();
                let reason = format!("{more} packages provide it, such as {} and {}", a.name, b.name);
                Err(self.unsatisfied(name, &reason, None))
            }
        }
    }

    fn choose(&mut self, package: &Package<'a>, because: Option<&'a str>) {
        if self.chosen.insert(package.name, *package).is_none() {
            self.queue.push_back(package.name);
            if let Some(because) = because {
                self.because.insert(package.name, because);
            }
        }
    }

    /// Satisfies the dependencies of all that is chosen.
    fn close(&mut self) -> Result<()> {
        while let Some(name) = self.queue.pop_front() {
            let package = self.chosen[name];
            for field in [package.pre_depends, package.depends] {
                for dependency in field.split(',').filter(|d| !d.trim().is_empty()) {
                    self.satisfy(&package, dependency)?;
                }
            }
            if self.wanted.recommends {
                for dependency in package.recommends.split(',').filter(|d| !d.trim().is_empty()) {
                    // A recommendation that cannot be met is none.
                    let _ = self.satisfy(&package, dependency);
                }
            }
        }
        Ok(())
    }

    fn satisfy(&mut self, package: &Package<'a>, dependency: &'a str) -> Result<()> {
        let alternatives: Vec<Alternative<'a>> =
            dependency.split('|').filter_map(Alternative::parse).collect();
        if alternatives.is_empty() {
            let reason = format!("its dependency '{}' is not understood", dependency.trim());
            return Err(self.unsatisfied(package.name, &reason, None));
        }
        for alternative in &alternatives {
            let chosen = self.chosen.get(alternative.name);
            let here = chosen.is_some_and(|p| alternative.allows(p.version))
                || self
                    .index
                    .providers(alternative.name)
                    .any(|p| self.chosen.contains_key(p.name) && alternative.provided_by(p));
            if here {
                return Ok(());
            }
        }
        let excluded = |p: &Package<'_>| self.wanted.exclude.iter().any(|e| e == p.name);
        let fits = |p: &Package<'_>| p.architecture == self.wanted.architecture || p.architecture == "all";
        // The tree is merged into /usr from the start; usrmerge would bring perl along to do it again.
        let merged = self.index.get("usr-is-merged").filter(|p| fits(p) && !excluded(p));
        let mut found = merged.filter(|p| alternatives.iter().any(|a| a.name == p.name));
        for alternative in &alternatives {
            if found.is_some() {
                break;
            }
            let real = self.index.get(alternative.name).filter(|p| alternative.allows(p.version));
            // Which of several providers is arbitrary, so it is made certain.
            let virtual_one = || {
                self.index
                    .providers(alternative.name)
                    .filter(|p| alternative.provided_by(p) && fits(p) && !excluded(p))
                    .min_by_key(|p| (rank(p.priority), p.name))
            };
            found = real.filter(|p| fits(p) && !excluded(p)).or_else(virtual_one);
        }
        if let Some(found) = found {
            self.choose(found, Some(package.name));
            return Ok(());
        }
        // Excluded on purpose: its absence is the caller's affair.
        let by_wish = alternatives.iter().any(|a| self.wanted.exclude.iter().any(|e| e == a.name));
        if by_wish {
            return Ok(());
        }
        let first = &alternatives[0];
        let reason = match self.index.get(first.name) {
            Some(p) if !first.allows(p.version) => {
                format!("{} is wanted, and there is version {}", first.text(), p.version)
            }
            _ => "there is no such package".to_owned(),
        };
        let name = alternatives.iter().map(|a| a.name).collect::<Vec<_>>().join(" or ");
        Err(self.unsatisfied(&name, &reason, Some(package.name)))
    }

    fn check_conflicts(&self) -> Result<()> {
        for package in self.chosen.values() {
            for (word, field) in [("conflicts with", package.conflicts), ("breaks", package.breaks)] {
                for relation in field.split(',').filter_map(Alternative::parse) {
                    let real = self.chosen.get(relation.name).filter(|p| relation.allows(p.version));
                    // A package may conflict with what it provides itself: it means the others.
                    let other = real.or_else(|| {
                        self.index
                            .providers(relation.name)
                            .filter(|p| relation.provided_by(p))
                            .find_map(|p| self.chosen.get(p.name))
                    });
                    if let Some(other) = other.filter(|o| o.name != package.name) {
                        return Err(Error::Conflict {
                            package: package.name.to_owned(),
                            other: other.name.to_owned(),
                            relation: format!("{} {word} {}", package.name, relation.text()),
                        });
                    }
                }
            }
        }
        Ok(())
    }

    fn unsatisfied(&self, package: &str, reason: &str, needed_by: Option<&'a str>) -> Error {
        let mut chain = Vec::new();
        let mut link = needed_by.or_else(|| self.because.get(package).copied());
        while let Some(name) = link.filter(|_| chain.len() < 20) {
            chain.push(name.to_owned());
            link = self.because.get(name).copied();
        }
        Error::Unsatisfied { package: package.to_owned(), reason: reason.to_owned(), chain }
    }
}

fn rank(priority: &str) -> u8 {
    match priority {
        "required" => 0,
        "important" => 1,
        "standard" => 2,
        "optional" => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isles_spec::Hint;

    /// Lines of `name version [E|R] field: value; …`.
    fn list(text: &str) -> String {
        let mut out = String::new();
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let (head, fields) = line.split_once('/').unwrap_or((line, ""));
            let words: Vec<_> = head.split_whitespace().collect();
            out += &format!("Package: {}\nVersion: {}\nArchitecture: amd64\n", words[0], words[1]);
            if words.contains(&"E") {
                out += "Essential: yes\n";
            }
            if words.contains(&"R") {
                out += "Priority: required\n";
            }
            for field in fields.split(';').filter(|f| !f.trim().is_empty()) {
                out += field.trim();
                out.push('\n');
            }
            out += &format!("Filename: pool/{}\nSize: 1\nSHA256: {}\n\n", words[0], "00".repeat(32));
        }
        out
    }

    fn outcome(text: &str, include: &str, exclude: &str) -> std::result::Result<String, String> {
        let text = list(text);
        let mut index = Index::default();
        index.add(&text, 0).unwrap();
        index.finish();
        let words = |t: &str| t.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let (include, exclude) = (words(include), words(exclude));
        let wanted =
            Wanted { include: &include, exclude: &exclude, architecture: "amd64", ..Wanted::default() };
        match resolve(&index, &wanted) {
            Ok(s) => Ok(s.packages.keys().copied().collect::<Vec<_>>().join(" ")),
            Err(e) => {
                e.hint();
                Err(e.to_string())
            }
        }
    }

    #[test]
    fn closures() {
        let base = "apt 1\n";
        for (more, include, exclude, expected) in [
            ("b 1 E / Depends: c\nc 1\nd 1", "", "", "apt b c"),
            ("b 1 R / Pre-Depends: c (>= 1)\nc 1", "", "", "apt b c"),
            ("b 1 E\nx 1 / Depends: y | z\ny 1\nz 1", "x", "", "apt b x y"),
            ("b 1 E\nx 1 / Depends: y | z\ny 1\nz 1", "z x", "", "apt b x z"),
            ("b 1 E\nx 1 / Depends: y (>= 2) | z\ny 1\nz 1", "x", "", "apt b x z"),
            ("b 1 E\nx 1 / Depends: v\ny 1 / Provides: v\nw 1 / Provides: v", "x", "", "apt b w x"),
            ("b 1 E\nx 1 / Depends: v\ny 1 R / Provides: v\nw 1 / Provides: v", "x", "", "apt b x y"),
            (
                "b 1 E\nx 1 / Depends: v (>= 2)\ny 1 / Provides: v\nw 1 / Provides: v (= 2)",
                "x",
                "",
                "apt b w x",
            ),
            ("b 1 E\nx 1 / Depends: v\nv 1", "x", "", "apt b v x"),
            ("b 1 E\nx 1 / Depends: p:any, q [amd64]\np 1\nq 1", "x", "", "apt b p q x"),
            ("b 1 E\nx 1 / Depends: y\ny 1 / Depends: x", "x", "", "apt b x y"),
            ("b 1 E\nx 1 / Depends: y", "x", "y", "apt b x"),
            ("b 1 E\nc 1 E", "", "c", "apt b"),
            ("b 1 E\ny 1 / Provides: virt", "virt", "", "apt b y"),
            ("b 1 E\nx 1 / Provides: m; Conflicts: m", "x", "", "apt b x"),
            ("b 1 E\nx 1 / Breaks: b (<< 1)", "x", "", "apt b x"),
            (
                "b 1 E / Depends: usrmerge | usr-is-merged\nusrmerge 1\nusr-is-merged 1",
                "",
                "",
                "apt b usr-is-merged",
            ),
        ] {
            assert_eq!(
                outcome(&format!("{base}{more}"), include, exclude).as_deref(),
                Ok(expected),
                "{more}"
            );
        }
    }

    #[test]
    fn errors_name_the_package_and_the_chain() {
        for (text, include, expected) in [
            (
                "apt 1\nb 1 E\nx 1 / Depends: y\ny 1 / Depends: z (>= 2)\nz 1",
                "x",
                "cannot install z: z (>= 2) is wanted, and there is version 1 (needed by y, needed by x)",
            ),
            ("apt 1\nb 1 E", "nothere", "cannot install nothere: there is no such package"),
            (
                "apt 1\nb 1 E\nx 1 / Depends: p | q",
                "x",
                "cannot install p or q: there is no such package (needed by x)",
            ),
            (
                "apt 1\nb 1 E\nx 1 / Conflicts: y\ny 1",
                "x y",
                "package x and package y cannot be installed together: x conflicts with y",
            ),
            ("apt 1\nb 1", "", "cannot install a base system: no package is essential or required here"),
            ("b 1 E", "", "cannot install apt: there is no such package"),
            (
                "apt 1\nb 1 E\nm 1 / Provides: v\nn 1 / Provides: v",
                "v",
                "cannot install v: 2 packages provide it, such as m and n",
            ),
        ] {
            assert_eq!(outcome(text, include, "").unwrap_err(), expected);
        }
    }

    #[test]
    fn alternatives_are_parsed() {
        for (text, expected) in [
            ("a", Some(("a", None))),
            (
                " a:any (>= 1:2-3) [amd64 i386] <!nocheck>",
                Some(("a", Some((Relation::LaterOrEqual, "1:2-3")))),
            ),
            ("a(=1)", Some(("a", Some((Relation::Equal, "1"))))),
            ("a (~ 1)", None),
            ("a (>= 1", None),
            ("A", None),
            ("", None),
        ] {
            let parsed = Alternative::parse(text).map(|a| (a.name, a.bound));
            assert_eq!(parsed, expected, "{text}");
        }
        assert!("minbase".parse::<Variant>().is_ok() && "huge".parse::<Variant>().is_err());
    }
}
