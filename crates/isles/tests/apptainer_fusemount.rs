//! `apptainer --fusemount`: file systems that a program of the host or of the container serves. The program is this test.
#![allow(clippy::unwrap_used)]

mod apptainer;
mod world;

use std::fs::{self, File};
use std::os::fd::FromRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use apptainer::{apptainer, sandbox};
use isles_fuse::{Attributes, DirEntry, FileKind, FileSystem, Server, Statistics};
use rustix::io::{Errno, Result};
use world::{Said, Who, World, everyone};

/// The word that makes this test serve.
const PART: &str = "ISLES_TEST_PART";

/// One file, `words`, with what the program was called with.
struct Words(Vec<u8>);

impl FileSystem for Words {
    fn root(&self) -> u64 {
        1
    }

    fn attributes(&self, file: u64) -> Result<Attributes> {
        let (kind, mode, size) = match file {
            1 => (FileKind::Dir, 0o755, 0),
            _ => (FileKind::File, 0o644, self.0.len() as u64),
        };
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Ok(Attributes { inode: file, kind, mode, links: 1, uid, gid, size, mtime: 0, device: (0, 0) })
    }

    fn lookup(&self, folder: u64, name: &[u8]) -> Result<u64> {
        if folder == 1 && name == b"words" { Ok(2) } else { Err(Errno::NOENT) }
    }

    fn read(&self, _: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let rest = &self.0[self.0.len().min(offset as usize)..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn read_link(&self, _: u64) -> Result<Vec<u8>> {
        Err(Errno::INVAL)
    }

    fn read_dir(&self, _: u64, cursor: u64, take: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        if cursor == 0 {
            take(&DirEntry { name: b"words".into(), file: 2, inode: 2, kind: FileKind::File, next: 1 });
        }
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        Statistics { bytes: self.0.len() as u64, files: 2 }
    }
}

/// What the script of [`program`] runs: `words` are its own, behind the kind.
#[test]
fn part() {
    let Ok(words) = std::env::var(PART) else { return };
    let (kind, words) = words.split_once(' ').unwrap();
    let end = if words.ends_with(" -f") { "" } else { " in the background" };
    let text = format!("{words} of {kind}{end}\n");
    // SAFETY: it was given to this program, and nobody else uses it.
    let device = unsafe { File::from_raw_fd(3) };
    isles_fuse::serve(&Server::new(Words(text.into_bytes())), &device).unwrap();
}

/// A script that becomes this test, or, without `-f`, leaves it behind.
fn program(place: &Path, test: &Path, kind: &str) {
    let text = format!(
        "#!/bin/sh\nexport {PART}=\"{kind} $*\"\nfor last; do :; done\ncase $last in -f) exec {test} --exact part >/dev/null;; \
         *) {test} --exact part >/dev/null 2>&1 </dev/null & esac\n",
        test = test.display()
    );
    fs::write(place, text).unwrap();
    fs::set_permissions(place, PermissionsExt::from_mode(0o755)).unwrap();
}

/// The program where everybody may open `/dev/fuse`, which many machines let root do only.
fn with_fuse(world: &World, words: &[&str]) -> Command {
    let plain = apptainer(world, words);
    if world.who == Who::Root || !World::is_root() {
        return plain;
    }
    let node = world.path("fuse");
    if !node.exists() {
        let made = Command::new("mknod").arg("-m0666").arg(&node).args(["c", "10", "229"]).status().unwrap();
        assert!(made.success());
    }
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", "mount --bind $0 /dev/fuse || exit 99; exec \"$@\""]).arg(node);
    if world.who == Who::Ordinary {
        command.args(["setpriv", "--reuid", "4242", "--regid", "4242", "--clear-groups"]);
    }
    command.arg(plain.get_program()).args(plain.get_args());
    command.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(world.path("home")).stdin(std::process::Stdio::null());
    command
}

#[test]
fn programs_serve_mounts() {
    if !Path::new("/dev/fuse").exists() {
        println!("skip: there is no /dev/fuse");
        return;
    }
    everyone(|world| {
        if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
            println!("skip: this user may not open /dev/fuse");
            return;
        }
        let tree = sandbox(world);
        let say = |words: &[&str]| Said::of(with_fuse(world, words).output().unwrap());
        // The ordinary user may not be able to reach the folder that this was built in.
        let test = world.path("test");
        fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
        fs::copy(&test, tree.join("bin/served")).unwrap();
        program(&world.path("serve"), &test, "host");
        program(&tree.join("bin/serve"), Path::new("/bin/served"), "container");
        world.give("home");
        let (of_host, t) = (world.path("serve").display().to_string(), tree.display().to_string());
        for (spec, said) in [
            (format!("host:{of_host} a /mnt/deep"), "a /dev/fd/3 -f of host\n"),
            (format!("host-daemon:{of_host} a b /mnt/deep"), "a b /dev/fd/3 of host in the background\n"),
            ("container:serve a /mnt/deep".to_owned(), "a /dev/fd/3 -f of container\n"),
            (
                "container-daemon:/bin/serve /mnt/deep".to_owned(),
                "/dev/fd/3 of container in the background\n",
            ),
        ] {
            for options in [&[][..], &["--containall"], &["--fakeroot"]] {
                let words =
                    [&["exec", "--fusemount", &spec], options, &[&t, "cat", "/mnt/deep/words"]].concat();
                assert_eq!(say(&words).fine(), said, "{spec} {options:?}");
                // Whom the files belong to is known in the container, and nothing is left of the mount outside.
                let own = "test $(stat -c %u /mnt/deep/words) = $(id -u) && ls /mnt/deep";
                let words = [&["exec", "--fusemount", &spec], options, &[&t, "sh", "-c", own]].concat();
                assert_eq!(say(&words).fine(), "words\n", "{spec} {options:?}");
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("/mnt/deep"));
        // Two of them, by the variable.
        let variables = [("APPTAINER_FUSESPEC", format!("host:{of_host} x /mnt/a"))];
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let words = ["exec", &t, "cat", "/mnt/a/words"];
        let said = Said::of(with_fuse(world, &words).envs(variables).output().unwrap());
        assert_eq!(said.fine(), "x /dev/fd/3 -f of host\n");

        say(&["instance", "start", "--fusemount", &format!("host:{of_host} a /mnt/i"), &t, "fused"]).fine();
        let said = say(&["exec", "instance://fused", "cat", "/mnt/i/words"]).fine();
        assert_eq!(said, "a /dev/fd/3 -f of host\n");
        say(&["instance", "stop", "fused"]).fine();

        for (spec, word) in [
            ("host:/nosuch /mnt", "serving a mount by '/nosuch'"),
            ("container:nosuch /mnt", "serving a mount by 'nosuch'"),
            ("container-daemon:false /mnt", "serving a mount by 'false'"),
            ("boat:x /mnt", "unknown prefix boat"),
            ("host:x", "no whitespace separators"),
        ] {
            say(&["exec", "--fusemount", spec, &t, "true"]).fails(255, &[word]);
        }
        let spec = format!("host:{of_host} a /mnt");
        say(&["exec", "--fusemount", &spec, "--pwd", "/mnt", &t, "true"])
            .fails(255, &["nobody serves it before the program runs"]);
        // The program ends with the container.
        let left = Command::new("sh")
            .args(["-c", "grep -l -s -a -z \"$0\" /proc/[0-9]*/cmdline || true"])
            .arg(test.to_str().unwrap())
            .output()
            .unwrap();
        let others = String::from_utf8(left.stdout).unwrap();
        // What looks has the word on its own command line.
        assert!(others.lines().count() <= 2, "{others}");
    });
}
