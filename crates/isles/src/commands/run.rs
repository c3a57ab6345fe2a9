//! `isles run`: its options, and what is done with them; what they mean is in [`workload`].

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use isles_build::BuildOptions;
use isles_build::debian::BootstrapOptions;
use isles_engine::{Engine, Exit, Foreground, Parted, image_file};
use isles_spec::{
    Dns, ImageMount, Overlay, PodShares, PullPolicy, RestartPolicy, Root, Source, Workload, Writable,
};

use crate::address::of_door;
use crate::commands::build::build_arguments;
use crate::context::Context;
use crate::devices;
use crate::failure::{Code, Failure};
use crate::registry::Connection;
use crate::root;
use crate::source::{self, Wishes};

mod cid_file;
mod environment;
mod network;
mod workload;

use cid_file::CidFile;
pub use environment::{add_variable, read_env_file};
pub use network::NO_LINKS;
pub use workload::workload_of;
use workload::{all_gpus, exposed, given, path, restart, workload};

/// Docker's.
pub const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

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

Words behind an image are arguments of its ENTRYPOINT, as docker has it, and so are those behind a SIF file of a registry, a library
or the web, whose ENTRYPOINT is its runscript. A file or a folder that is run where it lies has no configuration of that kind: words
behind it are a command, in the place of its runscript. `--entrypoint /.singularity.d/runscript` or `apptainer run` give the
runscript its arguments there, and `--entrypoint ''` makes words a command everywhere.

A container has a network of its own, which leads to the world but not to the host's loopback: on a bridge as root, and
without any right on the host's network as an ordinary user. With --rm, and without -t, -d, -a or --log-driver, the command has
the caller's own streams: nothing is copied, so 'isles attach' and 'isles logs' have no part in them; 'isles exec', 'stop', 'cp' and all
others work as ever. The exit code is the command's: 128+n after signal n,
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
    /// Lay a folder over the root file system, or an image file. A folder or an ext3 image is written to unless
    /// :ro follows; an image by others than root with --rm, and with fuse2fs and fuse-overlayfs installed.
    #[arg(long, value_name = "PATH[:ro]", help_heading = "Files")]
    overlay: Vec<String>,
    /// How an image file gets a root file system: mounted by the kernel (root), served by this process (fuse), taken
    /// into the store (unpack), or auto, the first of these that can be had [env: ISLES_IMAGE_MOUNT]. One that is
    /// encrypted is served, and opened with APPTAINER_ENCRYPTION_PASSPHRASE, or with the private key in the file that
    /// APPTAINER_ENCRYPTION_PEM_PATH names.
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
    /// Have what is short of memory wait for it, and kill nothing (cgroup v1).
    #[arg(long, help_heading = "Limits")]
    oom_kill_disable: bool,
    /// How readily memory is swapped out, 0 to 100 (cgroup v1); -1 as the host has it.
    #[arg(long, value_name = "NUMBER", help_heading = "Limits", allow_hyphen_values = true)]
    memory_swappiness: Option<i64>,
    /// A weight relative to others at block devices, 10 to 1000.
    #[arg(long, value_name = "NUMBER", help_heading = "Limits")]
    blkio_weight: Option<i64>,
    /// The same at one of them: /dev/sda:500.
    #[arg(long, value_name = "PATH:NUMBER", help_heading = "Limits")]
    blkio_weight_device: Vec<String>,
    /// Bytes that are read from a block device in a second: /dev/sda:10mb.
    #[arg(long, value_name = "PATH:BYTES", help_heading = "Limits")]
    device_read_bps: Vec<String>,
    /// Bytes that are written to one.
    #[arg(long, value_name = "PATH:BYTES", help_heading = "Limits")]
    device_write_bps: Vec<String>,
    /// How often one is read in a second: /dev/sda:1000.
    #[arg(long, value_name = "PATH:NUMBER", help_heading = "Limits")]
    device_read_iops: Vec<String>,
    /// How often one is written to.
    #[arg(long, value_name = "PATH:NUMBER", help_heading = "Limits")]
    device_write_iops: Vec<String>,
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
    quiet: bool,
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
    let cx = &Context::new(cx.ui.quieter(args.quiet), cx.root.clone());
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
    // What is encrypted is opened once, and nothing keeps its passphrase.
    let mut inside = match (&workload.root, &file) {
        (Root::File(found), Some(opened)) if found.kind.is_encrypted() => {
            let name = found.path.display().to_string();
            let secret = isles_apptainer::passphrase_by_variables(&name, opened).map_err(of_door)?;
            Some(engine.inside(&workload.root, None, Some(opened), secret.as_deref())?)
        }
        _ => None,
    };
    let nvidia = args.nv || args.gpus.is_some();
    if nvidia || args.rocm {
        let of_store = image.as_ref().map(|found| &found.image);
        let inside = match &mut inside {
            Some(inside) => inside,
            none => none.insert(engine.inside(&workload.root, of_store, file.as_ref(), None)?),
        };
        let env = of_store.map(|image| image.config.config.env.as_slice()).unwrap_or_default();
        devices::add_drivers((nvidia, args.rocm), inside, env, &mut workload, &cx.ui);
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
        inside: inside.as_ref(),
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

/// How the root is found.
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
