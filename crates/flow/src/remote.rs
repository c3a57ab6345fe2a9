//! Steps on other machines: this program runs there as a worker, and both speak lines of JSON over its standard streams.
//!
//! ```text
//! → {"run":{"number":7,"argv":["echo","hi"],"env":[],"folder":"/home/me/out","stdout":"/home/me/out/x"}}
//! ← {"talk":{"number":7,"bytes":"6869"}}
//! ← {"done":{"number":7,"ended":{"code":0},"user":0.001,"system":0.002,"peak_kibibytes":1800}}
//! ← {"failed":{"number":7,"message":"there is no such program"}}
//! ```
//!
//! What starts a worker (srun of Slurm, ssh) is the caller's matter. Files are those of a file system that all machines
//! share. A worker whose input ends kills what it runs and ends too, so nothing outlives whoever asked for it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isles_spec::digest::hex;
use serde::{Deserialize, Serialize};

use crate::pool::Need;
use crate::step::{
    Bounds, Container, Ended, Executor, ImageSource, Mount, Outcome, Root, Step, Usage, stop_all, stopping,
};

/// A line of the other side.
const MOST_LINE: u64 = 64 << 20;
/// How often somebody who waits looks whether all is to end.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Run(Box<Wish>),
}

#[derive(Debug, Serialize, Deserialize)]
struct Wish {
    number: u64,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    folder: PathBuf,
    stdin: Option<PathBuf>,
    stdout: Option<PathBuf>,
    stderr: Option<PathBuf>,
    limit: Option<f64>,
    container: Option<WishedContainer>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WishedContainer {
    source: ImageSource,
    mounts: Vec<Mount>,
    staged: PathBuf,
    network: bool,
    shared: PathBuf,
    scratch: Option<PathBuf>,
    bounds: Bounds,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Talk { number: u64, bytes: String },
    Done { number: u64, ended: Ended, user: f64, system: f64, peak_kibibytes: u64 },
    Failed { number: u64, message: String },
}

impl Reply {
    fn number(&self) -> u64 {
        match self {
            Reply::Talk { number, .. } | Reply::Done { number, .. } | Reply::Failed { number, .. } => *number,
        }
    }
}

fn of_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect()
}

/// A worker and what may run there at once.
pub struct Worker {
    /// Of the machine.
    pub name: String,
    pub cores: f64,
    pub mebibytes: u64,
    pub input: Box<dyn Write + Send>,
    pub output: Box<dyn Read + Send>,
}

/// Runs steps on workers.
pub struct Remote {
    /// Makes images ready here, so that it is known what they are.
    images: Arc<dyn Executor>,
    shared: Arc<Shared>,
    next: AtomicU64,
    /// By what [`Container::image`] is here.
    sources: Mutex<HashMap<String, ImageSource>>,
    largest: Need,
}

struct Shared {
    nodes: Mutex<Vec<Node>>,
    freed: Condvar,
}

