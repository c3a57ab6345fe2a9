//! Messages on standard error, with the prefixes and levels of Apptainer's: wrappers look for them.

use std::io::{self, IsTerminal, Write};

use crate::failure::Failure;

/// How much is said; a level says all of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Fatal,
    Error,
    Warning,
    Info,
    Verbose,
    Debug,
}

impl Level {
    /// From the number in `APPTAINER_MESSAGELEVEL`: -4 to 5.
    pub fn from_number(number: i64) -> Level {
        match number {
            ..=-4 => Level::Fatal,
            -3 => Level::Error,
            -2..=0 => Level::Warning,
            1 => Level::Info,
            2..=4 => Level::Verbose,
            _ => Level::Debug,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Level::Fatal => "FATAL:",
            Level::Error => "ERROR:",
            Level::Warning => "WARNING:",
            Level::Info => "INFO:",
            Level::Verbose => "VERBOSE:",
            Level::Debug => "DEBUG:",
        }
    }

    fn color(self) -> &'static str {
        match self {
            Level::Fatal | Level::Error => "31",
            Level::Warning => "33",
            _ => "34",
        }
    }
}

/// Where messages go, and which.
#[derive(Debug, Clone, Copy)]
pub struct Talk {
    level: Level,
    color: bool,
}

impl Talk {
    pub fn new(level: Level, color: bool) -> Talk {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Talk { level, color: color && wanted && io::stderr().is_terminal() }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    pub fn warning(&self, text: &str) {
        self.say(Level::Warning, text);
    }

    pub fn info(&self, text: &str) {
        self.say(Level::Info, text);
    }

    pub fn verbose(&self, text: &str) {
        self.say(Level::Verbose, text);
    }

    pub fn debug(&self, text: &str) {
        self.say(Level::Debug, text);
    }

    /// What ends the program: one line, with its causes, and what to do.
    pub fn fatal(&self, failure: &Failure) {
        self.say(Level::Fatal, &failure.line());
        if let Some(hint) = &failure.hint {
            // The libraries below have `isles` in mind, which calls it so.
            self.info(&hint.replace("--tls-verify=false", "--no-https"));
        }
    }

    /// In one write, so that lines of several programs stay whole. Nothing can be done where even standard error
    /// is closed.
    fn say(&self, level: Level, text: &str) {
        if level > self.level {
            return;
        }
        let _ = io::stderr().lock().write_all(self.line(level, text).as_bytes());
    }

    fn line(&self, level: Level, text: &str) -> String {
        let name = format!("{:<8}", level.name());
        let text = text.trim_end_matches('\n');
        if self.color {
            format!("\x1b[{}m{name}\x1b[0m {text}\n", level.color())
        } else {
            format!("{name} {text}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_have_nine_columns() {
        let talk = Talk { level: Level::Info, color: false };
        for (level, line) in [
            (Level::Fatal, "FATAL:   x\n"),
            (Level::Error, "ERROR:   x\n"),
            (Level::Warning, "WARNING: x\n"),
            (Level::Info, "INFO:    x\n"),
            (Level::Debug, "DEBUG:   x\n"),
        ] {
            assert_eq!(talk.line(level, "x\n"), line);
        }
        let colored = Talk { level: Level::Info, color: true };
        assert_eq!(colored.line(Level::Warning, "x"), "\x1b[33mWARNING:\x1b[0m x\n");
    }

    #[test]
    fn levels_have_numbers() {
        let numbers = [-5, -4, -3, -2, -1, 0, 1, 2, 5, 9];
        let levels = numbers.map(Level::from_number);
        assert!(levels.is_sorted() && levels[0] == Level::Fatal && levels[9] == Level::Debug);
        assert_eq!((Level::from_number(-1), Level::from_number(1)), (Level::Warning, Level::Info));
    }
}
