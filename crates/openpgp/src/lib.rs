//! As much of OpenPGP as it takes to sign, and to know who signed: keys and signatures of version 4 with RSA or
//! Ed25519 over SHA-2 (RFC 9580; RFC 4880 for what keyrings of today still have).
//!
//! Nobody's messages are encrypted or decrypted here, only secret keys are. Whatever is unknown (algorithms, versions,
//! critical subpackets) makes a key or a signature count for nothing, never for something. A keyring is the
//! user's own and is believed to hold only keys that may sign; that subkeys belong to their primary key is
//! checked nevertheless, because that is where expiry and revocation are said.

mod bytes;
mod certificate;
pub mod cleartext;
mod key;
mod rsa;
mod secret;
mod signature;

pub use bytes::{LIMIT, Malformed};
pub use certificate::Certificate;
pub use key::{Fingerprint, Key, keyring};
pub use rsa::LENGTHS as RSA_LENGTHS;
pub use secret::SigningKey;
pub use signature::{Signature, Verdict, signatures};

/// What can go wrong with secret keys.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the key is malformed: {0}")]
    Malformed(#[from] Malformed),
    #[error("the passphrase does not open the key")]
    WrongPassphrase,
    #[error("the key is locked with a passphrase")]
    Locked,
    #[error("the secret part of the key is not there")]
    NoSecret,
    #[error("{0} is not supported")]
    Unsupported(String),
    #[error("the kernel gave no random numbers")]
    Random,
}
