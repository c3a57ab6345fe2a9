//! Who calls: their IDs, also where a user namespace was entered in between, their name and their home.
//!
//! The C library would also ask LDAP and the like, by libraries that it loads; a static program cannot load any, and
//! crashes. So /etc/passwd is read here.

use std::fs;
use std::path::PathBuf;

use isles_sandbox::identity::Identity;
use rustix::process::getgroups;

use crate::user::User;

/// The caller as a user of the container (`--here`), with their own IDs.
pub fn caller() -> User {
    let home = home().unwrap_or_else(|| "/".into());
    let own = rustix::process::getegid();
    let gid = if rustix::process::geteuid().is_root() { outside("gid_map") } else { own.as_raw() };
    User { uid: caller_id(), gid, groups: Vec::new(), home, name: user_name() }
}

/// The caller as they are ([`isles_spec::RunAs::Caller`]), with their further groups, where those can be kept.
pub fn caller_and_groups(identity: Identity) -> User {
    let all = if identity == Identity::Root { getgroups().unwrap_or_default() } else { Vec::new() };
    let mut groups: Vec<u32> = all.into_iter().map(|group| group.as_raw()).collect();
    groups.sort_unstable();
    User { groups, ..caller() }
}

/// The caller's user ID: outside of the user namespace, where one that is the caller's own was entered.
pub fn caller_id() -> u32 {
    let own = rustix::process::geteuid();
    if own.is_root() { outside("uid_map") } else { own.as_raw() }
}

/// USER, or what /etc/passwd says.
fn user_name() -> Option<String> {
    let known = || of_user(&fs::read_to_string("/etc/passwd").ok()?, caller_id(), 0);
    std::env::var("USER").ok().or_else(known).filter(|name| crate::name::check(name).is_ok())
}

/// Who root of this user namespace is outside of it.
fn outside(file: &str) -> u32 {
    let map = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    map.lines()
        .map(|line| line.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<u32>>())
        .find_map(|line| (line.len() == 3 && line[0] == 0).then(|| line[1]))
        .unwrap_or(0)
}

/// HOME, or what /etc/passwd says.
pub fn home() -> Option<PathBuf> {
    let named = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let known = || of_user(&fs::read_to_string("/etc/passwd").ok()?, caller_id(), 5).map(PathBuf::from);
    named.or_else(known).filter(|home| home.is_absolute())
}

/// A field, by its place, of a user's line of passwd(5).
fn of_user(passwd: &str, uid: u32, field: usize) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let own = fields.get(2)?.parse() == Ok(uid);
        fields.get(field).filter(|text| own && !text.is_empty()).map(|text| (*text).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_passwd() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbroken\nnone:x:7:7:::\nme:x:1000:1000:I:/home/me:/bin/sh\n";
        for (uid, home) in [(0, Some("/root")), (1000, Some("/home/me")), (7, None), (8, None)] {
            assert_eq!(of_user(passwd, uid, 5).as_deref(), home, "{uid}");
        }
        assert_eq!(of_user(passwd, 1000, 0).as_deref(), Some("me"));
    }
}
