//! The flags of everything that runs an image, and the variables that stand for them.

use crate::flag::Flag;

// Files.
pub static BIND: Flag = Flag::lines(
    "bind",
    "spec",
    "show a path of the host: SOURCE[:DESTINATION[:ro|rw|image-src=PATH|id=N]], or several with commas",
)
.short('B')
.env(&["BIND", "BINDPATH"])
.adds();
pub static MOUNT: Flag =
    Flag::lines("mount", "spec", "the same in words: type=bind,src=/a,dst=/b[,ro]; quotes as in CSV")
        .env(&["MOUNT"])
        .adds();
pub static FUSEMOUNT: Flag =
    Flag::lines("fusemount", "spec", "mount by a FUSE program: TYPE:COMMAND MOUNTPOINT").env(&["FUSESPEC"]);
pub static HOME: Flag =
    Flag::text("home", "spec", "another home: SOURCE or SOURCE:DESTINATION").short('H').env(&["HOME"]);
pub static NO_HOME: Flag =
    Flag::switch("no-home", "without the home, unless the current folder is in it").env(&["NO_HOME"]);
pub static CONTAIN: Flag =
    Flag::switch("contain", "with a small /dev, and an empty /tmp, /var/tmp and home in memory")
        .short('c')
        .env(&["CONTAIN"]);
pub static CONTAINALL: Flag =
    Flag::switch("containall", "with --contain, a process tree, IPC and an environment of its own")
        .short('C')
        .env(&["CONTAINALL"]);
pub static COMPAT: Flag =
    Flag::switch("compat", "nearer to docker: --containall --no-init --no-umask --no-eval --writable-tmpfs")
        .env(&["COMPAT"]);
pub static NO_MOUNT: Flag = Flag::words(
    "no-mount",
    "list",
    "without these: proc, sys, dev, devpts, home, tmp, hostfs, cwd, bind-paths, or a path that is bound by default",
)
.env(&["NO_MOUNT"]);
pub static WORKDIR: Flag = Flag::text(
    "workdir",
    "path",
    "the folder where --contain and --scratch keep their files instead of memory",
)
.short('W')
.env(&["WORKDIR"]);
pub static SCRATCH: Flag = Flag::words("scratch", "path", "an empty folder in the container, gone with it")
    .short('S')
    .env(&["SCRATCH", "SCRATCHDIR"]);
pub static OVERLAY: Flag =
    Flag::words("overlay", "path", "lay a folder or an image over the container: PATH[:ro]")
        .short('o')
        .env(&["OVERLAY", "OVERLAYIMAGE"]);
pub static WRITABLE: Flag =
    Flag::switch("writable", "write into the image itself, which is a folder").short('w').env(&["WRITABLE"]);
pub static WRITABLE_TMPFS: Flag =
    Flag::switch("writable-tmpfs", "let the container be written to; nothing is kept")
        .env(&["WRITABLE_TMPFS"]);
pub static UNDERLAY: Flag = Flag::switch("underlay", "accepted; missing mount points are always made")
    .env(&["UNDERLAY"])
    .deprecated("default overlay is preferred");
pub static UNSQUASH: Flag =
    Flag::switch("unsquash", "unpack an image file and run from there, instead of mounting it")
        .env(&["UNSQUASH"]);
pub static CWD: Flag =
    Flag::text("cwd", "path", "start in this folder of the container").env(&["CWD", "TARGET_CWD"]);
pub static PWD: Flag = Flag::text("pwd", "path", "the same as --cwd").env(&["PWD", "TARGET_PWD"]).hidden();

// Environment.
pub static ENV: Flag = Flag::pairs("env", "NAME=VALUE", "set variables in the container");
pub static NO_ENV: Flag =
    Flag::words("no-env", "list", "do not pass on these variables of the host").env(&["NOENV"]);
pub static ENV_FILE: Flag =
    Flag::words("env-file", "path", "set the variables that a file of shell assignments sets")
        .env(&["ENV_FILE"]);
pub static CLEANENV: Flag =
    Flag::switch("cleanenv", "do not pass on the environment of the host").short('e').env(&["CLEANENV"]);
pub static NO_EVAL: Flag =
    Flag::switch("no-eval", "take variables and arguments as they are, without a shell reading them")
        .env(&["NO_EVAL"]);
