//! `isles cwl run`, also as `cwl-runner`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use isles_cwl::cache::Cache;
use isles_cwl::document::Diagnostic;
use isles_cwl::draw;
use isles_cwl::files;
use isles_cwl::job;
use isles_cwl::load::{Loader, Loading};
use isles_cwl::model::{Process, Requirement};
use isles_cwl::relocate::{self, Taking};
use isles_cwl::run::{OnError, Watch, names_images};
use isles_cwl::tool::{self, FailureKind, Ontologies, Settings, Spare};
use isles_cwl::value::Value;
use isles_flow::pool::Limits;
use isles_flow::step::stop_all;
use isles_sandbox::signals::{Signals, die_of};
use rustix::event::{PollFd, PollFlags, poll};

use crate::commands::cwl::executor::Local;
use crate::context::Context;
use crate::failure::{Code, Failure};

/// The exit code of a process that needs what is not supported, by the conformance tests of CWL.
const UNSUPPORTED: u8 = 33;

/// Run a tool or a workflow with its inputs, and print its outputs as JSON.
///
/// Inputs come from a job file (YAML or JSON), or as options that are made from the process: `isles cwl run tool.cwl
/// --help` lists them. Options of this command stand before PROCESS.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles cwl run tool.cwl job.yml
  isles cwl run tool.cwl --message hi
  isles cwl run --outdir results workflow.cwl#main job.json
  isles cwl run --validate workflow.cwl")]
pub struct Args {
    /// Where outputs go.
    #[arg(long, value_name = "DIR", default_value = ".")]
    outdir: PathBuf,
    /// Where relative paths of a job on standard input begin.
    #[arg(long, value_name = "DIR")]
    basedir: Option<PathBuf>,
    /// Folders of steps are made at this path with something appended.
    #[arg(long, value_name = "PATH")]
    tmpdir_prefix: Option<String>,
    #[arg(long, value_name = "PATH", hide = true)]
    tmp_outdir_prefix: Option<String>,
    /// Keep what tools make in this folder, and run none again whose command, image, environment, files and limits are
    /// the same. A run that was interrupted goes on where it was.
    #[arg(long, value_name = "DIR")]
    cachedir: Option<PathBuf>,
    /// The same in a folder of Isles' own.
    #[arg(long, conflicts_with = "cachedir")]
    cache: bool,
    /// Run tools on the host, even where they name an image. Where one requires its image, nothing runs.
    #[arg(long)]
    no_container: bool,
    /// Run tools that name no image in this one.
    #[arg(long, value_name = "IMAGE")]
    default_container: Option<String>,
    /// Run steps side by side (they do in any case).
    #[arg(long, hide = true)]
    parallel: bool,
    /// Processors that steps may use together.
    #[arg(long, value_name = "N")]
    max_cores: Option<f64>,
    /// Memory that steps may use together, in MiB.
    #[arg(long, value_name = "MIB")]
    max_ram: Option<u64>,
    /// Steps at once.
    #[arg(long, value_name = "N")]
    max_jobs: Option<usize>,
    /// Say what is wrong with the process, and run nothing.
    #[arg(long)]
    validate: bool,
    /// Print a job file to be filled in, and run nothing.
    #[arg(long)]
    make_template: bool,
    /// Print the graph of the process in the language of Graphviz, and run nothing.
    #[arg(long)]
    print_dot: bool,
    /// Print the files that the process is read from, and run nothing.
    #[arg(long)]
    print_deps: bool,
    /// Run only what this output, or step, of a workflow needs; may be given several times.
    #[arg(long, value_name = "NAME")]
    target: Vec<String>,
    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Say more.
    #[arg(long)]
    debug: bool,
    /// Leave the folders of steps.
    #[arg(long)]
    leave_tmpdir: bool,
    #[arg(long, hide = true)]
    leave_outputs: bool,
    /// Copy outputs of steps instead of moving them.
    #[arg(long, conflicts_with = "leave_outputs")]
    copy_outputs: bool,
    #[arg(long, hide = true)]
    move_outputs: bool,
    /// What happens after a step failed: stop, or continue with what does not depend on it.
    #[arg(long, value_name = "WHAT", default_value = "stop", value_parser = ["stop", "continue"])]
    on_error: String,
    /// No checksums of outputs.
    #[arg(long)]
    no_compute_checksum: bool,
    #[arg(long, hide = true)]
    compute_checksum: bool,
    /// Seconds that an expression may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    eval_timeout: f64,
    /// Give tools of the host this variable of the environment.
    #[arg(long, value_name = "NAME")]
    preserve_environment: Vec<String>,
    /// Give tools of the host the whole environment.
    #[arg(long)]
    preserve_entire_environment: bool,
    /// Names of files are taken as they are (always so here).
    #[arg(long, hide = true)]
    relax_path_checks: bool,
    #[arg(long, hide = true)]
    no_match_user: bool,
    #[arg(long, hide = true)]
    disable_color: bool,
    /// Understand CWL v1.3 and loops.
    #[arg(long)]
    enable_dev: bool,
    #[arg(long, hide = true)]
    enable_ext: bool,
    /// The document, with #NAME for one process of several; then a job file, and inputs as options.
    #[arg(
        value_name = "PROCESS [JOB] [INPUTS]",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
}

