//! `--fusemount TYPE:COMMAND MOUNTPOINT`: a file system that a program of the host or of the container serves.

use std::path::Path;

use isles_spec::{Mount, MountKind};

use crate::failure::Failure;
use crate::place::isles_path;

/// Reads one. The words are split at blanks, as Apptainer does; the last one is the mount point.
pub fn parse(text: &str) -> Result<Mount, Failure> {
    let bad = |why: String| {
        Failure::new(format!("while setting fuse mount: {why}")).with_hint(
            "write TYPE:COMMAND MOUNTPOINT, with a TYPE of host, container, host-daemon and container-daemon",
        )
    };
    let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    let first = words.first().cloned().unwrap_or_default();
    let point = words.pop().filter(|_| !words.is_empty());
    let point = point.ok_or_else(|| bad(format!("no whitespace separators found in command \"{first}\"")))?;
    let (kind, command) = first.split_once(':').unwrap_or((&first, ""));
    let (inside, daemon) = match kind {
        "host" => (false, false),
        "host-daemon" => (false, true),
        "container" => (true, false),
        "container-daemon" => (true, true),
        _ => return Err(bad(format!("fusemount spec begin with an unknown prefix {kind}"))),
    };
    if command.is_empty() {
        return Err(bad(format!("no command in \"{text}\"")));
    }
    if !point.starts_with('/') {
        return Err(bad(format!("the mount point '{point}' is not an absolute path")));
    }
    command.clone_into(&mut words[0]);
    Ok(Mount {
        destination: isles_path(Path::new(&point)),
        kind: MountKind::Fuse { program: words, inside, daemon },
        read_only: false,
        optional: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications() {
        for (text, expected) in [
            ("host:sshfs a:/b /mnt", (&["sshfs", "a:/b"][..], false, false)),
            ("container: x /mnt", (&[][..], true, false)),
            ("container-daemon:/x:y  -o\tz /mnt", (&["/x:y", "-o", "z"], true, true)),
            ("host-daemon:x /mnt", (&["x"], false, true)),
        ] {
            let found = parse(text);
            if expected.0.is_empty() {
                assert!(found.is_err(), "{text}");
                continue;
            }
            let mount = found.unwrap();
            let MountKind::Fuse { program, inside, daemon } = mount.kind else { panic!() };
            assert_eq!(
                (program, inside, daemon),
                (expected.0.iter().map(|w| w.to_string()).collect(), expected.1, expected.2)
            );
            assert_eq!(mount.destination, Path::new("/mnt"));
        }
        for (text, word) in [
            ("", "no whitespace"),
            ("host:x", "no whitespace separators found in command \"host:x\""),
            ("x:y /mnt", "unknown prefix x"),
            ("y /mnt", "unknown prefix y"),
            ("host:y mnt", "'mnt'"),
        ] {
            let failure = parse(text).unwrap_err();
            assert!(failure.message.contains(word), "{text}: {}", failure.message);
        }
    }
}
