//! `isles commit`

use isles_build::Remarks;
use isles_spec::Reference;

use crate::commands::build::failure;
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Make an image of a container: of the image that it stands on and what it wrote, but not of its volumes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles commit lab1 course/lab1:solved
  isles commit -m 'with numpy' -c 'CMD [\"python3\"]' lab1")]
pub struct Args {
    /// Who made it.
    #[arg(short, long, value_name = "NAME")]
    author: Option<String>,
    /// A word about it.
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// An instruction of a Dockerfile that changes the configuration.
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Let the container stand still meanwhile; --pause=false does not.
    #[arg(
        short,
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        hide_default_value = true,
        hide_possible_values = true
    )]
    pause: bool,
    /// The container, by name or ID.
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The name of the image.
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<Reference>,
}

pub fn cmd_commit(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let remarks = Remarks {
        author: args.author.clone(),
        message: args.message.clone(),
        changes: args.change.clone(),
        names: args.name.iter().map(Reference::normalized).collect(),
    };
    let engine = cx.engine()?;
    let image =
        isles_build::commit(&engine, &args.container, &remarks, args.pause, &|text| cx.ui.warning(text));
    cx.ui.line(&image.map_err(|e| failure(&e))?.id().to_string())?;
    Ok(Code::SUCCESS)
}
