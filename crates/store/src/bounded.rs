//! Reading what somebody else decided the size of.

use std::io::{self, Read};

/// Reads to the end, if that comes within `limit` bytes; `None` where there are more. No more than `limit` and one
/// are read, whatever the source says of its size.
pub fn read_bounded(input: impl Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    input.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_last_byte_that_fits() {
        for (limit, fits) in [(2, false), (3, true), (4, true), (u64::MAX, true)] {
            assert_eq!(read_bounded(&b"abc"[..], limit).unwrap().is_some(), fits, "{limit}");
        }
    }
}
