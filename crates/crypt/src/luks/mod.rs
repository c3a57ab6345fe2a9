//! LUKS2 containers (LUKS2 On-Disk Format Specification 1.1), as `cryptsetup luksFormat --type luks2` makes them.
//!
//! A header of two copies says where slots for keys are, how to make a slot's key of a passphrase, and where the data
//! is. The volume's key lies in each slot, encrypted; a digest tells whether it was found. What is read: AES in the mode
//! XTS in one segment, with keys by PBKDF2 and Argon2.

mod header;
mod make;

use std::cell::RefCell;
use std::io;

use isles_squashfs::Source;

use crate::anti_forensic;
use crate::error::{Error, Result, damaged};
use crate::kdf::Budget;
use crate::xts::{UNIT, Xts};
use header::{Header, Keyslot, Segment};

pub use make::{Encrypting, Strength, encrypt};

/// An open container.
#[derive(Debug)]
pub struct Volume {
    source: Box<dyn Source>,
    /// Where the data begins in the source, and its bytes.
    start: u64,
    len: u64,
    sector: u64,
    /// What is added to the number of a sector.
    tweak: u64,
    xts: Xts,
}

/// Opens the container in `len` bytes of `source` from `start` on.
///
/// # Errors
/// [`Error::Passphrase`] where the passphrase opens none of its slots.
pub fn open(source: impl Source + 'static, start: u64, len: u64, passphrase: &[u8]) -> Result<Volume> {
    let part = Part { source: &source, start, len };
    let header = Header::read(&part)?;
    let segment = header.segment()?;
    let mut budget = Budget::default();
    for (name, slot) in header.keyslots() {
        if let Some(xts) = unlock(&part, &header, name, slot, passphrase, &mut budget)? {
            let rest = len.saturating_sub(segment.offset);
            let size = segment.size.unwrap_or(rest / segment.sector * segment.sector);
            if size > rest || size == 0 {
                return damaged("its data ends behind its end");
            }
            let Segment { offset, sector, tweak, .. } = *segment;
            return Ok(Volume {
                source: Box::new(source),
                start: start + offset,
                len: size,
                sector,
                tweak,
                xts,
            });
        }
    }
    Err(Error::Passphrase)
}

/// The cipher of the volume, where the passphrase opens the slot.
fn unlock(
    part: &Part<'_>,
    header: &Header,
    name: &str,
    slot: &Keyslot,
    passphrase: &[u8],
    budget: &mut Budget,
) -> Result<Option<Xts>> {
    let digest = header.digest(name)?;
    let mut key = vec![0; slot.area_key];
    slot.kdf.derive(passphrase, &mut key, budget)?;
    let cipher = || Error::Damaged { what: format!("a key of {} bytes", key.len()) };
    let area = Xts::new(&key).ok_or_else(cipher)?;
    let length = slot.key * slot.stripes;
    let mut stripes = vec![0; length.next_multiple_of(UNIT as usize)];
    part.read(&mut stripes, slot.area)?;
    area.decrypt(&mut stripes, 0, UNIT as usize);
    let volume_key = anti_forensic::merge(&stripes[..length], slot.key, slot.hash);
    let mut found = vec![0; digest.value.len()];
    digest.kdf.derive(&volume_key, &mut found, budget)?;
    Ok(if found == digest.value { Xts::new(&volume_key) } else { None })
}

/// A part of a source, of which nothing outside is read.
struct Part<'a> {
    source: &'a dyn Source,
    start: u64,
    len: u64,
}

impl Part<'_> {
    fn read(&self, out: &mut [u8], at: u64) -> Result<()> {
        let end = at.checked_add(out.len() as u64).filter(|end| *end <= self.len);
        let place = end.and_then(|_| self.start.checked_add(at));
        let Some(place) = place else { return damaged(format!("it has {} bytes only", self.len)) };
        self.source.read_exact_at(out, place).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Error::Damaged { what: "the file ends within it".into() },
            _ => Error::Read { at, source },
        })
    }
}

impl Volume {
    /// Bytes of the data.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

thread_local! {
    /// Whole sectors around what is read: as much as a reader of file systems wants at once.
    static SECTORS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Source for Volume {
    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        let end = at.checked_add(out.len() as u64).filter(|end| *end <= self.len);
        let Some(end) = end else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let first = at / self.sector * self.sector;
        // The length is a multiple of a sector's.
        let whole = (end.next_multiple_of(self.sector) - first) as usize;
        SECTORS.with_borrow_mut(|sectors| {
            sectors.resize(whole, 0);
            self.source.read_exact_at(sectors, self.start + first)?;
            let number = self.tweak.wrapping_add(first / UNIT);
            self.xts.decrypt(sectors, number, self.sector as usize);
            let skip = (at - first) as usize;
            out.copy_from_slice(&sectors[skip..skip + out.len()]);
            Ok(())
        })
    }
}
