//! A run under way: its steps as they begin, speak and end, written down and shown.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use isles_spec::digest::hex;
use ring::digest::{Context, SHA256};
use rustix::fs::{FlockOperation, flock};

use crate::graph::Graph;
use crate::journal::{Entry, Journal};
use crate::log::Log;
use crate::pool::Need;
use crate::record::{self, RunRow, State, StepRow, now};
use crate::step::{Ended, Outcome};

/// Longer texts of a step are not kept.
const MOST_INPUTS: usize = 256 << 10;
const MOST_OUTPUTS: usize = 16 << 20;

/// Shown what happens. Threads tell it.
pub trait View: Send + Sync {
    fn begins(&self, _number: u64, _name: &str) {}
    /// A step wrote something that nobody asked for.
    fn talks(&self, _number: u64, _bytes: &[u8]) {}
    fn ends(&self, _number: u64, _name: &str, _state: State) {}
    /// It is tried again after a pause.
    fn again(&self, _name: &str, _why: &str, _pause: Duration) {}
    fn warns(&self, _text: &str) {}
}

/// What a run is.
#[derive(Debug, Clone)]
pub struct About {
    /// Whose language it is in.
    pub kind: &'static str,
    pub name: String,
    /// The words that it was started by.
    pub command: Vec<String>,
    pub outdir: PathBuf,
    /// Of the documents that define it.
    pub digest: String,
    /// JSON.
    pub inputs: String,
    pub graph: Graph,
    /// Texts in whose place something else is written down.
    pub secrets: Vec<String>,
}

/// What is written down in the place of a secret.
pub const SECRET: &str = "(secret)";

/// A run that this process does.
pub struct Run {
    view: Arc<dyn View>,
    record: Option<Record>,
    next: AtomicU64,
    /// By name and key: outputs of steps that are done already.
    earlier: HashMap<(String, String), String>,
    secrets: Vec<String>,
}

struct Record {
    row: RunRow,
    folder: PathBuf,
    _lock: File,
    journal: Mutex<Option<Journal>>,
}

impl Run {
    /// A run that leaves no record.
    pub fn unrecorded(view: Arc<dyn View>) -> Run {
        Run { view, record: None, next: AtomicU64::new(1), earlier: HashMap::new(), secrets: Vec::new() }
    }

