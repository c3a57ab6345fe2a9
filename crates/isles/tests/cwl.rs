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
    // A tool of the host outlives the runner that was killed: this one is told to end.
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
