//! The global header: 128 bytes at the start of the file, integers little-endian.

use crate::bytes::{Fields, put_i64};

pub const LENGTH: usize = 128;
pub const LAUNCH_LENGTH: usize = 32;
/// What makes the file runnable as a program where `run-singularity` is installed.
pub const LAUNCH: &[u8] = b"#!/usr/bin/env run-singularity\n";
pub const MAGIC: &[u8; 10] = b"SIF_MAGIC\0";
pub const VERSION: &[u8; 3] = b"01\0";

/// The time of a file that has none: the first second of the year 1, which is what Apptainer writes where it is told
/// to be deterministic. Its tools leave such times out of what they print.
pub const NO_TIME: i64 = -62_135_596_800;

/// Index is code.
const ARCHITECTURES: [&str; 14] = [
    "unknown", "386", "amd64", "arm", "arm64", "ppc64", "ppc64le", "mips", "mipsle", "mips64", "mips64le",
    "s390x", "riscv64", "loong64",
];

/// A processor architecture as a SIF file writes it: two digits and a zero byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arch(pub [u8; 3]);

impl Arch {
    pub const UNKNOWN: Arch = Arch(*b"00\0");

    /// From a name as OCI images have it (`amd64`).
    pub fn from_name(name: &str) -> Option<Arch> {
        let code = ARCHITECTURES.iter().skip(1).position(|known| *known == name)? as u8 + 1;
        Some(Arch([b'0' + code / 10, b'0' + code % 10, 0]))
    }

    /// The name as OCI images have it; `unknown` for every other code.
    pub fn name(self) -> &'static str {
        let digit = |b: u8| b.is_ascii_digit().then(|| usize::from(b - b'0'));
        let code = match self.0 {
            [tens, ones, 0] => digit(tens).zip(digit(ones)).map(|(t, o)| t * 10 + o),
            _ => None,
        };
        code.and_then(|code| ARCHITECTURES.get(code)).unwrap_or(&ARCHITECTURES[0])
    }
}

/// What the header says, without the counts and places that only readers and writers need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub launch: [u8; LAUNCH_LENGTH],
    pub arch: Arch,
    /// All zeros where the file has no identity of its own.
    pub uuid: [u8; 16],
    /// Seconds since 1970; [`NO_TIME`] for none.
    pub created: i64,
    pub modified: i64,
    pub descriptors_free: i64,
    pub descriptors_total: i64,
    pub descriptors_offset: i64,
    pub descriptors_size: i64,
    pub data_offset: i64,
    pub data_size: i64,
}

impl Header {
    /// `Err` says why it is none.
    pub fn decode(bytes: &[u8; LENGTH]) -> Result<Header, &'static str> {
        let mut fields = Fields(bytes);
        let launch = fields.array();
        if fields.array() != *MAGIC {
            return Err("it does not have the mark of one");
        }
        if fields.array() != *VERSION {
            return Err("its version is not 01");
        }
        Ok(Header {
            launch,
            arch: Arch(fields.array()),
            uuid: fields.array(),
            created: fields.i64(),
            modified: fields.i64(),
            descriptors_free: fields.i64(),
            descriptors_total: fields.i64(),
            descriptors_offset: fields.i64(),
            descriptors_size: fields.i64(),
            data_offset: fields.i64(),
            data_size: fields.i64(),
        })
    }

    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..32].copy_from_slice(&self.launch);
        bytes[32..42].copy_from_slice(MAGIC);
        bytes[42..45].copy_from_slice(VERSION);
        bytes[45..48].copy_from_slice(&self.arch.0);
        bytes[48..64].copy_from_slice(&self.uuid);
        let numbers = [
            self.created,
            self.modified,
            self.descriptors_free,
            self.descriptors_total,
            self.descriptors_offset,
            self.descriptors_size,
            self.data_offset,
            self.data_size,
        ];
        for (at, number) in (64..).step_by(8).zip(numbers) {
            put_i64(&mut bytes, at, number);
        }
        bytes
    }

    /// The line that starts the file as a program, without its end; empty where there is none.
    pub fn launch_line(&self) -> String {
        let end = self.launch.iter().position(|b| *b == 0).unwrap_or(LAUNCH_LENGTH);
        String::from_utf8_lossy(&self.launch[..end]).trim_end_matches('\n').to_owned()
    }

    /// The UUID as people write it; `None` where it is nil.
    pub fn uuid_text(&self) -> Option<String> {
        let hex = isles_spec::digest::hex(&self.uuid);
        let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        (self.uuid != [0; 16]).then(|| parts.join("-"))
    }

    /// Whether nothing in the header tells one making of the file from another: then nothing that is changed later
    /// brings in a time either.
    pub fn is_deterministic(&self) -> bool {
        self.uuid == [0; 16] && self.created == NO_TIME && self.modified == NO_TIME
    }

    /// What a signature covers of the header: not the architecture, the times and the places.
    pub fn integrity(&self) -> Vec<u8> {
        [self.launch.as_slice(), MAGIC, VERSION, &self.uuid].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_have_their_codes() {
        for (name, code) in [("386", "01\0"), ("amd64", "02\0"), ("arm64", "04\0"), ("loong64", "13\0")] {
            let arch = Arch::from_name(name).unwrap();
            assert_eq!((arch.0.as_slice(), arch.name()), (code.as_bytes(), name));
        }
        assert_eq!(Arch::from_name("unknown"), None);
        for odd in [*b"00\0", *b"99\0", *b"0200".first_chunk().unwrap(), [0xff; 3], *b"14\0"] {
            assert_eq!(Arch(odd).name(), "unknown", "{odd:?}");
        }
    }
}
