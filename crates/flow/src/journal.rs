//! The thread that writes the record of a run.
//!
//! Threads that run steps leave what happened in a list and go on. The writer is woken for the first of it, and then lets things
//! come together for a moment: a wake for each would cost more than the steps of a run of many small ones.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use rustix::fs::{FlockOperation, flock};

use crate::record::{self, RunRow, StepRow, now};

/// What comes within this time is written together.
const TOGETHER: Duration = Duration::from_millis(40);
/// Work of runs that failed is kept so long, for whoever wants to go on with it.
const KEEP_WORK: i64 = 14 * 24 * 3600 * 1000;

/// Something as it is now.
pub(crate) enum Entry {
    Step(Box<StepRow>),
    Run(Box<RunRow>),
}

/// The record of a run, as long as it is written.
pub(crate) struct Journal {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<(), String>>,
}

#[derive(Default)]
struct Shared {
    list: Mutex<List>,
    /// Told when there is something in an empty list, and when nothing more comes.
    wake: Condvar,
}

#[derive(Default)]
struct List {
    entries: Vec<Entry>,
    /// Nothing more comes, or nobody writes any more.
    over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something, and for what comes together with it. Says whether it is the last.
    fn wait(&self) -> (Vec<Entry>, bool) {
        let nothing = |list: &mut List| list.entries.is_empty() && !list.over;
        let list = self.wake.wait_while(self.lock(), nothing).unwrap_or_else(PoisonError::into_inner);
        let waited = self.wake.wait_timeout_while(list, TOGETHER, |list| !list.over);
        let (mut list, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (std::mem::take(&mut list.entries), list.over)
    }
}

impl Journal {
    /// Begins the record of the run `id`, in the database of `place`.
    ///
    /// # Errors
    /// There can be no thread.
    pub(crate) fn start(place: &Path, id: &str) -> io::Result<Journal> {
        let shared = Arc::new(Shared::default());
        let (place, id, list) = (place.to_owned(), id.to_owned(), shared.clone());
        let write = move || {
            let result = keep(&place, &id, &list);
            // Who cannot write collects nothing, either.
            let mut list = list.lock();
            list.over = true;
            list.entries.clear();
            result
        };
        let thread = std::thread::Builder::new().name("isles-record".into()).spawn(write)?;
        Ok(Journal { shared, thread })
    }

    pub(crate) fn add(&self, entry: Entry) {
        let mut list = self.shared.lock();
        if list.over {
            // Whoever wrote has met an error, which is told at the end.
            return;
        }
        list.entries.push(entry);
        if list.entries.len() == 1 {
            drop(list);
            self.shared.wake.notify_one();
        }
    }

    /// Waits until all of it is written.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) fn end(self) -> Result<(), String> {
        self.shared.lock().over = true;
        self.shared.wake.notify_one();
        self.thread.join().unwrap_or_else(|_| Err("its writer has ended".into()))
    }
}

/// Writes what comes, until nothing more does.
fn keep(place: &Path, run: &str, list: &Shared) -> Result<(), String> {
    let database = record::open(place).map_err(|e| e.to_string())?;
    let mut tidied = false;
    // What is not written yet. Where the disk was full, that is tried again with what comes next.
    let mut steps = BTreeMap::new();
    let mut last_run = None;
    loop {
        let (entries, over) = list.wait();
        for entry in entries {
            match entry {
                Entry::Step(step) => drop(steps.insert(step.number, step)),
                Entry::Run(row) => last_run = Some(row),
            }
        }
        let written = write(&database, run, &steps, last_run.as_deref());
        if written.is_ok() {
            steps.clear();
            last_run = None;
        } else if !database.is_autocommit() {
            let _ = database.execute_batch("ROLLBACK");
        }
        if over {
            return written.and_then(|()| record::settle(&database, place)).map_err(|e| e.to_string());
        }
        if !std::mem::replace(&mut tidied, true) {
            forget_old_work(&database, place);
        }
    }
}

fn write(
    database: &Connection,
    run: &str,
    steps: &BTreeMap<u64, Box<StepRow>>,
    last: Option<&RunRow>,
) -> rusqlite::Result<()> {
    database.execute_batch("BEGIN IMMEDIATE")?;
    for step in steps.values() {
        record::write_step(database, run, step)?;
    }
    if let Some(row) = last {
        record::write_run(database, row)?;
    }
    database.execute_batch("COMMIT")
}

/// Removes the work of runs that failed long ago.
fn forget_old_work(database: &Connection, place: &Path) {
    let Ok(old) = record::left_before(database, now() - KEEP_WORK) else { return };
    for id in old {
        let folder = place.join(&id);
        let Ok(lock) = File::options().write(true).open(folder.join("lock")) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = crate::history::remove(&folder.join("work"));
        }
    }
}
