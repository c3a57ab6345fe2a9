//! `isles run`

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use isles_build::BuildOptions;
use isles_build::debian::BootstrapOptions;
use isles_engine::{Engine, Exit, Foreground, Parted, image_file};
use isles_spec::image::Healthcheck;
use isles_spec::quantity::{parse_bytes, parse_cpus, parse_duration};
use isles_spec::{
    Device, Dns, Error as Spelling, ImageMount, LogOptions, Mount, NamespaceMode, Overlay, PodShares, Port,
    PullPolicy, Resources, RestartPolicy, Rlimit, Root, SeccompChoice, Security, Source, UserNamespace,
    Workload, Writable,
};

use crate::commands::build::build_arguments;
use crate::context::Context;
use crate::devices;
use crate::failure::{Code, Failure};
use crate::registry::Connection;
use crate::root;
use crate::source::{self, Wishes};

/// Docker's.
pub const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

mod network;

pub use network::NO_LINKS;
use network::network;

const EXAMPLES: &str = "\
Examples:
  isles run debian:bookworm cat /etc/os-release      an image, from the store or a registry
  isles run -it debian://bookworm?include=python3 bash
                                                     Debian, made on the spot from its packages
  isles run ./Dockerfile                             a recipe: built with its cache, then run
  isles run oci:layout:tag                           an image on disk
  isles run tool.sif                                 a SIF or squashfs file, mounted as it is
  isles run --rm --rootfs /srv/tree sh               a folder
  isles run -d --name web --restart always nginx     in the background, until it is stopped
  isles run --here python:3.12 python3 analysis.py   as yourself, in this folder

A container has a network of its own, which leads to the world but not to the host's loopback: on a bridge as root, and
without any right on the host's network as an ordinary user. The exit code is the command's: 128+n after signal n,
125 when Isles itself failed, 126 when the command could not be run, 127 when it was not found.";

/// Run a command in a container: from an image, an image file, a recipe, a folder, or a Debian suite.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, disable_help_flag = true, args_override_self = true)]
pub struct Args {
    /// An image name or ID, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE, docker-daemon:NAME, oras://NAME,
    /// library://NAME, an image file (SIF, squashfs or ext3) by its path or URL, a folder with a root file system, a
    /// recipe (a Dockerfile, a *.def file or a folder with one), or debian://SUITE; then the command. With --rootfs, only the command.
    #[arg(value_name = "SOURCE [COMMAND]", trailing_var_arg = true)]
    words: Vec<String>,
    /// Run in this folder as the root file system, changing it in place.
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// As yourself: with your user, the current folder, your home and your environment; implies --rm.
    #[arg(long)]
    here: bool,

