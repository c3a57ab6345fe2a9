//! `apptainer version`

use crate::command::Command;
use crate::program::VERSION;

pub static COMMAND: Command = Command {
    usage: "version",
    short: "Show which version of Apptainer this command line is like",
    run: |cx| {
        cx.print(format!("{VERSION}\n"))?;
        Ok(0)
    },
    ..Command::EMPTY
};
