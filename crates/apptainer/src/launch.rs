//! From a command line to a running container: what `exec`, `run`, `shell`, `test` and instances have in common.
//!
//! The order is that of the text: who calls and from where, which image, what is shown of the host, which variables,
//! and how the program is started. Everything ends in one [`Workload`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use isles_engine::{Engine, Error, Foreground};
use isles_spec::{
    CapabilityBase, Dns, Mount, MountKind, NamespaceMode, NetworkMode, RunAs, Security, SystemFiles,
    SystemMount, UserNamespace, Workload, Writable,
};

use crate::action_flags as flags;
use crate::caller::Caller;
use crate::command::Context;
use crate::commands::capability::CAPABILITIES;
use crate::contents::Contents;
use crate::environment::{self, Environment, Wishes};
use crate::failure::Failure;
use crate::gpu::{self, cdi, elf};
use crate::identity_files;
use crate::image::{self, Image, Named};
use crate::known_scripts;
use crate::mounts::{self, Shown};
use crate::place::Place;
use crate::ranks::Rank;
use crate::script::{self, Action};
use crate::settings::Settings;
use crate::site::Site;
use crate::talk::Level;
use crate::{limits, overlays};

const SHELL: &str = "/bin/sh";
/// What `--boot` starts.
const INIT: &str = "/sbin/init";

/// Whether a program is started by the image's shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shell {
    WhereNeeded,
    Always,
}

/// Everything that is known about a run before it starts.
pub struct Launch<'a> {
    pub cx: &'a Context<'a>,
    pub action: Action,
    /// What follows the image.
    pub arguments: &'a [String],
    pub settings: Settings,
    pub caller: Caller,
    pub place: Place,
    /// The name of the instance that is started.
    pub instance: Option<&'a str>,
}

