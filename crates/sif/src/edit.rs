//! Changing a file where it is. An object is in it or not by one byte, which is written last and alone, so that a crash
//! leaves the file as it was or as it was to be; what the header counts may lag behind then, and nobody depends on it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::descriptor::{self, LENGTH, Role, USED_AT};
use crate::header::{Arch, Header, NO_TIME};
use crate::object::{self, NewObject};
use crate::read::Sif;
use crate::{Error, Result};

/// Where the role of a partition stands in its descriptor. The roles are small: one byte tells them apart.
const ROLE_AT: usize = descriptor::EXTRA_AT + 4;
const MODIFIED_AT: usize = 49;

/// A SIF file that is open for changes, by nobody else at the same time.
#[derive(Debug)]
pub struct Editor {
    sif: Sif,
    /// The time that changes have, where it is not theirs to choose.
    time: Option<i64>,
}

/// What becomes of the bytes of an object that is deleted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deletion {
    /// They are overwritten with zeros.
    pub zero: bool,
    /// The file ends where the last object ends.
    pub compact: bool,
}

impl Editor {
    /// Opens the file at `path`, and waits for others who change it.
    pub fn open(path: &Path) -> Result<Editor> {
        let file = File::options().read(true).write(true).open(path).map_err(Error::at("open", path))?;
        match flock(&file, FlockOperation::LockExclusive) {
            // A file system without locks, as NFS may be: who changes a file there takes care.
            Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(e) => return Err(Error::at("lock", path)(e.into())),
        }
        Ok(Editor { sif: Sif::from_file(file, path.display().to_string())?, time: None })
    }

    /// Gives all changes this time (seconds since 1970). Without it they have the present one, or none where nothing
    /// in the file has a time.
    pub fn with_time(mut self, time: Option<i64>) -> Editor {
        self.time = time;
        self
    }

    /// The file as it is now.
    pub fn sif(&self) -> &Sif {
        &self.sif
    }

    /// Adds an object and gives its ID.
    pub fn add(&mut self, new: NewObject<'_>) -> Result<u32> {
        let header = self.sif.header().clone();
        let taken = |slot: &usize| self.sif.objects().iter().any(|object| object.slot == *slot);
        let total = header.descriptors_total as usize;
        let refused = |reason: &str| Err(Error::refused("add an object to", self.sif.name(), reason));
        let Some(slot) = (0..total).find(|slot| !taken(slot)) else {
            return refused("all of its descriptors are in use");
        };
        let mut id = slot as u32 + 1;
        if self.sif.object(id).is_ok() {
            // Whoever made the file counts in another way.
            id = self.sif.objects().iter().map(|object| object.id).max().unwrap_or(0).saturating_add(1);
        }
        let primary = new.primary_arch();
        if primary.is_some() && self.sif.primary().is_some() {
            return refused("it has a primary partition already");
        }
        let time = self.now();
        let from = self.sif.end_of_data();
        let written = object::write(&self.sif.file, self.sif.name(), new, id, from, time)?;
        let mut unused = written.descriptor;
        unused[USED_AT] = 0;
        self.put(&unused, self.place(slot, 0))?;
        self.sync()?;
        self.put(&[1], self.place(slot, USED_AT))?;
        self.finish(time, primary)?;
        Ok(id)
    }

    /// Takes an object out.
    pub fn delete(&mut self, id: u32, how: Deletion) -> Result<()> {
        let object = self.sif.object(id)?.clone();
        self.put(&[0], self.place(object.slot, USED_AT))?;
        self.sync()?;
        self.put(&[0; LENGTH], self.place(object.slot, 0))?;
        if how.zero {
            let zeros = [0; 64 << 10];
            let mut at = object.offset;
            while at < object.end() {
                let n = zeros.len().min((object.end() - at) as usize);
                self.put(&zeros[..n], at)?;
                at += n as u64;
            }
        }
        let was_primary = object.partition().is_some_and(|partition| partition.role == Role::Primary);
        self.finish(self.now(), was_primary.then_some(Arch::UNKNOWN))?;
        if how.compact {
            let end = self.sif.end_of_data();
            self.sif.file.set_len(end).map_err(|e| Error::io("shorten", self.sif.name(), e))?;
            self.sync()?;
        }
        Ok(())
    }

    /// Makes a partition the one with the root file system. A crash may leave the file without such a partition.
    pub fn set_primary(&mut self, id: u32) -> Result<()> {
        let refused =
            |reason: &str| Err(Error::refused("change the primary partition of", self.sif.name(), reason));
        let object = self.sif.object(id)?.clone();
        let Some(partition) = object.partition() else {
            return refused(&format!("object {id} is not a partition"));
        };
        match partition.role {
            Role::Primary => return Ok(()),
            Role::System => {}
            _ => return refused(&format!("object {id} is not a system partition")),
        }
        let time = self.now();
        if let Some(old) = self.sif.primary().map(|old| old.slot) {
            self.put(&[Role::System.code() as u8], self.place(old, ROLE_AT))?;
            self.put(&time.to_le_bytes(), self.place(old, MODIFIED_AT))?;
            self.sync()?;
        }
        self.put(&[Role::Primary.code() as u8], self.place(object.slot, ROLE_AT))?;
        self.put(&time.to_le_bytes(), self.place(object.slot, MODIFIED_AT))?;
        self.finish(time, Some(partition.arch))
    }

    fn now(&self) -> i64 {
        if let Some(time) = self.time {
            return time;
        }
        if self.sif.header().is_deterministic() {
            return NO_TIME;
        }
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
    }

    /// Where in the file a byte of a descriptor is.
    fn place(&self, slot: usize, byte: usize) -> u64 {
        self.sif.header().descriptors_offset.cast_unsigned() + (slot * LENGTH + byte) as u64
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.sif.file.write_all_at(bytes, at).map_err(|e| Error::io("write", self.sif.name(), e))
    }

    fn sync(&self) -> Result<()> {
        self.sif.file.sync_data().map_err(|e| Error::io("write", self.sif.name(), e))
    }

    /// Reads the table again, as others will, and brings the header up to it.
    fn finish(&mut self, time: i64, arch: Option<Arch>) -> Result<()> {
        self.sync()?;
        let file = self.sif.file.try_clone().map_err(|e| Error::io("read", self.sif.name(), e))?;
        let sif = Sif::from_file(file, self.sif.name())?;
        let old = sif.header();
        let header = Header {
            arch: arch.unwrap_or(old.arch),
            modified: time,
            descriptors_free: old.descriptors_total - sif.objects().len() as i64,
            data_size: sif.end_of_data().cast_signed() - old.data_offset,
            ..old.clone()
        };
        self.put(&header.encode(), 0)?;
        self.sync()?;
        let file = self.sif.file.try_clone().map_err(|e| Error::io("read", self.sif.name(), e))?;
        self.sif = Sif::from_file(file, self.sif.name())?;
        Ok(())
    }
}
