//! The conformance tests of CWL v1.2, run by the public `cwltest`.
//!
//! The images that the tests name are stood in for by ones of Debian's packages: `debian:stable-slim` and `alpine:latest`
//! are Debian with procps and Python, `python:3-slim` has the name `python` in addition, `bash:4.4` an entrypoint that
//! passes everything on, to bash where it is options. The one test that fetches a page does so in a network namespace with
//! a server of its own.
#![allow(clippy::unwrap_used)]

mod desk;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use desk::{Desk, Said, installed};

/// The tests that `cwltest` may run at once.
const AT_ONCE: &str = "-j2";

/// Where the tests of others are: beside the project, or where `ISLES_CONFORMANCE` says.
fn suite() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance");
    let folder = std::env::var_os("ISLES_CONFORMANCE").map_or(beside, PathBuf::from).join("cwl-v1.2");
    if folder.join("conformance_tests.yaml").exists() {
        return Some(folder);
    }
    println!("skip: {} has no conformance tests of CWL", folder.display());
    None
}

/// A desk with the suite in its home, and the runner by the name that `cwltest` knows.
fn prepared(ordinary: bool) -> Option<Desk> {
    let suite = suite()?;
    if !installed("cwltest") {
        return None;
    }
    let desk = Desk::new(ordinary);
    symlink("isles", desk.path("bin/cwl-runner")).unwrap();
    let copied = Command::new("cp").arg("-r").arg(suite).arg(desk.path("home/suite")).status().unwrap();
    assert!(copied.success());
    let opened = Command::new("chmod").args(["-R", "u+w"]).arg(desk.path("home/suite")).status().unwrap();
    assert!(opened.success());
    let _ = fs::remove_dir_all(desk.path("home/suite/badges"));
    // One file of the suite is that of a package of npm's.
    let npm = Command::new("npm")
        .args(["pack", "--silent", "underscore@1.7.0"])
        .current_dir(desk.path("tmp"))
        .output();
    if npm.is_ok_and(|o| o.status.success()) {
        let text = Command::new("tar")
            .args(["xzOf", "underscore-1.7.0.tgz", "package/underscore.js"])
            .current_dir(desk.path("tmp"))
            .output()
            .unwrap();
        assert!(text.status.success());
        desk.file("suite/tests/underscore.js", text.stdout);
    }
    Some(desk)
}

/// Makes the images, or takes those that another desk made.
fn images(desk: &Desk, archive: &Path) -> bool {
    if archive.exists() {
        desk.run(&["isles", "load", "-q", "-i", archive.to_str().unwrap()]).fine();
        return true;
    }
    let base = desk.run(&["isles", "run", "--rm", "debian://bookworm?include=python3,procps", "true"]);
    if base.code != Some(0) {
        println!("skip: no base image can be made of Debian's packages: {}", base.err);
        return false;
    }
    let id = desk.run(&["isles", "images", "-q"]).fine();
    let id = id.lines().next().unwrap().to_owned();
    let names = ["docker.io/debian:stable-slim", "docker.io/alpine:latest", "localhost/base:1"];
    for name in names {
        desk.run(&["isles", "tag", &id, name]).fine();
    }
    let recipes = [
        ("docker.io/python:3-slim", "FROM localhost/base:1\nRUN ln -s python3 /usr/bin/python\n"),
        (
            "docker.io/bash:4.4",
            "FROM localhost/base:1\nRUN printf '#!/bin/sh\\ncase \"$1\" in -*) set -- bash \"$@\";; esac\\nexec \"$@\"\\n' \
             > /usr/bin/docker-entrypoint.sh && chmod 755 \
             /usr/bin/docker-entrypoint.sh\nENTRYPOINT [\"docker-entrypoint.sh\"]\nCMD [\"bash\"]\n",
        ),
    ];
    for (i, (name, text)) in recipes.iter().enumerate() {
        let folder = format!("image{i}");
        desk.file(&format!("{folder}/Dockerfile"), text);
        desk.run(&["isles", "build", "-q", "-t", name, &folder]).fine();
    }
    let all = [names[0], names[1], recipes[0].0, recipes[1].0];
    let mut save = vec!["isles", "save", "-o", archive.to_str().unwrap()];
    save.extend(all);
    desk.run(&save).fine();
    true
}

/// What `cwltest` says of all tests, and a table of its tags.
fn table(desk: &Desk, said: &Said) -> String {
    let summary = said
        .err
        .lines()
        .chain(said.out.lines())
        .find(|l| l.contains(" tests passed"))
        .unwrap_or("no summary");
    let mut rows: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for entry in fs::read_dir(desk.path("home/badges")).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "md") {
            continue;
        }
        let tag = path.file_stem().unwrap().to_string_lossy().into_owned();
        let (mut passed, mut all, mut in_passed) = (0, 0, false);
        for line in fs::read_to_string(&path).unwrap().lines() {
            if line.starts_with("## ") {
                in_passed = line.contains("passed");
            } else if line.starts_with("- [") {
                all += 1;
                passed += usize::from(in_passed);
            }
        }
        rows.insert(tag, (passed, all));
    }
    let mut out = format!("{summary}\n| tag | passed | of |\n|---|---|---|\n");
    for (tag, (passed, all)) in rows {
        out.push_str(&format!("| {tag} | {passed} | {all} |\n"));
    }
    out
}