    /// Keep standard input open.
    #[arg(short, long, help_heading = "Streams")]
    interactive: bool,
    /// Give the command a terminal of its own.
    #[arg(short, long, help_heading = "Streams")]
    tty: bool,
    /// Run in the background, and print the container's ID.
    #[arg(short, long, help_heading = "Streams")]
    detach: bool,
    /// Have only these streams of the container here: stdin, stdout or stderr.
    #[arg(short, long, value_name = "STREAM", help_heading = "Streams", value_parser = ["stdin", "stdout", "stderr"],
          ignore_case = true)]
    attach: Vec<String>,
    /// Keys that let go of a container with a terminal, and leave it running.
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, help_heading = "Streams")]
    detach_keys: String,
    /// Pass the caller's signals on to the container.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", help_heading = "Streams")]
    sig_proxy: bool,
    /// How what it prints is kept: json-file, cri, journald or none.
    #[arg(long, value_name = "DRIVER", help_heading = "Streams")]
    log_driver: Option<String>,
    /// Sizes of what is kept: max-size=10m, max-file=3; what goes along with it: labels=NAME,…, env=NAME,… and
    /// tag=TEMPLATE, such as {{.Name}}.
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Streams")]
    log_opt: Vec<String>,
    /// Set a variable, or pass on the caller's (-e NAME).
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "Process")]
    env: Vec<String>,
    /// Read variables from a file.
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    env_file: Vec<PathBuf>,
    /// Start in this folder of the container.
    #[arg(short, long, value_name = "DIR", help_heading = "Process")]
    workdir: Option<OsString>,
    /// Run as this user and group: names of the image's, or numbers.
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = "Process")]
    user: Option<String>,
    /// Further groups.
    #[arg(long, value_name = "GROUP", help_heading = "Process")]
    group_add: Vec<String>,
    /// Replace the image's entrypoint; an empty one removes it.
    #[arg(long, value_name = "COMMAND", help_heading = "Process")]
    entrypoint: Option<String>,
    /// Let a small init be process 1: it reaps orphans and hands on signals.
    #[arg(long, help_heading = "Process")]
    init: bool,
    /// The signal that asks the container to end.
    #[arg(long, value_name = "SIGNAL", help_heading = "Process")]
    stop_signal: Option<String>,
    /// Seconds that it has to end by itself, before it is killed [default: 10].
    #[arg(long, value_name = "SECONDS", help_heading = "Process")]
    stop_timeout: Option<u64>,
    /// When it starts again after it has ended: no, on-failure[:MAX-RETRIES], always or unless-stopped.
    #[arg(long, value_name = "POLICY", help_heading = "Process")]
    restart: Option<String>,

    /// Look at the container's health by this command line, where it runs in the background.
    #[arg(long, value_name = "COMMAND", help_heading = "Health")]
    health_cmd: Option<String>,
    /// The time between two looks [default: 30s].
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    health_interval: Option<String>,
    /// A look that takes longer has failed [default: 30s].
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    health_timeout: Option<String>,
    /// So many failures in a row make it unhealthy [default: 3].
    #[arg(long, value_name = "NUMBER", help_heading = "Health")]
    health_retries: Option<u64>,
    /// For so long failures do not count [default: 0s].
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    health_start_period: Option<String>,
    /// The time between two looks until then [default: 5s].
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    health_start_interval: Option<String>,
    /// Do not look, whatever the image says.
    #[arg(long, help_heading = "Health")]
    no_healthcheck: bool,

    /// Remove the container when it ends.
    #[arg(long, help_heading = "Container")]
    rm: bool,
    /// A name for the container.
    #[arg(long, value_name = "NAME", help_heading = "Container")]
    name: Option<String>,
    /// Its host name.
    #[arg(short = 'h', long, value_name = "NAME", help_heading = "Container")]
    hostname: Option<String>,
    /// Add a label.
    #[arg(short, long, value_name = "KEY[=VALUE]", help_heading = "Container")]
    label: Vec<String>,
    /// Read labels from a file, one a line.
    #[arg(long, value_name = "FILE", help_heading = "Container")]
    label_file: Vec<PathBuf>,
    /// Write the container's ID to this new file.
    #[arg(long, value_name = "FILE", help_heading = "Container")]
    cidfile: Option<OsString>,

    /// Show a file or folder of the host in the container, or a volume: SOURCE:DESTINATION[:OPTIONS]. SOURCE is a path
    /// with a slash, or the name of a volume; without it the volume has no name. Options are ro, nocopy, rslave and the
    /// like, idmap (root: the owner of the source and the container's user change places) and U (the container's user
    /// gets the files).
    #[arg(short, long, value_name = "SPEC", help_heading = "Files")]
    volume: Vec<String>,
    /// The same in words: type=bind,source=…,target=…[,readonly], type=volume,source=NAME,target=…[,volume-subpath=…],
    /// or type=tmpfs,target=….
    #[arg(long, value_name = "SPEC", help_heading = "Files")]
    mount: Vec<String>,
    /// Show what another container has mounted, its volumes and what it sees of the host: NAME[:ro].
    #[arg(long, value_name = "NAME[:ro]", help_heading = "Files")]
    volumes_from: Vec<String>,
    /// An empty folder in memory: PATH[:size=…,mode=…].
    #[arg(long, value_name = "SPEC", help_heading = "Files")]
    tmpfs: Vec<String>,
    /// Let the root file system be read only.
    #[arg(long, help_heading = "Files")]
    read_only: bool,
    /// Keep what is written to the root file system in memory, and drop it with the container.
    #[arg(long, help_heading = "Files")]
    writable_tmpfs: bool,
    /// Lay a folder over the root file system, or an image file. A folder, and for root an ext3 image, is written to
    /// unless :ro follows.
    #[arg(long, value_name = "PATH[:ro]", help_heading = "Files")]
    overlay: Vec<String>,
    /// How an image file gets a root file system: mounted by the kernel (root), served by this process (fuse), taken
    /// into the store (unpack), or auto, the first of these that can be had [env: ISLES_IMAGE_MOUNT].
    #[arg(long, value_name = "WAY", help_heading = "Files")]
    image_mount: Option<String>,
    /// Bytes of /dev/shm [default: 64m].
    #[arg(long, value_name = "BYTES", help_heading = "Files")]
    shm_size: Option<String>,
    /// Let the container use a device of the host: PATH[:PATH][:rwm], or by the name that its vendor gives it:
    /// VENDOR/CLASS=NAME.
    #[arg(long, value_name = "SPEC", help_heading = "Files")]
    device: Vec<String>,
    /// Graphics processors of NVIDIA's: all, as --nv has it.
    #[arg(long, value_name = "all", help_heading = "Files", value_parser = all_gpus)]
    gpus: Option<()>,
    /// Lend libraries, programs and devices of NVIDIA's driver.
    #[arg(long, help_heading = "Files")]
    nv: bool,
    /// The same of AMD's ROCm.
    #[arg(long, help_heading = "Files")]
    rocm: bool,

    /// Limit memory, in bytes or with k, m, g.
    #[arg(short, long, value_name = "BYTES", help_heading = "Limits")]
    memory: Option<String>,
    /// When the host is short of memory, take from the container what it has above this.
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    memory_reservation: Option<String>,
    /// Limit memory and swap together; -1 for unlimited swap.
    #[arg(long, value_name = "BYTES", help_heading = "Limits", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Limit processor time, in processors.
    #[arg(long, value_name = "NUMBER", help_heading = "Limits")]
    cpus: Option<String>,
    /// Limit processor time to --cpu-quota microseconds in each of so many.
    #[arg(long, value_name = "MICROSECONDS", help_heading = "Limits")]
    cpu_period: Option<u64>,
    /// Microseconds of processor time in each --cpu-period [default of the period: 100000]; -1 for no limit.
    #[arg(long, value_name = "MICROSECONDS", help_heading = "Limits", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// A share of processor time relative to others (1024 is usual).
    #[arg(short, long, value_name = "NUMBER", help_heading = "Limits")]
    cpu_shares: Option<u64>,
    /// Run on these processors: 0-2,7.
    #[arg(long, value_name = "LIST", help_heading = "Limits")]
    cpuset_cpus: Option<String>,
    /// Use these memory nodes.
    #[arg(long, value_name = "LIST", help_heading = "Limits")]
    cpuset_mems: Option<String>,
    /// Limit the number of processes; -1 for no limit.
    #[arg(long, value_name = "NUMBER", help_heading = "Limits", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Limit a resource of the process: NAME=SOFT[:HARD], such as nofile=1024:2048.
    #[arg(long, value_name = "SPEC", help_heading = "Limits")]
    ulimit: Vec<String>,
    /// How readily the kernel kills it when memory is short, -1000 to 1000.
    #[arg(long, value_name = "NUMBER", help_heading = "Limits", allow_hyphen_values = true)]
    oom_score_adj: Option<i32>,
    /// Go on with a warning where a limit cannot be set.
    #[arg(long, help_heading = "Limits")]
    best_effort: bool,

    /// Add a capability, or ALL.
    #[arg(long, value_name = "NAME", help_heading = "Security")]
    cap_add: Vec<String>,
    /// Drop a capability, or ALL.
    #[arg(long, value_name = "NAME", help_heading = "Security")]
    cap_drop: Vec<String>,
    /// seccomp=FILE, seccomp=unconfined, no-new-privileges[=false], or systempaths=unconfined.
    #[arg(long, value_name = "OPTION", help_heading = "Security")]
    security_opt: Vec<String>,
    /// All capabilities and devices that the caller has, and no filter.
    #[arg(long, help_heading = "Security")]
    privileged: bool,

    /// Its network: bridge (root's default), slirp4netns (one of its own that needs no rights: the default of ordinary
    /// users), host, none, another network's name, container:NAME, or ns:PATH. Several names stand for several
    /// networks, each as NAME, NAME:ip=…,ip6=…,alias=…,mac=… or name=NAME,ip=…. Without it ISLES_NETWORK counts.
    #[arg(long, visible_alias = "net", value_name = "MODE", help_heading = "Network")]
    network: Vec<String>,
    /// Let a port of the host lead to one of the container: [ADDRESS:][PORT:]PORT[/udp], ranges as 8000-8010.
    #[arg(short, long, value_name = "PORTS", help_heading = "Network")]
    publish: Vec<String>,
    /// Let free ports of the host lead to all that the image exposes.
    #[arg(short = 'P', long, help_heading = "Network")]
    publish_all: bool,
    /// A port that the container serves, beside those that the image exposes: PORT[/udp].
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    expose: Vec<String>,
    /// A further name for others in the network.
    #[arg(long, visible_alias = "net-alias", value_name = "NAME", help_heading = "Network")]
    network_alias: Vec<String>,
    /// The IPv4 address in the network.
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    ip: Option<Ipv4Addr>,
    /// The IPv6 address in the network.
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    ip6: Option<Ipv6Addr>,
    /// The address of the device: 02:42:ac:11:00:02.
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    mac_address: Option<String>,
    #[arg(long, value_name = "NAME", hide = true)]
    link: Vec<String>,
    /// Ask this server for names.
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    dns: Vec<IpAddr>,
    /// Complete names with this domain; '.' for none.
    #[arg(long, value_name = "DOMAIN", help_heading = "Network")]
    dns_search: Vec<String>,
    /// An option of resolv.conf(5).
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION", help_heading = "Network")]
    dns_option: Vec<String>,
    /// Be a member of this pod, and share its namespaces; new:NAME makes one.
    #[arg(long, value_name = "POD", help_heading = "Namespaces")]
    pod: Option<String>,
    /// private, host, or container:NAME.
    #[arg(long, value_name = "MODE", help_heading = "Namespaces")]
    pid: Option<String>,
    /// private, host, or container:NAME.
    #[arg(long, value_name = "MODE", help_heading = "Namespaces")]
    ipc: Option<String>,
    /// private or host.
    #[arg(long, value_name = "MODE", help_heading = "Namespaces")]
    uts: Option<String>,
    /// private, host, or keep-id (an ordinary user keeps their own ID).
    #[arg(long, value_name = "MODE", help_heading = "Namespaces")]
    userns: Option<String>,
    /// private or host.
    #[arg(long, value_name = "MODE", help_heading = "Namespaces")]
    cgroupns: Option<String>,
    /// Another name in /etc/hosts: NAME:ADDRESS.
    #[arg(long, value_name = "NAME:ADDRESS", help_heading = "Namespaces")]
    add_host: Vec<String>,
    /// A kernel parameter of the container's namespaces.
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Namespaces")]
    sysctl: Vec<String>,

    /// Take the image for this platform: linux/arm64.
    #[arg(long, value_name = "PLATFORM", help_heading = "Image")]
    platform: Option<String>,
    /// Say nothing of what is fetched.
    #[arg(short, long, help_heading = "Image")]
    pub quiet: bool,
    /// When to ask the registry: always; always, but use what is here where it cannot be reached (newer); where the image is
    /// missing; or never.
    #[arg(long, value_name = "POLICY", default_value = "missing", help_heading = "Image",
          value_parser = ["always", "newer", "missing", "never"])]
    pull: String,
    #[command(flatten, next_help_heading = "Image")]
    connection: Connection,
    /// For a recipe: set a build argument.
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Recipe")]
    build_arg: Vec<String>,
    /// For a recipe: build this stage.
    #[arg(long, value_name = "STAGE", help_heading = "Recipe")]
    target: Option<String>,
    /// For a recipe: do every step again.
    #[arg(long, help_heading = "Recipe")]
    no_cache: bool,
    /// For a recipe: let steps trust the host's certificate authorities, which do not become part of the image.
    #[arg(long, help_heading = "Recipe")]
    host_ca: bool,
    /// For Debian: take packages from this mirror.
    #[arg(long, value_name = "URL", help_heading = "Recipe")]
    mirror: Option<String>,
    /// Print help.
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// Finds the image, makes the container, and stays with it, or leaves it to a monitor.
pub fn cmd_run(cx: &Context, args: &Args) -> Result<Code, Failure> {
    if args.detach && !args.attach.is_empty() {
        return Err(Failure::new("--detach conflicts with --attach").with_hint("give one of them"));
    }
    let keeps_log = given(args.log_driver.as_ref()).is_some_and(|driver| driver != "none");
    // Who keeps a container may want more of it from elsewhere: to attach to it, or to read its log.
    let is_kept = !args.here && !args.rm;
    let has_monitor = args.tty
        || is_kept
        || keeps_log
        || !args.sig_proxy
        || !args.attach.is_empty()
        || restart(args)? != RestartPolicy::No;
    make(
        cx,
        args,
        match (args.detach, has_monitor) {
            (true, _) => Way::Background,
            (false, true) => Way::Attached,
            (false, false) => Way::Foreground,
        },
    )
}

