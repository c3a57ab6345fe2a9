//! `isles build`

mod call;
mod definition;
mod outputs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use isles_build::attest::Attest;
use isles_build::cache_transfer::{CacheSource, CacheTarget};
use isles_build::debian::BootstrapOptions;
use isles_build::elsewhere::{self, Fetched, Wanted};
use isles_build::named::NamedContexts;
use isles_build::position::Diagnostic;
use isles_build::recipe::{self, Found};
use isles_build::{BuildOptions, Entitlement, SecretSource, image_of_suite};
use isles_registry::Client;
use isles_spec::quantity::parse_bytes;
use isles_spec::source::DebianSuite;
use isles_spec::{Error as Spelling, NetworkMode, Platform, PullPolicy, Reference, Rlimit};

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::registry::Connection;
use crate::ui::progress::Bars;

const EXAMPLES: &str = "\
Examples:
  isles build -t app .                          the Dockerfile or the *.def file of this folder
  isles build -t app -f dev.Dockerfile .        another recipe, with this folder as its context
  generate | isles build -t app -f - .          a recipe that comes from a program, in either language
  isles build -t tools tools.def                a definition file
  isles build tools.sif tools.def               into a SIF file, from either language; the same as
  isles build -o type=sif,dest=tools.sif .      an output beside others
  isles build --sandbox tools tools.def         the same as a folder, too
  isles build -t base debian://bookworm         Debian, from its packages
  isles build --build-arg VERSION=2 --target test .
  isles build --secret id=token,src=$HOME/.token .
  isles build https://example.org/app.git#v1:sub    a repository, or an archive, as the context
  generate | isles build -                      an archive of the context, or the recipe, from a program
  isles build --check .                         only look at the recipe
  isles build --call=outline,format=json .      what it takes: arguments, secrets, agents, caches
  isles build -o type=oci,dest=app.tar .        an archive; -o DIR writes the files themselves
  isles build -t registry.example/app --platform linux/amd64,linux/arm64 --push .

The image ID goes to standard output, everything else to standard error. A step that did not change is not run
again; --no-cache runs them all.";