impl<'a> Launch<'a> {
    /// Reads the flags, and finds out who calls and where.
    pub fn new(cx: &'a Context<'a>, action: Action, arguments: &'a [String]) -> Result<Launch<'a>, Failure> {
        let caller = Caller::find();
        let settings = Settings::read(cx.values, caller.uid == 0, &cx.talk)?;
        let settings = settings.of_site(Site::load(cx.config)?, &cx.talk);
        let place = Place::find(cx, &settings, &caller)?;
        Ok(Launch { cx, action, arguments, settings, caller, place, instance: None })
    }

    /// Runs the image that `name` means, and stays until the program ends.
    pub fn run(&self, name: &str) -> Result<u8, Failure> {
        if let Named::Instance(instance) = Named::parse(name) {
            return crate::instance::join(self, instance);
        }
        if self.cx.values.is(&flags::SHARENS) {
            return crate::share::run(self, name);
        }
        let engine = self.engine()?;
        let image = image::acquire(self.cx, &engine, name)?;
        let contents = Contents::open(&engine, &image)?;
        let workload = self.workload_of(&image, &contents, Shell::WhereNeeded)?;
        // After the image is there: whoever comes first keeps the others waiting until its program runs.
        let rank = Rank::arrive(self, &engine);
        let foreground = Foreground {
            image: image.store_image.as_ref(),
            file: image.file.as_ref(),
            inside: Some(contents.inside()),
            user_namespace: rank.as_ref().and_then(Rank::user_namespace),
            started: &|pid| rank.iter().for_each(|rank| rank.runs(pid)),
            warn: &|text| self.warn(text),
            ..Foreground::default()
        };
        let exit = match engine.run(&workload, &foreground) {
            // What the kernel does not run a shell may, and it says why not in the words that are known.
            Err(Error::Program { .. }) if self.without_its_shell(&contents, &workload) => {
                let again = self.workload_of(&image, &contents, Shell::Always);
                again.and_then(|workload| {
                    engine.run(&workload, &foreground).map_err(|e| not_started(e, &workload))
                })
            }
            exit => exit.map_err(|e| not_started(e, &workload)),
        };
        if let Some(rank) = rank {
            rank.leave();
        }
        image.forget(engine.store());
        let exit = exit?;
        // All that cleans up after itself has to go before a signal ends this process.
        drop((contents, image, engine));
        Ok(exit.pass_on())
    }

    /// Passes a warning of the engine on. That a file of the host's names has no place in the image is no surprise to
    /// anybody who did not ask for it.
    pub fn warn(&self, text: &str) {
        let by_default = ["/etc/localtime", "/etc/hosts", "/etc/resolv.conf"];
        if by_default.iter().any(|path| text.contains(path)) {
            self.cx.talk.verbose(text);
        } else {
            self.cx.talk.warning(text);
        }
    }

    /// Whether the image's shell could have run the program, and did not.
    fn without_its_shell(&self, contents: &Contents, workload: &Workload) -> bool {
        self.action == Action::Exec && workload.command == self.arguments && contents.is_program(SHELL)
    }

    /// Only root of the container needs IDs beside the caller's own.
    pub fn engine(&self) -> Result<Engine, Failure> {
        if self.settings.fakeroot && !self.cx.values.is(&flags::IGNORE_SUBUID) {
            self.cx.engine()
        } else {
            self.cx.engine_single()
        }
    }

    /// The whole description of the container.
    pub fn workload(&self, image: &Image, contents: &Contents) -> Result<Workload, Failure> {
        self.workload_of(image, contents, Shell::WhereNeeded)
    }

    fn workload_of(&self, image: &Image, contents: &Contents, shell: Shell) -> Result<Workload, Failure> {
        let (settings, values) = (&self.settings, self.cx.values);
        settings.site.check(image, self.caller.uid == 0)?;
        let (writable, overlays) = overlays::of(settings, values, image)?;
        // Nothing is laid over what was looked into.
        let as_it_is = overlays.is_empty() && !matches!(writable, Writable::Folder(_) | Writable::File(_));
        let mut shown = mounts::shown(self, contents, &writable)?;
        let lent = self.lend(contents, &mut shown);
        let root_inside = settings.fakeroot || self.caller.uid == 0 && settings.uid.is_none();
        let mut env = self.environment(image, &shown)?;
        for (name, value) in lent?.env {
            env.host.insert(name, value);
        }
        let known = match shell {
            Shell::WhereNeeded => self.known_variables(contents, &env, &shown, as_it_is),
            Shell::Always => None,
        };
        let (command, env) = self.program(image, contents, env, shown.libraries, known)?;
        let (working_dir, working_dir_else) = self.place.working_dirs(settings, values);
        let private = |own: bool| if own { NamespaceMode::Private } else { NamespaceMode::Host };
        let without =
            |what: &str, own: SystemMount| if settings.without(what) { SystemMount::None } else { own };
        Ok(Workload {
            root: image.root.clone(),
            entrypoint: Some(Vec::new()),
            command,
            env,
            working_dir: Some(working_dir),
            working_dir_else,
            existing_working_dir: true,
            user: self.user(),
            groups: settings.gids.iter().skip(1).map(u32::to_string).collect(),
            hostname: values
                .word(&flags::HOSTNAME)
                .or(self.instance.filter(|_| settings.boot))
                .map(str::to_owned),
            interactive: true,
            remove: true,
            init: settings.pid && !settings.no_init,
            mounts: shown.mounts,
            resources: limits::resources(values)?,
            network: settings.network.mode.clone(),
            ports: settings.network.ports.clone(),
            dns: Dns { servers: self.servers()?, ..Dns::default() },
            sysctls: self.sysctls(),
            pid: private(settings.pid),
            ipc: private(settings.ipc),
            uts: private(settings.uts),
            cgroupns: NamespaceMode::Host,
            userns: match (settings.fakeroot, self.caller.uid) {
                (false, 1..) => UserNamespace::KeepId,
                (false, 0) if settings.userns => UserNamespace::KeepId,
                _ => UserNamespace::Auto,
            },
            security: Security {
                capabilities: self.capabilities(root_inside),
                cap_add: self.known_capabilities("add", values.text(&flags::ADD_CAPS)),
                cap_drop: self.dropped_capabilities(),
                no_new_privileges: Some(!values.is(&flags::ALLOW_SETUID)),
                seccomp: settings.seccomp(),
                unmask_system_paths: true,
                ..Security::default()
            },
            writable,
            overlays,
            run_as: if self.user().is_some() { RunAs::Given } else { RunAs::Caller },
            system: SystemFiles {
                dev: without(
                    "dev",
                    if (settings.contain || settings.minimal_dev) && !shown.whole_dev {
                        SystemMount::New
                    } else {
                        SystemMount::Host
                    },
                ),
                proc: without("proc", if settings.pid { SystemMount::New } else { SystemMount::Host }),
                sys: without("sys", SystemMount::Host),
                // The engine knows names and servers of a network of the container's own.
                bare_etc: !settings.network.is_own() || settings.without("/etc/resolv.conf"),
            },
            bare_env: true,
            keep_descriptors: true,
            keep_umask: !settings.no_umask,
            keep_session: true,
            ..Workload::default()
        })
    }

    /// The description of a further program in a container that runs: what belongs to the container is there.
    pub fn workload_inside(
        &self,
        image: &Image,
        contents: &Contents,
        fakeroot: bool,
    ) -> Result<Workload, Failure> {
        let (settings, values) = (&self.settings, self.cx.values);
        let shown = Shown::default();
        let env = self.environment(image, &shown)?;
        let (command, env) = self.program(image, contents, env, false, None)?;
        let (working_dir, working_dir_else) = self.place.working_dirs(settings, values);
        let root = fakeroot || self.caller.uid == 0;
        let user = if fakeroot && self.caller.uid != 0 { Some("0:0".to_owned()) } else { None };
        Ok(Workload {
            root: image.root.clone(),
            entrypoint: Some(Vec::new()),
            command,
            env,
            working_dir: Some(working_dir),
            working_dir_else,
            existing_working_dir: true,
            run_as: if user.is_some() { RunAs::Given } else { RunAs::Caller },
            user,
            interactive: true,
            remove: true,
            network: NetworkMode::Host,
            pid: NamespaceMode::Host,
            ipc: NamespaceMode::Host,
            uts: NamespaceMode::Host,
            cgroupns: NamespaceMode::Host,
            security: Security {
                capabilities: self.capabilities(root),
                no_new_privileges: Some(!values.is(&flags::ALLOW_SETUID)),
                seccomp: settings.seccomp(),
                unmask_system_paths: true,
                ..Security::default()
            },
            bare_env: true,
            keep_descriptors: true,
            keep_umask: !settings.no_umask,
            keep_session: true,
            ..Workload::default()
        })
    }

    /// Whom a container with a network of its own asks for names, in the place of those that the host asks (`--dns`).
    fn servers(&self) -> Result<Vec<IpAddr>, Failure> {
        match self.cx.values.word(&flags::DNS).filter(|_| self.settings.network.is_own()) {
            Some(list) => identity_files::servers(list).map_err(Failure::new),
            None => Ok(Vec::new()),
        }
    }

    /// A program needs no rights to serve a low port of its own network, as the engine has it for root's. The kernel lets an
    /// ordinary user say so by a /proc of their own PID namespace only.
    fn sysctls(&self) -> BTreeMap<String, String> {
        let low_ports = || ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        let own = self.settings.network.is_own() && self.settings.pid && self.caller.uid != 0;
        own.then(low_ports).into_iter().collect()
    }

    /// `None` for the caller as they are.
    fn user(&self) -> Option<String> {
        let settings = &self.settings;
        if settings.fakeroot && self.caller.uid != 0 {
            return Some("0:0".to_owned());
        }
        if settings.uid.is_none() && settings.gids.is_empty() {
            return None;
        }
        let uid = settings.uid.unwrap_or(self.caller.uid);
        let gid = settings.gids.first().copied().unwrap_or(self.caller.gid);
        Some(format!("{uid}:{gid}"))
    }

    /// Root keeps what it has, unless it gives its privileges away; others have nothing.
    fn capabilities(&self, root: bool) -> CapabilityBase {
        let given_away = self.cx.values.is(&flags::NO_PRIVS);
        if root && !given_away { CapabilityBase::Caller } else { CapabilityBase::None }
    }

    /// What the caller gives away; a container with an init of its own could else reboot the host.
    fn dropped_capabilities(&self) -> Vec<String> {
        let mut dropped = self.known_capabilities("drop", self.cx.values.text(&flags::DROP_CAPS));
        if self.settings.boot && !self.cx.values.is(&flags::KEEP_PRIVS) {
            dropped.extend(["SYS_BOOT", "SYS_RAWIO"].map(str::to_owned));
        }
        dropped
    }

    /// The capabilities of a list, without those that nobody knows.
    fn known_capabilities(&self, what: &str, names: Option<&str>) -> Vec<String> {
        let short = |name: &String| {
            let name = name.to_uppercase();
            name.strip_prefix("CAP_").map_or(name.clone(), str::to_owned)
        };
        let is_known = |name: &String| {
            short(name) == "ALL" || CAPABILITIES.iter().any(|(known, _)| *known == short(name))
        };
        let (known, unknown): (Vec<_>, Vec<_>) = list(names).into_iter().partition(is_known);
        if !unknown.is_empty() {
            let shown: Vec<String> = unknown.iter().map(|name| format!("CAP_{}", short(name))).collect();
            self.cx.talk.warning(&format!("won't {what} unknown capability: {}", shown.join(",")));
        }
        known
    }

    /// What the driver of a graphics processor consists of, and devices by their names in the CDI.
    fn lend(&self, contents: &Contents, shown: &mut Shown) -> Result<cdi::Injected, Failure> {
        let (cx, values, contain) = (self.cx, self.cx.values, self.settings.contain);
        let path = std::env::var("PATH").unwrap_or_else(|_| environment::DEFAULT_PATH.to_owned());
        let host = gpu::Host { root: Path::new("/"), path: &path };
        let drivers = [(&flags::NV, &flags::NO_NV, gpu::NVIDIA), (&flags::ROCM, &flags::NO_ROCM, gpu::ROCM)];
        let wanted: Vec<_> = drivers
            .iter()
            .filter(|(yes, no, driver)| {
                let always = self.settings.site.is(&format!("always use {}", driver.name));
                (values.is(yes) || always) && !values.is(no)
            })
            .map(|(_, _, driver)| driver)
            .collect();
        let mut narrow = values.is(&flags::COMPAT32);
        if narrow && wanted.is_empty() {
            cx.talk.warning("Ignoring --compat32, it requires a GPU option such as --nv or --rocm");
            narrow = false;
        }
        for driver in wanted {
            let lent = driver.lend(host, contents.glibc(), narrow, contain);
            lent.warnings.iter().for_each(|warning| cx.talk.warning(warning));
            shown.libraries |= lent.libraries;
            shown.add_below_binds(lent.mounts);
        }
        if values.is(&flags::INTEL_HPU) && contain {
            shown.add_below_binds(gpu::intel_devices(host));
        }
        for library in values.list(&flags::CONTAINLIBS) {
            shown.libraries = true;
            shown.add_below_binds(vec![mounts::library(Path::new(library))]);
        }
        let names = values.list(&flags::DEVICE);
        if names.is_empty() {
            return Ok(cdi::Injected::default());
        }
        let folders: Vec<PathBuf> = match values.list(&flags::CDI_DIRS) {
            [] => isles_engine::cdi::FOLDERS.map(PathBuf::from).into(),
            own => own.iter().map(PathBuf::from).collect(),
        };
        let mut injected = cdi::inject(names, &folders)?;
        injected.warnings.iter().for_each(|warning| cx.talk.warning(warning));
        let (devices, others): (Vec<_>, Vec<_>) =
            injected.mounts.drain(..).partition(|mount| mount.destination.starts_with("/dev"));
        // Where /dev is the host's, its devices are there already.
        shown.add_below_binds(if contain { devices } else { Vec::new() });
        shown.add_below_binds(others);
        Ok(injected)
    }

    fn environment(&self, image: &Image, shown: &Shown) -> Result<Environment, Failure> {
        let (cx, values) = (self.cx, self.cx.values);
        let mut host: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        // Programs in the container may want to know where those of the host are.
        let path = host.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
        host.push((
            "USER_PATH".into(),
            format!("{}:{}", path.unwrap_or_default(), environment::PATH_OF_HOST),
        ));
        let wishes = Wishes {
            clean: self.settings.clean_env,
            mpi: values.is(&flags::MPI),
            without: values.list(&flags::NO_ENV).to_vec(),
            set: values.pairs(&flags::ENV),
            from_files: self.files_of_variables()?.0,
        };
        let mut env = environment::environment(&host, &wishes, &cx.talk);
        let mut fix = |name: &str, value: &str| {
            for prefix in ["APPTAINER", "SINGULARITY"] {
                env.fixed.insert(format!("{prefix}_{name}"), value.to_owned());
            }
        };
        fix("CONTAINER", &image.name);
        fix("NAME", image.short_name());
        // Scripts of older images ask for an app by the older name.
        if let Some(app) = values.word(&flags::APP) {
            fix("APPNAME", app);
        }
        fix("BIND", &shown.bound.join(","));
        if let Some(shell) = values.word(&flags::SHELL).filter(|_| self.action == Action::Shell) {
            fix("SHELL", shell);
        }
        if let Some(instance) = self.instance {
            fix("INSTANCE", instance);
        }
        if self.settings.no_eval {
            fix("NO_EVAL", "1");
        }
        env.fixed.entry("APPTAINER_APPNAME".into()).or_default();
        env.fixed.insert("APPTAINER_COMMAND".into(), self.action.name().to_owned());
        env.fixed.insert("HOME".into(), self.place.home.to_string_lossy().into_owned());
        Ok(env)
    }

    /// Variables of `--env-file`, and the texts of those that only a shell can read.
    fn files_of_variables(&self) -> Result<(BTreeMap<String, String>, Vec<String>), Failure> {
        let (mut known, mut texts) = (BTreeMap::new(), Vec::new());
        for path in self.cx.values.list(&flags::ENV_FILE) {
            let text = mounts::read_text(Path::new(path))
                .map_err(|e| Failure::because(format!("could not read environment file \"{path}\""), &e))?;
            match environment::read_assignments(&text) {
                Ok(variables) => known.extend(variables),
                Err(_) => texts.push(text),
            }
        }
        Ok((known, texts))
    }

    /// What the scripts of an image set, where `exec` needs no shell to know all of its environment.
    fn known_variables(
        &self,
        contents: &Contents,
        env: &Environment,
        shown: &Shown,
        as_it_is: bool,
    ) -> Option<Vec<String>> {
        const SCRIPTS: &str = "/.singularity.d";
        let (settings, values) = (&self.settings, self.cx.values);
        let plain = self.action == Action::Exec
            && as_it_is
            && !settings.contain
            && !shown.libraries
            && values.word(&flags::APP).is_none()
            && values.list(&flags::ENV_FILE).is_empty()
            && !env.wanted.contains_key("PROMPT_COMMAND")
            && (settings.no_eval || !env.wants_evaluation());
        if !plain {
            return None;
        }
        let covers = |mount: &Mount| {
            mount.destination.starts_with(SCRIPTS) || Path::new(SCRIPTS).starts_with(&mount.destination)
        };
        // The shell would find out where it really is; in a folder of the host that is sure.
        let here = self.place.working_dirs(settings, values).0;
        let around = shown.mounts.iter().rfind(|mount| here.starts_with(&mount.destination));
        let bound = around.is_some_and(|mount| matches!(mount.kind, MountKind::Bind { .. }));
        if !bound || shown.mounts.iter().any(covers) || !contents.exists("/.singularity.d/env") {
            return None;
        }
        let known = known_scripts::variables(contents)?;
        let fixed =
            |entry: &String| entry.split_once('=').is_some_and(|(name, _)| env.fixed.contains_key(name));
        (!known.iter().any(fixed)).then_some(known)
    }

    /// The words of the process and its variables: by the script where the image has a shell to read it, else as they
    /// are. `known` is what the image's own scripts set, where that is known without.
    fn program(
        &self,
        image: &Image,
        contents: &Contents,
        env: Environment,
        libraries: bool,
        known: Option<Vec<String>>,
    ) -> Result<(Vec<String>, Vec<String>), Failure> {
        if self.settings.boot {
            if !contents.is_program(INIT) {
                return Err(Failure::new(format!("--boot: there is no program {INIT} in the container"))
                    .with_hint("install an init there, or start the services by the startscript"));
            }
            return Ok((vec![INIT.to_owned()], env.plain(&image.config.env)));
        }
        if let Some(known) = known {
            let mut env = env;
            let here = self.place.working_dirs(&self.settings, self.cx.values).0;
            env.fixed.insert("PWD".into(), here.to_string_lossy().into_owned());
            for name in ["APPTAINER_ENVIRONMENT", "SINGULARITY_ENVIRONMENT"] {
                env.fixed.insert(name.into(), script::POST_ENVIRONMENT.into());
            }
            return Ok((self.arguments.to_vec(), env.plain(&known)));
        }
        let texts = self.files_of_variables()?.1;
        let has_shell = contents.is_program(SHELL);
        let has_scripts = contents.exists("/.singularity.d/env") || contents.exists("/environment");
        let evaluate = !self.settings.no_eval && env.wants_evaluation();
        let own = self.own_program(image, contents)?;
        let scripted =
            has_shell && (has_scripts || evaluate || !texts.is_empty() || libraries || own.is_none());
        if !scripted {
            if !texts.is_empty() {
                return Err(Failure::new(
                    "the file of variables needs a shell, and the image has no /bin/sh",
                )
                .with_hint("write one variable a line: NAME=VALUE"));
            }
            let command = match own {
                Some(command) => command,
                None => self.without_shell(contents)?,
            };
            let mut env = env;
            let here = self.place.working_dirs(&self.settings, self.cx.values).0;
            env.fixed.entry("PWD".into()).or_insert_with(|| here.to_string_lossy().into_owned());
            return Ok((command, env.plain(&image.config.env)));
        }
        let action = if own.is_some() { Action::Exec } else { self.action };
        let firm: Vec<String> = self.cx.values.pairs(&flags::ENV).into_keys().collect();
        for name in firm.iter().filter(|name| texts.iter().any(|text| environment::may_set(text, name))) {
            self.cx.talk.warning(&environment::overridden(name));
        }
        let options = script::Options {
            action,
            evaluate: !self.settings.no_eval,
            files: &texts,
            firm: &firm,
            libraries,
            quiet: self.cx.talk.level() < Level::Info,
        };
        let made = script::script(&env, if has_scripts { &[] } else { &image.config.env }, &options);
        let words = own.unwrap_or_else(|| self.arguments.to_vec());
        let mut command = vec!["/bin/sh".to_owned(), "-c".into(), made.text, "apptainer".into()];
        command.extend(words);
        Ok((command, made.env))
    }

    /// What an action runs where that is known without a script: the words of `exec`, and of `run` the ENTRYPOINT and
    /// CMD of an image that was made for docker. Arguments take the place of CMD.
    fn own_program(&self, image: &Image, contents: &Contents) -> Result<Option<Vec<String>>, Failure> {
        match self.action {
            Action::Exec => Ok(Some(self.arguments.to_vec())),
            Action::Run if image.store_image.is_some() && !contents.exists("/.singularity.d/runscript") => {
                if let Some(app) = self.cx.values.word(&flags::APP) {
                    return Err(Failure::new(format!("no runscript for contained app: {app}")).with_code(1));
                }
                let entrypoint = image.config.entrypoint.clone().unwrap_or_default();
                let cmd = image.config.cmd.clone().unwrap_or_default();
                let rest = if self.arguments.is_empty() { cmd } else { self.arguments.to_vec() };
                let words: Vec<String> = entrypoint.into_iter().chain(rest).collect();
                Ok((!words.is_empty()).then_some(words))
            }
            _ => Ok(None),
        }
    }

    /// The files that an action runs, where the image has no shell that could look for them.
    fn without_shell(&self, contents: &Contents) -> Result<Vec<String>, Failure> {
        let app = self.cx.values.word(&flags::APP);
        let folder = app.map_or("/.singularity.d".to_owned(), |app| format!("/scif/apps/{app}/scif"));
        let file = match self.action {
            Action::Run => "runscript",
            Action::Test => "test",
            Action::Start => "startscript",
            Action::Exec | Action::Shell => {
                return Err(Failure::new("/bin/sh does not exist in container")
                    .with_hint("the image has no shell; `exec` runs its programs"));
            }
        };
        let path = format!("{folder}/{file}");
        if !contents.is_program(&path) {
            return Err(Failure::new(format!(
                "No {file} and no /bin/sh executable found in container, aborting"
            ))
            .with_code(1));
        }
        Ok(std::iter::once(path).chain(self.arguments.iter().cloned()).collect())
    }
}

fn list(text: Option<&str>) -> Vec<String> {
    text.into_iter()
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|w| !w.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A program that cannot be run is 255 here, and said in the words that Apptainer has for it.
pub fn not_started(error: isles_engine::Error, workload: &Workload) -> Failure {
    let program = workload.command.first().map(String::as_str).unwrap_or_default();
    let missing = matches!(&error, isles_engine::Error::Program { exit_code: 127, .. });
    let mut failure = Failure::from(error);
    if missing && !program.contains('/') {
        failure.message = format!("\"{program}\": executable file not found in $PATH");
    }
    failure
}

/// The newest glibc that runs in an image, for libraries of the host.
impl Contents {
    pub fn glibc(&self) -> Option<elf::Version> {
        gpu::glibc_of(&|path| self.read(path))
    }
}
