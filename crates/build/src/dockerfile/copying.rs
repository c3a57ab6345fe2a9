//! COPY and ADD: the words of the instruction as a wish for files and a place for them.

use std::path::Path;

use isles_spec::{Algorithm, Digest};
use isles_store::{FileKind, Merged};

use super::execute::{Origin, Stage, absolute, place};
use super::history;
use super::instruction::{CopyInstruction, CopySource, Step};
use super::words::Expander;
use crate::attest::Dependency;
use crate::chmod::Chmod;
use crate::copy::{Download, Inline, Placement, copy, copy_download, copy_inline, is_numeric, owner};
use crate::error::Result;
use crate::fetch::{self, Remote};
use crate::git::{self, Git, Repository};
use crate::key::Key;
use crate::pattern::{Ignore, has_wildcard};
use crate::position::Spanned;
use crate::select::{Selection, Wish, add_to_key, select};
use crate::snapshot::{Scratch, Snapshot, commit};
use crate::tree::{Folder, Tree};
use crate::upper::Upper;

/// An instruction with its variables expanded.
struct Expanded {
    sources: Vec<(String, Spanned)>,
    inline: Vec<Inline>,
    destination: String,
    from: Option<Spanned>,
    chown: Option<String>,
    chmod: Option<String>,
    checksum: Option<String>,
    exclude: Vec<String>,
}

