//! `isles run` of files that hold a root file system, and of folders that are one.
#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use isles_sif::{Arch, FileSystem, NewObject, NewSif, Role};
use rustix::process::Signal;
use world::{Running, Said, Who, World, everyone};

/// Runs a command where everybody may open `/dev/fuse`: `$0` is such a device.
const WITH_FUSE: &str = "mount --bind $0 /dev/fuse || exit 99; exec \"$@\"";
const AS_ORDINARY: [&str; 6] = ["setpriv", "--reuid", "4242", "--regid", "4242", "--clear-groups"];

/// The image of [`tree`], for everybody to read; `None`, with a printed reason, where it cannot be made.
fn image(world: &World) -> Option<PathBuf> {
    let path = world.path("image.sqfs");
    if !path.exists() {
        tree(&world.path("image"));
        squash(&world.path("image"), &path)?;
    }
    Some(path)
}

fn squash(tree: &Path, image: &Path) -> Option<()> {
    let mut command = Command::new("mksquashfs");
    command.arg(tree).arg(image).args(["-all-root", "-quiet", "-no-progress"]).stdout(Stdio::null());
    match command.status() {
        Ok(status) => assert!(status.success()),
        Err(_) => {
            println!("skip: mksquashfs is not installed (package squashfs-tools)");
            return None;
        }
    }
    fs::set_permissions(image, fs::Permissions::from_mode(0o644)).unwrap();
    Some(())
}

fn tree(at: &Path) {
    world::busybox(at);
    fs::create_dir_all(at.join("many")).unwrap();
    for n in 0..600 {
        fs::write(at.join(format!("many/name-{n:03}")), n.to_string()).unwrap();
    }
    fs::write(at.join("large"), vec![b'x'; 3_000_000]).unwrap();
    symlink("large", at.join("link")).unwrap();
    symlink("/", at.join("trap")).unwrap();
    fs::create_dir_all(at.join(".singularity.d")).unwrap();
    fs::write(at.join(".singularity.d/runscript"), "#!/bin/sh\necho the runscript\n").unwrap();
    fs::set_permissions(at.join(".singularity.d/runscript"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// A SIF file with the image as its primary partition.
fn sif(world: &World, image: &Path) -> PathBuf {
    let path = world.path("image.sif");
    let arch = Arch::from_name(&isles_spec::Platform::host().architecture).unwrap();
    let data = fs::File::open(image).unwrap();
    let object = NewObject::partition(FileSystem::Squashfs, Role::Primary, arch, data);
    NewSif::new(vec![object]).create(&path).unwrap();
    path
}

/// As [`World::command`], with a `/dev/fuse` that the user may open.
fn command(world: &World, words: &[&str]) -> Command {
    let open = fs::File::options().read(true).write(true).open("/dev/fuse");
    let everybody = fs::metadata("/dev/fuse").is_ok_and(|found| found.permissions().mode() & 0o006 == 0o006);
    let plain = world.command(words);
    if world.who == Who::Root || !World::is_root() || everybody || open.is_err() {
        return plain;
    }
    let node = world.path("fuse");
    if !node.exists() {
        let device = rustix::fs::makedev(10, 229);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, &node, kind, rustix::fs::Mode::empty(), device).unwrap();
        fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).unwrap();
    }
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", WITH_FUSE]).arg(node);
    if world.who == Who::Ordinary {
        command.args(AS_ORDINARY);
    }
    command.arg(plain.get_program()).args(plain.get_args());
    command.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(world.path("home")).stdin(Stdio::null());
    command
}

fn isles(world: &World, words: &[&str]) -> Said {
    Said::of(command(world, words).output().unwrap())
}

/// The ways that can be tried by this user here.
fn ways(world: &World) -> Vec<&'static str> {
    [mounts(world), vec!["unpack"]].concat()
}

