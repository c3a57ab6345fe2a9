//! One binary package file: an `ar` archive of `debian-binary`, `control.tar.*` and `data.tar.*` (deb(5)).

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};

use isles_store::tar::{Entry, Kind, ReadLimits, Reader};

use super::compression::decoder;

/// All control files of a package together; the largest of Debian's have some MB.
const CONTROL_LIMIT: u64 = 64 << 20;
const MEMBER_HEADER: usize = 60;

/// What a package says of itself: `control`, `md5sums`, `postinst` and the rest, by name.
#[derive(Debug, Default)]
pub struct Control {
    pub files: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Control {
    /// A control file as text; what is not UTF-8 is replaced.
    pub fn text(&self, name: &str) -> Option<std::borrow::Cow<'_, str>> {
        self.files.get(name).map(|(_, bytes)| String::from_utf8_lossy(bytes))
    }
}

/// Why a file is no package, or not one that can be read.
fn malformed(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// Reads a package up to its data. What is returned with the control files is the tar stream of the data.
pub fn open<'r, R: Read + 'r>(file: R) -> io::Result<(Control, Box<dyn Read + 'r>)> {
    let mut input = BufReader::with_capacity(256 << 10, file);
    let mut magic = [0; 8];
    input.read_exact(&mut magic).map_err(cut_short)?;
    if &magic != b"!<arch>\n" {
        return Err(malformed("it is not an ar archive"));
    }
    let (name, size) = member(&mut input)?;
    if name != "debian-binary" || size > 64 {
        return Err(malformed("its first member is not debian-binary"));
    }
    let mut version = vec![0; size as usize];
    input.read_exact(&mut version).map_err(cut_short)?;
    if !version.starts_with(b"2.") {
        return Err(malformed("its format is not version 2"));
    }
    pad(&mut input, size)?;
    let mut control = None;
    loop {
        let (name, size) = member(&mut input)?;
        if name.starts_with('_') {
            // Names that begin so are for additions that readers may pass over.
            io::copy(&mut input.by_ref().take(size), &mut io::sink())?;
        } else if name.starts_with("control.tar") && control.is_none() {
            if size > CONTROL_LIMIT {
                return Err(malformed("its control archive is too large"));
            }
            let mut bytes = vec![0; size as usize];
            input.read_exact(&mut bytes).map_err(cut_short)?;
            control = Some(read_control(&bytes)?);
        } else if name.starts_with("data.tar") {
            let control = control.ok_or_else(|| malformed("its data stands before its control archive"))?;
            let rest = BufReader::with_capacity(128 << 10, Whole { input: input.take(size) });
            return Ok((control, decoder(rest)?));
        } else {
            return Err(malformed(format!("it has an unexpected member '{name}'")));
        }
        pad(&mut input, size)?;
    }
}

/// A member's bytes, all of which must be there.
struct Whole<R> {
    input: io::Take<R>,
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.input.read(out) {
            Ok(0) if self.input.limit() > 0 && !out.is_empty() => {
                Err(cut_short(io::ErrorKind::UnexpectedEof.into()))
            }
            other => other,
        }
    }
}

fn cut_short(e: io::Error) -> io::Error {
    if e.kind() == io::ErrorKind::UnexpectedEof { malformed("it is cut short") } else { e }
}

/// Name and size of the next member.
fn member(input: &mut impl Read) -> io::Result<(String, u64)> {
    let mut header = [0; MEMBER_HEADER];
    input.read_exact(&mut header).map_err(cut_short)?;
    if header[58..60] != *b"`\n" {
        return Err(malformed("a header of a member is damaged"));
    }
    let text = |range: std::ops::Range<usize>| {
        std::str::from_utf8(&header[range])
            .map(str::trim_end)
            .map_err(|_| malformed("a member's name is not text"))
    };
    let name = text(0..16)?;
    let size = text(48..58)?.parse().map_err(|_| malformed("a member's size is no number"))?;
    Ok((name.trim_end_matches('/').to_owned(), size))
}

/// Members begin at even offsets.
fn pad(input: &mut impl Read, size: u64) -> io::Result<()> {
    if size % 2 == 1 {
        input.read_exact(&mut [0]).map_err(cut_short)?;
    }
    Ok(())
}

fn read_control(bytes: &[u8]) -> io::Result<Control> {
    let stream = decoder(bytes)?.take(CONTROL_LIMIT);
    let limits = ReadLimits { entries: 1000, ..ReadLimits::default() };
    let mut reader = Reader::new(BufReader::new(stream), limits);
    let mut entry = Entry::default();
    let mut control = Control::default();
    while reader.next(&mut entry).map_err(tar_error)? {
        let name =
            std::str::from_utf8(&entry.path).map_err(|_| malformed("a control file's name is not text"))?;
        let name = name.trim_start_matches("./");
        match entry.kind {
            Kind::Dir if name.trim_matches('/').is_empty() || name == "." => continue,
            Kind::File => {}
            _ => return Err(malformed(format!("its control archive has '{name}', which is not a file"))),
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(malformed(format!("its control archive has the forbidden name '{name}'")));
        }
        let name = name.to_owned();
        let mut content = Vec::new();
        loop {
            let data = reader.data().map_err(tar_error)?;
            if data.is_empty() {
                break;
            }
            content.extend_from_slice(data);
            let n = data.len();
            reader.consume(n);
        }
        control.files.insert(name, (entry.mode, content));
    }
    if control.files.contains_key("control") { Ok(control) } else { Err(malformed("it has no control file")) }
}

/// An error of the tar reader as one of the operating system's kind.
pub fn tar_error(e: isles_store::tar::Error) -> io::Error {
    match e {
        isles_store::tar::Error::Io(e) => e,
        other => malformed(other.to_string()),
    }
}

/// Whether `reader` is at its end; used to see that nothing is wrong with the rest of a stream.
pub fn drain(mut reader: impl BufRead) -> io::Result<()> {
    loop {
        let n = reader.fill_buf()?.len();
        if n == 0 {
            return Ok(());
        }
        reader.consume(n);
    }
}
