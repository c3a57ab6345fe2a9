//! What gocryptfs 2 makes of one file, in the form that Apptainer gives ordinary users: a SquashFS image whose root has
//! a file `squashfs-…`, which is the encrypted image, and `gocryptfs.conf`, which holds the key.
//!
//! A file is a header of 18 bytes, version and number, and blocks of 4096 bytes, each sealed with AES-256-GCM as the
//! block of this place in this file (gocryptfs, `Documentation/file-format.md`). So a block that was changed, or moved,
//! is an error and never read.

mod config;
mod make;

use std::cell::RefCell;
use std::io;

use isles_squashfs::{FileType, Image, Inode, Limits, Source};

use crate::error::{Error, Result, damaged};
use crate::gcm::{Gcm, TAG};
use config::Config;

pub use make::{Files, around, encrypt};

const CONFIG: &str = "gocryptfs.conf";
/// How the name of the encrypted file begins.
const PREFIX: &[u8] = b"squashfs-";
const VERSION: u16 = 2;
const HEADER: u64 = 18;
/// Bytes of an initial value.
const NONCE: usize = 16;
/// Bytes of a block, and of one that is sealed.
const PLAIN: usize = 4096;
const SEALED: usize = NONCE + PLAIN + TAG;
/// Configurations are some 600 bytes.
const LONGEST_CONFIG: usize = 64 << 10;
/// What is around is read once and in order mostly, and what is in it has a cache of its own.
const AROUND: Limits = Limits { cache: 2 << 20 };

/// An encrypted file that is open.
#[derive(Debug)]
pub struct Volume {
    around: Image,
    file: Inode,
    len: u64,
    id: [u8; 16],
    gcm: Gcm,
}

/// Opens the encrypted file in the SquashFS image in `len` bytes of `source` from `start` on.
///
/// # Errors
/// [`Error::Passphrase`] where it is not the passphrase.
pub fn open(source: impl Source + 'static, start: u64, len: u64, passphrase: &[u8]) -> Result<Volume> {
    let around = Image::open_with(source, start, len, AROUND)?;
    let root = around.inode(around.root())?;
    let missing =
        |what: &str| Error::Other { form: "image of gocryptfs", reason: format!("it has no {what}") };
    let entry = around.lookup(&root, CONFIG.as_bytes())?.ok_or_else(|| missing(CONFIG))?;
    let config = around.read_all(&around.inode(entry.inode)?, LONGEST_CONFIG)?;
    let mut file = None;
    for entry in around.read_dir(&root, 0)? {
        let entry = entry?;
        if entry.name.starts_with(PREFIX) {
            file = Some(around.inode(entry.inode)?);
            break;
        }
    }
    let is_file = |inode: &Inode| inode.file_type == FileType::File;
    let file = file.filter(is_file).ok_or_else(|| missing("encrypted file"))?;

    let sealed = file.size.checked_sub(HEADER).filter(|n| *n > 0);
    let Some(sealed) = sealed else { return damaged(format!("the encrypted file has {} bytes", file.size)) };
    let overhead = (SEALED - PLAIN) as u64;
    let (whole, last) = (sealed / SEALED as u64, sealed % SEALED as u64);
    if last != 0 && last <= overhead {
        return damaged("the encrypted file ends within a block");
    }
    let len = whole * PLAIN as u64 + last.saturating_sub(overhead);
    let mut header = [0; HEADER as usize];
    around.read_at(&file, &mut header, 0)?;
    let version = u16::from_be_bytes([header[0], header[1]]);
    if version != VERSION {
        return Err(Error::Unsupported { what: format!("version {version} of gocryptfs") });
    }
    let id = std::array::from_fn(|n| header[2 + n]);
    let gcm = Config::parse(&config)?.unlock(passphrase)?;
    Ok(Volume { around, file, len, id, gcm })
}

/// What a block is sealed as: its number and its file's.
fn about(number: u64, id: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes(), id].concat()
}

thread_local! {
    /// Whole sealed blocks.
    static BLOCKS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Volume {
    /// Bytes of the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Opens a block in place.
    fn unseal<'a>(&self, number: u64, block: &'a mut [u8]) -> Option<&'a [u8]> {
        // A hole stays one.
        if block.len() == SEALED && block.iter().all(|b| *b == 0) {
            return Some(&block[NONCE..NONCE + PLAIN]);
        }
        let (nonce, rest) = block.split_first_chunk_mut::<NONCE>()?;
        let (data, tag) = rest.split_last_chunk_mut::<TAG>()?;
        self.gcm.open(nonce, &about(number, &self.id), data, tag).then_some(data)
    }
}

impl Source for Volume {
    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        let end = at.checked_add(out.len() as u64).filter(|end| *end <= self.len);
        let Some(end) = end else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let (first, behind) = (at / PLAIN as u64, end.div_ceil(PLAIN as u64));
        let from = HEADER + first * SEALED as u64;
        let to = (HEADER + behind * SEALED as u64).min(self.file.size);
        BLOCKS.with_borrow_mut(|blocks| {
            blocks.resize(to.saturating_sub(from) as usize, 0);
            self.around.read_at(&self.file, blocks, from).map_err(io::Error::other)?;
            let mut out = out;
            let mut skip = (at % PLAIN as u64) as usize;
            for (number, block) in (first..).zip(blocks.chunks_mut(SEALED)) {
                let changed = || {
                    let what = format!("block {number} of the encrypted file was changed");
                    io::Error::new(io::ErrorKind::InvalidData, what)
                };
                let data =
                    self.unseal(number, block).and_then(|data| data.get(skip..)).ok_or_else(changed)?;
                let n = data.len().min(out.len());
                let (here, rest) = out.split_at_mut(n);
                here.copy_from_slice(&data[..n]);
                out = rest;
                skip = 0;
            }
            if out.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        })
    }
}
