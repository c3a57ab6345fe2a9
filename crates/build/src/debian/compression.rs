//! Compressed streams, recognised by their first bytes: xz, gzip, zstd, bzip2, or none.

use std::io::{self, BufRead, BufReader, Read};

/// A decoder of zstd takes windows up to this (2 to the power of it), as the program `zstd` does.
const ZSTD_WINDOW_LOG: u32 = 27;
/// An xz stream may demand this many bytes of memory: that of `xz -9` is 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// The decompressed stream.
pub fn decoder<'r, R: BufRead + 'r>(mut input: R) -> io::Result<Box<dyn Read + 'r>> {
    let start = input.fill_buf()?;
    Ok(match start {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        _ => Box::new(input),
    })
}

/// Reads a whole stream of at most `limit` decompressed bytes; none where it is longer.
pub fn read_all(input: impl Read, limit: u64, expect: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::with_capacity(usize::try_from(expect.min(limit)).unwrap_or(0) + 1);
    let decoder = decoder(BufReader::with_capacity(64 << 10, input))?;
    decoder.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_recognised_and_bounded() {
        let text = b"Package: a\n".repeat(1000);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gz, &text).unwrap();
        let zst = zstd::encode_all(&text[..], 1).unwrap();
        let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        io::Write::write_all(&mut bz, &text).unwrap();
        let xz = liblzma::encode_all(&text[..], 0).unwrap();
        for stream in [text.clone(), gz.finish().unwrap(), zst, xz, bz.finish().unwrap()] {
            let limit = text.len() as u64;
            assert_eq!(read_all(&stream[..], limit, limit).unwrap().as_deref(), Some(&text[..]));
            assert_eq!(read_all(&stream[..], limit - 1, 0).unwrap(), None);
            if stream.len() < text.len() {
                assert!(read_all(&stream[..stream.len() / 2], limit, 0).is_err());
            }
        }
        assert_eq!(read_all(&b""[..], 10, 0).unwrap().as_deref(), Some(&b""[..]));
    }
}
