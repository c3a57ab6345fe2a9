//! Arguments as cobra and pflag read them, the libraries that Apptainer parses its command line with: flags end at
//! the first word that is none, `--flag=value` and `--flag value`, `-Bvalue`, `-B=value`, `-B value`, clusters of
//! switches (`-cCe`), `--switch=false`. Error messages are theirs, because people and wrappers know them.

use std::collections::BTreeMap;

use crate::flag::{Flag, Kind};

/// What a flag was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Given {
    /// One for a switch, a text or a number; all elements of a list; `NAME=VALUE` of pairs.
    list: Vec<String>,
}

/// The flags of one command line, and what variables add to them.
#[derive(Debug, Clone, Default)]
pub struct Values {
    given: BTreeMap<&'static str, Given>,
}

impl Values {
    /// Whether the flag was mentioned, or a variable sets it.
    pub fn has(&self, flag: &Flag) -> bool {
        self.given.contains_key(flag.name)
    }

    /// The truth of a switch.
    pub fn is(&self, flag: &Flag) -> bool {
        self.text(flag) == Some("true")
    }

    pub fn text(&self, flag: &Flag) -> Option<&str> {
        self.given.get(flag.name)?.list.last().map(String::as_str)
    }

    /// A text that is not empty: an empty one is as good as none for most flags.
    pub fn word(&self, flag: &Flag) -> Option<&str> {
        self.text(flag).filter(|text| !text.is_empty())
    }

    pub fn number(&self, flag: &Flag) -> Option<i64> {
        self.text(flag)?.parse().ok()
    }

    /// The elements of a list, in their order.
    pub fn list(&self, flag: &Flag) -> &[String] {
        self.given.get(flag.name).map_or(&[], |given| &given.list)
    }

    /// The pairs of a flag; of a name that is given twice, the last.
    pub fn pairs(&self, flag: &Flag) -> BTreeMap<String, String> {
        let pairs = self.list(flag).iter().filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Takes over what was given before a command's own name, where it was not given again behind it.
    pub fn inherit(&mut self, before: Values) {
        for (name, given) in before.given {
            self.given.entry(name).or_insert(given);
        }
    }

    /// Sets or adds to a flag, as one mention on the command line does.
    pub fn set(&mut self, flag: &Flag, value: &str) -> Result<(), String> {
        let elements = match flag.kind {
            Kind::Switch => {
                let truth = truth(value)
                    .ok_or_else(|| format!("strconv.ParseBool: parsing \"{value}\": invalid syntax"))?;
                vec![truth.to_string()]
            }
            Kind::Text => vec![value.to_owned()],
            Kind::Number => {
                let number: i64 = value
                    .parse()
                    .map_err(|_| format!("strconv.ParseInt: parsing \"{value}\": invalid syntax"))?;
                vec![number.to_string()]
            }
            Kind::Words => comma_separated(value)?,
            Kind::Lines => vec![value.to_owned()],
            Kind::Pairs => pairs(value)?,
        };
        let given = self.given.entry(flag.name).or_default();
        if matches!(flag.kind, Kind::Switch | Kind::Text | Kind::Number) {
            given.list.clear();
        }
        given.list.extend(elements);
        Ok(())
    }
}

/// Go's strconv.ParseBool.
pub fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// One record of CSV (RFC 4180), as pflag reads lists: an element in quotes may hold commas, and `""` is a quote.
fn comma_separated(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut list = Vec::new();
    let mut rest = text;
    loop {
        let (element, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_element(text, quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                if rest[..end].contains('"') {
                    return Err(format!("parse error in {text:?}: bare \" in non-quoted field"));
                }
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        list.push(element);
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok(list),
        }
    }
}

/// What stands before the closing quote, and what comes after it.
fn quoted_element<'a>(text: &str, mut rest: &'a str) -> Result<(String, &'a str), String> {
    let mut element = String::new();
    loop {
        let end = rest.find('"').ok_or_else(|| format!("parse error in {text:?}: missing \" at the end"))?;
        element.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                element.push('"');
                rest = more;
            }
            None if rest.is_empty() || rest.starts_with(',') => return Ok((element, rest)),
            None => return Err(format!("parse error in {text:?}: extraneous or missing \" in quoted field")),
        }
    }
}

