//! `isles cwl run` knows every option of the reference runner: it is understood, or refused by name.
#![allow(clippy::unwrap_used)]

mod desk;

use std::collections::BTreeSet;
use std::fs;

use desk::Desk;

const HELLO: &str = "cwlVersion: v1.2\nclass: CommandLineTool\nbaseCommand: echo\ninputs: {message: {type: string, \
                     inputBinding: {}}}\noutputs: {said: stdout}\nstdout: said.txt\n";
const TWO: &str = "cwlVersion: v1.2\nclass: Workflow\ninputs: {message: string}\noutputs:\n  a: {type: File, outputSource: \
                   one/said}\n  b: {type: File, outputSource: two/said}\nsteps:\n  one: {run: hello.cwl, in: {message: \
                   message}, out: [said]}\n  two: {run: other.cwl, in: {message: message}, out: [said]}\n";

/// Understood, with what they take: `isles cwl run OPTIONS hello.cwl hello.json` says hi.
const UNDERSTOOD: &[&[&str]] = &[
    &["--basedir", "."],
    &["--cachedir", "cached"],
    &["--compute-checksum"],
    &["--copy-outputs"],
    &["--debug"],
    &["--disable-color"],
    &["--disable-ga4gh-tool-registry"],
    &["--disable-host-provenance"],
    &["--disable-js-validation"],
    &["--disable-pull"],
    &["--disable-user-provenance"],
    &["--doc-cache"],
    &["--enable-color"],
    &["--enable-dev"],
    &["--enable-ext"],
    &["--enable-pull"],
    &["--eval-timeout", "10"],
    &["--force-docker-pull"],
    &["--js-console"],
    &["--js-hint-options-file", "hints"],
    &["--leave-outputs"],
    &["--leave-tmpdir", "--tmpdir-prefix", "tmp/left-"],
    &["--move-outputs"],
    &["--no-compute-checksum"],
    &["--no-container"],
    &["--no-match-user"],
    &["--no-read-only"],
    &["--no-warnings"],
    &["--non-strict"],
    &["--on-error", "continue"],
    &["--outdir", "elsewhere"],
    &["--parallel"],
    &["--parallel-max", "2"],
    &["--podman"],
    &["--preserve-entire-environment"],
    &["--preserve-environment", "LANG"],
    &["--quiet"],
    &["--relax-path-checks"],
    &["--rm-container"],
    &["--rm-tmpdir"],
    &["--singularity"],
    &["--skip-schemas"],
    &["--strict"],
    &["--strict-cpu-limit"],
    &["--strict-memory-limit"],
    &["--timestamps"],
    &["--tmp-outdir-prefix", "tmp/out-"],
    &["--tmpdir-prefix", "tmp/in-"],
    &["--udocker"],
    &["--verbose"],
    &["--write-summary", "summary.json"],
];

/// Looked at in tests of their own, here or in `cwl.rs` and `flow.rs`.
const TESTED: &[&str] = &[
    "--default-container",
    "--help",
    "--make-template",
    "--overrides",
    "--pack",
    "--print-deps",
    "--print-dot",
    "--print-input-deps",
    "--print-subgraph",
    "--print-supported-versions",
    "--print-targets",
    "--provenance",
    "--relative-deps",
    "--single-process",
    "--single-step",
    "--target",
    "--tool-help",
    "--validate",
    "--version",
];

const REFUSED: &[&[&str]] = &[
    &["--add-ga4gh-tool-registry", "http://127.0.0.1"],
    &["--cidfile-dir", "."],
    &["--cidfile-prefix", "x"],
    &["--custom-net", "x"],
    &["--enable-ga4gh-tool-registry"],
    &["--enable-host-provenance"],
    &["--enable-user-provenance"],
    &["--full-name", "x"],
    &["--leave-container"],
    &["--log-dir", "x"],
    &["--mpi-config-file", "x"],
    &["--no-doc-cache"],
    &["--orcid", "x"],
    &["--print-pre"],
    &["--print-rdf"],
    &["--rdf-serializer", "turtle"],
    &["--singularity-sandbox-path", "x"],
    &["--user-space-docker-cmd", "x"],
];

fn desk() -> Desk {
    let desk = Desk::new(true);
    desk.file("hello.cwl", HELLO);
    desk.file("other.cwl", HELLO);
    desk.file("two.cwl", TWO);
    desk.file("hello.json", "{\"message\": \"hi\"}");
    desk.file("tmp/here", "");
    desk
}

