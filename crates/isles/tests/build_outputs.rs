//! `isles build --output` and its kin: what comes out, for those who read it.
#![allow(clippy::unwrap_used)]

mod shelf;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use isles_store::tar::{Entry, ReadLimits, Reader};
use serde_json::Value;
use shelf::*;

const DOCKERFILE: &str = "\
FROM scratch
COPY --chown=7:8 --chmod=750 f /dir/f
COPY links /
LABEL a=b
";

/// A context with a file and a link.
fn context(shelf: &Shelf) {
    fs::write(shelf.path("Dockerfile"), DOCKERFILE).unwrap();
    fs::write(shelf.path("f"), "text").unwrap();
    fs::create_dir(shelf.path("links")).unwrap();
    symlink("dir/f", shelf.path("links/link")).unwrap();
}

fn json(path: &std::path::Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A blob of a layout.
fn blob(layout: &std::path::Path, digest: &Value) -> Value {
    json(&layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/")))
}

/// Path to mode, owner and data.
type Listed = BTreeMap<String, (u32, u32, u32, String)>;

fn list(tar: &[u8]) -> Listed {
    let mut reader = Reader::new(tar, ReadLimits::default());
    let (mut entry, mut out) = (Entry::default(), Listed::new());
    while reader.next(&mut entry).unwrap() {
        let data = reader.read_all(1000).unwrap();
        let text = String::from_utf8([entry.link.clone(), data].concat()).unwrap();
        let path = String::from_utf8(entry.path.clone()).unwrap();
        out.insert(path, (entry.mode, entry.uid, entry.gid, text));
    }
    out
}

#[test]
fn files_in_a_folder() {
    for shelf in both() {
        context(&shelf);
        // What is there stays, and no link in the folder leads elsewhere.
        fs::create_dir_all(shelf.path("out/mine")).unwrap();
        fs::create_dir(shelf.path("elsewhere")).unwrap();
        fs::write(shelf.path("elsewhere/f"), "mine").unwrap();
        symlink("../elsewhere/f", shelf.path("out/link")).unwrap();
        for name in ["out", "out/mine"] {
            fs::set_permissions(shelf.path(name), fs::Permissions::from_mode(0o777)).unwrap();
        }
        for output in ["out", "type=local,dest=out"] {
            let said = shelf.isles(&["build", "-q", "-o", output, "."]).fine();
            assert!(said.starts_with("sha256:"), "{said}");
            assert_eq!(fs::read_to_string(shelf.path("out/dir/f")).unwrap(), "text");
            let meta = fs::metadata(shelf.path("out/dir/f")).unwrap();
            assert_eq!(meta.mode() & 0o7777, 0o750);
            let me = fs::metadata(shelf.path("state")).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (me.uid(), me.gid()), "files are the caller's");
            assert_eq!(fs::read_link(shelf.path("out/link")).unwrap().to_str(), Some("dir/f"));
            assert!(shelf.path("out/mine").is_dir());
        }
        assert_eq!(fs::read_to_string(shelf.path("elsewhere/f")).unwrap(), "mine");
        // Nothing got a name, so nothing is listed under one.
        assert!(!shelf.isles(&["images"]).fine().contains("app"));
        fs::remove_dir_all(shelf.path("out/dir")).unwrap();
        symlink("../elsewhere", shelf.path("out/dir")).unwrap();
        let said = shelf.isles(&["build", "-q", "-o", "out", "."]);
        said.fails(1, &["cannot open", "out/dir"]);
        assert_eq!(fs::read_to_string(shelf.path("elsewhere/f")).unwrap(), "mine");
        fs::remove_file(shelf.path("out/dir")).unwrap();
        fs::create_dir(shelf.path("out/link.d")).unwrap();
        fs::remove_file(shelf.path("out/link")).unwrap();
        fs::rename(shelf.path("out/link.d"), shelf.path("out/link")).unwrap();
        shelf.isles(&["build", "-q", "-o", "out", "."]).fails(1, &["out/link' is a directory"]);
    }
}

#[test]
fn files_as_an_archive() {
    for shelf in both() {
        context(&shelf);
        let raw = shelf.command_in("state", &["build", "-o", "-", "."]).output().unwrap();
        assert!(raw.status.success(), "{}", String::from_utf8_lossy(&raw.stderr));
        let entry = |mode, uid, gid, text: &str| (mode, uid, gid, text.to_owned());
        let expected = Listed::from([
            ("dir/".into(), entry(0o755, 7, 8, "")),
            ("dir/f".into(), entry(0o750, 7, 8, "text")),
            ("link".into(), entry(0o777, 0, 0, "dir/f")),
        ]);
        let mut found = list(&raw.stdout);
        found.retain(|path, _| expected.contains_key(path));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert_eq!(found["dir/f"], expected["dir/f"]);
        // Several outputs of one build.
        let said =
            shelf.isles(&["build", "-q", "-o", "type=tar,dest=a.tar", "-o", "b", "-t", "app", "--load", "."]);
        let id = said.fine();
        assert_eq!(fs::read(shelf.path("a.tar")).unwrap(), raw.stdout);
        assert!(shelf.path("b/dir/f").exists());
        assert_eq!(shelf.isles(&["images", "-q", "--no-trunc", "app"]).fine(), id);
        let both = shelf.isles(&["build", "-o", "-", "-o", "type=oci", "."]);
        both.fails(1, &["two outputs cannot both go to standard output"]);
    }
}

#[test]
fn layouts_and_archives() {
    for shelf in both() {
        context(&shelf);
        let build =
            |more: &[&str]| shelf.isles(&[&["build", "-q", "-t", "app:1"], more, &["."]].concat()).fine();
        let id = build(&["-o", "type=oci,dest=plain,tar=false,compression=uncompressed"]);
        for (output, layer, manifest) in [
            ("type=oci,dest=gzip,tar=false", "tar+gzip", "application/vnd.oci.image.manifest.v1+json"),
            (
                "type=oci,dest=zstd,tar=false,compression=zstd,compression-level=1",
                "tar+zstd",
                "application/vnd.oci.image.manifest.v1+json",
            ),
            (
                "type=oci,dest=docker,tar=false,oci-mediatypes=false",
                "diff.tar.gzip",
                "application/vnd.docker.distribution.manifest.v2+json",
            ),
        ] {
            assert_eq!(
                build(&[
                    "-o",
                    output,
                    "--annotation",
                    "org.x=y",
                    "--annotation",
                    "manifest-descriptor:d=e",
                    "--metadata-file",
                    "meta"
                ]),
                id
            );
            let dest = output.split(&['=', ','][..]).nth(3).unwrap();
            let layout = shelf.path(dest);
            let index = json(&layout.join("index.json"));
            let entry = &index["manifests"][0];
            assert_eq!(entry["mediaType"], manifest);
            assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], "docker.io/library/app:1");
            assert_eq!(entry["annotations"]["d"], "e");
            let document = blob(&layout, &entry["digest"]);
            assert_eq!(document["annotations"]["org.x"], "y");
            assert_eq!(document["config"]["digest"], id.trim());
            for found in document["layers"].as_array().unwrap() {
                assert!(found["mediaType"].as_str().unwrap().ends_with(layer), "{found}");
            }
            let meta = json(&shelf.path("meta"));
            assert_eq!(meta["containerimage.digest"], entry["digest"]);
            assert_eq!(meta["containerimage.config.digest"], id.trim());
            assert_eq!(meta["containerimage.descriptor"]["mediaType"], manifest);
            let from = format!("oci:{dest}");
            shelf.isles_in(dest, &["load", "-i", &from]).fine();
            assert_eq!(shelf.isles_in(dest, &["images", "-q", "--no-trunc"]).fine(), id);
        }
        for output in ["type=oci,dest=x.tar", "type=docker,dest=x.tar"] {
            build(&["-o", output, "--iidfile", "iid"]);
            assert_eq!(fs::read_to_string(shelf.path("iid")).unwrap(), id.trim());
            let state = format!("of-{output}");
            shelf.isles_in(&state, &["load", "-i", "x.tar"]).fine();
            assert_eq!(shelf.isles_in(&state, &["images", "-q", "--no-trunc", "app:1"]).fine(), id);
        }
        let lost = shelf.isles(&["build", "-q", "--annotation", "index:a=b", "."]);
        lost.fails(1, &["'a' is for an index"]);
    }
}

