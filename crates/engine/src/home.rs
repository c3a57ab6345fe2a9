//! The caller's home folder.

use std::fs;
use std::path::{Path, PathBuf};

/// HOME, or what /etc/passwd says. The C library would also ask LDAP and the like, by libraries that it loads; a static
/// program cannot load any, and crashes.
pub fn home() -> Option<PathBuf> {
    let named = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let known = || of_user(&fs::read_to_string("/etc/passwd").ok()?, crate::plan::caller_id());
    named.or_else(known).filter(|home| home.is_absolute())
}

fn of_user(passwd: &str, uid: u32) -> Option<PathBuf> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let same = fields.next()?.parse() == Ok(uid);
        let home = fields.nth(2).filter(|home| same && !home.is_empty())?;
        Some(Path::new(home).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_of_passwd() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbroken\nnone:x:7:7:::\nme:x:1000:1000:I:/home/me:/bin/sh\n";
        for (uid, home) in [(0, Some("/root")), (1000, Some("/home/me")), (7, None), (8, None)] {
            assert_eq!(of_user(passwd, uid).as_deref(), home.map(Path::new), "{uid}");
        }
    }
}
