//! `isles cwl run`: what people meet beside the conformance tests.
#![allow(clippy::unwrap_used)]

mod desk;

use std::fs;
use std::path::Path;

use desk::Desk;

const HELLO: &str = "cwlVersion: v1.2\nclass: CommandLineTool\ndoc: Says a message.\nbaseCommand: echo\ninputs:\n  message:\n    \
                     type: string\n    doc: what is said\n    inputBinding: {position: 1}\n  loud: boolean?\noutputs:\n  said: \
                     stdout\nstdout: said.txt\n";

fn tool(command: &str, more: &str) -> String {
    format!(
        "cwlVersion: v1.2\nclass: CommandLineTool\nrequirements:\n  ShellCommandRequirement: {{}}\n  \
         InlineJavascriptRequirement: {{}}\narguments: [{{shellQuote: false, valueFrom: {}}}]\ninputs: []\n{more}",
        serde_json::to_string(command).unwrap()
    )
}

#[test]
fn inputs_are_options_made_from_the_process() {
    let desk = Desk::new(true);
    desk.file("hello.cwl", HELLO);
    let help = desk.run(&["isles", "cwl", "run", "hello.cwl", "--help"]).fine();
    for part in ["Says a message.", "--message STRING", "what is said [required]", "--loud"] {
        assert!(help.contains(part), "{help}");
    }
    let out = desk
        .run(&["isles", "cwl", "run", "--quiet", "--outdir", "o", "hello.cwl", "--message", "a  b"])
        .fine();
    assert!(out.contains("\"checksum\": \"sha1$"), "{out}");
    assert_eq!(fs::read_to_string(desk.path("home/o/said.txt")).unwrap(), "a  b\n");
    let wrong = desk.run(&["isles", "cwl", "run", "hello.cwl", "--mesage", "x"]);
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.err.contains("did you mean --message?"), "{}", wrong.err);
    let missing = desk.run(&["isles", "cwl", "run", "hello.cwl"]);
    assert!(missing.err.contains("`message` is missing, and must be string"), "{}", missing.err);
    let template = desk.run(&["isles", "cwl", "run", "--make-template", "hello.cwl"]).fine();
    assert!(template.starts_with("message: \"a string\"  # string\n"), "{template}");
}

#[test]
fn all_that_is_wrong_is_told_at_once_with_its_place() {
    let desk = Desk::new(true);
    desk.file(
        "bad.cwl",
        "cwlVersion: v1.2\nclass: CommandLineTool\nbaseComand: echo\ninputs:\n  a: strin\n  b: {type: string, inputBindin: {}}\n\
         outputs:\n  o: {type: File, outputBinding: {glob: '$(inputs.a + 1)'}}\n",
    );
    let said = desk.run(&["isles", "cwl", "run", "--validate", "bad.cwl"]);
    assert_eq!(said.code, Some(1));
    for part in [
        "bad.cwl:3:1: `baseComand` is no field of CommandLineTool",
        "did you mean `baseCommand`?",
        "bad.cwl:5:6: `strin` is no type",
        "did you mean `string`?",
        "bad.cwl:6:21: `inputBindin` is no field of an input",
    ] {
        assert!(said.err.contains(part), "no {part:?} in\n{}", said.err);
    }
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let desk = Desk::new(true);
    let table = [
        (
            "requirements: {DockerRequirement: {dockerPull: x}}\nbaseCommand: 'true'",
            33,
            "--no-container was given",
        ),
        ("requirements: [{class: 'x:Own'}]\nbaseCommand: 'true'", 33, "x:Own is not supported"),
        ("baseCommand: no-such-program", 1, "there is no such program"),
        ("baseCommand: 'false'", 1, "it ended with exit code 1"),
        ("baseCommand: [sh, -c, 'kill -9 $$']", 1, "it was ended by signal 9"),
        (
            "requirements: {ResourceRequirement: {coresMin: 10000}}\nbaseCommand: 'true'",
            1,
            "it needs 10000 cores",
        ),
        ("stdout: ../x\nbaseCommand: 'true'", 1, "it must be a name in the output folder"),
    ];
    for (text, code, part) in table {
        desk.file(
            "t.cwl",
            format!("cwlVersion: v1.2\nclass: CommandLineTool\ninputs: []\noutputs: []\n{text}\n"),
        );
        let said = desk.run(&["isles", "cwl", "run", "--no-container", "--outdir", "o", "t.cwl"]);
        assert_eq!(said.code, Some(code), "{text}: {}", said.err);
        assert!(said.err.contains(part), "{text}: {}", said.err);
    }
}

