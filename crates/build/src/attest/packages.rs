//! The packages of a tree, of all kinds that are known, found by reading it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use isles_store::{FileKind, Merged};

use super::{apk, dpkg, node, python, rpm};
use crate::error::{Error, Result};

/// Databases and descriptions of packages are not larger than this.
const LIMIT: u64 = 64 << 20;
/// Directories deeper than this are not looked into.
const DEPTH: usize = 60;
/// What a container shows here is not the image's.
const FOREIGN: [&str; 3] = ["proc", "sys", "dev"];
/// One package that is installed.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// `deb`, `rpm`, `apk`, `pypi` or `npm`, as package URLs have them.
    pub kind: &'static str,
    pub name: String,
    pub version: String,
    /// A package URL (github.com/package-url/purl-spec).
    pub url: String,
    pub license: Option<String>,
    /// Who makes it: `Name <address>`.
    pub supplier: Option<String>,
    /// Where it was found.
    pub place: String,
}

/// What distribution a tree is: `ID` and `VERSION_ID` of os-release(5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    pub id: Option<String>,
    pub version: Option<String>,
}

/// Finds everything that is installed, each once, sorted.
///
/// # Errors
/// The tree has packages of a kind that is not read: leaving them out would be a false statement.
pub fn find(view: &Merged) -> Result<Vec<Package>> {
    let distribution = distribution(view)?;
    let mut found = BTreeSet::new();
    if let Some(text) = text(view, Path::new("/var/lib/dpkg/status"))? {
        found.extend(dpkg::installed(&text, &distribution, "/var/lib/dpkg/status"));
    }
    // Images without a package manager have a file for each package.
    let each = Path::new("/var/lib/dpkg/status.d");
    if view.stat(each).is_ok_and(|s| s.kind == FileKind::Dir) {
        for entry in view.read_dir(each)? {
            let path = each.join(&entry.name);
            if entry.kind == FileKind::File
                && path.extension().is_none_or(|e| e != "md5sums")
                && let Some(text) = text(view, &path)?
            {
                found.extend(dpkg::installed(&text, &distribution, &path.display().to_string()));
            }
        }
    }
    for place in ["/lib/apk/db/installed", "/usr/lib/apk/db/installed"] {
        if let Some(text) = text(view, Path::new(place))? {
            found.extend(apk::installed(&text, &distribution));
        }
    }
    found.extend(rpm::installed(view, &distribution)?);
    walk(view, Path::new("/"), 0, &mut found)?;
    Ok(found.into_iter().collect())
}

fn walk(view: &Merged, dir: &Path, depth: usize, found: &mut BTreeSet<Package>) -> Result<()> {
    for entry in view.read_dir(dir)? {
        let path = dir.join(&entry.name);
        let name = entry.name.to_string_lossy();
        if entry.kind == FileKind::Dir {
            if depth < DEPTH && !(depth == 0 && FOREIGN.contains(&&*name)) {
                walk(view, &path, depth + 1, found)?;
            }
            continue;
        }
        if entry.kind != FileKind::File {
            continue;
        }
        let read = |parse: &dyn Fn(&str, &str) -> Option<Package>| -> Result<Option<Package>> {
            let text = text(view, &path)?;
            Ok(text.and_then(|text| parse(&text, &path.display().to_string())))
        };
        if python::is_description(&path) {
            found.extend(read(&python::package)?);
        } else if node::is_description(&path) {
            found.extend(read(&node::package)?);
        }
    }
    Ok(())
}

/// The text of a file; nothing where there is none, or no text that could be a description.
fn text(view: &Merged, path: &Path) -> Result<Option<String>> {
    if !view.stat(path).is_ok_and(|s| s.kind == FileKind::File) {
        return Ok(None);
    }
    let bytes = isles_store::read_bounded(view.open_file(path)?, LIMIT).map_err(Error::io("read", path))?;
    match bytes {
        Some(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        None => {
            let message = format!("'{}' is larger than a list of packages may be", path.display());
            Err(isles_spec::Error::new(message).into())
        }
    }
}

fn distribution(view: &Merged) -> Result<Distribution> {
    for place in ["/etc/os-release", "/usr/lib/os-release"] {
        if let Some(text) = text(view, &PathBuf::from(place))? {
            let value = |name: &str| {
                let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='))?;
                Some(line.trim_matches(['"', '\'']).to_owned()).filter(|v| !v.is_empty())
            };
            return Ok(Distribution { id: value("ID"), version: value("VERSION_ID") });
        }
    }
    Ok(Distribution::default())
}

/// The fields of a paragraph such as dpkg's and Python's: names in lower case, without continuations.
pub fn paragraph(text: &str) -> impl Iterator<Item = (String, &str)> {
    let lines = text.lines().take_while(|l| !l.trim().is_empty()).filter(|l| !l.starts_with([' ', '\t']));
    lines
        .filter_map(|l| l.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim()))
}

/// A package URL.
pub fn url(
    kind: &str,
    space: Option<&str>,
    name: &str,
    version: &str,
    qualifiers: &[(&str, &str)],
) -> String {
    let mut out = format!("pkg:{kind}/");
    if let Some(space) = space {
        out.push_str(&format!("{}/", escaped(space)));
    }
    out.push_str(&format!("{}@{}", escaped(name), escaped(version)));
    for (number, (key, value)) in qualifiers.iter().enumerate() {
        out.push_str(&format!("{}{key}={}", if number == 0 { '?' } else { '&' }, escaped(value)));
    }
    out
}

/// Percent-encoded as package URLs want it: what is not plain, but for the colon.
pub fn escaped(text: &str) -> String {
    isles_spec::percent::encode(text, b":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_urls() {
        let debian = [("arch", "amd64"), ("distro", "debian-12")];
        for (url, expected) in [
            (
                url("deb", Some("debian"), "libstdc++6", "12.2.0-14", &debian),
                "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14?arch=amd64&distro=debian-12",
            ),
            (url("npm", Some("@types"), "node", "1.0.0", &[]), "pkg:npm/%40types/node@1.0.0"),
            (url("deb", Some("debian"), "x", "1:2+b1~rc", &[]), "pkg:deb/debian/x@1:2%2Bb1~rc"),
        ] {
            assert_eq!(url, expected);
        }
    }

    #[test]
    fn paragraphs() {
        let read: Vec<_> = paragraph("Name: a\nLicense:\n long\nX-Y : b: c\n\nName: d\n").collect();
        let pair = |a: &str, b| (a.to_owned(), b);
        assert_eq!(read, [pair("name", "a"), pair("license", ""), pair("x-y", "b: c")]);
    }
}
