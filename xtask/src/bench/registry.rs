//! The registry's server beside docker-registry: what goes out and comes in over loopback, lists, memory.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::Isles;
use super::measure::{Case, Outcome, Sample, cpu_of, interleave};
use super::peers::{Registry, cache, must};
use super::report::{Row, Section, at_most, bound, contenders, promises, seconds};
use crate::Result;

const ROUNDS: usize = 3;
const PORT: u16 = 5204;
const SIZE: u64 = 256 << 20;
const TAGS: usize = 100_000;
const EMPTY: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/// A server with its process.
struct Server {
    address: String,
    pid: u32,
}

/// Ours, ended with the benchmark.
struct Ours(Child);

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(isles: &Isles, root: &Path) -> Result<(Ours, Server)> {
    let mut command = isles.command(root);
    command.args(["registry", "serve", "--listen", "127.0.0.1:0"]).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let pid = child.id();
    let mut lines = BufReader::new(child.stderr.take().ok_or("no stderr")?).lines();
    let ours = Ours(child);
    loop {
        let line = lines.next().ok_or("isles registry serve ended")?.map_err(|e| e.to_string())?;
        if let Some((_, address)) = line.split_once("http://") {
            return Ok((ours, Server { address: address.to_owned(), pid }));
        }
    }
}

