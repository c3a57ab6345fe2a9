//! Repositories of git as a recipe or a caller names them, and their checkouts by the host's `git`.
//!
//! Nothing that a repository or its address says may become an option or a program: addresses have one of four
//! protocols, everything written by others stands behind `--`, no configuration but our own is read, no hook
//! runs, and nobody is asked for a password. The commit is found first and is the key of a step; the checkout
//! is made only where the step is. Its files have the commit's time, because that of the checkout says nothing.

mod address;

use std::fs::Permissions;
use std::io::{self, Read};
use std::net::{IpAddr, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use isles_spec::Error as SpecError;
use isles_store::FileKind;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

pub use address::{Repository, host_of, parse, parse_context};

use address::{is_commit, is_reference};

use crate::error::{Error, Result};
use crate::snapshot::Build;
use crate::ssh::Agent;
use crate::tree::{Folder, Tree};

/// So long one command of git may take.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Submodules of submodules go so deep.
const SUBMODULES: usize = 16;
/// So much of its output is kept.
const OUTPUT: u64 = 16 << 20;

/// A commit of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub commit: String,
    /// Its full name there, where it is not asked for by its number.
    reference: Option<String>,
}

/// The host's git, for one repository.
pub struct Git<'r> {
    repository: &'r Repository,
    /// Whether the caller names the repository, and not a recipe.
    is_callers: bool,
    /// Configuration that is not for the command line, where others can read it.
    secrets: Vec<(String, String)>,
    agent: Option<Agent>,
    /// Which addresses were found to be fine, for git to connect to these and no others (`http.curloptResolve`).
    pins: Mutex<Vec<String>>,
    /// For what ssh learns of hosts.
    folder: PathBuf,
    _scratch: crate::snapshot::Scratch,
}

