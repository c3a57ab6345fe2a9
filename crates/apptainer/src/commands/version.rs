//! `apptainer version`

use crate::command::{Arity, Command};
use crate::program::VERSION;

pub static COMMAND: Command = Command {
    usage: "version",
    short: "Show which version of Apptainer this command line is like",
    arity: Arity::AtLeast(0),
    run: |cx| {
        cx.print(format!("{VERSION}\n"))?;
        Ok(0)
    },
    ..Command::EMPTY
};
