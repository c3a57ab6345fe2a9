//! Packs what files hold. One thread reads and writes in the order of the tree; the others compress.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, Read, Seek, Write};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::pack::Packer;
use super::scan::{Scanned, refused, source};
use super::{Fragments, Options};
use crate::data::RAW;
use crate::error::{Error, Result};
use crate::inode::{FileType, NOTHING};
use crate::tree::Tree;

/// Larger files are read twice rather than held, when they may be duplicates.
const HELD: u64 = 1 << 20;
/// Blocks on their way, for each thread, and bytes of them, unless the threads had too little to do.
const WINDOW: usize = 4;
const WINDOW_BYTES: usize = 64 << 20;
/// More would only wait for the one that reads.
const THREADS_MAX: usize = 128;
/// What inodes have room for: 16 TiB in blocks of 128 KiB, as much as the reader allows.
const BLOCKS_MAX: u64 = 1 << 27;

/// Where the content of a file is.
#[derive(Debug, Clone, Default)]
pub(super) struct Stored {
    pub start: u64,
    /// Sizes of the blocks as they are written in inodes.
    pub words: Vec<u32>,
    /// Number and offset, where the end is in a fragment.
    pub fragment: Option<(u32, u32)>,
    pub sparse: u64,
}

/// All data.
pub(super) struct Packed {
    stored: Vec<Stored>,
    /// By record, the index of what is stored; for regular files under their first names.
    index: Vec<u32>,
    /// Position and size as written.
    pub fragments: Vec<(u64, u32)>,
    /// Where the data ends in the image.
    pub end: u64,
    pub duplicates: u64,
}

impl Packed {
    pub(super) fn of(&self, record: u32) -> &Stored {
        &self.stored[self.index[record as usize] as usize]
    }
}

struct Job {
    sequence: u64,
    block: Vec<u8>,
    /// Whether a block of zeros need not be written.
    may_be_hole: bool,
}

enum Outcome {
    Hole,
    Plain,
    Packed(Vec<u8>),
}

struct Done {
    sequence: u64,
    /// The block itself, to be written or used again.
    block: Vec<u8>,
    outcome: io::Result<Outcome>,
}

/// Whose block it is.
enum Owner {
    File(u32),
    Fragment,
}

struct Line<'a, W> {
    out: &'a mut W,
    /// Where the next block goes, in the image.
    at: u64,
    block_size: usize,
    window: usize,
    jobs: Sender<Job>,
    results: Receiver<Done>,
    /// Whose the blocks are that were not written yet, in order.
    owners: VecDeque<Owner>,
    submitted: u64,
    written: u64,
    early: BTreeMap<u64, Done>,
    spare: Vec<Vec<u8>>,
    /// Ends of files that share the next fragment, and how many there were before it.
    tails: Vec<u8>,
    fragment_count: u32,
    stored: Vec<Stored>,
    fragments: Vec<(u64, u32)>,
}

/// Writes the content of all files to `out`, which stands `start` bytes behind the image's beginning.
pub(super) fn pack<W: Write + Seek>(
    tree: &mut dyn Tree,
    scanned: &Scanned,
    out: &mut W,
    start: u64,
    options: &Options,
) -> Result<Packed> {
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    }
    .min(THREADS_MAX);
    let (jobs, inbox) = mpsc::channel::<Job>();
    let (outbox, results) = mpsc::channel::<Done>();
    let inbox = Mutex::new(inbox);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (inbox, outbox) = (&inbox, outbox.clone());
            scope.spawn(move || work(inbox, &outbox, Packer::new(options.compression)));
        }
        drop(outbox);
        let mut line = Line {
            out,
            at: start,
            block_size: options.block_size as usize,
            window: (WINDOW * threads).min(WINDOW_BYTES / options.block_size as usize).max(threads + 1),
            jobs,
            results,
            owners: VecDeque::new(),
            submitted: 0,
            written: 0,
            early: BTreeMap::new(),
            spare: Vec::new(),
            tails: Vec::new(),
            fragment_count: 0,
            stored: Vec::new(),
            fragments: Vec::new(),
        };
        let (index, duplicates) = line.files(tree, scanned, options)?;
        line.flush_tails()?;
        while !line.owners.is_empty() {
            line.collect()?;
        }
        Ok(Packed { stored: line.stored, index, fragments: line.fragments, end: line.at, duplicates })
    })
}

