//! Typed instructions in stages: what each instruction's words mean, before variables are expanded.

use std::sync::Arc;

use isles_spec::image::Healthcheck;
use isles_spec::nearest::nearest;
use isles_spec::quantity::parse_duration;

use super::flags::{Flags, Kind};
use super::lines::{Directive, requested_syntax};
use super::mount;
use super::syntax::{self, Heredoc, Node, Tree};
use crate::position::{Diagnostic, SourceText, Spanned};

/// A Dockerfile in stages.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub source: Arc<SourceText>,
    pub directives: Vec<Directive>,
    /// The value of a `syntax` directive in any of its spellings.
    pub syntax: Option<String>,
    pub escape: char,
    /// The `ARG`s before the first `FROM`.
    pub global_args: Vec<Argument>,
    pub stages: Vec<Stage>,
}

/// What stands between two `FROM`s.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Lower case.
    pub name: Option<String>,
    pub base: Spanned,
    pub platform: Option<Spanned>,
    pub node: Node,
    pub steps: Vec<Step>,
}

/// An instruction and the node that it came from.
#[derive(Debug, Clone)]
pub struct Step {
    pub instruction: Instruction,
    pub node: Node,
}

/// `NAME[=default]` of an `ARG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    pub name: Spanned,
    pub default: Option<Spanned>,
}

/// A command in exec form, or a line for the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    pub words: Vec<String>,
    /// The one word is a line for the shell in force.
    pub shell: bool,
}

/// Where a COPY or ADD takes something from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    Path(Spanned),
    Inline(Heredoc),
}

/// What COPY and ADD have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyInstruction {
    pub sources: Vec<CopySource>,
    pub destination: Spanned,
    pub from: Option<Spanned>,
    pub chown: Option<Spanned>,
    pub chmod: Option<Spanned>,
    pub link: bool,
    pub parents: bool,
    pub exclude: Vec<Spanned>,
    /// ADD only.
    pub checksum: Option<Spanned>,
    pub keep_git_dir: Option<bool>,
    pub unpack: Option<bool>,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq)]
pub enum Instruction {
    Add(CopyInstruction),
    Arg(Vec<Argument>),
    Cmd(CommandLine),
    Copy(CopyInstruction),
    Entrypoint(CommandLine),
    Env(Vec<(Spanned, Spanned)>),
    Expose(Vec<Spanned>),
    Healthcheck(Healthcheck),
    Label(Vec<(Spanned, Spanned)>),
    Maintainer(Spanned),
    Onbuild(String),
    Run(RunInstruction),
    Shell(Vec<String>),
    StopSignal(Spanned),
    User(Spanned),
    Volume(Vec<Spanned>),
    Workdir(Spanned),
}

/// A RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInstruction {
    pub command: CommandLine,
    pub heredocs: Vec<Heredoc>,
    /// Mounts as written; variables in them are expanded later.
    pub mounts: Vec<Spanned>,
    pub network: Option<Spanned>,
    pub security: Option<Spanned>,
    pub devices: Vec<Spanned>,
}

/// All keywords.
pub const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Gives the instructions of a tree their types and sorts them into stages.
pub fn recipe(tree: Tree) -> Result<Recipe, Diagnostic> {
    let Tree { source, directives, escape, nodes } = tree;
    let mut recipe = Recipe {
        syntax: requested_syntax(source.text()),
        source,
        directives,
        escape,
        global_args: Vec::new(),
        stages: Vec::new(),
    };
    for node in nodes {
        let source = &recipe.source;
        let name = node.name();
        if name == "FROM" {
            recipe.stages.push(from(source, node)?);
            continue;
        }
        let instruction = instruction(source, &node)?;
        match (recipe.stages.last_mut(), instruction) {
            (Some(stage), instruction) => stage.steps.push(Step { instruction, node }),
            (None, Instruction::Arg(arguments)) => recipe.global_args.extend(arguments),
            (None, _) => {
                return Err(source
                    .at(node.keyword.span, format!("{name} stands before the first FROM"))
                    .with_suggestion("only ARG may stand before FROM"));
            }
        }
    }
    if recipe.stages.is_empty() {
        let at = recipe.global_args.first().map(|a| a.name.span).unwrap_or_default();
        return Err(recipe.source.at(at, "the file has no FROM"));
    }
    Ok(recipe)
}