/// Memory of a process that no other has, in MiB.
fn memory(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib =
        text.lines().find_map(|l| l.strip_prefix("RssAnon:")?.trim().split(' ').next()?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

/// The most memory that a process ever had, files that it maps included, in MiB.
fn peak(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib =
        text.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

/// Sends a request and returns status, the `Location`, and how many bytes the body had.
fn ask(address: &str, head: &str, mut body: Option<fs::File>) -> Result<(u16, String, u64)> {
    let failed = |e: std::io::Error| format!("{address}: {e}");
    let mut stream = TcpStream::connect(address).map_err(failed)?;
    let length = body.as_ref().map_or(Ok(0), |f| f.metadata().map(|m| m.len())).map_err(failed)?;
    let text = format!(
        "{head} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).map_err(failed)?;
    if let Some(file) = &mut body {
        std::io::copy(file, &mut stream).map_err(failed)?;
    }
    let mut reader = BufReader::with_capacity(256 << 10, stream);
    let (mut status, mut location, mut line) = (0, String::new(), String::new());
    loop {
        line.clear();
        reader.read_line(&mut line).map_err(failed)?;
        let text = line.trim_end();
        if status == 0 {
            status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no status")?;
        } else if text.is_empty() {
            break;
        } else if let Some((name, value)) = text.split_once(": ")
            && name.eq_ignore_ascii_case("location")
        {
            location = value.to_owned();
        }
    }
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        match reader.read(&mut buffer).map_err(failed)? {
            0 => return Ok((status, location, bytes)),
            n => bytes += n as u64,
        }
    }
}

fn path_of(location: &str) -> &str {
    location.split_once("://").map_or(location, |(_, rest)| rest.find('/').map_or("/", |i| &rest[i..]))
}

fn push(server: &Server, repository: &str, file: &Path, digest: &str) -> Result<()> {
    let (status, location, _) = ask(&server.address, &format!("POST /v2/{repository}/blobs/uploads/"), None)?;
    if status != 202 {
        return Err(format!("{}: an upload begins with {status}", server.address));
    }
    let place = path_of(&location);
    let separator = if place.contains('?') { '&' } else { '?' };
    let body = fs::File::open(file).map_err(|e| e.to_string())?;
    let (status, ..) = ask(&server.address, &format!("PUT {place}{separator}digest={digest}"), Some(body))?;
    if status == 201 { Ok(()) } else { Err(format!("{}: an upload ends with {status}", server.address)) }
}

fn pull(server: &Server, repository: &str, digest: &str) -> Result<()> {
    match ask(&server.address, &format!("GET /v2/{repository}/blobs/{digest}"), None)? {
        (200, _, SIZE) => Ok(()),
        (status, _, bytes) => Err(format!("{}: {status} with {bytes} bytes", server.address)),
    }
}

/// The wall time of some work, and the CPU that the server used for it.
fn sample(server: &Server, work: impl FnOnce() -> Result<()>) -> Result<Sample> {
    let (before, begin) = (cpu_of(server.pid), Instant::now());
    work()?;
    Ok(Sample { wall: begin.elapsed().as_secs_f64(), cpu: cpu_of(server.pid) - before, peak: 0 })
}

/// Noise with a number in front, and its digest.
fn payload(work: &Path, number: usize) -> Result<(std::path::PathBuf, String)> {
    let file = work.join("payload");
    if !file.exists() {
        must(
            Command::new("sh")
                .args(["-c", "head -c \"$1\" /dev/urandom > \"$2\"", "sh", &SIZE.to_string()])
                .arg(&file),
        )?;
    }
    let mut open = fs::File::options().write(true).open(&file).map_err(|e| e.to_string())?;
    open.write_all(format!("{number:016}").as_bytes()).map_err(|e| e.to_string())?;
    let sum = must(Command::new("sha256sum").arg(&file))?;
    Ok((file, format!("sha256:{}", sum.split(' ').next().unwrap_or_default())))
}

/// Writes a repository of so many tags as each server keeps it.
fn many_tags(ours: &Path, theirs: &Path) -> Result<()> {
    let failed = |e: std::io::Error| e.to_string();
    let tags = ours.join("registry/many/tags");
    let links = theirs.join("docker/registry/v2/repositories/many/_manifests/tags");
    fs::create_dir_all(&tags).map_err(failed)?;
    for n in 0..TAGS {
        fs::write(tags.join(format!("v{n:06}")), EMPTY).map_err(failed)?;
        let link = links.join(format!("v{n:06}/current"));
        fs::create_dir_all(&link).map_err(failed)?;
        fs::write(link.join("link"), EMPTY).map_err(failed)?;
    }
    Ok(())
}

pub fn run(isles: &Isles) -> Result<Section> {
    let work = cache().join("registry");
    let _ = fs::remove_dir_all(&work);
    let root = work.join("isles");
    fs::create_dir_all(&root).map_err(|e| e.to_string())?;
    let peer = Registry::start(&work.join("peer"), PORT)?;
    let theirs = Server { address: peer.address.clone(), pid: peer.pid() };
    let (_running, ours) = start(isles, &root)?;
    let idle = (memory(ours.pid), memory(theirs.pid));

    let mut number = 0;
    let (file, digest) = payload(&work, number)?;
    push(&ours, "bench", &file, &digest)?;
    push(&theirs, "bench", &file, &digest)?;
    let pulls = interleave(
        vec![
            Case::new("isles registry", || sample(&ours, || pull(&ours, "bench", &digest))),
            Case::new("docker-registry", || sample(&theirs, || pull(&theirs, "bench", &digest))),
        ],
        ROUNDS,
    )?;
    let counter = std::cell::RefCell::new(&mut number);
    let fresh = || {
        **counter.borrow_mut() += 1;
        payload(&work, **counter.borrow())
    };
    let pushing = |server: &Server| {
        let (file, digest) = fresh()?;
        // What the last one left to the disk is not this one's.
        must(&mut Command::new("sync"))?;
        sample(server, || push(server, "pushed", &file, &digest))
    };
    let pushes = interleave(
        vec![
            Case::new("isles registry", || pushing(&ours)),
            Case::new("docker-registry", || pushing(&theirs)),
        ],
        ROUNDS,
    )?;
    many_tags(&root, &work.join("peer/data"))?;
    let page = |server: &Server| {
        sample(server, || match ask(&server.address, "GET /v2/many/tags/list?n=100", None)? {
            (200, ..) => Ok(()),
            (status, ..) => Err(format!("{}: {status}", server.address)),
        })
    };
    let first = page(&ours)?.wall;
    let lists = interleave(
        vec![Case::new("isles registry", || page(&ours)), Case::new("docker-registry", || page(&theirs))],
        ROUNDS,
    )?;

    let gib = SIZE as f64 / (1u64 << 30) as f64;
    let mut text = format!(
        "One blob of {} MiB over loopback, pulled from the page cache and pushed as a stream with one request after \
         another; the client is the benchmark itself and does not hash, the CPU is the server's. Pulls:\n\n",
        SIZE >> 20
    );
    text += &contenders(&pulls, "isles registry");
    text += "\nPushes, until they are on the disk:\n\n";
    text += &contenders(&pushes, "isles registry");
    text += &format!("\nThe first 100 of {TAGS} tags (the very first time {}):\n\n", seconds(first));
    text += &contenders(&lists, "isles registry");
    let mut rows: Vec<Row> = Vec::new();
    let name = |mut row: Row, what: &str| {
        row.what += what;
        row
    };
    rows.extend(at_most(&pulls, "isles registry", "docker-registry", 0.67).map(|r| name(r, ", pull")));
    rows.extend(at_most(&pushes, "isles registry", "docker-registry", 0.67).map(|r| name(r, ", push")));
    for (what, outcomes) in [("pulled", &pulls), ("pushed", &pushes)] {
        let cpu = |n: &str| outcomes.iter().find(|o| o.name == n).map(Outcome::cpu);
        if let (Some(a), Some(b)) = (cpu("isles registry"), cpu("docker-registry")) {
            text += &format!("\nCPU for each GiB {what}: {} and {}.\n", seconds(a / gib), seconds(b / gib));
            rows.push(bound(&format!("CPU for what is {what}, over docker-registry's"), a / b, 0.5, "×"));
        }
    }
    let listed = lists.iter().find(|o| o.name == "isles registry").map_or(f64::NAN, Outcome::wall);
    rows.push(bound("first page of 100,000 tags", listed * 1e3, 10.0, "ms"));
    text +=
        &format!("\nMemory of its own when idle: {:.1} MiB, docker-registry {:.1} MiB.\n", idle.0, idle.1);
    rows.push(bound("memory when idle", idle.0, 15.0, "MiB"));
    rows.push(bound("most memory in all of this", peak(ours.pid), 64.0, "MiB"));
    text += &promises(&rows);
    drop(peer);
    let _ = fs::remove_dir_all(&work);
    Ok(Section { name: "registry", title: "Serving images", text })
}