/// Build an image from a recipe: a Dockerfile or a definition file.
///
/// Both languages give the same kind of image, which `isles run` runs and `isles push` pushes. Stages that do not
/// need each other are built at the same time, and only the files that the recipe copies are read.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The folder that files are copied from and that holds the recipe, or the recipe itself; the URL of a git
    /// repository or of an archive; - for an archive on standard input; or debian://SUITE [default: .]. Before it, the
    /// name of a SIF file that is made, which ends in .sif.
    #[arg(value_name = "[FILE.sif] PATH", num_args = 0..=2)]
    words: Vec<PathBuf>,
    /// Give the image this name; may be repeated.
    #[arg(short, long, value_name = "NAME[:TAG]")]
    tag: Vec<Reference>,
    /// The recipe, where it is not in PATH under a usual name; - is standard input.
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Set a build argument: ARG of a Dockerfile, {{ NAME }} of a definition file. Without a value, the
    /// environment's.
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// Build this stage instead of the last one.
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Do every step again.
    #[arg(long)]
    no_cache: bool,
    /// Do every step of this stage again; may be repeated.
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    no_cache_filter: Vec<String>,
    /// When to ask the registries for base images: always, missing or never; always where nothing is said after it
    /// [default: missing].
    #[arg(
        long,
        value_name = "POLICY",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "always",
        value_parser = pull_policy
    )]
    pull: Option<PullPolicy>,
    /// Build for these platforms, such as linux/amd64,linux/arm64 [default: this machine's]. Steps that run programs of
    /// another architecture take the interpreter that the host has registered, or a static qemu of the host.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Add a label to the image.
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// What a name of the recipe stands for, instead of the stage or the image of that name: a folder,
    /// a git repository, a URL, docker-image://IMAGE or oci-layout://FOLDER[:TAG].
    #[arg(long, value_name = "NAME=CONTEXT")]
    build_context: Vec<String>,
    /// Attest what packages are in the image, as SPDX; --sbom=false does not.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sbom: Option<String>,
    /// Attest how the image came to be, as SLSA v1: mode=min, or mode=max with the recipe and build arguments.
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    provenance: Option<String>,
    /// Attest something: type=sbom, or type=provenance with mode=min|max and builder-id=ADDRESS.
    #[arg(long, value_name = "ATTESTATION")]
    attest: Vec<String>,
    /// Look for steps in another builder's cache: type=registry,ref=NAME or type=local,src=FOLDER.
    #[arg(long, value_name = "CACHE", value_parser = CacheSource::parse)]
    cache_from: Vec<CacheSource>,
    /// Write the cache for other builders: type=registry,ref=NAME or type=local,dest=FOLDER, with mode=max for all
    /// stages; or type=inline, into the image.
    #[arg(long, value_name = "CACHE", value_parser = CacheTarget::parse)]
    cache_to: Vec<CacheTarget>,
    /// Give steps with RUN --mount=type=secret,id=ID a file, or what a variable holds.
    #[arg(long, value_name = "id=ID,src=FILE|env=NAME")]
    secret: Vec<String>,
    /// Lend steps with RUN --mount=type=ssh, and git, an SSH agent: the one that runs, or by socket or key files.
    #[arg(long, value_name = "ID[=SOCKET|KEY[,KEY]]")]
    ssh: Vec<String>,
    /// Grant the recipe a right: network.host, security.insecure, device or device=NAME.
    #[arg(long, value_name = "RIGHT")]
    allow: Vec<Entitlement>,
    /// The network of steps.
    #[arg(long, value_name = "MODE", default_value = "default", value_parser = ["default", "host", "none"])]
    network: String,
    /// Give steps a line of /etc/hosts.
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Bytes of /dev/shm in steps [default: 64m].
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// Limit the resources of each process of a step, such as nofile=1024:4096.
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Let steps trust the host's certificate authorities, which do not become part of the image.
    #[arg(long)]
    host_ca: bool,
    /// For Debian: take packages from this mirror.
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Leave out the %test of a definition file.
    #[arg(long, alias = "notest")]
    no_test: bool,
    #[command(flatten)]
    outputs: outputs::OutputOptions,
    /// Print only the image ID.
    #[arg(short, long)]
    quiet: bool,
    /// How to show what is done.
    #[arg(long, value_enum, default_value_t = Shown::Auto)]
    progress: Shown,
    #[command(flatten)]
    call: call::Instead,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    definition: definition::DefinitionArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shown {
    /// Bars on a terminal, lines elsewhere.
    Auto,
    /// Lines.
    Plain,
    /// One JSON object a line: event start, output, status or done, with id, name, result, cached and seconds.
    Json,
    /// Nothing; the output of a step that fails is shown.
    Quiet,
}

impl Args {
    /// The SIF file to make, and what to build.
    fn target_and_path(&self) -> (Option<&Path>, &Path) {
        // A folder may be called anything.
        let is_sif = |word: &Path| word.extension().is_some_and(|e| e == "sif") && !word.is_dir();
        match self.words.as_slice() {
            [target, path, ..] => (Some(target), path),
            [target] if is_sif(target) => (Some(target), Path::new(".")),
            [path] => (None, path),
            [] => (None, Path::new(".")),
        }
    }

    fn path(&self) -> &Path {
        self.target_and_path().1
    }

    fn outputs(&self) -> Result<outputs::OutputOptions, Failure> {
        let target = self.target_and_path().0;
        if let Some(target) = target.filter(|target| target.extension().is_none_or(|e| e != "sif")) {
            return Err(Failure::new(format!("'{}' is no name of a SIF file", target.display()))
                .with_hint("of two words the first is the SIF file that is made, and ends in .sif"));
        }
        Ok(self.outputs.and_sif(target, !self.tag.is_empty()))
    }
}

