//! One run of a CommandLineTool: inputs in place, the command, its outputs.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use isles_flow::pool::{Hold, Need};
use isles_flow::run::{Doing, Run, digest};
use isles_flow::step::{Bounds, Container, Ended, Executor, ImageSource, Mount, Root, Step};

use crate::cache::{Cache, Key};
use crate::command::{self, Building};
use crate::expression::{Scope, Text};
use crate::files::{self, Ontology};
use crate::inputs;
use crate::model::{Docker, Process, Tool};
use crate::needs::{Allotted, Needs};
use crate::outputs::{self, Collecting};
use crate::stage::{self, Content, Plan, Views};
use crate::value::Value;
use crate::work_dir::WorkDir;

/// Where inputs are in a container.
const INPUTS_INSIDE: &str = "/var/lib/cwl";
/// Where a tool's outputs are in a container, unless its image says so.
const OUTDIR_INSIDE: &str = "/var/spool/cwl";

/// Why a process gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    /// Lines for the user.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    Permanent,
    /// It may work when it is tried again: an exit code of `temporaryFailCodes`.
    Temporary,
    /// A signal ended it.
    Signal,
    /// It took longer than it may.
    TimedOut,
    /// It needs something that is not supported here (exit code 33).
    Unsupported,
}

impl Failure {
    pub fn permanent(message: impl Into<String>) -> Failure {
        Failure { kind: FailureKind::Permanent, message: message.into() }
    }

    pub fn unsupported(message: impl Into<String>) -> Failure {
        Failure { kind: FailureKind::Unsupported, message: message.into() }
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure::permanent(message)
    }
}

/// What holds for all tools of a run.
pub struct Settings {
    /// Folders that tools need while they run are made here, at a short path: sockets have names of 107 bytes at most.
    pub scratch: PathBuf,
    /// Output folders of tools are made here.
    pub outs: PathBuf,
    pub executor: Arc<dyn Executor>,
    /// Tools that name an image run in it.
    pub containers: bool,
    /// What a tool writes in its container elsewhere than in its folders is on disk, and not in memory.
    pub root_on_disk: bool,
    /// A container has no more memory, or processors, than the tool asked for.
    pub strict_memory: bool,
    pub strict_cores: bool,
    /// How long an expression may take.
    pub patience: Duration,
    pub checksums: bool,
    /// Folders of inputs and temporary files stay.
    pub keep: bool,
    /// Variables of the caller that tools of the host get.
    pub environment: Vec<(String, String)>,
    /// Where a tool runs that names no image.
    pub default_container: Option<String>,
    pub ontologies: Ontologies,
    /// Tools that ran before with the same are not run again.
    pub cache: Option<Cache>,
    pub retries: Retries,
    /// The run that all of it belongs to.
    pub run: Run,
    pub next: AtomicU64,
    pub spare: Spare,
}

/// Which failures are tried again.
#[derive(Debug, Clone, Default)]
pub struct Retries {
    pub times: u32,
    pub on: Vec<FailureKind>,
}

/// Temporary folders with nothing in them. A file system that has just removed many folders takes long to
/// make others (ext4 looks for one that was not removed lately), so these are given again.
#[derive(Default)]
pub struct Spare(Mutex<Vec<PathBuf>>);

impl Spare {
    fn take(&self) -> Option<PathBuf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps a folder if there is nothing in it; says whether it does.
    fn keep(&self, path: &Path) -> bool {
        let plain =
            path.symlink_metadata().is_ok_and(|m| m.is_dir() && m.permissions().mode() & 0o777 == 0o700);
        let empty = plain && std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
        if empty {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
        }
        empty
    }
}

/// Ontologies, each list of files read once.
#[derive(Default)]
pub struct Ontologies {
    known: Mutex<HashMap<Vec<PathBuf>, Arc<Ontology>>>,
    ignored: bool,
}

