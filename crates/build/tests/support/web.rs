//! A server on loopback that gives what a test says, and remembers what it was asked.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// One request: its line and its headers, in lower case.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// What is answered: status, headers, body.
pub type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

pub struct Server {
    pub address: String,
    pub requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Serves until the test's process ends.
    pub fn new(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (asked, answer) = (requests.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (asked, answer) = (asked.clone(), answer.clone());
                std::thread::spawn(move || conversation(stream.unwrap(), &asked, &*answer));
            }
        });
        Server { address, requests }
    }

    /// The files of a folder, as a plain web server gives them.
    pub fn of_folder(folder: &Path) -> Server {
        let folder = folder.to_owned();
        Server::new(move |request| {
            let path = request.path.split('?').next().unwrap().trim_start_matches('/');
            match std::fs::read(folder.join(path)) {
                Ok(bytes) => (200, Vec::new(), bytes),
                Err(_) => (404, Vec::new(), Vec::new()),
            }
        })
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn conversation(stream: TcpStream, asked: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Answer) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut stream = stream;
    while let Some(Ok(first)) = lines.next() {
        let mut headers = Vec::new();
        while let Some(Ok(line)) = lines.next() {
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let path = first.split(' ').nth(1).unwrap_or("/").to_owned();
        let request = Request { path, headers };
        let (status, headers, body) = answer(&request);
        asked.lock().unwrap().push(request);
        let mut head = format!("HTTP/1.1 {status} X\r\n");
        if status != 304 {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(&body)).is_err()
        {
            return;
        }
    }
}

/// Serves the repositories of a folder with git's own protocol; says where (`git://…`).
pub fn daemon(folder: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("git://{}", listener.local_addr().unwrap());
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream: std::os::fd::OwnedFd = stream.unwrap().into();
            let mut child = std::process::Command::new("git")
                .args(["daemon", "--inetd", "--export-all"])
                .arg(format!("--base-path={}", folder.display()))
                .env("GIT_CONFIG_COUNT", "1")
                .envs([("GIT_CONFIG_KEY_0", "safe.directory"), ("GIT_CONFIG_VALUE_0", "*")])
                .stdin(stream.try_clone().unwrap())
                .stdout(stream)
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::spawn(move || child.wait());
        }
    });
    address
}

/// Runs git for a test, without the machine's settings. `None` where there is no git.
pub fn git(here: &Path, arguments: &[&str]) -> Option<String> {
    let output = std::process::Command::new("git")
        .current_dir(here)
        .args(["-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always"])
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .envs([
            ("GIT_AUTHOR_NAME", "a"),
            ("GIT_AUTHOR_EMAIL", "a@b"),
            ("GIT_AUTHOR_DATE", "1500000000 +0000"),
        ])
        .envs([
            ("GIT_COMMITTER_NAME", "a"),
            ("GIT_COMMITTER_EMAIL", "a@b"),
            ("GIT_COMMITTER_DATE", "1500000000 +0000"),
        ])
        .output()
        .ok()?;
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// A repository `repo.git` below a folder, as a plain web server can give it: two commits on `main`, the tag
/// `v1` and the annotated tag `v2` on the first, and the branch `side`. `None` where there is no git.
pub fn repository(folder: &Path) -> Option<Commits> {
    let work = folder.join("work");
    std::fs::create_dir_all(work.join("sub/deep")).unwrap();
    git(&work, &["init", "--quiet"])?;
    let commit = |files: &[(&str, &str)], message: &str| {
        for (path, text) in files {
            std::fs::write(work.join(path), text).unwrap();
        }
        git(&work, &["add", "--all"]).unwrap();
        git(&work, &["commit", "--quiet", "--message", message]).unwrap();
        git(&work, &["rev-parse", "HEAD"]).unwrap()
    };
    std::os::unix::fs::symlink("file", work.join("link")).unwrap();
    let first = commit(
        &[("file", "one"), ("sub/deep/x", "x"), ("Dockerfile", "FROM base\nCOPY file /copied\n")],
        "first",
    );
    git(&work, &["tag", "v1"]);
    git(&work, &["tag", "--annotate", "v2", "--message", "two"]);
    git(&work, &["checkout", "--quiet", "-b", "side"]);
    let side = commit(&[("file", "side")], "side");
    git(&work, &["checkout", "--quiet", "main"]);
    std::fs::write(work.join("run"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(work.join("run"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let second = commit(&[("file", "two")], "second");
    git(folder, &["clone", "--quiet", "--bare", "work", "repo.git"]);
    git(&folder.join("repo.git"), &["update-server-info"]);
    Some(Commits { bare: folder.join("repo.git"), work, first, second, side })
}

pub struct Commits {
    pub bare: PathBuf,
    pub work: PathBuf,
    pub first: String,
    pub second: String,
    pub side: String,
}
