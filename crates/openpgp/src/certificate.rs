//! A key with everything that belongs to it, as files and key servers exchange it: its names, its subkeys, and what
//! its owner signed about them (RFC 9580, sections 10.1 and 10.2). Packets are kept as they came, known or not.

use ring::digest;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::bytes::{Bytes, LIMIT, Malformed, packet};
use crate::cleartext::{armor, armored};
use crate::key::{self, Fingerprint, Key, TAG_KEY, TAG_SIGNATURE, TAG_SUBKEY, TAG_USER, framed_key};
use crate::secret::{self, SigningKey};
use crate::{Error, Signature};

const TAG_SECRET_KEY: u8 = 5;
const TAG_SECRET_SUBKEY: u8 = 7;
const TYPE_CERTIFICATION: u8 = 0x13;

/// A key, public or secret, with what belongs to it.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The first is the primary key.
    packets: Vec<(u8, Vec<u8>)>,
}

impl Certificate {
    /// All certificates in a file, binary or armored, public or secret. Keys of other versions than 4 are left out.
    pub fn read(file: &[u8]) -> Result<Vec<Certificate>, Malformed> {
        if file.len() > LIMIT {
            return Err(Malformed("it is too large"));
        }
        if file.first().is_none_or(|b| b & 0x80 != 0) {
            return Certificate::split(file);
        }
        let text = std::str::from_utf8(file).map_err(|_| Malformed("it is neither packets nor text"))?;
        let mut all = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find("-----BEGIN PGP P") {
            rest = &rest[start..];
            let is_secret = rest.starts_with("-----BEGIN PGP PRIVATE");
            let kind = if is_secret { "PRIVATE KEY BLOCK" } else { "PUBLIC KEY BLOCK" };
            let (packets, after) = armored(rest, kind)?;
            all.extend(Certificate::split(&packets)?);
            rest = after;
        }
        if all.is_empty() { Err(Malformed("it has no key")) } else { Ok(all) }
    }

    fn split(packets: &[u8]) -> Result<Vec<Certificate>, Malformed> {
        let mut bytes = Bytes(packets);
        let mut all: Vec<Certificate> = Vec::new();
        let mut is_usable = false;
        while !bytes.0.is_empty() {
            let (tag, body) = bytes.packet()?;
            let packet = (tag, body.to_vec());
            if matches!(tag, TAG_KEY | TAG_SECRET_KEY) {
                is_usable = body.first() == Some(&4) && secret::public_length(body).is_some();
                if is_usable {
                    all.push(Certificate { packets: vec![packet] });
                }
            } else if is_usable && let Some(last) = all.last_mut() {
                last.packets.push(packet);
            }
        }
        Ok(all)
    }

