//! `apptainer search`: images in a library, by a word of their names.

use isles_registry::LibraryMatch;
use isles_spec::Platform;

use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::reach;

use super::pull::{LIBRARY, REGISTRY};
use super::sign::prefixed;

static ARCH: Flag =
    Flag::text("arch", "name", "the architecture (default that of this machine)").env(&["SEARCH_ARCH"]);
static SIGNED: Flag = Flag::switch("signed", "only images that are signed").env(&["SEARCH_SIGNED"]);

pub static COMMAND: Command = Command {
    usage: "search [search options...] <search_query>",
    short: "Search a library for images",
    examples: "apptainer search --library https://library.example lolcow",
    flags: &[&[&ARCH, &LIBRARY, &SIGNED], REGISTRY],
    arity: Arity::Exactly(1),
    interspersed: true,
    run,
    ..Command::EMPTY
};

fn run(cx: &Context<'_>) -> Result<u8, Failure> {
    let word = match reach::split(&cx.arguments[0]) {
        Some(("library", word)) => word,
        Some((other, _)) => return Err(Failure::new(format!("Unsupported transport type: {other}"))),
        None => &cx.arguments[0],
    };
    if word.chars().count() < 3 {
        let text =
            format!("Couldn't search library: bad query '{word}'. You must search for at least 3 characters");
        return Err(Failure::new(text));
    }
    let host = Platform::host();
    let arch = cx.values.word(&ARCH).unwrap_or(&host.architecture);
    let library = reach::library(cx, None, cx.values.word(&LIBRARY))?;
    let found = library.search(word, arch, cx.values.is(&SIGNED));
    let found = found.map_err(|e| prefixed("Couldn't search library", e.into()))?;
    if found.is_empty() {
        cx.print(format!("No container images found for {arch} matching {word:?}.\n\n"))?;
    } else {
        let list: String = found.iter().map(listed).collect();
        cx.print(format!("Found {} container images for {arch} matching {word:?}:\n\n{list}", found.len()))?;
    }
    Ok(0)
}

fn listed(image: &LibraryMatch) -> String {
    let tags = if image.tags.is_empty() { String::new() } else { format!(":{}", image.tags.join(",")) };
    let mut text = format!("\tlibrary://{}/{}/{}{tags}\n", image.entity, image.collection, image.container);
    if !image.description.is_empty() {
        text.push_str(&format!("\t\t{}\n", image.description));
    }
    if !image.fingerprints.is_empty() {
        text.push_str(&format!("\t\tSigned by: {}\n", image.fingerprints.join(",")));
    }
    // What a server writes is for a terminal here.
    text.chars().filter(|c| !c.is_control() || matches!(c, '\t' | '\n')).chain(['\n']).collect()
}
