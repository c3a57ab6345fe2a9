//! Who calls, as /etc/passwd and /etc/group of the host know them. Found out before the engine is opened: that may
//! move the process into a user namespace, where the IDs are others.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use rustix::process::{getegid, geteuid, getgroups};

/// passwd(5) and group(5) of a cluster may be large, but not larger than this.
const LARGEST: u64 = 64 << 20;

/// The caller, and the groups they are in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub name: String,
    pub comment: String,
    pub home: Option<PathBuf>,
    pub shell: String,
    /// The first is the caller's own; each has its name where the host knows one.
    pub groups: Vec<(u32, String)>,
}

impl Caller {
    /// Whoever runs this process. Users that only LDAP and the like know are taken from `USER`, `HOME` and `SHELL`.
    pub fn find() -> Caller {
        let read = |path: &str| -> String {
            let bytes = fs::File::open(path).and_then(|file| isles_store::read_bounded(file, LARGEST));
            bytes.ok().flatten().map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
        };
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let others = getgroups().unwrap_or_default().into_iter().map(|group| group.as_raw()).collect();
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Caller::of(uid, gid, others, &read("/etc/passwd"), &read("/etc/group"), &variable)
    }

    /// The ID and the home of a user of this name.
    pub fn named(name: &str) -> Option<(u32, PathBuf)> {
        let bytes = fs::File::open("/etc/passwd").and_then(|file| isles_store::read_bounded(file, LARGEST));
        let text = String::from_utf8_lossy(&bytes.ok()??).into_owned();
        let line = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
        line.into_iter()
            .find(|f| f.len() >= 7 && f[0] == name)
            .and_then(|f| Some((f[2].parse().ok()?, PathBuf::from(f[5]))))
            .filter(|(_, home)| home.is_absolute())
    }

    fn of(
        uid: u32,
        gid: u32,
        others: Vec<u32>,
        passwd: &str,
        group: &str,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Caller {
        let line = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.len() >= 7 && fields[2].parse() == Ok(uid));
        let said = |name: &str| variable(name).and_then(|value| value.into_string().ok());
        let mut caller = match &line {
            Some(fields) => Caller {
                name: fields[0].to_owned(),
                comment: fields[4].to_owned(),
                home: Some(PathBuf::from(fields[5])),
                shell: fields[6].to_owned(),
                ..Caller::default()
            },
            None => Caller {
                name: said("USER").or_else(|| said("LOGNAME")).unwrap_or_else(|| "user".to_owned()),
                home: variable("HOME").map(PathBuf::from),
                shell: said("SHELL").unwrap_or_default(),
                ..Caller::default()
            },
        };
        caller.home = caller.home.filter(|home| home.is_absolute());
        if caller.shell.is_empty() {
            caller.shell = "/bin/sh".to_owned();
        }
        (caller.uid, caller.gid) = (uid, gid);
        let mut ids = vec![gid];
        ids.extend(others.into_iter().filter(|other| *other != gid));
        caller.groups = ids.into_iter().map(|id| (id, group_name(group, id))).collect();
        caller
    }
}

/// Whether a table such as /etc/passwd has an entry of this name.
pub fn is_listed(table: &str, name: &str) -> bool {
    let bytes = fs::File::open(table).and_then(|file| isles_store::read_bounded(file, LARGEST));
    let text = bytes.ok().flatten().unwrap_or_default();
    String::from_utf8_lossy(&text).lines().any(|line| line.split(':').next() == Some(name))
}

/// The name of a group, or one that is made of its number.
fn group_name(group: &str, id: u32) -> String {
    let known = group.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let same = fields.len() >= 3 && fields[2].parse() == Ok(id) && !fields[0].is_empty();
        same.then(|| fields[0].to_owned())
    });
    known.unwrap_or_else(|| format!("group{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nbroken:x:7\nme:x:70000:70:I, myself:/home/me:/bin/zsh\n";

    #[test]
    fn known_and_unknown_users() {
        let none = |_: &str| None;
        let me = Caller::of(70000, 70, vec![70, 4], PASSWD, "mine:x:70:\nadm:x:4:me\n", &none);
        assert_eq!(
            (me.name.as_str(), me.comment.as_str(), me.shell.as_str()),
            ("me", "I, myself", "/bin/zsh")
        );
        assert_eq!(me.home.as_deref(), Some("/home/me".as_ref()));
        assert_eq!(me.groups, [(70, "mine".to_owned()), (4, "adm".to_owned())]);
        let said = |name: &str| match name {
            "USER" => Some("ldap".into()),
            "HOME" => Some("/nfs/ldap".into()),
            _ => None,
        };
        let other = Caller::of(7, 8, vec![], PASSWD, "", &said);
        assert_eq!((other.name.as_str(), other.shell.as_str()), ("ldap", "/bin/sh"));
        assert_eq!(other.home.as_deref(), Some("/nfs/ldap".as_ref()));
        assert_eq!(other.groups, [(8, "group8".to_owned())]);
        assert_eq!(Caller::of(7, 8, vec![], "", "", &none).home, None);
    }
}
