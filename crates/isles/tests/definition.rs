//! Definition files as people build and run them: with the host's programs, an image of a Docker daemon, apps, and
//! scripts that see the host.

#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use isles_spec::Quiet;
use isles_store::{ExportFormat, Ownership, Store};
use world::{Said, World, everyone};

fn recipe(world: &World, text: &str) -> String {
    let path = world.path("home/x.def");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// A stand-in for a program that installs a system: it writes down what it was told, and brings a shell.
fn tool(world: &World, name: &str, root: &str) {
    let text = format!(
        "#!/bin/sh\n{root}\n( : > /etc/isles-was-here ) 2>/dev/null && exit 9\n\
         ( : > \"$HOME/isles-was-here\" ) 2>/dev/null && exit 9\n\
         mkdir -p $root/bin && cp /bin/busybox $root/bin/busybox && ln -sf busybox $root/bin/sh\n\
         ln -sf busybox $root/bin/cat\necho \"{name} $*\" >> $root/told\n"
    );
    fs::create_dir_all(world.path("tools")).unwrap();
    let path = world.path("tools").join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn systems_are_installed_by_the_programs_of_the_host() {
    everyone(|world| {
        tool(world, "dnf", "for a; do case $a in --installroot=*) root=${a#--installroot=};; esac; done");
        tool(world, "zypper", "root=$2");
        tool(world, "pacman", "root=$2");
        tool(world, "rpm", "exit 1");
        for (header, told) in [
            (
                "Bootstrap: dnf\nMirrorURL: http://m/%{OSVERSION}\nOSVersion: 9\nInclude: bash\n",
                "coreutils bash",
            ),
            (
                "Bootstrap: yum\nMirrorURL: http://m/%{OSVERSION}\nOSVersion: 9\nInclude: vi\n",
                "--releasever=9 -y install /etc/redhat-release coreutils vi",
            ),
            ("Bootstrap: zypper\nMirrorURL: http://m\nInclude: vim\n", "--download-in-advance aaa_base vim"),
            ("Bootstrap: arch\nInclude: nano\n", "-Sy base nano"),
        ] {
            let path = recipe(world, &format!("{header}%runscript\ncat /told\n"));
            let with_tools = |words: &[&str]| {
                let tools = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", world.path("tools").display());
                Said::of(world.command(words).env("PATH", tools).output().unwrap())
            };
            let said = with_tools(&["run", "--rm", &path]);
            assert!(said.out.contains(told), "{header}: {said:?}");
            assert_eq!(with_tools(&["run", "--rm", &path]).err, "", "a second time nothing is done");
        }
        assert!(!Path::new("/etc/isles-was-here").exists() && !world.path("home/isles-was-here").exists());
        let path = recipe(world, "Bootstrap: dnf\nMirrorURL: http://other\n");
        if !Path::new("/usr/bin/dnf").exists() && !Path::new("/usr/bin/yum").exists() {
            let words =
                ["x.def:1:12: ", "needs 'dnf' or 'yum', which is not on this machine", "--tools-image"];
            world.isles(&["build", &path]).fails(1, &words);
        }
    });
}

#[test]
fn systems_are_installed_by_the_programs_of_an_image() {
    everyone(|world| {
        let context = world.path("home/tools");
        world::busybox(&context);
        fs::create_dir_all(context.join("usr/bin")).unwrap();
        let dnf = "#!/bin/sh\nfor a; do case $a in --installroot=*) root=${a#--installroot=};; esac; done\n\
                   : > /written-in-the-image\nmkdir -p $root/bin && cp /bin/busybox $root/bin/busybox\n\
                   for name in sh cat ls; do ln -sf busybox $root/bin/$name; done\necho \"dnf $*\" > $root/told\n";
        for (name, text) in [("dnf", dnf), ("rpm", "#!/bin/sh\n")] {
            let path = context.join("usr/bin").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY . /\n").unwrap();
        world.give("home");
        world.isles(&["build", "-t", "tools:1", context.to_str().unwrap()]).fine();

        let header = "Bootstrap: dnf\nMirrorURL: http://m/9\nInclude: vi\n";
        let path = recipe(world, &format!("{header}%runscript\nls -d /written* /told; cat /told\n"));
        world.isles(&["build", "-t", "made:1", "--tools-image", "tools:1", &path]).fine();
        let said = world.isles(&["run", "--rm", "made:1"]);
        assert!(said.out.starts_with("/told\ndnf ") && said.out.contains("coreutils vi"), "{said:?}");
        // The variable does the same, and the step is known.
        let again = world.command(["build", &path]).env("ISLES_TOOLS_IMAGE", "tools:1").output().unwrap();
        assert!(Said::of(again).err.contains("nothing changed"));
        let path = recipe(world, "Bootstrap: zypper\nMirrorURL: http://m\n");
        let words = ["needs 'zypper', which is not in the image 'tools:1'", "From: opensuse/leap"];
        world.isles(&["build", "--tools-image", "tools:1", &path]).fails(1, &words);
    });
}

#[test]
fn an_image_comes_out_of_a_docker_daemon() {
    everyone(|world| {
        let ownership = if World::is_root() { Ownership::Root } else { Ownership::Single };
        let store = Store::open(world.path("maker"), ownership).unwrap();
        let image = store.resolve("test:latest", None).unwrap();
        let mut archive = Vec::new();
        let names = vec!["test:latest".parse().unwrap()];
        store.export_archive(&[(image, names)], ExportFormat::DockerArchive, &mut archive, &Quiet).unwrap();
        let socket = world.path("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
        // Three requests: twice for the ID, once for the image.
        let daemon = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for _ in 0..3 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                let body =
                    if first.contains("/json") { br#"{"Id":"sha256:1"}"#.to_vec() } else { archive.clone() };
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).unwrap();
                for piece in body.chunks(10_000) {
                    write!(stream, "{:x}\r\n", piece.len()).unwrap();
                    stream.write_all(piece).unwrap();
                    stream.write_all(b"\r\n").unwrap();
                }
                stream.write_all(b"0\r\n\r\n").unwrap();
                asked.push(first);
            }
            asked
        });
        let path = recipe(world, "Bootstrap: docker-daemon\nFrom: test:latest\n%runscript\necho it runs\n");
        let host = format!("unix://{}", socket.display());
        for _ in 0..2 {
            let said =
                Said::of(world.command(["run", "--rm", &path]).env("DOCKER_HOST", &host).output().unwrap());
            assert_eq!(said.fine(), "it runs\n");
        }
        let asked = daemon.join().unwrap();
        assert_eq!(asked[1], "GET /images/test:latest/get HTTP/1.1", "{asked:?}");
        fs::remove_file(&socket).unwrap();
        for (host, words) in [
            (host.as_str(), ["x.def:2:7: ", "docker.sock", "docker-archive"]),
            ("tcp://host:2375", ["x.def:2:7: ", "is not a socket of this machine", "docker save"]),
        ] {
            let mut command = world.command(["build", &path]);
            Said::of(command.env("DOCKER_HOST", host).output().unwrap()).fails(1, &words);
        }
    });
}

#[test]
fn apps_and_scripts_of_the_host() {
    everyone(|world| {
        let own = world.path("home/own");
        fs::write(&own, "mine").unwrap();
        let _listener = UnixListener::bind(world.path("home/socket")).unwrap();
        world.give("home");
        let text = format!(
            "Bootstrap: oci\nFrom: {}\n%setup\ncat own > $APPTAINER_ROOTFS/seen\n\
             test -e socket && test ! -S socket || exit 8\n\
             if rm own || ( : > $HOME/new ) || ( : > /tmp/isles-was-here-{} ); then exit 9; fi\n\
             %environment\nexport A=environment\n%apprun greet\necho hello \"$@\" $A $SCIF_APPNAME\n\
             %appinstall greet\necho '#!/bin/sh' > bin/tool; echo 'echo tool' >> bin/tool; chmod 755 bin/tool\n\
             %apprun tool\nexec /scif/apps/greet/bin/tool\n%runscript\ncat /seen; echo \" $A $*\"\n",
            world.path("oci").display(),
            world.uid()
        );
        let path = recipe(world, &text);
        assert_eq!(world.isles(&["run", "--rm", &path, "x"]).fine(), "mine environment x\n");
        assert!(own.exists() && !world.path("home/new").exists());
        let app = |name: &str| {
            world.isles(&["run", "--rm", "-e", &format!("APPTAINER_APPNAME={name}"), &path, "you"])
        };
        assert_eq!(app("greet").fine(), "hello you environment greet\n");
        assert_eq!(app("tool").fine(), "tool\n");
        app("nobody").fails(1, &["the image has no app nobody"]);
        // The caller's PATH counts, as with every image.
        let said = world.isles(&["run", "--rm", "-e", "PATH=/bin:/mine", &path]);
        assert_eq!(said.code, 0, "{said:?}");
    });
}

#[test]
fn a_folder_is_built_and_built_upon() {
    everyone(|world| {
        let from = format!("Bootstrap: oci\nFrom: {}\n", world.path("oci").display());
        let path = recipe(
            world,
            &format!(
                "{from}%post\necho {{{{ WORD }}}} > /made; cat /in/own > /bound\n%labels\nA one\n%runscript\ncat /made\n"
            ),
        );
        fs::write(world.path("home/own"), "mine").unwrap();
        fs::write(world.path("home/words"), "WORD=first\nUNUSED=1\n").unwrap();
        world.give("home");
        let options =
            ["build", "--sandbox", "tools", "--bind", ".:/in:ro", "--build-arg-file", "words", &path];
        world.isles(&options).fails(1, &["'UNUSED' is used nowhere"]);
        let said = world.isles(&[&options[..], &["--warn-unused-build-args"]].concat());
        assert!(said.code == 0 && said.err.contains("UNUSED"), "{said:?}");
        let read = |name: &str| fs::read_to_string(world.path("home/tools").join(name)).unwrap();
        assert_eq!((read("made").as_str(), read("bound").as_str()), ("first\n", "mine"));
        assert!(!world.path("home/tools/in").exists());
        let more = recipe(
            world,
            &format!("{from}%post\necho more >> /made\n%labels\nA two\n%runscript\ncat /made\n"),
        );
        let said = world.isles(&["build", "--update", "tools", "--section", "post,labels", &more]);
        assert!(said.code == 0 && said.err.contains("label 'A'"), "{said:?}");
        assert_eq!(read("made"), "first\nmore\n");
        world.isles(&["build", "--update", "tools", "--force", "--section", "labels", &more]).fine();
        assert!(read(".singularity.d/labels.json").contains("\"A\": \"two\""));
        let text = format!("Bootstrap: localimage\nFrom: {}\n", world.path("home/tools").display());
        let path = recipe(world, &text);
        assert_eq!(world.isles(&["run", "--rm", &path]).fine(), "first\nmore\n");
        world.isles(&["build", "--section", "pots", &path]).fails(2, &["pots", "post"]);
        world.isles(&["build", "--sandbox", "tools", &path]).fails(1, &["is there already", "--force"]);
    });
}