impl Ontologies {
    /// As if no process named any.
    pub fn none() -> Ontologies {
        Ontologies { ignored: true, ..Ontologies::default() }
    }

    pub fn of(&self, process: &Process) -> Arc<Ontology> {
        let schemas = if self.ignored { Vec::new() } else { process.schemas.clone() };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |schemas: &Vec<PathBuf>| Arc::new(crate::ontology::read(schemas));
        known.entry(schemas).or_insert_with_key(read).clone()
    }
}

/// A tool with its inputs.
pub struct Job<'a> {
    pub process: &'a Process,
    pub tool: &'a Tool,
    /// Complete.
    pub inputs: &'a Value,
    pub needs: &'a Needs,
    pub settings: &'a Settings,
    /// Inputs come from the user, so secondary files are looked for.
    pub discover: bool,
    pub allotted: Allotted,
    pub doing: &'a Doing<'a>,
    /// What it holds of the machine.
    pub hold: &'a Hold<'a>,
}

/// Folders of one run of a tool, on the host and inside.
struct Folders {
    out: PathBuf,
    tmp: PathBuf,
    /// Made where there is something in it.
    inputs: PathBuf,
    /// What a container writes elsewhere.
    root: PathBuf,
    /// As the tool sees them.
    out_inside: PathBuf,
    tmp_inside: PathBuf,
    inputs_inside: PathBuf,
}

/// Runs a tool, and gives its output object.
pub fn run(job: &Job<'_>) -> Result<Value, Failure> {
    let settings = job.settings;
    if let Some(object) = earlier(job) {
        return Ok(object);
    }
    let image = image(job)?;
    let null = Value::Null;
    let scope = Scope { inputs: job.inputs, this: &null, runtime: &null, js: job.needs.js() };
    // One that changes its inputs cannot be left out, nor what follows it.
    let cache = settings.cache.as_ref().filter(|_| !job.needs.in_place());
    let begun = match cache {
        Some(cache) if job.needs.reuse(scope)? => Some((cache, cache.begin()?)),
        _ => None,
    };
    let begun = begun.as_ref().map(|(cache, path)| (*cache, path.as_path()));
    let folders = folders(job, image.as_ref(), begun.map(|(_, path)| path))?;
    let result = run_in(job, image.as_ref(), &folders, begun);
    if !settings.keep {
        if !settings.spare.keep(&folders.tmp) {
            let _ = remove(&folders.tmp);
        }
        for folder in [&folders.inputs, &folders.root] {
            let _ = remove(folder);
        }
        if result.is_err() {
            let _ = remove(&folders.out);
        }
        if let Some((_, path)) = begun {
            let _ = remove(path);
        }
    }
    result
}

/// What this step gave when it was done earlier in this run. Where there is no record, nothing is known, and nothing made for
/// it.
fn earlier(job: &Job<'_>) -> Option<Value> {
    let run = job.doing.run();
    run.id()?;
    let inputs = job.inputs.spaced_json();
    // One that changes its inputs is not known again by them.
    let key = if job.needs.in_place() { String::new() } else { key_of(job, &inputs) };
    let known = run.earlier(&job.doing.name(), &key).filter(|_| !key.is_empty());
    let object = known.and_then(|text| outputs::from_json(text).ok()).filter(outputs::whole);
    job.doing.made_of(inputs, key);
    if object.is_some() {
        job.doing.reused();
    }
    object
}

/// What a step of a run is known again by: the process, its inputs, and what their files are at this moment.
fn key_of(job: &Job<'_>, inputs: &str) -> String {
    let mut files = String::new();
    files::each(job.inputs, &mut |object| {
        let Some(meta) = files::local_path(object).and_then(|path| path.metadata().ok()) else { return };
        let _ = writeln!(files, "{} {} {}", meta.len(), meta.mtime(), meta.mtime_nsec());
    });
    digest([job.process.id.as_bytes(), inputs.as_bytes(), files.as_bytes()])
}

