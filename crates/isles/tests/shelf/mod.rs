//! A place for images: a state directory and a home of its own, as root or as an ordinary user, and registries
//! on loopback, a real one and one that lies.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use isles_spec::image::{Descriptor, History, ImageConfig};
use isles_spec::{Digest, Platform, Quiet, Reference};
use isles_store::tar::{Entry, Kind, Writer};
use isles_store::{Image, Ownership, Store};

/// An ordinary user without any subordinate IDs.
const NOBODY: u32 = 4242;

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(output: Output) -> Said {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Standard output of a command that had to succeed.
    #[track_caller]
    pub fn fine(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// Standard error of a command that had to fail so, and says all these words.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "'{word}' is missing in {self:?}");
        }
        self.err
    }
}

pub struct Shelf {
    dir: tempfile::TempDir,
    ordinary: bool,
}

/// One as root, where the tests are root, and one as an ordinary user.
pub fn both() -> Vec<Shelf> {
    if rustix::process::geteuid().is_root() {
        vec![Shelf::new(false), Shelf::new(true)]
    } else {
        vec![Shelf::new(false)]
    }
}

impl Shelf {
    fn new(ordinary: bool) -> Shelf {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if ordinary {
            std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            // The program's own place may be closed to others.
            fs::copy(env!("CARGO_BIN_EXE_isles"), dir.path().join("isles")).unwrap();
        }
        Shelf { dir, ordinary }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program with these arguments, in a state directory of this name.
    pub fn command_in<S: AsRef<OsStr>>(&self, state: &str, args: &[S]) -> Command {
        let program =
            if self.ordinary { self.path("isles") } else { PathBuf::from(env!("CARGO_BIN_EXE_isles")) };
        let mut command = Command::new(program);
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.dir.path());
        command.env("TMPDIR", self.dir.path()).env("ISLES_ROOT", self.path(state));
        // A bridge would stay in the machine's own network behind the test.
        command.env("ISLES_NETWORK", "host");
        if self.ordinary {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    pub fn isles_in(&self, state: &str, args: &[&str]) -> Said {
        Said::of(self.command_in(state, args).output().unwrap())
    }

    pub fn isles(&self, args: &[&str]) -> Said {
        self.isles_in("state", args)
    }

    /// Runs a peer, as the tests' user. None, with a word on why, where it is not installed.
    pub fn peer(&self, program: &str, args: &[&str]) -> Option<Said> {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.dir.path());
        if !rustix::process::geteuid().is_root() && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
            // Without one they look below /run/containers, which a root podman may have closed.
            command.env("XDG_RUNTIME_DIR", self.dir.path());
        }
        match command.output() {
            Ok(output) => Some(Said::of(output)),
            Err(e) => {
                println!("skip: {program}: {e}");
                None
            }
        }
    }

    /// Makes everything below here readable for whoever is on the other side of a peer.
    pub fn share(&self, name: &str) {
        let mut todo = vec![self.path(name)];
        while let Some(path) = todo.pop() {
            let dir = path.is_dir();
            fs::set_permissions(&path, fs::Permissions::from_mode(if dir { 0o777 } else { 0o666 })).unwrap();
            if dir {
                todo.extend(fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
            }
        }
    }
}

pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, data) in files {
        let (path, size) = (path.as_bytes().to_vec(), data.len() as u64);
        let entry = Entry { path, kind: Kind::File, mode: 0o644, size, ..Entry::default() };
        writer.begin(&entry).unwrap();
        writer.data(data).unwrap();
    }
    writer.finish().unwrap()
}

