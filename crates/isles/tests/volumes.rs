//! Volumes and what else is mounted, as root, as an ordinary user and as one with a range of IDs.
#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use world::{Running, Who, World, everyone};

/// An image with something at the places of volumes.
fn furnished(world: &World) -> String {
    let tree = world.path("furnished");
    world::busybox(&tree);
    fs::create_dir_all(tree.join("data/sub")).unwrap();
    fs::create_dir_all(tree.join("empty")).unwrap();
    fs::write(tree.join("data/file"), "from the image\n").unwrap();
    fs::write(tree.join("data/secret"), "x").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(tree.join("data/file"), "user.note", b"noted", flags).unwrap();
    symlink("file", tree.join("data/link")).unwrap();
    symlink("/etc", tree.join("data/out")).unwrap();
    let set = |mode: &str, path: &str| {
        assert!(Command::new("chmod").arg(mode).arg(tree.join(path)).status().unwrap().success());
    };
    set("2750", "data");
    set("640", "data/secret");
    set("700", "empty");
    if World::is_root() {
        for path in ["data", "data/file", "empty"] {
            std::os::unix::fs::chown(tree.join(path), Some(33), Some(33)).unwrap();
        }
    }
    world.image("furnished-image", &tree, |config| {
        config.config.volumes.insert("/data".into(), Default::default());
    });
    format!("oci:{}", world.path("furnished-image").display())
}

fn data(world: &World, name: &str) -> PathBuf {
    world.isles(&["volume", "inspect", "-f", "{{.Mountpoint}}", name]).fine().trim().into()
}

#[test]
fn volumes_are_made_listed_and_removed() {
    everyone(|world| {
        let volume = |words: &[&str]| world.isles(&[&["volume"], words].concat());
        assert_eq!(volume(&["create", "--label", "a=b", "db"]).fine(), "db\n");
        assert_eq!(volume(&["create", "db"]).fine(), "db\n", "it is there already");
        let anonymous = volume(&["create"]).fine();
        assert_eq!(anonymous.trim().len(), 64);
        volume(&["create", "-o", "type=tmpfs", "db"]).fails(1, &["db", "different options"]);
        volume(&["create", "-d", "nfs", "x1"]).fails(1, &["'nfs'"]);
        volume(&["create", "a/b"]).fails(1, &["'a/b'"]);
        volume(&["create", "-o", "color=red", "x1"]).fails(1, &["'color'"]);
        assert_eq!(volume(&["ls", "-q", "--filter", "label=a=b"]).fine(), "db\n");
        assert_eq!(
            volume(&[
                "ls",
                "--filter",
                "name=*b",
                "--filter",
                "label=a",
                "--format",
                "{{.Name}} {{.Driver}} {{.Labels}}"
            ])
            .fine(),
            "db local a=b\n"
        );
        let table = volume(&["ls"]).fine();
        assert!(table.starts_with("DRIVER   VOLUME NAME\n") && table.lines().count() == 3, "{table}");
        volume(&["ls", "--filter", "color=red"]).fails(1, &["color"]);
        let shown = volume(&["inspect", "db"]).fine();
        for word in
            ["\"Name\": \"db\"", "\"Scope\": \"local\"", "\"a\": \"b\"", "_data\"", "\"CreatedAt\": \"20"]
        {
            assert!(shown.contains(word), "{word} is missing in {shown}");
        }
        assert!(world.isles(&["inspect", "db"]).fine().contains("\"Mountpoint\""));
        world.run(&["-v", "db:/d", "--", "sh", "-c", "echo kept > /d/x"]).fine();
        assert_eq!(world.run(&["-v", "db:/other:ro", "--", "cat", "/other/x"]).fine(), "kept\n");
        world.run(&["-v", "db:/d:ro", "--", "touch", "/d/y"]).fails(1, &["Read-only"]);
        // A container that has ended still has its volumes.
        let source = world.source();
        world.isles(&["run", "--name", "user", "-v", "db:/d", &source, "true"]).fine();
        volume(&["rm", "db"]).fails(1, &["volume is in use"]);
        assert_eq!(volume(&["ls", "-q", "--filter", "dangling=false"]).fine(), "db\n");
        volume(&["prune", "-f", "-a"]).fine();
        assert_eq!(volume(&["ls", "-q"]).fine(), "db\n");
        world.isles(&["rm", "-v", "user"]).fine();
        assert_eq!(volume(&["ls", "-q"]).fine(), "db\n", "somebody named it");
        assert_eq!(volume(&["rm", "db"]).fine(), "db\n");
        volume(&["rm", "db"]).fails(1, &["no volume 'db'"]);
        volume(&["rm", "-f", "db"]).fine();
        let left = fs::read_dir(world.path("state/volumes")).unwrap().count();
        assert_eq!(left, 1, "only the lock");
    });
}

