//! COPY and ADD: the words of the instruction as a wish for files and a place for them.

use std::path::Path;

use isles_store::Merged;

use super::execute::{Origin, Stage, absolute, place};
use super::history;
use super::instruction::{CopyInstruction, CopySource, Step};
use super::words::Expander;
use crate::chmod::Chmod;
use crate::copy::{Inline, Placement, copy, copy_inline, is_numeric, owner};
use crate::error::Result;
use crate::key::Key;
use crate::pattern::{Ignore, has_wildcard};
use crate::position::Spanned;
use crate::select::{Selection, Wish, add_to_key, select};
use crate::snapshot::{Scratch, Snapshot, commit};
use crate::upper::Upper;

/// An instruction with its variables expanded.
struct Expanded {
    sources: Vec<(String, Spanned)>,
    inline: Vec<Inline>,
    destination: String,
    from: Option<Spanned>,
    chown: Option<String>,
    chmod: Option<String>,
    exclude: Vec<String>,
}

impl Stage<'_, '_> {
    /// Carries out a COPY or an ADD.
    pub(super) fn copy(
        &mut self,
        origin: &Origin,
        step: &Step,
        wanted: &CopyInstruction,
        add: bool,
    ) -> Result<()> {
        refuse(origin, wanted, add)?;
        let expanded = self.expanded(origin, wanted, add)?;
        let build = self.file.build;
        let target = absolute(&self.working_dir(), &expanded.destination);
        let several = expanded.sources.len() + expanded.inline.len() > 1;
        if several && !target.ends_with('/') {
            return Err(origin
                .source
                .at(wanted.destination.span, "several sources need a directory as their destination")
                .with_suggestion(format!("write {}/", expanded.destination))
                .into());
        }
        let chmod = match (&expanded.chmod, &wanted.chmod) {
            (Some(text), Some(word)) => Some(Chmod::parse(text).ok_or_else(|| {
                origin
                    .source
                    .at(word.span, format!("invalid mode '{text}'"))
                    .with_suggestion("write an octal number such as 755, or a change such as u=rwX,go=rX")
            })?),
            _ => None,
        };
        let placement = Placement {
            destination: target,
            several,
            owner: None,
            chmod,
            parents: wanted.parents,
            like_cp: false,
            unpack: add && wanted.unpack != Some(false),
            ownership: build.store.ownership(),
        };
        let keyword = if add { "ADD" } else { "COPY" };
        let mut flags: Vec<(&str, Option<&str>)> = Vec::new();
        flags.extend(expanded.chown.as_deref().map(|v| ("chown", Some(v))));
        flags.extend(expanded.chmod.as_deref().map(|v| ("chmod", Some(v))));
        flags.extend(wanted.link.then_some(("link", None)));
        let mut words: Vec<String> = expanded.sources.iter().map(|(text, _)| text.clone()).collect();
        words.extend(expanded.inline.iter().map(|i| format!("<<{}", i.name)));
        words.push(expanded.destination.clone());
        let created_by = history::copy(keyword, &flags, &words);
        let title = self.title(step);
        // With --link nothing below matters, unless an owner has to be looked up there.
        let independent = wanted.link && expanded.chown.as_deref().is_none_or(is_numeric);
        let below = if independent {
            Snapshot::empty(&self.snapshot.config.platform())
        } else {
            self.snapshot.clone()
        };
        let base_key = |kind: &str| options_key(below.key(kind, build), &expanded, &placement, wanted);
        let other = match &expanded.from {
            Some(from) => Some(self.other(origin, from)?),
            None => None,
        };
        // Where the source is layers, the same words on the same layers give the same files.
        let shortcut = other.as_ref().map(|(_, layers)| {
            base_key("copy from layers")
                .with_list("source layers", layers)
                .with_list("words", expanded.sources.iter().map(|(w, _)| w))
                .with_list("exclude", &expanded.exclude)
                .finish()
        });
        if let Some(shortcut) = &shortcut
            && build.add_known(&mut self.snapshot, &title, shortcut, &created_by)?
        {
            return Ok(());
        }
        let context = self.file.context;
        let (tree, digests, ignore) = match &other {
            Some((tree, _)) => (tree, &build.layer_digests, Ignore::default()),
            None => (&context.tree, &context.digests, context.ignore.clone()),
        };
        let wish = Wish {
            ignore,
            exclude: exclusions(origin, wanted, &expanded)?,
            parents: wanted.parents,
            follow: false,
        };
        let mut selections: Vec<Selection> = Vec::new();
        for (word, written) in &expanded.sources {
            let found = select(tree, word, &wish).map_err(|e| place(&origin.source, written.span, e))?;
            let found = found.map_err(|nothing| {
                let error = origin.source.at(written.span, nothing.message);
                match nothing.hint {
                    Some(hint) => error.with_suggestion(hint),
                    None => error,
                }
            })?;
            if found.is_empty() && has_wildcard(word) {
                let warning =
                    origin.source.at(written.span, format!("'{word}' fits no file, so nothing is copied"));
                self.file.words(&origin.source, origin.escape).warn(warning);
            }
            selections.extend(found);
        }
        let mut key = base_key("copy");
        add_to_key(&mut key, tree, digests, &selections)?;
        let step = crate::snapshot::Step { title: &title, key: key.finish(), shortcut, created_by };
        build.add(&mut self.snapshot, step, |snapshot, _| {
            let scratch = Scratch::new(build.store)?;
            let folder = scratch.folder("upper")?;
            let view = snapshot.view(build.store)?;
            let nothing = Merged::open(&[], build.store.ownership())?;
            let mut placement = placement;
            placement.owner = expanded.chown.as_deref().map(|spec| owner(spec, &view)).transpose()?;
            let lowers = if wanted.link { &nothing } else { &view };
            let mut upper = Upper::new(&folder, lowers, build.store.ownership())?;
            copy(&mut upper, tree, &selections, &placement)?;
            copy_inline(&mut upper, &expanded.inline, &placement, build.seconds())?;
            commit(build, upper)
        })
    }

