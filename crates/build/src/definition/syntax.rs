//! Stages, header fields and sections of a definition file, with the place of each.

use isles_spec::nearest::nearest;

use crate::position::{Diagnostic, SourceText, Span, Spanned};

/// A definition file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Definition {
    pub stages: Vec<Stage>,
}

/// A stage: from one `Bootstrap:` line to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stage {
    pub header: Vec<Field>,
    pub sections: Vec<Section>,
    /// The bytes of the file that belong to the stage.
    pub span: Span,
}

/// `Key: value` of a header. The key is in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub key: Spanned,
    pub value: Spanned,
}

/// A section: its kind, what stands beside its name, and the lines below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    pub kind: SectionKind,
    pub name: Spanned,
    pub arguments: Spanned,
    pub body: Spanned,
}

macro_rules! sections {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// The sections that the language has.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum SectionKind { $($variant),* }

        impl SectionKind {
            const ALL: &'static [(&'static str, SectionKind)] = &[$(($name, SectionKind::$variant)),*];

            /// The section of a name in lower case.
            pub fn of(name: &str) -> Option<SectionKind> {
                Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, kind)| *kind)
            }

            /// All names.
            pub fn names() -> impl Iterator<Item = &'static str> {
                Self::ALL.iter().map(|(name, _)| *name)
            }

            /// The name without `%`.
            pub fn name(self) -> &'static str {
                match self { $(SectionKind::$variant => $name),* }
            }
        }
    };
}

sections! {
    Pre "pre", Setup "setup", Files "files", Post "post", Test "test", Environment "environment",
    Runscript "runscript", Startscript "startscript", Labels "labels", Help "help", Arguments "arguments",
    AppInstall "appinstall", AppLabels "applabels", AppEnv "appenv", AppHelp "apphelp", AppRun "apprun",
    AppTest "apptest", AppStart "appstart", AppFiles "appfiles",
}

/// The fields of headers; `otherurl` has a number behind it.
const KEYS: [&str; 25] = [
    "bootstrap",
    "from",
    "stage",
    "mirrorurl",
    "osversion",
    "updateurl",
    "include",
    "includecmd",
    "library",
    "registry",
    "namespace",
    "fingerprints",
    "setopt",
    "confurl",
    "product",
    "user",
    "regcode",
    "productpgp",
    "registerurl",
    "modules",
    "target",
    "frontend",
    "filename",
    "buildargs",
    "otherurl",
];

/// One line of `%files`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileCopy {
    pub source: Spanned,
    pub destination: Option<Spanned>,
    /// Words after the destination, which the language ignores.
    pub extra: Option<Span>,
}

impl Stage {
    /// The value of a header field; the last one where it stands there several times.
    pub fn field(&self, key: &str) -> Option<&Spanned> {
        self.header.iter().rfind(|f| f.key.text == key).map(|f| &f.value).filter(|v| !v.is_empty())
    }

    /// The name of the stage, where it has one.
    pub fn name(&self) -> Option<&Spanned> {
        self.field("stage")
    }

    /// The sections of a kind, in order.
    pub fn all(&self, kind: SectionKind) -> impl Iterator<Item = &Section> {
        self.sections.iter().filter(move |s| s.kind == kind)
    }

    /// The text of a section; repeated sections follow one another. `None` where there is none.
    pub fn text(&self, kind: SectionKind) -> Option<String> {
        let mut found = self.all(kind).peekable();
        found.peek()?;
        Some(found.map(|s| s.body.text.as_str()).collect())
    }

    /// Where the first section of a kind begins.
    pub fn place(&self, kind: SectionKind) -> Option<Span> {
        self.all(kind).next().map(|s| s.name.span)
    }
}

impl SectionKind {
    /// Whether a section of this kind belongs to an app, by the word behind its name.
    pub fn is_of_app(self) -> bool {
        self.name().starts_with("app")
    }
}

