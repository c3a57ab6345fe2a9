//! The flags before the command, and what they say about messages.

use crate::flag::Flag;
use crate::parse::Values;
use crate::talk::{Level, Talk};
use crate::variables;

pub static DEBUG: Flag = Flag::switch("debug", "say everything that is done").short('d').env(&["DEBUG"]);
pub static NOCOLOR: Flag = Flag::switch("nocolor", "messages without colour").env(&["NOCOLOR"]);
pub static SILENT: Flag = Flag::switch("silent", "say nothing but errors").short('s').env(&["SILENT"]);
pub static QUIET: Flag =
    Flag::switch("quiet", "say nothing but warnings and errors").short('q').env(&["QUIET"]);
pub static VERBOSE: Flag = Flag::switch("verbose", "say more").short('v').env(&["VERBOSE"]);
pub static CONFIG: Flag = Flag::text("config", "path", "read this apptainer.conf instead of the system's")
    .short('c')
    .env(&["CONFIG_FILE"]);
pub static BUILD_CONFIG: Flag =
    Flag::switch("build-config", "with the settings that building needs, whatever apptainer.conf says");
pub static VERSION: Flag = Flag::switch("version", "print the version");

pub static FLAGS: [&Flag; 8] =
    [&BUILD_CONFIG, &CONFIG, &DEBUG, &NOCOLOR, &QUIET, &SILENT, &VERBOSE, &VERSION];

/// How much is said: by flag, or by the number in `APPTAINER_MESSAGELEVEL`.
pub fn talk(values: &Values) -> Talk {
    let by_flag = [
        (&DEBUG, Level::Debug),
        (&VERBOSE, Level::Verbose),
        (&QUIET, Level::Warning),
        (&SILENT, Level::Error),
    ];
    let by_variable = || variables::look("MESSAGELEVEL")?.parse().ok().map(Level::from_number);
    let level = by_flag.iter().find(|(flag, _)| values.is(flag)).map(|(_, level)| *level);
    Talk::new(level.or_else(by_variable).unwrap_or(Level::Info), !values.is(&NOCOLOR))
}
