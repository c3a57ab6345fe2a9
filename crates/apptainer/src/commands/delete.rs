//! `apptainer delete`: removes an image from a library or registry.

use isles_registry::LibraryName;
use isles_spec::{Platform, Reference};

use crate::ask;
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::reach;

use super::pull::{LIBRARY, REGISTRY};
use super::sign::prefixed;

static ARCH: Flag =
    Flag::text("arch", "name", "the architecture (default that of this machine)").short('A').env(&["ARCH"]);
static FORCE: Flag = Flag::switch("force", "do not ask").short('F').env(&["FORCE"]);

pub static COMMAND: Command = Command {
    usage: "delete [delete options...] <imageRef> [arch]",
    short: "Delete an image from a library or registry",
    examples: "apptainer delete --arch=amd64 library://user/project/image:1.0",
    flags: &[&[&ARCH, &FORCE, &LIBRARY], REGISTRY],
    arity: Arity::Exactly(1),
    interspersed: true,
    run,
    ..Command::EMPTY
};

fn run(cx: &Context<'_>) -> Result<u8, Failure> {
    let uri = &cx.arguments[0];
    let host = Platform::host();
    let arch = cx.values.word(&ARCH).unwrap_or(&host.architecture);
    let agreed = |name: &str| -> Result<bool, Failure> {
        let question = format!("Are you sure you want to delete {name} ({arch}) [y/N] ");
        Ok(cx.values.is(&FORCE) || ask::yes(&question)?)
    };
    match reach::split(uri) {
        Some(("library", _)) => {
            let name = LibraryName::parse(uri)?;
            let library = reach::library(cx, Some(&name), cx.values.word(&LIBRARY))?;
            if !agreed(&name.to_string())? {
                return Ok(0);
            }
            let failed = |e: Failure| prefixed("Unable to delete image from library", e);
            if !library.delete(&name, arch).map_err(|e| failed(e.into()))? {
                return Err(failed(Failure::new(format!("{name} ({arch}) is not there"))));
            }
        }
        Some(("oras", rest)) => {
            let reference = Reference::parse(rest)?.normalized();
            if !agreed(&reference.to_string())? {
                return Ok(0);
            }
            let client = reach::client(cx)?;
            let failed =
                |e: isles_registry::Error| prefixed("Unable to delete image from oci registry", e.into());
            // Registries delete by digest; a tag by itself they may keep.
            let found = client.find_sif(&reference, &host).map_err(failed)?;
            client.delete(&reference.with_digest(found.manifest)).map_err(failed)?;
        }
        Some((other, _)) => return Err(Failure::new(format!("Unsupported transport type: {other}"))),
        None => {
            return Err(Failure::new("No transport type URI supplied")
                .with_hint("write library:// or oras:// before the name; files are removed with rm"));
        }
    }
    cx.talk.info(&format!("Image {uri} ({arch}) deleted."));
    Ok(0)
}
