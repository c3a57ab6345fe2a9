//! Opening: everything that a file says of itself is checked once, against the file's size and against each other,
//! before anything of it is believed. Data is read from the same descriptor that was checked.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::descriptor::{self, Kind, Object, Role};
use crate::header::{self, Header};
use crate::{Error, Result};

/// More descriptors than this no file has; the usual number is 48.
const MOST_DESCRIPTORS: i64 = 16_384;

/// Objects are aligned to pages, of this size at most.
const MOST_PADDING: u64 = 64 << 10;

/// A SIF file that is open for reading.
#[derive(Debug)]
pub struct Sif {
    pub(crate) file: File,
    /// What messages call it.
    pub(crate) name: String,
    header: Header,
    /// In the order of the table.
    objects: Vec<Object>,
}

/// Whether the file begins as a SIF file does.
pub fn is_sif(file: &File) -> io::Result<bool> {
    let mut mark = [0; 10];
    match file.read_exact_at(&mut mark, 32) {
        Ok(()) => Ok(mark == *header::MAGIC),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

impl Sif {
    /// Opens the file at `path` for reading.
    pub fn open(path: &Path) -> Result<Sif> {
        let file = File::open(path).map_err(Error::at("open", path))?;
        Sif::from_file(file, path.display().to_string())
    }

    /// Checks a file that is open already; `name` is what messages call it.
    pub fn from_file(file: File, name: impl Into<String>) -> Result<Sif> {
        let name = name.into();
        let metadata = file.metadata().map_err(|e| Error::io("read", &name, e))?;
        let none = |reason: &str| Error::NotSif { object: name.clone(), reason: reason.to_owned() };
        if !metadata.is_file() {
            return Err(none("it is not a regular file"));
        }
        let mut bytes = [0; header::LENGTH];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(none("it is too short")),
            Err(e) => return Err(Error::io("read", &name, e)),
        }
        let header = Header::decode(&bytes).map_err(none)?;
        let total = checked(&header, metadata.len()).map_err(|reason| Error::malformed(&name, reason))?;
        let mut table = vec![0; total * descriptor::LENGTH];
        file.read_exact_at(&mut table, header.descriptors_offset.cast_unsigned())
            .map_err(|e| Error::io("read", &name, e))?;
        let (chunks, _) = table.as_chunks::<{ descriptor::LENGTH }>();
        let objects =
            chunks.iter().enumerate().filter_map(|(slot, raw)| Object::decode(slot, raw).transpose());
        let objects: Vec<Object> = objects
            .collect::<std::result::Result<_, _>>()
            .map_err(|reason| Error::malformed(&name, reason))?;
        consistent(&header, &objects, metadata.len()).map_err(|reason| Error::malformed(&name, reason))?;
        Ok(Sif { file, name, header, objects })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What messages call the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The open file, for those who mount what is in it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// All objects, in the order of their descriptors.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    pub fn object(&self, id: u32) -> Result<&Object> {
        let missing = || Error::Missing { object: self.name.clone(), what: format!("object {id}") };
        self.objects.iter().find(|object| object.id == id).ok_or_else(missing)
    }

    /// The objects of one kind.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(move |object| object.kind == kind)
    }

    /// The objects of one group; 0 for those of none.
    pub fn of_group(&self, group: u32) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(move |object| object.group == group)
    }

    /// The first JSON object of this name.
    pub fn json(&self, name: &str) -> Option<&Object> {
        self.of_kind(Kind::Json).find(|object| object.name == name)
    }

    /// The partition that holds the root file system.
    pub fn primary(&self) -> Option<&Object> {
        self.objects.iter().find(|object| is_primary(object))
    }

    /// Reads an object's bytes.
    pub fn reader(&self, object: &Object) -> Data<'_> {
        Data { file: &self.file, start: object.offset, size: object.size, at: 0 }
    }

    /// The whole of an object that may have `limit` bytes at most.
    pub fn read(&self, object: &Object, limit: u64) -> Result<Vec<u8>> {
        if object.size > limit {
            let what = format!("the size of object {}", object.id);
            return Err(Error::Limit { object: self.name.clone(), what, limit });
        }
        let mut bytes = vec![0; object.size as usize];
        self.reader(object).read_exact(&mut bytes).map_err(|e| Error::io("read", &self.name, e))?;
        Ok(bytes)
    }

    /// The groups that objects are in, in ascending order.
    pub fn groups(&self) -> Vec<u32> {
        let groups = self.objects.iter().map(|object| object.group).filter(|group| *group != 0);
        groups.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    /// The lowest ID of a group, which its members are counted from where they are signed.
    pub fn first_id(&self, group: u32) -> Option<u32> {
        self.of_group(group).map(|object| object.id).min()
    }

    /// Where the next object goes at the earliest.
    pub(crate) fn end_of_data(&self) -> u64 {
        let ends = self.objects.iter().map(Object::end);
        ends.max().unwrap_or(0).max(self.header.data_offset.cast_unsigned())
    }
}