#[test]
fn outputs_never_come_from_outside() {
    let desk = Desk::new(true);
    let secret = desk.file("secret", "not yours\n");
    let one = |glob: &str| format!("outputs:\n  o: {{type: File, outputBinding: {{glob: {glob}}}}}\n");
    let json = "outputs: {o: File}\n";
    let at = secret.display();
    let written = format!("echo '{{\"o\": {{\"class\": \"File\", \"path\": \"{at}\"}}}}' > cwl.output.json");
    let computed = format!(
        "outputs:\n  o: {{type: File, outputBinding: {{outputEval: '$({{\"class\": \"File\", \"location\": \"file://{at}\"}})'}}}}\n"
    );
    let table = [
        (format!("ln -s {at} x"), one("x")),
        (format!("ln -s {} d", secret.parent().unwrap().display()), one("d/secret")),
        (format!("ln -s {at} a; ln -s a x"), one("x")),
        ("ln -s x x".to_owned(), one("x")),
        ("true".to_owned(), one("../../../secret")),
        ("true".to_owned(), one(&at.to_string())),
        (written, json.to_owned()),
        ("true".to_owned(), computed),
        ("mkfifo x".to_owned(), one("x")),
    ];
    for (command, outputs) in table {
        desk.file("t.cwl", tool(&command, &outputs));
        let said = desk.run(&["isles", "cwl", "run", "--quiet", "--outdir", "o", "t.cwl"]);
        assert_eq!(said.code, Some(1), "{command}: {}{}", said.out, said.err);
        let left = fs::read_dir(desk.path("home/o")).map_or(0, |entries| entries.count());
        assert_eq!(left, 0, "{command}");
    }
}

#[test]
fn names_of_all_kinds_go_through() {
    let desk = Desk::new(true);
    let odd = "a b#%41\u{fc}'\"$(x)\n-rf.txt";
    desk.file(odd, "data\n");
    desk.file(
        "t.cwl",
        "cwlVersion: v1.2\nclass: CommandLineTool\nbaseCommand: cp\narguments: ['--', $(inputs.f.path), \
         $(inputs.f.nameroot).copy]\ninputs:\n  f: File\noutputs:\n  o: {type: File, outputBinding: {glob: '*.copy'}}\n",
    );
    desk.file("job.json", serde_json::json!({"f": {"class": "File", "path": odd}}).to_string());
    desk.run(&["isles", "cwl", "run", "--quiet", "--outdir", "o", "t.cwl", "job.json"]).fine();
    let copy = odd.replace(".txt", ".copy");
    assert_eq!(fs::read_to_string(desk.path("home/o").join(copy)).unwrap(), "data\n");
}

#[test]
fn hostile_documents_end_with_an_error() {
    let desk = Desk::new(true);
    desk.file("loop.cwl", "cwlVersion: v1.2\nclass: Workflow\ninputs: []\noutputs: []\nrequirements: {SubworkflowFeatureRequirement: {}}\nsteps: {a: {run: loop.cwl, in: [], out: []}}\n");
    desk.file("a.yml", "{$import: b.yml}");
    desk.file("b.yml", "{$import: a.yml}");
    desk.file("import.cwl", "cwlVersion: v1.2\nclass: CommandLineTool\nbaseCommand: 'true'\ninputs: {$import: a.yml}\noutputs: []\n");
    desk.file("deep.cwl", "[".repeat(100_000));
    desk.file("self.cwl", "cwlVersion: v1.2\nclass: CommandLineTool\nbaseCommand: 'true'\nrequirements:\n  SchemaDefRequirement:\n    types:\n      - {name: T, type: array, items: T}\ninputs: {x: T}\noutputs: []\n");
    desk.file("spin.cwl", "cwlVersion: v1.2\nclass: ExpressionTool\nrequirements: {InlineJavascriptRequirement: {}}\ninputs: []\noutputs: []\nexpression: '${for(;;){}}'\n");
    desk.file("eat.cwl", "cwlVersion: v1.2\nclass: ExpressionTool\nrequirements: {InlineJavascriptRequirement: {}}\ninputs: []\noutputs: []\nexpression: '${var a=[1]; for(;;){a=a.concat(a);}}'\n");
    desk.file("wait.cwl", "cwlVersion: v1.2\nclass: Workflow\ninputs: []\noutputs: []\nsteps:\n  a: {run: echo.cwl, in: {x: b/o}, out: [o]}\n  b: {run: echo.cwl, in: {x: a/o}, out: [o]}\n");
    desk.file("echo.cwl", "cwlVersion: v1.2\nclass: CommandLineTool\nbaseCommand: echo\ninputs: {x: Any}\noutputs: {o: stdout}\n");
    let table = [
        ("loop.cwl", "runs itself"),
        ("import.cwl", "imports itself"),
        ("deep.cwl", "nest"),
        ("self.cwl", "holds itself"),
        ("spin.cwl", "took more than 1 s"),
        ("eat.cwl", "out of memory"),
        ("wait.cwl", "wait for each other"),
    ];
    for (name, part) in table {
        let said = desk.run(&["isles", "cwl", "run", "--eval-timeout", "1", "--outdir", "o", name]);
        assert_eq!(said.code, Some(1), "{name}: {}", said.err);
        assert!(said.err.contains(part), "{name}: {}", said.err);
    }
}

