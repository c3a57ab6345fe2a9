//! Descriptors: 585 bytes for each object that a file may hold, packed, integers little-endian.

use crate::bytes::{Fields, put_i32, put_i64, put_u32};
use crate::header::Arch;

pub const LENGTH: usize = 585;
pub const NAME_LENGTH: usize = 128;
pub const EXTRA_LENGTH: usize = 384;
/// Where the byte stands that says whether the descriptor is in use.
pub const USED_AT: usize = 4;
pub const EXTRA_AT: usize = 201;
/// Groups, and links to groups, are told from IDs by these bits.
const GROUP: u32 = 0xf000_0000;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Definition,
    Environment,
    Labels,
    Partition,
    Signature,
    Json,
    Generic,
    CryptoMessage,
    Sbom,
    OciRootIndex,
    OciBlob,
    /// One that this version of the format does not know; it is kept and counts for nothing.
    Other(i32),
}

impl Kind {
    /// Those that are known, in the order of their codes.
    pub const ALL: [Kind; 11] = [
        Kind::Definition,
        Kind::Environment,
        Kind::Labels,
        Kind::Partition,
        Kind::Signature,
        Kind::Json,
        Kind::Generic,
        Kind::CryptoMessage,
        Kind::Sbom,
        Kind::OciRootIndex,
        Kind::OciBlob,
    ];

    pub fn from_code(code: i32) -> Kind {
        let index = code.checked_sub(0x4001).and_then(|n| usize::try_from(n).ok());
        index.and_then(|n| Kind::ALL.get(n).copied()).unwrap_or(Kind::Other(code))
    }

    pub fn code(self) -> i32 {
        match self {
            Kind::Other(code) => code,
            known => 0x4001 + Kind::ALL.iter().position(|kind| *kind == known).map_or(0, |n| n as i32),
        }
    }

    /// The name that the tools of the format print.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Definition => "Def.FILE",
            Kind::Environment => "Env.Vars",
            Kind::Labels => "JSON.Labels",
            Kind::Partition => "FS",
            Kind::Signature => "Signature",
            Kind::Json => "JSON.Generic",
            Kind::Generic => "Generic/Raw",
            Kind::CryptoMessage => "Cryptographic Message",
            Kind::Sbom => "SBOM",
            Kind::OciRootIndex => "OCI.RootIndex",
            Kind::OciBlob => "OCI.Blob",
            Kind::Other(_) => "Unknown",
        }
    }
}

/// A small number with the words that the tools of the format print for it.
macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $code:literal $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($variant,)* Other(i32) }

        impl $name {
            pub fn from_code(code: i32) -> $name {
                match code { $($code => $name::$variant,)* other => $name::Other(other) }
            }

            pub fn code(self) -> i32 {
                match self { $($name::$variant => $code,)* $name::Other(code) => code }
            }

            /// The word that the tools of the format print.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $word,)* $name::Other(_) => "Unknown" }
            }
        }
    };
}

codes! {
    /// The file system in a partition.
    FileSystem {
        Squashfs = 1 "Squashfs",
        Ext3 = 2 "Ext3",
        Archive = 3 "Archive",
        Raw = 4 "Raw",
        EncryptedSquashfs = 5 "Encrypted squashfs",
        GocryptfsSquashfs = 6 "Gocryptfs squashfs",
    }
}

codes! {
    /// What a partition is for.
    Role {
        System = 1 "System",
        Primary = 2 "*System",
        Data = 3 "Data",
        Overlay = 4 "Overlay",
    }
}

codes! {
    /// The hash function that a signature is made with.
    Hash {
        Sha256 = 1 "SHA-256",
        Sha384 = 2 "SHA-384",
        Sha512 = 3 "SHA-512",
        Blake2s = 4 "BLAKE2s-256",
        Blake2b = 5 "BLAKE2b-256",
    }
}

codes! {
    MessageFormat {
        OpenPgp = 1 "OpenPGP",
        Pem = 2 "PEM",
    }
}

codes! {
    MessageKind {
        ClearSignature = 0x100 "Clear Signature",
        RsaOaep = 0x200 "RSA-OAEP",
    }
}

