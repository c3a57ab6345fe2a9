//! `isles cwl run`: the ways to an image, extensions of the reference runner, and what tools do that is too much.
#![allow(clippy::unwrap_used)]

mod desk;

use std::fs;
use std::os::unix::ffi::OsStrExt;

use desk::{Desk, both, installed};

fn tool(requirements: &str, script: &str) -> String {
    serde_json::json!({
        "cwlVersion": "v1.2", "class": "CommandLineTool",
        "$namespaces": {"cwltool": "http://commonwl.org/cwltool#"},
        "requirements": serde_json::from_str::<serde_json::Value>(requirements).unwrap(),
        "baseCommand": ["sh", "-c", script],
        "inputs": [], "outputs": {"o": "stdout"}, "stdout": "o.txt",
    })
    .to_string()
}

fn has_busybox() -> bool {
    let there = installed("busybox");
    if !there {
        println!("skip: no busybox");
    }
    there
}

#[test]
fn an_image_is_pulled_loaded_built_or_somewhere_else_in_it_is_the_output() {
    both(|desk| {
        if !has_busybox() {
            return;
        }
        desk.busybox(&[]);
        desk.run(&["isles", "save", "-o", "saved.tar", "busybox:desk"]).fine();
        let table = [
            (r#"{"DockerRequirement": {"dockerPull": "busybox:desk"}}"#, "pwd", "/var/spool/cwl\n"),
            (
                r#"{"DockerRequirement": {"dockerLoad": "saved.tar", "dockerImageId": "busybox:desk"}}"#,
                "echo loaded",
                "loaded\n",
            ),
            (
                r#"{"DockerRequirement": {"dockerFile": "FROM busybox:desk\nRUN echo built > /mark\n", "dockerImageId": "x"}}"#,
                "cat /mark",
                "built\n",
            ),
            (
                r#"{"DockerRequirement": {"dockerPull": "busybox:desk", "dockerOutputDirectory": "/elsewhere"}}"#,
                "pwd",
                "/elsewhere\n",
            ),
            (
                r#"{"DockerRequirement": {"dockerPull": "busybox:desk"}, "cwltool:ShmSize": {"shmSize": "3m"}}"#,
                "grep /dev/shm /proc/mounts | grep -o size=[0-9]*k",
                "size=3072k\n",
            ),
        ];
        for (requirements, script, said) in table {
            desk.file("t.cwl", tool(requirements, script));
            desk.run(&["isles", "cwl", "run", "-q", "--outdir", "o", "t.cwl"]).fine();
            assert_eq!(fs::read_to_string(desk.path("home/o/o.txt")).unwrap(), said, "{requirements}");
        }
        desk.file("t.cwl", tool(r#"{"cwltool:ShmSize": {"shmSize": "much"}}"#, "true"));
        let said = desk.run(&["isles", "cwl", "run", "-q", "t.cwl"]);
        assert!(said.code == Some(1) && said.err.contains("`shmSize`"), "{}", said.err);
    });
}

/// Steps that follow each other find what the first one has found, whatever was left behind.
#[test]
fn steps_in_containers_do_not_meet() {
    both(|desk| {
        if !has_busybox() {
            return;
        }
        desk.busybox(&[]);
        let script =
            "test ! -e /left && test ! -e /dev/shm/left && test ! -e /tmp/left && test -e /bin/ls || exit 7
            for p in /proc/[0-9]*/cmdline; do if grep -q 44[4]4 $p; then exit 8; fi; done 2>/dev/null
            cat \"$1\"; case $0 in
            file) touch /left;; shm) touch /dev/shm/left;; tmp) touch /tmp/left;; gone) rm /bin/ls;;
            there) sleep 44${z}44 > /dev/null 2>&1 & ;;
            esac";
        let kinds = ["none", "none", "file", "none", "shm", "tmp", "none", "gone", "there", "none"];
        let names: Vec<String> = (0..kinds.len()).map(|n| format!("in {n}.txt")).collect();
        for name in &names {
            desk.file(name, name);
        }
        let files: Vec<_> =
            names.iter().map(|path| serde_json::json!({"class": "File", "path": path})).collect();
        desk.file("job.json", serde_json::json!({"kinds": kinds, "files": files}).to_string());
        let one = serde_json::json!({
            "class": "CommandLineTool", "requirements": {"DockerRequirement": {"dockerPull": "busybox:desk"}},
            "baseCommand": ["sh", "-c", script],
            "inputs": {
                "kind": {"type": "string", "inputBinding": {"position": 1}},
                "file": {"type": "File", "inputBinding": {"position": 2}},
            },
            "outputs": {"o": {"type": "string", "outputBinding": {
                "glob": "o.txt", "loadContents": true, "outputEval": "$(self[0].contents)"}}},
            "stdout": "o.txt",
        });
        let all = serde_json::json!({
            "cwlVersion": "v1.2", "class": "Workflow", "requirements": {"ScatterFeatureRequirement": {}},
            "inputs": {"kinds": "string[]", "files": "File[]"},
            "outputs": {"o": {"type": "string[]", "outputSource": "s/o"}},
            "steps": {"s": {"run": one, "scatter": ["kind", "file"], "scatterMethod": "dotproduct",
                "in": {"kind": "kinds", "file": "files"}, "out": ["o"]}},
        });
        desk.file("w.cwl", all.to_string());
        let arguments =
            ["isles", "cwl", "run", "-q", "--max-cores", "1", "--outdir", "o", "w.cwl", "job.json"];
        let said = desk.run(&arguments).fine();
        let output: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(output["o"], serde_json::json!(names));
    });
}