/// Writes an image of these layers as an OCI layout at `place`, under `name`. Returns its ID.
pub fn layout(place: &Path, name: &str, layers: &[Vec<u8>]) -> Image {
    let dir = tempfile::tempdir().unwrap();
    let root = rustix::process::geteuid().is_root();
    let ownership = if root { Ownership::Root } else { Ownership::Single };
    let store = Store::open(dir.path().join("s"), ownership).unwrap();
    let lease = store.lease().unwrap();
    let mut config = ImageConfig::empty(&Platform::host());
    config.created = Some("2024-02-29T12:00:00Z".into());
    config.config.env = vec!["PATH=/bin".into()];
    config.config.cmd = Some(vec!["sh".into()]);
    config.config.labels.insert("color".into(), "blue".into());
    let mut blobs: Vec<Descriptor> = Vec::new();
    for (i, tar) in layers.iter().enumerate() {
        let layer = store.layer_from_tar(&lease, &mut &tar[..]).unwrap();
        blobs.push(store.compressed_layer(&lease, &layer.diff_id, isles_store::Compression::Gzip).unwrap());
        config.rootfs.diff_ids.push(layer.diff_id);
        config.history.push(History {
            created: config.created.clone(),
            created_by: Some(format!("step {i} with a command that is longer than what is shown of it")),
            ..History::default()
        });
        config.history.push(History {
            created_by: Some("nothing".into()),
            empty_layer: true,
            ..History::default()
        });
    }
    let name: Reference = name.parse().unwrap();
    let image = store.assemble(&lease, &config, &blobs, std::slice::from_ref(&name)).unwrap();
    store.export_oci_dir(&[(image.clone(), vec![name])], place, &Quiet).unwrap();
    image
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// A docker-registry of its own, ended with the test.
pub struct Registry {
    child: Child,
    pub address: String,
    dir: tempfile::TempDir,
}

impl Registry {
    /// None, with a word on why, where it is not installed. With `passwords`, `me:secret` may do everything.
    pub fn start(passwords: bool) -> Option<Registry> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        // As `htpasswd -nbB me secret` prints it.
        let hash = "me:$2b$04$51LZMXTseuzFG2ON5viWQe9UA2RPR.inhzunDJRO0yHXDvc3XTwtm";
        fs::write(dir.path().join("passwords"), hash).unwrap();
        let auth = if passwords {
            format!("auth: {{htpasswd: {{realm: here, path: {root}/passwords}}}}\n")
        } else {
            String::new()
        };
        let file = dir.path().join("config.yml");
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\n\
             http: {{addr: '127.0.0.1:0'}}\n{auth}"
        );
        fs::write(&file, config).unwrap();
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
        Some(Registry { child, address, dir })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A registry of the shelf's own program, ended with the test.
pub struct Served {
    child: Child,
    pub address: String,
}

impl Served {
    pub fn start(shelf: &Shelf, state: &str, args: &[&str]) -> Served {
        let all = [&["registry", "serve", "--listen", "127.0.0.1:0"], args].concat();
        let mut child = shelf.command_in(state, &all).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("the server ended").unwrap();
            if let Some((_, url)) = line.split_once(" on http") {
                break url.split_once("://").unwrap().1.to_owned();
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        Served { child, address }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a [`Liar`] answers: status, content type, body.
pub type Answer = (u16, String, Vec<u8>);

/// A server that answers what it is told to, path by path.
pub struct Liar {
    pub address: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
}

impl Liar {
    pub fn start() -> Liar {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answers: Arc<Mutex<HashMap<String, Answer>>> = Arc::default();
        let shared = answers.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Liar { address, answers }
    }

    pub fn say(&self, path: &str, status: u16, kind: &str, body: &[u8]) {
        self.answers.lock().unwrap().insert(path.to_owned(), (status, kind.to_owned(), body.to_vec()));
    }

    /// Answers for a manifest by tag and for the blobs beside it.
    pub fn image(&self, name: &str, kind: &str, manifest: &[u8], blobs: &[(&Digest, &[u8])]) {
        self.say(&format!("/v2/{name}/manifests/latest"), 200, kind, manifest);
        for (digest, blob) in blobs {
            self.say(&format!("/v2/{name}/blobs/{digest}"), 200, "application/octet-stream", blob);
        }
    }
}

/// One request, then the connection is closed.
fn serve(mut stream: TcpStream, answers: &Mutex<HashMap<String, Answer>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return };
    while lines.next().is_some_and(|line| line.is_ok_and(|l| !l.is_empty())) {}
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let known = answers.lock().unwrap().get(path).cloned();
    let (status, kind, body) = match known {
        Some(answer) => answer,
        None if path == "/v2/" => (200, "application/json".into(), b"{}".to_vec()),
        None => (404, "application/json".into(), b"{}".to_vec()),
    };
    let head = format!(
        "HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    if method != "HEAD" {
        // Whoever has seen enough hangs up.
        let _ = stream.write_all(&body);
    }
    let _ = stream.flush();
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read(&mut [0; 1]);
}

/// What the image of [`stocked`] has.
pub fn layers() -> Vec<Vec<u8>> {
    vec![
        tar(&[("bin/sh", &noise(400_000, 1)), ("etc/passwd", b"root:x:0:0::/:/bin/sh\n")]),
        tar(&[("etc/hello", b"hello\n"), ("etc/.wh.passwd", b"")]),
        tar(&[("usr/lib/x", &noise(90_000, 2))]),
    ]
}

/// A shelf with one image, `app:1`.
pub fn stocked(shelf: &Shelf) -> String {
    let image = layout(&shelf.path("layout"), "app:1", &layers());
    shelf.share("layout");
    assert_eq!(shelf.isles(&["load", "-i", "oci:layout"]).fine(), "Loaded image: app:1\n");
    image.id().to_string()
}

pub fn json_of(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}