    /// A new Ed25519 key that signs, of the owner `user`, made at `now` (seconds since 1970).
    pub fn generate(user: &str, passphrase: Option<&str>, now: u64) -> Result<Certificate, Error> {
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| Error::Random)?;
        Certificate::of_new_key(secret::ed25519(&seed, now)?, user, passphrase, now)
    }

    /// The same with an RSA key of so many bits, which takes seconds.
    ///
    /// # Errors
    /// The length is none of [`crate::RSA_LENGTHS`], or no multiple of 64.
    pub fn generate_rsa(
        bits: u32,
        user: &str,
        passphrase: Option<&str>,
        now: u64,
    ) -> Result<Certificate, Error> {
        if !crate::RSA_LENGTHS.contains(&bits) || !bits.is_multiple_of(64) {
            let (least, most) = (crate::RSA_LENGTHS.start(), crate::RSA_LENGTHS.end());
            let known = format!("an RSA key of {bits} bits, and not of {least} to {most} in steps of 64,");
            return Err(Error::Unsupported(known));
        }
        Certificate::of_new_key(secret::rsa(bits, now)?, user, passphrase, now)
    }

    fn of_new_key(
        open: Vec<u8>,
        user: &str,
        passphrase: Option<&str>,
        now: u64,
    ) -> Result<Certificate, Error> {
        let signing = SigningKey::open(&open, None)?;
        let public = open[..secret::public_length(&open).unwrap_or(open.len())].to_vec();
        let data = [framed_key(&public), framed_user(user.as_bytes())].concat();
        // It certifies and signs; SHA-512, SHA-384 and SHA-256 are preferred; this is the name that counts.
        let facts: [&[u8]; 3] = [&[27, 0x03], &[21, 10, 9, 8], &[25, 1]];
        let certification = signing.sign(TYPE_CERTIFICATION, &facts, &data, now);
        let key = match passphrase {
            Some(passphrase) => secret::lock(&open, passphrase)?,
            None => open,
        };
        let user = user.as_bytes().to_vec();
        Ok(Certificate {
            packets: vec![(TAG_SECRET_KEY, key), (TAG_USER, user), (TAG_SIGNATURE, certification)],
        })
    }

    /// The public part of the primary key's packet.
    fn primary_body(&self) -> &[u8] {
        let body = &self.packets[0].1;
        &body[..secret::public_length(body).unwrap_or(body.len())]
    }

    pub fn fingerprint(&self) -> Fingerprint {
        let mut fingerprint = [0; 20];
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &framed_key(self.primary_body()));
        fingerprint.copy_from_slice(hash.as_ref());
        fingerprint
    }

    /// Seconds since 1970.
    pub fn created(&self) -> u64 {
        Bytes(&self.primary_body()[1..]).u32().unwrap_or(0)
    }

    /// The size of the primary key's main number.
    pub fn bits(&self) -> usize {
        secret::bits(self.primary_body())
    }

    /// The number of the primary key's algorithm (RFC 9580, section 9.1).
    pub fn algorithm(&self) -> u8 {
        self.primary_body().get(5).copied().unwrap_or(0)
    }

    /// The owner's names, mostly `Name (Comment) <address>`; the first is the main one.
    pub fn users(&self) -> impl Iterator<Item = String> {
        let users = self.packets.iter().filter(|(tag, _)| *tag == TAG_USER);
        users.map(|(_, body)| String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).collect())
    }

    /// The keys that can verify, with what their owner says of them.
    pub fn keys(&self) -> Result<Vec<Key>, Malformed> {
        key::keys(&self.to_public().to_bytes())
    }

    pub fn is_secret(&self) -> bool {
        self.packets[0].0 == TAG_SECRET_KEY
    }

    /// Whether a passphrase is needed to sign.
    pub fn is_locked(&self) -> bool {
        self.is_secret() && secret::is_locked(&self.packets[0].1)
    }

    /// The same without what is secret.
    pub fn to_public(&self) -> Certificate {
        let packets = self.packets.iter().map(|(tag, body)| {
            let public = match *tag {
                TAG_SECRET_KEY => TAG_KEY,
                TAG_SECRET_SUBKEY => TAG_SUBKEY,
                _ => return (*tag, body.clone()),
            };
            (public, body[..secret::public_length(body).unwrap_or(body.len())].to_vec())
        });
        Certificate { packets: packets.collect() }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        self.packets.iter().flat_map(|(tag, body)| packet(*tag, body)).collect()
    }

    /// As text, which ends with its last line's end.
    pub fn to_text(&self) -> String {
        let kind = if self.is_secret() { "PRIVATE KEY BLOCK" } else { "PUBLIC KEY BLOCK" };
        armor(&self.to_bytes(), kind, true) + "\n"
    }

    /// The primary key, to sign with.
    pub fn open(&self, passphrase: Option<&str>) -> Result<SigningKey, Error> {
        if !self.is_secret() {
            return Err(Error::NoSecret);
        }
        SigningKey::open(&self.packets[0].1, passphrase)
    }

    /// The same with its secret parts locked with another passphrase, or with none.
    pub fn relock(&self, old: Option<&str>, new: Option<&str>) -> Result<Certificate, Error> {
        let mut packets = Vec::with_capacity(self.packets.len());
        for (tag, body) in &self.packets {
            let body = match *tag {
                TAG_SECRET_KEY | TAG_SECRET_SUBKEY => {
                    let open = secret::unlock(body, old)?;
                    new.map_or(Ok(open.clone()), |new| secret::lock(&open, new))?
                }
                _ => body.clone(),
            };
            packets.push((*tag, body));
        }
        Ok(Certificate { packets })
    }
}

/// A user ID as certifications are made over it.
pub(crate) fn framed_user(user: &[u8]) -> Vec<u8> {
    [&[0xb4][..], &(user.len() as u32).to_be_bytes(), user].concat()
}

