//! /etc/passwd and /etc/group of the container with the caller in them, and /etc/resolv.conf for `--dns`.
//!
//! Names of the host come into files of the image here, so nothing of them may look like a field or a line more.

use std::net::IpAddr;
use std::path::Path;

use crate::caller::Caller;

/// passwd(5) of the image with the caller's line: an entry of their number gets their name, comment and home, but
/// keeps its group and shell; root keeps its name. Otherwise a line is added.
pub fn passwd(image: &str, caller: &Caller, uid: u32, home: &Path) -> String {
    let home = field(&home.to_string_lossy());
    let mut found = false;
    let mut out = String::with_capacity(image.len() + 128);
    for line in image.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let own = !found && fields.len() >= 7 && fields[2].parse() == Ok(uid);
        if !own {
            out.push_str(line);
        } else {
            found = true;
            let (name, comment) = match uid {
                0 => (fields[0].to_owned(), fields[4].to_owned()),
                _ => (field(&caller.name), field(&caller.comment)),
            };
            out.push_str(&format!("{name}:x:{uid}:{}:{comment}:{home}:{}", fields[3], fields[6]));
        }
        out.push('\n');
    }
    if !found {
        let gid = if uid == caller.uid { caller.gid } else { uid };
        let name = if uid == 0 { "root".to_owned() } else { field(&caller.name) };
        let (comment, shell) = (field(&caller.comment), field(&caller.shell));
        out.push_str(&format!("{name}:x:{uid}:{gid}:{comment}:{home}:{shell}\n"));
    }
    out
}

/// group(5) of the image with those groups of the caller that it has no number of.
pub fn group(image: &str, caller: &Caller, groups: &[(u32, String)]) -> String {
    let mut out = String::with_capacity(image.len() + 256);
    let mut known = Vec::new();
    for line in image.lines() {
        known.extend(line.split(':').nth(2).and_then(|id| id.parse::<u32>().ok()));
        out.push_str(line);
        out.push('\n');
    }
    for (id, name) in groups.iter().filter(|(id, _)| !known.contains(id)) {
        out.push_str(&format!("{}:x:{id}:{}\n", field(name), field(&caller.name)));
    }
    out
}

/// What cannot end a field or a line.
fn field(text: &str) -> String {
    text.chars().map(|c| if c == ':' || c.is_control() { '_' } else { c }).collect()
}

/// Servers of names, in a list with commas.
pub fn servers(list: &str) -> Result<Vec<IpAddr>, String> {
    let server = |text: &str| {
        text.trim().parse().map_err(|_| format!("the DNS server '{}' is not an IP address", text.trim()))
    };
    list.split(',').map(server).collect()
}

/// resolv.conf(5) with these servers.
pub fn resolv_conf(list: &str) -> Result<String, String> {
    Ok(servers(list)?.iter().map(|address| format!("nameserver {address}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Caller {
        Caller {
            uid: 5000,
            gid: 50,
            name: "me".into(),
            comment: "I".into(),
            home: Some("/home/me".into()),
            shell: "/bin/zsh".into(),
            groups: vec![(50, "mine".into()), (4, "adm".into())],
        }
    }

    #[test]
    fn the_caller_is_in_passwd() {
        let home = Path::new("/home/me");
        let image = "root:x:0:0:root:/root:/bin/ash\nodd line\n";
        for (image, uid, last) in [
            ("", 5000, "me:x:5000:50:I:/home/me:/bin/zsh\n"),
            ("root:x:0:0:root:/root:/bin/sh", 5000, "me:x:5000:50:I:/home/me:/bin/zsh\n"),
            ("app:x:5000:7:App:/app:/bin/ash\n", 5000, "me:x:5000:7:I:/home/me:/bin/ash\n"),
            ("", 0, "root:x:0:0:I:/home/me:/bin/zsh\n"),
        ] {
            let out = passwd(image, &me(), uid, home);
            assert!(out.ends_with(last) && out.lines().all(|l| !l.is_empty()), "{image}: {out}");
        }
        let out = passwd(image, &me(), 0, Path::new("/root"));
        assert_eq!(out, image, "root's line and odd ones stay");
    }

    #[test]
    fn names_cannot_make_entries() {
        let evil = Caller { name: "x:0\nroot".into(), comment: "a:b\n".into(), shell: "/s:t".into(), ..me() };
        let out = passwd("", &evil, 5000, Path::new("/h:ome\n/x"));
        assert_eq!(out, "x_0_root:x:5000:50:a_b_:/h_ome_/x:/s_t\n");
        let out = group("", &evil, &[(9, "g:\n0".into())]);
        assert_eq!(out, "g__0:x:9:x_0_root\n");
    }

    #[test]
    fn groups_are_added_where_they_miss() {
        let out = group("root:x:0:\nadm:x:4:", &me(), &me().groups);
        assert_eq!(out, "root:x:0:\nadm:x:4:\nmine:x:50:me\n");
    }

    #[test]
    fn servers() {
        assert_eq!(resolv_conf("8.8.8.8, ::1").unwrap(), "nameserver 8.8.8.8\nnameserver ::1\n");
        for bad in ["", "x", "1.2.3.4,", "1.1.1.1\noptions x"] {
            assert!(resolv_conf(bad).is_err(), "{bad}");
        }
    }
}