#[test]
fn a_scatter_of_thousands_numbers_its_outputs_and_leaves_nothing() {
    let desk = Desk::new(true);
    desk.file("hello.cwl", HELLO);
    desk.file("many.cwl", "cwlVersion: v1.2\nclass: Workflow\nrequirements: {ScatterFeatureRequirement: {}}\ninputs: {messages: 'string[]'}\noutputs: {all: {type: 'File[]', outputSource: say/said}}\nsteps:\n  say: {run: hello.cwl, scatter: message, in: {message: messages}, out: [said]}\n");
    let messages: Vec<String> = (0..2000).map(|i| format!("m{i}")).collect();
    desk.file("job.json", serde_json::json!({"messages": messages}).to_string());
    let out = desk.run(&["isles", "cwl", "run", "--quiet", "--outdir", "o", "many.cwl", "job.json"]).fine();
    let out: serde_json::Value = serde_json::from_str(&out).unwrap();
    let all = out["all"].as_array().unwrap();
    assert_eq!(all.len(), 2000);
    for (i, file) in all.iter().enumerate() {
        let text = fs::read_to_string(Path::new(file["path"].as_str().unwrap())).unwrap();
        assert_eq!(text, format!("m{i}\n"));
    }
    assert_eq!(fs::read_dir(desk.path("tmp")).unwrap().count(), 0, "folders of steps are left");
}

/// A chain of three tools, each of which writes down that it ran.
fn chain(desk: &Desk, last: &str) {
    let log = desk.path("home/ran");
    let tool = |name: &str, command: &str| {
        let text = format!(
            "cwlVersion: v1.2\nclass: CommandLineTool\nbaseCommand: [sh, -c, 'echo {name} >> {}; {command}', sh]\ninputs:\n  f: \
             {{type: File, inputBinding: {{}}}}\noutputs:\n  o: stdout\nstdout: {name}.txt\n",
            log.display()
        );
        desk.file(&format!("{name}.cwl"), text);
    };
    tool("one", "cat $1; echo one");
    tool("two", "cat $1; echo two");
    tool("three", last);
    desk.file("chain.cwl", "cwlVersion: v1.2\nclass: Workflow\ninputs: {f: File}\noutputs: {o: {type: File, outputSource: c/o}}\nsteps:\n  a: {run: one.cwl, in: {f: f}, out: [o]}\n  b: {run: two.cwl, in: {f: a/o}, out: [o]}\n  c: {run: three.cwl, in: {f: b/o}, out: [o]}\n");
}

#[test]
fn only_what_changed_is_run_again() {
    let desk = Desk::new(true);
    desk.file("in.txt", "zero\n");
    desk.file("ran", "");
    chain(&desk, "cat $1; echo three");
    let run = |expected: &[&str]| {
        fs::write(desk.path("home/ran"), "").unwrap();
        desk.run(&[
            "isles",
            "cwl",
            "run",
            "--quiet",
            "--cachedir",
            "cache",
            "--outdir",
            "o",
            "chain.cwl",
            "--f",
            "in.txt",
        ])
        .fine();
        let ran = fs::read_to_string(desk.path("home/ran")).unwrap();
        assert_eq!(ran.lines().collect::<Vec<_>>(), expected);
        fs::read_to_string(desk.path("home/o/three.txt")).unwrap()
    };
    assert_eq!(run(&["one", "two", "three"]), "zero\none\ntwo\nthree\n");
    assert_eq!(run(&[]), "zero\none\ntwo\nthree\n");
    // Outputs are copies: whoever changes one changes nothing here.
    desk.file("o/three.txt", "changed\n");
    chain(&desk, "cat $1; echo drei");
    assert_eq!(run(&["three"]), "zero\none\ntwo\ndrei\n");
    desk.file("in.txt", "null\n");
    assert_eq!(run(&["one", "two", "three"]), "null\none\ntwo\ndrei\n");
    assert_eq!(fs::read_dir(desk.path("home/cache/runs")).unwrap().count(), 0);
}