impl Section {
    /// What stands beside the name, without a comment.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.arguments.split('#').next().unwrap_or_default().split_whitespace()
    }

    /// The word after `from`, for `%files from STAGE`.
    pub fn from_stage(&self) -> Option<&str> {
        let mut words = self.words();
        words.next().filter(|w| w.eq_ignore_ascii_case("from"))?;
        words.next()
    }

    /// The app that the section belongs to.
    pub fn app(&self) -> Option<&str> {
        self.kind.is_of_app().then(|| self.arguments.split_whitespace().next()).flatten()
    }

    /// The lines of a `%files`: blanks separate source and destination, quotes and backslashes protect
    /// them. A backslash before a wildcard stays in a source, where it makes a plain character of it.
    pub fn copies(&self) -> Vec<FileCopy> {
        let mut out = Vec::new();
        let mut at = self.body.span.start;
        for line in self.body.split_inclusive('\n') {
            let start = at;
            at += line.len();
            if line.trim_start().starts_with('#') {
                continue;
            }
            let mut words = split_words(line, start).into_iter();
            if let Some(source) = words.next() {
                let destination = words.next().map(|w| Spanned::new(without_escapes(&w), w.span));
                let extra = words.next().map(|w| w.span);
                out.push(FileCopy { source, destination, extra });
            }
        }
        out
    }
}

/// A word that is no pattern.
pub fn without_escapes(word: &str) -> String {
    let mut chars = word.chars();
    let mut out = String::with_capacity(word.len());
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    out
}

fn split_words(line: &str, offset: usize) -> Vec<Spanned> {
    let mut out = Vec::new();
    let mut word = String::new();
    let mut begin = None;
    let mut quote = None;
    let mut chars = line.char_indices();
    while let Some((i, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if let Some(b) = begin.take() {
                    out.push(Spanned::new(std::mem::take(&mut word), Span::new(offset + b, offset + i)));
                }
                continue;
            }
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(q) if c == q => quote = None,
            _ if c == '\\' && quote != Some('\'') => {
                if let Some((_, c)) = chars.next() {
                    if matches!(c, '*' | '?' | '[' | ']' | '\\') {
                        word.push('\\');
                    }
                    word.push(c);
                }
            }
            _ => word.push(c),
        }
        begin.get_or_insert(i);
    }
    if let Some(b) = begin {
        out.push(Spanned::new(word, Span::new(offset + b, offset + line.trim_end().len())));
    }
    out
}

/// Reads a definition file without replacing its arguments.
pub fn parse(source: &SourceText) -> Result<Definition, Diagnostic> {
    let text = source.text();
    if source.is_lossy() {
        let at = text.find('\u{fffd}').unwrap_or(0);
        return Err(source
            .at(Span::new(at, at + 3), "the file has bytes that are not UTF-8")
            .with_suggestion("save the file as UTF-8"));
    }
    let mut pieces: Vec<Span> = Vec::new();
    let mut at = 0;
    let mut begin = 0;
    for line in text.split_inclusive('\n') {
        let word = line.as_bytes().get(..10);
        if word.is_some_and(|w| w.eq_ignore_ascii_case(b"bootstrap:")) && at > begin {
            pieces.push(Span::new(begin, at));
            begin = at;
        }
        at += line.len();
    }
    pieces.push(Span::new(begin, at));
    // Comments above the first header are no stage of their own.
    let says_nothing = |s: &Span| {
        text[s.start..s.end].trim_start_matches('\u{feff}').lines().all(|l| {
            let l = l.trim();
            l.is_empty() || l.starts_with('#')
        })
    };
    if pieces.len() > 1 && says_nothing(&pieces[0]) {
        pieces.remove(0);
    }
    if pieces.iter().all(says_nothing) {
        return Err(source
            .at(Span::new(text.len(), text.len()), "the file has no header and no section")
            .with_suggestion("a definition file begins with 'Bootstrap: docker' and 'From: IMAGE'"));
    }
    let many = pieces.len() > 1;
    let mut definition = Definition::default();
    for piece in pieces {
        let stage = stage(source, &text[piece.start..piece.end], &|o| piece.start + o)?;
        if many && stage.header.is_empty() {
            return Err(source.at(Span::new(piece.start, piece.start), "a stage of several needs a header"));
        }
        definition.stages.push(Stage { span: piece, ..stage });
    }
    Ok(definition)
}

