//! What every command is given: where to write, and where the state is.

use std::path::PathBuf;

use crate::ui::Ui;

/// The surroundings of one command.
#[derive(Debug)]
pub struct Context {
    pub ui: Ui,
    /// The state directory that the caller asked for, by option.
    pub root: Option<PathBuf>,
}

impl Context {
    pub fn new(ui: Ui, root: Option<PathBuf>) -> Self {
        Context { ui, root }
    }
}