#[test]
fn a_run_that_was_killed_goes_on_and_repeats_nothing() {
    use std::io::Read;
    let desk = Desk::new(true);
    desk.file("in.txt", "zero\n");
    desk.file("ran", "");
    let gate = desk.path("home/gate");
    assert!(std::process::Command::new("mkfifo").args(["-m", "666"]).arg(&gate).status().unwrap().success());
    chain(
        &desk,
        &format!("[ -e {0}.open ] || {{ echo > {0}; cat {0}; exit 1; }}; cat $1; echo three", gate.display()),
    );
    let words = [
        "isles",
        "cwl",
        "run",
        "--quiet",
        "--cachedir",
        "cache",
        "--outdir",
        "o",
        "chain.cwl",
        "--f",
        "in.txt",
    ];
    let mut child = desk.command(&words).spawn().unwrap();
    // The last step runs when it opens the gate.
    fs::File::open(&gate).unwrap().read_exact(&mut [0]).unwrap();
    let _ = child.kill();
    child.wait().unwrap();
    // It has not run for long enough to have a guard: this one is told to end.
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    while rustix::fs::open(&gate, flags, rustix::fs::Mode::empty()).is_err() {
        std::thread::yield_now();
    }
    fs::write(format!("{}.open", gate.display()), "").unwrap();
    fs::write(desk.path("home/ran"), "").unwrap();
    desk.run(&words).fine();
    assert_eq!(fs::read_to_string(desk.path("home/ran")).unwrap(), "three\n");
    assert_eq!(fs::read_to_string(desk.path("home/o/three.txt")).unwrap(), "zero\none\ntwo\nthree\n");
}

#[test]
fn a_part_of_a_workflow_and_its_graph() {
    let desk = Desk::new(true);
    desk.file("in.txt", "zero\n");
    desk.file("ran", "");
    chain(&desk, "cat $1");
    let run = |words: &[&str]| desk.run(&[&["isles", "cwl", "run"][..], words].concat());
    run(&["--quiet", "--target", "b", "--outdir", "o", "chain.cwl", "--f", "in.txt"]).fine();
    assert_eq!(fs::read_to_string(desk.path("home/ran")).unwrap(), "one\ntwo\n");
    assert!(run(&["--target", "x", "chain.cwl"]).err.contains("neither an output nor a step `x`"));
    let dot = run(&["--print-dot", "chain.cwl"]).fine();
    for edge in ["\"in/f\" -> \"step/a\"", "\"step/a\" -> \"step/b\"", "\"step/c\" -> \"out/o\""] {
        assert!(dot.contains(edge), "{dot}");
    }
    let files = run(&["--print-deps", "chain.cwl"]).fine();
    assert!(files.contains("/home/three.cwl"), "{files}");
}

#[test]
fn a_signal_ends_the_steps_and_leaves_no_folder() {
    use std::io::Read;
    let desk = Desk::new(true);
    let gate = desk.path("home/gate");
    desk.file("t.cwl", tool(&format!("echo $$ > {}; sleep 1000", gate.display()), "outputs: []\n"));
    assert!(std::process::Command::new("mkfifo").args(["-m", "666"]).arg(&gate).status().unwrap().success());
    let mut child = desk
        .command(&["isles", "cwl", "run", "--quiet", "t.cwl"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut pid = String::new();
    fs::File::open(&gate).unwrap().read_to_string(&mut pid).unwrap();
    let runner = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(runner, rustix::process::Signal::TERM).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15), "{said}");
    assert!(said.contains("the run was stopped"), "{said}");
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "the tool lives");
    assert_eq!(fs::read_dir(desk.path("tmp")).unwrap().count(), 0);
}

/// A tool whose image is that of [`Desk::busybox`], run ten times.
fn in_containers(command: &str) -> String {
    serde_json::json!({
        "cwlVersion": "v1.2",
        "class": "Workflow",
        "requirements": {"ScatterFeatureRequirement": {}},
        "inputs": {"numbers": "int[]"},
        "outputs": {"said": {"type": "File[]", "outputSource": "step/said"}},
        "steps": {"step": {"scatter": "n", "in": {"n": "numbers"}, "out": ["said"], "run": {
            "class": "CommandLineTool",
            "requirements": {"DockerRequirement": {"dockerPull": "busybox:desk"}},
            "hints": {"ResourceRequirement": {"ramMin": 64}},
            "baseCommand": ["sh", "-c", command],
            "inputs": {"n": {"type": "int", "inputBinding": {}}},
            "outputs": {"said": {"type": "stdout"}},
        }}},
    })
    .to_string()
}

