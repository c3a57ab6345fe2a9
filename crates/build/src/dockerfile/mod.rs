//! The Dockerfile language, in four steps that each stand alone: [`lines`] joins continuations,
//! [`syntax`] splits instructions into words, [`instruction`] gives them types, [`words`] expands
//! variables. Then [`plan`] finds the stages that are needed and [`execute`] carries them out; [`checks`] and
//! [`outline`] tell of a file without that. Reference: BuildKit's frontend 1.26, its code rather than its manual
//! where they differ.

pub mod changes;
pub mod checks;
mod copying;
pub(crate) mod epoch;
pub mod execute;
pub mod flags;
mod history;
pub mod instruction;
pub mod lines;
pub mod mount;
pub mod outline;
pub mod plan;
mod ports;
mod running;
pub mod scope;
pub mod syntax;
mod wildcards;
pub mod words;

use std::sync::Arc;

pub use instruction::{Instruction, Recipe, Stage};
pub use syntax::{Heredoc, Node, Tree};

use crate::position::{Diagnostic, SourceText};

/// Reads a Dockerfile into stages of typed instructions.
pub fn parse(source: Arc<SourceText>) -> Result<Recipe, Diagnostic> {
    instruction::recipe(syntax::parse(source)?)
}
