//! `isles import`

use std::fs::File;
use std::io::{self, BufReader, Read};

use isles_build::Remarks;
use isles_registry::web::{Web, Wish};
use isles_spec::{Platform, Reference};

use crate::commands::build::failure;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::registry::Connection;

const BUFFER: usize = 256 << 10;

/// Make an image of one layer out of a tar archive of files, compressed or not.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles export lab1 | isles import - lab1:flat
  isles import -c 'CMD [\"sh\"]' rootfs.tar.xz tiny
  isles import https://example.org/rootfs.tar.gz tiny")]
pub struct Args {
    /// An instruction of a Dockerfile that changes the configuration.
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// A word about it.
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// The platform that it is for: linux/arm64.
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    #[command(flatten)]
    connection: Connection,
    /// A file, a URL (http or https), or - for standard input.
    #[arg(value_name = "FILE")]
    file: String,
    /// The name of the image.
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<Reference>,
}

pub fn cmd_import(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let remarks = Remarks {
        author: None,
        message: args.message.clone(),
        changes: args.change.clone(),
        names: args.name.iter().map(Reference::normalized).collect(),
    };
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let mut input = archive(&args.file, &args.connection)?;
    let image = isles_build::import(&engine, &mut input, &args.file, &platform, &remarks);
    cx.ui.line(&image.map_err(|e| failure(&e))?.id().to_string())?;
    Ok(Code::SUCCESS)
}

/// What an archive holds, by its file or its URL.
pub fn archive(file: &str, connection: &Connection) -> Result<impl Read + use<>, Failure> {
    let failed = |e: &io::Error| Failure::because(format!("cannot read '{file}'"), e);
    let input: Box<dyn Read> = match file {
        "-" => Box::new(io::stdin()),
        url if url.starts_with("http://") || url.starts_with("https://") => {
            let answer = Web::new(&connection.options()).get(url, Wish::default())?;
            if answer.status != 200 {
                return Err(Failure::new(format!(
                    "'{url}' cannot be fetched: the server answers {}",
                    answer.status
                ))
                .with_hint("look whether the address is right"));
            }
            Box::new(answer.reader())
        }
        path => Box::new(File::open(path).map_err(|e| failed(&e))?),
    };
    isles_build::decoder(BufReader::with_capacity(BUFFER, input)).map_err(|e| failed(&e))
}