struct Node {
    name: String,
    cores: f64,
    mebibytes: u64,
    /// Gone with the worker.
    input: Option<Box<dyn Write + Send>>,
    waiting: HashMap<u64, Sender<Reply>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remote {
    pub fn new(workers: Vec<Worker>, images: Arc<dyn Executor>) -> Remote {
        let largest = Need {
            cores: workers.iter().map(|w| w.cores).fold(0.0, f64::max),
            mebibytes: workers.iter().map(|w| w.mebibytes).max().unwrap_or(0),
        };
        let shared = Arc::new(Shared { nodes: Mutex::default(), freed: Condvar::new() });
        for (at, worker) in workers.into_iter().enumerate() {
            let Worker { name, cores, mebibytes, input, output } = worker;
            shared.lock().push(Node { name, cores, mebibytes, input: Some(input), waiting: HashMap::new() });
            let theirs = shared.clone();
            let made = std::thread::Builder::new()
                .name("isles-worker".into())
                .spawn(move || listen(at, output, &theirs));
            if made.is_err() {
                lost(&mut shared.lock()[at]);
            }
        }
        Remote { images, shared, next: AtomicU64::new(0), sources: Mutex::default(), largest }
    }

    /// Lets all workers end.
    pub fn dismiss(&self) {
        self.shared.lock().iter_mut().for_each(|node| node.input = None);
    }

    /// Takes room on a worker and gives it the step. None while there is no room.
    fn place(
        &self,
        need: Need,
        line: &[u8],
        number: u64,
    ) -> Option<Result<(usize, Receiver<Reply>), String>> {
        let mut nodes = self.shared.lock();
        if nodes.iter().all(|node| node.input.is_none()) {
            return Some(Err("all workers are gone".into()));
        }
        let fits = |node: &Node| {
            node.input.is_some() && node.cores + 1e-9 >= need.cores && node.mebibytes >= need.mebibytes
        };
        let at = (0..nodes.len())
            .filter(|at| fits(&nodes[*at]))
            .max_by(|a, b| nodes[*a].cores.total_cmp(&nodes[*b].cores))?;
        let node = &mut nodes[at];
        let (sender, receiver) = channel();
        let sent = node.input.as_mut().map(|input| input.write_all(line).and_then(|()| input.flush()));
        if !matches!(sent, Some(Ok(()))) {
            lost(node);
            return None;
        }
        node.waiting.insert(number, sender);
        node.cores -= need.cores;
        node.mebibytes -= need.mebibytes;
        Some(Ok((at, receiver)))
    }
}

/// Nobody waits for a worker that is gone: whoever did hears of it.
fn lost(node: &mut Node) {
    node.input = None;
    node.waiting.clear();
}

fn listen(at: usize, output: Box<dyn Read + Send>, shared: &Shared) {
    let mut reader = BufReader::new(output);
    while let Some(reply) = line::<Reply>(&mut reader) {
        let nodes = shared.lock();
        let number = reply.number();
        if let Some(sender) = nodes[at].waiting.get(&number) {
            let _ = sender.send(reply);
        }
    }
    lost(&mut shared.lock()[at]);
    shared.freed.notify_all();
}

/// A line, unless it is too long or says nothing that is known. Lines of others, which a launcher may write, are passed over.
fn line<T: serde::de::DeserializeOwned>(reader: &mut impl BufRead) -> Option<T> {
    loop {
        let mut text = Vec::new();
        let read = reader.by_ref().take(MOST_LINE).read_until(b'\n', &mut text).ok()?;
        if read == 0 || !text.ends_with(b"\n") {
            return None;
        }
        if let Ok(value) = serde_json::from_slice(&text) {
            return Some(value);
        }
    }
}

/// The path by which a file was opened.
fn path_of(file: &Option<File>) -> Result<Option<PathBuf>, String> {
    let Some(file) = file else { return Ok(None) };
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = std::fs::read_link(link).map_err(|e| format!("cannot find the name of a stream: {e}"))?;
    Ok(Some(path))
}

impl Executor for Remote {
    fn image(&self, source: &ImageSource) -> Result<String, String> {
        let id = self.images.image(source)?;
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.insert(id.clone(), source.clone());
        Ok(id)
    }