/// Those by which a file is mounted as it is.
fn mounts(world: &World) -> Vec<&'static str> {
    if !World::is_root() {
        let fine = fs::metadata("/dev/fuse").is_ok_and(|found| found.permissions().mode() & 0o006 == 0o006);
        if !fine {
            println!("skip: this user may not open /dev/fuse");
            return Vec::new();
        }
    }
    if !Path::new("/dev/fuse").exists() {
        println!("skip: there is no /dev/fuse");
        return Vec::new();
    }
    match world.who {
        Who::Root if Path::new("/dev/loop-control").exists() => vec!["auto", "kernel", "fuse"],
        Who::Root => vec!["auto", "fuse"],
        _ => vec!["auto", "fuse"],
    }
}

#[test]
fn a_file_is_a_root_like_any_other() {
    everyone(|world| {
        let Some(image) = image(world) else { return };
        let sif = sif(world, &image);
        for way in ways(world) {
            let file = if matches!(way, "auto" | "unpack") { &sif } else { &image };
            let file = file.to_str().unwrap();
            let run = |words: &[&str]| {
                isles(world, &[&["run", "--rm", "--image-mount", way, file], words].concat())
            };
            let script = "id -u; ls /many | wc -l; cat /many/name-599; wc -c < /link; ls -d /proc/self; \
                              touch /new /bin/new; rm /many/name-000; ls /many | wc -l; stat -c %u:%a /bin/sh";
            let out = run(&["sh", "-c", script]).fine();
            let lines: Vec<&str> = out.split_whitespace().collect();
            let expected =
                ["0", "600", "5993000000", "/proc/self", "599", "0:777"].map(str::to_owned).to_vec();
            assert_eq!(lines, expected, "{way} {file}");
            // The image is as it was, and what went wrong is said in the same words as ever.
            run(&["ls", "/new"]).fails(1, &["/new"]);
            run(&["slep"]).fails(127, &["did you mean 'sleep'"]);
            run(&["--"]).fails(127, &["--"]);
            assert_eq!(run(&[]).fine(), "the runscript\n");
        }
    });
}

#[test]
fn mounts_find_their_places_in_a_read_only_image() {
    everyone(|world| {
        let Some(image) = image(world) else { return };
        let file = image.to_str().unwrap();
        fs::write(world.path("home/data"), "of the host\n").unwrap();
        let data = world.path("home/data");
        let bind = |to: &str| format!("{}:{to}:ro", data.display());
        for way in ways(world) {
            let run = |options: &[&str], words: &[&str]| {
                isles(world, &[&["run", "--rm", "--image-mount", way], options, &[file], words].concat())
            };
            let (new, through) = (bind("/new/deep/file"), bind("/trap/elsewhere/file"));
            let out = run(&["--read-only", "-v", &new], &["cat", "/new/deep/file"]).fine();
            assert_eq!(out, "of the host\n");
            // A link of the image's leads nowhere but into the image.
            let out = run(&["-v", &through], &["cat", "/elsewhere/file"]).fine();
            assert_eq!(out, "of the host\n");
            assert!(!Path::new("/elsewhere").exists());
            run(&["--read-only"], &["touch", "/new"]).fails(1, &["Read-only"]);
            let out = run(&["--writable-tmpfs"], &["sh", "-c", "echo x > /new && cat /new"]).fine();
            assert_eq!(out, "x\n");
        }
    });
}