#[test]
fn pushed_at_once() {
    for shelf in both() {
        let Some(registry) = Registry::start(false) else { return };
        context(&shelf);
        let name = format!("{}/app:1", registry.address);
        let build = |more: &[&str]| shelf.isles(&[&["build", "-q"], more, &["."]].concat());
        build(&["--push"]).fails(1, &["needs a name"]);
        let id = build(&["-t", &name, "--push", "--metadata-file", "meta", "--annotation", "k=v"]).fine();
        let meta = json(&shelf.path("meta"));
        assert_eq!(meta["image.name"], name.as_str());
        let digest = meta["containerimage.digest"].as_str().unwrap().to_owned();
        // What was pushed is what is here under the name, and what others get.
        let listed = shelf.isles(&["images"]).fine();
        assert!(listed.contains("/app") && !listed.contains("<none>"), "{listed}");
        let by_digest = format!("{}/app@{digest}", registry.address);
        shelf.isles_in("other", &["pull", "-q", &by_digest]).fine();
        assert_eq!(shelf.isles_in("other", &["images", "-q", "--no-trunc"]).fine(), id);
        let again =
            build(&["-t", &name, "-o", "type=registry", "--metadata-file", "meta", "--annotation", "k=v"]);
        again.fine();
        assert_eq!(json(&shelf.path("meta"))["containerimage.digest"], digest.as_str());
        // Another compression is another manifest of the same image.
        let zstd = "type=image,push=true,compression=zstd,force-compression=true";
        assert_eq!(build(&["-t", &name, "-o", zstd, "--metadata-file", "meta"]).fine(), id);
        assert_ne!(json(&shelf.path("meta"))["containerimage.digest"], digest.as_str());
        let named = format!("type=image,name={}/other:2,push-by-digest=true", registry.address);
        build(&["-o", &named, "--metadata-file", "meta"]).fine();
        let digest = json(&shelf.path("meta"))["containerimage.digest"].as_str().unwrap().to_owned();
        shelf.isles_in("third", &["pull", "-q", &format!("{}/other@{digest}", registry.address)]).fine();
        shelf
            .isles_in("third", &["pull", "-q", &format!("{}/other:2", registry.address)])
            .fails(1, &["other:2"]);
    }
}