/// What becomes of a container that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It waits to be started.
    Created,
    /// This process is its monitor, and its program has the caller's own streams.
    Foreground,
    /// It has a monitor, and the caller is attached.
    Attached,
    Background,
}

/// Finds the image, makes the container, and does with it what is asked for.
pub fn make(cx: &Context, args: &Args, way: Way) -> Result<Code, Failure> {
    let mut workload = workload(args)?;
    let detach_keys = isles_engine::Wishes::keys(&args.detach_keys)?;
    // As docker has it: the first who is attached has the program's input for good.
    workload.stdin_once = workload.interactive && way != Way::Background;
    // Looked at before anything is made: a file that exists belongs to another container.
    let cidfile = path(args.cidfile.as_ref()).map(CidFile::new).transpose()?;
    let folders = isles_engine::cdi::FOLDERS.map(PathBuf::from);
    devices::add_named(&args.device, &folders, &mut workload, &cx.ui)?;
    let engine = cx.engine()?;
    for other in args.volumes_from.iter().filter(|text| !text.is_empty()) {
        let mounts = engine.volumes_from(other, &workload.mounts)?;
        workload.mounts.extend(mounts);
    }
    if let Some(pod) = given(args.pod.as_ref()) {
        join(&engine, args, &pod, &mut workload)?;
    }
    let mut file = None;
    let image = match &args.rootfs {
        Some(dir) => {
            let root = dir.canonicalize().map_err(|e| {
                Failure::because(format!("cannot use '{}' as root file system", dir.display()), &e)
            })?;
            workload.root = Root::Directory(root);
            workload.command = args.words.clone();
            None
        }
        None => {
            let (source, command) = args.words.split_first().ok_or_else(|| {
                Failure::new("nothing to run: there is no SOURCE")
                    .with_hint("for example `isles run debian:bookworm`; `isles run --help` shows all kinds")
            })?;
            workload.command = command.to_vec();
            match Source::parse(source, source::look)? {
                Source::File(path) if engine.image_mount(workload.image_mount) != ImageMount::Unpack => {
                    let opened = image_file::open(&path)?;
                    let path = path.canonicalize().unwrap_or(path);
                    let found = image_file::find(&path, &opened)?;
                    let own = image_file::overlays(&path, &opened)?;
                    workload.overlays.splice(0..0, own.into_iter().map(Overlay::File));
                    root::default_command(&mut workload);
                    workload.root = Root::File(found);
                    file = Some(opened);
                    None
                }
                Source::Tree(path) => {
                    let root = path.canonicalize().map_err(|e| {
                        Failure::because(format!("cannot use '{}' as root file system", path.display()), &e)
                    })?;
                    root::default_command(&mut workload);
                    workload.root = Root::Directory(root);
                    if workload.writable == Writable::Usual {
                        // It is somebody's image, and stays as it is: --rootfs is for changing it.
                        workload.writable = Writable::Memory { size: None };
                    }
                    None
                }
                other => {
                    if let Source::File(path) = &other {
                        root::refuse_partitions(path)?;
                        // As if it were mounted: what the store makes of it starts the runscript in any case.
                        workload.entrypoint.get_or_insert_default();
                        root::default_command(&mut workload);
                    }
                    let found = source::acquire(cx, &engine, &other, &wishes(args)?)?;
                    workload.root = Root::Image {
                        manifest: found.image.manifest_digest.clone(),
                        name: found.name.clone(),
                    };
                    Some(found)
                }
            }
        }
    };
    let nvidia = args.nv || args.gpus.is_some();
    if nvidia || args.rocm {
        let of_store = image.as_ref().map(|found| &found.image);
        let inside = engine.inside(&workload.root, of_store, file.as_ref())?;
        let env = of_store.map(|image| image.config.config.env.as_slice()).unwrap_or_default();
        devices::add_drivers((nvidia, args.rocm), &inside, env, &mut workload, &cx.ui);
    }
    if args.publish_all {
        let of_image = image.iter().flat_map(|found| found.image.config.config.exposed_ports.keys());
        let more = exposed(of_image.chain(&args.expose), &workload.ports)?;
        workload.ports.extend(more);
    }
    let foreground = Foreground {
        user_namespace: None,
        image: image.as_ref().map(|found| &found.image),
        file: file.as_ref(),
        inside: None,
        started: &|_| {},
        created: &|id| cidfile.as_ref().map_or(Ok(()), |file| file.write(id)),
        warn: &|text| cx.ui.warning(text),
    };
    let (mut id, mut code) = (None, 0);
    let done = match way {
        Way::Created => engine.create_container(&workload, &foreground).map(|made| id = Some(made)),
        Way::Background => engine.run_detached(&workload, &foreground, None).map(|made| id = Some(made)),
        Way::Foreground => engine.run(&workload, &foreground).map(|exit| code = Exit::code(exit)),
        Way::Attached => {
            let wants = |stream: &str| {
                args.attach.is_empty() || args.attach.iter().any(|word| word.eq_ignore_ascii_case(stream))
            };
            let wishes = isles_engine::Wishes {
                stdout: wants("stdout"),
                stderr: wants("stderr"),
                foreground: workload.restart == RestartPolicy::No,
                signals: args.sig_proxy,
                ..isles_engine::Wishes::all(workload.interactive && wants("stdin"), detach_keys)
            };
            let began = |id: &str| {
                // As docker has it: who sees nothing of it is told its ID.
                if !wishes.stdout && !wishes.stderr {
                    let _ = cx.ui.line(id);
                }
            };
            engine.run_attached(&workload, &foreground, &wishes, &began).map(|parted| {
                if let Parted::Ended(ended) = parted {
                    code = ended;
                }
            })
        }
    };
    match done {
        Ok(()) => {
            if let Some(file) = cidfile {
                file.keep();
            }
            if let Some(id) = id {
                cx.ui.line(&id)?;
            }
            Ok(Code(code))
        }
        Err(e) => {
            let code = if way == Way::Created { 1 } else { e.exit_code() };
            Err(Failure::from(e).with_code(code))
        }
    }
}

