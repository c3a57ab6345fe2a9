//! `isles cp`: both ways, containers that run and that do not, and what a container may try against it.
#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use isles_store::tar::{Entry, Kind, Writer};
use world::{Running, Said, Who, World, everyone};

/// A container that has ended, and one that runs with a volume, a folder of the host and a tmpfs.
fn stopped(world: &World, script: &str) {
    let source = world.source();
    world.isles(&["run", "--name", "still", "-v", "data:/data", &source, "sh", "-c", script]).fine();
}

fn running(world: &World, options: &[&str], script: &str) -> Running {
    let source = world.source();
    let script = format!("{script}; echo ready; exec sleep 1000");
    let words = [&["run", "--rm", "--name", "live"], options, &[&source, "sh", "-c", &script]].concat();
    let (run, line) = Running::start(&mut world.command(words));
    assert_eq!(line, "ready\n");
    run
}

fn with_input(world: &World, words: &[&str], input: &[u8]) -> Said {
    let mut command = world.command(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input);
    Said::of(child.wait_with_output().unwrap())
}

fn archive(entries: &[(&str, Kind, &str, u32)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, kind, text, uid) in entries {
        let is_file = *kind == Kind::File;
        let mut entry =
            Entry { path: path.as_bytes().to_vec(), kind: *kind, mode: 0o755, uid: *uid, ..Entry::default() };
        if is_file {
            entry.size = text.len() as u64;
        } else {
            entry.link = text.as_bytes().to_vec();
        }
        writer.begin(&entry).unwrap();
        if is_file {
            writer.data(text.as_bytes()).unwrap();
        }
    }
    writer.finish().unwrap()
}

#[test]
fn files_come_out_of_a_container_that_has_ended() {
    everyone(|world| {
        let script = "mkdir -p /w/sub; echo one > /w/file; ln -s file /w/link; echo two > /w/sub/x; \
                      echo kept > /data/v; chmod 640 /w/file; echo -n > /w/empty";
        stopped(world, script);
        let home = |name: &str| world.path("home").join(name);
        let cp = |from: &str, to: &str| world.isles(&["cp", from, to]);
        let read = |name: &str| fs::read_to_string(home(name)).unwrap();
        cp("still:/w/file", "out").fine();
        assert_eq!(read("out"), "one\n");
        let found = fs::metadata(home("out")).unwrap();
        assert_eq!((found.mode() & 0o777, found.uid()), (0o640, world.uid()), "it is the caller's");
        cp("still:/w", "tree").fine();
        assert_eq!((read("tree/sub/x"), read("tree/link")), ("two\n".into(), "one\n".into()));
        assert!(home("tree/link").is_symlink());
        cp("still:w/.", "tree/sub").fine();
        assert_eq!(read("tree/sub/file"), "one\n");
        cp("still:/w/", "tree").fine();
        assert_eq!(read("tree/w/file"), "one\n");
        // Out of a volume, and links of the container.
        cp("still:/data/v", ".").fine();
        assert_eq!(read("v"), "kept\n");
        cp("still:/w/link", "link").fine();
        assert!(home("link").is_symlink());
        fs::remove_file(home("link")).unwrap();
        world.isles(&["cp", "-L", "still:/w/link", "link"]).fine();
        assert!(!home("link").is_symlink() && read("link") == "one\n");
        for (from, to, words) in [
            ("still:/nosuch", "x", &["'/nosuch' in the container"][..]),
            ("still:/w/file/x", "x", &["Not a directory"]),
            ("still:/w/file/", "x", &["Not a directory"]),
            ("still:/w/file", "x/", &["must exist", "x/"]),
            ("still:/w", "out", &["directory to a file"]),
            ("still:/w/file", "nosuch/x", &["nosuch"]),
            ("nobody:/w", "x", &["no such container: nobody"]),
            ("still:/w", "still:/v", &["between containers"]),
            ("out", "x", &["neither"]),
        ] {
            cp(from, to).fails(1, words);
        }
        let mut tar = Command::new("tar");
        tar.arg("t").stdin(Stdio::from(
            world.command(["cp", "still:/w", "-"]).stdout(Stdio::piped()).spawn().unwrap().stdout.unwrap(),
        ));
        let listed = Said::of(tar.output().unwrap()).fine();
        assert_eq!(listed, "w/\nw/empty\nw/file\nw/link\nw/sub/\nw/sub/x\n");
        // The container is as it was, and can be removed.
        world.isles(&["rm", "still"]).fine();
    });
}

