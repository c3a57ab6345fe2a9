//! `isles cwl run`, also as `cwl-runner`

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
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
use isles_cwl::model::{Body, Process, Requirement, Version};
use isles_cwl::overrides::{self, Override};
use isles_cwl::provenance;
use isles_cwl::relocate::{self, Taking};
use isles_cwl::run::{OnError, names_images};
use isles_cwl::tool::{FailureKind, Ontologies, Retries, Settings, Spare};
use isles_cwl::value::Value;
use isles_cwl::web::{Web, is_url};
use isles_flow::history::History;
use isles_flow::pool::Limits;
use isles_flow::record::State;
use isles_flow::run::{About, Run};
use isles_flow::step::{Executor, stop_all};
use isles_registry::web::Wish;
use isles_sandbox::signals::{Signals, die_of};
use rustix::event::{PollFd, PollFlags, poll};

use crate::commands::cwl::executor::Local;
use crate::commands::cwl::folders::{Outs, Scratch};
use crate::commands::cwl::reference::{Reference, is_process};
use crate::commands::cwl::slurm::Slurm;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::registry::Connection;
use crate::ui::steps::Steps;

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
    /// Temporary folders of steps are made at this path with something appended.
    #[arg(long, value_name = "PATH")]
    tmpdir_prefix: Option<String>,
    /// The same for their output folders [default: with the record of the run].
    #[arg(long, value_name = "PATH")]
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
    /// Keep what tools write in a container elsewhere than in their folders on disk. It is kept in memory else, half of
    /// which it may take.
    #[arg(long)]
    root_on_disk: bool,
    /// Let no container have more memory than its tool asked for.
    #[arg(long)]
    strict_memory_limit: bool,
    /// Let no container have more processor time than its tool asked for.
    #[arg(long)]
    strict_cpu_limit: bool,
    /// Run steps side by side (they do in any case).
    #[arg(long, hide = true)]
    parallel: bool,
    /// Where steps run: on this machine, or on the nodes of the allocation of Slurm that this command is in.
    #[arg(long, value_name = "WHERE", default_value = "local", value_parser = ["local", "slurm"])]
    executor: String,
    /// Processors that steps may use together.
    #[arg(long, value_name = "N")]
    max_cores: Option<f64>,
    /// Memory that steps may use together, in MiB.
    #[arg(long, value_name = "MIB")]
    max_ram: Option<u64>,
    /// Steps at once.
    #[arg(long, value_name = "N", alias = "parallel-max")]
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
    /// Print the graph of the process as an SVG drawing, and run nothing.
    #[arg(long)]
    print_svg: bool,
    /// Print the process with all that it runs as one document, and run nothing.
    #[arg(long)]
    pack: bool,
    /// Print the files that the process is read from, and run nothing.
    #[arg(long)]
    print_deps: bool,
    /// Run only what this output, or step, of a workflow needs; may be given several times.
    #[arg(long, value_name = "NAME")]
    target: Vec<String>,
    /// Run one step of a workflow; what it takes is asked for as inputs.
    #[arg(long, value_name = "STEP", conflicts_with_all = ["target", "single_process"])]
    single_step: Option<String>,
    /// Run what a step of a workflow runs.
    #[arg(long, value_name = "STEP", conflicts_with = "target")]
    single_process: Option<String>,
    /// A file whose `cwl:overrides` put requirements in the place of a process's own.
    #[arg(long, value_name = "FILE")]
    overrides: Option<PathBuf>,
    /// Say nothing but errors.
    #[arg(short, long, alias = "no-warnings")]
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
    /// Try a step again that failed in one of the ways of --retry-on, so many times, after pauses that get longer.
    #[arg(long, value_name = "N", default_value_t = 2)]
    retries: u32,
    /// Which failures are tried again: exit codes that the tool calls temporary, a signal, a time limit, or any.
    #[arg(long, value_name = "WHICH", value_delimiter = ',', default_value = "temporary",
          value_parser = ["temporary", "signal", "timeout", "any"])]
    retry_on: Vec<String>,
    /// Write the run as a research object into this folder: documents, inputs, outputs and what led to what, as a bag
    /// (CWLProv, Workflow Run RO-Crate).
    #[arg(long, value_name = "DIR", conflicts_with_all = ["no_record", "target", "single_step", "single_process"])]
    provenance: Option<PathBuf>,
    /// Write nothing down of this run for `isles flow`.
    #[arg(long)]
    no_record: bool,
    /// Go on with this run.
    #[arg(long, value_name = "RUN", hide = true, conflicts_with = "no_record")]
    resume: Option<String>,
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
    #[command(flatten)]
    reference: Reference,
    /// The document, with #NAME for one process of several; then a job file, and inputs as options.
    #[arg(
        value_name = "PROCESS [JOB] [INPUTS]",
        required_unless_present_any = ["print_supported_versions", "version"],
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
}