#[test]
fn an_empty_volume_gets_what_the_image_has() {
    everyone(|world| {
        let image = furnished(world);
        let run = |words: &[&str]| world.isles(&[&["run", "--rm"], words].concat());
        let look = "cd /data; cat file; stat -c %a:%u . secret; stat -c %a:%u file; ls -l link | tail -c 13";
        let seen = run(&["-v", "full:/data", &image, "sh", "-c", look]).fine();
        let (www, root) = if world.who == Who::Ordinary || !World::is_root() { (0, 0) } else { (33, 0) };
        let expected = format!("from the image\n2750:{www}\n640:{root}\n644:{www}\nlink -> file\n");
        assert_eq!(seen, expected);
        let mut note = [0; 9];
        let file = data(world, "full").join("file");
        assert_eq!(rustix::fs::getxattr(&file, "user.note", &mut note), Ok(5), "attributes come along");
        // It is not filled again, even where it is empty by now.
        run(&["-v", "full:/x", &image, "sh", "-c", "rm -r /x/file /x/secret /x/sub /x/link /x/out"]).fine();
        assert_eq!(run(&["-v", "full:/data", &image, "ls", "/data"]).fine(), "");
        assert_eq!(run(&["-v", "bare:/data:nocopy", &image, "ls", "/data"]).fine(), "");
        // The place in the image may be empty, and give no more than its owner; the next one fills it.
        assert_eq!(
            run(&["-v", "late:/empty", &image, "stat", "-c", "%a:%u", "/empty"]).fine(),
            format!("700:{www}\n")
        );
        assert_eq!(run(&["-v", "late:/data", &image, "cat", "/data/file"]).fine(), "from the image\n");
        // What is in a volume is never replaced.
        run(&["-v", "own:/own", &image, "sh", "-c", "echo mine > /own/file"]).fine();
        assert_eq!(run(&["-v", "own:/data", &image, "sh", "-c", "cat /data/*"]).fine(), "mine\n");
    });
}

#[test]
fn what_a_crash_left_half_filled_is_filled() {
    everyone(|world| {
        let image = furnished(world);
        world.isles(&["volume", "create", "half"]).fine();
        let folder = data(world, "half").parent().unwrap().to_owned();
        fs::create_dir_all(folder.join("filling/sub")).unwrap();
        fs::write(folder.join("filling/one"), "1").unwrap();
        fs::write(folder.join("filling/two"), "image").unwrap();
        fs::write(folder.join("_data/two"), "container").unwrap();
        world.give("state");
        let words = ["run", "--rm", "-v", "half:/data", &image, "sh", "-c", "cd /data; ls; cat two"];
        assert_eq!(world.isles(&words).fine(), "one\nsub\ntwo\ncontainer");
        assert!(!folder.join("filling").exists() && !folder.join("fresh").exists());
    });
}

#[test]
fn volumes_without_a_name_go_with_their_container() {
    everyone(|world| {
        let image = furnished(world);
        let names = || world.isles(&["volume", "ls", "-q"]).fine();
        let cat = ["-v", "/more", &image, "cat", "/data/file"];
        assert_eq!(world.isles(&[&["run", "--rm"], &cat[..]].concat()).fine(), "from the image\n");
        assert_eq!(names(), "");
        world.isles(&[&["run", "--name", "one"], &cat[..]].concat()).fine();
        assert_eq!(names().lines().count(), 2);
        let mounts = world.isles(&["inspect", "-f", "{{json .Mounts}}", "one"]).fine();
        assert!(mounts.contains("\"/data\"") && mounts.contains("\"volume\""), "{mounts}");
        world.isles(&["rm", "one"]).fine();
        assert_eq!(names().lines().count(), 2, "they may still be wanted");
        let would = world.isles(&["prune", "--volumes", "--dry-run"]).fine();
        assert_eq!(would.lines().filter(|line| line.starts_with("volume ")).count(), 2, "{would}");
        world.isles(&["prune", "-f"]).fine();
        assert_eq!(names().lines().count(), 2);
        let gone = world.isles(&["prune", "-f", "--volumes"]).fine();
        assert_eq!(gone.lines().filter(|line| line.starts_with("volume ")).count(), 2, "{gone}");
        assert_eq!(names(), "");
        world.isles(&[&["run", "--name", "again"], &cat[..]].concat()).fine();
        world.isles(&["rm", "again"]).fine();
        world.isles(&["volume", "prune", "-f"]).fine();
        assert_eq!(names(), "");
        world.isles(&[&["run", "--name", "two"], &cat[..]].concat()).fine();
        world.isles(&["rm", "-v", "two"]).fine();
        assert_eq!(names(), "");
        // A volume of the caller's at that place is the one, and so is a folder.
        world.isles(&["run", "--name", "three", "-v", "named:/data", &image, "true"]).fine();
        world.isles(&["run", "--name", "four", "--tmpfs", "/data", &image, "true"]).fine();
        assert_eq!(names(), "named\n");
        // One that could not start leaves none.
        world.isles(&["run", &image, "nosuch"]).fails(127, &[]);
        assert_eq!(names(), "named\n");
    });
}

