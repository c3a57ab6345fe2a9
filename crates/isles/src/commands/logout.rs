//! `isles logout`

use isles_registry::Credentials;

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Forget the login for a registry.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles logout ghcr.io")]
pub struct Args {
    /// Host and port of the registry.
    #[arg(value_name = "REGISTRY", default_value = "docker.io")]
    registry: String,
}

pub fn cmd_logout(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let registry = &args.registry;
    if Credentials::from_environment().erase(registry)? {
        cx.ui.line(&format!("Removing login credentials for {registry}"))?;
    } else {
        cx.ui.line(&format!("Not logged in to {registry}"))?;
    }
    Ok(Code::SUCCESS)
}