pub static MPI: Flag =
    Flag::switch("mpi", "with --cleanenv, still pass on the variables of MPI, PMI, PMIx and Slurm")
        .env(&["MPI"]);
pub static NO_UMASK: Flag =
    Flag::switch("no-umask", "use 0022 instead of the caller's umask").env(&["NO_UMASK"]);
pub static APP: Flag = Flag::text("app", "name", "use this app of the image").env(&["APP", "APPNAME"]);
pub static SHELL: Flag = Flag::text("shell", "path", "the shell to start").short('s').env(&["SHELL"]);

// Namespaces, network, names.
pub static USERNS: Flag =
    Flag::switch("userns", "in a user namespace of its own").short('u').env(&["USERNS", "UNSHARE_USERNS"]);
pub static PID: Flag =
    Flag::switch("pid", "in a PID namespace of its own").short('p').env(&["PID", "UNSHARE_PID"]);
pub static NO_PID: Flag = Flag::switch("no-pid", "not in a PID namespace of its own").env(&["NO_PID"]);
pub static IPC: Flag =
    Flag::switch("ipc", "in an IPC namespace of its own").short('i').env(&["IPC", "UNSHARE_IPC"]);
pub static NET: Flag =
    Flag::switch("net", "in a network namespace of its own").short('n').env(&["NET", "UNSHARE_NET"]);
pub static UTS: Flag = Flag::switch("uts", "in a UTS namespace of its own").env(&["UTS", "UNSHARE_UTS"]);
pub static NETWORK: Flag = Flag::text(
    "network",
    "name",
    "with --net: bridge, ptp, fakeroot, none, or networks of `isles network create`",
)
.env(&["NETWORK"]);
pub static NETWORK_ARGS: Flag = Flag::words(
    "network-args",
    "args",
    "for networks: [NETWORK:]portmap=HOST:CONTAINER/tcp;IP=ADDRESS;MAC=ADDRESS",
)
.env(&["NETWORK_ARGS"]);
pub static NETNS_PATH: Flag =
    Flag::text("netns-path", "path", "join this network namespace").env(&["NETNS_PATH"]);
pub static HOSTNAME: Flag = Flag::text("hostname", "name", "the name of the host").env(&["HOSTNAME"]);
pub static DNS: Flag = Flag::text("dns", "list", "ask these servers for names").env(&["DNS"]);
pub static NO_INIT: Flag =
    Flag::switch("no-init", "with --pid, let the program itself be process 1").env(&["NOSHIMINIT"]);
pub static SHARENS: Flag =
    Flag::switch("sharens", "share namespaces and image with others that the same parent starts")
        .env(&["SHARENS"]);

// Rights.
pub static FAKEROOT: Flag =
    Flag::switch("fakeroot", "as root of the container").short('f').env(&["FAKEROOT"]);
pub static IGNORE_SUBUID: Flag = Flag::switch("ignore-subuid", "").env(&["IGNORE_SUBUID"]).hidden();
pub static IGNORE_FAKEROOT: Flag =
    Flag::switch("ignore-fakeroot-command", "").env(&["IGNORE_FAKEROOT_COMMAND"]).hidden();
pub static IGNORE_USERNS: Flag = Flag::switch("ignore-userns", "").env(&["IGNORE_USERNS"]).hidden();
pub static ADD_CAPS: Flag = Flag::text("add-caps", "list", "capabilities to have besides").env(&["ADD_CAPS"]);
pub static DROP_CAPS: Flag = Flag::text("drop-caps", "list", "capabilities not to have").env(&["DROP_CAPS"]);
pub static KEEP_PRIVS: Flag = Flag::switch("keep-privs", "root keeps all capabilities").env(&["KEEP_PRIVS"]);
pub static NO_PRIVS: Flag = Flag::switch("no-privs", "root keeps no capabilities").env(&["NO_PRIVS"]);
pub static ALLOW_SETUID: Flag =
    Flag::switch("allow-setuid", "set-uid programs of the container work (root only)").env(&["ALLOW_SETUID"]);
pub static SECURITY: Flag = Flag::words(
    "security",
    "list",
    "uid:N, gid:N[:N], seccomp:PROFILE, or apparmor and selinux with a label",
)
.env(&["SECURITY"]);