/// Makes a workload a member of a pod, which may be made for it.
fn join(engine: &Engine, args: &Args, pod: &str, workload: &mut Workload) -> Result<(), Failure> {
    let shared = [
        ("--network", !args.network.is_empty()),
        ("--publish", !args.publish.is_empty() || args.publish_all),
        ("--ip", args.ip.is_some() || args.ip6.is_some() || args.mac_address.is_some()),
        ("--network-alias", !args.network_alias.is_empty()),
        ("--dns", workload.dns != Dns::default()),
        ("--add-host", !args.add_host.is_empty()),
        ("--hostname", workload.hostname.is_some()),
    ];
    let made = pod.strip_prefix("new:");
    if let Some((option, _)) = shared.iter().find(|(_, given)| *given && made.is_none()) {
        return Err(Failure::new(format!("{option} is the pod's, not that of a container in it"))
            .with_hint("give it to `isles pod create`"));
    }
    let Some(name) = made else { return Ok(engine.join_pod(pod, workload)?) };
    let owner = Workload {
        name: Some(name.to_owned()),
        network: workload.network.clone(),
        ports: std::mem::take(&mut workload.ports),
        dns: std::mem::take(&mut workload.dns),
        extra_hosts: std::mem::take(&mut workload.extra_hosts),
        hostname: workload.hostname.take().or_else(|| Some(name.to_owned())),
        ..Workload::default()
    };
    let id = engine.create_pod(&owner, PodShares::default())?;
    Ok(engine.join_pod(&id, workload)?)
}

