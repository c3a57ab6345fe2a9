//! Pax extended headers: records `<length> <key>=<value>\n` (POSIX.1-2024 pax, "Extended Header").

use super::sparse::{Segment, parse_list};
use super::{Entry, Error, ReadLimits, malformed};

/// The overrides of one header, or of all that follow a global one.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    xattr_bytes: usize,
    pub sparse: SparseFields,
}

/// What the GNU.sparse records say, in any of the three versions.
#[derive(Debug, Clone, Default)]
pub(super) struct SparseFields {
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    /// Versions 0.0 and 0.1 have the map in the header.
    pub map: Option<Vec<Segment>>,
    /// Version 1.0 has it before the data.
    pub map_in_data: bool,
    major: Option<u64>,
    minor: Option<u64>,
    pending_offset: Option<u64>,
}

impl Fields {
    /// Adds the records of one header. An empty value takes a global one back.
    pub(super) fn parse(&mut self, mut data: &[u8], limits: &ReadLimits) -> Result<(), Error> {
        while !data.is_empty() {
            // Some writers pad the last block's worth of records with NULs.
            if data.iter().all(|b| *b == 0) {
                break;
            }
            let Some(space) = data.iter().take(20).position(|b| *b == b' ') else {
                return malformed("a pax record has no length");
            };
            let length = decimal(&data[..space], "pax record length")? as usize;
            if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
                return malformed("a pax record has a wrong length");
            }
            let record = &data[space + 1..length - 1];
            data = &data[length..];
            let Some(equals) = record.iter().position(|b| *b == b'=') else {
                return malformed("a pax record has no '='");
            };
            self.set(&record[..equals], &record[equals + 1..], limits)?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8], limits: &ReadLimits) -> Result<(), Error> {
        let some = |v: &[u8]| if v.is_empty() { None } else { Some(v.to_vec()) };
        let number = |what: &str| if value.is_empty() { Ok(None) } else { decimal(value, what).map(Some) };
        match key {
            b"path" => self.path = some(value),
            b"linkpath" => self.link = some(value),
            b"size" => self.size = number("size")?,
            b"uid" => self.uid = number("uid")?.map(|n| id(n, "uid")).transpose()?,
            b"gid" => self.gid = number("gid")?.map(|n| id(n, "gid")).transpose()?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            b"GNU.sparse.major" => self.sparse.major = number("GNU.sparse.major")?,
            b"GNU.sparse.minor" => self.sparse.minor = number("GNU.sparse.minor")?,
            b"GNU.sparse.name" => self.sparse.name = some(value),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.sparse.real_size = number("size of a sparse file")?;
            }
            b"GNU.sparse.numblocks" => {}
            b"GNU.sparse.offset" => self.sparse.pending_offset = number("sparse offset")?,
            b"GNU.sparse.numbytes" => {
                let length = decimal(value, "sparse length")?;
                let Some(offset) = self.sparse.pending_offset.take() else {
                    return malformed("a sparse map has a length without an offset");
                };
                let map = self.sparse.map.get_or_insert_default();
                if map.len() >= limits.segments {
                    return Err(Error::Limit { what: "a sparse map".into(), limit: limits.segments as u64 });
                }
                map.push(Segment { offset, length });
            }
            b"GNU.sparse.map" => self.sparse.map = Some(parse_list(value, limits)?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(name, value, limits)?;
                }
            }
        }
        if self.path.as_ref().is_some_and(|p| p.len() > limits.path) {
            return Err(Error::Limit { what: "the length of a path".into(), limit: limits.path as u64 });
        }
        if self.link.as_ref().is_some_and(|p| p.len() > limits.path) {
            return Err(Error::Limit {
                what: "the length of a link's target".into(),
                limit: limits.path as u64,
            });
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8], limits: &ReadLimits) -> Result<(), Error> {
        if name.is_empty() || name.contains(&0) {
            return malformed("an extended attribute has no valid name");
        }
        self.xattr_bytes += name.len() + value.len();
        if self.xattr_bytes > limits.xattrs {
            return Err(Error::Limit {
                what: "the extended attributes of an entry".into(),
                limit: limits.xattrs as u64,
            });
        }
        self.xattrs.retain(|(n, _)| n != name);
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    /// Puts the overrides into an entry.
    pub(super) fn apply(&mut self, entry: &mut Entry) {
        fn replace<T>(slot: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *slot = value;
            }
        }
        replace(&mut entry.path, self.path.take());
        replace(&mut entry.link, self.link.take());
        replace(&mut entry.uid, self.uid);
        replace(&mut entry.gid, self.gid);
        replace(&mut entry.mtime, self.mtime);
        entry.xattrs.append(&mut self.xattrs);
        self.sparse.map_in_data = self.sparse.major == Some(1);
    }

    /// Whether user and group are overridden.
    pub(super) fn has_owner(&self) -> (bool, bool) {
        (self.uid.is_some(), self.gid.is_some())
    }

    /// These overrides on top of the global ones.
    pub(super) fn over(globals: &Fields) -> Fields {
        globals.clone()
    }
}

