//! `apptainer build`: what it takes as a source, how the file is packed, and what an update says.
#![allow(clippy::unwrap_used)]

mod desk;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use desk::{Desk, Said, both};

const DOCKERFILE: &str = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
                          ENV NAME=value\nENTRYPOINT [\"echo\", \"starts\"]\n";

fn context(desk: &Desk) {
    desk.file("df/Dockerfile", DOCKERFILE);
    fs::copy("/bin/busybox", desk.path("home/df/busybox")).unwrap();
}

#[track_caller]
fn fails(said: Said, words: &[&str]) {
    assert_eq!(said.code, Some(255), "{}{}", said.out, said.err);
    for word in words {
        assert!(said.err.contains(word), "{word}: {}", said.err);
    }
}

#[test]
fn a_folder_of_a_dockerfile() {
    both(|desk| {
        context(desk);
        desk.run(&["apptainer", "build", "--sandbox", "tree", "df"]).fine();
        assert!(desk.path("home/tree/.singularity.d/runscript").exists());
        let out = desk.run(&["apptainer", "-q", "run", "tree", "with words"]).fine();
        assert_eq!(out, "starts with words\n");
        let out = desk.run(&["apptainer", "-q", "exec", "tree", "sh", "-c", "echo $NAME"]).fine();
        assert_eq!(out, "value\n");
    });
}

#[test]
fn an_update_says_what_it_cannot_change() {
    both(|desk| {
        context(desk);
        desk.run(&["apptainer", "build", "--sandbox", "tree", "df"]).fine();
        let recipe = "Bootstrap: docker\nFrom: registry.invalid/none:1\n%post\n    echo new > /new\n\
                      %test\n    test -e /new && echo x > /written\n";
        desk.file("more.def", recipe);
        let said = desk.run(&[
            "apptainer",
            "build",
            "--sandbox",
            "--update",
            "--writable-tmpfs",
            "tree",
            "more.def",
        ]);
        let place = desk.path("home/tree");
        assert!(
            said.err.contains(&format!("Building into existing container: {}", place.display())),
            "{}",
            said.err
        );
        said.fine();
        assert_eq!(fs::read_to_string(place.join("new")).unwrap(), "new\n");
        assert!(!place.join("written").exists(), "what a test writes is not kept");
        let update = |target: &str, more: &[&str]| {
            desk.run(&[&["apptainer", "build", "--update"], more, &[target, "more.def"]].concat())
        };
        fails(update("tree", &[]), &["only sandbox update is supported: --sandbox flag is missing"]);
        fails(update("none", &["--sandbox"]), &["could not update sandbox", "home/none: doesn't exist"]);
        fails(update("more.def", &["--sandbox"]), &["home/more.def is not a directory"]);
        fails(update("df", &["--sandbox"]), &["is not an Apptainer sandbox", "--force"]);
    });
}

#[test]
fn packed_as_mksquashfs_is_told() {
    both(|desk| {
        context(desk);
        let build = |name: &str, args: &str| {
            let mut command = desk.command(&["apptainer", "build", name, "df"]);
            Said::of(command.env("APPTAINER_MKSQUASHFS_ARGS", args).output().unwrap())
        };
        build("small.sif", "-comp gzip -Xcompression-level 9 -b 1M -no-progress").fine();
        build("plain.sif", "-noI -noD -noF -noX").fine();
        let size = |name: &str| fs::metadata(desk.path("home").join(name)).unwrap().len();
        assert!(size("small.sif") < size("plain.sif") * 3 / 4, "{} {}", size("small.sif"), size("plain.sif"));
        let out = desk.run(&["apptainer", "-q", "run", "plain.sif", "x"]).fine();
        assert_eq!(out, "starts x\n");
        fails(build("other.sif", "-comp xz"), &["--mksquashfs-args -comp xz is not supported", "zstd"]);
        assert!(!desk.path("home/other.sif").exists());
    });
}

/// Serves one file to whoever asks, whatever he asks for below `/sif`, and nothing else.
fn serve(file: &Path) -> String {
    let bytes = fs::read(file).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut asked = Vec::new();
            let mut byte = [0];
            while !asked.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                asked.push(byte[0]);
            }
            let path = String::from_utf8_lossy(&asked).split(' ').nth(1).unwrap_or_default().to_owned();
            let (head, body): (String, &[u8]) = match path.as_str() {
                "/sif" => ("200 OK".into(), &bytes),
                "/text" => ("200 OK".into(), b"Bootstrap: scratch\n"),
                "/away" => ("302 Found\r\nLocation: http://169.254.169.254/sif".into(), b""),
                _ => ("404 Not Found".into(), b""),
            };
            let head =
                format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    address
}

#[test]
fn an_image_of_a_url() {
    both(|desk| {
        context(desk);
        desk.run(&["apptainer", "build", "a.sif", "df"]).fine();
        let address = serve(&desk.path("home/a.sif"));
        let at = |path: &str| format!("http://{address}/{path}");
        for name in ["b.sif", "c.sif"] {
            let mut build = desk.command(&["apptainer", "build", name, &at("sif")]);
            Said::of(build.env("SOURCE_DATE_EPOCH", "1600000000").output().unwrap()).fine();
        }
        let read = |name: &str| fs::read(desk.path("home").join(name)).unwrap();
        assert!(read("b.sif") == read("c.sif"), "nothing of where it was kept meanwhile is in it");
        desk.run(&["apptainer", "build", "--sandbox", "tree", &at("sif")]).fine();
        for image in ["b.sif", "tree", &at("sif")] {
            assert_eq!(desk.run(&["apptainer", "-q", "run", image, "x"]).fine(), "starts x\n", "{image}");
        }
        fails(desk.run(&["apptainer", "build", "d.sif", &at("text")]), &["is no image", "fetch a recipe"]);
        fails(desk.run(&["apptainer", "build", "d.sif", &at("none")]), &["answers 404"]);
        for words in [&["build", "d.sif"][..], &["pull", "d.sif"], &["exec"]] {
            let url = at("away");
            let said = desk.run(
                &[&["apptainer"], words, &[&url, "true"][..1 + usize::from(words[0] == "exec")]].concat(),
            );
            fails(said, &["link-local"]);
        }
        assert!(!desk.path("home/d.sif").exists());
    });
}

#[test]
fn drivers_are_looked_for_when_a_variable_says_so() {
    both(|desk| {
        context(desk);
        desk.run(&["apptainer", "build", "--sandbox", "base", "df"]).fine();
        desk.file("x.def", "Bootstrap: localimage\nFrom: base\n%post\n    true\n%test\n    true\n");
        let build = |variable: &str| {
            let mut command = desk.command(&["apptainer", "build", "-F", "x.sif", "x.def"]);
            Said::of(command.env(variable, "1").output().unwrap())
        };
        if Path::new("/dev/nvidiactl").exists() || Path::new("/dev/kfd").exists() {
            println!("skip: this machine has such a driver");
            return;
        }
        for (variable, name) in [("APPTAINER_NV", "nv"), ("SINGULARITY_ROCM", "rocm")] {
            let said = build(variable);
            let warning = format!("Could not find any {name} files on this host!");
            assert_eq!(said.err.matches(&warning).count(), 1, "once for all sections: {}", said.err);
            said.fine();
        }
        let quiet = build("NOT_A_VARIABLE");
        assert!(!quiet.err.contains("Could not find"), "{}", quiet.err);
        let mode = fs::metadata(desk.path("home/x.sif")).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111);
    });
}
