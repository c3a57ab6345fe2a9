//! Signatures of version 4 (RFC 9580, section 5.2): taken apart, and held against a keyring.

use crate::bytes::{Bytes, Malformed, Result};
use crate::key::{Fingerprint, Key, TAG_SIGNATURE};

pub(crate) const TYPE_BINARY: u8 = 0x00;
pub(crate) const TYPE_TEXT: u8 = 0x01;

/// What a signature is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// The key is in the keyring and the signature is not over this text.
    Bad,
    /// The key had expired, or the signature has, at the time given (seconds since 1970).
    Expired(u64),
    Revoked,
    /// No key for it, or made in a way that is not understood.
    Unknown,
}

/// A signature over a document.
#[derive(Debug, Clone)]
pub struct Signature {
    pub(crate) kind: u8,
    pub(crate) key_algorithm: u8,
    pub(crate) hash: u8,
    /// From the version up to the end of the hashed subpackets.
    pub(crate) hashed: Vec<u8>,
    /// Seconds since 1970.
    pub created: u64,
    pub(crate) lifetime: Option<u64>,
    pub(crate) key_lifetime: Option<u64>,
    /// Who is said to have signed, where it is said.
    pub issuer_fingerprint: Option<Fingerprint>,
    pub(crate) issuer: Option<[u8; 8]>,
    pub(crate) left: [u8; 2],
    pub(crate) values: Vec<Vec<u8>>,
    /// Bodies of signatures that are in this one.
    pub(crate) embedded: Vec<Vec<u8>>,
    pub(crate) understood: bool,
}

impl Signature {
    /// `None` for a version that is not 4.
    pub(crate) fn parse(body: &[u8]) -> Result<Option<Signature>> {
        let mut bytes = Bytes(body);
        if bytes.byte()? != 4 {
            return Ok(None);
        }
        let (kind, key_algorithm, hash) = (bytes.byte()?, bytes.byte()?, bytes.byte()?);
        let length = bytes.u16()?;
        let hashed_area = bytes.take(length)?;
        let length = bytes.u16()?;
        let unhashed_area = bytes.take(length)?;
        let left = bytes.array()?;
        let values = match key_algorithm {
            1 | 3 => vec![bytes.integer()?],
            22 => vec![bytes.integer()?, bytes.integer()?],
            27 => vec![bytes.take(64)?.to_vec()],
            _ => Vec::new(),
        };
        let mut signature = Signature {
            kind,
            key_algorithm,
            hash,
            hashed: body[..6 + hashed_area.len()].to_vec(),
            created: 0,
            lifetime: None,
            key_lifetime: None,
            issuer_fingerprint: None,
            issuer: None,
            left,
            embedded: Vec::new(),
            understood: !values.is_empty(),
            values,
        };
        signature.subpackets(hashed_area, true)?;
        signature.subpackets(unhashed_area, false)?;
        if signature.created == 0 {
            signature.understood = false;
        }
        Ok(Some(signature))
    }

    fn subpackets(&mut self, area: &[u8], hashed: bool) -> Result<()> {
        let mut bytes = Bytes(area);
        while !bytes.0.is_empty() {
            let length = match bytes.byte()? {
                first @ 0..=191 => usize::from(first),
                first @ 192..=254 => ((usize::from(first) - 192) << 8) + usize::from(bytes.byte()?) + 192,
                255 => bytes.length32()?,
            };
            let mut packet = Bytes(bytes.take(length)?);
            let tag = packet.byte()?;
            match (tag & 0x7f, hashed) {
                (2, true) => self.created = packet.u32()?,
                (3, true) => self.lifetime = Some(packet.u32()?).filter(|s| *s != 0),
                (9, true) => self.key_lifetime = Some(packet.u32()?).filter(|s| *s != 0),
                // Who is said to have signed is only where to look for the key.
                (16, _) => self.issuer = Some(packet.array()?),
                (33, _) => {
                    let is_known = packet.byte()? == 4;
                    let named = is_known.then(|| packet.array()).transpose()?;
                    self.issuer_fingerprint = named.or(self.issuer_fingerprint);
                }
                // It is verified itself, so it may stand in either part.
                (32, _) => self.embedded.push(packet.0.to_vec()),
                // Flags, preferences and the like change nothing about validity. Unhashed ones bind nobody.
                (4 | 7 | 11 | 20..=31 | 34 | 35 | 39, _) | (_, false) => {}
                (_, true) if tag & 0x80 != 0 => self.understood = false,
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn may_be_of(&self, key: &Key) -> bool {
        match (&self.issuer_fingerprint, &self.issuer) {
            (Some(fingerprint), _) => *fingerprint == key.fingerprint,
            (None, Some(id)) => id == key.id(),
            (None, None) => true,
        }
    }

    /// The issuer, for people.
    pub fn issuer_name(&self) -> String {
        let bytes = match (&self.issuer_fingerprint, &self.issuer) {
            (Some(fingerprint), _) => fingerprint.as_slice(),
            (None, Some(id)) => id.as_slice(),
            (None, None) => return "an unnamed key".to_owned(),
        };
        bytes.iter().map(|b| format!("{b:02X}")).collect()
    }

    /// What this signature says about `text`, at the time `now` (seconds since 1970). `text` has the line
    /// ends that the format wants (CR LF).
    pub fn verify(&self, keyring: &[Key], text: &[u8], now: u64) -> Verdict {
        if !self.understood || !matches!(self.kind, TYPE_BINARY | TYPE_TEXT) {
            return Verdict::Unknown;
        }
        let mut verdict = Verdict::Unknown;
        for key in keyring.iter().filter(|k| self.may_be_of(k)) {
            if !matches!(self.hash, 8..=10) {
                continue;
            }
            if !key.verifies(self, text) {
                // Without a named issuer this was only a try.
                let named = self.issuer_fingerprint.is_some() || self.issuer.is_some();
                if named && verdict == Verdict::Unknown {
                    verdict = Verdict::Bad;
                }
                continue;
            }
            let end_of_signature = self.lifetime.map(|s| self.created.saturating_add(s));
            let ends = [key.expires, end_of_signature].into_iter().flatten().min();
            return match ends {
                _ if key.revoked => Verdict::Revoked,
                Some(end) if end <= now => Verdict::Expired(end),
                _ if self.created < key.created => Verdict::Bad,
                _ => Verdict::Good,
            };
        }
        verdict
    }
}

/// The signatures in a sequence of packets.
pub fn signatures(packets: &[u8]) -> Result<Vec<Signature>> {
    let mut bytes = Bytes(packets);
    let mut found = Vec::new();
    while !bytes.0.is_empty() {
        let (tag, body) = bytes.packet()?;
        if tag == TAG_SIGNATURE {
            found.extend(Signature::parse(body)?);
        }
        if found.len() > 100 {
            return Err(Malformed("there are too many signatures"));
        }
    }
    Ok(found)
}
