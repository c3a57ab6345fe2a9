//! `isles inspect`

use std::path::Path;

use clap::ValueEnum;
use isles_engine::image_file::{self, Form};
use isles_engine::{Engine, Info, Status, mountpoint};
use isles_network::state::{DEFAULT, Endpoint, Places};
use isles_sif::{NO_TIME, Object, Sif};
use isles_spec::image::ContainerConfig;
use isles_spec::time::{rfc3339, rfc3339_nanoseconds};
use isles_spec::{
    LogDriver, LogOptions, Mount, MountKind, NamespaceMode, NetworkMode, Port, RestartPolicy, Root,
};
use isles_store::Store;
use serde_json::{Map, Value, json};

use crate::address;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::format::Format;

/// Show everything about containers and images, with docker's names for it, and about files of SIF,
/// SquashFS and ext3.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles inspect debian:12
  isles inspect -f '{{.State.ExitCode}}' quiet_reef_4f2a
  isles inspect -f '{{.Id}} {{json .Config.Env}}' debian:12
  isles inspect -f '{{json .Config.Labels}}' tool.sif
  isles inspect -f '{{.Attributes.deffile}}' tool.sif")]
pub struct Args {
    /// Names or IDs, or paths of SIF files.
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
    Container,
    Image,
    Volume,
    Network,
    /// A SIF file.
    File,
}

/// The kinds that a name is looked up in, in this order.
const KINDS: [Kind; 5] = [Kind::Container, Kind::Image, Kind::Volume, Kind::Network, Kind::File];

/// `isles container inspect`: what else is called so does not count.
pub fn cmd_inspect_container(cx: &Context, args: &Args) -> Result<Code, Failure> {
    inspect(cx, args, args.kind.or(Some(Kind::Container)))
}

/// `isles image inspect`
pub fn cmd_inspect_image(cx: &Context, args: &Args) -> Result<Code, Failure> {
    inspect(cx, args, args.kind.or(Some(Kind::Image)))
}

pub fn cmd_inspect(cx: &Context, args: &Args) -> Result<Code, Failure> {
    inspect(cx, args, args.kind)
}