/// Places of mounts are made in folders that are empty; for others, and new ones in the root, it takes an overlay.
#[test]
fn an_image_that_stays_as_it_is_needs_no_overlay() {
    everyone(|world| {
        if mounts(world).is_empty() {
            return;
        }
        let folder = world.path("bare");
        world::busybox(&folder);
        for name in ["dev", "proc", "sys", "home", "mnt", "var/tmp", "full"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        fs::set_permissions(folder.join("mnt"), fs::Permissions::from_mode(0o751)).unwrap();
        for name in ["full/file", "etc/hosts", "etc/resolv.conf", "etc/localtime"] {
            fs::write(folder.join(name), "of the image\n").unwrap();
        }
        let file = world.path("bare.sqfs");
        if squash(&folder, &file).is_none() {
            return;
        }
        let given = world.path("home/given");
        fs::create_dir_all(&given).unwrap();
        fs::set_permissions(&given, fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(given.join("file"), "of the host\n").unwrap();
        for (place, overlay) in [("/mnt/deep/place", false), ("/full/place", true), ("/place", true)] {
            let bind = format!("{}:{place}", given.display());
            let script = format!(
                "grep -q '^[^ ]* / overlay' /proc/self/mounts && echo overlay; cat {place}/file; \
                 stat -c %a /mnt; for at in / /mnt /full {place}; do mkdir $at/new && echo $at; done"
            );
            let file = file.to_str().unwrap();
            let words = ["apptainer", "exec", "--no-home", "-B", &bind, file, "sh", "-c", &script];
            let Said { out, err, .. } = isles(world, &words);
            let begin = if overlay { "overlay\n" } else { "" };
            assert_eq!(out, format!("{begin}of the host\n751\n{place}\n"), "{err}");
            fs::remove_dir(given.join("new")).unwrap();
        }
    });
}

#[test]
fn overlays_keep_what_is_written() {
    everyone(|world| {
        let Some(image) = image(world) else { return };
        let (file, overlay) = (image.to_str().unwrap(), world.path("home/overlay"));
        for way in ways(world) {
            fs::create_dir(&overlay).unwrap();
            world.give("home/overlay");
            let path = overlay.to_str().unwrap();
            let read = format!("{path}:ro");
            let run = |overlay: &str, script: &str| {
                let options = ["run", "--rm", "--image-mount", way, "--overlay", overlay, file];
                isles(world, &[&options[..], &["sh", "-c", script]].concat())
            };
            run(path, "echo kept > /new; rm /many/name-001").fine();
            assert_eq!(run(path, "cat /new; ls /many | wc -l").fine(), "kept\n599\n");
            assert_eq!(run(&read, "rm /new; ls /new 2>/dev/null; echo gone").fine(), "gone\n");
            assert_eq!(run(path, "cat /new").fine(), "kept\n", "what was only read is as it was");
            isles(world, &["run", "--rm", "--overlay", "/nonexistent/o", file, "true"])
                .fails(125, &["/nonexistent/o"]);
            // The kernel's own folder in it is shut for everybody.
            let opened = Command::new("chmod").args(["-R", "u+rwx"]).arg(&overlay).status().unwrap();
            assert!(opened.success());
            fs::remove_dir_all(&overlay).unwrap();
        }
    });
}

#[test]
fn a_link_in_an_overlay_leads_to_no_folder_of_the_host() {
    everyone(|world| {
        let Some(image) = image(world) else { return };
        let (file, overlay) = (image.to_str().unwrap(), world.path("home/overlay"));
        let elsewhere = world.path("home/elsewhere");
        for name in ["upper", "work"] {
            for folder in [&overlay, &elsewhere] {
                fs::create_dir(folder).unwrap();
            }
            symlink(&elsewhere, overlay.join(name)).unwrap();
            world.give("home/overlay");
            world.give("home/elsewhere");
            let path = overlay.to_str().unwrap();
            let run = |overlay: &str| isles(world, &["run", "--rm", "--overlay", overlay, file, "true"]);
            run(path).fails(125, &["home/overlay", name, "is a link"]);
            if name == "upper" {
                run(&format!("{path}:ro")).fails(125, &["home/overlay", name, "is a link"]);
                let path = world.path("over.sqfs");
                squash(&overlay, &path).unwrap();
                for way in mounts(world) {
                    let options = ["run", "--rm", "--image-mount", way, "--overlay"];
                    let words = [&format!("{}:ro", path.display()), file, "true"];
                    isles(world, &[&options[..], &words].concat()).fails(125, &["over.sqfs", "is a link"]);
                }
            }
            assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
            for folder in [&overlay, &elsewhere] {
                fs::remove_dir_all(folder).unwrap();
            }
        }
    });
}

#[test]
fn root_writes_into_ext3_images() {
    let Some(world) = World::new(Who::Root).filter(|_| World::is_root()) else { return };
    let Some(image) = image(&world) else { return };
    let overlay = world.path("overlay.img");
    let made = Command::new("mkfs.ext3").args(["-q", "-F"]).arg(&overlay).arg("4m").status();
    if !made.is_ok_and(|status| status.success()) || !Path::new("/dev/loop-control").exists() {
        println!("skip: mkfs.ext3 (package e2fsprogs) or loop devices are missing");
        return;
    }
    let (file, path) = (image.to_str().unwrap(), overlay.to_str().unwrap());
    let read = format!("{path}:ro");
    let over = |overlay: &str, script: &str| {
        command(&world, &["run", "--rm", "--overlay", overlay, file, "sh", "-c", script])
    };
    let run = |overlay: &str, script: &str| Said::of(over(overlay, script).output().unwrap());
    run(path, "echo kept > /new").fine();
    assert_eq!(run(path, "cat /new").fine(), "kept\n");
    assert_eq!(run(&read, "cat /new; echo more > /other").fine(), "kept\n");
    run(path, "cat /other").fails(1, &["/other"]);
    // Two kernels' mounts of one image would destroy it.
    let script = "echo runs; exec sleep 1000";
    let (running, _) = Running::start(&mut over(path, script));
    run(path, "true").fails(125, &["another container"]);
    drop(running);
    isles(&world, &["run", "--rm", path, "true"]).fails(127, &["true"]);
    // The kernel would follow a link in an image to a folder of the host.
    let (content, linked) = (world.path("content"), world.path("linked.img"));
    let elsewhere = world.path("elsewhere");
    fs::create_dir(&content).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, content.join("upper")).unwrap();
    let mut make = Command::new("mkfs.ext3");
    let made = make.args(["-q", "-F", "-d"]).arg(&content).arg(&linked).arg("4m").status().unwrap();
    assert!(made.success());
    let path = linked.to_str().unwrap();
    run(path, "echo x > /x").fails(125, &["linked.img", "'upper' is no folder"]);
    run(&format!("{path}:ro"), "true").fails(125, &["linked.img", "'upper' is a link"]);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

/// Changes an image by commands of debugfs(8).
fn debugfs(image: &Path, commands: &[&str]) {
    let script = image.with_extension("debugfs");
    fs::write(&script, commands.join("\n")).unwrap();
    let output = Command::new("debugfs").args(["-w", "-f"]).arg(&script).arg(image).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// An ext3 image of a folder, for everybody to read; `None`, with a printed reason, where it cannot be made.
fn ext3(tree: &Path, image: &Path) -> Option<()> {
    let mut command = Command::new("mkfs.ext3");
    let made = command.args(["-q", "-F", "-d"]).arg(tree).arg(image).arg("32m").status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skip: mkfs.ext3 (package e2fsprogs) is missing");
        return None;
    }
    fs::set_permissions(image, fs::Permissions::from_mode(0o644)).unwrap();
    Some(())
}

#[test]
fn ordinary_users_write_into_ext3_images() {
    everyone(|world| {
        let Some(image) = image(world).filter(|_| world.who != Who::Root) else { return };
        if mounts(world).is_empty() {
            return;
        }
        let (made, overlay) = (world.path("nothing"), world.path("overlay.img"));
        fs::create_dir_all(&made).unwrap();
        world.give("nothing");
        let Some(()) = ext3(&made, &overlay) else { return };
        world.give("overlay.img");
        let (file, path) = (image.to_str().unwrap(), overlay.to_str().unwrap());
        let words = |overlay: &str, script: &str| {
            ["run", "--rm", "--overlay", overlay, file, "sh", "-c", script].map(str::to_owned)
        };
        let over = |overlay: &str, script: &str| {
            let words = words(overlay, script);
            command(world, &words.each_ref().map(String::as_str))
        };
        let run = |script: &str| Said::of(over(path, script).output().unwrap());
        if !["fuse2fs", "fuse-overlayfs"].iter().all(|name| Path::new("/usr/bin").join(name).exists()) {
            run("true").fails(125, &["need fuse2fs and fuse-overlayfs", "is not installed"]);
            println!("skip: fuse2fs and fuse-overlayfs (packages of these names) are missing");
            return;
        }
        if world.who == Who::Ordinary && World::is_root() {
            debugfs(&overlay, &["sif / uid 0", "sif / gid 0"]);
            run("true").fails(125, &["its root folder is somebody else's"]);
        }
        // As `apptainer overlay create` makes it.
        let found = fs::metadata(&overlay).unwrap();
        debugfs(&overlay, &[&format!("sif / uid {}", found.uid()), &format!("sif / gid {}", found.gid())]);
        run("echo kept > /new; rm -r /many; mkdir /many; echo x > /many/x; echo more >> /large").fine();
        let script = "cat /new; ls /many; wc -c < /large; id -u";
        assert_eq!(run(script).fine(), "kept\nx\n3000005\n0\n");
        // The programs are gone, and what they wrote is whole.
        let check = Command::new("e2fsck").args(["-f", "-n"]).arg(&overlay).output().unwrap();
        assert!(check.status.success(), "{check:?}");
        // What is read only is read without them.
        let read = format!("{path}:ro");
        assert_eq!(Said::of(over(&read, "cat /new; ls /many").output().unwrap()).fine(), "kept\nx\n");
        run("exit 7").fails(7, &[]);
        let (mut running, _) = Running::start(&mut over(path, "echo runs; exec sleep 1000"));
        run("true").fails(125, &["another container"]);
        // Killed, it takes them along, and the next one can write again: fuse2fs lets go of the file when it has ended.
        running.signal(Signal::KILL);
        running.0.wait().unwrap();
        while run("echo again > /new").code == 125 {
            std::thread::yield_now();
        }
        assert_eq!(run("cat /new").fine(), "again\n");
        let (mut background, over) = (vec!["run", "-d", "--overlay", path], [file, "true"]);
        background.extend(over);
        isles(world, &background).fails(125, &["in the foreground only"]);
        // A link in the image leads nowhere.
        let linked = world.path("linked.img");
        symlink("/", made.join("upper")).unwrap();
        ext3(&made, &linked).unwrap();
        world.give("linked.img");
        let run = |script: &str| {
            Said::of(
                command(
                    world,
                    &["run", "--rm", "--overlay", linked.to_str().unwrap(), file, "sh", "-c", script],
                )
                .output()
                .unwrap(),
            )
        };
        run("true").fails(125, &["'upper' is no folder"]);
    });
}

#[test]
fn ext3_images_are_run_by_everybody() {
    everyone(|world| {
        let Some(image) = image(world) else { return };
        let (root, bare, sif) = (world.path("image"), world.path("root.img"), world.path("ext.sif"));
        let Some(()) = ext3(&root, &bare) else { return };
        let arch = Arch::from_name(&isles_spec::Platform::host().architecture).unwrap();
        let part =
            NewObject::partition(FileSystem::Ext3, Role::Primary, arch, fs::File::open(&bare).unwrap());
        NewSif::new(vec![part]).create(&sif).unwrap();
        // What an overlay wrote before: a file that is new, one that is gone, and a folder that hides what was there.
        let (over, overlay) = (world.path("written"), world.path("overlay.img"));
        fs::create_dir_all(over.join("upper/many")).unwrap();
        fs::create_dir_all(over.join("work")).unwrap();
        fs::write(over.join("upper/new"), "new\n").unwrap();
        fs::write(over.join("upper/many/one"), "one\n").unwrap();
        ext3(&over, &overlay).unwrap();
        debugfs(&overlay, &["ea_set /upper/many trusted.overlay.opaque y", "cd /upper", "mknod large c 0 0"]);
        let read = format!("{}:ro", overlay.display());
        for way in mounts(world) {
            for file in [&bare, &sif] {
                let run = |options: &[&str], script: &str| {
                    let file = file.to_str().unwrap();
                    let words =
                        [&["run", "--rm", "--image-mount", way], options, &[file, "sh", "-c", script]];
                    isles(world, &words.concat())
                };
                let out =
                    run(&[], "wc -c < /large; ls /many | wc -l; cat /many/name-599; readlink /link").fine();
                assert_eq!(out, "3000000\n600\n599large\n", "{way}");
                let out =
                    run(&["--overlay", &read], "cat /new; ls /many; ls / | grep -c large || true").fine();
                assert_eq!(out, "new\none\n0\n", "{way}");
            }
            // Over another kind of image, too.
            let words = ["run", "--rm", "--image-mount", way, "--overlay", &read, image.to_str().unwrap()];
            assert_eq!(isles(world, &[&words[..], &["ls", "/many"]].concat()).fine(), "one\n", "{way}");
        }
        for file in [&bare, &sif] {
            let words = ["inspect", "-f", "{{.Attributes.runscript}}", file.to_str().unwrap()];
            assert_eq!(isles(world, &words).fine(), "#!/bin/sh\necho the runscript\n");
            let words = ["apptainer", "inspect", "--runscript", file.to_str().unwrap()];
            assert_eq!(isles(world, &words).fine(), "#!/bin/sh\necho the runscript\n");
            let run = ["run", "--rm", "--image-mount", "unpack", file.to_str().unwrap(), "sh", "-c"];
            let script = "wc -c < /large; ls /many | wc -l; readlink /link; ls / | grep -c lost || true";
            let out = isles(world, &[&run[..], &[script]].concat()).fine();
            assert_eq!(out, "3000000\n600\nlarge\n0\n", "unpacked");
            let name = "loaded:1";
            isles(world, &["load", "-q", "-i", file.to_str().unwrap(), "--tag", name]).fine();
            assert_eq!(isles(world, &["run", "--rm", name]).fine(), "the runscript\n");
            let words = ["run", "--rm", "--entrypoint", "wc", name, "-c", "/large"];
            assert_eq!(isles(world, &words).fine(), "3000000 /large\n");
        }
    });
}

#[test]
fn partitions_of_a_sif_file_lie_over_its_root() {
    everyone(|world| {
        let Some(image) = image(world) else { return };
        let (over, path) = (world.path("over"), world.path("both.sif"));
        fs::create_dir_all(over.join("etc")).unwrap();
        fs::write(over.join("etc/passwd"), "root:x:0:0:over:/root:/bin/sh\n").unwrap();
        fs::write(over.join("added"), "added\n").unwrap();
        squash(&over, &world.path("over.sqfs")).unwrap();
        let arch = Arch::from_name(&isles_spec::Platform::host().architecture).unwrap();
        let open = |path: &Path| fs::File::open(path).unwrap();
        let part = |role, path: &Path| NewObject::partition(FileSystem::Squashfs, role, arch, open(path));
        let objects = vec![part(Role::Primary, &image), part(Role::Overlay, &world.path("over.sqfs"))];
        NewSif::new(objects).create(&path).unwrap();
        for way in mounts(world) {
            let words =
                ["run", "--rm", "--image-mount", way, path.to_str().unwrap(), "cat", "/added", "/etc/passwd"];
            let out = isles(world, &words).fine();
            assert_eq!(out, "added\nroot:x:0:0:over:/root:/bin/sh\n");
        }
        isles(world, &["run", "--rm", "--image-mount", "unpack", path.to_str().unwrap(), "true"])
            .fails(125, &["both.sif", "partitions over its root"]);
    });
}

#[test]
fn a_folder_is_a_root_and_stays_as_it_is() {
    everyone(|world| {
        tree(&world.path("image"));
        world.give("image");
        let path = world.path("image");
        let run = |words: &[&str]| isles(world, &[&["run", "--rm", path.to_str().unwrap()], words].concat());
        assert_eq!(run(&["sh", "-c", "echo x > /new && cat /new"]).fine(), "x\n");
        assert!(!path.join("new").exists());
        assert_eq!(run(&[]).fine(), "the runscript\n");
    });
}

#[test]
fn what_cannot_be_mounted_says_why() {
    everyone(|world| {
        let Some(image) = image(world) else { return };
        let bytes = fs::read(&image).unwrap();
        let write = |name: &str, bytes: &[u8]| {
            fs::write(world.path(name), bytes).unwrap();
            world.path(name).to_str().unwrap().to_owned()
        };
        let mut ext = vec![0; 2048];
        ext[1080..1082].copy_from_slice(&[0x53, 0xef]);
        let mut sif_only = vec![0; 128];
        sif_only[32..42].copy_from_slice(b"SIF_MAGIC\0");
        let cut = write("cut.sqfs", &bytes[..bytes.len() / 2]);
        let odd = write("odd.sif", b"not an image at all");
        let (empty, ext) = (write("empty.sif", b""), write("x.img", &ext));
        let (short, only) = (write("short.sqfs", &bytes[..50]), write("only.sif", &sif_only));
        let whole = image.to_str().unwrap();
        let mut cases = vec![
            (vec![cut.as_str()], "cut.sqfs"),
            (vec![odd.as_str()], "odd.sif' is no image"),
            (vec![empty.as_str()], "empty.sif' is no image"),
            (vec![short.as_str()], "short.sqfs"),
            (vec![only.as_str()], "only.sif"),
            (vec!["./nosuch.sif"], "no image at './nosuch.sif'"),
            (vec!["--image-mount", "loop", whole], "'loop'"),
            (vec!["instance://web"], "instance://web"),
        ];
        if world.who == Who::Root {
            cases.push((vec!["--image-mount", "kernel", &ext], "x.img"));
        } else {
            cases.push((vec![&ext], "x.img: the ext image is damaged"));
            cases.push((vec!["--image-mount", "kernel", whole], "lets only root"));
        }
        for (words, said) in cases {
            isles(world, &[&["run", "--rm"], &words[..], &["true"]].concat()).fails(125, &[said]);
        }
    });
}

#[test]
fn where_nothing_can_be_mounted_a_file_is_unpacked() {
    everyone(|world| {
        let Some(image) = image(world) else { return };
        let shut =
            |path: &str| fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o006 != 0o006);
        if world.who == Who::Root || !shut("/dev/fuse") {
            println!("skip: this user may open /dev/fuse");
            return;
        }
        let words = ["run", "--rm", image.to_str().unwrap(), "wc", "-c", "/large"];
        assert_eq!(Said::of(world.command(words).output().unwrap()).fine(), "3000000 /large\n");
        let forced = ["run", "--rm", "--image-mount", "fuse", image.to_str().unwrap(), "true"];
        Said::of(world.command(forced).output().unwrap()).fails(125, &["image.sqfs", "/dev/fuse"]);
    });
}

#[test]
fn nothing_is_left_of_a_killed_run() {
    everyone(|world| {
        let Some(image) = image(world) else { return };
        for way in mounts(world) {
            let words = ["run", "--rm", "--image-mount", way, image.to_str().unwrap(), "sh", "-c"];
            let script = "cat /large | wc -c; exec sleep 1000";
            let (mut running, line) = Running::start(&mut command(world, &[&words[..], &[script]].concat()));
            assert_eq!(line, "3000000\n");
            let child = fs::read_to_string(format!("/proc/{0}/task/{0}/children", running.0.id())).unwrap();
            let child: i32 = child.trim().parse().unwrap();
            let child = rustix::process::Pid::from_raw(child).unwrap();
            let child = rustix::process::pidfd_open(child, rustix::process::PidfdFlags::empty()).unwrap();
            running.signal(Signal::KILL);
            running.0.wait().unwrap();
            // It goes with its monitor, and nothing waits for a server that is gone.
            let mut ends = [rustix::event::PollFd::new(&child, rustix::event::PollFlags::IN)];
            let timeout = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut ends, Some(&timeout)).unwrap(), 1, "{way}");
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            assert!(!mounts.contains(world.path("").to_str().unwrap()), "{mounts}");
        }
    });
}