codes! {
    SbomFormat {
        CycloneDxJson = 1 "cyclonedx-json",
        CycloneDxXml = 2 "cyclonedx-xml",
        GitHubJson = 3 "github-json",
        SpdxJson = 4 "spdx-json",
        SpdxRdf = 5 "spdx-rdf",
        SpdxTagValue = 6 "spdx-tag-value",
        SpdxYaml = 7 "spdx-yaml",
        SyftJson = 8 "syft-json",
    }
}

/// What the descriptor of a partition says beyond what all say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    pub file_system: FileSystem,
    pub role: Role,
    pub arch: Arch,
}

/// The part of a descriptor whose meaning depends on the kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extra {
    None,
    Partition(Partition),
    /// The fingerprint is that of the primary key; signatures that are not OpenPGP's have none.
    Signature {
        hash: Hash,
        fingerprint: Option<[u8; 20]>,
    },
    CryptoMessage {
        format: MessageFormat,
        kind: MessageKind,
    },
    Sbom(SbomFormat),
    /// The digest of the content, `sha256:…`, as it is written there.
    OciDigest(String),
}

impl Extra {
    fn decode(kind: Kind, bytes: &[u8; EXTRA_LENGTH]) -> Extra {
        let mut fields = Fields(bytes);
        match kind {
            Kind::Partition => Extra::Partition(Partition {
                file_system: FileSystem::from_code(fields.i32()),
                role: Role::from_code(fields.i32()),
                arch: Arch(fields.array()),
            }),
            Kind::Signature => {
                let hash = Hash::from_code(fields.i32());
                let fingerprint = fields.array();
                Extra::Signature { hash, fingerprint: (fingerprint != [0; 20]).then_some(fingerprint) }
            }
            Kind::CryptoMessage => Extra::CryptoMessage {
                format: MessageFormat::from_code(fields.i32()),
                kind: MessageKind::from_code(fields.i32()),
            },
            Kind::Sbom => Extra::Sbom(SbomFormat::from_code(fields.i32())),
            Kind::OciRootIndex | Kind::OciBlob => Extra::OciDigest(text(bytes)),
            _ => Extra::None,
        }
    }

    /// `None` where it does not fit.
    pub(crate) fn encode(&self) -> Option<[u8; EXTRA_LENGTH]> {
        let mut bytes = [0; EXTRA_LENGTH];
        match self {
            Extra::None => {}
            Extra::Partition(Partition { file_system, role, arch }) => {
                put_i32(&mut bytes, 0, file_system.code());
                put_i32(&mut bytes, 4, role.code());
                bytes[8..11].copy_from_slice(&arch.0);
            }
            Extra::Signature { hash, fingerprint } => {
                put_i32(&mut bytes, 0, hash.code());
                bytes[4..24].copy_from_slice(&fingerprint.unwrap_or_default());
            }
            Extra::CryptoMessage { format, kind } => {
                put_i32(&mut bytes, 0, format.code());
                put_i32(&mut bytes, 4, kind.code());
            }
            Extra::Sbom(format) => put_i32(&mut bytes, 0, format.code()),
            Extra::OciDigest(digest) => {
                bytes.get_mut(..digest.len())?.copy_from_slice(digest.as_bytes());
            }
        }
        Some(bytes)
    }
}

/// Up to the first zero byte, or all of it.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// What an object belongs to without being in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    None,
    Object(u32),
    Group(u32),
}

impl Link {
    fn decode(raw: u32) -> Link {
        match (raw & !GROUP, raw & GROUP == GROUP) {
            (0, _) => Link::None,
            (group, true) => Link::Group(group),
            (_, false) => Link::Object(raw),
        }
    }

    pub(crate) fn encode(self) -> u32 {
        match self {
            Link::None => 0,
            Link::Object(id) => id,
            Link::Group(group) => group | GROUP,
        }
    }
}

/// One object of a file: what its descriptor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub kind: Kind,
    /// Unique in the file, and never 0.
    pub id: u32,
    /// 0 for none.
    pub group: u32,
    pub link: Link,
    /// Where its bytes begin in the file, and how many they are.
    pub offset: u64,
    pub size: u64,
    /// The size with the gap before it that aligns it.
    pub padded_size: i64,
    /// Seconds since 1970; [`NO_TIME`](crate::NO_TIME) for none.
    pub created: i64,
    pub modified: i64,
    pub name: String,
    pub extra: Extra,
    /// Which descriptor of the table this is.
    pub(crate) slot: usize,
    /// As it stands in the file, for what a signature covers.
    pub(crate) raw: Box<[u8; LENGTH]>,
}

