//! The instructions of a stage, one after another: what each changes, and what is odd about it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use super::Place;
use super::config::Config;
use super::rules;
use super::stages::{NO_VARIABLES, State, Walk};
use super::used::{Used, UsedArg, Wanted, description};
use crate::dockerfile::instruction::{Argument, CommandLine, CopyInstruction, CopySource, Instruction, Step};
use crate::dockerfile::mount::{self, MountType};
use crate::dockerfile::plan::{self, From};
use crate::dockerfile::ports;
use crate::dockerfile::syntax::Node;
use crate::dockerfile::words::Expander;
use crate::position::{Diagnostic, SourceText, Span, Spanned};

/// Words as parts of names that hold secrets, and words that tell that they do not.
const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
const NO_SECRET: [&str; 3] = ["public", "file", "version"];

/// Instructions of which only the last one counts.
#[derive(Debug, Default)]
pub(super) struct Once {
    cmd: Option<Place>,
    entrypoint: Option<Place>,
    healthcheck: Option<Place>,
}

/// Where an instruction stands, and which rules hold there.
pub(super) struct Here<'h> {
    pub place: Place,
    pub config: Cow<'h, Config>,
    pub source: &'h SourceText,
    pub escape: char,
    /// It comes from the base.
    pub trigger: bool,
    pub stage: usize,
}

impl Here<'_> {
    /// Where something is shown: in the recipe, and not in an instruction of the base.
    pub fn span(&self, own: Span) -> Span {
        if self.trigger { self.place.span } else { own }
    }
}

