//! `isles rmi`

use isles_spec::quantity::human_bytes;
use isles_store::Store;

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Remove images.
///
/// A name is taken away; the image goes with its last one, and with it what no other image needs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles rmi debian:12
  isles rmi -f 3f2a9c81d0b7")]
pub struct Args {
    /// Names or IDs.
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Remove an image by its ID though it has several names; take a name away though a container stands on the
    /// image; say nothing where there is no such image.
    #[arg(short, long)]
    force: bool,
}

pub fn cmd_rmi(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let mut code = Code::SUCCESS;
    let mut freed = 0;
    for name in &args.images {
        match remove(cx, engine.store(), name, args.force) {
            Ok(bytes) => freed += bytes,
            Err(failure) => {
                cx.ui.error(&failure);
                code = Code(1);
            }
        }
    }
    if freed > 0 {
        cx.ui.note(&format!("freed {}", human_bytes(freed)));
    }
    Ok(code)
}

/// Removes one image and says what went. Returns the bytes that became free.
fn remove(cx: &Context, store: &Store, name: &str, force: bool) -> Result<u64, Failure> {
    let before = store.images()?;
    let pruned = match store.remove_image(name, force) {
        Err(isles_store::Error::NoImage { .. }) if force => return Ok(0),
        other => other?,
    };
    let after = store.images()?;
    for image in before {
        let left = after.iter().find(|i| i.manifest_digest == image.manifest_digest);
        for reference in &image.references {
            if left.is_none_or(|i| !i.references.contains(reference)) {
                cx.ui.line(&format!("Untagged: {}", reference.familiar()))?;
            }
        }
        if left.is_none() {
            cx.ui.line(&format!("Deleted: {}", image.id))?;
        }
    }
    Ok(pruned.freed)
}