fn from(source: &SourceText, node: Node) -> Result<Stage, Diagnostic> {
    let flags = Flags::parse(source, &node, &[("platform", Kind::Text)])?;
    let name = match node.args.as_slice() {
        [_] => None,
        [_, word, name] if word.eq_ignore_ascii_case("as") => {
            let lower = name.to_ascii_lowercase();
            let mut letters = lower.chars();
            let good = letters.next().is_some_and(|c| c.is_ascii_lowercase())
                && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c));
            if !good {
                return Err(source
                    .at(name.span, format!("invalid stage name '{}'", name.text))
                    .with_suggestion(
                        "a stage name begins with a letter and has letters, digits, - _ and . only",
                    ));
            }
            Some(lower)
        }
        _ => {
            return Err(source
                .at(node.span, "FROM takes one image, or an image, AS and a name")
                .with_suggestion("write FROM image, or FROM image AS name"));
        }
    };
    Ok(Stage { name, base: node.args[0].clone(), platform: flags.text("platform"), steps: Vec::new(), node })
}

/// Gives one instruction other than FROM its type.
pub fn instruction(source: &SourceText, node: &Node) -> Result<Instruction, Diagnostic> {
    let name = node.name();
    let flags = |known: &[(&str, Kind)]| Flags::parse(source, node, known);
    // Flags of ARG and STOPSIGNAL have no effect, as in the reference.
    if !matches!(name.as_str(), "ADD" | "ARG" | "COPY" | "HEALTHCHECK" | "RUN" | "STOPSIGNAL")
        && KEYWORDS.contains(&name.as_str())
    {
        flags(&[])?;
    }
    Ok(match name.as_str() {
        "ADD" | "COPY" => copy(source, node)?,
        "RUN" => Instruction::Run(run(source, node)?),
        "CMD" => Instruction::Cmd(command_line(source, node, &node.args)?),
        "ENTRYPOINT" => Instruction::Entrypoint(command_line(source, node, &node.args)?),
        "ENV" => Instruction::Env(pairs(source, node)?),
        "LABEL" => Instruction::Label(pairs(source, node)?),
        "ARG" => Instruction::Arg(arguments(source, node)?),
        "EXPOSE" => Instruction::Expose(some_words(source, node)?),
        "VOLUME" => {
            let volumes = some_words(source, node)?;
            if let Some(empty) = volumes.iter().find(|v| v.trim().is_empty()) {
                return Err(source.at(empty.span, "VOLUME takes no empty path"));
            }
            Instruction::Volume(volumes)
        }
        "USER" => Instruction::User(one_word(source, node)?),
        "WORKDIR" => Instruction::Workdir(one_word(source, node)?),
        "STOPSIGNAL" => Instruction::StopSignal(one_word(source, node)?),
        "MAINTAINER" => Instruction::Maintainer(one_word(source, node)?),
        "HEALTHCHECK" => Instruction::Healthcheck(healthcheck(source, node)?),
        "SHELL" => {
            let words = some_words(source, node)?;
            if !node.json {
                return Err(source
                    .at(node.span, "SHELL takes a JSON array")
                    .with_suggestion("write SHELL [\"/bin/bash\", \"-c\"]"));
            }
            Instruction::Shell(words.into_iter().map(|w| w.text).collect())
        }
        "ONBUILD" => onbuild(source, node)?,
        "FROM" => return Err(source.at(node.span, "FROM cannot stand here")),
        _ => {
            let error = source.at(node.keyword.span, format!("unknown instruction '{}'", node.keyword.text));
            return Err(match nearest(&node.keyword, KEYWORDS) {
                Some(near) => error.with_suggestion(format!("did you mean {near}?")),
                None => {
                    error.with_suggestion("a line that goes on needs a \\ at the end of the line before it")
                }
            });
        }
    })
}

fn some_words(source: &SourceText, node: &Node) -> Result<Vec<Spanned>, Diagnostic> {
    if node.args.is_empty() {
        return Err(source
            .at(node.span, format!("{} needs at least one argument", node.name()))
            .with_suggestion(usage(&node.name())));
    }
    Ok(node.args.clone())
}