// Limits.
pub static APPLY_CGROUPS: Flag =
    Flag::text("apply-cgroups", "path", "limits, and rules for devices, from a TOML file")
        .env(&["APPLY_CGROUPS"]);
pub static BLKIO_WEIGHT: Flag =
    Flag::number("blkio-weight", "weight of input and output, 10 to 1000").env(&["BLKIO_WEIGHT"]);
pub static BLKIO_WEIGHT_DEVICE: Flag =
    Flag::words("blkio-weight-device", "list", "the same for a device: PATH:WEIGHT")
        .env(&["BLKIO_WEIGHT_DEVICE"]);
pub static CPU_SHARES: Flag =
    Flag::number("cpu-shares", "share of processor time, relative to others").env(&["CPU_SHARES"]);
pub static CPUS: Flag = Flag::text("cpus", "number", "limit processor time, in processors").env(&["CPUS"]);
pub static CPUSET_CPUS: Flag =
    Flag::text("cpuset-cpus", "list", "run on these processors").env(&["CPUSET_CPUS"]);
pub static CPUSET_MEMS: Flag =
    Flag::text("cpuset-mems", "list", "use these memory nodes").env(&["CPUSET_MEMS"]);
pub static MEMORY: Flag = Flag::text("memory", "bytes", "limit memory").env(&["MEMORY"]);
pub static MEMORY_RESERVATION: Flag =
    Flag::text("memory-reservation", "bytes", "memory that is not taken away first")
        .env(&["MEMORY_RESERVATION"]);
pub static MEMORY_SWAP: Flag =
    Flag::text("memory-swap", "bytes", "limit memory and swap together; -1 for no limit on swap")
        .env(&["MEMORY_SWAP"]);
pub static OOM_KILL_DISABLE: Flag =
    Flag::switch("oom-kill-disable", "wait for memory instead of being killed").env(&["OOM_KILL_DISABLE"]);
pub static PIDS_LIMIT: Flag =
    Flag::number("pids-limit", "limit the number of processes; -1 for no limit").env(&["PIDS_LIMIT"]);

// Devices.
pub static NV: Flag = Flag::switch("nv", "lend libraries and devices of NVIDIA's driver").env(&["NV"]);
pub static NO_NV: Flag = Flag::switch("no-nv", "").env(&["NV_OFF", "NO_NV"]).hidden();
pub static NVCCLI: Flag =
    Flag::switch("nvccli", "by nvidia-container-cli, which is not called").env(&["NVCCLI"]);
pub static ROCM: Flag = Flag::switch("rocm", "lend libraries and devices of AMD's ROCm").env(&["ROCM"]);
pub static NO_ROCM: Flag = Flag::switch("no-rocm", "").env(&["ROCM_OFF", "NO_ROCM"]).hidden();
pub static COMPAT32: Flag =
    Flag::switch("compat32", "with --nv or --rocm, lend the 32-bit libraries, too").env(&["COMPAT32"]);
pub static INTEL_HPU: Flag =
    Flag::switch("intel-hpu", "lend the devices of Intel Gaudi under --contain").env(&["INTEL_HPU"]);
pub static DEVICE: Flag = Flag::words(
    "device",
    "list",
    "devices by their names in the Container Device Interface: VENDOR/CLASS=NAME",
);
pub static CDI_DIRS: Flag = Flag::words("cdi-dirs", "list", "where that interface's files are");
pub static CONTAINLIBS: Flag = Flag::words("containlibs", "list", "").env(&["CONTAINLIBS"]).hidden();

// Image.
pub static DISABLE_CACHE: Flag =
    Flag::switch("disable-cache", "do not keep an image that is fetched").env(&["DISABLE_CACHE"]);
pub static TMPDIR: Flag = Flag::text("tmpdir", "path", "").env(&["TMPDIR"]).hidden();
pub static NO_HTTPS: Flag =
    Flag::switch("no-https", "speak with registries and libraries without TLS").env(&["NOHTTPS", "NO_HTTPS"]);
pub static NOHTTPS: Flag = Flag::switch("nohttps", "the same as --no-https").deprecated("use --no-https");
pub static DOCKER_LOGIN: Flag =
    Flag::switch("docker-login", "ask for the name and password of the registry").env(&["DOCKER_LOGIN"]);
