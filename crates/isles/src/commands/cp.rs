//! `isles cp`

use std::io;
use std::path::Path;

use isles_engine::{CopyFrom, CopyOptions, CopyTo};

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Copy files between a container, running or not, and this machine.
///
/// The rules are docker's: a folder goes into one that is there, and becomes one that is not; with /. behind it, what is in
/// it is meant. `-` stands for a tar archive on standard input or output.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles cp web:/etc/nginx/nginx.conf .
  isles cp site/. web:/srv/www
  isles cp web:/var/log - | tar t")]
pub struct Args {
    /// Into a container: all belongs to its user. Out of it, as root: to whom it belongs there.
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link of the source leads to, not the link.
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Accepted: nothing is said about progress anyway.
    #[arg(short, long)]
    quiet: bool,
    /// CONTAINER:PATH, a path, or -.
    #[arg(value_name = "SOURCE")]
    from: String,
    /// A path, -, or CONTAINER:PATH.
    #[arg(value_name = "DESTINATION")]
    to: String,
}

pub fn cmd_cp(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let options = CopyOptions { archive: args.archive, follow: args.follow_link };
    let left_out = match (of_container(&args.from), of_container(&args.to)) {
        (Some(_), Some(_)) => {
            return Err(Failure::new("copying between containers is not supported")
                .with_hint("copy through this machine: isles cp A:/x - | isles cp - B:/"));
        }
        (None, None) => {
            return Err(Failure::new("neither the source nor the destination is in a container")
                .with_hint("write CONTAINER:PATH for one of them"));
        }
        (Some((container, path)), None) => {
            let engine = cx.engine()?;
            if args.to == "-" {
                let mut out = io::stdout().lock();
                engine.copy_out(container, Path::new(path), CopyTo::Archive(&mut out), options)?
            } else {
                engine.copy_out(container, Path::new(path), CopyTo::Path(Path::new(&args.to)), options)?
            }
        }
        (None, Some((container, path))) => {
            let engine = cx.engine()?;
            if args.from == "-" {
                let input = isles_build::decoder(io::BufReader::with_capacity(256 << 10, io::stdin()));
                let mut input = input.map_err(|e| Failure::because("cannot read the archive", &e))?;
                engine.copy_in(container, CopyFrom::Archive(&mut input), Path::new(path), options)?
            } else {
                engine.copy_in(container, CopyFrom::Path(Path::new(&args.from)), Path::new(path), options)?
            }
        }
    };
    for name in left_out {
        cx.ui.warning(&format!("not copied: {name}"));
    }
    Ok(Code::SUCCESS)
}

/// A container and a path in it. What begins like a path is one of this machine.
fn of_container(word: &str) -> Option<(&str, &str)> {
    if word.starts_with(['/', '.']) {
        return None;
    }
    let (container, path) = word.split_once(':')?;
    (!container.is_empty()).then_some((container, if path.is_empty() { "/" } else { path }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_and_paths_of_this_machine() {
        for (word, expected) in [
            ("web:/etc", Some(("web", "/etc"))),
            ("web:etc:x", Some(("web", "etc:x"))),
            ("web:", Some(("web", "/"))),
            ("./a:b", None),
            ("/a:b", None),
            ("../a:b", None),
            ("-", None),
            ("file", None),
            (":/x", None),
        ] {
            assert_eq!(of_container(word), expected, "{word}");
        }
    }
}
