//! `isles registry serve` with the clients that people have: skopeo, podman, buildah, docker, umoci and our own.
#![allow(clippy::unwrap_used)]

mod shelf;

use std::fs;
use std::path::Path;

use shelf::{Liar, Said, Served, both, layout, noise, tar};

fn layers() -> Vec<Vec<u8>> {
    vec![tar(&[("a", &noise(3 << 20, 1))]), tar(&[("b", b"small")])]
}

fn bytes_under(path: &Path) -> u64 {
    let mut todo = vec![path.to_owned()];
    let mut bytes = 0;
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        bytes += if meta.is_file() { meta.len() } else { 0 };
        if meta.is_dir() {
            todo.extend(fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    bytes
}

#[test]
fn our_own_push_and_pull() {
    for shelf in both() {
        let server = Served::start(&shelf, "server", &[]);
        let name = format!("{}/course/lab:1", server.address);
        layout(&shelf.path("layout"), "lab:1", &layers());
        shelf.isles_in("one", &["load", "-i", shelf.path("layout").to_str().unwrap()]).fine();
        let pushed = shelf.isles_in("one", &["push", "lab:1", &name]).fine();
        assert!(pushed.starts_with("1: digest: sha256:"), "{pushed}");
        shelf.isles_in("two", &["pull", &name]).fine();
        let id =
            |state: &str, name: &str| shelf.isles_in(state, &["inspect", "--format", "{{.Id}}", name]).fine();
        assert_eq!(id("one", "lab:1"), id("two", &name));
        let listed = shelf.isles_in("server", &["registry", "ls", "course/lab", "-q"]).fine();
        assert_eq!(listed, "1\n");
        shelf.isles_in("server", &["registry", "verify"]).fine();
        // Gone by name, then by bytes.
        shelf.isles_in("server", &["registry", "rm", "course/lab:1"]).fine();
        shelf.isles_in("two", &["pull", &name]).fails(1, &["course/lab:1"]);
        shelf.isles_in("server", &["registry", "gc", "--untagged", "--grace", "0s"]).fine();
        assert_eq!(bytes_under(&shelf.path("server/blobs")), 0);
    }
}

#[test]
fn what_is_in_the_store_is_not_copied() {
    let shelf = &both()[0];
    let server = Served::start(shelf, "state", &[]);
    let name = format!("{}/lab:1", server.address);
    layout(&shelf.path("layout"), "lab:1", &layers());
    shelf.isles(&["load", "-i", shelf.path("layout").to_str().unwrap()]).fine();
    let before = bytes_under(&shelf.path("state/blobs"));
    let said = shelf.isles(&["push", "lab:1", &name]);
    assert!(!said.err.contains("pushed"), "{said:?}");
    said.fine();
    assert_eq!(bytes_under(&shelf.path("state/blobs")), before);
    shelf.isles(&["pull", &name]).fine();
    assert_eq!(bytes_under(&shelf.path("state/blobs")), before);
    // The image goes, its copy in the registry stays, also through a prune.
    shelf.isles(&["rmi", "-f", "lab:1", &name]).fine();
    shelf.isles(&["prune", "-a", "-f"]).fine();
    shelf.isles_in("other", &["pull", &name]).fine();
}

#[test]
fn skopeo_copies_inspects_lists_and_deletes() {
    let shelf = &both()[0];
    let server = Served::start(shelf, "server", &[]);
    let name = format!("docker://{}/a/b", server.address);
    layout(&shelf.path("layout"), "lab:1", &layers());
    let source = format!("oci:{}", shelf.path("layout").display());
    let skopeo = |args: &[&str]| shelf.peer("skopeo", args);
    let plain = "--dest-tls-verify=false";
    let Some(said) = skopeo(&["copy", plain, &source, &format!("{name}:oci")]) else { return };
    said.fine();
    let docker = ["copy", plain, "--format", "v2s2", &source, &format!("{name}:docker")];
    skopeo(&docker).unwrap().fine();
    let mounted = [
        "copy",
        plain,
        "--src-tls-verify=false",
        &format!("{name}:oci"),
        &format!("docker://{}/c:1", server.address),
    ];
    skopeo(&mounted).unwrap().fine();
    let tags = skopeo(&["list-tags", "--tls-verify=false", &name]).unwrap().fine();
    assert!(tags.contains("\"oci\"") && tags.contains("\"docker\""), "{tags}");
    for (tag, kind) in [("oci", "oci.image.manifest.v1"), ("docker", "docker.distribution.manifest.v2")] {
        let raw =
            skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("{name}:{tag}")]).unwrap().fine();
        assert!(raw.contains(kind), "{raw}");
        skopeo(&["inspect", "--tls-verify=false", &format!("{name}:{tag}")]).unwrap().fine();
    }
    let back = format!("dir:{}", shelf.path("back").display());
    skopeo(&["copy", "--src-tls-verify=false", &format!("{name}:oci"), &back]).unwrap().fine();
    skopeo(&["delete", "--tls-verify=false", &format!("{name}:oci")]).unwrap().fine();
    let gone = skopeo(&["inspect", "--tls-verify=false", &format!("{name}:oci")]).unwrap();
    assert_ne!(gone.code, Some(0));
    skopeo(&["inspect", "--tls-verify=false", &format!("{name}:docker")]).unwrap().fine();
}

