//! The list of a suite's packages (`Packages`), read in place: 62,000 stanzas in a tenth of a second.

use std::collections::HashMap;

use memchr::{memchr, memmem};

use super::release::parse_hash;

/// What is said of a package; all of it are slices of the list's text.
#[derive(Debug, Clone, Copy)]
pub struct Package<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub architecture: &'a str,
    pub essential: bool,
    pub priority: &'a str,
    pub depends: &'a str,
    pub pre_depends: &'a str,
    pub recommends: &'a str,
    pub provides: &'a str,
    pub conflicts: &'a str,
    pub breaks: &'a str,
    /// The path below the mirror's URL.
    pub filename: &'a str,
    pub size: u64,
    pub sha256: [u8; 32],
    /// Which archive it is from: an index of the caller's.
    pub origin: usize,
}

/// Packages by their names and by what they provide.
#[derive(Debug, Default)]
pub struct Index<'a> {
    packages: Vec<Package<'a>>,
    by_name: HashMap<&'a str, u32>,
    provided: HashMap<&'a str, Vec<u32>>,
}

impl<'a> Index<'a> {
    /// Adds a list. Of two packages with one name, the later version counts; of equal ones the earlier list.
    /// Returns what is wrong with the list, where something is.
    pub fn add(&mut self, text: &'a str, origin: usize) -> Result<(), String> {
        let mut rest = text;
        while !rest.is_empty() {
            let end = memmem::find(rest.as_bytes(), b"\n\n").map_or(rest.len(), |at| at + 1);
            let (stanza, after) = rest.split_at(end);
            rest = after.trim_start_matches('\n');
            if stanza.trim().is_empty() {
                continue;
            }
            let package =
                parse(stanza, origin).map_err(|why| format!("{why} in '{}'", first_line(stanza)))?;
            let next = self.packages.len() as u32;
            match self.by_name.entry(package.name) {
                std::collections::hash_map::Entry::Vacant(slot) => {
                    slot.insert(next);
                    self.packages.push(package);
                }
                std::collections::hash_map::Entry::Occupied(slot) => {
                    let known = &mut self.packages[*slot.get() as usize];
                    if super::version::compare(package.version, known.version).is_gt() {
                        *known = package;
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends adding: finds out who provides what.
    pub fn finish(&mut self) {
        for (at, package) in self.packages.iter().enumerate() {
            for provided in package.provides.split(',') {
                let name = provided.trim().split([' ', '(']).next().unwrap_or_default();
                if !name.is_empty() {
                    self.provided.entry(name).or_default().push(at as u32);
                }
            }
        }
    }

    pub fn get(&self, name: &str) -> Option<&Package<'a>> {
        self.by_name.get(name).map(|at| &self.packages[*at as usize])
    }

    /// The packages that provide a name which is not their own.
    pub fn providers(&self, name: &str) -> impl Iterator<Item = &Package<'a>> {
        self.provided.get(name).into_iter().flatten().map(|at| &self.packages[*at as usize])
    }

    pub fn iter(&self) -> impl Iterator<Item = &Package<'a>> {
        self.packages.iter()
    }
}

fn first_line(stanza: &str) -> String {
    stanza.lines().next().unwrap_or_default().chars().take(80).collect()
}

fn parse(stanza: &str, origin: usize) -> Result<Package<'_>, &'static str> {
    let mut package = Package {
        name: "",
        version: "",
        architecture: "",
        essential: false,
        priority: "",
        depends: "",
        pre_depends: "",
        recommends: "",
        provides: "",
        conflicts: "",
        breaks: "",
        filename: "",
        size: 0,
        sha256: [0; 32],
        origin,
    };
    let mut has_hash = false;
    let mut rest = stanza;
    while !rest.is_empty() {
        let end = memchr(b'\n', rest.as_bytes()).map_or(rest.len(), |at| at + 1);
        let (line, after) = rest.split_at(end);
        rest = after;
        // The fields that count stand on one line each in these lists.
        let Some(colon) = memchr(b':', line.as_bytes()) else { continue };
        let value = || line[colon + 1..].trim();
        match &line.as_bytes()[..colon] {
            b"Package" => package.name = value(),
            b"Version" => package.version = value(),
            b"Architecture" => package.architecture = value(),
            b"Essential" => package.essential = value() == "yes",
            b"Priority" => package.priority = value(),
            b"Depends" => package.depends = value(),
            b"Pre-Depends" => package.pre_depends = value(),
            b"Recommends" => package.recommends = value(),
            b"Provides" => package.provides = value(),
            b"Conflicts" => package.conflicts = value(),
            b"Breaks" => package.breaks = value(),
            b"Filename" => package.filename = value(),
            b"Size" => package.size = value().parse().map_err(|_| "a size that is no number")?,
            b"SHA256" => {
                package.sha256 = parse_hash(value()).ok_or("a SHA-256 hash that is none")?;
                has_hash = true;
            }
            _ => {}
        }
    }
    if package.name.is_empty() || package.version.is_empty() || package.filename.is_empty() {
        return Err("a package without name, version or file");
    }
    if !is_name(package.name) {
        return Err("a name with forbidden characters");
    }
    let safe = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '\\');
    if package.filename.starts_with('/')
        || package.filename.split('/').any(|part| part == ".." || part.is_empty())
        || !package.filename.chars().all(safe)
    {
        return Err("a file outside the archive");
    }
    if !package.version.chars().all(|c| c.is_ascii_alphanumeric() || ".+-:~".contains(c)) {
        return Err("a version with forbidden characters");
    }
    if !has_hash {
        return Err("a package without a SHA-256 hash");
    }
    Ok(package)
}

/// Names become file names and words of scripts (Debian Policy, section 5.6.7).
pub fn is_name(name: &str) -> bool {
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'+' | b'-' | b'.');
    name.len() <= 200
        && name.bytes().all(good)
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stanza(name: &str, version: &str, more: &str) -> String {
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}.deb\nSize: 7\n\
             SHA256: {}\n{more}Description: x\n\n",
            "ab".repeat(32)
        )
    }

    #[test]
    fn lists_are_read_and_the_latest_version_counts() {
        let one = stanza("a", "1", "Essential: yes\nDepends: b (>= 2), c | d\n")
            + &stanza("b", "2", "Provides: v (= 1), w\n");
        let two = stanza("a", "2~rc1", "") + &stanza("b", "1", "");
        let mut index = Index::default();
        index.add(&one, 0).unwrap();
        index.add(&two, 1).unwrap();
        index.finish();
        let a = index.get("a").unwrap();
        assert_eq!((a.version, a.origin, a.essential, a.size), ("2~rc1", 1, false, 7));
        assert_eq!(index.get("b").unwrap().version, "2");
        assert_eq!(index.providers("v").map(|p| p.name).collect::<Vec<_>>(), ["b"]);
        assert_eq!(index.providers("w").count(), 1);
        assert_eq!(index.iter().count(), 2);
        assert!(index.get("c").is_none());
    }

    #[test]
    fn wrong_lists_are_refused() {
        for (text, part) in [
            (stanza("a", "1", "").replace("Package: a", "Package: ../a"), "name"),
            (stanza("a", "1", "").replace("Package: a\n", ""), "without name"),
            (stanza("a", "1", "").replace("pool/a", "../../a"), "outside"),
            (stanza("a", "1", "").replace("pool/a", "/a"), "outside"),
            (stanza("a", "1", "").replace("pool/a", "pool/a b"), "outside"),
            (stanza("a", "1", "").replace("ab", "xy"), "SHA-256"),
            (stanza("a", "1", "").replace("Size: 7", "Size: x"), "size"),
            (stanza("a", "1;rm", ""), "version"),
        ] {
            let error = Index::default().add(&text, 0).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
