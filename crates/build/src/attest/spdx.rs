//! The packages of an image as an SPDX 2.3 document (spdx.github.io/spdx-spec/v2.3), the same for the same image.

use isles_spec::Digest;
use isles_store::{BuildRecord, Image, Merged};
use serde_json::{Value, json};

use super::packages::{self, Package};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::output::Predicate;
use crate::snapshot::Build;

const KIND: &str = "https://spdx.dev/Document";
const NONE: &str = "NOASSERTION";

/// Licenses of the SPDX list that packages commonly name so. Others are told as they are written.
const LICENSES: [&str; 36] = [
    "0BSD",
    "AFL-2.1",
    "AGPL-3.0-only",
    "AGPL-3.0-or-later",
    "Apache-2.0",
    "Artistic-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSD-4-Clause",
    "BSL-1.0",
    "BlueOak-1.0.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC0-1.0",
    "EPL-2.0",
    "GPL-2.0-only",
    "GPL-2.0-or-later",
    "GPL-3.0-only",
    "GPL-3.0-or-later",
    "ICU",
    "ISC",
    "LGPL-2.0-or-later",
    "LGPL-2.1-only",
    "LGPL-2.1-or-later",
    "LGPL-3.0-only",
    "LGPL-3.0-or-later",
    "MIT",
    "MPL-2.0",
    "OpenSSL",
    "PSF-2.0",
    "Python-2.0",
    "Unlicense",
    "WTFPL",
    "Zlib",
    "bzip2-1.0.6",
    "curl",
];

/// The packages of an image. What an image holds is read once.
pub fn predicate(build: &Build<'_>, image: &Image) -> Result<Predicate> {
    let store = build.store;
    let key = Key::new("sbom").with("image", image.id().to_string()).finish();
    let known = store.build_record(build.lease, &key)?.and_then(|r| r.holds.into_iter().next());
    let known = known.and_then(|blob| store.open_blob(&blob).ok());
    let known = known.and_then(|file| serde_json::from_reader(std::io::BufReader::new(file)).ok());
    let body = match known {
        Some(body) => body,
        None => {
            let work = build.progress.begin("listing the packages of the image", None);
            let found = Merged::open(&store.layers_of(image)?, store.ownership())
                .map_err(Error::from)
                .and_then(|view| packages::find(&view));
            build.progress.end(
                work,
                &match &found {
                    Ok(found) => format!("{} packages", found.len()),
                    Err(_) => "failed".to_owned(),
                },
            );
            let created = image.config.created.clone().unwrap_or_else(|| build.now());
            let body = document(image.id(), &created, &found?);
            let bytes = serde_json::to_vec(&body).unwrap_or_default();
            let holds = vec![store.put_bytes(build.lease, &bytes)?];
            store.put_build_record(
                &key,
                &BuildRecord { holds, value: json!({ "about": "packages of an image" }) },
            )?;
            body
        }
    };
    Ok(Predicate { kind: KIND.into(), file: "sbom.spdx.json", body })
}

fn document(image: &Digest, created: &str, found: &[Package]) -> Value {
    let mut packages = vec![json!({
        "name": "image",
        "SPDXID": "SPDXRef-Image",
        "versionInfo": image.to_string(),
        "downloadLocation": NONE,
        "filesAnalyzed": false,
        "licenseConcluded": NONE,
        "licenseDeclared": NONE,
        "copyrightText": NONE,
        "primaryPackagePurpose": "CONTAINER",
    })];
    let mut relationships = vec![relationship("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image")];
    for (number, package) in found.iter().enumerate() {
        let id = format!("SPDXRef-{}-{number}", package.kind);
        let declared = package.license.as_deref().filter(|l| is_expression(l));
        let mut one = json!({
            "name": package.name,
            "SPDXID": id,
            "versionInfo": package.version,
            "supplier": package.supplier.as_deref().map_or_else(|| NONE.to_owned(), supplier),
            "downloadLocation": NONE,
            "filesAnalyzed": false,
            "sourceInfo": format!("found in {}", package.place),
            "licenseConcluded": NONE,
            "licenseDeclared": declared.unwrap_or(NONE),
            "copyrightText": NONE,
            "externalRefs": [{
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": package.url,
            }],
        });
        if let (None, Some(license)) = (declared, &package.license) {
            one["licenseComments"] = format!("the package says: {license}").into();
        }
        packages.push(one);
        relationships.push(relationship("SPDXRef-Image", "CONTAINS", &id));
    }
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("packages of {image}"),
        "documentNamespace": format!("urn:isles:sbom:{image}"),
        "creationInfo": {
            "created": seconds(created),
            "creators": [format!("Tool: isles-{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
        "relationships": relationships,
    })
}

/// SPDX takes whole seconds in UTC only.
fn seconds(time: &str) -> String {
    isles_spec::time::rfc3339(isles_spec::time::parse_rfc3339(time).unwrap_or(0))
}

/// `Name <address>` as SPDX writes people.
fn supplier(text: &str) -> String {
    match text.split_once('<') {
        Some((name, address)) => {
            format!("Person: {} ({})", name.trim(), address.trim_end_matches(['>', ' ']))
        }
        None => format!("Person: {}", text.trim()),
    }
}

/// Whether every license of an expression is one of the list.
fn is_expression(text: &str) -> bool {
    let words = text.split(['(', ')', ' ']).filter(|w| !w.is_empty());
    let mut wanted = true;
    for word in words {
        let known = if wanted { LICENSES.contains(&word) } else { matches!(word, "AND" | "OR") };
        if !known {
            return false;
        }
        wanted = !wanted;
    }
    !wanted && text.matches('(').count() == text.matches(')').count()
}

fn relationship(from: &str, kind: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licenses() {
        for (text, is) in [
            ("MIT", true),
            ("(MIT OR Apache-2.0)", true),
            ("GPL-2.0-or-later AND MIT", true),
            ("MIT OR", false),
            ("OR", false),
            ("(MIT", false),
            ("BSD", false),
            ("see the file LICENSE", false),
            ("", false),
        ] {
            assert_eq!(is_expression(text), is, "{text}");
        }
        assert_eq!(supplier("A B <a@b>"), "Person: A B (a@b)");
        assert_eq!(seconds("2024-02-29T12:00:00.123Z"), "2024-02-29T12:00:00Z");
    }
}