#[test]
fn volumes_of_a_killed_monitor_are_collected() {
    everyone(|world| {
        let image = furnished(world);
        let mut command = world.command(["run", "--rm", &image, "sh", "-c", "echo ready; exec sleep 1000"]);
        let (mut run, _) = Running::start(&mut command);
        assert_eq!(world.isles(&["volume", "ls", "-q"]).fine().lines().count(), 1);
        run.signal(rustix::process::Signal::KILL);
        run.code();
        assert_eq!(world.isles(&["volume", "ls", "-q"]).fine(), "");
    });
}

#[test]
fn many_make_use_and_remove_volumes_at_once() {
    everyone(|world| {
        let image = furnished(world);
        world.isles(&["run", "--rm", &image, "true"]).fine();
        let run = |words: &[&str]| {
            let mut command = world.command([&["run", "--rm", "-v", "shared:/data"], words].concat());
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        };
        for _ in 0..3 {
            let users: Vec<_> =
                (0..6).map(|_| run(&[&image, "sh", "-c", "cat /data/file; ls /data | wc -l"])).collect();
            // Which are in time, nobody knows: none may take it from somebody who has it.
            for _ in 0..6 {
                world.isles(&["volume", "rm", "shared"]);
                world.isles(&["volume", "create", "shared"]).fine();
            }
            for user in users {
                assert_eq!(world::Said::of(user.wait_with_output().unwrap()).fine(), "from the image\n5\n");
            }
        }
        world.isles(&["volume", "rm", "-f", "shared"]).fine();
        assert_eq!(world.isles(&["volume", "ls", "-q"]).fine(), "");
    });
}

#[test]
fn whoever_is_killed_leaves_whole_volumes_or_none() {
    everyone(|world| {
        let image = furnished(world);
        world.isles(&["run", "--rm", &image, "true"]).fine();
        for round in 0..24u32 {
            let name = format!("v{}", round % 4);
            let spec = format!("{name}:/data");
            let words: [&[&str]; 3] = [
                &["volume", "create", &name],
                &["run", "--rm", "-v", &spec, "-v", "/more", &image, "true"],
                &["volume", "rm", &name],
            ];
            let mut command = world.command(words[round as usize % 3]);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            let mut child = command.spawn().unwrap();
            // Another moment in each round.
            (0..round * 400).for_each(|_| std::thread::yield_now());
            child.kill().unwrap();
            child.wait().unwrap();
        }
        // The next command takes away what is left, of containers too.
        world.isles(&["ps", "-a"]).fine();
        let names = world.isles(&["volume", "ls", "-q"]).fine();
        for name in names.lines() {
            assert!(name.len() == 2, "{name} goes with its container");
            let words = ["run", "--rm", "-v", &format!("{name}:/data"), &image, "cat", "/data/file"];
            assert_eq!(world.isles(&words).fine(), "from the image\n");
            world.isles(&["volume", "rm", name]).fine();
        }
        let left: Vec<_> =
            fs::read_dir(world.path("state/volumes")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [".lock"]);
    });
}