/// How an instruction is written.
fn usage(name: &str) -> String {
    let arguments = match name {
        "ARG" => "NAME[=DEFAULT]",
        "ENV" | "LABEL" => "NAME=VALUE",
        "EXPOSE" => "PORT[/PROTOCOL]",
        "HEALTHCHECK" => "CMD COMMAND, or HEALTHCHECK NONE",
        "MAINTAINER" => "NAME",
        "SHELL" => "[\"/bin/bash\", \"-c\"]",
        "STOPSIGNAL" => "SIGNAL",
        "USER" => "NAME[:GROUP]",
        _ => "PATH",
    };
    format!("write {name} {arguments}")
}

fn one_word(source: &SourceText, node: &Node) -> Result<Spanned, Diagnostic> {
    match node.args.as_slice() {
        [word] => Ok(word.clone()),
        _ => Err(source
            .at(node.span, format!("{} needs exactly one argument", node.name()))
            .with_suggestion(usage(&node.name()))),
    }
}

fn pairs(source: &SourceText, node: &Node) -> Result<Vec<(Spanned, Spanned)>, Diagnostic> {
    let words = some_words(source, node)?;
    let mut out = Vec::with_capacity(words.len() / 3);
    for triple in words.chunks_exact(3) {
        if triple[0].is_empty() {
            return Err(source.at(triple[1].span, format!("a name is empty in {}", node.name())));
        }
        out.push((triple[0].clone(), triple[1].clone()));
    }
    Ok(out)
}

fn arguments(source: &SourceText, node: &Node) -> Result<Vec<Argument>, Diagnostic> {
    let words = some_words(source, node)?;
    let argument = |word: Spanned| match word.text.split_once('=') {
        Some(("", _)) => Err(source.at(word.span, "a name is empty in ARG")),
        Some((name, value)) => Ok(Argument {
            name: Spanned::new(name, word.span),
            default: Some(Spanned::new(value, word.span)),
        }),
        None => Ok(Argument { name: word, default: None }),
    };
    words.into_iter().map(argument).collect()
}

fn command_line(source: &SourceText, node: &Node, words: &[Spanned]) -> Result<CommandLine, Diagnostic> {
    if let Some(word) = words.iter().find(|w| w.contains('\0')) {
        return Err(source.at(word.span, "a command cannot have a NUL byte"));
    }
    Ok(CommandLine { words: words.iter().map(|w| w.text.clone()).collect(), shell: !node.json })
}

fn run(source: &SourceText, node: &Node) -> Result<RunInstruction, Diagnostic> {
    let flags = Flags::parse(
        source,
        node,
        &[("mount", Kind::List), ("network", Kind::Text), ("security", Kind::Text), ("device", Kind::List)],
    )?;
    let mounts = flags.list("mount");
    mounts.iter().try_for_each(|m| mount::check(source, m))?;
    let one_of = |name: &str, known: &[&str]| match flags.text(name) {
        Some(value) if !known.contains(&value.text.as_str()) => Err(source
            .at(value.span, format!("--{name} cannot be '{}'", value.text))
            .with_suggestion(format!("it is {}", known.join(", ")))),
        value => Ok(value),
    };
    Ok(RunInstruction {
        command: command_line(source, node, &node.args)?,
        heredocs: node.heredocs.clone(),
        mounts,
        network: one_of("network", &["default", "none", "host"])?,
        security: one_of("security", &["sandbox", "insecure"])?,
        devices: flags.list("device"),
    })
}

