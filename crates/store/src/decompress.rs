//! Streams are recognised by their first bytes, whatever their media type says.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// zstd's own default for what a decoder accepts: windows of 128 MiB.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Plain,
    Gzip,
    Zstd,
    /// Recognised, but not read.
    Unsupported(&'static str),
}

impl Encoding {
    /// Looks at the first bytes; six are enough.
    pub fn of(start: &[u8]) -> Encoding {
        match start {
            [0x1f, 0x8b, ..] => Encoding::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Encoding::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Encoding::Unsupported("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Encoding::Unsupported("bzip2"),
            _ => Encoding::Plain,
        }
    }
}

/// A decompressing reader.
pub(crate) enum Decoder<R: BufRead> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
}

impl<R: BufRead> Decoder<R> {
    pub(crate) fn new(mut input: R) -> io::Result<Self> {
        let start = loop {
            match input.fill_buf() {
                Ok(start) => break start,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        };
        Ok(match Encoding::of(start) {
            Encoding::Plain => Decoder::Plain(input),
            Encoding::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(input))),
            Encoding::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Decoder::Zstd(Box::new(decoder))
            }
            Encoding::Unsupported(name) => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("{name} compression is not supported; gzip and zstd are"),
                ));
            }
        })
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(r) => r.read(out),
            Decoder::Gzip(r) => r.read(out),
            Decoder::Zstd(r) => r.read(out),
        }
    }
}