#[test]
fn files_go_into_containers() {
    everyone(|world| {
        stopped(
            world,
            "mkdir /there; echo old > /file; ln -s /there /way; chown 33:33 /there; chmod 700 /there",
        );
        let home = world.path("home");
        fs::create_dir_all(home.join("tree/sub")).unwrap();
        fs::write(home.join("tree/file"), "new\n").unwrap();
        symlink("file", home.join("tree/link")).unwrap();
        world.give("home");
        fs::set_permissions(home.join("tree/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        let cp = |from: &str, to: &str| world.isles(&["cp", from, to]);
        let out = |path: &str| {
            let listed = world.command(["cp", &format!("still:{path}"), "-"]).output().unwrap();
            assert!(listed.status.success(), "{listed:?}");
            let mut tar = Command::new("tar");
            tar.args(["tv", "--numeric-owner"]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut tar = tar.spawn().unwrap();
            tar.stdin.take().unwrap().write_all(&listed.stdout).unwrap();
            String::from_utf8(tar.wait_with_output().unwrap().stdout).unwrap()
        };
        let names = |path: &str| -> Vec<String> {
            out(path)
                .lines()
                .map(|l| l.splitn(6, ' ').last().unwrap().split(' ').next_back().unwrap().to_owned())
                .collect()
        };
        cp("tree", "still:/new").fine();
        assert_eq!(names("/new"), ["new/", "new/file", "file", "new/sub/"]);
        assert!(out("/new/file").starts_with("-rwsr-x--x"), "{}", out("/new/file"));
        cp("tree", "still:/there").fine();
        assert_eq!(names("/there"), ["there/", "there/tree/", "there/tree/file", "file", "there/tree/sub/"]);
        let before = out("/there").lines().next().unwrap().to_owned();
        cp("tree/.", "still:/way").fine();
        assert!(names("/there").contains(&"there/file".to_owned()));
        assert_eq!(
            out("/there").lines().next().unwrap()[..20],
            before[..20],
            "the folder itself stays as it was"
        );
        cp("tree/file", "still:/file").fine();
        cp("tree/file", "still:/way/named").fine();
        cp("tree/link", "still:/data/").fine();
        assert_eq!(names("/data"), ["data/", "file"]);
        for (from, to, words) in [
            ("tree", "still:/file", &["directory to a file"][..]),
            ("tree/file", "still:/file/", &["not a directory"]),
            ("tree/file", "still:/nosuch/", &["must exist"]),
            ("tree/file", "still:/nosuch/x", &["'/nosuch' in the container"]),
            ("nosuch", "still:/x", &["nosuch"]),
            ("tree/file", "still:/there/tree", &[]),
        ] {
            if words.is_empty() {
                cp(from, to).fine();
            } else {
                cp(from, to).fails(1, words);
            }
        }
        cp("tree/sub", "still:/new/file").fails(1, &["directory to a file"]);
        // Whose it is: as on the host for root, the caller's for others; with -a the container's user's.
        let owner = |path: &str| out(path).split_whitespace().nth(1).unwrap().to_owned();
        if world.who == Who::Root {
            std::os::unix::fs::chown(home.join("tree/file"), Some(77), Some(78)).unwrap();
            cp("tree/file", "still:/owned").fine();
            assert_eq!(owner("/owned"), "77/78");
            let source = world.source();
            world.isles(&["run", "--name", "other", "-u", "www", &source, "true"]).fine();
            world.isles(&["cp", "-a", "tree/file", "other:/owned"]).fine();
            world.isles(&["cp", "-a", "other:/owned", "back"]).fine();
            assert_eq!(fs::metadata(home.join("back")).unwrap().uid(), 33);
        } else {
            assert_eq!(owner("/file"), "0/0");
        }
        // An archive, compressed or not.
        let tar = archive(&[
            ("a/b", Kind::File, "text", 5),
            ("a/.wh.c", Kind::File, "", 5),
            ("a/l", Kind::Hardlink, "a/b", 5),
        ]);
        with_input(world, &["cp", "-", "still:/there"], &tar).fine();
        assert!(names("/there/a").contains(&"a/.wh.c".to_owned()), "{:?}", names("/there/a"));
        let mut xz =
            Command::new("xz").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        xz.stdin.take().unwrap().write_all(&tar).unwrap();
        let packed = xz.wait_with_output().unwrap().stdout;
        with_input(world, &["cp", "-", "still:/new"], &packed).fine();
        assert!(names("/new/a").contains(&"a/b".to_owned()));
        with_input(world, &["cp", "-", "still:/file"], &tar).fails(1, &["must be a folder"]);
        with_input(world, &["cp", "-", "still:/there"], b"no archive at all, but long enough")
            .fails(1, &["archive"]);
        let bad = archive(&[("../../x", Kind::File, "out", 0)]);
        with_input(world, &["cp", "-", "still:/there"], &bad).fails(1, &["'..'"]);
        let bad = archive(&[("file", Kind::Symlink, "/", 0), ("a", Kind::File, "f", 0)]);
        with_input(world, &["cp", "-", "still:/there"], &bad).fails(1, &["folder"]);
    });
}

#[test]
fn running_containers_are_copied_to_and_from_with_all_that_is_mounted() {
    everyone(|world| {
        let shared = world.path("home/shared");
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("f"), "of the host\n").unwrap();
        world.give("home");
        let bind = format!("{}:/host", shared.display());
        let read_only = format!("{}:/ro:ro", shared.display());
        let options = ["-v", "data:/data", "-v", &bind, "-v", &read_only, "--tmpfs", "/mem"];
        for init in [&[][..], &["--init"]] {
            let script = "echo v > /data/v; echo m > /mem/m; mkdir /deep; echo d > /deep/d";
            let _run = running(world, &[&options, init].concat(), script);
            for (path, text) in
                [("/data/v", "v\n"), ("/mem/m", "m\n"), ("/host/f", "of the host\n"), ("/deep/d", "d\n")]
            {
                let _ = fs::remove_file(world.path("home/got"));
                world.isles(&["cp", &format!("live:{path}"), "got"]).fine();
                assert_eq!(fs::read_to_string(world.path("home/got")).unwrap(), text, "{path}");
                let to = format!("live:{}", Path::new(path).with_file_name("new").display());
                world.isles(&["cp", "got", &to]).fine();
            }
            let copied = fs::metadata(shared.join("new")).unwrap();
            assert_eq!(copied.uid(), world.uid());
            world.isles(&["cp", "got", "live:/ro/x"]).fails(1, &["Read-only"]);
            // A file that is a mount of its own is written, not replaced.
            world.isles(&["cp", "got", "live:/etc/hostname"]).fine();
            world.isles(&["cp", "live:/etc/hostname", "name"]).fine();
            assert_eq!(fs::read_to_string(world.path("home/name")).unwrap(), "d\n");
            world.isles(&["cp", "live:/proc/self/root/etc", "x"]).fails(1, &["/proc/self/root"]);
            world.isles(&["cp", "live:/proc/1/root/etc/passwd", "x"]).fails(1, &["/proc/1/root"]);
        }
    });
}

#[test]
fn a_root_that_is_read_only_stays_so() {
    everyone(|world| {
        let source = world.source();
        fs::write(world.path("home/f"), "x").unwrap();
        world.isles(&["run", "--name", "shut", "--read-only", "-v", "data:/data", &source, "true"]).fine();
        world.isles(&["cp", "f", "shut:/f"]).fails(1, &["Read-only"]);
        world.isles(&["cp", "f", "shut:/data/f"]).fine();
    });
}

/// CVE-2018-15664: what a path leads to changes between being looked at and being used.
#[test]
fn links_that_are_swapped_during_a_copy_lead_nowhere_outside() {
    everyone(|world| {
        let secret = world.path("secret");
        fs::create_dir(&secret).unwrap();
        fs::write(secret.join("file"), "of the host\n").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o777)).unwrap();
        // The same path as on the host, so that a link to it means something on both sides.
        let place = secret.display();
        let script = format!(
            "mkdir -p {place} /t/a; echo inside > {place}/file; echo inside > /t/a/file; ln -s {place} /t/b; \
             (while true; do /bin/busybox mv /t/a /t/c; /bin/busybox mv /t/b /t/a; /bin/busybox mv /t/a /t/b; \
             /bin/busybox mv /t/c /t/a; done) & true"
        );
        let _run = running(world, &[], &script);
        fs::write(world.path("home/f"), "from outside").unwrap();
        for _ in 0..40 {
            let _ = fs::remove_file(world.path("home/got"));
            let said = world.isles(&["cp", "live:/t/a/file", "got"]);
            if said.code == 0 {
                assert_eq!(fs::read_to_string(world.path("home/got")).unwrap(), "inside\n");
            }
            world.isles(&["cp", "f", "live:/t/a/planted"]);
            let _ = isles_store::remove_tree(&world.path("home/tree"));
            world.isles(&["cp", "live:/t", "tree"]);
        }
        assert_eq!(fs::read_dir(&secret).unwrap().count(), 1, "nothing was written there");
        assert_eq!(fs::read_to_string(secret.join("file")).unwrap(), "of the host\n");
    });
}

