//! What a command is: the words of its usage, its flags, how many arguments it takes, and what it does.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use isles_engine::Engine;

use crate::failure::Failure;
use crate::flag::Flag;
use crate::parse::Values;
use crate::program::Host;
use crate::talk::Talk;
use crate::variables;

/// How many arguments a command takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arity {
    Exactly(usize),
    AtLeast(usize),
    Between(usize, usize),
}

impl Arity {
    /// Complains in cobra's words about a number of arguments that it does not allow.
    pub fn check(self, count: usize) -> Result<(), String> {
        match self {
            Arity::Exactly(n) if count != n => Err(format!("accepts {n} arg(s), received {count}")),
            Arity::AtLeast(n) if count < n => {
                Err(format!("requires at least {n} arg(s), only received {count}"))
            }
            Arity::Between(least, most) if count < least || count > most => {
                Err(format!("accepts between {least} and {most} arg(s), received {count}"))
            }
            _ => Ok(()),
        }
    }
}

/// One command, or a group of them. Every command is a static in a file of its own.
pub struct Command {
    /// As help shows it; its first word is the name.
    pub usage: &'static str,
    /// One line.
    pub short: &'static str,
    /// What is worth knowing beyond that; may be empty.
    pub long: &'static str,
    pub examples: &'static str,
    pub aliases: &'static [&'static str],
    /// Groups of flags, so that commands can share them.
    pub flags: &'static [&'static [&'static Flag]],
    pub arity: Arity,
    /// Flags may stand after arguments, too; with most commands they end at the first.
    pub interspersed: bool,
    pub hidden: bool,
    /// What it does; returns the exit code.
    pub run: fn(&Context<'_>) -> Result<u8, Failure>,
    /// The commands of a group; then `run` is not used.
    pub commands: &'static [&'static Command],
}

impl Command {
    /// A command with nothing but defaults, for the others to fill in.
    pub const EMPTY: Command = Command {
        usage: "",
        short: "",
        long: "",
        examples: "",
        aliases: &[],
        flags: &[],
        arity: Arity::Exactly(0),
        interspersed: false,
        hidden: false,
        run: |_| Err(Failure::usage("invalid command")),
        commands: &[],
    };

    pub fn name(&self) -> &'static str {
        self.usage.split(' ').next().unwrap_or_default()
    }

    pub fn goes_by(&self, word: &str) -> bool {
        self.name() == word || self.aliases.contains(&word)
    }

    pub fn all_flags(&self) -> Vec<&'static Flag> {
        self.flags.iter().flat_map(|group| group.iter().copied()).collect()
    }
}

/// What a command is given.
pub struct Context<'a> {
    pub talk: Talk,
    /// The command's own flags, and what variables say about them.
    pub values: &'a Values,
    pub arguments: &'a [String],
    /// The file with the settings of the site, where the caller names one.
    pub config: Option<&'a Path>,
    pub host: &'a Host<'a>,
}

impl Context<'_> {
    /// The engine over the store of images. Called once, before any thread is made.
    pub fn engine(&self) -> Result<Engine, Failure> {
        Ok(Engine::open((self.host.state_dir)().map_err(Failure::new)?)?)
    }

    /// The same, for who needs no IDs but their own: no other program is run for it.
    pub fn engine_single(&self) -> Result<Engine, Failure> {
        Ok(Engine::open_single((self.host.state_dir)().map_err(Failure::new)?)?)
    }

    /// Where files that are fetched are kept: `APPTAINER_CACHEDIR`, else `~/.apptainer/cache`.
    pub fn cache_dir(&self) -> Result<PathBuf, Failure> {
        match variables::look("CACHEDIR") {
            Some(dir) => Ok(dir.into()),
            None => Ok(self.config_dir()?.join("cache")),
        }
    }

    /// Where instances and keys are remembered: `APPTAINER_CONFIGDIR`, else `~/.apptainer`.
    pub fn config_dir(&self) -> Result<PathBuf, Failure> {
        if let Some(dir) = variables::look("CONFIGDIR") {
            return Ok(dir.into());
        }
        let home = isles_engine::home().ok_or_else(|| {
            Failure::new("there is no place for instances and images: HOME is not set")
                .with_hint("name a folder with APPTAINER_CONFIGDIR")
        })?;
        Ok(home.join(".apptainer"))
    }

    /// Data, as it is. A reader that went away ends the program without a word.
    pub fn print(&self, data: impl AsRef<[u8]>) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match out.write_all(data.as_ref()).and_then(|()| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            other => other.map_err(|e| Failure::because("cannot write to standard output", &e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_counted_in_cobras_words() {
        for (arity, count, said) in [
            (Arity::AtLeast(2), 1, "requires at least 2 arg(s), only received 1"),
            (Arity::Exactly(1), 2, "accepts 1 arg(s), received 2"),
            (Arity::Between(0, 1), 2, "accepts between 0 and 1 arg(s), received 2"),
        ] {
            assert_eq!(arity.check(count).unwrap_err(), said);
        }
        assert!(Arity::AtLeast(1).check(5).is_ok() && Arity::Between(1, 2).check(2).is_ok());
    }
}