/// Reads the text of one stage. `place` turns an offset in `text` into one in the file, which differ
/// once arguments are replaced.
pub fn stage(source: &SourceText, text: &str, place: &dyn Fn(usize) -> usize) -> Result<Stage, Diagnostic> {
    let span = |start: usize, end: usize| Span::new(place(start), place(end));
    let mut stage = Stage::default();
    let mut at = 0;
    // A header field that the next line continues.
    let mut open: Option<Field> = None;
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let bare = line.trim_end_matches(['\n', '\r']);
        let trimmed = bare.trim_start().trim_start_matches('\u{feff}');
        let indent = bare.len() - trimmed.len();
        if let Some(rest) = trimmed.strip_prefix('%') {
            stage.header.extend(open.take().map(whole));
            // Only a space ends the name.
            let name_end = rest.find(' ').unwrap_or(rest.len());
            let name = rest[..name_end].trim_end().to_ascii_lowercase();
            let name_start = start + indent;
            let name_span = span(name_start, name_start + 1 + name_end);
            let kind = SectionKind::of(&name).ok_or_else(|| {
                let error = source.at(name_span, format!("unknown section '%{}'", name.escape_default()));
                let word = name.split('\t').next().unwrap_or_default();
                match nearest(&name, SectionKind::names()) {
                    _ if word != name && SectionKind::of(word).is_some() => error.with_suggestion(format!(
                        "only a space ends the name: write '%{word} ' without a tab"
                    )),
                    Some(near) => error.with_suggestion(format!("did you mean %{near}?")),
                    None => error.with_suggestion(
                        "a line that begins with % opens a section, even inside a here-document or a script",
                    ),
                }
            })?;
            if kind.is_of_app() && rest[name_end..].split_whitespace().next().is_none() {
                return Err(source
                    .at(name_span, format!("%{name} needs the name of an app"))
                    .with_suggestion(format!("write %{name} NAME")));
            }
            let arguments = rest[name_end..].trim();
            let arguments_start = start + bare.len() - rest[name_end..].trim_start().len();
            stage.sections.push(Section {
                kind,
                name: Spanned::new(name, name_span),
                arguments: Spanned::new(arguments, span(arguments_start, arguments_start + arguments.len())),
                body: Spanned::new("", span(at, at)),
            });
        } else if let Some(section) = stage.sections.last_mut() {
            section.body.text.push_str(bare);
            if line.ends_with('\n') {
                section.body.text.push('\n');
            }
            section.body.span.end = place(at);
        } else {
            header_line(source, bare, start, &span, &mut open, &mut stage.header)?;
        }
    }
    stage.header.extend(open.map(whole));
    Ok(stage)
}

/// A value that is whole.
fn whole(mut field: Field) -> Field {
    field.value.text = field.value.text.trim().to_owned();
    field
}