/// CVE-2019-14271 and CVE-2026-41567: libraries and programs of the container are not used, whatever they are called.
#[test]
fn nothing_of_the_container_runs() {
    everyone(|world| {
        let trap = "#!/bin/busybox sh\necho sprung > /sprung\n";
        let names = "xz unxz gzip gunzip zstd bzip2 tar unpigz chroot id getent passwd";
        let script = format!(
            "for n in {names}; do printf '{}' > /bin/$n; /bin/busybox chmod 755 /bin/$n; done; mkdir -p /lib /etc; \
             for l in libnss_files.so.2 libc.so.6 libnss_compat.so.2; do cat /bin/xz > /lib/$l; done; \
             echo 'passwd: files compat' > /etc/nsswitch.conf",
            trap.replace('\n', "\\n")
        );
        let tar = archive(&[("a", Kind::File, "text", 5)]);
        let packed = |program: &str| {
            let mut child =
                Command::new(program).arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(&tar).unwrap();
            child.wait_with_output().unwrap().stdout
        };
        stopped(world, &script);
        let _run = running(world, &[], &script);
        for container in ["still", "live"] {
            let place = format!("{container}:/tmp");
            for program in ["xz", "gzip"] {
                with_input(world, &["cp", "-a", "-", &place], &packed(program)).fine();
            }
            world.isles(&["cp", &format!("{container}:/tmp/a"), "got"]).fine();
            world.isles(&["cp", &format!("{container}:/sprung"), "got"]).fails(1, &["/sprung"]);
        }
    });
}