#[test]
fn several_platforms() {
    for shelf in both() {
        context(&shelf);
        let text = format!(
            "FROM --platform=$BUILDPLATFORM scratch AS tools\nARG TARGETARCH\nCOPY f /$TARGETARCH\n{DOCKERFILE}\
             ARG TARGETPLATFORM TARGETVARIANT BUILDPLATFORM\nCOPY --from=tools / /tools\n\
             LABEL for=$TARGETPLATFORM variant=$TARGETVARIANT on=$BUILDPLATFORM\n"
        );
        fs::write(shelf.path("Dockerfile"), text).unwrap();
        let platforms = "linux/arm64,linux/arm/v7";
        let build =
            |more: &[&str]| shelf.isles(&[&["build", "-q", "--platform", platforms], more, &["."]].concat());
        let words = [
            "--annotation",
            "index:a=b",
            "--annotation",
            "manifest[linux/arm64]:c=d",
            "--annotation",
            "index-descriptor:e=f",
        ];
        build(&[&["-t", "app", "-o", "type=oci,dest=layout,tar=false", "--load"], &words[..]].concat())
            .fine();
        let layout = shelf.path("layout");
        let root = json(&layout.join("index.json"))["manifests"][0].clone();
        assert_eq!(root["mediaType"], "application/vnd.oci.image.index.v1+json");
        assert_eq!(root["annotations"]["e"], "f");
        let index = blob(&layout, &root["digest"]);
        assert_eq!(index["annotations"]["a"], "b");
        let host = isles_spec::Platform::host().to_string();
        for (number, (arch, variant)) in [("arm64", Value::Null), ("arm", "v7".into())].iter().enumerate() {
            let entry = &index["manifests"][number];
            assert_eq!(
                (&entry["platform"]["architecture"], &entry["platform"]["variant"]),
                (&Value::from(*arch), variant)
            );
            let manifest = blob(&layout, &entry["digest"]);
            assert_eq!(manifest["annotations"]["c"] == "d", *arch == "arm64");
            let config = blob(&layout, &manifest["config"]["digest"]);
            assert_eq!((&config["architecture"], &config["variant"]), (&Value::from(*arch), variant));
            let labels = &config["config"]["Labels"];
            let v = variant.as_str().unwrap_or_default();
            assert_eq!(labels["for"], format!("linux/{arch}/{v}").trim_end_matches('/'));
            assert_eq!((labels["variant"].as_str(), labels["on"].as_str()), (Some(v), Some(host.as_str())));
        }
        // The name stands for both.
        let of = |platform: &str| {
            shelf.isles(&["save", "--platform", platform, "--format", "oci-dir", "-o", "saved", "app"])
        };
        of("linux/arm64").fine();
        of("linux/arm/v7").fine();
        of("linux/s390x").fails(1, &["s390x"]);
        build(&["-o", "files"]).fine();
        assert!(shelf.path("files/linux_arm64/tools/arm64").exists());
        assert!(shelf.path("files/linux_arm_v7/tools/arm").exists());
        let raw = shelf
            .command_in("state", &["build", "-q", "--platform", platforms, "-o", "-", "."])
            .output()
            .unwrap();
        let listed = list(&raw.stdout);
        assert_eq!(listed["linux_arm64/dir/f"].3, "text");
        assert_eq!(listed["linux_arm_v7/tools/arm"].3, "text");
        build(&["-o", "type=docker,dest=x.tar"]).fails(1, &["one platform"]);
        if let Some(registry) = Registry::start(false) {
            let name = format!("{}/app:1", registry.address);
            build(&["-t", &name, "--push", "--metadata-file", "meta"]).fine();
            assert_eq!(json(&shelf.path("meta"))["containerimage.config.digest"], Value::Null);
            for (state, platform, architecture) in
                [("a", "linux/arm64", "arm64"), ("b", "linux/arm/v7", "arm")]
            {
                shelf.isles_in(state, &["pull", "-q", "--platform", platform, &name]).fine();
                let found = shelf.isles_in(state, &["inspect", "-f", "{{.Architecture}}", &name]).fine();
                assert_eq!(found.trim(), architecture);
            }
        }
        // A program of another architecture needs what this machine may not have.
        let (foreign, qemu) = match host == "linux/amd64" {
            true => ("linux/s390x", "qemu-s390x-static"),
            false => ("linux/amd64", "qemu-x86_64-static"),
        };
        fs::write(shelf.path("Dockerfile"), "FROM scratch\nCOPY f /f\nRUN [\"/f\"]\n").unwrap();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = std::env::split_paths(&path).chain(["/usr/bin".into()]);
        let said = shelf.isles(&["build", "-q", "--platform", foreign, "."]);
        match fs::read_dir("/proc/sys/fs/binfmt_misc").map(|d| d.flatten().count()) {
            Ok(3..) => println!("skip: this machine may have an interpreter"),
            // It is found, and the file is no program for it either.
            _ if folders.any(|folder| folder.join(qemu).exists()) => {
                drop(said.fails(1, &["Dockerfile:3:", "'/f' is not executable"]));
            }
            _ => drop(said.fails(
                1,
                &["Dockerfile:3:", &format!("programs for {foreign} do not run"), "'qemu-", "hint: "],
            )),
        }
    }
}

