//! Makes the tables behind the data, in the order in which Linux wants them: inodes, directories, fragments,
//! inodes by number, owners, attributes.

use std::io::Write;

use super::Options;
use super::data::{Packed, Stored};
use super::pack::Packer;
use super::scan::{Record, Scanned, refused};
use crate::dir::RUN;
use crate::error::{Error, Result};
use crate::inode::{FileType, InodeRef, NOTHING};
use crate::meta::{BLOCK, RAW};
use crate::xattr::PREFIXES;

/// Positions of what was written, in the image.
pub(super) struct Tables {
    pub root: InodeRef,
    pub directories: u64,
    pub fragments: u64,
    pub exports: Option<u64>,
    pub owners: u64,
    pub xattrs: Option<u64>,
}

/// Writes on, and knows where in the image.
pub(super) struct Sink<'a, W> {
    pub out: &'a mut W,
    pub at: u64,
}

impl<W: Write> Sink<'_, W> {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::Write)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// A table in the making.
struct Stream {
    packer: Packer,
    packed: Vec<u8>,
    /// Where each block begins in `packed`.
    blocks: Vec<u64>,
    block: Vec<u8>,
}

impl Stream {
    fn new(options: &Options) -> Stream {
        Stream {
            packer: Packer::new(options.compression),
            packed: Vec::new(),
            blocks: Vec::new(),
            block: Vec::with_capacity(BLOCK),
        }
    }

    /// Where the next byte goes: the position of its block, and the offset in it.
    fn place(&self) -> (u64, u16) {
        (self.packed.len() as u64, self.block.len() as u16)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            if self.block.len() == BLOCK {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let packed = self.packer.pack(&self.block).map_err(Error::Write)?;
        let (body, raw) = match &packed {
            Some(packed) => (packed, 0),
            None => (&self.block, RAW),
        };
        self.blocks.push(self.packed.len() as u64);
        self.packed.extend_from_slice(&(body.len() as u16 | raw).to_le_bytes());
        self.packed.extend_from_slice(body);
        self.block.clear();
        Ok(())
    }

    /// Writes the table and behind it the index of its blocks; where the index is.
    fn finish_indexed<W: Write>(mut self, sink: &mut Sink<'_, W>, head: &[u8]) -> Result<u64> {
        self.flush()?;
        let start = sink.at;
        sink.write(&self.packed)?;
        let index = sink.at;
        sink.write(head)?;
        for block in &self.blocks {
            sink.write(&(start + block).to_le_bytes())?;
        }
        Ok(index)
    }
}

pub(super) fn write<W: Write>(
    scanned: &Scanned,
    packed: &Packed,
    sink: &mut Sink<'_, W>,
    options: &Options,
) -> Result<Tables> {
    let mut trees = Trees {
        scanned,
        packed,
        inodes: Stream::new(options),
        dirs: Stream::new(options),
        places: vec![None; scanned.records.len()],
        listings: vec![Listing::default(); scanned.records.len()],
    };
    // Backwards, so that what is in a directory is there before the directory.
    for dir in scanned.dirs.iter().rev() {
        for child in scanned.records[*dir as usize].children.clone() {
            trees.inode(scanned.records[child as usize].first)?;
        }
        trees.directory(*dir)?;
    }
    trees.inode(0)?;
    let Some(root) = trees.places[0] else { unreachable!("it was set in the line above") };
    let Trees { mut inodes, mut dirs, places, .. } = trees;
    inodes.flush()?;
    sink.write(&inodes.packed)?;
    let directories = sink.at;
    dirs.flush()?;
    sink.write(&dirs.packed)?;

    let mut stream = Stream::new(options);
    for (at, word) in &packed.fragments {
        stream.write(&at.to_le_bytes())?;
        stream.write(&word.to_le_bytes())?;
        stream.write(&[0; 4])?;
    }
    let fragments = stream.finish_indexed(sink, &[])?;

    let mut exports = None;
    if options.exportable {
        let mut stream = Stream::new(options);
        // Numbers were given in the order of first names.
        for place in places.iter().flatten() {
            stream.write(&place.raw().to_le_bytes())?;
        }
        exports = Some(stream.finish_indexed(sink, &[])?);
    }

    let mut stream = Stream::new(options);
    for owner in &scanned.owners {
        stream.write(&owner.to_le_bytes())?;
    }
    let owners = stream.finish_indexed(sink, &[])?;
    let xattrs = xattrs(scanned, sink, options)?;
    Ok(Tables { root, directories, fragments, exports, owners, xattrs })
}

fn xattrs<W: Write>(scanned: &Scanned, sink: &mut Sink<'_, W>, options: &Options) -> Result<Option<u64>> {
    if scanned.xattrs.is_empty() {
        return Ok(None);
    }
    let mut values = Stream::new(options);
    let mut lists = Stream::new(options);
    for list in &scanned.xattrs {
        let (block, offset) = values.place();
        // Names with their prefixes and NULs, and values, as mksquashfs counts them.
        let size: usize = list.iter().map(|(name, value)| name.len() + 1 + value.len()).sum();
        lists.write(&(block << 16 | u64::from(offset)).to_le_bytes())?;
        lists.write(&(list.len() as u32).to_le_bytes())?;
        lists.write(&(size as u32).to_le_bytes())?;
        for (name, value) in list {
            let Some(kind) = PREFIXES.iter().position(|prefix| name.starts_with(prefix)) else {
                unreachable!("lists with other attributes were refused")
            };
            let name = &name[PREFIXES[kind].len()..];
            values.write(&(kind as u16).to_le_bytes())?;
            values.write(&(name.len() as u16).to_le_bytes())?;
            values.write(name)?;
            values.write(&(value.len() as u32).to_le_bytes())?;
            values.write(value)?;
        }
    }
    values.flush()?;
    let start = sink.at;
    sink.write(&values.packed)?;
    let mut head = start.to_le_bytes().to_vec();
    head.extend((scanned.xattrs.len() as u32).to_le_bytes());
    head.extend([0; 4]);
    lists.finish_indexed(sink, &head).map(Some)
}

/// Where a directory's listing is.
#[derive(Debug, Clone, Default)]
struct Listing {
    block: u64,
    offset: u16,
    bytes: u64,
    /// Runs that begin in another block than the one before: position in the listing, block, first name.
    index: Vec<(u64, u64, Box<[u8]>)>,
}

/// Inodes and directories, which refer to each other.
struct Trees<'a> {
    scanned: &'a Scanned,
    packed: &'a Packed,
    inodes: Stream,
    dirs: Stream,
    /// By record, where the inode is; of first names only.
    places: Vec<Option<InodeRef>>,
    listings: Vec<Listing>,
}

