//! Reads a log, from any place, across files that are put aside meanwhile, and goes on with what is written later.
//!
//! A file that was opened is read to its end whatever it is called by then. Which one comes after it is found by inode
//! numbers ([`super::chain`]): the writer lets go of a file before the next one is there, so whoever sees the next one and then
//! reads the former to its end has missed nothing.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use isles_spec::time::parse_rfc3339_nanoseconds;

use super::chain::{Ahead, Chain};
use super::{Stream, entry};
use crate::watch::Watch;

pub use entry::Entry as LogEntry;

/// No entry is longer: the longest part of a line, each byte written as six, and once more as base64.
const LONGEST: usize = 512 << 10;
const PIECE: usize = 128 << 10;

/// Which entries are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Not before this time, in nanoseconds since 1970.
    pub since: Option<u64>,
    /// Not after this time.
    pub until: Option<u64>,
    /// Only so many of the newest ones there are when reading begins.
    pub tail: Option<u64>,
    /// Go on with those that are written later.
    pub follow: bool,
}

/// The reading end of a container's log.
pub struct LogReader<'a> {
    selection: Selection,
    /// Whether somebody may write more.
    lives: &'a dyn Fn() -> bool,
    watch: Option<Watch>,
    /// Those that come after the one that is read.
    later: Ahead,
    current: Option<File>,
    buffer: Vec<u8>,
    /// How much of the buffer was given out.
    given: usize,
    /// The last one that was read.
    entry: LogEntry,
}

impl<'a> LogReader<'a> {
    /// Opens the log in a container's folder.
    pub fn open(folder: &Path, selection: Selection, lives: &'a dyn Fn() -> bool) -> io::Result<Self> {
        // Before anything is read, so that nothing falls between.
        let watch = if selection.follow { Some(Watch::folder(folder)?) } else { None };
        let mut later = Chain::open(folder, selection.follow)?;
        if let Some(tail) = selection.tail {
            let mut files = later.take();
            skip(&mut files, tail)?;
            later.set(files);
        }
        let current = later.next()?;
        let later = Ahead::new(later)?;
        Ok(LogReader {
            selection,
            lives,
            watch,
            later,
            current,
            buffer: Vec::new(),
            given: 0,
            entry: LogEntry::default(),
        })
    }

    /// The next of the entries that have been read from the file; `None` where there is none, which says nothing about the
    /// end.
    pub fn next_ready(&mut self) -> io::Result<Option<&LogEntry>> {
        match memchr::memchr(b'\n', &self.buffer[self.given..]) {
            Some(_) => self.next_entry(),
            None => Ok(None),
        }
    }

    /// The next entry; `None` at the end, which for those who follow is when nobody writes any more.
    pub fn next_entry(&mut self) -> io::Result<Option<&LogEntry>> {
        Ok(if self.find()? { Some(&self.entry) } else { None })
    }

    /// Reads the next entry that is wanted. `false` at the end.
    fn find(&mut self) -> io::Result<bool> {
        loop {
            while self.line() {
                let Selection { since, until, .. } = self.selection;
                if since.is_none() && until.is_none() {
                    return Ok(true);
                }
                let time = parse_rfc3339_nanoseconds(&self.entry.time);
                if since.is_some_and(|since| time.is_some_and(|time| time < since)) {
                    continue;
                }
                return Ok(until.is_none_or(|until| time.is_none_or(|time| time <= until)));
            }
            if self.fill()? || self.advance()? {
                continue;
            }
            if !self.selection.follow || self.is_late() {
                return Ok(false);
            }
            // Asked before the last look.
            let lives = (self.lives)();
            if self.fill()? || self.advance()? {
                continue;
            }
            if !lives {
                return Ok(false);
            }
            let left = self.selection.until.map(|until| until.saturating_sub(crate::record::now()));
            if let Some(watch) = &mut self.watch {
                watch.wait(left.map(std::time::Duration::from_nanos))?;
            }
        }
    }

    /// Whether entries that come now are too late.
    fn is_late(&self) -> bool {
        self.selection.until.is_some_and(|until| until < crate::record::now())
    }

    /// Takes the next entry out of the buffer. `false` where there is none.
    fn line(&mut self) -> bool {
        loop {
            let rest = &self.buffer[self.given..];
            let Some(at) = memchr::memchr(b'\n', rest) else { return false };
            self.given += at + 1;
            // What a killed monitor left of an entry, or others wrote, is none.
            if entry::read(&rest[..at], &mut self.entry).is_some() {
                return true;
            }
        }
    }

    /// Reads on in the current file. `false` at its end.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.given);
        self.given = 0;
        // Nobody of ours wrote that.
        if self.buffer.len() > LONGEST {
            self.buffer.clear();
        }
        let Some(current) = &mut self.current else { return Ok(false) };
        let before = self.buffer.len();
        self.buffer.resize(before + PIECE, 0);
        let got = current.read(&mut self.buffer[before..]);
        self.buffer.truncate(before + *got.as_ref().unwrap_or(&0));
        Ok(got? > 0)
    }

    /// Goes over to the next file, where there is one and the current one has ended.
    fn advance(&mut self) -> io::Result<bool> {
        let Some(next) = self.later.chain().next()? else { return Ok(false) };
        // Files that lie before another one are not written any more.
        if self.current.is_some() && self.fill()? {
            self.later.chain().put_back(next);
        } else {
            self.begin(next);
        }
        Ok(true)
    }

    fn begin(&mut self, file: File) {
        self.current = Some(file);
        // Half an entry at the end of a file stays half.
        self.buffer.clear();
        self.given = 0;
    }
}