pub fn cmd_cwl_run(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let ui = cx.ui.quieter(args.quiet);
    args.reference.check(&ui)?;
    if args.reference.version {
        cx.ui.line(&format!("isles {}", env!("CARGO_PKG_VERSION")))?;
        return Ok(Code::SUCCESS);
    }
    if args.reference.print_supported_versions {
        let versions = [Version::V1_0, Version::V1_1, Version::V1_2, Version::V1_3];
        for version in versions.iter().filter(|v| args.enable_dev || **v != Version::V1_3) {
            cx.ui.line(&version.to_string())?;
        }
        return Ok(Code::SUCCESS);
    }
    let mut loader = Loader::new(Loading { development: args.enable_dev });
    loader.documents.web = cx.state_dir().ok().map(|state| Arc::new(web(state.join("cache/web"), ui)));
    let Some((word, rest)) = args.words.split_first() else {
        return Err(Failure::new("no process is named"));
    };
    is_process::<Args>(word)?;
    let (path, fragment) = match loader.documents.web.as_ref().filter(|_| is_url(word)) {
        Some(web) => {
            let path = web.get(word).map_err(|e| Failure::new(format!("cannot fetch {word}: {e}")))?;
            (path, word.split_once('#').map(|(_, name)| name.to_owned()))
        }
        None => split(word),
    };
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
    // What is read from here on is the job.
    let loaded_from = loader.documents.sources.all().len();
    if args.validate {
        ui.note(&format!("{word} is valid CWL {}", process.version));
        return Ok(Code::SUCCESS);
    }
    let process = match (&args.single_step, &args.single_process) {
        (Some(step), _) => draw::single_step(&process, step).map_err(Failure::new)?,
        (None, Some(step)) => draw::single_process(&process, step).map_err(Failure::new)?,
        (None, None) if args.target.is_empty() => process,
        (None, None) => draw::only(&process, &args.target).map_err(Failure::new)?,
    };
    if args.print_dot {
        cx.ui.bytes(draw::graph(&process).dot().as_bytes())?;
        return Ok(Code::SUCCESS);
    }
    if args.print_svg {
        let drawing = draw::graph(&process).svg(&BTreeMap::new()).map_err(Failure::new)?;
        cx.ui.bytes(drawing.as_bytes())?;
        return Ok(Code::SUCCESS);
    }
    if args.pack || args.reference.print_subgraph {
        let (path, fragment) = (&target.0, target.1.as_deref());
        let packed = isles_cwl::pack::pack(&mut loader.documents, path, fragment).map_err(|e| Failure {
            message: told(&loader.documents, &e),
            hint: e.hint,
            ..Failure::default()
        })?;
        let packed = match args.reference.print_subgraph {
            true => isles_cwl::pack::reduced(&packed, &process),
            false => packed,
        };
        cx.ui.bytes(packed.pretty_json().as_bytes())?;
        return Ok(Code::SUCCESS);
    }
    if args.print_deps {
        let base = base_of_deps(args, &target.0);
        let files = draw::dependencies(&loader.documents.sources, base.as_deref());
        cx.ui.bytes(files.pretty_json().as_bytes())?;
        return Ok(Code::SUCCESS);
    }
    if args.reference.print_targets {
        cx.ui.bytes(draw::targets(&process).pretty_json().as_bytes())?;
        return Ok(Code::SUCCESS);
    }
    if args.make_template {
        cx.ui.bytes(job::template(&process).as_bytes())?;
        return Ok(Code::SUCCESS);
    }
    let words = job::words(&process, rest).map_err(Failure::new)?;
    if words.help || args.reference.tool_help {
        let command = format!("isles cwl run {word}");
        cx.ui.bytes(job::help(&process, &command).as_bytes())?;
        return Ok(Code::SUCCESS);
    }
    // What came from standard input cannot be read again.
    if let Some(path) = words.job.as_ref().filter(|path| args.resume.is_none() || *path != "-") {
        order = read_job(&mut loader, path, args.basedir.as_deref())?;
    }
    if args.reference.print_input_deps {
        let written = loader.documents.expanded(&Value::map(order.inputs), process.at);
        let base = base_of_deps(args, words.job.as_deref().map_or(Path::new("."), Path::new));
        cx.ui.bytes(draw::input_dependencies(&written, base.as_deref()).pretty_json().as_bytes())?;
        return Ok(Code::SUCCESS);
    }
    job::fill(&process, &words, &mut order.inputs).map_err(Failure::new)?;
    unknown_inputs(&process, &order.inputs, &ui);
    let mut requirements = |node: &Option<isles_cwl::tree::Node>, required: bool| match node {
        Some(node) => loader.outer_requirements(node, process.version, required),
        None => Vec::new(),
    };
    let asked = (requirements(&order.requirements, true), requirements(&order.hints, false));
    let mut overrides = match (&order.overrides, &words.job) {
        (Some(node), Some(job)) => overridden(&mut loader, node, Path::new(job), process.version),
        _ => Vec::new(),
    };
    if let Some(file) = &args.overrides {
        let read = job::read(&mut loader.documents, file);
        let order = read.map_err(|e| Failure::new(told(&loader.documents, &e)))?;
        let node = order
            .overrides
            .ok_or_else(|| Failure::new(format!("{} holds no `cwl:overrides`", file.display())))?;
        overrides.extend(overridden(&mut loader, &node, file, process.version));
    }
    if !loader.errors.is_empty() {
        return Err(refused(&loader));
    }
    let mut packages = BTreeSet::new();
    software(&process, &mut packages);
    for name in packages {
        ui.note(&format!(
            "`{name}` (SoftwareRequirement) is looked for where the tool runs, and not installed"
        ));
    }
    let (process, unused) = overrides::apply(&process, &overrides, &loader.documents.sources);
    for i in unused {
        let (file, name) = (&overrides[i].document, overrides[i].fragment.as_deref().unwrap_or_default());
        ui.warning(&format!("the override of {}#{name} is for no process of this run", file.display()));
    }
    let written = loader.documents.expanded(&Value::map(order.inputs), process.at);
    let written = match &args.resume {
        Some(id) => inputs_of(cx, id)?,
        None => written,
    };
    let inputs = files::normalized(&written).map_err(|e| Failure::new(format!("the job: {e}")))?;
    let sources = loader.documents.sources.all();
    let texts = sources.iter().map(|source| source.text.as_bytes());
    let parts = args.single_step.iter().chain(&args.single_process);
    let words = args.target.iter().chain(parts).chain([&process.id]).map(|word| word.as_bytes());
    let digest = isles_flow::run::digest(texts.take(loaded_from).chain(words));
    let packed = match &args.provenance {
        Some(_) => {
            let (path, fragment) = (&target.0, target.1.as_deref());
            let packed = isles_cwl::pack::pack(&mut loader.documents, path, fragment);
            Some(packed.map_err(|e| Failure::new(told(&loader.documents, &e)))?)
        }
        None => None,
    };
    run(cx, args, &process, &inputs, &asked, (digest, packed))
}

