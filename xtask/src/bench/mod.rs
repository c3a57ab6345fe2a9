//! `cargo xtask bench`
use crate::Result;
pub fn run(_names: &[String]) -> Result<()> {
    Ok(())
}