#[test]
fn containers_of_one_run_see_nothing_of_each_other() {
    desk::both(|desk| {
        if !desk::installed("busybox") {
            return;
        }
        desk.busybox(&[]);
        // Files outside of the mounts, in /dev/shm, processes that stay, names of sockets, addresses.
        let command = "for f in /etc/left /var/left /dev/shm/left /left; do [ ! -e $f ] || exit 9; echo x > $f; done; \
                       [ $(ls -d /proc/[0-9]* | wc -l) -le 5 ] || exit 8; [ $(wc -l < /proc/net/unix) = 1 ] || exit 7; \
                       [ $(wc -l < /proc/net/tcp) = 1 ] || exit 6; nc -l -p 4242 -s 127.0.0.1 >/dev/null 2>&1 & \
                       sleep 1000 >/dev/null 2>&1 & echo done $0";
        desk.file("wf.cwl", in_containers(command));
        desk.file("job.json", "{\"numbers\": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}");
        for more in [&[][..], &["--root-on-disk"]] {
            let words = ["isles", "cwl", "run", "-q", "--outdir", "o"];
            let out = desk.run(&[&words[..], more, &["wf.cwl", "job.json"]].concat()).fine();
            let out: serde_json::Value = serde_json::from_str(&out).unwrap();
            let last = out["said"][9]["path"].as_str().unwrap();
            assert_eq!(fs::read_to_string(last).unwrap(), "done 9\n");
        }
        assert_eq!(fs::read_dir(desk.path("tmp")).unwrap().count(), 0);
    });
}

#[test]
fn a_bound_of_memory_holds_where_it_is_asked_for() {
    let root = rustix::process::geteuid().is_root();
    if !root || !desk::installed("busybox") {
        return println!("skip: only root makes control groups on every machine");
    }
    let desk = Desk::new(false);
    desk.busybox(&[]);
    desk.file("wf.cwl", in_containers("dd if=/dev/zero bs=90000000 count=1 2>/dev/null | wc -c"));
    desk.file("job.json", "{\"numbers\": [1]}");
    let said = |more: &[&str]| {
        let words = ["isles", "cwl", "run", "-q", "--outdir", "o"];
        let out = desk.run(&[&words[..], more, &["wf.cwl", "job.json"]].concat()).fine();
        let out: serde_json::Value = serde_json::from_str(&out).unwrap();
        fs::read_to_string(out["said"][0]["path"].as_str().unwrap()).unwrap()
    };
    assert_eq!(said(&[]), "90000000\n");
    // The program that needs more is killed, and the last of the pipe counts what came of it.
    assert_eq!(said(&["--strict-memory-limit"]), "0\n");
}

#[test]
fn a_stream_may_have_a_name_that_looks_like_a_pattern() {
    let desk = Desk::new(true);
    for name in ["a[1].txt", "what?*", "back\\slash"] {
        desk.file(
            "t.cwl",
            serde_json::json!({
                "cwlVersion": "v1.2", "class": "CommandLineTool", "baseCommand": ["echo", "x"], "inputs": [],
                "stdout": "$(\"NAME\")".replace("NAME", &name.replace('\\', "\\\\")),
                "requirements": {"InlineJavascriptRequirement": {}},
                "outputs": {"o": "stdout"},
            })
            .to_string(),
        );
        desk.run(&["isles", "cwl", "run", "-q", "--outdir", "o", "t.cwl"]).fine();
        assert_eq!(fs::read_to_string(desk.path("home/o").join(name)).unwrap(), "x\n");
    }
}

/// Says the variable WHO, on the host.
const SAYS_WHO: &str = "cwlVersion: v1.2\nclass: CommandLineTool\nrequirements: {EnvVarRequirement: {envDef: {WHO: nobody}}}\n\
                        baseCommand: [sh, -c, 'echo $WHO $0']\ninputs: {n: {type: string, default: x, inputBinding: {}}}\n\
                        outputs: {o: stdout}\nstdout: who.txt\n";

#[test]
fn a_job_overrides_what_a_process_requires() {
    let desk = Desk::new(true);
    desk.file("who.cwl", SAYS_WHO);
    desk.file("wf.cwl", "cwlVersion: v1.2\nclass: Workflow\ninputs: []\noutputs: {o: {type: File, outputSource: say/o}}\nsteps:\n  say: {run: who.cwl, in: [], out: [o]}\n");
    let over = |target: &str, who: &str| {
        format!(
            "cwl:overrides:\n  {target}:\n    requirements: {{EnvVarRequirement: {{envDef: {{WHO: {who}}}}}}}\n"
        )
    };
    let run = |words: &[&str]| {
        let said = desk.run(&[&["isles", "cwl", "run", "-q", "--outdir", "o"][..], words].concat());
        assert_eq!(said.code, Some(0), "{}", said.err);
        (fs::read_to_string(desk.path("home/o/who.txt")).unwrap(), said.err)
    };
    desk.file("job.yml", over("who.cwl", "somebody"));
    assert_eq!(run(&["who.cwl", "job.yml"]).0, "somebody x\n");
    assert_eq!(run(&["wf.cwl", "job.yml"]).0, "somebody x\n");
    desk.file("job.yml", over("wf.cwl#say", "the-step"));
    assert_eq!(run(&["wf.cwl", "job.yml"]).0, "the-step x\n");
    desk.file("over.yml", over("who.cwl", "a-file"));
    assert_eq!(run(&["--overrides", "over.yml", "who.cwl"]).0, "a-file x\n");
    desk.file("job.yml", over("other.cwl", "no-one"));
    let (text, err) = run(&["who.cwl", "job.yml"]);
    assert_eq!(text, "nobody x\n");
    assert!(err.contains("other.cwl# is for no process of this run"), "{err}");
}