const TESTED: &str =
    "cd suite && exec cwltest --test conformance_tests.yaml --tool cwl-runner --badgedir \"$HOME/badges\"";

/// A page for the test that fetches one: a network namespace with an address, a server and a name for it.
fn with_page(command: &str) -> String {
    format!(
        "ip link set lo up && ip link add page type veth peer name other && ip link set other up && ip addr add 198.51.100.7/24 dev page && ip link set page up && \
         ip route add default dev page && cp /etc/hosts hosts && echo 198.51.100.7 commonwl.org >> hosts && \
         mount --bind hosts /etc/hosts && mkdir -p pages && echo page > pages/index.html && \
         {{ python3 -m http.server --directory pages --bind 198.51.100.7 80 >/dev/null 2>&1 & server=$!; }} && \
         while ! python3 -c 'import socket; socket.create_connection((\"198.51.100.7\", 80))' 2>/dev/null; do :; done && \
         ({command}); code=$?; kill $server; exit $code"
    )
}

#[test]
fn peer_cwltest_passes_all_of_v1_2() {
    let root = rustix::process::geteuid().is_root();
    let shared = tempfile::tempdir().unwrap();
    fs::set_permissions(shared.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let archive = shared.path().join("images.tar");
    if root {
        println!("as root, in containers");
        let Some(desk) = prepared(false) else { return };
        if !images(&desk, &archive) {
            return;
        }
        let mut without = String::new();
        if !desk.path("home/suite/tests/underscore.js").exists() {
            println!("skip: npm gives no underscore 1.7.0, so without the test that reads it");
            without = " -S initworkdir_expreng_requirements".into();
        }
        let script = with_page(&format!("{TESTED} {AT_ONCE}{without}"));
        let said = desk.run(&["unshare", "-n", "-m", "sh", "-c", &script]);
        println!("{}", table(&desk, &said));
        assert_eq!(said.code, Some(0), "{}\n{}", said.out, said.err);
    } else {
        println!("skip: not root, so only as the user who runs the tests");
    }

    println!(
        "as an ordinary user, in containers: what is required, and all that is about containers and files"
    );
    let Some(desk) = prepared(true) else { return };
    if !images(&desk, &archive) {
        return;
    }
    let said = desk.script(&format!("{TESTED} {AT_ONCE} --tags required,docker,initial_work_dir"));
    println!("{}", table(&desk, &said));
    assert_eq!(said.code, Some(0), "{}\n{}", said.out, said.err);
}

#[test]
fn peer_samtools_and_bowtie2_align_reads_in_a_workflow() {
    if !desk::installed("cwltool") {
        return;
    }
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/lambda");
    desk::both(|desk| {
        for name in ["lambda.def", "align.cwl", "cut.cwl"] {
            desk.file(name, fs::read(examples.join(name)).unwrap());
        }
        let built = desk.run(&["isles", "build", "-q", "-t", "lambda:1", "lambda.def"]);
        if built.err.contains("cannot fetch") {
            return println!("skip: Debian's packages cannot be fetched here: {}", built.err);
        }
        built.fine();
        // What it is made of is CWL for others as well.
        desk.run(&["cwltool", "--validate", "align.cwl"]).fine();
        let out = desk.run(&["isles", "cwl", "run", "-q", "--outdir", "o", "align.cwl"]).fine();
        let out: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert!(out["mapped_percent"].as_f64().unwrap() > 90.0, "{out}");
        let summary = fs::read_to_string(desk.path("home/o/lambda.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
        assert_eq!(
            (&summary["reads"], &summary["covered_percent"]),
            (&20000.into(), &100.into()),
            "{summary}"
        );
        assert!(desk.path("home/o/lambda.bam.bai").exists());
        // Four parts of the reads, whose order makes no difference.
        let again = desk
            .run(&["isles", "cwl", "run", "-q", "--outdir", "p", "align.cwl", "--pairs_per_part", "700"])
            .fine();
        let again: serde_json::Value = serde_json::from_str(&again).unwrap();
        assert_eq!(again["mapped_percent"], out["mapped_percent"]);
    });
}

#[test]
fn peer_cwltest_passes_on_the_host_where_tests_allow_it() {
    println!("as an ordinary user, with --no-container");
    let Some(desk) = prepared(true) else { return };
    // It requires a container, as others do, and is itself among what every runner is required to do.
    let mut without = "cwloutput_nolimit".to_owned();
    if !desk.path("home/suite/tests/underscore.js").exists() {
        println!("skip: npm gives no underscore 1.7.0, so without the test that reads it");
        without += ",initworkdir_expreng_requirements";
    }
    let said = desk.script(&format!("{TESTED} {AT_ONCE} -S {without} -- --no-container"));
    println!("{}", table(&desk, &said));
    assert_eq!(said.code, Some(0), "{}\n{}", said.out, said.err);
    let refused = said.out.lines().chain(said.err.lines()).find(|line| line.contains("unsupported features"));
    let count = refused.and_then(|line| line.split(", ").last()?.split(' ').next()?.parse::<u32>().ok());
    assert!(count.is_some_and(|count| count < 20), "all but those that require a container: {refused:?}");
}
