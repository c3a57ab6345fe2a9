//! The progress of pulls and builds, as lines on standard error.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use isles_spec::Progress;

use crate::talk::{Level, Talk};

/// Says what begins and what fails; output of programs is passed on.
#[derive(Debug)]
pub struct Lines {
    talk: Talk,
    last: AtomicU64,
    names: Mutex<HashMap<u64, String>>,
}

impl Lines {
    pub fn new(talk: Talk) -> Lines {
        Lines { talk, last: AtomicU64::new(0), names: Mutex::default() }
    }
}

impl Progress for Lines {
    fn begin(&self, what: &str, _total: Option<u64>) -> u64 {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.talk.verbose(what);
        if let Ok(mut names) = self.names.lock() {
            names.insert(id, what.to_owned());
        }
        id
    }

    fn advance(&self, _id: u64, _bytes: u64) {}

    fn status(&self, _id: u64, text: &str) {
        self.talk.debug(text);
    }

    fn end(&self, id: u64, text: &str) {
        let name = self.names.lock().ok().and_then(|mut names| names.remove(&id));
        self.talk.verbose(&format!("{}: {text}", name.unwrap_or_default()));
    }

    fn output(&self, _id: u64, bytes: &[u8]) {
        if self.talk.level() >= Level::Info {
            let _ = std::io::stderr().lock().write_all(bytes);
        }
    }
}