/// A thread that compresses until there are no more jobs.
fn work(inbox: &Mutex<Receiver<Job>>, outbox: &Sender<Done>, mut packer: Packer) {
    loop {
        let job = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { sequence, block, may_be_hole }) = job else { return };
        let outcome = if may_be_hole && is_zero(&block) {
            Ok(Outcome::Hole)
        } else {
            packer.pack(&block).map(|packed| packed.map_or(Outcome::Plain, Outcome::Packed))
        };
        if outbox.send(Done { sequence, block, outcome }).is_err() {
            return;
        }
    }
}

fn is_zero(block: &[u8]) -> bool {
    // A comparison with itself, one byte on, is what the processor is fastest at.
    block.first() == Some(&0) && block[..block.len() - 1] == block[1..]
}

impl<W: Write + Seek> Line<'_, W> {
    /// Reads all files; where the content of each is, and how many were duplicates.
    fn files(
        &mut self,
        tree: &mut dyn Tree,
        scanned: &Scanned,
        options: &Options,
    ) -> Result<(Vec<u32>, u64)> {
        let is_file = |n: u32| {
            let record = &scanned.records[n as usize];
            record.file_type == FileType::File && record.first == n
        };
        let files = || (0..scanned.records.len() as u32).filter(|n| is_file(*n));
        let mut sizes: HashMap<u64, u32> = HashMap::new();
        for n in files() {
            *sizes.entry(scanned.records[n as usize].size).or_default() += 1;
        }
        let mut known: HashMap<(u64, [u8; 32]), u32> = HashMap::new();
        let mut index = vec![NOTHING; scanned.records.len()];
        let mut duplicates = 0;
        for n in files() {
            let size = scanned.records[n as usize].size;
            let mut key = None;
            let path = scanned.path(n);
            let mut held = None;
            if size > 0 && options.deduplicate && sizes.get(&size).is_some_and(|count| *count > 1) {
                let mut file = Source::open(tree, &path, size)?;
                let mut hash = Sha256::new();
                if size <= HELD {
                    let mut content = vec![0; size as usize];
                    file.fill(&mut content)?;
                    hash.update(&content);
                    held = Some(content);
                } else {
                    let mut block = vec![0; self.block_size];
                    while file.left > 0 {
                        let piece = file.left.min(block.len() as u64) as usize;
                        file.fill(&mut block[..piece])?;
                        hash.update(&block[..piece]);
                    }
                }
                let hash = (size, hash.finalize().into());
                if let Some(same) = known.get(&hash) {
                    index[n as usize] = *same;
                    duplicates += 1;
                    continue;
                }
                key = Some(hash);
            }
            let stored = self.stored.len() as u32;
            self.stored.push(Stored::default());
            index[n as usize] = stored;
            match held {
                Some(content) => {
                    let file = Source { reader: Box::new(&content[..]), path: &path, left: size };
                    self.file(file, stored, options.fragments)?;
                }
                None if size > 0 => {
                    self.file(Source::open(tree, &path, size)?, stored, options.fragments)?;
                }
                None => {}
            }
            if let Some(key) = key {
                known.insert(key, stored);
            }
        }
        Ok((index, duplicates))
    }

    /// Hands the blocks of a file on.
    fn file(&mut self, mut file: Source<'_>, stored: u32, fragments: Fragments) -> Result<()> {
        let block_size = self.block_size as u64;
        if file.left.div_ceil(block_size) > BLOCKS_MAX {
            return refused(file.path, format!("it has more than {BLOCKS_MAX} blocks"));
        }
        let shares = match fragments {
            Fragments::Never => false,
            Fragments::Small => file.left < block_size,
            Fragments::Always => true,
        };
        while file.left > 0 {
            let len = file.left.min(block_size) as usize;
            if len < self.block_size && shares {
                if self.tails.len() + len > self.block_size {
                    self.flush_tails()?;
                }
                let offset = self.tails.len();
                self.tails.resize(offset + len, 0);
                file.fill(&mut self.tails[offset..])?;
                self.stored[stored as usize].fragment = Some((self.fragment_count, offset as u32));
                return Ok(());
            }
            let mut block = self.spare.pop().unwrap_or_default();
            block.resize(len, 0);
            file.fill(&mut block)?;
            self.submit(block, Owner::File(stored))?;
        }
        Ok(())
    }

    fn flush_tails(&mut self) -> Result<()> {
        if self.tails.is_empty() {
            return Ok(());
        }
        let mut empty = self.spare.pop().unwrap_or_default();
        empty.clear();
        let tails = std::mem::replace(&mut self.tails, empty);
        self.fragment_count += 1;
        self.submit(tails, Owner::Fragment)
    }

    fn submit(&mut self, block: Vec<u8>, owner: Owner) -> Result<()> {
        while self.owners.len() >= self.window {
            self.collect()?;
        }
        let may_be_hole = matches!(owner, Owner::File(_));
        self.owners.push_back(owner);
        let job = Job { sequence: self.submitted, block, may_be_hole };
        self.submitted += 1;
        self.jobs.send(job).map_err(|_| gone())
    }

    /// Waits for a block, and writes what can be written.
    fn collect(&mut self) -> Result<()> {
        let done = self.results.recv().map_err(|_| gone())?;
        self.early.insert(done.sequence, done);
        while let Some(done) = self.early.remove(&self.written) {
            self.written += 1;
            self.put(done)?;
        }
        Ok(())
    }

    fn put(&mut self, done: Done) -> Result<()> {
        let Some(owner) = self.owners.pop_front() else { return Err(gone()) };
        let outcome = done.outcome.map_err(Error::Write)?;
        let (bytes, word) = match &outcome {
            Outcome::Hole => (None, 0),
            Outcome::Plain => (Some(done.block.as_slice()), RAW | done.block.len() as u32),
            Outcome::Packed(packed) => (Some(packed.as_slice()), packed.len() as u32),
        };
        match owner {
            Owner::File(stored) => {
                let stored = &mut self.stored[stored as usize];
                if stored.words.is_empty() {
                    stored.start = self.at;
                }
                stored.words.push(word);
                if word == 0 {
                    stored.sparse += done.block.len() as u64;
                }
            }
            Owner::Fragment => self.fragments.push((self.at, word)),
        }
        if let Some(bytes) = bytes {
            self.out.write_all(bytes).map_err(Error::Write)?;
            self.at += bytes.len() as u64;
        }
        self.spare.push(done.block);
        Ok(())
    }
}

/// A thread died, which only a bug can do to it.
fn gone() -> Error {
    Error::Write(io::Error::other("a thread that compresses is gone"))
}

/// A file that is being read, which has as many bytes as it was said to have.
struct Source<'a> {
    reader: Box<dyn Read + 'a>,
    path: &'a [u8],
    left: u64,
}

impl<'a> Source<'a> {
    fn open(tree: &'a mut dyn Tree, path: &'a [u8], size: u64) -> Result<Source<'a>> {
        let reader = tree.open(path).map_err(source("open", path))?;
        Ok(Source { reader, path, left: size })
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        self.left -= out.len() as u64;
        self.reader.read_exact(out).map_err(|e| {
            let e = match e.kind() {
                io::ErrorKind::UnexpectedEof => io::Error::other("it became shorter while it was read"),
                _ => e,
            };
            source("read", self.path)(e)
        })
    }
}