impl Object {
    /// `None` for a descriptor that is not in use; `Err` says what is wrong with it.
    pub(crate) fn decode(slot: usize, raw: &[u8; LENGTH]) -> Result<Option<Object>, &'static str> {
        let mut fields = Fields(raw);
        let kind = Kind::from_code(fields.i32());
        if fields.byte() == 0 {
            return Ok(None);
        }
        let (id, group, link) = (fields.u32(), fields.u32(), fields.u32());
        let size = |n: i64, what| u64::try_from(n).map_err(|_| what);
        let offset = size(fields.i64(), "an object begins before the file")?;
        let length = size(fields.i64(), "an object has a negative size")?;
        let padded_size = fields.i64();
        let (created, modified) = (fields.i64(), fields.i64());
        let (_uid, _gid) = (fields.i64(), fields.i64());
        let name: [u8; NAME_LENGTH] = fields.array();
        let extra: [u8; EXTRA_LENGTH] = fields.array();
        if id == 0 {
            return Err("an object has the ID 0");
        }
        Ok(Some(Object {
            kind,
            id,
            group: group & !GROUP,
            link: Link::decode(link),
            offset,
            size: length,
            padded_size,
            created,
            modified,
            name: text(&name),
            extra: Extra::decode(kind, &extra),
            slot,
            raw: Box::new(*raw),
        }))
    }

    /// What the descriptor says where it is a partition.
    pub fn partition(&self) -> Option<&Partition> {
        match &self.extra {
            Extra::Partition(partition) => Some(partition),
            _ => None,
        }
    }

    /// The first byte behind it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.size)
    }

    /// What a signature covers of the descriptor: not where its bytes are, nor its group and when it was changed.
    /// `first_id` is the lowest ID of its group.
    pub fn integrity(&self, first_id: u32) -> Vec<u8> {
        let raw = self.raw.as_slice();
        let mut covered = Vec::with_capacity(LENGTH);
        covered.extend_from_slice(&raw[..4]);
        covered.push(1);
        covered.extend_from_slice(&self.id.wrapping_sub(first_id).to_le_bytes());
        covered.extend_from_slice(&raw[13..17]);
        covered.extend_from_slice(&raw[25..33]);
        covered.extend_from_slice(&raw[41..49]);
        covered.extend_from_slice(&raw[57..LENGTH]);
        covered
    }
}

/// The descriptor of an object that is about to be written.
pub(crate) struct Draft<'a> {
    pub kind: Kind,
    pub id: u32,
    pub group: u32,
    pub link: Link,
    pub offset: u64,
    pub size: u64,
    pub padded_size: u64,
    pub time: i64,
    pub name: &'a [u8],
    pub extra: [u8; EXTRA_LENGTH],
}

impl Draft<'_> {
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        put_i32(&mut bytes, 0, self.kind.code());
        bytes[USED_AT] = 1;
        put_u32(&mut bytes, 5, self.id);
        put_u32(&mut bytes, 9, self.group | GROUP);
        put_u32(&mut bytes, 13, self.link.encode());
        put_i64(&mut bytes, 17, self.offset.cast_signed());
        put_i64(&mut bytes, 25, self.size.cast_signed());
        put_i64(&mut bytes, 33, self.padded_size.cast_signed());
        put_i64(&mut bytes, 41, self.time);
        put_i64(&mut bytes, 49, self.time);
        bytes[73..73 + self.name.len()].copy_from_slice(self.name);
        bytes[EXTRA_AT..].copy_from_slice(&self.extra);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_codes() {
        for (kind, code) in [(Kind::Definition, 0x4001), (Kind::Partition, 0x4004), (Kind::OciBlob, 0x400b)] {
            assert_eq!((kind.code(), Kind::from_code(code)), (code, kind));
        }
        for odd in [0, -1, i32::MIN, i32::MAX, 0x4000, 0x400c] {
            assert_eq!(Kind::from_code(odd), Kind::Other(odd));
            assert_eq!(Kind::Other(odd).code(), odd);
        }
    }

    #[test]
    fn links_are_objects_or_groups() {
        for (raw, link) in
            [(0, Link::None), (GROUP, Link::None), (3, Link::Object(3)), (GROUP | 2, Link::Group(2))]
        {
            assert_eq!(Link::decode(raw), link, "{raw:x}");
        }
    }
}
