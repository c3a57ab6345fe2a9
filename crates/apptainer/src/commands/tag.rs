//! `apptainer tag`: a further name for an image of a registry.

use isles_spec::Reference;

use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::reach;

use super::pull::REGISTRY;
use super::sign::prefixed;

pub static COMMAND: Command = Command {
    usage: "tag [tag options...] <URI> <tag>",
    short: "Give an image of an OCI registry a further tag",
    long: "Nothing is fetched or sent but the manifest, so the image is the same under both.",
    examples: "apptainer tag oras://localhost:5000/image:1.2 latest",
    flags: &[REGISTRY],
    arity: Arity::Exactly(2),
    interspersed: true,
    run,
    ..Command::EMPTY
};

fn run(cx: &Context<'_>) -> Result<u8, Failure> {
    let [uri, tag] = cx.arguments else { return Err(Failure::usage("accepts 2 arg(s)")) };
    let Some((scheme, rest)) = reach::split(uri) else {
        return Err(Failure::new(format!("Bad URI {uri}"))
            .with_hint("say where the image is, for example oras://localhost:5000/image:1.2"));
    };
    match scheme {
        "oras" => {}
        "library" => {
            let instead =
                "`apptainer push FILE library://ENTITY/COLLECTION/NAME:TAG,TAG` gives an image all its tags";
            return Err(Failure::unsupported("tag with library://", instead));
        }
        other => return Err(Failure::new(format!("Unsupported transport type: {other}"))),
    }
    let reference = Reference::parse(rest)?;
    reach::client(cx)?
        .tag(&reference, tag)
        .map_err(|e| prefixed("Unable to tag image in oci registry", e.into()))?;
    cx.talk.info(&format!("Image {rest} tagged {tag:?}."));
    Ok(0)
}