/// What nobody can do here is refused by its name, with the code that says so.
#[test]
fn extensions_that_are_not_there_are_refused_by_name() {
    let desk = Desk::new(true);
    for name in ["CUDARequirement", "ProcessGenerator"] {
        desk.file("t.cwl", tool(&format!("{{\"cwltool:{name}\": {{}}}}"), "true"));
        let said = desk.run(&["isles", "cwl", "run", "-q", "t.cwl"]);
        assert!(said.code == Some(33) && said.err.contains(name), "{:?} {}", said.code, said.err);
    }
}

#[test]
fn a_secret_is_written_down_nowhere() {
    let desk = Desk::new(true);
    let secret = "hunter2 \"of\" mine";
    desk.file(
        "s.cwl",
        "cwlVersion: v1.2\n$namespaces: {cwltool: 'http://commonwl.org/cwltool#'}\nclass: Workflow\nhints:\n  \
         cwltool:Secrets: {secrets: [password]}\ninputs: {password: string, other: string}\noutputs:\n  o: {type: File, \
         outputSource: s/o}\nsteps:\n  s:\n    in: {password: password, other: other}\n    out: [o]\n    run:\n      class: \
         CommandLineTool\n      baseCommand: [sh, -c, 'echo $1 | wc -c; test $2 = plain', sh]\n      inputs:\n        \
         password: {type: string, inputBinding: {position: 1}}\n        other: {type: string, inputBinding: {position: \
         2}}\n      outputs: {o: stdout}\n      stdout: o.txt\n",
    );
    let job = |other: &str| serde_json::json!({"password": secret, "other": other}).to_string();
    desk.file("job.json", job("plain"));
    desk.run(&["isles", "cwl", "run", "--outdir", "o", "s.cwl", "job.json"]).fine();
    assert_eq!(fs::read_to_string(desk.path("home/o/o.txt")).unwrap(), "18\n");
    let shown = desk.run(&["isles", "flow", "show", "--format", "json"]).fine();
    assert!(shown.contains("(secret)") && shown.contains("plain") && !shown.contains("hunter2"), "{shown}");
    desk.run(&["isles", "flow", "report", "-o", "report.html"]).fine();
    let html = fs::read_to_string(desk.path("home/report.html")).unwrap();
    assert!(html.contains("(secret)") && !html.contains("hunter2"), "{html}");

    let said = desk.run(&["isles", "cwl", "run", "--provenance", "ro", "s.cwl", "job.json"]);
    assert!(said.code == Some(1) && said.err.contains("secret inputs"), "{}", said.err);
    desk.file("bad.json", job("wrong"));
    let failed = desk.run(&["isles", "cwl", "run", "s.cwl", "bad.json"]);
    assert!(!failed.err.contains("hunter2") && failed.code == Some(1), "{}", failed.err);
    let runs = desk.run(&["isles", "flow", "ls", "-q"]).fine();
    let resumed = desk.run(&["isles", "flow", "resume", runs.lines().next().unwrap()]);
    assert!(resumed.err.contains("secret inputs, which nobody knows any more"), "{}", resumed.err);
    for entry in fs::read_dir(desk.path("home")).unwrap() {
        assert_ne!(entry.unwrap().file_name().as_bytes(), b"ro");
    }
}