    /// Begins a run whose record is in `place`.
    ///
    /// # Errors
    /// The folder cannot be made or written to.
    pub fn begin(place: &Path, about: About, view: Arc<dyn View>) -> io::Result<Run> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(place)?;
        let (id, folder) = loop {
            let mut random = [0u8; 6];
            io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut random)?;
            let id = hex(&random);
            let folder = place.join(&id);
            match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => break (id, folder),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        };
        let lock = File::create(folder.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        std::fs::create_dir(folder.join("work"))?;
        let secrets = as_written(&about.secrets);
        let row = row_of(id, about);
        Ok(Run::over(place, row, (folder, lock), (1, HashMap::new()), secrets, view))
    }

    /// Goes on with a run that failed, was stopped, or whose process is no more.
    ///
    /// # Errors
    /// There is no such run, it is still under way, it is done, or it was defined by something else.
    pub fn resume(place: &Path, id: &str, about: About, view: Arc<dyn View>) -> Result<Run, String> {
        let folder = place.join(id);
        let fail = |e: &dyn std::fmt::Display| format!("cannot go on with the run {id}: {e}");
        let lock = File::options().write(true).open(folder.join("lock")).map_err(|e| fail(&e))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| fail(&"it is still under way"))?;
        let database = record::open(place).map_err(|e| fail(&e))?;
        let before = record::read_runs(&database, id).map_err(|e| fail(&e))?;
        let Some(before) = before.into_iter().find(|row| row.id == id) else {
            return Err(fail(&"nothing is written down of it"));
        };
        if before.state == State::Done {
            return Err(fail(&"it is done"));
        }
        if before.digest != about.digest {
            return Err(fail(&"its documents are not those of then"));
        }
        let steps = record::read_steps(&database, id).map_err(|e| fail(&e))?;
        let next = steps.iter().map(|step| step.number + 1).max().unwrap_or(1);
        let done = steps.into_iter().filter(|step| matches!(step.state, Some(State::Done | State::Reused)));
        let earlier = done.filter_map(|step| Some(((step.name, step.key), step.outputs?))).collect();
        let secrets = as_written(&about.secrets);
        let row = RunRow { began: before.began, command: before.command, ..row_of(id.to_owned(), about) };
        std::fs::create_dir_all(folder.join("work")).map_err(|e| fail(&e))?;
        Ok(Run::over(place, row, (folder, lock), (next, earlier), secrets, view))
    }

    fn over(
        place: &Path,
        row: RunRow,
        (folder, lock): (PathBuf, File),
        (next, earlier): (u64, HashMap<(String, String), String>),
        secrets: Vec<String>,
        view: Arc<dyn View>,
    ) -> Run {
        let journal = Journal::start(place, &row.id).ok();
        let first = Entry::Run(Box::new(row.clone()));
        let record = Record { row, folder, _lock: lock, journal: Mutex::new(journal) };
        let run = Run { view, record: Some(record), next: AtomicU64::new(next), earlier, secrets };
        run.send(first);
        run
    }

    pub fn id(&self) -> Option<&str> {
        self.record.as_ref().map(|record| record.row.id.as_str())
    }

    /// The folder in which steps have theirs.
    pub fn work(&self) -> Option<PathBuf> {
        self.record.as_ref().map(|record| record.folder.join("work"))
    }

    pub fn view(&self) -> &dyn View {
        &*self.view
    }

    /// The outputs (JSON) of a step of this name and key that was done earlier in this run.
    pub fn earlier(&self, name: &str, key: &str) -> Option<&str> {
        if self.earlier.is_empty() {
            return None;
        }
        self.earlier.get(&(name.to_owned(), key.to_owned())).map(String::as_str)
    }

    /// A step begins, for the `attempt`th time.
    pub fn step(&self, name: &str, need: Need, attempt: u32) -> Doing<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let row = StepRow {
            number,
            name: name.to_owned(),
            attempt,
            state: Some(State::Running),
            began: now(),
            cores: need.cores,
            mebibytes: need.mebibytes,
            ..StepRow::default()
        };
        let log = self.record.as_ref().map(|r| Log::new(r.folder.join("logs").join(number.to_string())));
        self.view.begins(number, name);
        Doing { run: self, row: RefCell::new(row), log: RefCell::new(log) }
    }

    fn send(&self, mut entry: Entry) {
        let Some(record) = &self.record else { return };
        match &mut entry {
            Entry::Step(row) => hide_in_step(row, &self.secrets),
            Entry::Run(row) => hide_in_run(row, &self.secrets),
        }
        let journal = record.journal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(journal) = journal.as_ref() {
            journal.add(entry);
        }
    }

    /// The run is over. Its work folder stays where it did not get done, so that it can go on.
    pub fn end(&self, state: State, outputs: Option<String>, message: Option<String>) {
        let Some(record) = &self.record else { return };
        let row = RunRow { state, ended: Some(now()), outputs, message, ..record.row.clone() };
        self.send(Entry::Run(Box::new(row)));
        let journal = record.journal.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(message)) = journal.map(Journal::end) {
            self.view.warns(&format!("the record of this run is not whole: {message}"));
        }
    }
}

/// Secrets as they may stand in a text: as they are, and as JSON has them. The longest first, of which others may be parts.
fn as_written(secrets: &[String]) -> Vec<String> {
    let quoted = |text: &String| {
        let json = serde_json::to_string(text).unwrap_or_default();
        json.strip_prefix('"').and_then(|json| json.strip_suffix('"')).map(str::to_owned)
    };
    let mut all: Vec<String> =
        secrets.iter().flat_map(|text| [Some(text.clone()), quoted(text)]).flatten().collect();
    all.retain(|text| !text.is_empty());
    all.sort_by_key(|text| std::cmp::Reverse(text.len()));
    all.dedup();
    all
}

fn hide<'a>(texts: impl Iterator<Item = &'a mut String>, secrets: &[String]) {
    for text in texts {
        for secret in secrets.iter().filter(|secret| text.contains(secret.as_str())).collect::<Vec<_>>() {
            *text = text.replace(secret.as_str(), SECRET);
        }
    }
}