#[test]
fn a_login_with_skopeo_and_with_ours() {
    let shelf = &both()[0];
    // As `htpasswd -nbB me secret` prints it.
    let users = shelf.path("users");
    fs::write(&users, "me:$2b$04$51LZMXTseuzFG2ON5viWQe9UA2RPR.inhzunDJRO0yHXDvc3XTwtm\n").unwrap();
    let server = Served::start(shelf, "server", &["--htpasswd", users.to_str().unwrap(), "--anonymous-pull"]);
    let name = format!("{}/lab:1", server.address);
    layout(&shelf.path("layout"), "lab:1", &layers());
    shelf.isles_in("one", &["load", "-i", shelf.path("layout").to_str().unwrap()]).fine();
    shelf.isles_in("one", &["push", "lab:1", &name]).fails(1, &["login"]);
    shelf.isles_in("one", &["login", "-u", "me", "-p", "wrong", &server.address]).fails(1, &[]);
    shelf.isles_in("one", &["login", "-u", "me", "-p", "secret", &server.address]).fine();
    shelf.isles_in("one", &["push", "lab:1", &name]).fine();
    shelf.isles_in("one", &["logout", &server.address]).fine();
    shelf.isles_in("two", &["pull", &name]).fine();
    let source = format!("oci:{}", shelf.path("layout").display());
    let target = format!("docker://{}/skopeo:1", server.address);
    let copy = |more: &[&str]| {
        shelf.peer("skopeo", &[&["copy", "--dest-tls-verify=false"], more, &[&source, &target]].concat())
    };
    let Some(refused) = copy(&[]) else { return };
    assert_ne!(refused.code, Some(0));
    copy(&["--dest-creds", "me:secret"]).unwrap().fine();
}

#[test]
fn podman_and_buildah_pull_and_push() {
    if !rustix::process::geteuid().is_root() {
        println!("skip: podman: not root");
        return;
    }
    let shelf = &both()[0];
    let server = Served::start(shelf, "server", &[]);
    let name = format!("{}/lab:1", server.address);
    layout(&shelf.path("layout"), "lab:1", &layers());
    shelf.isles_in("one", &["load", "-i", shelf.path("layout").to_str().unwrap()]).fine();
    shelf.isles_in("one", &["push", "lab:1", &name]).fine();
    for program in ["podman", "buildah"] {
        let (root, run) = (shelf.path(&format!("{program}-root")), shelf.path(&format!("{program}-run")));
        let call = |args: &[&str]| {
            let own = [
                "--root",
                root.to_str().unwrap(),
                "--runroot",
                run.to_str().unwrap(),
                "--storage-driver",
                "vfs",
            ];
            shelf.peer(program, &[&own, args].concat())
        };
        let Some(said) = call(&["pull", "--tls-verify=false", &name]) else { continue };
        said.fine();
        let other = format!("{}/{program}:1", server.address);
        call(&["tag", &name, &other]).unwrap().fine();
        call(&["push", "--tls-verify=false", &other]).unwrap().fine();
        shelf.isles_in("two", &["pull", &other]).fine();
        if program == "podman" {
            let found =
                call(&["search", "--tls-verify=false", "--list-tags", &other[..other.len() - 2]]).unwrap();
            assert!(found.fine().contains('1'));
        }
    }
}