fn copy(source: &SourceText, node: &Node) -> Result<Instruction, Diagnostic> {
    let add = node.name() == "ADD";
    let mut known =
        vec![("chown", Kind::Text), ("chmod", Kind::Text), ("link", Kind::Bool), ("exclude", Kind::List)];
    if add {
        known.extend([("checksum", Kind::Text), ("keep-git-dir", Kind::Bool), ("unpack", Kind::Bool)]);
    } else {
        known.extend([("from", Kind::Text), ("parents", Kind::Bool)]);
    }
    let flags = Flags::parse(source, node, &known)?;
    let Some((destination, sources)) = node.args.split_last().filter(|(_, s)| !s.is_empty()) else {
        return Err(source
            .at(node.span, format!("{} needs a source and a destination", node.name()))
            .with_suggestion(format!("write {} SOURCE DESTINATION", node.name())));
    };
    if !node.json && syntax::heredoc(destination, destination.span).is_some() {
        return Err(source.at(destination.span, "a here-document cannot be the destination"));
    }
    let mut list = Vec::with_capacity(sources.len());
    for word in sources {
        let inline = match syntax::heredoc(word, word.span) {
            Some(opened) if !node.json => node.heredocs.iter().find(|h| h.name == opened.name),
            _ => None,
        };
        list.push(match inline {
            Some(heredoc) => CopySource::Inline(heredoc.clone()),
            None => CopySource::Path(word.clone()),
        });
    }
    if let Some(from) = flags.find("from").filter(|f| f.contains('$')) {
        return Err(source
            .at(from.span, "--from takes no variable")
            .with_suggestion("give the image a stage of its own (FROM $IMAGE AS name) and copy from that"));
    }
    if let Some(inline) = list.iter().find_map(|s| match s {
        CopySource::Inline(h) if h.name.contains('/') || matches!(h.name.as_str(), "." | "..") => Some(h),
        _ => None,
    }) {
        return Err(source.at(inline.body.span, format!("'{}' cannot be the name of a file", inline.name)));
    }
    let instruction = CopyInstruction {
        sources: list,
        destination: destination.clone(),
        from: flags.text("from"),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.bool("link"),
        parents: flags.bool("parents"),
        exclude: flags.list("exclude"),
        checksum: flags.text("checksum"),
        keep_git_dir: flags.find("keep-git-dir").map(|v| v.text == "true"),
        unpack: flags.find("unpack").map(|v| v.text == "true"),
    };
    Ok(if add { Instruction::Add(instruction) } else { Instruction::Copy(instruction) })
}

fn onbuild(source: &SourceText, node: &Node) -> Result<Instruction, Diagnostic> {
    let Some(child) = &node.child else {
        return Err(source.at(node.span, "ONBUILD needs an instruction"));
    };
    match child.name().as_str() {
        "ONBUILD" => return Err(source.at(child.keyword.span, "ONBUILD cannot trigger ONBUILD")),
        name @ ("FROM" | "MAINTAINER") => {
            return Err(source.at(child.keyword.span, format!("ONBUILD cannot trigger {name}")));
        }
        _ => {}
    }
    let mut text = child.line.text.clone();
    for heredoc in &node.heredocs {
        text.push('\n');
        text.push_str(&heredoc.body);
        text.push_str(&heredoc.name);
    }
    // The trigger has to make sense now, not only in some later build.
    let inner = Node { heredocs: node.heredocs.clone(), ..(**child).clone() };
    instruction(source, &inner)?;
    Ok(Instruction::Onbuild(text))
}

