//! What is attested of an image, where it can be found, and what it does not tell.
#![allow(clippy::unwrap_used)]

mod shelf;

use std::fs;
use std::path::Path;

use serde_json::Value;
use shelf::*;

/// Files of packages of every kind, below a folder of the context.
const FILES: [(&str, &str); 6] = [
    (
        "var/lib/dpkg/status",
        "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n",
    ),
    ("lib/apk/db/installed", "P:musl\nV:1.2\nA:x86_64\nL:MIT\n\n"),
    ("etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n"),
    ("opt/lib/six-1.dist-info/METADATA", "Name: six\nVersion: 1.16.0\nLicense: a kind of MIT\n\n"),
    ("app/node_modules/@s/x/package.json", "{\"name\":\"@s/x\",\"version\":\"3.2.1\",\"license\":\"ISC\"}"),
    ("app/package.json", "{\"name\":\"app\",\"version\":\"0.0.0\"}"),
];

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn blob(layout: &Path, digest: &Value) -> Value {
    json(&layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/")))
}

/// A context with an image to build on, which has the name `base:1` in the store.
fn context(shelf: &Shelf) {
    for (path, text) in FILES {
        let path = shelf.path("tree").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let at = shelf.path("base-layout");
    layout(&at, "base:1", &[tar(&[("version", b"1")])]);
    shelf.share("base-layout");
    shelf.isles(&["load", "-q", "-i", &format!("oci:{}", at.display())]).fine();
    fs::write(shelf.path("word"), "s3cr3t-of-provenance").unwrap();
    let text = "FROM base:1\nARG TOKEN=none\nCOPY tree /\nLABEL token=yes\n";
    fs::write(shelf.path("Dockerfile"), text).unwrap();
}

#[test]
fn packages_and_origin() {
    for shelf in both() {
        context(&shelf);
        let build = |more: &[&str]| {
            let words = ["build", "-q", "--secret", "id=word,src=word", "--build-arg", "TOKEN=t0k3n-value"];
            shelf.isles(&[&words, more, &["."]].concat())
        };
        let id = build(&[
            "-t",
            "app",
            "--load",
            "--sbom",
            "--provenance=mode=min",
            "-o",
            "type=oci,dest=layout,tar=false",
            "-o",
            "files",
            "--metadata-file",
            "meta",
        ])
        .fine();
        let layout = shelf.path("layout");
        let root = json(&layout.join("index.json"))["manifests"][0].clone();
        let index = blob(&layout, &root["digest"]);
        let [image, attested] = index["manifests"].as_array().unwrap().as_slice() else { panic!("{index}") };
        assert_eq!(attested["platform"], serde_json::json!({ "architecture": "unknown", "os": "unknown" }));
        assert_eq!(attested["annotations"]["vnd.docker.reference.type"], "attestation-manifest");
        assert_eq!(attested["annotations"]["vnd.docker.reference.digest"], image["digest"]);
        assert_eq!(blob(&layout, &image["digest"])["config"]["digest"], id.trim());
        let manifest = blob(&layout, &attested["digest"]);
        let layers = manifest["layers"].as_array().unwrap();
        let config = blob(&layout, &manifest["config"]["digest"]);
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), layers.len());
        let statement = |kind: &str| {
            let layer =
                layers.iter().find(|l| l["annotations"]["in-toto.io/predicate-type"] == kind).unwrap();
            assert_eq!(layer["mediaType"], "application/vnd.in-toto+json");
            let statement = blob(&layout, &layer["digest"]);
            assert_eq!(statement["predicateType"], kind);
            let hex = image["digest"].as_str().unwrap().trim_start_matches("sha256:");
            assert_eq!(statement["subject"][0]["digest"]["sha256"], hex);
            statement
        };
        let sbom = statement("https://spdx.dev/Document")["predicate"].clone();
        let packages = sbom["packages"].as_array().unwrap();
        let urls: Vec<_> =
            packages.iter().filter_map(|p| p["externalRefs"][0]["referenceLocator"].as_str()).collect();
        let expected = [
            "pkg:apk/debian/musl@1.2?arch=x86_64&distro=debian-12",
            "pkg:deb/debian/a@1:2?arch=amd64&distro=debian-12",
            "pkg:npm/%40s/x@3.2.1",
            "pkg:pypi/six@1.16.0",
        ];
        assert_eq!(urls, expected);
        assert_eq!(sbom["spdxVersion"], "SPDX-2.3");
        assert_eq!(sbom["relationships"].as_array().unwrap().len(), packages.len());
        let by_name = |name: &str| packages.iter().find(|p| p["name"] == name).unwrap();
        assert_eq!(by_name("@s/x")["licenseDeclared"], "ISC");
        assert_eq!(
            (&by_name("six")["licenseDeclared"], &by_name("six")["licenseComments"]),
            (&"NOASSERTION".into(), &"the package says: a kind of MIT".into())
        );

        let said = statement("https://slsa.dev/provenance/v1")["predicate"].clone();
        let definition = &said["buildDefinition"];
        assert_eq!(definition["externalParameters"]["configSource"]["path"], "Dockerfile");
        assert_eq!(definition["externalParameters"]["request"]["secrets"][0]["id"], "word");
        let uri = definition["resolvedDependencies"][0]["uri"].as_str().unwrap();
        assert!(uri.starts_with("pkg:docker/base@1?platform=linux%2F"), "{uri}");
        assert!(said["runDetails"]["metadata"]["startedOn"].as_str().unwrap().ends_with('Z'));
        assert_eq!(json(&shelf.path("meta"))["buildx.build.provenance"]["buildDefinition"], *definition);
        for hidden in ["t0k3n", "s3cr3t"] {
            assert!(!said.to_string().contains(hidden), "{hidden} in {said}");
        }
        // The same beside exported files.
        for (file, kind) in [
            ("sbom.spdx.json", "https://spdx.dev/Document"),
            ("provenance.json", "https://slsa.dev/provenance/v1"),
        ] {
            assert_eq!(json(&shelf.path("files").join(file))["predicateType"], kind);
        }

        // Everything, and at a fixed time twice the same.
        let fixed = |dest: &str| {
            let output = format!("type=oci,dest={dest},tar=false");
            build(&[
                "--build-arg",
                "SOURCE_DATE_EPOCH=1000000000",
                "--attest",
                "type=provenance,mode=max,builder-id=https://x/y",
                "-o",
                &output,
            ])
            .fine();
            json(&shelf.path(dest).join("index.json"))["manifests"][0]["digest"].clone()
        };
        let digest = fixed("first");
        assert_eq!(fixed("second"), digest);
        let index = blob(&shelf.path("first"), &digest);
        let manifest = blob(&shelf.path("first"), &index["manifests"][1]["digest"]);
        let said = blob(&shelf.path("first"), &manifest["layers"][0]["digest"])["predicate"].clone();
        assert_eq!(
            said["buildDefinition"]["externalParameters"]["request"]["args"]["build-arg:TOKEN"],
            "t0k3n-value"
        );
        assert!(
            said["buildDefinition"]["internalParameters"]["recipe"].as_str().unwrap().contains("FROM base:1")
        );
        assert_eq!(said["runDetails"]["builder"]["id"], "https://x/y");
        assert!(!said.to_string().contains("s3cr3t"), "{said}");

        // The name stands for the index, whose attestations stay, and go to a registry with it.
        shelf.isles(&["prune", "-f"]).fine();
        shelf.isles(&["verify"]).fine();
        if let Some(registry) = Registry::start(false) {
            let name = format!("{}/app:1", registry.address);
            shelf.isles(&["push", "-q", "app", &name]).fine();
            let client = isles_registry::Client::new(isles_registry::ClientOptions::default());
            let sent = client.manifest(&name.parse().unwrap()).unwrap();
            let sent: Value = serde_json::from_slice(&sent.bytes).unwrap();
            let attested = &sent["manifests"][1];
            assert_eq!(
                attested["annotations"]["vnd.docker.reference.digest"],
                sent["manifests"][0]["digest"]
            );
            let digest = attested["digest"].as_str().unwrap();
            let of = format!("{}/app@{digest}", registry.address).parse().unwrap();
            let manifest: Value = serde_json::from_slice(&client.manifest(&of).unwrap().bytes).unwrap();
            assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
            shelf.isles_in("other", &["pull", "-q", &name]).fine();
            assert_eq!(shelf.isles_in("other", &["images", "-q", "--no-trunc"]).fine(), id);
            let pushed = format!("{}/direct:1", registry.address);
            build(&["-t", &pushed, "--push", "--sbom"]).fine();
            shelf.isles_in("third", &["pull", "-q", &pushed]).fine();
            // An index of which this machine has the image only is pushed as that image.
            shelf
                .isles_in("third", &["push", "-q", &pushed, &format!("{}/again:1", registry.address)])
                .fine();
        }
        // Names of kinds that are not read are not left out in silence.
        fs::create_dir_all(shelf.path("tree/var/lib/rpm")).unwrap();
        fs::write(shelf.path("tree/var/lib/rpm/Packages"), "x").unwrap();
        build(&["--sbom"]).fails(1, &["rpm/Packages", "Berkeley", "--sbom"]);
        fs::remove_file(shelf.path("tree/var/lib/rpm/Packages")).unwrap();
        fs::write(shelf.path("tree/var/lib/rpm/rpmdb.sqlite"), "x").unwrap();
        build(&["--sbom"]).fails(1, &["rpmdb.sqlite", "no table of packages", "--sbom"]);
        build(&["--sbom", "--sbom=false"]).fails(2, &["--sbom"]);
        build(&["--attest", "type=sbom", "--sbom=false"]).fine();
        build(&["--attest", "type=tape"]).fails(1, &["tape"]);
    }
}

