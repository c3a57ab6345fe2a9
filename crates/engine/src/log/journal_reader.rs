//! Reads a log that the host's journal has, through journalctl(1), in systemd's "Journal Export Format".

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use isles_spec::time::{parse_rfc3339_nanoseconds, rfc3339_nanoseconds};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{LogEntry, Selection, Stream};
use crate::watch::Watch;

const PIECE: usize = 64 << 10;
/// An entry of ours has 16 KiB of text, and what goes along with it.
const LONGEST: usize = 8 << 20;
const SECOND: u64 = 1_000_000_000;

/// The reading end of such a log.
pub struct JournalReader<'a> {
    id: String,
    selection: Selection,
    lives: &'a dyn Fn() -> bool,
    watch: Option<Watch>,
    program: Program,
    /// It only gives what there is: nobody writes any more.
    last: bool,
    /// By what the journal knows the last entry.
    cursor: Option<String>,
    buffer: Vec<u8>,
    given: usize,
    entry: LogEntry,
}

/// journalctl, which ends with this.
struct Program {
    child: Child,
    out: ChildStdout,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> JournalReader<'a> {
    /// Opens the log of the container with this ID and folder.
    ///
    /// # Errors
    /// There is no journalctl.
    pub fn open(
        id: &str,
        folder: &Path,
        selection: Selection,
        lives: &'a dyn Fn() -> bool,
    ) -> io::Result<Self> {
        // Before anything is read, so that nothing falls between.
        let watch = if selection.follow { Some(Watch::folder(folder)?) } else { None };
        settle();
        let program = start(id, &selection, selection.follow, None)?;
        Ok(JournalReader {
            id: id.to_owned(),
            last: !selection.follow,
            selection,
            lives,
            watch,
            program,
            cursor: None,
            buffer: Vec::new(),
            given: 0,
            entry: LogEntry::default(),
        })
    }

    /// The next entry of those that have been read; `None` where there is none, which says nothing about the end.
    ///
    /// # Errors
    /// journalctl says what is no entry.
    pub fn next_ready(&mut self) -> io::Result<Option<&LogEntry>> {
        Ok(if self.take()? { Some(&self.entry) } else { None })
    }

    /// The next entry; `None` at the end, which for those who follow is when nobody writes any more.
    ///
    /// # Errors
    /// journalctl failed.
    pub fn next_entry(&mut self) -> io::Result<Option<&LogEntry>> {
        while !self.take()? {
            if self.fill()? {
                continue;
            }
            if self.last {
                return Ok(None);
            }
            // The rest of what was written, which the one that follows may not have told yet.
            settle();
            self.program = start(&self.id, &self.selection, false, self.cursor.as_deref())?;
            self.buffer.clear();
            self.given = 0;
            self.last = true;
        }
        Ok(Some(&self.entry))
    }

    /// Reads more. `false` at the end, or where nobody writes any more.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.given);
        self.given = 0;
        if self.buffer.len() > LONGEST {
            return Err(strange());
        }
        while !self.last && !self.wait()? {}
        let before = self.buffer.len();
        if !self.last && !self.is_ready()? {
            return Ok(false);
        }
        self.buffer.resize(before + PIECE, 0);
        let got = self.program.out.read(&mut self.buffer[before..]);
        self.buffer.truncate(before + *got.as_ref().unwrap_or(&0));
        if got? > 0 {
            return Ok(true);
        }
        if self.last {
            let status = self.program.child.wait()?;
            // It ends with 1 where nothing was found.
            if !status.success() && status.code() != Some(1) {
                return Err(io::Error::other(format!("journalctl ended with {status}")));
            }
        }
        Ok(false)
    }

    fn is_ready(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.program.out, PollFlags::IN)];
        Ok(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
    }

    /// Waits for more; `true` where there is some, or none will come.
    fn wait(&mut self) -> io::Result<bool> {
        // Asked before the last look.
        let lives = (self.lives)();
        let late = self.selection.until.is_some_and(|until| until < crate::record::now());
        if self.is_ready()? || !lives || late {
            return Ok(true);
        }
        let Some(watch) = &mut self.watch else { return Ok(true) };
        let left = self.selection.until.map(|until| until.saturating_sub(crate::record::now()));
        watch.wait_with(self.program.out.as_fd(), left.map(Duration::from_nanos))?;
        Ok(false)
    }

    /// Takes the next entry that is wanted out of the buffer. `false` where there is none.
    fn take(&mut self) -> io::Result<bool> {
        loop {
            let Some((length, cursor)) = parse(&self.buffer[self.given..], &mut self.entry)? else {
                return Ok(false);
            };
            self.given += length;
            self.cursor = cursor.or(self.cursor.take());
            let Selection { since, until, .. } = self.selection;
            let time = parse_rfc3339_nanoseconds(&self.entry.time);
            let early = since.is_some_and(|since| time.is_some_and(|time| time < since));
            let late = until.is_some_and(|until| time.is_some_and(|time| time > until));
            if !early && !late {
                return Ok(true);
            }
        }
    }
}

/// Lets the journal take in what it was sent before, where this user may say so.
fn settle() {
    let none = Stdio::null;
    let _ = Command::new("journalctl").arg("--sync").stdin(none()).stdout(none()).stderr(none()).status();
}