/// The folder that printed names of files begin in, where they are not whole.
fn base_of_deps(args: &Args, document: &Path) -> Option<PathBuf> {
    let folder = std::env::current_dir().unwrap_or_default();
    match args.reference.relative_deps.as_deref()? {
        "cwd" => Some(folder),
        _ => folder.join(document).parent().map(Path::to_owned),
    }
}

/// Packages that a process requires, in any of its parts.
fn software(process: &Process, names: &mut BTreeSet<String>) {
    let mut of = |list: &[Requirement]| {
        for requirement in list {
            if let Requirement::Software(packages) = requirement {
                names.extend(packages.iter().map(|package| package.name.clone()));
            }
        }
    };
    of(&process.requirements);
    if let Body::Workflow(workflow) = &process.body {
        workflow.steps.iter().for_each(|step| of(&step.requirements));
        workflow.steps.iter().for_each(|step| software(&step.run, names));
    }
}

/// The way to the web: through the same proxies, and with the same trust, as to registries.
fn web(folder: PathBuf, ui: crate::ui::Ui) -> Web {
    /// Of one file.
    const MOST: u64 = 100 << 30;
    let fetch = move |url: &str, path: &Path| {
        let get = || -> Result<(), String> {
            let answer = isles_registry::web::Web::new(&Connection { tls_verify: true }.options())
                .get(url, Wish::default())
                .map_err(|e| e.to_string())?;
            if answer.status != 200 {
                return Err(format!("the server answers {}", answer.status));
            }
            let fail = |e: std::io::Error| e.to_string();
            let mut file = std::fs::File::create(path).map_err(fail)?;
            let copied = std::io::copy(&mut answer.reader().take(MOST + 1), &mut file).map_err(fail)?;
            if copied > MOST {
                return Err(format!("it is longer than {} GiB", MOST >> 30));
            }
            Ok(())
        };
        let got = get().map_err(|e| format!("cannot fetch {url}: {e}"));
        if let Err(e) = &got {
            ui.warning(e);
        }
        got
    };
    Web::new(folder, Box::new(fetch))
}