#[test]
fn skopeo_reads_what_comes_out() {
    let shelf = both().remove(0);
    context(&shelf);
    let policy = ["--insecure-policy"];
    let skopeo = |words: &[&str]| shelf.peer("skopeo", &[&policy, words].concat());
    if skopeo(&["--version"]).is_none() {
        return;
    }
    let build = |more: &[&str]| shelf.isles(&[&["build", "-q", "-t", "app:1"], more, &["."]].concat()).fine();
    let name = "docker.io/library/app:1";
    for (output, transport) in [
        ("type=oci,dest=oci.tar", "oci-archive:oci.tar"),
        ("type=oci,dest=oci-zstd.tar,compression=zstd", "oci-archive:oci-zstd.tar"),
        ("type=oci,dest=layout,tar=false", "oci:layout"),
        ("type=docker,dest=docker.tar", "docker-archive:docker.tar"),
    ] {
        let id = build(&["-o", output]);
        let source = format!("{transport}:{name}");
        let said = skopeo(&["inspect", "--config", &source]).unwrap();
        let config: Value = serde_json::from_str(&said.fine()).unwrap();
        assert_eq!(config["config"]["Labels"]["a"], "b", "{output}");
        let to = format!("dir:{}", shelf.path("copied").display());
        skopeo(&["copy", "-q", &source, &to]).unwrap().fine();
        let manifest = json(&shelf.path("copied/manifest.json"));
        assert_eq!(manifest["config"]["digest"], id.trim(), "{output}");
    }
    // Several platforms, with attestations, copied whole.
    build(&[
        "--platform",
        "linux/amd64,linux/arm64",
        "--sbom",
        "--provenance",
        "-o",
        "type=oci,dest=many,tar=false",
    ]);
    let source = format!("oci:many:{name}");
    skopeo(&["copy", "-q", "--all", &source, "oci:again:x"]).unwrap().fine();
    let again = json(&shelf.path("again/index.json"))["manifests"][0].clone();
    let first = json(&shelf.path("many/index.json"))["manifests"][0].clone();
    assert_eq!(again["digest"], first["digest"], "not a byte is other");
    let said = skopeo(&["inspect", "--raw", &source]).unwrap().fine();
    let index: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 4);
}
