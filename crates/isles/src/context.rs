//! What every command is given: where to write, and where the state is.

use std::path::PathBuf;

use isles_engine::Engine;

use crate::failure::Failure;
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

    /// The state directory: `--root`, `ISLES_ROOT`, `/var/lib/isles` for root, else `isles` in the user's data
    /// folder (XDG Base Directory Specification).
    pub fn state_dir(&self) -> Result<PathBuf, Failure> {
        let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(root) = self.root.clone().or_else(|| named("ISLES_ROOT")) {
            return std::path::absolute(&root).map_err(|e| {
                Failure::because(format!("cannot use the state directory '{}'", root.display()), &e)
            });
        }
        if isles_sandbox::identity::is_real_root() {
            return Ok("/var/lib/isles".into());
        }
        // An absolute path or nothing, as the specification has it.
        let data = named("XDG_DATA_HOME").filter(|d| d.is_absolute());
        let home = || Some(isles_engine::home()?.join(".local/share"));
        data.or_else(home).map(|dir| dir.join("isles")).ok_or_else(|| {
            Failure::new("there is no place for images and containers: HOME is not set")
                .with_hint("name a folder with --root or ISLES_ROOT")
        })
    }

    /// The engine over the state directory. Called once, before any thread is made.
    pub fn engine(&self) -> Result<Engine, Failure> {
        Ok(Engine::open(self.state_dir()?)?)
    }
}