#[test]
fn one_step_of_a_workflow_runs_alone() {
    let desk = Desk::new(true);
    desk.file("in.txt", "zero\n");
    desk.file("ran", "");
    chain(&desk, "cat $1; echo three");
    let run =
        |words: &[&str]| desk.run(&[&["isles", "cwl", "run", "-q", "--outdir", "o"][..], words].concat());
    run(&["--single-step", "b", "chain.cwl", "--f", "in.txt"]).fine();
    assert_eq!(fs::read_to_string(desk.path("home/o/two.txt")).unwrap(), "zero\ntwo\n");
    run(&["--single-process", "c", "chain.cwl", "--f", "in.txt"]).fine();
    assert_eq!(fs::read_to_string(desk.path("home/o/three.txt")).unwrap(), "zero\nthree\n");
    assert_eq!(fs::read_to_string(desk.path("home/ran")).unwrap(), "two\nthree\n");
    assert!(run(&["--single-step", "bb", "chain.cwl"]).err.contains("has no step `bb`; did you mean `b`?"));
}

#[test]
fn documents_and_inputs_come_from_the_web() {
    use std::io::{BufRead, BufReader, Write};
    let desk = Desk::new(true);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("http://{}", listener.local_addr().unwrap());
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
    let log = asked.clone();
    // It ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let Some(first) = lines.next() else { continue };
            while lines.next().is_some_and(|line| !line.is_empty()) {}
            let path = first.split(' ').nth(1).unwrap().to_owned();
            let text = match path.as_str() {
                "/flows/wf.cwl" => Some(
                    "cwlVersion: v1.2\nclass: Workflow\ninputs: {f: File, n: {type: File, default: {class: File, location: data/n.txt}}}\noutputs: {o: {type: File, outputSource: s/o}}\nsteps:\n  s: {run: tools/cat.cwl, in: {f: f, n: n}, out: [o]}\n",
                ),
                "/flows/tools/cat.cwl" => Some(
                    "cwlVersion: v1.2\nclass: CommandLineTool\nbaseCommand: cat\ninputs: {f: {type: File, inputBinding: {}}, n: {type: File, inputBinding: {}}}\noutputs: {o: stdout}\nstdout: all.txt\n",
                ),
                "/flows/data/n.txt" => Some("beside\n"),
                "/x%20y.txt?v=1" => Some("far\n"),
                _ => None,
            };
            log.lock().unwrap().push(path);
            let answer = match text {
                Some(text) => format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                    text.len()
                ),
                None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    desk.file(
        "job.json",
        serde_json::json!({"f": {"class": "File", "location": format!("{at}/x%20y.txt?v=1")}}).to_string(),
    );
    let wf = format!("{at}/flows/wf.cwl");
    desk.run(&["isles", "cwl", "run", "-q", "--outdir", "o", &wf, "job.json"]).fine();
    assert_eq!(fs::read_to_string(desk.path("home/o/all.txt")).unwrap(), "far\nbeside\n");
    let paths = asked.lock().unwrap().clone();
    assert_eq!(paths.len(), 4, "each once: {paths:?}");
    let missing = desk.run(&["isles", "cwl", "run", &format!("{at}/flows/no.cwl")]);
    assert!(missing.err.contains("no.cwl: the server answers 404"), "{}", missing.err);
    desk.file(
        "job.json",
        serde_json::json!({"f": {"class": "File", "location": format!("{at}/gone")}}).to_string(),
    );
    let gone = desk.run(&["isles", "cwl", "run", &wf, "job.json"]);
    assert_eq!(gone.code, Some(1));
    assert!(gone.err.contains("/gone cannot be had"), "{}", gone.err);
}