pub fn cmd_cwl_run(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let ui = cx.ui.quieter(args.quiet);
    let mut loader = Loader::new(Loading { development: args.enable_dev });
    let Some((word, rest)) = args.words.split_first() else {
        return Err(Failure::new("no process is named"));
    };
    let (path, fragment) = split(word);
    let mut order = job::Order::default();
    let mut target = (path.clone(), fragment);
    if let Some(tool) = job_with_tool(&mut loader, &path) {
        order = tool;
        target = (order.tool.clone().unwrap_or(path), None);
    }
    let loaded = loader.load(&target.0, target.1.as_deref());
    for warning in loader.warnings.drain(..) {
        ui.warning(&Failure::new(told(&loader.documents, &warning)).message);
    }
    let Some(process) = loaded else {
        return Err(refused(&loader));
    };
    if args.validate {
        ui.note(&format!("{word} is valid CWL {}", process.version));
        return Ok(Code::SUCCESS);
    }
    let process = if args.target.is_empty() {
        process
    } else {
        draw::only(&process, &args.target).map_err(Failure::new)?
    };
    if args.print_dot {
        cx.ui.bytes(draw::dot(&process).as_bytes())?;
        return Ok(Code::SUCCESS);
    }
    if args.print_deps {
        cx.ui.bytes(draw::dependencies(&loader.documents.sources).pretty_json().as_bytes())?;
        return Ok(Code::SUCCESS);
    }
    if args.make_template {
        cx.ui.bytes(job::template(&process).as_bytes())?;
        return Ok(Code::SUCCESS);
    }
    let words = job::words(&process, rest).map_err(Failure::new)?;
    if words.help {
        let command = format!("isles cwl run {word}");
        cx.ui.bytes(job::help(&process, &command).as_bytes())?;
        return Ok(Code::SUCCESS);
    }
    if let Some(path) = &words.job {
        order = read_job(&mut loader, path, args.basedir.as_deref())?;
    }
    job::fill(&process, &words, &mut order.inputs).map_err(Failure::new)?;
    unknown_inputs(&process, &order.inputs, &ui);
    let mut requirements = |node: &Option<isles_cwl::tree::Node>, required: bool| match node {
        Some(node) => loader.outer_requirements(node, process.version, required),
        None => Vec::new(),
    };
    let asked = (requirements(&order.requirements, true), requirements(&order.hints, false));
    if !loader.errors.is_empty() {
        return Err(refused(&loader));
    }
    let written = loader.documents.expanded(&Value::map(order.inputs), process.at);
    let inputs = files::normalized(&written).map_err(|e| Failure::new(format!("the job: {e}")))?;
    run(cx, args, &process, &inputs, &asked)
}

/// Requirements and hints of the job.
type Asked = (Vec<Requirement>, Vec<Requirement>);