/// A decimal number without sign.
pub(super) fn decimal(text: &[u8], what: &str) -> Result<u64, Error> {
    let parsed = std::str::from_utf8(text)
        .ok()
        .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|t| t.parse().ok());
    match parsed {
        Some(n) => Ok(n),
        None => malformed(format!("a pax header has a {what} that is not a number")),
    }
}

/// User and group IDs have 32 bits, of which all ones means none.
pub(super) fn id(n: u64, what: &str) -> Result<u32, Error> {
    match u32::try_from(n) {
        Ok(n) if n != u32::MAX => Ok(n),
        _ => malformed(format!("{what} {n} is larger than any that Linux knows")),
    }
}

/// `[-]seconds[.fraction]`, rounded down to nanoseconds.
fn time(text: &[u8]) -> Result<(i64, u32), Error> {
    let bad = || Error::Malformed("a pax header has a time that is not a number".into());
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    let (negative, magnitude) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let seconds: i64 = whole.parse().map_err(|_| bad())?;
    let mut nanos = 0u32;
    for i in 0..9 {
        nanos = nanos * 10 + fraction.as_bytes().get(i).map_or(0, |b| u32::from(b - b'0'));
    }
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        super::super::writer::pax_record(&mut out, key.as_bytes(), value);
        out
    }

    #[test]
    fn times() {
        for (text, time) in [
            ("0", (0, 0)),
            ("1.5", (1, 500_000_000)),
            ("1700000000.123456789123", (1_700_000_000, 123_456_789)),
            ("-1.25", (-2, 750_000_000)),
            ("-3", (-3, 0)),
        ] {
            assert_eq!(super::time(text.as_bytes()).unwrap(), time, "{text}");
        }
        for bad in ["", "-", ".5", "1e5", "1.x", "99999999999999999999"] {
            assert!(super::time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn malformed_records_are_errors() {
        let limits = ReadLimits::default();
        for bad in [
            &b"5 a\n"[..],
            b"x a=b\n",
            b"999 a=b\n",
            b"6 a=b\n\n",
            b"0 a=b\n",
            b"6 ab\n  ",
            b"18446744073709551615 a=b\n",
        ] {
            assert!(Fields::default().parse(bad, &limits).is_err(), "{bad:?}");
        }
        for (key, value) in [
            ("uid", "4294967295"),
            ("uid", "-1"),
            ("size", "abc"),
            ("mtime", "x"),
            ("GNU.sparse.numbytes", "1"),
        ] {
            assert!(Fields::default().parse(&record(key, value.as_bytes()), &limits).is_err(), "{key}");
        }
    }

    #[test]
    fn the_last_value_of_an_attribute_counts() {
        let mut fields = Fields::default();
        let mut data = record("SCHILY.xattr.user.a", b"1");
        data.extend(record("SCHILY.xattr.user.a", b"2\n\0="));
        fields.parse(&data, &ReadLimits::default()).unwrap();
        let mut entry = Entry::default();
        fields.apply(&mut entry);
        assert_eq!(entry.xattrs, [(b"user.a".to_vec(), b"2\n\0=".to_vec())]);
    }
}