/// The workload that words of `isles run` describe, for commands that take some of them.
pub fn workload_of(words: Vec<String>) -> Result<Workload, Failure> {
    #[derive(clap::Parser)]
    #[command(no_binary_name = true)]
    struct Words {
        #[command(flatten)]
        args: Args,
    }
    match <Words as clap::Parser>::try_parse_from(words) {
        Ok(words) => workload(&words.args),
        Err(e) => Err(Failure::new(e.to_string().trim().trim_start_matches("error: ").to_owned())),
    }
}

/// The file of `--cidfile`. It goes again where there came no container that it could name.
struct CidFile {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl CidFile {
    fn new(path: &Path) -> Result<CidFile, Failure> {
        match File::options().write(true).create_new(true).open(path) {
            Ok(file) => Ok(CidFile { path: path.to_owned(), file, kept: false }),
            Err(e) => {
                let what = format!("cannot write the container's ID to '{}'", path.display());
                let failure = Failure::because(what, &e);
                Err(match e.kind() {
                    io::ErrorKind::AlreadyExists => {
                        failure.with_hint("it may name another container; remove the file, or choose another")
                    }
                    _ => failure,
                })
            }
        }
    }

    fn write(&self, id: &str) -> io::Result<()> {
        (&self.file).write_all(id.as_bytes())
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// As with docker, an option with an empty value is one that was left out: scripts write `--name "$NAME"`.
fn given(value: Option<&String>) -> Option<String> {
    value.filter(|text| !text.is_empty()).cloned()
}

fn path(value: Option<&OsString>) -> Option<&Path> {
    value.filter(|text| !text.is_empty()).map(Path::new)
}

fn wishes(args: &Args) -> Result<Wishes, Failure> {
    Ok(Wishes {
        platform: given(args.platform.as_ref()).as_deref().map(str::parse).transpose()?,
        pull: match args.pull.as_str() {
            "always" => PullPolicy::Always,
            "newer" => PullPolicy::Newer,
            "never" => PullPolicy::Never,
            _ => PullPolicy::Missing,
        },
        connection: args.connection.clone(),
        build: BuildOptions {
            build_args: build_arguments(&args.build_arg),
            target: args.target.clone(),
            no_cache: args.no_cache,
            host_ca: args.host_ca,
            bootstrap: BootstrapOptions { mirror: args.mirror.clone(), ..BootstrapOptions::default() },
            ..BuildOptions::default()
        },
    })
}

/// The workload that the options describe, without its root and command.
fn workload(args: &Args) -> Result<Workload, Failure> {
    let here = std::env::current_dir().map_err(|e| Failure::because("cannot find the current folder", &e))?;
    let home = isles_engine::home();
    let mut mounts = Vec::new();
    for text in &args.volume {
        mounts.push(Mount::parse_volume(text, &here, home.as_deref())?);
    }
    for text in &args.mount {
        mounts.push(Mount::parse_mount(text, &here, home.as_deref())?);
    }
    for text in &args.tmpfs {
        mounts.push(Mount::parse_tmpfs(text)?);
    }
    let entrypoint = args.entrypoint.as_ref().map(|words| match words.as_str() {
        "" => Vec::new(),
        word => vec![word.to_owned()],
    });
    let (overlays, writable) = root::overlays(&args.overlay, args.writable_tmpfs)?;
    Ok(Workload {
        name: given(args.name.as_ref()),
        entrypoint,
        env: environment(args)?,
        working_dir: match (path(args.workdir.as_ref()), args.here) {
            (Some(dir), _) if !dir.is_absolute() => {
                return Err(Spelling::new(format!(
                    "the working directory '{}' is not absolute",
                    dir.display()
                ))
                .with_hint("give the whole path in the container, such as /work")
                .into());
            }
            (Some(dir), _) => Some(dir.to_owned()),
            (None, true) => Some(here),
            (None, false) => None,
        },
        user: given(args.user.as_ref()),
        groups: args.group_add.clone(),
        hostname: given(args.hostname.as_ref()).as_deref().map(host_name).transpose()?,
        tty: args.tty,
        interactive: args.interactive || args.here,
        remove: args.rm || args.here,
        init: args.init,
        read_only: args.read_only,
        mounts,
        image_volumes: true,
        devices: (args.device.iter().filter(|word| !devices::is_name(word)))
            .map(|word| Device::parse(word))
            .collect::<Result<_, _>>()?,
        resources: resources(args)?,
        rlimits: args.ulimit.iter().map(|l| Rlimit::parse(l)).collect::<Result<_, _>>()?,
        shm_size: args.shm_size.as_deref().map(parse_bytes).transpose()?,
        network: network(args)?,
        ports: ports(args)?,
        dns: Dns {
            servers: args.dns.clone(),
            search: args.dns_search.clone(),
            options: args.dns_option.clone(),
        },
        pid: namespace("pid", args.pid.as_deref(), true)?,
        ipc: namespace("ipc", args.ipc.as_deref(), true)?,
        uts: namespace("uts", args.uts.as_deref(), false)?,
        cgroupns: namespace("cgroupns", args.cgroupns.as_deref(), false)?,
        userns: match args.userns.as_deref() {
            None | Some("" | "private" | "auto") => UserNamespace::Auto,
            Some("host") => UserNamespace::Host,
            Some("keep-id") => UserNamespace::KeepId,
            Some(other) => return Err(unknown("userns", other, "private, host or keep-id")),
        },
        security: security(args)?,
        sysctls: pairs(&args.sysctl, "kernel parameter")?.into_iter().collect(),
        extra_hosts: args.add_host.clone(),
        stop_signal: given(args.stop_signal.as_ref()).map(stop_signal).transpose()?,
        stop_timeout: args.stop_timeout,
        restart: restart(args)?,
        health: health(args)?,
        log: LogOptions::parse(given(args.log_driver.as_ref()).as_deref(), &args.log_opt)?,
        labels: labels(args)?,
        platform: given(args.platform.as_ref()).as_deref().map(str::parse).transpose()?,
        here: args.here,
        overlays,
        writable,
        image_mount: root::image_mount(given(args.image_mount.as_ref()))?,
        ..Workload::default()
    })
}

fn health(args: &Args) -> Result<Option<Healthcheck>, Failure> {
    let nanos = |text: &Option<String>| -> Result<u64, Failure> {
        let time = text.as_deref().filter(|text| !text.is_empty()).map(parse_duration).transpose()?;
        match time {
            // As docker has it: what is shorter is a mistake of units.
            Some(time) if !time.is_zero() && time < Duration::from_millis(1) => {
                Err(Failure::new("a time of health checks is at least 1ms")
                    .with_hint("write a unit, such as 30s"))
            }
            time => Ok(time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))),
        }
    };
    let test = match (&args.health_cmd, args.no_healthcheck) {
        (Some(_), true) => {
            return Err(
                Failure::new("--no-healthcheck conflicts with --health-cmd").with_hint("give one of them")
            );
        }
        (None, true) => vec!["NONE".to_owned()],
        (Some(line), false) if !line.is_empty() => vec!["CMD-SHELL".to_owned(), line.clone()],
        _ => Vec::new(),
    };
    let own = Healthcheck {
        test,
        interval: nanos(&args.health_interval)?,
        timeout: nanos(&args.health_timeout)?,
        start_period: nanos(&args.health_start_period)?,
        start_interval: nanos(&args.health_start_interval)?,
        retries: args.health_retries.unwrap_or(0),
    };
    Ok((own != Healthcheck::default()).then_some(own))
}

fn restart(args: &Args) -> Result<RestartPolicy, Failure> {
    let policy = RestartPolicy::parse(given(args.restart.as_ref()).as_deref().unwrap_or_default())?;
    if policy != RestartPolicy::No && (args.rm || args.here) {
        return Err(Failure::new("a container that is removed when it ends cannot start again")
            .with_hint("leave out --rm, or --restart"));
    }
    Ok(policy)
}

fn stop_signal(name: String) -> Result<String, Failure> {
    match isles_sandbox::oci::parse_signal(&name) {
        Ok(1..) => Ok(name),
        _ => Err(Spelling::new(format!("invalid signal '{name}'"))
            .with_hint("write a name, such as TERM or SIGINT, or a number up to 64")
            .into()),
    }
}

/// As docker has it, those of files come first, so an option counts for more.
fn labels(args: &Args) -> Result<BTreeMap<String, String>, Failure> {
    let mut lines = Vec::new();
    for path in &args.label_file {
        for_each_line(path, "labels", |_, line| {
            lines.push(line.trim_end().to_owned());
            Ok(())
        })?;
    }
    lines.iter().chain(&args.label).map(|text| label(text)).collect()
}

fn all_gpus(text: &str) -> Result<(), Spelling> {
    match text {
        "all" => Ok(()),
        _ => Err(Spelling::new(format!("unknown graphics processors '{text}'"))
            .with_hint("write all, or name some with --device nvidia.com/gpu=0")),
    }
}

fn label(text: &str) -> Result<(String, String), Failure> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("", _) => {
            Err(Spelling::new(format!("invalid label '{text}'")).with_hint("write KEY=VALUE, or KEY").into())
        }
        (key, value) => Ok((key.to_owned(), value.to_owned())),
    }
}

