//! Which namespaces a container gets, and which IDs its user namespace has.

use std::fs::File;
use std::path::PathBuf;

use isles_sandbox::identity::Identity;
use isles_sandbox::setup::{Namespace, Namespaces, UserNs};
use isles_spec::{IdMapping, NamespaceMode, NetworkMode, RunAs, UserNamespace, Workload};

use crate::error::{Error, Result};
use crate::user::User;
use crate::user_network::is_served;

/// `pid_of` finds the process 1 of a running container whose namespaces are to be joined.
pub fn namespaces(
    workload: &Workload,
    identity: Identity,
    user: &User,
    pid_of: &dyn Fn(&str) -> Result<i32>,
) -> Result<Namespaces> {
    let open = |path: PathBuf| -> Result<Namespace> {
        let file = File::open(&path).map_err(|e| Error::file("join the namespace", &path, e))?;
        Ok(Namespace::Join(file.into()))
    };
    let mut joined: Option<i32> = None;
    let mut of = |mode: &NamespaceMode, name: &str| -> Result<Namespace> {
        match mode {
            NamespaceMode::Private => Ok(Namespace::New),
            NamespaceMode::Host => Ok(Namespace::Host),
            NamespaceMode::Container(container) => {
                let pid = pid_of(container)?;
                joined = Some(pid);
                open(format!("/proc/{pid}/ns/{name}").into())
            }
            NamespaceMode::Path(path) => open(path.clone()),
        }
    };
    let network = match &workload.network {
        network if is_served(network, identity) => NamespaceMode::Private,
        NetworkMode::Host => NamespaceMode::Host,
        NetworkMode::Default | NetworkMode::None | NetworkMode::Networks(_) | NetworkMode::User { .. } => {
            NamespaceMode::Private
        }
        NetworkMode::Container(name) => NamespaceMode::Container(name.clone()),
        NetworkMode::Path(path) => NamespaceMode::Path(path.clone()),
    };
    let mut out = Namespaces {
        mount: Namespace::New,
        pid: of(&workload.pid, "pid")?,
        network: of(&network, "net")?,
        ipc: of(&workload.ipc, "ipc")?,
        uts: of(&workload.uts, "uts")?,
        cgroup: of(&workload.cgroupns, "cgroup")?,
        user: UserNs::Host,
        time: None,
        time_joined: None,
        network_messages: None,
    };
    out.user = match (joined, identity) {
        // Another container's namespaces belong to its user namespace.
        (Some(pid), Identity::Single) => {
            let path = PathBuf::from(format!("/proc/{pid}/ns/user"));
            UserNs::Join(File::open(&path).map_err(|e| Error::file("join the namespace", &path, e))?.into())
        }
        _ => user_namespace(workload, identity, user)?,
    };
    Ok(out)
}

fn user_namespace(workload: &Workload, identity: Identity, user: &User) -> Result<UserNs> {
    let one = |inside, outside| vec![IdMapping { inside, outside, length: 1 }];
    let keep = workload.here || workload.run_as == RunAs::Caller || workload.userns == UserNamespace::KeepId;
    match (&workload.userns, identity) {
        (UserNamespace::Map { .. }, _) => {
            Err(Error::impossible("a map of IDs", "layers are not mapped; use --userns keep-id, or none"))
        }
        (UserNamespace::Host, Identity::Single | Identity::Mapped) => Err(Error::impossible(
            "--userns host",
            "an ordinary user is root only in a user namespace of their own",
        )),
        (UserNamespace::KeepId, Identity::Root) if workload.run_as != RunAs::Caller => {
            Err(Error::impossible("--userns keep-id", "root has its own ID in any case; use --user"))
        }
        // One that maps all IDs to themselves, and has rights over nothing outside.
        (UserNamespace::KeepId, Identity::Root) => {
            let all = vec![IdMapping { inside: 0, outside: 0, length: u32::MAX }];
            Ok(UserNs::New { uids: all.clone(), gids: all })
        }
        // Whoever the process is to be, it is the caller: the only ID there is.
        (_, Identity::Single) => {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            Ok(UserNs::New { uids: one(user.uid, uid), gids: one(user.gid, gid) })
        }
        (_, Identity::Mapped) if keep => {
            Ok(UserNs::New { uids: keep_id("uid_map", user.uid), gids: keep_id("gid_map", user.gid) })
        }
        _ => Ok(UserNs::Host),
    }
}

/// Whether it has the caller's own IDs alone, and under their own numbers: any two such are the same to the program.
pub fn is_of_caller(user: &UserNs) -> bool {
    let only = |map: &[IdMapping], id: u32| matches!(map, [one] if (one.inside, one.outside, one.length) == (id, id, 1));
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    matches!(user, UserNs::New { uids, gids } if only(uids, uid) && only(gids, gid))
}

/// A map in which `id` inside is root of this namespace, and all others are those that it has besides.
fn keep_id(file: &str, id: u32) -> Vec<IdMapping> {
    let map = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let last: u32 = map
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().filter_map(|n| n.parse::<u32>().ok());
            let (inside, _, length) = (numbers.next()?, numbers.next()?, numbers.next()?);
            Some(inside.saturating_add(length))
        })
        .max()
        .unwrap_or(1);
    let mut out = Vec::new();
    let below = id.min(last.saturating_sub(1));
    if below > 0 {
        out.push(IdMapping { inside: 0, outside: 1, length: below });
    }
    out.push(IdMapping { inside: id, outside: 0, length: 1 });
    if last > below + 1 {
        out.push(IdMapping { inside: id + 1, outside: below + 1, length: last - below - 1 });
    }
    out
}
