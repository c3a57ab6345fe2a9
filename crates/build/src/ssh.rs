//! An SSH agent lent to a step (`RUN --mount=type=ssh`) or to git.
//!
//! A step gets a socket of its own, which passes on what is needed to use keys and nothing that would change the
//! agent: it is refused to add or remove keys, or to lock it. The protocol is that of ssh-agent (IETF
//! draft-miller-ssh-agent): messages of a length in four bytes and a type.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use isles_spec::Error as SpecError;

use crate::error::{Error, Result};
use crate::secret::Hidden;

/// As OpenSSH's own agent.
const LONGEST: usize = 256 << 10;
/// So many clients a step may have at the same time.
const CLIENTS: usize = 64;
/// SSH_AGENTC_REQUEST_IDENTITIES and SSH_AGENTC_SIGN_REQUEST.
const ALLOWED: [u8; 2] = [11, 13];
/// SSH_AGENT_FAILURE, with its length.
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];

/// An agent that holds the keys.
pub struct Agent {
    socket: PathBuf,
    /// One of our own, for keys in files.
    own: Option<(Child, Hidden)>,
}

impl Agent {
    /// The agent behind a socket, or one with the keys of files.
    ///
    /// # Errors
    /// Nothing is there, or the keys cannot be used: they have a passphrase, or `ssh-agent` is missing.
    pub fn of(sources: &[PathBuf]) -> Result<Agent> {
        let mut keys = Vec::new();
        for source in sources {
            let kind = std::fs::metadata(source).map_err(Error::io("find the SSH agent or key", source))?;
            match kind.file_type() {
                t if t.is_socket() && sources.len() == 1 => {
                    return Ok(Agent { socket: source.clone(), own: None });
                }
                t if t.is_file() => keys.push(source),
                _ => {
                    return Err(SpecError::new(format!(
                        "'{}' is neither the socket of an SSH agent nor a key",
                        source.display()
                    ))
                    .with_hint("write --ssh default, --ssh ID=SOCKET or --ssh ID=KEY[,KEY]")
                    .into());
                }
            }
        }
        let agent = Agent::start()?;
        keys.into_iter().try_for_each(|key| agent.add(key))?;
        Ok(agent)
    }

    fn start() -> Result<Agent> {
        let folder = Hidden::new()?;
        let socket = folder.path("agent");
        let missing = |e: io::Error| -> Error {
            SpecError::new(format!("a key in a file needs the program ssh-agent: {e}"))
                .with_hint("install OpenSSH's client, or give the socket of an agent that runs")
                .into()
        };
        let mut child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(missing)?;
        // It says where it is when it listens there.
        let mut line = String::new();
        let said = child.stdout.take().map(|out| BufReader::new(out.take(4096)).read_line(&mut line));
        let agent = Agent { socket, own: Some((child, folder)) };
        match said {
            Some(Ok(n)) if n > 0 => Ok(agent),
            _ => Err(missing(io::Error::other("it did not start"))),
        }
    }

    fn add(&self, key: &Path) -> Result<()> {
        let output = Command::new("ssh-add")
            .args(["-q", "--"])
            .arg(key)
            .env("SSH_AUTH_SOCK", &self.socket)
            .env("SSH_ASKPASS_REQUIRE", "never")
            .env_remove("DISPLAY")
            .stdin(Stdio::null())
            .output()
            .map_err(Error::io("add the key", key))?;
        if output.status.success() {
            return Ok(());
        }
        let said =
            String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().trim().to_owned();
        let message = format!("cannot use the SSH key '{}': {said}", key.display());
        Err(SpecError::new(message)
            .with_hint("a key with a passphrase must be in an agent: run ssh-add and pass --ssh default")
            .into())
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.own {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A socket for one step. It is closed when this is dropped.
pub struct Forward {
    socket: PathBuf,
    ended: Arc<AtomicBool>,
    _folder: Hidden,
    _agent: Agent,
}

impl Forward {
    pub fn new(agent: Agent) -> Result<Forward> {
        let folder = Hidden::new()?;
        let socket = folder.path("agent");
        let listener = UnixListener::bind(&socket).map_err(Error::io("listen at", &socket))?;
        let ended = Arc::new(AtomicBool::new(false));
        let (stop, behind) = (ended.clone(), agent.socket.clone());
        let place = Arc::new(());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let client = match client {
                    Ok(client) => client,
                    // The client was gone again; else, without descriptors, the next would fail at once too.
                    Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                    Err(_) => return,
                };
                // Each has a clone; those that are too many are closed.
                if Arc::strong_count(&place) > CLIENTS {
                    continue;
                }
                let (behind, place) = (behind.clone(), place.clone());
                // It ends with the client, and that with the step.
                let _ = std::thread::Builder::new().spawn(move || {
                    let _place = place;
                    let _ = UnixStream::connect(behind).and_then(|agent| serve(client, agent));
                });
            }
        });
        Ok(Forward { socket, ended, _folder: folder, _agent: agent })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Wakes the listener, which then sees that it is over.
        let _ = UnixStream::connect(&self.socket);
    }
}

