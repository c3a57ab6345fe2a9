//! `apptainer push`: a SIF file to somewhere else.

use std::fs::File;
use std::path::Path;

use isles_openpgp::Certificate;
use isles_registry::LibraryName;
use isles_sif::{Kinds, Selection, Sif, Trust};
use isles_spec::Reference;
use isles_store::SifSource;

use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::keys::{Keys, Part};
use crate::reach::{self, Steps};

use super::pull::{LIBRARY, REGISTRY, UNSIGNED};
use super::sign::prefixed;

static DESCRIPTION: Flag =
    Flag::text("description", "text", "what the image is, for those who find it").short('D');

pub static COMMAND: Command = Command {
    usage: "push [push options...] <image> <URI>",
    short: "Upload an image to a registry or library",
    long: "To oras:// and library:// the file goes as it is; to docker:// it goes as the OCI image that it stands for.",
    examples: "apptainer push image.sif oras://localhost:5000/image:tag",
    flags: &[&[&UNSIGNED, &DESCRIPTION, &LIBRARY], REGISTRY],
    arity: Arity::Exactly(2),
    interspersed: true,
    run,
    ..Command::EMPTY
};

fn run(cx: &Context<'_>) -> Result<u8, Failure> {
    let [file, uri] = cx.arguments else { return Err(Failure::usage("accepts 2 arg(s)")) };
    let (scheme, rest) = reach::split(uri).ok_or_else(|| {
        Failure::new(format!("bad uri {uri}"))
            .with_hint("say where it goes, for example oras://localhost:5000/image:tag")
    })?;
    let path = Path::new(file);
    if scheme != "library" && cx.values.has(&DESCRIPTION) {
        let instead = "descriptions are kept by libraries; an image can have one as a label";
        return Err(Failure::unsupported(format!("--description with {scheme}://"), instead));
    }
    let open = || File::open(path).map_err(|e| Failure::because(format!("cannot open {file}"), &e));
    match scheme {
        "oras" => {
            Sif::from_file(open()?, file.as_str())?;
            let engine = cx.engine()?;
            let reference = Reference::parse(rest)?;
            reach::client(cx)?
                .push_sif(engine.store(), path, &reference, &Steps(cx.talk))
                .map_err(|e| prefixed("Unable to push image to oci registry", e.into()))?;
        }
        "docker" => {
            let sif = Sif::from_file(open()?, file.as_str())?;
            let engine = cx.engine()?;
            let store = engine.store();
            let lease = store.lease()?;
            let image = store.import_sif(&lease, SifSource::Sif(&sif), &[], &Steps(cx.talk))?;
            let reference = Reference::parse(rest)?.normalized();
            reach::client(cx)?
                .push(store, &image.id().to_string(), None, &reference, &Steps(cx.talk))
                .map_err(|e| prefixed("Unable to push image to oci registry", e.into()))?;
        }
        "library" => {
            let name = LibraryName::parse(uri)?;
            let sif = Sif::from_file(open()?, file.as_str())?;
            if cx.values.is(&UNSIGNED) {
                cx.talk.warning("Skipping container verification");
            } else {
                check_signed(&sif)?;
            }
            let library = reach::library(cx, Some(&name), cx.values.word(&LIBRARY))?;
            let description = cx.values.word(&DESCRIPTION).unwrap_or("No description");
            let arch = sif.header().arch.name();
            library
                .push(path, &name, arch, description, &Steps(cx.talk))
                .map_err(|e| prefixed("Unable to push image to library", e.into()))?;
        }
        other => return Err(Failure::new(format!("Unsupported transport type: {other}"))),
    }
    cx.talk.info("Upload complete");
    Ok(0)
}

/// Whether an image has signatures of known keys: a library wants to know who made it.
///
/// # Errors
/// It has none, or what is signed is not what is there.
pub fn check_signed(sif: &Sif) -> Result<(), Failure> {
    let certificates = [Keys::global().all(Part::Public)?, Keys::own(None)?.all(Part::Public)?].concat();
    let keys: Vec<_> = certificates.iter().flat_map(|c: &Certificate| c.keys().unwrap_or_default()).collect();
    let trust = Trust { keyring: Some(&keys), keys: &[], now: super::now() };
    let report = isles_sif::verify(sif, &Selection::default(), Kinds::Usual, &trust)?;
    match report.problem {
        None => Ok(()),
        Some(problem) => Err(Failure::new(format!("Unable to upload container: {problem}"))
            .with_hint("sign it with `apptainer sign`, or push it unsigned with -U")),
    }
}
