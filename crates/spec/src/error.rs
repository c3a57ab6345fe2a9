//! One error for everything that a user can spell wrong, with the hint that helps.

use std::fmt;

/// A result whose error is a spelling that the nouns do not accept.
pub type Result<T> = std::result::Result<T, Error>;

/// Something a person wrote that cannot be understood: what it was, why not, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    message: String,
    hint: Option<String>,
}

impl Error {
    /// An error with one lower-case line that names the object and the cause.
    pub fn new(message: impl Into<String>) -> Self {
        Error { message: message.into(), hint: None }
    }

    /// Adds what the reader can do about it.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The chain of causes below a `message`, from the nearest to the last, without those that the line above already says.
pub fn causes(message: &str, first: Option<&(dyn std::error::Error + 'static)>) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    let mut next = first;
    while let Some(error) = next {
        let text = error.to_string();
        if !causes.last().map_or(message, String::as_str).ends_with(&text) {
            causes.push(text);
        }
        next = error.source();
    }
    causes
}

/// What every error enum of the rooms above offers to the program that prints it.
pub trait Hint {
    /// One line that says what to do, where something can be done.
    fn hint(&self) -> Option<String>;
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}
