//! Images of a Docker daemon on this machine, as `docker save` gives them: two requests over its socket.
//!
//! Reference: Docker Engine API 1.24 to 1.47, "Inspect an image" and "Export an image"; podman's service answers the
//! same requests.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::{Error, Result};

const USUAL: &str = "/var/run/docker.sock";
/// A head of an answer, and what is said about an image.
const HEAD_LIMIT: u64 = 64 << 10;
const ANSWER_LIMIT: u64 = 4 << 20;
/// A daemon collects the layers of an image before it sends the first byte.
const PATIENCE: Duration = Duration::from_secs(600);

/// A Docker daemon, by its socket.
#[derive(Debug, Clone)]
pub struct Daemon {
    socket: PathBuf,
}

#[derive(Deserialize)]
struct Inspected {
    #[serde(rename = "Id")]
    id: String,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Daemon {
    pub fn at(socket: impl Into<PathBuf>) -> Daemon {
        Daemon { socket: socket.into() }
    }

    /// The daemon that `DOCKER_HOST` names, or the one at the usual place.
    ///
    /// # Errors
    /// The variable names a daemon on another machine.
    pub fn from_environment() -> Result<Daemon> {
        let Some(host) = std::env::var("DOCKER_HOST").ok().filter(|h| !h.is_empty()) else {
            return Ok(Daemon::at(USUAL));
        };
        match host.strip_prefix("unix://") {
            Some(path) => Ok(Daemon::at(path)),
            None => {
                Err(isles_spec::Error::new(format!("DOCKER_HOST={host} is not a socket of this machine"))
                    .with_hint("save the image there with `docker save` and use docker-archive")
                    .into())
            }
        }
    }

    /// What the daemon knows an image by: the same ID is the same image.
    pub fn image_id(&self, name: &str) -> Result<String> {
        let body = self.get(name, "json")?;
        let bytes = isles_store::read_bounded(body, ANSWER_LIMIT).map_err(|e| self.broken(name, &e))?;
        let bytes = bytes.ok_or_else(|| Error::TooLarge {
            host: self.name(),
            object: name.to_owned(),
            limit: ANSWER_LIMIT,
        })?;
        let found: Inspected = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Protocol { host: self.name(), why: e.to_string() })?;
        Ok(found.id)
    }

    /// The image as an archive.
    pub fn save(&self, name: &str) -> Result<impl Read + Send + use<>> {
        self.get(name, "get")
    }

    fn get(&self, name: &str, what: &str) -> Result<Payload> {
        let cannot = |e: &io::Error| Error::Unreachable {
            host: self.name(),
            cause: crate::http::sentence(e),
            hint: Some(match e.kind() {
                io::ErrorKind::PermissionDenied => {
                    "the socket is for members of a group, usually docker; or use docker-archive".into()
                }
                _ => {
                    "is Docker running here? without it, use docker-archive, or docker and a registry".into()
                }
            }),
        };
        let mut stream = UnixStream::connect(&self.socket).map_err(|e| cannot(&e))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|e| cannot(&e))?;
        let path = in_path(name);
        let request =
            format!("GET /images/{path}/{what} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(|e| self.broken(name, &e))?;
        let mut reader = BufReader::with_capacity(128 << 10, stream);
        let head = read_head(&mut reader).map_err(|e| self.broken(name, &e))?;
        let payload = Payload { reader, length: head.length };
        match head.status {
            200 => Ok(payload),
            404 => Err(Error::NotFound { host: self.name(), object: name.to_owned() }),
            status => {
                let said = isles_store::read_bounded(payload, HEAD_LIMIT).ok().flatten().unwrap_or_default();
                let said = serde_json::from_slice::<Refusal>(&said).map(|r| r.message).unwrap_or_default();
                let message = crate::error::one_line(&said);
                let (host, object) = (self.name(), name.to_owned());
                Err(Error::Refused { host, operation: "save", object, status, message })
            }
        }
    }

    fn name(&self) -> String {
        format!("the Docker daemon at {}", self.socket.display())
    }

    fn broken(&self, name: &str, e: &io::Error) -> Error {
        let operation = format!("saving {}", crate::error::one_line(name));
        Error::Broken { host: self.name(), operation, cause: crate::http::sentence(e) }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// A name in the path of a request. Slashes, colons and the like are as the daemon expects them.
fn in_path(name: &str) -> String {
    name.bytes().fold(String::new(), |mut out, b| {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' | b':' | b'@' => {
                out.push(char::from(b));
            }
            _ => out.push_str(&format!("%{b:02X}")),
        }
        out
    })
}

struct Head {
    status: u16,
    length: Length,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Known(u64),
    /// Until the connection ends.
    Open,
    /// In pieces: bytes left of this one.
    Chunked(u64),
    Ended,
}