/// The image that the tool runs in, ready; none for the host.
fn image(job: &Job<'_>) -> Result<Option<(String, Docker)>, Failure> {
    let settings = job.settings;
    let found = job.needs.docker();
    if !settings.containers {
        return match found {
            Some((_, true)) => Err(Failure::unsupported(format!(
                "{} requires a container (DockerRequirement), and --no-container was given",
                job.process.id
            ))),
            _ => Ok(None),
        };
    }
    let docker = match (found, &settings.default_container) {
        (Some((docker, _)), _) => docker,
        (None, Some(name)) => Docker { pull: Some(name.clone()), ..Docker::default() },
        (None, None) => return Ok(None),
    };
    let source = match &docker {
        Docker { file: Some((text, _)), .. } => ImageSource::Dockerfile(text.clone()),
        Docker { load: Some(path), .. } => ImageSource::File(path.clone()),
        Docker { import: Some(address), .. } => ImageSource::Import(address.clone()),
        Docker { pull: Some(name), .. } | Docker { image_id: Some(name), .. } => {
            ImageSource::Name(name.clone())
        }
        _ => return Err(Failure::permanent(format!("{}: DockerRequirement names no image", job.process.id))),
    };
    let ready = settings
        .executor
        .image(&source)
        .map_err(|e| Failure::permanent(format!("{}: {e}", job.process.id)))?;
    Ok(Some((ready, docker)))
}

fn folders(
    job: &Job<'_>,
    image: Option<&(String, Docker)>,
    begun: Option<&Path>,
) -> Result<Folders, Failure> {
    let number = job.settings.next.fetch_add(1, Ordering::Relaxed);
    let [tmp, inputs, root] =
        ["tmp", "in", "root"].map(|what| job.settings.scratch.join(format!("{number}.{what}")));
    let out = job.settings.outs.join(format!("{number}.out"));
    let fail =
        |e: std::io::Error| Failure::permanent(format!("cannot make the folder {}: {e}", out.display()));
    let out = begun.map_or(out.clone(), |begun| begun.join("out"));
    std::fs::create_dir(&out).map_err(fail)?;
    let tmp = match job.settings.spare.take() {
        Some(tmp) => tmp,
        None => {
            std::fs::DirBuilder::new().mode(0o700).create(&tmp).map_err(fail)?;
            tmp
        }
    };
    let (out_inside, tmp_inside, inputs_inside) = match image {
        None => (out.clone(), tmp.clone(), inputs.clone()),
        Some((_, docker)) => {
            let out = docker.output_directory.as_deref().unwrap_or(OUTDIR_INSIDE);
            if !out.starts_with('/') {
                return Err(Failure::permanent(format!(
                    "`dockerOutputDirectory` is {out:?}, and must begin with `/`"
                )));
            }
            (out.into(), "/tmp".into(), INPUTS_INSIDE.into())
        }
    };
    Ok(Folders { inputs, root, out, tmp, out_inside, tmp_inside, inputs_inside })
}

