//! The 512-byte header block: fields at fixed offsets, numbers in octal or base 256.

use super::{BLOCK, Error, malformed};

pub(super) type Block = [u8; BLOCK];

/// Which of the formats a header follows; they differ in what lies behind the first 257 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Gnu,
}

pub(super) fn is_zero(block: &Block) -> bool {
    block.iter().all(|b| *b == 0)
}

/// Checks the checksum, which some writers sum as signed bytes.
pub(super) fn check(block: &Block) -> Result<Format, Error> {
    let stored = number(&block[148..156], "checksum")?;
    let spaces = 8 * u64::from(b' ');
    let unsigned: u64 = block.iter().map(|b| u64::from(*b)).sum::<u64>()
        - block[148..156].iter().map(|b| u64::from(*b)).sum::<u64>()
        + spaces;
    if stored != unsigned {
        let signed: i64 = block.iter().map(|b| i64::from(*b as i8)).sum::<i64>()
            - block[148..156].iter().map(|b| i64::from(*b as i8)).sum::<i64>()
            + spaces as i64;
        if i64::try_from(stored) != Ok(signed) {
            return malformed("a header has a wrong checksum");
        }
    }
    Ok(match &block[257..265] {
        b"ustar  \0" => Format::Gnu,
        m if m.starts_with(b"ustar") => Format::Ustar,
        _ => Format::V7,
    })
}

/// A field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

/// A number that cannot be negative.
pub(super) fn number(field: &[u8], what: &str) -> Result<u64, Error> {
    match signed(field, what)? {
        n if n >= 0 => Ok(n as u64),
        _ => malformed(format!("a header has a negative {what}")),
    }
}

/// A number in octal digits, or in base 256 where the first bit is set (GNU; two's complement).
pub(super) fn signed(field: &[u8], what: &str) -> Result<i64, Error> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let fill = if negative { 0xff } else { 0 };
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let mut value = if negative { -1i64 } else { 0 };
        for (i, byte) in std::iter::once(first).chain(field[1..].iter().copied()).enumerate() {
            if field.len() - i > 8 {
                if byte != fill {
                    return malformed(format!("a header has a {what} that is too large"));
                }
                continue;
            }
            value = (value << 8) | i64::from(byte);
        }
        if (value < 0) != negative {
            return malformed(format!("a header has a {what} that is too large"));
        }
        return Ok(value);
    }
    let mut value = 0i64;
    let digits = field.iter().skip_while(|b| **b == b' ' || **b == 0);
    for byte in digits {
        match byte {
            b'0'..=b'7' => {
                value = match value.checked_mul(8) {
                    Some(v) => v + i64::from(byte - b'0'),
                    None => return malformed(format!("a header has a {what} that is too large")),
                };
            }
            b' ' | 0 => break,
            _ => return malformed(format!("a header has a {what} that is not a number")),
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, value) in [
            (&b"0000644\0"[..], 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"        ", 0),
            (b"77777777", 0o77777777),
            (b"\x80\0\0\0\xff\xff\xff\xff", 0xffff_ffff),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", 0x2_0000_0000),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", -1),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        ] {
            assert_eq!(signed(field, "x").unwrap(), value, "{field:?}");
        }
        for bad in [
            &b"12x45"[..],
            b"\x81\0\0\0\0\0\0\0\0\0\0\0",
            b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
            b"-1\0",
        ] {
            assert!(number(bad, "x").is_err(), "{bad:?}");
        }
    }
}