/// The overrides that stand in a file.
fn overridden(
    loader: &mut Loader,
    node: &isles_cwl::tree::Node,
    file: &Path,
    version: isles_cwl::model::Version,
) -> Vec<Override> {
    let folder =
        std::path::absolute(file).ok().and_then(|file| file.parent().map(Path::to_owned)).unwrap_or_default();
    let mut out = Vec::new();
    for entry in node.as_map().unwrap_or_default() {
        let (document, fragment) = overrides::target(&entry.key, &folder);
        let requirements = match entry.value.get("requirements") {
            Some(node) => loader.outer_requirements(node, version, true),
            None => Vec::new(),
        };
        out.push(Override { document, fragment, requirements });
    }
    out
}

/// The texts of inputs that are to be written down nowhere.
fn secrets(process: &Process, inputs: &Value) -> Vec<String> {
    let named = process.requirements.iter().chain(&process.hints).filter_map(|r| match r {
        Requirement::Secrets(names) => Some(names),
        _ => None,
    });
    named.flatten().filter_map(|name| Some(inputs.get(name)?.as_str()?.to_owned())).collect()
}

/// The inputs that a run began with.
fn inputs_of(cx: &Context, id: &str) -> Result<Value, Failure> {
    let history = isles_flow::history::History::open(&cx.state_dir()?.join("flow"))
        .map_err(|e| Failure::because("cannot go on", &e))?;
    let run = history.find(Some(id)).map_err(|e| Failure::because("cannot go on", &e))?;
    if run.inputs.contains(isles_flow::run::SECRET) {
        return Err(Failure::new(format!(
            "cannot go on with the run {id}: it has secret inputs, which nobody knows any more"
        ))
        .with_hint("start it anew; with --cache, what was done is not done again"));
    }
    isles_cwl::outputs::from_json(&run.inputs).map_err(|e| {
        Failure::new(format!("cannot go on with the run {id}: its inputs are not readable: {e}"))
    })
}

/// Requirements and hints of the job.
type Asked = (Vec<Requirement>, Vec<Requirement>);

