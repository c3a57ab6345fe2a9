//! What happens to containers, as lines of a file below the state directory: written by whoever does it, in one write each, and
//! read by anyone, from any time on. When the file is full it is put aside, and the one before goes.
//!
//! An event is docker's (docker engine API, "Monitor events"), with the fields of old and new versions.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::record::{Record, age, now};
use crate::watch::Watch;

/// Bytes of a file.
const FULL: u64 = 1 << 20;
/// No event of ours is longer.
const LONGEST: u64 = 64 << 10;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub status: String,
    pub id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    #[serde(rename = "Type")]
    pub kind: String,
    #[serde(rename = "Action")]
    pub action: String,
    #[serde(rename = "Actor")]
    pub actor: Actor,
    #[serde(default)]
    pub scope: String,
    /// Seconds since 1970.
    pub time: u64,
    /// Nanoseconds since 1970.
    #[serde(rename = "timeNano")]
    pub time_nano: u64,
}

/// What it happened to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

impl Engine {
    /// Notes what has happened to a container. It is not worth a failure where that cannot be done.
    pub(crate) fn note(&self, record: &Record, action: &str, more: &[(&str, String)]) {
        let mut attributes = record.workload.labels.clone();
        attributes.insert("image".into(), record.image.clone());
        attributes.insert("name".into(), record.name.clone());
        attributes.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let time = now();
        let event = Event {
            status: action.to_owned(),
            id: record.id.clone(),
            from: record.image.clone(),
            kind: "container".into(),
            action: action.to_owned(),
            actor: Actor { id: record.id.clone(), attributes },
            scope: "local".into(),
            time: time / 1_000_000_000,
            time_nano: time,
        };
        let _ = append(&place(self.store.root(), 0), &event);
    }

    /// Notes the end of a container's program.
    pub(crate) fn note_end(&self, record: &Record, code: u8, out_of_memory: bool, pid_start: Option<u64>) {
        if out_of_memory {
            self.note(record, "oom", &[]);
        }
        let lasted = pid_start.map(age).unwrap_or_default().as_secs();
        self.note(record, "die", &[("exitCode", code.to_string()), ("execDuration", lasted.to_string())]);
    }

    /// Tells of events between two times, in nanoseconds since 1970, one after the other until `tell` says `false`. Without
    /// an end those that come later are waited for.
    pub fn events(
        &self,
        since: Option<u64>,
        until: Option<u64>,
        tell: &mut dyn FnMut(&Event) -> bool,
    ) -> Result<()> {
        let root = self.store.root();
        let failed = |e| Error::file("read the events in", root, e);
        // Who asks for nothing gets what happens from now on.
        let since = since.unwrap_or_else(now);
        let mut watch = Watch::folder(root).map_err(failed)?;
        let mut files: Vec<File> = Vec::new();
        for number in [1, 0] {
            files.extend(open(&place(root, number)).map_err(failed)?);
        }
        let mut reader = Reader { files, line: Vec::new() };
        loop {
            while let Some(event) = reader.next().map_err(failed)? {
                if event.time_nano < since {
                    continue;
                }
                if until.is_some_and(|until| event.time_nano > until) || !tell(&event) {
                    return Ok(());
                }
            }
            let left = until.map(|until| until.saturating_sub(now()));
            if left == Some(0) {
                return Ok(());
            }
            reader.take_new(root).map_err(failed)?;
            watch.wait(left.map(Duration::from_nanos)).map_err(failed)?;
            reader.take_new(root).map_err(failed)?;
        }
    }
}

impl Engine {
    /// The exit code with which a container ended last, as far as events remember.
    pub(crate) fn noted_end(&self, id: &str) -> Option<u8> {
        let mut code = None;
        let ends = &mut |event: &Event| {
            if event.id == id && event.action == "die" {
                code = event.actor.attributes.get("exitCode").and_then(|code| code.parse().ok());
            }
            true
        };
        // What cannot be read remembers nothing.
        let _ = self.events(Some(0), Some(now()), ends);
        code
    }
}

fn place(root: &Path, number: u32) -> PathBuf {
    match number {
        0 => root.join("events"),
        n => root.join(format!("events.{n}")),
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn append(path: &Path, event: &Event) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    loop {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        flock(&file, FlockOperation::LockShared)?;
        let found = file.metadata()?;
        if found.nlink() == 0 || std::fs::metadata(path)?.ino() != found.ino() {
            // Put aside between the two.
            continue;
        }
        if found.len() > FULL {
            flock(&file, FlockOperation::LockExclusive)?;
            if std::fs::metadata(path)?.ino() == found.ino() {
                std::fs::rename(path, path.with_extension("1"))?;
            }
            continue;
        }
        return file.write_all(&line);
    }
}

struct Reader {
    /// To be read, the oldest first.
    files: Vec<File>,
    /// The beginning of a line that has not come as a whole.
    line: Vec<u8>,
}

impl Reader {
    fn next(&mut self) -> io::Result<Option<Event>> {
        while let Some(file) = self.files.first_mut() {
            let at = io::Seek::stream_position(file)?;
            let mut reader = BufReader::new(&mut *file);
            self.line.clear();
            let n = io::Read::take(&mut reader, LONGEST).read_until(b'\n', &mut self.line)?;
            drop(reader);
            if self.line.last() == Some(&b'\n') {
                io::Seek::seek(file, io::SeekFrom::Start(at + n as u64))?;
                if let Ok(event) = serde_json::from_slice(&self.line) {
                    return Ok(Some(event));
                }
                continue;
            }
            // Half a line comes as a whole later, or never.
            io::Seek::seek(file, io::SeekFrom::Start(at))?;
            if self.files.len() == 1 {
                return Ok(None);
            }
            self.files.remove(0);
        }
        Ok(None)
    }

    /// Goes on with a file that has taken the place of the last one.
    fn take_new(&mut self, root: &Path) -> io::Result<()> {
        let Some(current) = open(&place(root, 0))? else { return Ok(()) };
        let number = current.metadata()?.ino();
        let known = match self.files.last() {
            Some(last) => last.metadata()?.ino() == number,
            None => false,
        };
        if !known {
            self.files.push(current);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_put_aside_and_read_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = place(dir.path(), 0);
        let event = |number: u64| Event {
            status: "start".into(),
            id: "x".repeat(64),
            from: String::new(),
            kind: "container".into(),
            action: "start".into(),
            actor: Actor::default(),
            scope: "local".into(),
            time: number,
            time_nano: number,
        };
        append(&path, &event(0)).unwrap();
        let mut reader = Reader { files: vec![File::open(&path).unwrap()], line: Vec::new() };
        let mut next = 0;
        for number in 1..9000 {
            append(&path, &event(number)).unwrap();
            if number % 700 == 0 {
                reader.take_new(dir.path()).unwrap();
                while let Some(found) = reader.next().unwrap() {
                    assert_eq!(found.time, next);
                    next += 1;
                }
            }
        }
        assert!(place(dir.path(), 1).exists() && next > 8000);
        assert!(std::fs::metadata(place(dir.path(), 1)).unwrap().len() < FULL + LONGEST);
        // Half a line, and one that is none.
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"nonsense\n{\"half").unwrap();
        while reader.next().unwrap().is_some() {}
        assert!(reader.next().unwrap().is_none());
    }
}