/// A single pair is taken as a whole, so that its value may have commas; several are a list.
fn pairs(text: &str) -> Result<Vec<String>, String> {
    let list = match text.matches('=').count() {
        0 => return Err(format!("{text} must be formatted as key=value")),
        1 => vec![text.trim_matches('"').to_owned()],
        _ => comma_separated(text)?,
    };
    match list.iter().find(|pair| !pair.contains('=')) {
        Some(bad) => Err(format!("{bad} must be formatted as key=value")),
        None => Ok(list),
    }
}

/// How reading a command line ended.
#[derive(Debug)]
pub enum Parsed {
    /// The flags, and the words from the first that is none.
    Line(Values, Vec<String>),
    /// `-h` or `--help` was met.
    Help,
}

/// Reads the flags of a command. `interspersed` ones may stand after other words as well.
pub fn parse(flags: &[&'static Flag], words: &[String], interspersed: bool) -> Result<Parsed, String> {
    let mut values = Values::default();
    let mut arguments = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (long, None),
            };
            if name.is_empty() || name.starts_with('-') {
                return Err(format!("bad flag syntax: {word}"));
            }
            let Some(flag) = flags.iter().find(|flag| flag.name == name) else {
                return if name == "help" {
                    Ok(Parsed::Help)
                } else {
                    Err(format!("unknown flag: --{name}"))
                };
            };
            let value = match (value, flag.kind) {
                (Some(value), _) => value,
                (None, Kind::Switch) => "true",
                (None, _) => words.next().ok_or_else(|| format!("flag needs an argument: {word}"))?,
            };
            set(&mut values, flag, value)?;
        } else if word.len() > 1 && word.starts_with('-') {
            if let Some(help) = shorts(flags, &mut values, word, &mut words)? {
                return Ok(help);
            }
        } else {
            arguments.push(word.clone());
            if !interspersed {
                break;
            }
        }
    }
    arguments.extend(words.cloned());
    Ok(Parsed::Line(values, arguments))
}

