//! Who a process in a container is: `user[:group]`, resolved in the image's own passwd and group files
//! as Docker does it (names or numbers, the home folder, supplementary groups).

use std::path::{Path, PathBuf};

use isles_spec::error::Error as Spelling;

use crate::error::{Error, Result};
use crate::view::{View, read, text};

/// A passwd or group file of an image may be this large; real ones of whole universities are smaller.
const FILE_LIMIT: u64 = 4 << 20;

/// The largest ID that Docker accepts.
const ID_LIMIT: u32 = i32::MAX as u32;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: PathBuf,
    /// The name, where the image knows one.
    pub name: Option<String>,
}

/// One line of passwd(5).
struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// One line of group(5).
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl User {
    /// Resolves `spec` (empty is root) in the merged layers, and `extra` supplementary groups.
    pub fn resolve(spec: &str, extra: &[String], view: &View) -> Result<User> {
        let passwd = read(view, Path::new("/etc/passwd"), FILE_LIMIT)?.unwrap_or_default();
        let group = read(view, Path::new("/etc/group"), FILE_LIMIT)?.unwrap_or_default();
        resolve(spec, extra, &text(&passwd), &text(&group))
    }
}

fn resolve(spec: &str, extra: &[String], passwd: &str, group: &str) -> Result<User> {
    let (user, group_spec) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (spec, None),
    };
    let number = number(user)?;
    let line = passwd.lines().filter_map(Passwd::parse).find(|p| match number {
        _ if user.is_empty() => p.uid == 0,
        // A name that consists of digits is still a name where the image has it.
        Some(n) => p.name == user || p.uid == n,
        None => p.name == user,
    });
    let mut found = match (line, number) {
        (Some(p), _) => User {
            uid: p.uid,
            gid: p.gid,
            groups: Vec::new(),
            home: if p.home.is_empty() { "/".into() } else { p.home.into() },
            name: Some(p.name.to_owned()),
        },
        (None, Some(uid)) => User { uid, gid: 0, groups: Vec::new(), home: "/".into(), name: None },
        (None, None) if user.is_empty() || user == "root" => {
            User { uid: 0, gid: 0, groups: Vec::new(), home: "/root".into(), name: None }
        }
        (None, None) => return Err(Error::NoUser(user.to_owned())),
    };
    match (group_spec, &found.name) {
        (Some(g), _) => found.gid = find_group(g, group)?,
        (None, Some(name)) => {
            found.groups = group
                .lines()
                .filter_map(Group::parse)
                .filter(|g| g.members.split(',').any(|m| m == name))
                .map(|g| g.gid)
                .collect();
        }
        (None, None) => {}
    }
    for spec in extra {
        found.groups.push(find_group(spec, group)?);
    }
    // The own group is among them: it stays where a program takes another one for a while (CVE-2022-36109).
    found.groups.push(found.gid);
    found.groups.sort_unstable();
    found.groups.dedup();
    Ok(found)
}

fn find_group(spec: &str, group: &str) -> Result<u32> {
    let number = number(spec)?;
    group
        .lines()
        .filter_map(Group::parse)
        .find(|g| g.name == spec)
        .map(|g| g.gid)
        .or(number)
        .ok_or_else(|| Error::NoGroup(spec.to_owned()))
}

/// A user or group ID in plain digits; a word with anything else is a name. A number that is out of
/// range is refused rather than wrapped (CVE-2026-30892).
fn number(spec: &str) -> Result<Option<u32>> {
    if spec.is_empty() || !spec.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match spec.parse::<u32>() {
        Ok(n) if n <= ID_LIMIT => Ok(Some(n)),
        _ => Err(Spelling::new(format!("invalid user or group ID '{spec}'"))
            .with_hint(format!("IDs must be in range 0-{ID_LIMIT}"))
            .into()),
    }
}

impl<'a> Passwd<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (_comment, home) = (fields.next(), fields.next().unwrap_or_default());
        (!name.is_empty()).then_some(Passwd { name, uid, gid, home })
    }
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        let members = fields.next().unwrap_or_default();
        (!name.is_empty()).then_some(Group { name, gid, members })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nwww-data:x:33:33::/var/www:\n\
                          1234:x:77:78::/home/n:/bin/sh\napp:x:1000:1000:::\nbad:x:-1:0::/:\n";
    const GROUP: &str = "root:x:0:\nwww-data:x:33:\nadm:x:4:app,www-data\nvideo:x:44:app\nx\n5:x:99:\n";

    fn user(spec: &str) -> Result<User> {
        resolve(spec, &[], PASSWD, GROUP)
    }

    #[test]
    fn users_as_docker_reads_them() {
        for (spec, uid, gid, groups, home) in [
            ("", 0, 0, &[0][..], "/root"),
            ("root", 0, 0, &[0], "/root"),
            ("0", 0, 0, &[0], "/root"),
            ("www-data", 33, 33, &[4, 33], "/var/www"),
            ("33", 33, 33, &[4, 33], "/var/www"),
            ("app", 1000, 1000, &[4, 44, 1000], "/"),
            ("app:video", 1000, 44, &[44], "/"),
            ("app:", 1000, 1000, &[4, 44, 1000], "/"),
            ("1000:5", 1000, 99, &[99], "/"),
            ("1000:6", 1000, 6, &[6], "/"),
            ("4242", 4242, 0, &[0], "/"),
            ("4242:4243", 4242, 4243, &[4243], "/"),
            ("1234", 77, 78, &[78], "/home/n"),
        ] {
            let found = user(spec).unwrap();
            assert_eq!((found.uid, found.gid), (uid, gid), "{spec}");
            assert_eq!(found.groups, groups, "{spec}");
            assert_eq!(found.home, Path::new(home), "{spec}");
        }
    }

    #[test]
    fn users_that_are_refused() {
        for bad in ["nobody", "bad", "-1", "+5", "2147483648", "4294967296", "1000:nogroup", "1:-1", "1:2:3"]
        {
            assert!(user(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_image_without_files_has_root() {
        let root = resolve("", &[], "", "").unwrap();
        assert_eq!((root.uid, root.home.as_path()), (0, Path::new("/root")));
        assert_eq!(resolve("0", &[], "", "").unwrap().home, Path::new("/"));
    }

    #[test]
    fn groups_can_be_added() {
        let found = resolve("app", &["33".into(), "root".into(), "4".into()], PASSWD, GROUP).unwrap();
        assert_eq!(found.groups, [0, 4, 33, 44, 1000]);
        assert!(resolve("app", &["nope".into()], PASSWD, GROUP).is_err());
    }
}