#[test]
fn loops_turn_until_they_may_not() {
    let desk = Desk::new(true);
    let tool = "{class: ExpressionTool, requirements: {InlineJavascriptRequirement: {}}, inputs: {i: int}, outputs: {o: int}, \
                expression: '${return {o: inputs.i + 1};}'}";
    let of = |step: &str, version: &str, kind: &str| {
        format!(
            "cwlVersion: {version}\nclass: Workflow\n$namespaces: {{cwltool: 'http://commonwl.org/cwltool#'}}\nrequirements: {{InlineJavascriptRequirement: {{}}, StepInputExpressionRequirement: {{}}, ScatterFeatureRequirement: {{}}}}\ninputs: {{i: int}}\noutputs: {{o: {{type: '{kind}', outputSource: s/o}}}}\nsteps:\n  s:\n    run: {tool}\n    in: {{i: i}}\n    out: [o]\n{step}"
        )
    };
    let run = |text: String, start: &str| {
        desk.file("loop.cwl", text);
        desk.run(&["isles", "cwl", "run", "-q", "--enable-dev", "loop.cwl", "--i", start])
    };
    let value =
        |said: desk::Said| serde_json::from_str::<serde_json::Value>(&said.fine()).unwrap()["o"].clone();
    let loops =
        |method: &str| format!("    when: $(inputs.i < 5)\n    loop: {{i: o}}\n    outputMethod: {method}\n");
    let [last, all] = ["last_iteration", "all_iterations"].map(loops);
    assert_eq!(value(run(of(&last, "v1.3.0-dev1", "int?"), "1")), 5);
    assert_eq!(value(run(of(&last, "v1.3.0-dev1", "int?"), "9")), serde_json::Value::Null);
    assert_eq!(value(run(of(&all, "v1.3.0-dev1", "int[]"), "2")), serde_json::json!([3, 4, 5]));
    assert_eq!(value(run(of(&all, "v1.3.0-dev1", "int[]"), "7")), serde_json::json!([]));
    let skips = "    when: $(inputs.i < 10)\n    loop: {i: {outputSource: o, valueFrom: $(self * 2)}}\n    outputMethod: all_iterations\n";
    assert_eq!(value(run(of(skips, "v1.3.0-dev1", "int[]"), "1")), serde_json::json!([2, 5]));
    let extension = "    requirements:\n      cwltool:Loop: {loopWhen: $(inputs.i < 5), loop: {i: o}, outputMethod: all}\n";
    assert_eq!(value(run(of(extension, "v1.2", "int[]"), "3")), serde_json::json!([4, 5]));
    // Without the flag neither is known.
    desk.file("loop.cwl", of(extension, "v1.2", "int"));
    let unknown = desk.run(&["isles", "cwl", "run", "loop.cwl", "--i", "1"]);
    assert_eq!(unknown.code, Some(33), "{}", unknown.err);
    let endless = "    loop: {i: o}\n    outputMethod: last_iteration\n";
    assert!(
        run(of(endless, "v1.3.0-dev1", "int"), "1").err.contains("a loop needs `when`, or it never ends")
    );
}

#[test]
fn an_archive_of_files_is_an_image() {
    if !desk::installed("busybox") {
        return;
    }
    let desk = Desk::new(true);
    for folder in ["home/root/bin", "home/root/tmp"] {
        fs::create_dir_all(desk.path(folder)).unwrap();
    }
    fs::copy("/bin/busybox", desk.path("home/root/bin/sh")).unwrap();
    fs::write(desk.path("home/root/mark"), "of the archive\n").unwrap();
    let tar = std::process::Command::new("tar")
        .arg("-C")
        .arg(desk.path("home/root"))
        .arg("-czf")
        .arg(desk.path("home/root.tgz"))
        .arg(".")
        .status();
    assert!(tar.unwrap().success());
    let archive = desk.file("root.tgz.there", "").with_file_name("root.tgz");
    desk.file("t.cwl", format!("cwlVersion: v1.2\nclass: CommandLineTool\nrequirements: {{DockerRequirement: {{dockerImport: '{}'}}}}\nbaseCommand: [sh, -c, 'read a < /mark; echo $a']\ninputs: []\noutputs: {{o: stdout}}\nstdout: o.txt\n", archive.display()));
    desk.run(&["isles", "cwl", "run", "-q", "--outdir", "o", "t.cwl"]).fine();
    assert_eq!(fs::read_to_string(desk.path("home/o/o.txt")).unwrap(), "of the archive\n");
}