fn run(
    cx: &Context,
    args: &Args,
    process: &Arc<Process>,
    inputs: &Value,
    asked: &Asked,
) -> Result<Code, Failure> {
    let outdir = std::path::absolute(&args.outdir)
        .map_err(|e| Failure::because(format!("cannot use the folder '{}'", args.outdir.display()), &e))?;
    let scratch = Scratch::new(args.tmpdir_prefix.as_deref(), args.leave_tmpdir)?;
    let cache = match (&args.cachedir, args.cache) {
        (Some(folder), _) => Some(Cache::open(folder).map_err(Failure::new)?),
        (None, true) => Some(Cache::open(&cx.state_dir()?.join("cache/steps")).map_err(Failure::new)?),
        (None, false) => None,
    };
    let containers = !args.no_container && (args.default_container.is_some() || names_images(process));
    let executor = Local::new(cx, containers, args.quiet)?;
    let settings = Arc::new(Settings {
        scratch: scratch.path.clone(),
        executor: Arc::new(executor),
        containers: !args.no_container,
        patience: Duration::try_from_secs_f64(args.eval_timeout).unwrap_or(Duration::from_secs(60)),
        checksums: !args.no_compute_checksum,
        keep: args.leave_tmpdir,
        environment: environment(args),
        default_container: args.default_container.clone(),
        ontologies: Ontologies::default(),
        cache,
        next: AtomicU64::new(0),
        spare: Spare::default(),
    });
    let here = Limits::of_this_machine();
    let limits = Limits {
        cores: args.max_cores.unwrap_or(here.cores),
        mebibytes: args.max_ram.unwrap_or(here.mebibytes),
        slots: args.max_jobs.unwrap_or(here.slots).max(1),
    };
    let on_error = if args.on_error == "continue" { OnError::Continue } else { OnError::Stop };
    let talk = Talk { ui: cx.ui.quieter(args.quiet) };
    let stopped = stop_on_signals()?;
    let result =
        isles_cwl::run::run(process, inputs, &settings, (&asked.0, &asked.1), limits, on_error, &talk);
    let signal = stopped.load(Ordering::SeqCst);
    if signal != 0 {
        drop(scratch);
        cx.ui.error(&Failure::new("the run was stopped").with_hint(if settings.cache.is_some() {
            "what was finished is kept, and the same command goes on there"
        } else {
            "with --cache, the same command would go on where it was"
        }));
        drop(settings);
        die_of(signal);
        return Ok(Code(1));
    }
    let out = match result {
        Ok(out) => out,
        Err(failure) => {
            let code = if failure.kind == FailureKind::Unsupported { UNSUPPORTED } else { 1 };
            return Err(Failure::new(failure.message).with_code(code));
        }
    };
    let taking = match (args.copy_outputs, args.leave_outputs) {
        (true, _) => Taking::Copy,
        (_, true) => Taking::Leave,
        _ => Taking::Move,
    };
    let out = relocate::outputs(&out, &outdir, &scratch.path, taking).map_err(|e| {
        Failure::new(format!("the outputs are there, and cannot be put into '{}'", outdir.display()))
            .with_hint(e)
    })?;
    cx.ui.bytes(out.pretty_json().as_bytes())?;
    drop(scratch);
    Ok(Code::SUCCESS)
}

/// From here on signals that end a program end the steps first; the number of the one that came is told.
fn stop_on_signals() -> Result<Arc<AtomicI32>, Failure> {
    let signals = Signals::block().map_err(|e| Failure::because("cannot wait for signals", &e))?;
    let came = Arc::new(AtomicI32::new(0));
    let told = came.clone();
    let wait = move || {
        loop {
            let mut fds = [PollFd::new(&signals, PollFlags::IN)];
            if !matches!(poll(&mut fds, None), Ok(_) | Err(rustix::io::Errno::INTR)) {
                return;
            }
            while let Ok(Some((signal, _))) = signals.next() {
                if matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT) {
                    told.store(signal, Ordering::SeqCst);
                    stop_all();
                }
            }
        }
    };
    let made = std::thread::Builder::new().name("isles-signals".into()).stack_size(64 << 10).spawn(wait);
    made.map_err(|e| Failure::because("cannot wait for signals", &e))?;
    Ok(came)
}

/// `FILE#NAME`, unless there is a file of that whole name.
fn split(word: &str) -> (PathBuf, Option<String>) {
    let plain = word.strip_prefix("file://").unwrap_or(word);
    match plain.rsplit_once('#') {
        Some((path, fragment)) if !Path::new(plain).exists() => (path.into(), Some(fragment.to_owned())),
        _ => (plain.into(), None),
    }
}

