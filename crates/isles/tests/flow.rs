//! `isles flow`: what is known of runs, and how they go on.
#![allow(clippy::unwrap_used)]

mod desk;

use std::fs;
use std::io::Read;
use std::path::Path;

use desk::cluster::{Cluster, has_slurm};
use desk::{Desk, both};
use serde_json::Value;

/// Two steps that write down that they ran, and one that does what `last` says.
fn workflow(desk: &Desk, last: &str) {
    let ran = desk.path("home/ran");
    let text = serde_json::json!({
        "cwlVersion": "v1.2",
        "class": "Workflow",
        "requirements": {"ScatterFeatureRequirement": {}},
        "inputs": {"names": "string[]"},
        "outputs": {"all": {"type": "File", "outputSource": "join/o"}},
        "steps": {
            "say": {
                "scatter": "name",
                "in": {"name": "names"},
                "out": ["o"],
                "run": {
                    "class": "CommandLineTool",
                    "baseCommand": ["sh", "-c", format!("echo $0 >> {}; echo said $0 >&2; echo $0", ran.display())],
                    "inputs": {"name": {"type": "string", "inputBinding": {}}},
                    "outputs": {"o": {"type": "stdout"}},
                },
            },
            "join": {
                "in": {"fs": "say/o"},
                "out": ["o"],
                "run": {
                    "class": "CommandLineTool",
                    "baseCommand": ["sh", "-c", last],
                    "temporaryFailCodes": [75],
                    "inputs": {"fs": {"type": "File[]", "inputBinding": {}}},
                    "outputs": {"o": {"type": "stdout"}},
                    "stdout": "all.txt",
                },
            },
        },
    });
    desk.file("wf.cwl", text.to_string());
    desk.file("ran", "");
}

const RUN: [&str; 9] = ["isles", "cwl", "run", "--outdir", "o", "wf.cwl", "--names", "a <b>", "--names=c"];

fn shown(desk: &Desk) -> Value {
    serde_json::from_str(&desk.run(&["isles", "flow", "show", "--format", "json"]).fine()).unwrap()
}