fn start(id: &str, selection: &Selection, follow: bool, after: Option<&str>) -> io::Result<Program> {
    let mut command = Command::new("journalctl");
    command
        .args(["--quiet", "--no-pager", "--all", "--output=export"])
        .arg(format!("CONTAINER_ID_FULL={id}"));
    match (after, selection.tail, selection.since) {
        (Some(cursor), ..) => drop(command.arg(format!("--after-cursor={cursor}"))),
        (None, Some(tail), _) => drop(command.arg(format!("--lines={tail}"))),
        // To the second: a time of ours may be a little before the journal's.
        (None, None, Some(since)) => {
            command.arg(format!("--since=@{}", since / SECOND));
        }
        (None, None, None) => {}
    }
    if follow {
        command.arg("--follow");
        if selection.tail.is_none() {
            command.arg("--no-tail");
        }
    }
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = spawned.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            e.kind(),
            "the host's journal has it, and there is no journalctl here (package systemd)",
        ),
        _ => e,
    })?;
    let out = child.stdout.take().ok_or_else(strange)?;
    Ok(Program { child, out })
}

fn strange() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "journalctl says what nobody understands")
}

/// Reads an entry: a line `NAME=value` for each field, or a line with the name, eight bytes of length, the value and the end
/// of a line; an empty line ends it. Returns its length and its cursor; `None` where not all of it is there.
fn parse(text: &[u8], entry: &mut LogEntry) -> io::Result<Option<(usize, Option<String>)>> {
    const OWN: [&str; 5] = ["MESSAGE", "PRIORITY", "IMAGE_NAME", "TID", "CODE_FILE"];
    let mut at = 0;
    let (mut message, mut time, mut received, mut cursor) = (&[][..], None, None, None);
    let (mut stream, mut whole) = (Stream::Stdout, true);
    entry.attributes.clear();
    loop {
        let Some(end) = memchr::memchr(b'\n', &text[at..]) else { return Ok(None) };
        let line = &text[at..at + end];
        at += end + 1;
        if line.is_empty() {
            // What stands between entries, where nothing came before it.
            if at == 1 {
                return Ok(parse(&text[1..], entry)?.map(|(length, cursor)| (length + 1, cursor)));
            }
            break;
        }
        let (name, value) = match memchr::memchr(b'=', line) {
            Some(equals) => (&line[..equals], &line[equals + 1..]),
            None => {
                let Some(length) = text[at..].first_chunk::<8>() else { return Ok(None) };
                let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
                if length > LONGEST {
                    return Err(strange());
                }
                let Some(value) = text.get(at + 8..at + 8 + length) else { return Ok(None) };
                match text.get(at + 8 + length) {
                    None => return Ok(None),
                    Some(b'\n') => at += 9 + length,
                    Some(_) => return Err(strange()),
                }
                (line, value)
            }
        };
        let name = std::str::from_utf8(name).map_err(|_| strange())?;
        let text = || String::from_utf8_lossy(value).into_owned();
        match name {
            "MESSAGE" => message = value,
            "PRIORITY" if value == b"3" => stream = Stream::Stderr,
            "CONTAINER_PARTIAL_MESSAGE" => whole = value != b"true",
            "SYSLOG_TIMESTAMP" => time = Some(text()),
            "__REALTIME_TIMESTAMP" => received = text().parse::<u64>().ok(),
            "__CURSOR" => cursor = Some(text()),
            _ if name.starts_with('_') || name.starts_with("CONTAINER_") || name.starts_with("SYSLOG_") => {}
            _ if OWN.contains(&name) => {}
            _ => drop(entry.attributes.insert(name.to_owned(), text())),
        }
    }
    entry.stream = stream;
    entry.time = time.unwrap_or_else(|| rfc3339_nanoseconds(received.unwrap_or(0).saturating_mul(1000)));
    entry.text.clear();
    entry.text.extend_from_slice(message);
    if whole {
        entry.text.push(b'\n');
    }
    Ok(Some((at, cursor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        let text = b"__CURSOR=s=1\n__REALTIME_TIMESTAMP=1500000\nPRIORITY=3\nMESSAGE=hello = you\nCONTAINER_ID=a\n\
                     COLOR=red\n_UID=0\n\n\
                     __CURSOR=s=2\nSYSLOG_TIMESTAMP=T\nMESSAGE\n\x03\0\0\0\0\0\0\0a\nb\nCONTAINER_PARTIAL_MESSAGE=true\nPRIORITY=6\n\n";
        let mut entry = LogEntry::default();
        let (first, cursor) = parse(text, &mut entry).unwrap().unwrap();
        assert_eq!(cursor.as_deref(), Some("s=1"));
        assert_eq!((entry.text.as_slice(), entry.stream), (&b"hello = you\n"[..], Stream::Stderr));
        assert_eq!(entry.time, "1970-01-01T00:00:01.5Z");
        assert_eq!(entry.attributes.iter().collect::<Vec<_>>(), [(&"COLOR".to_owned(), &"red".to_owned())]);
        let (second, _) = parse(&text[first..], &mut entry).unwrap().unwrap();
        assert_eq!((entry.text.as_slice(), entry.stream), (&b"a\nb"[..], Stream::Stdout));
        assert_eq!((entry.time.as_str(), entry.attributes.len()), ("T", 0));
        assert_eq!(first + second, text.len());
        // In any pieces.
        for end in 0..first {
            assert!(parse(&text[..end], &mut entry).unwrap().is_none(), "{end}");
        }
        for end in first..text.len() {
            assert!(parse(&text[first..end], &mut entry).unwrap().is_none(), "{end}");
        }
        assert_eq!(parse(b"\nMESSAGE=x\n\n", &mut entry).unwrap().unwrap().0, 12);
    }

    #[test]
    fn what_is_no_entry() {
        for text in [
            &b"MESSAGE\n\xff\xff\xff\xff\xff\xff\xff\xffabc"[..],
            b"MESSAGE\n\x01\0\0\0\0\0\0\0ab\n",
            b"\xff=1\n\n",
        ] {
            assert!(parse(text, &mut LogEntry::default()).is_err(), "{text:?}");
        }
    }
}