impl<'r> Git<'r> {
    /// # Errors
    /// The host of the repository is one that is not asked.
    pub fn new(build: &Build<'_>, repository: &'r Repository) -> Result<Git<'r>> {
        Git::with(build, repository, false)
    }

    /// For a repository that the caller names, who lends it what no host's name stands beside.
    ///
    /// # Errors
    /// As [`Git::new`].
    pub fn of_caller(build: &Build<'_>, repository: &'r Repository) -> Result<Git<'r>> {
        Git::with(build, repository, true)
    }

    fn with(build: &Build<'_>, repository: &'r Repository, is_callers: bool) -> Result<Git<'r>> {
        let pins = Mutex::new(pin(&repository.remote, &repository.host)?.into_iter().collect());
        let scratch = crate::snapshot::Scratch::new(build.store)?;
        let agent = match build.options.ssh.get("default").filter(|_| repository.ssh) {
            Some(sources) => Some(Agent::of(sources)?),
            None => None,
        };
        Ok(Git {
            repository,
            is_callers,
            secrets: authorization(build, repository, is_callers)?,
            agent,
            pins,
            folder: scratch.folder("git")?,
            _scratch: scratch,
        })
    }

    /// The commit that is meant now.
    pub fn find(&self) -> Result<Found> {
        let wanted = self.repository;
        let bad = |why: String| -> Error {
            SpecError::new(format!("cannot use '{}': {why}", wanted.shown())).into()
        };
        let given = wanted.reference.as_deref().filter(|r| is_commit(r));
        let by_commit = wanted.checksum.as_deref().filter(|c| wanted.by_commit && is_commit(c));
        if wanted.by_commit && by_commit.is_none() {
            return Err(bad("fetch-by-commit needs the whole commit as its checksum".into()));
        }
        if let Some(commit) = by_commit.or(given) {
            let found = Found { commit: commit.to_owned(), reference: None };
            return match &wanted.checksum {
                Some(checksum) if !commit.starts_with(checksum) => Err(bad(other_commit(commit, checksum))),
                _ => Ok(found),
            };
        }
        let name = wanted.reference.as_deref().unwrap_or("HEAD");
        let peeled = format!("{name}^{{}}");
        let arguments = ["ls-remote", "--symref", "--", &wanted.remote, name, &peeled];
        let listed = self.run(None, &arguments)?;
        let of = |full: &str| {
            let mut lines = listed.lines().filter_map(|l| l.split_once('\t'));
            lines.find(|(id, name)| *name == full && is_commit(id)).map(|(id, _)| id.to_owned())
        };
        let names = match (name, name.strip_prefix("refs/")) {
            ("HEAD", _) => vec!["HEAD".to_owned()],
            (name, Some(_)) => vec![name.to_owned()],
            // git prefers branches, too.
            (name, None) => {
                ["refs/", "refs/heads/", "refs/tags/"].map(|kind| format!("{kind}{name}")).to_vec()
            }
        };
        let Some((full, id)) = names.into_iter().find_map(|full| of(&full).map(|id| (full, id))) else {
            let error = SpecError::new(format!("'{}' has no branch or tag '{name}'", wanted.shown()));
            return Err(error.with_hint("a commit needs all of its digits there").into());
        };
        let commit = of(&format!("{full}^{{}}")).unwrap_or_else(|| id.clone());
        if let Some(checksum) = &wanted.checksum
            && !commit.starts_with(checksum)
            && !id.starts_with(checksum)
        {
            return Err(bad(other_commit(&commit, checksum)));
        }
        let symbolic = listed.lines().find_map(|l| l.strip_prefix("ref: ")?.strip_suffix("\tHEAD"));
        let reference = match full.as_str() {
            "HEAD" => symbolic.filter(|r| is_reference(r)).map(str::to_owned),
            _ => Some(full),
        };
        Ok(Found { commit, reference })
    }

    /// Checks a commit out below the empty folder `folder`; says where its files are, and when it was made
    /// (seconds since 1970).
    pub fn checkout(&self, found: &Found, folder: &Path) -> Result<(PathBuf, i64)> {
        let wanted = self.repository;
        let top = folder.join("checkout");
        std::fs::create_dir(&top).map_err(Error::io("create", &top))?;
        let here = Some(top.as_path());
        let format = if found.commit.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        self.run(here, &["init", "--quiet", "--template=", "--initial-branch=master", format])?;
        self.run(here, &["remote", "add", "--", "origin", &wanted.remote])?;
        let by_name = found.reference.as_ref().map(|r| format!("+{r}:{r}"));
        let fetched = match &by_name {
            Some(reference) => self.fetch(&top, true, &[reference]),
            None => self.fetch(&top, true, &[&found.commit]),
        };
        let object = format!("{}^{{commit}}", found.commit);
        let have = || self.run(here, &["cat-file", "-e", &object]).is_ok();
        if fetched.is_err() || !have() {
            // It moved since it was found, or the server gives no commit by its number: then all of it is fetched.
            let all = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
            let whole = self.fetch(&top, false, &all);
            if let (Err(first), true) = (fetched, whole.is_err()) {
                return Err(first);
            }
            whole?;
        }
        self.run(here, &["checkout", "--quiet", "--force", "--detach", &found.commit, "--"])
            .map_err(|e| SpecError::new(format!("cannot check out {}: {e}", found.commit)))?;
        if !wanted.no_submodules && top.join(".gitmodules").exists() {
            self.submodules(&top)?;
        }
        let time = self.run(here, &["show", "--no-patch", "--format=%ct", &found.commit, "--"])?;
        let time = time.trim().parse().unwrap_or(0);
        if wanted.keeps_git_dir() {
            self.run(here, &["remote", "set-url", "origin", &wanted.shown()])?;
            for name in ["FETCH_HEAD", "ORIG_HEAD", "logs"] {
                let path = top.join(".git").join(name);
                let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
            }
        } else {
            remove_git_dirs(&top)?;
        }
        let tree = Tree::Folder(Folder::open(&top)?);
        let mut here = PathBuf::new();
        for name in wanted.subdir.split('/').filter(|n| !n.is_empty()) {
            here.push(name);
            if tree.lstat(&here)?.is_none_or(|meta| meta.kind != FileKind::Dir) {
                return Err(SpecError::new(format!(
                    "'{}' has no directory '{}'",
                    wanted.shown(),
                    wanted.subdir
                ))
                .into());
            }
        }
        let files = top.join(here);
        settle(&files, (!wanted.times_of_checkout).then_some(time))?;
        Ok((files, time))
    }

    /// Fetches submodules, and theirs. Their addresses are looked at before they are asked.
    fn submodules(&self, top: &Path) -> Result<()> {
        let mut todo = vec![(top.to_owned(), 0)];
        while let Some((folder, depth)) = todo.pop() {
            if std::fs::symlink_metadata(folder.join(".gitmodules")).is_err() {
                continue;
            }
            if depth == SUBMODULES {
                let shown = self.repository.shown();
                let why = format!("'{shown}' has submodules more than {SUBMODULES} deep");
                return Err(SpecError::new(why).with_hint("?submodules=false leaves them out").into());
            }
            let here = Some(folder.as_path());
            // Afterwards the configuration holds whole addresses.
            self.run(here, &["submodule", "--quiet", "init"])?;
            let all = self.run(here, &["config", "--local", "--list", "-z"])?;
            for entry in all.split('\0') {
                if let Some((key, url)) = entry.split_once('\n')
                    && key.starts_with("submodule.")
                    && key.ends_with(".url")
                {
                    let pin = pin(url, &address::host_in(url)?)?;
                    self.pins.lock().unwrap_or_else(PoisonError::into_inner).extend(pin);
                }
            }
            let update = ["submodule", "--quiet", "update", "--force"];
            match self.run(here, &[&update[..], &["--depth=1"]].concat()) {
                Err(e) if is_about_depth(&e) => self.run(here, &update).map(drop)?,
                other => drop(other?),
            }
            for entry in self.run(here, &["ls-files", "--stage", "-z"])?.split('\0') {
                if let Some((_, path)) = entry.split_once('\t').filter(|_| entry.starts_with("160000 ")) {
                    let below = folder.join(path);
                    // Those that nobody fetched have no `.git`.
                    if below.join(".git").symlink_metadata().is_ok() {
                        todo.push((below, depth + 1));
                    }
                }
            }
        }
        Ok(())
    }

    fn fetch(&self, top: &Path, shallow: bool, what: &[&str]) -> Result<()> {
        let mut arguments = vec!["fetch", "--quiet", "--no-tags", "--force", "--no-recurse-submodules"];
        if shallow {
            arguments.push("--depth=1");
        }
        let without: Vec<&str> = arguments.iter().copied().filter(|a| *a != "--depth=1").collect();
        let rest: Vec<&str> = ["--", "origin"].iter().chain(what).copied().collect();
        match self.run(Some(top), &[arguments, rest.clone()].concat()) {
            Err(e) if shallow && is_about_depth(&e) => {
                self.run(Some(top), &[without, rest].concat()).map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Runs git; gives what it wrote.
    fn run(&self, here: Option<&Path>, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("git");
        command.env_clear().process_group(0).stdin(Stdio::null());
        let inherited = [
            "PATH",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "NO_PROXY",
            "ALL_PROXY",
            "http_proxy",
            "https_proxy",
            "no_proxy",
            "all_proxy",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "GIT_SSL_CAINFO",
        ];
        command.envs(inherited.iter().filter_map(|n| Some((n, std::env::var_os(n)?))));
        let known = self.folder.join("known_hosts");
        command.envs([
            ("LC_ALL", "C"),
            ("HOME", "/dev/null"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", "true"),
            ("GIT_ALLOW_PROTOCOL", "http:https:ssh:git"),
            ("GIT_HTTP_LOW_SPEED_LIMIT", "1"),
            ("GIT_HTTP_LOW_SPEED_TIME", "60"),
            ("GIT_LFS_SKIP_SMUDGE", "1"),
        ]);
        // Of the user's ssh only the hosts that they know are used; keys are those that the caller lends.
        command.env(
            "GIT_SSH_COMMAND",
            format!(
                "ssh -F /dev/null -o BatchMode=yes -o IdentityFile=none -o StrictHostKeyChecking=accept-new \
                 -o 'UserKnownHostsFile={} ~/.ssh/known_hosts'",
                known.display()
            ),
        );
        if let Some(agent) = &self.agent {
            command.env("SSH_AUTH_SOCK", agent.socket());
        }
        command.env("GIT_CONFIG_COUNT", self.secrets.len().to_string());
        for (number, (key, value)) in self.secrets.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{number}"), key);
            command.env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        for setting in [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "core.autocrlf=false",
            "advice.detachedHead=false",
            "credential.helper=",
            "gc.auto=0",
            "maintenance.auto=false",
            "submodule.recurse=false",
        ] {
            command.args(["-c", setting]);
        }
        // Where a redirect leads nobody has looked at; and what others wrote could lead anywhere by it.
        if !self.is_callers || !self.secrets.is_empty() || arguments.first() == Some(&"submodule") {
            command.args(["-c", "http.followRedirects=false"]);
        }
        for pin in self.pins.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            command.args(["-c", &format!("http.curloptResolve={pin}")]);
        }
        if let Some(here) = here {
            command.current_dir(here);
        }
        command.args(arguments);
        let shown = self.repository.shown();
        let output = output(command, PATIENCE).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                SpecError::new(format!("'{shown}' needs the program git, which is not here"))
                    .with_hint("install git, or fetch the repository in a RUN")
            }
            io::ErrorKind::TimedOut => SpecError::new(format!("git did not come to an end with '{shown}'")),
            _ => SpecError::new(format!("cannot run git: {e}")),
        })?;
        if output.success {
            return Ok(output.stdout);
        }
        let said = said(&output.stderr);
        let message = format!("git cannot use '{shown}': {}", said.replace(&self.repository.remote, &shown));
        let error = SpecError::new(message);
        Err(match said.as_str() {
            s if s.contains("Permission denied (publickey") => {
                error.with_hint("pass --ssh default, so that git may use your SSH agent")
            }
            s if s.contains("could not read Username") || s.contains("Authentication failed") => error
                .with_hint(
                    "pass --secret id=GIT_AUTH_TOKEN.HOST,src=FILE with a token for that host, or use an ssh address and --ssh",
                ),
            s if s.contains("returned error: 30") => {
                error.with_hint("no redirect is followed; name the repository by where it is")
            }
            _ => error,
        }
        .into())
    }
}

