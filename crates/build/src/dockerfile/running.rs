//! RUN: the words of the instruction as a program to run, with its mounts.

use std::path::{Path, PathBuf};

use isles_spec::{Digest, NetworkMode};

use super::execute::{Origin, Other, Stage, absolute};
use super::history;
use super::instruction::{RunInstruction, Step};
use super::mount::{self, MountType, RunMount, Sharing};
use super::scope;
use super::syntax;
use crate::copy::Owner;
use crate::device::Asked;
use crate::error::Result;
use crate::key::Key;
use crate::options::Entitlement;
use crate::position::{Diagnostic, Spanned};
use crate::run::{RunStep, SCRIPTS, StepMount};
use crate::select::{Selection, Wish, add_to_key, select};

/// A command in errors is cut to this many characters.
const COMMAND: usize = 300;

/// Sockets of agents, where a mount says no other place; a number follows.
const AGENTS: &str = "/run/buildkit/ssh_agent.";

/// A mount with what it takes files from, where that is not the build context.
struct Source {
    mount: RunMount,
    target: Option<PathBuf>,
    word: Spanned,
    other: Option<Other>,
}

impl<'a> Stage<'a, '_> {
    /// Carries out a RUN.
    pub(super) fn run(&mut self, origin: &Origin, step: &Step, run: &RunInstruction) -> Result<()> {
        let build = self.file.build;
        let privileged = run.security.as_ref().filter(|s| s.text == "insecure");
        if let Some(word) = privileged {
            self.demand(origin, word, Entitlement::SecurityInsecure)?;
        }
        // Who gives all steps the host's network has granted it.
        let host = run.network.as_ref().filter(|n| n.text == "host");
        if let Some(word) = host.filter(|_| build.options.network != NetworkMode::Host) {
            self.demand(origin, word, Entitlement::NetworkHost)?;
        }
        let mut devices = Vec::new();
        for word in &run.devices {
            let device: Asked = word.text.parse().map_err(|why: String| origin.source.at(word.span, why))?;
            if !build.options.allow.contains(&Entitlement::Device(None)) {
                self.demand(origin, word, Entitlement::Device(Some(device.name.clone())))?;
            }
            devices.push(device);
        }
        let mut sources = Vec::new();
        for flag in &run.mounts {
            sources.push(self.source(origin, flag)?);
        }
        for (number, agent) in sources.iter_mut().filter(|s| s.mount.kind == MountType::Ssh).enumerate() {
            agent.target.get_or_insert_with(|| format!("{AGENTS}{number}").into());
        }
        let mut mounts = Vec::new();
        for source in &sources {
            mounts.extend(self.mount(origin, source)?);
        }
        let mut env = self.scope.environment(self.env());
        let agent = sources.iter().find(|s| s.mount.kind == MountType::Ssh).and_then(|s| s.target.as_ref());
        if let (Some(socket), None) = (agent, scope::get(&env, "SSH_AUTH_SOCK")) {
            env.push(format!("SSH_AUTH_SOCK={}", socket.display()));
        }
        let (argv, script) = self.command(run);
        let proxies = self.file.globals.proxies();
        let undeclared =
            |p: &&String| p.split_once('=').is_some_and(|(n, _)| self.scope.lookup(self.env(), n).is_none());
        let text = step.node.line.text.trim();
        let program = RunStep {
            env,
            passing_env: proxies.iter().filter(undeclared).cloned().collect(),
            working_dir: self.working_dir(),
            user: self.snapshot.config.config.user.clone(),
            network: match run.network.as_ref().map(|n| n.text.as_str()) {
                Some("none") => NetworkMode::None,
                Some("host") => NetworkMode::Host,
                _ => build.options.network.clone(),
            },
            privileged: privileged.is_some(),
            devices,
            hostname: build.options.build_args.get("BUILDKIT_SANDBOX_HOSTNAME").cloned(),
            mounts,
            script,
            place: format!("{}:{}", origin.source.name(), step.node.line.start_line),
            command: text.chars().take(COMMAND).collect(),
            argv,
        };
        let prefix = self.scope.history_prefix(self.env());
        let title = self.title(step);
        let key = program.key(build, &self.snapshot)?;
        let created_by = history::run(&prefix, &program.argv);
        let step = crate::snapshot::Step { title: &title, key, shortcut: None, created_by };
        build.add(&mut self.snapshot, step, |snapshot, work| program.run(build, snapshot, work))
    }

    /// A right that the recipe asks for must be one that its user grants.
    fn demand(&self, origin: &Origin, word: &Spanned, right: Entitlement) -> Result<()> {
        if self.file.build.options.allow.contains(&right) {
            return Ok(());
        }
        Err(origin
            .source
            .at(word.span, format!("the right {right} is not granted to this build"))
            .with_suggestion(format!("pass --allow {right}, if the recipe is to be trusted with it"))
            .into())
    }

    /// The command line, and the file that it runs where there is one.
    fn command(&self, run: &RunInstruction) -> (Vec<String>, Option<(String, String)>) {
        let [text] = run.command.words.as_slice() else { return (self.argv(&run.command), None) };
        if run.heredocs.is_empty() || !run.command.shell {
            return (self.argv(&run.command), None);
        }
        let mut command = run.command.clone();
        if let [only] = run.heredocs.as_slice()
            && syntax::heredoc(text.trim(), only.body.span).is_some()
        {
            // Nothing but a here-document: the shell gets its text, or it is a script of its own.
            let content = only.content();
            if content.starts_with("#!") {
                let path = Path::new(SCRIPTS).join(&only.name);
                return (vec![path.display().to_string()], Some((only.name.clone(), content)));
            }
            command.words = vec![content];
        } else {
            let mut whole = text.clone();
            for heredoc in &run.heredocs {
                whole.push_str(&format!("\n{}{}", heredoc.body.text, heredoc.name));
            }
            command.words = vec![whole];
        }
        (self.argv(&command), None)
    }

    fn source(&self, origin: &Origin, flag: &Spanned) -> Result<Source> {
        let words = self.file.words(&origin.source, origin.escape);
        let mut expand = |value: &str| -> std::result::Result<String, Diagnostic> {
            words.expand_in(&Spanned::new(value, flag.span), &self.scope, self.env())
        };
        let mount = mount::parse(&origin.source, flag, &mut expand)?;
        let other = match &mount.from {
            Some(from) => Some(self.other(origin, &Spanned::new(from.clone(), flag.span))?),
            None => None,
        };
        let target = mount.target.as_ref().map(|t| absolute(&self.working_dir(), t));
        if target.as_deref() == Some("/") {
            return Err(origin
                .source
                .at(flag.span, "a mount cannot take the place of the whole image")
                .into());
        }
        Ok(Source {
            mount,
            target: target.map(|t| t.trim_end_matches('/').into()),
            word: flag.clone(),
            other,
        })
    }

    /// What a mount comes to; nothing for a secret that is not given and not required.
    fn mount<'t>(&self, origin: &Origin, source: &'t Source) -> Result<Option<StepMount<'t>>>
    where
        'a: 't,
    {
        let Source { mount, target, word, other } = source;
        let tree = other.as_ref().map(Other::tree);
        let target_of = || target.clone().unwrap_or_default();
        let bad = |message: String| origin.source.at(word.span, message);
        let owner = Owner { uid: mount.uid.unwrap_or(0), gid: mount.gid.unwrap_or(0) };
        Ok(Some(match mount.kind {
            MountType::Bind => {
                let context = self.file.context;
                StepMount::Bind {
                    target: target_of(),
                    tree: tree.unwrap_or(&context.tree),
                    digests: other.as_ref().map_or(&context.digests, |o| o.digests(self.file.build)),
                    files: self.files(origin, source)?,
                    read_only: mount.read_only,
                }
            }
            MountType::Cache => StepMount::Cache {
                target: target_of(),
                id: self.cache_id(mount),
                base: self.cache_base(origin, source)?,
                read_only: mount.read_only,
                sharing: mount.sharing.unwrap_or(Sharing::Shared),
                mode: mount.mode.unwrap_or(0o755),
                owner,
                initial: match tree {
                    Some(tree) => Some((tree, self.files(origin, source)?)),
                    None => None,
                },
                part: match (tree, mount.source.as_deref().map(|s| absolute(Path::new("/"), s))) {
                    (None, Some(part)) if part != "/" => Some(part.into()),
                    _ => None,
                },
            },
            MountType::Tmpfs => StepMount::Tmpfs { target: target_of(), size: mount.size },
            MountType::Secret => {
                let name = |p: &PathBuf| p.file_name().map(|n| n.to_string_lossy().into_owned());
                let id = mount.id.clone().or_else(|| mount.source.clone());
                let id = id.or_else(|| target.as_ref().and_then(name)).unwrap_or_default();
                let Some(source) = self.file.build.options.secrets.get(&id) else {
                    if mount.required {
                        return Err(bad(format!("the secret '{id}' is not given"))
                            .with_suggestion(format!("pass --secret id={id},src=FILE"))
                            .into());
                    }
                    return Ok(None);
                };
                let usual = || Path::new("/run/secrets").join(&id);
                StepMount::Secret {
                    // A secret that becomes a variable is no file unless that is asked for too.
                    target: target.clone().or_else(|| mount.env.is_none().then(usual)),
                    variable: mount.env.clone(),
                    source: source.clone(),
                    mode: mount.mode.unwrap_or(0o400),
                    owner,
                }
            }
            MountType::Ssh => {
                let id = mount.id.as_deref().unwrap_or("default");
                let sources = self.file.build.options.ssh.get(id).map(Vec::as_slice);
                if mount.required && sources.is_none() {
                    return Err(bad(format!("the SSH agent '{id}' is not given"))
                        .with_suggestion(format!("pass --ssh {id}, or --ssh {id}=SOCKET"))
                        .into());
                }
                StepMount::Ssh { target: target_of(), sources, mode: mount.mode.unwrap_or(0o600), owner }
            }
        }))
    }

    /// What a cache is known by: its ID, or its place as it is written; with the name space of the caller.
    /// What a cache begins with, and whose it is, where the mount says anything of that.
    fn cache_base(&self, origin: &Origin, source: &Source) -> Result<Option<Digest>> {
        let Source { mount, other, .. } = source;
        let access = [mount.mode, mount.uid, mount.gid];
        if other.is_none() && access.iter().all(Option::is_none) {
            return Ok(None);
        }
        let mut key = Key::new("base of a cache").with("access", format!("{access:?}"));
        if let Some(other) = other {
            add_to_key(&mut key, other.tree(), other.digests(self.file.build), &self.files(origin, source)?)?;
        }
        Ok(Some(key.finish()))
    }

    fn cache_id(&self, mount: &RunMount) -> String {
        let place = mount.target.as_deref().unwrap_or_default();
        let cleaned = absolute(Path::new("/"), place);
        let cleaned = cleaned.trim_end_matches('/');
        let place = if place.starts_with('/') { cleaned } else { cleaned.trim_start_matches('/') };
        let id = mount.id.as_deref().filter(|id| !id.is_empty()).unwrap_or(place);
        match self.file.build.options.build_args.get("BUILDKIT_CACHE_MOUNT_NS") {
            Some(space) => format!("{space}/{id}"),
            None => id.to_owned(),
        }
    }

    fn files(&self, origin: &Origin, source: &Source) -> Result<Vec<Selection>> {
        let path = source.mount.source.as_deref().unwrap_or("/");
        // Of a context what .dockerignore leaves out is not there.
        let context = self.file.context;
        let (tree, ignore) = match &source.other {
            Some(other) => (other.tree(), other.ignore()),
            None => (&context.tree, context.ignore.clone()),
        };
        let wish = Wish { ignore, ..Wish::default() };
        select(tree, path, &wish)?.map_err(|nothing| {
            let error = origin.source.at(source.word.span, nothing.message);
            match nothing.hint {
                Some(hint) => error.with_suggestion(hint),
                None => error,
            }
            .into()
        })
    }
}