fn healthcheck(source: &SourceText, node: &Node) -> Result<Healthcheck, Diagnostic> {
    let words = some_words(source, node)?;
    let kind = words[0].to_ascii_uppercase();
    if kind == "NONE" {
        Flags::parse(source, node, &[])?;
        return match words.len() {
            1 => Ok(Healthcheck { test: vec![kind], ..Default::default() }),
            _ => Err(source.at(words[1].span, "HEALTHCHECK NONE takes no argument")),
        };
    }
    let names = ["interval", "timeout", "start-period", "start-interval", "retries"];
    let flags = Flags::parse(source, node, &names.map(|n| (n, Kind::Text)))?;
    if kind != "CMD" {
        return Err(source
            .at(words[0].span, format!("unknown kind of health check '{}'", words[0].text))
            .with_suggestion("it is CMD or NONE"));
    }
    if words.len() == 1 {
        return Err(source.at(node.span, "HEALTHCHECK CMD has no command"));
    }
    let duration = |name: &str| -> Result<u64, Diagnostic> {
        let Some(value) = flags.text(name) else { return Ok(0) };
        let d = parse_duration(&value).map_err(|e| source.at(value.span, format!("--{name}: {e}")))?;
        let nanos = u64::try_from(d.as_nanos())
            .ok()
            .filter(|n| i64::try_from(*n).is_ok())
            .ok_or_else(|| source.at(value.span, format!("--{name} is too long")))?;
        match nanos {
            1..=999_999 => Err(source.at(value.span, format!("--{name} is shorter than 1ms"))),
            n => Ok(n),
        }
    };
    let retries = match flags.text("retries") {
        None => 0,
        Some(value) => value.parse::<i32>().ok().and_then(|n| u64::try_from(n).ok()).ok_or_else(|| {
            source.at(value.span, format!("--retries is a number from 0 on, not '{}'", value.text))
        })?,
    };
    let mut test = vec![if node.json { "CMD".to_owned() } else { "CMD-SHELL".to_owned() }];
    test.extend(words[1..].iter().map(|w| w.text.clone()));
    Ok(Healthcheck {
        test,
        interval: duration("interval")?,
        timeout: duration("timeout")?,
        start_period: duration("start-period")?,
        start_interval: duration("start-interval")?,
        retries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Recipe, Diagnostic> {
        crate::dockerfile::parse(SourceText::new("Dockerfile", text.as_bytes()))
    }

    fn step(text: &str) -> Result<Instruction, Diagnostic> {
        read(&format!("FROM x\n{text}\n")).map(|mut r| r.stages.remove(0).steps.remove(0).instruction)
    }

    #[test]
    fn stages_and_arguments() {
        let r = read("ARG V=1 W\nFROM a:$V AS Base\nRUN x\nFROM --platform=linux/amd64 base\n").unwrap();
        assert_eq!(r.global_args.len(), 2);
        assert_eq!(r.stages[0].name.as_deref(), Some("base"));
        assert_eq!(r.stages[1].platform.as_ref().unwrap().text, "linux/amd64");
    }

    #[test]
    fn typed() {
        let Instruction::Copy(c) =
            step("COPY --from=a --exclude=x --exclude=y --link a b <<E /c/\nhi\nE").unwrap()
        else {
            panic!()
        };
        assert_eq!((c.sources.len(), c.exclude.len(), c.link), (3, 2, true));
        assert!(matches!(&c.sources[2], CopySource::Inline(h) if h.body.text == "hi\n"));
        let Instruction::Healthcheck(h) = step("HEALTHCHECK --interval=5s --retries=3 CMD a b").unwrap()
        else {
            panic!()
        };
        assert_eq!(
            (h.test, h.interval, h.retries),
            (vec!["CMD-SHELL".into(), "a b".into()], 5_000_000_000, 3)
        );
        assert_eq!(
            step("ONBUILD COPY <<E /x\nq\nE").unwrap(),
            Instruction::Onbuild("COPY <<E /x\nq\nE".to_owned())
        );
    }

    #[test]
    fn errors_have_places_and_suggestions() {
        for (text, place, hint) in [
            ("FROM a\nRUUN x", "2:1", "RUN"),
            ("FORM a", "1:1", "FROM"),
            ("FROM a\nCOPY --form=b x /y", "2:6", "--from"),
            ("FROM a\nRUN --mount=tpye=cache,target=/x true", "2:5", "type"),
            ("FROM a\nSHELL bash", "2:1", "SHELL ["),
            ("FROM a\nENV x", "2:5", "x=value"),
            ("FROM a\n  && make", "2:3", "\\"),
            ("FROM a AS 1x", "1:11", "letter"),
            ("ENV a=1\nFROM b", "1:1", "ARG"),
            ("FROM a\nUSER", "2:1", "write USER NAME"),
            ("FROM a\nEXPOSE", "2:1", "write EXPOSE PORT"),
            ("FROM a\nSHELL []", "2:1", "SHELL [\"/bin"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.to_string().starts_with(&format!("Dockerfile:{place}: ")), "{error}");
            assert!(
                error.suggestion.as_deref().unwrap_or("").contains(hint),
                "{text}: {:?}",
                error.suggestion
            );
        }
        for text in [
            "COPY x",
            "COPY x <<E\na\nE",
            "COPY <<a/b /x\nq\na/b",
            "ADD --from=x a b",
            "COPY --link=maybe a b",
            "COPY --from=$x a b",
            "COPY --chown=a --chown=b a b",
            "COPY --chown a b",
            "VOLUME [\"\"]",
            "VOLUME",
            "EXPOSE",
            "USER",
            "ARG =x",
            "LABEL =x",
            "SHELL []",
            "STOPSIGNAL",
            "ONBUILD",
            "ONBUILD ONBUILD RUN x",
            "ONBUILD FROM x",
            "ONBUILD BOGUS x",
            "HEALTHCHECK",
            "HEALTHCHECK CMD",
            "HEALTHCHECK NONE x",
            "HEALTHCHECK CONNECT x",
            "HEALTHCHECK --interval=1us CMD x",
            "HEALTHCHECK --retries=-1 CMD x",
            "RUN --network=moon true",
            "RUN [\"a\\u0000b\"]",
            "CMD --x y",
        ] {
            assert!(step(text).is_err(), "{text}");
        }
    }
}
