//! Steps of workflows on this machine: as programs of the host, or in containers over images of the store.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use isles_build::{BuildOptions, Remarks};
use isles_engine::{Engine, Exit, StepNames, StepRoot, StepStreams};
use isles_flow::attend;
use isles_flow::step::{Container, Ended, Executor, ImageSource, Outcome, Root, Running, Step, on_host};
use isles_spec::{Mount, MountKind, NetworkMode, Platform, Propagation, PullPolicy, Resources, Source};

use crate::commands::import::archive;
use crate::context::Context;
use crate::failure::Failure;
use crate::registry::Connection;
use crate::source::{Acquired, Wishes, acquire};

/// This machine.
pub struct Local {
    containers: Option<Containers>,
}

struct Containers {
    cx: Context,
    engine: Engine,
    pull: PullPolicy,
    /// One at a time, so that an image that a thousand steps name is fetched once.
    known: Mutex<HashMap<ImageSource, Result<String, String>>>,
    ready: Mutex<HashMap<String, Arc<Ready>>>,
}

/// An image of which containers can be made.
struct Ready {
    acquired: Acquired,
    layers: Vec<PathBuf>,
}

impl Local {
    /// With containers the engine is opened, which must be before any thread is made.
    pub fn new(cx: &Context, containers: bool, quiet: bool, pull: PullPolicy) -> Result<Local, Failure> {
        let containers = if containers {
            let cx = Context::new(cx.ui.quieter(quiet), cx.root.clone());
            let engine = cx.engine()?;
            Some(Containers { cx, engine, pull, known: Mutex::default(), ready: Mutex::default() })
        } else {
            None
        };
        Ok(Local { containers })
    }
}

impl Executor for Local {
    fn image(&self, source: &ImageSource) -> Result<String, String> {
        let Some(containers) = &self.containers else {
            return Err("containers are not used in this run".into());
        };
        let mut known = containers.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = known.get(source) {
            return answer.clone();
        }
        let answer = containers.acquire(source);
        known.insert(source.clone(), answer.clone());
        answer
    }

    fn run(&self, step: Step, talk: &mut dyn FnMut(&[u8])) -> Result<Outcome, String> {
        match (&step.root, &self.containers) {
            (Root::Host, _) => on_host(step, talk),
            (Root::Image(_), Some(containers)) => containers.run(step, talk),
            (Root::Image(_), None) => Err("containers are not used in this run".into()),
        }
    }
}

impl Containers {
    fn acquire(&self, source: &ImageSource) -> Result<String, String> {
        let said = |failure: Failure| {
            let mut text = failure.message;
            for cause in failure.causes {
                text.push_str(&format!(": {cause}"));
            }
            match failure.hint {
                Some(hint) => format!("{text} ({hint})"),
                None => text,
            }
        };
        let wishes = Wishes {
            platform: None,
            pull: self.pull,
            connection: Connection { tls_verify: true },
            build: BuildOptions::default(),
        };
        let mut folder = None;
        if let ImageSource::Import(address) = source {
            let mut input = archive(address, &wishes.connection).map_err(said)?;
            let platform = Platform::host();
            let image =
                isles_build::import(&self.engine, &mut input, address, &platform, &Remarks::default())
                    .map_err(|e| said(crate::commands::build::failure(&e)))?;
            return self.keep(Acquired::of(image, address));
        }
        let source: Source = match source {
            ImageSource::Import(_) => return Err("an archive is imported, and not acquired".into()),
            ImageSource::Name(name) => {
                let name = name.strip_prefix("docker://").unwrap_or(name);
                Source::Name(name.parse().map_err(|e: isles_spec::Error| e.to_string())?)
            }
            ImageSource::File(path) => Source::DockerArchive { path: path.clone(), name: None },
            ImageSource::Dockerfile(text) => {
                let place = crate::address::Scratch::new(self.engine.store()).map_err(said)?;
                let path = place.join("Dockerfile");
                std::fs::write(&path, text).map_err(|e| format!("cannot write the Dockerfile: {e}"))?;
                folder = Some(place);
                Source::Recipe(path)
            }
        };
        let acquired = acquire(&self.cx, &self.engine, &source, &wishes).map_err(said)?;
        drop(folder);
        self.keep(acquired)
    }

    /// Makes an image ready, and gives its ID.
    fn keep(&self, acquired: Acquired) -> Result<String, String> {
        let layers = self.engine.store().layers_of(&acquired.image).map_err(|e| e.to_string())?;
        let id = acquired.image.id().to_string();
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.insert(id.clone(), Arc::new(Ready { acquired, layers }));
        Ok(id)
    }

