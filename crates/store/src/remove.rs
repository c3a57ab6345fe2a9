//! Deletes trees.

use std::path::Path;

use crate::Result;
use crate::error::At;

/// Deletes a tree.
pub(crate) fn tree(path: &Path) -> Result<()> {
    std::fs::remove_dir_all(path).at("remove", path)
}