    fn expanded(&self, origin: &Origin, wanted: &CopyInstruction, add: bool) -> Result<Expanded> {
        let optional = |word: &Option<Spanned>| word.as_ref().map(|w| self.expand(origin, w)).transpose();
        let mut sources = Vec::new();
        let mut inline = Vec::new();
        for source in &wanted.sources {
            match source {
                CopySource::Path(word) => {
                    let text = self.expand(origin, word)?;
                    if add {
                        refuse_remote(origin, word, &text)?;
                    }
                    sources.push((text, word.clone()));
                }
                CopySource::Inline(heredoc) => {
                    let mut text = heredoc.content();
                    if heredoc.expand {
                        let lookup = |name: &str| self.scope.lookup(self.env(), name);
                        text = Expander::body(origin.escape, &lookup)
                            .text(&text)
                            .map_err(|e| origin.source.at(heredoc.body.span, e.to_string()))?;
                    }
                    inline.push(Inline { name: heredoc.name.clone(), bytes: text.into_bytes() });
                }
            }
        }
        let from = match &wanted.from {
            Some(word) => Some(Spanned::new(self.expand(origin, word)?, word.span)),
            None => None,
        };
        Ok(Expanded {
            sources,
            inline,
            destination: self.expand(origin, &wanted.destination)?,
            from,
            chown: optional(&wanted.chown)?,
            chmod: optional(&wanted.chmod)?,
            exclude: wanted.exclude.iter().map(|w| self.expand(origin, w)).collect::<Result<_>>()?,
        })
    }
}

/// Everything that shapes the layer besides the files.
fn options_key(key: Key, expanded: &Expanded, to: &Placement, wanted: &CopyInstruction) -> Key {
    key.with("destination", &to.destination)
        .with("chown", expanded.chown.as_deref().unwrap_or_default())
        .with("chmod", expanded.chmod.as_deref().unwrap_or_default())
        .with(
            "flags",
            [u8::from(wanted.link), u8::from(to.parents), u8::from(to.unpack), u8::from(to.several)],
        )
        .with_list("inline", expanded.inline.iter().flat_map(|i| [i.name.as_bytes(), i.bytes.as_slice()]))
}

fn exclusions(origin: &Origin, wanted: &CopyInstruction, expanded: &Expanded) -> Result<Ignore> {
    let mut ignore = Ignore::default();
    for (text, word) in expanded.exclude.iter().zip(&wanted.exclude) {
        ignore
            .add(text)
            .map_err(|why| origin.source.at(word.span, format!("invalid pattern '{text}': {why}")))?;
    }
    Ok(ignore)
}

fn refuse(origin: &Origin, wanted: &CopyInstruction, add: bool) -> Result<()> {
    let later = |word: &Spanned, what: &str| {
        origin
            .source
            .at(word.span, format!("{what} is not supported yet"))
            .with_suggestion("it comes in a later version")
    };
    if let Some(word) = wanted.checksum.as_ref().filter(|_| add) {
        return Err(later(word, "--checksum").into());
    }
    if wanted.keep_git_dir {
        return Err(later(&wanted.destination, "--keep-git-dir").into());
    }
    Ok(())
}

/// ADD takes files of the context only.
fn refuse_remote(origin: &Origin, word: &Spanned, text: &str) -> Result<()> {
    let url = ["http://", "https://", "ftp://"].iter().any(|s| text.starts_with(s));
    let bare = Path::new(text.split('#').next().unwrap_or(text));
    let git = text.starts_with("git@")
        || text.starts_with("git://")
        || text.starts_with("ssh://")
        || (text.starts_with("github.com/") && bare.extension().is_some_and(|e| e == "git"));
    let what = match (url, git) {
        (_, true) => "a git repository",
        (true, false) => "a URL",
        _ => return Ok(()),
    };
    Err(origin
        .source
        .at(word.span, format!("ADD of {what} is not supported yet"))
        .with_suggestion("it comes in a later version; until then, fetch it in a RUN")
        .into())
}