fn hide_in_run(row: &mut RunRow, secrets: &[String]) {
    if !secrets.is_empty() {
        let of_run = row.outputs.iter_mut().chain(&mut row.message).chain([&mut row.inputs]);
        hide(of_run.chain(&mut row.command), secrets);
    }
}

fn hide_in_step(row: &mut StepRow, secrets: &[String]) {
    if !secrets.is_empty() {
        let of_step = row.inputs.iter_mut().chain(&mut row.outputs).chain(&mut row.message);
        hide(of_step.chain(&mut row.command), secrets);
    }
}

fn row_of(id: String, about: About) -> RunRow {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    RunRow {
        id,
        kind: about.kind.into(),
        name: about.name,
        state: State::Running,
        began: now(),
        ended: None,
        pid: i64::from(std::process::id()),
        command: about.command,
        folder: std::env::current_dir().map(|folder| text(&folder)).unwrap_or_default(),
        outdir: text(&about.outdir),
        digest: about.digest,
        inputs: about.inputs,
        outputs: None,
        message: None,
        graph: serde_json::to_string(&about.graph).unwrap_or_default(),
    }
}

/// A digest of texts, as one that names them all.
pub fn digest<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut context = Context::new(&SHA256);
    for text in texts {
        context.update(&(text.len() as u64).to_le_bytes());
        context.update(text);
    }
    hex(context.finish().as_ref())
}

/// A step that runs. Belongs to the thread that runs it.
pub struct Doing<'r> {
    run: &'r Run,
    row: RefCell<StepRow>,
    log: RefCell<Option<Log>>,
}

impl Doing<'_> {
    pub fn run(&self) -> &Run {
        self.run
    }

    pub fn name(&self) -> String {
        self.row.borrow().name.clone()
    }

    /// What it is made of: its inputs (JSON), and their digest, by which it is known again.
    pub fn made_of(&self, inputs: String, key: String) {
        let mut row = self.row.borrow_mut();
        row.key = key;
        row.inputs = (inputs.len() <= MOST_INPUTS).then_some(inputs);
    }

    /// Its program starts.
    pub fn starts(&self, command: &[String], image: Option<&str>) {
        let mut row = self.row.borrow_mut();
        row.command = command.to_vec();
        row.image = image.map(str::to_owned);
        self.run.send(Entry::Step(Box::new(row.clone())));
    }

    pub fn talks(&self, bytes: &[u8]) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.add(bytes);
        }
        self.run.view.talks(self.row.borrow().number, bytes);
    }

    /// Its program has ended.
    pub fn went(&self, outcome: Outcome) {
        let mut row = self.row.borrow_mut();
        row.exit = Some(match outcome.ended {
            Ended::Code(code) => code.to_string(),
            Ended::Signal(signal) => format!("signal {signal}"),
            Ended::TimedOut => "timed out".into(),
            Ended::Lost => "lost".into(),
        });
        row.user_seconds = outcome.usage.user.as_secs_f64();
        row.system_seconds = outcome.usage.system.as_secs_f64();
        row.peak_kibibytes = outcome.usage.peak_kibibytes;
    }

    /// It was not run, as its outputs are known.
    pub fn reused(&self) {
        self.row.borrow_mut().state = Some(State::Reused);
    }

    /// The step is over: its outputs (JSON), or why there are none.
    pub fn end(self, result: Result<String, &str>) {
        let mut row = self.row.into_inner();
        row.ended = Some(now());
        row.log = self.log.into_inner().is_some_and(Log::end);
        let state = match (&result, row.state) {
            (Ok(_), Some(State::Reused)) => State::Reused,
            (Ok(_), _) => State::Done,
            (Err(_), _) if crate::step::stopping() => State::Stopped,
            (Err(_), _) => State::Failed,
        };
        row.state = Some(state);
        match result {
            Ok(outputs) => row.outputs = (outputs.len() <= MOST_OUTPUTS).then_some(outputs),
            Err(message) => row.message = Some(message.to_owned()),
        }
        self.run.view.ends(row.number, &row.name, state);
        self.run.send(Entry::Step(Box::new(row)));
    }
}