fn run_in(
    job: &Job<'_>,
    image: Option<&(String, Docker)>,
    folders: &Folders,
    begun: Option<(&Cache, &Path)>,
) -> Result<Value, Failure> {
    let (process, needs, settings) = (job.process, job.needs, job.settings);
    let text = |path: &Path| path.to_str().unwrap_or_default().to_owned();
    let runtime = job.allotted.runtime(&text(&folders.out_inside), &text(&folders.tmp_inside));
    let ontology = settings.ontologies.of(process);
    let prepared = inputs::prepare(process, job.inputs, needs, job.discover, &ontology, &runtime)?;
    let mut plan = Plan::new(&folders.inputs_inside);
    let mut inputs = plan.inputs(&prepared)?;
    let null = Value::Null;
    if let Some(dir) = needs.initial_work_dir() {
        let scope = Scope { inputs: &inputs, this: &null, runtime: &runtime, js: needs.js() };
        let required = image.is_some() && needs.docker().is_some_and(|(_, required)| required);
        let outdir = &folders.out_inside;
        let working = WorkDir { outdir, required, in_place: needs.in_place() };
        working.fill(dir, scope, &mut plan)?;
        inputs = plan.renamed(&inputs)?;
    }
    let scope = Scope { inputs: &inputs, this: &null, runtime: &runtime, js: needs.js() };
    let building = Building { inputs: &inputs, runtime: &runtime, js: needs.js(), shell: needs.shell() };
    let mut argv = command::line(process, job.tool, building).map_err(|e| e.to_string())?;
    if let Some(processes) = needs.processes(scope)? {
        let mut with = vec!["mpirun".to_owned(), "-n".into(), processes.to_string()];
        with.append(&mut argv);
        argv = with;
    }
    let mut env = vec![
        ("HOME".to_owned(), text(&folders.out_inside)),
        ("TMPDIR".to_owned(), text(&folders.tmp_inside)),
    ];
    if image.is_none() {
        env.extend(settings.environment.iter().cloned());
    }
    for (name, value) in needs.environment(scope)? {
        env.retain(|(known, _)| *known != name);
        env.push((name, value));
    }
    let limit = needs.time_limit(scope)?;
    let network = needs.network(scope)?;

    let stream = |text: &Option<Text>, what: &str| -> Result<Option<String>, String> {
        let Some(text) = text else { return Ok(None) };
        match text.eval(scope).map_err(|e| e.to_string())? {
            Value::String(name) => Ok(Some(name.to_string())),
            Value::Null => Ok(None),
            other => Err(format!("`{what}` gives {}, and must give a string", other.kind_name())),
        }
    };
    let in_name = stream(&job.tool.stdin, "stdin")?;
    let (out_name, err_name) = (stream(&job.tool.stdout, "stdout")?, stream(&job.tool.stderr, "stderr")?);
    let mut known = None;
    if let Some((cache, path)) = begun {
        let mut key = Key::new(vec![
            (text(&folders.out_inside), "OUT"),
            (text(&folders.tmp_inside), "TMP"),
            (text(&folders.inputs_inside), "IN"),
        ]);
        key.add("image", image.map_or("", |(id, _)| id));
        argv.iter().for_each(|word| key.add("word", word));
        env.iter().for_each(|(name, value)| key.add(name, value));
        key.add("streams", &format!("{in_name:?} {out_name:?} {err_name:?}"));
        key.add("network", &network.to_string());
        key.add("version", &process.version.to_string());
        key.add("codes", &format!("{:?} {}", job.tool.success_codes, settings.checksums));
        key.value("runtime", &runtime);
        key.value("inputs", &inputs);
        needs.js().iter().flat_map(|js| js.scripts.iter()).for_each(|script| key.add("script", script));
        key.outputs(&process.outputs);
        key.plan(cache, &plan)?;
        let key = key.finish();
        if let Some(object) = cache.find(&key) {
            job.doing.reused();
            return Ok(object);
        }
        known = Some((cache, path, key));
    }
    let (mut views, mounts) = make(&plan, image.is_some(), folders)?;
    views.add(&folders.out_inside, &folders.out);
    let stdin = match in_name {
        Some(path) => {
            let host = views.follow(&folders.out_inside.join(&path))?;
            Some(File::open(&host).map_err(|e| format!("cannot read {path} for stdin: {e}"))?)
        }
        None => None,
    };
    let create = |name: &Option<String>, what: &str| -> Result<Option<File>, String> {
        let Some(name) = name else { return Ok(None) };
        let path = output_file(&folders.out, name).map_err(|e| format!("`{what}` is {name:?}: {e}"))?;
        // Never through a link to an input.
        let made = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path);
        let file = made.map_err(|e| format!("cannot write {name} for {what}: {e}"))?;
        Ok(Some(file))
    };
    let stdout = create(&out_name, "stdout")?;
    let stderr = if err_name.is_some() && err_name == out_name {
        stdout.as_ref().and_then(|f| f.try_clone().ok())
    } else {
        create(&err_name, "stderr")?
    };
    let root = match image {
        None => Root::Host,
        Some((image, _)) => {
            let bounds = Bounds {
                memory: settings.strict_memory.then_some(job.allotted.ram.max(0) as u64).map(|mib| mib << 20),
                cores: settings.strict_cores.then_some(job.allotted.cores),
                shm: job.needs.shm_size(),
            };
            let scratch = settings.root_on_disk.then(|| folders.root.clone());
            let shared = settings.scratch.join("shared");
            let (image, staged) = (image.clone(), folders.inputs_inside.clone());
            Root::Image(Container { image, mounts, staged, network, shared, scratch, bounds })
        }
    };
    let need = Need { cores: job.allotted.cores, mebibytes: job.allotted.ram.max(0) as u64 };
    let step =
        Step { root, argv, env, folder: folders.out_inside.clone(), stdin, stdout, stderr, limit, need };
    job.doing.starts(&step.argv, image.map(|(id, docker)| docker.pull.as_deref().unwrap_or(id)));
    let outcome = settings.executor.run(step, &mut |bytes| job.doing.talks(bytes))?;
    job.doing.went(outcome);
    let code = match outcome.ended {
        Ended::Code(code) => i64::from(code),
        Ended::Signal(signal) => {
            let message = format!("it was ended by signal {signal}");
            return Err(Failure { kind: FailureKind::Signal, message });
        }
        Ended::Lost => {
            let message = "the machine that ran it is not heard of any more".into();
            return Err(Failure { kind: FailureKind::Temporary, message });
        }
        Ended::TimedOut => {
            let seconds = limit.unwrap_or_default().as_secs_f64();
            let message = format!("it took more than its {seconds} seconds, and was ended");
            return Err(Failure { kind: FailureKind::TimedOut, message });
        }
    };
    judge(job.tool, code)?;
    // What is left is to look at the outputs, unless that fails and all of it is done again.
    if !settings.retries.on.contains(&FailureKind::Permanent) {
        job.hold.release();
    }
    if image.is_some() {
        unmounted(&plan, folders)?;
    }
    let mut with_code = runtime.as_map().cloned().unwrap_or_default();
    with_code.insert("exitCode", Value::Int(code));
    let runtime = Value::map(with_code);
    let collecting = Collecting {
        inputs: &inputs,
        runtime: &runtime,
        js: needs.js(),
        version: process.version,
        views: &views,
        outdir: &folders.out,
        outdir_inside: &folders.out_inside,
        default_listing: needs.listing(),
        checksums: settings.checksums,
    };
    let object = collecting.collect(process)?;
    match known {
        Some((cache, path, key)) => Ok(cache.keep(&key, path, &object)?),
        None => Ok(object),
    }
}