impl Trees<'_> {
    /// Writes an inode that is not there yet.
    fn inode(&mut self, n: u32) -> Result<()> {
        if self.places[n as usize].is_some() {
            return Ok(());
        }
        let (block, offset) = self.inodes.place();
        // Directories have 32 bits for it.
        if block > u64::from(u32::MAX) {
            return refused(&self.scanned.path(n), "the tree has too many files");
        }
        self.places[n as usize] = Some(InodeRef::new(block, offset));
        let record = &self.scanned.records[n as usize];
        let mut out = Vec::with_capacity(64);
        match record.file_type {
            FileType::Dir => self.dir_inode(n, record, &mut out)?,
            FileType::File => file_inode(record, self.packed.of(n), &mut out),
            kind => {
                head(&mut out, record, kind.number() + if record.xattrs == NOTHING { 0 } else { 7 });
                word(&mut out, record.nlink);
                match kind {
                    FileType::Symlink => {
                        word(&mut out, record.target.len() as u32);
                        out.extend_from_slice(&record.target);
                    }
                    FileType::BlockDevice | FileType::CharDevice => {
                        let (major, minor) = record.device;
                        word(&mut out, (minor & 0xff) | major << 8 | (minor & !0xff) << 12);
                    }
                    _ => {}
                }
                if record.xattrs != NOTHING {
                    word(&mut out, record.xattrs);
                }
            }
        }
        self.inodes.write(&out)
    }

    fn dir_inode(&mut self, n: u32, record: &Record, out: &mut Vec<u8>) -> Result<()> {
        let listing = std::mem::take(&mut self.listings[n as usize]);
        // The root's parent is a number that no inode has, as mksquashfs has it.
        let parent = match n {
            0 => self.scanned.inodes + 1,
            _ => self.scanned.records[record.parent as usize].number,
        };
        // Three more for `.` and `..`.
        let size = listing.bytes + 3;
        if listing.block > u64::from(u32::MAX) || size > u64::from(u32::MAX) {
            return refused(&self.scanned.path(n), "its listing is too large");
        }
        let block = listing.block as u32;
        if record.xattrs == NOTHING && listing.index.is_empty() && size <= u64::from(u16::MAX) {
            head(out, record, 1);
            word(out, block);
            word(out, record.nlink);
            half(out, size as u16);
            half(out, listing.offset);
            word(out, parent);
            return Ok(());
        }
        head(out, record, 8);
        word(out, record.nlink);
        word(out, size as u32);
        word(out, block);
        word(out, parent);
        // A listing of 4 GiB has 2^19 blocks; an index may have gaps.
        let step = listing.index.len().div_ceil(usize::from(u16::MAX)).max(1);
        let index: Vec<_> = listing.index.iter().step_by(step).collect();
        half(out, index.len() as u16);
        half(out, listing.offset);
        word(out, record.xattrs);
        for (position, block, name) in index {
            word(out, *position as u32);
            word(out, *block as u32);
            word(out, name.len() as u32 - 1);
            out.extend_from_slice(name);
        }
        Ok(())
    }

    /// Writes the listing of a directory whose children have their inodes.
    fn directory(&mut self, n: u32) -> Result<()> {
        let (block, offset) = self.dirs.place();
        let mut listing = Listing { block, offset, ..Listing::default() };
        let mut last_block = block;
        let children = self.scanned.records[n as usize].children.clone();
        let mut at = children.start;
        while at < children.end {
            let (run_block, _) = self.dirs.place();
            if run_block != last_block {
                let name = self.scanned.records[at as usize].name.clone();
                listing.index.push((listing.bytes, run_block, name));
                last_block = run_block;
            }
            let (run, next) = self.run(at, children.end);
            self.dirs.write(&run)?;
            listing.bytes += run.len() as u64;
            at = next;
        }
        self.listings[n as usize] = listing;
        Ok(())
    }

    /// The run of names that begins with a record, and the first record behind it: names whose inodes are in
    /// one block and whose numbers are near each other.
    fn run(&self, from: u32, end: u32) -> (Vec<u8>, u32) {
        let (first, base) = self.target(from);
        let mut out = Vec::new();
        let mut at = from;
        while at < end && at - from < RUN {
            let (place, number) = self.target(at);
            let delta = i64::from(number) - i64::from(base);
            let record = &self.scanned.records[at as usize];
            let size = out.len() + 8 + record.name.len();
            let Ok(delta) = i16::try_from(delta) else { break };
            if place.block() != first.block() || (size > BLOCK && at > from) {
                break;
            }
            half(&mut out, place.offset());
            half(&mut out, delta.cast_unsigned());
            half(&mut out, record.file_type.number());
            half(&mut out, record.name.len() as u16 - 1);
            out.extend_from_slice(&record.name);
            at += 1;
        }
        let mut run = Vec::with_capacity(out.len() + 12);
        word(&mut run, at - from - 1);
        word(&mut run, first.block() as u32);
        word(&mut run, base);
        run.extend(out);
        (run, at)
    }

    fn target(&self, record: u32) -> (InodeRef, u32) {
        let record = &self.scanned.records[record as usize];
        let Some(place) = self.places[record.first as usize] else {
            unreachable!("inodes are written before the directories that name them")
        };
        (place, record.number)
    }
}

fn file_inode(record: &Record, stored: &Stored, out: &mut Vec<u8>) {
    let (fragment, offset) = stored.fragment.unwrap_or((NOTHING, 0));
    let basic = (u32::try_from(stored.start), u32::try_from(record.size));
    match basic {
        (Ok(start), Ok(size)) if record.nlink == 1 && record.xattrs == NOTHING && stored.sparse == 0 => {
            head(out, record, 2);
            word(out, start);
            word(out, fragment);
            word(out, offset);
            word(out, size);
        }
        _ => {
            head(out, record, 9);
            out.extend_from_slice(&stored.start.to_le_bytes());
            out.extend_from_slice(&record.size.to_le_bytes());
            out.extend_from_slice(&stored.sparse.to_le_bytes());
            word(out, record.nlink);
            word(out, fragment);
            word(out, offset);
            word(out, record.xattrs);
        }
    }
    for size in &stored.words {
        word(out, *size);
    }
}

fn head(out: &mut Vec<u8>, record: &Record, kind: u16) {
    for value in [kind, record.mode, record.uid, record.gid] {
        half(out, value);
    }
    word(out, record.mtime);
    word(out, record.number);
}

fn half(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn word(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}