#[test]
fn a_killed_server_loses_nothing_that_was_pushed() {
    let shelf = &both()[0];
    layout(&shelf.path("layout"), "lab:1", &layers());
    shelf.isles_in("one", &["load", "-i", shelf.path("layout").to_str().unwrap()]).fine();
    let first = Served::start(shelf, "server", &[]);
    let second = Served::start(shelf, "server", &[]);
    shelf.isles_in("one", &["push", "lab:1", &format!("{}/lab:1", first.address)]).fine();
    // Dropped with SIGKILL, in the midst of nothing; what it took is served by the other one.
    drop(first);
    shelf.isles_in("two", &["pull", &format!("{}/lab:1", second.address)]).fine();
    shelf.isles_in("server", &["registry", "verify"]).fine();
}

#[test]
fn an_upload_outlives_the_server_that_is_killed() {
    use std::io::{Read, Write};
    let shelf = &both()[0];
    let blob = noise(3 << 20, 5);
    let digest = isles_store::digest_of_bytes(isles_spec::Algorithm::Sha256, &blob);
    let ask = |address: &str, head: &str, body: &[u8]| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let length = body.len();
        write!(stream, "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")
            .unwrap();
        stream.write_all(body).unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        String::from_utf8_lossy(&said).into_owned()
    };
    let header = |said: &str, name: &str| {
        let line = said.lines().find(|l| l.to_ascii_lowercase().starts_with(name)).unwrap();
        line.split_once(": ").unwrap().1.trim().to_owned()
    };
    let first = Served::start(shelf, "server", &[]);
    let upload = header(&ask(&first.address, "POST /v2/a/blobs/uploads/", b""), "location");
    // The server dies in the midst of a request that brings the blob.
    let mut stream = std::net::TcpStream::connect(&first.address).unwrap();
    write!(stream, "PATCH {upload} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", blob.len()).unwrap();
    stream.write_all(&blob[..2 << 20]).unwrap();
    let file = shelf.path("server/registry/a/uploads").join(upload.rsplit('/').next().unwrap());
    while fs::metadata(&file).unwrap().len() == 0 {
        std::thread::yield_now();
    }
    drop(first);
    let second = Served::start(shelf, "server", &[]);
    let range = header(&ask(&second.address, &format!("GET {upload}"), b""), "range");
    let there: usize = range.split_once('-').unwrap().1.parse::<usize>().unwrap() + 1;
    assert!(there > 1 && there <= 2 << 20, "{range}");
    let said = ask(&second.address, &format!("PATCH {upload}"), &blob[there..]);
    assert!(said.starts_with("HTTP/1.1 202"), "{said}");
    let said = ask(&second.address, &format!("PUT {upload}?digest={digest}"), b"");
    assert!(said.starts_with("HTTP/1.1 201"), "{said}");
    shelf.isles_in("server", &["registry", "verify"]).fine();
}