/// What an exit code means.
fn judge(tool: &Tool, code: i64) -> Result<(), Failure> {
    if tool.success_codes.contains(&code) {
        return Ok(());
    }
    if tool.temporary_fail_codes.contains(&code) {
        return Err(Failure {
            kind: FailureKind::Temporary,
            message: format!("it ended with {code}, a temporary failure"),
        });
    }
    if code == 0 && !tool.permanent_fail_codes.contains(&0) {
        return Ok(());
    }
    Err(Failure::permanent(format!("it ended with exit code {code}")))
}

/// A file of the output folder by its relative name.
fn output_file(out: &Path, name: &str) -> Result<PathBuf, String> {
    let path = Path::new(name);
    let within = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !within || name.is_empty() {
        return Err("it must be a name in the output folder".into());
    }
    let full = out.join(path);
    if let Some(folder) = full.parent().filter(|folder| *folder != out) {
        std::fs::create_dir_all(folder).map_err(|e| format!("cannot make its folder: {e}"))?;
    }
    Ok(full)
}

/// Puts everything in its place: on the host as links, copies and texts; for a container what is shared is mounted.
fn make(plan: &Plan, container: bool, folders: &Folders) -> Result<(Views, Vec<Mount>), String> {
    let mut views = Views::default();
    let mut mounts = Vec::new();
    if container {
        mounts.push(Mount {
            source: folders.out.clone(),
            target: folders.out_inside.clone(),
            writable: true,
        });
        mounts.push(Mount {
            source: folders.tmp.clone(),
            target: folders.tmp_inside.clone(),
            writable: true,
        });
    }
    for item in &plan.items {
        let below = item.inside.strip_prefix(&folders.out_inside).ok();
        let host = match below {
            Some(rest) => folders.out.join(rest),
            None if !container => item.inside.clone(),
            // Texts and copies that are not in the output folder get a place beside it.
            None => folders.inputs.join(item.inside.strip_prefix("/").unwrap_or(&item.inside)),
        };
        match &item.content {
            Content::Shared(source) | Content::Own(source) => {
                views.add(&item.inside, source);
                if container {
                    let writable = matches!(item.content, Content::Own(_));
                    placeholder(&mounts, &item.inside, source)?;
                    mounts.push(Mount { source: source.clone(), target: item.inside.clone(), writable });
                } else {
                    // A tool of the host may come by the place itself, as when it copies the link.
                    views.add(source, source);
                    stage::make(&host, &item.content)?;
                }
            }
            content => {
                stage::make(&host, content)?;
                if container && below.is_none() {
                    views.add(&item.inside, &host);
                    let under_another = mounts
                        .iter()
                        .any(|m| item.inside.starts_with(&m.target) && m.source.starts_with(&folders.inputs));
                    if !under_another {
                        mounts.push(Mount { source: host, target: item.inside.clone(), writable: false });
                    }
                } else if below.is_none() {
                    views.add(&item.inside, &host);
                }
            }
        }
    }
    Ok((views, mounts))
}