impl Signature {
    /// Whether this signature names a certificate's primary key as its maker.
    pub fn is_by(&self, certificate: &Certificate) -> bool {
        let fingerprint = certificate.fingerprint();
        match (&self.issuer_fingerprint, &self.issuer) {
            (Some(named), _) => *named == fingerprint,
            (None, Some(id)) => *id == fingerprint[12..],
            (None, None) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;
    const BINDING: u8 = 0x18;
    const PRIMARY_BINDING: u8 = 0x19;
    const REVOCATION: u8 = 0x28;

    /// `main` with the key of `sub` as its own.
    fn adopted(main: &Certificate, sub: &Certificate, signatures: &[Vec<u8>]) -> Vec<u8> {
        let mut packets = main.to_public().packets;
        packets.push((TAG_SUBKEY, sub.primary_body().to_vec()));
        packets.extend(signatures.iter().map(|body| (TAG_SIGNATURE, body.clone())));
        Certificate { packets }.to_bytes()
    }

    #[test]
    fn a_subkey_belongs_to_whom_it_says() {
        let made = |name| Certificate::generate(name, None, NOW).unwrap();
        let (ours, sub, theirs) = (made("Ours"), made("Sub"), made("Theirs"));
        let open = |key: &Certificate| key.open(None).unwrap();
        let both =
            |main: &Certificate| [framed_key(main.primary_body()), framed_key(sub.primary_body())].concat();
        let back = |main: &Certificate| open(&sub).sign(PRIMARY_BINDING, &[], &both(main), NOW);
        let bound = |main: &Certificate, back: &[u8]| {
            open(main).sign(BINDING, &[&[27, 2], &[&[32], back].concat()], &both(main), NOW)
        };
        let plain = |main: &Certificate| open(main).sign(BINDING, &[&[27, 2]], &both(main), NOW);
        let revoked = |main: &Certificate| open(main).sign(REVOCATION, &[], &both(main), NOW);
        let good = adopted(&ours, &sub, &[bound(&ours, &back(&ours))]);
        let fate = |keyring: &[u8]| {
            let keys = key::keys(keyring).unwrap();
            let found: Vec<_> = keys.iter().filter(|k| k.fingerprint == sub.fingerprint()).collect();
            found
                .iter()
                .map(|k| (k.owner.clone(), k.primary == ours.fingerprint(), k.revoked))
                .collect::<Vec<_>>()
        };
        let own = |is_revoked| vec![("Ours".to_owned(), true, is_revoked)];
        let foreign = |signatures: &[Vec<u8>]| adopted(&theirs, &sub, signatures);
        for (what, keyring, expected) in [
            ("both vouch", good.clone(), own(false)),
            ("nobody vouches for the primary", adopted(&ours, &sub, &[plain(&ours)]), vec![]),
            ("it vouches for another", foreign(&[bound(&theirs, &back(&ours))]), vec![]),
            ("only the primary says so", foreign(&[bound(&theirs, &plain(&theirs))]), vec![]),
            ("revoked", [good.clone(), adopted(&ours, &sub, &[revoked(&ours)])].concat(), own(true)),
            ("revoked first", adopted(&ours, &sub, &[revoked(&ours), bound(&ours, &back(&ours))]), own(true)),
            ("revoked by another", [good.clone(), foreign(&[revoked(&theirs)])].concat(), own(false)),
            ("before it", [foreign(&[plain(&theirs), revoked(&theirs)]), good.clone()].concat(), own(false)),
        ] {
            assert_eq!(fate(&keyring), expected, "{what}");
        }
    }

    /// Where this machine has them: each of their subkeys signs.
    #[test]
    fn subkeys_of_archives_are_known() {
        let path = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let Ok(file) = std::fs::read(path) else {
            println!("skip: no {path}");
            return;
        };
        let subkeys = Certificate::read(&file).unwrap();
        let subkeys = subkeys.iter().flat_map(|c| &c.packets).filter(|(tag, _)| *tag == TAG_SUBKEY).count();
        let keys = key::keyring(&file).unwrap();
        assert_eq!(keys.iter().filter(|k| k.primary != k.fingerprint).count(), subkeys);
    }
}
