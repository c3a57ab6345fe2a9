//! As much of OpenPGP as it takes to know who signed an archive: keyrings, and signatures of version 4 with
//! RSA or Ed25519 over SHA-2 (RFC 9580; RFC 4880 for what keyrings of today still have).
//!
//! Nothing is decrypted and nothing is signed. Whatever is unknown (algorithms, versions, critical
//! subpackets) makes a key or a signature count for nothing, never for something. The keyring is the
//! user's own and is believed to hold only keys that may sign; that subkeys belong to their primary key is
//! checked nevertheless, because that is where expiry and revocation are said.

use ring::digest;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};

/// A keyring or a block of signatures may have this many bytes.
pub const LIMIT: usize = 4 << 20;

const TAG_SIGNATURE: u8 = 2;
const TAG_KEY: u8 = 6;
const TAG_USER: u8 = 13;
const TAG_SUBKEY: u8 = 14;

const TYPE_BINARY: u8 = 0x00;
const TYPE_TEXT: u8 = 0x01;
const TYPE_SUBKEY_BINDING: u8 = 0x18;
const TYPE_DIRECT: u8 = 0x1f;
const TYPE_KEY_REVOCATION: u8 = 0x20;
const TYPE_SUBKEY_REVOCATION: u8 = 0x28;

/// The curve of EdDSA keys of version 4, 1.3.6.1.4.1.11591.15.1.
const ED25519_OID: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];

/// Bytes that do not follow the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

type Result<T> = std::result::Result<T, Malformed>;

/// A 20-byte fingerprint of a key of version 4.
pub type Fingerprint = [u8; 20];

#[derive(Debug, Clone)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ed25519([u8; 32]),
}

/// One key that can verify.
#[derive(Debug, Clone)]
pub struct Key {
    pub fingerprint: Fingerprint,
    material: Material,
    /// The packet's body, which bindings are made over.
    body: Vec<u8>,
    created: u64,
    /// Seconds since 1970.
    pub expires: Option<u64>,
    pub revoked: bool,
    /// The first user ID of the primary key, for people.
    pub owner: String,
}

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
    kind: u8,
    key_algorithm: u8,
    hash: u8,
    /// From the version up to the end of the hashed subpackets.
    hashed: Vec<u8>,
    created: u64,
    lifetime: Option<u64>,
    key_lifetime: Option<u64>,
    issuer_fingerprint: Option<Fingerprint>,
    issuer: Option<[u8; 8]>,
    left: [u8; 2],
    values: Vec<Vec<u8>>,
    understood: bool,
}

/// A cursor over bytes that refuses to run over their end.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed("it is cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<usize> {
        Ok(usize::from(u16::from_be_bytes(self.array()?)))
    }

    fn u32(&mut self) -> Result<u64> {
        Ok(u64::from(u32::from_be_bytes(self.array()?)))
    }

    /// A multi-precision integer without its leading zeros.
    fn integer(&mut self) -> Result<Vec<u8>> {
        let bits = self.u16()?;
        if bits > 16384 {
            return Err(Malformed("a number is too large"));
        }
        let bytes = self.take(bits.div_ceil(8))?;
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        Ok(bytes[zeros..].to_vec())
    }

    /// The next packet's tag and body.
    fn packet(&mut self) -> Result<(u8, &'a [u8])> {
        let head = self.byte()?;
        if head & 0x80 == 0 {
            return Err(Malformed("it is not an OpenPGP packet"));
        }
        if head & 0x40 != 0 {
            let length = match self.byte()? {
                first @ 0..=191 => usize::from(first),
                first @ 192..=223 => ((usize::from(first) - 192) << 8) + usize::from(self.byte()?) + 192,
                255 => self.length32()?,
                _ => return Err(Malformed("a packet comes in parts")),
            };
            return Ok((head & 0x3f, self.take(length)?));
        }
        let length = match head & 3 {
            0 => usize::from(self.byte()?),
            1 => self.u16()?,
            2 => self.length32()?,
            _ => return Err(Malformed("a packet has no length")),
        };
        Ok(((head >> 2) & 0x0f, self.take(length)?))
    }

    fn length32(&mut self) -> Result<usize> {
        match usize::try_from(self.u32()?) {
            Ok(n) if n <= LIMIT => Ok(n),
            _ => Err(Malformed("a packet is too long")),
        }
    }
}