fn header_line(
    source: &SourceText,
    line: &str,
    start: usize,
    span: &dyn Fn(usize, usize) -> Span,
    open: &mut Option<Field>,
    header: &mut Vec<Field>,
) -> Result<(), Diagnostic> {
    // A '#' cuts the line wherever it stands, also inside a URL.
    let text = line.split('#').next().unwrap_or("").trim_end();
    let text = text.trim_start_matches('\u{feff}');
    // An empty line, or one that is a comment, ends a value.
    if text.trim().is_empty() {
        header.extend(open.take().map(whole));
        return Ok(());
    }
    let (text, newline, more) = match (text.strip_suffix("\\n\\"), text.strip_suffix('\\')) {
        (Some(head), _) => (head, true, true),
        (None, Some(head)) => (head, false, true),
        _ => (text, false, false),
    };
    let here = |part: &str| {
        let at = start + (part.as_ptr() as usize).saturating_sub(line.as_ptr() as usize);
        span(at, at + part.len())
    };
    if let Some(field) = open {
        let part = if more && !newline { text.trim_start() } else { text.trim() };
        if !part.is_empty() {
            field.value.span = field.value.span.to(here(part));
        }
        // Only what stands before the backslash parts the words.
        field.value.text.push_str(part);
        if newline {
            field.value.text.push('\n');
        }
        if !more {
            header.extend(open.take().map(whole));
        }
        return Ok(());
    }
    let Some((key, value)) = text.split_once(':') else {
        return Err(source
            .at(here(text.trim()), format!("'{}' is no header line", text.trim()))
            .with_suggestion(
                "a header line is 'Key: value'; a script stands below a section such as %post",
            ));
    };
    let name = key.trim().to_ascii_lowercase();
    let base = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let known = KEYS.contains(&base) && (base == name || base == "otherurl");
    if !known {
        let error = source.at(here(key.trim()), format!("unknown header key '{}'", key.trim()));
        return Err(match nearest(&name, KEYS) {
            Some(near) => error.with_suggestion(format!("did you mean '{near}'?")),
            None => error,
        });
    }
    let mut value_text = if more && !newline { value.trim_start() } else { value.trim() }.to_owned();
    if newline {
        value_text.push('\n');
    }
    let field = Field {
        key: Spanned::new(name, here(key.trim())),
        value: Spanned::new(value_text, here(value.trim())),
    };
    if more {
        *open = Some(field)
    } else {
        header.push(field)
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Definition, Diagnostic> {
        parse(&SourceText::new("x.def", text.as_bytes()))
    }

    const TWO_STAGES: &str = "# top\n\nBootstrap: docker\nFrom: golang:1.20 # a comment\nStage: build\n\n%post\n  \
        go build\n\nbootstrap: docker\nFrom: alpine\n%files from build\n  /root/hello /bin/hello\n%post -c /bin/bash\necho a\n\
        %Runscript\n  exec hello \"$@\"\n%post\necho b\n";

    #[test]
    fn stages_headers_and_sections() {
        let d = read(TWO_STAGES).unwrap();
        assert_eq!(d.stages.len(), 2);
        assert_eq!(d.stages[0].field("from").unwrap().text, "golang:1.20");
        assert_eq!(d.stages[0].name().unwrap().text, "build");
        assert_eq!(d.stages[0].text(SectionKind::Post).unwrap(), "  go build\n\n");
        let last = &d.stages[1];
        assert_eq!(last.text(SectionKind::Post).unwrap(), "echo a\necho b\n");
        assert_eq!(last.all(SectionKind::Post).next().unwrap().arguments.text, "-c /bin/bash");
        assert_eq!(last.text(SectionKind::Runscript).unwrap(), "  exec hello \"$@\"\n");
        let files = last.all(SectionKind::Files).next().unwrap();
        assert_eq!(files.from_stage(), Some("build"));
        let copy = &files.copies()[0];
        assert_eq!(
            (copy.source.text.as_str(), copy.destination.as_ref().unwrap().text.as_str()),
            ("/root/hello", "/bin/hello")
        );
        assert_eq!(&TWO_STAGES[copy.source.span.start..copy.source.span.end], "/root/hello");
        assert_eq!(last.text(SectionKind::Test), None);
    }

    #[test]
    fn header_continuations_and_numbers() {
        let d =
            read("Bootstrap: zypper\nInclude: a \\\n  b\\\n  c\nOtherURL0: http://x\nSetOpt: a\\n\\\nb\nUser: me \\\n\nUser: you\n")
                .unwrap();
        let stage = &d.stages[0];
        assert_eq!(stage.field("include").unwrap().text, "a bc");
        assert_eq!(stage.field("user").unwrap().text, "you", "the last one counts");
        assert_eq!(stage.field("otherurl0").unwrap().text, "http://x");
        assert_eq!(stage.field("setopt").unwrap().text, "a\nb");
    }

    #[test]
    fn files_lines() {
        let d = read("Bootstrap: scratch\n%files\n# no\n a\n 'b c' \"/d e\"\n f\\ g /h/ i\n x\\*y* z\\*\n\n")
            .unwrap();
        let copies = d.stages[0].sections[0].copies();
        let texts: Vec<_> = copies
            .iter()
            .map(|c| {
                (c.source.text.as_str(), c.destination.as_ref().map(|d| d.text.as_str()), c.extra.is_some())
            })
            .collect();
        let expected = [
            ("a", None, false),
            ("b c", Some("/d e"), false),
            ("f g", Some("/h/"), true),
            ("x\\*y*", Some("z*"), false),
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn errors_have_places() {
        for (text, place, part) in [
            ("Bootstrap: docker\nFrmo: x\n", "2:1", "Frmo"),
            ("Bootstrap: docker\nFrom: x\n%pots\n", "3:1", "%pots"),
            ("Bootstrap: docker\nFrom: x\n%post\ncat <<E\n  %packages\nE\n", "5:3", "%packages"),
            ("Bootstrap: docker\nhello\n", "2:1", "hello"),
            ("Bootstrap: docker\nFrom1: a\n", "2:1", "From1"),
            ("Bootstrap: docker\n%appinstall\nx\n", "2:1", "needs the name"),
            ("Bootstrap: docker\n%apprun \nx\n", "2:1", "needs the name"),
            ("Bootstrap: docker\nFrom: a\n%post\t-c x\n", "3:1", "unknown section"),
            ("%post\nx\nBootstrap: docker\n", "1:1", "needs a header"),
            ("", "1:1", "no header"),
            ("# only\n", "2:1", "no header"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.to_string().starts_with(&format!("x.def:{place}: ")), "{text:?}: {error}");
            assert!(error.message.contains(part), "{error}");
        }
        assert!(parse(&SourceText::new("x", b"Bootstrap: docker\xff")).is_err());
    }
}
