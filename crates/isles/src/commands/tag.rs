//! `isles tag`

use isles_spec::Reference;

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Give an image another name.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles tag app localhost:5000/app:1.0")]
pub struct Args {
    /// The image, by name or ID.
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The new name; one that stood for another image moves.
    #[arg(value_name = "NAME[:TAG]")]
    name: Reference,
}

pub fn cmd_tag(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let store = engine.store();
    store.tag(&store.resolve(&args.image, None)?, &args.name)?;
    Ok(Code::SUCCESS)
}