/// Mounts that are made on either side while the container runs (mount_namespaces(7)).
#[test]
fn later_mounts_cross_as_they_were_asked_to() {
    if !World::is_root() {
        println!("skip: only root mounts in a mount namespace of the host's");
        return;
    }
    let Some(world) = World::new(Who::Root) else { return };
    let script = "set -e; mount --make-rprivate /; mkdir share; mount -t tmpfs x share; mount --make-shared share; \
        mkdir share/sub share/in; mkfifo share/go share/ready; \
        $0 run --rm --privileged -v ./share:/s:$2 $1 sh -c 'echo > /s/ready; cat /s/go; \
        grep -c \" /s/sub \" /proc/self/mountinfo; mount -t tmpfs y /s/in' & \
        cat share/ready; mount -t tmpfs z share/sub; echo > share/go; wait; \
        grep -c \" $PWD/share/in \" /proc/self/mountinfo";
    for (mode, expected) in [("rprivate", [0, 0]), ("rslave", [1, 0]), ("rshared", [1, 1])] {
        let source = world.source();
        let folder = world.path("home").join(mode);
        fs::create_dir(&folder).unwrap();
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script]).arg(world.path("isles")).args([&source, mode]);
        let said = command.current_dir(&folder).env("ISLES_ROOT", world.path("state")).output().unwrap();
        let out = String::from_utf8(said.stdout).unwrap();
        let numbers: Vec<i32> = out.split_whitespace().map(|n| n.parse().unwrap()).collect();
        assert_eq!(numbers, expected, "{mode}: {}", String::from_utf8_lossy(&said.stderr));
    }
}

#[test]
fn mounts_of_another_container() {
    everyone(|world| {
        let source = world.source();
        let folder = world.path("home/folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("f"), "folder\n").unwrap();
        world.give("home");
        let bind = format!("{}:/b:ro", folder.display());
        let make =
            ["run", "--name", "giver", "-v", "db:/d", "-v", &bind, "--tmpfs", "/t", &source, "sh", "-c"];
        world.isles(&[&make[..], &["echo volume > /d/f"]].concat()).fine();
        let all = "cat /d/f /b/f; test -e /t || echo no /t";
        assert_eq!(
            world.run(&["--volumes-from", "giver", "--", "sh", "-c", all]).fine(),
            "volume\nfolder\nno /t\n"
        );
        world.run(&["--volumes-from", "giver:rw", "--", "touch", "/b/x"]).fails(1, &["Read-only"]);
        world.run(&["--volumes-from", "giver:ro", "--", "touch", "/d/x"]).fails(1, &["Read-only"]);
        let own = ["--volumes-from", "giver", "-v", "other:/d", "--", "ls", "/d"];
        assert_eq!(world.run(&own).fine(), "");
        world.run(&["--volumes-from", "nosuch", "--", "true"]).fails(125, &["no such container: nosuch"]);
        world.run(&["--volumes-from", "giver:x", "--", "true"]).fails(125, &["'x'"]);
    });
}

#[test]
fn parts_of_volumes_lead_nowhere_else() {
    everyone(|world| {
        world
            .run(&[
                "-v",
                "tree:/v",
                "--",
                "sh",
                "-c",
                "mkdir -p /v/a/b; echo x > /v/a/b/f; echo root:inside > /v/passwd",
            ])
            .fine();
        let top = data(world, "tree");
        // As a container could make them.
        symlink("/", top.join("root")).unwrap();
        symlink("../../../../../../..", top.join("up")).unwrap();
        symlink("/proc/self/root/etc", top.join("magic")).unwrap();
        symlink("/a", top.join("inner")).unwrap();
        let part = |path: &str, show: &str| {
            let spec = format!("type=volume,src=tree,dst=/m,volume-subpath={path}");
            world.run(&["--mount", &spec, "--", "sh", "-c", show])
        };
        assert_eq!(part("a/b", "cat /m/f").fine(), "x\n");
        assert_eq!(part("a/b/f", "cat /m").fine(), "x\n");
        assert_eq!(part("inner/b", "cat /m/f").fine(), "x\n");
        for link in ["root", "up"] {
            assert_eq!(part(link, "cat /m/passwd").fine(), "root:inside\n", "{link} stays in the volume");
        }
        part("magic", "true").fails(125, &["'magic' of volume tree"]);
        part("nosuch", "true").fails(125, &["'nosuch' of volume tree"]);
        part("../tree", "true").fails(125, &["'../tree'"]);
    });
}

#[test]
fn volumes_of_the_local_driver() {
    everyone(|world| {
        let folder = world.path("home/shared");
        fs::create_dir(&folder).unwrap();
        world.give("home");
        let device = format!("device={}", folder.display());
        world.isles(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, "bound"]).fine();
        world.run(&["-v", "bound:/s", "--", "touch", "/s/x"]).fine();
        assert_eq!(fs::metadata(folder.join("x")).unwrap().uid(), world.uid());
        world.isles(&["volume", "rm", "bound"]).fine();
        assert!(folder.join("x").exists(), "the folder is the caller's");
        let missing = ["-o", "type=none", "-o", "o=bind", "-o", "device=/nonexistent/x", "gone"];
        world.isles(&[&["volume", "create"], &missing[..]].concat()).fine();
        world.run(&["-v", "gone:/s", "--", "true"]).fails(125, &["/nonexistent/x"]);
        world.isles(&["volume", "create", "-o", "type=tmpfs", "-o", "o=size=1m,mode=750", "memory"]).fine();
        let script = "stat -c %a /s; dd if=/dev/zero of=/s/x bs=1M count=2 2>&1 | grep -o 'No space'";
        assert_eq!(world.run(&["-v", "memory:/s", "--", "sh", "-c", script]).out, "750\nNo space\n");
        let disk =
            world.isles(&["volume", "create", "-o", "type=ext4", "-o", "device=/nonexistent/disk", "disk"]);
        if world.who == Who::Root {
            disk.fine();
            world.run(&["-v", "disk:/s", "--", "true"]).fails(125, &["/s"]);
        } else {
            disk.fails(1, &["ext4", "only root"]);
        }
    });
}