#[test]
fn every_option_of_the_reference_runner_is_understood_or_refused_by_name() {
    let desk = desk();
    for options in UNDERSTOOD {
        let words = [&["isles", "cwl", "run"], *options, &["hello.cwl", "hello.json"]].concat();
        let said = desk.run(&words);
        assert_eq!(said.code, Some(0), "{options:?}: {}", said.err);
        assert!(said.out.contains("\"basename\": \"said.txt\""), "{options:?}: {}", said.out);
    }
    let summary = fs::read_to_string(desk.path("home/summary.json")).unwrap();
    assert!(summary.contains("said.txt"), "{summary}");
    for options in REFUSED {
        let words = [&["isles", "cwl", "run"], *options, &["hello.cwl", "hello.json"]].concat();
        let said = desk.run(&words);
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{options:?}: {}", said.err);
        let refusal = format!("`{}` of the reference runner is not supported", options[0]);
        assert!(said.err.contains(&refusal) && said.err.contains("hint"), "{options:?}: {}", said.err);
    }
    let said = desk.run(&["isles", "cwl", "run", "--outdi", "x", "hello.cwl"]);
    assert!(said.err.contains("no option '--outdi'") && said.err.contains("'--outdir'"), "{}", said.err);
}

#[test]
fn documents_and_jobs_tell_what_they_are_made_of() {
    let desk = desk();
    let run = |words: &[&str]| desk.run(&[&["isles", "cwl", "run"], words].concat()).fine();
    assert_eq!(run(&["--print-supported-versions"]), "v1.0\nv1.1\nv1.2\n");
    let version = desk.run(&["isles", "cwl", "run", "--version"]).fine();
    assert!(version.starts_with("isles "), "{version}");
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let targets = json(&run(&["--print-targets", "two.cwl"]));
    let known = serde_json::json!({"outputs": ["a", "b"], "inputs": ["message"], "steps": ["one", "two"]});
    assert_eq!(targets, known);
    assert!(run(&["--tool-help", "hello.cwl"]).contains("--message"));

    let deps = json(&run(&["--print-deps", "--relative-deps", "primary", "two.cwl"]));
    assert_eq!(deps["location"], "two.cwl");
    assert_eq!(deps["secondaryFiles"][0]["location"], "hello.cwl");
    let whole = json(&run(&["--print-deps", "two.cwl"]));
    assert!(whole["location"].as_str().unwrap().starts_with("file:///"), "{whole}");

    desk.file(
        "cat.cwl",
        "cwlVersion: v1.2\nclass: CommandLineTool\nbaseCommand: cat\ninputs: {f: 'File[]'}\noutputs: []\n",
    );
    desk.file("job.yml", "f: [{class: File, location: in/a.txt}, {class: File, path: b.txt}]\n");
    let deps = json(&run(&["--print-input-deps", "--relative-deps", "cwd", "cat.cwl", "job.yml"]));
    let named: Vec<_> = deps["secondaryFiles"].as_array().unwrap().iter().map(|f| &f["location"]).collect();
    assert_eq!(named, ["in/a.txt", "b.txt"]);

    let part = run(&["--print-subgraph", "--target", "b", "two.cwl"]);
    let graph = json(&part)["$graph"].clone();
    let ids: Vec<_> =
        graph.as_array().unwrap().iter().map(|process| process["id"].as_str().unwrap()).collect();
    assert!(ids.contains(&"main") && ids.len() == 2, "{ids:?}");
    assert!(part.contains("two") && !part.contains("\"one\""), "{part}");
    desk.file("part.cwl", &part);
    let out = json(&run(&["--quiet", "part.cwl", "--message", "x"]));
    assert_eq!(out.as_object().unwrap().keys().collect::<Vec<_>>(), ["b"]);
}

/// The list is whole as long as the reference runner's own help names nothing else.
#[test]
fn peer_cwltool_has_no_option_that_is_not_in_the_table() {
    let desk = Desk::new(false);
    if !desk::installed("cwltool") {
        println!("skip: cwltool is not installed");
        return;
    }
    let help = desk.run(&["cwltool", "--help"]).fine();
    // What it says about an option names options of docker's as well.
    let own = help.lines().filter(|line| line.trim_start().starts_with('-')).map(|line| {
        let (names, _text) = line.trim_start().split_once("  ").unwrap_or((line, ""));
        names
    });
    let words = own.flat_map(|line| line.split(|c: char| c.is_whitespace() || ",[]|()=.'`".contains(c)));
    let theirs: BTreeSet<&str> = words
        .filter(|word| word.starts_with("--") && word.len() > 3)
        .map(|word| word.trim_end_matches(':'))
        .collect();
    assert!(theirs.len() > 60, "{help}");
    let ours: BTreeSet<&str> =
        UNDERSTOOD.iter().chain(REFUSED).map(|options| options[0]).chain(TESTED.iter().copied()).collect();
    let unknown: Vec<_> = theirs.difference(&ours).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