/// sethostname(2) takes up to 64 bytes.
fn host_name(name: &str) -> Result<String, Failure> {
    let fine = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if fine {
        return Ok(name.to_owned());
    }
    Err(Spelling::new(format!("invalid host name '{name}'"))
        .with_hint("a host name has up to 64 letters, digits, '-' and '.'")
        .into())
}

fn resources(args: &Args) -> Result<Resources, Failure> {
    /// Docker's own floor; below it nothing starts.
    const LEAST_MEMORY: u64 = 6 << 20;
    let memory = args.memory.as_deref().map(parse_bytes).transpose()?.filter(|bytes| *bytes > 0);
    if let Some(bytes) = memory.filter(|bytes| *bytes < LEAST_MEMORY) {
        return Err(Spelling::new(format!("a memory limit of {bytes} bytes is too small"))
            .with_hint("the least is 6m")
            .into());
    }
    let memory_swap = match args.memory_swap.as_deref() {
        None => None,
        Some("-1") => Some(-1),
        Some(text) => Some(i64::try_from(parse_bytes(text)?).unwrap_or(i64::MAX)),
    };
    if memory_swap.is_some() && memory.is_none() {
        return Err(Failure::new("--memory-swap needs --memory")
            .with_hint("it is the sum of memory and swap, so say how much of it is memory"));
    }
    let quota = args.cpu_quota.filter(|quota| *quota > 0);
    if args.cpus.is_some() && (quota.is_some() || args.cpu_period.is_some()) {
        return Err(Failure::new("--cpus conflicts with --cpu-period and --cpu-quota")
            .with_hint("--cpus 1.5 is a quota of 150000 in a period of 100000"));
    }
    if let Some(period) = args.cpu_period.filter(|period| !(1000..=1_000_000).contains(period)) {
        return Err(Failure::new(format!("invalid --cpu-period {period}"))
            .with_hint("it is between 1000 and 1000000 microseconds"));
    }
    if let Some(quota) = quota.filter(|quota| *quota < 1000) {
        return Err(Failure::new(format!("invalid --cpu-quota {quota}"))
            .with_hint("it is at least 1000 microseconds, or -1"));
    }
    Ok(Resources {
        memory,
        memory_swap,
        memory_reservation: (args.memory_reservation.as_deref().map(parse_bytes).transpose()?)
            .filter(|n| *n > 0),
        cpu_period: args.cpu_period,
        cpu_quota: quota,
        nano_cpus: args.cpus.as_deref().map(parse_cpus).transpose()?,
        cpu_shares: args.cpu_shares,
        cpuset_cpus: given(args.cpuset_cpus.as_ref()),
        cpuset_mems: given(args.cpuset_mems.as_ref()),
        // Docker takes 0 and -1 for "no limit".
        pids: args.pids_limit.filter(|n| *n > 0),
        oom_score_adj: args.oom_score_adj,
        best_effort: args.best_effort,
    })
}