/// `ISLES_TALK_GIB=10` for as much as a tool may say in a bad hour; the default is enough to show that nothing grows with it.
#[test]
fn a_tool_may_say_a_lot() {
    let desk = Desk::new(true);
    let gib = std::env::var("ISLES_TALK_GIB").ok().and_then(|n| n.parse::<u64>().ok());
    let mebibytes = gib.map_or(256, |gib| gib << 10);
    desk.file("t.cwl", tool("{}", &format!("head -c {}M /dev/zero >&2; echo done", mebibytes)));
    let script = "/usr/bin/env isles cwl run -q --outdir o t.cwl 2>/dev/null & wait $!; exit $?";
    assert_eq!(desk.script(script).code, Some(0));
    assert_eq!(fs::read_to_string(desk.path("home/o/o.txt")).unwrap(), "done\n");
    let mut kept = 0;
    let mut open = vec![desk.path("home")];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let about = entry.metadata().unwrap();
            if about.is_dir() { open.push(entry.path()) } else { kept += about.len() }
        }
    }
    assert!(kept < 64 << 20, "{kept} bytes were kept");
}

#[test]
fn names_that_are_no_text_are_told_and_not_guessed() {
    let desk = Desk::new(true);
    let glob = |script: &str| {
        serde_json::json!({
            "cwlVersion": "v1.2", "class": "CommandLineTool", "baseCommand": ["sh", "-c", script], "inputs": [],
            "outputs": {"o": {"type": "File[]", "outputBinding": {"glob": "*"}}},
        })
        .to_string()
    };
    desk.file("t.cwl", glob("touch plain \"$(printf 'bad\\377name')\""));
    let said = desk.run(&["isles", "cwl", "run", "-q", "--outdir", "o", "t.cwl"]);
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(said.err.contains("bad") && said.err.contains("UTF-8"), "{}", said.err);
    assert!(!desk.path("home/o/plain").exists(), "all of it, or nothing");
}

#[test]
fn what_runs_leave_is_counted_and_removed_when_they_are_over() {
    let desk = Desk::new(true);
    desk.file("t.cwl", tool("{}", "echo x"));
    for _ in 0..3 {
        desk.run(&["isles", "cwl", "run", "-q", "--outdir", "o", "t.cwl"]).fine();
    }
    let line = |name: &str| {
        let rows: serde_json::Value =
            serde_json::from_str(&desk.run(&["isles", "df", "--format", "json"]).fine()).unwrap();
        let rows = rows.as_array().unwrap().clone();
        rows.into_iter().find(|row| row["Type"] == name).unwrap()
    };
    let before = line("Workflow Runs");
    assert!(before["Total"] == 3 && before["ReclaimableBytes"].as_u64().unwrap() > 0, "{before}");
    let young = desk.run(&["isles", "prune", "-f", "--runs", "--filter", "until=1h"]).fine();
    assert!(!young.contains("run "), "{young}");
    let said = desk.run(&["isles", "prune", "-f", "--runs"]).fine();
    assert_eq!(said.lines().filter(|line| line.starts_with("run ")).count(), 3, "{said}");
    let after = line("Workflow Runs");
    assert!(after["Total"] == 0 && after["ReclaimableBytes"] == 0, "{after}");
}
