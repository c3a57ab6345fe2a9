//! Writes an archive whose bytes depend on its entries alone: ustar headers, with a pax header before those
//! that need more.

use std::io::{self, Write};

use super::{BLOCK, Entry, Kind, Segment};

/// An archive being written.
pub struct Writer<W> {
    output: W,
    /// Data still owed by the current entry.
    remaining: u64,
    padding: usize,
    entries: u64,
}

impl<W: Write> Writer<W> {
    pub fn new(output: W) -> Self {
        Writer { output, remaining: 0, padding: 0, entries: 0 }
    }

    /// What is written to.
    pub fn output(&self) -> &W {
        &self.output
    }

    /// Entries begun so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Writes an entry's headers. A file's data follows through [`Writer::data`], exactly `entry.size` bytes,
    /// or what the segments of a sparse file add up to (which is written in GNU's version 1.0).
    pub fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        if self.remaining != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file before has not all its data"));
        }
        let mut block = [0u8; BLOCK];
        let mut pax = Vec::new();
        let mut size = if entry.kind == Kind::File { entry.size } else { 0 };
        let map = match &entry.sparse {
            Some(map) if entry.kind == Kind::File => sparse_map(map),
            _ => Vec::new(),
        };
        if map.is_empty() {
            if !place_path(&mut block, &entry.path) {
                pax_record(&mut pax, b"path", &entry.path);
            }
        } else {
            pax_record(&mut pax, b"GNU.sparse.major", b"1");
            pax_record(&mut pax, b"GNU.sparse.minor", b"0");
            pax_record(&mut pax, b"GNU.sparse.name", &entry.path);
            pax_record(&mut pax, b"GNU.sparse.realsize", size.to_string().as_bytes());
            place_path(&mut block, &beside(b"GNUSparseFile.0/", &entry.path));
            let stored: u64 = entry.sparse.iter().flatten().map(|s| s.length).sum();
            size = map.len() as u64 + stored;
        }
        if entry.link.len() <= 100 {
            block[157..157 + entry.link.len()].copy_from_slice(&entry.link);
        } else {
            block[157..257].copy_from_slice(&entry.link[..100]);
            pax_record(&mut pax, b"linkpath", &entry.link);
        }
        octal(&mut block[100..108], u64::from(entry.mode & 0o7777));
        for (range, key, value) in [
            (108..116, &b"uid"[..], u64::from(entry.uid)),
            (116..124, b"gid", u64::from(entry.gid)),
            (124..136, b"size", size),
        ] {
            if !octal(&mut block[range], value) {
                pax_record(&mut pax, key, value.to_string().as_bytes());
            }
        }
        let (seconds, nanos) = entry.mtime;
        let fits = u64::try_from(seconds).is_ok_and(|s| octal(&mut block[136..148], s));
        if !fits || nanos != 0 {
            pax_record(&mut pax, b"mtime", time(seconds, nanos).as_bytes());
        }
        if !fits {
            octal(&mut block[136..148], 0);
        }
        let mut xattrs: Vec<_> = entry.xattrs.iter().collect();
        xattrs.sort();
        for (name, value) in xattrs {
            pax_record(&mut pax, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        block[156] = match entry.kind {
            Kind::File => b'0',
            Kind::Hardlink => b'1',
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::BlockDevice => b'4',
            Kind::Dir => b'5',
            Kind::Fifo => b'6',
        };
        octal(&mut block[329..337], u64::from(entry.device.0));
        octal(&mut block[337..345], u64::from(entry.device.1));
        if !pax.is_empty() {
            self.pax_header(entry, &pax)?;
        }
        seal(&mut block);
        self.output.write_all(&block)?;
        self.entries += 1;
        self.remaining = size;
        self.padding = padding(size);
        if map.is_empty() { self.pad() } else { self.data(&map) }
    }

    /// Writes some of the current file's data.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 > self.remaining {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more data than the file's size"));
        }
        self.output.write_all(bytes)?;
        self.remaining -= bytes.len() as u64;
        self.pad()
    }

    /// Data that the current file still owes.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Ends the archive with two zero blocks.
    pub fn finish(mut self) -> io::Result<W> {
        if self.remaining != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the last file has not all its data"));
        }
        self.output.write_all(&[0; 2 * BLOCK])?;
        Ok(self.output)
    }

    fn pad(&mut self) -> io::Result<()> {
        if self.remaining == 0 && self.padding > 0 {
            self.output.write_all(&[0; BLOCK][..self.padding])?;
            self.padding = 0;
        }
        Ok(())
    }

    fn pax_header(&mut self, entry: &Entry, records: &[u8]) -> io::Result<()> {
        let mut block = [0u8; BLOCK];
        let name = beside(b"PaxHeaders.0/", &entry.path);
        block[..name.len()].copy_from_slice(&name);
        octal(&mut block[100..108], 0o644);
        octal(&mut block[108..116], 0);
        octal(&mut block[116..124], 0);
        octal(&mut block[124..136], records.len() as u64);
        octal(&mut block[136..148], 0);
        block[156] = b'x';
        seal(&mut block);
        self.output.write_all(&block)?;
        self.output.write_all(records)?;
        self.output.write_all(&[0; BLOCK][..padding(records.len() as u64)])
    }
}

