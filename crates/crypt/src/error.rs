use std::io;

pub type Result<T> = std::result::Result<T, Error>;

/// Why something encrypted cannot be read or made. The caller knows which file it is about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no key is there for this passphrase")]
    Passphrase,
    #[error("it is no {form}: {reason}")]
    Other { form: &'static str, reason: String },
    #[error("it is damaged: {what}")]
    Damaged { what: String },
    #[error("{what} is not supported")]
    Unsupported { what: String },
    /// Whoever made it may have meant to use up this machine.
    #[error("opening it would take {what}, and {limit} is the most that is done")]
    Excessive { what: String, limit: String },
    #[error("cannot read byte {at} of it")]
    Read { at: u64, source: io::Error },
    #[error("the file system around what is encrypted")]
    Around(#[from] isles_squashfs::Error),
    #[error("the kernel gives no random numbers")]
    Random,
    #[error("there is not enough memory to turn the passphrase into a key")]
    Memory,
}

pub(crate) fn damaged<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Damaged { what: what.into() })
}

pub(crate) fn unsupported<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Unsupported { what: what.into() })
}