/// What ran, in the order of the alphabet: steps of a scatter run side by side.
fn ran(desk: &Desk) -> String {
    let text = fs::read_to_string(desk.path("home/ran")).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_run_that_failed_goes_on_and_repeats_nothing() {
    both(|desk| {
        // The tool's HOME is its own folder, so the way to go on is a file at a place that it knows.
        let gate = desk.path("home/ok");
        workflow(desk, &format!("[ -e {} ] || exit 3; cat \"$0\" \"$@\"", gate.display()));
        let failed = desk.run(&RUN);
        assert_eq!(failed.code, Some(1), "{}", failed.err);
        assert!(failed.err.contains("wf.cwl/join: it ended with exit code 3"), "{}", failed.err);
        assert!(failed.err.contains("isles flow resume "), "{}", failed.err);
        assert_eq!(ran(desk), "a <b>\nc\n");

        let run = shown(desk);
        assert_eq!(run["state"], "failed");
        let steps = run["steps"].as_array().unwrap();
        let of = |name: &str| steps.iter().find(|step| step["name"] == name).unwrap();
        assert_eq!(of("wf.cwl/say[0]")["state"], "done");
        assert_eq!(of("wf.cwl/say[0]")["command"][3], "a <b>");
        assert_eq!(of("wf.cwl/join")["exit"], "3");
        assert!(of("wf.cwl/say[1]")["peak_kibibytes"].as_u64().unwrap() > 0);
        let id = run["id"].as_str().unwrap();
        assert_eq!(desk.run(&["isles", "flow", "logs", id, "say[1]"]).fine(), "said c\n");
        let all = desk.run(&["isles", "flow", "logs"]).fine();
        assert!(all.contains("==> wf.cwl/say[0] (done) <==\nsaid a <b>\n"), "{all}");
        assert!(desk.run(&["isles", "flow", "logs", id, "sai"]).err.contains("has no step `sai`"));

        let page = desk.run(&["isles", "flow", "report", &id[..6]]).fine();
        for part in [
            "class=\"state failed\"",
            "said a &lt;b&gt;",
            "class=\"step scatter done\"",
            "class=\"step failed\"",
        ] {
            assert!(page.contains(part), "no {part} in\n{page}");
        }
        assert!(!page.contains("a <b>") && !page.contains("<script"));

        desk.file("ok", "");
        let out = desk.run(&["isles", "flow", "resume", id]);
        assert_eq!(out.code, Some(0), "{}", out.err);
        assert_eq!(ran(desk), "a <b>\nc\n", "steps that were done ran again");
        assert_eq!(fs::read_to_string(desk.path("home/o/all.txt")).unwrap(), "a <b>\nc\n");
        assert_eq!(shown(desk)["state"], "done");
        assert_eq!(shown(desk)["work"], Value::Null, "folders of steps are left");
        let list = desk.run(&["isles", "flow", "ls"]).fine();
        assert!(list.contains("wf.cwl   done    3 done"), "{list}");
        let again = desk.run(&["isles", "flow", "resume", id]);
        assert!(again.err.contains("it is done"), "{}", again.err);

        assert_eq!(desk.run(&["isles", "flow", "rm", id]).fine().trim(), id);
        assert!(desk.run(&["isles", "flow", "show"]).err.contains("there is no run yet"));
    });
}

/// Starts a run whose last step waits, and comes back when it does.
fn waiting(desk: &Desk) -> std::process::Child {
    let gate = desk.path("home/gate");
    if !gate.exists() {
        assert!(
            std::process::Command::new("mkfifo").args(["-m", "666"]).arg(&gate).status().unwrap().success()
        );
    }
    workflow(
        desk,
        &format!("[ -e {0}.open ] || {{ echo > {0}; exec sleep 1000; }}; cat \"$0\" \"$@\"", gate.display()),
    );
    let child = desk.command(&RUN).stderr(std::process::Stdio::piped()).spawn().unwrap();
    fs::File::open(&gate).unwrap().read_exact(&mut [0]).unwrap();
    child
}

/// Comes back when so many steps of the run are written down.
fn await_steps(desk: &Desk, count: usize) {
    let known = || {
        let said = desk.run(&["isles", "flow", "show", "--format", "json"]);
        let run: Value = serde_json::from_str(&said.out).unwrap_or_default();
        run["steps"].as_array().map_or(0, Vec::len)
    };
    while known() < count {
        std::thread::yield_now();
    }
}

#[test]
fn a_run_that_was_killed_is_known_to_be_cut_off_and_goes_on() {
    let desk = Desk::new(true);
    let mut child = waiting(&desk);
    // The step that is done is written down within moments.
    let state = |desk: &Desk| shown(desk)["state"].as_str().unwrap().to_owned();
    await_steps(&desk, 3);
    assert_eq!(state(&desk), "running");
    assert!(desk.run(&["isles", "flow", "resume"]).err.contains("it is under way"));
    let busy = desk.run(&["isles", "flow", "rm", shown(&desk)["id"].as_str().unwrap()]);
    assert!(busy.err.contains("is under way"), "{}", busy.err);
    let _ = child.kill();
    child.wait().unwrap();
    let run = shown(&desk);
    assert_eq!(run["state"], "interrupted");
    assert_eq!(run["steps"][2]["state"], "interrupted");
    fs::write(desk.path("home/gate.open"), "").unwrap();
    let out = desk.run(&["isles", "flow", "resume"]);
    assert_eq!(out.code, Some(0), "{}", out.err);
    assert_eq!(ran(&desk), "a <b>\nc\n", "steps that were done ran again");
    assert_eq!(state(&desk), "done");
}

#[test]
fn tools_of_the_host_do_not_outlive_a_run_that_is_killed() {
    let desk = Desk::new(true);
    let mut child = waiting(&desk);
    // The number of the tool: what sleeps in a group of its own below the run.
    let children = |of: u32| -> Vec<(u32, String)> {
        let all = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        all.filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            (parent == of).then_some((pid, words.replace('\0', " ")))
        })
        .collect()
    };
    let find = |part: &str| loop {
        if let Some((pid, _)) = children(child.id()).into_iter().find(|(_, words)| words.contains(part)) {
            return pid;
        }
        std::thread::yield_now();
    };
    let tool = find("sleep 1000");
    find("flow guard");
    let _ = child.kill();
    child.wait().unwrap();
    let lives = || {
        let stat = fs::read_to_string(format!("/proc/{tool}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    while lives() {
        std::thread::yield_now();
    }
}

#[test]
fn a_run_is_ended_from_elsewhere() {
    let desk = Desk::new(true);
    let mut child = waiting(&desk);
    await_steps(&desk, 3);
    let id = desk.run(&["isles", "flow", "ls", "-q"]).fine();
    assert_eq!(desk.run(&["isles", "flow", "cancel", id.trim()]).fine(), id);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("the run was stopped"), "{said}");
    assert!(!child.wait().unwrap().success());
    let run = shown(&desk);
    assert_eq!((&run["state"], &run["steps"][2]["state"]), (&"stopped".into(), &"stopped".into()));
    let again = desk.run(&["isles", "flow", "cancel", id.trim()]);
    assert!(again.err.contains("is not under way: it is stopped"), "{}", again.err);
}

