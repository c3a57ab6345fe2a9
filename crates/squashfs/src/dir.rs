//! Directories: sorted names in runs of up to 256 that share a block of inodes, and a coarse index.

use std::cmp::Ordering;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::image::Image;
use crate::inode::{Body, DirBody, FileType, Inode, InodeRef};
use crate::meta::{self, Place, Reader};

/// Entries in a run.
pub(crate) const RUN: u32 = 256;
/// Linux's NAME_MAX.
pub(crate) const NAME_MAX: usize = 255;
/// A cursor is the position of a run in the listing, and the number of an entry in the run in these bits.
const RUN_BITS: u32 = 9;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Not empty, not `.` or `..`, without `/` and NUL.
    pub name: Vec<u8>,
    pub inode: InodeRef,
    pub number: u32,
    pub file_type: FileType,
    /// The cursor of what follows; never 0.
    pub next: u64,
}

/// Where listings were read last, so that going on there costs nothing, however long the listing.
#[derive(Debug, Default)]
pub(crate) struct Resume(Mutex<[Option<(DirKey, Spot)>; 16]>);

type DirKey = (u32, u16);

/// A run of a listing: its position in the listing, and its place in the image.
type Spot = (u32, Place);

impl Resume {
    fn slot(key: DirKey) -> usize {
        (key.0.wrapping_mul(31).wrapping_add(u32::from(key.1)) % 16) as usize
    }

    fn get(&self, key: DirKey) -> Option<Spot> {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots[Resume::slot(key)].filter(|(known, _)| *known == key).map(|(_, spot)| spot)
    }

    fn put(&self, key: DirKey, spot: Spot) {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots[Resume::slot(key)] = Some((key, spot));
    }
}

/// The entries of a directory from a cursor on, in the order of their bytes.
pub struct ReadDir<'a> {
    image: &'a Image,
    key: DirKey,
    reader: Option<Reader<'a>>,
    /// Bytes of the listing, and how many of them were read.
    listing: u32,
    read: u32,
    /// The run that is being read: where it began, entries of it that were read, and all of them.
    run: u32,
    done: u32,
    count: u32,
    block: u32,
    base: u32,
    /// The name read last, and what belongs to it.
    name: Vec<u8>,
    inode: InodeRef,
    number: u32,
    file_type: FileType,
}

impl Image {
    /// Lists a directory. `cursor` is 0 for the beginning, or the [`Entry::next`] of an entry, of this reader
    /// or an earlier one.
    pub fn read_dir(&self, dir: &Inode, cursor: u64) -> Result<ReadDir<'_>> {
        let body = dir_body(dir)?;
        let target = u32::try_from(cursor >> RUN_BITS).unwrap_or(u32::MAX);
        if target >= body.listing {
            return Ok(ReadDir::new(self, body, None, body.listing));
        }
        let spot = self.spot_before(body, target)?;
        let mut reader = Reader::new(self, self.superblock.directory_region(), spot.1)?;
        reader.skip(u64::from(target - spot.0))?;
        let mut list = ReadDir::new(self, body, Some(reader), target);
        for _ in 0..cursor & ((1 << RUN_BITS) - 1) {
            if !list.advance()? {
                break;
            }
        }
        Ok(list)
    }

    /// Finds a name in a directory.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<Entry>> {
        let body = dir_body(dir)?;
        if body.listing == 0 || name.len() > NAME_MAX {
            return Ok(None);
        }
        let mut spot = self.first_spot(body)?;
        self.scan_index(body, |start, first| {
            let before = first <= name;
            if before {
                spot = start;
            }
            before
        })?;
        let reader = Reader::new(self, self.superblock.directory_region(), spot.1)?;
        let mut list = ReadDir::new(self, body, Some(reader), spot.0);
        while list.advance()? {
            match list.name.as_slice().cmp(name) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(Some(list.entry())),
                Ordering::Greater => break,
            }
        }
        Ok(None)
    }

    fn first_spot(&self, body: &DirBody) -> Result<Spot> {
        // A position of 32 bits behind one that is inside of the image.
        let block = self.superblock.directory_table + u64::from(body.block);
        Ok((0, Place { block, offset: body.offset }))
    }

    /// The nearest known run at or before a position of the listing.
    fn spot_before(&self, body: &DirBody, target: u32) -> Result<Spot> {
        if target == 0 {
            return self.first_spot(body);
        }
        let key = (body.block, body.offset);
        if let Some(spot) = self.resume.get(key).filter(|spot| spot.0 <= target) {
            return Ok(spot);
        }
        let mut best = self.first_spot(body)?;
        self.scan_index(body, |start, _| {
            let before = start.0 <= target;
            if before {
                best = start;
            }
            before
        })?;
        Ok(best)
    }

    /// Shows the index's runs with their first names, until `more` says no.
    fn scan_index(&self, body: &DirBody, mut more: impl FnMut(Spot, &[u8]) -> bool) -> Result<()> {
        let (entries, place) = body.index;
        if entries == 0 {
            return Ok(());
        }
        let mut r = Reader::new(self, self.superblock.inode_region(), place)?;
        let mut last = 0;
        let mut name = Vec::new();
        for _ in 0..entries {
            let (position, block, len) = (r.u32()?, r.u32()?, r.u32()?);
            if position < last || position >= body.listing {
                return r.damaged("the index of a directory is not in order");
            }
            if len as usize >= NAME_MAX {
                return r.damaged(format!("a name of {} bytes", u64::from(len) + 1));
            }
            last = position;
            name.resize(len as usize + 1, 0);
            r.fill(&mut name)?;
            let offset = (u64::from(position) + u64::from(body.offset)) % meta::BLOCK as u64;
            let block = self.superblock.directory_table + u64::from(block);
            if !more((position, Place { block, offset: offset as u16 }), &name) {
                break;
            }
        }
        Ok(())
    }
}

