//! CWL: a tool, scatters and validation beside cwltool and commonwl, an engine in Rust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Isles;
use super::measure::{Case, Outcome, interleave, timed};
use super::peers::{Docker, busybox_tree, cache, must};
use super::report::{Section, at_most, bound, contenders, faster, promises};
use crate::{Result, python};

const HELLO: &str = "cwlVersion: v1.2\nclass: CommandLineTool\nbaseCommand: echo\ninputs:\n  message: {type: string, \
                     inputBinding: {position: 1}}\noutputs:\n  out: stdout\nstdout: out.txt\n";
const SCATTER: &str = "cwlVersion: v1.2\nclass: Workflow\nrequirements: {ScatterFeatureRequirement: {}}\ninputs: {messages: \
                       'string[]'}\noutputs:\n  outs: {type: 'File[]', outputSource: echo/out}\nsteps:\n  echo:\n    run: \
                       hello.cwl\n    scatter: message\n    in: {message: messages}\n    out: [out]\n";

const EXPRESSIONS: usize = 2000;
const JAVASCRIPT: &str = "cwlVersion: v1.2\nclass: Workflow\nrequirements: {ScatterFeatureRequirement: {}, \
                          InlineJavascriptRequirement: {}}\ninputs: {messages: 'string[]'}\noutputs:\n  outs: {type: \
                          'string[]', outputSource: up/out}\nsteps:\n  up:\n    scatter: message\n    in: {message: \
                          messages}\n    out: [out]\n    run: {class: ExpressionTool, inputs: {message: string}, outputs: \
                          {out: string}, expression: '${return {out: inputs.message.toUpperCase()};}'}\n";
const CONTAINED: &str =
    "class: CommandLineTool\nrequirements: {DockerRequirement: {dockerPull: 'bench:1'}}\n";

/// A program over the peer's library, which has none of its own.
const RUNNER: &str = r#"use std::path::Path;
use std::sync::Arc;

use commonwl::engine::{ContainerEngine, LocalBackend, create_execution_request, execute};
use commonwl::storage::{StorageBackend, StoragePath};
use tokio_util::sync::CancellationToken;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let request = create_execution_request(&words[1], &words[2], Some(Path::new(&words[0]))).unwrap();
    let scratch = StoragePath::from_local(Path::new("/tmp"));
    let backend = Arc::new(LocalBackend::new(ContainerEngine::Docker, Arc::new(StorageBackend::new()), scratch));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let result = runtime.block_on(execute(backend, &request, CancellationToken::new())).unwrap();
    println!("{}", serde_json::to_string_pretty(&result.outputs).unwrap());
}
"#;
const MANIFEST: &str = "[package]\nname = \"commonwl-runner\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[dependencies]\n\
                        commonwl = { version = \"=0.15.1\", features = [\"engine\"] }\ntokio = { version = \"1\", features = \
                        [\"rt-multi-thread\"] }\ntokio-util = \"0.7\"\nserde_json = \"1\"\n\n[profile.release]\nopt-level = \
                        3\n\n[workspace]\n";

/// Builds the peer, which takes a quarter of an hour, unless it is there.
fn commonwl() -> Result<PathBuf> {
    let folder = Path::new("/var/tmp/isles-peers/commonwl");
    let program = folder.join("target/release/commonwl-runner");
    if !program.exists() {
        let fail = |e: std::io::Error| format!("{}: {e}", folder.display());
        fs::create_dir_all(folder.join("src")).map_err(fail)?;
        fs::write(folder.join("Cargo.toml"), MANIFEST).map_err(fail)?;
        fs::write(folder.join("src/main.rs"), RUNNER).map_err(fail)?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        must(Command::new(cargo).current_dir(folder).args(["build", "--release", "--quiet"]))?;
    }
    Ok(program)
}