#[test]
fn failures_that_may_pass_are_tried_again() {
    let desk = Desk::new(true);
    let count = desk.path("home/count");
    let last =
        format!("echo x >> {0}; [ $(wc -l < {0}) -ge 2 ] || exit 75; cat \"$0\" \"$@\"", count.display());
    workflow(&desk, &last);
    desk.file("count", "");
    let once = desk.run(&[&["isles", "cwl", "run", "--retries", "0"][..], &RUN[3..]].concat());
    assert!(once.err.contains("it ended with 75, a temporary failure"), "{}", once.err);
    desk.file("count", "");
    let out = desk.run(&RUN);
    assert_eq!(out.code, Some(0), "{}", out.err);
    assert!(out.err.contains("wf.cwl/join is tried again in 1.0s: it ended with 75"), "{}", out.err);
    let run = shown(&desk);
    let attempts: Vec<&Value> =
        run["steps"].as_array().unwrap().iter().filter(|step| step["name"] == "wf.cwl/join").collect();
    assert_eq!(attempts.len(), 2);
    assert_eq!((&attempts[0]["state"], &attempts[1]["attempt"]), (&"failed".into(), &2.into()));
    // A permanent failure is not tried again, unless that is wanted.
    workflow(&desk, "exit 4");
    let out = desk.run(&RUN);
    assert!(!out.err.contains("tried again"), "{}", out.err);
    let any =
        desk.run(&[&["isles", "cwl", "run", "--retries", "1", "--retry-on", "any"][..], &RUN[3..]].concat());
    assert!(any.err.contains("tried again"), "{}", any.err);
}

#[test]
fn other_documents_are_not_gone_on_with_and_records_can_be_left_out() {
    let desk = Desk::new(true);
    workflow(&desk, "exit 3");
    desk.run(&RUN);
    workflow(&desk, "exit 0");
    let out = desk.run(&["isles", "flow", "resume"]);
    assert!(out.err.contains("its documents are not those of then"), "{}", out.err);
    let before = desk.run(&["isles", "flow", "ls", "-q"]).fine();
    desk.run(&[&["isles", "cwl", "run", "--no-record"][..], &RUN[3..]].concat());
    assert_eq!(desk.run(&["isles", "flow", "ls", "-q"]).fine(), before);
    // Where nothing can be written, a run goes on without a record.
    desk.file("not-a-folder", "");
    let out = desk.run(&[&["isles", "--root", "not-a-folder", "cwl", "run"][..], &RUN[3..]].concat());
    assert_eq!(out.code, Some(0), "{}", out.err);
    assert!(out.err.contains("nothing is written down of this run"), "{}", out.err);
    // What is made from the record is refused then, before anything runs.
    let provenance = ["isles", "--root", "not-a-folder", "cwl", "run", "--provenance", "ro"];
    let out = desk.run(&[&provenance[..], &RUN[3..]].concat());
    assert_eq!(out.code, Some(1));
    assert!(out.err.contains("made from its record, and none can be kept"), "{}", out.err);
}

