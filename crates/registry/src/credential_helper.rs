//! Credential helpers: programs `docker-credential-<name>` that keep secrets elsewhere
//! (docker-credential-helpers: `get`, `store`, `erase` as the argument, JSON or the server's key on stdin).

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;
use serde_json::json;

use crate::error::one_line;
use crate::{Error, Login, Result};

/// Long enough for a person to unlock a key ring.
const TIMEOUT: Duration = Duration::from_secs(120);
const OUTPUT_LIMIT: u64 = 1 << 20;
/// The name under which helpers keep identity tokens.
const TOKEN_USER: &str = "<token>";
/// What helpers print when they have nothing for a server.
const NOT_FOUND: &str = "credentials not found";

/// A credential helper by its full program name.
#[derive(Debug, Clone)]
pub(crate) struct Helper {
    program: String,
    timeout: Duration,
}

#[derive(Deserialize)]
struct Found {
    #[serde(rename = "Username", default)]
    user: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

impl Helper {
    /// The helper that a configuration file calls `name`; a name with a slash or other oddity is refused.
    pub fn new(name: &str) -> Result<Helper> {
        let program = format!("docker-credential-{name}");
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || !name.bytes().all(plain) {
            let cause = "its name is not a plain word".to_owned();
            return Err(Error::Helper { helper: one_line(&program), cause });
        }
        Ok(Helper { program, timeout: TIMEOUT })
    }

    pub fn name(&self) -> &str {
        &self.program
    }

    /// The login for a server, if the helper has one.
    pub fn get(&self, server: &str) -> Result<Option<Login>> {
        let (ok, output) = self.run("get", server.as_bytes())?;
        if !ok {
            let said = String::from_utf8_lossy(&output);
            if said.to_ascii_lowercase().contains(NOT_FOUND) {
                return Ok(None);
            }
            return Err(self.failed(one_line(&said)));
        }
        let found: Found = serde_json::from_slice(&output)
            .map_err(|e| self.failed(format!("its answer is not as agreed: {e}")))?;
        if found.user.is_empty() && found.secret.is_empty() {
            return Ok(None);
        }
        Ok(Some(if found.user == TOKEN_USER {
            Login::Identity(found.secret)
        } else {
            Login::Password { user: found.user, password: found.secret }
        }))
    }

    pub fn store(&self, server: &str, login: &Login) -> Result<()> {
        let (user, secret) = match login {
            Login::Password { user, password } => (user.as_str(), password.as_str()),
            Login::Identity(token) | Login::Token(token) => (TOKEN_USER, token.as_str()),
        };
        let request = json!({"ServerURL": server, "Username": user, "Secret": secret}).to_string();
        self.expect("store", request.as_bytes())
    }

    pub fn erase(&self, server: &str) -> Result<()> {
        self.expect("erase", server.as_bytes())
    }

    fn expect(&self, action: &str, input: &[u8]) -> Result<()> {
        match self.run(action, input)? {
            (true, _) => Ok(()),
            (false, output) => Err(self.failed(one_line(&String::from_utf8_lossy(&output)))),
        }
    }

    fn failed(&self, cause: impl Into<String>) -> Error {
        let cause = cause.into();
        let cause = if cause.is_empty() { "it says nothing".to_owned() } else { cause };
        Error::Helper { helper: self.program.clone(), cause }
    }

    /// Runs the helper; returns whether it succeeded, and what it printed.
    fn run(&self, action: &str, input: &[u8]) -> Result<(bool, Vec<u8>)> {
        let mut child = Command::new(&self.program)
            .arg(action)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| match e.kind() {
                // A folder of PATH that is closed to us gives the latter.
                std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => {
                    self.failed("it is not installed, or not executable")
                }
                _ => self.failed(e.to_string()),
            })?;
        let result = self.converse(&mut child, input);
        if result.is_err() {
            let _ = child.kill();
        }
        let _ = child.wait();
        result
    }

    fn converse(&self, child: &mut Child, input: &[u8]) -> Result<(bool, Vec<u8>)> {
        let deadline = Instant::now() + self.timeout;
        let io = |e: std::io::Error| self.failed(e.to_string());
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read its input may still answer.
            match stdin.write_all(input) {
                Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => return Err(io(e)),
                _ => {}
            }
        }
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            self.read(stdout, &mut output, deadline)?;
        }
        let pid = Pid::from_child(child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| io(e.into()))?;
        self.wait_readable(&pidfd, deadline)?;
        Ok((child.wait().map_err(io)?.success(), output))
    }

    fn read(&self, stdout: ChildStdout, output: &mut Vec<u8>, deadline: Instant) -> Result<()> {
        let mut stdout = std::fs::File::from(OwnedFd::from(stdout));
        let mut buffer = [0; 4096];
        loop {
            self.wait_readable(&stdout, deadline)?;
            let n = stdout.read(&mut buffer).map_err(|e| self.failed(e.to_string()))?;
            if n == 0 {
                return Ok(());
            }
            output.extend_from_slice(&buffer[..n]);
            if output.len() as u64 > OUTPUT_LIMIT {
                return Err(self.failed("it prints more than 1 MiB"));
            }
        }
    }

    fn wait_readable(&self, fd: &impl std::os::fd::AsFd, deadline: Instant) -> Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.failed(format!("it gave no answer in {} s", self.timeout.as_secs())));
            }
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(self.failed(std::io::Error::from(e).to_string())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A helper that is this shell script, by absolute path.
    fn script(dir: &std::path::Path, text: &str) -> Helper {
        let path = dir.join("docker-credential-test");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Helper { program: path.display().to_string(), timeout: Duration::from_secs(20) }
    }

    #[test]
    fn answers_of_helpers() {
        let dir = tempfile::tempdir().unwrap();
        let get = |text: &str| script(dir.path(), text).get("https://h");
        let told = get(r#"read s; echo "{\"ServerURL\":\"$s\",\"Username\":\"u\",\"Secret\":\"p $s $1\"}""#);
        assert_eq!(
            told.unwrap(),
            Some(Login::Password { user: "u".into(), password: "p https://h get".into() })
        );
        let token = get(r#"echo '{"Username":"<token>","Secret":"t"}'"#).unwrap();
        assert_eq!(token, Some(Login::Identity("t".into())));
        assert_eq!(get("echo credentials not found in native keychain; exit 1").unwrap(), None);
        assert!(get("echo no; exit 1").unwrap_err().to_string().ends_with("failed: no"));
        assert!(get("echo nonsense").is_err());
        assert!(get("exec 2>/dev/null; yes").unwrap_err().to_string().contains("1 MiB"));
    }

    #[test]
    fn a_silent_helper_is_not_waited_for_forever() {
        let dir = tempfile::tempdir().unwrap();
        let mut helper = script(dir.path(), "exec sleep 600");
        helper.timeout = Duration::from_millis(100);
        assert!(helper.get("h").unwrap_err().to_string().contains("no answer"));
    }

    #[test]
    fn names_are_plain_words() {
        for bad in ["", "../x", "a/b", "a b", "a\n"] {
            assert!(Helper::new(bad).is_err(), "{bad:?}");
        }
        let missing = Helper::new("isles-no-such").unwrap().get("h").unwrap_err();
        assert!(missing.to_string().contains("not installed"), "{missing}");
    }
}