fn dir_body(inode: &Inode) -> Result<&DirBody> {
    match &inode.body {
        Body::Dir(body) => Ok(body),
        _ => Err(Error::Kind { number: inode.number, wanted: "directory" }),
    }
}

impl<'a> ReadDir<'a> {
    fn new(image: &'a Image, body: &DirBody, reader: Option<Reader<'a>>, read: u32) -> ReadDir<'a> {
        ReadDir {
            image,
            key: (body.block, body.offset),
            reader,
            listing: body.listing,
            read,
            run: read,
            done: 0,
            count: 0,
            block: 0,
            base: 0,
            name: Vec::new(),
            inode: InodeRef::from_raw(0),
            number: 0,
            file_type: FileType::Dir,
        }
    }

    /// Reads the next entry; false at the end.
    fn advance(&mut self) -> Result<bool> {
        let Some(r) = self.reader.as_mut() else { return Ok(false) };
        if self.done == self.count {
            if self.read == self.listing {
                return Ok(false);
            }
            // Where a block ends, the run's place is in the next one.
            r.chunk()?;
            let place = r.place();
            if self.listing - self.read < 12 {
                return r.damaged("a directory is cut short");
            }
            let count = r.u32()?;
            if count >= RUN {
                return r.damaged(format!("a run of {} names", u64::from(count) + 1));
            }
            (self.block, self.base) = (r.u32()?, r.u32()?);
            (self.run, self.done, self.count) = (self.read, 0, count + 1);
            self.read += 12;
            if self.run > 0 {
                self.image.resume.put(self.key, (self.run, place));
            }
        }
        let mut raw = [0; 8];
        r.fill(&mut raw)?;
        let half = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        let len = usize::from(half(6)) + 1;
        if len > NAME_MAX {
            return r.damaged(format!("a name of {len} bytes"));
        }
        if u64::from(self.listing - self.read) < 8 + len as u64 {
            return r.damaged("a directory is cut short");
        }
        self.read += 8 + len as u32;
        let mut name = [0; NAME_MAX];
        let name = &mut name[..len];
        r.fill(name)?;
        if matches!(&*name, b"." | b"..") || name.iter().any(|b| matches!(b, b'/' | 0)) {
            return r.damaged(format!("a file cannot have the name '{}'", name.escape_ascii()));
        }
        if &*name <= self.name.as_slice() {
            return r.damaged(format!("the name '{}' is out of order or twice", name.escape_ascii()));
        }
        let Some(file_type) = FileType::from_number(half(4)) else {
            return r.damaged(format!("a file of the unknown type {}", half(4)));
        };
        self.name.clear();
        self.name.extend_from_slice(name);
        self.inode = InodeRef::new(u64::from(self.block), half(0));
        self.number = self.base.wrapping_add_signed(i32::from(half(2).cast_signed()));
        self.file_type = file_type;
        self.done += 1;
        Ok(true)
    }

    /// What was read last.
    fn entry(&self) -> Entry {
        let next = if self.done < self.count {
            u64::from(self.run) << RUN_BITS | u64::from(self.done)
        } else {
            u64::from(self.read) << RUN_BITS
        };
        Entry {
            name: self.name.clone(),
            inode: self.inode,
            number: self.number,
            file_type: self.file_type,
            next,
        }
    }
}

impl Iterator for ReadDir<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        match self.advance() {
            Ok(true) => Some(Ok(self.entry())),
            Ok(false) => None,
            // What follows damage is not to be trusted.
            Err(e) => {
                self.reader = None;
                Some(Err(e))
            }
        }
    }
}
