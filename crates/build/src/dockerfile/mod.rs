//! The Dockerfile language, in four steps that each stand alone: [`lines`] joins continuations,
//! [`syntax`] splits instructions into words, [`instruction`] gives them types, [`words`] expands
//! variables. Reference: BuildKit's frontend 1.26, its code rather than its manual where they differ.

pub mod flags;
pub mod instruction;
pub mod lines;
pub mod mount;
pub mod syntax;
pub mod words;

use std::sync::Arc;

pub use instruction::{Instruction, Recipe, Stage};
pub use syntax::{Heredoc, Node, Tree};

use crate::position::{Diagnostic, SourceText};

/// Reads a Dockerfile into stages of typed instructions.
pub fn parse(source: Arc<SourceText>) -> Result<Recipe, Diagnostic> {
    instruction::recipe(syntax::parse(source)?)
}
