//! Packages of Alpine: `/lib/apk/db/installed`, one letter a field (wiki.alpinelinux.org, "Apk spec").

use super::packages::{Distribution, Package, url};

/// What is installed by apk's database.
pub fn installed(text: &str, distribution: &Distribution) -> Vec<Package> {
    let id = distribution.id.as_deref().unwrap_or("alpine");
    let release = distribution.version.as_ref().map(|version| format!("{id}-{version}"));
    let mut out = Vec::new();
    for text in text.split("\n\n") {
        let field = |letter: char| {
            text.lines().find_map(|l| l.strip_prefix(letter)?.strip_prefix(':')).filter(|v| !v.is_empty())
        };
        let (Some(name), Some(version)) = (field('P'), field('V')) else { continue };
        let qualifiers: Vec<(&str, &str)> =
            [field('A').map(|a| ("arch", a)), release.as_deref().map(|r| ("distro", r))]
                .into_iter()
                .flatten()
                .collect();
        out.push(Package {
            kind: "apk",
            name: name.to_owned(),
            version: version.to_owned(),
            url: url("apk", Some(id), name, version, &qualifiers),
            license: field('L').map(str::to_owned),
            supplier: field('m').map(str::to_owned),
            place: "/lib/apk/db/installed".into(),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed() {
        let text =
            "C:Q1\nP:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\nm:A <a@x>\nF:lib\nR:ld\n\nP:half\n\nP:b\nV:1\n";
        let found =
            installed(text, &Distribution { id: Some("alpine".into()), version: Some("3.19".into()) });
        let urls: Vec<_> = found.iter().map(|p| p.url.as_str()).collect();
        assert_eq!(
            urls,
            [
                "pkg:apk/alpine/musl@1.2.4-r2?arch=x86_64&distro=alpine-3.19",
                "pkg:apk/alpine/b@1?distro=alpine-3.19"
            ]
        );
        assert_eq!(
            (found[0].license.as_deref(), found[0].supplier.as_deref()),
            (Some("MIT"), Some("A <a@x>"))
        );
    }
}