fn inspect(cx: &Context, args: &Args, kind: Option<Kind>) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let mut found = Vec::new();
    let mut code = Code::SUCCESS;
    for name in &args.names {
        match object(&engine, name, kind) {
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

fn object(engine: &Engine, name: &str, kind: Option<Kind>) -> Result<Value, Failure> {
    let mut missing = None;
    for candidate in KINDS.into_iter().filter(|k| kind.is_none_or(|wanted| wanted == *k)) {
        let result = match candidate {
            Kind::Container => container(engine, name),
            Kind::Image => image(engine.store(), name),
            Kind::Volume => crate::commands::volume::shown(engine.store(), name),
            Kind::Network => crate::commands::network::shown(engine, name),
            // What else a word may mean is worth more in an error than that it is no file.
            Kind::File if missing.is_some() && !Path::new(name).is_file() => break,
            Kind::File => file(name),
        };
        match result {
            Ok(object) => return Ok(object),
            // Most words mean images.
            Err(_) if missing.is_some() && matches!(candidate, Kind::Volume | Kind::Network) => {}
            Err(failure) => missing = Some(failure),
        }
    }
    Err(missing.unwrap_or_else(|| nothing(name)))
}

fn nothing(name: &str) -> Failure {
    Failure::new(format!("nothing is called '{name}'"))
}

/// A SIF file: its header and objects, and what Apptainer calls the attributes of an image. Of a file of SquashFS or
/// ext3 there is nothing but these.
fn file(name: &str) -> Result<Value, Failure> {
    let path = Path::new(name);
    let form = image_file::detect(path);
    let mut attributes = match form {
        Some(_) => isles_apptainer::inspection(path).map_err(address::of_door)?.data.attributes,
        None => return Err(Sif::open(path).map(drop).err().map_or_else(|| nothing(name), Failure::from)),
    };
    let labels = std::mem::take(&mut attributes.labels);
    if let Some(Form::Bare(kind)) = form {
        return Ok(json!({
            "Path": name,
            "Size": path.metadata().map_or(0, |m| m.len()),
            "FileSystem": kind,
            "Config": {"Labels": labels},
            "Attributes": attributes,
        }));
    }
    let sif = Sif::open(path)?;
    let header = sif.header();
    let time = |t: i64| (t != NO_TIME).then(|| rfc3339(t));
    let object = |object: &Object| {
        let partition = object.partition();
        json!({
            "Id": object.id,
            "Group": object.group,
            "Type": object.kind.name(),
            "Name": object.name,
            "Size": object.size,
            "FileSystem": partition.map(|p| p.file_system.name()),
            "Role": partition.map(|p| p.role.name()),
        })
    };
    Ok(json!({
        "Path": name,
        "Id": header.uuid_text(),
        "Created": time(header.created),
        "Architecture": header.arch.name(),
        "Os": "linux",
        "Size": sif.file().metadata().map_or(0, |m| m.len()),
        "Signed": sif.of_kind(isles_sif::Kind::Signature).next().is_some(),
        "Config": {"Labels": labels},
        "Attributes": attributes,
        "Objects": sif.objects().iter().map(object).collect::<Vec<_>>(),
    }))
}

/// An image as `docker inspect` shows it.
fn image(store: &Store, name: &str) -> Result<Value, Failure> {
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

/// A container as `docker inspect` shows it.
fn container(engine: &Engine, name: &str) -> Result<Value, Failure> {
    /// What docker prints for a time that has not come.
    const NEVER: &str = "0001-01-01T00:00:00Z";
    let info = engine.find(name)?;
    let is_running = info.is_running();
    let Info { record, state, status, health } = info;
    let w = &record.workload;
    // Where the image is gone meanwhile, only what the caller said is known.
    let image = match &w.root {
        Root::Image { manifest, .. } => engine.store().image(manifest).ok(),
        Root::Directory(_) | Root::File(_) => None,
    };
    let config = image.map(|image| image.config.config).unwrap_or_default();
    let own_entrypoint = w.entrypoint.is_some();
    let command = match config.cmd {
        Some(of_image) if w.command.is_empty() && !own_entrypoint => of_image,
        _ => w.command.clone(),
    };
    let time = |t: Option<u64>| t.map_or(NEVER.to_owned(), rfc3339_nanoseconds);
    let (program, arguments) = record.command.split_first().map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
    let places = engine.places_of(&record.id)?;
    let image = record.image_id.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut shown = json!({
        "Id": record.id,
        "Created": rfc3339_nanoseconds(record.created),
        "Path": program,
        "Args": arguments,
        "State": {
            "Status": status,
            "Running": status == Status::Running,
            "Paused": status == Status::Paused,
            "Restarting": status == Status::Restarting,
            "OOMKilled": state.out_of_memory,
            "Dead": status == Status::Dead,
            "Pid": state.pid.filter(|_| matches!(status, Status::Running | Status::Paused)).unwrap_or(0),
            "ExitCode": state.exit_code.unwrap_or(0),
            "Error": state.error,
            "StartedAt": time(state.started),
            "FinishedAt": time(state.finished),
        },
        "Image": image,
        "Name": format!("/{}", record.name),
        "RestartCount": state.restarts,
        "Driver": "overlay",
        "Platform": "linux",
        "Mounts": w.mounts.iter().map(|m| mount(engine.store(), m)).collect::<Vec<_>>(),
        "HostConfig": {
            "AutoRemove": w.remove,
            "NetworkMode": match &w.network {
                NetworkMode::None => "none".to_owned(),
                NetworkMode::Default => "slirp4netns".to_owned(),
                NetworkMode::User { .. } => "slirp4netns".to_owned(),
                NetworkMode::Host => "host".to_owned(),
                NetworkMode::Container(other) => format!("container:{other}"),
                NetworkMode::Path(path) => format!("ns:{}", path.display()),
                NetworkMode::Networks(uses) => {
                    uses.first().map_or_else(|| "none".to_owned(), |first| first.name.clone())
                }
            },
            "RestartPolicy": {
                "Name": w.restart.name(),
                "MaximumRetryCount": match w.restart {
                    RestartPolicy::OnFailure { max_retries } => max_retries.unwrap_or(0),
                    _ => 0,
                },
            },
            "LogConfig": {
                "Type": w.log.driver.name(),
                "Config": log_options(&w.log),
            },
            "PortBindings": bindings(&w.ports),
            "Dns": w.dns.servers,
            "DnsSearch": w.dns.search,
            "DnsOptions": w.dns.options,
            "ExtraHosts": w.extra_hosts,
            "PidMode": mode(&w.pid),
            "IpcMode": mode(&w.ipc),
            "UTSMode": mode(&w.uts),
            "Privileged": w.security.privileged,
            "ReadonlyRootfs": w.read_only,
            "CapAdd": w.security.cap_add,
            "CapDrop": w.security.cap_drop,
            "Memory": w.resources.memory.unwrap_or(0),
            "NanoCpus": w.resources.nano_cpus.unwrap_or(0),
            "CpusetCpus": w.resources.cpuset_cpus.as_deref().unwrap_or_default(),
            "PidsLimit": w.resources.pids,
            "Init": w.init,
            "ShmSize": w.shm_size.unwrap_or(64 << 20),
        },
        "Config": {
            "Hostname": w.hostname.as_deref().unwrap_or(&record.id[..record.id.len().min(12)]),
            "User": w.user.as_deref().unwrap_or_default(),
            "Tty": w.tty,
            "OpenStdin": w.interactive,
            "Env": config.env.iter().chain(&w.env).collect::<Vec<_>>(),
            "Cmd": command,
            "Image": record.image,
            "WorkingDir": w.working_dir,
            "Entrypoint": w.entrypoint.as_ref().or(config.entrypoint.as_ref()),
            "Labels": w.labels,
            "StopSignal": w.stop_signal,
            "StopTimeout": w.stop_timeout,
        },
        "NetworkSettings": settings(places.as_ref(), if is_running { &state.ports } else { &[] }),
    });
    if let Some(health) = health {
        shown["State"]["Health"] = json!(health);
    }
    if let Some(check) = &record.health {
        shown["Config"]["Healthcheck"] = json!(check);
    }
    Ok(shown)
}

/// Ports as docker has them: `{"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}`.
pub fn bindings(ports: &[Port]) -> Value {
    let mut all = serde_json::Map::new();
    for port in ports {
        let host = match port.host {
            0 => String::new(),
            number => number.to_string(),
        };
        let address = port.address.map(|address| address.to_string()).unwrap_or_default();
        let entry = all.entry(format!("{}/{}", port.container, port.protocol)).or_insert_with(|| json!([]));
        if let Some(list) = entry.as_array_mut() {
            list.push(json!({ "HostIp": address, "HostPort": host }));
        }
    }
    all.into()
}

/// As `--log-opt` has them.
fn log_options(log: &LogOptions) -> Value {
    let mut all = serde_json::Map::new();
    if matches!(log.driver, LogDriver::JsonFile | LogDriver::Cri) {
        all.insert("max-size".to_owned(), json!(log.max_size.to_string()));
        all.insert("max-file".to_owned(), json!(log.max_file.to_string()));
    }
    for (name, list) in [("labels", &log.labels), ("env", &log.env)] {
        if !list.is_empty() {
            all.insert(name.to_owned(), json!(list.join(",")));
        }
    }
    if let Some(tag) = &log.tag {
        all.insert("tag".to_owned(), json!(tag));
    }
    all.into()
}

/// Where a container is in networks.
fn settings(places: Option<&Places>, ports: &[Port]) -> Value {
    let mut networks = serde_json::Map::new();
    let none = Places::default();
    let places = places.unwrap_or(&none);
    let mac = |mac: &[u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let of = |endpoint: &Endpoint, ipv6: bool| {
        endpoint.addresses.iter().find(|(address, _)| address.is_ipv6() == ipv6).copied()
    };
    let gateway = |endpoint: &Endpoint, ipv6: bool| {
        let found = endpoint.gateways.iter().find(|gateway| gateway.is_ipv6() == ipv6);
        found.map(|gateway| gateway.to_string()).unwrap_or_default()
    };
    let shown = |endpoint: &Endpoint| {
        let (v4, v6) = (of(endpoint, false), of(endpoint, true));
        json!({
            "IPAddress": v4.map(|(address, _)| address.to_string()).unwrap_or_default(),
            "IPPrefixLen": v4.map_or(0, |(_, prefix)| prefix),
            "Gateway": gateway(endpoint, false),
            "GlobalIPv6Address": v6.map(|(address, _)| address.to_string()).unwrap_or_default(),
            "GlobalIPv6PrefixLen": v6.map_or(0, |(_, prefix)| prefix),
            "IPv6Gateway": gateway(endpoint, true),
            "MacAddress": mac(&endpoint.mac),
        })
    };
    for endpoint in &places.endpoints {
        let mut entry = shown(endpoint);
        entry["NetworkID"] = json!(endpoint.id);
        entry["Aliases"] = json!(endpoint.aliases);
        networks.insert(endpoint.network.clone(), entry);
    }
    let mut all = places.endpoints.iter().find(|e| e.network == DEFAULT).map_or_else(|| json!({}), shown);
    all["Ports"] = bindings(ports);
    all["Networks"] = networks.into();
    all
}

fn mode(mode: &NamespaceMode) -> String {
    match mode {
        NamespaceMode::Private => "private".into(),
        NamespaceMode::Host => "host".into(),
        NamespaceMode::Container(other) => format!("container:{other}"),
        NamespaceMode::Path(path) => format!("ns:{}", path.display()),
    }
}

fn mount(store: &Store, mount: &Mount) -> Value {
    let mut propagation = "";
    let (kind, source) = match &mount.kind {
        MountKind::Bind { source, propagation: how, .. } => {
            propagation = how.word();
            ("bind", source.display().to_string())
        }
        MountKind::Tmpfs { .. } => ("tmpfs", String::new()),
        MountKind::Volume { name, .. } => {
            let volume = name.as_deref().and_then(|name| store.volume(name).ok());
            ("volume", volume.map(|v| mountpoint(&v).display().to_string()).unwrap_or_default())
        }
        MountKind::File { .. } => ("file", String::new()),
        MountKind::Fuse { program, .. } => ("fuse", program.join(" ")),
        MountKind::Image { image, .. } => ("image", image.path.display().to_string()),
    };
    let mut shown = json!({
        "Type": kind,
        "Source": source,
        "Destination": mount.destination,
        "Mode": if mount.read_only { "ro" } else { "" },
        "RW": !mount.read_only,
        "Propagation": propagation,
    });
    if let MountKind::Volume { name, .. } = &mount.kind {
        shown["Name"] = json!(name);
        shown["Driver"] = json!("local");
    }
    shown
}
