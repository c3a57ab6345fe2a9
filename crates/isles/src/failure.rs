//! What a command ends with: an exit code, or a failure as the user reads it.

use std::error::Error;
use std::fmt::Display;

use isles_spec::{Hint, causes};

/// The exit code of a command that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u8);

impl Code {
    pub const SUCCESS: Code = Code(0);
}

/// A failure: one line that names the object and the cause, the causes below it, and what to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    /// From the nearest cause to the last.
    pub causes: Vec<String>,
    pub hint: Option<String>,
    /// The exit code, where it is not the command's usual one.
    pub code: Option<u8>,
}

impl Failure {
    /// A failure without a cause below it.
    pub fn new(message: impl Into<String>) -> Self {
        Failure { message: message.into(), ..Failure::default() }
    }

    /// `what` failed because of `error`.
    pub fn because(what: impl Display, error: &(dyn Error + 'static)) -> Self {
        let message = what.to_string();
        Failure { causes: causes(&message, Some(error)), message, ..Failure::default() }
    }

    /// Adds what the reader can do about it.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Ends the program with `code`.
    pub fn with_code(mut self, code: u8) -> Self {
        self.code = Some(code);
        self
    }
}

impl<E: Error + Hint + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let message = error.to_string();
        let causes = causes(&message, error.source());
        Failure { causes, hint: error.hint(), message, ..Failure::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let io = std::io::Error::other("disk on fire");
        let failure = Failure::because("cannot write /x: disk on fire", &io);
        assert!(failure.causes.is_empty());
        assert_eq!(Failure::because("cannot write /x", &io).causes, ["disk on fire"]);
    }

    #[test]
    fn a_spelling_brings_its_hint() {
        let failure = Failure::from(isles_spec::Error::new("bad x").with_hint("write y"));
        assert_eq!(failure.hint.as_deref(), Some("write y"));
    }
}