#[test]
fn a_packed_document_needs_no_other_and_gives_the_same() {
    let desk = Desk::new(true);
    desk.file("in.txt", "zero\n");
    desk.file("ran", "");
    chain(&desk, "cat $1; echo three");
    // A graph that runs a part of its own, the chain of other files, and a process that stands in the step.
    desk.file("deep/all.cwl", "cwlVersion: v1.2\n$namespaces: {e: 'http://e/'}\n$graph:\n- id: main\n  class: Workflow\n  requirements: {SubworkflowFeatureRequirement: {}, InlineJavascriptRequirement: {expressionLib: [{$include: lib.js}]}}\n  inputs: {f: {type: File, default: {class: File, location: ../in.txt}}}\n  outputs: {n: {type: int, outputSource: count/n}, o: {type: File, outputSource: own/o}}\n  steps:\n    chain: {run: ../chain.cwl, in: {f: f}, out: [o]}\n    own: {run: '#cat', in: {f: chain/o}, out: [o]}\n    count:\n      in: {f: {source: own/o, loadContents: true}}\n      out: [n]\n      run: {class: ExpressionTool, inputs: {f: File}, outputs: {n: int}, expression: '${return {n: lines(inputs.f.contents)};}'}\n- id: cat\n  class: CommandLineTool\n  baseCommand: cat\n  inputs: {f: {type: File, inputBinding: {}}}\n  outputs: {o: stdout}\n  stdout: cat.txt\n");
    desk.file("deep/lib.js", "function lines(text) { return text.split('\\n').length - 1; }\n");
    let run =
        |words: &[&str]| desk.run(&[&["isles", "cwl", "run", "-q", "--outdir", "o"][..], words].concat());
    let plain = run(&["deep/all.cwl"]).fine();
    let packed = run(&["--pack", "deep/all.cwl"]).fine();
    let graph: serde_json::Value = serde_json::from_str(&packed).unwrap();
    let ids: Vec<&str> =
        graph["$graph"].as_array().unwrap().iter().map(|p| p["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["main", "chain.cwl", "one.cwl", "two.cwl", "three.cwl", "cat"]);
    desk.file("elsewhere/packed.json", &packed);
    for name in ["deep/all.cwl", "deep/lib.js", "chain.cwl", "one.cwl", "two.cwl", "three.cwl"] {
        fs::remove_file(desk.path("home").join(name)).unwrap();
    }
    assert_eq!(run(&["elsewhere/packed.json"]).fine(), plain);
    assert_eq!(fs::read_to_string(desk.path("home/o/cat.txt")).unwrap(), "zero\none\ntwo\nthree\n");
    if desk::installed("cwltool") {
        desk.run(&["cwltool", "--validate", "elsewhere/packed.json"]).fine();
    }
}

#[test]
fn a_run_is_written_as_a_research_object() {
    let desk = Desk::new(true);
    desk.file("in.txt", "zero\n");
    desk.file("ran", "");
    chain(&desk, "cat $1; echo three");
    let words =
        ["isles", "cwl", "run", "-q", "--outdir", "o", "--provenance", "ro", "chain.cwl", "--f", "in.txt"];
    desk.run(&words).fine();
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(desk.path("home/ro").join(name)).unwrap()).unwrap()
    };
    let job = read("workflow/primary-job.json");
    let place = job["f"]["location"].as_str().unwrap();
    assert_eq!(fs::read_to_string(desk.path("home/ro/workflow").join(place)).unwrap(), "zero\n");
    // What the first step made is what the second used.
    let prov = read("metadata/provenance/primary.cwlprov.json");
    let of = |relations: &str, activity: &str| -> Vec<String> {
        let all = prov[relations].as_object().unwrap().values();
        let own = all.filter(|relation| relation["prov:activity"] == activity);
        own.map(|relation| relation["prov:entity"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(of("wasGeneratedBy", "id:step-1"), of("used", "id:step-2"));
    assert_eq!(of("wasGeneratedBy", "id:step-3"), of("wasGeneratedBy", "id:run"));
    assert_eq!(of("used", "id:run").len(), 1);
    let graph = read("ro-crate-metadata.json")["@graph"].clone();
    let entity = |id: &str| graph.as_array().unwrap().iter().find(|e| e["@id"] == id).unwrap().clone();
    assert_eq!(entity("#run")["instrument"]["@id"], "workflow/packed.cwl");
    assert_eq!(entity("#run")["object"].as_array().unwrap().len(), 1);
    // The document in it runs with the job in it.
    desk.run(&[
        "isles",
        "cwl",
        "run",
        "-q",
        "--outdir",
        "p",
        "ro/workflow/packed.cwl",
        "ro/workflow/primary-job.json",
    ])
    .fine();
    assert_eq!(fs::read_to_string(desk.path("home/p/three.txt")).unwrap(), "zero\none\ntwo\nthree\n");
    let again = desk.run(&words);
    assert!(
        again.err.contains("ro is not empty, and a research object begins with nothing"),
        "{}",
        again.err
    );
    if desk::installed("bagit.py") {
        let script = "import bagit, rocrate.rocrate as r; bagit.Bag('ro').validate(); c = r.ROCrate('ro'); \
                      print(c.mainEntity.id, len(c.mainEntity['input']))";
        assert_eq!(desk.run(&["python3", "-c", script]).fine(), "workflow/packed.cwl 1\n");
    }
}
