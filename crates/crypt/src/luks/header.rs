//! The header: a binary part of 4096 bytes, and a document in JSON behind it (sections 2 and 3). Both stand there twice.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};

use super::Part;
use crate::error::{Error, Result, damaged, unsupported};
use crate::kdf::{Hash, Kdf};

/// Bytes of the binary part.
pub(super) const BINARY: usize = 4096;
/// The smallest and the largest size of a copy; all powers of two between them are sizes.
pub(super) const SMALLEST: u64 = 16 << 10;
const LARGEST: u64 = 4 << 20;
pub(super) const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
pub(super) const SECOND_MAGIC: &[u8; 6] = b"SKUL\xba\xbe";
/// Where fields are in the binary part.
pub(super) mod at {
    pub const VERSION: usize = 6;
    pub const SIZE: usize = 8;
    pub const SEQUENCE: usize = 16;
    pub const CHECKSUM_NAME: usize = 72;
    pub const SALT: usize = 104;
    pub const UUID: usize = 168;
    pub const OFFSET: usize = 256;
    pub const CHECKSUM: usize = 448;
    pub const CHECKSUM_END: usize = 512;
}
/// The only cipher that is read.
pub(super) const CIPHER: &str = "aes-xts-plain64";
/// What cryptsetup always makes, and the most that is read.
pub(super) const STRIPES: usize = 4000;
/// Slots that there may be.
const MOST_SLOTS: usize = 32;

/// What a container says of itself, as far as it is needed.
#[derive(Debug)]
pub(super) struct Header {
    keyslots: Vec<(String, Keyslot)>,
    segments: Vec<(String, Segment)>,
    digests: Vec<Digest>,
}

/// A slot with an encrypted key.
#[derive(Debug)]
pub(super) struct Keyslot {
    /// Bytes of the volume's key, and of the one that it is encrypted with.
    pub key: usize,
    pub area_key: usize,
    pub stripes: usize,
    pub hash: Hash,
    /// Where the stripes begin.
    pub area: u64,
    pub kdf: Kdf,
}

/// Where the data is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub offset: u64,
    /// Up to the end where not given.
    pub size: Option<u64>,
    pub sector: u64,
    pub tweak: u64,
}

/// What tells that a key is right.
#[derive(Debug)]
pub(super) struct Digest {
    slots: Vec<String>,
    segments: Vec<String>,
    pub kdf: Kdf,
    pub value: Vec<u8>,
}

impl Header {
    /// Reads the first copy, or the second one where the first is damaged.
    pub fn read(part: &Part<'_>) -> Result<Header> {
        let first = copy_at(part, 0, MAGIC).and_then(|json| Header::parse(&json));
        let Err(error) = first else { return first };
        if !matches!(error, Error::Damaged { .. } | Error::Other { .. }) {
            return Err(error);
        }
        let mut offset = SMALLEST;
        while offset <= LARGEST {
            if let Ok(json) = copy_at(part, offset, SECOND_MAGIC) {
                return Header::parse(&json);
            }
            offset *= 2;
        }
        Err(error)
    }

    pub fn parse(json: &[u8]) -> Result<Header> {
        let written: Written = serde_json::from_slice(json)
            .map_err(|e| Error::Damaged { what: format!("the document in its header: {e}") })?;
        if let Some(name) = written.config.requirements.names().first() {
            return unsupported(format!("a container with the requirement '{name}'"));
        }
        if written.keyslots.len() > MOST_SLOTS {
            return damaged(format!("it has {} slots for keys", written.keyslots.len()));
        }
        let mut keyslots = Vec::new();
        for (name, slot) in written.keyslots {
            if let WrittenSlot::Luks2(slot) = slot
                && slot.priority != Some(0)
            {
                keyslots.push((slot.priority.unwrap_or(1), name, slot.check()?));
            }
        }
        keyslots.sort_by_key(|(priority, ..)| std::cmp::Reverse(*priority));
        let keyslots = keyslots.into_iter().map(|(_, name, slot)| (name, slot)).collect();
        let segments = written.segments.into_iter().map(|(name, segment)| Ok((name, segment.check()?)));
        let digests = written.digests.into_values().map(WrittenDigest::check);
        Ok(Header {
            keyslots,
            segments: segments.collect::<Result<_>>()?,
            digests: digests.collect::<Result<_>>()?,
        })
    }