fn read_head(reader: &mut BufReader<UnixStream>) -> io::Result<Head> {
    let odd = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("its answer {why}"));
    let mut head = reader.take(HEAD_LIMIT);
    let mut line = |what: &str| {
        let mut line = Vec::new();
        head.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(odd(what));
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    };
    let first = line("has no first line")?;
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or_else(|| odd("is not HTTP"))?;
    let mut length = Length::Open;
    loop {
        let header = line("has a head without an end")?;
        if header.is_empty() {
            return Ok(Head { status, length });
        }
        let Some((name, value)) = header.split_once(':') else { return Err(odd("has an odd header")) };
        match (name.to_ascii_lowercase().as_str(), value.trim()) {
            ("transfer-encoding", value) if value.eq_ignore_ascii_case("chunked") => {
                length = Length::Chunked(0);
            }
            ("content-length", value) if !matches!(length, Length::Chunked(_)) => {
                length = Length::Known(value.parse().map_err(|_| odd("has an odd length"))?);
            }
            _ => {}
        }
    }
}

/// The body of an answer.
struct Payload {
    reader: BufReader<UnixStream>,
    length: Length,
}

impl Payload {
    /// The size of the next piece.
    fn next_chunk(&mut self) -> io::Result<u64> {
        let odd = || io::Error::new(io::ErrorKind::InvalidData, "its answer has an odd piece");
        let mut line = Vec::new();
        loop {
            line.clear();
            (&mut self.reader).take(64).read_until(b'\n', &mut line)?;
            if line.pop() != Some(b'\n') {
                return Err(if line.is_empty() { io::ErrorKind::UnexpectedEof.into() } else { odd() });
            }
            // The line end behind the piece before.
            let text = String::from_utf8_lossy(&line);
            let text = text.split(';').next().unwrap_or_default().trim();
            if !text.is_empty() {
                return u64::from_str_radix(text, 16).map_err(|_| odd());
            }
        }
    }
}

impl Read for Payload {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.length == Length::Chunked(0) {
            self.length = match self.next_chunk()? {
                0 => Length::Ended,
                size => Length::Chunked(size),
            };
        }
        let left = match self.length {
            Length::Ended | Length::Known(0) => return Ok(0),
            Length::Open => u64::MAX,
            Length::Known(left) | Length::Chunked(left) => left,
        };
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = self.reader.read(&mut buffer[..most])? as u64;
        self.length = match self.length {
            Length::Open => Length::Open,
            _ if n == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Length::Known(left) => Length::Known(left - n),
            Length::Chunked(left) => Length::Chunked(left - n),
            Length::Ended => Length::Ended,
        };
        Ok(n as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// Answers one request after another, and tells what was asked.
    fn daemon(
        answers: &'static [&'static str],
    ) -> (tempfile::TempDir, Daemon, std::thread::JoinHandle<Vec<String>>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = std::thread::spawn(move || {
            let answer = |answer: &&str| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                reader.read_line(&mut asked).unwrap();
                let mut line = String::new();
                while reader.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                stream.write_all(answer.as_bytes()).unwrap();
                asked.trim_end().to_owned()
            };
            answers.iter().map(answer).collect()
        });
        (dir, Daemon::at(socket), thread)
    }

    #[test]
    fn bodies_of_all_shapes() {
        let (_dir, daemon, thread) = daemon(&[
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\nhello",
        ]);
        for _ in 0..3 {
            let mut text = String::new();
            daemon.save("a/b:c d").unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
        }
        assert_eq!(thread.join().unwrap(), ["GET /images/a/b:c%20d/get HTTP/1.1"; 3]);
    }

    #[test]
    fn images_by_id_and_refusals() {
        let (_dir, daemon, thread) = daemon(&[
            "HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{\"Id\":\"sha256:abcdef\"}",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 500 X\r\nContent-Length: 21\r\n\r\n{\"message\":\"no disk\"}",
            "nonsense\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ]);
        let texts: Vec<String> = (0..6)
            .map(|_| match daemon.image_id("x") {
                Ok(id) => id,
                Err(e) => e.to_string(),
            })
            .collect();
        for (text, part) in texts.iter().zip([
            "sha256:abcdef",
            "has no x",
            "no disk",
            "is not HTTP",
            "too early",
            "odd piece",
        ]) {
            assert!(text.contains(part), "{texts:?}");
        }
        thread.join().unwrap();
        let nobody = Daemon::at("/nonexistent/docker.sock").image_id("x").unwrap_err();
        assert!(nobody.to_string().contains("/nonexistent/docker.sock"), "{nobody}");
        assert!(isles_spec::Hint::hint(&nobody).unwrap().contains("docker-archive"));
    }
}
