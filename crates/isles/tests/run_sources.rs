//! `isles run` and `isles pull` with images that lie elsewhere: a SIF file in a registry or on the web, and an image of a
//! Docker daemon.
#![allow(clippy::unwrap_used)]

mod desk;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use desk::{Desk, Said, both, both_with_registry};

/// What an HTTP request asks for.
fn asked(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).split(' ').nth(1).unwrap_or_default().to_owned()
}

fn answer(stream: &mut impl Write, body: Option<&[u8]>) {
    let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
    let body = body.unwrap_or_default();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // Who asked may have gone.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

/// An image whose entrypoint says its arguments, as a SIF file and as an archive.
fn image(desk: &Desk) {
    desk.file(
        "df/Dockerfile",
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
         ENTRYPOINT [\"echo\", \"starts\"]\n",
    );
    fs::copy("/bin/busybox", desk.path("home/df/busybox")).unwrap();
    desk.run(&["isles", "build", "-q", "-t", "app:1", "-o", "type=sif,dest=app.sif", "df"]).fine();
    desk.run(&["isles", "build", "-q", "-t", "app:1", "-o", "type=docker,dest=app.tar", "df"]).fine();
}

#[track_caller]
fn fails(said: Said, words: &[&str]) {
    assert_eq!(said.code, Some(125), "{}{}", said.out, said.err);
    for word in words {
        assert!(said.err.contains(word), "{word}: {}", said.err);
    }
}

#[test]
fn a_file_on_the_web() {
    both(|desk| {
        image(desk);
        let bytes = fs::read(desk.path("home/app.sif")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let path = asked(&mut stream);
                let body = match path.as_str() {
                    "/app.sif" => Some(bytes.as_slice()),
                    "/text" => Some(b"text".as_slice()),
                    _ => None,
                };
                answer(&mut stream, body);
            }
        });
        let run = |path: &str| desk.run(&["isles", "run", "--rm", &format!("http://{address}/{path}"), "x"]);
        assert_eq!(run("app.sif").fine(), "starts x\n");
        // Where it lies, words behind it are a command, unless its runscript is named.
        let here = |words: &[&str]| desk.run(&[&["isles", "run", "--rm"], words].concat());
        assert_eq!(here(&["app.sif", "echo", "x"]).fine(), "x\n");
        assert_eq!(here(&["--entrypoint", "/.singularity.d/runscript", "app.sif", "x"]).fine(), "starts x\n");
        let url = format!("http://{address}/app.sif");
        assert_eq!(here(&["--entrypoint", "", &url, "echo", "x"]).fine(), "x\n");
        fails(run("text"), &["/text' is no image"]);
        fails(run("none"), &["answers 404"]);
        fails(desk.run(&["isles", "run", "http://169.254.169.254/x"]), &["link-local"]);
        fails(desk.run(&["isles", "run", "shub://a/b"]), &["shub:// is not supported", "2021"]);
    });
}

#[test]
fn a_file_in_a_registry() {
    both_with_registry(|desk| {
        image(desk);
        let name = format!("oras://{}/app:1", desk.address());
        desk.run(&["isles", "push", "-q", "app.sif", &name]).fine();
        let run = |more: &[&str]| desk.run(&[&["isles", "run", "--rm"], more, &[&name, "x"]].concat());
        fails(run(&["--pull", "never"]), &["is not here"]);
        assert_eq!(run(&[]).fine(), "starts x\n");
        let again = run(&["--pull", "never"]);
        assert_eq!(again.err, "", "it is here, and there is nothing to say");
        assert_eq!(again.fine(), "starts x\n");
        assert_eq!(run(&["--pull", "always"]).fine(), "starts x\n");
        fails(desk.run(&["isles", "run", "library://a//b"]), &["empty part"]);
    });
}

#[test]
fn an_image_of_a_docker_daemon() {
    both(|desk| {
        image(desk);
        let archive = fs::read(desk.path("home/app.tar")).unwrap();
        let socket = desk.path("tmp/docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let path = asked(&mut stream);
                answer(&mut stream, (path == "/images/app:1/get").then_some(archive.as_slice()));
            }
        });
        let host = format!("unix://{}", socket.display());
        let isles = |words: &[&str]| {
            let mut command = desk.command(&[&["isles", "--root", "elsewhere"], words].concat());
            Said::of(command.env("DOCKER_HOST", &host).output().unwrap())
        };
        assert_eq!(isles(&["run", "--rm", "docker-daemon:app:1", "x"]).fine(), "starts x\n");
        isles(&["rmi", "app:1"]).fine();
        assert_eq!(isles(&["pull", "-q", "docker-daemon:app:1"]).fine(), "docker.io/library/app:1\n");
        assert_eq!(isles(&["run", "--rm", "--pull", "never", "app:1", "x"]).fine(), "starts x\n");
        isles(&["pull", "-q", "-o", "out.sif", "docker-daemon://app:1"]).fine();
        assert_eq!(isles(&["run", "--rm", "out.sif"]).fine(), "starts\n");
        let said = isles(&["run", "docker-daemon:other:2"]);
        fails(said, &["other:2"]);
        let push = isles(&["push", "app:1", "docker-daemon:app:1"]);
        assert!(push.code == Some(1) && push.err.contains("docker load"), "{}", push.err);
    });
}

#[test]
fn drivers_that_this_host_does_not_have() {
    both(|desk| {
        image(desk);
        let here = |path: &str| std::path::Path::new(path).exists();
        if here("/dev/nvidiactl") || here("/dev/kfd") {
            println!("skip: this machine has such a driver");
            return;
        }
        let said = desk.run(&["isles", "run", "--rm", "--nv", "--rocm", "app.sif", "echo", "x"]);
        for name in ["nv", "rocm"] {
            assert!(said.err.contains(&format!("Could not find any {name} files")), "{}", said.err);
        }
        assert_eq!(said.fine(), "x\n");
        fails(
            desk.run(&["isles", "run", "--device", "vendor.invalid/gpu=0", "app:1"]),
            &["no vendor describes the device 'vendor.invalid/gpu=0'", "/etc/cdi"],
        );
    });
}

#[test]
fn a_name_that_leads_nowhere_is_said() {
    let desk = Desk::new(true);
    let nowhere = "[[registry]]\nprefix = \"docker.io\"\nlocation = \"127.0.0.1:1\"\ninsecure = true\n";
    fs::write(desk.path("registries.conf"), nowhere).unwrap();
    desk.file("tree.img", "x");
    for (name, hint) in [
        ("nothing-like-it:1", "check the name"),
        ("tree.img", "there is a file of that name: write ./tree.img for that"),
    ] {
        let said = desk.run(&["isles", "run", name, "true"]);
        fails(said, &[&format!("no image '{name}"), "cannot reach", hint]);
    }
}