impl Key {
    fn parse(body: &[u8]) -> Result<Option<Key>> {
        let mut bytes = Bytes(body);
        if bytes.byte()? != 4 || body.len() > 0xffff {
            return Ok(None);
        }
        let created = bytes.u32()?;
        let material = match bytes.byte()? {
            1 | 3 => Material::Rsa { n: bytes.integer()?, e: bytes.integer()? },
            22 => {
                let length = usize::from(bytes.byte()?);
                if bytes.take(length)? != ED25519_OID {
                    return Ok(None);
                }
                let point = bytes.integer()?;
                match point.split_first() {
                    Some((0x40, rest)) => match rest.try_into() {
                        Ok(key) => Material::Ed25519(key),
                        Err(_) => return Err(Malformed("an Ed25519 key has the wrong length")),
                    },
                    _ => return Ok(None),
                }
            }
            27 => Material::Ed25519(bytes.array()?),
            _ => return Ok(None),
        };
        let framed = framed_key(body);
        let mut fingerprint = [0; 20];
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &framed);
        fingerprint.copy_from_slice(hash.as_ref());
        Ok(Some(Key {
            fingerprint,
            material,
            body: body.to_vec(),
            created,
            expires: None,
            revoked: false,
            owner: String::new(),
        }))
    }

    fn id(&self) -> &[u8] {
        &self.fingerprint[12..]
    }

    /// Whether `signature` is this key's over `data` and its own hashed part.
    fn verifies(&self, signature: &Signature, data: &[u8]) -> bool {
        let mut message = Vec::with_capacity(data.len() + signature.hashed.len() + 6);
        message.extend_from_slice(data);
        message.extend_from_slice(&signature.hashed);
        message.extend_from_slice(&[4, 0xff]);
        message.extend_from_slice(&(signature.hashed.len() as u32).to_be_bytes());
        let (algorithm, rsa) = match signature.hash {
            8 => (&digest::SHA256, &signature::RSA_PKCS1_2048_8192_SHA256),
            9 => (&digest::SHA384, &signature::RSA_PKCS1_2048_8192_SHA384),
            10 => (&digest::SHA512, &signature::RSA_PKCS1_2048_8192_SHA512),
            _ => return false,
        };
        match (&self.material, signature.key_algorithm, signature.values.as_slice()) {
            (Material::Rsa { n, e }, 1 | 3, [value]) => {
                let Some(padded) = left_pad(value, n.len()) else { return false };
                RsaPublicKeyComponents { n, e }.verify(rsa, &message, &padded).is_ok()
            }
            (Material::Ed25519(key), 22 | 27, values) => {
                let whole = match values {
                    [r, s] => match (left_pad(r, 32), left_pad(s, 32)) {
                        (Some(r), Some(s)) => [r, s].concat(),
                        _ => return false,
                    },
                    [whole] => whole.clone(),
                    _ => return false,
                };
                let hash = digest::digest(algorithm, &message);
                if hash.as_ref()[..2] != signature.left {
                    return false;
                }
                UnparsedPublicKey::new(&signature::ED25519, key).verify(hash.as_ref(), &whole).is_ok()
            }
            _ => false,
        }
    }
}

fn left_pad(value: &[u8], length: usize) -> Option<Vec<u8>> {
    let missing = length.checked_sub(value.len())?;
    let mut padded = vec![0; missing];
    padded.extend_from_slice(value);
    Some(padded)
}

fn framed_key(body: &[u8]) -> Vec<u8> {
    let mut framed = vec![0x99];
    framed.extend_from_slice(&(body.len() as u16).to_be_bytes());
    framed.extend_from_slice(body);
    framed
}