/// How many descriptors the header promises, if what it says can be.
fn checked(header: &Header, length: u64) -> std::result::Result<usize, String> {
    let total = header.descriptors_total;
    if !(0..=MOST_DESCRIPTORS).contains(&total) {
        return Err(format!("it has {total} descriptors, and {MOST_DESCRIPTORS} at most are read"));
    }
    if header.descriptors_size != total * descriptor::LENGTH as i64 {
        return Err(format!("{total} descriptors do not have {} bytes", header.descriptors_size));
    }
    let end = header.descriptors_offset.checked_add(header.descriptors_size);
    let end = end.filter(|_| header.descriptors_offset >= header::LENGTH as i64);
    match end {
        None => return Err("its descriptors lie over its header".to_owned()),
        Some(end) if end.cast_unsigned() > length => return Err("its descriptors are cut short".to_owned()),
        Some(end) if header.data_offset < end => return Err("its data lies over its descriptors".to_owned()),
        Some(_) => {}
    }
    if header.data_size < 0 || header.data_offset.checked_add(header.data_size).is_none() {
        return Err(format!("its data has {} bytes", header.data_size));
    }
    Ok(total as usize)
}

/// Whether the objects fit into the file and go together.
fn consistent(header: &Header, objects: &[Object], length: u64) -> std::result::Result<(), String> {
    let mut ids: Vec<u32> = objects.iter().map(|object| object.id).collect();
    ids.sort_unstable();
    if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("two objects have the ID {}", twice[0]));
    }
    if objects.iter().filter(|object| is_primary(object)).count() > 1 {
        return Err("it has two primary partitions".to_owned());
    }
    for object in objects {
        let end = object.offset.checked_add(object.size).filter(|end| i64::try_from(*end).is_ok());
        // An empty object may stand where the next one would begin, which is aligned.
        let most = if object.size > 0 { length } else { length.saturating_add(MOST_PADDING) };
        match end {
            Some(end) if end <= most => {}
            _ => return Err(format!("object {} reaches beyond the end of the file", object.id)),
        }
        if object.size > 0 && object.offset < header.data_offset.cast_unsigned() {
            return Err(format!("object {} lies over the descriptors", object.id));
        }
    }
    let mut full: Vec<&Object> = objects.iter().filter(|object| object.size > 0).collect();
    full.sort_unstable_by_key(|object| object.offset);
    match full.windows(2).find(|pair| pair[0].end() > pair[1].offset) {
        Some(pair) => Err(format!("object {} lies over object {}", pair[0].id, pair[1].id)),
        None => Ok(()),
    }
}

fn is_primary(object: &Object) -> bool {
    object.partition().is_some_and(|partition| partition.role == Role::Primary)
}

/// The bytes of one object.
#[derive(Debug, Clone)]
pub struct Data<'a> {
    file: &'a File,
    start: u64,
    size: u64,
    at: u64,
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        if wanted == 0 {
            return Ok(0);
        }
        match self.file.read_at(&mut buffer[..wanted], self.start + self.at)? {
            0 => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was read"))
            }
            n => {
                self.at += n as u64;
                Ok(n)
            }
        }
    }
}

impl Seek for Data<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
