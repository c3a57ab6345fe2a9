//! Packages of Python: `*.dist-info/METADATA` and `*.egg-info/PKG-INFO` (packaging.python.org, "Core metadata").

use std::path::Path;

use super::packages::{Package, paragraph, url};

/// Whether a file describes a package.
pub fn is_description(path: &Path) -> bool {
    let in_folder = |end: &str| {
        path.parent().and_then(Path::file_name).is_some_and(|n| n.to_string_lossy().ends_with(end))
    };
    match path.file_name().and_then(|n| n.to_str()) {
        Some("METADATA") => in_folder(".dist-info"),
        Some("PKG-INFO") => in_folder(".egg-info"),
        // What distutils installed is one file.
        Some(name) => name.ends_with(".egg-info"),
        None => false,
    }
}

pub fn package(text: &str, place: &str) -> Option<Package> {
    let (mut name, mut version, mut license) = (None, None, None);
    for (field, value) in paragraph(text) {
        match field.as_str() {
            "name" => name = Some(value),
            "version" => version = Some(value),
            "license-expression" => license = Some(value.to_owned()),
            // Before there were expressions, anything from a name to the whole text.
            "license" if license.is_none() && !value.is_empty() => license = Some(value.to_owned()),
            _ => {}
        }
    }
    let (name, version) = (name?, version?);
    // PEP 503: the one spelling of all that mean the same.
    let parts: Vec<&str> = name.split(['-', '_', '.']).filter(|p| !p.is_empty()).collect();
    let plain = parts.join("-").to_ascii_lowercase();
    Some(Package {
        kind: "pypi",
        name: name.to_owned(),
        version: version.to_owned(),
        url: url("pypi", None, &plain, version, &[]),
        license: license.filter(|l| l != "UNKNOWN"),
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
            ("/usr/lib/python3/dist-packages/six-1.16.0.egg-info/PKG-INFO", true),
            ("/x/requests-2.dist-info/METADATA", true),
            ("/x/old.egg-info", true),
            ("/x/METADATA", false),
            ("/x/requests-2.dist-info/RECORD", false),
        ] {
            assert_eq!(is_description(Path::new(path)), is, "{path}");
        }
        let found = package(
            "Metadata-Version: 2.1\nName: Foo.Bar_baz\nVersion: 1.0\nLicense: MIT\n\nName: x\n",
            "/p",
        )
        .unwrap();
        assert_eq!((found.url.as_str(), found.license.as_deref()), ("pkg:pypi/foo-bar-baz@1.0", Some("MIT")));
        assert_eq!(package("Name: x\n", "/p"), None);
        assert_eq!(package("Name: x\nVersion: 1\nLicense: UNKNOWN\n", "/p").unwrap().license, None);
    }
}