    fn run(&self, step: Step, talk: &mut dyn FnMut(&[u8])) -> Result<Outcome, String> {
        let need = step.need;
        if need.cores > self.largest.cores || need.mebibytes > self.largest.mebibytes {
            return Err(format!(
                "it needs {} cores and {} MiB, and no machine has more than {} and {}",
                need.cores, need.mebibytes, self.largest.cores, self.largest.mebibytes
            ));
        }
        let container = match step.root {
            Root::Host => None,
            Root::Image(Container { image, mounts, staged, network, shared, scratch, bounds }) => {
                let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
                let source = sources.get(&image).cloned().ok_or("the image is not known")?;
                Some(WishedContainer { source, mounts, staged, network, shared, scratch, bounds })
            }
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let wish = Wish {
            number,
            argv: step.argv,
            env: step.env,
            folder: step.folder,
            stdin: path_of(&step.stdin)?,
            stdout: path_of(&step.stdout)?,
            stderr: path_of(&step.stderr)?,
            limit: step.limit.map(|limit| limit.as_secs_f64()),
            container,
        };
        let mut line = serde_json::to_vec(&Order::Run(Box::new(wish)))
            .map_err(|e| format!("cannot be told to another machine: {e}"))?;
        line.push(b'\n');
        let (at, receiver) = loop {
            if stopping() {
                return Ok(Outcome { ended: Ended::Signal(libc::SIGKILL), usage: Usage::default() });
            }
            match self.place(need, &line, number) {
                Some(placed) => break placed?,
                None => {
                    let nodes = self.shared.lock();
                    drop(self.shared.freed.wait_timeout(nodes, LOOK));
                }
            }
        };
        let answer = loop {
            match receiver.recv_timeout(LOOK) {
                Ok(Reply::Talk { bytes, .. }) => talk(&of_hex(&bytes)),
                Ok(Reply::Done { ended, user, system, peak_kibibytes, .. }) => {
                    let usage = Usage {
                        user: Duration::try_from_secs_f64(user).unwrap_or_default(),
                        system: Duration::try_from_secs_f64(system).unwrap_or_default(),
                        peak_kibibytes,
                    };
                    break Ok(Outcome { ended, usage });
                }
                Ok(Reply::Failed { message, .. }) => break Err(message),
                // A worker whose input ends, ends.
                Err(RecvTimeoutError::Timeout) if stopping() => self.shared.lock()[at].input = None,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    break Ok(Outcome { ended: Ended::Lost, usage: Usage::default() });
                }
            }
        };
        let mut nodes = self.shared.lock();
        let node = &mut nodes[at];
        node.waiting.remove(&number);
        node.cores += need.cores;
        node.mebibytes += need.mebibytes;
        drop(nodes);
        self.shared.freed.notify_all();
        answer.map_err(|message| format!("{message} (on {})", self.shared.lock()[at].name))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.dismiss();
    }
}

/// Serves as a worker until the input ends; then what still runs is killed.
///
/// # Errors
/// The output cannot be written to: nobody listens.
pub fn serve(
    input: impl Read,
    output: impl Write + Send + 'static,
    executor: &Arc<dyn Executor>,
) -> std::io::Result<()> {
    let output = Arc::new(Mutex::new(output));
    let mut reader = BufReader::new(input);
    while let Some(Order::Run(wish)) = line::<Order>(&mut reader) {
        let (executor, output) = (executor.clone(), output.clone());
        let work = move || {
            let number = wish.number;
            // Whoever does not listen any more has ended the input, too.
            let say = |reply: &Reply| {
                let mut line = serde_json::to_vec(reply).unwrap_or_default();
                line.push(b'\n');
                let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = output.write_all(&line).and_then(|()| output.flush());
            };
            let mut talk = |bytes: &[u8]| say(&Reply::Talk { number, bytes: hex(bytes) });
            let reply = match fulfil(*wish, executor.as_ref(), &mut talk) {
                Ok(Outcome { ended, usage }) => Reply::Done {
                    number,
                    ended,
                    user: usage.user.as_secs_f64(),
                    system: usage.system.as_secs_f64(),
                    peak_kibibytes: usage.peak_kibibytes,
                },
                Err(message) => Reply::Failed { number, message },
            };
            say(&reply);
        };
        std::thread::Builder::new().name("isles-step".into()).spawn(work)?;
    }
    stop_all();
    Ok(())
}

fn fulfil(wish: Wish, executor: &dyn Executor, talk: &mut dyn FnMut(&[u8])) -> Result<Outcome, String> {
    let open = |path: Option<PathBuf>, write: bool| -> Result<Option<File>, String> {
        let Some(path) = path else { return Ok(None) };
        // It was made by the other side, who took care that it is no link.
        let opened = File::options().read(!write).write(write).custom_flags(libc::O_NOFOLLOW).open(&path);
        let file = opened
            .map_err(|e| format!("cannot open {}, which all machines must share: {e}", path.display()))?;
        Ok(Some(file))
    };
    let root = match wish.container {
        None => Root::Host,
        Some(WishedContainer { source, mounts, staged, network, shared, scratch, bounds }) => {
            let image = executor.image(&source)?;
            Root::Image(Container { image, mounts, staged, network, shared, scratch, bounds })
        }
    };
    let step = Step {
        root,
        argv: wish.argv,
        env: wish.env,
        folder: wish.folder,
        stdin: open(wish.stdin, false)?,
        stdout: open(wish.stdout, true)?,
        stderr: open(wish.stderr, true)?,
        limit: wish.limit.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        need: Need { cores: 0.0, mebibytes: 0 },
    };
    executor.run(step, talk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::on_host;
    use std::os::unix::net::UnixStream;

    struct Host;

    impl Executor for Host {
        fn image(&self, _: &ImageSource) -> Result<String, String> {
            Err("no images".into())
        }

        fn run(&self, step: Step, talk: &mut dyn FnMut(&[u8])) -> Result<Outcome, String> {
            on_host(step, talk)
        }
    }

    fn step(script: &str, stdout: Option<File>) -> Step {
        Step {
            root: Root::Host,
            argv: ["sh", "-c", script].map(str::to_owned).into(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            folder: "/".into(),
            stdin: None,
            stdout,
            stderr: None,
            limit: None,
            need: Need { cores: 1.0, mebibytes: 10 },
        }
    }

    /// Workers in threads of this process, each with the other end that kills it.
    fn remote(cores: &[f64]) -> (Remote, Vec<UnixStream>) {
        let mut ends = Vec::new();
        let workers = cores.iter().map(|cores| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (input, output) = (theirs.try_clone().unwrap(), theirs);
            ends.push(ours.try_clone().unwrap());
            std::thread::spawn(move || {
                let executor: Arc<dyn Executor> = Arc::new(Host);
                let mut reader = BufReader::new(input);
                // As `serve`, without the end of all steps of this process.
                while let Some(Order::Run(wish)) = line::<Order>(&mut reader) {
                    let (executor, mut output) = (executor.clone(), output.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let number = wish.number;
                        let mut said = Vec::new();
                        let outcome = fulfil(*wish, executor.as_ref(), &mut |b| said.extend_from_slice(b));
                        let mut lines =
                            serde_json::to_string(&Reply::Talk { number, bytes: hex(&said) }).unwrap();
                        lines.push_str("\nnoise of a launcher\n");
                        lines.push_str(&match outcome {
                            Ok(Outcome { ended, usage }) => serde_json::to_string(&Reply::Done {
                                number,
                                ended,
                                user: usage.user.as_secs_f64(),
                                system: 0.0,
                                peak_kibibytes: usage.peak_kibibytes,
                            })
                            .unwrap(),
                            Err(message) => {
                                serde_json::to_string(&Reply::Failed { number, message }).unwrap()
                            }
                        });
                        lines.push('\n');
                        let _ = output.write_all(lines.as_bytes());
                    });
                }
            });
            let (input, output) = (Box::new(ours.try_clone().unwrap()), Box::new(ours));
            Worker { name: format!("with {cores}"), cores: *cores, mebibytes: 100, input, output }
        });
        let workers = workers.collect();
        (Remote::new(workers, Arc::new(Host)), ends)
    }

    #[test]
    fn steps_run_on_workers_and_say_what_they_say() {
        let folder = tempfile::tempdir().unwrap();
        let (remote, _ends) = remote(&[2.0, 1.0]);
        std::thread::scope(|scope| {
            for i in 0..20 {
                let (remote, path) = (&remote, folder.path().join(i.to_string()));
                scope.spawn(move || {
                    let mut said = Vec::new();
                    let file = File::create(&path).unwrap();
                    let script = format!("echo {i}; printf '\\377 {i}' >&2; exit {i}");
                    let outcome = remote.run(step(&script, Some(file)), &mut |b| said.extend_from_slice(b));
                    assert_eq!(outcome.unwrap().ended, Ended::Code(i));
                    assert_eq!(std::fs::read_to_string(path).unwrap(), format!("{i}\n"));
                    assert_eq!(said, [b"\xff ", i.to_string().as_bytes()].concat());
                });
            }
        });
        let nodes = remote.shared.lock();
        assert_eq!(nodes.iter().map(|node| node.cores).collect::<Vec<_>>(), [2.0, 1.0], "all is free again");
        drop(nodes);
        let big = Step { need: Need { cores: 3.0, mebibytes: 1 }, ..step("true", None) };
        assert!(remote.run(big, &mut |_| ()).unwrap_err().contains("no machine has more than 2"));
        let wrong = Step { argv: vec!["no-such-program".into()], ..step("", None) };
        assert!(remote.run(wrong, &mut |_| ()).unwrap_err().contains("no such program"));
    }

    #[test]
    fn a_worker_that_is_gone_is_told_and_others_go_on() {
        let (remote, ends) = remote(&[2.0, 1.0]);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let mut told = false;
                let outcome = remote.run(step("sleep 1000", None), &mut |_| told = true);
                (outcome, told)
            });
            while remote.shared.lock()[0].waiting.is_empty() {
                std::thread::yield_now();
            }
            ends[0].shutdown(std::net::Shutdown::Both).unwrap();
            assert_eq!(waits.join().unwrap().0.unwrap().ended, Ended::Lost);
        });
        assert_eq!(remote.run(step("exit 4", None), &mut |_| ()).unwrap().ended, Ended::Code(4));
        ends[1].shutdown(std::net::Shutdown::Both).unwrap();
        while remote.shared.lock()[1].input.is_some() {
            std::thread::yield_now();
        }
        assert_eq!(remote.run(step("true", None), &mut |_| ()).unwrap_err(), "all workers are gone");
    }

    #[test]
    fn bytes_as_text() {
        assert_eq!(of_hex(&hex(&[0, 9, 255, 16])), [0, 9, 255, 16]);
        assert_eq!(of_hex("0z1"), [1]);
    }
}