    /// In the order in which they are to be tried.
    pub fn keyslots(&self) -> impl Iterator<Item = (&str, &Keyslot)> {
        self.keyslots.iter().map(|(name, slot)| (name.as_str(), slot))
    }

    pub fn segment(&self) -> Result<&Segment> {
        match self.segments.as_slice() {
            [(_, segment)] => Ok(segment),
            [] => damaged("it has no data"),
            several => unsupported(format!("a container with {} segments", several.len())),
        }
    }

    /// The digest of the key in a slot, which is that of the segment.
    pub fn digest(&self, slot: &str) -> Result<&Digest> {
        let has = |names: &[String], name: &str| names.iter().any(|n| n == name);
        let of_segment = |digest: &&Digest| self.segments.iter().all(|(name, _)| has(&digest.segments, name));
        let found = self.digests.iter().find(|digest| has(&digest.slots, slot)).filter(of_segment);
        found.ok_or_else(|| Error::Damaged {
            what: format!("nothing tells whether the key in slot {slot} is right"),
        })
    }
}

/// The document in the copy of the header at `offset`.
fn copy_at(part: &Part<'_>, offset: u64, magic: &[u8; 6]) -> Result<Vec<u8>> {
    let other = |reason: &str| Err(Error::Other { form: "LUKS2 container", reason: reason.to_owned() });
    if part.len < SMALLEST {
        return other(&format!("it has {} bytes", part.len));
    }
    let mut binary = vec![0; BINARY];
    part.read(&mut binary, offset)?;
    let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|n| binary[at + n]));
    if !binary.starts_with(magic) {
        return other("it does not begin as one");
    }
    let version = u16::from_be_bytes([binary[at::VERSION], binary[at::VERSION + 1]]);
    if version != 2 {
        return unsupported(format!("version {version} of LUKS"));
    }
    let size = number(at::SIZE);
    if !size.is_power_of_two() || !(SMALLEST..=LARGEST).contains(&size) || number(at::OFFSET) != offset {
        return damaged("the size of its header");
    }
    let name = &binary[at::CHECKSUM_NAME..at::SALT];
    let name = name.split(|b| *b == 0).next().unwrap_or_default();
    let hash = Hash::named(&String::from_utf8_lossy(name))?;
    let mut whole = binary;
    whole.resize(size as usize, 0);
    part.read(&mut whole[BINARY..], offset + BINARY as u64)?;
    if checksum(&mut whole, hash) {
        let json = &whole[BINARY..];
        return Ok(json.split(|b| *b == 0).next().unwrap_or_default().to_vec());
    }
    damaged("the checksum of its header")
}

/// Whether the checksum is right, which is cleared.
fn checksum(whole: &mut [u8], hash: Hash) -> bool {
    let written = whole[at::CHECKSUM..at::CHECKSUM_END].to_vec();
    whole[at::CHECKSUM..at::CHECKSUM_END].fill(0);
    written.starts_with(hash.digest(&[whole]).as_ref())
}

// What the document says, word for word. Unknown members are of no concern: what must be understood is a requirement.

#[derive(Deserialize)]
struct Written {
    keyslots: BTreeMap<String, WrittenSlot>,
    segments: BTreeMap<String, WrittenSegment>,
    digests: BTreeMap<String, WrittenDigest>,
    #[serde(default)]
    config: WrittenConfig,
}

#[derive(Default, Deserialize)]
struct WrittenConfig {
    #[serde(default)]
    requirements: Requirements,
}

/// A list, or an object with one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Requirements {
    List(Vec<String>),
    Object {
        #[serde(default)]
        mandatory: Vec<String>,
    },
}

impl Default for Requirements {
    fn default() -> Self {
        Requirements::List(Vec::new())
    }
}