#[test]
fn the_log_of_a_step_that_says_much_is_bounded() {
    let desk = Desk::new(true);
    workflow(&desk, "echo first >&2; head -c 20000000 /dev/zero | tr '\\0' x >&2; echo last >&2; exit 0");
    let out = desk.run(&RUN);
    assert_eq!(out.code, Some(0));
    assert!(out.err.len() > 20_000_000, "what a step says is handed on");
    let id = desk.run(&["isles", "flow", "ls", "-q"]).fine();
    let log = desk.run(&["isles", "flow", "logs", id.trim(), "join"]).fine();
    assert!(
        log.starts_with("first\nx") && log.ends_with("xlast\n") && log.contains("bytes are left out here")
    );
    assert!(log.len() < 9_000_000, "{}", log.len());
    assert!(Path::new(&desk.path("home/o/all.txt")).exists());
}

#[test]
fn steps_run_in_an_allocation_of_slurm() {
    let desk = Desk::new(true);
    workflow(&desk, "cat \"$0\" \"$@\"; echo job $SLURM_JOB_ID >&2");
    let outside = desk.run(&[&["isles", "cwl", "run", "--executor", "slurm"][..], &RUN[3..]].concat());
    assert!(outside.err.contains("there is no allocation of Slurm here"), "{}", outside.err);
    if !has_slurm() {
        return;
    }
    both(|desk| {
        desk.busybox(&[]);
        let cluster = Cluster::start(desk);
        // A step on the host, and one in a container, whose network and files are its own.
        let text = serde_json::json!({
            "cwlVersion": "v1.2",
            "class": "Workflow",
            "requirements": {"ScatterFeatureRequirement": {}},
            "inputs": {"names": "string[]"},
            "outputs": {"all": {"type": "File", "outputSource": "join/o"}},
            "steps": {
                "say": {
                    "scatter": "name", "in": {"name": "names"}, "out": ["o"],
                    "run": {
                        "class": "CommandLineTool",
                        "requirements": {"DockerRequirement": {"dockerPull": "busybox:desk"}},
                        "baseCommand": ["sh", "-c", "pwd; echo $0; echo heard $0 >&2"],
                        "inputs": {"name": {"type": "string", "inputBinding": {}}},
                        "outputs": {"o": {"type": "stdout"}},
                    },
                },
                "join": {
                    "in": {"fs": "say/o"}, "out": ["o"],
                    "run": {
                        "class": "CommandLineTool",
                        "baseCommand": ["sh", "-c", "cat \"$0\" \"$@\""],
                        "inputs": {"fs": {"type": "File[]", "inputBinding": {}}},
                        "outputs": {"o": {"type": "stdout"}},
                        "stdout": "all.txt",
                    },
                },
            },
        });
        desk.file("wf.cwl", text.to_string());
        let words =
            [&["timeout", "60", "salloc", "-n1", "-c2"][..], &RUN[..3], &["--executor", "slurm"], &RUN[3..]];
        let said = desk::Said::of(cluster.command(&words.concat()).output().unwrap());
        assert_eq!(said.code, Some(0), "{}\n{}", said.out, said.err);
        let expected = "/var/spool/cwl\na <b>\n/var/spool/cwl\nc\n";
        assert_eq!(fs::read_to_string(desk.path("home/o/all.txt")).unwrap(), expected);
        assert!(said.err.contains("heard c"), "{}", said.err);
        let run = shown(desk);
        assert_eq!(run["state"], "done");
        assert!(run["steps"].as_array().unwrap().iter().all(|step| step["exit"] == "0"), "{run}");
        // A step that fails, and one that is killed with all that is asked for it.
        workflow(desk, "exit 5");
        let failed = desk::Said::of(cluster.command(&words.concat()).output().unwrap());
        assert!(failed.err.contains("wf.cwl/join: it ended with exit code 5"), "{}", failed.err);
    });
}