/// A name for readers that do not know an extension, in a folder of its own.
fn beside(folder: &[u8], path: &[u8]) -> Vec<u8> {
    let trimmed = path.strip_suffix(b"/").unwrap_or(path);
    let base = trimmed.rsplit(|b| *b == b'/').next().unwrap_or_default();
    [folder, &base[..base.len().min(80)]].concat()
}

/// The map of a sparse file as it stands before the data, padded to whole blocks.
fn sparse_map(map: &[Segment]) -> Vec<u8> {
    let mut text = format!("{}\n", map.len());
    for segment in map {
        text.push_str(&format!("{}\n{}\n", segment.offset, segment.length));
    }
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn padding(size: u64) -> usize {
    ((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64) as usize
}

/// Puts a path into name and prefix. `false` where it does not fit; then a part of it stands there for old
/// readers.
fn place_path(block: &mut [u8; BLOCK], path: &[u8]) -> bool {
    if path.len() <= 100 {
        block[..path.len()].copy_from_slice(path);
        return true;
    }
    // The slash between prefix and name is not stored; the name may not be empty.
    let split = path.iter().enumerate().position(|(i, b)| {
        *b == b'/' && i > 0 && i <= 155 && path.len() - i - 1 <= 100 && path.len() > i + 1
    });
    match split {
        Some(at) => {
            block[345..345 + at].copy_from_slice(&path[..at]);
            block[..path.len() - at - 1].copy_from_slice(&path[at + 1..]);
            true
        }
        None => {
            block[..100].copy_from_slice(&path[..100]);
            false
        }
    }
}

/// Writes digits and a NUL; zeros and `false` where the number is too large.
fn octal(field: &mut [u8], mut value: u64) -> bool {
    let digits = field.len() - 1;
    let fits = value < 1 << (3 * digits);
    if !fits {
        value = 0;
    }
    field[digits] = 0;
    for byte in field[..digits].iter_mut().rev() {
        *byte = b'0' + (value & 7) as u8;
        value >>= 3;
    }
    fits
}

/// Magic, version and checksum.
fn seal(block: &mut [u8; BLOCK]) {
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].copy_from_slice(b"        ");
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    octal(&mut block[148..155], sum);
    block[155] = b' ';
}

fn time(seconds: i64, nanos: u32) -> String {
    if seconds < 0 && nanos > 0 {
        // The fraction counts away from zero in this notation.
        let text = format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos);
        return text.trim_end_matches('0').to_owned();
    }
    if nanos == 0 {
        return seconds.to_string();
    }
    format!("{seconds}.{nanos:09}").trim_end_matches('0').to_owned()
}

/// One record, whose length counts its own digits.
pub(super) fn pax_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}