fn run(
    cx: &Context,
    args: &Args,
    process: &Arc<Process>,
    inputs: &Value,
    asked: &Asked,
    (digest, packed): (String, Option<Value>),
) -> Result<Code, Failure> {
    let outdir = std::path::absolute(&args.outdir)
        .map_err(|e| Failure::because(format!("cannot use the folder '{}'", args.outdir.display()), &e))?;
    let cache = match (&args.cachedir, args.cache) {
        (Some(folder), _) => Some(Cache::open(folder).map_err(Failure::new)?),
        (None, true) => Some(Cache::open(&cx.state_dir()?.join("cache/steps")).map_err(Failure::new)?),
        (None, false) => None,
    };
    let containers = !args.no_container && (args.default_container.is_some() || names_images(process));
    // Before any thread is made.
    let local: Arc<dyn Executor> = Arc::new(Local::new(cx, containers, args.quiet, args.reference.pull())?);
    let stopped = stop_on_signals()?;
    let ui = cx.ui.quieter(args.quiet);
    let view = Steps::new(ui);
    view.tick();
    isles_flow::guard::start(&["flow", "guard"]);
    let about = About {
        kind: "cwl",
        name: process.id.clone(),
        command: command(),
        outdir: outdir.clone(),
        digest,
        inputs: inputs.spaced_json(),
        graph: draw::graph(process),
        secrets: secrets(process, inputs),
    };
    if args.provenance.is_some() && !about.secrets.is_empty() {
        return Err(Failure::new(
            "the process has secret inputs (cwltool:Secrets), and --provenance would write them down",
        ));
    }
    let here = Limits::of_this_machine();
    let (executor, here): (Arc<dyn Executor>, Limits) = match args.executor.as_str() {
        "slurm" => {
            let slurm = Slurm::start(cx, containers, local)?;
            let limits = slurm.limits();
            (Arc::new(slurm), limits)
        }
        _ => (local, here),
    };
    let run = begin(cx, args, about, &view, &ui)?;
    if args.provenance.is_some() && run.id().is_none() {
        return Err(Failure::new("the provenance of a run is made from its record, and none can be kept")
            .with_hint("name a folder that can be written to with --root or ISLES_ROOT"));
    }
    let kept = args.leave_tmpdir || args.leave_outputs;
    let outs = Outs::new(args.tmp_outdir_prefix.as_deref(), kept, &run)?;
    // All nodes see the state directory, and none the temporary folder of another one.
    let beside = format!("{}/tmp-", outs.path.display());
    let shared = (args.executor == "slurm").then_some(beside.as_str());
    let scratch = Scratch::new(args.tmpdir_prefix.as_deref().or(shared), args.leave_tmpdir)?;
    let retried = |word: &String| match word.as_str() {
        "signal" => vec![FailureKind::Signal],
        "timeout" => vec![FailureKind::TimedOut],
        "any" => {
            vec![FailureKind::Permanent, FailureKind::Temporary, FailureKind::Signal, FailureKind::TimedOut]
        }
        _ => vec![FailureKind::Temporary],
    };
    let settings = Arc::new(Settings {
        scratch: scratch.path.clone(),
        outs: outs.path.clone(),
        executor,
        containers: !args.no_container,
        root_on_disk: args.root_on_disk,
        strict_memory: args.strict_memory_limit,
        strict_cores: args.strict_cpu_limit,
        patience: Duration::try_from_secs_f64(args.eval_timeout).unwrap_or(Duration::from_secs(60)),
        checksums: !args.no_compute_checksum,
        keep: args.leave_tmpdir,
        environment: environment(args),
        default_container: args.default_container.clone(),
        ontologies: if args.reference.skip_schemas { Ontologies::none() } else { Ontologies::default() },
        cache,
        retries: Retries { times: args.retries, on: args.retry_on.iter().flat_map(retried).collect() },
        run,
        next: AtomicU64::new(outs.first),
        spare: Spare::default(),
    });
    let limits = Limits {
        cores: args.max_cores.unwrap_or(here.cores),
        mebibytes: args.max_ram.unwrap_or(here.mebibytes),
        slots: args.max_jobs.unwrap_or(here.slots).max(1),
    };
    let on_error = if args.on_error == "continue" { OnError::Continue } else { OnError::Stop };
    let result = isles_cwl::run::run(process, inputs, &settings, (&asked.0, &asked.1), limits, on_error);
    view.over();
    let signal = stopped.load(Ordering::SeqCst);
    if signal != 0 {
        settings.run.end(State::Stopped, None, Some("it was stopped".into()));
        let hint = outs.left(process, &settings);
        drop(scratch);
        cx.ui.error(&Failure::new("the run was stopped").with_hint(hint.unwrap_or_else(|| {
            if settings.cache.is_some() {
                "what was finished is kept, and the same command goes on there".into()
            } else {
                "with --cache, the same command would go on where it was".into()
            }
        })));
        drop(settings);
        die_of(signal);
        return Ok(Code(1));
    }
    let out = match result {
        Ok(out) => out,
        Err(failure) => {
            settings.run.end(State::Failed, None, Some(failure.message.clone()));
            let code = if failure.kind == FailureKind::Unsupported { UNSUPPORTED } else { 1 };
            let hint = outs.left(process, &settings);
            return Err(Failure { hint, ..Failure::new(failure.message).with_code(code) });
        }
    };
    let taking = match (args.copy_outputs, args.leave_outputs) {
        (true, _) => Taking::Copy,
        (_, true) => Taking::Leave,
        _ => Taking::Move,
    };
    let out = match relocate::outputs(&out, &outdir, &[&outs.path, &scratch.path], taking) {
        Ok(out) => out,
        Err(e) => {
            let message = format!("the outputs are there, and cannot be put into '{}'", outdir.display());
            settings.run.end(State::Failed, None, Some(format!("{message}: {e}")));
            let hint = outs.left(process, &settings).map_or(e.clone(), |hint| format!("{e}\n{hint}"));
            return Err(Failure::new(message).with_hint(hint));
        }
    };
    settings.run.end(State::Done, Some(out.spaced_json()), None);
    if let (Some(folder), Some(packed), Some(id)) = (&args.provenance, &packed, settings.run.id()) {
        let failed = |e: &dyn std::fmt::Display| {
            Failure::new(format!("the run is done, and its provenance cannot be written: {e}"))
        };
        let history = History::open(&cx.state_dir()?.join("flow")).map_err(|e| failed(&e))?;
        let row = history.find(Some(id)).map_err(|e| failed(&e))?;
        let steps = history.steps(&row).map_err(|e| failed(&e))?;
        let version = env!("CARGO_PKG_VERSION");
        let told =
            provenance::Told { process, packed, inputs, outputs: &out, run: &row, steps: &steps, version };
        provenance::write(folder, &told).map_err(|e| failed(&e))?;
    }
    if let Some(path) = &args.reference.write_summary {
        std::fs::write(path, out.pretty_json()).map_err(|e| {
            Failure::because(
                format!("the run is done, and its outputs cannot be written to '{}'", path.display()),
                &e,
            )
        })?;
    }
    cx.ui.bytes(out.pretty_json().as_bytes())?;
    outs.remove();
    Ok(Code::SUCCESS)
}