/// Plain web servers (dumb HTTP) have no part of a history.
fn is_about_depth(error: &Error) -> bool {
    error.to_string().contains("shallow")
}

fn other_commit(commit: &str, checksum: &str) -> String {
    format!("it is at the commit {commit}, not at {checksum}")
}

/// The last error that git reports, in one line.
fn said(stderr: &str) -> String {
    let fatal = |l: &&str| ["fatal: ", "error: ", "remote: "].iter().any(|p| l.starts_with(p));
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let line = lines.iter().copied().find(fatal).or(lines.last().copied()).unwrap_or("it gave no reason");
    let denied = lines.iter().find(|l| l.contains("Permission denied"));
    let line = denied.copied().unwrap_or(line);
    line.trim_start_matches("fatal: ")
        .trim_start_matches("error: ")
        .chars()
        .filter(|c| !c.is_control())
        .collect()
}

/// What a program wrote.
struct Output {
    success: bool,
    stdout: String,
    stderr: String,
}

/// Runs a program in a process group of its own, which is ended with all its helpers when it takes too long.
fn output(mut command: Command, within: Duration) -> io::Result<Output> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (done, wait) = mpsc::channel();
    let read = |stream: Option<Box<dyn Read + Send>>| {
        let done = done.clone();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                let _ = (&mut stream).take(OUTPUT).read_to_end(&mut bytes);
                let _ = io::copy(&mut stream, &mut io::sink());
            }
            let _ = done.send(());
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>));
    let stderr = read(child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>));
    let late = (0..2).any(|_| wait.recv_timeout(within).is_err());
    if late && let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let status = child.wait()?;
    if late {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let text = |t: std::thread::JoinHandle<String>| t.join().unwrap_or_default();
    Ok(Output { success: status.success(), stdout: text(stdout), stderr: text(stderr) })
}

