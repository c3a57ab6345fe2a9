//! What a step said: a file that holds the beginning and the end of it, however much there was.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// So much of the beginning is kept.
const HEAD: u64 = 8 << 20;
/// And so much of the end.
const TAIL: usize = 64 << 10;

/// A log, made with its first byte.
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    head: u64,
    tail: VecDeque<u8>,
    left_out: u64,
    /// It cannot be written: once is enough to know.
    broken: bool,
}

impl Log {
    pub fn new(path: PathBuf) -> Log {
        Log { path, file: None, head: 0, tail: VecDeque::new(), left_out: 0, broken: false }
    }

    /// Adds to it. A log that cannot be written is no reason to end the step.
    pub fn add(&mut self, bytes: &[u8]) {
        if self.broken {
            return;
        }
        let room = HEAD.saturating_sub(self.head).min(bytes.len() as u64) as usize;
        let (head, tail) = bytes.split_at(room);
        if !head.is_empty() {
            self.head += head.len() as u64;
            self.write(head);
        }
        self.tail.extend(tail);
        let over = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..over);
        self.left_out += over as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.file.is_none() {
            self.file = File::create(&self.path).or_else(|_| self.in_new_folder()).ok();
        }
        self.broken = self.file.as_mut().is_none_or(|file| file.write_all(bytes).is_err());
    }

    fn in_new_folder(&self) -> std::io::Result<File> {
        self.path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        File::create(&self.path)
    }

    /// Writes the end. Says whether there is a log.
    pub fn end(mut self) -> bool {
        if self.left_out > 0 {
            let left_out = self.left_out;
            self.write(format!("\n… {left_out} bytes are left out here …\n").as_bytes());
        }
        let tail: Vec<u8> = std::mem::take(&mut self.tail).into();
        if !tail.is_empty() && !self.broken {
            self.write(&tail);
        }
        self.file.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_and_the_end_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        assert!(!Log::new(path.clone()).end());
        assert!(!path.exists());

        let path = folder.path().join("inner/log");
        let mut log = Log::new(path.clone());
        log.add(b"first ");
        for _ in 0..300 {
            log.add(&[b'x'; 64 << 10]);
        }
        log.add(b" last");
        assert!(log.end());
        let text = std::fs::read(&path).unwrap();
        assert!(text.starts_with(b"first x") && text.ends_with(b"x last"));
        assert!(text.len() < HEAD as usize + TAIL + 100);
        let total = 6 + 300 * (64 << 10) + 5;
        let left_out = total - HEAD as usize - TAIL;
        assert!(String::from_utf8_lossy(&text).contains(&format!("… {left_out} bytes are left out here …")));
    }
}
