//! The compressors of an image, as the format numbers them.

use std::cell::RefCell;

use flate2::{Decompress, FlushDecompress, Status};
use liblzma::stream::{Action, Stream};

use crate::error::{Error, Result};

/// What an xz stream may need: its dictionary is no larger than a block.
const XZ_MEMORY: u64 = 4 << 20;

/// How the blocks of an image are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// zlib streams.
    Gzip,
    Xz,
    /// Linux 4.14 or later.
    Zstd,
}

impl Codec {
    pub(crate) fn from_id(id: u16) -> Result<Codec> {
        let name = match id {
            1 => return Ok(Codec::Gzip),
            4 => return Ok(Codec::Xz),
            6 => return Ok(Codec::Zstd),
            2 => "lzma compression",
            3 => "lzo compression",
            5 => "lz4 compression",
            other => &format!("the unknown compression {other}"),
        };
        Err(Error::Unsupported { what: name.into() })
    }

    pub(crate) fn id(self) -> u16 {
        match self {
            Codec::Gzip => 1,
            Codec::Xz => 4,
            Codec::Zstd => 6,
        }
    }

    /// The name that mksquashfs has for it.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Gzip => "gzip",
            Codec::Xz => "xz",
            Codec::Zstd => "zstd",
        }
    }

    /// Decompresses one whole block into `out` and says how many bytes it has; more than `out` holds is an
    /// error.
    pub(crate) fn decompress(self, block: &[u8], out: &mut [u8]) -> std::result::Result<usize, String> {
        match self {
            Codec::Gzip => inflate(block, out),
            Codec::Xz => unxz(block, out),
            Codec::Zstd => unzstd(block, out),
        }
    }
}

// The state of a decompressor is worth keeping: setting one up costs more than a small block.
thread_local! {
    static INFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(true));
    static UNZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

fn inflate(block: &[u8], out: &mut [u8]) -> std::result::Result<usize, String> {
    INFLATE.with_borrow_mut(|state| {
        state.reset(true);
        match state.decompress(block, out, FlushDecompress::Finish) {
            Ok(Status::StreamEnd) => Ok(state.total_out() as usize),
            Ok(_) if state.total_out() as usize == out.len() => Err("it decompresses to too much".into()),
            Ok(_) => Err("its gzip data is cut short".into()),
            Err(_) => Err("its gzip data is invalid".into()),
        }
    })
}

fn unzstd(block: &[u8], out: &mut [u8]) -> std::result::Result<usize, String> {
    UNZSTD.with_borrow_mut(|state| {
        if state.is_none() {
            *state = zstd::bulk::Decompressor::new().ok();
        }
        let decompressor = state.as_mut().ok_or("no memory for zstd")?;
        decompressor
            .decompress_to_buffer(block, out)
            .map_err(|_| "its zstd data is invalid or too much".into())
    })
}

fn unxz(block: &[u8], out: &mut [u8]) -> std::result::Result<usize, String> {
    let invalid = |_| "its xz data is invalid".to_owned();
    let mut stream = Stream::new_stream_decoder(XZ_MEMORY, 0).map_err(invalid)?;
    loop {
        let (read, written) = (stream.total_in() as usize, stream.total_out() as usize);
        match stream.process(&block[read..], &mut out[written..], Action::Finish).map_err(invalid)? {
            liblzma::stream::Status::StreamEnd => return Ok(stream.total_out() as usize),
            _ if stream.total_in() as usize == read && stream.total_out() as usize == written => {
                return Err("its xz data is cut short or too much".into());
            }
            _ => {}
        }
    }
}
