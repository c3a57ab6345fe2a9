//! `isles cwl run`, also as `cwl-runner`

mod order;
mod perform;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isles_cwl::draw;
use isles_cwl::files;
use isles_cwl::job;
use isles_cwl::load::{Loader, Loading};
use isles_cwl::model::{Body, Process, Requirement, Version};
use isles_cwl::overrides;
use isles_cwl::tree::Node;
use isles_cwl::value::Value;
use isles_cwl::web::is_url;

use self::order::{
    inputs_of, job_with_tool, overridden, read_job, refused, split, told, unknown_inputs, web,
};
use crate::commands::cwl::reference::{Reference, is_process};
use crate::context::Context;
use crate::failure::{Code, Failure};

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
    let document = (target.0.as_path(), target.1.as_deref());
    if let Some(text) = printed(args, &mut loader, &process, document)? {
        cx.ui.bytes(text.as_bytes())?;
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
    let mut requirements = |node: &Option<Node>, required: bool| match node {
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
            let packed = isles_cwl::pack::pack(&mut loader.documents, document.0, document.1);
            Some(packed.map_err(|e| Failure::new(told(&loader.documents, &e)))?)
        }
        None => None,
    };
    perform::perform(cx, args, &process, &inputs, &asked, (digest, packed))
}

/// What is asked for in the place of a run, of the process alone.
fn printed(
    args: &Args,
    loader: &mut Loader,
    process: &Process,
    (path, fragment): (&Path, Option<&str>),
) -> Result<Option<String>, Failure> {
    let text =
        if args.print_dot {
            draw::graph(process).dot()
        } else if args.print_svg {
            draw::graph(process).svg(&BTreeMap::new()).map_err(Failure::new)?
        } else if args.pack || args.reference.print_subgraph {
            let packed = isles_cwl::pack::pack(&mut loader.documents, path, fragment).map_err(|e| {
                Failure { message: told(&loader.documents, &e), hint: e.hint, ..Failure::default() }
            })?;
            match args.reference.print_subgraph {
                true => isles_cwl::pack::reduced(&packed, process).pretty_json(),
                false => packed.pretty_json(),
            }
        } else if args.print_deps {
            let base = base_of_deps(args, path);
            draw::dependencies(&loader.documents.sources, base.as_deref()).pretty_json()
        } else if args.reference.print_targets {
            draw::targets(process).pretty_json()
        } else if args.make_template {
            job::template(process)
        } else {
            return Ok(None);
        };
    Ok(Some(text))
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
