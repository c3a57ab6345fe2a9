//! The same with programs that others wrote: docker-registry as the server, skopeo as another client.

#![allow(clippy::unwrap_used)]

mod fake;
mod sample;

use std::io::{BufRead, BufReader};
use std::net::ToSocketAddrs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use isles_registry::{Client, ClientOptions, Credentials, Error, Login};
use isles_spec::{Hint, Platform, Quiet, Reference};
use isles_store::{Ownership, Store};
use sample::{Packing, Sample, noise, tar};

/// An ID that no user and no subordinate range has.
const NOBODY: u32 = 4242;
/// Tells the copy of this program that runs as that user where to work.
const HOME: &str = "ISLES_TEST_HOME";

/// A docker-registry of its own, ended with the test.
struct Server {
    child: Child,
    address: String,
    dir: tempfile::TempDir,
}

impl Server {
    /// None, with a word on why, where it is not installed.
    fn start() -> Option<Server> {
        Server::start_in(tempfile::tempdir().unwrap(), "", "")
    }

    /// With more settings, in whose text `ROOT` stands for the folder.
    fn start_in(dir: tempfile::TempDir, http: &str, more: &str) -> Option<Server> {
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\n\
             storage: {{delete: {{enabled: true}}, filesystem: {{rootdirectory: ROOT/data}}}}\n\
             http: {{addr: '127.0.0.1:0'{http}}}\n{more}"
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config.replace("ROOT", &dir.path().display().to_string())).unwrap();
        let mut command = Command::new("docker-registry");
        command.args(["serve".as_ref(), file.as_os_str()]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(e) => {
                println!("skip: docker-registry: {e}");
                return None;
            }
        };
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("docker-registry ended").unwrap();
            if let Some((_, after)) = line.split_once("listening on ") {
                break after.split(['"', ' ', ',']).next().unwrap().to_owned();
            }
        };
        // Its log must go on being read.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Server { child, address, dir })
    }

    fn name(&self, repository: &str) -> Reference {
        Reference::parse(&format!("{}/{repository}", self.address)).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client() -> Client {
    Client::new(ClientOptions { credentials: Credentials::none(), ..ClientOptions::default() })
}

fn store(dir: &Path) -> Store {
    let root = rustix::process::geteuid().is_root();
    Store::open(dir.join("store"), if root { Ownership::Root } else { Ownership::Single }).unwrap()
}

fn skopeo(arguments: &[&str]) -> Option<Vec<u8>> {
    let mut command = Command::new("skopeo");
    command.arg("--insecure-policy").args(arguments);
    if !rustix::process::geteuid().is_root() && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // Without one it looks below /run/containers, which a root podman may have closed.
        command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(e) => {
            println!("skip: skopeo: {e}");
            return None;
        }
    };
    assert!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

fn three_layers(packing: Packing) -> Sample {
    let tars = [
        tar(&[("bin/sh", &noise(2_000_000, 1)), ("etc/passwd", b"root:x:0:0::/:/bin/sh\n")]),
        tar(&[("usr/lib/x", &noise(700_000, 2))]),
        tar(&[("etc/hello", b"hello\n")]),
    ];
    Sample::new(&tars, &Platform::host(), packing)
}

/// Pull what skopeo pushed, push it back, and let skopeo look at it: all digests are the same.
fn there_and_back(home: &Path, server: &Server) {
    for packing in [Packing::Gzip, Packing::Docker] {
        let sample = three_layers(packing);
        let kind = format!("{packing:?}").to_lowercase();
        let layout = home.join(&kind);
        let from = if packing == Packing::Docker {
            sample.write_dir(&layout);
            format!("dir:{}", layout.display())
        } else {
            sample.write_layout(&layout, "x");
            format!("oci:{}:x", layout.display())
        };
        let first = server.name(&format!("first/{kind}:1"));
        let to = format!("docker://{first}");
        if skopeo(&["copy", "-q", "--preserve-digests", "--dest-tls-verify=false", &from, &to]).is_none() {
            return;
        }
        let store = store(home);
        let client = client();
        let pulled = client.pull(&store, &first, &Platform::host(), &Quiet).unwrap();
        assert_eq!(pulled.image.manifest_digest.to_string(), sample.digest);
        assert_eq!(pulled.image.id().to_string(), sample.id);
        assert_eq!(client.head_manifest(&first).unwrap().digest, pulled.target);

        // To the same repository: everything is there.
        let again = server.name(&format!("first/{kind}:2"));
        let pushed = client.push(&store, &first.to_string(), None, &again, &Quiet).unwrap();
        assert_eq!((pushed.existing, pushed.uploaded, pushed.bytes), (4, 0, 0));
        assert_eq!(pushed.target.digest.to_string(), sample.digest);
        // To another one: everything is mounted.
        let other = server.name(&format!("other/{kind}:1"));
        let pushed = client.push(&store, &first.to_string(), None, &other, &Quiet).unwrap();
        assert_eq!((pushed.mounted, pushed.uploaded, pushed.bytes), (4, 0, 0));
        let mut tags = client.tags(&first).unwrap();
        tags.sort();
        assert_eq!(tags, ["1", "2"]);
        let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{other}")]).unwrap();
        assert_eq!(raw, sample.manifest);

        // To a registry that has nothing: everything is sent, and comes back the same.
        let Some(empty) = Server::start() else { return };
        let target = empty.name("x:1");
        let pushed = client.push(&store, &first.to_string(), None, &target, &Quiet).unwrap();
        assert_eq!(pushed.uploaded, 4);
        let back = tempfile::tempdir().unwrap();
        let copy = format!("dir:{}", back.path().join("copy").display());
        skopeo(&["copy", "-q", "--src-tls-verify=false", &format!("docker://{target}"), &copy]).unwrap();
        let read = |name: &str| std::fs::read(back.path().join("copy").join(name)).unwrap();
        assert_eq!(read("manifest.json"), sample.manifest);
        for (digest, bytes) in &sample.blobs {
            assert_eq!(read(digest.trim_start_matches("sha256:")), *bytes);
        }
        client.delete(&target.with_digest(pushed.target.digest)).unwrap();
        assert!(matches!(client.head_manifest(&target), Err(Error::NotFound { .. })));
    }
}

#[test]
fn images_go_there_and_back() {
    if let Ok(home) = std::env::var(HOME) {
        // This is the copy of the program that runs as an ordinary user.
        let Some(server) = Server::start() else { return };
        return there_and_back(Path::new(&home), &server);
    }
    let home = tempfile::tempdir().unwrap();
    let Some(server) = Server::start() else { return };
    there_and_back(home.path(), &server);
}

#[test]
fn images_go_there_and_back_as_an_ordinary_user() {
    if !rustix::process::geteuid().is_root() || std::env::var_os(HOME).is_some() {
        println!("skip: only root can become an ordinary user");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let path = home.path();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    let program = path.join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new(&program)
        .args(["--exact", "images_go_there_and_back", "--nocapture"])
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir(path)
        .env("HOME", path)
        .env("TMPDIR", path)
        .env(HOME, path)
        // Without one skopeo looks below /run/containers, which a root podman may have closed.
        .env("XDG_RUNTIME_DIR", path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
fn a_registry_with_passwords() {
    // As `htpasswd -nbB me secret` prints it.
    let hash = "me:$2b$04$51LZMXTseuzFG2ON5viWQe9UA2RPR.inhzunDJRO0yHXDvc3XTwtm";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("passwords"), hash).unwrap();
    let auth = "auth: {htpasswd: {realm: here, path: ROOT/passwords}}\n";
    let Some(server) = Server::start_in(dir, "", auth) else { return };
    let sample = three_layers(Packing::Gzip);
    let layout = server.dir.path().join("layout");
    sample.write_layout(&layout, "x");
    let name = server.name("a:1");
    let (from, to) = (format!("oci:{}:x", layout.display()), format!("docker://{name}"));
    let arguments =
        ["copy", "-q", "--preserve-digests", "--dest-tls-verify=false", "--dest-creds=me:secret", &from, &to];
    if skopeo(&arguments).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let e = client().pull(&store, &name, &Platform::host(), &Quiet).unwrap_err();
    assert!(matches!(e, Error::Unauthorized { signed_in: false, .. }), "{e}");
    // Sign in as a person would, into a file of Docker's format.
    let credentials = Credentials::file(dir.path().join("config.json"));
    let client = Client::new(ClientOptions { credentials: credentials.clone(), ..ClientOptions::default() });
    let login = |password: &str| Login::Password { user: "me".into(), password: password.into() };
    assert!(client.check_login(&server.address, &login("wrong")).is_err());
    client.check_login(&server.address, &login("secret")).unwrap();
    credentials.save(&server.address, &login("secret")).unwrap();
    client.pull(&store, &name, &Platform::host(), &Quiet).unwrap();
    client.push(&store, &name.to_string(), None, &server.name("b:1"), &Quiet).unwrap();
}

/// A name of this machine that does not look like one, so that certificates count.
fn other_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let near = (name.as_str(), 0).to_socket_addrs().is_ok_and(|mut all| all.all(|a| a.ip().is_loopback()));
    (near && name != "localhost").then_some(name)
}

/// A certificate authority and, signed by it, a certificate for `name`. Needs openssl.
fn certificates(dir: &Path, name: &str) -> bool {
    std::fs::write(dir.join("names"), format!("subjectAltName=DNS:{name}\n")).unwrap();
    let new = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    [
        format!("{new} -x509 -days 2 -subj /CN=authority -keyout ca.key -out ca.crt"),
        format!("{new} -subj /CN=server -keyout server.key -out server.csr"),
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -days 2 -extfile names -out server.crt".to_owned(),
    ]
    .iter()
    .all(|line| {
        let run =
            Command::new("openssl").args(line.split(' ')).current_dir(dir).stderr(Stdio::null()).status();
        run.is_ok_and(|status| status.success())
    })
}

#[test]
fn certificates_are_checked() {
    let Some(host) = other_name() else {
        println!("skip: this machine's name does not lead to loopback");
        return;
    };
    let tls = ", tls: {certificate: ROOT/server.crt, key: ROOT/server.key}";
    let start = |name: &str| {
        let dir = tempfile::tempdir().unwrap();
        if !certificates(dir.path(), name) {
            println!("skip: openssl makes no certificates");
            return None;
        }
        Server::start_in(dir, tls, "")
    };
    let Some(server) = start(&host) else { return };
    let port = |server: &Server| server.address.rsplit(':').next().unwrap().to_owned();
    let at = |server: &Server| format!("{host}:{}", port(server));
    let ask = |server: &Server, options: ClientOptions| {
        let options = ClientOptions { credentials: Credentials::none(), ..options };
        Client::new(options).tags(&Reference::parse(&format!("{}/x", at(server))).unwrap()).unwrap_err()
    };
    // Whoever is trusted gets as far as hearing that there is no such repository.
    let trusted = |e: Error| assert!(matches!(e, Error::NotFound { .. }), "{e}");

    let e = ask(&server, ClientOptions::default());
    assert!(matches!(e, Error::Untrusted { intercepted: true, .. }), "{e}");
    assert!(e.hint().unwrap().contains("/usr/local/share/ca-certificates"));
    trusted(ask(&server, ClientOptions { tls_verify: false, ..ClientOptions::default() }));
    trusted(ask(&server, ClientOptions { insecure: vec![at(&server)], ..ClientOptions::default() }));
    let folder = server.dir.path().join("certs.d").join(at(&server));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(server.dir.path().join("ca.crt"), folder.join("ca.crt")).unwrap();
    let certificates = vec![server.dir.path().join("certs.d")];
    trusted(ask(&server, ClientOptions { certificates: certificates.clone(), ..ClientOptions::default() }));
    // On loopback, TLS is used where it is spoken, and not insisted on.
    let near = Reference::parse(&format!("127.0.0.1:{}/x", port(&server))).unwrap();
    trusted(client().tags(&near).unwrap_err());

    let Some(other) = start("elsewhere.example") else { return };
    let folder = server.dir.path().join("certs.d").join(at(&other));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(other.dir.path().join("ca.crt"), folder.join("ca.crt")).unwrap();
    let e = ask(&other, ClientOptions { certificates, ..ClientOptions::default() });
    assert!(e.to_string().ends_with("its certificate is for another name"), "{e}");

    let Some(plain) = Server::start() else { return };
    let e = ask(&plain, ClientOptions::default());
    assert!(e.to_string().ends_with("it does not speak TLS"), "{e}");
    assert!(e.hint().unwrap().contains("--tls-verify=false"));
    trusted(ask(&plain, ClientOptions { insecure: vec![at(&plain)], ..ClientOptions::default() }));
}