fn unknown(option: &str, value: &str, known: &str) -> Failure {
    Spelling::new(format!("unknown mode '{value}' for --{option}"))
        .with_hint(format!("known are {known}"))
        .into()
}

fn ports(args: &Args) -> Result<Vec<Port>, Failure> {
    let mut all = Vec::new();
    for words in &args.publish {
        all.extend(Port::parse(words)?);
    }
    Ok(all)
}

/// The ports that an image exposes and the caller named, on free ones of the host.
fn exposed<'a>(words: impl Iterator<Item = &'a String>, known: &[Port]) -> Result<Vec<Port>, Failure> {
    let mut all: Vec<Port> = Vec::new();
    for words in words {
        for port in Port::parse(words)? {
            let same = |other: &Port| (other.container, other.protocol) == (port.container, port.protocol);
            if !known.iter().chain(&all).any(same) {
                all.push(Port { host: 0, ..port });
            }
        }
    }
    Ok(all)
}

fn namespace(option: &str, mode: Option<&str>, shared: bool) -> Result<NamespaceMode, Failure> {
    Ok(match mode {
        None | Some("" | "private" | "shareable") => NamespaceMode::Private,
        Some("host") => NamespaceMode::Host,
        Some(other) => match other.split_once(':') {
            Some(("container", name)) if shared && !name.is_empty() => {
                NamespaceMode::Container(name.to_owned())
            }
            Some(("ns", path)) if !path.is_empty() => NamespaceMode::Path(path.into()),
            _ if shared => return Err(unknown(option, other, "private, host and container:NAME")),
            _ => return Err(unknown(option, other, "private and host")),
        },
    })
}

fn security(args: &Args) -> Result<Security, Failure> {
    let mut out = Security {
        privileged: args.privileged,
        cap_add: args.cap_add.clone(),
        cap_drop: args.cap_drop.clone(),
        ..Security::default()
    };
    for option in &args.security_opt {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => out.no_new_privileges = Some(true),
            ("no-new-privileges", "false") => out.no_new_privileges = Some(false),
            ("seccomp", "unconfined") => out.seccomp = SeccompChoice::Unconfined,
            ("seccomp", "builtin") => out.seccomp = SeccompChoice::Default,
            ("seccomp", file) if !file.is_empty() => out.seccomp = SeccompChoice::Profile(file.into()),
            ("systempaths", "unconfined") => out.unmask_system_paths = true,
            // There is nothing to switch off: neither is used.
            ("apparmor", "unconfined") | ("label", "disable") => {}
            _ => {
                return Err(Spelling::new(format!("unknown security option '{option}'"))
                    .with_hint("known are seccomp=FILE, seccomp=unconfined, no-new-privileges and systempaths=unconfined")
                    .into());
            }
        }
    }
    Ok(out)
}

