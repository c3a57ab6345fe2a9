//! Where the files of an archive lie.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Span;
use crate::decompress::{Decoder, Encoding};
use crate::error::At;
use crate::tar::{Entry, Kind, ReadLimits, Reader};
use crate::{Error, Result, Store};

const BUFFER: usize = 256 << 10;
/// Files of an archive.
const ENTRIES: u64 = 100_000;

/// An archive, and where its files lie in it.
pub(super) struct Files {
    pub file: File,
    pub spans: HashMap<Vec<u8>, Span>,
    /// Links by their paths; targets are paths in the archive.
    pub links: HashMap<Vec<u8>, Vec<u8>>,
    object: String,
}

impl Files {
    /// A document of the archive, if it is there.
    pub fn document(&self, path: &[u8], limit: usize) -> Result<Option<Vec<u8>>> {
        let Some(span) = self.spans.get(path) else { return Ok(None) };
        self.bytes(*span, &format!("'{}'", crate::tar::display(path)), limit).map(Some)
    }

    /// What lies there, which messages call `name`.
    pub fn bytes(&self, span: Span, name: &str, limit: usize) -> Result<Vec<u8>> {
        if span.size > limit as u64 {
            let what = format!("the size of {name}");
            return Err(Error::Limit { object: self.object.clone(), what, limit: limit as u64 });
        }
        let mut bytes = vec![0; span.size as usize];
        self.file.read_exact_at(&mut bytes, span.at).at("read", Path::new(&self.object))?;
        Ok(bytes)
    }

    /// Where a file lies, also behind links, as Docker wrote them for layers that images share.
    pub fn find(&self, path: &str) -> Option<Span> {
        let mut clean = Vec::new();
        crate::dirs::clean(path.as_bytes(), &mut clean).ok()?;
        let mut path = &clean;
        for _ in 0..8 {
            match self.links.get(path) {
                Some(target) => path = target,
                None => break,
            }
        }
        self.spans.get(path).copied()
    }
}

/// Goes through an archive.
pub(super) fn read(store: &Store, path: &Path) -> Result<Files> {
    let object = path.display().to_string();
    let mut file = File::open(path).at("open", path)?;
    if !file.metadata().at("read", path)?.is_file() {
        return Err(Error::document(&object, "it is no file that can be read at any place"));
    }
    let mut start = [0; 8];
    let seen = crate::pipe::read_full(&mut file, &mut start).at("read", path)?;
    file.rewind().at("read", path)?;
    if Encoding::of(&start[..seen]) != Encoding::Plain {
        file = plain(store, file, path)?;
    }
    let mut input = Counted { input: BufReader::with_capacity(BUFFER, file), taken: 0 };
    let limits = ReadLimits { entries: ENTRIES, ..ReadLimits::default() };
    let mut reader = Reader::new(&mut input, limits);
    let (mut spans, mut links) = (HashMap::new(), HashMap::new());
    let mut entry = Entry::default();
    while reader.next(&mut entry).map_err(|e| e.of(&object))? {
        let mut path = Vec::new();
        crate::dirs::clean(&entry.path, &mut path)
            .map_err(|reason| Error::Archive { object: object.clone(), reason: reason.into() })?;
        match entry.kind {
            Kind::File if entry.sparse.is_some() => {
                let what = format!("the sparse file '{}' in it", crate::tar::display(&path));
                return Err(Error::Unsupported { object, what });
            }
            Kind::File => {
                let at = reader.input().taken;
                spans.insert(path, Span { at, size: entry.size });
            }
            Kind::Symlink | Kind::Hardlink => {
                let base = if entry.kind == Kind::Symlink { crate::dirs::split(&path).0 } else { b"" };
                if let Some(target) = crate::import::relative(base, &entry.link) {
                    links.insert(path, target);
                }
            }
            _ => {}
        }
    }
    Ok(Files { file: input.input.into_inner(), spans, links, object })
}

/// The archive without its compression.
fn plain(store: &Store, file: File, path: &Path) -> Result<File> {
    let mut decoder = Decoder::new(BufReader::with_capacity(BUFFER, file)).at("decompress", path)?;
    let mut out = store.unnamed()?;
    let limit = store.limits.layer_bytes;
    let mut buffer = vec![0; BUFFER];
    let mut size = 0;
    loop {
        let n = crate::pipe::read_full(&mut decoder, &mut buffer).at("decompress", path)?;
        if n == 0 {
            break;
        }
        size += n as u64;
        if size > limit {
            let what = "its size when it is decompressed".to_owned();
            return Err(Error::Limit { object: path.display().to_string(), what, limit });
        }
        out.write(&buffer[..n])?;
    }
    let mut file = out.file().try_clone().at("read", path)?;
    file.rewind().at("read", path)?;
    Ok(file)
}

/// Counts what is taken from a stream.
pub(super) struct Counted<R> {
    input: R,
    taken: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(out)?;
        self.taken += n as u64;
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.taken += n as u64;
        self.input.consume(n);
    }
}
