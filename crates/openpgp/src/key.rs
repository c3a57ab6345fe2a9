//! Keys that can verify: RSA and Ed25519, of version 4, with what their owners say of them.

use ring::digest;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};

use crate::bytes::{Bytes, LIMIT, Malformed, Result, left_pad};
use crate::cleartext::armored;
use crate::signature::Signature;

pub(crate) const TAG_SIGNATURE: u8 = 2;
pub(crate) const TAG_KEY: u8 = 6;
pub(crate) const TAG_USER: u8 = 13;
pub(crate) const TAG_SUBKEY: u8 = 14;

const TYPE_SUBKEY_BINDING: u8 = 0x18;
const TYPE_PRIMARY_BINDING: u8 = 0x19;
const TYPE_DIRECT: u8 = 0x1f;
const TYPE_KEY_REVOCATION: u8 = 0x20;
const TYPE_SUBKEY_REVOCATION: u8 = 0x28;

/// The curve of EdDSA keys of version 4, 1.3.6.1.4.1.11591.15.1.
pub(crate) const ED25519_OID: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];

/// A 20-byte fingerprint of a key of version 4.
pub type Fingerprint = [u8; 20];

#[derive(Debug, Clone)]
pub(crate) enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ed25519([u8; 32]),
}

/// One key that can verify.
#[derive(Debug, Clone)]
pub struct Key {
    pub fingerprint: Fingerprint,
    /// That of the key which vouches for this one; its own where it needs nobody.
    pub primary: Fingerprint,
    pub(crate) material: Material,
    /// The packet's body, which bindings are made over.
    body: Vec<u8>,
    /// Seconds since 1970.
    pub created: u64,
    pub expires: Option<u64>,
    pub revoked: bool,
    /// The first user ID of the primary key, for people.
    pub owner: String,
}

impl Key {
    pub(crate) fn parse(body: &[u8]) -> Result<Option<Key>> {
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
            primary: fingerprint,
            material,
            body: body.to_vec(),
            created,
            expires: None,
            revoked: false,
            owner: String::new(),
        }))
    }

    pub(crate) fn id(&self) -> &[u8] {
        &self.fingerprint[12..]
    }

    /// Whether `signature` is this key's over `data` and its own hashed part.
    pub(crate) fn verifies(&self, signature: &Signature, data: &[u8]) -> bool {
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

/// A key as signatures are made over it.
pub(crate) fn framed_key(body: &[u8]) -> Vec<u8> {
    let mut framed = vec![0x99];
    framed.extend_from_slice(&(body.len() as u16).to_be_bytes());
    framed.extend_from_slice(body);
    framed
}

/// The keys of a keyring, in binary form or armored. Subkeys that sign appear as keys of their own, if their primary
/// key vouches for them and they for it: nobody adopts another's.
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
        let (packets, after) = armored(&rest[start..], "PUBLIC KEY BLOCK")?;
        all.extend(keys(&packets)?);
        rest = after;
    }
    if all.is_empty() { Err(Malformed("it has no key")) } else { Ok(all) }
}

/// Whether a binding holds the subkey's own signature over both keys (RFC 9580, section 5.2.1.9).
fn vouches(sub: &Key, binding: &Signature, data: &[u8]) -> bool {
    binding.embedded.iter().any(|body| {
        matches!(Signature::parse(body), Ok(Some(back)) if back.kind == TYPE_PRIMARY_BINDING
            && back.understood
            && back.may_be_of(sub)
            && sub.verifies(&back, data))
    })
}

pub(crate) fn keys(packets: &[u8]) -> Result<Vec<Key>> {
    let mut bytes = Bytes(packets);
    let mut all: Vec<Key> = Vec::new();
    // Where the primary key of the packets that follow is, and whether the latest was usable.
    let mut primary: Option<usize> = None;
    let mut subkey: Option<Key> = None;
    let mut is_revoked = false;
    let mut user: Option<&[u8]> = None;
    let mut newest_self = 0;
    while !bytes.0.is_empty() {
        let (tag, body) = bytes.packet()?;
        match tag {
            TAG_KEY => {
                let parsed = Key::parse(body)?;
                primary = parsed.is_some().then_some(all.len());
                all.extend(parsed);
                (subkey, is_revoked, user, newest_self) = (None, false, None, 0);
            }
            TAG_USER => {
                user = Some(body);
                if let Some(key) = primary.map(|at| &mut all[at])
                    && key.owner.is_empty()
                {
                    key.owner = String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).collect();
                }
            }
            TAG_SUBKEY => (subkey, is_revoked, user) = (Key::parse(body)?, false, None),
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
                        // A revocation may stand before what it revokes.
                        is_revoked |= signature.kind == TYPE_SUBKEY_REVOCATION;
                        let known =
                            |k: &Key| (k.primary, k.fingerprint) == (main.fingerprint, sub.fingerprint);
                        if let Some(known) = all.iter().position(known) {
                            all[known].revoked |= is_revoked;
                            continue;
                        }
                        if signature.kind != TYPE_SUBKEY_BINDING || !vouches(sub, &signature, &data) {
                            continue;
                        }
                        let mut sub = sub.clone();
                        sub.revoked = is_revoked || main.revoked;
                        let own = signature.key_lifetime.map(|s| sub.created.saturating_add(s));
                        sub.expires = [own, main.expires].into_iter().flatten().min();
                        sub.owner.clone_from(&main.owner);
                        sub.primary = main.fingerprint;
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