/// Leaves out all but the last `tail` entries of files that are sorted newest first, and sets the oldest one left to where
/// they begin.
fn skip(files: &mut Vec<File>, mut tail: u64) -> io::Result<()> {
    if tail == 0 {
        files.truncate(1);
        return files.first_mut().map_or(Ok(()), |file| file.seek(SeekFrom::End(0)).map(drop));
    }
    let mut piece = vec![0u8; PIECE];
    for number in 0..files.len() {
        let length = files[number].metadata()?.len();
        let mut end = length;
        while end > 0 {
            let begin = end.saturating_sub(PIECE as u64);
            let part = &mut piece[..(end - begin) as usize];
            files[number].read_exact_at(part, begin)?;
            for at in memchr::memrchr_iter(b'\n', part) {
                let place = begin + at as u64 + 1;
                // The last line's own end begins no line.
                if place == length {
                    continue;
                }
                tail -= 1;
                if tail == 0 {
                    files[number].seek(SeekFrom::Start(place))?;
                    files.truncate(number + 1);
                    return Ok(());
                }
            }
            end = begin;
        }
        // The first line of a file has no other one's end before it.
        if length > 0 {
            tail -= 1;
            if tail == 0 {
                files.truncate(number + 1);
                return Ok(());
            }
        }
    }
    Ok(())
}

impl Stream {
    /// Whether it is standard error.
    pub fn is_stderr(self) -> bool {
        self == Stream::Stderr
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use isles_spec::LogOptions;

    use super::super::file;
    use super::super::writer::Writer;
    use super::*;
    use crate::log::About;

    fn all(reader: &mut LogReader<'_>) -> Vec<String> {
        std::iter::from_fn(|| reader.next_entry().unwrap().cloned())
            .map(|entry| String::from_utf8(entry.text).unwrap().trim_end().to_owned())
            .collect()
    }

    fn small() -> LogOptions {
        LogOptions { max_size: 64 << 10, max_file: 3, ..LogOptions::default() }
    }

    #[test]
    fn the_newest_and_those_of_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), &small(), &About::default()).unwrap();
        for number in 0..2000u64 {
            writer.write(Stream::Stdout, format!("{number}\n").as_bytes(), number * 1_000_000_007).unwrap();
        }
        assert!(file(dir.path(), 1).exists());
        let read = |selection| all(&mut LogReader::open(dir.path(), selection, &|| false).unwrap());
        let everything = read(Selection::default());
        assert_eq!((everything.len(), everything[1999].as_str()), (2000, "1999"));
        for tail in [0, 1, 2, 999, 1999, 2000, 5000] {
            let found = read(Selection { tail: Some(tail), ..Selection::default() });
            assert_eq!(found, everything[2000 - tail.min(2000) as usize..], "{tail}");
        }
        let (since, until) = (Some(10 * 1_000_000_007), Some(20 * 1_000_000_007));
        assert_eq!(read(Selection { since, until, ..Selection::default() }), everything[10..=20]);
        assert!(read(Selection { until: Some(0), tail: Some(3), ..Selection::default() }).is_empty());
    }

    #[test]
    fn who_follows_misses_nothing_and_sees_nothing_twice() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), &small(), &About::default()).unwrap();
        let next = Cell::new(0);
        let writer = std::cell::RefCell::new(&mut writer);
        // It is asked when all has been read: then more comes, now and then with several files at once.
        let lives = || {
            let from = next.get();
            if from >= 20_000 {
                return false;
            }
            let step = if from % 7 == 0 { 900 } else { 3 };
            for number in from..from + step {
                writer.borrow_mut().write(Stream::Stdout, format!("{number}\n").as_bytes(), 1).unwrap();
            }
            next.set(from + step);
            true
        };
        let selection = Selection { follow: true, ..Selection::default() };
        let found = all(&mut LogReader::open(dir.path(), selection, &lives).unwrap());
        let expected: Vec<String> = (0..next.get()).map(|number| number.to_string()).collect();
        assert_eq!(found.len(), expected.len());
        assert_eq!(found, expected);
    }

    /// However slow it is, and however few files are kept.
    #[test]
    fn a_slow_follower_misses_nothing() {
        for max_file in [1, 2, 3] {
            let dir = tempfile::tempdir().unwrap();
            let options = LogOptions { max_file, ..small() };
            let mut writer = Writer::open(dir.path(), &options, &About::default()).unwrap();
            let done = std::sync::atomic::AtomicBool::new(false);
            let lives = || !done.load(std::sync::atomic::Ordering::SeqCst);
            let selection = Selection { follow: true, ..Selection::default() };
            let mut reader = LogReader::open(dir.path(), selection, &lives).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for number in 0..20_000 {
                        writer.write(Stream::Stdout, format!("{number}\n").as_bytes(), 1).unwrap();
                    }
                    done.store(true, std::sync::atomic::Ordering::SeqCst);
                    // Where the follower waits already.
                    writer.write(Stream::Stdout, b"end\n", 1).unwrap();
                });
                for number in 0..20_000 {
                    if number % 1000 == 0 {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                    let entry = reader.next_entry().unwrap().unwrap();
                    assert_eq!(entry.text, format!("{number}\n").as_bytes(), "{max_file} files");
                }
            });
        }
    }

    #[test]
    fn there_may_be_no_log() {
        let dir = tempfile::tempdir().unwrap();
        let read = |selection| all(&mut LogReader::open(dir.path(), selection, &|| false).unwrap());
        assert!(read(Selection::default()).is_empty());
        assert!(read(Selection { follow: true, tail: Some(1), ..Selection::default() }).is_empty());
    }
}