#[test]
fn files_of_any_kind_go_and_come_back() {
    let shelf = &both()[0];
    let server = Served::start(shelf, "server", &[]);
    let name = format!("{}/results:1", server.address);
    fs::write(shelf.path("table.csv"), "a,b\n1,2\n").unwrap();
    fs::write(shelf.path("plot.png"), noise(200_000, 3)).unwrap();
    fs::write(shelf.path("chart.json"), r#"{"name":"app","version":"1.0.0","apiVersion":"v2"}"#).unwrap();
    let kind = ["--artifact-type", "application/x-results", "--annotation", "course=lab"];
    let files = ["table.csv:text/csv", "plot.png", &name];
    shelf.isles(&[&["push"], &kind[..], &files].concat()).fine();
    shelf.isles(&["pull", "--artifact", "-o", "back", &name]).fine();
    for file in ["table.csv", "plot.png"] {
        assert_eq!(fs::read(shelf.path(file)).unwrap(), fs::read(shelf.path("back").join(file)).unwrap());
    }
    if let Some(said) =
        shelf.peer("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")])
    {
        let raw = said.fine();
        for word in ["application/x-results", "text/csv", "\"course\"", "table.csv"] {
            assert!(raw.contains(word), "{raw}");
        }
    }
    // As Helm lays a chart.
    let chart = format!("{}/charts/app:1.0.0", server.address);
    let config = "chart.json:application/vnd.cncf.helm.config.v1+json";
    let content = "plot.png:application/vnd.cncf.helm.chart.content.v1.tar+gzip";
    shelf.isles(&["push", "--config", config, content, &chart]).fine();
    shelf.isles(&["pull", "--artifact", "-o", "chart", &chart]).fine();
    assert_eq!(fs::read(shelf.path("chart/plot.png")).unwrap(), noise(200_000, 3));
    // It is no image, and an image is no artefact with names.
    shelf.isles(&["pull", &chart]).fails(1, &["charts/app"]);
    layout(&shelf.path("layout"), "lab:1", &[tar(&[("b", b"small")])]);
    let image = format!("{}/lab:1", server.address);
    shelf.isles(&["copy", "-q", "oci:layout", &format!("docker://{image}")]).fine();
    shelf.isles(&["pull", "--artifact", "-o", "x", &image]).fails(1, &["no name"]);
    shelf.isles(&["push", "a", "b", "c"]).fails(1, &["--artifact-type"]);
    shelf.isles(&["push", "--artifact-type", "a/b", "none.txt", &name]).fails(1, &["none.txt"]);
}

#[test]
fn umoci_unpacks_what_is_written() {
    let shelf = &both()[0];
    let server = Served::start(shelf, "server", &[]);
    layout(&shelf.path("layout"), "lab:1", &[tar(&[("etc/a", b"first")]), tar(&[("etc/b", b"second")])]);
    let name = format!("docker://{}/lab:1", server.address);
    shelf.isles(&["copy", "-q", "oci:layout", &name]).fine();
    shelf.isles(&["copy", "-q", &name, "oci:copied:one"]).fine();
    shelf.isles(&["copy", "-q", &name, "lab:1"]).fine();
    shelf.isles(&["copy", "-q", "lab:1", "oci:stored:one"]).fine();
    for dir in ["copied", "stored"] {
        let (image, bundle) = (format!("{dir}:one"), format!("{dir}-bundle"));
        let Some(listed) = shelf.peer("umoci", &["ls", "--layout", dir]) else { return };
        assert_eq!(listed.fine().trim(), "one");
        shelf.peer("umoci", &["unpack", "--rootless", "--image", &image, &bundle]).unwrap().fine();
        let read = |file: &str| fs::read(shelf.path(&bundle).join("rootfs/etc").join(file)).unwrap();
        assert_eq!((read("a"), read("b")), (b"first".to_vec(), b"second".to_vec()));
    }
}

#[test]
fn sif_files_and_many_clients_at_once() {
    let shelf = &both()[0];
    let server = Served::start(shelf, "server", &[]);
    layout(&shelf.path("layout"), "lab:1", &layers());
    shelf.isles_in("one", &["load", "-i", shelf.path("layout").to_str().unwrap()]).fine();
    let sif = shelf.path("lab.sif");
    shelf.isles_in("one", &["save", "--format", "sif", "-o", sif.to_str().unwrap(), "lab:1"]).fine();
    let oras = format!("oras://{}/sif:1", server.address);
    shelf.isles_in("one", &["push", sif.to_str().unwrap(), &oras]).fine();
    let back = shelf.path("back.sif");
    shelf.isles_in("two", &["pull", "-o", back.to_str().unwrap(), &oras]).fine();
    assert_eq!(fs::read(&sif).unwrap(), fs::read(&back).unwrap());

    let name = format!("{}/lab:1", server.address);
    shelf.isles_in("one", &["push", "lab:1", &name]).fine();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..8)
            .map(|n| {
                let name = &name;
                scope.spawn(move || shelf.isles_in(&format!("many-{n}"), &["pull", name]))
            })
            .collect();
        pulls.into_iter().for_each(|pull| drop(Said::fine(pull.join().unwrap())));
    });
}

