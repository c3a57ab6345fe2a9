//! `apptainer capability`: which capabilities users and groups may have in containers.
//!
//! The grants are kept in Apptainer's `capability.json`, where its own set-uid program honours them. Nothing here has more
//! rights than its caller, so here they have no effect, which is said when one is made: root may have any with `--add-caps`,
//! and others have those of `--add-caps` over what their container's user namespace owns, with a grant or without.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::{caller, site, text_file};

use super::config::replace;

static USER: Flag =
    Flag::text("user", "string", "manage capabilities for a user").short('u').env(&["CAP_USER"]);
static GROUP: Flag =
    Flag::text("group", "string", "manage capabilities for a group").short('g').env(&["CAP_GROUP"]);

/// A file of grants has at most this many bytes.
const LIMIT: u64 = 1 << 20;

pub static COMMAND: Command = Command {
    usage: "capability",
    short: "Manage Linux capabilities for users and groups",
    long: "Grants are kept for Apptainer's set-uid program, in capability.json beside apptainer.conf. They change nothing for\n\
           containers of this program, in which nobody has more rights than outside.",
    aliases: &["caps"],
    commands: &[&ADD, &AVAIL, &DROP, &LIST],
    ..Command::EMPTY
};

static ADD: Command = Command {
    usage: "add [add options...] <capabilities>",
    short: "Add capabilities to a user or group (requiring root privilege)",
    examples: "apptainer capability add --user nobody CAP_NET_RAW",
    flags: &[&[&USER, &GROUP]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: |cx| change(cx, true),
    ..Command::EMPTY
};

static DROP: Command = Command {
    usage: "drop [drop options...] <capabilities>",
    short: "Remove capabilities from a user or group (requiring root privilege)",
    examples: "apptainer capability drop --user nobody CAP_NET_RAW",
    flags: &[&[&USER, &GROUP]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: |cx| change(cx, false),
    ..Command::EMPTY
};

static LIST: Command = Command {
    usage: "list [user/group]",
    short: "Show capabilities for a given user or group",
    arity: Arity::Between(0, 1),
    run: list,
    ..Command::EMPTY
};

/// Who may have what, by name.
type Grants = BTreeMap<String, Vec<String>>;

/// The whole file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Granted {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    users: Grants,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    groups: Grants,
}

/// Beside the settings of the site.
fn place(cx: &Context<'_>) -> PathBuf {
    site::file(cx.config).unwrap_or_else(site::usual_file).with_file_name("capability.json")
}

fn read(cx: &Context<'_>) -> Result<Option<Granted>, Failure> {
    let (path, what) = (place(cx), "while parsing capability config data");
    let Some(text) = text_file::read(&path, LIMIT, what)? else { return Ok(None) };
    if text.trim().is_empty() {
        return Ok(Some(Granted::default()));
    }
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Failure::because(format!("{what} {}", path.display()), &e))
}

fn change(cx: &Context<'_>, adds: bool) -> Result<u8, Failure> {
    let unable = |why: String| {
        Failure::new(format!("Unable to {} capabilities: {why}", if adds { "add" } else { "drop" }))
    };
    if !rustix::process::geteuid().is_root() {
        return Err(unable("while managing capability file: only root user can manage capabilities".into()));
    }
    let (user, group) = (cx.values.word(&USER), cx.values.word(&GROUP));
    if user.is_none() && group.is_none() {
        return Err(unable("no user or group specified".into()));
    }
    let (names, unknown) = split(&cx.arguments[0]);
    if !unknown.is_empty() {
        cx.talk.warning(&format!("Ignoring unknown capabilities: {}", unknown.join(" ")));
    }
    let mut granted = read(cx)?.unwrap_or_default();
    let whose = [
        (user, &mut granted.users, "user", "/etc/passwd"),
        (group, &mut granted.groups, "group", "/etc/group"),
    ];
    for (name, grants, kind, table) in whose {
        let Some(name) = name else { continue };
        let why = |why: &str| unable(format!("while setting capabilities for {kind} {name}: {why}"));
        if !caller::is_listed(table, name) {
            return Err(why(&format!("{kind} does not exist")));
        }
        let own = grants.entry(name.to_owned()).or_default();
        match adds {
            true => own.extend(names.iter().filter(|n| !own.contains(n)).cloned().collect::<Vec<_>>()),
            false => {
                if let Some(missing) = names.iter().find(|n| !own.contains(n)) {
                    return Err(why(&format!("{missing} is not granted")));
                }
                own.retain(|n| !names.contains(n));
            }
        }
        if own.is_empty() {
            grants.remove(name);
        }
    }
    let text = serde_json::to_string(&granted).map_err(|e| Failure::because("cannot write grants", &e))?;
    let path = place(cx);
    replace(&path, &text)
        .map_err(|e: io::Error| Failure::because(format!("cannot write {}", path.display()), &e))?;
    if adds {
        cx.talk.warning("grants are for Apptainer's set-uid program, and have no effect here");
    }
    Ok(0)
}

/// Known names, with `CAP_`, each once; and those that nobody knows.
fn split(list: &str) -> (Vec<String>, Vec<String>) {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for word in list.split(',').map(|word| word.trim().to_ascii_uppercase()) {
        let short = word.strip_prefix("CAP_").unwrap_or(&word);
        match short {
            "ALL" => known.extend(CAPABILITIES.iter().map(|(name, _)| format!("CAP_{name}"))),
            _ if CAPABILITIES.iter().any(|(name, _)| *name == short) => known.push(format!("CAP_{short}")),
            _ => unknown.push(word.clone()),
        }
    }
    known.sort();
    known.dedup();
    (known, unknown)
}

fn list(cx: &Context<'_>) -> Result<u8, Failure> {
    let granted = read(cx)?.unwrap_or_default();
    let asked = cx.arguments.first();
    let mut text = String::new();
    for (kind, grants) in [("user", &granted.users), ("group", &granted.groups)] {
        for (name, names) in grants.iter().filter(|(name, _)| asked.is_none_or(|asked| asked == *name)) {
            text.push_str(&format!("{name} [{kind}]: {}\n", names.join(",")));
        }
    }
    if text.is_empty() {
        let whom = asked.map_or("users or groups".to_owned(), |name| format!("user/group {name}"));
        return Err(Failure::new(format!("Unable to list capabilities: no capability set for {whom}")));
    }
    cx.print(text).map(|()| 0)
}

static AVAIL: Command = Command {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_capabilities() {
        let words = |list: &[&str]| list.iter().map(|word| word.to_string()).collect::<Vec<_>>();
        let (known, unknown) = split("net_raw,CAP_CHOWN, cap_net_raw,moon");
        assert_eq!((known, unknown), (words(&["CAP_CHOWN", "CAP_NET_RAW"]), words(&["MOON"])));
        assert_eq!(split("all").0.len(), CAPABILITIES.len());
    }

    #[test]
    fn the_file_is_apptainers() {
        let granted: Granted = serde_json::from_str(r#"{"users":{"a":["CAP_CHOWN"]}}"#).unwrap();
        assert_eq!(granted.users["a"], ["CAP_CHOWN"]);
        assert_eq!(serde_json::to_string(&granted).unwrap(), r#"{"users":{"a":["CAP_CHOWN"]}}"#);
    }
}