/// Passes requests on that only use keys, until the client is gone.
fn serve(mut client: UnixStream, mut agent: UnixStream) -> io::Result<()> {
    while let Some(request) = message(&mut client)? {
        // The type stands behind the length.
        if !request.get(4).is_some_and(|kind| ALLOWED.contains(kind)) {
            client.write_all(&FAILURE)?;
            continue;
        }
        agent.write_all(&request)?;
        let Some(answer) = message(&mut agent)? else { return Ok(()) };
        client.write_all(&answer)?;
    }
    Ok(())
}

/// One message with its length; none at the end of the stream.
fn message(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0u8; 4];
    match stream.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let size = u32::from_be_bytes(length) as usize;
    if size == 0 || size > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut whole = length.to_vec();
    whole.resize(4 + size, 0);
    stream.read_exact(&mut whole[4..])?;
    Ok(Some(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_uses_keys_is_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("behind");
        let listener = UnixListener::bind(&socket).unwrap();
        // An agent that answers each request with its type.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    while let Ok(Some(request)) = message(&mut stream) {
                        stream.write_all(&[0, 0, 0, 2, 100, request[4]]).unwrap();
                    }
                });
            }
        });
        let forward = Forward::new(Agent::of(&[socket]).unwrap()).unwrap();
        let mut client = UnixStream::connect(forward.socket()).unwrap();
        for (request, answer) in [
            (&[0, 0, 0, 1, 11][..], &[0, 0, 0, 2, 100, 11][..]),
            (&[0, 0, 0, 3, 13, 1, 2], &[0, 0, 0, 2, 100, 13]),
            (&[0, 0, 0, 1, 19], &FAILURE),
            (&[0, 0, 0, 2, 17, 0], &FAILURE),
            (&[0, 0, 0, 1, 27], &FAILURE),
            (&[0, 0, 0, 1, 11], &[0, 0, 0, 2, 100, 11]),
        ] {
            client.write_all(request).unwrap();
            assert_eq!(message(&mut client).unwrap().unwrap(), answer, "{request:?}");
        }
        // Clients that are too many are closed, and a place that is free again is given again.
        let answers = |client: &mut UnixStream| {
            let _ = client.write_all(&[0, 0, 0, 1, 11]);
            matches!(message(client), Ok(Some(_)))
        };
        let mut more: Vec<_> = (0..CLIENTS).map(|_| UnixStream::connect(forward.socket()).unwrap()).collect();
        let served = more.iter_mut().map(answers).filter(|served| *served).count();
        assert_eq!(served, CLIENTS - 1);
        drop(more);
        // A length that nobody means ends the connection.
        client.write_all(&[255; 4]).unwrap();
        assert!(message(&mut client).unwrap().is_none());
        let path = forward.socket().to_owned();
        drop(forward);
        assert!(!path.exists());
    }

    #[test]
    fn keys_in_files_get_an_agent() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, passphrase: &str| {
            let key = dir.path().join(name);
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", passphrase, "-f"])
                .arg(&key)
                .stdin(Stdio::null())
                .status();
            made.is_ok_and(|status| status.success()).then_some(key)
        };
        let (Some(one), Some(two), Some(closed)) = (make("a", ""), make("b", ""), make("c", "passphrase"))
        else {
            println!("skip: there is no ssh-keygen on this machine");
            return;
        };
        let forward = Forward::new(Agent::of(&[one, two]).unwrap()).unwrap();
        let mut client = UnixStream::connect(forward.socket()).unwrap();
        client.write_all(&[0, 0, 0, 1, 11]).unwrap();
        let answer = message(&mut client).unwrap().unwrap();
        // SSH_AGENT_IDENTITIES_ANSWER, and how many.
        assert_eq!(answer[4..9], [12, 0, 0, 0, 2]);
        let error = Agent::of(&[closed]).map(drop).unwrap_err();
        assert!(error.to_string().contains("cannot use the SSH key"), "{error}");
    }

    #[test]
    fn what_is_no_agent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Agent::of(&[dir.path().to_owned()]).is_err());
        assert!(Agent::of(&[dir.path().join("nothing")]).is_err());
        let no_key = dir.path().join("key");
        std::fs::write(&no_key, "no key").unwrap();
        assert!(Agent::of(&[no_key]).is_err());
    }
}