/// Where the files of one source come from.
enum Source {
    /// The build context, another stage or an image.
    Files(Vec<Selection>),
    Url(Remote),
    Repository(Repository, git::Found),
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
        let expanded = self.expanded(origin, wanted)?;
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
            unpack: wanted.unpack.unwrap_or(add),
            ownership: build.store.ownership(),
        };
        let keyword = if add { "ADD" } else { "COPY" };
        let mut flags: Vec<(&str, Option<&str>)> = Vec::new();
        flags.extend(wanted.parents.then_some(("parents", None)));
        flags.extend(expanded.chown.as_deref().map(|v| ("chown", Some(v))));
        flags.extend(expanded.chmod.as_deref().map(|v| ("chmod", Some(v))));
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
        let shortcut = other.as_ref().and_then(|o| o.diff_ids()).map(|layers| {
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
            Some(other) => (other.tree(), other.digests(build), other.ignore()),
            None => (&context.tree, &context.digests, context.ignore.clone()),
        };
        let wish = Wish {
            ignore,
            exclude: exclusions(origin, wanted, &expanded)?,
            parents: wanted.parents,
            follow: false,
        };
        let mut sources: Vec<Source> = Vec::new();
        for (word, written) in &expanded.sources {
            let source = match self.remote(origin, wanted, &expanded, word, written, add)? {
                Some(remote) => remote,
                None => Source::Files(self.chosen(origin, tree, word, written, &wish)?),
            };
            match (sources.last_mut(), source) {
                (Some(Source::Files(before)), Source::Files(more)) => before.extend(more),
                (_, source) => sources.push(source),
            }
        }
        self.warn_of_one_place(origin, &below, wanted, &sources, &placement)?;
        let mut key = base_key("copy");
        for source in &sources {
            match source {
                Source::Files(selections) => add_to_key(&mut key, tree, digests, selections)?,
                Source::Url(remote) => {
                    key.add("url", &remote.name);
                    key.add("digest", remote.digest.to_string());
                    key.add("unpack", [u8::from(wanted.unpack == Some(true))]);
                }
                Source::Repository(repository, found) => {
                    key.add("commit", &found.commit);
                    key.add("exclude", expanded.exclude.join("\n"));
                    repository.key(&mut key);
                }
            }
        }
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
            for (number, source) in sources.iter().enumerate() {
                match source {
                    Source::Files(selections) => copy(&mut upper, tree, selections, &placement)?,
                    Source::Url(remote) => {
                        // Of what comes from elsewhere only that is unpacked of which it is said.
                        let placement =
                            Placement { unpack: wanted.unpack == Some(true), ..placement.clone() };
                        let (file, mtime) = remote.open(build)?;
                        let open = || fetch::again(&file, &remote.url);
                        let Remote { url, name, .. } = remote;
                        copy_download(&mut upper, &Download { url, name, mtime, open: &open }, &placement)?;
                    }
                    Source::Repository(repository, found) => {
                        let place = scratch.folder(&format!("repository{number}"))?;
                        let (files, _) = Git::new(build, repository)?.checkout(found, &place)?;
                        let tree = Tree::Folder(Folder::open(&files)?);
                        let wish = Wish { exclude: wish.exclude.clone(), ..Wish::default() };
                        let all = select(&tree, "/", &wish)?.map_err(|nothing| nothing.into_error())?;
                        let placement = Placement { unpack: false, parents: false, ..placement.clone() };
                        copy(&mut upper, &tree, &all, &placement)?;
                    }
                }
            }
            copy_inline(&mut upper, &expanded.inline, &placement, build.seconds())?;
            commit(build, upper)
        })
    }

    /// A source that is not in the build context, if it is one.
    fn remote(
        &self,
        origin: &Origin,
        wanted: &CopyInstruction,
        expanded: &Expanded,
        word: &str,
        written: &Spanned,
        add: bool,
    ) -> Result<Option<Source>> {
        let build = self.file.build;
        let bad = |why: String| origin.source.at(written.span, why);
        let of_checksum =
            |why: String| origin.source.at(wanted.checksum.as_ref().map_or(written.span, |c| c.span), why);
        let source = match git::parse(word) {
            Some(repository) => {
                let repository = repository.map_err(&bad)?;
                if !add {
                    return Err(bad("COPY takes no git repository".into())
                        .with_suggestion("write ADD")
                        .into());
                }
                let repository = repository
                    .with_flags(expanded.checksum.as_deref(), wanted.keep_git_dir)
                    .map_err(&of_checksum)?;
                let found = Git::new(build, &repository)
                    .and_then(|git| git.find())
                    .map_err(|e| place(&origin.source, written.span, e))?;
                build.depends_on(Dependency::repository(&repository, &found));
                Source::Repository(repository, found)
            }
            None if word.starts_with("http://") || word.starts_with("https://") => {
                if !add {
                    return Err(bad("COPY takes no URL".into()).with_suggestion("write ADD").into());
                }
                let checksum = match &expanded.checksum {
                    None => None,
                    Some(text) => {
                        let parsed = text.parse::<Digest>().map_err(|e| e.to_string());
                        let parsed = parsed.and_then(|digest| match digest.algorithm() {
                            Algorithm::Sha256 => Ok(digest),
                            other => Err(format!("{} is not checked here", other.name())),
                        });
                        Some(parsed.map_err(|e| {
                            of_checksum(format!("invalid checksum: {e}"))
                                .with_suggestion("write --checksum=sha256: and 64 hexadecimal digits")
                        })?)
                    }
                };
                let remote = Remote::find(build, word, checksum.as_ref())
                    .map_err(|e| place(&origin.source, written.span, e))?;
                build.depends_on(Dependency::file(&remote));
                Source::Url(remote)
            }
            None => {
                if let Some(scheme) = scheme(word) {
                    return Err(bad(format!("ADD cannot fetch from '{scheme}:' addresses"))
                        .with_suggestion(
                            "http, https, and git repositories by http, https, ssh and git can be",
                        )
                        .into());
                }
                if expanded.checksum.is_some() {
                    return Err(of_checksum("a checksum is for URLs and git repositories".into())
                        .with_suggestion("what is in the build context is there already")
                        .into());
                }
                return Ok(None);
            }
        };
        if expanded.checksum.is_some() && expanded.sources.len() + expanded.inline.len() > 1 {
            return Err(of_checksum("a checksum is for one source only".into())
                .with_suggestion("write an ADD for each")
                .into());
        }
        Ok(Some(source))
    }

    /// The files that a word means.
    fn chosen(
        &self,
        origin: &Origin,
        tree: &Tree,
        word: &str,
        written: &Spanned,
        wish: &Wish,
    ) -> Result<Vec<Selection>> {
        let found = select(tree, word, wish).map_err(|e| place(&origin.source, written.span, e))?;
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
        Ok(found)
    }

    /// Files that a wildcard fits all go to one place where the destination is no directory, and the last one stays.
    fn warn_of_one_place(
        &self,
        origin: &Origin,
        below: &Snapshot,
        wanted: &CopyInstruction,
        sources: &[Source],
        to: &Placement,
    ) -> Result<()> {
        let [Source::Files(files)] = sources else { return Ok(()) };
        let [.., last] = files.as_slice() else { return Ok(()) };
        let plain = files.len() > 1 && files.iter().all(|f| !f.directory);
        if !plain || to.several || to.unpack || to.parents || to.destination.ends_with('/') {
            return Ok(());
        }
        let view = below.view(self.file.build.store)?;
        if !wanted.link && view.stat(Path::new(&to.destination)).is_ok_and(|s| s.kind == FileKind::Dir) {
            return Ok(());
        }
        let message = format!(
            "{} files become '{}', one after the other, and only '{}' stays",
            files.len(),
            to.destination,
            last.name.to_string_lossy()
        );
        let warning = origin
            .source
            .at(wanted.destination.span, message)
            .with_suggestion(format!("write {}/ if a directory is meant", to.destination));
        self.file.words(&origin.source, origin.escape).warn(warning);
        Ok(())
    }

    fn expanded(&self, origin: &Origin, wanted: &CopyInstruction) -> Result<Expanded> {
        let optional = |word: &Option<Spanned>| word.as_ref().map(|w| self.expand(origin, w)).transpose();
        let mut sources = Vec::new();
        let mut inline = Vec::new();
        for source in &wanted.sources {
            match source {
                CopySource::Path(word) => {
                    sources.push((self.expand(origin, word)?, word.clone()));
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
        Ok(Expanded {
            sources,
            inline,
            destination: self.expand(origin, &wanted.destination)?,
            from: wanted.from.clone(),
            chown: optional(&wanted.chown)?,
            chmod: optional(&wanted.chmod)?,
            checksum: optional(&wanted.checksum)?,
            // As BuildKit, which expands no variable there.
            exclude: wanted.exclude.iter().map(|w| w.text.clone()).collect(),
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

/// The scheme of an address such as `ftp://x`, if a word is one.
fn scheme(word: &str) -> Option<&str> {
    let (scheme, _) = word.split_once("://")?;
    let plain = scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    (plain && scheme.starts_with(|c: char| c.is_ascii_alphabetic())).then_some(scheme)
}