/// The words of this command, as `isles flow resume` starts it again.
fn command() -> Vec<String> {
    let mut words: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let own = words.first().and_then(|name| crate::cli::personality(Path::new(name)));
    if let Some(command) = own {
        words.splice(0..1, std::iter::once("isles").chain(command.iter().copied()).map(str::to_owned));
    }
    words
}

/// The run, written down where that is possible and wanted.
fn begin(
    cx: &Context,
    args: &Args,
    about: About,
    view: &Arc<Steps>,
    ui: &crate::ui::Ui,
) -> Result<Run, Failure> {
    if args.no_record {
        return Ok(Run::unrecorded(view.clone()));
    }
    let without = |why: &str| {
        ui.warning(&format!("nothing is written down of this run: {why}"));
        Run::unrecorded(view.clone())
    };
    let place = match cx.state_dir() {
        Ok(state) => state.join("flow"),
        Err(e) if args.resume.is_some() => return Err(e),
        Err(e) => return Ok(without(&e.message)),
    };
    if let Some(id) = &args.resume {
        return Run::resume(&place, id, about, view.clone()).map_err(Failure::new);
    }
    let begun = Run::begin(&place, about, view.clone());
    Ok(begun.unwrap_or_else(|e| without(&format!("cannot use {}: {e}", place.display()))))
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