pub static DOCKER_HOST: Flag =
    Flag::text("docker-host", "url", "the docker daemon of docker-daemon:").env(&["DOCKER_HOST"]).bare();
pub static DOCKER_USERNAME: Flag =
    Flag::text("docker-username", "name", "").env(&["DOCKER_USERNAME"]).bare().hidden();
pub static DOCKER_PASSWORD: Flag =
    Flag::text("docker-password", "word", "").env(&["DOCKER_PASSWORD"]).bare().hidden();
pub static AUTHFILE: Flag =
    Flag::text("authfile", "path", "credentials of registries, in docker's format").env(&["AUTH_FILE"]);
pub static PASSPHRASE: Flag = Flag::switch(
    "passphrase",
    "ask for the passphrase that opens an encrypted image, or that one is built with",
);
pub static PEM_PATH: Flag = Flag::text(
    "pem-path",
    "path",
    "an RSA key: the private one opens an encrypted image, the public one builds one",
);

// Rarely.
pub static BOOT: Flag = Flag::switch("boot", "run the container's own /sbin/init (root only)").env(&["BOOT"]);
pub static DMTCP_LAUNCH: Flag = Flag::text("dmtcp-launch", "name", "").env(&["DMTCP_LAUNCH"]).hidden();
pub static DMTCP_RESTART: Flag = Flag::text("dmtcp-restart", "name", "").env(&["DMTCP_RESTART"]).hidden();
pub static RUNSCRIPT_TIMEOUT: Flag =
    Flag::text("runscript-timeout", "time", "accepted; runscripts are not read in advance")
        .env(&["RUNSCRIPT_TIMEOUT"]);

/// How registries are spoken with: shared with `pull`, `push` and `build`.
pub static OF_REGISTRY: [&Flag; 7] =
    [&NO_HTTPS, &NOHTTPS, &DOCKER_LOGIN, &DOCKER_HOST, &DOCKER_USERNAME, &DOCKER_PASSWORD, &AUTHFILE];

/// Of `exec`, `run`, `shell`, `test`, and of instances.
pub static OF_ALL: [&Flag; 70] = [
    &ADD_CAPS,
    &ALLOW_SETUID,
    &APP,
    &APPLY_CGROUPS,
    &BIND,
    &BLKIO_WEIGHT,
    &BLKIO_WEIGHT_DEVICE,
    &CLEANENV,
    &COMPAT,
    &COMPAT32,
    &CONTAIN,
    &CONTAINALL,
    &CONTAINLIBS,
    &CPU_SHARES,
    &CPUS,
    &CPUSET_CPUS,
    &CPUSET_MEMS,
    &DISABLE_CACHE,
    &DMTCP_LAUNCH,
    &DMTCP_RESTART,
    &DNS,
    &DROP_CAPS,
    &ENV,
    &ENV_FILE,
    &FAKEROOT,
    &FUSEMOUNT,
    &HOME,
    &HOSTNAME,
    &IGNORE_FAKEROOT,
    &IGNORE_SUBUID,
    &IGNORE_USERNS,
    &INTEL_HPU,
    &IPC,
    &KEEP_PRIVS,
    &MEMORY,
    &MEMORY_RESERVATION,
    &MEMORY_SWAP,
    &MOUNT,
    &MPI,
    &NET,
    &NETNS_PATH,
    &NETWORK,
    &NETWORK_ARGS,
    &NO_ENV,
    &NO_EVAL,
    &NO_HOME,
    &NO_INIT,
    &NO_MOUNT,
    &NO_NV,
    &NO_PRIVS,
    &NO_ROCM,
    &NO_UMASK,
    &NV,
    &NVCCLI,
    &OOM_KILL_DISABLE,
    &OVERLAY,
    &PASSPHRASE,
    &PEM_PATH,
    &PIDS_LIMIT,
    &ROCM,
    &SCRATCH,
    &SECURITY,
    &TMPDIR,
    &UNDERLAY,
    &UNSQUASH,
    &USERNS,
    &UTS,
    &WORKDIR,
    &WRITABLE,
    &WRITABLE_TMPFS,
];

/// Of `exec`, `run`, `shell` and `test` only.
pub static OF_ACTIONS: [&Flag; 7] = [&CDI_DIRS, &CWD, &DEVICE, &NO_PID, &PID, &PWD, &SHARENS];