/// A token or header that the caller gives for the host, as BuildKit names them. Those that name no host are for
/// the caller's own repositories: a recipe may name any host.
fn authorization(
    build: &Build<'_>,
    repository: &Repository,
    is_callers: bool,
) -> Result<Vec<(String, String)>> {
    if repository.ssh || !repository.remote.starts_with("http") {
        return Ok(Vec::new());
    }
    let host = &repository.host;
    let names = [
        (format!("GIT_AUTH_HEADER.{host}"), false),
        (format!("GIT_AUTH_TOKEN.{host}"), true),
        ("GIT_AUTH_HEADER".to_owned(), false),
        ("GIT_AUTH_TOKEN".to_owned(), true),
    ];
    let count = if is_callers { names.len() } else { 2 };
    for (name, token) in names.into_iter().take(count) {
        let Some(source) = build.options.secrets.get(&name) else { continue };
        if !is_safe(&repository.remote, host) {
            return Err(in_the_clear(&name, &repository.shown()));
        }
        let secret = source.read()?;
        let text = String::from_utf8_lossy(&secret);
        let value = match token {
            true => format!("basic {}", BASE64_STANDARD.encode(format!("x-access-token:{}", text.trim()))),
            false => text.trim().to_owned(),
        };
        let scope = &repository.remote;
        return Ok(vec![(format!("http.{scope}.extraHeader"), format!("Authorization: {value}"))]);
    }
    Ok(Vec::new())
}

