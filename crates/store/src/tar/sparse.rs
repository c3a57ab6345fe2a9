//! Maps of sparse files, in the forms that GNU tar has had.

use super::header::{Block, number};
use super::pax::decimal;
use super::{Error, ReadLimits, malformed};

/// A piece of stored data and where it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub length: u64,
}

/// Version 0.1: `offset,length,offset,length`.
pub(super) fn parse_list(text: &[u8], limits: &ReadLimits) -> Result<Vec<Segment>, Error> {
    let mut map = Vec::new();
    if text.is_empty() {
        return Ok(map);
    }
    let mut numbers = text.split(|b| *b == b',');
    while let Some(offset) = numbers.next() {
        let Some(length) = numbers.next() else {
            return malformed("a sparse map has an offset without a length");
        };
        push(&mut map, decimal(offset, "sparse offset")?, decimal(length, "sparse length")?, limits)?;
    }
    Ok(map)
}

/// The old format's entries, four in the header and 21 in each extension block.
pub(super) fn parse_old(map: &mut Vec<Segment>, fields: &[u8], limits: &ReadLimits) -> Result<(), Error> {
    for field in fields.as_chunks::<24>().0 {
        if field[0] == 0 {
            break;
        }
        push(map, number(&field[..12], "sparse offset")?, number(&field[12..], "sparse length")?, limits)?;
    }
    Ok(())
}

/// Reads the decimal lines of version 1.0 from blocks as they come.
#[derive(Debug, Default)]
pub(super) struct LineParser {
    digits: Vec<u8>,
    expected: Option<u64>,
    offset: Option<u64>,
    pub map: Vec<Segment>,
}

impl LineParser {
    /// Takes a block; `true` when the map is complete (the rest of the block is padding).
    pub(super) fn feed(&mut self, block: &Block, limits: &ReadLimits) -> Result<bool, Error> {
        for byte in block {
            if *byte != b'\n' {
                if self.digits.len() >= 20 {
                    return malformed("a sparse map has a number that is too large");
                }
                self.digits.push(*byte);
                continue;
            }
            let value = decimal(&self.digits, "sparse number")?;
            self.digits.clear();
            match (self.expected, self.offset.take()) {
                (None, _) => self.expected = Some(value),
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => push(&mut self.map, offset, value, limits)?,
            }
            if self.expected == Some(self.map.len() as u64) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn push(map: &mut Vec<Segment>, offset: u64, length: u64, limits: &ReadLimits) -> Result<(), Error> {
    if map.len() >= limits.segments {
        return Err(Error::Limit { what: "a sparse map".into(), limit: limits.segments as u64 });
    }
    map.push(Segment { offset, length });
    Ok(())
}

/// Checks that segments are in order, inside the file, and as long together as the stored data.
pub(super) fn check(map: &[Segment], real_size: u64, stored: u64) -> Result<(), Error> {
    let mut end = 0u64;
    let mut total = 0u64;
    for segment in map {
        let segment_end = segment.offset.checked_add(segment.length);
        match segment_end {
            Some(e) if segment.offset >= end && e <= real_size => end = e,
            _ => return malformed("a sparse map is out of order or out of bounds"),
        }
        total += segment.length;
    }
    if total == stored { Ok(()) } else { malformed("a sparse map does not fit the stored data") }
}
