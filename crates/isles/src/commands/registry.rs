//! `isles registry`: a registry over the local store, and what is in it.

use std::path::PathBuf;
use std::time::Duration;

use isles_registry_server::{Config, LogTo, MirrorConfig, Server, TlsConfig};
use isles_spec::quantity::human_bytes;
use isles_store::{HostedProblem, Store};
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::format::{Format, count};
use crate::ui::table::Table;

/// Serve images to others, and look after what is served.
///
/// The registry's content is in the same store as local images: what is here already is not copied. Any number of
/// servers may serve one store, and every command here works beside them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles registry serve
  isles registry serve --listen 0.0.0.0:5000 --tls-self-signed lab.example --htpasswd users --anonymous-pull
  isles registry ls
  isles registry gc --dry-run")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Serve(Box<ServeArgs>),
    #[command(alias = "list")]
    Ls(LsArgs),
    #[command(alias = "remove")]
    Rm(RmArgs),
    Gc(GcArgs),
    Stats(StatsArgs),
    Verify(VerifyArgs),
}

/// Serve the store's repositories, until SIGTERM or SIGINT.
///
/// Without --htpasswd everybody may do everything, so the address is one of this machine alone unless --listen says
/// otherwise. The file that --config names can say all of this and more: groups, access by repository, retention,
/// immutable tags, quotas. What options say goes before it.
#[derive(Debug, clap::Args)]
#[command(after_help = "A configuration, in TOML:
  listen = [\"0.0.0.0:5000\"]
  htpasswd = \"/etc/isles/users\"       # as `htpasswd -B` writes it
  anonymous-pull = true
  url = \"https://lab.example\"         # behind a proxy: as clients reach it
  idle = \"1m\"                         # for how long a connection may be silent
  [tls]
  cert = \"/etc/isles/cert.pem\"        # or self-signed = [\"lab.example\"]
  key = \"/etc/isles/key.pem\"
  [groups]
  staff = [\"ann\", \"bob\"]
  [[access]]                          # without any, who has logged in may do everything
  repositories = \"course/**\"          # {user} stands for the name of who asks
  users = [\"@staff\"]                  # names, @group, * (all with a name), anonymous
  allow = [\"pull\", \"push\", \"delete\"]
  [[retention]]                       # the first that fits a tag decides
  tags = \"v*\"
  immutable = true
  [[retention]]
  repositories = \"ci/**\"
  keep-last = 10
  max-age = \"30d\"
  unpulled = \"90d\"                  # what was asked for since stays
  untagged = \"1d\"
  [[mirror]]                          # kept when asked for
  prefix = \"hub\"                     # hub/library/debian is docker.io/library/debian
  upstream = \"docker.io\"
  fresh = \"10m\"                      # for how long a tag is believed
  offline = false                     # true: only what is here
  platforms = [\"linux/amd64\"]        # nothing is fetched for others
  username = \"lab\"                   # asked upstream without a login where missing
  password-file = \"/etc/isles/hub\"
  users = [\"@staff\"]                 # whom a mirror with a login is for
  [quota]
  repository = \"20g\"                 # unfinished uploads may have as much again
  user = \"5g\"                        # blobs that one user has sent
  total = \"500g\"                    # mirrors count, and go on when it is full
  [collect]
  every = \"6h\"
  grace = \"1h\"

Other addresses of the server: / for people, /healthz, /metrics for Prometheus.")]
struct ServeArgs {
    /// Where to listen; may be given several times [default: 127.0.0.1:5000].
    #[arg(long, value_name = "HOST[:PORT]")]
    listen: Vec<String>,
    /// Read a configuration.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The certificate chain (PEM); read again when it changes.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Make a certificate for these names and print its fingerprint; localhost is always one of them.
    #[arg(long, value_name = "NAME", num_args = 0.., value_delimiter = ',', conflicts_with = "tls_cert")]
    tls_self_signed: Option<Vec<String>>,
    /// Users and their passwords, as `htpasswd -B` writes them; read again when it changes.
    #[arg(long, value_name = "FILE")]
    htpasswd: Option<PathBuf>,
    /// Let everybody pull.
    #[arg(long)]
    anonymous_pull: bool,
    /// Serve the images of another registry, too, and keep what was asked for; without a prefix, nothing else.
    #[arg(long, value_name = "[PREFIX=]REGISTRY")]
    mirror: Vec<MirrorConfig>,
    /// As clients reach the server, where a proxy is in between: https://registry.example.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Append the access log, a JSON object a line, to a file; - is standard output.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

/// List repositories, or the tags of one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles registry ls
  isles registry ls course/lab
  isles registry ls course/lab --format '{{.Tag}} {{.Digest}}'")]
struct LsArgs {
    repository: Option<String>,
    /// Print only names.
    #[arg(short, long)]
    quiet: bool,
    /// How to print: table, json, or a template such as '{{.Name}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// Remove tags, manifests (REPOSITORY@DIGEST) or whole repositories. The bytes go with `isles registry gc`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles registry rm course/lab:2024
  isles registry rm -r course/old && isles registry gc --grace 0s")]
struct RmArgs {
    /// What is not there need not be removed.
    #[arg(short, long)]
    force: bool,
    /// Remove whole repositories, where NAME has neither a tag nor a digest.
    #[arg(short, long)]
    recursive: bool,
    #[arg(required = true, value_name = "NAME[:TAG|@DIGEST]")]
    names: Vec<String>,
}

/// Remove what no manifest needs, unfinished uploads of yesterday, and what the retention of a configuration says.
///
/// Runs beside servers. Pushes under way lose nothing within the grace time.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles registry gc --dry-run
  isles registry gc --untagged
  isles registry gc --config registry.toml")]
struct GcArgs {
    /// Only say what would go.
    #[arg(long)]
    dry_run: bool,
    /// Read the retention of a configuration.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Also all manifests without a tag that nothing refers to.
    #[arg(long)]
    untagged: bool,
    /// What is younger stays: 90s, 15m, 12h, 30d [default: the configuration's, or 1h].
    #[arg(long, value_name = "TIME", value_parser = isles_registry_server::parse_duration)]
    grace: Option<Duration>,
}

/// Show what repositories take.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles registry stats
  isles registry stats --format json")]
struct StatsArgs {
    /// How to print: table, json, or a template such as '{{.Name}}: {{.Size}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// Hash everything that repositories have.
///
/// The exit code is 1 where something is damaged or missing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles registry verify
  isles registry verify course/lab")]
struct VerifyArgs {
    /// Only these repositories.
    #[arg(value_name = "REPOSITORY")]
    repositories: Vec<String>,
    /// How to print: table, json, or a template such as '{{.Digest}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

pub fn cmd_registry(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let store = engine.store();
    match &args.command {
        Command::Serve(args) => serve(cx, args, store),
        Command::Ls(args) => match &args.repository {
            None => repositories(cx, args, store),
            Some(name) => tags(cx, args, store, name),
        },
        Command::Rm(args) => rm(cx, args, store),
        Command::Gc(args) => gc(cx, args, store),
        Command::Stats(args) => stats(cx, args, store),
        Command::Verify(args) => verify(cx, args, store),
    }
}

fn serve(cx: &Context, args: &ServeArgs, store: &Store) -> Result<Code, Failure> {
    let mut config = args.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
    if !args.listen.is_empty() {
        config.listen.clone_from(&args.listen);
    }
    if let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) {
        config.tls = Some(TlsConfig::Files { cert: cert.clone(), key: key.clone() });
    }
    if let Some(names) = &args.tls_self_signed {
        config.tls = Some(TlsConfig::SelfSigned { names: names.clone() });
    }
    if let Some(file) = &args.htpasswd {
        config.htpasswd = Some(file.clone());
    }
    config.mirror.extend(args.mirror.iter().cloned());
    config.anonymous_pull |= args.anonymous_pull;
    if let Some(url) = &args.url {
        config.url = Some(url.clone());
    }
    let log = match &args.log {
        None => LogTo::Nowhere,
        Some(file) if file.as_os_str() == "-" => LogTo::Output,
        Some(file) => LogTo::File(file.clone()),
    };
    if let Some(port) = config.listen.iter().find(|a| a.parse::<u16>().is_ok()) {
        return Err(Failure::new(format!("'{port}' is no address to listen on")).with_hint(format!(
            "a port of this machine alone is written 127.0.0.1:{port}, one of all its addresses :{port}"
        )));
    }
    let open = config.access().is_open();
    let local = config
        .addresses()
        .iter()
        .all(|a| a.starts_with("127.") || a.starts_with("localhost:") || a.starts_with("[::1]"));
    let server = Server::new(store.clone(), config, &log)?;
    if open && !local {
        cx.ui.warning("everybody who reaches this registry may change it; --htpasswd names who may");
    }
    server.serve(&|url, certificate| {
        cx.ui.note(&format!("serving {} on {url}", store.root().display()));
        if let Some(certificate) = certificate {
            let (file, fingerprint) = (certificate.file.display(), certificate.fingerprint);
            cx.ui.note(&format!("its certificate is {file}, with the SHA-256 fingerprint {fingerprint}"));
            let port = url.rsplit(':').next().unwrap_or_default();
            cx.ui.note(&format!(
                "docker, podman and isles trust it as /etc/docker/certs.d/NAME:{port}/ca.crt"
            ));
        }
    })?;
    Ok(Code::SUCCESS)
}

/// A repository in lists.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Repository {
    name: String,
    tags: u64,
    manifests: u64,
    blobs: u64,
    size: String,
    bytes: u64,
    upload_bytes: u64,
}

fn all(store: &Store) -> Result<Vec<Repository>, Failure> {
    let mut rows = Vec::new();
    for name in store.hosted_names()? {
        let usage = store.hosted(&name)?.usage()?;
        rows.push(Repository {
            name,
            tags: usage.tags,
            manifests: usage.manifests,
            blobs: usage.blobs,
            size: human_bytes(usage.bytes),
            bytes: usage.bytes,
            upload_bytes: usage.uploads,
        });
    }
    Ok(rows)
}

fn repositories(cx: &Context, args: &LsArgs, store: &Store) -> Result<Code, Failure> {
    if args.quiet {
        store.hosted_names()?.iter().try_for_each(|name| cx.ui.line(name))?;
        return Ok(Code::SUCCESS);
    }
    cx.ui.rows(&args.format, &all(store)?, |rows| {
        let mut table = Table::new(&["REPOSITORY", "TAGS", "SIZE"]);
        rows.iter().for_each(|r| table.row(vec![r.name.clone(), r.tags.to_string(), r.size.clone()]));
        table
    })?;
    Ok(Code::SUCCESS)
}

/// A tag in lists.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Tag {
    tag: String,
    digest: String,
    media_type: String,
    size: String,
    bytes: u64,
}

fn no_repository(name: &str) -> Failure {
    Failure::new(format!("no repository '{name}'")).with_hint("`isles registry ls` lists them")
}

fn tags(cx: &Context, args: &LsArgs, store: &Store, name: &str) -> Result<Code, Failure> {
    let hosted = store.hosted(name)?;
    if !hosted.exists() {
        return Err(no_repository(name));
    }
    let tags = hosted.tags()?;
    if args.quiet {
        tags.iter().try_for_each(|tag| cx.ui.line(tag))?;
        return Ok(Code::SUCCESS);
    }
    let mut rows = Vec::new();
    for tag in tags {
        let Some(digest) = hosted.tag(&tag)? else { continue };
        let Some(manifest) = hosted.manifest(&digest)? else { continue };
        let bytes = manifest.blob_bytes;
        rows.push(Tag {
            tag,
            digest: digest.to_string(),
            media_type: manifest.media_type,
            size: human_bytes(bytes),
            bytes,
        });
    }
    cx.ui.rows(&args.format, &rows, |rows| {
        let mut table = Table::new(&["TAG", "DIGEST", "SIZE", "TYPE"]);
        for row in rows {
            let short = row.digest.split_once(':').map_or("", |(_, hex)| &hex[..12]);
            table.row(vec![row.tag.clone(), short.into(), row.size.clone(), row.media_type.clone()]);
        }
        table
    })?;
    Ok(Code::SUCCESS)
}

fn rm(cx: &Context, args: &RmArgs, store: &Store) -> Result<Code, Failure> {
    let mut code = Code::SUCCESS;
    for name in &args.names {
        match remove(store, name, args.recursive) {
            Ok(true) => cx.ui.line(name)?,
            Ok(false) if args.force => {}
            Ok(false) => {
                cx.ui.error(
                    &Failure::new(format!("no '{name}' in the registry"))
                        .with_hint("`isles registry ls` lists what is there"),
                );
                code = Code(1);
            }
            Err(failure) => {
                cx.ui.error(&failure);
                code = Code(1);
            }
        }
    }
    Ok(code)
}

fn remove(store: &Store, name: &str, recursive: bool) -> Result<bool, Failure> {
    if let Some((repository, digest)) = name.split_once('@') {
        return Ok(store.hosted(repository)?.remove_manifest(&digest.parse()?)?);
    }
    if let Some((repository, tag)) = name.split_once(':') {
        return Ok(isles_store::is_tag(tag) && store.hosted(repository)?.remove_tag(tag)?);
    }
    let hosted = store.hosted(name)?;
    if !recursive && hosted.exists() {
        return Err(Failure::new(format!("'{name}' is a repository"))
            .with_hint("name a tag (NAME:TAG) or a digest (NAME@DIGEST), or remove all of it with -r"));
    }
    Ok(hosted.remove()?)
}

fn gc(cx: &Context, args: &GcArgs, store: &Store) -> Result<Code, Failure> {
    let config = args.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
    let grace = args.grace.or(config.collect.grace);
    let done = isles_registry_server::collect(store, &config.retention, args.untagged, grace, args.dry_run)?;
    done.tags.iter().chain(&done.manifests).try_for_each(|name| cx.ui.line(name))?;
    let verb = if args.dry_run { "would remove" } else { "removed" };
    cx.ui.note(&format!(
        "{verb} {}, {}, {} and {}; {} {}",
        count(done.tags.len() as u64, "tag"),
        count(done.manifests.len() as u64, "manifest"),
        count(done.links, "link"),
        count(done.uploads, "upload"),
        human_bytes(done.freed),
        if args.dry_run { "would be free" } else { "are free" },
    ));
    Ok(Code::SUCCESS)
}

fn stats(cx: &Context, args: &StatsArgs, store: &Store) -> Result<Code, Failure> {
    cx.ui.rows(&args.format, &all(store)?, |rows| {
        let mut table = Table::new(&["REPOSITORY", "TAGS", "MANIFESTS", "BLOBS", "SIZE", "UPLOADS"]);
        for r in rows {
            let number = |n: u64| n.to_string();
            table.row(vec![
                r.name.clone(),
                number(r.tags),
                number(r.manifests),
                number(r.blobs),
                r.size.clone(),
                human_bytes(r.upload_bytes),
            ]);
        }
        table
    })?;
    Ok(Code::SUCCESS)
}

/// Something that is not as it should be.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Problem {
    repository: String,
    digest: String,
    problem: &'static str,
}

fn verify(cx: &Context, args: &VerifyArgs, store: &Store) -> Result<Code, Failure> {
    let names = if args.repositories.is_empty() { store.hosted_names()? } else { args.repositories.clone() };
    if let Some(missing) = names.iter().find(|name| !store.hosted(name).is_ok_and(|h| h.exists())) {
        return Err(no_repository(missing));
    }
    let report = store.verify_hosted(&names)?;
    let rows: Vec<Problem> = report
        .problems
        .iter()
        .map(|(repository, digest, problem)| Problem {
            repository: repository.clone(),
            digest: digest.to_string(),
            problem: match problem {
                HostedProblem::Damaged => "its content has another digest",
                HostedProblem::Missing => "it is not here",
            },
        })
        .collect();
    if args.format != Format::Table || !rows.is_empty() {
        cx.ui.rows(&args.format, &rows, |rows| {
            let mut table = Table::new(&["REPOSITORY", "DIGEST", "PROBLEM"]);
            rows.iter()
                .for_each(|r| table.row(vec![r.repository.clone(), r.digest.clone(), r.problem.into()]));
            table
        })?;
    }
    cx.ui.note(&format!(
        "checked {} ({}): {}",
        count(report.blobs, "blob"),
        human_bytes(report.bytes),
        if rows.is_empty() { "all is well".to_owned() } else { count(rows.len() as u64, "problem") },
    ));
    Ok(if rows.is_empty() { Code::SUCCESS } else { Code(1) })
}