/// The words of `--pull`: those of `isles run`, and docker's, for which it is a switch.
fn pull_policy(word: &str) -> Result<PullPolicy, String> {
    match word {
        "always" | "true" => Ok(PullPolicy::Always),
        "newer" => Ok(PullPolicy::Newer),
        "missing" | "false" => Ok(PullPolicy::Missing),
        "never" => Ok(PullPolicy::Never),
        _ => Err("known are always, newer, missing and never".into()),
    }
}

pub fn cmd_build(cx: &Context, args: &Args) -> Result<Code, Failure> {
    if let Some(call) = args.call.wanted() {
        return call::cmd_call(cx, args, call);
    }
    let ui = cx.ui.quieter(args.quiet || args.progress == Shown::Quiet);
    let outputs = args.outputs()?;
    outputs.check(&args.tag, args.platform.len())?;
    let every_step = args.progress == Shown::Json;
    let options = BuildOptions { quiet: ui.is_quiet(), every_step, ..options(args)? };
    let client = args.connection.client_of_recipes();
    let bars = match args.progress {
        Shown::Plain => Bars::plain(&ui),
        Shown::Json => Bars::json(&ui),
        Shown::Auto | Shown::Quiet => Bars::new(&ui),
    };
    let what = what(cx, args, &client, &options, &bars)?;
    let engine = cx.engine()?;
    let built = match &what {
        What::Suite(suite) => image_of_suite(&engine, &client, suite, &options, &bars),
        What::Recipe(found) | What::Fetched(Fetched { found, .. }) => {
            isles_build::build(&engine, &client, found, &options, &bars)
        }
    };
    let built = built.map_err(|e| {
        // What is odd may be why it failed.
        if let What::Recipe(found) = &what {
            call::warn_of(cx, &engine, found, &options);
        }
        failure(&e)
    })?;
    for warning in &built.warnings {
        cx.ui.warning(&lint(warning));
    }
    if built.cached && !every_step {
        ui.note("nothing changed");
    }
    outputs.write(engine.store(), &client, &built, &args.tag, &bars)?;
    if !outputs.takes_stdout() {
        cx.ui.line(&built.image.id().to_string())?;
    }
    Ok(Code::SUCCESS)
}

/// What is built.
enum What {
    Suite(DebianSuite),
    Recipe(Found),
    Fetched(Fetched),
}

/// A build context that is no folder here.
fn fetched(
    cx: &Context,
    args: &Args,
    client: &Client,
    options: &BuildOptions,
    bars: &Bars,
) -> Result<Option<Fetched>, Failure> {
    let from_input = args.file.as_ref().is_some_and(|f| f.as_os_str() == "-");
    let path = args.path().to_str().filter(|p| *p == "-" || elsewhere::is_elsewhere(p));
    let text;
    let wanted = match &args.file {
        None => Wanted::Usual,
        Some(_) if from_input && path == Some("-") => {
            return Err(Spelling::new("the recipe and its context cannot both be standard input").into());
        }
        Some(_) if from_input && path.is_some() => {
            let input = recipe::read_from(std::io::stdin().lock(), "standard input", Path::new(""));
            text = input.and_then(|found| found.read()).map_err(|e| failure(&e))?;
            Wanted::Text(&text)
        }
        Some(file) => Wanted::Named(file),
    };
    let fetched = match path {
        None => return Ok(None),
        Some("-") => elsewhere::read(&cx.engine()?, std::io::stdin().lock(), wanted),
        Some(url) => elsewhere::fetch(&cx.engine()?, client, url, wanted, options, bars),
    };
    fetched.map(Some).map_err(|e| failure(&e))
}

/// A suite; or a recipe, by option or in the folder, which may have to be fetched.
fn what(
    cx: &Context,
    args: &Args,
    client: &Client,
    options: &BuildOptions,
    bars: &Bars,
) -> Result<What, Failure> {
    if let Some(fetched) = fetched(cx, args, client, options, bars)? {
        return Ok(What::Fetched(fetched));
    }
    if let Some(suite) = args.path().to_str().and_then(|path| path.strip_prefix("debian://")) {
        return Ok(What::Suite(DebianSuite::parse(suite)?));
    }
    let found = match &args.file {
        None => recipe::find(args.path()),
        Some(file) if file.as_os_str() == "-" => {
            recipe::read_from(std::io::stdin().lock(), "standard input", args.path())
        }
        Some(file) => recipe::find(file).map(|found| Found { context: args.path().to_owned(), ..found }),
    };
    found.map(What::Recipe).map_err(|e| failure(&e))
}

