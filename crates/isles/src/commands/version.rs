//! `isles version`

use serde::Serialize;

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::format::Format;

/// Show the version of Isles and what it was built for.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles version --format '{{.Version}}'")]
pub struct Args {
    /// How to print: table, json, or a template such as '{{.Version}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
}

pub fn cmd_version(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
    };
    match &args.format {
        Format::Table => {
            cx.ui.line(&format!("isles {} ({}/{})", version.version, version.os, version.arch))?;
        }
        other => cx.ui.object(other, &version)?,
    }
    Ok(Code::SUCCESS)
}