/// CVE-2026-41568 and CVE-2026-42306: places of mounts that a container changes while they are mounted on.
#[test]
fn nothing_is_mounted_in_a_container_that_runs() {
    everyone(|world| {
        let script = "cat /proc/self/mountinfo > /before; (while true; do cat /proc/self/mountinfo > /now; \
                      /bin/busybox cmp -s /before /now || echo changed > /changed; done) & true";
        let _run = running(world, &["-v", "data:/data"], script);
        fs::write(world.path("home/f"), "x").unwrap();
        for _ in 0..10 {
            world.isles(&["cp", "f", "live:/data/f"]).fine();
            world.isles(&["cp", "live:/data/f", "got"]).fine();
        }
        world.isles(&["cp", "live:/changed", "got"]).fails(1, &["/changed"]);
    });
}

#[test]
fn what_the_kernel_shows_is_left_alone() {
    everyone(|world| {
        stopped(world, "ln -s /proc/sys/kernel /kernel; ln -s /proc/version /version");
        let _run = running(world, &[], "ln -s /proc/sys/kernel /kernel; ln -s /proc/version /version");
        fs::write(world.path("home/hostname"), "x").unwrap();
        for name in ["still", "live"] {
            let cp = |from: &str, to: &str| world.isles(&["cp", "-L", from, to]);
            for path in ["/proc/version", "/version", "/proc", "/sys", "/kernel/ostype"] {
                cp(&format!("{name}:{path}"), "got").fails(1, &[path, "kernel's"]);
            }
            for path in ["/kernel", "/kernel/hostname", "/version", "/proc/new"] {
                cp("hostname", &format!("{name}:{path}")).fails(1, &[path, "kernel's"]);
            }
            // All of it, without an end to come.
            cp(&format!("{name}:/"), &format!("all-{name}")).fine();
            let all = world.path("home").join(format!("all-{name}"));
            assert!(
                all.join("bin/busybox").exists() && fs::read_dir(all.join("proc")).unwrap().next().is_none()
            );
        }
    });
}

/// moby/moby#52948: an archive from a container that means to leave the folder it is unpacked in, and files that are
/// something else by the time they are opened.
#[test]
fn what_comes_out_stays_where_it_goes() {
    everyone(|world| {
        let script = "mkdir /t; ln -s / /t/root; ln -s ../../../../.. /t/up; /bin/busybox mkfifo /t/fifo; echo x > /t/x";
        stopped(world, script);
        fs::create_dir(world.path("home/into")).unwrap();
        symlink("/", world.path("home/into/x")).unwrap();
        world.give("home");
        world.isles(&["cp", "still:/t/.", "into"]).fine();
        let found = |name: &str| world.path("home/into").join(name);
        assert!(found("root").is_symlink() && found("up").is_symlink());
        assert_eq!(fs::read_to_string(found("x")).unwrap(), "x\n", "the link was replaced, not followed");
        assert!(!Path::new("/x").exists());
    });
}