const SPEC: &str = "Name: isle\nVersion: 1.2\nRelease: 3\nEpoch: 4\nSummary: x\nLicense: MIT AND ISC\nBuildArch: noarch\n\
                    Vendor: Ada\n%description\nx\n%files\n%package more\nSummary: y\n%description more\ny\n%files more\n";

/// Databases that rpm itself has written, of both kinds that it writes.
#[test]
fn packages_of_rpm_are_listed() {
    let shelf = &both()[0];
    for program in ["rpm", "rpmbuild"] {
        if shelf.peer(program, &["--version"]).is_none() {
            return;
        }
    }
    fs::write(shelf.path("isle.spec"), SPEC).unwrap();
    let top = format!("_topdir {}", shelf.path("top").display());
    shelf.peer("rpmbuild", &["-bb", "--quiet", "--define", &top, "isle.spec"]).unwrap().fine();
    for (backend, file) in [("sqlite", "rpmdb.sqlite"), ("ndb", "Packages.db")] {
        let root = shelf.path(&format!("tree-{backend}"));
        let database = root.join("var/lib/rpm");
        fs::create_dir_all(&database).unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/os-release"), "ID=fedora\nVERSION_ID=40\n").unwrap();
        let (path, backend_is) = (database.display().to_string(), format!("_db_backend {backend}"));
        let common = ["--dbpath", &path, "--define", &backend_is];
        let packages =
            ["top/RPMS/noarch/isle-1.2-3.noarch.rpm", "top/RPMS/noarch/isle-more-1.2-3.noarch.rpm"];
        let install = [&common[..], &["-i", "--justdb", "--nodeps", "--noscripts"], &packages].concat();
        let mut said = shelf.peer("rpm", &install).unwrap();
        if said.code != Some(0) && said.err.contains("use Alien") {
            // Debian's wants to be told that it is meant.
            said = shelf.peer("rpm", &[&install[..], &["--force-debian"]].concat()).unwrap();
        }
        if said.code != Some(0) || !database.join(file).exists() {
            println!("skip: this rpm does not write {backend}: {}", said.err);
            continue;
        }
        shelf.share(&format!("tree-{backend}"));
        fs::write(shelf.path("rpm.Dockerfile"), format!("FROM scratch\nCOPY tree-{backend} /\n")).unwrap();
        let out = format!("type=local,dest=out-{backend}");
        shelf.isles(&["build", "-q", "--sbom", "-f", "rpm.Dockerfile", "-o", &out, "."]).fine();
        let said = json(&shelf.path(&format!("out-{backend}")).join("sbom.spdx.json"));
        let text = said.to_string();
        for url in [
            "pkg:rpm/fedora/isle@1.2-3?arch=noarch&epoch=4&distro=fedora-40",
            "pkg:rpm/fedora/isle-more@1.2-3?arch=noarch&epoch=4&distro=fedora-40",
        ] {
            assert!(text.contains(url), "{backend}: {url} in {text}");
        }
        assert!(text.contains("MIT AND ISC"), "{text}");
    }
}
