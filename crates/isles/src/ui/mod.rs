//! All writing: data on standard output, talk on standard error, colour only on a terminal.
//!
//! Every message reads without colour. `NO_COLOR` (<https://no-color.org>), `TERM=dumb` and `--quiet` hold.

pub mod age;
pub mod format;
pub mod progress;
pub mod steps;
pub mod table;

use std::io::{self, BufRead, IsTerminal, Write};

use serde::Serialize;

use crate::failure::Failure;
use format::Format;

/// Where a command writes.
#[derive(Debug, Clone, Copy)]
pub struct Ui {
    quiet: bool,
    color: bool,
}

impl Ui {
    pub fn new(quiet: bool) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        Ui { quiet, color: wanted && io::stderr().is_terminal() }
    }

    /// The same, but silent where `quiet` is asked for.
    pub fn quieter(self, quiet: bool) -> Self {
        Ui { quiet: self.quiet || quiet, ..self }
    }

    /// Whether only errors and data are wanted.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Data, as it is. A reader that went away (EPIPE) ends the program without a word.
    pub fn bytes(&self, data: &[u8]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match out.write_all(data).and_then(|()| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            other => other.map_err(|e| Failure::because("cannot write to standard output", &e)),
        }
    }

    /// A line of data.
    pub fn line(&self, text: &str) -> Result<(), Failure> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// One object, as JSON or by template. Asked for a table, it is JSON too.
    pub fn object<T: Serialize>(&self, format: &Format, object: &T) -> Result<(), Failure> {
        self.bytes(format.object(object)?.as_bytes())
    }

    /// Rows under headings, as a table, a JSON list, or one line per row by template.
    pub fn rows<T: Serialize>(
        &self,
        format: &Format,
        rows: &[T],
        table: impl FnOnce(&[T]) -> table::Table,
    ) -> Result<(), Failure> {
        let text = match format {
            Format::Table => table(rows).to_string(),
            other => other.rows(rows)?,
        };
        self.bytes(text.as_bytes())
    }

    /// Something worth saying that is not data.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.talk(&format!("{text}\n"));
        }
    }

    /// A question, after which the answer is typed.
    pub fn prompt(&self, text: &str) {
        self.talk(text);
    }

    /// Whether a person agrees to what would happen.
    pub fn confirmed(&self, consequence: &str) -> Result<bool, Failure> {
        self.warning(consequence);
        self.prompt("Are you sure you want to continue? [y/N] ");
        let mut answer = String::new();
        let read = io::stdin().lock().read_line(&mut answer);
        read.map_err(|e| Failure::because("cannot read the answer", &e))?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    /// Something that went on differently from what the user may expect.
    pub fn warning(&self, text: &str) {
        self.talk(&format!("{} {text}\n", self.paint("33", "warning:")));
    }

    /// What a failure looks like.
    pub fn error(&self, failure: &Failure) {
        let mut text = format!("{} {}\n", self.paint("1;31", "error:"), failure.message);
        for cause in &failure.causes {
            text += &format!("  {} {cause}\n", self.paint("31", "caused by:"));
        }
        if let Some(hint) = &failure.hint {
            text += &format!("{} {hint}\n", self.paint("36", "hint:"));
        }
        self.talk(&text);
    }

    /// In one write, so that lines of several programs stay whole. Nothing is left to do where even
    /// standard error is closed.
    fn talk(&self, text: &str) {
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
