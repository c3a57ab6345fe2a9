//! `isles pull`

use clap::ValueEnum;
use isles_registry::Pulled;
use isles_spec::{Platform, Reference};
use isles_store::{Skipped, Store};

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::registry::Connection;
use crate::ui::progress::Bars;

/// Fetch images from a registry.
///
/// What an earlier try has fetched is used; layers that are here already, in whatever compression, are not
/// fetched again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles pull debian:12
  isles pull --platform linux/arm64 debian:12
  isles pull localhost:5000/app@sha256:…")]
pub struct Args {
    /// Names, by Docker's rules; docker:// before them is allowed.
    #[arg(value_name = "NAME[:TAG|@DIGEST]", required = true)]
    names: Vec<Reference>,
    /// Fetch the image for this platform, such as linux/arm64 [default: this machine's].
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// When to ask the registry.
    #[arg(long, value_enum, default_value_t = Policy::Always)]
    policy: Policy,
    /// Print only the names.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// Fetch the image if the registry has another one than is here.
    Always,
    /// The same, but use what is here if the registry cannot be reached.
    Newer,
    /// Only if the image is not here.
    Missing,
    /// Not at all: fail if the image is not here.
    Never,
}

pub fn cmd_pull(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    for name in &args.names {
        pull(cx, engine.store(), name, args)?;
    }
    Ok(Code::SUCCESS)
}

fn pull(cx: &Context, store: &Store, name: &Reference, args: &Args) -> Result<(), Failure> {
    let ui = cx.ui.quieter(args.quiet);
    let name = name.normalized();
    let host = Platform::host();
    let platform = args.platform.as_ref().unwrap_or(&host);
    let here = store.resolve_reference(&name, Some(platform)).ok().filter(|image| store.is_whole(image));
    match (args.policy, &here) {
        (Policy::Missing | Policy::Never, Some(_)) => {
            ui.note(&format!("Status: {} is here", name.familiar()));
            return cx.ui.line(&name.to_string());
        }
        (Policy::Never, None) => {
            return Err(Failure::new(format!("{} is not here", name.familiar()))
                .with_hint("--policy never does not ask a registry"));
        }
        _ => {}
    }
    let bars = Bars::new(&ui);
    match args.connection.client().pull(store, &name, platform, &bars) {
        Ok(pulled) => {
            drop(bars);
            ui.note(&format!("Digest: {}", pulled.target));
            ui.note(&status(&name, &pulled));
            if let Some(text) = left_out(&pulled.skipped) {
                ui.note(&text);
            }
        }
        Err(isles_registry::Error::Unreachable { host, cause, .. })
            if args.policy == Policy::Newer && here.is_some() =>
        {
            cx.ui.warning(&format!("cannot reach {host}: {cause}; using the image that is here"));
        }
        Err(e) => return Err(e.into()),
    }
    cx.ui.line(&name.to_string())
}

fn status(name: &Reference, pulled: &Pulled) -> String {
    let name = name.familiar();
    if pulled.up_to_date {
        format!("Status: Image is up to date for {name}")
    } else {
        format!("Status: Downloaded newer image for {name}")
    }
}

/// What of a layer could not be made, in one line.
pub fn left_out(skipped: &[Skipped]) -> Option<String> {
    let first = skipped.first()?;
    let more = match skipped.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    Some(format!("left out of the unpacked files: '{}' ({}){more}", first.path, first.what))
}