impl Signature {
    /// `None` for a version that is not 4.
    fn parse(body: &[u8]) -> Result<Option<Signature>> {
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
                // Flags, preferences and the like change nothing about validity. Unhashed ones bind nobody.
                (4 | 7 | 11 | 20..=32 | 34 | 35 | 39, _) | (_, false) => {}
                (_, true) if tag & 0x80 != 0 => self.understood = false,
                _ => {}
            }
        }
        Ok(())
    }

    fn may_be_of(&self, key: &Key) -> bool {
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

/// The keys of a keyring, in binary form or armored. Subkeys appear as keys of their own, if their primary
/// key vouches for them.
pub fn keyring(file: &[u8]) -> Result<Vec<Key>> {
    if file.len() > LIMIT {
        return Err(Malformed("it is too large"));
    }
    if file.first().is_some_and(|b| b & 0x80 != 0) {
        return keys(file);
    }
    let text = std::str::from_utf8(file).map_err(|_| Malformed("it is neither packets nor text"))?;
    let mut all = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("-----BEGIN PGP PUBLIC KEY BLOCK-----") {
        let (packets, after) = super::cleartext::armored(&rest[start..], "PUBLIC KEY BLOCK")?;
        all.extend(keys(&packets)?);
        rest = after;
    }
    if all.is_empty() { Err(Malformed("it has no key")) } else { Ok(all) }
}

fn keys(packets: &[u8]) -> Result<Vec<Key>> {
    let mut bytes = Bytes(packets);
    let mut all: Vec<Key> = Vec::new();
    // Where the primary key of the packets that follow is, and whether the latest was usable.
    let mut primary: Option<usize> = None;
    let mut subkey: Option<Key> = None;
    let mut user: Option<&[u8]> = None;
    let mut newest_self = 0;
    while !bytes.0.is_empty() {
        let (tag, body) = bytes.packet()?;
        match tag {
            TAG_KEY => {
                let parsed = Key::parse(body)?;
                primary = parsed.is_some().then_some(all.len());
                all.extend(parsed);
                (subkey, user, newest_self) = (None, None, 0);
            }
            TAG_USER => {
                user = Some(body);
                if let Some(key) = primary.map(|at| &mut all[at])
                    && key.owner.is_empty()
                {
                    key.owner = String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).collect();
                }
            }
            TAG_SUBKEY => (subkey, user) = (Key::parse(body)?, None),
            TAG_SIGNATURE => {
                let Some(at) = primary else { continue };
                let Some(signature) = Signature::parse(body)? else { continue };
                let main = &all[at];
                if !signature.understood || !signature.may_be_of(main) {
                    continue;
                }
                let mut data = framed_key(&main.body);
                match signature.kind {
                    TYPE_SUBKEY_BINDING | TYPE_SUBKEY_REVOCATION => {
                        let Some(sub) = &mut subkey else { continue };
                        data.extend(framed_key(&sub.body));
                        if !main.verifies(&signature, &data) {
                            continue;
                        }
                        if let Some(known) = all.iter().position(|k| k.fingerprint == sub.fingerprint) {
                            all[known].revoked |= signature.kind == TYPE_SUBKEY_REVOCATION;
                            continue;
                        }
                        let mut sub = sub.clone();
                        sub.revoked = signature.kind == TYPE_SUBKEY_REVOCATION || main.revoked;
                        let own = signature.key_lifetime.map(|s| sub.created.saturating_add(s));
                        sub.expires = [own, main.expires].into_iter().flatten().min();
                        sub.owner.clone_from(&main.owner);
                        all.push(sub);
                    }
                    0x10..=0x13 | TYPE_DIRECT | TYPE_KEY_REVOCATION => {
                        if matches!(signature.kind, 0x10..=0x13) {
                            let Some(user) = user else { continue };
                            data.push(0xb4);
                            data.extend_from_slice(&(user.len() as u32).to_be_bytes());
                            data.extend_from_slice(user);
                        }
                        if !main.verifies(&signature, &data) {
                            continue;
                        }
                        let main = &mut all[at];
                        if signature.kind == TYPE_KEY_REVOCATION {
                            main.revoked = true;
                        } else if signature.created >= newest_self {
                            // The newest word of the owner counts.
                            newest_self = signature.created;
                            main.expires = signature.key_lifetime.map(|s| main.created.saturating_add(s));
                        }
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
    Ok(all)
}
