//! Writes a log: splits what comes into lines, and puts the file aside when it is full.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use isles_spec::time::rfc3339_nanoseconds;
use isles_spec::{LogDriver, LogOptions};

use super::chain::wait_for_followers;
use super::entry::Said;
use super::journal::Journal;
use super::{About, Stream, entry, file};

/// A line that is longer is written in several entries, as docker and containerd have it.
const LONGEST: usize = 16 << 10;
/// So much is written at once.
const PIECE: usize = 64 << 10;

/// The writing end of a container's log.
#[derive(Debug)]
pub(crate) struct Writer {
    folder: PathBuf,
    options: LogOptions,
    /// `None` for drivers without files.
    file: Option<File>,
    /// Where one file is kept, the one before it.
    gone: Option<File>,
    /// Where the host's journal has the log.
    journal: Option<Journal>,
    /// What goes along with each entry of a file.
    attributes: Vec<u8>,
    /// Bytes in the file.
    size: u64,
    /// The beginnings of lines that have not ended.
    begun: [Vec<u8>; 2],
    out: Vec<u8>,
    /// Bytes of the program's that could not be written since the last entry that could, and why.
    lost: u64,
    reason: String,
}

impl Writer {
    /// Goes on with the log of a container. What a killed monitor left of an entry is cut off.
    pub(crate) fn open(folder: &Path, options: &LogOptions, about: &About) -> io::Result<Writer> {
        let mut writer = Writer {
            folder: folder.to_owned(),
            options: options.clone(),
            file: None,
            gone: None,
            journal: None,
            attributes: entry::attributes(&about.attributes),
            size: 0,
            begun: Default::default(),
            out: Vec::new(),
            lost: 0,
            reason: String::new(),
        };
        if options.driver == LogDriver::Journald {
            writer.journal = Some(Journal::open(about)?);
        }
        if matches!(options.driver, LogDriver::JsonFile | LogDriver::Cri) {
            let file = writer.create()?;
            writer.size = whole(&file)?;
            file.set_len(writer.size)?;
            (&file).seek(SeekFrom::End(0))?;
            writer.file = Some(file);
        }
        Ok(writer)
    }

    /// Whether anything is kept of what it gets.
    pub(crate) fn keeps(&self) -> bool {
        self.file.is_some() || self.journal.is_some()
    }

