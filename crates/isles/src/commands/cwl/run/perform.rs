//! The run itself: where steps run, what is written down of them, and where outputs go in the end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use isles_cwl::cache::Cache;
use isles_cwl::draw;
use isles_cwl::model::{Process, Requirement};
use isles_cwl::provenance;
use isles_cwl::relocate::{self, Taking};
use isles_cwl::run::{OnError, names_images};
use isles_cwl::tool::{FailureKind, Ontologies, Retries, Settings, Spare};
use isles_cwl::value::Value;
use isles_flow::history::History;
use isles_flow::pool::Limits;
use isles_flow::record::State;
use isles_flow::run::{About, Run};
use isles_flow::step::{Executor, stop_all};
use isles_sandbox::signals::{Signals, die_of};
use rustix::event::{PollFd, PollFlags, poll};

use super::Args;
use crate::commands::cwl::executor::Local;
use crate::commands::cwl::folders::{Outs, Scratch};
use crate::commands::cwl::slurm::Slurm;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::Ui;
use crate::ui::steps::Steps;

/// The exit code of a process that needs what is not supported, by the conformance tests of CWL.
const UNSUPPORTED: u8 = 33;

/// Requirements and hints of the job.
pub(super) type Asked = (Vec<Requirement>, Vec<Requirement>);

pub(super) fn perform(
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

/// The texts of inputs that are to be written down nowhere.
fn secrets(process: &Process, inputs: &Value) -> Vec<String> {
    let named = process.requirements.iter().chain(&process.hints).filter_map(|r| match r {
        Requirement::Secrets(names) => Some(names),
        _ => None,
    });
    named.flatten().filter_map(|name| Some(inputs.get(name)?.as_str()?.to_owned())).collect()
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
fn begin(cx: &Context, args: &Args, about: About, view: &Arc<Steps>, ui: &Ui) -> Result<Run, Failure> {
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
