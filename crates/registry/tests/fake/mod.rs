//! A registry that does what a test tells it, also what no registry should do. Standard library only.

// Every test program uses its own part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// One request as it arrived. Header names are lower case.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Path with query.
    pub target: String,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte of a `Range: bytes=N-`.
    pub fn range(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// How a connection ends after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Closed before there is any answer.
    NoAnswer,
    KeepAlive,
    /// Closed as if all were said.
    Close,
    /// Reset, as by a router that lost its mind.
    Reset,
    /// Nothing more comes, and nobody hangs up.
    Silence,
    /// Data goes on for as long as the client reads.
    Endless,
}

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// What `Content-Length` says; without it the body is chunked.
    pub length: Option<usize>,
    pub end: End,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Reply { status, headers: Vec::new(), length: Some(body.len()), body, end: End::KeepAlive }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Sends only the first `n` bytes of what it promised.
    pub fn cut(mut self, n: usize, end: End) -> Self {
        self.body.truncate(n);
        self.end = end;
        self
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// Listens on a free port of loopback until the process ends.
pub struct Fake {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Handler> = Arc::new(handler);
        let seen = log.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, seen) = (handler.clone(), seen.clone());
                thread::spawn(move || {
                    let _ = serve(stream, &*handler, &seen);
                });
            }
        });
        Fake { address, log }
    }

    /// `127.0.0.1:port/name`.
    pub fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, handler: &Handler, seen: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let Some(request) = read_request(&mut reader)? else {
            // A TLS greeting, among others.
            return stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        };
        seen.lock().unwrap().push(request.clone());
        if request.method == "CONNECT" {
            // As a proxy that leads everywhere back to itself.
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            continue;
        }
        let reply = handler(&request);
        if reply.end == End::NoAnswer {
            return Ok(());
        }
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let bodiless = request.method == "HEAD" || reply.status == 204 || reply.status == 304;
        match reply.length {
            Some(length) if reply.status != 204 => head += &format!("Content-Length: {length}\r\n"),
            None if !bodiless => head += "Transfer-Encoding: chunked\r\n",
            _ => {}
        }
        stream.write_all((head + "\r\n").as_bytes())?;
        if !bodiless {
            if reply.length.is_some() {
                stream.write_all(&reply.body)?;
            } else {
                if !reply.body.is_empty() {
                    write!(stream, "{:x}\r\n", reply.body.len())?;
                    stream.write_all(&reply.body)?;
                    stream.write_all(b"\r\n")?;
                }
                if reply.end == End::KeepAlive {
                    stream.write_all(b"0\r\n\r\n")?;
                }
            }
        }
        match reply.end {
            End::KeepAlive => {}
            End::Close | End::NoAnswer => return Ok(()),
            End::Reset => {
                // Closing a socket that does not linger at all resets the connection.
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
                return Ok(());
            }
            End::Silence => {
                // Until the client gives up.
                let _ = reader.read(&mut [0]);
                return Ok(());
            }
            End::Endless => loop {
                stream.write_all(b"10000\r\n")?;
                stream.write_all(&vec![b'x'; 0x10000])?;
                stream.write_all(b"\r\n")?;
            },
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    let Ok(line) = String::from_utf8(line) else { return Ok(None) };
    let words: Vec<&str> = line.split_whitespace().collect();
    let [method, target, "HTTP/1.1"] = words[..] else { return Ok(None) };
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match reader.read(&mut body[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    body.truncate(filled);
    Ok(Some(Request { method: method.to_owned(), target: target.to_owned(), headers, body }))
}
