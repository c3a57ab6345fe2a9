//! `isles inspect`

use clap::ValueEnum;
use isles_spec::image::ContainerConfig;
use isles_store::Store;
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::format::Format;

/// Show everything about images, with docker's names for it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles inspect debian:12
  isles inspect -f '{{.Id}} {{json .Config.Env}}' debian:12")]
pub struct Args {
    /// Names or IDs.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Only things of this kind.
    #[arg(long = "type", value_enum, value_name = "KIND")]
    kind: Option<Kind>,
    /// How to print: json, or a template such as '{{.Architecture}}'.
    #[arg(short, long, value_name = "FORMAT", default_value = "json")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Image,
}

/// The kinds that a name is looked up in, in this order.
const KINDS: [Kind; 1] = [Kind::Image];

pub fn cmd_inspect(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let mut found = Vec::new();
    let mut code = Code::SUCCESS;
    for name in &args.names {
        match object(cx, engine.store(), name, args.kind) {
            Ok(object) => found.push(object),
            Err(failure) => {
                cx.ui.error(&failure);
                code = Code(1);
            }
        }
    }
    cx.ui.bytes(args.format.rows(&found)?.as_bytes())?;
    Ok(code)
}

fn object(cx: &Context, store: &Store, name: &str, kind: Option<Kind>) -> Result<Value, Failure> {
    let mut missing = None;
    for candidate in KINDS.into_iter().filter(|k| kind.is_none_or(|wanted| wanted == *k)) {
        let result = match candidate {
            Kind::Image => image(cx, store, name),
        };
        match result {
            Ok(object) => return Ok(object),
            Err(failure) => missing = missing.or(Some(failure)),
        }
    }
    Err(missing.unwrap_or_else(|| Failure::new(format!("nothing is called '{name}'"))))
}

/// An image as `docker inspect` shows it.
pub fn image(_cx: &Context, store: &Store, name: &str) -> Result<Value, Failure> {
    let image = store.resolve(name, None)?;
    let summary = store.images()?.into_iter().find(|i| i.manifest_digest == image.manifest_digest);
    let (names, size) = summary.map(|s| (s.references, s.size)).unwrap_or_default();
    let tags: Vec<String> = names.iter().filter(|n| n.digest().is_none()).map(|n| n.familiar()).collect();
    let mut digests = Vec::new();
    for name in &names {
        let target = store.lookup(name)?.unwrap_or_else(|| image.manifest_digest.clone());
        digests.push(format!("{}@{target}", name.familiar_name()));
    }
    digests.sort();
    digests.dedup();
    let config = &image.config;
    let last = config.history.last();
    let mut object = json!({
        "Id": image.id(),
        "RepoTags": tags,
        "RepoDigests": digests,
        "Parent": "",
        "Comment": last.and_then(|h| h.comment.as_deref()).unwrap_or_default(),
        "Created": config.created,
        "DockerVersion": config.rest.get("docker_version").and_then(Value::as_str).unwrap_or_default(),
        "Author": config.author.as_deref().unwrap_or_default(),
        "Config": container_config(&config.config)?,
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": size,
        "VirtualSize": size,
        "GraphDriver": {"Name": "overlay", "Data": Value::Null},
        "RootFS": {"Type": config.rootfs.kind, "Layers": config.rootfs.diff_ids},
        "Descriptor": image.descriptor(store),
        "History": config.history,
    });
    for (name, value) in [("Variant", &config.variant), ("OsVersion", &config.os_version)] {
        if let Some(value) = value {
            object[name] = json!(value);
        }
    }
    Ok(object)
}

/// The configuration with the members that docker always shows.
fn container_config(config: &ContainerConfig) -> Result<Value, Failure> {
    let mut all: Map<String, Value> = Map::new();
    for name in ["Hostname", "Domainname", "User", "Image", "WorkingDir"] {
        all.insert(name.into(), "".into());
    }
    for name in ["AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce"] {
        all.insert(name.into(), false.into());
    }
    for name in ["Cmd", "Volumes", "Entrypoint", "OnBuild", "Labels"] {
        all.insert(name.into(), Value::Null);
    }
    all.insert("Env".into(), json!([]));
    let own = serde_json::to_value(config)
        .map_err(|e| Failure::because("cannot write the configuration as JSON", &e))?;
    if let Value::Object(own) = own {
        all.extend(own);
    }
    Ok(Value::Object(all))
}