#[test]
fn bind_mounts_have_the_propagation_and_owners_that_were_asked_for() {
    everyone(|world| {
        let folder = world.path("home/mine");
        fs::create_dir(&folder).unwrap();
        world.give("home");
        let spec = |end: &str| format!("{}:/m{end}", folder.display());
        for word in ["private", "rprivate", "slave", "rslave"] {
            let out =
                world.run(&["-v", &spec(&format!(":{word}")), "--", "cat", "/proc/self/mountinfo"]).fine();
            let line = out.lines().find(|line| line.contains(" /m ")).unwrap();
            assert!(!line.contains("shared:"), "{word}: {line}");
        }
        // Whoever the container's user is, and whatever it is called outside.
        let mine = |options: &[&str], who: &str, mode: &str| {
            let (bind, name) = (spec(mode), format!("/m/{who}{}", mode.replace([':', '='], "-")));
            let words =
                [options, &["-u", who, "-v", &bind, "--", "sh", "-c", "touch $0; stat -c %u $0", &name]]
                    .concat();
            let said = world.run(&words);
            let file = folder.join(name.trim_start_matches("/m/"));
            (said, fs::metadata(file).map(|found| found.uid()).ok())
        };
        let (said, owner) = mine(&[], "0", "");
        assert_eq!((said.fine().as_str(), owner), ("0\n", Some(world.uid())));
        match world.who {
            Who::Ordinary => {
                for mode in ["", ":idmap", ":U"] {
                    let (said, owner) = mine(&[], "33", mode);
                    assert_eq!((said.fine().as_str(), owner), ("33\n", Some(world.uid())), "{mode}");
                }
            }
            Who::Ranged => {
                let (said, owner) = mine(&["--userns", "keep-id"], &world.uid().to_string(), "");
                assert_eq!((said.fine(), owner), (format!("{}\n", world.uid()), Some(world.uid())));
                mine(&[], "33", ":idmap").0.fails(125, &["only root"]);
                let (said, owner) = mine(&[], "33", ":U");
                assert_eq!((said.fine().as_str(), owner), ("33\n", Some(200_032)));
            }
            Who::Root => {
                std::os::unix::fs::chown(&folder, Some(4242), Some(4242)).unwrap();
                let (said, owner) = mine(&[], "0", ":idmap");
                assert_eq!((said.fine().as_str(), owner), ("0\n", Some(4242)));
                let (said, owner) = mine(&[], "33", ":idmap");
                assert_eq!((said.fine().as_str(), owner), ("33\n", Some(4242)));
                let (said, owner) = mine(&[], "5", ":idmap=uids=4242-5-1;gids=4242-0-1");
                assert_eq!((said.fine().as_str(), owner), ("5\n", Some(4242)));
                let (said, owner) = mine(&[], "33", ":U");
                assert_eq!((said.fine().as_str(), owner), ("33\n", Some(33)));
                assert!(fs::read_dir(&folder).unwrap().all(|e| e.unwrap().metadata().unwrap().uid() == 33));
            }
        }
    });
}
