//! Commands that do the same to several containers.

use isles_engine::Result;

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Does something to each of them, prints the names of those with which it went well, and tells of the others.
pub fn each(
    cx: &Context,
    names: &[String],
    mut what: impl FnMut(&str) -> Result<()>,
) -> std::result::Result<Code, Failure> {
    let mut code = Code::SUCCESS;
    for name in names {
        match what(name) {
            Ok(()) => cx.ui.line(name)?,
            Err(e) => {
                cx.ui.error(&e.into());
                code = Code(1);
            }
        }
    }
    Ok(code)
}