/// The flags of `-abc`, of which the last may have its value attached or in the next word.
fn shorts(
    flags: &[&'static Flag],
    values: &mut Values,
    word: &str,
    words: &mut std::slice::Iter<'_, String>,
) -> Result<Option<Parsed>, String> {
    let mut rest = &word[1..];
    while let Some(letter) = rest.chars().next() {
        let after = &rest[letter.len_utf8()..];
        let Some(flag) = flags.iter().find(|flag| flag.short == Some(letter)) else {
            return if letter == 'h' {
                Ok(Some(Parsed::Help))
            } else {
                Err(format!("unknown shorthand flag: '{letter}' in -{}", &word[1..]))
            };
        };
        // A single character after the letter can't be `=` with something behind it.
        let value = match after.strip_prefix('=').filter(|value| !value.is_empty()) {
            Some(value) => value,
            None if flag.kind == Kind::Switch => {
                set(values, flag, "true")?;
                rest = after;
                continue;
            }
            None if !after.is_empty() => after,
            None => words
                .next()
                .ok_or_else(|| format!("flag needs an argument: '{letter}' in -{}", &word[1..]))?,
        };
        set(values, flag, value)?;
        return Ok(None);
    }
    Ok(None)
}

fn set(values: &mut Values, flag: &Flag, value: &str) -> Result<(), String> {
    values
        .set(flag, value)
        .map_err(|why| format!("invalid argument {value:?} for {:?} flag: {why}", flag.both_names()))
}

#[cfg(test)]
mod tests {
    use super::*;

    static BIND: Flag = Flag::lines("bind", "spec", "").short('B');
    static CONTAIN: Flag = Flag::switch("contain", "").short('c');
    static ALL: Flag = Flag::switch("containall", "").short('C');
    static HOME: Flag = Flag::text("home", "spec", "").short('H');
    static ENV: Flag = Flag::pairs("env", "", "");
    static SCRATCH: Flag = Flag::words("scratch", "path", "").short('S');
    static PIDS: Flag = Flag::number("pids-limit", "");
    const FLAGS: [&Flag; 7] = [&BIND, &CONTAIN, &ALL, &HOME, &ENV, &SCRATCH, &PIDS];

    fn line(words: &[&str]) -> Result<(Values, Vec<String>), String> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        match parse(&FLAGS, &words, false)? {
            Parsed::Line(values, arguments) => Ok((values, arguments)),
            Parsed::Help => Err("help".into()),
        }
    }

    #[test]
    fn flags_end_at_the_first_other_word() {
        let (values, rest) = line(&["-c", "image", "-C", "--", "x"]).unwrap();
        assert!(values.is(&CONTAIN) && !values.is(&ALL));
        assert_eq!(rest, ["image", "-C", "--", "x"]);
        assert_eq!(line(&["--", "-c"]).unwrap().1, ["-c"]);
        assert_eq!(line(&["-", "-c"]).unwrap().1, ["-", "-c"]);
        let words = ["image".to_owned(), "-c".into(), "--".into(), "-C".into()];
        let Parsed::Line(values, rest) = parse(&FLAGS, &words, true).unwrap() else { panic!() };
        assert!(values.is(&CONTAIN) && !values.is(&ALL));
        assert_eq!(rest, ["image", "-C"]);
    }

    #[test]
    fn values_in_all_spellings() {
        for words in [
            &["--bind", "/a:/b,/c"][..],
            &["--bind=/a:/b,/c"],
            &["-B", "/a:/b,/c"],
            &["-B/a:/b,/c"],
            &["-B=/a:/b,/c"],
            &["-cB", "/a:/b,/c"],
            &["-cB/a:/b,/c"],
        ] {
            assert_eq!(line(words).unwrap().0.list(&BIND), ["/a:/b,/c"], "{words:?}");
        }
        let (values, _) = line(&["-B", "/a", "--bind=/b", "-H/x", "-H", "/y", "-cC", "-c=false"]).unwrap();
        assert_eq!(values.list(&BIND), ["/a", "/b"]);
        assert_eq!(values.text(&HOME), Some("/y"));
        assert!(!values.is(&CONTAIN) && values.has(&CONTAIN) && values.is(&ALL));
        assert!(!line(&["--contain=0"]).unwrap().0.is(&CONTAIN));
        let (values, _) = line(&["-S", "/a,\"/b,c\"", "--scratch", "/d", "-S", ""]).unwrap();
        assert_eq!(values.list(&SCRATCH), ["/a", "/b,c", "/d"]);
        let (values, _) = line(&["--env", "A=1,2,3", "--env", "B=x,C=y", "--env", "A=4"]).unwrap();
        let env: Vec<_> = values.pairs(&ENV).into_iter().collect();
        assert_eq!(env, [("A", "4"), ("B", "x"), ("C", "y")].map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(line(&["--pids-limit", "-1"]).unwrap().0.number(&PIDS), Some(-1));
    }

    #[test]
    fn errors_are_cobras() {
        for (words, error) in [
            (&["--nosuch"][..], "unknown flag: --nosuch"),
            (&["--nosuch=1"], "unknown flag: --nosuch"),
            (&["-cxy"], "unknown shorthand flag: 'x' in -cxy"),
            (&["--bind"], "flag needs an argument: --bind"),
            (&["-cB"], "flag needs an argument: 'B' in -cB"),
            (&["--=x"], "bad flag syntax: --=x"),
            (&["---x"], "bad flag syntax: ---x"),
            (
                &["--contain=maybe"],
                "invalid argument \"maybe\" for \"-c, --contain\" flag: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
            (
                &["--pids-limit", "x"],
                "invalid argument \"x\" for \"--pids-limit\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            (&["--env", "A"], "invalid argument \"A\" for \"--env\" flag: A must be formatted as key=value"),
            (&["-h"], "help"),
            (&["-c", "--help", "--nosuch"], "help"),
        ] {
            assert_eq!(line(words).unwrap_err(), error, "{words:?}");
        }
        for bad in ["\"a", "a\"b", "\"a\"b"] {
            assert!(line(&["-S", bad]).is_err(), "{bad}");
        }
    }
}