/// A job file that names its process (`cwl:tool`).
fn job_with_tool(loader: &mut Loader, path: &Path) -> Option<job::Order> {
    let order = job::read(&mut loader.documents, path).ok()?;
    order.tool.is_some().then_some(order)
}

fn read_job(loader: &mut Loader, word: &str, basedir: Option<&Path>) -> Result<job::Order, Failure> {
    let read = if word == "-" {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::io::stdin().lock(), &mut text)
            .map_err(|e| Failure::because("cannot read the job from standard input", &e))?;
        let folder = basedir.map_or_else(|| std::env::current_dir().unwrap_or_default(), Path::to_owned);
        let read = loader.documents.read_text("standard input", &folder, text);
        read.and_then(|(_, node)| job::of_node(&loader.documents, &node))
    } else {
        job::read(&mut loader.documents, Path::new(word.strip_prefix("file://").unwrap_or(word)))
    };
    read.map_err(|e| Failure { message: told(&loader.documents, &e), hint: e.hint, ..Failure::default() })
}

fn unknown_inputs(process: &Process, inputs: &isles_cwl::value::Map, ui: &crate::ui::Ui) {
    for name in inputs.keys() {
        if !process.inputs.iter().any(|i| i.name == *name) && &**name != "id" {
            ui.warning(&format!("the job gives `{name}`, which is no input of {}", process.id));
        }
    }
}

fn told(documents: &isles_cwl::document::Documents, diagnostic: &Diagnostic) -> String {
    let place = documents.sources.place(diagnostic.at);
    if place.is_empty() { diagnostic.message.clone() } else { format!("{place}: {}", diagnostic.message) }
}

/// Everything that is wrong with a document, each with its line.
fn refused(loader: &Loader) -> Failure {
    let mut lines = Vec::new();
    for (i, error) in loader.errors.iter().enumerate() {
        let mut text = told(&loader.documents, error);
        if let Some(line) = loader.documents.sources.line(error.at) {
            let number = error.at.line.to_string();
            let margin = " ".repeat(number.len());
            let before: String = line
                .chars()
                .take(error.at.column.saturating_sub(1) as usize)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            let shown: String = line.chars().take(200).collect();
            text.push_str(&format!("\n {number} | {shown}\n {margin} | {before}^"));
        }
        if let Some(hint) = &error.hint {
            text.push_str(&format!("\n {hint}"));
        }
        if i > 0 {
            text.insert(0, '\n');
        }
        lines.push(text);
    }
    let count = loader.errors.len();
    if count > 1 {
        lines.push(format!("\n{count} errors"));
    }
    Failure::new(lines.join(""))
}

fn environment(args: &Args) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for (name, value) in std::env::vars_os() {
        let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) else { continue };
        let kept =
            name == "PATH" || args.preserve_entire_environment || args.preserve_environment.contains(&name);
        if kept && name != "HOME" && name != "TMPDIR" {
            out.push((name, value));
        }
    }
    out
}

/// The folder in which steps have theirs; gone at the end.
struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    fn new(prefix: Option<&str>, keep: bool) -> Result<Scratch, Failure> {
        let prefix = match prefix {
            Some(prefix) => prefix.to_owned(),
            None => format!("{}/isles-cwl-", std::env::temp_dir().display()),
        };
        let prefix = std::path::absolute(&prefix).map_or(prefix, |p| p.display().to_string());
        for n in 0..10_000u32 {
            let path = PathBuf::from(format!("{prefix}{}-{n}", std::process::id()));
            match std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&path)
            {
                Ok(()) => return Ok(Scratch { path, keep }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    return Err(Failure::because(format!("cannot make the folder '{}'", path.display()), &e));
                }
            }
        }
        Err(Failure::new(format!("there is no free name at '{prefix}'")))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            let _ = tool::remove(&self.path);
        }
    }
}

/// Progress as lines.
struct Talk {
    ui: crate::ui::Ui,
}

impl Watch for Talk {
    fn started(&self, name: &str) {
        self.ui.note(&format!("{name} begins"));
    }
}