/// Three nodes, of which one loses its worker while a step runs there.
#[test]
fn steps_run_on_all_nodes_of_an_allocation_and_elsewhere_when_one_is_lost() {
    if !has_slurm() {
        return;
    }
    let desk = Desk::new(true);
    let cluster = Cluster::of(&desk, 3, 1);
    // The worker is the tool's parent, and Slurm has told it where it is.
    let script = "node=$(tr '\\0' '\\n' < /proc/$PPID/environ | grep ^SLURMD_NODENAME=); \
                  case $node in *2) if mkdir $0/lost 2>/dev/null; then kill -9 $PPID; sleep 100; fi;; esac; \
                  sleep 0.3; echo $node";
    let text = serde_json::json!({
        "cwlVersion": "v1.2",
        "class": "Workflow",
        "requirements": {"ScatterFeatureRequirement": {}},
        "inputs": {"names": "string[]"},
        "outputs": {"all": {"type": "File[]", "outputSource": "say/o"}},
        "steps": {
            "say": {
                "scatter": "name", "in": {"name": "names"}, "out": ["o"],
                "run": {
                    "class": "CommandLineTool", "baseCommand": ["sh", "-c", script],
                    "inputs": {"name": {"type": "string", "inputBinding": {}}},
                    "outputs": {"o": {"type": "stdout"}}, "stdout": "o.txt",
                },
            },
        },
    });
    desk.file("wf.cwl", text.to_string());
    let place = desk.path("home").display().to_string();
    desk.file("job.json", serde_json::json!({"names": vec![place; 9]}).to_string());
    let words = ["timeout", "60", "salloc", "-N3", "isles", "cwl", "run", "--executor", "slurm"];
    let more = ["--retries", "3", "--outdir", "o", "wf.cwl", "job.json"];
    let said = desk::Said::of(cluster.command(&[&words[..], &more].concat()).output().unwrap());
    assert_eq!(said.code, Some(0), "{}\n{}", said.out, said.err);
    let out: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let nodes: std::collections::BTreeSet<String> = out["all"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| fs::read_to_string(file["path"].as_str().unwrap()).unwrap())
        .collect();
    assert!(desk.path("home/lost").exists(), "no step came to the second node: {nodes:?}");
    assert!(nodes.len() == 2 && nodes.iter().all(|node| !node.trim().ends_with('2')), "{nodes:?}");
}

#[test]
fn a_full_disk_is_told_and_the_next_run_works() {
    if !rustix::process::geteuid().is_root() {
        return println!("skip: only root mounts a small file system");
    }
    let desk = Desk::new(false);
    desk.file("t.cwl", "cwlVersion: v1.2\nclass: CommandLineTool\nbaseCommand: [echo, x]\ninputs: []\noutputs: {o: stdout}\nstdout: x.txt\n");
    // Seen by this script alone. It is filled to its last page, by a tool, and then by somebody else.
    let script = "mkdir small; mount -t tmpfs -o size=6m none small; run() { isles --root small/state cwl run -q --outdir o $1; echo code $?; }; \
                  run t.cwl >/dev/null; run wf.cwl >/dev/null; isles --root small/state flow show | grep why; isles --root small/state flow rm -a; \
                  run t.cwl; dd if=/dev/zero of=small/fill bs=4k 2>/dev/null; run t.cwl; rm small/fill; run t.cwl; isles --root small/state flow ls";
    workflow(&desk, "head -c 20000000 /dev/zero || exit 9");
    let text = fs::read_to_string(desk.path("home/wf.cwl")).unwrap();
    let text =
        text.replace("\"names\":\"string[]\"", "\"names\":{\"type\":\"string[]\",\"default\":[\"a\"]}");
    desk.file("wf.cwl", text);
    let said = desk.run(&["unshare", "--mount", "sh", "-c", script]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let codes: Vec<&str> = said.out.lines().filter(|line| line.starts_with("code ")).collect();
    assert_eq!(codes, ["code 0", "code 1", "code 0"], "{said:?}");
    assert!(said.out.contains("why      wf.cwl/join: it ended with exit code 9"), "{said:?}");
    assert!(said.err.contains("No space left on device"), "{said:?}");
    assert!(said.err.contains("the record of this run is not whole: database or disk is full"), "{said:?}");
    assert!(said.out.contains("t.cwl   done"), "{said:?}");
}