impl Requirements {
    fn names(&self) -> &[String] {
        match self {
            Requirements::List(names) | Requirements::Object { mandatory: names } => names,
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum WrittenSlot {
    Luks2(WrittenLuksSlot),
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
struct WrittenLuksSlot {
    key_size: usize,
    priority: Option<i64>,
    af: WrittenAf,
    area: WrittenArea,
    kdf: WrittenKdf,
}

#[derive(Deserialize)]
struct WrittenAf {
    #[serde(rename = "type")]
    kind: String,
    stripes: usize,
    hash: String,
}

#[derive(Deserialize)]
struct WrittenArea {
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "number")]
    offset: u64,
    encryption: String,
    key_size: usize,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum WrittenKdf {
    Pbkdf2 { hash: String, iterations: u32, salt: String },
    Argon2i { time: u32, memory: u32, cpus: u32, salt: String },
    Argon2id { time: u32, memory: u32, cpus: u32, salt: String },
}

#[derive(Deserialize)]
struct WrittenSegment {
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "number")]
    offset: u64,
    size: String,
    #[serde(default)]
    iv_tweak: Option<String>,
    #[serde(default)]
    encryption: String,
    #[serde(default)]
    sector_size: u64,
    #[serde(default)]
    integrity: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct WrittenDigest {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    hash: String,
    iterations: u32,
    salt: String,
    digest: String,
}

/// Numbers of 64 bits stand there as text.
fn number<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(|_| serde::de::Error::custom(format!("'{text}' is no number")))
}

fn bytes(what: &str, text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|_| Error::Damaged { what: format!("{what} in its header is no base64") })
}

fn only(what: &str, found: &str, known: &str) -> Result<()> {
    if found == known { Ok(()) } else { unsupported(format!("{what} '{found}'")) }
}

fn key_size(size: usize) -> Result<usize> {
    if matches!(size, 32 | 64) {
        Ok(size)
    } else {
        unsupported(format!("a key of {size} bytes for {CIPHER}"))
    }
}

impl WrittenLuksSlot {
    fn check(self) -> Result<Keyslot> {
        only("the way to split keys", &self.af.kind, "luks1")?;
        only("the kind of area", &self.area.kind, "raw")?;
        only("the cipher", &self.area.encryption, CIPHER)?;
        let stripes = self.af.stripes;
        if !(1..=STRIPES).contains(&stripes) {
            return damaged(format!("a key of {stripes} stripes"));
        }
        let kdf = match self.kdf {
            WrittenKdf::Pbkdf2 { hash, iterations, salt } => {
                Kdf::Pbkdf2 { hash: Hash::named(&hash)?, iterations, salt: bytes("a salt", &salt)? }
            }
            WrittenKdf::Argon2i { time, memory, cpus, salt } => {
                Kdf::Argon2 { id: false, passes: time, memory, lanes: cpus, salt: bytes("a salt", &salt)? }
            }
            WrittenKdf::Argon2id { time, memory, cpus, salt } => {
                Kdf::Argon2 { id: true, passes: time, memory, lanes: cpus, salt: bytes("a salt", &salt)? }
            }
        };
        Ok(Keyslot {
            key: key_size(self.key_size)?,
            area_key: key_size(self.area.key_size)?,
            stripes,
            hash: Hash::named(&self.af.hash)?,
            area: self.area.offset,
            kdf,
        })
    }
}

impl WrittenSegment {
    fn check(self) -> Result<Segment> {
        only("the kind of segment", &self.kind, "crypt")?;
        only("the cipher", &self.encryption, CIPHER)?;
        if self.integrity.is_some() {
            return unsupported("a container whose sectors have checksums");
        }
        let sector = self.sector_size;
        if !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
            return damaged(format!("sectors of {sector} bytes"));
        }
        let parse = |text: &str| {
            text.parse::<u64>().map_err(|_| Error::Damaged { what: format!("'{text}' is no number") })
        };
        let size = if self.size == "dynamic" { None } else { Some(parse(&self.size)?) };
        if size.is_some_and(|size| size % sector != 0) {
            return damaged("its data ends within a sector");
        }
        let tweak = self.iv_tweak.as_deref().map_or(Ok(0), parse)?;
        Ok(Segment { offset: self.offset, size, sector, tweak })
    }
}

impl WrittenDigest {
    fn check(self) -> Result<Digest> {
        only("the kind of digest", &self.kind, "pbkdf2")?;
        let value = bytes("a digest", &self.digest)?;
        // No digest is longer than its hash function gives, and none may be so short that any key has it.
        if !(20..=64).contains(&value.len()) {
            return damaged(format!("a digest of {} bytes", value.len()));
        }
        let hash = Hash::named(&self.hash)?;
        let kdf = Kdf::Pbkdf2 { hash, iterations: self.iterations, salt: bytes("a salt", &self.salt)? };
        Ok(Digest { slots: self.keyslots, segments: self.segments, kdf, value })
    }
}
