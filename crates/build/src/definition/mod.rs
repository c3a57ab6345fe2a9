//! The definition file, Apptainer's recipe language: stages of a header and sections.
//!
//! [`syntax`] splits text into stages, header fields and sections and keeps all of it with positions;
//! [`arguments`] replaces `{{ NAME }}` and reads the result again, because the language defines arguments
//! as textual; [`lint`] names the traps. [`bootstrap`] makes what a stage begins with, [`execute`] the rest;
//! [`tree`] is what every image has below `/.singularity.d`, also one that is converted
//! ([`singularity_tree`]), with the text of [`scripts`]. Reference: Apptainer 1.5, by its behaviour.

mod apps;
pub mod arguments;
pub mod bootstrap;
mod distribution;
pub mod execute;
mod files;
mod host;
pub mod json;
mod labels;
pub mod lint;
pub mod local;
mod metadata;
mod options;
mod permissions;
mod sandbox;
mod scripts;
pub mod syntax;
mod tree;

use std::sync::Arc;

pub use arguments::BuildArguments;
pub use labels::Origin;
pub use options::{DefinitionOptions, Lender, Opener, ReadFile, Sections};
pub use scripts::OWN_SCRIPTS;
pub use syntax::{Definition, FileCopy, Section, SectionKind, Stage};
pub use tree::{Entry, singularity_tree};

use crate::position::{Diagnostic, SourceText};

/// Reads a definition file with its arguments replaced. Warnings are those of [`lint`].
pub fn parse(
    source: Arc<SourceText>,
    arguments: &BuildArguments,
) -> Result<(Definition, Vec<Diagnostic>), Diagnostic> {
    let raw = syntax::parse(&source)?;
    let (definition, mut warnings) = arguments::resolve(&source, &raw, arguments)?;
    warnings.extend(lint::check(&source, &raw, &definition));
    Ok((definition, warnings))
}
