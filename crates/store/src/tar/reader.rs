//! Reads an archive from any buffered stream. File data is handed out as slices of the stream's own buffer.

use std::io::{self, BufRead};

use super::header::{Block, Format, check, is_zero, number, signed, text};
use super::pax::{Fields, id};
use super::sparse::{self, LineParser};
use super::{BLOCK, Entry, Error, Kind, ReadLimits, malformed};

/// An archive being read.
///
/// It ends at the first two zero blocks, as GNU tar and Docker have it, or where the stream ends after a
/// whole entry. What follows is not looked at, unless [`Reader::concatenated`] says otherwise.
pub struct Reader<R> {
    input: R,
    limits: ReadLimits,
    globals: Fields,
    has_globals: bool,
    /// Stored data of the current entry that has not been read.
    remaining: u64,
    padding: u64,
    entries: u64,
    concatenated: bool,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    pub fn new(input: R, limits: ReadLimits) -> Self {
        Reader {
            input,
            limits,
            globals: Fields::default(),
            has_globals: false,
            remaining: 0,
            padding: 0,
            entries: 0,
            concatenated: false,
            ended: false,
        }
    }

    /// Reads on behind zero blocks (GNU tar's `--ignore-zeros`), for archives that were joined.
    pub fn concatenated(mut self, yes: bool) -> Self {
        self.concatenated = yes;
        self
    }

    /// Entries read so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The stream that is read; between entries it stands at the data of the last one.
    pub(crate) fn input(&self) -> &R {
        &self.input
    }

    /// The stream behind the archive, to read what follows it.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Reads the next entry's metadata into `entry`; `false` at the end. Data of the entry before that was
    /// not read is skipped.
    pub fn next(&mut self, entry: &mut Entry) -> Result<bool, Error> {
        if self.ended {
            return Ok(false);
        }
        self.skip(self.remaining + self.padding)?;
        (self.remaining, self.padding) = (0, 0);
        entry.clear();
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        let mut fields: Option<Fields> = None;
        let mut extended = false;
        loop {
            let mut block = [0; BLOCK];
            let got = self.read_up_to(&mut block)?;
            if got == 0 || (got == BLOCK && is_zero(&block) && self.at_end()?) {
                if extended {
                    return malformed("the archive ends after an extended header");
                }
                self.ended = true;
                return Ok(false);
            }
            if got < BLOCK {
                return malformed("the archive is cut short in a header");
            }
            if is_zero(&block) {
                continue;
            }
            let format = check(&block)?;
            let flag = block[156];
            match flag {
                b'x' | b'X' => {
                    let data = self.extension(&block, self.limits.pax, "a pax header")?;
                    let mut parsed = fields.take().unwrap_or_else(|| Fields::over(&self.globals));
                    parsed.parse(&data, &self.limits)?;
                    fields = Some(parsed);
                }
                b'g' => {
                    let data = self.extension(&block, self.limits.pax, "a pax header")?;
                    self.globals.parse(&data, &self.limits)?;
                    self.has_globals = true;
                    continue;
                }
                b'L' => long_name = Some(self.long_text(&block)?),
                b'K' => long_link = Some(self.long_text(&block)?),
                // A volume label is not a file.
                b'V' => {
                    let size = number(&block[124..136], "size")?;
                    self.skip(padded(size)?)?;
                    continue;
                }
                _ => {
                    self.entries += 1;
                    if self.entries > self.limits.entries {
                        return Err(Error::Limit {
                            what: "the number of entries".into(),
                            limit: self.limits.entries,
                        });
                    }
                    let fields = match fields {
                        Some(fields) => Some(fields),
                        None if self.has_globals => Some(self.globals.clone()),
                        None => None,
                    };
                    self.fill(entry, &block, format, long_name, long_link, fields)?;
                    return Ok(true);
                }
            }
            extended = true;
        }
    }

