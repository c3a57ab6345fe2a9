//! How a command fails: what is said, and the exit code that wrappers expect.

use std::error::Error;
use std::fmt::Display;

use isles_spec::{Hint, causes};

/// Exit code of whatever goes wrong at run time, as Apptainer has it.
pub const FATAL: u8 = 255;
/// Exit code of a command line that is not understood.
pub const USAGE: u8 = 1;

/// A failure: one line that names the object and the cause, and what to do about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    /// From the nearest cause to the last.
    pub causes: Vec<String>,
    pub hint: Option<String>,
    /// [`FATAL`] where not given.
    pub code: Option<u8>,
    /// It is about how the command was called, so its usage is shown.
    pub usage: bool,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Failure { message: message.into(), ..Failure::default() }
    }

    /// `what` failed because of `error`.
    pub fn because(what: impl Display, error: &(dyn Error + 'static)) -> Self {
        let message = what.to_string();
        Failure { causes: causes(&message, Some(error)), message, ..Failure::default() }
    }

    /// The command was called in a way that it does not know.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure { usage: true, ..Failure::new(message).with_code(USAGE) }
    }

    /// A flag or a command that this program refuses, and what to do instead.
    pub fn unsupported(what: impl Display, instead: impl Into<String>) -> Self {
        Failure::new(format!("{what} is not supported")).with_hint(instead)
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn with_code(mut self, code: u8) -> Self {
        self.code = Some(code);
        self
    }

    /// The message and its causes, in one line.
    pub fn line(&self) -> String {
        let mut line = self.message.clone();
        for cause in &self.causes {
            line.push_str(": ");
            line.push_str(cause);
        }
        line
    }
}

impl<E: Error + Hint + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let message = error.to_string();
        let causes = causes(&message, error.source());
        Failure { causes, hint: error.hint(), message, ..Failure::default() }
    }
}