pub fn run(isles: &Isles) -> Result<Section> {
    python::ensure();
    let commonwl = commonwl()?;
    let cwltool = python::program("cwltool");
    let work = cache().join("cwl");
    let _ = fs::remove_dir_all(&work);
    let fail = |e: std::io::Error| format!("{}: {e}", work.display());
    fs::create_dir_all(&work).map_err(fail)?;
    let write = |name: &str, text: &str| fs::write(work.join(name), text).map_err(fail);
    write("hello.cwl", HELLO)?;
    write("scatter.cwl", SCATTER)?;
    write("hello.json", "{\"message\": \"hi\"}")?;
    for n in [100, 1000] {
        let messages: Vec<String> = (0..n).map(|i| format!("\"m{i}\"")).collect();
        write(&format!("scatter{n}.json"), &format!("{{\"messages\": [{}]}}", messages.join(", ")))?;
    }
    let steps: String = (0..50)
        .map(|i| format!("  s{i}: {{run: hello.cwl, in: {{message: messages}}, out: [out]}}\n"))
        .collect();
    write(
        "fifty.cwl",
        &format!(
            "cwlVersion: v1.2\nclass: Workflow\ninputs: {{messages: string}}\noutputs: []\nsteps:\n{steps}"
        ),
    )?;
    // The same tool in a container of one static busybox.
    let root = work.join("root");
    let tree = work.join("tree");
    busybox_tree(&tree)?;
    let tar = work.join("tree.tar");
    must(Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&tar).arg("."))?;
    must(isles.command(&root).arg("import").arg(&tar).arg("bench:1"))?;

    let out = work.join("out");
    let ours = |process: &str, job: &str, more: &[&str]| {
        let mut command = isles.command(&root);
        command
            .current_dir(&work)
            .args(["cwl", "run", "--quiet", "--outdir"])
            .arg(&out)
            .args(more)
            .args([process, job]);
        command
    };
    let rust = |process: &str, job: &str| {
        let mut command = Command::new(&commonwl);
        command.current_dir(&work).arg(&out).args([process, job]);
        command
    };
    let reference = |process: &str, job: &str| {
        let mut command = Command::new(&cwltool);
        command.current_dir(&work).args(["--quiet", "--outdir"]).arg(&out).args([process, job]);
        command
    };
    let fresh = |mut command: Command| {
        let _ = fs::remove_dir_all(&out);
        timed(command.stdout(Stdio::null()).stderr(Stdio::null()))
    };
    let three = |what: &str, process: &str, job: &str, rounds: usize| -> Result<Vec<Outcome>> {
        interleave(
            vec![
                Case::new(&format!("isles {what}"), || fresh(ours(process, job, &[]))),
                Case::new(&format!("commonwl {what}"), || fresh(rust(process, job))),
                Case::new(&format!("cwltool {what}"), || fresh(reference(process, job))),
            ],
            rounds,
        )
    };
    let hello = three("hello", "hello.cwl", "hello.json", 11)?;
    let hundred = three("100 steps", "scatter.cwl", "scatter100.json", 7)?;
    let thousand = three("1,000 steps", "scatter.cwl", "scatter1000.json", 3)?;
    let contained = interleave(
        vec![
            Case::new("isles 100 steps on the host", || fresh(ours("scatter.cwl", "scatter100.json", &[]))),
            Case::new("isles 100 steps in containers", || {
                fresh(ours("scatter.cwl", "scatter100.json", &["--default-container", "bench:1"]))
            }),
        ],
        7,
    )?;
    let validated = interleave(
        vec![
            Case::new("isles validates 50 steps", || {
                let mut command = isles.command(&root);
                timed(command.current_dir(&work).args(["cwl", "run", "--quiet", "--validate", "fifty.cwl"]))
            }),
            Case::new("cwltool validates 50 steps", || {
                let mut command = Command::new(&cwltool);
                command.current_dir(&work).args(["--quiet", "--validate", "fifty.cwl"]);
                timed(command.stdout(Stdio::null()).stderr(Stdio::null()))
            }),
        ],
        7,
    )?;

    // One expression for each part of a scatter, against one of a single part.
    let messages: Vec<String> = (0..EXPRESSIONS).map(|i| format!("\"m{i}\"")).collect();
    write("many.json", &format!("{{\"messages\": [{}]}}", messages.join(", ")))?;
    write("few.json", "{\"messages\": [\"m\"]}")?;
    write("expressions.cwl", JAVASCRIPT)?;
    let expressions = interleave(
        vec![
            Case::new("isles one expression", || fresh(ours("expressions.cwl", "few.json", &[]))),
            Case::new("isles 2,000 expressions", || fresh(ours("expressions.cwl", "many.json", &[]))),
        ],
        5,
    )?;
    // The reference runner starts a container of docker's for each step.
    let docker = Docker::start(&work.join("docker"), &[])?;
    must(docker.command().arg("import").arg(&tar).arg("bench:1"))?;
    write("contained.cwl", &HELLO.replacen("class: CommandLineTool\n", CONTAINED, 1))?;
    write("twenty.cwl", &SCATTER.replace("hello.cwl", "contained.cwl"))?;
    let messages: Vec<String> = (0..20).map(|i| format!("\"m{i}\"")).collect();
    write("twenty.json", &format!("{{\"messages\": [{}]}}", messages.join(", ")))?;
    let host = docker.command();
    let host = host.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    let host: Vec<_> = host.collect();
    let with_docker = interleave(
        vec![
            Case::new("isles 20 steps in containers", || fresh(ours("twenty.cwl", "twenty.json", &[]))),
            Case::new("cwltool 20 steps with docker", || {
                let mut command = reference("twenty.cwl", "twenty.json");
                command.envs(host.iter().cloned());
                fresh(command)
            }),
        ],
        3,
    )?;
    drop(docker);

    let mut text = String::from(
        "`echo` as a tool, and scattered over a hundred and a thousand strings, without containers; the same with each step \
         in a container of one static busybox.\n\n",
    );
    for outcomes in [&hello, &hundred, &thousand, &contained, &with_docker, &expressions, &validated] {
        let first = outcomes.first().map(|outcome| outcome.name.clone()).unwrap_or_default();
        text += &contenders(outcomes, &first);
        text += "\n";
    }
    let mut rows = Vec::new();
    rows.extend(at_most(&hello, "isles hello", "commonwl hello", 0.6));
    rows.extend(at_most(&hundred, "isles 100 steps", "commonwl 100 steps", 0.4));
    rows.extend(at_most(&thousand, "isles 1,000 steps", "commonwl 1,000 steps", 0.3));
    rows.extend(at_most(&contained, "isles 100 steps in containers", "isles 100 steps on the host", 1.5));
    rows.extend(faster(&with_docker, "isles 20 steps in containers", "cwltool 20 steps with docker", 40.0));
    let of = |outcomes: &[Outcome], name: &str| outcomes.iter().position(|outcome| outcome.name == name);
    if let (Some(ours), Some(peer)) =
        (of(&thousand, "isles 1,000 steps"), of(&thousand, "commonwl 1,000 steps"))
    {
        let times = thousand[ours].peak() as f64 / thousand[peer].peak().max(1) as f64;
        rows.push(bound("peak memory at 1,000 steps, of commonwl's", times, 1.0, "×"));
    }
    if let [few, many] = &expressions[..] {
        let each = (many.wall() - few.wall()).max(0.0) * 1000.0 / (EXPRESSIONS - 1) as f64;
        rows.push(bound("a step that is a JavaScript expression", each, 0.2, "ms"));
    }
    rows.extend(faster(&validated, "isles validates 50 steps", "cwltool validates 50 steps", 30.0));
    text += &promises(&rows);
    Ok(Section { name: "cwl", title: "Tools and workflows of CWL", text })
}
