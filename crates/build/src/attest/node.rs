//! Packages of Node: `package.json` in the folders of `node_modules` (docs.npmjs.com, "package.json").

use std::path::Path;

use serde_json::Value;

use super::packages::{Package, url};

/// Whether a file describes an installed package: `node_modules/NAME/package.json`, or with a scope between.
pub fn is_description(path: &Path) -> bool {
    let names: Vec<_> = path.iter().rev().map(|n| n.to_string_lossy()).take(4).collect();
    match names.as_slice() {
        [file, _, modules, ..] if file == "package.json" && modules == "node_modules" => true,
        [file, _, scope, modules] => {
            file == "package.json" && scope.starts_with('@') && modules == "node_modules"
        }
        _ => false,
    }
}

pub fn package(text: &str, place: &str) -> Option<Package> {
    let value: Value = serde_json::from_str(text).ok()?;
    let (name, version) = (value.get("name")?.as_str()?, value.get("version")?.as_str()?);
    let (scope, bare) = match name.split_once('/') {
        Some((scope, bare)) => (Some(scope), bare),
        None => (None, name),
    };
    let license = value.get("license").and_then(|l| l.as_str().or_else(|| l.get("type")?.as_str()));
    Some(Package {
        kind: "npm",
        name: name.to_owned(),
        version: version.to_owned(),
        url: url("npm", scope, bare, version, &[]),
        license: license.map(str::to_owned),
        supplier: None,
        place: place.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions() {
        for (path, is) in [
            ("/app/node_modules/a/package.json", true),
            ("/app/node_modules/@s/a/package.json", true),
            ("/app/node_modules/a/node_modules/b/package.json", true),
            ("/app/package.json", false),
            ("/app/node_modules/a/lib/package.json", false),
            ("/app/node_modules/a/index.js", false),
        ] {
            assert_eq!(is_description(Path::new(path)), is, "{path}");
        }
        let found = package(r#"{"name":"@s/a","version":"1.2.3","license":{"type":"ISC"}}"#, "/p").unwrap();
        assert_eq!((found.url.as_str(), found.license.as_deref()), ("pkg:npm/%40s/a@1.2.3", Some("ISC")));
        for odd in ["", "[]", r#"{"name":"a"}"#, r#"{"name":1,"version":"1"}"#] {
            assert_eq!(package(odd, "/p"), None, "{odd}");
        }
    }
}