/// Something to mount upon, where the place lies in what another mount shows of this run's own.
fn placeholder(mounts: &[Mount], inside: &Path, source: &Path) -> Result<(), String> {
    let around =
        mounts.iter().filter(|m| inside.starts_with(&m.target)).max_by_key(|m| m.target.components().count());
    let Some(mount) = around else { return Ok(()) };
    let Ok(rest) = inside.strip_prefix(&mount.target) else { return Ok(()) };
    let host = mount.source.join(rest);
    if host.symlink_metadata().is_ok() {
        return Ok(());
    }
    let content = if source.is_dir() { Content::Folder } else { Content::Text(String::new()) };
    stage::make(&host, &content)
}

/// Places in the output folder that were mounts are empty files and folders now; they become links to what was there.
fn unmounted(plan: &Plan, folders: &Folders) -> Result<(), String> {
    for item in &plan.items {
        let (Content::Shared(source) | Content::Own(source), Ok(rest)) =
            (&item.content, item.inside.strip_prefix(&folders.out_inside))
        else {
            continue;
        };
        let host = folders.out.join(rest);
        let Ok(kind) = host.symlink_metadata() else { continue };
        let gone = if kind.is_dir() { std::fs::remove_dir(&host) } else { std::fs::remove_file(&host) };
        gone.map_err(|e| format!("cannot remove {}: {e}", host.display()))?;
        std::os::unix::fs::symlink(source, &host)
            .map_err(|e| format!("cannot make {}: {e}", host.display()))?;
    }
    Ok(())
}

/// Removes a folder with all in it, even where a tool took its own right to do so.
pub fn remove(path: &Path) -> std::io::Result<()> {
    // Most are empty, or were never made.
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
        Ok(()) => return Ok(()),
    }
    isles_flow::history::remove(path)
}