/// `NAME=VALUE`, or `NAME` for the caller's variable.
pub fn build_arguments(list: &[String]) -> BTreeMap<String, String> {
    let mut arguments = BTreeMap::new();
    for text in list {
        match text.split_once('=') {
            Some((name, value)) => drop(arguments.insert(name.to_owned(), value.to_owned())),
            // A variable that is not set is as if it were not given, as docker has it.
            None => arguments.extend(std::env::var(text).ok().map(|value| (text.clone(), value))),
        }
    }
    arguments
}

fn options(args: &Args) -> Result<BuildOptions, Failure> {
    let mut labels = BTreeMap::new();
    for text in &args.label {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        labels.insert(name.to_owned(), value.to_owned());
    }
    let mut secrets = BTreeMap::new();
    for text in &args.secret {
        let (id, file) = secret(text)?;
        secrets.insert(id, file);
    }
    let ssh = args.ssh.iter().map(|text| agent(text)).collect::<Result<_, _>>()?;
    let here = std::env::current_dir().map_err(|e| Failure::because("cannot find the current folder", &e))?;
    Ok(BuildOptions {
        ssh,
        allow: args.allow.iter().cloned().collect(),
        build_args: build_arguments(&args.build_arg),
        labels,
        attest: attested(args)?,
        cache_from: args.cache_from.clone(),
        cache_to: args.cache_to.clone(),
        contexts: NamedContexts::parse(&args.build_context)?,
        secrets,
        target: args.target.clone(),
        no_cache: args.no_cache,
        no_cache_filter: args.no_cache_filter.clone(),
        extra_hosts: args.add_host.clone(),
        shm_size: args.shm_size.as_deref().map(parse_bytes).transpose()?,
        rlimits: args.ulimit.iter().map(|l| Rlimit::parse(l)).collect::<Result<_, _>>()?,
        pull: args.pull.unwrap_or(PullPolicy::Missing),
        platforms: args.platform.clone(),
        host_ca: args.host_ca,
        network: match args.network.as_str() {
            "none" => NetworkMode::None,
            "host" => NetworkMode::Host,
            _ => NetworkMode::Default,
        },
        no_test: args.no_test,
        definition: args.definition.options(&here, isles_engine::home().as_deref())?,
        bootstrap: BootstrapOptions { mirror: args.mirror.clone(), ..BootstrapOptions::default() },
        ..BuildOptions::default()
    })
}

/// What the three options ask for together; the short ones come last.
fn attested(args: &Args) -> Result<Attest, Spelling> {
    let mut attest = Attest::default();
    for text in &args.attest {
        attest.add(text)?;
    }
    for (kind, value) in [("sbom", &args.sbom), ("provenance", &args.provenance)] {
        if let Some(value) = value {
            attest.add(&Attest::short(kind, value))?;
        }
    }
    Ok(attest)
}

/// `id=ID,src=FILE` or `id=ID,env=NAME`; the ID is the name of the file where it is not given, and the name of the
/// variable or file where only it is given.
fn secret(text: &str) -> Result<(String, SecretSource), Spelling> {
    let usage = "write --secret id=ID,src=FILE or --secret id=ID,env=NAME";
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("id", value)) => id = Some(value.to_owned()),
            Some(("src" | "source", value)) => file = Some(PathBuf::from(value)),
            Some(("env", value)) => variable = Some(value.to_owned()),
            Some(("type", value @ ("file" | "env"))) => kind = Some(value),
            _ => return Err(Spelling::new(format!("'{field}' is no part of a secret")).with_hint(usage)),
        }
    }
    if kind == Some("env") && variable.is_none() {
        variable = file.take().map(|name| name.display().to_string()).or_else(|| id.clone());
    }
    let name = file.as_ref().and_then(|f| f.file_name()).map(|n| n.to_string_lossy().into_owned());
    let Some(id) = id.or(name).or_else(|| variable.clone()).filter(|id| !id.is_empty()) else {
        return Err(Spelling::new("a secret needs an id, a file or a variable").with_hint(usage));
    };
    let source = match (file, variable) {
        (Some(_), Some(_)) => {
            return Err(Spelling::new("a secret is in a file or in a variable, not in both").with_hint(usage));
        }
        (Some(file), None) => SecretSource::File(file),
        (None, Some(variable)) => SecretSource::Variable(variable),
        (None, None) if kind.is_none() && std::env::var_os(&id).is_some() => {
            SecretSource::Variable(id.clone())
        }
        (None, None) => SecretSource::File(PathBuf::from(&id)),
    };
    Ok((id, source))
}