    fn run(&self, step: Step, talk: &mut dyn FnMut(&[u8])) -> Result<Outcome, String> {
        let Root::Image(container) = &step.root else { return Err("no image is named".into()) };
        let ready = {
            let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
            ready
                .get(&container.image)
                .cloned()
                .ok_or_else(|| format!("the image {} is not ready", container.image))?
        };
        let config = &ready.acquired.image.config.config;
        let made = |path: PathBuf| {
            std::fs::create_dir_all(&path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
            Ok::<_, String>(path)
        };
        let (names, place) = (container.shared.join("names"), container.shared.join("root"));
        if !place.exists() {
            made(names.clone())?;
            made(place.clone())?;
        }
        let disk = match &container.scratch {
            Some(scratch) => Some((made(scratch.join("upper"))?, made(scratch.join("work"))?)),
            None => None,
        };
        let mut argv = config.entrypoint.clone().unwrap_or_default();
        argv.extend(step.argv.iter().cloned());
        let mut env = config.env.clone();
        for (name, value) in &step.env {
            let prefix = format!("{name}=");
            env.retain(|entry| !entry.starts_with(&prefix));
            env.push(format!("{name}={value}"));
        }
        let root = match &disk {
            Some((upper, work)) => StepRoot::Layers { lowers: &ready.layers, upper, work },
            None => StepRoot::Memory { lowers: &ready.layers, place: &place, size: None },
        };
        let resources = Resources {
            memory: container.bounds.memory,
            // Without swap, or the bound would be none.
            memory_swap: container.bounds.memory.map(u64::cast_signed),
            nano_cpus: container.bounds.cores.map(|cores| (cores * 1e9) as u64),
            ..Resources::default()
        };
        let plan = isles_engine::Step {
            env,
            working_dir: step.folder.clone(),
            mounts: mounts(container),
            network: if container.network { NetworkMode::Default } else { NetworkMode::None },
            names: Some(StepNames { folder: &names, extra: &[] }),
            resources,
            shm_size: container.bounds.shm,
            ..isles_engine::Step::new(root, argv)
        };
        let (streams, heard) = streams(step.stdin, step.stdout, step.stderr)
            .map_err(|e| format!("cannot open a stream: {e}"))?;
        let mut heard = heard;
        let mut attend = |pid: i32, process: BorrowedFd<'_>| {
            let _running = Running::container(pid);
            attend::attend(process, heard.take(), step.limit, talk)
        };
        let (ended, usage) = self.engine.run_step_on(&plan, streams, &mut attend).map_err(|e| {
            let mut text = e.to_string();
            for cause in isles_spec::causes(&text.clone(), std::error::Error::source(&e)) {
                text.push_str(&format!(": {cause}"));
            }
            text
        })?;
        let ended = match ended {
            None => Ended::TimedOut,
            Some(Exit::Code(code)) => Ended::Code(code.into()),
            Some(Exit::Signal(signal)) => Ended::Signal(signal.into()),
        };
        Ok(Outcome { ended, usage })
    }
}

/// Bytes of memory for the places of staged files, which are empty.
const STAGED: u64 = 4 << 20;

fn mounts(container: &Container) -> Vec<Mount> {
    let bind = |mount: &isles_flow::step::Mount| Mount {
        destination: mount.target.clone(),
        kind: MountKind::Bind {
            source: mount.source.clone(),
            recursive: true,
            create_source: false,
            propagation: Propagation::Private,
            recursive_read_only: false,
            owners: Default::default(),
        },
        read_only: !mount.writable,
        optional: false,
    };
    let mut mounts = Vec::with_capacity(container.mounts.len() + 1);
    if container.mounts.iter().any(|mount| mount.target.starts_with(&container.staged)) {
        // Their names differ from step to step, and the root that they would be made in is to stay the same.
        mounts.push(Mount {
            destination: container.staged.clone(),
            kind: MountKind::Tmpfs { size: Some(STAGED), mode: Some(0o755), options: Vec::new() },
            read_only: false,
            optional: false,
        });
    }
    mounts.extend(container.mounts.iter().map(bind));
    mounts
}

/// Streams that are not given: nothing to read, and a pipe, whose other end is there then.
fn streams(
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
) -> std::io::Result<(StepStreams, Option<OwnedFd>)> {
    let stdin = match stdin {
        Some(file) => file.into(),
        None => File::open("/dev/null")?.into(),
    };
    let (stdout, stderr) = (stdout.map(OwnedFd::from), stderr.map(OwnedFd::from));
    Ok(match (stdout, stderr) {
        (Some(stdout), Some(stderr)) => (StepStreams { stdin, stdout, stderr }, None),
        (stdout, stderr) => {
            let (heard, said) = attend::pipe()?;
            let or_said = |stream: Option<OwnedFd>| stream.map_or_else(|| said.try_clone(), Ok);
            (StepStreams { stdin, stdout: or_said(stdout)?, stderr: or_said(stderr)? }, Some(heard))
        }
    })
}
