//! `gocryptfs.conf`: the key of all files, sealed with one that is made of the passphrase.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{NONCE, VERSION, about};
use crate::error::{Error, Result, damaged, unsupported};
use crate::gcm::{Gcm, TAG};
use crate::kdf::{Budget, Kdf, hkdf, random};

/// What the key for the content of files is made for; the name is part of how it is made.
const CONTENT: &str = "AES-GCM file content encryption";
/// Flags without which nothing is read, one that must be there, and that may be there.
const NEEDED: [&str; 3] = ["GCMIV128", "HKDF", "PlaintextNames"];
const KEY: usize = 32;
/// Less protects nobody (gocryptfs refuses it as well).
const LEAST_SALT: usize = 32;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Config {
    creator: String,
    encrypted_key: String,
    scrypt_object: Scrypt,
    version: u16,
    #[serde(default)]
    feature_flags: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Scrypt {
    salt: String,
    n: u64,
    r: u32,
    p: u32,
    key_len: u32,
}

impl Config {
    pub fn parse(bytes: &[u8]) -> Result<Config> {
        let config: Config = serde_json::from_slice(bytes)
            .map_err(|e| Error::Damaged { what: format!("its gocryptfs.conf: {e}") })?;
        if config.version != VERSION {
            return unsupported(format!("version {} of gocryptfs", config.version));
        }
        if let Some(flag) = config.feature_flags.iter().find(|flag| !NEEDED.contains(&flag.as_str())) {
            return unsupported(format!("gocryptfs with '{flag}'"));
        }
        for needed in NEEDED {
            if !config.feature_flags.iter().any(|flag| flag == needed) {
                return unsupported(format!("gocryptfs without '{needed}'"));
            }
        }
        if config.scrypt_object.key_len as usize != KEY {
            return unsupported(format!("gocryptfs with keys of {} bytes", config.scrypt_object.key_len));
        }
        Ok(config)
    }

    /// What opens the content of files.
    pub fn unlock(&self, passphrase: &[u8]) -> Result<Gcm> {
        let decode = |what: &str, text: &str| {
            STANDARD.decode(text).map_err(|_| Error::Damaged { what: format!("{what} is no base64") })
        };
        let Scrypt { salt, n, r, p, .. } = &self.scrypt_object;
        let salt = decode("a salt", salt)?;
        if salt.len() < LEAST_SALT {
            return damaged(format!("a salt of {} bytes", salt.len()));
        }
        let mut sealed = decode("a key", &self.encrypted_key)?;
        if sealed.len() != NONCE + KEY + TAG {
            return damaged(format!("a sealed key of {} bytes", sealed.len()));
        }
        let wrapping = wrapping(passphrase, &Kdf::Scrypt { n: *n, r: *r, p: *p, salt })?;
        let (nonce, rest) = sealed.split_at_mut(NONCE);
        let (key, tag) = rest.split_at_mut(KEY);
        let nonce = std::array::from_fn(|n| nonce[n]);
        let tag = std::array::from_fn(|n| tag[n]);
        if !wrapping.open(&nonce, &about(0, &[]), key, &tag) {
            return Err(Error::Passphrase);
        }
        Ok(Gcm::new(&hkdf(key, CONTENT)))
    }

    /// A configuration with a new key, and what seals the content of files. `log_n` says how long it takes to guess a
    /// passphrase; gocryptfs takes 10 at least, and 16 by itself.
    pub fn make(passphrase: &[u8], log_n: u32) -> Result<(Vec<u8>, Gcm)> {
        let salt: [u8; LEAST_SALT] = random()?;
        let mut key: [u8; KEY] = random()?;
        let gcm = Gcm::new(&hkdf(&key, CONTENT));
        let (n, r, p) = (1 << log_n, 8, 1);
        let wrapping = wrapping(passphrase, &Kdf::Scrypt { n, r, p, salt: salt.to_vec() })?;
        let nonce: [u8; NONCE] = random()?;
        let tag = wrapping.seal(&nonce, &about(0, &[]), &mut key);
        let config = Config {
            creator: concat!("isles ", env!("CARGO_PKG_VERSION")).to_owned(),
            encrypted_key: STANDARD.encode([&nonce[..], &key, &tag].concat()),
            scrypt_object: Scrypt { salt: STANDARD.encode(salt), n, r, p, key_len: KEY as u32 },
            version: VERSION,
            feature_flags: NEEDED.map(str::to_owned).to_vec(),
        };
        let mut text = serde_json::to_vec_pretty(&config)
            .map_err(|e| Error::Damaged { what: format!("a new configuration: {e}") })?;
        text.push(b'\n');
        Ok((text, gcm))
    }
}

/// What the key is sealed with.
fn wrapping(passphrase: &[u8], kdf: &Kdf) -> Result<Gcm> {
    let mut key = [0; KEY];
    kdf.derive(passphrase, &mut key, &mut Budget::default())?;
    Ok(Gcm::new(&hkdf(&key, CONTENT)))
}