impl Walk<'_> {
    /// Carries an instruction out, as far as variables and the configuration go.
    pub(super) fn step(
        &mut self,
        here: &Here<'_>,
        step: &Step,
        state: &mut State,
        once: &mut Once,
        own: &mut Used,
    ) -> Result<(), Diagnostic> {
        let keyword = &step.node.keyword.text;
        match &step.instruction {
            Instruction::Env(pairs) => {
                let pairs = self.pairs(here, state, &step.node, pairs)?;
                for (name, value) in pairs {
                    self.secret(here, "ENV", &name);
                    state.env.insert(name, value);
                }
            }
            Instruction::Label(pairs) => drop(self.pairs(here, state, &step.node, pairs)?),
            Instruction::Arg(arguments) => {
                for argument in arguments {
                    self.argument(here, &step.node, state, argument, own)?;
                }
            }
            Instruction::Cmd(command) => {
                self.once(here, keyword, &mut once.cmd);
                self.json(here, keyword, command, state);
            }
            Instruction::Entrypoint(command) => {
                self.once(here, keyword, &mut once.entrypoint);
                self.json(here, keyword, command, state);
            }
            Instruction::Healthcheck(_) => self.once(here, keyword, &mut once.healthcheck),
            Instruction::Copy(copy) => self.copy(here, step, copy, state, own)?,
            Instruction::Add(add) => self.copy(here, step, add, state, own)?,
            Instruction::Run(run) => {
                for flag in &run.mounts {
                    self.mount(here, state, flag, own)?;
                }
            }
            Instruction::Workdir(word) => {
                let path = self.word(here, state, word)?;
                if !state.workdir && !path.starts_with('/') {
                    let detail = format!("'{path}' is relative, and no WORKDIR stands before it");
                    let hint = format!("write /{path}, if that is meant");
                    let place = here.place.at(here.span(word.span));
                    self.report.add(&here.config, &rules::WORKDIR_RELATIVE_PATH, place, detail, Some(hint));
                }
                state.workdir = true;
            }
            Instruction::Shell(words) => state.shell = !words.is_empty(),
            Instruction::Expose(words) => {
                for word in words {
                    let span = here.span(word.span);
                    for port in self.expand(&state.env, word, here.escape, span)?.words {
                        self.port(here, span, &port)?;
                    }
                }
            }
            Instruction::Volume(words) => {
                for word in words {
                    self.word(here, state, word)?;
                }
            }
            Instruction::User(word) => drop(self.word(here, state, word)?),
            Instruction::StopSignal(word) => {
                let signal = self.word(here, state, word)?;
                if !ports::is_signal(&signal) {
                    let error =
                        self.report.source.at(here.span(word.span), format!("'{signal}' is no signal"));
                    return Err(
                        error.with_suggestion("write a name such as SIGTERM or a number from 1 to 64")
                    );
                }
            }
            Instruction::Onbuild(text) => state.triggers.push(text.clone()),
            Instruction::Maintainer(_) => {}
        }
        Ok(())
    }

    /// Names and values of ENV and LABEL.
    fn pairs(
        &mut self,
        here: &Here<'_>,
        state: &State,
        node: &Node,
        pairs: &[(Spanned, Spanned)],
    ) -> Result<Vec<(String, String)>, Diagnostic> {
        let mut out = Vec::with_capacity(pairs.len());
        for (name, value) in pairs {
            out.push((self.word(here, state, name)?, self.word(here, state, value)?));
        }
        // Only the form with blanks has no separator, and it has one pair.
        if let [name, value, separator] = node.args.as_slice()
            && separator.is_empty()
        {
            let keyword = &node.keyword.text;
            let place = here.place.at(here.span(name.span));
            let detail = format!("a blank stands between name and value of {keyword}, not '='");
            let quote = if value.contains(char::is_whitespace) && !value.contains('"') { "\"" } else { "" };
            let hint = format!("write {keyword} {}={quote}{}{quote}", name.text, value.text);
            self.report.add(&here.config, &rules::LEGACY_KEY_VALUE_FORMAT, place, detail, Some(hint));
        }
        Ok(out)
    }

    fn secret(&mut self, here: &Here<'_>, keyword: &str, name: &str) {
        let has = |words: &[&str]| name.split('_').any(|p| words.iter().any(|w| p.eq_ignore_ascii_case(w)));
        if has(&SECRET) && !has(&NO_SECRET) {
            let detail =
                format!("{keyword} '{name}' seems to hold a secret, which becomes part of the image");
            let hint = "use RUN --mount=type=secret".to_owned();
            self.report.add(&here.config, &rules::SECRETS_USED_IN_ARG_OR_ENV, here.place, detail, Some(hint));
        }
    }

    fn argument(
        &mut self,
        here: &Here<'_>,
        node: &Node,
        state: &mut State,
        argument: &Argument,
        own: &mut Used,
    ) -> Result<(), Diagnostic> {
        let name = &argument.name.text;
        self.secret(here, "ARG", name);
        let (value, inherited) = match (self.look.build_args.get(name), &argument.default) {
            (Some(given), _) => (Some(given.clone()), false),
            (None, Some(default)) => (Some(self.word(here, state, default)?), false),
            (None, None) => {
                let global = self.top.env.get(name).cloned();
                let inherited = global.is_some();
                (global, inherited)
            }
        };
        if let Some(value) = &value
            && !NO_VARIABLES.contains(&name.as_str())
        {
            state.env.insert(name.clone(), value.clone());
        }
        if !inherited {
            self.spend(node.comments.len(), here.place.span)?;
            let description = description(&node.comments, name);
            let lines = here.place.lines;
            own.args.insert(name.clone(), UsedArg { value, description, lines, needs: BTreeSet::new() });
        }
        own.used.insert(name.clone());
        state.declared.insert(name.clone());
        Ok(())
    }

    /// An instruction of which only the last one of a stage counts: the one before is what is superfluous.
    fn once(&mut self, here: &Here<'_>, keyword: &str, before: &mut Option<Place>) {
        if let Some(place) = before.replace(here.place) {
            let detail = format!("{keyword} stands again below, and only the last one counts");
            let hint = "take this one out".to_owned();
            self.report.add(
                &here.config,
                &rules::MULTIPLE_INSTRUCTIONS_DISALLOWED,
                place,
                detail,
                Some(hint),
            );
        }
    }

    fn json(&mut self, here: &Here<'_>, keyword: &str, command: &CommandLine, state: &State) {
        if command.shell && !state.shell {
            let detail =
                format!("{keyword} runs in a shell, which gets the signals that the program should get");
            let list = format!("{keyword} [\"PROGRAM\", \"ARGUMENT\"]");
            let hint = match command.words.first() {
                Some(line) if line.starts_with('[') && line[1..].trim_start().starts_with(['"', '\'']) => {
                    format!("a list has double quotes around each word and commas between them: {list}")
                }
                _ => format!("write {list}, or SHELL before it if a shell is meant"),
            };
            self.report.add(&here.config, &rules::JSON_ARGS_RECOMMENDED, here.place, detail, Some(hint));
        }
    }

    fn copy(
        &mut self,
        here: &Here<'_>,
        step: &Step,
        copy: &CopyInstruction,
        state: &State,
        own: &mut Used,
    ) -> Result<(), Diagnostic> {
        for flag in [&copy.chown, &copy.chmod, &copy.checksum].into_iter().flatten() {
            self.word(here, state, flag)?;
        }
        let mut paths = Vec::new();
        for source in &copy.sources {
            if let CopySource::Path(word) = source {
                paths.push((self.word(here, state, word)?, word.span));
            }
        }
        self.word(here, state, &copy.destination)?;
        for source in &copy.sources {
            if let CopySource::Inline(inline) = source
                && inline.expand
            {
                let span = here.span(inline.body.span);
                let lookup = |n: &str| state.env.get(n).cloned();
                let expansion = Expander::body('\\', &lookup)
                    .expand(&inline.body)
                    .map_err(|e| e.at(&self.recipe.source, span))?;
                self.spend(expansion.effort, span)?;
                self.unset(here, state, span, &expansion.unset);
            }
        }
        match &copy.from {
            Some(from) => self.source(here, from, own)?,
            None => {
                for (path, span) in paths {
                    self.spend(self.look.ignore.effort(&path), here.span(span))?;
                    self.ignored(here, &step.node, &path, span);
                }
            }
        }
        Ok(())
    }

    /// A stage that files come from.
    fn source(&mut self, here: &Here<'_>, from: &Spanned, own: &mut Used) -> Result<(), Diagnostic> {
        match plan::source_of(self.recipe, from, here.stage, here.trigger, self.look.named) {
            Ok(From::Stage(stage)) => own.from.push(stage),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Copying what `.dockerignore` leaves out cannot work. Where it takes something back in, nothing is said.
    fn ignored(&mut self, here: &Here<'_>, node: &Node, path: &str, span: Span) {
        let ignore = self.look.ignore;
        if ignore.is_empty() || ignore.may_return() || path.contains("://") || path.starts_with("git@") {
            return;
        }
        let rooted = path.starts_with('/');
        let clean = crate::pattern::clean(path);
        if clean.is_empty() && !ignore.leaves_out_all() {
            return;
        }
        let shown = match (rooted, clean.is_empty()) {
            (true, _) => format!("/{clean}"),
            (false, true) => ".".to_owned(),
            (false, false) => clean,
        };
        if ignore.is_left_out(Path::new(&shown)) {
            let detail = format!("{} takes '{shown}', which .dockerignore leaves out", node.name());
            let place = here.place.at(here.span(span));
            let hint = "take the pattern out of .dockerignore, or add !PATH to it".to_owned();
            self.report.add(&here.config, &rules::COPY_IGNORED_FILE, place, detail, Some(hint));
        }
    }

    fn mount(
        &mut self,
        here: &Here<'_>,
        state: &State,
        flag: &Spanned,
        own: &mut Used,
    ) -> Result<(), Diagnostic> {
        let span = here.span(flag.span);
        let mut unset = Vec::new();
        let mut effort = 0;
        let lookup = |n: &str| state.env.get(n).cloned();
        let mut expand = |value: &str| {
            let e = Expander::new(here.escape, &lookup)
                .expand(value)
                .map_err(|e| e.at(here.source, flag.span))?;
            unset.push(e.unset);
            effort += e.effort;
            Ok(e.text)
        };
        let parsed = mount::parse(here.source, flag, &mut expand);
        self.spend(effort, span)?;
        for names in &unset {
            self.unset(here, state, span, names);
        }
        let mount = parsed.map_err(|e| match here.trigger {
            true => Diagnostic { suggestion: e.suggestion, ..self.report.source.at(span, e.message) },
            false => e,
        })?;
        let lines = here.place.lines;
        let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
        let note = |list: &mut Vec<Wanted>, id: String, required: bool| {
            if !list.iter().any(|w| w.id == id) {
                list.push(Wanted { id, required, lines });
            }
        };
        let given = |text: Option<String>| text.filter(|t| !t.is_empty());
        match mount.kind {
            MountType::Secret => {
                let id =
                    given(mount.source).or(given(mount.id)).or_else(|| mount.target.as_deref().map(last));
                note(&mut own.secrets, id.unwrap_or_default(), mount.required);
            }
            MountType::Ssh => {
                note(&mut own.ssh, given(mount.id).unwrap_or_else(|| "default".into()), mount.required)
            }
            MountType::Cache => {
                let id = given(mount.id).or(mount.target).unwrap_or_default();
                note(&mut own.caches, id, false);
            }
            MountType::Bind | MountType::Tmpfs => {}
        }
        match mount.from {
            Some(from) => self.source(here, &Spanned::new(from, flag.span), own),
            None => Ok(()),
        }
    }

    /// One word of EXPOSE, after variables.
    fn port(&mut self, here: &Here<'_>, span: Span, text: &str) -> Result<(), Diagnostic> {
        let (before, port) = text.rsplit_once(':').map_or((None, text), |(b, p)| (Some(b), p));
        let (numbers, protocol) = port.split_once('/').unwrap_or((port, ""));
        let place = here.place.at(span);
        let known = ["", "tcp", "udp", "sctp"].contains(&protocol.to_lowercase().as_str());
        if known && protocol != protocol.to_lowercase() {
            let detail = format!("the protocol of '{text}' is not in lower case");
            let hint = format!("write {numbers}/{}", protocol.to_lowercase());
            self.report.add(&here.config, &rules::EXPOSE_PROTO_CASING, place, detail, Some(hint));
        }
        if known && before.is_some_and(|b| !b.is_empty()) {
            let detail = format!("'{text}' has an address or a port of the host, which mean nothing here");
            let hint = format!("write {port}; isles run -p publishes it");
            self.report.add(&here.config, &rules::EXPOSE_INVALID_FORMAT, place, detail, Some(hint));
        }
        // A wide range is tried at its ends, not written out.
        let slash = if protocol.is_empty() { String::new() } else { format!("/{protocol}") };
        let ends = match numbers.split_once('-') {
            Some((first, last)) if first.parse::<u16>().ok() <= last.parse::<u16>().ok() => {
                vec![format!("{first}{slash}"), format!("{last}{slash}")]
            }
            _ => vec![format!("{numbers}{slash}")],
        };
        for end in ends {
            ports::parse(&end).map_err(|why| self.report.source.at(span, why))?;
        }
        Ok(())
    }
}