    /// The next slice of the entry's stored data; empty at its end. [`Reader::consume`] says how much of it
    /// was used.
    pub fn data(&mut self) -> Result<&[u8], Error> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        // Two calls, because a borrow that is returned from a loop would last for the whole loop.
        loop {
            match self.input.fill_buf() {
                Ok([]) => return malformed("the archive is cut short in a file"),
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        let available = self.input.fill_buf()?;
        let n = available.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        Ok(&available[..n])
    }

    /// Marks the first `n` bytes of the slice that [`Reader::data`] gave as used.
    pub fn consume(&mut self, n: usize) {
        debug_assert!(n as u64 <= self.remaining);
        self.input.consume(n);
        self.remaining -= n as u64;
    }

    /// Stored data of the entry that has not been read. Less than its size for sparse files.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Reads all data of the entry, which may not have more than `limit` bytes.
    pub fn read_all(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        if self.remaining > limit as u64 {
            return Err(Error::Limit { what: "the size of a file".into(), limit: limit as u64 });
        }
        let mut out = Vec::with_capacity(self.remaining as usize);
        loop {
            let slice = self.data()?;
            if slice.is_empty() {
                return Ok(out);
            }
            out.extend_from_slice(slice);
            let n = slice.len();
            self.consume(n);
        }
    }

    fn fill(
        &mut self,
        entry: &mut Entry,
        block: &Block,
        format: Format,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        fields: Option<Fields>,
    ) -> Result<(), Error> {
        let flag = block[156];
        match long_name {
            Some(name) => entry.path = name,
            None => {
                let prefix = if format == Format::Ustar { text(&block[345..500]) } else { &[] };
                if !prefix.is_empty() {
                    entry.path.extend_from_slice(prefix);
                    entry.path.push(b'/');
                }
                entry.path.extend_from_slice(text(&block[..100]));
            }
        }
        match long_link {
            Some(link) => entry.link = link,
            None => entry.link.extend_from_slice(text(&block[157..257])),
        }
        entry.mode = (number(&block[100..108], "mode")? & 0o7777) as u32;
        entry.mtime = (signed(&block[136..148], "time")?, 0);
        let mut size = number(&block[124..136], "size")?;
        let owner = fields.as_ref().map(Fields::has_owner).unwrap_or((false, false));
        // What a pax header overrides may stand as nonsense in the block.
        entry.uid = if owner.0 { 0 } else { id(number(&block[108..116], "uid")?, "uid")? };
        entry.gid = if owner.1 { 0 } else { id(number(&block[116..124], "gid")?, "gid")? };
        let mut sparse_fields = None;
        if let Some(mut fields) = fields {
            fields.apply(entry);
            size = fields.size.unwrap_or(size);
            sparse_fields = Some(fields.sparse);
        }
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return malformed("a path contains a NUL byte");
        }
        entry.kind = match flag {
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' | b'D' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => {
                let what = if other.is_ascii_graphic() {
                    char::from(other).to_string()
                } else {
                    format!("{other:#x}")
                };
                return malformed(format!("'{}' has the unknown type {what}", super::display(&entry.path)));
            }
        };
        // Only files, and GNU's directories with a list of names, are followed by data.
        self.remaining = if entry.kind == Kind::File || flag == b'D' { size } else { 0 };
        self.padding = padded(self.remaining)? - self.remaining;
        if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            let part = |field: &[u8], what| number(field, what).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
            entry.device =
                (part(&block[329..337], "device number")?, part(&block[337..345], "device number")?);
        }
        if entry.kind != Kind::File {
            return Ok(());
        }
        entry.size = size;
        if flag == b'S' {
            self.old_sparse(entry, block)?;
        } else if let Some(sparse) = sparse_fields
            && (sparse.map.is_some() || sparse.map_in_data)
        {
            self.pax_sparse(entry, sparse)?;
        }
        if entry.path.ends_with(b"/") && flag != b'S' {
            // As archives from before ustar mark directories.
            entry.kind = Kind::Dir;
            entry.size = 0;
        }
        Ok(())
    }

    /// Old GNU format: the map starts in the header and goes on in extension blocks.
    fn old_sparse(&mut self, entry: &mut Entry, block: &Block) -> Result<(), Error> {
        let mut map = Vec::new();
        sparse::parse_old(&mut map, &block[386..482], &self.limits)?;
        let mut more = block[482] != 0;
        while more {
            let mut extension = [0; BLOCK];
            self.read_exactly(&mut extension)?;
            sparse::parse_old(&mut map, &extension[..504], &self.limits)?;
            more = extension[504] != 0;
        }
        entry.size = number(&block[483..495], "size of a sparse file")?;
        // GNU tar ends the map with an empty segment at the file's end.
        sparse::check(&map, entry.size, self.remaining)?;
        entry.sparse = Some(map);
        Ok(())
    }

    fn pax_sparse(&mut self, entry: &mut Entry, fields: super::pax::SparseFields) -> Result<(), Error> {
        let map = if fields.map_in_data {
            let mut parser = LineParser::default();
            loop {
                if self.remaining < BLOCK as u64 {
                    return malformed("a sparse map is cut short");
                }
                let mut block = [0; BLOCK];
                self.read_exactly(&mut block)?;
                self.remaining -= BLOCK as u64;
                if parser.feed(&block, &self.limits)? {
                    break parser.map;
                }
            }
        } else {
            fields.map.unwrap_or_default()
        };
        if let Some(name) = fields.name {
            if name.contains(&0) || name.len() > self.limits.path {
                return malformed("a sparse file has an invalid name");
            }
            entry.path = name;
        }
        entry.size = fields.real_size.unwrap_or(entry.size);
        sparse::check(&map, entry.size, self.remaining)?;
        entry.sparse = Some(map);
        Ok(())
    }

    /// The data of an extension header, with its padding read.
    fn extension(&mut self, block: &Block, limit: usize, what: &str) -> Result<Vec<u8>, Error> {
        let size = number(&block[124..136], "size")?;
        if size > limit as u64 {
            return Err(Error::Limit { what: format!("the size of {what}"), limit: limit as u64 });
        }
        let mut data = vec![0; size as usize];
        self.read_exactly(&mut data)?;
        self.skip(padded(size)? - size)?;
        Ok(data)
    }

    fn long_text(&mut self, block: &Block) -> Result<Vec<u8>, Error> {
        let mut data = self.extension(block, self.limits.path + 1, "a long name")?;
        let end = text(&data).len();
        data.truncate(end);
        Ok(data)
    }

    /// After a zero block: whether the archive is over.
    fn at_end(&mut self) -> Result<bool, Error> {
        if self.concatenated {
            return Ok(false);
        }
        let mut block = [0; BLOCK];
        match self.read_up_to(&mut block)? {
            BLOCK if !is_zero(&block) => malformed("a header follows a single zero block"),
            _ => Ok(true),
        }
    }

    fn read_exactly(&mut self, out: &mut [u8]) -> Result<(), Error> {
        if self.read_up_to(out)? == out.len() { Ok(()) } else { malformed("the archive is cut short") }
    }

    fn read_up_to(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let mut filled = 0;
        while filled < out.len() {
            match self.input.read(&mut out[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(filled)
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), Error> {
        while bytes > 0 {
            let available = match self.input.fill_buf() {
                Ok(slice) => slice.len(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.into()),
            };
            if available == 0 {
                return malformed("the archive is cut short in a file");
            }
            let n = available.min(usize::try_from(bytes).unwrap_or(usize::MAX));
            self.input.consume(n);
            bytes -= n as u64;
        }
        Ok(())
    }
}

fn padded(size: u64) -> Result<u64, Error> {
    match size.checked_next_multiple_of(BLOCK as u64) {
        Some(n) => Ok(n),
        None => malformed("a header has a size that is too large"),
    }
}