/// `ID`, for the agent that runs; `ID=SOCKET`, `ID=KEY[,KEY]`.
fn agent(text: &str) -> Result<(String, Vec<PathBuf>), Spelling> {
    if let Some((id, sources)) = text.split_once('=') {
        return Ok((id.to_owned(), sources.split(',').map(PathBuf::from).collect()));
    }
    match std::env::var_os("SSH_AUTH_SOCK") {
        Some(socket) => Ok((text.to_owned(), vec![socket.into()])),
        None => {
            Err(Spelling::new(format!("there is no SSH agent for --ssh {text}: SSH_AUTH_SOCK is not set"))
                .with_hint(format!("start one with ssh-agent, or write --ssh {text}=KEY")))
        }
    }
}

/// A failed build, with the line of the recipe that it is about.
pub fn failure(error: &isles_build::Error) -> Failure {
    let mut failure = Failure::because(error, error);
    if let Some(picture) = error.picture() {
        failure.message.push_str(&indented(&picture));
    }
    failure.hint = isles_spec::Hint::hint(error);
    failure
}

/// What is odd about a recipe, as people read it.
pub fn lint(warning: &Diagnostic) -> String {
    let hint = warning.suggestion.as_ref().map(|s| format!("\n  hint: {s}")).unwrap_or_default();
    format!("{warning}{}{hint}", indented(&warning.picture()))
}

fn indented(picture: &str) -> String {
    picture.lines().map(|line| format!("\n  {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_pull() {
        for (word, policy) in [
            ("always", Some(PullPolicy::Always)),
            ("true", Some(PullPolicy::Always)),
            ("missing", Some(PullPolicy::Missing)),
            ("false", Some(PullPolicy::Missing)),
            ("never", Some(PullPolicy::Never)),
            ("newer", Some(PullPolicy::Newer)),
            ("other", None),
        ] {
            assert_eq!(pull_policy(word).ok(), policy, "{word}");
        }
    }

    #[test]
    fn secrets() {
        let file = |path: &str| SecretSource::File(path.into());
        let variable = |name: &str| SecretSource::Variable(name.into());
        for (text, id, source) in [
            ("id=k,src=/a/b", "k", file("/a/b")),
            ("type=file,source=/a/b", "b", file("/a/b")),
            ("id=k", "k", file("k")),
            ("id=PATH", "PATH", variable("PATH")),
            ("type=file,id=PATH", "PATH", file("PATH")),
            ("id=k,env=V", "k", variable("V")),
            ("type=env,id=K", "K", variable("K")),
            ("type=env,id=K,src=V", "K", variable("V")),
            ("env=V", "V", variable("V")),
        ] {
            assert_eq!(secret(text).unwrap(), (id.to_owned(), source), "{text}");
        }
        for bad in ["", "src", "id=k,color=red", "type=disk,id=K", "id=k,src=f,env=V", "id="] {
            assert!(secret(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn agents() {
        assert_eq!(agent("k=/a,/b").unwrap(), ("k".into(), vec!["/a".into(), "/b".into()]));
        assert_eq!("device=a/b".parse::<Entitlement>().unwrap(), Entitlement::Device(Some("a/b".into())));
        assert!("root".parse::<Entitlement>().is_err());
    }
}
