//! Packages of Debian and its kin: `/var/lib/dpkg/status` (deb-control(5)).

use super::packages::{Distribution, Package, paragraph, url};

/// What is installed by a list of paragraphs. Where a package has no `Status`, the list has only what is installed.
pub fn installed(text: &str, distribution: &Distribution, place: &str) -> Vec<Package> {
    let id = distribution.id.as_deref().unwrap_or("debian");
    let release = distribution.version.as_ref().map(|version| format!("{id}-{version}"));
    let mut out = Vec::new();
    for text in text.split("\n\n") {
        let (mut name, mut version, mut architecture, mut here, mut supplier) =
            (None, None, None, true, None);
        for (field, value) in paragraph(text.trim_start_matches('\n')) {
            match field.as_str() {
                "package" => name = Some(value),
                "version" => version = Some(value),
                "architecture" => architecture = Some(value),
                "status" => here = value.ends_with(" installed"),
                "maintainer" => supplier = Some(value.to_owned()),
                _ => {}
            }
        }
        let (Some(name), Some(version), true) = (name, version, here) else { continue };
        let qualifiers: Vec<(&str, &str)> =
            [architecture.map(|a| ("arch", a)), release.as_deref().map(|r| ("distro", r))]
                .into_iter()
                .flatten()
                .collect();
        out.push(Package {
            kind: "deb",
            name: name.to_owned(),
            version: version.to_owned(),
            url: url("deb", Some(id), name, version, &qualifiers),
            license: None,
            supplier,
            place: place.to_owned(),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed() {
        let text = "Package: a\nStatus: install ok installed\nMaintainer: M <m@x>\nArchitecture: amd64\nVersion: 1:2-3\n\
            Description: x\n more\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\n\
            Package: bare\nVersion: 4\n\nVersion: 5\n";
        let debian = Distribution { id: Some("debian".into()), version: Some("12".into()) };
        let found = installed(text, &debian, "/p");
        let urls: Vec<_> = found.iter().map(|p| p.url.as_str()).collect();
        assert_eq!(
            urls,
            ["pkg:deb/debian/a@1:2-3?arch=amd64&distro=debian-12", "pkg:deb/debian/bare@4?distro=debian-12"]
        );
        assert_eq!(found[0].supplier.as_deref(), Some("M <m@x>"));
        assert!(installed("", &Distribution::default(), "/p").is_empty());
    }
}