fn pairs(list: &[String], what: &str) -> Result<Vec<(String, String)>, Failure> {
    list.iter()
        .map(|text| {
            let (name, value) =
                text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
                    Failure::new(format!("invalid {what} '{text}'")).with_hint("write NAME=VALUE")
                })?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Of files, then of options; a bare name is the caller's variable. Where the caller has none, a file's name does
/// nothing, and an option's takes away the image's. With `--here` the caller's own environment comes before all.
fn environment(args: &Args) -> Result<Vec<String>, Failure> {
    /// What belongs to the host's system rather than to the user.
    const OF_HOST: [&str; 5] = ["PATH", "HOSTNAME", "PWD", "OLDPWD", "SHLVL"];
    let mut env = Vec::new();
    if args.here {
        for (name, value) in std::env::vars_os() {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
            if !OF_HOST.contains(&name) && !name.starts_with("LD_") {
                env.push(format!("{name}={value}"));
            }
        }
    }
    for path in &args.env_file {
        read_env_file(path, &mut env)?;
    }
    for entry in &args.env {
        if !add_variable(entry, &mut env)? {
            env.push(entry.clone());
        }
    }
    Ok(env)
}

/// `false` for a bare name that the caller has no value of.
pub fn add_variable(entry: &str, env: &mut Vec<String>) -> Result<bool, Failure> {
    let name = entry.split('=').next().unwrap_or_default();
    if name.is_empty() {
        return Err(Spelling::new(format!("invalid environment variable '{entry}'"))
            .with_hint("write NAME=VALUE, or NAME to pass on the caller's")
            .into());
    }
    if entry.contains('=') {
        env.push(entry.to_owned());
    } else if let Ok(value) = std::env::var(name) {
        env.push(format!("{name}={value}"));
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// Docker's format: a variable a line, `#` begins a comment line, nothing is unquoted.
pub fn read_env_file(path: &Path, env: &mut Vec<String>) -> Result<(), Failure> {
    for_each_line(path, "variables", |number, line| {
        let name = line.split('=').next().unwrap_or_default();
        if name.contains(char::is_whitespace) || name.is_empty() {
            return Err(Failure::new(format!(
                "{}:{number}: variable '{name}' contains white space",
                path.display(),
            ))
            .with_hint("a line is NAME=VALUE or NAME, without spaces around the equals sign"));
        }
        add_variable(line, env).map(drop)
    })
}

/// Lines that say something, with their numbers.
fn for_each_line(
    path: &Path,
    what: &str,
    mut each: impl FnMut(usize, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    const LONGEST: u64 = 16 << 20;
    let fail = |e: &io::Error| Failure::because(format!("cannot read {what} from '{}'", path.display()), e);
    let file = File::open(path).map_err(|e| fail(&e))?;
    for (number, line) in BufReader::new(io::Read::take(file, LONGEST)).lines().enumerate() {
        let line = line.map_err(|e| fail(&e))?;
        let line = line.trim_start_matches('\u{feff}').trim_start();
        if !line.is_empty() && !line.starts_with('#') {
            each(number + 1, line)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use isles_spec::NetworkMode;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Workload, Failure> {
        let words = ["run"].into_iter().chain(line.split_whitespace());
        workload(&Line::try_parse_from(words).unwrap().args)
    }

    #[test]
    fn options_become_a_workload() {
        let w = parse(
            "-it --rm -e A=1 -w /w -u 5 --memory 64m --cpus 1.5 --pids-limit -1 --network none x ls -la",
        )
        .unwrap();
        assert!(w.tty && w.interactive && w.remove);
        assert_eq!((w.resources.memory, w.resources.nano_cpus), (Some(64 << 20), Some(1_500_000_000)));
        assert_eq!(w.resources.pids, None);
        assert_eq!(w.network, NetworkMode::None);
        let w = parse("--entrypoint= --security-opt no-new-privileges --security-opt seccomp=/p.json --pid container:a x").unwrap();
        assert_eq!(w.entrypoint, Some(vec![]));
        assert_eq!(w.security.no_new_privileges, Some(true));
        assert_eq!(w.security.seccomp, SeccompChoice::Profile("/p.json".into()));
        assert_eq!(w.pid, NamespaceMode::Container("a".into()));
        let w = parse("-v /a:/b:ro --mount type=tmpfs,target=/t --tmpfs /u:size=1m --device /dev/null x")
            .unwrap();
        assert_eq!((w.mounts.len(), w.devices.len()), (3, 1));
    }

    #[test]
    fn options_that_are_refused_say_why() {
        for (line, word) in [
            ("--restart sometimes x", "'sometimes'"),
            ("--restart always --rm x", "cannot start again"),
            ("--log-driver fluentd x", "'fluentd'"),
            ("--log-opt max-size=1 x", "64k"),
            ("-p 80:x x", "'80:x'"),
            ("-p 80 --network host x", "network of the container's own"),
            ("--ip 10.0.0.2 --network none x", "network of the container's own"),
            ("--network one --network host x", "'host'"),
            ("--network one --network one x", "twice"),
            ("--network pod:x x", "'pod:x'"),
            ("--network one --network container:x x", "'container:…'"),
            ("--network one:ip=x x", "'ip=x'"),
            ("--network name=host,ip=10.0.0.2 x", "'name=host,ip=10.0.0.2'"),
            ("--network one:ip=10.0.0.2 --ip 10.0.0.3 x", "two addresses"),
            ("--network one:mac=02:00:00:00:00:01 --mac-address 02:00:00:00:00:02 x", "twice"),
            ("--network one --network name=one,alias=x x", "twice"),
            ("--link db x", "links"),
            ("--mac-address 01:00:00:00:00:01 x", "'01:00:00:00:00:01'"),
            ("--pid nowhere x", "'nowhere'"),
            ("--uts container:a x", "'container:a'"),
            ("--memory 1k x", "too small"),
            ("--memory-swap 1g x", "--memory"),
            ("--cpus 0 x", "CPUs"),
            ("--cpus 1 --cpu-quota 50000 x", "--cpus"),
            ("--cpu-period 7 x", "7"),
            ("--cpu-quota 7 x", "7"),
            ("--memory-reservation much x", "'much'"),
            ("--label-file /nonexistent/labels x", "/nonexistent/labels"),
            ("--security-opt magic x", "'magic'"),
            ("-e =1 x", "'=1'"),
            ("--env-file /nonexistent/env x", "/nonexistent/env"),
            ("-h a/b x", "'a/b'"),
            ("-w rel x", "'rel'"),
            ("--ulimit nofile x", "'nofile'"),
            ("--sysctl a x", "'a'"),
            ("--userns moon x", "'moon'"),
            ("--stop-signal FOO x", "'FOO'"),
            ("--label =x x", "'=x'"),
            ("--image-mount loop x", "'loop'"),
        ] {
            let failure = parse(line).unwrap_err();
            assert!(failure.message.contains(word), "{line}: {}", failure.message);
            assert!(failure.hint.is_some() || !failure.causes.is_empty(), "{line}");
        }
    }

    #[test]
    fn the_last_word_counts_and_an_empty_one_is_none() {
        let empty = ["--name=", "-w=", "-u=", "--hostname=", "--cidfile=", "--platform=", "--stop-signal="];
        let w = parse(&format!("--rm --rm --memory 1g --memory 64m {} x", empty.join(" "))).unwrap();
        assert_eq!(w.resources.memory, Some(64 << 20));
        assert_eq!((w.name, w.user, w.hostname, w.working_dir), (None, None, None, None));
        assert_eq!((w.platform, w.stop_signal), (None, None));
        let w = parse("-e NOT_SET_ANYWHERE_7 --stop-signal SIGINT x").unwrap();
        assert_eq!(w.env, ["NOT_SET_ANYWHERE_7"], "takes the image's away");
        assert_eq!(w.stop_signal.as_deref(), Some("SIGINT"));
        assert!(Line::try_parse_from(["run", "--red-only", "x"]).is_err(), "no SOURCE begins so");
        let words = Line::try_parse_from(["run", "x", "ls", "--rm"]).unwrap().args.words;
        assert_eq!(words, ["x", "ls", "--rm"]);
    }

    #[test]
    fn files_of_variables() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# note\n\nA=1\n  B=x # kept\nNOT_SET_ANYWHERE_7\nC=\"q\"\n").unwrap();
        let mut env = Vec::new();
        read_env_file(&file, &mut env).unwrap();
        assert_eq!(env, ["A=1", "B=x # kept", "C=\"q\""]);
        std::fs::write(&file, "A B=1\n").unwrap();
        assert!(read_env_file(&file, &mut env).unwrap_err().message.contains("env:1"));
    }
}