#[test]
fn a_search_lists_repositories_and_tags() {
    let shelf = &both()[0];
    let server = Served::start(shelf, "server", &[]);
    layout(&shelf.path("layout"), "lab:1", &[tar(&[("b", b"small")])]);
    for name in ["course/lab:1", "course/lab:v2", "course/other:1", "tool:v1"] {
        let to = format!("docker://{}/{name}", server.address);
        shelf.isles(&["copy", "-q", "oci:layout", &to]).fine();
    }
    let host = &server.address;
    let search = |args: &[&str]| shelf.isles(&[&["search", "-q"], args].concat()).fine();
    let all = format!("{host}/course/lab\n{host}/course/other\n{host}/tool\n");
    assert_eq!(search(&[&format!("{host}/")]), all);
    assert_eq!(search(&[&format!("{host}/lab")]), format!("{host}/course/lab\n"));
    assert_eq!(search(&[&format!("{host}/course/*"), "--limit", "1"]), format!("{host}/course/lab\n"));
    assert_eq!(
        search(&[&format!("{host}/"), "-f", "tag=v*", "-f", "name=**lab"]),
        format!("{host}/course/lab\n")
    );
    assert_eq!(search(&[&format!("{host}/course/lab"), "--list-tags"]), "1\nv2\n");
    let json = shelf.isles(&["search", "--format", "json", &format!("{host}/tool")]).fine();
    assert!(json.contains(&format!("\"{host}/tool\"")), "{json}");
    assert_eq!(search(&[&format!("{host}/nothing")]), "");
    shelf.isles(&["search", "debian"]).fails(1, &["names no registry", "REGISTRY/TERM"]);
    shelf.isles(&["search", "-f", "stars=3", "x.example/a"]).fails(2, &["stars"]);
    // A page after the other, and a registry that lists nothing.
    let liar = Liar::start();
    shelf.isles(&["search", &format!("{}/", liar.address)]).fails(1, &["does not list its repositories"]);
}

#[test]
fn what_cannot_be_served_is_said() {
    let shelf = &both()[0];
    let config = shelf.path("config.toml");
    fs::write(&config, "lisen = []\n").unwrap();
    let path = config.to_str().unwrap();
    shelf.isles(&["registry", "serve", "--config", path]).fails(1, &["config.toml", "lisen"]);
    shelf.isles(&["registry", "serve", "--htpasswd", "/nowhere"]).fails(1, &["/nowhere"]);
    shelf.isles(&["registry", "serve", "--listen", "256.0.0.1:1"]).fails(1, &["256.0.0.1:1"]);
    shelf.isles(&["registry", "serve", "--listen", "5001"]).fails(1, &["'5001'", "127.0.0.1:5001"]);
    shelf.isles(&["registry", "serve", "--listen", "192.0.2.1:5001"]).fails(1, &["no such address"]);
    shelf.isles(&["registry", "serve", "--htpasswd", path]).fails(1, &["config.toml line 1", "htpasswd -B"]);
    shelf.isles(&["registry", "serve", "--tls-cert", path]).fails(2, &["--tls-key"]);
    shelf.isles(&["registry", "serve", "--tls-cert", path, "--tls-key", path]).fails(1, &["config.toml"]);
    shelf.isles(&["registry", "rm", "none:1"]).fails(1, &["none:1"]);
    shelf.isles(&["registry", "rm", "-f", "none:1"]).fine();
    shelf.isles(&["registry", "rm", "none"]).fails(1, &["no 'none'"]);
    let store = isles_store::Store::open(shelf.path("state"), isles_store::Ownership::Single).unwrap();
    drop(store.hosted("some").unwrap().start_upload(isles_spec::Algorithm::Sha256).unwrap());
    shelf.isles(&["registry", "rm", "some"]).fails(1, &["-r"]);
    shelf.isles(&["registry", "rm", "-r", "some"]).fine();
    shelf.isles(&["registry", "ls", "none"]).fails(1, &["none"]);
    shelf.isles(&["registry", "ls", "UP"]).fails(1, &["UP"]);
    assert_eq!(shelf.isles(&["registry", "ls", "-q"]).fine(), "");
}