    /// Takes what the program has printed, at a time in nanoseconds since 1970. What cannot be written is lost, since the
    /// program must go on; how much that was is said by an entry as soon as there is room for it.
    ///
    /// # Errors
    /// The disk is full, or worse.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8], time: u64) -> io::Result<()> {
        if !self.keeps() {
            return Ok(());
        }
        let written = self.tell_of_losses(time).and_then(|()| self.take(stream, bytes, time));
        if let Err(e) = &written {
            self.lost += bytes.len() as u64;
            self.reason = e.to_string();
        }
        written
    }

    fn tell_of_losses(&mut self, time: u64) -> io::Result<()> {
        if self.lost == 0 {
            return Ok(());
        }
        let text = format!("isles: {} bytes of output were lost here: {}", self.lost, self.reason);
        let time = rfc3339_nanoseconds(time);
        self.add(Said { stream: Stream::Stderr, time: &time, text: text.as_bytes(), whole: true })?;
        self.flush()?;
        self.lost = 0;
        Ok(())
    }

    fn take(&mut self, stream: Stream, bytes: &[u8], time: u64) -> io::Result<()> {
        let time = rfc3339_nanoseconds(time);
        let begun = match stream {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        };
        let mut rest = bytes;
        while let Some(at) = memchr::memchr(b'\n', rest) {
            let (line, after) = (&rest[..at], &rest[at + 1..]);
            rest = after;
            if self.begun[begun].is_empty() && line.len() <= LONGEST {
                self.add(Said { stream, time: &time, text: line, whole: true })?;
            } else {
                self.begin(begun, stream, &time, line)?;
                let line = std::mem::take(&mut self.begun[begun]);
                self.add(Said { stream, time: &time, text: &line, whole: true })?;
            }
            if self.out.len() >= PIECE {
                self.flush()?;
            }
        }
        self.begin(begun, stream, &time, rest)?;
        self.flush()
    }

    fn add(&mut self, said: Said<'_>) -> io::Result<()> {
        match &mut self.journal {
            Some(journal) => journal.send(said)?,
            None => entry::write(&mut self.out, self.options.driver, said, &self.attributes),
        }
        Ok(())
    }

    /// Keeps the beginning of a line, and writes what is too long to be kept.
    fn begin(&mut self, begun: usize, stream: Stream, time: &str, mut text: &[u8]) -> io::Result<()> {
        while self.begun[begun].len() + text.len() > LONGEST {
            let room = LONGEST - self.begun[begun].len();
            self.begun[begun].extend_from_slice(&text[..room]);
            text = &text[room..];
            let part = std::mem::take(&mut self.begun[begun]);
            self.add(Said { stream, time, text: &part, whole: false })?;
            if self.out.len() >= PIECE {
                self.flush()?;
            }
        }
        self.begun[begun].extend_from_slice(text);
        Ok(())
    }

    /// Writes lines that nobody ended.
    pub(crate) fn finish(&mut self, time: u64) -> io::Result<()> {
        self.tell_of_losses(time)?;
        let time = rfc3339_nanoseconds(time);
        for (begun, stream) in [(0, Stream::Stdout), (1, Stream::Stderr)] {
            let part = std::mem::take(&mut self.begun[begun]);
            if !part.is_empty() {
                self.add(Said { stream, time: &time, text: &part, whole: false })?;
            }
        }
        self.flush()
    }

    /// Writes whole entries: all of them, or, where that fails, none.
    fn flush(&mut self) -> io::Result<()> {
        let mut out = std::mem::take(&mut self.out);
        let written = self.put(&out);
        if out.capacity() > 2 * PIECE {
            out = Vec::new();
        }
        out.clear();
        self.out = out;
        written
    }

    fn put(&mut self, mut entries: &[u8]) -> io::Result<()> {
        while !entries.is_empty() {
            let room = usize::try_from(self.options.max_size.saturating_sub(self.size)).unwrap_or(usize::MAX);
            // As many whole entries as fit, and one at least in a file.
            let piece = match entries.len() <= room {
                true => entries.len(),
                false => match memchr::memrchr(b'\n', &entries[..room.min(entries.len())]) {
                    Some(at) => at + 1,
                    None if self.size == 0 => {
                        memchr::memchr(b'\n', entries).map_or(entries.len(), |at| at + 1)
                    }
                    None => {
                        self.rotate()?;
                        continue;
                    }
                },
            };
            let Some(file) = &mut self.file else { return Ok(()) };
            if let Err(e) = file.write_all(&entries[..piece]) {
                // Half an entry would spoil the next one too.
                let _ = file.set_len(self.size).and_then(|()| file.seek(SeekFrom::Start(self.size)));
                return Err(e);
            }
            self.size += piece as u64;
            entries = &entries[piece..];
        }
        Ok(())
    }

    /// Puts the file aside, and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let last = self.options.max_file - 1;
        // Whoever has opened nothing after the one that goes would miss the next that does.
        match last {
            0 => self.gone.iter().for_each(wait_for_followers),
            _ => File::open(file(&self.folder, last)).iter().for_each(wait_for_followers),
        }
        for number in (0..last).rev() {
            match std::fs::rename(file(&self.folder, number), file(&self.folder, number + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        if last == 0 {
            // A new file, so that readers see that they are at the end of the old one.
            std::fs::remove_file(file(&self.folder, 0))?;
            self.gone = self.file.take();
        }
        self.file = Some(self.create()?);
        self.size = 0;
        Ok(())
    }

    fn create(&self) -> io::Result<File> {
        let path = file(&self.folder, 0);
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(path)
    }
}

/// The bytes of a file up to the end of its last whole line.
fn whole(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut piece = [0u8; 4096];
    while end > 0 {
        let begin = end.saturating_sub(piece.len() as u64);
        let part = &mut piece[..(end - begin) as usize];
        file.read_exact_at(part, begin)?;
        if let Some(at) = memchr::memrchr(b'\n', part) {
            return Ok(begin + at as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path, number: u32) -> Vec<entry::Entry> {
        let text = std::fs::read(file(folder, number)).unwrap_or_default();
        text.split_inclusive(|b| *b == b'\n')
            .map(|line| {
                let mut entry = entry::Entry::default();
                entry::read(line.strip_suffix(b"\n").unwrap(), &mut entry).unwrap();
                entry
            })
            .collect()
    }

    #[test]
    fn lines_are_put_together() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), &LogOptions::default(), &About::default()).unwrap();
        for piece in ["a", "b\nc\n", "", "\n", "d"] {
            writer.write(Stream::Stdout, piece.as_bytes(), 1).unwrap();
        }
        writer.write(Stream::Stderr, b"other\n", 2).unwrap();
        writer.finish(3).unwrap();
        let texts: Vec<Vec<u8>> = written(dir.path(), 0).into_iter().map(|e| e.text).collect();
        assert_eq!(texts, [&b"ab\n"[..], b"c\n", b"\n", b"other\n", b"d"]);
    }

    #[test]
    fn long_lines_are_parts() {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions { driver: LogDriver::Cri, ..LogOptions::default() };
        let mut writer = Writer::open(dir.path(), &options, &About::default()).unwrap();
        let long = vec![b'x'; 3 * LONGEST + 5];
        for piece in long.chunks(1000) {
            writer.write(Stream::Stdout, piece, 1).unwrap();
        }
        writer.write(Stream::Stdout, b"\nend\n", 1).unwrap();
        let entries = written(dir.path(), 0);
        let lengths: Vec<usize> = entries.iter().map(|e| e.text.len()).collect();
        assert_eq!(lengths, [LONGEST, LONGEST, LONGEST, 6, 4]);
        assert!(entries[3].text.ends_with(b"x\n"));
        // All at once.
        writer.write(Stream::Stdout, &[&long[..], b"\n"].concat(), 1).unwrap();
        assert_eq!(written(dir.path(), 0).len(), 9);
    }

    #[test]
    fn full_files_are_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions { max_size: 64 << 10, max_file: 3, ..LogOptions::default() };
        let mut writer = Writer::open(dir.path(), &options, &About::default()).unwrap();
        for number in 0..5000 {
            writer.write(Stream::Stdout, format!("line {number}\n").as_bytes(), 1).unwrap();
        }
        let mut all = Vec::new();
        for number in (0..3).rev() {
            assert!(std::fs::metadata(file(dir.path(), number)).unwrap().len() <= 64 << 10);
            all.extend(written(dir.path(), number));
        }
        assert!(!file(dir.path(), 3).exists());
        let first = 5000 - all.len();
        for (at, entry) in all.iter().enumerate() {
            assert_eq!(entry.text, format!("line {}\n", first + at).as_bytes());
        }
        // An entry that is larger than a file may be is written all the same.
        writer.write(Stream::Stdout, &[b"\x01".repeat(LONGEST), b"\n".to_vec()].concat(), 1).unwrap();
        assert_eq!(written(dir.path(), 0).last().unwrap().text.len(), LONGEST + 1);
    }

    #[test]
    fn half_an_entry_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        for (left, whole) in [("", 0), ("{\"log\":", 0), ("T stdout F a\nT std", 1)] {
            std::fs::write(file(dir.path(), 0), left).unwrap();
            let mut writer = Writer::open(dir.path(), &LogOptions::default(), &About::default()).unwrap();
            writer.write(Stream::Stdout, b"next\n", 1).unwrap();
            let entries = written(dir.path(), 0);
            assert_eq!(entries.len(), whole + 1, "{left}");
            assert_eq!(entries[whole].text, b"next\n");
        }
    }

    #[test]
    fn what_is_lost_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), &LogOptions::default(), &About::default()).unwrap();
        writer.write(Stream::Stdout, b"one\n", 1).unwrap();
        let kept = writer.file.take();
        // A full disk.
        writer.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
        assert!(writer.write(Stream::Stdout, b"two\n", 2).is_err());
        assert!(writer.write(Stream::Stdout, b"three\n", 3).is_err());
        writer.file = kept;
        writer.write(Stream::Stdout, b"four\n", 4).unwrap();
        let texts: Vec<Vec<u8>> = written(dir.path(), 0).into_iter().map(|e| e.text).collect();
        let texts: Vec<String> = texts.into_iter().map(|t| String::from_utf8(t).unwrap()).collect();
        assert_eq!((texts.len(), texts[0].as_str(), texts[2].as_str()), (3, "one\n", "four\n"), "{texts:?}");
        assert!(texts[1].contains("10 bytes of output were lost") && texts[1].contains("No space left"));
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions { driver: LogDriver::None, ..LogOptions::default() };
        let mut writer = Writer::open(dir.path(), &options, &About::default()).unwrap();
        writer.write(Stream::Stdout, b"a\n", 1).unwrap();
        assert!(!file(dir.path(), 0).exists());
    }
}