/// Whether what is sent to a URL is for its host alone.
pub fn is_safe(url: &str, host: &str) -> bool {
    let is_here = host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    is_here || url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

/// A secret that would be for everybody on the way.
pub fn in_the_clear(name: &str, url: &str) -> Error {
    SpecError::new(format!("the secret {name} does not go over plain HTTP to '{url}'"))
        .with_hint("write the address with https://")
        .into()
}

/// Services at link-local addresses are not for recipes. What does not resolve here is left to git and proxies.
fn checked(host: &str) -> Result<Vec<IpAddr>> {
    // What git would decode to another name than the one that is looked at here.
    if !host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':')) {
        return Err(SpecError::new(format!("'{}' is no name of a host", host.escape_default()))
            .with_hint("write it in letters, digits, dots and dashes")
            .into());
    }
    let mut all: Vec<IpAddr> = Vec::new();
    for address in (host, 0u16).to_socket_addrs().into_iter().flatten().map(|address| address.ip()) {
        if isles_registry::is_link_local(address) {
            return Err(SpecError::new(format!(
                "'{host}' is at the link-local address {address}, which is not asked"
            ))
            .into());
        }
        if !all.contains(&address) {
            all.push(address);
        }
    }
    Ok(all)
}

/// The host of a URL with the addresses that were looked at, as curl takes it: so a name that leads elsewhere the second
/// time is of no use. Of hosts that ssh and git's own protocol ask, which tell nobody secrets over HTTP, the look is all.
fn pin(url: &str, host: &str) -> Result<Option<String>> {
    let all = checked(host)?;
    let lower = url.to_ascii_lowercase();
    let usual = match () {
        () if lower.starts_with("https://") => 443,
        () if lower.starts_with("http://") => 80,
        () => return Ok(None),
    };
    if all.is_empty() || host.parse::<IpAddr>().is_ok() {
        return Ok(None);
    }
    let authority =
        url.split("://").nth(1).unwrap_or_default().split(['/', '?', '#']).next().unwrap_or_default();
    let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).unwrap_or(usual);
    let all: Vec<String> = all
        .iter()
        .map(|address| match address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        })
        .collect();
    Ok(Some(format!("{host}:{port}:{}", all.join(","))))
}

/// Removes `.git` everywhere: the directory, and the files by which submodules find it.
fn remove_git_dirs(top: &Path) -> Result<()> {
    let mut todo = vec![top.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let entry = entry.map_err(Error::io("read", &folder))?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io("look at", entry.path()))?);
            match (entry.file_name() == ".git", kind.is_dir()) {
                (true, true) => std::fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?,
                (true, false) => std::fs::remove_file(&path).map_err(Error::io("remove", &path))?,
                (false, true) => todo.push(path),
                (false, false) => {}
            }
        }
    }
    Ok(())
}

/// Gives files the modes that git knows, whatever this process's umask is, and one time.
fn settle(top: &Path, time: Option<i64>) -> Result<()> {
    let mut todo = vec![top.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?;
        if meta.is_dir() {
            for entry in std::fs::read_dir(&path).map_err(Error::io("read", &path))? {
                todo.push(entry.map_err(Error::io("read", &path))?.path());
            }
        }
        if !meta.is_symlink() {
            let runs = meta.is_dir() || meta.permissions().mode() & 0o100 != 0;
            let mode = Permissions::from_mode(if runs { 0o755 } else { 0o644 });
            std::fs::set_permissions(&path, mode).map_err(Error::io("set the mode of", &path))?;
        }
        if let Some(time) = time {
            let time = Timespec { tv_sec: time, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(Error::io("set the time of", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_the_addresses_that_were_looked_at() {
        let fine = |pin: Option<String>, port: u16| {
            let pin = pin.unwrap();
            let rest = pin.strip_prefix(&format!("localhost:{port}:")).unwrap();
            assert!(rest.split(',').all(|one| ["127.0.0.1", "[::1]"].contains(&one)), "{pin}");
        };
        fine(pin("http://localhost:8080/x.git", "localhost").unwrap(), 8080);
        fine(pin("HTTPS://me@localhost/x:1/y.git", "localhost").unwrap(), 443);
        for (url, host) in [
            ("http://127.0.0.1/x", "127.0.0.1"),
            ("ssh://git@localhost/x", "localhost"),
            ("git@localhost:x", "localhost"),
        ] {
            assert_eq!(pin(url, host).unwrap(), None, "{url}");
        }
        assert!(pin("http://169.254.169.254/x", "169.254.169.254").is_err());
    }

    #[test]
    fn programs_that_do_not_end_are_ended() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 1000 & echo x; sleep 1000"]).process_group(0);
        let error = output(command, Duration::from_millis(50)).map(drop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
