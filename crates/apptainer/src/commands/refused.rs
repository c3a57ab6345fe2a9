//! Commands of Apptainer that have nothing to do here, each refused by name, with what to do instead; and what there is
//! to say about them.

use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;

/// A command that cannot be. Its flags are known, so that it is refused and not they.
const fn refused(
    usage: &'static str,
    flags: &'static [&'static [&'static Flag]],
    run: fn(&Context<'_>) -> Result<u8, Failure>,
) -> Command {
    let arity = Arity::AtLeast(0);
    Command { usage, short: "Not supported", flags, arity, interspersed: true, run, ..Command::EMPTY }
}

static OUT: Flag = Flag::text("out", "path", "of the plugin").short('o');
static USER: Flag = Flag::text("user", "name", "of a user").short('u').env(&["CAP_USER"]);
static GROUP: Flag = Flag::text("group", "name", "of a group").short('g').env(&["CAP_GROUP"]);

pub static PLUGIN: Command = Command {
    usage: "plugin",
    short: "Plugins of Apptainer, of which there are none",
    commands: &[
        &PLUGIN_COMPILE,
        &PLUGIN_CREATE,
        &PLUGIN_DISABLE,
        &PLUGIN_ENABLE,
        &PLUGIN_INSPECT,
        &PLUGIN_INSTALL,
        &PLUGIN_LIST,
        &PLUGIN_UNINSTALL,
    ],
    ..Command::EMPTY
};

static PLUGIN_LIST: Command = Command {
    usage: "list",
    short: "List the plugins, of which there are none",
    arity: Arity::Exactly(0),
    run: |cx| cx.print("There are no plugins installed.\n").map(|()| 0),
    ..Command::EMPTY
};

static PLUGIN_COMPILE: Command = refused("compile", &[&[&OUT]], no_plugins);
static PLUGIN_CREATE: Command = refused_whole("create", no_plugins);
static PLUGIN_DISABLE: Command = refused_whole("disable", no_plugins);
static PLUGIN_ENABLE: Command = refused_whole("enable", no_plugins);
static PLUGIN_INSPECT: Command = refused_whole("inspect", no_plugins);
static PLUGIN_INSTALL: Command = refused_whole("install", no_plugins);
static PLUGIN_UNINSTALL: Command = refused_whole("uninstall", no_plugins);

fn no_plugins(_: &Context<'_>) -> Result<u8, Failure> {
    let instead = "plugins are parts of Apptainer's own program, written in Go; this is another program";
    Err(Failure::unsupported("a plugin", instead))
}

/// A group of commands, or one whose flags are nobody's here: what comes behind its name is not looked at.
const fn refused_whole(usage: &'static str, run: fn(&Context<'_>) -> Result<u8, Failure>) -> Command {
    Command { interspersed: false, ..refused(usage, &[], run) }
}

pub static OCI: Command = refused_whole("oci", |_| {
    let instead = "`isles oci` is an OCI runtime; `isles run` runs OCI images";
    Err(Failure::unsupported("apptainer oci", instead))
});
pub static CHECKPOINT: Command = refused_whole("checkpoint", |_| {
    let instead = "run DMTCP inside the container, with its files bound or installed there";
    Err(Failure::unsupported("apptainer checkpoint", instead))
});
pub static COMPLETION: Command = refused_whole("completion", |_| {
    let instead = "`isles completion SHELL` writes the completions of `isles`";
    Err(Failure::unsupported("apptainer completion", instead))
});
pub static TAG: Command = refused_whole("tag", |_| {
    let instead =
        "`apptainer push FILE library://ENTITY/COLLECTION/NAME:TAG,TAG` gives an image all its tags";
    Err(Failure::unsupported("apptainer tag", instead))
});
pub static BUILDCFG: Command = refused_whole("buildcfg", |_| {
    let instead = "this program is one file, whose places are not chosen when it is compiled";
    Err(Failure::unsupported("apptainer buildcfg", instead))
});
pub static CONFGEN: Command = refused_whole("confgen", |_| {
    let instead = "what /etc/apptainer/apptainer.conf does not say has Apptainer's default; \
                   `apptainer config global --set` changes it";
    Err(Failure::unsupported("apptainer confgen", instead))
});

pub static CAPABILITY: Command = Command {
    usage: "capability",
    short: "Capabilities that users may have in containers",
    aliases: &["caps"],
    commands: &[&CAPABILITY_ADD, &CAPABILITY_AVAIL, &CAPABILITY_DROP, &CAPABILITY_LIST],
    ..Command::EMPTY
};

static CAPABILITY_ADD: Command = refused("add", &[&[&GROUP, &USER]], no_grants);
static CAPABILITY_DROP: Command = refused("drop", &[&[&GROUP, &USER]], no_grants);

static CAPABILITY_LIST: Command = Command {
    usage: "list [user/group]",
    short: "List the capabilities that were granted, which are none",
    arity: Arity::Between(0, 1),
    run: |cx| {
        cx.talk.info(
            "no capabilities are granted to anybody: nothing here runs with more rights than its caller",
        );
        Ok(0)
    },
    ..Command::EMPTY
};

static CAPABILITY_AVAIL: Command = Command {
    usage: "avail [capability]",
    short: "List the capabilities that the kernel knows",
    arity: Arity::Between(0, 1),
    run: |cx| {
        let asked = cx.arguments.first().map(|name| name.to_ascii_uppercase());
        let mut text = String::new();
        for (name, about) in CAPABILITIES {
            let whole = format!("CAP_{name}");
            if asked.as_ref().is_none_or(|asked| asked.split(',').any(|one| one == whole || one == *name)) {
                text.push_str(&format!("{:<22} {about}\n\n", format!("{whole}:")));
            }
        }
        if text.is_empty() {
            let asked = asked.unwrap_or_default();
            return Err(Failure::new(format!("unknown capabilities found in: {asked}")));
        }
        cx.print(text).map(|()| 0)
    },
    ..Command::EMPTY
};

fn no_grants(_: &Context<'_>) -> Result<u8, Failure> {
    let instead = "there is no set-uid program here that could give them; root gives them with --add-caps";
    Err(Failure::unsupported("granting capabilities to users", instead))
}

/// Names without `CAP_`, in the kernel's order (capabilities(7)).
pub const CAPABILITIES: &[(&str, &str)] = &[
    ("CHOWN", "give files to others"),
    ("DAC_OVERRIDE", "read, write and execute files whatever their permissions"),
    ("DAC_READ_SEARCH", "read files and folders whatever their permissions"),
    ("FOWNER", "do what only the owner of a file may"),
    ("FSETID", "keep set-user-ID bits when files change"),
    ("KILL", "send signals to processes of others"),
    ("SETGID", "become other groups"),
    ("SETUID", "become other users"),
    ("SETPCAP", "hand capabilities on, and take them from the bounding set"),
    ("LINUX_IMMUTABLE", "change the immutable and append-only flags"),
    ("NET_BIND_SERVICE", "listen on ports below 1024"),
    ("NET_BROADCAST", "broadcast, and listen to multicast"),
    ("NET_ADMIN", "configure the network"),
    ("NET_RAW", "use raw and packet sockets"),
    ("IPC_LOCK", "lock memory"),
    ("IPC_OWNER", "use System V IPC objects whatever their permissions"),
    ("SYS_MODULE", "load and unload kernel modules"),
    ("SYS_RAWIO", "use I/O ports and raw devices"),
    ("SYS_CHROOT", "change the root folder and mount namespaces"),
    ("SYS_PTRACE", "trace and read any process"),
    ("SYS_PACCT", "switch process accounting"),
    ("SYS_ADMIN", "mount, and most else that administers a system"),
    ("SYS_BOOT", "reboot"),
    ("SYS_NICE", "raise priorities and bind processes of others"),
    ("SYS_RESOURCE", "exceed limits of resources"),
    ("SYS_TIME", "set the clock"),
    ("SYS_TTY_CONFIG", "configure terminals"),
    ("MKNOD", "make device files"),
    ("LEASE", "take leases on files"),
    ("AUDIT_WRITE", "write to the kernel's audit log"),
    ("AUDIT_CONTROL", "control auditing"),
    ("SETFCAP", "give files capabilities"),
    ("MAC_OVERRIDE", "override mandatory access control"),
    ("MAC_ADMIN", "configure mandatory access control"),
    ("SYSLOG", "read and control the kernel's messages"),
    ("WAKE_ALARM", "set alarms that wake the system"),
    ("BLOCK_SUSPEND", "keep the system from suspending"),
    ("AUDIT_READ", "read the audit log"),
    ("PERFMON", "observe performance"),
    ("BPF", "use BPF"),
    ("CHECKPOINT_RESTORE", "checkpoint and restore processes"),
];
